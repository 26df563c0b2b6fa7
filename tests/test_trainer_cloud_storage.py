"""Datasets and run folders on gs://: the real clients against a server on loopback."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import RefreshError, TransportError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests import datasets
from tests.runs import ENVIRONMENT, ROOT, assert_equal, best_state, curves, flags, last_state
from tests.servers import faults
from tests.servers.gcs import GcsServer
from trainer.__main__ import main
from trainer.config import LoaderConfig, SequenceConfig
from trainer.data import storage as storage_module
from trainer.data.dataset_folder import DatasetFolder, open_dataset
from trainer.data.loader import SequenceLoader, make_loader
from trainer.data.shard_cache import FETCH_THREADS, cache_shards
from trainer.data.split_scan import scan_split
from trainer.data.storage import DatasetError
from trainer.errors import TrainerError
from trainer.remote import mirror as mirror_module
from trainer.remote.folder import RemoteError
from trainer.remote.gcs import GcsFolder
from trainer.remote.mirror import Mirror
from trainer.run_folder import open_run, write_file
from trainer.training.checkpoint import load_checkpoint, read_marker
from trainer.training.interruption import interruptible

DATA, RUN = "gs://lab/datasets/mice", "gs://lab/vertex-runs/r1"
#: An object's content, not what is known about it.
DOWNLOAD = r"^/download/.*alt=media"
#: Of a run with many random numbers, and a checkpoint every two steps.
MORE: dict[str, Any] = {
    "train__epochs": 2,
    "train__batch_size": 4,
    "train__checkpoint_every": 2,
    "model__drop_rate": 0.1,
    "model__drop_path_rate": 0.2,
    "augment__mixup": 0.4,
    "loader__store": "memory",
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sessions of each class in train and in val, one of each in test."""
    sessions = {
        split: [
            datasets.recording(f"{split}{number}", datasets.CLASSES[number % 2], 21 + number)
            for number in range(n)
        ]
        for split, n in (("train", 4), ("val", 4), ("test", 2))
    }
    return datasets.write_dataset(tmp_path_factory.mktemp("mice"), sessions, shape=(8, 16))


@pytest.fixture
def remote(gcs: GcsServer, dataset: Path) -> GcsServer:
    """The server with the dataset on it."""
    upload(gcs, dataset, DATA)
    return gcs


pytestmark = pytest.mark.usefixtures("one_thread")


