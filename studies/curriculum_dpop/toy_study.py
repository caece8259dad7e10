"""The toy study: DPO, DPOP and SFT, shuffled and from easy to hard, against made-up answers. Everything from the world to the verdict.

    python -m studies.curriculum_dpop.toy_study --seeds 5 --out FOLDER [--results results/curriculum_dpop/toy] [--quick]

Per seed: a world (toy_world.py, toy_data.py), a GPT that is taught to read, SFT on a sloppy writer's answers, and from that one start every condition of
CONDITIONS, each by the project's own commands and with the same number of optimizer steps. The same command continues a stopped study.
Writes rows.jsonl (one line per model), verdicts.jsonl (one letter per reply), table.md and two pictures.
"""
import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from data.store import find_data, read_json, write_json
from runtime.config import load_config
from runtime.errors import UserError, check_folder, run_main
from runtime.jobs import at_once, call
from runtime.run import read_metrics
from studies.curriculum_dpop import toy_report
from studies.curriculum_dpop.toy_data import write_study
from studies.curriculum_dpop.toy_world import VERDICTS

CONFIG = "curriculum_toy"
START, MORE_SFT = "SFT, the start", "SFT on chosen"
STAGED = {"dpo.curriculum": "staged", "dpo.difficulty": "level"}
DPOP = {"dpo.objective": "dpop", "dpo.penalty": 50.0}
ADDITIVE = {"dpo.objective": "dpop_additive", "dpo.penalty": 50.0}  # the published system's loss, penalty and order
CONDITIONS: dict[str, dict[str, object]] = {
    "DPO, shuffled": {}, "DPO, easy first": STAGED, "DPO, hard first": STAGED | {"dpo.reverse": True},
    "DPOP, shuffled": DPOP, "DPOP, easy first": DPOP | STAGED, "additive, easy first": ADDITIVE | STAGED}
LESSONS = {"sft.loss_on": "assistant", "sft.epochs": 4.0, "sft.batch": 16, "sft.lr": 4e-3, "sft.eval_every": 250}
MORE = {"sft.epochs": 1.0, "sft.lr": 3e-4, "sft.eval_every": 25}  # more SFT: the chosen replies alone, in as many steps of as many pairs
CURVES = ("loss", "rewards/accuracy", "logps/chosen", "logps/rejected")
QUICK = {"lessons": {"sft.max_steps": 30}, "sft": {"sft.max_steps": 10}, "share": 0.03}  # a look at the machinery, not at the question
LETTERS = dict(zip((*VERDICTS, "follows", "fails"), "CFBAM+-"))


def run(log: Path, *command: str) -> None:
    """Run a script of this project on one thread; UserError with the last thing it said when it fails."""
    if said := call(command, log, 1):
        raise UserError(f"{' '.join(command[:2])} failed: {said} ({log})")


