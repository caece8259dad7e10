"""What the published metrics measure besides truth: the half of the claims page on the form of answers, and its two pictures.

All of it comes from recheck.json (recheck.py) and from the log's counts in published.json.
"""
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval import plots, stats
from eval.tables import number, p_value, with_interval
from studies.curriculum_dpop.per_item import KINDS, MEASURES

Block = tuple
JUDGED = ("flagged", "margin", "faithfulness", "bert_f1", "exact", "contained")  # shown where runs are matched; recheck.json has all
QA_KINDS = tuple(kind for kind in KINDS if KINDS[kind].own)
# key in a run's "forms" -> what the share is of
FORMS = {
    "bleu_zero_same_text": "BLEU is 0, of answers that are the right answer letter by letter", "bleu_zero": "BLEU is 0, of all answers",
    "stored_bleu_zero": "BLEU as stored in the rows is 0", "bert_zero": "BERT-F1 is exactly 0", "bert_zero_right": "... of these: the answer is an exact match",
    "bert_zero_one_word_gold": "... of these: the right answer is one word", "exact_flagged": "exact matches judged hallucinated",
    "yes_no_unmatched_flagged": "answers to yes/no questions, no exact match, judged hallucinated",
    "yes_no_opposite_flagged": "yes for no, or no for yes, as the first word, judged hallucinated",
    "yes_no_flipped_flagged": "... of these: that one word alone",
    "no_overlap_flagged": "answers without one right word judged hallucinated", "flag_against_rule": "flag not what the stored scores say"}


def counted(found: Mapping | None) -> str:
    """"88.0 % [87.2, 88.8] (5,012 of 5,693)"."""
    return f"{with_interval(found, 'share')} ({found['count']:,} of {found['n']:,})" if found else "no such row"


def names(published: Mapping, runs: Mapping) -> dict[str, str]:
    """run -> its name in words, the baseline first."""
    known = [run for run in published["runs"] if run in runs]
    return {run: published["runs"].get(run, run) for run in [*known, *(run for run in runs if run not in known)]}


def prompts_blocks(published: Mapping, recheck: Mapping) -> list[Block]:
    """One model, two prompts: from the log's counts, and from the per-item results of the two HaluEval evaluations."""
    log = published["two_prompts_in_the_log"]
    rows = [[row["label"], with_interval(stats.wilson(row["right"], log["n"]).to_dict(), "share"), f"{row['mean_similarity_to_right']:.3f}",
             f"{row['mean_similarity_to_invented']:.3f}"] for row in log["runs"]]
    first, second, *trained = (100 * row["right"] / log["n"] for row in log["runs"])
    text = (f"In {log['where']}. The prompt moved the base model's figure by {second - first:+.1f} points, "
            f"training by {' and '.join(f'{value - second:+.1f}' for value in trained)}.")
    parts = [("heading", "One model, two prompts"), ("text", text),
             ("table", [f"{log['n']:,} questions", "nearer to the right answer", "similarity to right", "to invented"], rows)]
    found = recheck.get("two_prompts", {}).get("rows", [])
    if found:
        rows = []
        for line in found:
            form = MEASURES[line["key"]].metric.form
            rows.append([MEASURES[line["key"]].metric.label, number(line["first"], form), number(line["second"], form),
                         with_interval(line["difference"], form, signed=True), p_value(line["p"])])
        parts += [("text", f"The baseline answers the same {found[0]['difference']['n']:,} questions in both HaluEval evaluations, under two prompts and two ways of "
                           "decoding. Containment finds the right answer inside a sentence too; the other metrics want the bare answer."),
                  ("table", ["baseline", "similarity evaluation", "faithfulness evaluation", "difference", "p"], rows)]
    return parts


def same_answer_blocks(published: Mapping, recheck: Mapping) -> list[Block]:
    """Where a run and the baseline gave one answer in two spellings, and where they wrote equally many words."""
    parts: list[Block] = [("heading", "One answer, two spellings")]
    for title, text in (("same_answer", "Questions on which a run and the baseline gave the same answer after normalisation (case, punctuation, articles), in different "
                                        "letters. No metric of truth may move here."),
                        ("same_length", "Questions on which both wrote the same number of words: what is left of a difference when length cannot make it.")):
        rows = []
        for kind in QA_KINDS:
            for run, found in recheck["kinds"].get(kind, {}).get("comparisons", {}).items():
                for line in (line for line in found.get(title, []) if line["key"] in JUDGED):
                    form = MEASURES[line["key"]].metric.form
                    rows.append([f"{KINDS[kind].title}: {published['runs'].get(run, run)}", MEASURES[line["key"]].metric.label,
                                 number(line["first"], form), number(line["second"], form), with_interval(line["difference"], form, signed=True),
                                 f"{p_value(line['p'])} / {p_value(line['p_holm'])}", f"{line['difference']['n']:,}"])
        parts += [("text", text), ("table", ["", "metric", "baseline", "run", "difference", "p / p, Holm", "n"], rows)]
    return [*parts, ("picture", "recheck_same_answer.png", "one answer in two spellings: what each metric makes of it")]


