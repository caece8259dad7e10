"""The optimizer and its schedule, the same for every stage."""
import math

import torch
from torch import nn

from runtime.config import TrainConfig


def make_optimizer(model: nn.Module, c: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), fused. Only matrices decay: shrinking a bias or a norm's gain serves nobody."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": c.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=c.lr, betas=(c.beta1, c.beta2), fused=fused)


def lr_at(step: int, total: int, c: TrainConfig) -> float:
    """Learning rate of step `step` (from 0) of `total`: linear warm-up, then a cosine down to c.min_lr of the peak."""
    warm = max(1, round(c.warmup * total))
    if step < warm:
        return c.lr * (step + 1) / warm
    done = (step - warm) / max(1, total - warm)
    return c.lr * (c.min_lr + (1 - c.min_lr) * 0.5 * (1 + math.cos(math.pi * done)))


def total_steps(c: TrainConfig, rows: int) -> int:
    """Optimizer steps of a stage: max_steps, or what `epochs` passes over `rows` documents take."""
    return c.max_steps or max(1, math.ceil(c.epochs * math.ceil(rows / c.batch)))
