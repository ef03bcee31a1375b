#!/usr/bin/env bash
# The main job on the embedded synthetic faces: every stage, crafted features, the audit. Under ten minutes on two cores.
# The oracles, which nothing else waits for, are trained beside the other stages: their output is in runs/oracles.log.
# Run again after an interruption, it goes on where it stopped: finished stages say so and are kept.
set -euo pipefail
cd "$(dirname "$0")/.."
cores=$(python -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(((cores + 1) / 2))} # two jobs side by side share the cores
run() { echo "+ python -m crafter_pl $*"; python -m crafter_pl "$@"; }
judges() {
  run fit --config configs/oracle_resnet.yaml --ckpt_path last &&
    run fit --config configs/oracle_plain.yaml --ckpt_path last
}

mkdir -p runs
judges > runs/oracles.log 2>&1 &
judges=$!
trap 'kill $judges 2> /dev/null || true' EXIT
run fit --config configs/task.yaml --ckpt_path last
run fit --config configs/crafter.yaml --ckpt_path last
run fit --config configs/attacks/black_box.yaml --ckpt_path last
if ! wait $judges; then
  cat runs/oracles.log >&2
  exit 1
fi
trap - EXIT
run predict --config configs/crafter.yaml
run audit --config configs/audit.yaml
echo "demo: $SECONDS s"
