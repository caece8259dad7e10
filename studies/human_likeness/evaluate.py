"""How human-like each epoch's samples are: score them, check that the scores are theirs, draw the curves, test the differences.

    python -m studies.human_likeness.evaluate score out/NAME --weights weights.json --model JUDGE --base-url URL [--epochs 0 2 4] [--ratings 3]
    python -m studies.human_likeness.evaluate curves FOLDER --to RESULTS [--asked published] [--rescore weights.json | --published-weights FILE] [--dev-share .5]

The first writes NAME/scored/samples_epoch_NN_scored_JUDGE.csv, with how it was made beside it. The second reads every model below FOLDER, ours or in the public study's layout
(--asked published says which items its bare lists of ratings are about), and writes curves.json, curves.md and pictures.
"""
import argparse
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.sources import hash_share
from data.store import write_json
from eval import stats
from runtime.config import digest
from runtime.errors import UserError, check_folder, run_main
from studies.human_likeness.dialogue import VISIT, clean, problems, turns
from studies.human_likeness.folders import ModelFolder, Rated, read_study, sample_files
from studies.human_likeness.items import ASKED, OURS, Weights, human_likeness, load_items, load_weights, published_weights
from studies.human_likeness.judge import add_rating_arguments, rate, rating_client, rating_facts, scored_row
from studies.human_likeness.storage import command_line, read_table, write_table

FEWEST = 0.1  # share of prompts on either side of equal length below which nothing is said about equal length
Column = dict[int, Rated]  # the rated samples of one epoch, by row


# ---- score ----------------------------------------------------------------------------------------------------------------

def score(a: argparse.Namespace, command: str) -> None:
    """Judge the samples of every wanted epoch (see the top of this file). Samples without a patient's turn are counted and not judged."""
    everything = load_items(a.questionnaire)
    weights = load_weights(a.weights, everything, a.ids)
    asked = everything.only(weights.ids)
    files = sample_files(a.folder)
    if not files:
        raise UserError(f"{a.folder}/inference holds no samples_epoch_NN.csv: train with --dpo.samples_file.")
    if missing := [epoch for epoch in a.epochs if epoch not in files]:
        raise UserError(f"there are no samples of epoch {missing[0]}; there are {', '.join(map(str, files))}.")
    client = rating_client(a, a.folder / "scored" / "judge_cache")
    for epoch in a.epochs or files:
        rows = read_table(files[epoch], ("prompt", "response"))
        texts, cleaned = zip(*(clean(row["response"]) for row in rows))
        usable = [i for i, text in enumerate(texts) if any(turn.speaker == VISIT[0] for turn in turns(text))]
        rated, wrong = rate(client, asked, [texts[i] for i in usable], VISIT, a.ratings, a.seed)
        by_row, facts = dict(zip(usable, rated)), rating_facts(command, a, client, asked, weights, rated, wrong)
        made = [scored_row({"dialogue_id": str(i), "prompt": row["prompt"], "response": row["response"], "dialogue": text}, text, done, by_row[i], weights, asked, VISIT)
                | {"weights_hash": digest([weights.w, weights.b]), "valid_ratings_wanted": str(a.ratings), "judge": client.model, "seed": a.seed, "temperature": facts["temperature"]}
                for i, (row, text, done) in enumerate(zip(rows, texts, cleaned)) if i in by_row]
        made = [row for row in made if row["score"]]
        if not made:
            raise UserError(f"epoch {epoch}: no sample could be rated ({dict(wrong) or 'none has a turn of the patient'}).")
        to = a.folder / "scored" / f"samples_epoch_{epoch:02d}_scored_{file_name(client.model)}.csv"
        write_table(to, made)
        write_json(to.with_name(f"{to.stem}.facts.json"), facts | {"samples": len(rows)})
        swapped = sum(bool(problems(turns(text))) for text in texts)
        print(f"epoch {epoch}: {len(made)} of {len(rows)} samples scored, mean {np.mean([float(row['score']) for row in made]):.3f}; {swapped} with swapped roles or a missing speaker")
    print(json.dumps(client.totals()))


def file_name(judge: str) -> str:
    """A judge's name as part of a file's; names that would come out alike keep apart by a hash."""
    plain = re.sub(r"[^A-Za-z0-9.-]+", "-", judge)
    return plain if plain == judge else f"{plain}-{digest([judge])[:6]}"


# ---- curves -----------------------------------------------------------------------------------------------------------------

