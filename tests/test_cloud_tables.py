"""What the passes read on gs://: tables in Parquet, and the segments between the passes."""

import glob
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.cloud.storage.retry import DEFAULT_RETRY

from beam_pipeline.output.cloud_segments import CloudSegmentStore, nearby
from beam_pipeline.output.segments import Pointers
from beam_pipeline.sources import SourceError
from beam_pipeline.sources.parquet import ParquetSource
from beam_pipeline.sources.parquet_files import find_files, matches
from beam_pipeline.splits import SplitError
from beam_pipeline.splits_file import read_splits_file
from beam_pipeline.storage.cloud_path import CloudPath
from tests import tables
from tests.servers import faults
from tests.servers.gcs import GcsServer

N_SAMPLES = 1000
NAMES = ["a.parquet", "b.parquet", "x/c.parquet", "x/y/d.parquet", "x/.e.parquet", "x/notes.txt"]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = DEFAULT_RETRY.with_delay(initial=0.01, maximum=0.02).with_timeout(20.0)
    monkeypatch.setattr("beam_pipeline.storage.cloud_path.retry", lambda: policy)


def put_table(gcs: GcsServer, url: str, table: pa.Table, row_group_size: int | None = None) -> None:
    content = pa.BufferOutputStream()
    pq.write_table(table, content, row_group_size=row_group_size)
    gcs.put(url, content.getvalue().to_pybytes())


def read_all(source: ParquetSource) -> pa.Table:
    pieces = source.splits(7)
    return pa.Table.from_batches([b for piece in pieces for b in source.read(piece, 13)])


def test_a_table_on_gs_is_read_as_it_stands(gcs):
    table = tables.make_table(sessions=6)
    put_table(gcs, "gs://lab/in/a.parquet", table.slice(0, 25), row_group_size=9)
    put_table(gcs, "gs://lab/in/deep/b.parquet", table.slice(25))
    gcs.put("gs://lab/in/_SUCCESS.parquet", b"")
    gcs.put("gs://lab/in/", b"")
    met = [
        gcs.faults.add("GET", "/download/", action, skip=skip)
        for skip, action in enumerate((faults.RESET, faults.STATUS, faults.TRUNCATE))
    ]
    source = ParquetSource("gs://lab/in")
    found = read_all(source)
    assert [fault.hits for fault in met] == [1, 1, 1]
    assert found.select(table.column_names).cast(table.schema).equals(table)
    small = source.read_columns(["session", "trial_num"])
    assert small["session"].to_pylist() == table["session"].to_pylist()
    assert source.identity() == [
        [f"gs://lab/{name}", len(stored.content), stored.generation]
        for name, stored in gcs.store.buckets["lab"].items()
        if name.endswith(("a.parquet", "b.parquet"))
    ]


def test_a_file_that_is_replaced_while_it_is_read_is_an_error(gcs):
    table = tables.make_table(sessions=2)
    put_table(gcs, "gs://lab/a.parquet", table)
    source = ParquetSource("gs://lab/a.parquet")
    put_table(gcs, "gs://lab/a.parquet", table)
    with pytest.raises(OSError, match="replaced or removed by another program"):
        read_all(source)


def test_a_flipped_bit_in_a_page_with_a_checksum_is_an_error(gcs):
    content = pa.BufferOutputStream()
    pq.write_table(
        tables.make_table(sessions=2), content, write_page_checksum=True, compression="none"
    )
    damaged = bytearray(content.getvalue().to_pybytes())
    damaged[len(damaged) // 2] ^= 16
    gcs.put("gs://lab/a.parquet", bytes(damaged))
    source = ParquetSource("gs://lab/a.parquet")
    with pytest.raises(OSError, match="CRC checksum verification failed"):
        read_all(source)


def test_a_table_that_may_not_be_read_is_not_called_damaged(gcs):
    put_table(gcs, "gs://lab/a.parquet", tables.make_table(sessions=2))
    gcs.faults.add("GET", "/download/", faults.STATUS, status=403, times=None)
    with pytest.raises(PermissionError, match=r"gs://lab/a\.parquet"):
        ParquetSource("gs://lab/a.parquet")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("gs://lab/nowhere", "no such object or folder"),
        ("gs://lab/*.parquet", "no object matches"),
        ("gs://lab/notes", "the folder has no \\*.parquet object"),
        ("gs://lab/notes/a.txt", "not a readable Parquet file"),
    ],
)
def test_a_table_that_is_not_there_is_said(gcs, uri, message):
    gcs.put("gs://lab/notes/a.txt", b"text")
    with pytest.raises(SourceError, match=message):
        ParquetSource(uri)


