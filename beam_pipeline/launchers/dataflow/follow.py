"""Following a job until it ends: what is shown, and what its end means."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Protocol

from beam_pipeline import console
from beam_pipeline.launchers.dataflow.job_state import (
    CANCELLED,
    DONE,
    TERMINAL,
    Message,
    Metrics,
    cause_of,
    status_line,
)

POLL_SECONDS = 10.0
STATUS_SECONDS = 60.0
#: Dataflow explains a failure up to a minute after it says that there is one.
EXPLANATION_POLLS = 6


class JobError(RuntimeError):
    """The job did not end well; the message says how, why and where to look."""


class JobInterruptedError(RuntimeError):
    """The user stopped watching; the message says that the job goes on, and how to end it."""


class Service(Protocol):
    """What is asked of Dataflow; see `service.DataflowService`."""

    def state(self, job_id: str) -> str:
        """Return a job's state."""

    def messages(self, job_id: str, since: datetime | None) -> Iterator[Message]:
        """Yield what the job has logged since then."""

    def metrics(self, job_id: str) -> Metrics:
        """Return a job's numbers as they are now."""

    def console_url(self, job_id: str) -> str:
        """Return the address of a job's page."""

    def cancel_command(self, job_id: str) -> str:
        """Return what a person types to cancel a job."""


def follow_job(
    service: Service,
    job_id: str,
    phases: Mapping[str, str],
    phase_counters: Mapping[str, str],
    n_rows: int,
    verbose: bool,
    sleep: Callable[[float], object] = time.sleep,
) -> Metrics:
    """Show how far a job is until it ends.

    Parameters
    ----------
    service : Service
    job_id : str
    phases, phase_counters : mapping
        {phase: what to call it} and {phase: the counter of its finished trials}.
    n_rows : int
        Trials of each phase.
    verbose : bool
        Show Dataflow's ordinary messages, too, not only its warnings and errors.
    sleep : callable
        Waits between two looks.

    Returns
    -------
    Metrics
        The final ones.

    Raises
    ------
    JobError
        If the job fails, is cancelled, or ends otherwise than done.
    JobInterruptedError
        On Ctrl-C.
    """
    watch = _Watch(service, job_id, verbose)
    try:
        # Said by every poll, in the loop's own time, because the display asks much more often.
        with console.watch(phases, n_rows, lambda: watch.finished(phase_counters)):
            state = watch.until_end(sleep)
        if state == DONE:
            # The last counters arrive with the end, or shortly after.
            return service.metrics(job_id)
        raise JobError(_failure(watch, state, sleep))
    except KeyboardInterrupt:
        raise JobInterruptedError(
            f"interrupted, but job {job_id} goes on: the same command follows it again and "
            f"finishes the dataset; '{service.cancel_command(job_id)}' ends it"
        ) from None


class _Watch:
    def __init__(self, service: Service, job_id: str, verbose: bool) -> None:
        self.service = service
        self.job_id = job_id
        self.messages: dict[str, Message] = {}
        self._metrics = Metrics()
        self._shown = ("basic", "warning", "error") if verbose else ("warning", "error")

    def finished(self, phase_counters: Mapping[str, str]) -> dict[str, int]:
        counters = self._metrics.counters
        return {phase: counters.get(name, 0) for phase, name in phase_counters.items()}

    def until_end(self, sleep: Callable[[float], object]) -> str:
        last, due = "", 0.0
        while True:
            state = self.service.state(self.job_id)
            self.read_messages()
            if state in TERMINAL:
                _say(f"Dataflow: {state}")
                return state
            self._metrics = self.service.metrics(self.job_id)
            due -= POLL_SECONDS
            if state != last or due <= 0:
                _say(status_line(state, self._metrics))
                last, due = state, STATUS_SECONDS
            sleep(POLL_SECONDS)

    def read_messages(self) -> None:
        # Those of the last moment come again.
        since = max((message.time for message in self.messages.values()), default=None)
        for message in self.service.messages(self.job_id, since):
            if message.id in self.messages:
                continue
            self.messages[message.id] = message
            if message.importance in self._shown:
                _say(f"Dataflow {message.importance}: {_first_line(message.text)}")


def _failure(watch: _Watch, state: str, sleep: Callable[[float], object]) -> str:
    job_id, service = watch.job_id, watch.service
    where = f"see {service.console_url(job_id)}"
    if state == CANCELLED:
        return f"job {job_id} was cancelled; no dataset was made; {where}"
    cause = cause_of(watch.messages.values())
    for _ in range(EXPLANATION_POLLS):
        if cause is not None:
            break
        sleep(POLL_SECONDS)
        watch.read_messages()
        cause = cause_of(watch.messages.values())
    return f"job {job_id} {state}: {cause or 'Dataflow does not say why'}; {where}"


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    if len(lines) > 1:
        return f"{lines[0]} ... {lines[-1].strip()}"
    return "".join(lines)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
