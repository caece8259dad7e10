"""Preparing all of HH: seconds and memory of `data/prepare_hh.py`; and whether training slows down as the store grows.

    python bench/bench_prepare.py --source FOLDER_WITH_HH_FILES [--rows 160800] [--tokenizers gpt2 bpe]

Fewer rows than asked for are repeated, each copy told apart by a word of its own, because equal pairs would be dropped: the amount of
text is then real, its variety is not. Then steps of a toy-sized model on 1,000 and on 100,000 of the prepared pairs, in processes
of their own, in turns. Writes results/speed/prepare.json.
"""
import argparse
import gzip
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from the repository root, not from bench/

import numpy as np
import torch

from batching import row_lengths, sequence_logps, shuffled_steps, steps_ahead
from bench.common import ROOT, bench_device, machine, save, spread, synchronize
from data.store import PairStore, StoreWriter
from objectives import preference_loss
from model import GPT, GPTConfig
from runtime.device import peak_memory_gb
from runtime.errors import UserError, run_main

SIZES = (1_000, 100_000)
STEPS, BATCH = 40, 32


def grow(source: str, rows: int, folder: Path) -> int:
    """Write `rows` pairs, the source's own first and then numbered copies, one file per source file; returns the bytes of text."""
    files = sorted(Path(source).glob("*.jsonl.gz"))
    pairs = [(path.name, json.loads(line)) for path in files for line in gzip.open(path, "rt", encoding="utf-8")]
    if not pairs:
        raise UserError(f"{source} holds no .jsonl.gz file.")
    out = {path.name: gzip.open(folder / path.name, "wt", encoding="utf-8", compresslevel=1) for path in files}
    size = 0
    for n in range(rows):
        name, pair = pairs[n % len(pairs)]
        if copy := n // len(pairs):
            pair = {side: text.replace("\n\nHuman:", f"\n\nHuman: ({copy})", 1) for side, text in pair.items()}
        size += sum(len(text.encode()) for text in pair.values())
        out[name].write(json.dumps(pair) + "\n")
    for file in out.values():
        file.close()
    return size


def timed(command: list[str]) -> tuple[float, float, str]:
    """(seconds, peak GB, output) of a command."""
    started, peak = time.perf_counter(), 0
    with TemporaryFile("w+") as output:
        child = subprocess.Popen(command, cwd=ROOT, stdout=output)
        while child.poll() is None:  # the kernel's own high-water mark, read until the last moment
            try:
                peak = max([peak, *(int(line.split()[1]) for line in Path(f"/proc/{child.pid}/status").read_text().splitlines() if line.startswith("VmHWM"))])
            except OSError:
                pass  # it has just ended, or this is not Linux: then 0 is reported
            time.sleep(0.1)
        if child.returncode:
            raise SystemExit(f"{' '.join(command)} failed")
        output.seek(0)
        return time.perf_counter() - started, peak * 1024 / 1e9, output.read()


def copy_store(store: PairStore, rows: np.ndarray, folder: Path) -> None:
    with StoreWriter(folder, 50257) as writer:
        for i in rows:
            prompt, roles, chosen, rejected = store.row(int(i))
            writer.add(prompt, bytes(roles), chosen, rejected)
        writer.close({})


def train(folder: str) -> dict[str, float]:
    """Useful tokens per second of DPO steps over a store, pairs in the order of an epoch, and the peak memory of this process."""
    device = bench_device("float32")
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=50257, block_size=1024, n_layer=2, n_head=2, n_embd=64)).to(device.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    store = PairStore(folder)
    lengths, taken, tokens = row_lengths(store, 2), [], []
    steps = shuffled_steps(len(store), BATCH, [0], STEPS)
    started = time.perf_counter()  # waiting for the store and the next step's layout is part of a step
    for indices, batches in zip(steps, steps_ahead(store, steps, 4096, device.device)):
        for batch in batches:
            batch = batch.to(device.device)
            chosen, rejected = sequence_logps(model(*batch.inputs()), batch)
            zero = torch.zeros_like(chosen)
            (preference_loss(chosen, rejected, zero, zero)[0].sum() / len(indices)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize(device)
        taken.append(time.perf_counter() - started)
        tokens.append(int(lengths[indices].sum()))
        started = time.perf_counter()
    return {"tokens_per_second": statistics.median(t / s for t, s in zip(tokens[2:], taken[2:])), "memory_gb": peak_memory_gb(device.device)}


def growth(store: PairStore, folder: Path, repeats: int) -> dict[str, object]:
    """The same training on a small and on a large store, in turns."""
    rng, found = np.random.default_rng(0), {size: [] for size in SIZES}
    if len(store) < max(SIZES):
        raise UserError(f"growth needs {max(SIZES):,} pairs, there are {len(store):,}: ask for more --rows.")
    for size in SIZES:
        copy_store(store, rng.choice(len(store), size, replace=False), folder / str(size))
    for _ in range(repeats):
        for size in SIZES:
            found[size].append(json.loads(timed([sys.executable, __file__, "--source=", f"--train={folder / str(size)}"])[2].splitlines()[-1]))
    speed = {size: [run["tokens_per_second"] for run in runs] for size, runs in found.items()}
    memory = {size: max(run["memory_gb"] for run in runs) for size, runs in found.items()}
    small, large = SIZES
    ratio = statistics.median(speed[large]) / statistics.median(speed[small])
    print(f"training: {' and '.join(f'{size:,} pairs {spread(speed[size])} tok/s, {memory[size]:.2f} GB' for size in SIZES)}; ratio {ratio:.3f}")
    return {"tokens_per_second": {str(k): v for k, v in speed.items()}, "memory_gb": {str(k): v for k, v in memory.items()}, "ratio": ratio}


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--source", required=True, help="a folder of HH .jsonl.gz files")
    a.add_argument("--rows", type=int, default=160_800)
    a.add_argument("--tokenizers", nargs="+", default=["gpt2", "bpe"])
    a.add_argument("--repeats", type=int, default=3)
    a.add_argument("--train", help=argparse.SUPPRESS)  # the process that trains on one store
    a = a.parse_args(argv)
    if a.train:
        print(json.dumps(train(a.train)))
        return
    result: dict[str, object] = machine(bench_device("float32")) | {"what": "preparation", "rows": a.rows}
    with TemporaryDirectory() as tmp:
        (source := Path(tmp) / "source").mkdir()
        size = grow(a.source, a.rows, source)
        for name in a.tokenizers:
            seconds, memory, _ = timed([sys.executable, "data/prepare_hh.py", "hh_small", f"--data.source={source}", f"--out={tmp}/{name}", f"--data.tokenizer={name}",
                                        "--data.vocab_size=8192"])
            (folder,) = [path.parent for path in Path(tmp, name, "data").glob("*/preparation.json")]
            stores = [PairStore(folder / split) for split in ("train", "val", "test")]
            tokens = int(sum(row_lengths(store, 2).sum() for store in stores if len(store)))
            result[name] = {"seconds": seconds, "memory_gb": memory, "pairs": sum(map(len, stores)), "tokens": tokens, "text_mb": size / 1e6}
            print(f"{name}: {a.rows:,} rows, {size / 1e6:.0f} MB of text, {tokens / 1e6:.1f}M tokens in {seconds:.0f} s, peak {memory:.2f} GB, {a.rows / seconds:.0f} pairs per second", flush=True)
        result["growth"] = growth(stores[0], Path(tmp), a.repeats)
    save("prepare", result)


if __name__ == "__main__":
    run_main(main)
