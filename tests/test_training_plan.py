"""What is said before the first step: lost sessions, padding, early stopping, and the time."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests import datasets
from tests.datasets import CLASSES, Recording, recording
from tests.runs import flags
from trainer import console
from trainer.__main__ import main
from trainer.config import Config, ModelConfig, SequenceConfig
from trainer.data.lost_sessions import describe_lost, find_lost_sessions
from trainer.data.sequences import build_sequences
from trainer.data.trials import Trials
from trainer.model import create_model
from trainer.training import plan as training_plan
from trainer.training.patches import describe_padding, describe_smaller_models, nearest_divisor
from trainer.training.plan import describe_validation
from trainer.training.step_time import seconds_per_sequence

pytestmark = pytest.mark.usefixtures("one_thread")


def lost_of(sessions: dict[str, list[int]], subjects: list[str | None], n: int, max_gap: int = 0):
    trials = Trials(
        tuple(sessions),
        tuple(subjects),
        np.arange(len(sessions)) % 2,
        np.repeat(np.arange(len(sessions), dtype=np.int32), [len(s) for s in sessions.values()]),
        np.concatenate([np.array(s, np.int64) for s in sessions.values()]),
    )
    sequences = build_sequences(trials, n, 1, max_gap)
    return find_lost_sessions(trials, sequences, max_gap), trials


HOLES = {
    "a": [0, 1, 2, 4, 5, 6, 7],
    "b": [0, 1, 2, 5, 6, 9],
    "c": [0, 1, 2],
    "d": list(range(8)),
}


def test_the_remedies_are_the_smallest_that_keep_every_session():
    lost, _ = lost_of(HOLES, ["m", "m", "n", "o"], 5)
    assert [one.session for one in lost] == ["a", "b", "c"]
    for one in lost:
        # By trying all values.
        alone = {one.session: HOLES[one.session]}
        kept_n = [n for n in range(1, 9) if not lost_of(alone, [None], n)[0]]
        kept_gap = [gap for gap in range(20) if not lost_of(alone, [None], 5, gap)[0]]
        assert one.longest_run == max(kept_n)
        assert one.sufficient_gap == (min(kept_gap) if kept_gap else None)
    line = describe_lost(lost, CLASSES, 5)
    assert "c (FMR1, 3 of 3 in a row) give no sequence of 5 trials" in line
    assert "animals m, n have no other: --sequence.n_trials 3 would keep them" in line
    line = describe_lost(lost[:2], CLASSES, 5)
    assert line.endswith("--sequence.n_trials 3 or --sequence.max_gap 2 would keep them")


def test_a_session_without_a_sequence_is_named_before_training_and_beside_the_metrics(
    tmp_path: Path, capsys
):
    splits = {
        split: [recording(f"{split}{name}{i}", name, 12) for name in CLASSES for i in range(2)]
        for split in ("train", "val", "test")
    }
    splits["test"][0] = Recording("rat7", "animal7", "FMR1", {0: [0, 1, 2], 1: [5, 6, 7]})
    dataset = datasets.write_dataset(tmp_path / "d", splits)

    small = {"train__epochs": 1, "model__patch_freq": 3}
    assert main(flags(dataset, tmp_path / "run", **small)) == 0

    out = capsys.readouterr().out
    assert "test: 6 trials (14.3 %) in no sequence: gaps leave no 4 in a row around them" in out
    assert (
        "Warning: 1 of 4 test sessions is not evaluated: rat7 (FMR1, 3 of 6 in a row) gives no "
        "sequence of 4 trials, and animal animal7 has no other: --sequence.n_trials 3 or "
        "--sequence.max_gap 2 would keep it"
    ) in out
    assert re.search(r"Note: .*rat7", out)
    # No gaps, nothing lost.
    assert "train:" not in out

    assert main(flags(dataset, tmp_path / "more", **small, sequence__max_gap=2)) == 0
    assert "rat7" not in capsys.readouterr().out


# --- Patches --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("patch", "near"), [(8, 0), (15, 16), (7, 8), (13, 16), (33, 32)])
def test_padding_is_said_and_is_what_the_model_does(patch, near):
    shape = (2, 64, 24)
    config = ModelConfig(patch_freq=patch, embed_dim=6, depth=1, num_heads=1)
    model = create_model(config, *shape, 2)
    seen = []
    model.patch_embed.proj.register_forward_pre_hook(lambda _, given: seen.append(given[0]))

    model(torch.ones(1, *shape))

    zeros = float((seen[0] == 0).float().mean())
    lines = list(describe_padding(config, shape))
    assert len(lines) == (zeros > 0)
    if zeros:
        assert f"64 frequencies are padded to {64 / (1 - zeros):.0f} (" in lines[0]
        assert f"{100 * zeros:.0f} % of what the model sees" in lines[0]
        assert f"--model.patch_freq {near} needs no padding" in lines[0]


def test_a_size_without_a_divisor_nearby_gets_no_advice():
    assert nearest_divisor(487, 8) is None
    (line,) = describe_padding(ModelConfig(), (8, 64, 487))
    assert "487 frames are padded to 488" in line
    assert "--model" not in line


def test_smaller_models_divide_the_spectrogram_and_cost_what_is_said():
    config, shape = ModelConfig(), (8, 64, 488)
    line = describe_smaller_models(config, shape, 2)
    assert line.startswith("--model.patch_freq 16 --model.patch_time 61 takes 1/")
    coarse = ModelConfig(patch_freq=16, patch_time=61)
    tiny = ModelConfig(size="tiny", patch_freq=16, patch_time=61)
    flops = [create_model(c, *shape, 2).flops_per_sequence() for c in (config, coarse, tiny)]
    told = [int(part) for part in re.findall(r"1/(\d+)", line)]
    assert told == [round(flops[0] / flops[1]), round(flops[0] / flops[2])]
    assert describe_smaller_models(tiny, shape, 2) == ""


@pytest.mark.parametrize(
    "config",
    [ModelConfig(size="tiny"), ModelConfig(embed_dim=48, depth=2, num_heads=2)],
    ids=["tiny", "width given"],
)
def test_a_size_that_makes_nothing_cheaper_is_not_advised(config):
    line = describe_smaller_models(config, (8, 64, 488), 2)
    assert line.startswith("--model.patch_freq 16 --model.patch_time 61 takes 1/")
    assert "--model.size" not in line


# --- Early stopping -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sessions", "coarse"),
    [([2, 3], "0.17"), ([1, 1], "1"), ([5, 5], None), ([1, 1, 1], "0.17")],
)
def test_few_sessions_of_val_are_coarse(sessions, coarse):
    stopping, *more = describe_validation(sessions, 10, 20)
    assert stopping == (
        "Early stopping: after 10 epochs without a higher AUC of val's sessions "
        "(--train.patience 10)"
    )
    assert len(more) == (coarse is not None)
    if coarse:
        assert f"moves in steps of {coarse}, " in more[0]
        assert more[0].endswith("; --train.patience null trains all 20 epochs")


def test_one_is_no_plural():
    stopping, _ = describe_validation([2, 2], 1, 2)
    assert stopping.startswith("Early stopping: after 1 epoch without")


@pytest.mark.parametrize("patience", [None, 20])
def test_a_run_that_does_not_stop_early_says_only_what_is_coarse(patience):
    (line,) = describe_validation([1, 2], patience, 20)
    assert line.startswith("Validation is coarse: with 1 + 2 val sessions the AUC moves in steps")
    assert "--train.patience" not in line


def test_where_val_lacks_a_class_the_loss_stops():
    (line,) = describe_validation([0, 4], 3, 20)
    assert "without a lower loss on val" in line


# --- Time -----------------------------------------------------------------------------------------


def test_measuring_the_time_leaves_random_numbers_alone():
    config = Config(sequence=SequenceConfig(2), model=ModelConfig(embed_dim=6, num_heads=1))
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)

    seconds = seconds_per_sequence(config, (2, 8, 8), 2, bfloat16=False)

    assert seconds > 0
    assert functional.mse_loss(torch.rand(3), expected) == 0


def test_a_long_epoch_on_a_cpu_comes_with_its_time_and_with_what_is_shorter(
    tmp_path, capsys, monkeypatch
):
    splits = {
        split: [recording(f"{split}{name}", name, 24) for name in CLASSES]
        for split in ("train", "val")
    }
    dataset = datasets.write_dataset(tmp_path / "d", splits, shape=(8, 16))
    # As a large model would take.
    monkeypatch.setattr(training_plan, "seconds_per_sequence", lambda *_: 100.0)

    assert main(flags(dataset, tmp_path / "run", model__patch_freq=1, model__patch_time=1)) == 0

    out, err = capsys.readouterr()
    # 22 sequences in batches of 8, twice.
    assert "Time: about 13 min a step, 37 min an epoch, 73 min to the end" in out
    assert "Warning: that is long without a GPU: --model.patch_freq 2 --model.patch_time 2 " in out
    assert "measured:" in err


def test_every_step_is_shown_from_before_the_first_one(tmp_path, capsys, monkeypatch):
    dataset = datasets.random_dataset(tmp_path / "d")
    # A line whenever something is shown, as after a slow step.
    monkeypatch.setattr(console, "PLAIN_SECONDS", -1.0)
    one_epoch = {"train__epochs": 1, "train__log_every": 2, "model__patch_freq": 3}

    assert main(flags(dataset, tmp_path / "run", **one_epoch)) == 0

    shown = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch 1/1: ")
    ]
    assert shown[0] == "epoch 1/1: 0 of 3, the first step takes longest"
    assert shown[1].startswith("epoch 1/1: 1 of 3, the loss is shown every 2 steps, ")
    assert shown[2].startswith("epoch 1/1: 2 of 3, loss ")
    assert shown[3].startswith("epoch 1/1: 3 of 3, loss ")
