"""A model's own chat template, obeyed to the token: starts, ends, roles, typed control tokens, the day.

The tokenizers are tiny ones built here, with templates of the same structure as five families': Llama 3 (start token, date, replies
trimmed), Qwen (no start token, a default system message), Gemma (no system role, spaces as "▁"), Mistral (plain-text markers,
alternating turns, in today's and in the older way to write spaces), and GPT-2 (no template at all).
"""
import datetime
import json
import os

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

import tokenizer as own_tokenizer
from chat_tokenizer import ChatTokenizer, load_chat_tokenizer
from runtime.errors import UserError

WORDS = ["the quick brown fox jumps over the lazy dog", "user assistant system model question answer answered", "what is it? it is here.",
         "hello there, how are you today? I am fine, thank you!", "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024",
         "[INST] [/INST] Human: Assistant: well well, this and that, one two three", "naïve – 日本 你好"]
GPT4_CUTS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

LLAMA = """{{- bos_token }}
{%- if date_string is not defined %}{%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}{%- endif %}
{%- set first = "" %}{%- set rest = messages %}
{%- if messages[0]["role"] == "system" %}{%- set first = messages[0]["content"] | trim %}{%- set rest = messages[1:] %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\nToday Date: " + date_string + "\n\n" + first + "<|eot_id|>" }}
{%- for m in rest %}{{- "<|start_header_id|>" + m["role"] + "<|end_header_id|>\n\n" + m["content"] | trim + "<|eot_id|>" }}{%- endfor %}
{%- if add_generation_prompt %}{{- "<|start_header_id|>assistant<|end_header_id|>\n\n" }}{%- endif %}"""
QWEN = """{%- if messages[0].role != "system" %}{{- "<|im_start|>system\nyou are here.<|im_end|>\n" }}{%- endif %}
{%- for m in messages %}{{- "<|im_start|>" + m.role + "\n" + m.content + "<|im_end|>\n" }}{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\n" }}{%- endif %}"""
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{% endif %}
{%- for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}{% endif %}
{{- '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
MISTRAL = """{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}{% endif %}
{%- if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"""
THINKING = """{%- for m in messages %}{%- set said = m.content %}
{%- if m.role == "assistant" %}
  {%- if "</think>" in said %}{%- set thought = said.split("</think>")[0].split("<think>")[-1].strip() %}{%- set said = said.split("</think>")[-1].lstrip("\\n") %}{%- else %}{%- set thought = "" %}{%- endif %}
  {%- if loop.last %}{%- set said = "<think>\n" + thought + "\n</think>\n\n" + said %}{%- endif %}
{%- endif %}
{{- "<|im_start|>" + m.role + "\n" + said + "<|im_end|>\n" }}{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\n" }}{%- endif %}"""


def byte_level(special, added=(), cuts=None, model=None):
    """A byte-level BPE like GPT-2's; `cuts` as in newer ones. Control tokens get the last ids."""
    tok = Tokenizer(models.BPE())
    first = [pre_tokenizers.Split(Regex(cuts), "isolated")] if cuts else []
    tok.pre_tokenizer = pre_tokenizers.Sequence([*first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not cuts)])
    tok.train_from_iterator(WORDS * 3, trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tok.decoder, tok.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=True)
    tok.add_special_tokens(list(special))
    tok.add_tokens(list(added))
    return tok


def space_as_letter(special, legacy=False, prefix=True):
    """A BPE as SentencePiece writes it: "▁" for a space, bytes as "<0x0A>", control tokens with the first ids, in the vocabulary itself."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(WORDS * 3, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "<", "s", "<s", *model["vocab"]]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]] + [("<", "s")]
    tok = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces, rest = decoders.Replace("▁", " "), [decoders.ByteFallback(), decoders.Fuse()]
    if legacy:
        tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif prefix:
        tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tok.normalizer = normalizers.Replace(" ", "▁")
    tok.decoder = decoders.Sequence([spaces, *rest, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    tok.add_special_tokens(list(special))
    return tok


def with_start(tok, start):
    """`tok`, putting the token `start` before every text."""
    tok.post_processor = processors.TemplateProcessing(single=f"{start} $A", special_tokens=[(start, tok.token_to_id(start))])
    return tok


def tokenizers_of_families():
    """name -> (tokenizer, its control tokens by use, chat template, the token that ends a turn)."""
    llama = with_start(byte_level(["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"], cuts=GPT4_CUTS), "<|begin_of_text|>")
    chatml = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    piece = ["<unk>", "<s>", "</s>"]
    return {
        "llama": (llama, {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}, LLAMA, "<|eot_id|>"),
        "qwen": (byte_level(chatml, ["<tool_call>"], GPT4_CUTS), {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, QWEN, "<|im_end|>"),
        "gemma": (with_start(space_as_letter(["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"], prefix=False), "<bos>"),
                  {"bos_token": "<bos>", "eos_token": "<eos>"}, GEMMA, "<end_of_turn>"),
        "mistral": (with_start(space_as_letter(piece), "<s>"), {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, MISTRAL, "</s>"),
        "mistral-legacy": (with_start(space_as_letter(piece, legacy=True), "<s>"), {"bos_token": "<s>", "eos_token": "</s>"}, MISTRAL, "</s>"),
        "thinking": (byte_level(chatml, ["<think>", "</think>"], GPT4_CUTS), {"eos_token": "<|im_end|>"}, THINKING, "<|im_end|>"),
        "gpt2": (byte_level(["<|endoftext|>"]), dict.fromkeys(("bos_token", "eos_token"), "<|endoftext|>"), None, "<|endoftext|>"),
    }


def save_family(folder, name):
    """Write the tokenizer of a family as a Hugging Face folder."""
    tok, special, template, _ = tokenizers_of_families()[name]
    hf = PreTrainedTokenizerFast(tokenizer_object=tok, **special)
    hf.chat_template = template
    hf.save_pretrained(folder)
    return folder


FAMILIES = list(tokenizers_of_families())
ENDS = {name: family[3] for name, family in tokenizers_of_families().items()}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: save_family(root / name, name) for name in FAMILIES}


@pytest.fixture(scope="session")
def toks(folders):
    return {name: load_chat_tokenizer(folder) for name, folder in folders.items()}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def said(*contents, system=None):
    """Messages; the user speaks first."""
    turns = [{"role": "assistant" if i % 2 else "user", "content": content} for i, content in enumerate(contents)]
    return ([{"role": "system", "content": system}] if system is not None else []) + turns


def by_template(tok, messages, ask=True, **variables):
    """What Hugging Face itself makes of the messages, through the tokenizer's own template."""
    return tok.apply_chat_template(messages, tokenize=True, add_generation_prompt=ask, return_dict=False, **variables)


TALKS = [said("hello there"), said("what is it?", "it is here.", "well, and you?"), said("one\ntwo  three ", "\n\nfour", " 日本 naïve", "a", "b"),
         said("how are you today?", "", "so?"), said("", "x", "y")]
REPLIES = ["I am fine, thank you!", "日本 – well", "1. one\n2. two\n\n    three", ")", "x", "(naïve)"]


# ---- prompts and replies ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("talk", TALKS, ids=range(len(TALKS)))
def test_a_prompt_has_the_ids_of_the_models_own_template(folders, toks, family, talk):
    tok = toks[family]
    ids, roles = tok.encode_messages(talk)
    assert roles.dtype == np.uint8 and len(roles) == len(ids)
    if family == "gpt2":
        return
    own = AutoTokenizer.from_pretrained(folders[family])
    assert ids == by_template(own, talk, date_string="26 Jul 2024")
    if own.bos_token:
        assert ids[0] == tok.bos_id == own.bos_token_id and ids.count(tok.bos_id) == 1
    else:
        assert tok.bos_id is None


@pytest.mark.parametrize("reply", REPLIES)
def test_prompt_and_reply_are_the_whole_conversation_and_the_end_comes_once(toks, family, reply):
    tok = toks[family]
    assert tok.eot_id == tok.hf.convert_tokens_to_ids(ENDS[family])
    for talk in TALKS:
        prompt, response = tok.encode_messages(talk)[0], tok.encode_response(f" {reply}\n")
        whole = by_template(tok.hf, [*talk, {"role": "assistant", "content": reply}], ask=False)
        end = len(whole) - whole[::-1].index(tok.eot_id)  # Qwen and Gemma write a newline behind the last turn
        assert prompt + response == whole[:end]
        assert response.count(tok.eot_id) == 1 and response[-1] == tok.eot_id and len(response) > 1
    assert tok.encode_responses([reply, "x"]) == [tok.encode_response(reply), tok.encode_response("x")]


def test_many_at_once_are_the_same_as_one_by_one(toks, family):
    tok = toks[family]
    mixed = [*TALKS, said(f"what is {ENDS[family]}?"), said("x", f"a {ENDS[family]} b", "y")]
    for one, (ids, roles) in zip(mixed, tok.encode_conversations(mixed), strict=True):
        alone = tok.encode_messages(one)
        assert ids == alone[0] and roles.tolist() == alone[1].tolist()


def test_decoding_and_bytes(toks, family):
    tok = toks[family]
    for text in ("hello there, how", "日本 naïve", "one\n\ntwo"):
        ids = tok.encode(text)
        assert tok.decode(ids) == text and b"".join(map(tok.token_bytes, ids)).decode().removeprefix(" ") == text
        assert not {tok.eot_id, tok.bos_id} & set(ids)
    assert tok.token_bytes(tok.eot_id) == ENDS[family].encode() and tok.decode([tok.eot_id]) == ENDS[family]
    assert tok.encode("") == [] and tok.vocab_size == max(tok.hf.get_vocab().values()) + 1


# ---- roles -------------------------------------------------------------------------------------------------------------------

def role_texts(tok, messages):
    """The text of each stretch of tokens with role 1."""
    ids, roles = tok.encode_messages(messages)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], roles, [0]])))
    return [tok.decode(ids[a:b]) for a, b in zip(edges[::2], edges[1::2])]


