"""The project's own rules: what may import what, what is pinned, what the scripts pass on."""

import ast
import graphlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "beam_pipeline"
TRAINER = ROOT / "trainer"
WORKER_REQUIREMENTS = {"numpy", "pyarrow", "scipy"}
CLOUD = {"boto3", "fsspec", "gcsfs", "google"}
GLUE = {
    "beam_pipeline.__main__",
    "beam_pipeline.counters",
    "beam_pipeline.launchers.choice",
    "beam_pipeline.launchers.contract",
    "beam_pipeline.launchers.dataflow.account",
    "beam_pipeline.launchers.dataflow.buckets",
    "beam_pipeline.launchers.dataflow.job_options",
    "beam_pipeline.launchers.dataflow.launch",
    "beam_pipeline.launchers.dataflow.preflight",
    "beam_pipeline.launchers.dataflow.service",
    "beam_pipeline.launchers.dataflow.submit",
    "beam_pipeline.launchers.local",
    "beam_pipeline.launchers.local_runner",
    "beam_pipeline.launchers.local_worker",
    "beam_pipeline.launchers.packed",
    "beam_pipeline.launchers.portable",
    "beam_pipeline.pipeline",
    "beam_pipeline.sources.bigquery",
    "beam_pipeline.sources.bigquery_errors",
    "beam_pipeline.sources.bigquery_streams",
    "beam_pipeline.sources.bigquery_tables",
    "beam_pipeline.storage.cloud_path",
    "beam_pipeline.storage.gcs_client",
    "beam_pipeline.transforms.plan",
    "beam_pipeline.transforms.read",
    "beam_pipeline.transforms.spectrograms",
    "beam_pipeline.transforms.write",
}
#: The trainer's modules that know Google's clients; whatever else needs them imports them late.
TRAINER_GLUE = {
    "trainer.outbox",
    "trainer.remote.gcs",
    "trainer.transient",
    "trainer.vertex.account",
    "trainer.vertex.client",
    "trainer.vertex.experiment",
    "trainer.vertex.logs",
    "trainer.vertex.preflight",
    "trainer.vertex.validation",
}
PURE = [
    f"beam_pipeline.{name}"
    for name in (
        "blocks",
        "launchers.dataflow.checks",
        "launchers.dataflow.cost",
        "launchers.dataflow.job_state",
        "manifest",
        "moments",
        "screening",
        "shards",
        "spectrogram",
        "splits",
        "survey",
        "trace_column",
    )
]
#: What may be run on numbers alone, whatever made them.
PURE_TRAINER = [
    f"trainer.{name}"
    for name in (
        "config",
        "data.dataset_folder",
        "data.sequences",
        "data.split_plan",
        "data.statistics",
        "data.trials",
        "evaluation.calibration",
        "evaluation.intervals",
        "evaluation.metrics",
        "evaluation.permutation",
        "evaluation.predictions",
        "evaluation.results",
        "pooling.baselines",
        "pooling.coverage",
        "pooling.folds",
        "report.verdict",
        "training.schedule",
        "tune.space",
        "vertex.container",
        "vertex.job_spec",
        "vertex.machines",
        "vertex.options",
        "vertex.states",
        "vertex.watch",
    )
]


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_under(package: Path) -> dict[str, Path]:
    return {module_name(path, package.parent): path for path in sorted(package.rglob("*.py"))}


