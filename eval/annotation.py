"""CSV files: the table of results, and the two sheets on which people judge replies without knowing who wrote them."""
import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

def safe_cell(text: str) -> str:
    """Text that a spreadsheet shows instead of running: a leading = + - @, tab or line break gets an apostrophe in front.

    A reply such as =HYPERLINK("...") is otherwise a formula on the annotator's machine (OWASP, "CSV injection").
    """
    return "'" + text if text.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """UTF-8 with a byte-order mark, without which Excel garbles anything beyond ASCII. Text cells are made safe, numbers stay."""
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for row in rows:
            writer.writerow([safe_cell(cell) if isinstance(cell, str) else cell for cell in row])


def write_pairwise(folder: Path, prompts: Sequence[tuple[str, str]], replies: Mapping[str, Sequence[str]], seed: int) -> None:
    """pairwise_preferences_for_annotation.csv and its key; prompts are (id, text), replies {system: [prompts]} of two systems.

    Which system is A is drawn per row by `seed`; the key is a file of its own, so that the sheet can be handed out blind.
    """
    (first, a), (second, b) = replies.items()
    swapped = np.random.default_rng(seed).random(len(prompts)) < 0.5
    sheet, key = [], []
    for (name, prompt), reply_a, reply_b, swap in zip(prompts, a, b, swapped):
        sheet.append((name, prompt, *((reply_b, reply_a) if swap else (reply_a, reply_b)), "", ""))
        key.append((name, *((second, first) if swap else (first, second))))
    write_csv(folder / "pairwise_preferences_for_annotation.csv",
              ("id", "prompt", "reply_A", "reply_B", "preference (A, B, tie, both bad)", "comment"), sheet)
    write_csv(folder / "pairwise_preferences_key.csv", ("id", "A", "B"), key)


def write_helpfulness(folder: Path, prompts: Sequence[tuple[str, str]], replies: Mapping[str, Sequence[str]], seed: int) -> None:
    """helpfulness_for_annotation.csv: every reply of every system on its own row, shuffled by `seed`; the key beside it."""
    rows = [(prompt_id, prompt, wrote[i], system) for i, (prompt_id, prompt) in enumerate(prompts) for system, wrote in replies.items()]
    sheet, key = [], []
    for k, i in enumerate(np.random.default_rng(seed).permutation(len(rows))):
        prompt_id, prompt, reply, system = rows[i]
        sheet.append((f"h{k:04d}", prompt, reply, "", ""))
        key.append((f"h{k:04d}", prompt_id, system))
    write_csv(folder / "helpfulness_for_annotation.csv",
              ("id", "prompt", "reply", "helpfulness (1 useless to 5 excellent)", "comment"), sheet)
    write_csv(folder / "helpfulness_key.csv", ("id", "prompt_id", "system"), key)


def write_comparison(folder: Path, rows: Sequence[Mapping], systems: Mapping[str, str], comparison: Mapping,
                     not_measured: Sequence[Mapping]) -> None:
    """model_comparison.csv: a row per metric; value, low, high and n per system, then the main paired difference. What was
    not measured has a row too, with the reason where its first value would be."""
    paired = {row["key"]: row for row in comparison["rows"]}
    first, second = systems[comparison["first"]], systems[comparison["second"]]
    header = ["metric", "key"] + [f"{label} {part}" for label in systems.values() for part in ("value", "low", "high", "n")]
    header += [f"{second} - {first} {part}" for part in ("difference", "low", "high")] + ["p", "p (Holm)", "test"]
    lines = []
    for row in rows:
        line = [row["label"], row["key"]]
        for system in systems:
            cell = row["values"].get(system)
            line += [cell["value"], cell["low"], cell["high"], cell["n"]] if cell else ["not measured", "", "", ""]
        found = paired.get(row["key"])
        if found:
            line += [found["difference"][part] for part in ("value", "low", "high")] + [found["p"], found["p_holm"], found["test"]]
        lines.append(line)
    lines += [[m["metric"], "", f"not measured: {m['reason']}"] for m in not_measured]
    write_csv(folder / "model_comparison.csv", header, lines)
