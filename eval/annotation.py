"""CSV files: the table of results, and the two sheets on which people judge replies without knowing who wrote them, out and back in.

A sheet goes out blind, its key stays. Each annotator fills a copy of their own, in any spreadsheet; half-filled is fine. The key
holds a hash of what every row showed, so that a sheet of another run, or one whose replies were edited, cannot be mixed in.
"""
import csv
import hashlib
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.errors import UserError

PREFERENCES = {"a": "a", "b": "b", "tie": "tie", "both bad": "both bad", "both": "both bad"}
RATINGS = (1, 2, 3, 4, 5)
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # all but tab and line ends


# ---- out ------------------------------------------------------------------------------------------------------------

def safe_cell(text: str) -> str:
    """Text that a spreadsheet shows instead of running: a leading = + - @, tab or line break gets an apostrophe in front.

    A reply such as =HYPERLINK("...") is otherwise a formula on the annotator's machine (OWASP, "CSV injection"). Control characters,
    which an untrained model may write and no spreadsheet can hold, become the replacement character.
    """
    text = CONTROL.sub("\ufffd", text)
    return "'" + text if text.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def unguarded(text: str) -> str:
    """A cell as it was before `safe_cell`: some spreadsheets keep the apostrophe when they save, some take it for their own mark."""
    return text[1:] if text.startswith("'") and safe_cell(text[1:]) == text else text


def content_hash(*cells: str) -> str:
    """16 hex digits of what an annotator sees. Spreadsheets may re-wrap lines, drop the guard's apostrophe and save as Windows-1252, with
    ? for what that cannot write; none of this changes the hash, another word does."""
    shown = "\x1f".join(" ".join(CONTROL.sub("\ufffd", unguarded(cell)).split()) for cell in cells)
    plain = unicodedata.normalize("NFC", shown).encode("cp1252", errors="replace")
    return hashlib.sha256(re.sub(rb"\?+", b"?", plain)).hexdigest()[:16]


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """UTF-8 with a byte-order mark, without which Excel garbles anything beyond ASCII. Text cells are made safe, numbers stay."""
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for row in rows:
            writer.writerow([safe_cell(cell) if isinstance(cell, str) else cell for cell in row])


def write_pairwise(folder: Path, prompts: Sequence[tuple[str, str]], replies: Mapping[str, Sequence[str]], seed: int) -> None:
    """pairwise_preferences_for_annotation.csv and its key; prompts are (id, text), replies {system: [prompts]} of two systems.

    Which system is A is drawn per row by `seed`; the key is a file of its own, so that the sheet can be handed out blind.
    ValueError for ids that occur twice and for systems named like a vote: such a sheet could not be read back.
    """
    if len({name for name, _ in prompts}) < len(prompts) or set(replies) & set(PREFERENCES):
        raise ValueError(f"prompt ids must differ, and no system may be called one of {', '.join(PREFERENCES)}")
    (first, a), (second, b) = replies.items()
    swapped = np.random.default_rng(seed).random(len(prompts)) < 0.5
    sheet, key = [], []
    for (name, prompt), reply_a, reply_b, swap in zip(prompts, a, b, swapped):
        sheet.append((name, prompt, *((reply_b, reply_a) if swap else (reply_a, reply_b)), "", ""))
        key.append((name, *((second, first) if swap else (first, second)), content_hash(*sheet[-1][1:4])))
    write_csv(folder / "pairwise_preferences_for_annotation.csv",
              ("id", "prompt", "reply_A", "reply_B", "preference (A, B, tie, both bad)", "comment"), sheet)
    write_csv(folder / "pairwise_preferences_key.csv", ("id", "A", "B", "content"), key)


def write_helpfulness(folder: Path, prompts: Sequence[tuple[str, str]], replies: Mapping[str, Sequence[str]], seed: int) -> None:
    """helpfulness_for_annotation.csv: every reply of every system on its own row, shuffled by `seed`; the key beside it."""
    if len({name for name, _ in prompts}) < len(prompts):
        raise ValueError("prompt ids must differ, or the sheet could not be read back")
    rows = [(prompt_id, prompt, wrote[i], system) for i, (prompt_id, prompt) in enumerate(prompts) for system, wrote in replies.items()]
    sheet, key = [], []
    for k, i in enumerate(np.random.default_rng(seed).permutation(len(rows))):
        prompt_id, prompt, reply, system = rows[i]
        sheet.append((f"h{k:04d}", prompt, reply, "", ""))
        key.append((f"h{k:04d}", prompt_id, system, content_hash(prompt, reply)))
    write_csv(folder / "helpfulness_for_annotation.csv",
              ("id", "prompt", "reply", "helpfulness (1 useless to 5 excellent)", "comment"), sheet)
    write_csv(folder / "helpfulness_key.csv", ("id", "prompt_id", "system", "content"), key)


