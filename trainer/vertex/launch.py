"""From a job's specification to its end: printed, or checked, sent, and watched."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from trainer.errors import TrainerError, UsageError
from trainer.vertex.job_spec import Work, as_yaml
from trainer.vertex.machines import machine_notes
from trainer.vertex.options import VertexOptions
from trainer.vertex.watch import Seen, check_ended_well, watch

#: {kind of work: what to do where its job did not end well}.
_ADVICE = {
    "train": "the same command submits it again, and goes on from the last checkpoint",
    "evaluate": "the same command submits it again",
    "tune": "its trials are in the folders 1, 2, ... of --output; a new job needs another --output",
}
_CONSOLE = "https://console.cloud.google.com"
_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/.*)?")


def launch(
    job: dict[str, Any],
    options: VertexOptions,
    work: Work,
    check: Callable[[], object],
    *,
    dry_run: bool,
    wait: bool,
    ended: Callable[[Any], object] = lambda job: None,
) -> None:
    """Print a job as YAML, or send it and follow it until it has ended.

    Parameters
    ----------
    job : dict
        Of `trainer.vertex.job_spec`.
    options : VertexOptions
    work : Work
    check : callable
        Raises where the job could not do its work; asked before anything is sent.
    dry_run : bool
        Print only. Without credentials or a network, what needs them is left out and said.
    wait : bool
        Whether to watch the job.
    ended : callable
        Takes a job that was watched to its end, good or not: CustomJob or HyperparameterTuningJob.

    Raises
    ------
    TrainerError
        If the job is refused, one that writes to the same output has not ended, or it fails.
    """
    # Here, because the client library takes seconds to load.
    from trainer.vertex.validation import parse_job

    message = parse_job(job)
    for note in machine_notes(options.machine, options.accelerator):
        _say(f"warning: {note}")
    from trainer.vertex.preflight import look_ahead

    for note in look_ahead(work.output, options.service_account, check, dry_run=dry_run):
        _say(f"warning: {note}")
    if dry_run:
        print(as_yaml(job, options), end="")
        return
    from trainer.vertex.client import JobService

    service = JobService(options)
    active = service.find_active(message, work.output)
    if active is not None:
        raise TrainerError(
            f"{active.name} has not ended and writes to {work.output} as well: wait for it, cancel "
            f"it ({_gcloud(active.name, 'cancel', options)}), or give another --output"
        )
    try:
        created = service.create(message)
    except KeyboardInterrupt:
        raise TrainerError(
            "interrupted while the job was being sent; if it was, the same command finds it and "
            "says how to cancel it, else it sends it"
        ) from None
    for line in _links(created.name, options, work):
        print(line, flush=True)
    if wait:
        _follow(service, created, options, work, ended)


def require_bucket(flag: str, url: str) -> None:
    """Refuse what a container in the cloud cannot reach.

    Raises
    ------
    UsageError
        If a folder is on this machine, or no bucket can have such a name.
    """
    if not url.startswith("gs://") or not url.removeprefix("gs://").strip("/"):
        raise UsageError(
            f"{flag} must be a gs:// URL for a job in the cloud, not {url}: copy a folder there "
            "with: gcloud storage cp --recursive"
        )
    if not _BUCKET.fullmatch(url):
        raise UsageError(
            f"{flag} {url}: a bucket's name has lower case letters, digits, -, _ and . only"
        )


def _follow(
    service: Any,
    created: Any,
    options: VertexOptions,
    work: Work,
    ended: Callable[[Any], object],
) -> None:
    from trainer.vertex.logs import JobLogs

    last = created

    def look() -> Seen:
        nonlocal last
        last = service.get(created)
        return Seen(last.state.name, last.error.message)

    job_id = created.name.rpartition("/")[2]
    # Made in the first call, so that a job is watched even where no log can be read.
    logs = functools.cache(lambda: JobLogs(options, job_id, created.create_time))
    try:
        seen = watch(look, lambda: logs().read(), _say)
    except KeyboardInterrupt:
        raise TrainerError(
            f"no longer watching; {created.name} goes on. Watch it: "
            f"{_gcloud(created.name, 'stream-logs', options)}; cancel it: "
            f"{_gcloud(created.name, 'cancel', options)}"
        ) from None
    try:
        ended(last)
    finally:
        check_ended_well(seen, created.name, _ADVICE[work.kind])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _gcloud(name: str, verb: str, options: VertexOptions) -> str:
    kind = "hp-tuning-jobs" if "/hyperparameterTuningJobs/" in name else "custom-jobs"
    job_id = name.rpartition("/")[2]
    return f"gcloud ai {kind} {verb} {job_id} --project={options.project} --region={options.region}"


def _links(name: str, options: VertexOptions, work: Work) -> Iterator[str]:
    job_id = name.rpartition("/")[2]
    at = f"?project={options.project}"
    yield f"Job: {name}"
    yield f"State: {_CONSOLE}/agent-platform/locations/{options.region}/training/{job_id}{at}"
    yield f"Log: {_gcloud(name, 'stream-logs', options)}"
    yield f"Output: {_CONSOLE}/storage/browser/{work.output.removeprefix('gs://')}{at}"
    if work.kind == "evaluate":
        return
    if options.vertex_experiment:
        yield (
            f"Experiment: {_CONSOLE}/vertex-ai/experiments/locations/{options.region}/experiments/"
            f"{options.vertex_experiment}{at}"
        )
    if options.tensorboard:
        board = f"{options.tensorboard}/experiments/{job_id}".replace("/", "+")
        yield f"Curves: https://{options.region}.tensorboard.googleusercontent.com/experiment/{board}"
