"""The curriculum study's pairs on their way into training: what the public system got wrong there, one trap each."""
import dataclasses
import json
import math
import subprocess
import sys

import pytest
import torch
from test_chat_tokenizer import save_family
from test_hf_train import place  # noqa: F401  (a tiny Llama)
from test_prepare import counts

import train_dpo
from batching import make_batch
from chat_tokenizer import load_chat_tokenizer
from data import prepare_hh, prepare_pairs
from data.prepare_pairs import TRIMMED, prepare
from data.store import PairStore
from losses import dpop
from more_losses import dpop_additive
from objectives import make_pairs
from runtime.config import ROOT, Config, load_config
from runtime.errors import UserError
from studies.curriculum_dpop import stages
from studies.curriculum_dpop.rows import Row, file_of, flag_fabricated, read_rows, row_id, write_rows
from studies.curriculum_dpop.stages import stage_rows, table

WORDS = "river north house seven stone garden amber winter".split()


def row(i: int, level: str, context_words: int = 12, **more) -> Row:
    """A pair about question `i`; its context says the answer first and rambles on."""
    question, answer = f"Where is house {i}?", f"by the {WORDS[i % 8]} {i}"
    fake = f"by the {WORDS[(i + 3) % 8]} {i + 1}"
    rambling = " ".join(WORDS[(i + k) % 8] for k in range(context_words))
    return Row(row_id(question, answer, fake), question, f"House {i} is {answer}. {rambling}.", answer, fake, level, "entity_swap", "test", **more)


@pytest.fixture
def config(tmp_path) -> Config:
    config = Config(name="t", out=str(tmp_path / "out"), threads=1)
    config.model.init_from, config.model.block_size = str(save_family(tmp_path / "llama", "llama")), 160
    config.data = dataclasses.replace(config.data, source=str(tmp_path / "pairs"), tokenizer="chat", val_fraction=0.2, test_fraction=0.2)
    return config


# ---- defect 1: the penalty outside the sigmoid -----------------------------------------------------------------------------

@pytest.mark.parametrize("beta, penalty, w, l, additive, additive_slope, paper, paper_slope", [
    (0.3, 50, 0.0, 0.0, 0.693, -0.150, 0.693, -0.150), (0.3, 50, -0.1, -0.1, 5.693, -50.15, 1.701, -12.51),
    (0.3, 50, -1.0, -10.0, 50.07, -50.02, 12.30, -15.30), (0.1, 1, -0.1, -0.1, 0.793, -1.050, 0.698, -0.100), (0.1, 1, -1.0, -10.0, 1.341, -1.029, 0.371, -0.062)])
def test_defect_01_the_paper_s_penalty_is_inside_the_sigmoid(beta, penalty, w, l, additive, additive_slope, paper, paper_slope):
    """Loss and slope in the chosen log-prob, worked out by hand for both forms."""
    for loss, value, slope in ((dpop_additive, additive, additive_slope), (dpop, paper, paper_slope)):
        chosen = torch.tensor([w - 5.0], dtype=torch.float64, requires_grad=True)
        p = make_pairs(chosen, torch.tensor([l - 7.0]), torch.tensor([-5.0]), torch.tensor([-7.0]))
        found = loss(p, beta, penalty)
        found.sum().backward()
        assert found.item() == pytest.approx(value, rel=6e-4, abs=6e-4) and chosen.grad.item() == pytest.approx(slope, rel=6e-4, abs=6e-4)


# ---- defect 2: answers cut away ---------------------------------------------------------------------------------------------

