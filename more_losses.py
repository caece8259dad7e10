"""More objectives, by family. losses.py has `Pairs`, the letters w, l and D = w - l, and the objectives to begin with.

Each docstring: formula, source, where its defaults come from, its value at w = l = 0, what it fixes, what it costs.
"""
import torch
from torch import Tensor
from torch.nn import functional as F

from losses import Pairs, dpo


# ---- noisy labels ---------------------------------------------------------------------------------------------------

def robust(p: Pairs, beta: float = 0.1, label_smoothing: float = 0.1) -> Tensor:
    """(-(1 - e) log sigmoid(beta D) + e log sigmoid(-beta D)) / (1 - 2 e). Chowdhury et al. 2024, eq. 12; e as in cdpo. ln 2 at 0.

    Unbiased: its mean over labels flipped with probability e is DPO's loss on clean ones. Cost: single losses may be negative, and
    the variance grows as e nears one half.
    """
    e = label_smoothing
    return (-(1 - e) * F.logsigmoid(beta * p.delta) + e * F.logsigmoid(-beta * p.delta)) / (1 - 2 * e)


def exo(p: Pairs, beta: float = 0.1, label_smoothing: float = 1e-3) -> Tensor:
    """KL of (q, 1 - q) from (1 - e, e), q = sigmoid(beta D). Ji et al. 2024, eq. 16 for two replies; e 1e-3 as there. -ln 2 - ln(e (1 - e)) / 2 at 0.

    DPO minimises that KL the other way round; this direction seeks the mode. Cost: e > 0 decides how steep it is, and the gradient
    vanishes on pairs that are badly wrong.
    """
    good, bad = F.logsigmoid(beta * p.delta), F.logsigmoid(-beta * p.delta)
    e = torch.tensor(label_smoothing, dtype=good.dtype, device=good.device)
    return good.exp() * (good - torch.log1p(-e)) + bad.exp() * (bad - e.log())


# ---- length ---------------------------------------------------------------------------------------------------------

def ipo_norm(p: Pairs, beta: float = 0.1) -> Tensor:
    """(w / |y_w| - l / |y_l| - 1 / (2 beta))^2: IPO with log-ratios per token, the form most libraries run. 1 / (4 beta^2) at 0.

    One target for replies of all lengths. Cost: beta means something else than in `ipo`, by a factor of the reply length.
    """
    return (p.w / p.chosen_tokens - p.l / p.rejected_tokens - 1 / (2 * beta)) ** 2


def dpo_norm(p: Pairs, beta: float = 5.0) -> Tensor:
    """-log sigmoid(beta (w / |y_w| - l / |y_l|)). Lambert et al. 2024 (Tulu 3), eq. 6; beta 5 as there. ln 2 at 0.

    Takes the bonus for long replies out of DPO. Cost: beta is per token and so about a hundred times DPO's.
    """
    return -F.logsigmoid(beta * (p.w / p.chosen_tokens - p.l / p.rejected_tokens))


def rdpo(p: Pairs, beta: float = 0.1, alpha: float = 0.01) -> Tensor:
    """-log sigmoid(beta D + alpha (|y_w| - |y_l|)). Park et al. 2024, eq. 9. alpha, nats per token, is to be tuned: .01 is a small one. ln 2 for equal lengths at 0.

    A reward that pays for length: where y_w is longer its victory counts less. Cost: one rate for all prompts.
    """
    return -F.logsigmoid(beta * p.delta + alpha * (p.chosen_tokens - p.rejected_tokens))


def lddpo(p: Pairs, beta: float = 0.1, alpha: float = 0.5) -> Tensor:
    """DPO on log-probs whose tokens beyond the shorter reply's length weigh alpha < 1. Liu et al. 2024, eq. 9; alpha to be tuned, .5 is halfway. ln 2 at 0.

    Less reward for mere length. alpha enters where tokens are summed (batching.tail_weights), for policy and reference alike (some public
    trainers weigh the policy alone, and start with a margin that is the length): here nothing is left to do. Cost: a longer reply's late tokens
    count less even where the answer is there.
    """
    return dpo(p, beta)


