"""The pipeline on gs://: the same bytes as on a disk, whatever goes wrong on the way."""

import errno
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from google.cloud.storage.retry import DEFAULT_RETRY

from beam_pipeline.__main__ import main
from beam_pipeline.audit.command import check_output
from beam_pipeline.errors import UsageError
from beam_pipeline.manifest import read_manifest
from beam_pipeline.output import lock
from beam_pipeline.output.installation import InstallationError, install
from beam_pipeline.output.lock import LockedError, OutputLock, locked
from beam_pipeline.output.work_folder import WorkFolder
from beam_pipeline.shards import Sample, write_shard
from beam_pipeline.storage.cloud_path import CloudPath
from beam_pipeline.storage.gcs_client import os_errors
from beam_pipeline.storage.locations import locate
from beam_pipeline.storage.places import whole_file
from tests import tables
from tests.servers import faults
from tests.servers.gcs import GcsServer

ROOT = Path(__file__).resolve().parents[1]
FLAGS = [*tables.FLAGS, "--block_trials", "4", "--num_shards", "2"]
OUT = "gs://lab/out"
Store = dict[str, dict[str, Any]]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passing faults are waited out as ever, but not for seconds."""
    policy = DEFAULT_RETRY.with_delay(initial=0.01, maximum=0.02).with_timeout(20.0)
    monkeypatch.setattr("beam_pipeline.storage.cloud_path.retry", lambda: policy)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tables.make_table(trials=5)
    # A trial that is rejected: its list must reach the dataset, too.
    made = tables.replace_trace(made, 3, [float("nan")] * tables.N_SAMPLES)
    return tables.write_files(made, tmp_path_factory.mktemp("table"), 2)


@pytest.fixture(scope="module")
def dataset(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset") / "out"
    assert main(command(str(table), str(folder))) == 0
    return folder


@pytest.fixture
def source(gcs: GcsServer, table: Path) -> str:
    for path in table.iterdir():
        gcs.put(f"gs://lab/table/{path.name}", path.read_bytes())
    return "gs://lab/table"


def command(source: str, output: str, *flags: str) -> list[str]:
    return ["preprocess", "--input", source, "--output", output, *FLAGS, *tables.IN_PROCESS, *flags]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def without_run(files: dict[str, bytes]) -> dict[str, bytes]:
    """All but what tells of the run, not of the data."""
    return {name: content for name, content in files.items() if name != "run.json"}


# The whole job


def test_a_dataset_on_gs_has_the_bytes_of_a_local_one(gcs, source, dataset, capsys):
    assert main(command(source, OUT)) == 0
    made = gcs.list(OUT)
    assert without_run(made) == without_run(contents(dataset))
    assert json.loads(made["run.json"])["input"] == source
    # Each shard was uploaded once, under a precondition.
    uploads = [path for method, path in gcs.requests if method == "POST" and "rewriteTo" in path]
    assert len(uploads) == len(made)
    assert main(["verify", OUT, "--workers", "2"]) == 0
    assert f"{OUT} is sound" in capsys.readouterr().out


def test_the_same_command_finds_its_dataset_and_leaves_it_alone(gcs, source, dataset, capsys):
    stage_dataset(gcs, dataset, OUT)
    run = json.loads(gcs.read(f"{OUT}/run.json"))
    objects = gcs.store.buckets["lab"]
    run["input_identity"] = [
        [f"{source}/{name}", len(stored.content), stored.generation]
        for name, stored in ((name, objects[f"table/{name}"]) for name in gcs.list(source))
    ]
    gcs.put(f"{OUT}/run.json", json.dumps(run).encode())
    before = dict(objects)
    assert main(command(source, OUT)) == 0
    assert "already holds this dataset; nothing to do" in capsys.readouterr().out
    assert objects == before

    part = sorted(gcs.list(source))[0]
    gcs.put(f"{source}/{part}", gcs.read(f"{source}/{part}"))
    assert main(command(source, OUT)) == 1
    assert "was made from another or a changed input" in capsys.readouterr().err
    gcs.delete(f"{OUT}/sessions.parquet")
    assert main(command(source, OUT)) == 1
    assert gcs.list(OUT).keys() == contents(dataset).keys() - {"sessions.parquet"}


def test_workers_in_processes_of_their_own_and_passing_faults_change_no_byte(
    gcs, source, dataset, capsys
):
    met = [
        gcs.faults.add("GET", "/download/.*table/part", faults.RESET),
        gcs.faults.add("GET", "/download/.*table/part", faults.STATUS, status=429),
        gcs.faults.add("POST", "upload.*ifGenerationMatch=0", faults.LOSE, times=2, skip=1),
        gcs.faults.add("GET", "/download/.*segments", faults.CORRUPT),
        gcs.faults.add("GET", "/download/.*segments", faults.TRUNCATE),
        gcs.faults.add("GET", "/download/.*sessions.parquet", faults.CORRUPT),
        gcs.faults.add("POST", "rewriteTo", faults.LOSE, times=3),
        gcs.faults.add("POST", "rewriteTo", faults.STATUS, status=503),
        gcs.faults.add("DELETE", "", faults.LOSE, times=2),
    ]
    assert main([*command(source, OUT), "--direct_num_workers", "2"]) == 0
    assert [fault.hits for fault in met] == [fault.times for fault in met]
    assert without_run(gcs.list(OUT)) == without_run(contents(dataset))


def test_a_run_that_fails_leaves_no_dataset_and_the_next_one_makes_it(gcs, source, dataset, capsys):
    # The lock, the two chunks of the table, and a shard are created; installing comes later.
    for method, path, skip in (
        ("GET", "/download/.*segments", 0),
        ("POST", "upload.*ifGenerationMatch=0", 3),
    ):
        fault = gcs.faults.add(method, path, faults.STATUS, status=403, times=None, skip=skip)
        assert main(command(source, OUT)) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: [Errno 13] injected") or "PermissionError" in error
        assert "the traceback is in" in error
        assert fault.hits
        assert f"{OUT}/dataset.json" not in gcs.objects
        gcs.faults.clear()
    assert main(command(source, OUT)) == 0
    assert without_run(gcs.list(OUT)) == without_run(contents(dataset))


def test_a_killed_run_leaves_no_dataset_and_the_next_one_waits_and_makes_it(
    gcs, source, dataset, monkeypatch, capfd
):
    # In the middle of its installation, with some parts of the dataset in place.
    held = gcs.faults.add("POST", "rewriteTo", faults.HOLD, times=None, skip=6)
    run = subprocess.Popen(
        [sys.executable, "-m", "beam_pipeline", *command(source, OUT), "--direct_num_workers", "2"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert held.reached.wait(120)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    gcs.faults.clear()
    left = gcs.list(OUT)
    assert ".lock" in left
    assert left.keys() & contents(dataset).keys()
    assert "dataset.json" not in left
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.5)
    assert main(command(source, OUT)) == 0
    assert "Waiting up to 0 s to see if another run is writing" in capfd.readouterr().err
    assert without_run(gcs.list(OUT)) == without_run(contents(dataset))


def test_another_dataset_is_replaced_only_when_asked(gcs, source, dataset, capsys):
    stage_dataset(gcs, dataset, OUT)
    before = dict(gcs.list(OUT))
    other = ["--baseline_mode", "mean"]
    assert main(command(source, OUT, *other)) == 1
    assert "was made with other options" in capsys.readouterr().err
    assert gcs.list(OUT) == before
    assert main(command(source, OUT, *other, "--overwrite")) == 0
    assert gcs.list(OUT)["dataset.json"] != before["dataset.json"]
    assert main(["verify", OUT, "--workers", "1"]) == 0


def test_foreign_objects_are_not_touched(gcs, source, capsys):
    gcs.put(f"{OUT}/thesis.txt", b"years of work")
    assert main(command(source, OUT)) == 1
    assert "it holds thesis.txt" in capsys.readouterr().err
    assert gcs.list(OUT) == {"thesis.txt": b"years of work"}


# Finishing a dataset


def stage_dataset(gcs: GcsServer, dataset: Path, url: str) -> None:
    for name, content in contents(dataset).items():
        gcs.put(f"{url}/{name}", content)


def stage_work(
    gcs: GcsServer, dataset: Path, folder: Path, name: str
) -> tuple[WorkFolder, WorkFolder]:
    """Return a work folder with a dataset's shards, and one on this disk with the other files."""
    work, finished = WorkFolder(f"{OUT}/.work-{name}"), WorkFolder(str(folder / name))
    for file, content in contents(dataset).items():
        if file.endswith(".tar"):
            gcs.put(f"{work.dataset}/{file}", content)
        elif file != "dataset.json":
            target = Path(finished.path, "dataset", file)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    return work, finished


