"""What parts one and two of assignment 6 are graded by: logs made up anew, whose truth is known because they were made so, and the five real ones."""
import math
from collections.abc import Callable
from typing import Any

import torch

from course.build import folder_of
from course.checking import check, holds, same, wrong
from runtime.run import KEYS, read_metrics

RUNS = folder_of("a6") / "runs"
Rows = list[dict[str, Any]]
Curve = Callable[[int], float | None]  # step -> value


def draw(rng: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand(1, generator=rng).item()


def whole(rng: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high, (1,), generator=rng))


def log(train: dict[str, Curve], val: dict[str, Curve], begin: int = 0, steps: int = 40) -> Rows:
    """A log such as train_dpo.py writes: validation every 10 steps from `begin` on, training at the step behind it and at every even one."""
    def row(split: str, step: int, columns: dict[str, Curve]) -> dict[str, Any]:
        return dict.fromkeys(KEYS) | {"split": split, "step": step} | {name: curve(step) for name, curve in columns.items()}

    train_steps = [step for step in range(begin + 1, begin + steps + 1) if step == begin + 1 or step % 2 == 0]
    rows = [row("val", step, val) for step in range(begin, begin + steps + 1, 10)] + [row("train", step, train) for step in train_steps]
    return sorted(rows, key=lambda r: (r["step"], r["split"]))


def line(start: float | None, end: float | None, begin: int = 0, steps: int = 40) -> Curve:
    """From `start` to `end`; not measured when either is None."""
    return lambda step: None if start is None or end is None else start + (end - start) * (step - begin) / steps


def noisy(rng: torch.Generator, curve: Curve, size: float) -> Curve:
    return lambda step: curve(step) + draw(rng, -size, size)


# ---- first_losses_are_right -----------------------------------------------------------------------------------------

def begins(val: float | None, train: float | None, begin: int = 0) -> Rows:
    """A log whose first two losses are these, and which then falls."""
    return log({"loss": lambda step: train if step == begin + 1 else 0.6}, {"loss": lambda step: val if step == begin else 0.61}, begin)


@check("first_losses_are_right", "shape", 1)
def a_verdict_on_a_whole_log(call, rng):
    """first_losses_are_right gives True or False for a log that has both rows."""
    found = call("first_losses_are_right", begins(0.69, 0.69), 0.6931, 0.001)
    holds(isinstance(found, bool), f"Expected True or False, got {found!r}.")


@check("first_losses_are_right", "number", 1)
def two_logs_of_the_handout(call, rng):
    """Validation .6931 and training .6934 are right to within .001; validation .6931 and training .7410 are not."""
    same(call("first_losses_are_right", begins(0.6931, 0.6934), math.log(2), 0.001), True, ".6931 and .6934")
    same(call("first_losses_are_right", begins(0.6931, 0.7410), math.log(2), 0.001), False, ".6931 and .7410")


@check("first_losses_are_right", "property", 2)
def either_loss_can_be_wrong(call, rng):
    """Both losses must lie within the tolerance, on either side of what is expected."""
    for _ in range(4):
        expected, tolerance = draw(rng, 0.3, 2), draw(rng, 0.001, 0.05)
        for by_val in (0.8, -1.5):
            for by_train in (-0.7, 1.6):
                rows = begins(expected + by_val * tolerance, expected + by_train * tolerance)
                same(call("first_losses_are_right", rows, expected, tolerance), abs(by_val) < 1 and abs(by_train) < 1,
                     f"expected {expected:.4f}, tolerance {tolerance:.4f}, validation {by_val * tolerance:+.4f}, training {by_train * tolerance:+.4f}")


@check("first_losses_are_right", "trap", 1)
def training_counts_too(call, rng):
    """Dropout left on spoils the first training loss and leaves validation, which runs without, exactly right."""
    same(call("first_losses_are_right", begins(0.6931, 0.6931 + draw(rng, 0.02, 0.2)), math.log(2), 0.005), False, "training loss off, validation loss right")


@check("first_losses_are_right", "trap", 1)
def a_resumed_log_tells_nothing(call, rng):
    """A log that begins at step 200 has a first row, but not of the first step; what was not measured is neither right nor wrong."""
    same(call("first_losses_are_right", begins(0.6931, 0.6931, 200), math.log(2), 0.005), None, "a log from step 200 on")
    same(call("first_losses_are_right", begins(0.6931, None), math.log(2), 0.005), None, "a log without a training loss at step 1")


