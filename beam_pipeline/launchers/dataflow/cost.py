"""What a Dataflow job takes: a model of its time, its traffic and its price.

Every price and rate is a field, so that another region's list, or a measurement of one's own,
replaces it. What the defaults were measured on stands in docs/cloud.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from beam_pipeline.launchers.dataflow.defaults import DISK_GB, MAX_WORKERS, MEMORY_GB, VCPUS

GB = 1e9
HOUR = 3600.0
#: Days that a segment lives at most: the run deletes it.
STORED_DAYS = 1.0


@dataclass(frozen=True)
class Prices:
    """US dollars; list prices of a cheap region, which change: look yours up.

    Attributes
    ----------
    vcpu_hour, memory_gb_hour, disk_gb_hour : float
        Of Dataflow's batch workers.
    shuffle_gb : float
        Data that Dataflow Shuffle processes.
    stored_gb_month : float
        Cloud Storage, standard class.
    read_operation : float
        One request of class B; the writes are too few to count.
    scanned_gb : float
        BigQuery Storage Read API; 0 for Parquet.
    """

    vcpu_hour: float = 0.056
    memory_gb_hour: float = 0.003557
    disk_gb_hour: float = 0.000054
    shuffle_gb: float = 0.011
    stored_gb_month: float = 0.020
    read_operation: float = 0.004 / 10_000
    scanned_gb: float = 1.1 / 1000


@dataclass(frozen=True)
class Workers:
    """The machines of a job.

    Attributes
    ----------
    most : int
        Upper limit of autoscaling.
    vcpus, memory_gb, disk_gb : float
        Of one worker.
    start_seconds : float
        Until the first worker works: machine, container, installation.
    efficiency : float
        Share of the virtual CPUs' time that goes into the job's own work.
    network_gb_second : float
        What one worker reads from and writes to Cloud Storage.
    """

    most: int = MAX_WORKERS
    vcpus: int = VCPUS
    memory_gb: float = MEMORY_GB
    disk_gb: float = DISK_GB
    start_seconds: float = 240.0
    efficiency: float = 0.5
    network_gb_second: float = 0.25


@dataclass(frozen=True)
class TrialWork:
    """What one trial costs.

    Attributes
    ----------
    cpu_seconds : float
        Reading, screening, both passes over the spectrogram, encoding.
    input_bytes : float
        As they are read from the table.
    segment_bytes : float
        Samples stored between the passes; written once, read `passes` times.
    shard_bytes : float
        In the finished dataset.
    shuffled_bytes : float
        Pointers, numbers and digests that the runner groups.
    passes : float
        Times that the segment is read.
    block_trials : int
        Trials that are read by one request.
    """

    cpu_seconds: float
    input_bytes: float
    segment_bytes: float
    shard_bytes: float
    shuffled_bytes: float = 300.0
    passes: float = 1.7
    block_trials: int = 32

    @property
    def traffic_bytes(self) -> float:
        """Bytes that cross the network for Cloud Storage."""
        return self.input_bytes + (1 + self.passes) * self.segment_bytes + self.shard_bytes


@dataclass(frozen=True)
class Estimate:
    """What a job takes."""

    n_trials: int
    workers: int
    seconds: float
    vcpu_hours: float
    shuffled_gb: float
    segments_gb: float
    shards_gb: float
    dollars: float
    stored_dollars_month: float


def estimate(
    n_trials: int,
    work: TrialWork,
    workers: Workers | None = None,
    prices: Prices | None = None,
    bigquery: bool = False,
) -> Estimate:
    """Estimate a job's time and price.

    Parameters
    ----------
    n_trials : int
    work : TrialWork
    workers : Workers, optional
    prices : Prices, optional
    bigquery : bool
        Whether the table is read by the Storage Read API.
    """
    workers, prices = workers or Workers(), prices or Prices()
    computing = work.cpu_seconds / (workers.efficiency * workers.vcpus)
    busy = n_trials * max(computing, work.traffic_bytes / (workers.network_gb_second * GB))
    n_workers = workers_needed(busy, workers.most)
    seconds = workers.start_seconds + busy / n_workers
    machine_hours = n_workers * seconds / HOUR
    machines = machine_hours * (
        workers.vcpus * prices.vcpu_hour
        + workers.memory_gb * prices.memory_gb_hour
        + workers.disk_gb * prices.disk_gb_hour
    )
    shuffled = n_trials * work.shuffled_bytes / GB
    segments = n_trials * work.segment_bytes / GB
    shards = n_trials * work.shard_bytes / GB
    reads = work.passes * n_trials / work.block_trials
    traffic = (
        shuffled * prices.shuffle_gb
        + segments * prices.stored_gb_month * STORED_DAYS / 30
        + reads * prices.read_operation
        + (n_trials * work.input_bytes / GB * prices.scanned_gb if bigquery else 0.0)
    )
    return Estimate(
        n_trials,
        n_workers,
        seconds,
        machine_hours * workers.vcpus,
        shuffled,
        segments,
        shards,
        machines + traffic,
        shards * prices.stored_gb_month,
    )


def workers_needed(worker_seconds: float, most: int, target_seconds: float = 600.0) -> int:
    """Return how many workers end the job in about `target_seconds` of work, up to a limit.

    With more, each would spend most of what it is billed for on starting.
    """
    return max(1, min(most, math.ceil(worker_seconds / target_seconds)))
