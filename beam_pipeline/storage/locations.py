"""Places as users name them: a path on this machine, or a gs:// URL."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from beam_pipeline.errors import UsageError
from beam_pipeline.storage.cloud_path import SCHEME, CloudPath
from beam_pipeline.storage.places import AnyPath


def locate(place: str) -> AnyPath:
    """Return the path that a user's text names.

    Raises
    ------
    UsageError
        If it is a URL of another scheme than gs://, or names no bucket.
    """
    if place.startswith(SCHEME):
        bucket, _, name = place.removeprefix(SCHEME).partition("/")
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]+", bucket):
            raise UsageError(f"{place}: not gs://BUCKET/FOLDER; '{bucket}' is no name of a bucket")
        return CloudPath(bucket, "/".join(part for part in name.split("/") if part))
    if re.match(r"[a-z0-9+]+://", place, re.IGNORECASE):
        raise UsageError(f"{place}: files are read and written on this machine or on gs:// only")
    return Path(place)


def local_path(place: str) -> Path:
    """Return the path of a command-line argument that can name this machine's disk only."""
    if "://" in place:
        raise argparse.ArgumentTypeError(f"{place} is no path of this machine")
    return Path(place)