@check("first_losses_are_right", "trap", 1)
def other_objectives_start_elsewhere(call, rng):
    """ln 2 is where DPO begins; IPO begins at 1 / (4 beta^2), which is why `expected` is an argument."""
    same(call("first_losses_are_right", begins(25.0, 25.0), 25.0, 0.01), True, "IPO at beta .1, first losses 25")
    same(call("first_losses_are_right", begins(0.6931, 0.6931), 25.0, 0.01), False, "IPO at beta .1, first losses .6931")


# ---- why_stuck ------------------------------------------------------------------------------------------------------

STILL, MOVED = 0.002, 0.1


def stuck(rng: torch.Generator, chosen: float = 0.0, rejected: float = 0.0, norm: float = 1.5, loss: Curve = lambda step: math.log(2)) -> Rows:
    """A DPO log: the changes of the validation log-probs in nats, the size of grad_norm, the training loss. Training log-probs jump from step to step."""
    at = draw(rng, -60, -10)
    train = {"loss": loss, "grad_norm": lambda step: norm and noisy(rng, lambda s: norm, 0.3 * norm)(step),
             "logps/chosen": noisy(rng, lambda s: at, 3), "logps/rejected": noisy(rng, lambda s: at - 1, 3)}
    return log(train, {"loss": loss, "logps/chosen": line(at, at + chosen), "logps/rejected": line(at - 1, at - 1 + rejected)})


@check("why_stuck", "shape", 1)
def one_of_four_words(call, rng):
    """why_stuck gives one of its four answers, as a string."""
    found = call("why_stuck", stuck(rng, norm=0.0), STILL, MOVED)
    holds(found in ("not stuck", "no gradient", "moving reference", "learning rate too low"), f"Expected one of the four answers in the docstring, got {found!r}.")


@check("why_stuck", "number", 1)
def three_logs_of_the_handout(call, rng):
    """The handout's three logs with a loss of .6931 throughout, told apart by grad_norm and by the validation log-probs."""
    for norm, rejected, expected in ((0.0, 0.0, "no gradient"), (1.4, -0.9, "moving reference"), (1.4, -0.01, "learning rate too low")):
        same(call("why_stuck", stuck(rng, rejected=rejected, norm=norm), STILL, MOVED), expected, f"grad_norm about {norm}, log-prob of rejected replies {rejected:+} nats")


@check("why_stuck", "property", 2)
def four_kinds_of_log(call, rng):
    """Whatever the sizes: the four answers for logs that were made to deserve them."""
    for _ in range(3):
        still, moved, norm = draw(rng, 0.001, 0.01), draw(rng, 0.05, 0.5), draw(rng, 0.1, 9)
        for expected, rows in {
                "not stuck": stuck(rng, -2 * moved, -3 * moved, norm, line(math.log(2), math.log(2) - 4 * still)),
                "no gradient": stuck(rng, norm=0.0),
                "moving reference": stuck(rng, -1.5 * moved, -2 * moved, norm, noisy(rng, lambda step: math.log(2), still / 4)),
                "learning rate too low": stuck(rng, 0.5 * moved, -0.8 * moved, norm, noisy(rng, lambda step: math.log(2), still / 4))}.items():
            same(call("why_stuck", rows, still, moved), expected, f"still {still:.4f}, moved {moved:.2f}")


@check("why_stuck", "trap", 1)
def training_rows_are_of_other_pairs(call, rng):
    """Training log-probs jump by nats from step to step because every step has other pairs; only validation shows that the model moved."""
    same(call("why_stuck", stuck(rng, 0.01, -0.02), STILL, MOVED), "learning rate too low", "training log-probs jump by 3 nats, validation ones by .02")


@check("why_stuck", "trap", 1)
def the_rejected_replies_count(call, rng):
    """The chosen replies may stay where they are while the rejected ones fall, or the other way round."""
    same(call("why_stuck", stuck(rng, 0.0, -draw(rng, 0.5, 3)), STILL, MOVED), "moving reference", "only the rejected replies moved")
    same(call("why_stuck", stuck(rng, -draw(rng, 0.5, 3), 0.0), STILL, MOVED), "moving reference", "only the chosen replies moved")


@check("why_stuck", "trap", 1)
def a_rise_is_a_move(call, rng):
    """A log-prob that rises has moved as one that falls has."""
    up = draw(rng, 0.5, 3)
    same(call("why_stuck", stuck(rng, up, 0.0), STILL, MOVED), "moving reference", f"log-prob of chosen replies {up:+.2f} nats")


