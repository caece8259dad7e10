"""Is this machine ready for a first run? Under a minute, without a network.

    python doctor.py [--json] [--out FOLDER]      FOLDER: where runs will be kept

Green is fine. Amber runs, but something is less than it could be. Red must be mended first, and makes the exit code 1.
Half of the checks are the project itself at toy size: pairs prepared, a step of DPO, a batch learnt by heart, a killed run continued.
"""
from __future__ import annotations  # and only the standard library up here: a doctor has to start where little else does

import argparse
import contextlib
import importlib.metadata
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent
GREEN, AMBER, RED = "green", "amber", "red"
COLOURS = {GREEN: "\x1b[32m", AMBER: "\x1b[33m", RED: "\x1b[31m"}
CHILD_SECONDS, VOCABULARY = 90, 300  # a child that takes longer is stopped (it needs some ten); tokens at toy size
INSTALL = "Run `pip install -r requirements.txt` in the environment of this Python, or use .venv/bin/python where make has made one."
FRESH = "Try a fresh clone and environment with the pinned versions of constraints.txt; if that is red too, report this line."
TEXT = "A model is first taught to answer, and then it is taught which answers people prefer: the chosen reply, not the rejected reply."
ODD = ("cafe\u0301", "\U0001f469\u200d\U0001f52c", "\u05e9\u05dc\u05d5\u05dd \u4f60\u597d", "\x00 a\tb\r\n\n   c  ", "don't 1234.5 :) \ufffd", "<|endoftext|>", "")
TINY = ["--model.n_layer=1", "--model.n_head=2", "--model.n_embd=64", f"--data.vocab_size={VOCABULARY}", "--threads=1", "--sft.batch=8", "--sft.log_every=1",
        "--dpo.batch=8", "--dpo.max_steps=1", "--dpo.watch_prompts=0"]
IMPORT = """import importlib, sys
for name in sys.argv[1:]:
    try: importlib.import_module(name); print(name, "fine", flush=True)
    except BaseException as e: print(name, type(e).__name__, *str(e).splitlines()[:1], flush=True)"""
COMPILE = """import torch
x = torch.linspace(0, 1, 8, device="cuda" if torch.cuda.is_available() else "cpu")
assert torch.allclose(torch.compile(torch.sin)(x), x.sin(), atol=1e-5), "another function came out" """


@dataclass(frozen=True)
class Finding:
    """What a check found: "green", "amber" or "red", and for the last two one sentence that says what to do."""
    status: str
    found: str
    remedy: str = ""


def child(code: str, *words: str, **environment: str) -> tuple[str, str]:
    """(what it printed, how it ended: "" if well) of Python code in a process of its own, since a broken library may crash or hang."""
    try:
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, timeout=CHILD_SECONDS, env={**os.environ, **environment})
    except subprocess.TimeoutExpired as e:
        return (e.stdout or b"").decode(), f"not done after {CHILD_SECONDS} s, on a busy machine perhaps"
    reasons = re.findall(r"^\S*(?:Error|Exception)\b.*", done.stderr.decode(), re.MULTILINE)
    return done.stdout.decode(), "" if done.returncode == 0 else (reasons or [f"Python crashed (exit code {done.returncode})"])[-1]


def requirements(file: str) -> list[tuple]:
    """(packaging's Requirement, installed version or "", the comment above it) of every line of a requirements file."""
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:  # nothing is installed; pip brings a copy of its own
        from pip._vendor.packaging.requirements import Requirement
    found, comment = [], ""
    for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            comment = line.lstrip("# ").rstrip(".")
        elif line.strip():
            installed = [copy.version for copy in importlib.metadata.distributions(name=Requirement(line).name)]
            found.append((Requirement(line), next(iter(installed), ""), comment))
    return found


def check_python(out: Path, scratch: Path, version: tuple = sys.version_info) -> Finding:
    """Python against requires-python of pyproject.toml."""
    least = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    found = f"{'.'.join(map(str, version[:3]))} at {sys.executable}"
    old = list(version[:2]) < [int(part) for part in least.split(".")]
    return Finding(RED, found, f"Make the environment with Python {least} or newer.") if old else Finding(GREEN, found)


