"""Where rows come from: files of several kinds or a Hub data set, listed as parts and read one row at a time.

Preference pairs and the base stage's plain text are read through the same few functions.

A part is one file (or one split of a Hub data set) with the subset it belongs to and the split its name says.
HH itself comes as harmless-base/train.jsonl.gz and so on; a flat folder of harmless-base.jsonl.gz files works as well.
"""
import csv
import gzip
import hashlib
import json
import logging
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from runtime.config import Config
from runtime.errors import UserError, is_disk_full
from tokenizer import ASSISTANT, HUMAN

SPLITS = ("train", "val", "test")
SPLIT_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
               "test": "test", "testing": "test"}
SPLIT_WORD = re.compile(rf"(?<![a-z0-9])(?:{'|'.join(SPLIT_WORDS)})(?![a-z0-9])[-_.\s]?", re.IGNORECASE)
PAIR_KINDS = (".jsonl", ".json", ".parquet")
TEXT_KINDS = (".jsonl", ".json", ".parquet", ".txt")
HH_SUBSETS = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
NOT_PAIRS = "red-team-attempts"  # lies beside the four subsets in HH's own repository and holds no pairs
PASSAGE = 1 << 14  # characters after which running text is cut into documents, at a line's end
VALUES = ("level", "margin", "score_chosen", "score_rejected", "chosen_is_true")  # fields of a pair that are no text; a .csv file has nothing else
SPEAKERS = {"human": HUMAN, "user": HUMAN, "assistant": ASSISTANT}

# Characters that mean nothing here, cost tokens and hide that two texts are the same. Tabs, emoji joiners and all letters stay.
NEWLINES = "\r\x85\u2028\u2029"
SPACES = "\u00a0\u202f\u2007"  # spaces that forbid a line break
INVISIBLE = "\u200b\u2060\ufeff\x7f" + "".join(map(chr, [*range(9), 11, 12, *range(14, 32)]))  # zero-width, control characters
HALVES = "".join(map(chr, range(0xD800, 0xE000)))  # half surrogate pairs: JSON can hold one alone, no valid text does
PLAIN = (dict.fromkeys(map(ord, NEWLINES), "\n") | dict.fromkeys(map(ord, SPACES), " ")
         | dict.fromkeys(map(ord, INVISIBLE), "") | dict.fromkeys(map(ord, HALVES), "\ufffd"))
ODD = re.compile(f"[{NEWLINES}{SPACES}{INVISIBLE}{HALVES[0]}-{HALVES[-1]}]")


@dataclass(frozen=True)
class Part:
    """One file, or one split of a Hub data set (then `table` is the loaded split and `path` is None)."""
    name: str           # for messages and meta.json
    subset: str
    split: str          # train, val or test; "" when nothing in the name says so
    path: Path | None = None
    table: Any = None


# ---- listing --------------------------------------------------------------------------------------------------------

