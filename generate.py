"""Replies from a GPT: a key-value cache, rows that leave when they are finished, and sampling that repeats itself.

A token's keys and values never change, so they are kept, and each new token costs one position instead of the whole text. What
is left is reading all weights once per step, however many rows share it: speed is keeping the batch full of unfinished rows.
"""
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from model import GPT, GPTConfig

READ_AT_ONCE = 1024  # tokens of prompts in one forward pass, padding included


class Cache:
    """Keys [layers, rows, H, D, max_len] and values [layers, rows, H, max_len, D] of the rows in work; row r has `lengths[r]` positions.

    A forward pass through `GPT.hidden` either reads whole prompts into new rows (`read_prompts`), or one token per row (`step`).
    """

    def __init__(self, config: GPTConfig, rows: int, max_len: int, device: torch.device, dtype: torch.dtype):
        L, H, D = config.n_layer, config.n_head, config.n_embd // config.n_head
        self.k = torch.zeros(L, rows, H, D, max_len, device=device, dtype=dtype)  # lies as the product with a query reads it
        self.v = torch.zeros(L, rows, H, max_len, D, device=device, dtype=dtype)  # not empty: 0 x NaN is NaN where a mask hides it
        self.lengths = torch.zeros(rows, device=device, dtype=torch.long)
        self.rows = 0  # in work: 0 .. rows - 1
        self.reading = False

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Store k, v [B, H, t, D] of one layer; return what the queries q [B, H, t, D] find, [B, H, t, D]."""
        B, _, t, D = k.shape
        if self.reading:  # a prompt attends to itself alone
            self.k[layer, self.rows:self.rows + B, :, :, :t] = k.transpose(2, 3)
            self.v[layer, self.rows:self.rows + B, :, :t] = v
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        rows, at, longest = torch.arange(B, device=k.device), self.lengths[:B], mask.shape[-1]
        self.k[layer][rows, :, :, at] = k[:, :, 0].to(self.k.dtype)
        self.v[layer][rows, :, at] = v[:, :, 0].to(self.v.dtype)
        k, v = self.k[layer, :B, :, :, :longest], self.v[layer, :B, :, :longest]
        if q.device.type != "cpu":
            return F.scaled_dot_product_attention(q.to(v.dtype), k.transpose(2, 3), v, attn_mask=mask)
        # for one query per row a CPU is faster with two plain products: as fast in float32, three times in bf16 (whose scores they round once more)
        scores = (q @ k).to(torch.promote_types(q.dtype, torch.float32)) * D**-0.5
        return scores.masked_fill(~mask, -torch.inf).softmax(-1).to(v.dtype) @ v

    def read_prompts(self, model: GPT, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Append a row for each prompt; returns final states [rows, C] at their ends. Longest first, equal ones side by side: those are read once."""
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        states, start = [], 0
        while start < len(distinct):  # a piece at a time: prompts of like length, little padding
            count = max(1, READ_AT_ONCE // len(distinct[start]))
            piece = distinct[start:start + count]
            states.append(self._read(model, piece, [piece.index(p) for p in map(tuple, prompts) if p in piece]))
            start += count
        return torch.cat(states)

    def _read(self, model: GPT, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> Tensor:
        """One forward pass over `prompts`, then one row for each entry of `copies`, the place of its prompt among them."""
        lengths = torch.tensor([len(p) for p in prompts])
        T = int(lengths.max())
        # padded on the right: what stands behind a prompt is never looked at, and is overwritten as the reply grows
        ids = torch.tensor([[*p, *[0] * (T - len(p))] for p in prompts]).to(model.device)
        causal = torch.ones(T, T, dtype=torch.bool, device=model.device).tril()
        ends = torch.arange(len(prompts)) * T + lengths - 1
        self.reading = True
        x = model.hidden(ids, torch.arange(T, device=model.device).expand(len(prompts), T), causal, self, keep=ends.to(model.device))
        self.reading = False
        copies = torch.tensor(copies, device=model.device)
        new = slice(self.rows, self.rows + len(copies))
        if len(copies) > len(prompts):
            self.k[:, new, ..., :T] = self.k[:, self.rows + copies, ..., :T]
            self.v[:, new, :, :T] = self.v[:, self.rows + copies, :, :T]
        self.lengths[new] = lengths.to(model.device)[copies]
        self.rows += len(copies)
        return x[copies]

    def step(self, model: GPT, tokens: Tensor) -> Tensor:
        """Append one token [rows] to every row; returns final states [rows, C]."""
        at = self.lengths[:self.rows]
        visible = torch.arange(int(at.max()) + 1, device=at.device) <= at[:, None]
        x = model.hidden(tokens[:, None], at[:, None], visible[:, None, None], self)[:, 0]
        self.lengths[:self.rows] += 1
        return x

    def drop(self, row: int) -> int:
        """Forget a row: the last one takes its place. Returns that row's old number."""
        self.rows -= 1
        if row < self.rows:
            end = int(self.lengths[self.rows])
            self.k[:, row, ..., :end] = self.k[:, self.rows, ..., :end]
            self.v[:, row, :, :end] = self.v[:, self.rows, :, :end]
            self.lengths[row] = self.lengths[self.rows]
        return self.rows


def generate(model: GPT, prompts: Sequence[Sequence[int]], *, max_new_tokens: int | Sequence[int], eot_id: int, temperature: float = 1.0, top_k: int = 0,
             top_p: float = 1.0, seed: int = 0, sample_index: int | Sequence[int] = 0, stop: bytes = b"",
             token_bytes: Sequence[bytes] | None = None, batch_size: int = 64, show: str = "") -> list[list[int]]:
    """Replies to prompts (lists of ids, start token included): new ids up to, not including, end-of-text.

    max_new_tokens: one limit, or one for each prompt. temperature 0 is greedy. A reply also ends where the text `stop` appears
    (needs token_bytes, the bytes of each id) and where the model's positions run out. At most `batch_size` rows are in work; when a quarter of them is finished, the next prompts
    take their places. Each random draw depends on (seed, prompt ids, sample_index, position) alone, so in float32 a reply does
    not depend on which prompts share its batch. For k samples of a prompt give it k times, with as many values of sample_index.
    `show` names a progress bar.
    Raises ValueError for a prompt that fills the block.
    """
    replies: list[list[int]] = [[] for _ in prompts]
    with tqdm(total=len(prompts), desc=show, leave=False, disable=not show) as bar:
        for i, token in stream(model, prompts, max_new_tokens=max_new_tokens, eot_id=eot_id, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
                               sample_index=sample_index, stop=stop, token_bytes=token_bytes, batch_size=batch_size):
            if token is None:
                bar.update()
            else:
                replies[i].append(token)
    return replies


@torch.no_grad()  # for a generator: while it works, not while its caller does
def stream(model: GPT, prompts: Sequence[Sequence[int]], *, max_new_tokens: int | Sequence[int], eot_id: int, temperature: float = 1.0, top_k: int = 0,
           top_p: float = 1.0, seed: int = 0, sample_index: int | Sequence[int] = 0, stop: bytes = b"",
           token_bytes: Sequence[bytes] | None = None, batch_size: int = 64) -> Iterator[tuple[int, int | None]]:
    """`generate` token by token: (number of the prompt, its next id) as each is drawn, (number, None) where a reply has ended.

    Raises ValueError, at the first token that is asked for, where `generate` does.
    """
    block, longest = model.config.block_size, max(map(len, prompts), default=0)
    if longest >= block:
        raise ValueError(f"a prompt of {longest} tokens leaves no room in a block of {block}")
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    if min(limits, default=1) < 1:
        raise ValueError(f"max_new_tokens is {min(limits)}: there is nothing to generate")
    if stop and token_bytes is None:
        raise ValueError("a stop sequence needs token_bytes")
    indices = [sample_index] * len(prompts) if isinstance(sample_index, int) else sample_index
    keys = np.array([prompt_key(p, k) for p, k in zip(prompts, indices, strict=True)], dtype=np.uint64)
    # longest first: like lengths are read together, equal prompts are neighbours, and memory is at its largest at the start
    waiting = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), prompts[i], indices[i]))[::-1]
    made = [0] * len(prompts)  # tokens of each reply so far
    tails = [b""] * len(prompts)
    rows: list[int] = []  # the prompt that each row of the cache answers
    autocast = torch.is_autocast_enabled(model.device.type)
    dtype = torch.get_autocast_dtype(model.device.type) if autocast else model.wte.weight.dtype
    most = max((len(p) + limit for p, limit in zip(prompts, limits, strict=True)), default=0)
    cache = Cache(model.config, min(batch_size, len(prompts)), min(block, most), model.device, dtype)
    was_training = model.training
    model.eval()
    try:
        while waiting or rows:
            free = cache.lengths.numel() - len(rows)
            if waiting and (not rows or 4 * free >= batch_size):
                new = [waiting.pop() for _ in range(min(free, len(waiting)))]
                read = cache.read_prompts(model, [prompts[i] for i in new])
                x = torch.cat([x, read]) if rows else read  # final states [rows, C], from which each row's next token is drawn
                rows += new
            u = uniforms(seed, keys[rows], np.array([made[i] for i in rows]))
            tokens = pick(next_logits(model, x), temperature, top_k, top_p, torch.from_numpy(u))  # [rows]
            ids = tokens.tolist()
            for row in range(len(rows) - 1, -1, -1):  # from the end: a finished row's place is taken by one that was looked at
                i, token = rows[row], ids[row]
                if token != eot_id:
                    made[i] += 1
                    yield i, token
                if stop:
                    tails[i] = (tails[i] + token_bytes[token])[-4 * len(stop):]
                full = made[i] == limits[i] or len(prompts[i]) + made[i] >= block
                if token == eot_id or full or (stop and stop in tails[i]):
                    last = cache.drop(row)
                    rows[row], ids[row] = rows[last], ids[last]
                    rows.pop(), ids.pop()
                    yield i, None
            if rows:
                x = cache.step(model, torch.tensor(ids, device=model.device))
    finally:  # also when the caller stops listening
        model.train(was_training)


