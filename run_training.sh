#!/usr/bin/env bash
# Train a Temporal 3D ViT on a dataset folder and evaluate its best checkpoint.
#
#   ./run_training.sh                                         out/dataset -> out/run
#   ./run_training.sh --data DIR --output DIR --experiment e3 your own dataset, one of e1 to e4
#   ./run_training.sh --help                                  every flag
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
if ((processes > 1)); then
  exec "$python" -m torch.distributed.run --standalone --nproc_per_node "$processes" \
    -m trainer train "$@"
fi
exec "$python" -m trainer train "$@"
