"""The search on this machine: a killed one ends like a whole one, and each trial is a run."""

import csv
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests import datasets
from tests.runs import ENVIRONMENT, ROOT, TIMING, flags, log_of
from trainer.__main__ import main
from trainer.training.checkpoint import read_marker
from trainer.tune.results import TrialResult, print_results
from trainer.tune.space import SPACE, searched


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return datasets.random_dataset(tmp_path_factory.mktemp("dataset") / "d")


pytestmark = pytest.mark.usefixtures("one_thread")


def words(dataset, output, max_trials, *more):
    train = flags(dataset, output, model__patch_freq=3)[1:]
    return ["tune", *train, "--max_trials", str(max_trials), *more]


def table(folder):
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def curve(run, split):
    return [{k: v for k, v in line.items() if k not in TIMING} for line in log_of(run, split)]


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "tune"
    assert main(words(dataset, folder, 2)) == 0
    return folder


def test_a_trial_is_the_run_that_train_makes_of_its_values(dataset, whole, tmp_path):
    for row in table(whole):
        values = {p.name: float(row[p.name]) for p in SPACE}
        for parameter in SPACE:
            assert parameter.low <= values[parameter.name] <= parameter.high
        run = whole / "trials" / row["trial"]
        assert row["folder"] == str(run)
        marker = read_marker(run / "checkpoints")
        assert marker
        assert float(row["val_session_auc"]) == max(line["auc"] for line in log_of(run, "val"))
        # What looks at test before the search is over is no test.
        assert not list(run.glob("*/test.*"))
    more = {name.replace(".", "__"): value for name, value in values.items()}

    assert main(flags(dataset, tmp_path / "again", model__patch_freq=3, **more)) == 0

    assert curve(tmp_path / "again", "train") == curve(run, "train")
    assert curve(tmp_path / "again", "val") == curve(run, "val")


def test_a_search_that_was_killed_ends_like_one_that_was_not(dataset, whole, tmp_path):
    folder = tmp_path / "tune"
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", *words(dataset, folder, 2)],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    # In the middle of the second trial, which has a checkpoint by then.
    marker = folder / "trials/0001/checkpoints/committed.json"
    deadline = time.monotonic() + 120
    while not marker.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)

    assert main(words(dataset, folder, 2)) == 0

    def told(folder_):
        return [{k: v for k, v in row.items() if k != "folder"} for row in table(folder_)]

    assert told(folder) == told(whole)
    for name in ("0000", "0001"):
        run, other = folder / "trials" / name, whole / "trials" / name
        assert curve(run, "train") == curve(other, "train")
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")


def test_more_trials_go_on_and_what_is_done_is_only_shown(dataset, whole, tmp_path, capsys):
    folder = tmp_path / "tune"
    shutil.copytree(whole, folder)
    before = (folder / "results.csv").read_text()

    assert main(words(dataset, folder, 2)) == 0

    out = capsys.readouterr().out
    assert "Trial " not in out.split("2 trials, by the AUC")[0]
    best = max(table(folder), key=lambda row: float(row["val_session_auc"]))
    assert f"Best: trial {best['trial']} in " in out
    assert "so it is too good" in out
    assert [row["val_session_auc"] for row in table(folder)] == [
        line.split(",")[2] for line in before.splitlines()[1:]
    ]


def test_a_trial_leaves_one_line_and_the_best_one_alone_can_be_tested(dataset, tmp_path, capsys):
    folder = tmp_path / "tune"
    assert main(words(dataset, folder, 2)) == 0

    out, err = capsys.readouterr()
    assert len([line for line in out.splitlines() if line.startswith("Trial ")]) == 2
    for number, row in enumerate(table(folder)):
        line = f"Trial {row['trial']}, {number + 1} of 2: val AUC"
        assert f"{line} {float(row['val_session_auc']):.3f} (optim.lr" in out
    assert out.count("Learning rate:") == 1
    assert "p-value" not in out
    assert "epoch" not in err
    (command,) = [line for line in out.splitlines() if "python -m trainer evaluate" in line]

    assert main(command.partition("python -m trainer ")[2].split()) == 0

    tested = [path.parents[1].name for path in folder.rglob("metrics/test.json")]
    assert tested == [max(table(folder), key=lambda row: float(row["val_session_auc"]))["trial"]]


