"""Assignment 6: diagnose and repair. The handout is course/a6/handout.md.

course/a6/runs/run_1 to run_5 are sick: each is a short training run of the toy model with one bug in it; healthy_sft and healthy_dpo are the same runs
without. Part one reads logs, part two names the causes, part three repairs the code. Only torch and the standard library may be imported.
"""
import math

import torch
from torch import Tensor

Row = dict[str, float | int | str | None]  # a line of metrics.jsonl; what was not measured is None

CAUSES = ("no gradient", "moving reference", "learning rate too low", "other reference", "dropout on", "warm-up never ends", "beta too small",
          "means added up", "end of text masked", "prompt scored")
COLUMNS = ("train loss", "train lr", "train grad_norm", "train logps/chosen", "val loss", "val rewards/margin", "val rewards/accuracy", "val logps/chosen",
           "val logps/rejected", "val replies/words", "val replies/ended", "val replies/kl", "val replies/well_formed")

# One paragraph each, before and after you run `python -m course.train a6 my_a6.py`; the questions are in the handout.
# "before": which of the five bugs does a falling loss hide, and what will the figures below be once all five are repaired?
# "after": which log misled you longest, and which column put you right?
WRITTEN = {"before": "", "after": ""}
# Numbers you expect; `course.train` prints them next to what it measures. None stands for no prediction.
# Keys: "DPO: first training loss", "DPO: chosen log-prob, change in nats", "SFT: replies that end, %".
# The logs of the healthy runs are a fair place to look.
PREDICTION = {"DPO: first training loss": None, "DPO: chosen log-prob, change in nats": None, "SFT: replies that end, %": None}


# ---- part one: reading a log ----------------------------------------------------------------------------------------

def column(rows: list[Row], split: str, name: str) -> list[tuple[int, float]]:
    """[(step, value)] of one column in one split, "train" or "val", where it was measured. Written for you."""
    return [(row["step"], row[name]) for row in rows if row["split"] == split and row[name] is not None]


def first_losses_are_right(rows: list[Row], expected: float, tolerance: float) -> bool | None:
    """Whether the loss was `expected`, within `tolerance`, before the first update: in training and in validation. None where the log does not tell.

    Two rows were measured before the weights moved: validation at step 0, and training at step 1, since a step computes its loss before its update.
    A log without one of the two, such as that of a resumed run, tells nothing.
    """
    # Validation runs without dropout, training may not: one right loss does not vouch for the other.
    # Which steps do the two rows carry? The first row of a log is not always the first of the run.
    # What is not known is not right; it is None.
    raise NotImplementedError("first_losses_are_right is not written yet; for a nudge: python -m course.grade a6 --only first_losses_are_right --hint 1")


def why_stuck(rows: list[Row], still: float, moved: float) -> str:
    """What a DPO log says about a loss that does not fall: "not stuck", "no gradient", "moving reference" or "learning rate too low", in this order.

    Not stuck: some training loss differs from the first one by more than `still`. No gradient: train grad_norm is 0 in every row. Moving reference: between its
    first and last row the validation log-prob of the chosen or of the rejected replies changed, up or down, by more than `moved` nats: the weights go
    somewhere, only the loss does not see it. Learning rate too low: none of these.
    """
    # A loss can stand still because the weights do, or because what it is measured against moves along.
    # Training rows are of other pairs each time, validation rows always of the same: which can show a change of a tenth of a nat?
    # Ask the questions in the docstring's order.
    raise NotImplementedError("why_stuck is not written yet; for a nudge: python -m course.grade a6 --only why_stuck --hint 1")


def is_hollow(rows: list[Row], gain: float, fall: float) -> bool | None:
    """Whether a run got better at judging while it got worse at writing; None where the log does not tell.

    True: from its first to its last validation rewards/accuracy rose by at least `gain`, and replies/well_formed or replies/ended fell by at least `fall`
    (all are shares, 0 to 1). A column with fewer than two values was not measured. None: the accuracy, or both columns of replies, not measured.
    """
    # Accuracy is about other people's replies, the two columns of replies are about the model's own.
    # Only changes count: an SFT model that writes badly is not DPO's fault.
    # One measured column of replies is enough to judge by; none is not.
    raise NotImplementedError("is_hollow is not written yet; for a nudge: python -m course.grade a6 --only is_hollow --hint 1")


