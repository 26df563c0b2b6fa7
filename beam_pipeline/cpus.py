"""How many processors this process may use."""

import os

__all__ = ["n_cpus"]


def n_cpus() -> int:
    """Count the processors this process may use.

    Returns
    -------
    int
        The processors the system lets the process run on where it can say so (Linux), all of
        the machine's elsewhere, and 1 where even those are unknown.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
