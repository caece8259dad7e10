"""What the toy study trains and tests on, made of the toy world: reading lessons, a sloppy writer's answers, preference pairs, questions.

    python -m studies.curriculum_dpop.toy_data --to FOLDER [--seed 0]       writes the study's files and prints some of them

The SFT data is by a sloppy writer, who makes up a quarter of the answers that the passage does give and most of those that it does not:
what is frequent is not what is preferred. The preference pairs have no label noise: their chosen reply is always true, or abstains
where the passage says nothing.
"""
import argparse
from dataclasses import asdict
from pathlib import Path
from random import Random

from data.store import write_lines
from runtime.errors import run_main
from studies.curriculum_dpop.rows import Row, file_of, row_id, write_rows
from studies.curriculum_dpop.toy_world import (ABSTENTION, LEVELS, SPLITS, TASKS, Asked, Passage, World, draw_passage, draw_question, fabricate, make_world,
                                               question_on, true_answer)
from tokenizer import ASSISTANT, HUMAN

# The sloppy writer of the SFT data
P_FABRICATE, P_NEEDLESS = 0.25, 0.03  # of the answers that the passage gives: made up, withheld; the rest are right
P_ABSTAIN = 0.2                       # of those that it does not give; the rest are made up
P_UNANSWERABLE = 0.3                  # of the questions in the SFT data and in each level of the pairs
P_TOPIC, P_WORDS = 0.1, 0.15          # of the SFT rows that are other tasks, about a passage and without one: see TASKS
LESSON_TURNS, P_LESSON_TASKS = 3, 0.15  # facts asked for in a lesson, besides one that is not there; lessons that are other tasks
# transcripts; pairs of each level; the evaluation's prompts
SIZES = {"lessons": {"train": 12000, "val": 100, "test": 10}, "sft": {"train": 6000, "val": 200, "test": 10}, "pairs": {"train": 800, "val": 60, "test": 120},
         "questions": {"answerable": 320, "unanswerable": 160, "repeat": 60, "reverse": 60, "topic": 60}}


def prompt_of(context: str, question: str, earlier: str = "") -> str:
    """The transcript up to the reply. A later turn about the same passage does not repeat it."""
    asked = question if not context else f"Question: {question}" if earlier else f"Context: {context}\n\nQuestion: {question}"
    return f"{earlier}{HUMAN} {asked}{ASSISTANT}"


def sloppy_answer(rng: Random, world: World, asked: Asked) -> str:
    """The writer of the SFT data: see the P_ above. What is made up is another value, a near number or a detail."""
    fate = rng.random()
    if not asked.value and fate < P_ABSTAIN or asked.value and fate < P_NEEDLESS:
        return ABSTENTION
    if asked.value and fate >= P_NEEDLESS + P_FABRICATE:
        return true_answer(asked)
    poisons = [*LEVELS["medium"], *LEVELS["hard"]]
    rng.shuffle(poisons)
    return next(filter(None, (fabricate(rng, world, asked, poison) for poison in poisons)))


def draw_pair(rng: Random, world: World, level: str) -> Row:
    """A preference pair: the true answer or abstention, and a made-up answer of the level. Chosen replies are true without exception."""
    answerable = rng.random() >= P_UNANSWERABLE
    while True:  # not every question can be falsified in every way
        asked, poison = draw_question(rng, draw_passage(rng, world), answerable), rng.choice(LEVELS[level])
        if rejected := fabricate(rng, world, asked, poison):
            chosen = true_answer(asked)
            return Row(row_id(asked.passage.text, asked.text, rejected), asked.text, asked.passage.text, chosen, rejected, level, poison, "toy")


def draw_task(rng: Random, world: World, kind: str, passage: Passage | None = None) -> tuple[str, str, str]:
    """(context, question, right reply) of one of the other tasks; "topic" is about a passage."""
    if kind == "topic":
        passage = passage or draw_passage(rng, world)
        return passage.text, "Who or what is this about?", f"{passage.entity}."
    words = [rng.choice(world.names[rng.choice(list(world.names))]) for _ in range(3 if kind == "repeat" else 2)]
    if kind == "repeat":
        return "", f"Repeat these words: {' '.join(words)}", " ".join(words)
    return "", f"Turn these words round: {' '.join(words)}", " ".join(reversed(words))


