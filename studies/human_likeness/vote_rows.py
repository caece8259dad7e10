"""Reading a file of votes: one row per session, in the layout of the published human study. What cannot be used is named, never guessed."""
import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from data.sources import long_cells
from runtime.errors import UserError
from studies.human_likeness import dialogue

LEVELS = {"certainly a": 2, "likely a": 1, "tie": 0, "likely b": -1, "certainly b": -2}
EMPTY = ("", "none", "nan")
COLUMNS = ("session_id", "user_id", "persona_id", "timestamp_start", "timestamp_end", "turns_a", "turns_b", "hl_score", "is_completed", "left_model",
           "right_model", "dialogue_a", "dialogue_b")
MASK = re.compile(r"[x*#?•._-]*|masked|redacted|anonymi[sz]ed|none|nan", re.IGNORECASE)


@dataclass(frozen=True)
class Vote:
    """One usable row: `level` from 2 (certainly the left one) to -2 (certainly the right one), the patients' (left, right) words and turns."""
    row: int
    session: str
    user: str
    persona: str
    left: str
    right: str
    level: int
    minutes: float | None
    words: tuple[float, float]
    turns: tuple[float, float]


@dataclass
class Votes:
    """A file of votes: what can be used, how many rows could not and why, and what a reader must know before believing a figure."""
    votes: list[Vote]
    counts: dict[str, int]
    masked: bool
    sha256: str
    not_used: dict[int, str] = field(default_factory=dict)  # row -> why
    warnings: list[str] = field(default_factory=list)

    @property
    def models(self) -> list[str]:
        return sorted({model for vote in self.votes for model in (vote.left, vote.right)})


def read_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]], str]:
    """(header, [(row as a spreadsheet counts, {column: cell})], sha256). A byte-order mark is dropped, and cells that a row lacks at its end are empty.

    UserError for what is no CSV file, and for a row with more cells than the header.
    """
    try:
        raw = path.read_bytes()
        with long_cells():
            table = list(csv.reader(io.StringIO(raw.decode("utf-8-sig"), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a CSV file in UTF-8 ({error}).") from None
    if not table:
        raise UserError(f"{path} is empty.")
    header = table[0]
    if long := [n for n, cells in enumerate(table[1:], start=2) if len(cells) > len(header)]:
        raise UserError(f"{path} has more cells than columns in row {some(long)}: is a comma not in quotation marks?")
    rows = [(n, dict(zip(header, cells + [""] * (len(header) - len(cells))))) for n, cells in enumerate(table[1:], start=2) if any(map(str.strip, cells))]
    return header, rows, hashlib.sha256(raw).hexdigest()


def minutes_between(start: str, end: str) -> float | None:
    """Minutes from one ISO 8601 time to another; None when either is none, as 28:41.6 is, what a spreadsheet leaves of a date and time."""
    try:
        a, b = (datetime.fromisoformat(cell.strip().replace("Z", "+00:00")) for cell in (start, end))
        return (b - a).total_seconds() / 60
    except (ValueError, TypeError):
        return None


def patient(cell: str) -> tuple[float, float]:
    """(words, turns) of the patient in a cell whose line breaks are written as backslash and n."""
    found = dialogue.features(dialogue.turns(dialogue.clean(cell.replace("\\n", "\n"))[0]), "P")
    return found["words"], found["turns"]


def some(rows: Sequence[int]) -> str:
    """Row numbers for a message: all of a few, the first ten of many."""
    return ", ".join(map(str, rows[:10])) + (f" and {len(rows) - 10} more" if len(rows) > 10 else "")


def read_votes(path: Path) -> Votes:
    """The usable votes of a file in the layout of `COLUMNS`. UserError for a missing column, unknown labels (rows named), or fewer than two votes."""
    header, rows, sha256 = read_csv(path)
    if lost := [column for column in COLUMNS if column not in header]:
        raise UserError(f"{path} has no column {', '.join(lost)}: a file of votes has {', '.join(COLUMNS)}.")
    label = {n: " ".join(row["hl_score"].casefold().split()) for n, row in rows}
    if wrong := [n for n in label if label[n] not in LEVELS and label[n] not in EMPTY]:
        raise UserError(f"{path}: hl_score is none of {', '.join(LEVELS)} or empty in row {some(wrong)}.")
    found = Votes([], {"rows": len(rows), "unrated": sum(label[n] in EMPTY for n in label), "incomplete": 0, "rated but incomplete": 0}, False, sha256)
    seen: dict[str, int] = {}
    for n, row in rows:
        cell = {column: row[column].strip() for column in COLUMNS}
        done = cell["is_completed"].casefold()
        if done not in ("true", "false"):
            found.not_used[n] = "is_completed is neither true nor false"
        elif done == "false":
            found.counts["incomplete"] += 1
            found.counts["rated but incomplete"] += label[n] not in EMPTY
        elif label[n] not in EMPTY:
            if not cell["left_model"] or not cell["right_model"] or cell["left_model"] == cell["right_model"]:
                found.not_used[n] = "a model is missing" if not cell["left_model"] or not cell["right_model"] else "the same model on both sides"
            elif not cell["persona_id"] or not cell["session_id"]:
                found.not_used[n] = "no persona_id or no session_id"
            elif cell["session_id"] in seen:
                found.not_used[n] = f"its session was counted in row {seen[cell['session_id']]}"
            else:
                seen[cell["session_id"]] = n
                (words_a, turns_a), (words_b, turns_b) = patient(cell["dialogue_a"]), patient(cell["dialogue_b"])
                found.votes.append(Vote(n, cell["session_id"], cell["user_id"], cell["persona_id"], cell["left_model"], cell["right_model"],
                                        LEVELS[label[n]], minutes_between(cell["timestamp_start"], cell["timestamp_end"]), (words_a, words_b), (turns_a, turns_b)))
    found.counts["used"] = len(found.votes)
    if len(found.votes) < 2:
        why = "; ".join(sorted(set(map(str, found.not_used.values())))[:3])
        raise UserError(f"{path} has {len(found.votes)} completed and rated session(s) that can be used: nothing can be compared" + (f" ({why})." if why else "."))
    _warn(found, rows)
    return found


def _warn(found: Votes, rows: list[tuple[int, dict[str, str]]]) -> None:
    """Set `masked` and fill `warnings`."""
    ids = {vote.user for vote in found.votes}
    found.masked = len(ids) < 2 or any(MASK.fullmatch(name) for name in ids)
    if found.masked:
        found.warnings.append("user_id is masked: votes of one rater cannot be told apart, so no interval covers another set of raters.")
    no_time = [vote.row for vote in found.votes if vote.minutes is None]
    if no_time:
        found.warnings.append(f"timestamps are no times (ISO 8601) in {len(no_time)} of {len(found.votes)} used rows: row {some(no_time)}.")
    if backwards := [vote.row for vote in found.votes if vote.minutes is not None and vote.minutes < 0]:
        found.warnings.append(f"timestamp_end lies before timestamp_start in row {some(backwards)}.")
    times = Counter(row["session_id"].strip() for _, row in rows)
    if twice := [n for n, row in rows if times[row["session_id"].strip()] > 1]:
        found.warnings.append(f"a session_id stands in more than one row; its first completed vote counts: row {some(twice)}.")
    if found.not_used:
        found.warnings.append(f"{len(found.not_used)} rows cannot be used: " + "; ".join(f"row {n}, {why}" for n, why in list(found.not_used.items())[:10]) + ".")
    if silent := [vote.row for vote in found.votes if not min(vote.turns)]:
        found.warnings.append(f"a dialogue without a turn of the patient, left out where lengths matter: row {some(silent)}.")
