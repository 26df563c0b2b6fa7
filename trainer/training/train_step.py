"""One step of the training, and what it needs.

Nothing here depends on anything but (config, dataset, step): the batches, the learning rate, and
the random numbers, whose generators every step seeds anew. So a run that was stopped goes on
exactly. Nothing here waits for the GPU either.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from trainer.augment import augment, check_augment
from trainer.config import Config
from trainer.data.dataset_folder import DatasetFolder
from trainer.data.loader import Batch, SequenceLoader
from trainer.distributed import Process
from trainer.hardware import use_bfloat16, use_compile
from trainer.model import create_model
from trainer.training.loss import class_weights, cross_entropy_sums
from trainer.training.optim import create_optimizer, update_average
from trainer.training.schedule import capped_warmup, derive_seed, ema_decay, learning_rate
from trainer.training.training_state import TrainingState, new_window


class Sample(NamedTuple):
    """A batch as the model and the loss take it.

    Attributes
    ----------
    x : float32 tensor of shape (B, n_trials, n_freqs, n_times)
    target : float32 tensor of shape (B, C)
        Class probabilities.
    mask : bool tensor of shape (B,)
        False where a row is padding.
    """

    x: Tensor
    target: Tensor
    mask: Tensor


def accumulate_gradient(
    model: nn.Module,
    samples: Sequence[Sample],
    class_weight: Tensor,
    label_smoothing: float,
    process: Process,
    bfloat16: bool = False,
) -> Tensor:
    """Leave in the parameters the gradient of the loss of all samples of all processes.

    Returns
    -------
    tensor of shape (2,)
        Numerator and sum of weights of that loss, over all processes.
    """
    sums = torch.zeros(2, device=class_weight.device)
    for index, (x, target, mask) in enumerate(samples):
        with _sending_gradients(model, index + 1 == len(samples)):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
                logits = model(x)
            numerator, weight = cross_entropy_sums(
                logits, target, mask, class_weight, label_smoothing
            )
            torch.autograd.backward(numerator)
        sums += torch.stack([numerator.detach(), weight])
    process.sum_(sums)
    # Each holds the gradient of the numerator, averaged over the processes.
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    torch._foreach_mul_(gradients, process.world_size / sums[1])
    return sums


def _sending_gradients(model: nn.Module, is_last: bool) -> AbstractContextManager[object]:
    """Let DistributedDataParallel send gradients once a step, after the last batch."""
    if isinstance(model, DistributedDataParallel) and not is_last:
        return model.no_sync()
    return nullcontext()


@dataclass(frozen=True)
class TrainStep:
    """The step of one run: ``step(state, batches)``.

    Attributes
    ----------
    config : Config
    process : Process
    model : torch.nn.Module
        The model, within DistributedDataParallel where there are several processes.
    class_weight : float32 tensor of shape (C,)
    batches_per_epoch : int
        On each process.
    bfloat16 : bool
        Whether the forward pass runs under autocast.
    """

    config: Config
    process: Process
    model: nn.Module
    class_weight: Tensor
    batches_per_epoch: int
    bfloat16: bool

    def __call__(self, state: TrainingState, batches: Sequence[Batch]) -> None:
        """Take one step of the optimiser on some batches."""
        config, process, optim = self.config, self.process, self.config.optim
        torch.manual_seed(derive_seed(config.train.seed, "step", state.step, process.rank))
        for group in state.optimizer.param_groups:
            group["lr"] = self.learning_rate(state.step)

        state.model.train()
        samples = []
        for index, batch in enumerate(batches):
            target = functional.one_hot(batch.label, len(self.class_weight)).float()
            number = state.epoch * self.batches_per_epoch + state.batch + index
            seed, rank = config.train.seed, process.rank
            x, target = augment(
                batch.x.float(), target, batch.mask, config.augment, seed, number, rank
            )
            samples.append(Sample(x, target, batch.mask))
        sums = accumulate_gradient(
            self.model, samples, self.class_weight, optim.label_smoothing, process, self.bfloat16
        )
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), optim.clip_grad or math.inf)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        if state.average is not None and optim.ema_decay is not None:
            update_average(state.average, state.model, ema_decay(state.step, optim.ema_decay))

        state.note(sums, norm)
        state.step += 1
        state.batch += len(batches)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimiser; the last of an epoch may accumulate fewer batches."""
        return math.ceil(self.batches_per_epoch / self.config.optim.accumulate)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, if it does not stop early."""
        return self.steps_per_epoch * self.config.train.epochs

    @property
    def warmup_steps(self) -> int:
        """Steps up to the highest learning rate."""
        wanted = round(self.config.optim.warmup_epochs * self.steps_per_epoch)
        return capped_warmup(wanted, self.total_steps)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        optim = self.config.optim
        return learning_rate(
            step,
            total_steps=self.total_steps,
            warmup_steps=self.warmup_steps,
            lr=optim.lr,
            min_lr=optim.min_lr,
        )


def start_training(
    config: Config, dataset: DatasetFolder, loader: SequenceLoader, process: Process
) -> tuple[TrainStep, TrainingState]:
    """Return the step of a run, and the state before its first one.

    Parameters
    ----------
    config : Config
    dataset : DatasetFolder
    loader : SequenceLoader
        Of train.
    process : Process

    Raises
    ------
    UsageError
        If the config makes no model, or does not suit the device or the spectrograms.
    """
    device = process.device
    bfloat16 = use_bfloat16(config.train.precision, device)
    check_augment(config.augment, *dataset.shape)
    weights = class_weights(loader.labels, len(dataset.classes), config.optim.class_weight)

    torch.manual_seed(derive_seed(config.train.seed, "weights"))
    shape = (config.sequence.n_trials, *dataset.shape)
    model = create_model(config.model, *shape, len(dataset.classes)).to(device)
    average = copy.deepcopy(model) if config.optim.ema_decay is not None else None
    if use_compile(config.train.compile, device):
        # In place: the weights keep their names. Every batch has the same shape.
        model.compile(dynamic=False)
        if average is not None:
            average.compile(dynamic=False)
    optimizer = create_optimizer(model, config.optim, device)
    state = TrainingState(model, average, optimizer, new_window(device))
    parallel: nn.Module = model
    if process.world_size > 1:
        parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
    step = TrainStep(
        config,
        process,
        parallel,
        torch.tensor(weights, dtype=torch.float32, device=device),
        loader.steps_per_epoch,
        bfloat16,
    )
    return step, state