def check_packages(out: Path, scratch: Path, only_torch: bool = False) -> Finding:
    """Every package of requirements.txt but torch (or torch alone, and which build it is) is there, new enough, and can be imported."""
    packages = [(needed.name, version, needed.specifier) for needed, version, _ in requirements("requirements.txt") if (needed.name == "torch") == only_torch]
    said, end = child(IMPORT, *(name for name, version, _ in packages if version))
    imported, wrong, found = dict(re.findall(r"^(\S+) (.+)$", said, re.MULTILINE)), [], [f"{name} {version}" for name, version, _ in packages]
    for name, version, least in packages:
        if not version:
            wrong.append(f"{name} is not installed")
        elif not least.contains(version, prereleases=True):
            wrong.append(f"{name} is {version}, {least} is needed")
        elif imported.get(name) != "fine":
            wrong.append(f"{name} cannot be imported: {imported.get(name, end)}")
    if only_torch and not wrong:
        import torch
        found.append(f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA")
    return Finding(RED, "; ".join(wrong), INSTALL) if wrong else Finding(GREEN, ", ".join(found))


def check_extras(out: Path, scratch: Path) -> Finding:
    """Which packages of requirements-extra.txt are present; of the others, that file's words on what they are for."""
    extras = requirements("requirements-extra.txt")
    absent = {extra.name: purpose for extra, version, purpose in extras if not version}
    present = ", ".join(extra.name for extra, version, _ in extras if version) or "none"
    found = f"absent: {', '.join(absent)} ({'; '.join(dict.fromkeys(absent.values()))}); present: {present}"
    return Finding(AMBER, found, f"If you want them: pip install {' '.join(absent)}.") if absent else Finding(GREEN, present)


def check_disk(out: Path, scratch: Path) -> Finding:
    """A file can be written where runs will be kept and reads back the same; and there is room for hh_small's checkpoints."""
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())  # nothing is left behind
    block = os.urandom(1 << 22)
    try:
        with tempfile.NamedTemporaryFile(dir=place) as file:
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
            if Path(file.name).read_bytes() != block:
                raise OSError(0, "it reads back differently")
    except OSError as e:
        return Finding(RED, f"a file of 4 MB cannot be kept at {place}: {e.strerror}", "Free some space, or name another folder with --out, here and in every run.")
    weights = json.loads((ROOT / "results/speed/t4_plan.json").read_text())["bytes"]["weights, gradients, two moments, float32"] / 4
    free, need = shutil.disk_usage(place).free / 1e9, (2 * (1 + 3) + 3) * weights / 1e9  # SFT, DPO: best/, last/ with two moments; twice when replaced
    found = f"{free:.1f} GB free at {place}; checkpoints of hh_small: {need:.1f}"
    return Finding(GREEN, found) if free > need else Finding(AMBER, found, "Enough for toy; for hh_small name a folder on a larger disk with --out.")


def check_device(out: Path, scratch: Path) -> Finding:
    """The device that `device = auto` finds, the number format that `dtype = auto` chooses for its matrix products, and why (runtime.device.pick_dtype)."""
    import torch
    from runtime.config import Config, load_config
    from runtime.device import setup_device
    chosen, toy = setup_device(Config()), load_config(["toy"])
    trap = "; torch.cuda.is_bf16_supported() says True here too, by slow emulation: leave dtype at auto" if chosen.dtype == torch.float16 else ""
    precision = f"{str(chosen.dtype)[6:]}: {chosen.reason}{trap} (the config toy asks for {toy.dtype} on {toy.device})"
    if chosen.device.type != "cpu":
        return Finding(GREEN, f"{torch.cuda.get_device_name() if chosen.device.type == 'cuda' else 'Apple GPU'} in {precision}")
    remedy = ("NVIDIA's driver is here: install a CUDA build of torch that it supports, or attach the GPU." if shutil.which("nvidia-smi") else
              "Fine for the configs toy and hh_cpu; for hh_small take a machine with a GPU (a free T4 will do).")
    return Finding(AMBER, f"no GPU that torch can use; the CPU ({os.cpu_count()} cores) in {precision}", remedy)


