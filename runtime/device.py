"""Which device, which number format, and why. The reason is printed, so nobody has to guess what a run used."""
import contextlib
import ctypes
import os
import random
from dataclasses import dataclass

import numpy as np
import torch

from runtime.config import Config
from runtime.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Device:
    device: torch.device
    dtype: torch.dtype  # of the matrix products; weights, log-softmax and losses stay float32
    reason: str

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context a forward pass runs in."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss under float16, whose small gradients would vanish; does nothing otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)


def pick_dtype(kind: str, capability: tuple[int, int] | None, cpu_bf16: bool) -> tuple[str, str]:
    """(dtype name, reason) for a device kind. CUDA goes by compute capability: is_bf16_supported() says True on a T4, by emulation."""
    if kind == "cuda":
        name = f"compute capability {capability[0]}.{capability[1]}"
        return ("bfloat16", f"{name} has bf16 units") if capability >= (8, 0) else \
            ("float16", f"{name} has fp16 but no bf16 units: autocast with a gradient scaler, float32 weights")
    if kind == "cpu" and cpu_bf16:
        return "bfloat16", "this CPU has bf16 instructions"
    return "float32", {"mps": "the safe choice on Apple GPUs"}.get(kind, "this CPU has no bf16 instructions")


def cpu_has_bf16() -> bool:
    try:
        with open("/proc/cpuinfo") as f:
            flags = f.read()
        return "avx512_bf16" in flags or "amx_bf16" in flags
    except OSError:
        return False  # not Linux


def keep_freed_memory() -> None:
    """On Linux, let this process reuse freed memory instead of handing every large tensor back to the system.

    glibc maps each of them afresh, and the system zeroes its pages at first touch: a tenth of a training step on a CPU. The
    process then stays as large as its largest moment. CUDA's allocator in PyTorch does the same by itself.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def setup_device(config: Config, training: bool = True) -> Device:
    """Seeds, threads and determinism switches; returns the device with its dtype. Evaluation defaults to float32 on a CPU."""
    kind = config.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind not in ("cpu", "cuda", "mps") or (kind == "cuda" and not torch.cuda.is_available()) or \
            (kind == "mps" and not torch.backends.mps.is_available()):
        raise UserError(f"device '{config.device}' is not available here; use --device=cpu.")
    if config.dtype != "auto" and config.dtype not in DTYPES:
        raise UserError(f"dtype '{config.dtype}' is not one of auto, {', '.join(DTYPES)}.")
    if config.threads:
        torch.set_num_threads(config.threads)
    if kind == "cpu":
        keep_freed_memory()
    if kind == "cpu" and config.dtype == "auto" and not training:
        dtype, reason = "float32", "evaluation on a CPU"
    else:
        dtype, reason = pick_dtype(kind, torch.cuda.get_device_capability() if kind == "cuda" else None, cpu_has_bf16())
    if config.dtype != "auto":
        dtype, reason = config.dtype, "asked for"
    if dtype == "float16" and kind == "cpu":
        raise UserError("float16 is not for CPUs; use --dtype=bfloat16 or float32.")
    torch.manual_seed(config.seed)
    np.random.seed(config.seed)
    random.seed(config.seed)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    device = torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)  # under torchrun each rank has its own
    return Device(device, DTYPES[dtype], reason)


def peak_memory_gb(device: torch.device) -> float:
    """Most memory this process has held: on the GPU if there is one, else resident on the host. Gigabytes (1e9)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    try:  # rusage would count the process this one was forked from
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024 / 1e9
    except (OSError, StopIteration):
        pass  # not Linux
    import resource
    import sys
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9
