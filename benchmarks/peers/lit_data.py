"""LitData: its optimize writes the chunks; the statistics come from the loop's pass 1.

Its workers fork here, which is faster than its default: each would import torch again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import litdata
import numpy as np
from job import SHARD_MB, WORKERS, Block, Trial, kernel, main, normalize, plan, write_stats
from loop import RawTraces, store_and_measure

from beam_pipeline.splits import SPLITS

Sample = dict[str, Any]


def to_sample(block: Block, traces: RawTraces, mean: float, std: float) -> Sample:
    """Return the sample of a block."""
    values, baseline = traces.spectrogram(traces.read(block))
    return {
        "key": block.key,
        "spectrogram": normalize(values, mean, std),
        "baseline": baseline,
        "metadata": json.dumps(block.metadata),
    }


def optimize(fn: Any, inputs: list[Any], output: Path) -> None:
    """Run LitData's optimize with the settings that all of its work shares."""
    litdata.optimize(
        fn,
        inputs,
        output_dir=str(output),
        chunk_bytes=SHARD_MB * 2**20,
        num_workers=WORKERS,
        start_method="fork",
        verbose=False,
    )


def process(table: Path, output: Path) -> None:
    """Do the whole job; blocks in the order of a hash of their keys mix the sessions."""
    dataset = plan(table)
    traces = RawTraces(table, output / "traces.f32", kernel())
    mean, std = store_and_measure(traces, dataset.is_train)
    for split in SPLITS:
        blocks = [block for shard in dataset.shards_of(split) for block in shard]
        optimize(partial(to_sample, traces=traces, mean=mean, std=std), blocks, output / split)
    traces.file.unlink()
    write_stats(output, mean, std)


def to_samples(row_group: tuple[int, int], traces: RawTraces) -> Iterator[Sample]:
    """Yield the samples of a row group."""
    index, _ = row_group
    for row, segments in traces.decode(index):
        values, baseline = traces.spectrogram(segments)
        yield {
            "key": f"{index:05d}-{row:06d}",
            "spectrogram": values.astype(np.float16),
            "baseline": baseline,
        }


def process_once(table: Path, output: Path) -> None:
    """Only turn traces into spectrograms."""
    traces = RawTraces(table, output / "traces.f32", kernel())
    optimize(partial(to_samples, traces=traces), traces.row_groups(), output / "chunks")


def read(output: Path) -> Iterator[Trial]:
    """Yield the trials of an output folder."""
    for split in SPLITS:
        chunks = json.loads((output / split / "index.json").read_text())["chunks"]
        chunk_of = [chunk["filename"] for chunk in chunks for _ in range(chunk["chunk_size"])]
        samples = litdata.StreamingDataset(str(output / split), shuffle=False)
        for chunk, sample in zip(chunk_of, samples, strict=True):
            metadata = json.loads(sample["metadata"])
            for trial_num, values in zip(metadata["trial_num"], sample["spectrogram"], strict=True):
                yield split, chunk, metadata["session"], trial_num, values


if __name__ == "__main__":
    main(process, read, process_once=process_once)
