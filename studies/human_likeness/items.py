"""The questionnaire's items, and the linear human-likeness score over them. Everything is joined by item id, never by position.

The study rebuilt here kept weights and questions as two bare lists in different orders: 14 of its 16 weights stood on a question they were not
fitted on. Here a weight without its item's name cannot be loaded, and answers to other items than the weights' cannot be scored.
"""
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.store import write_json
from runtime.errors import UserError

OURS = Path(__file__).with_name("items.yaml")
LOW, HIGH = 1, 5
# The published weights belong to these traits of the grouped list (`Item.published`), in the order of their file ...
FITTED_ON = (1, 2, 3, 4, 5, 6, 7, 12, 15, 17, 20, 21, 24, 26, 28, 32)
# ... and were applied to the answers about these, in the order of the judge's prompt.
ASKED = (1, 5, 10, 3, 4, 17, 7, 20, 8, 16, 26, 2, 11, 18, 22, 29)


@dataclass(frozen=True)
class Item:
    """One statement about a speaker, rated from 1 to 5; `direction`: +1 should speak for a human, -1 against, 0 open."""
    id: str
    group: str
    direction: int
    text: str
    published: int = 0  # its number in the published study's grouped list; 0 = not from there


@dataclass(frozen=True)
class Questionnaire:
    """Items in the order they are asked in, and the meaning of the scale."""
    items: tuple[Item, ...]
    scale: dict[int, str]
    version: int
    checksum: str

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(item.id for item in self.items)

    def only(self, ids: Iterable[str]) -> "Questionnaire":
        """The questionnaire with these items alone, in their usual order. UserError for an unknown id."""
        wanted = list(ids)
        check_ids(self.ids, wanted, "items")
        kept = tuple(item for item in self.items if item.id in set(wanted))
        return Questionnaire(kept, self.scale, self.version, checksum(kept, self.scale))

    def numbered(self, numbers: Sequence[int]) -> tuple[str, ...]:
        """The ids of the published study's trait numbers, in the order given. UserError for a number that no item has."""
        by_number = {item.published: item.id for item in self.items}
        if lacking := [number for number in numbers if number not in by_number]:
            raise UserError(f"this questionnaire has no item for the public study's trait {lacking[0]}: for its files leave --questionnaire out.")
        return tuple(by_number[number] for number in numbers)


def checksum(items: Iterable[Item], scale: Mapping[int, str]) -> str:
    """16 hex digits of what the items and the scale say; the order of items does not matter, since nothing is joined by it."""
    rows = sorted([item.id, item.group, item.direction, item.text] for item in items)
    return hashlib.sha256(json.dumps([rows, sorted(scale.items())]).encode()).hexdigest()[:16]


def checked(row: object) -> Item:
    """An item from a row of the file. TypeError or ValueError when a field is missing, strange or of another type."""
    item = Item(**row)
    if any(not isinstance(value, str) or not value.strip() for value in (item.id, item.group, item.text)) or type(item.published) is not int or item.direction not in (-1, 0, 1):
        raise ValueError(f"the item {str(item.id)[:40]} needs id, group and text, and a direction of -1, 0 or 1")
    return item


def load_items(path: Path = OURS) -> Questionnaire:
    """The questionnaire in a YAML file. UserError for a repeated or missing field, and for items that changed without a new version."""
    import yaml  # comes with transformers
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        items, scale = tuple(map(checked, found["items"])), dict(found["scale"])
        if not items or not scale or any(type(value) is not int or not isinstance(meaning, str) for value, meaning in scale.items()):
            raise ValueError("it needs items, and a scale of whole numbers with their meanings")
        version, said = int(found["version"]), str(found["checksum"])[:64]
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is no questionnaire ({str(error).splitlines()[0] if str(error) else type(error).__name__}).") from None
    for what, values in (("id", [item.id for item in items]), ("published number", [item.published for item in items if item.published])):
        if repeated := sorted({value for value in values if values.count(value) > 1}):
            raise UserError(f"{path}: the {what} {repeated[0]} stands on more than one item.")
    if said != checksum(items, scale):
        raise UserError(f"{path}: the items are not those of checksum {said}. If the change is wanted, raise `version` and write checksum: {checksum(items, scale)}")
    return Questionnaire(items, scale, version, said)


