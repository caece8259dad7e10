#!/usr/bin/env bash
# Everything that needs a GPU, in one go: the marked tests, then twenty steps of each stage of the 85M model with its memory and speed, and an evaluation.
#   bench/gpu_run.sh FOLDER_WITH_HH_FILES [PYTHON]      TIKTOKEN_CACHE_DIR must hold GPT-2's vocabulary where there is no network
set -euo pipefail
cd "$(dirname "$0")/.."
hh=${1:?give the folder with HH files}; python=${2:-python3}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
$python -m pytest -q tests/test_gpu.py
for dtype in auto float16; do
  $python train_dpo.py hh_small --name="gpu_$dtype" --dtype=$dtype --data.source="$hh" --model.init_from=scratch \
    --sft.max_steps=20 --dpo.max_steps=20 --sft.eval_rows=64 --dpo.eval_rows=64 --fresh
done
same="--name=gpu_auto --data.source=$hh --model.init_from=scratch --sft.max_steps=20 --sft.eval_rows=64 --dpo.max_steps=20 --dpo.eval_rows=64"
$python train_reward.py hh_small $same --reward.max_steps=20 --reward.eval_rows=64 --fresh
$python -m eval.run hh_small $same --eval.prompts_per_kind=20 --eval.max_pairs=64