def check_memory(out: Path, scratch: Path) -> Finding:
    """RAM for the configs made for CPUs, the GPU's memory, if any, for hh_small. Needed: what committed runs took, and what bench/t4_plan.py counts."""
    import torch
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError):  # not Linux: then all there is
        ram = 1024 * int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1])
    with contextlib.suppress(OSError, ValueError):  # no container, or no limit ("max")
        limit, used = (int(Path("/sys/fs/cgroup", file).read_text()) for file in ("memory.max", "memory.current"))
        ram = min(ram, limit - used)
    gpu = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    runs = {name: [*(ROOT / "results" / name).rglob("sft_run.json"), *(ROOT / "results" / name).rglob("dpo_run.json")] for name in ("toy", "hh_cpu")}
    needs = {name: max(json.loads(path.read_text())["peak_memory_gb"] for path in paths) for name, paths in runs.items()}
    needs["hh_small"] = json.loads((ROOT / "results/speed/t4_plan.json").read_text())["memory_gb"]
    short = [name for name, need in needs.items() if need > (ram if gpu is None or name in runs else gpu) / 1e9]
    found = f"free: RAM {ram / 1e9:.1f} GB" + ("" if gpu is None else f", GPU {gpu / 1e9:.1f} GB")
    found += "; needed: " + ", ".join(f"{name} {need:.1f}" for name, need in needs.items())
    remedy = f"Too little for {' and '.join(short)}: close other programs, lower --sft.micro_tokens and --dpo.micro_tokens, or stay with a smaller config."
    return Finding(AMBER, found, remedy) if short else Finding(GREEN, found)


def check_compile(out: Path, scratch: Path) -> Finding:
    """torch.compile on a small function. Nothing in the project needs it; --compile asks for it."""
    no_trials = {"TORCHINDUCTOR_VEC_ISA_OK": "0", "TORCHINDUCTOR_COMPILE_THREADS": "1"}  # of vector units and in other processes: they double the time
    _, wrong = child(COMPILE, TORCHINDUCTOR_CACHE_DIR=str(scratch / "inductor"), **no_trials)
    return Finding(AMBER, wrong[:160], "Nothing needs it: leave --compile off, or install a C++ compiler.") if wrong else Finding(GREEN, "works")


def lost(tokenizer: object) -> str:
    """The first text that a tokenizer does not give back, or that tiktoken and its readable twin `bpe` read differently; "" when all is well."""
    import regex
    from tokenizer import PATTERN, bpe
    for text in (TEXT, *ODD):
        ids = tokenizer.encode(text)
        slow = [tokenizer.ranks[part] for chunk in regex.findall(PATTERN, text) for part in bpe(chunk.encode(), tokenizer.ranks)]
        if tokenizer.decode(ids) != text or ids != slow:
            return f"{text!r} becomes {tokenizer.decode(ids)!r}, {len(ids)} ids with tiktoken and {len(slow)} with bpe"
    return ""


def check_tokenizer(out: Path, scratch: Path) -> Finding:
    """A small BPE, trained here, saved and read again: text, ids, text; tiktoken against the slow twin."""
    from tokenizer import load_tokenizer, train_bpe
    train_bpe([TEXT], VOCABULARY).save(scratch / "tokenizer")
    wrong = lost(load_tokenizer(scratch / "tokenizer"))
    return Finding(RED, wrong, FRESH) if wrong else Finding(GREEN, f"{1 + len(ODD)} texts, odd ones among them, come back as they were; tiktoken and bpe agree")


def check_gpt2(out: Path, scratch: Path) -> Finding:
    """GPT-2's vocabulary is at hand: tiktoken loads it with its door to the network shut."""
    from tokenizer import UserError, load_tokenizer
    try:
        with mock.patch("tiktoken.load.read_file", side_effect=OSError):
            wrong = lost(load_tokenizer("gpt2"))
    except UserError:
        return Finding(AMBER, "not here; the config toy has its own", "Needs a network once; or set TIKTOKEN_CACHE_DIR to a folder that tiktoken filled elsewhere.")
    return Finding(RED, wrong, FRESH) if wrong else Finding(GREEN, "at hand")


