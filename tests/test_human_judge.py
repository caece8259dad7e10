"""Judging, the classifier and the epochs' curves of the human-likeness study, against a scripted server and planted folders."""
import collections
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from judge_server import Server, too_many, verdict

from eval.chat_client import ChatClient
from runtime.config import ROOT
from runtime.errors import UserError
from studies.human_likeness import classifier, evaluate
from studies.human_likeness.dialogue import VISIT, text_hash
from studies.human_likeness.folders import read_study
from studies.human_likeness.items import Weights, load_items, save_weights
from studies.human_likeness.judge import agreement, icc, instructions, parse, rate

OURS = load_items()
FEW = OURS.only(["brevity", "slang", "asks_back"])
WEIGHTS = Weights({"brevity": 1.0, "slang": 0.5, "asks_back": -0.25}, -2.0, FEW.checksum, "test")


def scripted(messages):
    """Short turns of P are rated brief; "lol" is slang. Answers in the order asked, which changes from rating to rating."""
    text = messages[1]["content"]
    own = [line for line in text.splitlines() if line.startswith("P:")]
    values = {"brevity": 5 if own and max(map(len, own)) < 40 else 2, "slang": 4 if "lol" in text else 1, "asks_back": 3}
    return json.dumps({name: values[name] for name in re.findall(r"^(\w+): ", messages[0]["content"].split("each with its name:")[1], re.MULTILINE)})


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")


def client(server, folder, **more):
    return ChatClient("m", folder, server.url, wait=0.01, **more)


# ---- one answer -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, why", [
    ('{"brevity": 5, "slang": 1, "asks_back": 3}', ""), ('Well: ```json\n{"asks_back": 3, "slang": 1, "brevity": 5}\n```', ""),
    ("[5, 1, 3]", "one JSON object"), ('{"brevity": 5, "slang": 1}', "no answer to asks_back"), ('{"brevity": 5, "slang": 1, "asks_back": 3, "wit": 2}', "wit, which was not asked"),
    ('{"brevity": 6, "slang": 1, "asks_back": 3}', "brevity is 6"), ('{"brevity": 0, "slang": 1, "asks_back": 3}', "brevity is 0"), ('{"brevity": "5", "slang": 1, "asks_back": 3}', "brevity is '5'"),
    ('{"brevity": 4.5, "slang": 1, "asks_back": 3}', "whole number"), ('{"brevity": true, "slang": 1, "asks_back": 3}', "brevity is True"), ("", "one JSON object")])
def test_an_answer_is_joined_by_name_and_range_checked(text, why):
    """The public parser took the values of the answer in whatever order they came, and any value."""
    found, problem = parse(text, FEW.ids)
    assert (found == {"brevity": 5, "slang": 1, "asks_back": 3}) == (why == "") and why in problem


def test_instructions_name_one_speaker_and_every_item_once():
    for order in ([0, 1, 2], [2, 0, 1]):
        told = instructions(FEW, VISIT, order)
        assert all(told.count(f"\n{item.id}: {item.text}") == 1 for item in FEW.items) and "patient" in told and "W:" not in told
        assert re.findall(r"^(\w+): ", told.split("each with its name:")[1], re.MULTILINE) == [FEW.ids[i] for i in order]


def test_repeated_ratings_are_new_questions_with_another_order(server, tmp_path):
    server.reply, server.faults = scripted, [too_many]
    asked = len(server.bodies)
    talks = ["P: hi lol\nD: hello", "P: " + "long words " * 10 + "\nD: ok", "P: hi {braces} {mark}\nD: ok"]
    rated, wrong = rate(client(server, tmp_path), FEW, talks, ratings=3)
    assert [[r["brevity"] for r in row] for row in rated] == [[5] * 3, [2] * 3, [5] * 3] and rated[0][0]["slang"] == 4 and not wrong
    bodies = server.bodies[asked:]
    assert len(bodies) == 10 and {body["seed"] for body in bodies} == {0, 1, 2}  # one was told to slow down
    assert len({body["messages"][0]["content"].split("each with its name:")[1].split("Answer with JSON")[0] for body in bodies}) > 1
    again, _ = rate(client(server, tmp_path, replay=True), FEW, talks, ratings=3)
    assert again == rated and len(server.bodies) == asked + 10


