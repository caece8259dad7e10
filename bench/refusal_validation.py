"""The refusal rules of eval/refusal.py, and a plain keyword list beside them, against people's labels (XSTest, Röttger et al. 2024).

    python bench/refusal_validation.py xstest_v2_completions_gpt4.csv xstest_v2_completions_llama2orig_gpteval.csv

The rules were written with the odd data rows (1st, 3rd, ...) of the GPT-4 file in view: development. The even rows, and all of
another model's replies, were opened by this script alone, once, when the rules were final: held out. Whoever changes the rules
after reading results/refusal/validation.json has no held-out rows left, and must say so or bring new ones.
"""
import argparse
import csv
import hashlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT) if __name__ == "__main__" else sys.path[0]  # import from the repository root, not from bench/

import json

import numpy as np

from eval.refusal import LABELS, classify, keyword_refusal
from eval.stats import wilson
from runtime.errors import UserError, run_main

PEOPLE = {"1": "compliance", "2": "full", "3": "partial"}  # final_label is 1_full_compliance, 2_full_refusal or 3_partial_refusal
CLASSIFIERS = {"rules": lambda reply: classify(reply).label, "keywords": lambda reply: "full" if keyword_refusal(reply) else "compliance"}
TARGET = 0.90
RESAMPLES, SEED = 2000, 0


def sha256(path: Path) -> str:
    """Hex digest of a file; of text with any line ends, so that a checkout on Windows has the same."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def read_labelled(path: Path) -> list[tuple[str, str, str]]:
    """(id, reply, label by people) of every data row. UserError for a file without those columns or with a label it does not know."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path} cannot be read ({e}): give XSTest's CSV files of labelled completions.") from None
    found = []
    for i, row in enumerate(rows, start=1):
        label = PEOPLE.get((row.get("final_label") or "").strip()[:1])
        if label is None or row.get("completion") is None:
            raise UserError(f"{path.name}, data row {i}: no `completion`, or a `final_label` that does not begin with 1, 2 or 3.")
        found.append((row.get("id") or str(i), row["completion"], label))
    return found


def confusion(people: list[str], ours: list[str]) -> np.ndarray:
    """Counts [3, 3] in the order of LABELS: row = people's label, column = the classifier's."""
    table = np.zeros((3, 3), dtype=np.int64)
    np.add.at(table, ([LABELS.index(x) for x in people], [LABELS.index(x) for x in ours]), 1)
    return table


def kappa(tables: np.ndarray) -> np.ndarray:
    """Cohen's kappa (1960) of confusion tables [..., k, k]; NaN where both sides know one label only."""
    n = tables.sum((-2, -1))
    observed = np.trace(tables, axis1=-2, axis2=-1) / n
    chance = (tables.sum(-1) * tables.sum(-2)).sum(-1) / n**2
    return np.divide(observed - chance, 1 - chance, out=np.full(n.shape, np.nan), where=chance < 1)


def any_refusal(tables: np.ndarray) -> np.ndarray:
    """Confusion tables [..., 2, 2] in which full and partial refusals are one, from [..., 3, 3]."""
    return np.stack([np.stack([tables[..., r, c].sum((-2, -1)) for c in (np.s_[:2], np.s_[2:])], -1) for r in (np.s_[:2], np.s_[2:])], -2)


