"""Jobs of Vertex AI: built from the same flags as a local run, sent once, watched to their end."""

import os
import shlex
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from google.cloud.aiplatform_v1 import JobServiceClient
from google.cloud.aiplatform_v1.types import CustomJob, HyperparameterTuningJob
from google.protobuf.json_format import ParseDict

from tests import datasets
from tests.runs import ROOT
from tests.servers import faults
from tests.servers.iam import ACT_AS, DISABLED
from tests.servers.vertex import VertexServer
from trainer.__main__ import main
from trainer.distributed import process_group
from trainer.errors import TrainerError
from trainer.options import parse_run_options
from trainer.tune.space import SPACE, apply

DATA, OUTPUT = "gs://lab/dataset", "gs://lab/runs/e3"
PLACE = ["--project", "lab-test", "--region", "us-central1", "--image", "r/lfp-vit:1"]
RUNNER = "runner@lab-test.iam.gserviceaccount.com"
RUN = ["--data", DATA, "--output", OUTPUT, "--experiment", "e3"]


@pytest.fixture(scope="module")
def server():
    server = VertexServer()
    yield server
    server.close()


@pytest.fixture
def vertex(server, monkeypatch):
    server.reset()
    monkeypatch.setenv("VERTEX_ENDPOINT", server.url)
    yield server
    server.reset()


@pytest.fixture(scope="module")
def dataset_files(tmp_path_factory):
    folder = datasets.random_dataset(tmp_path_factory.mktemp("dataset") / "d")
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}


@pytest.fixture(autouse=True)
def bucket(gcs, dataset_files):
    for name, content in dataset_files.items():
        gcs.put(f"{DATA}/{name}", content)
    return gcs


