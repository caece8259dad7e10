"""Negatives made without a model: what counts as the same thing, what is found in a text, and what the made-up answers must never be."""
import calendar
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from bench import curriculum_negatives as bench
from eval.qa_metrics import MONTHS, normalise
from runtime.errors import UserError
from studies.curriculum_dpop import negatives
from studies.curriculum_dpop.entities import aliases, asked, choice, find, is_alias, spacy_finder
from studies.curriculum_dpop.negatives import abstentions, easy, fake_over_fake, likeness, make_row, medium
from studies.curriculum_dpop.quantities import Span, in_digits, near, numeric_spans
from studies.curriculum_dpop.rows import ABSTENTIONS, Question

ROOT = Path(__file__).resolve().parents[1]


def ask(name, question, answer, context="", **more):
    return Question(name, question, context, (answer,) if isinstance(answer, str) else tuple(answer), "test", **more)


@pytest.fixture(scope="module")
def made():
    """600 invented questions with their easy and medium rows by question."""
    questions = [bench.invented(i, 5) for i in range(600)]
    by_text = {q.question + q.context: q for q in questions}
    return questions, *([(by_text[row.question + row.context], row) for row in level(questions, 0)] for level in (easy, medium))


# ---- the same thing? --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("a, b", [
    ("1,000", "one thousand"), ("1000", "1,000"), ("12 May 1999", "May 12, 1999"), ("1999-05-12", "12 May 1999"), ("the 5th", "fifth"), ("5.0", "5"),
    ("twenty-five", "25"), ("2.5 million", "2,500,000"), ("two hundred and five", "205"), ("New York City", "New York"), ("1999", "12 May 1999"),
    ("He was born on May 12, 1999.", "12 May 1999"), ("the Beatles", "Beatles"), ("U.S.", "United States"), ("American", "the United States"),
    ("David Mamet", "David Alan Mamet"), ("J. R. R. Tolkien", "J.R.R. Tolkien"), ("NBA", "National Basketball Association"), ("Pelé", "Pele"),
    ("British", "English"), ("The The", "The The"), ("St. Louis, Missouri", "Saint Louis"), ("Mt. Everest", "Mount Everest"), ("Dr. King", "Doctor King"),
    ("AT&T", "AT and T"), ("US", "United States of America"), ("the U.S. Army", "United States Army"), ("us army", "American army"),
    ("President Lincoln", "Abraham Lincoln"), ("Great Britain", "United Kingdom"), ("Britain", "England"), ("Holland", "the Netherlands"), ("USSR", "Russian")])
def test_aliases_by_hand(a, b):
    assert aliases(a, b) and aliases(b, a)


@pytest.mark.parametrize("a, b", [
    ("1998", "1999"), ("two and three", "5"), ("12 May 1999", "13 May 1999"), ("Paris", "Parish"), ("Boston", "Austin"), ("1,000", "10,000"),
    ("English", "Scottish"), ("twenty-five", "twenty-six"), ("John Smith", "Smith John"), ("The The", "Yes"), ("5 million", "5 billion"),
    ("Saint Paul", "St. Peter"), ("Mount Hood", "Mt. Rainier"), ("Dr. Watson", "Mr. Holmes"), ("U.S. Navy", "British Navy"), ("King George V", "King George VI"), ("Queen Anne", "Queen Mary"), ("King", "Queen")])
def test_no_aliases_by_hand(a, b):
    assert not aliases(a, b) and not aliases(b, a)


def test_another_gold_answer_is_an_alias():
    assert is_alias("NYC", ["The Big Apple", "NYC"]) and not is_alias("NYC", ["The Big Apple"])


# ---- spans ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, question, expected", [
    ("Delhi", "in what city?", [("Delhi", "place")]),
    ("Dearborn, Michigan", "Where is it?", [("Dearborn, Michigan", "place")]),
    ("Tim Rice and Andrew Lloyd Webber", "Who wrote it?", [("Tim Rice", "person"), ("Andrew Lloyd Webber", "person")]),
    ("First for Women", "Which magazine came first?", [("First for Women", "work")]),
    ("Pan Tadeusz", "What?", [("Pan Tadeusz", "name")]),  # nothing says what it is
    ("Uric acid", "Which acid?", []), ("film director", "What occupation?", []), ("yes", "Are both?", []), ("4–3", "", []), ("a 47-storey tower", "", []),
    ("He paid $5 million (12%) in 1990 for 7.46 mi of Clark County.", "",
     [("$5 million", "money"), ("12%", "percent"), ("1990", "year"), ("7.46 mi", "quantity"), ("Clark County", "place")]),
    ("in the 19th century, on 12 May 1999", "", [("19th", "ordinal"), ("12 May 1999", "date")]),
    ("Watermelon seeds pass through Paris, London and Rome.", "", [("Paris", "place"), ("London", "place"), ("Rome", "place")]),
    ("two of them", "", [("two", "number")]), ("one of them", "", []), ("Zero Dark Thirty was long.", "", [("Zero Dark Thirty", "name")])])
