"""Intervals and tests for the evaluation: what each figure in the report stands on.

Everything here is a pure function of numpy arrays and a seed. A *unit* is what would be drawn again if the study were
repeated: a prompt with its reply, or a prompt with all of its pairs. Intervals are 95 % unless told otherwise.

The bootstrap needs one idea: a mean, a ratio, a perplexity and a relative change are all functions of a few column
sums. So one routine resamples units, sums the columns, and applies the function to 10,000 rows of sums at once.
"""
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist

import numpy as np

from runtime.errors import UserError

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval: `n` units, how it was made, and the seed when chance was used.

    `low` or `high` is None where the interval has no end on that side (a relative change over a baseline that is zero in more than
    2.5 % of the resamples; an extreme quantile of few values). Both are None where nothing can be said: not one unit differed.
    The part of `method` before its first comma is the name that results/coverage knows it by.
    """
    value: float
    low: float | None
    high: float | None
    n: int
    method: str
    seed: int | None = None

    def to_dict(self) -> dict:
        """The same as plain values, for JSON."""
        return asdict(self)


def _as_columns(*columns: Sequence[float] | np.ndarray) -> np.ndarray:
    """Stack equally long 1-d columns to [n, k] float64; an empty, ragged or NaN column is an error, never a score."""
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    if any(array.ndim != 1 or len(array) != len(arrays[0]) for array in arrays):
        raise ValueError(f"need 1-d columns of one length, got shapes {[array.shape for array in arrays]}")
    if len(arrays[0]) == 0:
        raise ValueError("no values: a statistic of an empty sample does not exist")
    stacked = np.stack(arrays, axis=1)
    if not np.isfinite(stacked).all():
        raise ValueError(f"{int((~np.isfinite(stacked)).any(axis=1).sum())} of {len(stacked)} values are NaN or infinite")
    return stacked


def _binary_columns(*columns: Sequence[float] | np.ndarray) -> np.ndarray:
    """`_as_columns` for 0/1 values only: counting successes among anything else would be wrong without a sound."""
    table = _as_columns(*columns)
    if not np.isin(table, (0, 1)).all():
        raise ValueError("need 0/1 values")
    return table


def wilson(successes: int, n: int, level: float = LEVEL) -> Interval:
    """Score interval for a proportion (Wilson 1927; method 3 of Newcombe, Stat. Med. 17:857, 1998).

    Unlike p ± 1.96·se it stays inside [0, 1] and does not shrink to a point at 0 of n or n of n.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"need 0 <= successes <= n and n > 0, got {successes} of {n}")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # at 0 and at n the score interval ends exactly there; rounding would leave 1e-18
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(p, low, high, n, "Wilson")


def exact(successes: int, n: int, level: float = LEVEL) -> Interval:
    """Clopper-Pearson interval for a proportion (1934): never covers less than it says, and is wider than Wilson's for it."""
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"need 0 <= successes <= n and n > 0, got {successes} of {n}")
    low, high = _scipy_stats().binomtest(successes, n).proportion_ci(level, method="exact")
    return Interval(successes / n, float(low), float(high), n, "Clopper-Pearson")


