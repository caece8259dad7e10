"""What the runners of EmoBench and EQ-Bench 3 wrote, read and recomputed: accuracies and rubric scores with intervals, a fine-tune paired with its base.

What is no answer is not a wrong answer here, as it is in both runners. `python -m studies.human_likeness.benchmarks import` calls this.
"""
import argparse
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.store import read_json, write_json
from eval import stats
from eval.render import to_markdown
from eval.tables import p_value, with_interval
from runtime.errors import UserError

SIZE = 200  # EmoBench's questions per task and language
# task -> (right answers, given answers, category) in a row of EmoBench's results; a row is right when every answer is
TASKS = {"EU": (("emo_label", "cause_label"), ("emo_answer", "cause_answer"), "coarse_category"), "EA": (("label",), ("answer",), "category")}
# EQ-Bench 3 asks its judge for more, and averages these; every scenario is asked for six of them, on 0 to 20
CRITERIA = {"demonstrated_empathy", "pragmatic_ei", "depth_of_insight", "social_dexterity", "emotional_reasoning", "message_tailoring", "theory_of_mind",
            "subtext_identification", "intellectual_grounding", "correctness"}
PER_TASK, TOP = 6, 20


# ---- importing EmoBench ---------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Row:
    """One question as a model answered it; `given` holds "" where no answer came."""
    qid: str
    category: str
    labels: tuple[str, ...]
    given: tuple[str, ...]

    @property
    def correct(self) -> bool:
        return self.labels == self.given

    @property
    def answered(self) -> bool:
        return any(self.given)


def read_emobench(folder: Path) -> dict[tuple[str, str], dict[str, list[Row]]]:
    """(task, language) -> model -> rows in the file's order, from results/{EU,EA}/MODEL.jsonl. UserError for a line that is none of the runner's."""
    found: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for task, (labels, given, category) in TASKS.items():
        for file in sorted((folder / task).glob("*.jsonl")):
            try:
                lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
            except (OSError, UnicodeDecodeError) as e:
                raise UserError(f"{file} cannot be read ({type(e).__name__}): delete it and run the runner again.") from None
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                    answers = tuple("" if row[k] is None else str(row[k]).strip() for k in given)
                    made = Row(str(row["qid"]), str(row[category]), tuple(str(row[k]) for k in labels), answers)
                    found.setdefault((task, row["lang"]), {}).setdefault(file.stem, []).append(made)
                except (ValueError, KeyError, TypeError) as e:
                    raise UserError(f"line {number} of {file} is no answer as EmoBench writes it ({type(e).__name__}: {e}): delete that line and run the runner again.") from None
    if not found:
        raise UserError(f"--emobench {folder} holds no EU/MODEL.jsonl or EA/MODEL.jsonl: name the folder 'results' of the checkout.")
    return found


def first_rows(rows: Sequence[Row]) -> dict[str, Row]:
    """qid -> its first row: a question that was asked twice counts once."""
    return {row.qid: row for row in reversed(rows)}


