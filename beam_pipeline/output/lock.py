"""One run at a time in an output folder."""

from __future__ import annotations

import fcntl
import io
import json
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from beam_pipeline.storage.cloud_path import CloudPath
from beam_pipeline.storage.places import AnyPath

#: In Cloud Storage, where no lock ends with its process, the object that holds it.
LOCK = ".lock"
#: Seconds between two signs of life of a run.
HEARTBEAT_SECONDS = 15.0
#: Seconds without one after which a run is taken for dead: a sign is three requests, each of which
#: may hang for the client's timeout of 60 s before it is sent again.
PATIENCE_SECONDS = 200.0


class LockedError(RuntimeError):
    """Another run has the output folder."""


class OutputLock:
    """A held lock on a folder of this machine; its run's death ends it."""

    def check(self) -> None:
        """Raise `LockedError` if another run may have taken the folder over."""


@contextmanager
def locked(output: AnyPath) -> Iterator[OutputLock]:
    """Keep other runs out of an output folder; a killed run's lock goes with it.

    In Cloud Storage it goes after `PATIENCE_SECONDS`, for which the next run waits.

    Raises
    ------
    LockedError
        If another run holds the folder, or it is no folder.
    """
    if isinstance(output, Path):
        with _locked_folder(output):
            yield OutputLock()
        return
    assert isinstance(output, CloudPath)
    lease = Lease(output / LOCK, str(output))
    lease.acquire()
    try:
        yield lease
    finally:
        lease.release()


@contextmanager
def _locked_folder(output: Path) -> Iterator[None]:
    if output.exists() and not output.is_dir():
        raise LockedError(f"{output} is a file; --output needs a folder")
    output.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(output, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise LockedError(f"another run is writing to {output}; wait for its end") from error
    finally:
        os.close(descriptor)


class Lease(OutputLock):
    """A lock in Cloud Storage: an object that its run writes again and again.

    Whoever finds one waits for the next write. If none comes, its run is dead, and of those that
    wait, the one whose conditional write succeeds has the lock. No clocks are compared.

    Parameters
    ----------
    path : CloudPath
    what : str
        What it guards, for messages.
    """

    def __init__(self, path: CloudPath, what: str) -> None:
        self._path = path
        self._what = what
        self._holder = {
            "run": uuid.uuid4().hex,
            "host": platform.node(),
            "process": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._n_writes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def acquire(self) -> None:
        """Take the lock.

        Raises
        ------
        LockedError
            If another run holds it and is alive.
        """
        generation = self._path.generation()
        if generation:
            generation = self._await_death(generation)
        if not self._write(generation):
            raise LockedError(
                f"another run has just begun to write to {self._what}; wait for its end"
            )
        self._thread.start()

    def check(self) -> None:
        """Raise `LockedError` if another run may have taken the folder over.

        All that another run does to the folder comes after it has replaced the lock.
        """
        if not self._is_ours():
            raise LockedError(
                f"another run has taken {self._what} over while this one was cut off; "
                "the same command starts again"
            )

    def release(self) -> None:
        """Give the lock up, if it is still ours."""
        self._stop.set()
        self._thread.join(HEARTBEAT_SECONDS)
        try:
            generation = self._path.generation()
            if self._is_ours():
                self._path.delete(generation)
        except OSError as error:
            print(f"Note: {self._path} could not be removed ({error})", file=sys.stderr)

    def _write(self, generation: int) -> bool:
        # Never the same content twice, or an old one could pass for a write whose answer was lost.
        self._n_writes += 1
        text = json.dumps(self._holder | {"writes": self._n_writes})
        return self._path.upload(io.BytesIO(text.encode()), generation) is not None

    def _keep(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            # The lock is ours until another run takes it, however badly we reach it.
            with suppress(OSError):
                generation = self._path.generation()
                if self._is_ours():
                    self._write(generation)

    def _await_death(self, generation: int) -> int:
        """Wait for a sign of life of the run that holds the lock.

        Returns
        -------
        int
            The generation to replace where there is none: the same, or 0 if the lock was given up.
        """
        holder = self._read()
        other = f"process {holder.get('process', '?')} on {holder.get('host', '?')}"
        print(
            f"Waiting up to {PATIENCE_SECONDS:.0f} s to see if another run is writing to "
            f"{self._what} ({other}, since {holder.get('since', '?')})",
            file=sys.stderr,
        )
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            time.sleep(PATIENCE_SECONDS / 20)
            found = self._path.generation()
            if not found:
                return 0
            if found != generation:
                raise LockedError(
                    f"another run is writing to {self._what} ({other}); wait for its end"
                )
        return generation

    def _read(self) -> dict[str, Any]:
        try:
            holder = json.loads(self._path.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return holder if isinstance(holder, dict) else {}

    def _is_ours(self) -> bool:
        return self._read().get("run") == self._holder["run"]
