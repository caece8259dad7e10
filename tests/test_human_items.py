"""Items, weights, dialogues and pairs of the human-likeness study: the mistakes of the public system, one trap each."""
import csv
import dataclasses
import json
import math
import random
import time
from types import SimpleNamespace

import pytest
import yaml
from test_chat_tokenizer import save_family

from chat_tokenizer import load_chat_tokenizer
from data.prepare_pairs import Drop, encode_block
from data.store import write_lines
from runtime.errors import UserError
from studies.human_likeness import pairs as pair_builder
from studies.human_likeness.dialogue import TURING, clean, features, problems, text_hash, turns
from studies.human_likeness.items import ASKED, FITTED_ON, OURS, Weights, contributions, human_likeness, load_items, load_weights, published_weights, save_weights
from studies.human_likeness.pairs import Scored, all_pairs, balanced, build_pairs, length_ratio, read_scored, report
from studies.human_likeness.storage import write_table


@pytest.fixture(scope="module")
def ours():
    return load_items()


# ---- items and weights --------------------------------------------------------------------------------------------------------

def test_our_items_are_whole(ours):
    assert len(ours.ids) == len(set(ours.ids)) == 32 and sorted(item.published for item in ours.items) == list(range(1, 33))
    assert {item.direction for item in ours.items} <= {-1, 0, 1} and set(ours.scale) == {1, 3, 5}
    assert ours.only(["slang", "brevity"]).ids == ("brevity", "slang") and ours.only(["slang"]).checksum != ours.checksum


def test_an_edited_item_needs_a_new_version(tmp_path, ours):
    text = OURS.read_text()
    (tmp_path / "edited.yaml").write_text(text.replace("chat abbreviations", "chat words"))
    with pytest.raises(UserError, match="are not those of checksum .* raise `version` and write checksum: [0-9a-f]{16}"):
        load_items(tmp_path / "edited.yaml")
    (tmp_path / "ambiguous.yaml").write_text(text.replace("published: 8,", "published: 7,"))
    with pytest.raises(UserError, match="the published number 7 stands on more than one item"):
        load_items(tmp_path / "ambiguous.yaml")
    with pytest.raises(UserError, match="has no item for the public study's trait 1:"):
        ours.only(["slang"]).numbered(ASKED)  # another questionnaire cannot say what the public files were asked
    found = yaml.safe_load(text)
    found["items"] = found["items"][::-1]
    (tmp_path / "reversed.yaml").write_text(yaml.safe_dump(found))
    assert load_items(tmp_path / "reversed.yaml").checksum == ours.checksum  # nothing is joined by position
    found["items"].append(found["items"][0])
    (tmp_path / "twice.yaml").write_text(yaml.safe_dump(found))
    with pytest.raises(UserError, match="brevity stands on more|routine stands on more"):
        load_items(tmp_path / "twice.yaml")


def test_the_score_is_w_x_plus_b_and_contributions_add_up(ours):
    rng = random.Random(0)
    for _ in range(50):
        ids = rng.sample(ours.ids, 16)
        weights, answers = Weights({i: rng.gauss(0, 1) for i in ids}, rng.gauss(0, 1), ""), {i: rng.uniform(1, 5) for i in rng.sample(ids, 16)}
        by_hand = sum(weights.w[i] * answers[i] for i in ids) + weights.b
        assert human_likeness(weights, answers) == pytest.approx(by_hand, abs=1e-9)
        assert sum(contributions(weights, answers).values()) + weights.b == pytest.approx(human_likeness(weights, answers), abs=1e-12)


