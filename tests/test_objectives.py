"""Every objective: numbers worked out by hand, gradients by finite differences, identities, stability, and whole steps in pieces."""
import math

import pytest
import torch

import objectives as obj
from objectives import OBJECTIVES, PENALISED, REFERENCE_FREE, WHOLE_STEP, make_pairs, next_state, pair_losses, parse, preference_loss, step_gradients

# Three pairs. A: the policy moved the right way, w = -10 + 12 = 2, l = -14 + 13 = -1, D = 3. B: it has not moved, w = l = D = 0.
# C: both replies became less likely, w = -11 + 10 = -1, l = -17 + 13 = -4, D = 3 again. |y_w| = 5, |y_l| = 4, margin 2, weight e^-.5.
POINTS = ((-10.0, -14.0, -12.0, -13.0), (-12.0, -13.0, -12.0, -13.0), (-11.0, -17.0, -10.0, -13.0))
TOKENS = {"chosen_tokens": 5.0, "rejected_tokens": 4.0, "margin": 2.0, "on_policy": -0.5}

# With x = beta D = .3: sigmoid(.3) = 1 / (1 + .740818) = .574443, L(x) = -ln sigmoid(x): L(.3) = .554355, L(-.3) = .554355 + .3 = .854355,
# L(0) = ln 2 = .693147, L(.2) = .598139, L(-.2) = .798139, L(.1) = .644397, L(-.1) = .744397.
BY_HAND = {
    # A: L(.3); B: L(0); C: L(.3), for D is all that counts
    "dpo": ({"beta": 0.1}, 0.5543552, 0.6931472, 0.5543552),
    # A: .9 * .554355 + .1 * .854355 = .584355
    "cdpo": ({"beta": 0.1, "label_smoothing": 0.1}, 0.5843552, 0.6931472, 0.5843552),
    # A: (3 - 1 / .2)^2 = (-2)^2; B: 5^2
    "ipo": ({"beta": 0.1}, 4.0, 25.0, 4.0),
    # A: 1 - .3
    "hinge": ({"beta": 0.1}, 0.7, 1.0, 0.7),
    # A: w > 0, no penalty. C: .1 (3 - 5 * 1) = -.2 -> L(-.2) = .798139
    "dpop": ({"beta": 0.1, "penalty": 5.0}, 0.5543552, 0.6931472, 0.7981389),
    # A: means -2 and -3.5: 2 * 1.5 - 1 = 2 -> L(2) = ln(1 + e^-2) = ln 1.135335 = .126928. B: means -2.4, -3.25: .7. C: -2.2, -4.25: 3.1
    "simpo": ({"beta": 2.0, "gamma": 1.0}, 0.1269280, 0.4031860, 0.0440640),
    # A: (.9 * .554355 - .1 * .854355) / .8 = (.498920 - .085436) / .8 = .516855
    "robust": ({"beta": 0.1, "label_smoothing": 0.1}, 0.5168552, 0.6931472, 0.5168552),
    # A: .574443 (-.554355 - ln .999) + .425557 (-.854355 - ln .001) = .574443 * -.553355 + .425557 * 6.053400 = -.317870 + 2.576069
    "exo": ({"beta": 0.1, "label_smoothing": 0.001}, 2.2581992, 2.7612307, 2.2581992),
    # A: 2/5 + 1/4 - 5 = -4.35, squared. C: -1/5 + 4/4 - 5 = -4.2
    "ipo_norm": ({"beta": 0.1}, 18.9225, 25.0, 17.64),
    # A: 5 * .65 = 3.25 -> ln(1 + e^-3.25) = ln 1.038774 = .038041. C: 5 * .8 = 4 -> .018150
    "dpo_norm": ({"beta": 5.0}, 0.0380414, 0.6931472, 0.0181499),
    # A: .3 + .01 * (5 - 4) = .31 -> L = .550112. B: L(.01)
    "rdpo": ({"beta": 0.1, "alpha": 0.01}, 0.5501119, 0.6881597, 0.5501119),
    # the token weights are in the sums already
    "lddpo": ({"beta": 0.1}, 0.5543552, 0.6931472, 0.5543552),
    # A: L(.2) + (L(-.2) + L(.1)) / 2, since -l = 1: .598139 + .399069 + .322198 = 1.319407. C: L(-.1) + (L(.1) + L(.4)) / 2
    "nca": ({"beta": 0.1}, 1.3194066, 1.3862944, 1.3231026),
    # A: shift .2: L(.2 - .2) + L(.2 + .1) = .693147 + .554355. C: L(-.3) + L(.6)
    "bco": ({"beta": 0.1, "shift": 0.2}, 1.2475024, 1.3962777, 1.2918432),
    # A: (2 - 5)^2 + (-1 + 5)^2 = 9 + 16. C: 36 + 1
    "sppo": ({"beta": 0.1}, 25.0, 50.0, 37.0),
    # A: 1 - sigmoid(.2) + sigmoid(-.1) = 1 - .549834 + .475021
    "apo_zero": ({"beta": 0.1}, 0.9251868, 1.0, 0.9262915),
    # A: sigmoid(.2) + 1 - sigmoid(.3) = .549834 + 1 - .574443
    "apo_down": ({"beta": 0.1}, 0.9753915, 1.0, 0.9005783),
    # A: m = sigmoid(.3 / .05) = sigmoid(6) = .997527: .002473 * .554355 + .997527 * e^-.3 = .001371 + .738986. B: (ln 2 + 1) / 2
    "discopop": ({"beta": 0.1, "tau": 0.05}, 0.7403572, 0.8465736, 0.7403572),
    # A: .1 (e^1 - e^-2) = .1 (2.718282 - .135335) = .258295 -> L = .572316. C: .1 (e^4 - e^1) = 5.187987
    "fdpo_forward_kl": ({"beta": 0.1}, 0.5723163, 0.6931472, 0.0055677),
    # A: ln sigmoid(2) = -.126928, ln sigmoid(-1) = -1.313262: .1 * 1.186334 = .118633 -> L = .635589
    "fdpo_js": ({"beta": 0.1}, 0.6355887, 0.6931472, 0.5670205),
    # A: .1 (e^.5 - e^-1) / .5 = .2 (1.648721 - .367879) = .256168 -> L = .573243
    "fdpo_alpha": ({"beta": 0.1, "alpha": 0.5}, 0.5732434, 0.6931472, 0.2755458),
    # A: 10 / 5
    "nll": ({}, 2.0, 2.4, 2.2),
    # A: .554355 + 2
    "rpo": ({"beta": 0.1, "alpha": 1.0}, 2.5543552, 3.0931472, 2.7543552),
    # A: L(.1 * 4) + 2 = .513015 + 2. B: L(.1) + 2.4. C: L(.6) + 2.2
    "cpo": ({"beta": 0.1, "alpha": 1.0}, 2.5130153, 3.0443967, 2.6374880),
    # A: log odds -2 - ln(1 - e^-2) = -1.854586 and -3.5 - ln(1 - e^-3.5) = -3.469337: difference 1.614751, L = .181438: 2 + .1 * .181438
    "orpo": ({"alpha": 0.1}, 2.0181438, 2.4339552, 2.2109865),
    # A: .3 - ln 2 = -.393147 -> L = .908918. B: L(-ln 2) = ln 3
    "odpo": ({"beta": 0.1, "alpha": 1.0}, 0.9089182, 1.0986123, 0.9089182),
    # A: e^-.5 * .554355 = .606531 * .554355
    "wpo": ({"beta": 0.1}, 0.3362335, 0.4204150, 0.3362335),
    # C: .554355 + 5 * 1, outside the sigmoid
    "dpop_additive": ({"beta": 0.1, "penalty": 5.0}, 0.5543552, 0.6931472, 5.5543552),
}
# At w = l = 0 with equal lengths, margin 1 and weight 1: what the docstrings say. (cpo, orpo, nll, rpo and simpo depend on the log-probs themselves.)
AT_ZERO = {"dpo": math.log(2), "cdpo": math.log(2), "robust": math.log(2), "dpop": math.log(2), "dpop_additive": math.log(2), "ipo": 25.0, "ipo_norm": 25.0, "hinge": 1.0,
           "exo": -math.log(2) - math.log(0.001 * 0.999) / 2, "nca": 2 * math.log(2), "bco": 2 * math.log(2), "sppo": 2 * 500.0**2, "aot": math.log(2), "aot_unpaired": math.log(2),
           "apo_zero": 1.0, "apo_down": 1.0, "discopop": (math.log(2) + 1) / 2, "dpo_norm": math.log(2), "rdpo": math.log(2), "lddpo": math.log(2), "kto": 1.0, "beta_dpo": math.log(2),
           "fdpo_forward_kl": math.log(2), "fdpo_js": math.log(2), "fdpo_alpha": math.log(2), "odpo": math.log(2), "wpo": math.log(2)}


