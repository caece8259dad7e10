"""tokenizer.py: merges worked by hand, equality with slow independent paths and with Hugging Face, attacks, dialogues."""
import hashlib
import json
import os
import random
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import regex
import tiktoken

import tokenizer
from runtime.errors import UserError
from tokenizer import (END_OF_TEXT, Tokenizer, bpe, clean_reply, encode_prompt, encode_response, load_tokenizer,
                       split_transcript, to_bytes, to_characters, train_bpe)

# GPT-2's pattern as OpenAI published it: our PATTERN is another spelling, so this one is independent.
PUBLISHED_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

PIECES = [  # what real and hostile text is made of
    END_OF_TEXT, "<|endoftext", "<|", "|>", "\n\nHuman:", "\n\nAssistant:", "the ", " the", "Hello", "don't", "'s", "'LL",
    " ", "  ", "    ", "\n", "\n\n\n", "\r\n", "\t", "\x00", "\x07", "\x1c", "\x7f", "\x85", "\xa0", "\u2028", "\u3000",
    "\u180e", "\ufeff", "\u200d", "\u0301", "e\u0301", "é", "ß", "中文", "العربية", "हिन्दी", "१२३", "²", "½", "😀", "👩‍👩‍👧", "🇫🇷",
    "\U0001d54f", "\U0010ffff", "123", "4,567.89", "...", "?!", "</s>", "[PAD]",
]


def random_strings(number: int, seed: int) -> list[str]:
    """Strings of 0 to 25 pieces: half from PIECES, the rest any ASCII or any Unicode character."""
    rng = random.Random(seed)

    def piece() -> str:
        kind = rng.random()
        if kind < 0.5:
            return rng.choice(PIECES)
        if kind < 0.8:
            return chr(rng.randrange(128))
        return chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]))

    return ["".join(piece() for _ in range(rng.randrange(26))) for _ in range(number)]


CORPUS = ["\n\nHuman: How do I bake bread, please?\n\nAssistant: Mix the flour and the water, then bake the bread.",
          "\n\nHuman: Don't   stop!\n\n\nAssistant: The 123 breads... are baked <|endoftext|> 😀😀 and e\u0301aten."] * 3
CORPUS += random_strings(300, seed=1)


