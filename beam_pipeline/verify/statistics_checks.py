"""Checks of the statistics: from the train sessions alone, and true of the shards' values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beam_pipeline.layout import LayoutError, train_normalization
from beam_pipeline.manifest import MANIFEST, SESSIONS, STATS
from beam_pipeline.moments import UNIT
from beam_pipeline.output.dataset_folder import normalization_stats
from beam_pipeline.plurals import plural
from beam_pipeline.survey import SessionSummary
from beam_pipeline.verify.block_report import BlockReport, Problem
from beam_pipeline.verify.dataset_checks import Dataset, read_json, some
from beam_pipeline.verify.session_checks import blocks_of_sessions

#: Half a unit in the last place of float16, and the writer's float32 steps.
RELATIVE_ROUNDING = 2.0**-11 + 2.0**-20
#: Half the distance of subnormal float16 numbers, and a unit in the last place of a float32 shift.
SUBNORMAL_ROUNDING, SHIFT_ROUNDING = 2.0**-25, 2.0**-23
#: Of float64 sums over all values of a session.
SUM_ROUNDING = 1e-12


def check_statistics(dataset: Dataset) -> Iterator[Problem]:
    """Check that the statistics are exactly those of the train rows of ``sessions.parquet``."""
    stated = dict(dataset.manifest.normalization)
    gain_correction = stated.pop("gain_correction", None)
    train = dataset.manifest.splits["train"].sessions
    if stated.get("sessions") != train:
        odd = set(stated.get("sessions") or ()) ^ set(train) or {"another order"}
        detail = f"made from other sessions than those of train: {some(odd)}"
        yield Problem("statistics", MANIFEST, detail)
    if STATS in dataset.sound:
        found = read_json(dataset.folder / STATS)
        if found != stated:
            odd = {
                name
                for name in stated
                if not isinstance(found, dict) or found.get(name) != stated[name]
            }
            yield Problem("statistics", STATS, f"{some(odd)} differ from {MANIFEST}")
    if dataset.rows:
        yield from _compare_with_train(dataset, stated, gain_correction)


def _compare_with_train(
    dataset: Dataset, stated: Mapping[str, Any], gain_correction: str | None
) -> Iterator[Problem]:
    split_of = {row["session"]: row["split"] for row in dataset.rows}
    corrected = gain_correction == "session"
    gains = {summary.session: summary.gain() if corrected else 0 for summary in dataset.summaries}
    method = str(stated.get("normalization"))
    try:
        norm = train_normalization(dataset.summaries, split_of, gains, method)
    except (LayoutError, ArithmeticError) as error:
        yield Problem("statistics", SESSIONS, f"its train sessions give none: {error}")
        return
    for name, expected in normalization_stats(norm).items():
        if stated.get(name) != expected:
            values = (
                "" if isinstance(expected, list) else f" {stated.get(name)!r}, not {expected!r}"
            )
            detail = f"{name}{values or ' is another'}: the train sessions of {SESSIONS} give that"
            yield Problem("statistics", MANIFEST, detail)


@dataclass(frozen=True)
class RecoveredMoments:
    """Sums over a session of the values before normalisation, and how far they can be off.

    Attributes
    ----------
    sums, squares : float64 arrays of shape (n_freqs,)
    sums_tolerance, squares_tolerance : float64 arrays of shape (n_freqs,)
    """

    sums: NDArray[np.float64]
    squares: NDArray[np.float64]
    sums_tolerance: NDArray[np.float64]
    squares_tolerance: NDArray[np.float64]


def recover_moments(
    count: int,
    sums: NDArray[np.float64],
    squares: NDArray[np.float64],
    shift: NDArray[np.float64],
    std: NDArray[np.float64],
) -> RecoveredMoments:
    r"""Return the moments of ``x = h * std + shift`` from those of the float16 values ``h``.

    Parameters
    ----------
    count : int
        Values at each frequency, N.
    sums, squares : float64 arrays of shape (n_freqs,)
        Of ``h``, over trials and frames.
    shift : float64 array of shape (1,) or (n_freqs,)
        Mean plus gain.
    std : float64 array of shape (1,) or (n_freqs,)

    Notes
    -----
    Rounding moves a value by at most ``e = std * (u |h| + 2**-25) + 2**-23 |shift|``, with u half
    a unit in the last place of float16, 2**-11, and a little for the writer's float32 steps. With
    Minkowski's inequality the root of the summed squares of e is at most
    ``r = std * u * sqrt(sum(h**2)) + a * sqrt(N)``, where a is the constant part of e. With
    Cauchy's the sum of x is then off by at most ``sqrt(N) * r`` and that of its squares by
    ``r * (2 * sqrt(sum(x**2)) + r)``: about 2**-11 standard deviations for the mean.
    """
    recovered = std * sums + count * shift
    spread, cross = std**2 * squares, 2 * std * shift * sums
    recovered_squares = np.maximum(spread + cross + count * shift**2, 0.0)
    constant = std * SUBNORMAL_ROUNDING + np.abs(shift) * SHIFT_ROUNDING
    r = std * RELATIVE_ROUNDING * np.sqrt(squares) + constant * math.sqrt(count)
    # Sums of N values, each rounded to a multiple of 2**-128 at most once.
    fixed_point = count / UNIT
    magnitude = np.abs(std * sums) + count * np.abs(shift)
    return RecoveredMoments(
        recovered,
        recovered_squares,
        math.sqrt(count) * r + fixed_point + SUM_ROUNDING * magnitude,
        r * (2 * np.sqrt(recovered_squares) + r)
        + fixed_point
        + SUM_ROUNDING * (spread + np.abs(cross) + count * shift**2),
    )


def check_moments(dataset: Dataset) -> Iterator[Problem]:
    """Check each session's values in the shards against its sums in ``sessions.parquet``.

    Baseline sums must be equal; sums of spectrogram values, which went through float16, within
    the bounds of `recover_moments`.
    """
    manifest = dataset.manifest
    mean = np.atleast_1d(np.array(manifest.normalization["mean"], np.float64))
    std = np.atleast_1d(np.array(manifest.normalization["std"], np.float64))
    if not {mean.shape, std.shape} <= {(1,), (manifest.shape[1],)}:
        yield Problem("statistics", MANIFEST, "mean and std do not fit the frequencies")
        return
    clipped = manifest.values_clipped
    n_at_limit = sum(int(block.n_at_limit.sum()) for _, block in dataset.blocks())
    if n_at_limit < clipped:
        values = plural(n_at_limit, "value", "is", "are")
        detail = f"values_clipped {clipped:,}, but {values} at the limit"
        yield Problem("counts", MANIFEST, detail)
    blocks = blocks_of_sessions(dataset)
    for summary, row in zip(dataset.summaries, dataset.rows, strict=True):
        own = blocks.get(summary.session, [])
        # Samples that are missing or do not fit are named already.
        if sorted((b.block, len(b.trial_num)) for b in own) == sorted(summary.blocks):
            shift = mean + row["gain"]
            yield from _check_session_moments(summary, own, shift, std, clipped > 0, manifest.freqs)


def _check_session_moments(
    summary: SessionSummary,
    blocks: Sequence[BlockReport],
    shift: NDArray[np.float64],
    std: NDArray[np.float64],
    clipped: bool,
    freqs: Sequence[float],
) -> Iterator[Problem]:
    where = f"session {summary.session}"
    baseline = [block.baseline_sum for block in blocks if block.baseline_sum is not None]
    if len(baseline) == len(blocks) and sum(baseline) != summary.baseline_sum:
        detail = f"baselines in its shards sum to {sum(baseline) / UNIT!r}"
        yield Problem(
            "baseline", where, f"{detail}; {SESSIONS} says {summary.baseline_sum / UNIT!r}"
        )
    sums = [block.sums for block in blocks if block.sums is not None]
    squares = [block.squares for block in blocks if block.squares is not None]
    moments = summary.moments
    if len(sums) < len(blocks) or len(moments.sums) != len(freqs):
        return
    recovered = recover_moments(
        moments.count, np.sum(sums, axis=0), np.sum(squares, axis=0), shift, std
    )
    # What a clipped value was cannot be recovered.
    n_at_limit = np.sum([block.n_at_limit for block in blocks], axis=0)
    known = ~((n_at_limit > 0) & clipped)
    for name, stated, found, tolerance in (
        ("sum", moments.sums, recovered.sums, recovered.sums_tolerance),
        ("sum_squares", moments.squares, recovered.squares, recovered.squares_tolerance),
    ):
        expected = np.array([value / UNIT for value in stated])
        excess = np.where(known, np.abs(found - expected) / tolerance, 0.0)
        worst = int(np.argmax(excess))
        if excess[worst] > 1:
            detail = (
                f"{name} at {freqs[worst]:g} Hz is {found[worst]:.9g} in its shards; {SESSIONS} "
                f"says {expected[worst]:.9g} ({excess[worst]:.3g} times what rounding explains; "
                f"so at {np.count_nonzero(excess > 1)} of {len(freqs)} frequencies)"
            )
            yield Problem("moments", where, detail)
