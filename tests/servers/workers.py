"""Two SDK workers that share nothing with the launcher, and the runners that drive them.

Beam's worker pool starts a process for each, from `boot.py`: what it knows of the pipeline it was
sent, what it imports of ours it has installed from the staged source distribution.
"""

from __future__ import annotations

import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns
from apache_beam.portability.api import (
    beam_fn_api_pb2_grpc,
    beam_job_api_pb2,
    beam_provision_api_pb2,
    beam_runner_api_pb2,
    endpoints_pb2,
)
from apache_beam.runners.portability import local_job_service
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer

from tests.servers.dataflow import Job, counter
from tests.servers.gcs import GcsServer

N_WORKERS = 2


class WorkerPool:
    """Beam's own worker pool, starting `boot.py`.

    Attributes
    ----------
    address : str
        ``--environment_config`` of ``--environment_type EXTERNAL``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        boot = folder / "boot"
        # A file of its own, because the pool takes one executable and no arguments. It runs away
        # from the checkout: nothing in the folder can be imported.
        source = Path(__file__).with_name("boot.py").read_text()
        boot.write_text(f"#!{sys.executable} -P\n{source}")
        boot.chmod(boot.stat().st_mode | stat.S_IXUSR)
        self._pool = BeamFnExternalWorkerPoolServicer(
            use_process=True, container_executable=str(boot)
        )
        self.address, self._server = _serve(self._pool)

    @property
    def started(self) -> list[str]:
        """The ids of the workers so far."""
        return list(self._pool._worker_processes)

    def failed(self) -> str | None:
        """Return what a worker has printed that ended with an error."""
        for worker_id, process in list(self._pool._worker_processes.items()):
            if process.poll():
                return (self._folder / f"{worker_id}.log").read_text()
        return None

    def close(self) -> None:
        """Stop, and end whatever worker is left."""
        self._server.stop(0).wait()
        for process in self._pool._worker_processes.values():
            process.terminate()
            process.communicate()


def _serve(pool: BeamFnExternalWorkerPoolServicer) -> tuple[str, Any]:
    server = grpc.server(ThreadPoolExecutor(4))
    port = server.add_insecure_port("localhost:0")
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    server.start()
    return f"localhost:{port}", server


class _JobOnTwoWorkers(local_job_service.BeamJob):
    def _invoke_runner(self) -> Any:
        self.set_state(beam_job_api_pb2.JobState.RUNNING)
        runner = fn_runner.FnApiRunner(provision_info=self._provision_info)
        runner._num_workers = N_WORKERS
        return runner.run_via_runner_api(self._pipeline_proto, self.pipeline_options())


class _JobService(local_job_service.LocalJobServicer):
    cancelled = 0

    def Cancel(self, request: Any, context: Any = None) -> Any:  # noqa: N802
        self.cancelled += 1
        return super().Cancel(request, context)


class JobServer:
    """Beam's job server, on as many workers as a job's environment gives.

    Attributes
    ----------
    endpoint : str
        ``--job_endpoint``.
    """

    def __init__(self, staging: Path) -> None:
        self._service = _JobService(str(staging), _JobOnTwoWorkers)
        self.endpoint = f"localhost:{self._service.start_grpc_server()}"

    @property
    def cancelled(self) -> int:
        """Number of jobs that were asked to end."""
        return self._service.cancelled

    def close(self) -> None:
        """Stop."""
        self._service.stop()


class StagedJobExecutor:
    """Runs what a Dataflow job has staged in Cloud Storage, as Dataflow would.

    Parameters
    ----------
    gcs : GcsServer
    pool : WorkerPool
    """

    def __init__(self, gcs: GcsServer, pool: WorkerPool) -> None:
        self._gcs = gcs
        self._pool = pool

    def start(self, job: Job) -> None:
        """Run a job to its end, in a thread."""
        thread = threading.Thread(target=self._run, args=(job,), daemon=True)
        thread.start()
        threading.Thread(target=self._watch, args=(job, thread), daemon=True).start()

    def _watch(self, job: Job, thread: threading.Thread) -> None:
        # A worker that cannot even start is waited for without end.
        while thread.is_alive():
            failed = self._pool.failed()
            if failed is not None:
                job.messages.append(("ERROR", failed))
                job.states = ["FAILED"]
                return
            thread.join(0.2)

    def _run(self, job: Job) -> None:
        job.states = ["RUNNING"]
        try:
            result = self._execute(job)
        except Exception as error:
            job.messages.append(("ERROR", str(error)))
            job.states = ["FAILED"]
            return
        found = result.metrics().query()
        job.metrics = [
            counter(entry.key.metric.name, entry.result, entry.key.step)
            for entry in found["counters"]
        ]
        job.states = ["DONE"]

    def _execute(self, job: Job) -> Any:
        options = job.body["environment"]["sdkPipelineOptions"]["options"]
        pipeline = beam_runner_api_pb2.Pipeline.FromString(self._gcs.read(options["pipelineUrl"]))
        for environment in pipeline.components.environments.values():
            environment.urn = common_urns.environments.EXTERNAL.urn
            environment.payload = beam_runner_api_pb2.ExternalPayload(
                endpoint=endpoints_pb2.ApiServiceDescriptor(url=self._pool.address)
            ).SerializeToString()
            for file in environment.dependencies:
                url = beam_runner_api_pb2.ArtifactUrlPayload.FromString(file.type_payload).url
                file.type_urn = common_urns.artifact_types.EMBEDDED.urn
                file.type_payload = beam_runner_api_pb2.EmbeddedFilePayload(
                    data=self._gcs.read(url)
                ).SerializeToString()
        # JSON knows no integers, so Dataflow turns whole numbers into such.
        whole = {
            name: int(value) if isinstance(value, float) and value.is_integer() else value
            for name, value in options.items()
        }
        encoded = JobServiceHandle.encode_pipeline_options(whole)
        runner = fn_runner.FnApiRunner(
            provision_info=fn_runner.ExtendedProvisionInfo(
                beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
            )
        )
        runner._num_workers = N_WORKERS
        return runner.run_via_runner_api(pipeline, PipelineOptions([]))
