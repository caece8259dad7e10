"""The study's pairs: what an LLM writes, what may be used, and the command that writes the files. Servers are real ones over HTTP, scripted."""
import dataclasses
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("rapidfuzz")
pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
from judge_server import status, too_many, verdict  # noqa: E402
from test_chat_tokenizer import save_family  # noqa: E402

from data import prepare_pairs  # noqa: E402
from data.store import PairStore  # noqa: E402
from eval.chat_client import ChatClient  # noqa: E402
from eval.grounding import LLMJudge  # noqa: E402
from runtime.config import Config  # noqa: E402
from runtime.errors import UserError  # noqa: E402
from studies.curriculum_dpop import data, hard, negatives  # noqa: E402
from studies.curriculum_dpop.rows import ABSTENTION, Question, Row, read_rows  # noqa: E402
from studies.curriculum_dpop import verify as verify_module  # noqa: E402
from studies.curriculum_dpop.verify import by_key, fault, like_length, read_avoided, verify  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PARIS = Question("1", "What is the capital of France?", "Paris has been the capital of France since 987.", ("Paris", "City of Paris"), "toy")
NOBODY = Question("2", "Who burned Paris down?", PARIS.context, (), "toy", answer_in_context=False)


def client(server, tmp_path, **settings):
    return ChatClient("m", tmp_path / "cache", server.url, wait=0.02, **settings)


def row(chosen, rejected, question=PARIS, **more):
    return Row(f"{chosen}/{rejected}", question.question, question.context, chosen, rejected, "hard", more.pop("poison_type", "logical_flaw"), "toy", **more)


# ---- which pairs may be used ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("chosen, rejected, answers, why", [
    ("Paris", "Lyon", PARIS.answers, ""),
    ("It is Paris, the capital since 987.", "It is Lyon, the capital since 987.", PARIS.answers, ""),
    ("Paris", "New York City", PARIS.answers, ""),  # three words for one: both are just names
    ("Paris", " .", PARIS.answers, "an empty answer"),
    ("The The", "Blur", ("The The",), ""),  # a band: nothing is left of it after normalisation
    ("Paris", "the PARIS!", PARIS.answers, "both answers are the same"),
    ("Lyon", "Nice", PARIS.answers, "the chosen answer is not the gold answer"),
    ("Parish", "Nice", PARIS.answers, "the chosen answer is not the gold answer"),  # whole words
    ("Paris", "The City of Paris", PARIS.answers, "the rejected answer may be right"),  # another alias than the one chosen
    ("It is Paris now.", "It is Paris, as a druid foretold.", PARIS.answers, "the rejected answer may be right"),
    ("in 1,000 AD", "in one thousand AD", ("1,000",), "the rejected answer may be right"),
    ("It has been Paris since 987", "has been", PARIS.answers, "one answer contains the other"),  # a sentence that was cut
    ("Paris", "the small town of Vichy in the south", PARIS.answers, "lengths differ too much"),
    ("Paris is the capital of the whole of France today", "Lyon is it", PARIS.answers, "lengths differ too much"),
    (ABSTENTION, "Attila", (), ""),  # its length is its own
    ("Attila", "the Vandals", (), "the chosen answer is not the gold answer"),
    (ABSTENTION, "Lyon", PARIS.answers, "the chosen answer is not the gold answer"),  # the context does say
    (ABSTENTION, "The context does not say, so I don't know.", (), "the rejected answer is right"),
    ("Paris", ABSTENTION, PARIS.answers, "")])
def test_one_trap_for_each_rule(chosen, rejected, answers, why):
    assert fault(row(chosen, rejected), answers) == why


