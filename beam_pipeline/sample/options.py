"""What to generate: the options of ``sample`` and their ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from beam_pipeline.errors import UsageError

MIN_SFREQ: Final = 250.0


@dataclass(frozen=True)
class SampleOptions:
    """What to generate; equal options give equal bytes.

    Attributes
    ----------
    sessions, trials : int
        Number of sessions, and of trials in each.
    effect : float
        Mean of the latent log amplitude of FMR1, in its standard deviations (WT has 0).
    dynamics : float
        Correlation of successive latents: ``+dynamics`` in FMR1, ``-dynamics`` in WT.
    seed : int
        Seed of every random choice.
    sfreq : float
        Sampling rate in Hz.
    format : {"list", "text", "bytes"}
        Encoding of the ``trace`` column.
    bad_fraction : float
        Share of the trials of each session that get a bad row.
    files : int
        Number of Parquet files; a session is never split over two.

    Raises
    ------
    UsageError
        If an option is out of its range.
    """

    sessions: int = 28
    trials: int = 60
    effect: float = 1.0
    dynamics: float = 0.0
    seed: int = 0
    sfreq: float = 1000.0
    format: Literal["list", "text", "bytes"] = "list"
    bad_fraction: float = 0.01
    files: int = 1

    def __post_init__(self) -> None:
        """Check the ranges."""
        rules = (
            ("sessions", self.sessions >= 2, "at least 2, one of each class"),
            ("trials", self.trials >= 1, "at least 1"),
            ("effect", bool(np.isfinite(self.effect)), "a finite number"),
            ("dynamics", -1 < self.dynamics < 1, "between -1 and 1, both excluded"),
            ("seed", self.seed >= 0, "0 or more"),
            (
                "sfreq",
                MIN_SFREQ <= self.sfreq < np.inf,
                f"a finite number of at least {MIN_SFREQ:g} Hz, to hold the gamma burst",
            ),
            ("format", self.format in ("list", "text", "bytes"), "list, text or bytes"),
            ("bad_fraction", 0 <= self.bad_fraction <= 1, "between 0 and 1"),
            ("files", 1 <= self.files <= self.sessions, "between 1 and the number of sessions"),
        )
        for name, valid, expected in rules:
            if not valid:
                raise UsageError(f"--{name} is {getattr(self, name)!r}, but must be {expected}")
