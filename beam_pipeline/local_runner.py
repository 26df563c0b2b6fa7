"""The runner of local runs, chosen on purpose.

Beam's DirectRunner would try to download its Prism binary at run time. A local run therefore
names the runner that executes in this process and in SDK workers it starts.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    StandardOptions,
    WorkerOptions,
)
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from beam_pipeline.cpus import n_cpus
from beam_pipeline.errors import UsageError

LOCAL_RUNNERS = (None, "DirectRunner", "FnApiRunner")


def pipeline_options(arguments: Sequence[str], verbose: bool = False) -> PipelineOptions:
    """Return Beam's options; local runs use all cores unless the arguments say otherwise.

    Parameters
    ----------
    arguments : sequence of str
        Flags of Beam.
    verbose : bool
        Let the workers' logs through.

    Raises
    ------
    UsageError
        If another than a local runner is asked for.
    """
    options = PipelineOptions(list(arguments))
    standard, direct = options.view_as(StandardOptions), options.view_as(DirectOptions)
    if standard.runner not in LOCAL_RUNNERS:
        raise UsageError(
            f"--runner {standard.runner}: only local runs are possible so far (DirectRunner)"
        )
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
        worker = f"{shlex.quote(sys.executable)} -m beam_pipeline.local_worker"
        environment = SubprocessSDKEnvironment.from_command_string(
            f"exec {worker} 2>>{shlex.quote(str(worker_log))}"
        )
        direct.direct_running_mode = "in_memory"
    # Without them in the provision info, workers would not know the options, log level included.
    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    provision = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
    return fn_runner.FnApiRunner(
        environment, provision_info=fn_runner.ExtendedProvisionInfo(provision)
    )
