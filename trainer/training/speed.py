"""How fast the loop is, and what it waits for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Speedometer:
    """Measures the stretches between two log lines.

    Parameters
    ----------
    sequences_per_batch : float
        Mean over an epoch and sum over processes, padding not counted.
    flops_per_sequence : int
        Of one training step.
    peak_flops : float, optional
        Operations a second that all devices together can do at most.
    """

    def __init__(
        self, sequences_per_batch: float, flops_per_sequence: int, peak_flops: float | None
    ) -> None:
        self._sequences_per_batch = sequences_per_batch
        self._flops_per_sequence = flops_per_sequence
        self._peak_flops = peak_flops
        self.restart()

    def restart(self) -> None:
        """Begin a stretch."""
        self._start = time.perf_counter()
        self._waited = 0.0
        self._batches = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the body as time in which the loop waits for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def count(self, n_batches: int) -> None:
        """Note that batches are done."""
        self._batches += n_batches

    def read(self) -> dict[str, float]:
        """Return what the stretch shows, and begin the next one.

        Returns
        -------
        dict
            `sequences_per_second`; `data_wait`, the share of the time; `mfu`, the share of the
            peak (model FLOPs utilisation), where the peak is known.
        """
        seconds = time.perf_counter() - self._start
        rate = self._batches * self._sequences_per_batch / seconds
        values = {"sequences_per_second": rate, "data_wait": self._waited / seconds}
        if self._peak_flops is not None:
            values["mfu"] = rate * self._flops_per_sequence / self._peak_flops
        self.restart()
        return values
