"""The pages in docs/: every reference leads somewhere, every figure is the one in the code or in results/, and the worked example runs."""
import ast
import json
import os
import re
import subprocess
import sys
from functools import cache

import pytest

from bench.readme import change, load, percent, win
from data.prepare_hh import DROPPED
from eval.health import LEVELS, THRESHOLDS, panel
from eval.stats import pairs_needed
from runtime.config import ROOT, SECTIONS, Config, _type_of

PAGES = sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "studies").glob("*/README.md"))
TEXT = {page.name if page.parent.name == "docs" else str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
REFERENCE = re.compile(r"`([\w/]+\.py)::(\w+)(?:\.(\w+))?`")
MADE = ("mine/", "out/")  # what a page's own example makes


@cache
def names(file: str) -> set[str]:
    """What a file defines at its top level, and `Class.member`; empty when there is no such file."""
    found = set()
    for node in ast.parse((ROOT / file).read_text()).body if (ROOT / file).is_file() else ():
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{member.name}" for member in node.body if isinstance(member, ast.FunctionDef)}
        for target in getattr(node, "targets", ()):
            found |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
    return found


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of a page's fenced blocks."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def broken(text: str, folder: str = "docs") -> list[str]:
    """Everything a page in `folder` names that is not there: definitions, tests, settings, scripts, results, links."""
    wrong = [m[0] for m in REFERENCE.finditer(text) if ".".join(filter(None, m.groups()[1:])) not in names(m[1])]
    wrong += [m for m in re.findall(r"`[^`\s]*::[^`]*`", text) if not REFERENCE.fullmatch(m)]  # misspelt beyond recognition
    wrong += [key for key in re.findall(r"--((?:%s)\.\w+)" % "|".join(SECTIONS), text) if _type_of(key) is None]
    for section, name in re.findall(r"`(%s)\.(?!py\b)(\w+)" % "|".join(SECTIONS), text):  # a setting, or a module or a function in a module of that name
        modules = [f for f in (f"{section}.py", f"{section}/{name}.py") if (ROOT / f).is_file()]
        if _type_of(f"{section}.{name}") is None and f"{section}/{name}.py" not in modules and not any(n.split(".")[-1] == name for m in modules for n in names(m)):
            wrong.append(f"{section}.{name}")
    for path in re.findall(r"(?<![\w/.])((?:[\w-]+/)*[\w-]+\.py|(?:results|bench|data|eval|runtime|tests|configs|docs)/[\w./-]*\w)", text):
        bare = [] if "/" in path else [*ROOT.glob(f"[!.]*/{path}"), *(ROOT / folder).glob(path)]  # a file may be named without its folder
        if not path.startswith(MADE) and not (ROOT / path).exists() and not bare:
            wrong.append(path)
    for command in re.findall(r"python -m ([\w.]+)", text):
        if not (ROOT / f"{command.replace('.', '/')}.py").exists():
            wrong.append(f"-m {command}")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    return wrong + [link for link in links if not link.startswith("http") and not (ROOT / folder / link).exists()]


@pytest.mark.parametrize("page", TEXT)
def test_what_a_page_names_exists(page):
    assert broken(TEXT[page], os.path.dirname(page) or "docs") == []


@pytest.mark.parametrize("text", [
    "`losses.py::dpoo`", "`lossses.py::dpo`", "`tests/test_losses.py::test_nothing`", "`model.py::GPT.backwards`", "`losses.py::dpo()`", "--dpo.bta=1", "`dpo.bta`", "`eval.nothing`",
    "`model.nothing`", "`chatt.py`", "results/toy/seed9/report.md", "python -m eval.nothing", "[a page](nowhere.md)", "`data/nothing.py`"])
def test_a_wrong_name_is_found(text):
    assert broken(text) and not broken("`losses.py::dpo`, `model.py::GPT.forward`, `eval/health.py::THRESHOLDS`, --dpo.beta=1, `dpo.beta`, `eval.stats.mean`, `model.tree_mask`, mine/x.py "
                                       "`chat.py`, results/toy/seed0/report.md, python -m eval.health, [a page](scale.md)")


# ---- healthy.md --------------------------------------------------------------------------------------------------------------

def table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def findings(run: str):
    folder = ROOT / "results" / run
    settings = json.loads((folder / "dpo_run.json").read_text())["config"]["dpo"]
    rows = [json.loads(line) for line in (folder / "dpo_metrics.jsonl").read_text().splitlines()]
    return panel(rows, settings["objective"], settings["beta"])


def four_runs() -> str:
    """Four committed runs: what the panel says of each, and what the oracle says."""
    rows = []
    for run, what in (("toy/seed0", "the demo"), ("toy/no_overrefusal", "no pairs about over-refusal"), ("toy/flipped", "all labels flipped"), ("toy/broken", "clean labels, ten times the learning rate")):
        found = findings(run)
        complaints = "; ".join(f"{f.level}: {f.check}" for level in LEVELS[:0:-1] for f in found if f.level == level)
        accuracy = next(f for f in found if f.check == "learning").seen.rsplit(" ", 1)[1]
        s = load(run)
        rows.append([f"`results/{run}`", what, accuracy, complaints or "no complaint", percent(win(s)["rate"]), percent(change(s, "oracle_refuses_borderline"), True)])
    return table(["run", "what it is", "reward accuracy, validation", "the panel", "beats SFT, oracle, % of decided", "safe look-alikes refused, points"], rows)


def test_the_thresholds_of_the_page_are_the_panels():
    said = {key: (float(warning), float(alarm)) for key, warning, alarm in re.findall(r"`(\w+)` \| ([\d.]+) \| ([\d.]+) \|", TEXT["healthy.md"])}
    assert said == THRESHOLDS


def test_the_page_names_every_check_and_no_other():
    said = set(re.findall(r"^\| \*\*(.+?)\*\* \|", TEXT["healthy.md"], re.MULTILINE))
    assert said == {f.check for f in findings("toy/broken")}


def test_the_four_runs_are_those_in_results():
    assert four_runs() in TEXT["healthy.md"], four_runs()


# ---- faq.md, reading_order.md ------------------------------------------------------------------------------------------------

def entries(page: str, level: str) -> dict[str, str]:
    parts = re.split(rf"^{level} (.*)\n", TEXT[page], flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2]))


