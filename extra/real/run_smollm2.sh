#!/usr/bin/env bash
# FusionRoute with SmolLM2-135M on a laptop, offline once the wheel is there: see docs/real-models.md. Started again, it resumes.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
set -euo pipefail
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184    # Linux: keep memory between steps, a tenth less time
experts="math=smol/seed0/math code=smol/seed0/code instruct=smol/seed0/instruct"
train="--out smol --batch 4"

python -m extra.real.smollm2 data                                              # smol/*.jsonl
for name in math code instruct; do                                             # three experts: plain fine-tuning, no --experts
    python -m extra.real.train_sft --init smollm2 --data smol/$name.jsonl --name $name --lr 2e-4 $train
done
python -m extra.real.train_sft --init smol/seed0/instruct --experts $experts --data smol/router.jsonl --lr 2e-4 --lr_w 1e-3 $train
python -m extra.real.smollm2 pairs                                             # smol/pairs.jsonl, from the fused model of phase 1
python -m extra.real.train_cdpo --experts $experts --data smol/router.jsonl --pairs smol/pairs.jsonl --lr 5e-5 --lr_w 3e-4 $train --batch 2
python -m extra.real.smollm2 evaluate                                          # extra/results/smollm2.json
python -m extra.real.smollm2 publish                                           # the figures of docs/real-models.md
