"""Typed spans of a text, found by rules or by spaCy, and whether two of them name the same thing.

    find("It opened on 12 May 1999 in New York City.")   ->   date "12 May 1999", place "New York City"

Rules see form, not meaning. Numbers, years and dates they find well. Of a run of capitalised words they know what the words themselves say
("Clark County", "Bill Steer Jr."), and what the question asks for ("in what city", "who"). A name that neither types is plainly a "name".
"""
import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from eval.qa_metrics import MONTHS, canonical, normalise
from runtime.errors import UserError
from studies.curriculum_dpop.quantities import NUMERIC, Span, in_digits, numeric_spans

NAMES = ("person", "place", "organisation", "nationality", "work", "name")
TYPES = (*NUMERIC, "weekday", "month", *NAMES)

# What a question asks for, by the noun after "what" or "which".
NOUNS = {
    "year": "year decade", "date": "date birthdate birthday", "number": "number age population", "weekday": "weekday", "month": "month",
    "nationality": "nationality descent ethnicity language",
    "person": "person man woman actor actress singer author writer director producer player politician president king queen scientist composer "
              "musician poet novelist comedian rapper guitarist drummer coach artist architect philosopher painter character member wife husband "
              "father mother son daughter brother sister host founder editor governor senator emperor general star songwriter screenwriter driver "
              "filmmaker manager golfer broadcaster performer vocalist entrepreneur businessperson engineer lawyer inventor explorer dancer cricketer footballer swimmer skater jockey rower "
              "sculptor soprano tenor monarch teacher illustrator cartoonist publisher creator winner hitman duke baron bishop pope saint prince princess boxer wrestler model presenter celebrity surname pseudonym nickname leader owner candidate",
    "place": "city town country state county village place location region province island continent capital borough district suburb "
             "neighborhood river lake mountain street road highway bay area stadium venue territory sea ocean park birthplace hometown airport",
    "organisation": "company band group team club university college school organization organisation institution agency network label party "
                    "corporation airline newspaper channel association brand league studio manufacturer department conference",
    "work": "film movie book novel album song series show play musical opera poem magazine game sitcom drama single soundtrack documentary "
            "video comic ballet painting franchise anime manga work trilogy thriller"}
NOUN_TYPE = {noun: kind for kind, nouns in NOUNS.items() for noun in nouns.split()}

# What the words of a name say by themselves; the last word is asked first.
ORGANISATION_WORDS = set("""University College School Institute Company Corporation Corp Inc Ltd LLC Association League Party Records Club Bank Society Committee
Council Agency Department Ministry Airlines Airways Orchestra Museum Church Foundation Group Union Channel Network FC F.C. United Studios Entertainment
Pictures Press Commission Court Army Navy Force Police Federation Academy Conference Office Service Board Senate Parliament""".split())
PLACE_WORDS = set("""County City River Island Islands Lake Mountain Mountains Mount Street Road Avenue Highway Route Park Bay Beach Valley Creek Hill Hills Fort Castle
Bridge Airport Station Province District Township Peninsula Sea Ocean Desert Square Borough Village Hall Stadium Forest Coast Canal Harbor Harbour""".split())
PERSON_WORDS = set("Mr Mrs Ms Dr Sir Lord Lady Queen King Prince Princess President Jr Sr Pope Emperor Captain General Senator".split())
FIRST_NAMES = set("""Aaron Adam Alan Albert Alexander Alfred Alice Allen Amy Andrew Andy Angela Ann Anna Anne Anthony Arthur Barbara Ben Benjamin Bernard Bill Billy Bob Bobby Brad Brian
Bruce Carl Carlos Caroline Catherine Charles Charlie Chris Christian Christina Christine Christopher Craig Daniel Danny Dave David Dean Dennis Diana Donald Dorothy Douglas Ed
Edward Edwin Elizabeth Emily Emma Eric Ernest Eva Frances Frank Franklin Fred Frederick Gary George Gerald Gordon Grace Graham Greg Hannah Harold Harry Helen Henry Herbert Howard
Hugh Ian Jack Jacob James Jane Jason Jean Jeff Jennifer Jerry Jessica Jim Jimmy Joan Joe John Johnny Jonathan Joseph Joshua Juan Judy Julia Julie Justin Karen Karl Kate Katherine
Keith Kelly Kenneth Kevin Kim Larry Laura Lauren Lawrence Lee Leo Leonard Lewis Linda Lisa Louis Lucy Luke Margaret Maria Marie Mark Martin Mary Matt Matthew Max Michael Michelle
Mike Nancy Nathan Neil Nicholas Nick Nicole Norman Oliver Oscar Patricia Patrick Paul Peter Phil Philip Rachel Ralph Raymond Rebecca Richard Rick Rob Robert Robin Roger Ron Ronald
Rose Roy Russell Ruth Ryan Sam Samuel Sandra Sarah Scott Sean Sharon Simon Sophie Stanley Stephen Steve Steven Stuart Susan Taylor Terry Theodore Thomas Tim Timothy Tom Tony Victor
Victoria Vincent Walter Wayne William""".split())
PLACE_BEFORE = {"in", "near", "at", "into", "towards"}

