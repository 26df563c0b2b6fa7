"""Which job fills a work folder, so that another launcher can follow it to its end.

A record is written before its job is sent, and removed when the job is known to have ended without
use: as long as it is there, the job may be running.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from beam_pipeline.launchers.contract import StillRunningError
from beam_pipeline.output.work_folder import WorkFolder

#: Label of a job that names its work folder.
LABEL = "lfp-work"


@dataclass(frozen=True)
class JobRecord:
    """A job that was submitted, or was about to be.

    Attributes
    ----------
    job_id : str
        Empty until Dataflow has answered.
    job_name, project, region : str
    label : str
        Value of the job's label `LABEL`, which no other job has.
    identity : mapping
        Options and input of the dataset that it makes, as JSON data.
    """

    job_id: str
    job_name: str
    project: str
    region: str
    label: str
    identity: Mapping[str, Any]

    def to_json(self) -> str:
        """Return the record as text."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def __str__(self) -> str:
        return f"job {self.job_id or self.job_name}"

    def end_command(self) -> str:
        """Return what a person types to end the job, or to look for it where its id is unknown."""
        if self.job_id:
            return cancel_command(self.job_id, self.project, self.region)
        place = f"--region {self.region} --project {self.project}"
        return f"gcloud dataflow jobs list --filter name={self.job_name} {place}"


def cancel_command(job_id: str, project: str, region: str) -> str:
    """Return what a person types to cancel a job."""
    return f"gcloud dataflow jobs cancel {job_id} --region {region} --project {project}"


def read_record(work: WorkFolder) -> JobRecord | None:
    """Return the record in a work folder; None if no job was submitted for it.

    Raises
    ------
    StillRunningError
        If the record cannot be read, as that of another version: its job may be running.
    """
    if not work.job.exists():
        return None
    try:
        return JobRecord(**json.loads(work.job.read_text()))
    except (ValueError, TypeError) as error:
        raise StillRunningError(
            f"{work.job} does not say which job of Dataflow fills its folder, and that one may be "
            f"running: end it where it is, and remove {work.path}"
        ) from error


def refuse_recorded(leftovers: Iterable[WorkFolder]) -> None:
    """Refuse to go on where a job may be running that only its own launcher can ask for.

    Raises
    ------
    StillRunningError
    """
    for work in leftovers:
        record = read_record(work)
        if record is not None:
            raise StillRunningError(
                f"{record} on Dataflow may still be writing there; run with --runner "
                f"DataflowRunner, which follows it, or see '{record.end_command()}' and remove "
                f"{work.path}"
            )
