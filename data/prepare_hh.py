"""Preference pairs -> the pair store: split, clean, tokenize, fit to the block, and account for every row.

    python data/prepare_hh.py CONFIG [--data.source=FOLDER_OR_FILES] [--data.skip_bad] [--key=value ...]

Writes <out>/data/<content hash>/{train,val,test}/, tokenizer/ and preparation.json there, and notes in
<out>/<experiment>/data.json which folder that is. The name is a hash of everything that decides the content: a second call
finds the folder and does nothing.
"""
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from the repository root, not from data/

import numpy as np
from tqdm import tqdm

from data.sources import (HH_SUBSETS, SPLITS, Content, Part, batched, content, hash_share, list_files, load_hub, parse_object, place,
                          read_documents, read_rows, select_subsets, text_key, text_parts, tidy)
from data.store import (StoreWriter, building, data_request, data_settings, describe_sources, describe_tokens, find_data,
                        is_whole, pair_kinds, print_table, remember, toy_hash, write_json)
from runtime.config import Config, digest, load_config
from runtime.errors import UserError, run_main
from tokenizer import (ASSISTANT, HUMAN, Tokenizer, encode_prompt, encode_response, load_tokenizer, split_transcript,
                       train_bpe)

FORMAT = 2  # raise when the same source would be prepared differently: it is part of the content hash
LEVELS = {"easy": 1, "medium": 2, "hard": 3, "hard_improved": 3}
CHUNK, BLOCK = 4096, 64  # pairs in memory at a time, pairs a thread encodes in one go
TOKENIZER_TEXT_MB = 16.0  # plain text that joins the pairs when a vocabulary is trained

# Why a row is dropped, in the order in which it is looked at ...
DROPPED = ("malformed line", "no assistant turn", "no human turn before the reply", "reply runs on into a human turn",
           "prompts differ", "ends in two assistant turns", "empty reply", "identical replies", "prompt in an earlier split",
           "reply longer than the block")
# ... and what is changed in a row that stays
CHANGED = ("prompt shortened from the left", "turns in a row merged", "odd whitespace made plain")


class Drop(Exception):
    """A row that cannot be used; the message is one of DROPPED."""


class Known(NamedTuple):
    """What a source says about a pair besides its texts: the store's columns of the same names."""
    level: int = 0                # 0 = it does not say
    margin: float = 0.0
    chosen_is_true: bool = True


@dataclass
class Pair:
    """A clean pair of replies to one prompt, as text."""
    split: str
    prompt: Any  # here a transcript that ends with the assistant marker; in data/prepare_pairs.py a list of messages
    chosen: str
    rejected: str
    subset: int
    source_row: int
    changes: list[str]  # of CHANGED
    known: Known


# ---- one row: from two transcripts to prompt, chosen, rejected ---------------------------------------------------------

def parse_pair(row: bytes | Any, level: int = 0) -> tuple[str, str, Known]:
    """(chosen, rejected, what else is said) of a source row; `level` is the file's own. Raises ValueError saying what is wrong with it."""
    fields = parse_object(row)
    for name in ("chosen", "rejected"):
        if not isinstance(fields.get(name), str):
            raise ValueError(f'"{name}" is {type(fields[name]).__name__}, not text' if name in fields
                             else f'"{name}" is missing')
    return fields["chosen"], fields["rejected"], parse_known(fields, level)


def parse_known(fields: dict[str, Any], level: int) -> Known:
    """level (a number or easy, medium, hard), margin (or score_chosen - score_rejected) and chosen_is_true of a row. Raises ValueError."""
    level, true = fields.get("level", level), fields.get("chosen_is_true", True)
    if isinstance(level, str):
        level = LEVELS.get(level.strip().lower(), level)
    if not isinstance(level, int) or isinstance(level, bool) or not 0 <= level <= 1000:
        raise ValueError(f'"level" is {level!r}, not {", ".join(LEVELS)} or a number from 0 to 1000')
    if not isinstance(true, bool):
        raise ValueError(f'"chosen_is_true" is {true!r}, not true or false')
    try:
        margin = float(fields["margin"] if "margin" in fields else fields.get("score_chosen", 0) - fields.get("score_rejected", 0))
    except (TypeError, ValueError):
        raise ValueError('"margin" (or score_chosen - score_rejected) is not a number') from None
    return Known(level, margin, true)


