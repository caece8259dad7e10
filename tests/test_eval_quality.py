"""Response quality and perplexity by hand."""
import math

import numpy as np
import pytest

from eval import quality
from eval.perplexity import bits_per_byte, perplexity


def test_counts_by_hand():
    replies = ["the cat and the dog", "", "yes", "a b a b a b"]
    assert quality.word_counts(replies).tolist() == [5, 0, 1, 6]
    assert quality.type_token_ratio(replies) == pytest.approx([4 / 5, math.nan, 1, 2 / 6], nan_ok=True)
    # a b a b a b: four 3-grams, two distinct; three 4-grams, two distinct
    assert quality.repetition(replies, 3) == pytest.approx([0, math.nan, math.nan, 0.5], nan_ok=True)
    assert quality.repetition(replies, 4) == pytest.approx([0, math.nan, math.nan, 1 / 3], nan_ok=True)


def test_self_bleu_extremes():
    assert quality.self_bleu(["the same old words here"] * 4) == pytest.approx([1, 1, 1, 1])
    different = quality.self_bleu(["a b c d e", "f g h i j", "k l m n o"])
    # no match at any order: (.1/5 .1/4 .1/3 .1/2)^(1/4)
    assert different == pytest.approx([(0.1**4 / (5 * 4 * 3 * 2)) ** 0.25] * 3)


def test_self_bleu_by_hand():
    # "a a b" against "a b": unigrams 2 of 3 (a clipped to 1), bigrams 1 of 2 (a b), trigrams 0.1 of 1; longer than its reference
    first, second = quality.self_bleu(["a a b", "a b"], order=3)
    assert first == pytest.approx((2 / 3 * 1 / 2 * 0.1) ** (1 / 3))
    # "a b" against "a a b": all match at the two orders it has; brevity exp(1 - 3/2)
    assert second == pytest.approx(math.exp(-0.5))


def test_self_bleu_clips_by_the_others_not_by_itself():
    # twice "a a" among the others would match both a's; here only one reply has two
    scores = quality.self_bleu(["a a", "a", "a"], order=1)
    assert scores == pytest.approx([1 / 2, 1, 1])
    assert quality.self_bleu(["a a", "a a", "a"], order=1) == pytest.approx([1, 1, math.exp(-1)])  # the last is too short


def test_self_bleu_is_seeded_and_skips_empty_replies():
    replies = [" ".join(np.random.default_rng(i).choice(list("abcdefgh"), 6)) for i in range(40)]
    scores = quality.self_bleu(replies, seed=1, sample=10)
    assert np.isfinite(scores).sum() == 10 and np.array_equal(scores, quality.self_bleu(replies, seed=1, sample=10), equal_nan=True)
    assert not np.array_equal(np.isfinite(scores), np.isfinite(quality.self_bleu(replies, seed=2, sample=10)))
    # the places stay the same when another system leaves some of them empty, so that two systems can be paired
    with_empty = ["" if np.isfinite(score) and i % 2 else reply for i, (score, reply) in enumerate(zip(scores, replies))]
    fewer = np.isfinite(quality.self_bleu(with_empty, seed=1, sample=10))
    assert 0 < fewer.sum() < 10 and not (fewer & ~np.isfinite(scores)).any()
    assert np.isnan(quality.self_bleu(["alone", "", ""])).all()


def test_kl_estimate_agrees_with_the_exact_value():
    # two distributions over three replies; draw from p, average log p - log q
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.4, 0.4, 0.2])
    draws = np.random.default_rng(0).choice(3, 200_000, p=p)
    estimate = quality.kl_samples(np.log(p)[draws], np.log(q)[draws]).mean()
    assert estimate == pytest.approx((p * np.log(p / q)).sum(), abs=0.005)
    with pytest.raises(ValueError):
        quality.kl_samples(np.array([np.nan]), np.array([-1.0]))


def test_perplexity_by_hand():
    # two replies: 3 tokens at 1/2 each, 1 token at 1/32: mean nats = (3 ln 2 + 5 ln 2) / 4 = 2 ln 2, so perplexity 4
    interval = perplexity([-3 * math.log(2), -5 * math.log(2)], [3, 1])
    assert interval.value == pytest.approx(4)  # the mean of the replies' own perplexities would be (2 + 32) / 2
    assert interval.low == pytest.approx(2) and interval.high == pytest.approx(32) and interval.n == 2
    assert bits_per_byte([-3 * math.log(2), -5 * math.log(2)], [6, 4]).value == pytest.approx(0.8)


def test_a_uniform_model_has_the_vocabulary_as_perplexity():
    tokens = [4, 9, 2, 17]
    interval = perplexity([-n * math.log(1024) for n in tokens], tokens)
    assert (interval.value, interval.low, interval.high) == pytest.approx((1024, 1024, 1024))


def test_perplexity_refuses_what_it_cannot_score():
    for logps, tokens in (([], []), ([-1.0], [0]), ([math.nan], [3]), ([-math.inf], [3])):
        with pytest.raises(ValueError):
            perplexity(logps, tokens)