def test_a_mis_join_cannot_happen(tmp_path, ours):
    """The public study's mistake: the weights of one set of items on the answers to another of the same size, in another order."""
    fitted, asked = ours.numbered(FITTED_ON), ours.numbered(ASKED)
    assert len(fitted) == len(asked) == 16 and sum(a == b for a, b in zip(fitted, asked)) == 2 and len(set(asked) - set(fitted)) == 7
    bare = tmp_path / "weights.json"
    bare.write_text(json.dumps({"w": [k / 10 for k in range(16)], "b": -1.0}))
    with pytest.raises(UserError, match="bare list of 16 weights: say which items"):
        load_weights(bare, ours)
    with pytest.raises(UserError, match="16 weights, and 15 ids"):
        load_weights(bare, ours, fitted[:15])
    with pytest.raises(UserError, match="comes twice"):
        load_weights(bare, ours, [*fitted[:15], fitted[0]])
    with pytest.raises(UserError, match="there is no item wit"):
        load_weights(bare, ours, [*fitted[:15], "wit"])
    right, wrong = published_weights(bare, ours, "as fitted"), published_weights(bare, ours, "as published")
    answers = {i: 1 + k % 5 for k, i in enumerate(asked)}
    assert human_likeness(wrong, answers) == pytest.approx(sum(k / 10 * (1 + k % 5) for k in range(16)) - 1)
    with pytest.raises(UserError, match="do not go with these weights .no answer to"):
        human_likeness(right, answers)
    named = Weights(right.w, right.b, ours.checksum, "test")
    save_weights(named, tmp_path / "named.json")
    assert load_weights(tmp_path / "named.json", ours) == named
    save_weights(Weights(right.w, right.b, "0" * 16), tmp_path / "old.json")
    with pytest.raises(UserError, match="fitted on items with checksum 0000"):
        load_weights(tmp_path / "old.json", ours)


@pytest.mark.parametrize("w", ['{"w": [], "b": 0}', '{"w": {"brevity": NaN}, "b": 0}', '{"w": {"brevity": 1}, "b": Infinity}', '{"w": {"brevity": 1' + "0" * 400 + '}, "b": 0}', "[]", "{", '{"w": "1", "b": 0}', "[" * 100_000])
def test_weights_that_are_no_numbers_are_refused(tmp_path, ours, w):
    (tmp_path / "w.json").write_text(w)
    with pytest.raises(UserError, match="holds no weights"):
        load_weights(tmp_path / "w.json", ours, ["brevity"] if "[]," in w or '"1"' in w else ())


@pytest.mark.parametrize("change", [{"scale": ["a", "b"]}, {"scale": {"x": "y"}}, {"items": []}, {"items": [{"id": 3, "group": "g", "direction": 1, "text": "t"}]},
                                    {"items": [{"id": "a", "group": "g", "direction": 7, "text": "t"}]}, {"items": [{"id": "a", "group": "g", "direction": 1, "text": None}]}, {"version": []}])
def test_a_malformed_questionnaire_is_one_sentence(tmp_path, change):
    (tmp_path / "q.yaml").write_text(yaml.safe_dump(yaml.safe_load(OURS.read_text()) | change))
    with pytest.raises(UserError, match="is no questionnaire"):
        load_items(tmp_path / "q.yaml")


def test_a_yaml_bomb_does_not_hang(tmp_path):
    layers = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi"))
    (tmp_path / "q.yaml").write_text(layers + "scale: {1: *i}\nitems: [{id: a, group: g, direction: 1, text: t}]\nversion: 1\nchecksum: x\n")
    with pytest.raises(UserError, match="is no questionnaire"):
        load_items(tmp_path / "q.yaml")


@pytest.mark.parametrize("value", [0, 5.01, float("nan"), "4", None, True])
def test_ratings_out_of_range_are_refused(value):
    with pytest.raises(UserError, match="not a number from 1 to 5"):
        human_likeness(Weights({"a": 1.0, "b": 1.0}, 0.0, ""), {"a": 3, "b": value})


# ---- dialogues ----------------------------------------------------------------------------------------------------------------

def test_cleaning_takes_the_dialogue_out_and_nothing_that_is_said():
    text = ("Biography: a teacher.\n<dialogue>\n1. P: Hi doc (coughs).\n\n2. D:  Good   morning.\n---\n**P:** My knee,\nthe left one.\nP: again\n</dialogue>\n<dialogue>\nP: another")
    said, done = clean(text)
    assert said == "P: Hi doc (coughs).\nD: Good morning.\nP: My knee,\nthe left one.\nP: again"
    assert done == {"text before the dialogue": 1, "text after the dialogue": 1}
    assert [(t.speaker, t.text) for t in turns(said)] == [("P", "Hi doc (coughs)."), ("D", "Good morning."), ("P", "My knee,\nthe left one.\nagain")]
    assert clean("<dialogue>\nD: Hello.\nP: Hi.") == ("D: Hello.\nP: Hi.", {"no closing tag": 1})  # the doctor's opening stays
    assert clean("Scene one.\nP: Hi.")[1] == {"lines before the first speaker": 1}
    assert clean("<dialogue>\r\n2P: hi\rDr.: well\u2028Patient: \ufeffyes\n19\nD: ok</dialogue>")[0] == "P: hi\nD: well\nP: yes\n19\nD: ok"
    assert text_hash("P:  Hi.\n") == text_hash("P: Hi.") != text_hash("P: Ho.")


