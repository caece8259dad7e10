"""The human study's votes. Small files written here, figures worked by hand, one trap per known mistake."""
import csv
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from eval import ranking
from runtime.errors import UserError
from studies.human_likeness import vote_page, vote_rows, votes

RESULTS = Path(__file__).resolve().parents[1] / "results" / "human_likeness"
LABELS = {2: "Certainly A", 1: "Likely A", 0: "Tie", -1: "Likely B", -2: "Certainly B"}


def row(left, right, level, persona=1, user="u1", session=None, **other):
    talk = r"P: hello there\nD: what is wrong\nP: my foot"
    row.made += 1
    return {"session_id": session or f"s{row.made}", "user_id": user, "persona_id": persona, "timestamp_start": "2025-05-01T10:00:00", "timestamp_end": "2025-05-01T10:09:30",
            "turns_a": 1, "turns_b": 1, "hl_score": LABELS.get(level, level), "is_completed": "TRUE", "left_model": left, "right_model": right, "dialogue_a": talk, "dialogue_b": talk} | other


row.made = 0


def write(path, rows):
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, vote_rows.COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def read(tmp_path, rows):
    return vote_rows.read_votes(write(tmp_path / "votes.csv", rows))


def table(tmp_path, rows, clusters="", resamples=300):
    return votes.Table(read(tmp_path, rows), clusters, resamples, 0)


def simulated(n, rng, side=0.0, slope=0.0, **other):
    """n votes between a, b and c (log-strengths 1, 0, -1); `slope` rewards the shorter dialogue, per word."""
    rows = []
    for i in range(n):
        left, right = rng.choice(3, 2, replace=False)
        words = rng.integers(5, 40, 2)
        p = 1 / (1 + np.exp(-(right - left) - side + slope * (words[0] - words[1])))
        level = int(rng.integers(1, 3)) * (1 if rng.random() < p else -1) * (rng.random() < 0.9)
        rows.append(row("abc"[left], "abc"[right], int(level), persona=i % 40, user=f"u{i % 25}", dialogue_a="P: " + "w " * words[0], dialogue_b="P: " + "w " * words[1]) | other)
    return rows


# ---- reading --------------------------------------------------------------------------------------------------------

def test_every_row_is_counted_or_named(tmp_path):
    rows = [row("a", "b", 2), row("a", "b", ""), row("a", "b", "None", is_completed="FALSE"), row("a", "b", 1, is_completed="FALSE"), row("a", "a", 1), row("a", "", 1),
            row("b", "a", "  likely   a "), row("a", "b", 0, is_completed="perhaps"), row("a", "b", 0, persona="")]
    found = read(tmp_path, rows)
    assert found.counts == {"rows": 9, "unrated": 2, "incomplete": 2, "rated but incomplete": 1, "used": 2}
    assert found.not_used == {6: "the same model on both sides", 7: "a model is missing", 9: "is_completed is neither true nor false", 10: "no persona_id or no session_id"}
    assert [(vote.row, vote.level) for vote in found.votes] == [(2, 2), (8, 1)]
    assert any("row 6, the same model" in warning for warning in found.warnings)


def test_unknown_labels_are_an_error_that_lists_rows(tmp_path):
    with pytest.raises(UserError, match="row 3, 5$|row 3, 5[.]"):
        read(tmp_path, [row("a", "b", 2), row("a", "b", "Probably A"), row("a", "b", 0), row("a", "b", "certainly")])
    for rows in ([], [row("a", "b", 1)]):
        with pytest.raises(UserError, match="nothing can be compared"):
            read(tmp_path, rows)
    (tmp_path / "x.csv").write_text("session_id,hl_score\n1,Tie\n")
    with pytest.raises(UserError, match="no column user_id"):
        vote_rows.read_votes(tmp_path / "x.csv")


