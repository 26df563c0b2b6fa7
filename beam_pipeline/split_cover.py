"""Decide whether whole groups can give every class to every part of a partition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import reduce
from operator import or_

import numpy as np
from numpy.typing import NDArray


class Cover:
    """Decides whether the groups left to place can still give every class to every part.

    Groups count only by their kind: the set of classes they hold, as a bit mask. More groups of
    a kind than parts are never needed, so counts are capped and few states occur.

    Parameters
    ----------
    n_parts : int
        Number of parts.
    trials : ndarray of int64, shape (n_groups, n_classes)
        Trials of each class in each group.

    Attributes
    ----------
    kinds : list of int
        Kind of each group.
    missing : tuple of int
        The classes, as a bit mask, that each part is missing while no group is placed.
    """

    def __init__(self, n_parts: int, trials: NDArray[np.int64]) -> None:
        n_classes = trials.shape[1]
        self.kinds = [_mask(row) for row in (trials > 0).tolist()]
        self.missing = ((1 << n_classes) - 1,) * n_parts
        self._memo: dict[tuple[object, ...], bool] = {}

    def possible(self) -> bool:
        """Whether there is a partition with every class in every part."""
        return self.allows(Counter(self.kinds), self.missing)

    def allows(self, left: Mapping[int, int], missing: tuple[int, ...]) -> bool:
        """Whether the groups that are left, by kind, can give each part what it is missing."""
        if not any(missing):
            return True
        capped = tuple(sorted((k, min(n, len(missing))) for k, n in left.items() if k and n > 0))
        state = (capped, tuple(sorted(missing)))
        if state not in self._memo:
            self._memo[state] = self._search(dict(capped), missing)
        return self._memo[state]

    def _search(self, left: Mapping[int, int], missing: tuple[int, ...]) -> bool:
        tightest: tuple[int, int] | None = None
        for bit in _bits(reduce(or_, missing)):
            needed = sum(1 for m in missing if m & bit)
            # Groups of this class alone are of no other use: if they suffice, it is settled.
            if left.get(bit, 0) >= needed:
                missing = tuple(m & ~bit for m in missing)
                continue
            spare = sum(n for kind, n in left.items() if kind & bit) - needed
            if spare < 0:
                return False
            tightest = min(tightest or (spare, bit), (spare, bit))
        if tightest is None:
            return True
        bit = tightest[1]
        part = next(i for i, m in enumerate(missing) if m & bit)
        wanted = reduce(or_, missing)
        useful: Counter[int] = Counter()
        for kind, n in left.items():
            useful[kind & wanted] += n
        return any(
            self.allows({**useful, kind: useful[kind] - 1}, given_to(missing, kind, part))
            for kind in sorted(useful)
            if kind & bit
        )


def given_to(missing: tuple[int, ...], kind: int, part: int) -> tuple[int, ...]:
    """Return what the parts are missing once a group of this kind is in one of them."""
    return (*missing[:part], missing[part] & ~kind, *missing[part + 1 :])


def _mask(held: Iterable[bool]) -> int:
    return sum(1 << i for i, holds in enumerate(held) if holds)


def _bits(mask: int) -> list[int]:
    return [1 << i for i in range(mask.bit_length()) if mask >> i & 1]