@pytest.fixture
def installing(gcs: GcsServer, dataset: Path, tmp_path: Path) -> Callable[[], None]:
    """Finish the dataset in `OUT`, over an older one there."""
    stage_dataset(gcs, dataset, OUT)
    gcs.put(f"{OUT}/README.md", b"of an older dataset")
    work, finished = stage_work(gcs, dataset, tmp_path, "a" * 12)
    manifest = read_manifest(dataset)
    output = locate(OUT)
    return lambda: install(work, finished, manifest, output, OutputLock())


def each_request(gcs: GcsServer, action: Callable[[], None]) -> Iterator[tuple[int, Any]]:
    """Yield the number of each request that an action makes, with everything as it was before."""
    before: Store = {bucket: dict(objects) for bucket, objects in gcs.store.buckets.items()}
    gcs.requests.clear()
    action()
    n_requests = len(gcs.requests)
    assert n_requests > 20
    for index in range(n_requests):
        gcs.faults.clear()
        gcs.store.buckets = {bucket: dict(objects) for bucket, objects in before.items()}
        yield index, action


def test_an_installation_that_dies_at_any_request_leaves_no_wrong_dataset(gcs, dataset, installing):
    old = {**contents(dataset), "README.md": b"of an older dataset"}
    whole = contents(dataset)
    seen = set()
    for index, action in each_request(gcs, installing):
        gcs.faults.add(".*", "", faults.STATUS, status=403, times=None, skip=index)
        with pytest.raises(PermissionError):
            action()
        found = {n: c for n, c in gcs.list(OUT).items() if not n.startswith(".work")}
        if "dataset.json" in found:
            assert found in (old, whole), index
        seen.add("none" if "dataset.json" not in found else "old" if found == old else "new")
    assert seen == {"old", "none", "new"}


