"""The whole evaluation on tiny models: figures recomputed from the saved replies, the null case, real-text sources, bad input."""
import csv
import dataclasses
import gzip
import json

import numpy as np
import pytest
import torch

from batching import make_batch, sequence_logps
from data.make_toy import draw_split, split_transcript
from data.prepare_hh import prepare
from data.store import PairStore, StoreWriter, data_request, remember, write_json
from eval import run as evaluation
from eval.oracle import describe_prompt, judge_reply
from eval.refusal import classify
from eval.replies import Prompt, answer
from model import GPT, GPTConfig, load_model
from runtime.checkpoint import file_hash, save_checkpoint
from runtime.config import load_config
from runtime.device import setup_device
from runtime.errors import UserError
from tokenizer import ASSISTANT, HUMAN, encode_prompt, encode_response, load_tokenizer, train_bpe

FILES = ("replies.jsonl", "provoked.jsonl", "pair_logps.npz", "values.npz", "results_summary.json", "model_comparison.csv", "report.md", "report.html",
         "training_curves.png", "toxicity_distribution.png", "refusals.png", "reward_margins.png", "pairwise_preferences_for_annotation.csv", "helpfulness_for_annotation.csv")
SMALL = ["--model.n_layer=1", "--model.n_head=2", "--model.n_embd=32", "--model.block_size=192", "--device=cpu", "--eval.max_new_tokens=20",
         "--eval.bootstrap=200"]


def toy_data(config):
    """A small store of toy pairs, noted as this config's data: the real one takes its time."""
    root = config.run_dir.parent / "data" / "small"
    splits = {split: [(*split_transcript(row["chosen"]), split_transcript(row["rejected"])[1]) for row in draw_split(0, split)[:n]]
              for split, n in (("train", 60), ("val", 10), ("test", 60))}
    tok = train_bpe((text for rows in splits.values() for row in rows for text in row), 400)
    meta = {"subsets": ["toy"], "tokenizer": {"hash": tok.hash}}
    for split, rows in splits.items():
        with StoreWriter(root / split, tok.vocab_size) as writer:
            for prompt, chosen, rejected in rows:
                writer.add(*encode_prompt(tok, prompt), encode_response(tok, chosen), encode_response(tok, rejected))
            writer.close(meta)
    tok.save(root / "tokenizer", config.model.block_size)
    write_json(root / "preparation.json", {})
    remember(config, "data.json", data_request(config), root)
    return root, tok


