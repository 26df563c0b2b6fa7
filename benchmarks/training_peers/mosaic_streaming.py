"""MosaicML Streaming: MDS shards of arrays of a fixed shape, its StreamingDataset."""

from __future__ import annotations

from pathlib import Path

import streaming
from loading import BATCH_TRIALS, SEED, SHARD_BYTES, Passes, main, passes, read_trials
from torch.utils.data import DataLoader


def convert(dataset: Path, output: Path) -> None:
    """Write one sample a trial."""
    trials = read_trials(dataset)
    values, label = next(trials)
    shape = ",".join(map(str, values.shape))
    columns = {"spectrogram": f"ndarray:float16:{shape}", "label": "int"}
    with streaming.MDSWriter(out=str(output), columns=columns, size_limit=SHARD_BYTES) as sink:
        sink.write({"spectrogram": values, "label": label})
        for values, label in trials:
            sink.write({"spectrogram": values, "label": label})


def load(output: Path) -> Passes:
    """Open the shards with one worker that stays."""
    # What a process that was killed has left in shared memory would be taken for ours.
    streaming.base.util.clean_stale_shared_memory()
    dataset = streaming.StreamingDataset(
        local=str(output), shuffle=True, shuffle_seed=SEED, batch_size=BATCH_TRIALS
    )
    loader = DataLoader(dataset, batch_size=BATCH_TRIALS, num_workers=1, persistent_workers=True)
    files = sorted(output.glob("*.mds"))
    return passes(files, lambda epoch: loader, lambda batch: batch["spectrogram"].numpy())


if __name__ == "__main__":
    main(load, convert)
