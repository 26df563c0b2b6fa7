"""Where the rows come from. Every source yields Arrow record batches of the contract's columns."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from beam_pipeline.sources.near_names import animal_column, nearest_column
from beam_pipeline.trace_column import is_trace_type

REQUIRED_COLUMNS = ("session", "condition", "trial_num", "trace")
OPTIONAL_COLUMNS = ("subject", "sfreq", "onset", "frequency", "amplitude")
COLUMNS = REQUIRED_COLUMNS + OPTIONAL_COLUMNS
TEXT_COLUMNS = {"session", "subject", "condition"}
#: Columns of a table that a message lists.
SHOWN_COLUMNS = 40


class SourceError(ValueError):
    """The table cannot be read as it is; the message says what to do."""


class TraceSource(Protocol):
    """A trace table. Instances are pickled to workers."""

    uri: str
    kind: str
    n_rows: int
    #: Names of the contract's columns that the table has.
    columns: tuple[str, ...]
    #: Column that by its name says which animal a row is from, where the table has no `subject`.
    animal_column: str | None
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
        If required or named columns are missing, stand there twice, or have a wrong type; it names
        all of them.
    """
    wanted = {name: names.get(name, name) for name in COLUMNS}
    missing = [
        name
        for name, column in wanted.items()
        if column not in schema.names and (name in REQUIRED_COLUMNS or name in names)
    ]
    if missing:
        raise SourceError(f"{where}: {_say_missing(missing, schema, names)}")
    matched: dict[str, str] = {}
    wrong = []
    for name, column in wanted.items():
        times = schema.names.count(column)
        if times != 1:
            if times:
                wrong.append(f"column '{column}' for '{name}' stands there {times} times")
            continue
        fits, expected = COLUMN_TYPES[name]
        found = schema.field(column).type
        if name in OPTIONAL_COLUMNS and pa.types.is_null(found):
            continue
        if not fits(found):
            wrong.append(f"column '{column}' for '{name}' is {found}, expected {expected}")
        matched[name] = column
    if wrong:
        raise SourceError(f"{where}: {'; '.join(wrong)}; it has: {_listed(schema)}")
    return matched


def _say_missing(missing: Sequence[str], schema: pa.Schema, names: Mapping[str, str]) -> str:
    """Return what to do about missing columns, with those of the table that may be meant."""
    said = []
    # The flag is given once: what it says already stays.
    entries = [f"{name}={column}" for name, column in names.items() if name not in missing]
    n_guessed = 0
    for name in missing:
        column = names.get(name, name)
        said.append(f"'{column}'" if column == name else f"'{column}' for '{name}'")
        free = _free_columns(schema, names, name)
        guess = nearest_column(column, free) or nearest_column(name, free)
        if name == "trace":
            guess = guess or _only_list(schema, free)
        n_guessed += guess is not None
        entries.append(f"{name}={guess or 'COLUMN'}")
    if "subject" not in {*schema.names, *names}:
        animal = animal_column(_free_columns(schema, names, "subject"))
        entries += [] if animal is None else [f"subject={animal}"]
    many = "s" if len(missing) > 1 else ""
    flag = f"--columns {shlex.quote(','.join(entries))}"
    advice = (
        f"did you mean {flag}?"
        if n_guessed == len(missing)
        else f"name {'them' if many else 'it'} with {flag}."
    )
    return f"no column{many} {' and '.join(said)}; {advice} It has: {_listed(schema)}"


def _free_columns(schema: pa.Schema, names: Mapping[str, str], name: str) -> list[str]:
    """Return the columns whose type fits a name of the contract and that have none yet."""
    taken = {names.get(other, other) for other in COLUMNS if other != name}
    fits, _ = COLUMN_TYPES[name]
    return [field.name for field in schema if fits(field.type) and field.name not in taken]


def _only_list(schema: pa.Schema, columns: Sequence[str]) -> str | None:
    """Return the column of lists if it is the only one: it is the traces, whatever its name."""
    lists = [f.name for f in schema if f.name in columns and pa.types.is_nested(f.type)]
    return lists[0] if len(lists) == 1 else None


def _listed(schema: pa.Schema) -> str:
    shown = [f"{field.name} ({field.type})" for field in list(schema)[:SHOWN_COLUMNS]]
    more = len(schema) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


def find_animal_column(schema: pa.Schema, matched: Mapping[str, str]) -> str | None:
    """Return the column that by its name says which animal a row is from.

    Parameters
    ----------
    schema : pyarrow.Schema
    matched : mapping
        From `match_columns`; with a `subject`, there is nothing to find.
    """
    if "subject" in matched:
        return None
    return animal_column(_free_columns(schema, matched, "subject"))


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
