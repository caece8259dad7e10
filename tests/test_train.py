"""Whole stages on a tiny model: exact resume, step 0, checkpoints that open elsewhere, and one sentence for every mistake."""
import json
import math
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

import train_dpo
import train_sft
from data.store import PairStore, StoreWriter
from generate import generate
from model import load_model
from objectives import make_pairs, pair_losses
from runtime.checkpoint import find_checkpoint, load_state, save_checkpoint
from runtime.config import ROOT, TrainConfig, load_config
from runtime.device import pick_dtype, setup_device
from runtime.errors import UserError
from runtime.optim import lr_at, make_optimizer, total_steps

pytestmark = pytest.mark.slow
TINY = ["toy", "--model.n_layer=1", "--model.n_head=2", "--model.n_embd=32", "--model.dropout=0.1", "--device=cpu", "--dtype=float32", "--threads=1",
        "--data.max_rows=300", "--data.vocab_size=400"]
SFT = ["--sft.max_steps=10", "--sft.batch=8", "--sft.eval_every=4", "--sft.save_every=5", "--sft.log_every=1", "--sft.eval_rows=16", "--sft.micro_tokens=600"]
DPO = ["--dpo.max_steps=10", "--dpo.batch=8", "--dpo.eval_every=4", "--dpo.save_every=5", "--dpo.log_every=1", "--dpo.eval_rows=16", "--dpo.micro_tokens=600",
       "--dpo.lr=1e-3"]


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """An output folder with data, SFT and DPO run to their ends, by the one command of the README."""
    out = tmp_path_factory.mktemp("out")
    subprocess.run([sys.executable, "train_dpo.py", *TINY, *SFT, *DPO, f"--out={out}"], cwd=ROOT, check=True, capture_output=True)
    return out


def command(out: Path, *more: str) -> list[str]:
    return [*TINY, *SFT, *DPO, f"--out={out}", *more]


def copy_without(done: Path, to: Path, *stages: str) -> Path:
    shutil.copytree(done, to)
    for stage in stages:
        shutil.rmtree(to / "toy" / stage)
    return to


def metrics(out: Path, stage: str) -> list[dict]:
    return [json.loads(line) for line in (out / "toy" / stage / "metrics.jsonl").read_text().splitlines()]


def same_state(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(a[k], b[k]) for k in a if k != "seconds")
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_state, a, b))
    return a == b


@pytest.mark.parametrize("stage, script", [("sft", train_sft), ("dpo", train_dpo)])
@pytest.mark.parametrize("killed_in", [7, 3])  # after and before the first save at step 5
def test_killed_and_continued_equals_uninterrupted_bit_for_bit(done, tmp_path, monkeypatch, stage, script, killed_in):
    out = copy_without(done, tmp_path / "out", *(("sft", "dpo") if stage == "sft" else ("dpo",)))
    real = script.lr_at

    def killed(step, *rest):
        if step == killed_in:
            raise KeyboardInterrupt
        return real(step, *rest)

    monkeypatch.setattr(script, "lr_at", killed)
    with pytest.raises(KeyboardInterrupt):
        script.main(command(out))
    assert (find_checkpoint(out / "toy" / stage / "last") is not None) == (killed_in == 7)
    monkeypatch.setattr(script, "lr_at", real)
    torch.manual_seed(12345)  # whatever else used the generators in between must not matter
    script.main(command(out))
    for which in ("last", "best"):
        assert (out / "toy" / stage / which / "model.safetensors").read_bytes() == (done / "toy" / stage / which / "model.safetensors").read_bytes()
    assert same_state(load_state(out / "toy" / stage / "last"), load_state(done / "toy" / stage / "last"))
    drop = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]  # noqa: E731
    assert drop(metrics(out, stage)) == drop(metrics(done, stage))  # no step missing, none twice


CURRICULUM = ["--name=curriculum", "--dpo.curriculum=staged", "--dpo.difficulty=edit", "--dpo.reference_update=1.0", "--dpo.stage_restart"]


def from_sft(done: Path) -> list[str]:
    return [f"--dpo.init_from={done / 'toy' / 'sft' / 'best'}"]


