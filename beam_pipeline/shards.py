"""Deterministic WebDataset tar shards: equal samples give equal bytes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from beam_pipeline.storage.places import AnyPath, whole_file

#: Few, because the system takes the memory of what is on disk for what is written next: 4 MB halve
#: its time against 16.
WRITEBACK_BYTES = 4 << 20
MEMBERS = ("spectrogram.npy", "baseline.npy", "json")


@dataclass(frozen=True)
class Sample:
    """One block of consecutive trials of a session (contract 2.2).

    Attributes
    ----------
    key : str
    spectrogram : float16 array of shape (n_trials, n_freqs, n_times)
    baseline : float32 array of shape (n_trials, n_freqs)
    metadata : mapping
        The json member.
    values_clipped : int
        Values that were beyond the range of float16.
    """

    key: str
    spectrogram: NDArray[np.float16]
    baseline: NDArray[np.float32]
    metadata: Mapping[str, Any]
    values_clipped: int = 0


@dataclass(frozen=True)
class ShardInfo:
    """What the manifest says of a shard."""

    path: str
    bytes: int
    sha256: str
    md5: str
    samples: int
    trials: int
    values_clipped: int = 0


def npy_pieces(array: NDArray[Any]) -> list[bytes | memoryview]:
    """Return an array in NumPy's npy format 1.0: the header, and the values without a copy."""
    array = np.ascontiguousarray(array)
    header = io.BytesIO()
    description = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(header, description)
    return [header.getvalue(), array.reshape(-1).view(np.uint8).data]


def json_bytes(metadata: Mapping[str, Any]) -> bytes:
    """Return compact JSON in the order of the mapping; NaN is an error."""
    return json.dumps(metadata, separators=(",", ":"), allow_nan=False).encode()


def members(sample: Sample) -> Iterator[tuple[str, list[bytes | memoryview]]]:
    """Yield (name, pieces of the content) of a sample's members in the contract's order."""
    contents: tuple[list[bytes | memoryview], ...] = (
        npy_pieces(sample.spectrogram),
        npy_pieces(sample.baseline),
        [json_bytes(sample.metadata)],
    )
    for name, content in zip(MEMBERS, contents, strict=True):
        yield f"{sample.key}.{name}", content


def tar_member(name: str, content: list[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Yield the pieces of one tar member: mtime, owner and mode are fixed."""
    info = tarfile.TarInfo(name)
    info.size = sum(map(len, content))
    info.mtime, info.mode = 0, 0o644
    yield info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")
    yield from content
    yield bytes(-info.size % tarfile.BLOCKSIZE)


def tar_end(position: int) -> bytes:
    """Return the end of an archive of `position` bytes: two empty blocks, then a full record."""
    end = 2 * tarfile.BLOCKSIZE
    return bytes(end + -(position + end) % tarfile.RECORDSIZE)


def tar_sample_size(n_trials: int, n_freqs: int, n_times: int) -> int:
    """Estimate the bytes of a sample in a tar, to plan the number of shards."""
    arrays = n_trials * n_freqs * (2 * n_times + 4)
    return arrays + len(MEMBERS) * 2 * tarfile.BLOCKSIZE + 64 * n_trials


class _HashingFile:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.md5 = hashlib.md5(usedforsecurity=False)
        self.position = 0

    def write(self, content: bytes | memoryview) -> None:
        self._file.write(content)
        self.sha256.update(content)
        self.md5.update(content)
        self.position += len(content)


def _start_writeback(file: BinaryIO) -> None:
    """Let the disk begin now, so that the closing fsync has little left to wait for."""
    if hasattr(os, "posix_fadvise"):
        file.flush()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_shard(folder: AnyPath, path: str, samples: Iterable[Sample]) -> ShardInfo:
    """Write one shard, which appears when it is whole.

    Parameters
    ----------
    folder : path
        Root that `path` is relative to. It is not created: a worker that outlives its run must
        not bring back a folder that the next run has removed.
    path : str
    samples : iterable of Sample
        In the order they are to stand in; only one is held at a time.
    """
    target = folder / path
    n_samples = n_trials = values_clipped = written_back = 0
    with whole_file(target) as file:
        hashing = _HashingFile(file)
        for sample in samples:
            for name, content in members(sample):
                for piece in tar_member(name, content):
                    hashing.write(piece)
            if isinstance(target, Path) and hashing.position - written_back > WRITEBACK_BYTES:
                _start_writeback(file)
                written_back = hashing.position
            n_samples += 1
            n_trials += len(sample.baseline)
            values_clipped += sample.values_clipped
        hashing.write(tar_end(hashing.position))
    return ShardInfo(
        path,
        hashing.position,
        hashing.sha256.hexdigest(),
        hashing.md5.hexdigest(),
        n_samples,
        n_trials,
        values_clipped,
    )


def shards_of(split: str, shards: Iterable[ShardInfo]) -> list[ShardInfo]:
    """Return the shards of one split, in the order of their numbers."""
    own = (shard for shard in shards if shard.path.startswith(f"{split}/"))
    return sorted(own, key=lambda shard: shard.path)


def wids_index(split: str, shards: Iterable[ShardInfo]) -> dict[str, Any]:
    """Return a split's index in the format of WebDataset's indexed reader (wids)."""
    return {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": f"lfp-{split}",
        "shardlist": [
            {
                "url": shard.path,
                "nsamples": shard.samples,
                "filesize": shard.bytes,
                "md5sum": shard.md5,
            }
            for shard in shards
        ],
    }


def manifest_entry(shard: ShardInfo) -> dict[str, Any]:
    """Return a shard's entry in ``dataset.json``; the MD5 stands in the wids index."""
    elsewhere = ("md5", "values_clipped")
    return {name: value for name, value in asdict(shard).items() if name not in elsewhere}
