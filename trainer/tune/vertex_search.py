"""The search as a hyperparameter tuning job of Vertex AI: each trial is a container that trains."""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Sequence
from typing import Any

from trainer.data.dataset_folder import open_dataset
from trainer.errors import TrainerError
from trainer.options import RunOptions, config_arguments
from trainer.remote.stores import open_remote
from trainer.tune.objective import check_objective
from trainer.tune.results import (
    DONE,
    FAILED,
    UNFINISHED,
    TrialResult,
    print_results,
    results_csv,
    results_png,
)
from trainer.tune.space import OBJECTIVE, Parameter
from trainer.vertex.job_spec import Search, Work, tuning_job
from trainer.vertex.launch import launch, require_bucket
from trainer.vertex.options import read_vertex_options

_STATES = {"SUCCEEDED": DONE, "INFEASIBLE": FAILED}


def search_on_vertex(
    arguments: argparse.Namespace,
    run_options: RunOptions,
    output: str,
    parameters: Sequence[Parameter],
) -> None:
    """Submit the search and watch it, as the command line asks; show what was found.

    Raises
    ------
    TrainerError
        If the search could not be made like this, or the job does not end well.
    """
    options = read_vertex_options(arguments, os.environ)
    require_bucket("--data", run_options.data)
    require_bucket("--output", output)
    # Without --output: the service gives each trial a folder below baseOutputDirectory.
    names = [parameter.name for parameter in parameters]
    words = ["train", "--data", run_options.data, *config_arguments(run_options.config, names)]
    work = Work(words, output, "tune")
    parallel = min(arguments.parallel_trials or 2, arguments.max_trials)
    search = Search(parameters, arguments.max_trials, parallel)
    launch(
        tuning_job(options, work, search),
        options,
        work,
        lambda: _check(run_options.data, output),
        dry_run=arguments.dry_run,
        wait=not arguments.no_wait,
        ended=lambda job: _show(job.trials, output, parameters),
    )


def _show(trials: Sequence[Any], output: str, parameters: Sequence[Parameter]) -> None:
    """Print the trials and write them to the output; those of a job that failed, too."""
    if not trials:
        return
    results = [_result(trial, output) for trial in trials]
    print_results(results, parameters)
    files = {
        "results.csv": results_csv(results, parameters),
        "results.png": results_png(results, parameters),
    }
    folder = open_remote(output)
    for name, content in files.items():
        folder.upload(name, io.BytesIO(content), len(content), None)
    print(f"Written to {output}: {' and '.join(files)}")


def _check(data: str, output: str) -> None:
    """Refuse what no trial could do: to find an objective, or a folder that is its own."""
    check_objective(open_dataset(data))
    if "1/config.yaml" in open_remote(output).list_files():
        raise TrainerError(
            f"{output} holds the trials of another tuning job, whose numbers begin at 1 as well: "
            "give this one an --output of its own"
        )


def _result(trial: Any, output: str) -> TrialResult:
    metrics = {metric.metric_id: metric.value for metric in trial.final_measurement.metrics}
    state = _STATES.get(trial.state.name, UNFINISHED)
    return TrialResult(
        name=trial.id,
        state=state,
        auc=metrics.get(OBJECTIVE) if state == DONE else None,
        values={parameter.parameter_id: float(parameter.value) for parameter in trial.parameters},
        folder=f"{output.rstrip('/')}/{trial.id}",
    )
