"""What a command may fail with; every message is one line that says what to do."""


class TrainerError(RuntimeError):
    """The command has failed; exit status 1."""


class UsageError(TrainerError):
    """The command was used wrongly; exit status 2."""


class DivergedError(TrainerError):
    """The numbers of a training are no longer finite; other settings may do better."""
