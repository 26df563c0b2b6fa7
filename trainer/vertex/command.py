"""The command ``submit``: the same run as ``train``, as a job of Vertex AI."""

from __future__ import annotations

import argparse
import os

from trainer.data.dataset_folder import open_dataset
from trainer.options import RunOptions, config_arguments
from trainer.vertex.job_spec import Work, custom_job
from trainer.vertex.launch import launch, require_bucket
from trainer.vertex.options import add_vertex_arguments, read_vertex_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``submit``, beside all of ``train``."""
    parser.epilog = (
        "All flags of python -m trainer train are taken too, and checked before anything is sent; "
        "--data and --output must be gs:// URLs. The same command, given again after a job has "
        "ended early, goes on from its last checkpoint."
    )
    add_vertex_arguments(parser)


def run(arguments: argparse.Namespace, run_options: RunOptions) -> None:
    """Submit a run and watch it, as the command line asks.

    Raises
    ------
    TrainerError
        If the run could not be trained like this, or the job does not end well.
    """
    options = read_vertex_options(arguments, os.environ)
    require_bucket("--data", run_options.data)
    require_bucket("--output", run_options.output)
    # Every value, so that the container's defaults and local files do not matter.
    words = ["--data", run_options.data, "--output", run_options.output]
    work = Work(
        ["train", *words, *config_arguments(run_options.config)], run_options.output, "train"
    )
    launch(
        custom_job(options, work),
        options,
        work,
        lambda: open_dataset(run_options.data),
        dry_run=arguments.dry_run,
        wait=not arguments.no_wait,
    )
