"""What assignment 3 is graded by. The expected values come from the project and from torch, computed on this side, and from hand."""
import math

import torch
from torch import Tensor

from course.checking import check, holds, same, show, tensor
from runtime.config import TrainConfig
from runtime.optim import lr_at


def text(rng: torch.Generator, prompt: int, reply: int) -> tuple[Tensor, Tensor]:
    """ids [T] and is_reply [T] of a prompt and its reply; the reply ends in id 0, with which the prompt begins."""
    ids = torch.randint(1, 50, (prompt + reply,), generator=rng)
    ids[0] = ids[-1] = 0
    return ids, torch.arange(prompt + reply) >= prompt


# ---- next_tokens ----------------------------------------------------------------------------------------------------

@check("next_tokens", "shape", 1)
def two_lists_of_one_length(call, rng):
    """next_tokens gives a tuple of two int64 tensors [N]."""
    found = call("next_tokens", torch.randint(1, 50, (7,), generator=rng), torch.arange(7) >= 4)
    holds(isinstance(found, tuple) and len(found) == 2, f"Expected a tuple of two tensors, got {show(found)}.")
    for part in found:
        tensor(part, (3,), floating=False)


@check("next_tokens", "number", 2)
def five_tokens_by_hand(call, rng):
    """Of 0 7 8 9 0 the last two carry the loss: they are predicted from positions 2 and 3."""
    same(call("next_tokens", torch.tensor([0, 7, 8, 9, 0]), torch.tensor([0, 0, 0, 1, 1]).bool()), (torch.tensor([2, 3]), torch.tensor([9, 0])))


@check("next_tokens", "property", 2)
def in_the_order_of_the_text(call, rng):
    """Scored tokens may lie anywhere, for instance in earlier turns; they come in the order of the text."""
    ids = torch.randint(0, 50, (40,), generator=rng)
    scored = torch.rand(40, generator=rng) < 0.4
    scored[0] = False
    at = torch.tensor([t for t in range(40) if scored[t]])
    same(call("next_tokens", ids, scored), (at - 1, ids[at]))


@check("next_tokens", "trap", 2)
def shifted_by_one(call, rng):
    """The output at t predicts the token at t + 1: a reply's first token is predicted from the prompt's last."""
    ids, scored = text(rng, 6, 4)
    same(call("next_tokens", ids, scored)[0], torch.tensor([5, 6, 7, 8]))


@check("next_tokens", "trap", 2)
def the_end_is_a_target(call, rng):
    """The reply's last token, end-of-text, is a target, or the model never learns to stop; its id is also the first token's and says nothing."""
    ids, scored = text(rng, 5, 3)
    same(call("next_tokens", ids, scored)[1], ids[5:])


@check("next_tokens", "trap", 2)
def nobody_predicts_the_first(call, rng):
    """With every token scored, the first still has nothing before it; position -1 would be the last."""
    ids, _ = text(rng, 5, 3)
    same(call("next_tokens", ids, torch.ones(8).bool()), (torch.arange(7), ids[1:]))


# ---- token_logps ----------------------------------------------------------------------------------------------------

def rows(rng: torch.Generator, n: int = 6, vocabulary: int = 30) -> tuple[Tensor, Tensor]:
    return 4 * torch.randn(n, vocabulary, generator=rng), torch.randint(0, vocabulary, (n,), generator=rng)


@check("token_logps", "shape", 1)
def one_log_prob_per_row(call, rng):
    """token_logps gives a float tensor [N]."""
    tensor(call("token_logps", *rows(rng)), (6,))


@check("token_logps", "number", 2)
def three_logits_by_hand(call, rng):
    """Logits 0, 0, ln 2: probabilities 1/4, 1/4, 1/2."""
    logits = torch.tensor([[0.0, 0.0, math.log(2)]] * 2)
    same(call("token_logps", logits, torch.tensor([2, 0])), torch.tensor([math.log(0.5), math.log(0.25)]))


