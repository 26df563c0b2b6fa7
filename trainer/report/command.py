"""The command: read the runs, compare them, write one page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from trainer.baselines.folder import BASELINES, open_baselines, read_baselines
from trainer.errors import UsageError
from trainer.report.analysis import (
    Missing,
    MoreTrials,
    RunAnalysis,
    analyse,
    compare_with_averages,
    fold_runs,
)
from trainer.report.contents import read_folder
from trainer.report.finding import Finding
from trainer.report.page import render
from trainer.run_folder import is_remote, open_run, write_file

PAGE = "report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``report``."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run folders, what `pool` made of those of a cross-validation, or gs:// URLs; with a "
        "one-trial run among them, the others are compared with its averages over the same trials",
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
        If a run is given twice, --output is no name of a page, or --baselines holds none.
    TrainerError
        If a folder is neither a run nor a pooled one, or a file is damaged.
    """
    urls = [url.rstrip("/") for url in arguments.runs]
    twice = {url for url in urls if urls.count(url) > 1}
    if twice:
        raise UsageError(f"{', '.join(sorted(twice))} is given twice")
    # A browser shows another file as text; and other commands' --output is a folder.
    if arguments.output and not arguments.output.endswith((".html", ".htm")):
        raise UsageError(f"--output {arguments.output}: a page is one file; end its name in .html")
    with ExitStack() as stack:
        folders = [stack.enter_context(open_run(url, with_weights=False)) for url in urls]
        runs = [
            read_folder(folder, name)
            for folder, name in zip(folders, short_names(urls), strict=True)
        ]
        given = [open_baselines(stack, url) for url in arguments.baselines]
        own = [read_baselines(folder) for folder in folders]
        analyses = [
            analyse(run, [b for b in (mine, *given) if b is not None])
            for run, mine in zip(runs, own, strict=True)
        ]
        # What is read first is what all folds say together.
        analyses.sort(key=lambda analysis: not analysis.run.folds)
        parts = fold_runs(runs)
        comparisons = list(compare_with_averages([run for run in runs if run not in parts]))
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
            print(f"{where}{line.title}. {line.text} {line.advice}".rstrip())
        else:
            print(f"{where}{line.what}{f' Run: {line.command}' if line.command else ''}")
