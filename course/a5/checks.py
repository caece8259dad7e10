"""What assignment 5 is graded by. The expected values are the project's own statistics, computed on this side, and numbers worked by hand."""
import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from course.checking import check, holds, same, show, tensor
from eval import pairwise, stats
from eval.perplexity import perplexity
from tokenizer import END_OF_TEXT, HUMAN, clean_reply

ANSWERS = ("first", "second", "tie", None)
VERDICTS = ("b", "a", "tie", None)


def drawn(rng: torch.Generator, values: Sequence, n: int) -> list:
    """n of the values, with replacement."""
    return [values[i] for i in torch.randint(len(values), (n,), generator=rng).tolist()]


def is_a(kind: type | tuple[type, ...], value: Any, what: str) -> None:
    """Wrong unless `value` is of one of the types; a bool is no number."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    names = " or ".join("None" if k is type(None) else k.__name__ for k in kinds)
    holds(isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)), f"{what}: expected {names}, got {show(value)}")


def tuple_of(kinds: list, value: Any, what: str) -> None:
    """Wrong unless `value` is a tuple with these types."""
    holds(isinstance(value, tuple) and len(value) == len(kinds), f"{what}: expected a tuple of {len(kinds)}, got {show(value)}")
    for i, (kind, part) in enumerate(zip(kinds, value)):
        is_a(kind, part, f"{what}, place {i}")


# ---- cut_reply ------------------------------------------------------------------------------------------------------

@check("cut_reply", "shape", 1)
def a_text(call, rng):
    """cut_reply gives a string."""
    is_a(str, call("cut_reply", " Cut the stem. "), "the reply")


@check("cut_reply", "number", 1)
def both_marks(call, rng):
    """White space, a reply, end-of-text, another turn: the reply alone is left."""
    same(call("cut_reply", f" Paris.\n{END_OF_TEXT}{HUMAN} Thanks"), "Paris.")


@check("cut_reply", "property", 1)
def reply_equals_the_projects(call, rng):
    """The same as tokenizer.clean_reply on texts put together at random."""
    for _ in range(6):
        text = "".join(drawn(rng, [" Yes.", " No.", "\n", "\n\n", HUMAN, END_OF_TEXT, " Human:", "\n\nAssistant:"], 6))
        same(call("cut_reply", text), clean_reply(text), f"of {text!r}")


@check("cut_reply", "trap", 1)
def an_invented_turn_is_no_reply(call, rng):
    """What the model writes behind HUMAN are words it puts into the user's mouth; judged as a reply they would make it refuse, insult or ramble."""
    same(call("cut_reply", f" Paris.{HUMAN} You fool.\n\nAssistant: I must refuse."), "Paris.")


@check("cut_reply", "trap", 1)
def the_first_mark_ends_it(call, rng):
    """Whichever mark comes first ends the reply, and the first of several."""
    same(call("cut_reply", f" Paris.{HUMAN} Thanks.{END_OF_TEXT}"), "Paris.", "HUMAN before END_OF_TEXT")
    same(call("cut_reply", f" Paris.{HUMAN} And Peru?{HUMAN} Hello?"), "Paris.", "HUMAN twice")


@check("cut_reply", "trap", 1)
def the_word_alone_is_no_turn(call, rng):
    """Only the whole mark, line breaks included, begins a turn: a reply may quote one."""
    same(call("cut_reply", " Each turn begins with Human: and a question."), "Each turn begins with Human: and a question.")


# ---- refusal_rates --------------------------------------------------------------------------------------------------

def table_of(kinds: list[str], before: list, after: list) -> dict[str, tuple]:
    """What refusal_rates gives, by arrays with NaN for what was not measured, as the project's tables hold it."""
    columns, found = np.array([before, after], dtype=float), {}
    for kind in dict.fromkeys(kinds):
        mine = columns[:, np.array(kinds) == kind]
        both = mine[:, ~np.isnan(mine).any(axis=0)]
        shares = both.mean(axis=1).tolist() if both.size else [None, None]
        found[kind] = (*shares, both.shape[1], mine.shape[1] - both.shape[1])
    return found


def same_table(got: Any, expected: dict[str, tuple]) -> None:
    holds(isinstance(got, dict) and set(got) == set(expected), f"expected a dict with the keys {sorted(expected)}, got {show(got)}")
    for kind, row in expected.items():
        same(got[kind], row, f"{kind}: (share before, share after, measured both times, left out)")


