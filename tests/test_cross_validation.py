"""Folds: every animal is tested once, by a model that never saw it, and counts once."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import re
import shlex
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import softmax
from sklearn.metrics import accuracy_score, roc_auc_score

from beam_pipeline.__main__ import main as pipeline_main
from beam_pipeline.splits import SessionCount, SplitError, assign_folds
from tests import datasets, runs, tables
from tests.pages import read_page
from trainer.__main__ import main as trainer_main
from trainer.baselines.fitting import TITLES
from trainer.config import EvaluationConfig
from trainer.data.dataset_folder import open_dataset
from trainer.evaluation.levels import LEVELS
from trainer.evaluation.predictions import read_predictions, write_predictions
from trainer.evaluation.results import paired_difference
from trainer.pooling import command as pool_command
from trainer.pooling.coverage import HeldSession, read_sessions, unpredicted

N_FOLDS = 3
SPECTROGRAM = "--tmin 0 --tmax 0.5 --nperseg 64 --noverlap 48 --n_freqs 16"

SESSIONS = [
    SessionCount(f"s{i}", f"m{i // 2}", "KO" if i // 2 % 3 == 0 else "WT", 40 + 5 * i)
    for i in range(36)
]


pytestmark = pytest.mark.usefixtures("one_thread")


# ---- folds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_folds", [3, 5, 6])
def test_every_session_is_in_test_once_and_in_val_once(n_folds):
    folds = assign_folds(SESSIONS, n_folds, seed=1)

    assert len(folds) == n_folds
    for session in SESSIONS:
        roles = Counter(fold[session.session] for fold in folds)
        assert roles == {"test": 1, "val": 1, "train": n_folds - 2}


def test_folds_hold_whole_animals_and_like_shares_of_each_class():
    folds = assign_folds(SESSIONS, 3, seed=0)

    subject_of = {session.session: session.subject for session in SESSIONS}
    for fold in folds:
        splits_of = {(subject_of[session], split) for session, split in fold.items()}
        assert len(splits_of) == len(set(subject_of.values()))
        for condition in ("KO", "WT"):
            trials: Counter[str] = Counter()
            for session in SESSIONS:
                if session.condition == condition:
                    trials[fold[session.session]] += session.n_trials
            assert trials["test"] / trials.total() == pytest.approx(1 / 3, abs=0.05)


def test_folds_depend_on_the_seed_and_not_on_the_order_of_the_sessions():
    assert assign_folds(SESSIONS, 3, seed=4) == assign_folds(SESSIONS[::-1], 3, seed=4)
    assert assign_folds(SESSIONS, 3, seed=4) != assign_folds(SESSIONS, 3, seed=5)


def test_more_folds_than_animals_of_a_class_are_refused_with_the_counts():
    with pytest.raises(SplitError, match=r"7 animals of each .* but 'KO' has 6 animals;") as caught:
        assign_folds(SESSIONS, 7)
    assert "--n_folds" in str(caught.value)


def test_two_folds_are_refused(tmp_path, capsys):
    table = tables.write(tables.make_table(), tmp_path / "t.parquet")
    command = ["folds", "--input", str(table), "--n_folds", "2", "--output", str(tmp_path / "f")]

    assert pipeline_main(command) == 2

    assert "--n_folds 2: train, val and test need 3" in capsys.readouterr().err
    assert not (tmp_path / "f").exists()


def test_other_folds_are_not_written_over(tmp_path, capsys):
    table = tables.write(tables.make_table(sessions=24), tmp_path / "t.parquet")
    command = ["folds", "--input", str(table), "--output", str(tmp_path / "f"), "--n_folds"]
    assert pipeline_main([*command, "4"]) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "f").iterdir()}
    # The same again is no harm.
    assert pipeline_main([*command, "4"]) == 0
    capsys.readouterr()

    for other in (["3"], ["5"], ["4", "--split_seed", "1"]):
        assert pipeline_main([*command, *other]) == 1
        assert "f holds other folds" in capsys.readouterr().err

    assert {path.name: path.read_bytes() for path in (tmp_path / "f").iterdir()} == before


# ---- from the table to the pooled result ---------------------------------------------------------


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    """A table, and a run on each of its folds."""
    folder = tmp_path_factory.mktemp("folds")
    table = folder / "table"
    sample = f"sample --output {table} --sessions 12 --trials 24 --sfreq 250 --effect 2"
    assert pipeline_main(sample.split()) == 0
    cut = f"folds --input {table} --n_folds {N_FOLDS} --output {folder}"
    assert pipeline_main(cut.split()) == 0
    for k in range(1, N_FOLDS + 1):
        dataset, run = folder / f"dataset-{k}", folder / f"run-{k}"
        flags = f"preprocess --input {table} --output {dataset} --splits {folder}/fold-{k}.csv"
        assert pipeline_main([*flags.split(), *SPECTROGRAM.split(), *tables.IN_PROCESS]) == 0
        patches = {"model__patch_freq": 8, "model__patch_time": 6}
        assert trainer_main(runs.flags(dataset, run, train__epochs=1, **patches)) == 0
        assert trainer_main(baselines_command(dataset, run)) == 0
    return folder


def baselines_command(dataset: Path, output: Path) -> list[str]:
    flags = ["--output", str(output), "--sequence.n_trials", str(runs.N_TRIALS)]
    return ["baselines", str(dataset), *flags]


@pytest.fixture(scope="module")
def pooled(folds, tmp_path_factory):
    """All folds together, and what `pool` and `report` say of them."""
    output = tmp_path_factory.mktemp("pooled") / "all"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert trainer_main(["pool", *run_folders(folds), "--output", str(output)]) == 0
        assert trainer_main(["report", str(output)]) == 0
    return output, printed.getvalue()


def run_folders(folder: Path) -> list[str]:
    return [str(folder / f"run-{k}") for k in range(1, N_FOLDS + 1)]


def test_the_pooled_result_holds_every_animal_of_the_table_once(folds, tmp_path, capsys):
    output = tmp_path / "pooled"

    assert trainer_main(["pool", *run_folders(folds), "--output", str(output)]) == 0

    files = (folds / "table").glob("*.parquet")
    sessions = {
        name for file in files for name in pq.ParquetFile(file).read()["session"].to_pylist()
    }
    with (folds / "fold-1.csv").open() as file:
        assert {row["session"] for row in csv.DictReader(file)} <= sessions
    pooled = pq.ParquetFile(output / "predictions/test.parquet").read()
    parts = [pq.ParquetFile(f"{run}/predictions/test.parquet").read() for run in run_folders(folds)]
    assert set(pooled["session"].to_pylist()) == sessions
    assert len(pooled) == sum(map(len, parts))
    label = np.concatenate([part["label"].to_numpy() for part in parts])
    logits = np.concatenate([np.stack(part["logits"].to_pylist()) for part in parts])
    metrics = json.loads((output / "metrics/test.json").read_text())
    assert metrics["sequence"]["accuracy"]["value"] == pytest.approx(
        accuracy_score(label, logits.argmax(1))
    )
    assert metrics["sequence"]["auc"]["value"] == pytest.approx(
        roc_auc_score(label, softmax(logits, axis=1)[:, 1])
    )
    assert metrics["groups"]["n"] == len(set(pooled["subject"].to_pylist()))
    printed = capsys.readouterr().out
    assert all(run in printed for run in run_folders(folds))


def test_an_animal_that_two_runs_test_is_refused(folds, tmp_path, capsys):
    first = run_folders(folds)[0]

    assert trainer_main(["pool", first, first, "--output", str(tmp_path / "pooled")]) == 2

    assert "is in test in both" in capsys.readouterr().err
    assert not (tmp_path / "pooled").exists()


def test_the_result_is_not_written_over_a_run_or_a_dataset(folds, tmp_path, capsys, monkeypatch):
    given = run_folders(folds)
    other = shutil.copytree(given[2], tmp_path / "other")
    monkeypatch.chdir(folds)
    before = {path: path.read_bytes() for path in folds.rglob("test.*")}
    for output, expected in {
        "run-1/": "is one of the runs",
        str(other): "is a run",
        "dataset-1": "is a dataset",
    }.items():
        assert trainer_main(["pool", *given[:2], "--output", output]) == 2
        assert f"--output {output} {expected}" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folds.rglob("test.*")} == before
    assert not (folds / "dataset-1/metrics").exists()


def test_baselines_that_stand_alone_are_not_written_over(folds, tmp_path, capsys):
    lone = tmp_path / "lone"
    names = ("baselines.json", "session_probe.json")
    for name in names:
        lone.mkdir(exist_ok=True)
        shutil.copy(folds / "run-1" / name, lone)
    assert trainer_main(["pool", *run_folders(folds), "--output", str(lone)]) == 2
    assert f"{lone} holds baselines of another dataset" in capsys.readouterr().err
    assert all(
        (lone / name).read_bytes() == (folds / "run-1" / name).read_bytes() for name in names
    )


def test_what_is_cut_off_while_it_is_written_has_no_metrics_and_is_made_again(
    folds, pooled, tmp_path, monkeypatch
):
    again = shutil.copytree(pooled[0], tmp_path / "again")
    command = ["pool", *run_folders(folds), "--output", str(again)]

    def no_space(*_):
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(pool_command, "write_predictions", no_space)
        assert trainer_main(command) == 1
    assert not (again / "metrics/test.json").exists()
    assert trainer_main(command) == 0
    for name in ("metrics/test.json", "baselines.json", "predictions/test.parquet"):
        assert (again / name).read_bytes() == (pooled[0] / name).read_bytes()


def test_one_run_is_no_cross_validation(folds, tmp_path, capsys):
    assert trainer_main(["pool", run_folders(folds)[0], "--output", str(tmp_path / "p")]) == 2
    assert "two folds or more" in capsys.readouterr().err


def test_a_pooled_folder_is_no_fold(folds, pooled, tmp_path, capsys):
    command = ["pool", run_folders(folds)[0], str(pooled[0]), "--output", str(tmp_path / "p")]
    assert trainer_main(command) == 1
    assert f"{pooled[0]} has no config.yaml: it is no run folder" in capsys.readouterr().err


def test_folds_that_were_not_preprocessed_alike_are_refused(folds, tmp_path, capsys):
    dataset = shutil.copytree(folds / "dataset-1", tmp_path / "dataset")
    datasets.edit_manifest(dataset, lambda content: content["options"].update(log_floor=1e-9))
    run = shutil.copytree(run_folders(folds)[0], tmp_path / "run")
    metrics = json.loads((run / "metrics/test.json").read_text())
    metrics["dataset_fingerprint"] = open_dataset(str(dataset)).fingerprint
    (run / "metrics/test.json").write_text(json.dumps(metrics))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(folds / "dataset-1"), str(dataset)))

    command = ["pool", *run_folders(folds)[1:], str(run), "--output", str(tmp_path / "p")]
    assert trainer_main(command) == 2

    error = capsys.readouterr().err
    assert f"the dataset of {run} was made with --log_floor 1e-09, that of" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "p").exists()


def test_a_run_that_was_not_evaluated_is_named(folds, tmp_path, capsys):
    runs_given = [*run_folders(folds)[:1], str(tmp_path / "nothing")]

    assert trainer_main(["pool", *runs_given, "--output", str(tmp_path / "p")]) == 1

    error = capsys.readouterr().err
    assert f"{tmp_path / 'nothing'} holds no metrics/test.json" in error


# ---- the verdict ---------------------------------------------------------------------------------


def auc_of_subjects(path: Path) -> float:
    """By scikit-learn, of means over sequences and then over the sessions of an animal."""
    predictions, _ = read_predictions(path)
    table = pa.table(
        {
            "subject": predictions.subject,
            "session": predictions.session,
            "label": predictions.label,
            "p": softmax(predictions.logits, axis=1)[:, 1],
        }
    )
    sessions = table.group_by(["subject", "session", "label"]).aggregate([("p", "mean")])
    subjects = sessions.group_by(["subject", "label"]).aggregate([("p_mean", "mean")])
    return float(roc_auc_score(subjects["label"], subjects["p_mean_mean"]))


def test_the_folds_baselines_are_pooled_on_the_very_sequences_of_the_model(folds, pooled):
    output, _ = pooled
    contents = json.loads((output / "baselines.json").read_text())
    ours, classes = read_predictions(output / "predictions/test.parquet")
    assert list(contents) == list(TITLES)
    for name, content in contents.items():
        path = f"predictions/{name}.parquet"
        found, named = read_predictions(output / path)
        parts = [read_predictions(Path(run) / path)[0] for run in run_folders(folds)]
        assert (found.ids(), named) == (ours.ids(), classes)
        np.testing.assert_array_equal(found.logits, np.concatenate([p.logits for p in parts]))
        assert content["subject"]["auc"]["value"] == pytest.approx(auc_of_subjects(output / path))


def test_the_verdict_compares_the_model_with_the_strongest_baseline(pooled):
    output, printed = pooled
    aucs = {name: auc_of_subjects(output / f"predictions/{name}.parquet") for name in TITLES}
    ours, best = (
        auc_of_subjects(output / "predictions/test.parquet"),
        max(aucs, key=aucs.__getitem__),
    )
    model, rival = (
        read_predictions(output / f"predictions/{name}.parquet")[0] for name in ("test", best)
    )
    paired = paired_difference(model, rival, EvaluationConfig(n_bootstrap=50), 0)["subject"]["auc"]
    # The folds share training animals: for three, the half-widths are multiplied by sqrt(1 + 3/2).
    for bound in ("low", "high"):
        wider = paired["value"] + 2.5**0.5 * (paired[bound] - paired["value"])
        paired[bound] = min(1.0, max(-1.0, wider))
    assert paired["value"] == pytest.approx(ours - aucs[best])
    (line,) = [line for line in printed.splitlines() if line.startswith("Verdict: ")]
    if ours <= aucs[best]:
        assert "The ViT does not beat the baselines" in line
    elif paired["low"] <= 0:
        assert "The ViT is not shown to beat the baselines" in line
    assert f"is {ours:.2f} [" in line
    assert f"{TITLES[best]}, reaches {aucs[best]:.2f} [" in line
    assert f"{paired['value']:+.2f} [{paired['low']:+.2f}, {paired['high']:+.2f}]" in line


def test_the_page_has_the_verdict_first_and_each_fold(folds, pooled):
    output, printed = pooled
    page = read_page(output / "report.html")
    (line,) = [line for line in printed.splitlines() if line.startswith("Verdict: ")]
    title = line.removeprefix("Verdict: ").partition(".")[0]
    findings = [a["class"] for tag, a in page.elements if "finding" in a.get("class", "")]
    assert "headline" in findings[0]
    assert page.text.index(title) < page.text.index("Beside the baselines")
    # That folds depend on each other stands beside what is claimed.
    said = "1.58 times as wide as independent subjects would make them"
    assert (printed.count(said), " ".join(page.text.split()).count(said)) == (1, 1)
    rows = page.table("Run")
    assert set(rows) == set(run_folders(folds))
    for run, row in rows.items():
        own = Path(run) / "predictions/test.parquet"
        held, _ = read_predictions(own)
        assert row["subjects"] == f"{len(set(held.subject))}"
        assert row["AUC by subject"] == f"{auc_of_subjects(own):.3f}"
        assert row["sequences"] == f"{len(held)}"
    shown = next(t for t in page.tables if t[1][0] == "ViT" and "subjects" in t[0][0])
    # Labels that are permuted after the training say nothing of folds.
    assert {row[shown[0].index("p")] for row in shown[1:]} == {"–"}  # noqa: RUF001
    metrics = json.loads((output / "metrics/test.json").read_text())
    contents = json.loads((output / "baselines.json").read_text())
    for content in (metrics, *contents.values()):
        assert {content[level]["p_value"] for level in LEVELS} == {None}
        assert content["across_folds"]["half_width_factor"] == pytest.approx(2.5**0.5)
    assert {row[0] for row in shown[1:]} == {"ViT", *TITLES.values()}
    drawn = {a["aria-label"].split()[0] for tag, a in page.elements if tag == "svg"}
    assert {"ROC", "Accuracy", "Mean", "AUC"} <= drawn
    assert page.table("subjects")
    assert "No fold predicted" not in page.text
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe"}


def test_a_page_of_all_folds_and_their_runs_says_first_what_they_say_together(folds, pooled):
    output, _ = pooled
    one, page = run_folders(folds)[0], output / "both.html"
    assert trainer_main(["report", one, str(output), "--output", str(page)]) == 0
    text = read_page(page).text
    assert text.index("Fold by fold") < text.index("One of the folds")
    # Of one fold alone nothing is claimed on top.
    classes = [a["class"] for _, a in read_page(page).elements if "headline" in a.get("class", "")]
    assert len(classes) == 1
    assert "run-1-one-trial" not in text


def test_a_run_does_not_write_over_what_was_pooled(folds, pooled, tmp_path, capsys):
    folder = tmp_path / "pooled"
    shutil.copytree(pooled[0], folder)
    before = (folder / "metrics/test.json").read_bytes()

    assert trainer_main(runs.flags(folds / "dataset-1", folder, train__epochs=1)) == 2

    assert "give the run a folder of its own" in capsys.readouterr().err
    assert (folder / "metrics/test.json").read_bytes() == before
    assert not (folder / "checkpoints").exists()


def test_the_same_pooling_gives_the_same_bytes_and_others_are_not_written_over(
    folds, pooled, tmp_path, capsys
):
    output, _ = pooled
    again = shutil.copytree(output, tmp_path / "again")
    before = {path: path.read_bytes() for path in again.rglob("*.*")}
    assert trainer_main(["pool", *run_folders(folds), "--output", str(again)]) == 0
    assert {path: path.read_bytes() for path in again.rglob("*.*")} == before

    capsys.readouterr()
    assert trainer_main(["pool", *run_folders(folds)[:2], "--output", str(again)]) == 2
    assert f"holds the result of other runs ({run_folders(folds)[2]})" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in again.rglob("*.*")} == before


def test_a_fold_without_baselines_is_named_with_the_command_that_makes_them(
    folds, tmp_path, capsys
):
    given = [shutil.copytree(run, tmp_path / Path(run).name) for run in run_folders(folds)]
    output = tmp_path / "pooled"
    pool = ["pool", *map(str, given), "--output", str(output)]
    assert trainer_main(pool) == 0
    (given[2] / "baselines.json").unlink()
    capsys.readouterr()

    assert trainer_main(pool) == 0

    printed = capsys.readouterr().out
    assert "Verdict: The ViT has not been compared with simple baselines" in printed
    assert f"{given[2]} has no baselines of its sequences. Run: " in printed
    assert not (output / "baselines.json").exists()
    command = printed.partition("Run: python -m trainer ")[2].splitlines()[0]
    assert trainer_main(["report", str(output)]) == 0
    page = " ".join(read_page(output / "report.html").text.split())
    assert command in page
    assert trainer_main(shlex.split(command)) == 0
    assert trainer_main(pool) == 0
    assert "not been compared" not in capsys.readouterr().out.rpartition("Verdict: ")[2]


def test_a_pooled_folder_in_a_bucket_is_the_same(folds, tmp_path, gcs):
    url, local = "gs://lab/runs/all", tmp_path / "local"
    given = [shutil.copytree(run, tmp_path / Path(run).name) for run in run_folders(folds)]
    for output in (url, str(local)):
        assert trainer_main(["pool", *map(str, given), "--output", output]) == 0
    written = {str(path.relative_to(local)): path.read_bytes() for path in local.rglob("*.*")}
    assert gcs.list(url) == written
    assert trainer_main(["report", url]) == 0
    assert b"Fold by fold" in gcs.read(f"{url}/report.html")
    # What does not hold any more is gone there, too.
    (given[0] / "baselines.json").unlink()
    assert trainer_main(["pool", *map(str, given), "--output", url]) == 0
    assert "baselines.json" not in gcs.list(url)


def test_baselines_of_other_sequences_are_not_taken(folds, tmp_path, capsys):
    given = [shutil.copytree(run, tmp_path / Path(run).name) for run in run_folders(folds)]
    (given[0] / "baselines.json").unlink()
    other = baselines_command(folds / "dataset-1", given[0])[:-1]
    assert trainer_main([*other, "3"]) == 0
    output = tmp_path / "pooled"
    assert trainer_main(["pool", *map(str, given), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert f"(those in {given[0]} are made with n_trials 3, not 4" in printed
    assert "--overwrite" in printed.partition("Run: ")[2].splitlines()[0]
    # Where the fitting ones lie elsewhere, they are found.
    elsewhere = ["--baselines", run_folders(folds)[0]]
    assert trainer_main(["pool", *map(str, given), "--output", str(output), *elsewhere]) == 0
    assert "Beside the baselines" in capsys.readouterr().out
    # And the command that makes the result again says where.
    (output / "baselines.json").unlink()
    assert trainer_main(["report", str(output)]) == 0
    page = " ".join(read_page(output / "report.html").text.split())
    again = ["pool", *map(str, given), "--output", str(output), *elsewhere]
    assert f"Pool the runs again. python -m trainer {shlex.join(again)}" in page


# ---- who is no part of it ------------------------------------------------------------------------


def test_sessions_that_no_fold_predicted_are_named_with_the_reason():
    def held(*rows: tuple[str, str | None, str | None]) -> list[HeldSession]:
        return [HeldSession(*row) for row in rows]

    left = unpredicted(
        {
            "one": held(("a", "m1", "test"), ("b", "m1", "test"), ("c", "m2", "train")),
            "two": held(("a", "m1", "train"), ("b", "m1", "train"), ("c", "m2", "val")),
            "three": held(("d", "m3", "test"), ("e", None, None)),
        },
        ["a"],
        n_trials=8,
    )
    reasons = {entry["session"]: entry["reason"] for entry in left["sessions"]}
    assert reasons == {
        "b": "no sequence of 8 trials in one",
        "c": "in test of no fold",
        "d": "no sequence of 8 trials in three",
        "e": "no usable trial",
    }
    # m1 has a session that counts.
    assert left["subjects"] == ["m2", "m3"]


def test_a_session_whose_every_row_was_rejected_is_known(tmp_path):
    table = tables.make_table(sessions=12, trials=6)
    lost = table["session"][0].as_py()
    for row in range(6):
        table = tables.replace_trace(table, row, [float("nan")] * tables.N_SAMPLES)
    path = tables.write(table, tmp_path / "t.parquet")
    command = ["preprocess", "--input", str(path), "--output", str(tmp_path / "d")]
    more = ["--max_reject_fraction", "0.5"]
    assert pipeline_main([*command, *tables.FLAGS, *tables.IN_PROCESS, *more]) == 0
    dataset = open_dataset(str(tmp_path / "d"))
    found = {entry.session: entry.split for entry in read_sessions(dataset)}
    assert set(found) == set(table["session"].to_pylist())
    assert [session for session, split in found.items() if split is None] == [lost]


def test_a_session_without_a_sequence_and_a_fold_left_out_are_warned_of(folds, tmp_path, capsys):
    run = shutil.copytree(run_folders(folds)[0], tmp_path / "run")
    path = run / "predictions/test.parquet"
    predictions, classes = read_predictions(path)
    short = predictions.session[0]
    kept = [row for row, session in enumerate(predictions.session) if session != short]
    write_predictions(path, predictions.take(np.array(kept)), classes)
    third = read_predictions(Path(run_folders(folds)[2]) / "predictions/test.parquet")[0]
    output = tmp_path / "pooled"

    given = [str(run), run_folders(folds)[1]]
    assert trainer_main(["pool", *given, "--output", str(output)]) == 0
    assert trainer_main(["report", str(output)]) == 0

    n_left = 1 + len(set(third.session))
    expected = (
        f"No fold predicted {n_left} sessions, and with them {len(set(third.subject))} animals"
    )
    line = next(line for line in capsys.readouterr().out.splitlines() if expected in line)
    assert line.startswith("Warning: ")
    text = re.sub(r"\s+", " ", read_page(output / "report.html").text)
    for said in (line, text):
        assert f"{short} of {predictions.subject[0]}: no sequence of 4 trials in {run}" in said
        assert all(session in said for session in set(third.session))
        assert "in test of no fold" in said


def test_where_a_dataset_is_gone_it_is_said_that_the_sessions_are_not_known(
    folds, tmp_path, capsys
):
    given = [shutil.copytree(run, tmp_path / Path(run).name) for run in run_folders(folds)]
    config = given[0] / "config.yaml"
    text = config.read_text().replace(str(folds / "dataset-1"), str(tmp_path / "gone"))
    config.write_text(text)
    assert trainer_main(["pool", *map(str, given), "--output", str(tmp_path / "pooled")]) == 0
    printed = capsys.readouterr().out
    assert "Warning: Whether every animal was predicted is not known" in printed
    assert f"{tmp_path / 'gone'} has no dataset.json" in printed
