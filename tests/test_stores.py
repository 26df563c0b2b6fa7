"""The stores: what they deliver against what WebDataset reads, and against each other."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import fsspec
import numpy as np
import pytest
import torch

from tests import datasets
from tests.datasets import recording
from trainer.config import LoaderConfig, SequenceConfig
from trainer.data.dataset_folder import open_dataset
from trainer.data.leakage import LeakageError
from trainer.data.loader import Batch, SequenceLoader, make_loader, open_loaders
from trainer.data.storage import DatasetError
from trainer.data.store_choice import container_available, memory_budget, store_that_fits
from trainer.errors import UsageError

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]
SEQUENCE = SequenceConfig(n_trials=6, max_gap=1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return datasets.small_dataset(tmp_path_factory)


def loader_of(
    path: Path | str,
    store: Literal["auto", "device", "memory", "stream"],
    *,
    workers: int = 0,
    sequence: SequenceConfig = SEQUENCE,
    split: str = "train",
    **options: Any,
) -> SequenceLoader:
    chosen: dict[str, Any] = {"batch_size": 7, "seed": 3, "shuffle": True, **options}
    config = LoaderConfig(store, num_workers=workers)
    return make_loader(open_dataset(path), split, sequence, config, device=CPU, **chosen)


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("x", "label", "mask", "index"))


def check_epoch(loader: SequenceLoader, path: Path, epoch: int = 0) -> list[int]:
    """Compare an epoch with what WebDataset reads; return the order of its sequences."""
    expected = datasets.read_trials(path, loader.split)
    trials, seen = loader.trials, list[int]()
    n_batches = 0
    for batch in loader.batches(epoch):
        n_batches += 1
        n_trials = loader.sequences.rows.shape[1]
        assert batch.x.shape == (loader.batch_size, n_trials, *loader.folder.shape)
        assert batch.x.dtype == torch.float16
        assert batch.label.dtype == batch.index.dtype == torch.int64
        for x, label, mask, index in zip(*vars(batch).values(), strict=True):
            if not mask:
                assert (int(index), int(label), int(x.count_nonzero())) == (-1, 0, 0)
                continue
            seen.append(int(index))
            for values, row in zip(x.numpy(), loader.sequences.rows[int(index)], strict=True):
                key = trials.sessions[trials.session[row]], int(trials.trial_num[row])
                np.testing.assert_array_equal(values, expected[key]["spectrogram"])
                assert int(label) == expected[key]["label"]
    assert n_batches == loader.steps_per_epoch
    return seen


# --- What is delivered ----------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("store", "workers"),
    [("device", 0), ("memory", 0), ("stream", 0), ("stream", 1), ("stream", 2)],
)
def test_every_store_delivers_every_sequence_once(
    dataset: Path, store: Any, workers: int, shuffle: bool
) -> None:
    loader = loader_of(dataset, store, workers=workers, shuffle=shuffle)
    orders = [check_epoch(loader, dataset, epoch) for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(len(loader.sequences)))
    assert (orders[0] != orders[1]) is shuffle
    assert check_epoch(loader, dataset, 1) == orders[1]


@pytest.mark.parametrize("n_trials", [1, 4, 5, 9, 14])
@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_sequences_may_span_blocks(dataset: Path, n_trials: int, workers: int) -> None:
    """A block holds 4 trials; a gap may be anywhere."""
    sequence = SequenceConfig(n_trials, stride=3, max_gap=10)
    loader = loader_of(dataset, "stream", workers=workers, sequence=sequence)
    assert sorted(check_epoch(loader, dataset)) == list(range(len(loader.sequences)))


def test_device_and_memory_are_equal_bit_for_bit(dataset: Path) -> None:
    device, memory = (loader_of(dataset, store) for store in ("device", "memory"))
    for epoch in range(3):
        pairs = list(zip(device.batches(epoch), memory.batches(epoch), strict=True))
        assert all(equal(a, b) for a, b in pairs)


def test_a_stream_is_the_same_whoever_reads_it(dataset: Path) -> None:
    in_process, by_worker = (loader_of(dataset, "stream", workers=n) for n in (0, 1))
    batches = list(zip(in_process.batches(2), by_worker.batches(2), strict=True))
    assert all(equal(a, b) for a, b in batches)


@pytest.mark.parametrize(
    ("store", "workers"), [("device", 0), ("memory", 0), ("stream", 0), ("stream", 2)]
)
@pytest.mark.parametrize("start_step", [1, 2, 5])
def test_an_epoch_goes_on_where_it_was_left(
    dataset: Path, store: Any, workers: int, start_step: int
) -> None:
    whole = list(loader_of(dataset, store, workers=workers).batches(1))
    rest = list(loader_of(dataset, store, workers=workers).batches(1, start_step))
    assert len(rest) == len(whole) - start_step > 1
    assert all(equal(a, b) for a, b in zip(rest, whole[start_step:], strict=True))


def test_batches_stay_what_they_are_as_long_as_they_are_held(dataset: Path) -> None:
    loader = loader_of(dataset, "stream", workers=1)
    held = list(loader.batches(0))
    # Slots of the workers are used again and again meanwhile.
    again = [batch.x.clone() for batch in loader.batches(0)]
    assert all(torch.equal(a.x, b) for a, b in zip(held, again, strict=True))


def test_a_stream_can_be_left_and_begun_again(dataset: Path) -> None:
    loader = loader_of(dataset, "stream", workers=2)
    expected = list(loader.batches(4))
    for taken in (0, 1, 3):
        left = loader.batches(5)
        for _ in range(taken):
            next(left)
        found = list(loader.batches(4))
        assert all(equal(a, b) for a, b in zip(found, expected, strict=True))
        if taken:
            with pytest.raises(RuntimeError, match="another pass"):
                next(left)


def test_a_stream_of_more_shards_than_may_be_open(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.data.range_reader.MOST_OPEN_FILES", 1)
    check_epoch(loader_of(dataset, "stream"), dataset)


def test_a_stream_takes_no_random_numbers_from_torch(dataset: Path) -> None:
    loader = loader_of(dataset, "stream", workers=1)
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    list(loader.batches(0))
    list(loader.batches(1, 2))
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_remote_store_is_streamed_like_a_disk(dataset: Path, workers: int) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(dataset), "/remote/dataset", recursive=True)
    sequence = SequenceConfig(6, stride=1, max_gap=10)
    try:
        remote = loader_of("memory://remote/dataset", "stream", workers=workers, sequence=sequence)
        local = loader_of(dataset, "stream", sequence=sequence)
        pairs = list(zip(remote.batches(1, 3), local.batches(1, 3), strict=True))
        assert len(pairs) > 20
        assert all(equal(a, b) for a, b in pairs)
    finally:
        memory.rm("/remote", recursive=True)


@pytest.mark.parametrize(("store", "workers"), [("device", 0), ("memory", 0), ("stream", 1)])
def test_ranks_with_unequal_shards_take_equal_steps(
    tmp_path: Path, store: Any, workers: int
) -> None:
    splits = {"train": [recording("a", "WT", 30, n_block=9), recording("b", "FMR1", 11)]}
    path = datasets.write_dataset(tmp_path, splits, n_shards=3)
    loaders = [
        loader_of(path, store, workers=workers, batch_size=4, rank=rank, world_size=3)
        for rank in range(3)
    ]
    seen = [check_epoch(loader, path) for loader in loaders]
    assert sorted(i for order in seen for i in order) == list(range(len(loaders[0].sequences)))


# --- What is said before --------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["device", "memory", "stream"])
def test_the_plan(dataset: Path, store: Any) -> None:
    loader = loader_of(dataset, store, world_size=2, workers=1)
    plan = loader.describe()
    expected = datasets.read_trials(dataset, "train")
    assert (plan.split, plan.store, plan.batch_size) == ("train", store, 7)
    assert plan.n_trials == len(expected)
    assert sum(plan.sequences_per_class.values()) == plan.n_sequences == len(loader.sequences)
    labels = loader.trials.labels[loader.sequences.session]
    for label, name in enumerate(loader.folder.classes):
        assert plan.sequences_per_class[name] == np.count_nonzero(labels == label)
    assert plan.steps_per_epoch == -(-plan.n_sequences // 14)
    n_bytes = sum(trial["spectrogram"].nbytes for trial in expected.values())
    assert plan.n_bytes == (0 if store == "stream" else n_bytes)
    assert plan.shards == 3
    assert len(plan.shards_per_rank) == 2
    assert max(plan.shards_per_rank) <= 3
    used = len(np.unique(loader.sequences.rows))
    assert 0 < sum(plan.dropped.values()) == len(expected) - used
    assert set(plan.dropped) == {"trials_short_session", "trials_gap", "trials_tail"}
    held = set(loader.trials.session[loader.sequences.rows].ravel().tolist())
    assert sum(plan.sessions_per_class.values()) == len(held)
    assert {one.session for one in plan.lost} == {
        name for index, name in enumerate(loader.trials.sessions) if index not in held
    }


def test_open_loaders_gives_train_and_val_behind_the_gate(dataset: Path, tmp_path: Path) -> None:
    folder = open_dataset(dataset)
    config = LoaderConfig("stream", num_workers=0)
    options: dict[str, Any] = {"batch_size": 7, "device": CPU, "seed": 3}
    loaders, plans = open_loaders(folder, SEQUENCE, config, cache=tmp_path, **options)
    assert list(loaders) == ["train", "val"]
    assert plans["val"] == loaders["val"].describe()
    test = loader_of(dataset, "memory", split="test", shuffle=False)
    assert plans["test"] == replace(test.describe(), store="", n_bytes=0, shards_per_rank=())
    assert check_epoch(loaders["train"], dataset) != check_epoch(loaders["train"], dataset, 1)
    assert check_epoch(loaders["val"], dataset) == check_epoch(loaders["val"], dataset, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"verified-{split}.npz" for split in ("test", "train", "val")
    ]


@pytest.mark.parametrize("store", ["memory", "stream"])
def test_open_loaders_refuses_a_copy_in_test(tmp_path: Path, store: Any) -> None:
    def plant(sample: Any) -> Any:
        if sample.key not in ("a-000001", "c-000001"):
            return sample
        spectrogram = sample.spectrogram.copy()
        spectrogram[1] = np.arange(24).reshape(3, 8)
        return replace(sample, spectrogram=spectrogram)

    splits = {
        "train": [recording("a", "WT", 8), recording("b", "FMR1", 8)],
        "test": [recording("c", "WT", 8)],
    }
    folder = open_dataset(datasets.write_dataset(tmp_path, splits, plant))
    config = LoaderConfig(store, num_workers=0)
    with pytest.raises(LeakageError, match="trial 5 of session a in train and trial 5 of"):
        open_loaders(folder, SequenceConfig(4), config, batch_size=2, device=CPU, seed=0)


def test_open_loaders_without_val(tmp_path: Path) -> None:
    splits = {"train": [recording("a", "WT", 8), recording("b", "FMR1", 8)]}
    folder = open_dataset(datasets.write_dataset(tmp_path, splits))
    config = LoaderConfig()
    found, plans = open_loaders(folder, SequenceConfig(4), config, batch_size=2, device=CPU, seed=0)
    assert list(found) == list(plans) == ["train"]
    with pytest.raises(DatasetError, match="has no trials in val"):
        loader_of(folder.url, "memory", split="val")


# --- What cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["memory", "stream"])
def test_sequences_longer_than_every_session(dataset: Path, store: Any) -> None:
    with pytest.raises(UsageError, match="n_trials 31 is longer than every session of train"):
        loader_of(dataset, store, sequence=SequenceConfig(31))


def test_sequences_that_all_have_a_gap(tmp_path: Path) -> None:
    gaps = {i: [8 * i, 8 * i + 3, 8 * i + 6] for i in range(5)}
    splits = {
        "train": [datasets.Recording(c, c, c, gaps) for c in ("WT", "FMR1")],
    }
    path = datasets.write_dataset(tmp_path, splits)
    with pytest.raises(UsageError, match=r"has 3 in a row with gaps of at most 1: lower"):
        loader_of(path, "memory", sequence=SequenceConfig(3, max_gap=1))
    assert len(loader_of(path, "memory", sequence=SequenceConfig(3, max_gap=2)).sequences) > 0


def test_a_class_whose_sessions_are_all_too_short(tmp_path: Path) -> None:
    splits = {"train": [recording("a", "WT", 12), recording("b", "FMR1", 5)]}
    path = datasets.write_dataset(tmp_path, splits)
    with pytest.raises(DatasetError, match="train has no sequence of 6 trials of class FMR1") as e:
        loader_of(path, "memory")
    assert "lower --sequence.n_trials, because its longest session has 5 trials" in str(e.value)


def test_a_class_whose_sessions_all_have_gaps(tmp_path: Path) -> None:
    holes = datasets.Recording("b", "b", "FMR1", {i: [9 * i, 9 * i + 1, 9 * i + 5] for i in (0, 1)})
    path = datasets.write_dataset(tmp_path, {"train": [recording("a", "WT", 12), holes]})
    with pytest.raises(DatasetError, match=r"of class FMR1.*: raise --sequence.max_gap or lower"):
        loader_of(path, "memory")


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_loses_all_its_sequences_in_another_split(tmp_path: Path, split: str) -> None:
    classes = {"WT": 12, "FMR1": 12}
    splits = {
        name: [recording(f"{name}{c}", c, n) for c, n in classes.items()]
        for name in ("train", "val", "test")
    }
    splits[split] = [recording("a", "WT", 12), recording("b", "FMR1", 5)]
    folder = open_dataset(datasets.write_dataset(tmp_path, splits))
    with pytest.raises(DatasetError, match=f"{split} has no sequence of 6 .* class FMR1") as error:
        open_loaders(folder, SEQUENCE, LoaderConfig(), batch_size=2, device=CPU, seed=0)
    assert "would be missing from every metric: lower --sequence.n_trials" in str(error.value)


@pytest.mark.parametrize("store", ["device", "memory", "stream"])
def test_a_damaged_shard_is_refused_by_every_store(
    dataset: Path, tmp_path: Path, store: Any
) -> None:
    path = Path(shutil.copytree(dataset, tmp_path / "dataset"))
    shard = path / open_dataset(path).splits["train"].shards[2].path
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DatasetError, match="train-00002-of-00003"):
        loader_of(path, store)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["cut off", "gone"])
def test_a_shard_that_breaks_while_it_is_streamed(
    dataset: Path, tmp_path: Path, workers: int, damage: str
) -> None:
    path = Path(shutil.copytree(dataset, tmp_path / "dataset"))
    loader = loader_of(path, "stream", workers=workers)
    shard = path / loader.folder.splits["train"].shards[1].path
    if damage == "gone":
        shard.unlink()
    else:
        os.truncate(shard, 2000)
    with pytest.raises(DatasetError, match="train-00001-of-00003") as error:
        list(loader.batches(0))
    assert "\n" not in str(error.value)


def test_a_worker_that_is_ended_from_outside(dataset: Path) -> None:
    code = """
