"""Perplexity of held-out replies: how surprised a model is, per token, by what people (or the corpus) wrote.

Perplexity depends on the tokenizer, bits per byte does not: two models with different vocabularies compare by the latter.
"""
import math
from collections.abc import Sequence

import numpy as np

from eval import stats
from eval.stats import Interval


def perplexity(logps: Sequence[float], tokens: Sequence[int], resamples: int = 10_000, seed: int = 0) -> Interval:
    """exp(-sum of log-probs / number of tokens) over n replies, each token weighing the same.

    logps [n]: log p(reply | prompt) in nats, summed over the reply's tokens, end-of-text included. tokens [n]: their number.
    The interval resamples replies and is made for the mean in nats, then exponentiated (quantiles survive a monotone map).
    """
    _check(tokens)
    nats = stats.ratio(-np.asarray(logps, dtype=np.float64), tokens, resamples, seed)
    return Interval(*(math.exp(x) for x in (nats.value, nats.low, nats.high)), nats.n, nats.method, seed)


def bits_per_byte(logps: Sequence[float], n_bytes: Sequence[int], resamples: int = 10_000, seed: int = 0) -> Interval:
    """-sum of log2-probs / number of UTF-8 bytes of the reply texts over n replies (end-of-text is predicted but is no byte)."""
    _check(n_bytes)
    return stats.ratio(-np.asarray(logps, dtype=np.float64) / math.log(2), n_bytes, resamples, seed)


def _check(counts: Sequence[int]) -> None:
    if len(counts) == 0 or min(counts) <= 0:
        raise ValueError("every reply needs at least one token and one byte")
