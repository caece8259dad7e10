"""The judges on a finished evaluation: a reward model, people, an LLM; and several runs compared."""
import csv
import json
import shutil

import numpy as np
import pytest
import torch
from judge_server import Server, verdict
from test_eval_run import SMALL, experiment

from eval import compare, judge, report
from eval import run as evaluation
from eval.questions import from_sets
from model import GPT, GPTConfig
from reward_model import RewardModel, save_reward_model
from runtime.errors import UserError
from tokenizer import encode_prompt, encode_response, train_bpe


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    argv, config, root, tok = experiment(tmp_path_factory.mktemp("judge"), "a", extra=["--eval.prompts_per_kind=6", "--eval.toxicity_samples=0"])
    evaluation.main(argv)
    return config, root, tok


@pytest.fixture()
def folder(evaluated, tmp_path):
    """A copy of the evaluation that a test may change, where the data is found."""
    config, root, _ = evaluated
    shutil.copytree(config.run_dir / "eval", tmp_path / "a" / "eval")
    shutil.copytree(root, tmp_path / "data" / root.name)
    return tmp_path / "a" / "eval"


def judged(folder, name):
    return json.loads((folder / f"judged_{name}.json").read_text())


@pytest.fixture()
def reward(evaluated, tmp_path):
    """A reward model with random weights; random is enough to be judged by."""
    config, root, tok = evaluated
    torch.manual_seed(1)
    model = RewardModel(GPT(GPTConfig(tok.vocab_size, 192, 1, 2, 32))).eval()
    torch.nn.init.normal_(model.score.weight)
    (tmp_path / "reward").mkdir()
    save_reward_model(model, tmp_path / "reward", tok.eot_id)
    tok.save(tmp_path / "reward", 192)
    (tmp_path / "reward" / "run.json").write_text(json.dumps({"data": root.name}))
    return model


def test_a_reward_model_of_other_data_is_refused(folder, reward, tmp_path):
    (tmp_path / "reward" / "run.json").write_text(json.dumps({"data": "somewhere else"}))
    with pytest.raises(UserError, match="somewhere else"):
        judge.main([str(folder), "reward", f"--checkpoint={tmp_path / 'reward'}"])
    assert not (folder / "judged_reward.json").exists()


def test_a_system_that_always_wins_costs_the_ranking_alone(folder, reward, tmp_path, monkeypatch):
    real = judge.reward_scores
    calls = iter(range(100))  # one call per system in the order of the replies, then the held-out pairs
    monkeypatch.setattr(judge, "reward_scores", lambda *args: real(*args) + 1000 * next(calls))
    judge.main([str(folder), "reward", f"--checkpoint={tmp_path / 'reward'}"])
    found = judged(folder, "reward")
    assert found["ranking"]["rows"] == [] and all(row["wins"] == 18 for row in found["comparisons"])
    assert "Not ranked: no finite ranking" in (folder / "report.md").read_text()


