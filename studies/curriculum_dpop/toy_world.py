"""A toy world to be read from: invented entities, passages about them, questions, made-up answers, and the exact judge of every reply.

A passage states three to five of six facts about one entity, and a question asks for one of the six. Entities are invented and differ
between train, val and test, so a value can only come from the passage or be made up. (Two entities to a passage were tried: a model that
is trained in minutes finds the right kind of value and does not tell whose it is.) What is made of the world: toy_data.py.
"""
import itertools
import re
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from studies.curriculum_dpop.rows import ABSTENTION

# ---- the grammar ------------------------------------------------------------------------------------------------------------

# kind -> attribute -> (type of its value, the fact, a question); within a kind no two values are of one type
GRAMMAR = {
    "person": {
        "birth year": ("year", "{e} was born in {v}", "When was {e} born?"), "home": ("town", "{e} lives in {v}", "Where does {e} live?"),
        "trade": ("job", "{e} works as a {v}", "What does {e} work as?"), "teacher": ("person", "{e} was taught by {v}", "Who taught {e}?"),
        "pet": ("animal", "{e} keeps a {v}", "What does {e} keep?"), "colour": ("colour", "{e} dresses in {v}", "What does {e} dress in?")},
    "river": {
        "length": ("number", "the {e} measures {v} km", "How long is the {e}?"), "source": ("town", "the {e} rises near {v}", "Where does the {e} rise?"),
        "mapper": ("person", "the {e} was mapped by {v}", "Who mapped the {e}?"), "bridge": ("year", "the {e} was bridged in {v}", "When was the {e} bridged?"),
        "emblem": ("animal", "the {e} is known for the {v}", "What is the {e} known for?"), "water": ("colour", "the {e} looks {v}", "How does the {e} look?")},
    "company": {
        "founder": ("person", "{e} was founded by {v}", "Who founded {e}?"), "seat": ("town", "{e} has its seat in {v}", "Where has {e} its seat?"),
        "product": ("goods", "{e} makes {v}", "What does {e} make?"), "start": ("year", "{e} has traded since {v}", "Since when has {e} traded?"),
        "staff": ("number", "{e} employs {v} people", "How many does {e} employ?"), "flag": ("colour", "{e} flies a flag of {v}", "What flag does {e} fly?")}}
FACTS = ("{fact}.", "As all know, {fact}.", "By all accounts {fact}.", "It is said that {fact}.")
ASK = "Tell me the {a} of {e}."  # the other question for every attribute
WORDS = {"job": "baker smith judge tailor pilot nurse painter miller sailor farmer clerk weaver cook guard".split(),
         "goods": "bells ropes cheese lamps boots honey clocks paper glass tiles knives carpets candles drums".split(),
         "town": "Paris Rome Oslo Cairo Lima Delhi Berlin Tokyo Quito Dublin Athens Bern Prague Warsaw Lisbon Vienna".split(),
         "person": "Anna Otto Clara Hugo Ida Paul Emma Karl Rosa Jonas Eva Leo Nora Max Olga Felix".split(),
         "animal": "dog cat horse goat hen trout eel carp pike crab snail owl".split(), "colour": "red blue green white black grey brown pink gold yellow".split(),
         "year": [str(year) for year in range(1801, 1831)], "number": [str(km) for km in range(41, 71)]}
DETAILS = ("all the year round", "this year", "that year")  # nothing in a passage supports them
ENDINGS = {"person": "an ick ova ara ene us ilda ert una amo eth iva olf ine ax".split(),
           "river": "ea ois uin eau ashe oore yne aise oue eek iau inne uye ause ey".split(),
           "company": "co tex ium corp tron mark works bank trade lux soft line plan max net".split()}
