"""The real command, and then a broken install of each kind: the right line turns red, and lines that have nothing to do with it do not."""
import ast
import importlib.metadata
import io
import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import batching
import data.prepare_hh
import doctor
import objectives
import reference
import runtime.run
import train_dpo  # noqa: F401  imported here, where it costs no test its time
import train_sft
from doctor import AMBER, GREEN, RED, ROOT, attempt
from runtime.checkpoint import set_rng_state
from tokenizer import Tokenizer


def command(tmp_path: Path, shims: Path, *arguments: str) -> tuple[subprocess.CompletedProcess, float]:
    """The doctor in a process of its own, with `shims` first on its path, and the CPU seconds that it and its children took."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, ROOT / "doctor.py", "--out", tmp_path / "runs", *arguments], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(shims)})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert not (tmp_path / "runs").exists() and not list(temporary.glob("doctor-*"))  # it leaves nothing behind (torch makes a folder for its compiler on import)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def red(tmp_path: Path, *names: str) -> dict[str, str]:
    """Which of these lines are red, and what they found."""
    lines = [attempt(name, tmp_path, tmp_path) for name in names]
    return {line["name"]: line["found"] for line in lines if line["status"] == RED}


# ---- the command ----------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_here_nothing_is_red_and_no_address_is_looked_up(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(  # every process of the doctor's runs this first
        f"import sys\nsys.addaudithook(lambda event, _: event == 'socket.getaddrinfo' and open({str(tmp_path / 'lookups')!r}, 'a').write('one'))")
    done, cpu = command(tmp_path, tmp_path, "--json")
    said = json.loads(done.stdout)
    assert done.returncode == 0 and not (tmp_path / "lookups").exists(), done.stdout
    assert set(said) == {"status", "seconds", "checks"} and said["status"] in (GREEN, AMBER)
    assert [line["name"] for line in said["checks"]] == list(doctor.CHECKS)
    for line in said["checks"]:
        assert set(line) == {"name", "status", "found", "remedy", "seconds"} and line["found"] and "\n" not in line["found"] + line["remedy"]
        assert (line["status"] == GREEN) == (line["remedy"] == "")
    seen = {line["name"]: line["status"] for line in said["checks"]}
    assert seen.pop("device") == (GREEN if torch.cuda.is_available() or torch.backends.mps.is_available() else AMBER)
    others = {seen.pop(name) for name in ("memory", "disk", "GPT-2 vocabulary", "extras", "torch.compile")}  # differ between machines
    assert RED not in others and set(seen.values()) == {GREEN}
    assert cpu < 60  # work, on one core: a clock would measure the other people on this machine as well


@pytest.mark.slow
def test_a_torch_that_cannot_be_imported(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    done, _ = command(tmp_path, tmp_path)
    lines = {line[7:26].strip(): line for line in done.stdout.splitlines() if line[:5].strip() in (GREEN, AMBER, RED)}
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr and "Mend what is red" in done.stdout
    assert lines["torch"].startswith(RED) and "libcudart.so.12" in lines["torch"]
    for name in doctor.CHECKS:
        if name not in doctor.WITHOUT_TORCH:
            assert lines[name].startswith(RED) and lines[name].endswith("needs torch")
        elif name not in ("torch", "packages"):  # some packages import torch themselves
            assert not lines[name].startswith(RED)


def test_it_starts_on_an_old_python_with_nothing_installed():
    tree = ast.parse((ROOT / "doctor.py").read_text(), feature_version=(3, 8))
    modules = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)}
    assert {module.split(".")[0] for module in modules} <= sys.stdlib_module_names


def test_a_python_with_nothing_installed(tmp_path):
    done = subprocess.run([sys.executable, "-S", ROOT / "doctor.py", "--json", "--out", tmp_path], capture_output=True, text=True)  # -S: no site-packages
    lines = {line["name"]: line for line in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1 and not done.stderr
    assert {name for name, line in lines.items() if line["status"] != RED} == {"Python", "disk"}
    assert lines["tokenizer"]["found"] == "needs numpy" and "pip install -r requirements.txt" in lines["torch"]["remedy"]


def test_words_colours_and_the_exit_code(tmp_path, monkeypatch, capsys):
    checks = {"disk": doctor.check_disk, "Python": lambda out, scratch: doctor.check_python(out, scratch, (3, 9, 1))}
    monkeypatch.setattr(doctor, "CHECKS", checks)
    assert doctor.main(["--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "\nred    Python              3.9.1 at" in said and "Mend what is red." in said and "\x1b" not in said
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(doctor, "CHECKS", {"disk": doctor.check_disk})
    assert doctor.main(["--out", str(tmp_path)]) == 0
    assert "\x1b[3" in terminal.getvalue().splitlines()[0]


# ---- the installation -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("version, status", [((3, 10, 14), RED), ((3, 11, 0), GREEN), ((4, 0, 0), GREEN)])
def test_python(tmp_path, version, status):
    assert doctor.check_python(tmp_path, tmp_path, version).status == status


def test_packages_that_are_missing_too_old_or_crash(tmp_path, monkeypatch):
    (tmp_path / "requirements.txt").write_text("# the core\nno-such-package>=2\ntiktoken>=99\nnumpy>=1\ntqdm>=4\n")
    (tmp_path / "tqdm.py").write_text("import os\nos.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    finding = doctor.check_packages(tmp_path, tmp_path)
    assert finding.status == RED and "pip install" in finding.remedy
    tiktoken = f"tiktoken is {importlib.metadata.version('tiktoken')}, >=99 is needed"
    assert finding.found.split("; ") == ["no-such-package is not installed", tiktoken, "tqdm cannot be imported: Python crashed (exit code -6)"]


def test_a_torch_that_is_too_old(tmp_path, monkeypatch):
    (tmp_path / "torch-2.1.0.dist-info").mkdir()
    (tmp_path / "torch-2.1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    line = attempt("torch", tmp_path, tmp_path)
    assert line["status"] == RED and line["found"] == "torch is 2.1.0, >=2.5 is needed"
    assert attempt("resume", tmp_path, tmp_path, usable=False)["found"] == "needs torch"


def test_a_library_that_hangs(monkeypatch):
    monkeypatch.setattr(doctor, "CHILD_SECONDS", 2)
    said, end = doctor.child("import time\nprint('numpy fine', flush=True)\ntime.sleep(60)")
    assert said == "numpy fine\n" and "not done after 2 s" in end


def test_a_missing_module_is_named_and_stops_no_other_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "regex", None)
    assert red(tmp_path, "tokenizer", "disk") == {"tokenizer": "needs regex"}


def test_extras_say_what_they_would_enable(tmp_path, monkeypatch):
    (tmp_path / "requirements-extra.txt").write_text("# the tests.\npytest>=8\n# flying.\nno-such-wing>=1\n")
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    finding = doctor.check_extras(tmp_path, tmp_path)
    assert (finding.status, finding.found, finding.remedy) == (AMBER, "absent: no-such-wing (flying); present: pytest", "If you want them: pip install no-such-wing.")


# ---- the machine ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("capability, wanted, trap", [((7, 5), "float16: compute capability 7.5 has fp16 but no bf16 units", True),
                                                      ((8, 0), "bfloat16: compute capability 8.0 has bf16 units", False)])
def test_the_t4_gets_float16_and_is_told_why(tmp_path, monkeypatch, capability, wanted, trap):
    for name, value in {"is_available": True, "get_device_capability": capability, "get_device_name": "a card", "current_device": 0, "is_bf16_supported": True}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    finding = doctor.check_device(tmp_path, tmp_path)
    assert finding.status == GREEN and f"a card in {wanted}" in finding.found and ("is_bf16_supported() says True" in finding.found) == trap


def test_a_driver_without_a_torch_that_uses_it(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    (tmp_path / "nvidia-smi").write_text("")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "CUDA build of torch" in doctor.check_device(tmp_path, tmp_path).remedy
    monkeypatch.setenv("PATH", "")
    assert "toy and hh_cpu" in doctor.check_device(tmp_path, tmp_path).remedy


def test_memory(tmp_path, monkeypatch):
    for name, content in {"toy/sft_run": {"peak_memory_gb": 1e-3}, "toy/dpo_run": {"peak_memory_gb": 2e-3}, "hh_cpu/dpo_run": {"peak_memory_gb": 1e6}, "speed/t4_plan": {"memory_gb": 1e-3}}.items():
        path = tmp_path / "results" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    finding = doctor.check_memory(tmp_path, tmp_path)
    assert finding.status == AMBER and "hh_cpu 1000000.0" in finding.found and "Too little for hh_cpu:" in finding.remedy
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 0))
    assert "Too little for hh_cpu and hh_small:" in doctor.check_memory(tmp_path, tmp_path).remedy


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    line = attempt("disk", tmp_path / "file" / "out", tmp_path)  # root may write anywhere, but below a file nobody can
    assert line["status"] == RED and "Not a directory" in line["found"] and "--out" in line["remedy"]


def test_a_small_disk_is_enough_for_toy(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1e9))
    line = attempt("disk", tmp_path / "not" / "made", tmp_path)
    # 11 times the weights that results/speed/t4_plan.json counts: 1.98 GB are four times them
    assert line["status"] == AMBER and line["found"].startswith(f"1.0 GB free at {tmp_path}; checkpoints of hh_small: 5.5") and not list(tmp_path.iterdir())


def test_a_full_disk(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        line = attempt("disk", tmp_path, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert line["status"] == RED and "File too large" in line["found"] and not list(tmp_path.iterdir())


def test_a_compiler_that_does_not_work_is_amber(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("from types import SimpleNamespace\ncuda = SimpleNamespace(is_available=lambda: False)\nlinspace = lambda *a, **k: None\n"
                                       "sin = allclose = None\ndef compile(f):\n    raise RuntimeError('no C++ compiler')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = doctor.check_compile(tmp_path, tmp_path)
    assert (finding.status, finding.found) == (AMBER, "RuntimeError: no C++ compiler") and "--compile off" in finding.remedy


def test_no_vocabulary_of_gpt2(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    line = attempt("GPT-2 vocabulary", tmp_path, tmp_path)
    assert line["status"] == AMBER and "network once" in line["remedy"] and "TIKTOKEN_CACHE_DIR" in line["remedy"]


# ---- the project ----------------------------------------------------------------------------------------------------

def test_a_tokenizer_that_loses_something(tmp_path, monkeypatch):
    decode = Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: decode(self, ids).replace("\r\n", "\n"))
    assert set(red(tmp_path, "tokenizer", "EOS and boundaries")) == {"tokenizer"}


def test_a_tokenizer_that_reads_typed_end_of_text_as_control(tmp_path, monkeypatch):
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text: self.encoding.encode(text, allowed_special="all"))
    found = red(tmp_path, "tokenizer", "EOS and boundaries")
    assert "<|endoftext|>" in found["tokenizer"] and "that a user typed is not plain text" in found["EOS and boundaries"]


@pytest.mark.slow
def test_replies_without_their_end(tmp_path, monkeypatch):
    encode = data.prepare_hh.encode_response
    monkeypatch.setattr(data.prepare_hh, "encode_response", lambda tokenizer, reply: encode(tokenizer, reply)[:-1])
    assert red(tmp_path, "tokenizer", "EOS and boundaries", "step 0 is ln 2") == {"EOS and boundaries": "pair 0: the chosen reply does not end in one end-of-text"}


def test_prompt_and_reply_tokenized_in_one(tmp_path, monkeypatch):
    """ "Assistant:" keeps its last character, which goes to the reply: what a merge across the border does."""
    prompt, response = data.prepare_hh.encode_prompt, data.prepare_hh.encode_response
    monkeypatch.setattr(data.prepare_hh, "encode_prompt", lambda tokenizer, text: prompt(tokenizer, text[:-1]))
    monkeypatch.setattr(data.prepare_hh, "encode_response", lambda tokenizer, text: tokenizer.encode(":") + response(tokenizer, text))
    assert "the prompt is not end-of-text and then its own text" in red(tmp_path, "EOS and boundaries")["EOS and boundaries"]


def last_of_the_chosen(batch):
    """The rejected reply predicted from the place before it in the row: the chosen reply's end."""
    first = [int((batch.owner == owner).nonzero()[0]) for owner in batch.owner.unique() if owner % 2]
    batch.predict_at[first] = batch.last[0:len(first) * 2:2]
    return batch


