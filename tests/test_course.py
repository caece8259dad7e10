"""The course: starters are what their sources give, the reference solution has all points, a blank starter none, every known mistake is caught by
the trap named after it, and no submission can harm, stall or fool the grader."""
import difflib
import importlib
import json
import os
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from course.bands import page
from course.build import COURSE, assignments, made
from course.grade import grade, load_checks, table, write_results
from course.sandbox import Limits, Sandbox
from course.worker import can_be_nobody
from runtime.config import ROOT

ALL = assignments()


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as s:
        yield s


def submission(folder: Path, text: str) -> Path:
    (folder / "mine.py").write_text(textwrap.dedent(text))
    return folder / "mine.py"


@pytest.mark.parametrize("assignment", ALL)
def test_starter_and_hints_are_what_the_source_gives(assignment):
    for file, text in made(assignment).items():
        assert (COURSE / assignment / file).read_text() == text, f"{assignment}/{file}: run python -m course.build"
    assert all(len(three) == 3 for three in json.loads((COURSE / assignment / "hints.json").read_text()).values())


@pytest.mark.parametrize("assignment", ALL)
def test_the_reference_solution_has_all_points(assignment, sandbox):
    for seed in (0, 1):
        results = grade(assignment, COURSE / assignment / "source.py", sandbox, seed)
        assert [r for r in results if r.message] == []
    assert {r.level for r in results} == {"shape", "number", "property", "trap", "written"}


@pytest.mark.parametrize("assignment", ALL)
def test_a_blank_starter_has_none_and_every_message_helps(assignment, sandbox):
    results = grade(assignment, COURSE / assignment / "starter.py", sandbox, 0)
    assert sum(r.earned for r in results) == 0
    for r in results:
        assert any(words in r.message for words in ("--hint 1", "the shape level comes first", "at least 25")), r


@pytest.mark.parametrize("assignment", ALL)
def test_every_known_mistake_is_caught_by_the_trap_named_after_it(assignment, sandbox, tmp_path):
    mutants = importlib.import_module(f"tests.mutants.{assignment}").MUTANTS
    source, checks = (COURSE / assignment / "source.py").read_text(), {c.name: c for c in load_checks(assignment)}
    assert len(mutants) >= 6
    for trap, changes in mutants.items():
        wrong = source
        for old, new in changes:
            assert source.count(old) == 1, (trap, old)
            wrong = wrong.replace(old, new)
        marks = [line[0] for line in difflib.ndiff(source.splitlines(), wrong.splitlines())]
        assert 1 <= max(marks.count("+"), marks.count("-")) <= 3 and checks[trap].level == "trap", trap
        path = tmp_path / f"{trap}.py"
        path.write_text(wrong)
        failed = {r.name: r for r in grade(assignment, path, sandbox, 0, checks[trap].function) if r.message}
        assert trap in failed, f"{assignment}: {trap} was not caught; caught by {sorted(failed)}"
        assert not [r for r in failed.values() if r.level == "shape"], trap
        assert len(failed[trap].message) > 30


@pytest.mark.parametrize("assignment", ALL)
def test_the_handout_names_the_points_and_the_usual_figures_are_measured(assignment):
    text, points = (COURSE / assignment / "handout.md").read_text(), Counter()
    for c in load_checks(assignment):
        points[c.function] += c.points
    for function, n in points.items():
        row = f"| `{function}` |" if function != "the run" else "| two paragraphs |"
        line = next((line for line in text.splitlines() if line.startswith(row)), None)
        assert line and line.split("|")[-2].strip() == f"{n:g}", (function, n, line)
    expected = json.loads((COURSE / assignment / "expected.json").read_text())
    assert all(len(values) >= 5 for values in expected["figures"].values())
    assert page(assignment, expected) == (COURSE / assignment / "expected.md").read_text(), f"python -m course.bands {assignment} --again"
    assert "(expected.md)" in text


def test_there_are_enough_mistakes():
    assert sum(len(importlib.import_module(f"tests.mutants.{a}").MUTANTS) for a in ALL) >= 36 or len(ALL) < 6


# ---- the grader under attack ----------------------------------------------------------------------------------------

