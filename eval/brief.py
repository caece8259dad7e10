"""A dozen figures of one finished DPO run in seconds, for sweeps that compare hundreds; the whole report is `python -m eval.run`.

    python -m eval.brief toy [--key=value ...]        writes out/<name>/brief.json

Test split, sampled at eval.temperature, one reply per prompt, DPO beside the model it started from.
"""
from pathlib import Path

import numpy as np
import torch

from batching import score_pairs
from data.store import PairStore, write_json
from eval import pairwise, quality
from eval.drift import reply_kl
from eval.oracle import compare, describe_prompt, judge_reply
from eval.questions import from_store
from eval.replies import answer, spread
from eval.reward_accuracy import pair_texts, ranked_right
from eval.stages import find_pairs, find_stages
from model import load_model
from objectives import make_pairs, rewards
from reference import Reference
from runtime.checkpoint import read_run
from runtime.config import Config, DPOConfig, load_config
from runtime.device import setup_device
from runtime.errors import run_main
from tokenizer import load_tokenizer

KL_PROMPTS = 200
# what the figures are called in tables, in their order
LABELS = {
    "win_rate": "beats SFT, oracle, % of decided", "decided": "decided prompts", "reward_accuracy": "reward accuracy, %",
    "reward_accuracy_clean": "reward accuracy, clean labels, %", "chosen_drift": "chosen drift, nats", "rejected_drift": "rejected drift, nats",
    "kl": "KL to SFT, nats", "words": "words per reply", "words_sft": "words per SFT reply", "well_formed": "well formed, %",
    "unsafe_refused": "unsafe refused, %", "borderline_refused": "borderline refused, %", "helpful_correct": "helpful correct, %", "insults": "with an insult, %"}


def brief(config: Config) -> dict[str, float | None]:
    """The figures by the names in LABELS; those that need the toy world's oracle only there.

    Drift: mean log pi - log pi_SFT of held-out replies, nats per reply. Reward accuracy: by the objective's own reward (objectives.rewards).
    KL: nats per reply, exact next-token divergences on DPO's own replies.
    """
    folders = find_stages(config)
    root, e = find_pairs(config, folders), config.eval
    device = setup_device(config, training=False)
    tok, test = load_tokenizer(str(folders["dpo"])), PairStore(root / "test")
    policy, sft = (load_model(folders[stage]).to(device.device).eval() for stage in ("dpo", "sft"))
    room = policy.config.block_size - e.max_new_tokens
    prompts, _ = from_store(config, test, tok, room, e.prompts_per_kind)
    replies = {name: answer(model, tok, prompts, e.temperature, config, device) for name, model in (("sft", sft), ("dpo", policy))}
    words = {name: quality.word_counts([reply.text for reply in wrote]) for name, wrote in replies.items()}
    asked = [prompts[i] for i in spread(prompts, KL_PROMPTS)]
    own = answer(policy, tok, asked, 1.0, config, device, plain=True)
    found = {"kl": reply_kl(policy, sft, asked, own, tok, config.dpo.micro_tokens, device)[0].mean(),
             "words": words["dpo"].mean(), "words_sft": words["sft"].mean()}

    pairs = np.sort(np.random.default_rng(e.seed).permutation(len(test))[:e.max_pairs or len(test)])
    trained = DPOConfig(**read_run(folders["dpo"])["config"]["dpo"])
    ours = score_pairs(policy, test, pairs, config.dpo.micro_tokens, device.autocast)
    theirs = Reference(config, folders["sft"], lambda folder: load_model(folder).to(device.device), root, device).logps("test", test, pairs)[pairs].T
    tokens = [test.index[side][pairs].astype(np.float32) for side in ("chosen", "rejected")]
    p = make_pairs(*(torch.from_numpy(np.ascontiguousarray(column)) for column in (*ours, *theirs, *tokens)))
    right = ranked_right(*rewards(p, trained.objective, {"beta": trained.beta} if trained.beta >= 0 else {}))
    found |= {"chosen_drift": p.w.mean().item(), "rejected_drift": p.l.mean().item(), "reward_accuracy": 100 * right.mean()}
    if config.data.source == "toy":
        texts = pair_texts(test, pairs, tok)
        order = np.array([compare(*row) for row in zip(texts["prompt"], texts["chosen"], texts["rejected"])])
        found["reward_accuracy_clean"] = 100 * np.where(order > 0, right, 1 - right)[order != 0].mean()
        found |= by_oracle(prompts, replies)
    return {name: None if found[name] is None else round(float(found[name]), 4) for name in LABELS if name in found}


def by_oracle(prompts: list, replies: dict) -> dict[str, float | None]:
    """The toy world's exact judge: how often DPO's reply beats SFT's among prompts that it decides (None without any), and shares of DPO's replies, in %."""
    facts = [describe_prompt(prompt.text) for prompt in prompts]
    verdicts = {name: [judge_reply(fact, reply.text) for fact, reply in zip(facts, wrote)] for name, wrote in replies.items()}
    judged = [pairwise.settle(pair) for pair in pairwise.by_score(*([v.score for v in verdicts[name]] for name in ("sft", "dpo")))]
    wins, losses = judged.count("b"), judged.count("a")

    def share(field: str, kind: str = "") -> float:
        return 100 * float(np.mean([getattr(v, field) for v, fact in zip(verdicts["dpo"], facts) if kind in ("", fact.kind)]))
    return {"win_rate": 100 * wins / (wins + losses) if wins + losses else None, "decided": wins + losses, "well_formed": share("well_formed"),
            "unsafe_refused": share("refuses", "unsafe"), "borderline_refused": share("refuses", "borderline"),
            "helpful_correct": share("correct", "helpful"), "insults": share("toxic")}


def main(argv: list[str]) -> None:
    config = load_config(argv)
    found = brief(config)
    path = Path(config.run_dir) / "brief.json"
    write_json(path, found)
    for name, value in found.items():
        print(f"{LABELS[name]:34} {'not measured' if value is None else f'{value:10.3f}'}")
    print(path)


if __name__ == "__main__":
    run_main(main)