import pathlib
batches = loader.batches(0)
next(batches)
children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
os.kill(int(children[0]), signal.SIGKILL)
try:
    for _ in batches:
        pass
except Exception as error:
    # Where it is noticed first is up to chance.
    print(str(error))
"""
    process = start(PROGRAM + code, str(dataset))
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert "is killed by signal: Killed" in output or "exited unexpectedly" in output


# --- Which store ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "device", "expected"),
    [
        (200, 150, "device"),
        (200, 90, "memory"),
        (50, 150, "device"),
        (50, 90, "stream"),
        (200, None, "memory"),
        (100, None, "memory"),
        (99, None, "stream"),
    ],
)
def test_the_fastest_store_that_has_room(memory: int, device: int | None, expected: str) -> None:
    assert store_that_fits("auto", 100, memory, device) == expected
    assert store_that_fits("stream", 100, memory, device) == "stream"


@pytest.mark.parametrize(
    ("wanted", "device"), [("memory", 10**12), ("device", 10), ("device", None)]
)
def test_a_store_that_is_too_small(wanted: Any, device: int | None) -> None:
    with pytest.raises(UsageError, match=rf"take 5\.0 GB; --loader\.store {wanted} has room for"):
        store_that_fits(wanted, 5 * 10**9, 10**9, device)


def test_the_budget_chooses_the_store(dataset: Path) -> None:
    folder = open_dataset(dataset)
    n_bytes = folder.splits["train"].trials * folder.trial_bytes
    for room, expected in ((1.01 * n_bytes, "memory"), (0.99 * n_bytes, "stream")):
        config = LoaderConfig(memory_gb=room / 1e9, num_workers=0)
        loader = make_loader(
            folder, "train", SEQUENCE, config, batch_size=7, device=CPU, seed=0, shuffle=True
        )
        assert loader.describe().store == expected


def test_the_memory_of_a_container(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert container_available(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    total = container_available(tmp_path / "nowhere")
    assert container_available(tmp_path) == total
    assert 0 < memory_budget(None) < total
    assert memory_budget(1.5) == 1_500_000_000


# --- Processes ------------------------------------------------------------------------------------

PROGRAM = """
import os, signal, sys, time
import torch
from trainer.config import LoaderConfig, SequenceConfig
from trainer.data.dataset_folder import open_dataset
from trainer.data.loader import make_loader

