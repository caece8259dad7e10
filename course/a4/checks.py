"""What assignment 4 is graded by. The expected values are the project's own losses, computed on this side, and numbers worked by hand."""
import math

import torch
from torch import Tensor

from course.checking import Failed, check, holds, same, show, tensor
from course.worker import NO_GRADIENT
from objectives import preference_loss

LOSSES = ("dpo_loss", "ipo_loss", "dpop_loss")


def four(rng: torch.Generator, pairs: int) -> list[Tensor]:
    """Log-probs [P] of both replies under policy and reference, such as whole replies have."""
    return [-40 * torch.rand(pairs, generator=rng) - 5 for _ in range(4)]


def settings(function: str, rng: torch.Generator) -> list[float]:
    """A beta, and for DPOP a penalty, drawn anew."""
    drawn = [round(0.05 + 0.5 * torch.rand(1, generator=rng).item(), 3)]
    return drawn + [round(1 + 9 * torch.rand(1, generator=rng).item(), 2)] if function == "dpop_loss" else drawn


def expected(function: str, logps: list[Tensor], *values: float) -> Tensor:
    """The project's own losses [P]."""
    return preference_loss(*logps, objective=function.removesuffix("_loss"), **dict(zip(("beta", "penalty"), values)))[0]


def has_shape(call, rng, function: str) -> None:
    tensor(call(function, *four(rng, 5), *settings(function, rng)), (5,), function)
    tensor(call(function, *four(rng, 1), *settings(function, rng)), (1,), f"{function} of one pair")


def is_the_projects(call, rng, function: str) -> None:
    for pairs in (1, 7, 64):
        logps, values = four(rng, pairs), settings(function, rng)
        named = ", ".join(f"{name} {value:g}" for name, value in zip(("beta", "penalty"), values))
        same(call(function, *logps, *values), expected(function, logps, *values), f"{function} of {pairs} random pairs with {named}")


# ---- sequence_logps -------------------------------------------------------------------------------------------------

def ragged(rng: torch.Generator) -> tuple[Tensor, Tensor, int]:
    """Log-probs [N] of tokens of five replies of unequal lengths, shuffled; one reply is empty."""
    owner = torch.tensor([0] * 3 + [1] * 9 + [3] * 2 + [4] * 17)[torch.randperm(31, generator=rng)]
    return -3 * torch.rand(31, generator=rng), owner, 5


@check("sequence_logps", "shape", 1)
def one_number_per_reply(call, rng):
    """sequence_logps gives a float32 tensor [sequences]."""
    found = tensor(call("sequence_logps", *ragged(rng)), (5,))
    holds(found.dtype == torch.float32, f"Expected float32, got {show(found)}.")


@check("sequence_logps", "number", 2)
def three_tokens_by_hand(call, rng):
    """Tokens -1, -2 of reply 0 and -0.5 of reply 1 make -3 and -0.5."""
    same(call("sequence_logps", torch.tensor([-1.0, -0.5, -2.0]), torch.tensor([0, 1, 0]), 2), torch.tensor([-3.0, -0.5]))


@check("sequence_logps", "property", 2)
def gradient_reaches_every_token(call, rng):
    """Every token's log-prob counts once: its gradient is 1."""
    logps, owner, n = ragged(rng)
    same(call.gradients("sequence_logps", logps, owner, n, of=(0,))[0], torch.ones(31))


@check("sequence_logps", "trap", 2)
def sums_not_means(call, rng):
    """A reply's log-prob is the sum over its tokens; the mean would forget its length."""
    logps, owner, n = ragged(rng)
    same(call("sequence_logps", logps, owner, n), torch.stack([logps[owner == i].sum() for i in range(n)]))


# ---- implicit_rewards -----------------------------------------------------------------------------------------------

@check("implicit_rewards", "shape", 1)
def one_reward_per_reply(call, rng):
    """implicit_rewards gives a float tensor [P]."""
    tensor(call("implicit_rewards", *four(rng, 6)[:2], 0.1), (6,))