def emobench_figures(rows: Sequence[Row], leaderboard: float | None) -> dict:
    """Accuracy among the questions that were answered and among all, with Wilson intervals, the runner's own figure, and what is wrong with the file.

    The runner writes an empty answer when its request, or the reading of the reply, failed, and scores it as wrong. `answered` is None where no answer came.
    """
    once = first_rows(rows)
    said = [row for row in once.values() if row.answered]
    repeated = sorted(qid for qid, n in Counter(row.qid for row in rows).items() if n > 1)
    found = {"questions": len(once), "of": SIZE, "no_answer": len(once) - len(said), "half_answered": sum(not all(row.given) for row in said), "repeated": repeated,
             "not_a_letter": sum(any(len(answer) > 1 for answer in row.given) for row in said),
             "answered": stats.wilson(sum(row.correct for row in said), len(said)).to_dict() if said else None,
             "all": stats.wilson(sum(row.correct for row in once.values()), len(once)).to_dict(), "runner": sum(row.correct for row in rows) / len(rows), "leaderboard": leaderboard,
             "by_category": {c: stats.wilson(sum(r.correct for r in of), len(of)).to_dict() for c in sorted({r.category for r in said}) if (of := [r for r in said if r.category == c])}}
    warnings = [f"incomplete: {len(once)} of {SIZE} questions"] if len(once) != SIZE else []
    if found["no_answer"]:
        warnings.append(f"{found['no_answer']} of {len(once)} questions have no answer, which the runner counts as wrong and does not ask again")
    if repeated:
        warnings.append(f"asked more than once, the first row is used: qid {', '.join(repeated[:10])}{' ...' if len(repeated) > 10 else ''}")
    if found["not_a_letter"]:
        warnings.append(f"{found['not_a_letter']} answers are no single letter, which the runner counts as wrong")
    if leaderboard is not None and abs(leaderboard - found["runner"]) > 1e-9:
        warnings.append(f"leaderboard.json says {leaderboard:.4f} where these rows give {found['runner']:.4f}: the file changed after the runner counted")
    return found | {"warnings": warnings}


def emobench_pairs(by_model: Mapping[str, Sequence[Row]], base: str) -> list[dict]:
    """Each other model against `base` on the same questions, over those both answered and over all (no answer = wrong): difference, exact McNemar.

    UserError when the two runs hold different right answers to a question.
    """
    found, first = [], first_rows(by_model[base])
    for name, rows in by_model.items():
        second = first_rows(rows)
        shared = [qid for qid in first if qid in second]
        if wrong := [qid for qid in shared if first[qid].labels != second[qid].labels]:
            raise UserError(f"EmoBench: {base} and {name} hold different right answers to question {wrong[0]}: they were made with different data, or choices in another order.")
        for over, qids in (("answered by both", [q for q in shared if first[q].answered and second[q].answered]), ("all", shared)):
            if name == base or not qids:
                continue
            a, b = ([one[q].correct for q in qids] for one in (first, second))
            p, only_a, only_b = stats.mcnemar(a, b)
            found.append({"model": name, "over": over, "difference": stats.paired_shares(a, b).to_dict(), "only_base": only_a, "only_model": only_b, "p": p})
    return found


def said_overall(file: Path, model: str, lang: str) -> float | None:
    """The runner's own accuracy in its leaderboard.json; None where it names none. UserError for a damaged file."""
    try:
        said = json.loads(file.read_text(encoding="utf-8")).get(model, {}).get(lang, {}).get("Overall") if file.exists() else None
        return None if said is None else float(said)
    except (OSError, ValueError, TypeError, AttributeError) as e:
        raise UserError(f"{file} is no leaderboard as EmoBench writes it ({type(e).__name__}): delete it.") from None


def import_emobench(folder: Path, base: str) -> dict:
    """Everything about EmoBench's results: figures, pairs (p corrected over tasks, languages and models, for each kind of pairing apart) and warnings."""
    figures, pairs, warnings = [], [], []
    for (task, lang), by_model in read_emobench(folder).items():
        for name, rows in by_model.items():
            figures.append({"task": task, "lang": lang, "model": name} | emobench_figures(rows, said_overall(folder / task / "leaderboard.json", name, lang)))
            warnings += [f"{task} {lang}, {name}: {warning}" for warning in figures[-1]["warnings"]]
        if base in by_model:
            pairs += [{"task": task, "lang": lang} | pair for pair in emobench_pairs(by_model, base)]
    names = {row["model"] for row in figures}
    if base and base not in names:
        warnings.append(f"no model is called {base} (--base); there are {', '.join(sorted(names))}: nothing was compared")
    if len({"qwen" in name.lower() for name in names}) > 1:
        warnings.append("some names contain 'qwen' and some do not: the runner prompts the first with /no_think, so the models were not asked the same")
    _holm(pairs, "over")
    return {"figures": figures, "pairs": pairs, "warnings": warnings}