def kind_of(path: Path) -> str:
    """The extension that says how to read a file: ".jsonl" for both a.jsonl and a.jsonl.gz."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def named_split(text: str) -> str:
    """The split a file or folder name says: "train", "val" or "test"; "" when it says none, or two different ones."""
    found = {SPLIT_WORDS[word.lower().rstrip('-_. ')] for word in SPLIT_WORD.findall(text)}
    return found.pop() if len(found) == 1 else ""


def describe(path: Path, inside: list[str], outside: str) -> tuple[str, str]:
    """(subset, split) of a file, from its name and then from the names of the folders it lies in, the nearest first.

    harmless-base/train.jsonl.gz and harmless-base-train.jsonl and train/harmless-base.json are all ("harmless-base", "train").
    `inside` are the folders below the one the user gave; `outside` is that one, which may be called anything: it says no split.
    """
    stem = Path(path.name.removesuffix(".gz")).stem
    stem = re.sub(r"[-_.]?\d+[-_]of[-_]\d+$", "", stem)  # train-00000-of-00001.parquet
    split = next(filter(None, map(named_split, [stem, *inside])), "")
    names = (SPLIT_WORD.sub("", name).strip("-_. ") for name in [stem, *inside, outside])
    return next(filter(None, names), "all"), split


def list_files(source: str, kinds: tuple[str, ...], option: str) -> list[Part]:
    """The parts in `source`: a folder (searched recursively) or comma-separated files and folders, in a fixed order.

    Raises UserError naming `option` when something is missing or holds no file of the `kinds`.
    """
    parts: list[Part] = []
    for item in filter(None, (piece.strip() for piece in source.split(","))):
        given = Path(item).expanduser()
        if given.is_file():
            if kind_of(given) not in kinds:
                raise UserError(f"{option}: {given} is none of {', '.join(kinds)} (each also with .gz).")
            parts.append(Part(item, *describe(given, [], given.resolve().parent.name), path=given))
        elif given.is_dir():
            for path in sorted(given.rglob("*")):
                inside = path.relative_to(given).parts
                unwanted = any(piece.startswith(".") or piece == NOT_PAIRS for piece in inside)
                if kind_of(path) in kinds and not unwanted and path.is_file():
                    parts.append(Part(str(path), *describe(path, list(inside[-2::-1]), given.resolve().name), path=path))
        else:
            raise UserError(f"{option}: there is no file or folder '{item}'.")
    if not parts:
        raise UserError(f"{option}: no {', '.join(kinds)} files (each also with .gz) in '{source}'.")
    return parts


def load_hub(dataset: str, subsets: Iterable[str], option: str) -> list[Part]:
    """The parts of a Hub data set ("owner/name" or "owner/name:config"), downloaded once into the `datasets` cache.

    A subset is a folder of the data set's repository. Rows stay on disk (memory-mapped). Raises UserError naming `option` when
    it cannot be had. `dataset` may also be a local folder of the same layout.
    """
    import datasets  # half a second to import, and not needed for files

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it reports every retry; one sentence at the end says it all
    name, _, config = dataset.partition(":")
    parts = []
    for subset in list(subsets) or [""]:
        try:
            loaded = datasets.load_dataset(name, config or None, data_dir=subset or None)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as e:
            if isinstance(e, OSError) and is_disk_full(e):
                raise
            where = f"{dataset} {subset}".strip()
            why = str(e).split("\n")[0].rstrip(". ")
            raise UserError(f"cannot load {where} from the Hub ({why}): check the network and the name, or point "
                            f"{option} at a folder or file that is already here.") from None
        for split, table in loaded.items():
            parts.append(Part(f"{dataset}/{subset or 'all'}/{split}", subset or "all", named_split(split), table=table))
    return parts


def select_subsets(parts: list[Part], wanted: list[str]) -> list[Part]:
    """The parts whose subset is wanted (all when `wanted` is empty). Raises UserError for an unknown name."""
    known = sorted({part.subset for part in parts})
    for name in wanted:
        if name not in known:
            raise UserError(f"--data.subsets: there is no subset '{name}'; known: {', '.join(known)}.")
    return [part for part in parts if not wanted or part.subset in wanted]


def text_parts(config: Config) -> list[Part]:
    """The parts of data.text_source that training may read: test files are left to the evaluation."""
    d = config.data
    if not d.text_source:
        return []
    if d.text_source == "hub":
        parts = load_hub(d.text_dataset, [], "--data.text_source")
    else:
        parts = list_files(d.text_source, TEXT_KINDS, "--data.text_source")
    return [part for part in parts if part.split != "test"]


# ---- fingerprints ---------------------------------------------------------------------------------------------------

class Content(NamedTuple):
    """What a part holds: sha256 of its (unzipped) content, number of rows or lines, bytes."""
    sha256: str
    rows: int
    bytes: int


def stamp(path: Path) -> list[Any]:
    """Path, size and modification time: cheap, and enough to see that nothing has changed since the last time."""
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def content(part: Part) -> Content:
    """Read a part once to fingerprint and measure it. A .gz file counts as the file inside it."""
    sha, rows, size, block = hashlib.sha256(), 0, 0, b""
    if part.table is None:
        blocks = _blocks(part.path)
    else:
        blocks = (json.dumps(row, sort_keys=True).encode() + b"\n" for row in _table_rows(part.table))
    for block in blocks:
        sha.update(block)
        rows, size = rows + block.count(b"\n"), size + len(block)
    rows += not block.endswith(b"\n") and size > 0  # a last line without its newline
    if part.table is None and kind_of(part.path) == ".parquet":
        table = _parquet(part.path).metadata
        rows, size = table.num_rows, sum(table.row_group(i).total_byte_size for i in range(table.num_row_groups))
    elif part.table is None and _is_json_list(part.path):
        rows = sum(1 for _ in read_rows(part))
    return Content(sha.hexdigest(), rows, size)


# ---- reading --------------------------------------------------------------------------------------------------------

def _blocks(path: Path, size: int = 1 << 20) -> Iterator[bytes]:
    with _opened(path) as file:
        while block := _guarded(path, file.read, size):
            yield block


def _opened(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def _guarded(path: Path, read: Any, *arguments: Any) -> bytes:
    """One read from a file that may be a broken .gz."""
    try:
        return read(*arguments)
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise UserError(f"{path} is a damaged .gz file ({str(e).rstrip('.')}): download or copy it again.") from None


def _parquet(path: Path) -> Any:
    import pyarrow  # comes with `datasets`
    import pyarrow.parquet
    try:
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as e:
        raise UserError(f"{path} is not a parquet file ({str(e).splitlines()[0]}).") from None


def _is_json_list(path: Path) -> bool:
    """True for a .json file that is one big list (others hold one object per line, like .jsonl)."""
    start = next(_blocks(path), b"") if kind_of(path) == ".json" else b""
    return start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a plain or gzip file, as bytes."""
    with _opened(path) as file:
        while line := _guarded(path, file.readline):
            yield line


