"""Ratings that are drawn again and not copied, and curves that are scored, paired and labelled as they say."""
import csv
import json
import re
from collections import Counter

import numpy as np
import pytest
from test_human_judge import FEW, WEIGHTS, client, make_model, response, rewrite, scripted, write_dialogues, write_table

from data.sources import hash_share
from eval import stats
from runtime.errors import UserError
from studies.human_likeness import evaluate, judge
from studies.human_likeness.dialogue import VISIT
from studies.human_likeness.folders import Rated, read_study
from studies.human_likeness.items import ASKED, Weights, human_likeness, load_items, published_weights, save_weights
from studies.human_likeness.judge import agreement, rate

OURS = load_items()
WARNING = "differ by the order of the statements alone"


def rates(messages):
    """As `scripted`, and a 3 for every item that it does not know."""
    ids = re.findall(r"^(\w+): ", messages[0]["content"].split("each with its name:")[1], re.MULTILINE)
    return scripted(messages) if set(ids) <= set(FEW.ids) else json.dumps(dict.fromkeys(ids, 3))


@pytest.fixture
def server(server):
    server.reply = rates
    return server


def run_judge(server, tmp_path, *more):
    """(temperatures sent, facts) of judging four dialogues into a folder of their own."""
    write_dialogues(tmp_path / "dialogues.csv", 4)
    save_weights(WEIGHTS, tmp_path / "weights.json")
    to, asked = tmp_path / f"run{len(list(tmp_path.iterdir()))}" / "scored.csv", len(server.bodies)
    judge.main([str(tmp_path / "dialogues.csv"), "--to", str(to), "--weights", str(tmp_path / "weights.json"), "--model", "m", "--base-url", server.url, *more])
    return [body.get("temperature") for body in server.bodies[asked:]], json.loads(to.with_suffix(".facts.json").read_text())


# ---- repeated ratings ------------------------------------------------------------------------------------------------------------

def test_repeated_ratings_are_drawn_and_the_temperature_is_recorded(server, tmp_path, capsys):
    """At temperature 0 a judge repeats itself: the agreement of its copies was printed as the judge's reliability."""
    for more, temperature in (((), 0.0), (("--ratings", "2"), 1.0), (("--ratings", "2", "--temperature", "0.4", "--no-seed"), 0.4)):
        sent, facts = run_judge(server, tmp_path, *more)
        assert set(sent) == {temperature} == {facts["temperature"]} and len(sent) == 4 * facts["ratings"] and facts["seed_sent"] == ("--no-seed" not in more)
        assert facts["command"].startswith("python -m studies.human_likeness.judge dialogues.csv --to scored.csv --weights weights.json --model m --base-url URL")
    assert WARNING not in capsys.readouterr().out
    for more in (("--no-seed",), ()):
        assert set(run_judge(server, tmp_path, "--ratings", "2", "--temperature", "0", *more)[0]) == {0.0} and WARNING in capsys.readouterr().out
    sent, facts = run_judge(server, tmp_path, "--ratings", "2", "--reasoning-effort", "low")
    assert set(sent) == {None} == {facts["temperature"]} and WARNING not in capsys.readouterr().out
    for flags, words in ((("--ratings", "0"), "at least 1"), (("--temperature", "nan"), "from 0 up, not nan"), (("--temperature", "-1"), "from 0 up, not -1")):
        with pytest.raises(UserError, match=words):
            run_judge(server, tmp_path, *flags)


def test_without_seeds_a_second_rating_is_not_the_first_one_out_of_the_cache(server, tmp_path):
    """One or two items are often asked in the same order, and then nothing told the two questions apart."""
    one = OURS.only(["brevity"])
    assert rate(client(server, tmp_path, seed=None, temperature=1.0), one, ["P: hi\nD: ho"], ratings=3)[0] == [[{"brevity": 5}] * 3]
    assert len(server.bodies) == 3 and not any("seed" in body for body in server.bodies)
    again = client(server, tmp_path, seed=None, temperature=1.0, replay=True)
    assert rate(again, one, ["P: hi\nD: ho"], ratings=3)[0] == [[{"brevity": 5}] * 3] and again.counts["from_cache"] == 3


