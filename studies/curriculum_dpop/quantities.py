"""Numbers and dates in a text: where they stand, what they are worth, and another one near by in the same form.

"$1,700" becomes "$1,900", "12 May 1999" becomes "12 August 1999", "twenty-five" becomes "twenty-three": never another value in the same words.
"""
import calendar
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from eval.qa_metrics import MONTHS

NUMERIC = ("number", "ordinal", "year", "date", "money", "percent", "quantity")
UNITS = "zero one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
SMALL = {word: i for i, word in enumerate(UNITS + TEENS)} | {word: 10 * i for i, word in enumerate(TENS, 2)}
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
UNIT = (r"(?:mi|km|m|ft|feet|foot|inch(?:es)?|miles?|(?:kilo)?met(?:er|re)s?|acres?|hectares?|kg|pounds?|lbs?|tons?|tonnes?|grams?|years?|months?|weeks?|days?|hours?"
        r"|minutes?|seconds?|mph|degrees?|cm|mm|litres?|gallons?|watts?|MW|°[CF]?|square)(?!\w)")

ANY_SCALE, ANY_SMALL = "|".join(SCALES), "|".join(SMALL)
AFTER_SCALE = "|".join(f"(?<={scale})" for scale in SCALES)
# "two million three hundred and five", but not "two and three" nor "seven eleven": what may follow a number and still be it
ON = rf"(?:[ -](?:{ANY_SCALE})\b|(?:{AFTER_SCALE})(?: and)?[ -](?:{ANY_SMALL})\b|(?<=ty)[ -](?:{'|'.join(UNITS[1:])})\b)*"
ANY_NUMBER = re.compile(rf"\b(?:\d+(?:\.\d+)?|{ANY_SMALL})\b{ON}(?!\w)", re.IGNORECASE)
# "one" is mostly a pronoun: it counts where a scale follows, or alone
SPELLED = re.compile(rf"(?<![\w-])(?:{'|'.join([*UNITS[2:], *TEENS, *TENS])}|one(?= (?:{ANY_SCALE})\b))\b{ON}(?![\w-])(?P<rest>(?: percent\b| {UNIT})?)", re.IGNORECASE)
NUMBER = re.compile(r"(?<![\w.,:/–-])(?P<money>(?:US|A|C)?[$£€¥] ?)?(?P<value>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)(?!\w|[,:/–-]\d|\.\d|-\w)"
                    rf"(?: (?:{ANY_SCALE})\b)?(?:(?P<percent> ?%| per ?cent\b)|(?P<coin> (?:dollars|euros|pounds|cents|yen)\b)|(?P<unit> {UNIT}))?")
ORDINAL = re.compile(rf"(?<![\w-])(?:\d+(?:st|nd|rd|th)|(?:(?<=[Tt]he )|^)(?:{'|'.join(ORDINALS)}))(?![\w-])", re.IGNORECASE)
YEAR = re.compile(r"(?<![\w.,:/$£€–-])(?:1\d{3}|20\d\d)(?:s|(?:[–-]| to )(?:1\d{3}|20\d\d)|[–-]\d\d)?(?![\w–:/-]|[.,]\d|%)")
DAY = r"(?:[12]\d|3[01]|0?[1-9])"
DATE = re.compile(rf"\b(?:(?P<d1>{DAY})(?P<s1>st|nd|rd|th)? (?:of )?)?(?P<month>{'|'.join(month.title() for month in MONTHS)})(?: (?P<d2>{DAY})(?P<s2>st|nd|rd|th)?(?!\d))?"
                  r"(?:,? (?P<year>[12]\d{3}))?(?![\w–-])|\b(?P<y>[12]\d{3})-(?P<m>0[1-9]|1[0-2])-(?P<d>0[1-9]|[12]\d|3[01])\b")


@dataclass(frozen=True)
class Span:
    """One thing in a text: text[start:end] is `text`; `type` one of entities.TYPES; `sort` the noun it was asked for by ("city", "film") or ""."""
    start: int
    end: int
    text: str
    type: str
    sort: str = ""


