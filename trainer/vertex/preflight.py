"""What is looked at before a job is sent: its output's bucket, its input, its account."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from google.api_core.exceptions import Forbidden, NotFound

from trainer.remote.folder import PATIENCE_SECONDS, RemoteError
from trainer.remote.gcs import GcsFolder
from trainer.vertex.account import check_account

#: A dry run goes on without what does not answer within these seconds.
_DRY_PATIENCE_SECONDS = 2.0


def look_ahead(
    output: str, service_account: str, check: Callable[[], object], *, dry_run: bool
) -> Iterator[str]:
    """Check what a job needs, and yield notes on what could not be checked.

    Parameters
    ----------
    output : str
        ``gs://`` URL.
    service_account : str
        Address; empty for the project's own.
    check : callable
        Raises where the job could not do its work.
    dry_run : bool
        Where Cloud Storage cannot be asked, for want of a network or credentials, say so and leave
        the checks out.

    Raises
    ------
    TrainerError
        If something is missing, or does not answer.
    """
    try:
        GcsFolder(output, _DRY_PATIENCE_SECONDS if dry_run else PATIENCE_SECONDS).list_files()
    except RemoteError as error:
        cause = error.__cause__
        if isinstance(cause, NotFound) or not (dry_run or isinstance(cause, Forbidden)):
            raise
        if dry_run:
            yield f"neither input, output nor service account was checked: {error}"
            return
        yield f"whether the job can write its output was not checked: {error}"
    check()
    if service_account:
        yield from check_account(service_account)