def test_each_row_is_counted_once_and_the_first_of_two_stays():
    other = Question("3", PARIS.question, "Vichy was the capital of France.", ("Vichy",), "toy")
    rows = [row("Paris", "Lyon"), row("Paris", "lyon."), row("Paris", "Nice"), row("Paris", ABSTENTION, poison_type="needless_abstention"), row("Vichy", "Lyon", other),
            row("Lyon", "Nice")]
    kept, dropped = verify(rows, by_key([PARIS, other]))
    # the same words over another context ask something else, and a pair against needless abstention stands beside the one about the answer
    assert [r.rejected for r in kept] == ["Lyon", ABSTENTION, "Lyon"]
    assert dropped == {"the same pair twice": 1, "the same question twice": 1, "the chosen answer is not the gold answer": 1} and len(kept) + dropped.total() == len(rows)
    with pytest.raises(ValueError, match="not among the questions"):
        verify(rows, by_key([PARIS]))


def test_calls_that_share_what_was_seen_agree_with_one_call():
    rows, seen = [row("Paris", "Lyon"), row("Paris", "Nice"), row("Paris", "Lille")], set()
    parts = [verify([r], by_key([PARIS]), seen=seen)[0] for r in rows]
    assert sum(parts, []) == verify(rows, by_key([PARIS]))[0] == rows[:1]


def test_defect_24_an_answer_that_the_context_does_not_hold_is_dropped_and_two_sources_of_a_question_share_their_aliases():
    away = Question("4", "Who wrote Emma?", "Nothing of the kind.", ("Jane Austen",), "toy", answer_in_context=False)
    pair = [row("Jane Austen", "Emily Brontë", away)]
    assert verify(pair, by_key([away])) == ([], {"the context does not hold the answer": 1})
    assert verify(pair, by_key([away]), require_context=False)[0] == pair
    twice = by_key([PARIS, Question("5", PARIS.question, PARIS.context, ("Lutetia",), "nq")])
    assert verify([row("Paris", "Lutetia")], twice)[1] == {"the rejected answer may be right": 1}  # the other source calls it right


@pytest.mark.parametrize("short, long, alike", [(1, 3, True), (1, 4, False), (2, 4, True), (2, 5, False), (3, 6, True), (3, 7, False), (10, 20, True), (10, 21, False)])
def test_lengths_may_differ_by_two_words_or_twofold(short, long, alike):
    assert like_length("a " * short, "b " * long) == like_length("b " * long, "a " * short) == alike


def test_a_judge_says_yes_from_one_half_on(monkeypatch):
    """The boundary itself supports: it keeps a chosen answer and drops a rejected one."""
    seen = {"Paris": 0.5, "Pariser": 0.499, "Lyon": 0.499, "Nice": 0.5}
    monkeypatch.setattr(verify_module, "support", lambda judge, questions, contexts, answers: [seen[answer] for answer in answers])
    dropped = Counter()
    rows = [row("Paris", "Lyon"), row("Pariser", "Lyon"), row("Paris", "Nice")]
    assert verify_module._judged(rows, by_key([PARIS]), None, dropped) == rows[:1]
    assert dropped == {"judge: the chosen answer is not supported": 1, "judge: the rejected answer is supported": 1}


def test_defect_03_a_made_up_chosen_answer_passes_on_request_only():
    made_up = row("Lyon", "Nice", chosen_is_true=False, poison_type="hard_over_easy")
    assert verify([made_up], by_key([PARIS])) == ([], {"the chosen answer is made up": 1})
    assert verify([made_up], by_key([PARIS]), fabricated=True)[0] == [made_up]
    assert not verify([row("Lyon", "Nice")], by_key([PARIS]), fabricated=True)[0]  # one that claims to be true is checked all the same


