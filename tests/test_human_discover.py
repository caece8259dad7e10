"""Discover -> cluster -> items: the games' filter, position bias, planted clusters, and provenance from an item back to its statements."""
import csv
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from runtime.errors import UserError  # noqa: E402
from studies.human_likeness import cluster as clustering  # noqa: E402
from studies.human_likeness import discover  # noqa: E402
from studies.human_likeness.discover import Answer, report, usable_games  # noqa: E402
from studies.human_likeness.items import load_items  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


# ---- games ------------------------------------------------------------------------------------------------------------------

def conversation(game, label, human, words, verdict="A"):
    return {"conversation_id": f"{game}{label}", "game_id": game, "label": label, "witness": "Human" if human else "bot", "is_human": "TRUE" if human else "FALSE",
            "verdict": verdict, "confidence": "5", "reason": "r", "conversation": " ".join(["I:", "W:", *["w"] * (words - 2)])}


def test_the_filter_by_hand():
    """50 tokens with the tags counted, in both transcripts; two conversations, one of them with a human."""
    rows = [conversation("full", "B", True, 50), conversation("short", "A", True, 49), conversation("full", "A", False, 51), conversation("short", "B", False, 90),
            conversation("alone", "A", True, 80), conversation("humans", "A", True, 80), conversation("humans", "B", True, 80),
            conversation("labels", "A", True, 80), conversation("labels", "A", False, 80)]
    found, out = usable_games(rows)
    assert [row["game_id"] for row in found] == ["full"] and (found[0]["who_is_human"], found[0]["ai_model"], found[0]["human_correct"]) == ("B", "bot", "False")
    assert len(found[0]["conversation_A_transcript"].split()) == 51 and found[0]["label_B"] == "Human"
    assert usable_games([conversation("x", "A", True, 60), conversation("x", "B", False, 60)])[0][0]["ai_model"] == "bot"
    assert out == {"a transcript below 50 tokens": 1, "not two conversations": 1, "not one human and one program, A and B": 2}


def write_games(path, n):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ["game_id", "conversation_A_transcript", "conversation_B_transcript", "who_is_human"])
        writer.writeheader()
        for i in range(n):
            texts = [f"I: hi {i}\nW: yeah lol", f"I: hi {i}\nW: Greetings."]
            human = "AB"[i % 2]
            writer.writerow(dict(zip(writer.fieldnames, (f"g{i}", *(texts if human == "A" else texts[::-1]), human))))


def test_witnesses_stand_on_rows_of_their_own(tmp_path):
    write_games(tmp_path / "games.csv", 2)
    discover.main(["witnesses", str(tmp_path / "games.csv"), "--to", str(tmp_path / "w.csv")])
    assert [(row["dialogue_id"], row["is_human"], "lol" in row["dialogue"]) for row in csv.DictReader(open(tmp_path / "w.csv"))] == [
        ("g0A", "1", True), ("g0B", "0", False), ("g1A", "0", False), ("g1B", "1", True)]  # the human says lol


@pytest.mark.parametrize("change, words", [(lambda rows: rows.append(dict(rows[0])), "comes twice"), (lambda rows: rows[0].update(who_is_human="Human"), "needs two transcripts"),
                                           (lambda rows: rows[0].update(conversation_A_transcript=" "), "needs two transcripts")])
