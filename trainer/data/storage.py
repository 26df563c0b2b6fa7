"""The files of a dataset, on disk or in any store that fsspec knows, such as ``gs://``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from trainer.errors import TrainerError

#: Asked for at a time where every request is a round trip.
REMOTE_READ_BYTES = 1 << 24


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
        """Whether files can be opened without fsspec."""
        return isinstance(self._filesystem()[0], LocalFileSystem)

    def name(self, path: str) -> str:
        """Return what the user would call a file."""
        return f"{self.url.rstrip('/')}/{path}"

    def full_path(self, path: str) -> str:
        """Return a file's path as its file system knows it."""
        return f"{self._filesystem()[1].rstrip('/')}/{path}"

    def open_stream(self, path: str) -> BinaryIO:
        """Open a file to be read from start to end.

        Raises
        ------
        DatasetError
            If there is none, or it cannot be opened; its cause says which.
        """
        filesystem = self._filesystem()[0]
        full_path = self.full_path(path)
        try:
            if self.is_local:
                return Path(full_path).open("rb", buffering=0)
            file = filesystem.open(
                full_path, "rb", block_size=REMOTE_READ_BYTES, cache_type="readahead"
            )
            return cast(BinaryIO, file)
        # Every store's client raises errors of its own.
        except Exception as error:
            self._fail(path, error)

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Return parts of files, all asked for at once where the store allows it.

        Parameters
        ----------
        ranges : sequence of (str, int, int)
            File, first byte and end of each part.

        Raises
        ------
        DatasetError
            If a part cannot be read, or a file ends before it.
        """
        paths = [self.full_path(path) for path, _, _ in ranges]
        starts, ends = [start for _, start, _ in ranges], [end for _, _, end in ranges]
        parts = self._filesystem()[0].cat_ranges(paths, starts, ends, on_error="return")
        for part, (path, start, end) in zip(parts, ranges, strict=True):
            if isinstance(part, Exception):
                self._fail(path, part)
            if len(part) != end - start:
                raise self.ends_early(path, start + len(part), end)
        return cast(list[bytes], parts)

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

    def missing(self, path: str) -> DatasetError:
        """Return the error that a file is not there."""
        return DatasetError(f"{self.name(path)} is missing: copy the dataset again")

    def _fail(self, path: str, error: Exception) -> NoReturn:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise self.missing(path) from error
        raise DatasetError(
            f"{self.name(path)} cannot be read: {error or type(error).__name__}"
        ) from error

    def _filesystem(self) -> tuple[Any, str]:
        """Return the file system and the folder's path in it.

        Asked for each time: fsspec keeps the instances of a process, and none survives a fork.
        """
        try:
            return cast(tuple[Any, str], fsspec.core.url_to_fs(self.url))
        except (ImportError, ValueError) as error:
            raise DatasetError(f"{self.url} cannot be opened: {error}") from error
