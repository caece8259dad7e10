"""Hand-worked values of the answer metrics, and equality with the library that defines BLEU."""
import random

import pytest
import sacrebleu

from eval.qa_metrics import (alias_match, bleu, bleu_unsmoothed, canonical, contains, exact_match, f1, normalise, rouge_l, rouge_n, word_count,
                             yes_no)


def test_normalise_is_squads_rule_with_its_faults():
    assert normalise("  The Beatles' \n song, an  \"Apple\"! ") == "beatles song apple"
    assert normalise("theatre and anathema") == "theatre and anathema"  # articles are whole words
    assert normalise("rock-n-roll") == "rocknroll" and normalise("4.5") == "45" and normalise("A") == ""
    assert normalise("1844–1846") == "1844–1846"  # ASCII punctuation only


def test_exact_match_and_f1_by_hand():
    assert exact_match("the Delhi.", ["Mumbai", "delhi"]) == 1 and exact_match("New Delhi", ["Delhi"]) == 0
    # tokens: {in, new, delhi} and {new, delhi, india}: 2 shared, P = R = 2/3
    assert f1("in New Delhi", ["New Delhi, India"]) == pytest.approx(2 / 3)
    assert f1("in New Delhi", ["nothing", "the New Delhi"]) == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))  # the best gold counts
    assert f1("yes yes", ["yes"]) == pytest.approx(2 / 3)  # a repeated token matches once
    assert f1("", ["Delhi"]) == 0 and f1("the", ["A"]) == 1 and f1("Delhi", ["A"]) == 0


@pytest.mark.parametrize("metric", [exact_match, f1, contains, alias_match, rouge_l, bleu, bleu_unsmoothed])
def test_a_bare_string_or_no_gold_is_a_mistake(metric):
    for golds in ("Delhi", []):
        with pytest.raises(ValueError, match="non-empty list"):
            metric("d", golds)


def test_contains_wants_whole_words():
    assert contains("It is in New Delhi, India.", ["Delhi"]) == 1
    assert contains("He was an American.", ["America"]) == 0 and contains("Delhi", ["New Delhi"]) == 0
    assert contains("grade B", ["A"]) == 0 and contains("the", ["A"]) == 1  # a gold that normalises to nothing stands in everything
    assert contains("It is not Delhi.", ["Delhi"]) == 1  # what it cannot see


def test_verbosity_changes_exact_match_and_not_contains():
    gold = ["President Richard Nixon"]
    for answer in ("President Richard Nixon", "He was named after President Richard Nixon.", "I checked twice: President Richard Nixon, that is all."):
        assert contains(answer, gold) == 1
    assert [exact_match(a, gold) for a in ("President Richard Nixon.", "It was President Richard Nixon.")] == [1, 0]


@pytest.mark.parametrize("a, b", [("Two", "2"), ("the first", "1st"), ("5th of May 1990", "May 5, 1990"), ("Jan 5", "January 5th"), ("U.S.", "United States"),
                                  ("Beyoncé", "beyonce"), ("AT&T", "AT and T"), ("Sci-Fi", "sci fi"), ("1844–1846", "1844-1846"),
                                  ("Mercury (planet)", "Mercury"), ("St. Louis", "Saint Louis"), ("Mt Everest", "Mount Everest"), ("Dr. No", "Doctor No"),
                                  ("U.S. Army", "United States Army"), ("the US Senate", "United States Senate"), ("Simon & Garfunkel", "Simon and Garfunkel")])
def test_aliases(a, b):
    assert alias_match(a, [b]) == alias_match(b, [a]) == 1 and canonical(a) == canonical(b)


@pytest.mark.parametrize("a, b", [("4.5", "45 million"), ("May 5", "May 6"), ("May 5, 1990", "May 5"), ("(1990)", "(1991)"), ("third", "3"),
                                  ("no", "yes"), ("Georgia", "George"),
                                  ("tell us", "tell United States"), ("U.S.S.R.", "U.S."), ("Main St", "Main"), ("Saint Paul", "Saint Peter")])
def test_no_aliases(a, b):
    assert alias_match(a, [b]) == 0
    assert canonical("4.5") != canonical("45")


def test_yes_no_and_words():
    assert [yes_no(text) for text in ("Yes.", "no", "No, it is", "none", "")] == ["yes", "no", "", "", ""]
    assert word_count(" two  words\n") == 2 and word_count("") == 0


def test_rouge_by_hand():
    # Lin 2004, §3.1's example: "police killed the gunman" against "police kill the gunman": LCS 3, 4 words each
    assert rouge_l("police kill the gunman", ["Police killed the gunman."]) == pytest.approx(3 / 4)
    assert rouge_l("the gunman kill police", ["police killed the gunman"]) == pytest.approx(2 / 4)
    assert rouge_l("a b c d e", ["a x c"]) == pytest.approx(2 * (2 / 5) * (2 / 3) / (2 / 5 + 2 / 3))
    assert rouge_n("police kill the gunman", ["police killed the gunman"], 2) == pytest.approx(1 / 3)
    assert rouge_n("Delhi", ["Delhi"], 2) == 0 and rouge_n("Delhi", ["Delhi"], 1) == 1 and rouge_l("", ["x"]) == rouge_l("!", ["!"]) == 0


def test_defect_05_unsmoothed_bleu_of_an_exact_match_of_two_tokens_is_zero():
    assert bleu_unsmoothed("New Delhi", ["New Delhi"]) == bleu_unsmoothed("Delhi", ["Delhi"]) == bleu_unsmoothed("", ["Delhi"]) == 0
    assert bleu_unsmoothed("Allie Goertz wrote it", ["Allie Goertz wrote it"]) == 1
    assert bleu("New Delhi", ["New Delhi"]) == pytest.approx(1) and bleu("Delhi", ["Delhi"]) == pytest.approx(1)
    assert exact_match("New Delhi", ["New Delhi"]) == 1


def test_bleu_by_hand():
    # the reference minus its last word: every n-gram of the answer is in it (5, 4, 3, 2), so only the brevity penalty is left
    assert bleu_unsmoothed("one two three four five", ["one two three four five six"]) == pytest.approx(2.718281828 ** (1 - 6 / 5))
    # of 1- to 4-grams 3/4, 1/3, 0/2, 0/1 match; the two zeros become 1/2 of a count and 1/4 of a count
    expected = (3 / 4 * 1 / 3 * (1 / 2) / 2 * (1 / 4) / 1) ** 0.25
    assert bleu("b a c d", ["a c e b"]) == pytest.approx(expected)
    assert bleu_unsmoothed("b a c d", ["a c e b"]) == 0


def test_bleu_is_sacrebleus():
    draw = random.Random(0)
    for _ in range(200):
        a, g = (" ".join(draw.choices(["red", "fish", "U.S.", "1,000", "don't", "a", "b", "c"], k=draw.randint(1, 9))) for _ in range(2))
        assert bleu(a, [g]) == pytest.approx(sacrebleu.sentence_bleu(a, [g]).score / 100, abs=1e-12)
        plain = sacrebleu.corpus_bleu([a], [[g]], smooth_method="none").score / 100
        assert bleu_unsmoothed(a, [g]) == pytest.approx(plain, abs=1e-12)
