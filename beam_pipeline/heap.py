"""The memory of a process: one heap for all threads, and no search for garbage among modules."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

#: Of glibc's malloc.h.
M_ARENA_MAX = -8


def share_heap() -> None:
    """Let threads that start from now on share the main thread's heap; does nothing without glibc.

    glibc gives each thread a heap of its own, and what is free in one is of no use to another:
    Beam's threads, which hand the same bytes on to each other, took 150 MB more between them.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)


@contextmanager
def loading_modules() -> Iterator[None]:
    """Collect no garbage while modules load, nor among what they have made ever after.

    Beam's modules make 200,000 objects that stay; walking them again and again took a sixth of the
    time of loading them.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
