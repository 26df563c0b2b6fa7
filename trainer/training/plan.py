"""What a run is about to do, printed before its first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from trainer.config import Config
from trainer.console import format_bytes, print_table
from trainer.data.dataset_folder import DatasetFolder
from trainer.data.split_plan import SplitPlan
from trainer.distributed import Process
from trainer.hardware import device_name
from trainer.training.train_step import TrainStep
from trainer.training.training_state import TrainingState

_DROPPED = {
    "windows_gap": "sequences are left out because of a gap of more than {max_gap} trials",
    "trials_gap": "trials are in no sequence because of such a gap",
    "trials_short_session": "trials are in no sequence: their session has fewer than {n_trials}",
    "trials_tail": "trials are in no sequence: at that stride no whole one is left for them",
}


def print_plan(
    config: Config,
    dataset: DatasetFolder,
    plans: Mapping[str, SplitPlan],
    step: TrainStep,
    state: TrainingState,
    process: Process,
) -> None:
    """Print sequences, steps, model and memory of a run.

    Parameters
    ----------
    config : Config
    dataset : DatasetFolder
    plans : mapping
        Of every split that holds trials.
    step : TrainStep
    state : TrainingState
    process : Process
    """
    header = ["split", *(f"sequences {name}" for name in dataset.classes), "trials", "steps"]
    rows = [
        [
            split,
            *(f"{count:,}" for count in plan.sequences_per_class.values()),
            f"{plan.n_trials:,}",
            f"{plan.steps_per_epoch:,}",
        ]
        for split, plan in plans.items()
    ]
    print_table(f"Dataset {dataset.fingerprint[:12]}", header, rows)
    for line in (*_left_out(config, plans), *_lines(config, dataset, plans, step, state, process)):
        print(line)


def _left_out(config: Config, plans: Mapping[str, SplitPlan]) -> Iterator[str]:
    names = {"max_gap": config.sequence.max_gap, "n_trials": config.sequence.n_trials}
    for split, plan in plans.items():
        for reason, count in plan.dropped.items():
            if count:
                yield f"{split}: {count:,} {_DROPPED[reason].format(**names)}"


def _lines(
    config: Config,
    dataset: DatasetFolder,
    plans: Mapping[str, SplitPlan],
    step: TrainStep,
    state: TrainingState,
    process: Process,
) -> Iterator[str]:
    model, train = state.model, plans["train"]
    shape = " x ".join(map(str, (config.sequence.n_trials, *dataset.shape)))
    grid = " x ".join(map(str, model.grid_size))
    yield (
        f"Model: {model.num_params():,} parameters, {grid} patches of {shape} (trials x "
        f"frequencies x frames), {model.flops_per_sequence() / 1e9:.3g} GFLOP a sequence"
    )
    precision = "bfloat16 autocast" if step.bfloat16 else "float32"
    yield f"Device: {process.world_size} x {device_name(process.device)}, {precision}"
    per_rank = sorted(set(train.shards_per_rank))
    shards = " to ".join(f"{n:,}" for n in (per_rank[0], per_rank[-1])[: len(per_rank)])
    yield f"Store: {train.store}; each process reads {shards} of {train.shards:,} train shards"
    copies = 1 if state.average is None else 2
    weights = 4 * model.num_params()
    yield (
        f"Memory: {format_bytes(sum(plan.n_bytes for plan in plans.values()))} of trials, "
        f"{format_bytes((3 + copies) * weights)} of weights, gradients and optimiser, and the "
        "activations"
    )
    sequences = train.batch_size * process.world_size * config.optim.accumulate
    done = f"; {state.step:,} are done" if state.step else ""
    yield (
        f"Steps: {step.total_steps:,} of {sequences:,} sequences, {step.steps_per_epoch:,} an epoch"
        f"{done}; how long an epoch takes is measured in the first steps"
    )
    yield (
        f"Learning rate: {step.warmup_steps:,} steps of warm-up to {config.optim.lr:g}, then down "
        f"to {config.optim.min_lr:g} in the last step"
    )
