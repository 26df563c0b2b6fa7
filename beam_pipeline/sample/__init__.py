"""Generate LFP-like trace tables whose ground truth is known."""
