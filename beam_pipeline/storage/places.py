"""Files of the pipeline, on a disk or in Cloud Storage, for code that need not know which.

A place is a `pathlib.Path` or a `CloudPath`, which has those of its methods that are needed here;
`locate` makes the one or the other of what a user typed. On a disk the functions below make the
system calls that they would make if there were no Cloud Storage.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Literal, Protocol, Self


class CloudPlace(Protocol):
    """What the pipeline asks of an object or a prefix in Cloud Storage; as in `pathlib`."""

    @property
    def name(self) -> str:
        """The last part of the path."""

    def __truediv__(self, name: str) -> Self: ...

    def exists(self) -> bool:
        """Say if there is such an object."""

    def is_file(self) -> bool:
        """Say if there is such an object."""

    def is_dir(self) -> bool:
        """Say if there is an object below."""

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a prefix needs no object of its own."""

    def iterdir(self) -> Iterator[Self]:
        """Yield what lies directly below, in order."""

    def open(self, mode: Literal["rb"]) -> BufferedReader:
        """Open an object for reading."""

    def read_bytes(self) -> bytes:
        """Return an object's content."""

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return an object's content as text."""

    def write_bytes(self, content: bytes) -> int:
        """Write an object, whole or not at all, in place of what was there."""

    def write_text(self, text: str, encoding: str = "utf-8") -> int:
        """Write text, whole or not at all, in place of what was there."""

    def touch(self) -> None:
        """Write an empty object."""

    def whole_file(self) -> AbstractContextManager[BinaryIO]:
        """Write an object that appears when the block ends well."""

    def file_sizes(self) -> dict[str, int]:
        """Return the size of every object below, by name relative to this."""

    def remove_tree(self) -> None:
        """Delete every object below."""


AnyPath = Path | CloudPlace


@contextmanager
def whole_file(target: AnyPath) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name, whole, when the block ends well.

    A second attempt may overlap: each writes on its own, and on a disk the last one stays. In
    Cloud Storage the first one stays, and one with other bytes is an error.

    Parameters
    ----------
    target : path
        Its folder is not created: a worker that outlives its run must not bring back a folder that
        the next run has removed.
    """
    if not isinstance(target, Path):
        with target.whole_file() as file:
            yield file
        return
    # A name of its own keeps apart two attempts that overlap.
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
    with partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)


def write_atomically(path: AnyPath, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    if not isinstance(path, Path):
        path.write_text(text)
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def file_sizes(folder: AnyPath) -> dict[str, int]:
    """Return the bytes of every file below a folder, by path relative to it; hidden ones left out.

    Those are a run that did not end, or a desktop's notes, and no part of a dataset.
    """
    if not isinstance(folder, Path):
        return {
            name: size
            for name, size in folder.file_sizes().items()
            if not any(part.startswith(".") for part in name.split("/"))
        }
    sizes: dict[str, int] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            below = file_sizes(path)
            sizes |= {f"{path.name}/{name}": size for name, size in below.items()}
        elif path.is_file():
            sizes[path.name] = path.stat().st_size
    return sizes


def remove_tree(folder: AnyPath) -> None:
    """Remove as much of a folder as can be removed; it need not be there."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        with suppress(OSError):
            folder.remove_tree()
