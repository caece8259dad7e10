"""The run of assignment 3: the toy model's SFT from random weights, its log-probs, loss, schedule, clipping and optimizer all the student's."""
from types import ModuleType
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import model
import runtime.optim
import train_sft
from batching import make_batch, micro_batches, row_lengths
from course.train import Base, Outcome
from data.store import PairStore, find_data
from model import GPT, GPTConfig
from runtime.config import TrainConfig, load_config
from runtime.run import read_metrics

SETTINGS = {"sft__max_steps": 80, "sft__eval_every": 20, "sft__eval_rows": 256, "sft__log_every": 1}


def put_in_place(student: ModuleType) -> list:
    """Patches of the project's modules."""
    class Head:
        """Where head.TokenLogps stands: the whole [N, V] logits, which a model this small can afford."""
        @staticmethod
        def apply(x: Tensor, weight: Tensor, targets: Tensor, same_gradient: bool) -> Tensor:
            return student.token_logps(x.float() @ weight.float().T, targets)

    class AdamW(torch.optim.Optimizer):
        """torch's interface around the student's step."""
        def __init__(self, groups: list, lr: float, betas: tuple[float, float], fused: bool):
            super().__init__(groups, {"lr": lr, "betas": betas})

        @torch.no_grad()
        def step(self, closure: None = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    s = self.state[p] or self.state[p].update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p)) or self.state[p]
                    s["step"] += 1
                    new, s["mean"], s["square"] = student.adamw_step(p, p.grad, s["mean"], s["square"], s["step"], group["lr"], *group["betas"], 1e-8, group["weight_decay"])
                    p.copy_(new)

    def clip(parameters, most: float) -> Tensor:
        parameters = [p for p in parameters if p.grad is not None]
        gradients, norm = student.clip_gradients([p.grad for p in parameters], most)
        for p, g in zip(parameters, gradients):
            p.grad = g
        return torch.tensor(norm)

    def learning_rate(step: int, total: int, c: TrainConfig) -> float:
        return student.learning_rate(step, total, c.lr, c.warmup, c.min_lr)

    return [patch.object(model, "TokenLogps", Head), patch.object(train_sft, "sft_loss", student.sft_loss), patch.object(train_sft, "lr_at", learning_rate),
            patch.object(torch.optim, "AdamW", AdamW), patch.object(torch.nn.utils, "clip_grad_norm_", clip)]


def run(student: ModuleType, base: Base) -> Outcome:
    """80 steps of 32 replies with micro-batches of 1,024 tokens, then the same with 256; losses of 256 validation replies."""
    found, patches, losses = Outcome({}), put_in_place(student), {}
    for place in patches:
        place.start()
    try:
        for tokens in (1024, 256):
            argv = base.argv(f"micro_{tokens}", **SETTINGS, sft__micro_tokens=tokens)
            train_sft.main(argv)
            rows = read_metrics(base.out / base.name / f"micro_{tokens}" / "sft" / "metrics.jsonl")
            losses[tokens] = {split: [(row["step"], row["loss"]) for row in rows if row["split"] == split] for split in ("train", "val")}
    finally:
        for place in patches:
            place.stop()
    found.figures["training loss of the first step, nats per token"] = losses[1024]["train"][0][1]
    found.figures["validation loss after 80 steps, nats per token"] = losses[1024]["val"][-1][1]
    found.figures["largest difference of the training losses, micro-batches of 256 against 1,024 tokens"] = max(abs(a - b) for (_, a), (_, b) in zip(*(losses[n]["train"] for n in losses)))
    found.figures["error of the first gradient, were it a mean of means, %"] = 100 * mean_of_means_error(student, base, argv)
    found.curves = {"loss, nats per token | training": losses[1024]["train"], "loss, nats per token | validation": losses[1024]["val"]}
    return found


def mean_of_means_error(student: ModuleType, base: Base, argv: list[str]) -> float:
    """|g' - g| / |g| of one step's gradient over all parameters: g' weighs every micro-batch of 256 tokens alike, g every token."""
    config = load_config(argv)
    store, m = PairStore(find_data(config) / "train"), config.model
    torch.manual_seed(base.seed)
    net = GPT(GPTConfig(config.data.vocab_size, m.block_size, m.n_layer, m.n_head, m.n_embd))
    batches = [make_batch(store, rows, branches=1) for rows in micro_batches(np.arange(32), row_lengths(store, 1), 256)]
    weights = student.micro_weights([len(batch.targets) for batch in batches])

    def gradient(factors: list[float]) -> Tensor:
        net.zero_grad()
        for batch, factor in zip(batches, factors):
            (factor * student.sft_loss(net(*batch.inputs()), len(batch.targets))).backward()
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    right = gradient(weights)
    return ((gradient([1 / len(batches)] * len(batches)) - right).norm() / right.norm()).item()
