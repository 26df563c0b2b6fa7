"""Split files for cross-validation: every animal is in test once.

One split of a few dozen animals leaves a handful to test on. With folds, each is predicted by a
model that never saw it, and all of them are evidence.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from beam_pipeline.console import print_table
from beam_pipeline.errors import UsageError
from beam_pipeline.flags.table import add_source_arguments, open_source
from beam_pipeline.plan import count_sessions, usable_sessions
from beam_pipeline.splits import MIN_FOLDS, SPLITS, SessionCount, assign_folds
from beam_pipeline.storage.locations import locate
from beam_pipeline.storage.places import AnyPath, write_atomically

FOLD = re.compile(r"fold-\d+\.csv")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``folds``."""
    add_source_arguments(parser)
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="gets fold-1.csv, fold-2.csv, ..."
    )
    parser.add_argument(
        "--n_folds",
        type=int,
        default=5,
        help="models to train, and parts to cut the animals into (default %(default)s)",
    )
    parser.add_argument("--split_seed", type=int, default=0, help="(default %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Write one splits file a fold, and say what is in them.

    Raises
    ------
    SplitError
        If the animals of a class are fewer than the folds.
    FileExistsError
        If --output holds other folds.
    """
    if args.n_folds < MIN_FOLDS:
        raise UsageError(f"--n_folds {args.n_folds}: train, val and test need {MIN_FOLDS}")
    source = open_source(args)
    sessions, _ = usable_sessions(count_sessions(source), None)
    folds = assign_folds(sessions, args.n_folds, args.split_seed)
    output = locate(args.output)
    files = {f"fold-{number}.csv": splits_csv(split) for number, split in enumerate(folds, 1)}
    _check_same(output, files)
    output.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_atomically(output / name, text)
    _print_folds(sessions, folds)
    print(
        f"Written to {output}. For each, preprocess --splits {output / 'fold-N.csv'}, train, and "
        "run the baselines; python -m trainer pool RUN RUN ... then judges all animals at once"
    )
    return 0


def _check_same(output: AnyPath, files: Mapping[str, str]) -> None:
    """Refuse a folder of other folds: models may have been trained on them."""
    there = (
        [path for path in output.iterdir() if FOLD.fullmatch(path.name)] if output.is_dir() else []
    )
    for path in there:
        if path.read_text() != files.get(path.name):
            raise FileExistsError(
                f"{output} holds other folds ({path.name} differs): choose another --output, or "
                "remove them"
            )


def splits_csv(split_of: Mapping[str, str]) -> str:
    """Return a splits file of sessions, in the order of the splits and then of the ids."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["session", "split"])
    ordered = sorted(split_of.items(), key=lambda item: (SPLITS.index(item[1]), item[0]))
    writer.writerows(ordered)
    return text.getvalue()


def _print_folds(sessions: Sequence[SessionCount], folds: Sequence[Mapping[str, str]]) -> None:
    classes = sorted({session.condition for session in sessions})
    rows = []
    for number, split_of in enumerate(folds, 1):
        tested = [session for session in sessions if split_of[session.session] == "test"]
        trials = Counter[str]()
        for session in tested:
            trials[session.condition] += session.n_trials
        subjects = {session.subject for session in tested} - {None}
        n_train = sum(split == "train" for split in split_of.values())
        counted = [trials[name] for name in classes]
        row = (*counted, len(tested), len(subjects) or "unknown", n_train)
        rows.append((f"fold-{number}", *row))
    print_table(
        "Trials in test",
        ["fold", *classes, "sessions", "subjects", "sessions in train"],
        rows,
        "val is the next fold's test, so that few folds leave little to train on",
    )
