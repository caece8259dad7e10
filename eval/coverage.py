"""How often a "95 %" interval really covers the truth: the look-up of what bench/coverage.py simulated (results/coverage).

A bootstrap of 50 values of which one is large does not know that there are larger ones. The report marks such intervals.
"""
import json
from functools import cache
from pathlib import Path

import numpy as np

TABLE = Path(__file__).resolve().parents[1] / "results" / "coverage" / "coverage.json"
# sample skewness below which a sample counts as ...; the simulated populations have 0, 2 (exponential), 4 to 6 (toxicity-like
# scores, lognormal with sigma 1) and 414 (lognormal with sigma 2)
SKEWNESS = ((0.75, "symmetric"), (3.0, "mildly skewed"), (7.0, "strongly skewed"), (np.inf, "extremely skewed"))


def skew_class(values: np.ndarray) -> str:
    """"symmetric", "mildly skewed", "strongly skewed" or "extremely skewed", by the sample skewness of values [n]."""
    centred = np.asarray(values, dtype=np.float64) - np.mean(values)
    spread = (centred**2).mean() ** 1.5
    skewness = abs((centred**3).mean() / spread) if spread > 0 else 0.0
    return next(name for limit, name in SKEWNESS if skewness < limit)


@cache
def _rows() -> list[dict]:
    return json.loads(TABLE.read_text())["rows"]


def true_coverage(shape: str, method: str, n: int) -> float | None:
    """Simulated coverage of a nominal 95 % interval, the worst of the simulated populations of that shape; None if not simulated.

    shape: "share", "paired shares", a `skew_class` of a mean, "median", "p95", "maximum", "ratio", "sd". method: an Interval's.
    n: the largest simulated n not above it counts (the smallest when it is below all).
    """
    name = method.split(",")[0]
    rows = [row for row in _rows() if row["shape"] == shape and row["method"] == name]
    if not rows:
        return None
    sizes = sorted({row["n"] for row in rows})
    nearest = max((size for size in sizes if size <= n), default=sizes[0])
    return min(row["coverage"] for row in rows if row["n"] == nearest)