def test_a_row_is_the_mean_of_its_valid_ratings_by_hand():
    first, second = {"brevity": 5, "slang": 1, "asks_back": 3}, {"brevity": 2, "slang": 3, "asks_back": 3}
    row = judge.scored_row({"dialogue_id": "1"}, "P: hi there\nD: ho", Counter(), [first, None, second], WEIGHTS, FEW, VISIT)
    assert json.loads(row["ratings"]) == {"brevity": 3.5, "slang": 2, "asks_back": 3} and row["valid_ratings"] == 2 and row["words"] == "2"
    assert float(row["score"]) == pytest.approx(3.5 + 0.5 * 2 - 0.25 * 3 - 2) and float(row["score_sd"]) == pytest.approx(2 / 2**0.5)  # 2.75 and .75


def test_dialogues_with_problems_are_rated_unless_they_are_to_be_skipped(server, tmp_path):
    for more, n in (((), 4), (("--skip-problems",), 3)):
        sent, facts = run_judge(server, tmp_path, *more)
        assert len(sent) == n == facts["rated"] and facts["not_asked"] == 4 - n and facts["problems"] == {"P speaks like the doctor": 1}


def test_all_items_are_asked_where_that_is_wanted(server, tmp_path):
    for more, asked in (((), FEW), (("--all-items",), OURS)):
        assert run_judge(server, tmp_path, *more)[1]["questionnaire"] == asked.checksum


def test_copies_are_no_certain_agreement():
    copies = np.repeat(np.arange(6.0)[:, None], 3, axis=1)
    found = agreement(copies)
    assert found.icc_single.value == 1 and found.icc_single.low is None and found.icc_single.method == "no two ratings of a dialogue differ: not estimable"
    copies[0, 0] += 0.5
    assert agreement(copies).icc_single.low is not None


def test_a_judge_that_never_answers_validly_leaves_no_file(server, tmp_path):
    server.reply = lambda messages: "I would rather not."
    with pytest.raises(UserError, match="m gave no valid rating of any dialogue .*one JSON object.*nothing is written"):
        run_judge(server, tmp_path)
    assert not list(tmp_path.rglob("scored.csv"))


def test_scored_epochs_say_how_they_were_made(server, tmp_path):
    folder = tmp_path / "m" / "inference"
    folder.mkdir(parents=True)
    for epoch in (0, 1):
        write_table(folder / f"samples_epoch_{epoch:02d}.csv", [{"id": i, "prompt": f"p{i}", "response": response("m", 5 * epoch, i)} for i in range(6)])
    save_weights(WEIGHTS, tmp_path / "weights.json")
    command = ["score", str(tmp_path / "m"), "--weights", str(tmp_path / "weights.json"), "--model", "j", "--base-url", server.url]
    with pytest.raises(UserError, match="--ratings must be at least 1"):
        evaluate.main([*command, "--ratings", "0"])
    evaluate.main([*command, "--ratings", "2"])
    facts = json.loads((tmp_path / "m" / "scored" / "samples_epoch_01_scored_j.facts.json").read_text())
    assert facts["command"] == "python -m studies.human_likeness.evaluate score m --weights weights.json --model j --base-url URL --ratings 2"
    assert (facts["temperature"], facts["ratings"], facts["rated"], facts["samples"], facts["questionnaire"]) == (1.0, 2, 6, 6, FEW.checksum) and {body["temperature"] for body in server.bodies} == {1.0}
    evaluate.main([*command, "--ratings", "2", "--temperature", "0.5", "--epochs", "1"])
    with pytest.raises(UserError, match="2 different weights, questionnaires, temperatures"):
        read_study(tmp_path)
    (folder / "samples_epoch_1.csv").write_text((folder / "samples_epoch_01.csv").read_text())
    with pytest.raises(UserError, match="two files of epoch 1"):
        evaluate.main(command)


