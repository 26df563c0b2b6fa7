"""Which trials form a sample, and which shard a sample stands in: functions of the key alone."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from urllib.parse import quote

BLOCK_DIGITS = 6


def session_key(session: str) -> str:
    """Percent-encode a session so that it has no dot, slash, space or non-ASCII character.

    WebDataset cuts a member's name at its first dot, and a slash would make a folder.
    """
    return quote(session, safe="").replace(".", "%2E")


def block_key(session: str, block: int) -> str:
    """Return the WebDataset key of a block: encoded session, ``-``, zero-padded number."""
    return f"{session_key(session)}-{block:0{BLOCK_DIGITS}d}"


def key_hash(key: str) -> int:
    """Return a 64-bit hash that spreads keys evenly and is the same on every machine."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def shard_starts(hashes: Iterable[int], n_shards: int) -> tuple[int, ...]:
    """Cut the hash range so that each shard holds as many blocks as the others, give or take one.

    Parameters
    ----------
    hashes : iterable of int
        `key_hash` of every block of a split.
    n_shards : int
        At most the number of blocks, so that no shard is empty.

    Returns
    -------
    tuple of int
        The smallest hash of each shard, ascending.

    Raises
    ------
    ValueError
        If there are fewer blocks than shards.
    """
    ordered = sorted(hashes)
    if not 1 <= n_shards <= len(ordered):
        raise ValueError(f"{len(ordered)} blocks do not fill {n_shards} shards")
    return tuple(ordered[len(ordered) * index // n_shards] for index in range(n_shards))


def shard_index(hash_value: int, starts: Sequence[int]) -> int:
    """Return the shard whose range of hashes holds `hash_value`."""
    return bisect_right(starts, hash_value) - 1


def shard_path(split: str, index: int, n_shards: int) -> str:
    """Return a shard's path inside the dataset folder."""
    return f"{split}/lfp-{split}-{index:05d}-of-{n_shards:05d}.tar"


def n_shards_for(n_bytes: int, n_blocks: int, shard_mb: float, num_shards: int | None) -> int:
    """Return the number of shards of a split.

    Parameters
    ----------
    n_bytes, n_blocks : int
        Size of the split.
    shard_mb : float
        Target size of a shard, in 2**20 bytes; used where `num_shards` is None.
    num_shards : int or None
        The number asked for; never more than there are blocks.
    """
    wanted = num_shards or max(1, round(n_bytes / (shard_mb * 2**20)))
    return max(1, min(wanted, n_blocks))