def import_nodes(tree: ast.AST, *, nested: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports in a tree; those inside functions only when `nested`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif nested or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from import_nodes(node, nested=nested)


def imported_names(name: str, path: Path, *, nested: bool = True) -> set[str]:
    """Absolute dotted names that a file imports, the imported attribute included."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found: set[str] = set()
    for node in import_nodes(ast.parse(path.read_text()), nested=nested):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        else:
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def import_graph(modules: dict[str, Path], *, nested: bool = True) -> dict[str, set[str]]:
    """For each module the modules of the same package that it imports."""
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        names = imported_names(name, path, nested=nested)
        # `from package import thing` names a module, or an attribute of the package.
        targets = {item if item in modules else item.rpartition(".")[0] for item in names}
        graph[name] = (targets & modules.keys()) - {name}
    return graph


def reachable(graph: dict[str, set[str]], start: Iterable[str]) -> set[str]:
    seen: set[str] = set()
    waiting = list(start)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(graph[name])
    return seen


def top_level(names: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


MODULES = modules_under(PACKAGE)
TRAINER_MODULES = modules_under(TRAINER)


@pytest.mark.parametrize("name", [name for name in MODULES if name not in GLUE])
def test_only_the_glue_imports_beam_or_a_cloud_client(name):
    assert not top_level(imported_names(name, MODULES[name])) & {"apache_beam", "google"}


@pytest.mark.parametrize("name", MODULES)
def test_the_pipeline_never_imports_torch(name):
    assert not top_level(imported_names(name, MODULES[name])) & {"torch", "trainer"}


@pytest.mark.parametrize("name", TRAINER_MODULES)
def test_the_trainer_imports_neither_beam_nor_the_pipeline(name):
    found = top_level(imported_names(name, TRAINER_MODULES[name]))
    assert not found & {"apache_beam", "beam_pipeline"}
    assert name in TRAINER_GLUE or "google" not in found


@pytest.mark.parametrize("name", PURE_TRAINER)
def test_a_pure_module_of_the_trainer_reaches_no_torch(name):
    for reached in reachable(import_graph(TRAINER_MODULES), [name]):
        assert "torch" not in top_level(imported_names(reached, TRAINER_MODULES[reached])), reached


@pytest.mark.parametrize("name", PURE)
def test_a_pure_module_reaches_neither_beam_nor_cloud_nor_torch(name):
    for reached in reachable(import_graph(MODULES), [name]):
        found = top_level(imported_names(reached, MODULES[reached]))
        assert not found & (CLOUD | {"apache_beam", "torch"}), reached


def test_importing_the_pure_modules_loads_neither_beam_nor_torch():
    pure = PURE + PURE_TRAINER
    code = "import sys\n" + "".join(f"import {name}\n" for name in pure) + "print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert set(pure) <= loaded
    assert not loaded & {"apache_beam", "torch"}


def test_workers_need_only_what_setup_py_installs():
    graph = import_graph(MODULES, nested=False)
    for name in reachable(graph, [*PURE, "beam_pipeline.pipeline"]):
        found = top_level(imported_names(name, MODULES[name], nested=False))
        known = sys.stdlib_module_names | WORKER_REQUIREMENTS | {"apache_beam", "beam_pipeline"}
        assert found <= known, f"{name} imports {found - known} when a worker loads it"


@pytest.mark.parametrize("modules", [MODULES, TRAINER_MODULES], ids=["pipeline", "trainer"])
def test_no_package_has_an_import_cycle(modules):
    order = list(graphlib.TopologicalSorter(import_graph(modules)).static_order())
    assert set(order) == set(modules)


def test_cycles_and_every_form_of_import_are_seen(tmp_path):
    package = tmp_path / "p"
    (package / "sub").mkdir(parents=True)
    sources = {
        "__init__.py": "",
        "a.py": "from . import b\nfrom p import VERSION",
        "b.py": "def f():\n    from .sub.c import thing\n    import torch.nn",
        "sub/__init__.py": "",
        "sub/c.py": "from ..a import x\nimport numpy as np",
    }
    for name, source in sources.items():
        (package / name).write_text(source)
    modules = modules_under(package)

    graph = import_graph(modules)

    assert graph == {
        "p": set(),
        "p.a": {"p", "p.b"},
        "p.b": {"p.sub.c"},
        "p.sub": set(),
        "p.sub.c": {"p.a"},
    }
    assert top_level(imported_names("p.b", modules["p.b"])) == {"p", "torch"}
    assert imported_names("p.b", modules["p.b"], nested=False) == set()
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph).prepare()


def test_no_file_is_named_after_nothing():
    vague = {"common", "helper", "helpers", "misc", "util", "utils"}
    folders = [PACKAGE, ROOT / "trainer", ROOT / "tests", ROOT / "benchmarks"]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    assert files
    assert [path for path in files if vague & set(path.stem.strip("_").split("_"))] == []


def canonical(requirement: str) -> str:
    """The name in a requirement, as PEP 503 normalises it."""
    match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


@pytest.fixture(scope="module")
def requirements() -> dict[str, list[str]]:
    """Lists of setup.py by extra; what is always installed is under ''."""
    assigned = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse((ROOT / "setup.py").read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    return {"": assigned["INSTALL_REQUIRES"], **assigned["EXTRAS_REQUIRE"]}


def test_workers_install_only_the_numerical_stack(requirements):
    assert {canonical(item) for item in requirements[""]} == WORKER_REQUIREMENTS


def test_every_direct_dependency_is_pinned_exactly_and_nothing_else(requirements):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    direct = {canonical(item) for items in requirements.values() for item in items}

    exact = re.compile(r"[\w.-]+==\d+(\.\d+)*(\.(post|dev)\d+)?")
    assert [pin for pin in pins if not exact.fullmatch(pin)] == []
    assert len({canonical(pin) for pin in pins}) == len(pins)
    assert {canonical(pin) for pin in pins} == direct


@pytest.mark.parametrize(
    ("extra", "modules"), [("pipeline", MODULES), ("trainer", TRAINER_MODULES)]
)
def test_whatever_a_package_imports_is_named_in_setup_py(requirements, extra, modules):
    named = {canonical(item) for item in requirements[""] + requirements[extra]}
    # What is imported by another name than it is installed by.
    distributions = {
        "grpc": "grpcio",
        "hypertune": "cloudml-hypertune",
        "sklearn": "scikit-learn",
        "yaml": "pyyaml",
    }
    imported = {
        canonical(distributions.get(name, name))
        for module, path in modules.items()
        for name in top_level(imported_names(module, path))
        # A namespace of many distributions.
        - {"google"}
        - {"beam_pipeline", "trainer"}
        - sys.stdlib_module_names
    }

    assert imported - named == set()


def run_dataflow(
    script: Path, *flags: str, cwd: Path, python: Path = Path(sys.executable)
) -> subprocess.CompletedProcess[str]:
    """Run the script with the `python3` beside this interpreter."""
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [str(script), *flags],
        cwd=cwd,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def checkout(tmp_path):
    """A checkout, in a folder with a space, whose package prints how it was called."""
    root = tmp_path / "a checkout"
    (root / "beam_pipeline").mkdir(parents=True)
    shutil.copy(ROOT / "run_dataflow.sh", root)
    (root / "beam_pipeline" / "__init__.py").touch()
    (root / "beam_pipeline" / "__main__.py").write_text(
        "import os, sys\n"
        "print([os.getcwd(), *sys.argv[1:]])\n"
        "sys.exit(int(os.environ.get(f'STATUS_{sys.argv[1]}', '0')))\n"
    )
    return root


@pytest.mark.parametrize("status", [0, 1, 2, 37])
def test_run_dataflow_passes_flags_folder_and_status_through(
    checkout, tmp_path, monkeypatch, status
):
    monkeypatch.setenv("STATUS_preprocess", str(status))
    flags = ["--input", "a b.parquet", "--columns=trace=lfp,session=id", "", "$HOME *"]

    done = run_dataflow(checkout / "run_dataflow.sh", *flags, cwd=tmp_path)

    assert done.returncode == status
    assert ast.literal_eval(done.stdout) == [str(tmp_path), "preprocess", *flags]


def test_run_dataflow_without_flags_preprocesses_the_sample_in_its_checkout(checkout, tmp_path):
    done = run_dataflow(checkout / "run_dataflow.sh", cwd=tmp_path)

    assert done.returncode == 0
    assert [ast.literal_eval(line) for line in done.stdout.splitlines()] == [
        [str(checkout), "sample", "--output", "out/sample"],
        [str(checkout), "preprocess", "--input", "out/sample", "--output", "out/dataset"],
    ]


def test_run_dataflow_stops_where_the_sample_fails(checkout, monkeypatch):
    monkeypatch.setenv("STATUS_sample", "1")

    done = run_dataflow(checkout / "run_dataflow.sh", cwd=checkout)

    assert done.returncode == 1
    assert "preprocess" not in done.stdout


def test_run_dataflow_runs_its_own_checkout_from_inside_another(checkout, tmp_path):
    other = tmp_path / "other"
    (other / "beam_pipeline").mkdir(parents=True)
    (other / "beam_pipeline" / "__init__.py").touch()
    (other / "beam_pipeline" / "__main__.py").write_text("raise SystemExit('the wrong checkout')")

    assert run_dataflow(checkout / "run_dataflow.sh", "--x", cwd=other).returncode == 0


def test_run_dataflow_without_packages_asks_for_make_venv(checkout, tmp_path):
    bare = tmp_path / "bin" / "python3"
    bare.parent.mkdir()
    # -S leaves site-packages out.
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)

    done = run_dataflow(checkout / "run_dataflow.sh", "--help", cwd=tmp_path, python=bare)

    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "make venv" in line


@pytest.mark.parametrize(
    ("flags", "status"),
    [
        (["--help"], 0),
        (["--input", "missing.parquet", "--output", "dataset"], 1),
        (["--nperseg", "many"], 2),
        (["--no_such_flag"], 2),
    ],
)
def test_run_dataflow_exit_status(tmp_path, flags, status):
    done = run_dataflow(ROOT / "run_dataflow.sh", *flags, cwd=tmp_path)

    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
