"""DPO steps of a GPT-2-small-shaped model on real HH pairs in file order: speed, memory, and that the work is the right work.

    python bench/bench_dpo.py --source HH.jsonl.gz [--batch 8] [--steps 5] [--dtype float32]
    python bench/bench_dpo.py --source HH.jsonl.gz --beside "PYTHON trl_dpo.py --pairs ..."     another system in the same minute, with the ratio
    python bench/bench_dpo.py ... --weights GPT2_FOLDER --their_losses FILE                     the loss of every step beside another system's

Writes results/speed/dpo_<dtype>_<batch>.json (--to NAME renames it).
"""
import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from the repository root, not from bench/

import numpy as np
import torch

from batching import make_batch, micro_batches, row_lengths, score_pairs, sequence_logps
from bench.common import (GPT2_SMALL, attended, beside, bench_device, causal_logits, hh_rows, machine, measured_peak, save, spread, stored, synchronize,
                          training_flops)
from data.store import PairStore
from model import GPT, load_model
from objectives import preference_loss
from runtime.device import Device, peak_memory_gb
from runtime.errors import run_main


@torch.no_grad()
def separate_logps(model: GPT, store: PairStore, pairs: range) -> np.ndarray:
    """[pairs, 2] log-probs the slow way: every sequence alone in its row, causal mask, float32, all logits."""
    out = np.zeros((len(pairs), 2))
    for i in pairs:
        prompt, _, *replies = store.row(i)
        for side, reply in enumerate(replies):
            ids = torch.from_numpy(np.concatenate([prompt, reply]))[None].to(model.device)
            logps = causal_logits(model, ids)[0].log_softmax(1)
            at = torch.arange(len(prompt) - 1, ids.shape[1] - 1, device=model.device)
            out[i, side] = logps[at, ids[0, at + 1]].double().sum().item()
    return out


