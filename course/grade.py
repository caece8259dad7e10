"""Grade a submission.

    python -m course.grade a4 my_a4.py                           a points table; exit code 0 only with all points
    python -m course.grade a4 my_a4.py --only dpo_loss           one function
    python -m course.grade a4 --only dpo_loss --hint 1           a hint, vaguest first (1, 2, 3)
    python -m course.grade a4 my_a4.py --out results             also results/results.json (Gradescope) and results/grade.json

The submission runs in a process of its own, cut off from the project, and gives values back; they are compared here, on inputs drawn anew
each time (--seed repeats them).
"""
import argparse
import importlib
import json
import secrets
import sys
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from course.build import folder_of
from course.checking import LEVELS, Call, Check, Wrong, checks_of
from course.sandbox import Failed, Limits, Sandbox
from data.store import write_json
from runtime.errors import UserError, run_main

GIVE_UP_AFTER = 3  # checks that ran into a limit: the rest would too, at ten seconds each


@dataclass
class Result:
    """One line of the table."""
    name: str
    function: str
    level: str
    points: float
    earned: float
    message: str  # "" when all points were earned


def load_checks(assignment: str) -> list[Check]:
    """The checks of an assignment, by function and level."""
    found = checks_of(importlib.import_module(f"course.{folder_of(assignment).name}.checks"))
    order = list(dict.fromkeys(c.function for c in found))
    return sorted(found, key=lambda c: (order.index(c.function), LEVELS.index(c.level)))


def run_check(check: Check, call: Call, seed: int) -> tuple[str, Failed | None]:
    """(what is wrong, "" when nothing is; the failed call, if that is why)."""
    rng = torch.Generator().manual_seed((seed + zlib.crc32(check.name.encode())) % 2**63)  # each check its own draws, whichever others run
    try:
        check.run(call, rng)
        return "", None
    except Wrong as e:
        return f"{check.says} {e}", None
    except Failed as e:
        return str(e), e
    except Exception as e:  # a value that no comparison was made for: None where a tensor is expected, a number beyond all floats
        return f"{check.says} What came cannot be compared ({type(e).__name__}): is it of the kind that the docstring names?", None


def grade(assignment: str, path: Path, sandbox: Sandbox, seed: int, only: str = "") -> list[Result]:
    """All checks on the submission in `path`, in the table's order. UserError when it cannot be read."""
    checks = load_checks(assignment)
    chosen = [c for c in checks if only in ("", c.function)]
    if not chosen:
        raise UserError(f"{assignment} has no function '{only}'; it has {', '.join(dict.fromkeys(c.function for c in checks))}.")
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"the submission {path} cannot be read ({e}).") from None
    call, results, stopped, shapeless, costly = Call(sandbox, source, path.name), [], "", set(), 0
    try:
        sandbox.call(source, path.name, "")
    except Failed as e:
        stopped = f"the file cannot be loaded: {e}"
    for check in chosen:
        if stopped:
            message = stopped
        elif check.function in shapeless:
            message = "not run: the shape level comes first"
        else:
            message, failed = run_check(check, call, seed)
            if sandbox.left_behind():
                message, failed = "stopped: it left processes running", Failed("", ends=True)
            costly += failed is not None and failed.cost
            if failed is not None and failed.ends:
                stopped = message
                for earlier in results:  # whoever attacks the grader has not earned anything
                    earlier.earned, earlier.message = 0.0, message
            elif costly == GIVE_UP_AFTER:
                stopped = f"not run: {costly} checks before it ran into a limit"
        if message and check.level == "shape":
            shapeless.add(check.function)
        results.append(Result(check.name, check.function, check.level, check.points, 0.0 if message else check.points, message))
    return results


def table(assignment: str, results: list[Result], seed: int) -> str:
    """What is printed: a line per check, its message where points are missing, and the sum."""
    lines, function = [], ""
    for r in results:
        if r.function != function:
            function = r.function
            lines.append(f"\n{function}")
        lines.append(f"  {r.level:9}{r.name.replace('_', ' '):55}{r.earned:g}/{r.points:g}")
        if r.message:
            lines.append(f"           {r.message}")
    return "\n".join([*lines, f"\n{assignment}: {sum(r.earned for r in results):g} of {sum(r.points for r in results):g} points (seed {seed})"])


def write_results(folder: Path, assignment: str, results: list[Result], seed: int) -> None:
    """results.json as Gradescope reads it, and grade.json, the same in plain words."""
    folder.mkdir(parents=True, exist_ok=True)
    earned, points = sum(r.earned for r in results), sum(r.points for r in results)
    write_json(folder / "grade.json", {"assignment": assignment, "seed": seed, "earned": earned, "points": points, "checks": [asdict(r) for r in results]})
    write_json(folder / "results.json", {"score": earned, "output": f"{earned:g} of {points:g} points, seed {seed}", "tests": [
        {"name": f"{r.function}: {r.name.replace('_', ' ')} ({r.level})", "score": r.earned, "max_score": r.points, "output": r.message,
         "status": "failed" if r.message else "passed", "visibility": "visible"} for r in results]})


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(prog="python -m course.grade", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("assignment")
    a.add_argument("submission", nargs="?", type=Path)
    a.add_argument("--only", default="", metavar="FUNCTION")
    a.add_argument("--hint", type=int, choices=(1, 2, 3))
    a.add_argument("--seed", type=int, help="of the random inputs [fresh]")
    a.add_argument("--out", type=Path, help="folder for results.json and grade.json")
    a.add_argument("--seconds", type=float, default=Limits.seconds, help="limit of one call [%(default)g]")
    a.add_argument("--memory_gb", type=float, default=Limits.memory_gb, help="limit of one call [%(default)g]")
    a = a.parse_args(argv)
    if a.hint:
        staged = json.loads((folder_of(a.assignment) / "hints.json").read_text())
        if a.only not in staged:
            raise UserError(f"name the function with --only; {a.assignment} has {', '.join(staged)}.")
        print(f"{a.only}, hint {a.hint} of {len(staged[a.only])}: {staged[a.only][a.hint - 1]}")
        return
    if a.submission is None:
        raise UserError(f"name the file to grade: python -m course.grade {a.assignment} my_{a.assignment}.py")
    seed = secrets.randbelow(2**31) if a.seed is None else a.seed
    with Sandbox(Limits(a.seconds, a.memory_gb)) as sandbox:
        results = grade(a.assignment, a.submission, sandbox, seed, a.only)
    print(table(a.assignment, results, seed))
    if a.out:
        write_results(a.out, a.assignment, results, seed)
    if any(r.message for r in results):
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
