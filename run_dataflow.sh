#!/usr/bin/env bash
# Preprocess a table of LFP traces into a dataset folder.
#
#   ./run_dataflow.sh                                     generated sample data -> out/dataset
#   ./run_dataflow.sh --input table.parquet --output DIR  your own table
#   ./run_dataflow.sh --help                              every flag
#
# Without flags the paths lie in the repository, wherever you call it from; paths
# that you give are relative to where you are. Exit status: 0 done, 1 failed, 2 wrong usage.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
python=python3
if [[ -x $root/.venv/bin/python ]]; then
  python=$root/.venv/bin/python
fi

# This checkout's code runs, not a beam_pipeline that lies where you are. Variables,
# not flags, because Beam's worker processes must inherit it.
export PYTHONSAFEPATH=1
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

# Looked for, not imported: Beam takes seconds to load.
if ! "$python" - 2>/dev/null <<'EOF'; then
import importlib.util, sys
sys.exit(not all(map(importlib.util.find_spec, ("apache_beam", "pyarrow", "rich", "scipy"))))
EOF
  echo "error: $python lacks Python packages that this needs; run 'make venv' in $root first" >&2
  exit 1
fi

if (($# == 0)); then
  cd -- "$root"
  "$python" -m beam_pipeline sample --output out/sample
  set -- --input out/sample --output out/dataset
fi
# On Dataflow, names in cloud/cloud.env (docs/cloud.md) stand for flags that are not given.
if [[ "$*" =~ --runner[=\ ]Dataflow ]]; then
  # shellcheck source=cloud/read_env.sh
  . "$root/cloud/read_env.sh"
  read_env
fi
exec "$python" -m beam_pipeline preprocess "$@"
