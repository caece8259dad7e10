"""Win rates at equal length, and rankings of more than two systems.

A judge that likes long replies makes the longer-winded system win. The length-controlled rate asks what the judge would say if
both replies were equally long. Bradley-Terry and Elo turn all games between several systems into one number per system.
"""
from collections.abc import Sequence

import numpy as np

from eval.stats import LEVEL, Interval, no_false_certainty
from runtime.errors import UserError

Game = tuple[str, str, float, object]  # (first system, second system, the first's score: 1, 0 or .5 for a tie, prompt or session)
RIDGE = 1.0  # prior precision of the length coefficient: one pair's worth, so that a perfect split by length stays finite
ELO = 400 / np.log(10)  # Elo points per unit of log-odds
FLAT = 1e-6  # games: an expected number of wins or ties that is this near to the one seen is equal to it
START = 1000.0  # the Elo of an average system


def percentiles(drawn: np.ndarray) -> list[float]:
    """[low, high] of resampled values [r]: the 95 % percentile interval, from order statistics."""
    return [float(x) for x in np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")]


def cluster_weights(clusters: Sequence, resamples: int, seed: int) -> np.ndarray:
    """[resamples, n]: how often each unit occurs when whole clusters are drawn with replacement."""
    place: dict = {}
    member = np.array([place.setdefault(cluster, len(place)) for cluster in clusters])
    drawn = np.random.default_rng(seed).multinomial(len(place), np.full(len(place), 1 / len(place)), size=resamples)
    return drawn[:, member]


# ---- length ---------------------------------------------------------------------------------------------------------

def length_controlled(outcomes: Sequence[float], words_a: Sequence[float], words_b: Sequence[float], clusters: Sequence, resamples: int = 2000,
                      seed: int = 0) -> Interval:
    """The win rate of b at equal lengths, after Dubois et al. 2024 (AlpacaEval 2), for two systems.

    outcomes [n]: 1 where b wins, 0 where a wins, 1/2 for a tie. Logistic regression of the outcome on a constant and
    tanh(length difference / its standard deviation); the rate is its prediction at difference zero. clusters [n]: what is
    resampled together. `n` of the interval counts clusters.
    """
    y, extra = np.asarray(outcomes, dtype=np.float64), np.asarray(words_b, dtype=np.float64) - np.asarray(words_a, dtype=np.float64)
    if not len(y) == len(extra) == len(clusters) or not len(y):
        raise ValueError(f"{len(y)} outcomes, {len(extra)} lengths, {len(clusters)} clusters")
    if not (np.isfinite(extra).all() and ((y >= 0) & (y <= 1)).all()):
        raise ValueError("outcomes must lie in [0, 1] and lengths be finite")
    x = np.stack([np.ones_like(y), np.tanh(extra / extra.std()) if extra.std() > 0 else np.zeros_like(y)], axis=1)  # [n, 2]
    value, drawn = (1 / (1 + np.exp(-np.clip(logistic(x, y, w, (1e-6, RIDGE))[:, 0], -30, 30)))
                    for w in (np.ones((1, len(y))), cluster_weights(clusters, resamples, seed)))
    if (y == y[0]).all():
        return Interval(float(value[0]), None, None, len(set(clusters)), "no two outcomes differ: not estimable", seed)
    return no_false_certainty(Interval(float(value[0]), *percentiles(drawn), len(set(clusters)), f"length-controlled, bootstrap, {resamples:,} resamples",
                                       seed), "no two pairs differ")


def logistic(x: np.ndarray, y: np.ndarray, weights: np.ndarray, ridge: Sequence[float], steps: int = 25) -> np.ndarray:
    """Coefficients [r, p] of r weighted logistic regressions at once, by Newton's method; x [n, p], y [n] in [0, 1], weights [r, n].

    ridge [p]: prior precision of each coefficient. Where outcomes are separable and it is tiny, a coefficient runs off to 15 and beyond.
    """
    coefficients, ridge = np.zeros((len(weights), x.shape[1])), np.diag(ridge)
    squares = (x[:, :, None] * x[:, None]).reshape(len(x), -1)  # [n, p * p]
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(coefficients @ x.T, -30, 30)))  # [r, n]
        gradient = (weights * (y - p)) @ x - coefficients @ ridge
        hessian = ((weights * np.maximum(p * (1 - p), 1e-9)) @ squares).reshape(-1, *ridge.shape) + ridge
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        coefficients += np.clip(step, -4, 4)  # a first step on separable outcomes would overshoot
        if np.abs(step).max() < 1e-9:
            break
    return coefficients


