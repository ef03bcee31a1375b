#!/usr/bin/env bash
# The tables of README and docs/results.md, but for the demo's own report. On CelebA: certified crafting,
# `answers` and Crafter, attacked by one decoder before and after adapting, read by whoever has a gallery; the curves over bits.
# The pictures are yours: CelebA's official layout under $CRAFTER_DATA/celeba (default ../shared/data), see configs/celeba.yaml.
# Hours on two cores; run again after an interruption, it goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
export CRAFTER_DATA="${CRAFTER_DATA:-../shared/data}"
run() { echo "+ python -m crafter_pl $*"; python -m crafter_pl "$@"; }

own="--experiment results" # the decoder has two epochs here, so it is no experiment that others share
fit() { run fit --config "configs/celeba/$1.yaml" $own --ckpt_path last "${@:2}"; }
all="--name certified-all --model.init_args.needs all --model.init_args.bits 8"
fit certified
run predict --config configs/celeba/certified.yaml $own
fit certified $all
run predict --config configs/celeba/certified.yaml $own $all
fit answers
run predict --config configs/celeba/answers.yaml $own
fit crafter
run predict --config configs/celeba/crafter.yaml $own
fit adversarial_learning --trainer.max_epochs 3
run predict --config configs/celeba/adversarial_learning.yaml $own
for name in black_box black_box_answers; do fit "attacks/$name" --trainer.max_epochs 2; done
for name in certified answers; do
  fit attacks/adaptive_black_box --name "adaptive_black_box-$name" --model.init_args.defense_ckpt "$name"
done
fit attacks/adaptive_black_box --name adaptive_black_box-crafter --model.init_args.pairs_per_round 256 \
  --model.init_args.epochs_per_round 40 --trainer.max_epochs 40
fit attacks/adaptive_black_box --name adaptive_black_box-adversarial --model.init_args.defense_ckpt adversarial_learning \
  --model.init_args.pairs_per_round 4000 --model.init_args.epochs_per_round 4 --trainer.max_epochs 4
fit attacks/student
for name in certified answers; do
  fit attacks/adaptive_student --name "adaptive_student-$name" --model.init_args.defense_ckpt "$name" \
    --model.init_args.epochs_per_round 5 --trainer.max_epochs 20
done

audit() { run audit --config configs/celeba/audit.yaml $own --oracles "[]" --out "runs/results/$1" "${@:2}"; }
decoder="{class_path: DecoderAttack}" adapted="{class_path: AdaptiveDecoderAttack}"
lda="{class_path: GalleryLDA}, {class_path: GalleryLDA, init_args: {reads: answers}}"
readers="$lda, {class_path: WatchList}, {class_path: Link}"
audit certified-adapted --features certified/bits5 --attacks "[$decoder, $adapted]" --rulers "[$readers]"
audit certified-both --features "[certified/bits5, certified-all/bits8]" --attacks "[$decoder]" --rulers "[$lda]"
from_answers="{class_path: DecoderAttack, init_args: {name: black_box_answers}}"
audit answers-adapted --features answers/beta0 --attacks "[$decoder, $from_answers, $adapted]" --rulers "[$readers]"
audit adversarial-adapted --features adversarial_learning/lambda0.5 --attacks "[$decoder, $adapted]"
audit crafter-adapted --features crafter/beta0.25 --attacks "[$decoder, $adapted]" --rulers "[]" # a gallery is crafted first

curve() { python benchmarks/certificate_curve.py "runs/results/$1/checkpoints/best.ckpt" --data configs/celeba.yaml "${@:2}"; }
curve certified --bits "[1,2,3,4,5,6,8,10]" --levels "[2,3]" --out runs/results/curve4.json
curve certified-all --bits "[4,6,8,10]" --out runs/results/curve40.json

# The same nets on LFW's people, by the 37 attributes that both data sets have.
lfw=(--experiment results-lfw --data configs/lfw.yaml --data.private_people 33 --data.attribute_columns "[0,9,10,11,12,14,16,17,19,20,26,27,28,
  29,30,34,35,36,38,39,40,42,45,46,48,49,50,58,59,60,61,63,66,68,70,71,72]")
best() { echo "runs/results/$1/checkpoints/best.ckpt"; }
for name in certified answers crafter; do
  run predict --config "configs/celeba/$name.yaml" "${lfw[@]}" --ckpt_path "$(best "$name")"
done
theirs="{class_path: DecoderAttack, init_args: {ckpt: $(best black_box)}}, {class_path: AdaptiveDecoderAttack, init_args: {black_box_ckpt: $(best black_box)}}"
shift_audit() {
  run audit --config configs/celeba/audit.yaml "${lfw[@]}" --oracles "[]" --task_ckpt "$(best task)" --attacks "[$theirs]" \
    --defenses "[$(best certified), $(best answers), $(best crafter)]" \
    --adapted "[$(best adaptive_black_box-certified), $(best adaptive_black_box-answers), $(best adaptive_black_box-crafter)]" "$@"
}
shift_audit --features "[certified/bits5, answers/beta0, crafter/beta0.25]" --rulers "[]" --out runs/results-lfw/shift
shift_audit --features "[certified/bits5, answers/beta0]" --out runs/results-lfw/shift-gallery \
  --rulers "[{class_path: GalleryLDA}, {class_path: GalleryLDA, init_args: {reads: answers, task_ckpt: $(best task)}}]"
