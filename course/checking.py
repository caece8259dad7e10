"""What an assignment's checks are written with. A check is a function of `call`, which runs the submission in its child, and a fresh random generator.

    @check("dpo_loss", "number", 2)
    def worked_by_hand(call, rng):
        \"\"\"One sentence that a student reads when it fails.\"\"\"
        same(call("dpo_loss", ...), expected, "the loss of ...")

Levels, in order: "shape" (does it run, and return the right kind of thing), "number" (worked by hand), "property" (true for all inputs),
"trap" (one known mistake each, named after it). A function's later levels are run once its shape is right.
"""
import ast
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor

from course.sandbox import Failed, Sandbox

LEVELS = ("shape", "number", "property", "trap", "written")
WORDS = 25  # a written answer has at least so many


@dataclass(frozen=True)
class Check:
    """One line of the points table."""
    name: str
    function: str
    level: str
    points: float
    says: str
    run: Callable[["Call", torch.Generator], None]


class Wrong(Exception):
    """The submission's value is not the right one; the message says what was expected and what came."""


@dataclass
class Call:
    """call("name", *args) runs a function of the submission; call.gradients("name", *args, of=(0, 1)) gives d sum(result) / d args[i]. Both raise Failed."""
    sandbox: Sandbox
    source: str
    name: str

    def __call__(self, function: str, *args: Any) -> Any:
        return self.sandbox.call(self.source, self.name, function, args)

    def gradients(self, function: str, *args: Any, of: tuple[int, ...]) -> list[Tensor]:
        return self.sandbox.call(self.source, self.name, function, args, of)


def check(function: str, level: str, points: float) -> Callable:
    """Mark a function of a checks file as a check of `function`."""
    def mark(run: Callable) -> Callable:
        run.check = Check(run.__name__, function, level, points, run.__doc__, run)
        return run
    return mark


def checks_of(module: ModuleType) -> list[Check]:
    """The checks of a file in their order, and the two of the written answers, which every assignment has."""
    return [thing.check for thing in (*vars(module).values(), prediction_before, explanation_after) if hasattr(thing, "check")]


def wrong(expected: Any, got: Any, what: str = "") -> NoReturn:
    """Raise Wrong with both values."""
    raise Wrong(f"{what + ': ' if what else ''}expected {show(expected)}, got {show(got)}")


def show(value: Any) -> str:
    """A value in one short line."""
    if isinstance(value, Tensor):
        numbers = ", ".join(f"{v:.5g}" if isinstance(v, float) else str(v) for v in value.flatten()[:6].tolist())
        return f"{str(value.dtype)[6:]} {list(value.shape)} [{numbers}{', ...' if value.numel() > 6 else ''}]"
    text = repr(value)
    return text if len(text) <= 160 else text[:157] + "..."


def tensor(value: Any, shape: tuple[int, ...], what: str = "the result", floating: bool | None = True) -> Tensor:
    """`value`, which must be a tensor of this shape, of floats (True), of whole numbers or booleans (False), or of either (None). Raises Wrong."""
    if not isinstance(value, Tensor) or tuple(value.shape) != shape or (floating is not None and value.is_floating_point() != floating):
        kind = {True: "a float", False: "a whole-number or boolean", None: "a"}[floating]
        raise Wrong(f"{what}: expected {kind} tensor of shape {list(shape)}, got {show(value)}")
    return value


def same(got: Any, expected: Any, what: str = "", within: float = 1e-5) -> None:
    """Equal, numbers and tensors to `within` (absolute, and relative to the larger). Raises Wrong with both values, and the first place they differ."""
    if isinstance(expected, Tensor):
        tensor(got, tuple(expected.shape), what or "the result", None)
        near = torch.isclose(got.double(), expected.double(), rtol=within, atol=within, equal_nan=True)
        if not bool(near.all()):
            at = tuple(int(i) for i in (~near).nonzero()[0])
            raise Wrong(f"{what + ': ' if what else ''}expected {show(expected)}, got {show(got)}"
                        + (f"; they first differ at {list(at)}: {expected[at].item():.6g} and {got[at].item():.6g}" if at else ""))
    elif isinstance(expected, float):
        if isinstance(got, Tensor) and got.numel() == 1:
            got = got.item()
        if isinstance(got, bool) or not isinstance(got, (int, float)) or not abs(got - expected) <= within * max(1.0, abs(expected)):
            wrong(expected, got, what)
    elif isinstance(expected, (list, tuple)) and any(isinstance(part, (Tensor, float, list, tuple)) for part in expected):
        if not isinstance(got, type(expected)) or len(got) != len(expected):
            wrong(expected, got, what)
        for i, (mine, theirs) in enumerate(zip(got, expected)):
            same(mine, theirs, f"{what or 'the result'}[{i}]", within)
    elif isinstance(got, Tensor) or type(got) is not type(expected) or got != expected:
        wrong(expected, got, what)


def holds(condition: bool, message: str) -> None:
    """Raises Wrong with the message unless the condition is true."""
    if not condition:
        raise Wrong(message)


def literal(source: str, name: str) -> dict:
    """The dict that a submission's line `name = {...}` holds, read as data and never run; {} when there is none. ValueError when it is more than data."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and [getattr(t, "id", "") for t in node.targets] == [name]:
            value = ast.literal_eval(node.value)
            return value if isinstance(value, dict) else {}
    return {}


def answered(source: str, question: str) -> None:
    """Raises Wrong unless WRITTEN[question] is a text of some length. That it is right is for a person to say."""
    try:
        words = len(str(literal(source, "WRITTEN").get(question, "")).split())
    except (ValueError, SyntaxError):
        raise Wrong("WRITTEN must be a plain dict of texts") from None
    holds(words >= WORDS, f'WRITTEN["{question}"] has {words} words; at least {WORDS}, in your own words, to be read by a person')


@check("the run", "written", 2)
def prediction_before(call: Call, rng: torch.Generator) -> None:
    """Before the run:"""
    answered(call.source, "before")


@check("the run", "written", 2)
def explanation_after(call: Call, rng: torch.Generator) -> None:
    """After the run:"""
    answered(call.source, "after")


__all__ = ["Call", "Check", "Failed", "Wrong", "check", "checks_of", "holds", "same", "show", "tensor", "wrong"]