def test_trap_a_session_that_appears_twice_counts_once(tmp_path):
    found = read(tmp_path, [row("a", "b", 2, session="x"), row("a", "b", -2, session="x"), row("a", "b", 1)])
    assert found.counts["used"] == 2 and found.not_used == {3: "its session was counted in row 2"}
    assert any("more than one row" in warning and "row 2, 3" in warning for warning in found.warnings)


@pytest.mark.parametrize("ids", [["XXXX"] * 4, ["", "", "", ""], ["u1", "u2", "***", "u3"], ["same"] * 4])
def test_trap_masked_ids_are_no_raters(tmp_path, ids):
    found = read(tmp_path, [row("a", "b", level, persona=i, user=name) for i, (name, level) in enumerate(zip(ids, (2, -1, 1, -2)))])
    assert found.masked and any("masked" in warning for warning in found.warnings)
    t = votes.Table(found, "", 50, 0)
    assert t.main == "persona" and votes.win_rates(t)[0]["soft"]["user"] == "not measured: ids are masked"
    with pytest.raises(UserError, match="masked"):
        votes.Table(found, "user", 50, 0)


def test_raters_are_the_clusters_where_they_are_known(tmp_path):
    found = read(tmp_path, [row("a", "b", level, persona=i, user=f"u{i % 3}") for i, level in enumerate((2, -1, 1, -2, 2, 1))])
    figures = votes.analyse(found, resamples=50)
    assert not found.masked and figures["clusters"] == {"user": 3, "persona": 6, "session": 6}
    assert figures["settings"]["clusters"] == "user" and figures["win_rates"][0]["soft"]["user"]["n"] == 3


def test_trap_mangled_timestamps_are_no_times(tmp_path):
    assert vote_rows.minutes_between("28:41.6", "32:03.1") is None and vote_rows.minutes_between("2025-05-01 10:00", "2025-05-01T10:09:30") == 9.5
    whole = read(tmp_path, [row("a", "b", 2), row("a", "b", -1)])
    assert votes.analyse(whole, "session", 50)["minutes"]["value"] == 9.5 and not [w for w in whole.warnings if "time" in w]
    broken = read(tmp_path, [row("a", "b", 2, timestamp_start="28:41.6"), row("a", "b", -1)])
    assert votes.analyse(broken, "session", 50)["minutes"] == "not measured: 1 sessions have no times" and any("no times" in w and "row 2" in w for w in broken.warnings)
    assert any("before" in w for w in read(tmp_path, [row("a", "b", 2, timestamp_end="2025-05-01T09:00:00"), row("a", "b", -1)]).warnings)


def test_words_and_turns_are_the_patients(tmp_path):
    found = read(tmp_path, [row("a", "b", 1, dialogue_a=r"P: one two\nD: not counted at all\nP: three", dialogue_b=r"D: only the doctor"), row("a", "b", 1)])
    assert found.votes[0].words == (3, 0) and found.votes[0].turns == (2, 0) and any("without a turn of the patient" in w for w in found.warnings)
    t = votes.Table(found, "session", 20, 0)
    assert t.heard.tolist() == [False, True] and votes.bradley_terry(t)[2]["votes"] == 1


# ---- rates and ratings ----------------------------------------------------------------------------------------------

HAND = [("a", "b", 2), ("b", "a", 1), ("a", "c", 0), ("c", "b", -1)]  # soft scores of the left: 1, .75, .5, .25


def test_win_rates_by_hand(tmp_path):
    rates = {r["model"]: r for r in votes.win_rates(table(tmp_path, [row(*vote, persona=i) for i, vote in enumerate(HAND)], "session"))}
    # a: 1, 1 - .75, .5; b: 0, .75, .75; c: .5, .25
    assert {m: rates[m]["soft"]["session"]["value"] for m in "abc"} == pytest.approx({"a": 1.75 / 3, "b": 0.5, "c": 0.375})
    assert {m: rates[m]["hard"]["session"]["value"] for m in "abc"} == pytest.approx({"a": 0.5, "b": 2 / 3, "c": 0.25})
    assert rates["a"]["votes"] == 3 and rates["a"]["stood left"]["value"] == pytest.approx(2 / 3)


