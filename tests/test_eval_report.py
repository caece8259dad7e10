"""Tables, sheets, pictures and the report: hand-worked figures, hostile replies, nothing missing shown as a number."""
import csv
import json
from html.parser import HTMLParser

import numpy as np
import pytest

from eval import annotation, plots, report, stats, tables
from eval.tables import Metric
from runtime.errors import UserError
from runtime.run import read_metrics

NAN = float("nan")


# ---- tables ---------------------------------------------------------------------------------------------------------

def test_rows_and_paired_comparison_by_hand():
    metrics = [Metric("rate", "a rate", better=1, relative=True), Metric("size", "a size", "mean"), Metric("spread", "its sd", "sd")]
    sizes = {"a": np.array([1.0, 2, 3, 4]), "b": np.array([2.0, 3, 4, NAN])}
    values = {"a": {"rate": np.array([1, 1, 0, NAN]), "size": sizes["a"], "spread": sizes["a"]},
              "b": {"rate": np.array([0, 1, 0, 1.0]), "size": sizes["b"], "spread": sizes["b"]}}
    rows = {row["key"]: row for row in tables.metric_rows(values, metrics, 500, 0)}
    assert rows["rate"]["values"]["a"]["value"] == pytest.approx(2 / 3) and rows["rate"]["values"]["a"]["n"] == 3
    assert rows["size"]["values"]["b"]["value"] == 3 and rows["size"]["values"]["b"]["n"] == 3
    assert rows["spread"]["values"]["a"]["value"] == pytest.approx(np.sqrt(1.25))
    comparison = tables.comparison_rows(values, metrics, "a", "b", 500, 0)
    rate, size = comparison["rows"]  # a standard deviation has no paired test
    # only the three prompts where both apply: (1,0) (1,1) (0,0)
    assert rate["difference"]["value"] == pytest.approx(-1 / 3) and (rate["only_first"], rate["only_second"], rate["p"]) == (1, 0, 1.0)
    assert rate["relative"]["value"] == pytest.approx(-0.5)
    assert size["difference"]["value"] == 1 and size["difference"]["n"] == 3 and size["test"] == "sign flip"
    assert [row["p_holm"] for row in comparison["rows"]] == stats.holm([rate["p"], size["p"]])
    assert [row["p_bonferroni"] for row in comparison["rows"]] == stats.bonferroni([rate["p"], size["p"]])


def test_toxicity_scores_get_the_tests_of_earlier_studies():
    score = Metric("t", "t", "mean", relative=True)
    found = tables.compare(np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.5, 0.6]), score, 200, 0)
    assert found["mann_whitney_p"] == pytest.approx(0.1) and found["cohens_d"] == pytest.approx(3.0)
    assert found["relative"]["value"] == pytest.approx(1.5)
    assert "cohens_d" not in tables.compare(np.zeros(3), np.zeros(3), score, 200, 0)  # undefined without spread


def test_a_metric_without_values_has_no_cell_instead_of_zero():
    values = {"a": {"x": np.array([NAN, NAN])}, "b": {"x": np.array([1.0, 0.0])}}
    row, = tables.metric_rows(values, [Metric("x", "x")], 100, 0)
    assert set(row["values"]) == {"b"}
    assert tables.comparison_rows(values, [Metric("x", "x")], "a", "b", 100, 0)["rows"] == []
    assert tables.with_interval(row["values"].get("a")) == "not measured"


def test_a_share_that_is_none_is_an_error():
    with pytest.raises(ValueError, match="share"):
        tables.figure(np.array([0.5, 1.0]), Metric("x", "x"), 100, 0)


def test_formats():
    share = {"value": 0.1234, "low": 0.09, "high": None}
    assert tables.with_interval(share, "share") == "12.3 % [9.0, ∞]"
    assert tables.with_interval({"value": 0.05, "low": -0.01, "high": 0.1}, "share", signed=True) == "+5.0 points [-1.0, 10.0]"
    assert tables.with_interval({"value": 1234.5, "low": 0.0123, "high": 12.345}) == "1,234 [0.0123, 12.3]"
    assert [tables.number(x) for x in (0.0, 0.00567, -0.0000123, 3.14159)] == ["0", "0.0057", "-1.2e-05", "3.14"]
    assert [tables.p_value(p) for p in (0.0004, 0.0311, 1.0)] == ["<.001", ".031", "1"]


# ---- sheets ---------------------------------------------------------------------------------------------------------

def read_csv(path):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =HYPERLINK(\"x\")"])
def test_formulas_are_not_run(text):
    assert annotation.safe_cell(text) == "'" + text


def test_plain_cells_and_numbers_stay(tmp_path):
    assert annotation.safe_cell("It is = 3 - 1") == "It is = 3 - 1" and annotation.safe_cell("") == ""
    annotation.write_csv(tmp_path / "x.csv", ["a", "b"], [[-0.5, "-0.5"]])
    assert read_csv(tmp_path / "x.csv")[1] == ["-0.5", "'-0.5"]


def test_pairwise_sheet_is_blind_and_the_key_undoes_it(tmp_path):
    prompts = [(f"p{i}", f"question {i}") for i in range(40)]
    replies = {"SFT": [f"sft {i}" for i in range(40)], "DPO": [f"dpo {i}, ümläut, \"quoted\"\nline" for i in range(40)]}
    annotation.write_pairwise(tmp_path, prompts, replies, seed=1)
    sheet, key = (read_csv(tmp_path / f"pairwise_preferences_{name}.csv") for name in ("for_annotation", "key"))
    first = sheet[0].index("reply_A")
    for row, (name, *systems, _) in zip(sheet[1:], key[1:]):
        i = int(name[1:])
        assert row[:first] == [f"p{i}", f"question {i}"] and row[first + 2:] == ["", ""]
        assert [replies[system][i] for system in systems] == row[first:first + 2]
    sides = [row[1] for row in key[1:]]
    assert 10 < sides.count("SFT") < 30  # both orders occur
    assert "SFT" not in (tmp_path / "pairwise_preferences_for_annotation.csv").read_text()
    annotation.write_pairwise(tmp_path, prompts, replies, seed=1)
    assert read_csv(tmp_path / "pairwise_preferences_key.csv") == key  # the seed decides