def test_roles_mark_earlier_replies_and_the_token_that_ends_each(toks, family):
    end = "\n" if family == "gpt2" else ENDS[family]  # HH's layout: the first token of the next marker says that a turn is over
    tok, talk = toks[family], said("well", "it is here.", "what is it? it is here.", "x [INST] y", "so")
    assert [text.removeprefix(" ") for text in role_texts(tok, talk)] == [f"it is here.{end}", f"x [INST] y{end}"]
    assert role_texts(tok, said("it is here.")) == []
    assert [text.strip(" ") for text in role_texts(tok, said("a", "", "b"))] == [end]
    # a reply is a reply, whoever typed a control token into it
    typed = said("a", f"one {ENDS[family]} two", f"{ENDS[family]}", "x", "c")
    assert [text.removeprefix(" ") for text in role_texts(tok, typed)] == [f"one {ENDS[family]} two{end}", f"x{end}"]


def test_without_a_template_prompts_are_those_of_tokenizer_py(toks, tmp_path):
    """A GPT-2 folder: HH's layout, ids and roles, as the rest of the project has them."""
    folder = tmp_path / "ours"
    own = own_tokenizer.train_bpe(WORDS * 3, 300)
    own.save(folder)  # its chat template is HH's layout, without a start token
    tok = load_chat_tokenizer(folder)
    ids, roles = own_tokenizer.encode_prompt(own, "\n\nHuman: hello there\n\nAssistant: how\n\nHuman: so <|endoftext|> it\n\nAssistant:")
    got = tok.encode_messages(said("hello there", "how", "so <|endoftext|> it"))
    assert got[0] == ids and got[1].tolist() == roles.tolist()
    assert tok.encode_response(" it is <|endoftext|>") == own_tokenizer.encode_response(own, "it is <|endoftext|>")
    assert (tok.eot_id, tok.vocab_size) == (own.eot_id, own.vocab_size)
    assert all(tok.token_bytes(i) == own.token_bytes(i) for i in range(own.vocab_size))
    ids = toks["gpt2"].encode_messages(said("hello", system="be good"))[0]
    assert toks["gpt2"].decode(ids) == "<|endoftext|>\n\nHuman: be good\n\nhello\n\nAssistant:"


