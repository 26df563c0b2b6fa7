"""Command line: ``python -m beam_pipeline {preprocess,plan,audit,folds,verify,sample}``."""

from __future__ import annotations

import argparse
import difflib
import functools
import gc
import importlib
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import NoReturn

from beam_pipeline import __version__
from beam_pipeline.cpus import n_cpus
from beam_pipeline.errors import UsageError
from beam_pipeline.flags.values import join_signed_values
from beam_pipeline.heap import loading_modules, share_heap
from beam_pipeline.launchers.local_worker import start_loading

_EXAMPLES = """examples:
  python -m beam_pipeline sample --output out/sample
  python -m beam_pipeline preprocess --input out/sample --output out/dataset
  python -m beam_pipeline preprocess --input 'lab/*.parquet' --output out/lab \\
      --columns trace=lfp,session=session_id --sfreq 1000 --onset 2.0 --tmin -2.0 --tmax 3.0
  python -m beam_pipeline verify out/dataset
"""
#: {command: what it does}; each is a module with `add_arguments` and `run`.
COMMANDS = {
    "preprocess": "turn a table of LFP traces into normalised WebDataset shards",
    "plan": "say what preprocess would make of a table, from its metadata and a few rows",
    "audit": "look at a table: one HTML page with what to mend before a run",
    "folds": "split files for cross-validation, in which every animal is tested once",
    "verify": "reread a whole dataset and name whatever does not hold",
    "sample": "generate a table of the lab's kind, with known truth",
}
MODULES = {name: f"{name}.command" for name in ("audit", "verify", "sample")}


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line: the usage of preprocess has forty."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {' '.join(message.splitlines())}; see {self.prog} --help\n")


def build_parsers(chosen: str | None) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Return the parser of all commands, and that of the chosen one, which alone has its flags.

    Only that one is imported: Beam, SciPy and Matplotlib take longer than a short command.
    """
    parser = _Parser(
        prog="python -m beam_pipeline",
        description="From a table of LFP traces to normalised WebDataset shards.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers: dict[str | None, argparse.ArgumentParser] = {}
    for name, text in COMMANDS.items():
        command = parsers[name] = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
        )
        command.add_argument("--verbose", action="store_true", help="show tracebacks and Beam logs")
        if name == chosen:
            module = importlib.import_module(f"beam_pipeline.{MODULES.get(name, name)}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser, parsers.get(chosen, parser)


def check_flags(name: str, parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Refuse flags that a command does not have, before argparse misses those that it needs."""
    known = _flags(parser)
    flags = [word.split("=")[0] for word in words if re.match(r"--[\w-]+(=|$)", word)]
    unknown = [flag for flag in flags if flag not in known]
    if unknown and name == "preprocess":
        known += _flags(_beam_parser())
        unknown = [flag for flag in unknown if flag not in known]
    if unknown:
        parser.error(f"{name} has no {' '.join(unknown)}{_hint(unknown[0], known)}")


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    return [flag for action in parser._actions for flag in action.option_strings]


@functools.cache
def _beam_parser() -> argparse.ArgumentParser:
    from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

    class _BeamParser(_Parser, _BeamArgumentParser):
        """Complains in one line, too."""

    beam_parser = _BeamParser(
        prog="python -m beam_pipeline preprocess", add_help=False, allow_abbrev=False
    )
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(beam_parser)
    return beam_parser


def check_beam_arguments(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Refuse values that neither we nor Beam take: Beam itself would only warn."""
    if not arguments:
        return
    _, unknown = _beam_parser().parse_known_args(list(arguments))
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")


def _hint(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    return f" (did you mean {near[0]}?)" if near else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 failed, 2 wrong usage.

    What went wrong ends in one line on standard error, ``error: ...``, whatever the command.
    """
    given = join_signed_values(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    chosen = next((word for word in given if not word.startswith("-")), None)
    if chosen is not None and chosen not in COMMANDS:
        return _refuse_command(chosen)
    if chosen == "preprocess":
        share_heap()
        if n_cpus() > 1:
            start_loading()
    with loading_modules():
        parser, command = build_parsers(chosen)
    if chosen is not None:
        before, after = given[: given.index(chosen)], given[given.index(chosen) + 1 :]
        if misplaced := [flag for flag in before if flag not in ("-h", "--help", "--version")]:
            parser.error(f"flags come after the command: {chosen} {misplaced[0]}")
        check_flags(chosen, command, after)
    args, rest = parser.parse_known_args(given)
    if rest and args.command != "preprocess":
        command.error(f"{args.command} has no {' '.join(rest)}")
    check_beam_arguments(command, rest)
    args.beam_arguments = rest
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        _print_error("interrupted; the same command starts again", args.verbose)
        return 1
    except Exception as error:
        _print_error(str(error) or type(error).__name__, args.verbose)
        return 2 if isinstance(error, UsageError) else 1


def _refuse_command(name: str) -> int:
    hint = _hint(name, COMMANDS)
    print(f"error: there is no command {name!r}{hint}: {', '.join(COMMANDS)}", file=sys.stderr)
    return 2


def _print_error(message: str, verbose: bool) -> None:
    """Print the exception that is being handled."""
    if verbose:
        traceback.print_exc()
    print(f"error: {' '.join(message.splitlines())}", file=sys.stderr)


if __name__ == "__main__":
    # In a log file, too, what is said comes in the order in which it was said.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    status = main()
    # The collector would walk all that the run has made once more, for nothing.
    gc.freeze()
    sys.exit(status)
