"""The folder in which a dataset grows before it is moved into place."""

from __future__ import annotations

import re
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from beam_pipeline.output.cloud_segments import CloudSegmentStore
from beam_pipeline.output.segments import SegmentStore
from beam_pipeline.splits import SPLITS
from beam_pipeline.storage.cloud_path import CloudPath
from beam_pipeline.storage.gcs_client import in_parallel
from beam_pipeline.storage.locations import locate
from beam_pipeline.storage.places import AnyPath, remove_tree

PREFIX = ".work-"
NAME = re.compile(r"\.work-[0-9a-f]{12}")

AnySegmentStore = SegmentStore | CloudSegmentStore


@dataclass(frozen=True)
class WorkFolder:
    """Paths of a run's work folder, inside the output folder so that moves stay cheap.

    Its name is new for every run: a worker that outlives a killed run finds its folder gone, or
    writes where nobody looks, but never into the next run's dataset.

    On gs:// it serves workers that share nothing else: they need to create, read and list objects
    in the bucket of the output, and the launcher to delete them, too. Instances are pickled to the
    workers and hold no connection.
    """

    path: str

    @classmethod
    def create(cls, output: AnyPath) -> WorkFolder:
        """Make an empty work folder inside `output`."""
        work = cls(str(output / f"{PREFIX}{uuid.uuid4().hex[:12]}"))
        if not isinstance(output, Path):
            work.local.mkdir(mode=0o700)
        for folder in (work.segments, work.local / "progress", work.rejects, work.pictures):
            folder.mkdir(parents=True)
        for split in SPLITS:
            (work.dataset / split).mkdir()
        return work

    @classmethod
    def planned(cls, output: AnyPath) -> WorkFolder:
        """Return a work folder that is not made, for a pipeline that is only looked at."""
        return cls(str(output / f"{PREFIX}{'0' * 12}"))

    def reopen(self) -> None:
        """Make of a leftover on gs:// what a run can go on with on this machine."""
        self.local.mkdir(mode=0o700, exist_ok=True)
        (self.local / "progress").mkdir(exist_ok=True)

    @staticmethod
    def leftovers(output: AnyPath) -> list[WorkFolder]:
        """Return the work folders of earlier runs."""
        found = sorted(path.name for path in output.iterdir() if NAME.fullmatch(path.name))
        return [WorkFolder(str(output / name)) for name in found]

    @property
    def _root(self) -> AnyPath:
        return locate(self.path)

    @property
    def installing(self) -> AnyPath:
        """Marks that the dataset is being moved from here into the output folder."""
        return self._root / "installing"

    @property
    def dataset(self) -> AnyPath:
        """Folder laid out as the finished dataset."""
        return self._root / "dataset"

    @property
    def rejects(self) -> AnyPath:
        """Folder of the reject lists."""
        return self.dataset / "rejects"

    @property
    def segments(self) -> AnyPath:
        """Folder of accepted trace segments."""
        return self._root / "segments"

    def segment_store(self, n_samples: int, dtype: str) -> AnySegmentStore:
        """Return the store of segments of so many samples."""
        folder = self.segments
        if isinstance(folder, CloudPath):
            return CloudSegmentStore(folder, n_samples, dtype)
        return SegmentStore(str(folder), n_samples, dtype)

    @property
    def local(self) -> Path:
        """Folder on the launcher's disk: this one, or a temporary one if this is on gs://."""
        root = self._root
        if isinstance(root, Path):
            return root
        return Path(tempfile.gettempdir()) / f"lfp{root.name}"

    @property
    def progress(self) -> Path | None:
        """Folder of the counts of workers on the launcher's machine; None on other machines."""
        folder = self.local / "progress"
        elsewhere = not isinstance(self._root, Path) and not folder.is_dir()
        return None if elsewhere else folder

    @property
    def pictures(self) -> AnyPath:
        """Folder of the mean spectrograms that the dataset card shows."""
        return self._root / "pictures"

    @property
    def log(self) -> Path:
        """File of what Beam and its local workers print."""
        return self.local / "beam.log"

    @property
    def job(self) -> AnyPath:
        """File that names the job which fills the folder from elsewhere."""
        return self._root / "job" / "record.json"

    def forget_job(self) -> None:
        """Have no later launcher wait for the job, or take its files for those of its own."""
        remove_tree(self._root / "job")

    @property
    def problem(self) -> AnyPath:
        """File that says why no dataset can be made."""
        return self._root / "problem.txt"

    @property
    def late_rejects(self) -> AnyPath:
        """Marks that spectrograms turned out unusable after the splits were decided."""
        return self._root / "late_rejects"

    @property
    def shards(self) -> AnyPath:
        """File that lists the shards that were written."""
        return self._root / "shards.json"

    def fetch(self) -> WorkFolder:
        """Return a work folder on this machine's disk with all but segments, shards and job.

        That is what the launcher finishes the dataset from; on a disk it is this folder itself.
        """
        root = self._root
        if not isinstance(root, CloudPath):
            return self
        fetched = WorkFolder(str(self.local / "fetched"))
        shutil.rmtree(fetched.path, ignore_errors=True)
        names = [
            name
            for name in root.file_sizes()
            if not name.startswith(("segments/", "job/")) and not name.endswith(".tar")
        ]
        for split in SPLITS:
            (fetched.dataset / split).mkdir(parents=True)
        for folder in (fetched.rejects, fetched.pictures):
            folder.mkdir()

        def fetch(name: str) -> None:
            Path(fetched.path, name).write_bytes((root / name).read_bytes())

        in_parallel(fetch, names)
        return fetched

    def remove(self) -> None:
        """Remove the folder and all in it.

        Workers of a killed run may still be writing: under another name, their paths lead nowhere.
        In Cloud Storage what they write later stays until the next run.
        """
        root = self._root
        if not isinstance(root, Path):
            # First: without all of its files, the job is of no use to anybody.
            self.forget_job()
            root.remove_tree()
            shutil.rmtree(self.local, ignore_errors=True)
            return
        gone = root.with_name(f"{PREFIX}{uuid.uuid4().hex[:12]}")
        root.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        if gone.exists():
            shutil.rmtree(gone)
