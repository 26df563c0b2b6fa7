"""What a preprocessing run would do, from the table's small columns and a sample of rows."""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa

from beam_pipeline.blocks import n_shards_for
from beam_pipeline.console import format_bytes, print_table
from beam_pipeline.cpus import n_cpus
from beam_pipeline.flags.dataset import add_dataset_arguments, dataset_options
from beam_pipeline.flags.table import add_source_arguments, open_source
from beam_pipeline.half import to_float16
from beam_pipeline.launchers.dataflow.cost import TrialWork, estimate
from beam_pipeline.launchers.dataflow.defaults import MACHINE_TYPE
from beam_pipeline.layout import LayoutError, decide_splits
from beam_pipeline.options import DatasetOptions, screening_options
from beam_pipeline.output.segments import Pointers
from beam_pipeline.plurals import plural
from beam_pipeline.rejects import Reject
from beam_pipeline.screening import ScreeningOptions, TrialBatch, screen
from beam_pipeline.sessions import Block
from beam_pipeline.shards import npy_pieces, tar_sample_size
from beam_pipeline.sources import TraceSource
from beam_pipeline.spectrogram import Spectrogram
from beam_pipeline.splits import SPLITS, SessionCount
from beam_pipeline.survey import survey_block

SAMPLE_PIECES = 8
SAMPLE_ROWS = 32
SHOWN_SESSIONS = 5
#: Measured at the lab's size (docs/benchmarks.md): interpreter, Beam, NumPy, SciPy and Arrow.
PROCESS_BYTES = 260e6
START_SECONDS = 3.5


@dataclass(frozen=True)
class TrialCost:
    """What one trial costs, measured on a sample of rows.

    Attributes
    ----------
    seconds : float
        CPU seconds of reading, screening, both spectrogram passes and encoding.
    n_rows : int
        Rows in the sample.
    rejects : list of Reject
        Rejected rows of the sample.
    """

    seconds: float
    n_rows: int
    rejects: list[Reject]


def count_sessions(source: TraceSource) -> list[SessionCount]:
    """Count the rows of each session.

    Parameters
    ----------
    source : TraceSource
        Rows without a session or condition are left out; a session with several conditions or
        subjects counts under each.
    """
    keys = [name for name in ("session", "subject", "condition") if name in source.columns]
    counted = source.read_columns(keys).group_by(keys).aggregate([([], "count_all")])
    return sorted(
        (
            SessionCount(
                row["session"], row.get("subject") or None, row["condition"], row["count_all"]
            )
            for row in counted.to_pylist()
            if row["session"] and row["condition"]
        ),
        key=lambda count: (count.session, count.condition, count.subject or ""),
    )


def usable_sessions(
    counts: Sequence[SessionCount], classes: Collection[str] | None
) -> tuple[list[SessionCount], dict[str, str]]:
    """Leave out what a run rejects for what a session's rows say together.

    Parameters
    ----------
    counts : sequence of SessionCount
        From `count_sessions`.
    classes : collection of str or None
        The known conditions; None takes every condition as known.

    Returns
    -------
    usable : list of SessionCount
        One entry a session.
    rejected : dict
        Why each of the other sessions is not used; see `sessions.resolve_session`.
    """
    of_session: dict[str, list[SessionCount]] = defaultdict(list)
    for count in counts:
        of_session[count.session].append(count)
    usable: list[SessionCount] = []
    rejected: dict[str, str] = {}
    for session, parts in of_session.items():
        conditions = sorted({part.condition for part in parts})
        subjects = sorted({part.subject for part in parts if part.subject is not None})
        if len(conditions) > 1:
            rejected[session] = f"conditions {', '.join(conditions)}"
        elif classes is not None and conditions[0] not in classes:
            rejected[session] = f"unknown condition {conditions[0]}"
        elif len(subjects) > 1:
            rejected[session] = f"subjects {', '.join(subjects)}"
        else:
            subject = subjects[0] if subjects else None
            n_trials = sum(part.n_trials for part in parts if part.subject == subject)
            usable.append(SessionCount(session, subject, conditions[0], n_trials))
    return usable, rejected