def write_comparison(folder: Path, rows: Sequence[Mapping], systems: Mapping[str, str], comparison: Mapping,
                     not_measured: Sequence[Mapping]) -> None:
    """model_comparison.csv: a row per metric; value, low, high and n per system, then the main paired difference. What was
    not measured has a row too, with the reason where its first value would be."""
    paired = {row["key"]: row for row in comparison["rows"]}
    first, second = systems[comparison["first"]], systems[comparison["second"]]
    header = ["metric", "key"] + [f"{label} {part}" for label in systems.values() for part in ("value", "low", "high", "n")]
    header += [f"{second} - {first} {part}" for part in ("difference", "low", "high")] + ["p", "p (Holm)", "test"]
    lines = []
    for row in rows:
        line = [row["label"], row["key"]]
        for system in systems:
            cell = row["values"].get(system)
            line += [cell["value"], cell["low"], cell["high"], cell["n"]] if cell else ["not measured", "", "", ""]
        found = paired.get(row["key"])
        if found:
            line += [found["difference"][part] for part in ("value", "low", "high")] + [found["p"], found["p_holm"], found["test"]]
        lines.append(line)
    lines += [[m["metric"], "", f"not measured: {m['reason']}"] for m in not_measured]
    write_csv(folder / "model_comparison.csv", header, lines)


# ---- back in --------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class PairwiseVotes:
    """Filled sheets with the blinding undone. A vote is the name of the preferred system, "tie", "both bad", or None where none was given."""
    systems: tuple[str, ...]                    # in alphabetical order
    items: list[str]                            # prompt ids, in the key's order
    votes: dict[str, dict[str, str | None]]     # annotator -> item -> vote
    missing: dict[str, int]                     # annotator -> items without a vote: empty cells and rows that are gone
    notices: list[str]                          # what was odd about a sheet and did not matter

    def table(self) -> list[list[str | None]]:
        """[items, annotators], for figures of agreement."""
        return [[votes[item] for votes in self.votes.values()] for item in self.items]

    def majority(self) -> dict[str, str | None]:
        """The most frequent vote on each item; "tie" when several are, None when nobody voted."""
        result: dict[str, str | None] = {}
        for item, row in zip(self.items, self.table()):
            ranked = Counter(vote for vote in row if vote is not None).most_common(2)
            result[item] = "tie" if len(ranked) == 2 and ranked[0][1] == ranked[1][1] else ranked[0][0] if ranked else None
        return result


@dataclass(frozen=True)
class HelpfulnessRatings:
    """Filled sheets with the shuffling undone; an item is one reply: (prompt id, system)."""
    systems: tuple[str, ...]                                # in alphabetical order
    items: list[tuple[str, str]]                            # in the key's order, which is the sheet's
    votes: dict[str, dict[tuple[str, str], int | None]]     # annotator -> item -> 1 (useless) to 5 (excellent), or None
    missing: dict[str, int]                                 # annotator -> items without a rating
    notices: list[str]                                      # what was odd about a sheet and did not matter

    def table(self) -> list[list[int | None]]:
        """[items, annotators], for figures of agreement."""
        return [[votes[item] for votes in self.votes.values()] for item in self.items]

    def mean(self) -> dict[tuple[str, str], float | None]:
        """The mean rating of each item over those who rated it; None when nobody did."""
        rated = [[rating for rating in row if rating is not None] for row in self.table()]
        return {item: sum(row) / len(row) if row else None for item, row in zip(self.items, rated)}


def _decode(path: Path, notices: list[str]) -> str:
    """The text of a CSV file in UTF-8, or in what Excel writes on Windows (then with a notice)."""
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}): give the path of a CSV file.") from None
    if raw.startswith((b"PK", b"\xd0\xcf\x11\xe0", b"\xff\xfe", b"\xfe\xff")) or b"\0" in raw:
        raise UserError(f"{path.name} is a workbook or UTF-16 text: save it from the spreadsheet as \"CSV UTF-8\".")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    try:
        text = raw.decode("cp1252")
    except UnicodeDecodeError:
        raise UserError(f"{path.name} is neither UTF-8 nor Windows-1252 text: save it from the spreadsheet as \"CSV UTF-8\".") from None
    notices.append(f"{path.name} is not UTF-8 and was read as Windows-1252")
    return text


