"""Text in, numbers out: bytes -> chunks -> merges -> ids -> dialogues as prompt ids + response ids.

A language model reads integers. Byte-pair encoding (BPE) makes them in three steps:

1. a text is its UTF-8 **bytes**, so every string on earth can be written with 256 symbols;
2. a regular expression cuts it into **chunks**, roughly words with their leading space, and no token crosses a cut;
3. inside a chunk, frequent neighbours are glued together by a learned list of **merges**; what is left are the tokens.

This file trains such a merge list from scratch (`train_bpe`), or takes GPT-2's (`load_tokenizer("gpt2")`), and hands
either to tiktoken, which applies it fast. Its last part turns a dialogue into prompt ids + response ids.
"""
import functools
import hashlib
import heapq
import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import regex  # like `re`, but knows \p{L} (any letter of any script); tiktoken brings it
import tiktoken

from runtime.errors import UserError

END_OF_TEXT = "<|endoftext|>"  # the only control token: it starts every row, ends every response, and pads
HUMAN = "\n\nHuman:"  # HH's turn markers: ordinary text, a few ordinary tokens each
ASSISTANT = "\n\nAssistant:"

# GPT-2's chunk pattern, in tiktoken's equivalent but faster spelling (`++` never gives back what it matched). In order:
# English contractions; a run of letters; of digits; of anything else but whitespace (these three take one leading space
# along, so " dog" is one chunk); whitespace at the end; a run of whitespace but its last, which the next word may take;
# that last one.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""

# ----------------------------------------------------------------------------------------------------------------------
# Merges: how BPE encodes one chunk, and how it is trained


def bpe(chunk: bytes, ranks: dict[bytes, int], limit: int | None = None) -> list[bytes]:
    """The whole algorithm on one chunk: glue the neighbours whose merge was learned first, until no learned pair is left.

    `ranks` maps a token's bytes to its id; ids are given in the order of learning, so the lowest goes first (Sennrich et
    al. 2016, arXiv:1508.07909). Only merges with ids below `limit` are used. tiktoken does this in Rust; this slow twin
    is here to be read, and to recover the two halves that a token was made of.
    """
    parts = [bytes([byte]) for byte in chunk]
    limit = len(ranks) if limit is None else limit
    while len(parts) > 1:
        rank, i = min((ranks.get(parts[i] + parts[i + 1], limit), i) for i in range(len(parts) - 1))
        if rank >= limit:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def train_bpe(texts: Iterable[str], vocab_size: int) -> "Tokenizer":
    """Train a byte-level BPE of `vocab_size` ids: 256 bytes, the learned merges, and end-of-text as the last id.

    Deterministic: it depends on how often each chunk occurs, not on the order of the texts, and of two equally frequent
    pairs the one with the smaller ids wins. Texts are streamed; only distinct chunks stay in memory.
    Raises UserError when the vocabulary cannot hold the bytes, or the texts are too small to fill it.
    """
    if vocab_size < 257:
        raise UserError(f"a byte-level vocabulary needs at least 257 ids (256 bytes and end-of-text): raise "
                        f"data.vocab_size, which is {vocab_size}.")
    chunk_counts: Counter[str] = Counter()
    find_chunks = regex.compile(PATTERN).findall
    for text in texts:
        chunk_counts.update(find_chunks(text))
    # From here on a word is a list of ids, at first its bytes, and 300 MB of dialogue are some 300,000 words with counts.
    words = [list(chunk.encode("utf-8", errors="replace")) for chunk in chunk_counts]
    tokens = [bytes([byte]) for byte in range(256)]
    for left, right in learn_merges(words, list(chunk_counts.values()), vocab_size - 257):
        tokens.append(tokens[left] + tokens[right])
    if len(tokens) < vocab_size - 1:
        raise UserError(f"the text to train a tokenizer on is too small: set data.vocab_size to at most "
                        f"{len(tokens) + 1}, which is all it can fill, or give more text.")
    return Tokenizer({token: rank for rank, token in enumerate(tokens)}, name=f"bpe-{vocab_size}")


