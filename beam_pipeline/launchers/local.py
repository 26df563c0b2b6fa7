"""Runs of the pipeline on this machine."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    StandardOptions,
    WorkerOptions,
)
from apache_beam.runners.runner import PipelineResult

from beam_pipeline import console
from beam_pipeline.counters import NAMESPACE
from beam_pipeline.errors import UsageError, last_line
from beam_pipeline.launchers.contract import PHASES, Build, Outcome, RunFailedError
from beam_pipeline.launchers.dataflow.job_record import refuse_recorded
from beam_pipeline.launchers.local_runner import local_runner, pipeline_options
from beam_pipeline.output.work_folder import WorkFolder
from beam_pipeline.progress import read_counts

#: Flags of workers that local workers heed as well.
LOCAL_FLAGS = {
    "default_sdk_harness_log_level",
    "element_processing_timeout_minutes",
    "max_cache_memory_usage_mb",
    "sdk_harness_log_level_overrides",
}


class LocalLauncher:
    """Runs pipelines in processes of this machine."""

    def __init__(self, arguments: Sequence[str], verbose: bool = False) -> None:
        # Checked now, before anything is written; a run may be repeated, and uses up its options.
        pipeline_options(arguments, verbose)
        _refuse_job_flags(arguments)
        self._arguments = arguments
        self._verbose = verbose

    def describe(self, build: Build) -> NoReturn:
        """Refuse: no job is submitted anywhere."""
        raise UsageError(
            "--dry_run shows the job of --runner DataflowRunner; what a run on this machine would "
            "do is said by the plan command"
        )

    def unfinished(
        self, leftovers: Sequence[WorkFolder], identity: Mapping[str, Any]
    ) -> WorkFolder | None:
        """Return None: a local run ends with its launcher. A job on Dataflow is not disturbed."""
        refuse_recorded(leftovers)
        return None

    def run(
        self, build: Build, work: WorkFolder, n_rows: int, identity: Mapping[str, Any]
    ) -> Outcome:
        """Run a pipeline; see `Launcher`."""
        options = pipeline_options(self._arguments, self._verbose)
        runner = local_runner(options, Path("/dev/stderr") if self._verbose else work.log)
        pipeline = beam.Pipeline(runner=runner, options=options)
        build(pipeline)
        with console.watch(PHASES, n_rows, lambda: read_counts(work.progress)):
            # The card needs it at the end, when no worker is left to use the time.
            threading.Thread(target=import_module, args=["matplotlib.figure"], daemon=True).start()
            result = run_to_end(pipeline, work.log, self._verbose)
        return Outcome(
            beam_counters(result),
            {
                "runner": options.view_as(StandardOptions).runner,
                "direct_num_workers": options.view_as(DirectOptions).direct_num_workers,
            },
        )


def _refuse_job_flags(arguments: Sequence[str]) -> None:
    """Refuse flags that only a job on Dataflow heeds: a local run was hardly meant."""
    given = PipelineOptions(list(arguments)).get_all_options(drop_default=True)
    found = sorted(given.keys() & (set(WorkerOptions()._visible_option_list()) - LOCAL_FLAGS))
    if found:
        raise UsageError(
            f"--{found[0]} is for Dataflow: add --runner DataflowRunner, or leave it out"
        )


def run_to_end(pipeline: beam.Pipeline, log: Path, verbose: bool) -> PipelineResult:
    """Run a pipeline that is to end with this process.

    Raises
    ------
    RunFailedError
    """
    logging.getLogger("apache_beam").setLevel(logging.INFO if verbose else logging.CRITICAL)
    try:
        with contextlib.ExitStack() as stack:
            if not verbose:
                stack.enter_context(contextlib.redirect_stderr(stack.enter_context(log.open("a"))))
            result = pipeline.run()
            try:
                result.wait_until_finish()
            except KeyboardInterrupt:
                # What a job server runs would go on.
                result.cancel()
                raise
    except Exception as error:
        message = last_line(error)
        if message.startswith("Channel closed"):
            message = "a worker process died; was it killed, or out of memory?"
        where = "above" if verbose else f"in {log}"
        raise RunFailedError(f"{message}; the traceback is {where}") from error
    return result


def beam_counters(result: PipelineResult) -> dict[str, int]:
    """Return the pipeline's counters; a distribution as its smallest, largest and sum."""
    query = beam.metrics.MetricsFilter().with_namespace(NAMESPACE)
    found = result.metrics().query(query)
    counts = {counter.key.metric.name: counter.result for counter in found["counters"]}
    for distribution in found["distributions"]:
        name, values = distribution.key.metric.name, distribution.result
        counts |= {f"{name}_{part}": getattr(values, part) for part in ("min", "max", "sum")}
    return dict(sorted(counts.items()))
