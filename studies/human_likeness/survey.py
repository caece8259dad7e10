"""What the raters of a human study said about themselves and about what makes a chatbot human-like: counts with intervals, and which answers go together.

    python -m studies.human_likeness.survey SURVEY.csv [--to FOLDER] [--seed 0]

Writes survey.json and survey.md. An answer in somebody's own words is never shown: of free text only the words that several people used, of a
closed question only its options (a reply under "other" is one person's words too).
"""
import argparse
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from data.store import write_json
from eval import stats
from eval.stats import LEVEL, Interval, wilson
from eval.tables import p_value, with_interval
from runtime.errors import UserError, check_folder, run_main
from studies.human_likeness.storage import command_line
from studies.human_likeness.vote_page import cell, markdown
from studies.human_likeness.vote_rows import read_csv

# key -> how the column's long header begins, punctuation and non-breaking spaces apart
OPEN = {"criteria": "human-like criteria", "missing": "improve human-likeness"}
CLOSED = {"age": "age", "gender": "gender", "education": "education level", "familiarity": "familiarity with ai", "confidence": "detecting ai"}
# The options that have an order, from least to most. Whatever else was answered has no place on the scale.
SCALES = {"age": ("18-24", "25-34", "35-44", "45-54", "55-64", "65 or older"),
          "familiarity": ("never", "once or twice", "a few times a month", "a few times a week", "daily or almost daily"),
          "confidence": ("not at all confident", "somewhat confident", "moderately confident", "very confident", "extremely confident")}
OPTIONS = {"gender": ("woman", "man", "non-binary", "prefer not to say"), **SCALES}
OTHER = "another answer"
SHOWN = 3  # people: rarer words, and rarer answers that are no known option, may be one person's own
OPEN_AGE = 5  # years that the oldest group, which has no upper end, is put above its lower one
WORDS = 15
# What the published notebook printed about the public file, by the file's sha256.
PUBLISHED = {"c5039d256fd06e317d29a9b7329be7502981e3020bf8396b06629f13cf2cf86b": {
    "age": {"18-24": 8, "25-34": 20, "35-44": 10, "45-54": 12, "65 or older": 5},
    "gender": {"woman": 29, "man": 23, "non-binary": 2, "prefer not to say": 1},
    "education": {"high school or equivalent": 28, "some college": 27},
    "familiarity": {"a few times a week": 16, "daily or almost daily": 15, "a few times a month": 12, "once or twice": 7, "never": 4, OTHER: 1},
    "confidence": {"moderately confident": 17, "somewhat confident": 16, "very confident": 13, "not at all confident": 6, "extremely confident": 3},
    "mean age": "38.13", "criteria": {"also": 13, "too": 12, "not": 12, "way": 11}, "missing": {"not": 25, "too": 16, "some": 13, "slang": 8}}}


# ---- reading --------------------------------------------------------------------------------------------------------

def plain(text: str) -> str:
    """Lower case, one space between words, dashes and non-breaking spaces made plain, no punctuation at the end of a word."""
    text = text.casefold().replace("\u2013", "-").replace("\u2011", "-").replace("\u2019", "'")
    return " ".join(word.rstrip(":;,.!") for word in text.split())  # split() takes U+00A0 for a space


def find_columns(header: Sequence[str]) -> dict[str, str]:
    """{question key: header} by the header's first words. UserError for a question without a column or with two."""
    found = {}
    for key, start in (OPEN | CLOSED).items():
        match = [name for name in header if plain(name).split()[:len(start.split())] == start.split()]
        if len(match) != 1:
            raise UserError(f"{'no column begins' if not match else f'{len(match)} columns begin'} with {start!r}: the survey needs one for each of "
                            f"{', '.join((OPEN | CLOSED).values())}.")
        found[key] = match[0]
    return found


