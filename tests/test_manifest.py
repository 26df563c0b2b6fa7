"""``dataset.json``: what is written is read back, and any change to it is noticed."""

import hashlib
import json
from dataclasses import fields

import numpy as np
import pyarrow as pa
import pytest

from beam_pipeline.manifest import (
    FORMAT_VERSION,
    Manifest,
    ManifestError,
    SplitManifest,
    file_digest,
    package_versions,
    parse_manifest,
    read_manifest,
    split_manifests,
)
from beam_pipeline.shards import ShardInfo
from beam_pipeline.storage.places import write_atomically


def make_shard(split, index=0, samples=2, trials=60):
    path = f"{split}/lfp-{split}-{index:05d}-of-00002.tar"
    return ShardInfo(path, 10_240, "ab" * 32, "cd" * 16, samples, trials)


SESSIONS: list[dict] = [
    {"session": "b", "subject": "m2", "condition": "FMR1", "split": "train", "trials_kept": 70},
    {"session": "a", "subject": "m1", "condition": "WT", "split": "train", "trials_kept": 50},
    {"session": "d", "subject": None, "condition": "WT", "split": "val", "trials_kept": 60},
    {"session": "c", "subject": "m1", "condition": "WT", "split": "train", "trials_kept": 0},
]
SHARDS = [make_shard("train", 1), make_shard("val"), make_shard("train", 0)]
MANIFEST = Manifest(
    format_version=FORMAT_VERSION,
    fingerprint="f" * 64,
    options={"sfreq": 1000.0, "classes": None, "baseline": [-2.0, 0.0]},
    source={"kind": "parquet", "uri": "trials:00", "rows": 190, "snapshot_time": None},
    classes=["FMR1", "WT"],
    freqs=[0.0, 7.936507936507937],
    times=[-1.937, 0.1 + 0.2],
    dtype="float16",
    shape=[32, 2, 2],
    normalization={"mean": -5.0, "std": 1 / 3, "sessions": ["a", "é"]},
    splits=split_manifests(SHARDS, SESSIONS, ["FMR1", "WT"]),
    rejects={"flat": 3},
    values_clipped=0,
    files={"README.md": {"bytes": 5, "sha256": "00"}},
    versions={"numpy": "2.0"},
)


def test_round_trip(tmp_path):
    (tmp_path / "dataset.json").write_text(MANIFEST.to_json())
    assert read_manifest(tmp_path) == MANIFEST
    assert parse_manifest(MANIFEST.to_json()).to_json() == MANIFEST.to_json()


def test_split_manifests():
    train, val, test = (MANIFEST.splits[name] for name in ("train", "val", "test"))
    assert [shard["path"] for shard in train.shards] == [SHARDS[2].path, SHARDS[0].path]
    assert train.shards[0] == {
        "path": SHARDS[2].path,
        "bytes": 10_240,
        "sha256": "ab" * 32,
        "samples": 2,
        "trials": 60,
    }
    assert (train.samples, train.trials) == (4, 120)
    assert train.trials_per_class == {"FMR1": 70, "WT": 50}
    assert (train.sessions, train.subjects) == (["a", "b", "c"], ["m1", "m2"])
    assert (val.trials, val.subjects, val.trials_per_class) == (60, [], {"FMR1": 0, "WT": 60})
    assert test == SplitManifest([], 0, 0, {"FMR1": 0, "WT": 0}, [], [])
    assert [shard["path"] for shard in MANIFEST.shards] == sorted(s.path for s in SHARDS)


# --- The seal -------------------------------------------------------------------------------------


def leaves(value, path=()):
    """Paths of every value in JSON data, containers included."""
    yield path
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, child in value.items():
            yield from leaves(child, (*path, key))


def edited(path, edit):
    content = json.loads(MANIFEST.to_json())
    target = content
    for key in path[:-1]:
        target = target[key]
    edit(target, path[-1])
    return json.dumps(content)


def change(target, key):
    value = target[key]
    if isinstance(value, dict):
        target[key] = value | {"more": 1}
    elif isinstance(value, list):
        target[key] = [*value, value[0] if value else 1]
    elif isinstance(value, str):
        target[key] = f"{value}x"
    else:
        target[key] = 1 if value is None else value + 1


EVERYWHERE = [
    path
    for path in leaves(json.loads(MANIFEST.to_json()))
    if path and path not in {("format_version",), ("sha256",)}
]


@pytest.mark.parametrize("path", EVERYWHERE, ids=lambda path: ".".join(map(str, path)))
def test_any_edit_is_noticed(path):
    with pytest.raises(ManifestError, match="was edited"):
        parse_manifest(edited(path, change))


@pytest.mark.parametrize("name", [f.name for f in fields(Manifest) if f.name != "format_version"])
def test_a_field_that_is_gone_is_noticed(name):
    with pytest.raises(ManifestError, match="was edited"):
        parse_manifest(edited((name,), dict.__delitem__))


def test_the_seal_itself_cannot_be_edited():
    with pytest.raises(ManifestError, match="was edited"):
        parse_manifest(edited(("sha256",), change))


def test_values_that_only_look_alike_are_told_apart():
    text = MANIFEST.to_json()
    assert '"rows": 190' in text
    with pytest.raises(ManifestError, match="was edited"):
        parse_manifest(text.replace('"rows": 190', '"rows": 190.0'))


def test_layout_of_the_text_does_not_matter():
    content = json.loads(MANIFEST.to_json())
    reordered = json.dumps(dict(sorted(content.items())), indent=4)
    assert parse_manifest(reordered) == MANIFEST


def resealed(content):
    content.pop("sha256")
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps(content | {"sha256": hashlib.sha256(text.encode()).hexdigest()})


def test_a_sealed_manifest_with_other_fields_is_refused():
    content = json.loads(MANIFEST.to_json())
    assert parse_manifest(resealed(dict(content))) == MANIFEST
    del content["rejects"]
    with pytest.raises(ManifestError, match=r"lacks or adds \['extra', 'rejects'\]"):
        parse_manifest(resealed(content | {"extra": 1}))


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_version(version):
    content = json.loads(MANIFEST.to_json()) | {"format_version": version}
    with pytest.raises(ManifestError, match=f"is of format {version}; this program reads 1"):
        parse_manifest(json.dumps(content))


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", '"text"', "{}", '{"sha256": ""}', '{"format_version": 1}'),
        MANIFEST.to_json()[:-20],
    ],
)
def test_damaged(text):
    with pytest.raises(ManifestError, match=r"dataset\.json is damaged"):
        parse_manifest(text)


@pytest.mark.parametrize("position", [1, 40, 400])
def test_a_flipped_byte(tmp_path, position):
    content = bytearray(MANIFEST.to_json().encode())
    content[position] ^= 0x80
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(ManifestError, match=r"dataset\.json is damaged"):
        read_manifest(tmp_path)


def test_missing(tmp_path):
    with pytest.raises(ManifestError, match=r"has no dataset\.json"):
        read_manifest(tmp_path)


# --- Files ----------------------------------------------------------------------------------------


def test_file_digest(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "f").write_bytes(content)
    expected = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert file_digest(tmp_path / "f") == expected


def test_write_atomically_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "dataset.json"
    for text in ("first and long", "second"):
        write_atomically(path, text)
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_package_versions_are_those_that_run():
    versions = package_versions()
    assert (versions["numpy"], versions["pyarrow"]) == (np.__version__, pa.__version__)
