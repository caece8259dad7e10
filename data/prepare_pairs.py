"""Preference pairs of any common layout -> the pair store, in the chat template of the model that is to be trained.

    python data/prepare_pairs.py CONFIG --model.init_from=MODEL --data.tokenizer=chat [--data.source=FOLDER_OR_FILES] [--key=value ...]

The tokenizer is the one of `model.init_from` (chat_tokenizer.py). What is written, where, and how rows are split, cleaned and
accounted for is as in data/prepare_hh.py. Files are .jsonl, .json, .parquet or .csv; each row is one of

    prompt, chosen, rejected      texts: a question (or a transcript, as in the last line) and two replies; "question" is another name for it, and
                                  a text "context" beside it is put before it. Where the block is too short the context is cut first, from its end
    prompt, chosen, rejected      lists of messages {"role", "content"}: the conversation so far, and the reply alone, twice
    [prompt,] chosen, rejected    two lists of messages that both hold the whole conversation
    chosen, rejected              two transcripts in HH's layout: "\\n\\nHuman: ...\\n\\nAssistant: ..."
"""
import re
import sys
from collections import Counter
from functools import cache, partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from the repository root, not from data/

import numpy as np

from chat_tokenizer import ChatTokenizer, Message, load_chat_tokenizer
from data.prepare_hh import (CHANGED, DROPPED, Drop, Encoded, Known, Pair, clean_pair, parse_known, plain, prepare_store, read_pairs,
                             write_pairs)
from data.sources import ODD, Content, Part, parse_object, read_table, tidy
from runtime.config import Config, load_config
from runtime.errors import UserError, run_main
from tokenizer import ASSISTANT, HUMAN

FORMAT = 1  # raise when the same source would be prepared differently: it is part of the content hash
REFUSED, JOINED = "refused by the chat template", "system message joined to the first turn"
TRIMMED = "context cut from its end"
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant"}
MARKER = re.compile(r"\n\n(Human|Assistant):")
Sides = tuple[list[Message], list[Message], list[str]] | tuple[str, str, list[str]]  # chosen, rejected, changes: messages or transcripts


# ---- one row: from any layout to two lists of messages -------------------------------------------------------------------

def parse_row(row: bytes | Any, level: int) -> tuple[str, Sides, Known]:
    """(what the person says first, the two sides, what else is said) of a source row. Raises ValueError saying what is wrong with it."""
    fields, changes = parse_object(row), []
    prompt, context = fields.get("prompt", fields.get("question")), fields.get("context") or ""
    context = "" if isinstance(context, str) and not context.strip() else context
    sides = [fields.get(name) for name in ("chosen", "rejected")]
    if None in fields:
        raise ValueError("more cells than the first line has columns")
    if None in sides:
        raise ValueError(f'"{("chosen", "rejected")[sides.index(None)]}" is missing')
    if type(sides[0]) is not type(sides[1]):
        raise ValueError('one of "chosen" and "rejected" is text, the other is not')
    known = parse_known(fields, level)
    if context and not all(isinstance(text, str) for text in (context, prompt, *sides)):
        raise ValueError('"context" is a text that stands before a question and two replies, all of them texts')
    if context:
        if not prompt.strip():
            raise ValueError("the question is empty")
        asked, replies = tidy(prompt).strip(), [[{"role": "assistant", "content": tidy(side).strip()}] for side in sides]
        message = in_context(tidy(context).strip(), asked)
        odd = any(map(ODD.search, (context, prompt, *sides)))
        return asked, ([message, *replies[0]], [message, *replies[1]], ["odd whitespace made plain"] * odd), known
    if isinstance(sides[0], str):
        good, bad = map(plain, sides)
        if good.startswith(HUMAN) or not prompt and MARKER.search(good):  # transcripts
            opening = next((m["content"] for m in to_messages(good) if m["role"] == "user"), good)
            return opening, (good, bad, ["odd whitespace made plain"] * ([good, bad] != sides)), known
        if prompt is None:
            raise ValueError('no "prompt" in this row, and "chosen" is no transcript with "\\n\\nHuman:" and "\\n\\nAssistant:"')
    asked = as_messages(prompt, "prompt", "user", changes) if prompt else []
    good, bad = (as_messages(side, name, "assistant", changes) for side, name in zip(sides, ("chosen", "rejected")))
    # a list that does not begin with the reply holds the whole conversation
    good, bad = (asked + side if side[0]["role"] == "assistant" else side for side in (good, bad))
    return next((m["content"] for m in good if m["role"] == "user"), ""), (good, bad, changes[:1]), known


