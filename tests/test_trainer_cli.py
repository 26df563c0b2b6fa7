"""The commands as a user types them: exit statuses, one line for what went wrong, the script."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from tests import datasets
from tests.runs import ROOT, flags, log_of
from trainer.__main__ import COMMANDS, main


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
        (["train", "--vertex"], 2, "--vertex is not available yet"),
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
        (["evaluate", "{tmp}"], 1, "has no config.yaml: it is no run folder"),
        (["evaluate"], 2, "required: RUN"),
        (["evaluate", "{tmp}", "--split", "all"], 2, "invalid choice: 'all'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(dataset, tmp_path, capsys, arguments, status, expected):
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
        "rank = (os.environ.get('RANK', ''), os.environ.get('WORLD_SIZE', ''))\n"
        # In one piece: two processes may write at the same time.
        "os.write(1, f'{[os.getcwd(), *rank, *sys.argv[1:]]}\\n'.encode())\n"
        "sys.exit(int(os.environ.get('STATUS', '0')))\n"
    )
    return root


@pytest.mark.parametrize("status", [0, 1, 2])
def test_the_script_passes_flags_folder_and_status_through(checkout, tmp_path, status):
    words = ["--data", "a b", "--optim.lr=1e-3", "", "$HOME *"]

    done = run_training(checkout / "run_training.sh", *words, cwd=tmp_path, STATUS=str(status))

    assert done.returncode == status
    assert ast.literal_eval(done.stdout) == [str(tmp_path), "", "", "train", *words]


def test_the_script_without_flags_trains_on_the_dataset_of_its_checkout(checkout, tmp_path):
    done = run_training(checkout / "run_training.sh", cwd=tmp_path)

    expected = ["train", "--data", "out/dataset", "--output", "out/run"]
    assert ast.literal_eval(done.stdout) == [str(checkout), "", "", *expected]


def test_the_script_starts_as_many_processes_as_it_is_told(checkout, tmp_path):
    done = run_training(checkout / "run_training.sh", "--data", "a b", cwd=tmp_path, NPROC="2")

    assert done.returncode == 0, done.stderr
    calls = sorted(ast.literal_eval(line) for line in done.stdout.splitlines())
    assert calls == [[str(tmp_path), rank, "2", "train", "--data", "a b"] for rank in ("0", "1")]


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


# --- The container --------------------------------------------------------------------------------


def test_the_container_runs_the_command_line_as_nobody_in_particular():
    lines = (ROOT / "Dockerfile.trainer").read_text().splitlines()

    assert "FROM python:3.11-slim" in lines
    assert 'ENTRYPOINT ["python", "-m", "trainer"]' in lines
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert users[-1] not in ("root", "0")
    assert any("--constraint constraints.txt '.[trainer]'" in line for line in lines)
    # What is copied exists, and nothing of the pipeline is among it.
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    assert not re.search("beam", " ".join(copied))
