"""Measuring replies of any kind: empty, one word, 10,000 characters; nothing fails, nothing undefined becomes a number."""
import numpy as np
import pytest

from eval import tables
from eval.measure import measure_replies
from eval.replies import Prompt, Reply
from runtime.config import load_config
from tokenizer import ASSISTANT, HUMAN

ODD = ["", "No", "word " * 2000, "a" * 10_000, "\n\n\n", "I cannot help you with that. " * 300, "=HYPERLINK(\"x\")", "\0\x07", "Sure. " * 3, "😀 " * 50]
TOY = f"{HUMAN} How do I paint the door of my own shed?{ASSISTANT}"


def measured(source, group=""):
    config = load_config(["toy"] if source == "toy" else ["toy", "--data.source=x"])
    prompts = [Prompt(f"p-{i:04d}", "helpful", TOY, [], group) for i in range(len(ODD))]
    replies = {name: [Reply(text, [1] * len(text.split()), True) for text in texts] for name, texts in (("sft", ODD), ("dpo", ODD[::-1]))}
    provoked = {name: np.array([ODD[:4], ODD[4:8]], dtype=object) for name in replies}
    return measure_replies(prompts, replies, provoked, config, "cpu")


@pytest.mark.parametrize("source", ["toy", "text"])
def test_odd_replies_are_measured_or_left_out(source):
    m = measured(source)
    rows = {row["key"]: row for row in tables.metric_rows(m.values, m.metrics, 200, 0)}
    n = len(ODD)
    assert rows["words"]["values"]["sft"]["n"] == n and rows["words"]["values"]["sft"]["value"] == pytest.approx(np.mean([len(t.split()) for t in ODD]))
    assert rows["empty"]["values"]["sft"]["value"] == 1 / n
    assert rows["type_token"]["values"]["sft"]["n"] == n - 2  # "" and line breaks have no words
    assert rows["mattr"]["values"]["sft"]["n"] == 3 and rows["repeat_3"]["values"]["sft"]["n"] == 4  # long enough ones only
    assert rows["refusal_helpful"]["values"]["sft"]["value"] == 1 / n
    assert rows["provoked_any_lexicon"]["values"]["dpo"]["n"] == 2
    for row in rows.values():
        for cell in row["values"].values():
            assert np.isfinite(cell["value"])
    assert ("oracle_score" in rows) == (source == "toy")
    found = tables.comparison_rows(m.values, m.metrics, "sft", "dpo", 200, 0)
    assert all(0 <= row["p_holm"] <= 1 for row in found["rows"])


def test_prompts_beyond_the_toy_grammar_are_not_judged_by_the_oracle():
    m = measured("toy", group="own helpful")
    assert "oracle_score" not in m.values["sft"] and "refusal_own_helpful" in m.values["sft"]


def test_quantiles_and_maxima_are_rows_without_a_test():
    values = {"sft": {"t": np.linspace(0, 1, 41)}, "dpo": {"t": np.linspace(0, 0.5, 41)}}
    metrics = [tables.Metric("t", "t", form) for form in ("median", "p95", "max", "mean")]
    median, p95, largest, _ = tables.metric_rows(values, metrics, 200, 0)
    assert median["values"]["sft"]["value"] == 0.5 and p95["values"]["dpo"]["value"] == pytest.approx(0.475)
    assert largest["values"]["sft"]["value"] == 1 and largest["values"]["sft"]["high"] is None
    assert len(tables.comparison_rows(values, metrics, "sft", "dpo", 200, 0)["rows"]) == 1


def test_every_category_of_a_classifier_is_shown():
    scores = {"Detoxify original": {"sft": {"toxicity": np.array([0.1, 0.3]), "threat": np.array([0.0, 0.2])}, "dpo": {"toxicity": np.zeros(2), "threat": np.zeros(2)}}}
    table, = tables.category_rows(scores, 100, 0)
    assert [row["category"] for row in table["rows"]] == ["toxicity", "threat"] and table["rows"][1]["values"]["sft"]["value"] == pytest.approx(0.1)
