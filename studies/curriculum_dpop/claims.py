"""The claims page: what was published, what its own per-item results say, and what we measured.

    python -m studies.curriculum_dpop.claims [--results results/curriculum_dpop]

Reads published.json beside this file, and under --results recheck.json (written by recheck.py) with whatever toy/, truthfulqa/ and halueval/
hold; writes claims.md and its two pictures there. Every figure comes from these files, and every verdict is computed from the figures.
"""
import argparse
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from eval import stats
from eval.render import to_markdown
from eval.tables import number, p_value, with_interval
from runtime.config import ROOT
from runtime.errors import UserError, run_main
from studies.curriculum_dpop import form_effects, toy_report
from studies.curriculum_dpop.per_item import KINDS, MEASURES

PUBLISHED = Path(__file__).with_name("published.json")
ALPHA = 0.05
BETTER, WORSE, MORE, LESS = "significantly better", "significantly worse", "significantly more", "significantly less"
UNCLEAR, CORRECTED, LOST = "no clear difference", "no clear difference after correction", "cannot be recomputed"
NO_MODEL = "not measured here: no checkpoint"
WHY_NOT = ("The published models are not measured here: this page was made without a GPU and without their checkpoints (Llama-3.2-3B-Instruct, its "
           "adapters, the judges). Where these are at hand, `python -m eval.halueval` and `python -m eval.truthfulqa` measure them.")
AS_OURS = {"exact": "exact_match", "f1": "f1", "contained": "contained", "bleu": "bleu_unsmoothed", "rouge_l": "rouge_l", "bert_f1": "bertscore",
           "similarity/flagged": "similarity_hallucinated", "margin": "similarity_margin"}  # a measure here -> its name in halueval/sanity.json
AGREES = {"better": BETTER, "worse": WORSE, "more": MORE, "same": UNCLEAR}  # what was said -> the verdict that bears it out


# ---- verdicts -----------------------------------------------------------------------------------------------------------

def verdict(line: Mapping | None, better: int) -> str:
    """One paired test in words. line: {"difference": {"value"}, "p", "p_holm"}, None where there is none; better: +1 up, -1 down, 0 neither.

    A difference of zero, and one whose corrected p is not below ALPHA, is no clear difference: that is not "no difference".
    """
    if line is None:
        return LOST
    value = line["difference"]["value"]
    if value == 0 or line["p"] >= ALPHA:
        return UNCLEAR
    if line["p_holm"] >= ALPHA:
        return CORRECTED
    if better == 0:
        return MORE if value > 0 else LESS
    return BETTER if value * better > 0 else WORSE


def judgement(said: Iterable[str], found: Iterable[str]) -> str:
    """One sentence on a claim of several rows: how many were borne out, were not, and cannot be recomputed.

    "same" is borne out by no clear difference, which is weak evidence: the interval says how large a difference may still be.
    """
    pairs = list(zip(said, found))
    tested = [(AGREES[one], UNCLEAR if other == CORRECTED else other) for one, other in pairs if other != LOST]
    right, lost = sum(one == other for one, other in tested), len(pairs) - len(tested)
    against = sum({one, other} in ({BETTER, WORSE}, {MORE, LESS}) for one, other in tested)
    if not tested:
        return "Cannot be recomputed from what was published."
    text = ("Borne out" if right == len(tested) else "Borne out in part" if right else "Contradicted" if against else "Not borne out")
    text += f": {right} of {len(tested)} {'figure' if len(tested) == 1 else 'figures'} as claimed"
    text += f", {against} significantly the other way" if against else ""
    return text + (f"; {lost} cannot be recomputed." if lost else ".")


# ---- looking up -----------------------------------------------------------------------------------------------------------

def test_of(recheck: Mapping, kind: str, run: str, measure: str) -> dict | None:
    """The paired test of a run against the baseline, None where there is none."""
    found = recheck["kinds"].get(kind, {}).get("comparisons", {}).get(run, {})
    return next((line for title in ("published", "own", "form") for line in found.get(title, []) if line["key"] == measure), None)


def difference(line: Mapping | None, measure: str) -> str:
    """"-0.5 points [-0.9, 0.0]"."""
    return with_interval(line["difference"], MEASURES[measure].metric.form, signed=True) if line else "-"


