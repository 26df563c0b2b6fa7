"""WebDataset as its tutorials use it: one trial a record, a shuffle buffer, its own decoder."""

from __future__ import annotations

from pathlib import Path

import webdataset as wds
from loading import (
    BATCH_TRIALS,
    SEED,
    SHARD_BYTES,
    SHUFFLE_TRIALS,
    Passes,
    main,
    passes,
    read_trials,
)


def convert(dataset: Path, output: Path) -> None:
    """Write one record a trial."""
    pattern = str(output / "trials-%05d.tar")
    with wds.ShardWriter(pattern, maxsize=SHARD_BYTES, maxcount=10**9, verbose=0) as sink:
        for number, (values, label) in enumerate(read_trials(dataset)):
            sink.write({"__key__": f"{number:08d}", "npy": values, "cls": label})


def load(output: Path) -> Passes:
    """Open the records with one worker that stays."""
    files = sorted(output.glob("*.tar"))
    dataset = (
        wds.WebDataset([str(path) for path in files], shardshuffle=len(files), seed=SEED)
        .shuffle(SHUFFLE_TRIALS)
        .decode()
        .to_tuple("npy", "cls")
        .batched(BATCH_TRIALS)
    )
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True)

    return passes(files, lambda epoch: loader, lambda batch: batch[0].numpy())


if __name__ == "__main__":
    main(load, convert)
