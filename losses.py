"""The objectives, as pure functions of log-probs. Every log-prob is a sum over the tokens of one reply, in nats, float32, shape [P].

Here are the ones to begin with; more_losses.py has the others by family, objectives.py the table of all and `preference_loss`.
"""
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def sft_loss(logps: Tensor, count: int) -> Tensor:
    """Negative log-likelihood, nats per token: -sum(logps) / count. logps [N] of this micro-batch's scored tokens.

    `count` is the number of scored tokens in the whole optimizer step, not in this micro-batch: averaging micro-batch averages
    would weigh a token by the company it keeps.
    """
    return -logps.sum() / count


def reward_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(r_w - r_l) per pair [P], from a reward model's scores [P] of both replies (Bradley & Terry 1952; Ouyang et al. 2022, eq. 1).

    Only differences within a prompt are learnt: a constant added to every score of a prompt changes nothing. ln 2 for equal scores.
    """
    return -F.logsigmoid(chosen - rejected)


@dataclass(frozen=True)
class Pairs:
    """What an objective may look at, [P] each. The papers' letters: y_w is the chosen reply, y_l the rejected one."""
    chosen: Tensor                          # log pi(y_w | x), summed over tokens
    rejected: Tensor                        # log pi(y_l | x)
    ref_chosen: Tensor                      # log pi_ref(y_w | x)
    ref_rejected: Tensor                    # log pi_ref(y_l | x)
    chosen_tokens: Tensor | None = None     # |y_w|, end-of-text included
    rejected_tokens: Tensor | None = None   # |y_l|
    margin: Tensor | None = None            # how much better y_w is, in somebody's scores (ODPO)
    on_policy: Tensor | None = None         # log of how likely the policy is to write such a pair itself (WPO)

    @property
    def w(self) -> Tensor:
        """Log-ratio of the chosen reply, log pi(y_w) - log pi_ref(y_w)."""
        return self.chosen - self.ref_chosen

    @property
    def l(self) -> Tensor:  # noqa: E743  the papers' letter
        """Log-ratio of the rejected reply."""
        return self.rejected - self.ref_rejected

    @property
    def delta(self) -> Tensor:
        """w - l: by how much more the policy prefers y_w than the reference does. The implicit reward margin is beta times this."""
        return self.w - self.l


# Below, D = w - l. At w = l = 0, where every fresh run starts, each loss has a constant that its docstring names.

def dpo(p: Pairs, beta: float = 0.1) -> Tensor:
    """-log sigmoid(beta D). Rafailov et al. 2023, eq. 7; beta .1 from its appendix B. ln 2 at 0.

    Maximum likelihood of the preferences under a reward beta log(pi / pi_ref). Cost: nothing stops both replies from becoming less
    likely as long as the rejected one falls faster.
    """
    return -F.logsigmoid(beta * p.delta)


def cdpo(p: Pairs, beta: float = 0.1, label_smoothing: float = 0.1) -> Tensor:
    """-(1 - e) log sigmoid(beta D) - e log sigmoid(-beta D). Mitchell 2023, "A note on DPO with noisy preferences". ln 2 at 0.

    e = label_smoothing is the share of flipped labels one expects; .1 is a guess to be replaced by it. Its minimum is a finite margin,
    D = log((1 - e) / e) / beta, so a sure pair is not pushed forever. Cost: biased towards indifference; `robust` is not.
    """
    return -(1 - label_smoothing) * F.logsigmoid(beta * p.delta) - label_smoothing * F.logsigmoid(-beta * p.delta)


def ipo(p: Pairs, beta: float = 0.1) -> Tensor:
    """(D - 1 / (2 beta))^2. Azar et al. 2023, eq. 17 (beta is their tau), on summed log-probs as written there. 1 / (4 beta^2) at 0.

    A target instead of a slope: the margin goes to 1 / (2 beta) and stays. Cost: one target for replies of all lengths; `ipo_norm`
    is the per-token form that its authors' experiments are said to have used, a different objective.
    """
    return (p.delta - 1 / (2 * beta)) ** 2


def hinge(p: Pairs, beta: float = 0.1) -> Tensor:
    """max(0, 1 - beta D). SLiC (Zhao et al. 2023) with the reference in the margin, as in RSO (Liu et al. 2023). 1 at 0.

    Pairs beyond the margin have no gradient at all. Cost: nor do they hold what they reached.
    """
    return torch.relu(1 - beta * p.delta)


def dpop(p: Pairs, beta: float = 0.3, penalty: float = 50.0) -> Tensor:
    """-log sigmoid(beta (D - penalty max(0, -w))). Pal et al. 2024 ("Smaug"), eq. 3 as corrected in July 2024; its beta and lambda. ln 2 at 0.

    The penalty, inside the sigmoid and times beta, pays for a chosen reply that becomes less likely than under the reference, which DPO
    does to pairs that differ in few tokens. Penalty 0 is DPO. Cost: the chosen reply is the one that must be right.
    """
    return -F.logsigmoid(beta * (p.delta - penalty * torch.relu(-p.w)))


def simpo(p: Pairs, beta: float = 2.0, gamma: float = 1.0) -> Tensor:
    """-log sigmoid(beta (log pi(y_w) / |y_w| - log pi(y_l) / |y_l|) - gamma). Meng et al. 2024, eq. 6; beta 2 and gamma .5 beta as it suggests.

    Ranks by the mean log-prob that decoding follows, without a reference: half the work, no length bonus. At equal mean log-probs
    -log sigmoid(-gamma). Cost: nothing ties the policy to where it started but a small learning rate.
    """
    return -F.logsigmoid(beta * (p.chosen / p.chosen_tokens - p.rejected / p.rejected_tokens) - gamma)


def kto(p: Pairs, beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0) -> Tensor:
    """desirable (1 - sigmoid(beta (w - z))) + undesirable (1 - sigmoid(beta (z - l))). Ethayarajh et al. 2024, eq. 8, both replies of a pair. 1 at 0.

    z = max(0, mean log-ratio of the step), without gradient: a reply is good or bad against the policy's average drift, so the two need
    not be compared. Theirs takes that mean over mismatched prompts and replies, a further forward pass; here it is over the replies at hand.
    Cost: needs a whole step at once, and more than one pair of it.
    """
    z = torch.cat([p.w, p.l]).mean().clamp(min=0).detach()
    return desirable * (1 - torch.sigmoid(beta * (p.w - z))) + undesirable * (1 - torch.sigmoid(beta * (z - p.l)))