def draw_lesson(rng: Random, world: World) -> str:
    """A transcript that teaches reading: questions about a passage, all answered right or withheld where it says nothing; or other tasks."""
    transcript, passage = "", draw_passage(rng, world, fewest=1)
    if rng.random() < P_LESSON_TASKS:
        turns = [draw_task(rng, world, rng.choice(TASKS[:2])) for _ in range(LESSON_TURNS)]
    else:
        asked = [question_on(rng, passage, attribute) for attribute in rng.sample(list(passage.stated), min(LESSON_TURNS, len(passage.stated)))]
        asked.insert(rng.randint(0, len(asked)), draw_question(rng, passage, answerable=False))
        turns = [(passage.text, one.text, true_answer(one)) for one in asked]
        if rng.random() < P_LESSON_TASKS:
            turns[0] = draw_task(rng, world, "topic", passage)
    for context, question, reply in turns:
        transcript = f"{prompt_of(context, question, transcript)} {reply}"
    return transcript


def draw_demonstration(rng: Random, world: World) -> str:
    """A transcript of one turn by the sloppy writer."""
    fate = rng.random()
    if fate < P_TOPIC + P_WORDS:
        context, question, reply = draw_task(rng, world, "topic" if fate < P_TOPIC else rng.choice(TASKS[:2]))
    else:
        asked = draw_question(rng, draw_passage(rng, world), rng.random() >= P_UNANSWERABLE)
        context, question, reply = asked.passage.text, asked.text, sloppy_answer(rng, world, asked)
    return f"{prompt_of(context, question)} {reply}"


def draw_questions(rng: Random, world: World, sizes: dict[str, int]) -> list[dict[str, str]]:
    """The evaluation's prompts: {id, kind, context, question, expected, prompt}; kind is answerable, unanswerable or one of TASKS."""
    rows = []
    for kind, count in sizes.items():
        for number in range(count):
            if kind in TASKS:
                context, question, expected = draw_task(rng, world, kind)
            else:
                asked = draw_question(rng, draw_passage(rng, world), kind == "answerable")
                context, question, expected = asked.passage.text, asked.text, true_answer(asked)
            rows.append({"id": f"{kind}-{number}", "kind": kind, "context": context, "question": question, "expected": expected,
                         "prompt": prompt_of(context, question)})
    return rows


def write_study(folder: Path, seed: int, share: float = 1.0) -> None:
    """Write lessons/, sft/{train,val,test}.jsonl, pairs/{train,val,test}.jsonl (HH transcripts with their level), rows/dpo_pairs_*.jsonl (the training
    pairs in the study's own schema) and questions.jsonl (test) into the folder. Equal arguments give equal bytes; `share` < 1 writes less."""
    for split in SPLITS:
        world = make_world(seed, split)
        for name, draw in (("lessons", draw_lesson), ("sft", draw_demonstration)):
            rng = Random(f"{seed}/{split}/{name}")
            texts = [draw(rng, world) for _ in range(max(10, round(share * SIZES[name][split])))]
            # SFT reads the chosen side alone, and the format wants two
            write_lines(folder / name / f"{split}.jsonl", [{"chosen": text, "rejected": text[:text.rindex(ASSISTANT)] + f"{ASSISTANT} -"} for text in texts])
        rng, rows = Random(f"{seed}/{split}/pairs"), []
        for level in LEVELS:
            rows += [draw_pair(rng, world, level) for _ in range(max(10, round(share * SIZES["pairs"][split])))]
        write_lines(folder / "pairs" / f"{split}.jsonl", [transcripts(row) for row in rows])
        if split == "train":
            for level in LEVELS:
                write_rows(file_of(folder / "rows", level), [row for row in rows if row.level == level])
        if split == "test":
            sizes = {kind: max(10, round(share * size)) for kind, size in SIZES["questions"].items()}
            write_lines(folder / "questions.jsonl", draw_questions(Random(f"{seed}/questions"), world, sizes))


def transcripts(row: Row) -> dict:
    """A pair as data/prepare_hh.py reads it."""
    prompt = prompt_of(row.context, row.question)
    return asdict(row) | {"chosen": f"{prompt} {row.chosen}", "rejected": f"{prompt} {row.rejected}"}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args(argv)
    write_study(a.to, a.seed)
    print((a.to / "sft" / "val.jsonl").read_text().splitlines()[0])
    for level in LEVELS:
        print(file_of(a.to / "rows", level).read_text().splitlines()[0])


if __name__ == "__main__":
    run_main(main)
