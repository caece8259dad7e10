"""Rankings and length control: a published table, an independent fit, and what must not happen."""
import numpy as np
import pytest

from eval import ranking
from runtime.errors import UserError

GAMES = np.array([[0, 2, 0, 1], [3, 0, 5, 0], [0, 3, 0, 1], [4, 0, 3, 0]])


def test_bradley_terry_worked_example():
    # the four-team example of the encyclopaedia article on the model: .139, .226, .143, .492
    p = np.exp(ranking.bradley_terry(GAMES))
    assert p / p.sum() == pytest.approx([0.139, 0.226, 0.143, 0.492], abs=1e-3)


def test_bradley_terry_equals_logistic_regression():
    from sklearn.linear_model import LogisticRegression
    rows, side = [], []
    for i in range(4):
        for j in range(4):
            row = np.zeros(4)
            row[i], row[j] = 1, -1
            rows += [row, -row] * int(GAMES[i, j])
            side += [1, 0] * int(GAMES[i, j])
    fit = LogisticRegression(C=1e9, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(rows, side).coef_[0]
    assert ranking.bradley_terry(GAMES) == pytest.approx(fit - fit.mean(), abs=1e-3)


def test_no_finite_maximum_is_nan_and_named():
    beaten = np.array([[0, 3, 3], [0, 0, 2], [0, 2, 0]])  # the first never loses
    apart = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])  # two leagues that never meet
    assert np.isnan(ranking.bradley_terry(beaten)).all() and np.isnan(ranking.bradley_terry(apart)).all()
    both = ranking.bradley_terry(np.stack([np.pad(beaten, (0, 1)), GAMES]))
    assert np.isnan(both[0]).all() and np.isfinite(both[1]).all()  # one hopeless resample does not spoil the others
    with pytest.raises(UserError, match="king"):
        ranking.ranking_table([("king", "a", 1.0, 0), ("a", "b", 1.0, 0), ("a", "b", 0.0, 1)], resamples=10)


def simulated(n, gap, rng):
    return [(f"s{i}", f"s{j}", float(rng.random() < 1 / (1 + np.exp(gap * (i - j)))), prompt) for prompt in range(n) for i in range(4) for j in range(i + 1, 4)]


def test_ranking_recovers_the_truth():
    table = ranking.ranking_table(simulated(1500, 0.3, np.random.default_rng(0)), resamples=300)
    assert [row["system"] for row in table["rows"]] == ["s0", "s1", "s2", "s3"]  # s0 wins most
    best, worst = table["rows"][0], table["rows"][-1]
    truth = 0.9 * ranking.ELO  # three steps of .3
    found = best["bradley_terry"]["value"] - worst["bradley_terry"]["value"]
    assert found == pytest.approx(truth, rel=0.1) and table["undefined"] == 0
    assert best["bradley_terry"]["low"] < best["bradley_terry"]["value"] < best["bradley_terry"]["high"] and best["bradley_terry"]["n"] == 1500
    assert best["elo"]["value"] - worst["elo"]["value"] == pytest.approx(truth, rel=0.2)


def test_undefined_resamples_are_counted():
    games = [("a", "b", 1.0, 0), ("a", "b", 1.0, 1), ("a", "b", 0.0, 2)]  # the one loss is missed by (2/3)^3 = 30 % of the resamples
    table = ranking.ranking_table(games, resamples=1000)
    assert 280 < table["undefined"] < 400  # and all-loss resamples, (1/3)^3
    assert {(row["bradley_terry"]["low"], row["bradley_terry"]["high"]) for row in table["rows"]} == {(None, None)}  # a third is at infinity


def test_elo_by_hand():
    # equal ratings: expected .5, so a win moves k/2 each way
    assert ranking.elo([(0, 1, 1.0)], 2, k_factor=32, orders=1).tolist() == [[1016, 984]]
    assert ranking.elo([(0, 1, 0.5)], 2, k_factor=32, orders=1).tolist() == [[1000, 1000]]


# ---- length ---------------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
SHORT, LONG = RNG.integers(5, 20, 500), RNG.integers(8, 30, 500)


def test_without_a_length_effect_it_is_the_win_rate():
    wins = (np.random.default_rng(1).random(500) < 0.62).astype(float)
    found = ranking.length_controlled(wins, SHORT, LONG, range(500), resamples=300)
    assert found.value == pytest.approx(wins.mean(), abs=0.06) and found.low < wins.mean() < found.high
    equal = ranking.length_controlled(wins, SHORT, SHORT, range(500), resamples=50)
    assert equal.value == pytest.approx(wins.mean(), abs=1e-6)


def test_a_judge_that_only_likes_length_is_unmasked():
    wins = np.where(LONG == SHORT, 0.5, (LONG > SHORT).astype(float))
    assert wins.mean() > 0.75
    found = ranking.length_controlled(wins, SHORT, LONG, range(500), resamples=300)
    assert found.low < 0.5 < found.high


def test_length_control_equals_scikit_learn():
    from sklearn.linear_model import LogisticRegression
    extra = (LONG - SHORT).astype(float)
    x = np.tanh(extra / extra.std())
    wins = (np.random.default_rng(2).random(500) < 1 / (1 + np.exp(-(0.3 + 1.2 * x)))).astype(float)
    fit = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(x[:, None], wins)  # its penalty leaves the intercept alone, as ours
    expected = 1 / (1 + np.exp(-fit.intercept_[0]))
    assert ranking.length_controlled(wins, SHORT, LONG, range(500), resamples=10).value == pytest.approx(expected, abs=1e-4)


def test_length_control_refuses_nonsense():
    for arguments in (([], [], [], []), ([2.0], [1], [1], [0]), ([1.0], [1], [float("nan")], [0]), ([1.0, 0.0], [1], [1], [0])):
        with pytest.raises(ValueError):
            ranking.length_controlled(*arguments)


def test_only_wins_are_no_certainty():
    found = ranking.length_controlled([1.0] * 10, SHORT[:10], LONG[:10], range(10), resamples=200)
    assert found.value > 0.9 and (found.low, found.high) == (None, None)
