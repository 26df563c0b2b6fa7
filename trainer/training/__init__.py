"""``python -m trainer train``: from a dataset folder to a run folder."""
