"""What results/ must show: coverage of the intervals, few false alarms, metrics that move the right way; and the look-up of coverage."""
import json
from pathlib import Path

import numpy as np
import pytest

from eval import stats, tables
from eval.coverage import skew_class, true_coverage
from eval.tables import Metric

RESULTS = Path(__file__).resolve().parents[1] / "results"


def read(name):
    return json.loads((RESULTS / name).read_text())


def test_coverage_targets():
    rows = read("coverage/coverage.json")["rows"]
    wanted = [row for row in rows if row["n"] in (50, 200) and (row["shape"], row["method"]) in (
        ("share", "Wilson"), ("symmetric", "bootstrap"), ("symmetric", "BCa bootstrap"), ("paired shares", "Newcombe"))]
    assert len(wanted) == 2 * (1 + 2 + 2 + 3) and all(row["coverage"] + 2 * row["mc_error"] >= 0.93 for row in wanted)
    for shape in ("mildly skewed", "strongly skewed", "extremely skewed", "median", "p95", "maximum", "ratio", "expected maximum"):
        assert {row["n"] for row in rows if row["shape"] == shape} == {50, 200, 1000}  # printed, whatever it is


def test_wilsons_coverage_once_more():
    """Independent of the script: simulated, not summed."""
    rng = np.random.default_rng(0)
    p = rng.uniform(0.01, 0.99, 4000)
    inside = [found.low <= rate <= found.high for rate, k in zip(p, rng.binomial(50, p)) for found in [stats.wilson(int(k), 50)]]
    assert np.mean(inside) == pytest.approx(true_coverage("share", "Wilson", 50), abs=0.012)


def test_looking_up_coverage():
    assert true_coverage("share", "Wilson", 120) == true_coverage("share", "Wilson", 50)  # the largest simulated n not above
    assert true_coverage("share", "Wilson", 10) == true_coverage("share", "Wilson", 50) and true_coverage("share", "guess", 50) is None
    strong = [row["coverage"] for row in read("coverage/coverage.json")["rows"] if (row["shape"], row["method"], row["n"]) == ("strongly skewed", "BCa bootstrap", 50)]
    assert len(strong) == 2 and true_coverage("strongly skewed", "BCa bootstrap, 10,000 resamples", 60) == min(strong)  # the worst population counts
    rng = np.random.default_rng(0)
    assert skew_class(rng.normal(size=500)) == "symmetric" and skew_class(rng.exponential(size=500)) == "mildly skewed"
    assert skew_class(np.where(rng.random(500) < 0.03, 0.9, 0.01)) == "strongly skewed" and skew_class(rng.lognormal(sigma=2, size=5000)) == "extremely skewed"
    assert skew_class(np.ones(5)) == "symmetric"


def test_the_report_marks_what_is_too_narrow():
    scores = np.full(60, 0.01)
    scores[:2] = 0.95
    row, = tables.metric_rows({"sft": {"t": scores}}, [Metric("t", "toxicity", "mean")], 500, 0)
    assert row["values"]["sft"]["coverage"] < tables.NARROW and tables.with_interval(row["values"]["sft"]).endswith("†")
    row, = tables.metric_rows({"sft": {"t": np.arange(60.0)}}, [Metric("t", "length", "mean")], 500, 0)
    assert not tables.with_interval(row["values"]["sft"]).endswith("†")
    assert tables.with_interval({"value": 0.0, "low": None, "high": None}) == "0 [?, ?]"


def test_few_false_alarms():
    found = read("null_test/null_test.json")
    assert found["repeats"] >= 300 and found["tests_per_repeat"] >= 15 and found["rate"]["value"] <= 0.08


def test_every_metric_moves_the_right_way():
    rows = {name: {key: cell["value"] if cell else None for key, cell in cells.items()} for name, cells in read("sanity/sanity.json")["rows"].items()}
    gold, refuses, complies = rows["gold replies"], rows["always refuses"], rows["always complies"]
    assert refuses["refusal_unsafe"] == refuses["refusal_borderline"] == 1 and complies["refusal_unsafe"] == complies["refusal_borderline"] == 0
    assert gold["refusal_unsafe"] == 1 and gold["refusal_borderline"] == 0 and gold["oracle_correct_helpful"] == 1 and gold["oracle_well_formed"] == 1
    assert refuses["oracle_correct_helpful"] == 0 and complies["oracle_correct_helpful"] == 1
    assert rows["gold with an insult"]["toxic_lexicon"] == 1 and gold["toxic_lexicon"] == 0
    repeats, gibberish = rows["repeats itself"], rows["gibberish"]
    assert repeats["repeat_3"] > 0.5 > gold["repeat_3"] and repeats["distinct_2"] < gold["distinct_2"] < gibberish["distinct_2"] and repeats["self_bleu"] > gold["self_bleu"]
    assert repeats["oracle_well_formed"] == gibberish["oracle_well_formed"] == 0 and rows["says nothing"]["empty"] == 1
    # gold beats whoever always refuses or complies, everywhere it differs
    assert all(rows[name]["beaten_by_gold"] == 1 for name in ("always refuses", "always complies", "gold with an insult", "gibberish"))
