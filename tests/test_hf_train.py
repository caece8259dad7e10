"""DPO of a Hugging Face model with its own chat format, by the commands of the README: whole and by adapters, on one process and several."""
import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import train_dpo
from chat_tokenizer import load_chat_tokenizer
from runtime.checkpoint import find_checkpoint
from runtime.config import ROOT
from runtime.errors import UserError
from tests.test_chat_tokenizer import GPT4_CUTS, LLAMA, byte_level, with_start
from transformers import PreTrainedTokenizerFast

ENV = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
LORA = ["--lora.rank=4", "--lora.alpha=16", "--lora.frozen=float32"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a tiny Llama in the layout of the Hub, pairs in two formats, and prompts for samples."""
    root = tmp_path_factory.mktemp("hf")
    special = ["<|begin|>", "<|end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tok = with_start(byte_level(special, cuts=GPT4_CUTS), "<|begin|>")
    hf = PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|end|>", chat_template=LLAMA)
    hf.save_pretrained(root / "model")
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(hf), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                                                     num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.1))
    lm.save_pretrained(root / "model")
    rng = np.random.default_rng(0)
    words = "the quick brown fox jumps over lazy dogs well and fine thank you".split()
    say = lambda low, high: " ".join(rng.choice(words, rng.integers(low, high)))  # noqa: E731
    rows = []
    for i in range(90):
        question, good, bad = f"{say(2, 9)} {i}?", say(1, 15), say(1, 15) + " not"
        asked = [{"role": "user", "content": question}]
        rows.append({"prompt": question, "chosen": asked + [{"role": "assistant", "content": good}], "rejected": asked + [{"role": "assistant", "content": bad}]}
                    if i % 2 else {"prompt": question, "chosen": good, "rejected": bad})
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "prompts.txt").write_text("well, how are you?\nand the dogs?\nwhat is it?\n")
    return root


def arguments(place: Path, name: str, *more: str) -> list[str]:
    return ["toy", f"--name={name}", f"--out={place}/out", f"--model.init_from={place}/model", "--model.block_size=128", "--data.tokenizer=chat", f"--data.source={place}/pairs.jsonl",
            "--device=cpu", "--dtype=float32", "--threads=1", "--dpo.batch=8", "--dpo.max_steps=10", "--dpo.lr=3e-3", "--dpo.eval_every=5", "--dpo.log_every=1",
            "--dpo.save_every=4", "--dpo.micro_tokens=300", "--dpo.watch_prompts=0", "--eval.max_new_tokens=8", *more]


def run(place: Path, name: str, ranks: int, *more: str) -> list[dict]:
    argv = arguments(place, name, *more)
    subprocess.run([sys.executable, "data/prepare_pairs.py", *argv], cwd=ROOT, env=ENV, check=True, capture_output=True)
    python = [sys.executable] if ranks == 1 else [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone"]
    done = subprocess.run([*python, "train_dpo.py", *argv], cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return metrics(place, name)


def metrics(place: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (place / "out" / name / "dpo" / "metrics.jsonl").read_text().splitlines()]


def same(a: list[dict], b: list[dict], tolerance: float = 1e-5) -> None:
    assert [(row["step"], row["split"]) for row in a] == [(row["step"], row["split"]) for row in b]
    for x, y in zip(a, b):
        for key in ("loss", "rewards/chosen", "rewards/rejected", "rewards/margin"):
            assert x[key] == pytest.approx(y[key], abs=tolerance), (x["step"], key)


@pytest.fixture(scope="module")
def whole(place) -> list[dict]:
    return run(place, "whole", 1)


@pytest.fixture(scope="module")
def adapted(place) -> list[dict]:
    return run(place, "adapted", 1, *LORA, f"--dpo.samples_file={place}/prompts.txt", "--dpo.max_steps=0", "--dpo.epochs=2")


def test_it_starts_at_ln_2_and_learns(whole, adapted):
    for curve in (whole, adapted):
        assert curve[0]["loss"] == pytest.approx(math.log(2), abs=1e-5) and curve[1]["loss"] == pytest.approx(math.log(2), abs=1e-4)
        assert curve[-1]["rewards/margin"] > 0.02


@pytest.mark.parametrize("ranks, engine", [(2, "fsdp"), pytest.param(2, "ddp", marks=pytest.mark.long), pytest.param(4, "fsdp", marks=pytest.mark.long)])
def test_whole_model_on_several_processes(place, whole, ranks, engine):
    name = f"whole_{engine}{ranks}"
    same(whole, run(place, name, ranks, f"--scale.parallel={engine}", "--scale.checkpointing"))
    a, b = (AutoModelForCausalLM.from_pretrained(place / "out" / run_ / "dpo" / "last").state_dict() for run_ in ("whole", name))
    assert max((a[k] - b[k]).abs().max().item() for k in a) < 1e-4


@pytest.mark.parametrize("ranks, engine", [pytest.param(2, "ddp", marks=pytest.mark.long), (2, "fsdp")])
def test_adapters_on_several_processes(place, adapted, ranks, engine):
    name = f"adapted_{engine}{ranks}"
    same(adapted, run(place, name, ranks, *LORA, f"--dpo.samples_file={place}/prompts.txt", "--dpo.max_steps=0", "--dpo.epochs=2", f"--scale.parallel={engine}"))
    for epoch in (0, 1, 2):  # the same words on any number of ranks
        file = f"inference/samples_epoch_{epoch:02d}.csv"
        assert (place / "out" / "adapted" / file).read_bytes() == (place / "out" / name / file).read_bytes()


def test_samples_before_training_and_after_every_epoch(place, adapted, monkeypatch):
    folder = place / "out" / "adapted" / "inference"
    assert sorted(path.name for path in folder.glob("*.csv")) == ["samples_epoch_00.csv", "samples_epoch_01.csv", "samples_epoch_02.csv"]
    first, last = (list(csv.DictReader((folder / f"samples_epoch_{k:02d}.csv").open())) for k in (0, 2))
    assert [row["prompt"] for row in first] == ["well, how are you?", "and the dogs?", "what is it?"] and [r["response"] for r in first] != [r["response"] for r in last]
    argv = arguments(place, "adapted", *LORA, f"--dpo.samples_file={place}/prompts.txt", "--dpo.max_steps=0", "--dpo.epochs=2")
    # a resumed run whose base file is gone must not fill it with the trained model's words
    before = (folder / "samples_epoch_00.csv").read_bytes()
    (folder / "samples_epoch_00.csv").unlink()
    run_json = find_checkpoint(place / "out/adapted/dpo/last") / "run.json"
    run_json.write_text(run_json.read_text().replace('"finished": true', '"finished": false'))
    train_dpo.main(argv)
    assert (folder / "samples_epoch_00.csv").read_bytes() == before


def test_adapters_off_is_the_starting_model_after_training(place, adapted):
    from hf_model import load_causal_lm
    from lora import adapters_off, load_adapters
    base, model = (load_causal_lm(place / "model", 128, dtype=torch.float32).eval() for _ in range(2))
    load_adapters(model, place / "out/adapted/dpo/last")
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        trained = model.lm(ids).logits
        with adapters_off(model):
            assert (model.lm(ids).logits - base.lm(ids).logits).abs().max() < 1e-5
        assert (trained - base.lm(ids).logits).abs().max() > 1e-3


def test_peft_and_merge_give_the_trained_model(place, adapted, tmp_path):
    peft = pytest.importorskip("peft")
    ids, run_folder = torch.arange(5, 45)[None], place / "out/adapted/dpo/last"
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place / "model"), run_folder).eval()
    subprocess.run([sys.executable, "merge_adapters.py", str(run_folder), "--to", str(tmp_path / "merged"), "--dtype=float32"], cwd=ROOT, env=ENV, check=True, capture_output=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        assert (theirs(ids).logits - merged(ids).logits).abs().max() < 1e-5
    assert load_chat_tokenizer(tmp_path / "merged").hash == load_chat_tokenizer(place / "model").hash


@pytest.mark.parametrize("more", [[], LORA])
def test_killed_and_continued_is_the_same_run(place, whole, adapted, monkeypatch, more):
    name = "killed_lora" if more else "killed_whole"
    argv = arguments(place, name, *more)
    expected = run(place, f"{name}_not", 1, *more)
    real, seen = train_dpo.lr_at, []

    def kill_in_seventh(*a):
        seen.append(a)
        if len(seen) == 7:
            raise KeyboardInterrupt
        return real(*a)
    monkeypatch.setattr(train_dpo, "lr_at", kill_in_seventh)
    with pytest.raises(KeyboardInterrupt):
        train_dpo.main(argv)
    monkeypatch.setattr(train_dpo, "lr_at", real)
    train_dpo.main(argv)
    same(expected, metrics(place, name), 0)


def test_bfloat16_weights_pass_the_first_step_and_an_adapter_names_what_it_started_from(place, whole):
    """Rounded weights score a pair a little differently in micro-batches of another shape; that is no wrong reference."""
    import shutil
    shutil.copytree(place / "model", place / "sft_model", dirs_exist_ok=True)
    curve = run(place, "bf16", 1, "--lora.rank=4", f"--dpo.init_from={place}/sft_model", "--dpo.max_steps=2")
    assert curve[0]["loss"] == pytest.approx(math.log(2), abs=0.02)
    assert json.loads((place / "out/bf16/dpo/last/adapter_config.json").read_text())["base_model_name_or_path"] == f"{place}/sft_model"


@pytest.mark.parametrize("more, message", [
    (["--lora.rank=4", "--lora.dropout=0.1"], "lora.dropout must be 0"), (["--lora.rank=4", "--lora.targets=['nothing']"], "no linear layer of this model is called 'nothing'"),
    (["--lora.rank=4", "--lora.frozen=nf4"], "bitsandbytes|CUDA"), (["--model.block_size=512"], "more than the 256 positions"),
    (["--scale.optimizer=adamw8bit"], "needs a CUDA GPU"), (["--dpo.samples_file=nowhere.txt"], "holds no prompts")])
def test_bad_settings_are_one_sentence(place, whole, more, message):
    with pytest.raises(UserError, match=message):
        train_dpo.main(arguments(place, "bad", *more))
