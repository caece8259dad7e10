"""The hand-written last layer against autograd through whole logits."""
import pytest
import torch

import head
from head import TokenLogps, log_square_sums

N, C, V = 23, 16, 97


@pytest.fixture
def inputs():
    g = torch.Generator().manual_seed(1)
    x, w = torch.randn(N, C, generator=g, dtype=torch.float64), torch.randn(V, C, generator=g, dtype=torch.float64)
    return x, w, torch.randint(V, (N,), generator=g), torch.randn(N, generator=g, dtype=torch.float64)


def gradients(logps_of, x, w, targets, upstream):
    """(log-probs, dx, dw) of a loss with gradient `upstream` [N]."""
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    logps = logps_of(x, w, targets)
    (logps * upstream).sum().backward()
    return logps.detach(), x.grad, w.grad


def plain(x, w, targets):
    return (x @ w.T).log_softmax(1)[torch.arange(len(targets)), targets]


@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize("same", [False, True])
def test_values_and_gradients_are_autograds(inputs, monkeypatch, chunk, same):
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", V * chunk)
    x, w, targets, upstream = inputs
    if same:
        upstream = torch.full_like(upstream, -1 / 7)
    for got, expected in zip(gradients(lambda *a: TokenLogps.apply(*a, same), x, w, targets, upstream), gradients(plain, x, w, targets, upstream), strict=True):
        assert torch.allclose(got, expected, rtol=1e-12, atol=1e-13)


def test_gradcheck(inputs):
    x, w, targets, _ = inputs
    x, w = x[:4, :3].clone().requires_grad_(), w[:9, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: TokenLogps.apply(x, w, targets[:4] % 9, False), (x, w))


def test_a_broken_promise_is_an_error(inputs):
    x, w, targets, upstream = inputs
    with pytest.raises(RuntimeError, match="same_gradient was promised"):
        gradients(lambda *a: TokenLogps.apply(*a, True), x, w, targets, upstream)


def test_autocast_rounds_the_gradient_but_not_the_log_probs(inputs):
    x, w, targets, upstream = (t.float() if t.is_floating_point() else t for t in inputs)
    for same in (False, True):
        up = torch.full_like(upstream, 0.3) if same else upstream
        exact = gradients(plain, x, w, targets, up)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = gradients(lambda *a: TokenLogps.apply(*a, same), x, w, targets, up)
        assert torch.allclose(got[0], exact[0], atol=1e-5)
        for a, b in zip(got[1:], exact[1:], strict=True):
            assert 0 < ((a - b).norm() / b.norm()).item() < 0.01


def test_logits_far_from_zero_do_not_spoil_a_bf16_gradient():
    """GPT-2's logits lie near -100, where bf16 has steps of a half. A shift common to all must cost nothing."""
    torch.manual_seed(0)
    x, w = torch.randn(200, 32) + 2.0, torch.randn(500, 32) * 0.3
    targets, up = torch.randint(500, (200,)), torch.rand(200)
    gaps = []
    for shift in (0.0, -2.0):  # x . shift is about -128
        exact = gradients(plain, x.double(), (w + shift).double(), targets, up.double())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = gradients(lambda *a: TokenLogps.apply(*a, False), x, w + shift, targets, up)
        gaps.append(((got[2] - exact[2]).norm() / exact[2].norm()).item())
    assert gaps[1] < 2 * gaps[0] < 0.02


def test_a_sure_target_keeps_a_small_gradient():
    """Where p is near 1, p - 1 in bf16 would be 0 or 1/256: it is taken from the log-prob instead."""
    x, w = torch.tensor([[8.0]], requires_grad=True), torch.tensor([[1.0], [0.0]], requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        TokenLogps.apply(x, w, torch.tensor([0]), False).sum().backward()
    expected = torch.sigmoid(torch.tensor(-8.0)) * 8  # d logp / d w0 = x (1 - p)
    assert torch.allclose(w.grad[0], expected, rtol=0.01)


def test_nothing_of_logit_size_is_kept():
    """Saved for the backward pass: inputs and one number per row, or the two gradients; never [N, V]."""
    n, v = 64, 4096
    x, w = torch.randn(n, 8, requires_grad=True), torch.randn(v, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        for same in (False, True):
            TokenLogps.apply(x, w, torch.zeros(n, dtype=torch.long), same).sum().backward()
    assert kept and max(kept) <= v * 8


def test_sums_of_squares(inputs, monkeypatch):
    """log of sum p^2: -ln V for equal logits, near 0 for a sure token."""
    x, w, _, _ = (t.float() if t.is_floating_point() else t for t in inputs)
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", V * 4)
    assert torch.allclose(log_square_sums(x, w), (x @ w.T).softmax(1).square().sum(1).log(), atol=1e-5)
    assert torch.allclose(log_square_sums(torch.zeros(1, C), w), -torch.tensor(float(V)).log())


@pytest.mark.parametrize("same_gradient", [False, True])
def test_a_frozen_head_gets_no_gradient_and_changes_nothing_else(same_gradient):
    torch.manual_seed(0)
    weight, targets = torch.randn(50, 8), torch.randint(0, 50, (7,))
    found = []
    for trained in (True, False):
        x, w = torch.linspace(-1, 1, 56).view(7, 8).requires_grad_(), weight.clone().requires_grad_(trained)
        TokenLogps.apply(x, w, targets, same_gradient).sum().backward()
        found.append(x.grad)
        assert (w.grad is not None) == trained
    assert torch.equal(*found)
