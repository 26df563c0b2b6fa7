"""What Google's services say of a job before anything of it is sent."""

from __future__ import annotations

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from beam_pipeline.launchers.dataflow.account import AccountError, check_account
from beam_pipeline.launchers.dataflow.buckets import BucketError, check_buckets
from beam_pipeline.launchers.dataflow.service import (
    DataflowService,
    ServiceError,
    credentials_of,
)


class PreflightError(RuntimeError):
    """The job could not be sent or could not work; the message says all that was found."""


def check_services(
    options: PipelineOptions, service: DataflowService, input: str, output: str
) -> list[str]:
    """Check the region, the workers' account and every bucket of a job.

    Parameters
    ----------
    options : PipelineOptions
        Of the job, completed.
    service : DataflowService
        Of its project and region.
    input, output : str
        The table and the dataset folder.

    Returns
    -------
    list of str
        Notes on what works but costs, and on what could not be checked.

    Raises
    ------
    PreflightError
    """
    account = options.view_as(GoogleCloudOptions).service_account_email
    notes: list[str] = []
    problems: list[str] = []
    for check in (
        service.check_region,
        lambda: check_account(account, credentials_of(options)) if account else [],
        lambda: check_buckets(options, input, output),
    ):
        try:
            notes += check()
        except (ServiceError, AccountError, BucketError) as error:
            problems.append(str(error))
    if problems:
        raise PreflightError("; ".join(problems))
    return notes