def gpt2_is_cached() -> bool:
    """Whether tiktoken can load GPT-2's vocabulary without a network."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", Path(tempfile.gettempdir()) / "data-gym-cache")
    address = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
    return all((Path(folder) / hashlib.sha1((address + file).encode()).hexdigest()).is_file()
               for file in ("vocab.bpe", "encoder.json"))


def make_tokenizer(kind: str) -> Tokenizer:
    if kind == "gpt2":
        return load_tokenizer("gpt2")
    trained = train_bpe(CORPUS, 600)
    if kind == "trained":
        return trained
    # GPT-2 numbers the 256 bytes in another order than we do: here they are shuffled.
    order = random.Random(0).sample(range(256), 256)
    return Tokenizer({token: order[rank] if rank < 256 else rank for token, rank in trained.ranks.items()}, "shuffled")


@pytest.fixture(scope="module", params=["trained", "shuffled", pytest.param("gpt2", marks=pytest.mark.skipif(
    not gpt2_is_cached(), reason="GPT-2's files are not at hand: set TIKTOKEN_CACHE_DIR to where tiktoken keeps them"))])
def tok(request) -> Tokenizer:
    return make_tokenizer(request.param)


@pytest.fixture(scope="module")
def folder(tok, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / tok.name
    tok.save(path, block_size=100_000)
    return path


@pytest.fixture(scope="module")
def hf(folder):
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)


def letters(extra: list[bytes]) -> Tokenizer:
    """The 256 bytes as ids 0..255, and `extra` tokens: small enough to work by hand."""
    return Tokenizer({token: rank for rank, token in enumerate([bytes([b]) for b in range(256)] + extra)}, "by-hand")


# --- training


def test_merges_worked_by_hand():
    # aaabdaaabac: "aa" occurs 4 times (twice in each "aaa"). Gluing it leaves  Z a b d Z a b a c  with Z = 256: "ab" and
    # "Za" occur twice each, and (97, 98) has the smaller ids.  Z Y d Z Y a c  with Y = 257: only "ZY" occurs twice.
    tok = train_bpe(["aaabdaaabac"], 256 + 3 + 1)
    assert tok.merges == [(b"a", b"a"), (b"a", b"b"), (b"aa", b"ab")]
    assert tok.encode("aaabdaaabac") == [258, ord("d"), 258, ord("a"), ord("c")]
    assert (tok.eot_id, tok.vocab_size, tok.name) == (259, 260, "bpe-260")
    assert tok.decode([258, 100]) == "aaabd" and tok.token_bytes(258) == b"aaab"
    assert bpe(b"aaabd", tok.ranks) == [b"aaab", b"d"] and bpe(b"aaabd", tok.ranks, limit=258) == [b"aa", b"ab", b"d"]


def test_counts_are_weighted_by_chunk_and_no_merge_crosses_a_cut():
    # " no" is a chunk of its own, so "y n" never merges; "no" occurs 3 times (one chunk twice), "ye" and "es" twice.
    tok = train_bpe(["yes no", "no no", "yes"], 256 + 3 + 1)
    assert tok.merges == [(b"n", b"o"), (b" ", b"no"), (b"e", b"s")]


def slow_train(texts: list[str], vocab_size: int) -> list[bytes]:
    """BPE from its definition: count all pairs anew for every merge."""
    words = Counter(chunk for text in texts for chunk in regex.findall(PUBLISHED_PATTERN, text))
    words = [([*chunk.encode()], count) for chunk, count in words.items()]
    tokens = [bytes([b]) for b in range(256)]
    while len(tokens) < vocab_size - 1:
        pairs = Counter()
        for word, count in words:
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        for word, _ in words:
            for i in range(len(word) - 1):
                if tuple(word[i : i + 2]) == best:  # a shrinking word: out-of-range slices compare unequal
                    word[i : i + 2] = [len(tokens)]
        tokens.append(tokens[best[0]] + tokens[best[1]])
    return tokens


@pytest.mark.parametrize("seed", range(4))
def test_incremental_training_equals_recounting(seed):
    rng = random.Random(seed)
    texts = ["".join(rng.choices("aab \n'é", k=60)) for _ in range(30)] + random_strings(20, seed)
    texts += ["aaaaaaaaaaaaaaa aaaaaaa"]
    tok = train_bpe(texts, 360)
    assert [tok.token_bytes(i) for i in range(tok.eot_id)] == slow_train(texts, 360)


def test_training_is_deterministic_and_ignores_the_order_of_texts():
    a, b = train_bpe(CORPUS, 400), train_bpe(iter(CORPUS[::-1]), 400)
    assert a.hash == b.hash and a.ranks == b.ranks
    assert a.hash != train_bpe(CORPUS, 401).hash


def test_training_refuses_what_it_cannot_do():
    with pytest.raises(UserError, match="at least 257"):
        train_bpe(CORPUS, 200)
    with pytest.raises(UserError, match="at most 259"):  # "abc" can be glued twice only
        train_bpe(["abc"], 1000)
    assert train_bpe(["abc"], 259).encode("abc") == [257]


# --- encoding


def slow_encode(tok: Tokenizer, text: str) -> list[int]:
    """BPE from its definition: go through the merge list once, in order, applying each merge wherever it fits."""
    ids = []
    for chunk in regex.findall(PUBLISHED_PATTERN, text):
        parts = [bytes([b]) for b in chunk.encode()]
        for left, right in tok.merges:
            i = 0
            while i < len(parts) - 1:
                if parts[i] == left and parts[i + 1] == right:
                    parts[i : i + 2] = [left + right]
                i += 1
        ids += [tok.ranks[part] for part in parts]
    return ids


def test_encoding_equals_the_definition(tok):
    number = 3 if tok.name == "gpt2" else 200  # 50,000 merges the slow way take their time
    for text in random_strings(number, seed=2) + CORPUS[:2]:
        assert tok.encode(text) == slow_encode(tok, text)


def test_decoding_gives_the_text_back(tok):
    texts = random_strings(500, seed=3)
    batch = tok.encode_batch(texts, threads=2)
    assert batch == [tok.encode(text) for text in texts]
    assert [tok.decode(np.array(ids, dtype=np.int64)) for ids in batch] == texts
    assert all(b"".join(tok.token_bytes(i) for i in ids) == text.encode() for ids, text in zip(batch, texts))
    assert tok.decode([tok.ranks[bytes([0xC3])]]) == "\ufffd"  # half of an "é"


def test_control_text_is_plain_text(tok):
    for text in [END_OF_TEXT, f"a{END_OF_TEXT}b", f" {END_OF_TEXT}\n" * 50, "<|endoftext|", "<|endof\u200dtext|>"]:
        ids = tok.encode(text)
        assert tok.eot_id not in ids and tok.decode(ids) == text and max(ids) < tok.eot_id
    assert tok.encode_batch([END_OF_TEXT]) == [tok.encode(END_OF_TEXT)]
    assert tok.decode([tok.eot_id]) == END_OF_TEXT and tok.token_bytes(tok.eot_id) == END_OF_TEXT.encode()
    assert tok.eot_id == tok.vocab_size - 1


def test_half_a_surrogate_pair_is_a_replacement_character(tok):
    broken = json.loads('"x\\ud83dy"')
    assert tok.encode(broken) == tok.encode("x\ufffdy")
    assert encode_prompt(tok, broken)[0] == encode_prompt(tok, "x\ufffdy")[0]
    assert train_bpe([broken, "ab"], 258).encode("ab") == [256]  # nor does training stumble over one


@pytest.mark.skipif(not gpt2_is_cached(), reason="GPT-2's files are not at hand: set TIKTOKEN_CACHE_DIR")
def test_gpt2_has_its_published_ids():
    tok = load_tokenizer("gpt2")
    assert tok.encode("Hello world") == [15496, 995] and (tok.vocab_size, tok.eot_id) == (50257, 50256)
    assert tok.encode("\n\nHuman: Hi\n\nAssistant:") == [198, 198, 20490, 25, 15902, 198, 198, 48902, 25]
    assert tok.merges[:3] == [(b" ", b"t"), (b" ", b"a"), (b"h", b"e")] and len(tok.merges) == 50_000
    reference = tiktoken.get_encoding("gpt2")
    assert all(tok.encode(text) == reference.encode_ordinary(text) for text in random_strings(500, seed=4))


# --- Hugging Face


def test_huggingface_gives_our_ids(tok, hf):
    texts = random_strings(1500, seed=5) + CORPUS
    texts += ["x".join(map(chr, range(start, start + 16))) for start in range(0, 0x3100, 16)]
    ours = tok.encode_batch(texts, threads=2)
    assert hf(texts, add_special_tokens=False)["input_ids"] == ours
    assert hf(texts)["input_ids"] == [[tok.eot_id] + ids for ids in ours]
    assert [hf.encode(text, add_special_tokens=False) for text in texts[:200]] == ours[:200]
    assert [hf.decode(ids) for ids in ours] == texts
    assert (len(hf), hf.eos_token_id, hf.bos_token_id, hf.pad_token_id) == (tok.vocab_size, *[tok.eot_id] * 3)
    assert hf.model_max_length == 100_000
    assert hf.decode(encode_response(tok, "Hi"), skip_special_tokens=True) == " Hi"


@pytest.mark.parametrize("again", ["as saved", "saved again by Hugging Face", "beside a GPT-2 config.json"])
def test_huggingface_never_reads_a_control_token_in_text(tok, hf, folder, tmp_path, again):
    transformers = pytest.importorskip("transformers")
    if again == "saved again by Hugging Face":
        hf.save_pretrained(tmp_path)
        hf = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert load_tokenizer(tmp_path).hash == tok.hash
    elif again == "beside a GPT-2 config.json":  # as in a checkpoint: then transformers could prefer its own GPT-2 class
        tok.save(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": tok.vocab_size}))
        hf = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert hf.split_special_tokens
    for text in [END_OF_TEXT, f"a{END_OF_TEXT}b", f"{END_OF_TEXT}{END_OF_TEXT} \n{END_OF_TEXT}"]:
        assert hf(text)["input_ids"] == [tok.eot_id] + tok.encode(text)
        assert hf.encode(text, add_special_tokens=False) == tok.encode(text)
        assert hf([text, "b"], add_special_tokens=False)["input_ids"][0] == tok.encode(text)


def test_chat_template_is_the_hh_layout(tok, hf):
    messages = [{"role": "user", "content": f" Hi {END_OF_TEXT} "}, {"role": "assistant", "content": "Hello."},
                {"role": "user", "content": "What is {{ 7*7 }}?\n\nPlease."}]
    prompt = hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == (f"\n\nHuman: Hi {END_OF_TEXT}\n\nAssistant: Hello.\n\nHuman: What is {{{{ 7*7 }}}}?\n\nPlease."
                      "\n\nAssistant:")
    assert hf(prompt)["input_ids"] == encode_prompt(tok, prompt)[0]
    assert hf.apply_chat_template(messages[:2], tokenize=False) == f"\n\nHuman: Hi {END_OF_TEXT}\n\nAssistant: Hello."
    with pytest.raises(Exception, match="user and assistant only"):
        hf.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


# --- saving and loading


def test_save_and_load_give_the_same_tokenizer(tok, folder):
    again = load_tokenizer(folder)
    assert (again.hash, again.name, again.ranks, again.eot_id) == (tok.hash, tok.name, tok.ranks, tok.eot_id)
    assert again.merges == tok.merges
    text = CORPUS[1] + "".join(PIECES)
    assert load_tokenizer(str(folder)).encode(text) == tok.encode(text)


def write_huggingface_gpt2_folder(tok: Tokenizer, folder: Path) -> None:
    """vocab.json and merges.txt, as GPT-2 lies on the Hub."""
    folder.mkdir(exist_ok=True)
    vocab = {to_characters(token): rank for token, rank in tok.ranks.items()} | {END_OF_TEXT: tok.eot_id}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = [f"{to_characters(left)} {to_characters(right)}" for left, right in tok.merges]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")


def test_plain_huggingface_gpt2_folders_load(tok, tmp_path):
    write_huggingface_gpt2_folder(tok, tmp_path / "gpt2-at-home")
    assert load_tokenizer(tmp_path / "gpt2-at-home").hash == tok.hash
    assert load_tokenizer(tmp_path / "gpt2-at-home").name == "gpt2-at-home"
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path / "gpt2-at-home")
    theirs.save_pretrained(tmp_path / "as-tokenizer-json")
    assert (tmp_path / "as-tokenizer-json" / "tokenizer.json").is_file()
    assert load_tokenizer(tmp_path / "as-tokenizer-json").hash == tok.hash


def test_byte_characters():
    assert to_characters(b" dog\n\x00\xff") == "ĠdogĊĀÿ"
    assert all(to_bytes(to_characters(bytes([b]))) == bytes([b]) for b in range(256))
    assert len(set(to_characters(bytes(range(256))))) == 256


def change(folder: Path, edit) -> None:
    """Apply `edit` to the content of a folder's tokenizer.json."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    edit(content)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("edit, says", [
    (lambda c: c["pre_tokenizer"].update(type="Metaspace"), "in another way"),
    (lambda c: c["pre_tokenizer"].update(add_prefix_space=True), "in another way"),
    (lambda c: c.update(normalizer={"type": "NFC"}), "in another way"),
    (lambda c: c["added_tokens"].append({"id": 300, "content": "<|user|>"}), "control tokens are"),
    (lambda c: c["model"]["merges"].reverse(), "order of its merges"),
    (lambda c: c["model"]["merges"].pop(), "order of its merges"),
    (lambda c: c["model"]["vocab"].pop("Ā"), "order of its merges|gaps|missing"),
    (lambda c: c["added_tokens"][0].update(id=999), "not its last id"),
    (lambda c: c.pop("model"), "model"),
])
def test_foreign_or_damaged_tokenizers_are_refused(tmp_path, edit, says):
    train_bpe(CORPUS, 300).save(tmp_path)
    change(tmp_path, edit)
    with pytest.raises(UserError, match=says):
        load_tokenizer(tmp_path)