@pytest.mark.parametrize("update", ["1.0", "0.5"])
@pytest.mark.parametrize("killed_in", [4, 7, 9])  # stages begin at steps 4 and 7; checkpoints at 2, 4, 6, 8
def test_a_curriculum_resumes_in_the_middle_of_a_stage_bit_for_bit(done, tmp_path, monkeypatch, killed_in, update):
    argv = [*CURRICULUM, *from_sft(done), f"--dpo.reference_update={update}", "--dpo.save_every=2"]
    real = train_dpo.lr_at
    for name, kill in (("whole", None), ("killed", killed_in)):
        seen = []

        def watched(step, total, c):
            seen.append((step, total))
            if len(seen) == (kill or 99) + 1:
                raise KeyboardInterrupt
            return real(step, total, c)

        monkeypatch.setattr(train_dpo, "lr_at", watched)
        out = copy_without(done, tmp_path / name, "dpo")
        if kill:
            with pytest.raises(KeyboardInterrupt):
                train_dpo.main(command(out, *argv))
            monkeypatch.setattr(train_dpo, "lr_at", real)
        train_dpo.main(command(out, *argv))
        if not kill:  # each stage has a schedule of its own
            assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (0, 3), (1, 3), (2, 3), (0, 3), (1, 3), (2, 3)]
    whole, killed = (tmp_path / name / "curriculum" / "dpo" for name in ("whole", "killed"))
    assert (whole / "last/model.safetensors").read_bytes() == (killed / "last/model.safetensors").read_bytes()
    assert same_state(load_state(whole / "last"), load_state(killed / "last"))
    drop = lambda path: [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in (path / "metrics.jsonl").read_text().splitlines()]  # noqa: E731
    assert drop(whole) == drop(killed) and [row["stage"] for row in drop(whole) if row["split"] == "train"] == [1] * 4 + [2] * 3 + [3] * 3
    starts = {row["step"]: row["rewards/margin"] for row in drop(whole) if row["split"] == "train"}
    assert abs(starts[1]) < 1e-4 and (abs(starts[5]) < 1e-4 and abs(starts[8]) < 1e-4) == (update == "1.0")  # a replaced reference: rewards begin at 0


def test_a_mixed_reference_is_the_mean_of_the_weights(done, tmp_path):
    out = copy_without(done, tmp_path / "out", "dpo")
    train_dpo.main(command(out, *CURRICULUM, *from_sft(done), "--dpo.reference_update=0.25", "--dpo.max_steps=2", "--dpo.stages=2", "--dpo.save_every=1", "--dpo.stage_restart=False"))
    mixed = load_model(out / "curriculum" / "dpo" / "reference_1").state_dict()
    first = load_model(done / "toy" / "sft" / "best").state_dict()
    moved = [(mixed[k] - first[k]).abs().max().item() for k in first]
    assert 0 < max(moved) <= 0.25 * 1.01e-3  # AdamW's first step moves a weight by lr at most (decay comes on top of 1e-3 x .1 x weight)


def test_dry_run_shows_the_order_and_leaves_everything_alone(done, tmp_path, capsys):
    out = copy_without(done, tmp_path / "out", "sft", "dpo")
    train_dpo.main(command(out, "--dry-run", "--dpo.curriculum=staged", "--dpo.difficulty=edit", "--dpo.stages=2"))
    said = capsys.readouterr().out
    assert "stage 1 (part 1 of 2, edit" in said and "steps 5 to 9" in said and "first source rows" in said
    assert not (out / "toy" / "sft").exists() and not (out / "toy" / "dpo").exists()  # no model was needed
    out = copy_without(done, tmp_path / "with_model", "dpo")
    train_dpo.main(command(out, "--dry-run", "--dpo.curriculum=hardest_last", "--dpo.difficulty=margin"))
    assert "pass 1, sorted" in capsys.readouterr().out and not (out / "toy" / "dpo").exists()


def test_level_without_levels_and_a_step_of_one_pair_are_refused(done, tmp_path):
    out = copy_without(done, tmp_path / "out", "dpo")
    with pytest.raises(UserError, match="says no levels"):
        train_dpo.main(command(out, "--dpo.curriculum=staged"))
    with pytest.raises(UserError, match="kto compares the pairs of a step, and a step of this plan has only one"):
        train_dpo.main(command(out, "--dpo.objective=kto", "--dpo.max_pairs=9"))
    assert not (out / "toy" / "dpo").exists()


