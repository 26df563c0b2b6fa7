"""Where the Parquet files of a table lie: on this machine or on gs://."""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from beam_pipeline.sources import SourceError
from beam_pipeline.storage.cloud_path import CloudPath, ObjectState
from beam_pipeline.storage.locations import locate

SUFFIX = ".parquet"
#: With a buffer, Parquet pages are streamed; without, a whole column chunk is held in memory.
READ_BUFFER_BYTES = 1 << 20
#: From gs://, each buffer is a request.
CLOUD_BUFFER_BYTES = 8 << 20


@dataclass(frozen=True)
class TableFile:
    """One file of a table.

    Attributes
    ----------
    path : str
        A path on this machine, or a gs:// URL.
    state : ObjectState or None
        Of an object in Cloud Storage, which must stay the same while it is read.
    """

    path: str
    state: ObjectState | None = None

    def open(self, stream: bool = False) -> pq.ParquetFile:
        """Open the file for reading; with `stream`, a few pages are held at a time.

        Raises
        ------
        OSError, pyarrow.ArrowInvalid
            If it is no Parquet file, or an object that is not the one of `state` any more.
        """
        if self.state is None:
            options = {"buffer_size": READ_BUFFER_BYTES, "pre_buffer": False} if stream else {}
            return pq.ParquetFile(self.path, **options)
        place = locate(self.path)
        assert isinstance(place, CloudPath)
        options = {"buffer_size": CLOUD_BUFFER_BYTES, "pre_buffer": False} if stream else {}
        # Ranges come without a checksum; a page has one if its writer has put it there.
        return pq.ParquetFile(
            place.open_generation(self.state), page_checksum_verification=True, **options
        )

    def identity(self) -> list[Any]:
        """Return what changes when the file does: of an object the generation, else the time."""
        if self.state is not None:
            return [self.path, self.state.size, self.state.generation]
        path = Path(self.path).resolve()
        stat = path.stat()
        return [str(path), stat.st_size, stat.st_mtime_ns]


def find_files(uri: str) -> list[TableFile]:
    """Return the files that a path, a folder or a glob names, in order of their names.

    Raises
    ------
    SourceError
        If there are none.
    """
    place = locate(uri)
    if isinstance(place, CloudPath):
        found, missing = _find_objects(place)
    else:
        found, missing = _find_local(uri)
    if not found:
        raise SourceError(f"{uri}: {missing}")
    return found


def _is_data(parts: Sequence[str]) -> bool:
    # Other engines write hidden and underscore files beside the data.
    return not any(part[0] in "._" for part in parts)


def _find_local(uri: str) -> tuple[list[TableFile], str]:
    path = Path(uri)
    if path.is_dir():
        names = [
            str(file)
            for file in path.rglob(f"*{SUFFIX}")
            # They write tables as folders that are called *.parquet themselves, too.
            if file.is_file() and _is_data(file.relative_to(path).parts)
        ]
        missing = "the folder has no *.parquet file"
    elif glob.has_magic(uri) and not path.is_file():
        found = glob.iglob(uri, recursive=True)  # noqa: PTH207 (takes absolute patterns)
        names = [name for name in found if Path(name).is_file()]
        missing = "no file matches"
    else:
        names = [uri] if path.is_file() else []
        missing = "no such file or folder"
    return [TableFile(name) for name in sorted(names)], missing


def _find_objects(place: CloudPath) -> tuple[list[TableFile], str]:
    state = place.state() if place.key else None
    if state is not None:
        return [TableFile(str(place), state)], ""
    parts = place.key.split("/")
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    folder = CloudPath(place.bucket, "/".join(parts[:fixed]))
    states = folder.states()
    below = {name: name.split("/") for name in states}
    if fixed < len(parts):
        names = [name for name in below if matches(below[name], parts[fixed:])]
        missing = "no object matches"
    else:
        names = [name for name in below if name.endswith(SUFFIX) and _is_data(below[name])]
        missing = "the folder has no *.parquet object" if below else "no such object or folder"
    return [TableFile(str(folder / name), states[name]) for name in sorted(names)], missing


def matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Say if a path matches a pattern, both part by part, as `glob.glob` has it.

    ``**`` stands for any number of parts; only a pattern with a leading dot matches one.
    """
    if not pattern:
        return not parts
    head, *rest = pattern
    if head == "**":
        skips = bool(parts) and not parts[0].startswith(".") and matches(parts[1:], pattern)
        return matches(parts, rest) or skips
    if not parts or (parts[0].startswith(".") and not head.startswith(".")):
        return False
    return fnmatch.fnmatchcase(parts[0], head) and matches(parts[1:], rest)
