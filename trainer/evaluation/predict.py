"""What a model says of every sequence of a split, each exactly once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from trainer.data.loader import SequenceLoader
from trainer.distributed import Process
from trainer.errors import TrainerError
from trainer.evaluation.predictions import Predictions, predictions_of
from trainer.model import Temporal3DViT


@torch.no_grad()
def predict(
    model: Temporal3DViT,
    loader: SequenceLoader,
    process: Process,
    bfloat16: bool,
    advance: Callable[[int], object] = lambda n_batches: None,
) -> Predictions:
    """Return the predictions of all sequences of a loader, the same in every process.

    Batches are filled up to one size and masked, and processes share the sequences: none is left
    out, none counts twice.

    Parameters
    ----------
    model : Temporal3DViT
        On the process's device; it is left in evaluation mode.
    loader : SequenceLoader
        Made without shuffling.
    process : Process
    bfloat16 : bool
        Whether to run under autocast.
    advance : callable
        Called with the number of batches done.
    """
    model.eval()
    parts, places = [], []
    for done, batch in enumerate(loader.batches(0)):
        advance(done)
        with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=bfloat16):
            parts.append(model(batch.x.float()).double())
        places.append(batch.index.to(parts[-1].device))
    logits = process.gather(torch.cat(parts)).flatten(0, 1).cpu().numpy()
    index = process.gather(torch.cat(places)).flatten().cpu().numpy()
    logits, index = logits[index >= 0], index[index >= 0]
    if not np.array_equal(np.sort(index), np.arange(len(loader.sequences))):
        raise TrainerError("the loader left a sequence out, or gave one twice")
    ordered = np.empty_like(logits)
    ordered[index] = logits
    return predictions_of(loader.trials, loader.sequences, ordered)
