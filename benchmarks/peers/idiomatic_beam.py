"""The idiomatic Beam way: one dict a row, SciPy row by row, pickled elements throughout."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import webdataset
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsSingleton
from job import BLOCK_TRIALS, WORKERS, Trial, main, mean_std, plan, sums, write_stats
from lab_spectrogram import log_spectrogram

from beam_pipeline.blocks import block_key, key_hash
from beam_pipeline.splits import SPLITS

Element = dict[str, Any]

#: As `beam_pipeline preprocess` sets them for a local run on two cores.
RUNNER = [
    "--runner=FnApiRunner",
    "--direct_running_mode=multi_processing",
    f"--direct_num_workers={WORKERS}",
    "--default_sdk_harness_log_level=WARNING",
]


class MeanStd(beam.CombineFn):  # type: ignore[misc]
    """Mean and standard deviation of all values of all spectrograms."""

    def create_accumulator(self) -> np.ndarray:
        return np.zeros(3)

    def add_input(self, accumulator: np.ndarray, element: Element) -> np.ndarray:
        return accumulator + sums(element["spectrogram"])

    def merge_accumulators(self, accumulators: Iterable[np.ndarray]) -> np.ndarray:
        return np.asarray(np.sum(list(accumulators), axis=0))

    def extract_output(self, accumulator: np.ndarray) -> tuple[float, float]:
        return mean_std(accumulator)


def to_spectrogram(row: Element) -> Element:
    """Replace the trace of a row by its spectrogram."""
    return row | {"spectrogram": log_spectrogram(row.pop("trace")).astype(np.float32)}


def to_normalized(element: Element, stats: tuple[float, float]) -> Element:
    """Normalise a spectrogram."""
    mean, std = stats
    return element | {"spectrogram": ((element["spectrogram"] - mean) / std).astype(np.float16)}


def to_shard(
    element: Element, split_of: dict[str, str], n_shards: dict[str, int]
) -> tuple[str, Element]:
    """Key an element by its shard, so that blocks of trials mix."""
    session = element["session"]
    split = split_of[session]
    block = block_key(session, (element["trial_num"] - 1) // BLOCK_TRIALS)
    return f"{split}/{key_hash(block) % n_shards[split]:05d}", element


def write_shard(keyed: tuple[str, Iterable[Element]], output: Path) -> None:
    """Write a tar shard of one sample a trial."""
    path, elements = keyed
    ordered = sorted(elements, key=lambda e: (e["session"], e["trial_num"]))
    with webdataset.TarWriter(str(output / f"{path}.tar"), mtime=0) as writer:
        for element in ordered:
            writer.write(
                {
                    "__key__": f"{element['session']}-{element['trial_num']:06d}",
                    "spectrogram.npy": element.pop("spectrogram"),
                    "json": element,
                }
            )


def process(table: Path, output: Path) -> None:
    """Do the whole job."""
    dataset = plan(table)
    split_of = dataset.split_of
    n_shards = {split: len(dataset.shards_of(split)) for split in SPLITS}
    for split in SPLITS:
        (output / split).mkdir()
    with beam.Pipeline(options=PipelineOptions(RUNNER)) as pipeline:
        spectrograms = pipeline | beam.io.ReadFromParquet(str(table)) | beam.Map(to_spectrogram)
        stats = (
            spectrograms
            | beam.Filter(lambda element: split_of[element["session"]] == "train")
            | beam.CombineGlobally(MeanStd())
        )
        stats | beam.MapTuple(lambda mean, std: write_stats(output, mean, std))
        _ = (
            spectrograms
            | beam.Map(to_normalized, AsSingleton(stats))
            | beam.Map(to_shard, split_of, n_shards)
            | beam.GroupByKey()
            | beam.Map(write_shard, output)
        )


def read(output: Path) -> Iterator[Trial]:
    """Yield the trials of an output folder."""
    for split in SPLITS:
        for path in sorted((output / split).glob("*.tar")):
            with tarfile.open(path) as archive:
                members = {m.name.partition("."): m for m in archive}
                for (key, _, suffix), member in members.items():
                    if suffix != "json":
                        continue
                    metadata = json.load(archive.extractfile(member))  # type: ignore[arg-type]
                    array = archive.extractfile(members[key, ".", "spectrogram.npy"])
                    assert array is not None
                    values = np.load(io.BytesIO(array.read()), allow_pickle=False)
                    yield split, path.name, metadata["session"], metadata["trial_num"], values


if __name__ == "__main__":
    main(process, read)
