"""The folds' baselines on the very sequences of the folds' models, as one result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.baselines.folder import Baselines, mismatch
from trainer.config import EvaluationConfig
from trainer.evaluation.across_folds import metrics_across_folds
from trainer.evaluation.predictions import Predictions
from trainer.evaluation.results import evaluate_predictions


def choose_baselines(
    candidates: Sequence[Baselines], wanted: Mapping[str, Any], predictions: Predictions
) -> tuple[Baselines | None, dict[str, str]]:
    """Return the first baselines that predict what a run does, or why those there are do not.

    Parameters
    ----------
    candidates : sequence of Baselines
    wanted : mapping
        See `trainer.baselines.folder.baselines_key`.
    predictions : Predictions
        Of the run.

    Returns
    -------
    baselines : Baselines or None
    unfit : dict
        {where others were found: what is wrong with them}, if there are none that fit.
    """
    unfit = {}
    for candidate in candidates:
        reason = _unfit(candidate, wanted, predictions)
        if not reason:
            return candidate, {}
        unfit[candidate.url] = reason
    return None, unfit


def _unfit(candidate: Baselines, wanted: Mapping[str, Any], predictions: Predictions) -> str:
    differing = mismatch(next(iter(candidate.contents.values())), wanted)
    if differing:
        return f"are {differing}"
    if candidate.contents.keys() - candidate.predictions.keys():
        return "lack predictions"
    ids = set(predictions.ids())
    if any(set(held.ids()) != ids for held in candidate.predictions.values()):
        return "are of other sequences"
    return ""


def pool_baselines(
    folds: Sequence[Baselines],
    classes: Sequence[str],
    config: EvaluationConfig,
    seed: int,
    metadata: Mapping[str, Any],
) -> Baselines | None:
    """Return the out-of-fold predictions of every baseline, and their metrics.

    Parameters
    ----------
    folds : sequence of Baselines
        One a fold, with all their predictions. A baseline that a fold lacks is left out, as
        `note_left_out` says.
    classes : sequence of str
    config : EvaluationConfig
    seed : int
    metadata : mapping
        Of the pooled result; it goes into the metrics of each.

    Returns
    -------
    Baselines or None
        None where no baseline is in every fold.
    """
    first = folds[0]
    names = [name for name in first.contents if all(name in fold.contents for fold in folds)]
    if not names:
        return None
    predictions = {
        name: Predictions.concatenate([fold.predictions[name] for fold in folds]) for name in names
    }
    contents = {
        name: metrics_across_folds(
            evaluate_predictions(
                held,
                classes,
                config,
                seed,
                metadata={"title": first.contents[name]["title"], **metadata},
            ),
            len(folds),
        )
        for name, held in predictions.items()
    }
    return Baselines("", contents, predictions, None)


def note_left_out(folds: Sequence[Baselines]) -> list[str]:
    """Return a note on the baselines that some folds have and others lack; none without such.

    Parameters
    ----------
    folds : sequence of Baselines
        One a fold.
    """
    titles = {name: content["title"] for fold in folds for name, content in fold.contents.items()}
    lacking = {
        title: [fold.url for fold in folds if name not in fold.contents]
        for name, title in titles.items()
    }
    left = [f"{title} (not in {', '.join(urls)})" for title, urls in lacking.items() if urls]
    return [f"baselines that some folds lack are left out: {'; '.join(left)}"] if left else []