def level_of(name: str) -> int:
    """The level a file's name says ("dpo_pairs_hard" 3), 0 when it says none."""
    return next((level for word, level in LEVELS.items() if word in re.split(r"[^a-z]+", name.lower())), 0)


def plain(text: str) -> str:
    """A transcript with odd whitespace made plain, beginning with two newlines when a turn marker comes first."""
    text = tidy(text)
    if text.startswith(HUMAN):
        return text
    start = text.lstrip()
    return "\n\n" + start if start.startswith((HUMAN.lstrip(), ASSISTANT.lstrip())) else text


def first_human_turn(transcript: str) -> str:
    """What the person says first: it decides the split, so that all continuations of a conversation stay together."""
    _, human, rest = transcript.partition(HUMAN)
    return re.split(r"\n\n(?:Human|Assistant):", rest, maxsplit=1)[0] if human else transcript


def merge_turns(prompt: str) -> str:
    """Join turns in a row by one speaker into one: speakers alternate, as they do wherever a prompt is built from messages."""
    pieces = re.split(r"(\n\n(?:Human|Assistant):)", prompt)  # text, marker, text, marker, text ...
    merged, last = [pieces[0]], None
    for marker, said in zip(pieces[1::2], pieces[2::2]):
        if marker == last:
            merged[-1] = f"{merged[-1].rstrip()}\n\n{said.lstrip()}" if merged[-1].strip() else said
        else:
            merged += [marker, said]
        last = marker
    return "".join(merged)


def split_side(transcript: str) -> tuple[str, str]:
    """(prompt, reply) of one transcript, cut at its last assistant marker. Raises Drop."""
    try:
        prompt, reply = split_transcript(transcript)
    except ValueError:
        raise Drop("no assistant turn") from None
    if HUMAN not in prompt:
        raise Drop("no human turn before the reply")
    if HUMAN in reply:
        raise Drop("reply runs on into a human turn")
    return prompt, reply.strip()


def clean_pair(chosen: str, rejected: str) -> tuple[str, str, str]:
    """(prompt, chosen reply, rejected reply) of two transcripts. Raises Drop.

    Both sides are treated alike, so that nothing done here can tell chosen from rejected.
    """
    (prompt, good), (other, bad) = split_side(chosen), split_side(rejected)
    if prompt != other:  # in HH nearly always one reply with a second "\n\nAssistant:" inside, which moves the cut
        raise Drop("prompts differ")
    if prompt.rfind(ASSISTANT, 0, -len(ASSISTANT)) > prompt.rfind(HUMAN):  # nobody asked for the second turn
        raise Drop("ends in two assistant turns")
    if not good or not bad:
        raise Drop("empty reply")
    if good == bad:
        raise Drop("identical replies")
    return merge_turns(prompt), good, bad


def parse_transcripts(row: bytes | Any, level: int) -> tuple[str, tuple[str, str], Known]:
    """(what the person says first, the two sides, what else is said) of a row. Raises ValueError saying what is wrong with it."""
    chosen, rejected, known = parse_pair(row, level)
    return first_human_turn(plain(chosen)), (chosen, rejected), known


def clean_transcripts(chosen: str, rejected: str) -> tuple[str, str, str, str, list[str]]:
    """(prompt, the prompt as text to compare, chosen reply, rejected reply, changes) of the two sides. Raises Drop."""
    good, bad = plain(chosen), plain(rejected)
    prompt, good_reply, bad_reply = clean_pair(good, bad)
    changes = ["turns in a row merged"] if prompt != split_transcript(good)[0] else []
    changes += ["odd whitespace made plain"] if good != chosen or bad != rejected else []
    return prompt, prompt, good_reply, bad_reply, changes


# ---- all rows ----------------------------------------------------------------------------------------------------------


def choose_split(named: str, missing: set[str], key: int, config: Config) -> str:
    """A row's split: the one its file says, except that the splits no file says are cut from train by conversation."""
    if named in ("val", "test"):
        return named
    share = hash_share(key, config.seed)
    if "test" in missing and share < config.data.test_fraction:
        return "test"
    return "val" if "val" in missing and share >= 1 - config.data.val_fraction else "train"