def dry_run(capsys, *words):
    assert main([*words, *PLACE, "--dry_run"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# gcloud ai ")
    return text.splitlines()[0], yaml.safe_load(text)


def error_of(capsys, *words, status=1):
    assert main([str(word) for word in words]) == status
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ")
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


# --- What is built --------------------------------------------------------------------------------


def test_the_container_trains_with_exactly_the_config_of_a_local_run(capsys, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("optim:\n  beta2: 0.95\n  clip_grad: null\nsequence:\n  stride: 3\n")
    words = [*RUN, "--config", str(mine), "--optim.lr", "2e-5", "--optim.min_lr=1e-7"]

    _, spec = dry_run(capsys, "submit", *words)

    (pool,) = spec["workerPoolSpecs"]
    name, *arguments = pool["containerSpec"]["args"]
    local, remote = parse_run_options(words), parse_run_options(arguments)
    assert name == "train"
    assert (remote.config, remote.data, remote.output) == (local.config, DATA, OUTPUT)
    # Nothing is left to this machine's files, or to the defaults of the container.
    assert not {"--config", "--experiment"} & set(arguments)


def test_the_job_is_what_the_flags_say(capsys, iam):
    iam.accounts[RUNNER] = [ACT_AS]
    flags = (
        f"--replicas 3 --spot --tensorboard 77 --service_account {RUNNER} --timeout 90m "
        "--label team=cortex --network projects/12/global/networks/n --name night"
    )

    command, spec = dry_run(capsys, "submit", *RUN, *flags.split())

    message = CustomJob()
    ParseDict({"displayName": "x", "jobSpec": spec}, CustomJob.pb(message))
    sent = message.job_spec
    first, others = sent.worker_pool_specs
    assert (first.replica_count, others.replica_count) == (1, 2)
    for pool in (first, others):
        assert pool.machine_spec.machine_type == "a2-highgpu-1g"
        assert pool.machine_spec.accelerator_type.name == "NVIDIA_TESLA_A100"
        assert pool.machine_spec.accelerator_count == 1
        assert pool.container_spec.image_uri == "r/lfp-vit:1"
    assert sent.scheduling.strategy.name == "SPOT"
    assert sent.scheduling.timeout.total_seconds() == 5400
    assert sent.scheduling.restart_job_on_worker_restart
    assert sent.base_output_directory.output_uri_prefix == OUTPUT
    assert sent.tensorboard == "projects/lab-test/locations/us-central1/tensorboards/77"
    assert sent.service_account == RUNNER
    assert sent.network == "projects/12/global/networks/n"
    words = shlex.split(command.removeprefix("# "))
    assert words[:4] == ["gcloud", "ai", "custom-jobs", "create"]
    assert "--display-name=night" in words
    assert any(word.startswith("--labels=") and "team=cortex" in word for word in words)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--machine a2-ultragpu-4g", ("NVIDIA_A100_80GB", 4)),
        ("--machine a3-highgpu-8g", ("NVIDIA_H100_80GB", 8)),
        ("--machine g2-standard-24", ("NVIDIA_L4", 2)),
        ("--machine a3-megagpu-8g", ("NVIDIA_H100_MEGA_80GB", 8)),
        ("--machine n1-standard-8 --accelerator NVIDIA_TESLA_T4", ("NVIDIA_TESLA_T4", 1)),
        ("--machine n2-standard-16", ("ACCELERATOR_TYPE_UNSPECIFIED", 0)),
    ],
)
def test_a_machine_has_the_accelerators_it_is_built_with(capsys, flags, expected):
    _, spec = dry_run(capsys, "submit", *RUN, *flags.split())

    message = CustomJob()
    ParseDict({"jobSpec": spec}, CustomJob.pb(message))
    machine = message.job_spec.worker_pool_specs[0].machine_spec
    assert (machine.accelerator_type.name, machine.accelerator_count) == expected


@pytest.mark.parametrize(
    ("flags", "expected", "warning"),
    [
        ("--machine a2-highgpu-3g", ("NVIDIA_TESLA_A100", 3), "did you mean a2-highgpu-"),
        ("--machine a2-higpu-1g", ("ACCELERATOR_TYPE_UNSPECIFIED", 0), "mean a2-highgpu-1g?"),
        ("--machine g2-standard-6", ("ACCELERATOR_TYPE_UNSPECIFIED", 0), "without a GPU"),
        ("--machine a9-gpu-1g --accelerator NVIDIA_B200", ("NVIDIA_B200", 1), "is not known"),
    ],
)
def test_a_machine_that_may_be_new_is_sent_with_a_warning(capsys, flags, expected, warning):
    assert main(["submit", *RUN, *flags.split(), *PLACE, "--dry_run"]) == 0

    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith(f"warning: {' '.join(flags.split()[:2])} is not known")
    assert warning in line
    message = CustomJob()
    ParseDict({"jobSpec": yaml.safe_load(said.out)}, CustomJob.pb(message))
    machine = message.job_spec.worker_pool_specs[0].machine_spec
    assert (machine.accelerator_type.name, machine.accelerator_count) == expected


@pytest.mark.parametrize("machine", ["a2-highgpu-1g", "g2-standard-8", "n2-standard-16"])
def test_a_known_machine_is_no_warning(capsys, machine):
    assert main(["submit", *RUN, "--machine", machine, *PLACE, "--dry_run"]) == 0

    assert capsys.readouterr().err == ""


def test_a_job_that_asks_for_a_gpu_never_trains_without_one(capsys, monkeypatch):
    """Where the driver is too old for PyTorch there is only its warning."""
    _, spec = dry_run(capsys, "submit", *RUN)
    for variable in spec["workerPoolSpecs"][0]["containerSpec"]["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainerError, match="PyTorch finds none"), process_group():
        pass


def test_a_job_without_a_gpu_asks_for_none(capsys):
    _, spec = dry_run(capsys, "submit", *RUN, "--machine", "n2-standard-16")
    environment = spec["workerPoolSpecs"][0]["containerSpec"]["env"]
    assert "TRAINER_NEEDS_GPU" not in {variable["name"] for variable in environment}


def test_a_tuning_job_searches_the_space_with_trials_that_train(capsys):
    words = ["--data", DATA, "--output", "gs://lab/tune", "--optim.weight_decay", "0.1"]

    command, spec = dry_run(capsys, "tune", "--vertex", *words, "--max_trials", "12")

    message = HyperparameterTuningJob()
    ParseDict(spec, HyperparameterTuningJob.pb(message))
    (metric,) = message.study_spec.metrics
    assert metric.goal.name == "MAXIMIZE"
    searched = {p.parameter_id: p for p in message.study_spec.parameters}
    expected = {p.name: p for p in SPACE if p.name != "optim.weight_decay"}
    assert searched.keys() == expected.keys()
    for name, parameter in searched.items():
        values = parameter.double_value_spec
        assert (values.min_value, values.max_value) == (expected[name].low, expected[name].high)
        assert (parameter.scale_type.name == "UNIT_LOG_SCALE") == expected[name].log
    arguments = spec["trialJobSpec"]["workerPoolSpecs"][0]["containerSpec"]["args"]
    # The service appends the values of the trial.
    tried = {name: p.low for name, p in expected.items()}
    options = parse_run_options([*arguments[1:], *(f"--{n}={v}" for n, v in tried.items())])
    assert options.config == apply(parse_run_options(words).config, tried)
    assert not any(word.startswith("--output") for word in arguments)
    assert spec["trialJobSpec"]["baseOutputDirectory"]["outputUriPrefix"] == "gs://lab/tune"
    assert "--max-trial-count=12" in command
    # gcloud has no flag for it.
    assert message.max_failed_trial_count == 6


def test_an_evaluation_job_reads_and_writes_the_run_folder(capsys, bucket):
    bucket.put(f"{OUTPUT}/checkpoints/committed.json", b"{}")

    _, spec = dry_run(capsys, "evaluate", OUTPUT, "--vertex", "--split", "val")

    ParseDict({"jobSpec": spec}, CustomJob.pb(CustomJob()))
    (pool,) = spec["workerPoolSpecs"]
    assert pool["containerSpec"]["args"] == ["evaluate", OUTPUT, "--split", "val"]
    assert "baseOutputDirectory" not in spec


@pytest.mark.parametrize("without", ["network", "credentials"])
def test_a_dry_run_needs_no_network_and_no_credentials(capsys, monkeypatch, tmp_path, without):
    monkeypatch.setenv("VERTEX_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    if without == "credentials":
        monkeypatch.delenv("STORAGE_EMULATOR_HOST")
        monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", True)
        monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))

    assert main(["train", "--vertex", *RUN, *PLACE, "--dry_run"]) == 0

    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert "neither input, output nor service account was checked" in line
    assert ("gcloud auth application-default login" in line) == (without == "credentials")
    ParseDict({"jobSpec": yaml.safe_load(said.out)}, CustomJob.pb(CustomJob()))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["submit", *RUN, "--optim.lrr", "1"], "there is no flag --optim.lrr (did you mean"),
        (["submit", *RUN, "--machin", "x"], "there is no flag --machin (did you mean --machine?)"),
        (["submit", *RUN, "--optim.lr", "-1"], "optim.lr must be above 0"),
        (["submit", "--data", "out/d", "--output", OUTPUT], "--data must be a gs:// URL"),
        (["submit", "--data", DATA], "--output must be a gs:// URL"),
        (["submit", "--data", "gs://Lab/d", "--output", OUTPUT], "--data gs://Lab/d: a bucket's"),
        (["submit", "--data", DATA, "--output", "gs://my runs/e3"], "--output gs://my runs/e3"),
        (["submit", *RUN, "--project", "My Lab"], "--project must be a project's id"),
        (["submit", *RUN, "--image", "lfp vit"], "--image must be an image such as"),
        (["submit", *RUN, "--service_account", "me@x.org"], "--service_account must be an address"),
        (["submit", *RUN, "--machine", "a2_highgpu_1g"], "a machine type such as a2-highgpu-1g"),
        (
            ["submit", *RUN, "--machine", "n1-standard-8", "--accelerator", "NVIDIA_TESLA_A100"],
            "give --machine a2-highgpu-1g, which has it",
        ),
        (
            ["submit", *RUN, "--machine", "n2-standard-8", "--accelerator", "NVIDIA_TESLA_T4"],
            "only machines of N1 can",
        ),
        (
            (
                *("submit", *RUN, "--machine", "n1-standard-8", "--accelerator"),
                *("NVIDIA_TESLA_T4", "--accelerator_count", "3"),
            ),
            "--accelerator_count of NVIDIA_TESLA_T4 is one of 1, 2, 4, not 3",
        ),
        (["submit", *RUN, "--accelerator", "NVIDIA_T5"], "has 1 x NVIDIA_TESLA_A100"),
        (
            ["submit", *RUN, "--machine", "n1-standard-8", "--accelerator", "NVIDIA_T5"],
            "Vertex AI has no such job",
        ),
        (["submit", *RUN, "--machine", "a2-highgpu-2g", "--accelerator_count", "1"], "has 2 x"),
        (["submit", *RUN, "--accelerator", "none"], "leave --accelerator out"),
        (["submit", *RUN, "--replicas", "0"], "--replicas must be a whole number"),
        (["submit", *RUN, "--timeout", "forever"], "--timeout must be like 90m"),
        (["submit", *RUN, "--label", "Team=x"], "--label must be key=value"),
        (["submit", *RUN, "--label", "kind=x"], "--label kind is set by the trainer itself"),
        (["submit", *RUN, "--region", "us-central1-a"], "not a zone"),
        (["submit", *RUN, "--tensorboard", "7"], "--tensorboard needs --service_account"),
        (["submit", *RUN, "--network", "default"], "--network must be projects/NUMBER"),
        (["tune", "--dry_run", *RUN], "--dry_run needs --vertex"),
        (["tune", "--vertex", *RUN, "--optim.min_lr", "1e-4"], "optim.min_lr must be at most lr"),
        (["tune", "--vertex", *RUN, "--max_trials", "0"], "must be a whole number of 1 or more"),
        (["evaluate", "out/run", "--vertex"], "RUN must be a gs:// URL"),
    ],
)
def test_what_cannot_be_meant_is_said_before_anything_is_sent(capsys, vertex, words, expected):
    pairs = zip(PLACE[::2], PLACE[1::2], strict=True)
    place = [word for pair in pairs if pair[0] not in words for word in pair]

    assert expected in error_of(capsys, *words, *place, status=2)

    assert vertex.requests == []


