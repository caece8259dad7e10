"""The pair store: tokens on disk, read back through memory maps, so that 160,800 pairs cost no more memory than one.

    <folder>/tokens.bin   every row's ids, one after the other: prompt | chosen | rejected (uint16 when they fit, else uint32)
             roles.bin    uint8 per token: 0 other, 1 an earlier assistant turn and the token that ends it, 2 response
             index.npy    one record per row (INDEX): where it starts, how long its parts are, what else is known of it
             meta.json    tokenizer, template, sources, counts

A row's prompt begins with the start token (end-of-text) and both responses end in end-of-text. A plain document is a row whose
prompt is the start token alone and whose rejected part is empty.
"""
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from data.sources import PAIR_KINDS, SPLITS, TEXT_KINDS, Content, Part, list_files, stamp
from runtime.config import ROOT, Config
from runtime.errors import UserError, is_disk_full
from tokenizer import ASSISTANT, HUMAN, Tokenizer

INDEX = np.dtype([
    ("offset", "i8"),          # first token of the row in tokens.bin
    ("prompt", "i4"), ("chosen", "i4"), ("rejected", "i4"),  # lengths in tokens
    ("level", "i2"),           # difficulty level, for curricula; 0 where the source says none
    ("margin", "f4"),          # how much better chosen is, where the source says so
    ("chosen_is_true", "i1"),  # 0 when the source says that its chosen reply is false
    ("subset", "u1"),          # position in meta["subsets"]
    ("source_row", "i8"),      # row of the sources, counted through all files in meta["sources"]
])
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")
CHAT_FILES = (*TOKENIZER_FILES, "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json", "tokenizer.model")
TOY_CODE = ("data/make_toy.py", "data/toy_grammar.py", "eval/oracle.py")  # what the toy corpus is a function of, with the seed
BUFFER_TOKENS = 1 << 20  # tokens kept in memory before they are written


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 when every id below `vocab_size` fits, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON so that `path` holds either the old file or the whole new one, never half of it."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def write_lines(path: Path, rows: Iterable[Any]) -> int:
    """Write values as JSON, one a line, whole or not at all as `write_json`; returns how many. Folders are made.

    Half a surrogate pair, which a model's reply can hold and UTF-8 cannot, becomes a question mark.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, n = path.with_name(path.name + ".tmp"), 0
    with open(partial, "w", encoding="utf-8", errors="replace") as file:
        for n, row in enumerate(rows, 1):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(partial, path)
    return n


def read_json(path: Path) -> Any:
    """The value in a JSON file, or None when there is no such file or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def describe_sources(parts: list[Part], contents: list[Content]) -> list[dict[str, Any]]:
    """The sources as meta.json lists them: name, subset, split, sha256, rows (or lines), bytes."""
    return [{"name": part.name, "subset": part.subset, "split": part.split, **size._asdict()}
            for part, size in zip(parts, contents)]


def describe_tokens(tokenizer: Tokenizer, config: Config) -> dict[str, Any]:
    """The part of meta.json that says how to read the ids."""
    template = {"human": HUMAN, "assistant": ASSISTANT, "start": tokenizer.eot_id, "end": tokenizer.eot_id}
    if config.data.tokenizer == "chat":
        template = {"chat": tokenizer.template, "start": tokenizer.bos_id, "end": tokenizer.eot_id}
    return {"tokenizer": {"name": tokenizer.name, "hash": tokenizer.hash, "vocab_size": tokenizer.vocab_size,
                          "eot_id": tokenizer.eot_id},
            "template": template, "block_size": config.model.block_size}


