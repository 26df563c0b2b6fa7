"""Cloud Storage on loopback: the JSON API as far as its clients use it, with faults on demand.

google-cloud-storage, Beam's gs:// filesystem and gcsfs run against it unchanged. It keeps what the
emulators from PyPI do not: generation preconditions hold under races, checksums are checked, and a
resumable upload can be asked how far it is.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesParser
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.servers import faults
from tests.servers.faulty_http import FaultyHandler, FaultyServer
from tests.servers.objects import ObjectStore, StorageError, StoredObject, check_preconditions

CHUNK = 256 << 10
Headers = Message


@dataclass
class Answer:
    """What a request is answered with."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, content: Any, status: int = 200, **headers: str) -> Answer:
        """Return an answer of JSON."""
        kind = {"Content-Type": "application/json; charset=UTF-8"}
        return cls(status, json.dumps(content).encode(), kind | headers)

    @classmethod
    def error(cls, status: int, message: str) -> Answer:
        """Return an error as the JSON API words it."""
        reason = {known.value: known.phrase for known in HTTPStatus}.get(status, "")
        error = {"message": message, "domain": "global", "reason": reason}
        return cls.json({"error": {"code": status, "message": message, "errors": [error]}}, status)


@dataclass
class _Upload:
    bucket: str
    name: str
    resource: dict[str, Any]
    query: dict[str, str]
    content: bytearray = field(default_factory=bytearray)
    stored: StoredObject | None = None


class GcsServer:
    """A Cloud Storage server on loopback.

    Attributes
    ----------
    faults : Faults
        ``server.faults.add("POST", "train-00000", faults.LOSE)`` makes one go wrong.
    requests : list of (method, path)
        All that were received, decoded, in order.
    store : ObjectStore
    denied : set of str
        Permissions that the caller lacks, where it asks.
    """

    def __init__(self) -> None:
        self.store = ObjectStore()
        self.faults = faults.Faults()
        self.requests: list[tuple[str, str]] = []
        self.denied: set[str] = set()
        self.uploads: dict[str, _Upload] = {}
        handler = type("Handler", (_Handler,), {"gcs": self})
        self._server = FaultyServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()

    @property
    def url(self) -> str:
        """The endpoint, as ``STORAGE_EMULATOR_HOST`` wants it."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that send the clients of Cloud Storage here."""
        return {"STORAGE_EMULATOR_HOST": self.url, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}

    @property
    def objects(self) -> dict[str, bytes]:
        """The contents of all objects, by gs:// URL."""
        return {
            f"gs://{bucket}/{name}": stored.content
            for bucket, objects in sorted(self.store.buckets.items())
            for name, stored in sorted(objects.items())
        }

    def list(self, url: str) -> dict[str, bytes]:
        """Return the contents of the objects below a gs:// URL, by name relative to it."""
        prefix = url.rstrip("/") + "/"
        found = self.objects.items()
        return {
            name.removeprefix(prefix): content for name, content in found if name.startswith(prefix)
        }

    def read(self, url: str) -> bytes:
        """Return the content of an object; KeyError if there is none."""
        bucket, _, name = url.removeprefix("gs://").partition("/")
        return self.store.buckets[bucket][name].content

    def put(self, url: str, content: bytes) -> None:
        """Write an object, past all faults."""
        bucket, _, name = url.removeprefix("gs://").partition("/")
        self.store.commit(bucket, name, content, {}, {})

    def delete(self, url: str) -> None:
        """Delete an object, past all faults."""
        bucket, _, name = url.removeprefix("gs://").partition("/")
        self.store.delete(bucket, name, {})

    def create_bucket(self, name: str) -> None:
        """Make an empty bucket."""
        self.store.buckets[name] = {}

    def reset(self) -> None:
        """Forget all buckets, faults and requests."""
        self.faults.clear()
        self.store.buckets.clear()
        self.uploads.clear()
        self.requests.clear()
        self.denied.clear()

    def close(self) -> None:
        """Stop."""
        self.faults.clear()
        self._server.shutdown()
        self._server.server_close()


