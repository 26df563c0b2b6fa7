"""Runs of the pipeline on Dataflow, from checks to final counters."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from beam_pipeline.counters import NAMESPACE, PHASE_COUNTERS
from beam_pipeline.errors import one_line
from beam_pipeline.launchers.contract import (
    PHASES,
    Build,
    Outcome,
    RunFailedError,
    StillRunningError,
)
from beam_pipeline.launchers.dataflow.follow import JobError, JobInterruptedError, follow_job
from beam_pipeline.launchers.dataflow.job_options import job_options
from beam_pipeline.launchers.dataflow.job_record import LABEL, JobRecord, read_record
from beam_pipeline.launchers.dataflow.job_state import DONE, GONE, TERMINAL, Metrics
from beam_pipeline.launchers.dataflow.preflight import check_services
from beam_pipeline.launchers.dataflow.service import DataflowService, default_project
from beam_pipeline.launchers.dataflow.submit import SubmissionError, job_description, submit
from beam_pipeline.output.work_folder import PREFIX, WorkFolder


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
    ServiceError
        If there are no credentials.
    PreflightError
        If there is no such region, or the service account or a bucket is missing or out of reach.
    """

    def __init__(
        self, arguments: Sequence[str], input: str, output: str, verbose: bool = False
    ) -> None:
        self._arguments = (arguments, input, output)
        self._verbose = verbose
        _quiet(verbose)
        # Wrong flags are wrong without credentials, too; but those may name the project.
        job_options(*self._arguments, needs_project=False)
        project = _project(arguments)
        if project:
            # Beam and Google's clients look for it there as well.
            os.environ.setdefault("GOOGLE_CLOUD_PROJECT", project)
        self._options = job_options(*self._arguments)
        service = DataflowService(self._options, NAMESPACE)
        for note in check_services(self._options, service, input, output):
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
        ServiceError
            If Dataflow does not say how a job is: then nothing may be removed.
        """
        found = None
        for work in leftovers:
            record = read_record(work)
            if record is None:
                continue
            service = self._service_of(record)
            job_id = record.job_id or service.find(record.job_name, record.label)
            if not job_id:
                continue
            if not record.job_id:
                record = dataclasses.replace(record, job_id=job_id)
                work.job.write_text(record.to_json())
            state = service.state(job_id)
            running = state not in TERMINAL | {GONE}
            matches = found is None and record.identity == dict(identity)
            if matches and (running or state == DONE):
                work.reopen()
                found = work
            elif running:
                raise StillRunningError(
                    f"{record} is still making another dataset there; wait for its end, or end it "
                    f"with '{record.end_command()}'"
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
        with _watching("its job"):
            record = read_record(work)
        if record is None:
            record = self._submit(build, work, identity)
        else:
            print(f"Following {record} again", file=sys.stderr)
        with _watching(str(record)):
            service = self._service_of(record)
            print(f"Job {record.job_id}: {service.console_url(record.job_id)}", file=sys.stderr)
            metrics = follow_job(
                service, record.job_id, PHASES, PHASE_COUNTERS, n_rows, self._verbose
            )
        return _outcome(record, metrics)

    def _submit(self, build: Build, work: WorkFolder, identity: Mapping[str, Any]) -> JobRecord:
        # Beam writes into a job's options; another job gets its own, with its own name.
        options = job_options(*self._arguments)
        cloud = options.view_as(GoogleCloudOptions)
        label = work.path.rpartition(PREFIX)[2]
        cloud.labels = [*cloud.labels, f"{LABEL}={label}"]
        record = JobRecord("", cloud.job_name, cloud.project, cloud.region, label, dict(identity))

        def build_and_record(pipeline: beam.Pipeline) -> None:
            build(pipeline)
            # Before anything is sent, so that the job can be found whatever happens then.
            work.job.write_text(record.to_json())

        try:
            job_id = submit(build_and_record, options, None if self._verbose else work.log)
        except SubmissionError as error:
            # A lost answer looks like a refusal.
            found = self._sent(record, error)
            if not found:
                raise
            job_id = found
        except KeyboardInterrupt:
            raise StillRunningError(
                f"interrupted while {record} was being submitted; if it was, the same command "
                f"follows it, and '{record.end_command()}' lists it"
            ) from None
        record = dataclasses.replace(record, job_id=job_id)
        with _watching(str(record)):
            work.job.write_text(record.to_json())
        return record

    def _sent(self, record: JobRecord, error: SubmissionError) -> str:
        """Return the id of a job that was refused, as it seems; empty if it is not there."""
        try:
            return self._service_of(record).find(record.job_name, record.label)
        except (Exception, KeyboardInterrupt) as unknown:
            raise StillRunningError(
                f"{error}; the same command looks for {record}, or starts again"
            ) from unknown

    def _service_of(self, record: JobRecord) -> DataflowService:
        options = PipelineOptions.from_dictionary(
            self._options.get_all_options(drop_default=True)
            | {"project": record.project, "region": record.region}
        )
        return DataflowService(options, NAMESPACE)


@contextmanager
def _watching(job: str) -> Iterator[None]:
    """Take a job to go on, whatever happens to its launcher, until it is known to have ended."""
    try:
        yield
    except JobError as error:
        raise RunFailedError(str(error)) from error
    except JobInterruptedError as error:
        raise StillRunningError(str(error)) from error
    except BaseException as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else one_line(error)
        raise StillRunningError(
            f"{reason}; {job} may go on: the same command follows it again"
        ) from error


def _outcome(record: JobRecord, metrics: Metrics) -> Outcome:
    details = {
        "runner": "DataflowRunner",
        **{name: getattr(record, name) for name in ("job_id", "job_name", "project", "region")},
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
