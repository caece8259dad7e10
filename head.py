"""The last layer: hidden states -> log-probs of given tokens, the largest matrix product of a small model, without its matrix.

A vocabulary of 50,257 makes [N, V] logits larger than everything else in memory, and a loss needs one number from each row. So
the logits live a chunk of rows at a time, and their gradient is written down by hand. With p = softmax(x W^T):

    d log p[target] / d logits = onehot(target) - p
"""
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGITS_AT_ONCE = 2**25  # elements of a [chunk, V] block: 128 MB in float32


class TokenLogps(torch.autograd.Function):
    """log softmax(x W^T)[target] per row, float32 [N], from x [N, C], W [V, C] and targets [N]; no [N, V] tensor outlives its chunk.

    The log-prob comes from float32 logits, whatever autocast says: rounding them to bf16 would be its largest single error. The
    gradient's three products (logits again, dx, dW) run in autocast's format like all other gradients.

    same_gradient: promises that the loss will have one and the same gradient for all N log-probs (SFT: -1 / tokens of the step).
    Then the forward pass takes the gradient along with the logits it has at hand, and the backward pass, which would have to make
    them a second time, only scales it. RuntimeError when the loss turns out to be another function.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor, same_gradient: bool) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        logps = torch.empty(len(targets), device=x.device, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
        trained = ctx.needs_input_grad[1]  # under adapters the head is frozen, and as large as everything else
        dx, dw = (torch.empty_like(x), torch.zeros_like(weight) if trained else None) if same_gradient else (None, None)
        with torch.autocast(device, enabled=False):
            exact_x, exact_w, low_w = x.to(logps.dtype), weight.to(logps.dtype), weight.to(dtype)
            for part, logits in _chunks(len(targets), exact_w):
                torch.mm(exact_x[part], exact_w.T, out=logits)
                below = logits.gather(1, targets[part, None]).squeeze(1) - logits.amax(1)
                p = torch.softmax(logits, 1, out=logits)
                logps[part] = below + p.amax(1).log()  # the largest p is exp(largest logit) / sum: one pass instead of logsumexp's several
                if same_gradient:
                    ones = torch.ones_like(logps[part])
                    dx[part] = _gradients(p, logps[part], targets[part], ones, x[part].to(dtype), low_w, dw)
        ctx.same_gradient, ctx.dtype = same_gradient, dtype
        ctx.save_for_backward(*((dx, dw) if same_gradient else (x, weight, targets, logps)))
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor):
        if ctx.same_gradient:
            dx, dw = ctx.saved_tensors
            # checked on CPUs alone: looking at a number stops a GPU's queue
            if upstream.device.type == "cpu" and not torch.allclose(upstream, upstream[:1], equal_nan=True):
                raise RuntimeError("same_gradient was promised, but the loss gives its log-probs different gradients")
            return dx.mul_(upstream[0]), None if dw is None else dw.mul_(upstream[0]), None, None
        x, weight, targets, logps = ctx.saved_tensors
        dx, dw = torch.empty_like(x), torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        with torch.autocast(x.device.type, enabled=False):
            # softmax does not see a shift common to all logits, rounding does: bf16 keeps GPT-2's logits of about -100 in steps of a half
            low_w = torch.sub(weight, weight.mean(0), out=torch.empty_like(weight, dtype=ctx.dtype))
            for part, logits in _chunks(len(targets), low_w):
                low_x = x[part].to(ctx.dtype)
                torch.mm(low_x, low_w.T, out=logits)
                p = torch.softmax(logits, 1, out=logits)
                dx[part] = _gradients(p, logps[part], targets[part], upstream[part], low_x, low_w, dw)
        return dx, dw, None, None


@torch.no_grad()
def log_square_sums(x: Tensor, weight: Tensor) -> Tensor:
    """log sum_v p(v)^2 per row, float32 [N], from x [N, C] and W [V, C]: minus the order-2 entropy of the next token."""
    found = torch.empty(len(x), device=x.device)
    with torch.autocast(x.device.type, enabled=False):
        exact_x, exact_w = x.float(), weight.float()
        for part, logits in _chunks(len(x), exact_w):
            torch.mm(exact_x[part], exact_w.T, out=logits)
            found[part] = (2 * logits).logsumexp(1) - 2 * logits.logsumexp(1)
    return found


def _chunks(rows: int, weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the rows, each with a [chunk, V] place for its logits: the same memory again and again."""
    step = max(1, LOGITS_AT_ONCE // len(weight))
    place = weight.new_empty(min(step, rows), len(weight))
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        yield part, place[:part.stop - start]


def _gradients(p: Tensor, logps: Tensor, targets: Tensor, upstream: Tensor, x: Tensor, weight: Tensor, dw: Tensor | None) -> Tensor:
    """dx [n, C] of n rows with probabilities p [n, V], log-probs [n] and d loss / d logp = upstream [n]; adds to dw [V, C], where it is wanted, what they contribute.

    A row of `slope` sums to 0, so weights less their mean give the same dx.
    """
    slope = p.scatter_(1, targets[:, None], logps.expm1()[:, None].to(p.dtype))  # p - 1 at the target, exact even where p is near 1
    slope = slope.to(x.dtype)
    if dw is not None:
        dw.add_(slope.T @ (x * -upstream[:, None]).to(x.dtype))
    return (slope @ weight) * -upstream[:, None]
