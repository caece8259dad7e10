"""The survey of the human study's raters: figures worked by hand, and nobody's own words in the page."""
import csv
import json
from itertools import permutations

import numpy as np
import pytest

from runtime.errors import UserError
from studies.human_likeness import survey

HEADER = ["Id", "Human-like Criteria:\n\nWhat criteria did you use?", "Improve\u00a0Human-likeness:\n\nWhat is missing?", "Age:\n\nYour age?", "Gender:\u00a0\n\nYour gender?",
          "Education Level:\n\nHighest?", "Familiarity with AI\u00a0Chatbots:\n\nHow often?", "Detecting AI:\n\nHow sure?\n"]
PEOPLE = [["1", "It was warm, warm, warm and so natural", "jokes", "18-24", "Woman", "Some college", "Never", "Not at all confident"],
          ["2", "natural pauses", "also jokes", "25\u201334", "Man", "Some college", "Once or twice", "Somewhat confident"],
          ["3", "natural and with quirks", "jokes and xylophones", "25-34", "Woman", "High school", "I used to, when my sister lived here.", "Very confident"],
          ["4", "the natural one", "", "65 or older", "my own word", "Some college", "Daily or almost daily", "Extremely confident"]]


def ask(tmp_path, people=PEOPLE, header=HEADER):
    with open(tmp_path / "s.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([header, *people])
    return survey.read_survey(tmp_path / "s.csv")


def test_survey_counts_by_hand(tmp_path):
    found = survey.analyse(*ask(tmp_path))
    assert {o["answer"]: o["count"] for o in found["closed"]["age"]["options"]} == {"18-24": 1, "25-34": 2, "65 or older": 1}
    assert found["mean_age"]["value"] == pytest.approx((21 + 29.5 + 29.5 + 70) / 4)
    assert [(w["word"], w["answers"]) for w in found["words"]["criteria"]["top"]] == [("natural", 4)]  # answers, not occurrences: warm is one person's
    assert [(w["word"], w["answers"]) for w in found["words"]["missing"]["top"]] == [("jokes", 3)] and found["words"]["missing"]["answers"] == 3
    assert np.sum(found["crossed"]["counts"]) == 4 and found["associations"][0]["n"] == 3


def test_trap_nobodys_own_words_are_shown(tmp_path):
    ask(tmp_path)
    survey.main([str(tmp_path / "s.csv"), "--to", str(tmp_path / "out")])
    text = (tmp_path / "out" / "survey.json").read_text() + (tmp_path / "out" / "survey.md").read_text()
    for words in ("sister", "my own word", "xylophones", "quirks", "warm", "pauses", "High school", "high school"):
        assert words not in text
    assert {o["answer"]: o["count"] for o in json.loads((tmp_path / "out" / "survey.json").read_text())["closed"]["gender"]["options"]} == {"woman": 2, "man": 1, survey.OTHER: 1}


def test_survey_columns_are_found_by_their_first_words(tmp_path):
    with pytest.raises(UserError, match="no column begins with 'age'"):
        ask(tmp_path, header=[*HEADER[:3], "Agenda: what?", *HEADER[4:]])
    with pytest.raises(UserError, match="2 columns begin with 'gender'"):
        ask(tmp_path, header=[*HEADER, "Gender: again"])
    with pytest.raises(UserError, match="no answers"):
        ask(tmp_path, people=[])


def test_association_against_scipy_and_every_permutation():
    from scipy.stats import chi2_contingency, kendalltau
    x, y = [0, 0, 1, 1, 2, 2, 2], [0, 1, 0, 2, 1, 2, 2]
    found = survey.association(x, y, 20_000)
    counts = np.zeros((3, 3))
    np.add.at(counts, (x, y), 1)
    assert found["chi_square"] == pytest.approx(chi2_contingency(counts).statistic) and found["tau_b"]["value"] == pytest.approx(kendalltau(x, y).statistic)
    taus = np.array([abs(kendalltau(x, other).statistic) for other in set(permutations(y))])
    assert found["p_monotone"] == pytest.approx(np.mean(taus >= abs(kendalltau(x, y).statistic) - 1e-12), abs=0.015)
    two = survey.association([0] * 6 + [1] * 6, [0] * 6 + [1] * 6)
    assert two["test_any"] == "Fisher, exact" and two["p_any"] == pytest.approx(2 / 924) and two["tau_b"]["value"] == pytest.approx(1)
    assert two["tau_b"]["low"] is two["tau_b"]["high"] is None  # every resample of a perfect order is one: no certainty from that
    assert "not measured" in survey.association([1, 1], [0, 1])["reason"]
    assert survey.association(range(9), range(9), 100)["p_monotone"] == pytest.approx(1 / 101)  # no permutation is as extreme: the order itself is one, so p is never 0


def test_what_two_people_said_is_not_shown():
    assert [w["word"] for w in survey.top_words(["zebra tuba", "zebra tuba", "tuba tuba", ""])] == ["tuba"] and survey.top_words(["tuba"] * 3 + [""])[0]["share"]["n"] == 3
    assert survey.shown("education", ["a", "a", "b", "b", "b", ""]) == [survey.OTHER] * 2 + ["b"] * 3 + [""]
    found = survey.closed_counts("age", ["18-24", "", "25-34"])
    assert (found["answered"], found["no_answer"], [o["share"]["n"] for o in found["options"]]) == (2, 1, [2, 2])  # of those who answered


def test_shares_in_per_cent_and_an_odd_seed(tmp_path):
    ask(tmp_path)
    survey.main([str(tmp_path / "s.csv"), "--to", str(tmp_path / "out")])
    assert "| 25-34 | 2 | 50.0 % [15.0, 85.0] |" in (tmp_path / "out" / "survey.md").read_text()
    with pytest.raises(UserError, match="s.csv is a file: name a folder"):
        survey.main([str(tmp_path / "s.csv"), "--to", str(tmp_path / "s.csv")])
    with pytest.raises(UserError, match="--seed must be at least 0"):
        survey.main([str(tmp_path / "s.csv"), "--to", str(tmp_path / "out"), "--seed", "-1"])