class Study:
    """Where the study of one folder lies, and the commands it consists of."""

    def __init__(self, out: Path, quick: bool):
        self.out, self.quick = out.resolve(), quick

    def folder(self, seed: int, label: str = "") -> Path:
        """The run folder of a model: out/seed0/dpo_shuffled."""
        return self.out / f"seed{seed}" / "".join(c if c.isalnum() else "_" for c in label.lower().replace(",", ""))

    def arguments(self, seed: int, label: str, source: str, settings: dict[str, object]) -> list[str]:
        """The command line of a run, for every script alike."""
        name = self.folder(seed, label).relative_to(self.out)
        given = {"out": self.out, "name": name, "seed": seed, "eval.seed": seed, "data.source": self.folder(seed) / "world" / source}
        return [CONFIG, *(f"--{key}={value}" for key, value in (given | settings).items())]

    def start(self, seed: int) -> Path:
        """The SFT model from which every condition of a seed starts."""
        return self.folder(seed, START) / "sft" / "best"

    def teach(self, seed: int) -> None:
        """The world of a seed, and a model that can read in it."""
        world = self.folder(seed) / "world"
        if not (world / "questions.jsonl").exists():
            write_study(world, seed, QUICK["share"] if self.quick else 1.0)
        arguments = self.arguments(seed, "lessons", "lessons", LESSONS | (QUICK["lessons"] if self.quick else {}))
        run(self.folder(seed, "lessons") / "log.txt", "train_sft.py", *arguments)
        self.check(arguments)

    def imitate(self, seed: int) -> None:
        """SFT on the sloppy writer's answers: the start. Measuring it prepares the pairs for all conditions too."""
        reader = self.folder(seed, "lessons") / "sft" / "best"
        settings = {"model.init_from": reader, "data.tokenizer": reader} | (QUICK["sft"] if self.quick else {})
        self.train_and_measure(seed, START, self.start(seed), "train_sft.py", *self.arguments(seed, START, "sft", settings))

    def train(self, seed: int, label: str) -> None:
        """One condition, from the start."""
        script, settings = ("train_sft.py", MORE | {"model.init_from": self.start(seed)}) if label == MORE_SFT else ("train_dpo.py", CONDITIONS[label])
        last = self.folder(seed, label) / script[len("train_"):-len(".py")] / "last"
        self.train_and_measure(seed, label, last, script, *self.arguments(seed, label, "pairs", self.pairs(seed) | settings))

    def train_and_measure(self, seed: int, label: str, model: Path, *command: str) -> None:
        """Run a training script and measure the model it leaves; what was done with the same command is left alone."""
        folder = self.folder(seed, label)
        if read_json(folder / "command.json") == list(command):
            return
        run(folder / "log.txt", *command)
        arguments = self.arguments(seed, label, "pairs", self.pairs(seed) | {"eval.policy": model})
        run(folder / "log.txt", "data/prepare_hh.py", *arguments)  # with the start's vocabulary
        self.check(arguments)
        run(folder / "log.txt", "-m", "studies.curriculum_dpop.toy_measure", *arguments)
        write_json(folder / "command.json", list(command))

    def check(self, arguments: list[str]) -> None:
        """UserError where a prompt was shortened: a question without its passage would teach to make things up."""
        cut = [counts.get("prompt shortened from the left", 0) for counts in read_json(find_data(load_config(arguments)) / "preparation.json")["counts"].values()]
        if any(cut):
            raise UserError(f"{sum(cut)} prompts do not fit the block: raise model.block_size in configs/{CONFIG}.py.")

    def pairs(self, seed: int) -> dict[str, object]:
        """What every run on the preference pairs has in common."""
        return {"data.tokenizer": self.start(seed), "dpo.init_from": self.start(seed)}

    def collect(self, seeds: Sequence[int]) -> list[dict]:
        """One row per measured model: condition, seed, settings, figures, steps, seconds, and its validation curve."""
        rows = []
        for seed in seeds:
            for label in (START, MORE_SFT, *CONDITIONS):
                folder = self.folder(seed, label)
                stage = folder / ("sft" if label in (START, MORE_SFT) else "dpo")
                metrics = read_metrics(stage / "metrics.jsonl")
                curve = [{key: row[key] for key in ("step", *CURVES)} for row in metrics if row["split"] == "val" and label in CONDITIONS]
                settings = {START: {}, MORE_SFT: MORE} | CONDITIONS
                rows.append({"condition": label, "seed": seed, "settings": settings[label], "steps": metrics[-1]["step"],
                             "seconds": metrics[-1]["seconds"], "figures": read_json(folder / "measured.json"), "curve": curve})
        return rows

    def letters(self, seeds: Sequence[int]) -> list[dict]:
        """Every verdict, one letter per prompt in the order of questions.jsonl (toy_data.py writes it again from the seed)."""
        lines = []
        for seed in seeds:
            for label in (START, MORE_SFT, *CONDITIONS):
                found = [json.loads(line) for line in (self.folder(seed, label) / "replies.jsonl").read_text(encoding="utf-8").splitlines()]
                for temperature in sorted({row["temperature"] for row in found}):
                    lines.append({"condition": label, "seed": seed, "temperature": temperature,
                                  "verdicts": "".join(LETTERS[row["verdict"]] for row in found if row["temperature"] == temperature)})
        return lines


def all_of(jobs: int, work: Callable, items: Sequence[tuple], show: str) -> None:
    """work(*item) of all items, `jobs` at a time, saying when each is done."""
    def one(numbered: tuple[int, tuple]) -> None:
        work(*numbered[1])
        print(f"{show} [{numbered[0]}/{len(items)}] {', '.join(map(str, numbered[1]))}", flush=True)
    at_once(jobs, one, list(enumerate(items, 1)))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many: 1, 2, ... [5]; the settings were chosen on seed 0")
    parser.add_argument("--out", type=Path, required=True, help="everything that is made; the same folder continues a stopped study")
    parser.add_argument("--results", type=Path, help="where the figures, table and pictures go [OUT/results]")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each [2]")
    parser.add_argument("--quick", action="store_true", help="one seed and a few steps: does every part work?")
    a = parser.parse_args(argv)
    if min(a.seeds, a.jobs) < 1:
        raise UserError("--seeds and --jobs must be at least 1.")
    check_folder("--out", a.out)
    study, seeds = Study(a.out, a.quick), range(1, 2 if a.quick else a.seeds + 1)
    note, asked = study.out / "quick.json", {"quick": a.quick}
    if (read_json(note) or asked) != asked:
        raise UserError(f"{a.out} holds a study {'with' if not a.quick else 'without'} --quick: name another --out.")
    study.out.mkdir(parents=True, exist_ok=True)
    write_json(note, asked)
    all_of(a.jobs, study.teach, [(seed,) for seed in seeds], "taught to read: seed")
    all_of(a.jobs, study.imitate, [(seed,) for seed in seeds], "SFT: seed")
    all_of(a.jobs, study.train, [(seed, label) for seed in seeds for label in (MORE_SFT, *CONDITIONS)], "trained and measured: seed")
    results = a.results or study.out / "results"
    results.mkdir(parents=True, exist_ok=True)
    for name, rows in (("rows", study.collect(seeds)), ("verdicts", study.letters(seeds))):
        (results / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(toy_report.write(results))


if __name__ == "__main__":
    run_main(main)
