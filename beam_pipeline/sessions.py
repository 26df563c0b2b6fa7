"""What only shows when the rows of a session stand together: conflicts, copies, blocks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from beam_pipeline.output.segments import Pointers
from beam_pipeline.plurals import plural
from beam_pipeline.rejects import Reason, Reject
from beam_pipeline.screening import TrialBatch

#: Scale of the median absolute deviation of a Gaussian, 1 / Phi^-1(3/4).
MAD_TO_STD = 1.4826022185056018
#: Digests that one worker compares at a time, 40 bytes each.
ROWS_OF_DIGEST_BUCKET = 200_000
MAX_DIGEST_BUCKETS = 1 << 12


@dataclass(frozen=True)
class SessionRows:
    """Some trials of one session, as columns of equal length; see `TrialBatch`."""

    subject: list[str | None]
    condition: list[str]
    trial_num: NDArray[np.int64]
    frequency: NDArray[np.float64]
    amplitude: NDArray[np.float64]
    level: NDArray[np.float64]
    digest: NDArray[np.uint8]
    pointers: Pointers

    @classmethod
    def concatenate(cls, parts: Iterable[SessionRows]) -> SessionRows:
        """Join the parts of one session end to end."""
        parts = list(parts)
        return cls(
            [subject for part in parts for subject in part.subject],
            [condition for part in parts for condition in part.condition],
            np.concatenate([part.trial_num for part in parts]),
            np.concatenate([part.frequency for part in parts]),
            np.concatenate([part.amplitude for part in parts]),
            np.concatenate([part.level for part in parts]),
            np.concatenate([part.digest for part in parts]),
            Pointers.concatenate([part.pointers for part in parts]),
        )

    def take(self, rows: NDArray[np.int64]) -> SessionRows:
        """Return the trials at these places, in their order."""
        return SessionRows(
            [self.subject[row] for row in rows],
            [self.condition[row] for row in rows],
            self.trial_num[rows],
            self.frequency[rows],
            self.amplitude[rows],
            self.level[rows],
            self.digest[rows],
            self.pointers[rows],
        )


@dataclass(frozen=True)
class Block:
    """Up to ``block_trials`` consecutive trials of one session, in ``trial_num`` order.

    Once its spectrograms are surveyed it needs its digests no more.
    """

    session: str
    subject: str | None
    condition: str
    block: int
    trial_num: NDArray[np.int64]
    frequency: NDArray[np.float64]
    amplitude: NDArray[np.float64]
    digest: NDArray[np.uint8]
    pointers: Pointers
    surveyed: bool = False

    def select(self, kept: NDArray[np.bool_]) -> Block:
        """Return the block with only the trials in the mask."""
        return replace(
            self,
            trial_num=self.trial_num[kept],
            frequency=self.frequency[kept],
            amplitude=self.amplitude[kept],
            digest=self.digest[kept],
            pointers=self.pointers[kept],
        )


@dataclass(frozen=True)
class Copy:
    """A trial whose trace stands elsewhere too."""

    trial_num: int
    digest: bytes
    detail: str


@dataclass(frozen=True)
class Fingerprints:
    """Which traces some trials of a session have, within one digest bucket."""

    session: str
    trial_num: NDArray[np.int64]
    digest: NDArray[np.uint8]


def order_by_session(trials: TrialBatch) -> tuple[NDArray[np.int64], list[tuple[str, slice]]]:
    """Return the order that puts each session's trials together, and where each session lies."""
    by_session: dict[str, list[int]] = defaultdict(list)
    for row, session in enumerate(trials.session):
        by_session[session].append(row)
    order: list[int] = []
    places = []
    for session, rows in by_session.items():
        rows.sort(key=lambda row: int(trials.trial_num[row]))
        places.append((session, slice(len(order), len(order) + len(rows))))
        order += rows
    return np.array(order, dtype=np.int64), places


def session_rows(
    trials: TrialBatch, order: NDArray[np.int64], place: slice, pointers: Pointers
) -> SessionRows:
    """Return one session's part of a batch; `pointers` are in the given order."""
    rows = order[place]
    return SessionRows(
        [trials.subject[row] for row in rows],
        [trials.condition[row] for row in rows],
        trials.trial_num[rows],
        trials.frequency[rows],
        trials.amplitude[rows],
        trials.level[rows],
        trials.digest[rows],
        pointers[place],
    )