class _Handler(FaultyHandler):
    gcs: GcsServer

    def _respond(self) -> None:
        method = self.command
        body = self._read_body()
        path = unquote(self.path)
        self.gcs.requests.append((method, path))
        fault = self.gcs.faults.find(method, path)
        action = fault.action if fault else ""
        if action == faults.RESET:
            self.reset()
            return
        if fault is not None and action == faults.HOLD:
            fault.reached.set()
            fault.release.wait()
        if fault is not None and action == faults.STATUS:
            answer = Answer.error(fault.status, "injected")
        else:
            if action == faults.PERSIST_HALF:
                body = body[: len(body) // 2 // CHUNK * CHUNK]
            answer = self._answer(method, self.path, self.headers, body)
        if action == faults.LOSE:
            self.reset()
            return
        if action == faults.CORRUPT and answer.body:
            flipped = bytearray(answer.body)
            flipped[len(flipped) // 2] ^= 1
            answer.body = bytes(flipped)
        self._send(answer, truncate=action == faults.TRUNCATE)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _respond  # noqa: N815 (http.server's names)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, answer: Answer, truncate: bool) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            half = len(answer.body) // 2
            self.wfile.write(answer.body[:half] if truncate else answer.body)
        if truncate:
            self.close_connection = True

    def _answer(self, method: str, url: str, headers: Headers, body: bytes) -> Answer:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True)
        query = dict(pairs)
        if "permissions" in query:
            # The only one that is repeated.
            query["permissions"] = ",".join(v for name, v in pairs if name == "permissions")
        if parts.path == "/batch/storage/v1":
            return self._batch(headers, body)
        for pattern, verbs in _ROUTES:
            match = re.fullmatch(pattern, parts.path)
            if match and method in verbs:
                names = [unquote(name) for name in match.groups()]
                try:
                    return verbs[method](_Request(self.gcs, query, headers, body), *names)
                except StorageError as error:
                    return Answer.error(error.status, str(error))
        return Answer.error(501, f"{method} {url} is not served here")

    def _batch(self, headers: Headers, body: bytes) -> Answer:
        prefix = f"Content-Type: {headers['Content-Type']}\n\n".encode()
        message = BytesParser().parsebytes(prefix + body.lstrip())
        parts = []
        for index, part in enumerate(message.get_payload(), start=1):
            assert not isinstance(part, str)
            text = part.get_payload()
            assert isinstance(text, str)
            line, _, rest = text.lstrip().partition("\n")
            method, url = line.split()[:2]
            inner = BytesParser().parsebytes(rest.encode())
            content = inner.get_payload(decode=True) or b""
            assert isinstance(content, bytes)
            found = self._answer(method, url, inner, content)
            parts.append(
                f"--batch_loopback\r\nContent-Type: application/http\r\n"
                f"Content-ID: <response-{index}>\r\n\r\n"
                f"HTTP/1.1 {found.status} {HTTPStatus(found.status).phrase}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(found.body)}\r\n\r\n"
                f"{found.body.decode()}\r\n"
            )
        text = "".join(parts) + "--batch_loopback--"
        return Answer(
            200, text.encode(), {"Content-Type": "multipart/mixed; boundary=batch_loopback"}
        )


@dataclass(frozen=True)
class _Request:
    gcs: GcsServer
    query: dict[str, str]
    headers: Headers
    body: bytes

    @property
    def resource(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.body or b"{}")
        return content

    def describe(self, stored: StoredObject) -> Answer:
        return Answer.json(stored.describe(self.gcs.url))


def _bucket_resource(name: str) -> dict[str, Any]:
    return {
        "kind": "storage#bucket",
        "id": name,
        "name": name,
        "projectNumber": "1234567890",
        "location": "EUROPE-WEST4",
        "locationType": "region",
        "storageClass": "STANDARD",
        "timeCreated": "2026-01-01T00:00:00Z",
        "metageneration": "1",
        "iamConfiguration": {"uniformBucketLevelAccess": {"enabled": True}},
        "softDeletePolicy": {"retentionDurationSeconds": "0"},
    }


def _list_buckets(request: _Request) -> Answer:
    names = sorted(request.gcs.store.buckets)
    return Answer.json({"kind": "storage#buckets", "items": [_bucket_resource(n) for n in names]})


def _create_bucket(request: _Request) -> Answer:
    name = request.resource["name"]
    if name in request.gcs.store.buckets:
        raise StorageError(409, "The requested bucket name is not available.")
    request.gcs.create_bucket(name)
    return Answer.json(_bucket_resource(name))


def _get_bucket(request: _Request, bucket: str) -> Answer:
    request.gcs.store.bucket(bucket)
    return Answer.json(_bucket_resource(bucket))


def _delete_bucket(request: _Request, bucket: str) -> Answer:
    if request.gcs.store.bucket(bucket):
        raise StorageError(409, "The bucket you tried to delete is not empty.")
    del request.gcs.store.buckets[bucket]
    return Answer(204)


def _test_permissions(request: _Request, bucket: str) -> Answer:
    request.gcs.store.bucket(bucket)
    asked = request.query.get("permissions", "").split(",")
    return Answer.json({"permissions": [name for name in asked if name not in request.gcs.denied]})


def _list_objects(request: _Request, bucket: str) -> Answer:
    objects, prefixes, token = request.gcs.store.list(bucket, request.query)
    items = [stored.describe(request.gcs.url) for stored in objects]
    page = {"kind": "storage#objects", "items": items, "prefixes": prefixes}
    return Answer.json(page | ({"nextPageToken": token} if token else {}))


def _get_object(request: _Request, bucket: str, name: str) -> Answer:
    if request.query.get("alt") == "media":
        return _download(request, bucket, name)
    return request.describe(request.gcs.store.find(bucket, name, request.query))


def _download(request: _Request, bucket: str, name: str) -> Answer:
    stored = request.gcs.store.find(bucket, name, request.query)
    size = len(stored.content)
    headers = {
        "Content-Type": "application/octet-stream",
        "ETag": f"CE{stored.generation}",
        "X-Goog-Generation": str(stored.generation),
        "X-Goog-Metageneration": str(stored.metageneration),
        "X-Goog-Hash": f"crc32c={stored.crc32c},md5={stored.md5}",
        "X-Goog-Stored-Content-Length": str(size),
        "Accept-Ranges": "bytes",
    }
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range") or "")
    if wanted is None:
        return Answer(200, stored.content, headers)
    first, last = wanted.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= size:
        raise StorageError(416, "The requested range cannot be satisfied.")
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return Answer(206, stored.content[start:stop], headers)


def _update_object(request: _Request, bucket: str, name: str) -> Answer:
    stored = request.gcs.store.update(bucket, name, request.resource, request.query)
    return request.describe(stored)


def _delete_object(request: _Request, bucket: str, name: str) -> Answer:
    request.gcs.store.delete(bucket, name, request.query)
    return Answer(204)


def _upload(request: _Request, bucket: str) -> Answer:
    kind = request.query.get("uploadType")
    store = request.gcs.store
    if kind == "resumable" and "upload_id" in request.query:
        return _continue_upload(request, bucket)
    if kind == "resumable":
        resource = request.resource
        name = request.query.get("name") or resource["name"]
        check_preconditions(request.query, store.bucket(bucket).get(name))
        upload_id = uuid.uuid4().hex
        request.gcs.uploads[upload_id] = _Upload(bucket, name, resource, request.query)
        root = f"{request.gcs.url}/upload/storage/v1/b/{bucket}/o"
        location = f"{root}?uploadType=resumable&upload_id={upload_id}"
        return Answer(200, b"", {"Location": location, "X-GUploader-UploadID": upload_id})
    if kind == "multipart":
        resource, content = _split_related(request.headers["Content-Type"], request.body)
    else:
        resource, content = {}, request.body
    name = request.query.get("name") or resource["name"]
    return request.describe(store.commit(bucket, name, content, resource, request.query))


def _split_related(content_type: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    match = re.search(r"boundary=['\"]?([^'\";]+)", content_type)
    assert match is not None
    boundary = b"--" + match[1].encode()
    newline = b"\r\n" if b"\r\n" in body[: len(boundary) + 2] else b"\n"
    first = body.index(boundary) + len(boundary)
    blank = newline + newline
    second = body.index(newline + boundary, first)
    resource = body[body.index(blank, first) + len(blank) : second]
    start = body.index(blank, second) + len(blank)
    return json.loads(resource), body[start : body.rindex(newline + boundary + b"--")]


def _continue_upload(request: _Request, bucket: str) -> Answer:
    upload = request.gcs.uploads.get(request.query["upload_id"])
    if upload is None or upload.bucket != bucket:
        raise StorageError(404, "No such upload.")
    if upload.stored is not None:
        return request.describe(upload.stored)
    span = re.fullmatch(
        r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", request.headers.get("Content-Range") or "bytes 0-0/*"
    )
    if span is None:
        raise StorageError(400, "Content-Range is malformed.")
    first, _, total = span.groups()
    if "Content-Range" not in request.headers:
        first, total = "0", str(len(request.body))
    if first is not None:
        if int(first) > len(upload.content):
            raise StorageError(503, "The chunk leaves a gap; ask for the status of the upload.")
        upload.content[int(first) :] = request.body
    if total == "*" or len(upload.content) < int(total):
        received = len(upload.content)
        return Answer(308, b"", {"Range": f"bytes=0-{received - 1}"} if received else {})
    hashes = (part.strip() for part in (request.headers.get("X-Goog-Hash") or "").split(","))
    names = {"crc32c": "crc32c", "md5": "md5Hash"}
    given = dict(entry.split("=", 1) for entry in hashes if entry)
    resource = upload.resource | {names[name]: value for name, value in given.items()}
    content = bytes(upload.content)
    upload.stored = request.gcs.store.commit(bucket, upload.name, content, resource, upload.query)
    return request.describe(upload.stored)


def _cancel_upload(request: _Request, bucket: str) -> Answer:
    request.gcs.uploads.pop(request.query.get("upload_id", ""), None)
    return Answer(204)


def _compose(request: _Request, bucket: str, name: str) -> Answer:
    store, content = request.gcs.store, b""
    for part in request.resource["sourceObjects"]:
        expected = part.get("objectPreconditions", {}).get("ifGenerationMatch")
        query = {} if expected is None else {"ifGenerationMatch": str(expected)}
        content += store.find(bucket, part["name"], query).content
    resource = request.resource.get("destination", {})
    return request.describe(store.commit(bucket, name, content, resource, request.query))


def _source_query(query: Mapping[str, str]) -> dict[str, str]:
    prefix, found = "ifSource", {}
    for name, value in query.items():
        if name.startswith(prefix):
            found[f"if{name.removeprefix(prefix)}"] = value
    if "sourceGeneration" in query:
        found["generation"] = query["sourceGeneration"]
    return found


def _copy(request: _Request, bucket: str, name: str, to_bucket: str, to_name: str) -> Answer:
    store = request.gcs.store
    source = store.find(bucket, name, _source_query(request.query))
    resource = dict(source.resource) | request.resource
    stored = store.commit(to_bucket, to_name, source.content, resource, request.query)
    return request.describe(stored)


def _rewrite(request: _Request, bucket: str, name: str, to_bucket: str, to_name: str) -> Answer:
    copied = _copy(request, bucket, name, to_bucket, to_name)
    resource = json.loads(copied.body)
    size = resource["size"]
    return Answer.json(
        {
            "kind": "storage#rewriteResponse",
            "done": True,
            "totalBytesRewritten": size,
            "objectSize": size,
            "resource": resource,
        }
    )


_O = "/storage/v1/b/([^/]+)/o"
_ROUTES: list[tuple[str, dict[str, Callable[..., Answer]]]] = [
    ("/storage/v1/b/?", {"GET": _list_buckets, "POST": _create_bucket}),
    ("/storage/v1/b/([^/]+)/?", {"GET": _get_bucket, "DELETE": _delete_bucket}),
    ("/storage/v1/b/([^/]+)/iam/testPermissions", {"GET": _test_permissions}),
    (f"{_O}/?", {"GET": _list_objects}),
    (f"{_O}/([^/]+)/compose", {"POST": _compose}),
    (f"{_O}/([^/]+)/copyTo/b/([^/]+)/o/([^/]+)", {"POST": _copy}),
    (f"{_O}/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)", {"POST": _rewrite}),
    (
        f"{_O}/([^/]+)",
        {
            "GET": _get_object,
            "PATCH": _update_object,
            "PUT": _update_object,
            "DELETE": _delete_object,
        },
    ),
    (f"/download{_O}/([^/]+)", {"GET": _download}),
    (
        f"/(?:resumable/)?upload{_O}",
        {"POST": _upload, "PUT": _continue_upload, "DELETE": _cancel_upload},
    ),
]
