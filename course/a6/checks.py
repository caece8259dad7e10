"""What assignment 6 is graded by. Parts one and two: checks_of_logs.py. Here part three, the repairs, against the project's own code.

The repairs have no shape level, because the sick code has the right shape. Every check of a repair fails on the sick code.
"""
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from batching import make_batch
from course.a6.checks_of_logs import *  # noqa: F403  the checks of parts one and two
from course.a6.checks_of_logs import draw, whole
from course.checking import Wrong, check, same, tensor, wrong
from eval.replies import as_store
from losses import sft_loss
from runtime.config import DPOConfig
from runtime.optim import lr_at


@contextmanager
def nudge(function: str) -> Iterator[None]:
    """What is wrong with a repair ends with where help is."""
    try:
        yield
    except Wrong as e:
        raise Wrong(f"{e}; for a nudge: python -m course.grade a6 --only {function} --hint 1") from None


# ---- scored_tokens --------------------------------------------------------------------------------------------------

EOT = 50


def documents(rng: torch.Generator, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(ids, prompt lengths, reply lengths, the project's own mask): n random documents in rows of their own, padded with end of text."""
    rows = []
    for _ in range(n):
        prompt, reply = (torch.randint(0, EOT, (whole(rng, 2, 9),), generator=rng).tolist() for _ in range(2))
        rows.append(([EOT, *prompt], [*reply, EOT]))
    with as_store(rows, EOT + 1) as store:
        batch = make_batch(store, [[i] for i in range(n)], branches=1)
    ids = torch.where(batch.segments < 0, EOT, batch.ids)
    mask = torch.zeros(ids.numel(), dtype=torch.bool)
    mask[batch.predict_at + 1] = True  # a token is predicted from the one before it
    return ids, *(torch.tensor([len(row[side]) for row in rows]) for side in (0, 1)), mask.view_as(ids)


@check("scored_tokens", "number", 1)
def two_rows_by_hand(call, rng):
    """The handout's two rows, with 9 for end of text: 9 5 6 | 8 3 9 | 9 9 scores 8 3 9, and 9 5 | 4 9 | 9 9 9 9 scores 4 9."""
    ids = torch.tensor([[9, 5, 6, 8, 3, 9, 9, 9], [9, 5, 4, 9, 9, 9, 9, 9]])
    with nudge("scored_tokens"):
        same(call("scored_tokens", ids, torch.tensor([3, 2]), torch.tensor([3, 2]), 9),
             torch.tensor([[False] * 3 + [True] * 3 + [False] * 2, [False] * 2 + [True] * 2 + [False] * 4]))


@check("scored_tokens", "property", 1)
def the_mask_of_batching(call, rng):
    """The tokens that batching.make_batch scores."""
    with nudge("scored_tokens"):
        for n in (1, 6):
            ids, prompts, replies, mask = documents(rng, n)
            same(call("scored_tokens", ids, prompts, replies, EOT), mask, f"{n} documents")


@check("scored_tokens", "trap", 2)
def the_end_is_learnt_once(call, rng):
    """Of all the end-of-text ids in a row, start, end and padding, exactly one is a target: the one that closes the reply."""
    ids, prompts, replies, _ = documents(rng, 5)
    with nudge("scored_tokens"):
        mask = tensor(call("scored_tokens", ids, prompts, replies, EOT), tuple(ids.shape), "the mask", floating=False)
        same((mask & (ids == EOT)).sum(1).tolist(), [1] * 5, "end-of-text targets in each row")


@check("scored_tokens", "trap", 2)
def place_decides_not_id(call, rng):
    """A mask goes by place: the id that pads may also stand inside a reply, and is scored there."""
    ids = torch.tensor([[9, 5, 6, 8, 9, 3, 9, 9, 9]])
    with nudge("scored_tokens"):
        same(call("scored_tokens", ids, torch.tensor([3]), torch.tensor([4]), 9), torch.tensor([[False] * 3 + [True] * 4 + [False] * 2]), "9 5 6 | 8 9 3 9 | 9 9")


# ---- micro_loss -----------------------------------------------------------------------------------------------------

def contributions(call, logps: Tensor, cuts: list[int]) -> list[Tensor]:
    """What each of the micro-batches that `logps` is cut into contributes."""
    return [tensor(call("micro_loss", part, len(logps), len(cuts)), (), "the share of a micro-batch") for part in logps.split(cuts)]


@check("micro_loss", "number", 1)
def three_tokens_and_one(call, rng):
    """Three tokens of log-prob -1 in one micro-batch and one of -5 in the other: the step's loss is 8 / 4, of which the first gives .75 and the second 1.25."""
    with nudge("micro_loss"):
        same(contributions(call, torch.tensor([-1.0, -1.0, -1.0, -5.0]), [3, 1]), [torch.tensor(0.75), torch.tensor(1.25)])


@check("micro_loss", "property", 1)
def however_the_step_is_cut(call, rng):
    """The contributions add up to losses.sft_loss of the whole step, however it is cut."""
    logps = -3 * torch.rand(24, generator=rng)
    with nudge("micro_loss"):
        for cuts in ([12, 12], [21, 3], [10, 8, 5, 1]):
            same(sum(contributions(call, logps, cuts)), sft_loss(logps, 24), f"cut into {cuts}")


@check("micro_loss", "trap", 2)
def a_mean_of_means_favours_short_replies(call, rng):
    """Dividing the sum of means by the number of micro-batches makes the size right and leaves the weights wrong: a token counts more where there are few."""
    logps = torch.cat([torch.full((18,), -draw(rng, 0.5, 1)), torch.full((2,), -draw(rng, 4, 6))])
    with nudge("micro_loss"):
        same(sum(contributions(call, logps, [18, 2])), -logps.mean(), "18 likely tokens in one micro-batch, 2 unlikely ones in the other")


@check("micro_loss", "trap", 2)
def every_token_pulls_alike(call, rng):
    """The gradient of every token of the step is -1 / tokens_in_step, whichever micro-batch it is in."""
    with nudge("micro_loss"):
        for n in (2, 9):
            same(call.gradients("micro_loss", -torch.rand(n, generator=rng), 40, 5, of=(0,))[0], torch.full((n,), -1 / 40), f"a micro-batch of {n} of the step's 40 tokens")


# ---- dropout_share --------------------------------------------------------------------------------------------------

def shares(call, configured: float, wanted: dict[tuple[str, bool], float]) -> None:
    with nudge("dropout_share"):
        for (stage, training), expected in wanted.items():
            same(call("dropout_share", stage, configured, training), expected, f"{stage}, configured {configured:g}, {'training' if training else 'validation'}")


@check("dropout_share", "number", 1)
def none_in_dpo(call, rng):
    """GPT-2's .1 in a DPO training pass is 0."""
    shares(call, 0.1, {("dpo", True): 0.0})


@check("dropout_share", "property", 1)
def all_stages(call, rng):
    """Whatever is configured: none in DPO, none in validation, the configured share elsewhere."""
    for _ in range(2):
        configured = draw(rng, 0.01, 0.5)
        shares(call, configured, {(stage, training): configured * (training and stage != "dpo") for stage in ("dpo", "sft", "base") for training in (True, False)})


@check("dropout_share", "trap", 1)
def sft_keeps_its_dropout(call, rng):
    """Dropout is wrong in DPO, not everywhere: switching it off altogether lets SFT learn its few pairs by heart."""
    configured = draw(rng, 0.05, 0.3)
    shares(call, configured, {("sft", True): configured, ("base", True): configured, ("dpo", True): 0.0})


@check("dropout_share", "trap", 1)
def validation_has_none(call, rng):
    """Validation runs without dropout in every stage, or its loss is noise."""
    shares(call, draw(rng, 0.05, 0.3), {("sft", False): 0.0, ("base", False): 0.0, ("dpo", False): 0.0, ("dpo", True): 0.0})


# ---- policy_and_reference -------------------------------------------------------------------------------------------

def steps_of(rng: torch.Generator, steps: int) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Weights of two shapes and random updates to them."""
    shapes = {"wte.weight": (3, 2), "ln_f.bias": (4,)}
    return randoms(rng, shapes), [randoms(rng, shapes) for _ in range(steps)]


def randoms(rng: torch.Generator, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}


def both_are_right(call, weights: dict[str, Tensor], updates: list[dict[str, Tensor]]) -> None:
    with nudge("policy_and_reference"):
        found = call("policy_and_reference", weights, updates)
        if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, dict) and set(part) == set(weights) for part in found)):
            wrong("two dictionaries with the names of the weights", found)
        for name, weight in weights.items():
            same(found[1][name], weight, f"the reference's {name} after {len(updates)} updates")
            same(found[0][name], sum((update[name] for update in updates if name in update), weight), f"the policy's {name} after {len(updates)} updates")


@check("policy_and_reference", "number", 1)
def two_updates_by_hand(call, rng):
    """Weights 1, 2 with updates +.5, 0 and +.5, -1: the policy ends at 2, 1, the reference is still 1, 2."""
    both_are_right(call, {"w": torch.tensor([1.0, 2.0])}, [{"w": torch.tensor([0.5, 0.0])}, {"w": torch.tensor([0.5, -1.0])}])


@check("policy_and_reference", "property", 1)
def whatever_the_updates(call, rng):
    """The policy is the start plus all updates, the reference the start."""
    for steps in (1, 5):
        both_are_right(call, *steps_of(rng, steps))


@check("policy_and_reference", "trap", 2)
def the_reference_is_of_the_start(call, rng):
    """The reference is what the policy was before the *first* update, not before the last, and not after it."""
    both_are_right(call, *steps_of(rng, 3))


@check("policy_and_reference", "trap", 2)
def every_tensor_is_copied(call, rng):
    """One shared tensor is enough for the reference to move: matrices, biases and gains must all be copied."""
    weights, updates = steps_of(rng, 2)
    for name in weights:
        both_are_right(call, weights, [{name: update[name]} for update in updates])


# ---- learning_rate --------------------------------------------------------------------------------------------------

def schedule(call, total: int, peak: float, warmup: float, floor: float, steps: list[int]) -> None:
    """The submission's learning rate is runtime.optim.lr_at at these steps."""
    c = DPOConfig(lr=peak, warmup=warmup, min_lr=floor)
    with nudge("learning_rate"):
        for step in steps:
            found = call("learning_rate", step, total, peak, warmup, floor)
            same(found / peak if isinstance(found, (int, float)) else found, lr_at(step, total, c) / peak, f"share of the peak at step {step} of {total}, warm-up {warmup:g}, floor {floor:g}")


@check("learning_rate", "number", 1)
def a_hundred_steps_by_hand(call, rng):
    """The handout's schedule, 100 steps, peak 1, warm-up .1, floor .1: .5 at step 4, 1 at step 9, .55 at step 55."""
    with nudge("learning_rate"):
        for step, expected in ((4, 0.5), (9, 1.0), (55, 0.55)):
            same(call("learning_rate", step, 100, 1.0, 0.1, 0.1), expected, f"step {step}")


@check("learning_rate", "property", 1)
def the_projects_schedule(call, rng):
    """The same as runtime.optim.lr_at."""
    for _ in range(2):
        total = whole(rng, 30, 300)
        schedule(call, total, draw(rng, 1e-6, 1e-3), draw(rng, 0.03, 0.3), draw(rng, 0.0, 0.5), [0, total // 2, total - 1])


@check("learning_rate", "trap", 1)
def it_falls_again(call, rng):
    """A learning rate that stays at its peak ends with steps too large for the last tenths of a nat: after the warm-up it falls."""
    schedule(call, 200, 1e-3, 0.05, 0.1, [50, 120, 199])


@check("learning_rate", "trap", 1)
def it_ends_at_the_floor(call, rng):
    """The last steps have floor times the peak, not nothing."""
    schedule(call, 1000, 1e-3, 0.05, draw(rng, 0.2, 0.4), [990, 999])


@check("learning_rate", "trap", 1)
def the_warm_up_is_kept(call, rng):
    """The first steps rise to the peak from 1 / W of it: Adam's averages are of few gradients there, so large steps would be steps in the dark."""
    schedule(call, 100, 1e-3, 0.2, 0.1, [0, 1, 10, 19, 30])
