"""How the sessions are split, and the splits cut into shards."""

from __future__ import annotations

import argparse

from beam_pipeline.flags.values import at_least, numbers
from beam_pipeline.options import DatasetOptions


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the splits and shards."""
    group = parser.add_argument_group(
        "splits and shards", "Split by subject where there is one, else by session."
    )
    group.add_argument(
        "--split_ratios",
        type=numbers(3),
        default=DatasetOptions.split_ratios,
        metavar="TRAIN,VAL,TEST",
        help="shares of the trials (default 0.7,0.15,0.15)",
    )
    group.add_argument("--split_seed", type=int, default=0, help="(default %(default)s)")
    group.add_argument(
        "--splits",
        metavar="FILE",
        help="CSV or JSON with session or subject, and split: overrides the ratios, but a split "
        "of ratio 0 need not hold every class",
    )
    group.add_argument(
        "--block_trials",
        type=at_least(int, 1),
        default=DatasetOptions.block_trials,
        help="most consecutive trials in a WebDataset sample (default %(default)s)",
    )
    group.add_argument(
        "--shard_mb",
        type=at_least(float, 0.001),
        default=DatasetOptions.shard_mb,
        help="size of a shard in MiB (default %(default)s)",
    )
    group.add_argument(
        "--num_shards",
        type=at_least(int, 1),
        help="shards of each split, instead of --shard_mb",
    )
