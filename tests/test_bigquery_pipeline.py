"""Whole commands on BigQuery: the same bytes as from Parquet, whatever befalls the streams."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from apache_beam.io.gcp import bigquery as beam_bigquery
from apache_beam.io.gcp import bigquery_tools
from apache_beam.io.gcp.internal.clients.bigquery import BigqueryV2

from beam_pipeline.__main__ import main
from beam_pipeline.sources.bigquery_streams import read_client
from beam_pipeline.sources.resuming import Patience
from tests import tables
from tests.servers.bigquery import REPEAT, REWIND, RST_STREAM, STALL, BigQueryServer, StreamFault
from tests.test_preprocess import digests, manifest_of

NAME = "lab-1.mouse.cortex"
URI = f"bq://{NAME}"
MONDAY = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
PATIENCE = Patience(stall=0.5, first_delay=0.01, longest_delay=0.05, give_up=30.0)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return bad_rows(tables.make_table(dtype="float64"))


def bad_rows(table: pa.Table) -> pa.Table:
    table = tables.replace_trace(table, 3, [float("nan")] * tables.N_SAMPLES)
    table = tables.replace_trace(table, 77, tables.traces_of(tables.make_table())[78].tolist())
    conditions = table["condition"].to_pylist()
    conditions[100] = None
    return table.set_column(2, "condition", pa.array(conditions))


@pytest.fixture(scope="module")
def expected(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of the same rows in Parquet."""
    folder = tmp_path_factory.mktemp("parquet")
    return from_parquet(table, folder)


def from_parquet(table: pa.Table, folder: Path) -> Path:
    source = str(tables.write(table, folder / "table.parquet"))
    run("--input", source, "--output", str(folder / "out"))
    return folder / "out"


def run(*flags: str) -> None:
    assert main(["preprocess", *flags, *tables.FLAGS, *tables.IN_PROCESS]) == 0


@pytest.fixture
def server(table: pa.Table, bigquery: BigQueryServer) -> BigQueryServer:
    bigquery.put(NAME, table, MONDAY)
    return bigquery


def assert_same_dataset(found: Path, expected: Path) -> None:
    """Every byte but those that name the source."""
    files = [digests(folder) for folder in (found, expected)]
    for name in ("dataset.json", "README.md"):
        assert all(listed.pop(name) for listed in files)
    assert files[0] == files[1]
    options = "input|snapshot_time|row_restriction|bq_query"
    of_source = re.compile(rf"^\| ({options}) \|.*\n|Source: `\S+`", re.MULTILINE)
    cards = [of_source.sub("", (folder / "README.md").read_text()) for folder in (found, expected)]
    assert cards[0] == cards[1]
    manifests = [manifest_of(folder) for folder in (found, expected)]
    for manifest in manifests:
        for field in ("source", "fingerprint", "sha256"):
            del manifest[field]
        del manifest["files"]["README.md"]
        for option in options.split("|"):
            manifest["options"].pop(option, None)
    assert manifests[0] == manifests[1]