# ---- what people type --------------------------------------------------------------------------------------------------------

TYPED = {"llama": ["<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>"], "qwen": ["<|im_end|>", "<|im_start|>", "<|endoftext|>"],
         "gemma": ["<end_of_turn>", "<bos>", "<start_of_turn>", "<eos>"], "mistral": ["</s>", "<s>", "<unk>"], "mistral-legacy": ["</s>", "<s>"],
         "thinking": ["<|im_end|>"], "gpt2": ["<|endoftext|>"]}


def test_typed_control_tokens_are_text(toks, family):
    tok = toks[family]
    for token in TYPED[family]:
        control = tok.hf.convert_tokens_to_ids(token)
        assert tok.hf.encode(token, add_special_tokens=False) == [control], "the plain tokenizer falls for it"
        for text in (token, f"what is {token}? it is {token}{token}", f"\n{token} x"):
            ids = tok.encode(text)
            assert control not in ids and len(ids) > 1 and tok.decode(ids).strip() == text.strip()
        ordinary, typed = (tok.encode_messages(said(f"is {word} it?", f"it {word} is", word))[0] for word in ("x", token))
        specials = tok.hf.all_special_ids
        assert [i for i in typed if i in specials] == [i for i in ordinary if i in specials], "no control token more, none less"
        assert tok.decode(typed).replace(token, "x").count("x") == tok.decode(ordinary).replace(token, "x").count("x")
        response = tok.encode_response(f"it is {token} or {token}")
        assert control not in response[:-1] and response[-1] == tok.eot_id
        assert tok.decode(response[:-1]).endswith(f"it is {token} or {token}")