# Countries with their adjectives, which are nationalities; and places that are no countries.
ADJECTIVES = dict(pair.split(":") for pair in """American:United States,British:United Kingdom,English:England,Scottish:Scotland,Welsh:Wales,Irish:Ireland,French:France,
German:Germany,Italian:Italy,Spanish:Spain,Portuguese:Portugal,Dutch:Netherlands,Belgian:Belgium,Swiss:Switzerland,Austrian:Austria,Swedish:Sweden,Norwegian:Norway,
Danish:Denmark,Finnish:Finland,Icelandic:Iceland,Polish:Poland,Czech:Czech Republic,Hungarian:Hungary,Romanian:Romania,Bulgarian:Bulgaria,Greek:Greece,Turkish:Turkey,
Russian:Russia,Ukrainian:Ukraine,Serbian:Serbia,Croatian:Croatia,Israeli:Israel,Iranian:Iran,Iraqi:Iraq,Indian:India,Pakistani:Pakistan,Chinese:China,Japanese:Japan,
Korean:South Korea,Vietnamese:Vietnam,Thai:Thailand,Indonesian:Indonesia,Filipino:Philippines,Australian:Australia,Canadian:Canada,Mexican:Mexico,Brazilian:Brazil,
Argentine:Argentina,Chilean:Chile,Cuban:Cuba,Jamaican:Jamaica,Egyptian:Egypt,Nigerian:Nigeria,Kenyan:Kenya,Ethiopian:Ethiopia,Moroccan:Morocco,
Colombian:Colombia,Peruvian:Peru,Venezuelan:Venezuela,Lebanese:Lebanon,Syrian:Syria,Afghan:Afghanistan""".replace("\n", "").split(","))
PLACES = set(ADJECTIVES.values()) | set("""Alabama Alaska Arizona Arkansas California Colorado Connecticut Delaware Florida Georgia Hawaii Idaho Illinois Indiana Iowa Kansas
Kentucky Louisiana Maine Maryland Massachusetts Michigan Minnesota Mississippi Missouri Montana Nebraska Nevada Ohio Oklahoma Oregon Pennsylvania Tennessee Texas
Utah Vermont Virginia Wisconsin Wyoming Europe Asia Africa London Paris Berlin Rome Moscow Tokyo Chicago Boston Manhattan Brooklyn Hollywood USA UK U.S. US""".split()
) | {"New York", "New York City", "New Jersey", "New Mexico", "New Hampshire", "North Carolina", "South Carolina", "North Dakota", "South Dakota", "Rhode Island",
     "West Virginia", "New Zealand", "South Africa", "Los Angeles", "San Francisco", "Las Vegas", "Hong Kong", "Soviet Union", "North America", "South America"}
NATIONALITIES = set(ADJECTIVES) | {"Americans", "Germans", "Russians", "Canadians", "Indians", "Italians", "Mexicans", "Australians", "Jewish", "Arab", "Latin"}
WITHIN = {frozenset(pair) for pair in (("england", "united kingdom"), ("scotland", "united kingdom"), ("wales", "united kingdom"), ("russia", "soviet union"))}  # either may be meant

