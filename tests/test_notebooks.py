"""Every notebook runs from top to bottom, is saved with the outputs of such a run, and defines nothing that the project has; and eval/live.py."""
import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from batching import make_batch
from data.store import PairStore, StoreWriter
from eval import live
from model import tree_mask
from runtime.config import ROOT
from runtime.errors import UserError
from tokenizer import train_bpe

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SETTINGS = ("--threads=1 --model.n_layer=2 --model.n_embd=64 --sft.max_steps=40 --dpo.max_steps=4 --dpo.max_pairs=200 --sft.eval_rows=60 --dpo.eval_rows=60 "
            "--dpo.watch_prompts=6 --eval.prompts_per_kind=12 --eval.max_new_tokens=24 --eval.max_pairs=60 --eval.bootstrap=200 --eval.toxicity_prompts=6").split()
SHORT = {"walkthrough": f'RUN = "toy"\nMORE = {SETTINGS}'}  # what replaces the cell tagged "parameters"; the others are short as they are
MACHINE = re.compile(r"(?<![\w.:/-])/(?:home|root|tmp|work|usr|opt|var|mnt|Users|private)/|\b[A-Z]:\\\\|site-packages")
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def tagged(path: Path, tag: str) -> list:
    return [cell for cell in cells(path) if tag in cell.metadata.get("tags", [])]


# ---- running them ---------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A working copy: what a notebook writes must not land in the tree."""
    folder = tmp_path_factory.mktemp("copy") / "nanopref"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", ".venv", "out", "__pycache__", ".pytest_cache"))
    return folder


@pytest.mark.slow
@notebooks
def test_it_runs_from_top_to_bottom(path, copy, tmp_path, monkeypatch):
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):  # nobody's own settings, and no need for a home folder
        monkeypatch.setenv(name, str(tmp_path / name))
    nb = nbformat.read(path, 4)
    if path.stem in SHORT:
        cell, = (cell for cell in nb.cells if "parameters" in cell.metadata.get("tags", []))
        cell.source = SHORT[path.stem]
    NotebookClient(nb, timeout=170, kernel_name="python3", resources={"metadata": {"path": str(copy / "notebooks")}}).execute()
    if path.stem == "walkthrough":
        trained = [cell for cell in nb.cells if "curves=" in cell.source]
        assert len(trained) == 2 and all([o.output_type for o in cell.outputs].count("display_data") == 1 for cell in trained)  # one picture, redrawn
        assert "step 0: loss 0.6931 (expected 0.6931)" in json.dumps(trained[1].outputs)
        assert (copy / "out" / "toy" / "eval" / "report.html").exists()


# ---- as they are committed ------------------------------------------------------------------------------------------

def test_the_four_notebooks_are_there():
    assert {"walkthrough", "prefix_sharing", "losses", "statistics"} <= {path.stem for path in NOTEBOOKS}


@notebooks
def test_it_is_saved_with_the_outputs_of_a_whole_run(path):
    nb = nbformat.read(path, 4)
    nbformat.validate(nb)
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs and not [o for o in outputs if o.output_type == "error"]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    for output in outputs:
        output.get("data", {}).pop("image/png", None)
    assert not (found := MACHINE.search(json.dumps(nb))), found
    assert nb.metadata.kernelspec.name == "python3" and not any("execution" in cell.metadata for cell in nb.cells)
    assert path.stat().st_size < 1.5e6


@pytest.mark.parametrize("text, found", [("in /home/me/x", True), ('"/tmp/x"', True), ("File /work/y.py", True), ("lib/site-packages/x", True),
                                         ("out/toy/sft/best", False),
                                         ("https://arxiv.org/abs/2305.18290", False), ("</div>", False), ("--out=/content/drive", False)])
def test_what_counts_as_a_path_of_a_machine(text, found):
    assert bool(MACHINE.search(text)) == found


