"""The benchmarks' own claims: that what they compare is the same work, and that they notice when it is not."""
import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from batching import score_pairs
from bench import bench_dpo, bench_generate, bench_prepare, bench_sft, ladder
from bench.common import ROOT, attended, bench_device, stored, take_turns, training_flops
from model import GPT, GPTConfig
from runtime.errors import UserError

TINY = GPTConfig(vocab_size=97, block_size=600, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture
def store():
    rng = np.random.default_rng(0)
    rows = [tuple(rng.integers(1, 97, rng.integers(3, 30)).tolist() for _ in range(3)) for _ in range(12)]
    with stored(rows, 97) as store:
        yield store


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return GPT(TINY)


def test_flops_by_hand():
    """One layer of width 2: 12 x 4 = 48 weights; 3 tokens, 2 of them scored over 5 words, 6 pairs attended."""
    model = GPT(GPTConfig(vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=2))
    # the MLP, 32 of the 48, is not needed at the one position that is not scored
    assert training_flops(model, 3, 2, 6) == 6 * (48 * 3 - 32 * 1 + 5 * 2 * 2 + 2 * 2 * 1 * 6)
    assert attended(3) == 1 + 2 + 3 and attended(3, 2, 1) == 6 + (4 + 5) + 4  # a reply's token sees the prompt, the reply so far and itself


def test_shared_rows_are_separate_rows(store, tiny):
    rows = np.arange(5)
    shared = np.stack(score_pairs(tiny, store, rows, 200, bench_device("float32").autocast), 1)
    assert np.abs(shared - bench_dpo.separate_logps(tiny, store, range(5))).max() < 1e-4


def test_every_rung_gives_the_first_ones_gradients(store, monkeypatch):
    monkeypatch.setattr(ladder, "GPT2_SMALL", TINY)
    gaps = ladder.check(store, 200, "cpu")
    assert len(gaps) == len(ladder.LADDER) and all(gap["gradient_gap"] < (0.05 if rung.low else 1e-5) for gap, rung in zip(gaps, ladder.LADDER))


def test_a_rung_that_changes_the_result_stops_the_ladder(store, monkeypatch):
    monkeypatch.setattr(ladder, "GPT2_SMALL", TINY)
    wrong = ladder.Rung("wrong", ladder.packed, lambda model, batch: ladder.our_head(model, batch) * 1.01)
    monkeypatch.setattr(ladder, "LADDER", [*ladder.LADDER[:1], wrong])
    with pytest.raises(SystemExit, match="'wrong' changes the result"):
        ladder.check(store, 200, "cpu")


def test_a_rung_is_measured(store, monkeypatch):
    monkeypatch.setattr(ladder, "GPT2_SMALL", TINY)
    for number in (0, len(ladder.LADDER) - 1):
        found = ladder.measure(number, store, 4, 2, 200)
        assert len(found["seconds_per_step"]) == 2 and found["pairs_per_second"] > 0 and found["memory_gb"] > 0


def test_padding_to_the_block_gives_our_sft_gradients(store, tiny):
    exact, rows = bench_device("float32"), np.arange(8)
    gaps = bench_sft.gradient_gap(tiny, lambda: bench_sft.our_gradients(tiny, store, rows, 200, exact), lambda: bench_sft.padded_gradients(tiny, store, rows, exact))
    assert gaps[0] < 1e-5 and gaps[1] < 1e-5


def test_greedy_replies_equal_hugging_faces_or_differ_at_a_tie(tiny, tmp_path):
    device = bench_device("float32")
    theirs = bench_generate.to_hugging_face(tiny, str(tmp_path), device)
    prompts = [[1, 2, 3], [4] * 9, [5, 6]]
    ours = bench_generate.our_replies(tiny, prompts, 12, device, temperature=0.0)
    replies = bench_generate.their_replies(theirs, prompts, [12] * 3, None, sample=False)
    assert bench_generate.check_greedy(tiny, prompts, ours, replies) == 36 and ours == replies
    broken = [[*replies[0][:5], (replies[0][5] + 1) % 97, *replies[0][6:]], *replies[1:]]
    with pytest.raises(SystemExit, match="differ after 5 tokens"):
        bench_generate.check_greedy(tiny, prompts, ours, broken)


def test_their_limits_are_kept_in_any_order(tiny, tmp_path):
    theirs = bench_generate.to_hugging_face(tiny, str(tmp_path), bench_device("float32"))
    prompts, limits = [[1, 2, 3], [4] * 9, [5, 6], [7]], [3, 9, 1, 5]
    straight = bench_generate.their_replies(theirs, prompts, limits, None, 2, sample=False)
    assert [len(reply) for reply in straight] == limits
    assert bench_generate.their_replies(theirs, prompts, limits, None, 2, sort=True, sample=False) == straight


def test_growing_a_source_makes_distinct_pairs(tmp_path):
    pair = {"chosen": "\n\nHuman: Hi.\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi.\n\nAssistant: Go."}
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as f:
        f.write(json.dumps(pair) + "\n")
    (tmp_path / "out").mkdir()
    bench_prepare.grow(str(tmp_path), 3, tmp_path / "out")
    rows = [json.loads(line) for line in gzip.open(tmp_path / "out" / "a.jsonl.gz", "rt")]
    assert rows[0] == pair and len({row["chosen"] for row in rows}) == 3 and all(row["chosen"].endswith("Assistant: Hello.") for row in rows)
    with pytest.raises(UserError, match="holds no .jsonl.gz file"):
        bench_prepare.grow(str(tmp_path / "none"), 3, tmp_path / "out")


def test_systems_take_turns():
    order = []
    taken = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, bench_device("float32"), 3)
    assert "".join(order) == "abababab" and all(len(times) == 3 for times in taken.values())


def test_the_gpu_script_is_a_valid_script():
    subprocess.run(["bash", "-n", str(ROOT / "bench" / "gpu_run.sh")], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_stays_with_the_process():
    code = """
import torch
from runtime.device import keep_freed_memory
if {keep}: keep_freed_memory()
x = torch.ones(100_000_000); del x
print(int(open("/proc/self/statm").read().split()[1]) * 4096)
"""
    kept, given_back = (int(subprocess.run([sys.executable, "-c", code.format(keep=keep)], cwd=ROOT, capture_output=True, text=True, check=True).stdout) for keep in (True, False))
    assert kept - given_back > 300e6
