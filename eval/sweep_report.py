"""Tables and pictures of a sweep: means over seeds with intervals, paired differences to the first cell, and curves with seed bands."""
import json
import math
from collections.abc import Callable, Sequence, Sized
from functools import partial
from pathlib import Path

import numpy as np

from eval import plots, stats
from eval.brief import LABELS

CURVES = ("loss", "rewards/accuracy", "rewards/margin", "logps/chosen", "logps/rejected")
TABLE = ("win_rate", "reward_accuracy", "reward_accuracy_clean", "chosen_drift", "kl", "words", "well_formed", "unsafe_refused", "borderline_refused")
DIFFERENCES = ("win_rate", "reward_accuracy_clean", "reward_accuracy", "chosen_drift", "kl")
PANELS = ("win_rate", "reward_accuracy_clean", "reward_accuracy", "chosen_drift", "kl", "words")
MOST_CURVES = 8  # more cells than this and nobody can tell the lines apart


def cell(interval: stats.Interval, signed: bool = False) -> str:
    """"62.2 [58.1, 66.3]"; one value alone has no interval."""
    digits = 1 if abs(interval.value) >= 10 else 2
    sign = "+" if signed else ""
    if interval.low is None:
        return f"{interval.value:{sign}.{digits}f}"
    return f"{interval.value:{sign}.{digits}f} [{interval.low:{sign}.{digits}f}, {interval.high:{sign}.{digits}f}]"


def level(key: str, values: Sequence[float]) -> stats.Interval:
    """The mean of a figure named in LABELS over seeds, its interval within what the figure can be: only drifts can be negative."""
    return stats.over_seeds(values, -math.inf if "drift" in key else 0, 100 if "%" in LABELS[key] else math.inf)


def known(runs: dict[int, dict], key: str) -> list[float]:
    """A figure of every seed that has one: a win rate where nothing was decided is none."""
    return [run[key] for run in runs.values() if run[key] is not None]


def shown_cell(values: Sequence[float], interval: Callable[[Sequence[float]], stats.Interval], of: Sized, signed: bool = False) -> str:
    """`cell` of some seeds' values, and how many they are where these are not all."""
    if not values:
        return "not measured"
    return cell(interval(values), signed) + ("" if len(values) == len(of) else f" ({len(values)} seeds)")


def by_label(rows: Sequence[dict]) -> dict[str, dict[int, dict]]:
    """label -> seed -> figures, in the order of the rows."""
    found: dict[str, dict[int, dict]] = {}
    for row in rows:
        found.setdefault(row["label"], {})[row["seed"]] = row["figures"]
    return found


