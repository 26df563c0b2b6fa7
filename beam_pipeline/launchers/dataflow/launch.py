"""Runs of the pipeline on Dataflow, from checks to final counters."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from beam_pipeline.counters import NAMESPACE, PHASE_COUNTERS
from beam_pipeline.launchers.contract import (
    PHASES,
    Build,
    Outcome,
    RunFailedError,
    StillRunningError,
)
from beam_pipeline.launchers.dataflow.buckets import check_buckets
from beam_pipeline.launchers.dataflow.follow import JobError, JobInterruptedError, follow_job
from beam_pipeline.launchers.dataflow.job_options import job_options
from beam_pipeline.launchers.dataflow.job_record import JobRecord, read_record
from beam_pipeline.launchers.dataflow.job_state import DONE, TERMINAL, Metrics
from beam_pipeline.launchers.dataflow.service import DataflowService, ServiceError, default_project
from beam_pipeline.launchers.dataflow.submit import job_description, submit
from beam_pipeline.output.work_folder import WorkFolder


class DataflowLauncher:
    """Submits the pipeline as a job, follows it, and reads its counters.

    Parameters
    ----------
    arguments : sequence of str
        Flags of Beam.
    input, output : str
        The table and the dataset folder.
    verbose : bool
        Show what Beam and Dataflow log.

    Raises
    ------
    UsageError
        If a flag is wrong, or flags contradict each other.
    ServiceError, BucketError
        If there are no credentials, or a bucket is missing or out of reach.
    """

    def __init__(
        self, arguments: Sequence[str], input: str, output: str, verbose: bool = False
    ) -> None:
        self._arguments = (arguments, input, output)
        self._verbose = verbose
        _quiet(verbose)
        project = _project(arguments)
        if project:
            # Beam and Google's clients look for it there as well.
            os.environ.setdefault("GOOGLE_CLOUD_PROJECT", project)
        self._options = job_options(*self._arguments)
        for note in check_buckets(self._options, input, output):
            print(f"Note: {note}", file=sys.stderr)

    def describe(self, build: Build) -> dict[str, Any]:
        """Return the job that would be submitted, as JSON data."""
        with tempfile.TemporaryDirectory(prefix="lfp-vit-") as folder:
            log = None if self._verbose else Path(folder) / "beam.log"
            return job_description(build, self._options, log)

    def unfinished(
        self, leftovers: Sequence[WorkFolder], identity: Mapping[str, Any]
    ) -> WorkFolder | None:
        """Return the work folder of this dataset's job that runs, or has just ended well.

        Raises
        ------
        StillRunningError
            If the job of another dataset still writes there.
        """
        found = None
        for work in leftovers:
            record = read_record(work)
            if record is None:
                continue
            service = self._service_of(record)
            state = service.state(record.job_id)
            running = state not in TERMINAL | {"unknown"}
            if record.identity == dict(identity) and (running or state == DONE):
                work.reopen()
                found = work
            elif running:
                raise StillRunningError(
                    f"job {record.job_id} is still making another dataset there; wait for its "
                    f"end, or end it with '{service.cancel_command(record.job_id)}'"
                )
        return found

    def run(
        self, build: Build, work: WorkFolder, n_rows: int, identity: Mapping[str, Any]
    ) -> Outcome:
        """Submit a job and follow it, or follow the one that already fills the work folder.

        Raises
        ------
        RunFailedError
            If the job is refused, fails or is cancelled.
        StillRunningError
            If the job goes on, but is not followed any more.
        """
        record = read_record(work)
        if record is None:
            record = self._submit(build, work, identity)
        else:
            print(f"Following job {record.job_id} again", file=sys.stderr)
        service = self._service_of(record)
        print(f"Job {record.job_id}: {service.console_url(record.job_id)}", file=sys.stderr)
        try:
            metrics = follow_job(
                service, record.job_id, PHASES, PHASE_COUNTERS, n_rows, self._verbose
            )
        except JobError as error:
            raise RunFailedError(str(error)) from error
        except JobInterruptedError as error:
            raise StillRunningError(str(error)) from error
        except ServiceError as error:
            raise StillRunningError(
                f"{error}; job {record.job_id} may go on: the same command follows it again"
            ) from error
        return _outcome(record, metrics)

    def _submit(self, build: Build, work: WorkFolder, identity: Mapping[str, Any]) -> JobRecord:
        # Beam writes into a job's options; another job gets its own, with its own name.
        options = job_options(*self._arguments)
        cloud = options.view_as(GoogleCloudOptions)
        name = cloud.job_name
        job_id = submit(build, options, None if self._verbose else work.log)
        record = JobRecord(job_id, name, cloud.project, cloud.region, dict(identity))
        work.job.write_text(record.to_json())
        return record

    def _service_of(self, record: JobRecord) -> DataflowService:
        options = PipelineOptions.from_dictionary(
            self._options.get_all_options(drop_default=True)
            | {"project": record.project, "region": record.region}
        )
        return DataflowService(options, NAMESPACE)


def _outcome(record: JobRecord, metrics: Metrics) -> Outcome:
    details = {
        "runner": "DataflowRunner",
        **{key: value for key, value in dataclasses.asdict(record).items() if key != "identity"},
        "usage": metrics.usage(),
    }
    return Outcome(metrics.counters, details)


def _project(arguments: Sequence[str]) -> str | None:
    cloud = PipelineOptions(list(arguments)).view_as(GoogleCloudOptions)
    if cloud.no_auth:
        return None
    # Also tells at once whether there are credentials at all.
    found = default_project()
    return cloud.project or found


def _quiet(verbose: bool) -> None:
    for name in ("apache_beam", "google"):
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.CRITICAL)
