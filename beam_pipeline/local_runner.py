"""The runner of local runs, chosen on purpose.

Beam's DirectRunner would try to download its Prism binary at run time. A local run therefore
names the runner that executes in this process and in SDK workers it starts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    StandardOptions,
    WorkerOptions,
)
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.portability.portable_runner import JobServiceHandle

LOCAL_RUNNERS = (None, "DirectRunner", "FnApiRunner")


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
    if standard.runner not in LOCAL_RUNNERS:
        return options
    standard.runner = "FnApiRunner"
    given = {argument.split("=")[0] for argument in arguments}
    if "--direct_num_workers" not in given:
        direct.direct_num_workers = len(os.sched_getaffinity(0))
    if "--direct_running_mode" not in given:
        several = direct.direct_num_workers != 1
        direct.direct_running_mode = "multi_processing" if several else "in_memory"
    if "--default_sdk_harness_log_level" not in given:
        level = "INFO" if verbose else "CRITICAL"
        options.view_as(WorkerOptions).default_sdk_harness_log_level = level
    return options


def local_runner(options: PipelineOptions) -> fn_runner.FnApiRunner:
    """Return the in-process runner; its workers get the options too, log level included."""
    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    provision = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
    return fn_runner.FnApiRunner(provision_info=fn_runner.ExtendedProvisionInfo(provision))
