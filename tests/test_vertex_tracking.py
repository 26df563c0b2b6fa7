"""In the container: the run in Vertex AI Experiments, and the folders that the service names."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from google.api_core.exceptions import BadGateway, GatewayTimeout, ServiceUnavailable
from sklearn.metrics import auc as area

from tests import datasets
from tests.runs import ENVIRONMENT, ROOT, flags, log_of
from tests.servers import faults
from tests.servers.vertex import VertexServer
from trainer.__main__ import main
from trainer.config import Config
from trainer.errors import TrainerError
from trainer.outbox import Outbox
from trainer.remote.gcs import GcsFolder
from trainer.training.checkpoint import read_marker
from trainer.vertex import experiment as experiment_module
from trainer.vertex.container import read_replica

PLACE = "projects/lab-test/locations/us-central1"
BOARD = f"{PLACE}/tensorboards/77"
STORE = f"{PLACE}/metadataStores/default"
RUN = f"{STORE}/contexts/lfp-vit-e3-0a1b"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return datasets.random_dataset(tmp_path_factory.mktemp("dataset") / "d")


@pytest.fixture(scope="module")
def server():
    server = VertexServer()
    yield server
    server.close()


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def vertex(server, monkeypatch):
    """The service, and the variables of a container whose run is tracked there."""
    server.reset()
    server.add(BOARD, {"displayName": "lab"})
    variables = {
        "VERTEX_RUN": "e3-0a1b",
        "VERTEX_EXPERIMENT": "lfp-vit",
        "VERTEX_ENDPOINT": server.url,
        "GOOGLE_CLOUD_PROJECT": "lab-test",
        "GOOGLE_CLOUD_REGION": "us-central1",
        "TENSORBOARD": BOARD,
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    yield server
    server.reset()


def words(dataset: Path, output: Path | str, **more: Any) -> list[str]:
    return flags(dataset, output, model__patch_freq=3, **more)


def metrics_of(run: Path, split: str):
    return json.loads((run / f"metrics/{split}.json").read_text())


def test_a_run_is_tracked_and_goes_on_there_when_it_is_restarted(dataset, tmp_path, vertex, capsys):
    run = tmp_path / "run"
    # A restart, and an answer that is lost: the service has made what it is asked to make again.
    lost = vertex.faults.add("POST", "contexts", faults.LOSE, skip=1)
    assert main(words(dataset, run, train__epochs=1)) == 0
    assert main(words(dataset, run, train__epochs=2)) == 0

    assert lost.hits == 1
    assert "were not recorded" not in capsys.readouterr().err
    assert {c["name"] for c in vertex.of("contexts")} == {RUN, f"{STORE}/contexts/lfp-vit"}
    assert vertex.children[f"{STORE}/contexts/lfp-vit"] == [RUN]
    told = vertex.resources[RUN]["metadata"]
    assert told["_state"] == "COMPLETE"
    assert told["_params"]["model.embed_dim"] == 16
    assert told["_params"]["model.size"] == "small"
    assert told["_params"]["train.epochs"] == 2
    assert told["_params"]["output"] == str(run)
    for split in ("val", "test"):
        content = metrics_of(run, split)
        for level in ("sequence", "session", "subject"):
            name = f"{split}_{level}_balanced_accuracy"
            assert told["_metrics"][name] == content[level]["balanced_accuracy"]["value"]

    # Every point of every curve that the log has, and no TensorBoard instance but the given one.
    assert len(vertex.of("timeSeries")) <= 20
    found = {(series, step): value for _, series, step, value in vertex.points}
    logged = {
        (f"{line['split']}_{name}", line["step"]): value
        for split in ("train", "val")
        for line in log_of(run, split)
        for name, value in line.items()
        if name not in ("step", "epoch", "split") and value is not None
    }
    assert found == pytest.approx(logged)
    assert [board["name"] for board in vertex.of("tensorboards")] == [BOARD]


def test_confusion_matrices_and_rocs_are_those_of_the_metrics(dataset, tmp_path, vertex):
    run = tmp_path / "run"

    assert main(words(dataset, run, train__epochs=1)) == 0
    # The evaluation is done again, and nothing is there twice.
    assert main(words(dataset, run, train__epochs=1)) == 0

    pictures = {
        artifact["displayName"]: artifact["metadata"]
        for artifact in vertex.of("artifacts")
        if artifact["schemaTitle"] == "google.ClassificationMetrics"
    }
    assert len(pictures) == 6
    assert len(vertex.members[RUN]) == 6 + 1
    for name, picture in pictures.items():
        split, level, _, step = name.split("_")
        content = metrics_of(run, split)
        assert int(step) == content["checkpoint"]["step"]
        assert picture["confusionMatrix"]["rows"] == content[level]["confusion_matrix"]
        labels = [spec["displayName"] for spec in picture["confusionMatrix"]["annotationSpecs"]]
        assert labels == content["classes"]
        roc = picture["confidenceMetrics"]
        below = area([p["falsePositiveRate"] for p in roc], [p["recall"] for p in roc])
        assert below == pytest.approx(content[level]["auc"]["value"])


def test_without_a_tensorboard_instance_none_is_made(dataset, tmp_path, vertex, monkeypatch):
    monkeypatch.delenv("TENSORBOARD")

    assert main(words(dataset, tmp_path / "run", train__epochs=1)) == 0

    assert not [path for _, path in vertex.requests if "tensorboard" in path.lower()]
    last = log_of(tmp_path / "run", "val")[-1]
    assert vertex.resources[RUN]["metadata"]["_metrics"]["val_auc"] == last["auc"]


def test_a_run_that_another_process_makes_meanwhile_is_taken(dataset, tmp_path, vertex, capsys):
    # There when it is made, but not when it is looked for.
    vertex.add(
        RUN,
        {
            "displayName": "e3-0a1b",
            "schemaTitle": "system.ExperimentRun",
            "metadata": {"_params": {}, "_metrics": {}, "_state": "RUNNING"},
        },
    )
    hidden = vertex.faults.add("GET", "contexts/lfp-vit-e3-0a1b", faults.STATUS, status=404)

    assert main(words(dataset, tmp_path / "run", train__epochs=1)) == 0

    assert hidden.hits == 1
    assert "were not recorded" not in capsys.readouterr().err
    assert vertex.resources[RUN]["metadata"]["_state"] == "COMPLETE"
    assert vertex.points


def test_a_service_that_refuses_is_counted_and_ends_no_training(dataset, tmp_path, vertex, capsys):
    run = tmp_path / "run"
    vertex.faults.add(".*", "/v1/", faults.STATUS, times=None, status=403)

    assert main(words(dataset, run, train__epochs=1)) == 0

    lines = [line for line in capsys.readouterr().err.splitlines() if "not recorded" in line]
    (line,) = lines
    failed, of, taken = line.removeprefix("Vertex AI Experiments: ").split()[:3]
    assert of == "of"
    assert failed == taken
    # Parameters, each line of the log, val's once more as metrics, metrics and pictures of two
    # splits, and the end.
    n_lines = len((run / "metrics.jsonl").read_text().splitlines())
    assert int(taken) == 1 + n_lines + 1 + 2 + 2 + 1
    assert "403" in line
    assert metrics_of(run, "test")


def test_a_training_that_fails_is_marked_as_failed(dataset, tmp_path, vertex):
    more = {"optim__lr": 1e10, "optim__warmup_epochs": 0, "optim__weight_decay": 0}

    assert main(words(dataset, tmp_path / "run", **more)) == 1

    assert vertex.resources[RUN]["metadata"]["_state"] == "FAILED"


@pytest.mark.parametrize("error", [BadGateway, GatewayTimeout, ServiceUnavailable])
def test_what_fails_on_the_way_to_the_service_is_done_again(error):
    errors = [error("proxy")]
    outbox = Outbox("the service")
    outbox.put(lambda: errors and (_ for _ in ()).throw(errors.pop()))

    assert outbox.close(60) == ""
    assert errors == []


def test_a_run_is_complete_when_its_results_are_in_the_bucket(dataset, gcs, vertex, monkeypatch):
    run = "gs://lab/runs/e3"
    close, upload = experiment_module.ExperimentTracker.close, GcsFolder.upload
    there = {}
    told = threading.Event()

    def closing(tracker, state):
        there[state] = gcs.list(run).keys()
        told.set()
        return close(tracker, state)

    def slow_upload(folder, name, *more):
        if name == "metrics/test.json":
            told.wait(2)
        return upload(folder, name, *more)

    monkeypatch.setattr(experiment_module.ExperimentTracker, "close", closing)
    monkeypatch.setattr(GcsFolder, "upload", slow_upload)

    assert main(words(dataset, run, train__epochs=1)) == 0

    assert there.keys() == {"complete"}
    assert {"metrics/test.json", "predictions/test.parquet"} <= there["complete"]


def test_a_service_that_never_answers_does_not_keep_the_end_waiting():
    never = threading.Event()
    outbox = Outbox("the service")
    for _ in range(3):
        outbox.put(never.wait)

    said = outbox.close(0.05)

    assert said.startswith("the service: 3 of 3 entries were not recorded (no answer for 0.05 s)")
    never.set()


def test_no_more_series_than_the_service_keeps(vertex, monkeypatch):
    monkeypatch.setattr(experiment_module, "MOST_SERIES", 2)
    tracker = experiment_module.ExperimentTracker(os.environ, Config(), "data", "output")
    for step in (1, 2):
        tracker.log("train", step, 1, {"loss": 1.0 / step, "lr": 0.1, "speed": 5.0})

    said = tracker.close("complete")

    assert said == "Vertex AI Experiments keeps 2 curves of a run: not train_speed"
    shown = {(series, step, value) for _, series, step, value in vertex.points}
    assert shown == {
        ("train_loss", 1, 1.0),
        ("train_lr", 1, 0.1),
        ("train_loss", 2, 0.5),
        ("train_lr", 2, 0.1),
    }


def test_a_run_that_nothing_follows_loads_no_cloud_client():
    code = (
        "import sys\nimport trainer.training.command, trainer.training.followers\n"
        "clients = ('google.api_core', 'google.auth', 'optuna', 'hypertune')\n"
        "print(*sys.modules.keys() & set(clients))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


# --- The folders that the service names -----------------------------------------------------------


def test_without_output_the_run_is_where_the_service_wants_its_checkpoints(
    dataset, gcs, monkeypatch
):
    base = "gs://lab/tune/7"
    for name, folder in {
        "AIP_CHECKPOINT_DIR": "checkpoints",
        "AIP_TENSORBOARD_LOG_DIR": "logs",
        "AIP_MODEL_DIR": "model",
    }.items():
        monkeypatch.setenv(name, f"{base}/{folder}/")
    given = words(dataset, "unused", train__epochs=1)
    at = given.index("--output")

    assert main([*given[:at], *given[at + 2 :]]) == 0

    found = gcs.list(base)
    assert {"checkpoints/committed.json", "config.yaml", "metrics/test.json"} <= found.keys()
    events = {name for name in found if name.startswith("tensorboard/")}
    assert events
    for name in events:
        assert found[name.replace("tensorboard/", "logs/", 1)] == found[name]
    best = json.loads(found["checkpoints/committed.json"])["best"][0]["path"]
    assert found["model/model.pt"] == found[f"checkpoints/{best}"]
    assert found["model/config.yaml"] == found["config.yaml"]


def test_output_wins_over_the_folders_of_the_service(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("AIP_CHECKPOINT_DIR", str(tmp_path / "other" / "checkpoints"))
    run = tmp_path / "run"

    assert main(words(dataset, run, train__epochs=1)) == 0

    assert read_marker(run / "checkpoints")
    assert not (tmp_path / "other").exists()


# --- A trial of a tuning job ----------------------------------------------------------------------


def test_a_trial_reports_the_auc_of_every_epoch_and_the_best_at_the_end(
    dataset, tmp_path, monkeypatch
):
    report = tmp_path / "hypertune" / "output.metrics"
    monkeypatch.setenv("CLOUD_ML_HP_METRIC_FILE", str(report))
    monkeypatch.setenv("CLOUD_ML_TRIAL_ID", "7")
    run = tmp_path / "run"

    assert main(words(dataset, run)) == 0

    lines = [json.loads(line) for line in report.read_text().splitlines()]
    told = [(int(line["global_step"]), float(line["val_session_auc"])) for line in lines]
    best = metrics_of(run, "val")
    assert told == [
        *((line["step"], line["auc"]) for line in log_of(run, "val")),
        (best["checkpoint"]["step"], best["session"]["auc"]["value"]),
    ]
    assert told[-1][1] == max(auc for _, auc in told)
    assert {line["trial"] for line in lines} == {"7"}
    # What looks at test before the search is over is no test.
    assert not list(run.glob("*/test.*"))


# --- Several machines -----------------------------------------------------------------------------


def cluster(task, index, n_workers):
    pools = {
        "workerpool0": ["primary:2222"],
        "workerpool1": [f"worker{i}:2222" for i in range(n_workers)],
    }
    spec = {"cluster": pools, "environment": "cloud", "task": {"type": task, "index": index}}
    return {"CLUSTER_SPEC": json.dumps(spec), "TRAINER_PROCESSES_PER_REPLICA": "4"}


@pytest.mark.parametrize(("task", "index", "rank"), [(0, 0, 0), (1, 0, 1), (1, 1, 2)])
def test_each_machine_knows_its_rank_and_the_first_ones_address(task, index, rank):
    replica = read_replica(cluster(f"workerpool{task}", index, 2))

    assert replica is not None
    assert replica.torchrun == [
        "--nnodes=3",
        f"--node_rank={rank}",
        "--nproc_per_node=4",
        "--master_addr=primary",
        "--master_port=2222",
    ]


def test_a_process_that_torchrun_has_started_starts_no_other():
    assert read_replica({**cluster("workerpool1", 0, 2), "LOCAL_RANK": "0"}) is None
    assert read_replica({"TRAINER_PROCESSES_PER_REPLICA": "1"}) is None
    assert read_replica({}) is None


@pytest.mark.parametrize("number", ["two", "0", ""])
def test_a_number_of_processes_that_is_none_is_named(number):
    with pytest.raises(TrainerError, match="TRAINER_PROCESSES_PER_REPLICA must be a whole number"):
        read_replica({"TRAINER_PROCESSES_PER_REPLICA": number})


def test_two_machines_train_one_model(dataset, tmp_path):
    """As in a job with --replicas 2, but both on this machine, and without GPUs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pools = {"workerpool0": [f"127.0.0.1:{port}"], "workerpool1": ["127.0.0.1:2222"]}
    run = tmp_path / "run"

    def start(pool: str) -> subprocess.Popen[str]:
        spec = {"cluster": pools, "task": {"type": pool, "index": 0}}
        return subprocess.Popen(
            [sys.executable, "-m", "trainer", *words(dataset, run, train__epochs=1)],
            cwd=ROOT,
            env={
                **ENVIRONMENT,
                "CLUSTER_SPEC": json.dumps(spec),
                "TRAINER_PROCESSES_PER_REPLICA": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    replicas = [start(pool) for pool in reversed(pools)]
    said = [replica.communicate(timeout=300) for replica in replicas]

    assert [replica.returncode for replica in replicas] == [0, 0], said
    assert "Device: 2 x cpu" in said[1][0]
    # The first machine writes, and only that one.
    assert said[0][0] == ""
    assert metrics_of(run, "test")
