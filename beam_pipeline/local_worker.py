"""The SDK workers of a local run: forked off a process that has loaded all they need.

Beam starts a fresh interpreter for each worker, once the pipeline is built: every one loads Beam,
NumPy and Arrow again before it does any work. Here one process loads them while the launcher does
so too, and its forks are ready at once.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import forkserver
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_MODULES = ["apache_beam.runners.worker.sdk_worker_main", "beam_pipeline.transforms"]


def start_loading() -> None:
    """Start the process that workers are forked off; it begins to load their modules.

    Returns at once. Call it before this process loads the same modules, to load side by side.
    """
    _FORKS.set_forkserver_preload(_MODULES)
    forkserver.ensure_running()


def start_worker(environment: dict[str, str], log: Path) -> multiprocessing.process.BaseProcess:
    """Fork a worker.

    Parameters
    ----------
    environment : dict
        Variables by which Beam tells a worker whom to serve.
    log : pathlib.Path
        Gets what the worker writes to stderr.
    """
    start_loading()
    worker = _FORKS.Process(target=_serve, args=(environment, log), daemon=True)
    worker.start()
    return worker


def _serve(environment: dict[str, str], log: Path) -> None:
    from apache_beam.runners.worker import sdk_worker_main

    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    sdk_worker_main.main([])
