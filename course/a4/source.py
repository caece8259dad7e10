"""Assignment 4: preference losses from log-probs. The handout is course/a4/handout.md.

Log-probs are in nats. P pairs; of each pair y_w is the chosen reply and y_l the rejected one. The policy is what you train, the reference what it
started as. Only torch may be imported.
"""
import torch
from torch import Tensor
from torch.nn import functional as F

# blank: One paragraph each, before and after you run `python -m course.train a4 my_a4.py`; the questions are in the handout.
# "before": what will the loss be at step 0, and where will the chosen replies' log-prob go under DPO and under DPOP?
# "after": where were you wrong, and why?
#= WRITTEN = {"before": "", "after": ""}
WRITTEN = {
    "before": "At step 0 the policy is the reference, so every log-ratio is zero and the DPO loss is minus log sigmoid of zero, ln 2. The pairs differ in one "
              "word or a few, so both replies share most tokens: I expect DPO to push both down, and DPOP to keep the chosen one up.",
    "after": "The loss began at .6931 as predicted, IPO's at (1 / .6)^2. Under DPO the chosen log-prob fell by a third of a nat and the rejected one by ten: I had the signs, but not "
             "that nearly all of the margin comes from below, where a word can fall without end. Under DPOP the chosen one rose in every run: the penalty pays for every nat below "
             "the reference. IPO stopped near its target, D = 1.67.",
}
# end
# blank: Numbers you expect; `course.train` prints them next to what it measures. None stands for no prediction.
# Sign first, size second.
# The loss at step 0 is DPO's.
#= PREDICTION = {
#=     "loss at step 0": None,
#=     "DPO: chosen log-prob, change in nats": None, "DPO: rejected log-prob, change in nats": None,
#=     "IPO: chosen log-prob, change in nats": None, "IPO: rejected log-prob, change in nats": None,
#=     "DPOP: chosen log-prob, change in nats": None, "DPOP: rejected log-prob, change in nats": None,
#= }
PREDICTION = {
    "loss at step 0": 0.6931,
    "DPO: chosen log-prob, change in nats": -0.5, "DPO: rejected log-prob, change in nats": -5.0,
    "IPO: chosen log-prob, change in nats": 0.0, "IPO: rejected log-prob, change in nats": -1.7,
    "DPOP: chosen log-prob, change in nats": 0.1, "DPOP: rejected log-prob, change in nats": -4.0,
}
# end


def sequence_logps(token_logps: Tensor, owner: Tensor, sequences: int) -> Tensor:
    """log p(reply | prompt) of each reply [sequences], float32, from the log-probs of single tokens.

    token_logps [N] float32: of the scored tokens of all replies, in any order; owner [N] int64: the reply, 0 .. sequences - 1, that each belongs to.
    A reply without a token has log-prob 0. Gradients flow to token_logps.
    """
    # blank: A reply's probability is the product of its tokens' probabilities.
    # What does a product become in logs? Is anything divided by the length?
    # Tensor.index_add adds many values into few places.
    #: log (p1 p2 p3) = log p1 + log p2 + log p3, so tokens are summed; DPO compares whole replies, so nothing is divided by their number.
    #: Begin with zeros of [sequences]; every token's value goes to the place that its owner names.
    #: torch.zeros(sequences).index_add(0, owner, token_logps)
    return torch.zeros(sequences, dtype=token_logps.dtype).index_add(0, owner, token_logps)
    # end


def implicit_rewards(policy_logps: Tensor, reference_logps: Tensor, beta: float) -> Tensor:
    """The reward [P] that a policy implies, without gradient: beta (log pi - log pi_ref). Rafailov et al. 2023, eq. 5 without its constant.

    policy_logps, reference_logps [P]: of one reply to each prompt. It is for looking at, not for training.
    """
    # blank: How much likelier has the reply become than it was under the reference?
    # beta turns nats into units of reward.
    # A figure that is only looked at must not keep the graph of the forward pass alive.
    #: The log of a ratio is a difference of logs.
    #: Multiply the difference by beta; then cut it from the graph.
    #: (beta * (policy_logps - reference_logps)).detach()
    return beta * (policy_logps - reference_logps).detach()
    # end