def test_step_0_of_dpo(done):
    first = metrics(done, "dpo")[:2]
    assert [(r["step"], r["split"]) for r in first] == [(0, "val"), (1, "train")]
    for row in first:
        assert row["loss"] == pytest.approx(math.log(2), abs=5e-4)
        assert abs(row["rewards/chosen"]) < 1e-3 and abs(row["rewards/rejected"]) < 1e-3
    assert metrics(done, "dpo")[-1]["rewards/margin"] != 0


def test_step_0_check_catches_a_wrong_reference(done, tmp_path):
    out = copy_without(done, tmp_path / "out", "dpo")
    for cache in (out / "data" / "reference").rglob("train.npy"):
        np.save(cache, np.load(cache) - 0.5)
    with pytest.raises(UserError, match="step 0: the policy's log-probs differ from the reference's by up to 0.5"):
        train_dpo.main(command(out))


def test_reference_is_cached_and_only_what_is_needed_is_computed(done):
    cache, = (done / "data" / "reference").rglob("train.npy")
    logps = np.load(cache)
    assert 0 < np.isfinite(logps[:, 0]).sum() <= 80 < len(logps)  # 10 steps of 8 pairs


def test_the_same_command_on_a_finished_run_does_nothing(done):
    before = {p: p.stat().st_mtime_ns for p in (done / "toy").rglob("*.safetensors")}
    train_dpo.main(command(done))
    assert before == {p: p.stat().st_mtime_ns for p in (done / "toy").rglob("*.safetensors")}


def test_checkpoints_open_with_transformers_and_give_our_ids_and_logits(done):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from model import load_model
    from tokenizer import encode_prompt, load_tokenizer
    folder = done / "toy" / "dpo" / "best"
    theirs, tok = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ours, mine = load_model(folder), load_tokenizer(folder)
    prompt = "\n\nHuman: What is <|endoftext|>?\n\nAssistant:"
    ids, _ = encode_prompt(mine, prompt)
    assert tok(prompt)["input_ids"] == ids
    with torch.no_grad():
        x = torch.tensor([ids])
        mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()[None, None]
        logits = ours.logits(ours.hidden(x, torch.arange(len(ids))[None], mask))
        assert (theirs(x).logits - logits).abs().max() < 1e-4
        reply, = generate(ours, [ids], max_new_tokens=40, eot_id=mine.eot_id, temperature=0)
        generated = theirs.generate(x, max_new_tokens=40, do_sample=False)[0, len(ids):].tolist()
    assert generated[:len(reply)] == reply and (len(generated) == len(reply) or generated[len(reply)] == mine.eot_id)
    assert (folder / "README.md").read_text() and json.loads((folder / "run.json").read_text())["stage"] == "dpo"


def test_changed_settings_are_refused_and_fresh_starts_over(done, tmp_path):
    out = copy_without(done, tmp_path / "out")
    with pytest.raises(UserError, match=r"dpo.beta 0.3 -> 0.5.*--fresh"):
        train_dpo.main(command(out, "--dpo.beta=0.5"))
    train_dpo.main(command(out, "--dpo.micro_tokens=300"))  # does not change what is computed
    train_dpo.main(command(out, "--dpo.beta=0.5", "--fresh"))
    assert json.loads((out / "toy/dpo/last/run.json").read_text())["config"]["dpo"]["beta"] == 0.5


def test_resume_insists(done, tmp_path):
    out = copy_without(done, tmp_path / "out", "dpo")
    with pytest.raises(UserError, match="--resume: there is no checkpoint"):
        train_dpo.main(command(out, "--resume"))


