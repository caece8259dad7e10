"""Who may write a store, what --to may not replace, what a result says of the command that made it, and people and personas that are none."""
import json
import os
import signal
import subprocess
import sys

import pytest
from test_human_synthesis import SWAPPED, is_portrait, parent, people, rows_of, synthesis, write_lines, writes

from runtime.config import ROOT
from runtime.errors import UserError
from studies.human_likeness import personas, storage, synthesize


@pytest.fixture
def server(server):
    server.reply = writes
    return server


def test_a_second_writer_is_told_so_and_nothing_is_lost(server, tmp_path):
    """Two runs would ask and pay for everything twice, and the slower one ended in an IntegrityError."""
    people(tmp_path, 2)
    with storage.only_writer(tmp_path / "s.sqlite"):
        with pytest.raises(UserError, match="another run is writing to .*s.sqlite: run this command again when it has ended"):
            synthesis(server, tmp_path)
        assert not server.bodies and not (tmp_path / "s.sqlite").exists()
    synthesis(server, tmp_path)
    rows = rows_of(tmp_path)
    assert [row["dialogue_id"] for row in rows] == [f"p{i}-0/{k}" for i in range(2) for k in range(4)]
    with storage.only_writer(tmp_path / "s.sqlite"):
        assert len(rows) == 8 and rows_of(tmp_path) == rows  # who only reads is not kept out
        with pytest.raises(UserError, match="another run is writing"):
            synthesis(server, tmp_path, "--per-persona", "5")
    assert rows_of(tmp_path) == rows


def test_a_killed_writer_gives_the_store_back(tmp_path):
    code = ("import sys, time; from pathlib import Path; from studies.human_likeness.storage import only_writer\n"
            "with only_writer(Path(sys.argv[1])): print('mine', flush=True); time.sleep(60)")
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "s.sqlite")], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert other.stdout.readline() == "mine\n"
    with pytest.raises(UserError, match="another run is writing"), storage.only_writer(tmp_path / "s.sqlite"):
        pass
    other.send_signal(signal.SIGKILL)
    other.wait()
    other.stdout.close()
    with storage.only_writer(tmp_path / "s.sqlite"):
        pass


def test_an_export_does_not_replace_its_store(server, tmp_path):
    people(tmp_path, 2)
    synthesis(server, tmp_path)
    rows = rows_of(tmp_path)
    for to, words in (("s.sqlite", "would replace what is read"), (".", "is a folder: name a file"), ("people.jsonl/d.csv", "people.jsonl is a file")):
        with pytest.raises(UserError, match=words):
            storage.main([str(tmp_path / "s.sqlite"), "--to", str(tmp_path / to)])
    assert rows_of(tmp_path) == rows and len(rows) == 8
    with pytest.raises(UserError, match="is a file: name a folder"):
        personas.main([str(tmp_path / "people.jsonl"), "--to", str(tmp_path / "people.jsonl")])


@pytest.mark.parametrize("word, said", [("/home/me/data/rated.csv", "rated.csv"), ("out/rated.csv", "out/rated.csv"), ("--to=/home/me/x.csv", "--to=x.csv"), ("m=http://u:secret@10.0.0.1:8000/v1?k=v", "m=URL"),
                                        ("https://host/v1", "URL"), ("/home/me/a=b.csv", "a=b.csv"), ("two words", "'two words'"), ("0.5", "0.5"), ("org/judge", "org/judge")])
def test_a_command_is_recorded_without_the_machine(word, said):
    assert storage.command_line("judge", [word, "--turing"]) == f"python -m studies.human_likeness.judge {said} --turing"


