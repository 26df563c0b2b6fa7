"""Logistic regression on features, its regularisation chosen on val; and the session probe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from trainer.evaluation.metrics import compute_metrics
from trainer.evaluation.predictions import probabilities

#: Inverse strengths of the L2 penalty to choose from; the first of equally good ones is taken.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)
#: Without a val split that could choose, scikit-learn's default.
DEFAULT_PENALTY = 1.0
PCA_COMPONENTS = 32
#: Of the way from chance to always right: what a probe must reach to speak of sessions at all.
_GIVEN_AWAY = 0.2

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LabelledFeatures:
    """Features of the sequences of one split.

    Attributes
    ----------
    features : float64 array of shape (n_sequences, n_features)
    label : int64 array of shape (n_sequences,)
    """

    features: Floats
    label: Labels


@dataclass(frozen=True, eq=False)
class LogisticModel:
    """A fitted logistic regression.

    Attributes
    ----------
    pipeline : sklearn.pipeline.Pipeline
    penalty : float
        Inverse strength of the penalty, scikit-learn's C.
    """

    pipeline: Pipeline
    penalty: float

    def logits(self, features: Floats) -> Floats:
        """Return logits, float64 (n_sequences, n_classes)."""
        return decision_logits(self.pipeline, features)


def fit_logistic(
    train: LabelledFeatures, val: LabelledFeatures | None, seed: int, pca: bool = False
) -> LogisticModel:
    """Fit a logistic regression to standardised features.

    Classes are weighed equally, as in the transformer's loss.

    Parameters
    ----------
    train : LabelledFeatures
        Holds every class.
    val : LabelledFeatures, optional
        Holds every class. The penalty with the highest AUC of its sequences is taken, the strongest
        of equal ones. Not that of sessions: a few sessions have but a few AUCs. Without val,
        `DEFAULT_PENALTY` is taken.
    seed : int
        Of scikit-learn's solvers.
    pca : bool
        Reduce the features to their first `PCA_COMPONENTS` principal components before.
    """
    steps: list[Any] = [StandardScaler()]
    if pca:
        n_components = min(PCA_COMPONENTS, *train.features.shape)
        # The components once more: the penalty should not depend on their variances.
        steps += [PCA(n_components, random_state=seed), StandardScaler()]
    reduce = make_pipeline(*steps).fit(train.features)
    reduced = reduce.transform(train.features)

    def fit(penalty: float) -> Pipeline:
        model = LogisticRegression(
            C=penalty, class_weight="balanced", solver="newton-cholesky", tol=1e-6, max_iter=200
        )
        return make_pipeline(reduce, model.fit(reduced, train.label))

    if val is None:
        return LogisticModel(fit(DEFAULT_PENALTY), DEFAULT_PENALTY)
    best, best_auc = None, -math.inf
    for penalty in PENALTIES:
        pipeline = fit(penalty)
        auc = _auc(decision_logits(pipeline, val.features), val.label)
        if auc > best_auc:
            best, best_auc = LogisticModel(pipeline, penalty), auc
    assert best is not None
    return best


def decision_logits(pipeline: Pipeline, features: Floats) -> Floats:
    """Return a classifier's decision values as one logit a class."""
    decision: Floats = pipeline.decision_function(features)
    return np.stack([np.zeros_like(decision), decision], axis=1) if decision.ndim == 1 else decision


def prior_logits(label: Labels, n_classes: int, n: int) -> Floats:
    """Return n times the log class frequencies of train: always its most frequent class."""
    counts = np.bincount(label, minlength=n_classes)
    return np.tile(np.log(counts / len(label)), (n, 1))


def session_probe(
    features: Floats, rows: NDArray[np.int64], session: NDArray[np.int32]
) -> dict[str, float | int] | None:
    """Return how well single sequences tell which session they are from.

    Where they do so far better than by chance, a model can learn sessions by heart in place of the
    class, and only other animals tell the difference. Each session is cut in two in time; a linear
    discriminant learns one half and names the sessions of the other, both ways. Sequences that
    reach over the cut are left out.

    Parameters
    ----------
    features : float64 array of shape (n_sequences, n_features)
        Of train.
    rows : int64 array of shape (n_sequences, n_trials)
        Trials of each sequence, ascending inside a session.
    session : int32 array of shape (n_sequences,)

    Returns
    -------
    dict or None
        ``accuracy`` (mean recall of the sessions), ``chance``, ``n_sessions`` and ``n``, the
        sequences that were named. None where fewer than two sessions have two sequences a half.
    """
    halves = np.zeros(len(rows), np.int64)
    usable = []
    for index in np.unique(session):
        own = np.flatnonzero(session == index)
        first = own[: len(own) // 2]
        second = own[rows[own, 0] > rows[first, -1].max()] if len(first) else first
        if min(len(first), len(second)) < 2:
            continue
        halves[first], halves[second] = 1, 2
        usable.append(index)
    if len(usable) < 2:
        return None
    named = np.full(len(rows), -1, np.int64)
    for learnt, asked in ((1, 2), (2, 1)):
        model = make_pipeline(
            StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        )
        model.fit(features[halves == learnt], session[halves == learnt])
        named[halves == asked] = model.predict(features[halves == asked])
    used = halves > 0
    return {
        "accuracy": float(balanced_accuracy_score(session[used], named[used])),
        "chance": 1 / len(usable),
        "n_sessions": len(usable),
        "n": int(used.sum()),
    }


def meaning_of_probe(probe: Mapping[str, float | int]) -> str:
    """Return as a clause what follows of a model that `session_probe` found.

    Parameters
    ----------
    probe : mapping
        With ``accuracy`` and ``chance``.
    """
    beyond_chance = (probe["accuracy"] - probe["chance"]) / (1 - probe["chance"])
    if beyond_chance < _GIVEN_AWAY:
        return "that is hardly more than chance: these features do not give sessions away"
    return "a model can know sessions by heart, so only new animals show what it knows of the class"


def _auc(logits: Floats, label: Labels) -> float:
    return compute_metrics(probabilities(logits), label)["auc"]
