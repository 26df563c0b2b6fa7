"""The source that remote workers install, as a project of its own in a temporary folder.

Beam builds a source distribution beside the ``setup.py`` that it is given, which leaves build
products in a checkout and fails in one that is read-only. So the project is copied first, and
Beam builds the copy.
"""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: What builds the package. The trainer stays behind: no worker imports it.
PROJECT = ("setup.py", "pyproject.toml", "LICENSE")
PACKAGE = "beam_pipeline"


class PackagingError(RuntimeError):
    """The package cannot be shipped to workers; the message says what is missing."""


def copy_project(folder: Path, root: Path = ROOT) -> Path:
    """Copy what workers install.

    Parameters
    ----------
    folder : pathlib.Path
        Becomes the project's folder; it must not exist.
    root : pathlib.Path
        The checkout.

    Returns
    -------
    pathlib.Path
        The copied ``setup.py``, for Beam's ``--setup_file``.

    Raises
    ------
    PackagingError
        If this code does not run from a checkout.
    """
    missing = [name for name in PROJECT if not (root / name).is_file()]
    if missing:
        raise PackagingError(
            f"workers install this package from its source, but {root} has no "
            f"{', '.join(missing)}; run from a checkout of the repository"
        )
    folder.mkdir(parents=True)
    for name in PROJECT:
        # Contents alone: the modes of a read-only checkout would follow.
        shutil.copyfile(root / name, folder / name)
    for path in sorted((root / PACKAGE).rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            target = folder / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return folder / PROJECT[0]
