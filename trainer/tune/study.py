"""The state of a search on disk, and what it tries next: Optuna, in a SQLite file.

What a trial tries is a function of the seed, its number and the results before it: a search that
was killed ends like one that was not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from trainer.errors import TrainerError
from trainer.run_folder import STUDY
from trainer.tune.results import DONE, FAILED, UNFINISHED, TrialResult
from trainer.tune.space import Parameter

_NAME = "study"
_IDENTITY = "identity"
_STATES = {TrialState.COMPLETE: DONE, TrialState.FAIL: FAILED}


@dataclass(frozen=True)
class Trial:
    """What is to be tried.

    Attributes
    ----------
    number : int
    values : dict
        {parameter: value}.
    """

    number: int
    values: dict[str, float]


class Study:
    """A search; `open_study` opens one."""

    def __init__(
        self, study: optuna.Study, parameters: Sequence[Parameter], folder: Path, seed: int
    ) -> None:
        self._study, self._parameters, self._seed = study, parameters, seed
        self._folder = folder

    def trial_folder(self, number: int) -> Path:
        """Return the run folder of a trial."""
        return self._folder / "trials" / f"{number:04d}"

    def next(self, max_trials: int) -> Trial | None:
        """Return the trial that was not finished, else a new one; None where there are enough."""
        running = self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
        if not running and len(self._study.trials) >= max_trials:
            return None
        if running:
            return Trial(running[0].number, dict(running[0].params))
        state = np.random.SeedSequence([self._seed, len(self._study.trials)]).generate_state(1)
        self._study.sampler = optuna.samplers.TPESampler(seed=int(state[0]))
        distributions: dict[str, BaseDistribution] = {
            p.name: FloatDistribution(p.low, p.high, log=p.log) for p in self._parameters
        }
        trial = self._study.ask(fixed_distributions=distributions)
        return Trial(trial.number, dict(trial.params))

    def finish(self, trial: Trial, auc: float | None) -> None:
        """Note a trial's AUC; None for one that diverged."""
        state = TrialState.FAIL if auc is None else TrialState.COMPLETE
        self._study.tell(trial.number, auc, state=state)

    def results(self) -> list[TrialResult]:
        """Return all trials by their numbers."""
        return [self._result(trial) for trial in self._study.get_trials(deepcopy=False)]

    def _result(self, trial: FrozenTrial) -> TrialResult:
        return TrialResult(
            name=f"{trial.number:04d}",
            state=_STATES.get(trial.state, UNFINISHED),
            auc=trial.value if trial.state == TrialState.COMPLETE else None,
            values=dict(trial.params),
            folder=str(self.trial_folder(trial.number)),
        )


@contextmanager
def open_study(
    folder: Path, parameters: Sequence[Parameter], identity: Mapping[str, Any], seed: int
) -> Iterator[Study]:
    """Open the search of a folder, new or not.

    Parameters
    ----------
    folder : pathlib.Path
    parameters : sequence of Parameter
    identity : mapping
        JSON values; what makes it this search and no other.
    seed : int

    Raises
    ------
    TrainerError
        If the folder holds another search, or the file cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{folder / STUDY}")
    except Exception as error:
        raise TrainerError(f"cannot use {folder / STUDY}: {error}") from error
    try:
        study = optuna.create_study(
            storage=storage, study_name=_NAME, direction="maximize", load_if_exists=True
        )
        before = study.user_attrs.get(_IDENTITY)
        if before is None:
            study.set_user_attr(_IDENTITY, dict(identity))
        else:
            _check_same(before, identity, folder)
        yield Study(study, parameters, folder, seed)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise TrainerError(
                f"{folder} holds another search: {name} was {before.get(name)} and is "
                f"{now.get(name)}; give this one an --output of its own"
            )