@pytest.mark.parametrize("name", ["project", "region", "image"])
def test_what_is_missing_is_named_and_may_come_from_the_environment(capsys, monkeypatch, name):
    variable = {
        "project": "GOOGLE_CLOUD_PROJECT",
        "region": "GOOGLE_CLOUD_REGION",
        "image": "TRAINER_IMAGE",
    }[name]
    monkeypatch.delenv(variable, raising=False)
    at = PLACE.index(f"--{name}")
    others = PLACE[:at] + PLACE[at + 2 :]

    assert variable in error_of(capsys, "submit", *RUN, *others, "--dry_run", status=2)

    monkeypatch.setenv(variable, PLACE[at + 1])
    assert main(["submit", *RUN, *others, "--dry_run"]) == 0


# --- What is sent, and watched --------------------------------------------------------------------


def entry(job_id, text, number, task="workerpool0-0"):
    return {
        "logName": "projects/lab-test/logs/workerpool0-0",
        "insertId": str(number),
        "timestamp": f"2026-01-01T00:00:{number:02}Z",
        "resource": {"type": "ml_job", "labels": {"job_id": job_id, "task_name": task}},
        "textPayload": text,
    }


def test_a_job_is_sent_watched_and_said_to_be_done(capsys, vertex, bucket):
    job_id = "1000"
    vertex.log = [
        entry(job_id, "epoch 1/20", 1),
        entry(job_id, "service starts", 2, "service"),
        entry("999", "of another job", 3),
        {**entry(job_id, "epoch 2/20", 4), "timestamp": "2026-01-01T00:09:00Z"},
    ]

    assert main(["submit", *RUN, *PLACE]) == 0

    said = capsys.readouterr()
    (job,) = vertex.of("customJobs")
    _, spec = dry_run(capsys, "submit", *RUN)
    # What is printed is what is sent.
    expected, found = CustomJob(), CustomJob()
    ParseDict({"jobSpec": spec}, CustomJob.pb(expected))
    ParseDict({"jobSpec": job["jobSpec"]}, CustomJob.pb(found))
    assert found == expected
    assert job["displayName"] == "lfp-vit-e3"
    assert job["labels"]["app"] == "lfp-vit"
    assert f"locations/us-central1/training/{job_id}?project=lab-test" in said.out
    assert "storage/browser/lab/runs/e3" in said.out
    assert said.err.splitlines() == [
        "job: pending",
        "epoch 1/20",
        "service: service starts",
        "epoch 2/20",
        "job: running",
        "job: succeeded",
    ]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (["JOB_STATE_RUNNING", "JOB_STATE_FAILED"], "failed: out of memory"),
        (["JOB_STATE_CANCELLING", "JOB_STATE_CANCELLED"], "was cancelled"),
        (["JOB_STATE_EXPIRED"], "took longer than --timeout"),
    ],
)
def test_a_job_that_does_not_end_well_is_a_failure(capsys, vertex, bucket, script, expected):
    vertex.script, vertex.error = script, "out of memory"

    line = error_of(capsys, "submit", *RUN, *PLACE)

    (job,) = vertex.of("customJobs")
    assert f"job {job['name']} {expected}" in line
    assert "the same command submits it again" in line


