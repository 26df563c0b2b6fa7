"""The best model of a run, as its checkpoint holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import SECTIONS, Config, LoaderConfig
from trainer.data.dataset_folder import DatasetFolder
from trainer.data.store_choice import Order
from trainer.errors import TrainerError
from trainer.model import Temporal3DViT, create_model
from trainer.options import load_config
from trainer.training.checkpoint import Entry, load_checkpoint, read_marker


@dataclass(frozen=True)
class TrainedModel:
    """Weights of the best epoch, and what they were trained on.

    Attributes
    ----------
    model : Temporal3DViT
        On the CPU, in evaluation mode; the moving average of the weights where the run keeps one.
    config : Config
        Of the run.
    entry : Entry
        The checkpoint.
    fingerprint : str
        Of the dataset.
    """

    model: Temporal3DViT
    config: Config
    entry: Entry
    fingerprint: str

    def check_dataset(self, dataset: DatasetFolder) -> None:
        """Refuse a dataset that is not the one of the training.

        Raises
        ------
        TrainerError
            If it has another fingerprint.
        """
        if dataset.fingerprint != self.fingerprint:
            raise TrainerError(
                f"{dataset.url} is not the dataset that the model was trained on (fingerprint "
                f"{dataset.fingerprint[:12]}, not {self.fingerprint[:12]}): give that one with "
                "--data, or train anew"
            )


def run_identity(dataset: DatasetFolder, world_size: int) -> dict[str, Any]:
    """Return what, beside the config, makes a run this run and no other."""
    return {
        "dataset": dataset.fingerprint,
        "classes": list(dataset.classes),
        "shape": list(dataset.shape),
        "processes": world_size,
    }


def data_order(config: LoaderConfig, store: str) -> dict[str, str]:
    """Return what the order of the batches depends on; it belongs to a run's identity, too.

    Parameters
    ----------
    config : LoaderConfig
    store : str
        The one in use: device and memory give the same batches, a stream others.
    """
    streamed = f"stream with {config.num_workers} workers"
    return {"order": streamed if store == "stream" else "resident"}


def order_of(identity: Mapping[str, Any]) -> Order:
    """Return which stores give the batches of a run of this identity."""
    return "stream" if identity["order"].startswith("stream") else "resident"


def read_best(run: Path) -> tuple[Entry, dict[str, Any]]:
    """Return the best checkpoint of a run folder, and its content.

    Raises
    ------
    TrainerError
        If there is none.
    """
    marker = read_marker(run / "checkpoints")
    if marker is None or not marker.best:
        raise TrainerError(
            f"{run} has no best checkpoint: it is no run folder, or its first epoch is not done; "
            f"python -m trainer train --output {run} goes on"
        )
    return marker.best[0], load_checkpoint(run / "checkpoints", marker.best[0])


def build_model(entry: Entry, content: Mapping[str, Any]) -> TrainedModel:
    """Return the model that a checkpoint holds."""
    sections = {name: cls(**content["config"][name]) for name, cls in SECTIONS.items()}
    config, identity = Config(**sections), content["identity"]
    n_freqs, n_times = identity["shape"]
    n_trials, n_classes = config.sequence.n_trials, len(identity["classes"])
    model = create_model(config.model, n_trials, n_freqs, n_times, n_classes)
    model.load_state_dict(content["model"] if content["ema"] is None else content["ema"])
    return TrainedModel(model.eval(), config, entry, identity["dataset"])


def load_trained_model(run: Path) -> TrainedModel:
    """Return the best model of a run folder.

    Raises
    ------
    TrainerError
        If the run has no best checkpoint, or it is damaged.
    """
    return build_model(*read_best(run))


def read_run_config(run: Path) -> tuple[Config, str]:
    """Return a run's config as it was last started, and its dataset's folder or URL.

    Raises
    ------
    TrainerError
        If there is none.
    """
    path = run / "config.yaml"
    if not path.is_file():
        why = "has no config.yaml: it is no run folder" if run.is_dir() else "is not there"
        raise TrainerError(f"{run} {why}; pass the --output of train")
    return load_config(path)