def paired_shares(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> Interval:
    """mean(b) - mean(a) for 0/1 values of the same n units: the score interval for paired proportions.

    Newcombe (Stat. Med. 17:2635, 1998), method 10: Wilson's limits of both shares, put together with their correlation phi. It
    has a width even when no unit differs, which a bootstrap has not. ValueError for values other than 0 and 1.
    """
    a, b = _binary_columns(a, b).T
    n, p, q = len(a), wilson(int(a.sum()), len(a), level), wilson(int(b.sum()), len(b), level)
    both, only_a, only_b = (int(cell.sum()) for cell in (a * b, a * (1 - b), (1 - a) * b))
    neither = n - both - only_a - only_b
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    cross = both * neither - only_a * only_b
    # a correction for continuity of the correlation, in one direction only: see the paper
    phi = (max(cross - n / 2, 0.0) if cross > 0 else cross) / math.sqrt(margins) if margins else 0.0

    def half(p_end: float, q_end: float) -> float:
        return math.sqrt(max(0.0, p_end**2 - 2 * phi * p_end * q_end + q_end**2))
    value = q.value - p.value
    low = value - half(p.high - p.value, q.value - q.low)
    high = value + half(p.value - p.low, q.high - q.value)
    return Interval(value, low, high, n, "Newcombe, paired")


def quantile(values: Sequence[float], q: float, level: float = LEVEL) -> Interval:
    """The q-quantile with a distribution-free interval between two order statistics (Conover 1999, ch. 3.2).

    The number of values below the true quantile is binomial(n, q), whatever the distribution. An end is None where even the
    smallest or largest value does not bound it surely enough. ValueError unless 0 < q < 1.
    """
    if not 0 < q < 1:
        raise ValueError(f"a quantile lies between 0 and 1, got {q} (`maximum` is for the largest value)")
    x = np.sort(_as_columns(values)[:, 0])
    n, binom = len(x), _scipy_stats().binom
    low = int(binom.ppf((1 - level) / 2, n, q)) - 1  # 0-based rank; P(fewer than low + 1 values lie below) <= 2.5 %
    high = int(binom.ppf((1 + level) / 2, n, q))
    return Interval(float(np.quantile(x, q)), float(x[low]) if low >= 0 else None, float(x[high]) if high < n else None, n, "order statistics")


def maximum(values: Sequence[float]) -> Interval:
    """The largest of n values. The population's maximum is at least that; nothing in a sample bounds it from above: high is None."""
    x = _as_columns(values)[:, 0]
    return Interval(float(x.max()), float(x.max()), None, len(x), "largest seen, nothing bounds it from above")


def bootstrap(columns: Sequence[np.ndarray], statistic: Callable[[np.ndarray], np.ndarray], resamples: int = 10_000,
              seed: int = 0, level: float = LEVEL, method: str = "percentile") -> Interval:
    """Bootstrap of a function of column means: percentile (Efron & Tibshirani 1993, ch. 13), or "bca" (Efron 1987).

    columns: k arrays [n], one entry per unit; a resample draws n units with replacement, all columns together, so that
        pairing within a unit is kept.
    statistic: maps means [r, k] to values [r]; +inf marks a resample where it is undefined (see `relative_change`).
    BCa shifts the two quantiles by the bias of the resamples and by how the error changes with the value (acceleration). Where it
    is undefined the percentile interval is given and `method` says so. When no resample differs from another the interval has no
    width, which is not certainty: see `no_false_certainty`.
    """
    table = _as_columns(*columns)
    n = len(table)
    means = _resampled_means(table, resamples, np.random.default_rng(seed))
    value = float(statistic(table.mean(axis=0, keepdims=True))[0])
    if not math.isfinite(value):
        raise ValueError("the statistic is undefined on the sample itself (a zero denominator)")
    # order statistics, not interpolation: with +inf among them, inf - inf would make a NaN
    drawn, quantiles, name = statistic(means), np.array([(1 - level) / 2, (1 + level) / 2]), "bootstrap"
    if method == "bca":
        quantiles, name = _bca_quantiles(quantiles, drawn, value, statistic((n * table.mean(axis=0) - table) / max(1, n - 1)))
    low, high = np.quantile(drawn, quantiles, method="inverted_cdf")
    ends = [float(end) if math.isfinite(end) else None for end in (low, high)]
    return Interval(value, *ends, n, f"{name}, {resamples:,} resamples", seed)


def _bca_quantiles(quantiles: np.ndarray, drawn: np.ndarray, value: float, left_out: np.ndarray) -> tuple[np.ndarray, str]:
    """The corrected quantiles (Efron & Tibshirani 1993, eq. 14.10) from the resamples [r] and the n leave-one-out values [n]."""
    normal = NormalDist()
    below = ((drawn < value).sum() + 0.5 * (drawn == value).sum()) / len(drawn)
    spread = left_out.mean() - left_out
    scale = (spread**2).sum() ** 1.5
    if not 0 < below < 1 or not scale > 0 or not np.isfinite(left_out).all():
        return quantiles, "bootstrap, BCa undefined"
    bias, acceleration = normal.inv_cdf(below), (spread**3).sum() / (6 * scale)
    shifted = np.array([bias + normal.inv_cdf(q) for q in quantiles])
    if (acceleration * shifted >= 1).any():  # beyond the pole of the formula the two ends would change places
        return quantiles, "bootstrap, BCa undefined"
    return np.array([normal.cdf(bias + z / (1 - acceleration * z)) for z in shifted]), "BCa bootstrap"


def no_false_certainty(found: Interval, why: str) -> Interval:
    """The interval as it is, or without ends (`method` then says why) when it has no width, up to rounding.

    Resamples of equal values are equal. That shows that the sample holds no information about the error, not that there is none.
    """
    if found.low is None or found.high is None or found.high - found.low > 1e-12 * abs(found.value):
        return found
    return replace(found, low=None, high=None, method=f"{why}: not estimable")


def _resampled_means(table: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Column means [resamples, k] of tables drawn from `table` [n, k] with replacement."""
    n = len(table)
    kinds, counts = np.unique(table, axis=0, return_counts=True)
    if len(kinds) <= 32:  # 0/1 data: how often each kind of row is drawn is multinomial, no need to draw row by row
        return rng.multinomial(n, counts / n, size=resamples) @ kinds / n
    means = np.empty((resamples, table.shape[1]))
    rows = max(1, 2_000_000 // n)  # resamples at a time: a few MB of indices, whatever n is
    for start in range(0, resamples, rows):
        picks = rng.integers(0, n, size=(min(rows, resamples - start), n), dtype=np.min_scalar_type(n - 1))
        for k in range(table.shape[1]):
            means[start:start + len(picks), k] = table[:, k][picks].mean(axis=1)
    return means


def mean(values: Sequence[float] | np.ndarray, resamples: int = 10_000, seed: int = 0) -> Interval:
    """The mean of n values with its BCa bootstrap interval, the better one for skewed values (results/coverage).

    Where all values are equal there is nothing to resample, and a width of zero would claim certainty: both ends are None.
    """
    return no_false_certainty(bootstrap([np.asarray(values)], lambda m: m[:, 0], resamples, seed, method="bca"), "no two values differ")


def over_seeds(values: Sequence[float], lowest: float = -math.inf, highest: float = math.inf) -> Interval:
    """Mean of one figure per seed [n] with Student's t interval: what another set of seeds would give. No interval for a single seed or equal ones.

    lowest, highest: what the figure can be at all (0 and 100 for a share in per cent). Few seeds give intervals that reach beyond; they are cut there, which
    costs no coverage.
    """
    table = _as_columns(values)[:, 0]
    n, value = len(table), float(table.mean())
    if n < 2:
        return Interval(value, None, None, n, "one seed")
    half = float(_scipy_stats().t.ppf(0.5 + LEVEL / 2, n - 1) * table.std(ddof=1) / math.sqrt(n))
    return no_false_certainty(Interval(value, max(value - half, lowest), min(value + half, highest), n, "t over seeds"), "no two seeds differ")


def ratio(numerators: Sequence[float], denominators: Sequence[float], resamples: int = 10_000, seed: int = 0) -> Interval:
    """sum(numerators) / sum(denominators), resampling units: token-weighted means, clusters of unequal size.

    Both ends are None where every unit has the same ratio.
    """
    found = bootstrap([np.asarray(numerators), np.asarray(denominators)], lambda m: _divide(m[:, 0], m[:, 1]), resamples, seed)
    return no_false_certainty(found, "no two units differ")


def mean_difference(a: Sequence[float], b: Sequence[float], resamples: int = 10_000, seed: int = 0) -> Interval:
    """mean(b) - mean(a) for paired samples: BCa bootstrap of the differences, or `paired_shares` when the values are 0s and 1s.

    Both ends are None when no pair differs. Nothing but 0s (or 1s) may be any metric at its floor, so that is no share.
    """
    a, b = _as_columns(a, b).T
    if set(np.unique([a, b])) == {0.0, 1.0}:
        return paired_shares(a, b)
    if (a == b).all():
        return Interval(0.0, None, None, len(a), "no pair differed: not estimable", seed)
    return mean(b - a, resamples, seed)


def relative_change(a: Sequence[float], b: Sequence[float], resamples: int = 10_000, seed: int = 0) -> Interval:
    """(mean(b) - mean(a)) / mean(a) for paired samples: -0.45 is "45 % less". Undefined (ValueError) when mean(a) is 0.

    Both ends are None when no pair differs, or when all changed by the same factor (b all 0: "100 % less" in every resample).
    """
    found = bootstrap([np.asarray(a), np.asarray(b)], lambda m: _divide(m[:, 1] - m[:, 0], m[:, 0]), resamples, seed)
    if np.array_equal(a, b):
        return replace(found, low=None, high=None, method="no pair differed: not estimable")
    return no_false_certainty(found, "all changed by one factor")


def _divide(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom, +inf where bottom is 0: the undefined resample counts against a claimed fall, not for it."""
    return np.where(bottom != 0, top / np.where(bottom != 0, bottom, 1.0), np.inf)


def sum_by_cluster(clusters: Sequence, *columns: Sequence[float] | np.ndarray) -> list[np.ndarray]:
    """Column sums per distinct cluster, in order of first appearance, with the cluster sizes as the last column.

    Pairs that share a prompt are not independent. Feed the sums to `ratio` and the bootstrap resamples whole prompts.
    """
    place: dict = {}
    member = np.array([place.setdefault(cluster, len(place)) for cluster in clusters], dtype=np.int64)
    columns = (*columns, np.ones(len(member)))
    return [np.bincount(member, weights=np.asarray(column, dtype=np.float64), minlength=len(place)) for column in columns]


def _scipy_stats():
    try:
        from scipy import stats
    except ImportError:
        raise UserError("The significance tests need scipy: pip install scipy") from None
    return stats


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact p that a win is as likely as a loss, ties left out (Dixon & Mood 1946). 1.0 when nothing was decided."""
    if wins < 0 or losses < 0:
        raise ValueError(f"negative counts: {wins} wins, {losses} losses")
    return float(_scipy_stats().binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> tuple[float, int, int]:
    """Exact McNemar test for two 0/1 results on the same units (McNemar 1947): (p, only a is 1, only b is 1).

    Only units on which the two differ carry information, and under the null each goes either way with probability 1/2.
    """
    table = _binary_columns(a, b)
    only_a = int((table[:, 0] > table[:, 1]).sum())
    only_b = int((table[:, 1] > table[:, 0]).sum())
    return sign_test(only_b, only_a), only_a, only_b


def sign_flip_test(a: Sequence[float], b: Sequence[float], resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided randomisation p for a zero mean of paired differences b - a (Fisher 1935): flip each sign by a coin.

    Adds one to both counts, so p is never 0 (Phipson & Smyth 2010).
    """
    a, b = _as_columns(a, b).T
    differences = (b - a)[b != a]  # a zero stays zero under any flip
    if len(differences) == 0:
        return 1.0
    observed = abs(differences.sum())
    rng = np.random.default_rng(seed)
    rows = max(1, 4_000_000 // len(differences))
    extreme = 0
    for start in range(0, resamples, rows):
        signs = rng.integers(0, 2, size=(min(rows, resamples - start), len(differences)), dtype=np.int8)
        totals = (2.0 * signs - 1.0) @ differences
        extreme += int((np.abs(totals) >= observed * (1 - 1e-12)).sum())  # a tie that rounding broke is still a tie
    return (extreme + 1) / (resamples + 1)


def mann_whitney(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """(U of a, two-sided p): do values of one *independent* sample tend to be larger? (Mann & Whitney 1947)

    U / (len(a) len(b)) estimates P(a > b) + P(a = b) / 2. It ignores pairing: the paired tests above are the main ones.
    """
    _as_columns(a), _as_columns(b)
    result = _scipy_stats().mannwhitneyu(a, b, alternative="two-sided")
    return float(result.statistic), float(result.pvalue)


def cohens_d(a: Sequence[float], b: Sequence[float]) -> float:
    """(mean(b) - mean(a)) / pooled standard deviation (Cohen 1988, eq. 2.2.1). Undefined (ValueError) without spread."""
    a, b = _as_columns(a)[:, 0], _as_columns(b)[:, 0]
    if len(a) < 2 or len(b) < 2:
        raise ValueError("Cohen's d needs two values in each sample")
    pooled = math.sqrt(((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / (len(a) + len(b) - 2))
    if pooled == 0:
        raise ValueError("Cohen's d is undefined: neither sample varies")
    return float((b.mean() - a.mean()) / pooled)


def bonferroni(p_values: Sequence[float]) -> list[float]:
    """p times the number of tests, at most 1 (Dunn 1961)."""
    return [min(1.0, p * len(p_values)) for p in p_values]


def holm(p_values: Sequence[float]) -> list[float]:
    """Step-down corrected p in the given order (Holm 1979): never larger than Bonferroni, same guarantee."""
    corrected = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        # a larger p may not end up more significant than a smaller one, hence the running maximum
        running = max(running, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = running
    return corrected


# ---- how many do I need? --------------------------------------------------------------------------------------------

def power_of(n: int, p: float, null: float = 0.5, alpha: float = 0.05) -> float:
    """Probability that the exact two-sided sign test of n decided pairs rejects `null` at `alpha` when the true win rate is p."""
    if n <= 0 or not (0 < p < 1 and 0 < null < 1 and 0 < alpha < 1):
        raise ValueError(f"need n > 0 and p, null, alpha in (0, 1); got {n}, {p}, {null}, {alpha}")
    binom, wins = _scipy_stats().binom, np.arange(n + 1)
    null_mass = binom.pmf(wins, n, null)
    order = np.argsort(null_mass, kind="stable")
    # the two-sided p of an outcome: the mass of all outcomes that are as unlikely or more
    cumulative = np.cumsum(null_mass[order])
    ranks = np.searchsorted(null_mass[order], null_mass * (1 + 1e-7), side="right") - 1
    return float(binom.pmf(wins, n, p)[cumulative[ranks] <= alpha].sum())


def pairs_needed(p: float = 0.6, null: float = 0.5, power: float = 0.8, alpha: float = 0.05) -> int:
    """Decided pairs needed to see a win rate of p against `null` with the given power, by the exact sign test.

    The smallest n from which the power never again falls below the wish (it goes up in a saw-tooth).
    """
    if p == null:
        raise ValueError("a difference of zero cannot be seen with any number of pairs")
    z = NormalDist()
    rough = ((z.inv_cdf(1 - alpha / 2) * math.sqrt(null * (1 - null)) + z.inv_cdf(power) * math.sqrt(p * (1 - p))) / (p - null)) ** 2
    n = math.ceil(1.3 * rough) + 20  # well beyond the normal approximation, then back while it still suffices
    while n > 1 and power_of(n - 1, p, null, alpha) >= power:
        n -= 1
    return n
