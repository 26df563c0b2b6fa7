"""What is maximised: the AUC of val's sessions, where val has one."""

from __future__ import annotations

from trainer.data.dataset_folder import DatasetFolder
from trainer.errors import TrainerError


def check_objective(dataset: DatasetFolder) -> None:
    """Refuse a dataset whose val has no AUC.

    Raises
    ------
    TrainerError
        If val lacks a class.
    """
    counts = dataset.splits["val"].trials_per_class
    absent = [name for name in dataset.classes if not counts.get(name)]
    if absent:
        raise TrainerError(
            f"{dataset.url}: val has no session of {', '.join(absent)}, so there is no AUC to tune "
            "by; preprocess with another --split_seed"
        )
