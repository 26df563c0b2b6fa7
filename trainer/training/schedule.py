"""The learning rate and every seed as pure functions of the step."""

from __future__ import annotations

import hashlib
import math


def learning_rate(
    step: int, *, total_steps: int, warmup_steps: int, lr: float, min_lr: float
) -> float:
    """Return the learning rate of a step: a linear warm-up, then half a cosine down to `min_lr`.

    Parameters
    ----------
    step : int
        From 0 to `total_steps` - 1.
    total_steps : int
    warmup_steps : int
        Steps of the warm-up as `capped_warmup` gives them: `lr / warmup_steps` at step 0, `lr` at
        step `warmup_steps` - 1.
    lr, min_lr : float
        Highest rate, and that of the last step.
    """
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    done = (step - warmup_steps + 1) / (total_steps - warmup_steps)
    return min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def capped_warmup(warmup_steps: int, total_steps: int) -> int:
    """Return the steps of a warm-up that is wanted, or half the run's where it is shorter.

    Without the other half a run would end at its highest rate, and never come down.
    """
    return min(warmup_steps, total_steps // 2)


def ema_decay(step: int, decay: float) -> float:
    """Return the decay of the moving average at a step, lower at first.

    ``min(decay, (1 + step) / (10 + step))``, as in TensorFlow's ExponentialMovingAverage: with a
    fixed decay the random weights of the start would stay in the average of a short run.
    """
    return min(decay, (1 + step) / (10 + step))


def derive_seed(seed: int, *parts: int | str) -> int:
    """Return a seed of 63 bits for one purpose: a hash of the run's seed and of what it is for.

    Seeds that are only added up coincide: step 1 of seed 0 is step 0 of seed 1.
    """
    text = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
