"""Statistics against published worked examples and numbers made by hand."""
import math

import numpy as np
import pytest

from eval import stats


# Newcombe 1998, table I, method 3 (score interval without continuity correction)
@pytest.mark.parametrize("successes, n, low, high", [
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)])
def test_wilson_published(successes, n, low, high):
    interval = stats.wilson(successes, n)
    assert (interval.value, interval.n) == (successes / n, n)
    assert interval.low == pytest.approx(low, abs=5e-5) and interval.high == pytest.approx(high, abs=5e-5)


def test_wilson_ends_and_errors():
    assert stats.wilson(0, 10).low == 0.0 and stats.wilson(10, 10).high == 1.0
    assert stats.wilson(10, 10).low == pytest.approx(1 - stats.wilson(0, 10).high)
    for bad in ((0, 0), (3, 2), (-1, 5)):
        with pytest.raises(ValueError):
            stats.wilson(*bad)


def test_bootstrap_two_points_by_hand():
    # two units 0 and 1: the resampled mean is 0, .5, 1 with chance 1/4, 1/2, 1/4, so the 2.5 % point is 0 and the 97.5 % point 1
    interval = stats.mean([0.0, 1.0], seed=3)
    assert (interval.value, interval.low, interval.high, interval.n, interval.seed) == (0.5, 0.0, 1.0, 2, 3)


def test_bootstrap_agrees_with_the_normal_interval():
    values = np.random.default_rng(0).normal(5, 2, 400)
    interval, half = stats.mean(values, seed=1), 1.96 * values.std(ddof=1) / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)


def test_the_two_ways_to_resample_agree():
    # 12 distinct values are drawn by multinomial counts; a shift of 1e-9 per row makes every row distinct, drawn row by row
    values = np.random.default_rng(0).integers(0, 12, 300).astype(float)
    few, many = stats.mean(values, seed=1), stats.mean(values + np.arange(300) * 1e-9, seed=2)
    assert (few.low, few.high) == pytest.approx((many.low, many.high), abs=0.03)


def test_bootstrap_is_reproducible_and_seeded():
    values = np.random.default_rng(0).exponential(size=50)  # all distinct
    assert stats.mean(values, seed=7) == stats.mean(values, seed=7)
    assert stats.mean(values, seed=7) != stats.mean(values, seed=8)


def test_every_block_of_resamples_is_filled():
    # 3,000 units x 1,500 resamples do not fit one block of indices; sd of the mean = sqrt(3000^2 / 12 / 3000) = 15.8
    interval = stats.mean(np.arange(3000.0), resamples=1500, seed=2)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 15.8, rel=0.1)


def test_pairing_is_kept():
    # b = a + 1 and a little: the interval is as narrow as the differences are, however wide a itself is
    rng = np.random.default_rng(0)
    a, little = rng.normal(0, 10, 30), rng.normal(0, 0.01, 30)
    interval = stats.mean_difference(a, a + 1 + little)
    assert 0.99 < interval.low < 1 < interval.high < 1.01
    # b = a + 1 exactly: equal differences say nothing of how far others would lie from 1
    exactly = stats.mean_difference(a, a + 1)
    assert exactly.value == pytest.approx(1) and (exactly.low, exactly.high) == (None, None)
    # b = a / 2 and a little: the relative change is close to -50 % in every resample; b = a / 2 says nothing of other units
    a = np.abs(a) + 1
    interval = stats.relative_change(a, a / 2 + little)
    assert -0.51 < interval.low < -0.5 + 0.003 and -0.5 - 0.003 < interval.high < -0.49
    exactly = stats.relative_change(a, a / 2)
    assert exactly.value == pytest.approx(-0.5) and (exactly.low, exactly.high) == (None, None)


def test_relative_change_by_hand_and_without_an_end():
    assert stats.relative_change([1, 1, 0, 0], [1, 0, 0, 0]).value == -0.5
    # one event in four units: (3/4)^4 = 32 % of the resamples have a zero baseline, so no upper end may be claimed
    interval = stats.relative_change([1, 0, 0, 0], [0, 0, 0, 0])
    assert (interval.value, interval.low, interval.high) == (-1.0, -1.0, None)
    with pytest.raises(ValueError, match="undefined"):
        stats.relative_change([0, 0], [1, 0])


def test_ratio_and_clusters_by_hand():
    # prompt p: pairs scored 1, 0; prompt q: one pair scored 1
    scores, sizes = stats.sum_by_cluster(["p", "q", "p"], [1.0, 1.0, 0.0])
    assert scores.tolist() == [1.0, 1.0] and sizes.tolist() == [2.0, 1.0]
    interval = stats.ratio(scores, sizes)
    assert interval.value == pytest.approx(2 / 3) and interval.n == 2
    # resamples: pp 1/2, pq 2/3, qq 1
    assert (interval.low, interval.high) == (0.5, 1.0)