def numeric_spans(text: str) -> Iterator[Span]:
    """Spans of numbers and dates; where two overlap, the earlier one that comes out is the better reading."""
    for found in DATE.finditer(text):
        if found["y"] or found["d1"] or found["d2"] or found["year"]:
            yield Span(*found.span(), found.group(), "date")
    for found in YEAR.finditer(text):
        if not re.match(f" {UNIT}", text[found.end():]):
            yield Span(*found.span(), found.group(), "year")
    for found in NUMBER.finditer(text):
        kind = "money" if found["money"] or found["coin"] else "percent" if found["percent"] else "quantity" if found["unit"] else "number"
        yield Span(*found.span(), found.group(), kind)
    for found in SPELLED.finditer(text):
        if found.group()[0].isupper() and re.search(r"[A-Z]\w* $", text[:found.start()]):
            continue  # "Zero Dark Thirty"
        yield Span(*found.span(), found.group(), "percent" if found["rest"] == " percent" else "quantity" if found["rest"] else "number")
    if text.lower().strip(". ") == "one":
        start = text.lower().index("one")
        yield Span(start, start + 3, text[start:start + 3], "number")
    for found in ORDINAL.finditer(text):
        yield Span(*found.span(), found.group(), "ordinal")


# ---- worth ------------------------------------------------------------------------------------------------------------

def _digits_of(found: re.Match) -> str:
    """"two hundred and five" -> "205", "2.5 million" -> "2500000"."""
    total, part = 0.0, 0.0
    for word in re.split(r"[ -]+", found.group().lower()):
        if word == "hundred":
            part = (part or 1) * 100
        elif word in SCALES:
            total, part = total + (part or 1) * SCALES[word], 0.0
        elif word != "and":
            part += SMALL[word] if word in SMALL else float(word)
    return f"{total + part:.6f}".rstrip("0").rstrip(".")


def _one_order(found: re.Match) -> str:
    """A date as `canonical` of eval/qa_metrics.py writes one that stands alone: its parts sorted."""
    if found["y"]:
        parts = [found["y"], str(int(found["d"])), MONTHS[int(found["m"]) - 1]]
    else:
        day = found["d1"] or found["d2"]
        parts = [part for part in (day and str(int(day)), found["year"], found["month"].lower()) if part]
    return " ".join(sorted(parts)) if len(parts) > 1 else found.group()


def in_digits(text: str) -> str:
    """`text` with every number up to trillions in plain digits ("1,000" = "one thousand" = "1000", "5.0" = "5") and every date in one order."""
    plain = re.sub(r"(?<=\d),(?=\d{3})", "", DATE.sub(_one_order, text))
    if not re.search(rf"\d|{ANY_SMALL}", plain, re.IGNORECASE):
        return plain
    return ANY_NUMBER.sub(_digits_of, plain)


def amount(text: str) -> float | None:
    """The year of a date, else the first number in a text; None where there is none. For telling which of two is larger."""
    found = re.search(r"\b[12]\d{3}\b", in_digits(text)) or re.search(r"\d+(?:\.\d+)?", in_digits(text))
    return float(found.group()) if found else None


# ---- near by ----------------------------------------------------------------------------------------------------------

def pick(rng: Random, items: Sequence) -> object:
    """One of the items. Only `random()` is drawn, whose stream Python promises to keep; that of `choice` may change."""
    return items[int(rng.random() * len(items))]


def near(span: Span, rng: Random, latest_year: int) -> str | None:
    """Another value in the form of the span's text, close to it; None where there is none (or it is not numeric).

    Years move by at most 9 and not beyond `latest_year`, numbers by 5 to 30 % (at least one unit of their last figure that is not a rounding zero).
    """
    if span.type == "date":
        return _near_date(span.text, rng, latest_year)
    if span.type == "year":
        return _near_year(span.text, rng, latest_year)
    if span.type == "ordinal" and not span.text[0].isdigit():
        return _near_word(span.text, ORDINALS, rng)
    if span.type == "ordinal":
        value = int(span.text[:-2])
        new = pick(rng, [k for k in range(value - 2, value + 3) if k not in (0, value) and k > 0 and (value > 21 or k <= 21)])  # no 22nd century
        return f"{new}{_suffix(new)}"
    if figure := re.search(r"\d[\d,]*(?:\.\d+)?", span.text):
        new = _near_figure(figure.group(), rng, 100 if span.type == "percent" else 0)
        return new and span.text[:figure.start()] + new + span.text[figure.end():]
    for words in (UNITS[1:], TEENS, TENS):  # of "two hundred and five" the first word that can be changed
        for found in re.finditer(r"[A-Za-z]+", span.text):
            if found.group().lower() in words:
                return span.text[:found.start()] + _near_word(found.group(), words, rng) + span.text[found.end():]
    return None


