"""It learns what can be learned, and nothing else: generated data whose truth is known.

The same at full size, against the targets, is benchmarks/learning.py.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from beam_pipeline.__main__ import main as pipeline_main
from tests import tables
from trainer.__main__ import main as trainer_main

DYNAMICS, EFFECT = 0.9, 2.0
#: The response in 16 bands from 0 to 125 Hz and 6 frames.
SPECTROGRAM = (
    "--tmin 0 --tmax 0.5 --nperseg 64 --noverlap 48 --n_freqs 16 "
    "--gain_correction session --normalization per_frequency"
)
MODEL = (
    "--model.embed_dim 32 --model.depth 2 --model.num_heads 2 --model.patch_freq 8 "
    "--model.patch_time 6 --model.init_values null --model.global_pool avg "
    "--model.drop_path_rate 0 --optim.lr 2e-3 --evaluation.n_permutations 100"
)


pytestmark = pytest.mark.usefixtures("one_thread")


def make_dataset(folder: Path, sample: str) -> Path:
    table, dataset = folder / "table", folder / "dataset"
    command = ["sample", "--output", str(table), "--sfreq", "250", *sample.split()]
    assert pipeline_main(command) == 0
    command = ["preprocess", "--input", str(table), "--output", str(dataset)]
    assert pipeline_main([*command, *SPECTROGRAM.split(), *tables.IN_PROCESS]) == 0
    return dataset


def train(dataset: Path, experiment: str, flags: str) -> Path:
    run = dataset.parent / experiment
    command = ["train", "--data", str(dataset), "--output", str(run), "--experiment", experiment]
    assert trainer_main([*command, *MODEL.split(), *flags.split()]) == 0
    return run


def way_to_the_best(
    run: Path, is_fmr1: Callable[[NDArray[np.float64]], NDArray[np.bool_]]
) -> float:
    """Way from chance to what the true latents of the same test sequences would allow.

    `is_fmr1` is the best decision from latents of shape (sequences, trials).
    """
    predictions = pq.read_table(run / "predictions" / "test.parquet")
    truth = pacsv.read_csv(run.parent / "table" / "ground_truth.csv")
    keys = zip(truth["session"].to_pylist(), truth["trial_num"].to_pylist(), strict=True)
    latent_of = dict(zip(keys, truth["latent"].to_pylist(), strict=True))
    sessions, trials = (predictions[name].to_pylist() for name in ("session", "trial_nums"))
    latents = np.array(
        [[latent_of[name, n] for n in nums] for name, nums in zip(sessions, trials, strict=True)]
    )
    classes = json.loads((run.parent / "dataset" / "dataset.json").read_text())["classes"]
    label = predictions["label"].to_numpy()
    best = np.mean(is_fmr1(latents) == (label == classes.index("FMR1")))
    reached = np.mean(np.stack(predictions["logits"].to_pylist()).argmax(axis=1) == label)
    return float((reached - 0.5) / (best - 0.5))


@pytest.fixture(scope="module")
def dynamics(tmp_path_factory):
    """Data whose class shows only from trial to trial: latents correlate by +0.9, or by -0.9."""
    folder = tmp_path_factory.mktemp("dynamics")
    return make_dataset(
        folder,
        f"--sessions 200 --trials 80 --effect 0 --dynamics {DYNAMICS} --bad_fraction 0 --seed 1",
    )


def test_eight_trials_show_a_class_that_acts_from_trial_to_trial(dynamics):
    run = train(dynamics, "e3", "--sequence.stride 1 --train.batch_size 64 --train.epochs 3")
    # Two AR(1) processes that differ in the sign of their correlation: the logarithm of the
    # likelihood ratio is a positive multiple of the sum of products of neighbours.
    way = way_to_the_best(run, lambda latents: (latents[:, 1:] * latents[:, :-1]).sum(axis=1) > 0)
    assert way > 0.7  # with other seeds of the training 0.78 to 0.82


def test_one_trial_shows_nothing_of_a_class_that_acts_from_trial_to_trial(dynamics):
    run = train(dynamics, "e1", "--train.batch_size 256 --train.epochs 2")
    accuracy = json.loads((run / "metrics" / "test.json").read_text())["sequence"]["accuracy"]
    assert accuracy["low"] <= 0.5 <= accuracy["high"]


def test_one_trial_shows_a_class_that_acts_in_each(tmp_path):
    dataset = make_dataset(
        tmp_path, f"--sessions 100 --trials 40 --effect {EFFECT} --bad_fraction 0 --seed 2"
    )
    run = train(dataset, "e1", "--train.batch_size 64 --train.epochs 6")
    way = way_to_the_best(run, lambda latents: latents[:, 0] > EFFECT / 2)
    assert way > 0.8  # with other seeds of the training 0.91 to 0.95