def test_contamination_with_evaluation_sets(tmp_path):
    (tmp_path / "TruthfulQA.csv").write_text("\ufeffType,Question,Best Answer\nx,What is the capital of FRANCE,Paris\n", encoding="utf-8")
    (tmp_path / "mc_task.json").write_text(json.dumps([{"question": "Who was the first man to walk on the far side of the moon?", "mc1_targets": {}}]))
    with gzip.open(tmp_path / "qa.jsonl.gz", "wt") as file:
        file.write(json.dumps({"knowledge": "k", "question": "Which came first?", "right_answer": "a"}) + "\n")
    avoided = read_avoided([str(tmp_path)])
    assert avoided.why("what is the Capital of France?") == "the question of an evaluation set" and avoided.why("Which came first, egg or hen?") == ""
    # articles do not count: "who was first man to walk on far | side of moon"
    assert avoided.why("Tell me who was the first man to walk on far shores") == "8 words in a row of an evaluation set's question"
    assert avoided.why("Tell me who was the first man to walk on near shores") == ""  # seven
    assert verify([row("Paris", "Lyon")], by_key([PARIS]), avoided) == ([], {"the question of an evaluation set": 1})
    (tmp_path / "qa.jsonl").write_text('{"query": "no question"}\n')
    with pytest.raises(UserError, match="without question or"):
        read_avoided([str(tmp_path / "qa.jsonl")])


def test_a_judge_reads_what_passed_and_what_it_cannot_judge_is_dropped(server, tmp_path):
    said = {"answer begins ===\nParis": "supported", "answer begins ===\nIt is Paris": "not enough", "answer begins ===\nLyon": "contradicted",
            "answer begins ===\nLutetia": "supported", "answer begins ===\nNice": "perhaps"}
    server.reply = lambda messages: verdict(next((v for words, v in said.items() if words in messages[1]["content"]), "contradicted"))
    questions = [Question(str(i), f"{i}: {PARIS.question}", PARIS.context, PARIS.answers, "toy") for i in range(4)]
    rows = [row("Paris", "Lyon", questions[0]), row("It is Paris", "It is Lyon", questions[1]), row("Paris", "Lutetia", questions[2]), row("Paris", "Nice", questions[3]),
            row(ABSTENTION, "Attila", NOBODY), row("Lyon", "Paris", questions[0])]
    kept, dropped = verify(rows, by_key([*questions, NOBODY]), judge=LLMJudge(client(server, tmp_path)))
    assert [r.rejected for r in kept] == ["Lyon", "Attila"]
    assert dropped == {"judge: the chosen answer is not supported": 1, "judge: the rejected answer is supported": 1, "not judged": 1, "the chosen answer is not the gold answer": 1}
    asked = [body["messages"][1]["content"] for body in server.bodies]
    assert not any(ABSTENTION in text for text in asked)  # "I don't know" claims nothing that a context could support


# ---- what a model writes ----------------------------------------------------------------------------------------------

def sentences(chosen, rejected):
    return json.dumps({"chosen": chosen, "rejected": rejected})


def test_the_schema_is_sent_and_sentences_with_inner_quotes_survive_whole(server, tmp_path):
    """Trap (reference §2.11): a regular expression kept what stood before the first inner quote, a sentence cut in half."""
    chosen, rejected = 'They call Paris "the city of light", or \\ "Paname".', 'They call Lyon "the city of light", or \\ "Paname".'
    server.reply = lambda messages: "```json\n" + sentences(chosen, rejected) + "\n```"
    rows, counts = hard.write(client(server, tmp_path), [PARIS], "hard_improved")
    assert (rows[0].chosen, rows[0].rejected, rows[0].level) == (chosen, rejected, "hard_improved") and counts == {"questions": 1, "written": 1, "no valid answer": 0}
    sent = server.bodies[0]
    assert sent["response_format"]["json_schema"]["schema"] == hard.schema_of("hard_improved") and hard.POISONS[rows[0].poison_type] in sent["messages"][0]["content"]
    assert "{mark}" not in sent["messages"][0]["content"] and "<how>" not in sent["messages"][0]["content"] and '{"chosen": "...", "rejected": "..."}' in sent["messages"][0]["content"]
    assert rows[0].difficulty == negatives.likeness(rows[0]) > 0.8


@pytest.mark.parametrize("text", ["", "Lyon", '{"rejected": "He said "Lyon" there"}', '{"rejected": "Lyon', '{"rejected": 7}', '{"rejected": null}', '{"wrong": "Lyon"}',
                                  '{"rejected": "Lyon", "why": "false"}', '["Lyon"]', '{"rejected": "Lyon"} or {"rejected": "Nice"}', '{"rejected": "Lyon"} Note: this is false.',
                                  '{"answer": {"rejected": "Lyon"}}', '{"a": "b" "c", {"rejected": "Lyon"}}'])
