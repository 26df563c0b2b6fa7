"""BigQuery by its real clients, against a server on loopback: what is read, and what is said."""

from __future__ import annotations

import json
import pickle
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from beam_pipeline.__main__ import main
from beam_pipeline.errors import UsageError
from beam_pipeline.sources import SourceError, bigquery_tables
from beam_pipeline.sources.bigquery import BigQuerySource, Selection
from beam_pipeline.sources.bigquery_streams import WATCHDOG, read_client, read_stream
from beam_pipeline.sources.parquet import ParquetSource
from beam_pipeline.sources.resuming import BrokenStreamError, Patience
from tests import tables
from tests.servers.bigquery import REPEAT, RST_STREAM, STALL, BigQueryServer, StreamFault
from tests.servers.bigquery_tables import as_bigquery

NAME = "lab-1.mouse.cortex"
URI = f"bq://{NAME}"
#: The table was last changed then.
MONDAY = datetime(2026, 3, 2, 9, 30, 0, 250_000, tzinfo=UTC)
QUERY = "SELECT * FROM `lab-1.mouse.cortex` WHERE trial_num < 15"


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return tables.make_table(dtype="float64")


@pytest.fixture
def server(table: pa.Table, bigquery: BigQueryServer) -> BigQueryServer:
    bigquery.put(NAME, table, MONDAY)
    return bigquery


def read_all(source: Any, batch_rows: int = 11) -> pa.Table:
    """Every row, sorted: streams come in any order."""
    batches = [b for split in source.splits(4) for b in source.read(split, batch_rows)]
    return by_trial(pa.Table.from_batches(batches))


def by_trial(table: pa.Table) -> pa.Table:
    return table.sort_by([("session", "ascending"), ("trial_num", "ascending")])


def flags(server: BigQueryServer, uri: str = URI) -> list[str]:
    return ["--input", uri, "--bigquery_endpoint", server.endpoint]


# --- What is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("trace", ["FLOAT64", "INT64", "STRING", "BYTES"])
@pytest.mark.parametrize("session", ["text", "integer"])
def test_rows_are_those_of_the_same_table_in_parquet(
    table: pa.Table, server: BigQueryServer, tmp_path: Path, trace: str, session: str
) -> None:
    traces = tables.traces_of(table)[:40]
    encoded: dict[str, Any] = {
        "FLOAT64": pa.array(list(traces)),
        "INT64": pa.array(list((1000 * traces).astype(np.int64))),
        "STRING": pa.array([json.dumps(row.tolist()) for row in traces]),
        "BYTES": pa.array([row.astype("<f4").tobytes() for row in traces]),
    }
    rows = table.slice(0, 40).set_column(6, "trace", encoded[trace])
    if session == "integer":
        rows = rows.set_column(0, "session", pa.array(np.repeat([7, 8, 9, 10], 10)))
    rows = rows.append_column("note", pa.array(["not asked for"] * 40))
    server.put(NAME, rows)
    parquet = ParquetSource(str(tables.write(rows, tmp_path / "t.parquet")))
    source = BigQuerySource(URI, endpoint=server.endpoint)

    assert source.n_rows == 40
    assert source.columns == parquet.columns
    assert source.sample_dtype == ("float32" if trace == "BYTES" else "float64")
    assert read_all(source).to_pylist() == read_all(parquet).to_pylist()
    names = ["condition", "session", "subject", "frequency"]
    order = [(name, "ascending") for name in names]
    assert (
        source.read_columns(names).sort_by(order).equals(parquet.read_columns(names).sort_by(order))
    )
    assert {name for request in server.sessions for name in _selected(request)} == {*source.columns}


def _selected(request: Any) -> list[str]:
    return list(request.read_session.read_options.selected_fields)