def length_blocks(published: Mapping, recheck: Mapping) -> list[Block]:
    """The published metrics by words generated."""
    parts: list[Block] = [("heading", "By length of the answer")]
    for kind in QA_KINDS:
        runs = recheck["kinds"].get(kind, {}).get("runs", {})
        keys = [key for key in (*KINDS[kind].means.values(), "contained") if key not in ("bleu", "rouge_l")]
        rows, contrasts = [], []
        for run, name in names(published, runs).items():
            found = runs[run]["by_length"]
            for band in found["bands"]:
                low, high = band["words"]
                rows.append([name, f"{low} to {high}" if high < 1000 else f"{low} and more", f"{band['n']:,}",
                             *(with_interval(band["figures"].get(key), MEASURES[key].metric.form) for key in keys)])
            long = found["long_minus_short"].get("bert_f1")
            if long:
                contrasts.append(f"{name} {number(long['inside'][0])} against {number(long['outside'][0])}, "
                                 f"{with_interval(long['difference'], signed=True)}, p {p_value(long['p'])}")
        if rows:
            parts += [("text", f"{KINDS[kind].title}. BERT-F1 of answers of six words and more against three and fewer: {'; '.join(contrasts)} (Mann-Whitney)."),
                      ("table", ["", "words", "n", *(MEASURES[key].metric.label for key in keys)], rows)]
    return [*parts, ("picture", "recheck_by_length.png", "metrics by words generated, HaluEval QA with the faithfulness score")]


def forms_blocks(published: Mapping, recheck: Mapping) -> list[Block]:
    """What the metrics say where the texts themselves show whether the answer is right; what TruthfulQA's judge makes of texts that run on."""
    parts: list[Block] = [("heading", "Where the texts show who is right")]

    def figures(kind: str, runs: Mapping, shown: Mapping) -> list[list[str]]:
        return [[MEASURES[key].metric.label, *(with_interval(runs[run]["figures"].get(key), MEASURES[key].metric.form) for run in shown)] for key in KINDS[kind].forms]
    for kind in QA_KINDS:
        runs = recheck["kinds"].get(kind, {}).get("runs", {})
        shown = names(published, runs)
        rows = [[label, *(counted(runs[run]["forms"].get(key)) for run in shown)] for key, label in FORMS.items() if any(key in runs[run]["forms"] for run in shown)]
        if runs:
            parts.append(("table", [KINDS[kind].title, *shown.values()], rows + figures(kind, runs, shown)))
    runs = recheck["kinds"].get("truthfulqa", {}).get("runs", {})
    shown = names(published, runs)
    rows = figures("truthfulqa", runs, shown)
    for key in ("run_on", "cut", "ignorance"):
        rows.append([f"judged truthful: {MEASURES[key].metric.label}, less the others", *(split_cell(runs[run]["forms"].get(f"truthful_by_{key}")) for run in shown)])
    rows.append(["the judge's probability of yes or no together, mean (least)", *(mass_cell(runs[run]["forms"].get("yes_or_no_mass")) for run in shown)])
    if runs:
        parts += [("text", "TruthfulQA: answers were generated without a stop string and judged, for truth alone, with everything that came after."),
                  ("table", [KINDS["truthfulqa"].title, *shown.values()], rows)]
    return parts


def split_cell(found: Mapping | None) -> str:
    """Two groups of rows: both shares, the difference, its p."""
    if found is None:
        return "too few rows"
    (inside, n), (outside, m) = found["inside"], found["outside"]
    return f"{100 * inside:.1f} % of {n}, {100 * outside:.1f} % of {m}: {with_interval(found['difference'], 'share', signed=True)}, p {p_value(found['p'])}"


def mass_cell(found: Mapping | None) -> str:
    """".9999 (.98)"."""
    return f"{found['mean']:.4f} ({found['least']:.2f})" if found else "not stored"