def test_nothing_is_salvaged(text):
    assert hard.parse(text, "hard")[0] is None


def test_broken_json_is_asked_again_with_another_seed_so_often_and_no_more(server, tmp_path):
    server.reply = lambda messages: '{"rejected": "He said "Lyon" there"}'
    rows, counts = hard.write(client(server, tmp_path), [PARIS], "hard", tries=3)
    why = "refused answer: it must be one JSON object with rejected as strings, and nothing else"
    assert not rows and counts == {"questions": 1, why: 3, "asked again": 2, "no valid answer": 1, "written": 0}
    assert [body["seed"] for body in server.bodies] == [0, 1, 2]
    assert "cannot be used" in server.bodies[1]["messages"][3]["content"] and server.bodies[1]["messages"][2]["content"] == '{"rejected": "He said "Lyon" there"}'
    c = client(server, tmp_path)
    hard.write(c, [PARIS], "hard")
    assert c.seed == 0 and len(server.bodies) == 3  # the next block begins with the first seed again; bad answers are in the cache too
    c = client(server, tmp_path, seed=None)  # a server that refuses seeds: the repetition differs by its words
    assert hard.write(c, [PARIS], "hard", tries=2)[1]["no valid answer"] == 1 and len(server.bodies) == 5 and c.seed is None


def test_an_answer_that_cannot_be_used_is_told_why_and_a_declined_question_is_not_asked_again(server, tmp_path):
    replies = ["Paris", "Lutetia or Paris", "Lyon"]
    server.reply = lambda messages: json.dumps({"rejected": replies[len(server.bodies) - 1]})
    rows, counts = hard.write(client(server, tmp_path), [PARIS], "hard")
    assert [r.rejected for r in rows] == ["Lyon"] and counts["refused answer: both answers are the same"] == counts["refused answer: the rejected answer may be right"] == 1
    assert "both answers are the same" in server.bodies[1]["messages"][3]["content"] and "may be right" in server.bodies[2]["messages"][3]["content"]
    server.faults = [status(400, "blocked by our content policy")]
    other = Question("9", "Which river?", "The Seine.", ("Seine",), "toy")
    _, counts = hard.write(client(server, tmp_path), [other], "hard")
    assert counts == {"questions": 1, "refused answer: the server declined the question": 1, "no valid answer": 1, "written": 0} and len(server.bodies) == 4
    with pytest.raises(ValueError, match="without a gold answer"):
        hard.write(client(server, tmp_path), [NOBODY], "hard")


def test_poisons_are_balanced_and_belong_to_the_question_and_not_to_its_place():
    ids = [f"q{i}" for i in range(3000)]
    drawn = [hard.poison_of(name, 0) for name in ids]
    shares = Counter(drawn)
    assert set(shares) == set(hard.POISONS) and max(abs(n - 1000) for n in shares.values()) < 110  # four standard deviations
    assert max(Counter(drawn[::3]).values()) < 450  # the published ones went by the index: every third question had the same
    assert drawn != [hard.poison_of(name, 1) for name in ids]


# ---- the command ------------------------------------------------------------------------------------------------------

TOWNS = [f"{a}{b}" for a in ("Alm", "Bren", "Corv", "Dunm", "Esk", "Fal") for b in ("ora", "wick", "ley", "stad", "ham")]


