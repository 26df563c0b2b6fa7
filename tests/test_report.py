"""The report: its verdicts, its numbers against scikit-learn, and what a browser gets."""

import argparse
import base64
import importlib
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests import datasets
from tests.pages import Page, read_page
from trainer.__main__ import COMMANDS, main
from trainer.attention.file import MAPS, AttentionMaps, write_maps
from trainer.config import Config, EvaluationConfig, SequenceConfig
from trainer.evaluation.calibration import fit_temperature
from trainer.evaluation.predictions import Predictions, write_predictions
from trainer.evaluation.results import evaluate_predictions
from trainer.options import dump_config, parse_run_options
from trainer.report.finding import Finding, Score, Tone
from trainer.report.verdict import judge, more_trials_finding

CLASSES = ("FMR1", "WT")
HOSTILE = "s<script>alert('x')</script>&\"$\\frac{"
EVALUATION = EvaluationConfig(n_bootstrap=200, n_permutations=500)
FINGERPRINT = "f" * 64


# --- Runs as the other commands write them ----------------------------------------------------


def predict(skill: float, n_trials: int, seed: int, n_subjects: int = 12) -> Predictions:
    """Predictions that are right by `skill` on average, of two sessions a subject."""
    rng = np.random.default_rng(seed)
    of_subject = rng.standard_normal(n_subjects)
    rows = []
    for session in range(2 * n_subjects):
        subject, label = session // 2, session // 2 % 2
        for first in range(0, 25 - n_trials, max(1, n_trials // 2)):
            score = skill * (2 * label - 1) + of_subject[subject] + rng.standard_normal()
            trials = list(range(first, first + n_trials))
            rows.append((f"{HOSTILE}{session:02d}", f"m{subject}", trials, label, [0.0, score]))
    session_, subject_, trials_, label_, logits_ = zip(*rows, strict=True)
    return Predictions(
        session_, subject_, np.array(trials_), np.array(label_), np.array(logits_, np.float64)
    )


def metadata(split: str, n_trials: int) -> dict[str, Any]:
    return {
        "split": split,
        "dataset_fingerprint": FINGERPRINT,
        "git_commit": "0123abcd",
        "checkpoint": {"epoch": 3, "step": 30, "sha256": "ab" * 32},
        "n_trials": n_trials,
        "versions": {"trainer": "0.1.0", "torch": "2.13.0"},
    }


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def start_run(
    folder: Path, n_trials: int = 4, data: str = "no/such dataset", stride: int | None = None
) -> Path:
    """A run whose first epoch is not done."""
    folder.mkdir(parents=True)
    config = Config(sequence=SequenceConfig(n_trials, stride), evaluation=EVALUATION)
    title = f"python -m trainer train --output {shlex.quote(str(folder))}"
    (folder / "config.yaml").write_text(dump_config(config, data, title))
    lines = []
    for step in range(1, 31):
        lines.append({"step": step, "epoch": 1, "split": "train", "loss": 1 / step, "lr": 0.1})
        if step % 10 == 0:
            values = {"loss": 1.0, "auc": None, "accuracy": 0.5, "balanced_accuracy": 0.5}
            lines.append({"step": step, "epoch": step // 10, "split": "val", **values})
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "metrics.jsonl").write_text(f'{text}{{"step": 31, "epo')
    return folder


def evaluate(run: Path, predictions: Predictions) -> Path:
    """Put what `evaluate` writes into a run."""
    temperature = fit_temperature(predictions.logits, predictions.label)
    meta = metadata("test", predictions.trial_nums.shape[1])
    write_predictions(run / "predictions/test.parquet", predictions, CLASSES)
    content = evaluate_predictions(predictions, CLASSES, EVALUATION, 0, temperature, meta)
    write_json(run / "metrics/test.json", content)
    return run


def add_baselines(folder: Path, skills: dict[str, float], n_trials: int = 4, **shape: int) -> Path:
    """Put what `baselines` writes into a folder."""
    contents = {}
    for seed, (name, skill) in enumerate(skills.items(), start=100):
        predictions = predict(skill, n_trials, seed, **shape)
        meta = metadata("test", n_trials) | {"stride": max(1, n_trials // 2), "max_gap": 0}
        meta |= {"title": f"the {name}", "settings": {}}
        contents[name] = evaluate_predictions(predictions, CLASSES, EVALUATION, 0, None, meta)
        write_predictions(folder / f"predictions/{name}.parquet", predictions, CLASSES)
    write_json(folder / "baselines.json", contents)
    write_json(
        folder / "session_probe.json", {"accuracy": 0.93, "chance": 0.05, "n_sessions": 20, "n": 9}
    )
    return folder


def add_attention(run: Path) -> Path:
    rng = np.random.default_rng(0)
    maps = AttentionMaps(
        30,
        CLASSES,
        (HOSTILE, "s2"),
        np.array([0, 1]),
        np.array([5, 5]),
        np.array([1.5, 3.5]),
        np.array([20.0, 60.0]),
        np.linspace(-1, 2, 6),
        {name: rng.random((2, 2, 2, 6), dtype=np.float32) for name in MAPS},
    )
    write_maps(run / "attention/test.npz", maps)
    return run


# --- What a browser makes of the page ---------------------------------------------------------


def make_report(*arguments: object) -> Page:
    assert main(["report", *map(str, arguments)]) == 0
    run = str(arguments[0])
    output = arguments[arguments.index("--output") + 1] if "--output" in arguments else None
    return read_page(Path(str(output or f"{run}/report.html")))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A run that lacks nothing but its dataset, and a one-trial run beside it."""
    base = tmp_path_factory.mktemp("report")
    run = evaluate(start_run(base / "e2"), predict(1.0, 4, seed=1))
    add_attention(add_baselines(run, {"mean_std": 0.3, "pca": 1.5, "majority": 0.0}))
    single = evaluate(start_run(base / "e1", n_trials=1), predict(0.5, 1, seed=2))
    return run, single, make_report(run, single)


# --- Verdicts -------------------------------------------------------------------------------


def content_of(value, low, high, n=20, p_value=0.001, smallest=0.001, notes=(), **more):
    """Metrics as `judge` reads them."""
    auc = {"value": value, "low": low, "high": high}
    return {
        "split": "test",
        "title": "PCA",
        "subject": {"n": n, "auc": auc, "p_value": p_value},
        "groups": {"unit": "subject", "n": n, "per_class": {"FMR1": n // 2, "WT": n // 2}},
        "permutation": {"smallest_p_value": smallest},
        "notes": list(notes),
        **more,
    }


def titles(findings: list[Finding]) -> list[str]:
    return [finding.title for finding in findings]


GOOD = (0.9, 0.8, 0.97)


@pytest.mark.parametrize(
    ("model", "baseline", "difference", "tone", "title"),
    [
        (GOOD, (0.93, 0.85, 0.99), None, Tone.PROBLEM, "does not beat the baselines"),
        (GOOD, GOOD, (0.0, -0.1, 0.1), Tone.PROBLEM, "does not beat the baselines"),
        (GOOD, (0.7, 0.6, 0.85), None, Tone.WARNING, "is not shown to beat"),
        (GOOD, (0.7, 0.6, 0.85), (0.2, -0.01, 0.4), Tone.WARNING, "is not shown to beat"),
        (GOOD, (0.7, None, None), None, Tone.WARNING, "is not shown to beat"),
        (GOOD, (0.7, 0.6, 0.85), (0.2, None, None), Tone.WARNING, "is not shown to beat"),
        (GOOD, (0.7, 0.6, 0.85), (0.2, 0.1, 0.4), Tone.GOOD, "beats every baseline"),
        (GOOD, (0.6, 0.5, 0.7), None, Tone.GOOD, "beats every baseline"),
    ],
)
def test_the_headline_says_whether_the_baselines_are_beaten(
    model, baseline, difference, tone, title
):
    entry = dict(zip(("value", "low", "high"), difference or (), strict=False))
    differences = {}
    if difference:
        score = Score.of({"subject": {"auc": entry}}, "subject")
        assert score is not None
        differences["pca"] = score
    baselines = {"pca": content_of(*baseline), "majority": content_of(0.5, 0.5, 0.5)}
    headline = judge(content_of(*model), baselines, differences)[0]
    assert (headline.tone, title in headline.title) == (tone, True)
    assert f"{model[0]:.2f}" in headline.text
    assert f"{baseline[0]:.2f}" in headline.text


def test_every_baseline_is_beaten_only_if_the_weaker_ones_are_too():
    baselines = {
        "best": content_of(0.7, 0.6, 0.85),
        "weaker": content_of(0.69, 0.5, 0.9, title="Weaker"),
        "majority": content_of(0.5, 0.5, 0.5),
    }
    differences = {"best": Score(0.2, 0.01, 0.4), "weaker": Score(0.21, -0.02, 0.44)}
    headline = judge(content_of(*GOOD), baselines, differences)[0]
    assert (headline.tone, headline.title) == (
        Tone.WARNING,
        "The ViT is not shown to beat every baseline",
    )
    assert "The paired difference from Weaker, +0.21 [-0.02, +0.44], includes 0" in headline.text


def test_few_animals_or_a_chance_result_carry_no_claim():
    few = content_of(1.0, 0.4, 1.0, n=4, p_value=1 / 6, smallest=1 / 6)
    baselines = {"pca": content_of(0.2, 0.0, 0.3)}
    ahead = {"pca": Score(0.3, 0.1, 0.5)}
    found = judge(few, baselines, {})
    assert found[0].tone is not Tone.GOOD
    assert "Too few subjects for any claim" in titles(found)
    assert "2 FMR1, 2 WT" in next(f.text for f in found if f.title.startswith("Too few"))
    assert "The ViT is not shown to be better than chance" in titles(found)
    found = judge(content_of(*GOOD), baselines, {})
    assert found[0].tone is Tone.GOOD
    assert not {"Too few subjects for any claim"} & set(titles(found))
    # Baselines may lie below 0.5 by chance, or because folds stand in one order.
    lucky = judge(content_of(0.6, 0.4, 0.8), {"pca": content_of(0.3, 0.2, 0.4)}, ahead)
    assert lucky[0].tone is Tone.WARNING
    assert "not shown to be better than chance" in lucky[0].title
    p_only = judge(content_of(0.7, 0.55, 0.8, p_value=0.2), {}, {})
    assert "The ViT is not shown to be better than chance" in titles(p_only)
    below = judge(content_of(0.2, 0.1, 0.4, p_value=1.0), {}, {})
    assert "its interval lies below 0.5" in next(f.text for f in below if "chance" in f.title)


def test_gain_that_tells_the_class_is_a_warning_and_the_baseline_spectrum_a_note():
    found = judge(content_of(*GOOD), {"session_gain": content_of(0.8, 0.6, 0.9)}, {})
    assert "The gain of a session alone tells the class" in titles(found)
    found = judge(content_of(*GOOD), {"session_gain": content_of(0.6, 0.4, 0.9)}, {})
    assert "The gain of a session alone tells the class" not in titles(found)
    found = judge(content_of(*GOOD), {"baseline_spectrum": content_of(0.8, 0.6, 0.9)}, {})
    tones = {f.title: f.tone for f in found}
    assert tones["The class shows before the stimulus"] is Tone.NOTE


def test_without_test_metrics_baselines_or_an_auc_nothing_is_claimed():
    assert judge(None, {}, {})[0].title == "There is no verdict yet"
    headline = judge(content_of(*GOOD), {}, {})[0]
    assert (headline.tone, "not been compared" in headline.title) == (Tone.WARNING, True)
    lacking = content_of(None, None, None, notes=["no session of class WT: AUC is not defined"])
    headline = judge(lacking, {}, {})[0]
    assert (headline.tone, "WT" in headline.text) == (Tone.PROBLEM, True)


def test_the_worst_comes_first_after_the_headline():
    content = content_of(0.6, 0.4, 0.8, n=4, smallest=0.2, notes=["only 2 subjects: beware"])
    found = judge(content, {"session_gain": content_of(0.9, 0.6, 1.0)}, {})
    tones = [list(Tone).index(finding.tone) for finding in found[1:]]
    assert tones == sorted(tones)
    assert found[-1].title == "Only 2 subjects"


@pytest.mark.parametrize(
    ("difference", "tone", "title"),
    [
        (Score(0.1, 0.02, 0.2), Tone.GOOD, "Seeing 8 trials together helps"),
        (Score(0.1, -0.02, 0.2), Tone.WARNING, "is not shown to help"),
        (Score(-0.1, -0.2, -0.02), Tone.PROBLEM, "does worse than averaging"),
        (Score(0.1, None, None), Tone.WARNING, "cannot be said"),
        (None, Tone.WARNING, "cannot be said"),
    ],
)
def test_more_trials_help_only_beyond_averaging(difference, tone, title):
    scores = Score(*GOOD), Score(0.8, 0.7, 0.9)
    found = more_trials_finding(8, *scores, difference, "subject", "e3", hopeless=False)
    assert (found.tone, title in found.title) == (tone, True)
    few = more_trials_finding(8, *scores, difference, "subject", "e3", hopeless=True)
    assert few.tone is not Tone.GOOD


# --- Numbers ----------------------------------------------------------------------------------


def subject_auc(predictions: Predictions, probability: np.ndarray) -> float:
    """AUC of subjects by scikit-learn: mean over sequences, then over sessions."""
    labels: dict[str, int] = {}
    sessions: dict[tuple[str, str], list[float]] = {}
    for session, subject, label, p in zip(
        predictions.session, predictions.subject, predictions.label, probability, strict=True
    ):
        assert subject is not None
        labels[subject] = int(label)
        sessions.setdefault((subject, session), []).append(float(p))
    means: dict[str, list[float]] = {}
    for (subject, _), values in sessions.items():
        means.setdefault(subject, []).append(float(np.mean(values)))
    scores = [np.mean(means[subject]) for subject in labels]
    return float(roc_auc_score(list(labels.values()), scores))


def sigmoid(predictions: Predictions) -> np.ndarray:
    return 1 / (1 + np.exp(predictions.logits[:, 0] - predictions.logits[:, 1]))


def test_the_table_holds_the_aucs_of_the_vit_and_the_baselines(full):
    _, _, page = full
    tables = [t for t in page.tables if t[0][0] == "12 subjects" and "ViT" in t[1][0]]
    rows = {row[0]: row for row in tables[0][1:]}
    drawn = {"ViT": predict(1.0, 4, 1), "the mean_std": predict(0.3, 4, 100)}
    drawn |= {"the pca": predict(1.5, 4, 101), "the majority": predict(0.0, 4, 102)}
    aucs = {name: subject_auc(p, sigmoid(p)) for name, p in drawn.items()}
    assert rows.keys() == aucs.keys()
    for name, auc in aucs.items():
        assert rows[name][1].split()[0] == f"{auc:.3f}"
        if name != "ViT":
            assert rows[name][2].split()[0] == f"{aucs['ViT'] - auc:+.3f}"


def test_one_trial_predictions_are_averaged_over_the_same_trials(full):
    _, _, page = full
    longer, single = predict(1.0, 4, 1), predict(0.5, 1, 2)
    by_trial = dict(
        zip(zip(single.session, single.trial_num, strict=True), sigmoid(single), strict=True)
    )
    averaged = np.array(
        [
            np.mean([by_trial[session, trial] for trial in trials])
            for session, trials in zip(longer.session, longer.trial_nums, strict=True)
        ]
    )
    table = next(t for t in page.tables if any(row[0] == "e1, averaged" for row in t))
    rows = {row[0]: row for row in table}
    ours, theirs = subject_auc(longer, sigmoid(longer)), subject_auc(longer, averaged)
    assert rows["e2"][1].split()[0] == f"{ours:.3f}"
    assert rows["e1, averaged"][1].split()[0] == f"{theirs:.3f}"
    assert rows["e1, averaged"][2].split()[0] == f"{ours - theirs:+.3f}"
    assert "beyond averaging" in page.text


def test_a_one_trial_run_that_was_trained_otherwise_is_pointed_out(tmp_path, full):
    longer = evaluate(start_run(tmp_path / "e2"), predict(1.0, 4, 1))
    single = evaluate(start_run(tmp_path / "e1", n_trials=1), predict(0.5, 1, 2))
    config = (single / "config.yaml").read_text()
    (single / "config.yaml").write_text(config.replace("epochs: 20", "epochs: 3"))
    assert "not trained alike (--train.epochs 3 and 20)" in make_report(single, longer).text
    assert "not trained alike" not in full[2].text


def test_every_session_is_listed_with_what_it_is_taken_for(full):
    _, _, page = full
    predictions = predict(1.0, 4, 1)
    sessions = np.array(predictions.session)
    rows = page.table("Session")
    assert set(rows) == set(predictions.session)
    for session, row in rows.items():
        p = sigmoid(predictions)[sessions == session]
        assert row["sequences"] == f"{len(p)}"
        assert row["p(WT)"] == f"{p.mean():.2f}"
        assert row["taken for"] == CLASSES[int(p.mean() > 0.5)]


def test_confusion_matrices_count_units(full):
    _, _, page = full
    predictions = predict(1.0, 4, 1)
    expected = np.zeros((2, 2), int)
    np.add.at(expected, (predictions.label, (sigmoid(predictions) > 0.5).astype(int)), 1)
    rows = page.table("sequences")
    shown = [[int(rows[t][p].split()[0]) for p in CLASSES] for t in CLASSES]
    assert shown == expected.tolist()


def test_the_page_says_what_its_intervals_and_p_values_are(tmp_path):
    named = predict(1.0, 4, seed=1, n_subjects=3)
    run = evaluate(start_run(tmp_path / "run"), replace(named, subject=(None,) * len(named)))
    text = re.sub(r"\s+", " ", make_report(run).text)
    assert "with 95 % intervals over sessions" in text
    assert (
        "p: one-sided, of the AUC, from permuting the labels of sessions (15 arrangements, all "
        "there are, so that none can be below 0.067)"
    ) in text


def test_origin_config_and_probe_are_shown(full):
    run, _, page = full
    for text in (FINGERPRINT, "0123abcd", "ab" * 32, "2.13.0", "evaluation.n_bootstrap", str(run)):
        assert text in page.text
    assert "93 % of" in re.sub(r"\s+", " ", page.text)


@pytest.mark.parametrize(
    ("n_subjects", "expected"),
    [
        (12, "It rests on 24 sessions of 12 animals."),
        (4, "It rests on 8 sessions of 4 animals: so few may not speak for others."),
    ],
)
def test_a_temperature_says_how_many_sessions_it_rests_on(tmp_path, n_subjects, expected):
    run = evaluate(start_run(tmp_path / "run"), predict(1.0, 4, 1))
    val = predict(1.0, 4, seed=3, n_subjects=n_subjects)
    content = evaluate_predictions(val, CLASSES, EVALUATION, 0, None, metadata("val", 4))
    write_json(run / "metrics/val.json", content)
    assert expected in re.sub(r"\s+", " ", make_report(run).text)


# --- The page in a browser --------------------------------------------------------------------


def test_the_page_needs_nothing_from_outside_and_runs_nothing(full):
    run, _, page = full
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base"}
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name, "")
            assert value == "" or value.startswith(("#", "data:image/png;base64,"))
    text = (run / "report.html").read_text()
    assert not re.search(r"url\((?!#)|@import", text)
    assert "<script" not in text


def test_names_of_other_people_are_text(full):
    _, _, page = full
    assert page.text.count(f"{HOSTILE}00") >= 2
    assert "alert('x')" in page.text


def test_every_figure_has_a_wide_and_a_narrow_drawing_in_the_colours_of_the_page(full):
    _, _, page = full
    drawings = [attributes for tag, attributes in page.elements if tag == "svg"]
    kinds = [attributes["class"] for attributes in drawings]
    assert kinds.count("wide") == kinds.count("narrow") == len(kinds) / 2 >= 12
    assert all(attributes["aria-label"] for attributes in drawings)
    styles = [a["style"] for tag, a in page.elements if tag in ("text", "tspan") and "style" in a]
    fills = {match for style in styles for match in re.findall(r"fill: ([^;]+)", style)}
    # Black text would vanish on a dark page; SVG's default is black.
    assert fills <= {"currentColor", "var(--soft)"}
    for tag, attributes in page.elements:
        if tag == "text":
            assert "fill" in attributes.get("style", "")


def test_ids_are_unique_and_every_reference_finds_its_own(full):
    _, _, page = full
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for value in attributes.values():
            found = re.findall(r"url\(#([^)]+)\)", value)
            if value.startswith("#") and "href" in "".join(attributes):
                found.append(value[1:])
            assert set(found) <= set(ids)


def test_pictures_in_figures_are_whole(full):
    _, _, page = full
    sources = [a["xlink:href"] for tag, a in page.elements if tag == "image"]
    assert sources
    for source in sources:
        content = base64.b64decode(source.removeprefix("data:image/png;base64,"))
        assert content.startswith(b"\x89PNG")


def test_equal_runs_give_equal_pages(full, tmp_path):
    run, single, _ = full
    make_report(run, single, "--output", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (run / "report.html").read_bytes()


# --- Runs that lack something -----------------------------------------------------------------


def commands_of(page: Page) -> list[str]:
    """The commands of the page; each must be one that its program accepts."""
    commands = [
        command
        for line in page.text.splitlines()
        for command in " ".join(line.split()).split(" && ")
        if command.startswith("python -m trainer")
    ]
    for command in commands:
        name, *words = shlex.split(command)[3:]
        if name == "train":
            parse_run_options(words)
        else:
            parser = argparse.ArgumentParser(exit_on_error=False)
            importlib.import_module(f"trainer.{COMMANDS[name][0]}.command").add_arguments(parser)
            parser.parse_args(words)
    return commands


def test_a_run_that_has_just_begun_says_what_makes_the_rest(tmp_path):
    run = start_run(tmp_path / "a run")
    page = make_report(run)
    commands = commands_of(page)
    made = [shlex.split(command)[3] for command in commands]
    assert made[:4] == ["train", "evaluate", "baselines", "attention"]
    assert "There is no verdict yet" in page.text
    assert "no/such dataset has no dataset.json" in page.text
    losses = [a for t, a in page.elements if t == "svg" and "training" in a["aria-label"]]
    assert len(losses) == 2


def test_a_run_without_a_log_or_with_baselines_of_other_sequences(tmp_path):
    run = evaluate(start_run(tmp_path / "run"), predict(1.0, 4, 1))
    (run / "metrics.jsonl").unlink()
    other = add_baselines(tmp_path / "other", {"pca": 0.5}, n_trials=8)
    page = make_report(run, "--baselines", other / "baselines.json")
    assert "not been compared with simple baselines" in page.text
    assert "n_trials 8, not 4, stride 4, not 2" in page.text
    assert "metrics.jsonl holds no losses yet" in page.text
    (baselines,) = [c for c in commands_of(page) if " baselines " in c]
    assert "--sequence.n_trials 4 --sequence.stride 2" in baselines
    assert "--overwrite" not in baselines

    add_baselines(run, {"pca": 0.5}, n_trials=8)
    (baselines,) = [c for c in commands_of(make_report(run)) if " baselines " in c]
    # What stands there would be in the way.
    assert "--overwrite" in baselines

    fitting = add_baselines(tmp_path / "fitting", {"pca": 0.1})
    page = make_report(run, "--baselines", other, "--baselines", fitting)
    assert "not been compared" not in page.text
    assert "the pca" in page.text


def test_a_sequence_run_alone_asks_for_a_one_trial_run(tmp_path):
    run = evaluate(start_run(tmp_path / "e2"), predict(1.0, 4, 1))
    page = make_report(run)
    train = next(c for c in commands_of(page) if " train " in c)
    options = parse_run_options(shlex.split(train)[4:])
    assert (options.config.sequence.n_trials, options.config.sequence.resolved_stride) == (1, 1)
    assert options.data == "no/such dataset"


def test_an_evaluation_that_was_cut_off_breaks_nothing(tmp_path, full):
    _, single, _ = full
    run = evaluate(start_run(tmp_path / "e2"), predict(1.0, 4, 1))
    # `evaluate` writes the predictions first.
    (run / "metrics/test.json").unlink()
    page = make_report(run, single, "--output", tmp_path / "page.html")
    assert "There is no verdict yet" in page.text
    assert f"python -m trainer evaluate {run}" in commands_of(page)
    assert page.table("Session")


def test_a_one_trial_run_that_lacks_trials_is_not_compared(tmp_path):
    run = evaluate(start_run(tmp_path / "e2"), predict(1.0, 4, 1))
    single = predict(0.5, 1, 2)
    evaluate(start_run(tmp_path / "e1", n_trials=1), single.take(np.arange(0, len(single), 2)))
    page = make_report(run, tmp_path / "e1")
    assert "is not compared with averages of e1: trial" in page.text


def test_the_dataset_says_what_the_splits_hold(tmp_path, tmp_path_factory):
    dataset = datasets.small_dataset(tmp_path_factory)
    run = start_run(tmp_path / "run", data=str(dataset))
    rows = make_report(run).table("Split")
    for split in ("train", "val", "test"):
        trials = datasets.read_trials(dataset, split)
        sessions = {session for session, _ in trials}
        assert rows[split]["trials"] == f"{len(trials)}"
        assert rows[split]["sessions"] == f"{len(sessions)}"
        assert rows[split]["subjects"] == f"{len({t['subject'] for t in trials.values()})}"
        share = np.mean([trial["label"] for trial in trials.values()])
        assert rows[split]["WT"] == f"{share:.0%}"
        held = [sum(name == session for name, _ in trials) for session in sessions]
        # Windows of 4 trials, one every 2, if no trial is missing.
        assert rows[split]["sequences"] == f"up to {sum(max(0, (n - 2) // 2) for n in held)}"


@pytest.mark.parametrize(("n_trials", "shown"), [(2, "up to 6"), (1, "up to 12")])
def test_sequences_are_bounded_wherever_trials_are_missing(tmp_path, n_trials, shown):
    # At stride 5 each run of three trials has one sequence, but six trials in a row have one, too.
    blocks = {0: [0, 1, 2], 1: [4, 5, 6]}
    sessions = [datasets.Recording(f"s{name}", None, name, blocks) for name in CLASSES]
    dataset = datasets.write_dataset(tmp_path / "d", {"train": sessions})
    run = start_run(tmp_path / "run", n_trials=n_trials, stride=5, data=str(dataset))
    page = make_report(run)
    assert page.table("Split")["train"]["sequences"] == shown
    assert "where no trial is missing" in page.text
    # Nothing is no bound.
    assert page.table("Split")["val"]["sequences"] == "0"


def test_a_class_that_the_test_split_lacks_is_said_and_breaks_nothing(tmp_path):
    predictions = predict(1.0, 4, 1)
    own = predictions.take(np.flatnonzero(predictions.label == 0))
    page = make_report(evaluate(start_run(tmp_path / "run"), own))
    assert "There can be no verdict on test" in page.text
    assert "undefined" in page.text


def test_an_evaluation_older_than_the_checkpoint_is_pointed_out(tmp_path):
    run = evaluate(start_run(tmp_path / "run"), predict(1.0, 4, 1))
    entry = {"path": "x.pt", "step": 40, "epoch": 4, "bytes": 1, "sha256": "", "score": [1.0]}
    write_json(
        run / "checkpoints/committed.json", {"format_version": 1, "last": entry, "best": [entry]}
    )
    page = make_report(run)
    assert "those of step 30, the best is now step 40" in page.text


# --- Wrong use --------------------------------------------------------------------------------


def error_line(arguments: list[object], capsys: pytest.CaptureFixture[str], status: int) -> str:
    assert main(["report", *map(str, arguments)]) == status
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("nothing", None, "does not exist"),
        ("empty", {}, "has no config.yaml: it is no run folder"),
        ("data", {"dataset.json": "{}"}, "is a dataset, not a run"),
        (
            "simple",
            {"baselines.json": "{}"},
            "holds baselines alone (--baselines takes them), not a run",
        ),
        ("half", {"metrics/test.json": "{}"}, "has no config.yaml: it is no run folder"),
    ],
)
def test_what_is_no_run_is_said_to_be_what_it_is(tmp_path, capsys, name, content, expected):
    folder = tmp_path / name
    for file, text in (content or {}).items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    if content == {}:
        folder.mkdir()
    line = error_line([folder], capsys, 1)
    assert f"{folder} {expected}" in line
    assert "give a run folder" in line
    assert not (folder / "report.html").exists()


def test_a_file_is_no_run(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("")
    assert "config.yaml is a file" in error_line([tmp_path / "config.yaml"], capsys, 1)


def test_a_pooled_folder_of_an_older_version_is_to_be_made_again(tmp_path, capsys):
    write_json(tmp_path / "metrics/test.json", {"folds": []})
    line = error_line([tmp_path], capsys, 1)
    assert "test.json lacks" in line
    assert "make it again" in line


def test_what_is_wrong_is_said_in_one_line(tmp_path, capsys):
    assert "is no run folder" in error_line([tmp_path], capsys, 1)
    run = start_run(tmp_path / "run")
    assert "is given twice" in error_line([run, f"{run}/"], capsys, 2)
    assert "end its name in .html" in error_line([run, "--output", tmp_path / "both"], capsys, 2)
    assert not (tmp_path / "both").exists()
    line = error_line([run, "--baselines", tmp_path], capsys, 2)
    assert "holds no baselines.json" in line
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[3] = lines[3][:10]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    assert "metrics.jsonl, line 4 is damaged" in error_line([run], capsys, 1)
    (run / "metrics.jsonl").unlink()
    write_json(run / "metrics/test.json", {"split": "test"})
    assert "test.json lacks calibration, checkpoint" in error_line([run], capsys, 1)
    (run / "metrics/test.json").write_text("{")
    assert "test.json cannot be read" in error_line([run], capsys, 1)
    (run / "config.yaml").write_text("a: [")
    assert "config.yaml is not the config of a run" in error_line([run], capsys, 1)
