#!/usr/bin/env bash
# Build Dockerfile.trainer and use the image as Vertex AI does: another user than root, arguments
# after the entry point, a compiled training, a report. Nothing is pushed. It downloads 4 GB, takes
# 20 GB of disk and ten minutes, so that it is no part of `make test`.
#
#   make container-test        (or, after `make venv`, cloud/container_test.sh [docker|buildah])
#
# With the Docker engine of this machine or, as root, with buildah, which needs none. Where Docker
# Hub cannot be reached, buildah builds on Debian's Python from debootstrap instead.
# Exit status: 0 the image works, 1 it does not, 2 wrong usage.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=cloud/read_env.sh
. "$root/cloud/read_env.sh"
cd -- "$root"

engine=${1:-}
if [[ -z $engine ]]; then
  engine=buildah
  if command -v docker >/dev/null && docker info >/dev/null 2>&1; then
    engine=docker
  fi
fi

work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT

build_with_docker() {
  docker build . --file=Dockerfile.trainer --platform=linux/amd64 --tag=lfp-vit-test
  in_image() { docker run --rm --volume="$work/data:/work" --entrypoint= lfp-vit-test "$@"; }
}

build_with_buildah() {
  command -v buildah >/dev/null ||
    fail 'no Docker engine answers, and there is no buildah: apt-get install buildah debootstrap'
  ((EUID == 0)) || fail 'buildah without a Docker engine needs root'
  local store=(--storage-driver=vfs --root="$work/images" --runroot="$work/containers")
  local base
  base=$(sed -n 's/^FROM //p' Dockerfile.trainer)
  if ! buildah "${store[@]}" pull --quiet "$base"; then
    echo "Docker Hub cannot be reached: Debian's Python stands in for $base"
    base=localhost/python-of-debian
    debian_base "$base"
  fi
  # Where a proxy signs what is downloaded, pip inside must trust what pip here trusts.
  local trust=()
  [[ -z ${PIP_CERT:-} ]] || trust=(--volume=/etc/ssl/certs:/etc/ssl/certs:ro)
  buildah "${store[@]}" build --isolation=chroot --from="$base" --file=Dockerfile.trainer \
    ${trust[@]+"${trust[@]}"} --tag=lfp-vit-test .
  container=$(buildah "${store[@]}" from lfp-vit-test)
  in_image() {
    buildah --storage-driver=vfs --root="$work/images" --runroot="$work/containers" run \
      --isolation=chroot --volume="$work/data:/work" "$container" -- "$@"
  }
}

debian_base() { # NAME
  local container
  debootstrap --variant=minbase --include=python3-dev,python3-pip,python3-venv,ca-certificates \
    bookworm "$work/debian" >"$work/log" || fail "debootstrap: $(tail -n 1 "$work/log")"
  # As in the real one, `python` is there and pip installs beside it.
  ln -s python3 "$work/debian/usr/bin/python"
  rm "$work"/debian/usr/lib/python3.*/EXTERNALLY-MANAGED
  container=$(buildah "${store[@]}" from scratch)
  buildah "${store[@]}" add --quiet "$container" "$work/debian" /
  buildah "${store[@]}" commit --quiet --rm "$container" "$1"
  rm -rf -- "$work/debian"
}

step() {
  echo
  echo "--- $1"
}

python=$root/.venv/bin/python
[[ -x $python ]] || fail "there is no $python: run make venv first"
step 'a dataset to train on, made here'
"$python" -m beam_pipeline sample --output "$work/sample"
"$python" -m beam_pipeline preprocess --input "$work/sample" --output "$work/data/dataset"
chmod -R a+rwX "$work/data"

step 'the image'
case $engine in
  docker) build_with_docker ;;
  buildah) build_with_buildah ;;
  *) fail "'$engine' is neither docker nor buildah" 2 ;;
esac

step 'it is not root, and pip finds nothing missing'
[[ $(in_image id -u) == 1000 ]] || fail 'the image runs as root'
in_image pip check

step 'torch is built for CUDA and for the A100 (sm_80)'
in_image python -c 'import torch; flags = torch._C._cuda_getArchFlags(); print(torch.__version__, flags)
assert "sm_80" in flags.split()'

step 'a compiled training, and its report'
in_image python -m trainer train --data dataset --output run --experiment e1 --train.epochs 1 \
  --train.compile always --model.embed_dim 64 --model.depth 1 --model.num_heads 2 \
  --model.patch_freq 16 --model.patch_time 61
in_image python -m trainer report run
[[ -s $work/data/run/report.html ]] || fail 'the training left no report'

echo
echo 'The image works.'
