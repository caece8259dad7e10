"""What the benchmarks share: real pairs in file order, the GPT they run, the machine's peak, and how a time is taken and told.

Tokens counted are useful ones, padding excluded: every prompt once, and the replies. FLOPs counted are those of the useful work too
(2 per multiply-add, three times the forward pass for a training step), so utilisation falls when work is wasted.
"""
import gzip
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from data.store import PairStore, StoreWriter, write_json
from model import GPT, GPTConfig
from runtime.device import Device, cpu_has_bf16, keep_freed_memory, peak_memory_gb, pick_dtype
from runtime.errors import UserError
from tokenizer import ASSISTANT, load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
LAYERS, HEADS, WIDTH = map(int, os.environ.get("NANOPREF_BENCH_SHAPE", "12,12,768").split(","))  # a small one tries a benchmark out
GPT2_SMALL = GPTConfig(vocab_size=50257, block_size=1024, n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH)


def bench_device(dtype: str = "auto", keep_memory: bool = True) -> Device:
    """The GPU if there is one, else the CPU; dtype and memory as runtime.device would choose them."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cpu" and keep_memory:
        keep_freed_memory()
    name, reason = pick_dtype(kind, torch.cuda.get_device_capability() if kind == "cuda" else None, cpu_has_bf16())
    return Device(torch.device(kind), getattr(torch, name if dtype == "auto" else dtype), reason if dtype == "auto" else "asked for")


# ---- real pairs -----------------------------------------------------------------------------------------------------

def hh_texts(source: str) -> Iterator[tuple[str, str, str]]:
    """(prompt, chosen, rejected) of HH pairs in file order, without those whose prompts differ or that have an empty reply.

    A folder means all of its .jsonl.gz files.
    """
    for path in sorted(Path(source).glob("*.jsonl.gz")) if Path(source).is_dir() else [Path(source)]:
        for line in gzip.open(path, "rt", encoding="utf-8"):
            pair = json.loads(line)
            cut = pair["chosen"].rfind(ASSISTANT) + len(ASSISTANT)
            prompt, chosen, rejected = pair["chosen"][:cut], pair["chosen"][cut:], pair["rejected"][cut:]
            if pair["rejected"].startswith(prompt) and chosen.strip() and rejected.strip():
                yield prompt, chosen, rejected


def hh_rows(source: str, limit: int = 0, longest: int = 511) -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt, chosen, rejected) ids with GPT-2's vocabulary; replies end in end-of-text. Nothing of more than `longest` tokens.

    Tokenized as TRL does: prompt and reply in one piece, cut where the prompt alone would end.
    """
    tok, rows = load_tokenizer("gpt2"), []
    for prompt, *replies in hh_texts(source):
        start, whole = tok.encode(prompt), [tok.encode(prompt + reply) for reply in replies]
        if max(map(len, whole)) <= longest:
            rows.append((start, *(ids[len(start):] + [tok.eot_id] for ids in whole)))
        if limit and len(rows) == limit:
            return rows
    if limit:
        raise UserError(f"{source} has only {len(rows)} usable pairs, {limit} were asked for.")
    return rows


@contextmanager
def stored(rows: list[tuple[list[int], list[int], list[int]]], vocab_size: int = 50257) -> Iterator[PairStore]:
    """The rows as a pair store in a temporary folder."""
    with TemporaryDirectory() as folder:
        with StoreWriter(Path(folder) / "pairs", vocab_size) as writer:
            for prompt, chosen, rejected in rows:
                writer.add(prompt, bytes(len(prompt)), chosen, rejected)
            writer.close({})
        yield PairStore(Path(folder) / "pairs")


# ---- work and time --------------------------------------------------------------------------------------------------

