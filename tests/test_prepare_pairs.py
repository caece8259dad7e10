"""Pairs in a model's own chat template: every layout of rows gives the same store, and every row is accounted for."""
import csv
import dataclasses
import gzip
import json
import subprocess
import sys
import tracemalloc
from collections import Counter
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import datasets
import numpy as np
import pytest
from test_chat_tokenizer import ENDS, FAMILIES, save_family, said
from test_prepare import counts, everything, talk, write_lines

from chat_tokenizer import load_chat_tokenizer
from data import prepare_hh, prepare_pairs
from data.prepare_pairs import parse_row, prepare, shorten, to_messages
from data.store import PairStore, find_data, read_json
from runtime.config import ROOT, Config
from runtime.errors import UserError


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders that hold the tokenizer of each family (and no weights, which preparation does not need)."""
    root = tmp_path_factory.mktemp("models")
    return {name: save_family(root / name, name) for name in FAMILIES}


@pytest.fixture
def config(tmp_path, models):
    """A config whose source is tmp_path/source and whose model is the Qwen-like one."""
    config = Config(name="t", out=str(tmp_path / "out"), threads=1)
    config.model.init_from, config.model.block_size = str(models["qwen"]), 256
    config.data = dataclasses.replace(config.data, source=str(tmp_path / "source"), tokenizer="chat", val_fraction=0.2, test_fraction=0.2)
    return config


def pair(question, good="yes", bad="no", **more):
    return {"prompt": question, "chosen": good, "rejected": bad} | more


def write_splits(source, train):
    """One file per split; val and test have a usable row each."""
    write_lines(source / "train.jsonl", train)
    write_lines(source / "val.jsonl", [pair("a validation question")])
    write_lines(source / "test.jsonl", [pair("a test question")])


def rows(root, split="train"):
    """(prompt, chosen, rejected) of every row as text, control tokens included."""
    store, tok = PairStore(root / split), load_chat_tokenizer(root / "tokenizer")
    return [tuple(tok.decode(ids) for ids in (p, c, r)) for p, _, c, r in (store.row(i) for i in range(len(store)))]


def content(root):
    """Everything that the splits hold, as bytes."""
    return {split: [(root / split / file).read_bytes() for file in ("tokens.bin", "roles.bin", "index.npy")] for split in ("train", "val", "test")}


# ---- layouts of rows -------------------------------------------------------------------------------------------------------

CONVERSATIONS = [([f"question {i}, naïve 日本?", *(["an answer", f"and {k}?"] if k else [])], f"good {i} {k}", f"bad {i} {k}") for i in range(30) for k in range(2)]


LAYOUTS = {
    "whole conversations, twice": lambda turns, good, bad: {"chosen": said(*turns, good), "rejected": said(*turns, bad)},
    "and the prompt as text": lambda turns, good, bad: {"prompt": turns[0], "chosen": said(*turns, good), "rejected": said(*turns, bad), "messages": said(*turns, good)},
    "and the prompt as messages": lambda turns, good, bad: {"prompt": said(*turns), "chosen": said(*turns, good), "rejected": said(*turns, bad)},
    "prompt as messages, replies as lists": lambda turns, good, bad: {"prompt": said(*turns), "chosen": said("", good)[1:], "rejected": said("", bad)[1:]},
    "prompt as messages, replies as text": lambda turns, good, bad: {"prompt": said(*turns), "chosen": good, "rejected": f" {bad}\n"},
    "prompt as a transcript": lambda turns, good, bad: {"prompt": talk(*turns) + "\n\nAssistant:", "chosen": f" {good}", "rejected": f" {bad}"},
    "transcripts": lambda turns, good, bad: {"chosen": talk(*turns, good), "rejected": talk(*turns, bad)},
    "prompt as text": lambda turns, good, bad: pair(turns[0], good, bad) if len(turns) == 1 else {"chosen": talk(*turns, good), "rejected": talk(*turns, bad)},
}


def test_every_layout_gives_the_same_store(tmp_path, config):
    stores = {}
    for number, (name, layout) in enumerate(LAYOUTS.items()):
        path = tmp_path / str(number) / "all.jsonl"
        write_lines(path, [layout(*conversation) for conversation in CONVERSATIONS])
        config.data.source = str(path)
        stores[name] = prepare(config)
    first, *others = stores
    assert len({root.name for root in stores.values()}) == len(stores)
    assert sum(len(PairStore(stores[first] / split)) for split in ("train", "val", "test")) == len(CONVERSATIONS)
    for name in others:
        assert content(stores[name]) == content(stores[first]), name
        assert counts(stores[name]) == counts(stores[first])
    start = "<|im_start|>system\nyou are here.<|im_end|>\n<|im_start|>user\nquestion 2, naïve 日本?<|im_end|>\n<|im_start|>assistant\n"
    assert rows(stores[first])[:2] == [
        (start, "good 2 0<|im_end|>", "bad 2 0<|im_end|>"),  # questions 0 and 1 are in other splits
        (f"{start}an answer<|im_end|>\n<|im_start|>user\nand 1?<|im_end|>\n<|im_start|>assistant\n", "good 2 1<|im_end|>", "bad 2 1<|im_end|>")]


def test_every_kind_of_file_reads_equal(tmp_path, config):
    told = [pair(f"question {i},\n\"naïve\" 日本", f"good {i}", f"bad, {i}", level=i % 4, margin=i / 4, chosen_is_true=bool(i % 2)) for i in range(40)]

    def write_csv(path, spoken=lambda value: value):
        with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, [*told[0], "note"])
            writer.writeheader()
            writer.writerows({name: spoken(value) for name, value in row.items()} | {"note": "x"} for row in told)

    writers = {
        "a.jsonl": lambda path: write_lines(path, told), "a.json": lambda path: path.write_text(json.dumps(told), encoding="utf-8"),
        "a.parquet": lambda path: datasets.Dataset.from_list(told).to_parquet(path), "a.csv": write_csv, "a.csv.gz": write_csv,
        "b.parquet": lambda path: datasets.Dataset.from_list([row | {name: said(row["prompt"], row[name]) for name in ("chosen", "rejected")} for row in told]).to_parquet(path),
    }
    results = {}
    for name, write in writers.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name / name.replace("b", "a"))
        config.data.source = str(tmp_path / name)
        root = prepare(config)
        stores = {split: PairStore(root / split) for split in ("train", "val", "test")}
        results[name] = [(rows(root, split), *(store.index[field].tolist() for field in ("level", "margin", "chosen_is_true"))) for split, store in stores.items()]
        assert stores["train"].meta["subsets"] == ["a"]
    for name in writers:
        assert results[name] == results["a.jsonl"], name
    assert sum(len(split[0]) for split in results["a.csv"]) == 40 and {0, 1, 2, 3} == set(results["a.csv"][0][1])


def test_a_csv_file_may_hold_messages_and_its_mistakes_are_named(tmp_path, config):
    path = tmp_path / "source" / "train.csv"
    write_splits(tmp_path / "source", [])
    (tmp_path / "source" / "train.jsonl").unlink()
    path.write_text("chosen,rejected,margin\n" + ",".join('"' + json.dumps(said("one", side)).replace('"', '""') + '"' for side in ("a", "b")) + ",\n")
    assert [row[1] for row in rows(prepare(config))] == ["a<|im_end|>"]
    for text, why in (("prompt,chosen,rejected\nq,a,b\nq,a,b,c\n", "line 3: more cells than"), ("prompt,chosen\nq,a\n", 'line 2: "rejected" is missing'),
                      ("prompt,chosen,rejected,level\nq,a,b,hardest\n", "\"level\" is 'hardest'"), ("prompt,chosen,rejected\nq,a\n", 'line 2: "rejected" is missing')):
        path.write_text(text)
        with pytest.raises(UserError, match=f"train.csv .*{why}|train.csv {why}"):
            prepare(config)
    path.write_bytes(b"prompt,chosen,rejected\nq,a,\xff\n")
    with pytest.raises(UserError, match="train.csv line 2: not a CSV file in UTF-8"):
        prepare(config)


def test_levels_margins_and_truth_reach_the_store(tmp_path, config):
    told = [pair("one", level="hard", margin=1.5, chosen_is_true=False), pair("two", score_chosen=8, score_rejected=3.5), pair("three")]
    write_splits(tmp_path / "source", told)
    (tmp_path / "source" / "train.jsonl").rename(tmp_path / "source" / "easy_train.jsonl")
    index = PairStore(prepare(config) / "train").index
    assert (index["level"].tolist(), index["margin"].tolist(), index["chosen_is_true"].tolist()) == ([3, 1, 1], [1.5, 4.5, 0.0], [0, 1, 1])


def test_transcripts_become_messages():
    assert to_messages("\n\nHuman: a\n\nAssistant: b\n\nHuman: c") == said("a", "b", "c")
    assert to_messages("be good\n\nHuman: a") == said("a", system="be good") and to_messages("nothing") == [{"role": "system", "content": "nothing"}]


# ---- dropped and changed rows ------------------------------------------------------------------------------------------------

REASONS = {  # hand-made rows, one or two per reason
    "no assistant turn": [{"chosen": said("hi"), "rejected": said("hi", "ho")}],
    "no human turn before the reply": [{"chosen": said("", "a")[1:], "rejected": said("", "b")[1:]}, pair("")],
    "reply runs on into a human turn": [{"chosen": talk("hi", "a"), "rejected": talk("hi", "b", "more?")}],
    "prompts differ": [{"chosen": said("hi", "a"), "rejected": said("ho", "b")}, {"prompt": "hi", "chosen": said("hi", "a"), "rejected": said("hi", "b", "c", "d")}],
    "ends in two assistant turns": [{"chosen": [*said("hi", "wait"), {"role": "assistant", "content": side}], "rejected": [*said("hi", "wait"), {"role": "assistant", "content": "b"}]} for side in "a"],
    "empty reply": [pair("hi", "a", " \n")],
    "identical replies": [pair("hi", "a", " a ")],
    "refused by the chat template": [{"chosen": [{"role": "assistant", "content": "hello"}, *said("hi", side)], "rejected": [{"role": "assistant", "content": "hello"}, *said("hi", "x")]} for side in "y"],
}


def test_every_row_is_accounted_for(tmp_path, config, models):
    config.model.init_from, config.model.block_size = str(models["gemma"]), 64
    long, cut = pair("a long answer?", "x " * 60), pair("well " * 100)
    run_on = {side: [*said("one"), *said("two", side)] for side in ("chosen", "rejected")}
    odd = json.dumps(pair("nbsp\u00a0and half a pair \ud83d", "fine"))
    system = {"chosen": said("hello", "a", system="be good"), "rejected": said("hello", "b", system="be good")}
    kept_twice = pair("a test question")
    bad = [row for reason in REASONS.values() for row in reason]
    write_splits(tmp_path / "source", [*bad, long, cut, run_on, odd, system])
    write_lines(tmp_path / "source" / "test.jsonl", [kept_twice, cut | {"rejected": "other"}])
    output = StringIO()
    with redirect_stdout(output):
        root = prepare(config)
    count = counts(root)
    assert count["train"] == Counter({reason: len(some) for reason, some in REASONS.items()} | {
        "read": len(bad) + 5, "reply longer than the block": 1, "kept": 4, "prompt shortened from the left": 1, "turns in a row merged": 1,
        "odd whitespace made plain": 1, "system message joined to the first turn": 1})
    assert count["test"] == Counter({"read": 2, "kept": 1, "prompt in an earlier split": 1})
    lines = [line.rsplit(None, 4) for line in output.getvalue().splitlines()[2:] if line.startswith("  ")]
    table = {name.strip(" -=").removeprefix("of these: "): list(map(int, numbers)) for name, *numbers in lines}
    assert table["refused by the chat template"] == [1, 0, 0, 1] and table["system message joined to the first turn"] == [1, 0, 0, 1]
    read, kept = table["read"][3], table["kept"][3]
    assert read - sum(table[reason][3] for reason in (*prepare_hh.DROPPED, prepare_pairs.REFUSED)) == kept == 6
    prompts = [prompt for prompt, *_ in rows(root)]
    assert [prompt.partition("user\n")[2].partition("<end")[0] for prompt in prompts[1:]] == ["one\n\ntwo", "nbsp and half a pair \ufffd", "be good\n\nhello"]


BAD = {
    '{"chosen": "a"': "not valid JSON", '["a"]': "a JSON object is needed, not a list", '{"prompt": "q", "chosen": "a"}': '"rejected" is missing',
    '{"prompt": "q", "chosen": 1, "rejected": 2}': '"chosen" is neither text nor a list of messages',
    '{"prompt": "q", "chosen": [], "rejected": []}': '"chosen" is neither text nor a list',
    '{"prompt": "q", "chosen": "a", "rejected": [{"role": "assistant", "content": "b"}]}': 'one of "chosen" and "rejected" is text, the other is not',
    '{"chosen": "a", "rejected": "b"}': 'no "prompt" in this row, and "chosen" is no transcript',
    '{"prompt": 3, "chosen": "a", "rejected": "b"}': '"prompt" is neither text nor a list of messages',
    '{"prompt": [{"role": "tool", "content": "x"}], "chosen": "a", "rejected": "b"}': '"prompt" holds something else than messages',
    '{"prompt": [{"role": "user", "content": null}], "chosen": "a", "rejected": "b"}': '"prompt" holds something else than messages',
    '{"prompt": ["q"], "chosen": "a", "rejected": "b"}': '"prompt" holds something else than messages',
    '{"prompt": "q", "chosen": "a", "rejected": "b", "level": "hardest"}': "\"level\" is 'hardest'",
}


@pytest.mark.parametrize("line", BAD, ids=BAD.values())
def test_a_malformed_line_is_named_or_counted(tmp_path, config, line):
    write_splits(tmp_path / "source", [pair("one"), line, pair("two")])
    with pytest.raises(UserError) as error:
        prepare(config)
    assert f"source/train.jsonl line 2: {BAD[line]}" in str(error.value) and "--data.skip_bad" in str(error.value)
    config.data.skip_bad = True
    assert counts(prepare(config))["train"] == Counter({"read": 3, "malformed line": 1, "kept": 2})


# ---- ids, roles, block ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("family", FAMILIES)
def test_rows_in_the_store_are_what_the_tokenizer_says(tmp_path, config, models, family):
    config.model.init_from = str(models[family])
    turns, end = ["well well", "it is here.", f"what is {ENDS[family]}?"], ENDS[family]
    write_splits(tmp_path / "source", [{"prompt": said(*turns), "chosen": f"good {end} really", "rejected": "bad"}])
    root = prepare(config)
    store, tok = PairStore(root / "train"), load_chat_tokenizer(models[family])
    prompt, roles, chosen, rejected = store.row(0)
    ids, wanted = tok.encode_messages(said(*turns))
    assert (prompt.tolist(), roles.tolist()) == (ids, wanted.tolist()) and 1 in roles.tolist()
    assert (chosen.tolist(), rejected.tolist()) == (tok.encode_response(f"good {end} really"), tok.encode_response("bad"))
    assert chosen.tolist().count(tok.eot_id) == 1 and chosen[-1] == rejected[-1] == tok.eot_id
    assert store.meta["tokenizer"] == {"name": family, "hash": tok.hash, "vocab_size": tok.vocab_size, "eot_id": tok.eot_id}
    assert store.meta["template"] == {"chat": tok.template, "start": tok.bos_id, "end": tok.eot_id} and store.meta["block_size"] == 256


def test_a_prompt_loses_its_oldest_turns_first_and_keeps_its_system_message(models):
    tok = load_chat_tokenizer(models["qwen"])
    talk = said("one " * 20, "two " * 20, "three three", "four", "five five five", system="be good")
    size = [len(tok.encode_messages([talk[0], *talk[i:]])[0]) for i in (1, 3, 5)]
    for room, kept in ((size[0], talk), (size[0] - 1, [talk[0], *talk[3:]]), (size[1], [talk[0], *talk[3:]]), (size[1] - 1, [talk[0], talk[5]])):
        ids, roles = shorten(tok, talk, room)
        assert ids == tok.encode_messages(kept)[0] and len(ids) <= room
        assert roles.tolist() == tok.encode_messages(kept)[1].tolist()
    # then the last turn loses its beginning, word by word; the layout stays whole
    texts = [tok.decode(shorten(tok, talk, room)[0]) for room in range(size[2], size[2] - 8, -1)]
    assert all(text.startswith("<|im_start|>system\nbe good<|im_end|>\n<|im_start|>user\n") and text.endswith("e<|im_end|>\n<|im_start|>assistant\n") for text in texts[:4])
    assert len(set(texts)) >= 4 and sorted(texts, key=len, reverse=True)[0] == texts[0]
    alone = len(tok.encode_messages([talk[5]])[0])
    long_rule = [{"role": "system", "content": "be good " * 50}, talk[5]]
    assert tok.decode(shorten(tok, long_rule, alone + 20)[0]) == tok.decode(tok.encode_messages([talk[5]])[0])  # no room for both: the question
    assert shorten(tok, talk, 5) is None
    gemma = load_chat_tokenizer(models["gemma"])  # no place for a system message: it goes on to the turn that is now the first
    shorter = gemma.encode_messages([talk[0], *talk[3:]])[0]
    assert shorten(gemma, talk, len(shorter))[0] == shorter and gemma.decode(shorter).startswith("<bos><start_of_turn>user\nbe good\n\nthree")


@pytest.mark.parametrize("family", FAMILIES)
def test_shortening_ends_whatever_the_text(models, family):
    """Cut inside a character, before a space that is a token of its own, through a typed control token."""
    tok = load_chat_tokenizer(models[family])
    talk = said(f"日本 naïve   {ENDS[family]} 👩‍👧 x" * 3)
    whole = len(tok.encode_messages(talk)[0])
    for room in range(whole, 0, -1):
        short = shorten(tok, talk, room)
        if short is None:
            break
        assert len(short[0]) <= room and tok.decode(short[0]).count(ENDS[family]) >= 0
    assert room < whole - 20 and all(shorten(tok, talk, less) is None for less in range(room))


def test_the_block_holds_the_prompt_and_the_longer_reply(tmp_path, config):
    config.model.block_size = 60
    write_splits(tmp_path / "source", [pair("well " * 60, "a reply", "a longer reply of some words"), {"prompt": said("a " * 50, "b", "what is it?"), "chosen": "x", "rejected": "y"}])
    root = prepare(config)
    store = PairStore(root / "train")
    lengths = [len(p) + max(len(c), len(r)) for p, _, c, r in (store.row(i) for i in range(2))]
    assert 57 <= lengths[0] <= 60 and lengths[1] < 60 and counts(root)["train"]["prompt shortened from the left"] == 2
    assert rows(root)[0][1:] == ("a reply<|im_end|>", "a longer reply of some words<|im_end|>") and "a a" not in rows(root)[1][0]
    config.model.block_size = 8
    with pytest.raises(UserError, match="4 of 4 rows have a reply that does not fit a block of 8 tokens"):
        prepare(config)


# ---- splits, hashes, command -----------------------------------------------------------------------------------------------------

def test_conversations_are_split_by_their_first_turn(tmp_path, config):
    some = [{"prompt": said(f"Question {i} ?", *(["first", f"then {j}"] if j else [])), "chosen": f"yes {j}", "rejected": "no"} for i in range(100) for j in range(3)]
    write_lines(tmp_path / "source" / "all.jsonl", some)
    root = prepare(config)
    numbers = {split: [int(prompt.split("Question ")[1].split()[0]) for prompt, *_ in rows(root, split)] for split in ("train", "val", "test")}
    assert sum(map(len, numbers.values())) == 300 and not set(numbers["train"]) & set(numbers["val"]) | set(numbers["train"]) & set(numbers["test"])
    assert all(count == 3 for split in numbers.values() for count in Counter(split).values()) and 8 < len(set(numbers["test"])) < 35


def test_hh_files_are_split_as_prepare_hh_splits_them(tmp_path, config, models):
    write_lines(tmp_path / "source" / "all.jsonl", [{"chosen": talk(f"q {i}", "a"), "rejected": talk(f"q {i}", "b")} for i in range(60)])
    chat = PairStore(prepare(config) / "test").index["source_row"].tolist()
    config.data.tokenizer = str(models["gpt2"])
    from tokenizer import train_bpe
    train_bpe(["some words and some more words"] * 3, 260).save(tmp_path / "bpe")
    config.data.tokenizer = str(tmp_path / "bpe")
    assert PairStore(prepare_hh.prepare(config) / "test").index["source_row"].tolist() == chat


def test_a_second_call_writes_nothing_and_the_hash_follows_the_tokenizer(tmp_path, config, models):
    write_splits(tmp_path / "source", [pair("one"), pair("two")])
    assert find_data(config) is None
    root = prepare(config)
    assert root == find_data(config) and sorted(p.name for p in root.iterdir()) == ["preparation.json", "test", "tokenizer", "train", "val"]
    before = everything(tmp_path / "out")
    assert prepare(config) == root and everything(tmp_path / "out") == before
    copied = tmp_path / "copy"
    save_family(copied, "qwen")  # the same tokenizer elsewhere is another request and the same content
    config.model.init_from = str(copied)
    assert find_data(config) is None and prepare(config) == root == find_data(config)
    template = copied / "chat_template.jinja"
    template.write_text(template.read_text().replace("you are here", "you are there"))
    assert find_data(config) is None
    other = prepare(config)
    assert other != root and "you are there" in rows(other)[0][0]
    config.model.init_from = str(models["llama"])
    assert prepare(config) not in (root, other)
    assert read_json(root / "preparation.json")["recipe"]["tokenizer"] == load_chat_tokenizer(models["qwen"]).hash


def test_what_is_missing_is_one_sentence(tmp_path, config):
    with pytest.raises(UserError, match="--data.source: there is no file or folder"):
        prepare(config)
    write_splits(tmp_path / "source", [pair("one")])
    for changes, message in (({"tokenizer": "gpt2"}, "add --data.tokenizer=chat"), ({"source": str(tmp_path)}, None)):
        other = dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))
        if message:
            with pytest.raises(UserError, match=message):
                prepare(other)
    with pytest.raises(UserError, match="data/prepare_pairs.py CONFIG"):
        prepare_hh.prepare(config)
    for start, message in (("scratch", "name one with --model.init_from"), (str(tmp_path / "nothing"), "no model folder at"), (str(tmp_path / "source"), "the tokenizer in .* cannot be read")):
        config.model.init_from = start
        with pytest.raises(UserError, match=message) as error:
            prepare(config)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "data").exists() or list((tmp_path / "out" / "data").iterdir()) == []


def test_memory_stays_flat(tmp_path, config, monkeypatch):
    monkeypatch.setattr(prepare_hh, "CHUNK", 64)
    monkeypatch.setattr("data.store.BUFFER_TOKENS", 1 << 14)
    config.model.block_size = 2048
    peaks = []
    for n in (200, 1000):
        write_lines(tmp_path / "source" / "all.jsonl", [pair(f"{i} {'word ' * 100}", "good " * 40, "bad " * 40) for i in range(n)])
        if not peaks:
            prepare(dataclasses.replace(config, out=str(tmp_path / "warm")))  # imports and caches are paid for
        tracemalloc.start()
        prepare(dataclasses.replace(config, out=str(tmp_path / f"out{n}")))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 800 < 600, "rows stay in memory"


def test_the_hub_and_files_give_the_same_store(tmp_path, config, monkeypatch):
    """A local folder goes through `datasets.load_dataset`, as a data set on the Hub does."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split in ("train", "test"):
        write_lines(tmp_path / "source" / f"{split}.jsonl", [LAYOUTS["and the prompt as text"]([f"{split} {i}"], "good", "bad") for i in range(20)])
    from_files = prepare(config)
    config.data = dataclasses.replace(config.data, source="hub", dataset=str(tmp_path / "source"))
    from_hub = prepare(config)
    assert find_data(config) == from_hub and {s: rows(from_hub, s) for s in ("train", "val", "test")} == {s: rows(from_files, s) for s in ("train", "val", "test")}


