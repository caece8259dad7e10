"""What students may expect, measured: the reference solution's run with five seeds.

    python -m course.bands a4 [--seeds 5] [--out out]        writes expected.json, expected.md and curves.png

Each seed has its own toy corpus and SFT model (trained where it is missing, about four minutes each); one process per seed, so that its peak
memory is its own.
"""
import argparse
import json
import multiprocessing
import statistics
import time
from dataclasses import asdict
from pathlib import Path

import torch

from course.build import folder_of
from course.train import Base, default_sft, draw, load_submission, run_of
from data.store import write_json
from runtime.device import peak_memory_gb
from runtime.errors import run_main


def one_seed(assignment: str, seed: int, out: Path) -> dict:
    """The outcome of one run, its seconds and its peak memory in GB. The SFT model is there before the clock starts."""
    base = Base(out, seed, default_sft(out, seed), f"course/{assignment}/seed{seed}")
    base.from_sft()
    began = time.perf_counter()
    found = run_of(assignment, load_submission(folder_of(assignment) / "source.py"), base)
    return asdict(found) | {"seconds": time.perf_counter() - began, "gb": peak_memory_gb(torch.device("cpu"))}


def together(runs: list[dict]) -> dict:
    """The values of all seeds by name."""
    return {"figures": {name: [run["figures"][name] for run in runs] for name in runs[0]["figures"]},
            "curves": {name: [run["curves"][name] for run in runs] for name in runs[0]["curves"]},
            "seconds": [round(run["seconds"], 1) for run in runs], "gb": [round(run["gb"], 2) for run in runs], "threads": torch.get_num_threads()}


def page(assignment: str, expected: dict) -> str:
    """The text of expected.md."""
    seconds, n = expected["seconds"], len(expected["seconds"])
    lines = [f"# Assignment {assignment[1:]}: what the run gives", "", "Have you written `WRITTEN[\"before\"]` and `PREDICTION`? Then read on.", "",
             f"Measured with the reference solution, seeds 0 to {n - 1} (`python -m course.bands {assignment}`), each with its own corpus and SFT model:", "",
             "| figure | median | range of the seeds |", "| --- | --- | --- |"]
    lines += [f"| {name} | {statistics.median(values):.4g} | {min(values):.4g} to {max(values):.4g} |" for name, values in expected["figures"].items()]
    if expected["curves"]:
        lines += ["", "![What the curves look like](curves.png)"]
    lines += ["", f"Time: {statistics.median(seconds) / 60:.1f} minutes a run on two CPU cores that had other work beside it ({min(seconds) / 60:.1f} to {max(seconds) / 60:.1f}), {max(expected['gb']):.1f} GB; "
              "a run that starts from the SFT model trains it once before, about four minutes. On a Colab T4 the toy model runs on the machine's two CPU cores, so expect the same (not measured there).", ""]
    return "\n".join(lines)


def write(assignment: str, expected: dict) -> None:
    """expected.json, curves.png, expected.md: a page of its own, or nobody would predict before looking."""
    folder = folder_of(assignment)
    write_json(folder / "expected.json", expected)
    if expected["curves"]:
        draw({}, expected["curves"], folder / "curves.png")
    (folder / "expected.md").write_text(page(assignment, expected), encoding="utf-8")


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(prog="python -m course.bands", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("assignment")
    a.add_argument("--seeds", type=int, default=5)
    a.add_argument("--out", type=Path, default=Path("out"))
    a.add_argument("--again", action="store_true", help="only write the page and the picture from expected.json anew")
    a = a.parse_args(argv)
    if a.again:
        write(a.assignment, json.loads((folder_of(a.assignment) / "expected.json").read_text()))
        return
    runs = []
    for seed in range(a.seeds):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            runs.append(pool.apply(one_seed, (a.assignment, seed, a.out)))
        print(f"seed {seed}: {runs[-1]['seconds']:.0f} s", flush=True)
    write(a.assignment, together(runs))


if __name__ == "__main__":
    run_main(main)