def read_pairs(config: Config, parts: list[Part], contents: list[Content], counts: dict[str, Counter], show: str,
               rows: Callable = read_rows, parse: Callable = parse_transcripts, clean: Callable = clean_transcripts) -> Iterator[Pair]:
    """Every usable pair of the sources, files of earlier splits first; `counts[split][reason]` accounts for every row.

    `rows` reads a part, `parse` and `clean` take a row apart: these for transcripts, data/prepare_pairs.py has its own. Raises UserError
    for a malformed line unless data.skip_bad. Memory holds 8-byte keys of prompts, not the prompts.
    """
    d = config.data
    missing = {"val", "test"} - {part.split for part in parts}
    subsets = subset_names(parts)
    seen: dict[str, set[int]] = {split: set() for split in SPLITS}
    limit = d.max_rows or None
    total = sum(min(c.rows, limit or c.rows) for c in contents)
    first_row = 0  # of this part, counted through all of them
    with tqdm(total=total, desc=show, unit=" pairs", unit_scale=True, mininterval=0.5) as bar:
        for part, size in zip(parts, contents):
            level = level_of(part.subset)
            for number, row in islice(rows(part), limit):
                bar.update()
                try:
                    opening, sides, known = parse(row, level)
                except ValueError as e:
                    if not d.skip_bad:
                        raise UserError(f"{place(part, number)}: {e}; mend it, or count such rows instead with "
                                        "--data.skip_bad.") from None
                    counts[part.split or "train"].update(("read", "malformed line"))
                    continue
                split = choose_split(part.split, missing, text_key(opening), config)
                counts[split]["read"] += 1
                try:
                    prompt, text, good, bad, changes = clean(*sides)
                    key = text_key(text)
                    if any(key in seen[other] for other in SPLITS if other != split):
                        raise Drop("prompt in an earlier split")
                except Drop as reason:
                    counts[split][str(reason)] += 1
                    continue
                seen[split].add(key)
                yield Pair(split, prompt, good, bad, subsets.index(part.subset), first_row + number - 1, changes, known)
            first_row += size.rows


def subset_names(parts: list[Part]) -> list[str]:
    """Names of the subsets, in the order of the `subset` field of the index."""
    return sorted({part.subset for part in parts})


Encoded = tuple[list[int], np.ndarray, list[int], list[int]]  # prompt ids, prompt roles, chosen ids, rejected ids


def encode_block(tokenizer: Tokenizer, block_size: int, pairs: list[Pair]) -> list[Encoded | Drop]:
    """Ids of some pairs, fitted to the block, or why not. The prompt is encoded once for both sides."""
    shortest, encoded = 1 + len(tokenizer.encode(ASSISTANT)), []
    for pair in pairs:
        ids, roles = encode_prompt(tokenizer, pair.prompt)
        chosen, rejected = encode_response(tokenizer, pair.chosen), encode_response(tokenizer, pair.rejected)
        try:
            prompt, roles = fit(ids, roles, max(len(chosen), len(rejected)), block_size, shortest)
        except Drop as reason:
            encoded.append(reason)
            continue
        pair.changes += ["prompt shortened from the left"] * (len(prompt) < len(ids))
        encoded.append((prompt, roles, chosen, rejected))
    return encoded


def fit(prompt: list[int], roles: np.ndarray, longer_reply: int, block_size: int,
        shortest: int) -> tuple[list[int], np.ndarray]:
    """The prompt and its roles, shortened from the left until prompt + longer reply fit the block; the start token stays.

    A reply is never cut. Raises Drop when less than `shortest` tokens would be left: the start token and the last marker.
    """
    room = block_size - longer_reply
    if room >= len(prompt):
        return prompt, roles
    if room < shortest:
        raise Drop("reply longer than the block")
    return prompt[:1] + prompt[1 - room:], np.concatenate([roles[:1], roles[1 - room:]])


