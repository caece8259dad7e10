"""Pairs ranked and replies compared, by hand; baselines that must learn what is there and nothing else."""
import numpy as np
import pytest

from data.make_toy import draw_split, split_transcript
from eval import pairwise
from eval.oracle import compare


def test_rewards_and_accuracy_by_hand():
    chosen = pairwise.implicit_rewards(np.array([-10.0, -5.0, -7.0]), np.array([-12.0, -4.0, -7.0]), beta=0.1)
    rejected = pairwise.implicit_rewards(np.array([-8.0, -9.0, -3.0]), np.array([-8.0, -7.5, -3.0]), beta=0.1)
    assert chosen == pytest.approx([0.2, -0.1, 0.0]) and rejected == pytest.approx([0.0, -0.15, 0.0])
    right = pairwise.ranked_right(chosen, rejected)
    assert right.tolist() == [1.0, 1.0, 0.5]  # equal rewards count half
    result = pairwise.accuracy(right, ["p", "q", "q"])
    assert result["accuracy"].value == pytest.approx(2.5 / 3)
    assert (result["pairs"], result["ties"], result["accuracy"].n) == (3, 1, 2)  # n counts prompts, the units resampled


def test_an_untrained_policy_scores_exactly_one_half():
    same = np.array([-3.0, -8.0, -1.5])
    right = pairwise.ranked_right(pairwise.implicit_rewards(same, same, 0.1), pairwise.implicit_rewards(same - 1, same - 1, 0.1))
    assert right.tolist() == [0.5, 0.5, 0.5]


def test_an_unscored_pair_is_an_error_not_a_loss():
    with pytest.raises(ValueError, match="not scored"):
        pairwise.ranked_right(np.array([1.0, np.nan]), np.array([0.0, 0.0]))


def test_by_subset():
    result = pairwise.by_subset(np.array([1.0, 0.0, 1.0, 1.0]), ["a", "b", "c", "d"], ["x", "x", "y", "y"])
    assert {name: r["accuracy"].value for name, r in result.items()} == {"pooled": 0.75, "x": 0.5, "y": 1.0}
    assert set(pairwise.by_subset(np.array([1.0, 0.0]), ["a", "b"], ["x", "x"])) == {"pooled"}


def test_longer_reply_wins_by_hand():
    assert pairwise.longer_reply_wins(["a b c", "a", "a b"], ["a", "a b", "c d"]).tolist() == [1.0, 0.0, 0.5]


def test_bag_of_words_finds_a_word_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(50)]
    a, b = ([" ".join(rng.choice(vocabulary, 8)) for _ in range(800)] for _ in range(2))
    noise = pairwise.bag_of_words(a[:600], b[:600], a[600:], b[600:])
    assert 0.4 < noise.mean() < 0.6
    good = [reply + " please" if rng.random() < 0.8 else reply for reply in a]
    found = pairwise.bag_of_words(good[:600], b[:600], good[600:], b[600:])
    assert found.mean() > 0.8
    # the order of the sides must not leak: swap chosen and rejected in training, and it learns the opposite
    assert pairwise.bag_of_words(b[:600], good[:600], good[600:], b[600:]).mean() < 0.2
    assert pairwise.bag_of_words(good[:600], b[:600], ["w1"], ["w1"]).tolist() == [0.5]


def test_nearest_training_prompt():
    train = ["how do I bake a cake", "what is the capital of France", "how do I paint a door"]
    replies = pairwise.nearest_training_replies(train, ["bake", "paris", "paint"], ["the capital of Spain", "paint my own door", "bake it"])
    assert replies == ["paris", "paint", "bake"]


def test_win_rate_by_hand():
    verdicts = {"p": 1, "q": -1, "r": 0, "s": 1, "t": 1}
    result = pairwise.win_rate(list(verdicts), ["a"] * 5, ["b"] * 5, lambda prompt, b, a: verdicts[prompt] if (a, b) == ("a", "b") else 9)
    assert (result["wins"], result["losses"], result["ties"]) == (3, 1, 1)
    assert result["rate"].value == 0.75 and result["rate"].n == 4 and result["undecided"].value == 0.2
    assert result["p"] == pytest.approx(10 / 16)  # 3 of 4: 2 (1 + 4) / 2^4
    assert pairwise.win_rate(["p"], ["x"], ["x"], lambda *_: 0)["rate"] is None


def test_win_rate_with_the_oracle_is_antisymmetric_and_ties_with_itself():
    rows = draw_split(1, "val")[:100]
    prompts, chosen = zip(*(split_transcript(row["chosen"]) for row in rows))
    rejected = [split_transcript(row["rejected"])[1] for row in rows]
    forward, back = pairwise.win_rate(prompts, rejected, chosen, compare), pairwise.win_rate(prompts, chosen, rejected, compare)
    assert (forward["wins"], forward["losses"], forward["ties"]) == (back["losses"], back["wins"], back["ties"])
    assert forward["wins"] > forward["losses"] > 0  # 28 % of the labels are flipped
    assert pairwise.win_rate(prompts, chosen, chosen, compare)["ties"] == 100
