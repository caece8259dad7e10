"""Human or machine, from questionnaire ratings: an L1 logistic regression whose weights are the human-likeness score.

    python -m studies.human_likeness.classifier RATED.csv --to FOLDER [--keep 16] [--folds 10] [--repeats 5] [--published-layout] [--xgboost]

RATED holds game_id, is_human (0 or 1) and ratings (JSON by item id, as studies/human_likeness/judge.py writes them), and perhaps cv and words.
--published-layout reads the study's own files: one game a row, two bare lists of 32 ratings in the order of its grouped list.
Written are weights.json (with item ids), classifier.json and calibration.png. Items are selected anew inside every training fold, and all rows of a
game lie in one fold: the published selection saw the rows it was then tested on.
"""
import argparse
import ast
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.store import write_json
from eval.stats import Interval, bootstrap, no_false_certainty, ratio, sum_by_cluster
from eval.tables import with_interval
from runtime.errors import UserError, check_folder, run_main
from studies.human_likeness import storage
from studies.human_likeness.dialogue import TURING, clean, features, turns
from studies.human_likeness.items import ASKED, OURS, Questionnaire, Weights, check_answers, check_ids, load_items, published_weights, save_weights

Fit = Callable[[np.ndarray, np.ndarray], "object"]  # (X, y) -> an estimator with decision_function
BINS = 10


@dataclass(frozen=True)
class Table:
    """Rated speakers: x [n, items] ratings, y [n] 1 = human, games [n], extra [n, 2] = cv of turn lengths and log words (NaN where unknown)."""
    x: np.ndarray
    y: np.ndarray
    games: np.ndarray
    extra: np.ndarray
    ids: tuple[str, ...]


# ---- reading ------------------------------------------------------------------------------------------------------------

def read_table(path: Path, questionnaire: Questionnaire, published: bool = False) -> Table:
    """The rows of a CSV of ratings. UserError naming the line for anything that is not there or out of range; rows without ratings are left out."""
    ids = questionnaire.numbered(range(1, 33)) if published else questionnaire.ids
    rows: list[tuple[dict, int, str, float, float]] = []
    needed = ("game_id", "who_is_human", "likert_evaluation_A", "likert_evaluation_B", "conversation_A_transcript", "conversation_B_transcript") if published \
        else ("game_id", "is_human", "ratings", "questionnaire")
    for number, row in enumerate(storage.read_table(path, needed), 1):
        try:
            rows += published_rows(row, ids) if published else [plain_row(row, questionnaire, path.name)] if row["ratings"] else []
        except (ValueError, SyntaxError, TypeError) as error:
            raise UserError(f"{path.name}, row {number}: {error}.") from None
    if not rows:
        raise UserError(f"{path.name} holds no ratings.")
    ids = tuple(i for i in ids if i in rows[0][0])
    for number, (answers, *_) in enumerate(rows, 1):
        try:
            check_answers(answers, ids)
        except ValueError as error:
            raise UserError(f"{path.name}, rated row {number}: {error}.") from None
    x = np.array([[answers[i] for i in ids] for answers, *_ in rows], dtype=np.float64)
    return Table(x, np.array([row[1] for row in rows]), np.array([row[2] for row in rows]), np.array([row[3:] for row in rows], dtype=np.float64), ids)


def only_items(table: Table, ids: Sequence[str]) -> Table:
    """The table with these items alone. UserError for one that was not rated."""
    check_ids(table.ids, ids, "--items")
    columns = [k for k, i in enumerate(table.ids) if i in set(ids)]
    return replace(table, x=table.x[:, columns], ids=tuple(table.ids[k] for k in columns))


