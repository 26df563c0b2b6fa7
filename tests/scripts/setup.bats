#!/usr/bin/env bats
# shellcheck disable=SC2016,SC2143,SC2154,SC2164  # Bats sets variables, and stops at what fails
# cloud/setup.sh against a project that starts empty.

bats_require_minimum_version 1.5.0
load project

setup() { start_project; }

set_up() { run_apart "$ROOT/cloud/setup.sh" "$@"; }

@test "an empty project gets everything" {
  set_up
  assert_status 0

  assert_equal "$(cut -d, -f1-3,5 "$CLOUD/buckets")" \
'spectra,US-CENTRAL1,True,lfp-vit-setup
runs,US-CENTRAL1,True,lfp-vit-setup
temp,US-CENTRAL1,True,lfp-vit-setup'
  assert_equal "$(cat "$CLOUD/repositories")" lfp-vit,lfp-vit-setup
  assert_equal "$(cut -d, -f1 "$CLOUD/accounts")" "$WORKER
$RUNNER"
  [[ $(sort -u "$CLOUD/apis" | wc -l) == 12 ]]
}

@test "each account has these roles and no other" {
  set_up
  assert_status 0

  assert_equal "$(sed 's/^serviceAccount:lfp-//; s/@[^ ]*//' "$CLOUD/policy")" \
'dataflow-worker roles/bigquery.dataViewer my-project:mice.traces
dataflow-worker roles/bigquery.readSessionUser my-project
dataflow-worker roles/dataflow.worker my-project
dataflow-worker roles/storage.objectUser gs://spectra
dataflow-worker roles/storage.objectUser gs://temp
vertex-runner roles/aiplatform.user my-project
vertex-runner roles/storage.objectUser gs://runs
vertex-runner roles/storage.objectViewer gs://spectra'
}

@test "only what is temporary is deleted by itself, and only it is gone at once" {
  set_up
  assert_status 0

  assert_equal "$(sed 's# [^ ]*/cloud/# #' "$CLOUD/kept")" \
'spectra 7d 
runs 7d 
temp 0 temp_lifecycle.json'
}

@test "no public access to any bucket" {
  set_up
  assert_status 0

  [[ $(grep -c 'buckets create .*--public-access-prevention' "$CLOUD/calls") == 3 ]]
}

@test "the same command again makes nothing" {
  set_up
  assert_status 0
  state=$(tail -n +1 "$CLOUD"/{apis,buckets,accounts,repositories,tensorboards,policy})
  : >"$CLOUD/calls"

  set_up
  assert_status 0

  [[ -z $(changes | grep -v add-iam-policy-binding) ]]
  assert_equal "$(tail -n +1 "$CLOUD"/{apis,buckets,accounts,repositories,tensorboards,policy})" \
    "$state"
}

@test "after a failure the same command goes on" {
  touch "$CLOUD/denied"
  set_up
  assert_error 1 PERMISSION_DENIED add-iam-policy-binding
  rm "$CLOUD/denied"
  : >"$CLOUD/calls"

  set_up
  assert_status 0

  [[ -z $(changes | grep -v add-iam-policy-binding) ]]
  [[ $(wc -l <"$CLOUD/policy") == 8 ]]
}

@test "a dry run changes nothing, and prints the commands that a real run runs" {
  set_up --dry_run
  assert_status 0
  [[ -z $(changes) ]]
  planned=$(sed -n 's/^+ //p' <<<"$output")

  set_up
  assert_status 0

  [[ $(grep -c . <<<"$planned") == 19 ]]
  assert_equal "$(changes)" "$planned"
  assert_equal "$(sed -n 's/^+ //p' <<<"$output")" "$planned"
}

@test "a dry run without an account prints what an empty project would get" {
  set_up --dry_run
  planned=$(sed -n 's/^+ //p' <<<"$output")
  : >"$CLOUD/account"
  : >"$CLOUD/calls"

  set_up --dry_run
  assert_status 0

  [[ $output == *'no account'* && $output == *'Nothing was changed.'* && -z $stderr ]]
  assert_equal "$(sed -n 's/^+ //p' <<<"$output")" "$planned"
  assert_equal "$(grep -v '^gcloud auth list' "$CLOUD/calls" || true)" ''
}

@test "a dry run without gcloud does, too" {
  only_with

  set_up --dry_run
  assert_status 0

  [[ $(grep -c '^+ ' <<<"$output") == 19 && -z $stderr ]]
}

@test "a dry run asks no API that is not enabled" {
  set_up --dry_run
  assert_status 0

  [[ -z $(grep -E ' (artifacts|ai|iam) ' "$CLOUD/calls") ]]
}

@test "a new account that is not known everywhere yet is waited for" {
  printf '1\n2\n3\n' >"$CLOUD/not_yet"

  set_up
  assert_status 0

  assert_equal "$(grep ^sleep "$CLOUD/calls")" $'sleep 2\nsleep 4\nsleep 8'
  [[ $(wc -l <"$CLOUD/policy") == 8 ]]
}

@test "an account that never comes to be known is an error in the end" {
  seq 100 >"$CLOUD/not_yet"

  set_up

  assert_error 1 "$WORKER" 'does not exist'
  [[ $(grep -c ^sleep "$CLOUD/calls") == 5 ]]
}

