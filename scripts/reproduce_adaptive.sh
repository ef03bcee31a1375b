#!/usr/bin/env bash
# Attackers that adapt, after reproduce.sh or reproduce_celeba.sh: the standard attacks and the adaptive ones on Crafter at
# four values of beta, on `answers`, on adversarial learning and on the paper's own objective; the mean of four queries of a
# face on `answers`; then every attack on the default setting. CelebA is crafted in bfloat16 where that is not slow.
# Hours on two cores; run again after an interruption, it goes on where it stopped.
#   bash scripts/reproduce_adaptive.sh [EXPERIMENT]     synthetic (default) or celeba
set -euo pipefail
cd "$(dirname "$0")/.."
export CRAFTER_DATA="${CRAFTER_DATA:-../shared/data}"
experiment=${1:-synthetic}
configs=configs
default=0.1 # beta that every attack is let at
precision=float32 suffix=""
if [ "$experiment" != synthetic ]; then
  configs="configs/$experiment" default=0.25
  if python -c "import sys; from crafter_pl.nets import bf16_is_slow; sys.exit(bf16_is_slow('auto'))"; then
    precision=bf16 suffix=-bf16
  fi
fi
runs="runs/$experiment"
run() { echo "+ python -m crafter_pl $*"; python -m crafter_pl "$@"; }
fit() { run fit --config "$configs/$1.yaml" --ckpt_path last "${@:2}"; }
adapt() { # name of the defence, its settings
  fit attacks/adaptive_black_box --name "adaptive_black_box-$1" "${@:2}"
  fit attacks/adaptive_white_box --name "adaptive_white_box-$1" "${@:2}"
}

stores=()
for beta in 0.1 0.25 0.5 1; do
  run predict --config "$configs/crafter.yaml" --protect.beta "$beta" --protect.precision "$precision"
  adapt "crafter-beta$beta" --model.init_args.protect.beta "$beta" --model.init_args.protect.precision "$precision"
  stores+=("crafter/beta$beta$suffix")
done
fit answers
run predict --config "$configs/answers.yaml" --protect.precision "$precision"
adapt answers-beta0 --model.init_args.defense_ckpt answers --model.init_args.protect.precision "$precision"
stores+=("answers/beta0$suffix")
queries=() # of each face several queries, for the attacks on their mean (A3)
for seed in 1 2 3 4; do
  run predict --config "$configs/answers.yaml" --protect.precision "$precision" \
    --protect.seed "$seed" --protect.name "beta0$suffix-seed$seed"
  queries+=("answers/beta0$suffix-seed$seed")
done
fit crafter --name crafter_paper --model.init_args.craft.task_weight 0 --model.init_args.critic_task_weight 0
run predict --config "$configs/crafter.yaml" --name crafter_paper --protect.beta 0.25 --protect.precision "$precision"
adapt crafter_paper-beta0.25 --model.init_args.protect.beta 0.25 --model.init_args.protect.precision "$precision" \
  --model.init_args.defense_ckpt crafter_paper
stores+=("crafter_paper/beta0.25$suffix")
fit adversarial_learning
run predict --config "$configs/adversarial_learning.yaml"
adapt adversarial_learning --model.init_args.defense_ckpt adversarial_learning
stores+=("adversarial_learning/lambda0.5")
run audit --config "$configs/audit.yaml" --budget adaptive --out "$runs/adaptive" \
  --features "[$(IFS=,; echo "${stores[*]}")]"

run audit --config "$configs/audit.yaml" --out "$runs/averaged" --features "[$(IFS=,; echo "${queries[*]}")]" --attacks \
  "[{class_path: AdaptiveDecoderAttack}, {class_path: AveragedAttack, init_args: {base: {class_path: AdaptiveDecoderAttack}}}]"

if [ "$experiment" = synthetic ]; then # generators that the defence has never seen; there are none for CelebA
  for stage in prior_g2 amortizer_g2 prior_style amortizer_style amortizer_wplus; do
    fit "attacks/$stage"
  done
fi
fit attacks/surrogate --name "surrogate-crafter-beta$default" --model.init_args.protect.beta "$default" \
  --model.init_args.protect.precision "$precision"
run audit --config "$configs/audit.yaml" --budget exhaustive --out "$runs/exhaustive" \
  --features "crafter/beta$default$suffix"
if [ "$experiment" = synthetic ]; then
  run audit --config "$configs/audit.yaml" --budget generators --out "$runs/generators" \
    --features "crafter/beta$default$suffix"
fi