def plain_row(row: dict[str, str], questionnaire: Questionnaire, name: str) -> tuple[dict, int, str, float, float]:
    """(ratings by id, is_human, game, cv, log words) of a row of our own layout. UserError for ratings of another questionnaire."""
    answers, human, words = json.loads(row["ratings"]), int(row["is_human"]), float(row.get("words") or "nan")
    if not isinstance(answers, dict):
        raise ValueError("ratings is no JSON object")
    if human not in (0, 1) or words < 0:
        raise ValueError(f"is_human is {human}, not 0 or 1" if human not in (0, 1) else f"words is {words:g}")
    if row["questionnaire"] not in (questionnaire.checksum, questionnaire.only(answers).checksum):
        raise UserError(f"{name} was rated with another questionnaire (checksum {row['questionnaire']}): name that one with --questionnaire.")
    return answers, human, row["game_id"], float(row.get("cv") or "nan"), float(np.log1p(words))


def published_rows(row: dict[str, str], ids: Sequence[str]) -> list[tuple[dict, int, str, float, float]]:
    """The same for both witnesses of a game in the published layout."""
    if row["who_is_human"] not in ("A", "B"):
        raise ValueError(f"who_is_human is {row['who_is_human']!r}, not A or B")
    found = []
    for side in "AB":
        values = ast.literal_eval(row[f"likert_evaluation_{side}"])
        if len(values) != len(ids):
            raise ValueError(f"likert_evaluation_{side} holds {len(values)} ratings, not {len(ids)}")
        measured = features(turns(clean(row[f"conversation_{side}_transcript"], TURING)[0], TURING), "W")
        found.append((dict(zip(ids, values)), int(row["who_is_human"] == side), row["game_id"], measured["cv"], float(np.log1p(measured["words"]))))
    return found


# ---- fitting --------------------------------------------------------------------------------------------------------------

def lasso(c: float = 1.0, seed: int = 42) -> Fit:
    """A logistic regression with L1 penalty (Tibshirani 1996) of strength 1 / c, by liblinear."""
    from sklearn.linear_model import LogisticRegression
    return lambda x, y: LogisticRegression(l1_ratio=1, solver="liblinear", C=c, max_iter=5000, random_state=seed).fit(x, y)


def boosted_trees(seed: int) -> Fit:
    """XGBoost with the published settings. UserError without the package."""
    try:
        from xgboost import XGBClassifier
    except ImportError:
        raise UserError("--xgboost needs the package: pip install xgboost") from None
    made = lambda: XGBClassifier(n_estimators=200, max_depth=6, learning_rate=0.1, subsample=0.8, colsample_bytree=0.8, tree_method="hist",  # noqa: E731
                                 eval_metric="logloss", random_state=seed)

    class Trees:
        def __init__(self, x, y):
            self.model = made().fit(x, y)

        def decision_function(self, x):
            return self.model.predict(x, output_margin=True)
    return Trees


def strongest(x: np.ndarray, y: np.ndarray, keep: int) -> np.ndarray:
    """The `keep` columns with the largest |weight| times spread in a lasso on all columns, ascending: a weight alone depends on the item's scale."""
    weight = np.abs(lasso()(x, y).coef_[0]) * x.std(axis=0)
    return np.sort(np.argsort(-weight, kind="stable")[:keep])


