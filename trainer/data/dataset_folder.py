"""A dataset folder, opened by its manifest: what it holds, and where."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainer.data.storage import DatasetError, Storage

FORMAT_VERSION = 1
MANIFEST = "dataset.json"
SESSIONS = "sessions.parquet"
SPLITS = ("train", "val", "test")
#: Files that are read at the same time.
MOST_REQUESTS = 8
_PART_BYTES = 1 << 20


@dataclass(frozen=True)
class Shard:
    """One tar file, as the manifest describes it.

    Attributes
    ----------
    path : str
        Relative to the dataset folder.
    bytes : int
    sha256 : str
    samples, trials : int
        Blocks, and trials in all of them.
    """

    path: str
    bytes: int
    sha256: str
    samples: int
    trials: int


@dataclass(frozen=True)
class Split:
    """One of train, val and test; val and test may be empty.

    Attributes
    ----------
    shards : tuple of Shard
    sessions, subjects : tuple of str
        Sorted; no subjects where the table had none.
    trials : int
    trials_per_class : dict
        {class: trials}.
    """

    shards: tuple[Shard, ...]
    sessions: tuple[str, ...]
    subjects: tuple[str, ...]
    trials: int
    trials_per_class: dict[str, int]


@dataclass(frozen=True)
class DatasetFolder:
    """A dataset whose manifest holds (docs/dataset-format.md).

    Attributes
    ----------
    storage : Storage
        Where its files lie.
    fingerprint : str
        SHA-256 that seals the manifest, and with it the checksums of all other files: datasets
        of one fingerprint are equal.
    classes : tuple of str
        In label order.
    freqs : float64 array of shape (n_freqs,)
        Hz.
    times : float64 array of shape (n_times,)
        Seconds from the stimulus onset to the centre of each frame.
    block_trials : int
        The most trials that a sample of a shard holds.
    options : dict
        What shaped the dataset, by flag.
    normalization : dict
        What was subtracted and divided, and from which sessions.
    splits : dict of str to Split
        Train, val and test, in this order.
    files : dict
        {path: {"bytes", "sha256"}} of the files beside shards and manifest.
    """

    storage: Storage
    fingerprint: str
    classes: tuple[str, ...]
    freqs: NDArray[np.float64]
    times: NDArray[np.float64]
    block_trials: int
    options: dict[str, Any]
    normalization: dict[str, Any]
    splits: dict[str, Split]
    files: dict[str, dict[str, Any]]

    @property
    def url(self) -> str:
        """What the user called the folder."""
        return self.storage.url

    @property
    def shape(self) -> tuple[int, int]:
        """Frequencies and frames of a trial."""
        return len(self.freqs), len(self.times)

    @property
    def trial_bytes(self) -> int:
        """Bytes of a trial's spectrogram, in a shard and in memory."""
        return np.dtype(np.float16).itemsize * len(self.freqs) * len(self.times)

    def open_stream(self, path: str) -> BinaryIO:
        """Open a file to be read from start to end; see `Storage.open_stream`."""
        return self.storage.open_stream(path)

    def read_bytes(self, path: str) -> bytes:
        """Return the content of a file beside the shards, checked against the manifest.

        Raises
        ------
        DatasetError
            If it is missing, or is not the file that the manifest lists.
        """
        content = _read(self.storage, path)
        entry = self.files.get(path)
        if entry is None or hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise self.storage.is_another(path)
        return content

    def check_files(self) -> None:
        """Check every file beside the shards against the manifest.

        Raises
        ------
        DatasetError
            If one is missing, or is not the file that the manifest lists.
        """
        # At once, because each is a round trip where the dataset is behind a URL.
        with ThreadPoolExecutor(MOST_REQUESTS) as pool:
            for _ in pool.map(self._check_file, self.files):
                pass

    def _check_file(self, path: str) -> None:
        digest = hashlib.sha256()
        with self.open_stream(path) as file:
            try:
                while part := file.read(_PART_BYTES):
                    digest.update(part)
            except OSError as error:
                raise DatasetError(f"{self.storage.name(path)} cannot be read: {error}") from error
        if digest.hexdigest() != self.files[path]["sha256"]:
            raise self.storage.is_another(path)

    def read_sessions(self) -> pa.Table:
        """Return ``sessions.parquet``: one row a session, sorted by session.

        Raises
        ------
        DatasetError
            If it is missing or damaged.
        """
        content = self.read_bytes(SESSIONS)
        try:
            # Not pq.read_table: a thread of its scanner may outlive the interpreter, and abort it.
            return pq.ParquetFile(pa.BufferReader(content)).read()
        except (pa.ArrowInvalid, OSError) as error:
            raise DatasetError(f"{self.storage.name(SESSIONS)} is damaged: {error}") from error

    def shard_states(self, split: str) -> dict[str, dict[str, str]]:
        """Return what the store says of each shard of a split: size, times and the like.

        Raises
        ------
        DatasetError
            If a shard is missing or has another size than the manifest says.
        """
        shards = self.splits[split].shards
        found = self.storage.list_files(split) if shards else {}
        states = {}
        for shard in shards:
            if shard.path not in found:
                raise self.storage.missing(shard.path)
            size = found[shard.path]["size"]
            if size < shard.bytes:
                raise self.storage.ends_early(shard.path, size, shard.bytes)
            if size > shard.bytes:
                raise DatasetError(
                    f"{self.storage.name(shard.path)} has {size:,} bytes, {MANIFEST} says "
                    f"{shard.bytes:,}: copy the dataset again"
                )
            states[shard.path] = {name: str(v) for name, v in found[shard.path].items()}
        return states


