"""What only a GPU can show. Runs with bench/gpu_run.sh; skipped, with its reason, everywhere else."""
import json

import pytest
import torch

import train_dpo
import train_sft
from generate import generate

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
TINY = ["toy", "--model.n_layer=2", "--model.n_embd=64", "--device=cuda", "--data.max_rows=300", "--data.vocab_size=400", "--sft.max_steps=20", "--sft.batch=8",
        "--sft.eval_every=10", "--dpo.max_steps=10", "--dpo.batch=8", "--dpo.eval_every=5"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_both_stages_in_every_dtype(tmp_path, dtype):
    """Step 0 is checked by train_dpo itself; here: finite, moving, and float16 skips at most its first few steps."""
    arguments = [*TINY, f"--dtype={dtype}", f"--out={tmp_path}"]
    train_sft.main(arguments)
    train_dpo.main(arguments)
    rows = [json.loads(line) for line in (tmp_path / "toy" / "dpo" / "metrics.jsonl").read_text().splitlines()]
    assert abs(rows[0]["loss"] - 0.6931) < 0.05 and rows[-1]["rewards/margin"] != 0
    assert max(r["skipped_steps"] or 0 for r in rows) <= 4


def test_generation_on_the_gpu_equals_the_cpu_in_float32():
    from model import GPT, GPTConfig
    torch.manual_seed(0)
    model = GPT(GPTConfig(97, 48, 2, 2, 32))
    prompts = [[1, 2, 3], [4] * 9]
    here = generate(model, prompts, max_new_tokens=20, eot_id=96, seed=1)
    assert generate(model.cuda(), prompts, max_new_tokens=20, eot_id=96, seed=1) == here


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("dtype, allowed", [(torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 0.005)])
def test_the_head_on_the_gpu_equals_float64_on_the_cpu(same, dtype, allowed):
    from head import TokenLogps
    torch.manual_seed(0)
    x, w, targets = torch.randn(300, 64), 0.3 * torch.randn(5000, 64), torch.randint(5000, (300,))

    def run(x, w, targets, same):
        x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
        logps = TokenLogps.apply(x, w, targets, same)
        logps.sum().backward()
        return [t.detach().cpu().double() for t in (logps, x.grad, w.grad)]
    exact = run(x.double(), w.double(), targets, False)
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        found = run(x.cuda(), w.cuda(), targets.cuda(), same)
    assert (found[0] - exact[0]).abs().max() < 1e-3
    assert all((a - b).norm() / b.norm() < allowed for a, b in zip(found[1:], exact[1:]))
