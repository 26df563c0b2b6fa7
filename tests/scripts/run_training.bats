#!/usr/bin/env bats
# shellcheck disable=SC2016,SC2143,SC2154,SC2164  # Bats sets variables, and stops at what fails
# The image and the job: cloud/build_image.sh, and run_training.sh with --build and --vertex.

bats_require_minimum_version 1.5.0
load project

IMAGE=us-central1-docker.pkg.dev/my-project/lfp-vit/trainer

setup() {
  start_project
  # A checkout, in a folder with a space, whose Python says how it was called.
  CHECKOUT="$BATS_TEST_TMPDIR/a checkout"
  mkdir -p "$CHECKOUT/.venv/bin" "$CHECKOUT/trainer"
  cp -r "$ROOT"/{run_training.sh,cloud,cloudbuild.yaml,Dockerfile.trainer,.dockerignore} "$CHECKOUT"
  rm -f "$CHECKOUT/cloud/cloud.env"
  touch "$CHECKOUT"/{setup.py,constraints.txt,trainer/model.py}
  cat >"$CHECKOUT/.venv/bin/python" <<'PYTHON'
#!/usr/bin/env bash
[[ $1 != - ]] || exit 0
printf '[%s]' "$@"
echo
env | grep -E '^(GOOGLE_CLOUD_|TRAINER_|TENSORBOARD=|PYTHON)' | sort
exit "${PYTHON_STATUS:-0}"
PYTHON
  chmod +x "$CHECKOUT/.venv/bin/python"
  cd "$CHECKOUT"
  export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
  export GIT_CONFIG_GLOBAL=/dev/null
  git init --quiet
  git add --all
  git commit --quiet --message=x
  COMMIT=$(git rev-parse HEAD)
  TAG=${COMMIT:0:12}
  cd "$BATS_TEST_TMPDIR"
}

train() { run_apart "$CHECKOUT/run_training.sh" "$@"; }