loader = make_loader(
    open_dataset(sys.argv[1]), "train", SequenceConfig(6), LoaderConfig("stream", num_workers=2),
    batch_size=2, device=torch.device("cpu"), seed=0, shuffle=True,
)
"""


def start(program: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_process_that_fails_in_the_middle_of_a_stream_ends_at_once(dataset: Path) -> None:
    code = (
        "batches = loader.batches(0); next(batches); print('one', flush=True); raise SystemExit(3)"
    )
    process = start(PROGRAM + code, str(dataset))
    assert process.stdout is not None
    assert process.stdout.readline() == "one\n"
    # Not after the minute that workers live on when they are told to stop.
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (3, "")


SLOW_START = """
import time
from trainer.data import stream_store
ready = stream_store._outlive_signals
def slow_start(ending, worker):
    time.sleep(worker)
    ready(ending, worker)
stream_store._outlive_signals = slow_start
"""


@pytest.mark.parametrize("before", ["", SLOW_START], ids=["at work", "starting"])
def test_workers_outlive_a_signal_to_the_whole_group(dataset: Path, before: str) -> None:
    """As a batch system sends it: the training process still finishes what it does."""
    code = """
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGINT, lambda *_: None)
for step, batch in enumerate(loader.batches(0)):
    print(step, flush=True)
    if step == 0:
        sys.stdin.readline()
        time.sleep(0.2)
