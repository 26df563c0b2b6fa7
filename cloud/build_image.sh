#!/usr/bin/env bash
# Build the trainer's image from this checkout and push it to Artifact Registry.
#
#   cloud/build_image.sh [auto|cloud|docker] [--dry_run]
#
# `cloud` builds with Cloud Build and needs gcloud alone; `docker` builds with the Docker engine of
# this machine; `auto`, the default, takes the first of them that is there. The image is tagged
# `latest` and with its commit; its full name is all that goes to standard output.
# Exit status: 0 done, 1 failed, 2 wrong usage.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=cloud/read_env.sh
. "$here/read_env.sh"

builder=auto dry_run=''
for word in "$@"; do
  case $word in
    auto | cloud | docker) builder=$word ;;
    --dry_run) dry_run=1 ;;
    *) fail "'$word' is no builder: auto, cloud or docker" 2 ;;
  esac
done
read_env GOOGLE_CLOUD_PROJECT GOOGLE_CLOUD_REGION TEMP_BUCKET ARTIFACT_REPOSITORY

has_engine() {
  command -v docker >/dev/null && docker info >/dev/null 2>&1
}

case $builder in
  auto)
    if command -v gcloud >/dev/null; then
      builder=cloud
    elif has_engine; then
      builder=docker
    else
      fail 'nothing here can build an image: install gcloud, or start a Docker engine'
    fi
    ;;
  cloud)
    command -v gcloud >/dev/null ||
      fail 'there is no gcloud: install it, https://cloud.google.com/sdk/docs/install'
    ;;
  docker)
    has_engine || fail 'no Docker engine answers: start it, or build with --build=cloud'
    ;;
esac

# A commit, or a time where files differ from it: a tag must never come to name something else.
cd -- "$here/.."
commit=$(git rev-parse HEAD 2>/dev/null) || commit=
sources=(Dockerfile.trainer setup.py constraints.txt trainer)
tag=${commit:0:12}
if [[ -z $commit || -n $(git status --porcelain -- "${sources[@]}") ]]; then
  tag=${commit:+${commit:0:12}-}$(date -u +%Y%m%d-%H%M%S)
  commit=${commit:+$commit-dirty}
fi
image=$IMAGE_NAME:$tag

run() {
  { printf '+'; printf ' %q' "$@"; echo; } >&2
  [[ -n $dry_run ]] || "$@" >&2
}

if [[ $builder == cloud ]]; then
  echo "Building $image with Cloud Build (--build=docker builds here instead)" >&2
  run gcloud builds submit . --config=cloudbuild.yaml --ignore-file=.dockerignore \
    --project="$GOOGLE_CLOUD_PROJECT" --region="$GOOGLE_CLOUD_REGION" \
    --gcs-source-staging-dir="gs://$TEMP_BUCKET/cloud-build" \
    --substitutions="_IMAGE=$IMAGE_NAME,_TAG=$tag,_GIT_COMMIT=$commit,_PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL:-}"
else
  echo "Building $image with the Docker engine here" >&2
  # linux/amd64 is what Vertex AI runs, whatever this machine is.
  run docker build . --file=Dockerfile.trainer --platform=linux/amd64 \
    --build-arg=PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL:-}" --build-arg=GIT_COMMIT="$commit" \
    --tag="$image" --tag="$IMAGE_NAME:latest"
  for name in "$image" "$IMAGE_NAME:latest"; do
    run docker push "$name" ||
      fail "Docker may not push yet: gcloud auth configure-docker ${IMAGE_NAME%%/*}, then again"
  done
fi
echo "$image"
