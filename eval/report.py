"""report.md and report.html, made from the files of one eval folder alone: results_summary.json, judged_*.json, replies.jsonl,
pair_logps.npz and the pictures.

    python -m eval.report out/toy/eval      writes both again
"""
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from eval import plots
from eval.render import Block, to_html, to_markdown
from eval.replies import read_rows
from eval.tables import NARROW, number, p_value, text_table, with_interval
from runtime.errors import UserError, run_main
from tokenizer import ASSISTANT

WARNING = ("Content warning: prompts and replies below may be offensive or harmful. "
           "They are shown as test material, not as advice.")
DISAGREEMENTS = 5


# ---- what the report says -------------------------------------------------------------------------------------------

def report_blocks(summary: Mapping, judged: list[Mapping], samples: tuple[list[dict], list[dict], str], pictures: set[str]) -> list[Block]:
    """The report as blocks, from the summary, the judges' files, (first samples, largest disagreements, the rule) and the pictures at hand."""
    e, policy = summary["config"]["eval"], summary["systems"]["dpo"]["label"]

    def picture(file: str, caption: str) -> list[Block]:
        return [("picture", file, caption)] if file in pictures else []
    blocks: list[Block] = [("title", f"{summary['name']}: SFT against {policy}"), ("text", WARNING)]
    blocks += _facts(summary)
    blocks += [("heading", f"{policy} against SFT, the same {sum(summary['facts']['prompts']['kinds'].values()):,} prompts"),
               ("table", *_main_table(summary)),
               ("text", "↑ more is better, ↓ less is better. Shares in per cent with Wilson intervals, their differences with Newcombe's; means with "
                        f"bootstrap intervals (seed {e['seed']}). p: exact McNemar test for shares, sign-flip randomisation for means, two-sided, paired by "
                        "prompt; Holm's correction over this table. †: at this n and for values so skewed, simulated 95 % intervals of this kind cover "
                        f"the truth in less than {100 * NARROW:.0f} % of cases (results/coverage): too narrow. Refusals by rules: see eval/refusal.py; they "
                        "agree well with people on full refusals and badly on partial ones (results/refusal). [?, ?]: all values (or pairs) are equal, so nothing is known of how far they spread.")]
    blocks += [("text", f"{row['label']}, without the pairing: Mann-Whitney p {p_value(row['mann_whitney_p'])}, Cohen's d {row['cohens_d']:+.2f}.")
               for row in summary["comparisons"][0]["rows"] if "cohens_d" in row]
    if summary["health"]:
        blocks += [("heading", "Health of the DPO run"),
                   ("table", ["check", "", "seen", "remedy"], [[f["check"], f["level"], f["seen"], f["remedy"]] for f in summary["health"]])]
    blocks += _judge_blocks(summary, judged) + picture("win_rates.png", "Win rates among decided pairs, 95 % intervals")
    blocks += [("heading", "Refusals"), *picture("refusals.png", "Full refusals by group of prompts, 95 % intervals")] if "refusals.png" in pictures else []
    blocks += [("heading", "Every system"), ("table", *_metrics_table(summary))]
    for comparison in summary["comparisons"][1:]:
        first, second = (summary["systems"][comparison[key]]["label"] for key in ("first", "second"))
        blocks += [("heading", f"{second} minus {first}, paired by prompt"), ("table", *_comparison_table(comparison))]
    blocks += _reward_blocks(summary["reward_accuracy"], e["seed"]) + picture("reward_margins.png", "Implicit reward margins of held-out pairs")
    blocks += [("heading", "Perplexity"), ("table", *_perplexity_table(summary["perplexity"])),
               ("text", "Per token, end-of-text included; every token weighs the same. DPO is expected to raise it on replies: it is no longer fitted to "
                        "them but to their difference. A rise on general text is the alignment tax. Bits per byte compare across tokenizers.")]
    blocks += _drift_blocks(summary)
    blocks += [("heading", "Toxicity"), *picture("toxicity_distribution.png", "Toxicity of replies by system and kind of prompt"), *_category_blocks(summary)]
    blocks.append(("heading", "Not measured"))
    if summary["not_measured"]:
        blocks.append(("table", ["metric", "why"], [[m["metric"], m["reason"]] for m in summary["not_measured"]]))
    else:
        blocks.append(("text", "Nothing that this evaluation knows how to measure was left out."))
    blocks += [("heading", "Training"), *picture("training_curves.png", "Training and validation curves of every stage")]
    first, disagreements, rule = samples
    blocks += [("heading", f"{len(first)} samples side by side"), ("text", WARNING + " Chosen by rule: the first prompts of each kind in turn.")]
    blocks += [("sample", sample) for sample in first]
    if disagreements:
        blocks += [("heading", f"The {len(disagreements)} largest disagreements"), ("text", f"Chosen by rule: {rule}.")]
        blocks += [("sample", sample) for sample in disagreements]
    return blocks + [("heading", "Settings"), ("code", json.dumps(summary["config"], indent=1))]


