"""Several finished evaluations side by side, every one against the first.

    python -m eval.compare out/toy out/other ... [--system dpo] [--to FOLDER]

A run is an experiment's folder or its eval folder. Runs that answered the same prompts are compared prompt by prompt with the
tests of the report; others are shown beside each other without a test, and it is said why. --to writes compare.md and
compare.html.
"""
import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from eval import stats
from eval.render import Block, to_html, to_markdown
from eval.tables import Metric, compare, p_value, text_table, with_interval
from runtime.errors import UserError, run_main


def load(run: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """(results_summary.json, {"system/metric": [n]}; empty when the folder holds no values.npz)."""
    folder = run / "eval" if (run / "eval" / "results_summary.json").exists() else run
    try:
        summary = json.loads((folder / "results_summary.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{run} holds no evaluation: run `python -m eval.run CONFIG` first.") from None
    except ValueError:
        raise UserError(f"{folder / 'results_summary.json'} is damaged: run `python -m eval.run CONFIG` again.") from None
    if not (folder / "values.npz").exists():
        return summary, {}
    with np.load(folder / "values.npz") as saved:
        return summary, dict(saved)


def names(runs: Sequence[Path], summaries: Sequence[Mapping]) -> list[str]:
    """What to call the runs: their experiment's names, or their folders where two are called the same."""
    own = [summary["name"] for summary in summaries]
    return own if len(set(own)) == len(own) else [run.as_posix() for run in runs]


def level_table(summaries: Sequence[Mapping], columns: Sequence[str], system: str) -> tuple[list[str], list[list[str]]]:
    """Every metric of one system: a row per metric that any run has, a column per run."""
    # the label is part of the name: it says in how many samples, or at which common budget of words
    metrics = {(row["key"], row["label"]): row for summary in summaries for row in summary["metrics"]}
    found = [{(row["key"], row["label"]): row["values"].get(system) for row in summary["metrics"]} for summary in summaries]
    return ["", *columns], [[row["label"], *(with_interval(cells.get(name), row["form"]) for cells in found)] for name, row in metrics.items()]


def difference_table(first: tuple, other: tuple, system: str) -> tuple[list[str], list[list[str]]]:
    """Paired differences other - first over the metrics both have by key *and* label, Holm-corrected over the table."""
    (summary, a), (theirs, b) = first, other
    e, rows, same = summary["config"]["eval"], [], {(row["key"], row["label"]) for row in theirs["metrics"]}
    if summary["facts"]["prompts"].get("provoking_hash") != theirs["facts"]["prompts"].get("provoking_hash"):
        same = {(key, label) for key, label in same if not key.startswith("provoked")}
    for row in summary["metrics"]:
        key = f"{system}/{row['key']}"
        if (row["key"], row["label"]) in same and row["form"] in ("share", "mean") and key in a and key in b and a[key].shape == b[key].shape:
            test = compare(a[key], b[key], Metric(row["key"], row["label"], row["form"], row["better"]), e["bootstrap"], e["seed"])
            if test:
                rows.append((row, test))
    corrected = stats.holm([test["p"] for _, test in rows])
    return ["", "difference", "p", "p (Holm)", "n"], [
        [row["label"], with_interval(test["difference"], row["form"], signed=True), p_value(test["p"]), p_value(p), f"{test['difference']['n']:,}"]
        for (row, test), p in zip(rows, corrected)]


def blocks_of(runs: Sequence[Path], system: str) -> list[Block]:
    """The comparison as report blocks."""
    loaded = [load(run) for run in runs]
    summaries = [summary for summary, _ in loaded]
    if any(system not in summary["systems"] for summary in summaries):
        raise UserError(f"--system={system}: every run must have it; known: {', '.join(summaries[0]['systems'])}.")
    called = names(runs, summaries)
    blocks: list[Block] = [("title", f"{len(runs)} runs, system {system}"), ("table", *level_table(summaries, called, system))]
    against_sft = [next((row for row in summary["win_rates"] if (row["prompts"], row["first"], row["second"]) == ("all prompts", "SFT", "DPO")), None) for summary in summaries]
    wins = [[name, "not measured" if row is None else with_interval(row["rate"], "share") if row["rate"] else "nothing decided"] for name, row in zip(called, against_sft)]
    blocks += [("heading", "Each run's DPO against its own SFT, by the oracle"), ("table", ["run", "win rate of decided"], wins)]
    for name, other in zip(called[1:], loaded[1:]):
        blocks.append(("heading", f"{name} minus {called[0]}"))
        same = summaries[0]["facts"]["prompts"].get("hash") == other[0]["facts"]["prompts"].get("hash") is not None
        if not loaded[0][1] or not other[1]:
            blocks.append(("text", "Not tested: a values.npz is missing (only the figures of this run were kept)."))
        elif not same:
            blocks.append(("text", "Not tested: the two runs answered different prompts."))
        else:
            blocks.append(("table", *difference_table(loaded[0], other, system)))
    return blocks


def main(argv: list[str]) -> None:
    """Compare runs (see the top of this file)."""
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("runs", type=Path, nargs="+")
    a.add_argument("--system", default="dpo", help="sft, dpo, sft_greedy, ... [dpo]")
    a.add_argument("--to", type=Path, help="folder for compare.md and compare.html")
    a = a.parse_args(argv)
    if len(a.runs) < 2:
        raise UserError("give at least two runs to compare.")
    blocks = blocks_of(a.runs, a.system)
    for kind, *content in blocks:
        print(text_table(*content) if kind == "table" else f"\n{content[0]}")
    if a.to:
        a.to.mkdir(parents=True, exist_ok=True)
        (a.to / "compare.md").write_text(to_markdown(blocks), encoding="utf-8")
        (a.to / "compare.html").write_text(to_html(blocks, a.to), encoding="utf-8")
        print(f"\n{a.to / 'compare.html'}")


if __name__ == "__main__":
    run_main(main)