def _holm(rows: Sequence[dict], kind: str = "") -> None:
    for group in {row.get(kind) for row in rows}:
        mine = [row for row in rows if row.get(kind) == group]
        for row, p in zip(mine, stats.holm([row["p"] for row in mine])):
            row["p_holm"] = p


# ---- importing EQ-Bench 3 -------------------------------------------------------------------------------------------

def task_score(task: Mapping) -> tuple[float | None, str]:
    """(rubric score on 0 to 100, "") or (None, why there is none), as the runner averages: the mean of the counted criteria, times five."""
    if task.get("status") != "rubric_scored":
        short = task.get("status") == "completed" or (task.get("status") == "scenario_completed" and not task.get("debrief_prompt"))
        return None, "never judged (the runner skips a dialogue without a reply of 100 characters)" if short else f"ended as {task.get('status')}"
    scores = {k: v for k, v in (task.get("rubric_scores") or {}).items() if k in CRITERIA and isinstance(v, (int, float))}
    if len(scores) < PER_TASK:
        return None, "judged on fewer criteria than asked"
    if not all(0 <= v <= TOP for v in scores.values()):
        return None, f"a score outside 0 to {TOP}"
    return 100 / TOP * float(np.mean(list(scores.values()))), ""


def shown_empty(task: Mapping) -> bool:
    """True when the judge saw an empty reply though there was one: the runner shows it only the sections it finds, and none had the headings."""
    return any(turn.get("raw", "").strip() and len(turn) > 1 and not any(v.strip() for k, v in turn.items() if k != "raw") for turn in task.get("parsed_responses") or [])


def read_eqbench3(file: Path) -> dict[str, dict]:
    """Label (the model's name, or the run's key where a name has several runs) -> the run as the runner wrote it. UserError for anything else."""
    try:
        runs = {key: run for key, run in json.loads(file.read_text(encoding="utf-8")).items() if isinstance(run.get("scenario_tasks"), dict)}
    except (OSError, ValueError, AttributeError) as e:
        raise UserError(f"--eqbench3 {file} is no runs file of EQ-Bench 3 ({type(e).__name__}).") from None
    if not runs:
        raise UserError(f"--eqbench3 {file} holds no run.")
    names = Counter(run.get("model_name") for run in runs.values())
    return {run["model_name"] if isinstance(run.get("model_name"), str) and names[run["model_name"]] == 1 else key: run for key, run in runs.items()}


def eqbench3_figures(run: Mapping, version: dict | None, seed: int) -> tuple[dict, dict[tuple[str, str], float]]:
    """(figures and warnings of a run, (scenario, iteration) -> score). The interval draws whole scenarios, with all their iterations."""
    tasks = {(scenario, i): task for i, by_scenario in run["scenario_tasks"].items() for scenario, task in by_scenario.items()}
    judged = {where: task_score(task) for where, task in tasks.items()}
    scores, reasons = {where: score for where, (score, _) in judged.items() if score is not None}, Counter(why for _, why in judged.values() if why)
    empty, wanted = sum(shown_empty(tasks[where]) for where in scores), int(run.get("iterations_requested", 1))
    rubric = stats.ratio(*stats.sum_by_cluster([s for s, _ in scores], list(scores.values())), seed=seed).to_dict() if scores else None
    own = (run.get("results") or {}).get("average_rubric_score")
    own = own * 100 / TOP if isinstance(own, (int, float)) else None
    found = {"judge": run.get("judge_model"), "judge_version": version, "iterations": wanted, "scenarios": len({s for s, _ in tasks}), "tasks": len(tasks), "scored": len(scores),
             "not_scored": dict(reasons), "shown_empty": empty, "rubric": rubric, "runner": own, "status": run.get("status")}
    warnings = [f"{n} of {len(tasks)} dialogues have no score: {why}" for why, n in reasons.items()]
    if len(tasks) != found["scenarios"] * wanted:
        warnings.append(f"incomplete: {len(tasks)} dialogues where {found['scenarios']} scenarios x {wanted} iterations were asked for")
    if empty:
        warnings.append(f"of {empty} of {len(scores)} scored dialogues the judge saw a reply as empty, because its headings were not found")
    if rubric and own is not None and abs(rubric["value"] - own) > 0.026:  # it rounds to .01 of 20
        warnings.append(f"the runner's own average is {own:.2f} where these dialogues give {rubric['value']:.2f}")
    if version is None:
        warnings.append("the judge's version is not recorded: run with the command eqbench3")
    return found | {"warnings": warnings}, scores


