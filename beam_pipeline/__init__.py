"""From a table of LFP traces to normalised WebDataset shards."""

__version__ = "0.1.0"
