"""Errors that end a command with a status of their own."""

__all__ = ["UsageError"]


class UsageError(ValueError):
    """The command line asks for something it cannot ask for: exit status 2, not 1."""
