"""How long a step is going to take on a CPU, where the first one may take a minute."""

from __future__ import annotations

import time

import torch

from trainer.config import Config
from trainer.model import create_model

#: A second measurement is worth its time only where the first one is short.
_SHORT_SECONDS = 0.5


def seconds_per_sequence(
    config: Config, shape: tuple[int, int, int], n_classes: int, bfloat16: bool
) -> float:
    """Return the time that a training step takes on a CPU for each sequence of its batch.

    It is measured on one sequence and a model of its own: neither weights nor random numbers of
    the run change.

    Parameters
    ----------
    config : Config
    shape : tuple of int
        Trials, frequencies and frames of a sequence.
    n_classes : int
    bfloat16 : bool
        Whether to run under autocast.
    """
    with torch.random.fork_rng(devices=[]):
        model = create_model(config.model, *shape, n_classes).train()
        x = torch.zeros(1, *shape)
        seconds = 0.0
        for _ in range(2):
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                logits = model(x)
            torch.autograd.backward(logits.float().sum())
            seconds = time.perf_counter() - start
            if seconds > _SHORT_SECONDS:
                break
    return seconds