@check("implicit_rewards", "number", 2)
def four_nats_at_a_quarter(call, rng):
    """From -10 to -6 nats at beta .25 is a reward of 1."""
    same(call("implicit_rewards", torch.tensor([-6.0]), torch.tensor([-10.0]), 0.25), torch.tensor([1.0]))


@check("implicit_rewards", "trap", 2)
def a_reward_is_no_loss(call, rng):
    """Rewards are only looked at: they must carry no gradient, or logging them keeps the whole graph in memory."""
    try:
        call.gradients("implicit_rewards", *four(rng, 3)[:2], 0.1, of=(0,))
    except Failed as e:
        if str(e) == NO_GRADIENT:
            return
        raise
    holds(False, "The rewards you return still carry a gradient.")


# ---- dpo_loss -------------------------------------------------------------------------------------------------------

@check("dpo_loss", "shape", 1)
def dpo_one_loss_per_pair(call, rng):
    """dpo_loss gives a float tensor [P], one loss per pair."""
    has_shape(call, rng, "dpo_loss")


@check("dpo_loss", "number", 3)
def dpo_worked_by_hand(call, rng):
    """The handout's pair: -12, -11 under the policy, -14, -10 under the reference, so D = 3; at beta .1 the loss is ln(1 + exp(-.3))."""
    pair = [torch.tensor([v]) for v in (-12.0, -11.0, -14.0, -10.0)]
    same(call("dpo_loss", *pair, 0.1), torch.tensor([math.log1p(math.exp(-0.3))]))


@check("dpo_loss", "property", 2)
def ln_2_where_training_begins(call, rng):
    """While the policy is the reference, every pair loses ln 2."""
    chosen, rejected = four(rng, 9)[:2]
    same(call("dpo_loss", chosen, rejected, chosen, rejected, 0.3), torch.full((9,), math.log(2)))


@check("dpo_loss", "property", 3)
def dpo_equals_the_projects(call, rng):
    """The same as losses.dpo on random pairs."""
    is_the_projects(call, rng, "dpo_loss")


@check("dpo_loss", "trap", 2)
def chosen_goes_up(call, rng):
    """A step down the loss must raise the chosen reply and lower the rejected one."""
    chosen, rejected = call.gradients("dpo_loss", *four(rng, 8), 0.1, of=(0, 1))
    holds(bool((chosen < 0).all()), f"The gradient of the chosen log-probs is {show(chosen)}: a step down the loss lowers them. (A wrong sign fails most other lines, too.)")
    holds(bool((rejected > 0).all()), f"The gradient of the rejected log-probs is {show(rejected)}: a step down the loss raises them. (A wrong sign fails most other lines, too.)")


@check("dpo_loss", "trap", 2)
def the_reference_counts(call, rng):
    """The loss must depend on the reference: a reply that the reference likes as well is no merit of the policy."""
    logps = four(rng, 8)
    same(call("dpo_loss", *logps[:2], *[0 * t for t in logps[2:]], 0.1), expected("dpo_loss", [*logps[:2], *[0 * t for t in logps[2:]]], 0.1), "with a reference of 0 nats")
    same(call("dpo_loss", *logps, 0.1), expected("dpo_loss", logps, 0.1), "with another reference")


@check("dpo_loss", "trap", 2)
def finite_at_ten_thousand(call, rng):
    """torch.log(torch.sigmoid(z)) is -inf for z below about -100 in float32; one function of torch gives the log of the sigmoid without making the sigmoid."""
    big, zero = torch.tensor([10000.0, -10000.0, 200.0, -200.0]), torch.zeros(4)
    same(call("dpo_loss", big, zero, zero, zero, 1.0), torch.tensor([0.0, 10000.0, 0.0, 200.0]))
    same(call.gradients("dpo_loss", big, zero, zero, zero, 1.0, of=(0,))[0], torch.tensor([0.0, -1.0, 0.0, -1.0]), "its gradient")


