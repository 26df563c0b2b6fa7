"""Objects in Cloud Storage, with the methods of `pathlib` that the pipeline needs.

What the client library leaves to its user is done here, and only here:

- A conditional write whose answer is lost is tried again by the client and then refused, although
  it was done: the object is compared with what was to be written.
- A chunk of an upload that was kept by half ends in a ValueError: the object is sent again.
- A range of bytes comes without a checksum: whoever reads one checks what it got.
- A client must not be shared by forked processes: each makes its own when it first needs one.

What goes wrong is raised as an OSError, as for a file on a disk.
"""

from __future__ import annotations

import errno
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from beam_pipeline.storage.gcs_client import client, crc32c, in_parallel, os_errors, retry
from beam_pipeline.storage.range_file import RangeFile

SCHEME = "gs://"
#: Uploads of a whole object, where the client's own retries end in an error or a wrong checksum.
ATTEMPTS = 4
#: What a reader that goes through a file fetches at once.
READ_BYTES = 8 << 20


@dataclass(frozen=True)
class ObjectState:
    """What is known of an object without reading it.

    Attributes
    ----------
    size : int
    generation : int
        Another number for every write.
    crc32c : str
        Base64, as the service has it.
    """

    size: int
    generation: int
    crc32c: str

    def same_content(self, other: ObjectState) -> bool:
        """Say if two objects hold the same bytes."""
        return (self.size, self.crc32c) == (other.size, other.crc32c)