def test_a_cluster_bootstrap_is_wider_than_pretending_independence():
    rng = np.random.default_rng(0)
    scores = np.repeat(rng.integers(0, 2, 100), 5).astype(float)  # five pairs per prompt that always agree
    clustered = stats.ratio(*stats.sum_by_cluster(np.repeat(np.arange(100), 5), scores))
    naive = stats.mean(scores)
    assert clustered.value == pytest.approx(naive.value)
    assert clustered.high - clustered.low > 1.8 * (naive.high - naive.low)  # sqrt(5) = 2.24 in theory


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [1.0, math.inf]])
def test_missing_values_are_errors_never_scores(bad):
    with pytest.raises(ValueError):
        stats.mean(bad)
    with pytest.raises(ValueError):
        stats.mean_difference(bad, bad)


def test_unequal_lengths_are_an_error():
    with pytest.raises(ValueError, match="one length"):
        stats.mean_difference([1, 2, 3], [1, 2])


def test_sign_test_by_hand():
    # 9 wins, 1 loss: 2 (C(10,0) + C(10,1)) / 2^10 = 22 / 1024
    assert stats.sign_test(9, 1) == pytest.approx(22 / 1024)
    assert stats.sign_test(5, 5) == 1.0 and stats.sign_test(0, 0) == 1.0
    with pytest.raises(ValueError):
        stats.sign_test(-1, 4)


def test_mcnemar_by_hand():
    # 8 units only b, 1 unit only a, 11 agree: 2 (C(9,0) + C(9,1)) / 2^9 = 20 / 512
    a = [1] * 1 + [0] * 8 + [1] * 6 + [0] * 5
    b = [0] * 1 + [1] * 8 + [1] * 6 + [0] * 5
    assert stats.mcnemar(a, b) == (pytest.approx(20 / 512), 1, 8)
    assert stats.mcnemar([1, 0], [1, 0])[0] == 1.0
    with pytest.raises(ValueError):
        stats.mcnemar([0.5, 1], [0, 1])


def test_sign_flip_test_by_enumeration():
    # differences 1, 2, 3: of the 8 sign patterns only +++ and --- reach |6|, so p = 1/4
    assert stats.sign_flip_test([0, 0, 0], [1, 2, 3], resamples=20_000) == pytest.approx(0.25, abs=0.01)
    assert stats.sign_flip_test([1, 2], [1, 2]) == 1.0
    assert stats.sign_flip_test(np.zeros(30), np.ones(30), resamples=999) == 1 / 1000


def test_mann_whitney_and_cohens_d_by_hand():
    # complete separation of 3 and 3: U = 0, exact two-sided p = 2 / C(6,3) = .1
    assert stats.mann_whitney([1, 2, 3], [4, 5, 6]) == (0.0, pytest.approx(0.1))
    # both variances 1, means 2 and 5
    assert stats.cohens_d([1, 2, 3], [4, 5, 6]) == pytest.approx(3.0)
    # unequal sizes: (1 * 2 + 3 * 5/3) / 4 = 7/4
    assert stats.cohens_d([0, 2], [1, 2, 3, 4]) == pytest.approx(1.5 / math.sqrt(7 / 4))
    with pytest.raises(ValueError, match="undefined"):
        stats.cohens_d([1, 1], [2, 2])


def test_corrections_by_hand():
    p = [0.01, 0.04, 0.03, 0.005]
    assert stats.bonferroni(p) == pytest.approx([0.04, 0.16, 0.12, 0.02])
    assert stats.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # .04 alone would give .04: lifted to its predecessor
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0] and stats.holm([]) == []


