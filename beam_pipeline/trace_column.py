"""Trace columns of any encoding of the contract to arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beam_pipeline.rejects import Reason


@dataclass(frozen=True)
class TraceColumn:
    """Decoded traces: row ``i`` is ``values[offsets[i]:offsets[i + 1]]``; `problems` by row."""

    values: NDArray[np.generic]
    offsets: NDArray[np.int64]
    problems: dict[int, tuple[Reason, str]]

    def row(self, index: int) -> NDArray[np.generic]:
        """Return the samples of one row."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]


def is_trace_type(data_type: pa.DataType) -> bool:
    """Tell whether an Arrow column of this type can hold traces (contract 2.1)."""
    if pa.types.is_dictionary(data_type):
        return is_trace_type(data_type.value_type)
    if (
        pa.types.is_list(data_type)
        or pa.types.is_large_list(data_type)
        or pa.types.is_fixed_size_list(data_type)
    ):
        return bool(
            pa.types.is_floating(data_type.value_type) or pa.types.is_integer(data_type.value_type)
        )
    return _is_text(data_type) or _is_bytes(data_type)


def fits_float32(data_type: pa.DataType) -> bool:
    """Tell whether float32 holds every sample of a trace column of this type exactly."""
    if pa.types.is_dictionary(data_type):
        return fits_float32(data_type.value_type)
    if _is_text(data_type) or _is_bytes(data_type):
        return _is_bytes(data_type)
    value = data_type.value_type
    return bool(value in (pa.float16(), pa.float32()) or value.bit_width <= 16)


def _is_text(data_type: pa.DataType) -> bool:
    return bool(pa.types.is_string(data_type) or pa.types.is_large_string(data_type))


def _is_bytes(data_type: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(data_type)
        or pa.types.is_large_binary(data_type)
        or pa.types.is_fixed_size_binary(data_type)
    )


def decode_traces(column: pa.Array) -> TraceColumn:
    """Decode a trace column of any encoding of the contract.

    Parameters
    ----------
    column : pyarrow.Array
        Lists of numbers, text (``"[1.0, 2.0]"``, comma or space separated), or bytes of
        little-endian float32.

    Returns
    -------
    TraceColumn
        Nulls inside a list become NaN. Rows that cannot be decoded are empty and stand in
        ``problems``.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_text(column.type):
        return _from_rows(column, _parse_text)
    if _is_bytes(column.type):
        return _from_rows(column, _parse_bytes)
    if pa.types.is_fixed_size_list(column.type):
        column = column.cast(pa.large_list(column.type.value_type))
    offsets = column.offsets.to_numpy().astype(np.int64)
    first, last = int(offsets[0]), int(offsets[-1])
    values = column.values.slice(first, last - first).to_numpy(zero_copy_only=False)
    missing = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
    problems = {int(row): (Reason.EMPTY_TRACE, "the trace is null") for row in missing}
    return TraceColumn(values, offsets - first, problems)


def _from_rows(
    column: pa.Array, parse: Callable[[object], NDArray[np.generic] | tuple[Reason, str]]
) -> TraceColumn:
    rows: list[NDArray[np.generic]] = []
    problems: dict[int, tuple[Reason, str]] = {}
    for index, raw in enumerate(column.to_pylist()):
        parsed = (Reason.EMPTY_TRACE, "the trace is null") if raw is None else parse(raw)
        if isinstance(parsed, tuple):
            problems[index] = parsed
            parsed = np.empty(0)
        rows.append(parsed)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    values = np.concatenate(rows) if rows else np.empty(0)
    return TraceColumn(values, offsets, problems)


def _parse_text(raw: object) -> NDArray[np.generic] | tuple[Reason, str]:
    text = str(raw).strip()
    if "..." in text or "…" in text:
        return Reason.TRUNCATED_TRACE, f"the text holds '...': {_excerpt(text)}"
    if text.startswith("[") != text.endswith("]"):
        return Reason.TRUNCATED_TRACE, f"a bracket is not closed: {_excerpt(text)}"
    body = text.strip("[]() \t\r\n")
    words = body.replace(",", " ").replace("null", "nan").split()
    n_commas = body.count(",")
    if n_commas and len(words) < n_commas + (not body.endswith(",")):
        # Without the missing number, every later sample would stand one place too early.
        return Reason.UNPARSABLE_TRACE, "a number is missing between two commas"
    try:
        return np.array(words, dtype=np.float64)
    except ValueError as error:
        return Reason.UNPARSABLE_TRACE, str(error)


def _parse_bytes(raw: object) -> NDArray[np.generic] | tuple[Reason, str]:
    assert isinstance(raw, bytes)
    if len(raw) % 4:
        return Reason.UNPARSABLE_TRACE, f"{len(raw)} bytes are no whole number of float32"
    return np.frombuffer(raw, dtype="<f4")


def _excerpt(text: str, length: int = 20) -> str:
    return text if len(text) <= 2 * length else f"{text[:length]} [..] {text[-length:]}"
