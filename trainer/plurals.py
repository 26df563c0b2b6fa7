"""Counts in sentences."""

from __future__ import annotations


def plural(n: int, noun: str, one: str = "", many: str = "") -> str:
    """Return ``1 session has`` or ``2 sessions have``, given what to say of one and of many."""
    return f"{n:,} {noun} {one}".rstrip() if n == 1 else f"{n:,} {noun}s {many}".rstrip()
