"""Personas and dialogues in one SQLite file, append-only: one transaction each, so that a kill loses nothing that was stored and half-stores nothing.

    python -m studies.human_likeness.storage STORE.sqlite --to DIALOGUES.csv [--split train]                  what judge.py and pairs.py read
    python -m studies.human_likeness.storage STORE.sqlite --to PROMPTS.csv --prompts-only --split test        what a model is sampled on

The study rebuilt here rewrote a whole CSV after every row: quadratic work, and a crash in the middle of a write lost all of it.
"""
import argparse
import csv
import json
import os
import re
import shlex
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data.sources import long_cells
from runtime.errors import UserError, check_file, run_main
from studies.human_likeness.dialogue import text_hash

TABLES = """
CREATE TABLE IF NOT EXISTS plan (one INTEGER PRIMARY KEY CHECK (one = 1), settings TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS personas (persona_id TEXT PRIMARY KEY, parent_id TEXT NOT NULL, split TEXT NOT NULL, source TEXT NOT NULL, prompt TEXT NOT NULL,
    portrait TEXT NOT NULL, writer TEXT NOT NULL, settings TEXT NOT NULL, made_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS dialogues (persona_id TEXT NOT NULL REFERENCES personas, k INTEGER NOT NULL, text TEXT NOT NULL, text_hash TEXT NOT NULL,
    generator TEXT NOT NULL, settings TEXT NOT NULL, made_at TEXT NOT NULL, PRIMARY KEY (persona_id, k));
""" + "".join(f"CREATE TRIGGER IF NOT EXISTS {table}_{event.lower()} BEFORE {event} ON {table} BEGIN SELECT RAISE(ABORT, 'append-only'); END;\n"
              for table in ("plan", "personas", "dialogues") for event in ("UPDATE", "DELETE"))


def open_store(path: Path, plan: Mapping[str, Any] | None = None) -> sqlite3.Connection:
    """The store; with a `plan`, made where there is none. UserError for a file of another kind and for a store that was begun with another plan.

    The plan is what decides which model writes which dialogue: to change it half-way would leave a store that no single run can make.
    """
    if plan is None:
        try:
            db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
            db.execute("SELECT persona_id FROM dialogues LIMIT 1")
        except sqlite3.Error as error:
            raise UserError(f"{path} cannot be read as a store ({error}).") from None
        return db
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        db = sqlite3.connect(path, timeout=60, isolation_level=None)
        db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;" + TABLES)
        db.execute("INSERT OR IGNORE INTO plan VALUES (1, ?)", (json.dumps(plan, sort_keys=True),))
        kept, asked = json.loads(db.execute("SELECT settings FROM plan").fetchone()[0]), json.loads(json.dumps(plan))
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path} cannot be used as a store ({error}).") from None
    if kept != asked:
        name = next(name for name in sorted({*kept, *asked}) if kept.get(name) != asked.get(name))
        raise UserError(f"{path} was begun with {name} = {kept.get(name)}, not {asked.get(name)}: give the same, or another --to.")
    return db


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Within it nobody else can write to the store at `path`, or ask for answers that are cached beside it. UserError at once when somebody does.

    The lock is SQLite's own, on an empty file beside the store: a killed run gives it back, and who only reads needs none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = sqlite3.connect(path.with_name(path.name + ".lock"), timeout=0, isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            raise UserError(f"another run is writing to {path}: run this command again when it has ended.") from None
        raise UserError(f"{path} cannot be written ({error}).") from None
    try:
        yield
    finally:
        lock.close()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def add_persona(db: sqlite3.Connection, persona_id: str, parent_id: str, split: str, source: str, prompt: str, portrait: Mapping[str, str], writer: str,
                settings: Mapping[str, Any]) -> None:
    """One persona with its prompt, in one transaction; `source` is the hash of what it was written from. UserError when its parent is in another split."""
    elsewhere = db.execute("SELECT split FROM personas WHERE parent_id = ? AND split <> ?", (parent_id, split)).fetchone()
    if elsewhere:
        raise UserError(f"parent {parent_id} is in the split {elsewhere[0]} already and cannot be in {split} too.")
    db.execute("INSERT INTO personas VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
               (persona_id, parent_id, split, source, prompt, json.dumps(portrait, ensure_ascii=False), writer, json.dumps(settings, sort_keys=True), _now()))


def add_dialogue(db: sqlite3.Connection, persona_id: str, k: int, text: str, generator: str, settings: Mapping[str, Any]) -> None:
    """Dialogue `k` (0, 1, ...) of a persona that is stored, in one transaction. ValueError when there is one already: nothing is ever replaced."""
    try:
        db.execute("INSERT INTO dialogues VALUES (?, ?, ?, ?, ?, ?, ?)",
                   (persona_id, k, text, text_hash(text), generator, json.dumps(settings, sort_keys=True), _now()))
    except sqlite3.IntegrityError as error:
        raise ValueError(f"dialogue {k} of {persona_id}: {error}") from None


