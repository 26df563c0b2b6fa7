"""Where the rows come from. Every source yields Arrow record batches of the contract's columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from beam_pipeline.traces import is_trace_type

REQUIRED_COLUMNS = ("session", "condition", "trial_num", "trace")
OPTIONAL_COLUMNS = ("subject", "sfreq", "onset", "frequency", "amplitude")
COLUMNS = REQUIRED_COLUMNS + OPTIONAL_COLUMNS
TEXT_COLUMNS = {"session", "subject", "condition"}


class SourceError(ValueError):
    """The table cannot be read as it is; the message says what to do."""


class TraceSource(Protocol):
    """A trace table. Instances are pickled to workers."""

    uri: str
    kind: str
    n_rows: int
    #: Names of the contract's columns that the table has.
    columns: tuple[str, ...]
    #: float32 where that holds every sample of the table without rounding, else float64.
    sample_dtype: str
    #: Mean size of a row in memory, in bytes, to decide how many are read at once.
    row_bytes: float
    #: Time for which the table was read, where a table changes under the reader (BigQuery).
    snapshot_time: str | None

    def splits(self, desired: int) -> Sequence[Any]:
        """Return about `desired` pieces of similar size where the table allows it."""

    def read(self, split: Any, batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a piece as batches of the contract's columns."""

    def read_columns(self, names: Sequence[str]) -> pa.Table:
        """Read a few small columns of the whole table; ids and conditions as strings."""

    def identity(self) -> list[Any]:
        """Return what changes when the table does, as JSON data, without reading it all."""

    def selection(self) -> dict[str, Any]:
        """Return the flags that say which rows are read, as JSON data; none for files."""


def _is_id(data_type: pa.DataType) -> bool:
    return _is_string(data_type) or pa.types.is_integer(data_type)


def _is_string(data_type: pa.DataType) -> bool:
    if pa.types.is_dictionary(data_type):
        return _is_id(data_type.value_type)
    return bool(pa.types.is_string(data_type) or pa.types.is_large_string(data_type))


def _is_number(data_type: pa.DataType) -> bool:
    return bool(pa.types.is_floating(data_type) or pa.types.is_integer(data_type))


COLUMN_TYPES = {
    "session": (_is_id, "string or integer"),
    "subject": (_is_id, "string or integer"),
    "condition": (_is_id, "string"),
    "trial_num": (pa.types.is_integer, "integer"),
    "trace": (is_trace_type, "list of numbers, text or bytes"),
    "sfreq": (_is_number, "number (Hz)"),
    "onset": (_is_number, "number (s)"),
    "frequency": (_is_number, "number"),
    "amplitude": (_is_number, "number"),
}


def parse_column_names(text: str) -> dict[str, str]:
    """Parse ``--columns trace=lfp,session=session_id`` to {contract name: table name}.

    Raises
    ------
    ValueError
        If an entry is not ``name=column``, or the name is not one of the contract.
    """
    names: dict[str, str] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, equals, column = (part.strip() for part in entry.partition("="))
        if not (name and equals and column):
            raise ValueError(f"--columns: '{entry}' is not NAME=COLUMN")
        if name not in COLUMNS:
            raise ValueError(f"--columns: '{name}' is not one of {', '.join(COLUMNS)}")
        names[name] = column
    return names


def match_columns(schema: pa.Schema, names: Mapping[str, str], where: str) -> dict[str, str]:
    """Return {contract name: column of the table} and check the types.

    Parameters
    ----------
    schema : pyarrow.Schema
    names : mapping
        The user's ``--columns``; other columns keep the contract's name.
    where : str
        What to call the table in an error.

    Raises
    ------
    SourceError
        If a required or named column is missing, or has a wrong type.
    """
    available = ", ".join(f"{field.name} ({field.type})" for field in schema)
    matched: dict[str, str] = {}
    for name in COLUMNS:
        column = names.get(name, name)
        if column not in schema.names:
            if name in REQUIRED_COLUMNS or name in names:
                raise SourceError(
                    f"{where}: no column '{column}' for '{name}'; it has: {available}. "
                    f"Name it with --columns {name}=COLUMN"
                )
            continue
        fits, expected = COLUMN_TYPES[name]
        found = schema.field(column).type
        if name in OPTIONAL_COLUMNS and pa.types.is_null(found):
            continue
        if not fits(found):
            raise SourceError(
                f"{where}: column '{column}' for '{name}' is {found}, expected {expected}; "
                f"it has: {available}"
            )
        matched[name] = column
    return matched


def null_columns(schema: pa.Schema, names: Mapping[str, str]) -> frozenset[str]:
    """Return the optional columns of type null, which is what pandas makes of a column of None.

    Such a column says no more than its absence, but fits any type that other files give it.
    """
    return frozenset(
        name
        for name in OPTIONAL_COLUMNS
        for column in [names.get(name, name)]
        if column in schema.names and pa.types.is_null(schema.field(column).type)
    )
