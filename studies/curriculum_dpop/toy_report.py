"""Table, pictures and verdict of the toy study, made from its rows.jsonl alone.

    python -m studies.curriculum_dpop.toy_report results/curriculum_dpop/toy
"""
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval import plots, stats
from eval.sweep_report import cell
from runtime.config import load_config
from runtime.errors import UserError, run_main
from studies.curriculum_dpop.toy_data import SIZES

START, PLAIN = "SFT, the start", "DPO, shuffled"
LEVELS = ("easy", "medium", "hard")
# figure -> its head in the tables; shares are in %
LABELS = {
    "right": "right, all questions", "hallucination": "made up, all questions", "on_answerable": "made up, answerable",
    "on_unanswerable": "made up, unanswerable", "correct": "correct, answerable", "needless": "needless abstention",
    "abstention": "abstains, unanswerable", "details": "adds a detail", "well_formed": "well formed", "tasks": "other tasks done",
    "greedy_right": "greedy: right, all questions", "greedy_hallucination": "greedy: made up, all questions",
    "greedy_correct": "greedy: correct, answerable", "greedy_abstention": "greedy: abstains, unanswerable", "of_formed": "made up, of well formed",
    "chosen_drift_answers": "drift of chosen answers, nats", "chosen_drift_abstentions": "drift of chosen abstentions, nats",
    "rejected_drift": "rejected drift, nats", "likelier": "chosen is the likelier reply", "accuracy": "pairs ranked right",
    "accuracy_easy": "... easy", "accuracy_medium": "... medium", "accuracy_hard": "... hard"}
MAIN = ("right", "hallucination", "on_answerable", "on_unanswerable", "correct", "needless", "abstention", "details", "well_formed", "tasks")
MORE = ("greedy_right", "greedy_hallucination", "greedy_correct", "greedy_abstention", "of_formed", "chosen_drift_answers",
        "chosen_drift_abstentions", "rejected_drift", "likelier", "accuracy", "accuracy_easy", "accuracy_medium", "accuracy_hard")
DIFFERENCES = ("right", "hallucination", "correct", "needless", "abstention", "tasks", "chosen_drift_answers")
# what the study asks, named before it was run: (first, second, figure); all are one family for Holm's correction
ASKED = (
    ("SFT on chosen", START), (PLAIN, START), ("DPOP, shuffled", START), (PLAIN, "SFT on chosen"), ("DPOP, shuffled", PLAIN), ("DPO, easy first", PLAIN),
    ("DPO, hard first", PLAIN), ("DPOP, easy first", "DPOP, shuffled"), ("additive, easy first", "DPOP, easy first"))
# both, since a model that abstains from everything makes nothing up
PLANNED = (*((one, other, figure) for one, other in ASKED for figure in ("hallucination", "right")),
           (PLAIN, START, "tasks"), ("DPOP, shuffled", PLAIN, "tasks"), (PLAIN, START, "chosen_drift_answers"), ("DPOP, shuffled", PLAIN, "chosen_drift_answers"))
ALPHA = 0.05
COLOURS = (plots.GREY, plots.ORANGE, plots.BLUE, plots.SKY, plots.PURPLE, plots.RED, plots.GREEN, "black")

Runs = dict[str, dict[int, dict[str, float]]]  # condition -> seed -> figures


def by_condition(rows: Sequence[dict]) -> Runs:
    """The figures by condition and seed, in the order of the rows."""
    found: Runs = {}
    for row in rows:
        found.setdefault(row["condition"], {})[row["seed"]] = row["figures"]
    return found


def paired(runs: Runs, one: str, other: str, figure: str) -> list[float] | None:
    """one - other, seed by seed, over the seeds that both have; None where a condition is missing."""
    both = sorted(set(runs.get(one, {})) & set(runs.get(other, {})))
    values = [runs[one][seed][figure] - runs[other][seed][figure] for seed in both if None not in (runs[one][seed][figure], runs[other][seed][figure])]
    return values or None


def t_test(differences: Sequence[float]) -> float | None:
    """Two-sided p of Student's paired t test (Student 1908); 1 where no seed differs; None for a single seed, and where all differ by the same,
    which says nothing about the error."""
    if len(differences) < 2:
        return None
    if np.ptp(differences) == 0:
        return 1.0 if differences[0] == 0 else None
    from scipy.stats import ttest_1samp
    return float(ttest_1samp(differences, 0.0).pvalue)


