"""The folder that a URL names: on Cloud Storage, or in any store that fsspec knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from trainer.remote.folder import GoneError, RemoteError, RemoteFolder


def open_remote(url: str) -> RemoteFolder:
    """Return the folder behind a URL, which need not hold anything yet.

    Raises
    ------
    RemoteError
        If nothing reads the URL's protocol, or there are no credentials.
    """
    if url.startswith("gs://"):
        # Here, because it loads Google's client.
        from trainer.remote.gcs import GcsFolder

        return GcsFolder(url)
    return FsspecFolder(url)


class FsspecFolder:
    """Any store that fsspec knows. It does not tell versions: who writes last, wins."""

    def __init__(self, url: str) -> None:
        self.repeated = 0
        self._url = url.rstrip("/")
        try:
            filesystem, root = fsspec.core.url_to_fs(self._url)
        except (ImportError, ValueError) as error:
            raise RemoteError(f"cannot open {url}: {error}") from error
        self._filesystem: Any = filesystem
        self._root = root.rstrip("/")

    def list_files(self) -> dict[str, int]:
        """Return the names of all files; see `RemoteFolder`."""
        with self._asking():
            self._filesystem.invalidate_cache()
            there = self._filesystem.exists(self._root)
            found = self._filesystem.find(self._root) if there else []
        return {name.removeprefix(self._root).lstrip("/"): 0 for name in found}

    def download(self, name: str, path: Path) -> None:
        """Fetch a file; see `RemoteFolder`."""
        with self._asking(name):
            self._filesystem.get_file(f"{self._root}/{name}", str(path))

    def upload(self, name: str, content: BinaryIO, size: int, version: int | None) -> int:
        """Write a file; see `RemoteFolder`."""
        target = f"{self._root}/{name}"
        with self._asking(name):
            self._filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
            content.seek(0)
            self._filesystem.pipe_file(target, content.read(size))
        return 0

    def delete(self, name: str, version: int | None) -> None:
        """Delete a file; see `RemoteFolder`."""
        with self._asking(name):
            if self._filesystem.exists(f"{self._root}/{name}"):
                self._filesystem.rm_file(f"{self._root}/{name}")

    @contextmanager
    def _asking(self, name: str = "") -> Iterator[None]:
        where = f"{self._url}/{name}".rstrip("/")
        try:
            yield
        except FileNotFoundError as error:
            raise GoneError(f"{where} is not there any more") from error
        # Every store's client raises errors of its own.
        except Exception as error:
            detail = error or type(error).__name__
            raise RemoteError(f"{where}: {detail}", lasting=False) from error
