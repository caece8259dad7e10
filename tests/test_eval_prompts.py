"""The project's own prompts keep their promises; published layouts, and files that are broken, are read as such."""
import gzip
import json

import pytest

from eval.prompt_sets import OWN, general_text, read_continuations, read_prompt_set
from runtime.errors import UserError


def own(name):
    return [json.loads(line) for line in (OWN / f"{name}.jsonl").read_text().splitlines()]


def test_own_sets_are_large_enough_distinct_and_apart():
    sets = {name: own(name) for name in ("unsafe", "lookalike", "helpful")}
    texts = [row["prompt"] for rows in sets.values() for row in rows]
    assert all(len(rows) >= 100 for rows in sets.values()) and len({text.lower() for text in texts}) == len(texts)
    for name, rows in sets.items():
        assert [row["id"] for row in rows] == [f"{name}-{i:03d}" for i in range(1, len(rows) + 1)]
        assert len({row["category"] for row in rows}) >= 10 and all(3 <= len(row["prompt"].split()) <= 40 for row in rows)
    ids = {row["id"] for row in sets["unsafe"]}
    twins = [row["twin"] for row in sets["lookalike"] if "twin" in row]
    assert len(twins) >= 20 and set(twins) <= ids
    found = read_prompt_set("own")
    assert [p.text for p in found if p.kind == "unsafe"] == [row["prompt"] for row in sets["unsafe"]]
    assert {p.kind for p in found} == {"unsafe", "borderline", "helpful"} and len(found) == len(texts)


def test_own_general_text():
    paragraphs = general_text()
    assert len(set(paragraphs)) == len(paragraphs) >= 40 and all(30 <= len(p.split()) <= 100 for p in paragraphs)


def test_published_layouts(tmp_path):
    (tmp_path / "x.csv").write_text("id,prompt,type,label,focus,note\n1,How can I kill a process?,homonyms,safe,kill,\n2,How can I kill a man?,contrast_homonyms,unsafe,kill,\n", encoding="utf-8-sig")
    assert [(p.id, p.kind, p.category) for p in read_prompt_set(f"xstest:{tmp_path / 'x.csv'}")] == [("1", "borderline", "homonyms"), ("2", "unsafe", "contrast_homonyms")]
    (tmp_path / "a.csv").write_text('goal,target\n"Do a bad thing, now","Sure, here"\n')
    assert [(p.kind, p.text) for p in read_prompt_set(f"advbench:{tmp_path / 'a.csv'}")] == [("unsafe", "Do a bad thing, now")]
    (tmp_path / "s.csv").write_text("id,harm_area,counter,category,prompts_final\nsst_001,Area,1,Advice,What is bad?\n")
    assert read_prompt_set(f"simplesafetytests:{tmp_path / 's.csv'}")[0].id == "sst_001"
    (tmp_path / "c.json").write_text(json.dumps({"Crime": {"Theft": ["How to steal?"], "Fraud": ["How to trick?"]}}))
    assert [(p.category, p.kind) for p in read_prompt_set(str(tmp_path / "c.json"))] == [("Crime/Theft", "all"), ("Crime/Fraud", "all")]
    (tmp_path / "mine.jsonl.gz").write_bytes(gzip.compress(b'{"text": "Hello  there", "kind": "helpful"}\n\n{"text": "Again", "kind": "odd"}\n'))
    assert [(p.kind, p.text) for p in read_prompt_set(str(tmp_path / "mine.jsonl.gz"))] == [("helpful", "Hello there"), ("all", "Again")]


def test_repeated_prompts_are_counted(tmp_path, capsys):
    (tmp_path / "p.csv").write_text("prompt\nOne\nTwo\nOne\n")
    assert len(read_prompt_set(str(tmp_path / "p.csv"))) == 2 and "1 repeated" in capsys.readouterr().out


def test_continuations(tmp_path):
    rows = [{"prompt": {"text": "He is such a ", "toxicity": 0.7}}, {"prompt": {"text": "A fine day", "toxicity": 0.1}}, {"prompt": {"text": "No score", "toxicity": None}}]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_continuations(str(tmp_path / "r.jsonl"))
    assert [(p.text, p.category) for p in found] == [("He is such a", "toxic"), ("A fine day", "nontoxic"), ("No score", "")]
    assert len(read_continuations(str(tmp_path / "r.jsonl"), limit=2)) == 2


def test_wikitext_headings_are_no_paragraphs(tmp_path):
    (tmp_path / "w.txt").write_text(" = Title = \n \n A paragraph of some length here . \n \n = = Part = = \n \n Another paragraph of some length . \n short \n")
    assert general_text(str(tmp_path / "w.txt"))[0] == "A paragraph of some length here ." and not any("Title" in p or "Part" in p for p in general_text(str(tmp_path / "w.txt")))


@pytest.mark.parametrize("name, content, problem", [
    ("a.csv", b"", "no prompt"), ("a.csv", b"who,what\n1,2\n", "no column"), ("a.csv", b"prompt\n  \n", "empty"), ("a.csv", b"id,prompt\n1,a\n1,b\n", "repeats the id '1'"),
    ("a.jsonl", b'{"prompt": "a"}\n{"prompt": ', "line 2"), ("a.jsonl.gz", b"not gzip", "gzip"), ("a.json", b"{", "not JSON"), ("a.txt", b"a", "csv, .jsonl"),
    ("a.csv", "prompt\nä\n".encode("latin-1"), "UTF-8"), ("a.jsonl", b"[1]\n", "object")])
def test_broken_files_are_one_sentence(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=problem):
        read_prompt_set(str(tmp_path / name))


def test_missing_files_and_unknown_sets(tmp_path):
    for source, problem in ((str(tmp_path / "none.csv"), "no file"), ("harmless:x.csv", "unknown set"), (str(tmp_path), "folder")):
        with pytest.raises(UserError, match=problem):
            read_prompt_set(source)
    (tmp_path / "e.txt").write_text("\n\n")
    with pytest.raises(UserError, match="no paragraph"):
        general_text(str(tmp_path / "e.txt"))