def upload(gcs: GcsServer, folder: Path, url: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            gcs.put(f"{url}/{path.relative_to(folder)}", path.read_bytes())


def download(gcs: GcsServer, url: str, folder: Path) -> Path:
    for name, content in gcs.list(url).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def loader_of(
    folder: DatasetFolder, store: Any, workers: int = 0, cache: Path | None = None
) -> SequenceLoader:
    return make_loader(
        folder,
        "train",
        SequenceConfig(4),
        LoaderConfig(store, num_workers=workers, cache=None if cache is None else str(cache)),
        batch_size=5,
        device=torch.device("cpu"),
        seed=1,
        shuffle=True,
    )


def assert_same_batches(a: SequenceLoader, b: SequenceLoader) -> None:
    pairs = list(zip(a.batches(0), b.batches(0), strict=True))
    assert len(pairs) > 3
    for one, other in pairs:
        assert all(torch.equal(getattr(one, n), getattr(other, n)) for n in ("x", "label", "index"))


def downloads(gcs: GcsServer, name: str = "") -> list[str]:
    return [path for _, path in gcs.requests if re.search(DOWNLOAD, path) and name in path]


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def error_line(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    capfd.readouterr()
    assert main(arguments) == 1
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    line = errors.splitlines()[-1]
    assert line.startswith("error: ")
    return line


# --- Datasets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("store", "workers"), [("memory", 0), ("stream", 0), ("stream", 2)])
def test_a_dataset_gives_the_same_batches_from_a_bucket(remote, dataset, store, workers):
    assert_same_batches(
        loader_of(open_dataset(DATA), store, workers),
        loader_of(open_dataset(dataset), store, workers),
    )


def test_reading_goes_on_after_errors_of_the_store(remote, dataset):
    actions = [(faults.STATUS, 503), (faults.STATUS, 429), (faults.RESET, 0), (faults.TRUNCATE, 0)]
    shards = ["train-00000", "train-00001", "val-00000", "val-00001"]
    met = [
        remote.faults.add("GET", f"/download/.*{shard}", action, status=status)
        for shard, (action, status) in zip(shards, actions, strict=True)
    ]
    for split in ("train", "val"):
        found = scan_split(open_dataset(DATA), split)
        expected = scan_split(open_dataset(dataset), split)
        assert (found.spectrogram_digest == expected.spectrogram_digest).all()
        assert (found.offset == expected.offset).all()
    assert all(fault.hits for fault in met)


def test_a_stream_goes_on_after_errors_of_the_store(remote, dataset):
    loader = loader_of(open_dataset(DATA), "stream", workers=1)
    met = [
        remote.faults.add("GET", DOWNLOAD, action)
        for action in (faults.STATUS, faults.RESET, faults.TRUNCATE)
    ]
    assert_same_batches(loader, loader_of(open_dataset(dataset), "stream", workers=1))
    assert all(fault.hits for fault in met)


def test_a_connection_on_which_nothing_comes_is_given_up(remote, dataset, monkeypatch):
    monkeypatch.setattr(storage_module, "STALLED_SECONDS", 1)
    storage_module._gcs_options.cache_clear()
    held = remote.faults.add("GET", DOWNLOAD, faults.HOLD)
    try:
        found = open_dataset(DATA)
    finally:
        storage_module._gcs_options.cache_clear()
    assert held.hits == 1
    assert found.fingerprint == open_dataset(dataset).fingerprint


def test_a_bit_that_flips_on_the_way_is_noticed_while_shards_are_verified(remote):
    remote.faults.add("GET", "/download/.*train-00001", faults.CORRUPT)
    with pytest.raises(DatasetError, match=r"train-00001.*its sha256 differs") as error:
        scan_split(open_dataset(DATA), "train")
    assert "run the command again" in one_line(error)


def test_bits_that_flip_on_the_way_to_a_stream_are_fetched_again(remote, dataset):
    loader = loader_of(open_dataset(DATA), "stream")
    flipped = remote.faults.add("GET", DOWNLOAD, faults.CORRUPT, times=3)
    assert_same_batches(loader, loader_of(open_dataset(dataset), "stream"))
    assert flipped.hits == 3


def test_a_shard_that_was_exchanged_after_it_was_verified(remote, dataset):
    folder = open_dataset(DATA)
    loader = loader_of(folder, "stream", workers=1)
    for shard in folder.splits["train"].shards:
        content = bytearray((dataset / shard.path).read_bytes())
        content[loader.index.offset.max() + 3] ^= 1
        remote.put(f"{DATA}/{shard.path}", bytes(content))
    with pytest.raises(DatasetError, match="are not those that were verified") as error:
        list(loader.batches(0))
    assert f"{DATA}/train/" in one_line(error)


@pytest.mark.parametrize(
    ("url", "status", "message"),
    [
        ("gs://nobody/data", 0, "gs://nobody/data has no dataset.json"),
        (DATA, 403, "this account needs the role Storage Object Viewer on the bucket"),
        (DATA, 401, "log in with: gcloud auth application-default login"),
    ],
)
def test_a_dataset_that_cannot_be_read(remote, tmp_path, capfd, url, status, message):
    if status:
        remote.faults.add("GET", "/download/", faults.STATUS, times=None, status=status)
    line = error_line(flags(url, tmp_path / "run"), capfd)
    assert f"{url}{'/dataset.json cannot be read: ' if status else ''}" in line
    assert message in line


# --- The cache ------------------------------------------------------------------------------------


def shard_names(dataset: Path) -> list[str]:
    splits = open_dataset(dataset).splits.values()
    return [shard.path for split in splits for shard in split.shards]


def test_a_cache_is_filled_once_and_checked_every_time(remote, dataset, tmp_path):
    cache = tmp_path / "cache"
    for store in ("memory", "stream"):
        loader = loader_of(open_dataset(DATA), store, cache=cache)
        assert_same_batches(loader, loader_of(open_dataset(dataset), store))
    train = [name for name in shard_names(dataset) if name.startswith("train")]
    assert [len(downloads(remote, name)) for name in train] == [1] * len(train)

    for damaged, content in zip(sorted(cache.iterdir()), (b"cut off", None), strict=True):
        kept = bytearray(damaged.read_bytes())
        kept[len(kept) // 2] ^= 1
        damaged.write_bytes(content or kept)
    assert_same_batches(
        loader_of(open_dataset(DATA), "stream", cache=cache),
        loader_of(open_dataset(dataset), "stream"),
    )
    assert [len(downloads(remote, name)) for name in train] == [2] * len(train)
    assert len(list(cache.iterdir())) == len(train)


FETCH = """
import sys
from pathlib import Path
from trainer.data.dataset_folder import SPLITS, open_dataset
from trainer.data.shard_cache import cache_shards
cache_shards(open_dataset(sys.argv[1]), SPLITS, Path(sys.argv[2]))
"""


def fetching(gcs: GcsServer, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, DATA, str(cache)],
        cwd=ROOT,
        env={**ENVIRONMENT, **gcs.environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def check_cache(cache: Path, dataset: Path) -> None:
    expected = sorted((dataset / name).read_bytes() for name in shard_names(dataset))
    assert sorted(path.read_bytes() for path in cache.iterdir()) == expected


def test_processes_that_share_a_cache_fetch_each_shard_once(remote, dataset, tmp_path):
    """Also those of one that was killed while it fetched."""
    held = remote.faults.add("GET", f"/download/.*{shard_names(dataset)[1]}", faults.HOLD)
    killed = fetching(remote, tmp_path)
    assert held.reached.wait(60)
    others = [fetching(remote, tmp_path) for _ in range(2)]
    killed.kill()
    killed.communicate()
    remote.faults.clear()
    for process in others:
        assert process.wait(60) == 0, process.communicate()
        process.communicate()
    check_cache(tmp_path, dataset)
    # Nothing but what the killed one may have begun is fetched twice.
    assert len(downloads(remote, ".tar")) <= len(shard_names(dataset)) + FETCH_THREADS


def test_a_cache_without_room_is_said_before_anything_is_fetched(remote, dataset, tmp_path):
    big = shutil.copytree(dataset, tmp_path / "big")

    def grow(content: dict[str, Any]) -> None:
        content["splits"]["test"]["shards"][0]["bytes"] = 10**18

    datasets.edit_manifest(big, grow)
    remote.put(f"{DATA}/dataset.json", (big / "dataset.json").read_bytes())
    with pytest.raises(DatasetError, match=r"cache has no room for the shards: 1000000000\.0 GB"):
        cache_shards(open_dataset(DATA), ["test"], tmp_path / "cache")
    assert not downloads(remote, ".tar")


def test_a_cache_on_a_disk_that_fills_up_keeps_no_part_of_a_shard(remote, tmp_path):
    code = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n" + FETCH
    done = subprocess.run(
        [sys.executable, "-c", code, DATA, str(tmp_path)],
        cwd=ROOT,
        env={**ENVIRONMENT, **remote.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"--cache {tmp_path} cannot be used: File too large" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_is_no_folder(remote, tmp_path, capfd):
    (tmp_path / "file").touch()
    arguments = [*flags(DATA, tmp_path / "run"), "--cache", str(tmp_path / "file")]
    assert "--cache" in (line := error_line(arguments, capfd))
    assert "cannot be used: File exists" in line


# --- Run folders ----------------------------------------------------------------------------------


def train_arguments(output: str | Path, data: str | Path = DATA, **more: Any) -> list[str]:
    return flags(data, output, **{**MORE, **more})


@pytest.fixture(scope="module")
def unbroken(dataset, tmp_path_factory):
    """A run on this machine's disk that nothing disturbed."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(train_arguments(run, dataset)) == 0
    torch.set_num_threads(before)
    return run


@pytest.fixture
def finished(gcs, dataset, unbroken):
    """A run in the bucket, with its dataset on disk."""
    upload(gcs, unbroken, RUN)
    return gcs


def assert_same_run(run: Path, expected: Path) -> None:
    assert curves(run) == curves(expected)
    assert_equal(last_state(run), last_state(expected))
    assert_equal(best_state(run), best_state(expected))
    for split in ("val", "test"):
        name = f"predictions/{split}.parquet"
        assert (run / name).read_bytes() == (expected / name).read_bytes()


def start(gcs: GcsServer, disk: Path, arguments: list[str]) -> subprocess.Popen[str]:
    """Start a training on a machine of which nothing is left but a new disk."""
    disk.mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", *arguments],
        cwd=ROOT,
        env={**ENVIRONMENT, **gcs.environment, "TMPDIR": str(disk)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_run_goes_on_after_its_machine_is_gone(remote, unbroken, tmp_path):
    """Killed while an upload is under way, then between a marker and what it makes superfluous."""
    points = [("POST", "/upload/", 11), ("DELETE", "/last-", 1)]
    for number, (method, path, skip) in enumerate(points):
        held = remote.faults.add(method, path, faults.HOLD, skip=skip)
        disk = tmp_path / f"disk{number}"
        process = start(remote, disk, train_arguments(RUN))
        assert held.reached.wait(120), process.communicate()
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        shutil.rmtree(disk)
        # What had been sent may yet arrive.
        remote.faults.clear()

    process = start(remote, tmp_path / "last", train_arguments(RUN))
    _, errors = process.communicate(timeout=120)

    assert process.returncode == 0, errors
    found = download(remote, RUN, tmp_path / "run")
    assert_same_run(found, unbroken)
    # What a killed process had sent without a marker that names it is gone as well.
    assert len(list((found / "checkpoints").iterdir())) == 3
    assert not list((tmp_path / "last").glob("lfp-vit-*"))


def test_everything_is_in_the_bucket_whatever_went_wrong_on_the_way(
    remote, unbroken, tmp_path, capfd
):
    met = [
        remote.faults.add("POST", "/upload/", faults.STATUS, status=503, skip=1),
        remote.faults.add("POST", "/upload/", faults.STATUS, status=429, skip=1),
        remote.faults.add("POST", "/upload/", faults.RESET, skip=1),
        # The upload takes place, and its repetition finds what it does not expect.
        remote.faults.add("POST", "/upload/.*ifGenerationMatch=0", faults.LOSE, skip=1),
    ]

    assert main(train_arguments(RUN)) == 0

    assert all(fault.hits for fault in met)
    assert f"{RUN}: 4 requests failed and were repeated" in capfd.readouterr().err
    run = download(remote, RUN, tmp_path / "run")
    assert_same_run(run, unbroken)
    there = {path.relative_to(unbroken).parts[0] for path in unbroken.iterdir()} - {".lock"}
    assert {path.name for path in run.iterdir()} == there
    # No point of a curve is missing.
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    lines = [line for line in curves(run) if line["split"] == "train"]
    points = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert points == [(line["step"], pytest.approx(line["loss"])) for line in lines]


def test_a_run_that_is_told_to_stop_has_its_last_step_in_the_bucket(remote, capfd):
    held = remote.faults.add("POST", "/upload/", faults.HOLD)

    def stop() -> None:
        assert held.reached.wait(60)
        os.kill(os.getpid(), signal.SIGTERM)
        held.release.set()

    other = threading.Thread(target=stop)
    other.start()
    line = error_line(train_arguments(RUN, train__epochs=1000), capfd)
    other.join()

    step = re.search(r"stopped by SIGTERM after step (\d+), which is saved", line)
    assert step
    marker = json.loads(remote.read(f"{RUN}/checkpoints/committed.json"))
    assert marker["last"]["step"] == int(step[1])
    assert f"{RUN}/checkpoints/{marker['last']['path']}" in remote.objects


@pytest.fixture
def sigterm_at_close(monkeypatch):
    """Every mirror is told to stop while it waits for its last copy."""
    close = Mirror.close

    def interrupted(self: Mirror) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        close(self)

    monkeypatch.setattr(Mirror, "close", interrupted)


def test_a_signal_while_the_last_files_are_copied_takes_none_of_them(
    gcs, sigterm_at_close, monkeypatch
):
    held = gcs.faults.add("POST", "/upload/", faults.HOLD)
    with (
        pytest.raises(TrainerError, match=r"stopped by SIGTERM.*is kept in") as error,
        interruptible(),
        open_run(RUN) as run,
    ):
        write(run.path, "checkpoints/last.pt", "the only one")
    kept = Path(one_line(error).split(f"what is missing in {RUN} is kept in ")[1])
    try:
        assert (kept / "checkpoints/last.pt").read_text() == "the only one"
    finally:
        held.release.set()
        shutil.rmtree(kept)


def test_a_training_that_is_done_copies_its_last_files_whoever_wants_it_to_stop(
    gcs, dataset, sigterm_at_close
):
    assert main(train_arguments(RUN, dataset, train__epochs=1)) == 0

    assert "metrics/test.json" in gcs.list(RUN)


def test_a_run_whose_uploads_are_refused_ends_in_one_line_and_keeps_its_files(remote, capfd):
    remote.faults.add("POST", "/upload/", faults.STATUS, status=403, times=None, skip=9)

    line = error_line(train_arguments(RUN), capfd)

    assert f"cannot write to {RUN}" in line
    assert "403 Forbidden: this account needs the role Storage Object User" in line
    kept = Path(line.split(" is kept in ")[1])
    try:
        marker = read_marker(kept / "checkpoints")
        assert marker
        assert load_checkpoint(kept / "checkpoints", marker.last)["step"] == marker.last.step
    finally:
        shutil.rmtree(kept)


def test_a_run_in_a_bucket_that_does_not_exist(remote, capfd):
    line = error_line(train_arguments("gs://nobody/runs/r1"), capfd)
    assert line == "error: gs://nobody/runs/r1: 404 Not Found: there is no such bucket"
    with pytest.raises(RemoteError, match=r"page\.html: 404 Not Found: there is no such bucket"):
        write_file("gs://nobody/page.html", b"")


def test_a_run_is_given_a_folder_of_its_own(remote, capfd):
    assert main(train_arguments("gs://lab/")) == 2
    assert "gs://lab is a whole bucket: name a folder in it" in capfd.readouterr().err
    assert main(train_arguments(DATA)) == 2
    assert f"--output {DATA} is a dataset" in capfd.readouterr().err
    assert not downloads(remote, ".tar")


def test_a_run_that_someone_else_goes_on_with_ends(finished, dataset, unbroken, capfd):
    log = (unbroken / "metrics.jsonl").read_bytes()
    finished.put(f"{RUN}/metrics.jsonl", log)
    held = finished.faults.add("POST", "/upload/", faults.HOLD)
    other = threading.Thread(
        target=lambda: (
            held.reached.wait(60)
            and (finished.put(f"{RUN}/metrics.jsonl", log), held.release.set())
        )
    )
    other.start()

    line = error_line(train_arguments(RUN, dataset, train__epochs=3), capfd)

    other.join()
    assert f"{RUN}/metrics.jsonl was written by another process meanwhile" in line
    assert finished.read(f"{RUN}/metrics.jsonl") == log
    shutil.rmtree(line.split(" is kept in ")[1])


def test_every_command_works_on_a_run_in_a_bucket(finished, capfd):
    before = finished.list(RUN)
    best = json.loads(before["checkpoints/committed.json"])["best"][0]["path"]
    for command in (["evaluate", RUN, "--split", "val"], ["attention", RUN, "--max_sequences=4"]):
        finished.requests.clear()
        assert main(command) == 0
        # Of all checkpoints, the one that is used.
        fetched = downloads(finished, ".pt")
        assert fetched
        assert all(best in path for path in fetched)
    finished.requests.clear()
    assert main(["report", RUN]) == 0
    assert not downloads(finished, ".pt")
    assert main(["report", RUN, "--output", "gs://lab/pages/all.html"]) == 0
    assert "The report is in gs://lab/pages/all.html" in capfd.readouterr().out

    found = finished.list(RUN)
    new = {name.partition("/")[0] for name in found.keys() - before.keys()}
    assert new == {"attention", "report.html"}
    # What an evaluation had written comes out again, byte for byte, and nothing else is touched.
    assert {name: found[name] for name in before} == before
    assert b"<html" in found["report.html"]
    assert finished.read("gs://lab/pages/all.html") == found["report.html"]


def test_an_unknown_run_is_named_by_its_url(gcs, capfd):
    line = error_line(["evaluate", "gs://lab/nothing/"], capfd)
    assert line.startswith("error: gs://lab/nothing has no config.yaml: it is no run folder")
    line = error_line(["report", "gs://lab/nothing"], capfd)
    assert "gs://lab/nothing has no config.yaml" in line


OPEN = """
import sys
import trainer.training.command, trainer.evaluation.command, trainer.report.command
from trainer.data.dataset_folder import open_dataset
from trainer.run_folder import open_run, write_file
with open_run(sys.argv[2], alone=True) as folder:
    open_dataset(sys.argv[1]).read_sessions()
    folder.push()
print(*sys.modules)
"""


def test_a_run_on_disk_loads_no_cloud_client(dataset, tmp_path):
    command = [sys.executable, "-c", OPEN, str(dataset), str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "trainer.training.command" in loaded
    assert not loaded & {"aiohttp", "gcsfs", "google.auth", "google.cloud.storage", "requests"}


# --- The mirror -----------------------------------------------------------------------------------

MARKER = "checkpoints/committed.json"


@pytest.fixture
def mirrored(gcs, tmp_path):
    """A function that opens the mirror of a folder, and ends it."""
    opened: list[Mirror] = []

    def open_mirror(live: tuple[str, ...] = (), **options: float) -> tuple[Path, Mirror]:
        folder = tmp_path / f"folder{len(opened)}"
        folder.mkdir()
        found = Mirror(
            folder, GcsFolder(RUN, **options), marker=MARKER, live=live, guarded=("checkpoints/",)
        )
        found.pull(without=())
        found.start()
        opened.append(found)
        return folder, found

    yield open_mirror
    gcs.faults.clear()
    for found in opened:
        if found.failure is None:
            found.close()


def write(folder: Path, name: str, content: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content)


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_marker_goes_last_and_what_it_does_not_name_goes_after_it(gcs, mirrored):
    folder, opened = mirrored()
    for name in ("checkpoints/a.pt", MARKER, "zz.txt"):
        write(folder, name, "1")
    opened.push()
    wait_until(lambda: len(gcs.list(RUN)) == 3)
    generations = {
        name: gcs.store.buckets["lab"][f"vertex-runs/r1/{name}"].generation
        for name in ("checkpoints/a.pt", MARKER, "zz.txt")
    }
    assert max(generations, key=lambda name: generations[name]) == MARKER

    (folder / "checkpoints/a.pt").unlink()
    write(folder, "checkpoints/b.pt", "2")
    write(folder, MARKER, "22")
    opened.push()
    opened.close()
    assert gcs.list(RUN) == {"checkpoints/b.pt": b"2", MARKER: b"22", "zz.txt": b"1"}
    methods = [(m, path.rpartition("/")[2]) for m, path in gcs.requests if m in ("POST", "DELETE")]
    assert [method for method, _ in methods[-3:]] == ["POST", "POST", "DELETE"]
    assert "a.pt" in methods[-1][1]


def test_what_is_copied_is_the_folder_as_it_was_when_it_was_pushed(gcs, mirrored):
    folder, opened = mirrored()
    held = gcs.faults.add("POST", "/upload/", faults.HOLD)
    write(folder, "checkpoints/a.pt", "whole")
    write(folder, "log", "one\n")
    opened.push()
    assert held.reached.wait(60)
    with (folder / "log").open("a") as file:
        file.write("two\n")
    (folder / "checkpoints/a.pt").unlink()
    write(folder, "late", "not pushed")
    held.release.set()
    wait_until(lambda: len(gcs.list(RUN)) == 2)
    assert gcs.list(RUN) == {"checkpoints/a.pt": b"whole", "log": b"one\n"}


def test_a_snapshot_that_waits_is_replaced_by_a_newer_one(gcs, mirrored):
    folder, opened = mirrored()
    held = gcs.faults.add("POST", "/upload/", faults.HOLD)
    for number in range(5):
        write(folder, f"checkpoints/{number}.pt", "x")
        write(folder, MARKER, str(number))
        opened.push()
        if number == 0:
            assert held.reached.wait(60)
        (folder / f"checkpoints/{number}.pt").unlink()
    held.release.set()
    opened.close()
    assert gcs.list(RUN) == {"checkpoints/4.pt": b"x", MARKER: b"4"}
    assert len([path for method, path in gcs.requests if method == "POST"]) == 4


def test_what_is_only_appended_to_is_copied_between_checkpoints(gcs, mirrored, monkeypatch):
    monkeypatch.setattr(mirror_module, "LIVE_SECONDS", 0.02)
    folder, _ = mirrored(live=("metrics.jsonl", "tensorboard/"))
    write(folder, "tensorboard/events", "1")
    write(folder, "checkpoints/half.pt", "not pushed")
    wait_until(lambda: gcs.list(RUN) == {"tensorboard/events": b"1"})
    write(folder, "tensorboard/events", "12")
    write(folder, "metrics.jsonl", "1")
    wait_until(lambda: gcs.list(RUN) == {"tensorboard/events": b"12", "metrics.jsonl": b"1"})


def test_a_snapshot_that_the_store_had_no_time_for_is_sent_later(gcs, mirrored, monkeypatch):
    monkeypatch.setattr(mirror_module, "LIVE_SECONDS", 0.01)
    folder, opened = mirrored(patience=0.0)
    busy = gcs.faults.add("POST", "/upload/", faults.STATUS, times=3)
    write(folder, MARKER, "1")
    opened.push()
    wait_until(lambda: gcs.list(RUN) == {MARKER: b"1"})
    assert busy.hits == 3

    gcs.faults.add("POST", "/upload/", faults.STATUS, times=None)
    write(folder, MARKER, "2")
    opened.push()
    wait_until(lambda: opened.failure is not None)
    with pytest.raises(RemoteError, match="503 Service Unavailable"):
        opened.push()


def test_a_machine_that_gives_no_token_for_a_while_ends_no_training(gcs, mirrored, monkeypatch):
    monkeypatch.setattr(mirror_module, "LIVE_SECONDS", 0.01)
    folder, opened = mirrored()
    asked = []

    def refuse_twice(*_: object) -> None:
        # As google.auth says that the metadata server did not answer; tokens last an hour.
        asked.append(1)
        if len(asked) <= 2:
            cause = TransportError("Failed to retrieve http://metadata.google.internal/")
            raise RefreshError(cause) from cause

    monkeypatch.setattr(AnonymousCredentials, "before_request", refuse_twice)
    write(folder, MARKER, "1")
    opened.push()
    wait_until(lambda: opened.failure or gcs.list(RUN) == {MARKER: b"1"})
    assert opened.failure is None


class OneFails(GcsFolder):
    """A folder whose first upload waits, and then fails for a reason that passes."""

    def __init__(self, gcs: GcsServer) -> None:
        super().__init__(RUN, patience=0.0)
        self.reached, self.release = threading.Event(), threading.Event()
        self._fault = gcs.faults.add("POST", "/upload/", faults.STATUS)

    def upload(self, *arguments: Any) -> int:
        self.reached.set()
        assert self.release.wait(60)
        return super().upload(*arguments)


def test_the_last_snapshot_is_sent_although_the_one_before_it_fails_at_the_end(gcs, tmp_path):
    remote = OneFails(gcs)
    opened = Mirror(tmp_path, remote, marker=MARKER, live=(), guarded=())
    opened.start()
    write(tmp_path, MARKER, "1")
    opened.push()
    assert remote.reached.wait(60)
    write(tmp_path, "predictions", "the results")
    opened.push()

    def release_at_close() -> None:
        wait_until(lambda: opened._closing)
        remote.release.set()

    other = threading.Thread(target=release_at_close)
    other.start()

    opened.close()

    other.join()
    assert gcs.list(RUN) == {MARKER: b"1", "predictions": b"the results"}


def test_what_is_flushed_is_there(gcs, mirrored):
    folder, opened = mirrored(patience=0.0)
    for content in ("1", "22"):
        write(folder, MARKER, content)
        opened.flush()
        assert gcs.list(RUN) == {MARKER: content.encode()}
    gcs.faults.add("POST", "/upload/", faults.STATUS, times=None)
    write(folder, MARKER, "333")
    with pytest.raises(RemoteError, match="503 Service Unavailable"):
        opened.flush()


def test_of_two_that_write_checkpoints_the_second_ends(gcs, mirrored):
    (first, one), (second, other) = mirrored(), mirrored()
    write(first, MARKER, "first")
    write(first, "report.html", "first")
    one.push()
    wait_until(lambda: len(gcs.list(RUN)) == 2)
    # A page is written by whoever comes last.
    write(second, "report.html", "second")
    write(second, MARKER, "second")
    other.push()
    with pytest.raises(RemoteError, match=r"committed\.json was written by another process"):
        other.close()
    with pytest.raises(RemoteError, match=r"committed\.json was written by another process"):
        other.push()
    assert gcs.list(RUN) == {"report.html": b"second", MARKER: b"first"}


def test_a_file_that_is_gone_before_it_is_fetched_makes_the_folder_be_listed_again(gcs, mirrored):
    gcs.put(f"{RUN}/{MARKER}", b"old")
    for name in ("checkpoints/old.pt", "checkpoints/older.pt", ""):
        gcs.put(f"{RUN}/{name}", b"old")
    held = gcs.faults.add("GET", "/download/.*older.pt", faults.HOLD)

    def replace() -> None:
        assert held.reached.wait(60)
        wait_until(lambda: len(downloads(gcs)) == 3)
        gcs.put(f"{RUN}/checkpoints/new.pt", b"new")
        gcs.put(f"{RUN}/{MARKER}", b"new")
        gcs.delete(f"{RUN}/checkpoints/old.pt")
        gcs.delete(f"{RUN}/checkpoints/older.pt")
        held.release.set()

    other = threading.Thread(target=replace)
    other.start()
    folder, _ = mirrored()
    other.join()
    found = {path.name: path.read_text() for path in (folder / "checkpoints").iterdir()}
    assert found == {"committed.json": "new", "new.pt": "new"}


def test_a_name_that_leads_out_of_the_folder_is_refused(gcs, tmp_path):
    gcs.put(f"{RUN}/../../evil", b"")
    with pytest.raises(RemoteError, match=r"'\.\./\.\./evil' is no name"), open_run(RUN):
        pass


def test_copies_for_vertex_are_not_fetched_with_a_run(gcs):
    for name in ("config.yaml", "logs/events.1", "model/model.pt", "tensorboard/events.1"):
        gcs.put(f"{RUN}/{name}", b"1")
    with open_run(RUN) as run:
        assert [path.name for path in run.path.rglob("*") if path.is_file()] == ["config.yaml"]
    assert len(gcs.list(RUN)) == 4


def test_a_file_that_another_process_removed_is_said_to_be_its_doing(gcs):
    remote = GcsFolder(RUN)
    version = remote.upload("a.txt", io.BytesIO(b"1"), 1, 0)
    gcs.delete(f"{RUN}/a.txt")
    with pytest.raises(RemoteError, match=r"a\.txt was written by another process"):
        remote.upload("a.txt", io.BytesIO(b"2"), 1, version)


def test_a_status_that_only_google_knows_is_said(gcs):
    gcs.faults.add("POST", "/upload/", faults.STATUS, times=None, status=499)
    with pytest.raises(RemoteError, match=r"a\.txt: 499: the same command goes on"):
        GcsFolder(RUN, patience=0.0).upload("a.txt", io.BytesIO(b"1"), 1, 0)


def test_a_request_whose_answer_is_lost_has_taken_place_once(gcs, tmp_path):
    remote = GcsFolder(RUN)
    lost = gcs.faults.add("POST|DELETE", "/lab/o", faults.LOSE, times=None)

    def repeated(request: Callable[[], Any]) -> Any:
        """Lose the first answer to a request."""
        lost.times = lost.hits + 1
        result = request()
        assert lost.hits == lost.times
        return result

    first = repeated(lambda: remote.upload("a.txt", io.BytesIO(b"1"), 1, 0))
    second = repeated(lambda: remote.upload("a.txt", io.BytesIO(b"2"), 1, first))
    assert remote.list_files() == {"a.txt": second}
    with pytest.raises(RemoteError, match=r"a\.txt was written by another process"):
        remote.upload("a.txt", io.BytesIO(b"3"), 1, first)
    with pytest.raises(RemoteError, match=r"a\.txt was written by another process"):
        remote.delete("a.txt", first)
    assert gcs.list(RUN) == {"a.txt": b"2"}
    repeated(lambda: remote.delete("a.txt", second))
    assert gcs.list(RUN) == {}


def test_large_files_come_and_go_whole(gcs, tmp_path):
    """Those that are sent in a session of several requests."""
    remote = GcsFolder(RUN)
    content = os.urandom(9 << 20)
    met = [
        gcs.faults.add("PUT", "upload_id", faults.PERSIST_HALF),
        gcs.faults.add("PUT", "upload_id", faults.STATUS),
        gcs.faults.add("PUT", "upload_id", faults.LOSE),
        gcs.faults.add("GET", DOWNLOAD, faults.CORRUPT),
        gcs.faults.add("GET", DOWNLOAD, faults.TRUNCATE),
    ]
    # Something is appended meanwhile.
    remote.upload("a.pt", io.BytesIO(content + b"more"), len(content), 0)
    assert gcs.read(f"{RUN}/a.pt") == content
    remote.download("a.pt", tmp_path / "a.pt")
    assert (tmp_path / "a.pt").read_bytes() == content
    assert [fault.hits for fault in met] == [1] * 5
    assert remote.repeated >= 5
