"""Buckets and objects in memory, with the generations and preconditions of Cloud Storage."""

from __future__ import annotations

import base64
import hashlib
import itertools
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import google_crc32c

Query = Mapping[str, str]


class StorageError(Exception):
    """A request that Cloud Storage would refuse, with the status it would answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class StoredObject:
    """One generation of an object."""

    bucket: str
    name: str
    content: bytes
    generation: int
    metageneration: int = 1
    resource: Mapping[str, Any] = field(default_factory=dict)

    @property
    def crc32c(self) -> str:
        """Base64, as the API has it."""
        return base64.b64encode(google_crc32c.Checksum(self.content).digest()).decode()

    @property
    def md5(self) -> str:
        """Base64, as the API has it."""
        return base64.b64encode(hashlib.md5(self.content).digest()).decode()

    def describe(self, root: str) -> dict[str, Any]:
        """Return the object's resource in the JSON API."""
        media = f"{root}/download/storage/v1/b/{self.bucket}/o/" + quote(self.name, safe="")
        time = f"2026-01-01T00:00:00.{self.generation % 10**6:06d}Z"
        return {
            "kind": "storage#object",
            "contentType": self.resource.get("contentType", "application/octet-stream"),
            "metadata": dict(self.resource.get("metadata", {})),
            "id": f"{self.bucket}/{self.name}/{self.generation}",
            "bucket": self.bucket,
            "name": self.name,
            "generation": str(self.generation),
            "metageneration": str(self.metageneration),
            "size": str(len(self.content)),
            "crc32c": self.crc32c,
            "md5Hash": self.md5,
            "etag": f"CE{self.generation}",
            "storageClass": "STANDARD",
            "timeCreated": time,
            "updated": time,
            "mediaLink": f"{media}?generation={self.generation}&alt=media",
        }


class ObjectStore:
    """All buckets. A commit looks at its preconditions and takes place under one lock."""

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, StoredObject]] = {}
        self._generations = itertools.count(1_700_000_000_000_001)
        self._lock = threading.Lock()

    def bucket(self, name: str) -> dict[str, StoredObject]:
        """Return a bucket's objects by name."""
        if name not in self.buckets:
            raise StorageError(404, "The specified bucket does not exist.")
        return self.buckets[name]

    def find(self, bucket: str, name: str, query: Query) -> StoredObject:
        """Return an object that a request reads."""
        found = self.bucket(bucket).get(name)
        generation = query.get("generation")
        if found is None or (generation and int(generation) != found.generation):
            raise StorageError(404, f"No such object: {bucket}/{name}")
        check_preconditions(query, found)
        return found

    def commit(
        self, bucket: str, name: str, content: bytes, resource: Mapping[str, Any], query: Query
    ) -> StoredObject:
        """Write an object if the preconditions of the request hold."""
        with self._lock:
            objects = self.bucket(bucket)
            check_preconditions(query, objects.get(name))
            generation = next(self._generations)
            stored = StoredObject(bucket, name, content, generation, 1, dict(resource))
            for key, found in (("crc32c", stored.crc32c), ("md5Hash", stored.md5)):
                if resource.get(key) not in (None, found):
                    raise StorageError(400, f"Provided {key} {resource[key]} is not {found}")
            objects[name] = stored
            return stored

    def update(
        self, bucket: str, name: str, resource: Mapping[str, Any], query: Query
    ) -> StoredObject:
        """Change an object's metadata."""
        with self._lock:
            found = self.find(bucket, name, query)
            merged = {**found.resource, **resource}
            self.buckets[bucket][name] = changed = StoredObject(
                bucket, name, found.content, found.generation, found.metageneration + 1, merged
            )
            return changed

    def delete(self, bucket: str, name: str, query: Query) -> None:
        """Delete an object if the preconditions of the request hold."""
        with self._lock:
            self.find(bucket, name, query)
            del self.buckets[bucket][name]

    def list(self, bucket: str, query: Query) -> tuple[list[StoredObject], list[str], str]:
        """Return (objects, prefixes, token of the next page) of a listing."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        entries: dict[str, StoredObject | None] = {}
        for name, stored in sorted(self.bucket(bucket).items()):
            if not name.startswith(prefix) or name < query.get("startOffset", ""):
                continue
            if query.get("endOffset") and name >= query["endOffset"]:
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                entries[prefix + rest.partition(delimiter)[0] + delimiter] = None
                if query.get("includeTrailingDelimiter") == "true" and name in entries:
                    entries[name] = stored
            else:
                entries[name] = stored
        names = [name for name in sorted(entries) if name > query.get("pageToken", "")]
        page = names[: int(query.get("maxResults", 1000))]
        token = page[-1] if len(page) < len(names) else ""
        found = [(name, entries[name]) for name in page]
        objects = [stored for _, stored in found if stored is not None]
        return objects, [name for name, stored in found if stored is None], token


def check_preconditions(query: Query, current: StoredObject | None) -> None:
    """Refuse a request whose preconditions the object does not fulfil."""
    generation = 0 if current is None else current.generation
    metageneration = 0 if current is None else current.metageneration
    for name, found in (("Generation", generation), ("Metageneration", metageneration)):
        wanted, unwanted = query.get(f"if{name}Match"), query.get(f"if{name}NotMatch")
        failed = wanted is not None and int(wanted) != found
        if failed or (unwanted is not None and int(unwanted) == found):
            message = "At least one of the pre-conditions you specified did not hold."
            raise StorageError(412, message)
