"""Recompute what a published evaluation says from its own per-item results.

    python -m studies.curriculum_dpop.recheck FOLDER [--to FILE.json] [--log training_log.csv]

FOLDER holds metrics_RUN.json and detailed_RUN.jsonl (or detailed_gen_RUN.jsonl) side by side, in subfolders of any name: three kinds of
evaluation, known by their fields (`KINDS`). Every mean is made again from the rows and from the texts; every run is compared with the baseline,
question by question; and what the metrics do to the form of an answer is counted. No model is run and no text is kept: figures only.
"""
import argparse
import csv
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from data.store import write_json
from eval import qa_metrics, stats, tables
from runtime.errors import UserError, check_file, run_main
from studies.curriculum_dpop.per_item import KINDS, MEASURES, Columns, Row, columns, load

BANDS = ((0, 1), (2, 3), (4, 5), (6, 10), (11, 20), (21, 10_000))  # words of the generated answer
SHORT, LONG = 3, 6  # words: at most, at least
CLOSE = 1e-6  # means further apart are not the same figure; the order of adding 10,000 floats moves the 15th digit
FEW = 10  # rows that a group needs before its mean is set against another's


# ---- the means ---------------------------------------------------------------------------------------------------------

def decimals(a: float, b: float) -> int:
    """How many decimals two figures share (their difference is below half a unit of that decimal), at most 16."""
    return 16 if a == b else max(0, min(16, math.floor(-math.log10(2 * abs(a - b)))))


def check_means(kind: str, published: Mapping, found: Columns, n: int) -> list[dict]:
    """One line per published mean: {"name", "published", "recomputed", "decimals", "agrees", "from"}, or "why" it cannot be made again."""
    means, lines = KINDS[kind].means, []
    expected = (*means, *filter(None, [KINDS[kind].total]))
    for name in (*expected, *(name for name in published if name not in expected and isinstance(published[name], float))):
        value, key = published.get(name), means.get(name, "")
        line: dict = {"name": name, "published": value}
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            line |= {"published": None, "why": "no number in the metrics file"}
        elif name == KINDS[kind].total or key in found:
            again = n if name == KINDS[kind].total else float(found[key].mean())
            # a text is read again by another implementation of the metric; a stored value is only added up again
            line |= {"recomputed": again, "decimals": decimals(value, again), "agrees": abs(value - again) <= CLOSE,
                     "from": "texts" if key and "generated" in MEASURES[key].needs else "rows"}
        elif key:
            line["why"] = f"the rows lack {' or '.join(MEASURES[key].needs)}"
        else:
            line["why"] = "not stored per row" if name in means else "unknown to this check"
        lines.append(line)
    return lines


# ---- what the metrics do to the form of an answer ---------------------------------------------------------------------------

def share(hit: np.ndarray, among: np.ndarray) -> dict | None:
    """The share of `hit` among the rows `among` (both bool [rows]), with its Wilson interval; None where there is none."""
    return stats.wilson(int((hit & among).sum()), int(among.sum())).to_dict() | {"count": int((hit & among).sum())} if among.any() else None