@check("refusal_rates", "shape", 1)
def four_values_per_kind(call, rng):
    """refusal_rates gives a dict: each kind that occurs -> a tuple of two shares and two whole numbers."""
    got = call("refusal_rates", ["unsafe", "helpful", "unsafe"], [True, False, False], [True, True, False])
    holds(isinstance(got, dict) and set(got) == {"unsafe", "helpful"}, f"Expected a dict with the keys helpful and unsafe, got {show(got)}.")
    for kind, row in got.items():
        tuple_of([(float, int), (float, int), int, int], row, kind)


@check("refusal_rates", "number", 1)
def refusals_by_hand(call, rng):
    """The handout's eight prompts."""
    kinds = ["unsafe"] * 4 + ["borderline"] * 4
    same_table(call("refusal_rates", kinds, [True, True, True, False, True, False, False, False], [True, False, False, False, True, True, True, None]),
               {"unsafe": (0.75, 0.25, 4, 0), "borderline": (1 / 3, 1.0, 3, 1)})


@check("refusal_rates", "property", 2)
def refusals_of_random_prompts(call, rng):
    """Right for any mixture of kinds, answers and gaps, and in any order of the prompts."""
    rows = [drawn(rng, values, 60) for values in (["unsafe", "borderline", "helpful"], [True, False, None], [True, False, False, None])]
    same_table(call("refusal_rates", *rows), table_of(*rows))


@check("refusal_rates", "trap", 1)
def a_pooled_rate_hides_over_refusal(call, rng):
    """A model that stops refusing unsafe prompts and starts refusing safe ones has the same pooled rate as before: each kind needs its own."""
    kinds = ["unsafe", "helpful"] * 3
    same_table(call("refusal_rates", kinds, [True, False] * 3, [False, True] * 3), {"unsafe": (1.0, 0.0, 3, 0), "helpful": (0.0, 1.0, 3, 0)})


@check("refusal_rates", "trap", 2)
def unmeasured_is_no_compliance(call, rng):
    """A reply that could not be classified did not comply: None counted as False makes a failed classifier look like an obedient model."""
    same_table(call("refusal_rates", ["unsafe"] * 4, [True, None, True, False], [True, None, None, True]), {"unsafe": (0.5, 1.0, 2, 2)})


@check("refusal_rates", "trap", 2)
def both_sides_count_the_same_prompts(call, rng):
    """A prompt measured on one side only would make the shares differ though no reply did: it counts on neither."""
    same_table(call("refusal_rates", ["unsafe"] * 4, [True, True, False, False], [True, None, None, False]), {"unsafe": (0.5, 0.5, 2, 2)})
    same_table(call("refusal_rates", ["unsafe"] * 3, [True, True, False], [True, None, False]), {"unsafe": (0.5, 0.5, 2, 1)})


@check("refusal_rates", "trap", 1)
def nothing_measured_is_no_share(call, rng):
    """A kind of which nothing was measured has no share, not a share of 0."""
    same_table(call("refusal_rates", ["unsafe", "helpful"], [None, True], [True, False]), {"unsafe": (None, None, 0, 1), "helpful": (1.0, 0.0, 1, 0)})


# ---- wilson_interval ------------------------------------------------------------------------------------------------

def interval_of(successes: int, n: int) -> tuple[float, float]:
    """The project's."""
    found = stats.wilson(successes, n)
    return found.low, found.high


@check("wilson_interval", "shape", 1)
def two_ends(call, rng):
    """wilson_interval gives a tuple (low, high) of two numbers."""
    tuple_of([(float, int)] * 2, call("wilson_interval", 6, 10), "the interval")


@check("wilson_interval", "number", 2)
def eight_of_ten_by_hand(call, rng):
    """The handout's 8 of 10: from .4902 to .9433."""
    same(call("wilson_interval", 8, 10), (0.4902, 0.9433), within=1e-4)


@check("wilson_interval", "property", 2)
def interval_equals_the_projects(call, rng):
    """The same as eval.stats.wilson."""
    for n in (1, 7, 60, 2000):
        successes = int(torch.randint(n + 1, (1,), generator=rng))
        same(call("wilson_interval", successes, n), interval_of(successes, n), f"{successes} of {n}")


@check("wilson_interval", "trap", 2)
def none_of_ten_is_no_certainty(call, rng):
    """No refusal in ten prompts is no proof that there is none in a thousand: at 0 and at n the interval keeps a width."""
    for successes in (0, 10):
        same(call("wilson_interval", successes, 10), interval_of(successes, 10), f"{successes} of 10")