# ---- absolute instead of relative -----------------------------------------------------------------------------------

def nca(p: Pairs, beta: float = 0.01) -> Tensor:
    """-log sigmoid(beta w) - (log sigmoid(-beta w) + log sigmoid(-beta l)) / 2. Chen et al. 2024, NCA for two replies; beta .01 as there. 2 ln 2 at 0.

    Asks for a high chosen log-prob itself, not only for a margin. Cost: the second term holds w back as soon as it rises.
    """
    return -F.logsigmoid(beta * p.w) - 0.5 * F.logsigmoid(-beta * p.w) - 0.5 * F.logsigmoid(-beta * p.l)


def bco(p: Pairs, beta: float = 0.01, shift: float = 0.0) -> Tensor:
    """-log sigmoid(beta w - d) - log sigmoid(d - beta l). Jung et al. 2024, eq. 12; beta .01 as there. 2 ln 2 at 0 and d = 0.

    A classifier of good and bad whose threshold d = `shift` is the running mean of all rewards (`bco_shift`). Cost: a state. Leaving
    it out, as some libraries do, makes another loss.
    """
    return -F.logsigmoid(beta * p.w - shift) - F.logsigmoid(shift - beta * p.l)


def sppo(p: Pairs, beta: float = 1e-3) -> Tensor:
    """(w - 1 / (2 beta))^2 + (l + 1 / (2 beta))^2. Wu et al. 2024, eq. 4.7 with win probabilities 1 and 0; 1 / beta is its eta = 1e3. 1 / (2 beta^2) at 0.

    Each reply has a target of its own. Cost: meant for many rounds on own replies with estimated probabilities; beta this small means far targets.
    """
    return (p.w - 1 / (2 * beta)) ** 2 + (p.l + 1 / (2 * beta)) ** 2


def apo_zero(p: Pairs, beta: float = 0.1) -> Tensor:
    """1 - sigmoid(beta w) + sigmoid(beta l). D'Oosterlinck et al. 2024, eq. 7; beta .1 as there. 1 at 0.

    Chosen up, rejected down, each by itself: for chosen replies better than the model's own. Cost: pairs far on the wrong side have no gradient.
    """
    return 1 - torch.sigmoid(beta * p.w) + torch.sigmoid(beta * p.l)


def apo_down(p: Pairs, beta: float = 0.1) -> Tensor:
    """sigmoid(beta w) + 1 - sigmoid(beta D). D'Oosterlinck et al. 2024, eq. 8. 1 at 0.

    Both down, the rejected one more: for chosen replies worse than the model's own. Cost: never use it where they are better.
    """
    return torch.sigmoid(beta * p.w) + 1 - torch.sigmoid(beta * p.delta)


# ---- distributions of a whole step ----------------------------------------------------------------------------------

