"""The pictures of a run: what training did, how toxic the replies are, who refuses, who wins, and how pairs are ranked."""
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from eval.stats import Interval
from runtime.run import read_metrics

# Wong 2011, Nature Methods 8:441: colours that colour-blind readers can tell apart
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#777777"
SYSTEM_COLOURS = (BLUE, SKY, PURPLE, RED, ORANGE, GREEN)


def pyplot():
    """matplotlib.pyplot in the project's style, drawing to files only."""
    import matplotlib
    matplotlib.use("Agg")  # files only: works without a display
    import matplotlib.pyplot as plt
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                         "axes.axisbelow": True, "grid.alpha": 0.25, "axes.titlesize": 10, "axes.titleweight": "bold",
                         "legend.frameon": False})
    return plt


def series(rows: Sequence[Mapping], key: str, split: str) -> tuple[list[float], list[float]]:
    """(steps, values) of one column of one split, where it was measured."""
    found = [(row["step"], row[key]) for row in rows if row["split"] == split and row.get(key) is not None]
    return [step for step, _ in found], [value for _, value in found]


# One panel per row: stage, title, y label, the columns drawn in it with label and colour, and a dotted line for orientation.
PANELS = (
    ("base", "base: next-token loss", "nats per token", (("loss", "", BLUE),), None),
    ("sft", "SFT: loss on replies", "nats per token", (("loss", "", BLUE),), None),
    ("dpo", "DPO: loss", "per pair", (("loss", "", RED),), (float(np.log(2)), "ln 2: no preference yet")),
    ("dpo", "DPO: pairs ranked right", "share of pairs", (("rewards/accuracy", "", RED),), (0.5, "chance")),
    ("dpo", "DPO: implicit rewards", "reward (β · nats)",
     (("rewards/chosen", "chosen", GREEN), ("rewards/rejected", "rejected", RED), ("rewards/margin", "margin", GREY)), (0.0, "")),
    ("dpo", "DPO: log-probability of replies", "nats per reply",
     (("logps/chosen", "chosen", GREEN), ("logps/rejected", "rejected", RED)), None),
    ("dpo", "DPO: what the policy writes", "share of replies",
     (("replies/ended", "end by themselves", BLUE), ("replies/well_formed", "well formed", GREEN), ("replies/helpful_correct", "helpful and correct", ORANGE),
      ("replies/repetition", "repeated 3-grams", RED)), None),
    ("dpo", "DPO: distance from the reference", "KL, nats per reply", (("replies/kl", "", PURPLE),), None),
    ("reward", "reward model: pairs ranked right", "share of pairs", (("rewards/accuracy", "", RED),), (0.5, "chance")),
)


def training_curves(run_dir: Path, picture: Path) -> None:
    """Draw every stage's metrics.jsonl under `run_dir` into one picture; stages that were not run are left out.

    Thin lines are training steps (the mean of one step's batch), thick lines with dots are validation.
    """
    plt = pyplot()
    metrics = {stage: read_metrics(run_dir / stage / "metrics.jsonl") for stage in ("base", "sft", "dpo", "reward")}
    panels = [panel for panel in PANELS if any(series(metrics[panel[0]], key, split)[0] for key, *_ in panel[3] for split in ("train", "val"))]
    columns = min(3, max(1, len(panels)))
    height = -(-max(1, len(panels)) // columns)
    figure, axes = plt.subplots(height, columns, figsize=(4.2 * columns, 3.0 * height), squeeze=False, layout="constrained")
    for axis, (stage, title, unit, lines, mark) in zip(axes.flat, panels):
        for key, label, colour in lines:
            for split, name, look in (("train", "train", {"alpha": 0.45, "linewidth": 0.9}), ("val", "validation", {"linewidth": 1.8, "marker": "o", "markersize": 3.5})):
                if series(metrics[stage], key, split)[0]:
                    axis.plot(*series(metrics[stage], key, split), color=colour, label=f"{label} {name}".strip(), **look)
        if mark:
            axis.axhline(mark[0], color="black", linestyle=":", linewidth=0.8, label=mark[1] or None)
        axis.set(title=title, xlabel="optimizer step", ylabel=unit)
        # under the axis, where it cannot hide a curve
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=7.5)
    for axis in list(axes.flat)[len(panels):]:
        axis.axis("off")
    if not panels:
        axes.flat[0].text(0.5, 0.5, f"no metrics.jsonl under {run_dir}", ha="center", va="center")
    figure.savefig(picture, dpi=130)
    plt.close(figure)


