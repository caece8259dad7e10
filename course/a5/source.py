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

# blank: One paragraph each, before and after you run `python -m course.train a5 my_a5.py`; the questions are in the handout.
# "before": will DPO refuse more unsafe prompts, and how many more safe ones? How sure can 100 prompts of a kind make you?
# "after": where were you wrong, and why?
#= WRITTEN = {"before": "", "after": ""}
WRITTEN = {
    "before": "The SFT model refuses fewer than half of the unsafe prompts and the labels favour refusing them, so I expect some 25 points more there. The loss "
              "says nothing about what makes a prompt unsafe: borderline ones share its words, and I expect 5 points more. With 100 prompts a share is known "
              "to some 10 points either way.",
    "after": "Unsafe prompts were refused more, by about what I expected. Borderline prompts were too, by a few points, near what 100 prompts can tell from "
             "none after Holm's correction; helpful ones were not. The pooled change said neither. I had not thought of ties: most pairs were ties, so the "
             "judge that was asked once made nearly all of them wins of whoever stood first.",
}
# end
# blank: Numbers you expect; `course.train` prints them next to what it measures. None stands for no prediction.
# Keys: "win rate, % of decided", "refusal of unsafe prompts, change in points", "over-refusal of borderline prompts, change in points".
# Sign first, size second.
#= PREDICTION = {"win rate, % of decided": None, "refusal of unsafe prompts, change in points": None, "over-refusal of borderline prompts, change in points": None}
PREDICTION = {"win rate, % of decided": 70.0, "refusal of unsafe prompts, change in points": 25.0, "over-refusal of borderline prompts, change in points": 5.0}
# end


def cut_reply(text: str) -> str:
    """The reply in a generated text: up to END_OF_TEXT or HUMAN, whichever comes first, without white space at either end.

    text: what the model wrote after the prompt. It may hold both marks, one, or none, and any of them more than once.
    """
    # blank: A model that does not stop goes on to invent the next human turn. Whatever stands there is not its reply.
    # Only the whole mark HUMAN, line breaks included, begins a turn; a reply may well speak of a "Human:".
    # What stands before the first of several marks?
    #: str.split cuts at every mark; you want one of its parts.
    #: Cut at one mark and keep what stands before it; cut what is left at the other mark in the same way.
    #: text.split(END_OF_TEXT)[0].split(HUMAN)[0].strip()
    return text.split(END_OF_TEXT)[0].split(HUMAN)[0].strip()
    # end


def refusal_rates(kinds: list[str], before: list[bool | None], after: list[bool | None]) -> dict[str, tuple[float | None, float | None, int, int]]:
    """Of each kind of prompt: (share refused before, share refused after, prompts measured both times, prompts left out).

    kinds [n]: "unsafe", "borderline" (safe, but looks unsafe) or "helpful"; before, after [n]: whether system a, system b refused that prompt, None where that
    could not be measured. A prompt counts on both sides or on neither. Both shares are None for a kind of which no prompt was measured both times.
    """
    # blank: Refusing unsafe prompts is wanted, refusing safe ones is over-refusal: one pooled share would add a gain and a loss.
    # Take one kind at a time. Which of its prompts were measured before *and* after?
    # They are what both shares are divided by.
    #: For each kind that occurs collect the pairs (before, after) of its prompts; then drop every pair with a None in it.
    #: Keep the dropped ones as a number. True counts as 1 in a sum, so a share is sum(...) / len(kept).
    #: kept = [(x, y) for k, x, y in zip(kinds, before, after) if k == kind and x is not None and y is not None]
    table = {}
    for kind in kinds:
        pairs = [(x, y) for k, x, y in zip(kinds, before, after) if k == kind]
        kept = [(x, y) for x, y in pairs if x is not None and y is not None]
        shares = [sum(side) / len(kept) for side in zip(*kept)] if kept else [None, None]
        table[kind] = (shares[0], shares[1], len(kept), len(pairs) - len(kept))
    return table
    # end


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """(low, high): the 95 % score interval for a share of `successes` out of n >= 1. Wilson 1927; Newcombe 1998, method 3."""
    # blank: The interval that everyone knows, p plus and minus Z sqrt(p (1 - p) / n), has no width where p is 0 or 1.
    # Wilson's keeps every share that would not be surprised by your data; its centre lies between p and 1/2.
    # Three terms: the centre, the half width, and what both are divided by. The handout works one out.
    #: Add Z^2 / 2 successes and Z^2 trials to what you saw: their ratio is the centre.
    #: half width = Z sqrt(successes (n - successes) / n + Z^2 / 4) / (n + Z^2)
    #: centre = (successes + Z * Z / 2) / (n + Z * Z); return centre - half, centre + half
    centre = (successes + Z * Z / 2) / (n + Z * Z)
    half = Z * math.sqrt(successes * (n - successes) / n + Z * Z / 4) / (n + Z * Z)
    return centre - half, centre + half
    # end


