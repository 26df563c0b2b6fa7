"""The folder in which a dataset grows before it is moved into place."""

from __future__ import annotations

import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from beam_pipeline.splits import SPLITS

PREFIX = ".work-"
NAME = re.compile(r"\.work-[0-9a-f]{12}")


@dataclass(frozen=True)
class WorkFolder:
    """Paths of a run's work folder, inside the output folder so that moves stay cheap.

    Its name is new for every run: a worker that outlives a killed run finds its folder gone and
    cannot write into the next run's dataset.
    """

    path: str

    @classmethod
    def create(cls, output: Path) -> WorkFolder:
        """Make an empty work folder inside `output`."""
        work = cls(str(output / f"{PREFIX}{uuid.uuid4().hex[:12]}"))
        for folder in (work.segments, work.progress, work.rejects, work.pictures):
            folder.mkdir(parents=True)
        for split in SPLITS:
            (work.dataset / split).mkdir()
        return work

    @staticmethod
    def leftovers(output: Path) -> list[WorkFolder]:
        """Return the work folders of earlier runs."""
        found = sorted(output.glob(f"{PREFIX}*"))
        return [WorkFolder(str(path)) for path in found if NAME.fullmatch(path.name)]

    @property
    def installing(self) -> Path:
        """Marks that the dataset is being moved from here into the output folder."""
        return Path(self.path) / "installing"

    @property
    def dataset(self) -> Path:
        """Folder laid out as the finished dataset."""
        return Path(self.path) / "dataset"

    @property
    def rejects(self) -> Path:
        """Folder of the reject lists."""
        return self.dataset / "rejects"

    @property
    def segments(self) -> Path:
        """Folder of accepted trace segments."""
        return Path(self.path) / "segments"

    @property
    def progress(self) -> Path:
        """Folder of the workers' counts."""
        return Path(self.path) / "progress"

    @property
    def pictures(self) -> Path:
        """Folder of the mean spectrograms that the dataset card shows."""
        return Path(self.path) / "pictures"

    @property
    def log(self) -> Path:
        """File of what Beam and its local workers print."""
        return Path(self.path) / "beam.log"

    @property
    def problem(self) -> Path:
        """File that says why no dataset can be made."""
        return Path(self.path) / "problem.txt"

    @property
    def late_rejects(self) -> Path:
        """Marks that spectrograms turned out unusable after the splits were decided."""
        return Path(self.path) / "late_rejects"

    @property
    def shards(self) -> Path:
        """File that lists the shards that were written."""
        return Path(self.path) / "shards.json"

    def remove(self) -> None:
        """Remove the folder and all in it.

        Workers of a killed run may still be writing: under another name, their paths lead nowhere.
        """
        gone = Path(self.path).with_name(f"{PREFIX}{uuid.uuid4().hex[:12]}")
        Path(self.path).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        if gone.exists():
            shutil.rmtree(gone)
