"""Everything a run can be told, as frozen dataclasses: the defaults are experiment E3.

A value that cannot be meant is refused where the dataclass is made, whoever makes it.
``trainer.options`` turns these fields into flags and YAML keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from trainer.errors import UsageError


def _require(condition: bool, name: str, value: object, rule: str) -> None:
    if not condition:
        raise UsageError(f"{name} must be {rule}, not {value}")


def _require_at_least(low: float, section: str, **values: float | None) -> None:
    for name, value in values.items():
        ok = value is None or (math.isfinite(value) and value >= low)
        _require(ok, f"{section}.{name}", value, f"{low:g} or more")


def _require_above_zero(section: str, **values: float | None) -> None:
    for name, value in values.items():
        ok = value is None or (math.isfinite(value) and value > 0)
        _require(ok, f"{section}.{name}", value, "above 0")


def _require_share(section: str, **values: float | None) -> None:
    for name, value in values.items():
        ok = value is None or 0 <= value < 1
        _require(ok, f"{section}.{name}", value, "at least 0 and below 1")


@dataclass(frozen=True)
class SequenceConfig:
    """What one input of the model is made of.

    A gap in the trial numbers ends a run of trials; sequences are cut from each run, from its
    first trial on.

    Attributes
    ----------
    n_trials : int
        Consecutive trials of one session in a sequence.
    stride : int, optional
        Trials from the start of one sequence to the next; half of n_trials if not given.
    max_gap : int
        Missing trial numbers tolerated between two neighbours in a sequence; more begin a new run.
    """

    n_trials: int = 8
    stride: int | None = None
    max_gap: int = 0

    def __post_init__(self) -> None:
        _require_at_least(1, "sequence", n_trials=self.n_trials, stride=self.stride)
        _require_at_least(0, "sequence", max_gap=self.max_gap)

    @property
    def resolved_stride(self) -> int:
        """The stride in trials, worked out where it was not given."""
        return max(1, self.n_trials // 2) if self.stride is None else self.stride


@dataclass(frozen=True)
class LoaderConfig:
    """How trials get from the shards to the model.

    Attributes
    ----------
    store : {"auto", "device", "memory", "stream"}
        Where trials are kept: on the GPU, in memory, or read anew every epoch. auto takes the
        first of these that fits. device and memory give identical batches. In short: --store.
    memory_gb : float, optional
        Most memory that trials may take, in GB (10**9 bytes); what is free, less a reserve,
        if not given.
    num_workers : int
        Processes that read shards for store stream; 0 reads in the training process.
    cache : str, optional
        Folder on a disk of this machine that keeps the shards of a dataset behind a URL; their
        SHA-256 is checked in every run. null keeps none. In short: --cache.
    """

    store: Literal["auto", "device", "memory", "stream"] = "auto"
    memory_gb: float | None = None
    num_workers: int = 2
    cache: str | None = None

    def __post_init__(self) -> None:
        _require_above_zero("loader", memory_gb=self.memory_gb)
        _require_at_least(0, "loader", num_workers=self.num_workers)


@dataclass(frozen=True)
class ModelConfig:
    """The Temporal 3D vision transformer.

    Attributes
    ----------
    size : {"tiny", "small", "base"}
        Width, depth and heads together; the three fields below replace one each.
    patch_trial : int
        Trials in a patch; 1 with sequence.n_trials 1 gives the 2D ViT.
    patch_freq : int
        Frequency bins in a patch.
    patch_time : int
        Time frames in a patch.
    embed_dim : int, optional
        Width of a token.
    depth : int, optional
        Transformer blocks.
    num_heads : int, optional
        Attention heads; embed_dim must be divisible by it.
    mlp_ratio : float
        Width of a block's MLP over embed_dim.
    drop_rate : float
        Dropout after embedding, projections and MLP layers.
    attn_drop_rate : float
        Dropout of attention weights.
    drop_path_rate : float
        Stochastic depth of the last block; earlier blocks have linearly less.
    init_values : float, optional
        Initial LayerScale; null leaves LayerScale out.
    global_pool : {"token", "avg"}
        What the head sees: the class token, or the mean of all patches.
    """

    size: Literal["tiny", "small", "base"] = "small"
    patch_trial: int = 2
    patch_freq: int = 8
    patch_time: int = 8
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_ratio: float = 4.0
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.1
    init_values: float | None = 1e-4
    global_pool: Literal["token", "avg"] = "token"

    def __post_init__(self) -> None:
        _require_at_least(
            1,
            "model",
            patch_trial=self.patch_trial,
            patch_freq=self.patch_freq,
            patch_time=self.patch_time,
            embed_dim=self.embed_dim,
            depth=self.depth,
            num_heads=self.num_heads,
        )
        _require_above_zero("model", mlp_ratio=self.mlp_ratio, init_values=self.init_values)
        _require_share(
            "model",
            drop_rate=self.drop_rate,
            attn_drop_rate=self.attn_drop_rate,
            drop_path_rate=self.drop_path_rate,
        )


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes to training sequences; 0 switches each off.

    Attributes
    ----------
    freq_mask : int
        Widest band of frequency bins that is blanked, per sequence.
    time_mask : int
        Longest run of time frames that is blanked, per sequence.
    trial_drop : float
        Probability that a trial of a sequence is blanked.
    time_shift : int
        Most frames that a sequence is shifted by, either way.
    gain_jitter : float
        Standard deviation of a constant added to a sequence, in normalised units.
    mixup : float
        alpha of mixup's Beta(alpha, alpha) within the batch.
    """

    freq_mask: int = 0
    time_mask: int = 0
    trial_drop: float = 0.0
    time_shift: int = 0
    gain_jitter: float = 0.0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        _require_at_least(
            0,
            "augment",
            freq_mask=self.freq_mask,
            time_mask=self.time_mask,
            time_shift=self.time_shift,
            gain_jitter=self.gain_jitter,
            mixup=self.mixup,
        )
        _require_share("augment", trial_drop=self.trial_drop)


