"""EmoBench and EQ-Bench 3 before and after training: serve a model, run the benchmarks' own runners against it, import what they wrote.

    python -m studies.human_likeness.benchmarks serve --model FOLDER [--adapter FOLDER] [--vllm]
    python -m studies.human_likeness.benchmarks emobench --checkout DIR --model FOLDER [--adapter FOLDER] --name NAME --to FOLDER
    python -m studies.human_likeness.benchmarks eqbench3 --checkout DIR --model FOLDER --name NAME --judge-model NAME --judge-url URL --to FOLDER
    python -m studies.human_likeness.benchmarks import --emobench DIR/results --eqbench3 FOLDER/eqbench3_runs.json --base NAME --to FOLDER

The runners are other people's programs: clone them, give them an environment of their own and name it with --python. Their keys are read from
API_KEY, TEST_API_KEY and JUDGE_API_KEY (else OPENAI_API_KEY) and handed on in the runner's environment alone; a model served here needs none.
With --url a server that runs already is asked, and --name is what it calls its model. Start base and fine-tune with the same --to.
"""
import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from data.store import read_json, write_json
from runtime.checkpoint import file_hash, weights_hash
from runtime.errors import UserError, check_folder, run_main
from studies.human_likeness.benchmark_results import TASKS, import_results, read_eqbench3
from studies.human_likeness.storage import command_line

ROOT = Path(__file__).resolve().parents[2]
NO_KEY = "none"  # what a local server is told; the runners insist on a key


# ---- serving --------------------------------------------------------------------------------------------------------