def test_spans_by_hand(text, question, expected):
    found = find(text, question)
    assert [(span.text, span.type) for span in found] == expected
    assert all(text[span.start:span.end] == span.text for span in found)


@pytest.mark.parametrize("question, expected", [
    ("In what city in Michigan is it?", ("place", "city")), ("Who wrote it?", ("person", "")), ("How many people?", ("number", "")),
    ("Which American animated film director was born in 1950?", ("person", "director")), ("When did it open?", ("date", "")),
    ("Which genus has more species?", ("", "genus")), ("Is it so?", ("", "")), ("It was directed by whom?", ("person", ""))])
def test_what_a_question_asks_for(question, expected):
    assert asked(question) == expected


def test_the_other_option_of_a_choice():
    assert choice("Who is older, Niki Caro or the Thomas Vinterberg?", "Thomas Vinterberg") == "Niki Caro"
    assert choice("Did Niki Caro or her brother win?", "Niki Caro") == choice("Who is Niki Caro?", "Niki Caro") == ""


@pytest.mark.parametrize("text", ["1,700", "7.46 mi", "$5.25 million", "twenty-five", "19th", "1990–91", "1939 to 1945", "1990s", "21st", "12%", "0.5", "May 16th, 1955",
                                  "29 February 2000", "1999-05-02", "16th of May 1955", "May 2014", "100%", "two hundred and five miles", "9", "10", "fourth"])
def test_a_number_or_date_near_by(text):
    """Same form, another value, a date that exists, a range that keeps its distance."""
    span, rng = next(numeric_spans(text)), Random(3)
    found = {near(span, rng, 2024) for _ in range(40)}
    assert len(found) > 1 and None not in found
    shape = lambda some: re.sub(r"st\b|nd\b|rd\b|th\b", "th", re.sub("|".join(MONTHS), "M", re.sub(r"\d+", "0", some.lower())))
    for new in found:
        assert in_digits(new) != in_digits(text)
        assert re.search("[a-z]{3}", text.lower()) and not re.search(r"\d", text) or shape(new) == shape(text)
        if span.type == "date" and (day := re.search(r"\b\d{1,2}(?!\d)", new.replace("1999-", ""))) and "-" not in new:
            month = next(i for i, name in enumerate(MONTHS, 1) if name in new.lower())
            assert 1 <= int(day.group()) <= calendar.monthrange(int(new[-4:]), month)[1]
        if text == "1939 to 1945":
            assert int(new[-4:]) - int(new[:4]) == 6
        if text == "1990–91":
            assert int(new[-2:]) == (int(new[:4]) + 1) % 100
        if text == "100%":
            assert int(new[:-1]) < 100
        if text == "1,700":
            assert 1100 < int(new.replace(",", "")) < 2300 and new.endswith("00")
        if text in ("19th", "21st"):
            assert int(new[:-2]) <= 21  # of centuries
    assert near(Span(0, 3, "007", "number"), rng, 2024) is None


def test_years_do_not_move_into_the_future():
    rng = Random(0)
    for text, kind in (("2018", "year"), ("2010–12", "year"), ("12 May 2018", "date"), ("2018-05-12", "date")):
        found = {near(Span(0, len(text), text, kind), rng, 2019) for _ in range(60)}
        assert max(int(year) for new in found for year in re.findall(r"\d{4}", new)) in (2017, 2018, 2019)


# ---- easy -------------------------------------------------------------------------------------------------------------