@test "a refused role is not tried again" {
  touch "$CLOUD/denied"

  set_up

  assert_error 1 PERMISSION_DENIED
  [[ -z $(grep ^sleep "$CLOUD/calls") ]]
}

@test "a bucket that is there is left as it is, with warnings" {
  echo 'spectra,EU,False,True,' >"$CLOUD/buckets"

  set_up
  assert_status 0

  [[ $(head -n 1 "$CLOUD/buckets") == 'spectra,EU,False,True,' ]]
  [[ $(grep -c '^warning: gs://spectra' <<<"$output") == 3 ]]
  [[ -z $(grep '^warning: gs://\(runs\|temp\)' <<<"$output") ]]
  [[ $output == *'EU, not in US-CENTRAL1'* ]]
}

@test "somebody else's bucket is one line" {
  configure DATASET_BUCKET=somebody-elses

  set_up

  assert_error 1 gs://somebody-elses storage.buckets.get global
  [[ -z $(grep 'buckets create' "$CLOUD/calls") ]]
}

@test "without a table nothing is granted in BigQuery, and bq is not needed" {
  configure BIGQUERY_TABLE=
  only_with gcloud

  set_up
  assert_status 0

  [[ -z $(grep -i bigquery "$CLOUD/policy") ]]
}

@test "a table of another project is named as bq wants it, and read at this project's cost" {
  configure BIGQUERY_TABLE=the-lab.mice.traces

  set_up
  assert_status 0

  grep -q 'roles/bigquery.dataViewer the-lab:mice.traces' "$CLOUD/policy"
  grep -q 'roles/bigquery.readSessionUser my-project' "$CLOUD/policy"
}

@test "the new TensorBoard is said, one that is configured is used" {
  set_up
  assert_status 0
  [[ $output == *TENSORBOARD=projects/12/locations/us-central1/tensorboards/345* ]]

  : >"$CLOUD/tensorboards"
  configure TENSORBOARD=projects/12/locations/us-central1/tensorboards/7
  set_up
  assert_status 0
  [[ ! -s $CLOUD/tensorboards ]]
  [[ $output != *TENSORBOARD=* ]]
}

@test "without cloud.env it says what to copy" {
  rm "$CLOUD_ENV"
  set_up
  assert_error 2 "CLOUD_ENV=$CLOUD_ENV"

  unset CLOUD_ENV
  cp -r "$ROOT/cloud" "$BATS_TEST_TMPDIR/checkout"
  rm -f "$BATS_TEST_TMPDIR/checkout/cloud.env"
  unset GOOGLE_CLOUD_PROJECT
  run_apart "$BATS_TEST_TMPDIR/checkout/setup.sh"
  assert_error 2 cloud.env.example
  [[ ! -s $CLOUD/calls ]]
}

@test "the example, not filled in, says what it leaves empty" {
  cp "$ROOT/cloud/cloud.env.example" "$CLOUD_ENV"
  unset GOOGLE_CLOUD_PROJECT

  set_up

  assert_error 2 'leaves empty: GOOGLE_CLOUD_PROJECT DATASET_BUCKET RUNS_BUCKET TEMP_BUCKET'
}

@test "values that cannot be right are wrong usage, before anything is asked" {
  for line in RUNS_BUCKET=gs://runs RUNS_BUCKET=Runs GOOGLE_CLOUD_PROJECT=123 \
    GOOGLE_CLOUD_REGION=us-central1-a BIGQUERY_TABLE=mice.traces VERTEX_ACCOUNT=a@b.c; do
    cp "$CLOUD_ENV" "$BATS_TEST_TMPDIR/kept.env"
    configure "$line"
    set_up
    assert_error 2 "$line" 'is not'
    mv "$BATS_TEST_TMPDIR/kept.env" "$CLOUD_ENV"
  done
  [[ ! -s $CLOUD/calls ]]
}

@test "a broken cloud.env is wrong usage" {
  echo 'TEMP_BUCKET=(' >"$CLOUD_ENV"

  set_up

  assert_status 2
}

@test "nobody is logged in" {
  : >"$CLOUD/account"

  set_up

  assert_error 1 'gcloud auth login'
}

@test "a project that cannot be seen is one line" {
  touch "$CLOUD/no_project"

  set_up

  assert_error 1 'PERMISSION_DENIED: no such project, or not for you' 'services list'
}

@test "without gcloud it says where to get it" {
  only_with

  set_up

  assert_error 1 'no gcloud' https://
}

@test "flags that it has not are wrong usage" {
  set_up --dry-run
  assert_error 2 --dry-run --help
  set_up --dry_run --dry_run
  assert_error 2 'one flag'
}

@test "--help says what it does" {
  set_up --help
  assert_status 0
  [[ $output == *'cloud/setup.sh --dry_run'*'no'*'account'* && $output != *'set -euo'* && $output != *'#'* ]]
}

@test "a list that cannot be had is no reason to make a second TensorBoard" {
  set_up
  echo 'ai tensorboards list' >"$CLOUD/broken"
  : >"$CLOUD/calls"

  set_up

  assert_error 1 'HttpError 503'
  assert_equal "$(grep -c 'tensorboards create' "$CLOUD/calls" || true)" 0
}