def next_logits(model: GPT, x: Tensor) -> Tensor:
    """Logits float32 [B, V] at the final states x [B, C].

    Under autocast the product is made in its format, half the bytes to read; bf16 keeps GPT-2's logits of about -100 in steps of
    a half, so the 64 likeliest of each row are made again in float32.
    """
    weight = model.wte.weight
    rough = (weight @ x.T).T.float() if x.device.type == "cpu" else F.linear(x, weight).float()
    if torch.is_autocast_enabled(x.device.type):
        best = rough.topk(min(64, len(weight)), dim=1).indices
        with torch.autocast(x.device.type, enabled=False):
            rough.scatter_(1, best, (weight[best] @ x.float()[:, :, None])[:, :, 0])
    return rough


def pick(logits: Tensor, temperature: float, top_k: int, top_p: float, u: Tensor) -> Tensor:
    """Next ids [B] from logits [B, V]: greedy at temperature 0, else the inverse CDF of the (cut) distribution at u [B] in [0, 1).

    The CDF is summed in blocks of 256 tokens: first the block is found, then the token in it. Nothing is sorted but the few
    hundred likeliest tokens, when top_p asks for them.
    """
    if temperature == 0:
        best = logits.max(1)
        _check(best.values)
        return best.indices
    weights = ((logits - logits.max(1, keepdim=True).values) / temperature).exp_()  # probabilities but for a factor
    if top_k and top_k < weights.shape[1]:
        weights = weights.where(weights >= weights.topk(top_k, dim=1).values[:, -1:], 0)
    if top_p < 1:
        weights = _nucleus(weights, top_p)
    if weights.device.type == "mps" or torch.are_deterministic_algorithms_enabled():
        weights = weights.cpu()  # MPS has no float64, CUDA no deterministic cumulative sum
    u = u.to(weights.device, torch.float64)
    blocks = F.pad(weights, (0, -weights.shape[1] % 256)).view(len(weights), -1, 256)
    cdf = blocks.sum(2, dtype=torch.float64).cumsum(1)  # [B, blocks]
    _check(cdf[:, -1])
    aim = torch.minimum(u * cdf[:, -1], cdf[:, -1].nextafter(torch.zeros_like(u)))  # rounding must not reach the very end
    block = torch.searchsorted(cdf, aim[:, None], right=True).clamp(max=cdf.shape[1] - 1)  # [B, 1]
    before = torch.where(block > 0, cdf.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, 256))[:, 0].double().cumsum(1)  # [B, 256]
    within = torch.searchsorted(inside, aim[:, None] - before, right=True)
    # rounding may point behind the last token that has any weight
    last = 255 - (inside.diff(dim=1, prepend=torch.zeros_like(inside[:, :1])) > 0).flip(1).int().argmax(1, keepdim=True)
    return (256 * block + torch.minimum(within, last)).squeeze(1).to(logits.device)


