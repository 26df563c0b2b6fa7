#!/usr/bin/env bash
# Train a Temporal 3D ViT on a dataset folder and evaluate its best checkpoint.
#
#   ./run_training.sh                                         out/dataset -> out/run
#   ./run_training.sh --data DIR --output DIR --experiment e3 your own dataset, one of e1 to e4
#   ./run_training.sh --help                                  every flag
#
#   ./run_training.sh --vertex --data gs://... --output gs://...  the same run as a Vertex AI job
#   ./run_training.sh --vertex --help                             every flag of such a job
#   ./run_training.sh --build                                     build and push the job's image
#   ./run_training.sh --build --vertex --data ...                 both, the job with that image
#
# --vertex and --build read cloud/cloud.env (docs/cloud.md). --build takes Cloud Build where there is
# gcloud, else a Docker engine; --build=cloud and --build=docker choose. With --dry_run both print
# what they would do.
#
# The same command after an interruption goes on where it was. With several GPUs, one process
# trains on each (NPROC=1 keeps it to one). Without flags the paths lie in the repository, wherever
# you call it from; paths that you give are relative to where you are.
# Exit status: 0 done, 1 failed or stopped, 2 wrong usage.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
python=python3
if [[ -x $root/.venv/bin/python ]]; then
  python=$root/.venv/bin/python
fi

build='' vertex='' image=''
for word in "$@"; do
  shift
  case $word in
    --vertex) vertex=1 ;;
    --build) build=auto ;;
    --build=*) build=${word#--build=} ;;
    *) set -- "$@" "$word" ;;
  esac
done

if [[ -n $build ]]; then
  dry_run=
  [[ " $* " != *' --dry_run '* ]] || dry_run=--dry_run
  if [[ -z $vertex && $# -gt 0 && $* != --dry_run ]]; then
    echo "error: --build alone takes no flag but --dry_run ($*); a job needs --vertex, too" >&2
    exit 2
  fi
  image=$("$root/cloud/build_image.sh" "$build" ${dry_run:+"$dry_run"})
  [[ -n $vertex ]] || { echo "$image" && exit; }
fi

# This checkout's code runs, not a trainer that lies where you are. Variables, not flags, because
# torchrun's processes must inherit it.
export PYTHONSAFEPATH=1
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

# Looked for, not imported: PyTorch takes seconds to load.
if ! "$python" - 2>/dev/null <<'EOP'; then
import importlib.util, sys
names = ("torch", "webdataset", "jsonargparse", "fsspec", "sklearn", "tensorboard", "rich")
sys.exit(not all(map(importlib.util.find_spec, names)))
EOP
  echo "error: $python lacks Python packages that this needs; run 'make venv' in $root first" >&2
  exit 1
fi

if [[ -n $vertex ]]; then
  # shellcheck source=cloud/read_env.sh
  . "$root/cloud/read_env.sh"
  read_env
  export TRAINER_IMAGE=${image:-${TRAINER_IMAGE:-}}
  exec "$python" -m trainer submit "$@"
fi

if (($# == 0)); then
  cd -- "$root"
  set -- --data out/dataset --output out/run
fi

processes=${NPROC:-}
if [[ -z $processes ]]; then
  processes=1
  if command -v nvidia-smi >/dev/null; then
    # What a process may use, not what the machine has.
    processes=$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')
  fi
fi
if [[ ! $processes =~ ^[1-9][0-9]*$ ]]; then
  echo "error: NPROC must be the number of processes, not '$processes'" >&2
  exit 2
fi
# The trainer starts them, once it knows that the flags can be meant.
export TRAINER_PROCESSES_PER_REPLICA=$processes
exec "$python" -m trainer train "$@"
