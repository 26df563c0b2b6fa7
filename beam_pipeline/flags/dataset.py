"""All flags that shape a dataset, and the options that they make."""

from __future__ import annotations

import argparse
from dataclasses import fields

from beam_pipeline.errors import UsageError
from beam_pipeline.flags.rows import add_screening_arguments
from beam_pipeline.flags.spectrogram import add_spectrogram_arguments
from beam_pipeline.flags.splits import add_split_arguments
from beam_pipeline.options import DatasetOptions
from beam_pipeline.sources import TraceSource
from beam_pipeline.spectrogram import Spectrogram
from beam_pipeline.spectrogram_options import SpectrogramOptions
from beam_pipeline.splits_file import read_splits_file
from beam_pipeline.table_timing import check_onset, resolve_sfreq


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags behind `DatasetOptions`."""
    add_screening_arguments(parser)
    add_spectrogram_arguments(parser)
    add_split_arguments(parser)


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
