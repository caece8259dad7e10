"""Replies compared: the protocol's verdicts by hand, both orders, what is not judged, and baselines; real scores antisymmetric."""
import numpy as np
import pytest

from data.make_toy import draw_split, split_transcript
from eval import pairwise
from eval.oracle import describe_prompt, judge_reply


def test_two_orders_give_one_verdict():
    for judged, verdict in ((("a", "a"), "a"), (("b", "b"), "b"), (("a", "b"), "tie"), (("a", "tie"), "tie"), (("tie", "tie"), "tie"),
                            (("both bad", "both bad"), "both bad"), (("both bad", "tie"), "tie"), (("b", "unjudged"), "unjudged")):
        assert pairwise.settle(judged) == pairwise.settle(judged[::-1]) == verdict
    with pytest.raises(ValueError, match="unknown verdict"):
        pairwise.settle(("A", "a"))


def test_by_score():
    assert pairwise.by_score([1, 2, 0, 3], [2, 1, 0, 3], bad_below=1) == [("b", "b"), ("a", "a"), ("both bad", "both bad"), ("tie", "tie")]
    assert pairwise.by_score([0.0], [0.0]) == [("tie", "tie")]
    with pytest.raises(ValueError, match="finite"):
        pairwise.by_score([np.nan], [1.0])


def test_summary_by_hand():
    judged = [("b", "b")] * 3 + [("a", "a"), ("a", "b"), ("tie", "tie"), ("both bad", "both bad"), ("unjudged", "b")]
    words = [5] * 8
    s = pairwise.summarize(judged, words, words, resamples=500)
    assert {k: s[k] for k in ("pairs", "wins", "losses", "ties", "both_bad", "unjudged", "position_decided")} == {
        "pairs": 8, "wins": 3, "losses": 1, "ties": 2, "both_bad": 1, "unjudged": 1, "position_decided": 1}
    assert s["rate"].value == s["rate_exact"].value == 0.75 and s["rate"].n == 4 and s["p"] == pytest.approx(10 / 16)
    assert s["undecided"].value == pytest.approx(3 / 7) and s["score"].value == pytest.approx((3 + 0.5 * 3) / 7)
    assert [s["shares"][k].value for k in ("win", "loss", "tie", "both bad")] == pytest.approx([3 / 7, 1 / 7, 2 / 7, 1 / 7])
    # single verdicts that name a reply, and those that name the one shown first: b twice (3 pairs, 1 of 2 each), a twice (1 of 2),
    # the split pair (2 of 2), and b, shown first, of the half-judged pair (1 of 1)
    assert s["first_shown"].n == 11 and s["first_shown"].value == pytest.approx((3 + 1 + 2 + 1) / 11)
    # equal lengths cannot explain anything: the controlled rate is the mean outcome
    assert s["length_controlled"].value == pytest.approx(s["score"].value, abs=1e-3)


def test_a_judge_that_always_names_the_first_decides_nothing():
    s = pairwise.summarize([("a", "b")] * 20, [3] * 20, [3] * 20, resamples=100)
    assert s["rate"] is None and s["ties"] == s["position_decided"] == 20 and s["first_shown"].value == 1.0 and s["p"] == 1.0


def test_nothing_judged_is_no_tie():
    s = pairwise.summarize([("unjudged", "unjudged")] * 4, [3] * 4, [3] * 4, resamples=100)
    assert s["unjudged"] == 4 and s["ties"] == 0 and s["rate"] is None and "score" not in s
    with pytest.raises(ValueError):
        pairwise.summarize([], [], [])


def test_clusters_widen_the_interval():
    """Ten sessions whose ten pairs all go one way are ten observations, not a hundred."""
    judged = [("b", "b") if session % 2 else ("a", "a") for session in range(10) for _ in range(10)]
    words = [4] * 100
    alone = pairwise.summarize(judged, words, words, resamples=2000)["score"]
    together = pairwise.summarize(judged, words, words, clusters=[i // 10 for i in range(100)], resamples=2000)["score"]
    assert together.n == 10 and together.high - together.low > 2.5 * (alone.high - alone.low)


def test_plain_is_json():
    import json
    s = pairwise.plain(pairwise.summarize([("b", "b"), ("a", "a")], [1, 2], [2, 1], resamples=100))
    assert json.loads(json.dumps(s)) == s and s["rate"]["value"] == 0.5 and s["shares"]["win"]["n"] == 2


def test_nearest_training_prompt():
    train = ["how do I bake a cake", "what is the capital of France", "how do I paint a door"]
    replies = pairwise.nearest_training_replies(train, ["bake", "paris", "paint"], ["the capital of Spain", "paint my own door", "bake it"])
    assert replies == ["paris", "paint", "bake"]


def test_the_oracle_is_antisymmetric_and_ties_with_itself():
    rows = draw_split(1, "val")[:100]
    prompts, chosen = zip(*(split_transcript(row["chosen"]) for row in rows))
    rejected = [split_transcript(row["rejected"])[1] for row in rows]
    a, b = ([judge_reply(describe_prompt(p), r).score for p, r in zip(prompts, replies)] for replies in (rejected, chosen))
    words = [5] * 100
    forward, back = pairwise.summarize(pairwise.by_score(a, b), words, words, resamples=50), pairwise.summarize(pairwise.by_score(b, a), words, words, resamples=50)
    assert (forward["wins"], forward["losses"], forward["ties"]) == (back["losses"], back["wins"], back["ties"])
    assert forward["wins"] > forward["losses"] > 0  # 28 % of the labels are flipped
    assert pairwise.summarize(pairwise.by_score(b, b), words, words, resamples=50)["ties"] == 100
