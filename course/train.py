"""Train the toy model through a student's own functions, and show what came next to what was predicted and what is usual.

    python -m course.train a4 my_a4.py [--seed 0] [--out out] [--sft FOLDER]

Each assignment's run.py puts the functions in the place of the project's and returns an Outcome. What is usual, over five seeds, stands in
expected.json, which `python -m course.bands a4` makes with the reference solution. This runs the submission in this process: it is for your own code.
"""
import argparse
import importlib
import importlib.util
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import reference
from course.build import folder_of
from course.checking import literal
from course.grade import grade
from course.sandbox import Sandbox
from runtime.checkpoint import find_checkpoint
from runtime.errors import UserError, run_main
from runtime.run import run_stage

Curve = list[tuple[float, float]]


@dataclass
class Outcome:
    """What a run gave: figures by name, and curves by name, which are drawn. Units belong into the names."""
    figures: dict[str, float]
    curves: dict[str, Curve] = field(default_factory=dict)


@dataclass
class Base:
    """Where a run begins: the output folder, the seed, and the SFT model that others start from."""
    out: Path
    seed: int
    sft: Path
    name: str

    def argv(self, stage: str, **settings: object) -> list[str]:
        """The command line of a stage of the toy experiment <name>/<stage>; `dpo__lr=1e-4` stands for --dpo.lr=1e-4."""
        words = {"out": self.out, "name": f"{self.name}/{stage}", "seed": self.seed, "fresh": True}
        return ["toy", *(f"--{key.replace('__', '.')}={value}" for key, value in (words | settings).items())]

    def from_sft(self) -> dict[str, object]:
        """The settings of a DPO run that starts from the SFT model; train it first, as `python train_sft.py toy` does, where it is missing."""
        if find_checkpoint(self.sft) is None:
            if self.sft != default_sft(self.out, self.seed):
                raise UserError(f"--sft: no checkpoint in {self.sft}.")
            run_stage("train_sft.py", ["toy", f"--out={self.out}", f"--seed={self.seed}", f"--name={self.sft.parents[1].name}"], "no SFT model (about four minutes)")
        return {"dpo__init_from": self.sft, "data__tokenizer": self.sft}


def default_sft(out: Path, seed: int) -> Path:
    """The SFT model of the toy demo, or of its twin with another seed."""
    return out / ("toy" if seed == 0 else f"toy_seed{seed}") / "sft" / "best"