def test_changing_sides_changes_nothing_but_the_side(tmp_path):
    rows = simulated(120, np.random.default_rng(0), side=0.5)
    other = [r | {"left_model": r["right_model"], "right_model": r["left_model"], "dialogue_a": r["dialogue_b"], "dialogue_b": r["dialogue_a"],
                  "hl_score": {name: LABELS[-level] for level, name in LABELS.items()}[r["hl_score"]]} for r in rows]
    one, two = (votes.analyse(read(tmp_path, rs), resamples=100) for rs in (rows, other))
    assert one["agreement"] == two["agreement"] and [r["p"] for r in one["pairs"]] == [r["p"] for r in two["pairs"]]
    for r, s in zip(one["win_rates"], two["win_rates"]):
        assert r["soft"]["user"] == pytest.approx(s["soft"]["user"])
    for r, s in zip(one["bradley_terry"][:3], two["bradley_terry"]):  # nobody's turns differ: the others are not measured
        assert all(r["strengths"][m]["value"] == pytest.approx(s["strengths"][m]["value"], abs=1e-6) for m in "abc")
        if "side" in r["terms"]:
            assert r["coefficients"]["side"]["value"] == pytest.approx(-s["coefficients"]["side"]["value"])
    assert one["davidson"]["nu"]["value"] == pytest.approx(two["davidson"]["nu"]["value"])


def test_elo_worked_example(tmp_path):
    # a beats b for certain: expected 1/2, 16 points. Then b is likely better than a: a's expected score is 1 / (1 + 10^(-32/400)) = .545922..., its score .25
    expected = 1 / (1 + 10 ** (-32 / 400))
    first = 1516 + 32 * (0.25 - expected)
    # the other order: the same vote at equal ratings costs a 8 points, then a stands at 1492 against 1508
    second = 1492 + 32 * (1 - 1 / (1 + 10 ** (16 / 400)))
    games = [(0, 1, 1.0), (1, 0, 0.75)]
    found = ranking.elo(games, 2, 32, 500, 0, 1500.0)
    assert first == pytest.approx(1506.5305, abs=1e-4)
    assert {round(r, 8) for r in found[:, 0]} == {round(first, 8), round(second, 8)} and found.sum(axis=1) == pytest.approx(3000)
    rated = votes.elo_ratings(table(tmp_path, [row("a", "b", 2, user="u1"), row("b", "a", 1, user="u2")], "session"), ["a", "b"])
    share = np.mean(np.isclose(found[:, 0], first))
    assert rated[0]["mean"]["value"] == pytest.approx(share * first + (1 - share) * second) and 0.4 < share < 0.6


def test_elo_of_a_resample_plays_a_game_as_often_as_it_was_drawn():
    games = [(0, 1, 1.0), (1, 2, 0.5), (2, 0, 0.75)]
    found = ranking.elo(games, 3, 32, 4, 5, 1500.0, np.array([[2, 0, 0], [0, 0, 1]]))  # of unequal length: the shorter one is padded
    twice = ranking.elo([games[0], games[0]], 3, 32, 1, 0, 1500.0)[0]
    assert found.shape == (2, 4, 3) and np.allclose(found[0], twice) and found[1].tolist() == [[1492, 1500, 1508]] * 4
    assert (ranking.elo(games, 3, 32, 6, 5) == ranking.elo(games, 3, 32, 6, 5, times=np.ones((1, 3), int))[0]).all()


def test_trap_spread_over_orders_is_no_sampling_error(tmp_path):
    rows = simulated(100, np.random.default_rng(1))
    few = votes.elo_ratings(table(tmp_path, rows, "session"), "abc")
    many = votes.elo_ratings(table(tmp_path, [r | {"session_id": f"{r['session_id']}.{i}"} for r in rows for i in range(9)], "session"), "abc")
    for a, b in zip(few, many):
        assert b["bootstrap_sd"] < 0.55 * a["bootstrap_sd"] and b["order_sd"] > 0.75 * a["order_sd"]  # nine times the votes: a third, and the same