print("done", loader.steps_per_epoch)
"""
    process = start(before + PROGRAM + code, str(dataset))
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    os.killpg(process.pid, signal.SIGTERM)
    os.killpg(process.pid, signal.SIGINT)
    process.stdin.write("go on\n")
    process.stdin.flush()
    output, errors = process.communicate(timeout=30)
    lines = output.split("\n")
    assert (process.returncode, errors) == (0, "")
    assert lines[-2] == f"done {len(lines) - 1}"


RANK = """
import os, re, sys
import torch
import torch.distributed as dist
from trainer.config import LoaderConfig, SequenceConfig
from trainer.data.dataset_folder import open_dataset
from trainer.errors import TrainerError
from trainer.data.loader import open_loaders

rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
dist.init_process_group(
    "gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=world_size
)
try:
    for store in ("memory", "device", "stream"):
        loaders, _ = open_loaders(
            open_dataset(sys.argv[1]), SequenceConfig(6, max_gap=1),
            LoaderConfig(store, num_workers=1), batch_size=5, device=torch.device("cpu"), seed=0,
            rank=rank, world_size=world_size,
        )
        steps, seen, total = 0, [], 0.0
        for batch in loaders["train"].batches(0):
            # A step in which the ranks wait for each other.
            dist.all_reduce(torch.zeros(1))
            steps += 1
            seen += batch.index[batch.mask].tolist()
            total += float(batch.x.double().sum())
        maps = open("/proc/self/maps").read()
        files = sorted(set(re.findall(r"(\\d+) +(\\S*/lfp-vit-\\S+)", maps)))
        print(store, steps, ",".join(map(str, seen)), total, files, sep=";")
