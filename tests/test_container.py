"""The trainer's image, without an engine: what its files say, and its steps, carried out here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

import pytest
import yaml

from tests.runs import ROOT

DOCKERFILE = ROOT / "Dockerfile.trainer"
NOBODY = 65534
#: Steps that change the system, not what Python finds: a package of Debian, a user.
SYSTEM_STEPS = ("apt-get ", "useradd ")


def read_steps(text: str) -> list[tuple[str, str]]:
    """Instructions of a Dockerfile with what follows them, lines joined."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    joined = lines.replace("\\\n", " ")
    return [
        (line.split()[0], line.partition(" ")[2].strip()) for line in joined.splitlines() if line
    ]


STEPS = read_steps(DOCKERFILE.read_text())


def last(instruction: str) -> str:
    return [rest for name, rest in STEPS if name == instruction][-1]


def in_context(path: str) -> bool:
    """Whether .dockerignore, which leaves out all but a few names, lets a top-level path in."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "/*"
    return f"!/{path}" in rules


def test_continued_lines_and_comments_are_understood():
    assert read_steps("# x\nFROM a\n\nRUN b \\\n    && c\nENV A=1 \\\n  B=2\n") == [
        ("FROM", "a"),
        ("RUN", "b      && c"),
        ("ENV", "A=1    B=2"),
    ]


def test_the_base_is_pinned_by_tag_and_digest():
    bases = [rest for name, rest in STEPS if name == "FROM"]
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+@sha256:[0-9a-f]{64}", bases[0])


def test_it_starts_the_trainer_and_not_as_root():
    assert json.loads(last("ENTRYPOINT")) == ["python", "-m", "trainer"]
    assert int(last("USER").partition(":")[0]) > 0


def test_a_change_of_the_code_installs_no_package_again():
    before_code = STEPS[: STEPS.index(("COPY", "trainer trainer"))]
    assert any(
        name == "RUN" and "--constraint constraints.txt" in rest for name, rest in before_code
    )
    assert not any("GIT_COMMIT" in rest for _, rest in before_code)


def test_what_is_copied_is_sent_to_the_engine_and_nothing_else_is():
    copied = {word for name, rest in STEPS if name == "COPY" for word in rest.split()[:-1]}
    assert copied
    for path in copied | {DOCKERFILE.name}:
        assert (ROOT / path).exists()
        assert in_context(path)
    for path in (".git", ".venv", "out", "tests", "cloud"):
        assert not in_context(path)


def test_cloud_build_builds_what_the_dockerfile_takes_and_pushes_what_it_builds():
    build = yaml.safe_load((ROOT / "cloudbuild.yaml").read_text())
    (step,) = build["steps"]
    words = step["args"]
    given = {word.split("=")[1] for word in words if word.startswith("--build-arg=")}
    tags = [word.partition("=")[2] for word in words if word.startswith("--tag=")]

    known = {rest.partition("=")[0] for name, rest in STEPS if name == "ARG"}
    # The one that is BuildKit's own.
    assert given == known | {"BUILDKIT_INLINE_CACHE"}
    assert build["images"] == tags
    assert f"--file={DOCKERFILE.name}" in words


def test_every_substitution_of_cloud_build_is_given():
    text = (ROOT / "cloudbuild.yaml").read_text()
    used = set(re.findall(r"\$\{(_\w+)\}", text))
    given = re.search(r'--substitutions="(.*)"', (ROOT / "cloud" / "build_image.sh").read_text())
    assert given
    assert used == set(re.findall(r"(_[A-Z_]+)=", given[1]))


@dataclass
class Image:
    """A folder that stands in for an image's files, and what the steps so far have set.

    Python's packages come from this interpreter, as links: installing may find them, not change
    them, and finds neither this project nor an index.
    """

    root: Path
    user: int | None
    workdir: Path
    env: dict[str, str] = field(default_factory=dict)

    @classmethod
    def create(cls, root: Path) -> Image:
        python = root / "python"
        venv.create(python, symlinks=True, with_pip=False)
        site = Path(sysconfig.get_path("purelib", vars={"base": str(python)}))
        packages = root / "packages"
        packages.mkdir()
        ours = re.compile(r"lfp[_-]vit|__editable__|trainer$|beam_pipeline$|.*\.pth$|__pycache__$")
        for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for path in Path(folder).iterdir():
                if not ours.match(path.name):
                    (packages / path.name).symlink_to(path)
        (site / "packages.pth").write_text(f"{packages}\n")
        pip = python / "bin" / "pip"
        pip.write_text(
            f'#!/bin/sh\nexec {python}/bin/python -m pip "$@" --no-index --no-build-isolation\n'
        )
        pip.chmod(0o755)
        image = cls(root, another_user(python / "bin" / "python"), root)
        image.env = {"PATH": f"{python}/bin:/usr/bin:/bin", "TMPDIR": str(root)}
        image.give(root)
        return image

    def give(self, path: Path) -> None:
        if self.user is not None:
            for each in (path, *path.rglob("*")):
                os.chown(each, self.user, self.user, follow_symlinks=False)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words,
            cwd=self.workdir,
            env=self.env,
            user=self.user,
            group=self.user,
            extra_groups=None if self.user is None else [],
            capture_output=True,
            text=True,
            check=False,
        )

    def take(self, name: str, rest: str) -> None:
        """Carry a step out."""
        if name == "RUN" and not rest.startswith(SYSTEM_STEPS):
            done = self.run("/bin/sh", "-c", rest)
            assert done.returncode == 0, f"{rest}\n{done.stdout}{done.stderr}"
        elif name == "WORKDIR":
            self.workdir = self.root / rest.lstrip("/")
            self.workdir.mkdir(parents=True, exist_ok=True)
            self.give(self.root / Path(rest).parts[1])
        elif name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                to = self.workdir / target / ("" if target == source else source)
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, to, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / source, to)
            self.give(self.workdir)
        elif name in ("ENV", "ARG"):
            for word in rest.split():
                variable, _, value = word.partition("=")
                value = Template(value.strip('"')).substitute(self.env)
                # The image's /tmp, not ours.
                self.env[variable] = value.replace("/tmp", str(self.root), 1)


def another_user(python: Path) -> int | None:
    """Return the user that the steps are run as; None for ourselves.

    Who is not root is such a user already, and a Python that only root may read leaves no choice.
    """
    if os.geteuid() != 0:
        return None
    try:
        done = subprocess.run(
            [python, "-c", "import pip"],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            capture_output=True,
            check=False,
        )
    except PermissionError:
        return None
    return NOBODY if done.returncode == 0 else None


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    # Not tmp_path, which nobody else may look into.
    with tempfile.TemporaryDirectory(prefix="image-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        image = Image.create(root)
        for name, rest in STEPS:
            image.take(name, rest)
        yield image


def test_its_steps_in_an_empty_environment_end_in_a_trainer_that_starts(image):
    done = image.run(*json.loads(last("ENTRYPOINT")), *json.loads(last("CMD")))

    assert done.returncode == 0, done.stderr
    assert "usage: python -m trainer COMMAND" in done.stdout


def test_it_runs_the_installed_code_with_all_its_files(image):
    code = "import trainer; print(trainer.__path__[0])"
    installed = Path(image.run("python", "-c", code).stdout.strip())

    assert installed.is_relative_to(image.root / "python")
    listing = [
        {path.relative_to(top) for path in top.rglob("*") if path.is_file()}
        for top in (installed, ROOT / "trainer")
    ]
    sources, expected = (
        {path for path in files if "__pycache__" not in path.parts} for files in listing
    )
    assert sources == expected


def test_it_reports_wrong_usage_like_a_checkout(image):
    done = image.run(*json.loads(last("ENTRYPOINT")), "train", "--model.sise", "tiny")

    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_it_has_no_part_of_the_pipeline(image):
    done = image.run("python", "-c", "import beam_pipeline")

    assert done.returncode == 1
    assert "No module named 'beam_pipeline'" in done.stderr


def test_the_interpreter_that_runs_the_steps_is_not_this_one(image):
    done = image.run("python", "-c", "import sys; print(sys.prefix)")

    assert Path(done.stdout.strip()) != Path(sys.prefix)
