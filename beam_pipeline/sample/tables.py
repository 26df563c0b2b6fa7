"""Generated tables of one session after another, in pieces that bound the memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beam_pipeline.sample.bad_rows import REASONS, damage, draw_bad_trials
from beam_pipeline.sample.model import latent_amplitudes
from beam_pipeline.sample.options import SampleOptions
from beam_pipeline.sample.sessions import Session, draw_session, stimulus_order
from beam_pipeline.sample.streams import Stream, generator
from beam_pipeline.sample.traces import DURATION, ONSET, simulate

# About 4 MB of traces are in memory at a time; the number is part of what makes the bytes.
SAMPLES_PER_CHUNK: Final = 1_000_000

LATENT_SCHEMA: Final = pa.schema(
    {"session": pa.string(), "trial_num": pa.int64(), "latent": pa.float64()}
)


def encode_traces(
    traces: Sequence[NDArray[np.float32]], encoding: str, truncated: Iterable[int] = ()
) -> pa.Array:
    """Encode traces as an Arrow column.

    Parameters
    ----------
    traces : sequence of ndarray of float32
        Traces, of any length.
    encoding : {"list", "text", "bytes"}
        Lists of float, text with 6 significant digits, or little-endian float32 bytes.
    truncated : iterable of int
        Rows whose text shows only the ends, as a printed array does.

    Returns
    -------
    pyarrow.Array
        The column.
    """
    if encoding == "bytes":
        return pa.array([trace.astype("<f4").tobytes() for trace in traces], pa.binary())
    if encoding == "text":
        hidden = frozenset(truncated)
        return pa.array(
            [_text(trace, row in hidden) for row, trace in enumerate(traces)], pa.string()
        )
    offsets = np.concatenate([[0], np.cumsum([len(trace) for trace in traces])]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, np.concatenate(traces))


def _text(trace: NDArray[np.float32], truncated: bool) -> str:
    if truncated:
        return f"[{_numbers(trace[:3])}, ..., {_numbers(trace[-3:])}]"
    return f"[{_numbers(trace)}]"


def _numbers(values: NDArray[np.float32]) -> str:
    # One format call for the whole trace is twice as fast as one a number.
    text = ", ".join(["%.6g"] * len(values)) % tuple(values.tolist())
    # The spelling that JSON readers take as well.
    return text.replace("nan", "NaN")


def session_tables(
    options: SampleOptions, index: int
) -> tuple[Session, pa.Table, dict[int, str], Iterator[pa.Table]]:
    """Generate one session, a pure function of the options and its index.

    Parameters
    ----------
    options : SampleOptions
        What to generate.
    index : int
        Number of the session.

    Returns
    -------
    session : Session
        The session.
    latents : pyarrow.Table
        Columns ``session, trial_num, latent``; one row a trial.
    bad_trials : dict of int to str
        Reject reason by ``trial_num``.
    chunks : iterator of pyarrow.Table
        The trace table of contract 2.1 in pieces of about 4 MB. A duplicated trial follows its
        original and equals it.
    """
    session = draw_session(index, options.sessions, options.seed)
    fmr1 = session.condition == "FMR1"
    latent = latent_amplitudes(
        options.trials,
        mean=options.effect if fmr1 else 0.0,
        correlation=options.dynamics if fmr1 else -options.dynamics,
        rng=generator(options.seed, Stream.LATENT, index),
    )
    reasons = REASONS if options.format == "text" else REASONS[:-1]
    rng = generator(options.seed, Stream.BAD_ROWS, index)
    bad = draw_bad_trials(options.trials, options.bad_fraction, reasons, rng)
    latents = pa.table(
        {
            "session": [session.session] * options.trials,
            "trial_num": np.arange(1, options.trials + 1),
            "latent": latent,
        },
        schema=LATENT_SCHEMA,
    )
    bad_trials = {trial + 1: reason for trial, reason in bad.items()}
    return session, latents, bad_trials, _chunks(options, index, session, latent, bad)


def _chunks(
    options: SampleOptions,
    index: int,
    session: Session,
    latent: NDArray[np.float64],
    bad: dict[int, str],
) -> Iterator[pa.Table]:
    stimulus_rng = generator(options.seed, Stream.STIMULUS, index)
    frequency, amplitude = stimulus_order(options.trials, stimulus_rng)
    step = max(1, int(SAMPLES_PER_CHUNK / (DURATION * options.sfreq)))
    for start in range(0, options.trials, step):
        trials = np.arange(start, min(start + step, options.trials))
        rng = generator(options.seed, Stream.TRACES, index, start)
        traces = list(
            simulate(
                session, latent[trials], frequency[trials], amplitude[trials], options.sfreq, rng
            )
        )
        for trial in bad.keys() & set(trials.tolist()):
            traces[trial - start] = damage(traces[trial - start], bad[trial], options.sfreq)
        copies = [2 if bad.get(trial) == "duplicate_trial" else 1 for trial in trials.tolist()]
        rows = np.repeat(trials, copies)
        truncated = [i for i, row in enumerate(rows) if bad.get(int(row)) == "truncated_trace"]
        yield pa.table(
            {
                "session": [session.session] * len(rows),
                "subject": [session.subject] * len(rows),
                "condition": [session.condition] * len(rows),
                "trial_num": rows + 1,
                "frequency": frequency[rows],
                "amplitude": amplitude[rows],
                "sfreq": np.full(len(rows), options.sfreq),
                "onset": np.full(len(rows), ONSET),
                "trace": encode_traces(
                    [traces[row - start] for row in rows], options.format, truncated
                ),
            }
        )