def log_blocks(recheck: Mapping) -> list[Block]:
    """The training log of the latest model."""
    log = recheck.get("training_log")
    if not log:
        return []
    steps = log["rows"] - log["rows_of_zeros"]
    text = (f"{steps} optimizer steps and {log['rows_of_zeros']} row of zeros. DPO loss, mean of {log['per_steps']} steps at a time: "
            f"{', '.join(f'{value:.3f}' for value in log['dpo_loss'])}. The penalty on a falling chosen log-prob was at work in {log['hinge_active']} of {steps} logged "
            f"micro-batches and reached {log['hinge_max']:.2f}.")
    if log["loss_off_by"] < 1e-5:
        text += " The loss is the plain sum of DPO loss and penalty: the penalty stands outside the sigmoid, which is not the published DPOP."
    return [("heading", "The training log of the latest model"), ("text", text)]


def blocks(published: Mapping, recheck: Mapping) -> list[Block]:
    """The second half of the page."""
    return [*prompts_blocks(published, recheck), *same_answer_blocks(published, recheck), *length_blocks(published, recheck),
            *forms_blocks(published, recheck), *log_blocks(recheck)]


# ---- pictures ---------------------------------------------------------------------------------------------------------------

def draw_by_length(published: Mapping, recheck: Mapping, picture: Path) -> None:
    """Four panels over bands of words generated: how many answers, BERT-F1, judged hallucinated, and gold contained, one line per run."""
    plt = plots.pyplot()
    runs = recheck["kinds"].get("faithfulness", {}).get("runs", {})
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.3), layout="constrained")
    for (run, name), colour in zip(names(published, runs).items(), plots.SYSTEM_COLOURS[::2] + plots.SYSTEM_COLOURS[1::2]):
        bands = runs[run]["by_length"]["bands"]
        labels = [f"{low}-{high}" if high < 1000 else f"{low}+" for low, high in (band["words"] for band in bands)]
        axes[0].plot(labels, [band["n"] / runs[run]["n"] * 100 for band in bands], "o-", color=colour, label=name)
        for axis, key in zip(axes[1:], ("bert_f1", "flagged", "contained")):
            scale = 100 if MEASURES[key].metric.form == "share" else 1
            cells = [(label, band["figures"][key]) for label, band in zip(labels, bands) if key in band["figures"]]
            axis.plot([label for label, _ in cells], [scale * cell["value"] for _, cell in cells], "o-", color=colour)
            ends = [(label, cell) for label, cell in cells if cell["low"] is not None and cell["high"] is not None]
            axis.vlines([label for label, _ in ends], [scale * cell["low"] for _, cell in ends], [scale * cell["high"] for _, cell in ends], color=colour, alpha=0.5)
    for axis, title, unit in zip(axes, ("answers", "BERT-F1", "judged hallucinated", "gold answer contained"), ("% of answers", "mean", "%", "%")):
        axis.set(title=title, ylabel=unit, xlabel="words generated", ylim=(0, None))
    axes[0].legend()
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def draw_same_answer(published: Mapping, recheck: Mapping, picture: Path) -> None:
    """Per metric a line from the baseline's value to the run's, on questions where both gave one answer in two spellings."""
    plt = plots.pyplot()
    shown: Sequence = [(kind, run, line) for kind in QA_KINDS for run, found in recheck["kinds"].get(kind, {}).get("comparisons", {}).items()
                       for line in found.get("same_answer", []) if line["key"] in ("bert_f1", "flagged", "faithfulness")]
    figure, axis = plt.subplots(figsize=(9, 0.9 + 0.38 * max(1, len(shown))), layout="constrained")
    for place, (kind, run, line) in enumerate(shown):
        axis.plot([line["first"], line["second"]], [place, place], color=plots.GREY, linewidth=2)
        axis.plot(line["first"], place, "o", color=plots.BLUE, label="baseline" if not place else None)
        axis.plot(line["second"], place, "D", color=plots.RED, label="run" if not place else None)
    axis.set_yticks(range(len(shown)), [f"{MEASURES[line['key']].metric.label}, {published['runs'].get(run, run)} ({kind}, n = {line['difference']['n']:,})"
                                        for kind, run, line in shown])
    axis.invert_yaxis()
    axis.set(xlabel="value of the metric", title="The same answers, spelt differently", xlim=(0, 1))
    if shown:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    figure.savefig(picture, dpi=120)
    plt.close(figure)
