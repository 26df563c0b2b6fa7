"""What the training benchmark makes of its runs: targets, and a report in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from preprocess_report import Target, ratio

LOADING = {
    "cat": "(a) `cat` of the shards, thrown away",
    "gather": "(b) NumPy gather, `array[rows]`",
    "stream": "**store stream**, 1 worker",
    "memory": "**store memory**",
    "device": "**store device**",
    "webdataset": "(c) plain WebDataset, 1 worker",
    "litdata": "(c) LitData StreamingDataset, 1 worker",
    "mosaic": "(c) MosaicML StreamingDataset, 1 worker",
}
#: {store: what bounds it}
BOUNDS = {"stream": "cat", "memory": "gather", "device": "gather"}
STEPS = {
    "ours": "**trainer, as it runs by default**",
    "eager": "trainer, not compiled",
    "compiled": "trainer, `--train.compile always`",
    "bfloat16": "trainer, `--train.precision bf16`",
    "lab": "(d) the lab's way: plain softmax attention, eager float32",
    "encoder": "(e) `torch.nn.TransformerEncoder`",
    "vit_pytorch": "(e) vit-pytorch's 3D ViT",
}
STARTS = {
    "torch": "`import torch` alone",
    "memory": "**trainer train**, store memory",
    "stream": "**trainer train**, store stream",
}
#: The lab's spectrogram, 64 x 488 in float16.
SHAPE = (64, 488)
TRIAL_BYTES = 2 * SHAPE[0] * SHAPE[1]
PEERS = ("webdataset", "litdata", "mosaic")
CAT_LIMIT = 0.5
GATHER_LIMIT = 0.8
MFU_LIMIT = 0.4
LAB_LIMIT = 6.0


@dataclass(frozen=True)
class Loading:
    """One way to load, with sequences of some length.

    Attributes
    ----------
    name : str
    n_trials : int
        Of a sequence.
    trials : int
        Delivered in a pass.
    opening : float
        Seconds before the first pass.
    warm, cold : sequence of float
        Seconds of each pass with the files in the page cache, and without.
    bound_warm, bound_cold : sequence of float
        The same of what bounds it, each pass timed just before; none where nothing does.
    memory : int
        Highest of the whole process, in bytes.
    """

    name: str
    n_trials: int
    trials: int
    opening: float
    warm: Sequence[float]
    cold: Sequence[float]
    bound_warm: Sequence[float]
    bound_cold: Sequence[float]
    memory: int

    @property
    def rate(self) -> float:
        """Trials a second with the files in the page cache."""
        return self.trials / median(self.warm)

    @property
    def cold_rate(self) -> float | None:
        """Trials a second from the disk."""
        return self.trials / median(self.cold) if self.cold else None

    @property
    def over_bound(self) -> float | None:
        """Its rate over that of what bounds it, pass by pass."""
        if not self.bound_warm:
            return None
        pairs = zip(self.bound_warm, self.warm, strict=True)
        return median(bound / own for bound, own in pairs)

    @property
    def bound(self) -> Loading:
        """What bounds it, as one way to load more."""
        name, no = BOUNDS[self.name], ()
        return replace(self, name=name, warm=self.bound_warm, cold=self.bound_cold, bound_warm=no)


@dataclass(frozen=True)
class Step:
    """One training step.

    Attributes
    ----------
    name : str
    batch_size : int
    first : float
        Seconds of the first step, compilation included.
    seconds : sequence of float
        Of a step, in each stretch.
    parameters : int
    flops : int or None
        A sequence; known of ours, and the same for models of equal width and depth.
    peak : float or None
        Of the device.
    bfloat16, compiled : bool
    memory : int
        Highest, in bytes: of the GPU, else of the process.
    """

    name: str
    batch_size: int
    first: float
    seconds: Sequence[float]
    parameters: int
    flops: int | None
    peak: float | None
    bfloat16: bool
    compiled: bool
    memory: int

    @property
    def rate(self) -> float:
        """Sequences a second."""
        return self.batch_size / median(self.seconds)

    @property
    def utilisation(self) -> float | None:
        """Share of the device's peak (MFU)."""
        return ratio(None if self.flops is None else self.rate * self.flops, self.peak)


@dataclass(frozen=True)
class Start:
    """What a command's start took.

    Attributes
    ----------
    name : str
    ready : float
        Seconds until it is ready to take a step: a training prints its plan then.
    first_step : float or None
        Seconds through the first step; None where there is none.
    """

    name: str
    ready: float
    first_step: float | None


class NoGpuTarget(Target):
    """A target that only a GPU can meet, where there is none."""

    @property
    def verdict(self) -> str:
        """Return no GPU."""
        return "no GPU"


@dataclass(frozen=True)
class Runs:
    """All that was measured."""

    loadings: Sequence[Loading]
    steps: Sequence[Step]
    starts: Sequence[Start]

    def loading(self, name: str, n_trials: int) -> Loading | None:
        """Return a way to load."""
        found = (x for x in self.loadings if (x.name, x.n_trials) == (name, n_trials))
        return next(found, None)

    def step(self, name: str) -> Step | None:
        """Return a step."""
        return next((step for step in self.steps if step.name == name), None)

    @property
    def sequence_lengths(self) -> list[int]:
        """Lengths of the sequences that were loaded."""
        return sorted({x.n_trials for x in self.loadings if x.name == "stream"}) or [1]