def squad(path):
    """A small SQuAD file: of each town a founder and a year that its context holds, and two things that it does not."""
    paragraphs = []
    for i, town in enumerate(TOWNS):
        founder, year = f"Otto {TOWNS[-i - 1]}son", str(1700 + 7 * i)
        context = f"{town} was founded by {founder} in {year}. Later {TOWNS[i - 7]} outgrew it, and Anna {TOWNS[i - 3]}sen left."
        asked = [(f"Who founded {town}?", [founder]), (f"In what year was {town} founded?", [year]), (f"Who burned {town} down?", []), (f"Who rebuilt {town}?", ["Hans Maier"])]
        paragraphs.append({"context": context, "qas": [{"id": f"{town}-{n}", "question": q, "is_impossible": not golds,
                                                         "answers": [{"text": gold, "answer_start": 0} for gold in golds]} for n, (q, golds) in enumerate(asked)]})
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "Towns", "paragraphs": paragraphs}]}))
    return str(path)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def answers(messages):
    """A writer: a false answer that depends on the question alone."""
    text = messages[1]["content"]
    if "year" in text.split("question begins ===")[1].split("?")[0]:
        false, true = "1599", text.split("right answer begins ===\n")[1].split("\n")[0]
    else:
        false, true = "Karl Kuhn", text.split("right answer begins ===\n")[1].split("\n")[0]
    return json.dumps({"rejected": false} if "Write one wrong answer" in messages[0]["content"] else {"chosen": f"It was {true}.", "rejected": f"It was {false}."})


def test_defect_24_the_same_files_in_every_process_with_abstentions_and_no_answer_beyond_the_context(tmp_path):
    source = squad(tmp_path / "train-v2.0.json")
    (tmp_path / "avoid.jsonl").write_text(json.dumps({"question": f"who founded {TOWNS[0]}"}) + "\n")
    command = ["--questions", source, "--avoid", str(tmp_path / "avoid.jsonl"), "--abstentions", "0.25"]
    data.main([*command, "--to", str(tmp_path / "a")])
    subprocess.run([sys.executable, "-m", "studies.curriculum_dpop.data", *command, "--to", tmp_path / "b"], cwd=ROOT, check=True, capture_output=True,
                   env=os.environ | {"PYTHONHASHSEED": "12345"})
    assert files(tmp_path / "a") == files(tmp_path / "b") and set(files(tmp_path / "a")) == {"dpo_pairs_easy.jsonl", "dpo_pairs_medium.jsonl"}
    report = json.loads((tmp_path / "a.report.json").read_text())
    assert report["steps"]["questions"] == {"read": 120, "the same question and context twice": 0, "the question of an evaluation set": 1,
                                            "the context does not hold the answer": 30, "used, answerable": 59, "used, unanswerable": 30}
    rows = {level: list(read_rows(tmp_path / "a" / f"dpo_pairs_{level}.jsonl")) for level in ("easy", "medium")}
    for level, found in rows.items():
        assert len(found) == report["levels"][level]["rows"] and len(report["levels"][level]["examples"]) == 10
        assert all(r.level == level and r.chosen_is_true and r.difficulty is not None for r in found)
        assert "Hans Maier" not in {r.chosen for r in found} and f"Who founded {TOWNS[0]}?" not in {r.question for r in found}
    abstaining = [r for found in rows.values() for r in found if r.poison_type == "made_up"]
    assert abstaining and all("burned" in r.question for r in abstaining)
    for found in rows.values():  # a share of the pairs, and no more
        assert sum(r.poison_type == "made_up" for r in found) <= 0.25 * len(found)
    assert (len(rows["medium"]), len(abstaining)) == (59 + 59 // 3, 59 // 3)  # a quarter, of the thirty that could be
    data.main([*command, "--levels", "medium", "--counts", "medium=20", "--to", str(tmp_path / "c")])
    assert sorted(Counter(r.poison_type == "made_up" for r in read_rows(tmp_path / "c" / "dpo_pairs_medium.jsonl")).items()) == [(False, 15), (True, 5)]
    assert {r.question for r in rows["medium"] if r.poison_type != "made_up"} <= {r.question for r in rows["easy"]}  # the levels ask about the same questions


def test_what_the_command_writes_is_what_training_reads_and_every_avoided_file_counts(tmp_path):
    """The README's chain: the folder of pairs holds pairs alone, and --avoid may be given twice."""
    for name, town in (("one", TOWNS[0]), ("two", TOWNS[1])):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"question": f"Who founded {town}?"}) + "\n")
    data.main(["--questions", squad(tmp_path / "train.json"), "--avoid", str(tmp_path / "one.jsonl"), "--avoid", str(tmp_path / "two.jsonl"), "--to", str(tmp_path / "pairs")])
    asked = {r.question for level in ("easy", "medium") for r in read_rows(tmp_path / "pairs" / f"dpo_pairs_{level}.jsonl")}
    assert asked and not {f"Who founded {town}?" for town in TOWNS[:2]} & asked
    config = Config(name="t", out=str(tmp_path / "out"), threads=1)
    config.model.init_from, config.model.block_size = str(save_family(tmp_path / "llama", "llama")), 512
    config.data = dataclasses.replace(config.data, source=str(tmp_path / "pairs"), tokenizer="chat")
    root = prepare_pairs.prepare(config)
    assert set(PairStore(root / "train").index["level"]) == {1, 2} and (PairStore(root / "train").index["chosen_is_true"] == 1).all()


