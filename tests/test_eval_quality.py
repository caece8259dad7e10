"""Response quality and perplexity by hand."""
import math
import sys
import time

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from eval import quality
from eval.perplexity import bits_per_byte, perplexity
from runtime.errors import UserError


def test_counts_by_hand():
    replies = ["the cat and the dog", "", "yes", "a b a b a b"]
    assert quality.word_counts(replies).tolist() == [5, 0, 1, 6]
    assert quality.type_token_ratio(replies) == pytest.approx([4 / 5, math.nan, 1, 2 / 6], nan_ok=True)
    # a b a b a b: four 3-grams, two distinct; three 4-grams, two distinct
    assert quality.repetition(replies, 3) == pytest.approx([0, math.nan, math.nan, 0.5], nan_ok=True)
    assert quality.repetition(replies, 4) == pytest.approx([0, math.nan, math.nan, 1 / 3], nan_ok=True)


def test_mattr_by_hand():
    # windows of three words: a b a (2), b a c (3), a c c (2): (2 + 3 + 2) / 3 / 3
    assert quality.mattr(["a b a c c", "a b", "", "a a a"], window=3) == pytest.approx([7 / 9, math.nan, math.nan, 1 / 3], nan_ok=True)
    # against the definition, window by window
    text = " ".join(np.random.default_rng(0).choice(list("abcdefghijklmnop"), 200))
    w = text.split()
    expected = np.mean([len(set(w[i:i + quality.WINDOW])) / quality.WINDOW for i in range(len(w) - quality.WINDOW + 1)])
    assert quality.mattr([text]) == pytest.approx([expected])


def test_mattr_does_not_fall_with_length_and_the_plain_ratio_does():
    vocabulary = [f"w{i}" for i in range(60)]
    short, long = (" ".join(np.random.default_rng(0).choice(vocabulary, n)) for n in (60, 2000))
    plain, moving = quality.type_token_ratio([short, long]), quality.mattr([short, long])
    assert plain[1] < plain[0] / 5 and moving[1] == pytest.approx(moving[0], rel=0.05)


def test_distinct_n_by_hand():
    # "a b a b": bigrams ab ba ab; "a b": ab. All four: {ab, ba} / 4
    replies = ["a b a b", "a b", "", "c"]
    assert quality.common_budget([replies, ["x y z"] * 3], 2) == 4 and quality.common_budget([replies, [""]], 2) == 0
    assert quality.distinct_n(replies, 2, budget=4) == pytest.approx(2 / 4)
    assert quality.distinct_n(replies, 1, budget=7) == pytest.approx(3 / 7)
    assert math.isnan(quality.distinct_n(replies, 2, budget=5)) and math.isnan(quality.distinct_n([], 1, budget=1))
    assert quality.distinct_n(["a a a", "a a a"], 2, budget=4) == 1 / 4  # no bigram from the first reply into the second
    with pytest.raises(ValueError):
        quality.distinct_n(replies, 2, budget=0)
    # which replies the budget is spent on is drawn, and the same for the same seed
    many = [f"w{i} w{i} w{i}" if i % 2 else f"w{i} x{i} y{i}" for i in range(50)]
    found = [quality.distinct_n(many, 1, budget=30, seed=seed) for seed in range(8)]
    assert len(set(found)) > 1 and found == [quality.distinct_n(many, 1, budget=30, seed=seed) for seed in range(8)]


def test_an_equal_budget_makes_verbose_and_terse_systems_comparable():
    # the same source of words, told in replies of 10 and of 100 words
    rng, vocabulary = np.random.default_rng(0), [f"w{i}" for i in range(300)]
    terse, verbose = ([" ".join(rng.choice(vocabulary, n)) for _ in range(100)] for n in (10, 100))
    all_words = [len(set(" ".join(s).split())) / len(" ".join(s).split()) for s in (terse, verbose)]
    assert all_words[1] < all_words[0] / 5  # without a budget the verbose system looks dull
    budget = quality.common_budget([terse, verbose], 1)
    assert budget == 1000 and quality.distinct_n(verbose, 1, budget) == pytest.approx(quality.distinct_n(terse, 1, budget), rel=0.05)


