"""What the study's files hold: questions with their gold answers, and preference pairs made from them.

dpo_pairs_{easy,medium,hard,hard_improved}.jsonl hold one `Row` a line; data/prepare_pairs.py reads them as they are.
"""
import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from data.sources import parse_object, read_lines
from data.store import write_lines
from runtime.errors import UserError

LEVELS = ("easy", "medium", "hard", "hard_improved")
ABSTENTION = "I don't know: the context does not say."  # the chosen answer to a question that its context cannot answer
ABSTENTIONS = (ABSTENTION, "The context does not say, so I don't know.", "I can't tell: the answer is not in the context.")  # one sentence would be learnt by heart


@dataclass(frozen=True)
class Question:
    """A question as a source gives it; `answers` are all gold answers (aliases), none for a question its context cannot answer."""
    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    source: str  # "squad_v2", "nq", ...
    title: str = ""
    answer_in_context: bool = True  # found in `context` after normalisation; False too where there is no answer

    @property
    def answerable(self) -> bool:
        return bool(self.answers)


@dataclass(frozen=True)
class Row:
    """One preference pair. difficulty: measured (higher = harder), None = not measured."""
    id: str
    question: str
    context: str
    chosen: str
    rejected: str
    level: str  # one of LEVELS
    poison_type: str  # how `rejected` was made false: other_answer, entity_swap, number_swap, date_swap, logical_flaw, ..., made_up
    source: str
    chosen_is_true: bool = True
    difficulty: float | None = None


def row_id(*parts: str) -> str:
    """16 hex digits that depend on the parts alone: the same pair has the same id in every process."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]


def file_of(folder: Path, level: str) -> Path:
    """Where the pairs of a level lie."""
    return folder / f"dpo_pairs_{level}.jsonl"


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write rows as JSON lines, all or nothing; returns how many."""
    return write_lines(path, map(asdict, rows))


def read_rows(path: Path, level: str = "") -> Iterator[Row]:
    """The rows of a pair file: ours, or the published layout {prompt, context, chosen, rejected}, plain or .gz.

    A published row says neither level nor source: the level is the file's, the source "published". Whether its chosen answer is true
    is not said either: `flag_fabricated` finds out what can be found. UserError for a line that is neither.
    """
    known = {field.name for field in fields(Row)}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            found = parse_object(line)
            if "question" not in found and "prompt" in found:
                found["question"] = found["prompt"]
            given = {name: value for name, value in found.items() if name in known}
            given = {"context": "", "poison_type": "unknown", "source": "published", "level": level or level_of(path)} | {k: v for k, v in given.items() if v is not None}
            check_fields(given)
            if level and given["level"] != level:
                raise ValueError(f'"level" is "{given["level"]}" in a file of {level} pairs')
        except ValueError as error:
            raise UserError(f"{path.name} line {number}: {error}.") from None
        yield Row(**{"id": row_id(given["question"], given["chosen"], given["rejected"])} | given)


def check_fields(given: dict) -> None:
    """ValueError saying which field of a row is missing or of another type than `Row` says."""
    for name in ("question", "chosen", "rejected"):
        if not isinstance(given.get(name), str) or not given[name].strip():
            raise ValueError(f'"{name}" is missing, empty or no text')
    for name in ("id", "context", "poison_type", "source"):
        if name in given and not isinstance(given[name], str):
            raise ValueError(f'"{name}" is {given[name]!r}, not a text')
    difficulty = given.get("difficulty", 0.0)
    measured = isinstance(difficulty, (int, float)) and not isinstance(difficulty, bool) and math.isfinite(difficulty)
    if given["level"] not in LEVELS or not measured or not isinstance(given.get("chosen_is_true", True), bool):
        raise ValueError(f'"level" must be one of {", ".join(LEVELS)}, "difficulty" a number and "chosen_is_true" true or false')


def level_of(path: Path) -> str:
    """The level that a file's name says (the longest name first: hard_improved is not hard). UserError when it says none."""
    for level in sorted(LEVELS, key=len, reverse=True):
        if level in path.name.lower():
            return level
    raise UserError(f"{path.name}: the name says no level ({', '.join(LEVELS)}).")


def flag_fabricated(rows: list[Row]) -> list[Row]:
    """The rows with chosen_is_true = False where the same question has this very answer on the rejected side of another row.

    That is how the published curriculum files were built: up to two thirds of "hard" prefer one fabrication over another.
    """
    false = {(row.question, row.rejected) for row in rows}
    return [replace(row, chosen_is_true=False) if (row.question, row.chosen) in false else row for row in rows]
