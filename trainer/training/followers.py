"""Which followers a run has: the environment says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from trainer.config import Config
from trainer.run_folder import RunFolder
from trainer.training.follower import Follower
from trainer.training.interruption import StoppedError
from trainer.vertex import container


@contextmanager
def follow(
    environ: Mapping[str, str], config: Config, data: str, folder: RunFolder
) -> Iterator[Sequence[Follower]]:
    """Let those follow the body's run that the environment asks for.

    Parameters
    ----------
    environ : mapping
    config : Config
    data : str
        Folder or URL of the dataset.
    folder : RunFolder
    """
    following = []
    for name, make in _asked_for(environ, config, data, folder):
        try:
            following.append(make())
        # Such as a client library that is not installed.
        except Exception as error:
            _say(f"{name}: not told of this run ({' '.join(str(error).split())})")
    state = "failed"
    try:
        yield following
        state = "complete"
    except StoppedError:
        state = "stopped"
        raise
    finally:
        for follower in following:
            _say(follower.close(state))


def _asked_for(
    environ: Mapping[str, str], config: Config, data: str, folder: RunFolder
) -> Iterator[tuple[str, Callable[[], Follower]]]:
    # Imported where they are used: cloud clients take seconds to load.
    def trial_report() -> Follower:
        from trainer.tune.trial_report import TrialReport

        return TrialReport()

    def experiment_tracker() -> Follower:
        from trainer.vertex.experiment import ExperimentTracker

        return ExperimentTracker(environ, config, data, folder.url)

    def artifact_copier() -> Follower:
        from trainer.vertex.artifacts import ArtifactCopier

        return ArtifactCopier(environ, folder.path)

    if container.is_trial(environ):
        yield "hyperparameter tuning", trial_report
    if environ.get(container.RUN):
        yield "Vertex AI Experiments", experiment_tracker
    if environ.get(container.TENSORBOARD_LOGS) or environ.get(container.MODEL):
        yield "copies for Vertex AI", artifact_copier


def _say(text: str) -> None:
    if text:
        print(text, file=sys.stderr, flush=True)
