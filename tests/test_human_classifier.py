"""The classifier of the human-likeness study on what it must refuse or say: odd files and flags, and figures that would claim more than the rows hold."""
import csv
import json

import numpy as np
import pytest

from runtime.errors import UserError
from studies.human_likeness import classifier
from studies.human_likeness.items import load_items

OURS = load_items()
LISTS = {f"likert_evaluation_{side}": str([1 + (k * k + shift) % 5 for k in range(32)]) for side, shift in (("A", 0), ("B", 2))}
TALK = {"conversation_A_transcript": "I: hi\nW: hello you", "conversation_B_transcript": "I: hi\nW: well\nI: so?\nW: so what is it"}


def rated(games=20, **same):
    """Two witnesses a game with ratings of noise; `same` is put into every row."""
    rng = np.random.default_rng(0)
    return [{"game_id": game, "is_human": human, "questionnaire": OURS.checksum, "ratings": json.dumps({i: int(rng.integers(1, 6)) for i in OURS.ids}),
             "cv": rng.uniform(), "words": int(rng.integers(20, 90))} | same for game in range(games) for human in (1, 0)]


def write(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def run(tmp_path, rows, *flags):
    classifier.main([str(write(tmp_path / "rated.csv", rows)), "--to", str(tmp_path / "out"), "--folds", "4", "--repeats", "1", *flags])
    return json.loads((tmp_path / "out" / "classifier.json").read_text())


def table_of(y, games):
    return classifier.Table(np.ones((len(y), 1)), np.array(y), np.array(games), np.full((len(y), 2), np.nan), ("brevity",))


def test_measures_by_hand_and_over_games():
    found = classifier.measured(np.array([2.0, -1.0, -0.5, -3.0, 1.0, 2.0]), table_of([1, 0, 1, 0, 1, 0], list("aabbcc")))
    assert found["accuracy"]["value"] == pytest.approx(4 / 6) and found["accuracy"]["n"] == found["auc"]["n"] == 3  # games, not witnesses
    assert found["auc"]["value"] == pytest.approx((2.5 + 2 + 2) / 9)  # 2 beats two and ties with one; the others beat two
    assert found["pairwise_accuracy"]["value"] == pytest.approx(2 / 3) and (found["pairwise_accuracy"]["low"], found["pairwise_accuracy"]["high"]) == (0, 1)


def test_trap_a_perfect_score_is_no_certainty():
    """Resamples of rows that are all right are all right. Log-odds of 0 are no verdict for a human."""
    found = classifier.measured(np.tile([3.0, 0.0], 10), table_of([1, 0] * 10, np.repeat(np.arange(10), 2)))
    assert all((found[name]["value"], found[name]["low"], found[name]["high"]) == (1, None, None) for name in ("accuracy", "auc", "pairwise_accuracy"))


@pytest.mark.parametrize("change, message", [
    ({"ratings": '["brevity"]'}, "rated.csv, row 1: ratings is no JSON object"), ({"ratings": "{"}, "rated.csv, row 1"), ({"is_human": 2}, "is_human is 2, not 0 or 1"),
    ({"words": -5}, "words is -5"), ({"questionnaire": "of another one"}, "rated with another questionnaire"), ({"ratings": '{"brevity": 3}'}, "rated row 2: an answer to")])
def test_ratings_that_are_none(tmp_path, change, message):
    rows = rated()
    with pytest.raises(UserError, match=message):
        run(tmp_path, [rows[0] | change, *rows[1:]])


def test_trap_a_witness_of_unknown_kind_is_a_machine(tmp_path):
    rows = [{"game_id": i, "who_is_human": "AB"[i % 2]} | LISTS | TALK for i in range(8)]
    with pytest.raises(UserError, match="row 1: who_is_human is 'Human', not A or B"):
        run(tmp_path, [rows[0] | {"who_is_human": "Human"}, *rows[1:]], "--published-layout")


def test_too_few_of_one_kind_is_one_sentence(tmp_path):
    rows = rated(is_human=1)
    with pytest.raises(UserError, match="hold only humans, or only machines"):
        run(tmp_path, [rows[0] | {"is_human": 0}, *rows[1:]])
    with pytest.raises(UserError, match="needs humans and machines in at least 4 games"):
        run(tmp_path, rows)


@pytest.mark.parametrize("flags", [("--keep", "-1"), ("--seed", "-1"), ("--folds", "1"), ("--repeats", "0")])
def test_odd_flags_are_one_sentence(tmp_path, flags):
    with pytest.raises(UserError, match="must be at least"):
        run(tmp_path, rated(), *flags)


def test_a_file_where_the_folder_should_be_is_seen_before_the_fits(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="out is a file: name a folder"):
        run(tmp_path, rated())


def test_published_weights_are_looked_at_before_the_long_fits(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--published-weights are for"):  # they were left out without a word
        run(tmp_path, rated(), "--published-weights", str(tmp_path / "none.json"))
    monkeypatch.setattr(classifier, "evaluate", lambda *_: pytest.fail("the fits came first"))
    with pytest.raises(UserError, match="holds no weights"):
        run(tmp_path, [{"game_id": i, "who_is_human": "AB"[i % 2]} | LISTS | TALK for i in range(8)], "--published-layout", "--published-weights", str(tmp_path / "none.json"))


def test_published_rules_that_cannot_be_kept_to(tmp_path):
    rows = [{"game_id": i, "who_is_human": "AB"[i % 2]} | LISTS | TALK for i in range(8)]
    flat = {name: str([3] * 32) for name in LISTS}
    for found, why in ((rows[:4], "fewer than ten witnesses"), ([row | flat for row in rows], "no weight is above .2")):
        assert classifier.as_published(classifier.read_table(write(tmp_path / "rated.csv", found), OURS, published=True)) == {"reason": f"not measured: {why}"}


def test_what_the_table_does_not_know_is_named(tmp_path, capsys, monkeypatch):
    figure = {"value": 0.5, "low": None, "high": None}
    monkeypatch.setattr(classifier, "measured", lambda *_: {"accuracy": figure, "auc": figure, "pairwise_accuracy": None, "calibration_error": 0.0, "bins": []})  # seconds otherwise
    rows = rated()
    found = run(tmp_path, [rows[0] | {"cv": ""}, *rows[1:]])
    assert found["unknown"] == {"cv": 1} and "items and cv" not in found["models"] and "log words alone" in found["models"]
    said = capsys.readouterr().out
    assert "cv: not measured, not known in 1 of 40 rows" in said and "accuracy 50.0 % [?, ?], AUC 0.5 [?, ?], pairwise not measured" in said
    assert "unknown" not in run(tmp_path, rows)


def test_items_at_equal_length_leaves_out_what_length_says():
    """Words alone tell the two apart, and an item that only follows them: fitted beside them and scored without, the item says nothing."""
    rng = np.random.default_rng(0)
    y = np.tile([1, 0], 150)
    words = 2.0 * y + rng.normal(size=300)
    item = words + rng.normal(size=300)
    fold = classifier.folds_of(np.repeat(np.arange(150), 2), 5, 0)
    alone, beside = (classifier.out_of_fold(x, y, fold, fit)[0] for x, fit in ((item[:, None], classifier.lasso()), (np.column_stack([item, words]), classifier.without_last(classifier.lasso()))))
    assert classifier.auc(alone, y) > 0.75 and np.ptp(beside) < 0.3 * np.ptp(alone)
    x = np.column_stack([item, words])
    held, free = classifier.without_last(classifier.lasso())(x, y), classifier.lasso()(x, y)
    assert held.decision_function(x) == pytest.approx(free.decision_function(np.column_stack([item, np.full(300, words.mean())])))  # at the mean: accuracy and calibration need it


def test_a_game_without_both_kinds_is_in_no_pair():
    assert classifier.pairwise(np.array([1.0, 2.0, 3.0, 0.0, 5.0]), np.array([1, 1, 1, 0, 0]), np.array(list("aabbc"))).tolist() == [1.0]


def test_every_model_has_its_own_columns_and_every_repeat_its_own_folds(monkeypatch):
    monkeypatch.setattr(classifier, "measured", lambda *_: {})
    rng, y = np.random.default_rng(0), np.tile([1, 0], 60)
    extra = np.column_stack([y + rng.normal(0, 0.3, 120), rng.normal(size=120)])  # cv tells the two apart, length and ratings do not
    found = classifier.evaluate(classifier.Table(rng.integers(1, 6, (120, 3)).astype(float), y, np.repeat(np.arange(60), 2), extra, OURS.ids[:3]), 2, 5, 3)
    aucs = {name: np.mean(row["auc_of_repeats"]) for name, row in found.items()}
    assert {name for name, value in aucs.items() if value > 0.9} == {"cv of turn lengths alone", "items and cv"} and max(v for v in aucs.values() if v <= 0.9) < 0.65
    assert len(set(found["all 3 items"]["auc_of_repeats"])) == 3


# ---- by the study's own rules ---------------------------------------------------------------------------------------------------

def published_table():
    """30 games whose human has a little more of the first four items; rows come as A and B of each game."""
    rng, y = np.random.default_rng(1), np.array([side == who for who in "AB" * 15 for side in "AB"]).astype(int)
    x = np.clip(rng.integers(1, 6, (60, 32)) + np.outer(y, [1] * 4 + [0] * 28), 1, 5).astype(float)
    return classifier.Table(x, y, np.repeat(np.arange(30), 2), np.full((60, 2), np.nan), OURS.numbered(range(1, 33)))


def test_the_published_rules_by_another_path():
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import KFold, cross_val_score
    table = published_table()
    found, (x, y) = classifier.as_published(table), (np.concatenate([part[::2], part[1::2]]) for part in (table.x, table.y))
    model = LogisticRegression(l1_ratio=1, solver="liblinear", C=1.0, random_state=42)
    weights = model.fit(x, y).coef_[0]
    kept = [k for k in range(32) if abs(weights[k]) > 0.2]
    assert 0 < len(kept) < sum(abs(weights) > 0.1) and found["kept"] == [table.ids[k] for k in kept]
    assert found["accuracy_16"] == pytest.approx(cross_val_score(model, x[:, kept], y, cv=KFold(10, shuffle=True, random_state=42)).mean())
    assert found["w"] == pytest.approx(model.fit(x[:, kept], y).coef_[0]) and found["auc_in_sample"] > 0.7


def test_published_weights_as_they_were_fitted_and_as_they_were_used(tmp_path):
    table = published_table()
    w = np.arange(16) - 7.5
    (tmp_path / "w.json").write_text(json.dumps({"w": w.tolist(), "b": 1.0}))
    found = classifier.joined_aucs(table, tmp_path / "w.json", OURS)
    fitted, used = ([1, 2, 3, 4, 5, 6, 7, 12, 15, 17, 20, 21, 24, 26, 28, 32], [1, 5, 10, 3, 4, 17, 7, 20, 8, 16, 26, 2, 11, 18, 22, 29])  # section 4 of the study's record
    assert found == pytest.approx({name: classifier.auc(table.x[:, np.array(numbers) - 1] @ w, table.y) for name, numbers in (("as fitted", fitted), ("as published", used))})


def test_a_part_of_the_items_is_not_the_published_model(tmp_path, monkeypatch):
    figure = {"value": 0.5, "low": None, "high": None}
    monkeypatch.setattr(classifier, "measured", lambda *_: {"accuracy": figure, "auc": figure, "pairwise_accuracy": None, "calibration_error": 0.0, "bins": []})
    rows = [{"game_id": i, "who_is_human": "AB"[i % 2]} | LISTS | TALK for i in range(8)]
    assert "as_published" not in run(tmp_path, rows, "--published-layout", "--items", "brevity")


def test_the_strongest_item_is_not_the_one_with_the_smallest_scale():
    rng = np.random.default_rng(0)
    y = np.tile([1, 0], 200)
    large, small = 10 * y + rng.normal(0, 10, 400), 0.1 * y + rng.normal(0, 0.3, 400)  # the second has the larger weight and says less
    x = np.column_stack([small, large])
    assert np.argmax(np.abs(classifier.lasso(100.0)(x, y).coef_[0])) == 0 and classifier.strongest(x, y, 1).tolist() == [1]


def test_final_weights_are_of_the_items_selected_most_often_in_their_own_order():
    rng = np.random.default_rng(0)
    y = np.tile([1, 0], 100)
    ids = OURS.ids[:4]
    table = classifier.Table(rng.integers(1, 6, (200, 4)).astype(float), y, np.repeat(np.arange(100), 2), np.full((200, 2), np.nan), ids)
    shares = dict(zip(ids, (0.5, 0.1, 0.5, 1.0)))
    weights = classifier.final_weights(table, 2, shares, OURS, "n")
    assert weights.ids == (ids[0], ids[3]) and weights.items == OURS.only(weights.ids).checksum  # a tie goes to the first
    fit = classifier.lasso()(table.x[:, [0, 3]], y)
    assert list(weights.w.values()) == fit.coef_[0].tolist() and weights.b == fit.intercept_[0]
