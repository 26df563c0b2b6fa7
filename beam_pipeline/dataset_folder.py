"""The dataset folder as a whole: what may stand there before a run, and how a run finishes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from beam_pipeline.card import PICTURE, dataset_card, mean_spectrograms_png
from beam_pipeline.layout import Normalization, SessionSummary, train_normalization
from beam_pipeline.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    RUN,
    SESSIONS,
    STATS,
    Manifest,
    file_digest,
    package_versions,
    read_manifest,
    split_manifests,
    write_atomically,
)
from beam_pipeline.moments import UNIT
from beam_pipeline.options import DatasetOptions
from beam_pipeline.sessions_table import read_summaries
from beam_pipeline.shards import ShardInfo, wids_index
from beam_pipeline.sources import TraceSource
from beam_pipeline.spectrogram import Spectrogram
from beam_pipeline.splits import SPLITS
from beam_pipeline.work_folder import WorkFolder

#: What a dataset folder consists of, besides its manifest.
CONTENTS = (
    STATS,
    SESSIONS,
    *SPLITS,
    *(f"{split}.json" for split in SPLITS),
    "rejects",
    "README.md",
    PICTURE,
    RUN,
)


class DatasetExistsError(RuntimeError):
    """The output folder holds something that must not be lost."""


def existing_dataset(
    source: TraceSource, options: DatasetOptions, output: Path, overwrite: bool
) -> Manifest | None:
    """Return the manifest if `output` already holds this dataset; None if the way is free.

    Raises
    ------
    DatasetExistsError
        If `output` is something else that must not be lost.
    """
    if output.exists() and not output.is_dir():
        raise DatasetExistsError(f"{output} is a file; --output needs a folder")
    if (output / MANIFEST).exists():
        manifest = read_manifest(output)
        run = json.loads((output / RUN).read_text()) if (output / RUN).exists() else {}
        same_options = manifest.fingerprint == options.fingerprint()
        same_input = run.get("input_identity") == source.identity()
        if same_options and same_input:
            for leftover in WorkFolder.leftovers(output):
                shutil.rmtree(leftover)
            return manifest
        if not overwrite:
            what = "other options" if not same_options else "another or a changed input"
            raise DatasetExistsError(
                f"{output} holds a dataset made with {what}; choose another --output, or "
                f"replace it with --overwrite{_changed_options(manifest, options)}"
            )
    elif output.exists() and not WorkFolder.leftovers(output):
        foreign = sorted(path.name for path in output.iterdir())
        if foreign:
            raise DatasetExistsError(
                f"{output} is neither empty nor a dataset: it holds {', '.join(foreign[:5])}; "
                "choose another --output"
            )
    return None


def _changed_options(manifest: Manifest, options: DatasetOptions) -> str:
    new = options.to_dict()
    changed = [
        f"{name} {manifest.options.get(name)} -> {value}"
        for name, value in new.items()
        if name != "splits" and manifest.options.get(name) != value
    ]
    return f" ({'; '.join(changed)})" if changed else ""


def describe(
    source: TraceSource,
    options: DatasetOptions,
    spectrogram: Spectrogram,
    work: WorkFolder,
    n_clipped: int,
) -> Manifest:
    """Write everything beside the shards into the work folder and return the manifest."""
    folder = work.dataset
    summaries, table = read_summaries(folder / SESSIONS)
    rows = table.to_pylist()
    shards = [ShardInfo(**shard) for shard in json.loads(work.shards.read_text())]
    classes = list(options.classes or sorted({row["condition"] for row in rows}))
    stats = normalization_stats(rebuild_normalization(summaries, rows, options.normalization))
    (folder / STATS).write_text(json.dumps(stats, indent=1) + "\n")
    for split in SPLITS:
        own = [shard for shard in shards if shard.path.startswith(f"{split}/")]
        (folder / f"{split}.json").write_text(json.dumps(wids_index(split, own), indent=1) + "\n")
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        fingerprint=options.fingerprint(),
        options=options.to_dict(),
        source=describe_source(source, summaries),
        classes=classes,
        freqs=spectrogram.freqs.tolist(),
        times=spectrogram.times.tolist(),
        dtype="float16",
        shape=[options.block_trials, len(spectrogram.freqs), len(spectrogram.times)],
        normalization=stats | {"gain_correction": options.gain_correction},
        splits=split_manifests(shards, rows, classes),
        rejects={
            path.stem: len(path.read_text().splitlines())
            for path in sorted(work.rejects.glob("*.jsonl"))
        },
        values_clipped=n_clipped,
        files={},
        versions=package_versions(),
    )
    (folder / "README.md").write_text(dataset_card(manifest))
    (folder / PICTURE).write_bytes(mean_spectrograms_png(work.pictures, manifest))
    described = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    manifest.files.update(
        {
            str(path.relative_to(folder)): file_digest(path)
            for path in described
            if path.suffix != ".tar" and path.name != RUN
        }
    )
    return manifest


def rebuild_normalization(
    summaries: Sequence[SessionSummary], rows: Sequence[dict[str, Any]], method: str
) -> Normalization:
    """Return the train statistics from the rows of ``sessions.parquet``."""
    split_of = {row["session"]: row["split"] for row in rows}
    gains = {row["session"]: round(row["gain"] * UNIT) for row in rows}
    return train_normalization(summaries, split_of, gains, method)


def normalization_stats(norm: Normalization) -> dict[str, Any]:
    """Return the contents of ``spectrogram_norm_stats.json``."""
    per_frequency = norm.method == "per_frequency"
    return {
        "normalization": norm.method,
        "mean": norm.mean.tolist() if per_frequency else float(norm.mean[0]),
        "std": norm.std.tolist() if per_frequency else float(norm.std[0]),
        "count": norm.count,
        "sessions": list(norm.sessions),
    }


def describe_source(source: TraceSource, summaries: Sequence[SessionSummary]) -> dict[str, Any]:
    """Return the manifest's word on the table.

    Files are named by what was used of them, not by where they lay, so that the same rows in one
    file or in forty give the same manifest; ``run.json`` has the path.
    """
    content = sum(summary.content for summary in summaries) % (1 << 128)
    uri = f"trials:{content:032x}" if source.snapshot_time is None else source.uri
    return {
        "kind": source.kind,
        "uri": uri,
        "rows": source.n_rows,
        "snapshot_time": source.snapshot_time,
    }


def install(work: WorkFolder, manifest: Manifest, output: Path) -> None:
    """Move a finished dataset into place; its manifest appears last."""
    (output / MANIFEST).unlink(missing_ok=True)
    for name in CONTENTS:
        old = output / name
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
        (work.dataset / name).rename(old)
    write_atomically(output / MANIFEST, manifest.to_json())
    work.remove()