@check("why_stuck", "trap", 1)
def a_loss_that_came_back(call, rng):
    """A loss that rose and came back to where it began has not stood still; first and last row alone do not show it."""
    rows = stuck(rng, -1.0, -1.0, loss=lambda step: math.log(2) + (0.3 if 10 < step < 30 else 0.0))
    same(call("why_stuck", rows, STILL, MOVED), "not stuck", "a loss that was .3 higher between steps 10 and 30")


# ---- is_hollow ------------------------------------------------------------------------------------------------------

def written(rng: torch.Generator, accuracy: tuple, well_formed: tuple, ended: tuple) -> Rows:
    """A DPO log whose validation columns go from one share to another."""
    return log({"loss": noisy(rng, line(0.7, 0.3), 0.05), "rewards/accuracy": noisy(rng, line(0.5, 0.9), 0.1)},
               {"loss": line(0.69, 0.3), "rewards/accuracy": line(*accuracy), "replies/well_formed": line(*well_formed), "replies/ended": line(*ended)})


@check("is_hollow", "shape", 1)
def true_or_false_where_measured(call, rng):
    """is_hollow gives True or False when all three columns were measured."""
    found = call("is_hollow", written(rng, (0.5, 0.7), (0.9, 0.9), (1.0, 1.0)), 0.1, 0.25)
    holds(isinstance(found, bool), f"Expected True or False, got {found!r}.")


@check("is_hollow", "number", 1)
def the_handouts_two_runs(call, rng):
    """Accuracy .50 to .66: hollow where well-formed replies went from .94 to .10, not where they went from .94 to .91."""
    same(call("is_hollow", written(rng, (0.5, 0.66), (0.94, 0.10), (1.0, 0.9)), 0.1, 0.25), True, ".94 to .10")
    same(call("is_hollow", written(rng, (0.5, 0.66), (0.94, 0.91), (1.0, 1.0)), 0.1, 0.25), False, ".94 to .91")


@check("is_hollow", "property", 2)
def both_halves_are_needed(call, rng):
    """Hollow needs both: a better judge and a worse writer, by at least the amounts given."""
    for _ in range(2):
        gain, fall = draw(rng, 0.05, 0.2), draw(rng, 0.1, 0.3)
        for up in (0.5 * gain, 1.5 * gain, -gain):
            for form, end in ((0.5, 0.5), (1.4, 0.1), (0.2, 1.4), (-1.2, 0.0)):
                rows = written(rng, (0.5, 0.5 + up), (0.6, 0.6 - form * fall), (0.7, 0.7 - end * fall))
                same(call("is_hollow", rows, gain, fall), up > gain and max(form, end) > 1,
                     f"gain {gain:.2f}, fall {fall:.2f}; accuracy {up:+.2f}, well-formed {-form * fall:+.2f}, ended {-end * fall:+.2f}")


@check("is_hollow", "property", 1)
def on_the_real_logs(call, rng):
    """Of the three sick DPO runs exactly the one in which replies fell apart is hollow, and the healthy one is not."""
    for run, expected in ((1, True), (3, False), (5, False)):
        same(call("is_hollow", read_metrics(RUNS / f"run_{run}" / "metrics.jsonl"), 0.02, 0.25), expected, f"run {run}")
    same(call("is_hollow", read_metrics(RUNS / "healthy_dpo" / "metrics.jsonl"), 0.02, 0.25), False, "the healthy DPO run")


@check("is_hollow", "trap", 1)
def accuracy_is_not_enough(call, rng):
    """A rising reward accuracy is what a healthy run shows too: without looking at replies nothing is known."""
    same(call("is_hollow", written(rng, (0.5, 0.9), (0.95, 0.9), (1.0, 0.97)), 0.1, 0.25), False, "accuracy .5 to .9, replies as good as before")
    same(call("is_hollow", written(rng, (0.5, 0.9), (None, None), (None, None)), 0.1, 0.25), None, "accuracy .5 to .9, no reply was looked at")


@check("is_hollow", "trap", 1)
def changes_not_levels(call, rng):
    """An SFT model that wrote one well-formed reply in five before DPO, and does so after it, was not ruined by DPO."""
    same(call("is_hollow", written(rng, (0.5, 0.9), (0.2, 0.2), (0.4, 0.4)), 0.1, 0.25), False, "well-formed .2 to .2, ended .4 to .4")
    same(call("is_hollow", written(rng, (0.88, 0.9), (0.9, 0.1), (1.0, 0.2)), 0.1, 0.25), False, "accuracy .88 to .90, replies ruined")


