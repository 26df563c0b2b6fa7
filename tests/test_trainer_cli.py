"""The commands as a user types them: exit statuses, one line for what went wrong, the script."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import fsspec
import psutil
import pytest

from tests import datasets
from tests.runs import ENVIRONMENT, ROOT, flags, last_state, log_of
from trainer.__main__ import COMMANDS, main
from trainer.errors import UsageError
from trainer.launch import Failure, first_error


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return datasets.small_dataset(tmp_path_factory)


def status_and_error(arguments, capsys):
    try:
        status: object = main([str(word) for word in arguments])
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("arguments", [["--help"], [], ["--version"]])
def test_help_and_version_come_at_once(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)

    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert arguments == ["--version"] or all(name in out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])

    assert stop.value.code == 0
    assert f"python -m trainer {name}" in capsys.readouterr().out


def test_help_and_complaints_do_not_wait_for_pytorch():
    code = (
        "import sys\nfrom trainer.__main__ import main\n"
        "assert main(['train', '--model.sise', 'tiny']) == 2\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["trian"], 2, "did you mean train?"),
        (["train", "--model.sise", "tiny"], 2, "did you mean --model.size?"),
        (["train", "--optim.learning_rate", "1"], 2, "did you mean --optim.lr?"),
        (["train", "--train.lr", "1"], 2, "did you mean --optim.lr?"),
        (["train", "--dropout", "0.1"], 2, "did you mean --model.drop_rate?"),
        (["train", "--vertex"], 2, "--project is missing"),
        (["train", "--data", "{tmp}/none", "--output", "{tmp}/run"], 1, "has no dataset.json"),
        (["train", "--data", "nofs://x", "--output", "{tmp}/run"], 1, "nofs"),
        (["train", "--data", "{data}", "--output", "nofs://x"], 1, "nofs"),
        (
            ["train", "--data", "{data}", "--output", "{data}"],
            2,
            "give the run a folder of its own",
        ),
        (["train", "--data", "{data}", "--output", "/proc/run"], 1, "cannot write /proc/run"),
        (
            ["train", "--data", "{data}", "--output", "{tmp}/run", "--sequence.n_trials", "99"],
            2,
            "--sequence.n_trials 99 is longer than every session of train",
        ),
        (
            ["train", "--data", "{data}", "--output", "{tmp}/run", "--augment.freq_mask", "99"],
            2,
            "augment.freq_mask",
        ),
        (
            ["train", "--data", "{data}", "--output", "{tmp}/run", "--model.num_heads", "5"],
            2,
            "heads",
        ),
        (["train", "--data", "{data}", "--output", "{tmp}"], 2, "no run, and holds notes.txt"),
        (["evaluate", "{tmp}"], 1, "has no config.yaml: it is no run folder"),
        (["evaluate", "{tmp}", "--splitt=val"], 2, "no --splitt=val (did you mean --split?)"),
        (["evaluate", "{tmp}/x"], 1, "is not there; pass the --output of train"),
        (["evaluate"], 2, "required: RUN"),
        (["evaluate", "{tmp}", "--split", "all"], 2, "invalid choice: 'all'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(dataset, tmp_path, capsys, arguments, status, expected):
    (tmp_path / "notes.txt").touch()
    words = [word.format(tmp=tmp_path, data=dataset) for word in arguments]

    found, lines = status_and_error(words, capsys)

    assert found == status
    assert lines[-1].startswith("error: ")
    assert expected in lines[-1]
    assert len(lines) == 1


def test_verbose_shows_where_it_went_wrong(tmp_path, capsys):
    arguments = ["train", "--data", tmp_path / "none", "--output", tmp_path / "run", "--verbose"]

    status, lines = status_and_error(arguments, capsys)

    assert status == 1
    assert lines[0].startswith("Traceback")
    assert lines[-1].startswith("error: ")


def test_leaking_splits_are_not_trained_on(dataset, tmp_path, capsys):
    copy = shutil.copytree(dataset, tmp_path / "dataset")
    datasets.edit_manifest(
        copy,
        lambda content: content["normalization"]["sessions"].append(
            content["splits"]["test"]["sessions"][0]
        ),
    )

    status, lines = status_and_error(flags(copy, tmp_path / "run"), capsys)

    assert status == 1
    assert "leaks: the normalisation was not computed from exactly the train sessions" in lines[-1]
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_test_split_too_short_for_the_sequences_is_refused_before_the_training(tmp_path, capsys):
    splits = {
        split: [datasets.recording(f"{split}{name}", name, n) for name in datasets.CLASSES]
        for split, n in (("train", 12), ("val", 12), ("test", 3))
    }
    data = datasets.write_dataset(tmp_path / "dataset", splits)

    status, lines = status_and_error(flags(data, tmp_path / "run"), capsys)

    assert status == 2
    assert "--sequence.n_trials 4 is longer than every session of test" in lines[-1]
    assert not (tmp_path / "run/metrics.jsonl").exists()
    assert not (tmp_path / "run/config.yaml").exists()


def test_the_plan_counts_the_sequences_of_every_split_and_class(dataset, tmp_path, capsys):
    assert main(flags(dataset, tmp_path / "run", train__epochs=1)) == 0

    plan = capsys.readouterr().out.partition("Model: ")[0]
    for split in ("train", "val", "test"):
        (row,) = (line for line in plan.splitlines() if f" {split} " in line)
        counts = [int(word.replace(",", "")) for word in re.findall(r"[\d,]+", row)]
        numbers = defaultdict(list)
        for session, trial in datasets.read_trials(dataset, split).items():
            numbers[session[0], trial["label"]].append(session[1])
        per_class: Counter[int] = Counter()
        for (_, label), found in numbers.items():
            # Of each run of trials, by its length.
            edges = [number for number in found if number - 1 not in found]
            ends = [number for number in found if number + 1 not in found]
            sizes = [b - a + 1 for a, b in zip(sorted(edges), sorted(ends), strict=True)]
            per_class[label] += sum((size - 2) // 2 for size in sizes)
        assert counts[:2] == [per_class[0], per_class[1]]
        assert counts[2] == sum(map(len, numbers.values()))


def test_a_dataset_given_as_a_file_url_is_found_again_by_evaluate(dataset, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(flags(f"file://{dataset}", f"file://{run}", train__epochs=1)) == 0
    capsys.readouterr()

    status, lines = status_and_error(["evaluate", run], capsys)

    assert (status, lines) == (0, [])


def test_a_run_ends_with_the_commands_that_lead_to_its_page(dataset, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(flags(dataset, run, train__epochs=1)) == 0

    following = capsys.readouterr().out.partition("\nNext:\n")[2].splitlines()

    words = [line.split() for line in following]
    assert [line[:4] for line in words] == [
        ["python", "-m", "trainer", name] for name in ("baselines", "attention", "report")
    ]
    for line in words:
        assert main(line[3:]) == 0
    assert "There are no baselines" not in (run / "report.html").read_text()


@pytest.mark.parametrize("split", ["val", "test", "train"])
def test_evaluate_writes_and_says_what_it_found(dataset, tmp_path, capsys, split):
    run = tmp_path / "run"
    assert main(flags(dataset, run, train__epochs=1)) == 0
    before = {path.name: path.read_bytes() for path in (run / "metrics").iterdir()}
    capsys.readouterr()

    assert main(["evaluate", str(run), "--split", split]) == 0

    out = capsys.readouterr().out
    content = json.loads((run / f"metrics/{split}.json").read_text())
    assert f"{split}, best epoch 1" in out
    assert f"sequence (n={content['sequence']['n']:,})" in out
    unit, n = content["groups"]["unit"], content["groups"]["n"]
    assert f"95 % intervals over {n} {unit}s and one-sided p-values of the AUC:" in out
    assert ("flatter" in out) == (split != "test")
    assert (run / f"predictions/{split}.parquet").exists()
    # What training had written comes out again, byte for byte.
    assert {name: (run / "metrics" / name).read_bytes() for name in before} == before


def test_a_run_behind_a_url_resumes_and_is_evaluated_there(dataset, capsys):
    store = fsspec.filesystem("memory")
    url = "memory://bucket/runs/first"
    try:
        assert main(flags(dataset, url, train__epochs=1)) == 0
        first = set(store.find("/bucket/runs/first"))
        assert main(flags(dataset, url, train__epochs=2)) == 0
        assert main(["evaluate", url, "--split", "train"]) == 0

        found = {name.removeprefix("/bucket/runs/first/") for name in store.find("/bucket/runs")}
        assert {"config.yaml", "metrics.jsonl", "checkpoints/committed.json"} <= found
        assert {f"metrics/{split}.json" for split in ("train", "val", "test")} <= found
        # The last checkpoint of the first part is no longer named, and gone.
        assert len([name for name in found if name.endswith(".pt")]) == 2
        assert not {name for name in first if "last-" in name} & set(store.find("/bucket"))
        log = store.cat("/bucket/runs/first/metrics.jsonl").decode().splitlines()
        epochs = [line["epoch"] for line in map(json.loads, log) if line["split"] == "val"]
        assert epochs == [1, 2]
    finally:
        store.rm("/bucket", recursive=True)


# --- The script -----------------------------------------------------------------------------------


def run_training(
    script: Path, *words: str, cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the script with the `python3` beside this interpreter."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [str(script), *words],
        cwd=cwd,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def checkout(tmp_path):
    """A checkout, in a folder with a space, whose package prints how it was called."""
    root = tmp_path / "a checkout"
    (root / "trainer").mkdir(parents=True)
    shutil.copy(ROOT / "run_training.sh", root)
    (root / "trainer" / "__init__.py").touch()
    (root / "trainer" / "__main__.py").write_text(
        "import os, sys\n"
        "processes = os.environ['TRAINER_PROCESSES_PER_REPLICA']\n"
        "print([os.getcwd(), processes, *sys.argv[1:]])\n"
        "sys.exit(int(os.environ.get('STATUS', '0')))\n"
    )
    return root


@pytest.mark.parametrize("status", [0, 1, 2])
def test_the_script_passes_flags_folder_and_status_through(checkout, tmp_path, status):
    words = ["--data", "a b", "--optim.lr=1e-3", "", "$HOME *"]

    done = run_training(checkout / "run_training.sh", *words, cwd=tmp_path, STATUS=str(status))

    assert done.returncode == status
    assert ast.literal_eval(done.stdout) == [str(tmp_path), "1", "train", *words]


def test_the_script_without_flags_trains_on_the_dataset_of_its_checkout(checkout, tmp_path):
    done = run_training(checkout / "run_training.sh", cwd=tmp_path)

    expected = ["train", "--data", "out/dataset", "--output", "out/run"]
    assert ast.literal_eval(done.stdout) == [str(checkout), "1", *expected]


def test_the_script_starts_as_many_processes_as_it_is_told(checkout, tmp_path):
    done = run_training(checkout / "run_training.sh", "--data", "a b", cwd=tmp_path, NPROC="2")

    assert done.returncode == 0, done.stderr
    assert ast.literal_eval(done.stdout) == [str(tmp_path), "2", "train", "--data", "a b"]


@pytest.mark.parametrize("number", ["0", "two", "-1"])
def test_the_script_refuses_what_is_no_number_of_processes(checkout, tmp_path, number):
    done = run_training(checkout / "run_training.sh", cwd=tmp_path, NPROC=number)

    assert done.returncode == 2
    assert done.stderr == f"error: NPROC must be the number of processes, not '{number}'\n"


def test_the_script_without_packages_asks_for_make_venv(checkout, tmp_path):
    bare = tmp_path / "bin" / "python3"
    bare.parent.mkdir()
    # -S leaves site-packages out.
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)

    done = run_training(
        checkout / "run_training.sh", cwd=tmp_path, PATH=f"{bare.parent}:{os.environ['PATH']}"
    )

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "make venv" in line


def test_the_script_trains(dataset, tmp_path):
    _, *words = flags(dataset, "run", train__epochs=1)

    done = run_training(ROOT / "run_training.sh", *words, cwd=tmp_path, NPROC="1")

    assert done.returncode == 0, done.stderr
    assert [line["epoch"] for line in log_of(tmp_path / "run", "val")] == [1]
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


# --- Several processes ----------------------------------------------------------------------------


def start_two(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", *arguments],
        cwd=ROOT,
        env={**ENVIRONMENT, "TRAINER_PROCESSES_PER_REPLICA": "2"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def two_in_training(dataset: Path, run: Path) -> subprocess.Popen[str]:
    """Two processes that have taken a step, and are not done for long."""
    process = start_two(flags(dataset, run, train__epochs=500))
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_bytes():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def without_progress(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if not line.startswith(("epoch", "measured"))]


@pytest.mark.parametrize(
    ("word", "status", "expected"),
    [
        # Before the processes start; in the main process alone; in both.
        ("--model.sise=tiny", 2, "did you mean --model.size?"),
        ("--output={data}", 2, "give the run a folder of its own"),
        ("--sequence.n_trials=99", 2, "--sequence.n_trials 99 is longer than every session"),
    ],
)
def test_what_is_wrong_with_two_processes_is_said_in_one_line(
    dataset, tmp_path, word, status, expected
):
    process = start_two([*flags(dataset, tmp_path / "run"), word.format(data=dataset)])
    _, errors = process.communicate(timeout=200)

    assert process.returncode == status
    (line,) = errors.splitlines()
    assert line.startswith("error: ")
    assert not line.startswith("error: process")
    assert expected in line


def test_a_signal_to_two_processes_saves_and_says_so_once(dataset, tmp_path):
    run = tmp_path / "run"
    process = two_in_training(dataset, run)
    process.terminate()
    _, errors = process.communicate(timeout=100)

    assert process.returncode == 1
    lines = without_progress(errors)
    (step,) = re.findall(r"error: stopped by SIGTERM after step (\d+), which is saved", lines[-1])
    assert len(lines) == 1
    assert last_state(run)["step"] == int(step)


#: The first process does not end when it is told to; the other one does, and believes it is saved.
STUCK = """
import json, os, signal, sys
if "stuck" not in sys.argv:
    sys.exit()
