"""Training end to end on a small dataset: what it computes, and that it goes on exactly."""

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from sklearn.metrics import confusion_matrix, log_loss, roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional

from tests import datasets, runs, tables
from tests.runs import MODEL, N_TRIALS, best_state, flags, last_state, log_of
from trainer.__main__ import main
from trainer.config import (
    AugmentConfig,
    Config,
    LoaderConfig,
    ModelConfig,
    OptimConfig,
    SequenceConfig,
)
from trainer.data.dataset_folder import open_dataset
from trainer.data.loader import make_loader
from trainer.distributed import Process
from trainer.evaluation.predictions import Predictions
from trainer.model import create_model
from trainer.options import EXPERIMENTS
from trainer.training.checkpoint import read_marker
from trainer.training.train_step import start_training
from trainer.training.training_state import new_window
from trainer.training.validation import validate


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return datasets.small_dataset(tmp_path_factory)


pytestmark = pytest.mark.usefixtures("one_thread")


def windows_of(
    dataset: Path, split: str, stride: int = N_TRIALS // 2
) -> dict[tuple[str, int], Any]:
    """{(session, first trial): (spectrograms, label)}, cut by hand from what WebDataset reads."""
    trials = datasets.read_trials(dataset, split)
    numbers = defaultdict(list)
    for session, trial_num in sorted(trials):
        numbers[session].append(trial_num)
    windows = {}
    for session, nums in numbers.items():
        first = nums[0]
        for num in nums:
            if num - 1 not in nums:
                first = num
            part = list(range(num, num + N_TRIALS))
            if (num - first) % stride == 0 and set(part) <= set(nums):
                x = np.stack([trials[session, num]["spectrogram"] for num in part])
                windows[session, num] = (x, trials[session, num]["label"])
    return windows


def model_with(weights: dict[str, torch.Tensor], n_classes: int = 2):
    n_freqs, n_times = 49, 34
    model = create_model(ModelConfig(**MODEL), N_TRIALS, n_freqs, n_times, n_classes)
    model.load_state_dict(weights)
    return model


# --- What is computed -----------------------------------------------------------------------------

#: One step an epoch, at a learning rate that leaves every weight as it is: AdamW's first moment is
#: then (1 - beta1) times the gradient of the whole train split at the weights of the checkpoint.
GRADIENT = {
    "optim__lr": 1e-30,
    "optim__min_lr": 0,
    "optim__clip_grad": None,
    "optim__label_smoothing": 0.1,
    "model__drop_path_rate": 0,
    "sequence__stride": 5,
    "train__epochs": 1,
}


def gradient_of(run: Path) -> dict[str, torch.Tensor]:
    state = last_state(run)
    assert state["step"] == 1
    model = model_with(state["model"])
    decayed = [
        n for n, p in model.named_parameters() if p.ndim > 1 and n not in model.no_weight_decay()
    ]
    others = [name for name, _ in model.named_parameters() if name not in decayed]
    moments = state["optimizer"]["state"]
    beta1 = state["optimizer"]["param_groups"][0]["betas"][0]
    return {
        name: moments[index]["exp_avg"] / (1 - beta1)
        for index, name in enumerate([*decayed, *others])
    }


@pytest.fixture(scope="module")
def whole_gradient(dataset, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main(flags(dataset, run, train__batch_size=48, **GRADIENT)) == 0
    return run, gradient_of(run)


def assert_same_gradient(actual, expected):
    scale = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=1e-6 * max(scale, 1), msg=name)


def test_a_step_follows_the_gradient_of_pytorchs_cross_entropy_over_the_whole_split(
    dataset, whole_gradient
):
    run, gradient = whole_gradient
    model = model_with(last_state(run)["model"]).eval()
    windows = list(windows_of(dataset, "train", stride=5).values())
    x = torch.from_numpy(np.stack([x for x, _ in windows])).float()
    label = torch.tensor([label for _, label in windows])
    counts = torch.bincount(label)
    assert counts[0] != counts[1]

    loss = functional.cross_entropy(
        model(x), label, weight=len(label) / (2 * counts), label_smoothing=0.1
    )
    loss.backward()

    assert_same_gradient(gradient, {n: p.grad for n, p in model.named_parameters()})
    (line,) = log_of(run, "train")
    assert line["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_accumulated_batches_give_the_gradient_of_one_large_batch(
    dataset, whole_gradient, tmp_path
):
    run = tmp_path / "run"
    more = {"train__batch_size": 8, "optim__accumulate": 6}

    assert main(flags(dataset, run, **GRADIENT, **more)) == 0

    assert_same_gradient(gradient_of(run), whole_gradient[1])


