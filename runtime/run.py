"""One stage of one experiment: its folder, its metrics, what it continues from, and how it asks for the stage before it."""
import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from chat_tokenizer import ChatTokenizer, load_chat_tokenizer
from data.store import find_data
from hf_model import CausalLM, open_model
from model import GPT, GPTConfig, find_folder, load_model
from reward_model import RewardModel
from runtime.checkpoint import find_checkpoint, git_commit, has_shards, load_shards, load_state, read_run, rng_state, save_checkpoint, set_rng_state, versions
from runtime.config import ROOT, Config
from runtime.device import peak_memory_gb
from runtime.distributed import World, is_sharded
from runtime.errors import UserError
from tokenizer import Tokenizer, load_tokenizer

# every line of every metrics.jsonl has these keys; what a stage does not measure is null
KEYS = ("step", "split", "loss", "lr", "grad_norm", "tokens", "seconds", "skipped_steps", "rewards/chosen", "rewards/rejected", "rewards/margin",
        "rewards/accuracy", "logps/chosen", "logps/rejected", "replies/words", "replies/ended", "replies/repetition", "replies/kl",
        "replies/well_formed", "replies/helpful_correct", "stage")
SCRIPTS = {"base": "train_sft.py --stage=base", "sft": "train_sft.py", "dpo": "train_dpo.py", "reward": "train_reward.py"}
HARMLESS = ("micro_tokens", "log_every", "save_every", "watch_prompts", "samples_file")  # settings that may change between a kill and the resume


def run_stage(script: str, argv: list[str], why: str) -> None:
    """Announce and run an earlier stage with the same arguments (less --fresh, --resume and --dry-run, which mean this stage)."""
    argv = [a for a in argv if a.split("=")[0] not in ("--fresh", "--resume", "--dry_run", "--dry-run", "--override_checkpoints", "--override-checkpoints", "--stage")]
    if script.endswith("--stage=base"):
        script, argv = script.split()[0], ["--stage=base", *argv]
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(f"{why}: run `python {script} {' '.join(argv)}` in one process first.")
    print(f"\n=== {why}: running `python {script} {' '.join(argv)}`", flush=True)
    done = subprocess.run([sys.executable, str(ROOT / script), *argv])
    if done.returncode:
        raise UserError(f"{script} stopped with exit code {done.returncode}; its message is above.")


def fingerprint(config: Config, stage: str, documents: Path) -> dict[str, Any]:
    """What a stage's result depends on: its settings and those of the stages it builds on, the seed, and the prepared data."""
    sections = {"base": ("model", "data", "base"), "sft": ("model", "data", "sft"), "dpo": ("model", "data", "dpo"), "reward": ("model", "data", "reward")}[stage]
    if stage == "sft" and config.base.enabled:
        sections += ("base",)
    if config.lora.rank:
        sections += ("lora",)
    return {"seed": config.seed, "documents": documents.name} | {s: dataclasses.asdict(getattr(config, s)) for s in sections}


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted names of the values that differ between two nested dicts."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [d for k in sorted({*old, *new}) if k not in HARMLESS
                for d in _differences(old.get(k), new.get(k), f"{prefix}.{k}" if prefix else k)]
    return [] if old == new else [f"{prefix} {old!r} -> {new!r}"]


def finished(folder: Path, fingerprint: dict[str, Any]) -> bool:
    """True when the stage in `folder` ran to its end with these settings."""
    last = find_checkpoint(folder / "last")
    if last is None:
        return False
    run = read_run(last)
    return run["finished"] and not _differences(run["fingerprint"], fingerprint)


def prepared_pairs(config: Config, argv: list[str]) -> Path:
    """The folder with this experiment's prepared pairs; announced and made when it is missing."""
    if find_data(config) is None:
        run_stage("data/prepare_pairs.py" if config.data.tokenizer == "chat" else "data/prepare_hh.py", argv, "no prepared pairs")
    return find_data(config)


