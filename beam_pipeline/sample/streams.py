"""Independent random streams of one seed: what one of them draws never moves another."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Names of the independent random streams of one seed."""

    LAB = 0
    PAIR = 1
    SUBJECT = 2
    SESSION = 3
    LATENT = 4
    STIMULUS = 5
    BAD_ROWS = 6
    TRACES = 7


def generator(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """Return the generator of a stream, or of the part of it that `key` names."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(stream), *key)))
