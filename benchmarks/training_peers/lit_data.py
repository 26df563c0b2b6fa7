"""LitData: chunks of tensors, its StreamingDataset and StreamingDataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import litdata
import torch
from loading import BATCH_TRIALS, SEED, SHARD_BYTES, Passes, main, passes, read_blocks, shards


def samples(path: str) -> Iterator[dict[str, Any]]:
    """Yield the trials of a shard."""
    for values, label in read_blocks(Path(path)):
        for trial in values:
            yield {"spectrogram": torch.from_numpy(trial), "label": label}


def convert(dataset: Path, output: Path) -> None:
    """Write one item a trial."""
    litdata.optimize(
        samples,
        [str(path) for path in shards(dataset)],
        output_dir=str(output),
        chunk_bytes=SHARD_BYTES,
        num_workers=1,
        start_method="fork",
        verbose=False,
    )


def load(output: Path) -> Passes:
    """Open the chunks with one worker that stays."""
    # By default it decodes windows of items and, shuffled, throws most of them away.
    dataset = litdata.StreamingDataset(str(output), shuffle=True, seed=SEED, batch_decode=False)
    loader = litdata.StreamingDataLoader(
        dataset, batch_size=BATCH_TRIALS, num_workers=1, persistent_workers=True
    )

    files = sorted(output.glob("*.bin"))
    return passes(files, lambda epoch: loader, lambda batch: batch["spectrogram"].numpy())


if __name__ == "__main__":
    main(load, convert)