def test_self_bleu_extremes():
    assert quality.self_bleu(["the same old words here"] * 4) == pytest.approx([1, 1, 1, 1])
    assert quality.self_bleu(["a b c d e", "f g h i j", "k l m n o"]).tolist() == [0, 0, 0]


def test_self_bleu_by_hand():
    # "a a b" against "a b": unigrams 2 of 3 (a clipped to 1), bigrams 1 of 2 (a b), trigrams 0.1 of 1; longer than its reference
    first, second = quality.self_bleu(["a a b", "a b"])
    assert first == pytest.approx((2 / 3 * 1 / 2 * 0.1) ** (1 / 3))
    # "a b" against "a a b": all match at the two orders it has; brevity exp(1 - 3/2)
    assert second == pytest.approx(math.exp(-0.5))


def test_self_bleu_clips_by_the_others_not_by_itself():
    # twice "a" among the others would match both a's of the first; only the first has two. Bigram: 0.1 of 1
    assert quality.self_bleu(["a a", "a", "a"]) == pytest.approx([(1 / 2 * 0.1) ** 0.5, 1, 1])
    assert quality.self_bleu(["a a", "a a", "a"]) == pytest.approx([1, 1, math.exp(-1)])  # the last is too short


def test_self_bleu_is_what_sacrebleu_says_of_each_reply_against_all_others():
    rng = np.random.default_rng(0)
    replies = [" ".join(rng.choice(list("aaabbcdefg"), rng.integers(1, 12))) for _ in range(40)]
    judge = BLEU(tokenize="none", smooth_method="floor", smooth_value=0.1, effective_order=True)
    expected = [judge.sentence_score(reply, replies[:i] + replies[i + 1:]).score / 100 for i, reply in enumerate(replies)]
    assert 0.05 < np.std(expected)  # they differ, so that agreement means something
    assert quality.self_bleu(replies) == pytest.approx(expected)


def test_long_empty_and_one_word_replies_are_measured_in_time():
    rng = np.random.default_rng(0)
    replies = [" ".join(rng.choice(["lever", "water", "seven", "of", "the"], 2000))[:10_000] for _ in range(200)] + ["", "one", " \n "]
    started = time.perf_counter()
    columns = [quality.self_bleu(replies, sample=len(replies)), quality.mattr(replies), quality.repetition(replies, 4), quality.type_token_ratio(replies)]
    assert math.isfinite(quality.distinct_n(replies, 2, 10_000))
    assert time.perf_counter() - started < 10
    for column in columns:
        assert np.isfinite(column[:200]).all() and np.isnan(column[[200, 202]]).all()
    assert [column[201] for column in columns] == pytest.approx([0, math.nan, math.nan, 1], nan_ok=True)


def test_self_bleu_without_sacrebleu_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(UserError, match="requirements-extra"):
        quality.self_bleu(["a", "b"])


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


def test_perplexity_by_hand():
    # two replies: 3 tokens at 1/2 each, 1 token at 1/32: mean nats = (3 ln 2 + 5 ln 2) / 4 = 2 ln 2, so perplexity 4
    interval = perplexity([-3 * math.log(2), -5 * math.log(2)], [3, 1])
    assert interval.value == pytest.approx(4)  # the mean of the replies' own perplexities would be (2 + 32) / 2
    assert interval.low == pytest.approx(2) and interval.high == pytest.approx(32) and interval.n == 2
    assert bits_per_byte([-3 * math.log(2), -5 * math.log(2)], [6, 4]).value == pytest.approx(0.8)


def test_a_uniform_model_has_the_vocabulary_as_perplexity():
    tokens = [4, 9, 2, 17]
    interval = perplexity([-n * math.log(1024) for n in tokens], tokens)
    assert interval.value == pytest.approx(1024)
    assert (interval.low, interval.high) == (None, None)  # texts that are all alike say nothing of how much others would vary


def test_perplexity_refuses_what_it_cannot_score():
    for logps, tokens in (([], []), ([-1.0], [0]), ([math.nan], [3]), ([-math.inf], [3])):
        with pytest.raises(ValueError):
            perplexity(logps, tokens)