@pytest.mark.parametrize("objective", ["dpop", "simpo", "dpo + 0.2 nll", "lddpo", "wpo", "kto", "aot", "bco"])
def test_objectives_of_every_kind_train(done, tmp_path, objective):
    """With a reference and without, sums, token weights, pair weights, whole steps, running means: finite, and the model moves."""
    out = copy_without(done, tmp_path / "out", "dpo")
    train_dpo.main(command(out, f"--dpo.objective={objective}", "--dpo.max_steps=4", "--dpo.watch_prompts=0"))
    rows = metrics(out, "dpo")
    assert len(rows) == 4 + 1 + 1 and all(math.isfinite(row["loss"]) for row in rows) and rows[-1]["rewards/margin"] != rows[0]["rewards/margin"]
    references = list((out / "data" / "reference").glob("*/train.npy"))
    assert len(references) == (2 if objective == "lddpo" else 1)  # `done` left one; token weights make another, the others reuse it or need none


@pytest.mark.parametrize("objective", ["dpo", "kto", "aot"])
def test_a_step_does_not_depend_on_its_micro_batches(done, tmp_path, objective):
    weights = []
    for tokens in (250, 100_000):
        out = copy_without(done, tmp_path / str(tokens), "dpo")
        train_dpo.main(command(out, f"--dpo.objective={objective}", f"--dpo.micro_tokens={tokens}", "--dpo.max_steps=3", "--dpo.watch_prompts=0"))
        weights.append(torch.cat([p.flatten() for p in load_model(out / "toy/dpo/last").parameters()]))
    assert (weights[0] - weights[1]).norm() / weights[1].norm() < 1e-5


def test_difficulty_is_that_of_whole_replies_whatever_the_loss_makes_of_their_tails(done, tmp_path, capsys):
    """Trap: LD-DPO's weights in the margins would sort pairs by how much their lengths differ."""
    shown = []
    for objective in (["dpo"], ["lddpo", "--dpo.alpha=0.1"]):
        out = copy_without(done, tmp_path / objective[0], "dpo")
        capsys.readouterr()
        train_dpo.main(command(out, "--dry-run", "--dpo.curriculum=hardest_last", "--dpo.difficulty=margin", f"--dpo.objective={objective[0]}", *objective[1:]))
        shown.append([line for line in capsys.readouterr().out.splitlines() if "first source rows" in line])
    assert shown[0] == shown[1] != []


def test_whole_step_objectives_need_two_validation_pairs(done, tmp_path):
    with pytest.raises(UserError, match="validation needs at least two"):
        train_dpo.main(command(copy_without(done, tmp_path / "out", "dpo"), "--dpo.objective=kto", "--dpo.eval_rows=1"))


def test_beta_dpo_is_validated_as_plain_dpo_whatever_its_running_mean(done):
    """Trap: `best` was chosen by losses under another M at every validation."""
    config = load_config(command(done, "--dpo.objective=beta_dpo"))
    data = next((done / "data").glob("*/val")).parent
    store, model = PairStore(data / "val"), load_model(done / "toy/dpo/last").eval()
    reference = np.random.default_rng(0).normal(-30, 3, (len(store), 2)).astype(np.float32)
    losses = [train_dpo.validate(model, store, reference, np.arange(len(store)), config, settings, setup_device(config))["loss"]
              for settings in ({"beta": 0.1, "mean": 0.0}, {"beta": 0.1, "mean": 3.0})]
    config.dpo.objective = "dpo"
    plain = train_dpo.validate(model, store, reference, np.arange(len(store)), config, {"beta": 0.1}, setup_device(config))["loss"]
    assert losses == pytest.approx([plain, plain], abs=1e-7)


