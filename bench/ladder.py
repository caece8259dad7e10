"""Every idea that makes a DPO step fast, turned on one after the other: speed, memory, and that the result stays the same.

    python bench/ladder.py --source HH.jsonl.gz [--batch 8] [--steps 4]

Each rung keeps what the ones before it brought. First all rungs compute loss and gradients of the same few pairs in float32 and
must agree with the first; then each is timed in a process of its own, whose peak memory is its own. Writes results/speed/ladder.json.
"""
import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from the repository root, not from bench/

import numpy as np
import torch
from torch import Tensor

from batching import Batch, make_batch, micro_batches, row_lengths, sequence_logps
from bench.common import GPT2_SMALL, bench_device, hh_rows, machine, save, seconds, step_of, stored
from data.store import PairStore
from objectives import preference_loss
from model import GPT, tree_mask
from runtime.device import Device, peak_memory_gb
from runtime.errors import run_main

CHECKED = 3  # pairs whose loss and gradients are compared


# ---- four ways to score a step: each yields (chosen [P], rejected [P], store indices) per micro-batch --------------------

def alone(store: PairStore, indices: np.ndarray) -> Batch:
    """Every sequence in a row of its own, as long as the longest: prompts stand there twice."""
    sides = [(prompt, reply) for i in indices for prompt, _, *replies in [store.row(int(i))] for reply in replies]
    T = max(len(prompt) + len(reply) for prompt, reply in sides)
    ids, segments = np.zeros((len(sides), T), dtype=np.int64), np.full((len(sides), T), -1)
    at, targets, owner = [], [], []
    for row, (prompt, reply) in enumerate(sides):
        both = np.concatenate([prompt, reply])
        ids[row, :len(both)], segments[row, :len(both)] = both, 0
        at.append(row * T + len(prompt) - 1 + np.arange(len(reply)))
        targets.append(reply)
        owner.append(np.full(len(reply), row))
    flat = [torch.from_numpy(np.concatenate(parts).astype(np.int64)) for parts in (at, targets, owner)]
    positions = torch.arange(T).expand(len(sides), T)
    return Batch(torch.from_numpy(ids), positions, torch.from_numpy(segments), *flat, torch.zeros(0, dtype=torch.long), [int(i) for i in indices])


def full_logits(model: GPT, batch: Batch) -> Tensor:
    logits = model.logits(model.hidden(batch.ids, batch.positions, tree_mask(batch.segments)))
    return logits.log_softmax(-1).flatten(0, 1)[batch.predict_at, batch.targets]


def response_logits(model: GPT, batch: Batch) -> Tensor:
    x = model.hidden(batch.ids, batch.positions, tree_mask(batch.segments)).flatten(0, 1)[batch.predict_at]
    return model.logits(x).log_softmax(-1)[torch.arange(len(x), device=x.device), batch.targets]


def our_head(model: GPT, batch: Batch) -> Tensor:
    return model(*batch.inputs())


def rows_alone(store: PairStore, indices: np.ndarray, micro_tokens: int) -> list[Batch]:
    return [alone(store, indices)]


def shared_prompts(store: PairStore, indices: np.ndarray, micro_tokens: int) -> list[Batch]:
    return [make_batch(store, [[int(i)] for i in indices])]


def packed(store: PairStore, indices: np.ndarray, micro_tokens: int) -> list[Batch]:
    return [make_batch(store, rows) for rows in micro_batches(indices, row_lengths(store, 2), micro_tokens)]


@dataclass(frozen=True)
class Rung:
    name: str
    lay_out: Callable[[PairStore, np.ndarray, int], list[Batch]]
    score: Callable[[GPT, Batch], Tensor]
    cached: bool = True   # the reference's log-probs computed once, before training
    low: bool = False     # the machine's short format instead of float32
    kept: bool = False    # freed memory stays with the process (runtime.device.keep_freed_memory)


LADDER = [
    Rung("padded rows, all logits, reference in every step, float32", rows_alone, full_logits, cached=False),
    Rung("+ reference computed once", rows_alone, full_logits),
    Rung("+ logits of response tokens only", rows_alone, response_logits),
    Rung("+ prompt shared by both replies", shared_prompts, response_logits),
    Rung("+ sorted, cut and packed rows", packed, response_logits),
    Rung("+ short number format", packed, response_logits, low=True),
    Rung("+ head in chunks, its gradient by hand and in the short format", packed, our_head, low=True),
    Rung("+ freed memory kept (CPU)", packed, our_head, low=True, kept=True),
]


# ---- one step -------------------------------------------------------------------------------------------------------

