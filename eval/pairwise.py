"""Which of two replies is better: one protocol for every judge (the toy oracle, a reward model, an LLM, people).

Each pair is judged twice, once with either reply shown first, because judges favour a place. A verdict counts only when both
orders agree; when the place decided, the pair is a tie. Ties stay in the table, and so does what could not be judged: a
failed verdict is never a tie. A judge that only gives each reply a score cannot see the order, so both orders are equal.
"""
from collections.abc import Sequence

import numpy as np

from eval import stats
from eval.ranking import length_controlled
from eval.stats import Interval
from runtime.errors import UserError

VERDICTS = ("a", "b", "tie", "both bad", "unjudged")
Judged = tuple[str, str]  # the verdict with a shown first, and the verdict with b shown first


def settle(judged: Judged) -> str:
    """One verdict per pair from the two orders: unjudged if either failed, the common verdict if they agree, else a tie."""
    if not set(judged) <= set(VERDICTS):
        raise ValueError(f"unknown verdict in {judged}; known: {', '.join(VERDICTS)}")
    if "unjudged" in judged:
        return "unjudged"
    return judged[0] if judged[0] == judged[1] else "tie"


def by_score(a: Sequence[float], b: Sequence[float], bad_below: float | None = None) -> list[Judged]:
    """Verdicts of a judge that scores each reply alone [n]; equal scores below `bad_below` are "both bad".

    ValueError for a score that is NaN or infinite: a reply that was not scored did not lose.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(f"need finite scores of one length, got {a.shape} and {b.shape}")
    equal = ["both bad" if bad_below is not None and score < bad_below else "tie" for score in a]
    return [(verdict, verdict) for verdict in ("a" if x > y else "b" if y > x else same for x, y, same in zip(a, b, equal))]


def summarize(judged: Sequence[Judged], words_a: Sequence[float], words_b: Sequence[float], clusters: Sequence | None = None,
              resamples: int = 10_000, seed: int = 0) -> dict:
    """Reply b against reply a over n pairs, as plain values and Intervals.

    clusters [n] names the prompt or session of each pair (default: every pair its own); bootstraps resample whole clusters.
    rate: wins / (wins + losses), Wilson; rate_exact: the same, Clopper-Pearson; None with nothing decided. shares: win, loss,
    tie and both bad among judged pairs, Wilson, or a bootstrap of clusters. score: a win 1, a tie or both bad 1/2. length_controlled: see eval/ranking.py.
    first_shown: among the single verdicts that name a reply, the share that names the one shown first; 1/2 is no position bias.
    """
    if not len(judged) == len(words_a) == len(words_b) or not len(judged):
        raise ValueError(f"{len(judged)} verdicts, {len(words_a)} and {len(words_b)} lengths")
    verdicts = [settle(pair) for pair in judged]
    kept = [i for i, verdict in enumerate(verdicts) if verdict != "unjudged"]
    wins, losses = verdicts.count("b"), verdicts.count("a")
    result = {"pairs": len(judged), "wins": wins, "losses": losses, "ties": verdicts.count("tie"), "both_bad": verdicts.count("both bad"),
              "unjudged": len(judged) - len(kept), "position_decided": sum(set(pair) == {"a", "b"} for pair in judged),
              "p": stats.sign_test(wins, losses), "rate": None, "rate_exact": None, "first_shown": None}
    if wins + losses:
        result |= {"rate": stats.wilson(wins, wins + losses), "rate_exact": stats.exact(wins, wins + losses)}
    if kept:
        result["undecided"] = stats.wilson(len(kept) - wins - losses, len(kept))
        outcome = np.array([{"b": 1.0, "a": 0.0}.get(verdicts[i], 0.5) for i in kept])
        names = [i if clusters is None else clusters[i] for i in kept]
        by_name = {name: np.array([verdicts[i] == verdict for i in kept], dtype=float)
                   for name, verdict in (("win", "b"), ("loss", "a"), ("tie", "tie"), ("both bad", "both bad"))}
        alone = len(set(names)) == len(names)
        result["shares"] = {name: stats.wilson(int(hits.sum()), len(hits)) if alone else
                            stats.ratio(*stats.sum_by_cluster(names, hits), resamples, seed) for name, hits in by_name.items()}
        result["score"] = stats.ratio(*stats.sum_by_cluster(names, outcome), resamples, seed)
        result["length_controlled"] = length_controlled(outcome, np.asarray(words_a)[kept], np.asarray(words_b)[kept], names,
                                                        min(resamples, 2000), seed)
    if named := [(shown, verdict) for pair in judged for shown, verdict in zip("ab", pair) if verdict in ("a", "b")]:
        result["first_shown"] = stats.wilson(sum(shown == verdict for shown, verdict in named), len(named))
    return result


def plain(result: dict) -> dict:
    """The summary with every Interval as plain values, for JSON."""
    return {key: value.to_dict() if isinstance(value, Interval) else plain(value) if isinstance(value, dict) else value
            for key, value in result.items()}


def nearest_training_replies(train_prompts: Sequence[str], train_chosen: Sequence[str], prompts: Sequence[str]) -> list[str]:
    """For each prompt the chosen reply of the most similar training prompt (TF-IDF cosine; the first of equals).

    The baseline that has learnt nothing: a policy must beat copying.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        raise UserError("The nearest-prompt baseline needs scikit-learn: pip install scikit-learn") from None
    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b")
    train = vectorizer.fit_transform(train_prompts)  # rows have length 1, so a product is a cosine
    nearest = []
    for start in range(0, len(prompts), 256):  # a block at a time: the similarity table stays small
        block = vectorizer.transform(prompts[start:start + 256]) @ train.T
        nearest.extend(np.asarray(block.argmax(axis=1)).ravel().tolist())
    return [train_chosen[i] for i in nearest]
