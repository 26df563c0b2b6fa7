"""The trainer's three stores, and what bounds them: `cat` of the shards, and a NumPy gather.

Sequences do not overlap here, so that every trial is delivered once: single trials, as the peers
deliver them, or sequences of several, in batches of as many trials.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loading import (
    BATCH_TRIALS,
    SEED,
    Content,
    Passes,
    Trials,
    content,
    measure,
    passes,
    read_trials,
    shards,
)

from trainer.config import LoaderConfig, SequenceConfig
from trainer.data.dataset_folder import open_dataset
from trainer.data.loader import Batch, SequenceLoader, make_loader
from trainer.data.resident_store import load_trials
from trainer.data.sequences import build_sequences, epoch_order


def cat(dataset: Path, n_trials: int) -> Passes:
    """Let `cat` read the shards and give them away."""
    files = shards(dataset)

    def go(epoch: int) -> None:
        subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True)

    def delivered(epoch: int) -> Content | None:
        # Longer sequences leave out what remains of a session.
        if n_trials > 1:
            return None
        return content(trial[None] for trial, _ in read_trials(dataset))

    return Passes(files, go, delivered)


def gather(dataset: Path, n_trials: int) -> Passes:
    """Index an array with the rows of each batch: what a batch costs at least."""
    folder = open_dataset(str(dataset))
    trials, index = load_trials(folder, "train", torch.device("cpu"))
    array = trials.numpy()
    rows = build_sequences(index.trials, n_trials, n_trials).rows
    size = BATCH_TRIALS // n_trials

    def batches(epoch: int) -> Iterator[Trials]:
        order = epoch_order(len(rows), SEED, epoch)
        for start in range(0, len(order), size):
            yield array[rows[order[start : start + size]].ravel()]

    return passes([], batches, np.asarray)


def store(dataset: Path, name: Any, n_trials: int) -> Passes:
    """Open train in one of the trainer's stores; a stream has one worker."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader = make_loader(
        open_dataset(str(dataset)),
        "train",
        SequenceConfig(n_trials, stride=n_trials),
        LoaderConfig(store=name, num_workers=1),
        batch_size=BATCH_TRIALS // n_trials,
        device=device,
        seed=SEED,
        shuffle=True,
    )
    files = shards(dataset) if name == "stream" else []
    return passes(files, partial(_batches, loader, device), _trials_of)


def _batches(loader: SequenceLoader, device: torch.device, epoch: int) -> Iterator[Batch]:
    yield from loader.batches(epoch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _trials_of(batch: Batch) -> Trials:
    return batch.x[batch.mask].flatten(0, 1).cpu().numpy()


#: {store: what bounds it}
BOUNDS = {"stream": cat, "memory": gather, "device": gather}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store", choices=BOUNDS)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("result", type=Path, help="JSON file")
    parser.add_argument("--n-trials", type=int, default=1, help="of a sequence")
    parser.add_argument("--passes", type=int, required=True)
    args = parser.parse_args()
    make = partial(store, args.dataset, args.store, args.n_trials)
    bound = partial(BOUNDS[args.store], args.dataset, args.n_trials)
    args.result.write_text(json.dumps(measure(make, args.passes, bound)))


if __name__ == "__main__":
    main()