HEAD = "import os, sys, time, ctypes, subprocess, socket\nimport torch\n"
ATTACKS = {
    "a loop that never ends": ("while True: pass", "seconds"),
    "a hundred gigabytes": ("x = torch.empty(25 * 2**30); x.fill_(1)", "memory"),
    "a list without end": ("x = []\nwhile True: x.append(bytes(2**24))", "memory"),
    "fork": ("os.fork()", "os.fork"),
    "a subprocess": ("subprocess.run(['true'])", "subprocess.Popen"),
    "a shell": ("os.system('true')", "os.system"),
    "a connection": ("socket.create_connection(('127.0.0.1', 9), 1)", "socket."),
    "sys.exit": ("sys.exit(0)", "sys.exit"),
    "a hard exit": ("os._exit(0)", "ended its process"),
    "a crash": ("import faulthandler; faulthandler._sigsegv()", "signal 11"),
    "killing the parent": ("os.kill(os.getppid(), 9)", "os.kill"),
    "killing the parent behind Python's back": ("import signal; signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)", "NoneType"),
    "native code": ("ctypes.CDLL(None).fork()", "ctypes."),
    "reading the project": (f"open({str(ROOT / 'losses.py')!r})", "losses.py"),
    "reading it through the back door": (f"open('/proc/self/root{ROOT / 'losses.py'}')", "losses.py"),
    "importing it": (f"sys.path.insert(0, {str(ROOT)!r})\nimport losses", "to open losses"),
    "a folder's descriptor": (f"os.open({str(ROOT)!r}, os.O_RDONLY)", ROOT.name),
    "another process's memory": ("open(f'/proc/{os.getppid()}/mem', 'rb')", "mem"),
    "writing a file": ("open('/tmp/x_of_a_submission', 'w')", "x_of_a_submission"),
    "replacing a file": ("os.replace('/nowhere/a', '/nowhere/b')", "os.rename"),
    "disarming the hook": ("os._exit = os.pwrite = lambda *a: None\nos.fork()", "os.fork"),
    "a syntax error": ("def half(", "SyntaxError"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_submission_does_when_loaded_costs_it_all_points_with_a_reason(attack, tmp_path):
    act, reason = ATTACKS[attack]
    with Sandbox(Limits(seconds=2)) as sandbox:
        results = grade("a4", submission(tmp_path, HEAD + act), sandbox, 0)
        assert sandbox.strays() == []
    assert sum(r.earned for r in results) == 0
    assert all(reason in r.message for r in results), results[0].message


SOLUTION = (COURSE / "a4" / "source.py").read_text()
INSIDE = "def step_loss(losses: Tensor, pairs_in_step: int) -> Tensor:\n"


def broken_inside(act: str) -> str:
    """The reference solution with an act at the start of its last function."""
    assert INSIDE in SOLUTION
    return SOLUTION.replace(INSIDE, f"import os, ctypes, time\n\n{INSIDE}    {act}\n")


def test_a_loop_in_one_function_costs_only_its_points(tmp_path):
    with Sandbox(Limits(seconds=1)) as sandbox:
        results = grade("a4", submission(tmp_path, broken_inside("while True: pass")), sandbox, 0)
    assert {r.function for r in results if r.message} == {"step_loss"}
    assert "never end" in next(r.message for r in results if r.message)


def test_after_three_calls_that_ran_into_a_limit_the_rest_is_not_run(tmp_path):
    text = SOLUTION.replace("import torch\n", "import torch, time\n", 1) + "\n\ndef sequence_logps(*_): time.sleep(99)\ndef implicit_rewards(*_): time.sleep(99)\ndef dpo_loss(*_): time.sleep(99)\n"
    began = time.monotonic()
    with Sandbox(Limits(seconds=0.5)) as sandbox:
        results = grade("a4", submission(tmp_path, text), sandbox, 0)
    assert "3 checks before it" in results[-1].message and time.monotonic() - began < 60


def test_forking_in_one_function_costs_everything(tmp_path):
    with Sandbox() as sandbox:
        results = grade("a4", submission(tmp_path, broken_inside("os.fork()")), sandbox, 0)
    assert sum(r.earned for r in results) == 0 and "os.fork" in results[0].message


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are found on Linux only")
def test_a_daemon_that_left_its_session_is_found_and_killed():
    daemon = "import os, time\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n  os.setsid(); time.sleep(600)\n os._exit(0)\ntime.sleep(.2)"
    sandbox = Sandbox()
    subprocess.run([sys.executable, "-c", daemon], check=True)
    found = sandbox.strays()
    assert [p for p in found if p.status() != psutil.STATUS_ZOMBIE]
    assert sandbox.left_behind()
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in found)


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are found on Linux only")
def test_a_fork_bomb_is_put_out():
    """Without the limits of worker.py, which keep a submission from getting this far: sixty-four processes that fork when they can."""
    bomb = "import os, time\nfor _ in range(6): os.fork()\nend = time.time() + 60\nwhile time.time() < end:\n if os.fork() == 0: os.setsid(); time.sleep(.01); os._exit(0)\n time.sleep(.02)"
    sandbox = Sandbox()
    process = subprocess.Popen([sys.executable, "-c", bomb])
    time.sleep(0.5)
    assert len(sandbox.strays()) > 10
    sandbox.stop()
    process.wait()
    time.sleep(0.2)
    assert [p for p in sandbox.strays() if p.status() != psutil.STATUS_ZOMBIE] == []


def test_prints_and_a_patched_torch_change_nothing(tmp_path):
    """A submission that rewrites torch in its own process still has its values compared by ours."""
    text = SOLUTION.replace("return (chosen - rejected - 1 / (2 * beta)) ** 2", "return 0 * chosen") + textwrap.dedent("""
        print("x" * 100_000, flush=True)
        torch.isclose = torch.allclose = torch.equal = lambda *a, **k: True
        Tensor.__eq__ = lambda *a: True
        """)
    with Sandbox() as sandbox:
        results = grade("a4", submission(tmp_path, text), sandbox, 0)
    assert {r.function for r in results if r.message} == {"ipo_loss"}


def test_a_forged_answer_is_only_a_value(tmp_path):
    """Writing to the result file oneself gives what returning a value gives."""
    act = "[os.pwrite(fd, b'{\"value\": {\"tensor\": [\"float32\", [], \"AACAPw==\"]}}', 0) or 1 for fd in range(3, 40) if os.path.exists(f'/proc/self/fd/{fd}') and not os.isatty(fd)]; os._exit(0)"
    with Sandbox() as sandbox:
        results = grade("a4", submission(tmp_path, broken_inside(act)), sandbox, 0)
    assert "micro_batches_add_up" in {r.name for r in results if r.message}


@pytest.mark.skipif(not can_be_nobody(), reason="not root, or this Python can be read by root only")
def test_run_by_root_a_submission_is_nobody_and_may_start_nothing(sandbox):
    text = "import os, resource\ndef who(): return [os.geteuid(), *resource.getrlimit(resource.RLIMIT_NPROC)]"
    assert sandbox.call(text, "mine.py", "who") == [65534, 1, 1]


ODD = ("None", "10 ** 400", "[]", "{}", "'text'", "float('nan')", "torch.tensor(float('nan'))", "torch.zeros(0)", "[None] * 3", "b'x' * 45 * 2 ** 20", "torch.ones(2, dtype=torch.complex64)")


@pytest.mark.parametrize("value", ODD)
def test_no_value_stops_the_grader(value, tmp_path, sandbox):
    """Every function gives the same odd value: no points beyond the paragraphs', and a message each."""
    functions = dict.fromkeys(c.function for c in load_checks("a4") if c.level != "written")
    text = "import torch\n" + "".join(f"def {name}(*_): return {value}\n" for name in functions)
    results = [r for r in grade("a4", submission(tmp_path, text), sandbox, 0) if r.level not in ("written", "shape")]
    assert sum(r.earned for r in results) == 0 and all(r.message for r in results)


@pytest.mark.parametrize("forged", ['5', '{"value": {"tensor": []}}', '{"value": {"tensor": ["float32", [Infinity], "AAAA"]}}', '{"value": {"x": 1}}', "[" * 2000])
def test_no_forged_file_stops_the_grader(forged, tmp_path):
    act = f"\n    for fd in range(3, 20):\n        try: os.pwrite(fd, {forged.encode()!r}, 0)\n        except OSError: pass\n    os._exit(0)"
    with Sandbox() as sandbox:
        results = grade("a4", submission(tmp_path, broken_inside(act)), sandbox, 0)
    assert {r.function for r in results if r.message} == {"step_loss"}


# ---- the command ----------------------------------------------------------------------------------------------------

def test_the_command_prints_a_table_and_its_exit_code_says_whether_all_is_done(tmp_path):
    done = subprocess.run([sys.executable, "-m", "course.grade", "a4", "course/a4/source.py", "--out", tmp_path, "--seed", "3"], cwd=ROOT, capture_output=True, text=True)
    whole = f"{sum(c.points for c in load_checks('a4')):g}"
    assert done.returncode == 0 and f"{whole} of {whole} points" in done.stdout
    gradescope, plain = (json.loads((tmp_path / name).read_text()) for name in ("results.json", "grade.json"))
    assert gradescope["score"] == plain["earned"] == plain["points"] == sum(t["max_score"] for t in gradescope["tests"])
    done = subprocess.run([sys.executable, "-m", "course.grade", "a4", "course/a4/starter.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and f"0 of {whole} points" in done.stdout


@pytest.mark.parametrize("arguments, says", [(["a9", "x.py"], "no assignment"), (["a4", "nowhere.py"], "cannot be read"), (["a4"], "name the file"),
                                             (["a4", "course/a4/source.py", "--only", "dpo"], "no function 'dpo'"), (["a4", "--hint", "1"], "--only")])
def test_a_wrong_call_gets_one_sentence(arguments, says):
    done = subprocess.run([sys.executable, "-m", "course.grade", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr


def test_hints_come_in_stages():
    said = [subprocess.run([sys.executable, "-m", "course.grade", "a4", "--only", "dpo_loss", "--hint", str(n)], cwd=ROOT, capture_output=True, text=True).stdout for n in (1, 2, 3)]
    assert all(f"hint {n} of 3" in text for n, text in enumerate(said, 1)) and "logsigmoid" in said[2] and "logsigmoid" not in said[0]


def test_results_of_the_same_seed_are_the_same(sandbox, tmp_path):
    path = COURSE / "a4" / "source.py"
    tables = [table("a4", grade("a4", path, sandbox, 7), 7) for _ in range(2)]
    assert tables[0] == tables[1]
    write_results(tmp_path / "new", "a4", grade("a4", path, sandbox, 7), 7)
    assert (tmp_path / "new" / "results.json").exists()


def test_the_autograder_script_of_the_instructors_page_writes_gradescopes_file(tmp_path):
    page = (COURSE / "instructors.md").read_text()
    script = "#!/usr/bin/env bash" + page.split("#!/usr/bin/env bash")[1].split("```")[0]
    assert "cd /autograder/source" in script
    (tmp_path / "submission").mkdir()
    (tmp_path / "submission" / "mine.py").write_text((COURSE / "a4" / "starter.py").read_text())
    (tmp_path / "run").write_text(script.replace("/autograder/source", str(ROOT)).replace(".venv/bin/python", sys.executable).replace("/autograder", str(tmp_path)))
    subprocess.run(["bash", tmp_path / "run"], check=True, capture_output=True)
    assert json.loads((tmp_path / "results" / "results.json").read_text())["score"] == 0


# ---- the run --------------------------------------------------------------------------------------------------------

def train(path: Path, out: Path, assignment: str = "a3") -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "course.train", assignment, path, "--out", out], cwd=ROOT, capture_output=True, text=True)


def test_the_run_wants_all_functions_and_numbers_for_predictions(tmp_path):
    done = train(COURSE / "a3" / "starter.py", tmp_path)
    assert done.returncode == 2 and "not written yet: next_tokens, token_logps" in done.stderr
    wrong = (COURSE / "a3" / "source.py").read_text().replace('"training loss of the first step, nats per token": 6.93', '"training loss of the first step, nats per token": 2 ** 3')
    assert train(submission(tmp_path, wrong), tmp_path).stderr.strip().endswith("must be a plain dict of numbers and None: write the numbers themselves.")


@pytest.mark.slow
def test_the_toy_model_trains_through_a_students_own_functions(tmp_path, monkeypatch):
    """Assignment 3, cut to a few steps: the curve is that of the project's own functions to rounding, and a wrong function bends it."""
    import course.a3.run as a3
    import train_sft
    from course.train import Base, load_submission, run_of
    from runtime.run import read_metrics
    monkeypatch.setattr(a3, "SETTINGS", {"sft__max_steps": 4, "sft__eval_every": 4, "sft__eval_rows": 16, "sft__log_every": 1, "sft__batch": 8, "threads": 1,
                                         "model__n_layer": 1, "model__n_embd": 32, "model__n_head": 2})
    monkeypatch.setattr(a3, "mean_of_means_error", lambda *_: 0.0)

    def losses(name: str, text: str) -> list[float]:
        base = Base(tmp_path / "out", 0, tmp_path, name)
        run_of("a3", load_submission(submission(tmp_path, text)), base)
        return [row["loss"] for row in read_metrics(tmp_path / "out" / name / "micro_1024" / "sft" / "metrics.jsonl") if row["split"] == "train"]

    source = (COURSE / "a3" / "source.py").read_text()
    mine = losses("mine", source)
    base = Base(tmp_path / "out", 0, tmp_path, "theirs")
    train_sft.main(base.argv("micro_1024", **a3.SETTINGS, sft__micro_tokens=1024))
    theirs = [row["loss"] for row in read_metrics(tmp_path / "out" / "theirs" / "micro_1024" / "sft" / "metrics.jsonl") if row["split"] == "train"]
    assert mine == pytest.approx(theirs, abs=1e-4) and len(mine) == 4
    bent = losses("bent", source.replace("return peak * (step + 1) / warm", "return 0.0"))
    assert bent[1:] != pytest.approx(theirs[1:], abs=1e-3)
