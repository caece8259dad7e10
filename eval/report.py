"""report.md and report.html, made from results_summary.json, replies.jsonl and the pictures of one eval folder.

    python -m eval.report out/toy/eval      writes both again

A report is a list of blocks, each a tuple that begins with its kind; two small renderers turn the same list into Markdown
and into one HTML file with its pictures inside. Everything a model wrote is escaped: a reply cannot become part of the page.
"""
import base64
import html
import json
from collections.abc import Mapping
from pathlib import Path

from eval.tables import number, p_value, text_table, with_interval
from runtime.errors import UserError, run_main
from tokenizer import ASSISTANT

WARNING = ("Content warning: prompts and replies below may be offensive or harmful. "
           "They are shown as test material, not as advice.")
Block = tuple  # ("title" | "heading" | "text" | "table" | "picture" | "sample" | "code", ...): see the renderers


# ---- what the report says -------------------------------------------------------------------------------------------

def report_blocks(summary: Mapping, samples: list[dict]) -> list[Block]:
    """The report as blocks, from the summary and the samples to show."""
    e = summary["config"]["eval"]
    blocks: list[Block] = [("title", f"{summary['name']}: SFT against {summary['systems']['dpo']['label']}"), ("text", WARNING)]
    blocks += _facts(summary)
    if summary["win_rates"]:
        blocks += [("heading", "Which reply is better, by the exact oracle"), ("table", *_win_table(summary["win_rates"])),
                   ("text", "Win rate of the first-named system among decided pairs: Wilson interval, exact sign test, Holm's "
                            "correction over this table. Undecided pairs have equal scores.")]
    blocks += [("heading", "Replies to held-out prompts"), ("table", *_metrics_table(summary)),
               ("text", "↑ more is better, ↓ less is better. Shares in per cent with Wilson intervals, means with percentile bootstrap "
                        f"intervals (seed {e['seed']}); n counts the replies a row applies to. Refusals by rules: see eval/refusal.py. "
                        "All systems answered the same prompts.")]
    for comparison in summary["comparisons"]:
        first, second = (summary["systems"][comparison[key]]["label"] for key in ("first", "second"))
        blocks += [("heading", f"{second} minus {first}, paired by prompt"), ("table", *_comparison_table(comparison))]
        blocks += [("text", f"{row['label']}, without the pairing: Mann-Whitney p {p_value(row['mann_whitney_p'])}, "
                            f"Cohen's d {row['cohens_d']:+.2f}.") for row in comparison["rows"] if "cohens_d" in row]
    blocks.append(("text", "Shares: exact McNemar test; means: sign-flip randomisation test; both two-sided. Holm's correction is over "
                           "the rows of one table. An interval without width means that not one reply differed, not that none ever will."))
    blocks += _reward_blocks(summary["reward_accuracy"], e["seed"])
    blocks += [("heading", "Perplexity of held-out replies"), ("table", *_perplexity_table(summary["perplexity"])),
               ("text", "Per token, end-of-text included. DPO is expected to raise it: it is no longer fitted to the replies but to "
                        "their difference.")]
    blocks += [("heading", "Drift from the reference"),
               ("text", f"KL(DPO || SFT) = {with_interval(summary['kl'])} nats per reply, from {summary['kl']['n']} replies sampled from "
                        f"DPO at temperature 1 (seed {e['seed']}), counted over at most {e['max_new_tokens']} tokens each.")]
    blocks.append(("heading", "Not measured"))
    if summary["not_measured"]:
        blocks.append(("table", ["metric", "why"], [[m["metric"], m["reason"]] for m in summary["not_measured"]]))
    else:
        blocks.append(("text", "Nothing that this evaluation knows how to measure was left out."))
    blocks += [("heading", "Training"), ("picture", "training_curves.png", "Training and validation curves of every stage"),
               ("heading", "Toxicity"), ("picture", "toxicity_distribution.png", "Toxicity of replies by system and kind of prompt"),
               ("heading", f"{len(samples)} samples side by side"),
               ("text", WARNING + " Chosen by rule: the first prompts of each kind in turn.")]
    blocks += [("sample", sample) for sample in samples]
    return blocks + [("heading", "Settings"), ("code", json.dumps(summary["config"], indent=1))]


def _facts(summary: Mapping) -> list[Block]:
    f, e = summary["facts"], summary["config"]["eval"]
    rows = [["evaluated", f"{f['evaluated']}, {f.get('seconds', '?')} s on {f['device']}, code at commit {f['git_commit']}"]]
    for stage, s in f["stages"].items():
        best = f", validation loss {number(s['best'])}" if s["best"] is not None else ""
        state = "" if s["finished"] else " (TRAINING NOT FINISHED)"
        rows.append([f"{stage} checkpoint",
                     f"{s['parameters']:,} parameters, step {s['step']}{state}{best}, code at commit {s['git_commit']}"])
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
        rows.append([f"{row['second']} against {row['first']}", row["prompts"], rate, f"{row['wins']:,}", f"{row['losses']:,}",
                     f"{row['ties']:,}", with_interval(row["undecided"], "share"), p_value(row["p"]), p_value(row["p_holm"])])
    return ["", "on", "win rate", "wins", "losses", "ties", "undecided", "p", "p (Holm)"], rows


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
    verdict = "not clearly different from" if gap["low"] <= 0 <= gap["high"] else "above" if gap["low"] > 0 else "BELOW"
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
            lines.append([f"{row['replies']} replies, {label}", *shown, *test, f"{row['difference']['n']:,}"])
    return ["", *(names[stage] for stage in stages), "DPO - SFT, nats per token", "p", "n"], lines


