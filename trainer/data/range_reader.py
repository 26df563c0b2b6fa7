"""Spectrograms from the middle of shards: from files on demand, from afar many at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from trainer.data.digests import row_digests
from trainer.data.split_index import SplitIndex
from trainer.data.storage import DatasetError, Storage

MOST_OPEN_FILES = 128


class RangeReader(Protocol):
    """Reads ranges that belong to numbered places; a place is announced before it is read."""

    def announce(self, ranges: Iterable[tuple[int, int, int, int, int]]) -> None:
        """Prepare to read parts of ranges: (place, shard, first byte, bytes, first row)."""

    def read(self, parts: Iterable[tuple[int, int, int, memoryview]]) -> None:
        """Fill buffers: (place, shard, first byte, what to fill).

        Raises
        ------
        DatasetError
            If a shard cannot be read or ends early.
        """

    def forget(self, before: int) -> None:
        """Give up the places below a number."""

    def close(self) -> None:
        """Let go of everything."""


def open_reader(
    storage: Storage, paths: Sequence[str], index: SplitIndex, trial_bytes: int
) -> RangeReader:
    """Return a reader of shards, to be used by the process that asks for it.

    Parameters
    ----------
    storage : Storage
    paths : sequence of str
        The shards.
    index : SplitIndex
        Of the trials in them, when they were verified.
    trial_bytes : int
        Size of a spectrogram.
    """
    if storage.is_local:
        return LocalReader(storage, paths)
    return RemoteReader(storage, paths, index, trial_bytes)


class LocalReader:
    """Reads from files straight to where the bytes belong; the kernel keeps what comes again."""

    def __init__(self, storage: Storage, paths: Sequence[str]) -> None:
        self._storage, self._paths = storage, paths
        self._files: dict[int, int] = {}

    def announce(self, ranges: Iterable[tuple[int, int, int, int, int]]) -> None:
        """Let the disk begin."""
        if hasattr(os, "posix_fadvise"):
            for _, shard, start, size, _ in ranges:
                file = self._file(shard)
                if not _is_cached(file, start + size - 1):
                    os.posix_fadvise(file, start, size, os.POSIX_FADV_WILLNEED)

    def read(self, parts: Iterable[tuple[int, int, int, memoryview]]) -> None:
        """Read from the files; see `RangeReader`."""
        for _, shard, start, out in parts:
            try:
                file = self._files.get(shard) or self._file(shard)
                if os.preadv(file, (out,), start) != len(out):
                    self._read_slowly(file, shard, start, out)
            except OSError as error:
                raise self._unreadable(shard, error) from error

    def _read_slowly(self, file: int, shard: int, start: int, out: memoryview) -> None:
        done = 0
        while done < len(out):
            n = os.preadv(file, (out[done:],), start + done)
            if n == 0:
                raise self._storage.ends_early(self._paths[shard], start + done, start + len(out))
            done += n

    def forget(self, before: int) -> None:
        """Keep everything as it is: the kernel forgets on its own."""

    def close(self) -> None:
        """Close the files."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _file(self, shard: int) -> int:
        file = self._files.get(shard)
        if file is None:
            if len(self._files) == MOST_OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            try:
                path = self._storage.full_path(self._paths[shard])
                file = self._files[shard] = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise self._unreadable(shard, error) from error
        return file

    def _unreadable(self, shard: int, error: OSError) -> DatasetError:
        name = self._storage.name(self._paths[shard])
        return DatasetError(f"{name} cannot be read: {error.strerror or error}")


class RemoteReader:
    """Asks for all that is announced at once, checks it, and keeps it until it is forgotten."""

    def __init__(
        self, storage: Storage, paths: Sequence[str], index: SplitIndex, trial_bytes: int
    ) -> None:
        self._storage, self._paths = storage, paths
        self._digests, self._trial_bytes = index.spectrogram_digest, trial_bytes
        self._held: dict[int, list[tuple[int, int, bytes]]] = {}

    def announce(self, ranges: Iterable[tuple[int, int, int, int, int]]) -> None:
        """Fetch the ranges; see `RangeReader`.

        Raises
        ------
        DatasetError
            If a shard cannot be read, ends early, or holds other trials than when it was verified.
        """
        wanted = list(ranges)

        def is_sound(number: int, part: bytes) -> bool:
            trials = np.frombuffer(part, np.uint16).reshape(-1, self._trial_bytes // 2)
            first = wanted[number][4]
            return np.array_equal(row_digests(trials), self._digests[first : first + len(trials)])

        parts = self._storage.read_ranges(
            [(self._paths[shard], start, start + size) for _, shard, start, size, _ in wanted],
            is_sound,
        )
        for (place, shard, start, *_), part in zip(wanted, parts, strict=True):
            self._held.setdefault(place, []).append((shard, start, part))

    def read(self, parts: Iterable[tuple[int, int, int, memoryview]]) -> None:
        """Copy from what was fetched; see `RangeReader`."""
        for place, shard, start, out in parts:
            end = start + len(out)
            first, held = next(
                (first, held)
                for other, first, held in self._held[place]
                if other == shard and first <= start and end <= first + len(held)
            )
            out[:] = memoryview(held)[start - first : end - first]

    def forget(self, before: int) -> None:
        """Drop what will not be used again."""
        for place in [place for place in self._held if place < before]:
            del self._held[place]

    def close(self) -> None:
        """Drop everything."""
        self._held.clear()


def _is_cached(file: int, position: int) -> bool:
    """Whether a byte of a file can be had without the disk, as far as the system tells.

    Asking for one costs a twentieth of what the kernel takes to find a whole block there.
    """
    nowait = getattr(os, "RWF_NOWAIT", 0)
    try:
        return bool(nowait) and os.preadv(file, (bytearray(1),), position, nowait) == 1
    except OSError:
        return False
