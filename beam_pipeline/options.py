"""Every choice that changes a dataset's content, and the command line that sets it."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from beam_pipeline.errors import UsageError
from beam_pipeline.sources import SourceError, TraceSource, parse_column_names
from beam_pipeline.sources.parquet import ParquetSource
from beam_pipeline.spectrogram import Spectrogram
from beam_pipeline.spectrogram_options import (
    BASELINE_MODES,
    DETRENDS,
    FREQ_SCALES,
    METHODS,
    SCALINGS,
    SpectrogramOptions,
)
from beam_pipeline.splits import SplitError, required_splits
from beam_pipeline.splits_file import SplitsFile, read_splits_file
from beam_pipeline.traces import SFREQ_TOLERANCE, ScreeningOptions

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
    shard_mb: float = 64.0
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


def _numbers(count: int) -> Callable[[str], tuple[float, ...]]:
    def parse(text: str) -> tuple[float, ...]:
        values = tuple(float(part) for part in text.split(","))
        if len(values) != count:
            raise ValueError
        return values

    parse.__name__ = f"list of {count} comma-separated numbers,"
    return parse


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _columns(text: str) -> dict[str, str]:
    try:
        return parse_column_names(text)
    except ValueError as error:
        # argparse names the flag, too.
        raise argparse.ArgumentTypeError(str(error).removeprefix("--columns: ")) from error


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is no time like 2026-11-20T12:00:00Z") from error
    if time.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text} has no time zone; add Z for UTC")
    if time > datetime.now(UTC):
        raise argparse.ArgumentTypeError(f"{text} is in the future")
    return time


def _at_least(kind: type[int] | type[float], low: float, high: float = float("inf")) -> Any:
    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            bound = f"at least {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
            raise argparse.ArgumentTypeError(f"{text} is not {bound}")
        return value

    parse.__name__ = kind.__name__
    return parse


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where the table is and how its columns are called."""
    group = parser.add_argument_group("table")
    group.add_argument(
        "--input",
        required=True,
        metavar="PATH",
        help="Parquet file, folder of Parquet files, or quoted glob, here or on gs://; or a table "
        "of BigQuery, bq://PROJECT.DATASET.TABLE",
    )
    group.add_argument(
        "--columns",
        type=_columns,
        default={},
        metavar="NAME=COLUMN,...",
        help="names in the table for: session, condition, trial_num, trace (required), subject, "
        "sfreq, onset, frequency, amplitude (optional); e.g. trace=lfp,session=session_id",
    )
    group.add_argument(
        "--sfreq",
        type=float,
        help="sampling rate in Hz of rows that state none; other rates are rejected, or "
        "resampled with --resample",
    )
    group.add_argument(
        "--onset",
        type=float,
        help="stimulus onset in seconds from the start of the trace, for rows that state none",
    )
    _add_bigquery_arguments(parser)


def _add_bigquery_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "BigQuery",
        "Reading is billed to the project of GOOGLE_CLOUD_PROJECT, or else to the table's own.",
    )
    group.add_argument(
        "--row_restriction",
        metavar="SQL",
        help="read the rows that meet this condition, e.g. \"session != 's07' AND trial_num < 90\"",
    )
    group.add_argument(
        "--snapshot_time",
        type=_time,
        metavar="TIME",
        help="read the table as it was then, e.g. 2026-11-20T12:00:00Z (default: as it is)",
    )
    group.add_argument(
        "--bq_query",
        metavar="SQL",
        help="read the result of this SELECT, which is put into a table that expires after a day, "
        "in the dataset --input bq://PROJECT.DATASET",
    )
    group.add_argument(
        "--bigquery_endpoint",
        metavar="HOST:PORT",
        help="another Storage Read API than Google's; on loopback plain text, and no credentials "
        "are looked for",
    )


