"""SFT steps of a GPT-2-small-shaped model: against rows padded to the block, and against nanoGPT's own step on packed text.

    python bench/bench_sft.py --source HH.jsonl.gz [--nanogpt FOLDER_WITH_ITS_MODEL_PY] [--batch 8] [--dtype float32]

Ours and the padded rows take turns, step by step, so that a machine that slows down slows both; nanoGPT runs in a process of its
own before and after. Losses and gradients are compared on the first step. Writes results/speed/sft_<dtype>.json.
"""
import argparse
import contextlib
import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from the repository root, not from bench/

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from batching import make_batch, micro_batches, row_lengths
from bench.common import GPT2_SMALL, attended, bench_device, hh_rows, machine, measured_peak, save, seconds, spread, step_of, stored, take_turns, training_flops
from data.store import PairStore
from losses import sft_loss
from model import GPT
from runtime.device import Device
from runtime.errors import run_main

BLOCK = 512


def our_gradients(model: GPT, store: PairStore, indices: np.ndarray, micro_tokens: int, device: Device, loss_on: str = "response") -> float:
    """Loss of one step, gradients added: the loop of train_sft.py."""
    batches = [make_batch(store, rows, branches=1, loss_on=loss_on) for rows in micro_batches(indices, row_lengths(store, 1), micro_tokens)]
    count, total = sum(len(b.targets) for b in batches), 0.0
    for batch in batches:
        batch = batch.to(model.device)
        with device.autocast():
            logps = model(*batch.inputs(), same_gradient=True)
        loss = sft_loss(logps, count)
        loss.backward()
        total += loss.item()
    return total


def padded_gradients(model: GPT, store: PairStore, indices: np.ndarray, device: Device) -> float:
    """The same loss from rows padded to the block, logits at every position, cross-entropy with ignored targets: the usual first version."""
    ids = torch.zeros(len(indices), BLOCK, dtype=torch.long)
    targets = torch.full_like(ids, -100)
    for row, i in enumerate(indices):
        prompt, _, chosen, _ = store.row(int(i))
        both = torch.from_numpy(np.concatenate([prompt, chosen]))
        ids[row, :len(both)] = both
        targets[row, len(prompt) - 1:len(both) - 1] = both[len(prompt):]
    ids, targets = ids.to(model.device), targets.to(model.device)
    mask = torch.ones(BLOCK, BLOCK, dtype=torch.bool, device=model.device).tril()
    with device.autocast():
        logits = F.linear(model.hidden(ids, torch.arange(BLOCK, device=model.device).expand_as(ids), mask), model.wte.weight).float()  # [B, T, V]
        loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1), ignore_index=-100)
    loss.backward()
    return loss.item()


def packed_text(source: str) -> Tensor:
    """[4, BLOCK + 1] ids of dialogues one after the other, without padding: what nanoGPT trains on."""
    ids = [token for row in hh_rows(source, 200) for part in row for token in part]
    return torch.tensor(ids[:4 * (BLOCK + 1)]).view(4, BLOCK + 1)


