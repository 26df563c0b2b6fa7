"""Whole runs on Dataflow: its API, Cloud Storage and the workers are on loopback.

Beam's own DataflowRunner builds, stages and submits the job. Where the job is run, two workers in
processes of their own run it from what was staged, and from nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import apache_beam
import numpy
import pytest
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.portable_runner import PipelineResult
from apache_beam.runners.portability.stager import Stager
from google.api_core.exceptions import RetryError
from google.auth.exceptions import RefreshError
from google.cloud.dataflow_v1beta3 import MetricsV1Beta3Client
from google.cloud.storage import Bucket

from beam_pipeline import console
from beam_pipeline.__main__ import main
from beam_pipeline.launchers.dataflow import follow, launch, service
from beam_pipeline.launchers.dataflow.submit import SubmissionError
from beam_pipeline.launchers.dataflow.submit import submit as submit_job
from beam_pipeline.launchers.source_package import PackagingError, copy_project
from tests import tables
from tests.servers import faults
from tests.servers.boot import install
from tests.servers.dataflow import DataflowServer, counter, service_metric
from tests.servers.gcs import GcsServer
from tests.servers.iam import ACT_AS, IamServer
from tests.servers.workers import JobServer, StagedJobExecutor, WorkerPool

ROOT = Path(__file__).resolve().parents[1]
TABLE, OUTPUT = "gs://lab/table.parquet", "gs://lab/dataset"
TRIALS = ["--block_trials", "8"]
WORKER = "worker@lab-test.iam.gserviceaccount.com"


@pytest.fixture
def dataflow() -> Iterator[DataflowServer]:
    server = DataflowServer()
    yield server
    server.close()


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[WorkerPool]:
    pool = WorkerPool(tmp_path)
    yield pool
    pool.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.05)


@pytest.fixture(scope="module")
def table_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("table") / "table.parquet"
    # Several row groups, so that both workers read.
    return tables.write(tables.make_table(trials=6), path, row_group_size=24).read_bytes()


@pytest.fixture
def table(gcs: GcsServer, table_bytes: bytes) -> str:
    gcs.put(TABLE, table_bytes)
    return TABLE


@pytest.fixture(scope="module")
def local_digests(table_bytes: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("local")
    (folder / "table.parquet").write_bytes(table_bytes)
    command = ["preprocess", "--input", str(folder / "table.parquet")]
    output = folder / "dataset"
    assert (
        main([*command, "--output", str(output), *tables.FLAGS, *TRIALS, *tables.IN_PROCESS]) == 0
    )
    return digests({str(p.relative_to(output)): p.read_bytes() for p in output.rglob("*.*")})


def digests(files: dict[str, bytes]) -> dict[str, str]:
    """SHA-256 of every file but run.json, which holds times and host."""
    return {
        name: hashlib.sha256(content).hexdigest()
        for name, content in sorted(files.items())
        if name != "run.json"
    }


def command(dataflow: DataflowServer, *flags: str) -> list[str]:
    return [
        *("preprocess", "--input", TABLE, "--output", OUTPUT, *tables.FLAGS, *TRIALS),
        *("--runner", "DataflowRunner", "--region", "europe-west4"),
        *("--dataflow_endpoint", dataflow.endpoint, *flags),
    ]


def work_folders(gcs: GcsServer) -> set[str]:
    return {name.split("/")[0] for name in gcs.list(OUTPUT) if name.startswith(".work-")}


def test_a_job_run_from_what_was_staged_makes_the_bytes_of_a_local_run(
    gcs: GcsServer,
    table: str,
    dataflow: DataflowServer,
    pool: WorkerPool,
    local_digests: dict[str, str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    dataflow.executor = StagedJobExecutor(gcs, pool)
    status = main(command(dataflow))
    captured = capfd.readouterr()
    assert status == 0, captured.err
    assert digests(gcs.list(OUTPUT)) == local_digests

    (job,) = dataflow.jobs
    run = json.loads(gcs.read(f"{OUTPUT}/run.json"))
    assert run["runner"] == "DataflowRunner"
    assert run["job_id"] == job.id
    assert run["counters"]["rows_read"] == run["counters"]["trials_encoded"] == 96
    link = f"https://console.cloud.google.com/dataflow/jobs/europe-west4/{job.id}?project=lab-test"
    assert link in captured.err
    assert "Traceback" not in captured.err
    assert len(pool.started) == 2

    # What stands is not made again, and no job is submitted for it.
    assert main(command(dataflow)) == 0
    assert "nothing to do" in capfd.readouterr().out
    assert len(dataflow.jobs) == 1


def test_beams_job_server_on_two_workers_makes_the_bytes_of_a_local_run(
    gcs: GcsServer,
    table: str,
    pool: WorkerPool,
    tmp_path: Path,
    local_digests: dict[str, str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    server = JobServer(tmp_path / "staging")
    flags = [
        *("preprocess", "--input", TABLE, "--output", OUTPUT, *tables.FLAGS, *TRIALS),
        *("--runner", "PortableRunner", "--job_endpoint", server.endpoint),
        *("--environment_type", "EXTERNAL", "--environment_config", pool.address),
    ]
    status = main(flags)
    assert status == 0, capfd.readouterr().err
    assert digests(gcs.list(OUTPUT)) == local_digests
    assert len(pool.started) == 2
    run = json.loads(gcs.read(f"{OUTPUT}/run.json"))
    assert run["counters"]["rows_read"] == run["counters"]["trials_written"] == 96
    server.close()


def test_an_interruption_ends_the_job_of_a_job_server(
    gcs: GcsServer,
    table: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    server = JobServer(tmp_path / "staging")
    monkeypatch.setattr(PipelineResult, "wait_until_finish", interrupt)
    flags = [
        *("preprocess", "--input", TABLE, "--output", OUTPUT, *tables.FLAGS, *TRIALS),
        *("--runner", "PortableRunner", "--job_endpoint", server.endpoint),
        *("--environment_type", "EXTERNAL", "--environment_config", "localhost:1"),
    ]
    assert main(flags) == 1
    assert last_line(capfd) == "error: interrupted; the same command starts again"
    assert server.cancelled == 1
    server.close()


def test_the_job_that_is_submitted(
    gcs: GcsServer, table: str, dataflow: DataflowServer, iam: IamServer
) -> None:
    dataflow.states = ["RUNNING", "CANCELLED"]
    iam.accounts[WORKER] = [ACT_AS]
    flags = {
        "machine_type": "c3-standard-8",
        "max_num_workers": "7",
        "disk_size_gb": "99",
        "network": "lab",
        "subnetwork": "regions/europe-west4/subnetworks/private",
        "service_account_email": WORKER,
        "sdk_container_image": "europe-docker.pkg.dev/lab-test/lfp/beam:2",
        "job_name": "mine",
        "temp_location": "gs://lab/scratch",
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    assert main(command(dataflow, *words, "--labels=team=lfp", "--no_use_public_ips")) == 1
    (job,) = dataflow.jobs
    assert (job.project, job.region) == ("lab-test", "europe-west4")
    assert job.body["name"] == "mine"
    labels = job.body["labels"]
    assert re.fullmatch("[0-9a-f]{12}", labels.pop("lfp-work"))
    assert labels == {"team": "lfp", "application": "lfp-vit"}
    environment = job.body["environment"]
    assert environment["serviceAccountEmail"] == flags["service_account_email"]
    (workers,) = environment["workerPools"]
    assert workers["machineType"] == "c3-standard-8"
    assert workers["autoscalingSettings"]["maxNumWorkers"] == 7
    assert workers["diskSizeGb"] == 99
    assert workers["network"] == "lab"
    assert workers["subnetwork"] == flags["subnetwork"]
    assert workers["workerHarnessContainerImage"] == flags["sdk_container_image"]
    assert workers["numThreadsPerWorker"] == 4
    assert workers["ipConfiguration"] in (2, "WORKER_IP_PRIVATE")
    locations = {package["name"]: package["location"] for package in workers["packages"]}
    assert locations["workflow.tar.gz"].startswith("storage.googleapis.com/lab/scratch/mine.")

    staged = {
        name.rpartition("/")[2]: content for name, content in gcs.list("gs://lab/scratch").items()
    }
    assert set(staged) == {*locations, "pipeline.pb"}
    pipeline = beam_runner_api_pb2.Pipeline.FromString(staged["pipeline.pb"])
    top = pipeline.components.transforms[pipeline.root_transform_ids[0]].subtransforms or (
        pipeline.root_transform_ids
    )
    names = {pipeline.components.transforms[name].unique_name for name in top}
    assert {"Pieces", "ReadTrials", "SurveyBlocks", "PlanLayout", "WriteShards"} <= names
    # Dataflow takes at most 10 MB; most of it must not depend on the table.
    assert len(staged["pipeline.pb"]) < 300_000


def test_a_dry_run_shows_the_job_and_leaves_nothing(
    gcs: GcsServer, table: str, dataflow: DataflowServer, capfd: pytest.CaptureFixture[str]
) -> None:
    before = set(gcs.objects)
    assert main(command(dataflow, "--dry_run", "--machine_type", "c3-standard-8")) == 0
    shown = json.loads(capfd.readouterr().out)
    assert shown["project"] == "lab-test"
    assert shown["flags"]["machine_type"] == "c3-standard-8"
    assert shown["environment"]["workerPools"][0]["machineType"] == "c3-standard-8"
    assert {"workflow.tar.gz", "pipeline.pb"} <= set(shown["staged_files"])
    steps = [step["name"].split("/")[0] for step in shown["steps"]]
    assert steps.index("ReadTrials") < steps.index("SurveyBlocks") < steps.index("WriteShards")
    assert set(gcs.objects) == before
    assert dataflow.jobs == []


def test_a_dry_run_is_of_dataflow(
    gcs: GcsServer, table: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["preprocess", "--input", TABLE, "--output", OUTPUT, *tables.FLAGS, "--dry_run"]) == 2
    )
    assert "plan command" in last_line(capfd)


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Otherwise the metadata server has some.
    monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", True)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))


def last_line(capfd: pytest.CaptureFixture[str]) -> str:
    captured = capfd.readouterr().err
    assert "Traceback (most recent" not in captured
    return captured.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--machine_tipe", "n2-standard-4"], "did you mean --machine_type?"),
        (["--machine_type", "n2_standard_4"], "did you mean n2-standard-4?"),
        (["--region", "europe-west4-b"], "did you mean --region europe-west4?"),
        (["--impersonate_service_account", "a@b"], "gcloud auth application-default login"),
    ],
)
@pytest.mark.usefixtures("no_credentials")
def test_wrong_flags_are_one_line_and_status_2(
    gcs: GcsServer,
    dataflow: DataflowServer,
    capfd: pytest.CaptureFixture[str],
    flags: list[str],
    said: str,
) -> None:
    try:
        status = main(command(dataflow, *flags))
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2
    assert said in last_line(capfd)
    assert gcs.objects == {}


@pytest.mark.usefixtures("no_credentials")
def test_what_is_wrong_with_the_flags_is_said_at_once_and_needs_neither_project_nor_credentials(
    gcs: GcsServer,
    dataflow: DataflowServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT")
    wrong = ["--machine_type", "big", "--region", "Mars", "--temp_location", "gs://Lab/t"]
    assert main(command(dataflow, "--dry_run", *wrong)) == 2
    said = last_line(capfd)
    assert all(part in said for part in ("'big'", "'Mars'", "'gs://Lab/t'")), said
    assert main(command(dataflow, "--dry_run")) == 1
    said = last_line(capfd)
    assert "no Google credentials found, which --dry_run needs as well" in said
    assert "gcloud auth application-default login" in said


@pytest.mark.parametrize("elsewhere", [(400, "FAILED_PRECONDITION"), (404, "NOT_FOUND")])
@pytest.mark.parametrize("dry_run", [[], ["--dry_run"]])
def test_a_region_that_dataflow_does_not_have_is_one_line_before_anything_is_staged(
    gcs: GcsServer,
    table: str,
    dataflow: DataflowServer,
    capfd: pytest.CaptureFixture[str],
    elsewhere: tuple[int, str],
    dry_run: list[str],
) -> None:
    dataflow.elsewhere = elsewhere
    before = dict(gcs.objects)
    assert main(command(dataflow, "--region", "mars-north1", *dry_run)) == 1
    said = last_line(capfd)
    assert said.startswith("error: --region mars-north1: Dataflow has no such region")
    assert "invalid regional endpoint (mars-north1)" in said
    assert "such as us-central1 or europe-west4" in said
    assert gcs.objects == before
    assert dataflow.jobs == []


def test_region_account_and_buckets_are_checked_together(
    gcs: GcsServer,
    table: str,
    dataflow: DataflowServer,
    iam: IamServer,
    capfd: pytest.CaptureFixture[str],
) -> None:
    flags = ["--region", "mars-north1", "--temp_location", "gs://typo/t"]
    assert main(command(dataflow, *flags, "--service_account_email", WORKER)) == 1
    said = last_line(capfd)
    assert "--region mars-north1: Dataflow has no such region" in said
    assert f"--service_account_email {WORKER}: there is no such account" in said
    assert "there is no bucket gs://typo" in said
    assert dataflow.jobs == []


def test_dataflow_that_may_not_be_used_is_said_before_anything_is_staged(
    gcs: GcsServer, table: str, dataflow: DataflowServer, capfd: pytest.CaptureFixture[str]
) -> None:
    dataflow.elsewhere = (403, "PERMISSION_DENIED")
    dataflow.regions = ()
    before = dict(gcs.objects)
    assert main(command(dataflow)) == 1
    assert last_line(capfd).startswith("error: Dataflow answered 403: ")
    assert gcs.objects == before


@pytest.mark.parametrize("question", ["test_iam_permissions", "reload"])
def test_buckets_that_do_not_answer_are_one_line(
    gcs: GcsServer,
    table: str,
    dataflow: DataflowServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    question: str,
) -> None:
    def wait_in_vain(*_: object, **__: object) -> None:
        raise RetryError("Timeout of 120.0s exceeded", cause=None)

    # Two minutes of the client's own patience.
    monkeypatch.setattr(Bucket, question, wait_in_vain)
    assert main(command(dataflow)) == 1
    assert "cannot be asked (Timeout of 120.0s exceeded" in last_line(capfd)


def test_flags_of_dataflow_are_refused_by_a_local_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    local = ["preprocess", "--input", "x", "--output", str(tmp_path / "out"), *tables.FLAGS]
    assert main([*local, "--machine_type", "n2-standard-4"]) == 2
    assert "--machine_type is for Dataflow: add --runner DataflowRunner" in last_line(capfd)


TRACEBACK = """Error message from worker: generic::unknown: Traceback (most recent call last):
  File "apache_beam/runners/common.py", line 1498, in process
  File "beam_pipeline/screening.py", line 7, in screen