FAULTS = {
    "none": ([], {}),
    "errors that pass": (
        [
            StreamFault("UNAVAILABLE", after=2, times=3),
            StreamFault("INTERNAL", after=1, times=5),
            StreamFault("ABORTED", times=2),
            StreamFault("RESOURCE_EXHAUSTED", times=2, retry_delay=0.1),
            StreamFault(RST_STREAM, after=3, times=2),
        ],
        {
            "stream_breaks_unavailable": 3,
            "stream_breaks_internal": 5,
            "stream_breaks_aborted": 2,
            "stream_breaks_resource_exhausted": 2,
            "stream_breaks_cancelled": 2,
        },
    ),
    "stalled streams and messages twice": (
        [StreamFault(STALL), StreamFault(STALL, after=1), StreamFault(REPEAT, after=2, times=2)],
        {"stream_breaks_stalled": 2, "stream_messages_repeated": 2},
    ),
    "rows from before the offset": (
        [
            StreamFault("UNAVAILABLE", after=4, times=3, resumed=False),
            StreamFault(REWIND, rows=9, times=3, resumed=True),
        ],
        {"stream_breaks_unavailable": 3, "stream_rows_repeated": 27},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_same_bytes_as_from_parquet_under_every_fault(
    server: BigQueryServer,
    expected: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    monkeypatch.setattr("beam_pipeline.sources.bigquery.Patience", lambda: PATIENCE)
    faults, counters = FAULTS[fault]
    # Not where rows are counted, before there are workers.
    server.faults += [replace(fault, column="trace") for fault in faults]
    command = ["--input", URI, "--bigquery_endpoint", server.endpoint]
    run(*command, "--output", str(tmp_path / "out"))

    assert all(fault.times == 0 for fault in server.faults)
    assert_same_dataset(tmp_path / "out", expected)
    counted = json.loads((tmp_path / "out" / "run.json").read_text())["counters"]
    assert {k: v for k, v in counted.items() if k.startswith("stream_")} == counters
    assert counted["rows_read"] == 160


def test_the_same_bytes_by_two_worker_processes(
    server: BigQueryServer, expected: Path, tmp_path: Path
) -> None:
    server.faults.append(StreamFault("UNAVAILABLE", after=1, times=2, column="trace"))
    command = ["preprocess", "--input", URI, "--bigquery_endpoint", server.endpoint]
    workers = ["--direct_num_workers", "2", "--direct_running_mode", "multi_processing"]
    assert main([*command, "--output", str(tmp_path / "out"), *tables.FLAGS, *workers]) == 0
    assert_same_dataset(tmp_path / "out", expected)


def test_a_stream_that_is_gone_fails_the_run_in_one_line(
    server: BigQueryServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults.append(StreamFault("FAILED_PRECONDITION", after=1, column="trace"))
    command = ["preprocess", "--input", URI, "--bigquery_endpoint", server.endpoint]
    output = tmp_path / "out"
    flags = ["--output", str(output), *tables.FLAGS, *tables.IN_PROCESS]
    assert main([*command, *flags]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert f"{URI}: the read session is gone (FAILED_PRECONDITION on demand)" in line
    assert not (output / "dataset.json").exists()


def test_text_with_nulls_and_integer_sessions(server: BigQueryServer, tmp_path: Path) -> None:
    table = tables.make_table(dtype="float64")
    texts = [json.dumps(row.tolist()) for row in tables.traces_of(table)]
    texts[5], numbers = texts[5][:400] + "...", table["trial_num"].to_pylist()
    numbers[8] = None
    changed = {
        "session": pa.array(np.repeat(np.arange(16), 10)),
        "trial_num": pa.array(numbers),
        "trace": pa.array([None if row == 12 else text for row, text in enumerate(texts)]),
    }
    for name, column in changed.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    server.put(NAME, table)
    output = str(tmp_path / "out")
    run("--input", URI, "--bigquery_endpoint", server.endpoint, "--output", output)
    assert manifest_of(tmp_path / "out")["rejects"] == {
        "empty_trace": 1,
        "missing_id": 1,
        "truncated_trace": 1,
    }
    assert_same_dataset(tmp_path / "out", from_parquet(table, tmp_path / "parquet"))


def test_manifest_and_fingerprint_say_which_rows_of_which_table(
    server: BigQueryServer, table: pa.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    given = ["--input", URI, "--bigquery_endpoint", server.endpoint, "--output", str(output)]
    run(*given, "--row_restriction", "trial_num < 19")
    manifest = manifest_of(output)
    time = "2026-03-02T09:30:00+00:00"
    assert manifest["source"] == {
        "kind": "bigquery",
        "uri": URI,
        "rows": 144,
        "snapshot_time": time,
    }
    assert manifest["options"]["input"] == URI
    assert manifest["options"]["snapshot_time"] == time
    assert manifest["options"]["row_restriction"] == "trial_num < 19"
    assert main(["verify", str(output)]) == 0

    run(*given, "--row_restriction", "trial_num < 19")
    assert "nothing to do" in capsys.readouterr().out
    command = ["preprocess", *given, *tables.FLAGS, *tables.IN_PROCESS]
    assert main([*command, "--row_restriction", "trial_num < 18"]) == 1
    assert "trial_num < 19 -> trial_num < 18" in capsys.readouterr().err
    server.put(NAME, table.slice(0, 150), datetime(2026, 3, 3, tzinfo=UTC))
    assert main([*command, "--row_restriction", "trial_num < 19"]) == 1
    assert f"snapshot_time {time} -> 2026-03-03T00:00:00+00:00" in capsys.readouterr().err
    # The state that the dataset was made of can still be asked for.
    run(*given, "--row_restriction", "trial_num < 19", "--snapshot_time", time)
    assert "nothing to do" in capsys.readouterr().out


def test_the_result_of_a_query(server: BigQueryServer, table: pa.Table, tmp_path: Path) -> None:
    selected = table.filter(pc.field("trial_num") < 18)
    query = "SELECT *\nFROM `lab-1.mouse.cortex`\nWHERE trial_num < 18 OR (1 | 2) = 0"
    server.queries[query] = [NAME], lambda: selected
    given = ["--input", "bq://lab-1.scratch", "--bigquery_endpoint", server.endpoint]
    run(*given, "--bq_query", query, "--output", str(tmp_path / "out"))
    assert_same_dataset(tmp_path / "out", from_parquet(selected, tmp_path / "parquet"))
    assert manifest_of(tmp_path / "out")["options"]["bq_query"] == query


def test_plan_audit_and_folds_see_the_same_table(
    server: BigQueryServer, table: pa.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet = ["--input", str(tables.write(table, tmp_path / "t.parquet"))]
    bigquery = ["--input", URI, "--bigquery_endpoint", server.endpoint]
    seen: dict[str, list[Any]] = {"plan": [], "audit": [], "folds": []}
    for name, source in (("parquet", parquet), ("bigquery", bigquery)):
        capsys.readouterr()
        assert main(["plan", *source, *tables.FLAGS, "--max_reject_fraction", "1"]) == 0
        # But for the name, the rows sampled, and what was timed.
        said = capsys.readouterr().out.splitlines()
        seen["plan"].append([line for line in said if not re.match("bq:|/|Sample|  |Exp", line)])
        output = tmp_path / name
        audit = ["audit", *source, "--sfreq", "250", "--onset", "1", "--output", str(output)]
        assert main(audit) == 0
        found = json.loads((output / "audit.json").read_text())
        seen["audit"].append({k: found[k] for k in ("rows", "accepted", "rejects", "stimuli")})
        assert main(["folds", *source, "--n_folds", "3", "--output", f"{output}-folds"]) == 0
        files = sorted(Path(f"{output}-folds").glob("*.csv"))
        seen["folds"].append([file.read_text() for file in files])
    assert len(seen["folds"][0]) == 3
    assert len(seen["plan"][0]) > 10
    for first, second in seen.values():
        assert first == second


# --- The server, judged by Beam's own reader ------------------------------------------------------


@pytest.mark.parametrize("native", [False, True], ids=["avro", "arrow"])
def test_beam_reads_the_same_rows_from_the_server(
    server: BigQueryServer, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    import apache_beam as beam
    from apache_beam.testing.util import assert_that, equal_to

    small = tables.make_table(2, 9, dtype="float64")
    server.put(NAME, small)
    point_beam_at(server, monkeypatch)
    expected = small.to_pylist()
    for row in expected:
        row["trace"] = hash(tuple(row["trace"]))
    with beam.Pipeline("FnApiRunner") as pipeline:
        rows = pipeline | beam.io.ReadFromBigQuery(
            table=NAME.replace(".", ":", 1),
            method=beam.io.ReadFromBigQuery.Method.DIRECT_READ,
            project="lab-1",
            use_native_datetime=native,
        )
        hashed = rows | beam.Map(lambda row: row | {"trace": hash(tuple(row["trace"]))})
        assert_that(hashed, equal_to(expected))


def point_beam_at(server: BigQueryServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Beam's clients, which take no endpoint, talk to the server."""
    from google.cloud.bigquery_storage_v1 import BigQueryReadClient

    transport = read_client(server.endpoint).transport
    monkeypatch.setattr(
        beam_bigquery.bq_storage,
        "BigQueryReadClient",
        lambda: BigQueryReadClient(transport=transport),
    )
    url = f"{server.environment['BIGQUERY_EMULATOR_HOST']}/bigquery/v2/"
    monkeypatch.setattr(
        bigquery_tools.BigQueryWrapper,
        "_bigquery_client",
        staticmethod(lambda options: BigqueryV2(url=url, get_credentials=False)),
    )