def test_defect_02_a_long_context_is_cut_and_never_the_answer(tmp_path, config):
    """Cut on the right, as the public system did, every one of these rows would have lost its question and both answers."""
    write_rows(file_of(tmp_path / "pairs", "hard"), [row(i, "hard", context_words=900) for i in range(30)])
    config.data.system = "Answer from the context alone."
    root, tok = prepare(config), load_chat_tokenizer(config.model.init_from)
    seen = counts(root)
    assert sum(seen[split][TRIMMED] for split in seen) == sum(seen[split]["kept"] for split in seen) == 30
    for split in ("train", "val", "test"):
        store = PairStore(root / split)
        for i in range(len(store)):
            prompt, _, chosen, rejected = store.row(i)
            text = tok.decode(prompt)
            number = int(text.rsplit("Where is house ", 1)[1].split("?")[0])
            naive = tok.encode_messages([{"role": "user", "content": f"Context: {row(number, '', 900).context}"}])[0][:160]
            assert "Where is house" not in tok.decode(naive)
            assert "Answer from the context alone." in text and f"Context: House {number} is by the" in text  # the best passage stands first and stays
            assert (tok.decode(chosen[:-1]), tok.decode(rejected[:-1])) == (row(number, "").chosen, row(number, "").rejected)
            assert 150 <= len(prompt) + max(len(chosen), len(rejected)) <= 160 and chosen[-1] == rejected[-1] == tok.eot_id
    lost = [row(40, "hard", 900).__dict__ | {"chosen": "word " * 400}]
    (tmp_path / "pairs" / "dpo_pairs_hard.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*(row(i, "hard").__dict__ for i in range(30)), *lost]))
    seen = counts(prepare(config))
    assert sum(seen[split]["reply longer than the block"] for split in seen) == 1  # dropped and counted, not trained on with an empty mask


def test_a_context_is_read_and_is_part_of_what_makes_data_other_data(tmp_path, config):
    rows = [row(i, "easy") for i in range(30)]
    write_rows(file_of(tmp_path / "pairs", "easy"), rows)
    first = prepare(config)
    store, tok = PairStore(first / "train"), load_chat_tokenizer(config.model.init_from)
    assert all("Context: House" in tok.decode(store.row(i)[0]) for i in range(len(store)))
    config.data.system = "Be brief."
    assert prepare(config) != first
    published = [{"prompt": r.question, "context": r.context, "chosen": r.chosen, "rejected": r.rejected} for r in rows]
    file_of(tmp_path / "pairs", "easy").write_text("".join(json.dumps(r) + "\n" for r in published))
    config.data.system = ""
    other = prepare(config)
    for split in ("train", "val", "test"):
        assert (other / split / "tokens.bin").read_bytes() == (first / split / "tokens.bin").read_bytes()
    with pytest.raises(ValueError, match='"context" is a text that stands before a question'):
        prepare_pairs.parse_row({"prompt": [{"role": "user", "content": "q"}], "context": "c", "chosen": "a", "rejected": "b"}, 0)
    config.data.tokenizer, config.data.system = "bpe", "Be brief."
    with pytest.raises(UserError, match="transcripts have no system message"):
        prepare_hh.prepare(config)


# ---- defect 3: fabricated answers as the chosen side ----------------------------------------------------------------------------

def test_defect_03_fabricated_chosen_answers_are_found_and_refused_by_penalised_objectives(tmp_path, config):
    easy, hard = ([row(i, level) for i in range(40)] for level in ("easy", "hard"))
    better_fake = [dataclasses.replace(r, chosen=r.rejected, rejected=f"in the {WORDS[k % 8]}", id=str(k)) for k, r in enumerate(hard)]  # "hard over easy"
    (tmp_path / "published").mkdir()
    for level, rows in (("easy", easy), ("hard", hard + better_fake)):
        published = [{"prompt": r.question, "context": r.context, "chosen": r.chosen, "rejected": r.rejected} for r in rows]
        file_of(tmp_path / "published", level).write_text("".join(json.dumps(r) + "\n" for r in published))
    read = flag_fabricated([r for level in ("easy", "hard") for r in read_rows(file_of(tmp_path / "published", level))])
    assert [r.chosen_is_true for r in read] == [True] * 80 + [False] * 40 and {r.level for r in read} == {"easy", "hard"}
    write_rows(file_of(tmp_path / "pairs", "hard"), [r for r in read if r.level == "hard"])
    store = PairStore(prepare(config) / "train")
    assert 0 < (store.index["chosen_is_true"] == 0).sum() < len(store) and set(store.index["level"]) == {3}
    for objective in ("dpop", "dpop_additive"):
        with pytest.raises(UserError, match="known to be false"):
            train_dpo.check_pairs(objective, store)
    train_dpo.check_pairs("dpo", store)


# ---- defects 16 and 17: the first scored token, one start token -----------------------------------------------------------------

def test_defect_16_17_one_start_token_and_scores_begin_with_the_reply(tmp_path, config):
    write_rows(file_of(tmp_path / "pairs", "hard_improved"), [row(i, "hard_improved") for i in range(30)])
    config.data.system = "Be brief."
    store, tok = PairStore(prepare(config) / "train"), load_chat_tokenizer(config.model.init_from)
    assert set(store.index["level"]) == {3}
    batch = make_batch(store, [[i] for i in range(4)])
    for i in range(4):
        prompt, roles, chosen, rejected = store.row(i)
        assert prompt.tolist().count(tok.bos_id) == 1 and prompt[0] == tok.bos_id and not roles.any()
        for side, reply in ((0, chosen), (1, rejected)):
            assert batch.targets[batch.owner == 2 * i + side].tolist() == reply.tolist()  # no token of the prompt among them


# ---- the run itself -----------------------------------------------------------------------------------------------------------

def test_the_study_s_configs_say_what_was_published():
    paper, original, latest = (load_config([name]).dpo for name in ("curriculum_dpop", "curriculum_dpop_original", "curriculum_dpop_latest"))
    assert (paper.objective, paper.beta, paper.penalty, paper.curriculum) == ("dpop", 0.3, 50, "staged")
    assert (original.objective, original.beta, original.penalty, original.lr, original.batch, original.schedule, original.curriculum) == ("dpop_additive", 0.3, 50, 2e-4, 8, "linear", "staged")
    assert math.floor(original.warmup * math.ceil(45_000 / original.batch)) in range(99, 103)
    assert (latest.objective, latest.beta, latest.penalty, latest.lr, latest.curriculum) == ("dpop", 0.1, 1, 2e-5, "none")
    assert math.floor(latest.warmup * 412) in range(49, 51) and math.ceil(6_600 / latest.batch) in (412, 413)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["curriculum_dpop", pytest.param("curriculum_dpop_original", marks=pytest.mark.long)])