def import_eqbench3(file: Path, base: str, seed: int) -> dict:
    """Everything about EQ-Bench 3's runs; pairs are scenario by scenario and iteration by iteration, sign flips over scenarios, Holm over models."""
    runs, figures, scores, pairs, warnings = read_eqbench3(file), {}, {}, [], []
    for name, run in runs.items():
        made_by = file.parent / f"eqbench3_{re.sub(r'[^A-Za-z0-9_-]+', '_', name)}.json"
        try:
            figures[name], scores[name] = eqbench3_figures(run, (read_json(made_by) or {}).get("judge"), seed)
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise UserError(f"--eqbench3 {file}: the run of {name} is not as EQ-Bench 3 writes it, or {made_by.name} is damaged ({type(e).__name__}: {e}).") from None
        warnings += [f"{name}: {warning}" for warning in figures[name]["warnings"]]
    most = max(row["scenarios"] for row in figures.values())
    warnings += [f"{name}: {row['scenarios']} scenarios, where another run here has {most}" for name, row in figures.items() if row["scenarios"] < most]
    for name in (n for n in runs if base in runs and n != base):
        judges = [(figures[n]["judge"], (figures[n]["judge_version"] or {}).get("answered_as")) for n in (base, name)]
        shared = sorted(scores[base].keys() & scores[name].keys())
        if judges[0] != judges[1] or not shared:
            warnings.append(f"{name} is not compared with {base}: " + (f"the judges differ, {judges[0]} and {judges[1]}" if shared else "no dialogue of both has a score"))
            continue
        change = [scores[name][where] - scores[base][where] for where in shared]
        sums, counts = stats.sum_by_cluster([s for s, _ in shared], change)
        pairs.append({"model": name, "dialogues": len(shared), "difference": stats.ratio(sums, counts, seed=seed).to_dict(),
                      "p": stats.sign_flip_test(np.zeros(len(sums)), sums, seed=seed)})
    _holm(pairs)
    warnings += [f"{name}: the runner's Elo failed: {run['results']['elo_error']}" for name, run in runs.items() if (run.get("results") or {}).get("elo_error")]
    if base and base not in runs:
        warnings.append(f"no run is called {base} (--base); there are {', '.join(sorted(runs))}: nothing was compared")
    return {"figures": figures, "pairs": pairs, "warnings": warnings}


