"""Rows of an Arrow table in Avro, as BigQuery sends them to Beam."""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro
import pyarrow as pa

_TYPES = {pa.string(): "string", pa.int64(): "long", pa.float64(): "double", pa.binary(): "bytes"}


def _record(fields: pa.Schema) -> dict[str, Any]:
    def of(data_type: pa.DataType) -> Any:
        if pa.types.is_list(data_type):
            return {"type": "array", "items": _TYPES[data_type.value_type]}
        return ["null", _TYPES[data_type]]

    columns = [{"name": column.name, "type": of(column.type)} for column in fields]
    return {"type": "record", "name": "__root__", "fields": columns}


def schema(fields: pa.Schema) -> str:
    """Return the Avro schema of a table's rows."""
    return json.dumps(_record(fields))


def rows(table: pa.Table) -> bytes:
    """Return the rows one after the other."""
    parsed = fastavro.parse_schema(_record(table.schema))
    content = io.BytesIO()
    for row in table.to_pylist():
        fastavro.schemaless_writer(content, parsed, row)
    return content.getvalue()