def n_digest_buckets(n_rows: int) -> int:
    """Return into how many groups the digests of a table are spread to find equal ones."""
    return max(1, min(MAX_DIGEST_BUCKETS, n_rows // ROWS_OF_DIGEST_BUCKET))


def fingerprints(
    session: str, rows: SessionRows, n_buckets: int
) -> Iterator[tuple[int, Fingerprints]]:
    """Yield (bucket, fingerprints): equal traces meet in the same bucket."""
    leading = np.ascontiguousarray(rows.digest[:, :2]).view("<u2")[:, 0]
    buckets = leading % n_buckets
    for bucket in np.unique(buckets):
        chosen = buckets == bucket
        yield int(bucket), Fingerprints(session, rows.trial_num[chosen], rows.digest[chosen])


def find_copies(bucket: Iterable[Fingerprints]) -> Iterator[tuple[str, Copy]]:
    """Yield (session, copy) for each trial to reject because its trace stands elsewhere too.

    Inside a session the first trial is kept. Across sessions none is: nothing tells which label
    is the right one, and a trace in two sessions may end up in two splits.
    """
    seen: dict[bytes, set[tuple[str, int]]] = defaultdict(set)
    parts = list(bucket)
    repeated = _repeated(np.concatenate([part.digest for part in parts]))
    starts = np.cumsum([0, *(len(part.digest) for part in parts)])
    for part, start, stop in zip(parts, starts[:-1], starts[1:], strict=True):
        for row in np.flatnonzero(repeated[start:stop]):
            place = part.session, int(part.trial_num[row])
            seen[part.digest[row].tobytes()].add(place)
    for digest, places in seen.items():
        if len(places) == 1:
            continue
        ordered = sorted(places)
        across = len({session for session, _ in ordered}) > 1
        for session, trial_num in ordered if across else ordered[1:]:
            other = next(place for place in ordered if place != (session, trial_num))
            detail = f"the same trace as trial {other[1]} of session {other[0]}"
            yield session, Copy(trial_num, digest, detail)


def _repeated(digest: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return whether each digest stands there more than once."""
    words = np.ascontiguousarray(digest).view("<u8")
    order = np.lexsort(words.T)
    same = (words[order[1:]] == words[order[:-1]]).all(axis=1)
    repeated = np.zeros(len(words), np.bool_)
    repeated[order[1:]] = same
    repeated[order[:-1]] |= same
    return repeated


def resolve_session(
    session: str,
    pieces: Iterable[SessionRows],
    copies: Iterable[Copy],
    block_trials: int,
    amplitude_outlier: float | None,
    classes: Collection[str] | None = None,
) -> tuple[list[Block], list[Reject]]:
    """Bring a session's rows into order, reject what conflicts, and cut blocks.

    Parameters
    ----------
    session : str
    pieces : iterable of SessionRows
        Everything that was accepted of the session, in any order.
    copies : iterable of Copy
        Trials of the session to reject as identical traces.
    block_trials : int
        Most trials in a block.
    amplitude_outlier : float or None
        Reject trials whose log amplitude lies more than this many robust standard deviations
        (median absolute deviation times 1.4826) from the session's median; None keeps all.
    classes : collection of str, optional
        The known conditions; None takes every condition as known.

    Returns
    -------
    blocks : list of Block
    rejects : list of Reject
        Blocks and rejects together hold every row once.
    """
    rows = _in_order(SessionRows.concatenate(pieces))
    whole = _session_problem(rows, classes)
    if whole is not None:
        return [], [Reject(session, trial_num, *whole) for trial_num in rows.trial_num.tolist()]
    rows, rejects = _drop(session, rows, _lacking_subject(rows))
    rows, more = _drop(session, rows, _trial_problems(rows, list(copies), amplitude_outlier))
    blocks = [
        Block(
            session,
            rows.subject[0],
            rows.condition[0],
            block,
            rows.trial_num[part],
            rows.frequency[part],
            rows.amplitude[part],
            rows.digest[part],
            rows.pointers[part],
        )
        for block, start in enumerate(range(0, len(rows.trial_num), block_trials))
        for part in [slice(start, start + block_trials)]
    ]
    return blocks, rejects + more


def _in_order(rows: SessionRows) -> SessionRows:
    """Sort trials in an order that depends on their content alone."""
    return rows.take(
        np.lexsort((rows.amplitude, rows.frequency, *rows.digest.T[::-1], rows.trial_num))
    )


def _drop(
    session: str, rows: SessionRows, problems: dict[int, tuple[Reason, str]]
) -> tuple[SessionRows, list[Reject]]:
    if not problems:
        return rows, []
    rejects = [
        Reject(session, int(rows.trial_num[row]), *problems[row]) for row in sorted(problems)
    ]
    kept = [row for row in range(len(rows.trial_num)) if row not in problems]
    return rows.take(np.array(kept, np.int64)), rejects


def _session_problem(
    rows: SessionRows, classes: Collection[str] | None
) -> tuple[Reason, str] | None:
    """Return why no trial of the session can be used, if so."""
    if len(set(rows.condition)) > 1:
        return Reason.SESSION_TWO_CONDITIONS, f"the session's condition is {_tally(rows.condition)}"
    # Judged after the conflict: a session that is partly of a known class has no sure label.
    if classes is not None and rows.condition[0] not in classes:
        return Reason.UNKNOWN_CONDITION, f"'{rows.condition[0]}' is not one of {list(classes)}"
    if len(set(rows.subject) - {None}) > 1:
        return Reason.SESSION_TWO_SUBJECTS, f"the session's subject is {_tally(rows.subject)}"
    return None


def _tally(labels: Sequence[str | None]) -> str:
    counts = Counter(label or "(missing)" for label in labels)
    return ", ".join(f"{label} in {plural(n, 'trial')}" for label, n in sorted(counts.items()))


def _lacking_subject(rows: SessionRows) -> dict[int, tuple[Reason, str]]:
    named = next((subject for subject in rows.subject if subject is not None), None)
    if named is None:
        return {}
    detail = f"subject is missing; other trials of the session have {named}"
    return {
        row: (Reason.MISSING_ID, detail)
        for row, subject in enumerate(rows.subject)
        if subject is None
    }


def _trial_problems(
    rows: SessionRows, copies: Sequence[Copy], amplitude_outlier: float | None
) -> dict[int, tuple[Reason, str]]:
    problems = dict(_repeated_trials(rows))
    by_trial = {(copy.trial_num, copy.digest): copy for copy in copies}
    for row, (trial_num, digest) in enumerate(
        zip(rows.trial_num.tolist(), rows.digest, strict=True)
    ):
        copy = by_trial.get((trial_num, digest.tobytes()))
        if copy is not None:
            problems.setdefault(row, (Reason.DUPLICATE_TRACE, copy.detail))
    if amplitude_outlier is not None:
        kept = np.array([row for row in range(len(rows.level)) if row not in problems], np.int64)
        problems.update(_outliers(rows.level, kept, amplitude_outlier))
    return problems


def _repeated_trials(rows: SessionRows) -> Iterator[tuple[int, tuple[Reason, str]]]:
    _, first, counts = np.unique(rows.trial_num, return_index=True, return_counts=True)
    for start, count in zip(first[counts > 1], counts[counts > 1], strict=True):
        places = range(int(start), int(start + count))
        if all(_same_row(rows, places[0], place) for place in places):
            # A row that was delivered twice: nothing is lost by keeping one.
            for place in places[1:]:
                yield place, (Reason.DUPLICATE_TRIAL, f"one of {count} equal rows is kept")
        else:
            for place in places:
                yield place, (Reason.DUPLICATE_TRIAL, f"{count} rows that differ; none is kept")


def _same_row(rows: SessionRows, a: int, b: int) -> bool:
    return bool(
        np.array_equal(rows.digest[a], rows.digest[b])
        and np.array_equal(rows.frequency[a], rows.frequency[b], equal_nan=True)
        and np.array_equal(rows.amplitude[a], rows.amplitude[b], equal_nan=True)
    )


def _outliers(
    level: NDArray[np.float64], kept: NDArray[np.int64], limit: float
) -> Iterator[tuple[int, tuple[Reason, str]]]:
    if len(kept) == 0:
        return
    log_level = np.log10(level[kept])
    median = np.median(log_level)
    spread = MAD_TO_STD * np.median(np.abs(log_level - median))
    for row, value in zip(kept.tolist(), log_level, strict=True):
        if abs(value - median) > limit * spread > 0:
            factor = 10 ** (value - median)
            yield (
                row,
                (
                    Reason.AMPLITUDE_OUTLIER,
                    f"amplitude {factor:.3g} x the session's median, "
                    f"{abs(value - median) / spread:.1f} robust standard deviations away",
                ),
            )