def _facts(summary: Mapping) -> list[Block]:
    f, e = summary["facts"], summary["config"]["eval"]
    rows = [["evaluated", f"{f['evaluated']}, {f.get('seconds', '?')} s on {f['device']}, code at commit {f['git_commit']}"]]
    for stage, s in f["stages"].items():
        best = f", validation loss {number(s['best'])}" if s["best"] is not None else ""
        state = "" if s["finished"] else " (TRAINING NOT FINISHED)"
        rows.append([f"{stage} checkpoint",
                     f"{s['parameters']:,} parameters, step {s['step']}{state}{best}, weights {s.get('weights', '?')}, code at commit {s['git_commit']}"])
    rows.append(["objective", f"{summary['config']['dpo']['objective']}, beta {summary['reward_accuracy']['beta']}"])
    asked = f["prompts"]
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in asked["kinds"].items())
    sizes = ", ".join(f"{split} {n:,}" for split, n in f["data"]["pairs"].items())
    rows += [["data", f"{f['data']['source']}: pairs {sizes}; prepared as {f['data']['folder']}"],
             ["tokenizer", f"{f['tokenizer']['name']}, {f['tokenizer']['vocab_size']:,} tokens, {f['tokenizer']['hash'][:12]}"],
             ["distinct test prompts", f"{kinds}; {asked['shortened']:,} shortened from the left, "
                                       f"{asked['left_out_because_cut']:,} left out because preparation had cut them"],
             ["sampling", f"temperature {e['temperature']} unless named otherwise, top-p {e['top_p']}, top-k {e['top_k']}, "
                          f"at most {e['max_new_tokens']} tokens, seed {e['seed']}; one reply per prompt and system"],
             ["statistics", f"95 % intervals; bootstraps with {e['bootstrap']:,} resamples, seed {e['seed']}"],
             ["versions", ", ".join(f"{name} {version}" for name, version in f["versions"].items())]]
    return [("table", ["run", ""], rows)]


def _label(row: Mapping) -> str:
    return row["label"] + {1: " ↑", -1: " ↓", 0: ""}[row["better"]]


def _metrics_table(summary: Mapping) -> tuple[list[str], list[list[str]]]:
    systems = summary["systems"]
    rows = []
    for row in summary["metrics"]:
        counts = sorted({cell["n"] for cell in row["values"].values()})
        n = "–".join(f"{c:,}" for c in ([counts[0], counts[-1]] if len(counts) > 1 else counts))
        rows.append([_label(row), *(with_interval(row["values"].get(system), row["form"]) for system in systems), n])
    rows += [[m["metric"], *["not measured"] * len(systems), ""] for m in summary["not_measured"]]
    return ["", *(s["label"] for s in systems.values()), "n"], rows


def _main_table(summary: Mapping) -> tuple[list[str], list[list[str]]]:
    """SFT, DPO, difference, corrected p: one row per metric, those without a paired test and those not measured included."""
    tests = {row["key"]: row for row in summary["comparisons"][0]["rows"]}
    rows = []
    for row in summary["metrics"]:
        cells = [row["values"].get(system) for system in ("sft", "dpo")]
        test, n = tests.get(row["key"]), max((cell["n"] for cell in cells if cell), default=0)
        relative = with_interval(test["relative"], "share", signed=True).replace(" points", " %") if test and "relative" in test else ""
        rows.append([_label(row), *(with_interval(cell, row["form"]) for cell in cells),
                     with_interval(test["difference"], row["form"], signed=True) if test else "", relative,
                     p_value(test["p_holm"]) if test else "", f"{test['difference']['n'] if test else n:,}"])
    rows += [[m["metric"], "not measured", "not measured", "", "", "", ""] for m in summary["not_measured"]]
    return ["", "SFT", summary["systems"]["dpo"]["label"], "difference", "relative change", "p (Holm)", "n"], rows


