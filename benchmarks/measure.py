"""Wall time, processor time and memory of a command with all its processes; the machine."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

SAMPLING_SECONDS = 0.5
PACKAGES = (
    "numpy",
    "scipy",
    "pyarrow",
    "apache-beam",
    "pandas",
    "webdataset",
    "datasets",
    "litdata",
    "mosaicml-streaming",
    "vit-pytorch",
    "torch",
)


class CommandError(RuntimeError):
    """A measured command failed; the message holds the end of its output."""


@dataclass(frozen=True)
class Usage:
    """What a command took.

    Attributes
    ----------
    wall : float
        Seconds from its start to its end, the interpreter's start and imports included.
    cpu : float
        User and system seconds of all its processes.
    memory : int
        Highest sum, over its processes at one time, of the proportional set size (PSS) in bytes:
        a page that n processes share counts 1/n in each, so shared memory is counted once.
        Pages of mapped files count, too.
    processes : int
        Most processes at one time.
    """

    wall: float
    cpu: float
    memory: int
    processes: int


def run(command: Sequence[str], cwd: Path, env: Mapping[str, str], log: Path) -> Usage:
    """Run a command to its end and measure it.

    Raises
    ------
    CommandError
        If its exit status is not 0.
    """
    memory = processes = 0
    cpu_of: dict[tuple[int, float], float] = {}
    with log.open("w") as output:
        started = time.perf_counter()
        child = subprocess.Popen(
            command, cwd=cwd, env=dict(env), stdout=output, stderr=subprocess.STDOUT
        )
        root = psutil.Process(child.pid)
        while (ended := _wait(child)) is None:
            seen = _proportional_set_sizes(root, cpu_of)
            memory, processes = max(memory, sum(seen)), max(processes, len(seen))
        wall = time.perf_counter() - started
    if child.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise CommandError(f"{' '.join(command)} ended with {child.returncode}:\n{tail}")
    # A process counts in its parent's times only if the parent waited for it; the samples miss the
    # last fraction of a second. The larger of both is nearest to the truth.
    return Usage(wall, max(ended, sum(cpu_of.values())), memory, processes)


def check_disk(folder: Path, needed: float) -> None:
    """Refuse to start where the disk would fill up; `needed` is in bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SystemExit(
            f"{folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed: choose "
            "another --folder or fewer --rows"
        )


def _wait(child: subprocess.Popen[bytes]) -> float | None:
    """Wait up to the sampling interval, without losing milliseconds at the end of the child.

    Returns
    -------
    float or None
        Processor time of the child and of all that it waited for; None if it still runs.
    """
    until = time.perf_counter() + SAMPLING_SECONDS
    while True:
        pid, status, used = os.wait4(child.pid, os.WNOHANG)
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return used.ru_utime + used.ru_stime
        if time.perf_counter() >= until:
            return None
        time.sleep(0.02)


def _proportional_set_sizes(
    root: psutil.Process, cpu_of: dict[tuple[int, float], float]
) -> list[int]:
    """Return the PSS of every process of the tree; note the processor time of each."""
    sizes = []
    for process in [root, *root.children(recursive=True)]:
        # Processes may end while they are looked at.
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            cpu_of[process.pid, process.create_time()] = times.user + times.system
            # psutil reads it from /proc/PID/smaps_rollup.
            sizes.append(process.memory_full_info().pss)
    return sizes


def middle(usages: Sequence[Usage]) -> Usage:
    """Return the medians of repeated runs; of memory and processes the highest."""
    return Usage(
        median(usage.wall for usage in usages),
        median(usage.cpu for usage in usages),
        max(usage.memory for usage in usages),
        max(usage.processes for usage in usages),
    )


def disk_write_speed(folder: Path, n_bytes: int) -> float:
    """Return bytes a second of one sequential write, flushed to the disk."""
    block = os.urandom(1 << 24)
    path = folder / "disk_speed"
    started = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(n_bytes // len(block)):
            file.write(block)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    path.unlink()
    return n_bytes / seconds


def machine(folder: Path, n_bytes: int) -> dict[str, str]:
    """Describe the machine; `n_bytes` are written to `folder` to time its disk."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    total = psutil.virtual_memory().total
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{total / 2**30:.0f} GiB",
        "disk": f"{disk_write_speed(folder, n_bytes) / 1e6:.0f} MB/s written and flushed",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "system": platform.platform(),
    }


_VERSIONS = f"""
import json, platform
from importlib.metadata import PackageNotFoundError, version
found = {{"python": platform.python_version()}}
for name in {PACKAGES}:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def versions(python: str) -> dict[str, str]:
    """Return the versions of the packages that an interpreter has of those that matter."""
    found = subprocess.run([python, "-c", _VERSIONS], capture_output=True, text=True, check=True)
    return dict(json.loads(found.stdout))
