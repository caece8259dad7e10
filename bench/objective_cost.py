"""What an objective costs: its own time beside that of a DPO step, and whole steps of the objectives that ask the model for more.

    python bench/objective_cost.py        about two minutes on two idle CPU cores; writes results/speed/objectives.json

The toy demo's model and step (32 pairs): the smallest there is, so that the share is the largest there is.
"""
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from the repository root, not from bench/

from batching import make_batch, micro_batches, row_lengths
from bench.common import bench_device, machine, save, seconds, spread, step_of, stored, take_turns
from model import GPT, GPTConfig
from objectives import OBJECTIVES, make_pairs, pair_losses
from runtime.config import DPOConfig
from train_dpo import score, step_gradients_of

PAIRS, TOKENS, REPEATS = 32, (24, 26, 26), 9  # prompt and reply lengths: the toy corpus's means
WHOLE = {"dpo": 1, "wpo": 1, "lddpo": 1, "kto": 1, "kto in four micro-batches": 4, "dpo in four micro-batches": 4}


def main() -> None:
    torch.manual_seed(0)
    device, rng = bench_device("float32"), np.random.default_rng(0)
    model = GPT(GPTConfig(vocab_size=1024, block_size=256, n_layer=4, n_head=4, n_embd=128)).to(device.device)
    rows = [tuple(rng.integers(0, 1024, length + int(rng.integers(-6, 7))).tolist() for length in TOKENS) for _ in range(PAIRS)]

    # alone: losses and their gradients from the log-probs of a step
    columns = [-30 * torch.rand(PAIRS) for _ in range(4)]
    extra = [torch.full((PAIRS,), 26.0), torch.full((PAIRS,), 26.0), torch.ones(PAIRS), torch.zeros(PAIRS)]

    def alone(name: str) -> None:
        p = make_pairs(*(column.clone().requires_grad_() for column in columns[:2]), *columns[2:], *extra)
        torch.autograd.grad(pair_losses(p, name, {}).mean(), (p.chosen, p.rejected), materialize_grads=True)
    own = {name: statistics.median(seconds(lambda: alone(name), device, 300, warm_up=20)) for name in OBJECTIVES}

    # whole steps, in turns
    with stored(rows, 1024) as store:
        reference, lengths = np.full((PAIRS, 2), -180, dtype=np.float32), row_lengths(store, 2)

        def whole(objective: str, pieces: int) -> None:
            c = DPOConfig(objective=objective)
            batches = [make_batch(store, part) for part in micro_batches(np.arange(PAIRS), lengths, 2 * int(lengths.sum()) // pieces)]
            settings = {"alpha": 0.5} if objective == "lddpo" else {}
            step_gradients_of(model, batches, lambda batch: score(model, batch, store, reference, c, settings, device), objective, settings, device.scaler(), PAIRS)
        systems = {name: step_of(model, lambda name=name, pieces=pieces: whole(name.split()[0], pieces)) for name, pieces in WHOLE.items()}
        taken = take_turns(systems, device, REPEATS)
    step = statistics.median(taken["dpo"])
    ratios = {name: spread([a / b for a, b in zip(times, taken["dpo in four micro-batches" if "four" in name else "dpo"])]) for name, times in taken.items()}
    found = {"what": f"{PAIRS} pairs, the toy demo's model", "dpo_step_seconds": spread(taken["dpo"]), "loss_share_percent": {name: round(100 * t / step, 3) for name, t in own.items()},
             "largest_share_percent": round(100 * max(own.values()) / step, 3), "whole_step_against_dpo": ratios, "repeats": REPEATS, "machine": machine(device)}
    save("objectives", found)
    print(f"a DPO step takes {found['dpo_step_seconds']} s; losses and their gradients at most {found['largest_share_percent']} % of it ({max(own, key=own.get)})")
    for name, ratio in ratios.items():
        print(f"  a whole step of {name}: {ratio} x DPO's")


if __name__ == "__main__":
    main()
