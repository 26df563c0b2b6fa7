"""Whether the buckets of a job are there, and let this account do what the launcher must.

A missing staging bucket would otherwise show after minutes of Beam's retries, a missing right in
the middle of the job. What the workers' service account may do cannot be asked from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from apache_beam.io.gcp.gcsio import create_storage_client
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound, Unauthorized
from google.auth.exceptions import GoogleAuthError
from requests import RequestException

from beam_pipeline.errors import one_line

READ = ("storage.objects.get", "storage.objects.list")
WRITE = (*READ, "storage.objects.create", "storage.objects.delete")
#: Beam looks at the bucket itself before it stages a file.
STAGE = (*WRITE, "storage.buckets.get")

#: {multi-region: how its regions' names begin}.
_MULTI_REGIONS = {"us": "us-", "eu": "europe-", "asia": "asia-"}
#: What the client raises for an answer that says no more, or for none.
_UNANSWERED = (GoogleAPIError, RequestException)


class BucketError(RuntimeError):
    """A bucket is missing, or out of reach; the message says which and what to do."""


def check_buckets(options: PipelineOptions, input: str, output: str) -> list[str]:
    """Check every bucket that a job touches.

    Parameters
    ----------
    options : PipelineOptions
        Of the job, completed.
    input, output : str
        The table and the dataset folder.

    Returns
    -------
    list of str
        Notes on what works, but costs.

    Raises
    ------
    BucketError
        If one is missing or a right is; all that is found is said.
    """
    cloud = options.view_as(GoogleCloudOptions)
    places = {
        "--output": (output, WRITE),
        "--temp_location": (cloud.temp_location, STAGE),
        "--staging_location": (cloud.staging_location, STAGE),
    }
    if input.startswith("gs://"):
        places["--input"] = (input, READ)
    try:
        client = create_storage_client(options, not cloud.no_auth)
        problems = list(_problems(client, places))
        if problems:
            raise BucketError("; ".join(problems))
        buckets = dict.fromkeys(bucket_of(url) for url, _ in places.values())
        return [note for name in buckets for note in _far_away(client, name, cloud.region)]
    except GoogleAuthError as error:
        raise BucketError(
            f"no Google credentials ({error}); run 'gcloud auth application-default login'"
        ) from error
    except _UNANSWERED as error:
        raise BucketError(f"Cloud Storage cannot be asked ({one_line(error)})") from error


def bucket_of(url: str) -> str:
    """Return the bucket of a gs:// URL."""
    return url.removeprefix("gs://").partition("/")[0]


def roles_for(missing: Iterable[str]) -> list[str]:
    """Return the narrowest roles on a bucket that hold what is missing."""
    lacks = set(missing)
    # Of a bucket itself, no role on objects says anything.
    roles = ["roles/storage.legacyBucketReader"] if lacks & {"storage.buckets.get"} else []
    if lacks & {"storage.objects.create", "storage.objects.delete"}:
        return ["roles/storage.objectUser", *roles]
    return ["roles/storage.objectViewer", *roles] if lacks & set(READ) else roles


def location_notes(bucket: str, location: str, region: str) -> Iterator[str]:
    """Yield a note if a bucket is not where the workers are: its traffic would be billed.

    Dual regions, such as ``NAM4``, are left alone.
    """
    place = location.lower()
    is_multi = place in _MULTI_REGIONS
    begins = _MULTI_REGIONS.get(place, f"{place}-")
    if f"{region}-".startswith(begins) or not (is_multi or "-" in place):
        return
    better = f"a --region of {place.upper()}" if is_multi else f"--region {place}"
    yield (
        f"gs://{bucket} is in {place}, the workers in {region}: traffic between them is slower "
        f"and billed; {better} avoids it"
    )


def _far_away(client: Any, bucket: str, region: str) -> Iterator[str]:
    try:
        location = client.get_bucket(bucket).location
    except (Forbidden, Unauthorized):
        # Whoever may use its objects need not be allowed to look at the bucket.
        return
    yield from location_notes(bucket, location, region)


def _problems(client: Any, places: Mapping[str, tuple[str, Iterable[str]]]) -> Iterator[str]:
    for flag, (url, needed) in places.items():
        bucket = bucket_of(url)
        where = f"{flag} {url}"
        try:
            granted = client.bucket(bucket).test_iam_permissions(list(needed))
        except NotFound:
            yield f"{where}: there is no bucket gs://{bucket}"
        except (Forbidden, Unauthorized) as error:
            yield f"{where}: gs://{bucket} is out of reach ({error.message})"
        except _UNANSWERED as error:
            yield f"{where}: gs://{bucket} cannot be asked ({one_line(error)})"
        else:
            missing = [name for name in needed if name not in granted]
            if missing:
                yield (
                    f"{where}: this account lacks {', '.join(missing)} on gs://{bucket}; grant it "
                    f"{' and '.join(roles_for(missing))} there"
                )