def level(recheck: Mapping, kind: str, run: str, measure: str) -> str:
    """A run's own figure with its interval."""
    return with_interval(recheck["kinds"][kind]["runs"][run]["figures"].get(measure), MEASURES[measure].metric.form)


def published_cell(published: Mapping, kind: str, mean: str, run: str) -> str:
    """".0729 to .0684 (-6.17 %)" as published; "no figure" where none is."""
    table = published["figures"].get(kind, {})
    values = table.get("values", {}).get(mean)
    if not values:
        return "no figure"
    change = table["relative_percent"].get(mean, {}).get(run)
    start, end = (f"{values[name]:.{table['decimals']}f}" for name in ("baseline", run))
    return f"{start} to {end}" + (f" ({change:+.2f} %)" if change is not None else "")


def count_note(published: Mapping, recheck: Mapping, kind: str, mean: str, run: str) -> str:
    """For a share that no row holds: the count it must be, and that count's interval, which knows nothing of the pairing."""
    n, share = recheck["kinds"][kind]["runs"][run]["n"], published["figures"][kind]["values"][mean][run]
    count = round(share * n)
    if abs(count / n - share) > 0.5 * 10 ** -published["figures"][kind]["decimals"]:
        return "not stored per row"
    return f"not stored per row; {count} of {n}: {with_interval(stats.wilson(count, n).to_dict(), 'share')}"


# ---- one claim ------------------------------------------------------------------------------------------------------------

def resolve(claim: Mapping, row: Mapping) -> tuple[str, str, str]:
    """(kind, published mean or "", measure or "" where no row holds it) of a row of a claim."""
    kind, mean = row.get("kind") or claim["kind"], row.get("mean", "")
    return kind, mean, row.get("measure") or KINDS[kind].means[mean]


def claim_blocks(claim: Mapping, published: Mapping, recheck: Mapping, sanity: Mapping | None) -> tuple[list[tuple], tuple[str, ...]]:
    """(blocks of a claim's section, its row of the summary)."""
    rows, found = [], []
    for row in claim["rows"]:
        kind, mean, measure = resolve(claim, row)
        line = test_of(recheck, kind, row["run"], measure) if measure else None
        found.append(verdict(line, MEASURES[measure].metric.better if measure else 1))
        label = MEASURES[measure].metric.label if measure else mean.upper()
        again = (f"{level(recheck, kind, 'baseline', measure)} to {level(recheck, kind, row['run'], measure)}" if line
                 else count_note(published, recheck, kind, mean, row["run"]) if mean == "mc1" else "not stored per row")
        rows.append([f"{published['runs'][row['run']]}: {label}" + ("" if claim.get("kind") else f" ({KINDS[kind].title})"),
                     published_cell(published, kind, mean, row["run"]), again, difference(line, measure),
                     f"{p_value(line['p'])} / {p_value(line['p_holm'])}" if line else "-", known_answers(sanity, kind, measure), f"{row['said']}: {found[-1]}"])
    text, spelling = judgement([row["said"] for row in claim["rows"]], found), spelt_differently(claim, recheck, found)
    text += f" Of the difference this much comes from the same answers, spelt differently: {', '.join(spelling)}." if spelling else ""
    blocks = [("heading", claim["id"][0].upper() + claim["id"][1:]), ("text", f"Claim: {claim['claim']} ({claim['where']})"),
              ("table", ["", "published", "recomputed from its rows", "difference, paired by question", "p / p, Holm", "ours", "said: found"], rows),
              ("text", f"Verdict. {text}")]
    for note in (accuracy_note(claim, published, recheck), form_note(claim, published, recheck)):
        blocks += [("text", note)] if note else []
    return blocks, (claim["claim"], text)


def same_answer_test(recheck: Mapping, kind: str, run: str, measure: str) -> dict | None:
    """The paired test on questions where baseline and run gave one answer in two spellings."""
    found = recheck["kinds"].get(kind, {}).get("comparisons", {}).get(run, {}).get("same_answer", [])
    return next((line for line in found if line["key"] == measure), None)