def preference_start(config: Config, argv: list[str], named: str, data: Path) -> Path:
    """The checkpoint that a stage on the pairs in `data` starts from: `named`, or the experiment's SFT model, which is announced and
    trained when it is missing; with the model's own chat format it is the model the config names, which is an SFT model already."""
    if config.data.tokenizer == "chat":
        return find_folder(named or config.model.init_from)
    if named:
        start = find_checkpoint(Path(named))
        if start is None:
            raise UserError(f"init_from: no checkpoint in {named}.")
        return start
    if not finished(config.run_dir / "sft", fingerprint(config, "sft", data)):
        run_stage("train_sft.py", argv, "no SFT model")
    return find_checkpoint(config.run_dir / "sft" / "best")


def pairs_tokenizer(config: Config, data: Path) -> Tokenizer | ChatTokenizer:
    """The tokenizer that the prepared pairs in `data` were made with."""
    return load_chat_tokenizer(data / "tokenizer") if config.data.tokenizer == "chat" else load_tokenizer(str(data / "tokenizer"))


def starting_model(config: Config, folder: Path | None, vocab_size: int, empty: bool = False) -> GPT | CausalLM:
    """The model a stage starts from: weights in `folder`, or random ones when it is None. Of our GPT the shape must be the config's; with the
    model's own tokenizer and chat format (data.tokenizer=chat) it is any Hugging Face causal LM,
    on the meta device if `empty`."""
    m = config.model
    if config.data.tokenizer == "chat":
        model = open_model(config, folder, empty)
        if model.config.vocab_size < vocab_size:
            raise UserError(f"the model in {folder} has {model.config.vocab_size} tokens, its tokenizer {vocab_size}.")
        return model
    if config.lora.rank:
        raise UserError("lora.rank > 0 is for Hugging Face models: set data.tokenizer to chat.")
    if folder is None:
        return GPT(GPTConfig(vocab_size, m.block_size, m.n_layer, m.n_head, m.n_embd, m.dropout))
    model = load_model(folder, m.block_size, m.dropout)
    wrong = [f"--model.{k}={getattr(model.config, k)}" for k in ("n_layer", "n_head", "n_embd") if getattr(model.config, k) != getattr(m, k)]
    if wrong:
        raise UserError(f"the model in {folder} has another shape than this config; to use it add {' '.join(wrong)}.")
    if model.config.vocab_size != vocab_size:
        raise UserError(f"the model in {folder} has {model.config.vocab_size} tokens, the data were prepared with {vocab_size}; use its tokenizer: --data.tokenizer={folder}")
    return model


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; half a last line, which a kill leaves, is left out. No file, no rows."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class Run:
    """The state of a stage. `step` counts finished optimizer steps; `best` is the lowest validation loss so far."""

    def __init__(self, config: Config, stage: str, fingerprint: dict[str, Any], world: World = World()):
        """Open <out>/<name>/<stage>/: start fresh, or continue what an earlier call with the same settings left. All ranks know the same; rank 0 writes."""
        self.config, self.stage, self.fingerprint, self.world = config, stage, fingerprint, world
        self.folder = config.run_dir / stage
        self.step, self.tokens, self.seconds, self.skipped = 0, 0, 0.0, 0
        self.best, self.bad = float("inf"), 0
        self.means: dict[str, float] = {}  # running means that belong to an objective (objectives.next_state)
        self.finished, self.state = False, None
        if config.fresh and world.main:
            shutil.rmtree(self.folder, ignore_errors=True)
        world.wait()
        self.last = find_checkpoint(self.folder / "last")
        world.wait()
        if self.last is None:
            if config.resume:
                raise UserError(f"--resume: there is no checkpoint in {self.folder / 'last'}.")
            if world.main:
                shutil.rmtree(self.folder, ignore_errors=True)
        else:
            run = read_run(self.last)
            changed = _differences(run["fingerprint"], fingerprint)
            if changed:
                raise UserError(f"{self.folder} was made with other settings ({'; '.join(changed[:3])}); run `python {SCRIPTS[stage]} ... --fresh` "
                                "with these settings to start this stage over, or use another --name to keep both.")
            self.finished = run["finished"]
            self.state = load_state(self.last)
            for name in ("step", "tokens", "seconds", "skipped", "best", "bad"):
                setattr(self, name, self.state[name])
            self.means = self.state.get("means", {})
            if world.main:
                print(f"{self.folder} {'is finished' if self.finished else f'continues from step {self.step}'}.")
        self.metrics = None
        if world.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._truncate_metrics()
            self.metrics = open(self.folder / "metrics.jsonl", "a")
        self.started = time.perf_counter() - self.seconds

    def _truncate_metrics(self) -> None:
        """Drop lines beyond the checkpoint's step (and half a line a kill may have left): those steps will be run again."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            path.write_text("".join(json.dumps(row) + "\n" for row in read_metrics(path) if row["step"] <= self.step))

    def restore(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, model: torch.nn.Module | None = None) -> None:
        """Give optimizer, scaler and every random generator the state they had, and the model where it was saved in shards; nothing to do
        in a fresh run. UserError when shards are asked of a checkpoint that has none."""
        if self.state is not None:
            if self.last is not None and has_shards(self.last):
                load_shards(self.last, model, optimizer)
            elif model is not None and is_sharded(model):
                raise UserError(f"{self.last} was saved whole: continue it with --scale.parallel=ddp, or in one process.")
            else:
                optimizer.load_state_dict(self.state["optimizer"])
            if self.state["scaler"]:  # empty when the killed run had a dtype that needs no scaling
                scaler.load_state_dict(self.state["scaler"])
            set_rng_state(self.state["rng"])
            self.state = None

    def log(self, split: str, **values: float) -> dict[str, Any]:
        """Append one line to metrics.jsonl; returns it. Names with a slash are given with a double underscore."""
        self.seconds = time.perf_counter() - self.started
        values = {k.replace("__", "/"): v if math.isfinite(v) else None for k, v in values.items()}  # JSON has no infinity
        row = dict.fromkeys(KEYS) | {"step": self.step, "split": split, "tokens": self.tokens, "seconds": round(self.seconds, 3)} | values
        if set(row) != set(KEYS):
            raise KeyError(f"metrics.jsonl has no column {set(row) - set(KEYS)}")
        if self.metrics:
            self.metrics.write(json.dumps(row) + "\n")
            self.metrics.flush()
        return row

    def improved(self, loss: float) -> bool:
        """Note a validation loss; True when it is the best so far."""
        if loss < self.best:
            self.best, self.bad = loss, 0
            return True
        self.bad += 1
        return False

    def save(self, which: str, model: GPT | RewardModel, tokenizer: Tokenizer, data: Path, optimizer: torch.optim.Optimizer | None = None,
             scaler: torch.amp.GradScaler | None = None, finished: bool = False) -> None:
        """Write best/ (weights) or, given the optimizer, last/ (weights and everything a resume needs)."""
        run = {"stage": self.stage, "step": self.step, "finished": finished, "best": self.best, "fingerprint": self.fingerprint,
               "seconds": round(time.perf_counter() - self.started, 1), "peak_memory_gb": round(peak_memory_gb(model.device), 2), "device": str(model.device),
               "threads": torch.get_num_threads(), "config": dataclasses.asdict(self.config), "data": data.name, "git_commit": git_commit(), "versions": versions()}
        state = None
        if optimizer is not None:
            state = {"optimizer": None if is_sharded(model) else optimizer.state_dict(), "scaler": scaler.state_dict(), "rng": rng_state(), "step": self.step, "tokens": self.tokens,
                     "seconds": time.perf_counter() - self.started, "skipped": self.skipped, "best": self.best, "bad": self.bad, "means": self.means}
        save_checkpoint(self.folder / which, model, tokenizer, run, state, self.world, optimizer, whole=optimizer is None or finished)
