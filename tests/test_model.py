import json

import numpy as np
import pytest
import torch

from model import GPT, GPTConfig, load_model, save_model, tree_mask
from runtime.errors import UserError

TINY = GPTConfig(vocab_size=97, block_size=48, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture
def gpt() -> GPT:
    torch.manual_seed(0)
    model = GPT(TINY).eval()
    for p in model.parameters():  # away from the initial values, so that biases and norms matter
        p.data += 0.1 * torch.randn_like(p)
    return model


def plain_logits(model: GPT, ids: list[int]) -> torch.Tensor:
    """[T, V] by one causal forward of one row: the slow, obvious way."""
    T = len(ids)
    mask = torch.ones(T, T, dtype=torch.bool).tril()[None, None]
    return model.logits(model.hidden(torch.tensor([ids]), torch.arange(T)[None], mask))[0]


def test_tree_mask_by_hand():
    # document 0: prompt p p, chosen c, rejected r; document 1: prompt q; padding
    segments = torch.tensor([[0, 0, 1, 2, 3, -1]])
    assert tree_mask(segments)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],  # rejected sees the prompt, not chosen
        [0, 0, 0, 0, 1, 0],  # another document
        [0, 0, 0, 0, 0, 1],  # padding sees itself alone
    ]


def test_scores_equal_plain_forward(gpt):
    ids = torch.randint(0, 97, (1, 12))
    at = torch.arange(11)
    got = gpt(ids, torch.arange(12)[None], torch.zeros(1, 12, dtype=torch.long), at, ids[0, 1:])
    expected = plain_logits(gpt, ids[0].tolist()).log_softmax(1)[at, ids[0, 1:]]
    assert torch.allclose(got, expected, atol=1e-5)


def test_chunked_head_equals_whole_head_with_gradients(gpt, monkeypatch):
    ids = torch.randint(0, 97, (2, 20))
    args = (ids, torch.arange(20).expand(2, 20), torch.zeros(2, 20, dtype=torch.long), torch.arange(19), ids[0, 1:])

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        gpt.zero_grad()
        logps = gpt(*args)
        (logps * torch.linspace(1, 2, 19)).sum().backward()
        return logps.detach(), gpt.wte.weight.grad.clone()

    whole = run()
    monkeypatch.setattr("head.LOGITS_AT_ONCE", 97 * 4)  # chunks of 4 rows
    chunked = run()
    assert torch.allclose(whole[0], chunked[0], atol=1e-6) and torch.allclose(whole[1], chunked[1], atol=1e-6)


def test_parity_with_hugging_face_both_ways(gpt, tmp_path):
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
    ids = torch.randint(0, 97, (2, 30))
    save_model(gpt, tmp_path, eot_id=96)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        mine = torch.stack([plain_logits(gpt, row) for row in ids.tolist()])
        assert (theirs(ids).logits - mine).abs().max() < 1e-4
    assert theirs.generation_config.eos_token_id == 96

    torch.manual_seed(1)
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=2)).eval()
    for p in theirs.parameters():
        p.data += 0.1 * torch.randn_like(p)
    theirs.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        mine = torch.stack([plain_logits(load_model(tmp_path / "theirs", block_size=48), row) for row in ids.tolist()])
        assert (theirs(ids).logits - mine).abs().max() < 1e-4


def test_dropout_is_off_in_eval_and_on_in_training():
    model = GPT(GPTConfig(97, 48, 2, 2, 32, dropout=0.5))
    ids = torch.randint(0, 97, (1, 12))
    args = (ids, torch.arange(12)[None], torch.zeros(1, 12, dtype=torch.long), torch.arange(11), ids[0, 1:])
    assert not torch.equal(model.train()(*args), model(*args))
    assert torch.equal(model.eval()(*args), model(*args))


def test_other_architectures_and_broken_folders_are_refused(gpt, tmp_path):
    with pytest.raises(UserError, match="not a model folder"):
        load_model(tmp_path)
    save_model(gpt, tmp_path, 96)
    with pytest.raises(UserError, match="more than the 48 positions"):
        load_model(tmp_path, block_size=64)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_layer": 3}))
    with pytest.raises(UserError, match="do not fit"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(UserError, match="llama"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(UserError, match="cannot be read"):
        load_model(tmp_path)


def test_parameter_count_of_hh_small():
    """12 layers x 12 * 768^2 + biases and norms = 85.0M beside 38.6M token and .4M position embeddings."""
    with torch.device("meta"):
        model = GPT(GPTConfig(50257, 512, 12, 12, 768))
    assert model.n_params(embeddings=False) == 12 * (12 * 768**2 + 13 * 768) + 2 * 768 == 85_056_000
    assert model.wte.weight.numel() == 38_597_376
