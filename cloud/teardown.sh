#!/usr/bin/env bash
# Remove what cloud/setup.sh made in the project that cloud/cloud.env names, asking first: once for
# what can be made again, then for each bucket, whose name has to be typed.
#
#   cloud/teardown.sh --dry_run   prints what it would do, and asks nothing
#   cloud/teardown.sh
#
# What setup.sh found there stays, with what is in it, and so do the APIs.
# Exit status: 0 done, 1 failed or refused, 2 wrong usage.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=cloud/read_env.sh
. "$here/read_env.sh"
# shellcheck source=cloud/resources.sh
. "$here/resources.sh"
read_flags teardown.sh "$@"
read_env GOOGLE_CLOUD_PROJECT GOOGLE_CLOUD_REGION DATASET_BUCKET RUNS_BUCKET TEMP_BUCKET \
  ARTIFACT_REPOSITORY DATAFLOW_ACCOUNT VERTEX_ACCOUNT
look_around

# --- What there is to remove ----------------------------------------------------------------------
accounts=$(accounts)
own_accounts=()
for email in "$DATAFLOW_SERVICE_ACCOUNT" "$TRAINER_SERVICE_ACCOUNT"; do
  grep -Fxq "$email,$MADE_BY" <<<"$accounts" && own_accounts+=("$email")
done
repositories=$(repositories)
repository=$(grep -Fx "$ARTIFACT_REPOSITORY,${LABEL#*=}" <<<"$repositories" || true)
tensorboard=$(own_tensorboard)
buckets=()
for bucket in "$TEMP_BUCKET" "$DATASET_BUCKET" "$RUNS_BUCKET"; do
  if bucket_exists "$bucket"; then
    if bucket_is_ours "$bucket"; then
      buckets+=("$bucket")
    else
      echo "gs://$bucket stays: setup.sh did not make it"
    fi
  fi
done

if ((${#own_accounts[@]} + ${#buckets[@]} == 0)) && [[ -z $repository$tensorboard ]]; then
  echo 'There is nothing that setup.sh made.'
  exit 0
fi

# --- Accounts, registry, TensorBoard --------------------------------------------------------------
revoke() { # COMMAND...
  # It may be gone already, and its bucket or table with it.
  change "$@" || echo 'warning: that role could not be taken away'
}

remove_access() {
  local email
  ((${#own_accounts[@]})) || return 0
  # Roles first: those of an account that is gone would stay behind under an unreadable name.
  each_role remove revoke "${own_accounts[@]}"
  for email in "${own_accounts[@]}"; do
    change gcloud iam service-accounts delete "$email" --project="$GOOGLE_CLOUD_PROJECT" --quiet
  done
}

remove_services() {
  [[ -z $repository ]] ||
    change gcloud artifacts repositories delete "$ARTIFACT_REPOSITORY" \
      --project="$GOOGLE_CLOUD_PROJECT" --location="$GOOGLE_CLOUD_REGION" --quiet
  [[ -z $tensorboard ]] ||
    change gcloud ai tensorboards delete "$tensorboard" --quiet
}

if [[ -n $repository$tensorboard ]] || ((${#own_accounts[@]})); then
  echo "In $GOOGLE_CLOUD_PROJECT, setup.sh made:"
  for email in ${own_accounts[@]+"${own_accounts[@]}"}; do
    echo "  service account $email"
  done
  [[ -z $repository ]] || echo "  Artifact Registry $ARTIFACT_REPOSITORY, with all its images"
  [[ -z $tensorboard ]] || echo "  TensorBoard $tensorboard, with all its curves"
  if [[ -z $dry_run ]]; then
    read -r -p 'Remove them? [y/N] ' answer || answer=
    [[ $answer == [yY] || $answer == [yY]es ]] || fail 'nothing was removed'
  fi
  remove_access
  remove_services
fi

# --- Buckets --------------------------------------------------------------------------------------
for bucket in ${buckets[@]+"${buckets[@]}"}; do
  if [[ -z $dry_run ]]; then
    read -r -p "Type $bucket to delete gs://$bucket and all that is in it: " answer || answer=
    if [[ $answer != "$bucket" ]]; then
      echo "gs://$bucket stays"
      continue
    fi
  fi
  change gcloud storage rm --recursive "gs://$bucket"
done
[[ -z $dry_run ]] || echo 'Nothing was changed.'
