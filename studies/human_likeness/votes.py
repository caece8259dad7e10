"""Which model do people find more human-like? From a table of votes to win rates, Elo, Bradley-Terry, tests and confounds.

    python -m studies.human_likeness.votes VOTES.csv [--to FOLDER] [--seed 0] [--clusters user|persona|session]

A rater plays the doctor with two hidden patients side by side (A left, B right) and says on five levels which one is more human-like. Writes
votes.json, votes.md and votes.png to FOLDER: figures only, nothing that anybody said. A vote counts when its session is completed and rated.
"""
import argparse
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np

from data.store import write_json
from eval import agreement, ranking, stats
from eval.ranking import ELO
from eval.stats import Interval
from runtime.errors import UserError, check_folder, run_main
from studies.human_likeness import vote_page
from studies.human_likeness.storage import command_line
from studies.human_likeness.vote_rows import Votes, read_votes

START, K, ORDERS = 1500.0, 32.0, 500  # Elo as published
MANY = 20_000  # orders whose mean is taken for the limit when a published mean is looked at
ELO_RESAMPLES, ELO_ORDERS = 500, 50  # of the bootstrap of the mean over orders
NO_MAXIMUM = "no finite maximum (someone never loses, or never wins)"
SMALLEST = 0.03  # a win rate nearer to a half than this is called equal when votes are counted
# What the published notebook printed about the public file, by the file's sha256. Strings keep the digits that were printed.
PUBLISHED = {"09b5f7154f35223264f60934a9dce238228ad8f386aa7212109383a3c098b214": {
    "hal14b:16bit": {"votes": "227", "win rate": "0.617841", "Elo": "1556.97", "Elo sd": "31.3"},
    "qwen14b:16bit": {"votes": "207", "win rate": "0.536232", "Elo": "1519.48", "Elo sd": "29.3"},
    "gpt-4o-mini": {"votes": "218", "win rate": "0.342890", "Elo": "1423.55", "Elo sd": "29.8"},
    "sessions": {"rated": "327", "raters": "69", "rated per rater": "4.739", "mean length": "9 min 28 s"}}}

pairs_needed = cache(stats.pairs_needed)  # a search of a second for shares near a half


class Table:
    """Votes as arrays: which model stands left and right [n], the level [n], and per kind of cluster its resamples [r, n]."""

    def __init__(self, found: Votes, clusters: str, resamples: int, seed: int):
        votes = found.votes
        self.models, self.seed, self.resamples = found.models, seed, resamples
        self.left, self.right = (np.array([self.models.index(getattr(vote, side)) for vote in votes]) for side in ("left", "right"))
        self.level = np.array([vote.level for vote in votes])
        self.soft, self.hard = 0.5 + self.level / 4, 0.5 + np.sign(self.level) / 2  # score of the left one
        self.words, self.turns = (np.array([np.subtract(*getattr(vote, name)) for vote in votes]) for name in ("words", "turns"))  # left - right
        self.heard = np.array([min(vote.turns) > 0 for vote in votes])
        self.ids = {kind: [getattr(vote, kind) for vote in votes] for kind in ("user", "persona", "session") if kind != "user" or not found.masked}
        if clusters and clusters not in self.ids:
            raise UserError("--clusters user needs rater ids, and this file's are masked: use persona or session.")
        self.main = clusters or next(iter(self.ids))
        self.weights = {kind: ranking.cluster_weights(ids, resamples, seed) for kind, ids in self.ids.items()}
        k = len(self.models)
        self.sign = np.eye(k)[self.left] - np.eye(k)[self.right]  # [n, k]: +1 for the left model, -1 for the right one
        self.on = np.abs(self.sign)

    def interval(self, value: float, drawn: np.ndarray, kind: str = "", use: np.ndarray | None = None, why: str = NO_MAXIMUM) -> dict:
        """95 % percentile interval from resamples [r] of clusters; no ends when more than 2.5 % of the resamples have no value.

        use [n]: the votes it rests on, where these are not all; `n` counts their clusters. why: the reason of a value that is NaN.
        """
        kind = kind or self.main
        usable, n = drawn[np.isfinite(drawn)], len({cluster for i, cluster in enumerate(self.ids[kind]) if use is None or use[i]})
        method = f"bootstrap over {kind}s, {len(usable):,} resamples"
        if not np.isfinite(value):
            return {"value": None, "low": None, "high": None, "n": n, "method": f"not measured: {why}", "seed": self.seed}
        ends = ranking.percentiles(usable) if len(usable) >= 0.975 * len(drawn) else (None, None)
        return stats.no_false_certainty(Interval(float(value), *ends, n, method, self.seed), "no two resamples differ").to_dict()

    def share(self, top: np.ndarray, bottom: np.ndarray, kind: str = "") -> dict:
        """sum(top) / sum(bottom) over votes [n], with its interval."""
        weights = self.weights[kind or self.main]
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = (weights @ top) / (weights @ bottom)
        return self.interval(top.sum() / bottom.sum(), drawn, kind, bottom > 0)


