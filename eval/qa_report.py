"""From answers to figures: every metric on the model's answers and on answers whose worth is known, with intervals, as JSON and Markdown.

The known answers are the gold one, the invented one, two true wordings of the gold (`known_answers`) and, where the gold is yes or no,
its opposite. A metric that gives the invented answer more than a true sentence does not measure truth, whatever its name is.
"""
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.sources import read_lines
from data.store import write_lines
from eval import qa_metrics, similarity, stats, tables
from eval.grounding import Entailment, LLMJudge, overlap, support
from eval.tables import Metric, Values, with_interval
from runtime.errors import UserError

RESAMPLES = 10_000
AUC_RESAMPLES = 1_000  # each sorts all answers
SYSTEMS = {"model": "model", "gold": "gold answer", "hallucinated": "invented answer", "sentence": "gold in a sentence",
           "verbose": "gold, verbose", "flip": "yes/no flipped"}
# what a metric should tell apart: name -> (right, wrong, heading); the last pair has one length, so nothing but the meaning can help
CONTRASTS = {"gold": ("gold", "hallucinated", "gold / invented"), "sentence": ("sentence", "hallucinated", "in a sentence / invented"),
             "verbose": ("verbose", "hallucinated", "verbose / invented"), "flip": ("gold", "flip", "yes/no gold / flipped")}
LENGTHS = {"1-3 words": (1, 3), "4-10 words": (4, 10), "over 10 words": (11, np.inf)}  # an empty answer has no bin
GROUPS = {
    "(A) Reference-based": (
        Metric("exact_match", "exact match", better=1), Metric("f1", "token F1", "mean", 1), Metric("alias_match", "alias match", better=1),
        Metric("contained", "gold contained", better=1)),
    "(B) Judged, with the question": (
        Metric("entailed", "claim entailed (P >= .5)", better=1), Metric("entailment", "P(claim entailed)", "mean", 1),
        Metric("llm_supported", "supported (LLM)", better=1)),
    "Format-sensitive diagnostics: no measures of truth": (
        Metric("similarity_hallucinated", "cos(answer, invented) > cos(answer, gold), as published", better=-1),
        Metric("similarity_margin", "cosine margin, as published", "mean", 1),
        Metric("bertscore", "BERTScore F1, raw, as published", "mean", 1), Metric("bertscore_rescaled", "BERTScore F1, rescaled", "mean", 1),
        Metric("bleu_unsmoothed", "BLEU-4, unsmoothed, as published", "mean", 1), Metric("bleu", "BLEU-4, smoothed", "mean", 1),
        Metric("rouge_l", "ROUGE-L F, as published", "mean", 1)),
    "Baselines that know nothing": (Metric("overlap", "words found in the knowledge", "mean", 1), Metric("words", "words in the answer", "mean", -1))}
METRICS = [metric for group in GROUPS.values() for metric in group]
TEXT_METRICS: dict[str, Callable] = {"exact_match": qa_metrics.exact_match, "f1": qa_metrics.f1, "alias_match": qa_metrics.alias_match,
                                     "contained": qa_metrics.contains, "bleu_unsmoothed": qa_metrics.bleu_unsmoothed,
                                     "bleu": qa_metrics.bleu, "rouge_l": qa_metrics.rouge_l}


@dataclass(frozen=True)
class Item:
    """One row of HaluEval QA; `golds` are the right answer and, where the file has them, its aliases. id: the line in the file, from 1."""
    id: int
    question: str
    knowledge: str
    golds: tuple[str, ...]
    hallucinated: str


@dataclass
class Tools:
    """What measures more than strings; None = not given. `chance` is similarity.chance_level, found at the first use."""
    entailment: Entailment | None = None
    llm: LLMJudge | None = None
    embeddings: similarity.Encoder | None = None
    bertscore: similarity.Encoder | None = None
    layer: int = -1
    chance: float | None = None


# ---- one value per answer -----------------------------------------------------------------------------------------------

def known_answers(items: Sequence[Item]) -> dict[str, list[str | None]]:
    """{system: one answer per item}, None where the item has none: answers that are right or wrong by construction."""
    flip = {"yes": "no", "no": "yes", "": None}
    return {"gold": [item.golds[0] for item in items], "hallucinated": [item.hallucinated for item in items],
            "sentence": [f"The answer is {item.golds[0].rstrip('. ')}." for item in items],
            "verbose": [f"You asked me the following: {item.question.strip()} I have read the given context from beginning to end, and going by what it says, "
                        f"the answer to your question is {item.golds[0].rstrip('. ')}. Please let me know whether I can help with anything else." for item in items],
            "flip": [flip[qa_metrics.yes_no(item.golds[0])] for item in items]}


