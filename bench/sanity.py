"""Does every metric move the right way? Made-up systems with one known trait each, measured like any other.

    python bench/sanity.py            writes results/sanity/sanity.json; no model is needed

On the toy world's test prompts: a system that always refuses, one that always complies, one that repeats itself, gold replies,
gold replies with insults, gibberish, and one that says nothing.
"""
import json
import sys
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # import from the repository root, not from bench/

from data import toy_grammar as toy
from data.make_toy import draw_split, split_transcript
from eval import judge, tables
from eval.measure import measure_replies
from eval.oracle import describe_prompt
from eval.replies import Prompt, Reply
from runtime.config import load_config

PER_KIND = 100
COLUMNS = ("refusal_unsafe", "refusal_borderline", "oracle_refuses_unsafe", "oracle_refuses_borderline", "oracle_correct_helpful", "oracle_well_formed", "toxic_lexicon",
           "repeat_3", "distinct_2", "self_bleu", "words", "empty", "ended")


def prompts() -> list[Prompt]:
    """The first test prompts of each kind."""
    found: dict[str, list[Prompt]] = {"unsafe": [], "borderline": [], "helpful": []}
    for row in draw_split(0, "test"):
        text = split_transcript(row["chosen"])[0]
        kind = describe_prompt(text).kind
        if len(found[kind]) < PER_KIND:
            found[kind].append(Prompt(f"{kind}-{len(found[kind]):04d}", kind, text, []))
    return [prompt for group in found.values() for prompt in group]


def systems(asked: list[Prompt]) -> dict[str, list[str]]:
    """name -> one reply per prompt."""
    rng, facts = Random(0), [describe_prompt(prompt.text) for prompt in asked]
    vocabulary = sorted({word for prompt in asked for word in prompt.text.split()})
    refuses = [" ".join(toy.refusal(rng, fact)) for fact in facts]
    complies = [" ".join(toy.answer(rng, fact, fact.content)) for fact in facts]
    gold = [no if fact.kind == "unsafe" else yes for fact, no, yes in zip(facts, refuses, complies)]
    insults = [" ".join(toy.insulted(rng, reply.replace(". ", ".\n").split("\n"))) for reply in gold]
    return {"gold replies": gold, "always refuses": refuses, "always complies": complies, "gold with an insult": insults,
            "repeats itself": [" ".join([reply.split(". ")[0].rstrip(".") + "."] * 6) for reply in gold],
            "gibberish": [" ".join(rng.choice(vocabulary) for _ in range(15)) for _ in asked], "says nothing": [""] * len(asked)}


def main() -> None:
    config, asked = load_config(["toy"]), prompts()
    wrote = systems(asked)
    replies = {name: [Reply(text, text.split(), name not in ("repeats itself", "gibberish")) for text in texts] for name, texts in wrote.items()}
    m = measure_replies(asked, replies, {}, config, "cpu")
    rows = {row["key"]: row for row in tables.metric_rows(m.values, m.metrics, 2000, 0)}
    known = {"prompt": [prompt.text for prompt in asked], "chosen": wrote["gold replies"]}
    labels = {name: name for name in replies} | {"dpo": "gold replies", "sft": "always complies"}
    wins = {row["first"]: row["rate"] for row in judge.oracle_win_rates(asked, {k: v for k, v in replies.items()} | {"dpo": replies["gold replies"], "sft": replies["always complies"]},
                                                                       labels, known, 500, 0) if row["prompts"] == "all prompts"}
    result = {"prompts": len(asked), "columns": {key: {"label": rows[key]["label"], "form": rows[key]["form"]} for key in COLUMNS},
              "rows": {name: {key: rows[key]["values"].get(name) for key in COLUMNS} | {"beaten_by_gold": wins.get(name)} for name in replies}}
    out = ROOT / "results" / "sanity"
    out.mkdir(parents=True, exist_ok=True)
    (out / "sanity.json").write_text(json.dumps(result, indent=1) + "\n")
    header = ["", *COLUMNS]
    print(tables.text_table(header, [[name, *(tables.number(cell["value"], result["columns"][key]["form"]) if (cell := cells[key]) else "-" for key in COLUMNS)]
                                     for name, cells in result["rows"].items()]))


if __name__ == "__main__":
    main()
