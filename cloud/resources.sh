# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # variables go to and come from the scripts that source this
# Sourced by setup.sh and teardown.sh, after read_env.sh: what there is in the project, which of it
# setup.sh made, and who may do what.

# What marks a thing as made by setup.sh: teardown.sh removes nothing else.
LABEL=made_by=lfp-vit-setup
MADE_BY='Made by cloud/setup.sh of LFP-ViT'
TENSORBOARD_NAME=lfp-vit
APIS=(
  aiplatform artifactregistry bigquery bigquerystorage cloudbuild cloudresourcemanager compute
  dataflow iam logging monitoring storage
)

# --- Commands -------------------------------------------------------------------------------------

# Sets `dry_run`, empty or 1, from a script's flags.
read_flags() { # SCRIPT [FLAG...]
  dry_run=
  (($# <= 2)) || fail "$1 takes one flag at most; see cloud/$1 --help" 2
  case ${2:-} in
    '') ;;
    --dry_run) dry_run=1 ;;
    --help | -h)
      # The comment at its head.
      sed -n '2,/^[^#]/ s/^# \{0,1\}//p' "$here/$1"
      exit 0
      ;;
    *) fail "$1 has no flag $2; see cloud/$1 --help" 2 ;;
  esac
}

# Prints a command as it could be typed.
show() {
  printf '+'
  printf ' %q' "$@"
  echo
}

# Prints a command, and runs it unless this is a dry run.
change() {
  show "$@"
  [[ -n ${dry_run:-} ]] || "$@" </dev/null
}

# Prints what a command that changes nothing prints; if it fails, its messages as one line.
look() {
  local output errors
  errors=$(mktemp)
  if ! output=$("$@" 2>"$errors" </dev/null); then
    output=$(tr -s '[:space:]' ' ' <"$errors")
    rm -f "$errors"
    fail "$output(from: $*)"
  fi
  rm -f "$errors"
  [[ -z $output ]] || printf '%s\n' "$output"
}

# --- What there is --------------------------------------------------------------------------------

# 1 where nobody can be asked, and the project is taken to be empty.
blind=

active_account() {
  look gcloud auth list --filter=status:ACTIVE --format='value(account)'
}

# Prints a plan that needs neither gcloud nor an account.
look_away() {
  blind=1 enabled_apis=
  echo 'gcloud is missing or has no account: these commands are for a project that has nothing yet.'
}

# Checks what everything else needs, and asks which APIs are enabled.
look_around() {
  command -v gcloud >/dev/null ||
    fail 'there is no gcloud: install it, https://cloud.google.com/sdk/docs/install'
  if [[ -n ${BIGQUERY_TABLE:-} ]]; then
    command -v bq >/dev/null ||
      fail 'there is no bq, which giving access to BIGQUERY_TABLE needs: gcloud components install bq'
  fi
  local account
  account=$(active_account)
  [[ -n $account ]] || fail 'gcloud has no account: run gcloud auth login'
  read_enabled_apis
}

read_enabled_apis() {
  enabled_apis=$(look gcloud services list --enabled --project="$GOOGLE_CLOUD_PROJECT" \
    --format='value(config.name)')
}

is_enabled() { # API
  grep -Fxq "$1.googleapis.com" <<<"$enabled_apis"
}

# Whether a bucket is there, in this project or in another.
bucket_exists() { # BUCKET
  [[ -z $blind ]] || return 1
  local output
  output=$(gcloud storage buckets describe "gs://$1" --format='value(name)' 2>&1 </dev/null) &&
    return
  grep -q 'not found: 404' <<<"$output" ||
    fail "gs://$1: $(tr -s '[:space:]' ' ' <<<"$output")(names of buckets are global: it may be somebody else's)"
  return 1
}

describe_bucket() { # BUCKET FIELD,...
  look gcloud storage buckets describe "gs://$1" --format="csv[no-heading]($2)"
}