def _check(sums: Tensor) -> None:
    if not sums.isfinite().all():
        raise ValueError("the model's logits are not finite: its weights or its number format are broken")


def _nucleus(weights: Tensor, top_p: float) -> Tensor:
    """weights [B, V] with zeros outside the smallest set of likeliest tokens that holds `top_p` of each row's sum."""
    total, count = weights.sum(1, keepdim=True), min(256, weights.shape[1])
    while True:
        ranked, order = weights.topk(count, dim=1)
        if count == weights.shape[1] or bool((ranked.sum(1, keepdim=True) >= top_p * total).all()):
            break
        count = min(4 * count, weights.shape[1])
    before = ranked.cumsum(1) - ranked  # mass of the likelier tokens; the first one always stays
    return torch.zeros_like(weights).scatter(1, order, ranked.where(before < top_p * total, 0))


def prompt_key(ids: Sequence[int], sample_index: int) -> int:
    """64 bits that name (prompt, which of its k samples)."""
    return int.from_bytes(hashlib.sha256(np.array([sample_index, *ids], dtype=np.int64).tobytes()).digest()[:8], "little")


def uniforms(seed: int, keys: np.ndarray, positions: int | np.ndarray) -> np.ndarray:
    """One uniform in [0, 1) per key [B] uint64 at its position [B]: splitmix64's mixing of the three (Steele et al. 2014)."""
    with np.errstate(over="ignore"):  # wrap-around is the arithmetic meant
        z = keys + np.uint64(seed) * np.uint64(0xD1342543DE82EF95) + np.asarray(positions + 1).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53