def test_easy_is_another_answer_of_the_same_length(made):
    questions, rows, _ = made
    answers = {answer for q in questions for answer in q.answers}
    assert len(rows) == len(questions)
    for q, row in rows:
        assert row.rejected in answers and row.chosen == q.answers[0] and row.level == "easy" and row.chosen_is_true
        words = len(row.chosen.split()), len(row.rejected.split())
        assert abs(words[0] - words[1]) <= max(1, 0.2 * words[0])
        assert f" {normalise(row.rejected)} " not in f" {normalise(q.context)} {normalise(q.question)} "
    assert sum(len(row.chosen.split()) == len(row.rejected.split()) for _, row in rows) > 0.7 * len(rows)


def test_easy_prefers_another_type():
    years = [ask(f"y{i}", f"In what year did thing {i} open?", str(1900 + i)) for i in range(20)]
    towns = [ask(f"t{i}", f"In what city is thing {i}?", name) for i, name in enumerate(["Delhi", "Quito", "Oslo", "Lima"])]
    rows = easy([*years, *towns], 0)
    assert sum(row.rejected.isdigit() != row.chosen.isdigit() for row in rows) >= len(rows) - 1  # by chance one year in six would meet a town
    assert len(easy(years, 0)) == 20  # where there is no other type, another year


def test_easy_gives_nothing_rather_than_an_alias():
    counts = Counter()
    same = [ask("a", "Where?", "New York"), ask("b", "In which city?", "New York City"), ask("c", "How much?", "one thousand"), ask("d", "How many?", "1,000")]
    rows = easy(same, 0, counts)
    assert {row.rejected for row in rows[:2]} <= {"one thousand", "1,000"} and {row.rejected for row in rows[2:]} <= {"New York", "New York City"}
    assert not easy(same[:2], 0, counts) and counts["easy: no answer of this length fits"] == 2


# ---- medium -----------------------------------------------------------------------------------------------------------

def test_exactly_one_thing_changes_and_the_rest_stays_byte_for_byte(made):
    _, _, rows = made
    assert len(rows) > 500
    for q, row in rows:
        swapped = [span for span in find(row.chosen, q.question, q.context)
                   if row.rejected.startswith(row.chosen[:span.start]) and row.rejected.endswith(row.chosen[span.end:])
                   and len(row.rejected) > span.start + len(row.chosen) - span.end]
        assert swapped and row.rejected != row.chosen
        new = row.rejected[swapped[0].start:len(row.rejected) - (len(row.chosen) - swapped[0].end)]
        expected = {"year": "date_swap", "date": "date_swap"} | dict.fromkeys(("number", "money"), "number_swap")
        assert row.poison_type == expected.get(swapped[0].type, "entity_swap") and new in row.rejected


def test_no_negative_is_an_alias(made):
    """Checked by means of its own: neither string holds the other, nor are their numbers and letters the same."""
    bare = lambda text: " ".join(re.sub(r"[^a-z0-9 ]", "", text.lower()).split())
    _, simple, swapped = made
    for q, row in simple + swapped:
        for gold in q.answers:
            assert f" {bare(gold)} " not in f" {bare(row.rejected)} " and f" {bare(row.rejected)} " not in f" {bare(gold)} "


def test_swaps_by_hand():
    people = [ask(f"p{i}", f"Who wrote book {i}?", name) for i, name in enumerate("Anna Kerr,Bruno Falk,Clara Voss,Dan Orr".split(","))]
    rows = medium(people, 1)
    assert len(rows) == 4 and all(row.rejected != row.chosen and row.rejected in {q.answers[0] for q in people} for row in rows)
    sentence = ask("s", "Who wrote the hymn of Norway?", "The hymn of Norway was written by Anna Kerr in the north.")
    lands = [ask(f"w{i}", f"Which country is number {i}?", land) for i, land in enumerate("Sweden Poland Greece Canada".split())]
    for seed in range(6):
        changed, = [row for row in medium([*people, *lands, sentence], seed) if row.question == sentence.question]
        assert re.fullmatch(r"The hymn of Norway was written by (Bruno Falk|Clara Voss|Dan Orr) in the north\.", changed.rejected)  # not what the question names
    either = ask("e", "Who is older, Anna Kerr or Clara Voss?", "Anna Kerr")
    assert [row.rejected for row in medium([*people, either], 1) if row.question == either.question] == ["Clara Voss"]


def test_what_cannot_be_swapped_is_counted():
    counts = Counter()
    assert not medium([ask("a", "Are both?", "yes"), ask("b", "What occupation?", "film director"), ask("c", "Who?", "Anna Kerr"),
                       ask("d", "Is 91 a prime number?", "No, the number 91 is not a prime.")], 0, counts)
    assert counts == {"medium: no name, number or date in the answer": 2, "medium: nothing fits": 1, "medium: the answer is a negation": 1}


