"""The true coverage of every kind of interval in eval/stats.py, by metric shape, method and n.

    python bench/coverage.py            writes results/coverage/{coverage.json,coverage.md}; about five minutes on one core

Each cell draws samples from a population whose true value is known, makes the nominal 95 % interval, and counts how often the
truth lies inside. Rates need no luck: their coverage is summed over the binomial distribution.
"""
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import binom

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from the repository root, not from bench/

from eval import stats
from eval.coverage import TABLE
from eval.tables import text_table

SIZES, REPETITIONS, RESAMPLES = (50, 200, 1000), 2000, 1000
GRID = np.linspace(0.01, 0.99, 99)
SEEDS = itertools.count()  # one bootstrap seed per interval: with one for all, the same rows would be drawn every time


def toxicity_like(rng: np.random.Generator, n: int) -> np.ndarray:
    """Scores as a toxicity classifier gives them: 97 % near zero, 3 % high."""
    return np.where(rng.random(n) < 0.03, rng.beta(8, 2, n), rng.beta(1, 60, n))


# name -> (shape of its mean, draw(rng, n), true mean)
POPULATIONS: dict[str, tuple[str, Callable, float]] = {
    "normal": ("symmetric", lambda rng, n: rng.normal(size=n), 0.0),
    "uniform": ("symmetric", lambda rng, n: rng.random(n), 0.5),
    "exponential": ("mildly skewed", lambda rng, n: rng.exponential(size=n), 1.0),
    "lognormal, sigma 1": ("strongly skewed", lambda rng, n: rng.lognormal(size=n), float(np.exp(0.5))),
    "toxicity-like scores": ("strongly skewed", toxicity_like, 0.03 * 0.8 + 0.97 / 61),
    "lognormal, sigma 2": ("extremely skewed", lambda rng, n: rng.lognormal(sigma=2, size=n), float(np.exp(2))),
}


def covers(interval: stats.Interval, truth: float) -> bool:
    """An end that is None bounds nothing; an interval without either says nothing, and so covers nothing."""
    return (interval.low, interval.high) != (None, None) and (interval.low is None or interval.low <= truth) and (interval.high is None or truth <= interval.high)


def simulate(draw: Callable[[np.random.Generator], stats.Interval], truth: float, seed: int, repetitions: int = REPETITIONS) -> dict:
    """Share of `repetitions` intervals that hold the truth, with its Monte-Carlo standard error."""
    rng = np.random.default_rng(seed)
    share = float(np.mean([covers(draw(rng), truth) for _ in range(repetitions)]))
    return {"coverage": round(share, 4), "mc_error": round(float(np.sqrt(share * (1 - share) / repetitions)), 4), "repetitions": repetitions}


def rates(n: int) -> list[dict]:
    """Wilson and Clopper-Pearson, exactly: averaged over true rates from .01 to .99, and at the worst of them."""
    rows = []
    for name, method in (("Wilson", stats.wilson), ("Clopper-Pearson", stats.exact)):
        ends = np.array([(i.low, i.high) for i in (method(k, n) for k in range(n + 1))])
        inside = [(binom.pmf(np.arange(n + 1), n, p) * ((ends[:, 0] <= p) & (p <= ends[:, 1]))).sum() for p in GRID]
        for shape, value in (("share", np.mean(inside)), ("share, worst rate", np.min(inside))):
            rows.append({"shape": shape, "population": "rates .01 to .99", "method": name, "n": n, "coverage": round(float(value), 4), "mc_error": 0.0,
                         "repetitions": 0})
    return rows


def paired(n: int, seed: int) -> list[dict]:
    """Difference of two rates on the same prompts: the old and the new reply agree on most of them."""
    def draw(rng: np.random.Generator, how: Callable, cells: tuple[float, ...]) -> stats.Interval:
        both, only_a, only_b, _ = rng.multinomial(n, cells)
        a, b = np.zeros(n), np.zeros(n)
        a[:both + only_a] = b[:both] = b[both + only_a:both + only_a + only_b] = 1
        return how(a, b)
    rows = []
    for name, how in (("Newcombe", stats.paired_shares), ("bootstrap", lambda a, b: stats.mean(b - a, RESAMPLES, next(SEEDS)))):
        for cells in ((0.3, 0.05, 0.15, 0.5), (0.01, 0.01, 0.04, 0.94), (0.6, 0.2, 0.1, 0.1)):
            rows.append({"shape": "paired shares", "population": f"both {cells[0]}, only A {cells[1]}, only B {cells[2]}", "method": name, "n": n}
                        | simulate(lambda rng: draw(rng, how, cells), cells[2] - cells[1], seed))
    return rows


