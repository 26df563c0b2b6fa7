"""What Dataflow says of a job, in this program's words: state, counters, messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from beam_pipeline.plurals import plural

DONE, FAILED, CANCELLED = "done", "failed", "cancelled"
#: States in which a job stays.
TERMINAL = frozenset({DONE, FAILED, CANCELLED, "updated", "drained"})
#: Of a job that Dataflow does not know (any more); no state of its own.
GONE = "gone"
_PREFIX = "JOB_STATE_"
_SECONDS_AN_HOUR = 3600.0
_MB_A_GB = 1024.0


def state_name(api_name: str) -> str:
    """Return ``running`` for ``JOB_STATE_RUNNING``."""
    return api_name.removeprefix(_PREFIX).lower().replace("_", " ")


@dataclass(frozen=True)
class Message:
    """A line of a job's log.

    Attributes
    ----------
    id : str
        Unique in its job.
    time : datetime
    importance : str
        ``basic``, ``warning`` or ``error``.
    """

    id: str
    time: datetime
    importance: str
    text: str


@dataclass(frozen=True)
class Metrics:
    """Numbers of a job at one moment.

    Attributes
    ----------
    counters : mapping
        Those of the pipeline, by name; distributions as ``name_min``, ``name_max``, ``name_sum``.
    service : mapping
        Those of Dataflow itself, such as ``TotalVcpuTime``.
    """

    counters: Mapping[str, int] = field(default_factory=dict)
    service: Mapping[str, float] = field(default_factory=dict)

    @property
    def vcpus(self) -> float | None:
        """Virtual CPUs that work now."""
        return self.service.get("CurrentVcpuCount")

    def usage(self) -> dict[str, float]:
        """Return what is billed so far: vCPU hours, memory in GB hours, shuffled GB."""
        service = self.service
        found = {
            "vcpu_hours": service.get("TotalVcpuTime", 0.0) / _SECONDS_AN_HOUR,
            "memory_gb_hours": service.get("TotalMemoryUsage", 0.0) / _MB_A_GB / _SECONDS_AN_HOUR,
            "shuffled_gb": service.get("TotalShuffleDataProcessed", 0.0),
        }
        return {name: round(value, 4) for name, value in found.items()}

    def rejects(self) -> int:
        """Return the rows that were rejected so far."""
        return sum(n for name, n in self.counters.items() if name.startswith("rejected_"))


def status_line(state: str, metrics: Metrics) -> str:
    """Return one line on how far a job is."""
    counters = metrics.counters
    parts = [state]
    if metrics.vcpus:
        parts.append(f"{metrics.vcpus:g} vCPUs at work")
    parts.append(plural(counters.get("rows_read", 0), "row"))
    parts.append(plural(metrics.rejects(), "reject"))
    parts.append(plural(counters.get("shards", 0), "shard"))
    parts.append(f"{metrics.usage()['vcpu_hours']:.2f} vCPU hours")
    return f"Dataflow: {', '.join(parts)}"


def cause_of(messages: Iterable[Message]) -> str | None:
    """Return what most likely made a job fail, from its error messages, as one line.

    A worker's traceback says it in its last line; that a work item was tried four times says
    nothing.
    """
    errors = [message.text for message in messages if message.importance == "error"]
    for wanted in ("Traceback", ""):
        for text in reversed(errors):
            if wanted in text and "work item was attempted" not in text:
                return exception_line(text)
    return exception_line(errors[-1]) if errors else None


def exception_line(text: str) -> str:
    """Return the exception that a traceback ends with; other text as one line.

    Dataflow puts the worker's name and Beam's ``[while running 'Step']`` around it.
    """
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    start = max((i for i, line in enumerate(lines) if "Traceback (most" in line), default=None)
    if start is not None:
        after = [line for line in lines[start + 1 :] if not line.startswith((" ", "\t"))]
        # "RuntimeError: OSError: ... [while running 'Step']", then what belongs to the worker.
        named = [line for line in after if ":" in line.split(" ")[0]]
        lines = named[:1] or after[:1] or lines
    return " ".join(" ".join(lines).split())
