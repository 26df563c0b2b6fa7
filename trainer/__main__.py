"""Command line: ``python -m trainer COMMAND``; `COMMANDS` has them all."""

from __future__ import annotations

import argparse
import atexit
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from trainer import __version__
from trainer.errors import UsageError
from trainer.launch import launch, leave_failure, stop_with_launcher
from trainer.near_names import did_you_mean
from trainer.options import parse_run_options
from trainer.vertex.container import read_replica

_EXAMPLES = """examples:
  python -m trainer train --data out/dataset --output out/run --experiment e3
  python -m trainer evaluate out/run --split test
  python -m trainer baselines out/dataset
  python -m trainer report out/run
  python -m trainer tune --data out/dataset --output out/tune --max_trials 20
  python -m trainer submit --data gs://lab/dataset --output gs://lab/e3 --experiment e3

COMMAND --help says more about each.
"""
#: {command: (package, what it does)}; its module `command` has `add_arguments` and `run`.
COMMANDS = {
    "train": ("training", "train the Temporal 3D ViT on a dataset folder, then evaluate it"),
    "evaluate": ("evaluation", "predictions and metrics of a run's best checkpoint"),
    "pool": ("pooling", "the test splits of a cross-validation's runs, evaluated as one"),
    "baselines": ("baselines", "simple classifiers on the same splits and units"),
    "attention": ("attention", "where a run's model looks, beside randomised weights"),
    "report": ("report", "one HTML page of one run or several"),
    "submit": ("vertex", "the same as train, as a job of Vertex AI; train --vertex is that, too"),
    "tune": ("tune", "search learning rate and regularisation by the AUC of val's sessions"),
}
#: Commands that take every flag of train beside their own.
_TRAINING = ("submit", "tune")


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are exceptions of one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of everything before a command."""
    listed = "\n".join(f"  {name:<12}{text}" for name, (_, text) in COMMANDS.items())
    parser = _Parser(
        prog="python -m trainer",
        usage="python -m trainer COMMAND ...",
        description="From a dataset folder of spectrogram shards to an honestly evaluated "
        f"transformer.\n\ncommands:\n{listed}",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 failed, 2 wrong usage.

    What went wrong ends in one line on standard error, ``error: ...``, whatever the command. A
    training that SIGTERM or Ctrl-C stopped has failed: it is not done, and the line says that the
    same command goes on.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbose = "--verbose" in given
    stop_with_launcher()
    try:
        _run(given)
    except KeyboardInterrupt:
        return _print_error("interrupted; the same command starts again", 1, verbose)
    except Exception as error:
        status = 2 if isinstance(error, UsageError) else 1
        return _print_error(str(error) or type(error).__name__, status, verbose)
    return 0


def _run(given: Sequence[str]) -> None:
    name = given[0] if given else "--help"
    if name not in COMMANDS:
        if name.startswith("-"):
            build_parser().parse_args([name])
        raise UsageError(
            f"there is no command {name!r}{did_you_mean(name, COMMANDS)}: {', '.join(COMMANDS)}"
        )
    words, on_vertex = list(given[1:]), "--vertex" in given
    if name == "train" and on_vertex:
        name = "submit"
        words.remove("--vertex")
    package, text = COMMANDS[name]
    module = f"trainer.{package}.command"
    if name == "train":
        # Parsed before PyTorch is imported, so that help and complaints come at once.
        options = parse_run_options(words)
        replica = read_replica(os.environ)
        if replica is not None:
            launch(replica.torchrun, given)
            return
        importlib.import_module(module).run(options)
        return
    if name == "evaluate" and on_vertex:
        module = "trainer.vertex.evaluate"
    parser = _Parser(
        prog=f"python -m trainer {name}",
        description=f"{text[0].upper()}{text[1:]}.",
        allow_abbrev=False,
    )
    parser.add_argument("--verbose", action="store_true", help="show tracebacks")
    command = importlib.import_module(module)
    command.add_arguments(parser)
    arguments, rest = parser.parse_known_args(words)
    flags = [flag for action in parser._actions for flag in action.option_strings]
    if name in _TRAINING:
        arguments.train_arguments = rest
        command.run(arguments, parse_run_options(rest, flags))
        return
    if rest:
        parser.error(f"{name} has no {' '.join(rest)}{did_you_mean(rest[0].split('=')[0], flags)}")
    command.run(arguments)


def _print_error(message: str, status: int, verbose: bool) -> int:
    """Print the exception that is being handled, and return the exit status."""
    if verbose:
        traceback.print_exc()
    line = " ".join(message.splitlines())
    if not leave_failure(line, status):
        rank = os.environ.get("RANK", "0")
        process = "" if rank == "0" else f" in process {rank}"
        print(f"error{process}: {line}", file=sys.stderr)
    return status


def _leave(status: int) -> NoReturn:
    """End this process.

    One of several ends without Python's own teardown: gloo's threads outlive
    ``destroy_process_group()`` where DistributedDataParallel was used, and one that frees a tensor
    during the teardown aborts the process (https://github.com/pytorch/pytorch/pull/179291).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        sys.exit(status)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    # In a log file, too, what is said comes in the order in which it was said.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    _leave(main())