def read_survey(path: Path) -> tuple[dict[str, list[str]], str]:
    """({question key: one answer per respondent, "" where none; closed ones in `plain` form}, sha256)."""
    header, rows, sha256 = read_csv(path)
    columns = find_columns(header)
    if not rows:
        raise UserError(f"{path} has no answers.")
    return {key: [plain(row[name]) if key in CLOSED else row[name].strip() for _, row in rows] for key, name in columns.items()}, sha256


# ---- figures --------------------------------------------------------------------------------------------------------

def shown(key: str, answers: Sequence[str]) -> list[str]:
    """The answers to a closed question with everything that may be one person's own words as `OTHER`; no answer stays ""."""
    often = Counter(answers)
    return [a if not a or a in OPTIONS.get(key, ()) or often[a] >= SHOWN else OTHER for a in answers]


def closed_counts(key: str, answers: Sequence[str]) -> dict:
    """Answers in the order of their scale, or by frequency, with their share of those who answered (Wilson interval)."""
    counts = Counter(shown(key, answers))
    silent = counts.pop("", 0)
    order = [*(o for o in SCALES.get(key, ()) if o in counts), *(o for o, _ in counts.most_common() if o not in SCALES.get(key, ()))]
    n = sum(counts.values())
    return {"answered": n, "no_answer": silent, "options": [{"answer": o, "count": counts[o], "share": wilson(counts[o], n).to_dict()} for o in order]}


def mean_age(answers: Sequence[str], seed: int) -> dict:
    """Mean age in years with every group at its midpoint, as 21 for 18-24; the oldest group at its lower end plus `OPEN_AGE`."""
    ends = [[int(end) for end in re.findall(r"\d+", answer)] for answer in answers if answer in SCALES["age"]]
    if not ends:
        return {"value": None, "reason": "not measured: nobody chose an age group"}
    return stats.mean([(end[0] + end[1]) / 2 if len(end) == 2 else end[0] + OPEN_AGE for end in ends], seed=seed).to_dict()


def chi_square(table: np.ndarray) -> np.ndarray:
    """Pearson's statistic of tables [..., r, c] without an empty row or column."""
    rows, columns = table.sum(axis=-1, keepdims=True), table.sum(axis=-2, keepdims=True)
    expected = rows * columns / table.sum(axis=(-1, -2), keepdims=True)
    return ((table - expected) ** 2 / expected).sum(axis=(-1, -2))


