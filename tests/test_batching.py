import io
from pathlib import Path

import numpy as np
import pytest
import torch

from batching import make_batch, micro_batches, row_lengths, score_pairs, sequence_logps, show_mask, shuffled_steps, steps_ahead, tail_weights
from data.store import PairStore, StoreWriter
from losses import sft_loss
from objectives import preference_loss
from model import GPT, GPTConfig
from runtime.device import Device
from tokenizer import train_bpe

END = 60
CPU = Device(torch.device("cpu"), torch.float32, "test")


def write_store(folder: Path, pairs: list[tuple], roles: list[list[int]] | None = None) -> PairStore:
    with StoreWriter(folder, 64) as writer:
        for i, (prompt, chosen, rejected) in enumerate(pairs):
            writer.add(prompt, roles[i] if roles else [0] * len(prompt), chosen, rejected, source_row=i)
        writer.close({"tokenizer": "test"})
    return PairStore(folder)


@pytest.fixture
def store(tmp_path) -> PairStore:
    rng = np.random.default_rng(0)
    draw = lambda n: rng.integers(0, 60, n).tolist()  # noqa: E731
    return write_store(tmp_path / "s", [([END, *draw(rng.integers(1, 12))], [*draw(rng.integers(0, 9)), END], [*draw(rng.integers(0, 9)), END])
                                        for _ in range(24)])


@pytest.fixture
def gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=64, block_size=32, n_layer=2, n_head=2, n_embd=32))


def test_layout_by_hand(tmp_path):
    """prompt [END 5 6], chosen [7 END], rejected [8 9 END]: one row of 8 tokens."""
    store = write_store(tmp_path / "s", [([END, 5, 6], [7, END], [8, 9, END])])
    b = make_batch(store, [[0]])
    assert b.ids.tolist() == [[END, 5, 6, 7, END, 8, 9, END]]
    assert b.positions.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5]]
    assert b.segments.tolist() == [[0, 0, 0, 1, 1, 2, 2, 2]]
    assert b.predict_at.tolist() == [2, 3, 2, 5, 6]  # both branches start from the prompt's last token
    assert b.targets.tolist() == [7, END, 8, 9, END]
    assert b.owner.tolist() == [0, 0, 1, 1, 1]


def test_what_carries_the_sft_loss(tmp_path):
    """END 1 2 3 4 | 5 END with roles: token 2 and 3 belong to an earlier assistant turn (3 ends it)."""
    store = write_store(tmp_path / "s", [([END, 1, 2, 3, 4], [5, END], [6, END])], roles=[[0, 0, 1, 1, 0]])
    targets = lambda on: make_batch(store, [[0]], branches=1, loss_on=on).targets.tolist()  # noqa: E731
    assert targets("response") == [5, END]
    assert targets("assistant") == [2, 3, 5, END]
    assert targets("all") == [1, 2, 3, 4, 5, END]  # never the start token


def test_end_of_text_is_a_target_exactly_once_per_reply_even_inside_a_prompt_full_of_them(tmp_path):
    store = write_store(tmp_path / "s", [([END, END, END], [END], [4, END])])
    b = make_batch(store, [[0]])
    assert [(b.targets[b.owner == s] == END).sum().item() for s in (0, 1)] == [1, 1]


def test_prefix_shared_and_packed_rows_equal_separate_forwards(store, gpt):
    """Loss and gradients: three documents per row with both branches, against one plain causal row per reply."""
    rows = [[0, 1, 2], [3, 4, 5], [6, 7]]
    batch = make_batch(store, rows)
    chosen, rejected = sequence_logps(gpt(*batch.inputs()), batch)

    def alone(prompt, reply):
        ids = torch.tensor([[*prompt, *reply]])
        T = ids.shape[1]
        mask = torch.ones(T, T, dtype=torch.bool).tril()[None, None]
        logits = gpt.logits(gpt.hidden(ids, torch.arange(T)[None], mask))[0].log_softmax(1)
        return sum(logits[len(prompt) - 1 + i, token] for i, token in enumerate(reply))

    slow = [[alone(p, r) for r in (c, j)] for p, _, c, j in (store.row(i) for i in batch.pairs)]
    slow_chosen, slow_rejected = (torch.stack(list(side)) for side in zip(*slow))
    assert torch.allclose(chosen, slow_chosen, atol=1e-4) and torch.allclose(rejected, slow_rejected, atol=1e-4)

    reference = torch.randn(2, len(batch.pairs))
    grads = []
    for c, r in ((chosen, rejected), (slow_chosen, slow_rejected)):
        gpt.zero_grad()
        preference_loss(c, r, *reference)[0].mean().backward()
        grads.append(torch.cat([p.grad.flatten() for p in gpt.parameters()]))
    assert (grads[0] - grads[1]).norm() / grads[1].norm() < 1e-5


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_accumulation_1x8_2x4_8x1_gives_the_same_gradient(store, gpt, kind):
    """Ragged lengths; a mean over micro-batch means would differ by far more than 1e-6."""
    gpt.double()
    gpt.logits = lambda h: h @ gpt.wte.weight.T  # float64 throughout: this is about the weights, not about rounding

    def gradient(size: int) -> torch.Tensor:
        gpt.zero_grad()
        batches = [make_batch(store, [[i] for i in range(s, s + size)], branches=2 if kind == "dpo" else 1) for s in range(0, 8, size)]
        count = sum(len(b.targets) for b in batches)
        for b in batches:
            logps = gpt(*b.inputs())
            if kind == "sft":
                sft_loss(logps, count).backward()
            else:
                c, r = sequence_logps(logps, b)
                (preference_loss(c, r, c.detach() - 1, r.detach() + 2)[0].sum() / 8).backward()
        return torch.cat([p.grad.flatten() for p in gpt.parameters()])

    g8, g4, g1 = gradient(8), gradient(4), gradient(1)
    assert (g8 - g4).norm() / g8.norm() < 1e-6 and (g8 - g1).norm() / g8.norm() < 1e-6
    assert len({len(store.row(i)[2]) for i in range(8)}) > 3  # the lengths really are ragged