@dataclass(frozen=True, order=True)
class CloudPath:
    """An object, or the prefix that stands for a folder.

    Attributes
    ----------
    bucket : str
    key : str
        Name in the bucket, without a slash at its ends; empty for the bucket as a folder.
    """

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}".rstrip("/")

    def __truediv__(self, name: str) -> CloudPath:
        return CloudPath(self.bucket, f"{self.key}/{name}".strip("/"))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.key.rpartition("/")[2] or self.bucket

    def _blob(self) -> Any:
        return client().bucket(self.bucket).blob(self.key)

    # What is there

    def state(self) -> ObjectState | None:
        """Return what the service knows of this object; None if there is none."""
        if not self.key:
            return None
        with os_errors(self):
            blob = client().bucket(self.bucket).get_blob(self.key, retry=retry())
        return None if blob is None else _state(blob)

    def generation(self) -> int:
        """Return the number of the object's last write; 0 if there is no object."""
        state = self.state()
        return 0 if state is None else state.generation

    def states(self) -> dict[str, ObjectState]:
        """Return every object below, by name relative to this, in order of the names."""
        prefix = f"{self.key}/" if self.key else ""
        fields = "items(name,size,generation,crc32c),nextPageToken"
        with os_errors(self):
            blobs = client().list_blobs(self.bucket, prefix=prefix, fields=fields, retry=retry())
            # The console marks folders by empty objects.
            found = [(blob.name, _state(blob)) for blob in blobs if not blob.name.endswith("/")]
        return {name.removeprefix(prefix): state for name, state in found}

    def file_sizes(self) -> dict[str, int]:
        """Return the size of every object below, by name relative to this."""
        return {name: state.size for name, state in self.states().items()}

    def exists(self) -> bool:
        """Say if there is such an object."""
        return self.state() is not None

    def is_file(self) -> bool:
        """Say if there is such an object."""
        return self.exists()

    def is_dir(self) -> bool:
        """Say if there is an object below."""
        return next(self.iterdir(), None) is not None

    def iterdir(self) -> Iterator[CloudPath]:
        """Yield what lies directly below, objects and folders, in order."""
        prefix = f"{self.key}/" if self.key else ""
        with os_errors(self):
            blobs = client().list_blobs(self.bucket, prefix=prefix, delimiter="/", retry=retry())
            names = {blob.name for blob in blobs} - {prefix}
            names |= {folder.rstrip("/") for folder in blobs.prefixes}
        return (CloudPath(self.bucket, name) for name in sorted(names))

    # Reading

    def open(self, mode: Literal["rb"]) -> io.BufferedReader:
        """Open the object for reading it through, in large pieces.

        Raises
        ------
        FileNotFoundError
            If there is no such object.
        """
        state = self.state()
        if state is None:
            raise FileNotFoundError(errno.ENOENT, "No such object", str(self))
        return io.BufferedReader(self.open_generation(state), READ_BYTES)

    def open_generation(self, state: ObjectState) -> io.RawIOBase:
        """Open the object for reading what is asked for, as long as it is the one of `state`."""
        return RangeFile(
            lambda start, stop: self.read_range(start, stop, state.generation),
            state.size,
            str(self),
        )

    def read_bytes(self) -> bytes:
        """Return the object's content, checked against its checksum."""
        from google.cloud.storage.exceptions import DataCorruption

        def download() -> bytes:
            return self._blob().download_as_bytes(retry=retry())

        for _ in range(ATTEMPTS - 1):
            with os_errors(self), suppress(DataCorruption):
                return download()
        with os_errors(self):
            return download()

    def read_range(self, start: int, stop: int, generation: int | None = None) -> bytes:
        """Return bytes `start` to `stop`, fewer at the end of the object; nothing checks them."""
        with os_errors(self):
            content: bytes = self._blob().download_as_bytes(
                start=start,
                end=stop - 1,
                if_generation_match=generation,
                checksum=None,
                retry=retry(),
            )
        return content

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the object's content as text."""
        return self.read_bytes().decode(encoding)

    # Writing

    def upload(self, file: BinaryIO, if_generation: int | None = None) -> int | None:
        """Write the object from a file, whole or not at all; the service checks its checksum.

        Parameters
        ----------
        file : binary file
            Read from its beginning, maybe more than once.
        if_generation : int, optional
            Only where this generation is there now; 0 stands for no object.

        Returns
        -------
        int or None
            The new generation, or that of an object with the same bytes; None where the
            precondition failed.
        """
        from google.api_core.exceptions import PreconditionFailed
        from google.cloud.storage.exceptions import DataCorruption

        size = file.seek(0, os.SEEK_END)
        for attempt in range(ATTEMPTS):
            blob = self._blob()
            with os_errors(self):
                try:
                    blob.upload_from_file(
                        file,
                        rewind=True,
                        size=size,
                        if_generation_match=if_generation,
                        checksum="crc32c",
                        retry=retry(),
                    )
                    return int(blob.generation)
                except PreconditionFailed:
                    break
                except (ValueError, DataCorruption):
                    if attempt == ATTEMPTS - 1:
                        raise
        found = self.state()
        if found is None or not found.same_content(ObjectState(size, 0, crc32c(file))):
            return None
        return found.generation

    def write_bytes(self, content: bytes) -> int:
        """Write the object in place of what was there."""
        self.upload(io.BytesIO(content))
        return len(content)

    def write_text(self, text: str, encoding: str = "utf-8") -> int:
        """Write text in place of what was there."""
        return self.write_bytes(text.encode(encoding))

    def touch(self) -> None:
        """Write an empty object."""
        self.write_bytes(b"")

    @contextmanager
    def whole_file(self) -> Iterator[BinaryIO]:
        """Write an object that appears when the block ends well.

        The content goes to a temporary file first: an upload that fails is sent again.

        Raises
        ------
        FileExistsError
            If an object with other bytes is there already.
        """
        with tempfile.TemporaryFile() as file:
            yield file
            if self.upload(file, if_generation=0) is None:
                raise FileExistsError(errno.EEXIST, "An object with other bytes exists", str(self))

    def copy_to(self, target: CloudPath, state: ObjectState) -> None:
        """Copy the object inside the service, to where none is.

        Raises
        ------
        FileExistsError
            If another object is there.
        FileNotFoundError
            If this object is gone, or no longer the one of `state`.
        """
        from google.api_core.exceptions import PreconditionFailed

        blob, token = target._blob(), None
        source = self._blob()
        while True:
            with os_errors(self):
                try:
                    token, _, _ = blob.rewrite(
                        source,
                        token=token,
                        if_generation_match=0,
                        if_source_generation_match=state.generation,
                        retry=retry(),
                    )
                except PreconditionFailed:
                    break
            if token is None:
                break
        found = target.state()
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "The object was replaced", str(self))
        if not found.same_content(state):
            raise FileExistsError(errno.EEXIST, "Another object exists", str(target))

    # Removing

    def delete(self, generation: int | None = None) -> bool:
        """Delete the object if it is of this generation; say if it is gone."""
        from google.api_core.exceptions import NotFound, PreconditionFailed

        with os_errors(self):
            try:
                self._blob().delete(if_generation_match=generation, retry=retry())
            except NotFound:
                return True
            except PreconditionFailed:
                return False
        return True

    def remove_tree(self) -> None:
        """Delete every object below."""
        in_parallel(lambda name: (self / name).delete(), self.states())

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a prefix needs no object of its own."""


def _state(blob: Any) -> ObjectState:
    return ObjectState(int(blob.size), int(blob.generation), blob.crc32c)