def test_an_installation_bears_the_loss_of_any_answer(gcs, dataset, installing):
    for index, action in each_request(gcs, installing):
        lost = gcs.faults.add(".*", "", faults.LOSE, skip=index)
        action()
        assert lost.hits == 1
        assert gcs.list(OUT) == contents(dataset), index


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", r"train/lfp-train-00001.*/rewriteTo"),
        ("POST", r"dataset\.json/rewriteTo"),
        ("GET", r"o\?.*prefix=out/&"),
        ("DELETE", r"/out/train\.json"),
        ("GET", r"/download/.*\.lock"),
    ],
    ids=["copy", "manifest", "listing", "deletion", "check"],
)
def test_a_run_that_was_cut_off_does_not_spoil_its_successors_dataset(
    gcs, dataset, tmp_path, monkeypatch, method, path
):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 1000.0)
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.2)
    manifest, output = read_manifest(dataset), locate(OUT)
    stage_dataset(gcs, dataset, OUT)
    work, finished = stage_work(gcs, dataset, tmp_path, "a" * 12)
    held = gcs.faults.add(method, path, faults.HOLD)

    def first() -> None:
        with locked(output) as held_lock:
            install(work, finished, manifest, output, held_lock)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(first)
        assert held.reached.wait(30)
        with locked(output) as second_lock:
            work.remove()
            successor, done = stage_work(gcs, dataset, tmp_path, "b" * 12)
            Path(done.path, "dataset", "run.json").write_text("{}")
            install(successor, done, manifest, output, second_lock)
        held.release.set()
        assert isinstance(running.exception(), OSError | LockedError | InstallationError)
    found = {n: c for n, c in gcs.list(OUT).items() if not n.startswith(".work")}
    assert found == {**contents(dataset), "run.json": b"{}"}