def without_ends(batch):
    """The loss left off every reply's last token, as masking by the id of padding does."""
    kept = torch.cat([batch.owner[1:] == batch.owner[:-1], torch.tensor([False])])
    return replace(batch, predict_at=batch.predict_at[kept], targets=batch.targets[kept], owner=batch.owner[kept])


def predicts_itself(batch):
    """Labels not shifted."""
    return replace(batch, predict_at=batch.predict_at + 1)


@pytest.mark.parametrize("broken, promise", [(last_of_the_chosen, "a token of the rejected reply is not predicted from the one before it"),
                                             (without_ends, "the tokens with a loss are not those of the chosen reply"),
                                             (predicts_itself, "a token of the chosen reply is not predicted from the one before it")])
def test_a_mask_that_scores_a_wrong_position(tmp_path, monkeypatch, broken, promise):
    make = batching.make_batch
    monkeypatch.setattr(batching, "make_batch", lambda *arguments: broken(make(*arguments)))
    assert promise in red(tmp_path, "tokenizer", "EOS and boundaries")["EOS and boundaries"]


@pytest.mark.slow
def test_a_loss_that_does_not_start_at_ln_2(tmp_path, monkeypatch):
    """The stage's own check compares with the same wrong loss and is content."""
    monkeypatch.setitem(objectives.OBJECTIVES, "dpo", objectives.OBJECTIVES["hinge"])
    found = red(tmp_path, "EOS and boundaries", "step 0 is ln 2", "resume")
    assert set(found) == {"step 0 is ln 2"} and "loss 1.0000" in found["step 0 is ln 2"] and "0.6931" in found["step 0 is ln 2"]


