#!/usr/bin/env bash
# The CelebA experiment: every stage on real faces, crafted features, the audit. Hours on two cores.
# The pictures are yours: CelebA's official layout under $CRAFTER_DATA/celeba (default ../shared/data), see configs/celeba.yaml.
# Run again after an interruption, it goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
export CRAFTER_DATA="${CRAFTER_DATA:-../shared/data}"
run() { echo "+ python -m crafter_pl $*"; python -m crafter_pl "$@"; }

run fit --config configs/celeba/crafter.yaml --ckpt_path last
for stage in attacks/black_box attacks/black_box_answers oracle_resnet oracle_plain; do
  run fit --config "configs/celeba/$stage.yaml" --ckpt_path last
done
run predict --config configs/celeba/crafter.yaml
run audit --config configs/celeba/audit.yaml --features crafter/beta0.25
