"""The objectives, as pure functions of log-probs. Every log-prob is a sum over the tokens of one reply, in nats, float32, shape [P]."""
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


def preference_loss(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, reference_chosen_logps: Tensor,
                    reference_rejected_logps: Tensor, objective: str = "dpo", beta: float = 0.1, label_smoothing: float = 0.0,
                    penalty: float = 5.0) -> tuple[Tensor, Tensor, Tensor]:
    """(losses, chosen_rewards, rejected_rewards), [P] each; the rewards carry no gradient and are in units of 1 (nats x beta).

    With the log-ratios w = log pi(y_w|x) - log pi_ref(y_w|x) and l, likewise, of the rejected reply, and the margin D = w - l:

    dpo    -log sigmoid(beta D)                                          Rafailov et al. 2023, eq. 7. ln 2 at D = 0.
    cdpo   -(1 - e) log sigmoid(beta D) - e log sigmoid(-beta D)         Mitchell 2023; e = label_smoothing, the share of flipped labels.
                                                                         Its minimum is a finite margin, log((1 - e) / e) / beta.
    ipo    (D - 1 / (2 beta))^2                                          Azar et al. 2023, eq. 17, on summed log-probs. Bounds the margin.
    hinge  max(0, 1 - beta D)                                            SLiC (Zhao et al. 2023) with RSO's normalisation (Liu et al. 2023).
    dpop   -log sigmoid(beta (D - penalty * max(0, -w)))                 Pal et al. 2024, eq. 3: the penalty sits inside the sigmoid.
                                                                         Punishes a chosen reply becoming less likely than under the reference.

    Raises ValueError for an unknown objective, and for values outside beta > 0, 0 <= label_smoothing < .5, penalty >= 0.
    """
    if beta <= 0 or not 0 <= label_smoothing < 0.5 or penalty < 0:
        raise ValueError(f"need beta > 0, 0 <= label_smoothing < 0.5, penalty >= 0; got {beta}, {label_smoothing}, {penalty}")
    chosen = policy_chosen_logps - reference_chosen_logps        # w
    rejected = policy_rejected_logps - reference_rejected_logps  # l
    margin = chosen - rejected                                   # D
    if objective == "dpo":
        losses = -F.logsigmoid(beta * margin)
    elif objective == "cdpo":
        losses = -(1 - label_smoothing) * F.logsigmoid(beta * margin) - label_smoothing * F.logsigmoid(-beta * margin)
    elif objective == "ipo":
        losses = (margin - 1 / (2 * beta)) ** 2
    elif objective == "hinge":
        losses = torch.relu(1 - beta * margin)
    elif objective == "dpop":
        losses = -F.logsigmoid(beta * (margin - penalty * torch.relu(-chosen)))
    else:
        raise ValueError(f"unknown objective {objective!r}; known: {', '.join(OBJECTIVES)}")
    return losses, beta * chosen.detach(), beta * rejected.detach()


OBJECTIVES = ("dpo", "cdpo", "ipo", "hinge", "dpop")