def test_an_invalid_answer_is_asked_again_and_then_named(server, tmp_path):
    seen = collections.Counter()

    def stubborn(messages):
        text = messages[1]["content"]
        seen[text] += 1
        return scripted(messages) if "fine" in text or len(messages) > 2 and "mends" in text else '{"brevity": 9}'
    server.reply = stubborn
    rated, wrong = rate(client(server, tmp_path), FEW, ["P: fine", "P: mends", "P: never"], ratings=1)
    assert rated[0][0] and rated[1][0] and rated[2] == [None] and sum(wrong.values()) == 3 and max(seen.values()) == 2


# ---- agreement -----------------------------------------------------------------------------------------------------------------

def test_icc_is_shrout_and_fleiss():
    values = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], dtype=float)
    found = agreement(values)
    assert round(icc(values), 2) == 0.17 and round(found.icc_mean, 2) == 0.44  # their table 4
    assert found.icc_single.value == pytest.approx(icc(values)) and found.icc_single.low < 0.17 < found.icc_single.high
    by_hand = np.sqrt(sum(((row - row.mean()) ** 2).sum() for row in values) / 18)
    assert found.within_sd == pytest.approx(by_hand)
    rng = np.random.default_rng(0)
    assert np.isnan(agreement(np.array([[1.0, 2.0], [2.0, 1.0]])).icc_mean)  # -1 / (k - 1): the ratings cancel out
    planted = rng.normal(0, 2, (400, 1)) + rng.normal(0, 1, (400, 3))
    assert agreement(planted).icc_single.value == pytest.approx(0.8, abs=0.04) and agreement(planted).within_sd == pytest.approx(1, abs=0.05)


# ---- the command, and the crash ------------------------------------------------------------------------------------------------