def win_rates(t: Table) -> list[dict]:
    """Mean score per model. soft: certain 1 or 0, likely .75 or .25, tie .5; hard: 1, .5 or 0. One interval per kind of cluster."""
    rows = []
    for m, model in enumerate(t.models):
        on, row = t.on[:, m], {"model": model, "votes": int(t.on[:, m].sum())}
        for name, score in (("soft", t.soft), ("hard", t.hard)):
            row[name] = {kind: t.share(on * np.where(t.left == m, score, 1 - score), on, kind) for kind in t.ids}
            row[name] |= {"user": "not measured: ids are masked"} if "user" not in t.ids else {}
        row["stood left"] = stats.wilson(int((t.left == m).sum()), row["votes"]).to_dict()
        rows.append(row)
    return sorted(rows, key=lambda row: -row["soft"][t.main]["value"])


def elo_ratings(t: Table, ranked: Sequence[str]) -> list[dict]:
    """Sequential Elo of soft scores: mean over random orders, their spread (order noise), and the bootstrap of that mean (sampling noise)."""
    games = list(zip(t.left, t.right, t.soft))
    orders = ranking.elo(games, len(t.models), K, ORDERS, t.seed, START)
    drawn = ranking.elo(games, len(t.models), K, ELO_ORDERS, t.seed, START, t.weights[t.main][:ELO_RESAMPLES]).mean(axis=1)
    rows = []
    for model in ranked:
        own, resampled = orders[:, t.models.index(model)], drawn[:, t.models.index(model)]
        rows.append({"model": model, "mean": t.interval(own.mean(), resampled), "bootstrap_sd": float(resampled.std(ddof=1)),
                     "order_sd": float(own.std(ddof=1)), "order_range": ranking.percentiles(own)})
    return rows


def bradley_terry(t: Table) -> list[dict]:
    """Bradley-Terry with ties as half a win, alone and with an advantage of the left side and of longer dialogues (a log-odds per sd of the difference).

    P(left wins) = 1 / (1 + exp(-(s_left - s_right + side + slope . differences))). Strengths have mean START on the Elo scale.
    """
    heard, k = t.heard, len(t.models)
    sides = {"side": np.ones(len(t.level)), "words": t.words, "turns": t.turns}
    rows = []
    for extra in ((), ("side",), ("side", "words"), ("side", "turns"), ("side", "words", "turns")):
        use = heard if set(extra) & {"words", "turns"} else np.ones_like(heard)
        columns = [t.sign[use][:, :-1]]  # the last strength is zero: only differences count
        columns += [(sides[name][use] / (1 if name == "side" else sides[name][use].std() or 1))[:, None] for name in extra]
        x = np.concatenate(columns, axis=1)
        both = np.ones((1, use.sum())), t.weights[t.main][:, use]  # the votes as they are, and the resamples
        fits = [ranking.logistic(x, t.hard[use], w, [1e-9] * x.shape[1]) for w in both]
        fits = [np.where(np.abs(fit).max(axis=1, keepdims=True) < 15, fit, np.nan) for fit in fits]  # beyond: no finite maximum
        # where some models never meet the others, or one always stands left, the ridge alone would say how they compare
        joined = [~np.isnan(ranking.bradley_terry(wins_of(t, use, w))).any(axis=-1, keepdims=True) for w in both]
        apart = [told_apart(x, w) for w in both]
        fits = [np.where(fine & clear, fit, np.nan) for fine, clear, fit in zip(joined, apart, fits)]
        why = NO_MAXIMUM if apart[0].all() else "no single maximum (models that never meet, or terms that always go together)"
        strength = [np.pad(fit[:, :k - 1], ((0, 0), (0, 1))) for fit in fits]
        value, drawn = (START + ELO * (s - s.mean(axis=1, keepdims=True)) + 0 * fit[:, :1] for s, fit in zip(strength, fits))
        rows.append({"terms": list(extra), "votes": int(use.sum()),
                     "strengths": {model: t.interval(value[0, m], drawn[:, m], why=why) for m, model in enumerate(t.models)},
                     "coefficients": {name: t.interval(fits[0][0, k - 1 + j], fits[1][:, k - 1 + j], why=why) for j, name in enumerate(extra)}})
    return rows


