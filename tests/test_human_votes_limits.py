"""What a file of votes cannot tell: models and sides that always go together, ties without a loss, few raters, odd rows and flags."""
import numpy as np
import pytest

from eval import ranking
from runtime.errors import UserError
from studies.human_likeness import vote_page, vote_rows, votes
from tests.test_human_votes import read, row, simulated, table, write


def test_trap_terms_that_always_go_together(tmp_path):
    """a always stands left: the ridge shared its wins out between a and the side, with a narrow interval for each half."""
    found = votes.bradley_terry(table(tmp_path, [row("a", "b", 2 if i % 5 else -2, persona=i, user=f"u{i % 20}") for i in range(60)]))
    assert found[0]["strengths"]["a"]["value"] == pytest.approx(1500 + ranking.ELO * np.log(4) / 2)
    assert all(figure["value"] is None and "go together" in figure["method"] for fit in found[1:] for figure in (*fit["strengths"].values(), *fit["coefficients"].values()))
    same = votes.bradley_terry(table(tmp_path, simulated(80, np.random.default_rng(0), dialogue_a="P: x", dialogue_b="P: y")))
    assert [fit["strengths"]["a"]["value"] is None for fit in same] == [False, False, True, True, True]  # nobody ever spoke longer: no slope
    left = votes.bradley_terry(table(tmp_path, [row("ab"[i % 2], "ba"[i % 2], 2, persona=i, user=f"u{i % 20}") for i in range(60)]))
    assert left[0]["strengths"]["a"]["value"] == pytest.approx(1500) and "no finite maximum" in left[1]["coefficients"]["side"]["method"]  # the left side always won
    once = votes.bradley_terry(table(tmp_path, [row("a", "b", 2 if i % 5 else -2) for i in range(120)] + [row("b", "a", 0)], "session"))[1]["strengths"]["a"]
    assert once["value"] is not None and once["low"] is None  # a stood right once, in two thirds of the resamples


def test_ten_to_one_is_400_points_and_an_interval_leaves_out_a_fortieth_on_either_side(tmp_path):
    found = votes.bradley_terry(table(tmp_path, [row("ab"[i % 2], "ba"[i % 2], (2 if i > 3 else -2) * (-1) ** i) for i in range(44)], "session"))[0]["strengths"]
    assert found["a"]["value"] - found["b"]["value"] == pytest.approx(400, abs=1e-6)  # 40 wins, 4 losses
    assert ranking.percentiles(np.arange(1000.0)) == pytest.approx([25, 974], abs=1)


def test_an_interval_with_too_many_resamples_without_a_value_has_no_ends(tmp_path):
    t, drawn = table(tmp_path, [row("a", "b", 2), row("a", "b", -1)], "session"), np.arange(1000.0)
    for lost, ends in ((25, True), (26, False)):
        found = t.interval(500.0, np.where(np.arange(1000) < lost, np.nan, drawn))
        assert (found["low"] is not None) == (found["high"] is not None) == ends and f"{1000 - lost} resamples" in found["method"]


def test_trap_a_tie_parameter_on_its_way_to_infinity():
    """Two models, 5 wins and 3 ties, no loss: the slope is flat at any large strength, and one of 3,000 Elo points was reported."""
    for wins, ties in (([[0, 5], [0, 0]], 3), ([[0, 0], [0, 0]], 3)):
        s, nu = ranking.davidson(wins, [[0, ties], [ties, 0]])
        assert np.isnan(s).all() and np.isnan(nu)
    s, nu = ranking.davidson([[0, 5, 4], [0, 0, 3], [0, 2, 0]], [[0, 3, 0], [3, 0, 1], [0, 1, 0]])
    assert np.isfinite(s).all() and np.argmax(s) == 0 and nu < 5  # the others' losses bound the ties, and those the one who never lost


def test_minutes_are_over_raters_too(tmp_path):
    ends = ["2025-05-01T10:02:00"] * 6 + ["2025-05-01T10:10:00"] * 2
    found = votes.analyse(read(tmp_path, [row("a", "b", 2 - 3 * (i % 2), persona=i, user=f"u{i // 6}", timestamp_end=end) for i, end in enumerate(ends)]), resamples=200)["minutes"]
    assert (found["value"], found["n"], found["low"], found["high"]) == (4, 2, 2, 10)  # two raters: one of them alone at worst


def test_a_row_with_more_cells_than_columns_is_named(tmp_path):
    path = write(tmp_path / "v.csv", [row("a", "b", 2), row("a", "b", -1)])
    path.write_text(path.read_text(encoding="utf-8-sig") + "s9,u9,5,x,y,1,1,Tie,TRUE,a,b,P: one, two,P: three\n")
    with pytest.raises(UserError, match="more cells than columns in row 4"):
        vote_rows.read_votes(path)


@pytest.mark.parametrize("flags", [("--resamples", "0"), ("--resamples", "-1"), ("--resamples", "99"), ("--seed", "-1")])
def test_odd_flags_are_one_sentence(tmp_path, flags):
    with pytest.raises(UserError, match="at least"):
        votes.main([str(write(tmp_path / "v.csv", [row("a", "b", 2), row("a", "b", -1)])), "--to", str(tmp_path / "o"), *flags])
    with pytest.raises(UserError, match="v.csv is a file: name a folder"):
        votes.main([str(tmp_path / "v.csv"), "--to", str(tmp_path / "v.csv")])


def test_the_page_counts_tests_after_the_correction(tmp_path):
    figures = votes.analyse(read(tmp_path, simulated(60, np.random.default_rng(0))), resamples=100)
    for pair in figures["pairs"]:
        pair["p"] = {name: 0.03 for name in ("sign", "signed_rank", "cluster_flip")} | {f"{name}_holm": 0.09 for name in ("sign", "signed_rank", "cluster_flip")}
    assert "Tests below .05: none for " in vote_page.page({"command": ""} | figures)