def _near_word(word: str, words: list[str], rng: Random) -> str:
    at = words.index(word.lower())
    new = words[pick(rng, [i for i in range(max(0, at - 2), min(len(words), at + 3)) if i != at])]
    return new.title() if word[0].isupper() else new


def _suffix(value: int) -> str:
    return "th" if 10 < value % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(value % 10, "th")


def _near_figure(figure: str, rng: Random, ceiling: int) -> str | None:
    plain = figure.replace(",", "")
    decimals = len(plain.partition(".")[2])
    value = int(plain.replace(".", ""))
    if value == 0 or plain[0] == "0" and not decimals:  # "007" is no quantity
        return None
    zeros = len(str(value)) - len(str(value).rstrip("0"))
    zeros -= zeros > 0 and value // 10**zeros < 4  # 100 moves by tens, not by hundreds
    steps = value // 10**zeros
    for _ in range(20):
        change = max(1, round(steps * (0.05 + 0.25 * rng.random())), rng.random() < 0.5 and 2)
        new = steps + (change if rng.random() < 0.5 else -change)
        rounder = new % 10 == 0 and steps % 10 != 0
        over = ceiling and value <= ceiling * 10**decimals < new * 10**zeros
        same_length = len(str(new)) == len(str(steps)) or value == ceiling  # 100 % can but fall
        if new > 0 and not rounder and not over and same_length:
            text = str(new * 10**zeros).zfill(decimals + 1)
            whole, part = text[:len(text) - decimals], text[len(text) - decimals:]
            return (f"{int(whole):,}" if "," in figure else whole) + ("." + part if decimals else "")
    return None


def _near_year(text: str, rng: Random, latest: int) -> str | None:
    """A range ("1990–91", "1939 to 1945") moves as one: its years keep their distance and their order."""
    first, between, last = re.fullmatch(r"(\d{4})(s|[–-]| to |)(\d*)", text).groups()
    step, final = 10 if between == "s" else 1, int(last if len(last) == 4 else first)
    moves = [k * step for k in (range(-2, 3) if step == 10 else range(-9, 10)) if k and (k < 0 or final + k * step <= latest)]
    move = pick(rng, moves)
    if last:
        last = str(int(last) + move) if len(last) == 4 else f"{(int(last) + move) % 100:02d}"
    return f"{int(first) + move}{between}{last}"


def _near_date(text: str, rng: Random, latest: int) -> str | None:
    """One part changes: the year, the month or the day. The rest stays in its form, and the date exists."""
    found = DATE.fullmatch(text)
    groups = {"year": "y", "month": "m", "day": "d"} if found["y"] else {"year": "year", "month": "month", "day": "d1" if found["d1"] else "d2"}
    groups = {part: group for part, group in groups.items() if found[group]}
    value = {part: int(found[group]) if found[group].isdigit() else MONTHS.index(found[group].lower()) + 1 for part, group in groups.items()}
    for _ in range(20):
        part = pick(rng, list(groups))
        moves = {"year": 9, "month": 11, "day": 14}[part]
        new = value[part] + pick(rng, [k for k in range(-moves, moves + 1) if k])
        changed = value | {part: new}
        if not (1 <= changed["month"] <= 12 and changed.get("year", 2000) <= max(latest, value.get("year", 0))):
            continue
        if not 1 <= changed.get("day", 1) <= calendar.monthrange(changed.get("year", 2000), changed["month"])[1]:
            continue
        start, end = found.span(groups[part])
        written = str(new).zfill(2 if found[groups[part]][0] == "0" or found["y"] else 1) if found[groups[part]].isdigit() else MONTHS[new - 1].title()
        suffix = {"d1": "s1", "d2": "s2"}.get(groups[part])
        if suffix and found[suffix]:
            written, end = written + _suffix(new), found.end(suffix)
        return text[:start] + written + text[end:]
    return None