def _read_rows(path: Path, columns: Sequence[str], notices: list[str]) -> list[tuple[int, list[str]]]:
    """(row number as a spreadsheet counts, cells of `columns`) of every row with an id. A column is named by the first word of its
    header; commas, semicolons (Excel in much of Europe) and tabs separate cells; empty rows are skipped, short ones filled up."""
    text = _decode(path, notices)
    begins = re.match(r'"?id"?\s*([,;\t])', text, re.IGNORECASE)
    if not begins:
        raise UserError(f"{path.name}: the first row is not the header that was exported, beginning with `id`; put it back.")
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=begins.group(1)))
    except csv.Error as e:
        raise UserError(f"{path.name} is no CSV file ({e}): save it from the spreadsheet as \"CSV UTF-8\".") from None
    header = [cell.strip().lower().split(" (")[0] for cell in rows[0]]
    if lost := [column for column in columns if column.lower() not in header]:
        raise UserError(f"{path.name} has no column `{lost[0]}`: use the sheet as it was exported" +
                        (" by this version (run the evaluation again)." if lost == ["content"] else "."))
    places = [header.index(column.lower()) for column in columns]
    found, seen = [], {}
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        row += [""] * (len(header) - len(row))
        cells = [unguarded(row[place]) for place in places]
        name = cells[0] = cells[0].strip()
        if name in seen:
            raise UserError(f"{path.name}, row {number}: id {name!r} stands in row {seen[name]} already; keep one of the two.")
        seen[name] = number
        found.append((number, cells))
    return found


def _read_sheets(sheets: Sequence[Path], key: Path, key_columns: Sequence[str], texts: Sequence[str], answer: str,
                 parse: Callable[[str], object]) -> tuple[dict[str, list[str]], dict[str, dict[str, object]], list[str]]:
    """(id -> the key's cells, annotator -> id -> parsed answer, notices). Every row must show what the key says that was exported."""
    notices: list[str] = []
    known = {name: cells for _, (name, *cells) in _read_rows(key, ("id", *key_columns, "content"), notices)}
    answers: dict[str, dict[str, object]] = {}
    for sheet in sheets:
        if sheet.stem in answers:
            raise UserError(f"two sheets are called {sheet.stem}: a sheet is named after its annotator, so give each another name.")
        given = answers[sheet.stem] = {}
        for number, (name, *shown, cell) in _read_rows(sheet, ("id", *texts, answer), notices):
            where = f"{sheet.name}, row {number}"
            if name not in known:
                raise UserError(f"{where}: id {name!r} is not in {key.name}; give the key that was exported with this sheet.")
            if content_hash(*shown) != known[name][-1]:
                raise UserError(f"{where} (id {name}): its texts are not the ones exported with {key.name}; use the sheet of this run, or copy "
                                f"the column `{answer}` into a fresh one.")
            if cell.strip():
                try:
                    given[name] = parse(cell)
                except ValueError as e:
                    raise UserError(f"{where} (id {name}): {e}.") from None
    if not any(answers.values()):
        raise UserError(f"no sheet holds an answer: fill the column `{answer}`, one copy of the sheet per annotator, and name the copies.")
    return known, answers, notices


def _preference(cell: str) -> str:
    word = " ".join(re.sub(r"[-_]", " ", cell).lower().split())
    if word not in PREFERENCES:
        raise ValueError(f"preference {cell.strip()!r} is none of A, B, tie, both bad")
    return PREFERENCES[word]


def _rating(cell: str) -> int:
    try:
        value = float(cell.strip().replace(",", "."))  # 4,0 is what Excel writes in much of Europe
    except ValueError:
        value = 0.0
    if value not in RATINGS:
        raise ValueError(f"rating {cell.strip()!r} is not a whole number from 1 to 5")
    return int(value)


def read_pairwise(sheets: Sequence[Path], key: Path) -> PairwiseVotes:
    """Votes from filled copies of pairwise_preferences_for_annotation.csv, one per annotator (named by the file's stem).

    A vote is A, B, tie or "both bad" ("both" for short) in any case. UserError, naming sheet and row: any other word, an id twice or
    unknown, texts that are not the exported ones, a lost column, a file that is no CSV.
    """
    known, answers, notices = _read_sheets(sheets, key, ("A", "B"), ("prompt", "reply_A", "reply_B"), "preference", _preference)
    meaning = {item: {"a": a, "b": b, "tie": "tie", "both bad": "both bad", None: None} for item, (a, b, _) in known.items()}
    votes = {annotator: {item: meaning[item][given.get(item)] for item in known} for annotator, given in answers.items()}
    systems = tuple(sorted({system for a, b, _ in known.values() for system in (a, b)}))
    return PairwiseVotes(systems, list(known), votes, {name: list(given.values()).count(None) for name, given in votes.items()}, notices)


def read_helpfulness(sheets: Sequence[Path], key: Path) -> HelpfulnessRatings:
    """Ratings from filled copies of helpfulness_for_annotation.csv, one per annotator (named by the file's stem).

    A rating is a whole number from 1 to 5, such as 4, 4.0 or 4,0. UserError as in `read_pairwise`.
    """
    known, answers, notices = _read_sheets(sheets, key, ("prompt_id", "system"), ("prompt", "reply"), "helpfulness", _rating)
    items = {name: (prompt_id, system) for name, (prompt_id, system, _) in known.items()}
    votes = {annotator: {item: given.get(name) for name, item in items.items()} for annotator, given in answers.items()}
    return HelpfulnessRatings(tuple(sorted({system for _, system in items.values()})), list(items.values()), votes,
                              {name: list(given.values()).count(None) for name, given in votes.items()}, notices)