@pytest.mark.slow
def test_a_reference_that_is_another_model(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "score_pairs", lambda *arguments, **options: [side - np.float32(0.5) for side in batching.score_pairs(*arguments, **options)])
    assert "differ from the reference's by up to" in red(tmp_path, "step 0 is ln 2")["step 0 is ln 2"]


@pytest.mark.slow
@pytest.mark.parametrize("broken, found", [(lambda logps, count: 0 * logps.sum(), "SFT loss 0.00 to 0.000"),  # small, and nothing learnt
                                           (lambda logps, count: -logps.detach().sum() / count + 0 * logps.sum(), "SFT loss 5.7")])
def test_a_loss_that_learns_nothing(tmp_path, monkeypatch, broken, found):
    monkeypatch.setattr(train_sft, "sft_loss", broken)
    assert found in red(tmp_path, "one-batch overfit")["one-batch overfit"]


def forgets_the_optimizer(self, optimizer, scaler, model=None):
    if self.state is not None:
        set_rng_state(self.state["rng"])


def forgets_the_random_numbers(self, optimizer, scaler, model=None):
    if self.state is not None:
        optimizer.load_state_dict(self.state["optimizer"])


@pytest.mark.slow
@pytest.mark.parametrize("restore", [forgets_the_optimizer, forgets_the_random_numbers])
def test_a_resume_that_forgets(tmp_path, monkeypatch, restore):
    monkeypatch.setattr(runtime.run.Run, "restore", restore)
    assert set(red(tmp_path, "EOS and boundaries", "step 0 is ln 2", "resume")) == {"resume"}


@pytest.mark.slow
def test_a_resume_that_starts_over(tmp_path, monkeypatch):
    """It ends with the same weights, after ten steps too many."""
    monkeypatch.setattr(runtime.run, "find_checkpoint", lambda folder: None)
    assert set(red(tmp_path, "resume")) == {"resume"}