def elo_figures(file: Path) -> dict[str, dict]:
    """Model -> the runner's Elo with its own interval, how many comparisons it rests on, and in how many of them the judge named nobody: those the
    runner counts as draws. Elo is None where no comparison is left."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        compared = found.pop("__metadata__", {}).get("global_pairwise_comparisons", [])
        sides = [({c["pair"]["test_model"], c["pair"]["neighbor_model"]}, any(re.search("A0493|A0488", str(v)) for v in c["judge_response"].values())) for c in compared if "error" not in c]
        rows = {}
        for name, rating in found.items():
            mine = [named for both, named in sides if name in both]
            rows[name] = {k: rating.get(k) if any(mine) else None for k in ("elo", "ci_low", "ci_high")} | {"comparisons": len(mine), "no_verdict": mine.count(False)}
        return rows
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{file} is no Elo file of EQ-Bench 3 ({type(e).__name__}: {e}).") from None


# ---- the page -------------------------------------------------------------------------------------------------------

def page(found: dict) -> str:
    """The figures as Markdown."""
    blocks: list[tuple] = [("title", "Emotional intelligence before and after"), ("text", f"Generated by `{found['command']}`: do not edit. Intervals are 95 %; p two-sided, Holm-corrected within each benchmark.")]
    if emo := found.get("emobench"):
        blocks += [("heading", "EmoBench"), ("text", "Accuracy, Wilson intervals. The runner counts a question without an answer as wrong; here it is shown apart."),
                   ("table", ["task", "model", "questions", "no answer", "accuracy where answered", "accuracy, no answer = wrong"],
                    [[f"{r['task']} {r['lang']}", r["model"], f"{r['questions']} of {r['of']}", str(r["no_answer"]), with_interval(r["answered"], "share"), with_interval(r["all"], "share")]
                     for r in emo["figures"]])]
        if emo["pairs"]:
            blocks.append(("table", ["task", "model", "over", "n", "difference", f"only {found['base']}", "only model", "p (Holm), McNemar"],
                           [[f"{r['task']} {r['lang']}", r["model"], r["over"], str(r["difference"]["n"]), with_interval(r["difference"], "share", signed=True), str(r["only_base"]),
                             str(r["only_model"]), p_value(r["p_holm"])] for r in emo["pairs"]]))
    if eq := found.get("eqbench3"):
        blocks += [("heading", "EQ-Bench 3"), ("text", "Rubric score, 0 to 100, by the judge named; intervals draw whole scenarios."),
                   ("table", ["model", "judge", "answered as", "iterations", "scored", "rubric score"],
                    [[name, str(r["judge"]), str((r["judge_version"] or {}).get("answered_as", "not recorded")), str(r["iterations"]), f"{r['scored']} of {r['tasks']}", with_interval(r["rubric"])]
                     for name, r in eq["figures"].items()])]
        if eq["pairs"]:
            blocks.append(("table", ["model", "dialogues", "difference", "p (Holm), sign flips"],
                           [[r["model"], str(r["dialogues"]), with_interval(r["difference"], signed=True), p_value(r["p_holm"])] for r in eq["pairs"]]))
    if found.get("elo"):
        blocks += [("text", "Elo as the runner solved it, with its own interval; a comparison in which the judge named nobody is a draw to it."),
                   ("table", ["model", "Elo", "comparisons", "of them without a verdict"],
                    [[n, with_interval(None if r["elo"] is None else {"value": r["elo"], "low": r["ci_low"], "high": r["ci_high"]}), str(r["comparisons"]), str(r["no_verdict"])]
                     for n, r in found["elo"].items()])]
    warnings = [f"{kind}, {w}" for kind in ("emobench", "eqbench3") for w in found.get(kind, {}).get("warnings", [])]
    return to_markdown(blocks + ([("heading", "Mind"), *(("text", f"- {w}") for w in warnings)] if warnings else []))


def import_results(a: argparse.Namespace) -> None:
    """Read, recompute, compare (see the top of this file); writes benchmarks.json and benchmarks.md."""
    if not a.emobench and not a.eqbench3:
        raise UserError("nothing to import: name --emobench or --eqbench3.")
    found = {"command": a.made_by, "base": a.base, "seed": a.seed}
    if a.emobench:
        found["emobench"] = import_emobench(a.emobench, a.base)
    if a.eqbench3:
        found["eqbench3"] = import_eqbench3(a.eqbench3, a.base, a.seed)
        elo = a.eqbench3.with_name("eqbench3_elo.json")
        found["elo"] = elo_figures(elo) if elo.exists() else {}
    a.to.mkdir(parents=True, exist_ok=True)
    write_json(a.to / "benchmarks.json", found)
    (a.to / "benchmarks.md").write_text(page(found), encoding="utf-8")
    print(page(found) + f"written to {a.to}: benchmarks.json, benchmarks.md")
