"""The files of a published evaluation, metrics_RUN.json beside detailed_RUN.jsonl: how they are read, and which numbers a row holds.

Three kinds of evaluation share the layout. A file's fields say which it is, never the name of its folder.
"""
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.sources import parse_object, read_lines
from eval import qa_metrics
from eval.tables import Metric
from runtime.errors import UserError

RUN_ON = "\nQ:"  # the model asks itself the next question
ENDS = (".", "!", "?", '"', "'", ")")
# The speaker says that there is no answer, anywhere in the text. A list to argue with; the figure is a count of these and nothing more.
IGNORANCE = re.compile(r"\b(?:i (?:do not|don't|cannot|can't) (?:know|say|tell|determine|find)|i(?:'m| am) (?:not sure|unsure|not aware|unable)|"
                       r"i have no (?:idea|comment|information)|(?:is|are|was|were|does|do|did)(?: not|n't) (?:mention|specif|provid|stat|known)\w*|"
                       r"not (?:mentioned|specified|provided|stated|given) in|no (?:information|evidence|mention)|(?:cannot|can't) be determined|"
                       r"not enough information|insufficient information|unknown)\b", re.IGNORECASE)

Row = Mapping
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Kind:
    """One of the three evaluations. `mark`: a field that no other kind's rows have. `means`: published mean -> the measure it is the mean
    of, "" where no row holds it. `own`: measures of ours that no published file has. `forms`: measures of the form of an answer."""
    title: str
    mark: str
    means: Mapping[str, str]
    total: str
    own: tuple[str, ...] = ()
    forms: tuple[str, ...] = ("words", "ignorance")

    @property
    def measures(self) -> tuple[str, ...]:
        """Every measure that the kind's rows may have."""
        return (*filter(None, self.means.values()), *self.own, *self.forms)


KINDS = {
    "similarity": Kind("HaluEval QA, similarity of embeddings", "sim_halluc",
                       {"hallucination_rate": "flagged", "avg_confidence_margin": "margin", "avg_bert_score": "bert_f1",
                        "avg_bleu": "bleu", "avg_rouge_l": "rouge_l"}, "total_samples", ("exact", "f1", "contained")),
    "faithfulness": Kind("HaluEval QA, faithfulness score", "faithfulness_score",
                         {"hallucination_rate": "flagged", "avg_faithfulness": "faithfulness", "avg_bert_f1": "bert_f1"}, "total",
                         ("exact", "f1", "contained")),
    "truthfulqa": Kind("TruthfulQA", "truth_prob",
                       {"mc1": "", "mc2": "", "gen_truthfulness": "truthful", "gen_avg_prob": "truth_prob"}, "",
                       forms=("words", "ignorance", "run_on", "cut")),
}


@dataclass(frozen=True)
class Measure:
    """A number per row: `of(row)` reads the fields `needs`."""
    metric: Metric
    needs: tuple[str, ...]
    of: Callable[[Row], float]


def _measure(key: str, label: str, form: str, better: int, needs: str, of: Callable[[Row], float]) -> tuple[str, Measure]:
    return key, Measure(Metric(key, label, form, better), tuple(needs.split()), of)


def _score(score: Callable[[str, Sequence[str]], float]) -> Callable[[Row], float]:
    return lambda row: score(row["generated"], [row["right_answer"]])


QA = "generated right_answer"
MEASURES = dict((
    _measure("flagged", "judged hallucinated", "share", -1, "is_hallucinated", lambda row: row["is_hallucinated"]),
    _measure("margin", "similarity margin", "mean", 1, "sim_right sim_halluc", lambda row: row["sim_right"] - row["sim_halluc"]),
    _measure("faithfulness", "faithfulness score", "mean", 1, "faithfulness_score", lambda row: row["faithfulness_score"]),
    _measure("bert_f1", "BERT-F1", "mean", 1, "bert_score", lambda row: row["bert_score"]),
    _measure("bleu", "BLEU, unsmoothed", "mean", 1, QA, _score(qa_metrics.bleu_unsmoothed)),
    _measure("rouge_l", "ROUGE-L", "mean", 1, QA, _score(qa_metrics.rouge_l)),
    _measure("exact", "exact match", "share", 1, QA, _score(qa_metrics.exact_match)),
    _measure("f1", "token F1", "mean", 1, QA, _score(qa_metrics.f1)),
    _measure("contained", "gold answer contained", "share", 1, QA, _score(qa_metrics.contains)),
    _measure("truthful", "judged truthful", "share", 1, "is_truthful", lambda row: row["is_truthful"]),
    _measure("truth_prob", "judge's probability of true", "mean", 1, "truth_prob", lambda row: row["truth_prob"]),
    _measure("words", "words generated", "mean", 0, "generated", lambda row: qa_metrics.word_count(row["generated"])),
    _measure("ignorance", "says that it does not know", "share", 0, "generated", lambda row: bool(IGNORANCE.search(row["generated"]))),
    _measure("run_on", "asks itself a next question", "share", -1, "generated", lambda row: RUN_ON in row["generated"]),
    _measure("cut", "ends without closing punctuation", "share", -1, "generated", lambda row: not row["generated"].rstrip().endswith(ENDS)),
))
TEXTS = ("question", "generated", "right_answer")
FLAGS = ("is_hallucinated", "is_truthful")
NUMBERS = ("sim_right", "sim_halluc", "bert_score", "faithfulness_score", "bleu", "truth_prob", "logp_yes", "logp_no")