def test_an_evaluation_is_sent_where_there_is_a_checkpoint(capsys, vertex, gcs):
    words = ["evaluate", OUTPUT, "--vertex", *PLACE]
    assert f"{OUTPUT} holds no checkpoint" in error_of(capsys, *words)
    assert vertex.requests == []
    gcs.put(f"{OUTPUT}/checkpoints/committed.json", b"{}")

    assert main(words) == 0

    (job,) = vertex.of("customJobs")
    (pool,) = job["jobSpec"]["workerPoolSpecs"]
    assert pool["containerSpec"]["args"] == ["evaluate", OUTPUT, "--split", "test"]
    assert job["labels"]["kind"] == "evaluate"


def test_who_stops_watching_is_told_how_to_go_on(vertex, bucket):
    """Ctrl-C, in a process of its own: the job is not touched."""
    vertex.script = ["JOB_STATE_RUNNING"]
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", "submit", *RUN, *PLACE],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr
    assert process.stderr.readline() == "job: running\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)

    (line,) = errors.splitlines()
    assert process.returncode == 1
    assert line.startswith("error: no longer watching; projects/lab-test/")
    assert "gcloud ai custom-jobs stream-logs 1000 --project=lab-test" in line
    assert not [path for _, path in vertex.requests if path.endswith(":cancel")]