def rescored(column: Column, weights: Weights | None) -> dict[int, float]:
    """row -> score: the file's own, or by other weights over the ratings it holds. UserError when it lacks an item of theirs."""
    if weights is None:
        return {row: rated.score for row, rated in column.items()}
    short = next((i for rated in column.values() for i in weights.ids if i not in rated.answers), None)
    if short:
        raise UserError(f"--rescore: these ratings hold no answer to {short}.")
    return {row: human_likeness(weights, {i: rated.answers[i] for i in weights.ids}) for row, rated in column.items()}


def curve(epochs: dict[int, Column], weights: Weights | None, seed: int) -> list[dict]:
    """One dict per epoch: mean score with interval, words a turn, and against epoch 0 on the same prompts the difference, its p, and the difference
    at equal length (the intercept of score difference on the difference of log words a turn)."""
    scores = {epoch: rescored(column, weights) for epoch, column in epochs.items()}
    found = []
    for epoch, column in sorted(epochs.items()):
        own = scores[epoch]
        row = {"epoch": epoch, "score": stats.mean(list(own.values()), seed=seed).to_dict(), "words_per_turn": float(np.mean([r.words_per_turn for r in column.values()])),
               "cv": float(np.mean([r.cv for r in column.values()])), "role_problems": sum(bool(r.problems) for r in column.values()), "unclosed": sum(r.unclosed for r in column.values()), "n": len(own)}
        both = same_prompts(epochs, epoch)
        if epoch and both:
            base, now = ([s[i] for i in both] for s in (scores[0], own))
            longer = np.array([np.log1p(column[i].words_per_turn) - np.log1p(epochs[0][i].words_per_turn) for i in both])
            row |= {"difference": stats.mean_difference(base, now, seed=seed).to_dict(), "p": stats.sign_flip_test(base, now, seed=seed),
                    "as_long": float((longer >= 0).mean()), "at_equal_length": without_nan(at_equal_length(np.array(now) - np.array(base), longer, seed))}
        found.append(row)
    for row, p in zip([r for r in found if "p" in r], stats.holm([r["p"] for r in found if "p" in r])):
        row["p_holm"] = p
    return found


def same_prompts(epochs: dict[int, Column], epoch: int) -> list[int]:
    """The rows that this epoch and epoch 0 both have, of the same prompt."""
    base = epochs.get(0, {})
    return sorted(i for i, rated in epochs[epoch].items() if i in base and rated.prompt == base[i].prompt)


def without_nan(found: stats.Interval) -> dict:
    """As plain values, for JSON, which knows no NaN: null where nothing was estimated."""
    return found.to_dict() | ({"value": None} if math.isnan(found.value) else {})


def at_equal_length(difference: np.ndarray, longer: np.ndarray, seed: int) -> stats.Interval:
    """The mean score difference [n] that is left where turns are as long as before: least squares on `longer` [n], bootstrap over prompts.

    Observational: prompts where the turns happened to stay as long may differ from the others in more than that. Not estimated (NaN) where fewer
    than FEWEST of the prompts lie on either side of equal length: a line would be drawn out beyond the data.
    """
    if not FEWEST <= (longer >= 0).mean() <= 1 - FEWEST or longer.std() == 0:
        return stats.Interval(float("nan"), None, None, len(longer), "too few prompts of equal length")

    def intercept(m: np.ndarray) -> np.ndarray:  # columns: x, y, x squared, xy
        slope = (m[:, 3] - m[:, 0] * m[:, 1]) / np.maximum(m[:, 2] - m[:, 0] ** 2, 1e-12)
        return m[:, 1] - slope * m[:, 0]
    found = stats.bootstrap([longer, difference, longer**2, longer * difference], intercept, seed=seed)
    return stats.no_false_certainty(found, "no two prompts differ")


def chosen_epoch(epochs: dict[int, Column], weights: Weights | None, dev_share: float, seed: int) -> dict | None:
    """The epoch with the highest mean on the dev prompts, and its difference to epoch 0 on the others, which had no part in the choice.

    Prompts are dealt by a hash of their row. None without epoch 0, or when one side of the split is too small.
    """
    scores = {epoch: rescored(column, weights) for epoch, column in epochs.items()}
    if 0 not in scores or len(scores) < 2:
        return None
    dev = {row for row in scores[0] if hash_share(row, seed) < dev_share}
    means = {epoch: np.mean([s[i] for i in s if i in dev]) for epoch, s in scores.items() if any(i in dev for i in s)}
    best = max((epoch for epoch in means if epoch), key=lambda epoch: means[epoch], default=None)
    rest = [] if best is None else [i for i in same_prompts(epochs, best) if i not in dev]
    if len(rest) < 2:
        return None
    base, now = ([s[i] for i in rest] for s in (scores[0], scores[best]))
    return {"epoch": best, "dev_prompts": len(dev), "test_prompts": len(rest), "difference": stats.mean_difference(base, now, seed=seed).to_dict(),
            "p": stats.sign_flip_test(base, now, seed=seed), "items": item_differences(epochs[0], epochs[best], rest, weights, seed)}


