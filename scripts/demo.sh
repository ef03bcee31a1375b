#!/usr/bin/env bash
# The main job on the embedded synthetic faces: every stage, crafted features, the audit. Under ten minutes on two cores.
# Run again after an interruption, it goes on where it stopped: finished stages say so and are kept.
set -euo pipefail
cd "$(dirname "$0")/.."
run() { echo "+ python -m crafter_pl $*"; python -m crafter_pl "$@"; }
began=$SECONDS

run fit --config configs/crafter.yaml --ckpt_path last
run fit --config configs/oracle_resnet.yaml --ckpt_path last
run fit --config configs/oracle_plain.yaml --ckpt_path last
run fit --config configs/attacks/black_box.yaml --ckpt_path last
run predict --config configs/crafter.yaml
run audit --config configs/audit.yaml
echo "demo: $((SECONDS - began)) s"