@torch.no_grad()
def test_reward_model_verdicts_are_its_scores(evaluated, folder, reward, tmp_path):
    tok = evaluated[2]
    judge.main([str(folder), "reward", f"--checkpoint={tmp_path / 'reward'}"])
    found = judged(folder, "reward")
    rows = [json.loads(line) for line in (folder / "replies.jsonl").read_text().splitlines()]
    row = next(row for row in rows if row["system"] == "dpo")
    pair = [next(r for r in rows if r["system"] == system and r["id"] == row["id"]) for system in ("sft", "dpo")]
    alone = []
    for r in pair:  # each reply on its own, plain causal attention
        ids = torch.tensor([[*encode_prompt(tok, r["prompt"])[0], *encode_response(tok, r["reply"])]])
        t = ids.shape[1]
        alone.append(reward.score(reward.gpt.hidden(ids, torch.arange(t)[None], torch.ones(t, t, dtype=torch.bool).tril()[None, None])[0, -1]).item())
    assert found["margins"][row["id"]] == pytest.approx(alone[1] - alone[0], abs=1e-4)
    against = next(c for c in found["comparisons"] if (c["first"], c["second"]) == ("SFT", "DPO"))
    margins = np.array(list(found["margins"].values()))
    assert (against["wins"], against["losses"]) == ((margins > 0).sum(), (margins < 0).sum()) and len(margins) == 18
    assert len(found["comparisons"]) == 10 and {r["system"] for r in found["ranking"]["rows"]} == {"SFT", "SFT greedy", "SFT T=0.4", "DPO", "DPO greedy"}
    strength = {r["system"]: r["bradley_terry"]["value"] for r in found["ranking"]["rows"]}
    # everybody meets everybody equally often, so strengths stand in the order of wins and half the ties
    won = {s: sum((c["wins"] * (c["second"] == s) + c["losses"] * (c["first"] == s) + c["ties"] / 2 * (s in (c["first"], c["second"])))
                  for c in found["comparisons"]) for s in strength}
    assert [won[s] for s in sorted(strength, key=strength.get)] == sorted(won.values())
    assert found["accuracy"]["pairs"] == 60 and "held-out pairs right" in found["note"]  # its own accuracy beside every win rate
    text = (folder / "report.md").read_text()
    assert "Judge: reward model" in text and "Held-out accuracy of this judge" in text and "differences of the reward model's scores" in text


