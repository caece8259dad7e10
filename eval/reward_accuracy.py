"""Held-out pairs: how often the policy's implicit reward ranks them as people (or the corpus) did.

Read it next to two baselines on the same pairs that know nothing of language: a classifier on the words that occur, and "the
longer reply wins". It says nothing about the replies the model itself writes: that is the win rate's job, and the two can part
company (eval/health.py shows a run where they do).
"""
from collections.abc import Mapping, Sequence

import numpy as np

from data.store import PairStore
from eval import stats
from eval.oracle import compare
from runtime.errors import UserError
from tokenizer import Tokenizer


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


def pair_texts(store: PairStore, indices: np.ndarray, tok: Tokenizer) -> dict[str, list[str]]:
    """Texts of the rows: {"prompt", "chosen", "rejected"} (prompts without their start token, replies without end-of-text)."""
    texts: dict[str, list[str]] = {"prompt": [], "chosen": [], "rejected": []}
    for i in indices:
        prompt, _, chosen, rejected = store.row(int(i))
        texts["prompt"].append(tok.decode(prompt[1:].tolist()))
        texts["chosen"].append(tok.decode(chosen[:-1].tolist()).strip())
        texts["rejected"].append(tok.decode(rejected[:-1].tolist()).strip())
    return texts


def reward_accuracy(test: PairStore, indices: np.ndarray, train: PairStore, logps: Mapping[str, tuple[np.ndarray, np.ndarray]],
                    tok: Tokenizer, beta: float, toy: bool, resamples: int, seed: int, train_limit: int = 20_000) -> dict:
    """How often DPO's implicit reward ranks held-out pairs as their labels do, beside two baselines on the same pairs.

    On toy also against clean labels: the oracle's own verdict, pairs that it cannot decide left out and counted.
    """
    texts = pair_texts(test, indices, tok)
    names = [test.meta["subsets"][int(subset)] for subset in test.index["subset"][indices]]
    chosen, rejected = (implicit_rewards(logps["dpo"][side], logps["sft"][side], beta) for side in (0, 1))
    known = pair_texts(train, np.random.default_rng(seed).permutation(len(train))[:train_limit], tok)
    judges = {"dpo": ranked_right(chosen, rejected),
              "bag of words": bag_of_words(known["chosen"], known["rejected"], texts["chosen"], texts["rejected"]),
              "longer reply wins": longer_reply_wins(texts["chosen"], texts["rejected"])}
    truths = {"labels as given": np.ones(len(indices), dtype=np.int64)}
    if toy:
        rows = zip(texts["prompt"], texts["chosen"], texts["rejected"])
        truths["clean labels (oracle)"] = np.array([compare(*row) for row in rows])
    tables = []
    for truth, order in truths.items():
        kept = np.flatnonzero(order)
        prompts, subsets = [texts["prompt"][i] for i in kept], [names[i] for i in kept]
        # where the oracle prefers the "rejected" reply, ranking the pair right means the opposite
        right = {judge: np.where(order[kept] > 0, score[kept], 1 - score[kept]) for judge, score in judges.items()}
        by_judge = {}
        for judge, score in right.items():
            cells = by_subset(score, prompts, subsets, resamples, seed)
            by_judge[judge] = {name: cell | {"accuracy": cell["accuracy"].to_dict()} for name, cell in cells.items()}
        gap = stats.ratio(*stats.sum_by_cluster(prompts, right["dpo"] - right["bag of words"]), resamples, seed)
        tables.append({"truth": truth, "left_out": len(indices) - len(kept), "judges": by_judge,
                       "dpo_minus_bag_of_words": gap.to_dict()})
    rewards = {name: stats.mean(values, resamples, seed).to_dict()
               for name, values in (("chosen", chosen), ("rejected", rejected), ("margin", chosen - rejected))}
    return {"beta": beta, "pairs": len(indices), "train_pairs": len(known["prompt"]), "tables": tables, "rewards": rewards}
