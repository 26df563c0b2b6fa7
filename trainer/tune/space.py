"""What is searched, by ``tune`` here and by ``tune --vertex`` alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from trainer.config import Config
from trainer.errors import UsageError

#: AUC of val's sessions, at the epoch where it is the highest; higher is better.
OBJECTIVE = "val_session_auc"


@dataclass(frozen=True)
class Parameter:
    """A number to be found.

    Attributes
    ----------
    name : str
        The flag of ``train`` without its dashes, ``SECTION.FIELD``.
    low, high : float
        Both included.
    log : bool
        Whether factors count rather than differences.
    """

    name: str
    low: float
    high: float
    log: bool = False


SPACE = (
    Parameter("optim.lr", 1e-5, 1e-3, log=True),
    Parameter("model.drop_path_rate", 0.0, 0.4),
    Parameter("model.drop_rate", 0.0, 0.4),
    Parameter("optim.weight_decay", 1e-3, 0.3, log=True),
    Parameter("optim.label_smoothing", 0.0, 0.2),
)


def searched(arguments: Collection[str]) -> tuple[Parameter, ...]:
    """Return what a command line leaves to be searched: a flag that is given holds its value.

    Raises
    ------
    UsageError
        If nothing is left.
    """
    given = {word.partition("=")[0] for word in arguments}
    left = tuple(parameter for parameter in SPACE if f"--{parameter.name}" not in given)
    if not left:
        raise UsageError("every parameter of the search is given as a flag: nothing is left")
    return left


def apply(config: Config, values: Mapping[str, float]) -> Config:
    """Return a config with other values of some fields.

    Raises
    ------
    UsageError
        If they do not go with the rest.
    """
    for name, value in values.items():
        section, field = name.split(".")
        config = replace(config, **{section: replace(getattr(config, section), **{field: value})})
    return config


def check_space(config: Config, parameters: Sequence[Parameter]) -> None:
    """Refuse a config that some corner of the space does not go with, before anything is run.

    Raises
    ------
    UsageError
        If there is one.
    """
    for corner in product(*((parameter.low, parameter.high) for parameter in parameters)):
        apply(config, dict(zip((p.name for p in parameters), corner, strict=True)))
