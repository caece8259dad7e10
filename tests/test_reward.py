"""The reward model: its loss by hand, its scores by an independent path, its file in Hugging Face's hands, its training and resume."""
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train_reward
from batching import make_batch
from data.store import PairStore, StoreWriter
from losses import reward_loss
from model import GPT, GPTConfig, load_model
from reward_model import RewardModel, load_reward_model, save_reward_model
from runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
TINY = ["toy", "--model.dropout=0.1", "--model.n_layer=1", "--model.n_head=2", "--model.n_embd=32", "--device=cpu", "--data.max_rows=200", "--data.vocab_size=400", "--sft.max_steps=2",
        "--sft.batch=8", "--reward.batch=8", "--reward.max_steps=6", "--reward.eval_every=3", "--reward.eval_rows=20", "--reward.save_every=3", "--reward.log_every=1"]


def test_loss_by_hand():
    # -log sigmoid(2 - 1) = log(1 + e^-1) = .3133; equal scores ln 2; and a constant added to both changes nothing
    losses = reward_loss(torch.tensor([2.0, 0.5, 102.0]), torch.tensor([1.0, 0.5, 101.0]))
    assert losses.tolist() == pytest.approx([0.313262, math.log(2), 0.313262], abs=1e-5)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A reward model with a random head, and three pairs of unequal lengths, one with an empty reply (end-of-text alone)."""
    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    model = RewardModel(GPT(GPTConfig(50, 32, 2, 2, 16))).eval()
    torch.nn.init.normal_(model.score.weight)
    rows = [([49, 1, 2, 3], [4, 5, 49], [6, 49]), ([49, 7], [8, 9, 10, 11, 49], [49]), ([49, 1], [2, 49], [3, 4, 5, 6, 7, 49])]
    with StoreWriter(folder / "pairs", 50) as writer:
        for prompt, chosen, rejected in rows:
            writer.add(prompt, [0] * len(prompt), chosen, rejected)
        writer.close({})
    return model, PairStore(folder / "pairs"), rows, folder


def alone(model, ids):
    """The reward of one sequence on its own, plain causal attention, read at its last token."""
    ids = torch.tensor([ids])
    zeros = torch.zeros_like(ids)
    x = model.gpt.hidden(ids, torch.arange(ids.shape[1])[None], torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()[None, None] | (zeros[:, None, None] > 0))
    return model.score(x[0, -1]).item()


@torch.no_grad()
def test_packed_pairs_score_like_each_sequence_alone(scored):
    model, store, rows, _ = scored
    expected = [[alone(model, [*prompt, *chosen]), alone(model, [*prompt, *rejected])] for prompt, chosen, rejected in rows]
    for plan in ([[0], [1], [2]], [[0, 1, 2]], [[2, 0], [1]]):
        batch = make_batch(store, plan)
        chosen, rejected = model.score_batch(batch)
        for at, pair in enumerate(batch.pairs):
            assert [chosen[at].item(), rejected[at].item()] == pytest.approx(expected[pair], abs=1e-5)


@torch.no_grad()
def test_hugging_face_reads_the_same_rewards(scored):
    from transformers import AutoModelForSequenceClassification
    model, _, rows, folder = scored
    (folder / "hf").mkdir(exist_ok=True)
    save_reward_model(model, folder / "hf", 49)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder / "hf").eval()
    for prompt, chosen, _ in rows:
        assert theirs(torch.tensor([[*prompt, *chosen]])).logits.item() == pytest.approx(alone(model, [*prompt, *chosen]), abs=1e-4)
    again = load_reward_model(folder / "hf")
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))
    assert load_model(folder / "hf").config == model.config  # its body opens as a language model too


def test_a_language_model_is_no_reward_model(tmp_path, scored):
    from model import save_model
    save_model(scored[0].gpt, tmp_path, 49)
    with pytest.raises(UserError, match="train_reward.py"):
        load_reward_model(tmp_path)


def rows_of(out):
    lines = (out / "toy" / "reward" / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def test_training_starts_at_ln_2_learns_and_resumes_bit_for_bit(tmp_path):
    train_reward.main([*TINY, f"--out={tmp_path}"])
    whole = rows_of(tmp_path)
    assert whole[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)  # the head is zero: all rewards equal, dropout or not
    best = load_reward_model(tmp_path / "toy" / "reward" / "best")
    assert float(best.score.weight.detach().abs().sum()) > 0
    weights = (tmp_path / "toy" / "reward" / "last" / "model.safetensors").read_bytes()
    kill = ("import os, train_reward, runtime.run as r\nsave = r.Run.save\n"
            "def then_die(self, which, *rest, **more):\n    save(self, which, *rest, **more)\n    if which == 'last':\n        os._exit(9)\n"
            "r.Run.save = then_die\nimport sys\ntrain_reward.main(sys.argv[1:])\n")
    done = subprocess.run([sys.executable, "-c", kill, *TINY, f"--out={tmp_path}", "--fresh"], cwd=ROOT, capture_output=True, env=os.environ)
    assert done.returncode == 9
    train_reward.main([*TINY, f"--out={tmp_path}"])
    assert rows_of(tmp_path) == whole
    assert (tmp_path / "toy" / "reward" / "last" / "model.safetensors").read_bytes() == weights


def test_it_learns_a_rule(tmp_path):
    """Chosen replies hold token 5, rejected ones token 6, in random company: a hundred steps must find it."""
    rng = np.random.default_rng(0)
    with StoreWriter(tmp_path / "pairs", 50) as writer:
        for _ in range(200):
            noise = lambda: rng.integers(10, 40, 4).tolist()  # noqa: E731
            writer.add([49, *noise()], [0] * 5, [*noise(), 5, *noise(), 49], [*noise(), 6, *noise(), 49])
        writer.close({})
    store = PairStore(tmp_path / "pairs")
    torch.manual_seed(0)
    model = RewardModel(GPT(GPTConfig(50, 32, 1, 2, 32)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(100):
        batch = make_batch(store, [[int(i)] for i in rng.integers(0, 150, 16)])
        reward_loss(*model.score_batch(batch)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        chosen, rejected = model.score_batch(make_batch(store, [[i] for i in range(150, 200)]))
    assert (chosen > rejected).float().mean() > 0.95