def test_the_toy_corpus_can_be_prepared_too(config):
    config.data = dataclasses.replace(config.data, source="toy", max_rows=20)
    config.model.block_size = 1024
    root = prepare(config)
    assert {split: counts(root)[split]["kept"] for split in counts(root)} == {"train": 20, "val": 20, "test": 20}
    assert rows(root)[0][0].startswith("<|im_start|>system\nyou are here.<|im_end|>\n<|im_start|>user\n")


def test_a_row_is_taken_apart_without_looking_at_its_neighbours():
    opening, (good, bad, changes), known = parse_row({"prompt": " hi\u00a0 ", "chosen": "a", "rejected": "b", "margin": 2}, 3)
    assert (opening, good, bad, changes, tuple(known)) == ("hi", said("hi", "a"), said("hi", "b"), ["odd whitespace made plain"], (3, 2.0, True))


def test_the_command(tmp_path, config):
    write_splits(tmp_path / "source", [pair("one"), "{", pair("two")])
    experiment = tmp_path / "mine.py"
    experiment.write_text(f"out = {config.out!r}\nmodel = {{'init_from': {config.model.init_from!r}}}\n")
    command = [sys.executable, str(ROOT / "data" / "prepare_pairs.py"), str(experiment), "--data.tokenizer=chat", f"--data.source={tmp_path / 'source'}"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ") and "train.jsonl line 2" in result.stderr.splitlines()[-1]
    result = subprocess.run([*command, "--data.skip_bad"], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0 and "malformed line" in result.stdout, result.stderr
    note = read_json(Path(config.out) / "mine" / "data.json")
    assert len(PairStore(Path(config.out) / note["root"] / "train")) == 2
    assert np.all(PairStore(Path(config.out) / note["root"] / "train").index["chosen_is_true"] == 1)
