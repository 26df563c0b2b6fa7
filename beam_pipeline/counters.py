"""Counters of a run: Beam adds them up over all workers, and they end in ``run.json``."""

from __future__ import annotations

NAMESPACE = "lfp"
#: The counter of the trials that each phase of a run has finished.
PHASE_COUNTERS = {"read": "rows_read", "survey": "trials_surveyed", "write": "trials_encoded"}


def count(name: str, n: int = 1) -> None:
    """Add to a counter; outside a Beam worker nothing happens."""
    # `plan` and `audit` read tables without ever loading Beam.
    from apache_beam.metrics import Metrics

    Metrics.counter(NAMESPACE, name).inc(n)