def learn_merges(words: list[list[int]], counts: list[int], number: int) -> list[tuple[int, int]]:
    """The `number` merges of a BPE, in order: again and again, glue the most frequent pair of neighbours into a new id.

    words: ids of each distinct chunk, changed in place; counts: how often it occurs. Merge m makes id 256 + m.
    Recounting all pairs after every merge would take hours. So the counts are kept up to date from the few words that a
    merge changes, and a heap finds the largest. A merge creates new pairs and makes old ones rarer, so a heap entry can
    only be too high: when one comes up whose count has dropped since, it goes back with its true count.
    """
    pair_counts: Counter[tuple[int, int]] = Counter()
    words_with = defaultdict(list)  # pair -> indices of the words that hold it (or did once)
    for i, word in enumerate(words):
        for pair in zip(word, word[1:]):
            pair_counts[pair] += counts[i]
            words_with[pair].append(i)
    heap = [(-count, pair) for pair, count in pair_counts.items()]  # smallest first: most frequent, then smaller ids
    heapq.heapify(heap)

    merges: list[tuple[int, int]] = []
    while heap and len(merges) < number:
        negative_count, pair = heapq.heappop(heap)
        true_count = pair_counts[pair]
        if true_count != -negative_count:
            if true_count > 0:
                heapq.heappush(heap, (-true_count, pair))
            continue
        new_id = 256 + len(merges)
        merges.append(pair)
        new_pairs = set()
        for i in set(words_with.pop(pair)):
            old, word = words[i], merge_pair(words[i], pair, new_id)
            if len(word) == len(old):  # an earlier merge took the pair out of this word
                continue
            words[i] = word
            for old_pair in zip(old, old[1:]):
                pair_counts[old_pair] -= counts[i]
            for now in zip(word, word[1:]):
                pair_counts[now] += counts[i]
                if new_id in now:  # all other pairs of this word were there before, and are known
                    words_with[now].append(i)
                    new_pairs.add(now)
        for now in new_pairs:
            heapq.heappush(heap, (-pair_counts[now], now))
    return merges