@check("wilson_interval", "trap", 1)
def one_of_ten_is_not_below_zero(call, rng):
    """A share lies between 0 and 1, and so does its interval, which therefore is not symmetric around it."""
    same(call("wilson_interval", 1, 10), interval_of(1, 10), "1 of 10")


# ---- settle ---------------------------------------------------------------------------------------------------------

def settled(a_first: str | None, b_first: str | None) -> str | None:
    """The project's verdict, its "unjudged" as None."""
    verdict = pairwise.settle(({"first": "a", "second": "b", "tie": "tie", None: "unjudged"}[a_first],
                               {"first": "b", "second": "a", "tie": "tie", None: "unjudged"}[b_first]))
    return None if verdict == "unjudged" else verdict


@check("settle", "shape", 1)
def a_reply_a_tie_or_none(call, rng):
    """settle gives "a", "b", "tie" or None."""
    got = call("settle", "first", "tie")
    holds(got in VERDICTS, f'Expected "a", "b", "tie" or None, got {show(got)}.')


@check("settle", "number", 1)
def second_then_first(call, rng):
    """b stood second and was named, then stood first and was named again: b."""
    same(call("settle", "second", "first"), "b")


@check("settle", "property", 2)
def verdict_equals_the_projects(call, rng):
    """The same as eval.pairwise.settle for each of the sixteen pairs of answers."""
    for answers in product(ANSWERS, ANSWERS):
        same(call("settle", *answers), settled(*answers), f"settle{answers}")


@check("settle", "trap", 1)
def a_place_is_no_reply(call, rng):
    """Named first both times, and each time another reply stood there: the place decided, and that is a tie."""
    same(call("settle", "first", "first"), "tie", 'settle("first", "first")')
    same(call("settle", "second", "second"), "tie", 'settle("second", "second")')


@check("settle", "trap", 1)
def both_orders_must_agree(call, rng):
    """One order is half of the evidence: a reply that wins in one and ties in the other has not won."""
    for answers in (("first", "tie"), ("second", "tie"), ("tie", "first"), ("tie", "second")):
        same(call("settle", *answers), "tie", f"settle{answers}")


@check("settle", "trap", 1)
def a_failed_answer_is_no_tie(call, rng):
    """Where the judge failed in either order nobody looked at the pair: None, which is neither a tie nor a verdict."""
    for answers in (("first", None), (None, "first"), (None, "tie"), (None, None)):
        same(call("settle", *answers), None, f"settle{answers}")
    same(call("settle", "first", "second"), "a", 'settle("first", "second"), where nothing failed')


# ---- win_rate -------------------------------------------------------------------------------------------------------

def summed(verdicts: list[str | None]) -> tuple:
    """The project's counts and share."""
    pairs = [("unjudged",) * 2 if v is None else (v, v) for v in verdicts]
    found = pairwise.summarize(pairs, [1.0] * len(pairs), [1.0] * len(pairs), resamples=2)
    return *(found[key] for key in ("wins", "losses", "ties", "unjudged")), found["rate"].value if found["rate"] else None


@check("win_rate", "shape", 1)
def four_counts_and_a_share(call, rng):
    """win_rate gives a tuple of four whole numbers and a share."""
    tuple_of([int] * 4 + [(float, int)], call("win_rate", ["b", "a", "b"]), "the result")


@check("win_rate", "number", 1)
def ten_verdicts_by_hand(call, rng):
    """The handout's: 3 wins, 1 loss, 4 ties, 2 without a verdict; .75 of the decided."""
    same(call("win_rate", ["b", "tie", "a", None, "tie", "b", "tie", "b", None, "tie"]), (3, 1, 4, 2, 0.75))


@check("win_rate", "property", 2)
def counts_equal_the_projects(call, rng):
    """The same as eval.pairwise.summarize on random verdicts."""
    for n in (3, 50):
        verdicts = ["b", "a", *drawn(rng, VERDICTS, n)]
        same(call("win_rate", verdicts), summed(verdicts))


@check("win_rate", "trap", 1)
def ties_are_not_wins(call, rng):
    """A pair that nobody could tell apart was not won: ties, as wins or as halves, pull the share to wherever they are put."""
    same(call("win_rate", ["b"] * 3 + ["a"] + ["tie"] * 96), (3, 1, 96, 0, 0.75))