def item_differences(base: Column, now: Column, rows: Sequence[int], weights: Weights | None, seed: int) -> dict[str, dict]:
    """item -> mean change of its rating on the given rows, with interval, and what that adds to the score where the weights are known."""
    found = {}
    for item in sorted(set(base[rows[0]].answers) & set(now[rows[0]].answers)):
        change = stats.mean_difference([base[i].answers[item] for i in rows], [now[i].answers[item] for i in rows], seed=seed)
        found[item] = change.to_dict() | ({"adds": weights.w[item] * change.value} if weights and item in weights.w else {})
    return found


def study(models: Sequence[ModelFolder], weights: Weights | None, dev_share: float, seed: int) -> dict:
    """Everything about all models; p of the chosen epochs is corrected over models and judges (Holm)."""
    found = {"models": {}, "warnings": {m.name: m.warnings for m in models if m.warnings}, "seed": seed, "dev_share": dev_share, "score": weights.note if weights else "as in the files"}
    for model in models:
        for judge, by_epoch in model.rated.items():
            epochs = {epoch: {rated.row: rated for rated in rows} for epoch, rows in by_epoch.items()}
            found["models"][f"{model.name}, {judge}"] = {"curve": curve(epochs, weights, seed), "chosen": chosen_epoch(epochs, weights, dev_share, seed)}
    chosen = [m["chosen"] for m in found["models"].values() if m["chosen"]]
    for row, p in zip(chosen, stats.holm([row["p"] for row in chosen])):
        row["p_holm"] = p
    return found


def cell(interval: dict | None) -> str:
    """A value with its interval."""
    if interval is None or interval["value"] is None:
        return "–"
    ends = "" if interval["low"] is None else f" [{interval['low']:+.2f}, {interval['high']:+.2f}]"
    return f"{interval['value']:+.2f}{ends}"


def page(found: dict) -> str:
    """The figures as Markdown."""
    lines = ["# Human-likeness by epoch", "", f"Generated by `{found['command']}`: do not edit.", "", f"Score: {found['score']} (log-odds, higher = more human). Differences to epoch 0 on the same prompts, two-sided sign-flip tests, Holm over a "
             "model's epochs. \"As long\" is the share of prompts whose turns are as long as before, or longer; \"at equal length\" what is left of the "
             f"difference there, by a straight line: a dash where fewer than {FEWEST:.0%} of the prompts lie on either side. \"Unclosed\" dialogues ran into the longest length. "
             "Prompts count as independent, also those of personas with one parent: where there are several of a parent, intervals may be somewhat too narrow.", ""]
    for name, model in found["models"].items():
        lines += [f"## {name}", "", "| epoch | n | score | difference | p (Holm) | as long | at equal length | words a turn | roles swapped | unclosed |", "|---" * 10 + "|"]
        lines += [f"| {r['epoch']} | {r['n']} | {cell(r['score'])} | {cell(r.get('difference'))} | {format(r['p_holm'], '.2g') if 'p_holm' in r else '–'} | {format(r['as_long'], '.0%') if 'as_long' in r else '–'} "
                  f"| {cell(r.get('at_equal_length'))} | {r['words_per_turn']:.1f} | {r['role_problems']} | {r['unclosed']} |" for r in model["curve"]]
        if best := model["chosen"]:
            lines += ["", f"Epoch {best['epoch']}, chosen on {best['dev_prompts']} prompts; on the {best['test_prompts']} others {cell(best['difference'])}, p {best['p_holm']:.2g} (Holm over models and judges)."]
        lines.append("")
    if found["warnings"]:
        lines += ["## Warnings", "", *(f"- {name}: {warning}" for name, some in found["warnings"].items() for warning in some), ""]
    return "\n".join(lines)


