"""``dataset.json``: what a dataset folder holds. It exists only if the dataset is complete."""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from typing import Any

from beam_pipeline import __version__
from beam_pipeline.shards import ShardInfo, manifest_entry, shards_of
from beam_pipeline.splits import SPLITS
from beam_pipeline.storage.places import AnyPath

FORMAT_VERSION = 1
MANIFEST = "dataset.json"
STATS = "spectrogram_norm_stats.json"
SESSIONS = "sessions.parquet"
RUN = "run.json"
PACKAGES = ("numpy", "scipy", "pyarrow", "apache-beam", "matplotlib")


class ManifestError(ValueError):
    """There is no readable manifest, or it contradicts itself."""


@dataclass(frozen=True)
class SplitManifest:
    """One split of a dataset."""

    shards: list[dict[str, Any]]
    samples: int
    trials: int
    trials_per_class: dict[str, int]
    sessions: list[str]
    subjects: list[str]


@dataclass(frozen=True)
class Manifest:
    """The contents of ``dataset.json``; see docs/dataset-format.md."""

    format_version: int
    fingerprint: str
    options: dict[str, Any]
    source: dict[str, Any]
    classes: list[str]
    freqs: list[float]
    times: list[float]
    dtype: str
    shape: list[int]
    normalization: dict[str, Any]
    splits: dict[str, SplitManifest]
    rejects: dict[str, int]
    values_clipped: int
    files: dict[str, dict[str, Any]]
    versions: dict[str, str]

    def to_json(self) -> str:
        """Return the file's text, sealed with the SHA-256 of everything else in it."""
        content = asdict(self)
        return json.dumps(content | {"sha256": _seal(content)}, indent=1) + "\n"

    @property
    def shards(self) -> list[dict[str, Any]]:
        """All shards, in split order."""
        return [shard for split in self.splits.values() for shard in split.shards]


def _seal(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def parse_manifest(text: str) -> Manifest:
    """Parse ``dataset.json`` and check its seal.

    Raises
    ------
    ManifestError
        If it is no JSON, of another format, incomplete, or was edited after it was written.
    """
    try:
        content = json.loads(text)
        seal = content.pop("sha256")
        found = content["format_version"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(f"{MANIFEST} is damaged: {error}") from error
    if found != FORMAT_VERSION:
        raise ManifestError(f"{MANIFEST} is of format {found}; this program reads {FORMAT_VERSION}")
    if seal != _seal(content):
        raise ManifestError(f"{MANIFEST} was edited: its sha256 does not fit its content")
    names = {field.name for field in fields(Manifest)}
    if content.keys() != names:
        raise ManifestError(f"{MANIFEST} lacks or adds {sorted(content.keys() ^ names)}")
    splits = {name: SplitManifest(**split) for name, split in content.pop("splits").items()}
    return Manifest(splits=splits, **content)


def read_manifest(folder: AnyPath) -> Manifest:
    """Read the manifest of a dataset folder.

    Raises
    ------
    ManifestError
        If there is none, or it does not hold.
    """
    try:
        text = (folder / MANIFEST).read_text()
    except FileNotFoundError as error:
        raise ManifestError(
            f"{folder} has no {MANIFEST}: it is no dataset, or its run did not finish"
        ) from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{MANIFEST} is damaged: {error}") from error
    return parse_manifest(text)


def split_manifests(
    shards: Sequence[ShardInfo], sessions: Iterable[Mapping[str, Any]], classes: Sequence[str]
) -> dict[str, SplitManifest]:
    """Describe every split.

    Parameters
    ----------
    shards : sequence of ShardInfo
    sessions : iterable of mapping
        Rows of ``sessions.parquet``.
    classes : sequence of str
    """
    rows = list(sessions)
    described = {}
    for split in SPLITS:
        members = [row for row in rows if row["split"] == split]
        own = shards_of(split, shards)
        per_class = Counter(dict.fromkeys(classes, 0))
        for row in members:
            per_class[row["condition"]] += row["trials_kept"]
        described[split] = SplitManifest(
            shards=[manifest_entry(shard) for shard in own],
            samples=sum(shard.samples for shard in own),
            trials=sum(shard.trials for shard in own),
            trials_per_class=dict(per_class),
            sessions=sorted(row["session"] for row in members),
            subjects=sorted({row["subject"] for row in members} - {None}),
        )
    return described


def package_versions() -> dict[str, str]:
    """Return the versions of what shapes the bytes of a dataset."""
    return {
        "lfp-vit": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def file_digest(path: AnyPath) -> dict[str, Any]:
    """Return ``{"bytes": ..., "sha256": ...}`` of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}
