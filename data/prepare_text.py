"""Plain text and dialogues -> the store of the base stage, with the tokenizer of the pairs.

    python data/prepare_text.py CONFIG [--data.text_source=FOLDER_OR_FILES] [--key=value ...]

A model that starts from scratch has to learn to write before it can be aligned. It reads documents of two kinds: the plain text
of data.text_source, and the dialogues of the prepared pairs (prompt and chosen reply; the test split stays unread). Every
document is a row of the store with the start token as its prompt and the text as its "chosen" reply. Writes <out>/data/<content
hash>/{train,val}/ and notes in <out>/<experiment>/text.json which folder that is.
"""
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from the repository root, not from data/

import numpy as np
from tqdm import tqdm

from data.sources import Content, Part, batched, content, hash_share, place, read_documents, text_key, text_parts, tidy
from data.store import (PairStore, StoreWriter, building, data_settings, describe_sources, describe_tokens, find_data,
                        find_text, is_whole, print_table, remember, text_request, write_json)
from runtime.config import Config, digest, load_config
from runtime.errors import UserError, run_main
from tokenizer import Tokenizer, load_tokenizer

FORMAT = 1  # raise when the same source would be prepared differently: it is part of the content hash
CHUNK, BLOCK = 2048, 32  # documents in memory at a time, documents a thread encodes in one go
TEXT_SPLITS = ("train", "val")  # what is measured on general text is not read here
DIALOGUES = "pair dialogues"  # the name of the subset that comes from the prepared pairs
COLUMNS = ("documents", "malformed", "empty", "duplicate", "train rows", "val rows", "tokens")


def share_evenly(sizes: list[int], limit: float) -> list[float]:
    """How much to read of each part so that the sum is at most `limit`: all of the small ones, equally much of the others."""
    shares, left = [0.0] * len(sizes), limit
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    for position, i in enumerate(order):
        shares[i] = min(sizes[i], left / (len(sizes) - position))
        left -= shares[i]
    return shares