def folds_of(games: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of every row [n]; the rows of a game share one."""
    names, member = np.unique(games, return_inverse=True)
    dealt = np.random.default_rng(seed).permutation(len(names)) % folds
    return dealt[member]


def out_of_fold(x: np.ndarray, y: np.ndarray, fold: np.ndarray, fit: Fit, keep: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(log-odds of each row by the model that has not seen its fold [n], how often each column was selected [items]).

    UserError when the rows outside some fold are all human, or all machine.
    """
    scores, chosen = np.zeros(len(y)), np.zeros(x.shape[1])
    for k in np.unique(fold):
        train, test = fold != k, fold == k
        if len(set(y[train])) < 2:
            raise UserError("the other folds of one fold hold only humans, or only machines: more games need to have both.")
        columns = strongest(x[train], y[train], keep) if keep else np.arange(x.shape[1])
        scores[test] = fit(x[train][:, columns], y[train]).decision_function(x[test][:, columns])
        chosen[columns] += 1
    return scores, chosen / len(np.unique(fold))


# ---- what a score is worth ------------------------------------------------------------------------------------------------

def auc(scores: np.ndarray, y: np.ndarray) -> float:
    """P(a human's score is higher than a machine's), a tie half: the area under the ROC curve."""
    from sklearn.metrics import roc_auc_score
    return float(roc_auc_score(y, scores))


def pairwise(scores: np.ndarray, y: np.ndarray, games: np.ndarray) -> np.ndarray:
    """1, 1/2 or 0 for every game with one human and one machine: whether the human's score is the higher one."""
    found = []
    for game in np.unique(games):
        own = games == game
        if sorted(y[own]) == [0, 1]:
            found.append(float(np.sign(scores[own & (y == 1)][0] - scores[own & (y == 0)][0])) / 2 + 0.5)
    return np.array(found)


def calibration(scores: np.ndarray, y: np.ndarray, bins: int = BINS) -> tuple[float, float, list[dict]]:
    """(Brier score, expected calibration error, the bins): do rows that are given p human turn out human in a share p of cases?

    Bins of equal size; the error is the mean gap between p and share, weighted by size (Naeini et al. 2015).
    """
    p = 1 / (1 + np.exp(-scores))
    rows = [{"p": float(p[part].mean()), "share": float(y[part].mean()), "n": len(part)} for part in np.array_split(np.argsort(p, kind="stable"), bins) if len(part)]
    return float(((p - y) ** 2).mean()), sum(row["n"] * abs(row["p"] - row["share"]) for row in rows) / len(y), rows


def measured(scores: np.ndarray, table: Table, seed: int = 0) -> dict:
    """Accuracy, AUC, pairwise accuracy and calibration of out-of-fold scores; intervals resample whole games."""
    right = ((scores > 0) == table.y).astype(float)
    sums, sizes = sum_by_cluster(table.games, right)
    games, pairs = np.unique(table.games), pairwise(scores, table.y, table.games)
    brier, error, bins = calibration(scores, table.y)
    rng, places = np.random.default_rng(seed), {game: np.flatnonzero(table.games == game) for game in games}
    drawn = []
    for _ in range(500):
        rows = np.concatenate([places[games[i]] for i in rng.integers(0, len(games), len(games))])
        if 0 < table.y[rows].mean() < 1:
            drawn.append(auc(scores[rows], table.y[rows]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"accuracy": ratio(sums, sizes, seed=seed).to_dict(),
            "auc": no_false_certainty(Interval(auc(scores, table.y), float(low), float(high), len(games), f"bootstrap over games, {len(drawn)} resamples", seed),
                                      "no two resamples differ").to_dict(),
            "pairwise_accuracy": no_false_certainty(bootstrap([pairs], lambda m: m[:, 0], seed=seed), "no two games differ").to_dict() if len(pairs) else None,
            "brier": brier, "calibration_error": error, "bins": bins}


def evaluate(table: Table, keep: int, folds: int, repeats: int, seed: int = 0, trees: bool = False) -> dict:
    """Every model, cross-validated by game `repeats` times: {model: figures of the first repeat, "auc_of_repeats", "accuracy_of_repeats"}.

    "cv alone" and "items + cv" are there when the table knows the turns; "items, equal length" holds log words fixed: fitted with it, scored without.
    """
    x, extra = table.x, table.extra
    models: dict[str, tuple[np.ndarray, Fit, int]] = {f"all {x.shape[1]} items": (x, lasso(), 0)}
    if keep and keep < x.shape[1]:
        models[f"{keep} items, selected in each fold"] = (x, lasso(), keep)
    if np.isfinite(extra[:, 0]).all():
        models |= {"cv of turn lengths alone": (extra[:, :1], lasso(), 0), "items and cv": (np.column_stack([x, extra[:, 0]]), lasso(), 0)}
    if np.isfinite(extra[:, 1]).all():
        models |= {"log words alone": (extra[:, 1:], lasso(), 0), "items at equal length": (np.column_stack([x, extra[:, 1]]), without_last(lasso()), 0)}
    if trees:
        models["boosted trees"] = (x, boosted_trees(seed), 0)
    found = {}
    for name, (columns, fit, kept) in models.items():
        runs = [out_of_fold(columns, table.y, folds_of(table.games, folds, seed + r), fit, kept) for r in range(repeats)]
        found[name] = measured(runs[0][0], table, seed) | {"auc_of_repeats": [auc(scores, table.y) for scores, _ in runs],
                                                           "accuracy_of_repeats": [float(((scores > 0) == table.y).mean()) for scores, _ in runs]}
        if kept:
            found[name]["selected_share"] = dict(zip(table.ids, np.mean([chosen for _, chosen in runs], axis=0).tolist()))
    return found


def without_last(fit: Fit) -> Fit:
    """A fit whose scores leave the last column out by holding it at its mean in training: what the others say once it is accounted for."""
    class Held:
        def __init__(self, x, y):
            self.model, self.mean = fit(x, y), x[:, -1].mean()

        def decision_function(self, x):
            return self.model.decision_function(np.column_stack([x[:, :-1], np.full(len(x), self.mean)]))
    return Held


def final_weights(table: Table, keep: int, shares: dict[str, float] | None, questionnaire: Questionnaire, note: str) -> Weights:
    """Weights fitted on all rows: of the `keep` items selected in most folds (in questionnaire order), or of all."""
    wanted = sorted(shares, key=lambda i: (-shares[i], table.ids.index(i)))[:keep] if shares else table.ids
    columns = [k for k, i in enumerate(table.ids) if i in set(wanted)]
    model = lasso()(table.x[:, columns], table.y)
    names = [table.ids[k] for k in columns]
    return Weights(dict(zip(names, map(float, model.coef_[0]))), float(model.intercept_[0]), questionnaire.only(names).checksum, note)


def joined_aucs(table: Table, file: Path, questionnaire: Questionnaire) -> dict[str, float]:
    """The AUC of the published weights on these ratings, joined as they were fitted and as they were used."""
    found = {}
    for joined in ("as fitted", "as published"):
        weights = published_weights(file, questionnaire, joined)
        columns = [table.ids.index(i) for i in weights.ids]
        found[joined] = auc(table.x[:, columns] @ np.array(list(weights.w.values())) + weights.b, table.y)
    return found


def as_published(table: Table) -> dict:
    """The study's own figures by its own rules: witnesses A before witnesses B, folds that ignore games, 20 seeds, selection by |w| > .2 on all rows.

    {"reason"} alone where the rules cannot be kept to.
    """
    from sklearn.model_selection import KFold
    order = np.r_[0:len(table.y):2, 1:len(table.y):2]  # rows come as A and B of each game
    x, y = table.x[order], table.y[order]
    seeds = (57, 14, 20, 10, 82, 89, 8, 23, 45, 19, 45, 95, 44, 64, 80, 30, 10, 8, 72, 95)

    def accuracies(columns: np.ndarray, seed: int) -> list[float]:
        fit = lasso()
        return [float((fit(columns[a], y[a]).predict(columns[b]) == y[b]).mean()) for a, b in KFold(10, shuffle=True, random_state=seed).split(columns)]
    every = lasso()(x, y)
    kept = np.flatnonzero(np.abs(every.coef_[0]) > 0.2)
    if len(y) < 10 or not len(kept):
        return {"reason": "not measured: " + ("fewer than ten witnesses" if len(y) < 10 else "no weight is above .2")}
    again = lasso()(x[:, kept], y)
    return {"accuracy_32": float(np.mean([accuracies(x, seed) for seed in seeds])), "intercept_32": float(every.intercept_[0]),
            "kept": [table.ids[k] for k in kept], "accuracy_16": float(np.mean(accuracies(x[:, kept], 42))),
            "w": again.coef_[0].tolist(), "b": float(again.intercept_[0]), "auc_in_sample": auc(again.decision_function(x[:, kept]), y)}


def draw_calibration(found: dict, path: Path) -> None:
    """Reliability diagram: predicted probability against the share of humans, one line a model."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axis = pyplot.subplots(figsize=(5.5, 5))
    axis.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle=":")
    for name, row in found.items():
        axis.plot([b["p"] for b in row["bins"]], [b["share"] for b in row["bins"]], marker="o", markersize=3, label=f"{name}: AUC {row['auc']['value']:.3f}")
    axis.set(xlabel="predicted probability of a human", ylabel="share of humans", xlim=(0, 1), ylim=(0, 1))
    axis.legend(fontsize=7, loc="upper left")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("rated", type=Path)
    a.add_argument("--to", type=Path, required=True)
    a.add_argument("--keep", type=int, default=16, help="items in the score; 0 = all")
    a.add_argument("--folds", type=int, default=10)
    a.add_argument("--repeats", type=int, default=5, help="cross-validations with other folds")
    a.add_argument("--published-layout", action="store_true")
    a.add_argument("--published-weights", type=Path, help="the study's bare list of weights: what it is worth joined rightly, and as it was used")
    a.add_argument("--questionnaire", type=Path, default=OURS, help="the questionnaire that was rated; otherwise ours")
    a.add_argument("--items", nargs="*", default=[], help="use these items only; `published` for those that the public study's prompt asked")
    a.add_argument("--xgboost", action="store_true", help="boosted trees as well (an extra)")
    a.add_argument("--seed", type=int, default=0)
    a = a.parse_args(argv)
    check_folder("--to", a.to)
    questionnaire = load_items(a.questionnaire)
    table = read_table(a.rated, questionnaire, a.published_layout)
    if a.items:
        table = only_items(table, questionnaire.numbered(ASKED) if a.items == ["published"] else a.items)
    if a.folds < 2 or a.repeats < 1 or a.keep < 0 or a.seed < 0:
        raise UserError("--folds must be at least 2, --repeats at least 1, --keep and --seed at least 0.")
    if a.published_weights and (a.items or not a.published_layout):
        raise UserError("--published-weights are for all items of the --published-layout, without --items.")
    if len(np.unique(table.games)) < a.folds or len(set(table.y)) < 2:
        raise UserError(f"{a.rated} needs humans and machines in at least {a.folds} games; lower --folds, or add some.")
    joined = joined_aucs(table, a.published_weights, questionnaire) if a.published_weights else None
    found = {"command": storage.command_line("classifier", argv), "rows": len(table.y), "games": len(np.unique(table.games)), "folds": a.folds, "seed": a.seed, "models": evaluate(table, a.keep, a.folds, a.repeats, a.seed, a.xgboost)}
    shares = next((row["selected_share"] for row in found["models"].values() if "selected_share" in row), None)
    weights = final_weights(table, a.keep, shares, questionnaire, f"L1 logistic regression on {len(table.y)} ratings of {a.rated.name}")
    if a.published_layout and not a.items:
        found["as_published"] = as_published(table)
    if joined:
        found["auc_of_the_published_weights"] = joined
    if unknown := {name: int((~np.isfinite(column)).sum()) for name, column in zip(("cv", "words"), table.extra.T) if not np.isfinite(column).all()}:
        found["unknown"] = unknown
    a.to.mkdir(parents=True, exist_ok=True)
    save_weights(weights, a.to / "weights.json")
    write_json(a.to / "classifier.json", found)
    draw_calibration(found["models"], a.to / "calibration.png")
    for name, row in found["models"].items():
        print(f"{name}: accuracy {with_interval(row['accuracy'], 'share')}, AUC {with_interval(row['auc'])}, pairwise {with_interval(row['pairwise_accuracy'], 'share')}, "
              f"calibration error {row['calibration_error']:.3f}")
    for name, rows in unknown.items():
        print(f"{name}: not measured, not known in {rows} of {len(table.y)} rows")
    print(f"weights of {len(weights.w)} items: {a.to / 'weights.json'}")


if __name__ == "__main__":
    run_main(main)
