"""Checkpoints: a Hugging Face folder plus, in last/, what an exact resume needs. Written aside, then renamed into place."""
import hashlib
import json
import random
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict, set_state_dict

from lora import has_adapters, save_adapters
from model import GPT, save_model
from reward_model import RewardModel, save_reward_model
from runtime.config import ROOT, LoraConfig
from runtime.distributed import World, is_sharded
from runtime.errors import UserError, is_disk_full
from tokenizer import Tokenizer

TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)  # under adapters the frozen weights come from where they came from
SHARDS = "shards"  # the folder of a checkpoint that FSDP ranks write together (torch.distributed.checkpoint)
CARD = """---
library_name: transformers
pipeline_tag: text-generation
---
GPT-2 architecture, {params:,} parameters, trained by nanopref (stage `{stage}`, step {step}). Prompt layout: `\\n\\nHuman: ...\\n\\nAssistant:`,
with end-of-text as the start token; a reply ends in end-of-text. In `transformers`, render and then tokenize, so that the start token is there:
`tok(tok.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))`. Settings: `run.json`. Trained on dialogues that contain offensive text.
"""


HF_CARD = """---
library_name: transformers
pipeline_tag: text-generation
base_model: {base}
---
{base}, {params:,} parameters, trained by nanopref (stage `{stage}`, step {step}). Settings: `run.json`.
"""


def replace_folder(new: Path, final: Path) -> None:
    """Put `new` where `final` is. A kill at any moment leaves `final` or `final.old` whole (see find_checkpoint)."""
    old = final.with_name(final.name + ".old")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def find_checkpoint(folder: Path) -> Path | None:
    """`folder` if a checkpoint is there, else the one a kill between two renames left in `folder.old`, else None."""
    for candidate in (folder, folder.with_name(folder.name + ".old")):
        if (candidate / "run.json").exists():
            return candidate
    return None


def save_checkpoint(folder: Path, model: GPT | RewardModel, tokenizer: Tokenizer, run: dict[str, Any], state: dict[str, Any] | None = None,
                    world: World = World(), optimizer: torch.optim.Optimizer | None = None, whole: bool = True) -> None:
    """Write model, tokenizer, card, run.json and (with `state`) train_state.pt as one folder that is either whole or absent.

    Every rank calls it, rank 0 writes. Of a model in shards each rank writes its own, with the optimizer's, where `state` is given;
    `whole` says whether rank 0 gathers the weights as well, one tensor after the other, into files that open everywhere.
    """
    tmp = folder.with_name(folder.name + ".tmp")
    sharded, adapted = is_sharded(model), has_adapters(model)
    base = run["stage"] == "dpo" and run["config"]["dpo"]["init_from"] or run["config"]["model"]["init_from"]  # what the run started from
    if world.main:
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir(parents=True)
    world.wait()
    try:
        if sharded and state is not None:
            dcp.save(dict(zip(("model", "optimizer"), get_state_dict(model, optimizer, options=TRAINED))), checkpoint_id=tmp / SHARDS)
        if adapted:  # small: always whole
            save_adapters(model, tmp, LoraConfig(**run["config"]["lora"]), base, write=world.main)
        gather = sharded and whole and not adapted
        weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)) if gather else None
        if world.main:
            if (whole or not sharded) and not adapted:
                write_weights(model, tmp, tokenizer.eot_id, weights)
            tokenizer.save(tmp, model.config.block_size)
            (tmp / "README.md").write_text((CARD if isinstance(model, GPT | RewardModel) else HF_CARD).format(
                params=model.n_params(), stage=run["stage"], step=run["step"], base=base))
            if state is not None:
                torch.save(state, tmp / "train_state.pt")
            (tmp / "run.json").write_text(json.dumps(run, indent=1))
    except Exception as e:
        shutil.rmtree(tmp, ignore_errors=True)
        if is_disk_full(e):
            raise UserError(f"the disk is full, {folder} could not be written; the last good checkpoint is intact: free space and run "
                            "the same command.") from e
        raise
    if world.main:
        replace_folder(tmp, folder)
    world.wait()