def merge_pair(word: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    """A copy of `word` with every occurrence of `pair`, left to right, replaced by `new_id`."""
    merged, i = [], 0
    while i < len(word):
        if i + 1 < len(word) and word[i] == pair[0] and word[i + 1] == pair[1]:
            merged.append(new_id)
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return merged


# ----------------------------------------------------------------------------------------------------------------------
# Ids: the tokenizer itself


class Tokenizer:
    """A byte-level BPE with one control token. Its `vocab_size` ids are the ranks 0 .. n-1 and end-of-text, `eot_id` = n.

    ranks: token bytes -> id, with the ids of merged tokens in the order they were learned. Two tokenizers with the same
    `hash` give the same ids for every text. Raises ValueError when the ids have gaps or a byte is missing.
    """

    def __init__(self, ranks: dict[bytes, int], name: str):
        if sorted(ranks.values()) != list(range(len(ranks))):
            raise ValueError("token ids must run from 0 without gaps, with end-of-text as the last")
        if any(bytes([byte]) not in ranks for byte in range(256)):
            raise ValueError("some of the 256 single bytes are missing")
        self.name = name
        self.ranks = ranks
        self.eot_id = len(ranks)
        self.vocab_size = len(ranks) + 1
        special = {END_OF_TEXT: self.eot_id}
        self.encoding = tiktoken.Encoding(name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)
        self._token_bytes = sorted(ranks, key=ranks.__getitem__) + [END_OF_TEXT.encode()]  # id -> bytes

    @functools.cached_property
    def hash(self) -> str:
        """sha256 over everything that decides the ids: the pattern, the tokens in order, the control token."""
        content = [PATTERN, END_OF_TEXT, [token.hex() for token in self._token_bytes]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @functools.cached_property
    def merges(self) -> list[tuple[bytes, bytes]]:
        """The merge list, in order. `ranks` holds only its results; encoding a token without itself gives its halves.

        Raises ValueError when the ranks cannot come from a merge list.
        """
        learned = [token for token in self._token_bytes[:-1] if len(token) > 1]
        merges = [tuple(bpe(token, self.ranks, limit=self.ranks[token])) for token in learned]
        if any(len(merge) != 2 for merge in merges):
            raise ValueError(f"tokenizer {self.name}: its ids are not in the order of its merges")
        return merges

    def encode(self, text: str) -> list[int]:
        """Ids of a text. "<|endoftext|>" written in it is plain text, several ordinary ids and never `eot_id`: a control
        token that anybody can type would let them end a document. Half a surrogate pair, which occurs in JSON though it
        is no valid Unicode, is read as the replacement character U+FFFD.
        """
        return self.encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str], threads: int = 4) -> list[list[int]]:
        """`encode` for many texts at once, on several threads (tiktoken releases Python's lock)."""
        return self.encoding.encode_ordinary_batch(texts, num_threads=threads)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Bytes that are not valid UTF-8 (a character cut in half) show as U+FFFD."""
        return b"".join(self._token_bytes[i] for i in ids).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one id."""
        return self._token_bytes[token_id]

    def save(self, folder: str | Path, block_size: int | None = None) -> None:
        """Write tokenizer.json and tokenizer_config.json, from which `load_tokenizer(folder)` gives this tokenizer again.

        With `hf = AutoTokenizer.from_pretrained(folder)`, `hf(text)` gives `[eot_id] + encode(text)`, and
        `hf(text, add_special_tokens=False)` just `encode(text)`. block_size becomes Hugging Face's model_max_length.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in (("tokenizer.json", huggingface_tokenizer(self)),
                              ("tokenizer_config.json", huggingface_config(self, block_size))):
            (folder / file).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


# ----------------------------------------------------------------------------------------------------------------------
# Files: the Hugging Face format, and GPT-2's own vocabulary


def byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each byte: itself where Latin-1 prints it, else the next character from U+0100 on.

    Vocabulary files are JSON, which holds text and not bytes: there a space is written "Ġ" and a newline "Ċ".
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(256 + hidden.index(byte)) if byte in hidden else chr(byte) for byte in range(256)]


CHARACTER_OF = byte_characters()
BYTE_OF = {character: byte for byte, character in enumerate(CHARACTER_OF)}


def to_characters(token: bytes) -> str:
    """b" dog" -> "Ġdog", as vocabulary files spell it."""
    return "".join(CHARACTER_OF[byte] for byte in token)


def to_bytes(characters: str) -> bytes:
    """The way back: "Ġdog" -> b" dog". Raises KeyError for a character that stands for no byte."""
    return bytes(BYTE_OF[character] for character in characters)


def huggingface_tokenizer(tok: Tokenizer) -> dict:
    """The content of tokenizer.json: the format of Hugging Face's `tokenizers`, in the layout that GPT-2 itself has there.

    Its post-processor puts the start token first. Nothing else does, so there is never a second one.
    """
    start, text, second = {"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}, *(
        {"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    # "ByteLevel" with use_regex has the chunk pattern built in.
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocab = {to_characters(token): rank for token, rank in tok.ranks.items()} | {END_OF_TEXT: tok.eot_id}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": tok.eot_id, "content": END_OF_TEXT, "special": True, "single_word": False,
                          "lstrip": False, "rstrip": False, "normalized": False}],
        "normalizer": None, "pre_tokenizer": byte_level, "decoder": byte_level,
        "post_processor": {
            "type": "TemplateProcessing", "single": [start, text], "pair": [start, text, second],
            "special_tokens": {END_OF_TEXT: {"id": END_OF_TEXT, "ids": [tok.eot_id], "tokens": [END_OF_TEXT]}}},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": vocab,
            "merges": [f"{to_characters(left)} {to_characters(right)}" for left, right in tok.merges]},
    }


# Jinja: chat messages -> HH's layout, ending with the assistant's marker when a reply is wanted, as our prompts do.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '\\n\\nHuman: ' + message['content'] | trim }}"
    "{% elif message['role'] == 'assistant' %}{{ '\\n\\nAssistant: ' + message['content'] | trim }}"
    "{% else %}{{ raise_exception('this model knows the roles user and assistant only') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)


def huggingface_config(tok: Tokenizer, block_size: int | None) -> dict:
    """The content of tokenizer_config.json. `split_special_tokens`: "<|endoftext|>" in a text is plain text there too."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "name_or_path": tok.name, "split_special_tokens": True,
        "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False, "chat_template": CHAT_TEMPLATE,
    }
    return config if block_size is None else config | {"model_max_length": block_size}


def load_tokenizer(name_or_folder: str | Path) -> Tokenizer:
    """The tokenizer "gpt2", or the one in a folder: ours, or Hugging Face's GPT-2 (tokenizer.json, or vocab.json with
    merges.txt). Raises UserError when there is none, or one of another kind."""
    if str(name_or_folder) == "gpt2":
        try:
            return Tokenizer(tiktoken.get_encoding("gpt2")._mergeable_ranks, "gpt2")
        except (OSError, ValueError) as error:  # no network and no cache, or a damaged download
            raise UserError("GPT-2's vocabulary could not be downloaded: connect once, or set TIKTOKEN_CACHE_DIR to a "
                            "folder that tiktoken filled elsewhere, or train one with --data.tokenizer=bpe.") from error
    folder = Path(name_or_folder)
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        raise UserError(f"no tokenizer in {folder}: name a folder that holds tokenizer.json, or gpt2, or bpe to train "
                        "one.")
    try:
        vocab, merges = read_vocabulary(folder)
        ranks = {to_bytes(token): rank for token, rank in vocab.items() if token != END_OF_TEXT}
        # tiktoken takes the id for the order of learning.
        if [vocab[left + right] for left, right in merges] != list(range(256, len(ranks))):
            raise ValueError("its ids are not in the order of its merges")
        if vocab[END_OF_TEXT] != len(ranks):
            raise ValueError("end-of-text is not its last id")
        return Tokenizer(ranks, read_name(folder))
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the tokenizer in {folder} is damaged, or not a GPT-2 style byte-level BPE whose only control "
                        f"token is {END_OF_TEXT}: {error}.") from error