def check_ids(known: Iterable[str], given: Iterable[str], what: str) -> None:
    """UserError unless every given id is known and none comes twice."""
    known, given = set(known), list(given)
    strange, twice = [i for i in given if i not in known], sorted({i for i in given if given.count(i) > 1})
    if strange or twice:
        raise UserError(f"{what}: " + (f"there is no item {strange[0]}" if strange else f"the item {twice[0]} comes twice") + ".")


def check_answers(answers: Mapping[str, float], ids: Sequence[str]) -> None:
    """ValueError unless `answers` has exactly these ids, each with a number from 1 to 5 (a mean of ratings may lie between)."""
    missing, strange = [i for i in ids if i not in answers], [i for i in answers if i not in set(ids)]
    if missing or strange:
        raise ValueError(f"no answer to {missing[0]}" if missing else f"an answer to {strange[0]}, which was not asked")
    for i in ids:
        value = answers[i]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not LOW <= value <= HIGH:
            raise ValueError(f"{i} is {value!r}, not a number from {LOW} to {HIGH}")


# ---- the score ------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Weights:
    """A linear score: the sum of weight times rating over the named items, plus b, in log-odds (higher = more like a human)."""
    w: dict[str, float]
    b: float
    items: str  # checksum of the items they were fitted on; "" = a bare list, which does not say
    note: str = ""

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self.w)


def contributions(weights: Weights, answers: Mapping[str, float]) -> dict[str, float]:
    """What each item adds to the score; their sum and b are the score. UserError when the answers are not to exactly these items."""
    try:
        check_answers(answers, weights.ids)
    except ValueError as error:
        raise UserError(f"these answers do not go with these weights ({error}): the weights are for {', '.join(weights.ids)}.") from None
    return {i: w * answers[i] for i, w in weights.w.items()}


def human_likeness(weights: Weights, answers: Mapping[str, float]) -> float:
    """w . answers + b, in log-odds; see `contributions`."""
    return math.fsum(contributions(weights, answers).values()) + weights.b


def save_weights(weights: Weights, path: Path) -> None:
    """Write the weights with the names of their items."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"w": weights.w, "b": weights.b, "items": weights.items, "note": weights.note})


def load_weights(path: Path, questionnaire: Questionnaire, ids: Sequence[str] = ()) -> Weights:
    """The weights in a file: ours, with names, or a bare list {"w": [...], "b": ...}, which needs `ids` in the order of the list.

    UserError for a list without ids, another number of ids, unknown or repeated ones, and items that have changed since the fit.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        w, b = found["w"], float(found["b"])
        if not isinstance(w, dict | list):
            raise ValueError("w is no list and no object")
        values = [float(value) for value in (w.values() if isinstance(w, dict) else w)]
        if not values or not all(map(math.isfinite, [*values, b])):
            raise ValueError("they must be numbers, and at least one")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} holds no weights ({str(error) or type(error).__name__}).") from None
    if not isinstance(w, dict) and not ids:
        raise UserError(f"{path} is a bare list of {len(values)} weights: say which items they belong to, in their order (--ids).")
    if isinstance(w, dict) and ids and tuple(ids) != tuple(w):
        raise UserError(f"{path} names its items itself, and they are not the ids given.")
    names = tuple(w) if isinstance(w, dict) else tuple(ids)
    if len(names) != len(values):
        raise UserError(f"{path} has {len(values)} weights, and {len(names)} ids were given.")
    check_ids(questionnaire.ids, names, str(path))
    fitted = str(found.get("items", ""))
    if fitted and fitted not in (questionnaire.checksum, questionnaire.only(names).checksum):
        raise UserError(f"{path} was fitted on items with checksum {fitted}; these have {questionnaire.checksum}: fit again.")
    return Weights(dict(zip(names, values)), b, fitted, str(found.get("note", "")))


def published_weights(path: Path, questionnaire: Questionnaire, joined: str) -> Weights:
    """The published study's bare list, joined "as fitted" (to the traits it was estimated on) or "as published" (to the questions asked).

    Only the first is a model of anything; the second reproduces the published scores.
    """
    orders = {"as fitted": FITTED_ON, "as published": ASKED}
    if joined not in orders:
        raise ValueError(f"joined is {joined!r}, not one of {', '.join(orders)}")
    found = load_weights(path, questionnaire, questionnaire.numbered(orders[joined]))
    return Weights(found.w, found.b, found.items, f"published weights, joined {joined}")
