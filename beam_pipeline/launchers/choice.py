"""The choice of what runs the pipeline: this machine, a cluster's job server, or Dataflow."""

from __future__ import annotations

from collections.abc import Sequence

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from beam_pipeline.errors import UsageError
from beam_pipeline.launchers.contract import Launcher
from beam_pipeline.launchers.local import LocalLauncher
from beam_pipeline.launchers.local_runner import LOCAL_RUNNERS


def choose_launcher(
    arguments: Sequence[str], input: str, output: str, verbose: bool = False
) -> Launcher:
    """Return what runs a pipeline as the flags of Beam say.

    Raises
    ------
    UsageError
        If there is no such runner, or the flags do not fit it.
    """
    runner = PipelineOptions(list(arguments)).view_as(StandardOptions).runner
    if runner == "DataflowRunner":
        # Google's libraries take a second to load.
        from beam_pipeline.launchers.dataflow.launch import DataflowLauncher

        return DataflowLauncher(arguments, input, output, verbose)
    if runner == "PortableRunner":
        from beam_pipeline.launchers.portable import PortableLauncher

        return PortableLauncher(arguments, output, verbose)
    if runner in LOCAL_RUNNERS:
        return LocalLauncher(arguments, verbose)
    raise UsageError(
        f"--runner {runner}: there are DirectRunner (this machine), DataflowRunner and "
        "PortableRunner (--job_endpoint HOST:PORT)"
    )
