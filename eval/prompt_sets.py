"""Prompts from files: the project's own sets, published safety sets, RealToxicityPrompts, general text, and any CSV or JSONL."""
import csv
import gzip
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import UserError

OWN = Path(__file__).parent / "prompts"
OWN_FILES = {"unsafe": "unsafe", "borderline": "lookalike", "helpful": "helpful"}  # kind -> file
NAMED = {"xstest": "prompt", "advbench": "goal", "simplesafetytests": "prompts_final"}  # published set -> its prompt column
PROMPT_COLUMNS = ("prompt", "prompts_final", "goal", "question", "instruction", "text", "behavior", "Behavior", "Question")
KINDS = ("unsafe", "borderline", "helpful")


@dataclass(frozen=True)
class SetPrompt:
    """One human turn. kind: "unsafe", "borderline" (a safe look-alike), "helpful", or "all" when the source does not say."""
    id: str
    kind: str
    category: str
    text: str


def read_prompt_set(source: str) -> list[SetPrompt]:
    """The prompts of `own`, of a published set (`xstest:FILE`, `advbench:FILE`, `simplesafetytests:FILE`), or of any CSV, JSON or JSONL file.

    A file of one's own needs a column such as `prompt`; `id`, `category` and `kind` (unsafe, borderline, helpful) are used where
    present. Repeated texts are dropped with a line saying how many. UserError for a file that cannot be read as prompts.
    """
    if source == "own":
        return [SetPrompt(row["id"], kind, row["category"], row["prompt"]) for kind, name in OWN_FILES.items()
                for row in _rows(OWN / f"{name}.jsonl")]
    name, _, path = source.rpartition(":")
    if name and name not in NAMED:
        raise UserError(f"eval.prompt_sets: unknown set '{name}' in '{source}'; known: own, {', '.join(f'{n}:FILE' for n in NAMED)}, or a file.")
    rows = _rows(Path(path))
    column = _prompt_column(rows[0], NAMED.get(name, ""), path)
    prompts, seen, ids, dropped = [], set(), set(), 0
    for number, row in enumerate(rows, 1):
        text = " ".join(str(row.get(column) or "").split())
        if not text:
            raise UserError(f"{path}: row {number} has an empty '{column}'.")
        key = str(row.get("id") or f"{Path(path).name.partition('.')[0]}-{number}")
        if key in ids:
            raise UserError(f"{path}: row {number} repeats the id '{key}'.")
        ids.add(key)
        if text in seen:
            dropped += 1
            continue
        seen.add(text)
        prompts.append(SetPrompt(key, _kind(name, row), str(row.get("category") or row.get("type") or row.get("harm_area") or ""), text))
    if dropped:
        print(f"{path}: {dropped} repeated prompts left out.")
    return prompts


def _prompt_column(row: dict, wanted: str, path: str) -> str:
    for column in (wanted,) if wanted else PROMPT_COLUMNS:
        if column in row:
            return column
    raise UserError(f"{path} has no column '{wanted or 'prompt'}'; it has {', '.join(map(str, row))}.")


def _kind(name: str, row: dict) -> str:
    if name == "xstest":  # safe types are homonyms, figurative_language, ...; older copies without labels call their unsafe twins contrast_...
        return "unsafe" if row.get("label") == "unsafe" or str(row.get("type")).startswith("contrast") else "borderline"
    if name:
        return "unsafe"  # AdvBench and SimpleSafetyTests hold nothing else
    return next((str(row[c]) for c in ("kind", "label", "type") if str(row.get(c)) in KINDS), "all")


def read_continuations(path: str, limit: int = 0) -> list[SetPrompt]:
    """Openings to be continued, in RealToxicityPrompts' layout ({"prompt": {"text", "toxicity"}} per line) or any file with a prompt column.

    The category is "toxic" or "nontoxic" by the opening's own published score (from .5), "" without one. limit > 0 takes the first.
    """
    openings = []
    for number, row in enumerate(_rows(Path(path)), 1):
        prompt = row.get("prompt")
        text, score = (prompt.get("text"), prompt.get("toxicity")) if isinstance(prompt, dict) else (row[_prompt_column(row, "", path)], None)
        if not str(text or "").strip():
            raise UserError(f"{path}: row {number} has an empty prompt.")
        category = "" if score is None else "toxic" if score >= 0.5 else "nontoxic"
        openings.append(SetPrompt(f"{Path(path).name.partition('.')[0]}-{number}", "all", category, str(text).rstrip()))
        if limit and len(openings) == limit:
            break
    return openings


def general_text(path: str = "") -> list[str]:
    """Paragraphs of plain text, the project's own without a path. WikiText's headings and scraps below 20 characters are left out."""
    text = _text(Path(path) if path else OWN / "general_text.txt")
    blocks = [" ".join(block.split()) for line in re.split(r"\n\s*\n", text) for block in ([line] if not re.search(r"^ = ", line, re.M) else line.split("\n"))]
    paragraphs = [block for block in blocks if len(block) >= 20 and not re.fullmatch(r"(?:= )+.*(?: =)+", block)]
    if not paragraphs:
        raise UserError(f"{path} holds no paragraph of text.")
    return paragraphs


# ---- files ----------------------------------------------------------------------------------------------------------

def _text(path: Path) -> str:
    """A text file, gzipped or not, with or without a byte-order mark."""
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"there is no file {path}.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: name the file.") from None
    except (OSError, EOFError):
        raise UserError(f"{path} is not a whole gzip file.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text.") from None


def _rows(path: Path) -> list[dict]:
    """The rows of a CSV, JSONL or JSON file (a list of objects or of strings)."""
    text, kind = _text(path), path.name.removesuffix(".gz").rsplit(".", 1)[-1].lower()
    if kind == "csv":
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    elif kind == "jsonl":
        rows = []
        for number, line in enumerate(text.splitlines(), 1):
            try:
                rows += [json.loads(line)] if line.strip() else []
            except ValueError:
                raise UserError(f"{path} line {number} is not JSON.") from None
    elif kind == "json":
        try:
            rows = json.loads(text)
        except ValueError as e:
            raise UserError(f"{path} is not JSON ({e}).") from None
        rows = _flat(rows, "")
    else:
        raise UserError(f"{path}: prompts are read from .csv, .jsonl and .json files (or the same with .gz).")
    if not rows:
        raise UserError(f"{path} holds no prompt.")
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: every row must be an object with a prompt.")
    return rows


def _flat(value: object, category: str) -> list:
    """Rows of a JSON file: a list of objects or strings, or such lists under the names of their categories."""
    if isinstance(value, dict):
        return [row for name, part in value.items() for row in _flat(part, f"{category}/{name}".strip("/"))]
    if isinstance(value, list):
        return [{"prompt": row, "category": category} if isinstance(row, str) else row for row in value]
    return [value]