def spelt_differently(claim: Mapping, recheck: Mapping, found: Iterable[str]) -> list[str]:
    """"BERT-F1 34 %": of a significant difference, the share that arises on questions where baseline and run gave one answer in two spellings.

    Only where it is significant there too and of the same sign. No answer is better or worse there: that share is form.
    """
    shares = []
    for row, said in zip(claim["rows"], found):
        kind, _, measure = resolve(claim, row)
        line, part = test_of(recheck, kind, row["run"], measure), same_answer_test(recheck, kind, row["run"], measure)
        if said in (BETTER, WORSE) and verdict(part, MEASURES[measure].metric.better) == said:
            whole, same = line["difference"], part["difference"]
            shares.append(f"{MEASURES[measure].metric.label} {100 * same['value'] * same['n'] / (whole['value'] * whole['n']):.0f} %")
    return shares


def accuracy_note(claim: Mapping, published: Mapping, recheck: Mapping) -> str:
    """For a claim on HaluEval: whether the answers are right more often, by what they say."""
    kind = claim.get("kind", "")
    if kind not in KINDS or not KINDS[kind].own:
        return ""
    parts = []
    for run in dict.fromkeys(row["run"] for row in claim["rows"]):
        lines = [(key, test_of(recheck, kind, run, key)) for key in ("exact", "contained")]
        parts += [f"{what} {difference(line, key)}, {verdict(line, 1)} (p, Holm {p_value(line['p_holm'])})"
                  for (key, line), what in zip(lines, ("exact match (the bare answer)", "gold answer contained (in a sentence too)")) if line]
    return f"By what the same answers say: {'; '.join(parts)}." if parts else ""


def form_note(claim: Mapping, published: Mapping, recheck: Mapping) -> str:
    """How far each metric of the claim moves where both runs gave one answer, spelt differently."""
    parts = []
    for row in claim["rows"]:
        kind, _, measure = resolve(claim, row)
        line = same_answer_test(recheck, kind, row["run"], measure)
        if line and verdict(line, 1) in (BETTER, WORSE):
            form = MEASURES[line["key"]].metric.form
            parts.append(f"{MEASURES[line['key']].metric.label} moves from {number(line['first'], form)} to {number(line['second'], form)} "
                         f"({line['difference']['n']:,} questions, p, Holm {p_value(line['p_holm'])})")
    run = published["runs"][claim["rows"][0]["run"]]
    return f"Form alone: where baseline and {run} gave the same answer, spelt differently, {'; '.join(parts)}." if parts else ""


# ---- ours -------------------------------------------------------------------------------------------------------------------

def read(path: Path) -> dict | None:
    """A JSON file, None where there is none. UserError when it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): make it again.") from None


def known_answers(sanity: Mapping | None, kind: str, measure: str) -> str:
    """What the metric gives to answers of known worth in our run without a model; else why there is nothing of ours."""
    key = AS_OURS.get(f"{kind}/{measure}", AS_OURS.get(measure))
    row = next((row for row in (sanity or {}).get("metrics", []) if row["key"] == key), None)
    if row is None or not {"gold", "hallucinated"} <= set(row["values"]):
        return NO_MODEL
    gold, made_up = (with_interval(row["values"][name], row["form"]) for name in ("gold", "hallucinated"))
    return f"{NO_MODEL}; right answers themselves get {gold}, invented ones {made_up}"


def toy_blocks(folder: Path) -> tuple[list[tuple], str]:
    """(blocks, one sentence) of the toy study's planned comparisons: DPO beside DPOP beside SFT, easy first beside shuffled."""
    path = folder / "rows.jsonl"
    if not path.is_file():
        why = "not measured here: results/curriculum_dpop/toy holds no rows.jsonl (python -m studies.curriculum_dpop.toy_study makes it)"
        return [("text", f"Ours: {why}.")], f"No ablation was published; {why}."
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    runs = toy_report.by_condition(rows)
    asked = [(one, other, name, values) for one, other, name in toy_report.PLANNED if (values := toy_report.paired(runs, one, other, name))]
    table, found = [], {}
    for (one, other, name, values), p in zip(asked, toy_report.corrected([toy_report.t_test(values) for *_, values in asked])):
        interval = stats.over_seeds(values)
        line = {"difference": {"value": interval.value}, "p": 1.0 if p is None else p, "p_holm": 1.0 if p is None else p}
        found[one, other, name] = verdict(line, {"hallucination": -1, "tasks": 1}.get(name, 0))
        table.append([f"{one}, minus {other}", toy_report.LABELS[name], toy_report.cell(interval, signed=True), "-" if p is None else p_value(p),
                      found[one, other, name]])
    order = [f"{one} against {other}: {said}" for (one, other, name), said in found.items() if name == "hallucination" and "shuffled" in other]
    seeds = len({row["seed"] for row in rows})
    text = f"No ablation was published. Ours, a toy world with {seeds} seeds, share of made-up answers: {'; '.join(order) or 'nothing to compare'}."
    return [("text", "Published: no ablation, so nothing to recompute. Ours: the toy study (GPT of our own, invented entities, exact judge). "
                     "Differences seed by seed, in points or nats, 95 % t intervals over seeds, p after Holm's correction over all planned comparisons."),
            ("table", ["toy study", "figure", "difference", "p, Holm", "verdict"], table), ("text", f"Verdict. {text}")], text