def measure(items: Sequence[Item], answers: Sequence[str | None], tools: Tools) -> dict[str, np.ndarray]:
    """{metric: one value per item [n]}, NaN where there is no answer (None), where a judge came to none, or where it is undefined (an empty
    text has no embedding). An empty answer is an answer: it matches nothing and is not supported."""
    there = [i for i, answer in enumerate(answers) if answer is not None]
    kept, said = [items[i] for i in there], [answers[i] for i in there]
    # a gold such as "A" normalises to nothing, which an empty answer would equal
    found = {key: np.array([score(a, item.golds) if a.strip() else 0.0 for a, item in zip(said, kept)]) for key, score in TEXT_METRICS.items() if not lacking(tools).get(key)}
    questions, knowledge = [item.question for item in kept], [item.knowledge for item in kept]
    found |= {"overlap": overlap(knowledge, said), "words": np.array([float(qa_metrics.word_count(a)) for a in said])}
    if tools.entailment:
        p = found["entailment"] = support(tools.entailment, questions, knowledge, said)
        found["entailed"] = np.where(np.isnan(p), np.nan, p >= 0.5)
    if tools.llm:
        found["llm_supported"] = support(tools.llm, questions, knowledge, said)
    found |= _similarities(kept, said, tools)
    columns = {}
    for key, values in found.items():
        columns[key] = np.full(len(items), np.nan)
        columns[key][there] = values
    return columns


def _similarities(items: Sequence[Item], said: Sequence[str], tools: Tools) -> dict[str, np.ndarray]:
    """What the encoders give: the published rule (called hallucinated when nearer to the invented answer) and BERTScore, raw and rescaled."""
    found, empty, golds = {}, np.array([not a.strip() for a in said]), [item.golds[0] for item in items]
    if tools.embeddings and items:
        g, r, h = (similarity.embed(tools.embeddings, texts) for texts in (said, golds, [item.hallucinated for item in items]))
        margin = np.where(empty, np.nan, ((g * r).sum(1) - (g * h).sum(1)))
        found |= {"similarity_margin": margin, "similarity_hallucinated": np.where(empty, np.nan, margin < 0)}
    if tools.bertscore and items:
        if tools.chance is None and len(golds) > 1:
            tools.chance = similarity.chance_level(tools.bertscore, golds, tools.layer)
        f = found["bertscore"] = similarity.bert_score(tools.bertscore, said, golds, tools.layer)
        found["bertscore_rescaled"] = (f - tools.chance) / (1 - tools.chance) if tools.chance is not None else np.full(len(f), np.nan)
    return found


def lacking(tools: Tools) -> dict[str, str]:
    """{metric: why it is not measured}."""
    wanted = {"entailment": (tools.entailment, "no --entailment FOLDER was given"), "entailed": (tools.entailment, "no --entailment FOLDER was given"),
              "llm_supported": (tools.llm, "no --judge MODEL was given")}
    wanted |= {key: (tools.embeddings, "no --embeddings MODEL was given") for key in ("similarity_hallucinated", "similarity_margin")}
    wanted |= {key: (tools.bertscore, "no --bertscore MODEL was given") for key in ("bertscore", "bertscore_rescaled")}
    reasons = {key: why for key, (tool, why) in wanted.items() if tool is None}
    try:
        import sacrebleu  # noqa: F401
    except ImportError:
        reasons |= dict.fromkeys(("bleu", "bleu_unsmoothed"), "sacrebleu is not installed: pip install sacrebleu")
    return reasons


# ---- figures ------------------------------------------------------------------------------------------------------------

