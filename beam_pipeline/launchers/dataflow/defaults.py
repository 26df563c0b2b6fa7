"""The workers of a job where the user chooses none: asked for, and reckoned with."""

from __future__ import annotations

#: One vCPU, 4 GB: what one SDK process with a few shards in work needs. Dataflow bills vCPUs and
#: memory, not the series, so a faster series is cheaper.
MACHINE_TYPE = "n2-standard-4"
VCPUS = 4
MEMORY_GB = 16
#: The image, and shards that are written before they are uploaded.
DISK_GB = 50
#: Where a cluster of this size does not finish within hours, the limit is worth a thought.
MAX_WORKERS = 20
