"""Tokens per second of generation against Hugging Face `generate`: same weights, same prompts, same number format, in turns.

    python bench/bench_generate.py --source HH.jsonl.gz [--dtype float32] [--checkpoint out/hh_cpu/dpo/best]

First 16 prompts x 64 tokens with a GPT-2-small-shaped model, beside a loop that does the matrix products and nothing else. With
--checkpoint also 300 prompts with their own limits of 8 to 128 tokens, each system at its best batch size. Writes
results/speed/generate_<dtype>.json. Without transformers installed only our own figures appear.
"""
import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from the repository root, not from bench/

import numpy as np
import torch
from torch.nn import functional as F

from bench.common import GPT2_SMALL, bench_device, causal_logits, hh_rows, hh_texts, machine, save, seconds, spread, take_turns
from generate import generate
from model import GPT, load_model, save_model
from runtime.device import Device
from runtime.errors import run_main
from tokenizer import encode_prompt, load_tokenizer

PROMPTS, TOKENS, LONGEST_PROMPT = 16, 64, 128
MANY, LIMITS = 300, (8, 128)


def our_replies(model: GPT, prompts: Sequence[list[int]], limits: int | list[int], device: Device, eot_id: int = -1, batch_size: int = PROMPTS,
                temperature: float = 1.0) -> list[list[int]]:
    with device.autocast():
        return generate(model, prompts, max_new_tokens=limits, eot_id=eot_id, batch_size=batch_size, temperature=temperature)


def their_replies(theirs, prompts: Sequence[list[int]], limits: Sequence[int], eot_id: int | None, batch_size: int = PROMPTS, sort: bool = False,
                  sample: bool = True) -> list[list[int]]:
    """Hugging Face `generate` over batches, padded on the left; a batch runs as long as its longest limit, and is cut afterwards."""
    order = sorted(range(len(prompts)), key=lambda i: limits[i]) if sort else list(range(len(prompts)))
    replies: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        rows = order[start:start + batch_size]
        longest = max(len(prompts[i]) for i in rows)
        ids = torch.tensor([[0] * (longest - len(prompts[i])) + prompts[i] for i in rows], device=theirs.device)
        real = torch.tensor([[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in rows], device=theirs.device)
        out = theirs.generate(ids, attention_mask=real, max_new_tokens=max(limits[i] for i in rows), do_sample=sample, top_k=0, eos_token_id=eot_id, pad_token_id=0)
        for i, reply in zip(rows, out[:, longest:].tolist()):
            reply = reply[:limits[i]]
            replies[i] = reply[:reply.index(eot_id)] if eot_id in reply else reply
    return replies


def products_only(model: GPT, prompts: Sequence[list[int]], steps: int, device: Device) -> Callable[[], None]:
    """The matrix products of the same generation, made as the model makes them, and nothing else: no attention, norms, sampling or cache."""
    reading, row = (torch.randn(n, model.config.n_embd, device=model.device) for n in (sum(map(len, prompts)), len(prompts)))

    @torch.no_grad()
    def work() -> None:
        with device.autocast():
            for x in [reading] + [row] * (steps - 1):
                for block in model.h:
                    block.attn.c_attn(x), block.attn.c_proj(x), block.mlp.c_proj(block.mlp.c_fc(x))
                model.wte.weight @ row.T if device.device.type == "cpu" else F.linear(row, model.wte.weight)
    return work


@torch.no_grad()
def check_greedy(model: GPT, prompts: Sequence[list[int]], ours: list[list[int]], theirs: list[list[int]]) -> int:
    """Tokens until the two systems part, all prompts together. SystemExit if they part where the two best logits are 1e-4 apart or more."""
    equal = 0
    for prompt, a, b in zip(prompts, ours, theirs, strict=True):
        n = next((n for n, (x, y) in enumerate(zip(a, b)) if x != y), len(a))
        equal += n
        if n < len(a):
            ids = torch.tensor([prompt + a[:n]], device=model.device)
            best = causal_logits(model, ids)[0, -1].topk(2).values
            if best[0] - best[1] >= 1e-4:
                raise SystemExit(f"greedy replies differ after {n} tokens although the best logits are {best[0] - best[1]:.1e} apart")
    return equal


def to_hugging_face(model: GPT, folder: str, device: Device):
    """The same weights as a transformers model in the device's format, or None without transformers."""
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        return None
    save_model(model, Path(folder), eot_id=0)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=device.dtype).to(device.device).eval()


