"""The frozen model that DPO measures against: its log-probs are computed once and kept in a file, then the model is freed.

It may move at stage ends (dpo.reference_update): the policy replaces it (Curry-DPO, Pattnaik et al. 2024; the hard update of TR-DPO,
Gorbatovski et al. 2024) or is mixed into its weights (TR-DPO's soft update, eq. 2, which comes every few steps there), and the log-probs are computed anew.
"""
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from batching import score_pairs
from data.store import PairStore
from model import GPT
from objectives import reference_free
from runtime.checkpoint import weights_hash
from runtime.config import Config, digest
from runtime.device import Device
from runtime.distributed import World

SAVE_EVERY = 20_000  # pairs: what a kill during the reference pass can lose


def reference_logps(cache: Path, load: Callable[[], GPT], store: PairStore, needed: np.ndarray, device: Device, micro_tokens: int,
                    tail_weight: float = 1.0, world: World = World()) -> np.ndarray:
    """Log-probs of the frozen reference, float32 [n, 2] (chosen, rejected), NaN where no pair was needed.

    Computed once, kept in the file `cache`; a later call computes only what is missing. The reference model lives inside this
    function and is freed on return, so memory holds one model during training.
    """
    logps = world.from_main(np.load(cache) if world.main and cache.exists() else None)  # one rank looks: another might see the file half a second later
    if logps is None:
        logps = np.full((len(store), 2), np.nan, dtype=np.float32)
    missing = np.unique(needed[np.isnan(logps[needed, 0])])
    if len(missing):
        model = load()
        if world.main:
            cache.parent.mkdir(parents=True, exist_ok=True)
        for part in np.array_split(missing, -(-len(missing) // SAVE_EVERY)):
            logps[part, 0], logps[part, 1] = score_pairs(model, store, part, micro_tokens, device.autocast, show=f"reference: {cache.stem} pairs",
                                                         tail_weight=tail_weight, world=world)
            if not world.main:
                continue
            tmp = cache.with_suffix(f".{os.getpid()}.npy")  # two runs of a sweep may fill one cache at the same time
            np.save(tmp, logps)
            tmp.rename(cache)
    return logps


class Reference:
    """A reference and its log-probs: `folder` its weights, `train` and `val` [n, 2] float32 nats (chosen, rejected), NaN where never asked for.

    Scored through the same code path, in the same dtype and with the same token weights as the policy. Zeros for objectives without one.
    """

    def __init__(self, config: Config, start: Path, load: Callable[[Path], GPT], data: Path, device: Device, tail_weight: float = 1.0,
                 world: World = World()):
        """start: the checkpoint it begins as. load: makes a model of a checkpoint folder. data: the prepared pairs."""
        self.config, self._load, self.data, self.device, self.tail_weight, self.world = config, load, data, device, tail_weight, world
        self.move(start)
        self.free = reference_free(config.dpo.objective)
        self.train = self.val = np.zeros((0, 2), dtype=np.float32)

    def move(self, folder: Path) -> None:
        """From here on its weights are those in `folder`; `weights` names them."""
        self.folder, self.weights = folder, weights_hash(folder)

    def load(self) -> GPT:
        """The reference model itself."""
        return self._load(self.folder)

    def logps(self, split: str, store: PairStore, needed: np.ndarray) -> np.ndarray:
        """[n, 2] of a split, whatever the objective, from a file whose name says all that the values depend on."""
        c = self.config
        key = digest([self.weights, self.data.name, str(self.device.dtype), self.device.device.type, c.compile,
                      *([self.tail_weight] if self.tail_weight != 1 else []), *([c.lora.frozen] if c.lora.rank else [])])
        cache = Path(c.out) / "data" / "reference" / key / f"{split}.npy"
        return reference_logps(cache, self.load, store, needed, self.device, c.dpo.micro_tokens, self.tail_weight, self.world)

    def score(self, train: PairStore, needed: np.ndarray, val: PairStore, val_needed: np.ndarray) -> None:
        """Fill `train` and `val` for the pairs that will be needed."""
        if self.free:
            self.train, self.val = (np.zeros((len(store), 2), dtype=np.float32) for store in (train, val))
        else:
            self.train, self.val = self.logps("train", train, needed), self.logps("val", val, val_needed)


@torch.no_grad()
def mix(policy: GPT, reference: GPT, share: float) -> GPT:
    """`reference` with weights share * policy + (1 - share) * reference; it is changed and returned."""
    for theirs, ours in zip(reference.parameters(), policy.parameters(), strict=True):
        theirs.lerp_(ours, share) if share < 1 else theirs.copy_(ours)
    return reference


def folder_of(run_folder: Path, stage: int, start: Path) -> Path:
    """Where the weights of a moving reference lie in a stage (from 0): `start` in the first one."""
    return run_folder / f"reference_{stage}" if stage else start


def forget_before(run_folder: Path, stage: int) -> None:
    """Delete the references of the stages before `stage`, once a checkpoint of that stage is saved."""
    for k in range(1, stage):
        shutil.rmtree(folder_of(run_folder, k, run_folder), ignore_errors=True)
