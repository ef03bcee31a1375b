#!/usr/bin/env bash
# The main job on the embedded synthetic faces: every stage, crafted features, the audit. Under ten minutes on two cores.
# Smaller than the configs, for the time: the people of configs/small.yaml (128 public, 32 private), most stages a quarter shorter,
# narrower decoders, Crafter's critic from two trajectories of 32 faces instead of four of 64. So it is an experiment of its
# own, runs/demo. Two lanes share the cores: the prior, the oracles and the decoders are trained beside the task model, the
# amortizer and Crafter; what that lane prints is in runs/beside.log.
# Run again after an interruption, it goes on where it stopped: finished stages say so and are kept.
set -euo pipefail
cd "$(dirname "$0")/.."
cores=$(python -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
people=(--data configs/small.yaml)
decoder=(--model.init_args.width 32 --ckpt_path last)
run() { # VERB --config FILE, and more
  set -- "${@:1:3}" --experiment demo "${people[@]}" "${@:4}"
  echo "+ python -m crafter_pl $*"
  python -m crafter_pl "$@"
}
finished() { [ -f "runs/demo/$1/summary.json" ]; }
beside() {
  run fit --config configs/prior.yaml --model.init_args.warmup_epochs 7 --trainer.max_epochs 8 --ckpt_path last || return
  run fit --config configs/oracle_resnet.yaml --trainer.max_epochs 5 --ckpt_path last || return
  run fit --config configs/oracle_plain.yaml --ckpt_path last || return
  until finished task; do sleep 1; done
  run fit --config configs/attacks/black_box.yaml "${decoder[@]}" --trainer.max_epochs 4 || return
  run fit --config configs/attacks/black_box_answers.yaml "${decoder[@]}" --trainer.max_epochs 3
}

mkdir -p runs
export OMP_NUM_THREADS=$(((cores + 1) / 2))
beside > runs/beside.log 2>&1 &
beside=$!
trap 'pkill -P $beside 2> /dev/null; kill $beside 2> /dev/null || true' EXIT
run fit --config configs/task.yaml --trainer.max_epochs 6 --ckpt_path last
while ! finished prior && kill -0 $beside 2> /dev/null; do sleep 1; done
if finished prior; then
  run fit --config configs/amortizer.yaml --ckpt_path last
  run fit --config configs/crafter.yaml --ckpt_path last --data.batch_size 32 \
    --trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.check_val_every_n_epoch 1
fi
if ! wait $beside; then
  cat runs/beside.log >&2
  exit 1
fi
trap - EXIT
run predict --config configs/crafter.yaml --trainer.accelerator cpu --trainer.devices 2 \
  --data.predict_batch_size 32
export OMP_NUM_THREADS=$cores
run audit --config configs/audit.yaml --budget quick --out runs/demo/audit --features crafter/beta0.1 \
  --oracles "[oracle_resnet, oracle_plain]"
echo "demo: $SECONDS s"