@check("dpo_loss", "trap", 2)
def beta_scales_the_whole_margin(call, rng):
    """beta multiplies the log-ratios of both replies, reference included."""
    logps = four(rng, 8)
    for beta in (0.01, 2.0):
        same(call("dpo_loss", *logps, beta), expected("dpo_loss", logps, beta), f"beta {beta}")


# ---- dpo_gradient ---------------------------------------------------------------------------------------------------

@check("dpo_gradient", "shape", 1)
def two_gradients(call, rng):
    """dpo_gradient gives a tuple of two float tensors [P]."""
    found = call("dpo_gradient", *four(rng, 4), 0.1)
    holds(isinstance(found, tuple) and len(found) == 2, f"Expected a tuple of two tensors, got {show(found)}.")
    for part in found:
        tensor(part, (4,))


@check("dpo_gradient", "number", 2)
def half_of_beta_at_the_start(call, rng):
    """While the policy is the reference the gradients are -beta / 2 and +beta / 2."""
    a, b = four(rng, 3)[:2]
    same(call("dpo_gradient", a, b, a, b, 0.4), (torch.full((3,), -0.2), torch.full((3,), 0.2)))


@check("dpo_gradient", "property", 3)
def equals_autograd(call, rng):
    """The same as autograd through the project's loss."""
    logps = four(rng, 12)
    mine = [t.clone().requires_grad_() for t in logps[:2]]
    same(call("dpo_gradient", *logps, 0.2), torch.autograd.grad(expected("dpo_loss", [*mine, *logps[2:]], 0.2).sum(), mine))


@check("dpo_gradient", "trap", 2)
def wrongly_ordered_pairs_weigh_more(call, rng):
    """The weight is sigmoid(-beta D), near 1 where the policy orders a pair wrongly; sigmoid(beta D) would train on what is known already."""
    delta, zero = torch.tensor([-50.0, 50.0]), torch.zeros(2)
    same(call("dpo_gradient", delta, zero, zero, zero, 0.5)[0], torch.tensor([-0.5, 0.0]))


# ---- ipo_loss -------------------------------------------------------------------------------------------------------

@check("ipo_loss", "shape", 1)
def ipo_one_loss_per_pair(call, rng):
    """ipo_loss gives a float tensor [P]."""
    has_shape(call, rng, "ipo_loss")


@check("ipo_loss", "number", 2)
def ipo_worked_by_hand(call, rng):
    """The handout's pair, D = 3, at beta .1: the target is 5, the loss 4."""
    pair = [torch.tensor([v]) for v in (-12.0, -11.0, -14.0, -10.0)]
    same(call("ipo_loss", *pair, 0.1), torch.tensor([4.0]))


@check("ipo_loss", "property", 3)
def ipo_equals_the_projects(call, rng):
    """The same as losses.ipo on random pairs."""
    is_the_projects(call, rng, "ipo_loss")


@check("ipo_loss", "trap", 2)
def ipo_stops_at_its_target(call, rng):
    """At beta .125 the target is D = 4: there loss and gradient are 0, and at D = 6 the loss is 4 and pulls the pair back."""
    delta, zero = torch.tensor([4.0, 6.0]), torch.zeros(2)
    same(call("ipo_loss", delta, zero, zero, zero, 0.125), torch.tensor([0.0, 4.0]))
    same(call.gradients("ipo_loss", delta, zero, zero, zero, 0.125, of=(0,))[0], torch.tensor([0.0, 4.0]), "its gradient")


# ---- dpop_loss ------------------------------------------------------------------------------------------------------

@check("dpop_loss", "shape", 1)
def dpop_one_loss_per_pair(call, rng):
    """dpop_loss gives a float tensor [P]."""
    has_shape(call, rng, "dpop_loss")


