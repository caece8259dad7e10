"""One model of the toy study, measured: what it answers on questions about unseen entities, and how it scores unseen pairs.

    python -m studies.curriculum_dpop.toy_measure curriculum_toy --name=RUN --eval.policy=CHECKPOINT --data.source=WORLD/pairs ...

Writes <out>/<name>/measured.json (the figures) and replies.jsonl (every reply with its verdict). toy_study.py calls it.
"""
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from batching import score_pairs
from data.store import PairStore, find_data, write_json
from eval.replies import Prompt, answer
from model import GPT, load_model
from runtime.config import Config, load_config
from runtime.device import Device, setup_device
from runtime.errors import UserError, run_main
from studies.curriculum_dpop.toy_world import ABSTENTION, LEVELS, TASKS, follows, judge
from tokenizer import Tokenizer, encode_prompt, load_tokenizer

GREEDY = "greedy_"  # prefix of the figures at temperature 0; the others are sampled at eval.temperature


def verdicts(model: GPT, tok: Tokenizer, questions: Sequence[dict], temperature: float, config: Config, device: Device) -> list[dict]:
    """One row per question: {id, kind, temperature, reply, verdict}; the verdict of the other tasks is "follows" or "fails"."""
    prompts = [Prompt(row["id"], row["kind"], row["prompt"], encode_prompt(tok, row["prompt"])[0]) for row in questions]
    rows = []
    for asked, reply in zip(questions, answer(model, tok, prompts, temperature, config, device)):
        if asked["kind"] in TASKS:
            verdict = "follows" if follows(asked["expected"], reply.text) else "fails"
        else:
            verdict = judge(asked["context"], asked["question"], reply.text)
        rows.append({"id": asked["id"], "kind": asked["kind"], "temperature": temperature, "reply": reply.text, "verdict": verdict})
    return rows


def shares(rows: Sequence[dict]) -> dict[str, float | None]:
    """The figures of the replies, in %; None where there is nothing to take a share of.

    right: answered right or, where the passage says nothing, withheld, of all questions: a model that only abstains is right in few.
    details: something follows a comma, which no true answer has, well formed or not.
    hallucination: fabricated, of the replies to all questions; of_formed: of those that are well formed; on_answerable and
    on_unanswerable: of each kind's. abstention: of the unanswerable, needless: of the answerable. tasks: other tasks done as told.
    """
    def share(verdict: str, *kinds: str, among: Sequence[str] = ()) -> float | None:
        found = [row["verdict"] for row in rows if row["kind"] in kinds and (not among or row["verdict"] in among)]
        return 100 * found.count(verdict) / len(found) if found else None
    both = ("answerable", "unanswerable")
    formed = ("correct", "fabricated", "beside", "abstains")
    right = [row["verdict"] == ("correct" if row["kind"] == "answerable" else "abstains") for row in rows if row["kind"] in both]
    details = ["," in row["reply"] for row in rows if row["kind"] in both]
    figures = {"right": 100 * sum(right) / len(right), "details": 100 * sum(details) / len(details),
               "hallucination": share("fabricated", *both), "of_formed": share("fabricated", *both, among=formed),
               "on_answerable": share("fabricated", "answerable"), "on_unanswerable": share("fabricated", "unanswerable"),
               "correct": share("correct", "answerable"), "needless": share("abstains", "answerable"), "abstention": share("abstains", "unanswerable"),
               "well_formed": 100 - share("malformed", *both), "tasks": share("follows", *TASKS)}
    return figures | {task: share("follows", task) for task in TASKS}


def pair_figures(model: GPT, start: GPT | None, tok: Tokenizer, test: PairStore, micro_tokens: int, device: Device) -> dict[str, float | None]:
    """Of all held-out pairs, of each level, and of those whose chosen reply is an answer or an abstention: drift of log pi from the start's,
    nats per reply, of both sides; share (in %) whose chosen reply is the likelier one; share whose chosen reply rose more than the rejected
    one (None for the start itself). Abstentions are apart: preference training makes that one sentence likelier
    everywhere, which would hide a fall of the answers."""
    every = np.arange(len(test))
    w, l = score_pairs(model, test, every, micro_tokens, device.autocast)
    w0, l0 = score_pairs(start, test, every, micro_tokens, device.autocast) if start else (w, l)
    withheld = np.array([tok.decode(test.row(i)[2][:-1]).strip() == ABSTENTION for i in every])
    groups = {"": every >= 0} | {f"_{level}": test.index["level"] == n for n, level in enumerate(LEVELS, 1)} | {"_answers": ~withheld, "_abstentions": withheld}
    figures: dict[str, float | None] = {}
    for tail, of in groups.items():
        figures |= {f"chosen_drift{tail}": (w - w0)[of].mean(), f"rejected_drift{tail}": (l - l0)[of].mean(), f"likelier{tail}": 100 * (w > l)[of].mean(),
                    f"accuracy{tail}": 100 * ((w - w0) > (l - l0))[of].mean() if start else None}
    return {name: None if value is None else float(value) for name, value in figures.items()}


def measure(config: Config) -> None:
    """Measure eval.policy against dpo.init_from, the model it started from; UserError when something is missing."""
    data = find_data(config)
    if data is None or not config.eval.policy or not config.dpo.init_from:
        raise UserError("prepare the pairs and name --eval.policy and --dpo.init_from: python -m studies.curriculum_dpop.toy_study does all that.")
    questions = [json.loads(line) for line in (Path(config.data.source).parent / "questions.jsonl").read_text().splitlines()]
    device = setup_device(config, training=False)
    model, start = (load_model(folder).to(device.device).eval() for folder in (config.eval.policy, config.dpo.init_from))
    tok = load_tokenizer(str(data / "tokenizer"))
    with torch.no_grad():
        sampled, greedy = (verdicts(model, tok, questions, temperature, config, device) for temperature in (config.eval.temperature, 0.0))
        figures = shares(sampled) | {GREEDY + name: value for name, value in shares(greedy).items()}
        figures |= pair_figures(model, None if config.eval.policy == config.dpo.init_from else start, tok, PairStore(data / "test"), config.dpo.micro_tokens, device)
    Path(config.run_dir).mkdir(parents=True, exist_ok=True)
    with open(config.run_dir / "replies.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in sampled + greedy)
    write_json(config.run_dir / "measured.json", {name: None if value is None else round(value, 4) for name, value in figures.items()})


if __name__ == "__main__":
    run_main(lambda argv: measure(load_config(argv)))
