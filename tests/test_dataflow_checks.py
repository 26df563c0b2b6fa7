"""What is wrong with a Dataflow job is said before anything is uploaded, all at once."""

from __future__ import annotations

from typing import Any

import pytest
from google.oauth2.credentials import Credentials

from beam_pipeline.errors import UsageError
from beam_pipeline.launchers.dataflow.account import AccountError, account_name, check_account
from beam_pipeline.launchers.dataflow.buckets import BucketError, check_buckets, location_notes
from beam_pipeline.launchers.dataflow.checks import (
    JobSettings,
    check_project,
    check_settings,
)
from beam_pipeline.launchers.dataflow.job_options import default_job_name, job_options
from tests.servers import faults
from tests.servers.gcs import GcsServer
from tests.servers.iam import ACT_AS, DISABLED, IamServer

INPUT, OUTPUT = "bq://lab-test.lfp.traces", "gs://lab/dataset"
SOUND: dict[str, Any] = {"project": "lab-test", "region": "europe-west4"}


NAMES = (
    "GOOGLE_CLOUD_REGION",
    "CLOUDSDK_COMPUTE_REGION",
    "DATAFLOW_SERVICE_ACCOUNT",
    "TEMP_BUCKET",
)


@pytest.fixture(autouse=True)
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def problems(**values: Any) -> list[str]:
    sound = {"input": INPUT, "output": OUTPUT} | SOUND | {"temp_location": "gs://lab/temp"}
    settings = JobSettings(**(sound | values))
    return [*check_project(settings), *check_settings(settings)]


def test_sound_settings_pass() -> None:
    account = "worker@lab-test.iam.gserviceaccount.com"
    assert problems() == []
    assert (
        problems(
            input="gs://lab/table",
            worker_zone="europe-west4-a",
            subnetwork="regions/europe-west4/subnetworks/private",
            service_account_email=account,
            machine_type="n2-custom-4-8192",
            num_workers=3,
            max_num_workers=3,
            labels=["team=lfp", "cost_centre=", '{ "key": "value" }'],
            job_name="lfp-1",
            flexrs_goal="COST_OPTIMIZED",
        )
        == []
    )
    assert problems(service_account_email="12345-compute@developer.gserviceaccount.com") == []
    assert problems(project="example.com:lab-test") == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"project": None}, "pass --project"),
        ({"project": "123456789"}, "project number"),
        ({"project": "My Lab"}, "no project id"),
        ({"region": None}, "pass --region"),
        ({"region": "europe-west4-a"}, "did you mean --region europe-west4?"),
        ({"region": "Europe"}, "no region"),
        ({"worker_zone": "europe-west4"}, "no zone"),
        ({"worker_zone": "us-east1-b", "worker_region": "us-east1"}, "exclude each other"),
        ({"subnetwork": "default"}, "regions/REGION/subnetworks/NAME"),
        ({"subnetwork": "regions/us-east1/subnetworks/a"}, "workers are in europe-west4"),
        ({"input": "table.parquet"}, "gs:// or bq://"),
        ({"input": "gs://Lab/table"}, "--input 'gs://Lab/table'"),
        ({"input": "bq://traces"}, "is not bq://PROJECT.DATASET.TABLE"),
        ({"output": "out/dataset"}, "write to gs://"),
        ({"output": "gs://lab data/x"}, "--output 'gs://lab data/x'"),
        ({"temp_location": "/tmp/x"}, "--temp_location '/tmp/x'"),
        ({"staging_location": "gs://Lab/x"}, "--staging_location 'gs://Lab/x'"),
        ({"machine_type": "n2_standard_4"}, "did you mean n2-standard-4?"),
        ({"machine_type": "large"}, "no machine type"),
        ({"machine_type": "f1-micro"}, "too small"),
        ({"num_workers": 0}, "--num_workers 0"),
        ({"disk_size_gb": -1}, "--disk_size_gb -1"),
        ({"num_workers": 9, "max_num_workers": 3}, "more than --max_num_workers 3"),
        ({"autoscaling_algorithm": "NONE"}, "pass --num_workers"),
        ({"service_account_email": "worker"}, "no service account"),
        ({"service_account_email": "me@gmail.com"}, "no service account"),
        ({"job_name": "My_Job"}, "--job_name 'My_Job'"),
        ({"job_name": "a" * 64}, "at most 63"),
        ({"labels": ["Team=lfp"]}, "--labels 'Team=lfp'"),
        ({"labels": ["a=1", "a=2"]}, "given twice"),
    ],
)
def test_each_wrong_setting_is_said_once(values: dict[str, Any], said: str) -> None:
    (problem,) = problems(**values)
    assert said in problem


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--setup_file", "setup.py"], "packs this checkout itself"),
        (["--save_main_session"], "no session is pickled"),
        (["--template_location", "gs://lab/t"], "last steps"),
        (["--streaming"], "bounded"),
        (["--direct_num_workers", "4"], "--direct_num_workers is for local runs"),
    ],
)
def test_flags_that_do_not_go_with_dataflow_are_refused(flags: list[str], said: str) -> None:
    arguments = ["--project", "lab-test", "--region", "europe-west4", *flags]
    with pytest.raises(UsageError, match=said):
        job_options(arguments, INPUT, OUTPUT)