def test_results_say_which_command_made_them(server, tmp_path):
    write_lines(tmp_path / "parents.jsonl", [parent(f"p{i}") | {"id": f"p{i}", "sex": "F"} for i in range(3)])
    personas.main([str(tmp_path / "parents.jsonl"), "--to", str(tmp_path / "personas"), "--dev", "0", "--test", "0", "--children", "1"])
    assert json.loads((tmp_path / "personas" / "facts.json").read_text())["command"] == "python -m studies.human_likeness.personas parents.jsonl --to personas --dev 0 --test 0 --children 1"
    people(tmp_path, 2)
    synthesis(server, tmp_path, "--per-persona", "1", "--temperature", "0.7")
    facts = json.loads((tmp_path / "s.facts.json").read_text())
    assert facts["command"] == "python -m studies.human_likeness.synthesize people.jsonl --to s.sqlite --models m=URL --per-persona 1 --temperature 0.7"
    assert facts["temperature"] == 0.7 and {body["temperature"] for body in server.bodies} == {0.7}


def test_every_try_has_a_seed_of_its_own_and_what_is_lost_is_named(server, tmp_path):
    """With the same seed a server that keeps to it writes the same invalid dialogue again."""
    people(tmp_path, 1)
    server.reply = lambda messages: writes(messages) if is_portrait(messages) else SWAPPED
    synthesis(server, tmp_path, "--per-persona", "1")
    assert len({body["seed"] for body in server.bodies if not is_portrait(body["messages"])}) == 3 == len(server.bodies) - 1
    assert json.loads((tmp_path / "s.facts.json").read_text())["by_generator"] == {"m": {"missing": 1}}


def test_the_writer_of_a_portrait_is_told_of_the_difficulty():
    row = personas.build([parent("p")], 1, 0, 0, 0, difficult=1.0)[0]
    assert row["difficult"] in personas.DIFFICULT and f'"difficulty": "{row["difficult"]}"' in synthesize.portrait_question(row)[1]["content"]
    assert personas.build([parent("p")], 1, 0, 0, 0, difficult=0.0)[0]["difficult"] == "" and '"difficulty"' not in synthesize.portrait_question(row | {"difficult": ""})[1]["content"]


def test_four_turns_are_a_dialogue():
    assert synthesize.check_dialogue("<dialogue>\nP: hi\nD: yes?\nP: my knee\nD: I see\n</dialogue>") == ("P: hi\nD: yes?\nP: my knee\nD: I see", "")


@pytest.mark.parametrize("change", [{"persona_id": 5}, {"persona_id": ""}, {"parent_id": 1}, {"split": None}, {"traits": ["a"]}])
def test_personas_of_another_kind_are_one_sentence(tmp_path, change):
    """A number as an id was asked and paid for, stored as a text, and never found again."""
    row = personas.build([parent("p")], 1, 0, 0, 0)[0]
    write_lines(tmp_path / "people.jsonl", [row | change])
    with pytest.raises(UserError, match="line 1: persona_id, parent_id and split must be texts, and traits an object"):
        synthesize.main([str(tmp_path / "people.jsonl"), "--to", str(tmp_path / "s.sqlite"), "--models", "m=http://127.0.0.1:9/v1"])


def test_people_without_an_id_get_one_of_what_they_say(tmp_path):
    (tmp_path / "people.json").write_text(json.dumps([{"id": None, "age": 40, "sex": "F", "job": "cook"}, {"id": "", "age": 41, "sex": "F", "job": "cook"}, {"age": 42, "sex": "F", "id": 0}]))
    found = [person["parent_id"] for person in personas.read_parents(tmp_path / "people.json")[0]]
    assert len(set(found)) == 3 and [len(name) for name in found] == [10, 10, 1]


@pytest.mark.parametrize("flags", [["--difficult", "nan"], ["--difficult", "1.5"], ["--dev", "nan"], ["--test", "-0.1"], ["--dev", "0.5", "--test", "0.5"], ["--children", "0"]])
def test_shares_that_are_none(tmp_path, flags):
    write_lines(tmp_path / "parents.jsonl", [parent(f"p{i}") | {"id": f"p{i}", "sex": "F"} for i in range(3)])
    with pytest.raises(UserError, match="--difficult a share"):
        personas.main([str(tmp_path / "parents.jsonl"), "--to", str(tmp_path / "personas"), *flags])
    for deep in ("deep.json", "deep.jsonl"):
        (tmp_path / deep).write_text("[" * 100_000)
        with pytest.raises(UserError, match="no list of people|no JSON object"):
            personas.read_parents(tmp_path / deep)
