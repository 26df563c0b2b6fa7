"""Errors that end a command with a status of their own, and what errors of libraries say."""

__all__ = ["UsageError", "last_line", "one_line"]


class UsageError(ValueError):
    """The command line asks for something it cannot ask for: exit status 2, not 1."""


def last_line(error: Exception) -> str:
    """Return the last line of an error's text: Beam puts whole tracebacks before its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def one_line(error: BaseException) -> str:
    """Return an error's text as one line, or its name if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
