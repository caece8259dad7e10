"""Assignment 3: the SFT loss, and one optimizer step done right. The handout is course/a3/handout.md.

N scored tokens, V tokens in the vocabulary; log-probs and losses in nats. Only torch and the standard library may be imported.
"""
import math

import torch
from torch import Tensor

# blank: One paragraph each, before and after you run `python -m course.train a3 my_a3.py`; the questions are in the handout.
# "before": what is the loss of random weights, and will smaller micro-batches change the curve?
# "after": where were you wrong, and why?
#= WRITTEN = {"before": "", "after": ""}
WRITTEN = {
    "before": "Random weights spread the probability over all 1,024 tokens, so the first loss should be near ln 1024 = 6.93 nats per token. Micro-batches are only a way "
              "to save memory: if every token is divided by the tokens of the whole step, the curve must not change at all, but for rounding.",
    "after": "The first loss was 6.96, a little above ln 1024, because random logits are not all equal and sureness without knowledge costs something. The curves with large and small "
             "micro-batches agreed to rounding. A mean of means would have changed the gradient by some ten per cent, since short replies lie in micro-batches of their own.",
}
# end
# blank: Numbers you expect; `course.train` prints them next to what it measures. None stands for no prediction.
# Keys: "training loss of the first step, nats per token", "validation loss after 80 steps, nats per token".
# What does a model know before it has seen anything?
#= PREDICTION = {"training loss of the first step, nats per token": None, "validation loss after 80 steps, nats per token": None}
PREDICTION = {"training loss of the first step, nats per token": 6.93, "validation loss after 80 steps, nats per token": 2.0}
# end


def next_tokens(ids: Tensor, is_reply: Tensor) -> tuple[Tensor, Tensor]:
    """(predict_at [N], targets [N]) int64: for each scored token the position whose output predicts it, and its id, in the order of the text.

    ids [T] int64: one text, prompt and reply; is_reply [T] bool: the tokens that carry the loss. The first token of a text has nothing before it
    and is never scored, even if is_reply says so.
    """
    # blank: A position's output is a guess at the token after it.
    # So which position predicts the token at t? Which token can nobody predict?
    # Tensor.nonzero gives the positions that are True.
    #: The token at t is predicted from position t - 1.
    #: Find the scored t, leave out t = 0; the answer is (t - 1, ids[t]).
    #: at = is_reply.nonzero().squeeze(1); at = at[at > 0]; return at - 1, ids[at]
    at = is_reply.nonzero().squeeze(1)
    at = at[at > 0]
    return at - 1, ids[at]
    # end


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """log p(target) of each row, float32 [N], from logits [N, V] of any float format and targets [N] int64.

    Finite for logits up to 10,000 in float32. Formats of 16 bits are turned into float32 *before* the softmax: their sums lose what a log-prob is made of.
    """
    # blank: log p = logit of the target minus the log of the sum of all exponentials.
    # Which function computes that log-sum-exp without overflow? In which number format?
    # Tensor.gather picks one column per row.
    #: log softmax(z)[y] = z[y] - logsumexp(z)
    #: Cast first: logits.float(). Then torch.logsumexp over the vocabulary, and gather the targets' logits.
    #: z = logits.float(); return z.gather(1, targets[:, None]).squeeze(1) - z.logsumexp(1)
    z = logits.float()
    return z.gather(1, targets[:, None]).squeeze(1) - z.logsumexp(1)
    # end


def sft_loss(logps: Tensor, tokens_in_step: int) -> Tensor:
    """What one micro-batch backpropagates, a scalar: its share of the step's mean negative log-likelihood per token.

    logps [N]: of this micro-batch's scored tokens; tokens_in_step: scored tokens of all micro-batches of the optimizer step (and of all ranks).
    """
    # blank: The loss of a step is the mean over all its tokens. Gradients of micro-batches are added.
    # What must this one contribute, so that the sum is that mean?
    # Likelier tokens must mean a lower loss.
    #: Add up, change the sign, and divide by a number that is the same for all micro-batches.
    #: That number is tokens_in_step, not N.
    #: -logps.sum() / tokens_in_step
    return -logps.sum() / tokens_in_step
    # end


