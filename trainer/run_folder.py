"""The run folder, on disk or behind a URL such as ``gs://``.

A run writes to a local folder in either case. Behind a URL that is a temporary one: it begins with
what the URL holds, and what changed is copied there after every checkpoint. The commit marker of
the checkpoints is copied last, so what the URL holds is always a run that can go on.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec

from trainer.errors import TrainerError

COMMIT_MARKER = "checkpoints/committed.json"
_LOCK = ".lock"


@dataclass
class RunFolder:
    """A run folder that is open.

    Attributes
    ----------
    url : str
        What the user called it.
    path : pathlib.Path
        Where it can be read and written now.
    """

    url: str
    path: Path
    _remote: Any = None
    _root: str = ""
    _pushed: dict[str, tuple[int, int]] = field(default_factory=dict)

    def push(self) -> None:
        """Copy what changed to the URL; a folder on disk needs none."""
        if self._remote is None:
            return
        current = self._current()
        changed = [name for name, state in current.items() if self._pushed.get(name) != state]
        try:
            for name in sorted(changed, key=lambda name: (name == COMMIT_MARKER, name)):
                self._remote.makedirs(f"{self._root}/{name}".rpartition("/")[0], exist_ok=True)
                self._remote.put_file(str(self.path / name), f"{self._root}/{name}")
            for name in self._pushed.keys() - current.keys():
                self._remote.rm_file(f"{self._root}/{name}")
        except OSError as error:
            raise TrainerError(f"cannot write to {self.url}: {error}") from error
        self._pushed = current

    def _pull(self) -> None:
        try:
            names = self._remote.find(self._root) if self._remote.exists(self._root) else []
            for name in names:
                relative = name.removeprefix(self._root).lstrip("/")
                target = self.path / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                self._remote.get_file(name, str(target))
        except OSError as error:
            raise TrainerError(f"cannot read {self.url}: {error}") from error
        self._pushed = self._current()

    def _current(self) -> dict[str, tuple[int, int]]:
        files = (Path(folder, name) for folder, _, names in os.walk(self.path) for name in names)
        stats = {file.relative_to(self.path).as_posix(): file.stat() for file in files}
        return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def is_remote(url: str) -> bool:
    """Return whether a path is a URL of a file system that is not this machine's."""
    return "://" in url and not url.startswith("file://")


@contextmanager
def open_run(url: str | Path, *, alone: bool = False) -> Iterator[RunFolder]:
    """Open a run folder, new or not; what is left unsaved is pushed when the body ends well.

    Parameters
    ----------
    url : str or pathlib.Path
    alone : bool
        Refuse a folder on disk that another process has opened like this.

    Raises
    ------
    TrainerError
        If the URL cannot be reached, or nothing reads its protocol.
    """
    url = str(url)
    if not is_remote(url):
        path = Path(url.removeprefix("file://"))
        with _locked(path) if alone else nullcontext():
            yield RunFolder(url, path)
        return
    try:
        remote, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise TrainerError(f"cannot open {url}: {error}") from error
    with tempfile.TemporaryDirectory(prefix="lfp-vit-") as folder:
        run = RunFolder(url, Path(folder), remote, root.rstrip("/"))
        run._pull()
        try:
            yield run
        except TrainerError as error:
            # Nobody knows the temporary folder.
            raise type(error)(str(error).replace(folder, url.rstrip("/"))) from error
        run.push()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes out; the system lets go when this one ends, however it ends."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / _LOCK).open("wb")
    except OSError as error:
        raise TrainerError(f"cannot write {path}: {error.strerror or error}") from error
    with file:
        try:
            # Not flock, which worker processes would inherit, and hold when this one is killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainerError(f"another process is training in {path}: wait for it") from error
        except OSError:
            # A file system that has no locks.
            pass
        yield


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file that is whole whenever it exists: a temporary one, fsync, then rename.

    Raises
    ------
    TrainerError
        If it cannot be written; what stood there before still does.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise TrainerError(f"cannot write {path}: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut; not every file system lets one ask."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_DIRECTORY)
        with suppress(OSError):
            os.fsync(handle)
        os.close(handle)