# Says what is unlike in the buckets that setup.sh makes.
check_bucket() { # BUCKET
  local settings location uniform versioning region
  settings=$(describe_bucket "$1" location,uniform_bucket_level_access,versioning_enabled)
  IFS=, read -r location uniform versioning <<<"$settings"
  region=$(tr '[:lower:]' '[:upper:]' <<<"$GOOGLE_CLOUD_REGION")
  [[ $location == "$region" ]] ||
    echo "warning: gs://$1 is in $location, not in $region: reading it from there is slow and billed"
  [[ $uniform == True ]] ||
    echo "warning: gs://$1 has access lists per object: gcloud storage buckets update gs://$1" \
      '--uniform-bucket-level-access'
  [[ $versioning != True ]] ||
    echo "warning: gs://$1 keeps and bills what is overwritten: gcloud storage buckets update" \
      "gs://$1 --no-versioning"
}

bucket_is_ours() { # BUCKET
  local mark
  mark=$(describe_bucket "$1" labels.made_by) || exit
  [[ $mark == "${LABEL#*=}" ]]
}

# Lines of NAME,MADE_BY; what belongs to an API that is not enabled does not exist, and cannot be
# asked for.
repositories() {
  is_enabled artifactregistry || return 0
  look gcloud artifacts repositories list --project="$GOOGLE_CLOUD_PROJECT" \
    --location="$GOOGLE_CLOUD_REGION" --format='csv[no-heading](name.basename(),labels.made_by)'
}

# Lines of EMAIL,DESCRIPTION.
accounts() {
  is_enabled iam || return 0
  look gcloud iam service-accounts list --project="$GOOGLE_CLOUD_PROJECT" \
    --format='csv[no-heading](email,description)'
}

# The full name of the TensorBoard that setup.sh made; nothing if there is none.
own_tensorboard() {
  is_enabled aiplatform || return 0
  local all
  # Bash forgets -e inside $(...): without the return, "could not look" would be "there is none".
  all=$(look gcloud ai tensorboards list --project="$GOOGLE_CLOUD_PROJECT" \
    --region="$GOOGLE_CLOUD_REGION" --format='csv[no-heading](name,labels.made_by)') || return
  sed -n "s/,${LABEL#*=}\$//p" <<<"$all" | head -n 1
}

# --- Who may do what ------------------------------------------------------------------------------

# Calls CALLBACK with the command that adds or removes a role, for every role of these accounts: the
# narrowest that are enough, each for the one bucket or table where there is such a thing.
each_role() { # add|remove CALLBACK EMAIL...
  local action=$1 callback=$2 accounts=" ${*:3} "
  local worker=$DATAFLOW_SERVICE_ACCOUNT runner=$TRAINER_SERVICE_ACCOUNT
  # To be a worker: leases work, writes logs, counts.
  project_role "$worker" roles/dataflow.worker
  # objectUser reads, writes and deletes objects; it cannot give access away, as objectAdmin can.
  bucket_role "$worker" roles/storage.objectUser "$TEMP_BUCKET"
  bucket_role "$worker" roles/storage.objectUser "$DATASET_BUCKET"

  bucket_role "$runner" roles/storage.objectViewer "$DATASET_BUCKET"
  # Not objectCreator: a run reads its checkpoint back, moves `last` on and deletes old ones.
  bucket_role "$runner" roles/storage.objectUser "$RUNS_BUCKET"
  # Experiments and TensorBoard have no narrower role.
  project_role "$runner" roles/aiplatform.user

  if [[ -n ${BIGQUERY_TABLE:-} ]]; then
    project_role "$worker" roles/bigquery.readSessionUser
    # Last: the table may be another project's, where the caller may give no access.
    table_role "$worker" roles/bigquery.dataViewer
  fi
}

project_role() { # EMAIL ROLE
  [[ $accounts != *" $1 "* ]] ||
    "$callback" gcloud projects "$action-iam-policy-binding" "$GOOGLE_CLOUD_PROJECT" \
      --member="serviceAccount:$1" --role="$2" --condition=None --format=none
}

bucket_role() { # EMAIL ROLE BUCKET
  [[ $accounts != *" $1 "* ]] ||
    "$callback" gcloud storage buckets "$action-iam-policy-binding" "gs://$3" \
      --member="serviceAccount:$1" --role="$2" --format=none
}

table_role() { # EMAIL ROLE
  local table=${BIGQUERY_TABLE##*.} dataset=${BIGQUERY_TABLE%.*}
  [[ $accounts != *" $1 "* ]] ||
    "$callback" bq --headless --project_id="$GOOGLE_CLOUD_PROJECT" "$action-iam-policy-binding" \
      --member="serviceAccount:$1" --role="$2" --table "${dataset%.*}:${dataset##*.}.$table"
}
