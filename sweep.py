"""Grids over any settings, with seeds: train, measure briefly, and compare.

    python sweep.py toy --over dpo.beta=0.05,0.1,0.2,0.5 --seeds 5          any number of --over: their product
    python sweep.py toy --preset beta --jobs 2                              --list names the presets
    python sweep.py toy --preset beta --dpo.max_steps=100                   further settings hold for all runs
    python sweep.py hh_cpu --preset beta --seeds 1 --dpo.init_from=out/hh_cpu/sft/best      from a model that is there

One process per run; the same command continues a stopped sweep. Runs of one seed start from one SFT model, unless the grid touches what
that model is made of. Writes <out>/sweeps/<name>/: runs.jsonl (one line per run), table.md, figures.png and curves.png.
"""
import argparse
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from data.store import read_json, write_json
from eval import sweep_report
from objectives import OBJECTIVES
from runtime.config import digest, load_config
from runtime.errors import UserError, run_main
from runtime.jobs import at_once, call
from runtime.run import read_metrics

Settings = dict[str, object]  # dotted config field -> value
SHORT = {"dpo.max_steps": 80, "dpo.lr": 5e-5, "dpo.watch_prompts": 0, "dpo.eval_every": 40, "dpo.eval_rows": 256, "eval.prompts_per_kind": 200, "eval.max_pairs": 600}
WHOLE = SHORT | {"dpo.max_steps": 0}  # as many steps as epochs take
DRIFT = {"data.toy_control": "near_identical", "dpo.beta": 0.3}
PAIRWISE = [name for name in OBJECTIVES if name not in ("nll", "odpo")]  # nll sees no rejected reply, odpo needs margins

# name -> (what is varied: {label of a cell: its settings}, what all runs have in common)
PRESETS: dict[str, tuple[dict[str, Settings], Settings]] = {
    "beta": ({f"beta {b}": {"dpo.beta": b} for b in (0.05, 0.1, 0.2, 0.5)}, SHORT),
    "data": ({f"{n:,} pairs": {"dpo.max_pairs": n} for n in (1000, 2000, 5000, 10000)}, WHOLE),
    "size": ({f"{layers} layers, width {width}": {"model.n_layer": layers, "model.n_embd": width} for layers, width in ((2, 32), (2, 64), (4, 128))}, SHORT),
    "sft_epochs": ({f"{n} SFT epochs": {"sft.epochs": float(n)} for n in (1, 2, 4)}, SHORT),
    "dpo_epochs": ({f"{n} DPO epochs": {"dpo.epochs": float(n)} for n in (1, 2, 4)}, WHOLE | {"dpo.max_pairs": 2000}),
    "objectives": ({name: {"dpo.objective": name, "dpo.beta": -1.0} for name in PAIRWISE}, SHORT),
    "drift": ({"DPO": {"dpo.objective": "dpo"}} | {f"DPOP, lambda {n}": {"dpo.objective": "dpop", "dpo.penalty": float(n)} for n in (1, 5, 20, 50)}, SHORT | DRIFT),
    "curriculum": ({"shuffled": {}, **{f"{word}{by}": {"dpo.curriculum": "staged", "dpo.difficulty": by, "dpo.reverse": bool(word != "easy first, ")}
                                       for by in ("margin", "edit") for word in ("easy first, ", "hard first, ")}}, SHORT),
}


@dataclass(frozen=True)
class Cell:
    """One point of the grid with one seed."""
    label: str
    settings: tuple[tuple[str, object], ...]
    seed: int


def decide_sft(settings: Settings) -> list[str]:
    """The settings that an SFT model depends on; data.toy_control changes the pairs alone."""
    return sorted(key for key in settings if key.startswith(("model.", "data.", "base.", "sft.")) and key != "data.toy_control")


class Sweep:
    """What is run, and where: `base` the config's name, `common` the settings of all runs."""

    def __init__(self, base: str, name: str, out: Path, grid: dict[str, Settings], common: Settings, seeds: Sequence[int], threads: int):
        self.base, self.name, self.out, self.threads = base, name, out, threads
        self.common, self.grid, self.seeds = common, grid, list(seeds)
        self.one_sft = "dpo.init_from" not in common and not any(decide_sft(settings) for settings in grid.values())
        self.sft_settings = {key: common[key] for key in decide_sft(common)}
        self.folder = out / "sweeps" / name
        self.cells = [Cell(label, tuple(settings.items()), seed) for seed in self.seeds for label, settings in grid.items()]

    def arguments(self, cell: Cell) -> list[str]:
        """The command line of a cell's run."""
        name = f"sweeps/{self.name}/{''.join(c if c.isalnum() else '_' for c in cell.label)}_seed{cell.seed}"
        settings = {"out": self.out, "name": name, "seed": cell.seed, "eval.seed": cell.seed, "threads": self.threads}
        if self.one_sft:
            sft = self.sft_folder(cell.seed) / "sft" / "best"
            settings |= {"dpo.init_from": sft} | ({"data.tokenizer": sft} if "data.toy_control" in self.common | dict(cell.settings) else {})
        return [self.base, *(f"--{key}={value}" for key, value in (settings | self.common | dict(cell.settings)).items())]

    def sft_folder(self, seed: int) -> Path:
        """The experiment whose SFT model all runs of a seed start from."""
        return self.out / f"{self.base}_seed{seed}{'_' + digest(self.sft_settings) if self.sft_settings else ''}"

    def result(self, cell: Cell) -> Path:
        """What a finished run leaves."""
        return load_config(self.arguments(cell)).run_dir / "brief.json"