def corrected(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction of the p that exist."""
    known = iter(stats.holm([p for p in p_values if p is not None]))
    return [None if p is None else next(known) for p in p_values]


def level(name: str, values: Sequence[float]) -> stats.Interval:
    """The mean of a figure named in LABELS over seeds with its interval: drifts in nats, all else shares in %, cut at 0 and 100."""
    return stats.over_seeds(values) if "drift" in name else stats.over_seeds(values, 0, 100)


def levels_table(runs: Runs, figures: Sequence[str]) -> list[str]:
    """Means over seeds with t intervals, one line per condition."""
    lines = [f"|  | seeds | {' | '.join(LABELS[name] for name in figures)} |", "| --- " * (2 + len(figures)) + "|"]
    for label, seeds in runs.items():
        cells = []
        for name in figures:
            values = [seeds[seed][name] for seed in seeds if seeds[seed].get(name) is not None]
            cells.append(cell(level(name, values)) if values else "not measured")
        lines.append(f"| {label} | {len(seeds)} | {' | '.join(cells)} |")
    return lines


def differences_table(runs: Runs, other: str) -> list[str]:
    """Every condition minus `other`, seed by seed; a star where p < ALPHA after Holm's correction over the column."""
    labels = [label for label in runs if label != other and any(paired(runs, label, other, name) for name in DIFFERENCES)]
    stars, cells = {}, {}
    for name in DIFFERENCES:
        found = [paired(runs, label, other, name) for label in labels]
        for label, values, p in zip(labels, found, corrected([t_test(values) if values else None for values in found])):
            cells[label, name] = cell(stats.over_seeds(values), signed=True) if values else "not measured"
            stars[label, name] = " *" if p is not None and p < ALPHA else ""
    lines = [f"| minus {other} | {' | '.join(LABELS[name] for name in DIFFERENCES)} |", "| --- " * (1 + len(DIFFERENCES)) + "|"]
    return lines + [f"| {label} | {' | '.join(cells[label, name] + stars[label, name] for name in DIFFERENCES)} |" for label in labels]


def leaders(runs: Runs) -> str:
    """Which condition makes least up, which is right most often, and what the first costs: means over seeds."""
    names = ("hallucination", "right", "needless", "abstention")
    mean = {label: {name: float(np.mean([run[name] for run in seeds.values()])) for name in names} for label, seeds in runs.items()}
    none, some = (SIZES["questions"][kind] for kind in ("unanswerable", "answerable"))
    least, best = min(mean, key=lambda label: mean[label]["hallucination"]), max(mean, key=lambda label: mean[label]["right"])
    return (f"Least is made up by {least} ({mean[least]['hallucination']:.1f} % of all replies; it abstains from {mean[least]['abstention']:.0f} % of the "
            f"unanswerable questions and needlessly from {mean[least]['needless']:.0f} % of the answerable ones). Right most often is {best} ({mean[best]['right']:.1f} %; {START}: "
            f"{mean[START]['right']:.1f} %). Whoever abstains from everything makes nothing up and is right in {100 * none / (none + some):.0f} % of the questions, "
            "those without an answer: read the two columns together.")


def verdict(runs: Runs) -> str:
    """What the planned comparisons say, in words made from their figures, whichever way they fall."""
    asked = [(one, other, name, values) for one, other, name in PLANNED if (values := paired(runs, one, other, name))]
    p_values = corrected([t_test(values) for *_, values in asked])
    seen, unseen = [], []
    for (one, other, name, values), p in zip(asked, p_values):
        unit = "" if "nats" in LABELS[name] else " points"
        text = f"{one}, minus {other}: {LABELS[name]} {cell(stats.over_seeds(values), signed=True)}{unit}" + (f", p {p:.2g}" if p is not None else "")
        (seen if p is not None and p < ALPHA else unseen).append(f"- {text}")
    if all(p is None for p in p_values):
        return "One seed: nothing can be said.\n\n" + "\n".join(unseen)
    parts = [f"{len(asked)} comparisons were planned; {len(seen)} are significant (paired t tests over seeds, p < {ALPHA} after Holm's correction over all of them):",
             "\n".join(seen) or "- none", "", "These are not; the data do not show that the two differ, nor that they are the same:", "\n".join(unseen) or "- none"]
    return "\n".join(parts)


def hallucination_picture(runs: Runs, path: Path) -> None:
    """Made-up answers, abstentions and other tasks by condition: seeds as dots, the mean with its interval as a bar."""
    plt = plots.pyplot()
    panels = ("right", "hallucination", "abstention", "needless", "tasks")
    figure, axes = plt.subplots(1, len(panels), figsize=(2.6 * len(panels) + 1.5, 3.4), sharey=True, layout="constrained")
    labels = list(runs)
    for axis, name in zip(axes, panels):
        for place, label in enumerate(labels):
            values = [figures[name] for figures in runs[label].values()]
            interval = level(name, values)
            if interval.low is not None:
                axis.plot([interval.low, interval.high], [place, place], color=plots.GREY, linewidth=4, alpha=0.5, solid_capstyle="butt")
            axis.plot(values, [place] * len(values), "o", markersize=3.5, color=COLOURS[place % len(COLOURS)])
            axis.plot([interval.value], [place], "|", markersize=13, color="black")
        axis.set(title=LABELS[name].replace(", ", ",\n"), xlabel="%")
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def drift_picture(rows: Sequence[dict], path: Path) -> None:
    """What training does to the log-probs of validation pairs, nats per reply less those at the start: mean over seeds, band from min to max."""
    plt = plots.pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    labels = [label for label in dict.fromkeys(row["condition"] for row in rows) if any(row["curve"] for row in rows if row["condition"] == label)]
    for axis, side in zip(axes, ("chosen", "rejected")):
        for number, label in enumerate(labels):
            curves = [row["curve"] for row in rows if row["condition"] == label and row["curve"]]
            steps = [point["step"] for point in curves[0]]
            values = np.array([[point[f"logps/{side}"] - curve[0][f"logps/{side}"] for point in curve] for curve in curves])
            colour = COLOURS[(number + 2) % len(COLOURS)]
            axis.plot(steps, values.mean(0), color=colour, label=label, linestyle="-" if "shuffled" in label else "--")
            axis.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
        axis.axhline(0, color="black", linewidth=0.8, linestyle=":")
        axis.set(title=f"{side} replies, validation pairs", xlabel="optimizer step", ylabel="change of log π, nats per reply")
    axes[1].legend(fontsize=7.5)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def page(rows: Sequence[dict]) -> str:
    """table.md: the verdict, then what it stands on."""
    runs, config = by_condition(rows), load_config(["curriculum_toy"])
    settings = {row["condition"]: ", ".join(f"`{key}={value}`" for key, value in row["settings"].items()) or "`configs/curriculum_toy.py` as it is" for row in rows}
    steps = sorted({row["steps"] for row in rows if row["condition"] != START})
    return "\n".join([
        "# The toy study: made-up answers", "",
        "Made by `python -m studies.curriculum_dpop.toy_study`; the world and the judge are in `toy_world.py`, the data in `toy_data.py`. "
        f"Every condition starts from the same SFT model of its seed and takes {' or '.join(map(str, steps))} optimizer steps. Questions are about entities that no training saw. Shares in %; in brackets 95 % t intervals over seeds, cut at 0 and 100; "
        f"replies sampled at temperature {config.eval.temperature:g} unless said to be greedy. beta {config.dpo.beta:g}, learning rate {config.dpo.lr:g} for all objectives; "
        "learning rates were chosen on seed 0, which is not among these.", "",
        "## Verdict", "", leaders(runs), "", verdict(runs), "",
        "## Replies", "", *levels_table(runs, MAIN), "",
        "## Differences, seed by seed", "", f"A star: p < {ALPHA}, paired t test, Holm's correction over the column.", "",
        *differences_table(runs, START), "", *differences_table(runs, PLAIN), "",
        "## Greedy replies and held-out pairs", "",
        "Drift: change of a reply's log-prob from the start, mean over held-out pairs; of chosen replies apart for true answers and for the abstention. "
        "Ranked right: the chosen reply rose more than the rejected one.", "",
        *levels_table(runs, MORE), "", "![made-up answers](hallucination.png)", "", "![log-probs](drift.png)", "",
        "## Settings", "", *(f"- {label}: {text}" for label, text in settings.items() if label != START), ""])


def write(folder: Path) -> str:
    """table.md, hallucination.png and drift.png from the folder's rows.jsonl; returns the page. UserError when there are none."""
    path = folder / "rows.jsonl"
    if not path.exists():
        raise UserError(f"{path} is missing: run python -m studies.curriculum_dpop.toy_study first.")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    text = page(rows)
    (folder / "table.md").write_text(text, encoding="utf-8")
    hallucination_picture(by_condition(rows), folder / "hallucination.png")
    drift_picture(rows, folder / "drift.png")
    return text


def main(argv: list[str]) -> None:
    if len(argv) != 1:
        raise UserError("name the folder that holds rows.jsonl.")
    print(write(Path(argv[0])))


if __name__ == "__main__":
    run_main(main)