def stored_personas(db: sqlite3.Connection) -> dict[str, tuple[str, str]]:
    """persona id -> (hash of what it was written from, prompt)."""
    return {persona: (source, prompt) for persona, source, prompt in db.execute("SELECT persona_id, source, prompt FROM personas")}


def stored_dialogues(db: sqlite3.Connection) -> set[tuple[str, int]]:
    """(persona id, k) of every dialogue."""
    return set(db.execute("SELECT persona_id, k FROM dialogues"))


def export(db: sqlite3.Connection, split: str = "") -> list[dict[str, str]]:
    """The dialogues as rows for judge.py and pairs.py, by persona and k, with the tags that the prompt asks for; `split`: of this one only."""
    found = db.execute("SELECT d.persona_id, p.prompt, d.k, d.generator, d.text, p.parent_id, p.split FROM dialogues d JOIN personas p USING (persona_id) "
                       "WHERE ? IN ('', p.split) ORDER BY d.persona_id, d.k", (split,))
    return [{"persona_id": persona, "prompt": prompt, "dialogue_id": f"{persona}/{k}", "model": generator, "dialogue": f"<dialogue>\n{text}\n</dialogue>",
             "parent_id": parent, "split": own} for persona, prompt, k, generator, text, parent, own in found]


def prompts(db: sqlite3.Connection, split: str = "") -> list[dict[str, str]]:
    """Every persona's prompt, by persona id, whether or not it has dialogues."""
    found = db.execute("SELECT persona_id, prompt FROM personas WHERE ? IN ('', split) ORDER BY persona_id", (split,))
    return [{"persona_id": persona, "prompt": prompt} for persona, prompt in found]


# ---- files, all or nothing ------------------------------------------------------------------------------------------------

def command_line(module: str, argv: Sequence[str]) -> str:
    """The command that made a result, as it can be published: of an absolute path its last part, and for an address URL."""
    def plain(word: str) -> str:
        parts = re.sub(r"[A-Za-z][\w+.-]*://.*", "URL", word, flags=re.DOTALL).split("=")
        return "=".join(Path(part).name if Path(part).is_absolute() else part for part in parts)
    return shlex.join(["python", "-m", f"studies.human_likeness.{module}", *map(plain, argv)])


def read_table(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV with a header. UserError for a file that is none, a missing column, a row with more or fewer cells, and no rows."""
    try:
        with long_cells(), open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in needed if name not in (reader.fieldnames or ())]:
                raise UserError(f"{path.name} has no column {missing[0]}; it has {', '.join(reader.fieldnames or ()) or 'none'}.")
            rows = []
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(f"{path.name} line {reader.line_num}: {'more' if None in row else 'fewer'} cells than the first line has columns.")
                rows.append(row)
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no table in UTF-8 ({error}).") from None
    if not rows:
        raise UserError(f"{path.name} has no rows.")
    return rows


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with equal keys as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(part, path)


def read_lines(path: Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    """JSON objects, one a line. UserError for a line that is none or lacks one of the `needed` keys, and for a file without lines."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # splitlines would also cut inside a text, at U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            missing = [name for name in needed if name not in row]
        except (ValueError, TypeError, RecursionError):
            row, missing = None, ["JSON object"]
        if missing or not isinstance(row, dict):
            raise UserError(f"{path} line {number} has no {missing[0] if missing else 'JSON object'}.")
        rows.append(row)
    if not rows:
        raise UserError(f"{path} is empty.")
    return rows


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("store", type=Path)
    a.add_argument("--to", type=Path, required=True, help="CSV")
    a.add_argument("--split", default="", help="of this split only; otherwise all")
    a.add_argument("--prompts-only", action="store_true", help="persona_id and prompt of every persona")
    a = a.parse_args(argv)
    check_file("--to", a.to, a.store)
    db = open_store(a.store)
    rows = (prompts if a.prompts_only else export)(db, a.split)
    if not rows:
        raise UserError(f"{a.store} has nothing{f' of the split {a.split}' if a.split else ''} to write.")
    write_table(a.to, rows)
    by_model = Counter(row.get("model", "") for row in rows)
    print(f"{len(rows):,} rows in {a.to}" + ("" if a.prompts_only else f": {', '.join(f'{name} {n:,}' for name, n in sorted(by_model.items()))}"))


if __name__ == "__main__":
    run_main(main)