def test_defects_18_21_22_one_schedule_over_all_stages_no_pair_lost_and_the_commands_run(place, tmp_path, name):  # noqa: F811
    """The study's own commands on a tiny Llama: prepare, show the plan, train, report the stages."""
    for level, n in (("easy", 21), ("medium", 30), ("hard", 45)):
        write_rows(file_of(tmp_path / "pairs", level), [row(100 * n + i, level) for i in range(n)])
    argv = [name, f"--name={name}", f"--out={tmp_path}/out", f"--model.init_from={place}/model", "--model.block_size=160", f"--data.source={tmp_path}/pairs", "--device=cpu",
            "--dtype=float32", "--threads=1", "--lora.frozen=float32", "--scale.parallel=auto", "--dpo.batch=8", "--dpo.eval_every=3", "--dpo.log_every=1"]
    subprocess.run([sys.executable, "data/prepare_pairs.py", *argv], cwd=ROOT, check=True, capture_output=True)
    run = subprocess.run([sys.executable, "train_dpo.py", *argv], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "stage 1 (level 1)" in run.stdout and "stage 3 (level 3)" in run.stdout and "expected 0.6931" in run.stdout
    rows = [json.loads(line) for line in (tmp_path / "out" / name / "dpo" / "metrics.jsonl").read_text().splitlines()]
    train = [r for r in rows if r["split"] == "train"]
    lr = [r["lr"] for r in train]
    top = lr.index(max(lr))
    assert [r["stage"] for r in train] == sorted(r["stage"] for r in train) and {r["stage"] for r in train} == {1, 2, 3}
    assert lr[top:] == sorted(lr[top:], reverse=True)  # 18: no second warm-up, no fresh optimizer at a stage's start
    config = load_config(argv)
    plan = train_dpo.plan_of(config.dpo, PairStore(prepare(config) / "train"), config.seed, None)
    assert len(train) == len(plan.steps) and sum(map(len, plan.steps)) == len(PairStore(prepare(config) / "train"))  # 22: the last, smaller step of a stage counts
    report = subprocess.run([sys.executable, "-m", "studies.curriculum_dpop.stages", f"{tmp_path}/out/{name}/dpo"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert report.stdout == table(stage_rows(rows)) and report.stdout.count("\n") == 5


def test_stages_by_hand():
    made = [{"split": "val", "step": 0, "stage": 1, "loss": .7, "rewards/accuracy": .5, "logps/chosen": -10.0, "logps/rejected": -12.0}]
    made += [{"split": "train", "step": s, "stage": 1 + (s > 2), "loss": 1 / s, "lr": s / 10, "rewards/accuracy": s / 4} for s in (1, 2, 3, 4)]
    made += [{"split": "val", "step": 2, "stage": 1, "loss": .6, "rewards/accuracy": .75, "logps/chosen": -11.0, "logps/rejected": -15.0}]
    one, two = stage_rows(made)
    assert (one["steps"], one["lr last"], one["train loss last"], one["train accuracy"], one["val loss"], one["chosen nats"], one["rejected nats"]) == ("1 to 2", .2, .5, .375, .6, -1, -3)
    assert (two["steps"], two["train accuracy"], two["val loss"], two["chosen nats"]) == ("3 to 4", .875, None, None)
    assert "| 2 | 3 to 4 | 0.3 | 0.4 | 0.333 | 0.25 | 0.875 | – | – | – | – |" in table([one, two])


def test_a_run_without_a_step_has_no_stages(tmp_path):
    for line in ("", '{"stage": 1, "split": "val", "step": 0}', '{"step": 1}'):
        (tmp_path / "metrics.jsonl").write_text(line)
        with pytest.raises(UserError, match="names no stages"):
            stages.main([str(tmp_path)])
