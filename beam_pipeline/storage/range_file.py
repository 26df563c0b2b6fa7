"""A file of which bytes are fetched by range, for readers that want a file."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from typing import Any


class RangeFile(io.RawIOBase):
    """Reads what is asked for, by one request each time.

    Parameters
    ----------
    read_range : callable
        Returns the bytes from a position to another.
    size : int
    name : str
        For errors.
    """

    def __init__(self, read_range: Callable[[int, int], bytes], size: int, name: str) -> None:
        self._read_range = read_range
        self._size = size
        self._name = name
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position; nothing is fetched."""
        starts = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}
        self._position = max(0, starts[whence] + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, or what the rest of the file fills of it.

        Raises
        ------
        OSError
            If other than the wanted number of bytes comes.
        """
        target = memoryview(buffer).cast("B")
        stop = min(self._position + len(target), self._size)
        n_bytes = stop - self._position
        if n_bytes <= 0:
            return 0
        content = self._read_range(self._position, stop)
        if len(content) != n_bytes:
            raise OSError(errno.EIO, f"{len(content)} of {n_bytes} bytes came", self._name)
        target[:n_bytes] = content
        self._position = stop
        return n_bytes
