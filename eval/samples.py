"""What a model writes before training and after every epoch: the same prompts, the same seed, one CSV per epoch.

out/<name>/inference/samples_epoch_00.csv is the model training starts from, always: its adapters are off, or it is loaded anew, so a
resumed run whose base file is missing does not fill it with a trained model's words. Columns id, prompt, response (without the prompt).
"""
import csv
import io
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch.distributed as dist

from data.store import read_json, write_json
from generate import generate
from lora import adapters_off, has_adapters
from model import GPT
from runtime.config import Config, digest
from runtime.device import Device
from runtime.distributed import World, is_sharded
from runtime.errors import UserError
from tokenizer import ASSISTANT, HUMAN, encode_prompt


def read_prompts(path: str) -> list[list[dict[str, str]]]:
    """The messages of every prompt in a .jsonl or .csv file with a column `prompt` (a text, or in .jsonl messages), or one text per line of a .txt file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        if path.endswith(".csv"):
            prompts = [row["prompt"] for row in csv.DictReader(io.StringIO(text, newline=""))]
        else:
            lines = [line for line in text.split("\n") if line.strip()]  # splitlines would also cut inside a text, at U+2028
            prompts = [json.loads(line)["prompt"] for line in lines] if path.endswith(".jsonl") else lines
    except (OSError, KeyError, ValueError) as e:
        raise UserError(f"dpo.samples_file: {path} holds no prompts ({type(e).__name__}: {e}); it needs a column 'prompt', or one prompt per line.") from None
    if not prompts:
        raise UserError(f"dpo.samples_file: {path} is empty.")
    return [[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt for prompt in prompts]


def prompt_ids(tokenizer: Any, messages: list[dict[str, str]], room: int) -> list[int]:
    """Ids of a prompt in the layout that the tokenizer's model was trained with. UserError for one of more than `room` tokens."""
    if hasattr(tokenizer, "encode_messages"):
        ids = list(tokenizer.encode_messages(messages)[0])
    else:
        ids = encode_prompt(tokenizer, "".join(f"{HUMAN if m['role'] == 'user' else ASSISTANT} {m['content']}" for m in messages) + ASSISTANT)[0]
    if len(ids) > room:
        raise UserError(f"dpo.samples_file: a prompt of {len(ids)} tokens leaves no room for a reply in a block of {room + 1}.")
    return ids


def write_samples(config: Config, epoch: int, model: Any, tokenizer: Any, device: Device, world: World = World(), weights: str = "",
                  base: bool = False, start: Callable[[], Any] | None = None) -> None:
    """inference/samples_epoch_<epoch>.csv from `model`; every rank calls it. base: from the model training starts from: the adapters are
    off, or without adapters `start` loads it; `weights` names it. A base file of the same model, prompts and settings is kept, unless override_base is set."""
    e, messages = config.eval, read_prompts(config.dpo.samples_file)
    folder = config.run_dir / "inference"
    made_with = {"prompts": digest(messages), "seed": e.seed, "temperature": e.temperature, "top_p": e.top_p, "top_k": e.top_k, "max_new_tokens": e.max_new_tokens,
                 "weights": weights, "block_size": config.model.block_size, "dtype": str(device.dtype), "frozen": config.lora.frozen if config.lora.rank else ""}
    path, note = folder / f"samples_epoch_{epoch:02d}.csv", folder / "base.json"
    if base and world.from_main(path.exists() and read_json(note) == made_with) and not config.override_base:
        return
    if base and not has_adapters(model):
        model = start()
    with adapters_off(model) if base and has_adapters(model) else nullcontext():
        replies = answers(config, model, tokenizer, messages, device, world)
    if world.main:
        folder.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".tmp"), "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "prompt", "response"])
            for i, (asked, reply) in enumerate(zip(messages, replies)):
                writer.writerow([i, asked[-1]["content"], reply])
        path.with_suffix(".tmp").replace(path)
        if base:
            write_json(note, made_with)
    world.wait()


def answers(config: Config, model: Any, tokenizer: Any, messages: Sequence[list[dict[str, str]]], device: Device, world: World) -> list[str]:
    """One reply per prompt. Each draw depends on (seed, prompt, position) alone, so ranks may share the prompts; in shards they cannot, since
    every rank must take part in every forward pass: there all of them write all replies."""
    e = config.eval
    shared = world.size > 1 and not is_sharded(model)
    mine = range(world.rank, len(messages), world.size) if shared else range(len(messages))
    ids = [prompt_ids(tokenizer, asked, model.config.block_size - 1) for asked in messages]  # all of them: what is wrong with one, all ranks must find
    how = {"max_new_tokens": e.max_new_tokens, "eot_id": tokenizer.eot_id, "temperature": e.temperature, "top_k": e.top_k, "top_p": e.top_p, "seed": e.seed,
           "sample_index": 0, "stop": b"", "token_bytes": None, "batch_size": e.batch_size, "show": "samples" if world.main else ""}
    with device.autocast():
        written = generate(model, [ids[i] for i in mine], **how) if isinstance(model, GPT) else model.generate([ids[i] for i in mine], **how)
    texts = dict(zip(mine, (tokenizer.decode(reply).strip() for reply in written)))
    if shared:
        gathered: list[dict[int, str]] = [{} for _ in range(world.size)]
        dist.all_gather_object(gathered, texts)
        texts = {i: text for part in gathered for i, text in part.items()}
    return [texts[i] for i in range(len(messages))]
