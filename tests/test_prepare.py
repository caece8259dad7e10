"""Preparation: every row is used, dropped or changed for a reason that is counted, and nothing leaks between splits.

The tokenizer here is the 256 bytes themselves, so one token is one byte and lengths can be counted by hand.
"""
import dataclasses
import gzip
import json
import resource
import subprocess
import sys
import tracemalloc
from collections import Counter
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import datasets
import pytest

from batching import row_lengths
from data import prepare_hh
from data.prepare_hh import clean_pair, first_human_turn, merge_turns, plain, prepare
from data.prepare_text import pieces, prepare_text, share_evenly
from data.sources import describe, list_files, load_hub, passages, read_documents, tidy
from data.store import PairStore, find_data, find_text, read_json
from runtime.config import ROOT, Config
from runtime.errors import UserError
from tokenizer import ASSISTANT, HUMAN, Tokenizer, load_tokenizer

EOT = 256


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    Tokenizer({bytes([b]): b for b in range(256)}, "bytes").save(folder)
    return folder


@pytest.fixture
def config(tmp_path, byte_tokenizer):
    """A config whose source is tmp_path/source, with a byte tokenizer."""
    config = Config(name="t", out=str(tmp_path / "out"), threads=1)
    config.data = dataclasses.replace(config.data, source=str(tmp_path / "source"), tokenizer=str(byte_tokenizer), val_fraction=0.2,
                                      test_fraction=0.2)
    return config


def talk(*turns):
    """A transcript in HH's layout; the human speaks first."""
    return "".join((ASSISTANT if i % 2 else HUMAN) + " " + turn for i, turn in enumerate(turns))


def pair(question, good="yes", bad="no"):
    return {"chosen": talk(question, good), "rejected": talk(question, bad)}


