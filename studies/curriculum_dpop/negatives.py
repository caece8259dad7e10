"""False answers made without a model: another question's answer (easy), one entity, number or date swapped (medium), made-up ones where none exists.

    counts = Counter()
    rows = easy(questions, 0, counts) + medium(questions, 0, counts) + abstentions(questions, 0, counts)

Each question draws from a random stream of its own, seeded by (seed, level, question id), and what is drawn is a point on a ring on which every
candidate stands at a place of its own (consistent hashing, Karger et al. 1997). So a negative depends on no other question's draws, on no order
and on no process. One more question changes another's negative only where its answer stands nearest behind a point that the other drew, in
a ring of n candidates one draw in n; or where it makes a candidate more frequent, a sort of name large enough for a pool of its own
(OWN_POOL), or `latest_year` later.
"""
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random

from data.sources import hash_share, text_key
from eval.qa_metrics import normalise
from runtime.errors import UserError
from studies.curriculum_dpop.entities import NAMES, PLACES, Finder, asked, choice, find, is_alias, name_type
from studies.curriculum_dpop.quantities import NUMERIC, Span, amount, near, pick
from studies.curriculum_dpop.rows import ABSTENTIONS, Question, Row, row_id

BAND = 0.2  # an easy negative's words differ from the true answer's by at most this share, or by one
DRAWS = 48  # before a question is given up
CHOICES = 12  # names drawn at a time, the most similar first
POINTS = 8  # of every candidate on its ring
OWN_POOL = 8  # names asked for by one noun ("city") form a pool of their own from this many on
# Bounds: "more than 80" implies "more than 70", so the swap must go upwards; the question may hold the bound ("more than how many")
UPWARDS = re.compile(r"(?:\b(?:than|over|least|above|after|since|exceed\w*|minimum of) ?)$", re.IGNORECASE)
DOWNWARDS = re.compile(r"(?:\b(?:less than|fewer than|under|below|most|up to|before|until|by|maximum of) ?)$", re.IGNORECASE)
NEGATION = re.compile(r"\b(?:no|not|never|nothing|nobody|none|neither|nor|few|without|cannot)\b|n['’]t\b", re.IGNORECASE)
WITH_ARTICLE = re.compile(r"(?:United|Netherlands|UK|US|USA|U\.S\.|Soviet|Philippines|Czech)(?!\w)")  # "in the Netherlands", "in Norway"
POISON = {kind: "number_swap" for kind in NUMERIC} | {"date": "date_swap", "year": "date_swap", "weekday": "date_swap", "month": "date_swap"}


# ---- pools ------------------------------------------------------------------------------------------------------------

class Ring:
    """Different items, each at POINTS in [0, 1) that depend on its text alone; `draw` takes the first one at or behind a random point."""

    def __init__(self, items: Iterable[str]) -> None:
        self.distinct = set(items)
        self.items = sorted((hash_share(text_key(item), point), item) for item in self.distinct for point in range(POINTS))

    def __len__(self) -> int:
        return len(self.distinct)

    def draw(self, rng: Random) -> str:
        """An item, about evenly: the gaps between points are uneven, an item's POINTS gaps together less so. One random number is used."""
        return self.items[bisect_left(self.items, (rng.random(),)) % len(self.items)][1]


@dataclass(frozen=True)
class Pools:
    """What negatives are drawn from. Everything here is the same for any order of the questions."""
    answers: dict[int, Ring]  # by number of words
    kinds: dict[str, set[str]]  # of an answer: its type, by every question that has it
    names: dict[tuple[str, str], Ring]  # by (type, sort); sort "" holds all of a type
    frequency: Counter[str]  # answers that a name stands in
    spans: dict[str, list[Span]]  # of the first answer, by question id
    golds: dict[str, set[str]]  # all answers to the same words, whichever question has them
    latest_year: int


def kind_of(question: Question, spans: Sequence[Span]) -> str:
    """The type of a question's first answer: of the one thing it consists of, else "yes/no", "phrase" or "sentence"."""
    answer = question.answers[0].strip()
    if len(spans) == 1 and 2 * len(spans[0].text) >= len(answer):
        return spans[0].type
    if normalise(answer) in ("yes", "no"):
        return "yes/no"
    return "sentence" if len(answer.split()) > 6 else "phrase"


