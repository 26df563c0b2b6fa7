"""What runs a pipeline, whichever runner it is: the contract of the launchers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import apache_beam as beam

from beam_pipeline.output.work_folder import WorkFolder

Build = Callable[[beam.Pipeline], None]
PHASES = {"read": "Reading traces", "survey": "Measuring statistics", "write": "Writing shards"}


class RunFailedError(RuntimeError):
    """The pipeline has failed; the message says why and what to do."""


class StillRunningError(RuntimeError):
    """The pipeline goes on elsewhere, so that nothing of its may be removed."""


@dataclass(frozen=True)
class Outcome:
    """What a run leaves beside its files.

    Attributes
    ----------
    counters : mapping
        Sums over all workers, by name.
    details : mapping
        Where and on what it ran, for ``run.json``.
    """

    counters: Mapping[str, int]
    details: Mapping[str, Any] = field(default_factory=dict)


class Launcher(Protocol):
    """Runs a pipeline to its end."""

    def describe(self, build: Build) -> dict[str, Any]:
        """Return the job that would be submitted, as JSON data.

        Raises
        ------
        UsageError
            If the runner has no jobs to show.
        """

    def unfinished(
        self, leftovers: Sequence[WorkFolder], identity: Mapping[str, Any]
    ) -> WorkFolder | None:
        """Return the work folder of an earlier run of the same dataset that need not start again.

        Raises
        ------
        StillRunningError
            If a run still writes there that this launcher cannot go on with.
        """

    def run(
        self, build: Build, work: WorkFolder, n_rows: int, identity: Mapping[str, Any]
    ) -> Outcome:
        """Run the pipeline that `build` puts together, and show how far it is.

        Raises
        ------
        RunFailedError
            If it fails.
        StillRunningError
            If only the watching ends.
        """