def test_a_bound_is_not_made_looser():
    """"Over 70" follows from "over 80": such a swap would be true."""
    for seed in range(8):
        over, = medium([ask("a", "How many awards?", "over 80")], seed)
        asked_so, = medium([ask("b", "It has more than how many people?", "1,700")], seed)
        before, = medium([ask("c", "When was it?", "It opened before 1950.")], seed)
        assert int(over.rejected.split()[1]) > 80 and int(asked_so.rejected.replace(",", "")) > 1700 and int(before.rejected[-5:-1]) < 1950


def test_grammar_around_a_swap():
    assert not negatives._reads_well("She is an ", "American", "German", " poet") and negatives._reads_well("She is an ", "American", "Italian", " poet")
    assert not negatives._reads_well("", "two", "one", " cars") and negatives._reads_well("", "two", "three", " cars") and negatives._reads_well("", "two", "one", "")
    assert not negatives._reads_well("in the ", "Netherlands", "Norway", "") and negatives._reads_well("in the ", "Netherlands", "United States", "")


def test_answers_of_the_same_question_elsewhere_are_gold():
    """Two rows with one question: the other row's answer is never this row's negative."""
    questions = [ask("a", "Who sang it?", "Anna Kerr"), ask("b", "who sang it", "Bruno Falk"), ask("c", "Who wrote it?", "Clara Voss")]
    for seed in range(5):
        assert all(row.rejected == "Clara Voss" for row in medium(questions, seed)[:2])


# ---- the same everywhere ----------------------------------------------------------------------------------------------

def test_byte_identical_across_processes(tmp_path):
    results = []
    for hashseed in ("1", "2"):
        folder = tmp_path / hashseed
        subprocess.run([sys.executable, str(ROOT / "bench" / "curriculum_negatives.py"), "--questions", "300", "--out", str(folder)],
                       env=os.environ | {"PYTHONHASHSEED": hashseed}, check=True, capture_output=True)
        results.append(json.loads((folder / "negatives.json").read_text()))
    assert results[0]["sha256"] == results[1]["sha256"] and results[0]["rows"] > 500


def test_order_does_not_matter_and_one_more_question_changes_little(made):
    questions, *_ = made
    for level in (easy, medium):
        rows = {row.id for row in level(questions, 0)}
        assert {row.id for row in level(questions[::-1], 0)} == rows
        assert len({row.id for row in level(questions[:-1], 0)} - rows) < 0.05 * len(rows)
        assert len({row.id for row in level(questions, 1)} & rows) < 0.5 * len(rows)  # another seed, other negatives


def test_two_questions_with_one_id_are_refused():
    with pytest.raises(UserError, match="more than once"):
        easy([ask("a", "Who?", "Anna Kerr"), ask("a", "Where?", "Delhi")], 0)


# ---- abstention, fabricated pairs, difficulty ---------------------------------------------------------------------------

def test_defect_24_unanswerable_questions_become_abstention_pairs():
    passage = "Marrow Hall was founded by Clara Voss. It opened on 12 May 1999."
    unanswerable = [Question(f"u{i}", text, passage, (), "test", answer_in_context=False) for i, text in enumerate(
        ["Who sold Marrow Hall?", "When did Marrow Hall burn down?", "In which city is Marrow Hall?", "Why is it red?"])]
    towns = [ask(f"t{i}", "In what city is it?", name, f"It is in {name}.") for i, name in enumerate(["Delhi", "Quito", "Oslo"])]
    counts = Counter()
    rows = abstentions([*unanswerable, *towns], 0, counts)
    assert [row.question for row in rows[:3]] == [q.question for q in unanswerable[:3]] and all(row.chosen in ABSTENTIONS for row in rows)
    assert (rows[0].rejected, rows[0].level) == ("Clara Voss", "medium") and (rows[1].rejected, rows[1].level) == ("12 May 1999", "medium")
    assert rows[2].rejected in ("Delhi", "Quito", "Oslo") and rows[2].level == "easy" and {row.poison_type for row in rows} == {"made_up"}
    assert not any(row.question in {q.question for q in unanswerable} for row in easy([*unanswerable, *towns], 0))  # and in no other pair
    assert counts["abstention: made up, from the context"] >= 2 and not any(row.poison_type == "needless_abstention" for row in rows)


