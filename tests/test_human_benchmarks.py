"""EmoBench and EQ-Bench 3: importers on small files in the runners' layouts, worked by hand; the commands with a checkout whose runner records how it
was called; a real server. One trap per way in which a failure becomes a score."""
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from eval import stats
from runtime.errors import UserError
from studies.human_likeness import benchmark_results, benchmarks
from tests.judge_server import Server, completion, free_port, status, tiny_model

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "studies.human_likeness.benchmarks"]


def ea(qid, answer, label="A", lang="en", category="Personal-Self"):
    return {"qid": qid, "lang": lang, "category": category, "label": label, "answer": answer}


def eu(qid, emotion, cause, lang="en"):
    return {"qid": qid, "lang": lang, "coarse_category": "complex_emotions", "finegrained_category": "x", "emo_label": "A", "emo_answer": emotion, "cause_label": "B", "cause_answer": cause}


def write(folder, task, model, rows):
    (folder / task).mkdir(parents=True, exist_ok=True)
    (folder / task / f"{model}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return folder


def figures(folder, base=""):
    found = benchmark_results.import_emobench(folder, base)
    return {(row["task"], row["lang"], row["model"]): row for row in found["figures"]}, found


# ---- EmoBench -------------------------------------------------------------------------------------------------------

def test_accuracy_by_hand_per_task_and_language(tmp_path):
    write(tmp_path, "EA", "m", [ea(1, "A"), ea(2, "A"), ea(3, "A"), ea(4, "B"), ea(1, "C", lang="zh")])
    write(tmp_path, "EU", "m", [eu(1, "A", "B"), eu(2, "A", "C"), eu(3, "B", "B"), eu(4, "C", "C")])  # one part of two right is not right
    rows, _ = figures(tmp_path)
    assert set(rows) == {("EA", "en", "m"), ("EA", "zh", "m"), ("EU", "en", "m")}
    assert rows["EA", "en", "m"]["answered"] == stats.wilson(3, 4).to_dict() and rows["EA", "zh", "m"]["answered"]["value"] == 0
    assert rows["EU", "en", "m"]["answered"] == stats.wilson(1, 4).to_dict() == rows["EU", "en", "m"]["all"]
    assert rows["EA", "en", "m"]["answered"]["low"] == pytest.approx(0.3006, abs=1e-4)  # (.75 + 1.9207/4 - 1.96 sqrt(.1875/4 + .9604/16)) / (1 + 3.8415/4)


def test_trap_an_exception_becomes_a_wrong_answer(tmp_path):
    write(tmp_path, "EA", "m", [ea(1, "A"), ea(2, "B"), ea(3, ""), ea(4, None)])
    write(tmp_path, "EU", "m", [eu(1, "A", "B"), eu(2, "", ""), eu(3, "A", "")])
    write(tmp_path, "EA", "mute", [ea(1, ""), ea(2, "")])
    rows, found = figures(tmp_path)
    row = rows["EA", "en", "m"]
    assert (row["no_answer"], row["answered"]["n"], row["answered"]["value"], row["all"]["value"]) == (2, 2, 0.5, 0.25)
    row = rows["EU", "en", "m"]  # half an answer is one, and wrong
    assert (row["no_answer"], row["half_answered"], row["answered"]["value"], row["all"]["n"]) == (1, 1, 0.5, 3)
    assert rows["EA", "en", "mute"]["answered"] is None and rows["EA", "en", "mute"]["by_category"] == {}
    assert "EA en, m: 2 of 4 questions have no answer, which the runner counts as wrong and does not ask again" in found["warnings"]
    assert "| EA en | mute | 2 of 200 | 2 | not measured | 0.0 % [0.0, 65.8] |" in benchmark_results.page({"command": "", "base": "", "emobench": found})


def test_trap_an_interrupted_run_passes_for_a_whole_one_and_a_question_counts_twice(tmp_path):
    write(tmp_path, "EA", "short", [ea(1, "B"), ea(2, "A"), ea(1, "A"), ea("3", "A option")])
    write(tmp_path, "EA", "whole", [ea(i, "A") for i in range(200)])
    write(tmp_path, "EA", "padded", [ea(i, "A") for i in range(199)] + [ea(0, "A")])  # 200 rows are not 200 questions
    rows, found = figures(tmp_path)
    row = rows["EA", "en", "short"]
    assert row["repeated"] == ["1"] and row["questions"] == 3 and row["not_a_letter"] == 1
    assert row["all"]["value"] == pytest.approx(1 / 3) and row["runner"] == 2 / 4  # the first row counts; the runner's figure has all four
    text = "\n".join(found["warnings"])
    assert "short: incomplete: 3 of 200" in text and "qid 1" in text and "no single letter" in text and "whole" not in text and "padded: incomplete: 199 of 200" in text


def test_the_runners_own_figure_is_checked(tmp_path):
    write(tmp_path, "EA", "m", [ea(1, "A"), ea(2, "B")])
    board = tmp_path / "EA" / "leaderboard.json"
    for said, warned in ((0.5, False), (0.75, True)):
        board.write_text(json.dumps({"m": {"en": {"Personal-Self": said, "Overall": said}}}))
        assert any("leaderboard.json says" in w for w in figures(tmp_path)[1]["warnings"]) == warned


def test_base_and_fine_tune_are_paired_by_question(tmp_path):
    # in another order, and not all the same questions: 1-6 the tuned model alone is right, 7 the base alone, 8 both, 9 and 10 without an answer on one side
    base = [ea(i, "B") for i in range(1, 7)] + [ea(7, "A"), ea(8, "A"), ea(9, ""), ea(10, "A"), ea(11, "A")]
    tuned = [ea(i, "A") for i in range(1, 7)] + [ea(7, "B"), ea(8, "A"), ea(9, "A"), ea(10, ""), ea(12, "A")]
    write(tmp_path, "EA", "base", base)
    write(tmp_path, "EA", "tuned", tuned[::-1])
    write(tmp_path, "EU", "base", [eu(1, "A", "B")])
    write(tmp_path, "EU", "tuned", [eu(1, "A", "B")])
    pairs = {(p["task"], p["over"]): p for p in figures(tmp_path, "base")[1]["pairs"]}
    both = pairs["EA", "answered by both"]
    assert (both["only_base"], both["only_model"], both["difference"]["n"]) == (1, 6, 8) and both["difference"]["value"] == pytest.approx(5 / 8)
    assert both["p"] == pytest.approx(2 * (1 + 7) / 2**7)  # 1 of 7 by a fair coin, two-sided
    every = pairs["EA", "all"]
    assert (every["only_base"], every["only_model"], every["difference"]["n"]) == (2, 7, 10)
    assert every["p"] == pytest.approx(2 * (1 + 9 + 36) / 2**9)
    assert both["p_holm"] == pytest.approx(2 * both["p"]) and every["p_holm"] == pytest.approx(2 * every["p"]) and pairs["EU", "all"]["p_holm"] == 1  # two tests of each kind


def test_trap_runs_that_cannot_be_compared(tmp_path):
    write(tmp_path, "EA", "base", [ea(1, "A"), ea(2, "A")])
    write(tmp_path, "EA", "qwen-tuned", [ea(1, "A"), ea(2, "A")])
    assert any("/no_think" in w for w in figures(tmp_path, "base")[1]["warnings"])
    found = figures(tmp_path, "bas")[1]
    assert found["pairs"] == [] and any("no model is called bas (--base); there are base, qwen-tuned" in w for w in found["warnings"])
    write(tmp_path, "EA", "qwen-tuned", [ea(1, "A"), ea(2, "A", label="C")])
    with pytest.raises(UserError, match="different right answers to question 2"):
        figures(tmp_path, "base")


@pytest.mark.parametrize("line", ['{"qid": 1, "lang": "en"', '{"qid": 1, "lang": "en", "category": "x", "label": "A"}', "[]"])
def test_a_damaged_line_is_named(tmp_path, line):
    write(tmp_path, "EA", "m", [ea(1, "A")])
    with open(tmp_path / "EA" / "m.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match="line 2 of .*m.jsonl is no answer"):
        benchmark_results.read_emobench(tmp_path)
    with pytest.raises(UserError, match="holds no EU/MODEL.jsonl"):
        benchmark_results.read_emobench(tmp_path / "elsewhere")


# ---- EQ-Bench 3 -----------------------------------------------------------------------------------------------------

STANDARD = ("demonstrated_empathy", "pragmatic_ei", "depth_of_insight", "social_dexterity", "emotional_reasoning", "message_tailoring")


def task(score, extra=None, **other):
    """A scored dialogue whose six counted criteria average `score` (0 to 20)."""
    scores = {name: score + (1 if i % 2 else -1) for i, name in enumerate(STANDARD)} | {"warmth": 20, "sycophantic": 0}
    return {"status": "rubric_scored", "debrief_prompt": "d", "rubric_scores": scores | (extra or {}), "parsed_responses": [{"raw": "x", "response": "x"}]} | other


def run(name, iterations, judge="judge-1", average=None):
    return {"run_key": f"k_{name}", "model_name": name, "judge_model": judge, "iterations_requested": len(iterations), "status": "completed",
            "scenario_tasks": {str(i): tasks for i, tasks in enumerate(iterations, 1)}, "results": {"average_rubric_score": average}}


def runs_file(tmp_path, *runs, versions=None):
    for name, said in (versions or {}).items():
        (tmp_path / f"eqbench3_{name}.json").write_text(json.dumps({"judge": {"asked_for": "judge-1", "answered_as": said}}))
    file = tmp_path / "eqbench3_runs.json"
    file.write_text(json.dumps({f"k{i}_{r['model_name']}": r for i, r in enumerate(runs)}))
    return file


def test_rubric_score_by_hand_and_by_scenario(tmp_path):
    file = runs_file(tmp_path, run("m", [{"1": task(10), "2": task(14)}, {"1": task(12), "2": task(16)}], average=13.0), versions={"m": "judge-1-0229"})
    row = benchmark_results.import_eqbench3(file, "", 0)["figures"]["m"]
    assert row["rubric"]["value"] == pytest.approx(65) == row["runner"] and row["rubric"]["n"] == 2  # (10 + 14 + 12 + 16) / 4 of 20; criteria that are not counted are not
    assert (row["rubric"]["low"], row["rubric"]["high"]) == pytest.approx((55, 75))  # two scenarios: one of them alone at worst
    assert row["iterations"] == 2 and row["judge_version"]["answered_as"] == "judge-1-0229" and row["warnings"] == []


def test_trap_dialogues_that_left_the_average_are_named(tmp_path):
    tasks = {"1": task(10), "2": task(10, status="completed"), "3": {"status": "error", "error": "x"}, "4": task(10, {"pragmatic_ei": 25}), "5": task(10)}
    del tasks["5"]["rubric_scores"]["pragmatic_ei"]
    tasks["6"] = task(12, parsed_responses=[{"raw": "I am fine, thank you", "response": "", "thinking_feeling": ""}])
    tasks["401"] = {"status": "scenario_completed", "debrief_prompt": None}
    row = benchmark_results.import_eqbench3(runs_file(tmp_path, run("m", [tasks], average=11.8)), "", 0)["figures"]["m"]
    assert (row["tasks"], row["scored"], row["shown_empty"], row["rubric"]["value"]) == (7, 2, 1, pytest.approx(55))
    assert row["not_scored"] == {"never judged (the runner skips a dialogue without a reply of 100 characters)": 2, "ended as error": 1, "a score outside 0 to 20": 1,
                                 "judged on fewer criteria than asked": 1}
    text = "\n".join(row["warnings"])
    assert "saw a reply as empty" in text and "own average is 59.00 where these dialogues give 55.00" in text and "version is not recorded" in text


def test_models_are_paired_by_scenario_and_iteration_and_by_judge(tmp_path):
    base = run("base", [{str(s): task(8 + s) for s in range(1, 7)}] * 2)
    tuned = run("tuned", [{str(s): task(9 + s) for s in range(1, 7)}, {str(s): task(10 + s) for s in range(1, 6)}])  # 6 of the second iteration is missing
    versions = {"base": "judge-1-0229", "tuned": "judge-1-0229"}
    found = benchmark_results.import_eqbench3(runs_file(tmp_path, base, tuned, versions=versions), "base", 0)
    pair, = found["pairs"]
    assert pair["dialogues"] == 11 and pair["difference"]["value"] == pytest.approx(5 * (6 * 1 + 5 * 2) / 11) and pair["difference"]["n"] == 6
    assert pair["p"] == pytest.approx(2 / 64, abs=0.01) and pair["p_holm"] == pair["p"]  # six scenarios, all up
    assert any("tuned: incomplete: 11 dialogues where 6 scenarios x 2" in w for w in found["warnings"])
    for others, change in ((versions | {"tuned": "judge-1-0305"}, {}), (versions, {"judge_model": "judge-2"})):  # trap: another judge, or another version of it
        found = benchmark_results.import_eqbench3(runs_file(tmp_path, base, tuned | change, versions=others), "base", 0)
        assert found["pairs"] == [] and any("not compared with base: the judges differ" in w for w in found["warnings"])


def test_trap_an_elo_of_verdicts_that_name_nobody(tmp_path):
    def compared(said, **other):
        return {"scenario_id": "1", "pair": {"test_model": "b", "neighbor_model": "a"}, "judge_response": said, "outcome_for_test_model": 0.5} | other
    rating = {"elo": 1200.0, "elo_norm": 1200.0, "sigma": 9.0, "ci_low": 1100.0, "ci_high": 1300.0}
    file = tmp_path / "eqbench3_elo.json"
    file.write_text(json.dumps({"__metadata__": {"global_pairwise_comparisons": [compared({"x": "?"}), compared({"x": "A0488++"}), compared({}, error="no answer")]}, "a": rating, "b": rating, "c": rating}))
    found = benchmark_results.elo_figures(file)
    assert found["a"] == found["b"] == {"elo": 1200.0, "ci_low": 1100.0, "ci_high": 1300.0, "comparisons": 2, "no_verdict": 1} and found["c"]["elo"] is None
    file.write_text(json.dumps({"__metadata__": {"global_pairwise_comparisons": [compared({"x": "?"})]}, "a": rating}))
    assert benchmark_results.elo_figures(file)["a"]["elo"] is None
    with pytest.raises(UserError, match="no runs file"):
        benchmark_results.read_eqbench3(file.with_name("none.json"))


def test_the_import_command_writes_both(tmp_path):
    write(tmp_path / "results", "EA", "base", [ea(1, "A"), ea(2, "")])
    file = runs_file(tmp_path, run("base", [{"1": task(10), "2": task(12)}]), versions={"base": "v1"})
    benchmarks.main(["import", "--emobench", str(tmp_path / "results"), "--eqbench3", str(file), "--base", "base", "--to", str(tmp_path / "out")])
    found, text = json.loads((tmp_path / "out" / "benchmarks.json").read_text()), (tmp_path / "out" / "benchmarks.md").read_text()
    assert found["emobench"]["figures"][0]["no_answer"] == 1 and found["eqbench3"]["figures"]["base"]["rubric"]["value"] == pytest.approx(55)
    assert "| base | judge-1 | v1 | 1 | 2 of 2 |" in text and str(tmp_path) not in text
    with pytest.raises(UserError, match="nothing to import"):
        benchmarks.main(["import", "--to", str(tmp_path / "out")])


# ---- the runners ----------------------------------------------------------------------------------------------------

RUNNER = """import json, os, sys
json.dump([sys.argv, {k: v for k, v in os.environ.items() if "API" in k}, os.getcwd()], open("called.json", "w"))
print("key:", os.environ.get("API_KEY"), os.environ.get("TEST_API_KEY"), os.environ.get("JUDGE_API_KEY")); sys.exit(int(os.environ.get("FAKE_STATUS", 0)))
"""


@pytest.fixture
def keys(monkeypatch):
    for name in ("API_KEY", "TEST_API_KEY", "JUDGE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, f"sk-{name}-secret")


def checkout(folder):
    (folder / "src").mkdir(parents=True)
    for script in ("src/main.py", "eqbench3.py"):
        (folder / script).write_text(RUNNER)
    return folder


def nothing_leaked(tmp_path, capsys):
    printed = capsys.readouterr()
    called = tmp_path / "checkout" / "called.json"  # the runner's own record of its environment, the one place where keys belong
    written = "".join(p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file() and p != called)
    return "secret" not in printed.out + printed.err + written and "(key)" in written


def test_emobench_is_called_with_its_own_flags_and_the_key_in_its_environment_alone(tmp_path, keys, capsys, monkeypatch):
    command = ["emobench", "--checkout", str(checkout(tmp_path / "checkout")), "--url", "http://user:pw-secret@127.0.0.1:9/v1/", "--name", "org/m.1", "--lang", "en", "--task", "EU",
               "--use-cot", "--to", str(tmp_path / "out")]
    benchmarks.main(command)
    assert "emobench of org/m.1 ended with status 0" in capsys.readouterr().out
    argv, env, where = json.loads((tmp_path / "checkout" / "called.json").read_text())
    assert argv == ["src/main.py", "--model_type", "openai-compatible", "--model_path", "org/m.1", "--lang", "en", "--task", "EU", "--use_cot"] and where == str(tmp_path / "checkout")
    assert env["API_URL"] == "http://user:pw-secret@127.0.0.1:9/v1" and env["API_KEY"] == "sk-API_KEY-secret" and os.environ.get("API_URL") is None
    monkeypatch.setenv("FAKE_STATUS", "3")
    with pytest.raises(UserError, match="ended with status 3 after .* its output is in"):
        benchmarks.main(command)
    assert nothing_leaked(tmp_path, capsys)


def test_eqbench3_keeps_its_files_apart_and_its_judges_version(tmp_path, keys, capsys):
    judge = Server()
    try:
        judge.faults = [lambda body: completion("yes") | {"model": "judge-1-0229", "system_fingerprint": "fp1"}]
        command = ["eqbench3", "--checkout", str(checkout(tmp_path / "checkout")), "--url", "http://127.0.0.1:9/v1", "--name", "m", "--judge-model", "judge-1", "--judge-url", judge.url,
                   "--iterations", "2", "--no-elo", "--to", str(tmp_path / "out")]
        benchmarks.main(command)
        argv, env, _ = json.loads((tmp_path / "checkout" / "called.json").read_text())
        given = dict(zip(argv[1::2], argv[2::2]))
        assert (given["--test-model"], given["--model-name"], given["--judge-model"], given["--iterations"]) == ("m", "m", "judge-1", "2") and {"--ignore-canonical", "--no-elo"} <= set(argv)
        assert given["--runs-file"] == str(tmp_path / "out" / "eqbench3_runs.json") and given["--elo-results-file"] == str(tmp_path / "out" / "eqbench3_elo.json")
        assert env["TEST_API_URL"] == "http://127.0.0.1:9/v1/chat/completions" and env["JUDGE_API_URL"] == f"{judge.url}/chat/completions"
        assert (env["TEST_API_KEY"], env["JUDGE_API_KEY"]) == ("sk-TEST_API_KEY-secret", "sk-JUDGE_API_KEY-secret")
        made_by = json.loads((tmp_path / "out" / "eqbench3_m.json").read_text())
        assert made_by["judge"] | {"server": ""} == {"asked_for": "judge-1", "answered_as": "judge-1-0229", "fingerprint": "fp1", "server": ""}
        assert nothing_leaked(tmp_path, capsys)
        judge.faults = [status(401, "no such key: sk-JUDGE_API_KEY-secret")]
        (tmp_path / "checkout" / "called.json").unlink()
        with pytest.raises(UserError, match="judge judge-1 at .* does not answer: .*401") as error:
            benchmarks.main(command)
        assert "secret" not in str(error.value) and not (tmp_path / "checkout" / "called.json").exists()  # found before the long run
    finally:
        judge.stop()


def test_trap_the_runner_goes_on_from_another_models_results(tmp_path, keys):
    def start(name, *more):
        benchmarks.main(["emobench", "--checkout", str(tmp_path / "checkout"), "--url", "http://127.0.0.1:9/v1", "--name", name, "--to", str(tmp_path / "out"), *more])
    write(checkout(tmp_path / "checkout") / "results", "EA", "m_1", [ea(1, "A")])
    with pytest.raises(UserError, match="results called m.1 already"):  # nobody knows of which model; the runner writes m.1 as m_1
        start("m.1")
    start("n")
    write(tmp_path / "checkout" / "results", "EA", "n", [ea(1, "A")])
    start("n")  # the same again may go on
    with pytest.raises(UserError, match="of another model, judge or settings: choose another --name"):
        start("n", "--use-cot")
    with pytest.raises(UserError, match="has no src/main.py"):
        benchmarks.main(["emobench", "--checkout", str(tmp_path), "--url", "http://x/v1", "--name", "n", "--to", str(tmp_path / "out")])
    with pytest.raises(UserError, match="--model"):
        benchmarks.main(["emobench", "--checkout", str(tmp_path / "checkout"), "--name", "q", "--to", str(tmp_path / "out")])


# ---- serving --------------------------------------------------------------------------------------------------------

def test_the_relay_hands_on_what_the_server_would_refuse_or_ignore():
    """Trap: `transformers serve` answers 422 to EQ-Bench's min_p, and decodes greedily whatever the temperature."""
    server, port = Server(), free_port()
    between = benchmarks.relay(port, server.url.removesuffix("/v1"), {"top_k": 0, "do_sample": True})
    try:
        server.faults = [lambda body: completion("hi"), status(422, "no")]
        for want in (200, 422):
            request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps({"messages": [], "temperature": 0.7, "min_p": 0.1}).encode(),
                                             {"Content-Type": "application/json"})
            try:
                answer = urllib.request.urlopen(request).status
            except urllib.error.HTTPError as e:
                answer = e.code
            assert answer == want
        body = server.bodies[0]
        assert "min_p" not in body and body["temperature"] == 0.7 and json.loads(body["generation_config"]) == {"top_k": 0, "do_sample": True, "min_p": 0.1}
    finally:
        between.shutdown()
        between.server_close()
        server.stop()


def test_what_cannot_be_served_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no model folder"):
        benchmarks.whole_model(tmp_path / "none", None)
    tiny_model(tmp_path / "tiny")
    folder, name = benchmarks.whole_model(tmp_path / "tiny", None)
    assert folder == tmp_path / "tiny" and len(name) == 16
    for file in (tmp_path / "tiny").glob("chat_template*"):
        file.unlink()
    settings = tmp_path / "tiny" / "tokenizer_config.json"
    settings.write_text(json.dumps({k: v for k, v in json.loads(settings.read_text()).items() if k != "chat_template"}))
    with pytest.raises(UserError, match="no chat template"):
        benchmarks.whole_model(tmp_path / "tiny", None)


def adapter_for(base, folder):
    """Adapters that change the model, with the files a run leaves beside them."""
    import shutil

    import torch

    from hf_model import load_causal_lm
    from lora import add_adapters, adapters, save_adapters
    from runtime.config import LoraConfig
    model, config = load_causal_lm(base, 1, dtype=torch.float32), LoraConfig(rank=2, alpha=4.0, targets=["c_attn"])
    add_adapters(model, config, seed=0)
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.lora_B)
    save_adapters(model, folder, config, str(base))
    for file in base.iterdir():
        if "token" in file.name or "chat" in file.name:
            shutil.copy(file, folder)


@pytest.mark.slow
def test_serve_answers_with_adapters_folded_in_once_and_ends_its_whole_group(tmp_path):
    if not Path(sys.executable).with_name("transformers").exists():
        pytest.skip("the transformers command is not installed beside this Python")
    base, adapter, port = tmp_path / "tiny", tmp_path / "adapter", free_port()
    tiny_model(base)
    adapter_for(base, adapter)
    other = tmp_path / "other"
    tiny_model(other)
    weights = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(weights[:-4] + bytes(4))
    with pytest.raises(UserError, match="was trained on"):
        benchmarks.whole_model(other, adapter)
    merged, name = benchmarks.whole_model(base, adapter)
    stamp = (merged / "model.safetensors").stat().st_mtime_ns
    assert merged.parent == tmp_path and (merged / "model.safetensors").read_bytes() != (base / "model.safetensors").read_bytes()
    assert json.loads((merged / "config.json").read_text())["dtype"] == "float32"  # the base's own
    serving = subprocess.Popen([*COMMAND, "serve", "--model", str(base), "--adapter", str(adapter), "--name", "tuned", "--device", "cpu", "--port", str(port), "--to", str(tmp_path / "out")],
                               cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home")})
    try:
        assert serving.stdout.readline() == f"tuned (content {name}) is served at http://127.0.0.1:{port}/v1; Ctrl-C ends it.\n"
        assert (merged / "model.safetensors").stat().st_mtime_ns == stamp  # not merged again
        import openai
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=60)
        said = client.chat.completions.create(model="tuned", messages=[{"role": "user", "content": "hello"}], max_tokens=4, temperature=0.7, extra_body={"min_p": 0.1})
        assert said.choices and 1 <= said.usage.completion_tokens <= 4
        drawn = {client.chat.completions.create(model="tuned", messages=[{"role": "user", "content": "hello"}], max_tokens=8, temperature=1.5).choices[0].message.content for _ in range(4)}
        assert len(drawn) > 1  # the temperature counts
    finally:
        serving.send_signal(signal.SIGTERM)
        serving.wait(40)
    assert serving.returncode == 143
    for _ in range(50):
        left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
        if "transformers serve tuned" not in left:
            break
        time.sleep(0.2)
    assert "transformers serve tuned" not in left