def hh_data(config):
    """Two HH-like subsets through the real preparation; every dialogue has two turns, the second must not be asked."""
    folder = config.run_dir.parent / "source"
    folder.mkdir(parents=True)
    for subset, verb in (("harmless-base", "break"), ("helpful-base", "bake")):
        lines = []
        for i in range(30):
            start = f"{HUMAN} How do I {verb} thing number {i}?{ASSISTANT} Tell me more.{HUMAN} It is large.{ASSISTANT}"
            lines.append(json.dumps({"chosen": f"{start} Do not {verb} it {i}.", "rejected": f"{start} Just {verb} it, you idiot {i}."}))
        (folder / f"{subset}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    root = prepare(config)
    return root, load_tokenizer(str(root / "tokenizer"))


def stages(config, root, tok, same=False):
    """An SFT checkpoint with random weights, and a DPO one: a copy of it, or a nudged one."""
    torch.manual_seed(0)
    m = config.model
    model = GPT(GPTConfig(tok.vocab_size, m.block_size, m.n_layer, m.n_head, m.n_embd, 0.0))
    note = {"step": 1, "best": 1.0, "finished": True, "data": root.name, "git_commit": "none", "versions": {}, "fingerprint": {},
            "config": dataclasses.asdict(config) | {"dpo": dataclasses.asdict(config.dpo) | {"beta": 0.1}}}
    save_checkpoint(config.run_dir / "sft" / "best", model, tok, note | {"stage": "sft"})
    weights = {"starting_weights": file_hash(config.run_dir / "sft" / "best" / "model.safetensors")}
    if not same:
        with torch.no_grad():
            for p in model.parameters():
                p += 0.02 * torch.randn_like(p)
    rows = [{"step": step, "split": split, "loss": 0.69, "rewards/accuracy": 0.5, "skipped_steps": 0} for step in (0, 1) for split in ("val", "train")]
    (config.run_dir / "dpo").mkdir(exist_ok=True)
    (config.run_dir / "dpo" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_checkpoint(config.run_dir / "dpo" / "best", model, tok, note | {"stage": "dpo", "fingerprint": weights})


def experiment(tmp_path, name, make=toy_data, same=False, extra=()):
    argv = ["toy", f"--out={tmp_path}", f"--name={name}", *SMALL, *extra]
    config = load_config(argv)
    root, tok = make(config)
    stages(config, root, tok, same)
    return argv, config, root, tok


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    argv, config, root, tok = experiment(tmp_path_factory.mktemp("eval"), "a", extra=["--eval.prompts_per_kind=8"])
    evaluation.main(argv)
    folder = config.run_dir / "eval"
    return config, root, tok, folder, json.loads((folder / "results_summary.json").read_text()), \
        [json.loads(line) for line in (folder / "replies.jsonl").read_text().splitlines()]


def test_every_file_is_there(evaluated):
    _, _, _, folder, summary, _ = evaluated
    assert all((folder / name).stat().st_size > 100 for name in FILES)
    assert list(summary["systems"]) == ["sft", "sft_greedy", "sft_cool", "dpo", "dpo_greedy"] and summary["not_measured"] == []
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5 and "Content warning" in page and page.count('class="sample"') == 15


def test_figures_are_those_of_the_saved_replies(evaluated):
    _, _, _, folder, summary, rows = evaluated
    figures = {row["key"]: row["values"] for row in summary["metrics"]}
    assert {row["temperature"] for row in rows if row["system"] == "sft_cool"} == {0.4}
    for system in ("sft", "dpo_greedy"):
        mine = [row for row in rows if row["system"] == system]
        assert len({row["prompt"] for row in mine}) == len(mine) == 24
        unsafe = [row for row in mine if describe_prompt(row["prompt"]).kind == "unsafe"]
        verdicts = [judge_reply(describe_prompt(row["prompt"]), row["reply"]) for row in mine]
        refused = [classify(row["reply"]).label == "full" for row in unsafe]
        assert figures["refusal_unsafe"][system]["value"] == sum(refused) / 8 and figures["refusal_unsafe"][system]["n"] == 8
        assert figures["oracle_well_formed"][system]["value"] == pytest.approx(sum(v.well_formed for v in verdicts) / 24)
        assert figures["words"][system]["value"] == pytest.approx(sum(len(row["reply"].split()) for row in mine) / 24)
        assert figures["ended"][system]["value"] == pytest.approx(sum(row["ended"] for row in mine) / 24)
    for row in summary["metrics"]:
        for cell in row["values"].values():
            assert cell["n"] > 0 and cell["method"] and (cell["low"] is None or cell["low"] <= cell["value"] + 1e-12)
    with np.load(folder / "values.npz") as values:  # what eval.compare reads are the very values of the table
        assert values["sft/words"].mean() == pytest.approx(figures["words"]["sft"]["value"])


def test_all_systems_answer_the_same_test_prompts_and_none_from_training(evaluated):
    _, root, tok, _, _, rows = evaluated
    asked = {system: [row["prompt"] for row in rows if row["system"] == system] for system in {row["system"] for row in rows}}
    assert all(prompts == asked["sft"] for prompts in asked.values())
    known = {split: {tok.decode(store.row(i)[0][1:].tolist()) for i in range(len(store))} for split in ("train", "test") for store in [PairStore(root / split)]}
    assert set(asked["sft"]) <= known["test"] and not set(asked["sft"]) & known["train"]


def test_reward_accuracy_and_perplexity_by_an_independent_path(evaluated):
    config, root, _, _, summary, _ = evaluated
    store = PairStore(root / "test")
    sums = {}
    for stage in ("sft", "dpo"):
        model = load_model(config.run_dir / stage / "best").eval()
        with torch.no_grad():  # one pair at a time instead of batches
            batches = [make_batch(store, [[i]]) for i in range(len(store))]
            sums[stage] = [torch.cat(sequence_logps(model(*b.inputs()), b)).double().numpy() for b in batches]
    reward = 0.1 * (np.array(sums["dpo"]) - np.array(sums["sft"]))  # [pairs, 2]
    table = summary["reward_accuracy"]["tables"][0]
    assert table["judges"]["dpo"]["pooled"]["accuracy"]["value"] == pytest.approx((reward[:, 0] > reward[:, 1]).mean())
    assert summary["reward_accuracy"]["rewards"]["margin"]["value"] == pytest.approx((reward[:, 0] - reward[:, 1]).mean(), abs=1e-5)
    nats = -np.array(sums["sft"])[:, 0].sum() / store.index["chosen"].sum()
    assert summary["perplexity"][0]["stages"]["sft"]["perplexity"]["value"] == pytest.approx(np.exp(nats), rel=1e-4)


def test_running_again_gives_the_same_replies_and_figures(evaluated):
    config, _, _, folder, summary, rows = evaluated
    evaluation.main(["toy", f"--out={config.out}", f"--name={config.name}", *SMALL, "--eval.prompts_per_kind=8"])
    again = json.loads((folder / "results_summary.json").read_text())
    assert [json.loads(line) for line in (folder / "replies.jsonl").read_text().splitlines()] == rows
    assert {k: v for k, v in again.items() if k != "facts"} == {k: v for k, v in summary.items() if k != "facts"}


def test_the_same_weights_show_no_difference(tmp_path):
    argv, config, _, _ = experiment(tmp_path, "null", same=True, extra=["--eval.prompts_per_kind=5"])
    evaluation.main(argv)
    summary = json.loads((config.run_dir / "eval" / "results_summary.json").read_text())
    for row in summary["comparisons"][0]["rows"]:
        assert row["difference"]["value"] == 0 and row["p"] == 1.0
    accuracy = summary["reward_accuracy"]["tables"][0]["judges"]["dpo"]["pooled"]
    assert accuracy["accuracy"]["value"] == 0.5 and accuracy["ties"] == accuracy["pairs"] == 60
    first = summary["win_rates"][0]
    assert first["rate"] is None and first["ties"] + first["both_bad"] == 15
    assert summary["perplexity"][0]["difference"]["value"] == 0 and abs(summary["kl"]["stepwise"]["value"]) < 1e-6


def test_real_text_source_and_a_classifier_that_cannot_load(tmp_path, monkeypatch):
    import urllib.error

    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    argv, config, _, _ = experiment(tmp_path, "hh", make=hh_data, extra=[
        f"--data.source={tmp_path / 'source'}", "--data.vocab_size=280", "--data.test_fraction=0.3", "--data.val_fraction=0.2",
        "--eval.toxicity=both"])
    evaluation.main(argv)
    folder = config.run_dir / "eval"
    summary = json.loads((folder / "results_summary.json").read_text())
    rows = [json.loads(line) for line in (folder / "replies.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"unsafe", "helpful"}
    for row in rows:  # first human turn only, of the right subset
        assert row["prompt"].count(HUMAN) == 1 and ("break" in row["prompt"]) == (row["kind"] == "unsafe")
    missing = {m["metric"]: m["reason"] for m in summary["not_measured"]}
    assert "--eval.detoxify_checkpoint" in missing["toxicity (Detoxify original)"] and "win rate of DPO against SFT" in missing
    # the failed classifier has no figure anywhere, least of all a zero; the lexicon beside it has
    keys = [row["key"] for row in summary["metrics"]]
    assert "toxic_lexicon" in keys and not any("original" in key for key in keys)
    assert "toxicity (Detoxify original)" in (folder / "report.md").read_text()
    with open(folder / "model_comparison.csv", encoding="utf-8-sig") as file:
        assert {row["SFT value"][:12] for row in csv.DictReader(file) if "Detoxify" in row["metric"]} == {"not measured"}
    assert set(summary["reward_accuracy"]["tables"][0]["judges"]["dpo"]) == {"pooled", "harmless-base", "helpful-base"}
    with open(folder / "helpfulness_for_annotation.csv", encoding="utf-8-sig") as file:
        assert all("break" not in row["prompt"] for row in csv.DictReader(file))


class Scripted:
    """Stands in for a GPT: only its shape is asked for."""
    config = GPTConfig(vocab_size=260, block_size=100, n_layer=1, n_head=1, n_embd=8)


def test_a_reply_is_cut_at_the_next_human_turn_and_knows_how_it_ended(monkeypatch):
    config = load_config(["toy", "--device=cpu", "--eval.max_new_tokens=30"])
    tok = train_bpe(["Hello there, I can help."] * 5, 260)
    prompt, device = [Prompt("x-0", "all", HUMAN, [tok.eot_id, 1])], setup_device(config, training=False)

    def reply(text):
        monkeypatch.setattr("eval.replies.generate", lambda model, prompts, **settings: [tok.encode(text) for _ in prompts])
        return answer(Scripted(), tok, prompt, 1.0, config, device, "test")[0]
    assert (reply(" Hi.").text, reply(" Hi.").ended) == ("Hi.", True)
    invented = reply(f" Hi.{HUMAN} And?")
    assert (invented.text, invented.ended) == ("Hi.", False)
    assert not reply(" word" * 20).ended  # 30 tokens or more: cut off by the limit


def test_bad_input_is_one_sentence(tmp_path):
    argv, config, root, tok = experiment(tmp_path, "bad")
    for extra, problem in ((["--eval.toxicity=detoxify:big"], "eval.toxicity"), (["--eval.max_new_tokens=190"], "leaves only 2 tokens"),
                           (["--data.vocab_size=500"], "prepare_hh.py"), (["--name=other"], "train_dpo.py other")):
        with pytest.raises(UserError, match=problem):
            evaluation.main([*argv, *extra])
    (config.run_dir / "sft" / "best").rename(tmp_path / "away")
    with pytest.raises(UserError, match="train_sft.py"):
        evaluation.main(argv)
    stages(config, root, tok)
    model = load_model(config.run_dir / "sft" / "best")
    with torch.no_grad():
        model.wpe.weight += 1
    save_checkpoint(config.run_dir / "sft" / "best", model, tok, json.loads((tmp_path / "away" / "run.json").read_text()))
    with pytest.raises(UserError, match="did not start from"):  # SFT was trained again after DPO
        evaluation.main(argv)
