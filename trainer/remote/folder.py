"""What a folder behind a URL can do, whatever store it is in."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Protocol

from trainer.errors import TrainerError

#: Seconds for which a request is made again and again before it counts as failed.
PATIENCE_SECONDS = 300.0


class RemoteError(TrainerError):
    """A remote folder cannot be read or written.

    Parameters
    ----------
    message : str
    lasting : bool
        Whether it would fail again in the same way.
    """

    def __init__(self, message: str, lasting: bool = True) -> None:
        super().__init__(message)
        self.lasting = lasting


class GoneError(RemoteError):
    """A file that was there is not there any more."""


class RemoteFolder(Protocol):
    """Files by their name relative to the folder, each with a version that every write changes.

    All methods raise `RemoteError`.
    """

    #: Requests that failed and were made again.
    repeated: int

    def list_files(self) -> dict[str, int]:
        """Return the version of every file."""

    def download(self, name: str, path: Path) -> None:
        """Write a file's content to a path; `GoneError` if there is none."""

    def upload(self, name: str, content: BinaryIO, size: int, version: int | None) -> int:
        """Write a file in one piece, and return its new version.

        Parameters
        ----------
        name : str
        content : file
        size : int
            Bytes to take from the beginning of the content.
        version : int or None
            That of the file it replaces, 0 if there is none: what anyone else has written since
            is not overwritten. None overwrites whatever is there.
        """

    def delete(self, name: str, version: int | None) -> None:
        """Remove a file of this version, or of any; it may be gone already."""
