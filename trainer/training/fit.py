"""The loop over the epochs: logs, validation, checkpoints, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer.config import Config, TrainConfig
from trainer.console import Display, display, format_seconds
from trainer.data.dataset_folder import DatasetFolder
from trainer.data.loader import Batch, SequenceLoader
from trainer.distributed import Process
from trainer.errors import DivergedError
from trainer.evaluation.predict import predict
from trainer.hardware import peak_flops
from trainer.plurals import plural
from trainer.run_folder import RunFolder
from trainer.training.checkpoint import save_checkpoint
from trainer.training.follower import Follower
from trainer.training.interruption import Interruption, StoppedError
from trainer.training.speed import Speedometer
from trainer.training.tracking import Tracker, confusion_figure, sequence_figure
from trainer.training.train_step import TrainStep
from trainer.training.training_state import TrainingState, new_window
from trainer.training.validation import validate

#: Log lines before the time of an epoch is announced: the first holds the compilation.
_MEASURED_WINDOWS = 2
_FIRST_STEP = "the first step takes longest"


@dataclass(frozen=True)
class SearchTrial:
    """What makes a run one of a search: it shows a bar while it lasts, and nothing that stays.

    Attributes
    ----------
    number : int
        From 1.
    with_plan : bool
        Whether to show what it is about to do, which the others do alike.
    """

    number: int
    with_plan: bool


@dataclass
class Fit:
    """A run that trains.

    Attributes
    ----------
    config : Config
    dataset : DatasetFolder
    loader : SequenceLoader
        Of train.
    val_loader : SequenceLoader, optional
        None where val holds nothing.
    step : TrainStep
    state : TrainingState
        Where to begin; where the run is.
    identity : mapping
        What else than the config makes it this run; see `trainer.trained_model.run_identity`.
    folder : RunFolder
    process : Process
    followers : sequence of Follower
        Who else is told of the run.
    trial : SearchTrial, optional
    """

    config: Config
    dataset: DatasetFolder
    loader: SequenceLoader
    val_loader: SequenceLoader | None
    step: TrainStep
    state: TrainingState
    identity: Mapping[str, Any]
    folder: RunFolder
    process: Process
    followers: Sequence[Follower] = ()
    trial: SearchTrial | None = None
    _display: Display = field(init=False)
    _speed: Speedometer = field(init=False)
    _announce_at: int | None = field(init=False, default=None)
    _tracker: Tracker | None = field(init=False, default=None)
    _auc: float | None = field(init=False, default=None)
    #: What was measured last, for the display.
    _measured: str = field(init=False, default=_FIRST_STEP)
    #: {step: sequences of its batches} since the loss was last looked at.
    _recent: dict[int, list[Tensor]] = field(init=False, default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return is_finished(vars(self.state), self.config.train)

    def run(self, interruption: Interruption) -> None:
        """Train to the end.

        Raises
        ------
        StoppedError
            If a signal asked for it; a checkpoint of the last step is written first.
        DivergedError
            If a loss is not finite.
        TrainerError
            If something cannot be written.
        """
        if self.finished:
            return
        state, process = self.state, self.process
        peak = peak_flops(process.device, self.step.bfloat16, self.config.train.peak_tflops)
        self._speed = Speedometer(
            len(self.loader.sequences) / self.loader.steps_per_epoch,
            state.model.flops_per_sequence(),
            peak * process.world_size if peak else None,
        )
        self._announce_at = state.step + _MEASURED_WINDOWS * self.config.train.log_every
        shown = display(
            self.step.total_steps,
            state.step,
            silent=not process.is_main,
            brief=self.trial is not None,
        )
        if process.is_main:
            self._tracker = Tracker(
                self.folder.path,
                step=state.step,
                n_bytes=state.log_bytes,
                followers=self.followers,
            )
        with interruption.deferred(), shown as self._display, self._tracker or nullcontext():
            self._show_progress()
            while not self.finished:
                self._train_epoch(interruption)
                self._end_epoch()
                self._stop_if_asked(interruption)
            if state.epoch < self.config.train.epochs:
                self._display.say(self._why_stopped())

    def _train_epoch(self, interruption: Interruption) -> None:
        train, state = self.config.train, self.state
        batches = self.loader.batches(state.epoch, start_step=state.batch)
        self._speed.restart()
        while state.batch < self.loader.steps_per_epoch:
            with self._speed.waiting():
                group = list(islice(batches, self.config.optim.accumulate))
            if state.step == 0:
                self._show_examples(group[0])
            self._recent[state.step] = [batch.index for batch in group]
            self.step(state, group)
            self._speed.count(len(group))
            if self._measured == _FIRST_STEP:
                self._measured = f"the loss is shown every {train.log_every} steps"
            ended = state.batch == self.loader.steps_per_epoch
            if ended or state.step % train.log_every == 0:
                self._log_train()
            self._show_progress()
            if not ended:
                saved = state.step % train.checkpoint_every == 0
                if saved:
                    self._save()
                self._stop_if_asked(interruption, saved=saved)

    def _end_epoch(self) -> None:
        state = self.state
        state.epoch, state.batch = state.epoch + 1, 0
        score, line = self._validate()
        is_best = score > state.score
        # Patience is about the AUC, which the loss may still improve on without end.
        state.stale = 0 if score[:1] > state.score[:1] else state.stale + 1
        state.score = max(score, state.score)
        best = " (best so far)" if is_best else ""
        self._display.say(f"{self._epoch_name(state.epoch)}: {line}{best}")
        self._save(score)

    def _validate(self) -> tuple[tuple[float, ...], str]:
        """Return the score of an epoch, and what to say of it."""
        state = self.state
        if self.val_loader is None:
            return (float(state.epoch),), "the dataset has no val: the last epoch is the best"
        predictions = predict(
            state.evaluated,
            self.val_loader,
            self.process,
            self.step.bfloat16,
            lambda done: self._display.update(state.step, "val", f"batch {done:,}"),
        )
        validation = validate(predictions)
        values = validation.values
        if self._tracker:
            self._tracker.log("val", state.step, state.epoch, values)
            figure = confusion_figure(validation.confusion, self.dataset.classes)
            self._tracker.show("val/confusion_matrix", figure, state.step)
        line = f"val loss {values['loss']:.4f}, accuracy {values['accuracy']:.3f}"
        if math.isnan(values["auc"]):
            return validation.score, f"{line}; val lacks a class, so the loss decides, not the AUC"
        self._auc = values["auc"]
        return validation.score, (
            f"{line}, of sessions: AUC {values['auc']:.3f}, balanced accuracy "
            f"{values['balanced_accuracy']:.3f}"
        )

    def _log_train(self) -> None:
        state = self.state
        self._check_finite()
        numerator, weight, norms, n_steps, _ = state.window.tolist()
        state.window = new_window(state.window.device)
        speed = self._speed.read()
        loss, rate = numerator / weight, speed["sequences_per_second"]
        if self._tracker:
            values = {
                "loss": loss,
                "lr": self.step.learning_rate(state.step - 1),
                "grad_norm": norms / n_steps,
                **speed,
            }
            self._tracker.log("train", state.step, state.epoch + 1, values)
        if self._announce_at is not None and state.step >= self._announce_at:
            self._announce_at = None
            seconds = len(self.loader.sequences) / rate
            left = seconds * (self.config.train.epochs - state.step / self.step.steps_per_epoch)
            self._display.say(
                f"measured: {format_seconds(seconds)} an epoch, {format_seconds(left)} to the end"
            )
        auc = "" if self._auc is None else f", val AUC {self._auc:.3f}"
        self._measured = f"loss {loss:.4f}{auc}, {rate:,.1f} sequences/s"

    def _show_progress(self) -> None:
        """Say how far the run is; on a GPU, the steps that it was given."""
        state = self.state
        self._display.update(state.step, self._epoch_name(state.epoch + 1), self._measured)

    def _epoch_name(self, epoch: int) -> str:
        trial = "" if self.trial is None else f"trial {self.trial.number}, "
        return f"{trial}epoch {epoch}/{self.config.train.epochs}"

    def _why_stopped(self) -> str:
        state, patience = self.state, self.config.train.patience
        what = "higher AUC of val's sessions" if len(state.score) > 1 else "lower loss on val"
        return (
            f"stopped early: no {what} for {plural(state.stale, 'epoch')} (--train.patience "
            f"{patience}); the same command with --train.patience {2 * state.stale} goes on, with "
            "null to the end"
        )

    def _check_finite(self) -> None:
        """Stop before what is not finite gets into a log or a checkpoint."""
        latest, bad = self.state.step - 1, int(self.state.window[4])
        if bad < 0 and not nn.utils.get_total_norm(self.state.model.parameters()).isfinite():
            bad = latest
        if bad < 0:
            self._recent = {latest: self._recent[latest]}
            return
        rows = torch.cat([self.process.gather(index).flatten() for index in self._recent[bad]])
        held = self.loader.sequences.session[rows[rows >= 0].cpu().numpy()]
        names = ", ".join(self.loader.trials.sessions[index] for index in np.unique(held))
        raise DivergedError(
            f"loss, gradient or weights are not finite at step {bad + 1}, whose batch holds "
            f"sessions {names}: look at their spectrograms, or lower --optim.lr; the last good "
            "checkpoint is kept"
        )

    def _save(self, score: tuple[float, ...] | None = None) -> None:
        self._check_finite()
        if self._tracker is None:
            return
        self.state.log_bytes = self._tracker.flush()
        save_checkpoint(
            self.folder.path / "checkpoints",
            self.state.to_checkpoint(self.config, self.identity),
            score=score,
            top_k=self.config.train.top_k,
        )
        self.folder.push()

    def _stop_if_asked(self, interruption: Interruption, *, saved: bool = True) -> None:
        if not self.process.any(bool(interruption.signal_name)):
            return
        if not saved:
            self._save()
        if self.process.world_size > 1:
            # All end together: when one has ended, torchrun leaves the others half a minute.
            self.folder.flush()
            self.process.any(False)
        raise StoppedError(
            f"stopped by {interruption.signal_name or 'a signal'} after step {self.state.step:,}, "
            "which is saved; the same command goes on"
        )

    def _show_examples(self, batch: Batch) -> None:
        """Put one sequence of each class in a batch on the board, before any augmentation."""
        if self._tracker is None:
            return
        labels = torch.where(batch.mask, batch.label, -1).cpu().numpy()
        for label in np.unique(labels[labels >= 0]):
            row = int(np.flatnonzero(labels == label)[0])
            session = self.loader.sequences.session[int(batch.index[row])]
            name = f"{self.dataset.classes[label]}, session {self.loader.trials.sessions[session]}"
            x = batch.x[row].float().cpu().numpy()
            figure = sequence_figure(x, self.dataset.freqs, self.dataset.times, name)
            self._tracker.show(f"train/sequence_{self.dataset.classes[label]}", figure, 0)


def is_finished(state: Mapping[str, Any], config: TrainConfig) -> bool:
    """Return whether all epochs are done, or val's AUC has not risen for `patience` epochs.

    Parameters
    ----------
    state : mapping
        `epoch` and `stale` of a `TrainingState`, or of a checkpoint.
    config : TrainConfig
    """
    out_of_patience = config.patience is not None and state["stale"] >= config.patience
    return state["epoch"] >= config.epochs or out_of_patience
