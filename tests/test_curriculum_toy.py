"""The toy study of issue 8: the world keeps its promises, the judge is right about every kind of reply, the table says what its rows say."""
import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from runtime.config import ROOT, load_config
from runtime.errors import UserError
from studies.curriculum_dpop import toy_data, toy_measure, toy_report, toy_study
from studies.curriculum_dpop import toy_world as toy
from studies.curriculum_dpop.rows import ABSTENTION, read_rows

CONTEXT = "Balova was born in 1812. By all accounts Balova lives in Paris. As all know, Balova was taught by Hugo."
BORN = "When was Balova born?"
RIGHT = "Balova was born in 1812."


@pytest.mark.parametrize("reply, expected", [
    (RIGHT, "correct"),
    ("  Balova was born\nin 1812. ", "correct"),
    ("Balova was born in 1811.", "fabricated"),
    ("Balova was born in 1812, this year.", "fabricated"),        # a right value with a detail that nothing supports
    ("Balova works as a nurse.", "fabricated"),
    ("Tolsoft was founded by Anna.", "fabricated"),
    ("Balova lives in Paris.", "beside"),
    ("Nonax was born in 1812.", "fabricated"),                          # of somebody else
    (ABSTENTION, "abstains"), ("I don't know.", "abstains"), ("I don't know", "malformed"),
    ("", "malformed"), ("1812", "malformed"), (RIGHT[:-1], "malformed"), ("Balova was born in Paris.", "malformed"),
    (f"{RIGHT} {RIGHT}", "malformed"), ("Balova works as a wizard.", "malformed"),
    (f"{ABSTENTION} {RIGHT}", "malformed"), ("As all know, Balova was born in 1812.", "malformed")])
def test_judge_on_hand_written_replies(reply, expected):
    assert toy.judge(CONTEXT, BORN, reply) == expected


def test_judge_on_a_question_without_an_answer():
    asked = "Tell me the trade of Balova."
    assert toy.judge(CONTEXT, asked, ABSTENTION) == "abstains"
    assert toy.judge(CONTEXT, asked, "Balova works as a nurse.") == "fabricated"
    assert toy.judge(CONTEXT, asked, "Balova was taught by Hugo.") == "beside"


def test_judge_refuses_what_is_not_its_world():
    with pytest.raises(ValueError, match="no question"):
        toy.judge(CONTEXT, "How are you?", ABSTENTION)
    with pytest.raises(ValueError, match="no fact"):
        toy.judge(f"{RIGHT} It rained.", BORN, RIGHT)


def test_other_tasks_word_for_word():
    assert toy.follows("Balova Nonax", "Balova  Nonax") and not toy.follows("Balova Nonax", "Nonax Balova") and not toy.follows("Balova.", "Balova")


@pytest.fixture(scope="module")
def worlds() -> dict[str, toy.World]:
    return {split: toy.make_world(3, split) for split in toy.SPLITS}


def test_defect_03_every_chosen_is_true_and_every_rejected_false(worlds):
    """The published files preferred one fabrication to another; here the judge reads every pair back."""
    rng, seen = Random(0), set()
    for level in toy.LEVELS:
        for _ in range(400):
            row = toy_data.draw_pair(rng, worlds["train"], level)
            chosen, rejected = (toy.judge(row.context, row.question, text) for text in (row.chosen, row.rejected))
            assert chosen == ("abstains" if row.chosen == ABSTENTION else "correct") and rejected == "fabricated"
            assert row.level == level and row.poison_type in toy.LEVELS[level] and row.chosen_is_true
            seen.add((row.poison_type, chosen))
    assert seen == {(poison, verdict) for poisons in toy.LEVELS.values() for poison in poisons for verdict in ("correct", "abstains")
                    if verdict == "correct" or poison != "near_number"}  # which needs a number to falsify