OSError: no space left [while running 'ReadTrials/ParDo(_ScreenRows)']

passed through:
==>
    dist_proc/dax/workflow/worker/fnapi_service_impl.cc:1532
"""
ATTEMPTS = "Workflow failed. The work item was attempted 4 times without success."


def test_a_failed_job_says_why(
    gcs: GcsServer, table: str, dataflow: DataflowServer, capfd: pytest.CaptureFixture[str]
) -> None:
    dataflow.states = ["PENDING", "RUNNING", "FAILED"]
    dataflow.messages = [("WARNING", "quota is short"), ("ERROR", TRACEBACK), ("ERROR", ATTEMPTS)]
    assert main(command(dataflow)) == 1
    captured = capfd.readouterr().err
    assert "Dataflow warning: quota is short" in captured
    last = captured.splitlines()[-1]
    assert last.startswith(f"error: job {dataflow.jobs[0].id} failed: OSError: no space left")
    assert "see https://console.cloud.google.com/dataflow/jobs/europe-west4/" in last
    assert "dataset.json" not in gcs.list(OUTPUT)


def test_a_failure_without_a_word_is_waited_for_and_said(
    gcs: GcsServer, table: str, dataflow: DataflowServer, capfd: pytest.CaptureFixture[str]
) -> None:
    dataflow.states = ["FAILED"]
    assert main(command(dataflow)) == 1
    assert "failed: Dataflow does not say why" in last_line(capfd)


def test_a_cancelled_job_says_so(
    gcs: GcsServer, table: str, dataflow: DataflowServer, capfd: pytest.CaptureFixture[str]
) -> None:
    dataflow.states = ["RUNNING", "CANCELLING", "CANCELLED"]
    assert main(command(dataflow)) == 1
    assert f"job {dataflow.jobs[0].id} was cancelled; no dataset was made" in last_line(capfd)


def test_a_refused_job_says_why(
    gcs: GcsServer, table: str, dataflow: DataflowServer, capfd: pytest.CaptureFixture[str]
) -> None:
    dataflow.refuse = (403, "Dataflow API has not been used in project lab-test before")
    assert main(command(dataflow)) == 1
    assert "Dataflow API has not been used in project lab-test" in last_line(capfd)
    assert "dataset.json" not in gcs.list(OUTPUT)


def test_numbers_of_the_job_are_shown(
    gcs: GcsServer, table: str, dataflow: DataflowServer, capfd: pytest.CaptureFixture[str]
) -> None:
    dataflow.states = ["RUNNING", "RUNNING", "CANCELLED"]
    dataflow.metrics = [
        counter("rows_read", 50),
        counter("rows_read", 60, tentative=True),
        counter("rejected_flat", 2, step="s2"),
        counter("rejected_non_finite", 3, step="s2"),
        counter("shards", 1, step="s3"),
        service_metric("CurrentVcpuCount", 8),
        service_metric("TotalVcpuTime", 5400),
    ]
    assert main(command(dataflow)) == 1
    line = "Dataflow: running, 8 vCPUs at work, 50 rows, 5 rejects, 1 shard, 1.50 vCPU hours"
    captured = capfd.readouterr().err
    assert line in captured
    assert "Reading traces: 50 of 96" in captured


@pytest.mark.parametrize("outage", [503, 504, None], ids=str)
def test_an_outage_of_the_service_is_sat_out(
    gcs: GcsServer,
    table: str,
    dataflow: DataflowServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    outage: int | None,
) -> None:
    def follow_job(*arguments: object) -> object:
        monkeypatch.setattr(service, "REQUEST_SECONDS", 1.0)
        dataflow.outages, dataflow.outage = 1, outage
        return follow.follow_job(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(launch, "follow_job", follow_job)
    dataflow.states = ["RUNNING", "CANCELLED"]
    assert main(command(dataflow)) == 1
    assert "was cancelled" in last_line(capfd)
    assert dataflow.outages == 0


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_after_an_interruption_the_same_command_follows_the_job_again(
    gcs: GcsServer,
    table: str,
    dataflow: DataflowServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    dataflow.states = ["RUNNING"]
    with monkeypatch.context() as patched:
        patched.setattr("beam_pipeline.launchers.dataflow.follow.console.watch", interrupt)
        assert main(command(dataflow)) == 1
    (job,) = dataflow.jobs
    last = last_line(capfd)
    assert f"job {job.id} goes on: the same command follows it again" in last
    assert f"gcloud dataflow jobs cancel {job.id} --region europe-west4 --project lab-test" in last
    (work,) = work_folders(gcs)

    # Another dataset must wait for it.
    other = [*command(dataflow), "--block_trials", "4", "--overwrite"]
    assert main(other) == 1
    assert f"job {job.id} is still making another dataset there" in last_line(capfd)
    assert work_folders(gcs) == {work}

    # This one goes on.
    job.states = ["RUNNING", "RUNNING", "FAILED"]
    job.messages = [("ERROR", "out of memory")]
    assert main(command(dataflow)) == 1
    captured = capfd.readouterr().err
    assert f"Following job {job.id} again" in captured
    assert f"error: job {job.id} failed: out of memory" in captured.splitlines()[-1]
    assert len(dataflow.jobs) == 1

    # A job that has failed is not followed: a new one starts.
    dataflow.states = ["CANCELLED"]
    assert main(command(dataflow)) == 1
    assert len(dataflow.jobs) == 2
    assert work not in work_folders(gcs)


def interrupted_run(
    gcs: GcsServer, dataflow: DataflowServer, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Send a job whose launcher ends at once, and return its work folder."""
    dataflow.states = ["RUNNING"]
    with monkeypatch.context() as patched:
        patched.setattr(console, "watch", interrupt)
        assert main(command(dataflow)) == 1
    # Of any other job.
    dataflow.states = ["CANCELLED"]
    (work,) = work_folders(gcs)
    gcs.put(f"{OUTPUT}/{work}/segments/segments-000000.raw", b"in use")
    return work