def association(x: Sequence[int], y: Sequence[int], resamples: int = 10_000, seed: int = 0) -> dict:
    """Do two ordered answers [n] go together? Any way at all (chi-square, Fisher's exact test for 2 x 2) and monotonically (Kendall's tau-b).

    Cells are too small for the chi-square distribution, so both p come from random permutations of y (adding one to both counts). The interval of
    tau-b resamples respondents.
    """
    from scipy.stats import fisher_exact, kendalltau
    x, y = (np.unique(values, return_inverse=True)[1] for values in (x, y))
    n, r, c = len(x), x.max(initial=-1) + 1, y.max(initial=-1) + 1
    if min(r, c) < 2:
        return {"n": n, "reason": "not measured: everybody gave the same answer"}
    rng = np.random.default_rng(seed)
    orders = np.array([np.arange(n), *(rng.permutation(n) for _ in range(resamples))])
    cells = (np.arange(len(orders))[:, None] * r + x) * c + y[orders]
    tables = np.bincount(cells.ravel(), minlength=len(orders) * r * c).reshape(-1, r, c)
    squared = chi_square(tables)
    # concordant minus discordant pairs: the only part of tau-b that a permutation changes
    order = np.sign(np.subtract.outer(np.arange(r), np.arange(r))).astype(float)
    other = np.sign(np.subtract.outer(np.arange(c), np.arange(c))).astype(float)
    surplus = ((order @ tables @ other.T) * tables).sum(axis=(-1, -2))

    def p(values: np.ndarray) -> float:
        return float(((values[1:] >= values[0] * (1 - 1e-12)).sum() + 1) / (resamples + 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = np.array([kendalltau(x[at], y[at]).statistic for at in rng.integers(0, n, (1000, n))])
    usable = drawn[np.isfinite(drawn)]
    ends = [float(end) for end in np.quantile(usable, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])] if len(usable) >= 975 else [None, None]
    exact = (r, c) == (2, 2)
    tau = stats.no_false_certainty(Interval(float(kendalltau(x, y).statistic), *ends, n, f"bootstrap over respondents, {len(usable):,} resamples", seed), "no two resamples differ")
    return {"n": n, "chi_square": float(squared[0]), "p_any": float(fisher_exact(tables[0]).pvalue) if exact else p(squared),
            "test_any": "Fisher, exact" if exact else f"chi-square, {resamples:,} permutations",
            "tau_b": tau.to_dict(), "p_monotone": p(np.abs(surplus))}


def associations(answers: Mapping[str, list[str]], seed: int) -> list[dict]:
    """`association` of every two ordered questions, over respondents who stand on both scales; Holm over all tests together."""
    rows = []
    for a, b in combinations(("familiarity", "confidence", "age"), 2):
        both = [(SCALES[a].index(x), SCALES[b].index(y)) for x, y in zip(answers[a], answers[b]) if x in SCALES[a] and y in SCALES[b]]
        rows.append({"questions": [a, b], **(association(*zip(*both), seed=seed) if both else {"n": 0, "reason": "not measured: nobody answered both"})})
    tests = [(row, name) for row in rows for name in ("p_any", "p_monotone") if name in row]
    for (row, name), p in zip(tests, stats.holm([row[name] for row, name in tests])):
        row[f"{name}_holm"] = p
    return rows


def crossed(answers: Mapping[str, list[str]], a: str, b: str) -> dict:
    """Counts of two questions: {"rows", "columns", "counts" [rows][columns]} in the order of their scales, other answers last."""
    pairs = Counter((x, y) for x, y in zip(shown(a, answers[a]), shown(b, answers[b])) if x and y)
    rows, columns = ([*SCALES[key], *sorted({pair[side] for pair in pairs} - set(SCALES[key]))] for side, key in enumerate((a, b)))
    return {"rows": rows, "columns": columns, "counts": [[pairs[x, y] for y in columns] for x in rows]}


def top_words(texts: Sequence[str]) -> list[dict]:
    """Words by the number of answers they occur in, English stop words left out; only words that `SHOWN` people or more used."""
    try:
        from sklearn.feature_extraction.text import CountVectorizer
    except ImportError:
        raise UserError("The words of free-text answers need scikit-learn: pip install scikit-learn") from None
    texts = [text for text in texts if text]
    try:
        counter = CountVectorizer(binary=True, stop_words="english")
        seen = np.asarray(counter.fit_transform(texts).sum(axis=0)).ravel()
    except ValueError:  # nothing but stop words
        return []
    words = sorted(zip(counter.get_feature_names_out(), seen.tolist()), key=lambda pair: (-pair[1], pair[0]))
    return [{"word": word, "answers": n, "share": wilson(n, len(texts)).to_dict()} for word, n in words[:WORDS] if n >= SHOWN]


def beside_published(answers: Mapping[str, list[str]], sha256: str, age: Mapping) -> list[dict]:
    """Published counts of this very file (by sha256) beside ours; empty for any other file."""
    said, rows = PUBLISHED.get(sha256, {}), []
    for key, old in said.items():
        if key in CLOSED:
            ours = dict(Counter(shown(key, answers[key])))
        elif key in OPEN:  # how often a word stands in all answers together, stop words too
            every = Counter(re.findall(r"[a-z']+", " ".join(answers[key]).casefold()))
            ours = {word: every[word] for word in old}
        else:
            ours = f"{age['value']:.2f}"
        rows.append({"figure": f"words: {key}" if key in OPEN else key, "published": old, "equal": ours == old})
    return rows


def analyse(answers: Mapping[str, list[str]], sha256: str, seed: int = 0) -> dict:
    """All figures of a survey, as plain values."""
    age = mean_age(answers["age"], seed)
    return {"sha256": sha256, "seed": seed, "respondents": len(answers["age"]), "mean_age": age,
            "closed": {key: closed_counts(key, answers[key]) for key in CLOSED}, "crossed": crossed(answers, "familiarity", "confidence"),
            "associations": associations(answers, seed),
            "words": {key: {"answers": sum(map(bool, answers[key])), "top": top_words(answers[key])} for key in OPEN},
            "published": beside_published(answers, sha256, age)}


# ---- page -----------------------------------------------------------------------------------------------------------

def page(f: Mapping) -> str:
    """The markdown page of all figures."""
    lines = ["# The raters", "", f"Generated by `{f['command']}`: do not edit.", "",
             f"File: sha256 {f['sha256'][:16]}, {f['respondents']} respondents. Shares with Wilson's 95 % interval, of those who answered. Answers in "
             f"somebody's own words are not shown: a closed answer that is no known option and was given by fewer than {SHOWN} people is \"{OTHER}\", and "
             f"words that fewer used are left out. Seed {f['seed']}.", ""]
    for key, found in f["closed"].items():
        lines += [f"## {key.capitalize()}", "", f"{found['answered']} answered, {found['no_answer']} did not.", ""]
        lines += markdown(["answer", "count", "share"], [[o["answer"], o["count"], with_interval(o["share"], "share")] for o in found["options"]])
        if key == "age":
            lines += [f"Mean age {cell(f['mean_age'], 2)}, every group at its midpoint; the oldest group has none and is put {OPEN_AGE} years above its "
                      "lower end.", ""]
    cross = f["crossed"]
    lines += ["## Familiarity (rows) and confidence (columns)", ""]
    lines += markdown(["", *cross["columns"]], [[name, *row] for name, row in zip(cross["rows"], cross["counts"])])
    lines += ["Do answers go together? Any way (chi-square by permutation, Fisher's exact test for 2 x 2) and monotonically (Kendall's tau-b, by permutation, "
              "with a bootstrap interval over respondents). p are Holm-corrected over all tests of this table; answers off the scales are left out.", ""]
    lines += markdown(["questions", "n", "chi-square", "p any", "p any, Holm", "tau-b", "p monotone", "p monotone, Holm"],
                      [[" and ".join(r["questions"]), r["n"], *([r["reason"], *[""] * 5] if "reason" in r else (
                          f"{r['chi_square']:.1f}", p_value(r["p_any"]), p_value(r["p_any_holm"]), cell(r["tau_b"], 2), p_value(r["p_monotone"]),
                          p_value(r["p_monotone_holm"])))] for r in f["associations"]])
    for key, found in f["words"].items():
        lines += [f"## Words: {key}", "", f"{found['answers']} answers in free text. Answers in which a word occurs, scikit-learn's English stop words "
                  "left out.", ""]
        lines += markdown(["word", "answers", "share"], [[w["word"], w["answers"], with_interval(w["share"], "share")] for w in found["top"]])
    if f["published"]:
        said = [r["published"] if isinstance(r["published"], str) else ", ".join(f"{name} {n}" for name, n in r["published"].items()) for r in f["published"]]
        lines += ["## Beside the published figures", ""]
        lines += markdown(["figure", "published", "here"], [[r["figure"], old, "equal" if r["equal"] else "differs"] for r, old in zip(f["published"], said)])
    return "\n".join(lines).rstrip() + "\n"


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("survey", type=Path)
    a.add_argument("--to", type=Path, default=Path("out/human_likeness/survey"))
    a.add_argument("--seed", type=int, default=0)
    a = a.parse_args(argv)
    check_folder("--to", a.to)
    if a.seed < 0:
        raise UserError("--seed must be at least 0.")
    figures = {"command": command_line("survey", argv)} | analyse(*read_survey(a.survey), a.seed)
    a.to.mkdir(parents=True, exist_ok=True)
    write_json(a.to / "survey.json", figures)
    (a.to / "survey.md").write_text(page(figures), encoding="utf-8")
    print(f"{figures['respondents']} respondents; written to {a.to}: survey.json, survey.md")


if __name__ == "__main__":
    run_main(main)