def write_lines(path, rows):
    """JSON lines (a str stands for itself), packed when the name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8").write(text)
    return path


def write_splits(source, train, val=None, test=None):
    """One file per split; val and test have a usable row each unless given."""
    write_lines(source / "train.jsonl", train)
    write_lines(source / "val.jsonl", val or [pair("a validation question")])
    write_lines(source / "test.jsonl", test or [pair("a test question")])


def counts(root):
    return {split: Counter(count) for split, count in read_json(root / "preparation.json")["counts"].items()}


def texts(root, split, part=None):
    """(prompt, chosen, rejected) of every row as text, without the control tokens."""
    store, tok = PairStore(root / split), load_tokenizer(root / "tokenizer")
    rows = [tuple(tok.decode(ids) for ids in (p[1:], c[:-1], r[:-1])) for p, _, c, r in (store.row(i) for i in range(len(store)))]
    return rows if part is None else [row[part] for row in rows]


# ---- one row -------------------------------------------------------------------------------------------------------------

REASONS = {  # hand-made rows, one per reason; the shapes of those marked HH occur in Anthropic's files
    "no assistant turn": {"chosen": "\n\nHuman: hi", "rejected": talk("hi", "ho")},
    "no human turn before the reply": {"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"},
    "reply runs on into a human turn": {"chosen": talk("hi", "a"), "rejected": talk("hi", "b", "more?")},  # HH
    "prompts differ": {"chosen": talk("hi", "a"), "rejected": talk("hi", "b\n\nHumans: and?\n\nAssistant: c")},  # HH
    "ends in two assistant turns": {"chosen": talk("hi", "wait\n\nAssistant: a"), "rejected": talk("hi", "wait\n\nAssistant: b")},
    "empty reply": {"chosen": talk("hi", "a"), "rejected": talk("hi", " \n")},  # HH
    "identical replies": {"chosen": talk("hi", "a"), "rejected": talk("hi", " a ")},  # HH
}


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_to_drop_a_row(reason):
    row = REASONS[reason]
    with pytest.raises(prepare_hh.Drop, match=f"^{reason}$"):
        clean_pair(plain(row["chosen"]), plain(row["rejected"]))


def test_every_row_is_accounted_for(tmp_path, config):
    config.model.block_size = 80
    long = pair("a long answer?", "x" * 76)  # " " + 76 + end-of-text = 78; 80 - 78 = 2 < start + marker (13)
    cut = pair("q" * 100)
    merged = {side: talk("q", "one\n\nAssistant: two", "go on", side) for side in ("chosen", "rejected")}
    odd = {side: talk("tab\tstays,\u00a0nbsp does not", side) for side in ("chosen", "rejected")}
    write_splits(tmp_path / "source", [*REASONS.values(), long, cut, merged, odd], test=[pair("A  TEST question"), cut | {"rejected": talk("q" * 100, "other")}])
    output = StringIO()
    with redirect_stdout(output):
        count = counts(prepare(config))
    assert count["train"] == Counter({reason: 1 for reason in REASONS} | {
        "read": 11, "reply longer than the block": 1, "kept": 3, "prompt shortened from the left": 1, "turns in a row merged": 1,
        "odd whitespace made plain": 1})
    assert count["test"] == Counter({"read": 2, "kept": 1, "prompt in an earlier split": 1})
    lines = [line for line in output.getvalue().splitlines() if line.startswith("  ")]
    assert len({len(line) for line in lines}) == 1, "the columns are aligned"
    assert lines[0].split() == ["train", "val", "test", "all"]
    table = {line[:44].strip(" -=").removeprefix("of these: "): [int(n) for n in line[44:].split()] for line in lines[1:]}
    assert table["identical replies"] == [1, 0, 0, 1] and table["prompt in an earlier split"] == [0, 0, 1, 1]
    read, kept = table["read"][3], table["kept"][3]
    assert read - sum(table[reason][3] for reason in prepare_hh.DROPPED) == kept == 5


def test_prompt_and_replies_are_what_the_transcript_says(tmp_path, config):
    row = {"chosen": talk("hi", "hello  ", "ü?", " a\n\nb "), "rejected": talk("hi", "hello  ", "ü?", "c <|endoftext|>")}
    write_splits(tmp_path / "source", [row])
    root = prepare(config)
    store = PairStore(root / "train")
    prompt, roles, chosen, rejected = store.row(0)
    before, earlier, after = "\n\nHuman: hi\n\nAssistant:", " hello  ", "\n\nHuman: ü?\n\nAssistant:"
    assert prompt.tolist() == [EOT, *(before + earlier + after).encode()]
    # the earlier assistant turn, and the first token of the marker behind it: the model also learns that a turn ends
    assert roles.tolist() == [0] * (1 + len(before)) + [1] * (len(earlier) + 1) + [0] * (len(after.encode()) - 1)
    assert chosen.tolist() == [*b" a\n\nb", EOT]
    assert rejected.tolist() == [*b" c <|endoftext|>", EOT]  # control tokens in the data are plain text
    assert store.index["source_row"].tolist() == [0] and store.meta["tokenizer"]["eot_id"] == EOT
    assert store.meta["template"] == {"human": HUMAN, "assistant": ASSISTANT, "start": EOT, "end": EOT}


def test_truncation_takes_the_prompt_from_the_left_and_never_the_reply(tmp_path, config):
    config.model.block_size = 50
    write_splits(tmp_path / "source", [pair("0123456789" * 5, "a reply", "a longer one"), pair("x", "y" * 35, "no"), pair("x", "y" * 36, "no"),
                                         {side: talk("x" * 50, "said", "q", side) for side in ("chosen", "rejected")}])
    root = prepare(config)
    store = PairStore(root / "train")
    prompt, roles, chosen, rejected = store.row(0)
    assert len(rejected) == len(" a longer one") + 1 == 14 and len(prompt) == len(roles) == 50 - 14  # the longer side decides
    assert prompt.tolist() == [EOT, *("0123456789" * 5 + ASSISTANT).encode()[-35:]]
    assert bytes(chosen[:-1].tolist()) == b" a reply" and chosen[-1] == rejected[-1] == EOT
    # " " + 35 + end = 37 leaves 13: exactly the start token and the marker. One more would cut into the marker: dropped
    assert bytes(store.row(1)[0][1:].tolist()).decode() == ASSISTANT
    assert counts(root)["train"] == Counter({"read": 4, "kept": 3, "prompt shortened from the left": 3, "reply longer than the block": 1})
    # 50 - 10 ("rejected", space, end) leaves the start token and 39: "stant: said" (11), then "\n\nHuman: q" + marker (22) ...
    ids, roles = store.row(2)[:2]
    assert bytes(ids[1:].tolist()).decode() == (talk("x" * 50, "said", "q") + ASSISTANT)[-39:]
    assert roles.tolist() == [0] * (40 - 22 - 5) + [1] * 6 + [0] * 21  # ... of the assistant's " said" and the token behind it, no more


def test_odd_whitespace_and_odd_characters():
    assert tidy("a\r\nb\rc\u2028d") == "a\nb\nc\nd" and tidy("\ufeffa\u00a0b\u200b\x00c\td") == "a bc\td"
    assert tidy("half \ud83d pair") == "half \ufffd pair"
    kept = "naïve 日本語　👩‍👧 \t – it’s"  # an ideographic space and an emoji joiner mean something
    assert tidy(kept) is kept
    assert plain("Human: hi\r\n\r\nAssistant: ho") == talk("hi", "ho") == plain("\n \n\nHuman: hi\n\nAssistant: ho")
    assert plain("A preface.\n\nHuman: hi") == "A preface.\n\nHuman: hi"
    assert plain(talk(" two", "spaces ")) == talk(" two", "spaces ")
    quoted = talk("he said:\nHuman: hi Assistant: ho", "ok")  # no markers, though they look like some
    assert plain(quoted) == quoted and first_human_turn(quoted) == " he said:\nHuman: hi Assistant: ho"


def test_turns_in_a_row_are_merged():
    assert merge_turns(talk("a", "b ") + "\n\nAssistant:  c" + talk("d", "")) == talk("a", "b\n\nc", "d", "")
    assert merge_turns("\n\nHuman: a\n\nHuman: b\n\nAssistant: \n\nAssistant: c\n\nHuman: d\n\nAssistant:") == \
        "\n\nHuman: a\n\nb\n\nAssistant: c\n\nHuman: d\n\nAssistant:"
    untouched = "text before\n\nHuman:  a \n\nAssistant: b\n\n\nHuman:\n\nAssistant:"
    assert merge_turns(untouched) == untouched


# ---- splits ----------------------------------------------------------------------------------------------------------------

def test_conversations_are_split_by_their_first_turn(tmp_path, config):
    rows = [pair(f"Question {i} ?", f"yes {j}") for i in range(300) for j in range(2)]
    rows += [{side: talk(f"question {i}  ?", "first", "and then?", side) for side in ("chosen", "rejected")} for i in range(300)]
    write_lines(tmp_path / "source" / "all.jsonl", rows)
    root = prepare(config)
    prompts = {split: {first_human_turn(p).split()[1] for p in texts(root, split, 0)} for split in ("train", "val", "test")}
    assert not prompts["train"] & prompts["val"] and not prompts["train"] & prompts["test"] and not prompts["val"] & prompts["test"]
    assert sum(map(len, prompts.values())) == 300  # a number is in one split only, in all its rows and spellings
    assert {split: counts(root)[split]["kept"] == 3 * len(prompts[split]) for split in prompts} == dict.fromkeys(prompts, True)
    assert 40 < len(prompts["val"]) < 80 and 40 < len(prompts["test"]) < 80  # 60 expected, sd 7
    config.seed = 1
    assert texts(prepare(config), "test", 0) != texts(root, "test", 0)


def test_splits_that_the_files_name_are_kept_and_the_missing_one_is_cut_from_train(tmp_path, config):
    source = tmp_path / "source"
    write_lines(source / "helpful" / "train.jsonl.gz", [pair(f"q {i}") for i in range(100)])
    write_lines(source / "helpful" / "test.jsonl.gz", [pair(f"t {i}") for i in range(20)] + [pair(" Q 5"), pair("q 6", "other")])
    root = prepare(config)
    count = counts(root)
    assert count["test"] == Counter({"read": 22, "kept": 20, "prompt in an earlier split": 2})
    assert count["train"]["kept"] + count["val"]["kept"] == 100 and 8 <= count["val"]["kept"] <= 32
    assert {p.split()[1] for p in texts(root, "test", 0)} == {"t"}
    assert {p.split()[1] for p in texts(root, "val", 0)} == {"q"}


def test_a_validation_prompt_in_train_and_a_test_prompt_in_validation_are_dropped(tmp_path, config):
    write_splits(tmp_path / "source", [pair("a"), pair("b")], [pair("a"), pair("c"), pair("c", "again")], [pair("c"), pair("b"), pair("d")])
    root = prepare(config)
    assert [counts(root)[s]["prompt in an earlier split"] for s in ("train", "val", "test")] == [0, 1, 2]
    assert [len(PairStore(root / s)) for s in ("train", "val", "test")] == [2, 2, 1]


@pytest.mark.parametrize("empty, remedy", [("train", "name a file train"), ("val", "raise --data.val_fraction"), ("test", "raise --data.test_fraction")])
def test_an_empty_split_is_one_sentence(tmp_path, config, empty, remedy):
    rows = {s: [pair(f"{s} question")] for s in ("train", "val", "test")} | {empty: [REASONS["identical replies"]]}
    write_splits(tmp_path / "source", rows["train"], rows["val"], rows["test"])
    with pytest.raises(UserError, match=rf"the {empty} split is empty \(1 of 3 rows .* none usable\): {remedy}"):
        prepare(config)
    assert find_data(config) is None and list((tmp_path / "out" / "data").iterdir()) == []


def test_a_block_too_small_is_one_sentence(tmp_path, config):
    write_splits(tmp_path / "source", [pair("q")])
    config.model.block_size = 16
    with pytest.raises(UserError, match="3 of 3 rows .* a block of 16 tokens: raise --model.block_size"):
        prepare(config)


def test_where_too_few_rows_are_left_for_a_tokenizer_their_reasons_are_said_first(tmp_path, config, capsys):
    write_splits(tmp_path / "source", [{"prompt": "plain words", "chosen": "yes", "rejected": "no"}])
    config.data.tokenizer, config.data.vocab_size = "bpe", 400
    with pytest.raises(UserError, match="too small"):
        prepare(config)
    assert "no assistant turn" in capsys.readouterr().out


# ---- files -----------------------------------------------------------------------------------------------------------------

def test_all_file_kinds_read_equal(tmp_path, config):
    rows = [pair(f"question {i}: naïve 日本", f"good {i}", f"bad {i}") for i in range(60)]
    table = datasets.Dataset.from_list(rows)
    writers = {
        "a.jsonl": lambda path: write_lines(path, rows),
        "a.jsonl.gz": lambda path: write_lines(path, rows),
        "a.json": lambda path: path.write_text(json.dumps(rows, indent=2), encoding="utf-8"),  # one big list
        "a.json.gz": lambda path: write_lines(path, [json.dumps(rows)]),
        "a.parquet": lambda path: table.to_parquet(path),
    }
    results = {}
    for name, write in writers.items():
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        write(folder / name)
        config.data.source = str(folder)
        root = prepare(config)
        results[name] = [texts(root, split) for split in ("train", "val", "test")]
        assert PairStore(root / "train").meta["subsets"] == ["a"]
    for name in writers:
        assert results[name] == results["a.jsonl"], name
    assert sum(map(len, results["a.jsonl"])) == 60
    # the zipped file holds the same bytes, so it is the same content, found under the same hash
    assert PairStore(root / "train").meta["sources"][0]["rows"] == 60


def test_subsets_have_names_and_can_be_selected(tmp_path, config):
    assert describe(Path("train.jsonl.gz"), ["harmless-base"], "hh") == ("harmless-base", "train")
    assert describe(Path("harmless-base.test.jsonl"), [], "hh") == ("harmless-base", "test")
    assert describe(Path("harmless-base.json"), ["validation"], "hh") == ("harmless-base", "val")
    assert describe(Path("train-00000-of-00012.parquet"), [], "test_7") == ("7", "train")  # the folder given says no split
    assert describe(Path("contest.jsonl"), [], "x") == ("contest", "") and describe(Path("a_valid_test.jsonl"), [], "x") == ("a", "")
    source = tmp_path / "source"
    for i, name in enumerate(("harmless-base", "helpful-base")):
        write_lines(source / name / "train.jsonl.gz", [pair(f"{name} {k}") for k in range(30)])
    write_lines(source / "red-team-attempts" / "red_team_attempts.jsonl.gz", [{"transcript": "not a pair"}])  # lies beside HH's pairs
    store = PairStore(prepare(config) / "train")
    assert store.meta["subsets"] == ["harmless-base", "helpful-base"]
    which = [store.meta["subsets"][store.index[i]["subset"]] for i in range(len(store))]
    assert [p.split()[1] for p in texts(store.folder.parent, "train", 0)] == which and set(which) == {"harmless-base", "helpful-base"}
    # a source row says where a pair comes from: here, rows 0..29 are the first file's and 30..59 the second's
    assert all((row >= 30) == (name == "helpful-base") for row, name in zip(store.index["source_row"].tolist(), which))
    config.data.subsets = ["helpful-base"]
    assert {p.split()[1] for p in texts(prepare(config), "train", 0)} == {"helpful-base"}
    config.data.subsets = ["helpful"]
    with pytest.raises(UserError, match="no subset 'helpful'; known: harmless-base, helpful-base"):
        prepare(config)


def test_source_rows_count_lines_and_max_rows_takes_the_first_of_each_file(tmp_path, config):
    write_splits(tmp_path / "source", [pair("one"), "", pair("two"), pair("three")])
    assert PairStore(prepare(config) / "train").index["source_row"].tolist() == [0, 2, 3]
    assert PairStore(prepare(config) / "val").index["source_row"].tolist() == [4]
    config.data.max_rows = 2
    root = prepare(config)
    assert [p.split()[1] for p in texts(root, "train", 0)] == ["one", "two"] and len(PairStore(root / "test")) == 1


BAD = {'{"chosen": "a"': "not valid JSON", '["a"]': "a JSON object is needed, not a list", '{"chosen": "a"}': '"rejected" is missing',
       '{"chosen": 1, "rejected": "b"}': '"chosen" is int, not text', "[" * 100_000: "JSON nested too deeply"}


@pytest.mark.parametrize("line", BAD, ids=BAD.values())
def test_a_malformed_line_is_named_or_counted(tmp_path, config, line):
    write_splits(tmp_path / "source", [pair("one"), line, pair("two")])
    with pytest.raises(UserError) as error:
        prepare(config)
    assert f"source/train.jsonl line 2: {BAD[line]}" in str(error.value) and "--data.skip_bad" in str(error.value)
    assert list((tmp_path / "out" / "data").iterdir()) == []
    config.data.skip_bad = True
    root = prepare(config)
    assert counts(root)["train"] == Counter({"read": 3, "malformed line": 1, "kept": 2})
    config.data.skip_bad = False  # how lines are treated that are no longer there to be read does not make it another store
    assert find_data(config) == root


def test_bytes_that_are_no_text_and_damaged_files(tmp_path, config):
    write_splits(tmp_path / "source", [pair("one")])
    train = tmp_path / "source" / "train.jsonl"
    train.write_bytes(train.read_bytes() + b'{"chosen": "\xff"}\n')
    with pytest.raises(UserError, match=r"train.jsonl line 2: not UTF-8 text"):
        prepare(config)
    whole = gzip.compress(json.dumps(pair("one")).encode() * 2000)
    train.unlink()
    for content in (whole[:-20], whole[:20], b"not gzip at all"):
        (tmp_path / "source" / "train.jsonl.gz").write_bytes(content)
        with pytest.raises(UserError, match=r"train.jsonl.gz is a damaged .gz file"):
            prepare(config)
    (tmp_path / "source" / "train.jsonl.gz").unlink()
    (tmp_path / "source" / "train.parquet").write_bytes(b"PAR1 but no table")
    with pytest.raises(UserError, match="train.parquet is not a parquet file"):
        prepare(config)
    (tmp_path / "source" / "train.parquet").unlink()
    (tmp_path / "source" / "train.json").write_text('[\n{"chosen": "a"},\n{"chosen": }]')
    with pytest.raises(UserError, match=r"train.json line 3: not valid JSON"):
        prepare(config)


def test_missing_sources_are_one_sentence(tmp_path, config):
    with pytest.raises(UserError, match="--data.source: there is no file or folder '.*source'"):
        prepare(config)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "pairs.csv").write_text("a,b")
    with pytest.raises(UserError, match="--data.source: no .jsonl, .json, .parquet files"):
        prepare(config)
    config.data.source += "/pairs.csv"
    with pytest.raises(UserError, match="pairs.csv is none of .jsonl"):
        prepare(config)
    write_splits(tmp_path / "source", [pair("one")])
    config.data.source = f"{tmp_path}/source/train.jsonl,{tmp_path}/source/val.jsonl, {tmp_path}/source/test.jsonl"
    config.data.val_fraction = 1.0
    with pytest.raises(UserError, match="leave something for training"):
        prepare(config)
    config.data.val_fraction = 0.1
    config.data.tokenizer = str(tmp_path)
    with pytest.raises(UserError, match="no tokenizer"):
        prepare(config)


def test_a_full_disk_is_one_sentence_and_leaves_nothing_that_looks_whole(tmp_path, config):
    write_lines(tmp_path / "source" / "all.jsonl", [pair(f"{i} {'word ' * 40}") for i in range(500)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a file system that takes no more than 100 kB per file
    try:
        with pytest.raises(UserError, match=r"the disk that holds .* is full and nothing half-made was kept"):
            prepare(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "out" / "data").iterdir()) == [] and find_data(config) is None
    assert len(PairStore(prepare(config) / "train")) > 200  # the same command succeeds once there is room


# ---- the Hub ---------------------------------------------------------------------------------------------------------------

def test_the_hub_and_files_share_one_parser(tmp_path, config, monkeypatch):
    """A local folder in the layout of Anthropic/hh-rlhf goes through `datasets.load_dataset`, as the real one does."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = tmp_path / "source"
    for name in ("harmless-base", "helpful-base"):
        for split in ("train", "test"):
            write_lines(source / name / f"{split}.jsonl.gz", [pair(f"{name} {split} {i} é") for i in range(40)] + [REASONS["empty reply"]])
    from_files = prepare(config)
    config.data = dataclasses.replace(config.data, source="hub", dataset=str(source), subsets=["harmless-base", "helpful-base"])
    from_hub = prepare(config)
    assert from_hub != from_files and find_data(config) == from_hub
    for split in ("train", "val", "test"):
        assert texts(from_hub, split) == texts(from_files, split) and counts(from_hub)[split] == counts(from_files)[split]
        assert (PairStore(from_hub / split).index == PairStore(from_files / split).index).all()
    assert PairStore(from_hub / "train").meta["subsets"] == ["harmless-base", "helpful-base"]
    config.data.subsets = ["harmless"]
    with pytest.raises(UserError, match="cannot load .*source harmless from the Hub .* point --data.source at a folder"):
        prepare(config)


