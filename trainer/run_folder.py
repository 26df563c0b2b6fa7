"""The run folder, on disk or behind a URL such as ``gs://``.

A run writes to a local folder in either case. Behind a URL that is a temporary one: it begins with
what the URL holds, and what changed is copied there in the background, after every checkpoint and
at the end (docs/decisions/0009). What the URL holds is always a run that can go on.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import TrainerError, UsageError
from trainer.plurals import plural

if TYPE_CHECKING:
    from trainer.remote.mirror import Mirror

COMMIT_MARKER = "checkpoints/committed.json"
#: The state of a search, whose folder is no run.
STUDY = "study.db"
_LOCK = ".lock"
#: Only appended to.
_LIVE = ("metrics.jsonl", "tensorboard/")
#: What `trainer.vertex.artifacts` puts beside a run for Vertex AI.
_COPIES = ("logs/", "model/")
#: What two processes that train in one folder would take from each other.
_GUARDED = ("checkpoints/", "config.yaml", "metrics.jsonl")


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
    _mirror: Mirror | None = None

    def push(self) -> None:
        """Have the URL's copy brought up to now in the background; a folder on disk needs none.

        Raises
        ------
        TrainerError
            If nothing can be written there any more.
        """
        if self._mirror is not None:
            self._mirror.push()

    def flush(self) -> None:
        """Return when the URL's copy is what the folder is now.

        Raises
        ------
        TrainerError
            If it cannot be brought there.
        """
        if self._mirror is not None:
            self._mirror.flush()


def is_remote(url: str) -> bool:
    """Return whether a path is a URL of a file system that is not this machine's."""
    return "://" in url and not url.startswith("file://")


def local_path(url: str) -> Path:
    """Return the path that a user means who gives a path or a URL that is not remote."""
    return Path(url.removeprefix("file://"))


@contextmanager
def open_run(
    url: str | Path, *, alone: bool = False, with_weights: bool = True, only_best: bool = False
) -> Iterator[RunFolder]:
    """Open a run folder, new or not; all that was pushed is at the URL when this ends.

    Parameters
    ----------
    url : str or pathlib.Path
    alone : bool
        Refuse a folder on disk that another process has opened like this. At a URL, the one that
        writes second ends.
    with_weights : bool
        Whether the files in ``checkpoints/`` are needed; they need not be fetched, then.
    only_best : bool
        Whether of those files the best checkpoint is enough.

    Raises
    ------
    TrainerError
        If the URL cannot be reached or written, or nothing reads its protocol.
    """
    url = str(url)
    if is_remote(url):
        with _staged(url.rstrip("/"), with_weights, only_best) as run:
            yield run
        return
    path = local_path(url)
    with _locked(path) if alone else nullcontext():
        yield RunFolder(url, path)


@contextmanager
def _staged(url: str, with_weights: bool, only_best: bool) -> Iterator[RunFolder]:
    """Let the body work on a temporary copy of a remote folder."""
    # Here, because a folder on disk needs neither.
    from trainer.remote.folder import RemoteError
    from trainer.remote.mirror import Mirror
    from trainer.remote.stores import open_remote

    remote = open_remote(url)
    if not url.partition("://")[2].strip("/").partition("/")[2]:
        raise UsageError(f"{url} is a whole bucket: name a folder in it")
    folder = tempfile.mkdtemp(prefix="lfp-vit-")
    keep = False
    try:
        mirror = Mirror(Path(folder), remote, marker=COMMIT_MARKER, live=_LIVE, guarded=_GUARDED)
        # No shards, either: a dataset is refused by its manifest.
        without = ("tensorboard/", *_COPIES, ".tar", *(() if with_weights else (".pt",)))
        mirror.pull(without, partial(_is_no_other_checkpoint, Path(folder)) if only_best else None)
        mirror.start()
        run = RunFolder(url, Path(folder), mirror)
        try:
            try:
                yield run
                run.push()
            finally:
                mirror.close()
        except RemoteError as error:
            # Another one may come from another folder that the body has open.
            if error is not mirror.failure:
                raise
            keep = True
            raise RemoteError(
                f"cannot write to {url} ({error}); what is missing there is kept in {folder}"
            ) from error
        except BaseException as error:
            # By a signal that ended the wait for the last copy.
            if not mirror.is_copying:
                raise
            keep = True
            why = str(error) or "interrupted"
            raise TrainerError(f"{why}; what is missing in {url} is kept in {folder}") from error
    except TrainerError as error:
        if keep:
            raise
        # Nobody knows the temporary folder.
        text = str(error).replace(folder, url)
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENOSPC:
            text += f" (it is staged in {tempfile.gettempdir()}: set TMPDIR to a larger disk)"
        raise type(error)(text) from error
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        if remote.repeated:
            failed = plural(remote.repeated, "request", "failed and was", "failed and were")
            print(f"{url}: {failed} repeated", file=sys.stderr)


def _is_no_other_checkpoint(folder: Path, name: str) -> bool:
    """Return whether a file is no checkpoint, or the one that the commit marker calls the best."""
    if not name.endswith(".pt"):
        return True
    try:
        best = json.loads((folder / COMMIT_MARKER).read_text(encoding="utf-8"))["best"][0]["path"]
    except (OSError, ValueError, LookupError, TypeError):
        # Whoever reads the marker says what is wrong with it.
        return True
    return name == f"checkpoints/{best}"


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


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises
    ------
    TrainerError
        If it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainerError(f"{path} cannot be read ({error}): make it again") from error


def check_fields(path: Path, content: Any, fields: frozenset[str]) -> Any:
    """Return the content of a JSON file, which must be an object that has these fields.

    Raises
    ------
    TrainerError
        If it lacks one.
    """
    missing = sorted(fields - set(content)) if isinstance(content, dict) else sorted(fields)
    if missing:
        raise TrainerError(
            f"{path} lacks {', '.join(missing)}: it was not written by this version; make it again"
        )
    return content


def write_json(path: Path, content: Any) -> None:
    """Write plain JSON, without NaN, as `write_atomically` does."""
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


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


def write_file(url: str, content: bytes) -> None:
    """Write one file, on disk or behind a URL, whatever is there.

    Raises
    ------
    TrainerError
        If it cannot be written.
    """
    if not is_remote(url):
        write_atomically(local_path(url), content)
        return
    from trainer.remote.stores import open_remote

    folder, _, name = url.rpartition("/")
    open_remote(folder).upload(name, io.BytesIO(content), len(content), None)


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut; not every file system lets one ask."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_DIRECTORY)
        with suppress(OSError):
            os.fsync(handle)
        os.close(handle)
