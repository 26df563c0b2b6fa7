"""Training steps at the lab's size: ours, the lab's way, and models of equal width and depth.

A step is forward, cross-entropy, backward, gradient clipping and AdamW. Precision and compilation
of the peers are what ours chooses on the device, but the lab's way is eager float32 throughout.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

N_FREQS, N_TIMES = 64, 488
PATCH = (2, 8, 8)
DIM, DEPTH, HEADS, MLP_DIM = 384, 8, 6, 1536
N_CLASSES = 2
LEARNING_RATE, WEIGHT_DECAY, CLIP, SMOOTHING = 3e-4, 0.05, 1.0, 0.05


@dataclass(frozen=True)
class Size:
    """What a step works on."""

    n_trials: int
    batch_size: int
    device: torch.device


@dataclass(frozen=True)
class Step:
    """A training step that can be repeated.

    Attributes
    ----------
    model : nn.Module
    bfloat16, compiled : bool
    take : callable
        Takes one step.
    flops : int, optional
        Of a step, a sequence; known of ours.
    peak : float, optional
        Operations a second that the device can do at most, where that is known.
    """

    model: nn.Module
    bfloat16: bool
    compiled: bool
    take: Callable[[], object]
    flops: int | None = None
    peak: float | None = None


def ours(size: Size, dataset: Path, **train: Any) -> Step:
    """Return the trainer's own step on a batch of a dataset."""
    from trainer.config import Config, LoaderConfig, SequenceConfig, TrainConfig
    from trainer.data.dataset_folder import open_dataset
    from trainer.data.loader import make_loader
    from trainer.distributed import Process
    from trainer.hardware import peak_flops, use_compile
    from trainer.training.train_step import start_training

    # As trainer.training.command does.
    if size.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    config = Config(
        sequence=SequenceConfig(size.n_trials),
        loader=LoaderConfig(store="memory"),
        train=TrainConfig(batch_size=size.batch_size, **train),
    )
    folder = open_dataset(str(dataset))
    loader = make_loader(
        folder,
        "train",
        config.sequence,
        config.loader,
        batch_size=size.batch_size,
        device=size.device,
        seed=0,
        shuffle=True,
    )
    step, state = start_training(config, folder, loader, Process(0, 1, size.device))
    batch = next(loader.batches(0))
    return Step(
        state.model,
        step.bfloat16,
        use_compile(config.train.compile, size.device),
        lambda: step(state, [batch]),
        state.model.flops_per_sequence(),
        peak_flops(size.device, step.bfloat16, None),
    )


def eager(size: Size, dataset: Path) -> Step:
    """Return ours without torch.compile."""
    return ours(size, dataset, compile="never")


def compiled(size: Size, dataset: Path) -> Step:
    """Return ours with torch.compile."""
    return ours(size, dataset, compile="always")


def bfloat16(size: Size, dataset: Path) -> Step:
    """Return ours in bfloat16."""
    return ours(size, dataset, precision="bf16")


def lab(size: Size, dataset: Path) -> Step:
    """Return our model with plain softmax attention, in eager float32."""
    from trainer.config import ModelConfig
    from trainer.layers import Attention
    from trainer.model import create_model

    def plain(self: Attention, x: Tensor) -> Tensor:
        return self.forward_with_attention(x)[0]

    # This process does nothing else.
    Attention.forward = plain  # type: ignore[method-assign]
    model = create_model(ModelConfig(), size.n_trials, N_FREQS, N_TIMES, N_CLASSES)
    return plain_step(model, size, as_ours=False)


