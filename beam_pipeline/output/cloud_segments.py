"""Accepted trace segments between the passes, where workers share no disk: objects in a bucket.

One object holds a chunk of the table, written once. Every segment carries a checksum, because the
service gives none for a range of bytes, and a block's segments are fetched side by side, those
that lie near each other in one request.
"""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from beam_pipeline.output.segments import Pointers
from beam_pipeline.screening import Segments
from beam_pipeline.storage.cloud_path import CloudPath
from beam_pipeline.storage.gcs_client import in_parallel
from beam_pipeline.storage.places import whole_file

CRC_BYTES = 4
#: Bytes that nobody asked for are fetched where a further request would take longer.
GAP_BYTES = 256 << 10
READ_ATTEMPTS = 4


@dataclass(frozen=True)
class CloudSegmentStore:
    """Objects of segments below a prefix, one an attempt at a chunk of the table.

    Attributes
    ----------
    folder : CloudPath
    n_samples : int
        Samples of every segment.
    dtype : str
        ``float32`` or ``float64``, as the table has them.
    """

    folder: CloudPath
    n_samples: int
    dtype: str

    @property
    def _row_bytes(self) -> int:
        return self.n_samples * np.dtype(self.dtype).itemsize + CRC_BYTES

    def _path(self, chunk: int) -> CloudPath:
        return self.folder / f"segments-{chunk:016x}.raw"

    @contextmanager
    def writer(self, chunk: int) -> Iterator[CloudSegmentWriter]:
        """Open a chunk for writing; it appears under a new name when the block ends well.

        A worker that was given up may still finish the chunk after the one that took over, with its
        rows in another order. Under a name of its own that does no harm: nothing points there.
        """
        attempt = chunk << 32 | secrets.randbits(32)
        with whole_file(self._path(attempt)) as file:
            yield CloudSegmentWriter(file, attempt)

    def read(self, pointers: Pointers) -> Segments:
        """Read segments, shape (n, n_samples), in the order of the pointers.

        Raises
        ------
        OSError
            If an object is missing, too short or damaged.
        """
        segments = np.empty((len(pointers), self.n_samples), self.dtype)
        contents = segments.view(np.uint8)
        max_gap = GAP_BYTES // self._row_bytes

        def fetch(places: NDArray[np.int64]) -> None:
            rows = pointers.row[places]
            found = self._read_rows(int(pointers.chunk[places[0]]), rows)
            contents[places] = found

        in_parallel(fetch, nearby(pointers, max_gap))
        return segments

    def _read_rows(self, chunk: int, rows: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Return the bytes of rows, which lie near each other, without their checksums."""
        first, stop = int(rows.min()), int(rows.max()) + 1
        path, n_bytes = self._path(chunk), (stop - first) * self._row_bytes
        for _ in range(READ_ATTEMPTS):
            content = path.read_range(first * self._row_bytes, stop * self._row_bytes)
            if len(content) != n_bytes:
                raise OSError(f"{path} ends before row {stop}")
            found = np.frombuffer(content, np.uint8).reshape(-1, self._row_bytes)[rows - first]
            if all(_is_sound(row) for row in found):
                return found[:, :-CRC_BYTES]
        raise OSError(f"{path}: rows {first} to {stop} do not fit their checksums")


class CloudSegmentWriter:
    """Appends segments to one chunk and says where they went."""

    def __init__(self, file: BinaryIO, chunk: int) -> None:
        self._file = file
        self._chunk = chunk
        self._n_rows = 0

    def write(self, segments: Segments) -> Pointers:
        """Append segments (n, n_samples) and return their pointers."""
        for segment in np.ascontiguousarray(segments):
            content = segment.view(np.uint8).data
            self._file.write(content)
            self._file.write(zlib.crc32(content).to_bytes(CRC_BYTES, "little"))
        rows = np.arange(self._n_rows, self._n_rows + len(segments), dtype=np.int32)
        self._n_rows += len(segments)
        return Pointers(np.full(len(segments), self._chunk, np.int64), rows)


def _is_sound(row: NDArray[np.uint8]) -> bool:
    checksum = int.from_bytes(row[-CRC_BYTES:].tobytes(), "little")
    return zlib.crc32(row[:-CRC_BYTES].data) == checksum


def nearby(pointers: Pointers, max_gap: int) -> list[NDArray[np.int64]]:
    """Return the places of the pointers in groups that one request fetches.

    Parameters
    ----------
    pointers : Pointers
    max_gap : int
        Rows between two of one group that nobody asked for.
    """
    if not len(pointers):
        return []
    order = np.lexsort((pointers.row, pointers.chunk))
    chunk, row = pointers.chunk[order], pointers.row[order].astype(np.int64)
    breaks = (np.diff(chunk) != 0) | (np.diff(row) > max_gap + 1)
    return np.split(order, np.flatnonzero(breaks) + 1)