def test_games_that_are_none(tmp_path, change, words):
    write_games(tmp_path / "games.csv", 2)
    rows = list(csv.DictReader(open(tmp_path / "games.csv")))
    change(rows)
    with open(tmp_path / "games.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(UserError, match=f"g0.*{words}"):
        discover.read_games(tmp_path / "games.csv")


# ---- asking -----------------------------------------------------------------------------------------------------------------

STATEMENTS = ["uses slang", "leaves out capitals", "changes the subject"]


def answer(verdict):
    return json.dumps({"verdict": verdict, "statements": STATEMENTS})


def honest(messages):
    """A judge that looks: the human is the one who says lol, wherever it stands."""
    first = messages[1]["content"].split("conversation A ends")[0]
    return answer("A" if "lol" in first else "B")


def run_discover(server, tmp_path, n=12, *extra):
    write_games(tmp_path / "games.csv", n)
    discover.main([str(tmp_path / "games.csv"), "--to", str(tmp_path / "s.jsonl"), "--model", "m", "--base-url", server.url, *extra])
    return [json.loads(line) for line in open(tmp_path / "s.jsonl")], json.loads((tmp_path / "s.facts.json").read_text())


def test_a_judge_that_always_says_a_is_found_out(server, tmp_path):
    """The published study's mistake: positions were never swapped, so that a lean to A could pass for judgement."""
    server.reply = lambda messages: answer("A")
    rows, found = run_discover(server, tmp_path)
    assert len(server.asked) == 24 and found["says_A_both_orders"]["value"] == 1 and found["orders_agree"]["value"] == 0
    assert (found["always_A"], found["always_B"]) == (12, 0) and found["position_bias_p"] == pytest.approx(2 * 0.5**12)
    assert found["accuracy_both_orders"]["value"] == 0.5 and "accuracy_where_both_agree" not in found  # no verdict that was not the position's
    assert sum(row["right"] for row in rows) == len(rows) / 2 and found["statements_of_wrong_answers"] == 36


def test_a_judge_that_looks_is_right_in_both_orders(server, tmp_path, capsys):
    server.reply = honest
    rows, found = run_discover(server, tmp_path)
    assert found["accuracy_where_both_agree"]["value"] == found["orders_agree"]["value"] == 1 and found["says_A_both_orders"]["value"] == 0.5
    assert found["position_bias_p"] == 1 and found["statements_of_wrong_answers"] == 0 and "accuracy where both agree 100.0 % [75.8, 100.0], n = 12" in " ".join(capsys.readouterr().out.split())
    assert len(rows) == 72 and rows[0] == {"id": "g0-0-0", "game": "g0", "order": 0, "number": 0, "witness": "A", "right": True, "text": "uses slang"}
    # the first witness of order 0 is drawn: not always the same letter, and not the same as with another seed
    letters = {seed: "".join("A" if discover.draw(seed, "position", f"g{i}") < 0.5 else "B" for i in range(12)) for seed in (0, 1)}
    assert len(set(letters.values())) == 2 and all(set(found) == {"A", "B"} for found in letters.values())
    # again and replayed: nothing is asked, the same bytes
    before, asked = (tmp_path / "s.jsonl").read_bytes(), len(server.bodies)
    run_discover(server, tmp_path, 12, "--replay")
    assert (tmp_path / "s.jsonl").read_bytes() == before and len(server.bodies) == asked


def test_what_is_shown_where_follows_the_seed(server, tmp_path):
    server.reply = honest
    run_discover(server, tmp_path, 6)
    first = {}
    for body in server.bodies:
        content = body["messages"][1]["content"]
        first.setdefault(re.search(r"hi (\d+)", content)[1], []).append("lol" in content.split("conversation A ends")[0])
    assert all(sorted(both) == [False, True] for both in first.values())  # each game once in each order


def test_report_by_hand():
    def one(game, order, shown, witness, human):
        return Answer(game, order, shown, witness, witness == human, ("x", "y", "z"))
    found = report([one("1", 0, "A", "A", "A"), one("1", 1, "B", "A", "A"),   # the same witness twice, right
                    one("2", 0, "A", "B", "A"), one("2", 1, "B", "B", "A"),   # the same twice, wrong
                    one("3", 0, "B", "B", "B"), one("3", 1, "B", "A", "B"),   # kept to position B
                    one("4", 0, "A", "A", "A")], games=6)                     # one answer only
    assert found["games_with_both_orders"] == 3 and found["games_without_an_answer"] == 2 and (found["always_A"], found["always_B"]) == (0, 1)
    assert found["accuracy_first_order"]["value"] == 3 / 4 and found["accuracy_first_order"]["n"] == 4 and found["accuracy_both_orders"]["value"] == pytest.approx(0.5)
    assert found["orders_agree"]["value"] == pytest.approx(2 / 3) and found["accuracy_where_both_agree"]["value"] == 0.5
    assert found["says_A_both_orders"]["value"] == pytest.approx(1 / 3) and found["says_A_first_order"]["value"] == 3 / 4 and found["statements_of_wrong_answers"] == 9


def test_answers_that_are_none():
    def said(**change):
        return discover.parse(json.dumps({"verdict": "A", "statements": STATEMENTS} | change))
    assert said() == (("A", tuple(STATEMENTS)), "")
    for change, why in (({"verdict": "C"}, "verdict"), ({"verdict": None}, "verdict"), ({"statements": STATEMENTS[:2]}, "3 to 5"), ({"statements": STATEMENTS * 2}, "3 to 5"),
                        ({"statements": "abc"}, "3 to 5"), ({"statements": [*STATEMENTS, 4]}, "3 to 5"), ({"statements": [*STATEMENTS, "Uses slang "]}, "twice"),
                        ({"statements": [*STATEMENTS, "word " * 31]}, "longer"), ({"statements": [*STATEMENTS, "Witness B jokes"]}, "general")):
        assert said(**change)[0] is None and why in said(**change)[1], change
    assert discover.parse(answer("A") + " So A.")[0] is None and discover.parse(answer("A") + answer("B"))[0] is None


def test_undecided_games_are_named_and_are_no_wrong_verdicts(server, tmp_path):
    server.reply = lambda messages: "I cannot tell" if "hi 3\n" in messages[1]["content"] else honest(messages)
    rows, found = run_discover(server, tmp_path)
    assert found["games_without_an_answer"] == 1 and found["accuracy_both_orders"]["value"] == 1 and not any(row["game"] == "g3" for row in rows)
    assert sum(found["invalid_answers"].values()) == 4  # two orders, each asked twice
    server.reply = lambda messages: "no"
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no valid answer to any of 3 games"):
        run_discover(server, tmp_path / "none", 3)


def test_a_published_run_is_read(tmp_path, capsys):
    with open(tmp_path / "run.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["game_id", "who_is_human", "aijudge_verdict", "human_characteristics"])
        writer.writerows([[1, "A", "A", json.dumps(STATEMENTS)], [2, "B", "A", json.dumps(STATEMENTS)], [3, "A", "uncertain", "[]"], [4, "A", "A", "['python']"]])
    discover.main(["import", str(tmp_path / "run.csv"), "--to", str(tmp_path / "s.jsonl")])
    found = json.loads((tmp_path / "s.facts.json").read_text())
    assert (found["answers"], found["games_without_an_answer"], found["statements"], found["statements_of_wrong_answers"]) == (2, 2, 6, 3)
    assert "positions were not swapped" in capsys.readouterr().out and "says_A_both_orders" not in found
    for rows, words in (([[1, "A"], [1, "B"]], "game 1 comes twice"), ([[1, "Human"]], "game 1 needs A or B")):  # every verdict on such a game was a wrong one
        discover.write_table(tmp_path / "run.csv", [{"game_id": game, "who_is_human": who, "aijudge_verdict": "A", "human_characteristics": json.dumps(STATEMENTS)} for game, who in rows])
        with pytest.raises(UserError, match=words):
            discover.main(["import", str(tmp_path / "run.csv"), "--to", str(tmp_path / "s.jsonl")])


# ---- clusters -----------------------------------------------------------------------------------------------------------------

PLANTED = [("slang abbreviations chat words", "uses writes likes prefers"), ("capital letters missing lowercase sentences", "keeps types leaves"),
           ("questions returned partner asked interest", "turns sends poses"), ("jokes teasing irony laughter", "makes cracks tells"),
           ("memory vague forgotten detail hedging", "admits shows reveals"), ("weather local street place town", "mentions names brings")]


SMALL = ["--min-cluster-size", "8", "--neighbours", "12", "--dims", "5", "--seeds", "3"]


def planted(per_group=20, strays=6):
    """Statements of six groups, each with words of its own, and a few that share words with every group."""
    rng, rows = random.Random(0), []
    for group, (nouns, verbs) in enumerate(PLANTED):
        for i in range(per_group):
            picked = rng.sample(nouns.split(), 3)
            rows.append({"id": f"{group}-{i:02d}", "game": f"g{i}", "right": i % 2 == 0, "text": f"{rng.choice(verbs.split())} {' '.join(picked)}"})
    rows += [{"id": f"z-{i}", "game": f"g{i}", "right": False, "text": " ".join(rng.choice(nouns.split()) for nouns, _ in PLANTED)} for i in range(strays)]
    return rows


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path):
    return [json.loads(line) for line in open(path)]


@pytest.fixture(scope="module")
def clustered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clusters")
    write_rows(folder / "s.jsonl", planted())
    clustering.main([str(folder / "s.jsonl"), "--to", str(folder / "out"), *SMALL])
    return folder


def test_planted_groups_are_found(clustered):
    clusters, facts = read_rows(clustered / "out" / "clusters.jsonl"), json.loads((clustered / "out" / "facts.json").read_text())
    groups = [Counter(i.split("-")[0] for i in row["statements"]) for row in clusters]
    assert len(clusters) == 6 and {group.most_common(1)[0][0] for group in groups} == set("012345")
    assert all(group.most_common(1)[0][1] >= 18 and group.total() - group.most_common(1)[0][1] <= 4 for group in groups)
    assert facts["method"] == "TF-IDF, truncated SVD (scikit-learn) -> Laplacian eigenmaps to 5 (scikit-learn) -> HDBSCAN, at least 8 (scikit-learn)"
    placed = [i for row in clusters for i in row["statements"]] + [row["statement"] for row in read_rows(clustered / "out" / "noise.jsonl")]
    assert sorted(placed) == sorted(row["id"] for row in planted()) and facts["noise"]["n"] == 126
    assert facts["noise"]["value"] == pytest.approx(len(read_rows(clustered / "out" / "noise.jsonl")) / 126)
    assert [row["size"] for row in clusters] == sorted((row["size"] for row in clusters), reverse=True)
    assert clusters[0]["right"] == sum(row["right"] for row in planted() if row["id"] in clusters[0]["statements"])


def test_stability_of_planted_groups_is_high_and_of_noise_it_is_not(clustered):
    found = json.loads((clustered / "out" / "facts.json").read_text())["stability"]
    assert found["ari"]["n"] == 3 and found["ari_clustered"]["value"] > 0.9 and found["ari"]["value"] > 0.9
    assert all(run["statements"] < 126 for run in found["runs"])
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(120, 8))
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    settings = clustering.Settings(min_cluster_size=4, neighbours=5, dims=4)
    labels = clustering.cluster(noise, settings)
    assert clustering.stability(noise, [str(i) for i in range(120)], labels, settings, 3)["ari"]["value"] < 0.5


