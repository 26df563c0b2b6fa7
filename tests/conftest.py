"""Servers on loopback that stand in for Google's, and the variables that lead clients to them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.servers.gcs import GcsServer
from tests.servers.iam import IamServer
from tests.servers.metadata import PROJECT, MetadataServer

if TYPE_CHECKING:
    from tests.servers.bigquery import BigQueryServer

_metadata = MetadataServer()
# google.auth reads them once, when a test module first imports it.
os.environ.update(_metadata.environment)
# A shell starts what runs in the background without Ctrl-C, which the processes that tests start
# would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Train on one thread: the order of additions, and so the weights, depend on their number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[GcsServer]:
    """One server for all tests, so that clients cached by a process stay good."""
    server = GcsServer()
    yield server
    server.close()


@pytest.fixture
def gcs(gcs_server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[GcsServer]:
    """Cloud Storage on loopback with one empty bucket, ``gs://lab``, where all clients go."""
    gcs_server.reset()
    gcs_server.create_bucket("lab")
    for name, value in {**gcs_server.environment, "GOOGLE_CLOUD_PROJECT": PROJECT}.items():
        monkeypatch.setenv(name, value)
    yield gcs_server
    gcs_server.reset()
    if "gcsfs" in sys.modules:
        # It remembers listings.
        sys.modules["gcsfs"].GCSFileSystem.clear_instance_cache()


@pytest.fixture
def iam(monkeypatch: pytest.MonkeyPatch) -> Iterator[IamServer]:
    """The IAM service on loopback without an account, where the launchers ask."""
    server = IamServer()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server
    server.close()


@pytest.fixture
def bigquery(monkeypatch: pytest.MonkeyPatch) -> Iterator[BigQueryServer]:
    """BigQuery on loopback without a table, where all clients go."""
    # Late: gRPC takes a second to load.
    from tests.servers.bigquery import BigQueryServer

    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    server = BigQueryServer()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server
    server.close()
