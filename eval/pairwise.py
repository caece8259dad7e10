"""Which of two is better: held-out pairs judged by the policy's implicit reward, replies judged by the toy world's oracle.

Reward accuracy asks whether DPO ranks pairs as their labels do. Read it next to two baselines on the same pairs that know
nothing of language: a classifier on the words that occur, and "the longer reply wins". It says nothing about the replies the
model itself writes: that is the win rate's job, and the two can part company.
"""
from collections.abc import Callable, Sequence

import numpy as np

from eval import stats
from eval.stats import Interval
from runtime.errors import UserError


def implicit_rewards(policy: np.ndarray, reference: np.ndarray, beta: float) -> np.ndarray:
    """beta (log p_policy - log p_reference) per reply [n], nats: DPO's reward up to a term that only depends on the prompt
    (Rafailov et al. 2023, eq. 5)."""
    return beta * (np.asarray(policy, dtype=np.float64) - np.asarray(reference, dtype=np.float64))


def ranked_right(chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """[n]: 1 where chosen scores higher than rejected, 0 where lower, 1/2 for a tie (a coin would do as well)."""
    chosen, rejected = np.asarray(chosen, dtype=np.float64), np.asarray(rejected, dtype=np.float64)
    if not (np.isfinite(chosen).all() and np.isfinite(rejected).all()):
        raise ValueError("scores hold NaN or infinity: a pair that was not scored is not a pair ranked wrong")
    return np.where(chosen == rejected, 0.5, (chosen > rejected).astype(np.float64))


def accuracy(right: np.ndarray, prompts: Sequence, resamples: int = 10_000, seed: int = 0) -> dict:
    """Share of pairs ranked right, with an interval that resamples whole prompts, since pairs of one prompt go together.

    right [n] from `ranked_right`; prompts [n] anything hashable that names the prompt. Returns {"accuracy": Interval
    (its n counts prompts), "pairs", "ties"}.
    """
    sums, sizes = stats.sum_by_cluster(prompts, right)
    return {"accuracy": stats.ratio(sums, sizes, resamples, seed), "pairs": len(right), "ties": int((right == 0.5).sum())}


def by_subset(right: np.ndarray, prompts: Sequence, subsets: Sequence[str], resamples: int = 10_000,
              seed: int = 0) -> dict[str, dict]:
    """`accuracy` for all pairs ("pooled") and, where there are several, for each subset."""
    result = {"pooled": accuracy(right, prompts, resamples, seed)}
    names = sorted(set(subsets))
    for name in names if len(names) > 1 else []:
        rows = [i for i, subset in enumerate(subsets) if subset == name]
        result[name] = accuracy(right[rows], [prompts[i] for i in rows], resamples, seed)
    return result


def longer_reply_wins(chosen: Sequence[str], rejected: Sequence[str]) -> np.ndarray:
    """[n] as `ranked_right`, for the rule "more words is better"."""
    return ranked_right([len(reply.split()) for reply in chosen], [len(reply.split()) for reply in rejected])


def bag_of_words(train_chosen: Sequence[str], train_rejected: Sequence[str], chosen: Sequence[str],
                 rejected: Sequence[str]) -> np.ndarray:
    """[n] as `ranked_right`, for a Bradley-Terry model on the words that occur in a reply, fitted on training pairs.

    score(reply) = sum of the weights of its words, so the log-odds of a pair are linear in the difference of its two bags: a
    logistic regression without intercept. Words in fewer than three replies are left out. The
    strength of the penalty is chosen by five-fold cross-validation on the training pairs.
    """
    try:
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV
    except ImportError:
        raise UserError("The bag-of-words baseline needs scikit-learn: pip install scikit-learn") from None
    vectorizer = CountVectorizer(min_df=3, binary=True, token_pattern=r"(?u)\b\w+\b", dtype=np.float64)
    vectorizer.fit([*train_chosen, *train_rejected])
    difference = vectorizer.transform(train_chosen) - vectorizer.transform(train_rejected)
    # every row is "chosen minus rejected"; turning half of them round gives the classifier its two classes
    side = np.where(np.arange(difference.shape[0]) % 2, 1, -1)
    strengths = {"C": [0.003, 0.01, 0.03, 0.1, 0.3]}
    model = GridSearchCV(LogisticRegression(fit_intercept=False, solver="liblinear", random_state=0), strengths, cv=5)
    model.fit(difference.multiply(side[:, None]).tocsr(), side)
    weights = model.best_estimator_.coef_[0]
    return ranked_right(vectorizer.transform(chosen) @ weights, vectorizer.transform(rejected) @ weights)


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


def win_rate(prompts: Sequence[str], a: Sequence[str], b: Sequence[str], compare: Callable[[str, str, str], int]) -> dict:
    """Reply b against reply a on each prompt, by compare(prompt, b, a) -> +1, 0 or -1.

    The rate is wins / (wins + losses) with its Wilson interval and an exact sign test; undecided pairs are counted beside
    it, never split. With nothing decided there is no rate (None).
    """
    if not len(prompts) == len(a) == len(b) or not len(prompts):
        raise ValueError(f"{len(prompts)} prompts, {len(a)} and {len(b)} replies")
    verdicts = [compare(prompt, reply_b, reply_a) for prompt, reply_a, reply_b in zip(prompts, a, b)]
    wins, losses = verdicts.count(1), verdicts.count(-1)
    rate: Interval | None = stats.wilson(wins, wins + losses) if wins + losses else None
    return {"rate": rate, "wins": wins, "losses": losses, "ties": len(verdicts) - wins - losses,
            "undecided": stats.wilson(len(verdicts) - wins - losses, len(verdicts)), "p": stats.sign_test(wins, losses)}
