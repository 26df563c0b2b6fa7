"""Augmentation of batches of sequences, on their own device.

What happens to a batch is drawn on the host by NumPy, a few numbers a sequence, and applied to the
tensors on their device. So the draws are a pure function of (seed, rank, step), equal on CPU and
GPU, and untouched by any other use of random numbers; and each kind has its own stream, so that
switching one on or off leaves the others as they were.

The order is that of the names in `KINDS`. Masks come last, so that what they hide is 0, the train
mean of normalised spectrograms, whatever was added before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import AugmentConfig
from trainer.errors import UsageError

#: In the order in which they are applied; the index of a name is that of its random stream.
KINDS = ("time_shift", "gain_jitter", "mixup", "freq_mask", "time_mask", "trial_drop")


def augment(
    x: Tensor,
    label_one_hot: Tensor,
    mask: Tensor,
    config: AugmentConfig,
    seed: int,
    step: int,
    rank: int = 0,
) -> tuple[Tensor, Tensor]:
    """Augment a batch; with every option 0 its tensors are returned as they are.

    Parameters
    ----------
    x : float tensor (B, n_trials, n_freqs, n_times)
        Normalised log power. Not changed in place.
    label_one_hot : float tensor (B, num_classes)
    mask : bool tensor (B,)
        False where a row only fills up the batch; such rows are not mixed into others.
    config : AugmentConfig
    seed : int
        Not negative.
    step : int
        Number of the batch, counted over the whole run.
    rank : int
        Process in distributed training, so that each draws for itself.

    Returns
    -------
    x : tensor
        Of the shape and dtype given.
    soft_targets : float tensor (B, num_classes)
        Rows add up to what they did.

    Raises
    ------
    UsageError
        If an option does not suit the shape; see `check_augment`.
    """
    n_batch, n_trials, n_freqs, n_times = x.shape
    check_augment(config, n_freqs, n_times)

    def stream(kind: str) -> np.random.Generator:
        return np.random.default_rng((seed, rank, step, KINDS.index(kind)))

    def on_device(draws: NDArray[Any]) -> Tensor:
        return torch.from_numpy(draws).to(x.device, non_blocking=True)

    targets = label_one_hot
    if config.time_shift:
        limit = config.time_shift
        shift = stream("time_shift").integers(-limit, limit, n_batch, endpoint=True)
        x = shift_time(x, on_device(shift))
    if config.gain_jitter:
        gain = config.gain_jitter * stream("gain_jitter").standard_normal(n_batch, np.float32)
        x = (x + on_device(gain)[:, None, None, None]).to(x.dtype)
    if config.mixup:
        rng = stream("mixup")
        weight = rng.beta(config.mixup, config.mixup, n_batch).astype(np.float32)
        partner = mixup_partners(on_device(rng.permutation(n_batch)), mask)
        x, targets = mixup(x, targets, partner, on_device(weight))
    if config.freq_mask:
        start, stop = draw_bands(stream("freq_mask"), n_batch, n_freqs, config.freq_mask)
        x = mask_band(x, on_device(start), on_device(stop), dim=2)
    if config.time_mask:
        start, stop = draw_bands(stream("time_mask"), n_batch, n_times, config.time_mask)
        x = mask_band(x, on_device(start), on_device(stop), dim=3)
    if config.trial_drop:
        dropped = draw_dropped(stream("trial_drop"), n_batch, n_trials, config.trial_drop)
        x = x.masked_fill(on_device(dropped)[:, :, None, None], 0.0)
    return x, targets


def check_augment(config: AugmentConfig, n_freqs: int, n_times: int) -> None:
    """Raise `UsageError` if a mask or shift could leave nothing of a spectrogram."""
    limits = {
        "freq_mask": (config.freq_mask, n_freqs, "frequencies"),
        "time_mask": (config.time_mask, n_times, "frames"),
        "time_shift": (config.time_shift, n_times, "frames"),
    }
    for name, (value, size, unit) in limits.items():
        if value >= size:
            raise UsageError(
                f"augment.{name} must be below the {size} {unit} of a spectrogram, not {value}"
            )


def draw_bands(
    rng: np.random.Generator, n_batch: int, size: int, max_width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw one band a sequence: width uniform in 0 to max_width, then its place, as SpecAugment.

    Returns
    -------
    start, stop : int64 arrays (n_batch,)
        A band is start <= index < stop, inside 0 to size.

    References
    ----------
    .. [1] Park et al., SpecAugment, Interspeech 2019.
    """
    width = rng.integers(0, max_width, n_batch, endpoint=True)
    start = rng.integers(0, size - width, endpoint=True)
    return start, start + width


