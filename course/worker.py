"""The child in which submissions run: `grade.py` sends it a function's name and arguments, it answers with values and nothing else.

Whoever shares a process with its judge can rewrite the judge. So no comparison, no point and no expected value ever gets here; this side
computes, `checking.py` compares on the other. Each call has a process of its own, forked after torch was loaded, with limits on memory and
processes; time, and whatever these limits miss, is the parent's affair (sandbox.py). The file is run by itself, outside the project's import path.
"""
import base64
import json
import os
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch

LARGEST = 8 * 2**20  # bytes of one answer; honest ones are kilobytes
NO_GRADIENT = "its result has no gradient: somewhere on the way a tensor was detached, or turned into a number"
NOBODY = 65534
DTYPES = {str(dtype)[6:]: dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8, torch.int8,
                                             torch.int16, torch.int32, torch.int64)}
# what Python reports before it does it (sys.addaudithook), and what it does not report: a graded function has no use for any of it
FORBIDDEN = frozenset({
    "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "os.exec", "os.startfile", "subprocess.Popen", "pty.spawn", "os.kill", "os.killpg",
    "socket.connect", "socket.bind", "socket.getaddrinfo", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
    "os.chown", "os.setxattr", "ctypes.dlopen", "ctypes.dlsym", "ctypes.call_function", "ctypes.string_at", "gc.get_objects", "gc.get_referrers", "gc.get_referents"})
UNREPORTED = {"os": ("pidfd_open",), "posix": ("pidfd_open",), "signal": ("pidfd_send_signal",), "_signal": ("pidfd_send_signal",), "_posixsubprocess": ("fork_exec",)}


def pack(value: Any) -> Any:
    """Tensors, bytes, numbers, strings, and lists, tuples and dicts of them as JSON values. Raises TypeError for anything else."""
    if isinstance(value, torch.Tensor):
        t = value.detach().to("cpu").contiguous()
        raw = t.reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b""
        return {"tensor": [str(t.dtype)[6:], list(t.shape), base64.b64encode(raw).decode()]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, tuple):
        return {"tuple": [pack(part) for part in value]}
    if isinstance(value, list):
        return [pack(part) for part in value]
    if isinstance(value, dict):
        return {"dict": [[pack(key), pack(part)] for key, part in value.items()]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"it returned a {type(value).__name__}; tensors, numbers, strings, bytes, and lists, tuples and dicts of them can be graded")


def unpack(value: Any) -> Any:
    """The inverse of `pack`, safe on anything that JSON can hold: ValueError, KeyError or TypeError, never code."""
    if isinstance(value, list):
        return [unpack(part) for part in value]
    if not isinstance(value, dict):
        return value
    (kind, content), = value.items()
    if kind == "tensor":
        dtype, shape, data = DTYPES[content[0]], [int(n) for n in content[1]], bytearray(base64.b64decode(content[2]))
        return torch.frombuffer(data, dtype=torch.uint8).clone().view(dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)
    if kind == "bytes":
        return base64.b64decode(content)
    return tuple(unpack(part) for part in content) if kind == "tuple" else {unpack(key): unpack(part) for key, part in content}


def answer(job: dict, shut: Callable[[], None]) -> dict:
    """Run one job {"source", "name", "function", "args", "gradients"}; {"value": ...} or {"error": one sentence}, with "cost" where it met a limit. In the forked process.

    shut: called before the submission's first line runs, and after it was compiled, for which Python may look for the file.
    """
    try:
        space = {"__name__": "submission", "__file__": job["name"]}
        code = compile(job["source"], job["name"], "exec")
        shut()
        exec(code, space)
        if not job["function"]:  # only: can it be loaded?
            return {"value": None}
        if not callable(space.get(job["function"])):
            return {"error": f"there is no function {job['function']} in {job['name']}"}
        args = unpack(job["args"])
        wanted = [args[i].requires_grad_() for i in job["gradients"]]
        found = space[job["function"]](*args)
        if wanted:
            if not (isinstance(found, torch.Tensor) and found.requires_grad):
                return {"error": NO_GRADIENT}
            found = list(torch.autograd.grad(found.sum(), wanted, materialize_grads=True))
        return {"value": pack(found)}
    except NotImplementedError as e:
        return {"error": str(e) or "not written yet"}
    except SystemExit:
        return {"error": "it called sys.exit; a function returns its result"}
    except BaseException as e:  # whatever a submission does is an answer about the submission
        if isinstance(e, MemoryError) or "allocate memory" in str(e) or "not enough memory" in str(e):
            return {"error": f"it asked for more memory than the {job['memory_gb']:g} GB it may have", "cost": True}
        lines = [line for frame, line in traceback.walk_tb(e.__traceback__) if frame.f_code.co_filename == job["name"]]  # extract_tb would open the file
        where = f" ({job['name']}, line {lines[-1]})" if lines else f" ({job['name']}, line {e.lineno})" if isinstance(e, SyntaxError) else ""
        return {"error": f"{type(e).__name__}: {str(e)[:300]}{where}"}


