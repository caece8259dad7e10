#!/usr/bin/env bash
# Everything worth knowing from one GPU, in at most nine minutes and without a network: tests, precision and compile checks, the ladder,
# speed of every stage at hh_small's size, and a short real SFT -> DPO -> evaluation run. Results are files under one folder.
#   bench/gpu_run.sh FOLDER_WITH_HH_FILES [OUT]      results go to OUT, or results/gpu
#   PYTHON=python3          the interpreter, with PyTorch
#   WHEELS=FOLDER           wheels of what it lacks (tiktoken, safetensors, tqdm, scipy, pytest, transformers ...)
#   SMALL=1                 tiny sizes, to try this script on any machine
# TIKTOKEN_CACHE_DIR must hold GPT-2's vocabulary. A part that fails costs itself alone; the last lines say which did.
set -uo pipefail
cd "$(dirname "$0")/.."
hh=${1:?give the folder with HH files}; out=$(realpath -m "${2:-results/gpu}"); python=${PYTHON:-python3}
mkdir -p "$out"; export NANOPREF_RESULTS=$out PYTHONUNBUFFERED=1
[ -z "${WHEELS:-}" ] || $python -m pip install -q --no-index --find-links "$WHEELS" tiktoken safetensors tqdm scipy scikit-learn pytest transformers
batch=64; steps=8; train_steps=30; prompts=20; shape=()
[ -z "${SMALL:-}" ] || { batch=4; steps=2; train_steps=2; prompts=3; export NANOPREF_BENCH_SHAPE=2,2,64; shape=(--model.n_layer=2 --model.n_head=2 --model.n_embd=64 --sft.batch=8 --dpo.batch=8); }
failed=()

part() { # NAME SECONDS COMMAND...
  local name=$1 limit=$2 t=$SECONDS; shift 2
  [ $limit -lt $((530 - SECONDS)) ] || limit=$((530 - SECONDS))  # nine minutes in all
  [ $limit -gt 5 ] || { failed+=("$name (no time left)"); return; }
  echo "== $name: $*"
  timeout "$limit" "$@" >"$out/$name.log" 2>&1 || failed+=("$name ($?)")
  tail -n 12 "$out/$name.log"; echo "== $name: $((SECONDS - t)) s"
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv 2>/dev/null | tee "$out/machine.txt"
$python -c 'import torch; print("torch", torch.__version__, "cuda", torch.version.cuda)' | tee -a "$out/machine.txt"
part tests 90 $python -m pytest -q tests/test_gpu.py tests/test_head.py tests/test_generate.py
first=$(ls "$hh"/helpful-base*.jsonl.gz | head -n 1)
part dpo 60 $python bench/bench_dpo.py --source "$first" --batch $batch --steps $steps
part dpo_compiled 100 $python bench/bench_dpo.py --source "$first" --batch $batch --steps $steps --compile --to dpo_compiled
[ -n "${SMALL:-}" ] || part dpo_float16 60 $python bench/bench_dpo.py --source "$first" --batch $batch --steps $steps --dtype float16
part sft 60 $python bench/bench_sft.py --source "$first" --batch $batch
part ladder 150 $python bench/ladder.py --source "$first" --batch 16 --steps $steps
part generate 60 $python bench/bench_generate.py --source "$first"
same=(hh_small --name=gpu --out="$out/run" --data.source="$hh" --model.init_from=scratch "${shape[@]}" --sft.max_steps=$train_steps --sft.eval_rows=64 --dpo.max_steps=$train_steps --dpo.eval_rows=64)
part train 150 $python train_dpo.py "${same[@]}"
part evaluate 90 $python -m eval.run "${same[@]}" --eval.prompts_per_kind=$prompts --eval.max_pairs=64 --eval.toxicity=lexicon
for file in "$out"/run/gpu/*/metrics.jsonl; do cp "$file" "$out/$(basename "$(dirname "$file")")_metrics.jsonl"; done
cp "$out"/run/gpu/eval/report.md "$out"/run/gpu/eval/results_summary.json "$out" 2>/dev/null
rm -rf "$out/run"  # checkpoints of an unfinished model
echo "== all parts: $SECONDS s; failed: ${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ]