@pytest.mark.parametrize("change, message", [({"level": "EASY"}, '"level"'), ({"level": "medium"}, 'is "medium" in a file of easy pairs'), ({"chosen_is_true": "false"}, "true or false"),
                                             ({"chosen": " "}, '"chosen" is missing, empty'), ({"id": 7}, '"id" is 7'), ({"difficulty": "hard"}, "a number"),
                                             ({"difficulty": float("nan")}, "a number")])
def test_rows_of_another_shape_are_named_and_not_lost(tmp_path, change, message):
    (tmp_path / "from").mkdir()
    row = {"prompt": "Who?", "context": None, "chosen": "Ann", "rejected": "Bob"}
    (tmp_path / "from" / "dpo_pairs_easy.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"prompt": "When?"} | change) + "\n")
    with pytest.raises(UserError, match=f"line 2: .*{message}"):
        data.main(["choose", "--from", str(tmp_path / "from"), "--to", str(tmp_path / "to")])
    assert not (tmp_path / "to").exists()


def test_kill_resume_and_replay_write_the_same_bytes_and_ask_nothing_twice(server, tmp_path):
    source = squad(tmp_path / "train.json")
    command = ["--questions", source, "--levels", "easy,hard,hard_improved", "--counts", "easy=20,hard=24,hard_improved=8", "--model", "m", "--concurrency", "2"]
    online = [*command, "--base-url", server.url, "--to", str(tmp_path / "a")]
    server.reply = lambda messages: time.sleep(0.05) or answers(messages)
    cache = tmp_path / "a.llm_cache" / "m.jsonl"
    process = subprocess.Popen([sys.executable, "-m", "studies.curriculum_dpop.data", *online], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.time() + 120
    while not (cache.exists() and cache.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None and time.time() < limit
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "a" / "dpo_pairs_easy.jsonl").exists()
    time.sleep(0.3)  # what was under way ends on the server
    kept = set(line["key"] for line in map(json.loads, cache.read_text().splitlines()))
    server.asked.clear()
    server.faults = [too_many]
    data.main(online)
    assert set(server.asked.values()) == {1} and sum(server.asked.values()) + len(kept) == cache.read_text().count("\n")
    made = {level: list(read_rows(tmp_path / "a" / f"dpo_pairs_{level}.jsonl")) for level in ("easy", "hard", "hard_improved")}
    assert {level: len(rows) for level, rows in made.items()} == {"easy": 20, "hard": 24, "hard_improved": 8}
    assert all(r.chosen.startswith("It was ") and r.rejected in ("It was 1599.", "It was Karl Kuhn.") for r in made["hard_improved"])
    # the sentences are asked for in small portions: eight pairs do not pay for 59 questions
    report = json.loads((tmp_path / "a.report.json").read_text())
    assert report["steps"]["hard_improved: made"] == {"questions": 16, "written": 16, "no valid answer": 0} and report["totals"]["writer"]["retries"] == 1
    data.main([*command, "--replay", "--cache", str(tmp_path / "a.llm_cache"), "--to", str(tmp_path / "b")])
    pairs = [{name: text for name, text in files(tmp_path / one).items() if name.startswith("dpo")} for one in "ab"]
    assert len(pairs[0]) == 3 and pairs[0] == pairs[1]
    with pytest.raises(UserError, match="hard: 61 pairs wanted, 60 could be made of 60 answerable"):
        data.main([*command[:2], "--counts", "hard=61", "--model", "m", "--base-url", server.url, "--to", str(tmp_path / "c")])


def test_a_pair_that_two_blocks_hold_is_kept_once(server, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "BLOCK", 1)
    server.reply = answers
    for name in ("one", "two"):  # two sources: within one, a question is read once
        row = {"id": "1", "question": "Who built it?", "context": f"Otto Maier built it in {name}.", "answers": ["Otto Maier"], "source": name}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    data.main(["--questions", str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl"), "--levels", "hard", "--model", "m", "--base-url", server.url, "--to", str(tmp_path / "a")])
    assert len(list(read_rows(tmp_path / "a" / "dpo_pairs_hard.jsonl"))) == 1
    assert json.loads((tmp_path / "a.report.json").read_text())["steps"]["hard: dropped"] == {"the same pair twice": 1}


def test_a_question_of_two_sources_is_one_with_the_answers_of_both(tmp_path):
    context = "Otto Maier and Anna Kerr built it, and Bruno Falk left."
    rows = {"one": [("Who built it?", "Otto Maier")], "two": [("Who built it?", "Anna Kerr"), ("Who left?", "Bruno Falk"), ("Who stayed?", "Clara Voss"), ("Who sang?", "Anna Kerr")]}
    for name, asked in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"question": q, "context": context, "answers": [gold], "source": name}) + "\n" for q, gold in asked))
    for seed in range(4):
        data.main(["--questions", str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl"), "--any-context", "--levels", "medium", "--seed", str(seed), "--to", str(tmp_path / f"{seed}")])
        steps = json.loads((tmp_path / f"{seed}.report.json").read_text())["steps"]["questions"]
        assert (steps["the same question and context twice"], steps["used, answerable"]) == (1, 4)
        pair, = [r for r in read_rows(tmp_path / f"{seed}" / "dpo_pairs_medium.jsonl") if r.question == "Who built it?"]
        assert pair.chosen == "Otto Maier" and pair.rejected in ("Bruno Falk", "Clara Voss")  # not the other source's answer


def test_the_published_pairs_of_two_false_answers_come_on_request_and_flagged(server, tmp_path):
    server.reply = answers
    command = ["--questions", squad(tmp_path / "train.json"), "--levels", "easy,medium,hard", "--model", "m", "--base-url", server.url, "--cache", str(tmp_path / "cache")]
    data.main([*command, "--to", str(tmp_path / "plain")])
    data.main([*command, "--to", str(tmp_path / "more"), "--fabricated"])
    for level, kinds in (("easy", set()), ("medium", {"hard_over_easy"}), ("hard", {"hard_over_medium", "medium_over_easy"})):
        plain, more = ({r.id: r for r in read_rows(tmp_path / one / f"dpo_pairs_{level}.jsonl")} for one in ("plain", "more"))
        assert plain.items() <= more.items() and all(r.chosen_is_true for r in plain.values())
        added = [more[name] for name in more.keys() - plain.keys()]
        assert {r.poison_type for r in added} == kinds and not any(r.chosen_is_true for r in added)


def published(folder, n=12):
    """Pair files as the published recipe writes them: the ideal answer over each false one, and false ones over one another."""
    rows = {"easy": [], "medium": [], "hard": []}
    for i in range(n):
        def add(level, chosen, rejected):
            rows[level].append({"prompt": f"What is {i}?", "context": f"Number {i}.", "chosen": f"{chosen} {i}", "rejected": f"{rejected} {i}"})
        add("easy", "ideal", "easy")
        add("medium", "ideal", "medium")
        add("medium", "hard", "easy")
        add("hard", "ideal", "hard")
        add("hard", "hard", "medium")
        add("hard", "medium", "easy")
    folder.mkdir()
    for level, some in rows.items():
        with gzip.open(folder / f"dpo_pairs_{level}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(one) + "\n" for one in [*some, some[0]])  # one of them twice
    return folder


def test_defect_03_choose_drops_fabricated_chosen_answers_found_over_all_files(tmp_path):
    source = published(tmp_path / "published")
    command = ["choose", "--from", str(source), "--counts", "easy=5,medium=10,hard=12"]
    data.main([*command, "--to", str(tmp_path / "a")])
    data.main([*command, "--to", str(tmp_path / "b"), "--seed", "1"])
    report = json.loads((tmp_path / "a.report.json").read_text())
    assert report["steps"]["hard: read"] == {"pairs": 37, "with a chosen answer that is made up": 24}  # two thirds, as published
    assert report["steps"]["hard: dropped"] == {"the chosen answer is made up": 24, "the same pair twice": 1}
    for level, n in (("easy", 5), ("medium", 10), ("hard", 12)):
        rows = list(read_rows(tmp_path / "a" / f"dpo_pairs_{level}.jsonl"))
        assert len(rows) == n and all(r.chosen.startswith("ideal") and r.chosen_is_true and (r.level, r.source) == (level, "published") for r in rows)
    sampled = [{r.question for r in read_rows(tmp_path / one / "dpo_pairs_easy.jsonl")} for one in "ab"]
    assert sampled[0] != sampled[1]  # the seed draws the rows, it does not only order them
    data.main([*command[:3], "--keep-fabricated", "--to", str(tmp_path / "c")])
    assert sum(not r.chosen_is_true for r in read_rows(tmp_path / "c" / "dpo_pairs_hard.jsonl")) == 24  # there, and flagged
    with pytest.raises(UserError, match="hard: 13 pairs wanted, 12 of 37 can be used"):
        data.main([*command[:4], "hard=13", "--to", str(tmp_path / "d")])
    with pytest.raises(UserError, match="dpo_pairs_hard_improved.jsonl: not there"):
        data.main([*command[:4], "hard_improved=6", "--to", str(tmp_path / "d")])
    with pytest.raises(UserError, match="of another run"):
        data.main([*command[:4], "easy=5", "--to", str(tmp_path / "a")])


def test_avoided_questions_leave_published_files_too(tmp_path):
    source = published(tmp_path / "published")
    (tmp_path / "avoid.jsonl").write_text('{"question": "what is 3"}\n')
    data.main(["choose", "--from", str(source), "--avoid", str(tmp_path / "avoid.jsonl"), "--to", str(tmp_path / "a")])
    assert "What is 3?" not in {r.question for level in ("easy", "medium", "hard") for r in read_rows(tmp_path / "a" / f"dpo_pairs_{level}.jsonl")}


@pytest.mark.parametrize("more, why", [(["--counts", "easy=many"], "LEVEL=NUMBER"), (["--counts", "easy=0"], "LEVEL=NUMBER"), (["--levels", "eazy"], "no level eazy"),
                                       (["--levels", "easy", "--counts", "medium=2"], "no level medium"), (["--levels", "hard"], "name it with --model"),
                                       (["--abstentions", "1"], "share"), (["--abstentions", "nan"], "share"), (["--nli", "x", "--judge", "m"], "two judges"),
                                       (["--limit", "-1"], "--limit"), (["--passages", "0"], "--passages"), (["--context-words", "0"], "--context-words"),
                                       (["--tries", "0"], "--tries"), (["--temperature", "nan"], "--temperature"), (["--temperature", "-1"], "--temperature"),
                                       (["--to", ""], "name a folder"), (["--to", "/"], "name a folder"), (["--to", __file__], "name a folder"),
                                       (["--to", f"{__file__}/in"], "name a folder")])
def test_mistakes_are_one_sentence_before_any_work(tmp_path, more, why):
    with pytest.raises(UserError, match=why):
        data.main(["--questions", str(tmp_path / "nothing.json"), "--to", str(tmp_path / "out"), *more])
    assert not (tmp_path / "out").exists()