def test_five_hundred_orders_of_400_votes_are_fast():
    import time
    rng = np.random.default_rng(0)
    games = [(int(a), int(a + d) % 3, float(s)) for a, d, s in zip(rng.integers(0, 3, 400), rng.integers(1, 3, 400), rng.choice([0, 0.25, 0.5, 0.75, 1], 400))]
    begun = time.process_time()
    assert ranking.elo(games, 3, 32, 500, 0, 1500.0).shape == (500, 3) and time.process_time() - begun <= 2


def test_bradley_terry_equals_logistic_regression(tmp_path):
    from sklearn.linear_model import LogisticRegression
    t = table(tmp_path, simulated(300, np.random.default_rng(2), side=0.4, slope=0.05))
    plain, side, words = votes.bradley_terry(t)[:3]
    wins = np.zeros((3, 3))
    np.add.at(wins, (t.left, t.right), t.hard)
    np.add.at(wins, (t.right, t.left), 1 - t.hard)
    for found, extra in ((plain, []), (side, [np.ones(300)]), (words, [np.ones(300), t.words / t.words.std()])):
        x = np.column_stack([t.sign[:, :2], *extra])  # the third strength is zero; a tie is half a win and half a loss
        fit = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12, max_iter=10_000, solver="newton-cholesky").fit(
            np.concatenate([x, x]), np.repeat([1, 0], 300), sample_weight=np.concatenate([t.hard, 1 - t.hard])).coef_[0]
        strengths = np.append(fit[:2], 0) - fit[:2].sum() / 3
        assert [found["strengths"][m]["value"] for m in "abc"] == pytest.approx(1500 + ranking.ELO * strengths, abs=1e-6)
        assert [c["value"] for c in found["coefficients"].values()] == pytest.approx(fit[2:], abs=1e-6)
        if not extra:
            assert ranking.bradley_terry(wins) == pytest.approx(strengths, abs=1e-6)


def test_no_finite_strength_is_not_measured(tmp_path):
    figures = votes.analyse(read(tmp_path, [row("a", "b", 2, persona=i, user=f"u{i}") for i in range(5)]), resamples=50)
    assert figures["bradley_terry"][0]["strengths"]["a"]["value"] is None and figures["davidson"]["nu"]["value"] is None
    assert "no finite maximum" in vote_page.page({"command": ""} | figures) and figures["pairs"][0]["needed"]["votes"] is None


def test_davidson_by_hand_and_against_its_likelihood():
    # two models: 6 wins, 3 losses, 4 ties are fitted exactly, so pi_1 / pi_2 = 2 and nu = 4 / sqrt(18)
    s, nu = ranking.davidson([[0, 6], [3, 0]], [[0, 4], [4, 0]])
    assert s == pytest.approx([np.log(2) / 2, -np.log(2) / 2]) and nu == pytest.approx(4 / np.sqrt(18))
    wins, ties = np.array([[0, 9, 12], [4, 0, 7], [3, 5, 0]]), np.array([[0, 3, 1], [3, 0, 6], [1, 6, 0]])

    def loss(theta):
        pi, total = np.exp([theta[0], theta[1], -theta[0] - theta[1]]), 0.0
        for i in range(3):
            for j in range(3):
                if i != j:
                    even = np.exp(theta[2]) * np.sqrt(pi[i] * pi[j])
                    total -= wins[i, j] * np.log(pi[i] / (pi[i] + pi[j] + even)) + ties[i, j] / 2 * np.log(even / (pi[i] + pi[j] + even))
        return total
    from scipy.optimize import minimize
    fit = minimize(loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 5000}).x
    s, nu = ranking.davidson(wins, ties)
    assert s[:2] == pytest.approx(fit[:2], abs=1e-5) and nu == pytest.approx(np.exp(fit[2]), abs=1e-5)
    s, nu = ranking.davidson(np.stack([wins, wins]), np.stack([ties, 0 * ties]))
    assert s[1] == pytest.approx(ranking.bradley_terry(wins)) and nu[1] == 0 and np.isnan(ranking.davidson([[0, 3], [0, 0]], [[0, 0], [0, 0]])[1])