def few(model: GPT, theirs, prompts: list[list[int]], device: Device, repeats: int) -> dict[str, object]:
    """16 prompts x 64 tokens, no early end."""
    systems = {"ours": lambda: our_replies(model, prompts, TOKENS, device), "products only": products_only(model, prompts, TOKENS, device)}
    result: dict[str, object] = {"prompts": PROMPTS, "tokens": TOKENS, "prompt_tokens": sum(map(len, prompts))}
    if theirs:
        systems["hugging face"] = lambda: their_replies(theirs, prompts, [TOKENS] * PROMPTS, None)
        if device.dtype == torch.float32:
            result["greedy_tokens_equal"] = check_greedy(model, prompts, our_replies(model, prompts, TOKENS, device, temperature=0.0),
                                                         their_replies(theirs, prompts, [TOKENS] * PROMPTS, None, sample=False))
            print(f"greedy: {result['greedy_tokens_equal']} of {PROMPTS * TOKENS} tokens equal, the others behind a tie")
    taken = take_turns(systems, device, repeats)
    middle = {name: statistics.median(s) for name, s in taken.items()}
    result |= {"seconds": taken, "tokens_per_second": {name: PROMPTS * TOKENS / s for name, s in middle.items()}, "share_of_products_only": middle["products only"] / middle["ours"]}
    if theirs:
        result["ratio"] = middle["hugging face"] / middle["ours"]
    print("; ".join(f"{name} {PROMPTS * TOKENS / middle[name]:.0f} tok/s, {spread(s)} s" for name, s in taken.items())
          + f"; {100 * result['share_of_products_only']:.0f} % of products only")
    return result


def many(folder: str, source: str, device: Device, repeats: int) -> dict[str, object]:
    """300 prompts of real dialogues on a trained checkpoint, limits of 8 to 128 tokens, ends where the model ends."""
    model, tok = load_model(folder).to(device.device).eval(), load_tokenizer(folder)
    room = model.config.block_size - LIMITS[1]
    prompts = list(islice((ids for ids in (encode_prompt(tok, prompt)[0] for prompt, *_ in hh_texts(source)) if len(ids) <= room), MANY))
    limits = np.random.default_rng(0).integers(LIMITS[0], LIMITS[1] + 1, len(prompts)).tolist()
    systems = {f"ours, {b} rows": lambda b=b: our_replies(model, prompts, limits, device, tok.eot_id, b) for b in (64, 128, MANY)}
    with TemporaryDirectory() as tmp:
        theirs = to_hugging_face(model, tmp, device)
        if theirs:
            systems |= {f"hugging face, {b} rows{', sorted by limit' if sort else ''}": lambda b=b, sort=sort: their_replies(theirs, prompts, limits, tok.eot_id, b, sort)
                        for b in (32, 64, 128) for sort in (False, True)}
        tokens: dict[str, int] = {}

        def counted(name: str) -> Callable[[], None]:
            def work() -> None:
                tokens[name] = sum(map(len, systems[name]()))
            return work
        speed = {name: 1 / seconds(counted(name), device, 1, warm_up=0)[0] * tokens[name] for name in systems}  # one call each, to choose
        best = {who: max((name for name in speed if name.startswith(who)), key=speed.get) for who in ("ours", "hugging face") if who == "ours" or theirs}
        taken = take_turns({name: counted(name) for name in best.values()}, device, repeats)
    result = {"checkpoint_parameters": model.n_params(), "prompts": len(prompts), "limits": LIMITS, "tokens_per_second_of_all_tried": speed,
              "tokens": {name: tokens[name] for name in taken}, "seconds": taken, "tokens_per_second": {name: tokens[name] / statistics.median(s) for name, s in taken.items()}}
    if theirs:
        result["ratio"] = result["tokens_per_second"][best["ours"]] / result["tokens_per_second"][best["hugging face"]]
    print("; ".join(f"{name}: {result['tokens_per_second'][name]:.0f} tok/s, {spread(s)} s" for name, s in taken.items()))
    return result


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--source", required=True, help="a .jsonl.gz file of HH pairs, or a folder of them")
    a.add_argument("--checkpoint", help="a trained model of ours")
    a.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    a.add_argument("--repeats", type=int, default=3)
    a = a.parse_args(argv)
    device = bench_device(a.dtype)
    torch.manual_seed(0)
    model = GPT(GPT2_SMALL).to(device.device).eval()
    prompts = [row[0] for row in hh_rows(a.source, 4 * PROMPTS) if len(row[0]) <= LONGEST_PROMPT][:PROMPTS]
    with TemporaryDirectory() as tmp:
        theirs = to_hugging_face(model, tmp, device)
        result = machine(device) | {"what": "generation"} | few(model, theirs, prompts, device, a.repeats)
    line = f"{str(device.dtype)[6:]}: {result['tokens_per_second']['ours']:.0f} tok/s" + (f", {result['ratio']:.2f} x Hugging Face" if theirs else "")
    del theirs
    if a.checkpoint:
        result["trained"] = many(a.checkpoint, a.source, device, a.repeats)
        line += f"; {result['trained']['prompts']} prompts" + (f", {result['trained']['ratio']:.2f} x" if "ratio" in result["trained"] else "")
    save(f"generate_{str(device.dtype)[6:]}", result)
    print(line)


if __name__ == "__main__":
    run_main(main)
