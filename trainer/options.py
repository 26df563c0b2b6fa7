"""From flags and YAML files to a `Config`, and from a `Config` to YAML.

Later ones win: the defaults, ``--experiment``, ``--config``, then single flags. A name that does
not exist is refused wherever it stands, and the nearest one that does is suggested.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import jsonargparse
import yaml

from trainer.config import SECTIONS, Config
from trainer.errors import UsageError
from trainer.near_names import did_you_mean
from trainer.vertex.container import run_folder

EXPERIMENTS_FOLDER = Path(__file__).parent / "experiments"
EXPERIMENTS = {
    "e1": "one trial (2D ViT)",
    "e2": "four trials",
    "e3": "eight trials",
    "e4": "eight trials, augmented",
}
#: Flags that have a short name as well.
_SHORT = {"--store": "--loader.store", "--cache": "--loader.cache"}
#: Fields under the names that other programs give them.
_ELSEWHERE = {"learning_rate": "lr", "dropout": "drop_rate", "max_grad_norm": "clip_grad"}
_EXAMPLES = """examples:
  python -m trainer train --data out/dataset --output out/run
  python -m trainer train --experiment e1 --output out/e1
  python -m trainer train --data gs://lab/dataset --output gs://lab/e3 --experiment e3
  python -m trainer train --config my.yaml --model.size tiny --optim.lr 1e-3 --output out/tiny
  python -m trainer train --config out/run/config.yaml --train.seed 1 --output out/seed1
The command that started a run resumes it. A run's own config.yaml holds every value it used.
"""


@dataclass(frozen=True)
class RunOptions:
    """What ``train`` was asked to do.

    Attributes
    ----------
    data : str
        Folder or URL of the dataset.
    output : str
        Folder or URL of the run.
    config : Config
    command : str
        The command line that says so.
    """

    data: str
    output: str
    config: Config
    command: str


class _Parser(jsonargparse.ArgumentParser):
    """A parser whose complaints are exceptions of one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        line = " ".join(message.split())
        wrong = re.match(r'Parser key "(\w+)\.(\w+)":.* (?:Got|Given) value: (.*)', line)
        if wrong and wrong[1] in SECTIONS:
            kind = _kind(get_type_hints(SECTIONS[wrong[1]])[wrong[2]])
            line = f"{wrong[1]}.{wrong[2]} must be {kind}, not {wrong[3]}"
        raise UsageError(line) from ex