def write_dialogues(path, n):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["dialogue_id", "persona_id", "prompt", "model", "dialogue"])
        for i in range(n):
            text = "<dialogue>\nP: " + (f"hi {i} lol" if i % 3 else f"good morning doctor, here is my long story number {i} and more of it") + "\nD: I see.\n</dialogue>"
            writer.writerow([i, i // 4, f"persona {i // 4}", "ab"[i % 2], text if i % 50 else f"<dialogue>\nP: What brings you in today, {i}?\nD: My knee.\n</dialogue>"])


@pytest.mark.slow
def test_a_kill_during_a_thousand_judgements_loses_nothing_and_judges_nothing_twice(server, tmp_path):
    write_dialogues(tmp_path / "dialogues.csv", 1000)
    save_weights(WEIGHTS, tmp_path / "weights.json")
    server.reply, server.bodies, server.asked = scripted, [], collections.Counter()
    rude = [too_many, lambda body: {"not": "an answer"}, lambda body: verdict("A")]
    server.faults = [rude[k % 3] if k % 7 == 0 else None for k in range(400)]
    command = [sys.executable, "-m", "studies.human_likeness.judge", str(tmp_path / "dialogues.csv"), "--to", str(tmp_path / "scored.csv"), "--weights",
               str(tmp_path / "weights.json"), "--model", "m", "--base-url", server.url, "--concurrency", "8"]
    env = os.environ | {"OPENAI_API_KEY": "secret"}
    first = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cache = tmp_path / "judge_cache" / "m.jsonl"
    while not (cache.exists() and cache.read_bytes().count(b"\n") > 200):
        assert first.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = [json.loads(line)["key"] for line in cache.read_text().splitlines() if line.endswith("}")]
    assert 200 < len(kept) < 1000 and not (tmp_path / "scored.csv").exists()
    before = collections.Counter(server.asked)
    server.faults = []
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    keys = [json.loads(line)["key"] for line in cache.read_text().splitlines()]
    assert len(keys) == len(set(keys)) and set(kept) <= set(keys)
    repeated = [question for question in before if server.asked[question] > before[question] and len(json.loads(question)) == 2]
    assert len(repeated) <= 8  # only what was under way when the process died
    rows = list(csv.DictReader(open(tmp_path / "scored.csv", newline="")))
    assert len(rows) == 1000 and all(row["score"] for row in rows) and len({row["text_hash"] for row in rows}) == 1000
    assert {row["problems"] for row in rows} == {"", "P speaks like the doctor"} and sum(bool(row["problems"]) for row in rows) == 20
    short = next(row for row in rows if row["dialogue_id"] == "1")
    assert float(short["score"]) == pytest.approx(5 + 0.5 * 4 - 0.25 * 3 - 2) and json.loads(short["ratings"]) == {"brevity": 5, "slang": 4, "asks_back": 3}
    facts = json.loads((tmp_path / "scored.facts.json").read_text())
    assert facts["rated"] == 1000 and facts["problems"] == {"P speaks like the doctor": 20} and facts["questionnaire"] == FEW.checksum


# ---- the classifier ---------------------------------------------------------------------------------------------------------------

def planted(games=200, seed=0):
    """Humans answer more briefly (brevity), the machine asks back; all else is noise. words and cv are there too."""
    rng = np.random.default_rng(seed)
    rows = []
    for game in range(games):
        for human in (1, 0):
            answers = {i: int(rng.integers(1, 6)) for i in OURS.ids}
            answers["brevity"] = int(np.clip(round(3.2 + human + rng.normal(0, 1)), 1, 5))
            answers["asks_back"] = int(np.clip(round(3.5 - human + rng.normal(0, 1)), 1, 5))
            rows.append({"game_id": game, "is_human": human, "questionnaire": OURS.checksum, "ratings": json.dumps(answers), "cv": rng.normal(0.5 + 0.1 * human, 0.2), "words": int(rng.integers(20, 200))})
    return rows


def write_table(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_the_classifier_finds_what_was_planted_and_names_its_weights(tmp_path, capsys):
    write_table(tmp_path / "rated.csv", planted())
    classifier.main([str(tmp_path / "rated.csv"), "--to", str(tmp_path / "out"), "--keep", "4", "--folds", "5", "--repeats", "2"])
    found, weights = json.loads((tmp_path / "out" / "classifier.json").read_text()), json.loads((tmp_path / "out" / "weights.json").read_text())
    models = found["models"]
    few = models["4 items, selected in each fold"]
    assert few["selected_share"]["brevity"] == few["selected_share"]["asks_back"] == 1 and max(v for k, v in few["selected_share"].items() if k not in ("brevity", "asks_back")) < 1
    assert list(weights["w"])[0] == "brevity" and len(weights["w"]) == 4 and weights["w"]["brevity"] > 0.5 > -0.5 > weights["w"]["asks_back"]
    assert weights["items"] == OURS.only(weights["w"]).checksum and (tmp_path / "out" / "calibration.png").stat().st_size > 5000
    assert few["auc"]["low"] < few["auc"]["value"] < few["auc"]["high"] and 0.7 < few["auc"]["value"] < 0.95 and models["log words alone"]["auc"]["value"] < 0.6
    assert few["calibration_error"] < 0.1 and "weights of 4 items" in capsys.readouterr().out


def test_selection_inside_the_folds_finds_nothing_in_noise():
    """Selected on all rows, the best 10 of 200 columns of noise look like knowledge: the mistake of selecting first and cross-validating after."""
    y, games = np.tile([0, 1], 60), np.repeat(np.arange(60), 2)
    fold, honest, flattered = classifier.folds_of(games, 5, 0), [], []
    for seed in range(8):
        x = np.random.default_rng(seed).normal(size=(120, 200))
        honest.append(classifier.auc(classifier.out_of_fold(x, y, fold, classifier.lasso(), keep=10)[0], y))
        chosen = classifier.strongest(x, y, 10)
        flattered.append(classifier.auc(classifier.out_of_fold(x[:, chosen], y, fold, classifier.lasso())[0], y))
    assert abs(np.mean(honest) - 0.5) < 0.06 and np.mean(flattered) > 0.75


def test_folds_hold_games_together_and_measures_are_right_by_hand():
    games = np.repeat([f"g{i}" for i in range(40)], 2)
    fold = classifier.folds_of(games, 10, 3)
    assert all(len(set(fold[games == game])) == 1 for game in set(games)) and set(np.bincount(fold)) == {8}
    scores, y, g = np.array([2.0, 1.0, 0.0, 0.0, -1.0, 3.0]), np.array([1, 0, 1, 0, 1, 0]), np.array(list("aabbcc"))
    assert classifier.pairwise(scores, y, g).tolist() == [1.0, 0.5, 0.0]
    assert classifier.auc(scores, y) == pytest.approx(sum((a > b) + (a == b) / 2 for a in (2, 0, -1) for b in (1, 0, 3)) / 9)
    brier, error, bins = classifier.calibration(np.array([0.0, 0.0, 0.0, 0.0]), np.array([1, 1, 1, 0]), bins=1)
    assert (brier, error, bins) == (0.25, 0.25, [{"p": 0.5, "share": 0.75, "n": 4}])


def test_the_published_layout_needs_its_order_and_bad_rows_are_named(tmp_path):
    lists = [{"game_id": i, "who_is_human": "AB"[i % 2], "likert_evaluation_A": str([1 + (i + k) % 5 for k in range(32)]), "likert_evaluation_B": str([5 - (i + k) % 5 for k in range(32)]),
              "conversation_A_transcript": "I: hi\nW: hello you", "conversation_B_transcript": "I: hi\nW: well\nI: so?\nW: so what is it"} for i in range(12)]
    write_table(tmp_path / "games.csv", lists)
    table = classifier.read_table(tmp_path / "games.csv", OURS, published=True)
    assert table.ids == OURS.numbered(range(1, 33)) and table.x.shape == (24, 32) and table.y.tolist()[:4] == [1, 0, 0, 1]
    assert table.extra[1].tolist() == pytest.approx([np.sqrt(4.5) / 2.5, np.log1p(5)])
    for change, message in (({"likert_evaluation_A": "[1, 2]"}, "row 1: likert_evaluation_A holds 2 ratings"), ({"likert_evaluation_B": str([7] * 32)}, "brevity is 7")):
        write_table(tmp_path / "bad.csv", [lists[0] | change, *lists[1:]])
        with pytest.raises(UserError, match=message):
            classifier.read_table(tmp_path / "bad.csv", OURS, published=True)
    with pytest.raises(UserError, match="there is no item wit"):
        classifier.only_items(table, ["wit"])


# ---- folders and curves ---------------------------------------------------------------------------------------------------------------

def response(model, epoch, i):
    return f"<dialogue>\nP: {'hello there doctor ' * (6 - epoch)}{model} {i}\nD: I see.\n</dialogue>"


def make_model(root, name, epochs=(0, 1, 2), n=30, gain=1.0, scored_as=None, seed=0):
    """A model's folder whose score rises by `gain` an epoch; `scored_as`: the model whose texts the scored files hold."""
    rng = np.random.default_rng(seed)
    level = rng.normal(-3, 0.5, n)
    for epoch in epochs:
        (root / name / "inference").mkdir(parents=True, exist_ok=True)
        (root / name / "scored").mkdir(exist_ok=True)
        write_table(root / name / "inference" / f"samples_epoch_{epoch:02d}.csv", [{"prompt": f"p{i}", "response": response(name, epoch, i)} for i in range(n)])
        write_table(root / name / "scored" / f"samples_epoch_{epoch:02d}_scored_j.csv", [
            {"prompt": f"p{i}", "response": response(scored_as or name, epoch, i), "dialogue_id": i, "ratings": json.dumps({"brevity": 2.0 + epoch, "slang": 1.0}),
             "score": level[i] + gain * epoch + rng.normal(0, 0.3)} for i in reversed(range(n))])


def test_foreign_rows_are_found_and_named(tmp_path):
    """Four of the seven public score folders hold another model's dialogues."""
    make_model(tmp_path, "big")
    make_model(tmp_path, "small", scored_as="big")
    models = {m.name: m for m in read_study(tmp_path)}
    assert set(models["big"].rated["j"]) == {0, 1, 2} and not models["big"].warnings and not models["small"].rated
    assert models["small"].warnings == ["scores by j, epoch 0, 1, 2: 90 of 90 rows are not of these samples (90 are of big, same epoch); not used"]
    rows = list(csv.DictReader(open(tmp_path / "big" / "scored" / "samples_epoch_01_scored_j.csv", newline="")))
    rows[0]["response"] = "<dialogue>\nP: nobody's\n</dialogue>"
    rows[1]["dialogue_id"], rows[2]["dialogue_id"] = rows[2]["dialogue_id"], rows[1]["dialogue_id"]
    write_table(tmp_path / "big" / "scored" / "samples_epoch_01_scored_j.csv", rows)
    warning = next(m for m in read_study(tmp_path) if m.name == "big").warnings[0]
    assert "epoch 1: 3 of 30 rows" in warning and "1 are of no samples here" in warning and "2 stand at another row of the file" in warning


def test_a_base_sampled_from_a_trained_model_is_named(tmp_path):
    make_model(tmp_path, "m")
    folder = tmp_path / "m"
    (folder / "inference" / "samples_epoch_00.csv").write_text((folder / "inference" / "samples_epoch_02.csv").read_text())
    assert "30 of 30 samples of epoch 0 are those of epoch 2; the base was sampled from a trained model" in read_study(tmp_path)[0].warnings[0]
    make_model(tmp_path, "n")
    (tmp_path / "n" / "dpo" / "last").mkdir(parents=True)
    (tmp_path / "n" / "inference" / "base.json").write_text(json.dumps({"weights": "trained"}))
    (tmp_path / "n" / "dpo" / "last" / "run.json").write_text(json.dumps({"fingerprint": {"starting_weights": "start"}}))
    other = read_study(tmp_path)[1]
    assert other.warnings == ["no base to compare with: the samples of epoch 0 were not written by the weights that training started from"]
    assert 0 not in other.rated["j"]  # named, and not compared with
    (tmp_path / "n" / "inference" / "base.json").unlink()
    assert "do not say which weights wrote" in read_study(tmp_path)[1].warnings[0]


def rewrite(path, change):
    rows = list(csv.DictReader(open(path, newline="")))
    write_table(path, change(rows))


def test_what_must_not_pass_as_a_sample_s_score(tmp_path):
    """Another prompt, another judged text, a sample twice, half a file, two ways of scoring, two files of an epoch."""
    place = tmp_path / "m" / "scored" / "samples_epoch_01_scored_j.csv"

    def study(change):
        make_model(tmp_path, "m")
        rewrite(place, change)
        return read_study(tmp_path)[0]
    hashed = lambda rows, text: [row | {"text_hash": text_hash(text or row["response"].replace("<dialogue>", "").replace("</dialogue>", ""))} for row in rows]  # noqa: E731
    assert not study(lambda rows: hashed(rows, "")).warnings
    for change in (lambda rows: [rows[0] | {"prompt": "another"}, *rows[1:]], lambda rows: hashed(rows, "what the judge saw")):
        found = study(change)
        assert "are not of these samples" in found.warnings[0] and 1 not in found.rated["j"]
    assert study(lambda rows: rows[:10]).warnings == ["samples_epoch_01_scored_j.csv: 20 without a score; 10 of 30 samples are used"]
    for change, message in ((lambda rows: [*rows, rows[0] | {"score": 99}], "is scored twice"), (lambda rows: [row | {"weights_hash": "other"} for row in rows], "2 different weights"),
                            (lambda rows: [rows[0] | {"score": "nan"}], "the score is nan"), (lambda rows: [rows[0] | {"ratings": "5"}], "row 1: ")):
        with pytest.raises(UserError, match=message):
            study(change)
    make_model(tmp_path, "m")
    (tmp_path / "m" / "inference" / "samples_epoch_1.csv").write_text((tmp_path / "m" / "inference" / "samples_epoch_01.csv").read_text())
    with pytest.raises(UserError, match="two files of epoch 1"):
        read_study(tmp_path)


def test_ratings_of_another_questionnaire_are_refused(tmp_path):
    """Same ids, other items: the weights would carry our checksum and mean something else."""
    write_table(tmp_path / "rated.csv", [row | {"questionnaire": "0123456789abcdef"} for row in planted(20)])
    with pytest.raises(UserError, match="another questionnaire .checksum 0123456789abcdef"):
        classifier.main([str(tmp_path / "rated.csv"), "--to", str(tmp_path / "out")])


def test_bare_lists_of_ratings_need_their_items(tmp_path):
    make_model(tmp_path, "m", epochs=(0,))
    path = tmp_path / "m" / "scored" / "samples_epoch_00_scored_j.csv"
    rows = [{k: v for k, v in row.items() if k != "ratings"} | {"likert_evaluation": "[4, 1]"} for row in csv.DictReader(open(path, newline=""))]
    write_table(path, rows)
    with pytest.raises(UserError, match="a list of 2 ratings and 0 item ids: say which items"):
        read_study(tmp_path)
    assert read_study(tmp_path, ("emoji", "typos"))[0].rated["j"][0][0].answers == {"emoji": 4, "typos": 1}


def test_curves_differences_and_an_epoch_chosen_on_other_prompts(tmp_path, capsys):
    make_model(tmp_path / "study", "rises", gain=1.0, n=60)
    make_model(tmp_path / "study", "flat", gain=0.0, n=60, seed=1)
    evaluate.main(["curves", str(tmp_path / "study"), "--to", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "curves.json").read_text())["models"]
    rises, flat = found["rises, j"], found["flat, j"]
    assert [round(r["difference"]["value"]) for r in rises["curve"][1:]] == [1, 2] and rises["curve"][2]["difference"]["low"] > 1.8 and rises["curve"][2]["p_holm"] < 0.01
    assert rises["chosen"]["epoch"] == 2 and rises["chosen"]["dev_prompts"] + rises["chosen"]["test_prompts"] == 60 and rises["chosen"]["p_holm"] < 0.01
    assert rises["chosen"]["p_holm"] == 2 * rises["chosen"]["p"]  # two models were looked at
    assert flat["curve"][1]["difference"]["low"] < 0 < flat["curve"][1]["difference"]["high"] and flat["chosen"]["p_holm"] > 0.05
    assert rises["chosen"]["items"]["brevity"]["value"] == 2 and rises["curve"][0]["words_per_turn"] == 20
    assert rises["curve"][1]["as_long"] == 0 and rises["curve"][1]["at_equal_length"]["value"] is None  # every turn is shorter: nothing is said about equal length
    assert (tmp_path / "out" / "curves.png").stat().st_size > 5000 and "## rises, j" in (tmp_path / "out" / "curves.md").read_text()
    save_weights(Weights({"brevity": 2.0}, 0.0, ""), tmp_path / "w.json")
    evaluate.main(["curves", str(tmp_path / "study"), "--to", str(tmp_path / "again"), "--rescore", str(tmp_path / "w.json")])
    again = json.loads((tmp_path / "again" / "curves.json").read_text())["models"]["flat, j"]
    assert [r["score"]["value"] for r in again["curve"]] == [4, 6, 8]  # the ratings rise although the score in the file does not
    with pytest.raises(UserError, match="hold no answer to emoji"):
        save_weights(Weights({"emoji": 2.0}, 0.0, ""), tmp_path / "w.json")
        evaluate.main(["curves", str(tmp_path / "study"), "--to", str(tmp_path / "again"), "--rescore", str(tmp_path / "w.json")])
    with pytest.raises(UserError, match="holds no folder with inference"):
        read_study(tmp_path / "out")


def test_what_is_left_at_equal_length():
    rng = np.random.default_rng(0)
    longer = rng.normal(-0.3, 0.5, 400)
    kept = evaluate.at_equal_length(0.7 - 2.0 * longer + rng.normal(0, 0.2, 400), longer, 0)
    assert kept.value == pytest.approx(0.7, abs=0.06) and kept.low < 0.7 < kept.high
    assert evaluate.at_equal_length(np.ones(5), np.zeros(5), 0).low is None
    assert evaluate.at_equal_length(np.ones(50), np.linspace(-1, 1, 50), 0).low is None  # no two prompts differ: no certainty from that
    assert np.isnan(evaluate.at_equal_length(rng.normal(0, 1, 50), rng.normal(-5, 1, 50), 0).value)  # beyond the data


def test_scoring_an_epoch_and_reading_it_back(server, tmp_path):
    """score writes what curves reads, and every scored row is its sample's."""
    server.reply, server.faults = scripted, []
    folder = tmp_path / "m" / "inference"
    folder.mkdir(parents=True)
    for epoch in (0, 1):
        write_table(folder / f"samples_epoch_{epoch:02d}.csv", [{"id": i, "prompt": f"p{i}", "response": response("m", 5 * epoch, i) if i else "no dialogue at all"} for i in range(8)])
    save_weights(WEIGHTS, tmp_path / "weights.json")
    evaluate.main(["score", str(tmp_path / "m"), "--weights", str(tmp_path / "weights.json"), "--model", "org/judge:1", "--base-url", server.url])
    model = read_study(tmp_path)[0]
    judge = evaluate.file_name("org/judge:1")
    assert judge.startswith("org-judge-1-") and judge != evaluate.file_name("org-judge:1") and evaluate.file_name("gpt-5") == "gpt-5"
    assert list(model.rated) == [judge] and [len(rows) for rows in model.rated[judge].values()] == [7, 7]
    assert model.warnings == [f"samples_epoch_0{e}_scored_{judge}.csv: 1 without a score; 7 of 8 samples are used" for e in (0, 1)]
    assert [rows[0].answers["brevity"] for rows in model.rated[judge].values()] == [2, 5]
    assert model.samples[0][1][0] == text_hash(response("m", 0, 1))
    with pytest.raises(UserError, match="no samples of epoch 7"):
        evaluate.main(["score", str(tmp_path / "m"), "--weights", str(tmp_path / "weights.json"), "--model", "j", "--base-url", server.url, "--epochs", "7"])
