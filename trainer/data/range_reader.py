"""Spectrograms from the middle of shards: from files on demand, from afar many at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.data.digests import row_digests
from trainer.data.split_index import SplitIndex
from trainer.data.storage import DatasetError, Storage

#: Files that stay open from one read to the next; a read may open as many more.
MOST_OPEN_FILES = 128


@dataclass(frozen=True)
class Parts:
    """Bytes of shards and where they belong; one entry a part.

    Attributes
    ----------
    place : int64 array of shape (n_parts,)
        Under which the bytes were announced.
    shard : int32 array of shape (n_parts,)
    start : int64 array of shape (n_parts,)
        First byte in the shard.
    low, high : int64 arrays of shape (n_parts,)
        Where the bytes begin and end in a buffer.
    """

    place: NDArray[np.int64]
    shard: NDArray[np.int32]
    start: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.place)

    def __getitem__(self, part: slice) -> Parts:
        place, low, high = self.place[part], self.low[part], self.high[part]
        return Parts(place, self.shard[part], self.start[part], low, high)


class RangeReader(Protocol):
    """Reads ranges that belong to numbered places.

    A place is announced before it is read, unless what it needs is near.
    """

    def is_near(self, shard: int, position: int) -> bool:
        """Whether a byte, and so what lies about it, need not be announced."""

    def announce(self, ranges: Iterable[tuple[int, int, int, int, int]]) -> None:
        """Prepare to read parts of ranges: (place, shard, first byte, bytes, first row)."""

    def read(self, parts: Parts, out: memoryview) -> None:
        """Fill a buffer.

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
        self._full_paths = storage.full_paths(paths)
        self._files: dict[int, int] = {}

    def is_near(self, shard: int, position: int) -> bool:
        """Whether a byte can be had without the disk, as far as the system tells."""
        nowait = getattr(os, "RWF_NOWAIT", 0)
        try:
            file = self._file(shard)
            return bool(nowait) and os.preadv(file, (bytearray(1),), position, nowait) == 1
        except OSError:
            return False

    def announce(self, ranges: Iterable[tuple[int, int, int, int, int]]) -> None:
        """Let the disk begin."""
        if hasattr(os, "posix_fadvise"):
            for _, shard, start, size, _ in ranges:
                os.posix_fadvise(self._file(shard), start, size, os.POSIX_FADV_WILLNEED)

    def read(self, parts: Parts, out: memoryview) -> None:
        """Read from the files; see `RangeReader`."""
        for first in range(0, len(parts), MOST_OPEN_FILES):
            self._read_some(parts[first : first + MOST_OPEN_FILES], out)

    def _read_some(self, parts: Parts, out: memoryview) -> None:
        while len(self._files) > MOST_OPEN_FILES:
            os.close(self._files.pop(next(iter(self._files))))
        shards, starts = parts.shard.tolist(), parts.start.tolist()
        edges = zip(parts.low.tolist(), parts.high.tolist(), strict=True)
        files = [self._files.get(shard) or self._file(shard) for shard in shards]
        buffers = [(out[low:high],) for low, high in edges]
        n_bytes = sum(len(buffer) for (buffer,) in buffers)
        with contextlib.suppress(OSError):
            if sum(map(os.preadv, files, buffers, starts)) == n_bytes:
                return
        # Whichever it was that failed, or came in pieces, is found by reading them one by one.
        for shard, start, (buffer,) in zip(shards, starts, buffers, strict=True):
            self._read_all(shard, start, buffer)

    def _read_all(self, shard: int, start: int, out: memoryview) -> None:
        done = 0
        while done < len(out):
            try:
                n = os.preadv(self._file(shard), (out[done:],), start + done)
            except OSError as error:
                raise self._unreadable(shard, error) from error
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
            try:
                file = self._files[shard] = os.open(self._full_paths[shard], os.O_RDONLY)
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

    def is_near(self, shard: int, position: int) -> bool:
        """Nothing is."""
        return False

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

    def read(self, parts: Parts, out: memoryview) -> None:
        """Copy from what was fetched; see `RangeReader`."""
        columns = parts.place, parts.shard, parts.start, parts.low, parts.high
        for place, shard, start, low, high in zip(*(c.tolist() for c in columns), strict=True):
            end = start + high - low
            first, held = next(
                (first, held)
                for other, first, held in self._held[place]
                if other == shard and first <= start and end <= first + len(held)
            )
            out[low:high] = memoryview(held)[start - first : end - first]

    def forget(self, before: int) -> None:
        """Drop what will not be used again."""
        for place in [place for place in self._held if place < before]:
            del self._held[place]

    def close(self) -> None:
        """Drop everything."""
        self._held.clear()