def test_another_search_in_the_folder_is_refused(dataset, whole, capsys):
    assert main(words(dataset, whole, 2, "--train.seed", "5")) == 1

    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{whole} holds another search: train.seed was 0 and is 5" in line


def test_a_run_and_a_search_do_not_share_a_folder(dataset, whole, tmp_path, capsys):
    assert main(flags(dataset, whole, model__patch_freq=3)) == 2
    assert f"--output {whole} is a search" in capsys.readouterr().err
    assert not (whole / "config.yaml").exists()

    run = tmp_path / "run"
    shutil.copytree(whole / "trials/0000", run)
    assert main(words(dataset, run, 2)) == 2
    assert f"--output {run} is a run" in capsys.readouterr().err
    assert not (run / "study.db").exists()

    assert main(words(dataset, dataset, 2)) == 2
    assert f"--output {dataset} is a dataset" in capsys.readouterr().err


def result(name, auc):
    return TrialResult(name, "done", auc, {"optim.lr": 1e-3}, f"tune/trials/{name}")


@pytest.mark.parametrize(
    ("aucs", "said"),
    [
        ([0.5, 0.75, 0.6], "too good. No trial has seen test"),
        ([0.5, 0.5, 0.4], "too good. 2 trials reach it: val does not tell which is best."),
        ([0.5], "1 trial, by the AUC"),
    ],
)
def test_trials_that_val_cannot_tell_apart_are_not_called_better(aucs, said, capsys):
    print_results([result(f"{n:04d}", auc) for n, auc in enumerate(aucs)], [])

    assert said in capsys.readouterr().out


def test_a_trial_that_diverges_is_a_result(dataset, tmp_path, capsys):
    held = [f"--{p.name}=0" for p in SPACE if p.name != "optim.label_smoothing"]
    wild = ["--optim.lr=1e10", "--optim.min_lr=0", "--optim.warmup_epochs=0"]
    more = [*[word for word in held if "optim.lr" not in word], *wild]

    assert main(words(dataset, tmp_path / "tune", 1, *more)) == 0

    out = capsys.readouterr().out
    assert "Trial 0000, 1 of 1: failed: loss, gradient or weights are not finite" in out
    assert "there is no best one" in out
    (row,) = table(tmp_path / "tune")
    assert (row["state"], row["val_session_auc"]) == ("failed", "")


def test_a_flag_takes_its_parameter_out_of_the_search():
    assert [p.name for p in searched(["--optim.lr", "1e-4", "--model.drop_rate=0.1"])] == [
        "model.drop_path_rate",
        "optim.weight_decay",
        "optim.label_smoothing",
    ]


@pytest.mark.parametrize(
    ("more", "status", "expected"),
    [
        ([f"--{p.name}=0.01" for p in SPACE], 2, "nothing is left"),
        (["--n_trials", "20"], 2, "there is no flag --n_trials: --max_trials is how many"),
        (["--output", "gs://lab/tune"], 2, "needs a folder on a disk"),
    ],
)
def test_what_cannot_be_searched_is_refused(dataset, tmp_path, capsys, more, status, expected):
    assert main(words(dataset, tmp_path / "tune", 1, *more)) == status

    assert expected in capsys.readouterr().err.splitlines()[-1]


def test_a_val_without_an_auc_is_found_out_before_a_trial(tmp_path, capsys):
    recordings = {
        "train": [datasets.recording(f"train{c}", c, 12) for c in datasets.CLASSES],
        "val": [datasets.recording("v", "WT", 12)],
    }
    folder = datasets.write_dataset(tmp_path / "d", recordings)

    assert main(["tune", "--data", str(folder), "--output", str(tmp_path / "tune")]) == 1

    assert "val has no session of FMR1" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "tune").exists()


def test_several_processes_are_refused(dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")

    assert main(words(dataset, tmp_path / "tune", 1)) == 2

    assert "without torchrun" in capsys.readouterr().err.splitlines()[-1]