rank, folder = os.environ["RANK"], os.environ["TRAINER_FAILURES"]
def stop(*_):
    if rank == "1":
        word = {"time": 1.0, "rank": 1, "message": "after step 5, which is saved", "status": 1}
        with open(f"{folder}/1.json", "w") as file:
            json.dump(word, file)
        os._exit(1)
signal.signal(signal.SIGTERM, stop)
open(rank, "w").close()
while True:
    signal.pause()
"""
LAUNCH = """
import os, signal, threading, time
from torch.distributed.launcher.api import LaunchConfig
from trainer import launch
from trainer.remote.folder import PATIENCE_SECONDS
flags = ["--standalone", "--nproc_per_node=2"]
launch.launch(flags, ["done"])
assert LaunchConfig(1, 1, 1).shutdown_timeout > 2 * PATIENCE_SECONDS
os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "1"
def stop():
    while not (os.path.exists("0") and os.path.exists("1")):
        time.sleep(0.01)
    # torchrun forgets processes that it has started, but not noted yet.
    time.sleep(2)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=stop, daemon=True).start()
try:
    launch.launch(flags, ["stuck"])
except Exception as error:
    print(error)
"""


def test_the_first_process_has_time_to_end_and_nobody_speaks_for_it(tmp_path):
    (tmp_path / "trainer.py").write_text(STUCK)
    # Here the real trainer, in what it starts the one above.
    code = f"import sys; sys.path[0] = {str(ROOT)!r}\n{LAUNCH}"

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == "stopped by SIGTERM; the same command goes on\n"


def test_a_process_that_was_killed_is_named(dataset, tmp_path):
    run = tmp_path / "run"
    process = two_in_training(dataset, run)
    (child,) = (
        child
        for child in psutil.Process(process.pid).children()
        if child.environ().get("RANK") == "1"
    )
    child.kill()
    _, errors = process.communicate(timeout=100)

    assert process.returncode == 1
    lines = without_progress(errors)
    assert len(lines) == 1
    assert lines[0].startswith("error: process 1: ended by SIGKILL")


@pytest.mark.skipif(sys.platform != "linux", reason="nothing tells a process that its parent ended")
def test_processes_save_and_end_when_the_one_that_started_them_is_killed(dataset, tmp_path):
    run = tmp_path / "run"
    process = two_in_training(dataset, run)
    process.kill()
    # Ends when the last process closes its standard error.
    _, errors = process.communicate(timeout=100)

    assert "error: " not in errors
    assert last_state(run)["step"] == log_of(run, "train")[-1]["step"]
    assert not (run / "metrics").exists()


def failure(time: float, rank: int, message: str, status: int = 1) -> Failure:
    return Failure(time, rank, message, status)


@pytest.mark.parametrize(
    ("said", "ended", "expected"),
    [
        # What one says after the other is what came of it.
        ([failure(2, 0, "lost 1"), failure(1, 1, "bad")], [failure(0, 1, "x")], "process 1: bad"),
        ([failure(1, 0, "bad"), failure(2, 1, "lost 0")], [], "bad"),
        # Both say the same.
        ([failure(2, 0, "bad"), failure(1, 1, "bad")], [], "bad"),
        ([failure(2, 0, "lost 1")], [failure(1, 1, "ended by SIGKILL")], "process 1: ended by SIG"),
        # torchrun ended it, after the failure or before it was ready.
        ([failure(2, 1, "bad")], [failure(1, 0, "ended by SIGTERM")], "process 1: bad"),
        ([failure(2, 1, "bad")], [failure(33, 0, "ended by SIGKILL")], "process 1: bad"),
        ([], [failure(2, 1, "ended by SIGTERM")], "process 1: ended by SIGTERM"),
    ],
)
def test_of_several_failures_the_first_is_said(said, ended, expected):
    assert str(first_error(said, ended)).startswith(expected)


def test_the_first_failure_gives_the_status():
    failures = [failure(1, 0, "wrong", 2), failure(2, 1, "lost 0")]

    assert isinstance(first_error(failures, []), UsageError)
    assert not isinstance(first_error(failures[1:], []), UsageError)


# --- The container --------------------------------------------------------------------------------


def test_the_container_runs_the_command_line_as_nobody_in_particular():
    lines = (ROOT / "Dockerfile.trainer").read_text().splitlines()

    assert any(re.match(r"FROM python:3\.11[.\d]*-slim", line) for line in lines)
    assert 'ENTRYPOINT ["python", "-m", "trainer"]' in lines
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert users[-1] not in ("root", "0")
    assert any("--constraint constraints.txt '.[trainer]'" in line for line in lines)
    # What is copied exists, and nothing of the pipeline is among it.
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    assert not re.search("beam", " ".join(copied))
