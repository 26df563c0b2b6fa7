"""Shards read block by block through webdataset, and checked against the manifest on the way."""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from webdataset.tariterators import group_by_keys, tar_file_expander

from trainer.data.dataset_folder import DatasetFolder, Shard
from trainer.data.storage import DatasetError

READ_BYTES = 1 << 20
SPECTROGRAM, BASELINE = "spectrogram.npy", "baseline.npy"
#: What tar, JSON and NumPy may raise for damaged content.
DECODING_ERRORS = (
    *(tarfile.TarError, OSError, EOFError, MemoryError),
    *(ValueError, KeyError, TypeError, AttributeError),
)
#: The bits of a float16 that are all set in infinities and NaNs alone.
EXPONENT = np.uint16(0x7C00)
_parsing = threading.Lock()


@dataclass(frozen=True)
class Block:
    """A sample of a shard: consecutive trials of one session.

    Attributes
    ----------
    session, condition : str
    subject : str or None
    number : int
        Of the block in its session.
    trial_num : int64 array of shape (n_trials,)
        Ascending.
    spectrogram : float16 array of shape (n_trials, n_freqs, n_times)
        Normalised.
    baseline : float32 array of shape (n_trials, n_freqs)
        log10 of mean baseline power.
    offset : int
        Byte of the shard at which the spectrograms' values begin; they are contiguous.
    """

    session: str
    condition: str
    subject: str | None
    number: int
    trial_num: NDArray[np.int64]
    spectrogram: NDArray[np.float16]
    baseline: NDArray[np.float32]
    offset: int


class _HashingReader(io.RawIOBase):
    """Digests all that is read, so that a shard is read once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file: Any = file
        self.sha256 = hashlib.sha256()
        self.position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        try:
            n = self._file.readinto(view) or 0
        except DatasetError:
            raise
        # Every store's client raises errors of its own.
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        self.sha256.update(view[:n])
        self.position += n
        return int(n)


def read_blocks(folder: DatasetFolder, shard: Shard) -> Iterator[Block]:
    """Yield the blocks of a shard, in its order.

    Every block is decoded without unpickling and fits the manifest's axes. Whether the shard's
    bytes are those of the manifest is known when the last block was taken: nothing may come of
    them before.

    Raises
    ------
    DatasetError
        If the shard is missing, ends early, is another than the manifest lists, or holds what
        is no block.
    """
    where = folder.storage.name(shard.path)
    with folder.open_stream(shard.path) as file:
        reader = _HashingReader(file)
        stream = io.BufferedReader(reader, READ_BYTES)
        starts: dict[str, int] = {}
        damage: Exception | None = None
        block: Block | None = None
        try:
            source = [{"url": shard.path, "stream": stream}]
            members = _note_starts(tar_file_expander(source), starts)
            for sample in group_by_keys(members):
                block = _decode(folder, sample, starts)
                yield block
        except DatasetError as error:
            # Without what webdataset adds to every exception.
            raise DatasetError(error.args[0]) from error
        except DECODING_ERRORS as error:
            damage = error
        _check_bytes(folder, shard, reader)
        # A damaged archive whose checksum holds was written so.
        if damage is not None:
            detail = damage.args[0] if damage.args else type(damage).__name__
            raise DatasetError(f"{where} is no shard of this format: {detail}") from damage
        if block is not None:
            _check_offset(folder, shard, block)


def _note_starts(
    members: Iterable[dict[str, Any]], starts: dict[str, int]
) -> Iterator[dict[str, Any]]:
    """Note at which byte each member's content begins."""
    position = 0
    for member in members:
        # An empty one marks the end of the shard.
        if member:
            # With the extra member before it that a long name needs.
            header = tarfile.TarInfo(member["fname"]).tobuf(tarfile.GNU_FORMAT)
            starts[member["fname"]] = position + len(header)
            position += len(header) + len(member["data"])
            position += -position % tarfile.BLOCKSIZE
        yield member


def _decode(folder: DatasetFolder, sample: dict[str, Any], starts: dict[str, int]) -> Block:
    key = sample["__key__"]
    metadata = json.loads(sample["json"])
    trial_num = np.array(metadata["trial_num"], np.int64)
    n_trials, (n_freqs, n_times) = len(trial_num), folder.shape
    if not 1 <= n_trials <= folder.block_trials or (np.diff(trial_num) <= 0).any():
        raise ValueError(f"{key}: trial_num is not 1 to {folder.block_trials} ascending numbers")
    spectrogram = _array(key, sample[SPECTROGRAM], np.float16, (n_trials, n_freqs, n_times))
    baseline = _array(key, sample[BASELINE], np.float32, (n_trials, n_freqs))
    finite = ((spectrogram.view(np.uint16) & EXPONENT) != EXPONENT).all()
    if not (finite and np.isfinite(baseline).all()):
        raise ValueError(f"{key}: one of its values is not finite")
    header = len(sample[SPECTROGRAM]) - spectrogram.nbytes
    return Block(
        metadata["session"],
        metadata["condition"],
        metadata["subject"],
        metadata["block"],
        trial_num,
        cast("NDArray[np.float16]", spectrogram),
        cast("NDArray[np.float32]", baseline),
        starts[f"{key}.{SPECTROGRAM}"] + header,
    )


def _array(key: str, content: bytes, dtype: type, shape: tuple[int, ...]) -> NDArray[Any]:
    header, n_values = _npy_header(dtype, shape), math.prod(shape)
    n_bytes = len(header) + n_values * np.dtype(dtype).itemsize
    if content.startswith(header) and len(content) == n_bytes:
        return np.frombuffer(content, dtype, n_values, len(header)).reshape(shape)
    # A header of other spacing, or another array. NumPy reads it with `ast`, which fails now and
    # then in several threads (https://github.com/python/cpython/issues/106905).
    with _parsing:
        array: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        expected = f"{np.dtype(dtype)} {shape}"
        raise ValueError(f"{key}: an array is {array.dtype} {array.shape}, not {expected}")
    return array


@lru_cache(maxsize=1024)
def _npy_header(dtype: type, shape: tuple[int, ...]) -> bytes:
    """Return the header that NumPy writes before such an array."""
    file = io.BytesIO()
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _check_offset(folder: DatasetFolder, shard: Shard, last: Block) -> None:
    """Check that members lie where plain GNU headers put them: others add to every later one."""
    span = (shard.path, last.offset, last.offset + folder.trial_bytes)
    (content,) = folder.storage.read_ranges([span])
    if content != last.spectrogram[0].tobytes():
        raise DatasetError(
            f"{folder.storage.name(shard.path)} is no plain GNU tar archive: its members are not "
            "where docs/dataset-format.md says"
        )


def _check_bytes(folder: DatasetFolder, shard: Shard, reader: _HashingReader) -> None:
    rest = memoryview(bytearray(READ_BYTES))
    try:
        while reader.readinto(rest):
            pass
    except OSError as error:
        where = folder.storage.name(shard.path)
        raise DatasetError(f"{where} cannot be read: {error}") from error
    if reader.position < shard.bytes:
        raise folder.storage.ends_early(shard.path, reader.position, shard.bytes)
    if reader.position > shard.bytes or reader.sha256.hexdigest() != shard.sha256:
        raise folder.storage.is_another(shard.path)
