"""What every objective does to a pair: loss and gradient against the margin, and against the drift of the chosen reply.

    python bench/plot_losses.py        writes results/losses/losses.png and results/losses/losses.md

Both replies have 20 tokens and a reference log-prob of -30 (a mean of -1.5). Left of each panel, the margin D grows from both sides:
w = D / 2, l = -D / 2. Right, both replies drift together: w = l = drift, so that a loss of the margin alone stays flat.
"""
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from the repository root, not from bench/

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from bench.speed_tables import table
from objectives import OBJECTIVES, WHOLE_STEP, preference_loss

OUT = Path(__file__).resolve().parents[1] / "results" / "losses"
TOKENS, REFERENCE = 20.0, -30.0
POINTS = ((0.0, 0.0), (10.0, -10.0), (-10.0, 10.0), (-10.0, -10.0), (-10.0, -30.0))  # (w, l)


def evaluate(name: str, w: Tensor, l: Tensor) -> tuple[Tensor, Tensor]:  # noqa: E741
    """(loss, d loss / d log pi(y_w)) at the log-ratios w, l [n], each pair for itself, with the objective's own defaults."""
    losses, slopes = [], []
    for w_one, l_one in zip(w, l):
        # objectives that compare the pairs of a step see a step of two equal ones
        n = 2 if name in WHOLE_STEP else 1
        chosen, rejected = ((REFERENCE + ratio).repeat(n).requires_grad_() for ratio in (w_one, l_one))
        reference, tokens = torch.full((n,), REFERENCE, dtype=torch.float64), torch.full((n,), TOKENS, dtype=torch.float64)
        found = preference_loss(chosen, rejected, reference, reference, name, chosen_tokens=tokens, rejected_tokens=tokens, margin=tokens / tokens, on_policy=0 * tokens)[0]
        found.mean().backward()
        losses.append(found.mean().item())
        slopes.append(chosen.grad.sum().item())
    return torch.tensor(losses), torch.tensor(slopes)


def main() -> None:
    names = list(OBJECTIVES)
    at = torch.linspace(-25, 25, 101, dtype=torch.float64)
    figure, axes = plt.subplots(-(-len(names) // 4), 8, figsize=(22, 2.5 * -(-len(names) // 4)), layout="constrained")
    for k, name in enumerate(names):
        for axis, (w, l), label in zip(axes.flat[2 * k:2 * k + 2], ((at / 2, -at / 2), (at, at)), ("margin D", "drift w = l")):
            losses, slopes = evaluate(name, w, l)
            axis.plot(at, losses, color="tab:blue", label="loss")
            axis.axvline(0, color="0.85", zorder=0)
            other = axis.twinx()
            other.plot(at, slopes, color="tab:red", linestyle="--", label="gradient")
            axis.set_title(f"{name}: {label}", fontsize=9)
            axis.tick_params(axis="y", labelcolor="tab:blue", labelsize=7)
            axis.tick_params(axis="x", labelsize=7)
            other.tick_params(axis="y", labelcolor="tab:red", labelsize=7)
    for axis in axes.flat[2 * len(names):]:
        axis.set_visible(False)
    figure.suptitle("Loss (blue) and its gradient with respect to the chosen reply's log-prob (red, dashed), each objective with its own defaults, nats")
    OUT.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUT / "losses.png", dpi=80)
    rows = []
    for name in names:
        losses, slopes = evaluate(name, *(torch.tensor(side, dtype=torch.float64) for side in zip(*POINTS)))
        rows.append([f"`{name}`", *(f"{loss:.4g} ({slope:+.3g})" for loss, slope in zip(losses, slopes))])
    text = table(["loss (gradient on the chosen log-prob)", *(f"w = {w:g}, l = {l:g}" for w, l in POINTS)], rows)
    (OUT / "losses.md").write_text(f"# Every objective at five points\n\nReplies of {TOKENS:.0f} tokens, reference log-prob {REFERENCE:g}, each objective with its own defaults. `python bench/plot_losses.py`\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    main()
