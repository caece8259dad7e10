"""Held-out pairs ranked, by hand; baselines that must learn what is there and nothing else."""
import numpy as np
import pytest

from eval import reward_accuracy as held


def test_rewards_and_accuracy_by_hand():
    chosen = held.implicit_rewards(np.array([-10.0, -5.0, -7.0]), np.array([-12.0, -4.0, -7.0]), beta=0.1)
    rejected = held.implicit_rewards(np.array([-8.0, -9.0, -3.0]), np.array([-8.0, -7.5, -3.0]), beta=0.1)
    assert chosen == pytest.approx([0.2, -0.1, 0.0]) and rejected == pytest.approx([0.0, -0.15, 0.0])
    right = held.ranked_right(chosen, rejected)
    assert right.tolist() == [1.0, 1.0, 0.5]  # equal rewards count half
    result = held.accuracy(right, ["p", "q", "q"])
    assert result["accuracy"].value == pytest.approx(2.5 / 3)
    assert (result["pairs"], result["ties"], result["accuracy"].n) == (3, 1, 2)  # n counts prompts, the units resampled


def test_an_untrained_policy_scores_exactly_one_half():
    same = np.array([-3.0, -8.0, -1.5])
    right = held.ranked_right(held.implicit_rewards(same, same, 0.1), held.implicit_rewards(same - 1, same - 1, 0.1))
    assert right.tolist() == [0.5, 0.5, 0.5]


def test_an_unscored_pair_is_an_error_not_a_loss():
    with pytest.raises(ValueError, match="not scored"):
        held.ranked_right(np.array([1.0, np.nan]), np.array([0.0, 0.0]))


def test_by_subset():
    result = held.by_subset(np.array([1.0, 0.0, 1.0, 1.0]), ["a", "b", "c", "d"], ["x", "x", "y", "y"])
    assert {name: r["accuracy"].value for name, r in result.items()} == {"pooled": 0.75, "x": 0.5, "y": 1.0}
    assert set(held.by_subset(np.array([1.0, 0.0]), ["a", "b"], ["x", "x"])) == {"pooled"}


def test_longer_reply_wins_by_hand():
    assert held.longer_reply_wins(["a b c", "a", "a b"], ["a", "a b", "c d"]).tolist() == [1.0, 0.0, 0.5]


def test_bag_of_words_finds_a_word_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(50)]
    a, b = ([" ".join(rng.choice(vocabulary, 8)) for _ in range(800)] for _ in range(2))
    noise = held.bag_of_words(a[:600], b[:600], a[600:], b[600:])
    assert 0.4 < noise.mean() < 0.6
    good = [reply + " please" if rng.random() < 0.8 else reply for reply in a]
    found = held.bag_of_words(good[:600], b[:600], good[600:], b[600:])
    assert found.mean() > 0.8
    # the order of the sides must not leak: swap chosen and rejected in training, and it learns the opposite
    assert held.bag_of_words(b[:600], good[:600], good[600:], b[600:]).mean() < 0.2
    assert held.bag_of_words(good[:600], b[:600], ["w1"], ["w1"]).tolist() == [0.5]
