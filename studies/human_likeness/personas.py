"""Personas for synthetic dialogues: people described by traits are split first, and only then over-sampled into several personas each.

    python -m studies.human_likeness.personas PARENTS --to FOLDER [--children 4] [--dev 0.1] [--test 0.1] [--seed 0]

PARENTS is a JSON list or JSON lines of people (studies/human_likeness/parents.jsonl holds some of ours); FOLDER gets one file per split. Every choice
depends on the seed and the names involved alone: another order of people or traits, or more people, changes nothing for those who were there.
"""
import argparse
import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.store import write_json, write_lines
from runtime.errors import UserError, check_folder, run_main
from studies.human_likeness.pairs import draw
from studies.human_likeness.storage import command_line, read_lines

ESSENTIAL = ("age", "sex")
YOUNGEST, OLDEST = 18, 100
JITTER = 0.1  # a child's age lies within this share of its parent's
FEWEST_A_CHILD = 4  # traits; a parent with fewer than this times the children wanted gets fewer children
# some personas are hard to talk to, as some patients are
DIFFICULT = ("interrupts", "complains about everything", "distrusts doctors", "exaggerates symptoms", "plays symptoms down", "wanders off the subject",
             "answers in one word", "argues", "is in a hurry", "has looked everything up and knows better", "is rude when afraid", "forgets what was said")


def without_missing(value: Any) -> Any:
    """The value without "Not Applicable" and empty entries, at any depth; None when nothing is left."""
    if isinstance(value, Mapping):
        return {name: kept for name, inner in value.items() if (kept := without_missing(inner)) is not None} or None
    if isinstance(value, list):
        return [kept for inner in value if (kept := without_missing(inner)) is not None] or None
    return None if value is None or str(value).strip().lower() in ("", "not applicable") else value


def read_parents(path: Path) -> tuple[list[dict[str, Any]], Counter]:
    """(people as {"parent_id", "age", "sex", "traits"}, how many were left out and why). The id is the file's `id`, or a hash of what is said.

    UserError for a person without age or sex, for two with one id, and for the same description twice: it could land in two splits.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else read_lines(path, ())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no list of people ({error}).") from None
    people, seen, out = [], {}, Counter()
    if not isinstance(found, list) or not found:
        raise UserError(f"{path} holds no list of people.")
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict):
            raise UserError(f"{path}: person {number} is no object.")
        said = without_missing({name: value for name, value in row.items() if name != "id"}) or {}
        content = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:10]
        try:
            age = float(said.get("age", math.nan))
        except (TypeError, ValueError):
            age = math.nan
        if not math.isfinite(age) or "sex" not in said:
            raise UserError(f"{path}: person {number} needs an age, which is a number, and a sex.")
        own = content if row.get("id") in (None, "") else str(row["id"])
        for name in {content, own}:
            if name in seen:
                raise UserError(f"{path}: persons {seen[name]} and {number} are the same ({name}): leave one out, or it may stand in two splits.")
            seen[name] = number
        if not YOUNGEST <= age <= OLDEST:  # to bring a child's age up to 18 would make another person of it
            out[f"age outside {YOUNGEST} to {OLDEST}"] += 1
            continue
        people.append({"parent_id": own, "age": age, "sex": said["sex"],
                       "traits": {name: value for name, value in said.items() if name not in ESSENTIAL}})
    return people, out


def split_of(parent_id: str, dev: float, test: float, seed: int) -> str:
    """"train", "dev" or "test", by a hash of seed and parent: more people change nobody's split."""
    u = draw(seed, "split", parent_id)
    return "test" if u < test else "dev" if u < test + dev else "train"