def test_missing_scipy_says_what_to_install(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(stats.UserError, match="pip install scipy"):
        stats.sign_test(3, 1)


# ---- intervals that know where the bootstrap does not reach -----------------------------------------------------------

def test_clopper_pearson():
    # Clopper & Pearson 1934 via Newcombe 1998, table I: 81 of 263 is .2527 to .3676, 0 of 20 is 0 to .1684
    assert [round(x, 4) for x in (stats.exact(81, 263).low, stats.exact(81, 263).high)] == [0.2527, 0.3676]
    assert stats.exact(0, 20).low == 0 and stats.exact(0, 20).high == pytest.approx(0.1684, abs=5e-5)
    assert stats.exact(81, 263).low < stats.wilson(81, 263).low  # never narrower


@pytest.mark.parametrize("cells, low, high", [((20, 2, 12, 16), 0.0562, 0.3292), ((36, 2, 12, 0), 0.0569, 0.3404)])
def test_newcombe_paired(cells, low, high):
    """Newcombe 1998, Stat. Med. 17:2635, table II, method 10: both, only a, only b, neither."""
    both, only_a, only_b, neither = cells
    a, b = [1] * (both + only_a) + [0] * (only_b + neither), [1] * both + [0] * only_a + [1] * only_b + [0] * neither
    found, mirrored = stats.paired_shares(a, b), stats.paired_shares(b, a)
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    assert (mirrored.low, mirrored.high) == (pytest.approx(-found.high), pytest.approx(-found.low))


def test_no_difference_is_no_certainty():
    same = stats.paired_shares([1, 0, 1, 1] * 10, [1, 0, 1, 1] * 10)
    assert same.value == 0 and same.low < -0.05 < 0.05 < same.high
    means = stats.mean_difference([0.2, 0.7], [0.2, 0.7])
    assert (means.value, means.low, means.high) == (0, None, None) and "not estimable" in means.method


def test_bca_equals_scipys():
    from scipy.stats import bootstrap
    x = np.random.default_rng(6).lognormal(size=60)
    ours = stats.bootstrap([x], lambda m: m[:, 0], 20_000, method="bca")
    theirs = bootstrap((x,), np.mean, method="BCa", n_resamples=20_000, rng=1).confidence_interval
    assert (ours.low, ours.high) == (pytest.approx(theirs.low, rel=0.02), pytest.approx(theirs.high, rel=0.02))
    plain = stats.bootstrap([x], lambda m: m[:, 0], 20_000)
    assert ours.low > plain.low and ours.high > plain.high  # it leans towards the long tail
    y = x * np.random.default_rng(4).uniform(0.5, 2, 60)
    ours = stats.bootstrap([x, y], lambda m: m[:, 1] / m[:, 0], 20_000, method="bca")
    theirs = bootstrap((x, y), lambda a, b, axis: b.mean(axis) / a.mean(axis), paired=True, method="BCa", n_resamples=20_000, rng=1).confidence_interval
    assert (ours.low, ours.high) == (pytest.approx(theirs.low, rel=0.02), pytest.approx(theirs.high, rel=0.02))


def test_bca_that_is_undefined_says_so():
    found = stats.bootstrap([np.ones(5)], lambda m: m[:, 0], 100, method="bca")
    assert "undefined" in found.method and (found.low, found.high) == (1, 1)


def test_quantiles_by_order_statistics():
    # Conover 1999: for the median of n = 10 the 2nd and 9th values enclose it with 97.9 %, the 3rd and 8th only with 89.1 %
    found = stats.quantile(np.arange(1, 11), 0.5)
    assert (found.value, found.low, found.high) == (5.5, 2, 9)
    # 95th percentile of 50: P(all 50 below) = .95^50 = 7.7 % > 2.5 %, so the largest value bounds nothing from above
    assert stats.quantile(np.arange(50), 0.95).high is None and stats.quantile(np.arange(200), 0.95).high is not None


def test_a_maximum_is_open_above():
    found = stats.maximum([0.1, 0.9, 0.3])
    assert (found.value, found.low, found.high) == (0.9, 0.9, None)


def test_power_of_the_sign_test():
    # by definition, from scipy's own p-values
    from scipy.stats import binom, binomtest
    rejected = [k for k in range(41) if binomtest(k, 40, 0.5).pvalue <= 0.05]
    assert stats.power_of(40, 0.7) == pytest.approx(sum(binom.pmf(k, 40, 0.7) for k in rejected))
    assert stats.power_of(40, 0.5) <= 0.05
    # normal approximation: ((1.96 * .5 + .8416 * sqrt(.24)) / .1)^2 = 194; the exact test is a saw-tooth a little above
    assert stats.power_of(194, 0.6) < 0.8 < stats.power_of(199, 0.6)
    need = stats.pairs_needed(0.6)
    assert need == 210 and all(stats.power_of(n, 0.6) >= 0.8 for n in range(need, need + 60)) and stats.power_of(need - 1, 0.6) < 0.8
    assert stats.pairs_needed(0.7) < 60 and stats.pairs_needed(0.4) == need  # symmetric
    assert stats.power_of(10, 0.6) < 0.05  # ten pairs show nothing
    for bad in ({"n": 0, "p": 0.6}, {"n": 5, "p": 1.0}):
        with pytest.raises(ValueError):
            stats.power_of(**bad)
    with pytest.raises(ValueError, match="zero"):
        stats.pairs_needed(0.5)