def _table_rows(table: Any) -> Iterator[dict[str, Any]]:
    """The rows of a Hub data set, converted a thousand at a time: 20 times as fast as one by one."""
    return (row for batch in table.with_format("arrow").iter(batch_size=1000) for row in batch.to_pylist())


def read_rows(part: Part) -> Iterator[tuple[int, bytes | Any]]:
    """(number, row) for every row of a part; the number is the line in a .jsonl file and counts rows otherwise, from 1.

    Rows of .jsonl files are undecoded lines (so that one bad line can be reported or skipped), others are already objects.
    Only a .json file with one big list is held in memory whole.
    """
    if part.table is not None:
        yield from enumerate(_table_rows(part.table), 1)
    elif kind_of(part.path) == ".parquet":
        batches = _parquet(part.path).iter_batches(batch_size=1024)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
    elif _is_json_list(part.path):
        try:
            yield from enumerate(json.loads(b"".join(_blocks(part.path))), 1)
        except json.JSONDecodeError as e:
            raise UserError(f"{part.name} line {e.lineno}: not valid JSON ({e.msg}).") from None
        except UnicodeDecodeError as e:
            raise UserError(f"{part.name}: not UTF-8 text ({e.reason} at byte {e.start}).") from None
    else:
        yield from ((n, line) for n, line in enumerate(read_lines(part.path), 1) if line.strip())


@contextmanager
def long_cells() -> Iterator[None]:
    """Lets the csv module read cells beyond its own limit of 131,072 characters; the limit is everybody's, and is put back."""
    usual = csv.field_size_limit(1 << 30)
    try:
        yield
    finally:
        csv.field_size_limit(usual)


def read_table(part: Part) -> Iterator[tuple[int, bytes | Any]]:
    """(number, row) for every row of a part, as `read_rows`, and of .csv files, whose first line names the columns."""
    if part.table is not None or kind_of(part.path) != ".csv":
        yield from read_rows(part)
        return
    try:
        with long_cells():
            reader = csv.DictReader(line.decode("utf-8-sig" if n == 0 else "utf-8") for n, line in enumerate(read_lines(part.path)))
            for row in reader:
                yield reader.line_num, {name: cell_value(name, cell) for name, cell in row.items() if cell or name not in VALUES}
    except (csv.Error, UnicodeDecodeError) as e:
        raise UserError(f"{part.name} line {reader.line_num + 1}: not a CSV file in UTF-8 ({e}).") from None


