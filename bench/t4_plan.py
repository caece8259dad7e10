"""Will `hh_small` (or another HH config) train on a free T4? Hours and gigabytes by counting: FLOPs of all stages, bytes of weights, optimizer and activations.

    python bench/t4_plan.py [hh_30m] --source FOLDER_WITH_HH_FILES [--tflops 8.4] [--float32_tflops 2.8]

Tokens are counted on the given pairs and scaled to the 160,800 of HH. Padding is counted as the plan of the real batches makes it, attention with
its masked half; validation (ten times 256 rows) is not. Activations are counted by listening to what autograd keeps of one micro-batch on a CPU, in bf16, whose size is fp16's. What remains an
assumption is the two speeds: 35 % of what a T4 sustains in fp16 (24 TFLOP/s) and of its 8.1 in float32, in which the head's forward
pass runs. A base stage is counted with full rows of the block, all tokens scored. Writes results/speed/t4_plan.json (of other configs t4_plan_<name>.json).
"""
import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from the repository root, not from bench/

import torch

from batching import make_batch, micro_batches, row_lengths, shuffled_steps
from bench.common import save
from data.prepare_hh import prepare
from data.store import PairStore
from model import GPT, GPTConfig
from runtime.config import load_config
from runtime.errors import run_main

HH_ROWS = 160_800
PLANNED = 40  # steps whose padding is looked at


def count(store: PairStore, branches: int, loss_on: str) -> dict[str, float]:
    """Tokens and scored tokens of one epoch over the store."""
    tokens = scored = 0
    for i in range(len(store)):
        prompt, roles, *replies = store.row(i)
        replies = [len(reply) for reply in replies[:branches]]
        tokens += len(prompt) + sum(replies)
        scored += sum(replies) + (int((roles[1:] == 1).sum()) if loss_on == "assistant" else 0)
    return {"tokens": tokens, "scored": scored}