def draw_dropped(
    rng: np.random.Generator, n_batch: int, n_trials: int, probability: float
) -> NDArray[np.bool_]:
    """Draw which trials to drop, (n_batch, n_trials): each by itself, but never a whole sequence.

    Where chance takes all of them one is kept, each as likely as any other.
    """
    uniform = rng.random((n_batch, n_trials))
    dropped = uniform < probability
    # The largest of a row is below the probability only where all are.
    dropped[np.arange(n_batch), uniform.argmax(axis=1)] = False
    return dropped


def shift_time(x: Tensor, shift: Tensor) -> Tensor:
    """Move each sequence by `shift` frames (B,), to later times where positive.

    What moves in is the frame at the edge, repeated: wrapping around would put the end of the
    response before the stimulus.
    """
    n_times = x.shape[3]
    source = torch.arange(n_times, device=x.device) - shift[:, None]
    return torch.take_along_dim(x, source.clamp(0, n_times - 1)[:, None, None, :], dim=3)


def mask_band(x: Tensor, start: Tensor, stop: Tensor, dim: int) -> Tensor:
    """Set start <= index < stop along `dim` to 0; the bounds are (B,), one band a sequence."""
    index = torch.arange(x.shape[dim], device=x.device)
    inside = (index >= start[:, None]) & (index < stop[:, None])
    shape = [1] * x.ndim
    shape[0], shape[dim] = inside.shape
    return x.masked_fill(inside.view(shape), 0.0)


def mixup_partners(order: Tensor, mask: Tensor) -> Tensor:
    """Return for each row the row it is mixed with: the next of those with a True mask.

    Parameters
    ----------
    order : int64 tensor (B,)
        A permutation of the rows.
    mask : bool tensor (B,)

    Returns
    -------
    int64 tensor (B,)
        A permutation that maps rows with a False mask to themselves, and those with a True one
        around a single cycle.
    """
    # By sorting rather than selecting: the shape must not depend on the mask, or the host would
    # have to wait for the device.
    used_first = order[torch.argsort(~mask[order], stable=True)]
    rows = torch.arange(len(order), device=order.device)
    following = used_first[(rows + 1) % mask.sum().clamp(min=1)]
    partner = torch.empty_like(order).scatter_(0, used_first, following)
    return torch.where(mask, partner, rows)


def mixup(x: Tensor, targets: Tensor, partner: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mix each row with its partner's, and the targets likewise [1]_.

    Parameters
    ----------
    x : float tensor (B, ...)
    targets : float tensor (B, num_classes)
    partner : int64 tensor (B,)
        Rows that are their own partner come out bit for bit as they went in.
    weight : float32 tensor (B,)
        Share of the row itself, 0 to 1.

    References
    ----------
    .. [1] Zhang et al., mixup: beyond empirical risk minimization, ICLR 2018.
    """

    def mix(values: Tensor) -> Tensor:
        own, other = values.float(), values[partner].float()
        # A float16 weight would differ from that of the targets.
        share = weight.view(-1, *(1,) * (values.ndim - 1))
        return torch.lerp(other, own, share).to(values.dtype)

    return mix(x), mix(targets)