@pytest.mark.parametrize(
    "pattern",
    ["*.parquet", "x/*", "**/*.parquet", "x/**", "[ab].parquet", "?.parquet", "x/*/*", "*/.e*"],
)
def test_a_glob_finds_on_gs_what_it_finds_on_a_disk(gcs, tmp_path, pattern):
    for name in NAMES:
        gcs.put(f"gs://lab/t/{name}", b"content")
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content")
    wanted = glob.glob(pattern, root_dir=tmp_path, recursive=True)  # noqa: PTH207
    expected = sorted(name for name in wanted if Path(tmp_path, name).is_file())
    assert [name for name in sorted(NAMES) if matches(name.split("/"), pattern.split("/"))] == (
        expected
    )
    assert [file.path for file in find_files(f"gs://lab/t/{pattern}")] == [
        f"gs://lab/t/{name}" for name in expected
    ]


def test_a_splits_file_may_lie_on_gs(gcs):
    gcs.put("gs://lab/splits.csv", b"session,split\na,train\nb,val\n")
    assert read_splits_file("gs://lab/splits.csv").split_of == {"a": "train", "b": "val"}
    with pytest.raises(SplitError, match="cannot be read: No such object"):
        read_splits_file("gs://lab/other.csv")


# Segments


def make_store(dtype: str = "float32") -> CloudSegmentStore:
    return CloudSegmentStore(CloudPath("lab", "segments"), N_SAMPLES, dtype)


def write_chunks(store: CloudSegmentStore) -> tuple[Pointers, np.ndarray]:
    rng = np.random.default_rng(0)
    written, parts = [], []
    for chunk in (0, 70_000):
        with store.writer(chunk) as writer:
            for n in (30, 0, 41):
                segments = rng.standard_normal((n, N_SAMPLES)).astype(store.dtype)
                parts.append(writer.write(segments))
                written.append(segments)
    return Pointers.concatenate(parts), np.concatenate(written)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_segments_are_read_back_in_any_order(gcs, dtype):
    store = make_store(dtype)
    pointers, segments = write_chunks(store)
    rng = np.random.default_rng(1)
    n = len(pointers)
    for order in (np.arange(n), rng.permutation(n), np.array([3, 3, n - 1]), np.array([], int)):
        read = store.read(pointers[order])
        assert read.dtype == dtype
        np.testing.assert_array_equal(read, segments[order])


def test_two_attempts_at_a_chunk_do_not_meet(gcs):
    store = make_store()
    values = [np.full((2, N_SAMPLES), value, np.float32) for value in (1.0, 2.0)]
    with store.writer(5) as late, store.writer(5) as winner:
        pointers = winner.write(values[1])
        late.write(values[0])
    np.testing.assert_array_equal(store.read(pointers), values[1])
    assert len(gcs.list("gs://lab/segments")) == 2


def test_near_rows_come_in_one_request_and_far_ones_in_their_own(gcs):
    store = make_store()
    pointers, segments = write_chunks(store)
    gcs.requests.clear()
    rows = np.array([70, 0, 3, 1, 141])
    np.testing.assert_array_equal(store.read(pointers[rows]), segments[rows])
    # A row has 4 kB, and 256 kB that nobody asked for cost less than a request.
    assert len(gcs.requests) == 3
    groups = [sorted(rows[group].tolist()) for group in nearby(pointers[rows], 256_000 // 4_004)]
    assert groups == [[0, 1, 3], [70], [141]]


def test_damaged_segments_are_fetched_again_and_never_used(gcs):
    store = make_store()
    pointers, segments = write_chunks(store)
    gcs.faults.add("GET", "/download/", faults.CORRUPT, times=2)
    np.testing.assert_array_equal(store.read(pointers), segments)
    gcs.faults.add("GET", "/download/", faults.CORRUPT, times=None)
    with pytest.raises(OSError, match="do not fit their checksums"):
        store.read(pointers)


def test_segments_that_are_cut_short_or_gone_are_noticed(gcs):
    store = make_store()
    with store.writer(0) as writer:
        pointers = writer.write(np.ones((2, N_SAMPLES), np.float32))
    beyond = Pointers(pointers.chunk, pointers.row + 1)
    with pytest.raises(OSError, match="ends before row 3"):
        store.read(beyond)
    gcs.store.buckets["lab"].clear()
    with pytest.raises(FileNotFoundError):
        store.read(pointers)


def test_segments_of_an_interrupted_writer_do_not_appear(gcs):
    def interrupted() -> None:
        with make_store().writer(0) as writer:
            writer.write(np.ones((2, N_SAMPLES), np.float32))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert not gcs.objects