def windows(traits: int, children: int) -> list[list[int]]:
    """Which of the shuffled traits (0 .. traits - 1) each child gets: windows of 2s traits, each s further on, with s = traits // (children + 1).

    Neighbours share s traits, no other two share any, and the list is gone round only where the first window begins before it. Fewer children when
    there are fewer than four traits for each; then one child with all of the traits.
    """
    if traits < FEWEST_A_CHILD:
        return [list(range(traits))]
    children = min(children, traits // FEWEST_A_CHILD)
    s = traits // (children + 1)
    return [[(i % traits) for i in range(traits + k * s - s, traits + k * s + s)] for k in range(children)]


def children_of(parent: Mapping[str, Any], n: int, split: str, seed: int, difficult: float = 0.1) -> list[dict[str, Any]]:
    """Up to n personas of one parent, with ids parent-0, parent-1, ...: age (jittered) and sex always, and a window of the shuffled traits.

    difficult: the share that gets one of `DIFFICULT` as well. ValueError unless n >= 1.
    """
    if n < 1:
        raise ValueError(f"{n} children")
    name = parent["parent_id"]
    order = sorted(parent["traits"], key=lambda trait: draw(seed, "order", name, trait))
    found = []
    for k, window in enumerate(windows(len(order), n)):
        own = f"{name}-{k}"
        age = round(parent["age"] * (1 + JITTER * (2 * draw(seed, "age", own) - 1)))
        shown = sorted((order[i] for i in window), key=lambda trait: draw(seed, "shown", own, trait))
        hard = DIFFICULT[int(draw(seed, "which difficulty", own) * len(DIFFICULT))] if draw(seed, "difficult", own) < difficult else ""
        found.append({"persona_id": own, "parent_id": name, "split": split, "age": min(OLDEST, max(YOUNGEST, age)), "sex": parent["sex"],
                      "traits": {trait: parent["traits"][trait] for trait in shown}, "difficult": hard})
    return found


def check_splits(personas: Iterable[Mapping[str, Any]]) -> None:
    """UserError when a parent has personas in two splits, or a persona comes twice: a test on people seen in training tests nothing."""
    splits: dict[str, set[str]] = defaultdict(set)
    ids: Counter = Counter()
    for row in personas:
        splits[row["parent_id"]].add(row["split"])
        ids[row["persona_id"]] += 1
    for parent, own in sorted(splits.items()):
        if len(own) > 1:
            raise UserError(f"parent {parent} has personas in the splits {' and '.join(sorted(own))}.")
    if twice := [persona for persona, n in ids.items() if n > 1]:
        raise UserError(f"persona {sorted(twice)[0]} comes twice.")


def build(parents: Sequence[Mapping[str, Any]], n: int, dev: float, test: float, seed: int, difficult: float = 0.1) -> list[dict[str, Any]]:
    """All personas by id, split by parent before anything is sampled."""
    rows = [child for parent in parents for child in children_of(parent, n, split_of(parent["parent_id"], dev, test, seed), seed, difficult)]
    check_splits(rows)
    return sorted(rows, key=lambda row: row["persona_id"])


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("parents", type=Path)
    a.add_argument("--to", type=Path, required=True, help="folder")
    a.add_argument("--children", type=int, default=4, help="personas of each parent")
    a.add_argument("--dev", type=float, default=0.1, help="share of parents")
    a.add_argument("--test", type=float, default=0.1, help="share of parents")
    a.add_argument("--difficult", type=float, default=0.1, help="share of personas that are hard to talk to")
    a.add_argument("--seed", type=int, default=0)
    a = a.parse_args(argv)
    if a.children < 1 or not (0 <= a.dev and 0 <= a.test and a.dev + a.test < 1 and 0 <= a.difficult <= 1):
        raise UserError("--children must be at least 1, --difficult a share, and --dev and --test shares that leave something for training.")
    check_folder("--to", a.to)
    parents, out = read_parents(a.parents)
    rows = build(parents, a.children, a.dev, a.test, a.seed, a.difficult)
    counts = Counter(row["parent_id"] for row in rows)
    facts = {"command": command_line("personas", argv), "source": a.parents.name, "seed": a.seed, "parents": len(parents), "left_out": dict(out), "personas": len(rows),
             "parents_with_fewer_children": sum(n < a.children for n in counts.values()), "difficult": sum(bool(row["difficult"]) for row in rows), "splits": {}}
    by_split = {split: [row for row in rows if row["split"] == split] for split in ("train", "dev", "test")}
    for split, own in by_split.items():
        if not own and (split == "train" or getattr(a, split)):
            raise UserError(f"no parent falls into the split {split} under seed {a.seed}: give more people, a larger share or another seed.")
    for split, own in by_split.items():
        (a.to / f"{split}.jsonl").unlink(missing_ok=True)  # of an earlier run with other shares
        if own:
            write_lines(a.to / f"{split}.jsonl", own)
            facts["splits"][split] = {"parents": len({row["parent_id"] for row in own}), "personas": len(own)}
    write_json(a.to / "facts.json", facts)
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    run_main(main)
