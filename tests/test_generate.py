"""Generation: the cache against full forwards, rows that come and go, sampling against sorting, and reproducibility."""
import numpy as np
import pytest
import torch
from test_model import TINY, gpt, plain_logits  # noqa: F401  (gpt is a fixture)

from generate import Cache, generate, next_logits, pick, uniforms
from model import GPT, GPTConfig


def test_cached_generation_equals_full_forward(gpt):
    prompts = [[5, 6, 7], [1], [9, 8, 7, 6, 5, 4, 3]]
    replies = generate(gpt, prompts, max_new_tokens=10, eot_id=-1, temperature=0)
    for prompt, reply in zip(prompts, replies):
        ids = list(prompt)
        for _ in range(10):
            ids.append(int(plain_logits(gpt, ids)[-1].argmax()))
        assert reply == ids[len(prompt):]


@pytest.mark.parametrize("settings", [{"temperature": 1.0}, {"temperature": 0.8, "top_k": 10}, {"temperature": 1.2, "top_p": 0.9}])
def test_a_reply_does_not_depend_on_its_batch(gpt, settings):
    prompts = [[i, *range(1 + i % 7)] for i in range(20)]
    together = generate(gpt, prompts, max_new_tokens=12, eot_id=3, seed=5, **settings)
    alone = [generate(gpt, [p], max_new_tokens=12, eot_id=3, seed=5, **settings)[0] for p in prompts]
    backwards = generate(gpt, prompts[::-1], max_new_tokens=12, eot_id=3, seed=5, batch_size=3, **settings)[::-1]
    assert together == alone == backwards
    assert together != generate(gpt, prompts, max_new_tokens=12, eot_id=3, seed=6, **settings)
    assert together != generate(gpt, prompts, max_new_tokens=12, eot_id=3, seed=5, sample_index=1, **settings)


def test_generation_stops_at_end_of_text_stop_sequence_and_block(gpt):
    token_bytes = [b"x"] * 97
    first = generate(gpt, [[1, 2]], max_new_tokens=8, eot_id=-1, seed=1)[0]
    assert len(set(first[:3])) == 3
    assert generate(gpt, [[1, 2]], max_new_tokens=8, eot_id=first[0], seed=1)[0] == []
    token_bytes[first[0]], token_bytes[first[1]] = b"\n\nHu", b"man:"
    stopped = generate(gpt, [[1, 2]], max_new_tokens=8, eot_id=-1, seed=1, stop=b"\n\nHuman:", token_bytes=token_bytes)[0]
    assert stopped == first[:2]
    assert len(generate(gpt, [[1] * 40], max_new_tokens=30, eot_id=-1, temperature=0)[0]) == 8
    with pytest.raises(ValueError, match="leaves no room"):
        generate(gpt, [[1] * 48], max_new_tokens=1, eot_id=-1)


def test_pick_is_the_inverse_cdf():
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    for u, token in ((0.0, 0), (0.09, 0), (0.11, 1), (0.29, 1), (0.31, 2), (0.59, 2), (0.61, 3), (0.999999, 3)):
        assert pick(logits, 1.0, 0, 1.0, torch.tensor([u])).item() == token, u
    # top_k=2 leaves .3 and .4: the boundary moves to 3/7 = .4286. top_p=.6 needs .4 and .3 too; top_p=.3 the likeliest alone
    for u, token in ((0.0, 2), (0.42, 2), (0.43, 3)):
        assert pick(logits, 1.0, 2, 1.0, torch.tensor([u])).item() == token
        assert pick(logits, 1.0, 0, 0.6, torch.tensor([u])).item() == token
        assert pick(logits, 1.0, 0, 0.3, torch.tensor([u])).item() == 3
    # temperature .5 squares the odds: .01 .04 .09 .16 of .30
    assert pick(logits, 0.5, 0, 1.0, torch.tensor([0.46])).item() == 2
    assert pick(logits, 0.5, 0, 1.0, torch.tensor([0.47])).item() == 3


def test_uniforms_look_uniform_and_are_pure():
    keys = np.arange(20000, dtype=np.uint64)
    u = np.concatenate([uniforms(3, keys, p) for p in range(3)])
    assert ((0 <= u) & (u < 1)).all()
    counts = np.histogram(u, bins=20, range=(0, 1))[0]
    assert ((counts - 3000) ** 2 / 3000).sum() < 43.8  # chi-squared, 19 degrees of freedom, p = .001
    assert abs(np.corrcoef(uniforms(3, keys, 0), uniforms(3, keys, 1))[0, 1]) < 0.03
    assert np.array_equal(uniforms(3, keys[5:6], 2), uniforms(3, keys, 2)[5:6])


def test_rows_come_and_go_without_a_trace(gpt):  # noqa: F811
    """Replies that end after 1 to 20 tokens, in batches so small that rows are moved and filled again all the time."""
    prompts = [[i % 90, *range(1 + i % 9)] for i in range(60)]
    limits = {"max_new_tokens": 20, "eot_id": 3, "seed": 1}
    alone = [generate(gpt, [p], **limits)[0] for p in prompts]
    assert len({len(reply) for reply in alone}) > 8
    for batch_size in (1, 2, 7, 16, 60):
        assert generate(gpt, prompts, batch_size=batch_size, **limits) == alone