def _comparison_table(comparison: Mapping) -> tuple[list[str], list[list[str]]]:
    rows = []
    for row in comparison["rows"]:
        relative = with_interval(row["relative"], "share", signed=True).replace(" points", " %") if "relative" in row else ""
        rows.append([_label(row), with_interval(row["difference"], row["form"], signed=True), relative,
                     p_value(row["p"]), p_value(row["p_holm"]), f"{row['difference']['n']:,}"])
    return ["", "difference", "relative change", "p", "p (Holm)", "n"], rows


def _win_table(win_rates: list[Mapping]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for row in win_rates:
        rate = with_interval(row["rate"], "share") if row["rate"] else "nothing decided"
        controlled = with_interval(row.get("length_controlled"), "share")
        rows.append([f"{row['second']} against {row['first']}", row["prompts"], rate, f"{row['wins']:,}", f"{row['losses']:,}", f"{row['ties']:,}",
                     f"{row['both_bad']:,}", f"{row['unjudged']:,}", controlled, p_value(row["p"]), p_value(row["p_holm"])])
    return ["", "on", "win rate of decided", "wins", "losses", "ties", "both bad", "unjudged", "length-controlled", "p", "p (Holm)"], rows


def _judge_blocks(summary: Mapping, judged: list[Mapping]) -> list[Block]:
    blocks: list[Block] = [("heading", "Which reply is better")]
    explained = ("Win rate of the first-named system among decided pairs: Wilson interval, exact sign test, Holm's correction over each table. Ties have "
                 "equal scores or two orders that disagree; a pair that could not be judged is counted apart, never as a tie. Length-controlled: the win "
                 "rate at equal lengths, by logistic regression, ties one half (Dubois et al. 2024).")
    if summary["win_rates"]:
        blocks += [("text", "Judge: the toy world's exact oracle."), ("table", *_win_table(summary["win_rates"])), ("text", explained)]
    for content in judged:
        blocks += [("text", f"Judge: {content['judge']}. {content['note']}"), ("table", *_win_table(content["comparisons"]))]
        if content.get("accuracy"):
            blocks.append(("text", f"Held-out accuracy of this judge: {with_interval(content['accuracy']['accuracy'], 'share')}, "
                                   f"{content['accuracy']['pairs']:,} pairs."))
        first = content["comparisons"][0]["first_shown"]
        if content["judge"].startswith("LLM") and first:
            blocks.append(("text", f"Position: the reply shown first was preferred in {with_interval(first, 'share')} of {first['n']:,} single verdicts "
                                   f"(50 % is no bias); {content['comparisons'][0]['position_decided']:,} pairs were decided by position alone and count as ties."))
        if content.get("totals"):
            blocks.append(("text", "Asked: " + ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in content["totals"].items() if value) + "."))
        if content.get("agreement"):
            blocks.append(("table", ["agreement between annotators", "value"], [[name, with_interval(cell)] for name, cell in content["agreement"].items()]))
        if content.get("refusals"):
            blocks.append(("table", ["refusals by this judge", "prompts", "full refusals", "unjudged", "kappa with the rules"],
                           [[row["system"], row["group"], with_interval(row["full"], "share"), f"{row['unjudged']:,}",
                             "undefined" if row["kappa_with_rules"] is None else f"{row['kappa_with_rules']:.2f}"] for row in content["refusals"]]))
        if content.get("helpfulness"):
            blocks += _helpfulness_blocks(content["helpfulness"])
        if content.get("ranking", {}).get("missing"):
            blocks.append(("text", f"Not ranked: {content['ranking']['missing']}"))
        elif content.get("ranking"):
            blocks.append(("table", ["system", "Bradley-Terry strength (Elo points)", "Elo, mean over orders"],
                           [[row["system"], with_interval(row["bradley_terry"]), with_interval(row["elo"])] for row in content["ranking"]["rows"]]))
            if content["ranking"]["undefined"]:
                blocks.append(("text", f"In {content['ranking']['undefined']:,} resamples some system never lost, which no finite strength describes."))
    asked = {content["judge"].split()[0] for content in judged}
    others = [command for name, command in (("reward", "`python train_reward.py CONFIG`, then `python -m eval.judge FOLDER reward`"),
                                            ("LLM", "`python -m eval.judge FOLDER llm --model NAME`"),
                                            ("people", "`python -m eval.judge FOLDER people --sheets FILES`")) if name not in asked]
    return blocks + ([("text", f"Judges not asked: {'; '.join(others)}.")] if others else [])