def test_without_waiting_the_job_is_only_sent(capsys, vertex, bucket):
    assert main(["submit", *RUN, *PLACE, "--no_wait"]) == 0

    assert len(vertex.of("customJobs")) == 1
    assert not any(method == "GET" and "/customJobs/" in path for method, path in vertex.requests)


@pytest.mark.parametrize(("action", "status"), [(faults.LOSE, 0), (faults.STATUS, 503)])
def test_a_lost_answer_makes_no_second_job(vertex, bucket, action, status):
    fault = vertex.faults.add("POST", "customJobs", action, status=status)

    assert main(["submit", *RUN, *PLACE, "--no_wait"]) == 0

    assert fault.hits == 1
    assert len(vertex.of("customJobs")) == 1


def test_a_job_is_watched_through_failures(capsys, vertex, bucket):
    vertex.faults.add("GET", "/customJobs/", faults.STATUS, status=503)
    vertex.faults.add("GET", "/customJobs/", faults.RESET)
    vertex.faults.add("POST", "entries:list", faults.STATUS, times=None, status=403)

    assert main(["submit", *RUN, *PLACE]) == 0

    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "job: succeeded"
    # Said once.
    assert len([line for line in lines if "the log cannot be read" in line]) == 1


def test_what_the_service_refuses_is_said_with_what_to_do(capsys, vertex, bucket):
    vertex.faults.add("POST", "customJobs", faults.STATUS, status=403)

    assert "roles/aiplatform.user" in error_of(capsys, "submit", *RUN, *PLACE)

    assert vertex.of("customJobs") == []


