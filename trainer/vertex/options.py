"""Flags of whatever runs on Vertex AI, and the environment variables that stand in for them.

A flag wins over its variable. `run_training.sh` sets the variables from ``cloud/cloud.env``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainer.errors import UsageError
from trainer.vertex.machines import resolve_accelerator

#: {flag: the environment variable that is its default}.
ENVIRONMENT = {
    "project": "GOOGLE_CLOUD_PROJECT",
    "region": "GOOGLE_CLOUD_REGION",
    "image": "TRAINER_IMAGE",
    "service_account": "TRAINER_SERVICE_ACCOUNT",
    "tensorboard": "TENSORBOARD",
    "network": "VERTEX_NETWORK",
    "vertex_experiment": "VERTEX_EXPERIMENT",
    "vertex_endpoint": "VERTEX_ENDPOINT",
}
DEFAULT_MACHINE = "a2-highgpu-1g"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
#: Finds the jobs that write to one folder, and the job that one submission made.
OUTPUT_LABEL = "lfp_vit_output"
SUBMISSION_LABEL = "lfp_vit_submission"
_OUR_LABELS = ("app", "kind", OUTPUT_LABEL, SUBMISSION_LABEL)


@dataclass(frozen=True)
class VertexOptions:
    """Where a job runs, on what, and as whom.

    Attributes
    ----------
    project, region, image : str
    name : str
        What the job is called in the console; made from its output if empty.
    machine : str
        Machine type of every replica.
    accelerator : str
        GPU of a replica, as Vertex AI names it; empty for a machine without.
    accelerator_count : int
        GPUs of a replica, 0 for a machine without.
    replicas : int
    spot : bool
        Spot machines: cheaper, and taken away at any time.
    service_account, tensorboard, network : str
        Empty where there is none; `tensorboard` and `network` are full resource names.
    timeout : int
        Seconds after which the job is ended.
    labels : mapping
    vertex_experiment : str
        Name in Vertex AI Experiments; empty for no tracking there.
    vertex_endpoint : str
        URL instead of the region's; empty for the region's.
    """

    project: str
    region: str
    image: str
    name: str = ""
    machine: str = DEFAULT_MACHINE
    accelerator: str = "NVIDIA_TESLA_A100"
    accelerator_count: int = 1
    replicas: int = 1
    spot: bool = False
    service_account: str = ""
    tensorboard: str = ""
    network: str = ""
    timeout: int = 7 * 86_400
    labels: Mapping[str, str] = field(default_factory=dict)
    vertex_experiment: str = ""
    vertex_endpoint: str = ""


def add_vertex_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a job to a command's parser."""
    group = parser.add_argument_group("Vertex AI")

    def add(name: str, text: str, default: str = "", metavar: str | None = None) -> None:
        known = [f"${ENVIRONMENT[name]}"] if name in ENVIRONMENT else []
        known += [default] if default else []
        end = f" (default: {', else '.join(known)})" if known else ""
        group.add_argument(f"--{name}", metavar=metavar or "X", help=f"{text}{end}")

    add("project", "Google Cloud project")
    add("region", "region of the job, such as europe-west4")
    add("image", "container image of the trainer, in Artifact Registry", metavar="URI")
    add("name", "name of the job", "lfp-vit- and the end of the run folder's URL")
    add("machine", "machine type of each replica", DEFAULT_MACHINE)
    add("accelerator", "GPU of each replica, or none", "what the machine type has")
    add("accelerator_count", "GPUs of each replica", "what the machine type has", "N")
    add("replicas", "machines that train together", "1", "N")
    group.add_argument("--spot", action="store_true", help="use spot machines; the run resumes")
    add("service_account", "account that the job runs as", "the project's own", "EMAIL")
    add("tensorboard", "TensorBoard instance that shows the curves: its id or full name", "none")
    add("network", "VPC: projects/NUMBER/global/networks/NAME", "none")
    add("timeout", "longest time that the job may run, such as 12h or 3d", "7d")
    group.add_argument(
        "--label", action="append", metavar="K=V", help="label of the job; may be repeated"
    )
    add("vertex_experiment", "experiment in Vertex AI that tracks the run, or none", "lfp-vit")
    add("vertex_endpoint", "another endpoint; http:// ones get no credentials", metavar="URL")
    group.add_argument(
        "--dry_run",
        action="store_true",
        help="check what can be checked, print the job as YAML for gcloud, and send nothing",
    )
    group.add_argument(
        "--no_wait", action="store_true", help="return when the job is accepted, do not watch it"
    )