def test_helpfulness_sheet_is_shuffled_and_complete(tmp_path):
    prompts = [(f"p{i}", f"question {i}") for i in range(10)]
    replies = {"SFT": [f"a{i}" for i in range(10)], "DPO": [f"b{i}" for i in range(10)]}
    annotation.write_helpfulness(tmp_path, prompts, replies, seed=0)
    sheet, key = read_csv(tmp_path / "helpfulness_for_annotation.csv")[1:], read_csv(tmp_path / "helpfulness_key.csv")[1:]
    assert len(sheet) == len(key) == 20 and [row[0] for row in sheet] == [row[0] for row in key]
    assert [prompt_id for _, prompt_id, *_ in key] != sorted(prompt_id for _, prompt_id, *_ in key)
    for (_, prompt, reply, *_), (_, prompt_id, system, _) in zip(sheet, key):
        assert prompt == f"question {prompt_id[1:]}" and reply == replies[system][int(prompt_id[1:])]


def test_comparison_csv(tmp_path):
    values = {"sft": {"x": np.array([1.0, 0, 0, 1])}, "dpo": {"x": np.array([1.0, 1, 1, 1])}, "other": {"x": np.full(4, NAN)}}
    metrics = [Metric("x", "=x")]
    rows = tables.metric_rows(values, metrics, 100, 0)
    annotation.write_comparison(tmp_path, rows, {"sft": "SFT", "dpo": "DPO", "other": "Other"},
                                tables.comparison_rows(values, metrics, "sft", "dpo", 100, 0), [{"metric": "toxicity", "reason": "no network"}])
    header, row, missing = read_csv(tmp_path / "model_comparison.csv")
    cells = dict(zip(header, row))
    assert cells["metric"] == "'=x" and float(cells["SFT value"]) == 0.5 and float(cells["DPO value"]) == 1.0
    assert cells["Other value"] == "not measured" and float(cells["DPO - SFT difference"]) == 0.5 and float(cells["p"]) == 0.5
    assert missing == ["toxicity", "", "not measured: no network"]


# ---- pictures -------------------------------------------------------------------------------------------------------

def test_series_and_unfinished_lines(tmp_path):
    rows = [{"step": 1, "split": "train", "loss": 2.0}, {"step": 1, "split": "val", "loss": 3.0}, {"step": 2, "split": "train", "loss": None}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3, "spl')
    assert read_metrics(tmp_path / "metrics.jsonl") == rows
    assert plots.series(rows, "loss", "train") == ([1], [2.0]) and read_metrics(tmp_path / "none.jsonl") == []


def test_pictures_are_written(tmp_path):
    for stage in ("base", "sft", "dpo"):
        (tmp_path / stage).mkdir()
        keys = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy", "logps/chosen", "logps/rejected")
        lines = [{"step": s, "split": split} | {k: s / 10 if stage == "dpo" or k == "loss" else None for k in keys} for s in (1, 2) for split in ("train", "val")]
        (tmp_path / stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plots.training_curves(tmp_path, tmp_path / "curves.png")
    plots.training_curves(tmp_path / "nothing", tmp_path / "empty.png")
    shares = {kind: {"SFT": stats.wilson(3, 9), "DPO": stats.wilson(0, 9)} for kind in ("unsafe", "helpful")}
    plots.toxicity_distribution(tmp_path / "tox.png", shares, {"Detoxify original": {"SFT": np.array([0.1, 0.9, 0.0])}}, ["toxicity (x): no network"])
    plots.toxicity_distribution(tmp_path / "none.png", {}, {}, ["toxicity (x): no network"])
    for name in ("curves", "empty", "tox", "none"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / f"{name}.png").stat().st_size > 2000


# ---- report ---------------------------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script> | </pre></td> & ``` \n# not a heading\n![x](http://evil.example/x.png)"
BLOCKS = [("title", "t <b>"), ("text", "a <i> b"), ("table", ["x", "y"], [["1 | 2", "<u>"]]), ("picture", "p.png", "alt \" text"),
          ("sample", {"id": "unsafe-0000", "prompt": HOSTILE, "replies": {"SFT": HOSTILE, "DPO": ""}}), ("code", "{\"a\": \"</pre>\"}")]


class Tags(HTMLParser):
    """Collects tags and checks that they nest."""
    def __init__(self):
        super().__init__()
        self.open, self.seen, self.sources = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_reply_cannot_become_part_of_the_page(tmp_path):
    (tmp_path / "p.png").write_bytes(b"\x89PNG fake")
    page = report.to_html(BLOCKS, tmp_path)
    tags = Tags()
    tags.feed(page)
    assert tags.open == [] and not {"script", "i", "u"} & set(tags.seen)
    assert all(source.startswith("data:image/png;base64,") for source in tags.sources)  # self-contained
    assert "&lt;script&gt;" in page and "(empty)" in page


def test_markdown_shows_replies_as_code():
    text = report.to_markdown(BLOCKS)
    assert "\n    # not a heading\n" in text and "\n# not" not in text and "1 \\| 2" in text
    outside = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    assert "<script>" not in outside and "<i>" not in outside and "evil" not in outside


def test_a_missing_folder_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="eval.run"):
        report.write_report(tmp_path)
