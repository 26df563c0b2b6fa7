"""``baselines``: simple models on the same sequences, for a large one to stand beside."""

from trainer.baselines.command import add_arguments, run

__all__ = ["add_arguments", "run"]