def split(values: np.ndarray, inside: np.ndarray, outside: np.ndarray, resamples: int, seed: int) -> dict | None:
    """mean(values[inside]) - mean(values[outside]) for two disjoint groups of rows: both means, a bootstrap interval, Mann-Whitney's p.

    None where a group has fewer than FEW rows.
    """
    if min(inside.sum(), outside.sum()) < FEW:
        return None
    either = inside | outside
    x, y = inside[either].astype(float), outside[either].astype(float)

    def difference(m: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.nan_to_num(m[:, 1] / m[:, 0] - m[:, 3] / m[:, 2], nan=np.inf)
    found = stats.bootstrap([x, x * values[either], y, y * values[either]], difference, resamples, seed)
    found = stats.no_false_certainty(found, "no two values differ")
    p = stats.mann_whitney(values[inside], values[outside])[1]
    return {"inside": [float(values[inside].mean()), int(inside.sum())], "outside": [float(values[outside].mean()), int(outside.sum())],
            "difference": found.to_dict(), "p": p, "test": "Mann-Whitney"}


def by_length(found: Columns, resamples: int, seed: int) -> dict:
    """Every measure of an answer's worth per band of words generated, and long answers set against short ones."""
    words, worth, bands = found["words"], [key for key in found if MEASURES[key].metric.better], []
    for low, high in BANDS:
        inside = (words >= low) & (words <= high)
        if inside.any():
            bands.append({"words": [low, high], "n": int(inside.sum()),
                          "figures": {key: tables.figure(found[key][inside], MEASURES[key].metric, resamples, seed).to_dict() for key in worth}})
    return {"bands": bands, "long_minus_short": {key: split(found[key], words >= LONG, words <= SHORT, resamples, seed) for key in worth}}


def answer_forms(rows: list[dict], found: Columns) -> dict:
    """The HaluEval kinds: what the metrics say where the texts themselves show whether the answer is right."""
    everything, generated, gold = np.ones(len(rows), bool), *([row[name] for row in rows] for name in ("generated", "right_answer"))
    same = np.array([a == b for a, b in zip(generated, gold)])
    asked = np.array([bool(qa_metrics.yes_no(text)) for text in gold])
    first = [qa_metrics.normalise(text).split()[:1] for text in generated]
    opposite = asked & np.array([word in (["yes"], ["no"]) and word != [qa_metrics.yes_no(b)] for word, b in zip(first, gold)])
    bare = opposite & np.array([bool(qa_metrics.yes_no(text)) for text in generated])
    one_word = np.array([qa_metrics.word_count(text) == 1 for text in gold])
    right, flags = found["exact"] == 1, found.get("flagged")
    result = {"gold_words": float(np.mean([qa_metrics.word_count(text) for text in gold])), "same_text": share(same, everything)}
    bleu = found["bleu"] if "bleu" in found else np.array([qa_metrics.bleu_unsmoothed(a, [b]) for a, b in zip(generated, gold)])
    result |= {"bleu_zero": share(bleu == 0, everything), "bleu_zero_same_text": share(bleu == 0, same)}
    if "bert_f1" in found:
        zero = found["bert_f1"] == 0
        result |= {"bert_zero": share(zero, everything), "bert_zero_right": share(right, zero), "bert_zero_one_word_gold": share(one_word, zero)}
    if "bleu" in rows[0]:
        result["stored_bleu_zero"] = share(np.array([row["bleu"] == 0 for row in rows]), everything)
    if flags is not None:
        hit = flags == 1
        result |= {"exact_flagged": share(hit, right), "yes_no_unmatched_flagged": share(hit, asked & ~right),
                   "yes_no_opposite_flagged": share(hit, opposite), "yes_no_flipped_flagged": share(hit, bare), "no_overlap_flagged": share(hit, found["f1"] == 0)}
        for key, limit in (("margin", 0.0), ("faithfulness", 0.5)):  # the rule that the flag is said to follow
            if key in found:
                result["flag_against_rule"] = share(hit != (found[key] < limit), everything)
    return result


def truth_forms(rows: list[dict], found: Columns, resamples: int, seed: int) -> dict:
    """TruthfulQA: what run-on texts, cut texts and refusals do to the share of truthful answers; how sure the judge is to say yes or no."""
    result: dict = {}
    if "truthful" in found:
        for key in ("run_on", "cut", "ignorance"):
            result[f"truthful_by_{key}"] = split(found["truthful"], found[key] == 1, found[key] == 0, resamples, seed)
        if "truth_prob" in found:
            result["flag_against_rule"] = share((found["truthful"] == 1) != (found["truth_prob"] > 0.5), np.ones(len(rows), bool))
    if "logp_yes" in rows[0] and "logp_no" in rows[0]:
        mass = [math.exp(row["logp_yes"]) + math.exp(row["logp_no"]) for row in rows]
        result["yes_or_no_mass"] = {"mean": float(np.mean(mass)), "least": min(mass), "n": len(mass)}
    return result


# ---- every run beside the baseline --------------------------------------------------------------------------------------------

def paired_places(a: list[dict], b: list[dict]) -> tuple[list[int], list[int], dict]:
    """(places in a, places in b) of the questions that both have exactly once, in a's order, and what stood in the way."""
    first, second = ([row["question"] for row in rows] for rows in (a, b))
    times, others = Counter(first), Counter(second)
    most = times | others
    place = {question: i for i, question in enumerate(second)}
    common = [i for i, question in enumerate(first) if times[question] == 1 and others[question] == 1]
    there = [place[first[i]] for i in common]
    differ = sum(a[i].get("right_answer") != b[j].get("right_answer") for i, j in zip(common, there))
    return common, there, {"paired": len(common), "same_order": first == second, "repeated": sum(count > 1 for count in most.values()),
                           "only_in_first": sum(q not in others for q in times), "only_in_second": sum(q not in times for q in others),
                           "gold_differs": differ}


def compare(first: tuple[list[dict], Columns], second: tuple[list[dict], Columns], keys: Iterable[str], resamples: int, seed: int,
            keep: Callable[[Row, Row], bool] | None = None) -> tuple[list[dict], dict]:
    """(one line per measure that both have: second minus first, paired by question, interval and p; how the rows were aligned).

    `keep(row of first, row of second)` restricts the pairs; fewer than FEW give no line.
    """
    here, there, alignment = paired_places(first[0], second[0])
    if keep:
        places = [(i, j) for i, j in zip(here, there) if keep(first[0][i], second[0][j])]
        here, there = [i for i, _ in places], [j for _, j in places]
    if len(here) < FEW:
        return [], alignment
    lines = []
    for key in keys:
        if key in first[1] and key in second[1]:
            a, b, metric = first[1][key][here], second[1][key][there], MEASURES[key].metric
            lines.append({"key": key, "first": float(a.mean()), "second": float(b.mean()), **tables.compare(a, b, metric, resamples, seed)})
    return lines, alignment


def same_length(a: Row, b: Row) -> bool:
    """Both runs wrote the same number of words."""
    return qa_metrics.word_count(a["generated"]) == qa_metrics.word_count(b["generated"])


def same_answer(a: Row, b: Row) -> bool:
    """Both runs gave one answer (normalised), spelt differently: what a metric makes of this pair is form alone."""
    return a["generated"] != b["generated"] and qa_metrics.normalise(a["generated"]) == qa_metrics.normalise(b["generated"])


def comparisons(kind: str, runs: Mapping[str, tuple[list[dict], Columns]], baseline: str, resamples: int, seed: int) -> dict:
    """run -> {"alignment", "published", "own", "form", "same_length", "same_answer"}: lists of paired tests against the baseline."""
    found, published = {}, [key for key in KINDS[kind].means.values() if key]
    for name, run in runs.items():
        if name == baseline:
            continue
        tests = {"published": (published, None), "own": (KINDS[kind].own, None), "form": (KINDS[kind].forms, None)}
        if KINDS[kind].own:  # there is an answer to compare
            tests |= {"same_length": ((*published, *KINDS[kind].own), same_length), "same_answer": (published, same_answer)}
        found[name] = {}
        for title, (keys, keep) in tests.items():
            found[name][title], found[name]["alignment"] = compare(runs[baseline], run, keys, resamples, seed, keep)
    return found


def alignment_note(name: str, found: Mapping) -> str:
    """One line about what stood in the way of pairing a run with the baseline; "" when nothing did."""
    said = ["its rows stand in another order"] if not found["same_order"] else []
    said += [f"{found[key]} {what}" for key, what in (
        ("repeated", "questions occur more than once and are left out"), ("only_in_first", "questions of the baseline are missing"),
        ("only_in_second", "questions are not the baseline's"), ("gold_differs", "questions have another right answer")) if found[key]]
    return f"{name}, paired by question: {'; '.join(said)}" if said else ""


def correct(lists: Iterable[list[dict]]) -> None:
    """Holm's correction over all tests of these lists, one family, as "p_holm" of each."""
    family = [line for lines in lists for line in lines]
    for line, p in zip(family, stats.holm([line["p"] for line in family])):
        line |= {"p_holm": p, "family": len(family)}


def check_log(path: Path) -> dict:
    """A training log with the columns step, loss, dpo_loss, pos_loss: the DPO loss per 50 steps, and how often the hinge was at work."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            steps = [{key: float(row[key]) for key in ("step", "loss", "dpo_loss", "pos_loss")} for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"--log {path}: no training log with the columns step, loss, dpo_loss, pos_loss ({error}).") from None
    if not all(math.isfinite(value) for row in steps for value in row.values()):
        raise UserError(f"--log {path}: a value is not a finite number.")
    real = [row for row in steps if row["loss"] or row["dpo_loss"]]
    if not real:
        raise UserError(f"--log {path} holds no step.")
    return {"rows": len(steps), "rows_of_zeros": len(steps) - len(real), "per_steps": 50, "hinge_active": sum(row["pos_loss"] > 0 for row in real),
            "dpo_loss": [float(np.mean([row["dpo_loss"] for row in real[i:i + 50]])) for i in range(0, len(real), 50)],
            "hinge_max": max(row["pos_loss"] for row in real), "loss_off_by": max(abs(row["loss"] - row["dpo_loss"] - row["pos_loss"]) for row in real)}


def recheck(folder: Path, baseline: str = "baseline", resamples: int = 10_000, seed: int = 0) -> dict:
    """Everything that can be said from the files of a folder, as plain values. UserError as `load`, and for an unknown baseline."""
    loaded, notes = load(folder)
    result: dict = {"seed": seed, "resamples": resamples, "level": stats.LEVEL, "baseline": baseline, "notes": notes, "kinds": {}}
    bases = {}
    for kind, runs in loaded.items():
        data = {name: (run.rows, columns(kind, run.rows)) for name, run in runs.items()}
        if baseline not in data:
            notes.append(f"{KINDS[kind].title}: no run called '{baseline}' (there are {', '.join(data)}), so nothing is compared")
        else:
            bases[kind] = data[baseline]
        entry = {"title": KINDS[kind].title, "runs": {}, "comparisons": comparisons(kind, data, baseline, resamples, seed) if kind in bases else {}}
        for name, (rows, found) in data.items():
            forms = truth_forms(rows, found, resamples, seed) if kind == "truthfulqa" else answer_forms(rows, found) if "exact" in found else {}
            entry["runs"][name] = {
                "files": runs[name].files, "n": len(rows), "repeated_questions": len(rows) - len({row["question"] for row in rows}),
                "means": check_means(kind, runs[name].published, found, len(rows)) if runs[name].published else [],
                "missing": [key for key in KINDS[kind].measures if key not in found],
                "figures": {key: tables.figure(found[key], MEASURES[key].metric, resamples, seed).to_dict() for key in found},
                "by_length": by_length(found, min(resamples, 2000), seed) if KINDS[kind].own else None, "forms": forms}
        result["kinds"][kind] = entry
    if not bases:
        raise UserError(f"--baseline: no run is called '{baseline}'; there are {', '.join(sorted({name for runs in loaded.values() for name in runs}))}.")
    if {"similarity", "faithfulness"} <= set(bases):
        keys = ("exact", "f1", "contained", "bert_f1", "words")
        lines, alignment = compare(bases["similarity"], bases["faithfulness"], keys, resamples, seed)
        result["two_prompts"] = {"rows": lines, "alignment": alignment}
    against = [run for entry in result["kinds"].values() for run in entry["comparisons"].values()]
    notes += filter(None, (alignment_note(f"{entry['title']}, {name}", run["alignment"])
                           for entry in result["kinds"].values() for name, run in entry["comparisons"].items()))
    for title in ("published", "own", "form", "same_length", "same_answer"):
        correct(run.get(title, []) for run in against)
    return result


def summary(result: Mapping) -> str:
    """The result for a terminal: means that agree or not, and every paired test of a published metric."""
    parts = []
    for entry in result["kinds"].values():
        means = [(name, line["name"], *("" if line.get(key) is None else f"{line[key]:.6g}" for key in ("published", "recomputed")),
                  line.get("why") or (f"agrees to {line['decimals']} decimals" if line["agrees"] else "DOES NOT AGREE"))
                 for name, run in entry["runs"].items() for line in run["means"]]
        tests = [(name, MEASURES[line["key"]].metric.label, tables.with_interval(line["difference"], MEASURES[line["key"]].metric.form, signed=True),
                  f"{line['p']:.2g}", f"{line['p_holm']:.2g}") for name, run in entry["comparisons"].items() for line in run["published"] + run["own"]]
        parts += [f"\n== {entry['title']} ==", tables.text_table(("run", "mean", "published", "recomputed", ""), means), "",
                  tables.text_table(("run", f"minus {result['baseline']}", "difference", "p", "p, Holm"), tests)]
    return "\n".join([*parts, *(f"\nnote: {note}." for note in result["notes"])])


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("folder", type=Path)
    a.add_argument("--to", type=Path, help="write everything there, as JSON")
    a.add_argument("--log", type=Path, help="a training log to read as well")
    a.add_argument("--baseline", default="baseline", help="the run that the others are compared with [baseline]")
    a.add_argument("--resamples", type=int, default=10_000, help="of the bootstrap and of the sign-flip test [10000]")
    a.add_argument("--seed", type=int, default=0)
    a = a.parse_args(argv)
    if not a.folder.is_dir():
        raise UserError(f"there is no folder {a.folder}.")
    if a.resamples < 1 or a.seed < 0:
        raise UserError("--resamples must be at least 1 and --seed 0 or more.")
    if a.to:
        check_file("--to", a.to)
    log = {"training_log": check_log(a.log)} if a.log else {}
    result = recheck(a.folder, a.baseline, a.resamples, a.seed) | log
    print(summary(result))
    if a.to:
        a.to.parent.mkdir(parents=True, exist_ok=True)
        write_json(a.to, result)
        print(f"\nwrote {a.to}")


if __name__ == "__main__":
    run_main(main)
