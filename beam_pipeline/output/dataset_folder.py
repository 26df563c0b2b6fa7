"""The dataset folder as a whole: what may stand there before a run, and how a run finishes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from beam_pipeline.card import PICTURE, dataset_card, mean_spectrograms_png
from beam_pipeline.layout import Normalization, train_normalization
from beam_pipeline.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    RUN,
    SESSIONS,
    STATS,
    Manifest,
    ManifestError,
    file_digest,
    package_versions,
    read_manifest,
    split_manifests,
)
from beam_pipeline.moments import UNIT
from beam_pipeline.options import DatasetOptions
from beam_pipeline.output.installation import CONTENTS
from beam_pipeline.output.work_folder import WorkFolder
from beam_pipeline.plurals import plural
from beam_pipeline.sessions_table import read_summaries
from beam_pipeline.shards import ShardInfo, shards_of, wids_index
from beam_pipeline.sources import TraceSource
from beam_pipeline.spectrogram import Spectrogram
from beam_pipeline.splits import SPLITS
from beam_pipeline.storage.places import AnyPath, file_sizes
from beam_pipeline.survey import CONTENT_MODULUS, SessionSummary

#: Differing options that a message names.
SHOWN_CHANGES = 4


class IncompleteDatasetError(RuntimeError):
    """What was written does not add up to what was read."""


class DatasetExistsError(RuntimeError):
    """The output folder holds something that must not be lost."""


def existing_dataset(
    source: TraceSource, options: DatasetOptions, output: AnyPath, overwrite: bool
) -> Manifest | None:
    """Return the manifest if `output` already holds this dataset; None if the way is free.

    Raises
    ------
    DatasetExistsError
        If `output` is something else that must not be lost.
    """
    if not (output / MANIFEST).exists():
        _check_foreign(output)
        return None
    try:
        manifest = read_manifest(output)
    except ManifestError as error:
        raise DatasetExistsError(
            f"{output}: {error}; choose another --output, or delete it yourself"
        ) from error
    difference = _difference(manifest, source, options, output)
    if difference is None:
        return manifest
    if overwrite:
        return None
    raise DatasetExistsError(
        f"the dataset in {output} {difference}; choose another --output, or replace it with "
        "--overwrite"
    )


def _difference(
    manifest: Manifest, source: TraceSource, options: DatasetOptions, output: AnyPath
) -> str | None:
    """Say in what a dataset is not the one that is asked for; None if it is."""
    if manifest.fingerprint != options.fingerprint():
        return f"was made with other options{_changed_options(manifest, options)}"
    identity = _input_identity(output)
    if identity is None:
        return f"does not say from which input it was made ({RUN} is missing or damaged)"
    if identity != source.identity():
        return "was made from another or a changed input"
    if not _is_whole(output, manifest):
        return "is damaged: files are missing or have another size (see the verify command)"
    return None


def _check_foreign(output: AnyPath) -> None:
    """Refuse a folder with anything in it that no run of ours has put there."""
    interrupted = any(work.installing.exists() for work in WorkFolder.leftovers(output))
    ours = set(CONTENTS) if interrupted else set()
    foreign = sorted(
        path.name for path in output.iterdir() if path.name[0] != "." and path.name not in ours
    )
    if foreign:
        raise DatasetExistsError(
            f"{output} is neither empty nor a dataset: it holds {', '.join(foreign[:5])}; "
            "choose another --output"
        )


def _input_identity(output: AnyPath) -> list[Any] | None:
    try:
        identity = json.loads((output / RUN).read_text())["input_identity"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return identity if isinstance(identity, list) else None


def _is_whole(output: AnyPath, manifest: Manifest) -> bool:
    sizes = {path: entry["bytes"] for path, entry in manifest.files.items()}
    sizes |= {shard["path"]: shard["bytes"] for shard in manifest.shards}
    found = file_sizes(output)
    return all(found.get(path) == size for path, size in sizes.items())


def check_complete(manifest: Manifest) -> None:
    """Check that every row is used or rejected, and every used trial is in a shard.

    Beam's local runner has been seen to lose elements between its processes in silence
    (docs/decisions/0005), so its result is counted before it becomes a dataset.

    Raises
    ------
    IncompleteDatasetError
        If the numbers do not add up.
    """
    for name, split in manifest.splits.items():
        expected = sum(split.trials_per_class.values())
        if split.trials != expected:
            raise IncompleteDatasetError(
                f"the shards of {name} hold {split.trials:,} of {plural(expected, 'trial')}: the "
                "runner lost some; run again"
            )
    used = sum(split.trials for split in manifest.splits.values())
    rejected = sum(manifest.rejects.values())
    if used + rejected != manifest.source["rows"]:
        raise IncompleteDatasetError(
            f"{used:,} used and {rejected:,} rejected rows are not the "
            f"{manifest.source['rows']:,} of the table: the runner lost some; run again"
        )


def _changed_options(manifest: Manifest, options: DatasetOptions) -> str:
    new = options.to_dict()
    changed = [
        f"{name} {manifest.options.get(name)} -> {value}"
        for name, value in new.items()
        if name != "splits" and manifest.options.get(name) != value
    ]
    more = f" and {len(changed) - SHOWN_CHANGES:,} more" if len(changed) > SHOWN_CHANGES else ""
    return f" ({'; '.join(changed[:SHOWN_CHANGES])}{more})" if changed else ""


def describe(
    source: TraceSource,
    options: DatasetOptions,
    spectrogram: Spectrogram,
    work: WorkFolder,
) -> Manifest:
    """Write everything beside the shards into the work folder and return the manifest.

    Parameters
    ----------
    source : TraceSource
    options : DatasetOptions
    spectrogram : Spectrogram
    work : WorkFolder
        On this machine's disk: see `WorkFolder.fetch`.
    """
    folder, rejects, pictures = (
        Path(work.path, *parts) for parts in (("dataset",), ("dataset", "rejects"), ("pictures",))
    )
    summaries, table = read_summaries(folder / SESSIONS)
    rows = table.to_pylist()
    shards = [ShardInfo(**shard) for shard in json.loads(work.shards.read_text())]
    classes = list(options.classes or sorted({row["condition"] for row in rows}))
    stats = normalization_stats(rebuild_normalization(summaries, rows, options.normalization))
    (folder / STATS).write_text(json.dumps(stats, indent=1) + "\n")
    for split in SPLITS:
        index = wids_index(split, shards_of(split, shards))
        (folder / f"{split}.json").write_text(json.dumps(index, indent=1) + "\n")
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
            for path in sorted(rejects.glob("*.jsonl"))
        },
        values_clipped=sum(shard.values_clipped for shard in shards),
        files={},
        versions=package_versions(),
    )
    check_complete(manifest)
    (folder / "README.md").write_text(dataset_card(manifest))
    (folder / PICTURE).write_bytes(mean_spectrograms_png(pictures, manifest))
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
    content = sum(summary.content for summary in summaries) % CONTENT_MODULUS
    uri = f"trials:{content:032x}" if source.snapshot_time is None else source.uri
    return {
        "kind": source.kind,
        "uri": uri,
        "rows": source.n_rows,
        "snapshot_time": source.snapshot_time,
    }