# ---- more than two systems ------------------------------------------------------------------------------------------

def bradley_terry(wins: np.ndarray, steps: int = 10_000) -> np.ndarray:
    """Log-strengths [..., k] with mean zero from wins [..., k, k]: wins[i, j] = games that i won against j, a tie half a win each.

    P(i beats j) = 1 / (1 + exp(s_j - s_i)) (Bradley & Terry 1952), by Hunter's MM iteration (2004). NaN where no finite maximum
    exists: some group of systems never loses to the rest, or never meets it.
    """
    wins = np.asarray(wins, dtype=np.float64)
    k = wins.shape[-1]
    reach = (wins > 0) | np.eye(k, dtype=bool)
    for _ in range(int(np.ceil(np.log2(max(k, 2))))):
        reach = (reach.astype(float) @ reach.astype(float)) > 0
    finite = reach.all(axis=(-1, -2))  # everybody reaches everybody along wins: Ford's condition (1957)
    games, won = wins + np.swapaxes(wins, -1, -2), wins.sum(axis=-1)
    strength = np.ones(wins.shape[:-1])
    for _ in range(steps):
        pairs = games / (strength[..., :, None] + strength[..., None, :])
        with np.errstate(invalid="ignore", divide="ignore"):
            new = won / pairs.sum(axis=-1)
            new = new / np.exp(np.log(np.where(new > 0, new, 1)).mean(axis=-1, keepdims=True))
        done = np.abs(new - strength)[finite].max(initial=0) < 1e-10
        strength = np.where(finite[..., None], new, strength)
        if done:
            break
    with np.errstate(divide="ignore"):
        scores = np.log(strength)
    return np.where(finite[..., None], scores - scores.mean(axis=-1, keepdims=True), np.nan)