def at(points, settings=None, objective="dpo", extra=TOKENS, dtype=torch.float64):
    """Losses of several pairs at once."""
    columns = [torch.tensor(column, dtype=dtype) for column in zip(*points)]
    return preference_loss(*columns, objective, **{k: torch.full((len(points),), v, dtype=dtype) for k, v in extra.items()}, **(settings or {}))


@pytest.mark.parametrize("name", BY_HAND)
def test_hand_worked(name):
    settings, *expected = BY_HAND[name]
    assert at(POINTS, settings, name)[0].tolist() == pytest.approx(expected, abs=2e-7)


def test_whole_step_objectives_by_hand():
    """A, B and C together: w = 2, 0, -1 and l = -1, 0, -4."""
    def losses(name, **settings):
        return at(POINTS, settings, name)[0].tolist()

    def L(x):
        return math.log1p(math.exp(-x))
    # u = log pi(y_w) - log pi(y_l) = 4, 1, 6, sorted 1, 4, 6; the reference's v = 1, 1, 3: 1 - 1, 4 - 1, 6 - 3 = 0, 3, 3
    assert losses("aot", beta=0.1) == pytest.approx([L(0), L(0.3), L(0.3)])
    # w sorted -1, 0, 2 minus l sorted -4, -1, 0: 3, 1, 2
    assert losses("aot_unpaired", beta=0.1) == pytest.approx([L(0.3), L(0.1), L(0.2)])
    # z = max(0, mean(2, 0, -1, -1, 0, -4)) = 0: 1 - sigmoid(.1 w) + 1 - sigmoid(-.1 l)
    assert losses("kto", beta=0.1) == pytest.approx([(1 - sigmoid(0.1 * w)) + (1 - sigmoid(-0.1 * l)) for w, l in ((2, -1), (0, 0), (-1, -4))])
    # the first pair twice: z = mean(2, -1) = .5
    twice = at((POINTS[0], POINTS[0]), {"beta": 0.1}, "kto")[0].tolist()
    assert twice == pytest.approx([(1 - sigmoid(0.15)) + (1 - sigmoid(0.15))] * 2)
    # mean of D = (3 + 0 + 3) / 3 = 2, M = 1: beta' = .1 (1 + .6 (2 - 1)) = .16
    assert losses("beta_dpo", beta=0.1, alpha=0.6, mean=1.0) == pytest.approx([L(0.48), L(0), L(0.48)])


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_every_objective_has_its_numbers():
    assert set(BY_HAND) | WHOLE_STEP == set(OBJECTIVES)
    assert set(AT_ZERO) | REFERENCE_FREE | {"rpo"} == set(OBJECTIVES)


