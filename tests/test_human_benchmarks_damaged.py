"""EmoBench's and EQ-Bench 3's result files when something is wrong with them: one sentence that names the file, and no figure of two judges in one."""
import json

import pytest

from runtime.errors import UserError
from studies.human_likeness import benchmark_results, benchmarks
from tests.test_human_benchmarks import ea, run, runs_file, task, write


@pytest.mark.parametrize("name, content, words", [
    ("EA/x.jsonl", b"\xff\xfe", "x.jsonl cannot be read .UnicodeDecodeError"), ("EA/x.jsonl", b"", "line 1 of .*x.jsonl is no answer"), ("EA/leaderboard.json", b"{", "leaderboard.json is no leaderboard"),
    ("EA/leaderboard.json", b"[]", "is no leaderboard"), ("EA/leaderboard.json", b'{"m": {"en": 0.5}}', "is no leaderboard"), ("EA/leaderboard.json", b'{"m": {"en": {"Overall": "x"}}}', "is no leaderboard")])
def test_a_damaged_file_of_emobench_is_named(tmp_path, name, content, words):
    (write(tmp_path, "EA", "m", [ea(1, "A"), ea(2, "B")]) / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        benchmark_results.import_emobench(tmp_path, "m")


def changed(tmp_path, **other):
    file = runs_file(tmp_path, run("m", [{"1": task(10), "2": task(12)}]))
    file.write_text(json.dumps({key: found | other for key, found in json.loads(file.read_text()).items()}))
    return file


@pytest.mark.parametrize("other", [{"iterations_requested": None}, {"scenario_tasks": {"1": [1]}}, {"scenario_tasks": {"1": {"1": None}}}, {"scenario_tasks": {"1": {"1": task(10, parsed_responses=["x"])}}}])
def test_a_damaged_run_of_eqbench3_is_named(tmp_path, other):
    with pytest.raises(UserError, match="the run of m is not as EQ-Bench 3 writes it"):
        benchmark_results.import_eqbench3(changed(tmp_path, **other), "", 0)


def test_what_a_run_lacks_is_said(tmp_path):
    (tmp_path / "eqbench3_m.json").write_text("{")
    row = benchmark_results.import_eqbench3(changed(tmp_path, results=None), "", 0)["figures"]["m"]
    assert row["runner"] is None and row["warnings"] == ["the judge's version is not recorded: run with the command eqbench3"]
    assert list(benchmark_results.read_eqbench3(changed(tmp_path, model_name=None))) == ["k0_m"]  # without a name it goes by its key


def test_an_elo_without_an_interval_is_shown_without_one():
    found = {"command": "", "base": "", "elo": {"a": {"elo": 1234.0, "ci_low": None, "ci_high": None, "comparisons": 2, "no_verdict": 0}, "b": {"elo": None, "ci_low": None, "ci_high": None, "comparisons": 0, "no_verdict": 0}}}
    text = benchmark_results.page(found)
    assert "| a | 1,234 [?, ?] | 2 | 0 |" in text and "| b | not measured | 0 | 0 |" in text


def test_trap_half_a_run_by_one_version_of_the_judge_and_half_by_another(tmp_path):
    def remembered(answered_as, there=True, fingerprint="x"):
        benchmarks.remember(tmp_path, "eqbench3", "m", {"model": "w", "flags": {"judge": "j"}, "benchmark_at": {}, "judge": {"asked_for": "j", "answered_as": answered_as, "fingerprint": fingerprint}}, there)
    remembered("j-0229", there=False)
    remembered("j-0229", fingerprint="y")  # the same again may go on
    with pytest.raises(UserError, match="results called m already, of another model, judge or settings"):
        remembered("j-0305")
    assert json.loads((tmp_path / "eqbench3_m.json").read_text())["judge"]["answered_as"] == "j-0229"
    (tmp_path / "eqbench3_m.json").write_text("{")
    with pytest.raises(UserError, match="as far as anyone knows"):
        remembered("j-0229")


def test_odd_flags_are_one_sentence(tmp_path):
    write(tmp_path, "EA", "m", [ea(1, "A")])
    with pytest.raises(UserError, match="m.jsonl is a file: name a folder"):
        benchmarks.main(["import", "--emobench", str(tmp_path), "--to", str(tmp_path / "EA" / "m.jsonl")])
    with pytest.raises(UserError, match="--seed must be at least 0"):
        benchmarks.main(["import", "--emobench", str(tmp_path), "--seed", "-1", "--to", str(tmp_path / "out")])
    with pytest.raises(UserError, match="--iterations and --threads at least 1"):
        benchmarks.main(["eqbench3", "--checkout", str(tmp_path), "--name", "m", "--judge-model", "j", "--iterations", "0", "--to", str(tmp_path / "out")])


def test_a_run_of_fewer_scenarios_is_named(tmp_path):
    found = benchmark_results.import_eqbench3(runs_file(tmp_path, run("few", [{"1": task(10)}]), run("all", [{"1": task(10), "2": task(12)}])), "", 0)
    assert "few: 1 scenarios, where another run here has 2" in found["warnings"] and not any("all: 2 scenarios" in w for w in found["warnings"])


def test_the_difference_and_its_test_weigh_scenarios_alike(tmp_path):
    """A scenario with a dialogue missing weighed less in the difference and as much in its test: up by .75 of 20, and p = 1 as if nothing had changed."""
    base = run("base", [{s: task(10) for s in "123"}, {"1": task(10)}])
    tuned = run("tuned", [{"1": task(13), "2": task(6), "3": task(11)}, {"1": task(13)}])
    pair, = benchmark_results.import_eqbench3(runs_file(tmp_path, base, tuned), "base", 0)["pairs"]
    assert pair["difference"]["value"] == pytest.approx(5 * (6 - 4 + 1) / 4) and pair["p"] == pytest.approx(6 / 8, abs=0.02)  # of 6, 4, 1 with any signs: 11, 9, 3, 1
