"""Train/val/test assignment of sessions: grouped by subject, stratified by condition.

The label belongs to the animal, so a subject is never cut in two. Everything is a pure function
of the sessions, the ratios and the seed: random choices come from keyed hashes of the group
names, so neither the input order nor the version of a random generator can change a split.
"""

import csv
import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "val", "test")

# How much worse than the best assignment found a class may get, so that seeds give different
# splits where several are about as good: a share of its imbalance, plus an absolute part.
RELATIVE_SLACK = 0.1
ABSOLUTE_SLACK = 0.01

_RESTARTS = 32
_SHAKE_ROUNDS = 16
_MAX_EXCHANGES = 200
# Bounds the (groups x groups x classes) table of exchanges: 256 groups for two classes.
_EXCHANGE_TABLE_SIZE = 2**17
_SHOWN = 5

_Key = tuple[str, str]


class SplitError(ValueError):
    """Sessions cannot be split as asked, or a splits file is wrong."""


@dataclass(frozen=True)
class SessionCount:
    """What one session brings into a split.

    Parameters
    ----------
    session : str
        Session id, unique in the table.
    subject : str or None
        Animal; None where the table has no subject column.
    condition : str
        Class of the session.
    n_trials : int
        Number of trials that are used.
    """

    session: str
    subject: str | None
    condition: str
    n_trials: int


@dataclass(frozen=True)
class SplitsFile:
    """A checked splits file.

    Parameters
    ----------
    path : str
        Where it was read, for messages.
    by : {"session", "subject"}
        What the ids name.
    split_of : Mapping of str to str
        Split of each id.
    """

    path: str
    by: Literal["session", "subject"]
    split_of: Mapping[str, str]


@dataclass(frozen=True)
class _Group:
    """Sessions that stay together: `trials` holds (class, n_trials) where n_trials > 0."""

    key: _Key
    trials: tuple[tuple[int, int], ...]

    @property
    def classes(self) -> int:
        """Bit mask of the classes held."""
        return sum(1 << label for label, _ in self.trials)


def required_splits(ratios: Sequence[float]) -> tuple[str, ...]:
    """Return the splits that must hold every class: those with a ratio above zero.

    Parameters
    ----------
    ratios : sequence of float
        Shares of train, val and test.

    Returns
    -------
    tuple of str
        Names out of `SPLITS`, in that order.

    Raises
    ------
    SplitError
        If the ratios are not three non-negative numbers with the sum 1 (within 1e-6), or the
        share of train is zero.
    """
    valid = len(ratios) == len(SPLITS) and all(math.isfinite(r) and r >= 0 for r in ratios)
    if not valid or abs(math.fsum(ratios) - 1.0) > 1e-6 or ratios[0] <= 0:
        raise SplitError(
            f"split ratios {tuple(ratios)} are wrong: give three numbers for train,val,test, "
            "none negative, train above 0, with the sum 1, such as 0.7,0.15,0.15"
        )
    return tuple(name for name, ratio in zip(SPLITS, ratios, strict=True) if ratio > 0)


def assign_splits(
    sessions: Iterable[SessionCount],
    ratios: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
) -> dict[str, str]:
    """Assign every session to train, val or test.

    Groups are subjects; a session without a subject is its own group. With `x` the share of a
    class's trials that a split holds and `r` the split's ratio, Pearson's sum of `(x - r)**2 / r`
    over splits and classes is made small: groups in seeded random order, larger (by powers of
    two) first, each into the split where it helps most; then exchanges of single groups and
    pairs; then, for a few hundred groups at most, random exchanges that keep the imbalance
    (the square root of that sum) of each class within `RELATIVE_SLACK` and `ABSOLUTE_SLACK`
    of the best found, so that seeds differ. Time is near linear in the number of sessions.

    Parameters
    ----------
    sessions : iterable of SessionCount
        One entry a session, in any order.
    ratios : sequence of float, shape (3,)
        Shares of the trials of each class for train, val and test. A split with ratio 0 stays
        empty; every other one holds every class.
    seed : int
        Another seed gives another split of about the same balance.

    Returns
    -------
    dict of str to str
        Split of each session, in the order of the session ids.

    Raises
    ------
    SplitError
        If the ratios or sessions are wrong, or if no assignment of whole groups gives every
        class to every split; the message then holds the counts.

    Notes
    -----
    Whether such an assignment exists is decided exactly. The search is immediate for groups of
    one class each, and exponential at worst in the number of classes that groups share.
    """
    names = required_splits(ratios)
    ordered = _checked_sessions(sessions)
    labels = sorted({s.condition for s in ordered})
    groups = _groups(ordered, labels)
    cover = _Cover(groups, len(labels), len(names))
    if not cover.possible():
        raise SplitError(_impossible(ordered, labels, names))
    shares = np.array([r for r in ratios if r > 0], dtype=np.float64)
    split_of_group = _partition_groups(groups, cover, len(labels), shares, seed)
    split_of_key = {g.key: names[i] for g, i in zip(groups, split_of_group, strict=True)}
    return {s.session: split_of_key[_group_key(s)] for s in ordered}


def check_splits(
    sessions: Iterable[SessionCount],
    assignment: Mapping[str, str],
    required: Sequence[str] = SPLITS,
) -> None:
    """Check that every required split holds trials of every class.

    Parameters
    ----------
    sessions : iterable of SessionCount
        One entry a session.
    assignment : mapping of str to str
        Split of each session.
    required : sequence of str
        Splits that must hold every class; see `required_splits`.

    Raises
    ------
    SplitError
        If a session has no split or an unknown one, or if a class is missing from a required
        split; the message then holds the groups and trials per split and class.
    """
    ordered = _checked_sessions(sessions)
    for s in ordered:
        if assignment.get(s.session) not in SPLITS:
            raise SplitError(
                f"session {s.session!r} is in split {assignment.get(s.session)!r}: "
                f"assign it to one of {', '.join(SPLITS)}"
            )
    held = {(assignment[s.session], s.condition) for s in ordered if s.n_trials > 0}
    labels = sorted({s.condition for s in ordered})
    missing = [(n, c) for n in required for c in labels if (n, c) not in held]
    if not missing:
        return
    lacking = _listed([f"{name} has no trial of {label!r}" for name, label in missing])
    first = {label for _, label in missing}
    raise SplitError(
        f"every split must hold every class, but {lacking}.\n"
        f"{_counts_table(ordered, sorted(labels, key=lambda c: c not in first), assignment)}\n"
        "Move sessions of that class there in the splits file, choose other split ratios "
        "(0 for a split that is not wanted), or add recordings."
    )


def read_splits_file(path: str | PathLike[str]) -> SplitsFile:
    """Read a splits file: CSV, or JSON where the name ends in .json or the text starts with [ or {.

    See `parse_splits` for the forms.

    Parameters
    ----------
    path : path-like
        A local UTF-8 file.

    Returns
    -------
    SplitsFile
        The split of each session or subject.

    Raises
    ------
    SplitError
        If the file cannot be read or is wrong; the message names the file and line or entry.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise SplitError(f"splits file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SplitError(f"splits file {path} is not UTF-8 text: save it as CSV or JSON") from error
    return parse_splits(text, str(path))


def parse_splits(text: str, path: str) -> SplitsFile:
    """Parse the text of a splits file.

    Ids are compared as strings: an integer 7 is "7". Columns or keys beyond the needed ones are
    ignored.

    Parameters
    ----------
    text : str
        CSV with the columns `split` and either `session` or `subject`; or JSON: a list of
        objects with those keys, or a mapping `{"train": [ids], "val": [ids], "test": [ids]}`
        of sessions (of subjects with `"by": "subject"`).
    path : str
        Where it came from, for messages; JSON is assumed if it ends in .json.

    Returns
    -------
    SplitsFile
        The split of each session or subject.

    Raises
    ------
    SplitError
        If the text is in none of these forms, is empty, names an unknown split, or holds an id
        twice; the message names the file and line or entry.
    """
    # Spreadsheets put a byte order mark in front of what they export.
    text = text.removeprefix("\ufeff")
    is_json = path.lower().endswith(".json") or text.lstrip()[:1] in ("[", "{")
    if not text.strip(" \t\r\n,"):
        raise SplitError(
            f"splits file {path} is empty: give the columns session (or subject),split"
        )
    by, entries = _json_entries(text, path) if is_json else _csv_entries(text, path)
    split_of: dict[str, str] = {}
    where_of: dict[str, str] = {}
    for where, name, split in entries:
        _check_entry(f"splits file {path}, {where}", by, name, split)
        if name in split_of:
            kind = "listed again" if split_of[name] == split else "in two splits"
            raise SplitError(
                f"splits file {path}, {where}: {by} {name!r} ({split}) is {kind}, first in "
                f"{where_of[name]} ({split_of[name]}): keep one of them"
            )
        split_of[name], where_of[name] = split, where
    if not split_of:
        raise SplitError(f"splits file {path} lists no {by}: add one entry for each")
    return SplitsFile(path=path, by=by, split_of=split_of)


def apply_splits_file(
    sessions: Iterable[SessionCount],
    splits_file: SplitsFile,
    required: Sequence[str] = SPLITS,
) -> dict[str, str]:
    """Assign sessions as a splits file says.

    Parameters
    ----------
    sessions : iterable of SessionCount
        One entry a session.
    splits_file : SplitsFile
        From `read_splits_file`.
    required : sequence of str
        Splits that must hold every class.

    Returns
    -------
    dict of str to str
        Split of each session, in the order of the session ids.

    Raises
    ------
    SplitError
        If a session is not covered, an id is unknown, a subject is in two splits, or a required
        split lacks a class.
    """
    ordered = _checked_sessions(sessions)
    path, by, split_of = splits_file.path, splits_file.by, splits_file.split_of
    id_of = {s.session: s.session if by == "session" else s.subject for s in ordered}
    unknown = sorted(set(split_of) - set(id_of.values()))
    if unknown:
        raise SplitError(
            f"splits file {path}: {len(unknown):,} {by} id(s) not in the table: "
            f"{_quoted(unknown)}; remove or correct them"
        )
    uncovered = [session for session, name in id_of.items() if name is None or name not in split_of]
    if uncovered:
        raise SplitError(
            f"splits file {path} gives no split to {len(uncovered):,} session(s): "
            f"{_quoted(uncovered)}; list the {by} of each"
        )
    assignment = {s: split_of[name] for s, name in id_of.items() if name is not None}
    _check_subjects(ordered, assignment, path)
    check_splits(ordered, assignment, required)
    return assignment


# ---- sessions and groups -------------------------------------------------------------------------


def _checked_sessions(sessions: Iterable[SessionCount]) -> list[SessionCount]:
    ordered = sorted(sessions, key=lambda s: s.session)
    if not ordered:
        raise SplitError("there is no session to split: the table has no usable trial")
    for before, after in pairwise(ordered):
        if before.session == after.session:
            raise SplitError(
                f"session {after.session!r} is counted twice: give one entry a session"
            )
    for s in ordered:
        if s.n_trials < 0:
            raise SplitError(f"session {s.session!r} has {s.n_trials} trials: give 0 or more")
    return ordered


def _check_subjects(
    sessions: Sequence[SessionCount], assignment: Mapping[str, str], path: str
) -> None:
    first: dict[str, SessionCount] = {}
    for s in sessions:
        if s.subject is None:
            continue
        other = first.setdefault(s.subject, s)
        if assignment[other.session] != assignment[s.session]:
            raise SplitError(
                f"splits file {path} puts subject {s.subject!r} in two splits: session "
                f"{other.session!r} in {assignment[other.session]}, {s.session!r} in "
                f"{assignment[s.session]}; keep all sessions of a subject together"
            )


def _group_key(session: SessionCount) -> _Key:
    if session.subject is None:
        return ("session", session.session)
    return ("subject", session.subject)


def _groups(sessions: Sequence[SessionCount], labels: Sequence[str]) -> list[_Group]:
    index = {label: i for i, label in enumerate(labels)}
    trials: defaultdict[_Key, Counter[int]] = defaultdict(Counter)
    for s in sessions:
        trials[_group_key(s)][index[s.condition]] += s.n_trials
    return [
        _Group(key, tuple(sorted((label, n) for label, n in trials[key].items() if n > 0)))
        for key in sorted(trials)
    ]


def _hash(seed: int, purpose: str, key: _Key) -> bytes:
    return blake2b("\0".join((str(seed), purpose, *key)).encode(), digest_size=16).digest()


# ---- can every split still hold every class? -----------------------------------------------------


class _Cover:
    """Decides whether the groups left to place can still give every class to every split.

    Groups count only by their kind: the set of classes they hold, as a bit mask. More groups of
    a kind than splits are never needed, so counts are capped and few states occur.
    """

    def __init__(self, groups: Sequence[_Group], n_classes: int, n_splits: int) -> None:
        self.n_splits = n_splits
        self.missing = ((1 << n_classes) - 1,) * n_splits
        self.left = Counter(g.classes for g in groups)
        self._capped = self._cap(self.left)
        self._memo: dict[tuple[object, ...], bool] = {}

    def copy(self) -> "_Cover":
        """Return an independent state that shares what is already known."""
        other = object.__new__(_Cover)
        other.n_splits, other.missing, other._capped = self.n_splits, self.missing, self._capped
        other.left, other._memo = self.left.copy(), self._memo
        return other

    def _cap(self, left: Mapping[int, int]) -> tuple[tuple[int, int], ...]:
        kinds = (((k, min(n, self.n_splits))) for k, n in left.items() if k and n > 0)
        return tuple(sorted(kinds))

    def possible(self) -> bool:
        """Whether the groups that are left suffice."""
        return self._possible(self._capped, self.missing)

    def take(self, kind: int) -> None:
        """Take a group of this kind out of those that are left."""
        self.left[kind] -= 1
        if self.left[kind] < self.n_splits:
            self._capped = self._cap(self.left)

    def allows(self, kind: int, split: int) -> bool:
        """Whether a taken group may go to this split."""
        return self._possible(self._capped, self._with(self.missing, kind, split))

    def place(self, kind: int, split: int) -> None:
        """Put a taken group into this split."""
        self.missing = self._with(self.missing, kind, split)

    @staticmethod
    def _with(missing: tuple[int, ...], kind: int, split: int) -> tuple[int, ...]:
        return (*missing[:split], missing[split] & ~kind, *missing[split + 1 :])

    def _possible(self, left: tuple[tuple[int, int], ...], missing: tuple[int, ...]) -> bool:
        if not any(missing):
            return True
        state = (left, tuple(sorted(missing)))
        if state not in self._memo:
            self._memo[state] = self._search(left, missing)
        return self._memo[state]

    def _search(self, left: tuple[tuple[int, int], ...], missing: tuple[int, ...]) -> bool:
        pure = dict(left)
        tightest: tuple[int, int] | None = None
        for bit in _bits(_union(missing)):
            needed = sum(1 for m in missing if m & bit)
            # Groups of this class alone are of no other use: if they suffice, it is settled.
            if pure.get(bit, 0) >= needed:
                missing = tuple(m & ~bit for m in missing)
                continue
            spare = sum(n for kind, n in left if kind & bit) - needed
            if spare < 0:
                return False
            tightest = min(tightest or (spare, bit), (spare, bit))
        if tightest is None:
            return True
        bit = tightest[1]
        split = next(i for i, m in enumerate(missing) if m & bit)
        wanted = _union(missing)
        useful: Counter[int] = Counter()
        for kind, n in left:
            useful[kind & wanted] += n
        return any(
            self._possible(
                self._cap({**useful, kind: useful[kind] - 1}), self._with(missing, kind, split)
            )
            for kind in sorted(useful)
            if kind & bit
        )


def _union(masks: Iterable[int]) -> int:
    union = 0
    for mask in masks:
        union |= mask
    return union


def _bits(mask: int) -> list[int]:
    return [1 << i for i in range(mask.bit_length()) if mask >> i & 1]


# ---- balance -------------------------------------------------------------------------------------


def _partition_groups(
    groups: Sequence[_Group],
    cover: _Cover,
    n_classes: int,
    ratios: NDArray[np.float64],
    seed: int,
) -> list[int]:
    n_movable = max(2, math.isqrt(_EXCHANGE_TABLE_SIZE // n_classes))
    few = len(groups) <= n_movable
    best: _Balance | None = None
    for restart in range(_RESTARTS if few else 1):
        order = _hashed_order(groups, seed, f"start {restart}")
        # Larger first is good for many groups; other orders reach what it cannot with few.
        queue = order if restart % 2 else _larger_first(groups, order, n_classes)
        split_of = _greedy(groups, queue, cover.copy(), ratios)
        balance = _Balance(groups, split_of, order[:n_movable], ratios, n_classes)
        balance.improve()
        if best is None or balance.class_costs().sum() < best.class_costs().sum():
            best = balance
    assert best is not None
    if few:
        best.shake([_hashed_order(groups, seed, f"shake {i}") for i in range(_SHAKE_ROUNDS)])
    return [int(split) for split in best.split_of]


def _hashed_order(groups: Sequence[_Group], seed: int, purpose: str) -> list[int]:
    return sorted(range(len(groups)), key=lambda i: _hash(seed, purpose, groups[i].key))


def _class_totals(groups: Sequence[_Group], n_classes: int) -> list[int]:
    totals = [0] * n_classes
    for g in groups:
        for label, n in g.trials:
            totals[label] += n
    return totals


def _larger_first(groups: Sequence[_Group], order: Sequence[int], n_classes: int) -> list[int]:
    totals = _class_totals(groups, n_classes)

    # Powers of two only: a full sort by size would put the same animals first for every seed.
    def magnitude(i: int) -> float:
        largest = max((n / totals[label] for label, n in groups[i].trials), default=0.0)
        return math.frexp(largest)[1] if largest else -math.inf

    return sorted(order, key=magnitude, reverse=True)


def _greedy(
    groups: Sequence[_Group], order: Sequence[int], cover: _Cover, ratios: NDArray[np.float64]
) -> list[int]:
    """Put each group where the cost grows least, as long as every split can get every class."""
    totals = _class_totals(groups, cover.missing[0].bit_length())
    share = ratios.tolist()
    deviation = [[-r] * len(totals) for r in share]
    split_of = [0] * len(groups)
    for i in order:
        weights = [(label, n / totals[label]) for label, n in groups[i].trials]
        growth = [
            sum(w * (w + 2 * deviation[s][label]) for label, w in weights) / r
            for s, r in enumerate(share)
        ]
        kind = groups[i].classes
        cover.take(kind)
        ranked = sorted(range(len(share)), key=growth.__getitem__)
        split = next(s for s in ranked if cover.allows(kind, s))
        cover.place(kind, split)
        split_of[i] = split
        for label, w in weights:
            deviation[split][label] += w
    return split_of


class _Balance:
    """Groups in splits, and exchanges of groups that keep every class in every split.

    Sums run over classes one by one, without BLAS, and trials are counted in integers: the same
    bits, and so the same choices, on any machine. The zero row behind the last group stands for
    "no group", which makes a move an exchange with nobody.
    """

    def __init__(
        self,
        groups: Sequence[_Group],
        split_of: Sequence[int],
        movable: Sequence[int],
        ratios: NDArray[np.float64],
        n_classes: int,
    ) -> None:
        self.ratios = ratios
        self.split_of = np.array(split_of, dtype=np.int64)
        self.movable = np.array(movable, dtype=np.int64)
        self.nobody = len(groups)
        self.groups = groups
        self.totals = np.array(_class_totals(groups, n_classes), dtype=np.int64)
        self.counts = np.zeros((len(ratios), n_classes), dtype=np.int64)
        self.holders = np.zeros((len(ratios), n_classes), dtype=np.int64)
        for g, split in zip(groups, split_of, strict=True):
            self._add(g, split, 1)

    def _add(self, group: _Group, split: int, sign: int) -> None:
        for label, n in group.trials:
            self.counts[split, label] += sign * n
            self.holders[split, label] += sign

    def _exchange(self, g: int, h: int, a: int, b: int) -> None:
        for i, source, target in ((g, a, b), (h, b, a)):
            if i != self.nobody:
                self._add(self.groups[i], source, -1)
                self._add(self.groups[i], target, 1)
                self.split_of[i] = target

    def _deviation(self) -> NDArray[np.float64]:
        return self.counts / self.totals - self.ratios[:, None]

    def class_costs(self) -> NDArray[np.float64]:
        """Pearson's sum of `(share - ratio)**2 / ratio` over splits, per class."""
        costs: NDArray[np.float64] = (self._deviation() ** 2 / self.ratios[:, None]).sum(axis=0)
        return costs

    def improve(self) -> None:
        """Make the exchange that lowers the cost most, until none does."""
        weights = np.zeros((len(self.totals), len(self.movable) + 1))
        for column, i in enumerate(self.movable):
            for label, n in self.groups[i].trials:
                weights[label, column] = n / self.totals[label]
        for _ in range(_MAX_EXCHANGES):
            gain, g, h, a, b = self._best_exchange(weights)
            # Rounding must not keep two equal assignments swapping for ever.
            if gain > -1e-12:
                return
            self._exchange(g, h, a, b)

    def _best_exchange(self, weights: NDArray[np.float64]) -> tuple[float, int, int, int, int]:
        deviation = self._deviation()
        last = len(self.movable)
        ids = np.append(self.movable, self.nobody)
        split_of = self.split_of[self.movable]
        columns = [np.append(np.flatnonzero(split_of == s), last) for s in range(len(self.ratios))]
        best = (0.0, self.nobody, self.nobody, 0, 0)
        for a in range(len(columns)):
            for b in range(a + 1, len(columns)):
                costs = self._exchange_costs(weights, columns[a], columns[b], deviation, a, b)
                row, column = divmod(int(costs.argmin()), costs.shape[1])
                cost = float(costs[row, column])
                if cost < best[0]:
                    best = (cost, int(ids[columns[a][row]]), int(ids[columns[b][column]]), a, b)
        return best

    def _exchange_costs(
        self,
        weights: NDArray[np.float64],
        in_a: NDArray[np.int64],
        in_b: NDArray[np.int64],
        deviation: NDArray[np.float64],
        a: int,
        b: int,
    ) -> NDArray[np.float64]:
        """Change of the cost for each pair of a group in a and one in b; inf if a class is lost."""
        costs = np.zeros((len(in_a), len(in_b)))
        for label, weight in enumerate(weights):
            out, back = weight[in_a][:, None], weight[in_b]
            net = out - back
            costs += net * (net - 2 * deviation[a, label]) / self.ratios[a]
            costs += net * (net + 2 * deviation[b, label]) / self.ratios[b]
            flow = (out > 0).astype(np.int64) - (back > 0)
            lost = (flow >= self.holders[a, label]) | (-flow >= self.holders[b, label])
            costs[lost] = np.inf
        return costs

    def shake(self, orders: Sequence[Sequence[int]]) -> None:
        """Exchange neighbours in each order wherever the classes stay within the slack."""
        limit = (1 + RELATIVE_SLACK) * np.sqrt(self.class_costs()) + ABSOLUTE_SLACK
        for turn, order in enumerate(orders):
            for g, neighbour in pairwise(order):
                a, b = int(self.split_of[g]), int(self.split_of[neighbour])
                if a == b:
                    continue
                h = neighbour if turn % 2 == 0 else self.nobody
                self._exchange(g, h, a, b)
                if (self.holders == 0).any() or (np.sqrt(self.class_costs()) > limit).any():
                    self._exchange(g, h, b, a)


# ---- splits files --------------------------------------------------------------------------------

_By = Literal["session", "subject"]
_Entry = tuple[str, str, str]


def _check_entry(where: str, by: str, name: str, split: str) -> None:
    if not name:
        raise SplitError(f"{where}: the {by} is empty: name one")
    if split not in SPLITS:
        raise SplitError(f"{where}: split {split!r} of {by} {name!r} is not {', '.join(SPLITS)}")


def _id_column(columns: Iterable[str], where: str) -> _By:
    columns = list(columns)
    found = [name for name in ("session", "subject") if name in columns]
    if len(found) != 1 or "split" not in columns:
        raise SplitError(
            f"{where}: needs 'split' and one of 'session' and 'subject', has {_quoted(columns)}"
        )
    return "session" if found == ["session"] else "subject"


def _csv_entries(text: str, path: str) -> tuple[_By, list[_Entry]]:
    reader = csv.reader(io.StringIO(text), strict=True)
    rows: list[tuple[str, list[str]]] = []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((f"line {reader.line_num}", [cell.strip() for cell in row]))
    except csv.Error as error:
        raise SplitError(
            f"splits file {path}, line {reader.line_num}: not CSV ({error}): correct the line"
        ) from error
    where, columns = rows[0]
    by = _id_column(columns, f"splits file {path}, {where}")
    if columns.count(by) + columns.count("split") > 2:
        raise SplitError(f"splits file {path}, {where}: a column stands twice: {_quoted(columns)}")
    for where, row in rows[1:]:
        if len(row) != len(columns):
            raise SplitError(
                f"splits file {path}, {where}: {len(row)} values for the {len(columns)} columns "
                f"{_quoted(columns)}"
            )
    name, split = columns.index(by), columns.index("split")
    return by, [(where, row[name], row[split]) for where, row in rows[1:]]


def _json_entries(text: str, path: str) -> tuple[_By, list[_Entry]]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        twice = [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]
        if twice:
            raise SplitError(f"splits file {path}: key {twice[0]!r} stands twice in one object")
        return dict(pairs)

    try:
        data: object = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise SplitError(
            f"splits file {path}, line {error.lineno}: not JSON ({error.msg})"
        ) from error
    if isinstance(data, dict):
        return _mapping_entries(data, path)
    if isinstance(data, list):
        return _list_entries(data, path)
    raise SplitError(f"splits file {path}: holds neither a list nor an object")


def _mapping_entries(data: Mapping[str, object], path: str) -> tuple[_By, list[_Entry]]:
    kind = data.get("by", "session")
    if kind not in ("session", "subject"):
        raise SplitError(f"splits file {path}, key 'by': {kind!r} is not 'session' or 'subject'")
    by: _By = "session" if kind == "session" else "subject"
    entries = []
    for split, ids in data.items():
        if split == "by":
            continue
        where = f"splits file {path}, key {split!r}"
        if split not in SPLITS:
            raise SplitError(f"{where}: is not {', '.join(SPLITS)} or by")
        if not isinstance(ids, list):
            raise SplitError(f"{where}: needs a list of {by} ids")
        for i, name in enumerate(ids):
            place = f"{split}[{i}]"
            entries.append((place, _json_id(name, f"splits file {path}, {place}"), split))
    return by, entries