def test_missing_tokenizers_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no tokenizer in"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"half": ')
    with pytest.raises(UserError, match="damaged"):
        load_tokenizer(tmp_path)

    def no_network(name):
        raise ConnectionError(name)

    monkeypatch.setattr(tokenizer.tiktoken, "get_encoding", no_network)
    with pytest.raises(UserError, match="TIKTOKEN_CACHE_DIR"):
        load_tokenizer("gpt2")


# --- dialogues


def test_split_is_at_the_last_marker():
    text = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d\n\nd2 "
    assert split_transcript(text) == ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", " d\n\nd2 ")
    assert split_transcript("\n\nAssistant:") == ("\n\nAssistant:", "")
    with pytest.raises(ValueError, match="no assistant turn"):
        split_transcript("\n\nHuman: a\nAssistant: b")


def test_roles_by_hand():
    # One id per byte, so the roles can be written under the text. A turn begins after its marker and ends with the first
    # token of the next one; the last marker opens a turn that is yet to be written.
    prompt = "\n\nHuman: a\n\nAssistant: bb\n\nHuman: c\n\nAssistant:"
    expected = "0" * len("\n\nHuman: a\n\nAssistant:") + "1" * len(" bb\n") + "0" * len("\nHuman: c\n\nAssistant:")
    ids, roles = encode_prompt(letters([]), prompt)
    assert ids == [256, *prompt.encode()] and roles.dtype == np.uint8
    assert "".join(map(str, roles)) == "0" + expected  # the start token is nobody's


