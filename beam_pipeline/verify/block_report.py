"""One WebDataset sample reread: decoded without unpickling, and judged by the manifest's rules."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beam_pipeline.blocks import block_key
from beam_pipeline.half import FLOAT16_MAX
from beam_pipeline.moments import exact_sum
from beam_pipeline.plurals import plural
from beam_pipeline.screening import DIGEST_BYTES, digests
from beam_pipeline.shards import MEMBERS

#: npy headers of up to three axes are 128 bytes long; twice that leaves room for other writers.
NPY_HEADER_BYTES = 256
#: Room in a json member for the names, and for three numbers a trial.
JSON_NAME_BYTES, JSON_TRIAL_BYTES = 1 << 16, 96
#: Fewer bytes than this may be equal by chance in two trials.
MIN_IDENTITY_BYTES = 32
FIELDS = (
    "session", "subject", "condition", "label", "block", "trial_num", "frequency", "amplitude",
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a dataset.

    Attributes
    ----------
    check : str
        The rule that is broken, in a word or two.
    where : str
        File, shard and sample, or session.
    detail : str
        What was found and what was expected.
    """

    check: str
    where: str
    detail: str


@dataclass(frozen=True)
class SampleRules:
    """What the manifest says of every sample.

    Attributes
    ----------
    classes : tuple of str
        Conditions in label order.
    shape : tuple of int
        (most trials of a block, n_freqs, n_times).
    """

    classes: tuple[str, ...]
    shape: tuple[int, int, int]

    def max_bytes(self, member: str) -> int:
        """Return the largest size that a member of that name may have."""
        n_trials, n_freqs, n_times = self.shape
        return {
            "spectrogram.npy": NPY_HEADER_BYTES + 2 * n_trials * n_freqs * n_times,
            "baseline.npy": NPY_HEADER_BYTES + 4 * n_trials * n_freqs,
            "json": JSON_NAME_BYTES + JSON_TRIAL_BYTES * n_trials,
        }.get(member, 0)


@dataclass(frozen=True)
class BlockReport:
    """What a sample holds, without its values.

    Attributes
    ----------
    key, session, condition : str
    subject : str or None
    block : int
    trial_num : int64 array of shape (n_trials,)
    sums, squares : float64 arrays of shape (n_freqs,), or None
        Sums of the normalised values over trials and frames; None where they are not finite.
    n_at_limit : int64 array of shape (n_freqs,)
        Values at the limit of float16.
    baseline_sum : int or None
        Sum of the baseline spectra in units of 2**-128; None where it is not finite.
    spectrogram_digest, baseline_digest : uint8 arrays of shape (n_trials, 16)
        See `row_digests`.
    """

    key: str
    session: str
    subject: str | None
    condition: str
    block: int
    trial_num: NDArray[np.int64]
    sums: NDArray[np.float64] | None
    squares: NDArray[np.float64] | None
    n_at_limit: NDArray[np.int64]
    baseline_sum: int | None
    spectrogram_digest: NDArray[np.uint8]
    baseline_digest: NDArray[np.uint8]


def inspect_sample(
    key: str, members: Iterable[tuple[str, bytes | None]], rules: SampleRules
) -> tuple[BlockReport | None, list[Problem]]:
    """Decode a sample and judge it by itself.

    Parameters
    ----------
    key : str
    members : iterable of (str, bytes or None)
        Name and content of each member; None where the content was too large to be read.
    rules : SampleRules

    Returns
    -------
    block : BlockReport or None
        None where a member cannot be decoded.
    problems : list of Problem
    """
    contents = list(members)
    names = tuple(name for name, _ in contents)
    if names != MEMBERS:
        detail = f"its members are {', '.join(names)}; expected {', '.join(MEMBERS)}"
        return None, [Problem("members", key, detail)]
    decoded: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, content in contents:
        try:
            decoded[name] = _decode(name, content, rules)
        except ValueError as error:
            problems.append(Problem("decoding", f"{key}.{name}", str(error)))
    if problems:
        return None, problems
    spectrogram, baseline = decoded["spectrogram.npy"], decoded["baseline.npy"]
    metadata = decoded["json"]
    problems += _check_lengths(key, len(spectrogram), len(baseline), metadata)
    if problems:
        return None, problems
    problems += check_metadata(key, metadata, rules.classes)
    problems += _check_finite(f"{key}.spectrogram.npy", spectrogram)
    problems += _check_finite(f"{key}.baseline.npy", baseline)
    return _block_report(key, metadata, spectrogram, baseline), problems


def _decode(name: str, content: bytes | None, rules: SampleRules) -> Any:
    if content is None:
        raise ValueError(f"no plain file of at most {rules.max_bytes(name):,} bytes")
    if name == "json":
        return parse_metadata(content)
    dtype = np.float16 if name == "spectrogram.npy" else np.float32
    axes = rules.shape[1:] if name == "spectrogram.npy" else rules.shape[1:2]
    return read_npy(content, np.dtype(dtype), rules.shape[0], axes)