@check("token_logps", "property", 3)
def torch_agrees(call, rng):
    """The same as torch's cross-entropy, in value and gradient."""
    logits, targets = rows(rng, 20, 100)
    mine = logits.clone().requires_grad_()
    expected = -torch.nn.functional.cross_entropy(mine, targets, reduction="none")
    same(call("token_logps", logits, targets), expected.detach())
    same(call.gradients("token_logps", logits, targets, of=(0,))[0], torch.autograd.grad(expected.sum(), mine)[0], "its gradient")


@check("token_logps", "trap", 2)
def no_overflow(call, rng):
    """exp(10,000) is infinite: the largest logit has to be taken out before any exponential."""
    same(call("token_logps", torch.tensor([[10000.0, 9999.0], [-10000.0, 0.0]]), torch.tensor([1, 0])),
         torch.tensor([-1 - math.log1p(math.exp(-1)), -10000.0]), "to the thousandth that float32 leaves at 10,000", within=1e-3)


@check("token_logps", "trap", 2)
def sixteen_bits_are_not_enough(call, rng):
    """Logits in bfloat16 are cast to float32 before the softmax: the result is float32 and exact for these logits."""
    logits, targets = rows(rng, 8, 2000)
    low = logits.bfloat16()
    found = call("token_logps", low, targets)
    holds(isinstance(found, Tensor) and found.dtype == torch.float32, f"Expected float32, got {getattr(found, 'dtype', type(found).__name__)}.")
    same(found, low.float().log_softmax(1).gather(1, targets[:, None]).squeeze(1))


# ---- sft_loss, micro_weights ----------------------------------------------------------------------------------------

@check("sft_loss", "shape", 1)
def a_scalar(call, rng):
    """sft_loss gives one number as a tensor."""
    tensor(call("sft_loss", -torch.rand(4, generator=rng), 8), ())


@check("sft_loss", "number", 2)
def three_of_six_tokens(call, rng):
    """Log-probs -1, -2, -3 in a step of six tokens contribute 1."""
    same(call("sft_loss", torch.tensor([-1.0, -2.0, -3.0]), 6), torch.tensor(1.0))


@check("sft_loss", "property", 2)
def any_cut_gives_the_same_gradient(call, rng):
    """A step in one piece, in two or in eight: the same gradient for every token."""
    logps = -3 * torch.rand(32, generator=rng)
    for sizes in ([32], [5, 27], [4] * 8):
        same(torch.cat([call.gradients("sft_loss", part, 32, of=(0,))[0] for part in logps.split(sizes)]), torch.full((32,), -1 / 32), f"micro-batches of {sizes}")


@check("sft_loss", "trap", 3)
def tokens_of_the_step_not_of_the_micro_batch(call, rng):
    """Thirty tokens and two: a mean per micro-batch would weigh the two fifteen times as much."""
    logps = -3 * torch.rand(32, generator=rng)
    same(call("sft_loss", logps[:30], 32) + call("sft_loss", logps[30:], 32), -logps.mean())


@check("micro_weights", "shape", 1)
def one_weight_each(call, rng):
    """micro_weights gives a list of numbers, one per micro-batch."""
    found = call("micro_weights", [3, 1])
    holds(isinstance(found, list) and len(found) == 2 and all(isinstance(w, (int, float)) for w in found), f"Expected a list of two numbers, got {found!r}.")


@check("micro_weights", "number", 2)
def thirty_and_two(call, rng):
    """Thirty tokens and two weigh 15/16 and 1/16."""
    same(call("micro_weights", [30, 2]), [0.9375, 0.0625])


@check("micro_weights", "property", 2)
def weighted_means_are_the_mean(call, rng):
    """Weights times means add up to the mean over all tokens."""
    counts = torch.randint(1, 60, (7,), generator=rng).tolist()
    parts = [torch.rand(n, generator=rng) for n in counts]
    weights = call("micro_weights", counts)
    same(sum(w * part.mean().item() for w, part in zip(weights, parts)), torch.cat(parts).mean().item())