def gradients(rung: Rung, model: GPT, store: PairStore, indices: np.ndarray, reference: np.ndarray | GPT, micro_tokens: int, device: Device) -> float:
    """DPO loss of the pairs `indices`, gradients added to the model's. reference: cached log-probs [n, 2], or the model itself."""
    total = 0.0
    for batch in rung.lay_out(store, indices, micro_tokens):
        batch = batch.to(device.device)
        with device.autocast():
            chosen, rejected = sequence_logps(rung.score(model, batch), batch)
        if isinstance(reference, GPT):
            with torch.no_grad():
                ref_chosen, ref_rejected = sequence_logps(rung.score(reference, batch), batch)
        else:
            ref_chosen, ref_rejected = torch.from_numpy(reference[batch.pairs]).to(device.device).T
        loss = preference_loss(chosen, rejected, ref_chosen, ref_rejected)[0].sum() / len(indices)
        loss.backward()
        total += loss.item()
    return total


def check(store: PairStore, micro_tokens: int, kind: str) -> list[dict[str, float]]:
    """Loss and gradient of every rung against the first, on a few pairs: all in float32, those in the short format in it as well (it is their gap that is returned)."""
    exact, short = bench_device("float32"), bench_device()
    torch.manual_seed(0)
    model = GPT(GPT2_SMALL).to(kind)
    rows, found, first = np.arange(min(CHECKED, len(store))), [], None
    reference = np.zeros((len(store), 2), dtype=np.float32) - 100.0  # not the policy's own: the loss must not be ln 2 for everyone
    for rung in LADDER:
        for device, allowed in ((exact, 1e-4), (short, 0.05))[:2 if rung.low else 1]:
            loss = gradients(rung, model, store, rows, reference, micro_tokens, device)
            g = torch.cat([p.grad.flatten() for p in model.parameters()])
            model.zero_grad(set_to_none=True)
            first = first or (loss, g)
            gap = {"loss_gap": abs(loss - first[0]), "gradient_gap": ((g - first[1]).norm() / first[1].norm()).item()}
            if max(gap.values()) > allowed:
                raise SystemExit(f"'{rung.name}' changes the result: {gap}")
        found.append(gap)
    return found


def measure(number: int, store: PairStore, batch: int, steps: int, micro_tokens: int) -> dict[str, object]:
    """Seconds per step and peak memory of one rung in this process."""
    rung = LADDER[number]
    device = bench_device("auto" if rung.low else "float32", rung.kept)
    torch.manual_seed(0)
    model = GPT(GPT2_SMALL).to(device.device)
    reference: np.ndarray | GPT = np.zeros((len(store), 2), dtype=np.float32) - 100.0
    if not rung.cached:
        reference = GPT(GPT2_SMALL).to(device.device).requires_grad_(False)
    parts = iter(np.arange((steps + 1) * batch).reshape(-1, batch))
    taken = seconds(step_of(model, lambda: gradients(rung, model, store, next(parts), reference, micro_tokens, device)), device, steps)
    return {"seconds_per_step": taken, "pairs_per_second": batch / statistics.median(taken), "memory_gb": peak_memory_gb(device.device)}


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--source", required=True, help="a .jsonl.gz file of HH pairs, or a folder of them")
    a.add_argument("--batch", type=int, default=8)
    a.add_argument("--steps", type=int, default=4)
    a.add_argument("--micro_tokens", type=int, default=8192)
    a.add_argument("--rung", type=int, help=argparse.SUPPRESS)  # the process that measures one rung
    a = a.parse_args(argv)
    with stored(hh_rows(a.source, a.batch * (a.steps + 1))) as store:
        if a.rung is not None:
            print(json.dumps(measure(a.rung, store, a.batch, a.steps, a.micro_tokens)))
            return
        device = bench_device()
        gaps = check(store, a.micro_tokens, device.device.type)
    table = []
    for number, (rung, gap) in enumerate(zip(LADDER, gaps, strict=True)):
        done = subprocess.run([sys.executable, __file__, *argv, f"--rung={number}"], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"'{rung.name}' failed: {done.stderr.strip()[-500:]}")
        row = {"rung": rung.name, **json.loads(done.stdout.splitlines()[-1]), **gap}
        table.append(row)
        if number == 0:
            print(f"{'':62} pairs/s      x       GB   loss differs by, gradient by")
        print(f"{rung.name:62} {row['pairs_per_second']:7.3f} {row['pairs_per_second'] / table[0]['pairs_per_second']:6.2f} {row['memory_gb']:8.2f}"
              f"   {gap['loss_gap']:.0e}, {gap['gradient_gap']:.0e}", flush=True)
    save("ladder", machine(device) | {"what": "DPO ladder", "batch": a.batch, "steps": a.steps, "rungs": table})


if __name__ == "__main__":
    run_main(main)
