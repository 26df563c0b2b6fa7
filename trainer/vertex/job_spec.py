"""Job specifications of Vertex AI, as the plain dicts that its REST interface and gcloud take.

Nothing here knows a client library; `trainer.vertex.validation` holds what comes out against the
real message types.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from trainer.tune.space import OBJECTIVE, Parameter
from trainer.vertex import container
from trainer.vertex.options import ENVIRONMENT, OUTPUT_LABEL, VertexOptions


@dataclass(frozen=True)
class Work:
    """What the container of a job is to do.

    Attributes
    ----------
    arguments : sequence of str
        Of ``python -m trainer``.
    output : str
        ``gs://`` URL of the run folder, or of the folder of all trials.
    kind : {"train", "tune", "evaluate"}
    """

    arguments: Sequence[str]
    output: str
    kind: str

    @property
    def name(self) -> str:
        """The last part of the output."""
        return self.output.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True)
class Search:
    """How a tuning job searches.

    Attributes
    ----------
    parameters : sequence of Parameter
    max_trials, parallel_trials : int
    """

    parameters: Sequence[Parameter]
    max_trials: int
    parallel_trials: int


def custom_job(options: VertexOptions, work: Work) -> dict[str, Any]:
    """Return a ``CustomJob``: one container that trains or evaluates, on one machine or several."""
    return {
        "displayName": options.name or f"lfp-vit-{work.name}",
        "labels": job_labels(options, work),
        "jobSpec": job_spec(options, work),
    }


def tuning_job(options: VertexOptions, work: Work, search: Search) -> dict[str, Any]:
    """Return a ``HyperparameterTuningJob``; each trial trains in a folder of its own."""
    return {
        "displayName": options.name or f"lfp-vit-{work.name}",
        "labels": job_labels(options, work),
        "studySpec": {
            "metrics": [{"metricId": OBJECTIVE, "goal": "MAXIMIZE"}],
            "parameters": [_parameter(parameter) for parameter in search.parameters],
            # The best epoch's checkpoint is what a trial leaves.
            "measurementSelectionType": "BEST_MEASUREMENT",
        },
        "maxTrialCount": search.max_trials,
        "parallelTrialCount": search.parallel_trials,
        # Without a bound a mistake in the command would be paid for in every trial; but a trial
        # that diverges has failed as well.
        "maxFailedTrialCount": min(search.max_trials, max(3, search.max_trials // 2)),
        "trialJobSpec": job_spec(options, work),
    }


def job_spec(options: VertexOptions, work: Work) -> dict[str, Any]:
    """Return a ``CustomJobSpec``: machines, container, folders and how long it may take."""
    machine: dict[str, Any] = {"machineType": options.machine}
    if options.accelerator:
        machine["acceleratorType"] = options.accelerator
        machine["acceleratorCount"] = options.accelerator_count
    pool = {
        "machineSpec": machine,
        "replicaCount": 1,
        "containerSpec": {
            "imageUri": options.image,
            "args": list(work.arguments),
            "env": [
                {"name": name, "value": value}
                for name, value in _environment(options, work).items()
            ],
        },
    }
    pools = [pool]
    if options.replicas > 1:
        # The first pool holds the one replica that the others gather around.
        pools.append(pool | {"replicaCount": options.replicas - 1})
    scheduling: dict[str, Any] = {
        "timeout": f"{options.timeout}s",
        "restartJobOnWorkerRestart": True,
    }
    if options.spot:
        scheduling["strategy"] = "SPOT"
    spec: dict[str, Any] = {"workerPoolSpecs": pools, "scheduling": scheduling}
    if work.kind != "evaluate":
        spec["baseOutputDirectory"] = {"outputUriPrefix": work.output}
        if options.tensorboard:
            spec["tensorboard"] = options.tensorboard
    if options.service_account:
        spec["serviceAccount"] = options.service_account
    if options.network:
        spec["network"] = options.network
    return spec


def job_labels(options: VertexOptions, work: Work) -> dict[str, str]:
    """Return a job's labels: the user's, and those by which it is found again."""
    ours = {"app": "lfp-vit", "kind": work.kind, OUTPUT_LABEL: output_label(work.output)}
    return {**options.labels, **ours}


def output_label(output: str) -> str:
    """Return a label value that stands for a URL, which is none itself."""
    return hashlib.sha256(output.rstrip("/").encode()).hexdigest()[:32]


def run_id(work: Work) -> str:
    """Return the run's name in Vertex AI Experiments: the output's, in the letters allowed there.

    Two outputs never share one: a few digits of the whole URL are at its end.
    """
    name = re.sub(r"[^a-z0-9-]+", "-", work.name.lower()).strip("-")[:48]
    return f"{name or 'run'}-{output_label(work.output)[:8]}"


def as_yaml(job: Mapping[str, Any], options: VertexOptions) -> str:
    """Return a job as the file that ``gcloud ... create --config`` takes, with that command."""
    if "studySpec" in job:
        command = ["gcloud", "ai", "hp-tuning-jobs", "create"]
        names = ("studySpec", "maxFailedTrialCount", "trialJobSpec")
        content = {name: job[name] for name in names}
        counts = [
            f"--max-trial-count={job['maxTrialCount']}",
            f"--parallel-trial-count={job['parallelTrialCount']}",
        ]
    else:
        command = ["gcloud", "ai", "custom-jobs", "create"]
        content, counts = dict(job["jobSpec"]), []
    labels = ",".join(f"{key}={value}" for key, value in job["labels"].items())
    command += [f"--project={options.project}", f"--region={options.region}", *counts]
    command += [f"--display-name={job['displayName']}", f"--labels={labels}", "--config=FILE"]
    # Pools that are alike are written out twice: not every reader of YAML knows its anchors.
    text = yaml.dump(content, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)
    return f"# {shlex.join(command)}\n{text}"


class _PlainDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _environment(options: VertexOptions, work: Work) -> dict[str, str]:
    environment = {}
    if options.accelerator:
        environment[container.NEEDS_GPU] = "1"
    processes = max(1, options.accelerator_count)
    if work.kind != "evaluate" and processes * options.replicas > 1:
        environment[container.PROCESSES] = str(processes)
    if options.vertex_experiment and work.kind != "evaluate":
        environment |= {
            container.RUN: run_id(work),
            container.EXPERIMENT: options.vertex_experiment,
            ENVIRONMENT["project"]: options.project,
            ENVIRONMENT["region"]: options.region,
        }
        if options.tensorboard:
            environment[ENVIRONMENT["tensorboard"]] = options.tensorboard
        if options.vertex_endpoint:
            environment[ENVIRONMENT["vertex_endpoint"]] = options.vertex_endpoint
    return environment


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        # The flag of `train`: the service appends `--ID=VALUE` to the container's arguments.
        "parameterId": parameter.name,
        "doubleValueSpec": {"minValue": parameter.low, "maxValue": parameter.high},
        "scaleType": "UNIT_LOG_SCALE" if parameter.log else "UNIT_LINEAR_SCALE",
    }