def read_vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token -> id and the merges of a folder; ValueError for a tokenizer.json that would not give GPT-2's ids."""
    if not (folder / "tokenizer.json").is_file():
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        return json.loads((folder / "vocab.json").read_text(encoding="utf-8")), merges
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    cut, model = content["pre_tokenizer"], content["model"]
    if cut["type"] != "ByteLevel" or cut["add_prefix_space"] or not cut.get("use_regex", True) or content["normalizer"]:
        raise ValueError("it cuts texts into chunks in another way")
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    if set(added) != {END_OF_TEXT}:
        raise ValueError(f"its control tokens are {sorted(added)}")
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    return model["vocab"] | added, merges


def read_name(folder: Path) -> str:
    """The name that `Tokenizer.save` noted, else the folder's."""
    config = folder / "tokenizer_config.json"
    noted = json.loads(config.read_text(encoding="utf-8")).get("name_or_path") if config.is_file() else None
    return noted or folder.name


# ----------------------------------------------------------------------------------------------------------------------
# Dialogues: a transcript -> prompt ids + response ids


def split_transcript(text: str) -> tuple[str, str]:
    """Cut a transcript at its LAST assistant marker: the prompt (with the marker) and the response to it.

    Raises ValueError when there is no assistant marker.
    """
    cut = text.rfind(ASSISTANT)
    if cut < 0:
        raise ValueError(f"no assistant turn: the transcript holds no {ASSISTANT!r}")
    return text[: cut + len(ASSISTANT)], text[cut + len(ASSISTANT) :]


def encode_prompt(tok: Tokenizer, prompt: str) -> tuple[list[int], np.ndarray]:
    """Ids of a prompt, [eot] first as its start token, and the role of each id (uint8, `prompt_roles`).

    Prompt and response are tokenized separately and joined as ids. In one piece, "Assistant:" and a reply ")" would share
    the token ":)", and the two replies to one prompt would not start from the same ids.
    """
    ids = [tok.eot_id] + tok.encode(prompt)
    return ids, prompt_roles(tok, ids)


def prompt_roles(tok: Tokenizer, ids: Sequence[int]) -> np.ndarray:
    """[len(ids)] uint8: 1 for the tokens of earlier assistant turns and for the one token that ends each, 0 for the rest.

    A speaker says some words *and* that they are done, so the token that ends a turn belongs to it: the first one of the
    marker that follows. A token lies where its first byte lies: borders of tokens and turns need not fall together.
    ids: a whole prompt, start token first.
    """
    pieces = [tok.token_bytes(i) for i in ids[1:]]
    text = b"".join(pieces)
    said_by_assistant = np.zeros(len(text), np.uint8)  # per byte
    markers = list(re.finditer(f"{HUMAN}|{ASSISTANT}".encode(), text))
    for marker, following in itertools.zip_longest(markers, markers[1:]):
        if marker[0] == ASSISTANT.encode():
            turn_end = following.start() + 1 if following else len(text)
            said_by_assistant[marker.end() : turn_end] = 1
    starts = np.cumsum([0] + [len(piece) for piece in pieces])[:-1]  # first byte of each token
    return np.concatenate([np.zeros(1, np.uint8), said_by_assistant[starts]])


def encode_response(tok: Tokenizer, response: str) -> list[int]:
    """Ids of a response: one leading space, as in HH's "Assistant: Hello", no other space around it; then end-of-text."""
    return tok.encode(" " + response.strip()) + [tok.eot_id]


def clean_reply(text: str) -> str:
    """The reply in a generated text: up to end-of-text or the next human turn, which a model may go on to invent."""
    return text.split(END_OF_TEXT)[0].split(HUMAN)[0].strip()
