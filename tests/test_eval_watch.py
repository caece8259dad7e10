"""What the policy writes during training: the columns of metrics.jsonl, from the policy's own replies, without touching the run."""
import json
import math

import pytest
import torch
from test_eval_run import experiment

import train_dpo
from data.store import PairStore
from eval.oracle import describe_prompt, judge_reply
from eval.replies import answer
from eval.watch import watched_prompts, what_it_writes
from model import load_model
from runtime.config import load_config
from runtime.device import setup_device

COLUMNS = ("replies/words", "replies/ended", "replies/repetition", "replies/kl", "replies/well_formed", "replies/helpful_correct")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    argv, config, root, tok = experiment(tmp_path_factory.mktemp("watch"), "a", extra=["--dpo.watch_prompts=9"])
    return argv, config, root, tok


def test_prompts_are_balanced_and_from_validation(made):
    _, config, root, tok = made
    prompts = watched_prompts(PairStore(root / "val"), tok, config)
    known = {tok.decode(PairStore(root / "val").row(i)[0][1:].tolist()) for i in range(10)}
    counts = [sum(p.kind == kind for p in prompts) for kind in ("unsafe", "borderline", "helpful")]
    share = math.ceil(9 / sum(count > 0 for count in counts))
    assert max(counts) <= share and len(prompts) >= 5 and {p.text for p in prompts} <= known
    assert watched_prompts(PairStore(root / "val"), tok, load_config(["toy", "--dpo.watch_prompts=0"])) == []


def test_figures_are_those_of_the_replies(made):
    _, config, root, tok = made
    device = setup_device(config)
    policy, reference = (load_model(config.run_dir / stage / "best").train() for stage in ("dpo", "sft"))
    prompts = watched_prompts(PairStore(root / "val"), tok, config)
    before = torch.get_rng_state()
    row = what_it_writes(policy, reference, tok, prompts, config, device)
    assert torch.equal(before, torch.get_rng_state()) and policy.training  # training goes on as if nothing had been asked
    texts = [reply.text for reply in answer(policy, tok, prompts, 1.0, config, device, plain=True)]
    verdicts = [judge_reply(describe_prompt(p.text), text) for p, text in zip(prompts, texts)]
    assert row["replies__words"] == pytest.approx(sum(len(t.split()) for t in texts) / len(texts))
    assert row["replies__well_formed"] == pytest.approx(sum(v.well_formed for v in verdicts) / len(verdicts))
    assert row["replies__kl"] > 0
    same = what_it_writes(policy, policy, tok, prompts, config, device)
    assert same["replies__kl"] == pytest.approx(0, abs=1e-6)


def test_training_logs_them_with_every_validation(tmp_path):
    tiny = ["toy", f"--out={tmp_path}", "--model.n_layer=1", "--model.n_head=2", "--model.n_embd=32", "--device=cpu", "--data.max_rows=200", "--data.vocab_size=400",
            "--sft.max_steps=2", "--sft.batch=8", "--dpo.batch=8", "--dpo.max_steps=4", "--dpo.eval_every=2", "--dpo.eval_rows=20", "--dpo.watch_prompts=6"]
    train_dpo.main(tiny)
    rows = [json.loads(line) for line in (tmp_path / "toy" / "dpo" / "metrics.jsonl").read_text().splitlines()]
    val = [row for row in rows if row["split"] == "val"]
    assert [row["step"] for row in val] == [0, 2, 4] and all(row["replies/kl"] is not None for row in val)
    assert val[0]["replies/kl"] == pytest.approx(0, abs=1e-5)  # the policy is still its reference
    assert all(row[column] is None for row in rows if row["split"] == "train" for column in COLUMNS) and math.isfinite(val[-1]["replies/words"])
