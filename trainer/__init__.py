"""From a dataset folder of spectrogram shards to an honestly evaluated transformer."""

__version__ = "0.1.0"
