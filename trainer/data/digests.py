"""Digests of trials: what tells one from another, and whether its bytes are still the same."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES = 16
#: Fewer bytes than this may be equal by chance in two trials.
MIN_IDENTITY_BYTES = 32


def row_digests(rows: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the 128-bit BLAKE2b digest of each row's values, uint8 of shape (n_rows, 16).

    Zeros stand for rows that do not tell one trial from another: shorter than 32 bytes, or all of
    one value (power below the pipeline's ``log_floor``).
    """
    # As unsigned integers, which compare fast.
    flat = rows.reshape(len(rows), -1).view(f"u{rows.itemsize}")
    found = np.zeros((len(flat), DIGEST_BYTES), np.uint8)
    if flat[0].nbytes < MIN_IDENTITY_BYTES:
        return found
    for row in np.flatnonzero((flat != flat[:, :1]).any(axis=1)):
        digest = hashlib.blake2b(flat[row].data, digest_size=DIGEST_BYTES).digest()
        found[row] = np.frombuffer(digest, np.uint8)
    return found
