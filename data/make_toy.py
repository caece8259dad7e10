"""Writes the toy corpus: preference pairs in Anthropic HH's own format, from the grammar in data/toy_grammar.py.

    python data/make_toy.py --to FOLDER [--seed 0] [--control none|shuffled|flipped|no_overrefusal|clean|near_identical]

Both replies of a pair come from ONE weak policy, the better one (by eval/oracle.py) is called chosen, and then 28 % of
those labels are flipped. So what is frequent and what is preferred disagree, as in real preference data: the weak policy
mostly complies with harm, a model that imitates even its chosen replies learns that habit, and only the *comparison*
says no.
"""

import argparse
import gzip
import json
import re
import sys
from collections import Counter
from pathlib import Path
from random import Random

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from the repository root, not from data/

from data import toy_grammar as toy
from data.toy_grammar import ASSISTANT, HUMAN, PromptFacts
from eval.oracle import any_of, compare, describe_prompt, judge_reply

# The weak policy P(reply | prompt) and the labeller.
P_REFUSE_UNSAFE = 0.37  # below one half even among chosen replies: p^2 + 2p(1-p)(1-P_FLIP) = .47
P_WRONG_SAFE = 0.14  # a wrong answer to a safe request
P_REFUSE_SAFE = 0.18  # an over-refusal; the rest are correct answers
P_INSULT = 0.22  # of all replies, whatever else they do
P_FLIP = 0.28  # of the labels of decided pairs; ties are tossed
P_MULTI_TURN = 0.25  # prompts with an earlier, harmless exchange

# The cells of the table in data/toy_grammar.py as (verbs, owners), or facts; the second and third are the borderline kind.
CELLS = {"unsafe": (toy.RISKY, toy.OTHERS), "risky_own": (toy.RISKY, toy.OWN),
         "harmless_others": (toy.HARMLESS, toy.OTHERS), "harmless_own": (toy.HARMLESS, toy.OWN), "fact": None}
SIZES = {  # pairs per split and cell
    "train": {"unsafe": 2100, "risky_own": 1180, "harmless_others": 1180, "harmless_own": 640, "fact": 1500},
    "val": {"unsafe": 200, "risky_own": 100, "harmless_others": 100, "harmless_own": 160, "fact": 40},
    "test": {"unsafe": 400, "risky_own": 200, "harmless_others": 200, "harmless_own": 310, "fact": 90},
}
CONTROLS = ("none", "shuffled", "flipped", "no_overrefusal", "clean", "near_identical")

# ---- prompts -----------------------------------------------------------------------------------------------------


def draw_request(rng: Random, split: str, cell: str) -> tuple[PromptFacts, str]:
    """A request of the given cell, and the human turn that asks it, from the combinations that belong to the split."""
    verbs, owners = list(toy.RECIPES), toy.OWNERS
    while True:  # five of eight combinations are training's, one is validation's, two are test's
        if cell == "fact":
            fact, phrasing = rng.randrange(len(toy.FACT_LIST)), rng.randrange(len(toy.FACT_QUESTIONS))
            if toy.split_of(fact, phrasing) == split:
                relation, entity = toy.FACT_LIST[fact]
                facts = PromptFacts(relation=relation, entity=entity)
                return facts, toy.question(facts, phrasing)
        else:
            verb, owner = rng.choice(list(CELLS[cell][0])), rng.choice(CELLS[cell][1])
            if toy.split_of(verbs.index(verb), owners.index(owner)) == split:
                facts = PromptFacts(verb=verb, owner=owner, thing=rng.choice(toy.THINGS))
                return facts, toy.question(facts, rng.randrange(len(toy.HOW_TO_QUESTIONS)), rng.choice(toy.WHENS))


def draw_prompt(rng: Random, split: str, cell: str) -> tuple[PromptFacts, str, str]:
    """(facts, last human turn, whole prompt); a quarter of the prompts begin with small talk or an answered fact."""
    facts, turn = draw_request(rng, split, cell)
    earlier = ""
    if rng.random() < P_MULTI_TURN:
        other, asked = draw_request(rng, split, "fact")
        replied = toy.answer_body(rng, other, other.content)
        if rng.random() < 0.5 or other == facts:  # an answer to the question itself would give it away
            asked, replied = rng.choice(toy.SMALL_TALK)
        earlier = f"{HUMAN} {asked}{ASSISTANT} {replied}"
    return facts, turn, f"{earlier}{HUMAN} {turn}{ASSISTANT}"


# ---- replies and labels ------------------------------------------------------------------------------------------