@test "--vertex submits, with every word as it was given and what cloud.env says" {
  configure TENSORBOARD=projects/12/locations/us-central1/tensorboards/7

  train --data gs://spectra/a --vertex --output 'gs://runs/a b' '' '$HOME *'
  assert_status 0

  assert_equal "${lines[0]}" \
    '[-m][trainer][submit][--data][gs://spectra/a][--output][gs://runs/a b][][$HOME *]'
  [[ $output == *"GOOGLE_CLOUD_PROJECT=my-project
GOOGLE_CLOUD_REGION=us-central1"* ]]
  [[ $output == *"TENSORBOARD=projects/12/locations/us-central1/tensorboards/7
TRAINER_IMAGE=$IMAGE:latest
TRAINER_SERVICE_ACCOUNT=$RUNNER"* ]]
}

@test "--vertex needs no cloud.env: flags may say it all" {
  rm "$CLOUD_ENV"
  unset CLOUD_ENV GOOGLE_CLOUD_PROJECT GOOGLE_CLOUD_REGION

  train --vertex --project p --region us-central1 --image i --data gs://a/b --output gs://c/d
  assert_status 0

  [[ ${lines[0]} == '[-m][trainer][submit][--project][p]'* ]]
  [[ $output != *TRAINER_SERVICE_ACCOUNT* ]]
}

@test "a local run reads no cloud.env" {
  echo 'exit 7' >"$CLOUD_ENV"

  NPROC=1 train --data a --output b
  assert_status 0

  assert_equal "${lines[0]}" '[-m][trainer][train][--data][a][--output][b]'
}

@test "the job's status is the script's" {
  PYTHON_STATUS=2 train --vertex
  assert_status 2
}

@test "--build takes Cloud Build where there is gcloud, and prints the image" {
  train --build
  assert_status 0

  assert_equal "$output" "$IMAGE:$TAG"
  [[ $stderr == *'with Cloud Build'*'the log of a build'* ]]
  call=$(changes)
  for word in 'gcloud builds submit .' --config=cloudbuild.yaml --ignore-file=.dockerignore \
    --project=my-project --region=us-central1 --gcs-source-staging-dir=gs://temp/cloud-build \
    "--substitutions=_IMAGE=$IMAGE\\,_TAG=$TAG\\,_GIT_COMMIT=$COMMIT\\,_PIP_EXTRA_INDEX_URL="; do
    [[ $call == *"$word"* ]] || { echo "no $word in $call" && false; }
  done
}

@test "--build takes a Docker engine where there is no gcloud" {
  only_with docker
  touch "$CLOUD/engine"

  train --build
  assert_status 0

  assert_equal "$output" "$IMAGE:$TAG"
  assert_equal "$(changes)" \
"docker build . --file=Dockerfile.trainer --platform=linux/amd64 --build-arg=PIP_EXTRA_INDEX_URL= \
--build-arg=GIT_COMMIT=$COMMIT --tag=$IMAGE:$TAG --tag=$IMAGE:latest
docker push $IMAGE:$TAG
docker push $IMAGE:latest"
}

@test "--build=docker and --build=cloud choose" {
  touch "$CLOUD/engine"
  train --build=docker
  assert_status 0
  [[ $(changes) == docker\ build* ]]

  only_with docker
  train --build=cloud
  assert_error 1 'no gcloud'
  rm "$CLOUD/engine"
  train --build=docker
  assert_error 1 'no Docker engine' --build=cloud
}

@test "where nothing can build, it says so" {
  only_with docker

  train --build

  assert_error 1 'install gcloud, or start a Docker engine'
}

@test "a builder that there is not is wrong usage" {
  train --build=podman
  assert_error 2 podman 'auto, cloud or docker'
}

@test "a push that is refused says how to log in" {
  touch "$CLOUD/engine" "$CLOUD/denied"

  train --build=docker
  assert_status 1

  [[ $output == '' ]]
  [[ ${stderr_lines[-1]} == 'error: '*'gcloud auth configure-docker us-central1-docker.pkg.dev'* ]]
}

@test "code that differs from its commit gets a tag of its own" {
  echo changed >"$CHECKOUT/trainer/model.py"

  train --build
  assert_status 0

  [[ $output =~ ^$IMAGE:$TAG-[0-9]{8}-[0-9]{6}$ ]]
  [[ $(changes) == *"_GIT_COMMIT=$COMMIT-dirty"* ]]
}

@test "a change that is not of the image does not" {
  echo changed >"$CHECKOUT/run_training.sh.orig"

  train --build
  assert_status 0

  assert_equal "$output" "$IMAGE:$TAG"
}

@test "a checkout without git is tagged with the time" {
  rm -rf "$CHECKOUT/.git"

  GIT_CEILING_DIRECTORIES=$BATS_TEST_TMPDIR train --build
  assert_status 0

  [[ $output =~ ^$IMAGE:[0-9]{8}-[0-9]{6}$ ]]
  [[ $(changes) == *_GIT_COMMIT=\\,* ]]
}

@test "another index for torch reaches the build" {
  configure PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cu126

  train --build
  assert_status 0

  [[ $(changes) == *_PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cu126* ]]
}

@test "--build --vertex submits what was built" {
  train --build --vertex --data gs://spectra/a --output gs://runs/a
  assert_status 0

  assert_equal "${lines[0]}" '[-m][trainer][submit][--data][gs://spectra/a][--output][gs://runs/a]'
  [[ $output == *"TRAINER_IMAGE=$IMAGE:$TAG"* ]]
}

@test "nothing is submitted where the build fails" {
  touch "$CLOUD/denied"

  train --build --vertex --data gs://spectra/a --output gs://runs/a
  assert_status 1

  [[ $output != *trainer* ]]
}

@test "with --dry_run nothing is built, and the job is only printed" {
  train --build --vertex --dry_run --data gs://spectra/a --output gs://runs/a
  assert_status 0

  [[ -z $(changes) ]]
  [[ $stderr == *'+ gcloud builds submit'* ]]
  [[ ${lines[0]} == '[-m][trainer][submit][--dry_run]'* ]]

  train --build --dry_run
  assert_status 0
  assert_equal "$output" "$IMAGE:$TAG"
}

@test "--build with a local training is wrong usage" {
  train --build --data a --output b

  assert_error 2 --vertex '--data a --output b'
  [[ ! -s $CLOUD/calls ]]
}

@test "--build without cloud.env says what to copy" {
  unset CLOUD_ENV GOOGLE_CLOUD_PROJECT

  train --build

  assert_error 2 cloud.env.example
}
