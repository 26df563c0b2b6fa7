"""Tables as BigQuery keeps them: its few types, its past states, its conditions on rows."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_TYPES = {
    pa.string(): "STRING",
    pa.int64(): "INTEGER",
    pa.float64(): "FLOAT",
    pa.binary(): "BYTES",
    pa.bool_(): "BOOLEAN",
    pa.decimal128(38, 9): "NUMERIC",
}
_COMPARISONS = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CONDITION = re.compile(r"\s*(\w+)\s*(!=|<=|>=|=|<|>)\s*('[^']*'|[-\d.]+)\s*")


@dataclass
class StoredTable:
    """A table with its past.

    Attributes
    ----------
    kind : str
        ``TABLE``, ``VIEW``, ...
    streaming : bool
        Whether rows are being streamed into it.
    expires : datetime.datetime or None
    """

    kind: str = "TABLE"
    streaming: bool = False
    expires: datetime | None = None
    _states: list[tuple[datetime, pa.Table]] = field(default_factory=list)

    def put(self, table: pa.Table, modified: datetime) -> None:
        """Replace the content by rows of BigQuery's types."""
        self._states.append((modified, as_bigquery(table)))

    @property
    def created(self) -> datetime:
        """When it was made."""
        return self._states[0][0]

    @property
    def modified(self) -> datetime:
        """When it was last changed; BigQuery says it in whole milliseconds."""
        return self._states[-1][0]

    def at(self, time: datetime | None) -> pa.Table:
        """Return the content at a time; None is now."""
        if time is None:
            return self._states[-1][1]
        if time > datetime.now(UTC):
            raise ValueError(f"Cannot read a table at {time}, which is in the future")
        states = [table for modified, table in self._states if modified <= time]
        if not states:
            raise ValueError(f"Invalid snapshot time {time}: the table was created later")
        return states[-1]

    def fields(self) -> Iterator[dict[str, Any]]:
        """Yield the schema's fields as the REST API describes them."""
        for column in self._states[-1][1].schema:
            repeated = pa.types.is_list(column.type)
            data_type = column.type.value_type if repeated else column.type
            mode = "REPEATED" if repeated else "NULLABLE"
            yield {"name": column.name, "type": _TYPES[data_type], "mode": mode}


def as_bigquery(table: pa.Table) -> pa.Table:
    """Return a table in the types that BigQuery has; a null array becomes an empty one."""
    columns = {}
    for column in table.schema:
        values = table.column(column.name)
        if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
            item = pa.int64() if pa.types.is_integer(column.type.value_type) else pa.float64()
            values = values.cast(pa.list_(item))
            empty = pa.scalar([], pa.list_(item))
            values = pc.if_else(values.is_null(), empty, values) if values.null_count else values
        elif pa.types.is_integer(column.type):
            values = values.cast(pa.int64())
        elif pa.types.is_floating(column.type):
            values = values.cast(pa.float64())
        columns[column.name] = values
    return pa.table(columns).combine_chunks()


def restrict(table: pa.Table, condition: str) -> pa.Table:
    """Return the rows that meet ``column OP literal [AND ...]``.

    Raises
    ------
    ValueError
        If the condition is none, or its column is not there.
    """
    for part in filter(None, re.split(r"\bAND\b", condition)):
        match = _CONDITION.fullmatch(part)
        if not match:
            raise ValueError(f"Syntax error: Unexpected input in '{part.strip()}'")
        name, comparison, literal = match.groups()
        if name not in table.column_names:
            raise ValueError(f"Unrecognized name: {name}")
        value = literal.strip("'") if literal.startswith("'") else float(literal)
        table = table.filter(_COMPARISONS[comparison](pc.field(name), value)).combine_chunks()
    return table
