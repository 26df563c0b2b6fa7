"""How the values of flags are written."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any


def numbers(count: int) -> Callable[[str], tuple[float, ...]]:
    """Return a parser of ``1.0,2.0``."""

    def parse(text: str) -> tuple[float, ...]:
        values = tuple(float(part) for part in text.split(","))
        if len(values) != count:
            raise ValueError
        return values

    parse.__name__ = f"list of {count} comma-separated numbers,"
    return parse


def names(text: str) -> tuple[str, ...]:
    """Parse ``A,B``."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def at_least(kind: type[int] | type[float], low: float, high: float = float("inf")) -> Any:
    """Return a parser of a number in a range."""

    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            bound = f"at least {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
            raise argparse.ArgumentTypeError(f"{text} is not {bound}")
        return value

    parse.__name__ = kind.__name__
    return parse


#: Flags whose value may begin with a minus sign, which argparse takes for another flag.
_SIGNED_LISTS = ("--baseline",)


def join_signed_values(arguments: Sequence[str]) -> list[str]:
    """Write ``--baseline -2.0,0.0`` as ``--baseline=-2.0,0.0``."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in _SIGNED_LISTS:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined
