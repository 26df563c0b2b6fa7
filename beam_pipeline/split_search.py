"""Search for a partition of groups that is balanced and has every class in every part.

Random choices come from keyed hashes of the groups' names, so neither the order of the groups
nor the version of a random generator can change a partition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from beam_pipeline.split_cover import Cover, given_to

# How much worse than the best partition found a class may get, so that seeds give different
# partitions where several are about as good: a share of its imbalance, plus an absolute part.
RELATIVE_SLACK = 0.1
ABSOLUTE_SLACK = 0.01

# With more groups than these, those that come last are too small for an exchange to matter.
MAX_GROUPS_TO_EXCHANGE = 256
RESTARTS = 32
SHAKE_ROUNDS = 16

Trials = NDArray[np.int64]
Ratios = NDArray[np.float64]


def partition_groups(
    names: Sequence[str], trials: Trials, ratios: Ratios, seed: int
) -> list[int] | None:
    """Partition groups so that each part holds about its ratio of the trials of each class.

    With `x` the share of a class's trials that a part holds and `r` the part's ratio, Pearson's
    sum of `(x - r)**2 / r` over parts and classes is made small: groups in random order, larger
    (by powers of two) first, each into the part where it helps most. Where there are few groups,
    this is done from several orders, each followed by exchanges of single groups and pairs; the
    best is then shaken by random exchanges that keep the imbalance (the square root of that sum)
    of each class within `RELATIVE_SLACK` and `ABSOLUTE_SLACK`, so that seeds differ.

    Parameters
    ----------
    names : sequence of str, length n_groups
        Unique names, from which the random choices are made.
    trials : ndarray of int64, shape (n_groups, n_classes)
        Trials of each class in each group.
    ratios : ndarray of float64, shape (n_parts,)
        Share of each part, all positive.
    seed : int
        Another seed gives another partition of about the same balance.

    Returns
    -------
    list of int, length n_groups, or None
        Part of each group; None where no partition has every class in every part.

    Notes
    -----
    Whether such a partition exists is decided exactly: immediately for groups of one class
    each, in time exponential at worst in the number of classes that groups share. The rest is
    near linear in the number of groups.
    """
    cover = Cover(len(ratios), trials)
    if not cover.possible():
        return None
    if len(names) > MAX_GROUPS_TO_EXCHANGE:
        queue = _larger_first(trials, _random_order(names, seed, "start 0"))
        return _greedy(trials, queue, cover, ratios)
    starts = []
    for restart in range(RESTARTS):
        order = _random_order(names, seed, f"start {restart}")
        # Larger first is good for many groups; other orders reach what it cannot with few.
        queue = order if restart % 2 else _larger_first(trials, order)
        partition = _Partition(trials, _greedy(trials, queue, cover, ratios), ratios)
        partition.improve()
        starts.append(partition)
    best = min(starts, key=lambda partition: float(partition.class_costs().sum()))
    best.shake([_random_order(names, seed, f"shake {i}") for i in range(SHAKE_ROUNDS)])
    return [int(part) for part in best.part_of[:-1]]


def _random_order(names: Sequence[str], seed: int, purpose: str) -> list[int]:
    def draw(i: int) -> bytes:
        return blake2b(f"{seed}\0{purpose}\0{names[i]}".encode(), digest_size=16).digest()

    return sorted(range(len(names)), key=draw)


def _larger_first(trials: Trials, order: Sequence[int]) -> list[int]:
    # Powers of two only: a full sort by size would put the same animals first for every seed.
    magnitude = np.frexp((trials / trials.sum(axis=0)).max(axis=1))[1]
    return sorted(order, key=magnitude.tolist().__getitem__, reverse=True)


def _greedy(trials: Trials, order: Sequence[int], cover: Cover, ratios: Ratios) -> list[int]:
    """Put each group where the cost grows least, as long as every part can get every class."""
    weights = (trials / trials.sum(axis=0)).tolist()
    shares = ratios.tolist()
    deviation = [[-r] * trials.shape[1] for r in shares]
    part_of = [0] * len(trials)
    left, missing = Counter(cover.kinds), cover.missing
    for i in order:
        kind = cover.kinds[i]
        left[kind] -= 1
        growth = [
            sum(w * (w + 2 * d) for w, d in zip(weights[i], deviation[part], strict=True)) / r
            for part, r in enumerate(shares)
        ]
        ranked = sorted(range(len(shares)), key=growth.__getitem__)
        part = next(p for p in ranked if cover.allows(left, given_to(missing, kind, p)))
        missing = given_to(missing, kind, part)
        part_of[i] = part
        deviation[part] = [d + w for w, d in zip(weights[i], deviation[part], strict=True)]
    return part_of


class _Partition:
    """Groups in parts, and exchanges of groups that keep every class in every part.

    Sums run over classes one by one, without BLAS, and trials are counted in integers: the same
    bits, and so the same choices, on any machine. The last row, behind those of the groups, is
    "nobody": a move is an exchange with nobody.
    """

    def __init__(self, trials: Trials, part_of: Sequence[int], ratios: Ratios) -> None:
        self.ratios = ratios
        self.nobody = len(trials)
        self.trials = np.vstack([trials, np.zeros_like(trials[:1])])
        self.holds = (self.trials > 0).astype(np.int64)
        self.totals = trials.sum(axis=0)
        self.part_of = np.array([*part_of, -1])
        members = [self.part_of == part for part in range(len(ratios))]
        self.counts = np.stack([self.trials[rows].sum(axis=0) for rows in members])
        self.holders = np.stack([self.holds[rows].sum(axis=0) for rows in members])

    def _exchange(self, g: int, h: int, a: int, b: int) -> None:
        """Move group g from part a to b, and h back."""
        for sums, values in ((self.counts, self.trials), (self.holders, self.holds)):
            net = values[g] - values[h]
            sums[a] -= net
            sums[b] += net
        self.part_of[[g, h]] = b, a
        self.part_of[self.nobody] = -1

    def _deviation(self) -> NDArray[np.float64]:
        deviation: NDArray[np.float64] = self.counts / self.totals - self.ratios[:, None]
        return deviation

    def class_costs(self) -> NDArray[np.float64]:
        """Pearson's sum of `(share - ratio)**2 / ratio` over parts, per class."""
        costs: NDArray[np.float64] = (self._deviation() ** 2 / self.ratios[:, None]).sum(axis=0)
        return costs

    def improve(self) -> None:
        """Make the exchange that lowers the cost most, until none does."""
        while True:
            # Rounding must not keep two equal partitions swapping for ever.
            best, exchange = -1e-12, None
            for a, b in combinations(range(len(self.ratios)), 2):
                in_a = np.append(np.flatnonzero(self.part_of == a), self.nobody)
                in_b = np.append(np.flatnonzero(self.part_of == b), self.nobody)
                costs = self._exchange_costs(in_a, in_b, a, b)
                row, column = divmod(int(costs.argmin()), costs.shape[1])
                if costs[row, column] < best:
                    best, exchange = costs[row, column], (int(in_a[row]), int(in_b[column]), a, b)
            if exchange is None:
                return
            self._exchange(*exchange)

    def _exchange_costs(
        self, in_a: NDArray[np.intp], in_b: NDArray[np.intp], a: int, b: int
    ) -> NDArray[np.float64]:
        """Change of the cost for each pair of a group in a and one in b; inf if a class is lost."""
        costs = np.zeros((len(in_a), len(in_b)))
        deviation = self._deviation()
        for label, total in enumerate(self.totals):
            weight, holds = self.trials[:, label] / total, self.holds[:, label]
            net = weight[in_a][:, None] - weight[in_b]
            costs += net * (net - 2 * deviation[a, label]) / self.ratios[a]
            costs += net * (net + 2 * deviation[b, label]) / self.ratios[b]
            flow = holds[in_a][:, None] - holds[in_b]
            lost = (flow >= self.holders[a, label]) | (-flow >= self.holders[b, label])
            costs[lost] = np.inf
        return costs

    def shake(self, orders: Sequence[Sequence[int]]) -> None:
        """Exchange neighbours in each order wherever the classes stay within the slack."""
        limit = (1 + RELATIVE_SLACK) * np.sqrt(self.class_costs()) + ABSOLUTE_SLACK
        for turn, order in enumerate(orders):
            for g, neighbour in pairwise(order):
                a, b = int(self.part_of[g]), int(self.part_of[neighbour])
                if a == b:
                    continue
                h = neighbour if turn % 2 == 0 else self.nobody
                self._exchange(g, h, a, b)
                if (self.holders == 0).any() or (np.sqrt(self.class_costs()) > limit).any():
                    self._exchange(g, h, b, a)
