"""Beam's options of a Dataflow job: the user's flags, and defaults chosen for this job."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Sequence

from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    WorkerOptions,
)

from beam_pipeline.errors import UsageError
from beam_pipeline.launchers.dataflow.checks import (
    JobSettings,
    check_project,
    check_settings,
    refused_flags,
)
from beam_pipeline.launchers.dataflow.defaults import DISK_GB, MACHINE_TYPE, MAX_WORKERS

#: Bundles at work in one SDK process: while one waits for Cloud Storage, others compute. Beam's
#: default of 12 would hold three times the spectrograms in memory and gain nothing.
HARNESS_THREADS = 4
LABEL = "application=lfp-vit"


def job_options(
    arguments: Sequence[str], input: str, output: str, *, needs_project: bool = True
) -> PipelineOptions:
    """Return the options of a job, checked as far as that needs no network.

    Parameters
    ----------
    arguments : sequence of str
        Flags of Beam.
    input, output : str
        The table and the dataset folder.
    needs_project : bool
        Whether a project that nothing names is a mistake.

    Raises
    ------
    UsageError
        If a flag is wrong, or flags contradict each other; all that is found is said.
    """
    options = PipelineOptions(list(arguments))
    given = options.get_all_options(drop_default=True)
    problems = list(refused_flags(given))
    problems += [
        f"--{name} is for local runs; see --max_num_workers and --machine_type"
        for name in sorted(given)
        if name.startswith("direct_")
    ]
    _fill_in(options, output)
    settings = JobSettings.of(input, output, options.get_all_options())
    if settings.project or needs_project:
        problems += check_project(settings)
    problems += check_settings(settings)
    if problems:
        raise UsageError("; ".join(problems))
    return options


def _fill_in(options: PipelineOptions, output: str) -> None:
    """Set what the user left open: by the names of ``cloud/cloud.env``, then by default."""
    cloud, workers = options.view_as(GoogleCloudOptions), options.view_as(WorkerOptions)
    debug = options.view_as(DebugOptions)
    named = os.environ.get
    cloud.project = cloud.project or named("GOOGLE_CLOUD_PROJECT")
    cloud.region = cloud.region or named("GOOGLE_CLOUD_REGION") or named("CLOUDSDK_COMPUTE_REGION")
    cloud.service_account_email = cloud.service_account_email or named("DATAFLOW_SERVICE_ACCOUNT")
    bucket = named("TEMP_BUCKET") or "".join(re.findall(r"^gs://([^/]+)", output))
    if bucket:
        cloud.temp_location = cloud.temp_location or f"gs://{bucket}/dataflow-temp"
    cloud.staging_location = cloud.staging_location or cloud.temp_location
    cloud.job_name = cloud.job_name or default_job_name(output)
    cloud.labels = [*(cloud.labels or []), *_own_label(cloud.labels or [])]
    workers.machine_type = workers.machine_type or MACHINE_TYPE
    workers.disk_size_gb = workers.disk_size_gb or DISK_GB
    if workers.autoscaling_algorithm != "NONE" and workers.max_num_workers is None:
        workers.max_num_workers = max(MAX_WORKERS, workers.num_workers or 0)
    if debug.number_of_worker_harness_threads is None:
        debug.number_of_worker_harness_threads = HARNESS_THREADS


def _own_label(labels: Sequence[str]) -> list[str]:
    return [] if any(label.startswith("application=") for label in labels) else [LABEL]


def default_job_name(output: str) -> str:
    """Return a name that says which dataset is made, and differs from run to run."""
    folder = re.sub(r"[^a-z0-9]+", "-", output.rstrip("/").rpartition("/")[2].lower()).strip("-")
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    return f"lfp-{folder[:30].strip('-') or 'dataset'}-{stamp}-{secrets.token_hex(2)}"
