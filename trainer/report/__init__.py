"""``report``: one self-contained HTML page, the verdict first, then what it rests on."""

from trainer.report.command import add_arguments, run

__all__ = ["add_arguments", "run"]
