"""Several processes on one machine (gloo): the same curve as one process, ragged micro-batches, resume on other numbers of ranks, a killed rank."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from batching import deal, make_batch, rank_batches, row_lengths
from data.store import PairStore, StoreWriter
from runtime.config import ROOT
from runtime.distributed import World

TINY = ["toy", "--model.n_layer=2", "--model.n_head=2", "--model.n_embd=32", "--device=cpu", "--dtype=float32", "--threads=1", "--data.max_rows=300",
        "--data.vocab_size=400", "--sft.max_steps=6", "--sft.batch=8", "--dpo.batch=8", "--dpo.max_steps=20", "--dpo.lr=1e-3", "--dpo.eval_every=10",
        "--dpo.eval_rows=20", "--dpo.log_every=1", "--dpo.save_every=5", "--dpo.micro_tokens=400", "--dpo.watch_prompts=0", "--dpo.max_pairs=75"]
ENV = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def launch(out: Path, ranks: int, *more: str) -> subprocess.Popen:
    if any(word.startswith("--name=") for word in more):  # torchrun itself starts no earlier stage
        subprocess.run([sys.executable, "data/prepare_hh.py", *TINY, f"--out={out}", *more], cwd=ROOT, env=ENV, check=True, capture_output=True)
    python = [sys.executable] if ranks == 1 else [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--master_port=0", "--standalone"]
    return subprocess.Popen([*python, "train_dpo.py", *TINY, f"--out={out}", *more], cwd=ROOT, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(out: Path, ranks: int, *more: str) -> list[dict]:
    process = launch(out, ranks, *more)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    name = next((word.split("=")[1] for word in more if word.startswith("--name=")), "toy")
    return [json.loads(line) for line in (out / name / "dpo" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> tuple[Path, list[dict]]:
    """An output folder with data and SFT, and one process' DPO curve: 75 pairs, so that every tenth step holds three alone."""
    out = tmp_path_factory.mktemp("out")
    return out, run(out, 1)


def same_curve(a: list[dict], b: list[dict]) -> None:
    assert [(row["step"], row["split"]) for row in a] == [(row["step"], row["split"]) for row in b]
    for x, y in zip(a, b):
        for key in ("loss", "rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy", "lr", "tokens"):
            if not (key == "rewards/accuracy" and x["step"] < 2):  # before the first update rewards are rounding errors around 0
                assert x[key] == pytest.approx(y[key], abs=1e-5), (x["step"], key)
        if x["grad_norm"] is not None:
            assert x["grad_norm"] == pytest.approx(y["grad_norm"], rel=1e-4)


def from_sft(out: Path, name: str) -> list[str]:
    return [f"--name={name}", f"--dpo.init_from={out}/toy/sft/best"]


@pytest.mark.slow
@pytest.mark.parametrize("ranks, engine", [(2, "ddp"), (4, "fsdp"), pytest.param(4, "ddp", marks=pytest.mark.long), pytest.param(2, "fsdp", marks=pytest.mark.long)])
def test_any_number_of_processes_makes_the_same_curve(one, ranks, engine):
    """Ragged lengths, several micro-batches per rank, and steps of three pairs, of which a fourth rank gets none."""
    out, expected = one
    name = f"{engine}{ranks}"
    same_curve(expected, run(out, ranks, *from_sft(out, name), f"--scale.parallel={engine}"))
    for which in ("best", "last"):  # rank 0 wrote whole files: one process opens them
        ours, theirs = (torch_weights(out / folder / "dpo" / which) for folder in (name, "toy"))
        assert max((ours[k] - theirs[k]).abs().max().item() for k in theirs) < 1e-4


def torch_weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", pytest.param("fsdp", marks=pytest.mark.long)])
def test_objectives_that_look_at_the_whole_step_gather_it(one, engine):
    out, _ = one
    kto = ["--dpo.objective=kto", "--dpo.max_steps=12"]
    same_curve(run(out, 1, *from_sft(out, "kto1"), *kto) if not (out / "kto1").exists() else
               [json.loads(line) for line in (out / "kto1/dpo/metrics.jsonl").read_text().splitlines()], run(out, 2, *from_sft(out, f"kto_{engine}"), *kto, f"--scale.parallel={engine}"))


@pytest.mark.slow
def test_a_killed_rank_ends_all_and_any_number_of_ranks_goes_on(one, tmp_path):
    """kill -9 of one of four ranks in the middle of a step: all end within a minute, nothing is lost, and 2 ranks or 1 finish the same curve."""
    out, expected = one
    process = launch(out, 4, *from_sft(out, "killed"), "--scale.parallel=fsdp")
    last, deadline = out / "killed" / "dpo" / "last" / "run.json", time.time() + 200
    while not last.exists() and time.time() < deadline and process.poll() is None:
        time.sleep(0.05)
    assert last.exists(), process.communicate()[0][-3000:]
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    started = time.time()
    process.communicate(timeout=60)
    assert process.returncode != 0 and time.time() - started < 60
    for pid in children:
        assert not Path(f"/proc/{pid}").exists()
    assert json.loads(last.read_text())["step"] < 20
    shutil.copytree(out / "killed", out / "killed_again")
    for name, ranks in (("killed", 2), ("killed_again", 1)):
        same_curve(expected, run(out, ranks, *from_sft(out, name), "--scale.parallel=fsdp"))


def test_torchrun_starts_no_earlier_stage(tmp_path):
    process = launch(tmp_path, 2)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and said.count("run `python data/prepare_hh.py toy") == 1 and "in one process first" in said


# ---- the plan of a step over ranks ----------------------------------------------------------------------------------

@pytest.fixture
def store(tmp_path) -> PairStore:
    rng = np.random.default_rng(0)
    with StoreWriter(tmp_path / "s", 50) as writer:
        for _ in range(40):
            n = int(rng.integers(1, 30))
            writer.add([49] * n, [0] * n, rng.integers(0, 49, int(rng.integers(1, 40))), rng.integers(0, 49, int(rng.integers(1, 40))))
        writer.close({})
    return PairStore(tmp_path / "s")


def test_every_pair_lands_on_one_rank_and_all_make_as_many_passes(store):
    for size in (1, 2, 3, 8):
        for indices in (np.arange(40), np.array([5, 7, 9]), np.array([3])):
            ranks = [list(rank_batches(store, indices, 150, World(rank, size))) for rank in range(size)]
            assert len({len(batches) for batches in ranks}) == 1
            assert sorted(i for batches in ranks for batch in batches if batch.real for i in batch.pairs) == sorted(indices.tolist())
            assert all(len(batch.pairs) == 1 for batches in ranks for batch in batches if not batch.real)


def test_ranks_get_like_numbers_of_tokens(store):
    lengths = row_lengths(store, 2)
    loads = [lengths[share].sum() for share in deal(np.arange(40), lengths, 4)]
    assert max(loads) - min(loads) <= lengths.max() and sum(loads) == lengths.sum()


def test_a_step_without_real_pairs_on_this_rank_still_has_something_to_score(store):
    batches = list(rank_batches(store, np.array([3]), 150, World(1, 2)))
    assert len(batches) == 1 and not batches[0].real and torch.equal(batches[0].ids, make_batch(store, [[3]]).ids)
