"""How a trace becomes a normalised spectrogram."""

from __future__ import annotations

import argparse
from typing import Any

from beam_pipeline.flags.values import numbers
from beam_pipeline.options import GAIN_CORRECTIONS, NORMALIZATIONS, DatasetOptions
from beam_pipeline.spectrogram_options import (
    BASELINE_MODES,
    DETRENDS,
    FREQ_SCALES,
    METHODS,
    SCALINGS,
    SpectrogramOptions,
)


def add_spectrogram_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the spectrogram and of what is done to it."""
    default = SpectrogramOptions
    group = parser.add_argument_group(
        "spectrogram", "Times are in seconds relative to the onset, as in MNE."
    )

    def add(flag: str, kind: Any, text: str, **more: Any) -> None:
        value = getattr(default, flag)
        shown = value if not isinstance(value, tuple) else ",".join(map(str, value))
        note = "" if value is None else f" (default {shown})"
        group.add_argument(f"--{flag}", type=kind, default=value, help=text + note, **more)

    add("tmin", float, "start of the window")
    add("tmax", float, "end of the window; the last sample is excluded")
    add("baseline", numbers(2), "baseline window", metavar="TMIN,TMAX")
    add(
        "baseline_mode",
        str,
        "trace: subtract the baseline mean from the trace; others: rescale the power as "
        "mne.baseline.rescale does, per trial and frequency (this can delete a class that "
        "differs in background power)",
        choices=BASELINE_MODES,
    )
    add("method", str, "time-frequency method", choices=METHODS)
    add("fmin", float, "lowest frequency in Hz (default: all of the STFT; 4 for wavelets)")
    add("fmax", float, "highest frequency in Hz (default: all of the STFT; 150 for wavelets)")
    add("n_freqs", int, "number of frequencies (default: the STFT's bins; 64 for wavelets)")
    add("freq_scale", str, "spacing of --n_freqs", choices=FREQ_SCALES)
    add("window", str, "STFT: SciPy's name of the window, taken as symmetric")
    add("nperseg", int, "STFT: samples of a segment")
    add("noverlap", int, "STFT: samples that neighbouring segments share")
    add("detrend", str, "STFT: per segment", choices=DETRENDS)
    add("scaling", str, "STFT: power density or power", choices=SCALINGS)
    add("n_cycles", float, "Morlet, multitaper: cycles in a wavelet")
    add("time_bandwidth", float, "multitaper: time-bandwidth product")
    add("decim", int, "Morlet, multitaper: keep every n-th sample")
    add("log_floor", float, "added to the power before log10, in the unit of the power")
    group.add_argument(
        "--gain_correction",
        choices=GAIN_CORRECTIONS,
        default=DatasetOptions.gain_correction,
        help="session: subtract each session's own mean log power of the baseline window "
        "(no labels involved), so that its gain is no shortcut (default %(default)s)",
    )
    group.add_argument(
        "--normalization",
        choices=NORMALIZATIONS,
        default=DatasetOptions.normalization,
        help="mean and standard deviation over the train split only (default %(default)s)",
    )
