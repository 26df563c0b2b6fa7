"""Command line: ``python -m beam_pipeline {preprocess,plan,audit,verify,sample}``."""

from __future__ import annotations

import argparse
import difflib
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from beam_pipeline import __version__, audit, plan, sample, verify
from beam_pipeline.options import (
    add_dataset_arguments,
    add_source_arguments,
    dataset_options,
    join_signed_values,
)
from beam_pipeline.sources.parquet import ParquetSource

_PREPROCESS = """Turn a table of LFP traces into a folder of normalised WebDataset shards.

Flags of Apache Beam are passed on, e.g. --direct_num_workers 2."""
_EXAMPLES = """examples:
  python -m beam_pipeline sample --output out/sample
  python -m beam_pipeline preprocess --input out/sample --output out/dataset
  python -m beam_pipeline preprocess --input 'lab/*.parquet' --output out/lab \\
      --columns trace=lfp,session=session_id --sfreq 1000 --onset 2.0 --tmin -2.0 --tmax 3.0
  python -m beam_pipeline verify out/dataset
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m beam_pipeline",
        description="From a table of LFP traces to normalised WebDataset shards.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, description: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=text,
            description=description or f"{text[0].upper()}{text[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_argument("--verbose", action="store_true", help="show tracebacks and Beam logs")
        return command

    preprocess = add("preprocess", "turn a table into a dataset", _PREPROCESS)
    add_source_arguments(preprocess)
    preprocess.add_argument("--output", required=True, type=Path, help="dataset folder")
    preprocess.add_argument(
        "--overwrite", action="store_true", help="replace another dataset in --output"
    )
    add_dataset_arguments(preprocess)
    preprocess.set_defaults(run=_preprocess)

    plan_command = add(
        "plan", "say what preprocess would make of a table, from its metadata and a few rows"
    )
    plan.add_arguments(plan_command)
    plan_command.set_defaults(run=lambda args, _: plan.run(args))

    audit_command = add("audit", "look at a table: one HTML page with what to mend before a run")
    audit.add_arguments(audit_command)
    audit_command.set_defaults(run=lambda args, _: audit.run(args))

    verify_command = add("verify", "reread a whole dataset and name whatever does not hold")
    verify.add_arguments(verify_command)
    verify_command.set_defaults(run=lambda args, _: verify.run(args))

    sample_command = add("sample", "generate a table of the lab's kind, with known truth")
    sample.add_arguments(sample_command)
    sample_command.set_defaults(run=lambda args, _: sample.run(args))
    return parser


def _preprocess(args: argparse.Namespace, beam_arguments: Sequence[str]) -> int:
    from beam_pipeline import preprocess

    source = ParquetSource(args.input, args.columns)
    options = dataset_options(args, source)
    started = time.time()
    existed = (args.output / "dataset.json").exists()
    manifest = preprocess.preprocess(
        source, options, args.output, beam_arguments, args.overwrite, args.verbose
    )
    if existed and not args.overwrite:
        print(f"{args.output} already holds this dataset; nothing to do")
    preprocess.print_summary(manifest, args.output, time.time() - started)
    return 0


def check_beam_arguments(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Refuse flags that neither we nor Beam know: Beam itself would only warn."""
    if not arguments:
        return
    from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

    beam_parser = _BeamArgumentParser(add_help=False, allow_abbrev=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(beam_parser)
    _, unknown = beam_parser.parse_known_args(list(arguments))
    if unknown:
        flags = [flag for action in beam_parser._actions for flag in action.option_strings]
        flags += [flag for flag in _all_flags(parser) if flag not in flags]
        near = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")


def _all_flags(parser: argparse.ArgumentParser) -> list[str]:
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return sorted(
        {
            flag
            for command in commands.choices.values()
            for action in command._actions
            for flag in action.option_strings
        }
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 failed, 2 wrong usage."""
    parser = build_parser()
    given = join_signed_values(sys.argv[1:] if arguments is None else arguments)
    args, rest = parser.parse_known_args(given)
    if rest and args.command != "preprocess":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    check_beam_arguments(parser, rest)
    try:
        return int(args.run(args, rest))
    except KeyboardInterrupt:
        print("interrupted; the same command starts again", file=sys.stderr)
        return 130
    except Exception as error:
        if args.verbose:
            traceback.print_exc()
        print(f"error: {error or type(error).__name__}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