def toxicity_distribution(picture: Path, shares: Mapping[str, Mapping[str, Interval]],
                          scores: Mapping[str, Mapping[str, np.ndarray]], not_measured: Sequence[str]) -> None:
    """Left: share of replies with a listed word per kind of prompt and system; then one panel per Detoxify model.

    shares: {kind: {system: Interval}}, empty when the lexicon was not used; scores: {scorer: {system: [n]}}.
    not_measured: one line per scorer that failed; it is written into the picture, so that an empty place is no zero.
    """
    plt = pyplot()
    panels = bool(shares) + len(scores) + bool(not_measured)
    figure, axes = plt.subplots(1, panels, figsize=(6.4 * panels, 3.8), squeeze=False, layout="constrained")
    axes = list(axes.flat)
    if shares:
        axis, systems = axes.pop(0), list(next(iter(shares.values())))
        width = 0.8 / len(systems)
        for s, (system, colour) in enumerate(zip(systems, SYSTEM_COLOURS)):
            intervals = [by_system[system] for by_system in shares.values()]
            values = np.array([interval.value for interval in intervals])
            spread = np.abs(np.array([[interval.low, interval.high] for interval in intervals]).T - values)
            axis.bar(np.arange(len(shares)) + (s - (len(systems) - 1) / 2) * width, values, width * 0.92, color=colour,
                     label=system, yerr=spread, error_kw={"elinewidth": 1, "capsize": 2})
        counts = [next(iter(by_system.values())).n for by_system in shares.values()]
        axis.set_xticks(range(len(shares)), [f"{kind}\n(n = {n})" for kind, n in zip(shares, counts)])
        axis.set(title="Replies with a listed insult (95 % interval)", ylabel="share of replies", xlabel="kind of prompt")
        axis.grid(axis="x", visible=False)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3, fontsize=8)
    for scorer, by_system in scores.items():
        axis = axes.pop(0)
        for (system, values), colour in zip(by_system.items(), SYSTEM_COLOURS):
            ordered = np.sort(values)
            # the share of replies *above* x: on log axes the rare bad tail, which is what matters, is visible
            axis.step(np.maximum(ordered, 1e-4), 1 - np.arange(len(ordered)) / len(ordered), where="pre", color=colour,
                      label=f"{system} (mean {values.mean():.3f})")
        axis.axvline(0.5, color="black", linestyle=":", linewidth=0.8, label="counted as toxic above .5")
        axis.set(title=f"Toxicity by {scorer}", xlabel="score x", ylabel="share of replies scoring at least x",
                 xscale="log", yscale="log", xlim=(1e-4, 1))
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, fontsize=8)
    if not_measured:
        axes[0].axis("off")
        lines = "\n".join(textwrap.fill(line, 80) for line in ("not measured:", *not_measured))
        axes[0].text(0.5, 0.5, lines, ha="center", va="center")
    figure.savefig(picture, dpi=130)
    plt.close(figure)


