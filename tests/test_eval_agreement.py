"""Agreement between annotators, on the tables their inventors published."""
import math

import pytest

from eval import agreement

# Fleiss 1971, table 1, as reprinted: 10 subjects, 14 raters, 5 categories
FLEISS = [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1], [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2],
          [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]
# Krippendorff 2011, section C: four observers, twelve units, gaps
_ = None
OBSERVERS = [[1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _], [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3], [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _], [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _]]
UNITS = list(zip(*OBSERVERS))


def test_fleiss_kappa():
    ratings = [[category for category, times in enumerate(row) for _ in range(times)] for row in FLEISS]
    assert agreement.fleiss_kappa(ratings) == pytest.approx(0.210, abs=5e-4)


@pytest.mark.parametrize("level, alpha", [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_krippendorff_alpha(level, alpha):
    assert agreement.krippendorff_alpha(UNITS, level) == pytest.approx(alpha, abs=5e-4)


def test_cohen_kappa():
    # 50 proposals, two readers: yes-yes 20, yes-no 5, no-yes 10, no-no 15: observed .7, by chance .5
    a, b = ["y"] * 25 + ["n"] * 25, ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert agreement.cohen_kappa(a, b) == pytest.approx(0.4)
    from sklearn.metrics import cohen_kappa_score
    assert agreement.cohen_kappa(a, b) == pytest.approx(cohen_kappa_score(a, b))
    assert agreement.cohen_kappa(a, a) == 1 and agreement.cohen_kappa(["y", "n"], ["n", "y"]) == -1


def test_two_raters_alpha_is_scotts_pi_with_a_small_sample_correction():
    a, b = [1, 1, 0, 0, 1, 0], [1, 0, 0, 0, 1, 1]
    seen, p = 4 / 6, 6 / 12
    scott = (seen - (p**2 + (1 - p) ** 2)) / (1 - (p**2 + (1 - p) ** 2))
    assert agreement.krippendorff_alpha(list(zip(a, b))) == pytest.approx(1 - (1 - scott) * (12 - 1) / 12)


def test_degenerate_tables():
    assert math.isnan(agreement.cohen_kappa([1, 1], [1, 1])) and math.isnan(agreement.krippendorff_alpha([[1, 1], [1, 1]]))
    assert math.isnan(agreement.fleiss_kappa([["a", "a"], ["a", "a"]]))
    with pytest.raises(ValueError, match="same number"):
        agreement.fleiss_kappa([["a", "b"], ["a", None]])
    with pytest.raises(ValueError, match="two ratings"):
        agreement.krippendorff_alpha([[1, None], [None, 2]])
    with pytest.raises(ValueError, match="level"):
        agreement.krippendorff_alpha(UNITS, "ratio")
    with pytest.raises(ValueError):
        agreement.cohen_kappa([1], [1, 2])


def test_interval_and_summary():
    found = agreement.interval(agreement.krippendorff_alpha, UNITS, 300)
    assert found.value == pytest.approx(0.743, abs=5e-4) and found.low < found.value < found.high and found.n == 12
    table = agreement.summary([["a", "a", None], ["b", "b", "b"], ["a", "b", "tie"], ["tie", "tie", "tie"]] * 5, 100)
    assert {"Krippendorff's alpha, nominal", "Fleiss' kappa, items rated by all", "Cohen's kappa, annotators 1 and 2"} <= set(table)
    assert table["Fleiss' kappa, items rated by all"]["n"] == 15
    assert agreement.summary([["a", None], [None, "b"]]) == {}  # nothing to compare: nothing is claimed


def test_numbers_of_either_type_are_one_scale():
    whole, mixed = [[1, 2], [9, 10], [2, 2], [10, 9]], [[1, 2.0], [9.0, 10], [2, 2.0], [10.0, 9]]
    for level in ("ordinal", "interval"):
        assert agreement.krippendorff_alpha(mixed, level) == pytest.approx(agreement.krippendorff_alpha(whole, level))
        with pytest.raises(ValueError, match="needs numbers"):
            agreement.krippendorff_alpha([["good", "bad"]], level)


def test_a_nan_rating_is_no_category():
    with pytest.raises(ValueError, match="NaN"):
        agreement.krippendorff_alpha([[float("nan"), 1.0], [1.0, 1.0]])


def test_perfect_agreement_is_no_certainty():
    found = agreement.interval(agreement.krippendorff_alpha, [["a", "a"], ["b", "b"]] * 20)
    assert (found.value, found.low, found.high) == (1.0, None, None) and "not estimable" in found.method
