"""What can be wrong with the flags of a Dataflow job, found before anything is uploaded.

Dataflow itself finds most of this minutes later, or bills for it; Beam only warns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

_PROJECT = r"(?:[a-z0-9.-]+\.[a-z]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]"
_REGION = r"[a-z]+-[a-z]+\d+"
_ZONE = rf"({_REGION})-[a-z]"
_ACCOUNT = r"[a-z0-9][a-z0-9.-]*@(?:[a-z0-9.-]+\.)?gserviceaccount\.com"
_MACHINE = r"[a-z][a-z0-9]*(?:-[a-z0-9]+)+"
_BUCKET = r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"
_TABLE = r"bq://[a-z0-9.:-]+\.\w+(?:\.[^.`/]+)?"
_LABEL_KEY = r"[a-z][a-z0-9_-]{0,62}"
_LABEL_VALUE = r"[a-z0-9_-]{0,63}"
_JOB_NAME = r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
_SUBNETWORK = (
    r"(?:https://www\.googleapis\.com/compute/v1/projects/[^/]+/)?regions/([^/]+)/subnetworks/[^/]+"
)
#: Too small for the SDK, or not offered by Dataflow's portable runner.
_TINY_MACHINES = ("f1-micro", "g1-small", "e2-micro", "e2-small")
#: What this launcher decides itself, and why.
_REFUSED = {
    "setup_file": "the launcher packs this checkout itself; add packages with --extra_package",
    "save_main_session": "workers install this package, so no session is pickled",
    "requirements_file": "workers install what setup.py names; add packages with --extra_package",
    "template_location": "a template's job would end without the launcher's last steps",
    "dataflow_job_file": "use --dry_run to see the job",
    "impersonate_service_account": "not every client here would heed it; let all of them by "
    "'gcloud auth application-default login --impersonate-service-account ACCOUNT'",
    "update": "a batch job cannot be updated",
    "streaming": "the table is bounded, and so is the job",
    "create_from_snapshot": "snapshots are of streaming jobs",
    "transform_name_mapping": "a batch job cannot be updated",
    "no_wait_until_finish": "the launcher must finish the dataset; after Ctrl-C the job goes on",
}


@dataclass(frozen=True)
class JobSettings:
    """Beam's options that this launcher looks at, under Beam's names; see `check_settings`."""

    input: str
    output: str
    project: str | None = None
    region: str | None = None
    temp_location: str | None = None
    staging_location: str | None = None
    job_name: str | None = None
    service_account_email: str | None = None
    machine_type: str | None = None
    num_workers: int | None = None
    max_num_workers: int | None = None
    autoscaling_algorithm: str | None = None
    disk_size_gb: int | None = None
    number_of_worker_harness_threads: int | None = None
    worker_region: str | None = None
    worker_zone: str | None = None
    subnetwork: str | None = None
    flexrs_goal: str | None = None
    labels: Sequence[str] = ()

    @classmethod
    def of(cls, input: str, output: str, values: Mapping[str, Any]) -> JobSettings:
        """Pick the settings out of all of Beam's options."""
        names = {field.name for field in fields(cls)} - {"input", "output"}
        known = {name: values[name] for name in names & values.keys() if values[name] is not None}
        return cls(input, output, **known)


