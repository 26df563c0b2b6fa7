"""A permutation test: how often labels that mean nothing do as well."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation.metrics import pair_wins, scored_classes

#: Differences of the statistic below this are rounding.
_TOLERANCE = 1e-12
_CHUNK = 1000


@dataclass(frozen=True, eq=False)
class Relabelling:
    """Arrangements of the labels over the exchangeable units.

    Attributes
    ----------
    labels : int64 array of shape (n_arrangements, n_units)
    exact : bool
        Whether they are all there are, the true one among them; else they are drawn at random.
    n_possible : int
        How many there are.
    """

    labels: NDArray[np.int64]
    exact: bool
    n_possible: int

    @property
    def smallest_p_value(self) -> float:
        """The p-value that no result can be below."""
        return 1 / self.n_possible if self.exact else 1 / (len(self.labels) + 1)


def relabellings(
    label: NDArray[np.int64], block: NDArray[np.int64], n_permutations: int, seed: int
) -> Relabelling:
    """Return all distinct arrangements of the labels inside blocks, or a random draw of them.

    Parameters
    ----------
    label : int64 array of shape (n_units,)
    block : int64 array of shape (n_units,)
        Labels are swapped inside a block only.
    n_permutations : int
        All arrangements if there are no more than this, else this many random ones.
    seed : int
    """
    members = [np.flatnonzero(block == index) for index in np.unique(block)]
    n_possible = math.prod(_n_arrangements(label[rows]) for rows in members)
    if n_possible <= n_permutations:
        labels = np.empty((n_possible, len(label)), np.int64)
        parts = [list(_arrangements(label[rows])) for rows in members]
        for index, chosen in enumerate(itertools.product(*parts)):
            for rows, arrangement in zip(members, chosen, strict=True):
                labels[index, rows] = arrangement
        return Relabelling(labels, True, n_possible)
    rng = np.random.default_rng(seed)
    labels = np.tile(label, (n_permutations, 1))
    for rows in members:
        labels[:, rows] = rng.permuted(labels[:, rows], axis=1)
    return Relabelling(labels, False, n_possible)


def permutation_p_value(
    probability: NDArray[np.float64],
    unit: NDArray[np.int64],
    label: NDArray[np.int64],
    relabelling: Relabelling,
) -> float | None:
    """Return the one-sided p-value of the AUC (one class of two, or mean of each against the rest).

    The share of arrangements whose AUC is at least the observed one, with all arrangements; with
    random ones (b + 1) / (m + 1), since the observed one is an arrangement as well (Phipson and
    Smyth 2010, Permutation P-values should never be zero).

    Parameters
    ----------
    probability : float64 array of shape (n, n_classes)
    unit : int64 array of shape (n,)
        Exchangeable unit of each row.
    label : int64 array of shape (n_units,)
        True labels of the exchangeable units.
    relabelling : Relabelling
        Of these labels.

    Returns
    -------
    float or None
        None if a class does not occur.
    """
    n_units, n_classes = len(label), probability.shape[1]
    if len(np.unique(label)) < n_classes:
        return None
    sizes = np.bincount(unit, minlength=n_units).astype(np.float64)
    scored = scored_classes(n_classes)
    wins = [
        pair_wins(probability[:, index], unit, probability[:, index], unit, n_units)
        for index in scored
    ]

    def statistic(labels: NDArray[np.int64]) -> NDArray[np.float64]:
        total = np.zeros(len(labels))
        for index, class_wins in zip(scored, wins, strict=True):
            own = (labels == index).astype(np.float64)
            n_own = own @ sizes
            total += ((own @ class_wins) * (1 - own)).sum(axis=1) / (n_own * (sizes.sum() - n_own))
        return total / len(scored)

    observed = statistic(label[None])[0] - _TOLERANCE
    n_reached = sum(
        int((statistic(relabelling.labels[start : start + _CHUNK]) >= observed).sum())
        for start in range(0, len(relabelling.labels), _CHUNK)
    )
    if relabelling.exact:
        return n_reached / relabelling.n_possible
    return (n_reached + 1) / (len(relabelling.labels) + 1)


def _n_arrangements(label: NDArray[np.int64]) -> int:
    counts = np.unique(label, return_counts=True)[1].tolist()
    return math.factorial(len(label)) // math.prod(map(math.factorial, counts))


def _arrangements(label: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield every distinct arrangement of some labels."""
    classes, counts = np.unique(label, return_counts=True)
    if len(classes) == 1:
        yield label
        return
    for chosen in itertools.combinations(range(len(label)), int(counts[0])):
        rest = np.setdiff1d(np.arange(len(label)), chosen)
        for others in _arrangements(label[label != classes[0]]):
            arrangement = np.full(len(label), classes[0])
            arrangement[rest] = others
            yield arrangement
