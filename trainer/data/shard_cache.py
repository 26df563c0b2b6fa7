"""A folder on this machine that keeps the shards of remote datasets, each by its SHA-256.

Any number of processes may use one folder at a time: whoever needs a shard first fetches it under
a lock, which the system takes away when that process ends, however it ends. A file has its name
only when all of it is there and its checksum holds, and the checksum is looked at again in every
run that uses it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from fsspec.implementations.local import LocalFileSystem

from trainer.data.dataset_folder import DatasetFolder, Shard
from trainer.data.storage import DatasetError, Storage

READ_BYTES = 1 << 22
#: Each has `storage.STREAM_PARTS` parts on their way.
FETCH_THREADS = 4
#: What arrives damaged is fetched again.
ATTEMPTS = 3


@dataclass(frozen=True)
class CachedStorage(Storage):
    """A remote folder of which some files lie on this machine.

    Attributes
    ----------
    cached : mapping
        {file: its path on this machine}.
    """

    cached: Mapping[str, str]

    @property
    def is_local(self) -> bool:
        """Whether the shards can be opened without fsspec: they can."""
        return True

    def name(self, path: str) -> str:
        """Return what the user would call a file."""
        return self.cached.get(path) or super().name(path)

    def full_paths(self, paths: Sequence[str]) -> list[str]:
        """Return the paths of files as their file systems know them."""
        known = dict(self.cached)
        if remote := [path for path in paths if path not in known]:
            known.update(zip(remote, super().full_paths(remote), strict=True))
        return [known[path] for path in paths]

    def list_files(self, folder: str) -> dict[str, dict[str, Any]]:
        """Return what the disk says of the files of a folder that are on this machine."""
        disk = LocalFileSystem()
        names = [path for path in self.cached if path.startswith(f"{folder}/")]
        return {path: disk.info(self.cached[path]) for path in names}

    def _filesystem_of(self, path: str) -> Any:
        return LocalFileSystem() if path in self.cached else super()._filesystem_of(path)


def cache_shards(
    folder: DatasetFolder,
    splits: Iterable[str],
    cache: Path,
    advance: Callable[[int], object] = lambda n_trials: None,
) -> DatasetFolder:
    """Return a dataset whose shards are read from this machine, after fetching those missing.

    Parameters
    ----------
    folder : DatasetFolder
        Behind a URL.
    splits : iterable of str
        Those whose shards are needed.
    cache : pathlib.Path
        Folder for shards, on a disk of this machine.
    advance : callable
        Called with the number of trials of each shard that is there.

    Raises
    ------
    DatasetError
        If a shard cannot be read, is not the one that the manifest lists, or finds no room.
    """
    shards = [shard for split in splits for shard in folder.splits[split].shards]
    paths = {shard.path: cache / f"{shard.sha256}.tar" for shard in shards}
    with _writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        left = sum(shard.bytes for shard in shards if not paths[shard.path].exists())
        free = shutil.disk_usage(cache).free
    if left > free:
        raise DatasetError(
            f"--cache {cache} has no room for the shards: {left / 1e9:.1f} GB are missing there, "
            f"{free / 1e9:.1f} GB are free; choose another disk, or leave it out"
        )

    def fetch(shard: Shard) -> int:
        _keep(folder, shard, paths[shard.path])
        return shard.trials

    with ThreadPoolExecutor(FETCH_THREADS) as pool:
        futures = [pool.submit(fetch, shard) for shard in shards]
        try:
            for future in as_completed(futures):
                advance(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    cached = {path: str(file) for path, file in paths.items()}
    return replace(folder, storage=CachedStorage(folder.url, cached))


def _keep(folder: DatasetFolder, shard: Shard, path: Path) -> None:
    """See to it that a shard is there and sound."""
    if _is_sound(shard, path):
        return
    with _writing(path.parent), _locked(path) as (partial, file):
        # Another process may have fetched it meanwhile.
        if _is_sound(shard, path):
            partial.unlink(missing_ok=True)
            return
        try:
            for _ in range(ATTEMPTS):
                if _fetch(folder, shard, file) == shard.sha256:
                    partial.replace(path)
                    return
        except BaseException:
            partial.unlink()
            raise
        partial.unlink()
    raise folder.storage.is_another(shard.path)


def _is_sound(shard: Shard, path: Path) -> bool:
    with suppress(FileNotFoundError), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256
    return False


def _fetch(folder: DatasetFolder, shard: Shard, to: BinaryIO) -> str:
    """Copy a shard from its beginning, and return its SHA-256."""
    to.seek(0)
    to.truncate()
    digest = hashlib.sha256()
    with folder.open_stream(shard.path) as source:
        while part := source.read(READ_BYTES):
            digest.update(part)
            to.write(part)
    to.flush()
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Open the file under which a shard arrives, once no other process writes to it."""
    partial = path.with_suffix(".partial")
    while True:
        # Not truncated: another process may be writing.
        with partial.open("ab") as file:
            # Not lockf, whose locks are of processes: two of them, each with several threads that
            # hold and wait, would look like a deadlock.
            fcntl.flock(file, fcntl.LOCK_EX)
            is_it = False
            with suppress(FileNotFoundError):
                is_it = os.path.samestat(os.fstat(file.fileno()), partial.stat())
            # Else it was renamed or removed while this one waited.
            if is_it:
                yield partial, file
                return


@contextmanager
def _writing(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DatasetError(
                f"--cache {cache} is full: make room there, choose another disk, or leave it out"
            ) from error
        raise DatasetError(
            f"--cache {cache} cannot be used: {error.strerror or error}; choose a folder on a disk "
            "of this machine"
        ) from error
