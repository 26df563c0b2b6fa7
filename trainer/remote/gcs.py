"""A folder on Cloud Storage. Only this module of the trainer knows Google's client for it."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import google_crc32c
from google.api_core import exceptions
from google.auth.exceptions import GoogleAuthError, TransportError
from google.cloud.storage import Client
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY

from trainer.remote.folder import PATIENCE_SECONDS, GoneError, RemoteError

#: To connect, and from one answered byte to the next.
TIMEOUT_SECONDS = (20.0, 120.0)
#: A transfer of which a part got lost or damaged begins anew.
ATTEMPTS = 4
READ_BYTES = 1 << 20
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_ADVICE: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "log in with: gcloud auth application-default login",
    HTTPStatus.FORBIDDEN: "this account needs the role Storage Object User on the bucket",
    HTTPStatus.NOT_FOUND: "there is no such bucket",
}

T = TypeVar("T")


class GcsFolder:
    """A folder on Cloud Storage; see `RemoteFolder`. A version is an object's generation.

    Parameters
    ----------
    url : str
        ``gs://BUCKET/PATH``.
    patience : float
        Seconds for which a request that fails for a passing reason is repeated.

    Raises
    ------
    RemoteError
        If there are no credentials.
    """

    def __init__(self, url: str, patience: float = PATIENCE_SECONDS) -> None:
        self.repeated = 0
        self._url = url.rstrip("/")
        bucket, _, path = self._url.removeprefix("gs://").partition("/")
        self._prefix = f"{path}/" if path else ""
        retry = partial(DEFAULT_RETRY.with_timeout(patience), on_error=self._count)
        self._options: dict[str, Any] = {"timeout": TIMEOUT_SECONDS, "retry": retry}
        with self._asking():
            # None stands for no project: a bucket's name says enough.
            self._bucket = Client(project=None).bucket(bucket)

    def list_files(self) -> dict[str, int]:
        """Return the generation of every object; see `RemoteFolder`."""
        with self._asking():
            found = self._bucket.client.list_blobs(
                self._bucket,
                prefix=self._prefix,
                fields="items(name,generation),nextPageToken",
                **self._options,
            )
            blobs = {blob.name.removeprefix(self._prefix): blob.generation for blob in found}
        # The console marks a folder by an object whose name ends with a slash.
        return {name: version for name, version in blobs.items() if name and name[-1] != "/"}

    def download(self, name: str, path: Path) -> None:
        """Fetch an object and check its CRC-32C; see `RemoteFolder`."""
        with self._asking(name, may_be_gone=True):
            self._whole(
                lambda: self._blob(name).download_to_filename(
                    str(path), checksum="crc32c", **self._options
                )
            )

    def upload(self, name: str, content: BinaryIO, size: int, version: int | None) -> int:
        """Write an object if the one it replaces is still there; see `RemoteFolder`."""
        checksum = _crc32c(content, size)
        with self._asking(name):
            return self._whole(lambda: self._upload(name, content, size, checksum, version))

    def delete(self, name: str, version: int | None) -> None:
        """Delete an object of this generation; see `RemoteFolder`."""
        # It may have been deleted before, or by a request whose answer was lost.
        with self._asking(name), suppress(exceptions.NotFound):
            self._blob(name).delete(if_generation_match=version, **self._options)

    def _upload(
        self, name: str, content: BinaryIO, size: int, checksum: str, version: int | None
    ) -> int:
        blob = self._blob(name)
        try:
            blob.upload_from_file(
                content,
                rewind=True,
                size=size,
                content_type=mimetypes.guess_type(name)[0],
                # Cloud Storage refuses what arrives with another checksum.
                checksum="crc32c",
                crc32c_checksum_value=checksum,
                if_generation_match=version,
                **self._options,
            )
        except exceptions.PreconditionFailed:
            # By an upload of ours whose answer was lost on the way, and which was repeated?
            blob = self._blob(name)
            # Somebody may have removed what we had read.
            with suppress(exceptions.NotFound):
                blob.reload(**self._options)
            if (blob.size, blob.crc32c) != (size, checksum):
                raise
        return int(blob.generation)

    def _whole(self, transfer: Callable[[], T]) -> T:
        """Make a transfer anew where the client gives up on one that lost or damaged a part."""
        for _ in range(ATTEMPTS - 1):
            try:
                return transfer()
            except (DataCorruption, ValueError) as error:
                self._count(error)
        return transfer()

    def _blob(self, name: str) -> Any:
        return self._bucket.blob(self._prefix + name)

    def _count(self, _: Exception) -> None:
        self.repeated += 1

    @contextmanager
    def _asking(self, name: str = "", *, may_be_gone: bool = False) -> Iterator[None]:
        try:
            yield
        # The client lets errors of many libraries below it through.
        except Exception as error:
            where = f"{self._url}/{name}".rstrip("/")
            raise _explained(where, error, may_be_gone) from error


def _explained(where: str, error: Exception, may_be_gone: bool) -> RemoteError:
    """Return in one line what is wrong; what the client has given up repeating may pass."""
    if isinstance(error, exceptions.NotFound) and may_be_gone:
        return GoneError(f"{where} is not there any more")
    if isinstance(error, exceptions.PreconditionFailed):
        return RemoteError(f"{where} was written by another process meanwhile: let one end first")
    lasting = not isinstance(error, exceptions.RetryError | DataCorruption | ValueError)
    if isinstance(error, TransportError) or isinstance(error.__cause__, TransportError):
        # No token could be fetched, which is not to say that one was refused.
        lasting = False
    cause = (error.cause if isinstance(error, exceptions.RetryError) else None) or error
    status = getattr(cause, "code", None) or getattr(
        getattr(cause, "response", None), "status_code", None
    )
    if isinstance(status, int) and status >= HTTPStatus.BAD_REQUEST:
        advice = _ADVICE.get(status, "the same command goes on when that is over")
        # Not every code has a name, such as 499.
        name = f"{status} {_PHRASES.get(status, '')}".rstrip()
        detail = f"{name}: {advice}"
    elif isinstance(error, GoogleAuthError):
        detail = f"{error} ({_ADVICE[HTTPStatus.UNAUTHORIZED]})"
    else:
        detail = str(cause) or type(cause).__name__
    return RemoteError(f"{where}: {' '.join(detail.split())}", lasting)


def _crc32c(content: BinaryIO, size: int) -> str:
    """Return the CRC-32C of the first bytes of a file, as Cloud Storage writes it."""
    checksum = google_crc32c.Checksum()
    content.seek(0)
    left = size
    while left and (part := content.read(min(left, READ_BYTES))):
        checksum.update(part)
        left -= len(part)
    return base64.b64encode(checksum.digest()).decode()