def definitions(source: str) -> set[str]:
    return {node.name for node in ast.parse(source).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


@notebooks
def test_it_defines_nothing_that_the_project_has(path):
    files = [*ROOT.glob("*.py"), *(file for folder in ("data", "eval", "runtime") for file in (ROOT / folder).glob("*.py"))]
    ours = set().union(*(definitions(file.read_text(encoding="utf-8")) for file in files))
    assert {"dpo", "make_batch", "tree_mask", "bpe", "wilson"} <= ours
    for cell in cells(path):
        source = "\n".join("pass" if line.startswith(("%", "!")) else line for line in cell.source.splitlines())
        assert not definitions(source) & ours, cell.source


def test_the_walkthrough_is_the_real_toy_run_in_short_cells():
    path = ROOT / "notebooks" / "walkthrough.ipynb"
    values = {}
    exec(tagged(path, "parameters")[0].source, values)
    assert (values["RUN"], values["MORE"]) == ("toy", [])
    assert all(len(cell.source.splitlines()) <= 15 for cell in cells(path)) and not any(definitions(cell.source) for cell in cells(path))


def test_outside_a_checkout_the_first_cell_says_what_to_do(tmp_path):
    source = tagged(ROOT / "notebooks" / "walkthrough.ipynb", "setup")[0].source
    done = subprocess.run([sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode and done.stderr.count("\n") == 1 and "REPOSITORY" in done.stderr and not list(tmp_path.iterdir())
    source += "\nprint(os.getcwd(), sys.path[0])"
    inside = subprocess.run([sys.executable, "-c", source], cwd=ROOT / "notebooks", capture_output=True, text=True)
    assert inside.stdout.split() == [str(ROOT), str(ROOT)]


# ---- eval/live.py ---------------------------------------------------------------------------------------------------

def test_a_script_is_followed_and_its_failure_is_told(capsys):
    live.run(["-c", "print('hello')"])
    assert "hello" in capsys.readouterr().out
    live.run(["-c", "print('first'); print(); print('last')"], brief=True)
    assert capsys.readouterr().out.splitlines()[1:] == ["first"]
    with pytest.raises(UserError, match="no config 'tyo'; did you mean 'toy'"):
        live.run(["train_sft.py", "tyo"])


def test_an_interrupt_stops_the_script(tmp_path):
    note = tmp_path / "pid"
    script = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(600)"

    def interrupt():
        while not (note.exists() and note.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        live.run(["-c", script])
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


def test_the_mask_in_html_shows_the_scored_tokens_and_escapes_the_rest(tmp_path):
    tok = train_bpe(["<b>one</b>"], 257)
    with StoreWriter(tmp_path / "s", tok.vocab_size) as writer:
        prompt = [tok.eot_id, *tok.encode("<b>")]
        writer.add(prompt, [0] * len(prompt), tok.encode("yes"), tok.encode("no"), source_row=0)
        writer.close({"tokenizer": "test"})
    page = live.mask(make_batch(PairStore(tmp_path / "s"), [[0]]), tok).data
    assert f'&lt;b&gt;<span style="background: {live.CHOSEN}">yes</span><span style="background: {live.REJECTED}">no</span>' in page


def test_colours_are_those_of_the_mask():
    segments = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    P, C, R, H = live.PROMPT, live.CHOSEN, live.REJECTED, live.HIDDEN
    assert live.seen_from(segments, 3) == [P, P, C, C, H, H, H] and live.seen_from(segments, 5) == [P, P, H, H, R, R, H]
    for query in range(7):
        assert [c != H for c in live.seen_from(segments, query)] == tree_mask(segments[None])[0, 0, query].tolist()


def test_parts_of_a_report(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(live, "display", shown.append)
    lines = ("|  | n |", "| --- | --- |", "| words | 1 |", "| tokens | 2 |", "| toxicity | not measured |")
    (tmp_path / "report.md").write_text("# t\n\n## One\n\n" + "\n".join(lines) + "\n\nA note.\n\n## Two\n\nx\n")
    live.section(tmp_path, "One", ["words", "tox"])
    assert shown[0].data == "|  | n |\n| --- | --- |\n| words | 1 |\n| toxicity | not measured |"
    with pytest.raises(UserError, match="no part 'Three'; it has: One, Two"):
        live.section(tmp_path, "Three")