# One run at a time


def test_a_second_run_waits_for_a_sign_of_life_and_gives_way(gcs, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 20.0)
    output = locate(OUT)
    with locked(output) as first:
        with pytest.raises(LockedError, match="another run is writing to gs://lab/out"):
            locked(output).__enter__()
        first.check()
    assert not gcs.objects


def test_of_runs_that_find_a_dead_one_a_single_one_goes_on(gcs, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 1000.0)
    dead = lock.Lease(CloudPath("lab", "out/.lock"), OUT)
    dead.acquire()
    # Long enough that the winner's signs of life are seen on a busy machine.
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 2.0)
    barrier = threading.Barrier(4)
    over = threading.Event()

    def run(_: int) -> bool:
        lease = lock.Lease(CloudPath("lab", "out/.lock"), OUT)
        barrier.wait()
        try:
            lease.acquire()
        except LockedError:
            return False
        over.wait()
        lease.check()
        return True

    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(run, index) for index in range(4)]
        ended = as_completed(runs, timeout=60)
        try:
            # The winner waits for the three others, which end by themselves.
            assert [next(ended).result() for _ in range(3)] == [False] * 3
        finally:
            over.set()
        assert next(ended).result()
    with pytest.raises(LockedError, match="has taken gs://lab/out over"):
        dead.check()
    dead.release()
    assert gcs.list("gs://lab/out").keys() == {".lock"}


def test_a_lock_whose_answer_was_lost_is_held(gcs):
    gcs.faults.add("POST", "upload", faults.LOSE)
    with locked(locate(OUT)) as held:
        held.check()
    assert not gcs.objects


# Objects


def sample(value: float) -> Sample:
    return Sample("k", np.full((1, 2, 3), value, np.float16), np.zeros((1, 2), np.float32), {})


def test_racing_attempts_at_one_shard_leave_one_object(gcs):
    barrier = threading.Barrier(4)

    def write(_: int) -> Any:
        def samples() -> Iterator[Sample]:
            yield sample(1.0)
            barrier.wait()

        return write_shard(locate("gs://lab/work"), "train/x.tar", samples())

    with ThreadPoolExecutor(4) as pool:
        infos = list(pool.map(write, range(4)))
    assert len(set(infos)) == 1
    stored = gcs.store.buckets["lab"]["work/train/x.tar"]
    assert len(stored.content) == infos[0].bytes
    with pytest.raises(FileExistsError, match="other bytes"):
        write_shard(locate("gs://lab/work"), "train/x.tar", [sample(2.0)])
    assert gcs.store.buckets["lab"]["work/train/x.tar"] is stored


def test_a_shard_whose_making_breaks_off_does_not_appear(gcs):
    def samples() -> Iterator[Sample]:
        yield sample(1.0)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_shard(locate("gs://lab/work"), "train/x.tar", samples())
    assert not gcs.objects


def test_a_bucket_by_itself_is_an_empty_folder(gcs):
    place = locate("gs://lab")
    assert not place.exists()
    assert not place.is_file()
    assert not place.is_dir()
    check_output(place)


@pytest.mark.parametrize("place", ["GS://lab/x", "Gs://lab", "S3://lab/x"])
def test_a_scheme_in_capitals_is_no_folder_of_this_machine(place):
    with pytest.raises(UsageError, match="on this machine or on gs:// only"):
        locate(place)


def test_a_full_disk_is_not_called_a_broken_connection():
    with pytest.raises(OSError, match="No space left"), os_errors("gs://lab/x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No connection to Cloud Storage"), os_errors("gs://lab/x"):
        raise requests.ConnectionError


def test_what_a_run_goes_on_with_on_this_machine_is_its_users_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    work = WorkFolder("gs://lab/out/.work-0123456789ab")
    work.reopen()
    assert work.progress is not None
    assert stat.S_IMODE(work.local.stat().st_mode) == 0o700
    work.reopen()