@dataclass(frozen=True)
class Run:
    """One run of one kind: its rows, the published means (None: no metrics file), and the files' names and sha256."""
    rows: list[dict]
    published: dict | None
    files: dict[str, str]


# ---- reading ----------------------------------------------------------------------------------------------------------

def read_details(path: Path) -> list[dict]:
    """The rows of a detailed_*.jsonl file. UserError, with the line, for one that is no row of this layout or lacks what the first one has."""
    rows: list[dict] = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = parse_object(line)
            wanted = rows[0] if rows else ("question", "generated")
            if lacking := [name for name in wanted if name not in row]:
                raise ValueError(f'no "{lacking[0]}"')
            for names, wanted_type, what in ((TEXTS, str, "text"), (FLAGS, bool, "true or false"), (NUMBERS, (int, float), "a finite number")):
                for name in names:
                    value = row.get(name, 0.0 if names is NUMBERS else wanted_type())
                    if not isinstance(value, wanted_type) or names is NUMBERS and (isinstance(value, bool) or not math.isfinite(value)):
                        raise ValueError(f'"{name}" is not {what}')
        except ValueError as error:
            raise UserError(f"{path} line {number}: {error}.") from None
        rows.append(row)
    if not rows:
        raise UserError(f"{path} holds no row: the run did not finish, or the copy is damaged.")
    return rows


def read_metrics(path: Path) -> dict:
    """A metrics_*.json file. UserError when it is no JSON object."""
    try:
        return parse_object(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: {error}.") from None


def load(folder: Path) -> tuple[dict[str, dict[str, Run]], list[str]]:
    """(kind -> run -> its rows and means, what was left out and why). UserError when there is nothing to recheck."""
    details, means = sorted(folder.rglob("detailed_*.jsonl")), set(folder.rglob("metrics_*.json"))
    if not details:
        raise UserError(f"there is no detailed_*.jsonl under {folder}: give the folder with the per-item results beside their metrics_*.json.")
    found: dict[str, dict[str, Run]] = {}
    notes = []
    for path in details:
        beside = [path.with_name(f"metrics_{path.stem.removeprefix(start)}.json") for start in ("detailed_", "detailed_gen_")]
        metrics = next((other for other in beside if other in means), None)
        name = (metrics.stem.removeprefix("metrics_") if metrics else path.stem.removeprefix("detailed_").removeprefix("gen_"))
        means.discard(metrics)
        rows, where = read_details(path), path.relative_to(folder).as_posix()
        kind = next((key for key, kind in KINDS.items() if kind.mark in rows[0]), None)
        if kind is None:
            notes.append(f"{where} skipped: its fields ({', '.join(sorted(rows[0]))}) are those of no known kind")
            continue
        if name in found.setdefault(kind, {}):
            raise UserError(f"{where}: a second run called '{name}' of the same kind ({KINDS[kind].title}); rename one of them.")
        if metrics is None:
            notes.append(f"{where}: no metrics_{name}.json beside it, so there is no published mean to check")
        files = {other.relative_to(folder).as_posix(): hashlib.sha256(other.read_bytes()).hexdigest() for other in (path, metrics) if other}
        found[kind][name] = Run(rows, read_metrics(metrics) if metrics else None, files)
    notes += [f"{path.relative_to(folder).as_posix()}: no per-item rows beside it, so none of its means can be recomputed" for path in sorted(means)]
    if not found:
        raise UserError(f"nothing to recheck under {folder}: {'; '.join(notes)}.")
    return found, notes


def columns(kind: str, rows: list[dict]) -> Columns:
    """measure -> float [rows], for every measure of the kind whose fields the rows have."""
    return {key: np.array([MEASURES[key].of(row) for row in rows], dtype=float)
            for key in KINDS[kind].measures if all(field in rows[0] for field in MEASURES[key].needs)}
