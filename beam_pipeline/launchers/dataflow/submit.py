"""From a pipeline to a Dataflow job: packed and submitted, or only shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    TestOptions,
)
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner
from apache_beam.runners.dataflow.internal.apiclient import Environment
from apache_beam.runners.runner import PipelineResult
from google.protobuf.json_format import MessageToDict

from beam_pipeline.errors import last_line
from beam_pipeline.launchers.contract import Build
from beam_pipeline.launchers.packed import packed


class SubmissionError(RuntimeError):
    """Beam or Dataflow refused the job; the message says why."""


@contextmanager
def stderr_into(path: Path) -> Iterator[None]:
    """Append to a file what this process and those it starts write to standard error."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with path.open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def submit(build: Build, options: PipelineOptions, log: Path | None) -> str:
    """Pack, stage and submit a job.

    Parameters
    ----------
    build : callable
        Puts the pipeline together.
    options : PipelineOptions
    log : pathlib.Path or None
        Gets what Beam prints; None lets it through.

    Returns
    -------
    str
        The job's id.

    Raises
    ------
    SubmissionError
        If Beam or Dataflow does not take it.
    """
    result = _run(build, options, log)
    return str(result.job_id())


def job_description(build: Build, options: PipelineOptions, log: Path | None) -> dict[str, Any]:
    """Return a job as it would be submitted, as JSON data; nothing is staged.

    Returns
    -------
    dict
        ``name``, ``project``, ``region``, ``steps`` (name and kind of each, in order),
        ``staged_files``, ``environment`` (worker pools, experiments, ...) and ``flags``.
    """
    options.view_as(TestOptions).dry_run = True
    job = _run(build, options, log).job
    # Beam completes a copy of the options.
    completed: PipelineOptions = job.options
    cloud = completed.view_as(GoogleCloudOptions)
    staged = staged_names(job.proto_pipeline)
    environment = Environment(
        packages=staged,
        options=completed,
        environment_version="8",
        proto_pipeline_staged_url=f"{cloud.staging_location}/pipeline.pb",
        proto_pipeline=job.proto_pipeline,
    ).proto
    shown = MessageToDict(environment._pb)
    # All of Beam's options; those that were set are shown as flags.
    shown.pop("sdkPipelineOptions", None)
    for pool in shown["workerPools"]:
        for image in pool.get("sdkHarnessContainerImages", []):
            image.pop("capabilities", None)
    not_flags = {"dry_run", "setup_file", "beam_plugins"}
    flags = completed.get_all_options(drop_default=True)
    return {
        "name": cloud.job_name,
        "project": cloud.project,
        "region": cloud.region,
        "labels": MessageToDict(job.proto._pb).get("labels", {}),
        "steps": steps(job.proto_pipeline),
        "staged_files": [*staged, "pipeline.pb"],
        "environment": shown,
        "flags": {name: flags[name] for name in sorted(flags.keys() - not_flags)},
    }


def staged_names(pipeline: beam_runner_api_pb2.Pipeline) -> list[str]:
    """Return the names under which a pipeline's files reach the workers."""
    payload = beam_runner_api_pb2.ArtifactStagingToRolePayload
    return sorted(
        {
            payload.FromString(file.role_payload).staged_name
            for environment in pipeline.components.environments.values()
            for file in environment.dependencies
        }
    )


def steps(pipeline: beam_runner_api_pb2.Pipeline) -> list[dict[str, str]]:
    """Return name and kind of each primitive step, in the order of the graph."""
    found: list[dict[str, str]] = []

    def walk(transform_id: str) -> None:
        transform = pipeline.components.transforms[transform_id]
        if not transform.subtransforms and transform.spec.urn:
            found.append({"name": transform.unique_name, "kind": transform.spec.urn})
        for child in transform.subtransforms:
            walk(child)

    for root in pipeline.root_transform_ids:
        walk(root)
    return found


def _run(build: Build, options: PipelineOptions, log: Path | None) -> PipelineResult:
    with packed(options):
        if log is None:
            return _construct_and_run(build, options)
        with stderr_into(log):
            return _construct_and_run(build, options)


def _construct_and_run(build: Build, options: PipelineOptions) -> PipelineResult:
    try:
        pipeline = beam.Pipeline(runner=DataflowRunner(), options=options)
    except ValueError as error:
        # Beam's own validation: a heading, then one line a problem.
        problems = str(error).splitlines()[1:] or [str(error)]
        raise SubmissionError("; ".join(problems)) from error
    build(pipeline)
    try:
        return pipeline.run()
    except Exception as error:
        raise SubmissionError(f"the job was not submitted: {last_line(error)}") from error