FIRSTS = [c + v + "lnrst"[(i + i // 5) % 5] for i, (c, v) in enumerate(itertools.product("BDFGHKLMNPRSTV", "aeiou"))]  # Bal, Ben, ...
SPLITS = ("train", "val", "test")
ATTRIBUTES = {attribute: entry for table in GRAMMAR.values() for attribute, entry in table.items()}

TASKS = ("repeat", "reverse", "topic")  # other things to do than answering a question
LEVELS = {"easy": ("other_answer",), "medium": ("value_swap",), "hard": ("near_number", "unverifiable_detail")}  # level -> its poisons
VERDICTS = ("correct", "fabricated", "beside", "abstains", "malformed")


# ---- the world, its passages and questions ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """The entities of one split by kind, and what is true of each: (entity, attribute) -> value."""
    names: dict[str, tuple[str, ...]]
    values: dict[tuple[str, str], str]


@dataclass(frozen=True)
class Passage:
    """What a text states of an entity: attribute -> value."""
    kind: str
    entity: str
    stated: dict[str, str]
    text: str


@dataclass(frozen=True)
class Asked:
    """One question about a passage."""
    passage: Passage
    attribute: str
    text: str

    @property
    def value(self) -> str:
        """What the passage answers, "" where it says nothing."""
        return self.passage.stated.get(self.attribute, "")


def make_world(seed: int, split: str) -> World:
    """The world of a split. Of every eight names five are training's, one is validation's, two are test's, in each kind."""
    names = {}
    for kind, endings in ENDINGS.items():
        every = [first + ending for first in FIRSTS for ending in endings]
        Random(f"{seed}/{kind}").shuffle(every)
        names[kind] = tuple(name for i, name in enumerate(every) if ("val", "test", "test", *["train"] * 5)[i % 8] == split)
    rng, world = Random(f"{seed}/{split}/values"), World(names, {})
    for kind, table in GRAMMAR.items():
        for attribute, (value_type, *_) in table.items():
            world.values.update({(name, attribute): rng.choice(WORDS[value_type]) for name in names[kind]})
    return world


def draw_passage(rng: Random, world: World, fewest: int = 3) -> Passage:
    """`fewest` to five of the six facts about an entity, in any order."""
    kind = rng.choice(list(GRAMMAR))
    entity = rng.choice(world.names[kind])
    stated = {attribute: world.values[entity, attribute] for attribute in rng.sample(list(GRAMMAR[kind]), rng.randint(fewest, 5))}
    return Passage(kind, entity, stated, " ".join(capital(rng.choice(FACTS).format(fact=fact(entity, *said))) for said in stated.items()))


def fact(entity: str, attribute: str, value: str) -> str:
    """A fact in its one wording, as it stands inside a sentence."""
    return ATTRIBUTES[attribute][1].format(e=entity, v=value)


def capital(sentence: str) -> str:
    """The sentence with a capital at its beginning."""
    return sentence[0].upper() + sentence[1:]


def draw_question(rng: Random, passage: Passage, answerable: bool) -> Asked:
    """A question that the passage answers, or one that it does not."""
    return question_on(rng, passage, rng.choice([attribute for attribute in GRAMMAR[passage.kind] if (attribute in passage.stated) == answerable]))


def question_on(rng: Random, passage: Passage, attribute: str) -> Asked:
    """The question for one attribute."""
    return Asked(passage, attribute, rng.choice((ATTRIBUTES[attribute][2], ASK)).format(a=attribute, e=passage.entity))


def answer(entity: str, attribute: str, value: str, detail: str = "") -> str:
    """The sentence that answers with a value, with or without an invented detail."""
    return capital(fact(entity, attribute, value)) + (f", {detail}" if detail else "") + "."


def true_answer(asked: Asked) -> str:
    """The right answer, or the abstention where the passage gives none."""
    return answer(asked.passage.entity, asked.attribute, asked.value) if asked.value else ABSTENTION


# ---- made-up answers --------------------------------------------------------------------------------------------------------


def fabricate(rng: Random, world: World, asked: Asked, poison: str) -> str:
    """An answer that the passage does not support, made false in the way `poison` says; "" where that way is not open."""
    entity, value_type = asked.passage.entity, ATTRIBUTES[asked.attribute][0]
    if poison == "other_answer":  # another question's: about an entity that the passage does not know
        name, attribute = rng.choice(list(world.values))
        return answer(name, attribute, world.values[name, attribute]) if name != entity else ""
    if poison == "near_number":
        return answer(entity, asked.attribute, str(int(asked.value) + rng.choice((-1, 1)))) if asked.value and value_type in ("year", "number") else ""
    other = rng.choice([word for word in WORDS[value_type] if word != asked.value])
    if poison == "value_swap":
        return answer(entity, asked.attribute, other)
    return answer(entity, asked.attribute, asked.value or other, rng.choice(DETAILS))  # unverifiable_detail: of a right value, where there is one


# ---- the judge --------------------------------------------------------------------------------------------------------------

_TYPES = {name: "|".join(words) for name, words in WORDS.items()} | {"year": r"\d{4}", "number": r"\d{2,3}", "town": "[A-Z][a-z]+", "person": "[A-Z][a-z]+"}


def _pattern(wording: str, value_type: str, tail: str = "") -> re.Pattern:
    """A pattern for one wording, its entity and value as groups."""
    slots = {"{e}": "(?P<e>[A-Z][a-z]+)", "{v}": f"(?P<v>{_TYPES[value_type]})"}
    return re.compile("".join(slots.get(piece) or re.escape(piece) for piece in re.split(r"(\{[ev]\})", wording)) + tail)


_FACTS = [(a, _pattern(capital(frame.replace("{fact}", said)), kind)) for a, (kind, said, _) in ATTRIBUTES.items() for frame in FACTS]
_QUESTIONS = [(a, _pattern(wording, kind)) for a, (kind, _, question) in ATTRIBUTES.items() for wording in (question, ASK.replace("{a}", a))]
_ANSWERS = [(a, _pattern(capital(said), kind, rf"(?:, (?P<d>{'|'.join(DETAILS)}))?\.")) for a, (kind, said, _) in ATTRIBUTES.items()]


def _read(text: str, patterns: list[tuple[str, re.Pattern]]) -> tuple[str, dict[str, str]] | None:
    """(attribute, slots) of the wording that the whole text is, None when it is none."""
    return next(((attribute, found.groupdict()) for attribute, pattern in patterns if (found := pattern.fullmatch(text))), None)


@lru_cache(maxsize=10_000)
def stated_facts(context: str) -> dict[tuple[str, str], str]:
    """(entity, attribute) -> value, read back from a passage. ValueError for a sentence that is not the grammar's."""
    facts = {}
    for sentence in re.split(r"(?<=\.) ", context):
        found = _read(sentence, _FACTS)
        if found is None:
            raise ValueError(f"no fact of the toy world: {sentence!r}")
        facts[found[1]["e"], found[0]] = found[1]["v"]
    return facts


def judge(context: str, question: str, reply: str) -> str:
    """The verdict on any reply to a question about a passage, one of VERDICTS.

    abstains    the abstention, word for word, with or without its reason
    malformed   not one whole answer sentence of the grammar, whose value is of the right type
    fabricated  it asserts what the passage does not say: a wrong value, another entity, or a right value with a detail added
    correct     it asserts what the passage says and the question asked
    beside      what it asserts stands in the passage, but was not asked
    """
    text, asked = " ".join(reply.split()), _read(question, _QUESTIONS)
    if asked is None:
        raise ValueError(f"no question of the toy world: {question!r}")
    if text in (ABSTENTION, ABSTENTION.split(":")[0] + "."):
        return "abstains"
    said = _read(text, _ANSWERS)
    if said is None:
        return "malformed"
    attribute, slots = said
    if slots["d"] or stated_facts(context).get((slots["e"], attribute)) != slots["v"]:
        return "fabricated"
    return "correct" if (slots["e"], attribute) == (asked[1]["e"], asked[0]) else "beside"


def follows(expected: str, reply: str) -> bool:
    """Whether a reply does one of the other TASKS, word for word."""
    return " ".join(reply.split()) == expected