def _helpfulness_blocks(found: Mapping) -> list[Block]:
    rows = [[system, with_interval(cell)] for system, cell in found["systems"].items()]
    if "difference" in found:
        d = found["difference"]
        rows.append([d["of"], f"{with_interval(d['interval'], signed=True)}, sign flip p {p_value(d['p'])}, n = {d['interval']['n']:,}"])
    if found.get("alpha_ordinal") is not None:
        rows.append(["Krippendorff's alpha, ordinal", f"{found['alpha_ordinal']:.2f}"])
    return [("table", ["helpfulness, 1 to 5, by people", "mean"], rows)]


def _drift_blocks(summary: Mapping) -> list[Block]:
    e, kl = summary["config"]["eval"], summary["kl"]
    return [("heading", "Drift from the reference"),
            ("text", f"KL(DPO || SFT) = {with_interval(kl['stepwise'])} nats per reply, from {kl['stepwise']['n']} replies sampled from DPO at temperature 1 "
                     f"(seed {e['seed']}), at most {e['max_new_tokens']} tokens each: the exact divergence of the next-token distributions, summed along every "
                     f"reply. The plain estimate from the same replies, the mean of log p - log q, is {with_interval(kl['sampled'])}.")]


def _category_blocks(summary: Mapping) -> list[Block]:
    blocks: list[Block] = []
    for table in summary["toxicity_categories"]:
        systems = list(table["rows"][0]["values"])
        header = [f"mean score, {table['scorer']}", *(summary["systems"][system]["label"] for system in systems)]
        blocks.append(("table", header, [[row["category"], *(with_interval(row["values"][s]) for s in systems)] for row in table["rows"]]))
    return blocks


def _reward_blocks(found: Mapping, seed: int) -> list[Block]:
    blocks: list[Block] = [("heading", "Held-out pairs ranked by implicit reward")]
    header = ["", "subset", "DPO's implicit reward", "bag of words", "longer reply wins", "pairs", "prompts"]
    rows = []
    for table in found["tables"]:
        for subset, cell in table["judges"]["dpo"].items():
            shares = [with_interval(by_subset[subset]["accuracy"], "share") for by_subset in table["judges"].values()]
            rows.append([table["truth"], subset, *shares, f"{cell['pairs']:,}", f"{cell['accuracy']['n']:,}"])
    blocks.append(("table", header, rows))
    gap = found["tables"][-1]["dpo_minus_bag_of_words"]
    low, high = (-math.inf if gap["low"] is None else gap["low"]), (math.inf if gap["high"] is None else gap["high"])
    verdict = "not clearly different from" if low <= 0 <= high else "above" if low > 0 else "BELOW"
    ties = found["tables"][0]["judges"]["dpo"]["pooled"]["ties"]
    left_out = "".join(f" {t['left_out']:,} pairs of equal score are left out of the {t['truth']}." for t in found["tables"] if t["left_out"])
    rewards = ", ".join(f"{name} {with_interval(interval)}" for name, interval in found["rewards"].items())
    return blocks + [("text", f"By {found['tables'][-1]['truth']}, DPO is {verdict} the bag-of-words classifier: "
                              f"{with_interval(gap, 'share', signed=True)}. Bag of words was fitted on {found['train_pairs']:,} training pairs. "
                              f"A tie counts one half ({ties:,} in DPO's column).{left_out} Intervals resample whole prompts (seed {seed})."),
                     ("text", f"Mean implicit reward (beta {found['beta']}): {rewards}.")]


def _perplexity_table(rows: list[Mapping]) -> tuple[list[str], list[list[str]]]:
    stages = [stage for stage in ("base", "sft", "dpo") if stage in rows[0]["stages"]]
    names = {"base": "base", "sft": "SFT", "dpo": "DPO"}
    lines = []
    for row in rows:
        for key, label in (("perplexity", "perplexity"), ("bits_per_byte", "bits per byte")):
            test = [with_interval(row["difference"], signed=True), p_value(row["p"])] if key == "perplexity" else ["", ""]
            shown = [with_interval(row["stages"][stage][key]) for stage in stages]
            lines.append([f"{row['text']}, {label}", *shown, *test, f"{row['difference']['n']:,}"])
    return ["", *(names[stage] for stage in stages), "DPO - SFT, nats per token", "p", "n"], lines