def dpo_loss(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, reference_chosen_logps: Tensor, reference_rejected_logps: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta D) per pair [P], D = log-ratio of y_w minus log-ratio of y_l. Rafailov et al. 2023, eq. 7.

    All [P]; a log-ratio is log pi - log pi_ref. Finite, with its gradient, for |beta D| up to 10,000.
    """
    # blank: Which of the four log-probs count positive, which negative? A reply that the reference likes as well is no merit of the policy.
    # Check the sign: a policy that prefers y_w more than the reference does has a loss below ln 2.
    # exp(10,000) is infinite; torch has a function for log sigmoid that never computes it.
    #: D = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected).
    #: The loss is minus the log of the probability that y_w beats y_l, and that probability is sigmoid(beta D).
    #: -F.logsigmoid(beta * D)
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    return -F.logsigmoid(beta * (chosen - rejected))
    # end


def dpo_gradient(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, reference_chosen_logps: Tensor, reference_rejected_logps: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """(d loss / d policy_chosen_logps [P], d loss / d policy_rejected_logps [P]) of dpo_loss, by the formula, without autograd.

    Rafailov et al. 2023, section 4: a pair weighs as much as its implicit reward orders it wrongly.
    """
    # blank: Differentiate -log sigmoid(z), then z with respect to each of the two log-probs.
    # d/dz of -log sigmoid(z) is minus a sigmoid: of what?
    # The two gradients differ in one thing only.
    #: d/dz [-log sigmoid(z)] = -sigmoid(-z), and z = beta D.
    #: D grows by 1 with policy_chosen_logps and shrinks by 1 with policy_rejected_logps.
    #: slope = -beta * torch.sigmoid(-beta * D); return slope, -slope
    delta = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    slope = -beta * torch.sigmoid(-beta * delta)
    return slope, -slope
    # end


def ipo_loss(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, reference_chosen_logps: Tensor, reference_rejected_logps: Tensor, beta: float) -> Tensor:
    """(D - 1 / (2 beta))^2 per pair [P]; D as in dpo_loss. Azar et al. 2023, eq. 17, with beta for their tau."""
    # blank: DPO pushes a pair for ever, ever more weakly. IPO names the D at which a pair is done.
    # Where is that, and what does it cost to be away from it, on either side?
    # beta appears once.
    #: The target is D = 1 / (2 beta); a small beta asks for a large margin.
    #: Squared distance to the target. D itself is not multiplied by beta.
    #: (D - 1 / (2 * beta)) ** 2
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    return (chosen - rejected - 1 / (2 * beta)) ** 2
    # end


def dpop_loss(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, reference_chosen_logps: Tensor, reference_rejected_logps: Tensor, beta: float, penalty: float) -> Tensor:
    """-log sigmoid(beta (D - penalty max(0, -w))) per pair [P], w = log-ratio of y_w. Pal et al. 2024, eq. 3, with `penalty` for their lambda."""
    # blank: DPO is content when both replies become less likely, as long as y_l falls faster. DPOP charges for the fall of y_w.
    # When is max(0, -w) above zero? Does the charge stand inside the sigmoid or outside?
    # penalty = 0 must give DPO back.
    #: The charge is how far y_w has fallen below the reference: reference_chosen - policy_chosen where that is positive, else 0.
    #: It is subtracted from D, inside the sigmoid, before beta.
    #: -F.logsigmoid(beta * (D - penalty * torch.relu(-w)))
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    return -F.logsigmoid(beta * (chosen - rejected - penalty * torch.relu(-chosen)))
    # end


def step_loss(losses: Tensor, pairs_in_step: int) -> Tensor:
    """What one micro-batch backpropagates, a scalar: its share of the mean loss over all pairs of the optimizer step.

    losses [P]: of this micro-batch; pairs_in_step: of all micro-batches together.
    """
    # blank: A step of 32 pairs may come in micro-batches of 20 and 12. Their gradients are added.
    # What must each contribute so that the sum is the mean over 32?
    # Not the mean over 20.
    #: Add what the pairs of this micro-batch lose; divide by a number that all micro-batches share.
    #: That number is pairs_in_step.
    #: losses.sum() / pairs_in_step
    return losses.sum() / pairs_in_step
    # end
