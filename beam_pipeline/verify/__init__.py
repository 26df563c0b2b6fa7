"""Reread a dataset and name whatever does not hold."""