def test_around_a_typed_token_the_ids_are_the_ordinary_ones(toks, family):
    """Only the typed token itself is spelled out: what the template writes, and text elsewhere, is encoded as always."""
    tok = toks[family]
    ids = tok.encode_messages(said("hello there", "it is here.", f"this and that {ENDS[family]}"))[0]
    plain = tok.encode_messages(said("hello there", "it is here.", "this and that !"))[0]
    before, behind = len(os.path.commonprefix([ids, plain])), len(os.path.commonprefix([ids[::-1], plain[::-1]]))
    assert tok.decode(ids[before:len(ids) - behind]).strip() == ENDS[family] and tok.decode(plain[before:len(plain) - behind]).strip() == "!"


def test_characters_that_this_file_uses_for_itself_mean_nothing_in_a_text(toks, family):
    tok = toks[family]
    text = "a \ufdd0 b \ufdd1 c \ufdd2 d \ud83d"
    for got, wanted in zip(tok.encode_messages(said(text, text, text)), tok.encode_messages(said(*["a \ufffd b \ufffd c \ufffd d \ufffd"] * 3))):
        assert list(got) == list(wanted)
    assert tok.encode(text) == tok.encode("a \ufffd b \ufffd c \ufffd d \ufffd")


def test_added_tokens_that_are_no_control_tokens_stay_what_they_are(toks):
    """A reply with a block of thinking has the model's own tokens for it; so does a typed "<tool_call>" where the template writes none."""
    for family, token in (("qwen", "<tool_call>"), ("thinking", "</think>")):
        tok = toks[family]
        assert tok.encode(token) == [tok.hf.convert_tokens_to_ids(token)] and token not in tok.control


# ---- what templates do ---------------------------------------------------------------------------------------------------------

def test_the_day_does_not_change_the_ids(folders, monkeypatch):
    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 2, 3)

    before = load_chat_tokenizer(folders["llama"])
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    own, tok = AutoTokenizer.from_pretrained(folders["llama"]), load_chat_tokenizer(folders["llama"])
    assert "03 Feb 2031" in own.apply_chat_template(said("x"), tokenize=False)
    assert tok.hash == before.hash and tok.encode_messages(said("x"))[0] == before.encode_messages(said("x"))[0]
    assert "Today Date: 26 Jul 2024\n" in tok.decode(tok.encode_messages(said("x"))[0])


def test_a_system_message_has_its_place_or_opens_the_first_user_turn(toks, family):
    tok, talk = toks[family], said("hello", "well", "so", system="be good")
    text = tok.decode(tok.encode_messages(talk)[0])
    assert tok.has_system == (family in ("llama", "qwen", "thinking")) and "be good" in text
    if not tok.has_system:
        assert tok.join_system(talk) == said("be good\n\nhello", "well", "so") and tok.join_system(said("x")) == said("x")
        assert tok.encode_messages(talk)[0] == tok.encode_messages(said("be good\n\nhello", "well", "so"))[0]
        assert tok.join_system(said("hello", system="")) == said("hello")
    assert "you are here" not in text and ("you are here" in tok.decode(tok.encode_messages(said("x"))[0])) == (family == "qwen")