@pytest.mark.parametrize("text, wanted", [
    ("P: My back hurts.\nD: What brings you in?", []), ("D: I see.\nD: Yes.", ["no turn of P"]), ("P: Hm.\nP: Yes.", ["only one speaker"]),
    ("P: What brings you in today?\nD: My back hurts.", ["P speaks like the doctor"]), ("P: Hi.\nD: How can I help?\nP: My back.", []),
    ("P: Hello there.\nD: Hi doc, thanks for seeing me.\nP: Of course. What brings you in?", ["P speaks like the doctor"]), ("P: Good to see you, Sam.\nD: Hey, Doc.", ["P speaks like the doctor"]),
    ("P: I\u2019m Dr. Lee.\nD: My knee hurts.", ["P speaks like the doctor"]), ("P: Hey doc.\nD: Hi, what can I do for you?", []),
    ("P: Hm.\nD: Yes.\nP: Have you had any fever?\nD: No.", ["P speaks like the doctor"]), ("P: My back hurts.\nD: I am your doctor. What brings you in?", []),
    ("P: a\nD: b\nP: c\nD: d\nP: e\nD: f\nP: Any allergies?\nD: No.", [])])  # the first three turns of each are looked at
def test_role_swaps_and_missing_speakers_are_named(text, wanted):
    assert problems(turns(text)) == wanted


def test_features_by_hand():
    said = turns("I: how are you\nW: fine thanks a lot\nI: and?\nW: ok?\nW: bye now", TURING)
    found = features(said, "W")  # turns of 4 and 3 words
    assert found == pytest.approx({"turns": 2, "words": 7, "words_per_turn": 3.5, "cv": math.sqrt(0.5) / 3.5, "questions_per_turn": 0.5})
    assert features(said[:2], "W")["cv"] == 0 and features([], "W")["words_per_turn"] == 0


# ---- pairs --------------------------------------------------------------------------------------------------------------------

def dialogue(i, persona, score, words=10, generator="a"):
    return Scored(str(i), persona, f"prompt {persona}", f"{i} " * words, generator, score)


def test_pairs_by_hand():
    rows = [dialogue(1, "x", 1.0), dialogue(2, "x", 0.0, generator="b"), dialogue(3, "x", 1.0), dialogue(4, "y", 5.0)]
    pairs = all_pairs(rows, sd=2.0)
    assert [(p.id, p.margin, p.chosen_generator, p.rejected_generator) for p in pairs] == [("1>2", 0.5, "a", "b"), ("3>2", 0.5, "a", "b")]  # a tie gives none
    assert not all_pairs([rows[0], dataclasses.replace(rows[1], dialogue=f" {rows[0].dialogue}\n")], 1.0)  # one text that was scored twice is no pair
    assert report(rows[:2], pairs[:1], {}, noise_sd=math.sqrt(0.5))["expected_share_turned_by_noise"] == pytest.approx(0.158655, abs=1e-6)  # normal, one sd below
    kept, out = build_pairs([dialogue(1, "x", 1.0), dialogue(2, "x", 0.0)], min_margin=math.sqrt(2))  # the two scores' sd is .7071: margin is sqrt 2
    assert not kept and out == {f"margin up to {math.sqrt(2):g} sd": 1}
    with pytest.raises(UserError, match="more than one prompt"):
        all_pairs([rows[0], Scored("9", "x", "another", "text", "a", 3.0)], 1.0)