@pytest.mark.parametrize("prompt, expected", [
    ("\n\nHuman: \n\nAssistant:", "0" * 21),
    ("\n\nAssistant:x\n\nAssistant:y\n\nHuman:", "0" * 12 + "11" + "0" * 11 + "11" + "0" * 7),  # two turns in a row
    ("\n\nAssistant:\n\nHuman:", "0" * 12 + "1" + "0" * 7),  # an empty turn is still ended
    ("\n\nAssistant: é", "0" * 12 + "111"),  # the text ends inside the turn
    ("no markers", "0" * 10),
    ("", ""),
])
def test_roles_at_the_edges(prompt, expected):
    assert "".join(map(str, encode_prompt(letters([]), prompt)[1])) == "0" + expected


def test_roles_when_a_token_lies_across_the_end_of_a_turn():
    # "b " + "\n\nHuman:" is cut into "b", " \n", "\n", "Human", ":". The token " \n" begins in the turn and holds the first
    # byte of the marker: it is what ends the turn, and the next newline is not.
    tok = letters([b" \n"])
    ids, roles = encode_prompt(tok, "\n\nAssistant:b \n\nHuman:")
    assert ids[-9:] == [ord("b"), 256, *b"\nHuman:"]
    assert "".join(map(str, roles[-9:])) == "110000000"