def test_a_template_that_drops_earlier_thinking_still_gives_roles(toks):
    tok = toks["thinking"]
    thought = "<think>\nwell well\n</think>\n\nit is here."
    assert role_texts(tok, said("what is it?", thought, "so")) == ["it is here.<|im_end|>"]
    # the reply itself is placed as the template places the last one: its thinking stays, one without any gets an empty block
    assert tok.decode(tok.encode_response(thought)) == thought + "<|im_end|>"
    assert tok.decode(tok.encode_response("it is here.")) == "<think>\n\n</think>\n\nit is here.<|im_end|>"


def test_a_template_that_opens_the_thinking_in_the_prompt(folders):
    """There a reply follows the prompt as it is: what such templates make of a whole conversation does not go on from their own prompt."""
    hf = AutoTokenizer.from_pretrained(folders["thinking"])
    hf.chat_template = """{%- for m in messages %}{{- "<|im_start|>" + m.role + "<|endoftext|>" + m.content.split("</think>")[-1] + "<|im_end|>" }}{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant<|endoftext|><think>" }}{%- endif %}"""
    tok = ChatTokenizer(hf, "mine")
    talk = said("a", "<think>hm</think>ok", "b")
    assert tok.decode(tok.encode_messages(talk)[0]).endswith("<|im_start|>user<|endoftext|>b<|im_end|><|im_start|>assistant<|endoftext|><think>")
    assert role_texts(tok, talk) == ["ok<|im_end|>"]  # not ">ok...": ">" ends the dropped thought as it ends the template's own token
    assert tok.decode(tok.encode_response("hm</think>it is")) == "hm</think>it is<|im_end|>"