def test_samples_of_one_prompt_share_its_reading(gpt, monkeypatch):  # noqa: F811
    read, real = [], Cache._read
    monkeypatch.setattr(Cache, "_read", lambda self, model, prompts, copies: read.append(len(prompts)) or real(self, model, prompts, copies))
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
    together = generate(gpt, prompts * 4, max_new_tokens=9, eot_id=3, sample_index=[k for k in range(4) for _ in prompts])
    assert read == [3]
    for k in range(4):
        assert together[3 * k:3 * k + 3] == [generate(gpt, [p], max_new_tokens=9, eot_id=3, sample_index=k)[0] for p in prompts]
    assert len({tuple(reply) for reply in together[::3]}) > 1


def test_prompts_are_read_in_pieces(gpt, monkeypatch):  # noqa: F811
    prompts = [[i % 90, *range(1 + i % 9)] for i in range(30)]
    settings = {"max_new_tokens": 6, "eot_id": 3, "sample_index": [i // 10 for i in range(30)]}
    whole = generate(gpt, prompts, **settings)
    monkeypatch.setattr("generate.READ_AT_ONCE", 12)
    assert generate(gpt, prompts, **settings) == whole


def test_every_prompt_can_have_its_own_limit(gpt):  # noqa: F811
    limits = [1, 5, 9, 2]
    replies = generate(gpt, [[1, 2], [3], [4, 5, 6], [7]], max_new_tokens=limits, eot_id=-1)
    assert [len(reply) for reply in replies] == limits
    with pytest.raises(ValueError, match="nothing to generate"):
        generate(gpt, [[1], [2]], max_new_tokens=[3, 0], eot_id=-1)


def test_few_rows_take_the_other_product(gpt):  # noqa: F811
    """Linear puts its weights on the left up to 64 rows: the same numbers as nn.Linear on both sides of that line."""
    layer = gpt.h[0].mlp.c_fc
    for rows in (1, 64, 65):
        x = torch.randn(rows, 1, 32)
        assert torch.allclose(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias), atol=1e-6)


def test_bf16_generation_keeps_the_likeliest_logits_exact(gpt):  # noqa: F811
    """Weights shifted so that logits lie near -100, as GPT-2's do: bf16 alone would round the differences of the best away."""
    torch.manual_seed(0)
    big = GPT(GPTConfig(vocab_size=500, block_size=16, n_layer=1, n_head=2, n_embd=32))
    with torch.no_grad():
        big.wte.weight.mul_(25).add_(-3.0)  # logits of about -100, 4 apart
    x = torch.randn(5, 32) + 1.0
    exact = big.logits(x)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        rough, ours = (x @ big.wte.weight.T).float(), next_logits(big, x)
    best = exact.topk(10, dim=1).indices
    assert (rough - exact).gather(1, best).abs().max() > 0.02
    assert (ours - exact).gather(1, best).abs().max() < 1e-4
    assert (ours - exact).abs().max() < 1.0


@pytest.mark.parametrize("vocabulary, temperature, top_k, top_p", [(97, 1.0, 0, 1.0), (1000, 0.7, 0, 0.9), (1000, 1.3, 40, 1.0), (5000, 1.0, 0, 0.99), (600, 1.0, 7, 0.5)])
def test_picking_in_blocks_equals_sorting_everything(vocabulary, temperature, top_k, top_p):
    torch.manual_seed(0)
    logits = 2 * torch.randn(400, vocabulary)
    u = torch.rand(400, dtype=torch.float64)
    probs = (logits / temperature).double().softmax(1)
    if top_k:
        probs = probs.where(probs >= probs.sort(1, descending=True).values[:, top_k - 1:top_k], 0)
        probs = probs / probs.sum(1, keepdim=True)
    ranked, order = probs.sort(1, descending=True)
    kept = torch.zeros_like(probs).scatter(1, order, ranked.where(ranked.cumsum(1) - ranked < top_p, 0))
    cdf = kept.cumsum(1)
    expected = torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True).squeeze(1)
    got = pick(logits, temperature, top_k, top_p, u)
    assert (got == expected).float().mean() > 0.99  # a draw may fall on a border that float32 places elsewhere
    assert (kept.gather(1, got[:, None]) > 0).all()


def test_a_draw_at_the_very_end_is_a_token_that_exists():
    logits = torch.full((1, 300), -1e4)
    logits[0, 5] = 0.0
    for u in (0.0, 1 - 2**-53):
        assert pick(logits, 1.0, 0, 1.0, torch.tensor([u], dtype=torch.float64)).item() == 5
    assert pick(torch.zeros(1, 257), 1.0, 0, 1.0, torch.tensor([1 - 2**-53], dtype=torch.float64)).item() == 256


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_are_an_error_not_a_token(temperature):
    with pytest.raises(ValueError, match="not finite"):
        pick(torch.tensor([[0.0, float("nan")]]), temperature, 0, 1.0, torch.tensor([0.5]))