def shares(tables: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Precision, recall and F1 of full refusals and of any refusal as (counted, of how many), from confusion tables [..., 3, 3]."""
    result = {}
    for name, table in (("full", tables), ("any", any_refusal(tables))):
        hits, called, true = table[..., 0, 0], table[..., :, 0].sum(-1), table[..., 0, :].sum(-1)
        result |= {f"precision_{name}": (hits, called), f"recall_{name}": (hits, true), f"f1_{name}": (2 * hits, called + true)}
    return result


def figures(tables: np.ndarray) -> dict[str, np.ndarray]:
    """Every figure of confusion tables [..., 3, 3]. 0/0 is NaN."""
    return {"kappa": kappa(tables), "kappa_any": kappa(any_refusal(tables))} | {
        name: np.divide(hits, of, out=np.full(np.shape(of), np.nan), where=of > 0) for name, (hits, of) in shares(tables).items()}


def score(people: list[str], ours: list[str]) -> dict:
    """The confusion table and its figures, each {value, low, high}, 95 %, None where undefined: Wilson for precision and recall, percentile bootstrap over rows else.

    Resamples of replies without a mistake hold no mistake either: they would give a precision of 1 an interval of no width.
    """
    from sklearn.metrics import cohen_kappa_score
    table = confusion(people, ours)
    n = int(table.sum())
    # resampling rows with replacement is a multinomial draw over the nine cells
    drawn = np.random.default_rng(SEED).multinomial(n, table.ravel() / n, size=RESAMPLES).reshape(-1, 3, 3)
    values, resampled = figures(table), figures(drawn)
    expected = cohen_kappa_score(people, ours)
    if not np.isclose(values["kappa"], expected, equal_nan=True):
        raise ValueError(f"kappa {values['kappa']}, scikit-learn {expected}")
    result = {"n": n, "confusion": table.tolist()}
    counted = shares(table)
    for name, value in values.items():
        inside = resampled[name][np.isfinite(resampled[name])]
        low, high = np.quantile(inside, (0.025, 0.975)) if len(inside) else (np.nan, np.nan)
        if name.startswith(("precision", "recall")) and counted[name][1]:
            found = wilson(*map(int, counted[name]))
            low, high = found.low, found.high
        result[name] = {key: round(float(x), 4) if np.isfinite(x) else None for key, x in (("value", value), ("low", low), ("high", high))}
    return result


def validate(gpt4: Path, llama2: Path) -> dict:
    """The content of validation.json."""
    first, second = read_labelled(gpt4), read_labelled(llama2)
    sets = {"GPT-4, odd rows (development)": (gpt4, first[0::2]), "GPT-4, even rows (held out)": (gpt4, first[1::2]),
            "Llama-2, all rows (held out)": (llama2, second)}
    result = {"rules_sha256": sha256(ROOT / "eval" / "refusal.py"), "labels": LABELS, "resamples": RESAMPLES, "seed": SEED, "target_f1_full": TARGET,
              "sets": {}}
    for name, (path, rows) in sets.items():
        people, distinct = [label for _, _, label in rows], list({(reply, label) for _, reply, label in rows})
        entry = {"file": path.name, "sha256": sha256(path), "n": len(rows), "distinct_replies": len({reply for _, reply, _ in rows}), "classifiers": {}}
        for classifier, ask in CLASSIFIERS.items():
            ours = [ask(reply) for _, reply, _ in rows]
            entry["classifiers"][classifier] = score(people, ours) | {
                "f1_full_distinct": score([label for _, label in distinct], [ask(reply) for reply, _ in distinct])["f1_full"],
                "disagreements": [[key, theirs, mine] for (key, _, theirs), mine in zip(rows, ours) if theirs != mine]}
        result["sets"][name] = entry
    return result


def as_markdown(result: dict) -> str:
    """validation.md, from validation.json alone."""
    def cell(x: dict) -> str:
        return "not defined" if x["value"] is None else f"{x['value']:.3f} [{x['low']:.3f}, {x['high']:.3f}]"
    held_out = result["sets"]["GPT-4, even rows (held out)"]["classifiers"]["rules"]["f1_full"]["value"]
    lines = ["# The refusal rules against people's labels", "", "Generated by `bench/refusal_validation.py`: do not edit.", "",
             f"Rules: `eval/refusal.py`, sha256 {result['rules_sha256'][:16]}. "
             "Replies and labels: XSTest (Röttger et al. 2024), full compliance, full refusal",
             "or partial refusal by people. The rules were written with the odd rows (1st, 3rd, ... data row) of the GPT-4 file and invented examples in view;",
             "the other two sets were opened once, by this script, when the rules were final. Both models answered the same prompts, and odd and even",
             "rows are neighbours of the same kind, so the even rows test new replies of a known sort, and Llama-2 replies of another sort.", "",
             f"Target: F1 of full refusals ≥ {result['target_f1_full']:.2f} on the even rows. Measured {held_out:.3f}: "
             f"{'met' if held_out >= result['target_f1_full'] else 'missed'}.", "",
             f"95 % in brackets: Wilson for precision and recall, percentile bootstrap over rows ({result['resamples']:,} resamples, seed {result['seed']}) for the rest. "
             "Many replies of GPT-4 are one sentence, word for",
             "word; `distinct` counts every pair of reply and label once. The keyword list cannot say partial: it counts as full there.", ""]
    heads = {"f1_full": "F1 full", "f1_full_distinct": "F1 full, distinct", "precision_full": "precision full", "recall_full": "recall full",
             "f1_any": "F1 any refusal", "precision_any": "precision any", "recall_any": "recall any", "kappa": "kappa, 3 labels",
             "kappa_any": "kappa, any or none"}
    for name, entry in result["sets"].items():
        rules, keywords = entry["classifiers"]["rules"], entry["classifiers"]["keywords"]
        lines += [f"## {name}", "", f"n = {entry['n']}, {entry['distinct_replies']} distinct replies. `{entry['file']}`, sha256 {entry['sha256'][:16]}.", "",
                  "| | rules | keywords |", "| --- | --- | --- |"]
        lines += [f"| {head} | {cell(rules[key])} | {cell(keywords[key])} |" for key, head in heads.items()]
        for classifier, found in entry["classifiers"].items():
            lines += ["", f"| people say, {classifier} say: | " + " | ".join(result["labels"]) + " |", "| --- " * 4 + "|"]
            lines += [f"| {label} | " + " | ".join(map(str, row)) + " |" for label, row in zip(result["labels"], found["confusion"])]
        full, partial, compliance = rules["confusion"][1]
        lines += ["", f"Of the {full + partial + compliance} replies that people call partial, the rules call {full} full, {partial} partial and "
                  f"{compliance} compliance.", ""]
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """See the top of this file."""
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("gpt4", type=Path, help="XSTest completions of GPT-4, labelled")
    a.add_argument("llama2", type=Path, help="XSTest completions of Llama-2 with its original system prompt, labelled")
    a.add_argument("--out", type=Path, default=ROOT / "results" / "refusal")
    a = a.parse_args(argv)
    result = validate(a.gpt4, a.llama2)
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "validation.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (a.out / "validation.md").write_text(as_markdown(result), encoding="utf-8")
    print(as_markdown(result))


if __name__ == "__main__":
    run_main(main)
