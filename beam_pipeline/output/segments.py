"""Accepted trace segments between the passes: raw files of samples, read by pointer.

The runner shuffles pointers, never traces: the local runner copies every shuffled byte several
times and holds it in memory, while these files live in the page cache and cost one write and one
read each way.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beam_pipeline.screening import Segments


@dataclass(frozen=True)
class Pointers:
    """Where segments lie: row ``row[i]`` of file ``chunk[i]``.

    Attributes
    ----------
    chunk : int64 array of shape (n,)
    row : int32 array of shape (n,)
    """

    chunk: NDArray[np.int64]
    row: NDArray[np.int32]

    def __getitem__(self, index: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Pointers:
        return Pointers(self.chunk[index], self.row[index])

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def concatenate(cls, parts: Iterable[Pointers]) -> Pointers:
        """Join pointers end to end."""
        parts = list(parts)
        return cls(
            np.concatenate([part.chunk for part in parts]),
            np.concatenate([part.row for part in parts]),
        )

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Yield (chunk, first row, number of rows) of each stretch that lies together."""
        breaks = (np.diff(self.chunk) != 0) | (np.diff(self.row) != 1)
        starts = np.concatenate([[0], np.flatnonzero(breaks) + 1, [len(self)]])
        for start, stop in pairwise(starts):
            yield int(self.chunk[start]), int(self.row[start]), int(stop - start)


@dataclass(frozen=True)
class SegmentStore:
    """A folder of segment files, one a chunk of the table.

    Attributes
    ----------
    folder : str
    n_samples : int
        Samples of every segment.
    dtype : str
        ``float32`` or ``float64``, as the table has them.
    """

    folder: str
    n_samples: int
    dtype: str

    def _path(self, chunk: int) -> Path:
        return Path(self.folder) / f"segments-{chunk:06d}.raw"

    @contextmanager
    def writer(self, chunk: int) -> Iterator[SegmentWriter]:
        """Open a chunk for writing; it appears under its name when the block ends well."""
        partial = self._path(chunk).with_suffix(f".{uuid.uuid4().hex}.partial")
        with partial.open("wb", buffering=0) as file:
            yield SegmentWriter(file.fileno(), chunk)
        partial.replace(self._path(chunk))

    def read(self, pointers: Pointers) -> Segments:
        """Read segments, shape (n, n_samples), in the order of the pointers."""
        segments = np.empty((len(pointers), self.n_samples), self.dtype)
        position = 0
        for chunk, row, n_rows in pointers.runs():
            stop = position + n_rows
            with self._path(chunk).open("rb", buffering=0) as file:
                file.seek(row * segments[0].nbytes)
                target = segments[position:stop]
                if file.readinto(target.view(np.uint8).data) != target.nbytes:
                    raise OSError(f"{self._path(chunk)} ends before row {row + n_rows}")
            position = stop
        return segments


class SegmentWriter:
    """Appends segments to one chunk and says where they went."""

    def __init__(self, fileno: int, chunk: int) -> None:
        self._fileno = fileno
        self._chunk = chunk
        self._n_rows = 0

    def write(self, segments: Segments) -> Pointers:
        """Append segments (n, n_samples) and return their pointers."""
        content = np.ascontiguousarray(segments).reshape(-1).view(np.uint8).data
        while content:
            content = content[os.write(self._fileno, content) :]
        rows = np.arange(self._n_rows, self._n_rows + len(segments), dtype=np.int32)
        self._n_rows += len(segments)
        return Pointers(np.full(len(segments), self._chunk, np.int64), rows)