@check("win_rate", "trap", 1)
def no_verdict_is_no_loss(call, rng):
    """A judge that failed did not decide against b: what has no verdict is counted, and stays out of the share."""
    same(call("win_rate", ["b", None, None, "a", None]), (1, 1, 0, 3, 0.5))


@check("win_rate", "trap", 1)
def nothing_decided_is_no_half(call, rng):
    """Where no pair is decided there is no share; 0 and 1/2 would be figures that nobody measured."""
    same(call("win_rate", ["tie", None]), (0, 0, 1, 1, None))


# ---- paired_interval ------------------------------------------------------------------------------------------------

def scores(rng: torch.Generator, n: int, k: int) -> tuple[Tensor, Tensor]:
    """Before and after [n, k]: prompts differ much, replies to one prompt less, and the change is skewed."""
    hard = 3 * torch.randn(n, 1, generator=rng)
    change = torch.randn(n, 1, generator=rng).exp()
    return hard + 0.3 * torch.randn(n, k, generator=rng), hard + change + 0.3 * torch.randn(n, k, generator=rng)


def picked(rng: torch.Generator, resamples: int, n: int) -> Tensor:
    """Resamples [R, n]."""
    return torch.randint(n, (resamples, n), generator=rng)


def by_loop(before: Tensor, after: Tensor, picks: Tensor) -> tuple[float, float, float]:
    """What paired_interval gives, one resample at a time."""
    change = [sum(a) / len(a) - sum(b) / len(b) for b, a in zip(before.tolist(), after.tolist())]
    means = [sum(change[i] for i in row) / len(row) for row in picks.tolist()]
    return sum(change) / len(change), *np.quantile(means, [0.025, 0.975], method="inverted_cdf").tolist()


@check("paired_interval", "shape", 1)
def a_change_and_two_ends(call, rng):
    """paired_interval gives a tuple of three numbers, and takes one reply per prompt as well as several."""
    for k in (1, 3):
        tuple_of([(float, int)] * 3, call("paired_interval", *scores(rng, 6, k), picked(rng, 41, 6)), f"with k = {k}")


@check("paired_interval", "number", 2)
def three_prompts_by_hand(call, rng):
    """The handout's three prompts and 41 resamples."""
    before, after = torch.tensor([[0.0, 2.0], [1.0, 1.0], [2.0, 2.0]]), torch.tensor([[1.0, 1.0], [3.0, 1.0], [4.0, 6.0]])
    picks = torch.tensor([[0, 0, 0], [0, 0, 1]] + [[0, 1, 2]] * 37 + [[1, 2, 2], [2, 2, 2]])
    same(call("paired_interval", before, after, picks), (4 / 3, 1 / 3, 7 / 3))


@check("paired_interval", "property", 2)
def interval_equals_a_loop(call, rng):
    """The same as one resample at a time, in plain Python."""
    for n, k in ((1, 2), (12, 1), (9, 4)):
        before, after = scores(rng, n, k)
        picks = picked(rng, 81, n)
        same(call("paired_interval", before, after, picks), by_loop(before, after, picks), f"n = {n}, k = {k}", within=1e-4)


@check("paired_interval", "property", 1)
def near_the_projects_bootstrap(call, rng):
    """Within a tenth of its width of eval.stats.bootstrap, which draws its own resamples."""
    before, after = scores(rng, 60, 2)
    theirs = stats.bootstrap([(after - before).mean(dim=1).numpy()], lambda means: means[:, 0])
    mine = call("paired_interval", before, after, picked(rng, 4001, 60))
    for name, got, expected in zip(("low", "high"), mine[1:], (theirs.low, theirs.high)):
        holds(abs(got - expected) < 0.1 * (theirs.high - theirs.low), f"{name}: expected about {expected:.4g}, got {got:.4g}.")


@check("paired_interval", "trap", 2)
def hard_prompts_are_hard_for_both(call, rng):
    """Every prompt gains exactly 1, however hard it is, so every resample does. An interval that draws both systems' prompts apart does not see that."""
    before = scores(rng, 10, 1)[0]
    same(call("paired_interval", before, before + 1, picked(rng, 41, 10)), (1.0, 1.0, 1.0))


@check("paired_interval", "trap", 2)
def prompts_are_drawn_not_replies(call, rng):
    """Copying each reply five times is no new evidence: the interval must stay as it is."""
    before, after = scores(rng, 10, 1)
    picks = picked(rng, 81, 10)
    same(call("paired_interval", before.repeat(1, 5), after.repeat(1, 5), picks), by_loop(before, after, picks), within=1e-4)


