"""Several processes, one training run: who am I, what does everybody have, and how the model is spread. Started by torchrun.

One process needs none of this: every function then returns what it was given. Both engines are PyTorch's own, and both *average*
gradients over ranks; the loop undoes that (see train_dpo.step_gradients_of).
"""
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from losses import Pairs
from runtime.config import Config
from runtime.errors import UserError

PATIENCE = timedelta(minutes=30)  # how long a rank waits for the others: rank 0 may be writing a large checkpoint


@dataclass(frozen=True)
class World:
    """This process among all of them."""
    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """True in the one process that writes files and prints."""
        return self.rank == 0

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The sum of every rank's array of one shape."""
        if self.size == 1:
            return values
        total = torch.from_numpy(np.ascontiguousarray(values)).to(_device())
        dist.all_reduce(total)
        return total.cpu().numpy()

    def from_main(self, value: object) -> object:
        """Rank 0's value (anything that pickles) on every rank."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, device=_device())
        return box[0]

    def gather(self, p: Pairs) -> tuple[Pairs, slice]:
        """(the pairs of all ranks in rank order without gradient, which of them are this rank's)."""
        if self.size == 1:
            return p, slice(0, len(p.chosen))
        table = torch.stack([getattr(p, f.name).double() for f in fields(Pairs) if getattr(p, f.name) is not None]).detach()  # [columns, pairs here]
        counts = self.sum(np.eye(self.size, dtype=np.int64)[self.rank] * table.shape[1])
        longest = int(counts.max())  # collectives want one shape
        padded = torch.nn.functional.pad(table, (0, longest - table.shape[1])).contiguous()
        pieces = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(pieces, padded)
        columns = iter(torch.cat([piece[:, :n] for piece, n in zip(pieces, counts)], dim=1))
        whole = Pairs(*(None if getattr(p, f.name) is None else next(columns).to(getattr(p, f.name).dtype) for f in fields(Pairs)))
        start = int(counts[:self.rank].sum())
        return whole, slice(start, start + table.shape[1])


def _device() -> torch.device:
    """Where this backend's collectives work."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def start() -> World:
    """Join the other processes of torchrun; alone without it. Idempotent."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return World()
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if int(os.environ["RANK"]):
            sys.stdout = open(os.devnull, "w")  # one voice
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    return World(dist.get_rank(), dist.get_world_size())


def one_process(script: str) -> None:
    """UserError under torchrun, for stages that know one process only: several would write the same files."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(f"{script} runs in one process: start it with `python {script} ...`; train_dpo.py is the stage that torchrun spreads.")


def engine(config: Config, world: World) -> str:
    """"ddp", "fsdp", or "" for one process. UserError for an unknown name."""
    if config.scale.parallel not in ("auto", "ddp", "fsdp"):
        raise UserError(f"scale.parallel '{config.scale.parallel}' is none of auto, ddp, fsdp.")
    return "" if world.size == 1 else "fsdp" if config.scale.parallel == "fsdp" else "ddp"


def blocks(model: nn.Module) -> nn.ModuleList:
    """A model's transformer blocks: its longest list of modules."""
    return max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)


def shard(model: nn.Module, config: Config, world: World, device: torch.device) -> nn.Module:
    """Under FSDP2 the same model with its parameters cut into one shard per rank, gathered block by block as they are used on
    `device`; else unchanged. It may be on the meta device. UserError for 4-bit weights."""
    if engine(config, world) == "fsdp":
        if config.lora.rank and config.lora.frozen == "nf4":
            raise UserError("FSDP cannot shard 4-bit weights: use --lora.frozen=bfloat16, or --scale.parallel=ddp with a copy on every GPU.")
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
        how = {"mesh": init_device_mesh(device.type, (world.size,))}
        for block in blocks(model):
            fully_shard(block, **how)
        # embeddings, last norm and head, which the root's own forward uses. PyTorch would leave them whole after a pass without gradient, and an
        # optimizer made then would hold the wrong tensors
        fully_shard(model, reshard_after_forward=True, **how)
        for method in ("generate", "own_logps"):  # and so do these of hf_model.CausalLM
            if hasattr(model, method):
                register_fsdp_forward_method(model, method)
    return model


def averaged(model: nn.Module, config: Config, world: World) -> nn.Module:
    """What the loop calls in the model's place: under DDP a wrapper whose backward averages gradients over ranks; else the model."""
    if engine(config, world) == "ddp":
        return nn.parallel.DistributedDataParallel(model, device_ids=[model.device.index] if model.device.type == "cuda" else None)
    return model


def is_sharded(model: nn.Module) -> bool:
    """True for a model that `shard` has cut."""
    return hasattr(model, "set_requires_gradient_sync")


@contextmanager
def reduced(net: nn.Module, last: bool) -> Iterator[None]:
    """Backward passes in here exchange gradients between DDP's ranks only if `last`: once per step, not once per micro-batch. FSDP2 always does:
    until it has, every rank would hold all gradients whole."""
    if isinstance(net, nn.parallel.DistributedDataParallel) and not last:
        with net.no_sync():
            yield
        return
    yield


def finish() -> None:
    """Leave the group of processes."""
    if dist.is_initialized():
        dist.destroy_process_group()