def load_submission(path: Path) -> ModuleType:
    """The student's file as a module, in this process. UserError when it cannot be loaded."""
    try:
        spec = importlib.util.spec_from_file_location("submission", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (OSError, SyntaxError, AttributeError) as e:
        raise UserError(f"the submission {path} cannot be loaded ({e}).") from None
    return module


def predictions(path: Path) -> dict[str, float | None]:
    """A submission's PREDICTION; {} when there is none. UserError when it is more than a dict of numbers."""
    try:
        return literal(path.read_text(encoding="utf-8"), "PREDICTION")
    except ValueError:
        raise UserError(f"PREDICTION in {path} must be a plain dict of numbers and None: write the numbers themselves.") from None


def run_of(assignment: str, student: ModuleType, base: Base) -> Outcome:
    """What an assignment's run gives. The reference's log-probs go into a folder of their own: other runs share the usual one, and must not find there what a
    student's functions made of them."""
    real = reference.reference_logps
    with tempfile.TemporaryDirectory() as folder, patch.object(reference, "reference_logps", lambda cache, *rest: real(Path(folder) / cache.parent.name / cache.name, *rest)):
        return importlib.import_module(f"course.{assignment}.run").run(student, base)


def table(found: dict[str, float], said: dict[str, float | None], usual: dict[str, list[float]]) -> str:
    """Measured, predicted, and the range over the seeds of expected.json."""
    rows = [("", "yours", "you predicted", f"over {len(next(iter(usual.values()), []))} seeds")]
    for name, value in found.items():
        band = f"{min(usual[name]):.4g} to {max(usual[name]):.4g}" if name in usual else "not measured"
        rows.append((name, f"{value:.4g}", "" if said.get(name) is None else f"{said[name]:.4g}", band))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def draw(curves: dict[str, Curve], usual: dict[str, list[Curve]], path: Path) -> None:
    """The usual runs' medians and ranges, and in front of them this one's. Names before " | " name a panel, what is behind it a curve of that panel."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    panels: dict[str, list[str]] = {}
    for name in usual or curves:
        panels.setdefault(name.partition(" | ")[0], []).append(name)
    across = min(3, len(panels)) if len(panels) != 4 else 2
    down = -(-len(panels) // across)
    figure, axes = plt.subplots(down, across, figsize=((3.4 if across > 2 else 4.0) * across, 2.7 * down), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels):]:
        axis.set_axis_off()
    for axis, (panel, names) in zip(axes.flat, panels.items()):
        for color, name in enumerate(names):
            if name in usual:
                x = [point[0] for point in usual[name][0]]
                columns = [sorted(column) for column in zip(*([y for _, y in curve] for curve in usual[name]))]
                axis.fill_between(x, [c[0] for c in columns], [c[-1] for c in columns], color=f"C{color}", alpha=0.2, linewidth=0)
                axis.plot(x, [c[len(c) // 2] for c in columns], color=f"C{color}", linestyle="--", label=None if name in curves else name.partition(" | ")[2])
            if name in curves:
                axis.plot(*zip(*curves[name]), color=f"C{color}", marker=".", label=name.partition(" | ")[2] or "yours")
        title, _, x_label = panel.removesuffix(")").partition(" (x: ")  # as in "width of the interval, points (x: prompts asked)"
        axis.set_title(title, fontsize=9)
        axis.set_xlabel(x_label or "step")
        if any(text for text in axis.get_legend_handles_labels()[1]):
            axis.legend(fontsize=8)
    if usual:
        figure.supxlabel(f"dashed: median of {len(next(iter(usual.values())))} seeds, shaded: their range", fontsize=8, color="0.3")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def grade_first(assignment: str, path: Path) -> None:
    """Say how the submission grades: wrong functions train to lovely curves too. UserError where some are not written yet."""
    with Sandbox() as sandbox:
        results = grade(assignment, path, sandbox, seed=0)
    missing = [r.function for r in results if "is not written yet" in r.message]
    if missing:
        raise UserError(f"not written yet: {', '.join(dict.fromkeys(missing))}; the run needs all functions.")
    wrong = dict.fromkeys(r.function for r in results if r.message and r.level != "written")
    print(f"graded: {sum(r.earned for r in results):g} of {sum(r.points for r in results):g} points"
          + (f"; wrong as yet: {', '.join(wrong)}, and what follows may be their doing" if wrong else ""), flush=True)


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(prog="python -m course.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("assignment")
    a.add_argument("submission", type=Path)
    a.add_argument("--seed", type=int, default=0)
    a.add_argument("--out", type=Path, default=Path("out"))
    a.add_argument("--sft", type=Path, help="an SFT model of the toy demo [out/toy/sft/best, trained where it is missing]")
    a = a.parse_args(argv)
    folder = folder_of(a.assignment)
    grade_first(a.assignment, a.submission)
    student, said = load_submission(a.submission), predictions(a.submission)
    base = Base(a.out, a.seed, a.sft or default_sft(a.out, a.seed), f"course/{a.assignment}")
    found = run_of(a.assignment, student, base)
    expected = folder / "expected.json"
    usual = json.loads(expected.read_text()) if expected.exists() else {"figures": {}, "curves": {}}
    print("\n" + table(found.figures, said, usual["figures"]))
    if unknown := sorted(set(said) - set(found.figures)):
        print(f"\nPREDICTION names what is not measured: {', '.join(unknown)}; the figures' names stand above.")
    picture = a.out / "course" / a.assignment / "curves.png"
    if found.curves:
        draw(found.curves, usual["curves"], picture)
        print(f"\n{picture}: your curves in front of the usual ones.")


if __name__ == "__main__":
    run_main(main)
