"""The page and the picture of `studies/human_likeness/votes.py`, made from its figures alone."""
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from eval.plots import BLUE, GREY, ORANGE, RED, pyplot
from eval.tables import p_value, text_table


NAMES = {"user": "rater", "persona": "persona", "session": "session"}


def cell(found: Mapping | str | None, digits: int = 3) -> str:
    """"0.618 [0.567, 0.667]", [?, ?] where the interval cannot be estimated, or why nothing was measured."""
    if found is None or isinstance(found, str) or found.get("value") is None:
        return found if isinstance(found, str) else "not measured" if found is None else found.get("method") or found["reason"]
    ends = [f"{end:.{digits}f}" if end is not None else "?" for end in (found["low"], found["high"])]
    return f"{found['value']:.{digits}f} [{', '.join(ends)}]"


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """The lines of a markdown table and an empty one."""
    lines = [list(header), ["---"] * len(header), *([str(value).replace("|", "\\|") for value in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def _rankings(f: Mapping) -> list[str]:
    main, elo = f["settings"]["clusters"], f["settings"]["elo"]
    plain, tied, nu = f["bradley_terry"][0]["strengths"], f["davidson"]["strengths"], f["davidson"]["nu"]
    lines = ["## Win rates", "", "Mean score of a model over its votes. Soft: certain 1 or 0, likely .75 or .25, a tie .5; hard: 1, .5 or 0. "
             "Votes that share a persona, or a rater, are not independent: whole clusters are resampled, and each choice of cluster has its column.", ""]
    lines += markdown(["model", "votes", *(f"soft, over {name}s" for name in NAMES.values()), f"hard, over {NAMES[main]}s", "stood left"],
                      [[r["model"], r["votes"], *(cell(r["soft"][kind]) for kind in NAMES), cell(r["hard"][main]), cell(r["stood left"])]
                       for r in f["win_rates"]])
    lines += ["## Ratings", "", f"Elo: start {elo['start']:.0f}, K {elo['k']:.0f}, soft scores, the mean over {elo['orders']} random orders of the votes. "
              "The spread over orders says how much an accident of Elo, the order, matters; it does not shrink with more votes and says nothing about other "
              f"raters or personas. The interval does: it resamples {NAMES[main]}s ({elo['resamples']} times, each the mean of {elo['orders_per_resample']} "
              f"orders). Bradley-Terry has no order; its strengths are put on the same scale, with their mean at {elo['start']:.0f}. Davidson's model "
              "gives ties a parameter of their own.", ""]
    lines += markdown(["model", "Elo [95 %]", "sd over orders", "sd over resamples", "middle 95 % of orders", "Bradley-Terry, tie = half a win", "Davidson"],
                      [[r["model"], cell(r["mean"], 0), f"{r['order_sd']:.1f}", f"{r['bootstrap_sd']:.1f}", "{:.0f} to {:.0f}".format(*r["order_range"]),
                        cell(plain[r["model"]], 0), cell(tied[r["model"]], 0)] for r in f["elo"]])
    equal = f": two equal models would be called a tie in {100 * nu['value'] / (2 + nu['value']):.1f} % of votes" if nu["value"] is not None else ""
    return lines + [f"Tie parameter nu {cell(nu)}{equal}.", "", "![Win rates and ratings](votes.png)", ""]


def _pairs(f: Mapping) -> list[str]:
    main, names = NAMES[f["settings"]["clusters"]], ("sign", "signed_rank", "cluster_flip")
    called = {id(r): "{} over {}".format(*r["pair"]) for r in f["pairs"]}
    lines = ["## Pairs of models", "", "Two-sided p on the five levels, Holm-corrected over the pairs, separately for each test: sign test (who won, exact), "
             f"Wilcoxon's signed ranks (how surely too), and flips of the sign of whole {main}s. The first two take votes for independent, which votes of one "
             f"rater are not; the third allows for what a {main} has in common.", ""]
    lines += markdown(["pair", "votes", "won, lost, tied", "hard win rate", "sign", "signed ranks", f"{main} flips", "win rate at equal words",
                       "at equal turns", "words more", "turns more"],
                      [[called[id(r)], r["votes"], f"{r['wins']}, {r['losses']}, {r['ties']}", cell(r["win_rate"]),
                        *(p_value(r["p"][f"{name}_holm"]) for name in names), cell(r["at_equal"]["words"]), cell(r["at_equal"]["turns"]),
                        *("?" if r["longer"][n] is None else f"{r['longer'][n]:+.1f}" for n in ("words", "turns"))] for r in f["pairs"]])
    below = {n: [called[id(r)] for r in f["pairs"] if sum(r["p"][f"{name}_holm"] < 0.05 for name in names) == n] for n in (3, 2, 1, 0)}
    said = "; ".join(f"{('none', 'one', 'two', 'all three')[n]} for {' and '.join(pairs)}" for n, pairs in below.items() if pairs)
    lines += [f"Tests below .05: {said}. A pair on which they differ is not settled by these votes.", "",
              "The last two columns are the mean difference, within a session, of the patients' words and turns. Models differ in length by design (a short "
              "answer is part of sounding human), so a win rate at equal length asks another question, not a better one; and where every dialogue of a model "
              "is shorter, it extrapolates.", "",
              "## Votes needed", "", "Independent votes, ties included, with which the exact sign test at 5 % would see the share found here with 80 % power. "
              "A share that was found because it was large makes this number too small. For reference, decided votes for a given share: "
              + ", ".join(f"{share}: {n}" for share, n in f["needed_for"].items()) + ".", ""]
    return lines + markdown(["pair", "votes here", "votes needed"], [[called[id(r)], r["votes"], r["needed"]["votes"] or r["needed"]["reason"]] for r in f["pairs"]])


def _confounds(f: Mapping) -> list[str]:
    p, a, models = f["position"], f["agreement"], [row["model"] for row in f["win_rates"]]
    lines = ["## Side and length", "", f"The left side won {p['left']}, lost {p['right']}, tied {p['ties']} (sign test p = {p_value(p['p'])}); its soft score "
             f"is {cell(p['left_soft'])}, its hard score {cell(p['left_hard'])}.", "",
             "Bradley-Terry with further terms: an advantage of the left side, and of the longer dialogue (log-odds per standard deviation of the difference in "
             "the patient's words and turns). An interval across 0 means: not seen here.", ""]
    lines += markdown(["terms", "votes", *models, "side", "words", "turns"],
                      [[" + ".join(["models", *r["terms"]]), r["votes"], *(cell(r["strengths"][m], 0) for m in models),
                        *(cell(r["coefficients"][n], 2) if n in r["coefficients"] else "" for n in ("side", "words", "turns"))] for r in f["bradley_terry"]])
    return lines + ["## Do raters agree?", "", f"Of {a['items']} combinations of a persona and a pair of models, {a['judged_more_than_once']} were judged more than "
                    f"once ({a['votes_on_them']} votes). Krippendorff's alpha on them, ordinal: {cell(a['alpha']) if a['alpha'] else a['reason']}. Every rater led "
                    "a conversation of their own, so this is agreement on models as a persona, not on the same text, and where ids are masked one rater may "
                    "have judged an item twice.", ""]


def page(f: Mapping) -> str:
    """The markdown page of all figures."""
    c, s = f["counts"], f["settings"]
    lines = ["# Which model do people find more human-like?", "", f"Generated by `{f['command']}`: do not edit.", "",
             f"File: sha256 {f['sha256'][:16]}, {c['rows']} rows: {c['used']} completed and rated sessions used, {c['unrated']} unrated, {c['incomplete']} "
             f"incomplete ({c['rated but incomplete']} of these rated), {len(f['not_used'])} that cannot be used. Clusters: "
             + ", ".join(f"{n} {NAMES[kind]}s" for kind, n in f["clusters"].items()) + f". Intervals: 95 %, bootstrap over {NAMES[s['clusters']]}s unless a column "
             f"says otherwise, {s['resamples']:,} resamples, seed {s['seed']}. Minutes per session: {cell(f['minutes'], 1)}.", ""]
    lines += [f"- Warning: {warning}" for warning in f["warnings"]] + [""] * bool(f["warnings"])
    lines += _rankings(f) + _pairs(f) + _confounds(f)
    if f["published"]:
        lines += ["## Beside the published figures", ""]
        lines += markdown(["figure", "published", "here", "verdict"], [[r[k] for k in ("figure", "published", "ours", "verdict")] for r in f["published"]])
        lines += ["The digits of the published Elo cannot be reproduced by anybody: the rows were first shuffled without a seed. Its sd is order noise alone.", ""]
    return "\n".join(lines).rstrip() + "\n"


def summary(f: Mapping) -> str:
    """A table for the terminal."""
    main, strengths = f["settings"]["clusters"], f["bradley_terry"][0]["strengths"]
    return text_table(["model", "votes", "soft win rate", "Elo", "Bradley-Terry"],
                      [[r["model"], str(r["votes"]), cell(r["soft"][main]), cell(e["mean"], 0), cell(strengths[r["model"]], 0)]
                       for r, e in zip(f["win_rates"], f["elo"])])


def draw(f: Mapping, picture: Path) -> None:
    """Left: win rates. Right: ratings with their intervals, and the spread of Elo over orders, which is no interval."""
    plt = pyplot()
    models, main = [row["model"] for row in f["win_rates"]], f["settings"]["clusters"]
    place = np.arange(len(models))[::-1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 1.6 + 0.75 * len(models)), layout="constrained")

    def bars(axis, values: Sequence[Mapping], shift: float, colour: str, label: str) -> None:
        for y, found in zip(place + shift, values):
            if found["value"] is not None:
                axis.plot([found["value"]], [y], "o", color=colour, label=label, markersize=5)
                if found["low"] is not None and found["high"] is not None:
                    axis.plot([found["low"], found["high"]], [y, y], color=colour, linewidth=2)
            label = "_"  # one entry in the legend

    bars(left, [row["soft"][main] for row in f["win_rates"]], 0.12, BLUE, "soft")
    bars(left, [row["hard"][main] for row in f["win_rates"]], -0.12, ORANGE, "hard")
    left.axvline(0.5, color="black", linestyle=":", linewidth=0.8)
    left.set(title=f"Win rate, 95 % over {NAMES[main]}s", xlabel="mean score against the others")
    for y, row in zip(place, f["elo"]):
        right.plot(row["order_range"], [y + 0.27] * 2, color=GREY, linewidth=5, alpha=0.4, solid_capstyle="butt",
                   label="Elo, middle 95 % of orders (no interval)" if y == place[0] else "_")
    bars(right, [row["mean"] for row in f["elo"]], 0.09, BLUE, f"Elo, 95 % over {NAMES[main]}s")
    bars(right, [f["bradley_terry"][0]["strengths"][model] for model in models], -0.09, ORANGE, "Bradley-Terry")
    bars(right, [f["davidson"]["strengths"][model] for model in models], -0.27, RED, "Davidson, with ties")
    right.axvline(f["settings"]["elo"]["start"], color="black", linestyle=":", linewidth=0.8)
    right.set(title="Ratings", xlabel="Elo points")
    for axis in (left, right):
        axis.set_yticks(place, models)
        axis.set_ylim(-0.6, len(models) - 0.4)
        axis.grid(axis="y", visible=False)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=8)
    figure.savefig(picture, dpi=130)
    plt.close(figure)