def means(n: int, seed: int) -> list[dict]:
    """Percentile and BCa bootstrap of a mean."""
    rows = []
    for population, (shape, draw, truth) in POPULATIONS.items():
        for name, method in (("bootstrap", "percentile"), ("BCa bootstrap", "bca")):
            found = simulate(lambda rng: stats.bootstrap([draw(rng, n)], lambda m: m[:, 0], RESAMPLES, next(SEEDS), method=method), truth, seed)
            rows.append({"shape": shape, "population": population, "method": name, "n": n} | found)
    return rows


def others(n: int, seed: int) -> list[dict]:
    """Quantiles, maxima, token-weighted ratios, standard deviations, expected maxima over k samples."""
    big = toxicity_like(np.random.default_rng(0), 4_000_000)
    rows = []

    def row(shape: str, population: str, method: str, make: Callable[[np.random.Generator], stats.Interval], truth: float) -> None:
        rows.append({"shape": shape, "population": population, "method": method, "n": n} | simulate(make, truth, seed))

    def resampled(x: np.ndarray, statistic: Callable) -> stats.Interval:
        drawn = statistic(x[np.random.default_rng(next(SEEDS)).integers(0, n, (300, n))])
        return stats.Interval(0.0, *np.quantile(drawn, (0.025, 0.975)), n, "bootstrap")
    for name, q in (("median", 0.5), ("p95", 0.95)):
        truth = float(np.quantile(big, q))
        row(name, "toxicity-like scores", "order statistics", lambda rng: stats.quantile(toxicity_like(rng, n), q), truth)
        row(name, "toxicity-like scores", "bootstrap", lambda rng: resampled(toxicity_like(rng, n), lambda x: np.quantile(x, q, axis=1)), truth)
    row("maximum", "toxicity-like scores", "bootstrap", lambda rng: resampled(toxicity_like(rng, n), lambda x: x.max(axis=1)), 1.0)
    row("maximum", "toxicity-like scores", "largest seen", lambda rng: stats.maximum(toxicity_like(rng, n)), 1.0)

    def perplexity_like(rng: np.random.Generator) -> stats.Interval:
        tokens = rng.geometric(1 / 40, n)  # nats per reply: 3 per token on average, with spread between replies
        return stats.ratio(tokens * rng.gamma(9, 1 / 3, n), tokens, RESAMPLES, next(SEEDS))
    row("ratio", "3 nats per token, geometric lengths", "bootstrap", perplexity_like, 3.0)
    for population, draw, truth in (("normal", lambda rng: rng.normal(size=n), 1.0), ("exponential", lambda rng: rng.exponential(size=n), 1.0)):
        row("sd", population, "bootstrap", lambda rng: stats.bootstrap([x := draw(rng), x**2], lambda m: np.sqrt(np.maximum(m[:, 1] - m[:, 0]**2, 0)), RESAMPLES, next(SEEDS)), truth)
    truth = float(big[:2_000_000].reshape(-1, 5).max(axis=1).mean())
    row("expected maximum", "toxicity-like scores, k = 5", "bootstrap", lambda rng: stats.mean(toxicity_like(rng, 5 * n).reshape(n, 5).max(axis=1), RESAMPLES, next(SEEDS)), truth)
    return rows


def main() -> None:
    rows = []
    for n in SIZES:
        rows += rates(n) + paired(n, n) + means(n, n) + others(n, n)
        print(f"n = {n}: done", flush=True)
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(json.dumps({"level": stats.LEVEL, "resamples": RESAMPLES, "rows": rows}, indent=0) + "\n")
    wide = {}
    for row in rows:
        wide.setdefault((row["shape"], row["population"], row["method"]), {})[row["n"]] = f"{100 * row['coverage']:.1f}"
    header = ["shape", "population", "interval", *(f"n = {n}" for n in SIZES)]
    lines = [[*key, *(cells[n] for n in SIZES)] for key, cells in wide.items()]
    table = "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *lines])
    (TABLE.parent / "coverage.md").write_text(f"""# How often a nominal 95 % interval covers the truth

Coverage in per cent. Rates are summed exactly, everything else is {REPETITIONS:,} simulated samples per cell (Monte-Carlo error at most
{50 / np.sqrt(REPETITIONS):.1f} points, at 95 % {100 * np.sqrt(.95 * .05 / REPETITIONS):.1f}), bootstraps with {RESAMPLES:,} resamples; BCa falls back on the
percentile interval where it is undefined. Made by `python bench/coverage.py`. The report marks intervals
below 90 % with a dagger.

{table}
""")
    print(text_table(header, lines))


if __name__ == "__main__":
    main()