def test_every_answer_points_to_code_and_to_a_test():
    found = entries("faq.md", "###")
    assert len(found) >= 20
    for question, answer in found.items():
        files = [m[1] for m in REFERENCE.finditer(answer)]
        assert any(f.startswith("tests/") for f in files) and any(not f.startswith("tests/") for f in files), question


def test_figures_of_the_faq():
    assert f"`pairs_needed(0.6)` is {pairs_needed(0.6)}" in TEXT["faq.md"]


def test_every_stop_has_code_a_question_and_the_test_that_answers():
    stops = [line for line in TEXT["reading_order.md"].splitlines() if re.match(r"\| \d+ \|", line)]
    assert len(stops) >= 12 and [int(stop.split("|")[1]) for stop in stops] == list(range(1, len(stops) + 1))
    for stop in stops:
        _, files, look, question, answer = (cell.strip() for cell in stop.strip("|").split("|"))
        assert ".py" in files and REFERENCE.search(look) and question.endswith("?") and "`tests/" in answer, stop


# ---- own_data.md -------------------------------------------------------------------------------------------------------------

def test_the_page_names_every_reason_to_drop_a_row():
    page = TEXT["own_data.md"]
    said = [reason.strip() for row in re.findall(r"^\| ([a-z ,]+) \| ", page[page.index("## The table of rows"):page.index("## Before you train")], re.MULTILINE) for reason in row.split(",")]
    assert said[0] == "reason" and said[1:] == list(DROPPED)


def run_page(folder, *wanted: int) -> dict[str, str]:
    """Write the files that own_data.md shows and run the commands of its blocks `wanted` in `folder`; {command: its output}."""
    shown, said = blocks(TEXT["own_data.md"]), {}
    (folder / "mine").mkdir()
    for _, block in (b for b in shown if b[0] == "python"):
        name, content = block.removeprefix("# ").split("\n", 1)
        (folder / name).write_text(content)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    commands = [block for language, block in shown if language != "python"]
    for line in "".join(commands[k] for k in wanted).splitlines():
        command = line.split("  #")[0].strip()
        here = re.sub(r"^python (?!-m|mine/)", f"python {ROOT}/", command).replace("python", sys.executable, 1)
        done = subprocess.run(here, shell=True, cwd=folder, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        said[command] = done.stdout
    return said


@pytest.mark.slow
def test_the_example_runs_from_rows_to_a_report(tmp_path):
    """Every command of the worked example and of the Hugging Face road; and what the page says of the result."""
    said = run_page(tmp_path, 0, 1, 2)
    assert len(said) >= 11 and "= kept" in said["python data/prepare_hh.py mine/own.py"]
    assert re.search(r"Assistant:\{\+ \d+ plus \d+ is \d+\.<\|endoftext\|>\+\}\n", said["python train_sft.py mine/own.py --name=look --sft.max_steps=1"])
    assert "no complaint" in said["python -m eval.health out/own/dpo"] and "accuracy 1.00" in said["python -m eval.health out/own/dpo"]
    report = said["python -m eval.run mine/own.py"]
    assert "dpo 100.0 %" in report and "bag of words 100.0 %" in report and "not measured: refusal and over-refusal" in report and "not measured: win rate" not in report
    replies = [json.loads(line) for line in (tmp_path / "out/own/eval/replies.jsonl").read_text().splitlines()]
    assert replies and sum(is_right(row) for row in replies) < 0.1 * len(replies)  # "hardly a sum is correct"
    assert (tmp_path / "out/hf/inference/samples_epoch_00.csv").exists() and (tmp_path / "out/hf/inference/samples_epoch_01.csv").exists()


@pytest.mark.long
def test_the_base_stage_of_the_page_runs(tmp_path):
    said = run_page(tmp_path, 0, 3)
    assert len(said) == 3 and "no base model: running" in list(said.values())[-1]


def is_right(row: dict) -> bool:
    """Whether a saved reply holds the sum that its prompt asks for."""
    a, b = map(int, re.search(r"(\d+) plus (\d+)\?", row["prompt"]).groups())
    return f"{a} plus {b} is {a + b}." in row["reply"]
