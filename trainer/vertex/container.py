"""What Vertex AI tells a container, by environment variables.

``AIP_*`` exist where the job has a ``baseOutputDirectory``, ``CLUSTER_SPEC`` in every replica. The
variables `PROCESSES`, `NEEDS_GPU`, `RUN` and `EXPERIMENT` are ours: `trainer.vertex.job_spec` puts
them into the job.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from trainer.errors import TrainerError

#: Processes that train on each replica; set where there is more than one in all.
PROCESSES = "TRAINER_PROCESSES_PER_REPLICA"
#: Set where the machine has GPUs that are paid for.
NEEDS_GPU = "TRAINER_NEEDS_GPU"
#: Name of the run in Vertex AI Experiments; nothing is tracked there without it.
RUN = "VERTEX_RUN"
EXPERIMENT = "VERTEX_EXPERIMENT"
#: Where metrics for a hyperparameter tuning job are written; cloudml-hypertune reads it, too.
METRIC_FILE = "CLOUD_ML_HP_METRIC_FILE"
TRIAL = "CLOUD_ML_TRIAL_ID"
CHECKPOINTS = "AIP_CHECKPOINT_DIR"
MODEL = "AIP_MODEL_DIR"
TENSORBOARD_LOGS = "AIP_TENSORBOARD_LOG_DIR"


def run_folder(environ: Mapping[str, str]) -> str | None:
    """Return the folder whose ``checkpoints`` are AIP_CHECKPOINT_DIR; None where it is not set.

    A trial of a tuning job has one of its own, ``BASE/TRIAL``.
    """
    folder = environ.get(CHECKPOINTS, "").rstrip("/")
    return folder.rpartition("/")[0] or None


def is_trial(environ: Mapping[str, str]) -> bool:
    """Return whether the container runs a trial of a hyperparameter tuning job."""
    return TRIAL in environ or METRIC_FILE in environ


@dataclass(frozen=True)
class Replica:
    """A machine among those that train together.

    Attributes
    ----------
    index, n_replicas : int
    address : str
        Host and port of the first replica.
    processes : int
        Of each replica.
    """

    index: int
    n_replicas: int
    address: str
    processes: int

    @property
    def torchrun(self) -> list[str]:
        """The flags of ``torch.distributed.run`` that start this replica's processes."""
        if self.n_replicas == 1:
            return ["--standalone", f"--nproc_per_node={self.processes}"]
        host, _, port = self.address.rpartition(":")
        return [
            f"--nnodes={self.n_replicas}",
            f"--node_rank={self.index}",
            f"--nproc_per_node={self.processes}",
            f"--master_addr={host}",
            f"--master_port={port}",
        ]


def read_replica(environ: Mapping[str, str]) -> Replica | None:
    """Return which of the machines of a job this is; None where one process trains alone.

    Raises
    ------
    TrainerError
        If CLUSTER_SPEC is not what Vertex AI documents, or the number of processes is none.
    """
    if PROCESSES not in environ or "LOCAL_RANK" in environ:
        # The second is so in a process that torchrun has started.
        return None
    text = environ[PROCESSES]
    if not text.isdecimal() or int(text) < 1:
        raise TrainerError(f"{PROCESSES} must be a whole number of 1 or more, not {text!r}")
    processes = int(text)
    try:
        spec = json.loads(environ.get("CLUSTER_SPEC") or "{}")
        # workerpool0 is the first replica; the others are in workerpool1.
        cluster: dict[str, list[str]] = spec.get("cluster", {})
        pools = sorted(cluster)
        hosts = [host for pool in pools for host in cluster[pool]]
        if len(hosts) < 2:
            return Replica(0, 1, "", processes) if processes > 1 else None
        task = spec["task"]
        before = sum(len(cluster[pool]) for pool in pools[: pools.index(task["type"])])
        return Replica(before + int(task["index"]), len(hosts), hosts[0], processes)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TrainerError(
            f"CLUSTER_SPEC is not what Vertex AI documents ({error!r}): {environ['CLUSTER_SPEC']}"
        ) from error