def open_source(args: argparse.Namespace) -> TraceSource:
    """Return the table that the flags of `add_source_arguments` name.

    Raises
    ------
    UsageError
        If flags contradict each other.
    SourceError
        If it cannot be read.
    """
    if not args.input.startswith("bq://"):
        for flag in ("row_restriction", "snapshot_time", "bq_query", "bigquery_endpoint"):
            if getattr(args, flag) is not None:
                raise UsageError(f"--{flag} is for --input bq://..., not for {args.input}")
        return ParquetSource(args.input, args.columns)
    if args.bq_query is not None:
        for flag, instead in (("row_restriction", "WHERE"), ("snapshot_time", "FOR SYSTEM_TIME")):
            if getattr(args, flag) is not None:
                raise UsageError(f"--{flag} and --bq_query: write {instead} in the query instead")
    # Google's client takes half a second to load, which files need not wait for.
    try:
        from beam_pipeline.sources.bigquery import BigQuerySource, Selection
    except ModuleNotFoundError as error:
        raise SourceError(
            f"{args.input}: reading BigQuery takes {error.name}, which is not installed; "
            "run: pip install 'lfp-vit[pipeline]'"
        ) from error
    selection = Selection(args.row_restriction, args.snapshot_time, args.bq_query)
    return BigQuerySource(args.input, args.columns, selection, args.bigquery_endpoint)


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags behind `DatasetOptions`."""
    _add_screening_arguments(parser)
    _add_spectrogram_arguments(parser)
    _add_split_arguments(parser)


def _add_screening_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "rows", "Every row is used, or stands in rejects/ with its reason."
    )
    group.add_argument(
        "--resample",
        action="store_true",
        help="bring rows of another rate to --sfreq (SciPy's polyphase resampler)",
    )
    group.add_argument(
        "--classes",
        type=_names,
        metavar="A,B",
        help="known conditions in label order, the positive class last (default: all, sorted)",
    )
    group.add_argument(
        "--max_railed_fraction",
        type=_at_least(float, 0, 1),
        default=DatasetOptions.max_railed_fraction,
        help="reject a trace with a larger share of samples at its extreme (default %(default)s)",
    )
    group.add_argument(
        "--amplitude_outlier",
        type=_at_least(float, 0),
        metavar="N",
        help="reject trials N robust standard deviations from their session's median log "
        "amplitude (default: off)",
    )
    group.add_argument(
        "--max_reject_fraction",
        type=_at_least(float, 0, 1),
        default=DatasetOptions.max_reject_fraction,
        help="fail when more of the rows are rejected (default %(default)s)",
    )


def _add_spectrogram_arguments(parser: argparse.ArgumentParser) -> None:
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
    add("baseline", _numbers(2), "baseline window", metavar="TMIN,TMAX")
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


def _add_split_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "splits and shards", "Split by subject where there is one, else by session."
    )
    group.add_argument(
        "--split_ratios",
        type=_numbers(3),
        default=DatasetOptions.split_ratios,
        metavar="TRAIN,VAL,TEST",
        help="shares of the trials (default 0.7,0.15,0.15)",
    )
    group.add_argument("--split_seed", type=int, default=0, help="(default %(default)s)")
    group.add_argument(
        "--splits",
        metavar="FILE",
        help="CSV or JSON with session or subject, and split: overrides the ratios, but a split "
        "of ratio 0 need not hold every class",
    )
    group.add_argument(
        "--block_trials",
        type=_at_least(int, 1),
        default=DatasetOptions.block_trials,
        help="most consecutive trials in a WebDataset sample (default %(default)s)",
    )
    group.add_argument(
        "--shard_mb",
        type=_at_least(float, 0.001),
        default=DatasetOptions.shard_mb,
        help="size of a shard in MiB (default %(default)s)",
    )
    group.add_argument(
        "--num_shards",
        type=_at_least(int, 1),
        help="shards of each split, instead of --shard_mb",
    )


#: Flags whose value may begin with a minus sign, which argparse takes for another flag.
_SIGNED_LISTS = ("--baseline",)


def join_signed_values(arguments: Sequence[str]) -> list[str]:
    """Write ``--baseline -2.0,0.0`` as ``--baseline=-2.0,0.0``."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in _SIGNED_LISTS:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def resolve_sfreq(source: TraceSource, sfreq: float | None) -> float:
    """Return the dataset's sampling rate: the flag's, or the only one in the table.

    Rates that differ by less than `SFREQ_TOLERANCE` are one rate in several precisions.

    Raises
    ------
    SourceError
        If neither says it, or the table holds several rates.
    """
    if sfreq is not None:
        return sfreq
    if "sfreq" not in source.columns:
        raise SourceError(
            "the sampling rate is unknown: the table has no sfreq column; pass --sfreq HZ "
            "(or --columns sfreq=COLUMN)"
        )
    rates = sorted(rate for rate in _distinct(source, "sfreq") if 0 < rate < math.inf)
    if not rates or rates[-1] - rates[0] > SFREQ_TOLERANCE * rates[0]:
        found = ", ".join(f"{rate:g}" for rate in rates[:5]) or "no valid rate"
        raise SourceError(
            f"the table holds {found} Hz: pass --sfreq HZ, with --resample to bring other rates "
            "to it or without to reject them"
        )
    # Fewest digits: what the others are in another precision.
    return min(rates, key=lambda rate: (len(repr(rate)), rate))


