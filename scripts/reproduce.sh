#!/usr/bin/env bash
# The synthetic experiment with its sweep: all stages, crafted at four values of beta, audited together.
# Run again after an interruption, it goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
run() { echo "+ python -m crafter_pl $*"; python -m crafter_pl "$@"; }

run fit --config configs/crafter.yaml --ckpt_path last
for stage in attacks/black_box attacks/black_box_answers oracle_resnet oracle_plain oracle_reconstructions oracle_robust; do
  run fit --config "configs/$stage.yaml" --ckpt_path last
done
stores=()
for beta in 0.1 0.25 0.5 1; do
  run predict --config configs/crafter.yaml --protect.beta "$beta"
  stores+=("crafter/beta$beta")
done
run audit --config configs/audit.yaml --out runs/synthetic/sweep --features "[$(IFS=,; echo "${stores[*]}")]"