# Capital letters that say nothing: words that open a sentence or stand between the words of a title.
FUNCTION = set("""a an the in on at of to from for by with and or but if as is are was were be been it its he she they we you i his her their our your my this that these
those there here what which who whom whose when where why how yes no not none neither either both all some most many each every any one after before during
since while because although however also then so than do does did has have had can could will would should may might must only first no-one nobody nothing""".split())
JOINING = {"of", "the", "de", "la", "le", "du", "des", "da", "di", "del", "della", "von", "van", "der", "den", "el", "al", "bin", "ibn", "y", "&", "for"}
TITLE = JOINING | {"a", "an", "and", "in", "on", "at", "to", "with", "by", "from", "or", "is", "as", "no", "v.", "vs.", "against", "not"}
ABBREVIATION = re.compile(r"(?:\w\.)+|(?:Jr|Sr|St|Mr|Mrs|Ms|Dr|Inc|Ltd|Co|Corp|Mt|vs|No)\.")
LONGEST_NAME = 8  # words; a longer answer in capitals is a headline or a list
CALENDAR = re.compile(rf"(?:{'|'.join(month.title() for month in MONTHS)}|[A-Z][a-z]{{2,3}}\.? \d+)")  # "May", "Feb 3": no names
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

# ---- the same thing? --------------------------------------------------------------------------------------------------

@functools.lru_cache(1 << 17)
def words_of(text: str) -> tuple[str, ...]:
    """The words that `aliases` compares: eval.qa_metrics' canonical spelling, with every number in digits, dates in one order, "American" as its country, no title first."""
    words = " ".join(_COUNTRY.get(word, word) for word in canonical(in_digits(text)).replace("great britain", "britain").split()).split()
    joined: list[str] = []
    for word, before in zip(words, ["", *words]):  # "J. R. R. Tolkien" = "J.R.R. Tolkien"
        if len(word) == len(before) == 1 and word.isalpha() and before.isalpha():
            joined[-1] += word
        else:
            joined.append(word)
    if len(joined) > 1 and joined[0].title() in (*PERSON_WORDS, "Doctor"):
        del joined[0]  # "President Lincoln" = "Abraham Lincoln"
    return tuple(joined) or (text.casefold().strip(),)  # the band "The The" has no word left


_COUNTRY = {adjective.lower(): country.lower() for adjective, country in ADJECTIVES.items()} | {
    "usa": "united states", "us": "united states", "america": "united states", "uk": "united kingdom", "britain": "united kingdom", "holland": "netherlands"}


def _within(short: tuple[str, ...], long: tuple[str, ...]) -> bool:
    """All words of `short` stand in `long`, in order: "David Mamet" in "David Alan Mamet"."""
    rest = iter(long)
    return all(word in rest for word in short)


def _initials(short: tuple[str, ...], long: tuple[str, ...]) -> bool:
    """"NBA" of "National Basketball Association", "FBI" of "Federal Bureau of Investigation"."""
    return len(short) == 1 and len(long) > 1 and short[0] in ("".join(word[0] for word in long),
                                                              "".join(word[0] for word in long if word not in ("of", "and", "for", "in")))


def aliases(a: str, b: str) -> bool:
    """True where a and b may name the same thing: alike after SQuAD's normalisation (Rajpurkar et al. 2016), equal in value ("1,000" = "one
    thousand", "12 May 1999" = "May 12, 1999"), or all words of one in the other in their order ("New York" and "New York City"; initials too).

    Meant to err on the side of True: a negative that is refused costs a draw, one that is right after all teaches a falsehood.
    """
    x, y = words_of(a), words_of(b)
    return (x == y or _within(x, y) or _within(y, x) or _initials(x, y) or _initials(y, x) or frozenset((" ".join(x), " ".join(y))) in WITHIN
            or bool(normalise(a)) and normalise(a) == normalise(b))


def is_alias(text: str, answers: Iterable[str]) -> bool:
    """True where `text` may be one of the answers in another spelling, a part of one, or one with words around it."""
    return any(aliases(text, answer) for answer in answers)


