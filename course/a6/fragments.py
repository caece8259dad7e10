"""Puts the five fragments of assignment 6, as a submission has them, into the real training loops; a sick fragment makes a sick run."""
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import batching
import numpy as np
import torch
import train_dpo
import train_sft
from batching import Batch, make_batch, score_pairs, steps_ahead
from data.store import PairStore
from model import GPT
from runtime.config import TrainConfig
from runtime.errors import UserError

DROPOUT = 0.1  # what GPT-2's own config.json says
Fragments = ModuleType | SimpleNamespace


def masked(student: Fragments, store: PairStore, batch: Batch) -> Batch:
    """A one-branch batch with the tokens that the student's mask scores. UserError for a mask that scores tokens outside the replies."""
    replies = [batch.targets[batch.owner == 2 * d] for d in range(len(batch.pairs))]
    prompts, eot = [torch.from_numpy(store.row(i)[0].astype(np.int64)) for i in batch.pairs], store.meta["tokenizer"]["eot_id"]
    ids = torch.nn.utils.rnn.pad_sequence([torch.cat(parts) for parts in zip(prompts, replies)], batch_first=True, padding_value=eot)
    scored = student.scored_tokens(ids, torch.tensor([len(p) for p in prompts]), torch.tensor([len(r) for r in replies]), eot)
    keep = torch.cat([row[len(p):len(p) + len(r)] for row, p, r in zip(scored, prompts, replies)])  # in the order of `targets`: a reply is in one piece
    if keep.sum() != scored.sum():
        raise UserError("scored_tokens scores prompts or padding: grade it first.")
    batch.predict_at, batch.targets, batch.owner = batch.predict_at[keep], batch.targets[keep], batch.owner[keep]
    return batch


def sft_patches(student: Fragments) -> dict[tuple[ModuleType, str], Any]:
    """What scored_tokens and micro_loss replace in train_sft.py."""
    def make(store: PairStore, rows: batching.Rows, branches: int = 2, loss_on: str = "response", separate: bool = False) -> Batch:
        batch = make_batch(store, rows, branches, loss_on, separate)
        return masked(student, store, batch) if branches == 1 else batch

    now = {"micro_batches": 0}

    def steps(*args: Any) -> Iterator[list[Batch]]:
        for batches in steps_ahead(*args):
            now["micro_batches"] = len(batches)
            yield batches

    return {(batching, "make_batch"): make, (train_sft, "make_batch"): make, (train_sft, "steps_ahead"): steps,
            (train_sft, "sft_loss"): lambda logps, count: student.micro_loss(logps, count, now["micro_batches"])}


def dpo_patches(student: Fragments) -> dict[tuple[ModuleType, str], Any]:
    """What policy_and_reference, dropout_share and learning_rate replace in train_dpo.py.

    A reference with tensors of its own has the log-probs that were computed before training; one that shares the policy's is scored as it stands now.
    """
    real_policy, real_score, real_validate, moving = train_dpo.policy, train_dpo.score, train_dpo.validate, []

    def policy(s: train_dpo.Setup, run: train_dpo.Run) -> GPT:
        model = real_policy(s, run)
        share = student.dropout_share("dpo", DROPOUT, True)
        for part in model.modules():
            if hasattr(part, "dropout"):
                part.dropout = share
        model.config.dropout = share
        weights = {name: p.data for name, p in model.named_parameters()}
        _, frozen = student.policy_and_reference(dict(weights), [])
        if any(frozen[name].data_ptr() == weights[name].data_ptr() for name in weights):
            moving.append(s.load(s.start))
            for name, p in moving[0].named_parameters():
                p.data = frozen[name]
        return model

    def reference_now(store: PairStore, indices: list[int] | np.ndarray, cached: np.ndarray, c: TrainConfig, device: train_dpo.Device) -> np.ndarray:
        if not moving:
            return cached
        logps = cached.copy()
        logps[indices] = np.stack(score_pairs(moving[0], store, np.asarray(indices), c.micro_tokens, device.autocast), axis=1)
        return logps

    def score(model, batch, store, reference, c, settings, device):
        return real_score(model, batch, store, reference_now(store, batch.pairs, reference, c, device), c, settings, device)

    def validate(model, store, reference, indices, config, settings, device, world):
        return real_validate(model, store, reference_now(store, indices, reference, config.dpo, device), indices, config, settings, device, world)

    return {(train_dpo, "policy"): policy, (train_dpo, "score"): score, (train_dpo, "validate"): validate,
            (train_dpo, "lr_at"): lambda step, total, c: student.learning_rate(step, total, c.lr, c.warmup, c.min_lr)}


@contextmanager
def plugged(student: Fragments) -> Iterator[None]:
    """While this is open, train_sft.main and train_dpo.main run with the student's fragments."""
    with ExitStack() as stack:
        for (module, name), replacement in (sft_patches(student) | dpo_patches(student)).items():
            stack.enter_context(patch.object(module, name, replacement))
        yield