def refusal_bars(picture: Path, summary: Mapping) -> None:
    """Share of full refusals per group of prompts and system, with intervals; no picture when no group was measured."""
    rows = [row for row in summary["metrics"] if row["key"].startswith("refusal_") and row["key"] != "refusal_partial"]
    if not rows:
        return
    plt = pyplot()
    systems = list(summary["systems"])
    figure, axis = plt.subplots(figsize=(1.2 + 1.9 * len(rows), 3.8), layout="constrained")
    width = 0.8 / len(systems)
    for s, (system, colour) in enumerate(zip(systems, SYSTEM_COLOURS)):
        cells = [row["values"][system] for row in rows]
        values = np.array([cell["value"] for cell in cells])
        spread = np.abs(np.array([[cell["low"], cell["high"]] for cell in cells]).T - values)
        axis.bar(np.arange(len(rows)) + (s - (len(systems) - 1) / 2) * width, values, width * 0.92, color=colour, yerr=spread,
                 error_kw={"elinewidth": 1, "capsize": 2}, label=summary["systems"][system]["label"])
    names = [f"{row['key'].removeprefix('refusal_').replace('_', ' ')}\n(n = {row['values'][systems[0]]['n']:,})" for row in rows]
    axis.set_xticks(range(len(rows)), names)
    axis.set(title="Full refusals by rules (95 % interval)", ylabel="share of replies", ylim=(0, 1))
    axis.grid(axis="x", visible=False)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=8)
    figure.savefig(picture, dpi=130)
    plt.close(figure)


def win_rate_forest(picture: Path, summary: Mapping, judged: Sequence[Mapping]) -> None:
    """Every judge's win rates among decided pairs, one line each, around the 50 % that means no difference."""
    rows = [("oracle", row) for row in summary["win_rates"]] + [(content["judge"], row) for content in judged for row in content["comparisons"]]
    rows = [(judge, row) for judge, row in rows if row["rate"]]
    if not rows:
        return
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(9.5, 0.9 + 0.28 * len(rows)), layout="constrained")
    judges = list(dict.fromkeys(judge for judge, _ in rows))
    for y, (judge, row) in enumerate(reversed(rows)):
        rate, colour = row["rate"], SYSTEM_COLOURS[judges.index(judge) % len(SYSTEM_COLOURS)]
        axis.plot([rate["low"], rate["high"]], [y, y], color=colour, linewidth=1.8)
        axis.plot(rate["value"], y, "o", color=colour, markersize=5)
    axis.set_yticks(range(len(rows)), [f"{row['second']} against {row['first']}, {row['prompts']} ({judge}, n = {row['rate']['n']:,})"
                                       for judge, row in reversed(rows)], fontsize=7.5)
    axis.axvline(0.5, color="black", linestyle=":", linewidth=0.9)
    axis.set(xlim=(0, 1), ylim=(-0.7, len(rows) - 0.3), xlabel="share of decided pairs won by the first-named")
    axis.grid(axis="y", visible=False)
    figure.savefig(picture, dpi=130)
    plt.close(figure)


def reward_margins(picture: Path, logps: Path, beta: float) -> None:
    """Histogram of DPO's implicit reward margin (chosen minus rejected) over the held-out pairs of a pair_logps.npz."""
    with np.load(logps) as saved:
        margin = beta * ((saved["dpo_chosen"] - saved["sft_chosen"]) - (saved["dpo_rejected"] - saved["sft_rejected"])).astype(np.float64)
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    width = float(np.ptp(margin)) / 60 or 1.0
    edges = np.arange(np.floor(margin.min() / width), np.floor(margin.max() / width) + 2) * width  # zero is an edge: no bar holds both sides
    axis.hist(margin[margin > 0], edges, color=GREEN, label=f"ranked as labelled ({(margin > 0).sum():,})")
    axis.hist(margin[margin <= 0], edges, color=RED, label=f"the other way, or equal ({(margin <= 0).sum():,})")
    axis.axvline(0, color="black", linestyle=":", linewidth=0.9)
    axis.set(title="Implicit reward margin of held-out pairs", xlabel="beta x (log-ratio of chosen - log-ratio of rejected)", ylabel="pairs")
    axis.legend(fontsize=8)
    figure.savefig(picture, dpi=130)
    plt.close(figure)