def training_flops(model: GPT, tokens: int, scored: int, pairs_attended: int) -> float:
    """FLOPs of forward and backward over `tokens` positions with `scored` rows through the head, `pairs_attended` query-key pairs.

    Three times 2 x (parameters of the blocks x tokens + vocabulary x width x scored + 2 x width x layers x pairs attended), less the
    last block's MLP where no token is scored: that work is not needed, and not done.
    """
    c = model.config
    blocks = 12 * c.n_layer * c.n_embd**2 * tokens - 8 * c.n_embd**2 * (tokens - scored)
    return 6.0 * (blocks + c.vocab_size * c.n_embd * scored + 2 * c.n_embd * c.n_layer * pairs_attended)


def attended(prompt: int, *replies: int) -> int:
    """Query-key pairs of one document whose replies share the prompt."""
    return prompt * (prompt + 1) // 2 + sum(r * prompt + r * (r + 1) // 2 for r in replies)


def causal_logits(model: GPT, ids: Tensor) -> Tensor:
    """Float32 logits [B, T, V] of ids [B, T] by one plain causal forward pass: the slow, obvious way."""
    T = ids.shape[1]
    mask = torch.ones(T, T, dtype=torch.bool, device=model.device).tril()
    return model.logits(model.hidden(ids, torch.arange(T, device=model.device).expand_as(ids), mask))


def step_of(model: torch.nn.Module, gradients: Callable[[], float]) -> Callable[[], None]:
    """A whole optimizer step around `gradients`, with the same optimizer for every system."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        gradients()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return step


def synchronize(device: Device) -> None:
    """Wait for the GPU: kernels are queued, and a clock read before they end measures the queue."""
    if device.device.type == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: Device, repeats: int, warm_up: int = 1) -> list[float]:
    """Seconds of each of `repeats` calls, after `warm_up` untimed ones."""
    taken = []
    for i in range(warm_up + repeats):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        taken.append(time.perf_counter() - started)
    return taken[warm_up:]


def take_turns(systems: dict[str, Callable[[], object]], device: Device, repeats: int) -> dict[str, list[float]]:
    """Seconds of every system, one call each in turn after an untimed round: a machine that slows down slows all of them."""
    taken: dict[str, list[float]] = {name: [] for name in systems}
    for round_ in range(repeats + 1):
        for name, work in systems.items():
            found = seconds(work, device, 1, warm_up=0)
            taken[name] += found if round_ else []
    return taken


def measured_peak(device: Device) -> float:
    """FLOP/s of the best of ten square matrix products in the device's format: what this machine can do, measured now."""
    size = 8192 if device.device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device.device, dtype=device.dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: a @ b, device, 10))


def spread(values: list[float]) -> str:
    """Median [smallest, largest] with three digits."""
    return f"{statistics.median(values):.3g} [{min(values):.3g}, {max(values):.3g}]"


def beside(command: str) -> dict[str, float]:
    """Run another system's benchmark and read `X pairs/s` (or tok/s) and `peak Y GB` from its output."""
    done = subprocess.run(shlex.split(command), capture_output=True, text=True)
    found = re.findall(r"([\d.]+) (?:pairs|tok)/s", done.stdout), re.findall(r"peak ([\d.]+) GB", done.stdout)
    if done.returncode or not found[0]:
        raise UserError(f"`{command}` gave no figure: {(done.stderr or done.stdout).strip()[-300:]}")
    return {"per_second": float(found[0][-1]), "peak_gb": float(found[1][-1]) if found[1] else float("nan")}


def machine(device: Device) -> dict[str, object]:
    """Where a figure was taken."""
    name = torch.cuda.get_device_name() if device.device.type == "cuda" else next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version(),
            "dtype": str(device.dtype)[6:], "memory_gb": round(peak_memory_gb(device.device), 2)}


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def save(name: str, result: dict) -> None:
    """Write <name>.json into results/speed/, or into the folder NANOPREF_RESULTS, and say so."""
    path = Path(os.environ.get("NANOPREF_RESULTS", ROOT / "results" / "speed")) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    print(f"written: {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}", file=sys.stderr)