def micro_weights(tokens: list[int]) -> list[float]:
    """The factor of each micro-batch's *mean* loss that makes their sum the step's mean per token. tokens: scored tokens of each micro-batch, 0 allowed.

    For a framework that hands you means and lets you do no better. The factors add up to 1.
    """
    # blank: A mean has forgotten over how many tokens it was taken. Undo that.
    # mean x (its tokens) is a sum; sums may be added and divided once.
    # What if a micro-batch has no scored token at all, or none of them has?
    #: Each mean counts by its share of the step's tokens.
    #: tokens of the micro-batch / tokens of the step; guard the division.
    #: total = max(1, sum(tokens)); return [n / total for n in tokens]
    total = max(1, sum(tokens))
    return [n / total for n in tokens]
    # end


def learning_rate(step: int, total: int, peak: float, warmup: float, floor: float) -> float:
    """The rate of optimizer step `step` = 0 .. total - 1: a line up to `peak` over the first round(warmup x total) steps (at least one), then half a cosine down to floor x peak.

    The last warm-up step has the full peak, the first step is above 0, and a step `total` would have floor x peak exactly.
    """
    # blank: Two pieces; which one a step belongs to depends on the number of warm-up steps.
    # In the first, step 0 already moves. In the second, count from the end of the warm-up.
    # (1 + cos(pi x)) / 2 falls from 1 to 0 while x goes from 0 to 1.
    #: With w warm-up steps: peak (step + 1) / w, as long as step < w.
    #: Then x = (step - w) / (total - w), and the rate lies between floor and 1 of the peak: floor + (1 - floor) (1 + cos(pi x)) / 2.
    #: w = max(1, round(warmup * total)); x = (step - w) / max(1, total - w); peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * x)))
    warm = max(1, round(warmup * total))
    if step < warm:
        return peak * (step + 1) / warm
    done = (step - warm) / max(1, total - warm)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))
    # end


def clip_gradients(gradients: list[Tensor], most: float) -> tuple[list[Tensor], float]:
    """(gradients scaled so that their common norm is at most `most`, the norm before). The direction of the step does not change.

    gradients: tensors of any shapes, all parameters of a model; their norm is that of all their numbers in one long vector.
    """
    # blank: One vector, one norm, one factor.
    # When the norm is small enough nothing may change.
    # A norm of zero must not divide.
    #: The common norm is the root of the sum of all squares of all tensors.
    #: If it exceeds `most`, multiply every tensor by most / norm.
    #: norm = math.sqrt(sum(g.double().square().sum().item() for g in gradients)); scale = min(1.0, most / max(norm, 1e-12))
    norm = math.sqrt(sum(g.double().square().sum().item() for g in gradients))
    scale = min(1.0, most / max(norm, 1e-12))
    return [g * scale for g in gradients], norm
    # end


def adamw_step(weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, lr: float, beta1: float, beta2: float, eps: float, decay: float) -> tuple[Tensor, Tensor, Tensor]:
    """(weight, mean, square) after one AdamW step; all of one shape. Loshchilov and Hutter 2019, algorithm 2.

    mean, square: running means of the gradient and of its square, zeros before the first step; step: 1 for the first. The decay pulls the weight
    towards zero by lr x decay of itself and is no part of the gradient.
    """
    # blank: Update both running means; correct them for having begun at zero; move.
    # After the first step a mean holds only (1 - beta) of a gradient: divide by 1 - beta ** step.
    # The decay acts on the weight itself: it never enters the running means.
    #: mean = beta1 mean + (1 - beta1) g; square = beta2 square + (1 - beta2) g^2.
    #: The move is lr x (mean / (1 - beta1^step)) / (sqrt(square / (1 - beta2^step)) + eps); the weight is first multiplied by 1 - lr x decay.
    #: weight * (1 - lr * decay) - lr * mean_hat / (square_hat.sqrt() + eps)
    mean = beta1 * mean + (1 - beta1) * gradient
    square = beta2 * square + (1 - beta2) * gradient * gradient
    move = (mean / (1 - beta1**step)) / ((square / (1 - beta2**step)).sqrt() + eps)
    return weight * (1 - lr * decay) - lr * move, mean, square
    # end
