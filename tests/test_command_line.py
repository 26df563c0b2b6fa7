"""What a user sees: help, exit statuses, and one clear line for what went wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from beam_pipeline.__main__ import COMMANDS, main
from beam_pipeline.sources import SourceError, parse_column_names
from beam_pipeline.sources.parquet import ParquetSource
from beam_pipeline.table_timing import resolve_sfreq
from tests import tables


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tables.write(tables.make_table(), tmp_path / "table.parquet")


def exit_status(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.mark.parametrize("command", ["preprocess", "plan", "audit", "verify", "sample"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status([command, "--help"]) == 0
    assert "usage: python -m beam_pipeline" in capsys.readouterr().out


def test_no_command_is_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("command", ["plan", "preprocess", "audit", "folds"])
def test_a_mistyped_flag_is_said_before_one_that_is_missing(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status([command, "--inputt", "x"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {command} has no --inputt (did you mean --input?); see ")
    assert len(error.splitlines()) == 1


def test_wrong_usage_is_status_2_and_suggests_the_near_miss(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["preprocess", "--input", str(source), "--output", str(tmp_path / "out")]
    assert exit_status([*command, "--normalisation", "global"]) == 2
    error = capsys.readouterr().err
    assert "did you mean --normalization?" in error
    assert len(error.splitlines()) == 1
    assert exit_status([*command, "--direct_num_worker", "2"]) == 2
    assert "did you mean --direct_num_workers?" in capsys.readouterr().err
    assert exit_status([*command, "--baseline", "1,2,3"]) == 2
    assert exit_status([*command, "--method", "wavelet"]) == 2
    assert exit_status(["preprocess"]) == 2
    capsys.readouterr()
    assert exit_status([*command, "--region"]) == 2
    error = capsys.readouterr().err
    assert error == (
        "error: argument --region: expected one argument; see python -m beam_pipeline preprocess "
        "--help\n"
    )
    assert exit_status(["--verbose", *command]) == 2
    assert "flags come after the command: preprocess --verbose;" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["verfy", "out"], " (did you mean verify?)"),
        (["--verbose", "preproces", "--output", "sample"], " (did you mean preprocess?)"),
        (["frobnicate", "verify"], ""),
    ],
)
def test_an_unknown_command_suggests_the_near_miss(
    capsys: pytest.CaptureFixture[str], arguments: list[str], hint: str
) -> None:
    assert exit_status(arguments) == 2
    name = next(word for word in arguments if word[0] != "-")
    assert capsys.readouterr().err == (
        f"error: there is no command {name!r}{hint}: preprocess, plan, audit, folds, verify, "
        "sample\n"
    )


def _error(arguments: list[str], capsys: pytest.CaptureFixture[str], status: int = 1) -> str:
    assert exit_status(arguments) == status
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    lines = captured.err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    return lines[-1]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--tmin", "1", "--tmax", "0"], "--tmin"),
        (["--noverlap", "96"], "--noverlap"),
        (["--baseline", "0.0,0.0"], "empty"),
        (["--baseline", "0.0,0.001"], "empty"),
        (["--window", "nonesuch"], "--window"),
        (["--onset", "0", "--baseline", "-0.5,0.0"], "empty"),
        (["--onset", "nan"], "--onset"),
        (["--onset", "inf"], "--onset"),
        (["--sfreq", "0"], "--sfreq"),
        (["--fmax", "200"], "--fmax"),
        (["--split_ratios", "0.7,0.2,0.2"], "split ratios"),
        (["--split_ratios", "0,0.5,0.5"], "split ratios"),
        (["--classes", "WT"], "--classes"),
        (["--classes", "WT,FMR1,WT"], "--classes"),
        (["--gain_correction", "session", "--baseline_mode", "ratio"], "--baseline_mode trace"),
        (["--runner", "NoSuchRunner"], "NoSuchRunner"),
    ],
)
def test_options_that_make_no_sense_are_one_line_and_status_2(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    expected: str,
) -> None:
    command = ["preprocess", "--input", str(source), "--output", str(tmp_path / "out")]
    assert expected in _error([*command, *tables.FLAGS, *flags], capsys, status=2)
    assert not (tmp_path / "out" / "dataset.json").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--columns", "trace=lfp"], "no column 'lfp'"),
        (["--splits", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_options_that_do_not_fit_the_files_are_one_line(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    expected: str,
) -> None:
    command = ["preprocess", "--input", str(source), "--output", str(tmp_path / "out")]
    assert expected in _error([*command, *tables.FLAGS, *flags], capsys)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_unknown_rate_and_onset_are_asked_for(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["preprocess", "--input", str(source), "--output", str(tmp_path / "out")]
    command += [*("--tmin", "-1", "--tmax", "1.5"), *("--baseline", "-1,0")]
    assert "pass --sfreq HZ" in _error([*command, "--onset", "1"], capsys)
    assert "pass --onset SECONDS" in _error([*command, "--sfreq", "250"], capsys)


def _with_column(folder: Path, name: str, values: pa.Array) -> Path:
    table = tables.make_table().append_column(name, values)
    return tables.write(table, folder / "timed.parquet")


def test_an_onset_column_may_leave_no_room_for_the_baseline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _with_column(tmp_path, "onset", pa.array([0.0, 0.5] * 80))
    command = ["plan", "--input", str(source), *tables.FLAGS]
    assert "the baseline -1 to 0 s is empty: the onset is 0.5 s" in _error(command, capsys)
    # Rows that state no onset take the flag's, which leaves room.
    source = _with_column(tmp_path, "onset", pa.array([0.0, None] * 80))
    command = ["plan", "--input", str(source), *tables.FLAGS, "--max_reject_fraction", "1"]
    assert exit_status(command) == 0


def test_an_onset_column_without_a_number_is_no_onset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _with_column(tmp_path, "onset", pa.array([None, np.nan] * 80, pa.float64()))
    command = ["plan", "--input", str(source), *tables.FLAGS]
    onset = command.index("--onset")
    assert "pass --onset" in _error(command[:onset] + command[onset + 2 :], capsys)


def test_several_rates_ask_for_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tables.make_table()
    rates = pa.array([250.0, 500.0] * (table.num_rows // 2))
    source = tables.write(table.append_column("sfreq", rates), tmp_path / "t.parquet")
    command = ["preprocess", "--input", str(source), "--output", str(tmp_path / "out")]
    assert "250, 500 Hz" in _error([*command, "--onset", "1"], capsys)


def test_one_rate_in_two_precisions_is_one_rate(tmp_path: Path) -> None:
    names = ["--columns", "sfreq=rate"]
    rate = [173.61, float(np.float32(173.61)), np.nan, np.inf, None, 0.0, -1.0, 173.61]
    source = _with_column(tmp_path, "rate", pa.array(rate * 20, pa.float64()))
    found = ParquetSource(str(source), parse_column_names(names[1]))
    assert resolve_sfreq(found, None) == 173.61
    rates = pa.array([173.61, 173.62] * 80, pa.float64())
    found = ParquetSource(str(_with_column(tmp_path, "sfreq", rates)))
    with pytest.raises(SourceError, match=r"173\.61, 173\.62 Hz"):
        resolve_sfreq(found, None)


def test_input_that_is_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes = tmp_path / "notes.parquet"
    notes.write_text("not a table")
    out = ["--output", str(tmp_path / "out"), *tables.FLAGS]
    for name, expected in [(notes, "not a readable Parquet file"), (tmp_path / "x", "no such")]:
        assert expected in _error(["preprocess", "--input", str(name), *out], capsys)


def test_plan_prints_the_splits_and_writes_nothing(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert main(["plan", "--input", str(source), *tables.FLAGS]) == 0
    out = capsys.readouterr().out
    assert "160 rows" in out
    assert "49 x 34" in out
    assert " min with 1 n2-standard-4 worker, " in out
    for split, trials in (("train", 80), ("val", 40), ("test", 40)):
        assert any(split in line and f" {trials} " in line for line in out.splitlines())
    assert sorted(tmp_path.rglob("*")) == before


def test_plan_leaves_out_sessions_that_would_be_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The splits are those of a table without these rows."""
    table = tables.make_table(sessions=22)
    condition, subject = table["condition"].to_pylist(), table["subject"].to_pylist()
    condition[0] = "FMR1"  # A session with two conditions,
    subject[25] = 99  # one with two subjects,
    condition[40:50] = ["KO"] * 10  # one of an unknown class,
    condition[60] = "KO"  # one partly of an unknown class,
    subject[80] = None  # and one with a row that lacks its subject.
    places = {name: table.column_names.index(name) for name in ("condition", "subject")}
    broken = table.set_column(places["condition"], "condition", pa.array(condition))
    broken = broken.set_column(places["subject"], "subject", pa.array(subject))
    unused = [*range(10), *range(20, 30), *range(40, 50), *range(60, 70), 80]

    def plan(table: pa.Table, name: str) -> tuple[list[str], list[list[str]]]:
        path = tables.write(table, tmp_path / name)
        command = ["plan", "--input", str(path), *tables.FLAGS, "--classes", "WT,FMR1"]
        assert main(command) == 0
        lines = capsys.readouterr().out.splitlines()
        rows = [line.split() for line in lines]
        return lines, [row for row in rows if {"train", "val", "test"} & set(row)]

    lines, splits = plan(broken, "broken.parquet")
    sound = broken.take(np.setdiff1d(np.arange(220), unused))
    assert splits == plan(sound, "sound.parquet")[1]
    assert len(splits) == 3
    line = next(line for line in lines if line.startswith("Sessions that would be"))
    assert "s.0/a b (conditions FMR1, WT)" in line
    assert "s.2/a b (subjects 1, 99)" in line
    assert "s.4/a b (unknown condition KO)" in line
    assert "s.6/a b (conditions FMR1, KO)" in line
    assert "s.8/a b" not in line


