"""Small promises of runtime/ that need no training."""
import math

import torch

from runtime.checkpoint import rng_state, set_rng_state
from runtime.run import KEYS, Run
from runtime.config import Config


def test_a_run_may_continue_in_another_dtype_on_another_machine(tmp_path):
    """Killed under bf16 (a scaler without state), continued under fp16: Colab hands out another card."""
    run = Run(Config(name="x", out=str(tmp_path)), "sft", {})
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight])
    run.state = {"optimizer": optimizer.state_dict(), "scaler": torch.amp.GradScaler("cpu", enabled=False).state_dict(), "rng": rng_state()}
    run.restore(optimizer, torch.amp.GradScaler("cpu", enabled=True))


def test_metrics_lines_are_json_even_when_a_value_is_not_finite(tmp_path):
    row = Run(Config(name="x", out=str(tmp_path)), "dpo", {}).log("train", loss=1.0, grad_norm=math.inf, rewards__chosen=0.5)
    assert set(row) == set(KEYS) and row["grad_norm"] is None and row["rewards/chosen"] == 0.5


def test_rng_state_round_trip():
    import random

    import numpy as np
    state = rng_state()
    first = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())
    set_rng_state(state)
    assert first == (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())
