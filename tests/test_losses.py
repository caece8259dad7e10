"""Every number here is worked out by hand in the comment above it."""
import math

import pytest
import torch

from losses import OBJECTIVES, preference_loss, sft_loss


def one(objective: str, chosen: float, rejected: float, ref_chosen: float, ref_rejected: float, **settings) -> float:
    return preference_loss(*(torch.tensor([v]) for v in (chosen, rejected, ref_chosen, ref_rejected)), objective, **settings)[0].item()


# policy chosen -10, rejected -14; reference chosen -12, rejected -13: w = 2, l = -1, D = 3.
PAIR = (-10.0, -14.0, -12.0, -13.0)


@pytest.mark.parametrize("objective, settings, expected", [
    # sigmoid(.1 * 3) = 1 / (1 + e^-.3) = .574443, -ln = .554355
    ("dpo", {"beta": 0.1}, 0.554355),
    # -ln sigmoid(-.3) = .554355 + .3 = .854355; .8 * .554355 + .2 * .854355 = .614355
    ("cdpo", {"beta": 0.1, "label_smoothing": 0.2}, 0.614355),
    # (3 - 1 / .2)^2 = (3 - 5)^2 = 4
    ("ipo", {"beta": 0.1}, 4.0),
    # 1 - .3 = .7
    ("hinge", {"beta": 0.1}, 0.7),
    # the chosen reply rose (w = 2), so no penalty: as dpo
    ("dpop", {"beta": 0.1, "penalty": 5.0}, 0.554355),
])
def test_hand_worked(objective, settings, expected):
    assert one(objective, *PAIR, **settings) == pytest.approx(expected, abs=2e-6)


def test_dpop_penalty_is_inside_the_sigmoid_and_scaled_by_beta():
    # w = -1 (chosen fell by one nat), l = -4, D = 3, penalty 2 * 1: -ln sigmoid(.1 * (3 - 2)) = -ln(.524979) = .644397
    assert one("dpop", -11.0, -17.0, -10.0, -13.0, beta=0.1, penalty=2.0) == pytest.approx(0.644397, abs=2e-6)
    # added outside the sigmoid (a form found in public code) it would be .554355 + 2 = 2.55
    assert one("dpop", -11.0, -17.0, -10.0, -13.0, beta=0.1, penalty=0.0) == pytest.approx(0.554355, abs=2e-6)


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


def test_cdpo_is_least_at_its_finite_margin():
    """Minimum at beta D = log((1 - e) / e): with e = .28 and beta = .1 that is D = 9.4446."""
    at = torch.linspace(0, 30, 3001)
    zero = torch.zeros_like(at)
    losses, *_ = preference_loss(at, zero, zero, zero, "cdpo", beta=0.1, label_smoothing=0.28)
    assert at[losses.argmin()].item() == pytest.approx(math.log(0.72 / 0.28) / 0.1, abs=0.011)


def test_pairs_do_not_mix():
    """A pair's loss does not depend on the other pairs of the batch (averaging first, then one sigmoid, is a known mistake)."""
    a = torch.randn(4, 6)
    for objective in OBJECTIVES:
        whole = preference_loss(*a, objective)[0]
        alone = torch.cat([preference_loss(*a[:, i:i + 1], objective)[0] for i in range(6)])
        assert torch.equal(whole, alone), objective


def test_rewards_carry_no_gradient():
    x = torch.zeros(2, requires_grad=True)
    _, chosen, rejected = preference_loss(x, x, x, x)
    assert not chosen.requires_grad and not rejected.requires_grad


@pytest.mark.parametrize("settings", [{"beta": 0.0}, {"label_smoothing": 0.5}, {"penalty": -1.0}, {"objective": "dop"}])
def test_senseless_settings_are_refused(settings):
    x = torch.zeros(1)
    with pytest.raises(ValueError):
        preference_loss(x, x, x, x, **settings)


def test_sft_loss_divides_by_the_whole_step():
    """Two micro-batches, 1 and 3 tokens, of a 4-token step: (1 + 3 + 3 + 3) / 4 = 2.5. A mean of means would say (1 + 3) / 2 = 2."""
    parts = [sft_loss(torch.tensor([-1.0]), 4), sft_loss(torch.tensor([-3.0, -3.0, -3.0]), 4)]
    assert sum(p.item() for p in parts) == pytest.approx(2.5)