def test_columns_under_other_names(table: pa.Table, server: BigQueryServer) -> None:
    renamed = table.rename_columns(["rec", "mouse", "genotype", "n", "f", "a", "lfp"])
    server.put(NAME, renamed)
    names = {"session": "rec", "subject": "rec", "condition": "genotype", "trial_num": "n"}
    source = BigQuerySource(URI, names | {"trace": "lfp"}, endpoint=server.endpoint)
    assert source.columns == ("session", "condition", "trial_num", "trace", "subject")
    rows = read_all(source)
    assert rows["subject"].equals(rows["session"])
    assert sorted(_selected(server.sessions[-1])) == ["genotype", "lfp", "n", "rec"]
    assert source.animal_column is None
    del names["subject"]
    unsplit = BigQuerySource(URI, names | {"trace": "lfp"}, endpoint=server.endpoint)
    assert unsplit.animal_column == "mouse"


def test_nulls_arrive_as_nulls(server: BigQueryServer) -> None:
    rows = pa.table(
        {
            "session": ["a", None, "c"],
            "condition": pa.array([None, "WT", "WT"]),
            "trial_num": pa.array([1, 2, None]),
            "frequency": pa.array([None, 1.5, None], pa.float64()),
            # An array of BigQuery is empty where another table's is null.
            "trace": pa.array([[1.0], None, [np.nan]], pa.list_(pa.float64())),
        }
    )
    server.put(NAME, rows)
    source = BigQuerySource(URI, endpoint=server.endpoint)
    found = [
        row for split in source.splits(1) for b in source.read(split, 2) for row in b.to_pylist()
    ]
    assert str(found) == str(as_bigquery(rows).select(list(source.columns)).to_pylist())


def test_row_restriction(table: pa.Table, server: BigQueryServer) -> None:
    selection = Selection(row_restriction="trial_num >= 15 AND session != 's.3/a b'")
    source = BigQuerySource(URI, selection=selection, endpoint=server.endpoint)
    expected = [
        (row["session"], row["trial_num"])
        for row in table.drop_columns("trace").to_pylist()
        if row["trial_num"] >= 15 and row["session"] != "s.3/a b"
    ]
    rows = read_all(source)
    found = list(zip(rows["session"].to_pylist(), rows["trial_num"].to_pylist(), strict=True))
    assert sorted(found) == sorted(expected)
    assert source.n_rows == len(expected) == source.read_columns(["session"]).num_rows
    assert source.row_bytes == pytest.approx(8 * tables.N_SAMPLES, rel=0.05)


def test_a_table_that_changes_is_read_as_it_was(table: pa.Table, server: BigQueryServer) -> None:
    source = BigQuerySource(URI, endpoint=server.endpoint)
    server.put(NAME, table.slice(0, 20), datetime.now(UTC))
    assert read_all(source).num_rows == source.read_columns(["session"]).num_rows == 160
    assert source.snapshot_time == "2026-03-02T09:30:00.250000+00:00"
    now = BigQuerySource(URI, endpoint=server.endpoint)
    assert now.n_rows == 20
    assert now.identity() != source.identity()

    then = Selection(snapshot_time=MONDAY + timedelta(days=1))
    past = BigQuerySource(URI, selection=then, endpoint=server.endpoint)
    assert past.snapshot_time == "2026-03-03T09:30:00.250000+00:00"
    assert read_all(past).equals(read_all(source))


def test_an_unchanged_table_is_the_same_source(server: BigQueryServer) -> None:
    first, second = (BigQuerySource(URI, endpoint=server.endpoint) for _ in range(2))
    assert first.identity() == second.identity()
    assert first.selection() == second.selection()


def test_a_stream_gives_the_same_batches_however_the_server_groups_its_rows(
    server: BigQueryServer,
) -> None:
    source = BigQuerySource(URI, endpoint=server.endpoint)
    readings = []
    for server.message_rows in (7, 3, 100):
        readings.append([batch for split in source.splits(1) for batch in source.read(split, 9)])
    assert {batch.num_rows for batch in readings[0]} == {9, 53 % 9, 54 % 9} - {0}
    for reading in readings[1:]:
        assert len(reading) == len(readings[0])
        assert all(a.equals(b) for a, b in zip(reading, readings[0], strict=True))