def whole_model(model: Path, adapter: Path | None) -> tuple[Path, str]:
    """(folder to serve, hash that names its content): the model, or a folder beside the adapter that merge_adapters.py makes once per pair of contents.

    UserError when the adapter was trained on other weights, or when there is no chat template to serve with.
    """
    if not model.is_dir():
        raise UserError(f"no model folder at {model}.")
    folder, name = model, weights_hash(model)
    if adapter:
        from lora import lora_config_of
        _, base = lora_config_of(adapter)
        if not Path(base).is_dir() or weights_hash(Path(base)) != name:
            raise UserError(f"the adapter in {adapter} was trained on '{base}', which is not the model in {model}: name that one with --model.")
        name = f"{name[:8]}{weights_hash(adapter)[:8]}{file_hash(adapter / 'adapter_config.json')[:8]}"  # the config holds the scale
        folder = adapter.with_name(f"{adapter.name}_merged_{name}")
        if not folder.is_dir():
            part = folder.with_name(folder.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            config = json.loads((model / "config.json").read_text())
            dtype = config.get("dtype") or config.get("torch_dtype") or "float32"  # the base's own: else rounding would pass for an effect of training
            done = subprocess.run([sys.executable, str(ROOT / "merge_adapters.py"), str(adapter), "--to", str(part), "--dtype", dtype])
            if done.returncode:
                raise UserError(f"merge_adapters.py ended with status {done.returncode}: see above.")
            part.rename(folder)
    settings = folder / "tokenizer_config.json"
    if not (folder / "chat_template.jinja").exists() and not (settings.exists() and "chat_template" in json.loads(settings.read_text())):
        raise UserError(f"{folder} has no chat template, without which every question would fail: add chat_template.jinja.")
    return folder, name


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def relay(port: int, target: str, settings: dict) -> ThreadingHTTPServer:
    """A server on `port` that hands every request on to `target`, with the sampling settings that `transformers serve` would not take or would not use.

    It refuses EQ-Bench's min_p, and decodes greedily at any temperature unless the generation config says do_sample: both go into the field
    `generation_config`, on top of `settings`.
    """
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.pass_on(None)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body["generation_config"] = json.dumps(settings | ({"min_p": body.pop("min_p")} if "min_p" in body else {}))
            self.pass_on(json.dumps(body).encode())

        def pass_on(self, data):
            request = urllib.request.Request(target + self.path, data, {"Content-Type": "application/json"})
            try:
                with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
                    status, kind, text = answer.status, answer.headers.get("Content-Type", "application/json"), answer.read()
            except urllib.error.HTTPError as e:
                status, kind, text = e.code, "application/json", e.read()
            except OSError as e:
                status, kind, text = 502, "application/json", json.dumps({"error": str(e)}).encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def stop_group(process: subprocess.Popen) -> None:
    """End a process started in a session of its own, with everything it started."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)


@contextlib.contextmanager
def serving(folder: Path, name: str, log: Path, a: argparse.Namespace) -> Iterator[tuple[str, subprocess.Popen]]:
    """(address .../v1, process) of a server that calls the model in `folder` `name`, from when it answers until the block ends. UserError with the end of
    its log when it does not start."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"--name {name}: letters, digits, - and _ only, because the runners name files after it.")
    command = Path(sys.executable).with_name("vllm" if a.vllm else "transformers")
    if not command.exists():
        raise UserError(f"{command.name} is not installed beside this Python: pip install {'vllm' if a.vllm else 'transformers[serving]'}")
    behind, front = free_port(), a.port or free_port()
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as at_end:
        (Path(place) / name).symlink_to(folder.resolve())  # served by this name: a path would be one of this machine, and in every result
        tail = (["--served-model-name", name, "--port", str(front), "--seed", str(a.seed)] if a.vllm else
                ["--port", str(behind), "--host", "127.0.0.1", "--device", a.device, "--default-seed", str(a.seed)])
        env = {k: v for k, v in os.environ.items() if not re.search("KEY|TOKEN|SECRET", k)} | {"HF_HUB_OFFLINE": "1"}
        with open(log, "a") as out:
            process = subprocess.Popen([str(command), "serve", name, *tail], cwd=place, env=env, stdout=out, stderr=out, start_new_session=True)
        at_end.callback(stop_group, process)
        target = f"http://127.0.0.1:{front if a.vllm else behind}"
        _wait_for(target + "/health", process, log, a.wait)
        if not a.vllm:
            config = folder / "generation_config.json"
            own = {k: v for k, v in (json.loads(config.read_text()) if config.exists() else {}).items() if not k.startswith(("_", "transformers"))}
            between = relay(front, target, {"top_k": 0, "max_new_tokens": a.max_tokens} | own | {"do_sample": True})  # top_k: 50 unless told
            at_end.callback(between.server_close)
            at_end.callback(between.shutdown)
        yield f"http://127.0.0.1:{front}/v1", process


def _wait_for(address: str, process: subprocess.Popen, log: Path, seconds: float) -> None:
    ends, opener = time.time() + seconds, urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.time() < ends and process.poll() is None:
        with contextlib.suppress(OSError):
            if opener.open(address, timeout=5).status == 200:
                return
        time.sleep(0.2)
    why = f"ended with status {process.poll()}" if process.poll() is not None else f"did not answer within {seconds:g} s"
    last = next((line for line in reversed(log.read_text(errors="replace").splitlines()) if line.strip()), "nothing")
    raise UserError(f"the server {why}; the last line of {log}: {last.strip()[:300]}")


# ---- running the runners ------------------------------------------------------------------------------------------

def key_from(*names: str) -> str:
    """The first of these environment variables that is set, or what a server without keys is told."""
    return next((os.environ[n].strip() for n in names if os.environ.get(n, "").strip()), NO_KEY)


def hide(text: str, secrets: Sequence[str | None]) -> str:
    """The text without the keys, of four characters or more: servers quote them in their errors."""
    for secret in sorted((s for s in secrets if s and s != NO_KEY and len(s) > 3), key=len, reverse=True):
        text = text.replace(secret, "(key)")
    return text


def run_logged(command: Sequence[str], folder: Path, given: Mapping[str, str], log: Path) -> int:
    """Run the command in `folder`, with `given` on top of our environment, its output (keys hidden) added to the log; its exit status."""
    local = ",".join(filter(None, [os.environ.get("NO_PROXY", ""), "127.0.0.1,localhost"]))
    process = subprocess.Popen(command, cwd=folder, env=os.environ | given | {"NO_PROXY": local, "no_proxy": local, "PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True)
    everything = os.environ | given  # what it inherits it can print as well
    secrets = [v for k, v in everything.items() if re.search("KEY|TOKEN|SECRET", k)] + [urlsplit(v).password for k, v in given.items() if k.endswith("URL")]
    try:
        with open(log, "a", encoding="utf-8") as out:
            for line in process.stdout:
                out.write(hide(line, secrets))
                out.flush()
        return process.wait()
    finally:
        if process.poll() is None:
            stop_group(process)


def judge_version(url: str, key: str, model: str) -> dict:
    """One short question before the long run: what the judge calls itself. UserError when it cannot be asked."""
    try:
        import openai
    except ImportError:
        raise UserError("asking the judge for its version needs the openai package: pip install openai") from None
    try:
        said = openai.OpenAI(base_url=url, api_key=key, timeout=60).chat.completions.create(model=model, messages=[{"role": "user", "content": "Answer with the word yes."}])
    except openai.OpenAIError as e:
        raise UserError(f"the judge {model} at {shown(url)} does not answer: {hide(str(e), [key])[:300]}") from None
    return {"asked_for": model, "answered_as": said.model, "fingerprint": getattr(said, "system_fingerprint", None), "server": shown(url)}


def shown(url: str) -> str:
    """An address without any password or query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"


def checkout_state(folder: Path, wanted: str) -> dict:
    """{"commit", "changed"}: which version of the benchmark, and its changed files. UserError when it is not that benchmark."""
    if not (folder / wanted).is_file():
        raise UserError(f"--checkout {folder} has no {wanted}: clone the benchmark's repository and name its folder.")
    commit, changed = (subprocess.run(["git", "-C", str(folder), *what], capture_output=True, text=True).stdout.strip()
                       for what in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no")))
    return {"commit": commit or "unknown", "changed": [line.split(maxsplit=1)[1] for line in changed.splitlines()]}


def remember(to: Path, benchmark: str, name: str, made_by: dict, results_there: bool) -> None:
    """Write FOLDER/BENCHMARK_NAME.json. UserError when results of this name exist that another model, other settings or another version of the judge made:
    the runners would go on from them and mix the two without a word."""
    file = to / f"{benchmark}_{re.sub(r'[^A-Za-z0-9_-]+', '_', name)}.json"
    before = read_json(file)

    def told(facts: dict) -> list:  # of the judge not the fingerprint, which may change from call to call
        return [*(facts.get(k) for k in ("model", "flags", "benchmark_at")), (facts.get("judge") or {}).get("answered_as")]
    if results_there and (before is None or told(before) != told(made_by)):
        raise UserError(f"there are results called {name} already, of another model, judge or settings{'' if before else ' as far as anyone knows'}: choose another --name.")
    write_json(file, made_by)


def run_benchmark(a: argparse.Namespace) -> None:
    """The commands emobench and eqbench3 (see the top of this file)."""
    emo = a.command == "emobench"
    script = "src/main.py" if emo else "eqbench3.py"
    state = checkout_state(a.checkout, script)
    python = a.python or next((p for p in (a.checkout / ".venv/bin/python",) if p.exists()), Path(sys.executable))
    a.to.mkdir(parents=True, exist_ok=True)
    to, stem, log = a.to.resolve(), a.name.split("/")[-1].replace(".", "_"), a.to / f"{a.command}_{a.name.replace('/', '_')}.log"
    if not a.url and not a.model:
        raise UserError("name the model's folder with --model, or a running server with --url.")
    folder, content = whole_model(a.model, a.adapter) if not a.url else (None, f"{a.name} at {shown(a.url)}")
    runs = to / "eqbench3_runs.json"
    if emo:
        flags = ["--model_type", "openai-compatible", "--model_path", a.name, "--lang", a.lang, "--task", a.task, *(["--use_cot"] if a.use_cot else [])]
        fixed, keys, judge = {"use_cot": a.use_cot}, {"API_KEY": key_from("API_KEY", "OPENAI_API_KEY") if a.url else NO_KEY}, None
        there = any((a.checkout / "results" / task / f"{stem}.jsonl").exists() for task in TASKS)
    else:
        flags = ["--test-model", a.name, "--model-name", a.name, "--judge-model", a.judge_model, "--runs-file", str(runs), "--elo-results-file", str(to / "eqbench3_elo.json"),
                 "--run-id", hashlib.sha256(content.encode()).hexdigest()[:8], "--iterations", str(a.iterations), "--threads", str(a.threads), "--ignore-canonical", *(["--no-elo"] if a.no_elo else [])]
        fixed, there = {"judge": a.judge_model, "iterations": a.iterations}, runs.exists() and any(run.get("model_name") == a.name for run in read_eqbench3(runs).values())
        keys = {"TEST_API_KEY": key_from("TEST_API_KEY", "OPENAI_API_KEY") if a.url else NO_KEY, "JUDGE_API_KEY": key_from("JUDGE_API_KEY", "OPENAI_API_KEY")}
        judge = judge_version(a.judge_url, keys["JUDGE_API_KEY"], a.judge_model)
    server = "given by --url" if a.url else f"vllm {version('vllm')}" if a.vllm else f"transformers {version('transformers')}"
    made_by = {"benchmark": a.command, "name": a.name, "model": content, "flags": fixed, "benchmark_at": state, "judge": judge, "server": server, "seed": None if a.url else a.seed}
    remember(to, a.command, a.name, made_by, there)
    started = time.time()
    with contextlib.nullcontext((a.url.rstrip("/"), None)) if a.url else serving(folder, a.name, a.to / f"server_{a.name}.log", a) as (url, _):
        if emo:
            given = {"API_URL": url} | keys
        else:
            given = {"TEST_API_URL": f"{url}/chat/completions", "JUDGE_API_URL": f"{a.judge_url.rstrip('/')}/chat/completions"} | keys
        status = run_logged([str(python.absolute()), script, *flags], a.checkout, given, log)
    sentence = f"{a.command} of {a.name} ended with status {status} after {time.time() - started:.0f} s; its output is in {log}."
    if status:
        raise UserError(sentence)
    print(sentence)


def serve(a: argparse.Namespace) -> None:
    """Serve until Ctrl-C; UserError when the server ends by itself."""
    folder, content = whole_model(a.model, a.adapter)
    a.to.mkdir(parents=True, exist_ok=True)
    with serving(folder, a.name, a.to / f"server_{a.name}.log", a) as (url, process):
        print(f"{a.name} (content {content}) is served at {url}; Ctrl-C ends it.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            raise UserError(f"the server ended with status {process.wait()}: see {a.to}/server_{a.name}.log.")


def main(argv: list[str]) -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True)
    served, emo, eq, importing = (commands.add_parser(name) for name in ("serve", "emobench", "eqbench3", "import"))
    for a in (served, emo, eq):
        a.add_argument("--model", type=Path, required=a is served, help="a model's folder")
        a.add_argument("--adapter", type=Path, help="adapters to fold into it")
        a.add_argument("--name", default="model" if a is served else None, required=a is not served)
        a.add_argument("--vllm", action="store_true", help="serve with vLLM")
        a.add_argument("--device", default="auto")
        a.add_argument("--port", type=int, default=0, help="0 = any free one")
        a.add_argument("--seed", type=int, default=0, help="of the server's sampling")
        a.add_argument("--max-tokens", type=int, default=1024, help="longest reply where the runner sets none")
        a.add_argument("--wait", type=float, default=600, help="seconds the server may take to start")
    for a in (served, emo, eq, importing):
        a.add_argument("--to", type=Path, default=Path("out/human_likeness/benchmarks"))
    for a in (emo, eq):
        a.add_argument("--checkout", type=Path, required=True)
        a.add_argument("--url", default="", help="ask this server (.../v1) instead of starting one")
        a.add_argument("--python", type=Path, help="of the environment with the runner's requirements; .venv/bin/python in the checkout where there is one")
    emo.add_argument("--lang", choices=("en", "zh", "all"), default="all")
    emo.add_argument("--task", choices=("EU", "EA", "all"), default="all")
    emo.add_argument("--use-cot", action="store_true")
    eq.add_argument("--judge-model", required=True)
    eq.add_argument("--judge-url", default=os.environ.get("JUDGE_API_URL", "").removesuffix("/chat/completions") or "https://api.openai.com/v1")
    eq.add_argument("--iterations", type=int, default=1)
    eq.add_argument("--threads", type=int, default=4)
    eq.add_argument("--no-elo", action="store_true", help="rubric only")
    importing.add_argument("--emobench", type=Path)
    importing.add_argument("--eqbench3", type=Path)
    importing.add_argument("--base", default="", help="the model the others are compared with")
    importing.add_argument("--seed", type=int, default=0)
    a = top.parse_args(argv)
    check_folder("--to", a.to)
    if a.seed < 0 or a.command == "eqbench3" and min(a.iterations, a.threads) < 1:
        raise UserError("--seed must be at least 0, and --iterations and --threads at least 1.")
    a.made_by = command_line("benchmarks", argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended too
    {"serve": serve, "emobench": run_benchmark, "eqbench3": run_benchmark, "import": import_results}[a.command](a)


if __name__ == "__main__":
    run_main(main)
