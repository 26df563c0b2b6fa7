"""The SDK workers of a local run: forked off a process that has loaded all they need.

Beam starts a fresh interpreter for each worker, once the pipeline is built: every one loads Beam,
NumPy and Arrow again before it does any work. Here one process, this module, loads them while the
launcher does so too, and its forks are ready at once. (`multiprocessing` has such a process as
well, but it would run the launcher's main script again in every worker.)
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NoReturn

from beam_pipeline.heap import loading_modules, share_heap


@cache
def start_loading() -> subprocess.Popen[str]:
    """Start the process that workers are forked off; it begins to load their modules.

    Returns at once. Call it before this process loads the same modules, to load side by side. The
    process takes one JSON line a worker to start, and ends when this one does.
    """
    command = [sys.executable, "-m", "beam_pipeline.launchers.local_worker"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
    atexit.register(_stop, process)
    return process


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.communicate()


def start_worker(environment: dict[str, str], log: Path) -> None:
    """Fork a worker, which ends when its connection to the runner is closed.

    Parameters
    ----------
    environment : dict
        Variables by which Beam tells a worker whom to serve.
    log : pathlib.Path
        Gets what the worker writes to stderr.
    """
    requests = start_loading().stdin
    assert requests is not None
    request = {"environment": os.environ | environment, "folder": str(Path.cwd()), "log": str(log)}
    requests.write(json.dumps(request) + "\n")
    requests.flush()


def _fork_on_request() -> None:
    share_heap()
    with loading_modules():
        from apache_beam.runners.worker import sdk_worker_main

        # Loaded before they are asked for.
        from beam_pipeline.transforms import plan, read, spectrograms, write  # noqa: F401

    # The system buries the workers; Ctrl-C is the launcher's to handle.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _serve(sdk_worker_main.main, **json.loads(line))


def _serve(
    main: Callable[[list[str]], None], environment: dict[str, str], folder: str, log: str
) -> NoReturn:
    try:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        with Path(log).open("ab") as file:
            os.dup2(file.fileno(), sys.stderr.fileno())
        main([])
    except Exception:
        traceback.print_exc()
    finally:
        # What a fork shares with its parent is not its own to tidy up.
        os._exit(0)


if __name__ == "__main__":
    _fork_on_request()