def check_onset(source: TraceSource, onset: float | None, spectrogram: SpectrogramOptions) -> None:
    """Check that the onset is known and leaves room for a baseline.

    Raises
    ------
    SourceError
        If no onset is given, or the baseline begins before every trace does.
    UsageError
        If it does by the flag.
    """
    stated = _distinct(source, "onset") if "onset" in source.columns else [math.nan]
    onsets = [value if onset is None or not math.isnan(value) else onset for value in stated]
    latest = max(filter(math.isfinite, onsets), default=None)
    if latest is None:
        raise SourceError(
            "the stimulus onset is unknown: the table has no onset column, or no number in it; "
            "pass --onset SECONDS from the start of the trace (or --columns onset=COLUMN)"
        )
    start = spectrogram.baseline[0]
    # Half a sample: onsets and windows are rounded to samples.
    if latest + start < -0.5 / spectrogram.sfreq:
        raise (UsageError if latest == onset else SourceError)(
            f"the baseline {start:g} to {spectrogram.baseline[1]:g} s is empty: the onset is "
            f"{latest:g} s after the start of the trace, so nothing was recorded "
            f"{-start:g} s before it; pass a --baseline inside the trace"
        )


def _distinct(source: TraceSource, column: str) -> list[float]:
    """Return the distinct values of a column of numbers, NaN for null."""
    values = source.read_columns([column]).column(column).unique().to_pylist()
    return [math.nan if value is None else float(value) for value in values]


def dataset_options(args: argparse.Namespace, source: TraceSource) -> DatasetOptions:
    """Build the options from parsed flags and what the table says of its timing.

    Raises
    ------
    UsageError
        If a flag has a wrong value, or flags contradict each other.
    SourceError
        If the table does not say what the flags leave open, or leaves no room for a baseline.
    SplitError
        If the splits file is wrong.
    """
    sfreq = resolve_sfreq(source, args.sfreq)
    splits = None if args.splits is None else read_splits_file(args.splits)
    names = {field.name for field in fields(SpectrogramOptions)} - {"sfreq"}
    given = {"spectrogram", "splits", "selection"}
    rest = {field.name for field in fields(DatasetOptions)} - given
    try:
        options = DatasetOptions(
            spectrogram=SpectrogramOptions(
                sfreq=sfreq, **{name: getattr(args, name) for name in names}
            ),
            splits=splits,
            selection=source.selection(),
            **{name: getattr(args, name) for name in rest},
        )
        # Whether a window holds a frame, or a wavelet fits, shows only when they are laid out.
        Spectrogram(options.spectrogram)
    except ValueError as error:
        raise UsageError(str(error)) from error
    check_onset(source, args.onset, options.spectrogram)
    return options


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