# ---- how it looks ---------------------------------------------------------------------------------------------------

def to_markdown(blocks: list[Block]) -> str:
    """The blocks as Markdown; pictures by file name, replies as indented code, so that nothing in them is interpreted."""
    def cell(text: str) -> str:
        return html.escape(text, quote=False).replace("|", "\\|").replace("\n", " ")

    def indented(text: str) -> str:
        return "\n".join("    " + line for line in (text or "(empty)").splitlines())

    parts = []
    for kind, *content in blocks:
        if kind in ("title", "heading"):
            parts.append(("# " if kind == "title" else "## ") + content[0])
        elif kind == "text":
            parts.append(html.escape(content[0], quote=False))
        elif kind == "table":
            header, rows = content
            lines = [header, ["---"] * len(header), *rows]
            parts.append("\n".join("| " + " | ".join(cell(text) for text in line) + " |" for line in lines))
        elif kind == "picture":
            parts.append(f"![{content[1]}]({content[0]})")
        elif kind == "code":
            parts.append(indented(content[0]))
        else:
            sample = content[0]
            parts += [f"**{sample['id']}**", indented(sample["prompt"])]
            for label, reply in sample["replies"].items():
                parts += [f"{label}:", indented(reply)]
    return "\n\n".join(parts) + "\n"


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #1a1a1a }
h1 { font-size: 1.6em } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ddd }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: 3px 10px; border-bottom: 1px solid #e4e4e4; vertical-align: top }
td:not(:first-child), th { white-space: nowrap } table.facts td, table.sample td { white-space: normal } img { max-width: 100% }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: inherit } details pre { font: 12px monospace }
table.sample { width: 100%; margin: 1em 0; table-layout: fixed; background: #f7f7f7 }
"""


def to_html(blocks: list[Block], folder: Path) -> str:
    """The blocks as one HTML page; pictures are read from `folder` and embedded, all text is escaped."""
    def row(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    def said(who: str, text: str, attributes: str = "") -> str:
        return f"<td{attributes}><b>{html.escape(who)}</b><pre>{html.escape(text or '(empty)')}</pre></td>"

    parts = []
    for kind, *content in blocks:
        if kind in ("title", "heading"):
            tag = "h1" if kind == "title" else "h2"
            parts.append(f"<{tag}>{html.escape(content[0])}</{tag}>")
        elif kind == "text":
            parts.append(f"<p>{html.escape(content[0])}</p>")
        elif kind == "table":
            header, rows = content
            style = ' class="facts"' if len(header) == 2 else ""
            lines = "\n".join([row(header, "th"), *(row(cells, "td") for cells in rows)])
            parts.append(f'<div class="scroll"><table{style}>{lines}</table></div>')
        elif kind == "picture":
            data = base64.b64encode((folder / content[0]).read_bytes()).decode()
            parts.append(f'<img alt="{html.escape(content[1])}" src="data:image/png;base64,{data}">')
        elif kind == "code":
            parts.append(f"<details><summary>show</summary><pre>{html.escape(content[0])}</pre></details>")
        else:
            sample = content[0]
            replies = "".join(said(label, reply) for label, reply in sample["replies"].items())
            prompt = said(sample["id"], sample["prompt"], f' colspan="{len(sample["replies"])}"')
            parts.append(f'<table class="sample"><tr>{prompt}</tr><tr>{replies}</tr></table>')
    title = html.escape(blocks[0][1])
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title}</title><style>{STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n")


def read_samples(folder: Path, summary: Mapping) -> list[dict]:
    """The first `eval.samples_in_report` prompts, one kind after the other in turn, with the replies of SFT and DPO."""
    shown: dict[str, dict] = {}
    with open(folder / "replies.jsonl", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if row["system"] in ("sft", "dpo"):
                prompt = row["prompt"].removesuffix(ASSISTANT).strip()
                sample = shown.setdefault(row["id"], {"id": row["id"], "prompt": prompt, "replies": {}})
                sample["replies"][summary["systems"][row["system"]]["label"]] = row["reply"]
    in_turn = sorted(shown.values(), key=lambda sample: int(sample["id"].rsplit("-", 1)[1]))  # stable: kinds keep their order
    return in_turn[:summary["config"]["eval"]["samples_in_report"]]


def write_report(folder: Path) -> None:
    """Write report.md and report.html into an eval folder from what is in it."""
    try:
        summary = json.loads((folder / "results_summary.json").read_text(encoding="utf-8"))
        blocks = report_blocks(summary, read_samples(folder, summary))
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