def in_context(context: str, question: str) -> Message:
    """The user message that asks a question about a context; it remembers both, so that the context can be cut (`shorten`)."""
    content = f"Context: {context}\n\nQuestion: {question}" if context else f"Question: {question}"
    return {"role": "user", "content": content, "context": context, "question": question}


def as_messages(value: str | list, name: str, role: str, changes: list[str]) -> list[Message]:
    """A field as tidy messages; a text is one message of `role`, or a prompt in HH's layout. Raises ValueError for anything else."""
    if isinstance(value, str):
        if role == "user" and plain(value).startswith(HUMAN) and value.rstrip().endswith(ASSISTANT.strip()):
            return to_messages(plain(value))[:-1]
        value = [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        raise ValueError(f'"{name}" is neither text nor a list of messages')
    messages = []
    for message in value:
        said = message.get("content") if isinstance(message, dict) else None
        if not isinstance(said, str) or message.get("role") not in ROLES:
            raise ValueError(f'"{name}" holds something else than messages {{"role": {" or ".join(ROLES)}, "content": text}}')
        if tidy(said) != said:
            changes.append("odd whitespace made plain")
        messages.append({"role": ROLES[message["role"]], "content": tidy(said).strip()})
    return messages


def to_messages(transcript: str) -> list[Message]:
    """The messages of a transcript in HH's layout; what stands before the first marker is a system message."""
    preface, *turns = MARKER.split(transcript)
    messages = [{"role": ROLES[marker.lower()], "content": said.strip()} for marker, said in zip(turns[::2], turns[1::2])]
    return [{"role": "system", "content": preface.strip()}] * bool(preface.strip()) + messages


def merged(messages: list[Message]) -> list[Message]:
    """The messages with turns in a row by one speaker joined into one: most templates know no others."""
    joined: list[Message] = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"]:
            joined[-1] = message | {"content": "\n\n".join(filter(None, (joined[-1]["content"], message["content"])))}
        else:
            joined.append(message)
    return joined


def clean_sides(tokenizer: ChatTokenizer, instruction: str, chosen: list[Message] | str, rejected: list[Message] | str,
                changes: list[str]) -> tuple[list[Message], str, str, str, list[str]]:
    """(prompt, the prompt as text to compare, chosen reply, rejected reply, changes) of the two sides, treated alike. Raises Drop.

    `instruction` becomes the system message of a prompt that has none. A system message is only counted here where it has no place of its own: the tokenizer joins it to the turn that is then the first.
    """
    if isinstance(chosen, str):
        transcript, good, bad = clean_pair(chosen, rejected)
        prompt, given = to_messages(transcript)[:-1], to_messages(chosen)[:-1]
    else:
        if any(side[-1]["role"] != "assistant" for side in (chosen, rejected)):
            raise Drop("no assistant turn")
        given, good, bad = chosen[:-1], chosen[-1]["content"], rejected[-1]["content"]
        if all(message["role"] != "user" for message in given):
            raise Drop("no human turn before the reply")
        if given != rejected[:-1]:
            raise Drop("prompts differ")
        if given[-1]["role"] != "user":
            raise Drop("ends in two assistant turns")
        if not good or not bad:
            raise Drop("empty reply")
        if good == bad:
            raise Drop("identical replies")
        prompt = merged(given)
    changes = changes + ["turns in a row merged"] * (prompt != given)
    if instruction and prompt[0]["role"] != "system":
        prompt = [{"role": "system", "content": instruction}, *prompt]
    changes += [JOINED] * (tokenizer.join_system(prompt) != prompt)
    return prompt, "\n\n".join(f"{m['role']}: {m['content']}" for m in prompt), good, bad, changes


# ---- ids -----------------------------------------------------------------------------------------------------------------

def shorten(tokenizer: ChatTokenizer, prompt: list[Message], room: int) -> tuple[list[int], np.ndarray] | None:
    """(ids, roles) of a prompt cut from the left until it fits `room`: the oldest turns whole, then the beginning of the last one.

    A system message stays as long as there is any room for the rest. None when nothing of the prompt can be kept.
    """
    system, words, cut = [m for m in prompt[:1] if m["role"] == "system"], tokenizer.encode(prompt[-1]["content"]), 0
    turns = prompt[len(system):]
    while True:
        ids, roles = tokenizer.encode_messages(system + turns)
        if len(ids) <= room:
            return ids, roles
        if later := next((i for i, m in enumerate(turns) if i and m["role"] == "user"), 0):
            turns = turns[later:]
        elif (cut := cut + len(ids) - room) < len(words):  # half a character may be left at the cut
            turns = [prompt[-1] | {"content": tokenizer.decode(words[cut:]).lstrip("\ufffd").strip()}]
        elif system:
            system, turns, cut = [], prompt[-1:], 0
        else:
            return None


def cut_context(tokenizer: ChatTokenizer, prompt: list[Message], room: int) -> list[Message]:
    """The prompt with the context of its last message cut from the end until it fits `room`, down to none; a prompt without one as it is.

    Retrieved passages come best first, and the question stands behind them: cut on the right as one text, a prompt loses its question,
    and joined to its reply it loses the reply.
    """
    if not prompt[-1].get("context"):
        return prompt
    words = tokenizer.encode(prompt[-1]["context"])
    while words and (over := len(tokenizer.encode_messages(prompt)[0]) - room) > 0:
        words = words[:-over] if over < len(words) else []  # half a character may be left at the cut
        prompt = [*prompt[:-1], in_context(tokenizer.decode(words).rstrip("\ufffd").strip(), prompt[-1]["question"])]
    return prompt


def encode_block(tokenizer: ChatTokenizer, block_size: int, pairs: list[Pair]) -> list[Encoded | Drop]:
    """Ids of some pairs, fitted to the block, or why not. The prompt is encoded once for both sides."""
    prompts = tokenizer.encode_conversations([pair.prompt for pair in pairs])
    replies = tokenizer.encode_responses([reply for pair in pairs for reply in (pair.chosen, pair.rejected)])
    encoded: list[Encoded | Drop] = []
    for pair, prompt, chosen, rejected in zip(pairs, prompts, replies[::2], replies[1::2]):
        room = block_size - max(len(chosen), len(rejected))
        if isinstance(prompt, ValueError):
            encoded.append(Drop(REFUSED))
        elif len(prompt[0]) <= room:
            encoded.append((*prompt, chosen, rejected))
        elif short := shorten(tokenizer, fitting := cut_context(tokenizer, pair.prompt, room), room):
            pair.changes += [TRIMMED] * (fitting != pair.prompt)
            pair.changes += ["prompt shortened from the left"] * (len(tokenizer.encode_messages(fitting)[0]) > room)
            encoded.append((*short, chosen, rejected))
        else:
            encoded.append(Drop("reply longer than the block"))
    return encoded


# ---- the whole -----------------------------------------------------------------------------------------------------------

def prepare(config: Config) -> Path:
    """Prepare the pairs a config asks for in its model's chat template; the folder {train,val,test}/, tokenizer/, preparation.json. Idempotent.

    Raises UserError for what a user can mend: no pretrained model, a template that cannot be used, and all that data/prepare_hh.py names.
    """
    start = config.model.init_from
    if config.data.tokenizer != "chat":
        raise UserError("data/prepare_pairs.py writes pairs in a model's own chat template: add --data.tokenizer=chat (for the project's own "
                        "layout and tokenizers there is data/prepare_hh.py).")
    if start == "scratch":
        raise UserError("--data.tokenizer=chat is the tokenizer of a pretrained model: name one with --model.init_from.")

    @cache
    def tokenizer() -> ChatTokenizer:
        from model import find_folder  # brings torch along, which is not needed when everything is there
        return load_chat_tokenizer(find_folder(start), Path(start).name)

    def fill(folder: Path, parts: list[Part], contents: list[Content], counts: dict[str, Counter], meta: dict[str, Any]) -> None:
        pairs = read_pairs(config, parts, contents, counts, "encoding", read_table, parse_row, partial(clean_sides, tokenizer(), config.data.system))
        write_pairs(config, pairs, tokenizer(), folder, meta, counts, encode_block, (*DROPPED, REFUSED), (*CHANGED, TRIMMED, JOINED))

    return prepare_store(config, lambda: {"chat_format": FORMAT, "tokenizer": tokenizer().hash}, fill)


if __name__ == "__main__":
    run_main(lambda argv: prepare(load_config(argv)))