@check("dpop_loss", "number", 3)
def dpop_worked_by_hand(call, rng):
    """Chosen -16 against -14: w = -2; rejected -15 against -10: D = 3. At beta .1 and penalty 5: -log sigmoid(.1 (3 - 10))."""
    pair = [torch.tensor([v]) for v in (-16.0, -15.0, -14.0, -10.0)]
    same(call("dpop_loss", *pair, 0.1, 5.0), torch.tensor([math.log1p(math.exp(0.7))]))


@check("dpop_loss", "property", 3)
def dpop_equals_the_projects(call, rng):
    """The same as losses.dpop on random pairs."""
    is_the_projects(call, rng, "dpop_loss")


@check("dpop_loss", "property", 1)
def without_penalty_it_is_dpo(call, rng):
    """Penalty 0 gives DPO back."""
    logps = four(rng, 8)
    same(call("dpop_loss", *logps, 0.2, 0.0), expected("dpo_loss", logps, 0.2))


@check("dpop_loss", "trap", 2)
def only_a_fall_is_charged(call, rng):
    """A chosen reply above the reference is not charged, and gets no bonus: there DPOP is DPO."""
    policy, reference, zero = torch.tensor([3.0, 8.0]), torch.zeros(2), torch.tensor([-1.0, 2.0])
    same(call("dpop_loss", policy, zero, reference, reference, 0.3, 50.0), expected("dpo_loss", [policy, zero, reference, reference], 0.3))


@check("dpop_loss", "trap", 2)
def the_charge_stands_inside_the_sigmoid(call, rng):
    """Where the margin is large in spite of the charge, the pair is done and its gradient 0; a charge outside the sigmoid would pull for ever."""
    w, l, zero = torch.tensor([-2.0]), torch.tensor([-100.0]), torch.zeros(1)
    same(call.gradients("dpop_loss", w, l, zero, zero, 0.5, 4.0, of=(0,))[0], torch.zeros(1))


@check("dpop_loss", "trap", 2)
def the_chosen_reply_is_charged(call, rng):
    """What is charged is the fall of the chosen reply; the rejected one may fall as it likes."""
    zero = torch.zeros(1)
    same(call("dpop_loss", zero, torch.tensor([-7.0]), zero, zero, 0.3, 50.0), expected("dpo_loss", [zero, torch.tensor([-7.0]), zero, zero], 0.3), "rejected reply fallen by 7")
    holds(call("dpop_loss", torch.tensor([-1.0]), zero, zero, zero, 0.3, 10.0).item() > 0.86, "A chosen reply that fell by 1 nat costs no more than under DPO (.8544).")


@check("dpop_loss", "trap", 2)
def beta_scales_the_charge_too(call, rng):
    """The charge is part of the margin, and beta multiplies the whole of it: beta (D - penalty max(0, -w))."""
    zero = torch.zeros(1)
    same(call("dpop_loss", torch.tensor([-1.0]), zero, zero, zero, 0.3, 10.0), torch.tensor([math.log1p(math.exp(3.3))]), "chosen reply fallen by 1 nat, beta .3, penalty 10")


# ---- step_loss ------------------------------------------------------------------------------------------------------

@check("step_loss", "shape", 1)
def a_scalar(call, rng):
    """step_loss gives one number as a tensor."""
    tensor(call("step_loss", torch.rand(5, generator=rng), 8), ())


@check("step_loss", "number", 1)
def two_of_four(call, rng):
    """Losses 1 and 3 of a step of four pairs contribute 1."""
    same(call("step_loss", torch.tensor([1.0, 3.0]), 4), torch.tensor(1.0))


@check("step_loss", "trap", 2)
def micro_batches_add_up(call, rng):
    """20 and 12 pairs together must give the mean over 32, with its gradient: a mean of means gives each pair of the smaller micro-batch more weight."""
    losses = torch.rand(32, generator=rng)
    same(call("step_loss", losses[:20], 32) + call("step_loss", losses[20:], 32), losses.mean())
    same(call.gradients("step_loss", losses[20:], 32, of=(0,))[0], torch.full((12,), 1 / 32), "its gradient")
