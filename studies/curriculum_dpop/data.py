"""Preference pairs of the study, from questions with gold answers or from the published files.

    python -m studies.curriculum_dpop.data --questions FILE ... [--articles FILE ...] --to FOLDER [--counts easy=5000,medium=10000] [--avoid FILE ...]
    python -m studies.curriculum_dpop.data ... --levels easy,medium,hard,hard_improved --model NAME --base-url URL [--nli FOLDER | --judge NAME]
    python -m studies.curriculum_dpop.data choose --from FOLDER --to FOLDER --counts easy=5000,medium=10000,hard=30000

Writes dpo_pairs_LEVEL.jsonl, one `rows.Row` a line in a shuffled order (so the first n rows are a sample), and, beside that folder, FOLDER.report.json: what was dropped
at which step, and what everything was made from. The levels ask about the same questions as far as there are pairs, so that they differ in their
rejected answers and in little else. Nothing depends on the process: the same files, seed and cached answers give the same bytes.
"""
import argparse
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, quantiles

from data.sources import Part, batched, content, hash_share, list_files, text_key
from data.store import write_json
from eval import llm_judge
from eval.chat_client import ChatClient
from eval.grounding import Entailment, LLMJudge
from runtime.checkpoint import git_commit, versions
from runtime.errors import UserError, check_folder, run_main
from studies.curriculum_dpop import hard, negatives
from studies.curriculum_dpop.entities import find, spacy_finder
from studies.curriculum_dpop.retrieval import BM25, Embeddings, attach, cut
from studies.curriculum_dpop.rows import ABSTENTIONS, LEVELS, Question, Row, file_of, flag_fabricated, read_rows, row_id, write_rows
from studies.curriculum_dpop.sources import KINDS, load_articles, load_questions, parts_of
from studies.curriculum_dpop.verify import Avoided, Key, by_key, context_fault, key_of, read_avoided, verify

RULES, WRITTEN = ("easy", "medium"), ("hard", "hard_improved")  # who makes a level's false answers: this program, or a language model
BLOCK = 256  # questions or pairs looked at before it is asked whether there are enough
EXAMPLES = 10
Check = Callable[..., tuple[list[Row], Counter]]


# ---- questions --------------------------------------------------------------------------------------------------------

def read_questions(a: argparse.Namespace, steps: dict) -> list[Question]:
    """The questions of all sources, with a context where there are articles; no two have one id. What was dropped goes into `steps`."""
    found: list[Question] = []
    for source in a.questions:
        some, steps[f"read {source}"] = load_questions(source, a.limit, a.split)
        ids = {q.id for q in found}  # two sources may both count from 1
        found += [replace(q, id=row_id(source, q.id)) if q.id in ids else q for q in some]
    steps["questions"] = Counter(read=len(found))
    if a.articles and any(not q.context for q in found):
        steps["articles"] = Counter()
        passages = cut(article for source in a.articles for article in load_articles(source, steps["articles"]))
        steps["articles"]["passages"] = len(passages)
        found = attach(found, (BM25 if a.retrieval == "bm25" else Embeddings)(passages), a.passages, a.context_words)
    return found


def usable(known: dict[Key, Question], avoided: Avoided, require_context: bool, counts: Counter) -> list[Question]:
    """The questions to make pairs of: what verification would drop whatever the answer is left out before anything is written for it."""
    kept = []
    for q in known.values():
        why = avoided.why(q.question) or context_fault(q, require_context)
        counts[why or ("used, answerable" if q.answerable else "used, unanswerable")] += 1
        if not why:
            kept.append(q)
    return kept


def order_of(item: Question | Row, seed: int) -> float:
    """Where a question and all of its pairs stand: one shuffled order for all levels."""
    return hash_share(text_key(row_id(*key_of(item))), seed)


# ---- pairs ------------------------------------------------------------------------------------------------------------

def gather(blocks: Iterator[list[Row]], wanted: int | None, check: Check, dropped: Counter) -> list[Row]:
    """The first `wanted` pairs (None = all) that pass, block by block: an LLM is asked for no more than is needed."""
    kept: list[Row] = []
    for block in blocks if wanted != 0 else ():
        good, bad = check(block)
        kept += good
        dropped.update(bad)
        if wanted is not None and len(kept) >= wanted:
            break
    return kept[:wanted]


