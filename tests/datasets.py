"""Small dataset folders: one of the real pipeline, and others made by hand for odd cases."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from beam_pipeline.__main__ import main
from beam_pipeline.blocks import block_key, key_hash, shard_path
from beam_pipeline.shards import Sample, manifest_entry, write_shard
from tests import tables

#: Sessions of up to 30 trials in blocks of 4; each split has three shards.
SESSIONS, TRIALS, BLOCK_TRIALS, SHARDS = 16, 30, 4, 3
#: Trial numbers that a session of the table lacks: single gaps, wide ones, a short session.
LACKS = {0: {15}, 3: {12, 20}, 5: set(range(18, 26)), 8: set(range(15, 40)), 10: {17, 18}}
#: Of the datasets made by hand.
CLASSES = ["FMR1", "WT"]

_made: dict[Path, Path] = {}


# --- Of the real pipeline -------------------------------------------------------------------------


def table_with_gaps(seed: int = 0) -> pa.Table:
    """Return a table of random walks in which some trials are missing."""
    table = tables.make_table(SESSIONS, TRIALS, seed)
    number = np.repeat(np.arange(SESSIONS), TRIALS)
    trial_num = table["trial_num"].to_numpy()
    keep = [t not in LACKS.get(int(s), ()) for s, t in zip(number, trial_num, strict=True)]
    return table.filter(pa.array(keep))


def make_dataset(source: pa.Table, folder: Path, *flags: str) -> Path:
    """Preprocess a table inside this process."""
    path = tables.write(source, folder / "table.parquet")
    command = ["preprocess", "--input", str(path), "--output", str(folder / "dataset")]
    shape = ["--block_trials", str(BLOCK_TRIALS), "--num_shards", str(SHARDS)]
    assert main([*command, *tables.FLAGS, *tables.IN_PROCESS, *shape, *flags]) == 0
    return folder / "dataset"


def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset that is made once a process; copy it before you change it."""
    base = tmp_path_factory.getbasetemp()
    if base not in _made:
        _made[base] = make_dataset(table_with_gaps(), tmp_path_factory.mktemp("small_dataset"))
    return _made[base]


# --- By hand --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """A session: its blocks by number, each the numbers of its trials."""

    session: str
    subject: str | None
    condition: str
    blocks: Mapping[int, Sequence[int]]

    @property
    def n_trials(self) -> int:
        return sum(map(len, self.blocks.values()))


def recording(
    session: str, condition: str, n_trials: int, n_block: int = 4, subject: str | None = None
) -> Recording:
    """Return a session without gaps; its animal has the same name if none is given."""
    starts = range(0, n_trials, n_block)
    blocks = {i: range(low, min(low + n_block, n_trials)) for i, low in enumerate(starts)}
    return Recording(session, subject or session, condition, blocks)


def write_dataset(
    folder: Path,
    splits: Mapping[str, Sequence[Recording]],
    change: Callable[[Sample], Sample] = lambda sample: sample,
    n_shards: int = 2,
    shape: tuple[int, int] = (3, 8),
) -> Path:
    """Write a dataset folder of the documented format, with random values.

    `change` may alter a sample before it is written; all checksums are made afterwards.
    """
    described: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        recordings = sorted(splits.get(split, ()), key=lambda r: r.session)
        samples = [
            change(_sample(r, number, shape, rng)) for r in recordings for number in r.blocks
        ]
        samples.sort(key=lambda sample: key_hash(sample.key))
        described[split] = {
            "shards": _write_shards(folder, split, samples, min(n_shards, len(samples))),
            "samples": len(samples),
            "trials": sum(len(sample.baseline) for sample in samples),
            "trials_per_class": {
                name: sum(r.n_trials for r in recordings if r.condition == name) for name in CLASSES
            },
            "sessions": [r.session for r in recordings],
            "subjects": sorted({r.subject for r in recordings if r.subject is not None}),
        }
        rows += [
            {
                "session": r.session,
                "subject": r.subject,
                "condition": r.condition,
                "split": split,
                "blocks": list(r.blocks),
                "block_trials": [len(block) for block in r.blocks.values()],
            }
            for r in recordings
        ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    (folder / "sessions.parquet").write_bytes(buffer.getvalue())
    lengths = [n for row in rows for n in row["block_trials"]]
    content = {
        "format_version": 1,
        "options": {"seed": 0},
        "classes": CLASSES,
        "freqs": [float(f) for f in range(shape[0])],
        "times": [float(t) for t in range(shape[1])],
        "dtype": "float16",
        "shape": [max(lengths), *shape],
        "normalization": {
            "normalization": "none",
            "mean": 0.0,
            "std": 1.0,
            "sessions": described["train"]["sessions"],
        },
        "splits": described,
        "files": {
            "sessions.parquet": {
                "bytes": len(buffer.getvalue()),
                "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
            }
        },
    }
    (folder / "dataset.json").write_text(json.dumps(sealed(content)))
    return folder


def random_dataset(folder: Path) -> Path:
    """Write six sessions of noise, two of them in each split; it takes no time to train on."""
    splits = ("train", "val", "test")
    held = {split: [recording(f"{split}{name}", name, 24) for name in CLASSES] for split in splits}
    return write_dataset(folder, held)


def _sample(r: Recording, number: int, shape: tuple[int, int], rng: np.random.Generator) -> Sample:
    trial_num = list(r.blocks[number])
    n_freqs, n_times = shape
    return Sample(
        block_key(r.session, number),
        rng.standard_normal((len(trial_num), n_freqs, n_times)).astype(np.float16),
        rng.standard_normal((len(trial_num), n_freqs)).astype(np.float32),
        {
            "session": r.session,
            "subject": r.subject,
            "condition": r.condition,
            "label": CLASSES.index(r.condition),
            "block": number,
            "trial_num": trial_num,
            "frequency": [None] * len(trial_num),
            "amplitude": [None] * len(trial_num),
        },
    )


def _write_shards(
    folder: Path, split: str, samples: Sequence[Sample], n_shards: int
) -> list[dict[str, Any]]:
    (folder / split).mkdir(parents=True)
    shards = []
    for i in range(n_shards):
        part = samples[len(samples) * i // n_shards : len(samples) * (i + 1) // n_shards]
        shards.append(manifest_entry(write_shard(folder, shard_path(split, i, n_shards), part)))
    return shards


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest with the seal that fits it."""
    content = {name: value for name, value in content.items() if name != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return content | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit a manifest and seal it anew, as someone might who makes datasets by other means."""
    content = json.loads((folder / "dataset.json").read_text())
    edit(content)
    (folder / "dataset.json").write_text(json.dumps(sealed(content)))


# --- What is in them ------------------------------------------------------------------------------


def read_trials(folder: Path, split: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Return every trial of a split by session and trial number, read by WebDataset."""
    shards = json.loads((folder / "dataset.json").read_text())["splits"][split]["shards"]
    urls = [str(folder / shard["path"]) for shard in shards]
    trials = {}
    for sample in webdataset.WebDataset(urls, shardshuffle=False).decode():
        meta = sample["json"]
        for row, trial_num in enumerate(meta["trial_num"]):
            trials[meta["session"], trial_num] = {
                "label": meta["label"],
                "subject": meta["subject"],
                "spectrogram": sample["spectrogram.npy"][row],
                "baseline": sample["baseline.npy"][row],
            }
    return trials