def refused_flags(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield why each flag that cannot be given with Dataflow cannot.

    Parameters
    ----------
    values : mapping
        All of Beam's options by name.
    """
    for name, reason in _REFUSED.items():
        if values.get(name):
            yield f"--{name}: {reason}"


def check_settings(settings: JobSettings) -> Iterator[str]:
    """Yield what is wrong with the flags by themselves; nothing is asked over the network.

    The project is left to `check_project`.
    """
    for check in _CHECKS:
        yield from check(settings)


def check_project(settings: JobSettings) -> Iterator[str]:
    """Yield what is wrong with the project, which credentials may name where no flag does."""
    project = settings.project
    if not project:
        yield "no project: pass --project ID, or set GOOGLE_CLOUD_PROJECT"
    elif project.isdigit():
        yield f"--project {project} is a project number; Dataflow wants the project's id"
    elif not re.fullmatch(_PROJECT, project):
        yield f"--project '{project}' is no project id (lower case letters, digits and hyphens)"


def _check_places(settings: JobSettings) -> Iterator[str]:
    region = settings.region
    if not region:
        yield "no region: pass --region, best where the output bucket is"
    elif zone := re.fullmatch(_ZONE, region):
        yield f"--region {region} is a zone; did you mean --region {zone[1]}?"
    elif not re.fullmatch(_REGION, region):
        yield f"--region '{region}' is no region, such as europe-west4"
    if settings.worker_zone and settings.worker_region:
        yield "--worker_zone and --worker_region exclude each other"
    if settings.worker_zone and not re.fullmatch(_ZONE, settings.worker_zone):
        yield f"--worker_zone '{settings.worker_zone}' is no zone, such as europe-west4-a"
    if settings.subnetwork:
        found = re.fullmatch(_SUBNETWORK, settings.subnetwork)
        where = settings.worker_region or _region_of(settings.worker_zone) or region
        if not found:
            yield (
                f"--subnetwork '{settings.subnetwork}' is not regions/REGION/subnetworks/NAME, "
                "with or without https://www.googleapis.com/compute/v1/projects/PROJECT/"
            )
        elif where and found[1] != where:
            yield f"--subnetwork is in {found[1]}, but the workers are in {where}"


def _region_of(zone: str | None) -> str | None:
    found = re.fullmatch(_ZONE, zone or "")
    return found[1] if found else None


def _check_paths(settings: JobSettings) -> Iterator[str]:
    names = ["temp_location", "staging_location"]
    if settings.input.startswith("gs://"):
        names.insert(0, "input")
    elif not settings.input.startswith("bq://"):
        yield f"--input {settings.input}: Dataflow's workers read gs:// or bq://, not local files"
    elif not re.fullmatch(_TABLE, settings.input):
        yield f"--input {settings.input} is not bq://PROJECT.DATASET.TABLE"
    if settings.output.startswith("gs://"):
        names.insert(0, "output")
    else:
        yield f"--output {settings.output}: Dataflow's workers write to gs://, not to local folders"
    wrong: list[list[str]] = []
    for name in names:
        path = getattr(settings, name)
        bucket = (path or "").split("/")[2:3]
        # What is not given follows from --output, and is as wrong as that.
        if path and not re.fullmatch(rf"{_BUCKET}(/.*)?", path) and bucket not in wrong:
            wrong.append(bucket)
            yield (
                f"--{name} '{path}' is not gs://BUCKET/FOLDER, with the bucket's name in lower "
                "case letters, digits, hyphens, dots and underscores"
            )


def _check_workers(settings: JobSettings) -> Iterator[str]:
    machine = settings.machine_type
    if machine in _TINY_MACHINES:
        yield f"--machine_type {machine} is too small for Dataflow; take e2-standard-2 or more"
    elif machine and not re.fullmatch(_MACHINE, machine):
        guess = machine.lower().replace("_", "-")
        hint = f"; did you mean {guess}?" if re.fullmatch(_MACHINE, guess) else ""
        yield f"--machine_type '{machine}' is no machine type, such as n2-standard-4{hint}"
    for name in (
        "num_workers",
        "max_num_workers",
        "disk_size_gb",
        "number_of_worker_harness_threads",
    ):
        value = getattr(settings, name)
        if value is not None and value < 1:
            yield f"--{name} {value} is not at least 1"
    workers, most = settings.num_workers, settings.max_num_workers
    if workers and most and workers > most:
        yield f"--num_workers {workers} is more than --max_num_workers {most}"
    if settings.autoscaling_algorithm == "NONE" and not workers:
        yield "--autoscaling_algorithm NONE keeps the number of workers: pass --num_workers"
    if settings.flexrs_goal and settings.autoscaling_algorithm == "NONE":
        yield "--flexrs_goal needs autoscaling; leave out --autoscaling_algorithm NONE"


def _check_names(settings: JobSettings) -> Iterator[str]:
    account = settings.service_account_email
    if account and not re.fullmatch(_ACCOUNT, account):
        yield (
            f"--service_account_email '{account}' is no service account, such as "
            "NAME@PROJECT.iam.gserviceaccount.com"
        )
    if settings.job_name and not re.fullmatch(_JOB_NAME, settings.job_name):
        yield (
            f"--job_name '{settings.job_name}' must be at most 63 lower case letters, digits and "
            "hyphens, beginning with a letter"
        )
    seen: set[str] = set()
    for label in settings.labels:
        key, _, value = label.partition("=")
        # Beam takes JSON as well, and reads it itself.
        if label.lstrip().startswith("{"):
            continue
        if not re.fullmatch(_LABEL_KEY, key) or not re.fullmatch(_LABEL_VALUE, value):
            yield (
                f"--labels '{label}' is not key=value in lower case letters, digits, hyphens and "
                "underscores, at most 63 each"
            )
        elif key in seen:
            yield f"--labels {key} is given twice"
        seen.add(key)


_CHECKS: tuple[Callable[[JobSettings], Iterator[str]], ...] = (
    _check_places,
    _check_paths,
    _check_workers,
    _check_names,
)