def plumbing_blocks(results: Path) -> list[tuple]:
    """Our own runs on the evaluation sets: each figure of each metrics file, and what each could not measure."""
    rows, missing = [], []
    for path in sorted([*results.glob("truthfulqa/metrics_*.json"), *results.glob("halueval/metrics_*.json")]):
        found = read(path) or {}
        figures = found.get("figures") or {row["key"]: row["values"]["model"] | row for row in found.get("metrics", []) if "model" in row["values"]}
        run = f"{path.parent.name}: {found.get('run') or found.get('name')}"
        rows += [[run, figure["label"], with_interval(figure, figure["form"]), str(figure["n"])] for figure in figures.values()]
        lost = found.get("not_measured", {})
        lost = lost.items() if isinstance(lost, dict) else [(row["metric"], row["reason"]) for row in lost]
        missing += [f"{run}, {name}: {why}" for name, why in lost]
    blocks: list[tuple] = [("heading", "Our own runs"), ("text", WHY_NOT)]
    if rows:
        blocks += [("text", "What was run here shows that the evaluations work from end to end, on all of TruthfulQA and the first 1,000 questions of HaluEval, with a model far too small to know any answer."),
                   ("table", ["run", "figure", "value", "n"], rows)]
    blocks += [("text", "Not measured: " + "; ".join(missing) + ".")] if missing else []
    harness = read(results / "truthfulqa" / "harness.json")
    for prompt, found in (harness or {}).items():
        if isinstance(found, dict) and "largest_difference_mc2" in found:
            blocks.append(("text", f"Our multiple choice beside lm-evaluation-harness {harness['harness']['lm_eval']}, {prompt}, {found['n']} questions: largest "
                                   f"difference of a log-likelihood {found['largest_difference_log_likelihood']:.1e} nats, of MC2 {found['largest_difference_mc2']:.1e}; "
                                   f"{found['cpu_seconds']['ours']:.0f} s of CPU, the harness {found['cpu_seconds']['harness']:.0f} s."))
    return blocks


# ---- the page ---------------------------------------------------------------------------------------------------------------

def rounding(published: Mapping, recheck: Mapping) -> list[str]:
    """Published figures and relative changes that do not follow from the metrics files; sentences, none when all do."""
    wrong = []
    for kind, table in published["figures"].items():
        stored = {run: {line["name"]: line["published"] for line in entry["means"]} for run, entry in recheck["kinds"].get(kind, {}).get("runs", {}).items()}
        for mean, values in table["values"].items():
            for run, value in values.items():
                exact = stored.get(run, {}).get(mean)
                if exact is None or abs(exact - value) > 0.51 * 10 ** -table["decimals"]:
                    wrong.append(f"{KINDS[kind].title}, {run}, {mean}: {value} published, {exact} in the metrics file")
                change = table["relative_percent"].get(mean, {}).get(run)
                start = stored.get("baseline", {}).get(mean)
                found = 100 * (exact / start - 1) if exact is not None and start else math.inf
                if change is not None and abs(found - change) > 0.0051:
                    wrong.append(f"{KINDS[kind].title}, {run}, {mean}: {change:+.2f} % published, {found:+.2f} % by the metrics files")
    return wrong