def test_each_rule_counts_what_it_leaves_out():
    rows = [dialogue(4 * p + k, str(p), k + p / 100, words=5 + 7 * k, generator="ab"[k % 2]) for p in range(20) for k in range(4)]
    everything, _ = build_pairs(rows, 0)
    assert len(everything) == 120
    for how in ({"cap": 2}, {"same_generator": True}, {"noise_sd": 0.5}, {"min_margin": 1.0}, {"cap": 1, "same_generator": True}):
        kept, out = build_pairs(rows, **({"min_margin": 0} | how))
        assert len(kept) + sum(out.values()) == 120 and {p.id for p in kept} < {p.id for p in everything}
        if how.get("cap"):
            assert max(sum(p.persona_id == q.persona_id for q in kept) for p in kept) <= how["cap"]
        if how.get("same_generator"):
            assert all(p.chosen_generator == p.rejected_generator for p in kept)
    drawn = [{p.id for p in build_pairs(rows, 0, cap=1, seed=seed)[0]} for seed in (0, 1)]
    assert len(drawn[0]) == len(drawn[1]) == 20 and drawn[0] != drawn[1]
    noisy, _ = build_pairs(rows, 0, noise_sd=0.5)
    assert min(p.chosen_score - p.rejected_score for p in noisy) > 1.6448 * math.sqrt(2) * 0.5
    told = report(rows, noisy, {}, 0.5)
    assert told["expected_share_turned_by_noise"] < 0.05 and told["chosen_is_shorter_share"] == 0


def test_length_balance_removes_the_confound():
    rng = random.Random(1)
    rows = [dialogue(4 * p + k, str(p), -words / 50 + rng.gauss(0, 1), words) for p in range(300) for k in range(4) for words in [rng.randint(20, 200)]]
    plain, _ = build_pairs(rows)
    even, _ = build_pairs(rows, length_balanced=True)
    assert report(rows, plain, {})["chosen_is_shorter_share"] > 0.8
    assert report(rows, even, {})["chosen_is_shorter_share"] == pytest.approx(0.5, abs=0.02) and abs(sum(map(length_ratio, even)) / len(even)) < 0.01
    assert balanced(even, 0) == [True] * len(even)


def test_7200_dialogues_in_seconds_and_in_any_order(tmp_path):
    rng = random.Random(0)
    rows = [dialogue(4 * p + k, str(p), rng.gauss(0, 1), rng.randint(50, 400)) for p in range(1800) for k in range(4)]
    started = time.perf_counter()
    pairs, out = build_pairs(rows, cap=3, length_balanced=True, noise_sd=0.2)
    assert time.perf_counter() - started < 5
    rng.shuffle(rows)
    again, also_out = build_pairs(rows, cap=3, length_balanced=True, noise_sd=0.2)
    assert again == pairs and also_out == out
    write_lines(tmp_path / "pairs.jsonl", map(dataclasses.asdict, pairs))
    assert len((tmp_path / "pairs.jsonl").read_text().splitlines()) == len(pairs) > 1000


def write_scored(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["persona_id", "prompt", "dialogue_id", "model", "dialogue", "score"])
        writer.writerows([row.persona_id, row.prompt, row.dialogue_id, row.generator, row.dialogue, row.score] for row in rows)


@pytest.mark.parametrize("rows, message", [
    ([dialogue(1, "x", 1.0), dialogue(1, "x", 2.0)], "dialogue 1 comes twice"), ([dialogue(1, "x", math.nan)], "dialogue 1: score is 'nan', not a number"),
    ([dialogue(1, "x", 1.0), dialogue(2, "x", 1.0)], "two different scores"), ([dialogue(1, "x", 1.0), dialogue(2, "y", 2.0)], "no pair is left")])
def test_bad_scores_are_one_sentence(tmp_path, rows, message):
    write_scored(tmp_path / "scored.csv", rows)
    with pytest.raises(UserError, match=message):
        pair_builder.main([str(tmp_path / "scored.csv"), "--to", str(tmp_path / "pairs.jsonl")])
    assert not (tmp_path / "pairs.jsonl").exists()


@pytest.mark.parametrize("flags", [["--cap", "-1"], ["--noise-sd", "-1"], ["--noise-sd", "nan"]])
def test_a_rule_that_would_be_off_without_a_word_is_refused(tmp_path, flags):
    write_scored(tmp_path / "scored.csv", [dialogue(1, "x", 1.0), dialogue(2, "x", 3.0)])
    with pytest.raises(UserError, match="must be 0 or more"):
        pair_builder.main([str(tmp_path / "scored.csv"), "--to", str(tmp_path / "pairs.jsonl"), *flags])


@pytest.mark.parametrize("ratings", ["0", "1.0", "many"])
def test_a_number_of_ratings_that_is_none_is_one_sentence(tmp_path, ratings):
    """It divides the judge's noise: 0 of them is no score."""
    write_table(tmp_path / "scored.csv", [{"persona_id": "x", "prompt": "p", "dialogue_id": i, "dialogue": f"d{i}", "score": i, "valid_ratings": ratings} for i in range(2)])
    with pytest.raises(UserError, match="dialogue 0: valid_ratings is "):
        read_scored(tmp_path / "scored.csv")