def run_in_two_processes(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainer", *arguments],
        cwd=runs.ROOT,
        env={**runs.ENVIRONMENT, "TRAINER_PROCESSES_PER_REPLICA": "2"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_two_processes_give_the_gradient_and_the_predictions_of_one(
    dataset, whole_gradient, tmp_path
):
    run = tmp_path / "run"
    more = {"train__batch_size": 4, "optim__accumulate": 6}

    run_in_two_processes(flags(dataset, run, **GRADIENT, **more))

    alone, gradient = whole_gradient
    assert_same_gradient(gradient_of(run), gradient)
    for split in ("val", "test"):
        ours, theirs = (
            pq.ParquetFile(folder / f"predictions/{split}.parquet").read()
            for folder in (run, alone)
        )
        assert ours.drop_columns("logits") == theirs.drop_columns("logits")
        np.testing.assert_allclose(
            np.array(ours["logits"].to_pylist()), np.array(theirs["logits"].to_pylist()), atol=1e-5
        )


def test_weight_decay_is_for_matrices_only(dataset, tmp_path):
    """With a gradient clipped to nothing, all that a step does is to take lr * decay off."""
    run = tmp_path / "run"
    more = {"optim__lr": 0.1, "optim__min_lr": 0.1, "optim__weight_decay": 0.5}
    clipped = {"optim__clip_grad": 1e-30, "train__batch_size": 160, "train__epochs": 1}
    assert main(flags(dataset, run, **more, **clipped)) == 0
    assert main(flags(dataset, tmp_path / "start", **{**GRADIENT, "train__batch_size": 160})) == 0

    after, before = last_state(run)["model"], last_state(tmp_path / "start")["model"]

    for name, value in before.items():
        is_matrix = value.ndim > 1 and "pos_embed" not in name and "token" not in name
        expected = value * 0.95 if is_matrix else value
        torch.testing.assert_close(after[name], expected, rtol=1e-6, atol=1e-9, msg=name)


#: No weight moves: what differs between losses is what the model was shown.
STILL: dict[str, Any] = {"lr": 1e-30, "min_lr": 0.0, "class_weight": "none"}


def test_every_epoch_takes_the_same_sequences_in_another_order(dataset, tmp_path):
    run = tmp_path / "run"
    more = {f"optim__{name}": value for name, value in STILL.items()}
    alone = {"train__batch_size": 1, "sequence__stride": 5, "model__drop_path_rate": 0}

    assert main(flags(dataset, run, **more, **alone)) == 0

    first, second = ([x["loss"] for x in log_of(run, "train") if x["epoch"] == e] for e in (1, 2))
    assert len(first) == len(windows_of(dataset, "train", stride=5))
    assert first != second
    assert sorted(first) == pytest.approx(sorted(second), rel=1e-5)


def losses_of_one_batch(dataset: Path, n_steps: int = 2, rank: int = 0, **sections: Any):
    """Show one batch to a model that never changes; return the loss of each step."""
    process = Process(rank, 1, torch.device("cpu"))
    config = Config(
        sequence=SequenceConfig(N_TRIALS), optim=OptimConfig(**STILL), **{**QUIET, **sections}
    )
    folder = open_dataset(dataset)
    loader = make_loader(
        *(folder, "train", config.sequence, LoaderConfig("memory")),
        batch_size=8,
        device=process.device,
        seed=0,
        shuffle=True,
    )
    step, state = start_training(config, folder, loader, process)
    batch = next(loader.batches(0))
    losses = []
    for _ in range(n_steps):
        state.window = new_window(process.device)
        step(state, [batch])
        losses.append(float(state.window[0] / state.window[1]))
    return losses


#: Nothing is drawn at random.
QUIET: dict[str, Any] = {
    "model": ModelConfig(**MODEL, drop_path_rate=0.0),
    "augment": AugmentConfig(),
}
RANDOM: dict[str, dict[str, Any]] = {
    "dropout": {"model": ModelConfig(**MODEL, drop_path_rate=0.0, drop_rate=0.3)},
    "stochastic depth": {"model": ModelConfig(**MODEL, drop_path_rate=0.5)},
    "augmentation": {"augment": AugmentConfig(time_mask=8, gain_jitter=0.3, mixup=0.4)},
}


@pytest.mark.parametrize("what", RANDOM)
def test_every_step_and_every_process_draws_anew_and_the_same_in_every_run(dataset, what):
    quiet = losses_of_one_batch(dataset)
    assert quiet[0] == quiet[1]

    losses = [losses_of_one_batch(dataset, rank=rank, **RANDOM[what]) for rank in (0, 1)]

    assert len({*quiet, *losses[0], *losses[1]}) == 5
    assert losses_of_one_batch(dataset, rank=1, **RANDOM[what]) == losses[1]


# --- What is written ------------------------------------------------------------------------------


#: The rate keeps the weights away from their moving average.
FINISHED = {
    "optim__ema_decay": 0.9,
    "optim__lr": 3e-3,
    "optim__min_lr": 3e-3,
    "train__epochs": 3,
    "train__log_every": 5,
    "train__top_k": 2,
}


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    run = tmp_path_factory.mktemp("finished") / "run"
    assert main(flags(dataset, run, **FINISHED)) == 0
    return run


def test_the_run_folder_is_that_of_the_contract(finished):
    names = {path.name for path in finished.iterdir() if not path.name.startswith(".")}

    assert names == {
        "checkpoints",
        "config.yaml",
        "metrics",
        "metrics.jsonl",
        "predictions",
        "tensorboard",
    }
    assert {path.name for path in (finished / "metrics").iterdir()} == {"val.json", "test.json"}
    content = yaml.safe_load((finished / "config.yaml").read_text())
    assert content["optim"]["ema_decay"] == 0.9
    assert content["loader"]["store"] == "auto"


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_predictions_are_those_of_the_best_averaged_weights_on_every_sequence_once(
    dataset, finished, split
):
    table = pq.ParquetFile(finished / f"predictions/{split}.parquet").read().to_pylist()
    windows = windows_of(dataset, split)
    model = model_with(best_state(finished)["ema"]).eval()

    assert sorted((row["session"], row["trial_num"]) for row in table) == sorted(windows)
    for row in table:
        x, label = windows[row["session"], row["trial_num"]]
        assert row["label"] == label
        with torch.no_grad():
            logits = model(torch.from_numpy(x[None]).float())[0]
        np.testing.assert_allclose(row["logits"], logits.numpy(), atol=1e-5)


def test_an_epoch_is_judged_by_the_averaged_weights(dataset, finished):
    windows = windows_of(dataset, "val")
    x = torch.from_numpy(np.stack([x for x, _ in windows.values()])).float()
    label = torch.tensor([label for _, label in windows.values()])
    marker, state = read_marker(finished / "checkpoints"), best_state(finished)
    assert marker

    with torch.no_grad():
        averaged, raw = (
            functional.cross_entropy(model_with(state[name]).eval()(x), label).item()
            for name in ("ema", "model")
        )

    logged = log_of(finished, "val")[marker.best[0].epoch - 1]["loss"]
    assert logged == pytest.approx(averaged, rel=1e-6)
    assert abs(raw - averaged) > 1e-5 * averaged


def test_the_metrics_say_what_they_were_computed_from(dataset, finished):
    content = json.loads((finished / "metrics/test.json").read_text())
    table = pq.ParquetFile(finished / "predictions/test.parquet").read()
    logits = np.array(table["logits"].to_pylist())
    marker = read_marker(finished / "checkpoints")
    assert marker

    auc = roc_auc_score(table["label"].to_numpy(), logits[:, 1] - logits[:, 0])
    assert content["sequence"]["auc"]["value"] == pytest.approx(auc)
    assert (
        content["dataset_fingerprint"]
        == json.loads((dataset / "dataset.json").read_text())["sha256"]
    )
    assert content["checkpoint"]["sha256"] == marker.best[0].sha256
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=runs.ROOT, capture_output=True, text=True, check=False
    )
    if head.returncode == 0:
        assert content["git_commit"].removesuffix("-dirty") == head.stdout.strip()
    assert content["calibration"]["temperature"] > 0
    assert content["split"] == "test"


def test_the_best_checkpoints_are_those_of_the_best_epochs_on_val(finished):
    epochs = log_of(finished, "val")
    ranked = sorted(epochs, key=lambda line: (line["auc"], -line["loss"]), reverse=True)
    marker = read_marker(finished / "checkpoints")
    assert marker

    assert [entry.epoch for entry in marker.best] == [line["epoch"] for line in ranked[:2]]
    assert [line["epoch"] for line in epochs] == [1, 2, 3]


def test_the_log_and_the_board_hold_the_same_curves(finished):
    board = EventAccumulator(str(finished / "tensorboard"), {"images": 0, "scalars": 0}).Reload()

    for split, names in {
        "train": ("loss", "lr", "grad_norm", "sequences_per_second", "data_wait"),
        "val": ("loss", "auc", "accuracy", "balanced_accuracy"),
    }.items():
        for name in names:
            points = [(event.step, event.value) for event in board.Scalars(f"{split}/{name}")]
            logged = [(line["step"], line[name]) for line in log_of(finished, split)]
            assert points == [(step, pytest.approx(value, rel=1e-6)) for step, value in logged]
    images = set(board.Tags()["images"])
    assert {"val/confusion_matrix", "train/sequence_WT", "train/sequence_FMR1"} <= images


def test_the_same_command_after_the_end_trains_no_more(finished, capsys):
    weights = (finished / "checkpoints/committed.json").read_bytes()
    log = (finished / "metrics.jsonl").read_bytes()
    content = yaml.safe_load((finished / "config.yaml").read_text())

    assert main(flags(Path(content["data"]), finished, **FINISHED)) == 0

    assert (finished / "checkpoints/committed.json").read_bytes() == weights
    assert (finished / "metrics.jsonl").read_bytes() == log
    assert "report" in capsys.readouterr().out


# --- Other kinds of runs --------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_trains(dataset, tmp_path, name):
    run = tmp_path / "run"
    # Of the experiment all but the size, and masks that suit small spectrograms.
    sizes = {f"--model.{field}={value}" for field, value in MODEL.items()}
    small = {"--train.epochs=1", "--augment.time_mask=4", "--evaluation.n_bootstrap=50", *sizes}
    arguments = ["--data", str(dataset), "--output", str(run), "--experiment", name]

    assert main(["train", *arguments, *sorted(small)]) == 0

    (line,) = log_of(run, "val")
    assert 0 < line["loss"] < 2


@pytest.mark.parametrize(
    "more",
    [
        {"train__precision": "bf16"},
        {"model__global_pool": "avg"},
        {"optim__class_weight": "none", "optim__label_smoothing": 0},
        {"sequence__max_gap": 2, "sequence__stride": 1, "train__batch_size": 7},
    ],
)
def test_other_options_train(dataset, tmp_path, more):
    assert main(flags(dataset, tmp_path / "run", train__epochs=1, **more)) == 0

    assert log_of(tmp_path / "run", "train")[-1]["loss"] < 2


def test_nothing_runs_in_bfloat16_on_a_cpu_unless_asked(dataset, tmp_path, capsys):
    assert main(flags(dataset, tmp_path / "a", train__epochs=1)) == 0
    assert "cpu, float32" in capsys.readouterr().out
    assert main(flags(dataset, tmp_path / "b", train__epochs=1, train__precision="bf16")) == 0
    assert "cpu, bfloat16 autocast" in capsys.readouterr().out


def test_the_utilisation_is_of_the_peak_that_was_stated(dataset, finished, tmp_path):
    run = tmp_path / "run"
    assert main(flags(dataset, run, train__epochs=1, train__peak_tflops=0.5)) == 0
    flops = model_with(last_state(run)["model"]).flops_per_sequence()

    for line in log_of(run, "train"):
        assert line["mfu"] == pytest.approx(line["sequences_per_second"] * flops / 0.5e12)
    # Nobody knows the peak of a CPU.
    assert "mfu" not in log_of(finished, "train")[0]


def test_without_val_the_last_epoch_is_evaluated_and_nothing_is_calibrated(tmp_path):
    folder = datasets.make_dataset(tables.make_table(8, 8), tmp_path, "--split_ratios", "0.5,0,0.5")

    assert main(flags(folder, tmp_path / "run", train__epochs=3)) == 0

    marker = read_marker(tmp_path / "run/checkpoints")
    assert marker
    assert [entry.epoch for entry in marker.best] == [3]
    content = json.loads((tmp_path / "run/metrics/test.json").read_text())
    assert content["calibration"]["temperature"] is None
    assert not (tmp_path / "run/metrics/val.json").exists()


def some_predictions(label: list[int], seed: int = 0) -> Predictions:
    """Four sequences of each of some sessions."""
    rng = np.random.default_rng(seed)
    n = len(label)
    return Predictions(
        session=tuple(f"s{index // 4}" for index in range(4 * n)),
        subject=(None,) * (4 * n),
        trial_nums=np.arange(4 * n)[:, None],
        label=np.repeat(np.array(label), 4),
        logits=rng.standard_normal((4 * n, 2)),
    )


def test_an_epoch_is_judged_by_the_auc_of_sessions_then_by_the_loss_of_sequences():
    predictions = some_predictions([0, 1, 0, 1, 1])
    p = functional.softmax(torch.from_numpy(predictions.logits), dim=1).numpy()[:, 1]

    validation = validate(predictions)

    auc = roc_auc_score([0, 1, 0, 1, 1], p.reshape(5, 4).mean(axis=1))
    assert validation.score == pytest.approx((auc, -log_loss(predictions.label, p)))
    assert validation.values["auc"] == pytest.approx(auc)
    np.testing.assert_array_equal(
        validation.confusion, confusion_matrix(predictions.label, p > 0.5)
    )


def test_where_val_lacks_a_class_an_epoch_is_judged_by_the_loss():
    predictions = some_predictions([1, 1])
    p = functional.softmax(torch.from_numpy(predictions.logits), dim=1).numpy()[:, 1]

    assert validate(predictions).score == pytest.approx((np.log(p).mean(),))