@pytest.mark.parametrize("status", [400, 404])
def test_a_region_without_vertex_ai_is_said_before_the_job(capsys, vertex, status):
    vertex.faults.add("GET", "customJobs", faults.STATUS, times=None, status=status)

    line = error_of(capsys, "submit", *RUN, *PLACE)

    assert "--region us-central1: there is no Vertex AI" in line
    assert "such as us-central1 or europe-west4" in line
    assert vertex.of("customJobs") == []


def test_two_jobs_never_train_in_one_folder(capsys, vertex, bucket):
    assert main(["submit", *RUN, *PLACE, "--no_wait"]) == 0
    (job,) = vertex.of("customJobs")

    line = error_of(capsys, "submit", *RUN, *PLACE, "--no_wait")

    assert f"{job['name']} has not ended and writes to {OUTPUT}" in line
    assert len(vertex.of("customJobs")) == 1
    # Elsewhere there is nothing in the way, nor here when it has ended.
    other = ["--data", DATA, "--output", f"{OUTPUT}-2"]
    assert main(["submit", *other, *PLACE, "--no_wait"]) == 0
    job["state"] = "JOB_STATE_FAILED"
    assert main(["submit", *RUN, *PLACE, "--no_wait"]) == 0
    assert len(vertex.of("customJobs")) == 3