@pytest.mark.slow
def test_another_process_and_another_order_of_the_file_give_the_same_bytes(clustered):
    rows = planted()
    random.Random(1).shuffle(rows)
    write_rows(clustered / "shuffled.jsonl", rows)
    subprocess.run([sys.executable, "-m", "studies.human_likeness.cluster", str(clustered / "shuffled.jsonl"), "--to", str(clustered / "again"), *SMALL],
                   cwd=ROOT, check=True, env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True)
    for name in ("clusters.jsonl", "representatives.jsonl", "noise.jsonl"):
        assert (clustered / "again" / name).read_bytes() == (clustered / "out" / name).read_bytes(), name
    one, two = (json.loads((clustered / folder / "facts.json").read_text()) for folder in ("out", "again"))
    assert "out" in one.pop("command") and "shuffled.jsonl" in two.pop("command") and one == two


def test_representatives_are_near_and_different():
    """The published study kept the same sentence three times as the three representatives of a cluster."""
    texts = ["Uses slang.", "uses slang", "Uses   SLANG!", "slang, often", "quite other", "far"]
    vectors = np.array([[1, 0], [1, 0], [1, 0], [0.9, 0.4359], [0.6, 0.8], [0, 1.0]])
    assert clustering.representatives(vectors, texts, np.array([0, 0, 0, 0, 0, -1]), 3) == [[3, 0, 4]]  # the centroid is (.9, .247): cosines .98, .96, .79
    assert clustering.representatives(vectors, texts, np.array([0, 0, 0, 1, 1, 1]), 2) == [[0], [4, 3]]


