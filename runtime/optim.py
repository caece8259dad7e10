"""The optimizer and its schedule, the same for every stage."""
import importlib.util
import math

import torch
from torch import nn

from runtime.config import TrainConfig
from runtime.errors import UserError
from runtime.run import Run


def make_optimizer(model: nn.Module, c: TrainConfig, kind: str = "adamw") -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), fused, over what is trained. Only matrices decay: shrinking a bias or a norm's gain serves nobody.

    kind "adamw8bit": bitsandbytes' form with moments of one byte each (Dettmers et al. 2022). UserError where that cannot be had.
    """
    if c.schedule not in ("cosine", "linear"):
        raise UserError(f"schedule '{c.schedule}' is neither cosine nor linear.")
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    rest = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": c.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    if kind == "adamw8bit":
        if next(model.parameters()).device.type != "cuda" or importlib.util.find_spec("bitsandbytes") is None:
            raise UserError("scale.optimizer=adamw8bit needs a CUDA GPU and the bitsandbytes library: use adamw, or pip install bitsandbytes.")
        from bitsandbytes.optim import AdamW8bit
        return AdamW8bit(groups, lr=c.lr, betas=(c.beta1, c.beta2))
    if kind != "adamw":
        raise UserError(f"scale.optimizer '{kind}' is neither adamw nor adamw8bit.")
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=c.lr, betas=(c.beta1, c.beta2), fused=fused)


def lr_at(step: int, total: int, c: TrainConfig) -> float:
    """Learning rate of step `step` (from 0) of `total`: linear warm-up, then a cosine or a line down to c.min_lr of the peak."""
    warm = max(1, round(c.warmup * total))
    if step < warm:
        return c.lr * (step + 1) / warm
    done = (step - warm) / max(1, total - warm)
    left = 1 - done if c.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return c.lr * (c.min_lr + (1 - c.min_lr) * left)


def total_steps(c: TrainConfig, rows: int) -> int:
    """Optimizer steps of a stage: max_steps, or what `epochs` passes over `rows` documents take."""
    return c.max_steps or max(1, math.ceil(c.epochs * math.ceil(rows / c.batch)))


def update(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, loss: float, run: Run, c: TrainConfig) -> float:
    """One optimizer step from the gradients of a whole step whose loss is `loss`; returns their global norm before clipping.

    Raises UserError before anything is changed when loss or gradient is not finite. Under float16 a gradient may overflow: the
    scaler then skips the step and lowers its scale, and run.skipped counts it.
    """
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), c.grad_clip or math.inf)
    norm = (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).item()  # of shards: of all of them
    for name, value in (("loss", loss), ("gradient", norm)):
        if not math.isfinite(value) and not (name == "gradient" and scaler.is_enabled()):
            raise UserError(f"the {name} became {value} at step {run.step}: lower --{run.stage}.lr; the last checkpoint in {run.folder} is intact.")
    run.skipped += not math.isfinite(norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return norm
