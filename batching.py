"""Stored pairs -> the plan of an epoch -> batches; and the coloured view that shows which tokens carry the loss.

One row of a batch holds one or more documents, each of them `prompt | chosen | rejected` (SFT and plain text: no rejected).
The prompt stands there once, both replies look back at it, and neither sees the other (model.tree_mask).
"""
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from itertools import count
from typing import TextIO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.store import PairStore
from model import GPT
from runtime.distributed import World
from tokenizer import Tokenizer

SCORED_AT_ONCE = 256  # pairs that score_pairs sorts by length together
Rows = list[list[int]]  # a micro-batch: for each row, the indices of the documents in it


@dataclass
class Batch:
    """B rows of T tokens with N scored tokens among them; all int64."""
    ids: Tensor         # [B, T]
    positions: Tensor   # [B, T] the rejected branch starts again right after the prompt
    segments: Tensor    # [B, T] 3 * document + {0 prompt, 1 chosen, 2 rejected}; padding -1
    predict_at: Tensor  # [N] flat index (row * T + t) of the position each scored token is predicted from
    targets: Tensor     # [N] the scored tokens' ids
    owner: Tensor       # [N] the sequence each belongs to: 2 * document + (0 chosen, 1 rejected), documents in `pairs` order
    last: Tensor        # [P * branches] flat index of each sequence's last token, in the order of `owner` (a reward model reads it there)
    pairs: list[int]    # store index of each document
    real: bool = True   # False: a stand-in on a rank that has no micro-batch left, to be scored and counted as nothing

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device; from pinned memory it is copied while the device works."""
        return self._each(lambda t: t.to(device, non_blocking=t.is_pinned()))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, which a GPU reads by itself."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(**{name: change(part) if isinstance(part, Tensor) else part for name, part in parts.items()})

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What `model(...)` takes."""
        return self.ids, self.positions, self.segments, self.predict_at, self.targets


# ---- the plan -------------------------------------------------------------------------------------------------------

def shuffled_steps(pool: int | np.ndarray, batch: int, seed: Sequence[int], total: int) -> list[np.ndarray]:
    """The documents of `total` optimizer steps: pass after pass over the pool (or range(pool)), each in an order of its own.

    A pure function, so a resumed run needs only to know its step. A pass is cut into steps of `batch`; its last step may be smaller, and its documents
    then weigh more.
    """
    pool = np.arange(pool) if isinstance(pool, int) else pool
    steps: list[np.ndarray] = []
    for epoch in count():
        order = pool[np.random.default_rng([*seed, epoch]).permutation(len(pool))]
        steps += [order[at:at + batch] for at in range(0, len(order), batch)]
        if len(steps) >= total:
            return steps[:total]


