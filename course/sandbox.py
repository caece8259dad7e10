"""The parent's side of a graded call: it keeps the time, watches memory and processes, and leaves nothing running.

A process that calls setsid or forks twice leaves its group and its family; on Linux it does not leave us, because whoever declares himself a
subreaper inherits the orphans of all his descendants. (Elsewhere only what stays in the tree is found: grade a class on Linux.)
"""
import ctypes
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from course.worker import LARGEST, pack, unpack
from runtime.config import ROOT

PR_SET_CHILD_SUBREAPER = 36
LOOK_EVERY = 0.05  # seconds


@dataclass(frozen=True)
class Limits:
    """What one call may take."""
    seconds: float = 10.0
    memory_gb: float = 4.0


class Failed(Exception):
    """A call that gave no value; the message says why. `ends`: not a mistake but an act after which nothing else is run."""

    def __init__(self, why: str, ends: bool = False, cost: bool = False):
        super().__init__(why)
        self.ends, self.cost = ends, cost  # cost: it ran into a limit of time or memory


class Sandbox:
    """A worker process and its supervision; starts when it is first needed, and again after it had to be killed."""

    def __init__(self, limits: Limits = Limits()):
        self.limits, self.worker = limits, None
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.before = set(psutil.Process().children(recursive=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """A fresh worker, with nothing of this project on its import path."""
        self.folder = tempfile.TemporaryDirectory()
        quiet = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | {"OMP_NUM_THREADS": "1", "HOME": self.folder.name}
        self.worker = subprocess.Popen([sys.executable, "-I", str(Path(__file__).with_name("worker.py")), str(ROOT)], cwd=self.folder.name, env=quiet,
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)

    def call(self, source: str, name: str, function: str, args: tuple = (), gradients: tuple[int, ...] = ()) -> Any:
        """function(*args) of a submission with this source text; with `gradients`, d sum(result) / d args[i] of each of them. Raises Failed."""
        if self.worker is None:
            self.start()
            self._ask({"source": "", "name": name, "function": "", "args": [], "gradients": []}, 120)  # loading torch is not the submission's time
        reply = self._ask({"source": source, "name": name, "function": function, "args": pack(list(args)), "gradients": gradients}, self.limits.seconds)
        if not isinstance(reply, dict):
            raise Failed("its result cannot be read")
        if "forbidden" in reply:
            raise Failed(f"stopped: the submission tried {reply['forbidden']}", ends=True)
        if "error" in reply:
            raise Failed(str(reply["error"]), cost=bool(reply.get("cost")))
        try:
            return unpack(reply["value"])
        except Exception:  # whatever a submission wrote there is an answer about the submission
            raise Failed("its result cannot be read") from None

    def _ask(self, job: dict, seconds: float) -> dict:
        text, deadline = bytearray(), time.monotonic() + seconds
        try:
            self.worker.stdin.write(json.dumps(job | {"memory_gb": self.limits.memory_gb}).encode() + b"\n")
            self.worker.stdin.flush()
            while not text.endswith(b"\n"):
                if select.select([self.worker.stdout], [], [], LOOK_EVERY)[0]:
                    part = os.read(self.worker.stdout.fileno(), 2**20)
                    text += part
                    if not part or len(text) > 2 * LARGEST:
                        raise OSError
                if not text.endswith(b"\n") and (why := self._too_much(deadline, seconds)):
                    self.stop()
                    raise Failed(why, cost=True)
            return json.loads(text)
        except (OSError, ValueError):
            self.stop()
            raise Failed("stopped: the submission ended or disturbed the process it is graded in", ends=True) from None

    def _too_much(self, deadline: float, seconds: float) -> str:
        if time.monotonic() > deadline:
            return f"stopped after {seconds:g} seconds: does a loop never end?"
        used = 0
        for process in self.strays():
            with suppress(psutil.Error):
                used += process.memory_info().rss
        most = self.limits.memory_gb + 2  # torch itself
        return f"stopped: it used more memory than the {self.limits.memory_gb:g} GB it may have" if used > most * 2**30 else ""

    def strays(self) -> list[psutil.Process]:
        """All processes that came from ours, the worker aside, since this sandbox was made."""
        return [p for p in psutil.Process().children(recursive=True) if p not in self.before and (self.worker is None or p.pid != self.worker.pid)]

    def left_behind(self) -> bool:
        """True when a finished call left processes running; they are killed."""
        rest = [p for p in self.strays() if p.status() != psutil.STATUS_ZOMBIE]
        if rest:
            self.stop()
        return bool(rest)

    def stop(self) -> None:
        """Kill the worker and everything that came from it."""
        if self.worker:
            self.worker.kill()
            self.worker.wait()
            self.worker.stdin.close()
            self.worker.stdout.close()
            self.worker = None
            self.folder.cleanup()
        while rest := self.strays():  # what a killed one forked a moment before is ours by now, and is met in the next pass
            for process in rest:
                with suppress(psutil.Error, ChildProcessError):
                    process.kill()
                    if process.ppid() == os.getpid():
                        os.waitpid(process.pid, os.WNOHANG)
            time.sleep(0.01)
