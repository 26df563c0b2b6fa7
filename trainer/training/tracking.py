"""What a run leaves to be looked at: metrics.jsonl for machines, TensorBoard for people."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from trainer.errors import TrainerError
from trainer.training.follower import Follower

#: Panels of an example sequence; the rest of a long one is not drawn.
_MOST_PANELS = 8


class Tracker:
    """Writes ``metrics.jsonl`` and ``tensorboard/`` of one run.

    Parameters
    ----------
    folder : pathlib.Path
        Of the run.
    step : int
        Steps done so far: later points, of a run that was killed, are taken back.
    n_bytes : int
        Length of metrics.jsonl at that step, as `flush` returned it.
    followers : sequence of Follower
        Who else is told.

    Raises
    ------
    TrainerError
        Here and in all methods, if something cannot be written, as on a full disk.
    """

    def __init__(
        self,
        folder: Path,
        *,
        step: int = 0,
        n_bytes: int = 0,
        followers: Sequence[Follower] = (),
    ) -> None:
        self._folder = folder
        self._followers = followers
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)
            self._lines = (folder / "metrics.jsonl").open("ab")
            self._lines.truncate(min(n_bytes, self._lines.tell()))
            self._lines.seek(0, os.SEEK_END)
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._report_thread = threading.excepthook

    def __enter__(self) -> Tracker:
        threading.excepthook = self._ignore_write_errors
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What has failed once would fail again.
        with self._writing() if error is None else suppress(OSError):
            self._lines.close()
            self._board.close()
        threading.excepthook = self._report_thread

    def log(self, split: str, step: int, epoch: int, values: Mapping[str, float | None]) -> None:
        """Write one line and one point of each curve; what is not finite is null in the line."""
        finite = {
            name: value if value is not None and math.isfinite(value) else None
            for name, value in values.items()
        }
        line = {"step": step, "epoch": epoch, "split": split, **finite}
        with self._writing():
            self._lines.write(json.dumps(line).encode() + b"\n")
            self._lines.flush()
            for name, value in finite.items():
                if value is not None:
                    self._board.add_scalar(f"{split}/{name}", value, step)
        for follower in self._followers:
            follower.log(split, step, epoch, finite)

    def show(self, name: str, figure: Figure, step: int) -> None:
        """Put a picture on the board."""
        with self._writing():
            self._board.add_figure(name, figure, step)

    def flush(self) -> int:
        """Make what was logged last through a crash; return the length of metrics.jsonl."""
        with self._writing():
            self._lines.flush()
            os.fsync(self._lines.fileno())
            self._board.flush()
        for follower in self._followers:
            follower.flushed()
        return self._lines.tell()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainerError(
                f"cannot write to {self._folder}: {error.strerror or error}; make room there and "
                "run the command again, the last checkpoint is kept"
            ) from error

    def _ignore_write_errors(self, arguments: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread of its own; its errors come up in the next call, too."""
        if not issubclass(arguments.exc_type, OSError):
            self._report_thread(arguments)


def confusion_figure(matrix: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix: rows are true classes, columns predicted ones."""
    figure = Figure(figsize=(4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    for (row, column), count in np.ndenumerate(matrix):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true")
    return figure


def sequence_figure(
    x: NDArray[np.floating],
    freqs: NDArray[np.float64],
    times: NDArray[np.float64],
    title: str,
) -> Figure:
    """Draw the trials of a sequence side by side.

    Parameters
    ----------
    x : array of shape (n_trials, n_freqs, n_times)
    freqs, times : float64 arrays
        Hz and seconds.
    title : str
    """
    shown = x[:_MOST_PANELS]
    figure = Figure(figsize=(1 + 1.8 * len(shown), 2.6), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    extent = (times[0], times[-1], freqs[0], freqs[-1])
    for panel, trial in zip(panels, shown, strict=True):
        # In normalised units, so that gain and baseline can be compared by eye.
        image = panel.imshow(
            trial, origin="lower", aspect="auto", extent=extent, vmin=-3, vmax=3, cmap="RdBu_r"
        )
        panel.set_xlabel("s")
    panels[0].set_ylabel("Hz")
    figure.colorbar(image, ax=panels, label="s.d.")
    figure.suptitle(title)
    return figure
