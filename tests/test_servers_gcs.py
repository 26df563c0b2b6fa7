"""The loopback Cloud Storage, seen through the clients that the tests use it with."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest
from google.api_core.exceptions import BadRequest, NotFound, PreconditionFailed
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from tests.servers import faults
from tests.servers.gcs import GcsServer

BIG = bytes(range(256)) * 4096 * 3


@pytest.fixture
def bucket(gcs: GcsServer) -> storage.Bucket:
    return storage.Client("lab-test", AnonymousCredentials()).bucket("lab")


def test_one_request_and_resumable_uploads_keep_every_byte(bucket, gcs):
    bucket.blob("small one/ü.txt").upload_from_string(b"hello", if_generation_match=0)
    large = bucket.blob("large", chunk_size=1 << 20)
    large.upload_from_file(io.BytesIO(BIG), checksum="crc32c")
    with bucket.blob("streamed").open("wb", chunk_size=1 << 20) as file:
        file.write(BIG)
    assert gcs.read("gs://lab/small one/ü.txt") == b"hello"
    assert gcs.read("gs://lab/large") == gcs.read("gs://lab/streamed") == BIG
    assert bucket.blob("large").download_as_bytes(start=1000, end=1999) == BIG[1000:2000]
    assert bucket.blob("large").download_as_bytes() == BIG


def test_of_racing_writers_with_a_precondition_one_wins(bucket):
    barrier = threading.Barrier(8)

    def write(index: int) -> bool:
        barrier.wait()
        try:
            bucket.blob("raced").upload_from_string(str(index), if_generation_match=0)
        except PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(8)))
    assert sum(won) == 1
    assert bucket.blob("raced").download_as_bytes() == str(won.index(True)).encode()


def test_listing_pages_prefixes_copy_compose_and_batches(bucket, gcs):
    for name in ("a/1", "a/2", "a/b/3", "c"):
        gcs.put(f"gs://lab/{name}", name.encode())
    client = bucket.client
    assert [blob.name for blob in client.list_blobs("lab", page_size=2)] == [
        "a/1", "a/2", "a/b/3", "c",
    ]  # fmt: skip
    listing = client.list_blobs("lab", prefix="a/", delimiter="/")
    assert [blob.name for blob in listing] == ["a/1", "a/2"]
    assert listing.prefixes == {"a/b/"}
    bucket.blob("both").compose([bucket.blob("a/1"), bucket.blob("c")])
    bucket.blob("copied").rewrite(bucket.blob("c"), if_generation_match=0)
    bucket.copy_blob(bucket.blob("c"), bucket, "c2")
    assert [gcs.read(f"gs://lab/{name}") for name in ("both", "copied", "c2")] == [
        b"a/1c", b"c", b"c",
    ]  # fmt: skip
    with client.batch():
        for name in ("a/1", "a/2"):
            bucket.blob(name).delete()
    assert not gcs.objects.keys() & {"gs://lab/a/1", "gs://lab/a/2"}
    with pytest.raises(NotFound):
        bucket.blob("a/1").download_as_bytes()


def test_a_wrong_checksum_is_refused(bucket, gcs):
    blob = bucket.blob("sum")
    blob.crc32c = "AAAAAA=="
    with pytest.raises(BadRequest):
        blob.upload_from_string(b"content", checksum=None)
    assert not gcs.objects


def test_the_client_recovers_from_passing_faults(bucket, gcs):
    met = [
        gcs.faults.add("POST", "uploadType=multipart", faults.STATUS, status=503),
        gcs.faults.add("POST", "uploadType=multipart", faults.RESET),
        gcs.faults.add("PUT", "upload_id", faults.STATUS, status=503),
        gcs.faults.add("PUT", "upload_id", faults.LOSE, skip=2),
        gcs.faults.add("GET", "/download/.*big", faults.STATUS, status=429),
        gcs.faults.add("GET", "/download/.*big", faults.TRUNCATE),
    ]
    bucket.blob("small").upload_from_string(b"small", if_generation_match=0)
    big = bucket.blob("big", chunk_size=1 << 20)
    big.upload_from_file(io.BytesIO(BIG), if_generation_match=0)
    assert bucket.blob("big").download_as_bytes() == BIG
    assert [fault.hits for fault in met] == [1] * len(met)
    assert gcs.objects == {"gs://lab/small": b"small", "gs://lab/big": BIG}


def test_the_client_does_not_recover_from_a_chunk_kept_by_half(bucket, gcs):
    gcs.faults.add("PUT", "upload_id", faults.PERSIST_HALF)
    with pytest.raises(ValueError, match="unexpected state"):
        bucket.blob("big", chunk_size=1 << 20).upload_from_file(io.BytesIO(BIG))
    assert not gcs.objects


def test_a_lost_answer_makes_a_conditional_write_look_refused(bucket, gcs):
    gcs.faults.add("POST", "uploadType=multipart", faults.LOSE)
    with pytest.raises(PreconditionFailed):
        bucket.blob("won").upload_from_string(b"ours", if_generation_match=0)
    assert gcs.read("gs://lab/won") == b"ours"


def test_gcsfs_writes_lists_and_reads(gcs):
    fs = fsspec.filesystem("gs")
    with fs.open("gs://lab/run/big", "wb") as file:
        file.write(BIG)
    fs.pipe("gs://lab/run/small", b"small")
    assert gcs.list("gs://lab/run") == {"big": BIG, "small": b"small"}
    assert sorted(fs.ls("gs://lab/run", detail=False)) == ["lab/run/big", "lab/run/small"]
    assert fs.cat_file("gs://lab/run/big", start=10, end=20) == BIG[10:20]
    with fsspec.open("gs://lab/run/big", "rb") as file:
        assert file.read() == BIG
    fs.copy("gs://lab/run/small", "gs://lab/run/copy")
    fs.rm("gs://lab/run", recursive=True)
    assert not gcs.objects


def test_beam_writes_and_reads_through_its_file_systems(gcs):
    from apache_beam.io.filesystems import FileSystems

    with FileSystems.create("gs://lab/beam/file") as file:
        file.write(BIG)
    with FileSystems.open("gs://lab/beam/file") as file:
        assert file.read() == BIG
    assert [
        metadata.path for metadata in FileSystems.match(["gs://lab/beam/*"])[0].metadata_list
    ] == ["gs://lab/beam/file"]
    FileSystems.rename(["gs://lab/beam/file"], ["gs://lab/beam/moved"])
    assert gcs.list("gs://lab/beam") == {"moved": BIG}
    FileSystems.delete(["gs://lab/beam/"])
    assert not gcs.objects
