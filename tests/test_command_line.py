"""What a user sees: help, exit statuses, and one clear line for what went wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from beam_pipeline.__main__ import main
from tests import tables

RECORDINGS = Path(__file__).parents[2] / "shared" / "data"


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


def test_wrong_usage_is_status_2_and_suggests_the_near_miss(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["preprocess", "--input", str(source), "--output", str(tmp_path / "out")]
    assert exit_status([*command, "--normalisation", "global"]) == 2
    assert "did you mean --normalization?" in capsys.readouterr().err
    assert exit_status([*command, "--direct_num_worker", "2"]) == 2
    assert "did you mean --direct_num_workers?" in capsys.readouterr().err
    assert exit_status([*command, "--baseline", "1,2,3"]) == 2
    assert exit_status([*command, "--method", "wavelet"]) == 2
    assert exit_status(["preprocess"]) == 2


def _error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert exit_status(arguments) == 1
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
        (["--onset", "0", "--baseline", "-0.5,0.0"], "empty"),
        (["--sfreq", "0"], "--sfreq"),
        (["--fmax", "200"], "--fmax"),
        (["--gain_correction", "session", "--baseline_mode", "ratio"], "--baseline_mode trace"),
        (["--columns", "trace=lfp"], "no column 'lfp'"),
        (["--splits", "nowhere.csv"], "nowhere.csv"),
        (["--runner", "NoSuchRunner"], "NoSuchRunner"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
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
    assert "pass --sfreq HZ" in _error([*command, "--onset", "1"], capsys)
    assert "pass --onset SECONDS" in _error([*command, "--sfreq", "250"], capsys)


def test_several_rates_ask_for_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tables.make_table()
    rates = pa.array([250.0, 500.0] * (table.num_rows // 2))
    source = tables.write(table.append_column("sfreq", rates), tmp_path / "t.parquet")
    command = ["preprocess", "--input", str(source), "--output", str(tmp_path / "out")]
    assert "250, 500 Hz" in _error([*command, "--onset", "1"], capsys)


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
    for split, trials in (("train", 80), ("val", 40), ("test", 40)):
        assert any(split in line and f" {trials} " in line for line in out.splitlines())
    assert sorted(tmp_path.rglob("*")) == before


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
