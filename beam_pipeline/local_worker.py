"""The SDK worker of a local run: Beam's own, which leaves quickly when its work is done."""

from __future__ import annotations

import gc
import sys

from apache_beam.runners.worker import sdk_worker_main

from beam_pipeline import transforms  # noqa: F401 (loaded before it is asked for)

if __name__ == "__main__":
    # What is loaded by now stays. Unfrozen, the collector walks it when the process ends, which
    # takes as long as a third of the start.
    gc.freeze()
    sdk_worker_main.main(sys.argv)
