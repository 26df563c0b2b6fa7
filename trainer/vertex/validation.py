"""Job specifications held against the message types of Vertex AI.

gcloud sends a misspelt field without a word, and the service ignores it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.cloud.aiplatform_v1.types import CustomJob, HyperparameterTuningJob
from google.protobuf.json_format import ParseDict, ParseError

from trainer.errors import UsageError

Job = CustomJob | HyperparameterTuningJob


def parse_job(job: Mapping[str, Any]) -> Job:
    """Return a job as the message that is sent.

    Raises
    ------
    UsageError
        If a field does not exist or a value is none that it can have, such as an accelerator.
    """
    message = HyperparameterTuningJob if "studySpec" in job else CustomJob
    try:
        parsed: Job = message.wrap(ParseDict(dict(job), message.pb(message())))
    except ParseError as error:
        raise UsageError(f"Vertex AI has no such job: {error}") from error
    return parsed
