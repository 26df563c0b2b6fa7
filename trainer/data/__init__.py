"""A dataset folder's trials, as batches of sequences."""
