"""The command `attention` against maps computed by hand from what WebDataset reads."""

from collections import defaultdict
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests import datasets
from tests.runs import N_TRIALS, best_state, flags
from trainer.__main__ import main
from trainer.attention.command import choose_sequences, randomized
from trainer.attention.figures import VIEWS, attention_figure, trial_names
from trainer.attention.file import MAPS, METHODS, AttentionMaps, read_maps, write_maps
from trainer.attention.maps import token_centres
from trainer.errors import TrainerError
from trainer.model import Temporal3DViT
from trainer.trained_model import load_trained_model

PATCH = (2, 8, 8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return datasets.small_dataset(tmp_path_factory)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    """A run that has trained for two epochs."""
    folder = tmp_path_factory.mktemp("attention") / "run"
    assert main(flags(dataset, folder)) == 0
    return folder


def sequences_of(dataset: Path, split: str) -> dict[str, np.ndarray]:
    """{session: (n, n_trials, n_freqs, n_times)}: every window of consecutive trials, by hand."""
    trials = datasets.read_trials(dataset, split)
    numbers = defaultdict(list)
    for session, number in sorted(trials):
        numbers[session].append(number)
    found = {}
    for session, held in numbers.items():
        windows = [
            held[s : s + N_TRIALS] for s in range(0, len(held) - N_TRIALS + 1, N_TRIALS // 2)
        ]
        whole = [w for w in windows if w[-1] - w[0] == N_TRIALS - 1]
        if whole:
            stacked = [[trials[session, t]["spectrogram"] for t in window] for window in whole]
            found[session] = np.array(stacked, np.float32)
    return found


def maps_by_hand(model: Temporal3DViT, x: np.ndarray) -> dict[str, np.ndarray]:
    """Mean map of sequences: all matrices multiplied out, the class token's row at the end."""
    with torch.no_grad():
        _, attentions = model.forward_with_attention(torch.from_numpy(x))
    layers = [a.double().mean(dim=1).numpy() for a in attentions]
    rollout = np.eye(layers[0].shape[-1])
    for layer in layers:
        rollout = (0.5 * layer + 0.5 * np.eye(layer.shape[-1])) @ rollout
    rows = {"rollout": rollout[:, 0, 1:], "class_attention": layers[-1][:, 0, 1:]}
    grid = model.grid_size
    return {
        name: (row / row.sum(axis=1, keepdims=True)).mean(axis=0).reshape(grid)
        for name, row in rows.items()
    }


def test_maps_are_those_of_every_sequence_averaged_by_session_and_class(dataset, run):
    assert main(["attention", str(run), "--max_sequences", "100000"]) == 0
    model = load_trained_model(run).model
    by_hand = {
        session: maps_by_hand(model, x) for session, x in sequences_of(dataset, "test").items()
    }
    with np.load(run / "attention/test.npz", allow_pickle=False) as arrays:
        assert arrays["sessions"].tolist() == sorted(by_hand)
        assert arrays["step"] == best_state(run)["step"]
        trials = datasets.read_trials(dataset, "test")
        labels = {session: trial["label"] for (session, _), trial in trials.items()}
        assert arrays["labels"].tolist() == [labels[session] for session in sorted(by_hand)]
        for method in METHODS:
            expected = np.array([by_hand[session][method] for session in sorted(by_hand)])
            np.testing.assert_allclose(arrays[f"session_{method}"], expected, rtol=1e-4)
            for label in (0, 1):
                own = expected[arrays["labels"] == label].mean(axis=0)
                np.testing.assert_allclose(arrays[method][label], own, rtol=1e-4)
            control = arrays[f"session_{method}_randomized"]
            np.testing.assert_allclose(control.sum(axis=(1, 2, 3)), 1, rtol=1e-4)
            assert np.abs(control - expected).max() > 1e-6


def test_axes_are_in_trials_hertz_and_seconds(dataset, run):
    assert main(["attention", str(run), "--split", "val", "--max_sequences", "1"]) == 0
    maps = read_maps(run / "attention/val.npz")
    freqs = np.linspace(0, 125, 49)
    assert maps.trials.tolist() == [1.5, 3.5]
    np.testing.assert_allclose(maps.freqs[:2], [freqs[:8].mean(), freqs[8:16].mean()])
    np.testing.assert_allclose(maps.freqs[-1], freqs[48:].mean())
    # Frames of 96 samples every 16, at 250 Hz, from 1 s before the onset.
    times = -1 + (48 + 16 * np.arange(34)) / 250
    np.testing.assert_allclose(maps.times[:2], [times[:8].mean(), times[8:16].mean()])
    np.testing.assert_allclose(maps.times[-1], times[32:].mean())
    # One of each session, however little was asked for.
    assert (maps.n_sequences == 1).all()
    assert len(maps.sessions) == len(sequences_of(dataset, "val"))


def test_pictures_are_there_and_the_same_command_writes_the_same_bytes(run, capsys):
    command = ["attention", str(run), "--max_sequences", "8", "--seed", "3"]
    assert main(command) == 0
    assert "of 43 sequences from 4 test sessions" in capsys.readouterr().out
    names = {f"test-{method}-{view}.png" for method in METHODS for view in VIEWS} | {"test.npz"}
    before = {name: (run / "attention" / name).read_bytes() for name in names}
    assert main(command) == 0
    assert {name: (run / "attention" / name).read_bytes() for name in names} == before
    assert {p.name for p in (run / "attention").iterdir() if p.name.startswith("test")} == names
    picture = matplotlib.image.imread(run / "attention/test-rollout-time-trial.png")
    assert picture.shape[1] == 1350
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 10


def test_sequences_are_chosen_evenly_over_sessions_and_by_seed():
    session = np.repeat(np.arange(3, dtype=np.int32), [50, 7, 2])
    chosen = choose_sequences(session, 15, seed=0)
    assert np.bincount(session[chosen]).tolist() == [5, 5, 2]
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, choose_sequences(session, 15, seed=0))
    assert chosen.tolist() != choose_sequences(session, 15, seed=1).tolist()
    counts = np.zeros(50)
    for seed in range(400):
        counts[choose_sequences(session, 15, seed)[:5]] += 1
    # Each of 50 is taken with probability 1/10: 40 of 400, with a standard deviation of 6.
    assert counts.min() > 15
    assert counts.max() < 65


def test_randomised_weights_are_the_same_values_elsewhere(run):
    model = load_trained_model(run).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    control = randomized(model, seed=5)
    again, other = randomized(model, seed=5), randomized(model, seed=6)
    for name, value in control.state_dict().items():
        assert torch.equal(model.state_dict()[name], before[name])
        assert torch.equal(value.flatten().sort().values, before[name].flatten().sort().values)
        assert torch.equal(value, again.state_dict()[name])
    weight = "blocks.0.attn.qkv.weight"
    assert not torch.equal(control.state_dict()[weight], before[weight])
    assert not torch.equal(control.state_dict()[weight], other.state_dict()[weight])


def make_maps(n_trials: int, labels: list[int], classes: tuple[str, ...]) -> AttentionMaps:
    rng = np.random.default_rng(0)
    patch = min(2, n_trials)
    trials = token_centres(np.arange(1, n_trials + 1), patch)
    shape = (len(labels), len(trials), 3, 7)

    def draw() -> NDArray[np.float32]:
        flat = rng.dirichlet(np.ones(np.prod(shape[1:])), shape[0])
        return flat.reshape(shape).astype(np.float32)

    return AttentionMaps(
        12,
        classes,
        tuple(f"s{index}" for index in range(len(labels))),
        np.array(labels),
        np.ones(len(labels), np.int64),
        trials,
        np.array([10.0, 50.0, 90.0]),
        np.linspace(-1, 2, 7),
        {name: draw() for name in MAPS},
    )


@pytest.mark.parametrize(
    ("n_trials", "labels", "classes"),
    [
        (1, [0, 1], ("FMR1", "WT")),
        (5, [0, 0, 1], ("FMR1", "$WT$")),
        (8, [1, 1], ("FMR1", "WT")),  # a class that the split lacks
        (4, [0, 1, 2, 3], ("a", "a very long name of a class", "a very long name of", "d")),
    ],
)
@pytest.mark.parametrize(("view", "width"), [("time-trial", 3.7), ("time-frequency", 9.0)])
def test_every_class_stands_beside_its_control_in_one_scale(n_trials, labels, classes, view, width):
    maps = make_maps(n_trials, labels, classes)
    figure = attention_figure(maps, "rollout", view, width)
    panels = [axes for axes in figure.axes if axes.images]
    n_differences = 1 if len(classes) == 2 else len(classes)
    assert len(panels) == 2 * (len(classes) + n_differences)
    shown = {axes.get_title(loc="left"): axes.images[0] for axes in panels}
    axis = {"time-trial": 1, "time-frequency": 0}[view]
    for suffix, weights in (("", "trained"), ("_randomized", "randomised weights")):
        for label, name in enumerate(classes):
            own = [title for title in shown if title == f"{name}, {weights}"]
            held = maps.maps[f"rollout{suffix}"][np.array(labels) == label]
            if own and len(held):
                # Attention relative to that which is spread evenly over all tokens.
                expected = held.mean(axis=0).sum(axis=axis) * held.shape[axis + 1] ** -1
                expected = expected * held[0].size
                drawn = np.asarray(shown[own[0]].get_array())
                np.testing.assert_allclose(drawn, expected, rtol=1e-5)
    plain = {p.images[0].get_clim() for p in panels if "minus" not in p.get_title(loc="left")}
    signed = {p.images[0].get_clim() for p in panels if "minus" in p.get_title(loc="left")}
    assert len(plain) == len(signed) == 1
    low, high = signed.pop()
    assert low == -high


@pytest.mark.parametrize("n_trials", [1, 2, 5, 8])
def test_rows_are_named_by_the_trials_they_cover(n_trials):
    names = trial_names(token_centres(np.arange(1, n_trials + 1), 2))
    covered: list[int] = []
    for name in names:
        first, _, last = name.partition("-")
        covered += range(int(first), int(last or first) + 1)
    assert covered == list(range(1, n_trials + 1))


def test_maps_read_back_as_they_were_written(tmp_path):
    maps = make_maps(4, [0, 1, 1], ("FMR1", "WT"))
    write_maps(tmp_path / "a.npz", maps)
    back = read_maps(tmp_path / "a.npz")
    assert (back.step, back.classes, back.sessions) == (12, maps.classes, maps.sessions)
    for name in MAPS:
        np.testing.assert_array_equal(back.maps[name], maps.maps[name])
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04 no maps")
    with pytest.raises(TrainerError, match=r"b\.npz holds no attention maps"):
        read_maps(tmp_path / "b.npz")


def error_line(command: list[str], capsys: pytest.CaptureFixture[str], status: int) -> str:
    assert main(command) == status
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def test_what_is_wrong_is_said_in_one_line(run, tmp_path, capsys):
    assert "at least 1" in error_line(["attention", str(run), "--max_sequences", "0"], capsys, 2)
    assert "at least 0" in error_line(["attention", str(run), "--seed", "-1"], capsys, 2)
    assert "is no run folder" in error_line(["attention", str(tmp_path)], capsys, 1)
    other = datasets.make_dataset(datasets.table_with_gaps(seed=1), tmp_path)
    capsys.readouterr()
    line = error_line(["attention", str(run), "--data", str(other)], capsys, 1)
    assert "is not the dataset that the model was trained on" in line