def test_all_problems_are_said_in_one_line() -> None:
    flags = ["--project", "1", "--region", "Mars", "--machine_type", "big", "--labels", "A"]
    with pytest.raises(UsageError) as caught:
        job_options(flags, "table.parquet", OUTPUT)
    message = str(caught.value)
    for part in ("--project 1", "--region 'Mars'", "'big'", "--labels 'A'", "table.parquet"):
        assert part in message
    assert "\n" not in message


def test_what_follows_from_a_wrong_output_is_not_said_as_well() -> None:
    with pytest.raises(UsageError) as caught:
        job_options(["--project=lab-test", "--region=us-east1"], INPUT, "gs://Lab/dataset")
    assert str(caught.value).count("gs://Lab") == 1


def test_what_the_user_sets_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDSDK_COMPUTE_REGION", "us-east1")
    flags = {
        "machine_type": "c3-standard-8",
        "max_num_workers": "7",
        "disk_size_gb": "99",
        "number_of_worker_harness_threads": "12",
        "temp_location": "gs://scratch/t",
        "staging_location": "gs://scratch/s",
        "job_name": "mine",
        "sdk_container_image": "europe-docker.pkg.dev/lab/beam:1",
        "network": "lab",
    }
    arguments = [word for name, value in flags.items() for word in (f"--{name}", value)]
    given = job_options(["--project=lab-test", "--labels=team=lfp", *arguments], INPUT, OUTPUT)
    values = given.get_all_options()
    assert {name: str(values[name]) for name in flags} == flags
    assert values["region"] == "us-east1"
    assert values["labels"] == ["team=lfp", "application=lfp-vit"]


def test_names_of_cloud_env_stand_for_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    account = "lfp-dataflow-worker@lab-test.iam.gserviceaccount.com"
    names = ("GOOGLE_CLOUD_PROJECT", *NAMES)
    for name, value in zip(
        names, ("lab-test", "us-west1", "us-east1", account, "scratch"), strict=True
    ):
        monkeypatch.setenv(name, value)
    values = job_options([], INPUT, OUTPUT).get_all_options()
    assert (values["project"], values["region"]) == ("lab-test", "us-west1")
    assert values["service_account_email"] == account
    assert values["temp_location"] == values["staging_location"] == "gs://scratch/dataflow-temp"
    flags = ["--region=us-east4", "--temp_location=gs://lab/x"]
    values = job_options(flags, INPUT, OUTPUT).get_all_options()
    assert (values["region"], values["temp_location"]) == ("us-east4", "gs://lab/x")


def test_defaults_fit_the_job() -> None:
    values = job_options(
        ["--project=lab-test", "--region=us-east1", "--num_workers=30"], INPUT, OUTPUT
    ).get_all_options()
    assert values["temp_location"] == values["staging_location"] == "gs://lab/dataflow-temp"
    assert values["max_num_workers"] == 30
    fixed = ["--autoscaling_algorithm=NONE", "--num_workers=2"]
    values = job_options(
        ["--project=lab-test", "--region=us-east1", *fixed], INPUT, OUTPUT
    ).get_all_options()
    assert values["max_num_workers"] is None


def test_job_names_tell_datasets_and_runs_apart() -> None:
    names = {default_job_name("gs://lab/My Data_Set.v2/") for _ in range(20)}
    assert len(names) == 20
    for name in [*names, default_job_name("gs://lab"), default_job_name("gs://lab/" + "x" * 99)]:
        assert problems(job_name=name) == []
    assert all(name.startswith("lfp-my-data-set-v2-") for name in names)


def bucket_problems(gcs: GcsServer, *flags: str, input: str = INPUT) -> str:
    options = job_options(["--region", "europe-west4", *flags], input, OUTPUT)
    with pytest.raises(BucketError) as caught:
        check_buckets(options, input, OUTPUT)
    return str(caught.value)


def test_every_bucket_is_looked_at(gcs: GcsServer) -> None:
    options = job_options(["--region", "europe-west4"], INPUT, OUTPUT)
    assert check_buckets(options, INPUT, OUTPUT) == []
    said = bucket_problems(gcs, "--temp_location=gs://typo/t", input="gs://nowhere/table")
    assert "--temp_location gs://typo/t: there is no bucket gs://typo" in said
    assert "--staging_location gs://typo/t" in said
    assert "--input gs://nowhere/table: there is no bucket gs://nowhere" in said
    assert "--output" not in said


