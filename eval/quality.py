"""What replies look like: length, variety, repetition, sameness, how they end, and how far the policy has drifted.

Per-reply measures return one value per reply, NaN where the measure is undefined (an empty reply has no type-token ratio);
the caller drops those and says how many are left. None of these says that a reply is *good*: they catch a policy that
talks in circles, says the same thing to everybody, or no longer stops.
"""
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np


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
    """Distinct words / words [n]; falls with length, so compare it between systems of like length only."""
    return np.array([len(set(w)) / len(w) if w else math.nan for w in map(words, replies)])


def repetition(replies: Sequence[str], n: int) -> np.ndarray:
    """1 - distinct n-grams / n-grams [n_replies] (seq-rep-n of Welleck et al. 2020); undefined below n words."""
    grams = [ngrams(words(reply), n) for reply in replies]
    return np.array([1 - len(set(g)) / len(g) if g else math.nan for g in grams])


def self_bleu(replies: Sequence[str], seed: int = 0, sample: int = 200, order: int = 4) -> np.ndarray:
    """BLEU-4 of each reply against all others [n] (Zhu et al. 2018): 1 = everybody is told the same, 0 = nothing shared.

    Computed within a sample of at most `sample` positions drawn by `seed`, the same for every system; NaN elsewhere and for
    empty replies. Figures for different sample sizes do not compare. BLEU as in Papineni et al. 2002 with the reference
    nearest in length; a reply of fewer than four words uses the orders it has; an order without a match counts 0.1 matches
    (Chen & Cherry 2014, smoothing 1).
    """
    result = np.full(len(replies), math.nan)
    picked = [i for i in np.random.default_rng(seed).permutation(len(replies))[:sample].tolist() if words(replies[i])]
    if len(picked) < 2:
        return result  # nothing to compare with
    texts = [words(replies[i]) for i in picked]
    lengths = np.array([len(w) for w in texts])
    log_precision, orders = np.zeros(len(texts)), np.zeros(len(texts))
    for n in range(1, order + 1):
        counts = [Counter(ngrams(w, n)) for w in texts]
        # clipping asks for the largest count among the *others*: the best, or the second best for the one that holds the best
        best: dict[tuple, list[int]] = {}
        for count in counts:
            for gram, times in count.items():
                best[gram] = sorted([*best.get(gram, [0, 0]), times], reverse=True)[:2]
        for i, count in enumerate(counts):
            if total := sum(count.values()):
                matches = sum(min(times, best[gram][best[gram][0] == times]) for gram, times in count.items())
                log_precision[i] += math.log((matches or 0.1) / total)
                orders[i] += 1
    for i, length in enumerate(lengths):
        others = np.delete(lengths, i)
        nearest = min(others, key=lambda other: (abs(other - length), other))
        brevity = min(0.0, 1 - nearest / length)
        result[picked[i]] = math.exp(brevity + log_precision[i] / orders[i])
    return result


def kl_samples(policy_logps: np.ndarray, reference_logps: np.ndarray) -> np.ndarray:
    """[n] log p_policy(reply) - log p_reference(reply) in nats, for replies drawn from the policy itself.

    Their mean is an unbiased estimate of KL(policy || reference) over replies, if they were drawn at temperature 1 with
    nothing cut off; single values may be negative, the true KL may not.
    """
    difference = np.asarray(policy_logps, dtype=np.float64) - np.asarray(reference_logps, dtype=np.float64)
    if not np.isfinite(difference).all():
        raise ValueError("log-probs hold NaN or infinity")
    return difference