def davidson(wins: np.ndarray, ties: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bradley-Terry with a parameter for ties (Davidson 1970): log-strengths [..., k] with mean zero, and nu [...].

    wins [..., k, k]: decided games that i won against j; ties [..., k, k]: tied games, symmetric. With pi = exp(strength), i wins, j wins and a tie
    are as likely as pi_i : pi_j : nu sqrt(pi_i pi_j). nu is 0 where nothing was tied; NaN where no finite maximum exists, as with ties alone, or with
    two systems one of which wins or ties and never loses (half a win for a tie has a maximum there).
    """
    from scipy.optimize import root
    wins, ties = np.asarray(wins, dtype=np.float64), np.asarray(ties, dtype=np.float64)
    k = wins.shape[-1]
    i, j = np.triu_indices(k, 1)
    tied = np.zeros((k, len(i)))
    tied[i, np.arange(len(i))] = tied[j, np.arange(len(i))] = 0.5
    strengths = bradley_terry(wins + ties / 2).reshape(-1, k)
    nus = np.where(np.isnan(strengths[:, 0]), np.nan, 0.0)
    for at, (won, even) in enumerate(zip(wins.reshape(-1, k, k), ties.reshape(-1, k, k))):
        if np.isnan(nus[at]) or not even.any():
            continue
        if not won.any():
            strengths[at] = nus[at] = np.nan
            continue
        seen = np.stack([won[i, j], won[j, i], even[i, j]])  # [3, pairs]

        def slope(theta: np.ndarray) -> np.ndarray:
            s = np.append(theta[:-1], 0.0)
            weight = np.exp([s[i], s[j], theta[-1] + (s[i] + s[j]) / 2])
            surplus = seen - seen.sum(axis=0) * weight / weight.sum(axis=0)  # seen - expected
            by_system = np.bincount(i, surplus[0], k) + np.bincount(j, surplus[1], k) + tied @ surplus[2]
            return np.append(by_system[:-1], surplus[2].sum())
        # the log-likelihood is concave: its only flat point is the maximum
        first = np.append(strengths[at, :-1] - strengths[at, -1], np.log(even.sum() / won.sum()))
        found = root(slope, first, tol=1e-10)
        # on the way to infinity the slope is flat as well, where less than FLAT losses are expected: there the odds are beyond 1 / FLAT
        s = np.append(found.x[:-1], 0.0)
        s = s if np.abs(slope(found.x)).max() < FLAT and np.ptp(s) < -np.log(FLAT) else np.full(k, np.nan)
        strengths[at], nus[at] = s - s.mean(), np.exp(found.x[-1]) + 0 * s[0]
    return strengths.reshape(wins.shape[:-1]), nus.reshape(wins.shape[:-2])


def elo(games: Sequence[tuple[int, int, float]], k_systems: int, k_factor: float = 4.0, orders: int = 20, seed: int = 0, start: float = START,
        times: np.ndarray | None = None) -> np.ndarray:
    """Elo ratings [orders, k]: the classic sequential update over `orders` random orders of the games, everybody beginning at `start`.

    times [r, n]: how often each game is played in each of r resamples (`cluster_weights`); the ratings are then [r, orders, k].
    Unlike Bradley-Terry, Elo depends on the order, which for replies means nothing: the spread over orders shows how much. It says nothing about
    other games that might have been played: the spread over resamples does.
    """
    rng, n = np.random.default_rng(seed), len(games)
    played = [rng.permutation(np.repeat(np.arange(n), row)) for row in (np.ones((1, n), dtype=int) if times is None else times) for _ in range(orders)]
    padded = np.full((len(played), max(map(len, played))), n)  # game n is system 0 against itself: it changes nothing
    for row, order in zip(padded, played):
        row[:len(order)] = order
    first, second, score = (np.array(column) for column in zip(*games, (0, 0, 0.5)))
    ratings, every = np.full((len(played), k_systems), float(start)), np.arange(len(played))
    for at in padded.T:  # one game of every order at a time
        i, j = first[at], second[at]
        expected = 1 / (1 + 10 ** ((ratings[every, j] - ratings[every, i]) / 400))
        change = k_factor * (score[at] - expected)
        ratings[every, i] += change
        ratings[every, j] -= change
    return ratings if times is None else ratings.reshape(len(times), orders, k_systems)


def ranking_table(games: Sequence[Game], resamples: int = 1000, seed: int = 0) -> dict:
    """Bradley-Terry strengths on the Elo scale with intervals that resample whole prompts or sessions, and Elo over random orders.

    Returns {"rows": [{"system", "bradley_terry", "elo"}] strongest first, "undefined": resamples in which no finite maximum
    exists}; intervals have no ends when those are more than 2.5 %. UserError when the games themselves have none: it names the systems.
    """
    systems = list(dict.fromkeys(name for game in games for name in game[:2]))
    place = {name: i for i, name in enumerate(systems)}
    first, second = (np.array([place[game[side]] for game in games]) for side in (0, 1))
    score, k = np.array([game[2] for game in games]), len(systems)
    one_hot = np.zeros((len(games), k * k))  # each game's part of the table of wins
    np.add.at(one_hot, (np.arange(len(games)), first * k + second), score)
    np.add.at(one_hot, (np.arange(len(games)), second * k + first), 1 - score)
    whole = one_hot.sum(axis=0).reshape(k, k)
    value = bradley_terry(whole)
    if np.isnan(value).any():
        never = [name for i, name in enumerate(systems) if not whole[i].sum() or not whole[:, i].sum()]
        raise UserError(f"no finite ranking: {', '.join(never) or 'some group'} never wins or never loses against the others.")
    drawn = bradley_terry((cluster_weights([game[3] for game in games], resamples, seed) @ one_hot).reshape(resamples, k, k))
    usable = drawn[~np.isnan(drawn).any(axis=1)]
    orders = elo(list(zip(first, second, score)), k, seed=seed)
    n = len({game[3] for game in games})
    # a resample in which a system never loses puts it at infinity: leaving many of those out would cut the interval short
    ends = [tuple(float(START + ELO * end) for end in percentiles(usable[:, i])) if len(usable) >= 0.975 * resamples else (None, None) for i in range(k)]
    rows = [{"system": name,
             "bradley_terry": Interval(float(START + ELO * value[i]), *ends[i], n, f"bootstrap over prompts, {len(usable):,} resamples", seed).to_dict(),
             "elo": Interval(float(orders[:, i].mean()), float(orders[:, i].min()), float(orders[:, i].max()), len(orders),
                             "lowest and highest of random orders", seed).to_dict()} for i, name in enumerate(systems)]
    return {"rows": sorted(rows, key=lambda row: -row["bradley_terry"]["value"]), "undefined": resamples - len(usable)}
