"""What Dataflow's answers mean: states, counters of both kinds, and why a job failed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from google.cloud.dataflow_v1beta3 import MetricUpdate

from beam_pipeline.launchers.dataflow.job_state import (
    TERMINAL,
    Message,
    Metrics,
    cause_of,
    exception_line,
    state_name,
    status_line,
)
from beam_pipeline.launchers.dataflow.service import read_metrics
from tests.servers.dataflow import counter, service_metric


def updates(*described: dict[str, Any]) -> list[MetricUpdate]:
    return [MetricUpdate(entry) for entry in described]


def distribution(name: str, low: int, high: int, total: int, step: str) -> dict[str, Any]:
    value = {"count": 2, "min": low, "max": high, "sum": total, "mean": total / 2}
    described = counter(name, 0, step)
    del described["scalar"]
    return described | {"distribution": value}


def test_counters_of_several_steps_are_added_and_tentative_ones_give_way() -> None:
    found = read_metrics(
        updates(
            counter("rows_read", 5, "s1"),
            counter("rows_read", 7, "s1", tentative=True),
            counter("rejected_flat", 1, "s1"),
            counter("rejected_flat", 2, "s2"),
            counter("shards", 4, "s3", tentative=True),
            {**counter("rows_read", 99), "name": {"origin": "user", "name": "rows_read"}},
        ),
        "lfp",
    )
    assert found.counters == {"rejected_flat": 3, "rows_read": 5, "shards": 4}
    assert found.rejects() == 3


def test_distributions_are_merged() -> None:
    found = read_metrics(
        updates(
            distribution("shard_bytes", 10, 30, 40, "s1"),
            distribution("shard_bytes", 5, 20, 25, "s2"),
            # The service lists the parts once more, one by one.
            counter("shard_bytes_MAX", 30, "s1"),
            counter("shard_bytes_MEAN", 20, "s1"),
        ),
        "lfp",
    )
    assert found.counters == {"shard_bytes_min": 5, "shard_bytes_max": 30, "shard_bytes_sum": 65}


def test_what_is_billed() -> None:
    found = read_metrics(
        updates(
            service_metric("TotalVcpuTime", 7200),
            service_metric("TotalMemoryUsage", 1024 * 3600),
            service_metric("TotalShuffleDataProcessed", 2.5),
            service_metric("CurrentVcpuCount", 4),
        ),
        "lfp",
    )
    assert found.usage() == {"vcpu_hours": 2.0, "memory_gb_hours": 1.0, "shuffled_gb": 2.5}
    assert "4 vCPUs at work" in status_line("running", found)
    assert status_line("pending", Metrics()) == (
        "Dataflow: pending, 0 rows, 0 rejects, 0 shards, 0.00 vCPU hours"
    )


@pytest.mark.parametrize(
    ("name", "state", "ends"),
    [
        ("JOB_STATE_DONE", "done", True),
        ("JOB_STATE_FAILED", "failed", True),
        ("JOB_STATE_CANCELLED", "cancelled", True),
        ("JOB_STATE_RUNNING", "running", False),
        ("JOB_STATE_RESOURCE_CLEANING_UP", "resource cleaning up", False),
        ("JOB_STATE_UNKNOWN", "unknown", False),
    ],
)
def test_states(name: str, state: str, ends: bool) -> None:
    assert state_name(name) == state
    assert (state in TERMINAL) is ends


CHAINED = """Traceback (most recent call last):
  File "a.py", line 1, in f
KeyError: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "b.py", line 2, in g
beam_pipeline.storage.cloud_path.DamagedError: gs://lab/x: two lines
  of text
[while running 'Survey']
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (CHAINED, "beam_pipeline.storage.cloud_path.DamagedError: gs://lab/x: two lines"),
        (
            "Workflow failed. Causes: no quota\n in us-east1.",
            "Workflow failed. Causes: no quota in us-east1.",
        ),
        ("Traceback (most recent call last):\n  File", "Traceback (most recent call last): File"),
    ],
)
def test_a_message_is_cut_down_to_what_went_wrong(text: str, line: str) -> None:
    assert exception_line(text) == line


def messages(*entries: tuple[str, str]) -> list[Message]:
    now = datetime(2026, 11, 22, tzinfo=UTC)
    return [Message(str(i), now, importance, text) for i, (importance, text) in enumerate(entries)]


def test_a_traceback_says_more_than_the_number_of_attempts() -> None:
    attempts = ("error", "S01 failed: the work item was attempted 4 times")
    traceback = ("error", CHAINED)
    assert "DamagedError" in str(cause_of(messages(("warning", "w"), traceback, attempts)))
    assert cause_of(messages(attempts)) == attempts[1]
    assert cause_of(messages(attempts, ("error", "no quota"), attempts)) == "no quota"
    assert cause_of(messages(("warning", "w"), ("basic", "b"))) is None
