"""Flags, YAML and defaults: what a run is told, and what is refused."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from trainer.config import SECTIONS, Config, SequenceConfig, TrainConfig
from trainer.errors import UsageError
from trainer.options import (
    EXPERIMENTS,
    EXPERIMENTS_FOLDER,
    build_parser,
    dump_config,
    load_config,
    parse_run_options,
)


def written(folder: Path, text: str) -> str:
    path = folder / "my.yaml"
    path.write_text(text)
    return str(path)


def test_without_flags_a_run_is_the_defaults():
    options = parse_run_options([])

    assert options.config == Config()
    assert (options.data, options.output) == ("out/dataset", "out/run")


def test_flags_win_over_files_and_files_over_the_experiment_wherever_they_stand(tmp_path):
    path = written(tmp_path, "sequence: {n_trials: 5}\nmodel: {patch_trial: 5, size: tiny}\n")

    config = parse_run_options(
        ["--model.size=base", "--config", path, "--data", "d", "--experiment", "e1"]
    ).config

    assert config.sequence.n_trials == 5
    assert (config.model.patch_trial, config.model.size) == (5, "base")
    # Not in the file, so the experiment's.
    assert (
        config.train.batch_size == parse_run_options(["--experiment", "e1"]).config.train.batch_size
    )


def test_values_are_read_as_their_fields_are_typed(tmp_path):
    path = written(tmp_path, "optim: {lr: 1e-3, clip_grad: null}\ntrain: {patience: null}\n")

    config = parse_run_options(["--config", path, "--optim.ema_decay", "0.99"]).config

    assert config.optim.lr == 1e-3
    assert (config.optim.clip_grad, config.train.patience) == (None, None)
    assert config.optim.ema_decay == 0.99


def test_the_store_has_a_short_flag():
    assert parse_run_options(["--store", "stream"]).config.loader.store == "stream"
    assert parse_run_options(["--store=memory"]).config.loader.store == "memory"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--model.sise", "tiny"], "did you mean --model.size?"),
        (["--lr", "1e-3"], "did you mean --optim.lr?"),
        (["--model.size", "tiney"], "tiny or small or base, not tiney"),
        (["--optim.lr", "fast"], "optim.lr must be a number, not fast"),
        (["--optim.lr", "-1"], "optim.lr must be above 0"),
        (["--optim.lr", "nan"], "optim.lr"),
        (["--train.epochs", "2.5"], "train.epochs must be a whole number, not 2.5"),
        (["--train.epochs", "0"], "train.epochs must be 1 or more"),
        (["--train.patience", "soon"], "a whole number or null, not soon"),
        (["--optim.min_lr", "1"], "at most lr"),
        (["--model.drop_rate", "1"], "below 1"),
        (["--experiment", "e5"], "e1, e2, e3, e4"),
        (["--config"], "--config needs a value"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--data"], "--data"),
        (["out/dataset"], "out/dataset"),
    ],
)
def test_wrong_flags_are_refused_in_one_line_that_helps(flags, expected):
    with pytest.raises(UsageError, match=re.escape(expected)) as caught:
        parse_run_options(flags)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {sise: tiny}\n", "there is no model.sise (did you mean model.size?)"),
        ("modle: {size: tiny}\n", "there is no modle (did you mean model?)"),
        ("optim: {lr: fast}\n", "optim.lr must be a number, not fast"),
        ("train: {epochs: 0}\n", "train.epochs must be 1 or more"),
        ("model: tiny\n", "model holds no fields"),
        ("model.sise: tiny\n", "did you mean model.size?"),
        ("experiment: e1\n", "there is no experiment"),
        ("- 1\n", "holds no sections"),
        ("", "holds no sections"),
        ("model: {size: [\n", "is not YAML"),
    ],
)
def test_wrong_files_are_refused_in_one_line_that_helps(tmp_path, text, expected):
    with pytest.raises(UsageError, match=re.escape(expected)) as caught:
        parse_run_options(["--config", written(tmp_path, text)])

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments", [[], ["--experiment", "e4", "--optim.ema_decay", "0.9"]])
def test_a_saved_config_reads_back_the_same(tmp_path, arguments):
    options = parse_run_options([*arguments, "--data", "gs://lab/dätaset"])
    path = written(tmp_path, dump_config(options.config, options.data, options.command))

    assert load_config(Path(path)) == (options.config, options.data)
    # Every value stands there, not only those that were given.
    content = yaml.safe_load(Path(path).read_text())
    assert set(content) == {"data", *SECTIONS}
    assert all(set(content[name]) == set(vars(cls())) for name, cls in SECTIONS.items())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_states_its_command_and_its_time(name):
    text = (EXPERIMENTS_FOLDER / f"{name}.yaml").read_text()

    command = re.search(r"run_training\.sh (.*)", text)
    assert command
    assert (
        parse_run_options(command[1].split()).config
        == parse_run_options(["--experiment", name]).config
    )
    assert re.search(r"(?i)time", text)


def test_the_experiments_are_what_they_are_called():
    configs = {name: parse_run_options(["--experiment", name]).config for name in EXPERIMENTS}

    assert [config.sequence.n_trials for config in configs.values()] == [1, 4, 8, 8]
    assert configs["e1"].model.patch_trial == 1
    augmented = configs["e4"].augment
    assert all(vars(augmented).values())
    assert dataclasses.replace(configs["e3"], augment=augmented) == configs["e4"]
    # So that they can be compared: as many tokens a step, and the same model.
    tokens = {
        c.sequence.n_trials // c.model.patch_trial * c.train.batch_size for c in configs.values()
    }
    assert len(tokens) == 1
    assert len({dataclasses.replace(c.model, patch_trial=1) for c in configs.values()}) == 1


@pytest.mark.parametrize(("n_trials", "stride"), [(1, 1), (2, 1), (4, 2), (7, 3), (8, 4)])
def test_the_stride_is_half_a_sequence_unless_given(n_trials, stride):
    assert SequenceConfig(n_trials).resolved_stride == stride
    assert SequenceConfig(n_trials, stride=5).resolved_stride == 5


def test_the_help_explains_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_run_options(["--help"])

    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name, cls in SECTIONS.items():
        for field in dataclasses.fields(cls):
            assert f"--{name}.{field.name}" in text
    undocumented = [
        action.dest
        for action in build_parser()._actions
        if not action.help or action.help.startswith("(type")
    ]
    assert undocumented == []
    assert "examples:" in text


def test_a_dataclass_refuses_what_the_command_line_would():
    with pytest.raises(UsageError, match=r"train\.batch_size must be 1 or more, not 0"):
        TrainConfig(batch_size=0)