def draw(found: dict, folder: Path) -> None:
    """curves.png, every model's mean by epoch; items_<n>.png, the change of each item's rating at the chosen epoch."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axis = pyplot.subplots(figsize=(7, 4.2))
    for name, model in found["models"].items():
        rows = [r for r in model["curve"] if r["score"]["low"] is not None]
        line = axis.plot([r["epoch"] for r in rows], [r["score"]["value"] for r in rows], marker="o", markersize=3, label=name)[0]
        axis.fill_between([r["epoch"] for r in rows], [r["score"]["low"] for r in rows], [r["score"]["high"] for r in rows], color=line.get_color(), alpha=0.15)
    axis.set(xlabel="epoch", ylabel="human-likeness (log-odds)")
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(folder / "curves.png", dpi=130)
    pyplot.close(figure)
    for number, (name, model) in enumerate((n, m) for n, m in found["models"].items() if m["chosen"]):
        items = sorted(model["chosen"]["items"].items(), key=lambda pair: pair[1]["value"])
        figure, axis = pyplot.subplots(figsize=(6, 0.26 * len(items) + 1.2))
        for at, (_, change) in enumerate(items):
            if change["low"] is not None:
                axis.plot([change["low"], change["high"]], [at, at], color="tab:blue", linewidth=1.5)
            axis.plot(change["value"], at, "o", color="tab:blue", markersize=4)
        axis.axvline(0, color="grey", linewidth=1)
        axis.set(yticks=range(len(items)), yticklabels=[item for item, _ in items], xlabel=f"change of the rating, epoch 0 to {model['chosen']['epoch']}", title=name)
        figure.tight_layout()
        figure.savefig(folder / f"items_{number}.png", dpi=130)
        pyplot.close(figure)


def curves(a: argparse.Namespace, command: str) -> None:
    """Read, verify and compare (see the top of this file)."""
    if not 0 < a.dev_share < 1:
        raise UserError("--dev-share must lie between 0 and 1: the epoch is chosen on one part of the prompts and reported on the other.")
    check_folder("--to", a.to)
    questionnaire = load_items(a.questionnaire)
    ids = questionnaire.numbered(ASKED) if a.asked == ["published"] else tuple(a.asked)
    weights = published_weights(a.published_weights, questionnaire, "as published") if a.published_weights else load_weights(a.rescore, questionnaire, a.ids) if a.rescore else None
    if weights and not weights.note:
        weights = replace(weights, note=f"the weights in {a.rescore.name}")
    models = read_study(a.folder, ids)
    for model in models:
        for rated in (r for by_epoch in model.rated.values() for rows in by_epoch.values() for r in rows[:1]):
            if rated.made_by[1] and rated.made_by[1] not in (questionnaire.checksum, questionnaire.only(rated.answers).checksum):
                raise UserError(f"{model.name} was rated with another questionnaire (checksum {rated.made_by[1]}): name that one with --questionnaire.")
    for model in models:
        for warning in model.warnings:
            print(f"warning: {model.name}: {warning}")
    if not any(model.rated for model in models):
        raise UserError(f"{a.folder}: no scored file belongs to its samples; nothing to compare.")
    found = study(models, weights, a.dev_share, a.seed) | {"command": command}
    a.to.mkdir(parents=True, exist_ok=True)
    write_json(a.to / "curves.json", found)
    (a.to / "curves.md").write_text(page(found), encoding="utf-8")
    draw(found, a.to)
    print(page(found))


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = a.add_subparsers(dest="part", required=True)
    s, c = parts.add_parser("score"), parts.add_parser("curves")
    for p in (s, c):
        p.add_argument("folder", type=Path)
        p.add_argument("--ids", nargs="*", default=(), help="the item ids of a bare list of weights, in its order")
        p.add_argument("--questionnaire", type=Path, default=OURS, help="the items; otherwise ours")
        p.add_argument("--seed", type=int, default=0)
    s.add_argument("--weights", type=Path, required=True)
    s.add_argument("--epochs", type=int, nargs="*", default=[], help="all when left out")
    add_rating_arguments(s)
    c.add_argument("--to", type=Path, required=True)
    c.add_argument("--asked", nargs="*", default=[], help="item ids of bare lists of ratings, in their order; `published` for the public study's files")
    instead = c.add_mutually_exclusive_group()
    instead.add_argument("--rescore", type=Path, help="weights to use instead of the scores in the files")
    instead.add_argument("--published-weights", type=Path, help="score with the study's bare list of weights as it was used, on questions that 14 of the 16 were not fitted on; "
                         "joined as fitted it cannot score these ratings, which hold no answer to seven of its items")
    c.add_argument("--dev-share", type=float, default=0.5, help="share of the prompts on which the epoch is chosen")
    a = a.parse_args(argv)
    {"score": score, "curves": curves}[a.part](a, command_line("evaluate", argv))


if __name__ == "__main__":
    run_main(main)