def test_prompt_and_response_do_not_share_a_token():
    tok = letters([b":)"])
    prompt, response = split_transcript("\n\nHuman: Smile!\n\nAssistant:)")
    assert encode_prompt(tok, prompt)[0] + encode_response(tok, response) == [257, *prompt.encode(), *b" )", 257]


def test_response_has_one_space_before_and_one_end(tok):
    for response in ["Hi", " Hi", "  Hi \n\n", f"Hi {END_OF_TEXT}", "中"]:
        ids = encode_response(tok, response)
        assert ids[-1] == tok.eot_id and ids.count(tok.eot_id) == 1 and tok.decode(ids[:-1]) == " " + response.strip()


@pytest.mark.parametrize("generated, reply", [
    (" Sure, here it is.", "Sure, here it is."),
    (" Yes.\n\nHuman: And now?\n\nAssistant: Now too.", "Yes."),
    (" One.\n\nTwo.<|endoftext|>\n\nHuman: x", "One.\n\nTwo."),
    ("\n\nHuman: I talk to myself", ""),
    (" Human: is a word here.\nHuman: too ", "Human: is a word here.\nHuman: too"),
    ("<|endoftext|>", ""),
    ("", ""),
])
def test_clean_reply(generated, reply):
    assert clean_reply(generated) == reply