def experiment(scratch: Path, name: str, *more: str) -> list[str]:
    """The arguments of a tiny experiment, its pairs prepared as `python data/prepare_hh.py` does it; the last of them is an odd one."""
    from data.make_toy import draw_split
    from data.prepare_hh import prepare
    from runtime.config import load_config
    if not (scratch / "source").exists():
        (scratch / "source").mkdir()
        rows, odd = draw_split(0, "val"), f"\n\nHuman: What is <|endoftext|>? {' '.join(ODD[:3])}\n\nAssistant:"
        rows.insert(128, {"chosen": f"{odd} It ends a text.", "rejected": f"{odd} :) <|endoftext|>"})
        for split, part in {"val": rows[:32], "test": rows[32:64], "train": rows[64:129]}.items():
            (scratch / "source" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    argv = ["toy", f"--name={name}", f"--out={scratch}", f"--data.source={scratch / 'source'}", *TINY, *more]
    prepare(load_config(argv))
    return argv


def losses(scratch: Path, name: str, stage: str) -> list[float]:
    """The training losses in a run's metrics.jsonl, nats."""
    from runtime.run import read_metrics
    return [row["loss"] for row in read_metrics(scratch / name / stage / "metrics.jsonl") if row["split"] == "train"]


def check_boundaries(out: Path, scratch: Path) -> Finding:
    """Prepared rows against the texts they were made of, and every scored token of a batch against those rows."""
    from batching import make_batch
    from data.store import PairStore, find_data
    from runtime.config import load_config
    from tokenizer import load_tokenizer, split_transcript
    folder = find_data(load_config(experiment(scratch, "boundaries")))
    tokenizer, store = load_tokenizer(folder / "tokenizer"), PairStore(folder / "train")
    end, texts = tokenizer.eot_id, [json.loads(line) for line in (scratch / "source" / "train.jsonl").read_text().splitlines()]
    for i, text in enumerate(texts):
        prompt, _, *replies = (ids.tolist() for ids in store.row(i))
        batch = make_batch(store, [[0, i]])  # two documents in one row
        kept = {"the prompt is not end-of-text and then its own text": prompt == [end, *tokenizer.encode(split_transcript(text["chosen"])[0])],
                "end-of-text that a user typed is not plain text": prompt.count(end) == 1}
        for owner, side, reply in zip((2, 3), ("chosen", "rejected"), replies):
            mine = batch.owner == owner
            before, places = (column.flatten()[batch.predict_at[mine]].tolist() for column in (batch.ids, batch.positions))
            kept[f"the {side} reply does not end in one end-of-text"] = reply[-1:] == [end] and reply.count(end) == 1
            kept[f"the {side} reply was not tokenized by itself"] = reply[:-1] == tokenizer.encode(split_transcript(text[side])[1])
            kept[f"the tokens with a loss are not those of the {side} reply, each once"] = batch.targets[mine].tolist() == reply
            kept[f"a token of the {side} reply is not predicted from the one before it, its first from the prompt's last"] = (
                before == [prompt[-1], *reply[:-1]] and places == [len(prompt) - 1 + n for n in range(len(reply))])
        if not all(kept.values()):
            return Finding(RED, f"pair {i}: {next(promise for promise, true in kept.items() if not true)}", FRESH)
    return Finding(GREEN, f"{2 * len(texts)} replies: each ends in one end-of-text, a target once, and starts from the prompt's last token; typed <|endoftext|> is text")


def check_first_step(out: Path, scratch: Path) -> Finding:
    """train_dpo.py's first step: the policy is its reference, so DPO's loss is ln 2 (Rafailov et al. 2023, eq. 7 at zero log-ratios)."""
    import train_dpo
    import train_sft
    argv = experiment(scratch, "step0", "--device=auto", "--dtype=auto", "--sft.max_steps=1")
    train_sft.main(argv)
    train_dpo.main(argv)
    loss = losses(scratch, "step0", "dpo")[0]
    found = f"loss {loss:.4f} where policy and reference are the same model; ln 2 is {math.log(2):.4f}"
    return Finding(GREEN, found) if abs(loss - math.log(2)) < 0.01 else Finding(RED, found, FRESH)  # bf16 rounds a log-ratio by hundredths of a nat


def check_overfit(out: Path, scratch: Path) -> Finding:
    """train_sft.py on eight pairs, again and again: a new model guesses among all tokens, one that learns ends up knowing their replies by heart."""
    import train_sft
    train_sft.main(experiment(scratch, "overfit", "--data.max_rows=8", "--device=auto", "--dtype=auto", "--sft.max_steps=100", "--sft.lr=0.01"))
    loss, guess = losses(scratch, "overfit", "sft"), math.log(VOCABULARY)
    found = f"SFT loss {loss[0]:.2f} to {loss[-1]:.3f} nats per token in {len(loss)} steps on one batch; expected: from ln {VOCABULARY} = {guess:.2f} to below .1"
    return Finding(GREEN, found) if abs(loss[0] - guess) < 0.5 and abs(loss[-1]) < 0.1 else Finding(RED, found, FRESH)


def check_resume(out: Path, scratch: Path) -> Finding:
    """train_sft.py for ten steps, and again killed after seven and continued from its checkpoint of step five: the same bits (CPU, float32, dropout on)."""
    import train_sft
    from runtime.checkpoint import load_state
    first_steps, ends = [], []
    for name, killed in (("killed", True), ("killed", False), ("whole", False)):
        calls = [mock.DEFAULT] * 7 + [InterruptedError if killed else mock.DEFAULT] * 3
        with mock.patch.object(train_sft, "lr_at", wraps=train_sft.lr_at, side_effect=calls) as lr_at, contextlib.suppress(InterruptedError):
            train_sft.main(experiment(scratch, name, "--model.dropout=0.1", "--sft.max_steps=10", "--sft.save_every=5"))
        first_steps.append(lr_at.call_args_list[0].args[0])
        last = scratch / name / "sft" / "last"
        moments = [v.tolist() for entry in load_state(last)["optimizer"]["state"].values() for v in entry.values()]
        ends.append([(last / "model.safetensors").read_bytes(), moments, losses(scratch, name, "sft")])
    if ends[1] != ends[2] or first_steps != [0, 5, 0]:
        return Finding(RED, "a run continued from its checkpoint ends with other weights, moments or losses than one that was never stopped", FRESH)
    return Finding(GREEN, "killed at step 7 and continued from step 5: after 10 steps the same weights, moments and losses, bit for bit")


CHECKS = {  # each takes (where runs will be kept, a folder to work in)
    "Python": check_python, "torch": lambda out, scratch: check_packages(out, scratch, only_torch=True), "device": check_device, "memory": check_memory,
    "disk": check_disk, "tokenizer": check_tokenizer, "GPT-2 vocabulary": check_gpt2, "EOS and boundaries": check_boundaries, "step 0 is ln 2": check_first_step,
    "one-batch overfit": check_overfit, "resume": check_resume, "packages": check_packages, "extras": check_extras, "torch.compile": check_compile}
WITHOUT_TORCH = ("Python", "torch", "packages", "extras", "disk", "tokenizer", "GPT-2 vocabulary")


def attempt(name: str, out: Path, scratch: Path, usable: bool = True) -> dict:
    """One check as plain values: name, status, found, remedy, seconds. One that raises is red, with the reason in a line; `usable`: torch is."""
    begin = time.perf_counter()
    try:
        finding = CHECKS[name](out, scratch) if usable or name in WITHOUT_TORCH else Finding(RED, "needs torch", "Mend torch first.")
    except ModuleNotFoundError as e:
        finding = Finding(RED, f"needs {e.name}", INSTALL)
    except Exception as e:
        finding = Finding(RED, ": ".join([type(e).__name__, *str(e).splitlines()[:1]]), FRESH)
    return {"name": name, **asdict(finding), "seconds": round(time.perf_counter() - begin, 1)}


def examine(out: Path) -> Iterator[dict]:
    """All checks, each as soon as it is known. Two slow ones work in processes of their own, beside the others."""
    usable, beside = True, {}
    with tempfile.TemporaryDirectory(prefix="doctor-") as scratch, ThreadPoolExecutor(1) as pool:
        for name in CHECKS:
            result = beside[name].result() if name in beside else attempt(name, out, Path(scratch), usable)
            if name == "torch":
                usable = result["status"] != RED
                beside = {slow: pool.submit(attempt, slow, out, Path(scratch)) for slow in ("packages", "torch.compile") if usable}
            yield result


def main(argv: list[str]) -> int:
    """Run all checks and print them; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument("--out", type=Path, default=Path("out"), help="where runs will be kept")
    options, screen, begin, results = parser.parse_args(argv), sys.stdout, time.perf_counter(), []
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # what the stages say and draw
        for result in examine(options.out):
            results.append(result)
            status = f"{COLOURS[result['status']]}{result['status']:5}\x1b[0m" if screen.isatty() else f"{result['status']:5}"
            if not options.json:
                print(f"{status}  {result['name']:18}  {result['found']}" + (f"\n       {result['remedy']}" if result["remedy"] else ""), file=screen, flush=True)
    seconds, statuses = round(time.perf_counter() - begin, 1), [result["status"] for result in results]
    if options.json:
        print(json.dumps({"status": max(statuses, key=list(COLOURS).index), "seconds": seconds, "checks": results}, indent=1))
    else:
        print(*(f"{statuses.count(status)} {status}," for status in COLOURS), f"{seconds:.0f} s.", "Mend what is red." if RED in statuses else "Ready: python train_dpo.py toy")
    return int(RED in statuses)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