@check("is_hollow", "trap", 1)
def one_column_of_replies_is_enough(call, rng):
    """On real text nobody measures well-formed replies; whether they end is measured everywhere, and is enough to judge by."""
    same(call("is_hollow", written(rng, (0.5, 0.8), (None, None), (1.0, 0.3)), 0.1, 0.25), True, "well-formed not measured, ended 1.0 to .3")
    same(call("is_hollow", written(rng, (0.5, 0.8), (0.9, 0.2), (None, None)), 0.1, 0.25), True, "ended not measured, well-formed .9 to .2")
    same(call("is_hollow", written(rng, (0.5, 0.8), (None, None), (1.0, 0.9)), 0.1, 0.25), False, "well-formed not measured, ended 1.0 to .9")


# ---- diagnosis ------------------------------------------------------------------------------------------------------

SIGNS = {  # cause: what the log would show
    "no gradient": "every grad_norm would be 0 and the validation log-probs would stay where they are",
    "moving reference": "loss, margin and accuracy would stand still, in training and in validation, while the log-probs change",
    "learning rate too low": "loss and validation log-probs would both stand still, with a healthy grad_norm",
    "other reference": "the loss would be wrong before the first update in validation as well as in training",
    "dropout on": "the loss would be wrong before the first update in training, and right in validation",
    "warm-up never ends": "lr would be rising in the last row still",
    "beta too small": "the margin would be small for the distance of the log-probs from where they began (the margin is beta times their difference), with lr as in the healthy run",
    "means added up": "the training loss would be a multiple of the validation loss at the same step, from the first row on",
    "end of text masked": "replies would run to the limit of their length, with losses much as in the healthy run",
    "prompt scored": "the SFT losses, in training and validation alike, would be those of another text than the healthy run's, and the replies would end"}
REPLIES = {"val replies/words", "val replies/ended", "val replies/kl", "val replies/well_formed"}
DRIFT, LEARNING = {"val logps/chosen", "val logps/rejected"}, {"val loss", "val rewards/margin", "val rewards/accuracy"}
COLUMNS = REPLIES | DRIFT | LEARNING | {"train loss", "train lr", "train grad_norm", "train logps/chosen"}
ANSWERS = {  # run: its cause, and two sets of columns, of each of which one must be named
    1: ("warm-up never ends", {"train lr"}, REPLIES | DRIFT),
    2: ("means added up", {"train loss"}, {"val loss"}),
    3: ("moving reference", LEARNING | {"train loss"}, DRIFT | {"val replies/kl"}),
    4: ("end of text masked", {"val replies/ended", "val replies/words"}, {"train loss", "val loss"}),
    5: ("dropout on", {"train loss", "train logps/chosen"}, LEARNING | {"val logps/chosen"})}


def told(call, run: int) -> tuple[str, list[str]]:
    """The submission's answer about a run. Raises Wrong for one that is no cause of the list with two different columns of the list."""
    found = call("diagnosis", run)
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], str) and found[0] in SIGNS):
        wrong("a tuple (one of CAUSES, two of COLUMNS)", found, f"run {run}")
    columns = found[1]
    if not (isinstance(columns, list) and all(isinstance(name, str) for name in columns) and len(columns) == 2 == len(set(columns)) and set(columns) <= COLUMNS):
        wrong("a list of two different names out of COLUMNS", columns, f"run {run}")
    return found


def diagnosed(call, run: int) -> None:
    """Cause and evidence together; neither alone earns anything."""
    cause, (one, other) = told(call, run)
    right, first, second = ANSWERS[run]
    holds(cause == right, f'If it were "{cause}", {SIGNS[cause]}. Is that what the log of run {run} shows, next to the healthy run of its stage?')
    holds((one in first and other in second) or (other in first and one in second),
          f'"{cause}" it may be, but "{one}" with "{other}" does not show it: one column must show that something is wrong, the other must rule out what else it could be.')


@check("diagnosis", "shape", 1)
def a_cause_and_two_columns(call, rng):
    """diagnosis gives, for every run, one of CAUSES and two of COLUMNS."""
    for run in ANSWERS:
        told(call, run)


@check("diagnosis", "number", 3)
def run_1(call, rng):
    """Run 1."""
    diagnosed(call, 1)


@check("diagnosis", "number", 3)
def run_2(call, rng):
    """Run 2."""
    diagnosed(call, 2)


@check("diagnosis", "number", 3)
def run_3(call, rng):
    """Run 3."""
    diagnosed(call, 3)


@check("diagnosis", "number", 3)
def run_4(call, rng):
    """Run 4."""
    diagnosed(call, 4)


@check("diagnosis", "number", 3)
def run_5(call, rng):
    """Run 5."""
    diagnosed(call, 5)
