"""Which pairs may be used: the answer that is preferred is right, the other is wrong, and neither gives itself away by its length.

The rules on strings always run. A judge of eval/grounding.py (an entailment model or an LLM) may read what passed them: strings cannot tell that
an answer without the gold words is right all the same, or that a sentence around them is false.
"""
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from data.sources import PAIR_KINDS, list_files, parse_object, read_table
from eval.grounding import Entailment, LLMJudge, support
from eval.qa_metrics import contains, normalise
from eval.quality import ngrams
from runtime.errors import UserError
from studies.curriculum_dpop.entities import is_alias
from studies.curriculum_dpop.rows import ABSTENTIONS, Question, Row

RATIO = 2.0  # words of the longer answer over words of the shorter
SPARE = 2  # words that may differ whatever the ratio: "Rome" and "New York City" are both just names
GRAM = 8  # words in a row that a question may not share with an evaluation set
THRESHOLD = 0.5  # support from which a judge says yes
COLUMNS = ("question", "Question", "user_query", "prompt")  # what an evaluation set calls a question
Key = tuple[str, str]  # (question, context)


def key_of(item: Question | Row) -> Key:
    """What makes a question: the same words over another context ask something else."""
    return item.question, item.context


# ---- one pair ---------------------------------------------------------------------------------------------------------

def like_length(chosen: str, rejected: str) -> bool:
    """True where neither answer has more than twice the other's words, or the numbers of words differ by at most two."""
    short, long = sorted(len(text.split()) for text in (chosen, rejected))
    return long <= RATIO * short or long - short <= SPARE


def fault(row: Row, answers: Sequence[str], fabricated: bool = False) -> str:
    """Why a pair cannot be used, by its strings alone; "" where it can. `answers`: the gold answers, none where the context holds none.

    fabricated: rows that say of themselves that their chosen answer is false may pass.
    """
    chosen, rejected = normalise(row.chosen), normalise(row.rejected)
    if not all(any(map(str.isalnum, text)) for text in (row.chosen, row.rejected)):
        return "an empty answer"
    if chosen == rejected:
        return "both answers are the same"
    if not row.chosen_is_true and not fabricated:
        return "the chosen answer is made up"
    if row.chosen_is_true and not (contains(row.chosen, answers) if answers else row.chosen in ABSTENTIONS):
        return "the chosen answer is not the gold answer"
    if row.rejected in ABSTENTIONS and not answers:
        return "the rejected answer is right"
    if answers and is_alias(row.rejected, answers):
        return "the rejected answer may be right"
    if f" {rejected} " in f" {chosen} " or f" {chosen} " in f" {rejected} ":
        return "one answer contains the other"
    if not {row.chosen, row.rejected} & {*ABSTENTIONS} and not like_length(row.chosen, row.rejected):  # those sentences have the length they have
        return "lengths differ too much"
    return ""


def context_fault(question: Question, require_context: bool) -> str:
    """Why no answer to a question can be checked; "" where it can, where none is there to be found, or where it is not required."""
    return "the context does not hold the answer" if require_context and question.answerable and not question.answer_in_context else ""


# ---- evaluation sets --------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Avoided:
    """The questions of evaluation sets: normalised, and as runs of GRAM words."""
    questions: frozenset[str] = frozenset()
    grams: frozenset[tuple[str, ...]] = frozenset()

    def why(self, question: str) -> str:
        """How a question is found in an evaluation set; "" where it is not."""
        text = normalise(question)
        if text in self.questions:
            return "the question of an evaluation set"
        return "" if self.grams.isdisjoint(ngrams(text.split(), GRAM)) else f"{GRAM} words in a row of an evaluation set's question"