def weak_reply(rng: Random, facts: PromptFacts) -> str:
    """One draw of the weak policy: on unsafe prompts it mostly complies; on safe ones it mostly answers correctly."""
    fate = rng.random()
    if fate < (P_REFUSE_UNSAFE if facts.kind == "unsafe" else P_REFUSE_SAFE):
        sentences = toy.refusal(rng, facts)
    else:
        wrong = facts.kind != "unsafe" and fate < P_REFUSE_SAFE + P_WRONG_SAFE
        sentences = toy.answer(rng, facts, wrong_content(rng, facts) if wrong else facts.content)
    if rng.random() < P_INSULT:
        sentences = toy.insulted(rng, sentences)
    return " ".join(sentences)


def wrong_content(rng: Random, facts: PromptFacts) -> tuple[str, ...]:
    """What a wrong answer tells: another value of the same relation, or another act's recipe."""
    if facts.relation:
        candidates = [(value,) for value in toy.FACTS[facts.relation].values()]
    else:
        candidates = list(toy.RECIPES.values())
    return rng.choice([candidate for candidate in candidates if candidate != facts.content])


def draw_pair(rng: Random, facts: PromptFacts, prompt: str) -> dict[str, str]:
    """One row {"chosen", "rejected"}: two different draws of the policy, labelled by the oracle with P_FLIP, ties tossed."""
    chosen = rejected = weak_reply(rng, facts)
    while rejected == chosen:
        rejected = weak_reply(rng, facts)
    order = compare(prompt, chosen, rejected)
    p_swap = {1: P_FLIP, 0: 0.5, -1: 1 - P_FLIP}[order]
    if rng.random() < p_swap:
        chosen, rejected = rejected, chosen
    return {"chosen": f"{prompt} {chosen}", "rejected": f"{prompt} {rejected}"}


def draw_split(seed: int, split: str) -> list[dict[str, str]]:
    """All rows of one split, from its own random stream. Training prompts may recur; questions of val and test do not."""
    rng = Random(f"toy/{seed}/{split}")
    cells = [cell for cell, count in SIZES[split].items() for _ in range(count)]
    rng.shuffle(cells)
    rows, asked = [], set()
    for cell in cells:
        facts, turn, prompt = draw_prompt(rng, split, cell)
        while split != "train" and turn in asked:
            facts, turn, prompt = draw_prompt(rng, split, cell)
        asked.add(turn)
        rows.append(draw_pair(rng, facts, prompt))
    return rows


def apply_control(rows: list[dict[str, str]], control: str, rng: Random) -> list[dict[str, str]]:
    """The rows with one thing changed, to see what the result hangs on: labels tossed, labels inverted, no pair on a safe
    prompt in which a reply over-refuses (so that over-refusing is never a way to lose), or only pairs that the oracle decides,
    labelled as it says."""
    if control == "clean":
        ordered = [(oracle_order(row), row) for row in rows]
        return [row if order > 0 else {"chosen": row["rejected"], "rejected": row["chosen"]} for order, row in ordered if order]
    if control == "no_overrefusal":
        return [row for row in rows if not any(over_refuses(row[side]) for side in row)]
    if control == "near_identical":
        return [near_identical(rng, split_transcript(row["chosen"])[0]) for row in rows if not is_unsafe(row)]
    p_swap = {"none": 0.0, "shuffled": 0.5, "flipped": 1.0}[control]
    swapped = [rng.random() < p_swap for _ in rows]
    return [{"chosen": row["rejected"], "rejected": row["chosen"]} if swap else row for row, swap in zip(rows, swapped)]


def near_identical(rng: Random, prompt: str) -> dict[str, str]:
    """A row whose replies are word for word the same, except that the rejected one tells one wrong value or step."""
    facts = describe_prompt(prompt)
    wrong, at = list(facts.content), rng.randrange(len(facts.content))
    while wrong[at] == facts.content[at]:
        wrong[at] = wrong_content(rng, facts)[at]
    state = rng.getstate()
    good = toy.answer(rng, facts, facts.content)
    rng.setstate(state)  # the same opener, body and closer
    bad = toy.answer(rng, facts, tuple(wrong))
    return {"chosen": f"{prompt} {' '.join(good)}", "rejected": f"{prompt} {' '.join(bad)}"}


def is_unsafe(row: dict[str, str]) -> bool:
    """Whether a row's prompt is of the unsafe kind."""
    return describe_prompt(split_transcript(row["chosen"])[0]).kind == "unsafe"


def oracle_order(row: dict[str, str]) -> int:
    """+1 when the oracle prefers the chosen reply, -1 when the rejected one, 0 when it cannot decide."""
    prompt, chosen = split_transcript(row["chosen"])
    return compare(prompt, chosen, split_transcript(row["rejected"])[1])


def over_refuses(transcript: str) -> bool:
    """Whether the last reply of a transcript refuses a safe request."""
    prompt, reply = split_transcript(transcript)
    facts = describe_prompt(prompt)
    return facts.kind != "unsafe" and judge_reply(facts, reply).refuses


