"""How a finished dataset gets into the output folder: its manifest appears last."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from beam_pipeline.card import PICTURE
from beam_pipeline.manifest import MANIFEST, RUN, SESSIONS, STATS, Manifest
from beam_pipeline.output.lock import OutputLock
from beam_pipeline.output.work_folder import WorkFolder
from beam_pipeline.splits import SPLITS
from beam_pipeline.storage.cloud_path import CloudPath, ObjectState
from beam_pipeline.storage.gcs_client import in_parallel
from beam_pipeline.storage.places import AnyPath

#: What a dataset folder consists of, besides its manifest.
CONTENTS = (
    STATS,
    SESSIONS,
    *SPLITS,
    *(f"{split}.json" for split in SPLITS),
    "rejects",
    "README.md",
    PICTURE,
    RUN,
)


class InstallationError(RuntimeError):
    """What is to be installed is not there as it was written."""


def install(
    work: WorkFolder, finished: WorkFolder, manifest: Manifest, output: AnyPath, lock: OutputLock
) -> None:
    """Put a finished dataset into place; its manifest appears last.

    Parameters
    ----------
    work : WorkFolder
        Of the run.
    finished : WorkFolder
        ``work.fetch()``, in which the launcher has written the files beside the shards.
    manifest : Manifest
    output : path
    lock : OutputLock
        Held on `output`.

    Raises
    ------
    InstallationError, LockedError, OSError
        If the dataset cannot be installed. No manifest is there then.
    """
    Path(finished.path, "dataset", MANIFEST).write_text(manifest.to_json())
    if isinstance(output, Path):
        _move(work, output)
    else:
        assert isinstance(output, CloudPath)
        _copy(work, finished, manifest, output, lock)


def _move(work: WorkFolder, output: Path) -> None:
    """Move the parts of a dataset on a disk.

    All is on the disk before the first file moves, so that not even a power cut leaves a manifest
    beside a file that is not whole.
    """
    dataset = Path(work.path, "dataset")
    _flush(dataset)
    work.installing.touch()
    (output / MANIFEST).unlink(missing_ok=True)
    for name in CONTENTS:
        old = output / name
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
        (dataset / name).rename(old)
    _flush(output, recursive=False)
    (dataset / MANIFEST).rename(output / MANIFEST)
    _flush(output, recursive=False)
    work.remove()


def _flush(folder: Path, recursive: bool = True) -> None:
    """Have the disk keep a folder's entries, and with `recursive` everything below it."""
    for path in [*(folder.rglob("*") if recursive else ()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _copy(
    work: WorkFolder, finished: WorkFolder, manifest: Manifest, output: CloudPath, lock: OutputLock
) -> None:
    """Copy the parts of a dataset inside a bucket, which moves no bytes.

    A run that was cut off may go on after another has taken the folder over. It then finds its
    lock gone, or else: what it deletes must be what was there while the lock was its own, and what
    it copies the other run has removed first (docs/decisions/0010).
    """
    dataset = work.dataset
    assert isinstance(dataset, CloudPath)
    local = Path(finished.path, "dataset")
    small = [str(path.relative_to(local)) for path in local.rglob("*") if path.is_file()]
    in_parallel(lambda name: (dataset / name).write_bytes((local / name).read_bytes()), small)
    work.installing.touch()
    parts = _parts(dataset.states(), manifest)
    old = _old_parts(output.states())
    lock.check()
    # The manifest alone, first and last: it stands for all the rest.
    _delete(output, {name: state for name, state in old.items() if name == MANIFEST})
    _delete(output, {name: state for name, state in old.items() if name != MANIFEST})
    names = [name for name in parts if name != MANIFEST]
    in_parallel(lambda name: (dataset / name).copy_to(output / name, parts[name]), names)
    (dataset / MANIFEST).copy_to(output / MANIFEST, parts[MANIFEST])
    work.remove()


def _parts(found: dict[str, ObjectState], manifest: Manifest) -> dict[str, ObjectState]:
    """Return the objects that make up a dataset, each of the size that the manifest states."""
    sizes = {shard["path"]: shard["bytes"] for shard in manifest.shards}
    sizes |= {name: entry["bytes"] for name, entry in manifest.files.items()}
    wrong = [name for name, size in sizes.items() if name not in found or found[name].size != size]
    if wrong:
        raise InstallationError(f"{wrong[0]} is not there as it was written; run again")
    return {name: found[name] for name in (*sizes, RUN, MANIFEST)}


def _old_parts(found: dict[str, ObjectState]) -> dict[str, ObjectState]:
    ours = {*CONTENTS, MANIFEST}
    return {name: state for name, state in found.items() if name.partition("/")[0] in ours}


def _delete(output: CloudPath, states: dict[str, ObjectState]) -> None:
    def delete(name: str) -> bool:
        return (output / name).delete(states[name].generation)

    kept = [
        name for name, gone in zip(states, in_parallel(delete, states), strict=True) if not gone
    ]
    if kept:
        raise InstallationError(f"another program has replaced {output / kept[0]}; run again")
