"""One shard reread: its digests, its archive, and a report of each sample.

This module is loaded by every process of ``verify``, so it imports little.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from beam_pipeline.shards import MEMBERS, tar_end
from beam_pipeline.storage.locations import locate
from beam_pipeline.verify.block_report import BlockReport, Problem, SampleRules, inspect_sample

READ_BYTES = 1 << 16


@dataclass(frozen=True)
class ShardReport:
    """A shard as it was found.

    Attributes
    ----------
    path : str
    bytes : int
    sha256, md5 : str
    keys : tuple of str
        Of all samples, in order, whether they can be decoded or not.
    blocks : tuple of BlockReport
        The samples that can be decoded, in order.
    problems : tuple of Problem
    """

    path: str
    bytes: int
    sha256: str
    md5: str
    keys: tuple[str, ...]
    blocks: tuple[BlockReport, ...]
    problems: tuple[Problem, ...]

    @property
    def split(self) -> str:
        """The split that the shard belongs to by its path."""
        return self.path.partition("/")[0]


class _HashingReader:
    """Digests all that is read, so that a shard is read once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.md5 = hashlib.md5(usedforsecurity=False)
        self.position = 0

    def read(self, size: int) -> bytes:
        content = self._file.read(size)
        self.sha256.update(content)
        self.md5.update(content)
        self.position += len(content)
        return content

    def read_rest(self) -> None:
        while self.read(READ_BYTES):
            pass


def reread_shard(folder: str, path: str, rules: SampleRules) -> ShardReport | Problem:
    """Return the report of a shard, or the problem that it cannot be read."""
    try:
        return inspect_shard(folder, path, rules)
    except OSError as error:
        return Problem("unreadable", path, str(error))


def inspect_shard(folder: str, path: str, rules: SampleRules) -> ShardReport:
    """Reread one shard; one sample is held at a time.

    Parameters
    ----------
    folder : str
        The dataset.
    path : str
        The shard, relative to it.
    rules : SampleRules

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    keys: list[str] = []
    blocks: list[BlockReport] = []
    problems: list[Problem] = []
    with (locate(folder) / path).open("rb") as file:
        reader = _HashingReader(file)
        try:
            for key, members in _read_samples(reader, path, rules, problems):
                keys.append(key)
                block, found = inspect_sample(key, members, rules)
                blocks += [] if block is None else [block]
                problems += (Problem(p.check, f"{path}: {p.where}", p.detail) for p in found)
        # A damaged header may make tarfile raise more than its own errors.
        except (tarfile.TarError, ValueError, EOFError) as error:
            problems.append(Problem("archive", path, f"{error}, {_after(keys)}"))
        reader.read_rest()
    return ShardReport(
        path,
        reader.position,
        reader.sha256.hexdigest(),
        reader.md5.hexdigest(),
        tuple(keys),
        tuple(blocks),
        tuple(problems),
    )


def _after(keys: list[str]) -> str:
    return f"after sample {keys[-1]}" if keys else "before the first sample ends"


def _read_samples(
    reader: _HashingReader, path: str, rules: SampleRules, problems: list[Problem]
) -> Iterator[tuple[str, list[tuple[str, bytes | None]]]]:
    """Yield (key, [(member, content)]) of each run of members with one key."""
    key, members = "", list[tuple[str, bytes | None]]()
    # tarfile only asks for `read`, but is annotated to want a whole file.
    stream: Any = reader
    with tarfile.open(fileobj=stream, mode="r|", bufsize=READ_BYTES) as tar:
        for info in tar:
            found, _, member = info.name.partition(".")
            if members and (found != key or len(members) == len(MEMBERS)):
                yield key, members
                members = []
            key = found
            problems += _check_tar_metadata(info, path)
            members.append((member, _content(tar, info, rules.max_bytes(member))))
        if members:
            yield key, members
        end = tar.offset + len(tar_end(tar.offset))
    reader.read_rest()
    # tarfile takes a header it cannot read, but the first, for the end of the archive.
    if reader.position != end:
        detail = (
            f"no readable tar header at byte {tar.offset:,} after sample {key}: the archive would "
            f"end at {end:,} of {reader.position:,} bytes"
        )
        problems.append(Problem("archive", path, detail))


def _check_tar_metadata(info: tarfile.TarInfo, path: str) -> Iterator[Problem]:
    fixed = tarfile.TarInfo(info.name)
    fixed.size, fixed.mtime, fixed.mode, fixed.chksum = info.size, 0, 0o644, info.chksum
    found, expected = info.get_info(), fixed.get_info()
    if found != expected or info.pax_headers:
        odd = {name: found[name] for name in found if found[name] != expected.get(name)}
        detail = f"the metadata that every member shares differs: {odd or info.pax_headers}"
        yield Problem("tar metadata", f"{path}: {info.name}", detail)


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo, max_bytes: int) -> bytes | None:
    """Return a member's bytes; None if it is no plain file or larger than it may be."""
    if info.type != tarfile.REGTYPE or info.size > max_bytes:
        return None
    file = tar.extractfile(info)
    content = b"" if file is None else file.read(info.size)
    if len(content) != info.size:
        raise tarfile.ReadError(f"{info.name} is cut off")
    return content
