"""``baselines``: simple models on the same sequences, for a large one to stand beside."""
