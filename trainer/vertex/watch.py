"""Watching a job until it has ended: its state, its log, and what is to be said at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from trainer.errors import TrainerError
from trainer.vertex.states import FINAL, SUCCEEDED, plain

#: Seconds between two looks at a job: short at first, for a job that fails at once.
FIRST_PAUSE, LONGEST_PAUSE, PAUSE_GROWTH = 0.25, 10.0, 1.5


@dataclass(frozen=True)
class Seen:
    """What a job looks like at one time.

    Attributes
    ----------
    state : str
        As Vertex AI names it.
    error : str
        Why it failed; may be empty.
    """

    state: str
    error: str = ""


def watch(
    look: Callable[[], Seen],
    read_log: Callable[[], Iterable[str]],
    say: Callable[[str], None],
    pause: Callable[[float], None] = time.sleep,
) -> Seen:
    """Wait until a job has ended, and say meanwhile what state it is in and what it writes.

    Parameters
    ----------
    look : callable
        Returns what the job looks like.
    read_log : callable
        Yields lines that are new. A job whose log cannot be read is watched all the same.
    say : callable
        Takes a line for the user.
    pause : callable
        Takes the seconds to wait.

    Returns
    -------
    Seen
        The job at its end.
    """
    log = _Log(read_log, say)
    state = ""
    seconds = FIRST_PAUSE
    while True:
        seen = look()
        if seen.state != state:
            state = seen.state
            say(f"job: {plain(state)}")
        log.follow()
        pause(seconds)
        if state in FINAL:
            # The last lines arrive after the state.
            log.follow()
            return seen
        seconds = min(LONGEST_PAUSE, seconds * PAUSE_GROWTH)


class _Log:
    def __init__(self, read: Callable[[], Iterable[str]], say: Callable[[str], None]) -> None:
        self._read, self._say = read, say
        self._failed = False

    def follow(self) -> None:
        try:
            for line in self._read():
                self._say(line)
            self._failed = False
        except Exception as error:
            if not self._failed:
                text = " ".join(str(error).split())
                self._say(f"the log cannot be read ({text}); the job is watched without it")
            self._failed = True


def check_ended_well(seen: Seen, name: str, advice: str) -> None:
    """Refuse a job that did not end well.

    Parameters
    ----------
    seen : Seen
    name : str
    advice : str
        What to do.

    Raises
    ------
    TrainerError
        With what the service says of it.
    """
    if seen.state == SUCCEEDED:
        return
    why = f": {seen.error}" if seen.error else ""
    raise TrainerError(f"job {name} {FINAL[seen.state]}{why}; {advice}")
