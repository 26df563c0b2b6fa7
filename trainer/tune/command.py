"""The command ``tune``: the same search here, with Optuna, or as a job of Vertex AI."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from trainer.errors import UsageError
from trainer.options import RunOptions
from trainer.tune.space import SPACE, check_space, searched
from trainer.vertex.options import add_vertex_arguments

_DEFAULT_OUTPUT = "out/tune"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``tune``, beside all of ``train``."""
    ranges = "; ".join(
        f"{p.name} from {p.low:g} to {p.high:g}{', log scale' if p.log else ''}" for p in SPACE
    )
    parser.epilog = (
        f"The space: {ranges}. A parameter that is given as a flag keeps that value. All flags of "
        "python -m trainer train are taken too. The objective is the AUC of val's sessions at a "
        "trial's best epoch. The same command goes on where a search was interrupted."
    )
    parser.add_argument(
        "--max_trials",
        type=_at_least_one,
        default=20,
        metavar="N",
        help="most trials (default: 20)",
    )
    parser.add_argument("--n_trials", action=_Ambiguous, help=argparse.SUPPRESS)
    parser.add_argument(
        "--vertex", action="store_true", help="search in a hyperparameter tuning job of Vertex AI"
    )
    parser.add_argument(
        "--parallel_trials",
        type=_at_least_one,
        metavar="N",
        help="with --vertex: trials at a time, each on machines of its own (default: 2)",
    )
    add_vertex_arguments(parser)


def run(arguments: argparse.Namespace, run_options: RunOptions) -> None:
    """Search as the command line asks.

    Raises
    ------
    TrainerError
        If the search cannot be made, or goes wrong.
    """
    words = arguments.train_arguments
    parameters = searched(words)
    check_space(run_options.config, parameters)
    output = run_options.output
    if not any(word.partition("=")[0] == "--output" for word in words):
        output = _DEFAULT_OUTPUT
    if arguments.vertex:
        from trainer.tune.vertex_search import search_on_vertex

        search_on_vertex(arguments, run_options, output, parameters)
        return
    for name in ("dry_run", "no_wait", "parallel_trials"):
        if getattr(arguments, name):
            raise UsageError(f"--{name} needs --vertex")
    from trainer.tune.search import search

    search(run_options, output, parameters, arguments.max_trials)


class _Ambiguous(argparse.Action):
    """A flag that is none, because it may mean either of two."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        parser.error(
            f"there is no flag {option_string}: --max_trials is how many trials the search has, "
            "--sequence.n_trials how many recorded trials a sequence has"
        )


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, not {text!r}")
    return int(text)