def cell_value(name: str, cell: Any) -> Any:
    """A .csv cell: a number or true/false in the columns of VALUES, a list of messages where it is one in JSON, else text."""
    try:
        if name in VALUES:
            return json.loads(cell.strip().lower())
        return json.loads(cell) if isinstance(cell, str) and cell.startswith("[{") else cell
    except ValueError:
        return cell


def place(part: Part, number: int) -> str:
    """Where a row stands, for messages: "file line 7", or "row 7" where rows are not lines."""
    in_lines = part.table is None and kind_of(part.path) != ".parquet" and not _is_json_list(part.path)
    return f"{part.name} {'line' if in_lines else 'row'} {number}"


def parse_object(row: bytes | Any) -> dict[str, Any]:
    """A row as a dict. Raises ValueError saying what is wrong with it."""
    if isinstance(row, bytes):
        try:
            row = json.loads(row)
        except json.JSONDecodeError as e:
            raise ValueError(f"not valid JSON ({e.msg} at character {e.pos + 1})") from None
        except UnicodeDecodeError as e:
            raise ValueError(f"not UTF-8 text ({e.reason} at byte {e.start + 1})") from None
        except RecursionError:
            raise ValueError("JSON nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object is needed, not a {type(row).__name__}")
    return row


def tidy(text: str) -> str:
    """`text` with odd newlines and spaces made plain, invisible characters removed, and half surrogate pairs as U+FFFD."""
    return text.replace("\r\n", "\n").translate(PLAIN) if ODD.search(text) else text


def text_key(text: str) -> int:
    """64 bits that are equal for texts that differ in case or spacing only."""
    return int.from_bytes(hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=8).digest())


def hash_share(key: int, seed: int) -> float:
    """A number in [0, 1) that depends on (key, seed) alone."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()) / 2**64


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items, the last one shorter."""
    items = iter(items)
    while piece := list(islice(items, size)):
        yield piece


# ---- plain text -----------------------------------------------------------------------------------------------------

def read_documents(part: Part) -> Iterator[tuple[int, str | ValueError]]:
    """(number, document) for every document of a text part; a row that is none comes as a ValueError that says why.

    A row has "text", or "turns": [[speaker, text], ...], which is written out in HH's layout. A .txt file and rows that are
    single lines (WikiText) are running text: cut at line ends after PASSAGE characters, and before each article's heading.
    """
    if part.path is not None and kind_of(part.path) == ".txt":
        yield from passages((n, line.decode("utf-8", errors="replace")) for n, line in enumerate(read_lines(part.path), 1))
        return
    lines: list[tuple[int, str]] = []
    for number, row in read_rows(part):
        try:
            text = document_text(parse_object(row))
        except ValueError as e:
            yield number, e
            continue
        is_line = not text or text.find("\n") == len(text) - 1
        if is_line:
            lines.append((number, text))
        if lines and (not is_line or len(lines) >= 1 << 14):
            yield from passages(lines)
            lines = []
        if not is_line:
            yield number, text
    yield from passages(lines)


def passages(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """(number of the first line, passage): numbered lines gathered into documents."""
    kept: list[str] = []
    first = size = 0
    for number, line in lines:
        if kept and (size >= PASSAGE or re.match(r" = [^=]", line)):  # " = Title = " begins an article of WikiText
            yield first, "".join(kept)
            kept, size = [], 0
        if not kept:
            first = number
        kept.append(line)
        size += len(line)
    if kept:
        yield first, "".join(kept)


def document_text(row: dict[str, Any]) -> str:
    """The text of a row with "text" or "turns". Raises ValueError when it has neither.

    Speakers are known by name (SPEAKERS), or else whoever speaks first is the human. Turns in a row by one speaker are joined.
    """
    if isinstance(row.get("text"), str):
        return row["text"]
    turns = row.get("turns")
    if not isinstance(turns, list) or not all(isinstance(t, list) and [type(x) for x in t] == [str, str] for t in turns):
        raise ValueError('neither "text" nor "turns": [[speaker, text], ...] in this row')
    pieces, last = [], None
    for speaker, said in turns:
        marker = SPEAKERS.get(speaker.lower(), HUMAN if speaker == turns[0][0] else ASSISTANT)
        if said.strip():
            pieces.append((marker if marker != last else "") + " " + said.strip())
            last = marker
    return "".join(pieces)
