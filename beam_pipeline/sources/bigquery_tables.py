"""What BigQuery says of a table, and queries put into tables: the REST side of the source."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery
from google.cloud.bigquery.retry import DEFAULT_RETRY

from beam_pipeline.errors import UsageError
from beam_pipeline.sources import SourceError

#: A read session lives for six hours; a query's table must outlive it, and a run begun later.
QUERY_TABLE_LIFE = timedelta(hours=24)
#: For one request: the client itself would wait for an answer for ever.
ANSWER_SECONDS = 60.0
_RETRY = DEFAULT_RETRY.with_timeout(ANSWER_SECONDS)


@dataclass(frozen=True)
class TableState:
    """A table and the time since which it holds what it holds now.

    Attributes
    ----------
    name : str
        ``project.dataset.table``
    modified : datetime.datetime
    can_travel : bool
        Whether it can be read as it was at another time.
    """

    name: str
    modified: datetime
    can_travel: bool


def connect(project: str, on_loopback: bool) -> bigquery.Client:
    """Return a client of the REST API; on loopback it looks for no credentials."""
    if on_loopback:
        return bigquery.Client(project, credentials=AnonymousCredentials())
    return bigquery.Client(project)


def table_state(client: bigquery.Client, name: str, must_be_settled: bool) -> TableState:
    """Return a table's state.

    Parameters
    ----------
    client : google.cloud.bigquery.Client
    name : str
        ``project.dataset.table``
    must_be_settled : bool
        Refuse a table that rows are being streamed into.

    Raises
    ------
    SourceError
        If it is a view, or not settled.
    google.api_core.exceptions.GoogleAPICallError
        If it is not there, or not for us to see.
    """
    table = _table(client, name)
    if table.table_type == "VIEW":
        raise SourceError(
            f"bq://{name} is a view, which cannot be read as a table: pass --input "
            f"bq://{table.project}.DATASET --bq_query 'SELECT * FROM `{name}`'"
        )
    if must_be_settled:
        _check_settled(table, "pass --snapshot_time TIME to say which state is meant")
    return TableState(name, table.modified, table.table_type == "TABLE")


def query_table(client: bigquery.Client, dataset: str, query: str) -> TableState:
    """Put the result of a query into a table that expires.

    The table is named by the query and the state of the tables it reads: asked again, the same
    query of unchanged tables is the same table, and does not run twice while that one lasts.

    Returns
    -------
    TableState
        Its time is that of the last change to any of the tables that the query reads.

    Raises
    ------
    UsageError
        If it is not one SELECT.
    SourceError
        If what it reads is not settled, or changed while it ran.
    google.api_core.exceptions.GoogleAPICallError
        If BigQuery refuses it.
    """
    text = query.strip().rstrip(";").rstrip()
    dry = bigquery.QueryJobConfig(dry_run=True, use_query_cache=False)
    checked = client.query(text, job_config=dry, retry=_RETRY, timeout=ANSWER_SECONDS)
    if checked.statement_type != "SELECT":
        raise UsageError(f"--bq_query must be one SELECT, not {checked.statement_type}")
    tables = [_table(client, reference) for reference in checked.referenced_tables]
    if not tables:
        raise UsageError("--bq_query reads no table")
    of_now = "SYSTEM_TIME" not in text.upper()
    if of_now:
        for table in tables:
            _check_settled(table, "read it with FOR SYSTEM_TIME AS OF in the query")
    states = sorted((str(table.reference), table.modified.isoformat()) for table in tables)
    key = hashlib.sha256(json.dumps([text, states]).encode()).hexdigest()[:20]
    name = f"{dataset}.lfp_query_{key}"
    expires = datetime.now(UTC) + QUERY_TABLE_LIFE
    # In one statement: a table that expires only later stays for good if we die in between.
    making = client.query(
        f"CREATE TABLE IF NOT EXISTS `{name}` OPTIONS "
        f"(expiration_timestamp = TIMESTAMP '{expires.isoformat(timespec='seconds')}') AS\n{text}",
        retry=_RETRY,
        timeout=ANSWER_SECONDS,
    )
    _wait(making)
    for table in tables:
        if of_now and _table(client, table.reference).modified != table.modified:
            raise SourceError(
                f"bq://{table.reference} changed while --bq_query ran; run the command again"
            )
    result = _table(client, name)
    if result.expires is not None and result.expires < expires - QUERY_TABLE_LIFE / 2:
        result.expires = expires
        client.update_table(result, ["expires"], retry=_RETRY, timeout=ANSWER_SECONDS)
    return TableState(name, max(table.modified for table in tables), can_travel=False)


def _wait(job: bigquery.QueryJob) -> None:
    """Return when a query has run; BigQuery itself ends one after six hours."""
    while True:
        # The time is for each request, but the client takes it for all of them as well.
        with suppress(TimeoutError):
            job.result(retry=_RETRY, timeout=ANSWER_SECONDS)
            return


def _table(client: bigquery.Client, name: bigquery.TableReference | str) -> bigquery.Table:
    return client.get_table(name, retry=_RETRY, timeout=ANSWER_SECONDS)


def _check_settled(table: bigquery.Table, advice: str) -> None:
    if table.streaming_buffer is not None:
        raise SourceError(
            f"bq://{table.reference}: rows are being streamed into it, so the same command would "
            f"read other rows the next time; {advice}"
        )
