"""The recheck of published per-item results, on files of their layout written here, and the claims page made from it."""
import json
import math
import random

import pytest

from eval.render import to_markdown
from runtime.config import ROOT
from runtime.errors import UserError
from studies.curriculum_dpop import claims, form_effects, per_item, recheck
from studies.curriculum_dpop.claims import BETTER, CORRECTED, LOST, UNCLEAR, WORSE

RESULTS = ROOT / "results" / "curriculum_dpop"
N = 60


def answer(i, generated, gold, flagged=False, bert=0.5, **more):
    """A row of the similarity kind, or of the faithfulness kind where a faithfulness score is given."""
    row = {"question": f"Question {i}?", "generated": generated, "right_answer": gold, "bert_score": bert, "is_hallucinated": flagged} | more
    return row if "faithfulness_score" in row else row | {"sim_right": 0.25 if flagged else 0.75, "sim_halluc": 0.5}


def truth(i, generated="It is so.", truthful=True):
    return {"question": f"Question {i}?", "generated": generated, "truth_prob": 0.75 if truthful else 0.25, "is_truthful": truthful,
            "logp_yes": math.log(0.6 if truthful else 0.2), "logp_no": math.log(0.2 if truthful else 0.6)}


def similarity_rows(flags=frozenset(), n=N):
    return [answer(i, f"place {i}", f"place {i}" if i % 2 else "elsewhere", i in flags) for i in range(n)]


def metrics_of(rows):
    """The true means of similarity rows of which every second one has its right answer of two words, as their metrics file names them."""
    share = sum(row["is_hallucinated"] for row in rows) / len(rows)
    return {"model": "m", "hallucination_rate": share, "avg_confidence_margin": 0.25 - 0.5 * share, "avg_bert_score": 0.5,
            "avg_bleu": 0.0, "avg_rouge_l": sum(row["generated"] == row["right_answer"] for row in rows) / len(rows), "total_samples": len(rows)}