def run_cell(sweep: Sweep, cell: Cell) -> str:
    """Train and measure one cell; "" or why it failed. A finished one with the same command is left alone."""
    arguments, result = sweep.arguments(cell), sweep.result(cell)
    note = result.with_name("command.json")
    if result.exists() and read_json(note) == arguments:
        return ""
    result.unlink(missing_ok=True)
    failed = call(["train_dpo.py", *arguments], result.with_name("log.txt"), sweep.threads) or call(["-m", "eval.brief", *arguments], result.with_name("log.txt"), sweep.threads)
    if not failed:
        write_json(note, arguments)
    return failed


def earlier_stages(sweep: Sweep, jobs: int) -> None:
    """Data one after the other, since two runs must not build one store at a time; then the SFT models. Raises UserError."""
    sft = [[sweep.base, f"--out={sweep.out}", f"--name={sweep.sft_folder(seed).name}", f"--seed={seed}", f"--threads={sweep.threads}",
            *(f"--{key}={value}" for key, value in sweep.sft_settings.items())] for seed in sweep.seeds]
    log = sweep.folder / "earlier_stages.txt"
    if sweep.one_sft:
        for arguments in sft:
            check(call(["data/prepare_hh.py", *arguments], log, sweep.threads))
        for failed in at_once(jobs, lambda arguments: call(["train_sft.py", *arguments], log, sweep.threads), sft):
            check(failed)
    prepared = set()
    for cell in sweep.cells:
        decides = tuple(word for word in sweep.arguments(cell) if word.startswith(("--seed", "--data.", "--model.block_size")))
        if decides not in prepared and not sweep.result(cell).exists():
            check(call(["data/prepare_hh.py", *sweep.arguments(cell)], log, sweep.threads))
        prepared.add(decides)


def check(failed: str) -> None:
    """Raises UserError when an earlier stage failed."""
    if failed:
        raise UserError(f"an earlier stage failed: {failed}")


def collect(sweep: Sweep) -> list[dict]:
    """One row per finished run: label, seed, settings, figures, and the validation curve."""
    rows = []
    for cell in sweep.cells:
        found = read_json(sweep.result(cell))
        if found is not None:
            curve = read_metrics(sweep.result(cell).parent / "dpo" / "metrics.jsonl")
            rows.append({"label": cell.label, "seed": cell.seed, "settings": dict(cell.settings), "figures": found,
                         "curve": [{key: row[key] for key in sweep_report.CURVES} | {"step": row["step"]} for row in curve if row["split"] == "val"]})
    return rows


def parse_grid(over: Sequence[str]) -> dict[str, Settings]:
    """The product of `KEY=V1,V2,...` as cells. Raises UserError."""
    axes = []
    for text in over:
        key, _, values = text.partition("=")
        if not values:
            raise UserError(f"--over {text}: write KEY=V1,V2,...")
        axes.append([(key, value) for value in values.split(",")])
    return {", ".join(f"{key} {value}" for key, value in cell): dict(cell) for cell in itertools.product(*axes)}


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("config", nargs="?", help="toy, hh_cpu, ...")
    a.add_argument("--over", nargs="+", default=[], metavar="KEY=V1,V2")
    a.add_argument("--preset", choices=PRESETS)
    a.add_argument("--list", action="store_true", help="name the presets")
    a.add_argument("--seeds", type=int, default=5, help="how many: 0, 1, ... [5]")
    a.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) // 2), help="runs at once [half the cores]")
    a.add_argument("--threads", type=int, default=1, help="CPU threads of each run; part of the result on a CPU [1]")
    a.add_argument("--out", type=Path, default=Path("out"))
    a.add_argument("--name", help="of the sweep [the preset's, or 'grid']")
    a.add_argument("--results", type=Path, help="also copy the figures there, into a folder of the sweep's name")
    a, more = a.parse_known_args(argv)
    if a.list or not a.config:
        for name, (grid, common) in PRESETS.items():
            print(f"{name:12} {', '.join(grid)}  {common}")
        return
    if bool(a.over) == bool(a.preset):
        raise UserError("give either --preset or --over KEY=V1,V2.")
    if wrong := [word for word in more if not word.startswith("--") or "=" not in word]:
        raise UserError(f"settings of all runs are written --section.key=value, not {wrong[0]}.")
    grid, common = PRESETS[a.preset] if a.preset else (parse_grid(a.over), {})
    common = common | dict(word[2:].split("=", 1) for word in more)
    # other settings are another sweep: its runs must not stand in the place of finished ones
    name = a.name or (a.preset or "grid") + (f"_{digest(more)[:6]}" if more and a.preset else "")
    sweep = Sweep(a.config, name, a.out.resolve(), grid, common, range(a.seeds), a.threads)
    for cell in sweep.cells[:len(grid)]:
        load_config(sweep.arguments(cell))  # a misspelt field should stop here
    earlier_stages(sweep, a.jobs)
    done, failures, lock = 0, [], Lock()

    def one(cell: Cell) -> None:
        nonlocal done
        failed = run_cell(sweep, cell)
        with lock:
            done += 1
            print(f"[{done}/{len(sweep.cells)}] {cell.label}, seed {cell.seed}{': FAILED: ' + failed if failed else ''}", flush=True)
            if failed:
                failures.append(f"{cell.label}, seed {cell.seed}: {failed}")

    at_once(a.jobs, one, sweep.cells)
    folders = [sweep.folder] + ([a.results / sweep.name] if a.results else [])
    rows = collect(sweep)
    for folder in folders:
        sweep_report.write(folder, rows, failures, a.config, common)
    print((folders[0] / "table.md").read_text() if rows else "no run finished")
    if failures:
        raise UserError(f"{len(failures)} of {len(sweep.cells)} runs failed; the first: {failures[0]}")


if __name__ == "__main__":
    run_main(main)
