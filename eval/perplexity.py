"""Perplexity: how surprised a model is, per token, by what people (or the corpus) wrote.

Measured on held-out chosen and rejected replies, on whole transcripts, and on general text, where a rise is the alignment tax.
Perplexity depends on the tokenizer, bits per byte does not: two models with different vocabularies compare by the latter.
"""
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from batching import score_pairs
from data.store import PairStore
from eval import stats
from eval.replies import as_store
from eval.stats import Interval
from model import GPT
from runtime.device import Device
from tokenizer import Tokenizer


def perplexity(logps: Sequence[float], tokens: Sequence[int], resamples: int = 10_000, seed: int = 0) -> Interval:
    """exp(-sum of log-probs / number of tokens) over n texts, each token weighing the same.

    logps [n]: log p(text) in nats, summed over its scored tokens, end-of-text included. tokens [n]: their number.
    The interval resamples texts and is made for the mean in nats, then exponentiated (quantiles survive a monotone map).
    """
    _check(tokens)
    nats = stats.ratio(-np.asarray(logps, dtype=np.float64), tokens, resamples, seed)
    return Interval(*(None if x is None else math.exp(x) for x in (nats.value, nats.low, nats.high)), nats.n, nats.method, seed)


def bits_per_byte(logps: Sequence[float], n_bytes: Sequence[int], resamples: int = 10_000, seed: int = 0) -> Interval:
    """-sum of log2-probs / number of UTF-8 bytes of n texts (end-of-text is predicted but is no byte)."""
    _check(n_bytes)
    return stats.ratio(-np.asarray(logps, dtype=np.float64) / math.log(2), n_bytes, resamples, seed)


def _check(counts: Sequence[int]) -> None:
    if len(counts) == 0 or min(counts) <= 0:
        raise ValueError("every text needs at least one token and one byte")


# ---- which texts ----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Texts:
    """Texts to be scored whole: ids [n] behind a start token, and what to divide by. `cut` of them were pieces of longer ones."""
    ids: list[list[int]]
    n_bytes: np.ndarray
    cut: int = 0


def transcripts(store: PairStore, indices: np.ndarray, tok: Tokenizer) -> Texts:
    """Prompt and chosen reply of each pair as one text, both sides' turns scored."""
    ids = []
    for i in indices:
        prompt, _, chosen, _ = store.row(int(i))
        ids.append([*prompt[1:].tolist(), *chosen.tolist()])
    return Texts(ids, count_bytes(ids, tok))


def general(paragraphs: Sequence[str], tok: Tokenizer, block_size: int) -> Texts:
    """Paragraphs, each ended by end-of-text; one longer than the block is cut into pieces that start without context."""
    ids, cut = [], 0
    for paragraph in paragraphs:
        whole, room = [*tok.encode(paragraph), tok.eot_id], block_size - 1
        pieces = [whole[start:start + room] for start in range(0, len(whole), room)]
        cut += len(pieces) > 1
        ids += [piece for piece in pieces if piece != [tok.eot_id]]
    return Texts(ids, count_bytes(ids, tok), cut)


def count_bytes(ids: Sequence[Sequence[int]], tok: Tokenizer) -> np.ndarray:
    """UTF-8 bytes of each text [n]; end-of-text has none."""
    sizes = np.array([len(tok.token_bytes(i)) if i != tok.eot_id else 0 for i in range(tok.vocab_size)])
    return np.array([sizes[list(row)].sum() for row in ids])


def score_texts(model: GPT, texts: Texts, tok: Tokenizer, micro_tokens: int, device: Device) -> np.ndarray:
    """log p(text) [n] in nats, by the code path that scores pairs."""
    with as_store([([tok.eot_id], row) for row in texts.ids], tok.vocab_size) as store:
        return score_pairs(model, store, np.arange(len(store)), micro_tokens, device.autocast)[0]


def perplexity_row(text: str, logps: Mapping[str, np.ndarray], tokens: np.ndarray, n_bytes: np.ndarray, resamples: int, seed: int) -> dict:
    """One row of the table: perplexity and bits per byte per stage, and the difference DPO - SFT in nats per token with its test.

    logps: {stage: [n]}, of the same texts in the same order.
    """
    stages = {stage: {"perplexity": perplexity(sums, tokens, resamples, seed).to_dict(),
                      "bits_per_byte": bits_per_byte(sums, n_bytes, resamples, seed).to_dict()} for stage, sums in logps.items()}
    before, after = -logps["sft"].astype(np.float64), -logps["dpo"].astype(np.float64)
    return {"text": text, "stages": stages, "difference": stats.ratio(after - before, tokens, resamples, seed).to_dict(),
            "p": stats.sign_flip_test(before, after, resamples, seed), "test": "sign flip"}