@pytest.mark.parametrize("objective", ["beta_dpo", "bco"])
def test_running_means_survive_a_kill(done, tmp_path, monkeypatch, objective):
    """5 + resume + 5 = 10, bit for bit, for objectives with a state of their own."""
    more = [f"--dpo.objective={objective}", "--dpo.watch_prompts=0"]
    whole, killed = copy_without(done, tmp_path / "whole", "dpo"), copy_without(done, tmp_path / "killed", "dpo")
    train_dpo.main(command(whole, *more))
    real, calls = train_dpo.update, iter(range(100))
    monkeypatch.setattr(train_dpo, "update", lambda *a: real(*a) if next(calls) < 7 else (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train_dpo.main(command(killed, *more))
    monkeypatch.setattr(train_dpo, "update", real)
    train_dpo.main(command(killed, *more))
    states = [load_state(find_checkpoint(out / "toy/dpo/last")) for out in (whole, killed)]
    assert states[0]["means"] == states[1]["means"] != {} and same_state(*states)
    assert (whole / "toy/dpo/last/model.safetensors").read_bytes() == (killed / "toy/dpo/last/model.safetensors").read_bytes()


def test_pairs_an_objective_must_not_see(tmp_path):
    for name, fields in (("false", {"chosen_is_true": False}), ("plain", {})):
        with StoreWriter(tmp_path / name, 97) as writer:
            writer.add([1, 2], bytes(2), [3, 4], [5], **fields)
            writer.close({})
    for objective in ("dpop", "dpo + 0.2 nll"):
        with pytest.raises(UserError, match="in 1 pairs it is known to be false"):
            train_dpo.check_pairs(objective, PairStore(tmp_path / "false"))
    train_dpo.check_pairs("dpo", PairStore(tmp_path / "false"))
    train_dpo.check_pairs("dpop", PairStore(tmp_path / "plain"))
    with pytest.raises(UserError, match="needs a margin"):
        train_dpo.check_pairs("odpo", PairStore(tmp_path / "plain"))


def test_a_loss_that_explodes_stops_the_run_and_keeps_the_last_checkpoint(done, tmp_path, monkeypatch):
    out = copy_without(done, tmp_path / "out", "sft", "dpo")
    real = train_sft.sft_loss
    calls = iter(range(10**6))
    monkeypatch.setattr(train_sft, "sft_loss", lambda logps, count: real(logps * (math.nan if next(calls) >= 12 else 1), count))
    with pytest.raises(UserError, match=r"the loss became nan at step \d+: lower --sft.lr; the last checkpoint"):
        train_sft.main(command(out))
    state = load_state(find_checkpoint(out / "toy/sft/last"))
    assert state["step"] == 5
    monkeypatch.setattr(train_sft, "sft_loss", real)
    train_sft.main(command(out))
    assert (out / "toy/sft/last/model.safetensors").read_bytes() == (done / "toy/sft/last/model.safetensors").read_bytes()


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(done, tmp_path):
    """A file-size limit is what a full disk looks like to a process: the first write beyond it fails."""
    out = copy_without(done, tmp_path / "out", "dpo")
    before = (out / "toy/sft/last/model.safetensors").read_bytes()
    code = ("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000)); "
            "from runtime.errors import run_main; import train_dpo; run_main(train_dpo.main)")
    failed = subprocess.run([sys.executable, "-c", code, *command(out)], cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 2, failed.stderr[-2000:]
    assert [line for line in failed.stderr.splitlines() if line.startswith("error: the disk is full")] and "Traceback" not in failed.stderr
    assert not list(out.rglob("*.tmp")) and (out / "toy/sft/last/model.safetensors").read_bytes() == before


def test_a_kill_between_the_two_renames_leaves_last_old(done, tmp_path):
    out = copy_without(done, tmp_path / "out")
    last = out / "toy/dpo/last"
    last.rename(last.with_name("last.old"))
    assert find_checkpoint(last) == last.with_name("last.old")
    train_dpo.main(command(out))  # finds it finished


@pytest.mark.parametrize("more, words", [
    (["--data.source=/nowhere"], "/nowhere"),
    (["--dpo.bta=1"], "did you mean 'beta'"),
    (["--dpo.objective=dop"], "unknown objective 'dop'; known: dpo, cdpo"),
    (["--dpo.objective=dpo", "--dpo.penalty=5"], "dpo has no penalty; it has beta"),
    (["--dpo.objective=cdpo", "--dpo.label_smoothing=.7"], "label_smoothing must be in [0, .5), not 0.7"),
    (["--sft.loss_on=replies"], "is not one of all, assistant, response"),
    (["--model.block_size=16"], "block"),
    (["--model.n_head=3"], "multiple of model.n_head"),
    (["--model.init_from=./nothing"], "no model folder"),
    (["--device=cuda"] if not torch.cuda.is_available() else ["--device=tpu"], "not available here"),
    (["--dtype=float8"], "is not one of auto"),
])
def test_bad_input_is_one_clear_sentence(tmp_path, capsys, more, words):
    script = train_dpo if any("dpo" in m for m in more) else train_sft
    failed = subprocess.run([sys.executable, f"{script.__name__}.py", *command(tmp_path, *more)], cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 2, failed.stderr[-3000:]
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert any(words in line for line in errors) and "Traceback" not in failed.stderr


def test_a_checkpoint_of_another_shape_is_named(done, tmp_path):
    out = copy_without(done, tmp_path / "out", "dpo")
    with pytest.raises(UserError, match="another shape.*--model.n_layer=1"):
        train_dpo.main(command(out, f"--dpo.init_from={done}/toy/sft/best", "--model.n_layer=2"))
    with pytest.raises(UserError, match="needs|tokens"):
        train_dpo.main(command(out, f"--dpo.init_from={done}/toy/sft/best", "--data.vocab_size=500", "--data.max_rows=299"))


def test_dtype_goes_by_compute_capability():
    assert pick_dtype("cuda", (7, 5), True)[0] == "float16"  # a T4, where is_bf16_supported() answers True
    assert pick_dtype("cuda", (8, 0), False)[0] == "bfloat16"
    assert pick_dtype("cpu", None, True)[0] == "bfloat16" and pick_dtype("cpu", None, False)[0] == "float32"
    assert pick_dtype("mps", None, False)[0] == "float32"


def test_schedule_and_decay_groups():
    c = TrainConfig(lr=1.0, min_lr=0.1, warmup=0.1, batch=10, epochs=2.0)
    assert total_steps(c, 95) == 20 and total_steps(TrainConfig(max_steps=3), 10**6) == 3
    assert [lr_at(s, 20, c) for s in (0, 1)] == [0.5, 1.0]
    assert lr_at(11, 20, c) == pytest.approx(0.1 + 0.9 * 0.5)  # half-way down the cosine: steps 2..20
    assert lr_at(20, 20, c) == pytest.approx(0.1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    matrices, rest = make_optimizer(model, c).param_groups
    assert [p.dim() for p in matrices["params"]] == [2] and {p.dim() for p in rest["params"]} == {1}
    assert matrices["weight_decay"] == 0.1 and rest["weight_decay"] == 0.0


def test_feeds_read_metrics(done):
    pytest.importorskip("tensorboard")
    subprocess.run([sys.executable, "-m", "runtime.feeds", str(done / "toy"), "--to", "tensorboard"], cwd=ROOT, check=True, capture_output=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(done / "toy" / "tensorboard" / "dpo"))
    events.Reload()
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx([r["loss"] for r in metrics(done, "dpo") if r["split"] == "train"], rel=1e-6)


def test_sample_prints_a_reply(done):
    command = [sys.executable, "sample.py", str(done / "toy/sft/best"), "How do I paint the door of my own shed?", "--samples=2", "--max_new_tokens=12"]
    first = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert first.strip() and first == subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_the_check_of_the_first_step_allows_for_rounding_and_says_how_much():
    """A bfloat16 model's log-probs of 300 tokens differ by half a nat between batches of two shapes."""
    logps = [torch.tensor([-900.0, -900.0]) for _ in range(4)]
    for gap, allowed in ((0.6, True), (2.0, False)):
        p = make_pairs(logps[0] - gap, *logps[1:], *[torch.tensor([300.0, 300.0])] * 2)
        stopped = nullcontext() if allowed else pytest.raises(UserError, match="rounding explains 1.7321")
        with stopped:
            train_dpo.check_first_step(p, pair_losses(p, "dpo", {"beta": 0.1}), "dpo", {"beta": 0.1}, exact=False)


def test_the_check_of_the_first_step_stops_what_is_not_a_number_and_what_is_another_reference():
    logps = [torch.tensor([-10.0, -12.0]) for _ in range(4)]
    def check(chosen):
        p = make_pairs(torch.tensor(chosen), *logps[1:], *[torch.tensor([4.0, 5.0])] * 2)
        train_dpo.check_first_step(p, pair_losses(p, "dpo", {"beta": 0.1}), "dpo", {"beta": 0.1}, exact=True)
    check([-10.0, -12.0])
    for chosen in ([-10.0, float("nan")], [-10.0, -12.01]):
        with pytest.raises(UserError, match="differ from the reference"):
            check(chosen)