def read_npy(
    content: bytes, dtype: np.dtype[Any], max_trials: int, axes: tuple[int, ...]
) -> NDArray[Any]:
    """View the bytes of an npy file of a known type as an array; nothing is unpickled.

    Parameters
    ----------
    content : bytes
    dtype : numpy.dtype
        The only one that is accepted.
    max_trials : int
        Largest length of the first axis; at least 1.
    axes : tuple of int
        Lengths of the other axes.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    # The header's claim is judged before an array of that size is made.
    header = np.lib.format
    stream = io.BytesIO(content)
    version = header.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"npy version {version}; expected (1, 0)")
    shape, fortran_order, found = header.read_array_header_1_0(stream)
    expected = f"{dtype} (1 to {max_trials}, {', '.join(map(str, axes))})"
    n_trials = shape[0] if shape else 0
    if found != dtype or shape[1:] != axes or fortran_order or not 1 <= n_trials <= max_trials:
        order = " in Fortran order" if fortran_order else ""
        raise ValueError(f"it is {found} {shape}{order}; expected {expected}")
    n_bytes = len(content) - stream.tell()
    if n_bytes != dtype.itemsize * int(np.prod(shape)):
        raise ValueError(f"{n_bytes:,} bytes of values do not fill {found} {shape}")
    return np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape)


def parse_metadata(content: bytes) -> dict[str, Any]:
    """Parse a sample's json member.

    Raises
    ------
    ValueError
        If it is no JSON, or a field is missing, unknown or of a wrong type.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        metadata = json.loads(content, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(metadata, dict) or metadata.keys() != set(FIELDS):
        found = ", ".join(metadata) if isinstance(metadata, dict) else type(metadata).__name__
        raise ValueError(f"it holds {found}; expected {', '.join(FIELDS)}")
    wrong = [name for name in FIELDS if not _has_type(name, metadata[name])]
    if wrong:
        raise ValueError(f"wrong type of {', '.join(wrong)}")
    return metadata


def _has_type(name: str, value: Any) -> bool:
    if name in ("session", "condition"):
        return isinstance(value, str)
    if name == "subject":
        return value is None or isinstance(value, str)
    if name in ("label", "block"):
        return _is_int64(value)
    if name == "trial_num":
        return isinstance(value, list) and all(map(_is_int64, value))
    return isinstance(value, list) and all(
        item is None or (isinstance(item, int | float) and not isinstance(item, bool))
        for item in value
    )


def _is_int64(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _check_lengths(
    key: str, n_spectrograms: int, n_baselines: int, metadata: Mapping[str, Any]
) -> Iterator[Problem]:
    lengths = {"spectrogram.npy": n_spectrograms, "baseline.npy": n_baselines} | {
        name: len(metadata[name]) for name in ("trial_num", "frequency", "amplitude")
    }
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        yield Problem("trials", key, f"numbers of trials differ inside the sample: {found}")


def check_metadata(
    key: str, metadata: Mapping[str, Any], classes: tuple[str, ...]
) -> Iterator[Problem]:
    """Yield what is wrong with a sample's json member, judged by its key and the classes."""
    expected = block_key(metadata["session"], metadata["block"])
    if key != expected:
        yield Problem("key", key, f"session and block in its json make the key {expected}")
    condition, label = metadata["condition"], metadata["label"]
    if condition not in classes:
        yield Problem("label", key, f"condition {condition!r} is not one of {list(classes)}")
    elif label != classes.index(condition):
        yield Problem(
            "label", key, f"label {label} for {condition}; expected {classes.index(condition)}"
        )
    trial_num = metadata["trial_num"]
    for before, after in pairwise(trial_num):
        if after <= before:
            yield Problem("trial order", key, f"trial {after} follows trial {before}")


def _check_finite(where: str, values: NDArray[Any]) -> Iterator[Problem]:
    bad = ~np.isfinite(values)
    if bad.any():
        first = tuple(int(index) for index in np.argwhere(bad)[0])
        found = plural(int(np.count_nonzero(bad)), "value", "is", "are")
        yield Problem("finite", where, f"{found} not finite, the first at {first}")


def _block_report(
    key: str,
    metadata: Mapping[str, Any],
    spectrogram: NDArray[np.float16],
    baseline: NDArray[np.float32],
) -> BlockReport:
    # A float16 squared is exact in float32.
    wide = spectrogram.astype(np.float32)
    n_at_limit = np.zeros(wide.shape[1], np.int64)
    if max(wide.max(), -wide.min()) >= FLOAT16_MAX:
        n_at_limit = np.count_nonzero(np.abs(wide) == FLOAT16_MAX, axis=(0, 2))
    finite = bool(np.isfinite(wide).all())
    baseline_finite = bool(np.isfinite(baseline).all())
    return BlockReport(
        key,
        metadata["session"],
        metadata["subject"],
        metadata["condition"],
        metadata["block"],
        np.array(metadata["trial_num"], np.int64),
        wide.sum(axis=(0, 2), dtype=np.float64) if finite else None,
        np.square(wide).sum(axis=(0, 2), dtype=np.float64) if finite else None,
        n_at_limit,
        int(exact_sum(baseline.sum(axis=1, dtype=np.float64))) if baseline_finite else None,
        row_digests(spectrogram.reshape(len(spectrogram), -1)),
        row_digests(baseline),
    )


def row_digests(rows: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the 128-bit BLAKE2b digest of each row, uint8 of shape (n, 16).

    Zeros stand for rows that do not tell one trace from another: shorter than 32 bytes, or all
    of one value (power below ``log_floor``).
    """
    found = np.zeros((len(rows), DIGEST_BYTES), np.uint8)
    if rows.shape[1] * rows.itemsize >= MIN_IDENTITY_BYTES:
        telling = np.flatnonzero((rows != rows[:, :1]).any(axis=1))
        found[telling] = digests(rows[telling])
    return found