def fill(folder, name, votes):
    """A copy of the pairwise sheet with votes by row; returns its path."""
    with open(folder / "pairwise_preferences_for_annotation.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    column = next(i for i, title in enumerate(rows[0]) if title.startswith("preference"))
    for row, vote in zip(rows[1:], votes):
        row[column] = vote
    path = folder / f"{name}.csv"
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def fill_ratings(folder, name, shift, rated=lambda i: True):
    """DPO's replies get 4, SFT's 2, plus `shift`; rows that are not `rated` stay empty."""
    with open(folder / "helpfulness_key.csv", encoding="utf-8-sig", newline="") as file:
        system = {row["id"]: row["system"] for row in csv.DictReader(file)}
    with open(folder / "helpfulness_for_annotation.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    for i, row in enumerate(rows[1:]):
        row[3] = str((4 if system[row[0]] == "DPO" else 2) + shift) if rated(i) else ""
    path = folder / f"{name}.csv"
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_people(folder):
    with open(folder / "pairwise_preferences_key.csv", encoding="utf-8-sig", newline="") as file:
        sides = [row["A"] for row in csv.DictReader(file)]
    likes_dpo = ["A" if side == "DPO" else "B" for side in sides]
    anna = fill(folder, "anna", likes_dpo)
    ben = fill(folder, "ben", [vote if i % 3 else "tie" for i, vote in enumerate(likes_dpo)])
    cem = fill(folder, "cem", likes_dpo[:9] + [""] * 9)  # half filled
    rated = [fill_ratings(folder, f"{name}_ratings", shift) for name, shift in (("anna", 0), ("ben", -1))]
    judge.main([str(folder), "people", "--sheets", str(anna), str(ben), str(cem), "--ratings", *map(str, rated)])
    found = judged(folder, "people")
    by = {row["prompts"]: row for row in found["comparisons"]}
    assert by["anna"]["wins"] == 18 and by["ben"]["wins"] == 12 and by["ben"]["ties"] == 6
    assert by["cem"]["wins"] == 9 and by["cem"]["unjudged"] == 9  # missing is missing
    assert next(row for name, row in by.items() if name.startswith("majority"))["losses"] == 0
    assert found["missing"]["cem"] == 9 and "Krippendorff's alpha, nominal" in found["agreement"]
    found = found["helpfulness"]
    assert found["systems"]["DPO"]["value"] == 3.5 and found["systems"]["SFT"]["value"] == 1.5 and found["difference"]["interval"]["value"] == -2
    assert found["difference"]["interval"]["n"] == 12 and -1 < found["alpha_ordinal"] < 1  # helpful and borderline prompts only
    report = (folder / "report.md").read_text()
    assert "Judge: people" in report and "anna" in report and "9 of 18" in report
    # raters who share the work have no reply in common: no agreement to measure, and everything else stands
    halves = [fill_ratings(folder, f"half{half}", 0, lambda i: i % 2 == half) for half in (0, 1)]
    judge.main([str(folder), "people", "--sheets", str(anna), "--ratings", *map(str, halves)])
    assert "alpha_ordinal" not in judged(folder, "people")["helpfulness"] and judged(folder, "people")["helpfulness"]["systems"]["DPO"]["value"] == 4
    with pytest.raises(UserError, match="--sheets"):
        judge.main([str(folder), "people"])


def test_llm(folder):
    server = Server()
    try:
        server.reply = lambda messages: verdict("tie") if "You compare" in messages[0]["content"] else json.dumps({"reason": "r", "label": "full"})
        judge.main([str(folder), "llm", "--model=m", f"--base-url={server.url}", "--limit=4", "--price", "1", "2", "--refusals"])
        found = judged(folder, "llm")
        row, = found["comparisons"]
        assert (row["pairs"], row["ties"], row["unjudged"]) == (4, 4, 0) and found["totals"]["requests"] <= 16 and found["totals"]["cost"] > 0
        assert {(r["system"], r["group"]) for r in found["refusals"]} == {(s, k) for s in ("SFT", "DPO") for k in ("unsafe", "borderline", "helpful")}
        assert all(r["full"]["value"] == 1 and r["unjudged"] == 0 for r in found["refusals"])
    finally:
        server.stop()
    judge.main([str(folder), "llm", "--model=m", "--limit=4", "--replay"])  # no server, no key
    assert judged(folder, "llm")["comparisons"] == found["comparisons"] and "Judge: LLM m" in (folder / "report.md").read_text()
    with pytest.raises(UserError, match="--model"):
        judge.main([str(folder), "llm"])


def test_bad_input(folder, tmp_path):
    with pytest.raises(UserError, match="eval.run"):
        judge.main([str(tmp_path), "llm", "--model=m"])
    path = folder / "replies.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[0]]) + "\n")
    with pytest.raises(UserError, match="a second time"):
        judge.main([str(folder), "llm", "--model=m", "--replay"])
    path.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:40])
    with pytest.raises(UserError, match="damaged"):
        judge.main([str(folder), "llm", "--model=m", "--replay"])


def test_compare(evaluated, folder, tmp_path, capsys):
    config, _, _ = evaluated
    compare.main([str(config.run_dir), str(folder), f"--to={tmp_path / 'both'}"])  # an experiment's folder and an eval folder
    said = capsys.readouterr().out
    assert "words per reply" in said and "minus" in said
    page = (tmp_path / "both" / "compare.html").read_text()
    assert "<script" not in page and page.count("<table") == 3
    # the same figures differ nowhere
    rows = compare.difference_table(compare.load(config.run_dir), compare.load(folder), "dpo")[1]
    assert rows and all(row[3] == "1" and row[1].startswith("+0") for row in rows)
    # a figure of another kind under the same key (another k, another budget) is shown in a line of its own and not tested
    before = (folder / "results_summary.json").read_text()
    relabelled = json.loads(before)
    relabelled["metrics"][0]["label"] += " (another kind)"
    (folder / "results_summary.json").write_text(json.dumps(relabelled))
    assert len(compare.difference_table(compare.load(config.run_dir), compare.load(folder), "dpo")[1]) == len(rows) - 1
    levels = compare.level_table([compare.load(config.run_dir)[0], relabelled], ["a", "b"], "dpo")[1]
    assert len(levels) == len(relabelled["metrics"]) + 1
    (folder / "results_summary.json").write_text(before)
    # trap: where nothing was decided against SFT, the next comparison in the list was shown in its place
    summary = json.loads(before)
    against_sft = next(row for row in summary["win_rates"] if (row["first"], row["prompts"]) == ("SFT", "all prompts"))
    against_sft["rate"] = None
    (folder / "results_summary.json").write_text(json.dumps(summary))
    table = next(block for block in compare.blocks_of([config.run_dir, folder], "dpo") if block[0] == "table" and block[1] == ["run", "win rate of decided"])
    assert table[2][1][1] == "nothing decided"
    # other prompts: shown, not tested
    summary = json.loads(before)
    summary["facts"]["prompts"]["hash"] = "other"
    (folder / "results_summary.json").write_text(json.dumps(summary))
    blocks = compare.blocks_of([config.run_dir, folder], "dpo")
    assert any("different prompts" in str(block) for block in blocks)
    (folder / "values.npz").unlink()
    assert any("values.npz" in str(block) for block in compare.blocks_of([config.run_dir, folder], "dpo"))
    for arguments, problem in (([str(config.run_dir)], "two runs"), ([str(config.run_dir), str(tmp_path)], "eval.run"),
                               ([str(config.run_dir), str(folder), "--system=gpt"], "--system")):
        with pytest.raises(UserError, match=problem):
            compare.main(arguments)


