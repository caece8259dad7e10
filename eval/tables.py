"""From one value per reply to rows of a table: figures with intervals, paired tests, corrected p.

Every measure of a reply is an array [prompts] per system, in the same order of prompts for all systems, NaN where it does
not apply (a refusal rate on unsafe prompts is NaN on the others). So one loop serves all metrics, and pairing is by position.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval import stats
from eval.coverage import skew_class, true_coverage
from eval.stats import Interval

Values = Mapping[str, Mapping[str, np.ndarray]]  # system -> metric key -> [prompts]


NARROW = 0.90  # an interval whose simulated coverage is below this is marked
QUANTILES = {"median": 0.5, "p95": 0.95}


@dataclass(frozen=True)
class Metric:
    """A row of the table. form: "share" of 0/1 values, "mean", or "sd" (standard deviation), "median", "p95", "max", which get no
    paired test. better: +1 up, -1 down, 0 neither."""
    key: str
    label: str
    form: str = "share"
    better: int = 0
    relative: bool = False  # also show the relative change


def figure(values: np.ndarray, metric: Metric, resamples: int, seed: int) -> Interval:
    """The metric's value over the units it applies to: Wilson interval for shares, order statistics for quantiles, bootstrap otherwise."""
    values = values[~np.isnan(values)]
    if metric.form == "share":
        if not np.isin(values, (0, 1)).all():
            raise ValueError(f"{metric.key} is a share but has values other than 0 and 1")
        return stats.wilson(int(values.sum()), len(values))
    if metric.form in QUANTILES:
        return stats.quantile(values, QUANTILES[metric.form])
    if metric.form == "max":
        return stats.maximum(values)
    if metric.form == "sd":
        found = stats.bootstrap([values, values**2], lambda m: np.sqrt(np.maximum(m[:, 1] - m[:, 0] ** 2, 0)), resamples, seed)
        return stats.no_false_certainty(found, "no two values differ")
    return stats.mean(values, resamples, seed)


def coverage_of(values: np.ndarray, form: str, interval: Mapping) -> float | None:
    """Simulated coverage of an interval made from these values (NaN left out); None where it was not simulated."""
    values = values[~np.isnan(values)]
    shape = {"share": "share", "mean": skew_class(values), "max": "maximum"}.get(form, form)
    return true_coverage(shape, interval["method"], len(values))


def compare(a: np.ndarray, b: np.ndarray, metric: Metric, resamples: int, seed: int) -> dict | None:
    """Paired difference b - a over the prompts where both apply (None where there is none), its interval and its test.

    McNemar's exact test for shares, a sign-flip test for means; both are two-sided.
    """
    both = ~(np.isnan(a) | np.isnan(b))
    if not both.any():
        return None
    a, b = a[both], b[both]
    shares = metric.form == "share"
    difference = (stats.paired_shares(a, b) if shares else stats.mean_difference(a, b, resamples, seed)).to_dict()
    covered = true_coverage("paired shares", difference["method"], len(a)) if shares else coverage_of(b - a, "mean", difference)
    result = {"difference": difference | {"coverage": covered}}
    if metric.form == "share":
        result["p"], result["only_first"], result["only_second"] = stats.mcnemar(a, b)
        result["test"] = "McNemar, exact"
    else:
        result["p"], result["test"] = stats.sign_flip_test(a, b, resamples, seed), "sign flip"
    if metric.relative and a.mean() > 0:
        result["relative"] = stats.relative_change(a, b, resamples, seed).to_dict()
    if metric.relative and metric.form == "mean" and len(a) > 1 and (a.std() > 0 or b.std() > 0):
        # what earlier studies report for toxicity scores; both ignore the pairing
        result |= {"mann_whitney_p": stats.mann_whitney(a, b)[1], "cohens_d": stats.cohens_d(a, b)}
    return result


def metric_rows(values: Values, metrics: Sequence[Metric], resamples: int, seed: int) -> list[dict]:
    """One row per metric: {"key", "label", "form", "better", "values": {system: Interval as dict, with its simulated coverage}}; a
    metric that applies to no reply of a system has no entry for it, one that applies to none at all has no row."""
    rows = []
    for metric in metrics:
        cells = {}
        for system, columns in values.items():
            if metric.key in columns and not np.isnan(columns[metric.key]).all():
                cell = figure(columns[metric.key], metric, resamples, seed).to_dict()
                cells[system] = cell | {"coverage": coverage_of(columns[metric.key], metric.form, cell)}
        if not cells:
            continue
        rows.append({"key": metric.key, "label": metric.label, "form": metric.form, "better": metric.better, "values": cells})
    return rows


def comparison_rows(values: Values, metrics: Sequence[Metric], first: str, second: str, resamples: int, seed: int) -> dict:
    """All metrics of system `second` minus system `first`; p corrected over the tests of this comparison."""
    rows = []
    for metric in metrics:
        if metric.form in ("share", "mean") and metric.key in values[first] and metric.key in values[second]:
            found = compare(values[first][metric.key], values[second][metric.key], metric, resamples, seed)
            if found is not None:
                rows.append({"key": metric.key, "label": metric.label, "form": metric.form, "better": metric.better, **found})
    p_values = [row["p"] for row in rows]
    for row, by_holm, by_bonferroni in zip(rows, stats.holm(p_values), stats.bonferroni(p_values)):
        row |= {"p_holm": by_holm, "p_bonferroni": by_bonferroni}
    return {"first": first, "second": second, "rows": rows}


def category_rows(scores: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]], resamples: int, seed: int) -> list[dict]:
    """Mean of every category of every classifier: [{"scorer", "rows": [{"category", "values": {system: Interval as dict}}]}]."""
    return [{"scorer": scorer, "rows": [
        {"category": category, "values": {system: stats.mean(found[category], resamples, seed).to_dict() for system, found in by_system.items()}}
        for category in next(iter(by_system.values()))]} for scorer, by_system in scores.items()]


# ---- plain text -----------------------------------------------------------------------------------------------------

def number(value: float | None, form: str = "mean") -> str:
    """A share in per cent with one decimal, anything else with three significant digits; None is an end that does not exist."""
    if value is None:
        return "∞"
    if form == "share":
        return f"{100 * value:.1f}"
    if 0 < abs(value) < 0.1:
        return f"{value:.4f}" if abs(value) >= 0.0005 else f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def with_interval(cell: Mapping | None, form: str = "mean", signed: bool = False) -> str:
    """"12.3 % [9.1, 16.0]", with a sign for differences; "not measured" for None; † behind an interval known to be too narrow;
    [?, ?] for one that cannot be estimated."""
    if cell is None:
        return "not measured"
    sign = "+" if signed and cell["value"] >= 0 else ""
    unit = (" points" if signed else " %") if form == "share" else ""
    narrow = "†" if (cell.get("coverage") or 1.0) < NARROW else ""
    if cell["low"] is None and cell["high"] is None:
        return f"{sign}{number(cell['value'], form)}{unit} [?, ?]"
    return f"{sign}{number(cell['value'], form)}{unit} [{number(cell['low'], form)}, {number(cell['high'], form)}]{narrow}"


def p_value(p: float) -> str:
    """"<.001" or three decimals without the zero."""
    return "<.001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned with spaces, for a terminal."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in (header, *rows))
