"""The planner against real runs: growth of this machine's resident memory over DPO steps, or a GPU's peak, beside plan.account.

    python bench/plan_check.py        writes results/plan/check.json; needs about 8 GB of memory and ten minutes on two CPU cores

A random Llama of 103M parameters on rows of random tokens: memory does not ask what is learnt. Each case runs in a process of its own, after
three steps of a tiny model, and (unlike training) hands freed memory back to the system, so that what is resident is what is held.
"""
import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # import from the repository root, not from bench/

import torch
from transformers import LlamaConfig

from batching import make_batch
from bench.common import stored
from data.store import write_json
from hf_model import open_model
from plan import GB, account
from runtime import distributed
from runtime.config import Config, DPOConfig, LoraConfig, ModelConfig, ScaleConfig
from runtime.device import Device
from runtime.errors import UserError
from runtime.optim import make_optimizer
from train_dpo import score, step_gradients_of

SHAPE = LlamaConfig(vocab_size=16000, hidden_size=896, intermediate_size=2400, num_hidden_layers=10, num_attention_heads=14, num_key_value_heads=7, head_dim=64,
                    tie_word_embeddings=True, max_position_embeddings=4096)
PROMPT, REPLY, ROWS = 256, 128, 4  # tokens, and rows of prompt, chosen, rejected in a micro-batch
LORA = LoraConfig(rank=16, frozen="bfloat16")
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # glibc gives every larger block back at once
CASES = {  # name -> (lora, scale, ranks)
    "all weights, float32": (LoraConfig(), ScaleConfig(), 1),
    "all weights, checkpointing": (LoraConfig(), ScaleConfig(checkpointing=True), 1),
    "adapters on bfloat16": (LORA, ScaleConfig(), 1),
    "all weights, two FSDP ranks": (LoraConfig(), ScaleConfig(parallel="fsdp"), 2),
}


def config_of(case: str) -> Config:
    """The settings of a case."""
    lora, scale, _ = CASES[case]
    return Config(model=ModelConfig(block_size=PROMPT + REPLY), lora=lora, scale=scale, dpo=DPOConfig(micro_tokens=ROWS * (PROMPT + 2 * REPLY)))


def resident(field: str) -> float:
    """A size of this process in bytes: VmRSS now, VmHWM at its largest since the last reset."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024


def measure(case: str, folder: Path) -> float:
    """Bytes that three DPO steps of two micro-batches add to this process at the fullest moment, weights included."""
    config, world = config_of(case), distributed.start()
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    device = Device(torch.device(kind), torch.float32, "")
    rng = np.random.default_rng(0)
    rows = [tuple(rng.integers(0, SHAPE.vocab_size, n).tolist() for n in (PROMPT, REPLY, REPLY)) for _ in range(2 * ROWS)]
    three_steps(Path(f"{folder}/small"), config, world, device, rows)  # code, kernels and their buffers come with the first model and stay
    before = resident("VmRSS")
    peak = three_steps(folder, config, world, device, rows)
    return torch.cuda.max_memory_allocated() if kind == "cuda" else peak - before


def three_steps(folder: Path, config: Config, world: distributed.World, device: Device, rows: list) -> float:
    """Load the model in `folder` and train on the rows; the most memory held after loading, in bytes."""
    model = distributed.shard(open_model(config, folder).to(device.device), config, world, device.device).train()
    optimizer = make_optimizer(model, config.dpo)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of loading is not what is asked
    with stored(rows, SHAPE.vocab_size) as store:
        batches = [make_batch(store, [[i] for i in part]).to(device.device) for part in np.arange(2 * ROWS).reshape(2, ROWS).tolist()]
        for _ in range(3):
            step_gradients_of(model, batches, lambda batch: score(model, batch, store, np.full((2 * ROWS, 2), -1000, dtype=np.float32), config.dpo, {}, device), "dpo", {},
                              device.scaler(), 2 * ROWS * world.size, world)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return resident("VmHWM")


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    a.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    a.add_argument("--results", type=Path, default=ROOT / "results" / "plan")
    a = a.parse_args()
    if a.case:
        print(f"bytes {measure(a.case, a.folder):.0f}")
        distributed.finish()
        return
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        from transformers import AutoModelForCausalLM
        AutoModelForCausalLM.from_config(SHAPE).save_pretrained(folder)
        small = LlamaConfig(vocab_size=SHAPE.vocab_size, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=4096)
        AutoModelForCausalLM.from_config(small).save_pretrained(f"{folder}/small")
        for case, (_, _, ranks) in CASES.items():
            if torch.cuda.is_available() and ranks > torch.cuda.device_count():
                continue
            python = [sys.executable] if ranks == 1 else [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone"]
            done = subprocess.run([*python, "bench/plan_check.py", "--case", case, "--folder", folder], cwd=ROOT, capture_output=True, text=True, env=os.environ | EXACT)
            values = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("bytes ")]
            if not values:
                raise UserError(f"{case} failed: {done.stderr[-500:]}")
            planned = account(config_of(case), ranks, SHAPE, scored_share=2 * REPLY / (PROMPT + 2 * REPLY), row=PROMPT + 2 * REPLY, dtype=torch.float32)
            found[case] = {"measured_gb": round(max(values) / GB, 3), "planned_gb": round(planned.peak / GB, 3), "off_percent": round(100 * (planned.peak / max(values) - 1), 1),
                           "parts_gb": {k: round(v / GB, 3) for k, v in dataclasses.asdict(planned).items() if k not in ("flops_per_token", "trained", "total")}}
            print(f"{case}: measured {found[case]['measured_gb']} GB, planned {found[case]['planned_gb']} GB ({found[case]['off_percent']:+} %)", flush=True)
    write_json(a.results / "check.json", {"device": "cuda" if torch.cuda.is_available() else "CPU, resident memory", "cases": found})


if __name__ == "__main__":
    main()