def test_cluster_bootstrap_by_hand(tmp_path):
    # persona 1: one vote that a wins; persona 2: three that it loses. Resamples: 1-1 (1/4), 1-2 (1/2), 2-2 (1/4) with rates 1, 1/4, 0
    rows = [row("a", "b", 2, persona=1)] + [row("a", "b", -2, persona=2) for _ in range(3)]
    t = table(tmp_path, rows, "persona", 4000)
    on = t.weights["persona"] @ np.array([1, 0, 0, 0]) / (t.weights["persona"] @ np.ones(4))
    assert {x: np.mean(on == x) for x in set(on)} == pytest.approx({1.0: 0.25, 0.25: 0.5, 0.0: 0.25}, abs=0.03)
    found = next(r for r in votes.win_rates(t) if r["model"] == "a")["hard"]
    assert (found["persona"]["value"], found["persona"]["low"], found["persona"]["high"], found["persona"]["n"]) == (0.25, 0, 1, 2)
    assert found["session"]["n"] == 4 and found["session"]["high"] < 1  # votes taken for independent: too narrow


# ---- tests and confounds --------------------------------------------------------------------------------------------

def test_pair_tests_by_hand(tmp_path):
    levels = [2, 2, 1, 2, 1, -1]  # a's view; every second vote is shown with the sides changed
    rows = [row("ab"[i % 2], "ba"[i % 2], level * (-1) ** i, persona=i) for i, level in enumerate(levels)]
    found, = votes.pair_tests(table(tmp_path, rows, "session"), ["a", "b"])
    assert (found["wins"], found["losses"], found["ties"]) == (5, 1, 0)
    assert found["p"]["sign"] == pytest.approx(2 * (1 + 6) / 64)  # 0 or 1 of 6 wins, two-sided
    size = np.array([5, 5, 2, 5, 2, 2])  # mid-ranks of |level|: three ones share 2, three twos share 5
    sums = [(size * (np.array(signs) > 0)).sum() for signs in product((1, -1), repeat=6)]
    observed = (size * (np.array(levels) > 0)).sum()
    exact = np.mean([abs(s - size.sum() / 2) >= abs(observed - size.sum() / 2) for s in sums])
    assert found["p"]["signed_rank"] == pytest.approx(exact) and found["p"]["cluster_flip"] == pytest.approx(exact, abs=0.05)
    flips = np.mean([abs((np.array(levels) * signs).sum()) >= 7 for signs in product((1, -1), repeat=6)])
    assert found["p"]["cluster_flip"] == pytest.approx(flips, abs=0.01)


def test_trap_votes_of_one_rater_are_not_independent(tmp_path):
    rows = [row("a", "b", 2, user=f"u{i % 4}", persona=i) for i in range(36)] + [row("b", "a", 1, user="u9", persona=i) for i in range(6)]
    found, = votes.pair_tests(table(tmp_path, rows), ["a", "b"])
    assert found["p"]["sign"] < 0.001 and found["p"]["cluster_flip"] > 0.05  # five raters, one against: no five coins show more than 1 in 16


def test_holm_runs_over_the_pairs(tmp_path):
    found = votes.pair_tests(table(tmp_path, simulated(150, np.random.default_rng(3))), ["a", "b", "c"])
    p = sorted((r["p"]["sign"], r["p"]["sign_holm"]) for r in found)
    assert len(p) == 3 and p[0][1] == pytest.approx(min(1, 3 * p[0][0])) and p[2][1] >= p[1][1] >= p[0][1]


def test_position_is_found_and_taken_out(tmp_path):
    t = table(tmp_path, simulated(600, np.random.default_rng(4), side=1.0))
    side, found = votes.bradley_terry(t)[1], votes.position(t)
    assert found["left_hard"]["low"] > 0.5 and found["p"] < 0.001 and found["left"] + found["right"] + found["ties"] == 600
    assert side["coefficients"]["side"]["low"] > 0.5 and side["strengths"]["a"]["value"] == pytest.approx(1500 + ranking.ELO, rel=0.03)