# ---- part two: the five runs ----------------------------------------------------------------------------------------

def diagnosis(run: int) -> tuple[str, list[str]]:
    """(one of CAUSES, two of COLUMNS) of run 1 .. 5. One column shows that something is wrong; the other rules out what else it could be."""
    # Read course/a6/runs/run_N/metrics.jsonl and samples.txt next to those of the healthy run of the same stage.
    # For every cause in the handout: what would this log look like? Cross out until one is left.
    # Each cause occurs at most once in the five runs.
    raise NotImplementedError("diagnosis is not written yet; for a nudge: python -m course.grade a6 --only diagnosis --hint 1")


# ---- part three: five fragments of a pipeline, each with one bug ----------------------------------------------------
# They run as they stand. Find the one line that made one of the five runs sick, and repair it.

def scored_tokens(ids: Tensor, prompt_tokens: Tensor, reply_tokens: Tensor, pad_id: int) -> Tensor:
    """Which tokens carry the SFT loss, bool [B, T]: every token of the reply, the end of text that closes it included, and nothing else.

    ids [B, T] int64: rows of prompt, reply, padding. prompt_tokens, reply_tokens [B] int64: their lengths; the reply's counts its end of text.
    pad_id: the id that rows are filled up with. Like most GPT-2 pipelines, this one pads with end of text.
    """
    place = torch.arange(ids.shape[1])           # [T]
    in_reply = place >= prompt_tokens[:, None]  # [B, T]
    # In the next line one token of every reply is lost. Which, and what does a model do that never learnt it?
    # Is what a token *is* the right question, or where it stands?
    # The lengths are arguments.
    return in_reply & (ids != pad_id)


def micro_loss(logps: Tensor, tokens_in_step: int, micro_batches: int) -> Tensor:
    """What one micro-batch of SFT backpropagates, a scalar in nats. The sum over the step's micro-batches is the mean over all its scored tokens.

    logps [n]: log-probs of this micro-batch's scored tokens; tokens_in_step: scored tokens of all micro-batches of the step; micro_batches: how many there are.
    """
    # What do four micro-batches of the next line add up to?
    # Micro-batches have unequal numbers of tokens: should a token count more because it shares its micro-batch with few?
    # One of the three arguments is not needed.
    return -logps.mean()


def dropout_share(stage: str, configured: float, training: bool) -> float:
    """The share of activations that a forward pass of the policy drops. stage: "base", "sft" or "dpo"; configured: the model's own setting, .1 in GPT-2's config;
    training: False in validation.

    Dropout is for training in base and SFT. In DPO there is none: noise in a log-prob is noise in the reward.
    """
    # The next line treats all stages alike.
    # With it, do policy and reference have the same log-probs at step 0?
    # The other stages and validation must stay as they are.
    return configured if training else 0.0


def policy_and_reference(weights: dict[str, Tensor], updates: list[dict[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the policy's weights after the updates, the reference's). Both begin as `weights`; the reference stays what it was before the first update.

    weights: float tensors by name; updates: for each step, what is added to some or all of them, in place, as an optimizer does.
    """
    policy = weights
    # Before any update both are equal, and should be. And after one?
    # A new dictionary of the same tensors: how many sets of weights are in memory?
    # The reference must not share memory with the policy.
    reference = dict(weights)
    for update in updates:
        for name, change in update.items():
            policy[name].add_(change)
    return policy, reference


def learning_rate(step: int, total: int, peak: float, warmup: float, floor: float) -> float:
    """The learning rate of step `step` (from 0) of `total`: a linear rise to `peak` over the first share `warmup` of the steps, then a cosine down to floor * peak.

    Over the W steps of the warm-up, W = max(1, round(warmup * total)), it is peak (step + 1) / W. After it, with t = (step - W) / (total - W),
    it is peak (floor + (1 - floor) (1 + cos(pi t)) / 2).
    """
    warm = max(1, round(warmup * total))
    # The next line is right for the first `warm` steps.
    # What does it give at the last one?
    # The docstring says what should come after the warm-up.
    return peak * (step + 1) / warm