@pytest.mark.parametrize("action", [faults.LOSE, faults.RESET, faults.PERSIST_HALF, faults.STATUS])
def test_a_large_object_is_whole_after_a_fault_in_any_request(gcs, action):
    content = np.random.default_rng(0).bytes(9 << 20)
    for request in range(2):
        gcs.store.buckets["lab"].clear()
        fault = gcs.faults.add("POST|PUT", "uploadType=resumable", action, skip=request)
        with whole_file(locate("gs://lab/large")) as file:
            file.write(content)
        assert fault.hits == 1
        assert gcs.objects == {"gs://lab/large": content}
        gcs.faults.clear()


def test_an_object_is_read_as_it_was_when_it_was_opened(gcs):
    content = np.random.default_rng(0).bytes(1 << 20)
    gcs.put("gs://lab/file", content)
    path = locate("gs://lab/file")
    assert isinstance(path, CloudPath)
    with path.open("rb") as file:
        assert file.read(10) == content[:10]
        assert file.seek(-5, io.SEEK_END) == len(content) - 5
        assert file.read() == content[-5:]
    state = path.state()
    assert state is not None
    with path.open_generation(state) as raw:
        assert raw.read(100) == content[:100]
        gcs.put("gs://lab/file", content)
        with pytest.raises(OSError, match="replaced or removed by another program"):
            raw.read(100)
    with pytest.raises(FileNotFoundError):
        locate("gs://lab/other").open("rb")


def test_a_flipped_bit_of_a_whole_object_is_noticed(gcs):
    gcs.put("gs://lab/file", b"content")
    gcs.faults.add("GET", "/download/", faults.CORRUPT)
    assert locate("gs://lab/file").read_bytes() == b"content"
    gcs.faults.add("GET", "/download/", faults.CORRUPT, times=None)
    with pytest.raises(OSError, match="does not fit the checksum"):
        locate("gs://lab/file").read_bytes()


# What is wrong is said in one line


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("gs://nowhere/out", "bucket does not exist"),
        ("gs://", "is no name of a bucket"),
        ("s3://bucket/out", "on this machine or on gs:// only"),
    ],
)
def test_a_place_that_cannot_be_written_is_said_at_once(gcs, source, capsys, output, message):
    assert main(command(source, output)) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_sample_is_not_written_to_a_folder_called_gs(gcs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["sample", "--output", "gs://lab/sample"])
    assert "gs://lab/sample is no path of this machine" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_permission_the_services_own_words_are_shown(gcs, source, capsys):
    gcs.faults.add("GET", "table", faults.STATUS, status=403, times=None)
    assert main(command(source, OUT)) == 1
    assert "Errno 13" in capsys.readouterr().err


def test_damage_on_gs_is_named(gcs, dataset, capsys):
    stage_dataset(gcs, dataset, OUT)
    shard = next(name for name in gcs.list(OUT) if name.endswith(".tar"))
    damaged = bytearray(gcs.read(f"{OUT}/{shard}"))
    damaged[600] ^= 1
    gcs.put(f"{OUT}/{shard}", bytes(damaged))
    gcs.delete(f"{OUT}/README.md")
    gcs.put(f"{OUT}/stray.txt", b"")
    assert main(["verify", OUT, "--workers", "1"]) == 1
    printed = capsys.readouterr().out
    assert "checksum" in printed
    assert "stray.txt" in printed
    assert "README.md" in printed


# Tables


def test_plan_and_audit_of_a_table_on_gs_are_those_of_a_local_one(
    gcs, source, table, tmp_path, capsys
):
    def printed(place: str) -> list[str]:
        assert main(["plan", "--input", place, *FLAGS]) == 0
        lines = capsys.readouterr().out.replace(place, "TABLE").splitlines()
        # The time it would take is measured.
        return [line for line in lines if not line.startswith("Expected")]

    assert printed(source) == printed(str(table))
    numbers = []
    for place, output in ((source, "gs://lab/audit"), (str(table), str(tmp_path / "audit"))):
        assert main(["audit", "--input", place, "--output", output, *tables.FLAGS[:4]]) == 0
        text = (locate(output) / "audit.json").read_text()
        numbers.append(text.replace(place, "TABLE"))
    assert numbers[0] == numbers[1]
    assert main(["audit", "--input", source, "--output", "gs://lab/table"]) == 1
    assert "is neither empty nor an audit" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "audit")
