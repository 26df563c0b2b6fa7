"""Keys, shards and their index, as `tarfile`, `hashlib` and WebDataset's own reader see them."""

import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from urllib.parse import unquote

import hypothesis.strategies as st
import numpy as np
import pytest
import webdataset
from hypothesis import given, settings

from beam_pipeline.blocks import (
    block_key,
    key_hash,
    n_shards_for,
    session_key,
    shard_index,
    shard_path,
    shard_starts,
)
from beam_pipeline.shards import (
    Sample,
    ShardInfo,
    json_bytes,
    manifest_entry,
    npy_pieces,
    tar_sample_size,
    wids_index,
    write_shard,
)

SESSIONS = [
    "plain",
    "mouse.1/day 2\\left",
    "..",
    "../../etc/passwd",
    "100 %41",
    "Mäuse-Ωμέγα-🐭",
    "a-000001",
    "x" * 101,
    "session.with/dots " * 12,
    "é" * 60,
    "new\nline\ttab",
]


def make_sample(session="s", block=0, n_trials=3, seed=0):
    rng = np.random.default_rng(seed)
    return Sample(
        block_key(session, block),
        rng.standard_normal((n_trials, 4, 5)).astype(np.float16),
        rng.standard_normal((n_trials, 4)).astype(np.float32),
        {"session": session, "subject": None, "trial_num": list(range(n_trials)), "gain": 0.1},
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train").mkdir()
    return tmp_path


# --- Keys -----------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
@settings(derandomize=True)
def test_keys_are_safe_and_can_be_read_back(session):
    key = session_key(session)
    assert re.fullmatch(r"[A-Za-z0-9_~%-]+", key)
    assert unquote(key) == session


@given(st.lists(st.tuples(st.text("a-0.%/", min_size=1), st.integers(0, 2_000_000)), unique=True))
@settings(derandomize=True)
def test_keys_are_unique(blocks):
    assert len({block_key(*block) for block in blocks}) == len(blocks)


def test_keys_of_the_contract():
    assert block_key("mouse.1/day 2", 7) == "mouse%2E1%2Fday%202-000007"


# --- Shards of a split ----------------------------------------------------------------------------


@pytest.mark.parametrize(("n_blocks", "n_shards"), [(1, 1), (7, 3), (100, 100), (1000, 7)])
def test_every_block_is_in_one_shard_and_shards_are_balanced(n_blocks, n_shards):
    hashes = [key_hash(block_key(f"s{i % 9}", i)) for i in range(n_blocks)]
    starts = shard_starts(hashes, n_shards)
    assert starts == shard_starts(reversed(hashes), n_shards)
    assert list(starts) == sorted(set(starts))
    counts = Counter(shard_index(value, starts) for value in hashes)
    assert counts.keys() == set(range(n_shards))
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize(("n_blocks", "n_shards"), [(2, 3), (2, 0), (0, 1)])
def test_shards_that_cannot_be_filled(n_blocks, n_shards):
    with pytest.raises(ValueError, match=f"{n_blocks} blocks do not fill {n_shards} shards"):
        shard_starts(range(n_blocks), n_shards)


def test_a_shard_mixes_sessions():
    blocks = [(f"s{session}", block) for session in range(20) for block in range(20)]
    starts = shard_starts([key_hash(block_key(*block)) for block in blocks], 5)
    for index in range(5):
        sessions = {s for s, b in blocks if shard_index(key_hash(block_key(s, b)), starts) == index}
        assert len(sessions) > 15


def test_hashes_are_the_same_everywhere_and_even():
    digest = hashlib.blake2b(b"s-000001", digest_size=8).digest()
    assert key_hash("s-000001") == int.from_bytes(digest, "big")
    counts = np.bincount([key_hash(f"s-{i:06d}") >> 61 for i in range(8000)], minlength=8)
    assert abs(counts - 1000).max() < 150


@pytest.mark.parametrize(
    ("n_bytes", "n_blocks", "shard_mb", "num_shards", "expected"),
    [
        (10 << 20, 100, 2.0, None, 5),
        (1, 100, 128.0, None, 1),
        (10 << 20, 3, 2.0, None, 3),
        (10 << 20, 100, 2.0, 8, 8),
        (10 << 20, 4, 2.0, 8, 4),
        (0, 0, 2.0, None, 1),
    ],
)
def test_number_of_shards(n_bytes, n_blocks, shard_mb, num_shards, expected):
    assert n_shards_for(n_bytes, n_blocks, shard_mb, num_shards) == expected


def test_shard_path():
    assert shard_path("val", 3, 12) == "val/lfp-val-00003-of-00012.tar"


# --- Bytes ----------------------------------------------------------------------------------------


def test_webdataset_reads_back_every_sample(folder):
    samples = [
        make_sample(session, block, 1 + (block + i) % 4, seed=i)
        for i, session in enumerate(SESSIONS)
        for block in (0, 123_456)
    ]
    shard = write_shard(folder, "train/a.tar", samples)
    read = list(webdataset.WebDataset(str(folder / shard.path), shardshuffle=False).decode())
    assert [item["__key__"] for item in read] == [sample.key for sample in samples]
    for item, sample in zip(read, samples, strict=True):
        assert set(item) >= {"spectrogram.npy", "baseline.npy", "json"}
        for name, array in (("spectrogram", sample.spectrogram), ("baseline", sample.baseline)):
            assert item[f"{name}.npy"].dtype == array.dtype
            np.testing.assert_array_equal(item[f"{name}.npy"], array)
        assert item["json"] == sample.metadata
        assert unquote(item["__key__"].rpartition("-")[0]) == item["json"]["session"]


def test_members_in_the_tar(folder):
    samples = [make_sample(session, seed=i) for i, session in enumerate(SESSIONS)]
    shard = write_shard(folder, "train/a.tar", samples)
    with tarfile.open(folder / shard.path, "r:") as tar:
        members = tar.getmembers()
        contents = [file.read() for file in map(tar.extractfile, members) if file]
    names = [
        f"{sample.key}.{part}"
        for sample in samples
        for part in ("spectrogram.npy", "baseline.npy", "json")
    ]
    assert [member.name for member in members] == names
    owners = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) for m in members}
    assert owners == {(0, 0, 0, "", "", 0o644, tarfile.REGTYPE)}
    np.testing.assert_array_equal(np.load(io.BytesIO(contents[0])), samples[0].spectrogram)
    assert json.loads(contents[2]) == samples[0].metadata