# ---- curves ----------------------------------------------------------------------------------------------------------------------

def curves(tmp_path, *more):
    evaluate.main(["curves", str(tmp_path / "study"), "--to", str(tmp_path / "out"), *more])
    return json.loads((tmp_path / "out" / "curves.json").read_text())


def test_the_published_join_is_an_option_and_is_labelled(tmp_path):
    """Who re-checks the public folders wants the published score, and must not take it for a model that was fitted to these questions."""
    make_model(tmp_path / "study", "m", epochs=(0, 1))
    (tmp_path / "bare.json").write_text(json.dumps({"w": [k / 7 - 1 for k in range(16)], "b": -2.5}))
    weights, ids, expected = published_weights(tmp_path / "bare.json", OURS, "as published"), OURS.numbered(ASKED), {}
    for epoch in (0, 1):
        rows, path = [], tmp_path / "study" / "m" / "scored" / f"samples_epoch_{epoch:02d}_scored_j.csv"
        for number, row in enumerate(csv.DictReader(open(path, newline=""))):
            asked = [1 + (number + k + epoch) % 5 for k in range(16)]
            rows.append({name: row[name] for name in ("prompt", "response", "dialogue_id")} | {"likert_evaluation": str(asked), "hal16_score": 0.0})
            expected.setdefault(epoch, []).append(human_likeness(weights, dict(zip(ids, asked))))
        write_table(path, rows)
    found = curves(tmp_path, "--asked", "published", "--published-weights", str(tmp_path / "bare.json"))
    assert found["score"] == "published weights, joined as published" and found["score"] in (tmp_path / "out" / "curves.md").read_text()
    assert [row["score"]["value"] for row in found["models"]["m, j"]["curve"]] == pytest.approx([np.mean(expected[epoch]) for epoch in (0, 1)])
    assert found["command"] == "python -m studies.human_likeness.evaluate curves study --to out --asked published --published-weights bare.json"
    assert f"Generated by `{found['command']}`" in (tmp_path / "out" / "curves.md").read_text()
    by_hand = curves(tmp_path, "--asked", "published", "--rescore", str(tmp_path / "bare.json"), "--ids", *ids)
    assert by_hand["score"] == "the weights in bare.json" and by_hand["models"] == found["models"]
    with pytest.raises(SystemExit):
        curves(tmp_path, "--rescore", "x", "--published-weights", "y")


def test_an_epoch_is_compared_on_the_same_prompts_alone(tmp_path):
    """Row 3 of two files is one prompt only if both say so."""
    make_model(tmp_path / "study", "m", epochs=(0, 1), n=60)
    whole = curves(tmp_path)["models"]["m, j"]
    for place in (tmp_path / "study" / "m").rglob("samples_epoch_01*.csv"):  # samples and scores alike: they belong together, and not to epoch 0's
        rewrite(place, lambda rows: [row | {"prompt": row["prompt"] if row["prompt"] in {f"p{i}" for i in range(20)} else f"other {row['prompt']}"} for row in rows])
    part = curves(tmp_path)["models"]["m, j"]
    assert part["curve"][1]["difference"]["n"] == 20 and part["curve"][1]["n"] == 60
    assert part["chosen"]["difference"]["n"] == part["chosen"]["test_prompts"] < whole["chosen"]["test_prompts"] < 60


def column(scores, words=None, brevity=3.0):
    return {i: Rated(i, f"p{i}", {"brevity": brevity}, score, 0.0, words[i] if words else 10.0, 0.0, (), False, ()) for i, score in enumerate(scores)}