def auc(right: np.ndarray, wrong: np.ndarray, seed: int = 0) -> stats.Interval:
    """P(a right answer scores above a wrong one) + P(tie) / 2 over all pairs of answers [n], [n]; the bootstrap draws questions, with both
    of their answers. Questions where either is NaN are left out. ValueError when none is left."""
    both = ~(np.isnan(right) | np.isnan(wrong))
    right, wrong = right[both], wrong[both]
    if not len(right):
        raise ValueError("no question has both answers")
    _, ranks = np.unique(np.concatenate([right, wrong]), return_inverse=True)
    a, b, top = ranks[:len(right)], ranks[len(right):], ranks.max() + 1

    def area(picks: np.ndarray) -> float:
        good, bad = np.bincount(a[picks], minlength=top), np.bincount(b[picks], minlength=top)
        return float((good * (np.cumsum(bad) - bad / 2)).sum() / len(picks) ** 2)
    n, rng = len(a), np.random.default_rng(seed)
    drawn = [area(rng.integers(0, n, n)) for _ in range(AUC_RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    found = stats.Interval(area(np.arange(n)), float(low), float(high), n, f"bootstrap of questions, {AUC_RESAMPLES:,} resamples", seed)
    return stats.no_false_certainty(found, "no resample differs")


def separations(values: Values, seed: int) -> list[dict]:
    """Per metric: the AUC of each kind of right answer against a wrong one (`CONTRASTS`). A metric of truth is near 1 in every column."""
    rows = []
    for metric in METRICS:
        pairs = {name: (metric.better * values[right][metric.key], metric.better * values[wrong][metric.key])
                 for name, (right, wrong, _) in CONTRASTS.items() if metric.key in values[right] and metric.key in values[wrong]}
        cells = {name: auc(right, wrong, seed).to_dict() for name, (right, wrong) in pairs.items() if not np.isnan(right + wrong).all()}
        if cells:
            rows.append({"key": metric.key, "label": metric.label, "values": cells})
    return rows


def by_length(columns: Mapping[str, np.ndarray], seed: int) -> list[dict]:
    """tables.metric_rows with a column for every length of the answer: metrics that depend on it are seen to."""
    words = columns["words"]
    bins = {name: {key: np.where((words >= low) & (words <= high), column, np.nan) for key, column in columns.items()}
            for name, (low, high) in LENGTHS.items()}
    return tables.metric_rows(bins, METRICS, RESAMPLES, seed)


def compare(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], names: tuple[str, str], seed: int) -> dict:
    """Paired comparison of two runs, second minus first: tables.comparison_rows, with wins and losses of the second for means too."""
    shared = [metric for metric in METRICS if metric.key in first and metric.key in second]
    metrics = [_as_found({names[0]: first, names[1]: second}, m) for m in shared]
    found = tables.comparison_rows({names[0]: first, names[1]: second}, metrics, *names, RESAMPLES, seed)
    for row in found["rows"]:
        gain = row["better"] * (second[row["key"]] - first[row["key"]])
        row |= {"wins": int((gain > 0).sum()), "losses": int((gain < 0).sum())}
    return found


def over_seeds(sets: Sequence[Mapping[str, np.ndarray]]) -> list[dict]:
    """Each metric's mean over sampling seeds with Student's t interval."""
    return [{"key": m.key, "label": m.label, "form": m.form, "value": stats.over_seeds([float(np.nanmean(columns[m.key])) for columns in sets]).to_dict()}
            for m in METRICS if m.key in sets[0] and not any(np.isnan(columns[m.key]).all() for columns in sets)]


def figures(values: Values, breakdown: str, seed: int) -> dict:
    """{"metrics", "separation", "by_length", "length_of"} of {system: columns}; lengths are those of the system `breakdown`."""
    metrics = [_as_found(values, metric) for metric in METRICS]
    return {"metrics": tables.metric_rows(values, metrics, RESAMPLES, seed), "separation": separations(values, seed), "length_of": breakdown,
            "by_length": by_length(values[breakdown], seed) if metrics == METRICS else []}


def _as_found(values: Values, metric: Metric) -> Metric:
    """The metric, or as a mean what is a share no longer: several sampled answers per question average 0s and 1s."""
    found = np.concatenate([columns[metric.key] for columns in values.values() if metric.key in columns] or [[]])
    shares = np.isin(found[~np.isnan(found)], (0, 1)).all()
    return metric if shares or metric.form != "share" else Metric(metric.key, metric.label, "mean", metric.better)


# ---- detailed_<run>.jsonl ------------------------------------------------------------------------------------------------

def write_details(path: Path, items: Sequence[Item], answers: Sequence[Sequence[str]], shortened: Sequence[bool], columns: Mapping[str, np.ndarray],
                  gap: np.ndarray | None) -> None:
    """detailed_<run>.jsonl: one line per question; a value that does not exist is null."""
    rows = []
    for i, item in enumerate(items):
        said = [texts[i] for texts in answers]
        row = {"id": item.id, "question": item.question, "right_answer": item.golds[0], "generated": said[0] if len(said) == 1 else said,
               "knowledge_shortened": shortened[i],
               "scores": {key: None if math.isnan(values[i]) else round(float(values[i]), 6) for key, values in columns.items()}}
        if gap is not None and not np.isnan(gap[i]).any():
            row["yes_minus_no"] = {"right": round(gap[i, 0], 4), "invented": round(gap[i, 1], 4)}
        rows.append(row)
    write_lines(path, rows)


def read_details(path: Path, items: Sequence[Item]) -> dict[str, np.ndarray]:
    """The columns of another run's detailed file. UserError unless it answers exactly these questions."""
    if not path.is_file():
        raise UserError(f"--against: there is no file {path}.")
    try:
        rows = {row["id"]: row for row in map(json.loads, read_lines(path))}
        same = len(rows) == len(items) and all(rows[item.id]["question"] == item.question for item in items)
        keys = list(dict.fromkeys(key for row in rows.values() for key in row["scores"]))
        columns = {key: np.array([rows[item.id]["scores"].get(key) for item in items], dtype=np.float64) for key in keys} if same else {}
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"--against: {path} is not a detailed file of this evaluation ({type(e).__name__}: {e}).") from None
    if not same:
        raise UserError(f"--against: {path.name} does not answer the same {len(items)} questions: run both with the same --data and --limit.")
    return columns