@pytest.mark.parametrize("name", AT_ZERO)
def test_where_policy_and_reference_are_equal(name):
    equal = ((-12.0, -13.0, -12.0, -13.0), (-3.0, -50.0, -3.0, -50.0))
    found = at(equal, {}, name, {"chosen_tokens": 4.0, "rejected_tokens": 4.0, "margin": 1.0, "on_policy": 0.0})
    expected = AT_ZERO[name] if name not in ("ipo", "ipo_norm") else 25.0
    assert found[0].tolist() == pytest.approx([expected] * 2)
    assert found[1].tolist() == found[2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in ("kto", "beta_dpo")])  # parts of these have no gradient on purpose: below
def test_gradients_by_finite_differences(name):
    settings = BY_HAND[name][0] if name in BY_HAND else {"beta": 0.1}
    columns = [torch.tensor(column, dtype=torch.float64) + shift for column, shift in zip(zip(*POINTS), (0.03, -0.02, 0.0, 0.01))]  # away from kinks and ties
    extra = {k: torch.full((3,), v, dtype=torch.float64) for k, v in TOKENS.items()}
    chosen, rejected = (c.clone().requires_grad_() for c in columns[:2])
    preference_loss(chosen, rejected, *columns[2:], name, **extra, **settings)[0].sum().backward()
    nothing = torch.zeros(3, dtype=torch.float64)  # NLL does not look at the rejected reply
    for side, grad in enumerate(nothing if c.grad is None else c.grad for c in (chosen, rejected)):
        for i in range(3):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [c.clone() for c in columns]
                moved[side][i] += step
                ends.append(preference_loss(*moved, name, **extra, **settings)[0].sum().item())
            assert grad[i].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-6, rel=1e-6), (side, i)