def judge(runs: Runs, gpu: bool) -> list[Target]:
    """Compare what was measured with what was asked for."""
    targets: list[Target] = []
    stream = runs.loading("stream", 1)
    for name, limit in (("stream", CAT_LIMIT), ("memory", GATHER_LIMIT)):
        for n in runs.sequence_lengths:
            store = runs.loading(name, n)
            text = f"{LOADING[name]} over {LOADING[BOUNDS[name]]}, {_of(n)}"
            targets.append(Target(text, store.over_bound if store else None, limit, at_most=False))
    for name in PEERS:
        peer = runs.loading(name, 1)
        value = ratio(stream.rate, peer.rate) if stream and peer else None
        text = f"{LOADING['stream']} over {LOADING[name]}"
        targets.append(Target(text, value, 1.0, at_most=False))
    ours, lab = runs.step("ours"), runs.step("lab")
    on_gpu = Target if gpu else NoGpuTarget
    text = "share of the GPU's bfloat16 peak in a training step (MFU)"
    mfu = ours.utilisation if ours and gpu else None
    targets.append(on_gpu(text, mfu, MFU_LIMIT, at_most=False))
    text = "training step over (d), the lab's way, on a GPU"
    over_lab = ratio(ours.rate, lab.rate) if ours and lab and gpu else None
    targets.append(on_gpu(text, over_lab, LAB_LIMIT, at_most=False))
    return targets


def report(
    runs: Runs,
    machine: Mapping[str, str],
    versions: Mapping[str, Mapping[str, str]],
    notes: Sequence[str],
    gpu: bool,
) -> str:
    """Return the whole report."""
    lines = ["# Training", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items()]
    for name, found in versions.items():
        lines.append(f"- versions, {name}: {', '.join(f'{k} {v}' for k, v in found.items())}")
    lines += [f"- {note}" for note in notes]
    lines += ["", "| target | found | asked | |", "|---|---:|---:|---|"]
    for target in judge(runs, gpu):
        value = "" if target.value is None else f"{target.value:.2f}"
        lines.append(f"| {target.text} | {value} | ≥ {target.limit:g} | {target.verdict} |")
    for title, table in (
        ("Loading", _loading_table(runs)),
        ("Step", _step_table(runs)),
        ("Start", _start_table(runs)),
    ):
        if table:
            lines += ["", f"## {title}", "", *table]
    return "\n".join(lines)


def _of(n_trials: int) -> str:
    return "single trials" if n_trials == 1 else f"sequences of {n_trials}"


def _loading_table(runs: Runs) -> list[str]:
    if not runs.loadings:
        return []
    lines = [
        "| way | what | trials/s | GB/s | over its bound | from disk, trials/s | opening, s "
        "| memory, GB |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    shown = set()
    for loading in runs.loadings:
        name = BOUNDS.get(loading.name)
        if name and (name, loading.n_trials) not in shown:
            shown.add((name, loading.n_trials))
            lines.append(_loading_row(loading.bound, of_store=False))
        lines.append(_loading_row(loading, of_store=True))
    return lines


def _loading_row(loading: Loading, *, of_store: bool) -> str:
    """Return a row of the table; what bounds a store shares its process."""
    what = "whole shards" if loading.name == "cat" else _of(loading.n_trials)
    process = f"{loading.opening:.2f} | {loading.memory / 1e9:.2f}" if of_store else " | "
    return (
        f"| {LOADING[loading.name]} | {what} | {loading.rate:,.0f} "
        f"| {loading.rate * TRIAL_BYTES / 1e9:.2f} | {_number(loading.over_bound)} "
        f"| {_number(loading.cold_rate, ',.0f')} | {process} |"
    )


def _step_table(runs: Runs) -> list[str]:
    if not runs.steps:
        return []
    lines = [
        "| step | sequences/s | over (d) | TFLOP/s | MFU | first step, s | parameters | precision "
        "| memory, GB |",
        "|---|---:|---:|---:|---:|---:|---:|---|---:|",
    ]
    ours, lab = runs.step("ours"), runs.step("lab")
    for step in runs.steps:
        flops = step.flops or (ours.flops if ours else None)
        teraflops = None if flops is None else step.rate * flops / 1e12
        precision = ("bfloat16" if step.bfloat16 else "float32") + ", compiled" * step.compiled
        lines.append(
            f"| {STEPS[step.name]} | {step.rate:,.2f} "
            f"| {_number(ratio(step.rate, lab.rate) if lab else None)} "
            f"| {_number(teraflops, '.3g')} | {_number(step.utilisation, '.0%')} "
            f"| {step.first:.2f} | {step.parameters:,} | {precision} | {step.memory / 1e9:.2f} |"
        )
    return lines


def _start_table(runs: Runs) -> list[str]:
    if not runs.starts:
        return []
    lines = ["| command | ready, s | through the first step, s |", "|---|---:|---:|"]
    for start in runs.starts:
        first_step = _number(start.first_step)
        lines.append(f"| {STARTS[start.name]} | {start.ready:.2f} | {first_step} |")
    return lines


def _number(value: float | None, spec: str = ".2f") -> str:
    return "" if value is None else format(value, spec)