def test_swapped_and_unrated_dialogues_become_no_pairs(tmp_path):
    rows = [dialogue(4 * p + k, str(p), float(k)) for p in range(3) for k in range(4)]
    write_scored(tmp_path / "scored.csv", rows)
    with open(tmp_path / "scored.csv", newline="") as file:
        table = [row | {"problems": "P speaks like the doctor" if row["dialogue_id"] == "3" else "", "score": "" if row["dialogue_id"] == "2" else row["score"], "valid_ratings": "2"}
                 for row in csv.DictReader(file)]
    write_table(tmp_path / "scored.csv", table)
    usable, out = read_scored(tmp_path / "scored.csv")
    assert len(usable) == 10 and out == {"P speaks like the doctor": 1, "no score": 1} and {row.ratings for row in usable} == {2}
    assert len(read_scored(tmp_path / "scored.csv", with_problems=True)[0]) == 11
    single = [dataclasses.replace(row, ratings=1) for row in usable]
    assert len(build_pairs(usable, 0, noise_sd=0.6)[0]) > len(build_pairs(single, 0, noise_sd=0.6)[0])  # the mean of two ratings is less noisy


def just_too_small(tmp_path, model):
    """The block in which the longest reply leaves room for a prompt without a word."""
    replies, tokenizer = [p[side] for p in map(json.loads, open(tmp_path / "pairs.jsonl")) for side in ("chosen", "rejected")], load_chat_tokenizer(model)
    return max(map(len, tokenizer.encode_responses(replies))) + len(tokenizer.encode_messages([{"role": "user", "content": ""}])[0])


def test_silent_truncation_is_seen_before_training(tmp_path, capsys):
    """The public study's sequences were cut to library defaults, and a third lost the whole prompt. Here a command counts what a config would cut."""
    rows = [dialogue(4 * p + k, str(p), float(k), words=30 * (k + 1)) for p in range(5) for k in range(4)]
    write_scored(tmp_path / "scored.csv", rows)
    assert len(read_scored(tmp_path / "scored.csv")[0]) == 20
    pair_builder.main([str(tmp_path / "scored.csv"), "--to", str(tmp_path / "pairs.jsonl")])
    with pytest.raises(UserError, match="would replace what is read"):
        pair_builder.main([str(tmp_path / "scored.csv"), "--to", str(tmp_path / "scored.csv")])
    told = json.loads((tmp_path / "pairs.report.json").read_text())
    assert told["pairs"] == len((tmp_path / "pairs.jsonl").read_text().splitlines()) and told["dialogues"] == 20
    assert told["command"] == "python -m studies.human_likeness.pairs scored.csv --to pairs.jsonl"
    model = save_family(tmp_path / "llama", "llama")
    capsys.readouterr()
    for block, cut in ((1024, False), (just_too_small(tmp_path, model), True), (128, True)):
        found = pair_builder.audit(tmp_path / "pairs.jsonl", ["human_likeness", f"--model.init_from={model}", f"--model.block_size={block}"])
        assert (found["prompt_would_be_cut"] > 0) == (found["pair_would_be_dropped"] > 0) == cut
        encoded = encode_block(load_chat_tokenizer(model), block, said := [
            SimpleNamespace(**p | {"prompt": [{"role": "user", "content": p["prompt"]}]}, changes=[]) for p in map(json.loads, open(tmp_path / "pairs.jsonl"))])
        dropped = [isinstance(pair, Drop) for pair in encoded]  # what preparation does with the same pairs
        assert found["pair_would_be_dropped"] == sum(dropped) and found["prompt_would_be_cut"] == sum(bool(pair.changes) or out for pair, out in zip(said, dropped))
    with_system = pair_builder.audit(tmp_path / "pairs.jsonl", ["human_likeness", f"--model.init_from={model}", "--model.block_size=128", "--data.system=Talk like a person."])
    assert with_system["prompt_tokens_median"] >= found["prompt_tokens_median"] + len("Talk like a person.") / 8  # training puts it before every prompt
    pair_builder.main(["--audit", str(tmp_path / "pairs.jsonl"), "human_likeness", f"--model.init_from={model}", "--model.block_size=128"])
    assert "pairs dropped: --model.block_size=" in capsys.readouterr().out
