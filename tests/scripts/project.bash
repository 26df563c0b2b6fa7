# shellcheck shell=bash disable=SC2034,SC2154  # variables go to and come from the tests
# Loaded by the tests: a project that starts empty, of which the gcloud in bin/ is the client.

ROOT=$(cd -- "$BATS_TEST_DIRNAME/../.." && pwd)
WORKER=lfp-dataflow-worker@my-project.iam.gserviceaccount.com
RUNNER=lfp-vertex-runner@my-project.iam.gserviceaccount.com

start_project() {
  export CLOUD=$BATS_TEST_TMPDIR/cloud CLOUD_ENV=$BATS_TEST_TMPDIR/cloud.env
  export PATH=$BATS_TEST_DIRNAME/bin:$PATH
  mkdir "$CLOUD"
  (cd "$CLOUD" && touch calls apis buckets kept accounts repositories tensorboards policy)
  echo me@example.com >"$CLOUD/account"
  unset TRAINER_IMAGE TRAINER_SERVICE_ACCOUNT PIP_EXTRA_INDEX_URL
  configure GOOGLE_CLOUD_PROJECT=my-project DATASET_BUCKET=spectra RUNS_BUCKET=runs \
    TEMP_BUCKET=temp BIGQUERY_TABLE=my-project.mice.traces
}

# Writes cloud.env: the example, with these lines in place of its own.
configure() { # NAME=VALUE...
  local line
  [[ -e $CLOUD_ENV ]] || cp "$ROOT/cloud/cloud.env.example" "$CLOUD_ENV"
  for line in "$@"; do
    grep -q "^${line%%=*}=" "$CLOUD_ENV"
    sed -i "s#^${line%%=*}=.*#$line#" "$CLOUD_ENV"
  done
}

# The calls that change something, in order.
changes() {
  grep -Ev ' (list|describe) |^sleep|^docker info' "$CLOUD/calls" || true
}

# A PATH with the ordinary tools and these of bin/, but with no real gcloud or docker.
only_with() { # NAME...
  local tools=$BATS_TEST_TMPDIR/tools name
  mkdir "$tools"
  for name in bash cat date diff dirname env git grep head mktemp rm sed sort tail touch tr uname; do
    ln -s "$(command -v "$name")" "$tools/$name"
  done
  for name in "$@"; do
    ln -s "$BATS_TEST_DIRNAME/bin/$name" "$tools/$name"
  done
  PATH=$tools
}

# What went wrong is one line on standard error; Bats 1.5 and newer can keep it apart.
run_apart() {
  run --separate-stderr "$@"
}

assert_status() { # NUMBER
  if [[ $status != "$1" ]]; then
    printf 'status %s, not %s\n%s\n%s\n' "$status" "$1" "$output" "${stderr:-}"
    return 1
  fi
}

assert_error() { # STATUS PART...: exactly one line on standard error, with these parts
  local part
  assert_status "$1"
  shift
  if ((${#stderr_lines[@]} != 1)) || [[ $stderr != 'error: '* ]]; then
    printf 'not one line of error:\n%s\n' "$stderr"
    return 1
  fi
  for part in "$@"; do
    [[ $stderr == *"$part"* ]] || {
      printf 'no %s in\n%s\n' "$part" "$stderr"
      return 1
    }
  done
}

assert_equal() { # ACTUAL EXPECTED
  diff <(printf '%s\n' "$1") <(printf '%s\n' "$2")
}
