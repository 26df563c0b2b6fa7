"""Runs of the pipeline on a cluster that speaks Beam's job API, such as Flink or Spark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions, StandardOptions

from beam_pipeline import console
from beam_pipeline.errors import UsageError
from beam_pipeline.launchers.contract import PHASES, Build, Outcome
from beam_pipeline.launchers.dataflow.job_record import refuse_recorded
from beam_pipeline.launchers.local import beam_counters, run_to_end
from beam_pipeline.launchers.packed import packed
from beam_pipeline.output.work_folder import WorkFolder
from beam_pipeline.progress import read_counts


class PortableLauncher:
    """Sends pipelines to a job server, with this package for the workers to install.

    Raises
    ------
    UsageError
        If no job server is named, or its workers could not write to the output.
    """

    def __init__(self, arguments: Sequence[str], output: str, verbose: bool = False) -> None:
        self._arguments = list(arguments)
        self._verbose = verbose
        options = PipelineOptions(self._arguments)
        if not options.view_as(PortableOptions).job_endpoint:
            raise UsageError("--runner PortableRunner needs --job_endpoint HOST:PORT")
        if not output.startswith("gs://"):
            raise UsageError(f"--output {output}: workers on other machines write to gs:// only")

    def describe(self, build: Build) -> NoReturn:
        """Refuse: a job server has its own ways to show a job."""
        raise UsageError("--dry_run shows the job of --runner DataflowRunner only")

    def unfinished(
        self, leftovers: Sequence[WorkFolder], identity: Mapping[str, object]
    ) -> WorkFolder | None:
        """Return None: there is no finding such a job again. One on Dataflow is not disturbed."""
        refuse_recorded(leftovers)
        return None

    def run(
        self, build: Build, work: WorkFolder, n_rows: int, identity: Mapping[str, object]
    ) -> Outcome:
        """Run a pipeline; see `launcher.Launcher`."""
        options = PipelineOptions(self._arguments)
        with (
            packed(options),
            console.watch(PHASES, n_rows, lambda: read_counts(work.progress)),
        ):
            pipeline = beam.Pipeline(options=options)
            build(pipeline)
            result = run_to_end(pipeline, work.log, self._verbose)
        return Outcome(
            beam_counters(result),
            {
                "runner": options.view_as(StandardOptions).runner,
                "job_endpoint": options.view_as(PortableOptions).job_endpoint,
            },
        )