def limit(job: dict, drop: bool) -> None:
    """Take away what a graded function has no use for: more memory, further processes, big files and, where we are root, root."""
    if os.path.exists("/proc/self/statm"):
        mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        most = mapped + int(job["memory_gb"] * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, LARGEST))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if drop:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))  # of this user; root is not held by it


def forbid(result: int, project: str) -> None:
    """From here on the acts above, and opening any file but Python's own for reading, end the call with a message."""
    for module, names in UNREPORTED.items():
        for name in names:
            if hasattr(sys.modules.get(module), name):
                setattr(sys.modules[module], name, None)
    # bound here, where a submission that rewrites `os` does not reach them
    own, real, is_folder, leave, write, pack_text = (sys.prefix + os.sep, sys.base_prefix + os.sep), os.path.realpath, os.path.isdir, os._exit, os.pwrite, json.dumps
    writing, forbidden = os.O_WRONLY | os.O_RDWR, FORBIDDEN

    def hook(event: str, args: tuple) -> None:
        what = event if event in forbidden else ""
        if event == "open" and isinstance(args[0], (str, bytes)):
            path = real(os.fsdecode(args[0]))
            pythons = path.startswith(own) and (not path.startswith(project) or path.startswith(own[0]))
            if (args[2] or 0) & writing or is_folder(path) or not (pythons or path in ("/dev/null", "/dev/urandom")):
                what = f"to open {path.rsplit('/', 1)[-1]}"
        if what:
            write(result, pack_text({"forbidden": what}).encode(), 0)
            leave(1)
            raise PermissionError(what)
    sys.addaudithook(hook)


def run(job: dict, drop: bool, project: str) -> dict:
    """Fork, compute, and read what the child left in a file that only the two of them share."""
    with tempfile.TemporaryFile() as result:
        pid = os.fork()
        if pid == 0:
            nowhere = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2, job["reply_to"]):
                os.dup2(nowhere, fd)  # prints go nowhere, and the way to the parent is closed
            torch.manual_seed(0)
            try:
                limit(job, drop)
                text = json.dumps(answer(job, lambda: forbid(result.fileno(), project))).encode()
            except BaseException as e:
                text = json.dumps({"error": f"its result cannot be read: {type(e).__name__}: {str(e)[:200]}"}).encode()
            os.pwrite(result.fileno(), text, 0)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        result.seek(0)
        text = result.read(LARGEST)
    if not text:
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit code {os.WEXITSTATUS(status)}"
        return {"error": f"it ended its process without a result ({how})"}
    return json.loads(text)


def can_be_nobody() -> bool:
    """True where we are root and an unprivileged process could still read Python's own files."""
    if os.geteuid() != 0:
        return False
    pid = os.fork()
    if pid == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        os._exit(0 if all(os.access(path, os.R_OK) for path in (torch.__file__, json.__file__)) else 1)
    return os.waitpid(pid, 0)[1] == 0


def main() -> None:
    """Answer jobs, one JSON object per line, until the input ends."""
    project, reply_to = sys.argv[1] + os.sep, os.dup(1)
    os.dup2(2, 1)
    torch.set_num_threads(1)  # a fork does not take threads along
    drop = can_be_nobody()
    for line in sys.stdin:
        try:
            reply = run(json.loads(line) | {"reply_to": reply_to}, drop, project)
        except (ValueError, OSError, RecursionError) as e:
            reply = {"error": f"its result cannot be read: {e}"}
        os.write(reply_to, json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main()
