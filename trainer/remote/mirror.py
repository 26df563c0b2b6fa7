"""A local folder that is copied to a remote one while it is being written."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from trainer.remote.folder import GoneError, RemoteError, RemoteFolder

#: How old the remote copy of what is only appended to may get.
LIVE_SECONDS = 30.0
#: Snapshots in a row that did not get through, although the store was asked for minutes each time.
MOST_FAILURES = 6
#: A folder that someone writes to is listed again when a file of it is gone before it was read.
PULL_ATTEMPTS = 5
PULL_THREADS = 8


class _State(NamedTuple):
    """What tells one content of a file from another."""

    size: int
    mtime_ns: int
    inode: int


@dataclass
class _Snapshot:
    """A folder at one moment: files stay readable through their handles when they are removed.

    Attributes
    ----------
    files : dict
        Those that are not known to be copied.
    names : set of str, optional
        All files there are; the remote folder is to keep no other. None keeps all.
    """

    files: dict[str, tuple[BinaryIO, _State]] = field(default_factory=dict)
    names: set[str] | None = None

    def close(self) -> None:
        """Let the files go."""
        while self.files:
            self.files.popitem()[1][0].close()


class Mirror:
    """Copies a folder in a thread of its own, one snapshot after the other.

    Where uploads are slower than snapshots come, one that has not begun is replaced by the next.
    Of each, the commit marker goes last, and what is no longer there is removed after it: whenever
    this stops, the remote marker names files that are whole.

    Parameters
    ----------
    folder : pathlib.Path
    remote : RemoteFolder
    marker : str
        Name of the file that goes last.
    live, guarded : tuple of str
        Names, or folders with a slash after them. What is only appended to is copied between
        snapshots, too; of what is guarded, nothing is overwritten that another process has written
        since it was read here.

    Attributes
    ----------
    failure : RemoteError or None
        Why no more is copied.
    """

    def __init__(
        self,
        folder: Path,
        remote: RemoteFolder,
        *,
        marker: str,
        live: tuple[str, ...],
        guarded: tuple[str, ...],
    ) -> None:
        self.failure: RemoteError | None = None
        self._folder, self._remote, self._marker = folder, remote, marker
        self._live, self._guarded = live, guarded
        self._versions: dict[str, int] = {}
        #: What the remote folder holds, as far as it was read or written here.
        self._copied: dict[str, _State] = {}
        self._changed = threading.Condition()
        self._pending: _Snapshot | None = None
        self._copying = False
        #: Someone waits for what was pushed, so that an outage is not waited for.
        self._awaited = False
        self._closing = False
        # The thread itself seems to have ended when a signal interrupts the wait for it.
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def pull(
        self, without: tuple[str, ...], is_needed: Callable[[str], bool] | None = None
    ) -> None:
        """Fetch what the remote folder holds, but names that begin or end like `without`.

        Parameters
        ----------
        without : tuple of str
        is_needed : callable, optional
            Asked of every other name once the commit marker is there.

        Raises
        ------
        RemoteError
            If it cannot be read.
        """
        for _ in range(PULL_ATTEMPTS - 1):
            # Else a process that writes there removed a file since: its marker is a new one, too.
            with suppress(GoneError):
                return self._pull(without, is_needed)
        return self._pull(without, is_needed)

    def start(self) -> None:
        """Begin to copy."""
        self._thread.start()

    def push(self) -> None:
        """Have the folder copied as it is now; see `close` for whether it was.

        Raises
        ------
        RemoteError
            If an earlier copy failed in a way that lasts.
        """
        if self.failure is not None:
            raise self.failure
        snapshot = self._take()
        with self._changed:
            replaced, self._pending = self._pending, snapshot
            self._changed.notify_all()
        if replaced is not None:
            replaced.close()

    def flush(self) -> None:
        """Have the folder copied as it is now, and return when it is.

        Raises
        ------
        RemoteError
            If it cannot be.
        """
        self.push()
        with self._changed:
            self._awaited = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.failure or not (self._pending or self._copying))
            self._awaited = False
        if self.failure is not None:
            raise self.failure

    @property
    def is_copying(self) -> bool:
        """Whether there may be something that was pushed and is not copied."""
        return not self._ended.is_set()

    def close(self) -> None:
        """Return when everything that was pushed is copied.

        Raises
        ------
        RemoteError
            If it cannot be.
        """
        with self._changed:
            self._awaited = self._closing = True
            self._changed.notify_all()
        self._ended.wait()
        if self._pending is not None:
            self._pending.close()
        if self.failure is not None:
            raise self.failure

    def _pull(self, without: tuple[str, ...], is_needed: Callable[[str], bool] | None) -> None:
        self._versions = self._remote.list_files()
        wanted = [name for name in self._versions if not _is_like(name, without)]
        # What the marker names is then at least as new as the marker.
        wanted.sort(key=lambda name: name != self._marker)
        head = 1 if self._marker in wanted else 0
        for name in wanted[:head]:
            self._fetch(name)
        wanted = [name for name in wanted if is_needed is None or is_needed(name)]
        with ThreadPoolExecutor(PULL_THREADS) as pool:
            list(pool.map(self._fetch, wanted[head:]))
        # Of an attempt before this one.
        for path in self._folder.rglob("*"):
            if path.is_file() and path.relative_to(self._folder).as_posix() not in wanted:
                path.unlink()
        self._copied = {name: _state((self._folder / name).stat()) for name in wanted}

    def _fetch(self, name: str) -> None:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts:
            raise RemoteError(f"{name!r} is no name for a file of a run: remove it there")
        target = self._folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        self._remote.download(name, target)

    def _take(self, names: tuple[str, ...] | None = None) -> _Snapshot:
        """Open what may have changed, of the whole folder or of some names."""
        snapshot = _Snapshot(names=set() if names is None else None)
        for folder, _, files in os.walk(self._folder):
            for file in files:
                path = Path(folder, file)
                name = path.relative_to(self._folder).as_posix()
                if name.endswith(".partial") or (names is not None and not _is_like(name, names)):
                    continue
                try:
                    handle = path.open("rb")
                except FileNotFoundError:
                    continue
                state = _state(os.fstat(handle.fileno()))
                if snapshot.names is not None:
                    snapshot.names.add(name)
                if self._copied.get(name) == state:
                    handle.close()
                else:
                    snapshot.files[name] = (handle, state)
        return snapshot

    def _work(self) -> None:
        try:
            self._copy_all()
        finally:
            self._ended.set()

    def _copy_all(self) -> None:
        failures = 0
        while self.failure is None:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closing, LIVE_SECONDS)
                snapshot, self._pending = self._pending, None
                if snapshot is None and self._closing:
                    return
                self._copying = True
            taken = snapshot
            try:
                taken = snapshot or self._take(self._live)
                self._copy(taken)
                failures = 0
            except RemoteError as error:
                failures += 1
                if error.lasting or failures == MOST_FAILURES or self._is_last(snapshot):
                    self.failure = error
                elif snapshot is not None and self._put_back(snapshot):
                    continue
            except Exception as error:
                self.failure = RemoteError(f"{self._folder}: {error or type(error).__name__}")
            if taken is not None:
                taken.close()
            with self._changed:
                self._copying = False
                self._changed.notify_all()

    def _is_last(self, snapshot: _Snapshot | None) -> bool:
        """Return whether someone waits for this snapshot, and for none after it."""
        with self._changed:
            return snapshot is not None and self._awaited and self._pending is None

    def _put_back(self, snapshot: _Snapshot) -> bool:
        """Have a snapshot tried again after a while, unless there is a newer one."""
        with self._changed:
            if self._pending is not None:
                return False
            self._pending = snapshot
            self._changed.wait(LIVE_SECONDS)
        return True

    def _copy(self, snapshot: _Snapshot) -> None:
        for name in sorted(snapshot.files, key=lambda name: (name == self._marker, name)):
            handle, state = snapshot.files[name]
            if self._copied.get(name) != state:
                version = self._version(name)
                self._versions[name] = self._remote.upload(name, handle, state.size, version)
                self._copied[name] = state
        if snapshot.names is not None:
            for name in sorted(self._copied.keys() - snapshot.names):
                self._remote.delete(name, self._version(name))
                del self._copied[name], self._versions[name]

    def _version(self, name: str) -> int | None:
        """Return what must be there for a file to be written, None where that is no matter."""
        return self._versions.get(name, 0) if _is_like(name, self._guarded) else None


def _state(stat: os.stat_result) -> _State:
    return _State(stat.st_size, stat.st_mtime_ns, stat.st_ino)


def _is_like(name: str, patterns: tuple[str, ...]) -> bool:
    return any(name.startswith(pattern) or name.endswith(pattern) for pattern in patterns)
