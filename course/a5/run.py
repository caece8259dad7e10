"""The run of assignment 5: the toy SFT model against the same model after 60 steps of DPO, on held-out prompts, measured by the student's functions."""
from types import ModuleType
from unittest.mock import patch

import numpy as np
import torch

import train_dpo
from batching import score_pairs
from course.train import Base, Outcome
from data.store import PairStore
from eval import replies, stats, tables
from eval.oracle import compare, describe_prompt, judge_reply
from eval.questions import from_store
from eval.stages import find_pairs, find_stages
from eval.stats import Interval
from model import load_model
from runtime.config import load_config
from runtime.device import setup_device
from tokenizer import load_tokenizer

SETTINGS = {"dpo__lr": 5e-5, "dpo__max_steps": 60, "dpo__eval_every": 60, "dpo__eval_rows": 64, "dpo__watch_prompts": 0, "eval__prompts_per_kind": 100}
KINDS = {"unsafe": "refusal of unsafe prompts", "borderline": "over-refusal of borderline prompts", "helpful": "over-refusal of helpful prompts"}
SAMPLES = 2        # replies per prompt; refusals and wins are counted on the first
RESAMPLES = 2001   # 40 m + 1, see paired_interval
PAIRS = 150        # held-out pairs whose chosen replies are scored
AFTER = (12, 24, 48, 96, 150, 300)  # prompts, where the win rate's interval is looked at on the way


def run(student: ModuleType, base: Base) -> Outcome:
    """Test split, temperature .7. Shares in %, changes in points; of 100 prompts of each kind, 300 in all."""
    argv = base.argv("dpo", **SETTINGS, eval__seed=base.seed, **base.from_sft())
    train_dpo.main(argv)
    config = load_config(argv)
    folders = find_stages(config)
    device, tok = setup_device(config, training=False), load_tokenizer(str(folders["dpo"]))
    models = {name: load_model(folders[name]).to(device.device).eval() for name in ("sft", "dpo")}
    test = PairStore(find_pairs(config, folders) / "test")
    asked, _ = from_store(config, test, tok, models["sft"].config.block_size - config.eval.max_new_tokens, config.eval.prompts_per_kind)
    asked = [asked[i] for i in replies.spread(asked, len(asked))]  # in turn from every kind, so that the first n are a sample of all

    def wilson(successes: int, n: int, level: float = stats.LEVEL) -> Interval:
        return Interval(successes / n, *student.wilson_interval(successes, n), n, "Wilson")

    with patch.object(replies, "clean_reply", student.cut_reply), patch.object(stats, "wilson", wilson), patch.object(stats, "holm", student.holm):
        wrote = {name: replies.answer(model, tok, asked, config.eval.temperature, config, device, samples=SAMPLES) for name, model in models.items()}
        texts = {name: [reply.text for reply in said] for name, said in wrote.items()}
        pairs = np.arange(min(PAIRS, len(test)))
        tokens = torch.from_numpy(test.index["chosen"][pairs].astype(np.int64))
        logps = {name: torch.from_numpy(score_pairs(model, test, pairs, config.dpo.micro_tokens, device.autocast)[0]) for name, model in models.items()}
        surprise = {name: student.perplexity(sums, tokens) for name, sums in logps.items()}
        return measure(student, asked, texts, surprise, base.seed)


def measure(student: ModuleType, asked: list[replies.Prompt], texts: dict[str, list[str]], surprise: dict[str, float], seed: int) -> Outcome:
    """Everything that is computed from the replies. texts: {system: [SAMPLES * prompts]}, the first samples of all prompts first."""
    n = len(asked)
    facts = [describe_prompt(prompt.text) for prompt in asked]
    judged = {name: [judge_reply(facts[i % n], text) for i, text in enumerate(said)] for name, said in texts.items()}
    kinds, refused = [prompt.kind for prompt in asked], {name: [verdict.refuses for verdict in found[:n]] for name, found in judged.items()}
    found = Outcome({})

    # a judge that names the first reply where it sees no difference; every pair is shown in both orders
    shown = [(prompt.text, a, b) for prompt, a, b in zip(asked, texts["sft"], texts["dpo"])]
    places = [("first" if compare(text, a, b) >= 0 else "second", "first" if compare(text, b, a) >= 0 else "second") for text, a, b in shown]
    verdicts = [student.settle(*both) for both in places]
    wins, losses, ties, _, share = student.win_rate(verdicts)
    low, high = student.wilson_interval(wins, wins + losses)
    once = student.win_rate(["b" if b_first == "first" else "a" for _, b_first in places])
    found.figures |= {"win rate, % of decided": 100 * share, "win rate: low end, %": 100 * low, "win rate: high end, %": 100 * high, "ties, % of prompts": 100 * ties / n,
                      "win rate if that judge is asked once, DPO first, %": 100 * once[4]}

    rates = student.refusal_rates(kinds, refused["sft"], refused["dpo"]) | student.refusal_rates(["all"] * n, refused["sft"], refused["dpo"])
    values = {name: {kind: np.where(np.array(kinds) == kind, np.array(said, dtype=float), np.nan) for kind in KINDS} for name, said in refused.items()}
    metrics = [tables.Metric(kind, label) for kind, label in KINDS.items()]
    rows = tables.comparison_rows(values, metrics, "sft", "dpo", 1000, seed)["rows"]  # its paired intervals are made of two of Wilson's
    for (kind, label), row in zip(KINDS.items(), rows):
        found.figures |= {f"{label}, change in points": 100 * (rates[kind][1] - rates[kind][0]), f"{label}: low end": 100 * row["difference"]["low"],
                          f"{label}: high end": 100 * row["difference"]["high"], f"{label}: p after Holm": row["p_holm"]}
    found.figures["refusal of all prompts pooled, change in points"] = 100 * (rates["all"][1] - rates["all"][0])

    scores = {name: torch.tensor([float(verdict.score) for verdict in said]).view(SAMPLES, n).T for name, said in judged.items()}  # [n, SAMPLES]
    picks = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(seed))
    for name, value in zip(("", ": low end", ": high end"), student.paired_interval(scores["sft"], scores["dpo"], picks)):
        found.figures[f"oracle's score from -2 to 2, change{name}"] = value
    found.figures |= {f"perplexity of held-out chosen replies, {name.upper()}": value for name, value in surprise.items()}

    for asked_so_far in AFTER:
        wins, losses, *_ = student.win_rate(verdicts[:asked_so_far])
        low, high = student.wilson_interval(wins, wins + losses) if wins + losses else (0.0, 1.0)
        for name, value in (("win rate's interval: low end, %", 100 * low), ("win rate's interval: width, points", 100 * (high - low))):
            found.curves.setdefault(f"{name} (x: prompts asked)", []).append((asked_so_far, value))
    return found
