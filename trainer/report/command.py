"""The command: read the runs, compare them, write one page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from trainer.errors import UsageError
from trainer.report.analysis import (
    Missing,
    MoreTrials,
    RunAnalysis,
    analyse,
    compare_with_averages,
)
from trainer.report.contents import BASELINES, Baselines, read_baselines, read_run
from trainer.report.page import render
from trainer.report.verdict import Finding
from trainer.run_folder import is_remote, open_run, write_file

PAGE = "report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``report``."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run folders, or gs:// URLs; with a one-trial run among them, the others are compared "
        "with its averages over the same trials",
    )
    parser.add_argument(
        "--baselines",
        action="append",
        default=[],
        metavar="DIR",
        help=f"folder that `baselines` wrote, or its {BASELINES}; may be given more than once "
        "(default: the run folders)",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help=f"the page, or its gs:// URL (default: {PAGE} in the first run folder)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the report that the command line asks for.

    Raises
    ------
    UsageError
        If a run is given twice, or --baselines holds none.
    TrainerError
        If a folder is no run, or a file is damaged.
    """
    urls = [url.rstrip("/") for url in arguments.runs]
    twice = {url for url in urls if urls.count(url) > 1}
    if twice:
        raise UsageError(f"{', '.join(sorted(twice))} is given twice")
    with ExitStack() as stack:
        folders = [stack.enter_context(open_run(url, with_weights=False)) for url in urls]
        runs = [
            read_run(folder, name) for folder, name in zip(folders, short_names(urls), strict=True)
        ]
        given = [_given_baselines(stack, url) for url in arguments.baselines]
        own = [read_baselines(folder) for folder in folders]
        analyses = [
            analyse(run, [b for b in (mine, *given) if b is not None])
            for run, mine in zip(runs, own, strict=True)
        ]
        comparisons = list(compare_with_averages(runs))
        write_file(
            arguments.output or str(folders[0].path / PAGE),
            render(analyses, comparisons).encode(),
        )
    _print_summary(analyses, comparisons)
    print(f"The report is in {arguments.output or f'{urls[0]}/{PAGE}'}: open it in a browser")


def short_names(urls: Sequence[str]) -> list[str]:
    """Return the last part of each URL, or the whole of it where that is not unique."""
    last = [(Path(url) if is_remote(url) else Path(url).resolve()).name for url in urls]
    return [url if last.count(name) > 1 else name for url, name in zip(urls, last, strict=True)]


def _print_summary(
    analyses: Sequence[RunAnalysis], comparisons: Sequence[MoreTrials | Missing]
) -> None:
    lines: list[tuple[str, Finding | Missing]] = []
    for analysis in analyses:
        where = f"{analysis.run.url}: "
        lines += [(where, analysis.findings[0]), *((where, line) for line in analysis.missing)]
    lines += [("", c.finding if isinstance(c, MoreTrials) else c) for c in comparisons]
    for where, line in lines:
        if isinstance(line, Finding):
            print(f"{where}{line.title}. {line.text}")
        else:
            print(f"{where}{line.what}{f' Run: {line.command}' if line.command else ''}")


def _given_baselines(stack: ExitStack, url: str) -> Baselines:
    inner = url.removesuffix(BASELINES).rstrip("/") or "."
    folder = stack.enter_context(open_run(inner, with_weights=False))
    found = read_baselines(folder)
    if found is None:
        raise UsageError(
            f"--baselines {url} holds no {BASELINES} (python -m trainer baselines writes one)"
        )
    return found