@pytest.mark.parametrize(
    ("right", "role"),
    [
        ("storage.objects.create", "objectUser"),
        ("storage.objects.list", "objectViewer"),
        ("storage.buckets.get", "legacyBucketReader"),
    ],
)
def test_a_missing_right_is_named_with_a_role_that_holds_it(
    gcs: GcsServer, right: str, role: str
) -> None:
    gcs.denied.add(right)
    said = bucket_problems(gcs)
    assert f"this account lacks {right} on gs://lab; grant it roles/storage.{role} there" in said


def test_a_bucket_out_of_reach_is_said(gcs: GcsServer) -> None:
    gcs.faults.add("GET", "/b/lab/iam", faults.STATUS, times=None, status=403)
    assert "gs://lab is out of reach" in bucket_problems(gcs)


def test_each_bucket_far_away_is_noted_once_if_one_may_look_at_it(gcs: GcsServer) -> None:
    gcs.create_bucket("scratch")
    flags = ["--region", "us-central1", "--temp_location", "gs://scratch/t"]
    options = job_options(flags, INPUT, OUTPUT)
    lab, scratch = check_buckets(options, INPUT, OUTPUT)
    assert lab.startswith("gs://lab is in europe-west4, the workers in us-central1")
    assert scratch.startswith("gs://scratch is in europe-west4")
    gcs.faults.add("GET", r"/b/lab(\?|$)", faults.STATUS, times=None, status=403)
    assert check_buckets(options, INPUT, OUTPUT) == [scratch]


@pytest.mark.parametrize(
    ("location", "region", "notes"),
    [
        ("EUROPE-WEST4", "europe-west4", 0),
        ("US-EAST1", "europe-west4", 1),
        ("EU", "europe-west4", 0),
        ("US", "us-east1", 0),
        ("US", "europe-west4", 1),
        ("NAM4", "us-east1", 0),
    ],
)
def test_a_bucket_far_from_the_workers_is_noted(location: str, region: str, notes: int) -> None:
    assert len(list(location_notes("lab", location, region))) == notes


WORKER = "worker@lab-test.iam.gserviceaccount.com"
TOKEN = Credentials(token="secret")


def test_an_account_that_one_may_act_as_passes(iam: IamServer) -> None:
    iam.accounts[WORKER] = [ACT_AS]
    assert check_account(WORKER, TOKEN) == []
    # Plain HTTP is shown no token; the project is named, or 404 would be 403.
    path = f"/v1/projects/lab-test/serviceAccounts/{WORKER}:testIamPermissions"
    assert iam.requests == [(path, None)]


def test_an_account_that_is_not_there_is_refused(iam: IamServer) -> None:
    with pytest.raises(AccountError, match=f"{WORKER}: there is no such account"):
        check_account(WORKER, TOKEN)


def test_an_account_that_one_may_not_act_as_is_refused_with_the_command_that_helps(
    iam: IamServer,
) -> None:
    iam.accounts[WORKER] = []
    with pytest.raises(AccountError) as caught:
        check_account(WORKER, TOKEN)
    assert "you may not run jobs as it" in str(caught.value)
    assert f"gcloud iam service-accounts add-iam-policy-binding {WORKER} " in str(caught.value)
    assert "--role=roles/iam.serviceAccountUser" in str(caught.value)


def test_an_iam_service_that_does_not_say_is_a_note_and_no_error(iam: IamServer) -> None:
    iam.refuse = DISABLED
    (note,) = check_account(WORKER, TOKEN)
    assert f"{WORKER} was not checked" in note
    assert "API has not been used in project lab-test" in note


def test_an_account_of_an_unnamed_project_is_never_said_to_be_missing(iam: IamServer) -> None:
    (note,) = check_account("12345-compute@developer.gserviceaccount.com", TOKEN)
    assert "was not checked" in note


def test_an_outage_of_the_iam_service_is_sat_out(iam: IamServer) -> None:
    iam.accounts[WORKER], iam.outages = [ACT_AS], 1
    assert check_account(WORKER, TOKEN) == []
    assert len(iam.requests) == 2


@pytest.mark.parametrize(
    ("email", "project"),
    [
        (WORKER, "lab-test"),
        ("worker@lab-test.example.com.iam.gserviceaccount.com", "example.com:lab-test"),
        ("12345-compute@developer.gserviceaccount.com", "-"),
        ("lab-test@appspot.gserviceaccount.com", "-"),
    ],
)
def test_an_account_is_asked_for_in_its_own_project(email: str, project: str) -> None:
    assert account_name(email) == f"projects/{project}/serviceAccounts/{email}"
