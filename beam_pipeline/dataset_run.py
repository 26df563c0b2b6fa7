"""A run from the first lock on the output to the installed dataset, whatever ends in between."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from beam_pipeline import console
from beam_pipeline.launchers.contract import Launcher, Outcome, StillRunningError
from beam_pipeline.layout import needs_every_spectrogram
from beam_pipeline.manifest import RUN, Manifest
from beam_pipeline.options import DatasetOptions
from beam_pipeline.output.dataset_folder import (
    IncompleteDatasetError,
    describe,
    existing_dataset,
)
from beam_pipeline.output.installation import InstallationError, install
from beam_pipeline.output.lock import LockedError, OutputLock, locked
from beam_pipeline.output.work_folder import WorkFolder
from beam_pipeline.pipeline import build_pipeline
from beam_pipeline.sources import TraceSource
from beam_pipeline.spectrogram import Spectrogram
from beam_pipeline.storage.places import AnyPath, remove_tree


class PreprocessError(RuntimeError):
    """No sound dataset can be made of the table; the message says why and what to do."""


def make_dataset(
    source: TraceSource,
    options: DatasetOptions,
    output: AnyPath,
    launcher: Launcher,
    overwrite: bool = False,
) -> tuple[Manifest, bool]:
    """Turn a trace table into a complete dataset folder.

    Parameters
    ----------
    source : TraceSource
    options : DatasetOptions
    output : path
        Dataset folder, on this machine or on gs://. It is left alone if it already holds this
        dataset.
    launcher : Launcher
        Runs the pipeline.
    overwrite : bool
        Replace another dataset in `output`, once the new one is complete.

    Returns
    -------
    manifest : Manifest
    made : bool
        False if `output` held this dataset already.

    Raises
    ------
    DatasetExistsError
        If `output` holds something else.
    PreprocessError
        If the table cannot become a sound dataset.
    RunFailedError
        If the run breaks off.
    StillRunningError
        If it goes on without us; the same call follows it again.
    """
    with locked(output) as lock:
        existing = existing_dataset(source, options, output, overwrite)
        leftovers = WorkFolder.leftovers(output)
        identity = _identity(source, options)
        unfinished = launcher.unfinished(leftovers, identity)
        if existing is not None:
            for leftover in leftovers:
                leftover.remove()
            return existing, False
        make = partial(_make, source, options, identity, output, launcher, lock)
        work = unfinished or WorkFolder.create(output)
        _replace(leftovers, work)
        try:
            return make(work, needs_every_spectrogram(options)), True
        except _LateRejectsError:
            print("Some spectrograms are unusable: measuring those of all splits", file=sys.stderr)
        retry = WorkFolder.create(output)
        _replace([work], retry)
        lock.check()
        return make(retry, survey_all=True), True


def _replace(leftovers: Sequence[WorkFolder], work: WorkFolder) -> None:
    """Remove the work folders of earlier runs, now that there is another one.

    Where one of them says that the output holds half a dataset of ours, `work` says so from now on.
    """
    others = [leftover for leftover in leftovers if leftover != work]
    if any(leftover.installing.exists() for leftover in others):
        work.installing.touch()
    for leftover in others:
        leftover.remove()


class _LateRejectsError(Exception):
    """Trials turned out unusable that the splits were decided with."""


#: What a run has left behind can never become a dataset, however often it is tried.
_HOPELESS = (
    _LateRejectsError,
    PreprocessError,
    IncompleteDatasetError,
    InstallationError,
    FileNotFoundError,
)


def _make(
    source: TraceSource,
    options: DatasetOptions,
    identity: Mapping[str, Any],
    output: AnyPath,
    launcher: Launcher,
    lock: OutputLock,
    work: WorkFolder,
    survey_all: bool,
) -> Manifest:
    """Run the pipeline and install what it has made.

    Files are removed only as long as the lock is ours, and when the workers are known to be done
    with them. A job that is done stays on record until its files are of no use, so that an outage
    in the last minute costs no second job.
    """
    started = time.time()
    spectrogram = Spectrogram(options.spectrogram)
    build = partial(
        build_pipeline,
        source=source,
        options=options,
        spectrogram=spectrogram,
        work=work,
        survey_all=survey_all,
    )
    try:
        outcome = launcher.run(build, work, source.n_rows, identity)
    except StillRunningError:
        raise
    except BaseException:
        # A local worker that fails late may still be writing; the next run removes what is left.
        _give_up(work, lock)
        raise
    lock.check()
    remove_tree(work.segments)
    try:
        manifest, finished = _finish(source, options, spectrogram, work)
        run = Path(finished.path, "dataset", RUN)
        _write_run(run, source.uri, identity["input_identity"], started, outcome)
        install(work, finished, manifest, output, lock)
    except _HOPELESS:
        _give_up(work, lock)
        raise
    return manifest


def _give_up(work: WorkFolder, lock: OutputLock) -> None:
    """Remove segments and the record of the job, unless another run may have taken them over."""
    with suppress(LockedError, OSError):
        lock.check()
        remove_tree(work.segments)
        work.forget_job()


def _finish(
    source: TraceSource,
    options: DatasetOptions,
    spectrogram: Spectrogram,
    work: WorkFolder,
) -> tuple[Manifest, WorkFolder]:
    """Write the files beside the shards; return the manifest, and the folder that holds them."""
    if work.late_rejects.exists():
        raise _LateRejectsError
    finished = work.fetch()
    folder = Path(finished.path, "dataset")
    if work.problem.exists():
        _print_rejects(folder / "rejects", str(work.rejects))
        raise PreprocessError(work.problem.read_text())
    manifest = describe(source, options, spectrogram, finished)
    return manifest, finished


def _identity(source: TraceSource, options: DatasetOptions) -> dict[str, Any]:
    """Return what tells the run of one dataset from that of another."""
    return {"fingerprint": options.fingerprint(), "input_identity": source.identity()}


def _print_rejects(folder: Path, shown: str) -> None:
    """Print how many rows were rejected for each reason, and an example of each."""
    rows = []
    for path in sorted(folder.glob("*.jsonl")):
        lines = path.read_text().splitlines()
        first = json.loads(lines[0])
        where = f"session {first['session']} trial {first['trial_num']}"
        rows.append((path.stem, len(lines), where, first["detail"]))
    if rows:
        header = ["reason", "rows", "for example", "detail"]
        console.print_table(
            "Rejected rows", header, rows, f"all are listed in {shown}, which the next run removes"
        )


def _write_run(
    path: Path, uri: str, input_identity: list[Any], started: float, outcome: Outcome
) -> None:
    finished = time.time()
    run = {
        "command": sys.argv,
        "input": uri,
        "input_identity": input_identity,
        "started": datetime.fromtimestamp(started, UTC).isoformat(),
        "finished": datetime.fromtimestamp(finished, UTC).isoformat(),
        "seconds": round(finished - started, 3),
        **outcome.details,
        "host": platform.node(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "counters": outcome.counters,
    }
    path.write_text(json.dumps(run, indent=1) + "\n")