def micro_batches(indices: np.ndarray, lengths: np.ndarray, micro_tokens: int, pack: bool = True) -> list[Rows]:
    """Cut one step into micro-batches of at most `micro_tokens` tokens, padding included (a single longer row stands alone).

    lengths [n] tokens per document of the store; pack=False: one document per row. Only here, inside a step, do lengths matter: the longest documents open the rows
    of a micro-batch, which so have like lengths, and shorter ones go into their free ends, where padding would be.
    """
    result: list[Rows] = []
    waiting = sorted((int(i) for i in indices), key=lambda i: (-lengths[i], i))
    sizes = {i: int(lengths[i]) for i in waiting}
    while waiting:
        capacity = sizes[waiting[0]]
        most = max(1, micro_tokens // capacity)
        rows: Rows = []
        free: list[int] = []
        later: list[int] = []
        for n, i in enumerate(waiting):
            need = sizes[i]
            if len(rows) == most and (not pack or max(free) < sizes[waiting[-1]]):  # not even the shortest fits any more
                later += waiting[n:]
                break
            place = next((r for r, room in enumerate(free) if room >= need and pack), len(rows))
            if place == most:
                later.append(i)
                continue
            if place == len(rows):
                rows.append([])
                free.append(capacity)
            rows[place].append(i)
            free[place] -= need
        result.append(rows)
        waiting = later
    return result


def deal(indices: np.ndarray, lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """One step's documents dealt to `size` ranks so that each has about as many tokens: the longest first, always to the one with least."""
    shares: list[list[int]] = [[] for _ in range(size)]
    loads = [0] * size
    for i in sorted((int(i) for i in indices), key=lambda i: (-lengths[i], i)):
        rank = min(range(size), key=loads.__getitem__)
        shares[rank].append(i)
        loads[rank] += int(lengths[i])
    return [np.array(share, dtype=np.int64) for share in shares]


def rank_batches(store: PairStore, indices: np.ndarray, micro_tokens: int, world: World, branches: int = 2, loss_on: str = "response",
                 separate: bool = False) -> Iterator[Batch]:
    """This rank's micro-batches of one step. Every rank gets as many, the missing ones as stand-ins that count as nothing: FSDP gathers
    weights and DDP sums gradients in every pass, and a rank that makes fewer passes would leave the others waiting for ever."""
    if not len(indices):
        return
    lengths = row_lengths(store, branches)
    if separate:  # two rows, each as long as the prompt and the longer reply
        lengths = 2 * (store.index["prompt"].astype(np.int64) + np.maximum(store.index["chosen"], store.index["rejected"]))
    shares = [micro_batches(share, lengths, micro_tokens, pack=not separate) for share in deal(indices, lengths, world.size)]
    mine, most = shares[world.rank], max(map(len, shares))
    stand_in = [[int(min(indices, key=lambda i: lengths[i]))]]
    for rows in mine:
        yield make_batch(store, rows, branches, loss_on, separate)
    for _ in range(most - len(mine)):
        yield replace(make_batch(store, stand_in, branches, loss_on, separate), real=False)


# ---- batches --------------------------------------------------------------------------------------------------------

def make_batch(store: PairStore, rows: Rows, branches: int = 2, loss_on: str = "response", separate: bool = False) -> Batch:
    """Lay documents out in rows and list the scored tokens.

    separate: every reply in a row of its own behind its own copy of the prompt, for models that take no mask of ours; one document per row.

    branches: 2 = chosen and rejected, 1 = chosen alone. loss_on: "response" scores the reply; "assistant" also earlier assistant
    turns (role 1); "all" every token but the start token. Masks go by position and role, never by token id: end-of-text
    is padding nowhere and a target exactly once per reply.
    """
    documents = [[store.row(i) for i in row] for row in rows]
    if separate:
        return _separate(documents, [i for row in rows for i in row])
    T = max(sum(len(p) + len(c) + (len(r) if branches == 2 else 0) for p, _, c, r in row) for row in documents)
    ids = np.zeros((len(rows), T), dtype=np.int64)
    positions = np.zeros_like(ids)
    segments = np.full_like(ids, -1)
    predict_at, targets, owner, last = [], [], [], []

    def score(flat: np.ndarray, tokens: np.ndarray, sequence: int) -> None:
        predict_at.append(flat)
        targets.append(tokens)
        owner.append(np.full(len(tokens), sequence))

    document = 0
    for b, row in enumerate(documents):
        start = 0
        for d, (prompt, roles, chosen, rejected) in enumerate(row):
            P, base = len(prompt), b * T + start
            ids[b, start:start + P] = prompt
            positions[b, start:start + P] = np.arange(P)
            segments[b, start:start + P] = 3 * d
            if loss_on != "response":
                scored = np.flatnonzero(roles[1:] == 1) + 1 if loss_on == "assistant" else np.arange(1, P)
                score(base + scored - 1, prompt[scored], 2 * document)
            at = start + P
            for branch, reply in enumerate((chosen, rejected)[:branches]):
                R = len(reply)
                ids[b, at:at + R] = reply
                positions[b, at:at + R] = P + np.arange(R)
                segments[b, at:at + R] = 3 * d + 1 + branch
                from_ = b * T + at + np.arange(R) - 1  # each token is predicted from the one before it ...
                if R:
                    from_[0] = base + P - 1            # ... and a branch's first from the prompt's last
                score(from_, reply, 2 * document + branch)
                at += R
                last.append(b * T + at - 1)
            start, document = at, document + 1
    flat = [torch.from_numpy(np.concatenate(parts).astype(np.int64)) for parts in (predict_at, targets, owner)]
    return Batch(*map(torch.from_numpy, (ids, positions, segments)), *flat, torch.tensor(last), pairs=[i for row in rows for i in row])


def _separate(documents: list[list[tuple]], pairs: list[int]) -> Batch:
    """make_batch with one sequence per row, padded on the right; rows 2d and 2d + 1 hold document d's chosen and rejected reply."""
    sequences = [(prompt, reply) for (prompt, _, *replies), in documents for reply in replies]
    T = max(len(prompt) + len(reply) for prompt, reply in sequences)
    ids = np.zeros((len(sequences), T), dtype=np.int64)
    segments = np.full_like(ids, -1)
    for b, (prompt, reply) in enumerate(sequences):
        ids[b, :len(prompt) + len(reply)] = np.concatenate([prompt, reply])
        segments[b, :len(prompt) + len(reply)] = 0
    ends = [b * T + len(prompt) + len(reply) - 1 for b, (prompt, reply) in enumerate(sequences)]
    flat = [np.concatenate(parts) for parts in zip(*((end - len(reply) + np.arange(len(reply)), reply, np.full(len(reply), b))
                                                     for b, (end, (_, reply)) in enumerate(zip(ends, sequences))))]
    positions = np.broadcast_to(np.arange(T), ids.shape).copy()
    return Batch(*map(torch.from_numpy, (ids, positions, segments)), *(torch.from_numpy(part.astype(np.int64)) for part in flat), torch.tensor(ends), pairs=pairs)


def row_lengths(store: PairStore, branches: int) -> np.ndarray:
    """Tokens each document takes in a row [n]."""
    lengths = store.index["prompt"].astype(np.int64) + store.index["chosen"]
    return lengths + store.index["rejected"] if branches == 2 else lengths


def steps_ahead(store: PairStore, steps: Sequence[np.ndarray], micro_tokens: int, device: torch.device, branches: int = 2,
                loss_on: str = "response", world: World = World(), separate: bool = False) -> Iterator[list[Batch]]:
    """This rank's micro-batches of each optimizer step, given its documents. While the caller trains on one step, a thread lays out the next."""
    def lay_out(indices: np.ndarray) -> list[Batch]:
        batches = list(rank_batches(store, indices, micro_tokens, world, branches, loss_on, separate))
        return [b.pin_memory() for b in batches] if device.type == "cuda" else batches

    with ThreadPoolExecutor(max_workers=1) as thread:
        waiting = [thread.submit(lay_out, indices) for indices in steps[:1]]
        for at in range(len(steps)):
            ready = waiting.pop().result()
            waiting += [thread.submit(lay_out, indices) for indices in steps[at + 1:at + 2]]
            yield ready


def reply_tokens(batch: Batch) -> Tensor:
    """Scored tokens of every sequence [2 P], in the order of `owner`."""
    return torch.bincount(batch.owner, minlength=2 * len(batch.pairs))


def tail_weights(batch: Batch, alpha: float) -> Tensor:
    """[N] 1 for a pair's tokens up to the length of its shorter reply, `alpha` for the longer one's tokens beyond it (LD-DPO, Liu et al. 2024, eq. 9)."""
    counts = reply_tokens(batch)
    place = torch.arange(len(batch.owner), device=counts.device) - (counts.cumsum(0) - counts)[batch.owner]  # in its own reply, from 0
    shorter = counts.view(-1, 2).min(1).values.repeat_interleave(2)
    return torch.where(place < shorter[batch.owner], 1.0, alpha)


def sequence_logps(logps: Tensor, batch: Batch, tail_weight: float = 1.0) -> tuple[Tensor, Tensor]:
    """Sum token log-probs [N] by sequence -> (chosen [P], rejected [P]), nats. Sums, not means: DPO is about whole replies.

    tail_weight: see `tail_weights`.
    """
    if tail_weight != 1:
        logps = logps * tail_weights(batch, tail_weight)
    # a hundred additions to -1,000 nats in float32 would cost more than everything else: add in float64 (which Apple's GPUs lack)
    exact = logps if logps.device.type == "mps" else logps.double()
    sums = torch.zeros(2 * len(batch.pairs), dtype=exact.dtype, device=logps.device).index_add(0, batch.owner, exact).to(logps.dtype)
    return sums[0::2], sums[1::2]


@torch.no_grad()
def score_pairs(model: GPT, store: PairStore, indices: np.ndarray, micro_tokens: int, autocast, show: str = "", tail_weight: float = 1.0,
                world: World = World()) -> tuple[np.ndarray, np.ndarray]:
    """log p(chosen | prompt), log p(rejected | prompt) of the pairs `indices` [P], in nats, float32 [P] each, dropout off.

    The same rows, dtype and code path as training uses; ranks share the work and all get all of it. `autocast` makes the context;
    `show` names a progress bar.
    """
    was_training = model.training
    model.eval()
    where = {int(i): k for k, i in enumerate(indices)}
    out = np.zeros((2, len(indices)), dtype=np.float32)
    # a piece at a time, so that memory holds the batches of a piece
    for piece in tqdm(np.array_split(np.asarray(indices), max(1, -(-len(indices) // SCORED_AT_ONCE))), desc=show, disable=not show or not world.main, leave=False):
        for batch in rank_batches(store, piece, micro_tokens, world, separate=not model.prefix_shared):
            batch = batch.to(model.device)
            with autocast():
                logps = model(*batch.inputs())
            if batch.real:
                k = [where[i] for i in batch.pairs]
                for side, values in enumerate(sequence_logps(logps, batch, tail_weight)):
                    out[side, k] = values.cpu().numpy()
    model.train(was_training)
    out = world.sum(out)
    return out[0], out[1]


# ---- seeing the mask ------------------------------------------------------------------------------------------------

def show_mask(batch: Batch, tokenizer: Tokenizer, stream: TextIO | None = None) -> None:
    """Print the first row of a batch: plain context, scored chosen tokens green, scored rejected tokens red.

    Read back from `targets` and `owner` themselves, so the picture cannot differ from what is trained. Not a terminal: {+chosen+}, {-rejected-}.
    """
    T, stream = batch.ids.shape[1], stream or sys.stdout  # not as the default value: that would be the stdout of the import
    side = {0: ("\x1b[32m", "\x1b[0m"), 1: ("\x1b[31m", "\x1b[0m")} if stream.isatty() else {0: ("{+", "+}"), 1: ("{-", "-}")}
    scored: dict[int, int] = {}  # position in the row -> branch
    for at, owner in zip(batch.predict_at.tolist(), batch.owner.tolist()):
        if at >= T:
            continue  # another row
        place = at + 1
        if owner % 2 and batch.segments[0, at] % 3 == 0:  # predicted from the prompt, but it stands behind the chosen branch
            place = int((batch.segments[0] == 3 * (owner // 2) + 2).nonzero()[0])
        scored[place] = owner % 2
    text, branch = "", None
    for t in range(int((batch.segments[0] >= 0).sum())):
        now = scored.get(t)
        if now != branch:
            text += (side[branch][1] if branch is not None else "") + (side[now][0] if now is not None else "")
            branch = now
        text += tokenizer.decode([int(batch.ids[0, t])])
    print("first row of the first batch; marked tokens carry the loss (chosen green {+ +}, rejected red {- -}):\n"
          + text + (side[branch][1] if branch is not None else ""), file=stream)