def nanogpt_steps(folder: str, source: str, repeats: int) -> dict[str, object]:
    """First loss, and seconds of steps of nanoGPT's own model.py from the weights our model starts from, in float32 and without any setting of ours."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(folder) / "model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module  # dataclasses look there
    with contextlib.redirect_stdout(sys.stderr):
        spec.loader.exec_module(module)
        theirs = module.GPT(module.GPTConfig(block_size=BLOCK, vocab_size=GPT2_SMALL.vocab_size, dropout=0.0, bias=True))
    torch.manual_seed(0)
    weights = GPT(GPT2_SMALL).state_dict()
    theirs.load_state_dict({f"transformer.{k}": v[:BLOCK] if k == "wpe.weight" else v for k, v in weights.items()} | {"lm_head.weight": weights["wte.weight"]})
    del weights
    device = Device(torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.float32, "")
    theirs.to(device.device)
    ids, losses = packed_text(source).to(device.device), []

    def their_gradients() -> None:
        loss = theirs(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())[1]
        loss.backward()
        losses.append(loss.item())
    return {"seconds": seconds(step_of(theirs, their_gradients), device, repeats), "loss": losses[0]}


def gradient_gap(model: GPT, one: Callable[[], float], other: Callable[[], float]) -> tuple[float, float]:
    """(difference of the losses, relative difference of the gradients) of two ways to do one step; gradients are cleared."""
    found = []
    for way in (one, other):
        loss = way()
        found.append((loss, torch.cat([p.grad.flatten() for p in model.parameters()])))
        model.zero_grad(set_to_none=True)
    (a, g), (b, h) = found
    return abs(a - b), ((g - h).norm() / h.norm()).item()


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--source", required=True, help="a .jsonl.gz file of HH pairs, or a folder of them")
    a.add_argument("--nanogpt", help="a folder with nanoGPT's model.py")
    a.add_argument("--batch", type=int, default=8)
    a.add_argument("--repeats", type=int, default=5)
    a.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    a.add_argument("--micro_tokens", type=int, default=8192)
    a.add_argument("--their_step", action="store_true", help=argparse.SUPPRESS)  # the process that measures nanoGPT
    a = a.parse_args(argv)
    if a.their_step:
        print(json.dumps(nanogpt_steps(a.nanogpt, a.source, a.repeats)))
        return
    device, exact = bench_device(a.dtype), bench_device("float32")
    torch.manual_seed(0)
    model = GPT(GPT2_SMALL).to(device.device)
    result, peak = {}, measured_peak(device)
    with stored(hh_rows(a.source, a.batch)) as store:
        rows = np.arange(a.batch)
        ours, padded = (lambda d=device: our_gradients(model, store, rows, a.micro_tokens, d)), (lambda d=device: padded_gradients(model, store, rows, d))
        loss_gap, gap = gradient_gap(model, lambda: ours(exact), lambda: padded(exact))
        if loss_gap > 1e-4 or gap > 1e-3:
            raise SystemExit(f"not the same work: losses differ by {loss_gap:.1e}, gradients by {gap:.1e}")
        taken = take_turns({"ours": step_of(model, ours), "padded to the block": step_of(model, padded)}, device, a.repeats)
        prompts, chosen = store.index["prompt"].astype(int), store.index["chosen"].astype(int)
        tokens, scored = int((prompts + chosen).sum()), int(chosen.sum())
        flops = training_flops(model, tokens, scored, sum(attended(p, c) for p, c in zip(prompts, chosen)))
    middle = {name: statistics.median(times) for name, times in taken.items()}
    result["hh"] = {"useful_tokens": tokens, "block": BLOCK, "seconds": taken, "useful_tokens_per_second": {n: tokens / s for n, s in middle.items()},
                    "ratio": middle["padded to the block"] / middle["ours"], "mfu": flops / middle["ours"] / peak, "loss_gap": loss_gap, "gradient_gap": gap}
    print(f"HH, {a.batch} rows, {tokens:,} useful tokens: ours {spread(taken['ours'])} s, padded to {BLOCK} {spread(taken['padded to the block'])} s; "
          f"{100 * flops / middle['ours'] / peak:.0f} % of the {peak / 1e9:.0f} GFLOP/s measured here; losses differ by {loss_gap:.0e}, gradients by {gap:.0e}")
    if a.nanogpt:
        child = [sys.executable, __file__, *argv, "--their_step"]
        theirs = [json.loads(subprocess.run(child, capture_output=True, text=True, check=True).stdout.splitlines()[-1])]
        ids = packed_text(a.source)
        with stored([(row[:1], row[1:], []) for row in ids.tolist()]) as packed:
            rows = np.arange(len(ids))
            systems = {"float32": step_of(model, lambda: our_gradients(model, packed, rows, a.micro_tokens, exact))}
            torch.manual_seed(0)
            fresh = GPT(GPT2_SMALL).to(device.device)
            loss = our_gradients(fresh, packed, rows, a.micro_tokens, exact)
            if device.dtype != torch.float32:
                systems[str(device.dtype)[6:]] = step_of(model, lambda: our_gradients(model, packed, rows, a.micro_tokens, device))
            taken = take_turns(systems, device, a.repeats)
        theirs.append(json.loads(subprocess.run(child, capture_output=True, text=True, check=True).stdout.splitlines()[-1]))
        if abs(loss - theirs[0]["loss"]) > 1e-3:
            raise SystemExit(f"not the same work: our loss {loss:.4f}, nanoGPT's {theirs[0]['loss']:.4f}")
        taken["nanoGPT, float32"] = theirs[0]["seconds"] + theirs[1]["seconds"]
        middle = {name: statistics.median(times) for name, times in taken.items()}
        result["packed text"] = {"rows": len(ids), "tokens_per_row": BLOCK, "loss_gap": abs(loss - theirs[0]["loss"]), "seconds": taken,
                                 "ratio": {name: middle["nanoGPT, float32"] / s for name, s in middle.items()}}
        print(f"packed text, {len(ids)} x {BLOCK}, losses differ by {abs(loss - theirs[0]['loss']):.0e}: " + "; ".join(
            f"{name} {spread(times)} s ({middle['nanoGPT, float32'] / middle[name]:.2f} x)" for name, times in taken.items()))
    save(f"sft_{str(device.dtype)[6:]}", machine(device) | {"what": "SFT step", "batch": a.batch, "peak_gflops": peak / 1e9} | result)
    print(f"{str(device.dtype)[6:]}, batch {a.batch}: {result['hh']['ratio']:.2f} x padded rows   {result['hh']['useful_tokens_per_second']['ours']:.0f} useful tok/s")


if __name__ == "__main__":
    run_main(main)
