"""``verify``: reread a whole dataset folder and name everything that is wrong with it.

Every check is a small function that yields `Problem` records; nothing stops at the first. What
each check rests on is checked before it: the manifest by its seal, the small files by the
manifest, the shards' samples by the manifest and ``sessions.parquet``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from beam_pipeline import console
from beam_pipeline.cpus import n_cpus
from beam_pipeline.errors import UsageError
from beam_pipeline.manifest import MANIFEST, SESSIONS, Manifest, ManifestError, read_manifest
from beam_pipeline.plurals import plural
from beam_pipeline.sessions_table import read_summaries
from beam_pipeline.storage.locations import locate
from beam_pipeline.storage.places import AnyPath, file_sizes
from beam_pipeline.survey import SessionSummary
from beam_pipeline.verify.block_report import Problem, SampleRules
from beam_pipeline.verify.dataset_checks import (
    Dataset,
    check_files,
    check_indices,
    check_options,
    check_rejects,
    check_source,
    check_structure,
)
from beam_pipeline.verify.leakage_checks import check_copies, check_leakage
from beam_pipeline.verify.session_checks import (
    check_blocks,
    check_layout,
    check_session_rows,
    check_shard,
    check_totals,
    check_trial_order,
)
from beam_pipeline.verify.shard_report import ShardReport, reread_shard
from beam_pipeline.verify.statistics_checks import check_moments, check_statistics

PRINTED_PROBLEMS = 200


CHECKS: tuple[Callable[[Dataset], Iterable[Problem]], ...] = (
    check_options,
    check_source,
    check_rejects,
    check_indices,
    check_session_rows,
    check_totals,
    check_layout,
    check_blocks,
    check_trial_order,
    check_leakage,
    check_copies,
    check_statistics,
    check_moments,
)


class DamagedDatasetError(RuntimeError):
    """A dataset is not what its manifest says."""


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes
    ----------
    problems : list of Problem
    n_files, n_bytes : int
        What was reread.
    n_trials, n_sessions : int
    """

    problems: list[Problem]
    n_files: int = 0
    n_bytes: int = 0
    n_trials: int = 0
    n_sessions: int = 0


def verify(
    folder: AnyPath, workers: int = 1, progress: Callable[[int], object] = lambda n_trials: None
) -> Verification:
    """Reread a dataset and collect everything that is wrong with it.

    Parameters
    ----------
    folder : path
        On this machine or on gs://.
    workers : int
        Processes that read shards; 1 reads them in this process.
    progress : callable
        Called with the trials of each shard that is done.

    Raises
    ------
    ManifestError
        If the folder is no dataset. A manifest that was edited is a problem, no exception.
    """
    if not (folder / MANIFEST).is_file():
        if not folder.is_dir():
            what = "is a file, and no dataset folder" if folder.is_file() else "is not there"
            raise ManifestError(f"{folder} {what}; pass the --output of preprocess")
        raise ManifestError(
            f"{folder} has no {MANIFEST}: it is no dataset, or its run did not finish"
        )
    try:
        manifest = read_manifest(folder)
    except (ManifestError, TypeError) as error:
        return Verification([Problem("manifest", MANIFEST, str(error))])
    problems = list(check_structure(manifest))
    if problems:
        return Verification(problems)
    reports, found = inspect_shards(folder, manifest, workers, progress)
    problems += found
    sound, found = check_files(folder, manifest)
    problems += found
    dataset = Dataset(folder, manifest, sound, *_read_sessions(folder, sound, problems), reports)
    for check in CHECKS:
        problems += check(dataset)
    shard_bytes = sum(report.bytes for report in reports.values())
    return Verification(
        problems,
        len(sound) + len(reports) + 1,
        shard_bytes + sum(manifest.files[name]["bytes"] for name in sound),
        sum(len(block.trial_num) for _, block in dataset.blocks()),
        len({block.session for _, block in dataset.blocks()}),
    )


