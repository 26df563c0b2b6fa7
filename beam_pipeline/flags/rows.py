"""Which rows of the table are used."""

from __future__ import annotations

import argparse

from beam_pipeline.flags.values import at_least, names
from beam_pipeline.options import DatasetOptions


def add_screening_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which rows are used."""
    group = parser.add_argument_group(
        "rows", "Every row is used, or stands in rejects/ with its reason."
    )
    group.add_argument(
        "--resample",
        action="store_true",
        help="bring rows of another rate to --sfreq (SciPy's polyphase resampler)",
    )
    group.add_argument(
        "--classes",
        type=names,
        metavar="A,B",
        help="known conditions in label order, the positive class last (default: all, sorted)",
    )
    group.add_argument(
        "--max_railed_fraction",
        type=at_least(float, 0, 1),
        default=DatasetOptions.max_railed_fraction,
        help="reject a trace with a larger share of samples at its extreme (default %(default)s)",
    )
    group.add_argument(
        "--amplitude_outlier",
        type=at_least(float, 0),
        metavar="N",
        help="reject trials N robust standard deviations from their session's median log "
        "amplitude (default: off)",
    )
    group.add_argument(
        "--max_reject_fraction",
        type=at_least(float, 0, 1),
        default=DatasetOptions.max_reject_fraction,
        help="fail when more of the rows are rejected (default %(default)s)",
    )
