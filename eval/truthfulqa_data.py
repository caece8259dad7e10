"""TruthfulQA's questions, whatever file they came from: the repository's mc_task.json and TruthfulQA.csv, or the Hub's two tables."""
import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from data.sources import load_hub, read_rows
from runtime.checkpoint import file_hash, without_local_paths
from runtime.errors import UserError

HUB = "truthfulqa/truthful_qa"
NO_COMMENT = "I have no comment."  # the benchmark counts it among the true answers to every question


@dataclass(frozen=True)
class Item:
    """A question; what a file does not say of it is empty. Choices are (text, 1 true or 0 false), in the file's order."""
    question: str
    mc1: tuple[tuple[str, int], ...] = ()
    mc2: tuple[tuple[str, int], ...] = ()
    best: str = ""
    best_incorrect: str = ""
    true: tuple[str, ...] = ()
    false: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """16 hex digits of the question, the same whatever file it came from."""
        return hashlib.sha256(" ".join(self.question.split()).encode()).hexdigest()[:16]

    @property
    def mc0(self) -> tuple[tuple[str, int], ...]:
        return ((self.best, 1), (self.best_incorrect, 0)) if self.best and self.best_incorrect else ()


def parse_choices(row: dict) -> dict:
    """A row of mc_task.json ({text: label}) or of the Hub's multiple_choice ({"choices": [...], "labels": [...]}) as Item's fields."""
    found = {}
    for name in ("mc1", "mc2"):
        targets = row[f"{name}_targets"]
        pairs = zip(targets["choices"], targets["labels"], strict=True) if set(targets) == {"choices", "labels"} else targets.items()
        found[name] = tuple((text, int(label)) for text, label in pairs)
        if {label for _, label in found[name]} != {0, 1} or not all(text.strip() for text, _ in found[name]):
            raise ValueError(f"{name}_targets of {row['question']!r} need a true and a false choice, none of them empty")
    return {"question": row["question"].strip()} | found


def parse_answers(row: dict) -> dict:
    """A row of TruthfulQA.csv ("Correct Answers": "a; b") or of the Hub's generation ("correct_answers": [...]) as Item's fields."""
    row = {key.lower().replace(" ", "_"): value for key, value in row.items()}
    true, false = (tuple(dict.fromkeys(map(_ended, filter(str.strip, value.split(";") if isinstance(value, str) else value))))
                   for value in (row["correct_answers"], row["incorrect_answers"]))
    return {"question": row["question"].strip(), "true": true if NO_COMMENT in true else (*true, NO_COMMENT), "false": false,
            "best": _ended(row["best_answer"]), "best_incorrect": _ended(row.get("best_incorrect_answer") or "")}


def _ended(text: str) -> str:
    """An answer with the full stop that the benchmark's choices have."""
    text = text.strip()
    return text + "." if text and not text.endswith(".") else text


def read_items(data: str) -> tuple[list[Item], dict[str, str]]:
    """(the questions, {source: sha256 of its content}) of a folder with mc_task.json and TruthfulQA.csv, or of the Hub or a copy of its files. UserError."""
    folder, hashes = Path(data), {}
    if folder.is_file():
        raise UserError(f"--data: {data} is a file: name the folder that holds mc_task.json and TruthfulQA.csv.")
    if folder.is_dir() and not (folder / "multiple_choice").is_dir():
        try:
            mc = json.loads((folder / "mc_task.json").read_text(encoding="utf-8"))
            with open(folder / "TruthfulQA.csv", encoding="utf-8-sig", newline="") as file:  # it begins with a byte-order mark
                answers = list(csv.DictReader(file))
        except FileNotFoundError as e:
            raise UserError(f"--data: there is no {Path(e.filename).name} in {folder}; both files are in sylinrl/TruthfulQA.") from None
        except (ValueError, csv.Error) as e:
            raise UserError(f"--data: a file in {folder} is damaged ({type(e).__name__}: {e}).") from None
        hashes = {name: file_hash(folder / name) for name in ("mc_task.json", "TruthfulQA.csv")}
    else:
        tables = {}
        for name in ("multiple_choice", "generation"):
            tables[name] = [row for part in load_hub(f"{data}:{name}", [], "--data") for _, row in read_rows(part)]
            hashes[f"{without_local_paths(data)}:{name}"] = hashlib.sha256(json.dumps(tables[name], sort_keys=True).encode()).hexdigest()[:16]
        mc, answers = tables["multiple_choice"], tables["generation"]
    merged: dict[str, dict] = {}
    try:
        for fields in (*map(parse_choices, mc), *map(parse_answers, answers)):
            merged.setdefault(" ".join(fields["question"].split()), {}).update(fields)
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        raise UserError(f"--data: {data} is not laid out as TruthfulQA is ({type(e).__name__}: {e}).") from None
    if not merged:
        raise UserError(f"--data: there is no question in {data}.")
    return [Item(**fields) for fields in merged.values()], hashes