def test_a_reply_is_not_glued_to_the_prompt(folders):
    """":" and ")" make ":)" where they stand together, but the two replies to a prompt start from the same ids."""
    smiling = Tokenizer(models.BPE())
    smiling.pre_tokenizer, smiling.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    smiling.train_from_iterator([":) " * 9, "user assistant " * 9], trainers.BpeTrainer(vocab_size=290, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    smiling.add_special_tokens(["<end>"])
    hf = PreTrainedTokenizerFast(tokenizer_object=smiling, eos_token="<end>")
    hf.chat_template = "{% for m in messages %}{{ m.role + ':' + m.content + '<end>' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    tok = ChatTokenizer(hf, "smiling")
    assert len(tok.encode(":)")) == 1 and tok.encode_messages(said("x"))[0][-1:] == tok.encode(":")
    assert tok.encode_response(")") == [*tok.encode(")"), tok.eot_id] and tok.encode_response("x") == [*tok.encode("x"), tok.eot_id]


def test_refused_conversations_are_value_errors(toks):
    gemma = toks["gemma"]
    with pytest.raises(ValueError, match="turns must alternate"):
        gemma.encode_messages([*said("a"), *said("b")])
    refused, fine = gemma.encode_conversations([said("a", "b")[1:] + said("c"), said("a")])
    assert str(refused) == "turns must alternate" and fine[0] == gemma.encode_messages(said("a"))[0]
    for talk in ([], said("a", "b")):
        with pytest.raises(ValueError, match="a prompt ends with a user turn"):
            gemma.encode_messages(talk)


# ---- files -----------------------------------------------------------------------------------------------------------------------

def test_a_saved_tokenizer_comes_back_with_the_same_hash(folders, toks, family, tmp_path):
    tok = toks[family]
    tok.save(tmp_path / "saved", block_size=77)
    again, own = load_chat_tokenizer(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.json").is_file()
    assert (again.hash, again.name, again.eot_id, again.bos_id, again.vocab_size) == (tok.hash, family, tok.eot_id, tok.bos_id, tok.vocab_size)
    assert own.model_max_length == 77
    for talk in TALKS:
        ids = tok.encode_messages(talk)[0]
        assert again.encode_messages(talk)[0] == ids == by_template(own, talk)
    assert load_chat_tokenizer(folders[family]).hash == tok.hash and load_chat_tokenizer(folders[family], "a/name").name == "a/name"


def test_the_hash_follows_what_decides_the_ids(toks, tmp_path):
    assert len({tok.hash for tok in toks.values()}) == len(toks)
    for change in ({"chat_template": QWEN.replace("you are here", "you are there")}, {"eos_token": "<|endoftext|>"}):
        hf = AutoTokenizer.from_pretrained(save_family(tmp_path / "q", "qwen"))
        for key, value in change.items():
            setattr(hf, key, value)
        assert (ChatTokenizer(hf, "q").hash == toks["qwen"].hash) == ("eos_token" in change)  # the template decides what ends a turn


BROKEN = {
    "twice": ("llama", "{{ bos_token }}" + LLAMA, r"puts two <\|begin_of_text\|> before a prompt, where one belongs"),
    "never": ("llama", LLAMA.replace("{{- bos_token }}", ""), r"puts no <\|begin_of_text\|> before a prompt"),
    "no jinja": ("qwen", "{% for %}", "cannot be used: Expected"),
    "no reply": ("qwen", QWEN.replace("for m in messages", "for m in messages if m.role == 'user'"), "leaves out the question or the answer"),
    "a date": ("llama", LLAMA.replace('"%d %b %Y"', "format"), "prints the date in a way that cannot be fixed"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_templates_that_cannot_be_used_are_one_sentence(folders, case):
    name, template, message = BROKEN[case]
    hf = AutoTokenizer.from_pretrained(folders[name])
    hf.chat_template = template
    with pytest.raises(UserError, match=f"the chat template of mine cannot be used: .*{message.removeprefix('cannot be used: ')}") as error:
        ChatTokenizer(hf, "mine")
    assert str(error.value).count("\n") == 0


def test_a_turn_without_an_end_token_ends_in_end_of_text_or_not_at_all(folders):
    template = "{% for m in messages %}{{ '### ' + m.role + '\n' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '### assistant\n' }}{% endif %}"
    hf = AutoTokenizer.from_pretrained(folders["qwen"])
    hf.chat_template = template
    tok = ChatTokenizer(hf, "mine")
    assert tok.decode(tok.encode_messages(said("hello"))[0] + tok.encode_response("well")) == "### user\nhello\n### assistant\nwell<|im_end|>"
    assert role_texts(tok, said("hello", "well", "so")) == ["well\n"]
    bare = PreTrainedTokenizerFast(tokenizer_object=byte_level([]))
    bare.chat_template = template
    with pytest.raises(UserError, match="no token of its own"):
        ChatTokenizer(bare, "mine")
    bare.chat_template = None
    with pytest.raises(UserError, match="no token of its own"):
        ChatTokenizer(bare, "mine")


def test_folders_without_a_tokenizer_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="the tokenizer in .*nowhere cannot be read: there is no such folder"):
        load_chat_tokenizer(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot be read") as error:
        load_chat_tokenizer(tmp_path)
    assert "\n" not in str(error.value)
    save_family(tmp_path / "damaged", "qwen")
    (tmp_path / "damaged" / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(UserError, match="cannot be read"):
        load_chat_tokenizer(tmp_path / "damaged")


def test_a_vocabulary_of_scored_pieces_has_a_twin_too(tmp_path):
    """A Unigram vocabulary holds its control tokens as pieces with the best score: written out, they would be found again."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((c, -3.0) for c in "abcdefghijklmnopqrstuvwxyzZ7?</>▁:\n")]
    tok = Tokenizer(models.Unigram(pieces, unk_id=0))
    tok.normalizer, tok.decoder = normalizers.Replace(" ", "▁"), decoders.Replace("▁", " ")
    tok.add_special_tokens(["<unk>", "<s>", "</s>"])
    hf = PreTrainedTokenizerFast(tokenizer_object=with_start(tok, "<s>"), bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    hf.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.role + ': ' + m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    tok = ChatTokenizer(hf, "pieces")
    ids = tok.encode_messages(said("is </s> it", "no </s>", "so"))[0]
    assert ids.count(tok.eot_id) == 1 and tok.decode(ids) == "<s>user: is </s> it\nassistant: no </s></s>user: so\nassistant:"
    assert tok.decode(tok.encode_response("it </s> is")) == " it </s> is</s>" and tok.encode_response("it </s> is").count(tok.eot_id) == 1


def test_offline(monkeypatch, folders):
    """Nothing here asks the Hub."""
    assert os.environ["HF_HUB_OFFLINE"] == "1" and load_chat_tokenizer(folders["qwen"]).name == "qwen"