def build_parser(prog: str = "python -m trainer train") -> jsonargparse.ArgumentParser:
    """Return the parser of ``train``: its help is the documentation of the config's fields."""
    parser = _Parser(
        prog=prog,
        usage=f"{prog} [--data DIR] [--output DIR] [--experiment e1|e2|e3|e4] [--SECTION.FIELD X]",
        description="Train the Temporal 3D ViT on a dataset folder, then evaluate its best "
        "checkpoint on val and test.",
        epilog=_EXAMPLES,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--data", default="out/dataset", metavar="DIR", help="dataset folder, or gs:// URL"
    )
    parser.add_argument(
        "--output",
        default=run_folder(os.environ) or "out/run",
        metavar="DIR",
        help="run folder, or gs:// URL; a run that is already there goes on",
    )
    listed = "; ".join(f"{name}: {text}" for name, text in EXPERIMENTS.items())
    parser.add_argument("--experiment", choices=list(EXPERIMENTS), help=f"start from {listed}")
    parser.add_argument(
        "--config", action="config", metavar="FILE", help="YAML of the fields below"
    )
    parser.add_argument("--verbose", action="store_true", help="show tracebacks")
    for name, section in SECTIONS.items():
        parser.add_class_arguments(section, name, sub_configs=False)
    return parser


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """jsonargparse's help of arguments, below examples that keep their lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))


def parse_run_options(arguments: Sequence[str], others: Collection[str] = ()) -> RunOptions:
    """Return what the arguments of ``train`` ask for.

    Where ``--output`` is not given, a job of Vertex AI says where the run folder is.

    Parameters
    ----------
    arguments : sequence of str
    others : collection of str
        Flags that the user can have meant beside those of ``train``.

    Raises
    ------
    UsageError
        If a flag or a key does not exist, a value cannot be meant, or a file cannot be read.
    """
    parser = build_parser()
    ordered = _files_first(_expand(arguments))
    flags = {flag for action in parser._actions for flag in action.option_strings}
    keys = {flag.removeprefix("--") for flag in flags}
    for word in ordered:
        name = word.split("=", 1)[0]
        if word.startswith("--") and name not in flags:
            near = _nearest(name, flags.union(others))
            raise UsageError(f"there is no flag {name}{near}; see --help")
    for path in _config_files(ordered):
        _check_keys(path, keys)
    values = parser.parse_args(ordered)
    sections = {name: cls(**vars(values[name])) for name, cls in SECTIONS.items()}
    command = shlex.join(["python", "-m", "trainer", "train", *arguments])
    return RunOptions(values["data"], values["output"], Config(**sections), command)


def config_arguments(config: Config, leave_out: Collection[str] = ()) -> list[str]:
    """Return flags that say every value of a config, so that no default is left to another machine.

    Parameters
    ----------
    config : Config
    leave_out : collection of str
        Fields, ``SECTION.FIELD``, that get no flag.
    """
    return [
        f"--{section}.{name}={'null' if value is None else value}"
        for section, fields in asdict(config).items()
        for name, value in fields.items()
        if f"{section}.{name}" not in leave_out
    ]


def dump_config(config: Config, data: str, title: str) -> str:
    """Return YAML that ``--config`` reads back to the same config.

    Parameters
    ----------
    config : Config
    data : str
        Folder or URL of the dataset.
    title : str
        First line, as a comment.
    """
    content = {"data": data, **asdict(config)}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return f"# {' '.join(title.split())}\n{text}"


def load_config(path: Path) -> tuple[Config, str]:
    """Return the config and the dataset's folder or URL from a run's ``config.yaml``."""
    options = parse_run_options(["--config", str(path)])
    return options.config, options.data


def _expand(arguments: Sequence[str]) -> list[str]:
    """Write short names out."""
    split = (word.partition("=") for word in arguments)
    return [f"{_SHORT.get(name, name)}{sign}{value}" for name, sign, value in split]


def _files_first(arguments: Sequence[str]) -> list[str]:
    """Put the experiment's file, then other files, before single flags, which win over them."""
    experiments: list[str] = []
    configs: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        name, sign, value = word.partition("=")
        if name not in ("--experiment", "--config"):
            rest.append(word)
            continue
        value = value if sign else next(words, "")
        if not value:
            raise UsageError(f"{name} needs a value; see --help")
        if name == "--config":
            configs += [name, value]
        elif value in EXPERIMENTS:
            experiments = ["--config", str(EXPERIMENTS_FOLDER / f"{value}.yaml")]
        else:
            near = _nearest(value, EXPERIMENTS)
            raise UsageError(f"there is no experiment {value!r}{near}: {', '.join(EXPERIMENTS)}")
    return [*experiments, *configs, *rest]


def _config_files(ordered: Sequence[str]) -> Iterator[Path]:
    for word, value in pairwise(ordered):
        if word == "--config":
            yield Path(value)


def _check_keys(path: Path, keys: set[str]) -> None:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read --config {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping):
        raise UsageError(f"{path} holds no sections; it should begin like 'train:'")
    for section, fields in content.items():
        if section in SECTIONS and not isinstance(fields, Mapping):
            raise UsageError(f"{path}: {section} holds no fields")
        names = [f"{section}.{name}" for name in fields] if section in SECTIONS else [str(section)]
        for name in names:
            if name not in keys - {"config", "experiment", "help", "print_config", "verbose"}:
                near = _nearest(name, keys | set(SECTIONS))
                raise UsageError(f"{path}: there is no {name}{near}")


def _kind(hint: Any) -> str:
    """Return in words what a field's type hint allows."""
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_args(hint):
        return " or ".join(map(_kind, get_args(hint)))
    return {int: "a whole number", float: "a number"}.get(hint, "null")


def _nearest(name: str, names: Iterable[str]) -> str:
    """Return the name that may have been meant, as the end of a sentence."""
    # First a field without its section, or in another: `--lr` for `--optim.lr`.
    field = name.lstrip("-").rpartition(".")[2]
    field = _ELSEWHERE.get(field, field)
    ordered = sorted(names)
    near = [known for known in ordered if known.endswith("." + field)]
    return did_you_mean(near[0] if near else name, ordered)
