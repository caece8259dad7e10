"""Sweeps: real runs of a tiny model over a grid; what is shared, what is resumed, what a failure says."""
import json
import subprocess
import sys

import pytest

from eval import stats
from eval.sweep_report import tables
from runtime.config import ROOT
from runtime.errors import UserError
from sweep import PRESETS, Sweep, main, parse_grid

TINY = ["--model.n_layer=1", "--model.n_head=2", "--model.n_embd=32", "--data.max_rows=300", "--data.vocab_size=400", "--sft.max_steps=4", "--sft.batch=8",
        "--dpo.max_steps=4", "--dpo.batch=8", "--dpo.eval_every=2", "--dpo.eval_rows=16", "--dpo.watch_prompts=0", "--eval.prompts_per_kind=4", "--eval.max_pairs=20"]


@pytest.mark.slow
def test_a_grid_of_real_runs_resumes_and_names_what_failed(tmp_path):
    command = [sys.executable, "sweep.py", "toy", "--over", "dpo.beta=0.1,0.5", "dpo.max_pairs=0,999999", "--seeds=2", "--jobs=2", f"--out={tmp_path}", *TINY]
    for attempt in range(2):  # the second finds all that could be done
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and "4 of 8 runs failed" in done.stderr and "there are only" in done.stderr, done.stderr
        folder = tmp_path / "sweeps" / "grid"
        rows = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
        assert [(row["label"], row["seed"]) for row in rows] == [(f"dpo.beta {b}, dpo.max_pairs 0", s) for s in (0, 1) for b in (0.1, 0.5)]
        assert all({"kl", "chosen_drift", "reward_accuracy", "win_rate"} <= set(row["figures"]) and [point["step"] for point in row["curve"]] == [0, 2, 4] for row in rows)
        stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("brief.json")} | {path: path.stat().st_mtime_ns for path in tmp_path.rglob("sft/last/run.json")}
        assert len(stamps) == 4 + 2  # one SFT model per seed
        if attempt:
            assert stamps == before
        before = stamps
    assert (folder / "figures.png").exists() and (folder / "curves.png").exists() and "**Failed:**" in (folder / "table.md").read_text()


def sweep(grid, common=None) -> Sweep:
    from pathlib import Path
    return Sweep("toy", "x", Path("/o"), grid, common or {}, [0], 1)


def test_runs_share_an_sft_model_unless_the_grid_changes_it():
    shared = sweep({"a": {"dpo.beta": 0.1}}, {"data.toy_control": "clean", "sft.lr": 1e-3})
    arguments = shared.arguments(shared.cells[0])
    assert shared.one_sft and shared.sft_settings == {"sft.lr": 1e-3} and f"--dpo.init_from={shared.sft_folder(0)}/sft/best" in arguments
    assert f"--data.tokenizer={shared.sft_folder(0)}/sft/best" in arguments  # other pairs, the model's own tokenizer
    assert shared.sft_folder(0) != sweep({"a": {}}).sft_folder(0) != shared.sft_folder(1)
    own = sweep({"a": {"sft.epochs": 1.0}, "b": {}})
    assert not own.one_sft and not any("init_from" in word for word in own.arguments(own.cells[0]))
    given = sweep({"a": {"dpo.beta": 0.1}}, {"dpo.init_from": "there"})
    assert not given.one_sft and [word for word in given.arguments(given.cells[0]) if "init_from" in word] == ["--dpo.init_from=there"]


def test_grids_are_products_and_bad_calls_are_one_sentence():
    assert parse_grid(["dpo.beta=1,2", "dpo.lr=3"]) == {"dpo.beta 1, dpo.lr 3": {"dpo.beta": "1", "dpo.lr": "3"}, "dpo.beta 2, dpo.lr 3": {"dpo.beta": "2", "dpo.lr": "3"}}
    for argv, message in ((["toy"], "either"), (["toy", "--over", "dpo.beta"], "KEY=V1"), (["toy", "--over", "dpo.bta=1"], "did you mean 'beta'"),
                          (["toy", "--preset", "beta", "--dpo.lr", "3"], "settings of all runs")):
        with pytest.raises(UserError, match=message):
            main(argv)


def test_every_preset_is_made_of_known_settings():
    from runtime.config import load_config
    for grid, common in PRESETS.values():
        made = sweep(grid, common)
        assert len({made.result(cell) for cell in made.cells}) == len(grid) > 2
        for cell in made.cells:
            load_config(made.arguments(cell))


def test_the_table_by_hand():
    rows = [{"label": label, "seed": seed, "figures": {"win_rate": value, "chosen_drift": -1.0}}
            for label, values in (("one", (60.0, 62.0, 64.0)), ("two", (61.0, 64.0))) for seed, value in enumerate(values)]
    # t(.975, 2) = 4.303: 62 -+ 4.303 x 2 / sqrt 3; differences over the two seeds both have: 1 and 2, t(.975, 1) = 12.706
    assert "| one | 3 | 62.0 [57.0, 67.0] | -1.00 |" in tables(rows)  # equal seeds say nothing about the spread
    assert "| two | 2 | +1.50 [-4.85, +7.85] | +0.00 |" in tables(rows)
    rows = [{"label": "one", "seed": seed, "figures": {"well_formed": share, "chosen_drift": share - 99, "kl": kl}}
            for seed, (share, kl) in enumerate(((97.0, 0.1), (100.0, 2.1)))]
    # t(.975, 1) = 12.706: 98.5 -+ 19.06, cut at 100 %; a drift may have either sign, a divergence may not
    assert "| one | 2 | -0.50 [-19.56, 18.56] | 1.10 [0.00, 13.81] | 98.5 [79.4, 100.0] |" in tables(rows)
    assert stats.over_seeds([3.0]).low is None and stats.over_seeds([3.0]).value == 3


def test_a_win_rate_where_nothing_was_decided_is_none():
    """Trap: 50 % in its place, with an interval."""
    rows = [{"label": "one", "seed": seed, "figures": {"win_rate": value, "kl": 1.0 + seed}} for seed, value in enumerate((None, 62.0, 64.0))] + \
           [{"label": "two", "seed": 0, "figures": {"win_rate": None, "kl": 1.0}}]
    assert "| one | 3 | 63.0 [50.3, 75.7] (2 seeds) |" in tables(rows) and "| two | 1 | not measured | 1.00 |" in tables(rows)
    assert "| two | 1 | not measured | +0.00 |" in tables(rows)