def test_trap_a_rater_who_likes_short_answers_is_unmasked(tmp_path):
    rng, rows = np.random.default_rng(5), []
    for i in range(300):
        a, b = rng.integers(5, 30), rng.integers(12, 40)  # a is shorter, and that alone decides
        win = rng.random() < 1 / (1 + np.exp(0.25 * (a - b)))
        sides = [("a", a), ("b", b)][::(-1) ** i]  # every second time the other way round
        rows.append(row(sides[0][0], sides[1][0], (2 if win else -2) * (-1) ** i, persona=i, user=f"u{i % 60}", **{f"dialogue_{x}": "P: " + "w " * n for x, (_, n) in zip("ab", sides)}))
    found, = votes.pair_tests(table(tmp_path, rows), ["a", "b"])
    assert found["win_rate"]["low"] > 0.6 and found["at_equal"]["words"]["low"] < 0.5 < found["at_equal"]["words"]["high"] and found["longer"]["words"] < -5


def test_agreement_looks_at_models_not_sides(tmp_path):
    same = [row("a", "b", 2, persona=1), row("b", "a", -2, persona=1), row("a", "b", -1, persona=2), row("b", "a", 1, persona=2), row("a", "c", 1, persona=1)]
    found = votes.raters_agree(table(tmp_path, same, "session"))
    assert (found["items"], found["judged_more_than_once"], found["votes_on_them"]) == (3, 2, 4) and found["alpha"]["value"] == pytest.approx(1)
    once = votes.raters_agree(table(tmp_path, [row("a", "b", 2, persona=i) for i in range(3)], "session"))
    assert once["alpha"] is None and "not measured" in once["reason"]


def test_votes_needed():
    assert votes.votes_needed(60, 40, 0)["votes"] == 210 and votes.votes_needed(60, 40, 100)["votes"] == 420  # ties decide nothing, yet are votes
    assert [votes.votes_needed(*n)["votes"] for n in ((50, 50, 3), (0, 0, 9), (7, 0, 0))] == [None] * 3
    assert "more than 2," in votes.votes_needed(51, 50, 0)["reason"]  # 2,228 decided votes for 53 %


def test_the_command(tmp_path, capsys):
    rows = simulated(60, np.random.default_rng(6), user_id="XXXX", dialogue_a=r"P: the platypus sang\nD: zounds", timestamp_start="10:10.1")
    source, (one, two) = write(tmp_path / "v.csv", rows), (tmp_path / "one" / "votes", tmp_path / "two" / "votes")
    for folder in (one, two):
        votes.main([str(source), "--to", str(folder), "--resamples", "100"])
    assert "warning: user_id is masked" in capsys.readouterr().out
    text = (one / "votes.json").read_text() + (one / "votes.md").read_text()
    assert (one / "votes.png").stat().st_size > 10_000 and "platypus" not in text and "zounds" not in text
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in ("votes.json", "votes.md"))
    assert "published figures" not in text and json.loads((one / "votes.json").read_text())["published"] == []


def test_the_published_figures_as_committed():
    found = json.loads((RESULTS / "votes.json").read_text())
    by_name = {r["figure"]: r for r in found["published"]}
    for model, said in next(iter(votes.PUBLISHED.values())).items():
        if model != "sessions":
            assert by_name[f"{model}, votes"]["verdict"] == "equal" and by_name[f"{model}, win rate"]["ours"] == said["win rate"]
            assert "equal up to order noise" in by_name[f"{model}, Elo"]["verdict"]
    assert by_name["raters"]["ours"] == "not measured" and found["counts"]["rated but incomplete"] + found["counts"]["used"] == int(by_name["rated sessions"]["published"])
    assert (RESULTS / "votes.md").read_text() == vote_page.page(found)