def aot(p: Pairs, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """cdpo of the sorted u = log pi(y_w) - log pi(y_l) minus the sorted v, the reference's. Melnyk et al. 2024, eq. 4.2 (paired). ln 2 at 0.

    The i-th smallest margin should exceed the reference's i-th smallest: dominance in distribution instead of pair by pair. Returned in
    order of rank. Cost: needs a large step; with one pair it is DPO.
    """
    return _smoothed(beta * ((p.chosen - p.rejected).sort().values - (p.ref_chosen - p.ref_rejected).sort().values), label_smoothing)


def aot_unpaired(p: Pairs, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """cdpo of the sorted w minus the sorted l. Melnyk et al. 2024, eq. 4.4 (unpaired). ln 2 at 0.

    All chosen replies against all rejected ones; prompts need not be shared. Cost: as `aot`, and prompts differ in difficulty.
    """
    return _smoothed(beta * (p.w.sort().values - p.l.sort().values), label_smoothing)


def _smoothed(x: Tensor, label_smoothing: float) -> Tensor:
    return -(1 - label_smoothing) * F.logsigmoid(x) - label_smoothing * F.logsigmoid(-x)


def beta_dpo(p: Pairs, beta: float = 0.1, alpha: float = 0.6, mean: float = 0.0) -> Tensor:
    """DPO with beta' = beta max(.01, 1 + alpha (mean of D - M)). Wu et al. 2024, eq. 8; alpha .6 as in its runs. ln 2 at 0.

    M = `mean` is the running mean of D over the steps before (`beta_dpo_mean`; public code counts the present one in first), beta' has no gradient:
    a step of easy pairs is trained more cautiously. The least beta' is not the paper's: its code has one, of another size. Its second half, dropping
    outlying pairs, is left to the data. Cost: a state, and a whole step at once.
    """
    scale = (1 + alpha * (p.delta.mean() - mean)).clamp(min=0.01).detach()
    return -F.logsigmoid(beta * scale * p.delta)


def bco_shift(p: Pairs, beta: float = 0.01, shift: float = 0.0, momentum: float = 0.99) -> float:
    """BCO's threshold after this step: running mean of the rewards beta w and beta l (Jung et al. 2024, section 4.3), from 0.

    With momentum .99 it has gone 55 % of the way to a constant reward after 80 steps.
    """
    return momentum * shift + (1 - momentum) * 0.5 * beta * (p.w.mean() + p.l.mean()).item()


def beta_dpo_mean(p: Pairs, mean: float = 0.0, momentum: float = 0.9) -> float:
    """beta-DPO's M after this step: running mean of D with momentum .9 (Wu et al. 2024, eq. 7)."""
    return momentum * mean + (1 - momentum) * p.delta.mean().item()


# ---- other shapes ---------------------------------------------------------------------------------------------------

def discopop(p: Pairs, beta: float = 0.1, tau: float = 0.05) -> Tensor:
    """(1 - m) (-log sigmoid(x)) + m exp(-x), x = beta D, m = sigmoid(x / tau). Lu et al. 2024, eq. 5; tau .05 as there. (ln 2 + 1) / 2 at 0.

    Found by a language model that proposed losses. Cost: not convex. Where every run starts its slope is (1 - ln 2) / (4 tau) - 3 / 4, at
    tau .05 upwards: small steps from x = 0 learn the *opposite* preference (results/sweeps/objectives). tau above .102 turns the sign.
    """
    x = beta * p.delta
    # m exp(-x) in one exponent: for x of -1,000 they are 0 and infinity
    return -torch.sigmoid(-x / tau) * F.logsigmoid(x) + (F.logsigmoid(x / tau) - x).exp()


LARGEST_EXPONENT = 30.0  # where exp goes on as a straight line: in float32 a gradient's norm squares slopes of 1e13, times that of the log-probs


def fdpo_forward_kl(p: Pairs, beta: float = 0.1) -> Tensor:
    """-log sigmoid(beta (exp(-l) - exp(-w))). Wang et al. 2023, table 1: f'(u) = -1 / u in place of DPO's log u. ln 2 at 0.

    Covers the reference instead of seeking its modes. Cost: explodes when a reply becomes much less likely; beyond an exponent of 30 exp goes on as a straight line.
    """
    return -F.logsigmoid(beta * (_exp(-p.l) - _exp(-p.w)))


def fdpo_js(p: Pairs, beta: float = 0.1) -> Tensor:
    """-log sigmoid(beta (log sigmoid(w) - log sigmoid(l))). Wang et al. 2023, table 1: f'(u) = log(2 u / (1 + u)). ln 2 at 0.

    Bounded gain for the chosen reply, unbounded loss for the rejected one. Cost: w stops mattering once it is well above 0.
    """
    return -F.logsigmoid(beta * (F.logsigmoid(p.w) - F.logsigmoid(p.l)))


def fdpo_alpha(p: Pairs, beta: float = 0.1, alpha: float = 0.5) -> Tensor:
    """-log sigmoid(beta (exp(-alpha l) - exp(-alpha w)) / alpha). Wang et al. 2023, table 1: f'(u) = (1 - u^-alpha) / alpha, 0 < alpha < 1. ln 2 at 0.

    Between DPO (alpha -> 0) and forward KL (alpha -> 1). Cost: a further knob; beyond an exponent of 30 exp goes on as a straight line.
    """
    return -F.logsigmoid(beta * (_exp(-alpha * p.l) - _exp(-alpha * p.w)) / alpha)


def _exp(x: Tensor) -> Tensor:
    return x.clamp(max=LARGEST_EXPONENT).exp() * (1 + torch.relu(x - LARGEST_EXPONENT))


# ---- with a likelihood term, with weights ---------------------------------------------------------------------------

def nll(p: Pairs) -> Tensor:
    """-log pi(y_w) / |y_w|, nats per token: SFT on the chosen reply, as a term of a weighted sum. Reference-free."""
    return -p.chosen / p.chosen_tokens


def rpo(p: Pairs, beta: float = 0.1, alpha: float = 1.0) -> Tensor:
    """DPO + alpha NLL per token of y_w. Pang et al. 2024 (Iterative RPO), eq. 1; alpha 1 as there. ln 2 + alpha NLL at 0.

    Keeps the chosen reply likely. Cost: also where the model has something better to say.
    """
    return dpo(p, beta) + alpha * nll(p)


def cpo(p: Pairs, beta: float = 0.1, alpha: float = 1.0) -> Tensor:
    """-log sigmoid(beta (log pi(y_w) - log pi(y_l))) + alpha NLL per token of y_w. Xu et al. 2024, eq. 5 and 6, where the NLL is a sum; per token as in its code. beta .1 as there. Reference-free.

    DPO with a uniform reference, held by the likelihood of y_w. Cost: a pair's start is not ln 2 but what the model thinks of it.
    """
    return -F.logsigmoid(beta * (p.chosen - p.rejected)) + alpha * nll(p)


def orpo(p: Pairs, alpha: float = 0.1) -> Tensor:
    """NLL per token of y_w - alpha log sigmoid(log odds(y_w) - log odds(y_l)), odds = q / (1 - q), q = exp(log pi / |y|). Hong et al. 2024, eq. 6 and 7; alpha is its lambda. Reference-free.

    SFT and preference in one stage. At equal mean log-probs NLL + alpha ln 2. Cost: alpha balances two jobs.
    """
    w, l = (logps.clamp(max=-1e-6) for logps in (p.chosen / p.chosen_tokens, p.rejected / p.rejected_tokens))  # odds of 1 are infinite
    odds = (w - torch.log(-torch.expm1(w))) - (l - torch.log(-torch.expm1(l)))
    return nll(p) - alpha * F.logsigmoid(odds)


def odpo(p: Pairs, beta: float = 0.1, alpha: float = 1.0) -> Tensor:
    """-log sigmoid(beta D - alpha log(margin)). Amini et al. 2024, eq. 8 with f = log; alpha 1 as there. ln 2 at 0 and margin 1.

    A reply that is much better must win by more. Cost: needs scores (margin > 0), and believes their scale.
    """
    return -F.logsigmoid(beta * p.delta - alpha * p.margin.log())


def wpo(p: Pairs, beta: float = 0.1) -> Tensor:
    """min(1, v(y_w) v(y_l)) (-log sigmoid(beta D)), v(y) = exp(mean over tokens of log pi(y_t) - log sum_v pi(v)^2). Zhou et al. 2024, eq. 2 and 5. Weight x ln 2 at 0.

    Pairs the policy might have written itself count more; the weight has no gradient. Cost: the head must sum the squares of all probabilities.
    """
    return p.on_policy.clamp(max=0).exp().detach() * dpo(p, beta)


def dpop_additive(p: Pairs, beta: float = 0.3, penalty: float = 50.0) -> Tensor:
    """-log sigmoid(beta D) + penalty max(0, -w): the form of DPOP found in public code, with the penalty outside the sigmoid and not scaled by beta. ln 2 at 0.

    Not the paper's (`dpop`). With penalty 50 its gradient at the slightest drop is 330 times DPO's and drowns everything else; kept to reproduce such runs.
    """
    return dpo(p, beta) + penalty * torch.relu(-p.w)