class Encoder(nn.Module):
    """`torch.nn.TransformerEncoder` between a patch embedding and a head."""

    def __init__(self, n_trials: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv3d(1, DIM, PATCH, stride=PATCH)
        n_patches = math.prod(
            n // patch for n, patch in zip((n_trials, N_FREQS, N_TIMES), PATCH, strict=True)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.pos_embed = nn.Parameter(torch.randn(1, n_patches, DIM))
        layer = nn.TransformerEncoderLayer(
            DIM, HEADS, MLP_DIM, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, DEPTH, norm=nn.LayerNorm(DIM), enable_nested_tensor=False
        )
        self.head = nn.Linear(DIM, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch_embed(x[:, None]).flatten(2).transpose(1, 2) + self.pos_embed
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1)
        logits: Tensor = self.head(self.encoder(tokens)[:, 0])
        return logits


def encoder(size: Size, dataset: Path) -> Step:
    """Return PyTorch's own encoder."""
    return plain_step(Encoder(size.n_trials), size, as_ours=True)


class VitPytorch(nn.Module):
    """vit-pytorch's 3D ViT, with trials for its frames."""

    def __init__(self, n_trials: int) -> None:
        super().__init__()
        from vit_pytorch.vit_3d import ViT

        self.vit = ViT(
            image_size=(N_FREQS, N_TIMES),
            image_patch_size=PATCH[1:],
            frames=n_trials,
            frame_patch_size=PATCH[0],
            channels=1,
            num_classes=N_CLASSES,
            dim=DIM,
            depth=DEPTH,
            heads=HEADS,
            dim_head=DIM // HEADS,
            mlp_dim=MLP_DIM,
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.vit(x[:, None])
        return logits


def vit_pytorch(size: Size, dataset: Path) -> Step:
    """Return vit-pytorch's model."""
    return plain_step(VitPytorch(size.n_trials), size, as_ours=True)


def plain_step(model: nn.Module, size: Size, *, as_ours: bool) -> Step:
    """Return the loop that a person writes; `as_ours` in precision and compilation."""
    on_gpu = size.device.type == "cuda"
    fast = as_ours and on_gpu
    if fast:
        torch.set_float32_matmul_precision("high")
    model = model.to(size.device).train()
    if fast:
        model.compile(dynamic=False)
    optimizer = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=as_ours
    )
    generator = torch.Generator().manual_seed(0)
    shape = (size.batch_size, size.n_trials, N_FREQS, N_TIMES)
    x = torch.randn(shape, generator=generator).half().to(size.device)
    label = torch.arange(size.batch_size, device=size.device) % N_CLASSES

    def take() -> None:
        with torch.autocast(size.device.type, torch.bfloat16, enabled=fast):
            logits = model(x.float())
        loss = functional.cross_entropy(logits.float(), label, label_smoothing=SMOOTHING)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Step(model, fast, fast, take)


STEPS = {
    step.__name__: step for step in (ours, eager, compiled, bfloat16, lab, encoder, vit_pytorch)
}


def measure(step: Step, size: Size, n_steps: int, n_stretches: int) -> dict[str, Any]:
    """Time stretches of steps, after two that are not timed.

    Returns
    -------
    dict
        `seconds` a step in each stretch; `first`, seconds of the first step, compilation
        included; `parameters`; `flops` and `peak` as of a `Step`; `bfloat16`; `compiled`;
        `gpu_memory` in bytes, 0 on the CPU.
    """

    def stretch(n: int) -> float:
        _wait(size.device)
        started = time.perf_counter()
        for _ in range(n):
            step.take()
        _wait(size.device)
        return (time.perf_counter() - started) / n

    first = stretch(1)
    stretch(1)
    on_gpu = size.device.type == "cuda"
    return {
        "first": first,
        "seconds": [stretch(n_steps) for _ in range(n_stretches)],
        "parameters": sum(parameter.numel() for parameter in step.model.parameters()),
        "flops": step.flops,
        "peak": step.peak,
        "bfloat16": step.bfloat16,
        "compiled": step.compiled,
        "gpu_memory": torch.cuda.max_memory_allocated(size.device) if on_gpu else 0,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=STEPS)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("result", type=Path, help="JSON file")
    parser.add_argument("--n-trials", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True, help="of a stretch")
    parser.add_argument("--stretches", type=int, required=True)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = Size(args.n_trials, args.batch_size, device)
    found = measure(STEPS[args.name](size, args.dataset), size, args.steps, args.stretches)
    args.result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