def test_the_detached_parts_have_no_gradient():
    """beta-DPO's slope is that of DPO at beta', taken as a constant: -beta' sigmoid(-beta' D)."""
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*POINTS)]
    columns[0].requires_grad_()
    preference_loss(*columns, "beta_dpo", beta=0.1, alpha=0.6, mean=1.0)[0].sum().backward()
    assert columns[0].grad.tolist() == pytest.approx([-0.16 * sigmoid(-0.16 * d) for d in (3, 0, 3)])
    # KTO with z = 0 held fixed: -beta s (1 - s), s = sigmoid(beta w)
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*POINTS)]
    columns[0].requires_grad_()
    preference_loss(*columns, "kto", beta=0.1)[0].sum().backward()
    assert columns[0].grad.tolist() == pytest.approx([-0.1 * sigmoid(0.1 * w) * (1 - sigmoid(0.1 * w)) for w in (2, 0, -1)])


def test_dpop_without_penalty_is_dpo_and_its_gradient_is_bounded():
    """For w < 0 the slope is -beta (1 + penalty) sigmoid(-z); the additive form's is -penalty - beta sigmoid(-beta D), 300 times DPO's."""
    assert torch.equal(at(POINTS, {"beta": 0.1, "penalty": 0.0}, "dpop")[0], at(POINTS, {"beta": 0.1}, "dpo")[0])
    chosen = torch.tensor([-0.1], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    preference_loss(chosen, zero - 0.1, zero, zero, "dpop", beta=0.3, penalty=50.0)[0].backward()
    assert chosen.grad.item() == pytest.approx(-0.3 * 51 * sigmoid(0.3 * 50 * 0.1))  # z = .3 (0 - 50 * .1) = -1.5: -12.51
    other = torch.tensor([-0.1], dtype=torch.float64, requires_grad=True)
    preference_loss(other, zero - 0.1, zero, zero, "dpop_additive", beta=0.3, penalty=50.0)[0].backward()
    assert other.grad.item() == pytest.approx(-50 - 0.15)


def test_limits_and_relatives():
    dpo = at(POINTS, {"beta": 0.1}, "dpo")[0]
    assert torch.allclose(at(POINTS, {"beta": 0.1, "alpha": 1e-9}, "fdpo_alpha")[0], dpo, atol=1e-6)
    assert torch.allclose(at(POINTS, {"beta": 0.1, "alpha": 1 - 1e-12}, "fdpo_alpha")[0], at(POINTS, {"beta": 0.1}, "fdpo_forward_kl")[0])
    for name in ("cdpo", "robust"):
        assert torch.allclose(at(POINTS, {"beta": 0.1, "label_smoothing": 0.0}, name)[0], dpo)
    # robust is unbiased: over labels flipped with probability .1 its mean is DPO's loss on clean ones
    flipped = [(l, w, rl, rw) for w, l, rw, rl in POINTS]
    mean = 0.9 * at(POINTS, {"beta": 0.1, "label_smoothing": 0.1}, "robust")[0] + 0.1 * at(flipped, {"beta": 0.1, "label_smoothing": 0.1}, "robust")[0]
    assert torch.allclose(mean, dpo)


def test_sums_are_linear_and_parsed():
    assert parse("dpo + 0.2 nll") == {"dpo": 1.0, "nll": 0.2} and parse("0.5*ipo+2 hinge") == {"ipo": 0.5, "hinge": 2.0}
    both = at(POINTS, {"beta": 0.1}, "dpo + 0.2 nll")
    assert torch.allclose(both[0], at(POINTS, {"beta": 0.1}, "dpo")[0] + 0.2 * at(POINTS, {}, "nll")[0])
    assert torch.equal(both[1], at(POINTS, {"beta": 0.1}, "dpo")[1])
    for bad in ("", "dop", "dpo + dpo", "dpo +", "2", "dpo - nll"):
        with pytest.raises(ValueError, match="unknown objective"):
            parse(bad)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_order_and_company(name):
    """The sum does not depend on the order of pairs; without WHOLE_STEP, a pair's loss does not depend on the others."""
    g = torch.Generator().manual_seed(0)
    columns = [-20 * torch.rand(6, generator=g, dtype=torch.float64) - 1 for _ in range(4)]
    extra = {"chosen_tokens": torch.arange(3.0, 9.0), "rejected_tokens": torch.arange(9.0, 3.0, -1), "margin": torch.arange(1.0, 7.0), "on_policy": -torch.arange(6.0)}
    whole = preference_loss(*columns, name, **extra)[0]
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    mixed = preference_loss(*(c[order] for c in columns), name, **{k: v[order] for k, v in extra.items()})[0]
    assert torch.allclose(whole.sum(), mixed.sum())
    if name in WHOLE_STEP:
        with pytest.raises(ValueError, match="needs at least two"):
            preference_loss(*(c[:1] for c in columns), name, **{k: v[:1] for k, v in extra.items()})
    else:
        alone = torch.cat([preference_loss(*(c[i:i + 1] for c in columns), name, **{k: v[i:i + 1] for k, v in extra.items()})[0] for i in range(6)])
        assert torch.equal(whole, alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_extreme_log_ratios_stay_finite(name, dtype):
    sizes = (0.0, 1e-3, 30.0, 1e4)
    points = [(a - 1, b - 1, -1.0, -1.0) for a in sizes for b in sizes] + [(-1.0 - a, -1.0 - b, -1.0, -1.0) for a in sizes for b in sizes] + \
             [(-1e4, 0.0, 0.0, -1e4), (0.0, -1e4, -1e4, 0.0)]
    columns = [torch.tensor(column, dtype=dtype) for column in zip(*points)]
    if name in REFERENCE_FREE:
        columns[0], columns[1] = columns[0].clamp(max=0), columns[1].clamp(max=0)  # log-probabilities
    columns[0].requires_grad_(), columns[1].requires_grad_()
    extra = {"chosen_tokens": 5.0, "rejected_tokens": 4.0, "margin": 2.0, "on_policy": -0.5}
    losses = preference_loss(*columns, name, **{k: torch.full((len(points),), v) for k, v in extra.items()})[0]
    losses.sum().backward()
    assert losses.dtype == torch.float32 and losses.isfinite().all() and all(c.grad is None or c.grad.isfinite().all() for c in columns[:2])


@pytest.mark.parametrize("objective", ["aot", "aot_unpaired", "kto", "beta_dpo", "dpo", "kto + 0.5 dpo"])
def test_a_step_in_pieces_is_one_big_batch(objective):
    """A linear scorer of 8 weights: scored without gradient, differentiated as a whole, backpropagated in pieces of 3, 1 and 4 pairs."""
    g = torch.Generator().manual_seed(0)
    x_w, x_l = (torch.randn(8, 8, generator=g, dtype=torch.float64) for _ in range(2))
    ref = [torch.randn(8, generator=g, dtype=torch.float64) for _ in range(2)]
    theta = torch.randn(8, generator=g, dtype=torch.float64, requires_grad=True)
    preference_loss(x_w @ theta, x_l @ theta, *ref, objective)[0].mean().backward()
    whole, theta.grad = theta.grad, None
    with torch.no_grad():
        losses, to_chosen, to_rejected = step_gradients(make_pairs(x_w @ theta, x_l @ theta, *ref), objective, {})
    for part in (slice(0, 3), slice(3, 4), slice(4, 8)):
        ((x_w[part] @ theta * to_chosen[part]).sum() + (x_l[part] @ theta * to_rejected[part]).sum()).backward()
    assert (theta.grad - whole).abs().max() < 1e-10 and not losses.requires_grad


def test_running_means_go_in_and_out():
    p = make_pairs(*(torch.tensor(column) for column in zip(*POINTS)))
    # rewards .1 w and .1 l: means .1 / 3 and -.5 / 3; half their sum -.2 / 3 = -.066667; .99 * .5 - .01 * .066667 = .494333
    assert next_state(p, "bco", {"beta": 0.1}, {"shift": 0.5})["shift"] == pytest.approx(0.4943333)
    # .9 * 1 + .1 * 2 = 1.1
    assert next_state(p, "beta_dpo", {}, {"mean": 1.0})["mean"] == pytest.approx(1.1)
    assert next_state(p, "dpo", {}, {}) == {} and set(next_state(p, "bco", {}, {})) == {"shift"}


def test_rewards_carry_no_gradient_and_follow_the_objective():
    columns = [torch.tensor(column, dtype=torch.float64, requires_grad=True) for column in zip(*POINTS)]
    for name, expected in (("dpo", 0.2), ("dpo_norm", 5 * 2 / 5), ("simpo", 2 * -10 / 5), ("cpo", -1.0)):
        _, chosen, rejected = preference_loss(*columns, name, chosen_tokens=torch.full((3,), 5.0), rejected_tokens=torch.full((3,), 4.0))
        assert not chosen.requires_grad and not rejected.requires_grad and chosen[0].item() == pytest.approx(expected), name


@pytest.mark.parametrize("objective, settings", [("dop", {}), ("dpo", {"beta": 0.0}), ("cdpo", {"label_smoothing": 0.5}), ("dpop", {"penalty": -1.0}), ("dpo", {"gamma": 1.0}),
                                                 ("exo", {"label_smoothing": 0.0}), ("fdpo_alpha", {"alpha": 1.0}), ("discopop", {"tau": 0.0}), ("nll", {"beta": 0.1})])
def test_senseless_settings_are_refused(objective, settings):
    x = torch.zeros(2)
    with pytest.raises(ValueError):
        preference_loss(x, x, x, x, objective, **settings)


def test_every_docstring_names_formula_source_and_cost():
    for name, function in OBJECTIVES.items():
        text = function.__doc__
        assert "Cost" in text or name in ("lddpo", "nll", "dpop_additive"), name
        assert any(year in text for year in ("2023", "2024")) or name in ("ipo_norm", "nll", "dpop_additive"), name
    assert PENALISED <= set(OBJECTIVES) and obj.NEXT_STATE.keys() <= set(OBJECTIVES)


def test_discopop_points_the_wrong_way_at_the_start():
    """By hand: d/dx [(1 - m) L(x) + m e^-x] at 0 = -1/2 (1/2) - 1/2 + m' (1 - ln 2), m' = 1 / (4 tau)."""
    for tau in (0.05, 0.11, 0.2):
        chosen = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        zero = torch.zeros(1, dtype=torch.float64)
        preference_loss(chosen, zero, zero, zero, "discopop", beta=1.0, tau=tau)[0].backward()
        assert chosen.grad.item() == pytest.approx((1 - math.log(2)) / (4 * tau) - 0.75, abs=1e-9)
        assert (chosen.grad.item() > 0) == (tau < 0.1023)


@pytest.mark.parametrize("name", ["fdpo_forward_kl", "fdpo_alpha"])
@pytest.mark.parametrize("ratio", [-45.0, -70.0, -200.0])
def test_trap_a_collapsed_reply_is_still_pushed_back_and_no_gradient_overflows(name, ratio):
    """Cutting the exponent at 60 gave a slope of 5e20 below the cut, whose square is no float32, and none at all beyond it."""
    chosen = torch.tensor([ratio - 1], requires_grad=True)
    preference_loss(chosen, *torch.tensor([[-1.0], [-1.0], [-1.0]]), name)[0].sum().backward()
    assert chosen.grad.item() < -1 and (1e6 * chosen.grad).norm().isfinite()