def test_the_epoch_is_chosen_on_the_dev_prompts_alone():
    dev = [hash_share(i, 0) < 0.5 for i in range(40)]
    epochs = {0: column([0.0] * 40), 1: column([1.0 + i / 100 if on else 0.1 + i / 100 for i, on in enumerate(dev)]), 2: column([0.5 if on else 10.0 + i for i, on in enumerate(dev)])}
    found = evaluate.chosen_epoch(epochs, None, 0.5, 0)
    assert found["epoch"] == 1 and found["dev_prompts"] == sum(dev) and found["test_prompts"] == 40 - sum(dev)
    assert found["difference"]["value"] == pytest.approx(np.mean([0.1 + i / 100 for i, on in enumerate(dev) if not on]))
    assert evaluate.chosen_epoch({0: epochs[0]}, None, 0.5, 0) is None and evaluate.chosen_epoch({1: epochs[1], 2: epochs[2]}, None, 0.5, 0) is None


def test_what_an_item_adds_is_its_change_times_its_weight():
    found = evaluate.chosen_epoch({0: column([0.0] * 20, brevity=2.0), 1: column([0.0] * 20, brevity=4.5)}, Weights({"brevity": -3.0}, 1.0, ""), 0.5, 0)
    assert found["items"]["brevity"]["value"] == 2.5 and found["items"]["brevity"]["adds"] == -7.5 == found["difference"]["value"]
    assert found["items"]["brevity"]["n"] == found["test_prompts"] < 20  # not on the prompts that the epoch was chosen on


def test_length_is_compared_by_ratio_and_p_values_are_corrected():
    rng = np.random.default_rng(0)
    before, after = ([float(w) for w in rng.integers(5, 60, 80)] for _ in range(2))
    longer = np.log1p(after) - np.log1p(before)
    rows = evaluate.curve({0: column([0.0] * 80, before), 1: column(list(0.7 - 2 * longer), after), 2: column(list(0.2 + rng.normal(0, 1, 80)), after)}, None, 0)
    assert rows[1]["at_equal_length"]["value"] == pytest.approx(0.7) and rows[1]["as_long"] == pytest.approx((longer >= 0).mean())
    assert [row["p_holm"] for row in rows[1:]] == stats.holm([row["p"] for row in rows[1:]]) and rows[1]["p_holm"] == 2 * min(row["p"] for row in rows[1:])


@pytest.mark.parametrize("share", ["nan", "0", "1", "-1"])
def test_a_share_of_prompts_that_is_none(tmp_path, share):
    make_model(tmp_path / "study", "m", n=4)
    with pytest.raises(UserError, match="--dev-share must lie between 0 and 1"):
        curves(tmp_path, "--dev-share", share)


def test_scored_files_that_do_not_fit_together(tmp_path):
    make_model(tmp_path / "study", "m", n=20)
    scored = tmp_path / "study" / "m" / "scored"
    (scored / "samples_epoch_1_scored_j.csv").write_text((scored / "samples_epoch_01_scored_j.csv").read_text())
    with pytest.raises(UserError, match="scored holds two files of epoch 1 by j"):
        curves(tmp_path)
    (scored / "samples_epoch_1_scored_j.csv").unlink()
    rewrite(scored / "samples_epoch_01_scored_j.csv", lambda rows: [rows[0] | {"ratings": json.dumps({"brevity": 2})}, *rows[1:]])
    with pytest.raises(UserError, match="2 different weights, questionnaires"):  # a row without an item that the others have
        curves(tmp_path)


def test_an_epoch_without_a_patient_s_turn_is_named_and_left_out(tmp_path):
    make_model(tmp_path / "study", "m", n=20)
    for place in (tmp_path / "study" / "m").rglob("samples_epoch_02*.csv"):
        rewrite(place, lambda rows: [row | {"response": f"{row['prompt']}: nobody speaks"} for row in rows])
    found = curves(tmp_path)
    assert [row["epoch"] for row in found["models"]["m, j"]["curve"]] == [0, 1] and "20 without a turn of the patient; 0 of 20 samples are used" in found["warnings"]["m"][0]
    json.loads((tmp_path / "out" / "curves.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    save_weights(Weights({"brevity": 1.0}, 0.0, ""), tmp_path / "w.json")
    assert curves(tmp_path, "--rescore", str(tmp_path / "w.json"))["score"] == "the weights in w.json"