def write_pairs(config: Config, pairs: Iterable[Pair], tokenizer: Any, folder: Path, meta: dict[str, Any], counts: dict[str, Counter],
                encode: Callable = encode_block, dropped: Iterable[str] = DROPPED, changed: Iterable[str] = CHANGED) -> None:
    """Encode the pairs on all cores, stream them with the tokenizer into `folder`/{train,val,test} and print the account of all rows.

    `encode(tokenizer, block_size, pairs)` gives an Encoded or a Drop for each pair; `dropped` and `changed` are the reasons to show.
    """
    tokenizer.save(folder / "tokenizer", block_size=config.model.block_size)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(config.threads or os.cpu_count()))
        writers = {split: stack.enter_context(StoreWriter(folder / split, tokenizer.vocab_size)) for split in SPLITS}
        for chunk in batched(pairs, CHUNK):
            # threads are enough: tiktoken lets go of Python's lock while it works
            blocks = pool.map(partial(encode, tokenizer, config.model.block_size), batched(chunk, BLOCK))
            for pair, encoded in zip(chunk, (e for block in blocks for e in block)):
                if isinstance(encoded, Drop):
                    counts[pair.split][str(encoded)] += 1
                    continue
                counts[pair.split].update(["kept", *pair.changes])
                prompt, roles, chosen, rejected = encoded
                writers[pair.split].add(prompt, roles.tobytes(), chosen, rejected, subset=pair.subset,
                                        source_row=pair.source_row, **pair.known._asdict())
        print_counts(counts, dropped, changed)
        check_splits(counts, config)
        for split, writer in writers.items():
            writer.close({"split": split} | meta | describe_tokens(tokenizer, config) | {"counts": dict(counts[split])})


def check_splits(counts: dict[str, Counter], config: Config) -> None:
    """Raises UserError for an empty split, and for a block in which most replies do not fit."""
    too_long, read = (sum(counts[split][name] for split in SPLITS) for name in ("reply longer than the block", "read"))
    if too_long > read / 2:
        raise UserError(f"{too_long:,} of {read:,} rows have a reply that does not fit a block of {config.model.block_size} "
                        "tokens: raise --model.block_size.")
    remedy = {"train": "name a file train, or give files without a split in their names",
              "val": "raise --data.val_fraction or add rows", "test": "raise --data.test_fraction or add rows"}
    for split in SPLITS:
        if not counts[split]["kept"]:
            raise UserError(f"the {split} split is empty ({counts[split]['read']:,} of {read:,} rows read belong to it, none "
                            f"usable): {remedy[split]}.")


# ---- the tokenizer -------------------------------------------------------------------------------------------------------

def tokenizer_texts(config: Config, pairs: Iterable[Pair], parts: list[Part]) -> Iterator[str]:
    """What a vocabulary is trained on: the training split's dialogues and some of the base stage's plain text."""
    for pair in pairs:
        if pair.split == "train":
            yield from (pair.prompt, " " + pair.chosen, " " + pair.rejected)
    for part in parts:
        room = TOKENIZER_TEXT_MB * 1e6 / len(parts)
        for _, document in read_documents(part):
            if isinstance(document, str):  # prepare_text.py reports rows that are none
                yield tidy(document)
                room -= len(document)
            if room <= 0:
                break


def make_tokenizer(config: Config, parts: list[Part], contents: list[Content]) -> Tokenizer:
    """The tokenizer the config names; "bpe" is trained here."""
    if config.data.tokenizer != "bpe":
        return load_tokenizer(config.data.tokenizer)
    started = time.time()
    counts = {split: Counter() for split in SPLITS}
    pairs = read_pairs(config, parts, contents, counts, "counting words")
    try:
        tokenizer = train_bpe(tokenizer_texts(config, pairs, text_parts(config)), config.data.vocab_size)
    except UserError:  # too little text, perhaps because rows were dropped: their reasons come before the complaint
        print_counts(counts, DROPPED, CHANGED)
        raise
    print(f"trained a byte-level BPE of {tokenizer.vocab_size:,} tokens in {time.time() - started:.0f} s")
    return tokenizer


# ---- the whole -----------------------------------------------------------------------------------------------------------

def pair_parts(config: Config) -> list[Part]:
    """The parts that data.source names, files of earlier splits first. Writes the toy corpus when it is not there yet."""
    d = config.data
    if d.source == "toy":
        folder = Path(config.out) / "data" / f"toy-{digest([toy_hash(), config.seed, d.toy_control])}"
        if not folder.is_dir():
            from data.make_toy import write_corpus
            with building(folder) as partial_folder:
                write_corpus(partial_folder, config.seed, d.toy_control)
        parts = [Part(f"toy/{split}.jsonl.gz", "toy", split, folder / f"{split}.jsonl.gz") for split in SPLITS]
    elif d.source == "hub":
        subsets = d.subsets or (HH_SUBSETS if d.dataset == "Anthropic/hh-rlhf" else ())
        parts = load_hub(d.dataset, subsets, "--data.source")
    else:
        parts = list_files(d.source, pair_kinds(config), "--data.source")
    parts = select_subsets(parts, d.subsets)
    if len(subset_names(parts)) > 255:
        raise UserError(f"--data.source: {len(subset_names(parts))} subsets, one per file name, but the store has room for "
                        "255: join the files.")
    return sorted(parts, key=lambda part: SPLITS.index(part.split or "train"))