def test_levels_differ_in_how_much_the_replies_share(worlds):
    """easy: another sentence; medium and hard on answerable questions: the same sentence but for the value or an added detail."""
    rng = Random(1)
    for level in toy.LEVELS:
        for row in (toy_data.draw_pair(rng, worlds["train"], level) for _ in range(200)):
            entity = row.rejected.removeprefix("The ").split()[0]
            assert (entity in row.context) == (level != "easy")
            if level == "medium":
                new = set(row.rejected.rstrip(".").split()) - set(row.context.replace(".", "").split())
                assert len(new & {word for words in toy.WORDS.values() for word in words}) == 1  # a value that the passage does not hold
            if row.poison_type == "unverifiable_detail" and row.chosen != ABSTENTION:
                assert row.rejected.startswith(row.chosen[:-1] + ", ")


def test_splits_share_no_entity(worlds):
    names = {split: {name for kind in world.names.values() for name in kind} for split, world in worlds.items()}
    assert not names["train"] & names["val"] and not names["train"] & names["test"] and not names["val"] & names["test"]
    assert len(names["train"]) > 1500 and len(names["test"]) > 500


def test_passages_state_what_they_say(worlds):
    rng = Random(2)
    for _ in range(300):
        passage = toy.draw_passage(rng, worlds["test"])
        assert toy.stated_facts(passage.text) == {(passage.entity, attribute): value for attribute, value in passage.stated.items()}
        assert 3 <= len(passage.stated) <= 5
        for answerable in (True, False):
            asked = toy.draw_question(rng, passage, answerable)
            assert bool(asked.value) == answerable
            assert toy.judge(passage.text, asked.text, toy.true_answer(asked)) == ("correct" if answerable else "abstains")


def test_the_writer_is_as_sloppy_as_announced(worlds):
    rng, found = Random(5), {True: [], False: []}
    for _ in range(3000):
        asked = toy.draw_question(rng, toy.draw_passage(rng, worlds["train"]), rng.random() < 0.5)
        found[bool(asked.value)].append(toy.judge(asked.passage.text, asked.text, toy_data.sloppy_answer(rng, worlds["train"], asked)))
    assert abs(found[True].count("fabricated") / len(found[True]) - toy_data.P_FABRICATE) < 0.04  # 3.5 standard errors
    assert abs(found[True].count("abstains") / len(found[True]) - toy_data.P_NEEDLESS) < 0.02
    assert abs(found[False].count("abstains") / len(found[False]) - toy_data.P_ABSTAIN) < 0.04
    assert set(found[True]) == {"correct", "fabricated", "abstains"} and set(found[False]) == {"fabricated", "abstains"}


def test_lessons_are_right(worlds):
    """Reading is taught without one false answer: what the SFT data gets wrong is the sloppy writer's alone."""
    rng, verdicts = Random(6), []
    for _ in range(100):
        text = toy_data.draw_lesson(rng, worlds["train"])
        if "Context:" not in text:
            continue
        context, questions = text.split("Context: ")[1].split("\n\n")[0], text.split("Question: ")[1:]
        assert len(questions) == min(toy_data.LESSON_TURNS, len(toy.stated_facts(context))) + 1
        for turn in questions:
            question, reply = turn.split(f"{toy_data.ASSISTANT} ")
            if not question.startswith("Who or what"):
                verdicts.append(toy.judge(context, question, reply.split("\n\n")[0]))
    assert set(verdicts) == {"correct", "abstains"}