except TrainerError as error:
    print(f"error: {error}")
dist.destroy_process_group()
"""


def run_ranks(path: Path, meeting: Path, n: int = 2) -> list[list[str]]:
    processes = [
        start(
            RANK,
            *(str(path), str(meeting)),
            **{"RANK": str(rank), "LOCAL_RANK": str(rank)},
            **{"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n)},
        )
        for rank in range(n)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * n, outputs
    return [output.splitlines() for output, _ in outputs]


def test_two_ranks_share_one_copy_and_all_sequences(dataset: Path, tmp_path: Path) -> None:
    lines = run_ranks(dataset, tmp_path / "meeting")
    alone = loader_of(dataset, "memory", batch_size=10)
    total = sum(float(batch.x.double().sum()) for batch in alone.batches(0))
    for number, store in enumerate(("memory", "device", "stream")):
        ranks = [line[number].split(";") for line in lines]
        assert {rank[0] for rank in ranks} == {store}
        assert {int(rank[1]) for rank in ranks} == {alone.steps_per_epoch}
        seen = [int(index) for rank in ranks for index in rank[2].split(",")]
        assert sorted(seen) == list(range(len(alone.sequences)))
        assert sum(float(rank[3]) for rank in ranks) == pytest.approx(total, rel=1e-9)
    # Both map the same two files, train and val, which nothing refers to by name any more.
    files = [line[0].split(";")[4] for line in lines]
    assert files[0] == files[1]
    assert files[0].count("lfp-vit-") == 2
    assert not [*Path("/dev/shm").glob("lfp-vit-*")]


def test_all_ranks_end_where_one_finds_damage(dataset: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(dataset, tmp_path / "dataset"))
    shard = path / open_dataset(path).splits["val"].shards[1].path
    shard.write_bytes(shard.read_bytes()[::-1])
    lines = run_ranks(path, tmp_path / "meeting")
    assert lines[0] == lines[1]
    assert lines[0][0].startswith(f"error: {shard} is not the file")
    assert not [*Path("/dev/shm").glob("lfp-vit-*")]
