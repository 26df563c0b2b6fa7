#!/usr/bin/env bats
# shellcheck disable=SC2016,SC2143,SC2154,SC2164  # Bats sets variables, and stops at what fails
# cloud/teardown.sh after cloud/setup.sh.

bats_require_minimum_version 1.5.0
load project

setup() {
  start_project
  "$ROOT/cloud/setup.sh" >/dev/null
  : >"$CLOUD/calls"
}

# Answers, one a line.
tear_down() { # ANSWERS [FLAG...]
  local answers=$1
  shift
  run_apart "$ROOT/cloud/teardown.sh" "$@" <<<"$answers"
}

things() {
  (cd "$CLOUD" && cat buckets accounts repositories tensorboards policy)
}

@test "with every answer given, all that setup.sh made is gone" {
  tear_down $'y\ntemp\nspectra\nruns'
  assert_status 0

  assert_equal "$(things)" ''
  [[ -s $CLOUD/apis ]]
}

@test "roles go before their accounts" {
  tear_down $'y\n\n\n'
  assert_status 0

  [[ $(changes | grep -n policy-binding | tail -n 1 | cut -d: -f1) -lt \
    $(changes | grep -n 'accounts delete' | head -n 1 | cut -d: -f1) ]]
  [[ $output != *warning* ]]
}

@test "no answer, and every answer but yes, removes nothing" {
  before=$(things)
  for answer in '' n no yess Y?; do
    tear_down "$answer"
    assert_status 1
    [[ $stderr == *'error: nothing was removed'* ]]
  done
  run_apart "$ROOT/cloud/teardown.sh" </dev/null
  assert_status 1

  assert_equal "$(things)" "$before"
  [[ -z $(changes) ]]
}

@test "a bucket goes only if its name is typed" {
  tear_down $'y\ny\nspectra \nrun'
  assert_status 0

  # `read` takes the space off.
  assert_equal "$(cut -d, -f1 "$CLOUD/buckets")" $'runs\ntemp'
  [[ ! -s $CLOUD/accounts ]]
  [[ $output == *'gs://runs stays'* && $output == *'gs://temp stays'* ]]
}

@test "what setup.sh found there stays, with the roles of accounts that stay" {
  (cd "$CLOUD" && rm policy && touch policy)
  echo "runs,US-CENTRAL1,True,," >"$CLOUD/buckets"
  echo lfp-vit, >"$CLOUD/repositories"
  echo projects/12/locations/us-central1/tensorboards/7, >"$CLOUD/tensorboards"
  echo "$RUNNER,somebody's" >"$CLOUD/accounts"
  "$ROOT/cloud/setup.sh" >/dev/null

  tear_down $'y\ntemp\nspectra\nruns'
  assert_status 0

  assert_equal "$(cut -d, -f1 "$CLOUD/buckets")" runs
  assert_equal "$(cat "$CLOUD/repositories")" lfp-vit,
  assert_equal "$(cut -d, -f1 "$CLOUD/tensorboards")" \
    projects/12/locations/us-central1/tensorboards/7
  assert_equal "$(cut -d, -f1 "$CLOUD/accounts")" "$RUNNER"
  [[ $(grep -c "$RUNNER" "$CLOUD/policy") == 3 ]]
  [[ $output == *'gs://runs stays: setup.sh did not make it'* ]]
}

@test "a dry run asks nothing and changes nothing" {
  before=$(things)

  run_apart "$ROOT/cloud/teardown.sh" --dry_run </dev/null
  assert_status 0

  assert_equal "$(things)" "$before"
  [[ -z $(changes) ]]
  planned=$(sed -n 's/^+ //p' <<<"$output")
  tear_down $'y\ntemp\nspectra\nruns'
  assert_equal "$(changes)" "$planned"
}

@test "a role that is gone already is a warning" {
  sed -i '/roles\/dataflow\.worker/d' "$CLOUD/policy"

  tear_down $'y\ntemp\nspectra\nruns'
  assert_status 0

  [[ $(grep -c warning <<<"$output") == 1 ]]
  assert_equal "$(things)" ''
}

@test "a second time there is nothing left" {
  tear_down $'y\ntemp\nspectra\nruns'
  assert_status 0

  tear_down ''
  assert_status 0

  [[ $output == *'nothing that setup.sh made'* ]]
}

@test "setup.sh makes it all anew" {
  before=$(things)
  tear_down $'y\ntemp\nspectra\nruns'
  assert_status 0

  "$ROOT/cloud/setup.sh" >/dev/null

  assert_equal "$(things)" "$before"
}

@test "flags that it has not are wrong usage" {
  tear_down '' --yes

  assert_error 2 --yes --help
  [[ -z $(changes) ]]
}

@test "a list that cannot be had stops it before anything is removed" {
  local list
  for list in 'artifacts repositories list' 'ai tensorboards list' 'storage buckets describe gs://runs --format=csv'; do
    echo "$list" >"$CLOUD/broken"
    local before
    before=$(things)

    tear_down $'y\ntemp\nspectra\nruns'

    assert_error 1 'HttpError 503'
    assert_equal "$(things)" "$before"
  done
}