@pytest.mark.parametrize("failure", ["outage", "credentials", "program"])
def test_a_job_that_cannot_be_asked_for_keeps_its_files(
    gcs: GcsServer,
    table: str,
    dataflow: DataflowServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    failure: str,
) -> None:
    work = interrupted_run(gcs, dataflow, monkeypatch)
    (job,) = dataflow.jobs

    def fail(*_: object, **__: object) -> None:
        if failure == "credentials":
            raise RefreshError("Reauthentication is needed")
        if failure == "program":
            raise IndexError("list index out of range")

    def follow_job(*arguments: object) -> object:
        # From here on: what a run looks at first is up.
        if failure == "outage":
            dataflow.outages = 10**6
        else:
            patched.setattr(MetricsV1Beta3Client, "get_job_metrics", fail)
        return follow.follow_job(*arguments)  # type: ignore[arg-type]

    before = gcs.list(f"{OUTPUT}/{work}")
    with monkeypatch.context() as patched:
        patched.setattr(service, "PATIENCE_SECONDS", 0.5)
        patched.setattr(launch, "follow_job", follow_job)
        assert main(command(dataflow)) == 1
    assert f"job {job.id} may go on: the same command follows it again" in last_line(capfd)
    assert gcs.list(f"{OUTPUT}/{work}") == before

    dataflow.outages = 0
    job.states = dataflow.states = ["CANCELLED"]
    assert main(command(dataflow)) == 1
    assert len(dataflow.jobs) == 2