# ---- spans ------------------------------------------------------------------------------------------------------------

Finder = Callable[[str, str, str], list[Span]]  # (text, question, context) -> spans in order, none over another

VAGUE = {"name", "thing", "type", "kind", "form", "one", "other", "term", "title"}
STOP = set("""is was were are did does do has have had can could will would in of on at for from by to with that who which whose whom where when and or but as it he she
they born named known called made located founded based released published directed starring featuring also both the a an if than after before under during""".split())
WH = re.compile(r"\b(?:what|which)\b(?:['’]s)?(?: (?:is|was|are|were) (?:the|this|that|his|her|its|their) (?:(?:full |real |birth |stage |first |last )?(?:name|title) of (?:the|this|a|an) )?)?"
                r"([^,?:;]*)", re.IGNORECASE)


@functools.lru_cache(1 << 16)
def asked(question: str) -> tuple[str, str]:
    """(type, sort) that a question asks for: ("place", "city"), ("person", ""), ("", "genus") for a noun without a type, ("", "") where it does not say."""
    low = question.lower()
    if re.search(r"\bhow (?:many|much|long|old|tall|far|high|large|big)\b", low):
        return "number", ""
    start = re.match(r"\W*(?:(?:in|on|at|for|from|by|to|of|with|during) )?(who|whom|whose|where|when)\b", low)
    if start:
        return {"where": "place", "when": "date"}.get(start[1], "person"), ""
    sort = ""
    for found in WH.finditer(low):
        if re.search(r"\b(?:birth|stage|real|full|pen|ring|maiden|given|middle) name\b", found[1]):
            return "person", "name"
        words = re.findall(r"[\w.]+(?:['’]\w+)?", found[1])
        cut = next((i for i, word in enumerate(words) if word in STOP), len(words))
        for word in reversed(words[:cut][:7]):  # "which animated film director": the last noun is the one that is asked for
            for noun in (word, word.removesuffix("s")):
                if noun in NOUN_TYPE or noun.endswith(("ist", "ian", "man", "woman")):
                    return NOUN_TYPE.get(noun, "person"), noun
        sort = sort or (words[cut - 1] if 0 < cut < 5 and words[cut - 1] not in VAGUE else "")
    ending = re.search(r"\b(who|whom|where|when)\W*$", low) or not WH.search(low) and re.search(r"\b(who|whom|whose|where|when)\b", low)
    return ({"where": "place", "when": "date"}.get(ending[1], "person"), "") if ending else ("", sort)


@dataclass(frozen=True)
class _Word:
    """A word without the punctuation around it; `opens` and `closes` a stretch that a name does not cross."""
    start: int
    end: int
    text: str
    opens: bool
    closes: bool
    first: bool  # of a sentence: its capital says nothing


def _words(text: str) -> list[_Word]:
    words, first = [], True
    for found in re.finditer(r"\S+", text):
        raw = found.group()
        head = len(raw) - len(raw.lstrip("(\"'“‘[*–—-"))
        core = raw[head:].rstrip(")\"'”’],;:!?*–—")
        if core.endswith(".") and not ABBREVIATION.fullmatch(core):
            core = core.rstrip(".")
        tail = raw[head + len(core):]
        start = found.start() + head
        if core:
            words.append(_Word(start, start + len(core), core, head > 0, tail not in ("", "\"", "'", "”", "’"), first))
        first = tail != "" and any(mark in tail for mark in ".!?")
    return words


def _capital(word: _Word) -> bool:
    return word.text[0].isupper() and word.text != "I" and not word.text.startswith(("I'", "I’"))