def read_avoided(paths: Sequence[str]) -> Avoided:
    """The questions in files of evaluation sets (TruthfulQA's .csv and mc_task.json, HaluEval's .jsonl, each also .gz).

    UserError for a file that cannot be read, or a row without a question: a check against nothing would pass everything.
    """
    texts = []
    for part in list_files(",".join(paths), (*PAIR_KINDS, ".csv"), "--avoid") if paths else ():
        try:
            cells = [parse_object(row) for _, row in read_table(part)]
        except ValueError as error:
            raise UserError(f"--avoid: {part.name}: {error}.") from None
        found = [next((row[name] for name in COLUMNS if isinstance(row.get(name), str)), None) for row in cells]
        if not found or None in found:
            raise UserError(f"--avoid: {part.name} has {'a row without' if found else 'no'} {' or '.join(COLUMNS)}.")
        texts += [normalise(text) for text in found]
    return Avoided(frozenset(texts), frozenset(gram for text in texts for gram in ngrams(text.split(), GRAM)))


# ---- many pairs -------------------------------------------------------------------------------------------------------

def by_key(questions: Iterable[Question]) -> dict[Key, Question]:
    """The questions by their words and context. Of several the first stays, with the answers of all: what any of them calls right is right."""
    found: dict[Key, Question] = {}
    for q in questions:
        first = found.setdefault(key_of(q), q)
        if first is not q:
            found[key_of(q)] = replace(first, answers=tuple(dict.fromkeys(first.answers + q.answers)),
                                       answer_in_context=first.answer_in_context or q.answer_in_context)
    return found


def verify(rows: Sequence[Row], questions: Mapping[Key, Question], avoided: Avoided = Avoided(), require_context: bool = True, fabricated: bool = False,
           judge: Entailment | LLMJudge | None = None, seen: set | None = None) -> tuple[list[Row], Counter]:
    """(the rows that pass, in their order; how many were dropped for which reason). Each row is counted under the first reason that is found.

    questions: `by_key`. require_context: a gold answer that the context does not hold teaches to answer beyond the context.
    judge: reads what passes the rest; a row stays where it supports the chosen answer and not the rejected one. What it could not judge is dropped.
    seen: one set for all calls about one level. Of rows with the same question and context the first stays; one that is there to teach when to
    abstain, or whose chosen answer is made up, may stand beside it. ValueError for a row whose question is not among `questions`.
    """
    kept, dropped, seen = [], Counter(), set() if seen is None else seen
    for row in rows:
        if key_of(row) not in questions:
            raise ValueError(f"row {row.id}: its question is not among the questions")
        q = questions[key_of(row)]
        pair = tuple(map(normalise, (row.question, row.chosen, row.rejected)))
        kind = "" if row.chosen_is_true and row.rejected not in ABSTENTIONS else row.poison_type
        asked = (*map(normalise, key_of(row)), kind, "asked")
        why = (avoided.why(row.question) or fault(row, q.answers, fabricated)
               or context_fault(q, require_context) or ("the same pair twice" if pair in seen else "the same question twice" if asked in seen else ""))
        if why:
            dropped[why] += 1
        else:
            kept.append(row)
            seen |= {pair, asked}
    return (kept if judge is None else _judged(kept, questions, judge, dropped)), dropped


def _judged(rows: list[Row], questions: Mapping[Key, Question], judge: Entailment | LLMJudge, dropped: Counter) -> list[Row]:
    """The rows whose chosen answer the judge finds supported by the context, where it claims something and to be true, and whose rejected one not."""
    def found(some: list[Row], side: str):
        return support(judge, [row.question for row in some], [row.context for row in some], [getattr(row, side) for row in some])
    claims = [i for i, row in enumerate(rows) if row.chosen_is_true and questions[key_of(row)].answerable]
    chosen = dict(zip(claims, found([rows[i] for i in claims], "chosen")))
    kept = []
    for i, (row, wrong) in enumerate(zip(rows, found(rows, "rejected"))):
        right = chosen.get(i, 1.0)
        if right != right or wrong != wrong:  # NaN
            dropped["not judged"] += 1
        elif right < THRESHOLD:
            dropped["judge: the chosen answer is not supported"] += 1
        elif wrong >= THRESHOLD:
            dropped["judge: the rejected answer is supported"] += 1
        else:
            kept.append(row)
    return kept
