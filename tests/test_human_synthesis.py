"""Personas, dialogues and their store: splits before sampling, windows by hand, roles, crashes, and every command against a scripted server."""
import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
from judge_server import broken, cut, status, too_many  # noqa: E402

from runtime.errors import UserError  # noqa: E402
from studies.human_likeness import judge, pairs, personas, storage, synthesize  # noqa: E402
from studies.human_likeness.dialogue import clean, text_hash  # noqa: E402
from studies.human_likeness.synthesize import check_dialogue, check_portrait, generator_of  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
OURS = ROOT / "studies" / "human_likeness" / "parents.jsonl"


@pytest.fixture
def server(server):
    server.reply = writes
    return server


# ---- personas -----------------------------------------------------------------------------------------------------------------

def test_windows_by_hand():
    """s = traits // (children + 1); windows of 2s, each s further on, the first one going round the end of the list."""
    assert personas.windows(8, 2) == [[6, 7, 0, 1], [0, 1, 2, 3]]
    assert personas.windows(22, 4) == [[18, 19, 20, 21, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7], [4, 5, 6, 7, 8, 9, 10, 11], [8, 9, 10, 11, 12, 13, 14, 15]]
    assert personas.windows(7, 4) == [[4, 5, 6, 0, 1, 2]]  # too few for four children: one
    assert personas.windows(3, 4) == [[0, 1, 2]] and personas.windows(0, 4) == [[]]


@pytest.mark.parametrize("traits", range(4, 60, 3))
def test_windows_overlap_with_their_neighbours_alone(traits):
    for children in range(1, 7):
        found = personas.windows(traits, children)
        s = traits // (len(found) + 1)
        assert 1 <= len(found) <= children and all(len(set(window)) == len(window) == 2 * s for window in found)
        for i, one in enumerate(found):
            for j in range(i):
                assert len(set(one) & set(found[j])) == (s if j == i - 1 else 0)


def parent(name="p", age=40.0, n=16):
    return {"parent_id": name, "age": age, "sex": "Female", "traits": {f"t{i}": f"v{i}" for i in range(n)}}


def test_children_keep_the_essentials_and_depend_on_names_alone():
    found = personas.children_of(parent(), 4, "train", seed=3)
    assert [row["persona_id"] for row in found] == ["p-0", "p-1", "p-2", "p-3"] and {row["sex"] for row in found} == {"Female"} and {len(row["traits"]) for row in found} == {6}
    turned = parent() | {"traits": dict(reversed(parent()["traits"].items()))}
    assert personas.children_of(turned, 4, "train", seed=3) == found
    assert json.dumps(personas.children_of(turned, 4, "train", seed=3)) == json.dumps(found)  # the order in which traits are shown, too
    assert personas.children_of(parent(), 4, "train", seed=4) != found and all(row["traits"].items() <= parent()["traits"].items() for row in found)
    with pytest.raises(ValueError):
        personas.children_of(parent(), 0, "train", 0)


def test_ages_stay_near_the_parents_and_within_bounds():
    """The published sampler can make a person of 101."""
    for age in (18.0, 19.0, 50.0, 95.0, 100.0):
        ages = [row["age"] for i in range(60) for row in personas.children_of(parent(f"p{i}", age), 4, "train", 0)]
        assert all(type(a) is int and 18 <= a <= 100 and age * 0.9 - 1 <= a <= age * 1.1 + 1 for a in ages) and len(set(ages)) > 1
    assert max(ages) == 100