def train(model: GPT, store: PairStore, reference: np.ndarray, batch: int, steps: int, micro_tokens: int, lr: float, device: Device) -> tuple[list[float], list[float]]:
    """(seconds, loss) of every step: the loop of train_dpo.py without its bookkeeping; pairs in order, lr falling to 0 as TRL's default does."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.999), weight_decay=0.0, fused=True)
    lengths, taken, losses = row_lengths(store, 2), [], []
    scaler = device.scaler()
    for step in range(steps):
        synchronize(device)
        started = time.perf_counter()
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        total = torch.zeros((), device=model.device)
        for rows in micro_batches(np.arange(step * batch, (step + 1) * batch), lengths, micro_tokens):
            b = make_batch(store, rows).to(model.device)
            with device.autocast():
                chosen, rejected = sequence_logps(model(*b.inputs()), b)
            ref = torch.from_numpy(reference[b.pairs]).to(model.device)
            loss = preference_loss(chosen, rejected, ref[:, 0], ref[:, 1])[0].sum() / batch
            scaler.scale(loss).backward()
            total += loss.detach()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total.item())
        synchronize(device)
        taken.append(time.perf_counter() - started)
    return taken, losses


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--source", required=True, help="a .jsonl.gz file of HH pairs, or a folder of them")
    a.add_argument("--batch", type=int, default=8, help="pairs per optimizer step")
    a.add_argument("--steps", type=int, default=6, help="the first is not timed")
    a.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    a.add_argument("--micro_tokens", type=int, default=8192)
    a.add_argument("--compile", action="store_true")
    a.add_argument("--weights", help="a Hugging Face GPT-2 folder instead of random weights")
    a.add_argument("--losses", help="write the loss of every step to this JSON file")
    a.add_argument("--their_losses", help="such a file by another system: how far apart are the two?")
    a.add_argument("--beside", help="a command that prints its own pairs/s, run before and after ours")
    a.add_argument("--to", help="name of the result in results/speed/")
    a = a.parse_args(argv)
    device = bench_device(a.dtype)
    others = [beside(a.beside)] if a.beside else []
    torch.manual_seed(0)
    model = (load_model(a.weights) if a.weights else GPT(GPT2_SMALL)).to(device.device)
    with stored(hh_rows(a.source, a.batch * a.steps)) as store:
        few = min(8, len(store))
        gap = np.abs(np.stack(score_pairs(model, store, np.arange(few), a.micro_tokens, lambda: torch.autocast("cpu", enabled=False)), 1)
                     - separate_logps(model, store, range(few))).max()
        if gap > 1e-4:
            raise SystemExit(f"shared rows differ from separate float32 forwards by {gap:.1e} nats: this is not the same work")
        if a.compile:
            model.compile()
        started = time.perf_counter()
        reference = np.stack(score_pairs(model, store, np.arange(len(store)), a.micro_tokens, device.autocast), axis=1)
        reference_seconds = time.perf_counter() - started
        taken, losses = train(model, store, reference, a.batch, a.steps, a.micro_tokens, 1e-5, device)
        sizes = [store.index[name][a.batch:].astype(int) for name in ("prompt", "chosen", "rejected")]
        pairs_attended = sum(attended(*row) for row in zip(*sizes))
    memory = peak_memory_gb(device.device)
    if a.beside:
        others.append(beside(a.beside))
    timed = taken[1:]
    tokens, scored = int(sum(map(sum, sizes))), int(sizes[1].sum() + sizes[2].sum())
    flops = training_flops(model, tokens, scored, pairs_attended)
    peak = measured_peak(device)
    result = machine(device) | {
        "what": "DPO step", "batch": a.batch, "timed_steps": len(timed), "micro_tokens": a.micro_tokens, "compiled": a.compile,
        "pairs_per_second": a.batch / statistics.median(timed), "seconds_per_step": [round(s, 4) for s in timed],
        "reference_pairs_per_second": a.batch * a.steps / reference_seconds, "useful_tokens_per_second": tokens / sum(timed), "scored_tokens_per_second": scored / sum(timed),
        "gflops": flops / sum(timed) / 1e9, "peak_gflops": peak / 1e9, "mfu": flops / sum(timed) / peak, "memory_gb": memory,
        "largest_difference_to_separate_rows": float(gap), "first_loss": losses[0], "beside": others, "beside_command": "the other system, before and after" if others else None}
    if a.losses:
        Path(a.losses).write_text(json.dumps(losses))
    if a.their_losses:
        theirs = json.loads(Path(a.their_losses).read_text())
        result["losses"], result["their_losses"] = losses, theirs
        result["largest_loss_difference"] = max(abs(x - y) for x, y in zip(losses, theirs, strict=True))
        print(f"losses of {len(losses)} steps: {losses[0]:.4f} to {losses[-1]:.4f}, at most {result['largest_loss_difference']:.1e} from the other system's")
    save(a.to or f"dpo_{str(device.dtype)[6:]}_{a.batch}", result)
    print(f"shared rows against separate float32 forwards: {gap:.1e} nats at most; first loss {losses[0]:.4f} (ln 2 = .6931)")
    print(f"{tokens / sum(timed):,.0f} useful tok/s, {flops / sum(timed) / 1e9:,.0f} GFLOP/s, {100 * flops / sum(timed) / peak:.0f} % of the {peak / 1e9:,.0f} measured here; "
          f"reference pass {a.batch * a.steps / reference_seconds:.2f} pairs per second")
    for other in others:
        print(f"beside: {other['per_second']:.3f} pairs per second, {other['peak_gb']:.2f} GB: ours is {a.batch / statistics.median(timed) / other['per_second']:.2f} x as fast "
              f"with {100 * memory / other['peak_gb']:.0f} % of the memory")
    print(f"{str(device.dtype)[6:]}, batch {a.batch}: step {spread(timed)} s   peak {memory:.2f} GB   {a.batch / statistics.median(timed):.3f} pairs/s")


if __name__ == "__main__":
    run_main(main)
