"""Several processes that train together on this machine, and what they fail with, said once.

torchrun starts the processes, and ends all of them when one fails. It would show its own traceback
then, and lose the exit status; so a process leaves what went wrong in a file, and whoever started
it says so.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.errors import TrainerError, UsageError
from trainer.remote.folder import PATIENCE_SECONDS

#: Folder for what goes wrong in a process that `launch` has started.
_FAILURES = "TRAINER_FAILURES"
#: The process that `launch` runs in.
_LAUNCHER = "TRAINER_LAUNCHER"
#: Of Linux's prctl.h.
_PR_SET_PDEATHSIG = 1
#: Seconds that torchrun may be late to note that a process was killed; it counts whole ones.
TOLD_LATE = 1.2
#: How long torchrun, told to stop, waits for the processes. It would kill them after half a minute,
#: although the first one may be copying its last checkpoint, and one before that.
_WAIT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
WAIT_SECONDS = int(3 * PATIENCE_SECONDS)


@dataclass(frozen=True)
class Failure:
    """How a process ended that did not do what it should.

    Attributes
    ----------
    time : float
        Seconds since 1970.
    rank : int
    message : str
    status : int
        Exit status.
    """

    time: float
    rank: int
    message: str
    status: int


def launch(flags: Sequence[str], arguments: Sequence[str]) -> None:
    """Run ``python -m trainer`` in several processes, and wait for them.

    Parameters
    ----------
    flags : sequence of str
        Of torchrun: how many processes, and where the others are.
    arguments : sequence of str
        Of each process.

    Raises
    ------
    UsageError, TrainerError
        If a process fails; a signal to this one is passed on to all of them.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # What it logs is that a process has failed.
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="lfp-vit-failures-") as folder:
        os.environ |= {_FAILURES: folder, _LAUNCHER: str(os.getpid())}
        # Not by a flag, which older releases do not know.
        os.environ.setdefault(_WAIT, str(WAIT_SECONDS))
        try:
            torchrun.run(torchrun.parse_args([*flags, "-m", "trainer", *arguments]))
        except ChildFailedError as error:
            ended = [
                Failure(failure.timestamp - TOLD_LATE, rank, _how_it_ended(failure.exitcode), 1)
                for rank, failure in error.failures.items()
            ]
            raise first_error(_read_failures(Path(folder)), ended) from None
        except SignalException as error:
            # All were told at the same time; only the first knows what was saved.
            said = [f.message for f in _read_failures(Path(folder)) if f.rank == 0]
            stopped = f"stopped by {error.sigval.name}; the same command goes on"
            raise TrainerError(said[0] if said else stopped) from None


def stop_with_launcher() -> None:
    """Let this process be told to stop when the `launch` that started it is gone (Linux alone).

    Else it would train on when its launcher is killed, and hold on to its GPU.
    """
    launcher = os.environ.get(_LAUNCHER)
    if launcher is None or "RANK" not in os.environ or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # It may have gone before.
    if launcher != str(os.getppid()):
        os.kill(os.getpid(), signal.SIGTERM)


def leave_failure(message: str, status: int) -> bool:
    """Leave word of an error where `launch` looks for it; False where nobody does.

    Parameters
    ----------
    message : str
        One line.
    status : int
        With which the process is going to exit.
    """
    folder = os.environ.get(_FAILURES)
    if folder is None or "RANK" not in os.environ:
        return False
    failure = Failure(time.time(), int(os.environ["RANK"]), message, status)
    path = Path(folder) / f"{failure.rank}.json"
    try:
        path.write_text(json.dumps(asdict(failure)))
    except OSError:
        return False
    return True


def _read_failures(folder: Path) -> list[Failure]:
    return [Failure(**json.loads(path.read_text())) for path in folder.glob("*.json")]


def _how_it_ended(exit_code: int) -> str:
    if exit_code >= 0:
        return f"ended with status {exit_code} and said nothing"
    name = signal.Signals(-exit_code).name
    hint = ", which is what a machine without free memory does" if name == "SIGKILL" else ""
    return f"ended by {name}{hint}; the same command goes on"


def first_error(said: Sequence[Failure], ended: Sequence[Failure]) -> TrainerError:
    """Return the first failure as an error: the others may be what came of it.

    Parameters
    ----------
    said : sequence of Failure
        Those that the processes have left.
    ended : sequence of Failure
        What can be said of those that left none, and of the others as well.
    """
    silent = [failure for failure in ended if failure.rank not in {f.rank for f in said}]
    # torchrun ends the others by SIGTERM, which one that is still starting does not survive.
    telling = [failure for failure in silent if "SIGTERM" not in failure.message]
    first = min([*said, *telling] or ended, key=lambda failure: (failure.time, failure.rank))
    is_common = any((f.rank, f.message) == (0, first.message) for f in said)
    message = first.message if is_common else f"process {first.rank}: {first.message}"
    return UsageError(message) if first.status == 2 else TrainerError(message)
