"""The files of a dataset, on disk or in any store that fsspec knows, such as ``gs://``."""

from __future__ import annotations

import functools
import io
import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from trainer.errors import TrainerError

#: A file that is read from start to end is asked for in parts, so many at a time, where every
#: request is a round trip.
STREAM_PART_BYTES = 1 << 22
STREAM_PARTS = 12
#: How often a part is asked for before it counts as unreadable; gcsfs tries 6 times in each.
ATTEMPTS = 8
#: Seconds without a byte after which a connection is given up.
STALLED_SECONDS = 60


class DatasetError(TrainerError):
    """A dataset folder is missing, incomplete or damaged."""


@dataclass(frozen=True)
class Storage:
    """A folder that is only read.

    Attributes
    ----------
    url : str
        Local path, or a URL of any store that fsspec knows.
    """

    url: str

    @property
    def is_local(self) -> bool:
        """Whether the shards can be opened without fsspec."""
        return isinstance(self._filesystem()[0], LocalFileSystem)

    def name(self, path: str) -> str:
        """Return what the user would call a file."""
        return f"{self.url.rstrip('/')}/{path}"

    def full_path(self, path: str) -> str:
        """Return a file's path as its file system knows it."""
        return self.full_paths([path])[0]

    def full_paths(self, paths: Sequence[str]) -> list[str]:
        """Return the paths of several files, for which the folder is looked up once."""
        folder = self._filesystem()[1].rstrip("/")
        return [f"{folder}/{path}" for path in paths]

    def open_stream(self, path: str) -> BinaryIO:
        """Open a file to be read from start to end.

        Raises
        ------
        DatasetError
            If there is none, or it cannot be opened; its cause says which.
        """
        try:
            filesystem = self._filesystem_of(path)
            if isinstance(filesystem, LocalFileSystem):
                return Path(self.full_path(path)).open("rb", buffering=0)
            size = filesystem.size(self.full_path(path))
        # Every store's client raises errors of its own.
        except Exception as error:
            self._fail(path, error)
        return cast(BinaryIO, io.BufferedReader(_ReadAhead(self, path, size)))

    def read_ranges(
        self,
        ranges: Sequence[tuple[str, int, int]],
        is_sound: Callable[[int, bytes], bool] = lambda number, part: True,
    ) -> list[bytes]:
        """Return parts of files, all asked for at once where the store allows it.

        Parameters
        ----------
        ranges : sequence of (str, int, int)
            File, first byte and end of each part.
        is_sound : callable
            Takes the number of a part and its bytes. No store sends a checksum with a part: what
            is not sound is asked for again.

        Raises
        ------
        DatasetError
            If a part cannot be read, or a file ends before it.
        """
        parts: dict[int, bytes] = {}
        for attempt in range(1, ATTEMPTS + 1):
            left = [number for number in range(len(ranges)) if number not in parts]
            if not left:
                break
            wanted = [ranges[number] for number in left]
            for number, part in zip(left, self._ask_for(wanted), strict=True):
                path, start, end = ranges[number]
                if isinstance(part, Exception):
                    if attempt == ATTEMPTS or not _may_pass(part):
                        self._fail(path, part)
                elif len(part) != end - start:
                    raise self.ends_early(path, start + len(part), end)
                elif is_sound(number, part):
                    parts[number] = part
                elif attempt == ATTEMPTS:
                    raise DatasetError(
                        f"{self.name(path)}: bytes {start:,} to {end:,} are not those that were "
                        "verified: run the command again, and copy the dataset again if they stay"
                    )
        return [parts[number] for number in range(len(ranges))]

    def list_files(self, folder: str) -> dict[str, dict[str, Any]]:
        """Return what the store says of every file in a folder, by its path: size, times ...

        Raises
        ------
        DatasetError
            If the store cannot be asked.
        """
        filesystem, root = self._filesystem()
        try:
            # Not what an earlier listing has found.
            filesystem.invalidate_cache()
            found = filesystem.find(self.full_path(folder), detail=True)
        except Exception as error:
            self._fail(folder, error)
        return {path.removeprefix(f"{root.rstrip('/')}/"): info for path, info in found.items()}

    def ends_early(self, path: str, found: int, expected: int) -> DatasetError:
        """Return the error that a file is cut off."""
        return DatasetError(
            f"{self.name(path)} ends early, after {found:,} of {expected:,} bytes: "
            "copy the dataset again"
        )

    def is_another(self, path: str) -> DatasetError:
        """Return the error that the checksum of a file is not that in the manifest."""
        where = "" if self.is_local else "run the command again, and if that does not help, "
        return DatasetError(
            f"{self.name(path)} is not the file that dataset.json lists (its sha256 differs): "
            f"{where}copy the dataset again"
        )

    def missing(self, path: str) -> DatasetError:
        """Return the error that a file is not there."""
        return DatasetError(f"{self.name(path)} is missing: copy the dataset again")

    def _fail(self, path: str, error: Exception) -> NoReturn:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise self.missing(path) from error
        remedy = _remedy(error) if self.url.startswith("gs://") else ""
        raise DatasetError(
            f"{self.name(path)} cannot be read: {error or type(error).__name__}{remedy}"
        ) from error

    def _ask_for(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes | Exception]:
        paths = self.full_paths([path for path, _, _ in ranges])
        starts, ends = [start for _, start, _ in ranges], [end for _, _, end in ranges]
        filesystem = self._filesystem_of(ranges[0][0])
        found = filesystem.cat_ranges(paths, starts, ends, on_error="return")
        return cast(list[bytes | Exception], found)

    def _filesystem_of(self, path: str) -> Any:
        return self._filesystem()[0]

    def _filesystem(self) -> tuple[Any, str]:
        """Return the file system and the folder's path in it.

        Asked for each time: fsspec keeps the instances of a process, and none survives a fork.
        """
        try:
            options = _gcs_options() if self.url.startswith("gs://") else {}
            return cast(tuple[Any, str], fsspec.core.url_to_fs(self.url, **options))
        except (ImportError, ValueError) as error:
            raise DatasetError(f"{self.url} cannot be opened: {error}") from error


