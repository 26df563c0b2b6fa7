"""What patches make of spectrograms: zeros at their ends, and how much there is to compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from trainer.config import ModelConfig
from trainer.model import create_model

#: {axis of a patch: what lies along it}.
_AXES = {"trial": "trials", "freq": "frequencies", "time": "frames"}


def describe_padding(config: ModelConfig, shape: tuple[int, int, int]) -> Iterator[str]:
    """Yield a line for each axis whose patches do not come out even.

    Parameters
    ----------
    config : ModelConfig
    shape : tuple of int
        Trials, frequencies and frames of a sequence.
    """
    patches = (config.patch_trial, config.patch_freq, config.patch_time)
    for (axis, what), size, patch in zip(_AXES.items(), shape, patches, strict=True):
        n_patches = -(-size // patch)
        padded = n_patches * patch
        if padded == size:
            continue
        near = nearest_divisor(size, patch)
        advice = f"; --model.patch_{axis} {near} needs no padding" if near else ""
        yield (
            f"Padding: {size:,} {what} are padded to {padded:,} ({n_patches:,} patches of "
            f"{patch}): {100 * (1 - size / padded):.0f} % of what the model sees is zeros{advice}"
        )


def nearest_divisor(size: int, wanted: float) -> int | None:
    """Return the divisor of a size that is the nearest by its ratio, None if none is within two."""
    divisors = [n for n in range(1, size + 1) if size % n == 0]
    ratios = {n: max(n / wanted, wanted / n) for n in divisors}
    near = min(divisors, key=lambda n: ratios[n])
    return near if ratios[near] <= 2 else None


def describe_smaller_models(
    config: ModelConfig, shape: tuple[int, int, int], n_classes: int
) -> str:
    """Return flags that make a training step cheaper, and by how much.

    Parameters
    ----------
    config : ModelConfig
    shape : tuple of int
        Trials, frequencies and frames of a sequence.
    n_classes : int

    Returns
    -------
    str
        Empty where the model is small and its patches are coarse already.
    """
    _, n_freqs, n_times = shape
    # That few still show when and in which band a response is.
    freq, time = nearest_divisor(n_freqs, n_freqs / 4), nearest_divisor(n_times, n_times / 8)
    coarse = replace(
        config,
        patch_freq=max(config.patch_freq, freq or 0),
        patch_time=max(config.patch_time, time or 0),
    )
    flags = [
        f"--model.{name} {getattr(coarse, name)}"
        for name in ("patch_freq", "patch_time")
        if getattr(coarse, name) > getattr(config, name)
    ]
    models = {
        " ".join(flags): coarse,
        " ".join([*flags, "--model.size tiny"]): replace(coarse, size="tiny"),
    }
    before = least = _flops(config, shape, n_classes)
    told = []
    for words, model in models.items():
        flops = _flops(model, shape, n_classes)
        if 2 * flops <= least:
            told.append(f"{words} takes 1/{before / flops:.0f}")
            least = flops
    return f"{', '.join(told)} of the operations" if told else ""


def _flops(config: ModelConfig, shape: tuple[int, int, int], n_classes: int) -> int:
    # Nothing is computed or drawn there.
    with torch.device("meta"):
        return create_model(config, *shape, n_classes).flops_per_sequence()