def test_half_a_dataset_stays_ours_through_runs_that_fail(
    gcs: GcsServer, table: str, dataflow: DataflowServer, capfd: pytest.CaptureFixture[str]
) -> None:
    gcs.put(f"{OUTPUT}/README.md", b"of a dataset that was being installed")
    gcs.put(f"{OUTPUT}/.work-0123456789ab/installing", b"")
    dataflow.states = ["CANCELLED"]
    for _ in range(3):
        assert main(command(dataflow)) == 1
        assert "was cancelled" in last_line(capfd)
    assert len(dataflow.jobs) == 3


def test_a_warning_without_a_word_is_no_failure(
    gcs: GcsServer, table: str, dataflow: DataflowServer, capfd: pytest.CaptureFixture[str]
) -> None:
    dataflow.states, dataflow.messages = ["RUNNING", "CANCELLED"], [("WARNING", " ")]
    assert main(command(dataflow)) == 1
    assert "was cancelled" in last_line(capfd)


@pytest.mark.parametrize("states", [["RUNNING", "DONE"], ["RUNNING", "FAILED"]])
def test_a_launcher_that_lost_its_lock_touches_nothing(
    gcs: GcsServer,
    table: str,
    dataflow: DataflowServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    states: list[str],
) -> None:
    files: dict[str, bytes] = {}

    def follow_job(*arguments: object) -> object:
        (work,) = work_folders(gcs)
        for name in ("late_rejects", "segments/segments-000000.raw"):
            gcs.put(f"{OUTPUT}/{work}/{name}", b"")
        gcs.put(f"{OUTPUT}/.lock", b'{"run": "of another launcher"}')
        files.update(gcs.list(f"{OUTPUT}/{work}"))
        return follow.follow_job(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(launch, "follow_job", follow_job)
    dataflow.states, dataflow.messages = states, [("ERROR", "no quota")]
    assert main(command(dataflow)) == 1
    said = "another run has taken" if states[-1] == "DONE" else "failed: no quota"
    assert said in last_line(capfd)
    (work,) = work_folders(gcs)
    assert gcs.list(f"{OUTPUT}/{work}") == files
    assert len(dataflow.jobs) == 1


@pytest.mark.parametrize("end", [KeyboardInterrupt, SubmissionError("no answer"), OSError("503")])
def test_a_job_whose_answer_is_lost_is_found_by_its_name(
    gcs: GcsServer,
    table: str,
    dataflow: DataflowServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    end: BaseException,
) -> None:
    # One of the same name that has ended long ago.
    body = {"name": "mine", "clientRequestId": "1", "labels": {"lfp-work": "0" * 12}}
    dataflow.states = ["CANCELLED"]
    dataflow.create("lab-test", "europe-west4", body)

    def submit(*arguments: object) -> str:
        job_id = launch_submit(*arguments)  # type: ignore[arg-type]
        if isinstance(end, OSError):
            gcs.faults.add("POST", "upload.*", faults.STATUS, status=403)
            return job_id
        raise end

    launch_submit = submit_job
    monkeypatch.setattr(launch, "submit", submit)
    dataflow.states = ["RUNNING"]
    with monkeypatch.context() as patched:
        patched.setattr(console, "watch", interrupt)
        assert main(command(dataflow, "--job_name", "mine")) == 1
    job = dataflow.jobs[1]
    job.states = ["RUNNING", "RUNNING", "CANCELLED"]
    assert main(command(dataflow, "--job_name", "mine")) == 1
    assert f"job {job.id} was cancelled" in last_line(capfd)
    assert len(dataflow.jobs) == 2


def test_a_job_that_is_done_is_finished_by_a_later_launcher(
    gcs: GcsServer,
    table: str,
    dataflow: DataflowServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    work = interrupted_run(gcs, dataflow, monkeypatch)
    (job,) = dataflow.jobs
    job.states = ["DONE"]
    gcs.put(f"{OUTPUT}/{work}/problem.txt", b"the table has one class")
    fault = gcs.faults.add("GET", "/download/.*problem.txt", faults.STATUS, status=403, times=None)
    assert main(command(dataflow)) == 1
    assert fault.hits
    gcs.faults.clear()
    capfd.readouterr()
    assert main(command(dataflow)) == 1
    assert last_line(capfd) == "error: the table has one class"
    assert len(dataflow.jobs) == 1
    # What can never become a dataset is not tried again.
    dataflow.states = ["CANCELLED"]
    assert main(command(dataflow)) == 1
    assert len(dataflow.jobs) == 2


def test_another_runner_leaves_the_folder_of_a_job_alone(
    gcs: GcsServer,
    table: str,
    dataflow: DataflowServer,
    pool: WorkerPool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    work = interrupted_run(gcs, dataflow, monkeypatch)
    before = gcs.list(f"{OUTPUT}/{work}")
    cluster = ["--runner", "PortableRunner", "--job_endpoint", "localhost:1"]
    for flags in (tables.IN_PROCESS, cluster):
        here = ["preprocess", "--input", TABLE, "--output", OUTPUT, *tables.FLAGS, *TRIALS]
        assert main([*here, *flags]) == 1
        last = last_line(capfd)
        assert f"job {dataflow.jobs[0].id} on Dataflow may still be writing there" in last
        assert f"gcloud dataflow jobs cancel {dataflow.jobs[0].id}" in last
        assert gcs.list(f"{OUTPUT}/{work}") == before


@pytest.mark.parametrize("record", [b"{", b'{"job": "of a later version"}'])
def test_a_record_that_cannot_be_read_may_be_that_of_a_running_job(
    gcs: GcsServer,
    table: str,
    dataflow: DataflowServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    record: bytes,
) -> None:
    work = interrupted_run(gcs, dataflow, monkeypatch)
    gcs.put(f"{OUTPUT}/{work}/job/record.json", record)
    before = gcs.list(f"{OUTPUT}/{work}")
    here = ["preprocess", "--input", TABLE, "--output", OUTPUT, *tables.FLAGS, *TRIALS]
    for arguments in (command(dataflow), [*here, *tables.IN_PROCESS]):
        assert main(arguments) == 1
        last = last_line(capfd)
        assert f"{work}/job/record.json does not say which job" in last
        assert f"remove {OUTPUT}/{work}" in last
        assert gcs.list(f"{OUTPUT}/{work}") == before
    assert len(dataflow.jobs) == 1


def test_the_source_is_packed_from_a_read_only_checkout_and_installs_alone(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    copy_project(checkout, ROOT)
    for path in [checkout, *checkout.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted(checkout.rglob("*"))
    setup_file = copy_project(tmp_path / "copy", checkout)
    (tmp_path / "built").mkdir()
    package = Path(Stager._build_setup_package(str(setup_file), str(tmp_path / "built")))
    assert sorted(checkout.rglob("*")) == before
    for path in [checkout, *checkout.rglob("*")]:
        path.chmod(0o755)

    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / "bin" / "python"
    (site,) = venv.glob("lib/python*/site-packages")
    install(package, site)
    # What setup.py asks for, and Beam, as a container has them.
    libraries = {str(Path(module.__file__ or "").parents[1]) for module in (apache_beam, numpy)}
    (site / "libraries.pth").write_text("\n".join(libraries))
    code = "import beam_pipeline.transforms.spectrograms as t; print(t.__file__)"
    done = subprocess.run(
        [str(python), "-P", "-c", code],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).is_relative_to(site)


def test_without_a_checkout_there_is_nothing_to_pack(tmp_path: Path) -> None:
    with pytest.raises(PackagingError, match=r"no setup\.py"):
        copy_project(tmp_path / "copy", tmp_path)