def test_clustering_mistakes_are_one_sentence(tmp_path, monkeypatch):
    write_rows(tmp_path / "few.jsonl", planted(2, 0))
    with pytest.raises(UserError, match="12 statements cannot make two clusters of 10"):
        clustering.main([str(tmp_path / "few.jsonl"), "--to", str(tmp_path / "out")])
    write_rows(tmp_path / "twice.jsonl", planted() + planted()[:1])
    with pytest.raises(UserError, match="the statement 0-00 comes twice"):
        clustering.main([str(tmp_path / "twice.jsonl"), "--to", str(tmp_path / "out")])
    with pytest.raises(UserError, match="no words in common"):
        clustering.embed(["alpha", "beta"])
    monkeypatch.setitem(sys.modules, "umap", None)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    write_rows(tmp_path / "s.jsonl", planted())
    for option, package in ((["--umap"], "umap-learn"), (["--embeddings", "x"], "sentence-transformers")):
        with pytest.raises(UserError, match=f"pip install {package}"):
            clustering.main([str(tmp_path / "s.jsonl"), "--to", str(tmp_path / "out"), *option])


def test_umap_is_seeded(clustered):
    pytest.importorskip("umap")
    vectors = clustering.embed([row["text"] for row in planted()])
    settings = clustering.Settings(umap=True, dims=3, neighbours=8, min_cluster_size=8)
    assert (clustering.cluster(vectors, settings, 3) == clustering.cluster(vectors, settings, 3)).all()


# ---- items ----------------------------------------------------------------------------------------------------------------------

def merged(numbers, left=1):
    """A questionnaire of two numbers an item, the last `left` numbers left out."""
    used = numbers[:-left]
    return {"items": [{"id": f"trait_{i}", "group": f"theme_{i % 2}", "text": f"Does {i}.", "from": used[i:i + 2]} for i in range(0, len(used), 2)],
            "left_out": [{"number": n, "why": "fits nothing"} for n in numbers[-left:]]}


