"""The runner of local runs, chosen on purpose.

Beam's DirectRunner would try to download its Prism binary at run time. A local run therefore
names the runner that executes in this process and in SDK workers it starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    StandardOptions,
    WorkerOptions,
)
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    GrpcWorkerHandler,
    WorkerHandler,
)
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.transforms.environments import Environment, python_sdk_capabilities
from google.protobuf.json_format import MessageToJson

from beam_pipeline.cpus import n_cpus
from beam_pipeline.launchers.local_worker import start_worker

LOCAL_RUNNERS = (None, "DirectRunner", "FnApiRunner")
FORKED_WORKER = "beam_pipeline:env:forked_worker:v1"


def pipeline_options(arguments: Sequence[str], verbose: bool = False) -> PipelineOptions:
    """Return Beam's options; local runs use all cores unless the arguments say otherwise.

    Parameters
    ----------
    arguments : sequence of str
        Flags of Beam.
    verbose : bool
        Let the workers' logs through.
    """
    options = PipelineOptions(list(arguments))
    standard, direct = options.view_as(StandardOptions), options.view_as(DirectOptions)
    standard.runner = "FnApiRunner"
    given = {argument.split("=")[0] for argument in arguments}
    if "--direct_num_workers" not in given:
        direct.direct_num_workers = n_cpus()
    if "--direct_running_mode" not in given:
        several = direct.direct_num_workers != 1
        direct.direct_running_mode = "multi_processing" if several else "in_memory"
    if "--default_sdk_harness_log_level" not in given:
        level = "INFO" if verbose else "CRITICAL"
        options.view_as(WorkerOptions).default_sdk_harness_log_level = level
    return options


@Environment.register_urn(FORKED_WORKER, bytes)
class ForkedWorkerEnvironment(Environment):
    """Names the workers that `ForkedWorkerHandler` starts, and the file of their stderr."""

    def __init__(self, log: str) -> None:
        super().__init__(capabilities=python_sdk_capabilities())
        self.log = log

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ForkedWorkerEnvironment) and self.log == other.log

    def __hash__(self) -> int:
        return hash(self.log)

    def to_runner_api_parameter(self, context: object) -> tuple[str, bytes]:
        """Return the URN and payload that the runner finds the handler by."""
        return FORKED_WORKER, self.log.encode()

    @staticmethod
    def from_runner_api_parameter(payload: bytes, *_: object) -> ForkedWorkerEnvironment:
        """Return the environment of a payload."""
        return ForkedWorkerEnvironment(payload.decode())


@WorkerHandler.register_environment(FORKED_WORKER, bytes)
class ForkedWorkerHandler(GrpcWorkerHandler):
    """Starts a worker in a process of its own, as Beam's handler of subprocesses does."""

    def __init__(self, log: bytes, state: Any, provision_info: Any, grpc_server: Any) -> None:
        super().__init__(state, provision_info, grpc_server)
        self._log = Path(log.decode())

    def start_worker(self) -> None:
        """Fork the worker."""
        environment = {
            "WORKER_ID": self.worker_id,
            "PIPELINE_OPTIONS": MessageToJson(self.provision_info.provision_info.pipeline_options),
            "CONTROL_API_SERVICE_DESCRIPTOR": str(self.control_api_service_descriptor()),
            "LOGGING_API_SERVICE_DESCRIPTOR": str(self.logging_api_service_descriptor()),
        }
        start_worker(environment, self._log)

    def stop_worker(self) -> None:
        """Leave the worker, which ends because its connection has been closed."""


def local_runner(options: PipelineOptions, worker_log: Path) -> fn_runner.FnApiRunner:
    """Return the runner of a local pipeline.

    Parameters
    ----------
    options : PipelineOptions
        The running mode of a local runner is taken out of it: Beam would override the
        environment that is chosen here.
    worker_log : pathlib.Path
        Gets what local worker processes write to stderr. Beam prints each traceback there, in
        full and once a worker, while the launcher reports the error in one line.
    """
    direct = options.view_as(DirectOptions)
    environment = None
    if direct.direct_running_mode == "multi_processing":
        environment = ForkedWorkerEnvironment(str(worker_log))
        direct.direct_running_mode = "in_memory"
    # Without them in the provision info, workers would not know the options, log level included.
    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    provision = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
    return fn_runner.FnApiRunner(
        environment, provision_info=fn_runner.ExtendedProvisionInfo(provision)
    )
