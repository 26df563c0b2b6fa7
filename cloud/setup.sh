#!/usr/bin/env bash
# Make what the cloud jobs need in the project that cloud/cloud.env names: APIs, three buckets, a
# registry for the trainer's image, a TensorBoard, and two service accounts with their roles.
#
#   cloud/setup.sh --dry_run   looks, and prints what it would do; where gcloud is missing or has no
#                              account, prints what it would do in an empty project
#   cloud/setup.sh             does it, printing each command
#
# The same command again makes what is missing and leaves alone what is there. The caller has to be
# an owner of the project, or hold the admin roles that docs/cloud.md names.
# Exit status: 0 done, 1 failed, 2 wrong usage.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=cloud/read_env.sh
. "$here/read_env.sh"
# shellcheck source=cloud/resources.sh
. "$here/resources.sh"

read_flags setup.sh "$@"
read_env GOOGLE_CLOUD_PROJECT GOOGLE_CLOUD_REGION DATASET_BUCKET RUNS_BUCKET TEMP_BUCKET \
  ARTIFACT_REPOSITORY DATAFLOW_ACCOUNT VERTEX_ACCOUNT
if [[ -n $dry_run ]] && { ! command -v gcloud >/dev/null || [[ -z $(active_account) ]]; }; then
  look_away
else
  look_around
fi

# --- APIs -----------------------------------------------------------------------------------------
missing_apis=()
for api in "${APIS[@]}"; do
  is_enabled "$api" || missing_apis+=("$api.googleapis.com")
done
if ((${#missing_apis[@]})); then
  change gcloud services enable "${missing_apis[@]}" --project="$GOOGLE_CLOUD_PROJECT"
  [[ -n $dry_run ]] || read_enabled_apis
else
  echo 'APIs: all enabled'
fi

# --- Buckets --------------------------------------------------------------------------------------
# New buckets have no versioning. Soft delete, which keeps what is deleted for a week and bills it,
# undoes a mistaken `rm` of a dataset or a run; temporary files would only cost by it.
make_bucket() { # BUCKET SOFT_DELETE [FLAG...]
  local bucket=$1 soft_delete=$2
  shift 2
  if bucket_exists "$bucket"; then
    echo "gs://$bucket: there"
    check_bucket "$bucket"
    return
  fi
  change gcloud storage buckets create "gs://$bucket" --project="$GOOGLE_CLOUD_PROJECT" \
    --location="$GOOGLE_CLOUD_REGION" --uniform-bucket-level-access --public-access-prevention \
    --soft-delete-duration="$soft_delete" "$@"
  change gcloud storage buckets update "gs://$bucket" --update-labels="$LABEL"
}
make_bucket "$DATASET_BUCKET" 7d
make_bucket "$RUNS_BUCKET" 7d
make_bucket "$TEMP_BUCKET" 0 --lifecycle-file="$here/temp_lifecycle.json"

# --- Registry and TensorBoard ---------------------------------------------------------------------
repositories=$(repositories)
if grep -q "^$ARTIFACT_REPOSITORY," <<<"$repositories"; then
  echo "Artifact Registry $ARTIFACT_REPOSITORY: there"
else
  change gcloud artifacts repositories create "$ARTIFACT_REPOSITORY" \
    --project="$GOOGLE_CLOUD_PROJECT" --location="$GOOGLE_CLOUD_REGION" \
    --repository-format=docker --labels="$LABEL"
fi

tensorboard=${TENSORBOARD:-}
[[ -n $tensorboard ]] || tensorboard=$(own_tensorboard)
if [[ -n $tensorboard ]]; then
  echo "TensorBoard: there"
else
  change gcloud ai tensorboards create --display-name="$TENSORBOARD_NAME" --labels="$LABEL" \
    --project="$GOOGLE_CLOUD_PROJECT" --region="$GOOGLE_CLOUD_REGION"
  [[ -n $dry_run ]] || tensorboard=$(own_tensorboard)
fi

# --- Service accounts -----------------------------------------------------------------------------
accounts=$(accounts)
make_account() { # EMAIL DISPLAY_NAME
  if grep -q "^$1," <<<"$accounts"; then
    echo "$1: there"
  else
    change gcloud iam service-accounts create "${1%%@*}" --project="$GOOGLE_CLOUD_PROJECT" \
      --display-name="$2" --description="$MADE_BY"
  fi
}
make_account "$DATAFLOW_SERVICE_ACCOUNT" 'LFP-ViT Dataflow worker'
make_account "$TRAINER_SERVICE_ACCOUNT" 'LFP-ViT Vertex AI runner'

# --- Roles ----------------------------------------------------------------------------------------
# Adding a role that is already there changes nothing. A new account is not known everywhere at
# once, so a role is tried for about a minute.
grant() { # COMMAND...
  local output wait
  show "$@"
  [[ -z $dry_run ]] || return 0
  for wait in 2 4 8 16 32 ''; do
    # bq says what is wrong on standard output.
    output=$("$@" 2>&1 </dev/null) && return
    [[ -n $wait && $output == *'does not exist'* ]] || break
    sleep "$wait"
  done
  fail "$(tr -s '[:space:]' ' ' <<<"$output")(from: $*)"
}
each_role add grant "$DATAFLOW_SERVICE_ACCOUNT" "$TRAINER_SERVICE_ACCOUNT"

echo
if [[ -n $dry_run ]]; then
  echo 'Nothing was changed.'
else
  echo 'Everything is there.'
  if [[ -z ${TENSORBOARD:-} ]]; then
    echo "Put this into ${CLOUD_ENV:-cloud/cloud.env}:"
    echo "TENSORBOARD=$tensorboard"
  fi
  echo 'Next: ./run_training.sh --build'
fi
