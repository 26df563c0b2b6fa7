"""What a run is about to do, printed before its first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from trainer.config import Config
from trainer.console import format_bytes, format_seconds, print_table
from trainer.data.dataset_folder import DatasetFolder
from trainer.data.lost_sessions import describe_lost
from trainer.data.split_plan import SplitPlan
from trainer.distributed import Process
from trainer.hardware import device_name, use_compile
from trainer.plurals import plural
from trainer.training.patches import describe_padding, describe_smaller_models
from trainer.training.step_time import seconds_per_sequence
from trainer.training.train_step import TrainStep
from trainer.training.training_state import TrainingState

_DROPPED = {
    "trials_short_session": "a session of fewer than {n_trials} gives none; fewer "
    "--sequence.n_trials would use more",
    "trials_gap": "{gaps} leave no {n_trials} in a row around them; "
    "fewer --sequence.n_trials or a larger --sequence.max_gap would use more",
    "trials_tail": "at stride {stride} no whole sequence is left there; a smaller "
    "--sequence.stride would use more",
}
#: A step on a CPU that takes longer is announced; what is shorter is measured soon enough.
_LONG_STEP = 1.0
_LONG_EPOCH = 300.0
#: Pairs of val's sessions from which on the AUC moves in steps that are small enough.
_ENOUGH_PAIRS = 20


@dataclass(frozen=True)
class Plan:
    """A run that is about to begin.

    Attributes
    ----------
    config : Config
    dataset : DatasetFolder
    splits : mapping
        Of every split that holds trials.
    step : TrainStep
    state : TrainingState
    process : Process
    """

    config: Config
    dataset: DatasetFolder
    splits: Mapping[str, SplitPlan]
    step: TrainStep
    state: TrainingState
    process: Process

    @property
    def shape(self) -> tuple[int, int, int]:
        """Trials, frequencies and frames of a sequence."""
        return (self.config.sequence.n_trials, *self.dataset.shape)

    def show(self) -> None:
        """Print sequences, steps, model, memory and time of the run."""
        header = ["split", *(f"sequences {name}" for name in self.dataset.classes)]
        rows = [
            [
                split,
                *(f"{count:,}" for count in plan.sequences_per_class.values()),
                f"{plan.n_trials:,}",
                f"{plan.steps_per_epoch:,}",
            ]
            for split, plan in self.splits.items()
        ]
        title = f"Dataset {self.dataset.fingerprint[:12]}"
        print_table(title, [*header, "trials", "steps"], rows)
        for lines in (self._left_out(), self._model(), self._steps(), self._time()):
            for line in lines:
                print(line, flush=True)

    def _left_out(self) -> Iterator[str]:
        sequence = self.config.sequence
        gap = sequence.max_gap
        gaps = f"gaps of more than {plural(gap, 'trial')}" if gap else "gaps"
        for split, plan in self.splits.items():
            for reason, count in plan.dropped.items():
                if count:
                    why = _DROPPED[reason].format(
                        n_trials=sequence.n_trials,
                        gaps=gaps,
                        stride=sequence.resolved_stride,
                    )
                    share = 100 * count / plan.n_trials
                    trials = plural(count, "trial")
                    yield f"{split}: {trials} ({share:.1f} %) in no sequence: {why}"
        for split, plan in self.splits.items():
            if plan.lost:
                lost = describe_lost(plan.lost, self.dataset.classes, sequence.n_trials)
                n_sessions = len(plan.lost) + sum(plan.sessions_per_class.values())
                use = "learned from" if split == "train" else "evaluated"
                yield (
                    f"Warning: {len(plan.lost):,} of {plural(n_sessions, f'{split} session')} "
                    f"{'is' if len(plan.lost) == 1 else 'are'} not {use}: {lost}"
                )

    def _model(self) -> Iterator[str]:
        model, train = self.state.model, self.splits["train"]
        shape, grid = (" x ".join(map(str, sizes)) for sizes in (self.shape, model.grid_size))
        yield (
            f"Model: {model.num_params():,} parameters, {grid} patches of {shape} (trials x "
            f"frequencies x frames), {model.flops_per_sequence() / 1e9:.3g} GFLOP a sequence"
        )
        yield from describe_padding(self.config.model, self.shape)
        precision = "bfloat16 autocast" if self.step.bfloat16 else "float32"
        process = self.process
        yield f"Device: {process.world_size} x {device_name(process.device)}, {precision}"
        per_rank = sorted(set(train.shards_per_rank))
        shards = " to ".join(f"{n:,}" for n in (per_rank[0], per_rank[-1])[: len(per_rank)])
        yield f"Store: {train.store}; each process reads {shards} of {train.shards:,} train shards"
        copies = 1 if self.state.average is None else 2
        weights = 4 * model.num_params()
        yield (
            f"Memory: {format_bytes(sum(plan.n_bytes for plan in self.splits.values()))} of "
            f"trials, {format_bytes((3 + copies) * weights)} of weights, gradients and optimiser, "
            "and the activations"
        )

    def _steps(self) -> Iterator[str]:
        config, step, state = self.config, self.step, self.state
        done = f"; {state.step:,} done" if state.step else ""
        yield (
            f"Steps: {step.total_steps:,} of {plural(self._sequences_per_step, 'sequence')}, "
            f"{step.steps_per_epoch:,} an epoch{done}"
        )
        yield (
            f"Learning rate: {plural(step.warmup_steps, 'step')} of warm-up to "
            f"{config.optim.lr:g}, then down to {config.optim.min_lr:g} in the last step"
        )
        val = self.splits.get("val")
        if val is not None:
            counts = list(val.sessions_per_class.values())
            yield from describe_validation(counts, config.train.patience, config.train.epochs)

    def _time(self) -> Iterator[str]:
        config, device = self.config, self.process.device
        if use_compile(config.train.compile, device):
            yield "Time: the first step compiles the model, which takes a minute or more"
        if device.type != "cpu" or use_compile(config.train.compile, device):
            return
        n_classes = len(self.dataset.classes)
        of_sequence = seconds_per_sequence(config, self.shape, n_classes, self.step.bfloat16)
        step = of_sequence * config.train.batch_size * config.optim.accumulate
        if step < _LONG_STEP:
            return
        epoch = of_sequence * self.splits["train"].n_sequences / self.process.world_size
        left = epoch * (config.train.epochs - self.state.step / self.step.steps_per_epoch)
        yield (
            f"Time: about {format_seconds(step)} a step, {format_seconds(epoch)} an epoch, "
            f"{format_seconds(left)} to the end, as measured on one sequence and without "
            "validation; the first step takes longest"
        )
        smaller = describe_smaller_models(config.model, self.shape, n_classes)
        if epoch > _LONG_EPOCH and smaller:
            yield f"Warning: that is long without a GPU: {smaller}"

    @property
    def _sequences_per_step(self) -> int:
        of_batch = self.splits["train"].batch_size * self.process.world_size
        return of_batch * self.config.optim.accumulate


def describe_validation(sessions: list[int], patience: int | None, epochs: int) -> Iterator[str]:
    """Yield when a run stops early, and whether val can tell epochs apart.

    Parameters
    ----------
    sessions : list of int
        Of val, that give sequences, in each class.
    patience : int or None
    epochs : int
    """
    has_auc = all(sessions) and len(sessions) > 1
    advice = ""
    if patience is not None and patience < epochs:
        advice = f"; --train.patience null trains all {epochs} epochs"
        what = "a higher AUC of val's sessions" if has_auc else "a lower loss on val"
        flag = f"--train.patience {patience}"
        yield f"Early stopping: after {plural(patience, 'epoch')} without {what} ({flag})"
    pairs = min(count * (sum(sessions) - count) for count in sessions)
    if len(sessions) > 2:
        # The AUC is then the mean over one class against the others.
        pairs *= len(sessions)
    if has_auc and pairs < _ENOUGH_PAIRS:
        yield (
            f"Validation is coarse: with {' + '.join(map(str, sessions))} val sessions the AUC "
            f"moves in steps of {1 / pairs:.2g}, and epochs that tie are told apart by the "
            f"loss{advice}"
        )