def told_apart(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[r, 1]: whether no column of x [n, p] is a sum of others over the votes drawn (weights [r, n]); else their coefficients mean nothing."""
    p = x.shape[1]
    spread = np.linalg.eigvalsh((weights @ (x[:, :, None] * x[:, None]).reshape(len(x), -1)).reshape(-1, p, p))
    return spread[:, :1] > 1e-9 * spread[:, -1:]


def wins_of(t: Table, use: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[r, k, k]: how often i beat j in each of r resamples (weights [r, votes used]), a tie half a win each."""
    left, right, score, k = t.left[use], t.right[use], t.hard[use], len(t.models)
    one_hot = np.zeros((len(left), k * k))
    np.add.at(one_hot, (np.arange(len(left)), left * k + right), score)
    np.add.at(one_hot, (np.arange(len(left)), right * k + left), 1 - score)
    return (weights @ one_hot).reshape(-1, k, k)


def davidson(t: Table) -> dict:
    """Davidson's model with a tie parameter: strengths on the Elo scale and nu (a tie is nu / (2 + nu) likely between equals)."""
    k, n = len(t.models), len(t.level)
    won, tied = np.zeros((n, k, k)), np.zeros((n, k, k))
    every = np.arange(n)
    won[every, t.left, t.right], won[every, t.right, t.left] = t.level > 0, t.level < 0
    tied[every, t.left, t.right] = tied[every, t.right, t.left] = t.level == 0
    value, nu = ranking.davidson(won.sum(axis=0), tied.sum(axis=0))
    drawn, nus = (ranking.davidson(*((t.weights[t.main] @ games.reshape(n, -1)).reshape(-1, k, k) for games in (won, tied))))
    return {"strengths": {model: t.interval(START + ELO * value[m], START + ELO * drawn[:, m]) for m, model in enumerate(t.models)},
            "nu": t.interval(float(nu), nus)}


def pair_tests(t: Table, ranked: Sequence[str]) -> list[dict]:
    """Every pair of models, the better one first: sign test, Wilcoxon's signed ranks and sign flips of whole clusters on the five levels, each
    Holm-corrected over the pairs; the win rate as it is and at equal length; decided votes that another study would need."""
    from scipy.stats import wilcoxon
    rows = []
    for a, b in combinations(ranked, 2):
        i, j = t.models.index(a), t.models.index(b)
        use = (t.on[:, i] * t.on[:, j]) > 0
        if not use.any():
            continue
        level = (t.level * t.sign[:, i])[use]
        clusters = [cluster for cluster, used in zip(t.ids[t.main], use) if used]
        wins, losses = int((level > 0).sum()), int((level < 0).sum())
        score = np.where(t.sign[:, i] > 0, t.hard, 1 - t.hard)
        row = {"pair": [a, b], "votes": int(use.sum()), "wins": wins, "losses": losses, "ties": int((level == 0).sum()),
               "win_rate": t.share(use * score, 1.0 * use), "at_equal": {}, "longer": {}, "needed": votes_needed(wins, losses, int((level == 0).sum()))}
        total, _ = stats.sum_by_cluster(clusters, level)
        row["p"] = {"sign": stats.sign_test(wins, losses), "signed_rank": float(wilcoxon(level).pvalue) if level.any() else 1.0,
                    "cluster_flip": stats.sign_flip_test(np.zeros(len(total)), total, seed=t.seed)}
        heard = use & t.heard
        talked = [cluster for cluster, used in zip(t.ids[t.main], heard) if used]
        for name, extra in (("words", t.words), ("turns", t.turns)):
            longer = (t.sign[:, i] * extra)[heard]  # a's minus b's
            row["longer"][name] = float(longer.mean()) if talked else None
            row["at_equal"][name] = (ranking.length_controlled(score[heard], 0 * longer, longer, talked, t.resamples, t.seed).to_dict() if talked else None)
        rows.append(row)
    for name in ("sign", "signed_rank", "cluster_flip"):
        for row, p in zip(rows, stats.holm([row["p"][name] for row in rows])):
            row["p"][f"{name}_holm"] = p
    return rows


def votes_needed(wins: int, losses: int, ties: int) -> dict:
    """Independent votes, ties included, with which the exact sign test would see this share of decided votes at 5 % with 80 % power."""
    if not wins + losses:
        return {"votes": None, "reason": "not measured: no vote was decided"}
    share = wins / (wins + losses)
    if share in (0.0, 1.0):
        return {"votes": None, "reason": "not measured: all decided votes went one way"}
    small = abs(share - 0.5) < SMALLEST
    decided = pairs_needed(0.5 + SMALLEST if small else share)
    votes = int(np.ceil(decided * (wins + losses + ties) / (wins + losses)))
    if small:
        return {"votes": None, "reason": f"more than {votes:,}: less than {100 * SMALLEST:.0f} points from a half"}
    return {"votes": votes, "decided_share": share}


def position(t: Table) -> dict:
    """Does the left one win more often? Soft and hard score of the left side, and the sign test of left against right."""
    ones, wins, losses = np.ones(len(t.level)), int((t.level > 0).sum()), int((t.level < 0).sum())
    return {"left_soft": t.share(t.soft, ones), "left_hard": t.share(t.hard, ones), "left": wins, "right": losses, "ties": int((t.level == 0).sum()),
            "p": stats.sign_test(wins, losses)}


def raters_agree(t: Table) -> dict:
    """Krippendorff's alpha, ordinal, over (persona, pair of models) judged more than once; the level is turned to the alphabetically first model."""
    items: dict[tuple, list[int]] = {}
    for persona, i, j, level in zip(t.ids["persona"], t.left, t.right, t.level):
        items.setdefault((persona, min(i, j), max(i, j)), []).append(int(level if i < j else -level))
    several = [ratings for ratings in items.values() if len(ratings) > 1]
    found = {"items": len(items), "judged_more_than_once": len(several), "votes_on_them": sum(map(len, several))}
    if not several:
        return found | {"alpha": None, "reason": "not measured: no pair of models was judged twice on one persona"}
    alpha = agreement.interval(lambda ratings: agreement.krippendorff_alpha(ratings, "ordinal"), several, min(t.resamples, 1000), t.seed)
    return found | ({"alpha": alpha.to_dict()} if np.isfinite(alpha.value) else {"alpha": None, "reason": "not measured: all levels are equal"})


def beside_published(found: Votes, t: Table, rates: list[dict], elos: list[dict]) -> list[dict]:
    """Published figures of this very file (by sha256) beside ours; empty for any other file."""
    said, rows = PUBLISHED.get(found.sha256, {}), []
    if not said:
        return rows
    many = ranking.elo(list(zip(t.left, t.right, t.soft)), len(t.models), K, MANY, t.seed, START)
    for rate, elo in zip(rates, elos):
        old, limit = said[rate["model"]], many[:, t.models.index(rate["model"])]
        shown = f"{rate['soft'][t.main]['value']:.{len(old['win rate']) - 2}f}"
        noise, apart = 2 * limit.std() / ORDERS**0.5, abs(limit.mean() - float(old["Elo"]))
        facts = (("votes", str(rate["votes"]), "equal" if int(old["votes"]) == rate["votes"] else "differs"),
                 ("win rate", shown, f"equal in all {len(shown) - 2} decimals" if shown == old["win rate"] else "differs"),
                 ("Elo", f"{elo['mean']['value']:.2f}", f"published is {apart:.2f} from {limit.mean():.2f}, the mean of {MANY:,} orders; "
                  f"means of {ORDERS} scatter by {noise:.1f} (2 sd): " + ("equal up to order noise" if apart <= noise else "differs by more than order noise")),
                 ("Elo sd", f"{elo['order_sd']:.1f}", f"{limit.std(ddof=1):.1f} over {MANY:,} orders"))
        rows += [{"figure": f"{rate['model']}, {name}", "published": old[name], "ours": ours, "verdict": verdict} for name, ours, verdict in facts]
    odd = found.counts["rated but incomplete"]
    rows.append({"figure": "rated sessions", "published": said["sessions"]["rated"], "ours": str(found.counts["used"] + odd),
                 "verdict": f"with {odd} incomplete, which is in no win rate"})
    return rows + [{"figure": name, "published": said["sessions"][name], "ours": "not measured", "verdict": f"cannot be reproduced: {why}"} for name, why in (
        ("raters", "ids are masked"), ("rated per rater", "ids are masked"), ("mean length", "timestamps are no times"))]


def analyse(found: Votes, clusters: str = "", resamples: int = 2000, seed: int = 0) -> dict:
    """All figures of a file of votes, as plain values. clusters: "" = user, or persona where user ids are masked."""
    t = Table(found, clusters, resamples, seed)
    rates = win_rates(t)
    elos = elo_ratings(t, [row["model"] for row in rates])
    minutes = [vote.minutes for vote in found.votes if vote.minutes is not None and vote.minutes >= 0]
    untimed = len(found.votes) - len(minutes)
    return {"sha256": found.sha256, "counts": found.counts, "not_used": found.not_used, "warnings": found.warnings,
            "settings": {"clusters": t.main, "resamples": resamples, "seed": seed,
                         "elo": {"start": START, "k": K, "orders": ORDERS, "resamples": min(resamples, ELO_RESAMPLES), "orders_per_resample": ELO_ORDERS}},
            "clusters": {kind: len(set(ids)) for kind, ids in t.ids.items()},
            "minutes": t.share(np.array(minutes), np.ones(len(minutes))) if not untimed else f"not measured: {untimed} sessions have no times",
            "win_rates": rates, "elo": elos, "bradley_terry": bradley_terry(t), "davidson": davidson(t), "position": position(t),
            "pairs": pair_tests(t, [row["model"] for row in rates]), "agreement": raters_agree(t),
            "needed_for": {str(p): pairs_needed(p) for p in (0.55, 0.6, 0.65)}, "published": beside_published(found, t, rates, elos)}


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("votes", type=Path)
    a.add_argument("--to", type=Path, default=Path("out/human_likeness/votes"))
    a.add_argument("--seed", type=int, default=0)
    a.add_argument("--clusters", choices=("user", "persona", "session"), default="",
                   help="what is resampled together; user, or persona where user ids are masked")
    a.add_argument("--resamples", type=int, default=2000)
    a = a.parse_args(argv)
    check_folder("--to", a.to)
    if a.resamples < 100 or a.seed < 0:
        raise UserError("--resamples must be at least 100, and --seed at least 0.")
    found = read_votes(a.votes)
    for warning in found.warnings:
        print(f"warning: {warning}")
    figures = {"command": command_line("votes", argv)} | analyse(found, a.clusters, a.resamples, a.seed)
    a.to.mkdir(parents=True, exist_ok=True)
    write_json(a.to / "votes.json", figures)
    (a.to / "votes.md").write_text(vote_page.page(figures), encoding="utf-8")
    vote_page.draw(figures, a.to / "votes.png")
    print(vote_page.summary(figures))
    print(f"written to {a.to}: votes.json, votes.md, votes.png")


if __name__ == "__main__":
    run_main(main)