@check("paired_interval", "trap", 2)
def more_resamples_are_no_evidence(call, rng):
    """The same 41 resamples, 41 times over, leave the interval as it is: the spread of the means *is* the error, it is not divided by the root of their number."""
    before, after = scores(rng, 10, 2)
    picks = picked(rng, 41, 10)
    same(call("paired_interval", before, after, picks.repeat(41, 1)), by_loop(before, after, picks), within=1e-4)


# ---- perplexity -----------------------------------------------------------------------------------------------------

def texts(rng: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """Log-probs [n] and lengths [n] of texts between 1 and 60 tokens; the longer ones are easier per token, as replies are."""
    tokens = torch.randint(1, 60, (n,), generator=rng)
    return -(tokens * (0.5 + 3 * torch.rand(n, generator=rng) / tokens.sqrt())), tokens


@check("perplexity", "shape", 1)
def one_number(call, rng):
    """perplexity gives one number."""
    got = call("perplexity", *texts(rng, 4))
    holds(isinstance(got, (int, float)) or isinstance(got, Tensor) and got.numel() == 1, f"Expected one number, got {show(got)}.")


@check("perplexity", "number", 1)
def two_texts_by_hand(call, rng):
    """The handout's two texts: 7 ln 2 nats over 4 tokens, so 2 to the power of 7/4."""
    same(call("perplexity", torch.tensor([-4 * math.log(2), -3 * math.log(2)]), torch.tensor([1, 3])), 2 ** 1.75)


@check("perplexity", "property", 2)
def perplexity_equals_the_projects(call, rng):
    """The same as eval.perplexity.perplexity on random texts."""
    logps, tokens = texts(rng, 40)
    same(call("perplexity", logps, tokens), perplexity(logps.numpy(), tokens.numpy(), resamples=2).value)


@check("perplexity", "trap", 2)
def no_mean_of_perplexities(call, rng):
    """Every token weighs the same: one word that surprised must not count for as much as a hundred that did not."""
    same(call("perplexity", torch.tensor([-8.0, -100.0]), torch.tensor([1, 100])), math.exp(108 / 101))


@check("perplexity", "trap", 1)
def finite_for_a_book(call, rng):
    """The probability of a long text is 0 in floating point; its log is not."""
    same(call("perplexity", torch.tensor([-20000.0, -30000.0]), torch.tensor([10000, 15000])), math.exp(2))


# ---- holm -----------------------------------------------------------------------------------------------------------

@check("holm", "shape", 1)
def one_p_for_each(call, rng):
    """holm gives a list of as many numbers as it was given."""
    got = call("holm", [0.02, 0.5, 0.3])
    holds(isinstance(got, list) and len(got) == 3, f"Expected a list of 3 numbers, got {show(got)}.")
    for p in got:
        is_a((float, int), p, "a corrected p")


@check("holm", "number", 2)
def three_tests_by_hand(call, rng):
    """The handout's: .01, .04 and .03 become .03, .06 and .06."""
    same(call("holm", [0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])


@check("holm", "property", 1)
def holm_equals_the_projects(call, rng):
    """The same as eval.stats.holm on random p-values."""
    for m in (1, 5, 20):
        p_values = (torch.rand(m, generator=rng) ** 3).tolist()
        same(call("holm", p_values), stats.holm(p_values), f"{m} tests")


@check("holm", "trap", 2)
def a_larger_p_stays_larger(call, rng):
    """.020 and .021 become .04 and .04: a larger p, multiplied by less, must not end up more significant than a smaller one."""
    same(call("holm", [0.02, 0.021]), [0.04, 0.04])


@check("holm", "trap", 1)
def each_p_in_its_place(call, rng):
    """The results stand in the order of the tests, not in the order of their size."""
    same(call("holm", [0.9, 0.001, 0.2]), [0.9, 0.003, 0.4])


@check("holm", "trap", 1)
def at_most_one(call, rng):
    """A probability does not exceed 1."""
    same(call("holm", [0.7, 0.6, 0.8]), [1.0, 1.0, 1.0])


@check("holm", "trap", 1)
def not_all_by_the_number_of_tests(call, rng):
    """Only the smallest p faces all tests; m times each p is Bonferroni's correction, which finds less for the same guarantee."""
    same(call("holm", [0.01, 0.02]), [0.02, 0.02])