def _list_entries(data: Sequence[object], path: str) -> tuple[_By, list[_Entry]]:
    if not data:
        raise SplitError(f"splits file {path} lists nothing: add one entry for each session")
    by: _By | None = None
    entries = []
    for i, entry in enumerate(data):
        place = f"entry {i}"
        where = f"splits file {path}, {place}"
        if not isinstance(entry, dict):
            raise SplitError(f"{where}: is no object with 'session' (or 'subject') and 'split'")
        kind = _id_column(entry, where)
        by = by or kind
        if kind != by:
            raise SplitError(f"{where}: names a {kind}, but entry 0 names a {by}: use one of them")
        entries.append((place, _json_id(entry[kind], where), str(entry["split"])))
    assert by is not None
    return by, entries


def _json_id(value: object, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise SplitError(f"{where}: id {value!r} is neither text nor an integer")
    return str(value)


# ---- messages ------------------------------------------------------------------------------------


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - _SHOWN
    return "; ".join(texts[:_SHOWN]) + (f"; and {more:,} more" if more > 0 else "")


def _quoted(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(map(repr, names[:_SHOWN])) + (f", and {more:,} more" if more > 0 else "")


def _impossible(
    sessions: Sequence[SessionCount], labels: Sequence[str], names: Sequence[str]
) -> str:
    holders: defaultdict[str, set[_Key]] = defaultdict(set)
    for s in sessions:
        if s.n_trials > 0:
            holders[s.condition].add(_group_key(s))
    few = [c for c in labels if len(holders[c]) < len(names)]
    reason = (
        _listed([f"class {c!r} has {len(holders[c])} group(s) with trials" for c in few])
        if few
        else "too few groups hold several classes"
    )
    everywhere = {s.session: "all" for s in sessions}
    return (
        f"no split gives every class to each of {', '.join(names)}: {reason}, and "
        f"{len(names)} splits need {len(names)} of each class without cutting a group.\n"
        f"{_counts_table(sessions, sorted(labels, key=lambda c: c not in few), everywhere)}\n"
        "Add recordings of the scarce class, or set the ratio of a split to 0 (--split_ratios)."
    )


def _counts_table(
    sessions: Sequence[SessionCount], labels: Sequence[str], assignment: Mapping[str, str]
) -> str:
    groups: defaultdict[tuple[str, str], set[_Key]] = defaultdict(set)
    trials: Counter[tuple[str, str]] = Counter()
    for s in sessions:
        cell = (assignment[s.session], s.condition)
        trials[cell] += s.n_trials
        if s.n_trials > 0:
            groups[cell].add(_group_key(s))
    used = set(assignment.values())
    columns = SPLITS if used <= set(SPLITS) else tuple(sorted(used))
    shown = labels[: 2 * _SHOWN]
    rows = [["class", *columns]]
    for label in shown:
        cells = [f"{len(groups[c, label]):,} / {trials[c, label]:,}" for c in columns]
        rows.append([label, *cells])
    width = max(len(row[0]) for row in rows)
    widest = max(len(text) for row in rows for text in row[1:])
    lines = ["  ".join([r[0].ljust(width), *(text.rjust(widest) for text in r[1:])]) for r in rows]
    rest = len(labels) - len(shown)
    if rest:
        lines.append(f"... and {rest:,} more classes")
    note = "(groups / trials; a group is a subject, or a session without one)"
    return "\n".join([*lines, note])