def written(client: ChatClient, questions: Sequence[Question], level: str, wanted: int | None, a: argparse.Namespace, made: Counter) -> Iterator[list[Row]]:
    """The pairs that a model writes, block by block, few at a time where few are wanted; what happened is added to `made`."""
    for block in batched(questions, BLOCK if wanted is None else min(BLOCK, max(wanted // 4, 16))):
        rows, counts = hard.write(client, block, level, a.seed, a.tries)
        made.update(counts)
        yield rows


def build_level(level: str, wanted: int | None, questions: list[Question], abstaining: list[Row], client: ChatClient | None, check: Check, a: argparse.Namespace,
                steps: dict) -> list[Row]:
    """The verified pairs of one level: `wanted` of them, at most the share a.abstentions of which teach when to abstain. UserError when there are fewer."""
    made, dropped = steps.setdefault(f"{level}: made", Counter()), steps.setdefault(f"{level}: dropped", Counter())
    check = partial(check, seen=set())
    most = None if wanted is None else round(a.abstentions * wanted)
    abstentions = gather(batched([row for row in abstaining if row.level == level], BLOCK), most, check, dropped) if a.abstentions else []
    answerable = [q for q in questions if q.answerable]
    if level in WRITTEN:
        blocks = written(client, answerable, level, wanted, a, made)
    else:
        blocks = batched(getattr(negatives, level)(answerable, a.seed, made, a.finder), BLOCK)
    rows = gather(blocks, None if wanted is None else wanted - len(abstentions), check, dropped)
    if wanted is None:
        abstentions = abstentions[:int(len(rows) * a.abstentions / (1 - a.abstentions))]
    rows += abstentions
    if not rows or len(rows) < (wanted or 0):
        raise UserError(f"{level}: {wanted or 1:,} pairs wanted, {len(rows):,} could be made of {len(answerable):,} answerable questions "
                        f"(dropped: {told(dropped)}); ask for fewer with --counts, or give more questions.")
    return rows


def build(a: argparse.Namespace) -> None:
    """All levels that were asked for, from questions to files."""
    counts, steps = counts_of(a.counts), {}
    levels = a.levels.split(",") if a.levels else list(counts) or list(RULES)
    if unknown := {*levels, *counts} - {*LEVELS} or {*counts} - {*levels}:
        raise UserError(f"there is no level {', '.join(sorted(unknown))} here: the levels are {', '.join(LEVELS)}, and --counts names only those of --levels.")
    if not 0 <= a.abstentions < 1 or not 0 <= a.needless <= 1:
        raise UserError("--abstentions is a share of the pairs, below 1, and --needless one of the questions.")
    if a.limit < 0 or min(a.passages, a.context_words, a.tries) < 1 or not 0 <= a.temperature < math.inf:
        raise UserError("--limit and --temperature must be 0 or more, --passages, --context-words and --tries at least 1.")
    check_place(a.to, levels)
    client = writer_from(a) if {*levels} & {*WRITTEN} else None
    judge = judge_from(a)
    a.finder = spacy_finder(a.spacy) if a.spacy else find
    avoided = read_avoided(a.avoid)
    read = read_questions(a, steps)
    known = by_key(read)
    steps["questions"]["the same question and context twice"] = len(read) - len(known)
    questions = sorted(usable(known, avoided, not a.any_context, steps["questions"]), key=lambda q: order_of(q, a.seed))
    if not questions:
        raise UserError(f"there is no question to make pairs of ({told(steps['questions'])}).")
    check = partial(verify, questions=known, avoided=avoided, require_context=not a.any_context, judge=judge)
    steps["abstention pairs: made"] = Counter()
    abstaining = negatives.abstentions(questions, a.seed, steps["abstention pairs: made"], a.finder, a.needless) if a.abstentions else []
    made = {level: build_level(level, counts.get(level), questions, abstaining, client, check, a, steps) for level in levels}
    if a.fabricated:
        add_fabricated(made, partial(check, fabricated=True, judge=None), steps)
    sources = {"questions": fingerprints(a.questions, a.split), "articles": fingerprints(a.articles, ""), "avoid": fingerprints(a.avoid, None)}
    llm = {name: used.totals() for name, used in (("writer", client), ("judge", getattr(judge, "client", None))) if used}
    facts = {"prompt_version": hard.PROMPT_VERSION, "writer": client.model, "temperature": client.temperature, "tries": a.tries} if client else {}
    finish(a, made, steps, sources, facts | {"judge": judge.facts if judge else None, "totals": llm})


def add_fabricated(made: dict[str, list[Row]], check: Check, steps: dict) -> None:
    """The published system's pairs of two false answers, flagged, beside the others in the levels they belong to."""
    rows = negatives.fake_over_fake([row for some in made.values() for row in some])
    for level, some in made.items():
        good, steps[f"{level}: made-up answers preferred, dropped"] = check([row for row in rows if row.level == level], seen=set())
        some += good


# ---- the published files ----------------------------------------------------------------------------------------------

def choose(a: argparse.Namespace) -> None:
    """So many pairs of each level from a folder of pair files (the published ones, or ours), without fabricated chosen answers unless they are wanted.

    What is fabricated is found over all files together: the chosen answer of one file is the rejected one of another.
    """
    counts, steps = counts_of(a.counts), {}
    paths = {level: path for level in LEVELS for path in (file_of(a.source, level), file_of(a.source, level).with_suffix(".jsonl.gz")) if path.is_file()}
    missing = [file_of(Path(), level).name for level in counts or LEVELS if level not in paths]
    if missing and (counts or not paths):
        raise UserError(f"{' and '.join(missing)}: not there in {a.source}.")
    if a.to.resolve() == a.source.resolve():
        raise UserError("--to is the folder that is read: name another one.")
    check_place(a.to, list(counts or paths))
    avoided, chosen = read_avoided(a.avoid), {}
    every = flag_fabricated([row for level, path in paths.items() for row in read_rows(path, level)])
    for level in counts or paths:
        rows = sorted((row for row in every if row.level == level), key=lambda row: (order_of(row, a.seed), row.id))
        steps[f"{level}: read"] = Counter({"pairs": len(rows), "with a chosen answer that is made up": sum(not row.chosen_is_true for row in rows)})
        good, dropped = chosen_from(rows, avoided, a.keep_fabricated)
        wanted = counts.get(level, len(good))
        if not good or wanted > len(good):
            raise UserError(f"{level}: {wanted:,} pairs wanted, {len(good):,} of {len(rows):,} can be used (dropped: {told(dropped)}); "
                            "ask for fewer with --counts.")
        steps[f"{level}: dropped"], chosen[level] = dropped, good[:wanted]
    finish(a, chosen, steps, {"pairs": fingerprints([str(path) for path in paths.values()], None), "avoid": fingerprints(a.avoid, None)}, {})


def chosen_from(rows: Sequence[Row], avoided: Avoided, fabricated: bool) -> tuple[list[Row], Counter]:
    """(the rows that may be used, how many may not for which reason)."""
    kept, dropped, seen = [], Counter(), set()
    for row in rows:
        pair = (row.question, row.context, row.chosen, row.rejected)
        why = (avoided.why(row.question) or ("the chosen answer is made up" if not (row.chosen_is_true or fabricated) else "")
               or ("the same pair twice" if pair in seen else ""))
        seen.add(pair)
        if why:
            dropped[why] += 1
        else:
            kept.append(row)
    return kept, dropped


def told(dropped: Counter) -> str:
    """The three most frequent reasons, for messages."""
    return ", ".join(f"{reason}: {n:,}" for reason, n in dropped.most_common(3)) or "none"


# ---- files ------------------------------------------------------------------------------------------------------------

def check_place(folder: Path, levels: Sequence[str]) -> None:
    """UserError for no folder, and where pairs of other levels would lie beside those that are written, and in no report."""
    check_folder("--to", folder)
    if not folder.name:
        raise UserError(f"--to: name a folder; the report goes beside it, and beside '{folder}' there is no place.")
    if left := [file_of(folder, level).name for level in LEVELS if level not in levels and file_of(folder, level).exists()]:
        raise UserError(f"{folder} holds {' and '.join(left)} of another run: name another folder with --to, or delete them.")


def fingerprints(sources: Sequence[str], split: str | None) -> dict[str, dict]:
    """sha256 and rows of every file or Hub split; split None: of files of evaluation sets, which no split keeps away."""
    def parts(source: str) -> list[Part]:
        return list_files(source, KINDS, "--avoid") if split is None else parts_of(source, KINDS, split)
    return {part.name: {"sha256": (found := content(part)).sha256, "rows": found.rows} for source in sources for part in parts(source)}


def summary(rows: Sequence[Row]) -> dict:
    """What a learner of these pairs could go by: lengths, difficulty, where they come from."""
    answers = [row for row in rows if not {row.chosen, row.rejected} & {*ABSTENTIONS}] or rows  # an abstention has the length it has
    words = {side: [len(getattr(row, side).split()) for row in answers] for side in ("chosen", "rejected")}
    known = [row.difficulty for row in rows if row.difficulty is not None]
    return {"rows": len(rows), "abstentions": sum(row.chosen in ABSTENTIONS for row in rows), "chosen is made up": sum(not row.chosen_is_true for row in rows),
            "mean words": {side: round(fmean(values), 2) for side, values in words.items()},
            "rejected is longer": round(fmean(b > a for a, b in zip(*words.values())), 4),
            "rejected is shorter": round(fmean(b < a for a, b in zip(*words.values())), 4),
            "difficulty quartiles": [round(value, 4) for value in quantiles(known, n=4)] if len(known) > 1 else None,
            "poisons": dict(sorted(Counter(row.poison_type for row in rows).items())), "sources": dict(sorted(Counter(row.source for row in rows).items()))}


def finish(a: argparse.Namespace, levels: dict[str, list[Row]], steps: dict[str, Counter], sources: dict, more: dict) -> None:
    """Write the pairs and the report, and print what a reader wants to know first."""
    private = ("base_url", "judge_url")  # an address may hold a key
    settings = {name: value for name, value in vars(a).items() if isinstance(value, str | int | float | bool | list) and name not in private}
    report = {"command": "choose" if a.command is choose else "build", "settings": settings, "git_commit": git_commit(), "versions": versions(),
              "sources": sources, "steps": {name: dict(sorted(step.items())) for name, step in steps.items()}, **more, "levels": {}}
    print(f"{'level':<14}{'pairs':>8}{'abstain':>9}{'made up':>9}{'dropped':>9}{'words':>12}{'difficulty':>12}")
    for level, rows in levels.items():
        rows = sorted(rows, key=lambda row: (hash_share(text_key(row.id), a.seed), row.id))
        path = file_of(a.to, level)
        write_rows(path, rows)
        found = summary(rows) | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "examples": [vars(row) for row in rows[:EXAMPLES]]}
        report["levels"][level] = found
        words, difficulty = found["mean words"], found["difficulty quartiles"]
        print(f"{level:<14}{len(rows):>8,}{found['abstentions']:>9,}{found['chosen is made up']:>9,}{sum(steps[f'{level}: dropped'].values()):>9,}"
              f"{words['chosen']:>6.1f}{words['rejected']:>6.1f}{f'{difficulty[1]:.2f}' if difficulty else '–':>12}")
    path = a.to.with_name(a.to.name + ".report.json")  # beside the folder: training reads every file in it
    write_json(path, report)
    print(f"words: mean of chosen and rejected, without abstentions; difficulty: median likeness of the two, 0 to 1. Why pairs were dropped: {path}")


# ---- command line -----------------------------------------------------------------------------------------------------

def counts_of(text: str) -> dict[str, int]:
    """easy=5000,hard=30000 -> {"easy": 5000, "hard": 30000}. UserError for anything else."""
    counts = {}
    for item in filter(None, text.split(",")):
        level, _, number = item.partition("=")
        if level not in LEVELS or not number.isdecimal() or not int(number) or level in counts:
            raise UserError(f"--counts: '{item}' is not LEVEL=NUMBER, such as easy=5000; the levels are {', '.join(LEVELS)}.")
        counts[level] = int(number)
    return counts


def writer_from(a: argparse.Namespace) -> ChatClient:
    """The client that writes the levels hard and hard_improved."""
    if not a.model:
        raise UserError("the levels hard and hard_improved are written by a language model: name it with --model (and its server with --base-url).")
    client = llm_judge.client_from(a, a.cache or a.to.with_name(a.to.name + ".llm_cache"))
    client.temperature, client.seed = a.temperature, None if client.seed is None else a.seed
    return client


def judge_from(a: argparse.Namespace) -> Entailment | LLMJudge | None:
    """The judge that reads what passed the rules, if one was named."""
    if a.nli and a.judge:
        raise UserError("--nli and --judge are two judges: name one.")
    if not a.judge:
        return Entailment(a.nli) if a.nli else None
    other = argparse.Namespace(**vars(a) | {"model": a.judge, "base_url": a.judge_url or a.base_url})
    return LLMJudge(llm_judge.client_from(other, a.cache or a.to.with_name(a.to.name + ".llm_cache")))


def add_build_arguments(a: argparse.ArgumentParser) -> None:
    a.add_argument("--questions", nargs="+", action="extend", required=True, metavar="SOURCE", help="files, folders or hub:OWNER/NAME (sources.py lists the layouts)")
    a.add_argument("--split", default="", choices=("", "train", "val"), help="read only files of this name; default: all but test")
    a.add_argument("--limit", type=int, default=0, help="questions of each source at most; 0 = all")
    a.add_argument("--articles", nargs="+", action="extend", default=[], metavar="SOURCE", help="where to look for a context of questions that come without one")
    a.add_argument("--retrieval", default="bm25", choices=("bm25", "embeddings"), help="embeddings: FAISS and a cross-encoder, which need two more packages")
    a.add_argument("--passages", type=int, default=5, help="passages in such a context")
    a.add_argument("--context-words", type=int, default=400, help="words in such a context at most")
    a.add_argument("--levels", default="", help=f"of {','.join(LEVELS)}; default: those in --counts, else {','.join(RULES)}")
    a.add_argument("--abstentions", type=float, default=0.1, help="share of the easy and medium pairs, at most, that teach when to abstain")
    a.add_argument("--needless", type=float, default=0.0, help="share of the answerable questions that also get a pair against a needless abstention")
    a.add_argument("--any-context", action="store_true", help="keep questions whose gold answer their context does not hold")
    a.add_argument("--fabricated", action="store_true", help="add the published pairs of two false answers, flagged; penalised objectives refuse them")
    a.add_argument("--spacy", default="", metavar="PIPELINE", help="find names with spaCy instead of rules, such as en_core_web_sm")
    a.add_argument("--nli", type=Path, help="judge: folder of an entailment model")
    a.add_argument("--judge", default="", metavar="MODEL", help="judge: an LLM; better not the one that wrote the answers")
    a.add_argument("--judge-url", default="", help="judge: its server, where it is another one than --base-url")
    llm_judge.add_arguments(a)
    a.add_argument("--temperature", type=float, default=0.7, help="llm: of the model that writes; a judge has 0")
    a.add_argument("--tries", type=int, default=3, help="llm: how often a question is asked before it goes without a pair")
    a.add_argument("--cache", type=Path, help="llm: folder of the answers; default: beside --to")
    a.set_defaults(command=build)


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(prog="python -m studies.curriculum_dpop.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    if argv[:1] == ["choose"]:
        argv = argv[1:]
        a.add_argument("--from", dest="source", type=Path, required=True, help="folder with dpo_pairs_LEVEL.jsonl[.gz]")
        a.add_argument("--keep-fabricated", action="store_true", help="keep pairs whose chosen answer is a rejected one elsewhere, flagged")
        a.set_defaults(command=choose)
    else:
        add_build_arguments(a)
    a.add_argument("--to", type=Path, required=True, help="folder to write to")
    a.add_argument("--counts", default="", help="pairs of each level, such as easy=5000,medium=10000,hard=30000; default: all there are")
    a.add_argument("--avoid", nargs="+", action="extend", default=[], metavar="FILE", help="evaluation sets: no pair asks one of their questions")
    a.add_argument("--seed", type=int, default=0)
    a = a.parse_args(argv)
    a.command(a)


if __name__ == "__main__":
    run_main(main)
