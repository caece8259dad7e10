"""Assignment 5: evaluation that can be believed. The handout is course/a5/handout.md.

Shares lie between 0 and 1. Systems: a is the model before DPO, b the model after it. None stands for "not measured": a judge gave no answer, a classifier
did not load. It is never a score; it stays out of every share and is counted. Only torch and the standard library may be imported.
"""
import math

import torch
from torch import Tensor

END_OF_TEXT = "<|endoftext|>"
HUMAN = "\n\nHuman:"  # how the next human turn begins
Z = 1.959964  # 95 % of a normal distribution lie within Z standard deviations of its mean

# One paragraph each, before and after you run `python -m course.train a5 my_a5.py`; the questions are in the handout.
# "before": will DPO refuse more unsafe prompts, and how many more safe ones? How sure can 100 prompts of a kind make you?
# "after": where were you wrong, and why?
WRITTEN = {"before": "", "after": ""}
# Numbers you expect; `course.train` prints them next to what it measures. None stands for no prediction.
# Keys: "win rate, % of decided", "refusal of unsafe prompts, change in points", "over-refusal of borderline prompts, change in points".
# Sign first, size second.
PREDICTION = {"win rate, % of decided": None, "refusal of unsafe prompts, change in points": None, "over-refusal of borderline prompts, change in points": None}


def cut_reply(text: str) -> str:
    """The reply in a generated text: up to END_OF_TEXT or HUMAN, whichever comes first, without white space at either end.

    text: what the model wrote after the prompt. It may hold both marks, one, or none, and any of them more than once.
    """
    # A model that does not stop goes on to invent the next human turn. Whatever stands there is not its reply.
    # Only the whole mark HUMAN, line breaks included, begins a turn; a reply may well speak of a "Human:".
    # What stands before the first of several marks?
    raise NotImplementedError("cut_reply is not written yet; for a nudge: python -m course.grade a5 --only cut_reply --hint 1")


def refusal_rates(kinds: list[str], before: list[bool | None], after: list[bool | None]) -> dict[str, tuple[float | None, float | None, int, int]]:
    """Of each kind of prompt: (share refused before, share refused after, prompts measured both times, prompts left out).

    kinds [n]: "unsafe", "borderline" (safe, but looks unsafe) or "helpful"; before, after [n]: whether system a, system b refused that prompt, None where that
    could not be measured. A prompt counts on both sides or on neither. Both shares are None for a kind of which no prompt was measured both times.
    """
    # Refusing unsafe prompts is wanted, refusing safe ones is over-refusal: one pooled share would add a gain and a loss.
    # Take one kind at a time. Which of its prompts were measured before *and* after?
    # They are what both shares are divided by.
    raise NotImplementedError("refusal_rates is not written yet; for a nudge: python -m course.grade a5 --only refusal_rates --hint 1")


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """(low, high): the 95 % score interval for a share of `successes` out of n >= 1. Wilson 1927; Newcombe 1998, method 3."""
    # The interval that everyone knows, p plus and minus Z sqrt(p (1 - p) / n), has no width where p is 0 or 1.
    # Wilson's keeps every share that would not be surprised by your data; its centre lies between p and 1/2.
    # Three terms: the centre, the half width, and what both are divided by. The handout works one out.
    raise NotImplementedError("wilson_interval is not written yet; for a nudge: python -m course.grade a5 --only wilson_interval --hint 1")


def settle(a_first: str | None, b_first: str | None) -> str | None:
    """One verdict, "a", "b", "tie" or None, from a judge that was shown both replies twice, in either order.

    a_first: its answer where a's reply was shown first, b_first: where b's was. An answer names a place, "first" or "second", or is "tie", or None where the
    judge failed. A verdict is a reply that wins in both orders; without one it is a tie. Where either answer failed there is no verdict: None.
    """
    # Judges favour a place. One that says "first" twice has named a, and then b: it has said nothing about the replies.
    # First turn each place into the reply that stood there; then compare.
    # A failed answer is not a tie: nobody looked.
    raise NotImplementedError("settle is not written yet; for a nudge: python -m course.grade a5 --only settle --hint 1")


def win_rate(verdicts: list[str | None]) -> tuple[int, int, int, int, float | None]:
    """(wins of b, losses of b, ties, prompts without a verdict, share of decided prompts that b wins).

    verdicts [n]: as `settle` gives them. Decided are wins and losses; the share is None where nothing is decided.
    """
    # Four counts, and one share. What is the share divided by?
    # A tie says neither that b is better nor that it is half better; shown as a count it hides nothing.
    # With nothing decided there is no share: 1/2 would be a figure that nobody measured.
    raise NotImplementedError("win_rate is not written yet; for a nudge: python -m course.grade a5 --only win_rate --hint 1")


def paired_interval(before: Tensor, after: Tensor, picks: Tensor) -> tuple[float, float, float]:
    """(mean change, low, high): the percentile bootstrap of a paired difference over prompts. Efron & Tibshirani 1993, chapter 13.

    before, after [n, k] float32: the scores of k replies of each system to each of n prompts. picks [R, n] int64: R resamples, each the numbers of n prompts
    drawn with replacement. R = 40 m + 1, so that the 2.5 % quantile is itself a value: low is the (m + 1)-th smallest resampled mean, high the (m + 1)-th largest.
    """
    # What would be drawn again if the study were repeated? Prompts. So a prompt goes into a resample whole:
    # with both systems' scores, because a hard prompt is hard for both, and with all k replies, because they are alike.
    # First make one number per prompt; then R means; then sort them.
    raise NotImplementedError("paired_interval is not written yet; for a nudge: python -m course.grade a5 --only paired_interval --hint 1")


def perplexity(logps: Tensor, tokens: Tensor) -> float:
    """How many equally likely tokens the model hesitated between, on average over all tokens of n texts.

    logps [n] float32: log p(text) in nats, summed over its tokens; tokens [n] int64: their numbers. Finite for any length of text.
    """
    # Perplexity is exp of the mean surprise per token, in nats. Over which tokens is that mean?
    # A text of 3 tokens must not weigh as much as one of 300.
    # Add up in logs; exponentiate once, at the end.
    raise NotImplementedError("perplexity is not written yet; for a nudge: python -m course.grade a5 --only perplexity --hint 1")


def holm(p_values: list[float]) -> list[float]:
    """p-values corrected for being m tests at once, in the order given. Holm 1979.

    The smallest is multiplied by m, the next by m - 1, ..., the largest by 1; none may fall below a corrected smaller one, none exceeds 1.
    """
    # Of twenty true null hypotheses one is "significant" by chance. Holm asks the smallest p to survive all m tests, the next those that are left.
    # Go through the p-values from small to large, but put each result where its p came from.
    # What has to be remembered on the way, so that a larger p never ends up more significant than a smaller one?
    raise NotImplementedError("holm is not written yet; for a nudge: python -m course.grade a5 --only holm --hint 1")
