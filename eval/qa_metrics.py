"""Is an answer the gold answer? Pure functions of strings: `answer` is what was said, `golds` all accepted answers, every value lies in 0 .. 1.

Exact match, F1, `alias_match` and `contains` read what the answer says. BLEU and ROUGE (the second half) count n-grams and were made for
texts of many sentences: on an answer of two words they measure its format, and are kept to show just that.
"""
import functools
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from eval.quality import ngrams
from runtime.errors import UserError

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen "
        "twenty").split()
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
MONTHS = "january february march april may june july august september october november december".split()
PLACES = {"us": "united states", "usa": "united states", "united states of america": "united states", "uk": "united kingdom",
          "ussr": "soviet union", "nyc": "new york city"}
SAME_WORD = ({word: str(i) for i, word in enumerate(ONES)} | {word: f"{i}th" for i, word in enumerate(ORDINALS, 1)}
             | {"1st": "1th", "2nd": "2th", "3rd": "3th"} | {month[:3]: month for month in MONTHS} | {"sept": "september"}
             | {"st": "saint", "mt": "mount", "dr": "doctor"})  # nobody writes "Main Saint": what is made equal too much is equal to nothing


# ---- what the answer says ---------------------------------------------------------------------------------------------

def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and extra spaces: SQuAD v1.1's rule (Rajpurkar et al. 2016), to the letter.

    To the letter means with its faults: "4.5" and "45" become the same, "rock-n-roll" one word, and the grade "A" nothing.
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def _best(answer: str, golds: Sequence[str], score: Callable[[str, str], float]) -> float:
    """The highest score against any gold answer. ValueError without one, and for a string in place of a list of strings."""
    if isinstance(golds, str) or not golds:
        raise ValueError("golds is a non-empty list of answers")
    return max(score(answer, gold) for gold in golds)


def exact_match(answer: str, golds: Sequence[str]) -> float:
    """1.0 when the normalised answer is a normalised gold answer."""
    return _best(answer, golds, lambda a, g: float(normalise(a) == normalise(g)))


def f1(answer: str, golds: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over normalised tokens, the best over the golds. Where one side has no token (SQuAD v2): equality."""
    return _best(answer, golds, lambda a, g: _token_f1(normalise(a).split(), normalise(g).split()))


def _token_f1(answer: Sequence, gold: Sequence) -> float:
    """F1 of two bags; two empty ones are equal."""
    if not answer or not gold:
        return float(list(answer) == list(gold))
    return 2 * (Counter(answer) & Counter(gold)).total() / (len(answer) + len(gold))


def contains(answer: str, golds: Sequence[str]) -> float:
    """1.0 when a normalised gold stands in the answer as whole words. A long answer passes for a short one, and "not Paris" for "Paris".

    A gold of articles and punctuation alone (the grade "A") stands in everything: there it must be the whole answer.
    """
    def inside(a: str, g: str) -> float:
        a, g = normalise(a), normalise(g)
        return float(f" {g} " in f" {a} " if g else a == g)
    return _best(answer, golds, inside)


def canonical(text: str) -> str:
    """One spelling for the spellings of an answer: equal strings are aliases of each other.

    "Two" = "2", "first" = "1st", "5th of May 1990" = "May 5, 1990", "U.S." = "United States", "Beyoncé" = "Beyonce", "AT&T" = "AT and T",
    "St. Louis" = "Saint Louis", "US Army" = "United States Army", "Sci-Fi" = "sci fi", "Mercury (planet)" = "Mercury", and "4.5" is not "45". It knows no nicknames and no other facts.
    """
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    text = re.sub(r"\([^)]*\)", " ", text) if re.sub(r"\([^)]*\)|\W", "", text) else text
    text = re.sub(r"\bU\.?S\.?(?![\w$.])", "United States", text)  # capitals alone: "us" is a pronoun
    text = re.sub(r"(?<=\d)\.(?=\d)", " point ", text).replace("&", " and ")
    text = normalise(re.sub("[-‐-―/]", " ", text.translate(str.maketrans("‘’“”", "''\"\""))))
    words = [SAME_WORD.get(word, word) for word in text.split()]
    if any(word in MONTHS for word in words) and all(word in MONTHS or word == "of" or re.fullmatch(r"\d+(th)?", word) for word in words):
        words = sorted(word.removesuffix("th") if word[0].isdigit() else word for word in words if word != "of")  # day, month, year in any order
    return PLACES.get(" ".join(words), " ".join(words))


def alias_match(answer: str, golds: Sequence[str]) -> float:
    """1.0 when the answer is a gold answer in another spelling (`canonical`); at least `exact_match`."""
    return max(exact_match(answer, golds), _best(answer, golds, lambda a, g: float(canonical(a) == canonical(g))))


def yes_no(text: str) -> str:
    """"yes" or "no" when that is all the text says, else ""."""
    said = normalise(text)
    return said if said in ("yes", "no") else ""


def word_count(text: str) -> int:
    """Words, split at white space."""
    return len(text.split())


# ---- format-sensitive: n-grams ------------------------------------------------------------------------------------------

def _rouge_words(text: str) -> list[str]:
    """Runs of a-z and 0-9 in lower case, unstemmed: ROUGE's usual tokens. Every other letter is lost."""
    return re.findall("[a-z0-9]+", text.lower())


def rouge_n(answer: str, golds: Sequence[str], n: int) -> float:
    """ROUGE-n F: overlap of n-grams (Lin 2004, §2). 0 for a text shorter than n words, an exact match included."""
    def overlap(a: str, g: str) -> float:
        a, g = (ngrams(_rouge_words(text), n) for text in (a, g))
        return _token_f1(a, g) if a and g else 0.0
    return _best(answer, golds, overlap)


def rouge_l(answer: str, golds: Sequence[str]) -> float:
    """ROUGE-L F with beta = 1: the longest common subsequence (Lin 2004, §3.1)."""
    def overlap(a: str, g: str) -> float:
        a, g = _rouge_words(a), _rouge_words(g)
        return 2 * _common_subsequence(a, g) / (len(a) + len(g)) if a and g else 0.0
    return _best(answer, golds, overlap)


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0  # the row above, one to the left
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


@functools.cache
def _bleu(smoothed: bool):
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise UserError("BLEU needs sacrebleu: pip install sacrebleu") from None
    return BLEU(smooth_method="exp", effective_order=True) if smoothed else BLEU(smooth_method="none")


def bleu_unsmoothed(answer: str, golds: Sequence[str]) -> float:
    """4-gram BLEU of one answer without smoothing (Papineni et al. 2002, eq. 3), as the published system averages it: a corpus formula,
    0 whenever one of the four n-gram counts is 0. So an exact match of fewer than four tokens scores 0."""
    return _best(answer, golds, lambda a, g: min(1.0, _bleu(False).corpus_score([a], [[g]]).score / 100))


def bleu(answer: str, golds: Sequence[str]) -> float:
    """BLEU made fit for one sentence: orders that the answer is too short for are left out, and the k-th zero count becomes 1 / 2^k
    (Chen & Cherry 2014, smoothing 3)."""
    return _best(answer, golds, lambda a, g: min(1.0, _bleu(True).sentence_score(a, [g]).score / 100))