def test_padding_and_order_do_not_matter(store, gpt):
    whole = score_pairs(gpt, store, np.arange(24), 10_000, CPU.autocast)
    small = score_pairs(gpt, store, np.arange(24)[::-1], 40, CPU.autocast)
    for a, b in zip(whole, small):
        assert np.allclose(a, b[::-1], atol=1e-4)


def test_plan_visits_every_pair_once_per_epoch_and_is_pure():
    for n, batch in ((10, 4), (8, 4), (3, 5)):
        per_epoch = -(-n // batch)
        steps = shuffled_steps(n, batch, [7], 3 * per_epoch)
        epochs = [np.concatenate(steps[e * per_epoch:(e + 1) * per_epoch]) for e in range(3)]
        assert all(sorted(e) == list(range(n)) for e in epochs)
    steps = shuffled_steps(1000, 50, [7], 34)
    assert not np.array_equal(steps[0], steps[20])  # a new order each epoch
    assert all(map(np.array_equal, steps, shuffled_steps(1000, 50, [7], 40)))


def test_micro_batches_cover_the_step_within_their_budget():
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 200, 500)
    for _ in range(20):
        indices = rng.choice(500, 64, replace=False)
        micro = micro_batches(indices, lengths, 1024)
        assert sorted(i for rows in micro for row in rows for i in row) == sorted(indices)
        for rows in micro:
            widest = max(sum(lengths[i] for i in row) for row in rows)
            assert widest * len(rows) <= 1024
        padded = sum(max(sum(lengths[i] for i in row) for row in rows) * len(rows) for rows in micro)
        assert padded < 1.15 * lengths[indices].sum()
    assert micro_batches(np.array([0]), np.array([5000]), 1024) == [[[0]]]  # longer than the budget: alone


def test_row_lengths(store):
    p, _, c, r = store.row(3)
    assert row_lengths(store, 2)[3] == len(p) + len(c) + len(r) and row_lengths(store, 1)[3] == len(p) + len(c)


def test_the_mask_view_shows_exactly_what_is_scored(tmp_path):
    tok = train_bpe(["abcdef"], 257)
    ids = lambda s: tok.encode(s)  # noqa: E731
    with StoreWriter(tmp_path / "s", tok.vocab_size) as w:
        w.add([tok.eot_id, *ids("ab")], [0, 0, 0], [*ids("c"), tok.eot_id], [*ids("de"), tok.eot_id])
        w.close({})
    out = io.StringIO()
    show_mask(make_batch(PairStore(tmp_path / "s"), [[0]]), tok, out)
    assert out.getvalue().splitlines()[1] == "<|endoftext|>ab{+c<|endoftext|>+}{-de<|endoftext|>-}"


def test_the_last_token_of_every_sequence_is_known(tmp_path):
    """What a reward model reads: end-of-text of each reply, an empty one included."""
    with StoreWriter(tmp_path / "s", 50) as writer:
        for prompt, chosen, rejected in (([49, 1, 2], [3, 49], [4, 5, 6, 49]), ([49, 7], [49], [8, 49])):
            writer.add(prompt, [0] * len(prompt), chosen, rejected)
        writer.close({})
    store = PairStore(tmp_path / "s")
    for rows in ([[0], [1]], [[1, 0]], [[0, 1]]):
        batch = make_batch(store, rows)
        flat, segments, T = batch.ids.flatten(), batch.segments.flatten(), batch.ids.shape[1]
        assert flat[batch.last].tolist() == [49] * 4 and (segments[batch.last] % 3).tolist() == [1, 2, 1, 2]
        assert all((at + 1) % T == 0 or segments[at + 1] != segments[at] for at in batch.last.tolist())  # nothing of the branch follows
        assert len(make_batch(store, rows, branches=1).last) == 2


def test_steps_are_laid_out_ahead_as_planned(store, monkeypatch):
    """The same documents and tensors as made on the spot; a failure while laying out reaches the caller."""
    plan = shuffled_steps(len(store), 3, [7], 5)[1:]
    steps = list(steps_ahead(store, plan, 200, torch.device("cpu")))
    for indices, batches in zip(plan, steps, strict=True):
        expected = [make_batch(store, rows) for rows in micro_batches(indices, row_lengths(store, 2), 200)]
        assert all(torch.equal(a, b) for got, want in zip(batches, expected, strict=True) for a, b in zip(got.inputs(), want.inputs()))
    assert list(steps_ahead(store, [], 200, torch.device("cpu"))) == []
    monkeypatch.setattr("batching.make_batch", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(steps_ahead(store, plan, 200, torch.device("cpu")))


def test_tail_weights_begin_where_the_shorter_reply_ends(store):
    batch = make_batch(store, [[0, 1], [2]])
    weights = tail_weights(batch, 0.25)
    for pair in range(3):
        chosen, rejected = (weights[batch.owner == 2 * pair + side].tolist() for side in (0, 1))
        shorter = min(len(chosen), len(rejected))
        for side in (chosen, rejected):
            assert side == [1.0] * shorter + [0.25] * (len(side) - shorter)
    logps = -torch.rand(len(batch.targets))
    assert torch.allclose(torch.stack(sequence_logps(logps, batch, 0.25)), torch.stack(sequence_logps(logps * weights, batch)))
