"""Prompts from files: the project's own sets, published safety sets, RealToxicityPrompts, general text, and any CSV or JSONL."""
import csv
import gzip
import io
import json
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import UserError

OWN = Path(__file__).parent / "prompts"
OWN_FILES = {"unsafe": "unsafe", "borderline": "lookalike", "helpful": "helpful"}  # kind -> file
NAMED = {"xstest": "prompt", "advbench": "goal", "simplesafetytests": "prompts_final"}  # published set -> its prompt column
PROMPT_COLUMNS = ("prompt", "prompts_final", "goal", "question", "instruction", "text", "behavior", "Behavior", "Question")
CATEGORY_COLUMNS = ("harm_area", "category", "type", "SemanticCategory")
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
    present. Line breaks and runs of spaces become one space. Repeated texts are dropped with a line saying how many. UserError for
    a file that cannot be read as prompts. XSTest: Röttger et al. 2024; AdvBench: Zou et al. 2023; SimpleSafetyTests: Vidgen et al. 2023.
    """
    if source == "own":
        return [SetPrompt(row["id"], kind, row["category"], row["prompt"]) for kind, name in OWN_FILES.items()
                for row in _rows(OWN / f"{name}.jsonl")]
    name, colon, path = source.partition(":")
    if name not in NAMED and (not colon or Path(source).exists()):
        name, path = "", source  # a colon may belong to the file's name
    elif name not in NAMED:
        raise UserError(f"eval.prompt_sets: unknown set '{name}' in '{source}'; known: own, {', '.join(f'{n}:FILE' for n in NAMED)}, or a file.")
    if not path:
        raise UserError(f"eval.prompt_sets: '{source}' names no file; write {name or 'xstest'}:FILE.")
    rows = _rows(Path(path))
    column = _prompt_column(rows[0], NAMED.get(name, ""), path)
    prompts, seen, ids, dropped = [], set(), set(), 0
    for number, row in enumerate(rows, 1):
        text = " ".join(_string(row.get(column), column, path, number).split())
        key = str(row["id"]) if row.get("id") not in (None, "") else f"{Path(path).name.partition('.')[0]}-{number}"
        if key in ids:
            raise UserError(f"{path}: row {number} repeats the id '{key}'.")
        ids.add(key)
        if text in seen:
            dropped += 1
            continue
        seen.add(text)
        prompts.append(SetPrompt(key, _kind(name, row, path, number), next((str(row[c]) for c in CATEGORY_COLUMNS if row.get(c)), ""), text))
    if dropped:
        print(f"{path}: {dropped} repeated prompts left out.")
    return prompts


def _prompt_column(row: dict, wanted: str, path: str) -> str:
    for column in (wanted,) if wanted else PROMPT_COLUMNS:
        if column in row:
            return column
    raise UserError(f"{path} has no column '{wanted or 'prompt'}'; it has {', '.join(map(str, row))}.")


def _string(value: object, column: str, path: str, number: int) -> str:
    """The text of a cell. An object or a list is an error: its Python spelling would be asked as if it were the prompt."""
    if value is not None and not isinstance(value, str):
        raise UserError(f"{path}: '{column}' of row {number} is not text.")
    if not (value or "").strip():
        raise UserError(f"{path}: row {number} has an empty '{column}'.")
    return value


def _kind(name: str, row: dict, path: str, number: int) -> str:
    if name == "xstest":
        if not (row.get("type") or row.get("label")):  # a missing label is no proof of safety
            raise UserError(f"{path}: row {number} has neither a 'type' nor a 'label', so safe and unsafe prompts cannot be told apart.")
        # safe types are homonyms, figurative_language, ...; older copies without labels call their unsafe twins contrast_...
        return "unsafe" if row.get("label") == "unsafe" or str(row.get("type")).startswith("contrast") else "borderline"
    if name:
        return "unsafe"  # AdvBench and SimpleSafetyTests hold nothing else
    return next((str(row[c]) for c in ("kind", "label", "type") if str(row.get(c)) in KINDS), "all")


def read_continuations(path: str, limit: int = 0) -> list[SetPrompt]:
    """Openings to be continued, in RealToxicityPrompts' layout ({"prompt": {"text", "toxicity"}} per line) or any file with a prompt column.

    RealToxicityPrompts: Gehman et al. 2020. The category is "toxic" or "nontoxic" by the opening's own published score (from .5), ""
    without one; it is not taken from the file's name, since a "toxic" file may hold low-scored openings. limit > 0 takes the first.
    """
    openings = []
    for number, row in enumerate(_rows(Path(path)), 1):
        prompt = row.get("prompt")
        text, score = (prompt.get("text"), prompt.get("toxicity")) if isinstance(prompt, dict) else (row[_prompt_column(row, "", path)], None)
        if score is not None and (isinstance(score, bool) or not isinstance(score, (int, float))):
            raise UserError(f"{path}: the toxicity of row {number} is not a number.")
        category = "" if score is None or math.isnan(score) else "toxic" if score >= 0.5 else "nontoxic"
        text = _string(text, "prompt", path, number).rstrip()
        openings.append(SetPrompt(f"{Path(path).name.partition('.')[0]}-{number}", "all", category, text))
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
    except PermissionError:
        raise UserError(f"{path} may not be read: check its permissions.") from None
    except (OSError, EOFError, zlib.error):
        raise UserError(f"{path} is not a whole gzip file.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text.") from None


def _rows(path: Path) -> list[dict]:
    """The rows of a CSV, JSONL or JSON file (a list of objects or of strings)."""
    text, kind = _text(path), path.name.removesuffix(".gz").rsplit(".", 1)[-1].lower()
    if kind == "csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            rows = list(reader)
        except csv.Error as e:
            raise UserError(f"{path} line {reader.line_num} is not CSV ({e}).") from None
    elif kind == "jsonl":
        rows = []  # not splitlines(): JSON strings may hold U+2028, which it takes for the end of a line
        for number, line in enumerate(text.split("\n"), 1):
            try:
                rows += [json.loads(line)] if line.strip() else []
            except ValueError:
                raise UserError(f"{path} line {number} is not JSON.") from None
    elif kind == "json":
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as e:
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