def test_every_statement_is_reached_from_an_item_or_named_as_left_out(clustered, server):
    def reply(messages):
        numbers = [int(n) for n in re.findall(r"^(\d+)\. ", messages[1]["content"], re.MULTILINE)]
        found = merged(numbers)
        if len(messages) == 2:
            found["items"].pop()  # a model that drops findings without a word is asked again
        return json.dumps(found)
    server.reply = reply
    to = clustered / "items.yaml"
    clustering.main(["reduce", str(clustered / "out"), "--to", str(to), "--model", "m", "--base-url", server.url])
    chosen, clusters = read_rows(clustered / "out" / "representatives.jsonl"), read_rows(clustered / "out" / "clusters.jsonl")
    assert len(server.bodies) == 2 and "numbers that are nowhere: " in server.bodies[1]["messages"][3]["content"]
    draft, trace = load_items(to), json.loads((clustered / "items.provenance.json").read_text())
    assert trace["checksum"] == draft.checksum and set(trace["items"]) == set(draft.ids) and {item.direction for item in draft.items} == {0}
    numbers = [row["number"] for own in (*trace["items"].values(), *trace["left_out"]) for row in own["representatives"]]
    assert sorted(numbers) == [row["number"] for row in chosen] == list(range(1, len(chosen) + 1))
    reached = {i for own in (*trace["items"].values(), *trace["left_out"]) for i in own["statements"]}
    assert reached == {i for row in clusters for i in row["statements"]}
    texts = {row["id"]: row["text"] for row in planted()}
    assert all(texts[row["statement"]] == row["text"] for own in trace["items"].values() for row in own["representatives"])


def test_an_order_of_items_carries_no_meaning(tmp_path):
    """The published study let a model re-order its list, and joined weights to it by position."""
    chosen = [{"number": n, "cluster": n, "statement": f"s{n}", "text": f"t{n}"} for n in range(1, 6)]
    clusters = [{"cluster": n, "statements": [f"s{n}"]} for n in range(1, 6)]
    one = merged([1, 2, 3, 4, 5])
    other = {"items": one["items"][::-1], "left_out": one["left_out"]}
    assert clustering.write_items(tmp_path / "a.yaml", one, "a") == clustering.write_items(tmp_path / "b.yaml", other, "b")
    assert clustering.provenance(one, chosen, clusters) == clustering.provenance(other, chosen, clusters)
    assert clustering.provenance(one, chosen, clusters)["items"]["trait_2"]["statements"] == ["s3", "s4"]


@pytest.mark.parametrize("change, why", [
    (lambda d: d["items"][0].update(id="Trait 1"), "lower case"), (lambda d: d["items"][0].update(id="trait_2"), "ids that come twice: trait_2"),
    (lambda d: d["items"][0].update(text=" "), "no text"), (lambda d: d["items"][0].update({"from": []}), "needs the numbers"),
    (lambda d: d["items"][0].update({"from": ["1"]}), "needs the numbers"), (lambda d: d["items"][0].update({"from": [1, 2, 99]}), "numbers of no statement: 99"),
    (lambda d: d["items"][0].update({"from": [1]}), "nowhere: 2"), (lambda d: d["items"][0].update({"from": [1, 2, 5]}), "left out and used"),
    (lambda d: d["left_out"].append({"number": 5, "why": "again"}), "twice: 5"), (lambda d: d["left_out"][0].update(why=""), "the reason"),
    (lambda d: d.pop("left_out"), "two lists"), (lambda d: d.update(items=[]), "0 items"), (lambda d: d["items"].append("x"), "two lists of objects")])
def test_questionnaires_that_are_none(change, why):
    found = merged([1, 2, 3, 4, 5])
    assert clustering.wrong_with(found, [1, 2, 3, 4, 5], 5) == "" and clustering.wrong_with(found, [1, 2, 3, 4, 5], 1) == "there are 2 items; there must be 1 to 1"
    change(found)
    assert why in clustering.wrong_with(found, [1, 2, 3, 4, 5], 5)


def test_a_model_that_never_gives_a_valid_questionnaire(clustered, server):
    server.reply = lambda messages: "{}" * len(server.bodies)  # never the same twice
    with pytest.raises(UserError, match="no valid questionnaire in 3 tries"):
        clustering.main(["reduce", str(clustered / "out"), "--to", str(clustered / "none" / "items.yaml"), "--model", "m", "--base-url", server.url])
    assert not (clustered / "none" / "items.yaml").exists() and len(server.bodies) == 3
