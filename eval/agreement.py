"""Do annotators agree beyond chance? Cohen's kappa for two, Fleiss' kappa for several, Krippendorff's alpha with gaps and scales."""
import math
from collections.abc import Callable, Hashable, Sequence
from itertools import combinations

import numpy as np

from eval.stats import LEVEL, Interval, no_false_certainty

Ratings = Sequence[Sequence[Hashable | None]]  # [items][annotators], None = not rated


def cohen_kappa(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """(observed - expected agreement) / (1 - expected) of two raters on the same items (Cohen 1960).

    NaN when both always use one and the same category: agreement is then certain by chance alone.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"need two equally long lists of ratings, got {len(a)} and {len(b)}")
    seen = np.mean([x == y for x, y in zip(a, b)])
    chance = sum((list(a).count(c) / len(a)) * (list(b).count(c) / len(b)) for c in set(a) | set(b))
    return float((seen - chance) / (1 - chance)) if chance < 1 else float("nan")


def fleiss_kappa(ratings: Ratings) -> float:
    """Chance-corrected agreement of several raters, every item rated equally often (Fleiss 1971). NaN with one category only."""
    counts = _counts(ratings)
    raters = counts.sum(axis=1)
    if len(set(raters)) != 1 or raters[0] < 2:
        raise ValueError("Fleiss' kappa needs the same number of ratings, two or more, for every item; krippendorff_alpha allows gaps")
    n = raters[0]
    per_item = ((counts**2).sum(axis=1) - n) / (n * (n - 1))
    chance = ((counts.sum(axis=0) / counts.sum()) ** 2).sum()
    return float((per_item.mean() - chance) / (1 - chance)) if chance < 1 else float("nan")


def krippendorff_alpha(ratings: Ratings, level: str = "nominal") -> float:
    """1 - observed / expected disagreement (Krippendorff 2011); gaps are allowed. level: "nominal", "ordinal" or "interval".

    Ordinal and interval need numbers. Items with fewer than two ratings pair with nothing and are left out. NaN when there is
    no variation at all.
    """
    values = {rating for item in ratings for rating in item if rating is not None}
    if level != "nominal" and not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
        raise ValueError(f"{level} agreement needs numbers, got {', '.join(sorted(map(str, values)))}")
    values = sorted(values, key=str if level == "nominal" else None)  # 2 and 2.0 are one number, and 10 comes after 9
    counts = _counts(ratings, values)
    counts = counts[counts.sum(axis=1) >= 2]
    if not len(counts):
        raise ValueError("no item has two ratings: agreement cannot be measured")
    m = counts.sum(axis=1)
    # coincidences [c, k]: every ordered pair of ratings within an item, weighted by 1 / (ratings of the item - 1)
    scaled = counts / (m - 1)[:, None]
    together = scaled.T @ counts - np.diag(scaled.sum(axis=0))
    totals = together.sum(axis=0)
    distance = _distance(values, totals, level)
    expected = (np.outer(totals, totals) * distance).sum() / (totals.sum() - 1)
    return float(1 - (together * distance).sum() / expected) if expected > 0 else float("nan")


def _distance(values: list, totals: np.ndarray, level: str) -> np.ndarray:
    """Squared disagreement [c, k] between two categories."""
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    if level == "interval":
        x = np.array(values, dtype=np.float64)
        return (x[:, None] - x[None]) ** 2
    if level == "ordinal":  # how many ratings lie between two categories, half of each end counted
        upto = np.cumsum(totals) - totals / 2
        return (upto[:, None] - upto[None]) ** 2
    raise ValueError(f"level is {level!r}; it must be nominal, ordinal or interval")


def _counts(ratings: Ratings, values: list | None = None) -> np.ndarray:
    """[items, categories]: how often each item was put into each category."""
    values = values if values is not None else sorted({r for item in ratings for r in item if r is not None}, key=str)
    place = {value: i for i, value in enumerate(values)}
    counts = np.zeros((len(ratings), len(values)))
    for i, item in enumerate(ratings):
        for rating in item:
            if rating != rating:
                raise ValueError("a rating is NaN; None marks one that is missing")
            if rating is not None:
                counts[i, place[rating]] += 1
    return counts


def interval(measure: Callable[[Ratings], float], ratings: Ratings, resamples: int = 1000, seed: int = 0) -> Interval:
    """A measure of agreement with a percentile bootstrap over items; ends are None when more than 2.5 % of the resamples have no value."""
    ratings, rng = list(ratings), np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        try:
            drawn.append(measure([ratings[i] for i in rng.integers(0, len(ratings), len(ratings))]))
        except ValueError:
            drawn.append(float("nan"))
    usable = np.array(drawn)[~np.isnan(drawn)]
    ends = [float(x) for x in np.quantile(usable, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])] if len(usable) >= 0.975 * resamples else [None, None]
    return no_false_certainty(Interval(measure(ratings), *ends, len(ratings), f"bootstrap over items, {len(usable):,} resamples", seed),
                              "agreement is the same in every resample")


def summary(ratings: Ratings, resamples: int = 1000, seed: int = 0) -> dict[str, dict]:
    """Everything that applies to a table of nominal votes: alpha, Fleiss' kappa on fully rated items, Cohen's kappa per pair of raters."""
    resamples = min(resamples, 1000)
    found = {}
    if sum(sum(r is not None for r in item) >= 2 for item in ratings):
        found["Krippendorff's alpha, nominal"] = interval(krippendorff_alpha, ratings, resamples, seed).to_dict()
    full = [item for item in ratings if all(r is not None for r in item)]
    if full:
        found["Fleiss' kappa, items rated by all"] = interval(fleiss_kappa, full, resamples, seed).to_dict()
    for i, j in combinations(range(len(ratings[0])), 2):
        both = [(item[i], item[j]) for item in ratings if item[i] is not None and item[j] is not None]
        if both:
            found[f"Cohen's kappa, annotators {i + 1} and {j + 1}"] = interval(lambda rows: cohen_kappa(*zip(*rows)), both, resamples, seed).to_dict()
    return {name: cell for name, cell in found.items() if not np.isnan(cell["value"])}