def inspect_shards(
    folder: AnyPath, manifest: Manifest, workers: int, progress: Callable[[int], object]
) -> tuple[dict[str, ShardReport], list[Problem]]:
    """Reread the shards and compare each with its entry in the manifest.

    Returns
    -------
    reports : dict
        {path: report}, in the manifest's order.
    problems : list of Problem
    """
    n_trials, n_freqs, n_times = manifest.shape
    rules = SampleRules(tuple(manifest.classes), (n_trials, n_freqs, n_times))
    entries = {shard["path"]: shard for shard in manifest.shards}
    files = file_sizes(folder)
    present = [path for path in entries if path in files]
    problems = [
        Problem("missing", path, f"{MANIFEST} lists this shard")
        for path in entries.keys() - present
    ]
    found: dict[str, ShardReport] = {}
    for path, result in _map_shards(str(folder), present, rules, workers):
        if isinstance(result, Problem):
            problems.append(result)
        else:
            found[path] = result
        progress(entries[path]["trials"])
    reports = {path: found[path] for path in present if path in found}
    for path, report in reports.items():
        problems += check_shard(report, entries[path])
        problems += report.problems
    return reports, sorted(problems, key=lambda problem: problem.where.partition(":")[0])


def _map_shards(
    folder: str, paths: Sequence[str], rules: SampleRules, workers: int
) -> Iterator[tuple[str, ShardReport | Problem]]:
    n_processes = min(workers, len(paths))
    if n_processes <= 1:
        yield from ((path, reread_shard(folder, path, rules)) for path in paths)
        return
    # Spawned processes inherit no threads, of Arrow or of a progress bar.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_processes, mp_context=context) as pool:
        futures = {pool.submit(reread_shard, folder, path, rules): path for path in paths}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _read_sessions(
    folder: AnyPath, sound: frozenset[str], problems: list[Problem]
) -> tuple[list[SessionSummary], list[dict[str, Any]]]:
    if SESSIONS not in sound:
        return [], []
    try:
        summaries, table = read_summaries(folder / SESSIONS)
    except (TypeError, ValueError) as error:
        problems.append(Problem("sessions", SESSIONS, str(error)))
        return [], []
    return summaries, table.to_pylist()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("folder", metavar="DIR", help="dataset folder, here or on gs://")
    parser.add_argument(
        "--workers",
        type=int,
        default=n_cpus(),
        metavar="N",
        help="processes that read shards (default: one a core)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Parameters
    ----------
    args : argparse.Namespace
        Arguments of `add_arguments`.

    Returns
    -------
    int
        Exit status: 0 sound.

    Raises
    ------
    UsageError
        If a flag has a value that it cannot have.
    ManifestError
        If the folder is no dataset.
    DamagedDatasetError
        If there are problems; they are printed before.
    """
    if args.workers < 1:
        raise UsageError(f"--workers is {args.workers}, but must be at least 1")
    folder = locate(args.folder)
    started = time.monotonic()
    done: Counter[str] = Counter()
    with console.watch(
        {"verify": "Rereading shards"}, _stated_trials(folder), lambda: Counter(done)
    ):
        result = verify(folder, args.workers, lambda n: done.update(verify=n))
    if result.problems:
        count = plural(len(result.problems), "problem")
        _print_problems(f"{count} in {folder}", result.problems)
        raise DamagedDatasetError(f"{folder} is damaged: {count}")
    print(
        f"{folder} is sound: {plural(result.n_trials, 'trial')} of "
        f"{plural(result.n_sessions, 'session')}; {plural(result.n_files, 'file')}, "
        f"{console.format_bytes(result.n_bytes)} reread and {len(CHECKS)} checks passed in "
        f"{time.monotonic() - started:.1f} s"
    )
    return 0


def _stated_trials(folder: AnyPath) -> int:
    try:
        return sum(split.trials for split in read_manifest(folder).splits.values())
    except (ManifestError, OSError, TypeError):
        # `verify` says what is wrong.
        return 0


def _print_problems(title: str, problems: Sequence[Problem]) -> None:
    shown = problems[:PRINTED_PROBLEMS]
    left = Counter(problem.check for problem in problems[PRINTED_PROBLEMS:])
    rest = ", ".join(f"{check} {n:,}" for check, n in left.most_common())
    console.print_table(
        title,
        ["check", "where", "detail"],
        [(p.check, p.where, p.detail) for p in shown],
        f"and {sum(left.values()):,} more: {rest}" if left else "",
    )
