"""Runs of this project's own scripts, several at a time: what sweeps and studies share."""
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from runtime.config import ROOT


def call(command: Sequence[str], log: Path, threads: int) -> str:
    """Run a script of this project; "" or the last thing it said when it failed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    # waiting threads must sleep, or several runs at once keep each other from working
    quiet = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    with open(log, "a", encoding="utf-8") as file:
        done = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=quiet)
    if done.returncode == 0:
        return ""
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines() if line.strip()]
    return said[-1] if said else f"exit code {done.returncode}"


def at_once(jobs: int, work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """work(item) of all items, `jobs` at a time. Ctrl-C stops the running ones (they get it too) and starts no other."""
    with ThreadPoolExecutor(jobs) as pool:
        try:
            return list(pool.map(work, items))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
