"""``python -m trainer pool``: the folds of a cross-validation as one result."""
