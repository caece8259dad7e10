"""The run of assignment 1: two vocabularies learned and applied by the student's code, and 60 steps of SFT on each through the student's masks."""
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np
import torch

import batching
import tokenizer
import train_sft
from batching import Batch
from course.train import Base, Outcome
from data import prepare_hh
from data.store import PairStore, find_data, read_json
from runtime.config import load_config
from runtime.run import read_metrics
from tokenizer import Tokenizer, load_tokenizer, prompt_roles

SIZES = (1024, 384)
SETTINGS = {"model__block_size": 128, "sft__max_steps": 60, "sft__batch": 24, "sft__eval_every": 15, "sft__eval_rows": 100}
PADDED_ROWS = 25  # laid out together in a validation


def data_patches(student: ModuleType) -> list:
    """The student's merges, encoding, rows and truncation in the place of those that data/prepare_hh.py uses."""
    known: dict[tuple[bytes, int], list[int]] = {}
    encode_chunk = student.encode_chunk

    def remembered(chunk: bytes, ranks: dict[bytes, int]) -> list[int]:
        key = chunk, len(ranks)  # a few hundred chunks make up the whole corpus
        if key not in known:
            known[key] = encode_chunk(chunk, ranks)
        return known[key]

    def encode_prompt(tok: Tokenizer, prompt: str) -> tuple[list[int], np.ndarray]:
        ids, _ = student.dialogue_ids(prompt, "", tok.ranks, tok.eot_id)
        return ids, prompt_roles(tok, ids)

    def encode_response(tok: Tokenizer, response: str) -> list[int]:
        return student.dialogue_ids("", " " + response.strip(), tok.ranks, tok.eot_id)[1]

    def fit(prompt: list[int], roles: np.ndarray, longer_reply: int, block_size: int, shortest: int) -> tuple[list[int], np.ndarray]:
        found = student.fit(list(range(len(prompt))), [0] * longer_reply, [0], block_size, shortest)  # places in the place of ids: roles go with them
        if found is None:
            raise prepare_hh.Drop("reply longer than the block")
        return [prompt[i] for i in found[0]], roles[found[0]]

    return [patch.object(student, "encode_chunk", remembered), patch.object(tokenizer, "learn_merges", student.learn_merges),
            patch.object(prepare_hh, "encode_prompt", encode_prompt), patch.object(prepare_hh, "encode_response", encode_response),
            patch.object(prepare_hh, "fit", fit)]


def training_patches(student: ModuleType, seen: dict[str, int]) -> list:
    """What carries the loss: in training by scored_positions, in validation by pad_rows. `seen` counts the tokens trained on, and the scored ones."""
    lay_out = batching.make_batch

    def make_batch(store: PairStore, rows: batching.Rows, *layout: object) -> Batch:
        batch, parts = lay_out(store, rows, *layout), []
        ids, document = batch.ids.flatten(), 0
        for b, row in enumerate(rows):
            start = b * batch.ids.shape[1]
            for prompt, chosen in ((int(store.index[i]["prompt"]), int(store.index[i]["chosen"])) for i in row):
                predict_at, target_at, owner = student.scored_positions(prompt, chosen, 0)
                parts.append((start + predict_at, ids[start + target_at], 2 * document + owner))
                start, document = start + prompt + chosen, document + 1
                seen["tokens"] += prompt + chosen
        predict_at, targets, owner = (torch.cat(column) for column in zip(*parts))
        seen["scored"] += len(targets)
        return replace(batch, predict_at=predict_at, targets=targets, owner=owner)

    @torch.no_grad()
    def validate(model: torch.nn.Module, store: PairStore, device: object, rows: int, *_: object) -> float:
        model.eval()
        nats, count = 0.0, 0
        documents = [store.row(i) for i in np.random.default_rng(0).permutation(len(store))[:rows]]
        for first in range(0, len(documents), PADDED_ROWS):
            some = documents[first:first + PADDED_ROWS]
            ids, scored = student.pad_rows([p.tolist() for p, *_ in some], [c.tolist() for _, _, c, _ in some], store.meta["tokenizer"]["eot_id"])
            at = scored.flatten().nonzero()[:, 0]
            positions = torch.arange(ids.shape[1]).expand_as(ids)
            nats -= model(ids, positions, torch.zeros_like(ids), at - 1, ids.flatten()[at]).double().sum().item()
            count += len(at)
        model.train()
        return nats / count

    return [patch.object(batching, "make_batch", make_batch), patch.object(train_sft, "validate", validate)]


def bytes_per_token(data: Path) -> float:
    """Bytes of the chosen validation replies by their tokens, end-of-text counted as a token of no bytes."""
    store, tok = PairStore(data / "val"), load_tokenizer(data / "tokenizer")
    replies = [store.row(i)[2] for i in range(len(store))]
    return sum(len(tok.decode(r[:-1]).encode()) for r in replies) / sum(map(len, replies))


def run(student: ModuleType, base: Base) -> Outcome:
    """Figures by vocabulary: of the validation replies their bytes per token, of the training rows the shares in %, and the loss of 100 validation
    replies after 60 steps; curves: that loss."""
    found, folder = Outcome({}), base.out / base.name
    shutil.rmtree(folder / "data", ignore_errors=True)  # prepared data are named after their settings, not after whose code made them
    for size in SIZES:
        argv, seen, name = base.argv("", **SETTINGS, out=folder, name=f"ids_{size}", data__vocab_size=size), {"tokens": 0, "scored": 0}, f"{size:,} ids"
        with ExitStack() as patches:
            for one in data_patches(student) + training_patches(student, seen):
                patches.enter_context(one)
            prepare_hh.main(argv)
            train_sft.main(argv)
        data = find_data(load_config(argv))
        counts = read_json(data / "preparation.json")["counts"]["train"]
        curve = [(row["step"], row["loss"]) for row in read_metrics(folder / f"ids_{size}" / "sft" / "metrics.jsonl") if row["split"] == "val"]
        length = bytes_per_token(data)
        found.figures |= {f"{name}: bytes per token": length, f"{name}: tokens scored, %": 100 * seen["scored"] / seen["tokens"],
                          f"{name}: prompts shortened, %": 100 * counts.get("prompt shortened from the left", 0) / counts["kept"],
                          f"{name}: loss, nats per token": curve[-1][1], f"{name}: loss, nats per byte": curve[-1][1] / length}
        found.curves[f"validation loss, nats per token | {name}"] = curve
    return found