def tables(rows: Sequence[dict]) -> str:
    """Both tables in Markdown: levels, and differences to the first cell over the seeds that both have."""
    found = by_label(rows)
    shown = [key for key in TABLE if all(key in row["figures"] for row in rows)]
    lines = [f"|  | seeds | {' | '.join(LABELS[key] for key in shown)} |", "| --- " * (2 + len(shown)) + "|"]
    for label, runs in found.items():
        cells = (shown_cell(known(runs, key), partial(level, key), runs) for key in shown)
        lines.append(f"| {label} | {len(runs)} | " + " | ".join(cells) + " |")
    first, compared = next(iter(found)), [key for key in DIFFERENCES if key in shown]
    lines += ["", f"Minus {first}, seed by seed:", "", f"|  | seeds | {' | '.join(LABELS[key] for key in compared)} |", "| --- " * (2 + len(compared)) + "|"]
    for label, runs in list(found.items())[1:]:
        both = sorted(set(runs) & set(found[first]))
        if both:
            changes = ([runs[seed][key] - found[first][seed][key] for seed in both if None not in (runs[seed][key], found[first][seed][key])] for key in compared)
            cells = (shown_cell(values, stats.over_seeds, both, signed=True) for values in changes)
            lines.append(f"| {label} | {len(both)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_figures(rows: Sequence[dict], picture: Path) -> None:
    """One panel per figure: every seed a dot, the mean over seeds with its interval."""
    plt = plots.pyplot()
    found, shown = by_label(rows), [key for key in PANELS if all(key in row["figures"] for row in rows)]
    columns = min(3, len(shown))
    figure, axes = plt.subplots(-(-len(shown) // columns), columns, figsize=(4.6 * columns, (1.0 + 0.26 * len(found)) * -(-len(shown) // columns)),
                                squeeze=False, sharey=True, layout="constrained")
    places = np.arange(len(found))[::-1]
    for axis, key in zip(axes.flat, shown):
        for place, runs in zip(places, found.values()):
            values = known(runs, key)
            if not values:
                continue
            interval = level(key, values)
            axis.plot(values, [place] * len(values), "o", color=plots.SKY, markersize=3.5, alpha=0.8)
            axis.plot(interval.value, place, "D", color=plots.RED, markersize=5)
            if interval.low is not None:
                axis.plot([interval.low, interval.high], [place, place], color=plots.RED, linewidth=1.3)
        if middle := known(next(iter(found.values())), key):
            axis.axvline(np.mean(middle), color="black", linestyle=":", linewidth=0.8)  # the first cell, for orientation
        axis.set(title=LABELS[key], yticks=places, yticklabels=list(found))
    for axis in list(axes.flat)[len(shown):]:
        axis.axis("off")
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def draw_curves(rows: Sequence[dict], picture: Path) -> None:
    """Validation curves: the mean over seeds, and a band from the lowest seed to the highest. Log-probs as change since step 0."""
    plt = plots.pyplot()
    titles = {"loss": "loss", "rewards/accuracy": "validation pairs ranked right", "rewards/margin": "reward margin",
              "logps/chosen": "chosen log-prob, change in nats", "logps/rejected": "rejected log-prob, change in nats"}
    figure, axes = plt.subplots(2, 3, figsize=(13.5, 7), layout="constrained")
    for axis, key in zip(axes.flat, CURVES):
        for label, colour in zip(by_label(rows), plots.SYSTEM_COLOURS + (plots.GREY, "black")):
            curves = [{point["step"]: point[key] for point in row["curve"]} for row in rows if row["label"] == label]
            steps = sorted(set.intersection(*(set(curve) for curve in curves)))
            values = np.array([[curve[step] for step in steps] for curve in curves], dtype=float)
            if key.startswith("logps"):
                values -= values[:, :1]
            axis.plot(steps, values.mean(0), color=colour, marker="o", markersize=3, label=label)
            axis.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
        axis.set(title=titles[key], xlabel="optimizer step")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    axes.flat[5].axis("off")
    axes.flat[5].legend(handles, labels, loc="center", title="mean of the seeds, band from lowest to highest")
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def write(folder: Path, rows: Sequence[dict], failures: Sequence[str], config: str, common: dict) -> None:
    """runs.jsonl, table.md and the pictures; nothing but the failures when no run finished."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ", ".join(f"`{key}={value}`" for key, value in common.items()) or "none"
    seeds = sorted({row["seed"] for row in rows})
    start = ("all runs start from the model named there" if "dpo.init_from" in common else
             "each seed has its own corpus, tokenizer and SFT model, which all its runs start from unless the sweep varies them")
    text = [f"# Sweep `{folder.name}` on `{config}`", "", f"Settings of all runs: {settings}. Seeds {', '.join(map(str, seeds)) or 'none'}; {start}. In brackets: 95 % t-interval over seeds, cut at 0 and 100 %.", ""]
    if rows:
        text += [tables(rows), "", "![figures](figures.png)"]
        draw_figures(rows, folder / "figures.png")
        if len(by_label(rows)) <= MOST_CURVES:
            draw_curves(rows, folder / "curves.png")
            text += ["", "![curves](curves.png)"]
    text += [f"\n**Failed:** {failure}" for failure in failures]
    (folder / "table.md").write_text("\n".join(text) + "\n")