class _ReadAhead(io.RawIOBase):
    """A remote file from start to end: the next parts are on their way while one is used."""

    def __init__(self, storage: Storage, path: str, size: int) -> None:
        self._storage, self._path, self._size = storage, path, size
        self._starts = iter(range(0, size, STREAM_PART_BYTES))
        self._pool = ThreadPoolExecutor(STREAM_PARTS)
        self._coming = deque(map(self._ask, islice(self._starts, STREAM_PARTS)))
        self._part = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._part and self._coming:
            self._part = memoryview(self._coming.popleft().result()[0])
            self._coming.extend(map(self._ask, islice(self._starts, 1)))
        n = min(len(buffer), len(self._part))
        buffer[:n] = self._part[:n]
        self._part = self._part[n:]
        return n

    def close(self) -> None:
        if not self.closed:
            self._pool.shutdown(cancel_futures=True)
        super().close()

    def _ask(self, start: int) -> Future[list[bytes]]:
        end = min(self._size, start + STREAM_PART_BYTES)
        return self._pool.submit(self._storage.read_ranges, [(self._path, start, end)])


@functools.cache
def _gcs_options() -> dict[str, Any]:
    """Return how gcsfs is to be used, and see to what has to be done before it is imported."""
    # Else it asks over gRPC of what kind a bucket is, and gRPC does not survive the fork of the
    # processes that stream.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # It logs what it raises, with a traceback.
    logging.getLogger("gcsfs").addHandler(logging.NullHandler())
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(sock_connect=STALLED_SECONDS, sock_read=STALLED_SECONDS)
    return {"requests_timeout": timeout}


def _remedy(error: Exception) -> str:
    """Return what to do where Cloud Storage refuses to be read; empty for other errors."""
    if getattr(error, "code", None) == HTTPStatus.UNAUTHORIZED:
        return "; log in with: gcloud auth application-default login"
    if str(error).startswith("Forbidden"):
        return "; this account needs the role Storage Object Viewer on the bucket"
    return ""


def _may_pass(error: Exception) -> bool:
    """Return whether a request that failed like this may do when it is made again."""
    # A plain OSError is what gcsfs makes of a refusal.
    refused = isinstance(error, FileNotFoundError | PermissionError) or type(error) is OSError
    return not refused
