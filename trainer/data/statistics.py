"""Mean and standard deviation of sessions, from the exact sums in ``sessions.parquet``.

The sums are integers in units of 2**-128 (docs/dataset-format.md), so that any sessions together
have one mean and one standard deviation, whatever they were added up in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

UNIT = 1 << 128


@dataclass(frozen=True)
class Statistics:
    """What is subtracted from spectrograms, and what they are divided by.

    Attributes
    ----------
    mean, std : list of float
        One number, or one a frequency.
    """

    mean: list[float]
    std: list[float]


def session_statistics(rows: Iterable[Mapping[str, Any]], method: str) -> Statistics:
    """Return the statistics of all values of some sessions, their gains taken out.

    Parameters
    ----------
    rows : iterable of mapping
        `count`, `sum`, `sum_squares` and `gain` of each session, as in ``sessions.parquet``.
    method : {"global", "per_frequency", "none"}
        As in the manifest's normalisation.

    Raises
    ------
    ValueError
        If there is no such method, or there are no values.
    KeyError, TypeError, OverflowError
        If a row is not as documented.
    """
    if method == "none":
        return Statistics([0.0], [1.0])
    moments = [_without_gain(row) for row in rows]
    count = sum(n for n, _, _ in moments)
    sums = [sum(parts) for parts in zip(*(part for _, part, _ in moments), strict=True)]
    squares = [sum(parts) for parts in zip(*(part for _, _, part in moments), strict=True)]
    if method == "global":
        count, sums, squares = count * len(sums), [sum(sums)], [sum(squares)]
    elif method != "per_frequency":
        raise ValueError(f"there is no normalisation {method!r}")
    if not count:
        raise ValueError("there are no values")
    mean = [float(Fraction(s, count * UNIT)) for s in sums]
    variance = [
        Fraction(count * q * UNIT - s**2, (count * UNIT) ** 2)
        for s, q in zip(sums, squares, strict=True)
    ]
    return Statistics(mean, [math.sqrt(max(0.0, float(value))) for value in variance])


def _without_gain(row: Mapping[str, Any]) -> tuple[int, list[int], list[int]]:
    """Return count, sums and sums of squares of a session's values minus its gain."""
    gain, count = round(Fraction(row["gain"]) * UNIT), int(row["count"])
    sums, squares = ([int(value) for value in row[name]] for name in ("sum", "sum_squares"))
    for f, value in enumerate(sums):
        squares[f] += round(Fraction(gain * (count * gain - 2 * value), UNIT))
        sums[f] -= count * gain
    return count, sums, squares
