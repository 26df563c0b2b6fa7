"""A worker as Beam's container starts one: it installs what was staged for it, then serves.

Beam's worker pool runs this file as its ``container_executable``. Nothing of the launcher's is in
reach: the working folder is empty, and the package comes from the staged source distribution.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import grpc
from apache_beam.portability.api import (
    beam_artifact_api_pb2,
    beam_artifact_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    beam_runner_api_pb2,
)
from apache_beam.runners.worker.worker_id_interceptor import WorkerIdInterceptor
from google.protobuf.json_format import MessageToJson

PACKAGE = "workflow.tar.gz"


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("id", "logging_endpoint", "artifact_endpoint", "provision_endpoint"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--control_endpoint")
    args = parser.parse_args()
    with Path(__file__).with_name(f"{args.id}.log").open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    folder = Path(tempfile.mkdtemp(prefix=f"{args.id}-"))
    channel = grpc.intercept_channel(
        grpc.insecure_channel(args.provision_endpoint), WorkerIdInterceptor(args.id)
    )
    provision = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
    info = provision.GetProvisionInfo(beam_provision_api_pb2.GetProvisionInfoRequest()).info
    fetch(info.dependencies, args.artifact_endpoint, args.id, folder / "staged")
    site = install_once(folder / "staged" / PACKAGE, Path(__file__).parent)
    environment = {
        **os.environ,
        "PYTHONPATH": str(site),
        "PYTHONSAFEPATH": "1",
        "WORKER_ID": args.id,
        "CONTROL_API_SERVICE_DESCRIPTOR": f'url: "{args.control_endpoint}"',
        "LOGGING_API_SERVICE_DESCRIPTOR": f'url: "{args.logging_endpoint}"',
        "PIPELINE_OPTIONS": MessageToJson(info.pipeline_options),
        "SEMI_PERSISTENT_DIRECTORY": str(folder),
    }
    os.chdir(folder)
    command = [sys.executable, "-m", "apache_beam.runners.worker.sdk_worker_main"]
    os.execve(sys.executable, command, environment)


def fetch(dependencies, endpoint: str, worker_id: str, folder: Path) -> None:
    """Write the staged files into a folder, under their names."""
    folder.mkdir()
    channel = grpc.intercept_channel(
        grpc.insecure_channel(endpoint), WorkerIdInterceptor(worker_id)
    )
    service = beam_artifact_api_pb2_grpc.ArtifactRetrievalServiceStub(channel)
    for dependency in dependencies:
        role = beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(dependency.role_payload)
        request = beam_artifact_api_pb2.GetArtifactRequest(artifact=dependency)
        with (folder / role.staged_name).open("wb") as file:
            for part in service.GetArtifact(request):
                file.write(part.data)


def install_once(package: Path, machine: Path) -> Path:
    """Install a package for all workers of a machine, as the container does, and return where."""
    site = machine / f"site-{hashlib.sha256(package.read_bytes()).hexdigest()}"
    with (machine / "install.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not site.exists():
            install(package, site)
    return site


def install(package: Path, site: Path) -> None:
    """Install a source distribution as a worker does, but from no index."""
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
        *("--no-build-isolation", "--disable-pip-version-check", "--target", str(site)),
        str(package),
    ]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