@pytest.mark.parametrize("n_samples", [0, 1, 3])
def test_shard_info(folder, n_samples):
    samples = [make_sample(block=block, n_trials=block + 1) for block in range(n_samples)]
    shard = write_shard(folder, "train/a.tar", iter(samples))
    content = (folder / "train/a.tar").read_bytes()
    assert shard == ShardInfo(
        "train/a.tar",
        len(content),
        hashlib.sha256(content).hexdigest(),
        hashlib.md5(content).hexdigest(),
        n_samples,
        sum(range(n_samples + 1)),
    )
    assert len(content) % tarfile.RECORDSIZE == 0
    assert manifest_entry(shard) == {
        "path": shard.path,
        "bytes": shard.bytes,
        "sha256": shard.sha256,
        "samples": n_samples,
        "trials": shard.trials,
    }


def test_equal_samples_give_equal_bytes(folder):
    first = write_shard(folder, "train/a.tar", [make_sample(block=i) for i in range(3)])
    again = write_shard(folder, "train/b.tar", (make_sample(block=i) for i in range(3)))
    assert first.sha256 == again.sha256
    sample = make_sample()
    strided = Sample(
        sample.key,
        np.asfortranarray(sample.spectrogram),
        np.repeat(sample.baseline, 2, axis=1)[:, ::2],
        sample.metadata,
    )
    shards = [write_shard(folder, "train/c.tar", [item]) for item in (sample, strided)]
    assert shards[0] == shards[1]


def test_a_failing_sample_leaves_no_shard(folder):
    def samples():
        yield make_sample()
        raise RuntimeError("the worker died")

    with pytest.raises(RuntimeError, match="the worker died"):
        write_shard(folder, "train/a.tar", samples())
    assert not (folder / "train/a.tar").exists()
    assert write_shard(folder, "train/a.tar", [make_sample()]).samples == 1


def test_a_failing_sample_leaves_the_former_shard_whole(folder):
    before = write_shard(folder, "train/a.tar", [make_sample()])
    bad = Sample("k", np.zeros((1, 1, 1), np.float16), np.zeros((1, 1), np.float32), {"x": np.nan})
    with pytest.raises(ValueError, match="JSON"):
        write_shard(folder, "train/a.tar", [make_sample(block=1), bad])
    content = (folder / "train/a.tar").read_bytes()
    assert hashlib.sha256(content).hexdigest() == before.sha256


def test_a_missing_folder_is_not_created(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_shard(tmp_path, "train/a.tar", [make_sample()])
    assert list(tmp_path.iterdir()) == []


def test_planned_size_is_near_the_real_one(folder):
    samples = [make_sample(block=block, n_trials=32) for block in range(40)]
    shard = write_shard(folder, "train/a.tar", samples)
    assert sum(tar_sample_size(32, 4, 5) for _ in samples) == pytest.approx(shard.bytes, rel=0.5)


def test_npy_is_numpys_own_format():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    buffer = io.BytesIO()
    np.save(buffer, array)
    assert b"".join(npy_pieces(array)) == buffer.getvalue()


def test_json_keeps_order_and_text():
    metadata = {"z": "Ω", "a": [None, 1, 0.1]}
    assert list(json.loads(json_bytes(metadata)).items()) == list(metadata.items())


def test_index_describes_the_files(folder):
    """The fields of WebDataset's indexed reader, with what the files themselves say."""
    shards = [
        write_shard(folder, shard_path("train", i, 2), [make_sample(block=b) for b in range(i + 1)])
        for i in range(2)
    ]
    index = json.loads(json.dumps(wids_index("train", shards)))
    assert (index["__kind__"], index["wids_version"]) == ("wids-shard-index-v1", 1)
    assert len(index["shardlist"]) == 2
    for n_samples, entry in enumerate(index["shardlist"], start=1):
        content = (folder / entry["url"]).read_bytes()
        reader = webdataset.WebDataset(str(folder / entry["url"]), shardshuffle=False)
        assert entry == {
            "url": f"train/lfp-train-{n_samples - 1:05d}-of-00002.tar",
            "nsamples": sum(1 for _ in reader),
            "filesize": len(content),
            "md5sum": hashlib.md5(content).hexdigest(),
        }
        assert entry["nsamples"] == n_samples