def open_dataset(url: str | Path) -> DatasetFolder:
    """Read a dataset's manifest and check that it is whole and unedited.

    Parameters
    ----------
    url : str or pathlib.Path
        Folder, local or of any store that fsspec knows.

    Raises
    ------
    DatasetError
        If there is no dataset, or its manifest does not hold.
    """
    storage = Storage(str(url))
    try:
        text = _read(storage, MANIFEST)
    except DatasetError as error:
        if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            raise
        raise DatasetError(
            f"{url} has no {MANIFEST}: it is no dataset folder, or its run did not finish "
            "(./run_dataflow.sh makes one)"
        ) from error
    return _parse_manifest(storage, text)


def _read(storage: Storage, path: str) -> bytes:
    with storage.open_stream(path) as file:
        try:
            return file.read()
        except OSError as error:
            raise DatasetError(f"{storage.name(path)} cannot be read: {error}") from error


def _parse_manifest(storage: Storage, text: bytes) -> DatasetFolder:
    where = storage.name(MANIFEST)
    try:
        content = json.loads(text)
        seal, version = content.pop("sha256"), content["format_version"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(f"{where} is damaged: {error}") from error
    if version != FORMAT_VERSION:
        raise DatasetError(f"{where} is of format {version}; this program reads {FORMAT_VERSION}")
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    if seal != hashlib.sha256(canonical.encode()).hexdigest():
        raise DatasetError(f"{where} was edited: its sha256 does not fit its content")
    try:
        return _from_content(storage, seal, content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(
            f"{where} is no manifest of format {version}: {type(error).__name__} {error}"
        ) from error


def _from_content(storage: Storage, seal: str, content: Mapping[str, Any]) -> DatasetFolder:
    freqs = np.array(content["freqs"], np.float64)
    times = np.array(content["times"], np.float64)
    block_trials, *shape = content["shape"]
    if content["dtype"] != "float16" or shape != [len(freqs), len(times)]:
        raise ValueError(f"dtype {content['dtype']}, shape {content['shape']}")
    if tuple(content["splits"]) != SPLITS:
        raise ValueError(f"splits {list(content['splits'])}")
    return DatasetFolder(
        storage,
        seal,
        tuple(content["classes"]),
        freqs,
        times,
        block_trials,
        dict(content["options"]),
        dict(content["normalization"]),
        {name: _split(split) for name, split in content["splits"].items()},
        dict(content["files"]),
    )


def _split(content: Mapping[str, Any]) -> Split:
    return Split(
        tuple(Shard(**shard) for shard in content["shards"]),
        tuple(content["sessions"]),
        tuple(content["subjects"]),
        content["trials"],
        dict(content["trials_per_class"]),
    )