def means_text(published: Mapping, recheck: Mapping) -> str:
    """One paragraph: which means were made again and how closely, and which cannot be."""
    lines = [line for kind in recheck["kinds"].values() for run in kind["runs"].values() for line in run["means"]]
    again = [line for line in lines if "agrees" in line]
    off, lost = [line for line in again if not line["agrees"]], sorted({f"{line['name']} ({line['why']})" for line in lines if "why" in line})
    text = (f"{len(again)} means of the metrics files were made again from the rows and texts; {len(again) - len(off)} agree, the worst to "
            f"{min((line['decimals'] for line in again if line['agrees']), default=0)} decimals.")
    text += f" These do not agree: {', '.join(line['name'] for line in off)}." if off else ""
    text += f" Cannot be made again: {', '.join(lost)}." if lost else ""
    wrong = rounding(published, recheck)
    count = sum(len(values) for table in published["figures"].values() for group in ("values", "relative_percent") for values in table[group].values())
    text += f" {count - len(wrong)} of {count} published figures and relative changes follow from the metrics files" + (f"; these do not: {'; '.join(wrong)}." if wrong else ".")
    aligned = [run["alignment"] for kind in recheck["kinds"].values() for run in kind["comparisons"].values()]
    clean = all(a["same_order"] and not (a["repeated"] or a["only_in_first"] or a["only_in_second"] or a["gold_differs"]) for a in aligned)
    return text + (" All runs of a kind have the same questions once each, in one order, with the same right answers." if clean else "")


def page(published: Mapping, recheck: Mapping, results: Path) -> list[tuple]:
    """All blocks of claims.md."""
    source, sanity, sections, summary = published["source"], read(results / "halueval" / "sanity.json"), [], []
    for claim in published["claims"]:
        blocks, row = claim_blocks(claim, published, recheck, sanity)
        sections += blocks
        summary.append(list(row))
    toy, toy_text = toy_blocks(results / "toy")
    against = [run for kind in recheck["kinds"].values() for run in kind["comparisons"].values()]
    families = [max((line["family"] for run in against for line in run[title]), default=0) for title in ("published", "own")]
    return [
        ("title", "Curriculum DPOP against hallucination: the claims, checked"),
        ("text", "Generated by `python -m studies.curriculum_dpop.claims`; do not edit. Origin of every published figure: "
                 f"{source['repository']}, snapshot {source['snapshot']} of {source['dated']}. Recomputed figures: `python -m studies.curriculum_dpop.recheck "
                 "evaluation/results --log further_improvement/training/training_log.csv --to results/curriculum_dpop/recheck.json`, run on a copy of it."),
        ("text", f"Brackets: 95 % intervals. Every difference is the run less the baseline on the same questions: exact McNemar test for shares, sign-flip test "
                 f"for means ({recheck['resamples']:,} flips, seed {recheck['seed']}). Holm's correction over the {families[0]} tests of published metrics together, over "
                 f"the {families[1]} of exact match, F1 and containment, and over those of form. A verdict needs a corrected p below {ALPHA}; "
                 "no clear difference does not mean none. Tests and intervals speak of other questions, not of another training or sampling: one run each was "
                 "published. The same answers, spelt differently: equal but for case, punctuation and articles; where more than 100 % of a difference comes from "
                 "them, the other questions go the other way."),
        ("table", ["claim, in our words", "verdict"], [*summary, [published["method"]["claim"], toy_text]]),
        ("text", means_text(published, recheck)), *sections,
        ("heading", "The method"), ("text", f"Claim: {published['method']['claim']} ({published['method']['where']})"), *toy,
        *form_effects.blocks(published, recheck), *plumbing_blocks(results)]


def write(results: Path, published: Mapping) -> None:
    """claims.md and its pictures, in `results`. UserError when recheck.json is not there."""
    recheck = read(results / "recheck.json")
    if recheck is None:
        raise UserError(f"there is no {results / 'recheck.json'}: run python -m studies.curriculum_dpop.recheck FOLDER --to that file first.")
    if not isinstance(recheck, dict) or "kinds" not in recheck:
        raise UserError(f"{results / 'recheck.json'} is none that python -m studies.curriculum_dpop.recheck wrote.")
    (results / "claims.md").write_text(to_markdown(page(published, recheck, results)), encoding="utf-8")
    form_effects.draw_by_length(published, recheck, results / "recheck_by_length.png")
    form_effects.draw_same_answer(published, recheck, results / "recheck_same_answer.png")


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--results", type=Path, default=ROOT / "results" / "curriculum_dpop", help="where recheck.json lies and the page goes")
    a = a.parse_args(argv)
    write(a.results, read(PUBLISHED))
    print(f"wrote {a.results / 'claims.md'} and two pictures beside it")


if __name__ == "__main__":
    run_main(main)
