"""How often a cross-validation without any effect is called significant, before and after.

Each study has two logistic regressions on features of their own, normal noise that says nothing of
the class. Counted are studies in which a number claims something at 5 %: a p-value, an AUC whose
95 % interval lies above 0.5 (one side: 2.5 % by chance), two models whose paired difference
excludes 0. "Before" is as if the animals were one test set, "after" is what `pool` writes
(docs/decisions/0014-folds-are-judged-together.md). About two minutes on one core.
Needs: pip install -e '.[trainer]'.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from trainer.config import EvaluationConfig
from trainer.evaluation.across_folds import difference_across_folds, metrics_across_folds
from trainer.evaluation.predictions import Predictions
from trainer.evaluation.results import evaluate_predictions, paired_difference

N_FEATURES = 10
CLASSES = ("KO", "WT")
EVALUATION = EvaluationConfig(n_bootstrap=400, n_permutations=400)
SIGNIFICANCE = 0.05
HEADER = (
    "| | p-value, before | AUC above 0.5, before | after | paired difference, before | after |\n"
    "|---|---:|---:|---:|---:|---:|"
)


@dataclass(frozen=True)
class Study:
    """How animals are tested; without folds, by one model that was trained on as many others."""

    n_animals: int
    n_folds: int | None = None

    @property
    def title(self) -> str:
        """Of its row."""
        how = "one held-out set" if self.n_folds is None else f"{self.n_folds} folds"
        return f"{self.n_animals} animals, {how}"


STUDIES = (Study(30, 5), Study(30, 10), Study(12, 3), Study(30), Study(12))


def assign(label: NDArray[np.int64], n_folds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the fold of each animal, each class spread evenly."""
    fold = np.empty(len(label), np.int64)
    for index in np.unique(label):
        members = rng.permutation(np.flatnonzero(label == index))
        fold[members] = np.arange(len(members)) % n_folds
    return fold


def scores(
    label: NDArray[np.int64], fold: NDArray[np.int64] | None, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return a model's score of each animal, from features that say nothing."""

    def noise() -> NDArray[np.float64]:
        return rng.standard_normal((len(label), N_FEATURES))

    features, found = noise(), np.empty(len(label))
    if fold is None:
        found[:] = LogisticRegression().fit(noise(), label).decision_function(features)
        return found
    for index in np.unique(fold):
        tested = fold == index
        model = LogisticRegression().fit(features[~tested], label[~tested])
        found[tested] = model.decision_function(features[tested])
    return found


def simulate(study: Study, rng: np.random.Generator) -> list[bool | None]:
    """Return what one study calls significant, in the order of `HEADER`; None: there is no such."""
    label = np.arange(study.n_animals) % 2
    fold = None if study.n_folds is None else assign(label, study.n_folds, rng)
    names = tuple(f"m{index:03d}" for index in range(study.n_animals))
    trials = np.zeros((study.n_animals, 1), np.int64)
    first, second = (
        Predictions(names, names, trials, label, np.stack([np.zeros(len(label)), score], axis=1))
        for score in (scores(label, fold, rng), scores(label, fold, rng))
    )
    metrics = evaluate_predictions(first, CLASSES, EVALUATION, seed=0)
    paired = paired_difference(first, second, EVALUATION, seed=0)
    p_value, above = metrics["subject"]["p_value"], metrics["subject"]["auc"]["low"] > 0.5
    before = _excludes_zero(paired)
    if study.n_folds is None:
        return [p_value <= SIGNIFICANCE, above, None, before, None]
    metrics = metrics_across_folds(metrics, study.n_folds)
    paired = difference_across_folds(paired, study.n_folds)
    above_after = metrics["subject"]["auc"]["low"] > 0.5
    return [p_value <= SIGNIFICANCE, above, above_after, before, _excludes_zero(paired)]


def _excludes_zero(paired: dict[str, dict[str, dict[str, float]]]) -> bool:
    entry = paired["subject"]["auc"]
    return entry["low"] > 0 or entry["high"] < 0


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, default=1000, help="a row (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.perf_counter()
    print(HEADER)
    for index, study in enumerate(STUDIES):
        rng = np.random.default_rng((arguments.seed, index))
        drawn = [simulate(study, rng) for _ in range(arguments.studies)]
        shares = [
            "" if column[0] is None else f"{100 * sum(column) / len(column):.1f} %"
            for column in zip(*drawn, strict=True)
        ]
        print(f"| {study.title} | {' | '.join(shares)} |", flush=True)
    error = 100 * np.sqrt(SIGNIFICANCE * (1 - SIGNIFICANCE) / arguments.studies)
    print(
        f"\n{arguments.studies:,} studies a row, seed {arguments.seed}; standard error of 5 %: "
        f"{error:.1f} %; {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
