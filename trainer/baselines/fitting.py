"""Every baseline fitted on train, tuned on val and applied to the split that is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.baselines import linear
from trainer.baselines.eegnet import fit_eegnet
from trainer.baselines.features import (
    BANDS,
    TrialFeatures,
    band_power,
    mean_and_std,
    sequence_means,
    session_gain,
)
from trainer.data.dataset_folder import DatasetFolder
from trainer.data.sequences import Sequences
from trainer.data.trials import Trials

#: {name: what a reader sees}, in the order of the table.
TITLES = {
    "majority": "majority class",
    "session_gain": "session gain only",
    "baseline_spectrum": "baseline spectrum only",
    "band_power": "band power + logistic regression",
    "mean_std": "mean/std + logistic regression",
    "pca": "PCA + logistic regression",
    "eegnet": "EEGNet-like convolutional net",
}


@dataclass(frozen=True, eq=False)
class SplitFeatures:
    """The sequences of one split, with what is known of their trials.

    Attributes
    ----------
    trials : Trials
    sequences : Sequences
    features : TrialFeatures
    """

    trials: Trials
    sequences: Sequences
    features: TrialFeatures

    @property
    def label(self) -> NDArray[np.int64]:
        """Class of each sequence, int64 (n_sequences,)."""
        return self.trials.labels[self.sequences.session]


@dataclass(frozen=True, eq=False)
class FittedBaseline:
    """What a baseline says of the judged split.

    Attributes
    ----------
    name : str
        Key of `TITLES`.
    logits : float64 array of shape (n_sequences, n_classes)
        Of the judged split.
    val_logits : float64 array of shape (n_val_sequences, n_classes), optional
        None without a val split.
    settings : dict
        What was chosen, and where; JSON values.
    """

    name: str
    logits: NDArray[np.float64]
    val_logits: NDArray[np.float64] | None
    settings: dict[str, Any]


def fit_baselines(
    folder: DatasetFolder, splits: Mapping[str, SplitFeatures], judged: str, seed: int
) -> Iterator[FittedBaseline]:
    """Yield every baseline that the dataset allows, in the order of `TITLES`.

    Parameters
    ----------
    folder : DatasetFolder
    splits : mapping
        Train, the judged split, and val where it holds sequences.
    judged : str
        What logits are for. Nothing is fitted to it or chosen by it, unless it is val.
    seed : int
    """
    n_classes = len(folder.classes)
    train, val, test = splits["train"], splits.get("val"), splits[judged]
    # What lacks a class has no AUC to choose by.
    tuning = val if val is not None and len(np.unique(val.label)) == n_classes else None
    chosen_on = "val" if tuning else None

    def prior(split: SplitFeatures) -> NDArray[np.float64]:
        return linear.prior_logits(train.label, n_classes, len(split.label))

    yield FittedBaseline("majority", prior(test), prior(val) if val else None, {})
    for name, features_of in _feature_sets(folder).items():
        values = {key: features_of(split) for key, split in splits.items()}
        if values["train"].shape[1] == 0:
            continue
        model = linear.fit_logistic(
            linear.LabelledFeatures(values["train"], train.label),
            linear.LabelledFeatures(values["val"], tuning.label) if tuning else None,
            seed,
            pca=name == "pca",
        )
        yield FittedBaseline(
            name,
            model.logits(values[judged]),
            model.logits(values["val"]) if val else None,
            {
                "n_features": values["train"].shape[1],
                "C": model.penalty,
                "chosen_on": chosen_on,
            },
        )
    net, epoch = fit_eegnet(_pooled(train), _pooled(tuning) if tuning else None, seed)
    yield FittedBaseline(
        "eegnet",
        net.logits(*_pooled(test)[:2]),
        net.logits(*_pooled(val)[:2]) if val else None,
        {"epoch": epoch, "chosen_on": chosen_on},
    )


def _feature_sets(
    folder: DatasetFolder,
) -> dict[str, Callable[[SplitFeatures], NDArray[Any]]]:
    """Return {baseline: features of a split's sequences} of those with a logistic regression."""
    return {
        "session_gain": lambda split: session_gain(
            split.features.baseline, split.sequences.rows, split.trials.session
        ),
        "baseline_spectrum": lambda split: sequence_means(
            split.features.baseline, split.sequences.rows
        ),
        "band_power": lambda split: band_power(
            split.features.mean, split.sequences.rows, folder.freqs, folder.normalization["std"]
        ),
        "mean_std": mean_std_features,
        "pca": lambda split: sequence_means(split.features.pooled, split.sequences.rows).reshape(
            len(split.sequences), -1
        ),
    }


def mean_std_features(split: SplitFeatures) -> NDArray[np.float64]:
    """Return the features of the baseline ``mean_std``."""
    features = split.features
    return mean_and_std(features.mean, features.mean_square, split.sequences.rows)


def missing_baselines(folder: DatasetFolder) -> dict[str, str]:
    """Return {baseline: why the dataset does not allow it}."""
    lowest = min(low for low, _ in BANDS.values())
    highest = max(high for _, high in BANDS.values())
    if ((lowest <= folder.freqs) & (folder.freqs < highest)).any():
        return {}
    return {"band_power": f"no frequency lies between {lowest:g} and {highest:g} Hz"}


def _pooled(
    split: SplitFeatures,
) -> tuple[NDArray[np.float16], NDArray[np.int64], NDArray[np.int64]]:
    return split.features.pooled, split.sequences.rows, split.label