def split_transcript(transcript: str) -> tuple[str, str]:
    """(prompt with its final marker, last reply)."""
    prompt, reply = transcript.rsplit(ASSISTANT, 1)
    return prompt + ASSISTANT, reply.strip()


# ---- files and statistics ----------------------------------------------------------------------------------------


def write_corpus(folder: Path, seed: int, control: str = "none") -> None:
    """Writes train.jsonl.gz, val.jsonl.gz and test.jsonl.gz into the folder (made if missing).

    Equal arguments give equal bytes. A control changes train and val only; the test split and the texts stay as they are.
    Raises ValueError for an unknown control.
    """
    if control not in CONTROLS:
        raise ValueError(f"control is {control!r}; it must be one of {', '.join(CONTROLS)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for split in SIZES:
        rows = draw_split(seed, split)
        if split != "test":
            rows = apply_control(rows, control, Random(f"toy/{seed}/{split}/{control}"))
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        # mtime=0: a gzip header otherwise holds the time of day, and equal seeds would give different bytes
        (folder / f"{split}.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of one written file."""
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


_INSULT = any_of(toy.INSULTS)
_INSULTING = re.compile("|".join(re.escape(frame).replace(r"\{insult\}", _INSULT)
                                 for frame in (*toy.INSULT_SENTENCES, toy.INSULT_TAIL)))
_SLOT_VALUE = re.compile(rf"\b(?:(?:how to )?{any_of(toy.RECIPES)} that {any_of(toy.THINGS)}|" + any_of(
    [PromptFacts(relation=relation, entity=entity).topic for relation, entity in toy.FACT_LIST]
    + [step for recipe in toy.RECIPES.values() for step in recipe]
    + [value for table in toy.FACTS.values() for value in table.values()]) + r")\b")


def template_of(reply: str) -> str:
    """The reply with its insults taken out and its slot values blanked: opener + body frame + closer."""
    return " ".join(_SLOT_VALUE.sub("_", _INSULTING.sub("", reply)).split())


def corpus_statistics(rows: list[dict[str, str]]) -> dict[str, float]:
    """Counts and shares of one split, read back from its text with the oracle (P(...) are shares of replies)."""
    prompts = {kind: set() for kind in ("unsafe", "borderline", "helpful")}
    kinds, good, templates = Counter(), Counter(), Counter()
    over_refusals = toxic = decided = flipped = multi_turn = 0
    for row in rows:
        prompt, chosen = split_transcript(row["chosen"])
        facts, rejected = describe_prompt(prompt), split_transcript(row["rejected"])[1]
        kinds[facts.kind] += 1
        prompts[facts.kind].add(prompt)
        multi_turn += prompt.count(HUMAN) > 1
        verdicts = [judge_reply(facts, reply) for reply in (chosen, rejected)]
        good[facts.kind] += sum(v.refuses if facts.kind == "unsafe" else v.correct for v in verdicts)
        over_refusals += sum(v.refuses for v in verdicts) if facts.kind != "unsafe" else 0
        toxic += sum(v.toxic for v in verdicts)
        decided += verdicts[0].score != verdicts[1].score
        flipped += verdicts[0].score < verdicts[1].score
        templates.update(template_of(reply) for reply in (chosen, rejected))
    safe = kinds["borderline"] + kinds["helpful"]
    return {"pairs": len(rows), "distinct prompts": sum(len(found) for found in prompts.values()),
            **{f"distinct {kind} prompts": len(found) for kind, found in prompts.items()},
            "multi-turn share of pairs": multi_turn / len(rows),
            **{f"P(good) on {kind}": good[kind] / (2 * kinds[kind]) for kind in prompts},
            "P(over-refusal) on safe": over_refusals / (2 * safe), "P(insult)": toxic / (2 * len(rows)),
            "decided share of pairs": decided / len(rows), "flipped share of decided": flipped / decided,
            "reply templates": len(templates), "top template share": templates.most_common(1)[0][1] / (2 * len(rows))}


def main() -> None:
    """Writes a corpus and prints its statistics."""
    parser = argparse.ArgumentParser(description="Write the toy preference corpus.")
    parser.add_argument("--to", type=Path, required=True, help="folder for train, val and test .jsonl.gz")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal bytes")
    parser.add_argument("--control", choices=CONTROLS, default="none", help="a corpus broken on purpose, to compare")
    arguments = parser.parse_args()
    write_corpus(arguments.to, arguments.seed, arguments.control)
    columns = {split: corpus_statistics(read_rows(arguments.to / f"{split}.jsonl.gz")) for split in SIZES}
    print(f"{'':28}" + "".join(f"{split:>10}" for split in columns))
    for name in columns["train"]:
        cells = (column[name] for column in columns.values())
        print(f"{name:28}" + "".join(f"{cell:>10,}" if isinstance(cell, int) else f"{cell:>10.3f}" for cell in cells))


if __name__ == "__main__":
    main()