def fill(store: PairStore, branches: int, batch: int, micro_tokens: int) -> tuple[float, float]:
    """(share of the computed positions that are not padding, mean row length that a computed position attends to, masked or not)."""
    lengths, computed, useful, squares = row_lengths(store, branches), 0, 0, 0
    for indices in shuffled_steps(len(store), batch, [0], min(PLANNED, len(store) // batch)):
        useful += int(lengths[indices].sum())
        for rows in micro_batches(indices, lengths, micro_tokens):
            T = max(int(lengths[row].sum()) for row in rows)
            computed, squares = computed + len(rows) * T, squares + len(rows) * T * T
    return useful / computed, squares / computed


def activation_bytes(model: GPT, store: PairStore, branches: int, micro_tokens: int, same_gradient: bool) -> int:
    """Bytes that autograd keeps of the largest micro-batch of one step, parameters and their fp16 copies not counted."""
    lengths = row_lengths(store, branches)
    rows = max(micro_batches(shuffled_steps(len(store), 64, [0], 1)[0], lengths, micro_tokens), key=lambda rows: sum(int(lengths[row].sum()) for row in rows))
    ours = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    weights = {p.numel() for p in model.parameters()}

    def listen(t: torch.Tensor) -> torch.Tensor:
        if t.untyped_storage().data_ptr() not in ours and not (t.dim() == 2 and t.numel() in weights):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t
    with torch.autograd.graph.saved_tensors_hooks(listen, lambda t: t), torch.autocast("cpu", dtype=torch.bfloat16):
        logps = model(*make_batch(store, rows, branches).inputs(), same_gradient=same_gradient)
    del logps
    return sum(kept.values())


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("config", nargs="?", default="hh_small")
    a.add_argument("--source", required=True, help="HH files: a folder of .jsonl.gz")
    a.add_argument("--tflops", type=float, default=8.4)
    a.add_argument("--float32_tflops", type=float, default=2.8)
    a = a.parse_args(argv)
    with TemporaryDirectory() as tmp:
        config = load_config([a.config, f"--data.source={a.source}", f"--out={tmp}"])
        store = PairStore(prepare(config) / "train")
        m = config.model
        model = GPT(GPTConfig(50257, m.block_size, m.n_layer, m.n_head, m.n_embd))
        times = HH_ROWS / len(store)
        sft, dpo = count(store, 1, config.sft.loss_on), count(store, 2, "response")
        fills = {"sft": fill(store, 1, config.sft.batch, config.sft.micro_tokens), "dpo": fill(store, 2, config.dpo.batch, config.dpo.micro_tokens)}
        activations = max(activation_bytes(model, store, 1, config.sft.micro_tokens, False), activation_bytes(model, store, 2, config.dpo.micro_tokens, False))
        tokens_at_once = config.dpo.micro_tokens
    c = model.config
    body = model.n_params(embeddings=False)

    def forward(work: dict[str, float], full: float, row: float) -> tuple[float, float]:
        """(fp16 FLOPs of the blocks, float32 FLOPs of the head) of one forward pass, padding and masked attention included."""
        return work["tokens"] / full * (2 * body + 4 * c.n_embd * c.n_layer * row), 2 * c.vocab_size * c.n_embd * work["scored"]

    def scaled(work: dict[str, float], by: float) -> dict[str, float]:
        return {name: by * n for name, n in work.items()}
    sft, dpo = scaled(sft, times * config.sft.epochs), scaled(dpo, times * min(1.0, (config.dpo.max_pairs or HH_ROWS) / HH_ROWS))
    stages = [("SFT", sft, fills["sft"], 3, 3), ("DPO, reference pass", dpo, fills["dpo"], 1, 0), ("DPO, policy", scaled(dpo, config.dpo.epochs), fills["dpo"], 3, 3)]
    if config.base.enabled:
        text = config.base.max_steps * config.base.batch * c.block_size
        stages.insert(0, ("base", {"tokens": text, "scored": text}, (1.0, c.block_size), 3, 3))
    rows = []
    for name, work, full, passes, head_low in stages:  # in fp16 the head makes its logits again
        blocks, head = forward(work, *full)
        low, exact = passes * blocks + head_low * head, head
        seconds = low / a.tflops / 1e12 + exact / a.float32_tflops / 1e12
        rows.append({"stage": name, "tokens_millions": work["tokens"] / 1e6, "fp16_pflops": low / 1e15, "float32_pflops": exact / 1e15, "minutes": seconds / 60})
        print(f"{name:20} {rows[-1]['tokens_millions']:6.1f}M tokens, {low / 1e15:5.1f} PFLOP in fp16 + {exact / 1e15:4.2f} in float32: {seconds / 60:5.0f} min")
    weights = 4 * model.n_params()
    memory = {"weights, gradients, two moments, float32": 4 * weights, "fp16 copies of the weights": weights / 2,
              f"activations of {tokens_at_once:,} tokens": activations, "head: one chunk of logits, its gradient, dW twice": 2**25 * 6 + 2 * 4 * c.vocab_size * c.n_embd,
              "CUDA context and workspaces (assumed)": 1e9}
    for what, size in memory.items():
        print(f"{what:50} {size / 1e9:5.2f} GB")
    hours, total = sum(row["minutes"] for row in rows) / 60, sum(memory.values()) / 1e9
    save("t4_plan" if a.config == "hh_small" else f"t4_plan_{a.config}", {"what": f"{a.config} on a T4, counted", "assumed_fp16_tflops": a.tflops, "assumed_float32_tflops": a.float32_tflops, "pairs_counted": len(store), "scaled_to": HH_ROWS,
                     "useful_share_of_positions": {name: share for name, (share, _) in fills.items()}, "stages": rows, "hours": hours, "bytes": memory, "memory_gb": total})
    print(f"{hours:.2f} hours, {total:.1f} GB; of the computed positions {100 * fills['sft'][0]:.0f} % (SFT) and {100 * fills['dpo'][0]:.0f} % (DPO) are not padding")


if __name__ == "__main__":
    run_main(main)
