"""All that changes while a run trains, and all of it in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.config import Config
from trainer.model import Temporal3DViT


@dataclass
class TrainingState:
    """Weights, optimiser and position of a run.

    Attributes
    ----------
    model : Temporal3DViT
    average : Temporal3DViT, optional
        Moving average of its weights.
    optimizer : torch.optim.Optimizer
    window : float64 tensor of shape (5,)
        Since the last log line: numerator and weight of the loss, sum of the gradients' norms,
        steps, and the first step that was not finite, or -1.
    step : int
        Steps done.
    epoch : int
        Whole epochs done.
    batch : int
        Batches done of the epoch after those: the position in the data.
    stale : int
        Epochs since the first number of `score` was last improved on.
    score : tuple of float
        Of the best epoch, as `trainer.training.validation` gives it; empty before the first.
    log_bytes : int
        Length of metrics.jsonl.
    """

    model: Temporal3DViT
    average: Temporal3DViT | None
    optimizer: torch.optim.Optimizer
    window: Tensor = field(default_factory=lambda: new_window(torch.device("cpu")))
    step: int = 0
    epoch: int = 0
    batch: int = 0
    stale: int = 0
    score: tuple[float, ...] = ()
    log_bytes: int = 0

    @property
    def evaluated(self) -> Temporal3DViT:
        """The model whose predictions count."""
        return self.model if self.average is None else self.average

    def note(self, sums: Tensor, norm: Tensor) -> None:
        """Add a step's loss and gradient norm to the window; the device does it by itself.

        Parameters
        ----------
        sums : tensor of shape (2,)
            Numerator and weight of the loss.
        norm : scalar tensor
            Of the gradient before it was clipped.
        """
        is_first_bad = ~torch.isfinite(sums[0] + norm) & (self.window[4] < 0)
        self.window[4] = torch.where(is_first_bad, self.step, self.window[4])
        self.window[:4] += torch.stack([sums[0], sums[1], norm, torch.ones_like(norm)])

    def to_checkpoint(self, config: Config, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Return the content of a checkpoint: tensors, and what JSON can hold.

        Parameters
        ----------
        config : Config
        identity : mapping
            What else must be the same when the run goes on.
        """
        on_gpu = self.window.device.type == "cuda"
        return {
            "model": self.model.state_dict(),
            "ema": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "window": self.window,
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "stale": self.stale,
            "score": list(self.score),
            "log_bytes": self.log_bytes,
            # Every step seeds the generators anew; this is for whatever draws between steps.
            "rng": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state() if on_gpu else None,
            },
            "config": asdict(config),
            "identity": dict(identity),
        }

    def restore(self, content: Mapping[str, Any]) -> None:
        """Take up what `to_checkpoint` returned; tensors move to the model's device."""
        self.model.load_state_dict(content["model"])
        if self.average is not None:
            self.average.load_state_dict(content["ema"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.window = content["window"].to(self.window.device)
        for name in ("step", "epoch", "batch", "stale", "log_bytes"):
            setattr(self, name, content[name])
        self.score = tuple(content["score"])
        torch.set_rng_state(content["rng"]["cpu"])
        if self.window.device.type == "cuda" and content["rng"]["cuda"] is not None:
            torch.cuda.set_rng_state(content["rng"]["cuda"])


def new_window(device: torch.device) -> Tensor:
    """Return the window of a log line that has just begun."""
    return torch.tensor([0.0, 0.0, 0.0, 0.0, -1.0], dtype=torch.float64, device=device)