def test_an_unreachable_hub_is_one_sentence(config):
    config.data = dataclasses.replace(config.data, source="hub")
    with pytest.raises(UserError, match="cannot load Anthropic/hh-rlhf harmless-base from the Hub .* point --data.source at a folder or file"):
        prepare(config)
    with pytest.raises(UserError, match="Salesforce/wikitext:wikitext-103-raw-v1 from the Hub .* point --data.text_source"):
        load_hub(config.data.text_dataset, [], "--data.text_source")


# ---- the same again ----------------------------------------------------------------------------------------------------------

def everything(folder):
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_ino) for p in sorted(folder.rglob("*"))}


def test_a_second_call_writes_nothing(tmp_path, config):
    write_splits(tmp_path / "source", [pair("one")])
    assert find_data(config) is None
    root = prepare(config)
    assert root == find_data(config) and root.parent == tmp_path / "out" / "data"
    assert sorted(p.name for p in root.iterdir()) == ["preparation.json", "test", "tokenizer", "train", "val"]
    assert sorted(p.name for p in root.parent.iterdir()) == [root.name]  # nothing temporary is left
    before = everything(tmp_path / "out")
    assert prepare(config) == root and everything(tmp_path / "out") == before
    other = dataclasses.replace(config, name="another experiment")
    assert find_data(other) is None
    before = everything(root)
    assert prepare(other) == root == find_data(other) and everything(root) == before  # shared, not made again
    (tmp_path / "out").rename(tmp_path / "drive")
    config.out = str(tmp_path / "drive")
    assert find_data(config) == tmp_path / "drive" / "data" / root.name  # --out can move


