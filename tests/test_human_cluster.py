"""Clusters of statements: what the stability's ends are, which statements a resample holds, and odd input."""
import json

import numpy as np
import pytest

from runtime.errors import UserError
from studies.human_likeness import cluster as clustering
from studies.human_likeness import discover

GROUPS = ("slang abbreviations chat words", "capital letters missing lowercase", "questions returned partner asked", "jokes teasing irony laughter")


def planted(per_group=16):
    """Statements of four groups, three of the four words of one in each; every game has one of each group."""
    return [{"id": f"{g}-{i:02d}", "game": f"g{i}", "right": True, "text": " ".join(words.split()[:i % 4] + words.split()[i % 4 + 1:])}
            for g, words in enumerate(GROUPS) for i in range(per_group)]


def run(tmp_path, rows, *flags):
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    clustering.main([str(tmp_path / "s.jsonl"), "--to", str(tmp_path / "out"), "--min-cluster-size", "5", "--neighbours", "8", "--dims", "4", *flags])
    return json.loads((tmp_path / "out" / "facts.json").read_text())


def test_trap_an_interval_of_the_rand_index_beyond_one(tmp_path, monkeypatch, capsys):
    """Student's interval for the mean of a few reclusterings went to 1.02: the ends are those of the reclusterings."""
    calls = []

    def by_their_words(vectors, settings, seed=0):  # the planted groups, and every third statement astray with seed 2
        groups = np.unique(np.abs(vectors @ vectors.T) > 0.1, axis=0, return_inverse=True)[1].ravel()
        calls.append(seed)
        return np.where(np.arange(len(groups)) % 3 == 0, groups.max() + 1, groups) if seed == 2 else groups
    monkeypatch.setattr(clustering, "cluster", by_their_words)
    facts = run(tmp_path, planted(), "--seeds", "3")
    said = capsys.readouterr().out
    for name in ("ari", "ari_clustered", "noise", "clusters"):
        values, found = [r[name] for r in facts["stability"]["runs"]], facts["stability"][name]
        assert (found["low"], found["high"], found["n"]) == (min(values), max(values), 3) and found["value"] == pytest.approx(np.mean(values))
        assert found["method"] == "lowest and highest of reclusterings"
    assert calls == [0, 1, 2, 3] and facts["stability"]["ari"]["low"] < 0.8 and facts["stability"]["ari"]["high"] == 1
    assert f"{facts['stability']['ari']['value']:.3f}, from {facts['stability']['ari']['low']:.3f} to 1.000" in said


def test_a_resample_holds_whole_games(tmp_path, monkeypatch):
    rows = sorted(planted(10), key=lambda row: row["id"])
    games, vectors = [row["game"] for row in rows], clustering.embed([row["text"] for row in rows])
    seen = []
    settings = clustering.Settings(min_cluster_size=4, neighbours=6, dims=3)
    labels = clustering.cluster(vectors, settings)
    monkeypatch.setattr(clustering, "cluster", lambda found, *_: seen.append(found) or np.zeros(len(found), int))
    clustering.stability(np.column_stack([vectors, np.arange(len(rows))]), games, labels, settings, 3)
    for found in seen:
        drawn = [games[int(i)] for i in found[:, -1]]
        assert len(set(drawn)) == 8 and all(drawn.count(game) == 4 for game in drawn)
    assert len({tuple(found[:, -1]) for found in seen}) > 1  # another seed, other games


def test_a_resample_that_is_too_small_is_named_as_one():
    with pytest.raises(UserError, match="80% of the games hold 16 statements, too few for two clusters of 9.*--seeds 0"):
        clustering.stability(np.ones((20, 2)), [f"g{i // 2}" for i in range(20)], np.zeros(20, int), clustering.Settings(min_cluster_size=9), 1)


def test_nothing_clustered_both_times_is_not_measured(tmp_path, monkeypatch, capsys):
    real = clustering.cluster
    monkeypatch.setattr(clustering, "cluster", lambda vectors, settings, seed=0: real(vectors, settings, seed) if seed == 0 else np.full(len(vectors), clustering.NOISE))
    facts = run(tmp_path, planted(), "--seeds", "2")
    assert facts["stability"]["ari_clustered"] is None and "statements clustered both times: adjusted Rand index not measured" in capsys.readouterr().out


@pytest.mark.parametrize("change, message", [({"text": None}, "a statement has no text"), ({"id": "1-03"}, "the statement 1-03 comes twice")])
def test_statements_that_are_none(tmp_path, change, message):
    rows = planted()
    with pytest.raises(UserError, match=message):
        run(tmp_path, [rows[0] | change, *rows[1:]])


def test_ids_may_be_numbers_and_names_and_games_are_counted_once(tmp_path):
    rows = [row | {"game": f"g{int(row['id'][2:]) // 2}"} for row in planted()]
    assert run(tmp_path, [rows[0] | {"id": 7}, *rows[1:]], "--seeds", "0")["statements"] == len(rows)
    game = {row["id"]: row["game"] for row in rows} | {"7": rows[0]["game"]}
    clusters = [json.loads(line) for line in open(tmp_path / "out" / "clusters.jsonl")]
    assert [row["games"] for row in clusters] == [len({game[i] for i in row["statements"]}) for row in clusters] and clusters[0]["games"] < clusters[0]["size"]


@pytest.mark.parametrize("flags, message", [(("--seeds", "-1"), "--seeds and --seed at least 0"), (("--seed", "-1"), "--seeds and --seed at least 0"), (("--representatives", "0"), "at least 1"),
                                            (("--right-only",), "no statement from an answer that named the human")])
def test_odd_flags_are_one_sentence(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, [row | {"right": False} for row in planted()], *flags)


def test_nothing_is_asked_or_made_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="is a folder: name a file"):
        clustering.main(["reduce", str(tmp_path), "--to", str(tmp_path), "--model", "m", "--base-url", "http://127.0.0.1:9/v1"])
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="out is a file: name a folder"):
        run(tmp_path, planted())
    with pytest.raises(UserError, match="would replace what is read"):
        discover.main(["witnesses", str(tmp_path / "out"), "--to", str(tmp_path / "out")])
    with pytest.raises(UserError, match="--items must be at least 1"):
        clustering.main(["reduce", str(tmp_path), "--to", str(tmp_path / "x.yaml"), "--items", "0", "--model", "m", "--base-url", "http://127.0.0.1:9/v1"])
