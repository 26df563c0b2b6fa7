"""Names of what transforms give beside their main output, and what they share."""

from __future__ import annotations

from beam_pipeline.rejects import Reject

REJECTS, FINGERPRINTS, SESSION_COUNTS = "rejects", "fingerprints", "session_counts"
SUMMARIES, PICTURES = "summaries", "pictures"

Rejects = list[Reject]