def _whole(text: str, question: str) -> tuple[int, int] | None:
    """(start, end) of a short answer that is one name from end to end: "Pan Tadeusz", "First for Women", "Dearborn, Michigan"."""
    end = len(text.rstrip()) - (text.rstrip().endswith(".") and not re.search(r"\b(?:Jr|Sr|Inc|Ltd|Co|Corp|\w\.\w)\.$", text.rstrip()))
    start = len(text) - len(text.lstrip())
    words = _words(text[:end])
    if not 1 <= len(words) <= LONGEST_NAME or any(word.first for word in words[1:]) or not any(word.text[0].isupper() for word in words):
        return None
    kind = asked(question)[0]
    several = kind in ("person", "place", "nationality") and re.search(r" (?:and|or) ", text)
    if several or kind == "person" and re.search(r",(?! (?:Jr|Sr|I))", text) or len(words) == 1 and words[0].text.lower() in FUNCTION:
        return None
    if not (words[0].text[0].isupper() or words[0].text[0].isdigit() or words[0].text.lower() == "the" and len(words) > 1):
        return None
    if all(word.text[0].isupper() or word.text[0].isdigit() or word.text.lower() in TITLE for word in words):
        start += 4 if text[start:].startswith("the ") else 0
        return start, end
    return None


def _named_in(name: str, sources: Iterable[str]) -> bool:
    """True where a word has its capital inside a sentence too."""
    return any(word.text.removesuffix("'s") == name and not word.first for source in sources if name in source for word in _words(source))


def _runs(text: str, context: str) -> Iterable[tuple[int, int]]:
    """(start, end) of runs of capitalised words. The first word of a sentence counts where it has its capital elsewhere too."""
    words, i = _words(text), 0
    while i < len(words):
        word = words[i]
        if not _capital(word) or word.text.lower() in FUNCTION:
            i += 1
            continue
        last = j = i
        while j + 1 < len(words) and not words[j].closes and not words[j + 1].opens:
            j += 1
            if _capital(words[j]) or words[j].text[0].isdigit() and last == j - 1:
                last = j
            elif words[j].text not in JOINING:
                break
        known = not word.first or last > i or word.text in PLACES or word.text in NATIONALITIES or _named_in(word.text, (text, context))
        if known:
            yield word.start, words[last].end - 2 * words[last].text.endswith(("'s", "’s"))
        i = last + 1