def print_table(title: str, header: list[str], rows: list[list[Any]]) -> None:
    """An aligned table: text to the left, numbers to the right."""
    cells = [header] + [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    print(title)
    for row in cells:
        print("  " + "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))))


class StoreWriter:
    """Writes a store row by row with flat memory. Everything goes to `<folder>.tmp`; only `close` makes `<folder>` appear.

    Used as a context manager it removes the temporary folder when it is left without `close`. A full disk shows as OSError.
    """

    def __init__(self, folder: Path, vocab_size: int):
        self.folder, self.partial = Path(folder), Path(f"{folder}.tmp")
        self.vocab_size, self.dtype = vocab_size, token_dtype(vocab_size)
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        self.token_file = open(self.partial / "tokens.bin", "wb")
        self.role_file = open(self.partial / "roles.bin", "wb")
        self.index: list[np.ndarray] = []  # 36 bytes a row, the only thing that grows
        self.tokens: list[int] = []        # buffered until BUFFER_TOKENS ...
        self.roles = bytearray()
        self.rows: list[tuple] = []
        self.written = 0                   # ... tokens before the buffer
        self.count = 0                     # rows so far

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for file in (self.token_file, self.role_file):
            with suppress(OSError):  # on a full disk closing fails too; what is lost here is thrown away in any case
                file.close()
        shutil.rmtree(self.partial, ignore_errors=True)

    def add(self, prompt: Sequence[int], prompt_roles: Sequence[int], chosen: Sequence[int], rejected: Sequence[int], *,
            level: int = 0, margin: float = 0.0, chosen_is_true: bool = True, subset: int = 0, source_row: int = 0) -> None:
        """Append one row of ids; `prompt` begins with the start token, `prompt_roles` has one role (bytes or ints) for each."""
        if len(prompt) != len(prompt_roles):
            raise ValueError(f"{len(prompt)} prompt ids but {len(prompt_roles)} roles")
        if not len(prompt) or not len(chosen):
            raise ValueError("a row needs a start token and at least one chosen token: nothing would be scored")
        self.rows.append((self.written + len(self.tokens), len(prompt), len(chosen), len(rejected),
                          level, margin, chosen_is_true, subset, source_row))
        for ids in (prompt, chosen, rejected):
            self.tokens.extend(ids)
        self.roles.extend(prompt_roles)
        self.roles.extend(b"\x02" * (len(chosen) + len(rejected)))
        self.count += 1
        if len(self.tokens) >= BUFFER_TOKENS:
            self._flush()

    def _flush(self) -> None:
        tokens = np.array(self.tokens, dtype=np.int64)
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.vocab_size:  # uint16 would wrap without a word
            raise ValueError(f"token ids {tokens.min()}..{tokens.max()} outside the vocabulary of {self.vocab_size}")
        self.token_file.write(tokens.astype(self.dtype).data)
        self.role_file.write(self.roles)
        self.index.append(np.array(self.rows, dtype=INDEX))
        self.written += len(self.tokens)
        self.tokens, self.roles, self.rows = [], bytearray(), []

    def close(self, meta: dict[str, Any]) -> None:
        """Write what is left, the index and `meta` (rows and tokens are added to it), then give the folder its name."""
        self._flush()
        self.token_file.close()
        self.role_file.close()
        buffer = io.BytesIO()  # np.save straight to a file would hide the reason when the disk is full
        np.save(buffer, np.concatenate(self.index))
        (self.partial / "index.npy").write_bytes(buffer.getvalue())
        meta = {"rows": self.count, "tokens": self.written, "token_dtype": self.dtype.name} | meta
        write_json(self.partial / "meta.json", meta)
        shutil.rmtree(self.folder, ignore_errors=True)
        os.replace(self.partial, self.folder)


class PairStore:
    """A prepared split, read through memory maps. Raises UserError when the folder is missing, incomplete or damaged.

    tokens, roles [number of tokens]; index [n] of INDEX; meta: the dict of meta.json.
    """

    def __init__(self, folder: Path | str):
        self.folder = folder = Path(folder)
        self.meta: dict[str, Any] = read_json(folder / "meta.json")
        remedy = "prepare it with `python data/prepare_hh.py CONFIG`"
        if self.meta is None:
            raise UserError(f"no prepared data in {folder}: {remedy}.")
        try:
            self.index: np.ndarray = np.load(folder / "index.npy", mmap_mode="r")
            self.tokens: np.ndarray = np.memmap(folder / "tokens.bin", dtype=self.meta["token_dtype"], mode="r")
            self.roles: np.ndarray = np.memmap(folder / "roles.bin", dtype=np.uint8, mode="r")
            sizes = (len(self.index), len(self.tokens), len(self.roles))
            whole = sizes == (self.meta["rows"], self.meta["tokens"], self.meta["tokens"]) and self.index.dtype == INDEX
        except (OSError, EOFError, ValueError, KeyError):  # a file is missing, cut short or of another format
            whole = False
        if not whole:
            raise UserError(f"the prepared data in {folder} is damaged: delete that folder and {remedy}.")

    def __len__(self) -> int:
        return len(self.index)

    def row(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(prompt, prompt_roles, chosen, rejected) of row i: int64 ids (roles uint8); rejected is empty for plain documents."""
        record = self.index[i]
        start, prompt, chosen, rejected = (int(record[name]) for name in ("offset", "prompt", "chosen", "rejected"))
        ids = self.tokens[start:start + prompt + chosen + rejected].astype(np.int64)
        roles = np.array(self.roles[start:start + prompt])
        return ids[:prompt], roles, ids[prompt:prompt + chosen], ids[prompt + chosen:]


# ---- which prepared folder belongs to a config ----------------------------------------------------------------------

@contextmanager
def building(root: Path) -> Iterator[Path]:
    """A temporary folder that becomes `root` when the block ends well and vanishes otherwise. A full disk is a UserError."""
    partial = root.with_name(root.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(root, ignore_errors=True)
        os.replace(partial, root)
    except OSError as e:
        if not is_disk_full(e):
            raise
        raise UserError(f"the disk that holds {root.parent} is full and nothing half-made was kept: free some space there, or "
                        "point --out at another disk, and run the same command again.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_whole(root: Path, splits: tuple[str, ...] = SPLITS) -> bool:
    """True when every split of a prepared folder can be opened and nothing is missing."""
    try:
        for split in splits:
            PairStore(root / split)
    except UserError:
        return False
    return (root / "preparation.json").is_file() and (root / "tokenizer" / "tokenizer.json").is_file()


def toy_hash() -> str:
    """Hash of the code that writes the toy corpus: when the grammar changes, so does the corpus."""
    return hashlib.sha256(b"".join((ROOT / file).read_bytes() for file in TOY_CODE)).hexdigest()


def data_settings(config: Config) -> dict[str, Any]:
    """The settings that decide what prepared pairs contain, as plain values; those without effect here are left out."""
    d = config.data
    settings = {"seed": config.seed, "block_size": config.model.block_size, "tokenizer": d.tokenizer}
    settings |= {name: getattr(d, name) for name in ("subsets", "val_fraction", "test_fraction", "max_rows")}
    if d.tokenizer == "bpe":
        settings["vocab_size"] = d.vocab_size
    if d.system:
        settings["system"] = d.system
    return settings  # skip_bad is left out: a preparation that ends without it is the same with it


def text_settings(config: Config) -> dict[str, Any]:
    """The settings that decide which plain text is read."""
    d = config.data
    settings = {"text_source": d.text_source, "text_max_mb": d.text_max_mb}
    return settings | ({"text_dataset": d.text_dataset} if d.text_source == "hub" else {})


def pair_kinds(config: Config) -> tuple[str, ...]:
    """The kinds of files that pairs are read from."""
    return (*PAIR_KINDS, ".csv") if config.data.tokenizer == "chat" else PAIR_KINDS


def data_request(config: Config) -> dict[str, Any]:
    """What is asked of data/prepare_hh.py (or prepare_pairs.py): settings, and paths, sizes and times of the files (the Hub: only names)."""
    d = config.data
    request = data_settings(config) | {"source": d.source}
    if d.source == "toy":
        request |= {"toy_control": d.toy_control, "toy_code": toy_hash()}
    elif d.source == "hub":
        request["dataset"] = d.dataset
    else:
        request["files"] = [stamp(part.path) for part in list_files(d.source, pair_kinds(config), "--data.source")]
    if d.tokenizer == "bpe" and d.text_source:
        request["text"] = _text_request(config)
    elif d.tokenizer not in ("bpe", "gpt2"):
        folder, names = (config.model.init_from, CHAT_FILES) if d.tokenizer == "chat" else (d.tokenizer, TOKENIZER_FILES)
        request["tokenizer_files"] = [stamp(path) for path in (Path(folder) / name for name in names) if path.is_file()] or folder
    return request


def _text_request(config: Config) -> dict[str, Any]:
    request, source = text_settings(config), config.data.text_source
    if source not in ("", "hub"):
        request["files"] = [stamp(part.path) for part in list_files(source, TEXT_KINDS, "--data.text_source")]
    return request


def text_request(config: Config, pairs: Path) -> dict[str, Any]:
    """What is asked of data/prepare_text.py; `pairs` is the prepared pairs' folder, whose name stands for its content."""
    return data_settings(config) | {"pairs": pairs.name, "text": _text_request(config)}


def remember(config: Config, file: str, request: dict[str, Any], root: Path) -> None:
    """Note in the experiment's folder which prepared folder answers `request` (relative to --out, so that --out can move)."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    write_json(config.run_dir / file, {"request": request, "root": root.relative_to(config.out).as_posix()})


def _recall(config: Config, file: str, request: dict[str, Any], splits: tuple[str, ...]) -> Path | None:
    note = read_json(config.run_dir / file)
    if note is None or note["request"] != request:
        return None
    root = Path(config.out) / note["root"]
    return root if is_whole(root, splits) else None


def find_data(config: Config) -> Path | None:
    """The folder with this experiment's prepared pairs ({train,val,test}/, tokenizer/), or None when there is none yet."""
    return _recall(config, "data.json", data_request(config), SPLITS)


def find_text(config: Config) -> Path | None:
    """The folder with this experiment's prepared base-stage text ({train,val}/, tokenizer/), or None."""
    pairs = find_data(config)
    return pairs and _recall(config, "text.json", text_request(config, pairs), ("train", "val"))
