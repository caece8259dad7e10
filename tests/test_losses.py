"""The SFT loss, and what is special about single objectives. tests/test_objectives.py has the numbers of all of them."""
import math

import pytest
import torch

from losses import sft_loss
from objectives import preference_loss


def test_equal_policies_give_ln2_and_zero_rewards():
    x = torch.tensor([-3.0, -50.0])
    losses, chosen, rejected = preference_loss(x, x - 1, x, x - 1)
    assert losses.tolist() == pytest.approx([math.log(2)] * 2)
    assert chosen.tolist() == rejected.tolist() == [0.0, 0.0]


def test_dpo_gradient():
    """d/dw of -log sigmoid(beta D) is -beta * sigmoid(-beta D): .1 * (1 - .574443) = .0425557 (paper, section 4)."""
    chosen, rejected = torch.tensor([-10.0], requires_grad=True), torch.tensor([-14.0], requires_grad=True)
    preference_loss(chosen, rejected, torch.tensor([-12.0]), torch.tensor([-13.0]), beta=0.1)[0].sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.0425557, abs=1e-6)
    assert rejected.grad.item() == pytest.approx(0.0425557, abs=1e-6)


def test_dpop_penalty_is_inside_the_sigmoid_and_scaled_by_beta():
    # w = -1 (chosen fell by one nat), l = -4, D = 3, penalty 2 * 1: -ln sigmoid(.1 * (3 - 2)) = -ln(.524979) = .644397
    pair = [torch.tensor([v]) for v in (-11.0, -17.0, -10.0, -13.0)]
    assert preference_loss(*pair, "dpop", beta=0.1, penalty=2.0)[0].item() == pytest.approx(0.644397, abs=2e-6)
    # added outside the sigmoid it is .554355 + 2
    assert preference_loss(*pair, "dpop_additive", beta=0.1, penalty=2.0)[0].item() == pytest.approx(2.554355, abs=2e-6)


def test_cdpo_is_least_at_its_finite_margin():
    """Minimum at beta D = log((1 - e) / e): with e = .28 and beta = .1 that is D = 9.4446."""
    at = torch.linspace(0, 30, 3001)
    zero = torch.zeros_like(at)
    losses, *_ = preference_loss(at, zero, zero, zero, "cdpo", beta=0.1, label_smoothing=0.28)
    assert at[losses.argmin()].item() == pytest.approx(math.log(0.72 / 0.28) / 0.1, abs=0.011)


def test_sft_loss_divides_by_the_whole_step():
    """Two micro-batches, 1 and 3 tokens, of a 4-token step: (1 + 3 + 3 + 3) / 4 = 2.5. A mean of means would say (1 + 3) / 2 = 2."""
    parts = [sft_loss(torch.tensor([-1.0]), 4), sft_loss(torch.tensor([-3.0, -3.0, -3.0]), 4)]
    assert sum(p.item() for p in parts) == pytest.approx(2.5)