def read_vertex_options(arguments: argparse.Namespace, environ: Mapping[str, str]) -> VertexOptions:
    """Return what flags and environment ask for.

    Raises
    ------
    UsageError
        If something is missing, malformed, or does not go together.
    """
    given = {
        name: getattr(arguments, name) or environ.get(variable, "")
        for name, variable in ENVIRONMENT.items()
    }
    for name in ("project", "region", "image"):
        if not given[name]:
            raise UsageError(
                f"--{name} is missing: give it, or set the variable {ENVIRONMENT[name]}"
            )
    machine = arguments.machine or DEFAULT_MACHINE
    count = arguments.accelerator_count
    accelerator, count = resolve_accelerator(
        machine,
        arguments.accelerator,
        None if count is None else _at_least_one("accelerator_count", count),
    )
    tensorboard = given["tensorboard"]
    if tensorboard.isdecimal():
        home = f"projects/{given['project']}/locations/{given['region']}"
        tensorboard = f"{home}/tensorboards/{tensorboard}"
    tracked = given["vertex_experiment"] or "lfp-vit"
    options = VertexOptions(
        project=given["project"],
        region=given["region"],
        image=given["image"],
        name=arguments.name or "",
        machine=machine,
        accelerator=accelerator,
        accelerator_count=count,
        replicas=_at_least_one("replicas", arguments.replicas or "1"),
        spot=arguments.spot,
        service_account=given["service_account"],
        tensorboard=tensorboard,
        network=given["network"],
        timeout=parse_duration(arguments.timeout or "7d"),
        labels=parse_labels(arguments.label or ()),
        vertex_experiment="" if tracked == "none" else tracked,
        vertex_endpoint=given["vertex_endpoint"],
    )
    _check(options)
    return options


def _check(options: VertexOptions) -> None:
    rules = {
        "project": (
            r"(?:[a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]|\d+",
            "a project's id, of lower case letters, digits and -, or its number",
        ),
        "image": (
            r"[\w.-]+(?::\d+)?(?:/[\w.-]+)+(?::[\w.-]+)?(?:@sha256:[0-9a-f]{64})?",
            "an image such as REGION-docker.pkg.dev/PROJECT/REPOSITORY/NAME:TAG",
        ),
        "region": (r"[a-z]+(-[a-z]+)+\d+", "a region such as europe-west4, not a zone"),
        "service_account": (
            r"[a-z0-9][a-z0-9.-]*@(?:[a-z0-9.-]+\.)?gserviceaccount\.com",
            "an address such as NAME@PROJECT.iam.gserviceaccount.com",
        ),
        "tensorboard": (
            r"projects/[^/]+/locations/[^/]+/tensorboards/[^/]+",
            "an id of digits, or projects/P/locations/R/tensorboards/ID",
        ),
        "network": (
            r"projects/\d+/global/networks/[^/]+",
            "projects/NUMBER/global/networks/NAME, with the project's number",
        ),
        "vertex_endpoint": (r"https?://.+", "a URL"),
        "vertex_experiment": (
            r"[a-z0-9][a-z0-9-]{0,59}",
            "up to 60 lower case letters, digits and -",
        ),
    }
    problems = [
        f"--{name} must be {rule}, not {value!r}"
        for name, (pattern, rule) in rules.items()
        if (value := getattr(options, name)) and not re.fullmatch(pattern, value)
    ]
    if options.tensorboard and not options.service_account:
        problems.append(
            "--tensorboard needs --service_account: Vertex AI shows the curves only of jobs that "
            "run as an account of your own"
        )
    if problems:
        raise UsageError("; ".join(problems))


def _at_least_one(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--{name} must be a whole number of 1 or more, not {text!r}")
    return int(text)


def parse_duration(text: str) -> int:
    """Return the seconds of ``90m``, ``12h``, ``3d`` or ``3600s``.

    Raises
    ------
    UsageError
        If it is none of these.
    """
    found = re.fullmatch(r"(\d+)([smhd])", text)
    if not found or not int(found[1]):
        raise UsageError(f"--timeout must be like 90m, 12h or 3d, not {text!r}")
    return int(found[1]) * _SECONDS[found[2]]


def parse_labels(given: Sequence[str]) -> dict[str, str]:
    """Return labels given as ``key=value``.

    Raises
    ------
    UsageError
        If one is not what Google Cloud takes as a label, or is one that every job gets.
    """
    labels = {}
    for text in given:
        key, sign, value = text.partition("=")
        if not sign or not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            raise UsageError(
                f"--label must be key=value in lower case letters, digits, _ and -, not {text!r}"
            )
        if key in _OUR_LABELS:
            raise UsageError(f"--label {key} is set by the trainer itself: take another name")
        labels[key] = value
    return labels
