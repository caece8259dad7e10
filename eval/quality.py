"""What replies look like: length, variety, repetition, sameness, how they end, and how far the policy has drifted.

Per-reply measures return one value per reply, NaN where the measure is undefined (an empty reply has no type-token ratio);
the caller drops those and says how many are left. Verbose systems repeat words more, whatever they say, so variety is compared
at equal length: in windows of WINDOW words within a reply (MATTR), over an equal budget of n-grams between replies (distinct-n).
None of these says that a reply is *good*: they catch a policy that talks in circles, says the same thing to everybody, or no
longer stops.
"""
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from runtime.errors import UserError

WINDOW = 20  # words: short, because a chat reply is; MATTR is usually reported for texts, in windows of hundreds
ORDER = 4    # the longest n-gram of BLEU


def words(text: str) -> list[str]:
    """Lower-case words split at white space: what every count in this file counts."""
    return text.lower().split()


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """The len(tokens) - n + 1 runs of n tokens (none when there are fewer tokens)."""
    return list(zip(*(tokens[i:] for i in range(n))))


def word_counts(replies: Sequence[str]) -> np.ndarray:
    """Words per reply [n]."""
    return np.array([len(words(reply)) for reply in replies], dtype=np.float64)


def type_token_ratio(replies: Sequence[str]) -> np.ndarray:
    """Distinct words / words [n]; falls with length, so compare it between systems of like length only, or see `mattr`."""
    return np.array([len(set(w)) / len(w) if w else math.nan for w in map(words, replies)])


def mattr(replies: Sequence[str], window: int = WINDOW) -> np.ndarray:
    """Moving-average type-token ratio [n] (Covington & McFall 2010): the mean over every run of `window` words of its distinct words
    / window. Does not fall with length as the plain ratio does. NaN for a reply of fewer than `window` words."""
    result = np.full(len(replies), math.nan)
    for i, tokens in enumerate(map(words, replies)):
        if len(tokens) < window:
            continue
        inside = Counter(tokens[:window])
        distinct = [len(inside)]
        for new, old in zip(tokens[window:], tokens):  # the window moves on by one word
            inside[new] += 1
            inside[old] -= 1
            if not inside[old]:
                del inside[old]
            distinct.append(len(inside))
        result[i] = sum(distinct) / len(distinct) / window
    return result


def distinct_n(replies: Sequence[str], n: int, budget: int, seed: int = 0) -> float:
    """Distinct n-grams / n-grams over all replies of a system (Li et al. 2016), from the first `budget` n-grams met when the replies
    are read in an order drawn by `seed`; an n-gram does not cross from one reply into the next.

    The budget, because every language runs out of new n-grams: of two systems that draw on the same words the more verbose one scores
    lower. Give each system of a comparison the same (`common_budget`). NaN with fewer n-grams than that: another budget does not compare.
    """
    if n < 1 or budget < 1:
        raise ValueError(f"n = {n}, budget = {budget}: both must be at least 1")
    seen: list[tuple[str, ...]] = []
    for i in np.random.default_rng(seed).permutation(len(replies)).tolist():
        seen += ngrams(words(replies[i]), n)
        if len(seen) >= budget:
            return len(set(seen[:budget])) / budget
    return math.nan


def common_budget(systems: Iterable[Sequence[str]], n: int) -> int:
    """The largest budget that all systems can spend: the number of n-grams of the tersest one (0 if one has none, or none is given)."""
    return min((sum(max(0, len(words(reply)) - n + 1) for reply in replies) for replies in systems), default=0)


def repetition(replies: Sequence[str], n: int) -> np.ndarray:
    """1 - distinct n-grams / n-grams [n_replies] (seq-rep-n of Welleck et al. 2020); undefined below n words."""
    grams = [ngrams(words(reply), n) for reply in replies]
    return np.array([1 - len(set(g)) / len(g) if g else math.nan for g in grams])


def self_bleu(replies: Sequence[str], seed: int = 0, sample: int = 200) -> np.ndarray:
    """BLEU-4 of each reply against all others [n] (Zhu et al. 2018): 1 = everybody is told the same, 0 = no word shared.

    Computed within a sample of at most `sample` positions drawn by `seed`, the same for every system; NaN elsewhere and for
    empty replies. Figures for different sample sizes do not compare. The score is sacrebleu's (Post 2018) over `words`: reference
    length nearest to the reply's, an order without a match counts 0.1 matches (Chen & Cherry 2014, smoothing 1), a reply of fewer
    than four words uses the orders it has.

    sacrebleu gets the counts instead of the texts: it would count each reply's n-grams anew for every other reply.
    """
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise UserError("Self-BLEU needs sacrebleu: pip install -r requirements-extra.txt") from None
    result = np.full(len(replies), math.nan)
    picked = [i for i in np.random.default_rng(seed).permutation(len(replies))[:sample].tolist() if words(replies[i])]
    if len(picked) < 2:
        return result  # nothing to compare with
    texts = [words(replies[i]) for i in picked]
    lengths = np.array([len(w) for w in texts])
    counts = [Counter(gram for n in range(1, ORDER + 1) for gram in ngrams(w, n)) for w in texts]
    # a match is clipped at the largest count among the *others*: the best, or the second best for the one that holds the best
    best: dict[tuple[str, ...], tuple[int, int]] = {}
    for count in counts:
        for gram, times in count.items():
            first, second = best.get(gram, (0, 0))
            best[gram] = (times, first) if times > first else (first, max(second, times))
    for i, count in enumerate(counts):
        matches, total = [0] * ORDER, [0] * ORDER
        for gram, times in count.items():
            first, second = best[gram]
            matches[len(gram) - 1] += min(times, second if first == times else first)
            total[len(gram) - 1] += times
        others = np.delete(lengths, i)
        nearest = int(min(others, key=lambda other: (abs(other - lengths[i]), other)))
        score = BLEU.compute_bleu(matches, total, int(lengths[i]), nearest, smooth_method="floor", smooth_value=0.1, effective_order=True)
        result[picked[i]] = score.score / 100  # sacrebleu's scale is 0 to 100
    return result
