"""From what each session holds to the plan of the dataset: splits, statistics, shards."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beam_pipeline.blocks import block_key, key_hash, n_shards_for, shard_index, shard_starts
from beam_pipeline.half import to_float16
from beam_pipeline.moments import UNIT, Moments
from beam_pipeline.options import DatasetOptions
from beam_pipeline.plurals import plural
from beam_pipeline.sessions import Block
from beam_pipeline.shards import Sample, tar_sample_size
from beam_pipeline.splits import (
    SPLITS,
    SessionCount,
    SplitError,
    assign_splits,
    required_splits,
)
from beam_pipeline.splits_file import apply_splits_file
from beam_pipeline.survey import SessionSummary


@dataclass(frozen=True)
class Normalization:
    """What is subtracted from and divided into the spectrograms.

    Attributes
    ----------
    method : str
        ``global``, ``per_frequency`` or ``none``.
    mean, std : float64 arrays of shape (1,) or (n_freqs,)
        Of the train split, after gain correction.
    count : int
        Values behind each mean.
    sessions : tuple of str
        The train sessions, sorted.
    """

    method: str
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    count: int
    sessions: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """The whole plan of a dataset, before a shard is written.

    Attributes
    ----------
    classes : tuple of str
        Conditions in label order.
    split_of : dict
        Split of each session.
    gains : dict
        What is subtracted from a session's log power, in units of 2**-128; zero without gain
        correction.
    normalization : Normalization
    shard_starts : dict
        Smallest hash of each shard, per split.
    """

    classes: tuple[str, ...]
    split_of: dict[str, str]
    gains: dict[str, int]
    normalization: Normalization
    shard_starts: dict[str, tuple[int, ...]]

    def shard_of(self, block: Block) -> tuple[str, int]:
        """Return (split, shard index) of a block."""
        split = self.split_of[block.session]
        value = key_hash(block_key(block.session, block.block))
        return split, shard_index(value, self.shard_starts[split])

    def sample(
        self, block: Block, values: NDArray[np.float32], baseline: NDArray[np.float32]
    ) -> Sample:
        """Normalise a block's spectrograms (in place) into a sample.

        Values beyond the range of float16 are set to its limit, and counted.
        """
        norm = self.normalization
        shift = (self.gains[block.session] / UNIT + norm.mean).astype(np.float32)
        values -= shift[:, None]
        values *= (1.0 / norm.std).astype(np.float32)[:, None]
        halves, n_clipped = to_float16(values)
        metadata = {
            "session": block.session,
            "subject": block.subject,
            "condition": block.condition,
            "label": self.classes.index(block.condition),
            "block": block.block,
            "trial_num": block.trial_num.tolist(),
            "frequency": _nullable(block.frequency),
            "amplitude": _nullable(block.amplitude),
        }
        key = block_key(block.session, block.block)
        return Sample(key, halves, baseline, metadata, n_clipped)


def _nullable(values: NDArray[np.float64]) -> list[float | None]:
    # JSON has no infinity; silence is a sound of -inf dB.
    return [float(value) if np.isfinite(value) else None for value in values]


class LayoutError(ValueError):
    """The table cannot become a sound dataset; nothing has been written."""


def needs_every_spectrogram(options: DatasetOptions) -> bool:
    """Whether the layout depends on spectrograms outside the train split.

    It does where a session's gain is subtracted, and where rescaling by the baseline makes it
    likely that some spectrograms are of no use: those trials count in no split.
    """
    return options.gain_correction == "session" or options.spectrogram.baseline_mode != "trace"


def decide_splits(
    counts: Sequence[SessionCount],
    options: DatasetOptions,
    rejected_sessions: Collection[str] = (),
) -> dict[str, str]:
    """Return the split of each session: as the splits file says, else by ratios and seed.

    Parameters
    ----------
    counts : sequence of SessionCount
        One entry a session.
    options : DatasetOptions
    rejected_sessions : collection of str
        Sessions of which trials were rejected; see `apply_splits_file`.

    Raises
    ------
    SplitError
        If a class has no trial, there are fewer than two classes, or no sound split exists.
    """
    _check_classes(counts, options.classes)
    if options.splits is None:
        return assign_splits(counts, options.split_ratios, options.split_seed)
    required = required_splits(options.split_ratios)
    return apply_splits_file(counts, options.splits, required, rejected_sessions)


def _check_classes(counts: Sequence[SessionCount], classes: Sequence[str] | None) -> None:
    trials = Counter[str]()
    for count in counts:
        trials[count.condition] += count.n_trials
    held = ", ".join(f"{name} {n:,}" for name, n in sorted(trials.items())) or "none"
    missing = [name for name in classes or () if not trials[name]]
    if missing:
        raise SplitError(
            f"no usable trial has the class {' or '.join(missing)} (usable trials: {held}): "
            "mend the table, or leave the class out of --classes"
        )
    if len(+trials) < 2:
        raise SplitError(
            f"a dataset needs trials of at least two classes (usable trials: {held}): mend the "
            "table, or name more of its conditions with --classes"
        )


def plan_layout(
    summaries: Iterable[SessionSummary],
    reject_counts: Mapping[str, int],
    n_rows: int,
    options: DatasetOptions,
    shape: tuple[int, int],
    rejected_sessions: Collection[str] = (),
) -> Layout:
    """Decide splits, statistics and shards from the sessions' summaries.

    Parameters
    ----------
    summaries : iterable of SessionSummary
    reject_counts : mapping
        Rejected rows by reason.
    n_rows : int
        Rows of the table.
    options : DatasetOptions
    shape : tuple of int
        (n_freqs, n_times) of a trial.
    rejected_sessions : collection of str
        Sessions of which trials were rejected.

    Raises
    ------
    LayoutError
        If too many rows were rejected, rows got lost, a class has no trial left, or no sound
        split exists.
    """
    sessions = sorted(summaries, key=lambda summary: summary.session)
    n_used = sum(summary.n_trials for summary in sessions)
    _check_rejects(n_used, reject_counts, n_rows, options.max_reject_fraction)
    counts = [
        SessionCount(summary.session, summary.subject, summary.condition, summary.n_trials)
        for summary in sessions
    ]
    try:
        split_of = decide_splits(counts, options, rejected_sessions)
    except SplitError as error:
        reasons = f" (rejected rows: {_listed(reject_counts)})" if reject_counts else ""
        raise LayoutError(f"{error}{reasons}") from error
    unsurveyed = [s.session for s in sessions if split_of[s.session] == "train" and not s.surveyed]
    if unsurveyed:
        raise LayoutError(
            f"{len(unsurveyed):,} train sessions, such as {unsurveyed[0]}, were not surveyed: the "
            "runner lost rows; run again"
        )
    gains = {summary.session: 0 for summary in sessions}
    if options.gain_correction == "session":
        gains = {summary.session: summary.gain() for summary in sessions}
    return Layout(
        options.classes or tuple(sorted({summary.condition for summary in sessions})),
        split_of,
        gains,
        train_normalization(sessions, split_of, gains, options.normalization),
        _plan_shards(sessions, split_of, options, shape),
    )


def _check_rejects(
    n_used: int, reject_counts: Mapping[str, int], n_rows: int, max_fraction: float
) -> None:
    n_rejected = sum(reject_counts.values())
    if n_used + n_rejected != n_rows:
        raise LayoutError(
            f"{plural(n_rows, 'row')} went in, but {n_used:,} used and {n_rejected:,} rejected "
            "came out: the table changed while it was read, or the runner lost rows; run again"
        )
    reasons = _listed(reject_counts)
    if n_used == 0:
        raise LayoutError(f"all {plural(n_rows, 'row', 'is', 'are')} rejected: {reasons}")
    if n_rejected > max_fraction * n_rows:
        raise LayoutError(
            f"{n_rejected:,} of {plural(n_rows, 'row')} ({n_rejected / n_rows:.1%}) "
            f"{'is' if n_rejected == 1 else 'are'} rejected, more than --max_reject_fraction "
            f"{max_fraction:g}: {reasons}"
        )


def _listed(reject_counts: Mapping[str, int]) -> str:
    most = Counter(reject_counts).most_common()
    return ", ".join(f"{reason} {count:,}" for reason, count in most)


def train_normalization(
    sessions: Sequence[SessionSummary],
    split_of: Mapping[str, str],
    gains: Mapping[str, int],
    method: str,
) -> Normalization:
    """Return mean and standard deviation over the train sessions only.

    Raises
    ------
    LayoutError
        If the train spectrograms are constant.
    """
    train = [summary for summary in sessions if split_of[summary.session] == "train"]
    total = Moments.total(
        (summary.moments.shifted(gains[summary.session]) for summary in train),
        len(sessions[0].moments.sums),
    )
    if method != "per_frequency":
        total = total.pooled()
    mean, std = total.mean(), total.std()
    if method == "none":
        mean, std = np.zeros(1), np.ones(1)
    elif not (std > 0).all():
        raise LayoutError(
            "the train spectrograms are constant"
            + (" at some frequencies" if method == "per_frequency" else "")
            + ", so they cannot be normalised: is --log_floor far above the power of the traces?"
        )
    return Normalization(
        method, mean, std, total.count, tuple(summary.session for summary in train)
    )


def _plan_shards(
    sessions: Sequence[SessionSummary],
    split_of: Mapping[str, str],
    options: DatasetOptions,
    shape: tuple[int, int],
) -> dict[str, tuple[int, ...]]:
    hashes: dict[str, list[int]] = defaultdict(list)
    n_bytes: Counter[str] = Counter()
    for summary in sessions:
        split = split_of[summary.session]
        for block, n_trials in summary.blocks:
            hashes[split].append(key_hash(block_key(summary.session, block)))
            n_bytes[split] += tar_sample_size(n_trials, *shape)
    starts: dict[str, tuple[int, ...]] = {}
    for split in SPLITS:
        if not hashes[split]:
            starts[split] = ()
            continue
        n_shards = n_shards_for(
            n_bytes[split], len(hashes[split]), options.shard_mb, options.num_shards
        )
        starts[split] = shard_starts(hashes[split], n_shards)
    return starts