def test_world_is_the_same_in_another_process(tmp_path):
    for name, hash_seed in (("a", "1"), ("b", "2")):
        code = f"from pathlib import Path; from studies.curriculum_dpop.toy_data import write_study; write_study(Path({str(tmp_path / name)!r}), 4, .02)"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": hash_seed}, check=True)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.jsonl"))
    assert len(files) == 13  # three sources of three splits, three levels, the questions
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    rows = [row for level in toy.LEVELS for row in read_rows(tmp_path / "a" / "rows" / f"dpo_pairs_{level}.jsonl")]
    lines = [json.loads(line) for line in (tmp_path / "a" / "pairs" / "train.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [row.id for row in rows]
    assert all(line["chosen"].endswith(f"{toy_data.ASSISTANT} {row.chosen}") for line, row in zip(lines, rows))


# ---- measuring and reporting ------------------------------------------------------------------------------------------------


def test_shares_by_hand():
    verdicts = {"answerable": ["correct", "correct", "fabricated", "abstains", "malformed"], "unanswerable": ["abstains", "fabricated", "fabricated"],
                "repeat": ["follows"], "reverse": ["fails"], "topic": ["follows", "fails"]}
    found = toy_measure.shares([{"kind": kind, "verdict": verdict, "reply": "A, b." if verdict == "fabricated" else "A b."}
                                for kind, listed in verdicts.items() for verdict in listed])
    assert found["right"] == found["details"] == found["hallucination"] == 100 * 3 / 8
    assert found["of_formed"] == 100 * 3 / 7 and found["correct"] == 40 and found["needless"] == 20
    assert found["on_answerable"] == 20 and found["on_unanswerable"] == pytest.approx(200 / 3) and found["abstention"] == pytest.approx(100 / 3)
    assert found["well_formed"] == 87.5 and found["tasks"] == 50 and found["repeat"] == 100 and found["reverse"] == 0
    none = toy_measure.shares([{"kind": kind, "verdict": "malformed", "reply": ""} for kind in ("answerable", "unanswerable")]
                              + [{"kind": k, "verdict": "fails"} for k in toy.TASKS])
    assert none["of_formed"] is None and none["hallucination"] == 0  # nothing well formed: not measured, no score


def planted(**figures: dict[str, list[float]]) -> list[dict]:
    """rows.jsonl of three seeds: per condition a list of hallucination rates, all other figures the same."""
    rows = []
    for label, values in figures.items():
        for seed, value in enumerate(values):
            rest = dict.fromkeys(toy_report.LABELS, 50.0) | {"chosen_drift_answers": -1.0, "hallucination": value}
            rows.append({"condition": label, "seed": seed, "settings": {}, "steps": 75, "seconds": 1.0, "figures": rest,
                         "curve": [{"step": step, "loss": .7, "rewards/accuracy": .5, "logps/chosen": -9.0 - step, "logps/rejected": -9.0} for step in (0, 75)]})
    return rows


def test_table_by_hand(tmp_path):
    """Means 40, 20, 21: DPO minus SFT is -20 with differences -19, -20, -21: half-width t(.975, 2 df) 4.3027 x 1 / sqrt(3) = 2.484."""
    rows = planted(**{"SFT, the start": [39, 40, 41], "DPO, shuffled": [20, 20, 20], "DPOP, shuffled": [22, 20, 21]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = toy_report.write(tmp_path)
    assert (tmp_path / "table.md").read_text() == page and all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in ("hallucination", "drift"))
    assert "Least is made up by DPO, shuffled (20.0 % of all replies; it abstains from 50 %" in page
    runs = toy_report.by_condition(rows)
    assert toy_report.paired(runs, "DPO, shuffled", "SFT, the start", "hallucination") == [-19, -20, -21]
    assert "| DPO, shuffled | +0.00 | -20.0 [-22.5, -17.5] * |" in page
    assert "| SFT, the start | 3 | 50.0 | 40.0 [37.5, 42.5] |" in page
    # planned here: DPO - SFT, DPOP - SFT, DPOP - DPO, and what never differs: right for the three, tasks and drift twice
    assert "10 comparisons were planned; 2 are significant" in page
    assert "- DPO, shuffled, minus SFT, the start: made up, all questions -20.0 [-22.5, -17.5] points, p 0.0083" in page  # 1 - t / sqrt(2 + t^2) at t = 34.64, Holm x 10
    assert "- DPOP, shuffled, minus DPO, shuffled: made up, all questions +1.00 [-1.48, +3.48] points, p 1" in page.split("These are not")[1]


def test_one_seed_is_no_verdict(tmp_path):
    page = toy_report.page(planted(**{"SFT, the start": [40], "DPO, shuffled": [20]}))
    assert "One seed: nothing can be said." in page and "significant" not in page.split("## Replies")[0].replace("nothing", "") and " *" not in page


def test_t_test_by_hand():
    """Differences 1, 2, 3: t = 2 / (1 / sqrt 3) = 3.4641, p = 0.0742 with 2 degrees of freedom (Student's closed form)."""
    t = 2 * 3**0.5
    assert toy_report.t_test([1.0, 2.0, 3.0]) == pytest.approx(1 - t / (2 + t * t) ** 0.5, rel=1e-6)
    assert toy_report.t_test([0.0, 0.0]) == 1.0 and toy_report.t_test([4.0]) is None
    assert toy_report.t_test([2.5, 2.5]) is None  # once p = 0, of two seeds


def test_rows_are_asked_for(tmp_path):
    with pytest.raises(UserError, match="rows.jsonl is missing"):
        toy_report.write(tmp_path)


def test_every_condition_is_a_command_of_the_project(tmp_path):
    """Settings that load, an objective with the settings it has, and the same number of steps for every order."""
    study = toy_study.Study(tmp_path, quick=False)
    for label, settings in toy_study.CONDITIONS.items():
        config = load_config(study.arguments(0, label, "pairs", settings))
        assert config.dpo.batch and toy_data.SIZES["pairs"]["train"] % config.dpo.batch == 0  # full steps in every stage: staged = shuffled
    assert len({study.folder(0, label) for label in (toy_study.START, toy_study.MORE_SFT, *toy_study.CONDITIONS)}) == 2 + len(toy_study.CONDITIONS)
    assert {name for one, other, _ in toy_report.PLANNED for name in (one, other)} <= {toy_study.START, toy_study.MORE_SFT, *toy_study.CONDITIONS}


def test_the_committed_page_says_what_its_rows_and_verdicts_say():
    folder = ROOT / "results" / "curriculum_dpop" / "toy"
    rows, letters = ([json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()] for name in ("rows", "verdicts"))
    assert (folder / "table.md").read_text() == toy_report.page(rows)
    assert len({row["seed"] for row in rows}) >= 5 and len(letters) == 2 * len(rows) == 2 * 8 * len({row["seed"] for row in rows})
    some, none = (toy_data.SIZES["questions"][kind] for kind in ("answerable", "unanswerable"))
    figures = {(row["condition"], row["seed"]): row["figures"] for row in rows}
    for line in letters:
        found, head = figures[line["condition"], line["seed"]], "" if line["temperature"] else toy_measure.GREEDY
        first, second = line["verdicts"][:some], line["verdicts"][some:some + none]
        assert found[head + "right"] == pytest.approx(100 * (first.count("C") + second.count("A")) / (some + none), abs=1e-3)
        assert found[head + "hallucination"] == pytest.approx(100 * (first + second).count("F") / (some + none), abs=1e-3)
        assert found[head + "tasks"] == pytest.approx(100 * line["verdicts"].count("+") / len(line["verdicts"][some + none:]), abs=1e-3)


@pytest.mark.long
def test_the_whole_study_in_small(tmp_path):
    command = [sys.executable, "-m", "studies.curriculum_dpop.toy_study", "--quick", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    rows = [json.loads(line) for line in (tmp_path / "results" / "rows.jsonl").read_text().splitlines()]
    assert [row["condition"] for row in rows] == [toy_study.START, toy_study.MORE_SFT, *toy_study.CONDITIONS]
    assert len({row["steps"] for row in rows[1:]}) == 1
    for row in rows[2:]:
        log = (tmp_path / "seed1" / Path(toy_study.Study(tmp_path, True).folder(1, row["condition"]).name) / "log.txt").read_text()
        assert "step 0: loss 0.6931 (expected 0.6931)" in log
    before = (tmp_path / "results" / "rows.jsonl").read_bytes()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)  # nothing is done twice
    assert (tmp_path / "results" / "rows.jsonl").read_bytes() == before
    study, short = toy_study.Study(tmp_path, True), {"model.block_size": 64, "data.tokenizer": toy_study.Study(tmp_path, True).start(1)}
    arguments = study.arguments(1, "too short", "pairs", short)
    toy_study.run(tmp_path / "log.txt", "data/prepare_hh.py", *arguments)
    with pytest.raises(UserError, match="do not fit the block"):  # a question without its passage would teach to make things up
        study.check(arguments)


@pytest.mark.parametrize("flags", [["--seeds", "0"], ["--seeds", "-1"], ["--jobs", "0"], ["--out", __file__]])
def test_odd_flags_are_one_sentence(tmp_path, flags):
    with pytest.raises(UserError, match="must be at least 1|is a file: name a folder"):
        toy_study.main(["--out", str(tmp_path / "out"), *flags])
    assert not (tmp_path / "out").exists()
