"""Makes the logs of assignment 6. It names the causes: diagnose first, read this afterwards.

    python -m course.a6.make_runs --out FOLDER --sft out/toy/sft/best [more SFT models, of seeds 1, 2, ...: for the range of healthy runs]

Every sick run is the real train_sft.py or train_dpo.py with one fragment of the starter in it as the starter has it, the other four repaired. The SFT runs are the
first sixty steps from random weights. train_sft.py does not look at replies: here it does, as train_dpo.py does. train_dpo.py refuses to train when its first
loss is wrong (check_first_step): here it may not.
"""
import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import train_dpo
import train_sft
from course.a6.fragments import plugged
from course.build import folder_of
from course.train import Base, load_submission
from data.store import PairStore
from eval.replies import answer
from eval.watch import watched_prompts, what_it_writes
from model import GPT, load_model
from runtime.config import Config, load_config
from runtime.device import Device, setup_device
from runtime.errors import run_main
from runtime.run import KEYS, Run, prepared_pairs, read_metrics
from tokenizer import load_tokenizer

COMMON = {"threads": 1, "data__toy_control": "clean", "dpo__watch_prompts": 60}
SETTINGS = {
    "sft": COMMON | {"sft__max_steps": 60, "sft__log_every": 5, "sft__eval_every": 10, "sft__eval_rows": 128, "sft__micro_tokens": 512},
    "dpo": COMMON | {"dpo__max_steps": 50, "dpo__log_every": 2, "dpo__eval_every": 10, "dpo__eval_rows": 256, "dpo__lr": 5e-5, "dpo__warmup": 0.1}}
SICK = {1: ("learning_rate", "dpo"), 2: ("micro_loss", "sft"), 3: ("policy_and_reference", "dpo"), 4: ("scored_tokens", "sft"), 5: ("dropout_share", "dpo")}  # run: fragment, stage
SAMPLES = 12  # replies shown before and after


@contextmanager
def watching(config: Config) -> Iterator[None]:
    """train_sft.py's validation rows get the columns of replies that train_dpo.py's have. There is no reference, so no KL."""
    real_validate, real_log, seen = train_sft.validate, Run.log, {}

    def validate(model: GPT, store: PairStore, device: Device, *rest: Any) -> float:
        tokenizer = load_tokenizer(config.data.tokenizer)
        seen.update(what_it_writes(model, model, tokenizer, watched_prompts(store, tokenizer, config), config, device) | {"replies__kl": float("nan")})
        return real_validate(model, store, device, *rest)

    def log(self: Run, split: str, **values: float) -> dict[str, Any]:
        return real_log(self, split, **values, **(seen if split == "val" and self.stage == "sft" else {}))

    with patch.object(train_sft, "validate", validate), patch.object(Run, "log", log):
        yield


def train(fragments: Any, stage: str, base: Base, **changed: int) -> Path:
    """One run of a stage with these fragments, some SETTINGS changed; the folder with its metrics.jsonl and last/."""
    argv = base.argv(stage, **base.from_sft(), **SETTINGS[stage] | changed)
    with plugged(fragments), watching(load_config(argv)):
        {"sft": train_sft, "dpo": train_dpo}[stage].main(argv)
    return base.out / base.name / stage / stage


@torch.no_grad()
def samples(folder: Path, stage: str, base: Base) -> str:
    """The same twelve validation prompts answered before and after, drawn at temperature 1 with one seed. Before SFT there are random weights: left out."""
    config = load_config(base.argv(stage, **base.from_sft(), **SETTINGS[stage]))
    data, device, tokenizer = prepared_pairs(config, []), setup_device(config), load_tokenizer(str(base.sft))
    prompts = watched_prompts(PairStore(data / "val"), tokenizer, config)
    shown = [prompts[i] for i in np.linspace(0, len(prompts) - 1, SAMPLES).round().astype(int)]
    models = ({"before": base.sft} if stage == "dpo" else {}) | {"after": folder / "last"}
    replies = {when: answer(load_model(where), tokenizer, shown, 1.0, config, device, plain=True) for when, where in models.items()}
    blocks = []
    for i, prompt in enumerate(shown):
        said = [f"  {when + ':':8}{' '.join(r[i].text.split())}{'' if r[i].ended else ' [did not end]'}" for when, r in replies.items()]
        blocks.append("\n".join([" ".join(prompt.text.split()), *said]))
    return f"{stage.upper()}, twelve validation prompts, temperature 1\n\n" + "\n\n".join(blocks) + "\n"


def keep(folder: Path, stage: str, base: Base, to: Path) -> None:
    """metrics.jsonl and samples.txt of a run go to the folder `to`."""
    to.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "metrics.jsonl", to)
    (to / "samples.txt").write_text(samples(folder, stage, base), encoding="utf-8")


def band(stage: str, logs: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The logs of healthy runs as one: rows with [lowest, highest] in every column, of the first and the last step of each split."""
    found = []
    for split in ("train", "val"):
        steps = [row["step"] for row in logs[0] if row["split"] == split]
        for step in (steps[0], steps[-1]):
            rows = [row for log in logs for row in log if (row["split"], row["step"]) == (split, step)]
            columns = [key for key in KEYS if key not in ("step", "split", "tokens", "seconds", "stage", "skipped_steps") and rows[0][key] is not None]
            found.append({"run": f"healthy_{stage}", "seeds": len(logs), "split": split, "step": step}
                         | {key: [float(f"{end(row[key] for row in rows):.4g}") for end in (min, max)] for key in columns})
    return found


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(prog="python -m course.a6.make_runs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--out", type=Path, required=True, help="where the runs are trained")
    a.add_argument("--sft", type=Path, nargs="+", required=True)
    a.add_argument("--to", type=Path, default=folder_of("a6") / "runs", help="where the logs are kept [%(default)s]")
    a.add_argument("--only", nargs="+", default=["healthy", *map(str, SICK)], help="some of: %(default)s")
    a = a.parse_args(argv)
    solution, starter = (load_submission(folder_of("a6") / file) for file in ("source.py", "starter.py"))
    if "healthy" in a.only:
        logs: dict[str, list] = {"sft": [], "dpo": []}
        for seed, sft in enumerate(a.sft):
            base = Base(a.out, seed, sft, f"healthy_{seed}")
            for stage in logs:
                folder = train(solution, stage, base)
                logs[stage].append(read_metrics(folder / "metrics.jsonl"))
                if seed == 0:
                    keep(folder, stage, base, a.to / f"healthy_{stage}")
        rows = [row for stage, found in logs.items() for row in band(stage, found)]
        (a.to / "healthy_range.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for run, (fragment, stage) in SICK.items():
        if str(run) in a.only:
            fragments = SimpleNamespace(**vars(solution) | {fragment: getattr(starter, fragment)})
            base = Base(a.out, 0, a.sft[0], f"run_{run}")
            with patch.object(train_dpo, "check_first_step", lambda *_: None):
                keep(train(fragments, stage, base), stage, base, a.to / f"run_{run}")


if __name__ == "__main__":
    run_main(main)