def make_pools(questions: Sequence[Question], finder: Finder = find) -> Pools:
    """The pools of all questions' first answers. UserError when two questions have one id: their streams would be the same."""
    twice = [name for name, n in Counter(q.id for q in questions).items() if n > 1]
    if twice:
        raise UserError(f"{len(twice)} question ids occur more than once ('{twice[0]}' is one): ids must tell questions apart.")
    answers, names, kinds, golds = defaultdict(list), defaultdict(list), defaultdict(set), defaultdict(set)
    frequency, spans, years = Counter(), {}, [0]
    for q in questions:
        golds[normalise(q.question)].update(q.answers)
        if not q.answerable:
            continue
        spans[q.id] = finder(q.answers[0], q.question, q.context)
        answers[len(q.answers[0].split())].append(q.answers[0].strip())
        kinds[q.answers[0].strip()].add(kind_of(q, spans[q.id]))
        for span in spans[q.id]:
            if _example(span):
                names[span.type, ""].append(span.text)
                names[span.type, span.sort].append(span.text)
            if span.type in ("year", "date"):
                years.append(int(amount(span.text)))
        frequency.update({span.text for span in spans[q.id]})
    rings = {key: Ring(items) for key, items in names.items()}
    return Pools({n: Ring(items) for n, items in answers.items()}, dict(kinds), rings, frequency, spans, dict(golds), max(years) or 2000)


def _example(span: Span) -> bool:
    """True for a name that may stand for another of its type: not one that a question typed against the name's own words, no half quotation."""
    fits = span.type not in NAMES or name_type(span.text) in ("name", span.type) and not (span.type == "person" and span.text.startswith("The "))
    return fits and span.text.count('"') % 2 == 0


def stream(seed: int, level: str, question: Question) -> Random:
    """The question's own random numbers: the same in every process, whatever PYTHONHASHSEED says."""
    return Random(f"{seed}\x1f{level}\x1f{question.id}")


def golds_of(question: Question, pools: Pools) -> list[str]:
    """Everything that answers the question's words, aliases and the answers of its repetitions included."""
    return sorted(pools.golds[normalise(question.question)] | set(question.answers))


def likeness(row: Row) -> float:
    """1 - edit distance / longer answer, over words, single digits and punctuation marks: 0 nothing shared, towards 1 hard to tell apart.

    What can be known without a model: "1994" for "1997" is .75, "Paris" for "Rome" 0. `train_dpo.py --dpo.difficulty=edit` is the same measure
    in the model's own tokens; `--dpo.difficulty=margin` asks the reference how much likelier per token it finds the rejected answer, the only one
    of the three that knows a plausible name from an absurd one. Needs rapidfuzz.
    """
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError:
        raise UserError("measured difficulty needs rapidfuzz: pip install rapidfuzz") from None
    return round(Levenshtein.normalized_similarity(_pieces(row.chosen), _pieces(row.rejected)), 4)


def _pieces(text: str) -> list[str]:
    return "".join(c if c.isalpha() or c in "'’" else f" {c} " for c in text).split()


def make_row(question: Question, chosen: str, rejected: str, level: str, poison: str) -> Row:
    """A pair with its difficulty measured."""
    row = Row(row_id(question.id, level, chosen, rejected), question.question, question.context, chosen, rejected, level, poison, question.source)
    return replace(row, difficulty=likeness(row))


# ---- easy -------------------------------------------------------------------------------------------------------------

def in_band(chosen: int, rejected: int) -> bool:
    """True where an easy negative has about as many words as the true answer."""
    return abs(chosen - rejected) <= max(1, BAND * chosen)


def easy(questions: Sequence[Question], seed: int, counts: Counter[str] | None = None, finder: Finder = find) -> list[Row]:
    """Pairs whose rejected answer is another question's first answer; what could not be made is counted in `counts` by reason.

    It has as many words as the true one (a BAND around it in half of the later draws), is no alias of any gold answer, stands neither in
    the question nor in the context, and is of another type unless all of the first half of DRAWS were of the same.
    """
    pools, counts = make_pools(questions, finder), Counter() if counts is None else counts
    rows = []
    for q in questions:
        if not q.answerable:
            continue
        made = _other_answer(q, pools, stream(seed, "easy", q))
        counts["easy: made" if made else "easy: no answer of this length fits"] += 1
        if made:
            rows.append(make_row(q, q.answers[0], made, "easy", "other_answer"))
    return rows