@dataclass(frozen=True)
class OptimConfig:
    """The loss, AdamW and the learning rate over the steps.

    Attributes
    ----------
    lr : float
        Highest learning rate, reached at the end of the warm-up.
    min_lr : float
        Learning rate of the last step, at the end of the cosine.
    warmup_epochs : float
        Length of the linear warm-up, in epochs; half of the run where that is shorter.
    weight_decay : float
        Decoupled weight decay of matrices; vectors and embeddings have none.
    beta1 : float
        AdamW's decay of the mean gradient.
    beta2 : float
        AdamW's decay of the mean squared gradient.
    clip_grad : float, optional
        Largest norm of the whole gradient; null does not clip.
    label_smoothing : float
        Share of the target that is spread evenly over the classes.
    class_weight : {"balanced", "none"}
        balanced weighs each class in the loss by n / (n_classes * n_class), as scikit-learn.
    ema_decay : float, optional
        Decay a step of the moving average of the weights, which is then what is evaluated;
        null keeps none.
    accumulate : int
        Batches whose gradients are summed before one step.
    """

    lr: float = 3e-4
    min_lr: float = 1e-6
    warmup_epochs: float = 1.0
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999
    clip_grad: float | None = 1.0
    label_smoothing: float = 0.05
    class_weight: Literal["balanced", "none"] = "balanced"
    ema_decay: float | None = None
    accumulate: int = 1

    def __post_init__(self) -> None:
        _require_above_zero("optim", lr=self.lr, clip_grad=self.clip_grad)
        _require_at_least(
            0,
            "optim",
            min_lr=self.min_lr,
            warmup_epochs=self.warmup_epochs,
            weight_decay=self.weight_decay,
        )
        _require(self.min_lr <= self.lr, "optim.min_lr", self.min_lr, f"at most lr ({self.lr:g})")
        _require_share(
            "optim",
            beta1=self.beta1,
            beta2=self.beta2,
            label_smoothing=self.label_smoothing,
            ema_decay=self.ema_decay,
        )
        _require_at_least(1, "optim", accumulate=self.accumulate)


@dataclass(frozen=True)
class TrainConfig:
    """The loop around the optimiser.

    Attributes
    ----------
    epochs : int
        Passes over the train split; may be raised when a run is resumed.
    batch_size : int
        Sequences a batch on each process.
    seed : int
        Of weights, order, dropout, augmentation and bootstrap.
    precision : {"auto", "bf16", "fp32"}
        auto is bfloat16 autocast on a GPU that has it, else float32.
    compile : {"auto", "always", "never"}
        torch.compile; auto compiles on a GPU.
    patience : int, optional
        Epochs without a higher session-level AUC on val before the run stops early; null never
        stops early. Where val lacks a class, its loss takes the place of the AUC. A lower loss at
        an equal AUC makes an epoch the best one, but buys no time. With few sessions the AUC moves
        in large steps, and null is the safer choice. May be changed when a run is resumed.
    log_every : int
        Steps between two lines of metrics.jsonl.
    checkpoint_every : int
        Steps between two checkpoints, beside the one at the end of each epoch.
    top_k : int
        Best checkpoints that are kept.
    peak_tflops : float, optional
        What the device can do at most, in 10**12 operations a second, for the utilisation (MFU)
        of a device that is not known here.
    """

    epochs: int = 20
    batch_size: int = 16
    seed: int = 0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: Literal["auto", "always", "never"] = "auto"
    patience: int | None = 10
    log_every: int = 10
    checkpoint_every: int = 200
    top_k: int = 1
    peak_tflops: float | None = None

    def __post_init__(self) -> None:
        _require_at_least(
            1,
            "train",
            epochs=self.epochs,
            batch_size=self.batch_size,
            patience=self.patience,
            log_every=self.log_every,
            checkpoint_every=self.checkpoint_every,
            top_k=self.top_k,
        )
        _require_at_least(0, "train", seed=self.seed)
        _require_above_zero("train", peak_tflops=self.peak_tflops)


@dataclass(frozen=True)
class EvaluationConfig:
    """How uncertain a result is said to be.

    Attributes
    ----------
    n_bootstrap : int
        Resamples of the cluster bootstrap.
    n_permutations : int
        Random relabellings of a permutation test that is too large to be exact.
    """

    n_bootstrap: int = 2000
    n_permutations: int = 10_000

    def __post_init__(self) -> None:
        _require_at_least(
            1, "evaluation", n_bootstrap=self.n_bootstrap, n_permutations=self.n_permutations
        )


@dataclass(frozen=True)
class Config:
    """All of the above; the field names are the sections of the YAML and the flags' prefixes."""

    sequence: SequenceConfig = field(default_factory=SequenceConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


#: {section: its dataclass}, in the order of `Config`.
SECTIONS: dict[str, type[Any]] = {
    "sequence": SequenceConfig,
    "loader": LoaderConfig,
    "model": ModelConfig,
    "augment": AugmentConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
    "evaluation": EvaluationConfig,
}