def print_counts(counts: dict[str, Counter], dropped: Iterable[str], changed: Iterable[str]) -> None:
    """The table of every dropped or changed row, by reason."""
    names = ["read"] + [f"- {name}" for name in dropped] + ["= kept"] + [f"  of these: {name}" for name in changed]
    keys = ["read", *dropped, "kept", *changed]
    rows = [[name, *(counts[split][key] for split in SPLITS)] for name, key in zip(names, keys)]
    print_table("rows by split", ["", *SPLITS, "all"], [row + [sum(row[1:])] for row in rows])


def prepare(config: Config) -> Path:
    """Prepare the pairs a config asks for; the folder {train,val,test}/, tokenizer/, preparation.json. Idempotent.

    Raises UserError for what a user can mend: missing or malformed files, an empty split, a block too small, a full disk.
    """
    d = config.data
    if d.tokenizer == "chat":
        raise UserError("--data.tokenizer=chat: pairs in a model's own chat template are prepared by `python data/prepare_pairs.py CONFIG`.")
    if d.system:
        raise UserError("--data.system: transcripts have no system message; this setting goes with --data.tokenizer=chat.")

    def ids_follow() -> dict[str, Any]:
        trained = d.tokenizer == "bpe"
        return {"format": FORMAT} | ({"text": [content(part).sha256 for part in text_parts(config)]} if trained
                                     else {"tokenizer": load_tokenizer(d.tokenizer).hash})

    def fill(folder: Path, parts: list[Part], contents: list[Content], counts: dict[str, Counter], meta: dict[str, Any]) -> None:
        tokenizer = make_tokenizer(config, parts, contents)
        write_pairs(config, read_pairs(config, parts, contents, counts, "encoding"), tokenizer, folder, meta, counts)

    return prepare_store(config, ids_follow, fill)


def prepare_store(config: Config, ids_follow: Callable, fill: Callable) -> Path:
    """The folder that answers a config: found, or found to hold the same content, or made.

    `ids_follow()` says what else than settings and sources decides the content; `fill(folder, parts, contents, counts, meta)` writes it.
    """
    if root := find_data(config):
        print(f"pairs: {root} is already prepared")
        return root
    d, started = config.data, time.time()
    if min(d.val_fraction, d.test_fraction) < 0 or d.val_fraction + d.test_fraction >= 1:
        raise UserError("--data.val_fraction and --data.test_fraction must be 0 or more and leave something for training.")
    request = data_request(config)
    parts = pair_parts(config)
    contents = [content(part) for part in parts]
    sources = describe_sources(parts, contents)
    recipe = data_settings(config) | {"sources": [[s["subset"], s["split"], s["sha256"]] for s in sources]} | ids_follow()
    root = Path(config.out) / "data" / digest(recipe)
    if is_whole(root):
        print(f"pairs: {root} holds the same content")
    else:
        counts = {split: Counter() for split in SPLITS}
        with building(root) as folder:
            fill(folder, parts, contents, counts, {"kind": "pairs", "subsets": subset_names(parts), "sources": sources})
            write_json(folder / "preparation.json", {"recipe": recipe, "sources": sources, "counts": counts})
        print(f"pairs: {root} prepared in {time.time() - started:.1f} s")
    remember(config, "data.json", request, root)
    return root


def main(argv: list[str]) -> None:
    """The command line; --source and --skip-bad are short for --data.source and --data.skip_bad."""
    short = {"--source": "--data.source", "--skip-bad": "--data.skip_bad"}
    prepare(load_config([re.sub(r"^--[a-z-]+(?=$|=)", lambda m: short.get(m[0], m[0]), word) for word in argv]))


if __name__ == "__main__":
    run_main(main)
