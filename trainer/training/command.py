"""The command ``train``: from a dataset folder to an evaluated run folder.

The step itself is in `train_step`, the loop over the epochs in `fit`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from trainer.config import Config
from trainer.data.dataset_folder import MANIFEST, DatasetFolder, open_dataset
from trainer.data.loader import SequenceLoader, open_loaders
from trainer.distributed import Process, process_group
from trainer.errors import UsageError
from trainer.options import RunOptions, dump_config
from trainer.run_folder import (
    STUDY,
    RunFolder,
    is_remote,
    local_path,
    open_run,
    write_atomically,
)
from trainer.trained_model import data_order, order_of, run_identity
from trainer.training.checkpoint import check_same_run, load_checkpoint, read_marker
from trainer.training.fit import Fit, SearchTrial, is_finished
from trainer.training.follower import Follower
from trainer.training.followers import follow
from trainer.training.interruption import Interruption, interruptible
from trainer.training.plan import Plan
from trainer.training.train_step import start_training
from trainer.vertex import container

#: What may stand in the folder of a run that has not begun: what baselines and a machine that was
#: lost in the first seconds leave.
_BEFORE_A_RUN = {
    "baselines.json",
    "session_probe.json",
    "predictions",
    "checkpoints",
    "tensorboard",
}


def run(options: RunOptions, trial: SearchTrial | None = None) -> None:
    """Train, or go on where the run was, then evaluate the best checkpoint on val and test.

    Parameters
    ----------
    options : RunOptions
    trial : SearchTrial, optional
        If it is one of a search, nothing is evaluated: the search looks at the AUC of val alone,
        and what looks at test before it is over is no test.

    Raises
    ------
    TrainerError
        If the dataset does not hold, the folder holds another run, or training cannot go on.
    """
    with interruptible() as interruption, process_group() as process:
        # Only the main process reads and writes the run folder.
        opened = open_run(options.output, alone=True) if process.is_main else nullcontext()
        with opened as main_folder:
            folder = main_folder or RunFolder(options.output, Path())
            try:
                _run(options, folder, process, interruption, trial)
            finally:
                # What is written is yet to be copied, if the folder is behind a URL.
                if process.is_main:
                    interruption.finish()


def _run(
    options: RunOptions,
    folder: RunFolder,
    process: Process,
    interruption: Interruption,
    trial: SearchTrial | None,
) -> None:
    config, dataset = options.config, open_dataset(options.data)
    checkpoint = process.broadcast(
        _prepare(options, folder, dataset, process) if process.is_main else None
    )
    environ = os.environ if process.is_main else {}
    with follow(environ, config, options.data, folder) as followers:
        loaders = {}
        if checkpoint is None or not is_finished(checkpoint, config.train):
            loaders = _fit(
                options, dataset, folder, process, checkpoint, followers, interruption, trial
            )
        elif process.is_main:
            _write_config(options, folder)
        if trial is None:
            in_search = process.broadcast(container.is_trial(environ) if process.is_main else None)
            _evaluate(config, dataset, folder, process, followers, loaders, bool(in_search))
        # Nobody is told that a run is complete whose results are on this machine alone.
        folder.flush()


def _prepare(
    options: RunOptions, folder: RunFolder, dataset: DatasetFolder, process: Process
) -> dict[str, Any] | None:
    """Check what is there, and return the last checkpoint, if any."""
    if (folder.path / MANIFEST).exists():
        raise UsageError(
            f"--output {options.output} is a dataset: give the run a folder of its own"
        )
    if (folder.path / STUDY).exists():
        raise UsageError(
            f"--output {options.output} is a search (tune): give the run a folder of its own"
        )
    if not (folder.path / "config.yaml").exists():
        foreign = {path.name for path in folder.path.glob("[!.]*")} - _BEFORE_A_RUN
        if foreign:
            raise UsageError(
                f"--output {options.output} is no run, and holds {', '.join(sorted(foreign)[:5])}: "
                "give the run a folder of its own"
            )
    checkpoint = None
    checkpoints = folder.path / "checkpoints"
    marker = read_marker(checkpoints)
    if marker is not None:
        checkpoint = load_checkpoint(checkpoints, marker.last)
        identity = run_identity(dataset, process.world_size)
        check_same_run(checkpoint, options.config, identity, options.output)
        begun = checkpoint["epoch"] + (checkpoint["batch"] > 0)
        if options.config.train.epochs < begun:
            raise UsageError(
                f"{options.output} has gone into epoch {begun}, past --train.epochs "
                f"{options.config.train.epochs}: give {begun} or more, or a new --output"
            )
    return checkpoint


def _write_config(options: RunOptions, folder: RunFolder) -> None:
    """Write ``config.yaml``, once it is known that the run goes on with it."""
    data = options.data if is_remote(options.data) else str(local_path(options.data).resolve())
    text = dump_config(options.config, data, options.command)
    write_atomically(folder.path / "config.yaml", text.encode())


def _fit(
    options: RunOptions,
    dataset: DatasetFolder,
    folder: RunFolder,
    process: Process,
    checkpoint: dict[str, Any] | None,
    followers: Sequence[Follower],
    interruption: Interruption,
    trial: SearchTrial | None,
) -> dict[str, SequenceLoader]:
    """Train to the end; return the loaders that evaluation can use again."""
    config = options.config
    loaders, plans = open_loaders(
        dataset,
        config.sequence,
        config.loader,
        batch_size=config.train.batch_size,
        device=process.device,
        seed=config.train.seed,
        rank=process.rank,
        world_size=process.world_size,
        cache=folder.path / ".verified" if process.is_main else None,
        order=order_of(checkpoint["identity"]) if checkpoint else None,
    )
    step, state = start_training(config, dataset, loaders["train"], process)
    identity = run_identity(dataset, process.world_size)
    identity |= data_order(config.loader, plans["train"].store)
    if checkpoint is not None:
        check_same_run(checkpoint, config, identity, folder.url)
        state.restore(checkpoint)
    if process.is_main:
        _write_config(options, folder)
        if trial is None or trial.with_plan:
            Plan(config, dataset, plans, step, state, process).show()
    train, val = loaders["train"], loaders.get("val")
    fit = Fit(
        config=config,
        dataset=dataset,
        loader=train,
        val_loader=val,
        step=step,
        state=state,
        identity=identity,
        folder=folder,
        process=process,
        followers=followers,
        trial=trial,
    )
    fit.run(interruption)
    return {split: loader for split, loader in loaders.items() if split == "val"}


def _evaluate(
    config: Config,
    dataset: DatasetFolder,
    folder: RunFolder,
    process: Process,
    followers: Sequence[Follower],
    loaders: dict[str, SequenceLoader],
    in_search: bool,
) -> None:
    """Evaluate the best checkpoint on val and test; say what it is worth, and what comes next.

    In a tuning job of Vertex AI only on val: what looks at test before a search is over is no test.
    """
    # Here, because SciPy would keep the first step waiting for a second.
    from trainer.baselines.folder import baselines_command
    from trainer.evaluation.command import evaluate_best, print_summary
    from trainer.evaluation.predictions import read_predictions

    wanted = ("val",) if in_search else ("val", "test")
    splits = [name for name in wanted if dataset.splits[name].trials]
    contents = evaluate_best(folder, dataset, config, process, splits, loaders)
    if not process.is_main:
        return
    for split, content in contents.items():
        predictions, _ = read_predictions(folder.path / f"predictions/{split}.parquet")
        for follower in followers:
            follower.evaluated(split, content, predictions)
    if contents:
        print_summary(splits[-1], contents[splits[-1]])
    else:
        print("The dataset has neither val nor test: nothing was evaluated.")
    print(
        f"Everything is in {folder.url}: config.yaml, checkpoints/, metrics.jsonl, predictions/, "
        "metrics/, tensorboard/\n"
        f"Curves: tensorboard --logdir {folder.url}/tensorboard\n"
        "Next:"
    )
    if contents:
        split, cache = splits[-1], config.loader.cache
        of_split = "" if split == "test" else f" --split {split}"
        print(
            f"  {baselines_command(dataset.url, folder.url, split, config.sequence, cache=cache)}\n"
            f"  python -m trainer attention {folder.url}{of_split}"
        )
    print(f"  python -m trainer report {folder.url}")