def _with_region(text: str, pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Joins "Dearborn" and "Michigan" of "Dearborn, Michigan": a known place after a comma belongs to the name before it, unless a list goes on."""
    joined: list[tuple[int, int]] = []
    for start, end in pieces:
        region = text[start:end] in PLACES and not re.match(r",? (?:and|or)\b", text[end:])
        if joined and region and text[joined[-1][1]:start] == ", " and text[slice(*joined[-1])].split(", ")[0] not in PLACES:
            start = joined.pop()[0]
        joined.append((start, end))
    return joined


def name_type(name: str, before: str = "") -> str:
    """The type of a name by its own words and the word before it; "name" where they do not say."""
    words = [word.strip(".,\"'()") for word in name.split() if not word[0].isdigit()] or [name]
    if name in NATIONALITIES:
        return "nationality"
    if name in PLACES or name.split(", ")[-1] in PLACES and "," in name:
        return "place"
    for known, kind in ((ORGANISATION_WORDS, "organisation"), (PLACE_WORDS, "place")):
        if len(words) > 1 and (words[-1] in known or words[0] in known and kind == "place" or words[0] in known and words[1] == "of"):
            return kind
    if len(words) > 1 and (words[0] in PERSON_WORDS or words[-1] in ("Jr", "Sr") or re.match(r"(?:[A-Z]\. ?)+[A-Z]\w", name)):
        return "person"
    if 1 < len(words) < 5 and words[0] in FIRST_NAMES and not JOINING - {"de", "la", "von", "van", "der"} & set(words):
        return "person"
    return "place" if before in PLACE_BEFORE else "name"


CONTRADICTED = {("person", "organisation"), ("person", "place"), ("place", "person")}  # (what was asked for, what the words say): "who" may be a firm


def choice(question: str, name: str) -> str:
    """The other option of a question "..., A or B?" that offers `name` as one of two; "" where it does not."""
    pieces = list(_runs(question, "")) if " or " in question else []
    for (start, end), (after, last) in zip(pieces, pieces[1:]):
        if re.fullmatch(r",? or (?:the |an? )?", question[end:after], re.IGNORECASE):
            options = question[start:end], question[after:last]
            same = [aliases(name, option) for option in options]
            if same in ([True, False], [False, True]):
                return options[same.index(False)]
    return ""


def find(text: str, question: str = "", context: str = "") -> list[Span]:
    """The typed spans of a text by rules, in order, none over another.

    `question` types a name that is the whole text, or the text's only name that the question does not hold itself. `context` tells names from
    words that merely open a sentence.
    """
    taken: list[Span] = []

    def add(span: Span) -> None:
        if all(span.end <= other.start or span.start >= other.end for other in taken):
            taken.append(span)

    kind, sort = asked(question)
    kind = kind if kind in NAMES else "name" if not kind and sort else ""
    whole, bare = _whole(text, question), text.strip().rstrip(".")
    closed = "weekday" if bare in WEEKDAYS else "month" if bare.lower() in MONTHS else ""
    dated = {span.type for span in numeric_spans(text) if span.end - span.start >= len(bare)}
    if closed and not dated:
        return [Span(text.index(bare), text.index(bare) + len(bare), bare, closed)]
    if whole and not dated & set(NUMERIC):
        name = text[slice(*whole)]
        own = name_type(name)
        # the question knows best what it asks for, but "who" may be a firm or a club, and a film is no country
        trusted = own != "name" and (kind in ("", "name") or name in PLACES | NATIONALITIES or (kind, own) in CONTRADICTED)
        return [Span(*whole, name, own if trusted else kind or own, sort if not trusted or own == kind or kind == "name" else "")]
    for span in numeric_spans(text):
        add(span)
    names = [(start, end) for start, end in _with_region(text, list(_runs(text, f"{question} {context}")))
             if text[start:end] not in WEEKDAYS and not CALENDAR.fullmatch(text[start:end])]
    new = [piece for piece in names if text[slice(*piece)] not in question]
    between = "".join(text[end:start] for (_, end), (start, _) in zip([(0, 0), *names], [*names, (len(text), 0)]))
    only_names = set(re.findall(r"\w+", between)) <= {"and", "or", "the"}  # "Tim Rice and Andrew Lloyd Webber"
    for start, end in names:
        following = re.match(r" ([a-z]+)", text[end:])  # "in Paris", but "in Confederate states"
        before = "" if following and following[1] not in FUNCTION else text[:start].rstrip().rpartition(" ")[2].lower()
        own = name_type(text[start:end], before)
        answers = kind and (only_names or new == [(start, end)]) and own in ("name", kind)
        add(Span(start, end, text[start:end], kind if answers else own, sort if answers else ""))
    return sorted(taken, key=lambda span: span.start)


SPACY_TYPES = {"PERSON": "person", "GPE": "place", "LOC": "place", "FAC": "place", "ORG": "organisation", "NORP": "nationality", "WORK_OF_ART": "work",
               "DATE": "date", "MONEY": "money", "PERCENT": "percent", "QUANTITY": "quantity", "CARDINAL": "number", "ORDINAL": "ordinal",
               "EVENT": "name", "PRODUCT": "name", "LAW": "name", "LANGUAGE": "nationality"}


def spacy_finder(model: str = "en_core_web_sm") -> Finder:
    """A `find` that takes its names from a spaCy pipeline; numbers and dates stay the rules', which know the forms that can be changed.

    UserError where spaCy or the pipeline is missing.
    """
    try:
        import spacy
    except ImportError:
        raise UserError("entities by spaCy need it: pip install spacy, or leave the rules on, which need nothing.") from None
    try:
        pipeline = spacy.load(model)
    except OSError:
        raise UserError(f"spaCy has no pipeline '{model}': python -m spacy download {model}, or name one that is installed.") from None

    def found(text: str, question: str = "", context: str = "") -> list[Span]:
        numeric = [span for span in find(text, question, context) if span.type not in NAMES]
        names = [Span(e.start_char, e.end_char, e.text, SPACY_TYPES.get(e.label_, "name")) for e in pipeline(text).ents]
        kind, sort = asked(question)
        names = [replace(name, sort=sort) if name.type == kind else name for name in names if name.type in NAMES]
        apart = [name for name in names if all(name.end <= n.start or name.start >= n.end for n in numeric)]
        return sorted([*numeric, *apart], key=lambda span: span.start)
    return found
