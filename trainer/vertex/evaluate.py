"""``evaluate --vertex``: a run's best checkpoint over a split, as a job of Vertex AI.

Metrics, confusion matrices and predictions are written back to the run folder.
"""

from __future__ import annotations

import argparse
import os

from trainer.data.dataset_folder import SPLITS
from trainer.errors import TrainerError, UsageError
from trainer.remote.stores import open_remote
from trainer.run_folder import COMMIT_MARKER
from trainer.vertex.job_spec import Work, custom_job
from trainer.vertex.launch import launch, require_bucket
from trainer.vertex.options import add_vertex_arguments, read_vertex_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``evaluate --vertex``."""
    parser.add_argument("run", metavar="RUN", help="gs:// URL of a run folder")
    parser.add_argument(
        "--split", choices=SPLITS, default="test", help="what to evaluate (default: %(default)s)"
    )
    parser.add_argument(
        "--data", metavar="URL", help="the dataset, if it is no longer where the run found it"
    )
    parser.add_argument("--vertex", action="store_true", help="evaluate in a job of Vertex AI")
    add_vertex_arguments(parser)


def _check_run(url: str) -> None:
    if COMMIT_MARKER not in open_remote(url).list_files():
        raise TrainerError(f"{url} holds no checkpoint: it is no run folder, or has just begun")


def run(arguments: argparse.Namespace) -> None:
    """Submit the evaluation of a run and watch it, as the command line asks.

    Raises
    ------
    TrainerError
        If the job does not end well.
    """
    options = read_vertex_options(arguments, os.environ)
    if options.replicas > 1:
        raise UsageError("--replicas: an evaluation runs on one machine")
    require_bucket("RUN", arguments.run)
    words = ["evaluate", arguments.run, "--split", arguments.split]
    if arguments.data:
        require_bucket("--data", arguments.data)
        words += ["--data", arguments.data]
    work = Work(words, arguments.run, "evaluate")
    launch(
        custom_job(options, work),
        options,
        work,
        lambda: _check_run(arguments.run),
        dry_run=arguments.dry_run,
        wait=not arguments.no_wait,
    )
