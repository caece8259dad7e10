"""Asking a model and keeping what it said: prompts, replies, replies.jsonl, and replies as a store that the scorer can read."""
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data.store import PairStore, StoreWriter
from generate import generate
from model import GPT
from runtime.config import Config
from runtime.device import Device
from runtime.errors import UserError
from tokenizer import HUMAN, Tokenizer, clean_reply


@dataclass(frozen=True)
class Prompt:
    """A prompt: its text ends in the assistant's marker, `ids` begin with the start token."""
    id: str
    kind: str  # "unsafe", "borderline" (a safe look-alike), "helpful", or "all" when the source does not say
    text: str
    ids: list[int]
    group: str = ""  # the rows of the table it belongs to, such as "own unsafe"; empty = its kind


@dataclass(frozen=True)
class Reply:
    """What a system wrote: the cut text (from the prompt's end to end-of-text or the next human turn), the ids as sampled,
    and whether it ended by itself."""
    text: str
    ids: list[int]
    ended: bool


Replies = Mapping[str, Sequence[Reply]]  # system -> one reply per prompt, in the order of the prompts


def spread(prompts: Sequence[Prompt], n: int) -> list[int]:
    """The first n prompts taken in turn from every group: a fixed rule, so that nobody can choose the samples."""
    order = sorted(range(len(prompts)), key=lambda i: (int(prompts[i].id.rsplit("-", 1)[1]), i))
    return order[:n]


def answer(model: GPT, tok: Tokenizer, prompts: Sequence[Prompt], temperature: float, config: Config, device: Device, show: str = "",
           plain: bool = False, max_new_tokens: int = 0, samples: int = 1) -> list[Reply]:
    """One reply per prompt, then a second one per prompt, and so on, `samples` times [samples * n].

    `plain` ignores top-k and top-p: draws from the model's own distribution. `show` names a progress bar.
    """
    e, limit = config.eval, max_new_tokens or config.eval.max_new_tokens
    asked = [prompt.ids for _ in range(samples) for prompt in prompts]
    with device.autocast():
        written = generate(model, asked, max_new_tokens=limit, eot_id=tok.eot_id, temperature=temperature, top_k=0 if plain else e.top_k,
                           top_p=1.0 if plain else e.top_p, seed=e.seed, sample_index=[k for k in range(samples) for _ in prompts], stop=HUMAN.encode(),
                           token_bytes=[tok.token_bytes(i) for i in range(tok.vocab_size)], batch_size=e.batch_size, show=show)
    replies = []
    for prompt, ids in zip(asked, written, strict=True):
        text = tok.decode(ids)
        # generate() leaves end-of-text out: it was reached if nothing else ended the reply
        full = len(ids) >= limit or len(prompt) + len(ids) >= model.config.block_size
        replies.append(Reply(clean_reply(text), list(map(int, ids)), not full and HUMAN not in text))
    return replies


@contextmanager
def as_store(rows: Sequence[tuple[Sequence[int], Sequence[int]]], vocab_size: int) -> Iterator[PairStore]:
    """(prompt ids, reply ids) rows as a store with one branch, so that they are scored by the code path of training pairs.

    A reply without tokens cannot be scored: ValueError.
    """
    with tempfile.TemporaryDirectory() as scratch:
        with StoreWriter(Path(scratch) / "rows", vocab_size) as writer:
            for prompt, reply in rows:
                writer.add(prompt, [0] * len(prompt), reply, [])
            writer.close({})
        yield PairStore(Path(scratch) / "rows")


def write_replies(path: Path, prompts: Sequence[Prompt], replies: Replies, temperatures: Mapping[str, float], seed: int) -> None:
    """replies.jsonl: one line per (prompt, system)."""
    with open(path, "w", encoding="utf-8") as file:
        for system, wrote in replies.items():
            for prompt, reply in zip(prompts, wrote, strict=True):
                row = {"system": system, "temperature": temperatures[system], "seed": seed, "id": prompt.id, "kind": prompt.kind,
                       "group": prompt.group or prompt.kind, "prompt": prompt.text, "reply": reply.text, "ended": reply.ended, "ids": reply.ids}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_rows(path: Path) -> list[dict]:
    """The lines of a replies.jsonl. UserError for a damaged file and for a prompt id that one system answers twice."""
    rows, seen = [], set()
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                row = json.loads(line)
                if (row["system"], row["id"]) in seen:
                    raise UserError(f"{path} line {number}: {row['system']} answers prompt {row['id']} a second time.")
                seen.add((row["system"], row["id"]))
                rows.append(row)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `python -m eval.run CONFIG` first.") from None
    except (ValueError, KeyError) as e:
        raise UserError(f"{path} line {len(rows) + 1} is damaged ({e}): run `python -m eval.run CONFIG` again.") from None
    return rows


def read_replies(path: Path) -> dict[str, list[Reply]]:
    """The replies of a replies.jsonl by system, in its order of prompts."""
    replies: dict[str, list[Reply]] = {}
    for row in read_rows(path):
        replies.setdefault(row["system"], []).append(Reply(row["reply"], row["ids"], row["ended"]))
    return replies
