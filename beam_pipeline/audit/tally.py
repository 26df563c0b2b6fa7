"""What an audit remembers of a trace table while its rows pass by."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import signal

from beam_pipeline.rejects import Reason
from beam_pipeline.screening import ScreeningOptions, TrialBatch, screen
from beam_pipeline.trace_column import decode_traces

#: Traces of other lengths are counted, but not averaged: their sums would grow with the table.
MAX_TIMINGS = 8


class Timing(NamedTuple):
    """What traces must share to be averaged sample by sample; None where nobody states it."""

    n_samples: int
    sfreq: float | None
    onset: float | None

    @property
    def onset_sample(self) -> int | None:
        """Sample of the onset; None if unknown or outside the trace."""
        if self.sfreq is None or self.onset is None:
            return None
        sample = round(self.onset * self.sfreq)
        return sample if 0 <= sample < self.n_samples else None


class Stimulus(NamedTuple):
    """A cell of the stimulus grid; None where the table says nothing."""

    frequency: float | None
    amplitude: float | None


@dataclass
class TraceSums:
    """Sums over traces of one timing, each trace taken relative to its own mean.

    Attributes
    ----------
    n_trials : int
    trace : float64 array of shape (n_samples,)
    power : float64 array of shape (n_samples // 2 + 1,)
        Power spectral density, unit**2 per Hz, or per cycle a sample where the rate is unknown.
    baseline_power : float64 array of shape (onset_sample // 2 + 1,)
        The same of the samples before the onset alone; of shape (1,) where the onset is unknown.
    """

    n_trials: int
    trace: NDArray[np.float64]
    power: NDArray[np.float64]
    baseline_power: NDArray[np.float64]

    @classmethod
    def zero(cls, timing: Timing) -> TraceSums:
        """Return the neutral element of addition."""
        n_samples, n_before = timing.n_samples, timing.onset_sample or 0
        return cls(
            0, np.zeros(n_samples), np.zeros(n_samples // 2 + 1), np.zeros(n_before // 2 + 1)
        )

    def add(self, spectra: TraceSpectra, rows: Sequence[int]) -> None:
        """Add some of the traces of a batch."""
        self.n_trials += len(rows)
        self.trace += spectra.traces[rows].sum(axis=0)
        self.power += spectra.power[rows].sum(axis=0)
        self.baseline_power += spectra.baseline_power[rows].sum(axis=0)

    def induced_power(self, sfreq: float | None) -> NDArray[np.float64]:
        """Return the mean power of the traces without their mean, which is the evoked response.

        Parameters
        ----------
        sfreq : float or None
            As it was for `power`.
        """
        evoked = self.n_trials * periodogram(self.trace / self.n_trials, sfreq)
        # Of equal traces nothing is left but rounding, which may be below zero.
        return np.maximum(self.power - evoked, 1e-12 * self.power) / max(self.n_trials - 1, 1)


class TraceSpectra(NamedTuple):
    """The traces of a batch and their spectra, one row a trace; shapes as in `TraceSums`."""

    traces: NDArray[np.float64]
    power: NDArray[np.float64]
    baseline_power: NDArray[np.float64]

    @classmethod
    def of(cls, traces: NDArray[np.float64], timing: Timing) -> TraceSpectra:
        """Compute the spectra of traces of shape (n, n_samples)."""
        n_before = timing.onset_sample or 0
        before = (
            periodogram(traces[:, :n_before], timing.sfreq)
            if n_before > 1
            else np.zeros((len(traces), n_before // 2 + 1))
        )
        return cls(traces, periodogram(traces, timing.sfreq), before)


def periodogram(traces: NDArray[np.float64], sfreq: float | None) -> NDArray[np.float64]:
    """Return Hann periodograms over the last axis; see `TraceSums` for the unit."""
    _, power = signal.periodogram(
        traces, sfreq or 1.0, window="hann", detrend="constant", scaling="density"
    )
    return np.asarray(power)


def _integers() -> array[int]:
    return array("q")


def _floats() -> array[float]:
    return array("d")


@dataclass
class SessionTally:
    """One session: counts, a few numbers a trial, and sums of traces.

    Attributes
    ----------
    rows : int
    conditions, subjects : Counter
        Rows by label; rows without the label are left out.
    trial_num : array of int
        Of every row that has one.
    labels : Counter
        Rows that passed the screening by (condition, subject or None).
    accepted : array of int
        `trial_num` of the rows that passed the screening; the next five go with it.
    named : array of int
        1 if the row has a subject, else 0.
    frequency, amplitude : array of float
        Stimulus; NaN where the table says nothing.
    digest : array of int
        64 bits of the trace's digest.
    level : array of float
        Standard deviation of the trace.
    rejects : Counter
        Rows that fail by themselves, by reason.
    timings : Counter
        Accepted rows by timing.
    sums : dict
        Sums by timing, for at most `MAX_TIMINGS` of them.
    """

    rows: int = 0
    conditions: Counter[str] = field(default_factory=Counter)
    subjects: Counter[str] = field(default_factory=Counter)
    trial_num: array[int] = field(default_factory=_integers)
    labels: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    accepted: array[int] = field(default_factory=_integers)
    named: array[int] = field(default_factory=lambda: array("b"))
    frequency: array[float] = field(default_factory=_floats)
    amplitude: array[float] = field(default_factory=_floats)
    digest: array[int] = field(default_factory=_integers)
    level: array[float] = field(default_factory=_floats)
    rejects: Counter[Reason] = field(default_factory=Counter)
    timings: Counter[Timing] = field(default_factory=Counter)
    sums: dict[Timing, TraceSums] = field(default_factory=dict)

    def add_trials(
        self,
        timing: Timing,
        trials: TrialBatch,
        rows: Sequence[int],
        spectra: TraceSpectra,
    ) -> None:
        """Add the accepted rows `rows` of a batch, which belong to this session."""
        self.timings[timing] += len(rows)
        for row in rows:
            subject = trials.subject[row]
            self.labels[trials.condition[row], subject] += 1
            self.accepted.append(int(trials.trial_num[row]))
            self.named.append(subject is not None)
            self.frequency.append(float(trials.frequency[row]))
            self.amplitude.append(float(trials.amplitude[row]))
            self.digest.append(int(trials.digest[row, :8].view(np.int64)[0]))
            self.level.append(float(trials.level[row]))
        if timing not in self.sums and len(self.sums) < MAX_TIMINGS:
            self.sums[timing] = TraceSums.zero(timing)
        if timing in self.sums:
            self.sums[timing].add(spectra, rows)


@dataclass
class AuditTally:
    """Everything an audit remembers; rows are added batch by batch.

    Attributes
    ----------
    sfreq, onset : float or None
        For rows that state none: Hz, and seconds from the start of the trace.
    max_railed_fraction : float
        As in `ScreeningOptions`.
    rows : int
    sessions : dict
        By name.
    nameless : Counter
        Rows without a session, by reason.
    stimuli : Counter
        Accepted rows by stimulus.
    """

    sfreq: float | None = None
    onset: float | None = None
    max_railed_fraction: float = 0.05
    rows: int = 0
    sessions: dict[str, SessionTally] = field(default_factory=lambda: defaultdict(SessionTally))
    nameless: Counter[Reason] = field(default_factory=Counter)
    stimuli: Counter[Stimulus] = field(default_factory=Counter)

    def add(self, batch: pa.RecordBatch) -> None:
        """Add the rows of a record batch with the columns of contract 2.1."""
        self.rows += batch.num_rows
        self._count_labels(batch)
        for timing, group in self._by_timing(batch):
            # Squares of what float64 just holds overflow; `_add_trials` sees to such rows.
            with np.errstate(over="ignore", invalid="ignore"):
                trials, rejects = screen(group, self._screening(timing))
            for reject in rejects:
                tally = (
                    self.nameless
                    if reject.session is None
                    else (self.sessions[reject.session].rejects)
                )
                tally[reject.reason] += 1
            if len(trials.session):
                self._add_trials(timing, trials)

    def _count_labels(self, batch: pa.RecordBatch) -> None:
        columns = (
            _texts(batch, "session"),
            _texts(batch, "condition"),
            _texts(batch, "subject"),
            batch.column("trial_num").to_pylist(),
        )
        for session, condition, subject, trial_num in zip(*columns, strict=True):
            if session is None:
                continue
            tally = self.sessions[session]
            tally.rows += 1
            if condition is not None:
                tally.conditions[condition] += 1
            if subject is not None:
                tally.subjects[subject] += 1
            if trial_num is not None:
                tally.trial_num.append(trial_num)

    def _by_timing(self, batch: pa.RecordBatch) -> list[tuple[Timing, pa.RecordBatch]]:
        decoded = decode_traces(batch.column("trace"))
        lengths = np.diff(decoded.offsets)
        sfreq = _numbers(batch, "sfreq", self.sfreq)
        onset = _numbers(batch, "onset", self.onset)
        # Decoded once: text would be parsed again below.
        traces = pa.LargeListArray.from_arrays(decoded.offsets, decoded.values)
        decoded_batch = batch.set_column(batch.schema.names.index("trace"), "trace", traces)
        groups: dict[Timing, list[int]] = defaultdict(list)
        for row in range(batch.num_rows):
            groups[Timing(int(lengths[row]), sfreq[row], onset[row])].append(row)
        pieces = []
        for timing, rows in groups.items():
            sound = [row for row in rows if row not in decoded.problems]
            if sound:
                whole = len(sound) == batch.num_rows
                pieces.append((timing, decoded_batch if whole else decoded_batch.take(sound)))
            if len(sound) < len(rows):
                # `screen` names what is wrong with a trace from its original form.
                unsound = [row for row in rows if row in decoded.problems]
                pieces.append((timing, batch.take(unsound)))
        return pieces

    def _screening(self, timing: Timing) -> ScreeningOptions:
        onset = timing.onset or 0.0
        return ScreeningOptions(
            sfreq=1.0 if timing.sfreq is None else timing.sfreq,
            onset=onset,
            resample=False,
            max_railed_fraction=self.max_railed_fraction,
            # The whole trace, whatever its length.
            segment=(-onset, np.inf),
            # Rows without samples are rejected before anything is cut.
            n_samples=max(timing.n_samples, 1),
            dtype="float64",
        )

    def _add_trials(self, timing: Timing, trials: TrialBatch) -> None:
        traces = trials.segments.astype(np.float64)
        traces -= traces.mean(axis=1, keepdims=True)
        with np.errstate(over="ignore", invalid="ignore"):
            spectra = TraceSpectra.of(traces, timing)
        usable = (trials.level > 0) & np.isfinite(trials.level)
        usable &= np.isfinite(spectra.power).all(axis=1)
        rows_of: dict[str, list[int]] = defaultdict(list)
        for row, session in enumerate(trials.session):
            if not usable[row]:
                self.sessions[session].rejects[Reason.UNUSABLE_SPECTROGRAM] += 1
                continue
            rows_of[session].append(row)
            stimulus = trials.frequency[row], trials.amplitude[row]
            self.stimuli[Stimulus(*(None if np.isnan(v) else float(v) for v in stimulus))] += 1
        for session, rows in rows_of.items():
            self.sessions[session].add_trials(timing, trials, rows, spectra)


def _texts(batch: pa.RecordBatch, name: str) -> list[str | None]:
    if name not in batch.schema.names:
        return [None] * batch.num_rows
    return [value or None for value in batch.column(name).cast(pa.string()).to_pylist()]


def _numbers(batch: pa.RecordBatch, name: str, default: float | None) -> list[float | None]:
    if name not in batch.schema.names:
        return [default] * batch.num_rows
    values = pc.fill_null(batch.column(name).cast(pa.float64()), np.nan).to_pylist()
    return [default if np.isnan(value) else value for value in values]