@check("micro_weights", "trap", 2)
def an_empty_micro_batch_weighs_nothing(call, rng):
    """A micro-batch without a scored token weighs 0, also when all of them are empty: 0 / 0 would be NaN, or an error."""
    same(call("micro_weights", [4, 0]), [1.0, 0.0])
    same(call("micro_weights", [0, 0]), [0.0, 0.0])


# ---- learning_rate --------------------------------------------------------------------------------------------------

@check("learning_rate", "shape", 1)
def a_number(call, rng):
    """learning_rate gives a positive number."""
    found = call("learning_rate", 50, 100, 1e-3, 0.1, 0.1)
    holds(isinstance(found, float) and found > 0, f"Expected a float above 0, got {found!r}.")


@check("learning_rate", "number", 2)
def ten_steps_by_hand(call, rng):
    """Ten steps, two of them warm-up, peak 1, floor .2: .5, 1, then 1 again, and .6 half-way down."""
    same([call("learning_rate", step, 10, 1.0, 0.2, 0.2) for step in (0, 1, 2, 6)], [0.5, 1.0, 1.0, 0.6])


@check("learning_rate", "property", 2)
def the_projects_schedule(call, rng):
    """The same as runtime/optim.py's lr_at for every step of a run, in units of the peak; the number of warm-up steps is rounded to the nearest."""
    for total in (25, 22, int(torch.randint(20, 60, (1,), generator=rng))):  # .15 of 25 and of 22: one rounds up, the other down
        c = TrainConfig(lr=2e-3, warmup=0.15, min_lr=0.1)
        found = [call("learning_rate", step, total, 2e-3, 0.15, 0.1) for step in range(total)]
        holds(all(isinstance(rate, (int, float)) for rate in found), f"Expected numbers, got {show(found)}.")
        same([rate / 2e-3 for rate in found], [lr_at(step, total, c) / 2e-3 for step in range(total)], f"rate / peak of {total} steps")


@check("learning_rate", "trap", 2)
def the_first_step_moves(call, rng):
    """A rate of 0 at step 0 wastes a batch, and a run of one step learns nothing."""
    same([call("learning_rate", 0, 100, 1e-3, 0.1, 0.0), call("learning_rate", 0, 1, 1e-3, 0.0, 0.0)], [1e-4, 1e-3])


# ---- clip_gradients -------------------------------------------------------------------------------------------------

@check("clip_gradients", "shape", 1)
def gradients_and_their_norm(call, rng):
    """clip_gradients gives (list of tensors, number), the tensors of the shapes they had."""
    given = [torch.randn(3, 2, generator=rng), torch.randn(5, generator=rng)]
    found = call("clip_gradients", given, 1.0)
    holds(isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], list) and len(found[0]) == 2, f"Expected (list of 2 tensors, norm), got {show(found)}.")
    for part, g in zip(found[0], given):
        tensor(part, tuple(g.shape))


@check("clip_gradients", "number", 2)
def three_and_four(call, rng):
    """3 and 4 have the norm 5; at most 1 makes them .6 and .8."""
    same(call("clip_gradients", [torch.tensor([3.0]), torch.tensor([[4.0]])], 1.0), ([torch.tensor([0.6]), torch.tensor([[0.8]])], 5.0))


@check("clip_gradients", "property", 2)
def torch_clips_the_same(call, rng):
    """The same as torch.nn.utils.clip_grad_norm_."""
    given = [torch.randn(6, 4, generator=rng), 10 * torch.randn(9, generator=rng)]
    weights = [torch.zeros_like(g).requires_grad_() for g in given]
    for w, g in zip(weights, given):
        w.grad = g.clone()
    norm = torch.nn.utils.clip_grad_norm_(weights, 1.0).item()
    same(call("clip_gradients", given, 1.0), ([w.grad for w in weights], norm), within=1e-4)


