"""The cost model against sums done by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from beam_pipeline.__main__ import main
from beam_pipeline.launchers.dataflow.cost import (
    Prices,
    TrialWork,
    Workers,
    estimate,
    workers_needed,
)
from tests import tables

WORK = TrialWork(0.001, 20_000, 20_000, 60_000, shuffled_bytes=500, passes=2, block_trials=10)
FREE = Prices(*[0.0] * 7)
WORKERS = Workers(
    most=10,
    vcpus=4,
    memory_gb=16,
    disk_gb=50,
    start_seconds=100,
    efficiency=0.5,
    network_gb_second=1.0,
)


def test_a_job_bound_by_its_processors() -> None:
    # 1 ms a trial on half of 4 vCPUs: a worker does 2,000 trials a second, 10 do 20,000.
    job = estimate(20_000_000, WORK, WORKERS, FREE)
    assert job.workers == 10
    assert job.seconds == pytest.approx(100 + 1000)
    assert job.vcpu_hours == pytest.approx(10 * 4 * 1100 / 3600)
    assert (job.shuffled_gb, job.segments_gb, job.shards_gb) == pytest.approx((10, 400, 1200))
    assert job.dollars == 0


def test_a_job_bound_by_its_network() -> None:
    slow = replace(WORKERS, network_gb_second=0.14)
    # 140 kB a trial: read, stored, read twice, written.
    job = estimate(20_000_000, WORK, slow, FREE)
    assert job.seconds == pytest.approx(100 + 2000)


@pytest.mark.parametrize(
    ("price", "dollars"),
    [
        ("vcpu_hour", 10 * 4 * 1100 / 3600),
        ("memory_gb_hour", 10 * 16 * 1100 / 3600),
        ("disk_gb_hour", 10 * 50 * 1100 / 3600),
        ("shuffle_gb", 10),
        ("stored_gb_month", 400 / 30),
        ("read_operation", 2 * 20_000_000 / 10),
        ("scanned_gb", 400),
    ],
)
def test_each_price_counts_once(price: str, dollars: float) -> None:
    prices = replace(FREE, **{price: 1.0})
    assert estimate(20_000_000, WORK, WORKERS, prices, bigquery=True).dollars == pytest.approx(
        dollars
    )


def test_parquet_is_not_billed_for_scanning() -> None:
    prices = replace(FREE, scanned_gb=1.0)
    assert estimate(20_000_000, WORK, WORKERS, prices).dollars == 0


def test_storing_the_dataset_is_said_by_the_month() -> None:
    prices = replace(FREE, stored_gb_month=0.02)
    assert estimate(20_000_000, WORK, WORKERS, prices).stored_dollars_month == pytest.approx(24)


@pytest.mark.parametrize(
    ("seconds", "workers"), [(0, 1), (600, 1), (601, 2), (6000, 10), (1e9, 20)]
)
def test_workers_are_as_many_as_the_work_wants(seconds: float, workers: int) -> None:
    assert workers_needed(seconds, 20) == workers


def test_more_trials_never_cost_less() -> None:
    jobs = [estimate(10**power, WORK) for power in range(4, 10)]
    assert sorted(jobs, key=lambda job: job.dollars) == jobs


def test_plan_says_what_a_job_would_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tables.write(tables.make_table(), tmp_path / "table.parquet")
    assert main(["plan", "--input", str(source), *tables.FLAGS]) == 0
    (line,) = (
        line for line in capsys.readouterr().out.splitlines() if line.startswith("Expected on Data")
    )
    # So few trials are done by one worker, in the time that it takes to start.
    assert line.startswith("Expected on Dataflow: 4 min with 1 n2-standard-4 worker, ")
    shuffled, stored = 160 * 300, 160 * 4 * 625
    assert f"({shuffled / 1e3:.1f} kB shuffled, {stored / 1e3:.1f} kB of temporary objects)" in line