# ---- from the folder ------------------------------------------------------------------------------------------------

def read_samples(folder: Path, summary: Mapping, judged: list[Mapping]) -> tuple[list[dict], list[dict], str]:
    """(the first `eval.samples_in_report` prompts, one group after the other in turn; the largest disagreements; by which rule)."""
    shown: dict[str, dict] = {}
    for row in read_rows(folder / "replies.jsonl"):
        if row["system"] in ("sft", "dpo"):
            prompt = row["prompt"].removesuffix(ASSISTANT).strip()
            sample = shown.setdefault(row["id"], {"id": row["id"], "prompt": prompt, "replies": {}})
            sample["replies"][summary["systems"][row["system"]]["label"]] = row["reply"]
    in_turn = sorted(shown.values(), key=lambda sample: int(sample["id"].rsplit("-", 1)[1]))  # stable: groups keep their order
    first = in_turn[:summary["config"]["eval"]["samples_in_report"]]
    margins = next((content["margins"] for content in judged if "margins" in content), None)
    if margins:
        rule = "the largest differences of the reward model's scores, either way"
    else:
        margins = {name: float(np.diff([len(reply.split()) for reply in sample["replies"].values()])[0]) for name, sample in shown.items()}
        rule = "the largest differences in length, since no judge gave scores"
    widest = sorted((name for name in shown if margins[name]), key=lambda name: -abs(margins[name]))[:DISAGREEMENTS]
    return first, [shown[name] | {"id": f"{name} (difference {margins[name]:+.2f})"} for name in widest], rule


def write_report(folder: Path) -> None:
    """Write report.md and report.html into an eval folder from what is in it."""
    try:
        summary = json.loads((folder / "results_summary.json").read_text(encoding="utf-8"))
        judged = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("judged_*.json"))]
        plots.refusal_bars(folder / "refusals.png", summary)
        plots.win_rate_forest(folder / "win_rates.png", summary, judged)
        plots.reward_margins(folder / "reward_margins.png", folder / "pair_logps.npz", summary["reward_accuracy"]["beta"])
        pictures = {path.name for path in folder.glob("*.png")}
        blocks = report_blocks(summary, judged, read_samples(folder, summary, judged), pictures)
        page = to_html(blocks, folder)
    except FileNotFoundError as e:
        raise UserError(f"{e.filename} is missing: run `python -m eval.run CONFIG` first.") from None
    (folder / "report.md").write_text(to_markdown(blocks), encoding="utf-8")
    (folder / "report.html").write_text(page, encoding="utf-8")


def terminal_table(summary: Mapping) -> str:
    """The main figures for the end of a run: every metric for SFT and DPO, the win rates, the reward accuracy."""
    by_key = {row["key"]: row for row in summary["comparisons"][0]["rows"]}
    rows = []
    for row in summary["metrics"]:
        test = by_key.get(row["key"])
        difference = [with_interval(test["difference"], row["form"], signed=True), p_value(test["p_holm"])] if test else ["", ""]
        rows.append([row["label"], *(with_interval(row["values"].get(s), row["form"]) for s in ("sft", "dpo")), *difference])
    parts = [text_table(["", "SFT", "DPO", "DPO - SFT", "p (Holm)"], rows)]
    if summary["win_rates"]:
        parts.append("\n" + text_table(*_win_table(summary["win_rates"])) + "\n")
    for table in summary["reward_accuracy"]["tables"]:
        pooled = {judge: cells["pooled"]["accuracy"] for judge, cells in table["judges"].items()}
        judged = ", ".join(f"{judge} {with_interval(interval, 'share')}" for judge, interval in pooled.items())
        parts.append(f"pairs ranked right ({table['truth']}): {judged}")
    parts += [f"not measured: {m['metric']}: {m['reason']}" for m in summary["not_measured"]]
    return "\n".join(parts)


def main(argv: list[str]) -> None:
    """Write the report of one eval folder again."""
    if len(argv) != 1:
        raise UserError("usage: python -m eval.report out/<name>/eval")
    write_report(Path(argv[0]))
    print(Path(argv[0]) / "report.html")


if __name__ == "__main__":
    run_main(main)