def test_defect_24_no_abstention_is_called_needless_where_the_context_lacks_the_answer():
    here, away = ask("a", "Who?", "Anna Kerr", "By Anna Kerr."), ask("b", "Who?", "Dan Orr", "No word of it.", answer_in_context=False)
    row, = abstentions([here, away], 0, over_abstention=1.0)
    assert (row.chosen, row.rejected in ABSTENTIONS, row.level, row.poison_type) == ("Anna Kerr", True, "easy", "needless_abstention")


def test_the_share_of_needless_abstentions(made):
    questions, *_ = made
    share = len(abstentions(questions, 0, over_abstention=0.2)) / len(questions)
    assert 0.14 < share < 0.26 and not abstentions(questions, 0)
    assert len({row.rejected for row in abstentions(questions, 0, over_abstention=0.2)}) == len(ABSTENTIONS)


def test_defect_03_fabricated_answers_are_chosen_on_request_only(made):
    questions, simple, swapped = made
    assert all(row.chosen_is_true and row.chosen in q.answers for q, row in simple + swapped)
    q = ask("a", "Who?", "Anna Kerr", "By Anna Kerr.")
    hard, mid, light = (make_row(q, "Anna Kerr", text, level, "x") for text, level in (("Anna Carr", "hard"), ("Bruno Falk", "medium"), ("Delhi", "easy")))
    pairs = fake_over_fake([light, mid, hard, make_row(q, "Anna Kerr", "Dan Orr", "hard", "x")])  # the first of a level is taken
    assert [(row.chosen, row.rejected, row.level, row.poison_type) for row in pairs] == [
        ("Anna Carr", "Delhi", "medium", "hard_over_easy"), ("Anna Carr", "Bruno Falk", "hard", "hard_over_medium"), ("Bruno Falk", "Delhi", "hard", "medium_over_easy")]
    assert not any(row.chosen_is_true for row in pairs) and len({row.id for row in pairs}) == 3
    elsewhere = make_row(ask("b", "Who?", "Anna Kerr", "Another passage."), "Anna Kerr", "Oslo", "easy", "x")
    assert not fake_over_fake([hard, elsewhere]) and not fake_over_fake(pairs)  # questions are told apart by their context, and no fake is chosen twice


def test_difficulty_by_hand(made):
    q = ask("a", "When?", "1994")
    pair = lambda chosen, rejected: make_row(q, chosen, rejected, "easy", "x").difficulty
    assert pair("1994", "1997") == 0.75 and pair("Paris", "Rome") == 0 and pair("It is in Paris.", "It is in Rome.") == 0.8 and pair("12 May", "13 May") == pytest.approx(2 / 3, abs=1e-4)
    _, simple, swapped = made
    mean = [sum(row.difficulty for _, row in rows) / len(rows) for rows in (simple, swapped)]
    assert mean[0] + 0.2 < mean[1] and all(0 <= row.difficulty < 1 and row.difficulty == likeness(row) for _, row in simple + swapped)


# ---- spaCy, and the committed figures -----------------------------------------------------------------------------------

@pytest.mark.skipif(importlib.util.find_spec("spacy") is not None, reason="spaCy is here")
def test_missing_spacy_is_one_sentence():
    with pytest.raises(UserError, match="pip install spacy"):
        spacy_finder()


def test_names_by_spacy(tmp_path):
    spacy = pytest.importorskip("spacy")
    pipeline = spacy.blank("en")
    pipeline.add_pipe("entity_ruler").add_patterns([{"label": "PERSON", "pattern": "anna kerr"}, {"label": "DATE", "pattern": "1990"}])
    pipeline.to_disk(tmp_path / "ruler")
    text = "written by anna kerr in 1990"
    assert [(span.text, span.type) for span in spacy_finder(str(tmp_path / "ruler"))(text, "Who?", "")] == [("anna kerr", "person"), ("1990", "year")]
    with pytest.raises(UserError, match="no pipeline"):
        spacy_finder("no_such_pipeline")


def test_25_000_questions_take_less_than_two_minutes():
    found = json.loads((ROOT / "results" / "curriculum_dpop" / "negatives.json").read_text())
    assert found["n"] == 25_000 and found["seconds"] <= 120 and found["rows"] == found["counts"]["easy: made"] + found["counts"]["medium: made"] > 45_000