def save(folder, run, rows, metrics=None, prefix="detailed_"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{prefix}{run}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if metrics is not None:
        (folder / f"metrics_{run}.json").write_text(json.dumps(metrics))
    return folder


def look(folder, **options):
    return recheck.recheck(folder, **({"resamples": 200} | options))


def line(lines, key):
    return next(found for found in lines if found["key"] == key)


# ---- the means ------------------------------------------------------------------------------------------------------------

def test_a_wrong_mean_is_found(tmp_path):
    rows = similarity_rows({3, 4, 5})
    save(tmp_path, "baseline", rows, metrics_of(rows))
    save(tmp_path, "run", rows, metrics_of(rows) | {"avg_bert_score": 0.5004, "avg_rouge_l": 0.75})
    found = look(tmp_path)["kinds"]["similarity"]["runs"]
    assert [mean["agrees"] for mean in found["baseline"]["means"]] == [True] * 6 and all(mean["decimals"] >= 12 for mean in found["baseline"]["means"])
    assert {mean["name"]: mean["from"] for mean in found["baseline"]["means"]} == {
        "hallucination_rate": "rows", "avg_confidence_margin": "rows", "avg_bert_score": "rows", "avg_bleu": "texts", "avg_rouge_l": "texts", "total_samples": "rows"}
    wrong = {mean["name"]: (mean["recomputed"], mean["decimals"]) for mean in found["run"]["means"] if not mean["agrees"]}
    assert wrong == {"avg_bert_score": (0.5, 3), "avg_rouge_l": (0.5, 0)}
    assert recheck.summary(look(tmp_path)).count("DOES NOT AGREE") == 2


def test_decimals_by_hand():
    assert recheck.decimals(0.25, 0.25) == 16 and recheck.decimals(0.1234, 0.1238) == 3 and recheck.decimals(0.1234, 0.1240) == 2
    assert recheck.decimals(0.2, 0.9) == 0 and recheck.decimals(0.1, 0.1 + 1e-16) >= 15


def test_what_cannot_be_made_again_is_named(tmp_path):
    rows = [{key: value for key, value in row.items() if key != "bert_score"} for row in similarity_rows()]
    save(tmp_path / "a", "baseline", rows, metrics_of(rows) | {"avg_bleu": None, "avg_meteor": 0.5, "avg_confidence_margin": math.nan})
    save(tmp_path / "b", "baseline", [truth(i) for i in range(N)], {"mc1": 0.3, "mc2": 0.4, "gen_truthfulness": 1.0, "gen_avg_prob": 0.75})
    found = look(tmp_path)["kinds"]
    why = {mean["name"]: mean.get("why") for mean in found["similarity"]["runs"]["baseline"]["means"]}
    assert "bert_score" in why["avg_bert_score"] and why["avg_bleu"] == why["avg_confidence_margin"] == "no number in the metrics file"
    assert why["avg_meteor"] == "unknown to this check" and why["avg_rouge_l"] is None and found["similarity"]["runs"]["baseline"]["missing"] == ["bert_f1"]
    assert {mean["name"]: mean.get("why") for mean in found["truthfulqa"]["runs"]["baseline"]["means"]} == {
        "mc1": "not stored per row", "mc2": "not stored per row", "gen_truthfulness": None, "gen_avg_prob": None}


# ---- reading --------------------------------------------------------------------------------------------------------------

def test_kinds_are_known_by_fields_not_by_folders(tmp_path):
    save(tmp_path / "TruthfulQA", "baseline", similarity_rows())  # the wrong folder, on purpose
    save(tmp_path / "x" / "y", "baseline", [answer(i, "a b", "a b", faithfulness_score=0.75) for i in range(N)], {"total": N})
    save(tmp_path / "z", "baseline", [truth(i) for i in range(N)], {"gen_truthfulness": 1.0}, prefix="detailed_gen_")
    save(tmp_path / "z", "other", [{"question": "q", "generated": "g", "colour": 1}], {"colour": 1.0})
    (tmp_path / "z" / "metrics_lost.json").write_text("{}")
    save(tmp_path / "z", "alone", [truth(i) for i in range(N)], prefix="detailed_gen_")
    result = look(tmp_path)
    assert {kind: list(entry["runs"]) for kind, entry in result["kinds"].items()} == {
        "similarity": ["baseline"], "faithfulness": ["baseline"], "truthfulqa": ["alone", "baseline"]}
    assert result["kinds"]["truthfulqa"]["runs"]["baseline"]["files"].keys() == {"z/detailed_gen_baseline.jsonl", "z/metrics_baseline.json"}
    notes = "\n".join(result["notes"])
    assert "detailed_other.jsonl skipped" in notes and "colour" in notes and "metrics_lost.json: no per-item rows" in notes
    assert "TruthfulQA/detailed_baseline.jsonl: no metrics_baseline.json" in notes


@pytest.mark.parametrize("text, said", [
    ("", "holds no row"), ("{\n", "line 1: not valid JSON"), ("[1]\n", "line 1: a JSON object"), ('{"question": "q"}\n', 'line 1: no "generated"'),
    ('{"question": "q", "generated": 3}\n', '"generated" is not text'), ('{"question": "q", "generated": "g", "truth_prob": NaN}\n', '"truth_prob" is not a finite number'),
    ('{"question": "q", "generated": "g", "truth_prob": 0.5}\n{"question": "q", "generated": "g"}\n', 'line 2: no "truth_prob"'),
    ('{"question": "q", "generated": "g", "truth_prob": 0.5, "is_truthful": 1}\n', '"is_truthful" is not true or false'),
    ('{"question": "q", "generated": "g", "truth_prob": true}\n', '"truth_prob" is not a finite number')])
def test_damaged_rows_are_one_sentence(tmp_path, text, said):
    (tmp_path / "detailed_baseline.jsonl").write_text(text)
    with pytest.raises(UserError, match=said):
        look(tmp_path)


def test_other_mistakes_are_one_sentence(tmp_path, capsys):
    with pytest.raises(UserError, match="no detailed_"):
        look(tmp_path)
    with pytest.raises(UserError, match="no folder"):
        recheck.main([str(tmp_path / "nowhere")])
    save(tmp_path / "a", "first", similarity_rows())
    for flags, why in ((["--resamples", "0"], "--resamples"), (["--seed", "-1"], "--seed"), (["--to", str(tmp_path)], "--to"),
                       (["--to", str(tmp_path / "a" / "detailed_first.jsonl" / "x.json")], "--to")):
        with pytest.raises(UserError, match=why):
            recheck.main([str(tmp_path), *flags])
    with pytest.raises(UserError, match="--baseline: no run is called 'baseline'; there are first"):
        look(tmp_path)
    save(tmp_path / "b", "first", similarity_rows())
    with pytest.raises(UserError, match="a second run called 'first'"):
        look(tmp_path)
    (tmp_path / "b" / "detailed_first.jsonl").unlink()
    (tmp_path / "a" / "metrics_first.json").write_text("{")
    with pytest.raises(UserError, match="metrics_first.json: not valid JSON"):
        look(tmp_path, baseline="first")


# ---- paired by question ------------------------------------------------------------------------------------------------------

def test_mcnemar_by_hand(tmp_path):
    """Flagged in the baseline alone: 6, in the run alone: 1. p = 2 (C(7,0) + C(7,1)) / 2^7 = .125."""
    save(tmp_path, "baseline", similarity_rows({0, 1, 2, 3, 4, 5, 20}))
    save(tmp_path, "run", similarity_rows({10, 20}))
    found = look(tmp_path)["kinds"]["similarity"]["comparisons"]["run"]
    test = line(found["published"], "flagged")
    assert test["p"] == pytest.approx(0.125) and (test["only_first"], test["only_second"]) == (6, 1)
    assert test["difference"]["value"] == pytest.approx(-5 / N) and test["difference"]["n"] == N and test["p_holm"] >= test["p"]
    assert line(found["own"], "exact")["p"] == 1 and line(found["own"], "exact")["difference"]["value"] == 0
    # the margin moves by .5 on those seven: mean -.5 * -5 / N, every sign pattern of seven equal values: p near P(|sum| >= 5) = .125
    assert line(found["published"], "margin")["difference"]["value"] == pytest.approx(2.5 / N) and line(found["published"], "margin")["p"] == pytest.approx(0.125, abs=0.08)


def test_rows_in_another_order_are_paired_by_question(tmp_path):
    first, second = similarity_rows({0, 1, 2}), similarity_rows({2, 3})
    for folder, rows in (("straight", second), ("shuffled", random.Random(0).sample(second, N))):
        save(tmp_path / folder, "baseline", first)
        save(tmp_path / folder, "run", rows)
    straight, shuffled = look(tmp_path / "straight"), look(tmp_path / "shuffled")
    one, two = (found["kinds"]["similarity"]["comparisons"]["run"] for found in (straight, shuffled))
    assert one["published"] == two["published"] and one["own"] == two["own"] and line(two["published"], "flagged")["only_second"] == 1
    assert one["alignment"]["same_order"] and not two["alignment"]["same_order"] and any("another order" in note for note in shuffled["notes"])


def test_repeated_and_foreign_questions_are_left_out_and_counted(tmp_path):
    first, second = similarity_rows({0}), similarity_rows({0, 7})
    second[5] = second[7]  # question 5 is missing, question 7 is there twice
    second[9] = answer(99, "x", "y")
    second[11] = second[11] | {"right_answer": "another"}
    save(tmp_path, "baseline", first)
    save(tmp_path, "run", second)
    result = look(tmp_path)
    found = result["kinds"]["similarity"]
    assert found["comparisons"]["run"]["alignment"] == {"paired": N - 3, "same_order": False, "repeated": 1, "only_in_first": 2, "only_in_second": 1, "gold_differs": 1}
    assert line(found["comparisons"]["run"]["published"], "flagged")["difference"]["n"] == N - 3
    assert line(found["comparisons"]["run"]["published"], "flagged")["only_second"] == 0  # question 7, flagged twice, is not among the pairs
    assert found["runs"]["run"]["repeated_questions"] == 1 and any("more than once" in note for note in result["notes"])


def test_holm_is_over_one_family_of_all_kinds(tmp_path):
    for kind, rows in (("s", [similarity_rows(), similarity_rows(set(range(12)))]), ("t", [[truth(i) for i in range(N)], [truth(i, truthful=i > 8) for i in range(N)]])):
        for run, these in zip(("baseline", "run"), rows):
            save(tmp_path / kind, run, these)
    result = look(tmp_path)
    tests = [test for entry in result["kinds"].values() for test in entry["comparisons"]["run"]["published"]]
    assert {test["family"] for test in tests} == {7} and len(tests) == 7  # five of similarity, two of TruthfulQA
    least = min(tests, key=lambda test: test["p"])
    assert least["p"] == pytest.approx(2 / 2**12) and least["p_holm"] == pytest.approx(7 * 2 / 2**12)


# ---- the form of an answer -----------------------------------------------------------------------------------------------------

def test_a_planted_length_confound_is_found(tmp_path):
    """BERT-F1 depends on the number of words alone and the run writes sentences: worse on average, no difference at equal length."""
    def bert(text):
        return 0.75 if len(text.split()) <= 3 else 0.25
    short = [f"place {i}" for i in range(N)]
    long = [text if i % 3 else f"the answer to that is {text}" for i, text in enumerate(short)]
    for run, texts in (("baseline", short), ("run", long)):
        save(tmp_path, run, [answer(i, text, short[i], bert=bert(text)) for i, text in enumerate(texts)])
    found = look(tmp_path)["kinds"]["similarity"]
    assert line(found["comparisons"]["run"]["published"], "bert_f1")["difference"]["value"] == pytest.approx(-0.5 / 3)
    same = line(found["comparisons"]["run"]["same_length"], "bert_f1")
    assert same["difference"]["value"] == 0 and same["difference"]["n"] == 40 and same["p"] == 1
    effect = found["runs"]["run"]["by_length"]["long_minus_short"]["bert_f1"]
    assert effect["difference"]["value"] == -0.5 and effect["inside"] == [0.25, 20] and effect["outside"] == [0.75, 40] and effect["p"] < 1e-6
    assert found["runs"]["baseline"]["by_length"]["long_minus_short"]["bert_f1"] is None  # it wrote no long answer
    assert [(band["words"], band["n"]) for band in found["runs"]["run"]["by_length"]["bands"]] == [([2, 3], 40), ([6, 10], 20)]
    assert line(found["comparisons"]["run"]["own"], "contained")["p"] == 1  # the answer is there either way


def test_one_answer_in_two_spellings(tmp_path):
    save(tmp_path, "baseline", [answer(i, "Delhi.", "Delhi", bert=0.25, flagged=i < 30) for i in range(40)] + [answer(i, "x", "y") for i in range(40, N)])
    save(tmp_path, "run", [answer(i, "the delhi", "Delhi", bert=0.75) for i in range(40)] + [answer(i, "z", "y") for i in range(40, N)])
    found = look(tmp_path)["kinds"]["similarity"]["comparisons"]["run"]
    change = line(found["same_answer"], "bert_f1")["difference"]
    assert (change["value"], change["n"], change["low"], change["high"]) == (0.5, 40, None, None)  # forty equal changes say nothing about their spread
    assert line(found["same_answer"], "flagged")["only_first"] == 30 and line(found["own"], "exact")["difference"]["value"] == 0


def test_defect_05_bleu_is_zero_on_short_exact_matches(tmp_path):
    rows = [answer(i, text, text) for i, text in enumerate(["Delhi", "Arthur's Magazine", "one two three four", "one two three four five"])]
    save(tmp_path, "baseline", rows)
    found = look(tmp_path)["kinds"]["similarity"]["runs"]["baseline"]
    assert (found["forms"]["bleu_zero_same_text"]["count"], found["forms"]["bleu_zero_same_text"]["n"]) == (2, 4)
    assert found["figures"]["exact"]["value"] == 1 and found["figures"]["bleu"]["value"] == pytest.approx(0.5)


def test_defect_04_06_07_forms_by_hand(tmp_path):
    rows = [answer(0, "No", "yes", flagged=False), answer(1, "Yes, it is.", "no", flagged=True), answer(2, "yes", "yes", flagged=True),  # opposite, opposite, right
            answer(3, "It is.", "yes", flagged=True), answer(4, "Paris", "Rome", flagged=True), answer(5, "Australia.", "Australia", bert=0.0),
            answer(6, "a big red house", "the big red house", bert=0.0)]
    save(tmp_path, "baseline", rows)
    forms = look(tmp_path)["kinds"]["similarity"]["runs"]["baseline"]["forms"]
    counts = {key: (found["count"], found["n"]) for key, found in forms.items() if isinstance(found, dict)}
    assert counts["yes_no_opposite_flagged"] == (1, 2) and counts["yes_no_flipped_flagged"] == (0, 1) and counts["yes_no_unmatched_flagged"] == (2, 3)
    assert counts["exact_flagged"] == (1, 3) and counts["no_overlap_flagged"] == (3, 4)
    assert counts["bert_zero"] == (2, 7) and counts["bert_zero_right"] == (2, 2) and counts["bert_zero_one_word_gold"] == (1, 2)
    assert counts["flag_against_rule"] == (0, 7) and "stored_bleu_zero" not in counts and counts["same_text"] == (1, 7)


def test_long_answers_are_set_against_short_ones_and_not_against_those_between(tmp_path):
    """Six words and more against three and fewer; four and five belong to neither."""
    rows = [answer(number * 20 + i, "a " * words, "b", bert=bert) for number, (words, bert) in enumerate(((1, .9), (3, .7), (4, 0.), (5, 0.), (6, .2), (9, .4))) for i in range(20)]
    save(tmp_path, "baseline", rows)
    found = look(tmp_path)["kinds"]["similarity"]["runs"]["baseline"]["by_length"]
    effect = found["long_minus_short"]["bert_f1"]
    assert (effect["inside"], effect["outside"]) == ([pytest.approx(0.3), 40], [pytest.approx(0.8), 40]) and effect["difference"]["value"] == pytest.approx(-0.5)
    assert [(band["words"], band["n"]) for band in found["bands"]] == [([0, 1], 20), ([2, 3], 20), ([4, 5], 40), ([6, 10], 40)]


def test_a_question_that_either_run_has_twice_is_paired_with_nothing(tmp_path):
    once = [answer(i, "a", "b") for i in range(4)]
    for a, b in ((once, [*once, once[0]]), ([*once, once[0]], once)):
        here, there, found = recheck.paired_places(a, b)
        assert (here, there) == ([1, 2, 3], [1, 2, 3]) and (found["paired"], found["repeated"], found["same_order"]) == (3, 1, False)


def test_flags_against_their_rule_and_stored_zeros_are_counted(tmp_path):
    rows = [answer(i, "a", "a", flagged=i < 3, faithfulness_score=0.25 if i < 2 else 0.5, bleu=0.0) for i in range(20)]
    save(tmp_path, "baseline", rows)
    forms = look(tmp_path)["kinds"]["faithfulness"]["runs"]["baseline"]["forms"]
    assert forms["flag_against_rule"]["count"] == 1 and forms["stored_bleu_zero"]["count"] == 20


def test_defect_11_run_on_answers(tmp_path):
    rows = [truth(i, "It is so.\nQ: And why?\nA: It", True) for i in range(20)] + [truth(i, "It is so.", i < 30) for i in range(20, N)]
    save(tmp_path, "baseline", rows)
    found = look(tmp_path)["kinds"]["truthfulqa"]["runs"]["baseline"]
    effect = found["forms"]["truthful_by_run_on"]
    assert effect["inside"] == [1.0, 20] and effect["outside"] == [0.25, 40] and effect["difference"]["value"] == 0.75 and effect["p"] < 1e-4
    assert effect["difference"]["low"] <= 0.75 <= effect["difference"]["high"] and found["figures"]["cut"]["value"] == pytest.approx(1 / 3)
    assert found["forms"]["truthful_by_ignorance"] is None and found["forms"]["yes_or_no_mass"]["mean"] == pytest.approx(0.8)


@pytest.mark.parametrize("text, said", [
    ("I don't know.", True), ("The context does not mention it.", True), ("That is not mentioned in the text", True), ("It cannot be determined.", True),
    ("There is no evidence for that", True), ("Unknown.", True), ("I know that it is Paris.", False), ("No.", False), ("It is not far.", False), ("You know nothing.", False)])
def test_ignorance(text, said):
    assert bool(per_item.IGNORANCE.search(text)) is said


def test_the_same_baseline_under_two_prompts(tmp_path):
    save(tmp_path / "a", "baseline", [answer(i, "Delhi", "Delhi", bert=1.0) for i in range(N)])
    save(tmp_path / "b", "baseline", [answer(i, "It is Delhi, I think.", "Delhi", bert=0.5, faithfulness_score=0.75) for i in range(N)])
    rows = look(tmp_path)["two_prompts"]["rows"]
    assert (line(rows, "exact")["first"], line(rows, "exact")["second"]) == (1, 0) and line(rows, "contained")["difference"]["value"] == 0
    assert line(rows, "words")["difference"]["value"] == 4 and line(rows, "exact")["difference"]["n"] == N


# ---- the whole ----------------------------------------------------------------------------------------------------------------

def test_the_log_by_hand(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss,dpo_loss,pos_loss\n" + "".join(f"{i},{0.5 + (i == 7):.6f},0.500000,{float(i == 7):.6f}\n" for i in range(60)) + "60,0.0,0.0,0.0\n")
    log = recheck.check_log(path)
    assert log == {"rows": 61, "rows_of_zeros": 1, "per_steps": 50, "hinge_active": 1, "dpo_loss": [0.5, 0.5], "hinge_max": 1.0, "loss_off_by": 0.0}
    for text in ("step,loss\n1,2\n", "step,loss,dpo_loss,pos_loss\n1,x,0,0\n", "step,loss,dpo_loss,pos_loss\n", "step,loss,dpo_loss,pos_loss\n1,nan,nan,0\n"):
        path.write_text(text)
        with pytest.raises(UserError, match="--log"):
            recheck.check_log(path)


def three_kinds(folder):
    """All three kinds with a baseline and the two published runs."""
    rng = random.Random(0)
    for number, run in enumerate(("baseline", "dpop_best", "dpop_last")):
        flags = set(rng.sample(range(N), 5 + 9 * number))
        save(folder / "a", run, similarity_rows(flags), metrics_of(similarity_rows(flags)))
        save(folder / "b", run, [answer(i, "a b." if number else "a b", "a b", i in flags, 0.9 if number else 0.2, faithfulness_score=0.25 if i in flags else 0.75) for i in range(N)],
             {"hallucination_rate": len(flags) / N})
        save(folder / "c", run, [truth(i, truthful=i not in flags) for i in range(N)], {"mc1": 0.25, "mc2": 0.4, "gen_truthfulness": 1 - len(flags) / N})
    return folder


def test_the_command_writes_the_same_plain_json_twice(tmp_path, capsys):
    folder = three_kinds(tmp_path / "in")
    for name in ("one", "two"):
        recheck.main([str(folder), "--to", str(tmp_path / f"{name}.json"), "--resamples", "200"])
    text = (tmp_path / "one.json").read_text()
    assert text == (tmp_path / "two.json").read_text() and str(tmp_path) not in text

    def no_such_number(name):
        raise AssertionError(name)
    result = json.loads(text, parse_constant=no_such_number)  # NaN and Infinity are no JSON
    assert set(result["kinds"]) == {"similarity", "faithfulness", "truthfulqa"} and "Question" not in text  # figures only, no text
    assert "agrees to" in capsys.readouterr().out


# ---- the claims page ------------------------------------------------------------------------------------------------------------

def outcome(value, p, p_holm=None):
    return {"difference": {"value": value}, "p": p, "p_holm": p if p_holm is None else p_holm}


def test_verdicts_by_hand():
    assert claims.verdict(outcome(0.1, 0.01), 1) == BETTER and claims.verdict(outcome(0.1, 0.01), -1) == WORSE
    assert claims.verdict(outcome(-0.1, 0.01), -1) == BETTER and claims.verdict(outcome(-0.1, 0.01), 1) == WORSE
    assert claims.verdict(outcome(0.1, 0.01), 0) == "significantly more" and claims.verdict(outcome(-0.1, 0.01), 0) == "significantly less"
    assert claims.verdict(outcome(0.1, 0.05), 1) == UNCLEAR and claims.verdict(outcome(0.1, 0.049), 1) == BETTER  # the boundary is no success
    assert claims.verdict(outcome(0.1, 0.01, 0.05), 1) == CORRECTED and claims.verdict(outcome(0.0, 1.0), 1) == UNCLEAR
    assert claims.verdict(outcome(0.0, 0.001), 1) == UNCLEAR  # a tie is a tie
    assert claims.verdict(None, 1) == LOST


def test_judgements_by_hand():
    assert claims.judgement(["better"], [BETTER]) == "Borne out: 1 of 1 figure as claimed."
    assert claims.judgement(["better", "worse"], [UNCLEAR, WORSE]) == "Borne out in part: 1 of 2 figures as claimed."
    assert claims.judgement(["better"], [WORSE]) == "Contradicted: 0 of 1 figure as claimed, 1 significantly the other way."
    assert claims.judgement(["better", "better"], [UNCLEAR, LOST]) == "Not borne out: 0 of 1 figure as claimed; 1 cannot be recomputed."
    assert claims.judgement(["worse"], [LOST]) == "Cannot be recomputed from what was published."
    assert claims.judgement(["same", "same"], [UNCLEAR, CORRECTED]).startswith("Borne out: 2 of 2") and claims.judgement(["same"], [BETTER]).startswith("Not borne out")
    assert claims.judgement(["more"], ["significantly less"]).startswith("Contradicted")


def test_the_share_that_is_spelling_by_hand():
    """Overall +.2 on 100 questions; on 40 of them, with the same answers, +.25: 40 * .25 / (100 * .2) = 50 %."""
    def found(value, n, p):
        return {"key": "bert_f1", "difference": {"value": value, "n": n}, "p": p, "p_holm": p}
    claim = {"kind": "faithfulness", "rows": [{"run": "dpop_best", "mean": "avg_bert_f1", "said": "better"}]}

    def shares(part, said=BETTER):
        run = {"published": [found(0.2, 100, 0.001)], "same_answer": [part]}
        return claims.spelt_differently(claim, {"kinds": {"faithfulness": {"comparisons": {"dpop_best": run}}}}, [said])
    assert shares(found(0.25, 40, 0.001)) == ["BERT-F1 50 %"]
    assert shares(found(0.25, 40, 0.2)) == [] and shares(found(-0.25, 40, 0.001)) == [] and shares(found(0.25, 40, 0.001), UNCLEAR) == []


def test_the_page_of_planted_results_reads_what_is_there(tmp_path):
    with pytest.raises(UserError, match="there is no .*recheck.json"):
        claims.main(["--results", str(tmp_path)])
    (tmp_path / "recheck.json").write_text("{}")
    with pytest.raises(UserError, match="recheck.json is none that"):
        claims.main(["--results", str(tmp_path)])
    recheck.main([str(three_kinds(tmp_path / "in")), "--to", str(tmp_path / "recheck.json"), "--resamples", "200"])
    claims.main(["--results", str(tmp_path)])
    bare = (tmp_path / "claims.md").read_text()
    assert "toy holds no rows.jsonl" in bare and "not measured here: no checkpoint" in bare and "these do not: HaluEval" in bare
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("recheck_by_length.png", "recheck_same_answer.png"))
    share = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "label": "MC1", "form": "share"}
    for name, content in {"halueval/sanity.json": {"metrics": [{"key": "rouge_l", "form": "mean", "values": {"gold": share | {"value": 0.987}, "hallucinated": share}}]},
                          "truthfulqa/metrics_tiny.json": {"run": "tiny", "figures": {"mc1": share}, "not_measured": {"mc0": "no column"}},
                          "halueval/metrics_small.json": {"name": "small", "metrics": [{"key": "f1", "label": "token F1", "form": "mean", "values": {"model": share}}],
                                                          "not_measured": [{"metric": "entailed", "reason": "no folder"}]}}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    figures = {"hallucination": 20.0, "right": 60.0, "chosen_drift_answers": 0.5, "tasks": 90.0, "needless": 5.0, "abstention": 40.0}
    rows = [{"condition": condition, "seed": seed, "figures": {key: value + seed % 2 - (8 + seed if condition == "DPO, shuffled" else 0) for key, value in figures.items()}}
            for condition in ("SFT, the start", "DPO, shuffled", "DPO, easy first") for seed in range(5)]
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    claims.main(["--results", str(tmp_path)])
    page = (tmp_path / "claims.md").read_text()
    assert "right answers themselves get 0.987" in page and "truthfulqa: tiny, mc0: no column" in page and "halueval: small, entailed: no folder" in page
    assert "with 5 seeds" in page and "DPO, easy first against DPO, shuffled: significantly worse" in page
    (tmp_path / "truthfulqa" / "metrics_tiny.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        claims.main(["--results", str(tmp_path)])


def test_every_claim_points_at_something():
    published = claims.read(claims.PUBLISHED)
    for claim in published["claims"]:
        assert claim["where"] and claim["rows"]
        for row in claim["rows"]:
            kind, mean, measure = claims.resolve(claim, row)
            assert row["run"] in published["runs"] and row["said"] in claims.AGREES and (measure in per_item.KINDS[kind].measures or mean in ("mc1", "mc2"))
            assert not mean or row["run"] in published["figures"][kind]["values"][mean]
    assert set(form_effects.JUDGED) <= set(per_item.MEASURES)


# ---- the committed results --------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def committed():
    return json.loads((RESULTS / "recheck.json").read_text())


def test_the_committed_page_is_up_to_date(committed):
    text = to_markdown(claims.page(claims.read(claims.PUBLISHED), committed, RESULTS))
    assert text == (RESULTS / "claims.md").read_text(), "run python -m studies.curriculum_dpop.claims"


def test_the_published_figures_are_what_the_metrics_files_say(committed):
    published = claims.read(claims.PUBLISHED)
    assert all(mean.get("agrees", True) for kind in committed["kinds"].values() for run in kind["runs"].values() for mean in run["means"])
    slips = claims.rounding(published, committed)  # the rate rises from .0729 to .0802, by 10.01 %
    assert len(slips) == 3 and slips[0] == "HaluEval QA, similarity of embeddings, dpop_last, hallucination_rate: +10.02 % published, +10.01 % by the metrics files"
    published["figures"]["truthfulqa"]["values"]["mc1"]["dpop_best"] = 0.24970  # .249694: the last digit rounded the wrong way
    assert any("mc1: 0.2497 published" in slip for slip in claims.rounding(published, committed))


def test_committed_figures_found_before_by_another_program(committed):
    """McNemar's counts, SQuAD's EM and F1, and BLEU's and BERT-F1's zeros, as an independent reading of the same rows gave them."""
    kinds = committed["kinds"]

    def pair(kind, run, key="flagged"):
        found = claims.test_of(committed, kind, run, key)
        return found["only_first"], found["only_second"]
    assert pair("similarity", "dpop_best") == (311, 266) and pair("similarity", "dpop_last") == (256, 329)
    assert pair("faithfulness", "dpop_last") == (280, 555) and pair("truthfulqa", "dpop_best", "truthful") == (121, 81) and pair("truthfulqa", "dpop_last", "truthful") == (50, 68)
    assert claims.test_of(committed, "similarity", "dpop_best", "flagged")["p"] == pytest.approx(0.067, abs=5e-4)
    similarity, faithfulness = (kinds[kind]["runs"] for kind in ("similarity", "faithfulness"))
    assert [round(similarity[run]["figures"][key]["value"], 3) for run in ("baseline", "dpop_best", "dpop_last") for key in ("exact", "f1")] == [.709, .799, .723, .809, .709, .799]
    assert similarity["baseline"]["forms"]["bleu_zero"]["count"] == 9069
    assert [similarity["baseline"]["forms"]["bleu_zero_same_text"][key] for key in ("count", "n")] == [5012, 5693]
    assert [faithfulness[run]["forms"]["bert_zero"]["count"] for run in ("baseline", "dpop_best", "dpop_last")] == [1406, 465, 1273]
    assert all(run["forms"]["stored_bleu_zero"]["value"] == 1 for run in faithfulness.values())  # defect 14: not from the committed code
    assert committed["training_log"]["hinge_active"] == 39 and committed["training_log"]["rows"] == 412
