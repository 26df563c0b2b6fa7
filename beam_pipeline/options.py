"""Every choice that changes a dataset's content."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from beam_pipeline.errors import UsageError
from beam_pipeline.screening import ScreeningOptions
from beam_pipeline.sources import TraceSource
from beam_pipeline.spectrogram import Spectrogram
from beam_pipeline.spectrogram_options import SpectrogramOptions
from beam_pipeline.splits import SplitError, required_splits
from beam_pipeline.splits_file import SplitsFile

NORMALIZATIONS = ("global", "per_frequency", "none")
GAIN_CORRECTIONS = ("none", "session")


@dataclass(frozen=True)
class DatasetOptions:
    """What makes two datasets from the same rows equal or different.

    Raises
    ------
    UsageError
        If a value is out of range, or contradicts another.
    """

    spectrogram: SpectrogramOptions
    columns: dict[str, str]
    onset: float | None = None
    resample: bool = False
    classes: tuple[str, ...] | None = None
    max_railed_fraction: float = 0.05
    amplitude_outlier: float | None = None
    max_reject_fraction: float = 0.05
    gain_correction: str = "none"
    normalization: str = "global"
    split_ratios: tuple[float, float, float] = (0.7, 0.15, 0.15)
    split_seed: int = 0
    splits: SplitsFile | None = None
    block_trials: int = 32
    shard_mb: float = 128.0
    num_shards: int | None = None
    #: What says which rows of a table are read, under its flags' names; nothing for files.
    selection: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what needs no table."""
        try:
            required_splits(self.split_ratios)
        except SplitError as error:
            raise UsageError(str(error)) from error
        if self.onset is not None and not math.isfinite(self.onset):
            raise UsageError(f"--onset {self.onset} must be a finite number of seconds")
        if self.classes is not None and len(set(self.classes)) < max(2, len(self.classes)):
            raise UsageError(
                f"--classes {','.join(self.classes)} must name at least two classes, each once"
            )
        if self.gain_correction == "session" and self.spectrogram.baseline_mode != "trace":
            raise UsageError(
                "--gain_correction session works on log power, so it needs --baseline_mode trace "
                f"(the mode {self.spectrogram.baseline_mode} already relates each trial to its "
                "own baseline)"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON data, flat, under the names of their flags."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= asdict(values.pop("spectrogram")) | values.pop("selection")
        splits = values.pop("splits")
        values["splits"] = (
            None
            if splits is None
            else {"by": splits.by, "split_of": dict(sorted(splits.split_of.items()))}
        )
        return dict(sorted(json.loads(json.dumps(values)).items()))

    def fingerprint(self) -> str:
        """Return a SHA-256 over the options."""
        return options_fingerprint(self.to_dict())


def options_fingerprint(options: dict[str, Any]) -> str:
    """Return the SHA-256 of options as they stand in the manifest."""
    text = json.dumps(options, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def screening_options(
    source: TraceSource, options: DatasetOptions, spectrogram: Spectrogram
) -> ScreeningOptions:
    """Return what each row must satisfy by itself."""
    return ScreeningOptions(
        options.spectrogram.sfreq,
        options.onset,
        options.resample,
        options.max_railed_fraction,
        spectrogram.segment,
        spectrogram.n_samples,
        # Resampling rounds to nothing shorter than it computes in.
        "float64" if options.resample else source.sample_dtype,
    )
