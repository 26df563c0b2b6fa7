"""The dataset card: what was made, how, and what it looks like."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from beam_pipeline.manifest import Manifest
from beam_pipeline.plurals import plural
from beam_pipeline.splits import SPLITS

PICTURE = "mean_spectrograms.png"
#: Shares of the trials that are further from what was asked for are said.
RATIO_TOLERANCE = 0.05
_CARD = """# LFP spectrogram dataset

{n_trials} of {n_sessions} ({n_subjects}), classes {classes}. Each sample of a
shard is up to {block_trials} consecutive trials of one session: `spectrogram.npy` float16
(trials, {n_freqs} frequencies, {n_times} times), `baseline.npy` float32 (trials, frequencies)
and `json`. The format is described in `docs/dataset-format.md` of LFP-ViT.

```python
import webdataset as wds
for sample in wds.WebDataset("{example}", shardshuffle=False).decode():
    sample["spectrogram.npy"], sample["json"]["label"]
```

Axes: {fmin:.4g} to {fmax:.4g} Hz, {tmin:.4g} to {tmax:.4g} s relative to the onset.
Normalisation: {normalization}.

## Splits

{splits}

Split by {grouping}. The unit of evidence is the animal, then the session: {evidence}
{cautions}

## Rows that were not used

{rejects}

## Mean spectrograms

![Mean spectrogram of each condition and split]({picture})

## Options

{options}

Made by {versions}. Source: {source}.
"""


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table; integers get thousands separators."""
    lines = [f"| {' | '.join(header)} |", f"| {' | '.join('---' for _ in header)} |"]
    for row in rows:
        texts = (f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row)
        # A query may hold both.
        cells = (text.replace("|", "\\|").replace("\n", " ") for text in texts)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def dataset_card(manifest: Manifest) -> str:
    """Return the card as Markdown."""
    splits = manifest.splits
    subjects = {name for split in splits.values() for name in split.subjects}
    norm = manifest.normalization
    test = splits["test"]
    units = len(test.subjects) or len(test.sessions)
    return _CARD.format(
        n_trials=plural(sum(split.trials for split in splits.values()), "trial"),
        n_sessions=plural(sum(len(split.sessions) for split in splits.values()), "session"),
        n_subjects=plural(len(subjects), "subject") if subjects else "subjects unknown",
        classes=", ".join(f"{name} = {label}" for label, name in enumerate(manifest.classes)),
        block_trials=manifest.shape[0],
        n_freqs=manifest.shape[1],
        n_times=manifest.shape[2],
        example=manifest.shards[0]["path"],
        fmin=manifest.freqs[0],
        fmax=manifest.freqs[-1],
        tmin=manifest.times[0],
        tmax=manifest.times[-1],
        normalization=_normalization_text(norm),
        splits=_splits_table(manifest),
        grouping="subject" if subjects else "session (the table names no subjects)",
        evidence=f"the test split holds {units} of them.",
        cautions="".join(f"\n- Note: {caution}." for caution in cautions(manifest)),
        rejects=_rejects_table(manifest.rejects),
        picture=PICTURE,
        options=markdown_table(
            ["option", "value"],
            [(name, f"`{value}`") for name, value in manifest.options.items() if name != "splits"],
        ),
        versions=", ".join(f"{name} {value}" for name, value in manifest.versions.items()),
        source=f"`{manifest.source['uri']}`, {plural(manifest.source['rows'], 'row')}",
    )


def cautions(manifest: Manifest) -> list[str]:
    """Return what a reader should know before trusting the splits."""
    splits, found = manifest.splits, []
    total = sum(split.trials for split in splits.values())
    reached = [split.trials / total for split in splits.values()]
    asked = manifest.options["split_ratios"]
    if (
        manifest.options["splits"] is None
        and max(abs(a - b) for a, b in zip(asked, reached, strict=True)) > RATIO_TOLERANCE
    ):
        found.append(
            f"the splits hold {_shares(reached)} of the trials instead of {_shares(asked)}: there "
            "are too few groups, or they are too unequal"
        )
    sessions = sum(len(split.sessions) for split in splits.values())
    subjects = {name for split in splits.values() for name in split.subjects}
    if len(subjects) == sessions:
        found.append(
            "each subject has a single session: if the column does not name animals, an animal "
            "may stand in two splits"
        )
    elif not subjects:
        found.append("the table names no subjects: an animal may stand in two splits")
    return found


def _shares(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.2f}" for value in values)


def _normalization_text(norm: Mapping[str, Any]) -> str:
    if norm["normalization"] == "none":
        return "none"
    if norm["normalization"] == "per_frequency":
        return "mean and standard deviation per frequency, of the train split only"
    return (
        f"mean {norm['mean']:.4g} and standard deviation {norm['std']:.4g} of the train split only"
    )


def _splits_table(manifest: Manifest) -> str:
    header = ["split", "trials", *manifest.classes, "sessions", "subjects", "samples", "shards"]
    rows = [
        (
            name,
            split.trials,
            *(split.trials_per_class[label] for label in manifest.classes),
            len(split.sessions),
            len(split.subjects) or "unknown",
            split.samples,
            len(split.shards),
        )
        for name, split in manifest.splits.items()
    ]
    return markdown_table(header, rows)


def _rejects_table(rejects: Mapping[str, int]) -> str:
    if not rejects:
        return "None: every row is used."
    return markdown_table(["reason", "rows"], sorted(rejects.items())) + (
        "\n\nEach stands with its session, trial and detail in `rejects/`."
    )


def mean_spectrograms_png(folder: Path, manifest: Manifest) -> bytes:
    """Draw the mean normalised spectrogram of each condition (rows) and split (columns).

    Parameters
    ----------
    folder : pathlib.Path
        Holds one ``.npz`` a condition and split.
    manifest : Manifest
    """
    # Figure alone, without pyplot: no global state and no display needed.
    from matplotlib.figure import Figure

    means = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as data:
            means[str(data["condition"]), str(data["split"])] = (
                data["mean"],
                int(data["n_trials"]),
            )
    limit = max(np.abs(mean).max() for mean, _ in means.values())
    n_rows = len(manifest.classes)
    height = 0.8 + 2.2 * n_rows
    figure = Figure(figsize=(10, height), dpi=100)
    # A constrained layout draws everything twice more to find these few numbers.
    figure.subplots_adjust(0.07, 0.55 / height, 1.0, 1 - 0.3 / height, 0.08, 0.18)
    axes = figure.subplots(n_rows, len(SPLITS), sharex=True, sharey=True, squeeze=False)
    for row, condition in enumerate(manifest.classes):
        for column, split in enumerate(SPLITS):
            axis = axes[row, column]
            mean, n_trials = means.get((condition, split), (None, 0))
            axis.set_title(f"{condition}, {split} ({plural(n_trials, 'trial')})", fontsize=9)
            if mean is not None:
                image = axis.pcolormesh(
                    manifest.times, manifest.freqs, mean, cmap="RdBu_r", vmin=-limit, vmax=limit
                )
            axis.axvline(0, color="black", linewidth=0.8)
    figure.supxlabel("time from onset (s)", fontsize=9)
    figure.supylabel("frequency (Hz)", fontsize=9)
    figure.colorbar(image, ax=axes, label="mean normalised value", pad=0.02)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
