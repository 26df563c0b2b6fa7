# shellcheck shell=bash
# Sourced by the scripts: what cloud.env says, and the names that follow from it.

fail() {
  echo "error: $1" >&2
  exit "${2:-1}"
}

# read_env VARIABLE...: reads the file that CLOUD_ENV names, by default the cloud.env beside this
# file, and exports what it sets; then each VARIABLE must have a value.
read_env() {
  local here file name missing=
  here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
  file=${CLOUD_ENV:-$here/cloud.env}
  if [[ -r $file && ! -d $file ]]; then
    set -a
    # shellcheck source=cloud/cloud.env.example
    . "$file" || fail "$file cannot be read: it must hold lines of NAME=value" 2
    set +a
  elif [[ -n ${CLOUD_ENV:-} ]]; then
    fail "CLOUD_ENV=$file cannot be read" 2
  fi

  for name in "$@"; do
    [[ -n ${!name:-} ]] || missing+=" $name"
  done
  if [[ -n $missing && ! -e $file ]]; then
    fail "there is no $file: copy cloud/cloud.env.example to it and fill it in" 2
  elif [[ -n $missing ]]; then
    fail "$file leaves empty:$missing" 2
  fi
  for name in DATASET_BUCKET RUNS_BUCKET TEMP_BUCKET; do
    must_look_like "$name" '[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]' 'the name of a bucket, without gs://'
  done
  must_look_like GOOGLE_CLOUD_PROJECT '[a-z][a-z0-9-]{4,28}[a-z0-9]' 'the id of a project'
  must_look_like GOOGLE_CLOUD_REGION '[a-z]+-[a-z]+[0-9]+' 'a region such as us-central1'
  must_look_like BIGQUERY_TABLE '[a-z][a-z0-9-]{4,28}[a-z0-9]\.[A-Za-z0-9_]+\.[^.:]+' \
    PROJECT.DATASET.TABLE
  must_look_like DATAFLOW_ACCOUNT '[a-z][a-z0-9-]{4,28}[a-z0-9]' 'the part before @, 6 to 30 characters'
  must_look_like VERTEX_ACCOUNT '[a-z][a-z0-9-]{4,28}[a-z0-9]' 'the part before @, 6 to 30 characters'

  # The names that follow from these.
  local project=${GOOGLE_CLOUD_PROJECT:-} region=${GOOGLE_CLOUD_REGION:-}
  [[ -n $project && -n $region ]] || return 0
  local accounts=$project.iam.gserviceaccount.com
  [[ -z ${DATAFLOW_ACCOUNT:-} ]] || export DATAFLOW_SERVICE_ACCOUNT=$DATAFLOW_ACCOUNT@$accounts
  [[ -z ${VERTEX_ACCOUNT:-} ]] || export TRAINER_SERVICE_ACCOUNT=$VERTEX_ACCOUNT@$accounts
  if [[ -n ${ARTIFACT_REPOSITORY:-} ]]; then
    export IMAGE_NAME=$region-docker.pkg.dev/$project/$ARTIFACT_REPOSITORY/trainer
    export TRAINER_IMAGE=${TRAINER_IMAGE:-$IMAGE_NAME:latest}
  fi
}

must_look_like() { # VARIABLE PATTERN WORDS
  [[ -z ${!1:-} || ${!1} =~ ^$2$ ]] || fail "$1=${!1} is not $3" 2
}
