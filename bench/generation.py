"""How fast the evaluation's replies are made: 300 prompts x 64 tokens on a toy-sized model, float32, no early end.

    python bench/generation.py [CHECKPOINT]         random weights without one; writes results/generation/generation.json
"""
import json
import platform
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # import from the repository root, not from bench/

import numpy as np
import torch

from model import GPT, GPTConfig, load_model
from runtime.config import load_config

PROMPTS, TOKENS, REPEATS = 300, 64, 5


def main() -> None:
    config = load_config(["toy"])
    torch.set_num_threads(config.threads)
    m = config.model
    model = load_model(sys.argv[1]) if len(sys.argv) > 1 else GPT(GPTConfig(config.data.vocab_size, m.block_size, m.n_layer, m.n_head, m.n_embd))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, model.config.vocab_size, int(n)).tolist() for n in rng.integers(12, 60, PROMPTS)]  # lengths as in the toy corpus
    seconds = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        model.generate(prompts, max_new_tokens=TOKENS, eot_id=-1, temperature=0.7, batch_size=config.eval.batch_size)
        seconds.append(time.perf_counter() - started)
    seconds = seconds[1:]  # the first warms up
    result = {"prompts": PROMPTS, "tokens": TOKENS, "parameters": model.n_params(), "threads": config.threads, "seconds_median": round(statistics.median(seconds), 2),
              "seconds_min": round(min(seconds), 2), "seconds_max": round(max(seconds), 2), "tokens_per_second": round(PROMPTS * TOKENS / statistics.median(seconds)),
              "torch": torch.__version__, "machine": platform.machine()}
    out = ROOT / "results" / "generation"
    out.mkdir(parents=True, exist_ok=True)
    (out / "generation.json").write_text(json.dumps(result, indent=1) + "\n")
    print(result)


if __name__ == "__main__":
    main()
