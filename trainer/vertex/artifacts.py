"""Copies for the folders that Vertex AI names: TensorBoard events, and the model at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trainer.outbox import CLOSE_SECONDS, Outbox
from trainer.remote.folder import RemoteFolder
from trainer.remote.stores import open_remote
from trainer.training.checkpoint import read_marker
from trainer.training.follower import Follower
from trainer.vertex import container


class ArtifactCopier(Follower):
    """Copies ``tensorboard/`` to AIP_TENSORBOARD_LOG_DIR and the best model to AIP_MODEL_DIR.

    Parameters
    ----------
    environ : mapping
    folder : pathlib.Path
        Of the run.
    """

    def __init__(self, environ: Mapping[str, str], folder: Path) -> None:
        self._logs = environ.get(container.TENSORBOARD_LOGS, "")
        self._model = environ.get(container.MODEL, "")
        self._folder = folder
        self._copied: dict[str, tuple[int, int]] = {}
        self._outbox = Outbox("copies for Vertex AI")

    def flushed(self) -> None:
        """Copy the events that are new."""
        if self._logs:
            self._outbox.put(self._copy_events)

    def close(self, state: str) -> str:
        """Copy what is left; the model only of a run that is complete."""
        self.flushed()
        if self._model and state == "complete":
            self._outbox.put(self._copy_model)
        return self._outbox.close(CLOSE_SECONDS[state])

    def _copy_events(self) -> None:
        remote = open_remote(self._logs)
        root = self._folder / "tensorboard"
        for path in sorted(root.rglob("*")):
            if path.is_file():
                self._copy(remote, path, path.relative_to(root).as_posix())

    def _copy_model(self) -> None:
        remote = open_remote(self._model)
        marker = read_marker(self._folder / "checkpoints")
        if marker is not None and marker.best:
            self._copy(remote, self._folder / "checkpoints" / marker.best[0].path, "model.pt")
        self._copy(remote, self._folder / "config.yaml", "config.yaml")

    def _copy(self, remote: RemoteFolder, path: Path, name: str) -> None:
        stat = path.stat()
        state = (stat.st_size, stat.st_mtime_ns)
        if self._copied.get(str(path)) == state:
            return
        with path.open("rb") as file:
            remote.upload(name, file, stat.st_size, None)
        self._copied[str(path)] = state