def test_what_does_not_apply_is_dropped_at_any_depth():
    assert personas.without_missing({"a": "Not Applicable", "b": {"c": " not applicable ", "d": "x"}, "e": [None, "y", {"f": ""}], "g": {"h": "NOT APPLICABLE"}, "i": 0}) \
        == {"b": {"d": "x"}, "e": ["y"], "i": 0}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_parents_are_read_from_both_layouts(tmp_path):
    rows = [{"age": "40", "sex": "Male", "job": "cook", "hobby": "Not Applicable"}, {"age": 7, "sex": "Male", "job": "none"}, {"id": "x", "age": 40, "sex": "Male", "job": "driver"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    found, out = personas.read_parents(tmp_path / "a.json")
    assert found == personas.read_parents(write_lines(tmp_path / "a.jsonl", rows[::-1]))[0][::-1]  # ids do not depend on the order
    assert out == {"age outside 18 to 100": 1} and found[1]["parent_id"] == "x" and found[0]["traits"] == {"job": "cook"} and len(found[0]["parent_id"]) == 10


@pytest.mark.parametrize("rows, words", [
    ([{"age": 40, "sex": "F", "a": "x"}, {"age": 40, "sex": "F", "a": "x", "id": "other"}], "persons 1 and 2 are the same"),
    ([{"id": "a", "age": 40, "sex": "F"}, {"id": "a", "age": 41, "sex": "F"}], "persons 1 and 2 are the same"),
    ([{"sex": "F"}], "needs an age"), ([{"age": "old", "sex": "F"}], "needs an age"), ([{"age": 40, "sex": "Not Applicable"}], "needs an age")])
def test_parents_that_are_none(tmp_path, rows, words):
    """The same description twice could stand in training and in test."""
    with pytest.raises(UserError, match=words):
        personas.read_parents(write_lines(tmp_path / "a.jsonl", rows))


def test_no_parent_is_in_two_splits():
    """Split by parent, before sampling: a split of personas would put a parent's other children into the test."""
    many = [parent(f"p{i}") for i in range(300)]
    rows = personas.build(many, 4, dev=0.1, test=0.2, seed=0)
    by_parent = {}
    for row in rows:
        by_parent.setdefault(row["parent_id"], set()).add(row["split"])
    assert len(rows) == 1200 and all(len(own) == 1 for own in by_parent.values())
    shares = Counter(next(iter(own)) for own in by_parent.values())
    assert 40 < shares["test"] < 80 and 15 < shares["dev"] < 50 and shares.total() == 300
    fewer = {row["persona_id"]: row for row in personas.build(many[::-1][:100], 4, 0.1, 0.2, 0)}
    assert all(fewer[row["persona_id"]] == row for row in rows if row["persona_id"] in fewer) and len(fewer) == 400  # who else is there changes nothing
    rows[0] = rows[0] | {"split": "test" if rows[0]["split"] == "train" else "train"}
    with pytest.raises(UserError, match="parent p0 has personas in the splits test and train"):
        personas.check_splits(rows)
    with pytest.raises(UserError, match="persona p1-0 comes twice"):
        personas.check_splits(personas.build(many[1:3], 2, 0, 0, 0) + personas.build(many[1:2], 1, 0, 0, 0))


def test_the_command_on_our_own_parents(tmp_path, capsys):
    personas.main([str(OURS), "--to", str(tmp_path), "--dev", "0.2", "--test", "0.2"])
    rows = {split: [json.loads(line) for line in open(tmp_path / f"{split}.jsonl")] for split in ("train", "dev", "test")}
    assert sum(map(len, rows.values())) == 80 and json.loads(capsys.readouterr().out)["parents_with_fewer_children"] == 0
    personas.check_splits(row for own in rows.values() for row in own)
    personas.main([str(OURS), "--to", str(tmp_path), "--dev", "0", "--test", "0.2"])
    assert not (tmp_path / "dev.jsonl").exists()  # nothing of an earlier run is left
    with pytest.raises(UserError, match="no parent falls into the split test"):
        personas.main([str(OURS), "--to", str(tmp_path / "none"), "--dev", "0", "--test", "0.001"])
    assert not (tmp_path / "none").exists()


# ---- what generators write ------------------------------------------------------------------------------------------------------

GOOD = "<dialogue>\nP: hi, {who}\nD: hello, what brings you in?\nP: my knee, it hurts\nD: let me see\nP: ok\n</dialogue>"
SWAPPED = "<dialogue>\nP: Hello, what brings you in today?\nD: my knee hurts\nP: any allergies?\nD: no\n</dialogue>"


def portrait(name):
    return json.dumps({"biography": f"{name} " + "is somebody who does things " * 8, "medical_condition": "a bad knee", "reason_for_visit": "It hurts."})


def is_portrait(messages):
    return "=== " in messages[-1]["content"] or messages[0]["role"] == "system"


def writes(messages):
    """Portraits named after what is asked, and a dialogue that differs every time, as one drawn at temperature 1 does."""
    writes.n = getattr(writes, "n", 0) + 1
    return portrait(f"Person{abs(hash(messages[1]['content'])) % 10**6}") if is_portrait(messages) else GOOD.format(who=f"it's me {writes.n}")


def test_swapped_roles_are_refused():
    """The published generators swapped patient and doctor in up to half of a model's rows, and nothing looked."""
    assert check_dialogue(SWAPPED) == (None, "P speaks like the doctor")
    text, wrong = check_dialogue("Sure!\n" + GOOD.format(who="x") + "\nHope this helps")
    assert wrong == "" and text.splitlines()[0] == "P: hi, x" and text.splitlines()[-1] == "P: ok"
    for bad, why in ((GOOD.replace("</dialogue>", ""), "does not end"), ("<dialogue>\nP: hi\nP: my knee\n</dialogue>", "only one speaker"), ("<dialogue>\nD: hello\nD: bye\n</dialogue>", "no turn of P"),
                     ("<dialogue>\nP: hi\nD: bye\n</dialogue>", "fewer than 4"), ("<dialogue>\nP: hi\nD:\nP: ok\nD: bye\n</dialogue>", "an empty one"), ("<dialogue></dialogue>", "no turn of P"),
                     ("", "does not end")):
        assert check_dialogue(bad)[0] is None and why in check_dialogue(bad)[1], bad


def test_portraits_are_checked():
    assert check_portrait(portrait("A"))[1] == "" and check_portrait("```json\n" + portrait("A") + "\n```")[0]["medical_condition"] == "a bad knee"
    for change, why in (({"biography": "short"}, "fewer than 30"), ({"biography": 3}, "must be a text"), ({"reason_for_visit": ""}, "must be a text"), ({"more": "x"}, "one JSON object"),
                        ({"medical_condition": "</dialogue>"}, "tag")):
        assert why in check_portrait(json.dumps(json.loads(portrait("A")) | change))[1]


def test_who_writes_what_is_drawn_by_name():
    drawn = Counter(generator_of(["a", "b", "c"], 0, f"p{i}", k) for i in range(500) for k in range(4))
    assert all(600 < n < 735 for n in drawn.values()) and drawn.total() == 2000
    assert all(generator_of(["c", "a", "b"], 0, f"p{i}", 1) == generator_of(["a", "b", "c"], 0, f"p{i}", 1) for i in range(50))
    assert [generator_of(["a", "b", "c"], 1, f"p{i}", 1) for i in range(50)] != [generator_of(["a", "b", "c"], 0, f"p{i}", 1) for i in range(50)]


# ---- the store ------------------------------------------------------------------------------------------------------------------

def test_the_store_only_ever_grows(tmp_path):
    db = storage.open_store(tmp_path / "s.sqlite", {"seed": 0})
    storage.add_persona(db, "p-0", "p", "train", "h", "prompt", {"biography": "b"}, "m", {})
    storage.add_dialogue(db, "p-0", 0, "P: hi\nD: ho", "m", {})
    with pytest.raises(ValueError, match="dialogue 0 of p-0"):
        storage.add_dialogue(db, "p-0", 0, "P: other\nD: ho", "m", {})
    with pytest.raises(ValueError, match="dialogue 0 of nobody"):
        storage.add_dialogue(db, "nobody", 0, "P: hi\nD: ho", "m", {})
    with pytest.raises(UserError, match="parent p is in the split train already and cannot be in test"):
        storage.add_persona(db, "p-1", "p", "test", "h", "prompt", {}, "m", {})
    for statement in ("UPDATE dialogues SET text = 'x'", "DELETE FROM dialogues", "DELETE FROM personas", "UPDATE plan SET settings = '{}'"):
        with pytest.raises(sqlite3.DatabaseError, match="append-only"):
            db.execute(statement)
    assert storage.export(db)[0]["dialogue"] == "<dialogue>\nP: hi\nD: ho\n</dialogue>" and storage.export(db, "test") == []
    with pytest.raises(UserError, match="was begun with seed = 0, not 1"):
        storage.open_store(tmp_path / "s.sqlite", {"seed": 1})
    (tmp_path / "text").write_text("no store at all, but long enough to be looked at" * 20)
    with pytest.raises(UserError, match="cannot be used as a store"):
        storage.open_store(tmp_path / "text", {})
    with pytest.raises(UserError, match="cannot be read as a store"):
        storage.open_store(tmp_path / "none.sqlite")


# ---- the whole of it -----------------------------------------------------------------------------------------------------------

def people(tmp_path, n=6):
    return write_lines(tmp_path / "people.jsonl", personas.build([parent(f"p{i}") for i in range(n)], 1, 0, 0, 0))


def synthesis(server, tmp_path, *extra, models=("m",)):
    synthesize.main([str(tmp_path / "people.jsonl"), "--to", str(tmp_path / "s.sqlite"), "--models", *(f"{name}={server.url}" for name in models), *extra])


def rows_of(tmp_path):
    return storage.export(storage.open_store(tmp_path / "s.sqlite"))


def test_from_personas_to_pairs_with_every_command(server, tmp_path, capsys):
    people(tmp_path)
    server.faults = [too_many, broken, cut]
    synthesis(server, tmp_path, "--efforts", "b=low", models=("a", "b"))
    rows = rows_of(tmp_path)
    assert len(rows) == 24 and len({row["dialogue_id"] for row in rows}) == 24 and {row["model"] for row in rows} == {"a", "b"}
    assert "24 of 24 dialogues of 6 personas" in capsys.readouterr().out
    by_model = Counter(body["model"] for body in server.bodies if not is_portrait(body["messages"]))
    assert all(generator_of(["a", "b"], 0, row["persona_id"], int(row["dialogue_id"].rpartition("/")[2])) == row["model"] for row in rows)
    assert {body.get("reasoning_effort") for body in server.bodies if body["model"] == "b"} == {"low"} and by_model["b"] >= 5
    storage.main([str(tmp_path / "s.sqlite"), "--to", str(tmp_path / "d.csv"), "--split", "train"])
    storage.main([str(tmp_path / "s.sqlite"), "--to", str(tmp_path / "prompts.csv"), "--prompts-only"])
    read = judge.read_dialogues(tmp_path / "d.csv")
    hashes = dict(storage.open_store(tmp_path / "s.sqlite").execute("SELECT persona_id || '/' || k, text_hash FROM dialogues"))
    assert all(text_hash(clean(row["dialogue"])[0]) == hashes[row["dialogue_id"]] and clean(row["dialogue"])[1] == Counter() for row in read)
    with open(tmp_path / "scored.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [*read[0], "score"])
        writer.writeheader()
        writer.writerows(row | {"score": i} for i, row in enumerate(read))
    assert len(pairs.all_pairs(pairs.read_scored(tmp_path / "scored.csv")[0], 1.0)) == 6 * 6
    assert [row["persona_id"] for row in csv.DictReader(open(tmp_path / "prompts.csv"))] == [f"p{i}-0" for i in range(6)]
    with pytest.raises(UserError, match="nothing of the split test"):
        storage.main([str(tmp_path / "s.sqlite"), "--to", str(tmp_path / "t.csv"), "--split", "test"])
    # once more, and with one dialogue more each: only what is missing is asked
    asked = len(server.bodies)
    synthesis(server, tmp_path, "--efforts", "b=low", models=("b", "a"), *("--writer", "a"))
    assert len(server.bodies) == asked
    synthesis(server, tmp_path, "--efforts", "b=low", "--per-persona", "5", models=("a", "b"))
    assert len(server.bodies) == asked + 6 and rows_of(tmp_path)[0] == rows[0]
    with pytest.raises(UserError, match="was begun with seed = 0, not 1"):
        synthesis(server, tmp_path, "--seed", "1", models=("a", "b"))


def test_one_failing_generation_loses_one_dialogue_and_not_the_persona(server, tmp_path, capsys):
    """The published runner returned nothing for a persona when one of its five generations failed."""
    people(tmp_path)
    bad = []

    def sometimes(messages):
        if not is_portrait(messages) and "Person1 " in messages[0]["content"] and len(bad) < 2:
            bad.append(messages)
            return SWAPPED
        return portrait(f"Person{server.asked.total()}") if is_portrait(messages) else writes(messages)
    server.reply = sometimes
    synthesis(server, tmp_path, "--tries", "2", "--concurrency", "1")
    facts = json.loads((tmp_path / "s.facts.json").read_text())
    assert len(rows_of(tmp_path)) == 23 and facts["dialogues_missing"] == [facts["dialogues_missing"][0]] and facts["invalid_dialogues"] == {"m": {"P speaks like the doctor": 2}}
    assert bad[0] == bad[1] and len(bad[0]) == 1 and "m: 2 x P speaks like the doctor" in capsys.readouterr().out  # the same prompt, with another seed
    asked = len(server.bodies)
    synthesis(server, tmp_path, "--tries", "2")  # the same answers: lost again, and nothing asked
    assert len(rows_of(tmp_path)) == 23 and len(server.bodies) == asked
    synthesis(server, tmp_path, "--tries", "3")
    assert len(rows_of(tmp_path)) == 24 and len(server.bodies) == asked + 1
    settings = [json.loads(s) for s, in storage.open_store(tmp_path / "s.sqlite").execute("SELECT settings FROM dialogues")]
    assert Counter(s["attempt"] for s in settings) == {0: 23, 2: 1} and server.bodies[-1]["seed"] in {s["seed"] for s in settings}


def test_a_portrait_that_fails_is_named_and_the_others_go_on(server, tmp_path):
    people(tmp_path)
    server.reply = lambda messages: "no" if is_portrait(messages) and json.loads(messages[1]["content"].split("===\n")[1].split("\n===")[0])["age"] == first else writes(messages)
    first = json.loads(open(tmp_path / "people.jsonl").readline())["age"]
    synthesis(server, tmp_path, "--per-persona", "1")
    facts = json.loads((tmp_path / "s.facts.json").read_text())
    assert "p0-0" in facts["without_portrait"] and facts["dialogues_written"] == 6 - len(facts["without_portrait"]) > 0


def test_a_model_drawn_twice_is_asked_twice_even_without_seeds(server, tmp_path):
    people(tmp_path, 2)
    synthesis(server, tmp_path, "--no-seed")
    rows = rows_of(tmp_path)
    assert len(rows) == len({row["dialogue"] for row in rows}) == 8 and not any("seed" in body for body in server.bodies)
    assert json.loads((tmp_path / "s.facts.json").read_text())["same_text_twice_for_a_persona"] == 0


def test_seeds_differ_between_the_dialogues_of_a_persona(server, tmp_path):
    people(tmp_path, 1)
    server.reply = lambda messages: portrait("A") if is_portrait(messages) else GOOD.format(who="again")
    synthesis(server, tmp_path, "--seed", "2")
    assert len({body["seed"] for body in server.bodies}) == 5 == len(server.bodies)
    assert json.loads((tmp_path / "s.facts.json").read_text())["same_text_twice_for_a_persona"] == 3  # a model that ignores them is found out


def test_a_model_that_cannot_be_used_does_not_stop_the_others(server, tmp_path):
    people(tmp_path)
    wrong = ["--models", f"a={server.url}", f"b={server.url}/nowhere"]
    with pytest.raises(UserError, match="b: .*404.* run the same command again"):
        synthesize.main([str(tmp_path / "people.jsonl"), "--to", str(tmp_path / "s.sqlite"), *wrong])
    assert {row["model"] for row in rows_of(tmp_path)} == {"a"}
    n = len(rows_of(tmp_path))
    synthesis(server, tmp_path, models=("a", "b"))
    assert 0 < n < len(rows_of(tmp_path)) == 24
    server.faults = [status(401, "bad key")] * 9
    with pytest.raises(UserError, match="bad key"):
        synthesis(server, tmp_path, "--per-persona", "5", models=("a", "b"))


def test_mistakes_are_one_sentence(server, tmp_path):
    people(tmp_path, 2)
    for extra, words in ((["--models", "m"], "NAME=VALUE"), (["--models", "m=x", "m=y"], "every name once"), (["--models", "m=http://x", "--writer", "n"], "n is not one of"),
                         (["--models", "m=http://x", "--efforts", "n=low"], "n is not one of"), (["--models", "m=http://x", "--tries", "0"], "at least 1")):
        with pytest.raises(UserError, match=words):
            synthesize.main([str(tmp_path / "people.jsonl"), "--to", str(tmp_path / "s.sqlite"), *extra])
    synthesis(server, tmp_path, "--per-persona", "1")
    rows = [json.loads(line) for line in open(tmp_path / "people.jsonl")]
    write_lines(tmp_path / "people.jsonl", [rows[0] | {"age": 99}, rows[1]])
    with pytest.raises(UserError, match="p0-0 is in the store with other traits"):
        synthesis(server, tmp_path)
    write_lines(tmp_path / "people.jsonl", [rows[0], rows[1] | {"parent_id": "p0", "split": "test"}])
    with pytest.raises(UserError, match="p0 has personas in the splits"):
        synthesis(server, tmp_path)
    write_lines(tmp_path / "people.jsonl", [{"persona_id": "x"}])
    with pytest.raises(UserError, match="line 1 has no parent_id"):
        synthesis(server, tmp_path)


def test_a_kill_loses_nothing_that_was_stored_and_nothing_is_asked_twice(server, tmp_path):
    people(tmp_path, 8)
    server.reply = lambda messages: time.sleep(0.03) or writes(messages)
    command = [sys.executable, "-m", "studies.human_likeness.synthesize", str(tmp_path / "people.jsonl"), "--to", str(tmp_path / "s.sqlite"),
               "--models", f"m={server.url}", "--concurrency", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    folder, deadline = tmp_path / "s.answers", time.time() + 60

    def cached():
        return sum(file.read_bytes().count(b"\n") for file in folder.rglob("*.jsonl"))
    while cached() < 8 + 8 + 4:  # the portraits, the first dialogues, and into the second
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    time.sleep(0.3)  # what was under way ends on the server
    before, kept = rows_of(tmp_path), cached()
    assert len(before) >= 8 and kept < 40
    server.asked.clear()
    synthesis(server, tmp_path)
    after = rows_of(tmp_path)
    assert len(after) == 32 and [row for row in after if row in before] == before and server.asked.total() == 40 - kept
    assert sqlite3.connect(tmp_path / "s.sqlite").execute("PRAGMA integrity_check").fetchone() == ("ok",)
