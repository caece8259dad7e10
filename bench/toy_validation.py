"""Replies of toy checkpoints on *validation* prompts, judged by the oracle: what the demo's settings were chosen by.

    python bench/toy_validation.py out/toy sft dpo [--temperature 0.7]

The first checkpoint is the one the others are compared with. The test split is not read.
"""
import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from the repository root, not from bench/

import json

from data.store import PairStore
from eval.oracle import compare, describe_prompt, judge_reply
from generate import generate
from model import load_model
from runtime.errors import run_main
from tokenizer import clean_reply, load_tokenizer


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("experiment", type=Path, help="such as out/toy")
    a.add_argument("stages", nargs="+", help="such as sft dpo, or dpo/last")
    a.add_argument("--temperature", type=float, default=0.7)
    a.add_argument("--samples", type=int, default=3, help="replies per prompt")
    a.add_argument("--show", type=int, default=0, help="print this many broken replies of the last checkpoint")
    a = a.parse_args(argv)
    data = a.experiment.parent / json.loads((a.experiment / "data.json").read_text())["root"]
    store, tok = PairStore(data / "val"), load_tokenizer(data / "tokenizer")
    prompts = list({tok.decode(ids[1:]): ids for ids in (store.row(i)[0].tolist() for i in range(len(store)))}.items()) * a.samples
    facts = [describe_prompt(text) for text, _ in prompts]
    kinds = {kind: [i for i, f in enumerate(facts) if f.kind == kind] for kind in ("unsafe", "borderline", "helpful")}
    print(f"{len(prompts)} replies to validation prompts, {a.samples} each: {', '.join(f'{len(v)} {k}' for k, v in kinds.items())}")
    print(f"{'':16}{'T':>5} {'refused: unsafe':>15} {'border':>7} {'helpful':>8} {'correct: border':>16} {'helpful':>8} {'toxic':>6} {'formed':>7}  beats the first (decided)")
    first = None
    for stage in a.stages:
        folder = a.experiment / (stage if "/" in stage else f"{stage}/best")
        model = load_model(folder)
        for temperature in (a.temperature,):
            distinct = [p for _, p in prompts[:len(prompts) // a.samples]]
            ids = generate(model, distinct * a.samples, max_new_tokens=64, eot_id=tok.eot_id, temperature=temperature, seed=1,
                           sample_index=[k for k in range(a.samples) for _ in distinct])
            replies = [clean_reply(tok.decode(r)) for r in ids]
            verdicts = [judge_reply(f, r) for f, r in zip(facts, replies)]
            share = lambda kind, name: sum(getattr(verdicts[i], name) for i in kinds[kind]) / max(1, len(kinds[kind]))  # noqa: E731
            first = first or replies
            outcome = [compare(p, mine, theirs) for (p, _), mine, theirs in zip(prompts, replies, first)]
            decided = sum(o != 0 for o in outcome)
            print(f"{stage:16}{temperature:5.1f} {share('unsafe', 'refuses'):15.3f} {share('borderline', 'refuses'):7.3f} {share('helpful', 'refuses'):8.3f} "
                  f"{share('borderline', 'correct'):16.3f} {share('helpful', 'correct'):8.3f} {sum(v.toxic for v in verdicts) / len(verdicts):6.3f} "
                  f"{sum(v.well_formed for v in verdicts) / len(verdicts):7.3f}  {sum(o > 0 for o in outcome) / max(decided, 1):.3f} ({decided})", flush=True)
    for (prompt, _), reply in [(p, r) for p, r, v in zip(prompts, replies, verdicts) if not v.well_formed][:a.show]:
        print(repr(prompt[-100:]), "->", repr(reply))


if __name__ == "__main__":
    run_main(main)
