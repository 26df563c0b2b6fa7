"""The cases of benchmarks/bigquery.py, each in a process of its own, and their server.

``serve ROWS ROWS ...`` prints {"endpoint", "environment"} and serves tables of so many rows until
its standard input ends; ``CASE ROWS ENDPOINT FILE`` reads one of them and writes {"seconds",
"rows", "bits", "memory"} to a file.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from lab_table import batches
from numpy.typing import NDArray

from beam_pipeline.sources.bigquery import BigQuerySource
from beam_pipeline.sources.bigquery_streams import read_client
from beam_pipeline.trace_column import decode_traces
from tests.servers.bigquery import BigQueryServer

#: Ends in the number of rows.
NAME = "lab.lab6_mouse_lfp.auditory_cortex"
COLUMNS = ["session", "condition", "trial_num", "trace", "frequency", "amplitude"]
#: About 1 MiB, as BigQuery's messages are.
MESSAGE_ROWS = 26
BATCH_ROWS = 52

#: Rows, and the exclusive or of the bits of all samples, which no order changes.
Seen = tuple[int, int]


def see(trace: NDArray[np.float64]) -> Seen:
    return 1, int(np.bitwise_xor.reduce(trace.view(np.uint64)))


def add(parts: Iterable[Seen]) -> Seen:
    n_rows = bits = 0
    for rows, part in parts:
        n_rows, bits = n_rows + rows, bits ^ part
    return n_rows, bits


def read_ours(source: BigQuerySource, split: str) -> Iterator[Seen]:
    for batch in source.read(split, BATCH_ROWS):
        traces = decode_traces(batch.column("trace"))
        yield add(see(traces.row(row)) for row in range(batch.num_rows))


def see_row(row: dict[str, Any]) -> Seen:
    return see(np.array(row["trace"]))


def ours(name: str, endpoint: str) -> beam.PTransform:
    source = BigQuerySource(f"bq://{name}", endpoint=endpoint)
    # As in `pipeline.build_pipeline`.
    splits = beam.Create(source.splits(1)) | beam.Reshuffle()
    return splits | beam.FlatMap(lambda split: read_ours(source, split))


def direct_read(name: str, endpoint: str, use_native_datetime: bool) -> beam.PTransform:
    """Beam's reader; its clients take no endpoint, so they are pointed at the server."""
    from apache_beam.io.gcp import bigquery, bigquery_tools
    from apache_beam.io.gcp.internal.clients.bigquery import BigqueryV2
    from google.cloud.bigquery_storage_v1 import BigQueryReadClient

    transport = read_client(endpoint).transport
    bigquery.bq_storage.BigQueryReadClient = lambda: BigQueryReadClient(transport=transport)
    url = f"{os.environ['BIGQUERY_EMULATOR_HOST']}/bigquery/v2/"
    bigquery_tools.BigQueryWrapper._bigquery_client = staticmethod(
        lambda options: BigqueryV2(url=url, get_credentials=False)
    )
    rows = beam.io.ReadFromBigQuery(
        table=name.replace(".", ":", 1),
        method=beam.io.ReadFromBigQuery.Method.DIRECT_READ,
        project="lab",
        selected_fields=COLUMNS,
        use_native_datetime=use_native_datetime,
    )
    return rows | beam.Map(see_row)


def run_pipeline(read: beam.PTransform, result: Path) -> Seen:
    # What the runner runs is a pickled copy: only a file comes back.
    def write(seen: Seen, path: str = str(result)) -> None:
        Path(path).write_text(json.dumps(seen))

    with beam.Pipeline("FnApiRunner") as pipeline:
        pipeline | read | beam.CombineGlobally(add) | beam.Map(write)
    n_rows, bits = json.loads(result.read_text())
    return n_rows, bits


def run_case(case: str, name: str, endpoint: str, result: Path) -> Seen:
    if case == "ours":
        return run_pipeline(ours(name, endpoint), result)
    return run_pipeline(direct_read(name, endpoint, case == "beam arrow"), result)


def serve(sizes: Sequence[int]) -> None:
    server = BigQueryServer(message_rows=MESSAGE_ROWS, least_streams=1)
    table = pa.concat_tables(batches(max(sizes)))
    for n_rows in sizes:
        server.put(f"{NAME}_{n_rows}", table.slice(0, n_rows))
    print(json.dumps({"endpoint": server.endpoint, "environment": server.environment}), flush=True)
    sys.stdin.read()
    server.close()


def main() -> None:
    if sys.argv[1] == "serve":
        serve([int(size) for size in sys.argv[2:]])
        return
    case, size, endpoint, result = sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])
    started = time.perf_counter()
    n_rows, bits = run_case(case, f"{NAME}_{size}", endpoint, result)
    seconds = time.perf_counter() - started
    memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result.write_text(
        json.dumps({"seconds": seconds, "rows": n_rows, "bits": bits, "memory": memory})
    )


if __name__ == "__main__":
    main()