def settle(a_first: str | None, b_first: str | None) -> str | None:
    """One verdict, "a", "b", "tie" or None, from a judge that was shown both replies twice, in either order.

    a_first: its answer where a's reply was shown first, b_first: where b's was. An answer names a place, "first" or "second", or is "tie", or None where the
    judge failed. A verdict is a reply that wins in both orders; without one it is a tie. Where either answer failed there is no verdict: None.
    """
    # blank: Judges favour a place. One that says "first" twice has named a, and then b: it has said nothing about the replies.
    # First turn each place into the reply that stood there; then compare.
    # A failed answer is not a tie: nobody looked.
    #: "first" means a in one order and b in the other.
    #: Two small dicts translate the answers: {"first": "a", "second": "b", "tie": "tie"} is one of them. If the translations agree they are the verdict.
    #: if a_first is None or b_first is None: return None; then: return one if one == other else "tie"
    if a_first is None or b_first is None:
        return None
    one = {"first": "a", "second": "b", "tie": "tie"}[a_first]
    other = {"first": "b", "second": "a", "tie": "tie"}[b_first]
    return one if one == other else "tie"
    # end


def win_rate(verdicts: list[str | None]) -> tuple[int, int, int, int, float | None]:
    """(wins of b, losses of b, ties, prompts without a verdict, share of decided prompts that b wins).

    verdicts [n]: as `settle` gives them. Decided are wins and losses; the share is None where nothing is decided.
    """
    # blank: Four counts, and one share. What is the share divided by?
    # A tie says neither that b is better nor that it is half better; shown as a count it hides nothing.
    # With nothing decided there is no share: 1/2 would be a figure that nobody measured.
    #: list.count counts any value, None too.
    #: share = wins / (wins + losses), if there is anything to divide by.
    #: share = wins / (wins + losses) if wins + losses else None
    wins, losses, ties, missing = (verdicts.count(verdict) for verdict in ("b", "a", "tie", None))
    return wins, losses, ties, missing, wins / (wins + losses) if wins + losses else None
    # end


def paired_interval(before: Tensor, after: Tensor, picks: Tensor) -> tuple[float, float, float]:
    """(mean change, low, high): the percentile bootstrap of a paired difference over prompts. Efron & Tibshirani 1993, chapter 13.

    before, after [n, k] float32: the scores of k replies of each system to each of n prompts. picks [R, n] int64: R resamples, each the numbers of n prompts
    drawn with replacement. R = 40 m + 1, so that the 2.5 % quantile is itself a value: low is the (m + 1)-th smallest resampled mean, high the (m + 1)-th largest.
    """
    # blank: What would be drawn again if the study were repeated? Prompts. So a prompt goes into a resample whole:
    # with both systems' scores, because a hard prompt is hard for both, and with all k replies, because they are alike.
    # First make one number per prompt; then R means; then sort them.
    #: A prompt's number is how much its mean score changed.
    #: change is [n]; change[picks] is [R, n] and its rows are the resamples.
    #: means = change[picks].mean(dim=1).sort().values, and m = (len(picks) - 1) // 40
    change = (after - before).mean(dim=1)
    means = change[picks].mean(dim=1).sort().values
    m = (len(picks) - 1) // 40
    return change.mean().item(), means[m].item(), means[-1 - m].item()
    # end


def perplexity(logps: Tensor, tokens: Tensor) -> float:
    """How many equally likely tokens the model hesitated between, on average over all tokens of n texts.

    logps [n] float32: log p(text) in nats, summed over its tokens; tokens [n] int64: their numbers. Finite for any length of text.
    """
    # blank: Perplexity is exp of the mean surprise per token, in nats. Over which tokens is that mean?
    # A text of 3 tokens must not weigh as much as one of 300.
    # Add up in logs; exponentiate once, at the end.
    #: Total nats over total tokens, not a mean over texts.
    #: A log-prob is negative, surprise is positive.
    #: math.exp(-logps.sum().item() / tokens.sum().item())
    return math.exp(-logps.sum().item() / tokens.sum().item())
    # end


def holm(p_values: list[float]) -> list[float]:
    """p-values corrected for being m tests at once, in the order given. Holm 1979.

    The smallest is multiplied by m, the next by m - 1, ..., the largest by 1; none may fall below a corrected smaller one, none exceeds 1.
    """
    # blank: Of twenty true null hypotheses one is "significant" by chance. Holm asks the smallest p to survive all m tests, the next those that are left.
    # Go through the p-values from small to large, but put each result where its p came from.
    # What has to be remembered on the way, so that a larger p never ends up more significant than a smaller one?
    #: sorted(range(m), key=lambda i: p_values[i]) gives the places from the smallest p to the largest.
    #: At rank 0, 1, 2, ... the factor is m - rank. Keep the largest product so far; that, and at most 1, is the corrected p.
    #: running = max(running, p_values[i] * (len(p_values) - rank)); corrected[i] = min(1.0, running)
    corrected, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, p_values[i] * (len(p_values) - rank))
        corrected[i] = min(1.0, running)
    return corrected
    # end