def write_weights(model: GPT | RewardModel, folder: Path, eot_id: int, weights: dict[str, torch.Tensor] | None = None) -> None:
    """The model's own files; `weights`: the gathered ones of a model in shards."""
    if isinstance(model, RewardModel):
        save_reward_model(model, folder, eot_id)
    elif isinstance(model, GPT):
        save_model(model, folder, eot_id, weights)
    else:  # transformers writes its own
        model.lm.save_pretrained(folder, state_dict=weights and {name.removeprefix("lm."): p for name, p in weights.items()})


def has_shards(folder: Path) -> bool:
    """True for a checkpoint that FSDP ranks wrote together."""
    return (folder / SHARDS).is_dir()


def load_shards(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read weights and optimizer of a checkpoint in shards into a model on any number of ranks, one process included."""
    names = ("model", "optimizer")
    found = dict(zip(names, get_state_dict(model, optimizer, options=TRAINED)))
    dcp.load(found, checkpoint_id=folder / SHARDS)
    set_state_dict(model, optimizer, model_state_dict=found["model"], optim_state_dict=found["optimizer"], options=TRAINED)


def read_run(folder: Path) -> dict[str, Any]:
    """run.json of a checkpoint folder."""
    return json.loads((folder / "run.json").read_text())


def without_local_paths(value: Any) -> Any:
    """The value with every absolute path in it (`NAME:PATH` too) cut to its last name: results are for sharing, paths of one machine are not."""
    if isinstance(value, dict):
        return {k: without_local_paths(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_local_paths(v) for v in value]
    return re.sub(r"^(\w+:)?/.*/", r"\1.../", value) if isinstance(value, str) else value


def load_state(folder: Path) -> dict[str, Any]:
    """train_state.pt of a last/ folder: tensors and plain values only, so nothing in the file can run."""
    try:
        return torch.load(folder / "train_state.pt", weights_only=True, map_location="cpu")
    except Exception as e:
        raise UserError(f"{folder / 'train_state.pt'} cannot be read ({type(e).__name__}); add --fresh to start this stage over.") from e


def rng_state() -> dict[str, Any]:
    """Every random generator's state as tensors and plain values."""
    kind, keys, at, has_gauss, cached = np.random.get_state()
    python = random.getstate()
    return {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": [kind, keys.tolist(), at, has_gauss, cached], "python": [python[0], list(python[1]), python[2]]}


def set_rng_state(state: dict[str, Any]) -> None:
    """Undo rng_state()."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][:torch.cuda.device_count()])
    kind, keys, at, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), at, has_gauss, cached))
    random.setstate((state["python"][0], tuple(state["python"][1]), state["python"][2]))


def weights_hash(folder: Path) -> str:
    """What names the weights in a folder: the hash of model.safetensors; of several files, or more than 4 GB, names, sizes and 64 KB samples.

    Reading a 70B checkpoint takes minutes, and no training leaves all samples as they were. UserError when there are no weights.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"there are no .safetensors weights in {folder}.")
    if len(files) == 1 and files[0].stat().st_size < 4e9:
        return file_hash(files[0])
    sha = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        sha.update(f"{path.name} {size}".encode())
        with open(path, "rb") as f:
            for at in range(0, size, max(1, size // 256)):
                f.seek(at)
                sha.update(f.read(1 << 16))
    return sha.hexdigest()[:16]


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes, first 16 hex digits."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()[:16]


def git_commit() -> str:
    """The commit this code is at, with + when the tree has changes; 'unknown' outside a git checkout."""
    try:
        described = subprocess.run(["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return described.stdout.strip() if described.returncode == 0 else "unknown"


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on."""
    return {name: version(name) for name in ("torch", "numpy", "tiktoken", "transformers", "datasets")}