def test_a_worker_reads_what_it_is_told_of_without_the_streams_of_others(
    server: BigQueryServer,
) -> None:
    server.least_streams = 500
    source = BigQuerySource(URI, endpoint=server.endpoint)
    pickled = pickle.dumps(source)
    assert len(pickled) < 4000
    (stream, *_) = [name for name in source.splits(1) if list(source.read(name, 100))]
    worker = pickle.loads(pickled)  # noqa: S301 (our own)
    assert list(worker.read(stream, 100)) == list(source.read(stream, 100))


def test_a_reader_that_stops_early_leaves_no_stream_open(server: BigQueryServer) -> None:
    source = BigQuerySource(URI, endpoint=server.endpoint)
    server.faults.append(StreamFault("STALL", after=2, times=None))
    reader: Any = source.read(source.splits(1)[0], 5)
    assert next(reader).num_rows == 5
    reader.close()
    assert not any(thread.name == WATCHDOG for thread in threading.enumerate())


def test_without_a_rest_api_the_streams_are_enough(
    server: BigQueryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BIGQUERY_EMULATOR_HOST")
    before = datetime.now(UTC)
    source = BigQuerySource(URI, endpoint=server.endpoint)
    assert read_all(source).num_rows == source.n_rows == 160
    assert source.snapshot_time
    assert before <= datetime.fromisoformat(source.snapshot_time) <= datetime.now(UTC)


def test_reading_is_billed_to_the_project_of_the_environment(
    server: BigQueryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    BigQuerySource(URI, endpoint=server.endpoint)
    assert {request.parent for request in server.sessions} == {"projects/lab-1"}
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "ours")
    server.sessions.clear()
    BigQuerySource(URI, endpoint=server.endpoint)
    assert {request.parent for request in server.sessions} == {"projects/ours"}


# --- Streams that break ---------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 3, 100])
@pytest.mark.parametrize(
    "action",
    [
        *("UNAVAILABLE", "INTERNAL", "ABORTED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"),
        *("UNKNOWN", RST_STREAM, STALL, REPEAT),
    ],
)
def test_every_row_once_wherever_a_stream_breaks(
    table: pa.Table, server: BigQueryServer, action: str, after: int
) -> None:
    patience = Patience(stall=0.1, first_delay=0.01, longest_delay=0.01)
    source = BigQuerySource(URI, endpoint=server.endpoint, patience=patience)
    server.faults.append(StreamFault(action, after=after, times=2))
    rows = read_all(source)
    assert server.faults[0].times == 0
    assert rows.equals(by_trial(table).select(rows.column_names))


def test_what_a_server_asks_is_heard(server: BigQueryServer) -> None:
    source = BigQuerySource(URI, endpoint=server.endpoint)
    server.faults.append(StreamFault("RESOURCE_EXHAUSTED", retry_delay=0.25))
    client = read_client(server.endpoint)
    stream = read_stream(client, source.splits(1)[0], 0, pa.schema([]), 60.0, lambda *_: None)
    with pytest.raises(BrokenStreamError) as caught:
        next(stream)
    assert (caught.value.cause, caught.value.delay) == ("resource_exhausted", 0.25)


# --- Queries --------------------------------------------------------------------------------------


def ask(server: BigQueryServer, table: pa.Table, query: str = QUERY) -> BigQuerySource:
    server.queries[QUERY] = [NAME], lambda: table.filter(pa.compute.field("trial_num") < 15)
    selection = Selection(query=query)
    return BigQuerySource("bq://lab-1.scratch", selection=selection, endpoint=server.endpoint)


def test_a_query_is_read_from_a_table_that_expires(table: pa.Table, server: BigQueryServer) -> None:
    source = ask(server, table, f"{QUERY} ;\n")
    assert set(read_all(source)["trial_num"].to_pylist()) == {10, 11, 12, 13, 14}
    (name,) = server.tables.keys() - {NAME}
    assert name.startswith("lab-1.scratch.lfp_query_")
    assert source.uri == f"bq://{name}"
    expires = server.tables[name].expires
    assert expires
    assert timedelta(hours=23) < expires - datetime.now(UTC) <= timedelta(hours=24)
    # What the query reads has not changed since.
    assert source.snapshot_time == "2026-03-02T09:30:00.250000+00:00"
    assert source.selection()["bq_query"] == f"{QUERY} ;\n"


def test_a_query_of_unchanged_tables_is_the_same_source(
    table: pa.Table, server: BigQueryServer
) -> None:
    first = ask(server, table)
    server.tables[first.uri.removeprefix("bq://")].expires = datetime.now(UTC) + timedelta(hours=7)
    again = ask(server, table)
    assert again.identity() == first.identity()
    assert len(server.tables) == 2
    expires = server.tables[first.uri.removeprefix("bq://")].expires
    assert expires
    assert expires - datetime.now(UTC) > timedelta(hours=23)

    server.put(NAME, table.slice(0, 50))
    changed = ask(server, table.slice(0, 50))
    assert changed.n_rows == 25
    assert changed.identity() != first.identity()


def test_no_request_of_a_query_is_waited_for_without_end(
    table: pa.Table, server: BigQueryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bigquery_tables, "ANSWER_SECONDS", 0.3)
    quick = bigquery_tables._RETRY.with_delay(0.01)
    monkeypatch.setattr(bigquery_tables, "_RETRY", quick)
    # What the client itself takes for the shortest wait for a query.
    monkeypatch.setattr("google.cloud.bigquery.client._MIN_GET_QUERY_RESULTS_TIMEOUT", 0.3)
    name = ask(server, table).uri.removeprefix("bq://")
    # So that its life is made longer, too.
    server.tables[name].expires = datetime.now(UTC) + timedelta(hours=7)
    # Each of the seven requests is answered the second time only.
    server.rest_faults.extend(7 * [None, 200])
    assert ask(server, table).uri == f"bq://{name}"
    assert not server.rest_faults


def test_a_table_that_changes_while_a_query_runs(table: pa.Table, server: BigQueryServer) -> None:
    def run() -> pa.Table:
        server.put(NAME, table.slice(0, 10))
        return table

    server.queries[QUERY] = [NAME], run
    selection = Selection(query=QUERY)
    with pytest.raises(SourceError, match="changed while --bq_query ran"):
        BigQuerySource("bq://lab-1.scratch", selection=selection, endpoint=server.endpoint)


# --- Errors, before any worker starts -------------------------------------------------------------


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("case", "more", "status", "said"),
    [
        ("no table", ["--input", "bq://lab-1.mouse.cortx"], 1, "not found"),
        ("no permission", [], 1, "roles/bigquery.dataViewer"),
        ("no session", [], 1, "roles/bigquery.readSessionUser on the project lab-1"),
        ("missing column", [], 1, "no column 'trace'; name it with --columns trace=COLUMN. It has"),
        ("wrong name", ["--columns", "subject=animal"], 1, "no column 'animal' for 'subject'"),
        ("wrong type", [], 1, "'trace' is decimal128(38, 9), expected list of numbers"),
        ("view", [], 1, "is a view"),
        ("streaming", [], 1, "pass --snapshot_time"),
        ("empty", [], 1, "no rows to read"),
        ("selects none", ["--row_restriction", "trial_num > 99"], 1, "no rows to read"),
        ("bad restriction", ["--row_restriction", "trial_num >"], 1, "Syntax error"),
        ("too early", ["--snapshot_time", "2020-01-01T00:00:00Z"], 1, "was created later"),
        ("no such uri", ["--input", "bq://cortex"], 2, "is not bq://PROJECT.DATASET.TABLE"),
        ("query and table", ["--bq_query", "SELECT 1"], 2, "bq://PROJECT.DATASET, the dataset"),
        ("query not SQL", ["--input", "bq://lab-1.x", "--bq_query", "SELEC"], 1, "Syntax error"),
        ("no select", ["--input", "bq://lab-1.x", "--bq_query", "DROP TABLE t"], 2, "one SELECT"),
        (
            "query and time",
            ["--bq_query", "x", "--snapshot_time", "2026-01-01T00:00Z"],
            2,
            "SYSTEM",
        ),
        ("query and where", ["--bq_query", "x", "--row_restriction", "y"], 2, "write WHERE"),
        (
            "not BigQuery",
            ["--input", "t.parquet", "--row_restriction", "x"],
            2,
            "is for --input bq",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    table: pa.Table,
    server: BigQueryServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    more: list[str],
    status: int,
    said: str,
) -> None:
    if case in ("no permission", "no session"):
        server.forbidden.add(NAME)
    if case == "no session":
        monkeypatch.delenv("BIGQUERY_EMULATOR_HOST")
    if case == "missing column":
        server.put(NAME, table.drop_columns("trace"))
    if case == "wrong type":
        numbers = pa.array([1] * 160).cast(pa.decimal128(38, 9))
        server.put(NAME, table.set_column(6, "trace", numbers))
    if case == "empty":
        server.put(NAME, table.slice(0, 0))
    server.tables[NAME].kind = "VIEW" if case == "view" else "TABLE"
    server.tables[NAME].streaming = case == "streaming"
    server.queries["DROP TABLE t"] = [NAME], lambda: table
    output = tmp_path / "out"
    if "--input" in more and "parquet" in more[1]:
        command = ["preprocess", "--bigquery_endpoint", server.endpoint]
    else:
        command = ["preprocess", *flags(server)]
    assert main([*command, "--output", str(output), *tables.FLAGS, *more]) == status
    assert said in one_line(capsys)
    assert not output.exists()


@pytest.mark.parametrize("time", ["yesterday", "2026-01-01T00:00:00", "2999-01-01T00:00:00Z"])
def test_a_time_that_makes_no_sense(time: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--input", URI, "--snapshot_time", time])
    assert ended.value.code == 2
    assert f"--snapshot_time: {time}" in capsys.readouterr().err


def test_a_streaming_table_can_be_read_at_a_given_time(server: BigQueryServer) -> None:
    server.tables[NAME].streaming = True
    selection = Selection(snapshot_time=MONDAY + timedelta(hours=1))
    assert BigQuerySource(URI, selection=selection, endpoint=server.endpoint).n_rows == 160


def test_a_server_that_is_not_there(
    server: BigQueryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BIGQUERY_EMULATOR_HOST")
    monkeypatch.setattr("beam_pipeline.sources.bigquery_streams.CREATE_SECONDS", 0.5)
    # A port that was just given back.
    closed = BigQueryServer()
    closed.close()
    with pytest.raises(SourceError, match=r"^bq://lab-1.mouse.cortex: BigQuery does not answer: "):
        BigQuerySource(URI, endpoint=closed.endpoint)


def test_a_server_that_stumbles_while_it_is_asked(server: BigQueryServer) -> None:
    server.create_faults += ["UNAVAILABLE", "INTERNAL"]
    server.rest_faults.append(503)
    assert BigQuerySource(URI, endpoint=server.endpoint).n_rows == 160


def test_a_session_that_has_expired_is_no_mystery(server: BigQueryServer) -> None:
    source = BigQuerySource(URI, endpoint=server.endpoint)
    server.expire_sessions()
    with pytest.raises(SourceError, match=r"the read session is gone .* lives for six hours"):
        read_all(source)


def test_a_stream_that_never_recovers_is_given_up(server: BigQueryServer) -> None:
    patience = Patience(first_delay=0.01, longest_delay=0.02, give_up=0.2)
    source = BigQuerySource(URI, endpoint=server.endpoint, patience=patience)
    server.faults.append(StreamFault("UNAVAILABLE", after=1, times=None))
    server.message_rows = 1
    with pytest.raises(SourceError, match=r"gave up after .* the last problem was unavailable"):
        list(source.read(source.splits(1)[0], 5))


def test_a_query_without_a_place_to_run(
    server: BigQueryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BIGQUERY_EMULATOR_HOST")
    with pytest.raises(SourceError, match="BIGQUERY_EMULATOR_HOST"):
        ask(server, tables.make_table(2, 2))


def test_names_of_tables() -> None:
    with pytest.raises(UsageError):
        BigQuerySource("bq://p.d.t.x", endpoint="127.0.0.1:1")