def pieces(ids: list[int], longest: int) -> Iterator[list[int]]:
    """A document cut into as few pieces of at most `longest` tokens as possible, of equal length but for rounding.

    Only the last one ends in end-of-text: a text that is merely cut does not end there.
    """
    size = -(-len(ids) // -(-len(ids) // longest))
    for start in range(0, len(ids), size):
        yield ids[start:start + size]


def read_text(config: Config, parts: list[Part], contents: list[Content],
              counts: dict[str, Counter]) -> Iterator[tuple[str, str, str]]:
    """(split, subset, text) of every usable document of the plain text; `counts[subset]` accounts for the others.

    Raises UserError for a malformed row unless data.skip_bad. Files named val go to validation; of the others a share of
    data.val_fraction, chosen by a hash of the text, so that copies of a text cannot end on both sides.
    """
    sizes = [size.bytes for size in contents]
    shares = share_evenly(sizes, config.data.text_max_mb * 1e6) if config.data.text_max_mb else sizes
    seen: set[int] = set()
    bar = tqdm(total=sum(shares), desc="encoding text", unit="B", unit_scale=True, mininterval=0.5, disable=not parts)
    for part, share in zip(parts, shares):
        count, read = counts[part.subset], 0
        for number, document in read_documents(part):
            count["documents"] += 1
            if isinstance(document, ValueError):
                if not config.data.skip_bad:
                    raise UserError(f"{place(part, number)}: {document}; mend it, or count such rows instead with "
                                    "--data.skip_bad.")
                count["malformed"] += 1
                continue
            text, key = tidy(document), text_key(document)
            size = len(text.encode())
            read += size
            if read > share and config.data.text_max_mb:
                count["documents"] -= 1
                break
            bar.update(size)
            if not text.strip():
                count["empty"] += 1
            elif key in seen:
                count["duplicate"] += 1
            else:
                seen.add(key)
                is_val = part.split == "val" or hash_share(key, config.seed) < config.data.val_fraction
                yield "val" if is_val else "train", part.subset, text
    bar.close()


def encode_documents(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Ids of some documents, each with its end-of-text."""
    return [tokenizer.encode(text) + [tokenizer.eot_id] for text in texts]


def write_documents(config: Config, documents: Iterator[tuple[str, str, str]], pairs: Path, tokenizer: Tokenizer,
                    writers: dict[str, StoreWriter], subsets: list[str], counts: dict[str, Counter]) -> None:
    """Stream the plain text and then the pairs' dialogues into the writers of train and val."""
    def add(split: str, subset: str, ids: list[int]) -> None:
        writers[split].add([tokenizer.eot_id], b"\x00", ids, [], subset=subsets.index(subset))
        counts[subset].update({f"{split} rows": 1, "tokens": len(ids)})

    with ThreadPoolExecutor(config.threads or os.cpu_count()) as pool:
        for chunk in batched(documents, CHUNK):
            encoded = pool.map(partial(encode_documents, tokenizer), batched([text for _, _, text in chunk], BLOCK))
            for (split, subset, _), ids in zip(chunk, (ids for block in encoded for ids in block)):
                for piece in pieces(ids, config.model.block_size - 1):  # one position is the start token's
                    add(split, subset, piece)
    for split in TEXT_SPLITS:
        store = PairStore(pairs / split)
        for i in range(len(store)):
            prompt, _, chosen, _ = store.row(i)
            counts[DIALOGUES]["documents"] += 1
            add(split, DIALOGUES, np.concatenate([prompt[1:], chosen]).tolist())


def prepare_text(config: Config) -> Path:
    """Prepare the base stage's text; the folder {train,val}/, tokenizer/, preparation.json. Idempotent.

    Needs prepared pairs. Raises UserError for what a user can mend, as `prepare` in data/prepare_hh.py does.
    """
    pairs = find_data(config)
    if pairs is None:
        raise UserError("the base stage uses the pairs' tokenizer and dialogues: run `python data/prepare_hh.py CONFIG` first.")
    if root := find_text(config):
        print(f"text: {root} is already prepared")
        return root
    started, request = time.time(), text_request(config, pairs)
    parts = text_parts(config)
    contents = [content(part) for part in parts]
    sources = describe_sources(parts, contents)
    recipe = data_settings(config) | {"format": FORMAT, "kind": "text", "pairs": pairs.name,
                                      "text_max_mb": config.data.text_max_mb,
                                      "sources": [[s["subset"], s["split"], s["sha256"]] for s in sources]}
    root = Path(config.out) / "data" / digest(recipe)
    if is_whole(root, TEXT_SPLITS):
        print(f"text: {root} holds the same content")
    else:
        subsets = sorted({part.subset for part in parts}) + [DIALOGUES]
        counts = {subset: Counter() for subset in subsets}
        tokenizer = load_tokenizer(pairs / "tokenizer")
        with building(root) as folder, ExitStack() as stack:
            shutil.copytree(pairs / "tokenizer", folder / "tokenizer")
            writers = {split: stack.enter_context(StoreWriter(folder / split, tokenizer.vocab_size)) for split in TEXT_SPLITS}
            write_documents(config, read_text(config, parts, contents, counts), pairs, tokenizer, writers, subsets, counts)
            meta = {"kind": "text", "subsets": subsets, "sources": sources, "pairs": pairs.name, "counts": counts,
                    **describe_tokens(tokenizer, config)}
            for split, writer in writers.items():
                writer.close({"split": split} | meta)
            write_json(folder / "preparation.json", {"recipe": recipe, "sources": sources, "counts": counts})
        rows = [[subset, *(counts[subset][column] for column in COLUMNS)] for subset in subsets]
        print_table("documents by source", ["", *COLUMNS], rows)
        print(f"text: {root} prepared in {time.time() - started:.1f} s")
    remember(config, "text.json", request, root)
    return root


def main(argv: list[str]) -> None:
    """The command line. Missing pairs are announced and prepared first."""
    config = load_config(argv)
    if find_data(config) is None:
        from runtime.run import run_stage  # brings torch along, which nothing else here needs
        run_stage("data/prepare_hh.py", argv, "no prepared pairs")
    prepare_text(config)


if __name__ == "__main__":
    run_main(main)