def test_further_prompts_and_continuations(evaluated, tmp_path):
    """The project's own sets are asked beside the toy prompts, in groups of their own, and openings are continued."""
    config = evaluated[0]
    (tmp_path / "open.jsonl").write_text('{"prompt": {"text": "How do I paint", "toxicity": 0.1}}\n{"prompt": {"text": "First push", "toxicity": 0.6}}\n')
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({"prompt": f"Is this {kind}?", "kind": kind}) + "\n" for kind in ("unsafe", "borderline", "helpful")))
    evaluation.main(["toy", f"--out={config.out}", f"--name={config.name}", *SMALL, "--eval.prompts_per_kind=3", f"--eval.prompt_sets=['{tmp_path / 'mine.jsonl'}']",
                     f"--eval.continuations={tmp_path / 'open.jsonl'}", "--eval.toxicity_samples=3"])
    folder = config.run_dir / "eval"
    summary = json.loads((folder / "results_summary.json").read_text())
    figures = {row["key"]: row for row in summary["metrics"]}
    assert figures["refusal_mine_unsafe"]["values"]["sft"]["n"] == 1 and figures["refusal_unsafe"]["values"]["sft"]["n"] == 3
    assert figures["oracle_well_formed"]["values"]["sft"]["n"] == 9  # the oracle does not judge what is beyond its grammar
    assert figures["provoked_any_lexicon"]["values"]["dpo"]["n"] == 2 and "3 samples" in figures["provoked_any_lexicon"]["label"]
    rows = [json.loads(line) for line in (folder / "provoked.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 2 * 3 and {row["prompt"] for row in rows} == {"How do I paint", "First push"}
    texts = {(row["system"], row["id"]): row["reply"] for row in rows}
    assert len(texts) == 12 and len({texts["sft", f"continue-0000/{k}"] for k in range(3)}) > 1  # k different samples


def test_two_sets_of_one_name_are_refused_before_any_sampling(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.csv").write_text("prompt\nOne\n")
    with pytest.raises(UserError, match="'mine'"):
        from_sets([str(tmp_path / folder / "mine.csv") for folder in ("x", "y")], train_bpe(["One Human Assistant"], 257), 50)


def test_one_pair_gives_a_report_without_a_verdict(folder):
    summary = json.loads((folder / "results_summary.json").read_text())
    summary["reward_accuracy"]["tables"][-1]["dpo_minus_bag_of_words"] |= {"low": None, "high": None}
    (folder / "results_summary.json").write_text(json.dumps(summary))
    report.write_report(folder)
    assert "not clearly different from the bag-of-words" in (folder / "report.md").read_text()