def test_plan_says_that_rows_which_would_be_rejected_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tables.make_table()
    assert main(["plan", "--input", str(tables.write(table, tmp_path / "a")), *tables.FLAGS]) == 0
    assert "still counted" not in capsys.readouterr().out
    table = tables.replace_trace(table, 0, [0.0] * tables.N_SAMPLES)
    assert main(["plan", "--input", str(tables.write(table, tmp_path / "b")), *tables.FLAGS]) == 0
    out = capsys.readouterr().out
    assert "Rows that would be rejected, like 1 of the sample, are still counted here" in out


def test_plan_says_what_a_run_costs_where_no_split_is_possible(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tables.write(tables.make_table(sessions=4), tmp_path / "t.parquet")
    assert main(["plan", "--input", str(source), *tables.FLAGS]) == 1
    captured = capsys.readouterr()
    assert "Expected here: " in captured.out
    assert captured.err.startswith("error: no split gives every class")


def test_a_failing_worker_is_one_line(source: Path, tmp_path: Path) -> None:
    """A full disk, say, in a worker process: no traceback, no manifest, no hanging."""
    command = [
        *(sys.executable, "-m", "beam_pipeline", "preprocess", "--input", str(source)),
        *("--output", str(tmp_path / "out"), *tables.FLAGS, "--direct_num_workers", "2"),
    ]
    limited = ["prlimit", "--fsize=100000", *command]
    result = subprocess.run(limited, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "File too large" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_plan_fails_where_the_run_would(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*tables.FLAGS, "--tmax", "1.6"]
    assert main(["plan", "--input", str(source), *flags]) == 1
    captured = capsys.readouterr()
    assert "too_short" in captured.out
    assert "preprocess would fail" in captured.err
    command = ["preprocess", "--input", str(source), "--output", str(tmp_path / "out")]
    assert main([*command, *flags, *tables.IN_PROCESS]) == 1


@pytest.mark.parametrize("command", ["plan", "folds", "preprocess"])
def test_a_column_of_animals_that_is_not_used_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    table = tables.make_table(sessions=12)
    names = ["animal_id" if name == "subject" else name for name in table.column_names]
    names[names.index("trace")] = "lfp"
    source = tables.write(table.rename_columns(names), tmp_path / "t.parquet")
    flags = ["--input", str(source), "--columns", "trace=lfp"]
    if command == "folds":
        flags += ["--n_folds", "3"]
    else:
        flags += tables.FLAGS
    if command == "preprocess":
        flags += tables.IN_PROCESS
    for number, columns in enumerate(("trace=lfp", "trace=lfp,subject=animal_id")):
        flags[3] = columns
        output = [] if command == "plan" else ["--output", str(tmp_path / f"out-{number}")]
        assert main([command, *flags, *output]) == 0
        noted = "pass --columns trace=lfp,subject=animal_id if" in capsys.readouterr().err
        assert noted == ("animal_id" not in columns)


def test_a_flag_of_another_command_names_the_command(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(["audit", "--input", str(source), "--output", "x", "--tmin", "0"]) == 2
    assert "audit has no --tmin;" in capsys.readouterr().err