@check("clip_gradients", "trap", 2)
def one_norm_for_all(call, rng):
    """All tensors share one norm; clipping each by its own changes the direction of the step."""
    same(call("clip_gradients", [torch.tensor([30.0]), torch.tensor([0.4])], 1.0)[0], [torch.tensor([30 / math.hypot(30, 0.4)]), torch.tensor([0.4 / math.hypot(30, 0.4)])], within=1e-4)


@check("clip_gradients", "trap", 2)
def small_gradients_stay(call, rng):
    """A norm below the limit changes nothing: clipping is not normalising. Zeros stay zeros."""
    small = [torch.tensor([0.01, -0.02])]
    same(call("clip_gradients", small, 1.0)[0], small)
    same(call("clip_gradients", [torch.zeros(3)], 1.0), ([torch.zeros(3)], 0.0))


# ---- adamw_step -----------------------------------------------------------------------------------------------------

def after(rng: torch.Generator, steps: int, decay: float) -> tuple[Tensor, list[Tensor], Tensor]:
    """A weight [5], `steps` gradients, and the weight that torch's AdamW makes of them."""
    start, gradients = torch.randn(5, generator=rng), [torch.randn(5, generator=rng) for _ in range(steps)]
    weight = start.clone().requires_grad_()
    optimizer = torch.optim.AdamW([weight], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=decay)
    for g in gradients:
        weight.grad = g.clone()
        optimizer.step()
    return start, gradients, weight.detach()


def walk(call, weight: Tensor, gradients: list[Tensor], decay: float) -> Tensor:
    """The student's steps, one after the other."""
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for step, g in enumerate(gradients, 1):
        weight, mean, square = call("adamw_step", weight, g, mean, square, step, 0.01, 0.9, 0.95, 1e-8, decay)
    return weight


@check("adamw_step", "shape", 1)
def three_tensors(call, rng):
    """adamw_step gives (weight, mean, square), each of the weight's shape."""
    found = call("adamw_step", torch.randn(2, 3, generator=rng), torch.randn(2, 3, generator=rng), torch.zeros(2, 3), torch.zeros(2, 3), 1, 0.01, 0.9, 0.95, 1e-8, 0.1)
    holds(isinstance(found, tuple) and len(found) == 3, f"Expected a tuple of three tensors, got {show(found)}.")
    for part in found:
        tensor(part, (2, 3))


@check("adamw_step", "number", 2)
def the_first_step_is_one_rate_long(call, rng):
    """Without decay the first step is lr against the sign of the gradient, however large it is."""
    found = call("adamw_step", torch.tensor([1.0, 1.0]), torch.tensor([5.0, -0.002]), torch.zeros(2), torch.zeros(2), 1, 0.1, 0.9, 0.95, 1e-12, 0.0)
    same(found, (torch.tensor([0.9, 1.1]), torch.tensor([0.5, -0.0002]), torch.tensor([1.25, 2e-7])))


@check("adamw_step", "property", 3)
def torch_steps_the_same(call, rng):
    """Four steps end where torch.optim.AdamW ends."""
    start, gradients, end = after(rng, 4, 0.1)
    same(walk(call, start, gradients, 0.1), end)


@check("adamw_step", "trap", 2)
def means_begin_at_zero(call, rng):
    """Without the correction 1 - beta ** step the first steps are several times too long or too short."""
    start, gradients, end = after(rng, 1, 0.0)
    same(walk(call, start, gradients, 0.0), end)


@check("adamw_step", "trap", 2)
def decay_is_no_gradient(call, rng):
    """The decay shrinks the weight by lr x decay of itself; added to the gradient it would be divided by the running square."""
    weight = torch.tensor([2.0])
    found = call("adamw_step", weight, torch.zeros(1), torch.zeros(1), torch.zeros(1), 1, 0.01, 0.9, 0.95, 1e-8, 0.5)
    same(found, (torch.tensor([1.99]), torch.zeros(1), torch.zeros(1)))
