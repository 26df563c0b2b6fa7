"""Pipelines that bring this package along for their workers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions

from beam_pipeline.launchers.source_package import copy_project


@contextmanager
def packed(options: PipelineOptions) -> Iterator[None]:
    """Have Beam ship this package from a copy of its source, which lives as long as the block."""
    setup = options.view_as(SetupOptions)
    with tempfile.TemporaryDirectory(prefix="lfp-vit-") as folder:
        setup.setup_file = str(copy_project(Path(folder) / "lfp-vit"))
        setup.save_main_session = False
        try:
            yield
        finally:
            setup.setup_file = None
