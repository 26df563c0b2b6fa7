"""Hugging Face datasets: two maps with the kernel of beam_pipeline, shuffle, save_to_disk.

The traces are shuffled, not the spectrograms: what is gathered row by row is a third as large.
The first map keeps only sums: storing its spectrograms for the second would take longer than to
compute them again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from job import (
    BLOCK_TRIALS,
    WORKERS,
    Trial,
    kernel,
    main,
    mean_std,
    normalize,
    plan,
    sums,
    trace_array,
    write_stats,
)

from beam_pipeline.spectrogram import Spectrogram
from beam_pipeline.splits import SPLITS


def load(table: Path, output: Path) -> datasets.Dataset:
    """Read the table; a single Parquet file is read by one process."""
    loaded = datasets.Dataset.from_parquet(str(table), cache_dir=str(output / "cache"))
    return loaded.with_format("arrow")


def batch_sums(batch: pa.Table, spectrogram: Spectrogram) -> pa.Table:
    """Return one row of sums for a batch of traces."""
    values, _ = spectrogram(trace_array(batch.column("trace")))
    return pa.table({"sums": [sums(values)]})


def normalized(batch: pa.Table, spectrogram: Spectrogram, mean: float, std: float) -> pa.Table:
    """Replace the traces of a batch by normalised float16 spectrograms."""
    values, _ = spectrogram(trace_array(batch.column("trace")))
    flat = pa.array(normalize(values, mean, std).ravel())
    column = pa.FixedSizeListArray.from_arrays(flat, values[0].size)
    return batch.drop_columns(["trace"]).append_column("spectrogram", column)


def process(table: Path, output: Path) -> None:
    """Do the whole job."""
    dataset = plan(table)
    spectrogram = kernel()
    loaded = load(table, output)
    split_of_row = np.array(
        [dataset.split_of[name] for name in loaded.data.column("session").to_pylist()]
    )
    parts = {name: loaded.select(np.flatnonzero(split_of_row == name)) for name in SPLITS}
    summed = parts["train"].map(
        batch_sums,
        batched=True,
        batch_size=BLOCK_TRIALS,
        num_proc=WORKERS,
        remove_columns=loaded.column_names,
        fn_kwargs={"spectrogram": spectrogram},
    )
    mean, std = mean_std(np.sum(summed.data.column("sums").to_pylist(), axis=0))
    done = {
        name: part.shuffle(seed=0).map(
            normalized,
            batched=True,
            batch_size=BLOCK_TRIALS,
            num_proc=WORKERS,
            remove_columns=["trace"],
            fn_kwargs={"spectrogram": spectrogram, "mean": mean, "std": std},
        )
        for name, part in parts.items()
    }
    for name, part in done.items():
        part.save_to_disk(output / name, num_shards=len(dataset.shards_of(name)))
    write_stats(output, mean, std)


def process_once(table: Path, output: Path) -> None:
    """Only turn traces into spectrograms; the result is the cache of the map."""
    load(table, output).map(
        normalized,
        batched=True,
        batch_size=BLOCK_TRIALS,
        num_proc=WORKERS,
        remove_columns=["trace"],
        fn_kwargs={"spectrogram": kernel(), "mean": 0.0, "std": 1.0},
    )


def read(output: Path) -> Iterator[Trial]:
    """Yield the trials of an output folder."""
    spectrogram = kernel()
    shape = len(spectrogram.freqs), len(spectrogram.times)
    for split in SPLITS:
        for path in sorted((output / split).glob("*.arrow")):
            for row in datasets.Dataset.from_file(str(path)).with_format("numpy"):
                values = row["spectrogram"].reshape(shape)
                yield split, path.name, str(row["session"]), int(row["trial_num"]), values


if __name__ == "__main__":
    main(process, read, process_once=process_once)