def sample_batches(source: TraceSource) -> Iterator[pa.RecordBatch]:
    """Yield a few rows from pieces spread over the table."""
    pieces = source.splits(SAMPLE_PIECES)
    for piece in pieces[:: -(-len(pieces) // SAMPLE_PIECES)]:
        yield from islice(source.read(piece, SAMPLE_ROWS), 1)


def measure_cost(
    source: TraceSource, screening: ScreeningOptions, spectrogram: Spectrogram
) -> TrialCost:
    """Measure what a trial costs by doing to a sample of rows what a run does to all."""
    rejects: list[Reject] = []
    n_rows = 0
    started = time.process_time()
    for batch in sample_batches(source):
        n_rows += batch.num_rows
        trials, found = screen(batch, screening)
        rejects += found
        if not len(trials.segments):
            continue
        values, baseline = spectrogram(trials.segments)
        survey_block(_as_block(trials), values, baseline)
        values, _ = spectrogram(trials.segments)
        npy_pieces(to_float16(values)[0])
    return TrialCost((time.process_time() - started) / max(n_rows, 1), n_rows, rejects)


def _as_block(trials: TrialBatch) -> Block:
    n = len(trials.trial_num)
    return Block(
        trials.session[0],
        trials.subject[0],
        trials.condition[0],
        0,
        trials.trial_num,
        trials.frequency,
        trials.amplitude,
        trials.digest,
        Pointers(np.zeros(n, np.int64), np.zeros(n, np.int32)),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``plan``: those of ``preprocess`` that shape a dataset."""
    add_source_arguments(parser)
    add_dataset_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the plan of a run; nothing is written.

    Raises
    ------
    SplitError
        If no sound split exists; what the run would cost has then been printed.
    LayoutError
        If too many rows of the sample would be rejected.
    """
    source = open_source(args)
    options = dataset_options(args, source)
    counts = count_sessions(source)
    spectrogram = Spectrogram(options.spectrogram)
    screening = screening_options(source, options, spectrogram)
    cost = measure_cost(source, screening, spectrogram)
    classes = options.classes or tuple(sorted({count.condition for count in counts}))
    _print_table_facts(source, counts, classes, cost)
    usable, rejected = usable_sessions(counts, options.classes)
    _print_rejected_sessions(rejected)
    shape = (len(spectrogram.freqs), len(spectrogram.times))
    _print_costs(source, options.block_trials, screening, shape, cost)
    split_of = decide_splits(usable, options, rejected)
    _print_splits(usable, split_of, classes, options, shape, len(cost.rejects))
    if len(cost.rejects) > options.max_reject_fraction * cost.n_rows:
        ((reason, _),) = Counter(str(reject.reason) for reject in cost.rejects).most_common(1)
        raise LayoutError(
            f"preprocess would fail if all rows are like the sample: {len(cost.rejects):,} of "
            f"{cost.n_rows:,} would be rejected, most as {reason}, more than "
            f"--max_reject_fraction {options.max_reject_fraction:g}"
        )
    return 0


def _print_table_facts(
    source: TraceSource, counts: Sequence[SessionCount], classes: Sequence[str], cost: TrialCost
) -> None:
    subjects = {count.subject for count in counts} - {None}
    per_class = Counter[str]()
    for count in counts:
        per_class[count.condition] += count.n_trials
    print(f"{source.uri}: {plural(source.n_rows, 'row')}")
    print_table(
        "Classes",
        ["class", "trials", "sessions", "subjects"],
        [
            (
                name,
                per_class[name],
                len({count.session for count in counts if count.condition == name}),
                len({c.subject for c in counts if c.condition == name} - {None}) or "unknown",
            )
            for name in classes
        ],
        "" if subjects else "no subject column: sessions of one animal may fall into two splits",
    )
    print(f"Sample of {plural(cost.n_rows, 'row')}: {len(cost.rejects):,} would be rejected")
    reasons = Counter(str(reject.reason) for reject in cost.rejects)
    for reason, n in reasons.most_common():
        example = next(reject for reject in cost.rejects if reject.reason == reason)
        print(f"  {reason} {n:,}, e.g. session {example.session}: {example.detail}")


def _print_rejected_sessions(rejected: dict[str, str]) -> None:
    if not rejected:
        return
    shown = [f"{session} ({why})" for session, why in list(rejected.items())[:SHOWN_SESSIONS]]
    more = len(rejected) - len(shown)
    print(
        f"Sessions that would be rejected: {', '.join(shown)}"
        + (f", and {more:,} more" if more else "")
    )


def _print_splits(
    counts: Sequence[SessionCount],
    split_of: dict[str, str],
    classes: Sequence[str],
    options: DatasetOptions,
    shape: tuple[int, int],
    n_rejects: int,
) -> None:
    trials: dict[str, Counter[str]] = defaultdict(Counter)
    n_blocks: Counter[str] = Counter()
    for count in counts:
        split = split_of[count.session]
        trials[split][count.condition] += count.n_trials
        n_blocks[split] += -(-count.n_trials // options.block_trials)
    rows = []
    for split in SPLITS:
        members = [count for count in counts if split_of[count.session] == split]
        n_bytes = tar_sample_size(sum(trials[split].values()), *shape)
        rows.append(
            (
                split,
                sum(trials[split].values()),
                *(trials[split][name] for name in classes),
                len({count.session for count in members}),
                len({count.subject for count in members} - {None}) or "unknown",
                n_shards_for(n_bytes, n_blocks[split], options.shard_mb, options.num_shards),
                format_bytes(n_bytes),
            )
        )
    print_table(
        f"Splits, if every row is used; each trial is {shape[0]} x {shape[1]}",
        ["split", "trials", *classes, "sessions", "subjects", "shards", "size"],
        rows,
        f"Rows that would be rejected, like {n_rejects:,} of the sample, are still counted here"
        if n_rejects
        else "",
    )


def _print_costs(
    source: TraceSource,
    block_trials: int,
    screening: ScreeningOptions,
    shape: tuple[int, int],
    cost: TrialCost,
) -> None:
    workers = n_cpus()
    seconds = START_SECONDS + cost.seconds * source.n_rows / workers
    segments = source.n_rows * screening.n_samples * np.dtype(screening.dtype).itemsize
    block = 3 * 4 * block_trials * shape[0] * shape[1]
    memory = (workers + 1) * PROCESS_BYTES + workers * block
    print(
        f"Expected here: {seconds:,.0f} s with {plural(workers, 'worker')} "
        f"({1e3 * cost.seconds:.2f} ms of CPU a trial, without the disk), "
        f"{format_bytes(memory)} of memory, {format_bytes(segments)} of temporary files"
    )
    _print_dataflow_cost(source, block_trials, segments / source.n_rows, shape, cost)


def _print_dataflow_cost(
    source: TraceSource,
    block_trials: int,
    segment_bytes: float,
    shape: tuple[int, int],
    cost: TrialCost,
) -> None:
    work = TrialWork(
        cost.seconds,
        source.row_bytes,
        segment_bytes,
        tar_sample_size(block_trials, *shape) / block_trials,
        block_trials=block_trials,
    )
    job = estimate(source.n_rows, work, bigquery=source.kind == "bigquery")
    print(
        f"Expected on Dataflow: {job.seconds / 60:,.0f} min with "
        f"{plural(job.workers, f'{MACHINE_TYPE} worker')}, {job.vcpu_hours:,.2f} vCPU hours, "
        f"about ${job.dollars:,.2f} at list prices "
        f"({format_bytes(1e9 * job.shuffled_gb)} shuffled, "
        f"{format_bytes(1e9 * job.segments_gb)} of temporary objects), then "
        f"${job.stored_dollars_month:,.2f} a month for {format_bytes(1e9 * job.shards_gb)}"
    )
