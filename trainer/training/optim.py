"""AdamW, what it decays, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import nn

from trainer.config import OptimConfig

#: Where AdamW has a kernel that updates all parameters at once.
_FUSED = {"cpu", "cuda"}


class Decayable(Protocol):
    """A module that names parameters which are tables rather than matrices."""

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay."""

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Return names and parameters, as `torch.nn.Module` does."""


def parameter_groups(model: Decayable, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups for an optimiser: matrices, which decay, and everything else.

    Biases, norms and LayerScale have one axis; position tables and the class token are named by
    `no_weight_decay`.
    """
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    tables = model.no_weight_decay()
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim >= 2 and name not in tables
        (decayed if matrix else others).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def create_optimizer(
    model: Decayable, config: OptimConfig, device: torch.device
) -> torch.optim.AdamW:
    """Return AdamW over a model's parameters; the loop sets the learning rate of every step."""
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        fused=device.type in _FUSED,
    )


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the average of the weights towards the model's: ``decay`` of it stays."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