def test_a_job_that_is_sent_while_its_user_interrupts_is_found_again(
    capsys, vertex, bucket, monkeypatch
):
    create = JobServiceClient.create_custom_job

    def interrupt(*arguments, **options):
        create(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(JobServiceClient, "create_custom_job", interrupt)
    line = error_of(capsys, "submit", *RUN, *PLACE)
    assert "interrupted while the job was being sent" in line
    (job,) = vertex.of("customJobs")
    cancel = f"gcloud ai custom-jobs cancel {job['name'].rpartition('/')[2]}"
    assert cancel in error_of(capsys, "submit", *RUN, *PLACE)
    assert len(vertex.of("customJobs")) == 1


def test_all_that_is_malformed_is_said_at_once(capsys):
    place = ["--project", "My Lab", "--region", "us-central1-a", "--image", "lfp vit"]
    line = error_of(capsys, "submit", *RUN, *place, "--dry_run", status=2)
    assert all(f"--{name} must be" in line for name in ("project", "region", "image"))


@pytest.mark.parametrize("dry_run", [[], ["--dry_run"]])
def test_a_dataset_or_bucket_that_is_not_there_is_found_out_before_the_job(capsys, vertex, dry_run):
    words = ["submit", "--data", "gs://lab/nothing", "--output", OUTPUT, *PLACE, *dry_run]
    assert "gs://lab/nothing has no dataset.json" in error_of(capsys, *words)

    words = ["submit", "--data", DATA, "--output", "gs://typo/e3", *PLACE, *dry_run]
    assert "gs://typo/e3: 404 Not Found: there is no such bucket" in error_of(capsys, *words)

    assert vertex.requests == []


def test_an_output_that_may_not_be_listed_is_no_reason_to_refuse_a_job(capsys, vertex, bucket):
    bucket.faults.add("GET", "prefix=runs", faults.STATUS, times=None, status=403)

    assert main(["submit", *RUN, *PLACE, "--no_wait"]) == 0

    assert "write its output was not checked" in capsys.readouterr().err
    assert len(vertex.of("customJobs")) == 1


@pytest.mark.parametrize("dry_run", [[], ["--dry_run"]])
def test_an_account_that_cannot_be_used_is_found_out_before_the_job(capsys, vertex, iam, dry_run):
    words = ["submit", *RUN, *PLACE, "--service_account", RUNNER, *dry_run]
    assert f"--service_account {RUNNER}: there is no such account" in error_of(capsys, *words)

    iam.accounts[RUNNER] = []
    line = error_of(capsys, *words)
    assert f"--service_account {RUNNER}: you may not run jobs as it" in line
    assert f"add-iam-policy-binding {RUNNER} --member=" in line
    assert "--role=roles/iam.serviceAccountUser" in line

    assert vertex.requests == []
    path = f"/v1/projects/lab-test/serviceAccounts/{RUNNER}:testIamPermissions"
    assert set(iam.requests) == {(path, None)}


def test_an_account_that_cannot_be_asked_for_is_a_warning(capsys, vertex, iam):
    iam.refuse = DISABLED
    words = ["submit", *RUN, *PLACE, "--no_wait", "--service_account", RUNNER]

    assert main(words) == 0

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: --service_account {RUNNER} was not checked")
    assert "API has not been used in project lab-test" in line
    (job,) = vertex.of("customJobs")
    assert job["jobSpec"]["serviceAccount"] == RUNNER


def trial(number, state, auc, lr):
    metrics = [] if auc is None else [{"metricId": "val_session_auc", "value": auc}]
    return {
        "id": str(number),
        "state": state,
        "parameters": [{"parameterId": "optim.lr", "value": lr}],
        "finalMeasurement": {"metrics": metrics},
    }


#: Flags that leave only the learning rate to be searched.
HELD = [f"--{p.name}=0" for p in SPACE if p.name != "optim.lr"]


def test_the_trials_of_a_tuning_job_are_shown_when_it_is_done(capsys, vertex, bucket):
    vertex.trials = [
        trial(1, "SUCCEEDED", 0.75, 1e-4),
        trial(2, "SUCCEEDED", 0.875, 2e-4),
        trial(3, "INFEASIBLE", None, 1e-3),
    ]
    words = ["--data", DATA, "--output", "gs://lab/tune", *HELD]

    assert main(["tune", "--vertex", *words, "--max_trials", "3", *PLACE]) == 0

    assert "Best: trial 2 in gs://lab/tune/2: --optim.lr 0.0002" in capsys.readouterr().out
    (job,) = vertex.of("hyperparameterTuningJobs")
    assert (job["maxTrialCount"], job["parallelTrialCount"]) == (3, 2)
    table = bucket.read("gs://lab/tune/results.csv").decode().splitlines()
    assert table == [
        "trial,state,val_session_auc,optim.lr,folder",
        "1,done,0.75,0.0001,gs://lab/tune/1",
        "2,done,0.875,0.0002,gs://lab/tune/2",
        "3,failed,,0.001,gs://lab/tune/3",
    ]
    assert bucket.read("gs://lab/tune/results.png").startswith(b"\x89PNG")


def test_the_trials_that_were_done_are_shown_when_the_job_fails(capsys, vertex, bucket):
    vertex.script, vertex.error = ["JOB_STATE_FAILED"], "too many failed trials"
    diverged = [trial(number, "INFEASIBLE", None, 1e-3) for number in range(2, 12)]
    vertex.trials = [trial(1, "SUCCEEDED", 0.75, 1e-4), *diverged]
    words = ["--data", DATA, "--output", "gs://lab/tune", *HELD]

    assert main(["tune", "--vertex", *words, "--max_trials", "20", *PLACE]) == 1

    said = capsys.readouterr()
    assert "failed: too many failed trials" in said.err.splitlines()[-1]
    assert "Best: trial 1 in gs://lab/tune/1" in said.out
    table = bucket.read("gs://lab/tune/results.csv").decode().splitlines()
    assert table[1] == "1,done,0.75,0.0001,gs://lab/tune/1"
    assert len(table) == 1 + len(vertex.trials)
    # A few that diverge do not end a search.
    (job,) = vertex.of("hyperparameterTuningJobs")
    assert job["maxFailedTrialCount"] == 10
