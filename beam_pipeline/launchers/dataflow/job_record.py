"""Which job fills a work folder, so that another launcher can follow it to its end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from beam_pipeline.output.work_folder import WorkFolder


@dataclass(frozen=True)
class JobRecord:
    """A job that was submitted.

    Attributes
    ----------
    job_id, job_name, project, region : str
    identity : mapping
        Options and input of the dataset that it makes, as JSON data.
    """

    job_id: str
    job_name: str
    project: str
    region: str
    identity: Mapping[str, Any]

    def to_json(self) -> str:
        """Return the record as text."""
        return json.dumps(asdict(self), indent=1) + "\n"


def read_record(work: WorkFolder) -> JobRecord | None:
    """Return the record in a work folder; None if no job was submitted for it."""
    if not work.job.exists():
        return None
    try:
        return JobRecord(**json.loads(work.job.read_text()))
    except (ValueError, TypeError):
        # Not written by us, or by another version: no job of ours to follow.
        return None
