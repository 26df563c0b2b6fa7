"""What a person sees: tables of odd names, exit statuses, and one line for what went wrong."""

import json
import os

import pytest

from beam_pipeline import __main__ as commands
from beam_pipeline import console
from beam_pipeline.cpus import n_cpus
from beam_pipeline.errors import UsageError


@pytest.mark.parametrize("name", ["[b]", "[/WT]", "[red]x[/red]", ":smile:", "a\\[b]", "\\", "["])
def test_names_stand_in_a_table_as_they_are(capsys, name):
    console.print_table(f"Title {name}", ["class", name], [(name, 1234), ("x", 5)], name)

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Title {name}"
    assert lines[-1] == name
    header, first = (lines[index].replace("┃", "│").split("│") for index in (2, 4))
    assert header[1].strip() == "class"
    assert header[2].strip() == name
    assert first[1].strip() == name
    assert first[2].strip() == "1,234"


def test_only_columns_of_numbers_are_aligned_to_the_right(capsys):
    console.print_table("", ["left", "right"], [("a", 1), ("bbbb", 1000)])

    lines = capsys.readouterr().out.splitlines()
    assert "│ a    │     1 │" in lines


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_only_processors_that_may_be_used_are_counted():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert n_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert n_cpus() == len(before)


def test_processors_are_counted_where_the_system_knows_no_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert n_cpus() == os.cpu_count()


# --- Exit statuses --------------------------------------------------------------------------------


def status_and_error(arguments, capsys):
    """Return the exit status and what stands on standard error."""
    try:
        status: object = commands.main([str(word) for word in arguments])
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().err.splitlines()


def a_table(folder):
    commands.main(["sample", "--output", str(folder), "--sessions", "2", "--trials", "2"])
    return folder


def foreign_folder(folder):
    folder.mkdir()
    (folder / "index.html").write_text("my page")
    (folder / "traces.parquet").write_text("my table")
    return folder


WRONG_USAGE = {
    "audit": ["--input", "x", "--output", "out", "--sfreq", "0"],
    "verify": ["x", "--workers", "0"],
    "sample": ["--output", "out", "--sessions", "1"],
}
FAILURES = {
    "audit": lambda folder: [
        "--input",
        a_table(folder / "s"),
        "--output",
        foreign_folder(folder / "f"),
    ],
    "verify": lambda folder: [folder],
    "sample": lambda folder: ["--output", foreign_folder(folder / "f")],
}


@pytest.mark.parametrize("command", WRONG_USAGE)
def test_a_value_out_of_range_is_status_2_and_one_line(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    status, lines = status_and_error([command, *WRONG_USAGE[command]], capsys)

    assert status == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: --")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", FAILURES)
def test_a_failure_is_status_1_and_one_line(command, capsys, tmp_path):
    arguments = [command, *FAILURES[command](tmp_path)]
    capsys.readouterr()

    status, lines = status_and_error(arguments, capsys)

    assert status == 1
    assert len(lines) == 1
    assert lines[0].startswith("error: ")


@pytest.mark.parametrize("command", WRONG_USAGE)
def test_verbose_shows_the_traceback_of_every_command(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    status, lines = status_and_error([command, *WRONG_USAGE[command], "--verbose"], capsys)

    assert status == 2
    assert lines[0].startswith("Traceback")
    assert lines[-1].startswith("error: --")


def test_a_damaged_dataset_is_status_1_and_one_line(capsys, tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"format_version": 1}))

    status, lines = status_and_error(["verify", tmp_path], capsys)

    assert status == 1
    assert lines == [f"error: {tmp_path} is damaged: 1 problem"]


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UsageError("--x is odd"), 2, "error: --x is odd"),
        (ValueError("two\nlines"), 1, "error: two lines"),
        (RuntimeError(), 1, "error: RuntimeError"),
        (KeyboardInterrupt(), 1, "error: interrupted; the same command starts again"),
    ],
)
def test_each_exception_has_its_status_and_line(capsys, tmp_path, monkeypatch, error, status, line):
    def fail(*_):
        raise error

    monkeypatch.setattr("beam_pipeline.sample.command.write_sample", fail)

    assert status_and_error(["sample", "--output", tmp_path], capsys) == (status, [line])
