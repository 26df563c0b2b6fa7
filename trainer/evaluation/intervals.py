"""How far a number may be off: a cluster bootstrap over animals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit, logit

CONFIDENCE = 0.95
#: With fewer groups a class, a note says how little an interval can know.
FEW_GROUPS = 5
#: Relative; sums of other orders differ by less.
ROUNDING = 1e-9

#: Where a number can lie, and so on which scale its errors are about symmetric: in (0, 1), above
#: 0, or anywhere.
Scale = Literal["logit", "log", "linear"]


@dataclass(frozen=True)
class Interval:
    """Bounds of a 95 % interval; both None where nothing can be said."""

    low: float | None
    high: float | None

    def including(self, value: float) -> Interval:
        """Return the interval widened, where it has bounds, to hold a value."""
        if self.low is None or self.high is None:
            return self
        return Interval(min(self.low, value), max(self.high, value))

    def within(self, least: float, most: float) -> Interval:
        """Return the interval cut, where it has bounds, to where its number can lie."""
        if self.low is None or self.high is None:
            return self
        return Interval(max(self.low, least), min(self.high, most))


def bootstrap_weights(
    strata: NDArray[np.int64], n_bootstrap: int, seed: int
) -> NDArray[np.float64]:
    """Return how often each group is drawn in each resample.

    Groups are drawn with replacement, each stratum as many times as it has groups. With strata
    that are classes every resample holds every class, in the split's proportions.

    Parameters
    ----------
    strata : int64 array of shape (n_groups,)
    n_bootstrap : int
    seed : int

    Returns
    -------
    float64 array of shape (n_bootstrap, n_groups)
        Whole numbers.
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((n_bootstrap, len(strata)))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        shares = np.full(len(members), 1 / len(members))
        weights[:, members] = rng.multinomial(len(members), shares, size=n_bootstrap)
    return weights


def all_alike(samples: NDArray[np.float64]) -> bool:
    """Return whether resamples differ by no more than rounding; NaN counts as nothing."""
    known = samples[~np.isnan(samples)]
    return not len(known) or float(np.ptp(known)) <= ROUNDING * float(np.abs(known).max())


def bootstrap_interval(
    value: float, samples: NDArray[np.float64], strata: NDArray[np.int64], scale: Scale
) -> Interval:
    """Return Student's interval with the standard error of a cluster bootstrap.

    Percentiles of the resamples cover too little when groups are few: their spread is that of a
    sum of squares over n, not n - 1, their tails are normal, not Student's, and at a ceiling they
    stick to it. So the spread is widened by sqrt(n / (n - S)) for n groups in S strata, multiplied
    by the 97.5 % point of Student's t with n - S degrees of freedom, and applied on the scale on
    which errors are about symmetric (delta method); Pohar Perme and Manevski (2018) find the same
    for the AUC. In simulations of AUCs from 0.5 to 0.96 with 3, 6 and 16 animals a class,
    percentiles hold the truth in 49-81, 68-93 and 83-96 %, these intervals in 72-95, 84-98 and
    92-98 %.

    Parameters
    ----------
    value : float
        What was observed. NaN gives no interval.
    samples : float64 array of shape (n_bootstrap,)
        The same of every resample; NaN where it is not defined.
    strata : int64 array of shape (n_groups,)
        A stratum of one group gives no interval: nothing then says how much groups differ.
    scale : {"logit", "log", "linear"}

    Returns
    -------
    Interval
        Without bounds where all resamples are alike: they are blind then rather than sure.
    """
    sizes = np.unique(strata, return_counts=True)[1]
    samples = samples[~np.isnan(samples)]
    if sizes.min() < 2 or math.isnan(value) or all_alike(samples):
        return Interval(None, None)
    n, freedom = len(strata), len(strata) - len(sizes)
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
    error = quantile * math.sqrt(n / freedom) * float(samples.std())
    if scale == "logit" and 0 < value < 1:
        centre, step = float(logit(value)), error / (value * (1 - value))
        return Interval(float(expit(centre - step)), float(expit(centre + step)))
    if scale == "log" and value > 0:
        return Interval(value * math.exp(-error / value), value * math.exp(error / value))
    return Interval(value - error, value + error)
