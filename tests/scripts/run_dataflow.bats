#!/usr/bin/env bats
# shellcheck disable=SC2016,SC2143,SC2154,SC2164  # Bats sets variables, and stops at what fails
# What run_dataflow.sh takes from cloud.env.

bats_require_minimum_version 1.5.0
load project

setup() {
  start_project
  CHECKOUT="$BATS_TEST_TMPDIR/a checkout"
  mkdir -p "$CHECKOUT/.venv/bin"
  cp -r "$ROOT"/{run_dataflow.sh,cloud} "$CHECKOUT"
  rm -f "$CHECKOUT/cloud/cloud.env"
  cat >"$CHECKOUT/.venv/bin/python" <<'PYTHON'
#!/usr/bin/env bash
[[ $1 != - ]] || exit 0
printf '[%s]' "$@"
echo
env | grep -E '^(GOOGLE_CLOUD_|TEMP_BUCKET|DATAFLOW_SERVICE_ACCOUNT)' | sort
PYTHON
  chmod +x "$CHECKOUT/.venv/bin/python"
}

preprocess() { run_apart "$CHECKOUT/run_dataflow.sh" "$@"; }

@test "a job on Dataflow gets the names in cloud.env" {
  for runner in '--runner DataflowRunner' --runner=DataflowRunner; do
    # shellcheck disable=SC2086  # two words in the first case
    preprocess --input bq://a.b.c $runner --output 'gs://spectra/a b'
    assert_status 0

    [[ ${lines[0]} == '[-m][beam_pipeline][preprocess][--input][bq://a.b.c]'*'[gs://spectra/a b]' ]]
    assert_equal "$(sed 1d <<<"$output")" "DATAFLOW_SERVICE_ACCOUNT=$WORKER
GOOGLE_CLOUD_PROJECT=my-project
GOOGLE_CLOUD_REGION=us-central1
TEMP_BUCKET=temp"
  done
}

@test "a job on Dataflow needs no cloud.env" {
  unset CLOUD_ENV GOOGLE_CLOUD_PROJECT GOOGLE_CLOUD_REGION

  preprocess --runner DataflowRunner --project p
  assert_status 0

  assert_equal "$output" '[-m][beam_pipeline][preprocess][--runner][DataflowRunner][--project][p]'
}

@test "a local run reads no cloud.env" {
  echo 'exit 7' >"$CLOUD_ENV"

  preprocess --input a --output b
  assert_status 0

  assert_equal "${lines[0]}" '[-m][beam_pipeline][preprocess][--input][a][--output][b]'
}

@test "a broken cloud.env is wrong usage" {
  echo 'TEMP_BUCKET=gs://temp' >"$CLOUD_ENV"

  preprocess --runner DataflowRunner

  assert_error 2 TEMP_BUCKET=gs://temp
}
