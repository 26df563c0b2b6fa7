"""The search on this machine: trial after trial, each a run folder like any other."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from trainer.config import Config
from trainer.data.dataset_folder import MANIFEST, DatasetFolder, open_dataset
from trainer.errors import DivergedError, TrainerError, UsageError
from trainer.options import RunOptions, config_arguments, parse_run_options
from trainer.run_folder import is_remote, open_run, write_atomically
from trainer.training.checkpoint import read_marker
from trainer.training.command import run as train
from trainer.training.fit import SearchTrial
from trainer.tune.objective import check_objective
from trainer.tune.results import print_results, results_csv, results_png
from trainer.tune.space import Parameter, apply
from trainer.tune.study import Study, Trial, open_study

#: Sections that change no result.
_FREE = ("loader.", "evaluation.")


def search(
    run_options: RunOptions, output: str, parameters: Sequence[Parameter], max_trials: int
) -> None:
    """Search, or go on where the search of the folder was, and show what was found.

    Parameters
    ----------
    run_options : RunOptions
        What all trials have in common.
    output : str
        Folder of the search; ``trials/NNNN`` in it are the run folders.
    parameters : sequence of Parameter
    max_trials : int
        Of the folder, those that are there already included.

    Raises
    ------
    TrainerError
        If the dataset has no such objective, the folder holds another search, or a trial cannot
        be trained. A trial that diverges is no error.
    """
    if is_remote(output):
        raise UsageError(f"--output {output}: a search without --vertex needs a folder on a disk")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("tune runs in one process: start it without torchrun, or with --vertex")
    dataset = open_dataset(run_options.data)
    check_objective(dataset)
    with open_run(output, alone=True) as folder:
        for name, what in {"config.yaml": "run", MANIFEST: "dataset"}.items():
            if (folder.path / name).exists():
                raise UsageError(
                    f"--output {output} is a {what}: give the search a folder of its own"
                )
        identity = _identity(run_options.config, dataset, parameters)
        seed = run_options.config.train.seed
        with open_study(folder.path, parameters, identity, seed) as study:
            with_plan = True
            while (trial := study.next(max_trials)) is not None:
                outcome = _run_trial(run_options, study, trial, with_plan)
                with_plan = False
                study.finish(trial, None if isinstance(outcome, DivergedError) else outcome)
                _print_trial(trial, max_trials, outcome)
                _write_table(study, folder.path, parameters)
            _write_table(study, folder.path, parameters)
            results = study.results()
            write_atomically(folder.path / "results.png", results_png(results, parameters))
            print_results(results, parameters)
            print(f"Written to {output}: results.csv, results.png and trials/")


def _identity(
    config: Config, dataset: DatasetFolder, parameters: Sequence[Parameter]
) -> dict[str, str]:
    words = config_arguments(config, [parameter.name for parameter in parameters])
    fields = dict(word.removeprefix("--").split("=", 1) for word in words)
    fields = {name: value for name, value in fields.items() if not name.startswith(_FREE)}
    space = {f"range of {p.name}": f"{p.low:g} to {p.high:g}" for p in parameters}
    return {"dataset": dataset.fingerprint, **space, **fields}


def _run_trial(
    run_options: RunOptions, study: Study, trial: Trial, with_plan: bool
) -> float | DivergedError:
    """Train a trial, or go on with it; return its AUC, or why it has none."""
    run = study.trial_folder(trial.number)
    config = apply(run_options.config, trial.values)
    options = parse_run_options(
        ["--data", run_options.data, "--output", str(run), *config_arguments(config)]
    )
    try:
        train(options, SearchTrial(trial.number + 1, with_plan))
    except DivergedError as error:
        return error
    finally:
        _forget()
    marker = read_marker(run / "checkpoints")
    if marker is None or not marker.best or len(marker.best[0].score) != 2:
        raise TrainerError(f"{run} has no AUC of val's sessions: val lacks sequences of a class")
    return marker.best[0].score[0]


def _print_trial(trial: Trial, max_trials: int, outcome: float | DivergedError) -> None:
    """Print the one line that stays of a trial."""
    values = ", ".join(f"{name} {value:.3g}" for name, value in trial.values.items())
    failed = isinstance(outcome, DivergedError)
    found = f"failed: {outcome}" if failed else f"val AUC {outcome:.3f}"
    name = f"{trial.number:04d}, {trial.number + 1} of {max_trials}"
    print(f"Trial {name}: {found} ({values})", flush=True)


def _forget() -> None:
    """Leave the next trial the memory of this one, and compilation as it was before it."""
    # Only where something was compiled: what compiles takes seconds to load.
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def _write_table(study: Study, folder: Path, parameters: Sequence[Parameter]) -> None:
    write_atomically(folder / "results.csv", results_csv(study.results(), parameters))