def test_a_damaged_store_is_made_again(tmp_path, config):
    write_splits(tmp_path / "source", [pair("one")])
    root = prepare(config)
    before = texts(root, "train")
    (root / "train" / "tokens.bin").write_bytes(b"")
    assert find_data(config) is None
    assert prepare(config) == root == find_data(config) and texts(root, "train") == before


CHANGES = {
    "block_size": lambda c: setattr(c.model, "block_size", 200), "seed": lambda c: setattr(c, "seed", 5),
    "val_fraction": lambda c: setattr(c.data, "val_fraction", 0.3), "max_rows": lambda c: setattr(c.data, "max_rows", 1),
    "subsets": lambda c: setattr(c.data, "subsets", ["source"]),
    "vocabulary": lambda c: (setattr(c.data, "tokenizer", "bpe"), setattr(c.data, "vocab_size", 260)),
    "a row": lambda c: write_lines(Path(c.data.source) / "train.jsonl", [pair("one"), pair("TWO")]),
    "a file": lambda c: write_lines(Path(c.data.source) / "train2.jsonl", [pair("three")]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_content_hash_follows_settings_and_sources(tmp_path, config, change):
    write_splits(tmp_path / "source", [pair("one"), pair("two")])
    root = prepare(config)
    CHANGES[change](config)
    assert find_data(config) is None
    assert prepare(config) not in (root, None) and find_data(config) != root
    assert len(PairStore(root / "train")) == 2  # the old one stays


def test_a_touched_file_is_the_same_content(tmp_path, config):
    write_splits(tmp_path / "source", [pair("one")])
    root = prepare(config)
    rows = (tmp_path / "source" / "train.jsonl").read_bytes()
    (tmp_path / "source" / "train.jsonl").unlink()
    (tmp_path / "source" / "train.jsonl.gz").write_bytes(gzip.compress(rows))
    before = everything(root)
    assert find_data(config) is None  # another file now: look again ...
    assert prepare(config) == root and everything(root) == before  # ... and find that it holds the same


# ---- tokenizer, scale, command line ------------------------------------------------------------------------------------------

def test_a_vocabulary_is_trained_on_the_training_split_alone(tmp_path, config):
    write_splits(tmp_path / "source", [pair("banana banana", "banana")] * 3, [pair("cucumber " * 50)], [pair("cucumber " * 60)])
    config.data = dataclasses.replace(config.data, tokenizer="bpe", vocab_size=270)
    tok = load_tokenizer(prepare(config) / "tokenizer")
    tokens = [tok.token_bytes(i) for i in range(256, 269)]
    assert tok.vocab_size == 270 and b" banana" in tokens and not any(b"cu" in token for token in tokens)
    config.data.text_source = str(write_lines(tmp_path / "text" / "a.jsonl", [{"text": "zebra " * 500}]))
    tok = load_tokenizer(prepare(config) / "tokenizer")
    assert b"zebra" in [tok.token_bytes(i) for i in range(256, 269)]


def test_memory_stays_flat(tmp_path, config, monkeypatch):
    monkeypatch.setattr(prepare_hh, "CHUNK", 64)
    monkeypatch.setattr("data.store.BUFFER_TOKENS", 1 << 14)
    config.model.block_size = 2048
    peaks = []
    for n in (300, 1500):
        write_lines(tmp_path / "source" / "all.jsonl", [pair(f"{i} {'word ' * 100}", "good " * 40, "bad " * 40) for i in range(n)])
        if not peaks:
            prepare(dataclasses.replace(config, out=str(tmp_path / "warm")))  # imports and caches are paid for
        tracemalloc.start()
        prepare(dataclasses.replace(config, out=str(tmp_path / f"out{n}")))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    per_row = (peaks[1] - peaks[0]) / 1200
    assert per_row < 600, f"{per_row:.0f} bytes a row stay in memory: not flat"  # a row has 1,400 bytes of text


def test_the_command_reports_bad_input_in_one_sentence(tmp_path, config):
    write_splits(tmp_path / "source", [pair("one"), "{", pair("two")])
    experiment = tmp_path / "mine.py"
    experiment.write_text(f"out = {config.out!r}\ndata = {{'tokenizer': {config.data.tokenizer!r}}}\n")
    command = [sys.executable, str(ROOT / "data" / "prepare_hh.py"), str(experiment), "--source", str(tmp_path / "source")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ") and "train.jsonl line 2" in result.stderr.splitlines()[-1]
    result = subprocess.run([*command, "--skip-bad"], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0 and "malformed line" in result.stdout, result.stderr
    assert (tmp_path / "out" / "mine" / "data.json").is_file()


def test_the_toy_corpus_takes_the_same_path(tmp_path, config):
    config.data = dataclasses.replace(config.data, source="toy", max_rows=50)
    config.model.block_size = 1024
    root = prepare(config)
    assert {split: counts(root)[split]["kept"] for split in counts(root)} == {"train": 50, "val": 50, "test": 50}
    assert PairStore(root / "train").meta["subsets"] == ["toy"] and find_data(config) == root
    assert counts(root)["train"] == Counter({"read": 50, "kept": 50})
    config.data.toy_control = "flipped"
    assert find_data(config) is None  # another corpus


# ---- plain text --------------------------------------------------------------------------------------------------------------

def rows_of(root, split):
    store, tok = PairStore(root / split), load_tokenizer(root / "tokenizer")
    result = []
    for i in range(len(store)):
        prompt, roles, chosen, rejected = store.row(i)
        assert prompt.tolist() == [EOT] and roles.tolist() == [0] and len(rejected) == 0
        result.append((store.meta["subsets"][store.index[i]["subset"]], tok.decode(chosen)))
    return result


def test_without_text_the_base_stage_reads_the_dialogues(tmp_path, config):
    write_splits(tmp_path / "source", [pair("one"), pair("two", "chosen text")])
    with pytest.raises(UserError, match="run `python data/prepare_hh.py CONFIG` first"):
        prepare_text(config)
    pairs = prepare(config)
    assert find_text(config) is None
    root = prepare_text(config)
    assert root == find_text(config) and root != pairs
    assert rows_of(root, "train") == [("pair dialogues", talk("one", "yes") + "<|endoftext|>"),
                                      ("pair dialogues", talk("two", "chosen text") + "<|endoftext|>")]
    assert rows_of(root, "val") == [("pair dialogues", talk("a validation question", "yes") + "<|endoftext|>")]
    before = everything(tmp_path / "out")
    assert prepare_text(config) == root and everything(tmp_path / "out") == before
    write_splits(tmp_path / "source", [pair("three")])
    assert find_text(config) is None  # other pairs, other text


def test_documents_of_all_kinds(tmp_path, config):
    write_splits(tmp_path / "source", [pair("one")])
    config.model.block_size, config.data.val_fraction = 41, 0.0
    text = tmp_path / "text"
    long = "".join(f"{i:03} " for i in range(25))  # 100 bytes and end-of-text: 101 tokens, three pieces of at most 40
    write_lines(text / "wiki.jsonl.gz", [{"text": "short"}, {"text": long}, {"text": "  "}, {"text": "Short "}, {"text": "né\r\ne"},
                                      {"text": "y" * 40}])
    write_lines(text / "chat.jsonl", [{"turns": [["Human", "hi "], ["Assistant", "ho"], ["Assistant", "so"], ["Human", " "]]},
                                      {"turns": [["agent_1", "a"], ["agent_2", "b"]]}])
    write_lines(text / "play_valid.txt.gz", ["ACT I", "enter"])
    write_lines(text / "book_test.txt", ["never read"])
    config.data.text_source = str(text)
    prepare(config)
    root = prepare_text(config)
    train = rows_of(root, "train")
    assert [t for name, t in train if name == "chat"] == [talk("hi", "ho so") + "<|endoftext|>", talk("a", "b") + "<|endoftext|>"]
    wiki = [t for name, t in train if name == "wiki"]
    assert wiki == ["short<|endoftext|>", long[:34], long[34:68], long[68:] + "<|endoftext|>", "né\ne<|endoftext|>",
                    "y" * 21, "y" * 19 + "<|endoftext|>"]  # 41 tokens, but the start token takes one of the block's 41 positions
    assert rows_of(root, "val")[0] == ("play", "ACT I\nenter\n<|endoftext|>")
    assert "never read" not in str(train) + str(rows_of(root, "val"))
    count = read_json(root / "preparation.json")["counts"]
    assert count["wiki"] == {"documents": 6, "empty": 1, "duplicate": 1, "train rows": 7, "tokens": 6 + 101 + 6 + 41}
    assert max(row_lengths(PairStore(root / "train"), 2)) <= 41


def test_bad_text_rows_are_named_or_counted(tmp_path, config):
    write_splits(tmp_path / "source", [pair("one")])
    config.data.text_source = str(write_lines(tmp_path / "text.jsonl", [{"text": "fine"}, {"title": "no text"}, {"turns": ["x"]}]))
    prepare(config)
    with pytest.raises(UserError, match=r'text.jsonl line 2: neither "text" nor "turns"'):
        prepare_text(config)
    config.data.skip_bad = True
    root = prepare_text(config)
    assert read_json(root / "preparation.json")["counts"]["text"]["malformed"] == 2 and len(PairStore(root / "train")) == 2


def test_text_from_the_hub(tmp_path, config, monkeypatch):
    """A local folder stands for Salesforce/wikitext: a row per line, and files of all three splits."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_splits(tmp_path / "source", [pair("one")])
    for split in ("train", "validation", "test"):
        lines = ["", f" = {split} = \n", "", " First line . \n", " = Another = \n", " x \n"]
        write_lines(tmp_path / "wikitext" / f"{split}.jsonl", [{"text": line} for line in lines])
    config.data.text_source, config.data.text_dataset, config.data.val_fraction = "hub", str(tmp_path / "wikitext"), 0.0
    prepare(config)
    root = prepare_text(config)
    assert [t for name, t in rows_of(root, "train") if name == "all"] == [" = train = \n First line . \n<|endoftext|>", " = Another = \n x \n<|endoftext|>"]
    assert [t for name, t in rows_of(root, "val") if name == "all"] == [" = validation = \n First line . \n<|endoftext|>"]  # the other is a copy
    assert find_text(config) == root


def test_pieces_are_even_and_lose_nothing():
    for n in range(1, 200):
        cut = list(pieces(list(range(n)), 40))
        assert sum(cut, []) == list(range(n)) and len(cut) == -(-n // 40)
        assert max(map(len, cut)) <= 40 and max(map(len, cut)) - min(map(len, cut)) < len(cut)  # no scrap of one token at the end


def test_the_limit_is_shared_evenly_and_small_files_are_read_whole(tmp_path, config):
    assert share_evenly([100, 10, 50], 90) == [40, 10, 40] and share_evenly([5, 5], 100) == [5, 5]
    write_splits(tmp_path / "source", [pair("one")])
    for name, n in (("big", 2000), ("small", 20)):
        write_lines(tmp_path / "text" / f"{name}.jsonl", [{"text": f"{name} {i:04} " + "x" * 90} for i in range(n)])
    config.data.text_source, config.data.text_max_mb = str(tmp_path / "text"), 0.05
    prepare(config)
    count = read_json(prepare_text(config) / "preparation.json")["counts"]
    assert count["small"]["documents"] == 20
    assert 49_000 < sum(count[name]["tokens"] - count[name]["documents"] for name in ("big", "small")) <= 50_000


def test_running_text_is_cut_at_line_ends_and_headings(tmp_path):
    lines = [" \n", " = First = \n", "text\n", " = = Part = = \n", "more\n", " = Second = \n", "end"]
    expected = [(1, " \n"), (2, " = First = \ntext\n = = Part = = \nmore\n"), (6, " = Second = \nend")]
    assert list(passages(enumerate(lines, 1))) == expected
    path = write_lines(tmp_path / "lines.jsonl", [{"text": line} for line in lines])  # WikiText on the Hub: a row per line
    [part] = list_files(str(path), (".jsonl",), "x")
    assert list(read_documents(part)) == [*expected[:2], (6, " = Second = \n"), (7, "end")]
    [(first, one), (second, two)] = passages((n, "x" * 99 + "\n") for n in range(1, 200))
    assert (first, len(one), second) == (1, 16400, 165) and len(one + two) == 19_900


def test_what_a_row_says_about_its_pair_is_kept(tmp_path, config):
    """level by number, word or file name; margin given or as a difference of scores; chosen_is_true."""
    rows = [pair("a"), pair("b") | {"level": 7}, pair("c") | {"level": "Easy", "margin": 1.5},
            pair("d") | {"score_chosen": 8.0, "score_rejected": 3.5, "chosen_is_true": False}]
    folder = tmp_path / "three"
    for name, part in (("train-easy", rows[:1]), ("train-medium", rows[1:2]), ("train-hard", rows[2:]), ("val", [pair("e")]), ("test", [pair("f")])):
        write_lines(folder / f"{name}.jsonl", part)
    config.data.source = ",".join(str(path) for path in sorted(folder.iterdir()))
    index = PairStore(prepare(config) / "train").index
    assert sorted(zip(index["level"].tolist(), index["margin"].tolist(), index["chosen_is_true"].tolist())) == [(1, 0.0, 1), (1, 1.5, 1), (3, 4.5, 0), (7, 0.0, 1)]


@pytest.mark.parametrize("field, message", [({"level": "soft"}, '"level" is \'soft\', not easy, medium, hard'), ({"level": -1}, '"level" is -1'),
                                            ({"margin": "big"}, '"margin"'), ({"chosen_is_true": "yes"}, '"chosen_is_true" is \'yes\'')])
def test_a_bad_word_about_a_pair_is_named(tmp_path, config, field, message):
    write_splits(tmp_path / "source", [pair("one") | field])
    with pytest.raises(UserError, match=message):
        prepare(config)