def read_answers(path: Path, items: Sequence[Item]) -> list[list[str]]:
    """Answers [seeds][n] of a detailed file, ours or the published one: rows with "question" and "generated" in the order of the data. UserError."""
    if not path.is_file():
        raise UserError(f"--answers: there is no file {path}.")
    try:
        rows = [json.loads(line) for line in read_lines(path)][:len(items)]
        if [row["question"] for row in rows] != [item.question for item in items]:
            raise ValueError("its questions are not those of --data, row by row")
        said = [[row["generated"]] if isinstance(row["generated"], str) else list(map(str, row["generated"])) for row in rows]
        return [list(column) for column in zip(*said, strict=True)]
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"--answers: {path.name} cannot be used ({type(e).__name__}: {e}).") from None


# ---- Markdown -----------------------------------------------------------------------------------------------------------

def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *("| " + " | ".join(row) + " |" for row in rows), ""]


def _grouped(rows: Sequence[dict], columns: Mapping[str, str], form: str = "") -> list[str]:
    """One line per metric under the heading of its group; cells are figures with intervals."""
    by_key, lines = {row["key"]: row for row in rows}, []
    for group, metrics in GROUPS.items():
        here = [by_key[m.key] for m in metrics if m.key in by_key]
        if here:
            lines.append([f"**{group}**"] + [""] * len(columns))
            lines += [[row["label"], *(with_interval(row["values"][c], form or row["form"]) if c in row["values"] else "" for c in columns)] for row in here]
    return _table(["", *columns.values()], lines)


def markdown(report: dict) -> str:
    """The report (metrics_<run>.json's content) as a page."""
    m, systems = report["manifest"], {key: label for key, label in SYSTEMS.items() if any(key in row["values"] for row in report["metrics"])}
    how = f"{m['decoding']}; prompt `{m['prompt']}`" if m["decoding"] else "no model was asked"
    lines = [f"# HaluEval QA: {report['name']}", "", report["note"], "", f"{m['rows']:,} rows; {how}; commit {m['commit']}; data sha256 "
             f"{m['data']['sha256'][:16]}. Intervals are 95 %; [?, ?]: no two values differ, so none can be estimated; "
             "†: known to be too narrow. `flipped` exists for the questions with a yes/no answer alone.", ""]
    lines += _grouped(report["metrics"], systems)
    lines += ["## What each metric is worth", "", "P(a right answer scores above a wrong one), for pairs of a right and a wrong answer; one half is chance. "
              "Mind the baselines: an AUC that the number of words reaches too shows no understanding.", ""]
    lines += _grouped(report["separation"], {name: heading for name, (_, _, heading) in CONTRASTS.items()}, "mean")
    if report["by_length"]:
        lines += [f"## By length of the answer ({SYSTEMS[report['length_of']]})", ""] + _grouped(report["by_length"], {name: name for name in LENGTHS})
    if d := report.get("discrimination"):
        lines += ["## Telling right from invented answers", "", f"{d['note']} Shown for {d['auc']['n']:,} questions; left out because they do not fit the model: "
                  f"{d['questions_that_do_not_fit']:,}.", ""]
        lines += _table(["", "value"], [[label, with_interval(d[key], form)] for key, label, form in (
            ("balanced_accuracy", "balanced accuracy", "share"), ("right_kept", "right answers not called invented", "share"),
            ("invented_found", "invented answers called so", "share"), ("auc", "AUC of log P(Yes) - log P(No)", "mean"))])
    if s := report.get("over_seeds"):
        lines += ["## Over sampling seeds", ""] + _table(["", "mean over seeds"], [[row["label"], with_interval(row["value"], row["form"])] for row in s])
    if c := report.get("against"):
        lines += [f"## Against {c['first']} (paired, same questions)", ""] + _table(
            ["", "difference", "wins / losses", "p", "p (Holm)", "test"],
            [[r["label"], with_interval(r["difference"], r["form"], signed=True), f"{r['wins']} / {r['losses']}", tables.p_value(r["p"]),
              tables.p_value(r["p_holm"]), r["test"]] for r in c["rows"]])
    if report["not_measured"]:
        lines += ["## Not measured", "", *(f"- {row['metric']}: {row['reason']}" for row in report["not_measured"]), ""]
    return "\n".join(lines)