def _other_answer(q: Question, pools: Pools, rng: Random) -> str:
    length, golds = len(q.answers[0].split()), golds_of(q, pools)
    near_lengths = sorted((n for n in pools.answers if n != length and in_band(length, n)), key=lambda n: (abs(n - length), n))
    own, around = pools.kinds[q.answers[0].strip()], f" {normalise(q.question)} {normalise(q.context)} "
    for attempt in range(DRAWS):
        wide = near_lengths and attempt >= DRAWS // 4 and attempt % 2
        candidate = pools.answers[near_lengths[attempt // 2 % len(near_lengths)] if wide else length].draw(rng)
        if attempt < DRAWS // 2 and own & pools.kinds[candidate]:
            continue
        if _clean(candidate, q.answers[0]) and f" {normalise(candidate)} " not in around and not is_alias(candidate, golds):
            return candidate
    return ""


def _clean(candidate: str, chosen: str) -> bool:
    """True for an answer that no stray mark gives away: quotes in pairs, no comma at the end, a full stop where the true one has one."""
    return bool(normalise(candidate)) and candidate.count('"') % 2 == 0 and candidate[-1] not in ",;:" and candidate.endswith(".") == chosen.strip().endswith(".")


# ---- medium -----------------------------------------------------------------------------------------------------------

def medium(questions: Sequence[Question], seed: int, counts: Counter[str] | None = None, finder: Finder = find) -> list[Row]:
    """Pairs whose rejected answer is the true one with exactly one entity, number or date replaced by another of its type and form.

    The rest stays byte for byte. A thing that the question does not name is preferred, for that is what was asked. What gives no pair is counted:
    an answer without anything to swap ("yes", "film director"), a negation (of "91 is not a prime" most swaps are true as well), and one for which
    nothing fits. That a swap in a general statement makes it false ("French people like cheese") no rule can promise.
    """
    pools, counts = make_pools(questions, finder), Counter() if counts is None else counts
    rows = []
    for q in questions:
        if not q.answerable:
            continue
        rng, answer, spans = stream(seed, "medium", q), q.answers[0], pools.spans[q.id]
        if spans and kind_of(q, spans) == "sentence" and NEGATION.search(answer):
            counts["medium: the answer is a negation"] += 1
            continue
        order = sorted(spans, key=lambda span: (span.text in q.question, rng.random()))
        made = next(((span, text) for span in order if (text := _swapped(answer, span, q, pools, rng))), None)
        counts["medium: made" if made else "medium: nothing fits" if spans else "medium: no name, number or date in the answer"] += 1
        if made:
            rows.append(make_row(q, answer, made[1], "medium", POISON.get(made[0].type, "entity_swap")))
    return rows


def _swapped(answer: str, span: Span, q: Question, pools: Pools, rng: Random) -> str:
    """The answer with `span` replaced, or "" when nothing fits. Where the question offers two names, the other one comes first."""
    before, after, golds = answer[:span.start], answer[span.end:], golds_of(q, pools)
    other = choice(q.question, span.text)
    for attempt in range(DRAWS // CHOICES):
        for new in [other] if other and not attempt else _candidates(span, q, pools, rng):
            text = before + new + after
            if span.type in NUMERIC and not _beyond(before, span.text, new, q.question):
                continue
            if new != span.text and _reads_well(before, span.text, new, after) and not is_alias(new, (span.text, *golds)) and not is_alias(text, golds):
                return text
    return ""


def _candidates(span: Span, q: Question, pools: Pools, rng: Random) -> list[str]:
    """CHOICES replacements of one type: numbers and dates as they come, names the most similar in form and frequency first.

    Of a name that nothing types, only what other questions ask for by the same noun.
    """
    if span.type in NUMERIC:
        return [new for _ in range(CHOICES) if (new := near(span, rng, pools.latest_year))]
    own = pools.names.get((span.type, span.sort)) if span.sort else None
    ring = own if own and len(own) >= OWN_POOL else pools.names.get((span.type, "")) if span.type != "name" else None
    drawn = {ring.draw(rng) for _ in range(CHOICES)} if ring else ()
    asking = f" {normalise(q.question)} "
    if span.type == "nationality":  # "Germans" and "German"
        drawn = {new for new in drawn if new.endswith("s") == span.text.endswith("s")}
    return sorted((new for new in drawn if f" {normalise(new)} " not in asking), key=lambda new: (_unlike(span.text, new, pools.frequency), new))


def _unlike(a: str, b: str, frequency: Counter[str]) -> float:
    """How far two names differ in form: words, letters, the marks in them, and how often they are an answer."""
    marks = sum((mark in a) != (mark in b) for mark in ",.\"&(") + (a[0].isdigit() != b[0].isdigit()) + (a.startswith("The ") != b.startswith("The ")) + (a.isupper() != b.isupper())
    ratio = max(frequency[a], 1) / max(frequency[b], 1)
    return abs(len(a.split()) - len(b.split())) + abs(len(a) - len(b)) / 5 + marks + 0.5 * (max(ratio, 1 / ratio) > 3)


def _beyond(before: str, old: str, new: str, question: str) -> bool:
    """False where a bound ("over 80", "more than how many") makes the new number follow from the old one."""
    asking = re.split(r"\b(?:how many|how much|what|which)\b", question, maxsplit=1, flags=re.IGNORECASE)[0] if not before.strip() else ""
    for place in (before.rstrip(), asking.rstrip()):
        down = DOWNWARDS.search(place)
        if down or UPWARDS.search(place):
            was, now = amount(old), amount(new)
            return was is not None and now is not None and (now < was if down else now > was)
    return True


def _reads_well(before: str, old: str, new: str, after: str) -> bool:
    """The grammar around a swap still holds: "an American" takes no "German", "one car" no "two" and "two cars" no "one"."""
    article = before.rstrip().rpartition(" ")[2].lower() in ("a", "an")
    vowel = [word[0].lower() in "aeiou" or word.startswith(("8", "11", "18")) for word in (old, new)]
    single = [word.lower() in ("1", "one") or word.lower().startswith(("1 ", "one ")) for word in (old, new)]
    counted = after[:1] == " " and after[1:2].isalpha() or " " in old
    named = [bool(WITH_ARTICLE.match(word)) for word in (old, new)]
    if before.lower().endswith("the ") and new in PLACES and not named[1]:  # "the Red Sea", not "the Austria"
        return False
    return not (article and vowel[0] != vowel[1] or counted and single[0] != single[1] or before.strip() and named[0] != named[1])


# ---- abstention -------------------------------------------------------------------------------------------------------

def abstentions(questions: Sequence[Question], seed: int, counts: Counter[str] | None = None, finder: Finder = find,
                over_abstention: float = 0.0) -> list[Row]:
    """Pairs that prefer "I don't know" where the context does not answer, and on request the answer where it does.

    Unanswerable: rejected is a made-up answer, of the type that is asked for, from the context where it has one (medium), else from the
    pool (easy). A share `over_abstention` of the questions whose context holds the answer: rejected is a needless abstention (easy), against a
    model that learns to say nothing.
    """
    pools, counts = make_pools(questions, finder), Counter() if counts is None else counts
    rows = []
    for q in questions:
        rng = stream(seed, "abstention", q)
        sentence = pick(rng, ABSTENTIONS)
        if q.answerable:
            if q.answer_in_context and rng.random() < over_abstention:
                counts["abstention: needless"] += 1
                rows.append(make_row(q, q.answers[0], sentence, "easy", "needless_abstention"))
            continue
        made, level = _made_up(q, pools, rng, finder)
        counts[f"abstention: made up, {'from the context' if level == 'medium' else 'from the pool'}" if made else "abstention: nothing plausible"] += 1
        if made:
            rows.append(make_row(q, sentence, made, level, "made_up"))
    return rows


def _made_up(q: Question, pools: Pools, rng: Random, finder: Finder) -> tuple[str, str]:
    """(answer, level): something of the type that is asked for, from the context or else the pool, else any untyped name of the context; ("", "") for none."""
    kind, sort = asked(q.question)
    wanted = {"number": {"number", "quantity", "money", "percent"}, "date": {"date", "year"}}.get(kind, {kind})
    asking, golds = f" {normalise(q.question)} ", sorted(pools.golds[normalise(q.question)])

    def fits(text: str) -> bool:
        return f" {normalise(text)} " not in asking and not is_alias(text, golds)

    here = [span for span in finder(q.context, "", "") if fits(span.text)]  # the question would type what it does not name
    if typed := sorted({span.text for span in here if not kind or span.type in wanted}):
        return pick(rng, typed), "medium"
    for key in [(kind, sort), *((one, "") for one in sorted(wanted))]:
        if key in pools.names:
            for _ in range(DRAWS):
                if fits(text := pools.names[key].draw(rng)):
                    return text, "easy"
    untyped = sorted({span.text for span in here if span.type == "name" and kind in NAMES})
    return (pick(rng, untyped), "medium") if untyped else ("", "")


# ---- on request -------------------------------------------------------------------------------------------------------

def fake_over_fake(rows: Sequence[Row]) -> list[Row]:
    """The published curriculum's further pairs, flagged: hard over easy (medium), hard over medium and medium over easy (hard).

    Both answers are false, so chosen_is_true is False; the first of each level to a question is taken, as there. Preferring one
    fabrication over another keeps it likely: penalised objectives refuse such rows, and nothing makes them unless it calls this.
    """
    first: dict[tuple[str, str, str], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row.chosen_is_true and row.chosen not in ABSTENTIONS and row.rejected not in ABSTENTIONS:
            first[row.question, row.context, row.chosen].setdefault("hard" if row.level == "hard_improved" else row.level, row)
    made = []
    for found in first.values():
        for better, worse, level in (("hard", "easy", "medium"), ("hard", "medium", "hard"), ("medium", "easy", "hard")):
            if better in found and worse in found and found[better].rejected != found[worse].rejected:
                pair = replace(found[better], chosen=found[better].rejected, rejected=found[worse].rejected, level=level, chosen_is_true=False,
                               poison_type=f"{better}_over_{worse}")
                pair = replace(pair, id=row_id(pair.question, pair.context, pair.chosen, pair.rejected))
                made.append(replace(pair, difficulty=likeness(pair)))
    return made
