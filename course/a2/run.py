"""The run of assignment 2: the toy model trained by DPO, and made to write, through the student's mask, positions, attention, cache and sampling."""
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from unittest.mock import patch

import batching
import generate as generation
import model as gpt
import numpy as np
import torch
import train_dpo
from batching import Batch, Rows, make_batch, sequence_logps
from course.train import Base, Outcome
from data.store import PairStore, find_data
from generate import generate, next_logits
from model import GPT, load_model
from runtime.config import load_config
from runtime.run import read_metrics
from torch import Tensor

SETTINGS = {"dpo__max_steps": 40, "dpo__eval_every": 10, "dpo__eval_rows": 256, "dpo__watch_prompts": 0}
COMPARED = 64  # pairs, and prompts that are answered
LONG = 100     # tokens of the reply that is timed


@contextmanager
def in_the_pipeline(student: ModuleType) -> Iterator[None]:
    """The student's functions in the place of the project's: in training, in scoring, and in generation."""
    store = generation.Cache.attend

    def forward(self: gpt.Attention, x: Tensor, mask: Tensor, cache: generation.Cache | None, layer: int) -> Tensor:
        q, k, v = (student.split_heads(part, self.n_head) for part in self.c_attn(x).split(x.shape[2], dim=2))
        y = student.attention(q, k, v, mask) if cache is None else cache.attend(layer, q, k, v, mask)
        return self.c_proj(student.merge_heads(y))  # no dropout: it is off in DPO

    def attend(self: generation.Cache, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        if self.reading:
            store(self, layer, q, k, v, mask)
            return student.attention(q, k, v, mask)
        B, longest = len(q), mask.shape[-1]
        keys, values = self.k[layer, :B, ..., :longest].transpose(2, 3), self.v[layer, :B, :, :longest]
        y, *new = student.cached_attention(q, k, v, keys, values, self.lengths[:B])
        keys.copy_(new[0]), values.copy_(new[1])
        return y

    def lay_out(pairs: PairStore, rows: Rows, branches: int = 2, loss_on: str = "response", separate: bool = False) -> Batch:
        batch = make_batch(pairs, rows, branches, loss_on, separate)
        for b, row in enumerate([] if separate else rows):
            parts = [student.branch_positions(*(int(pairs.index[i][part]) for part in ("prompt", "chosen", "rejected"))) for i in row]
            batch.positions[b, :sum(map(len, parts))] = torch.cat(parts)
        return batch

    def pick(logits: Tensor, temperature: float, top_k: int, top_p: float, u: Tensor) -> Tensor:
        if temperature and top_p < 1:
            return student.next_token(student.keep_nucleus(logits / temperature, top_p), 1.0, u)
        return student.next_token(logits, temperature, u)

    with patch.object(gpt, "tree_mask", student.tree_mask), patch.object(gpt.Attention, "forward", forward), patch.object(generation.Cache, "attend", attend), \
            patch.object(batching, "make_batch", lay_out), patch.object(generation, "pick", pick):
        yield


@torch.no_grad()
def reply_logps(model: GPT, val: PairStore, separate: bool) -> Tensor:
    """log p of both replies of the first pairs [2, COMPARED], nats; separate: each reply in a row of its own."""
    batch = batching.make_batch(val, [[i] for i in range(COMPARED)], separate=separate)
    return torch.stack(sequence_logps(model(*batch.inputs()), batch))


@torch.no_grad()
def without_cache(model: GPT, prompt: list[int], tokens: int) -> list[int]:
    """A greedy reply, the whole text computed anew for each of its tokens."""
    ids = list(prompt)
    for _ in range(tokens):
        T = len(ids)
        x = model.hidden(torch.tensor([ids]), torch.arange(T)[None], torch.ones(T, T, dtype=torch.bool).tril())
        ids.append(int(generation.pick(next_logits(model, x[:, -1]), 0.0, 0, 1.0, torch.zeros(1, dtype=torch.float64))))
    return ids[len(prompt):]


def seconds(work: Callable[[], object], times: int = 3) -> float:
    """The quickest of a few calls: what the machine does beside it only ever adds."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return min(took)


def run(student: ModuleType, base: Base) -> Outcome:
    """40 steps of DPO; then log-probs, replies and times of what it gave. Loss and margin are of 256 validation pairs."""
    argv = base.argv("dpo", **SETTINGS, **base.from_sft())
    with in_the_pipeline(student):
        train_dpo.main(argv)
    folder, config = base.out / base.name / "dpo" / "dpo", load_config(argv)
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row["split"] == "val"]
    model, val = load_model(folder / "last").eval(), PairStore(find_data(config) / "val")
    prompts = [val.row(int(i))[0].tolist() for i in np.random.default_rng(0).permutation(len(val))[:COMPARED]]
    eot = int(val.row(0)[2][-1])  # a reply ends in end-of-text
    greedy, sampled = ({"max_new_tokens": 48, "eot_id": eot, **how} for how in ({"temperature": 0.0}, {"temperature": 0.7, "top_p": 0.9, "seed": base.seed}))
    theirs = [generate(model, prompts, **greedy), generate(model, prompts, **sampled)]
    separate = reply_logps(model, val, separate=True)
    with in_the_pipeline(student):
        shared = reply_logps(model, val, separate=False)
        equal = [float(np.mean([a == b for a, b in zip(generate(model, prompts, **how), right)])) for how, right in zip((greedy, sampled), theirs)]
        cached = seconds(lambda: generate(model, prompts[:1], max_new_tokens=LONG, eot_id=-1, temperature=0.0))
        whole = seconds(lambda: without_cache(model, prompts[0], LONG))
    return Outcome({
        "loss at step 0, nats": rows[0]["loss"], "largest difference to separate rows, nats": (shared - separate).abs().max().item(),
        "greedy replies equal to the project's, share": equal[0], "sampled replies equal to the project's, share": equal[1],
        "validation loss after 40 steps, nats": rows[-1]["loss"], "100 tokens without the cache, seconds (noisy)": whole,
        "100 tokens with the cache, seconds (noisy)": cached,
    }, {f"validation {name}": [(row["step"], row[key]) for row in rows] for name, key in (("loss, nats", "loss"), ("margin, rewards", "rewards/margin"))})
