"""What each session holds: trials, sums over their spectrograms, and what of them is of no use."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from beam_pipeline.moments import MAX_MAGNITUDE, UNIT, Moments, exact_sum, trial_sums
from beam_pipeline.rejects import Reason, Reject
from beam_pipeline.sessions import Block

CONTENT_MODULUS = 1 << 128


@dataclass(frozen=True)
class SessionSummary:
    """All that the plan needs of a session, or of a part of it.

    Attributes
    ----------
    session, subject, condition : str
    blocks : tuple of (int, int)
        Number and trials of each block.
    moments : Moments
        Of the log-power (or rescaled power) spectrograms, before gain and normalisation.
    baseline_sum : int
        Sum of the baseline spectra over trials and frequencies, in units of 2**-128.
    content : int
        Sum of the trials' digests modulo 2**128: what was used, whatever the order.
    """

    session: str
    subject: str | None
    condition: str
    blocks: tuple[tuple[int, int], ...]
    moments: Moments
    baseline_sum: int
    content: int

    @property
    def n_trials(self) -> int:
        """Number of trials that are used."""
        return sum(n_trials for _, n_trials in self.blocks)

    @property
    def surveyed(self) -> bool:
        """Whether the spectrograms were looked at."""
        return self.moments.count > 0

    def gain(self) -> int:
        """Return the session's mean log power of the baseline window, in units of 2**-128.

        It is rounded to float64, so that ``sessions.parquet`` holds it exactly.
        """
        n_values = self.n_trials * len(self.moments.sums)
        return round(Fraction(float(Fraction(self.baseline_sum, n_values * UNIT))) * UNIT)


def merge_summaries(parts: Iterable[SessionSummary]) -> SessionSummary:
    """Return the summary of a session from those of its parts, in any order."""
    parts = list(parts)
    first = parts[0]
    return SessionSummary(
        first.session,
        first.subject,
        first.condition,
        tuple(sorted(block for part in parts for block in part.blocks)),
        Moments.total((part.moments for part in parts), len(first.moments.sums)),
        sum(part.baseline_sum for part in parts),
        sum(part.content for part in parts) % CONTENT_MODULUS,
    )


def unsurveyed_summary(block: Block, n_freqs: int) -> SessionSummary:
    """Return what can be said of a block before its spectrograms are computed."""
    blocks = ((block.block, len(block.trial_num)),)
    moments = Moments.zero(n_freqs)
    return SessionSummary(block.session, block.subject, block.condition, blocks, moments, 0, 0)


def survey_block(
    block: Block, values: NDArray[np.float32], baseline: NDArray[np.float32]
) -> tuple[Block, SessionSummary | None, list[Reject]]:
    """Reject trials whose spectrogram is of no use and sum up the others.

    Parameters
    ----------
    block : Block
    values : float32 array of shape (n_trials, n_freqs, n_times)
    baseline : float32 array of shape (n_trials, n_freqs)

    Returns
    -------
    block : Block
        The trials that remain.
    summary : SessionSummary or None
        None where no trial remains.
    rejects : list of Reject
    """
    n_times = values.shape[2]
    with np.errstate(all="ignore"):
        sums = trial_sums(values)
    usable = _usable(values, sums[1]) & np.isfinite(baseline).all(axis=1)
    detail = f"its spectrogram is not finite, or exceeds {MAX_MAGNITUDE:.0e}"
    rejects = [
        Reject(block.session, trial_num, Reason.UNUSABLE_SPECTROGRAM, detail)
        for trial_num in block.trial_num[~usable].tolist()
    ]
    if not usable.all():
        block, sums, baseline = block.select(usable), sums[:, usable], baseline[usable]
    if len(block.trial_num) == 0:
        return block, None, rejects
    summary = SessionSummary(
        block.session,
        block.subject,
        block.condition,
        ((block.block, len(block.trial_num)),),
        Moments.of(sums, n_times),
        int(exact_sum(baseline.sum(axis=1, dtype=np.float64))),
        sum(int.from_bytes(digest.tobytes(), "big") for digest in block.digest) % CONTENT_MODULUS,
    )
    # The digests are summed up; the runner need not carry them any further.
    return replace(block, digest=block.digest[:0], surveyed=True), summary, rejects


def _usable(values: NDArray[np.float32], squares: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which trials are finite and below `MAX_MAGNITUDE`, given their sums of squares."""
    # Comparisons with NaN are false, so both find NaN and infinity too.
    usable = np.asarray((squares < MAX_MAGNITUDE**2).all(axis=1))
    for trial in np.flatnonzero(~usable):
        low, high = values[trial].min(), values[trial].max()
        usable[trial] = low > -MAX_MAGNITUDE and high < MAX_MAGNITUDE
    return usable
