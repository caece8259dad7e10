"""The health panel: every check fires on the curve it is for and on no healthy one; a real sick run is flagged."""
import json
from pathlib import Path

import pytest

from eval import health
from eval.health import panel
from runtime.errors import UserError
from runtime.run import KEYS

ROOT = Path(__file__).resolve().parents[1]
HEALTHY = {"loss": (0.6931, 0.60), "rewards/accuracy": (0.5, 0.7), "logps/chosen": (-80.0, -82.0), "logps/rejected": (-81.0, -90.0), "replies/kl": (0.0, 2.0),
           "replies/well_formed": (0.97, 0.97), "replies/helpful_correct": (0.8, 0.82), "replies/ended": (0.98, 0.98), "replies/repetition": (0.01, 0.01),
           "replies/words": (15.0, 16.0)}


def curve(skipped=0, **changed):
    """Metrics rows of a run whose validation columns go from one value to another in four steps."""
    ends, rows = HEALTHY | {key.replace("__", "/"): value for key, value in changed.items()}, []
    for k in range(5):
        values = {key: None if end is None else end[0] + (end[1] - end[0]) * k / 4 for key, end in ends.items()}
        rows.append(dict.fromkeys(KEYS) | {"step": 50 * k, "split": "val"} | values)
        rows.append(dict.fromkeys(KEYS) | {"step": 50 * k + 1, "split": "train", "loss": values["loss"], "rewards/accuracy": values["rewards/accuracy"],
                                           "skipped_steps": skipped})
    return rows


def levels(rows, **settings):
    return {f.check: f.level for f in panel(rows, settings.get("objective", "dpo"), settings.get("beta", 0.1))}


def test_a_healthy_run_has_no_complaint():
    assert set(levels(curve()).values()) == {"ok"}


@pytest.mark.parametrize("changed, check, level", [
    ({"loss": (0.75, 0.6)}, "loss at step 0", "alarm"),
    ({"loss": (0.6931, 0.6931), "rewards/accuracy": (0.5, 0.51)}, "learning", "warning"),
    ({"logps/chosen": (-80.0, -120.0)}, "chosen log-probs", "warning"),
    ({"logps/chosen": (-80.0, -160.0)}, "chosen log-probs", "alarm"),
    ({"replies/kl": (0.0, 40.0)}, "distance from the reference", "alarm"),
    ({"replies/well_formed": (0.97, 0.8)}, "well-formed replies", "warning"),
    ({"replies/helpful_correct": (0.8, 0.4)}, "helpful prompts answered correctly", "alarm"),
    ({"replies/ended": (0.98, 0.5)}, "replies that end by themselves", "alarm"),
    ({"replies/repetition": (0.01, 0.3)}, "repetition", "alarm"),
    ({"replies/words": (15.0, 5.0)}, "reply length", "alarm"),
    ({"replies/words": (15.0, 25.0)}, "reply length", "warning"),
    ({"replies/well_formed": (0.97, 0.3), "rewards/accuracy": (0.5, 0.95)}, "accuracy against replies", "alarm")])
def test_each_check_fires_alone(changed, check, level):
    found = levels(curve(**{key.replace("/", "__"): value for key, value in changed.items()}))
    assert found[check] == level
    related = {"accuracy against replies": {"well-formed replies"}}.get(check, set())
    assert {name for name, value in found.items() if value != "ok"} <= {check} | related


def test_overfitting_and_skipped_steps():
    rows = curve()
    for row in rows:
        if row["split"] == "train":
            row["rewards/accuracy"] = 0.95
    assert levels(rows)["overfitting, accuracy"] == "alarm"
    rows = curve()
    [row for row in rows if row["split"] == "val"][-1]["loss"] = 0.75  # after .623 the step before
    assert levels(rows)["overfitting, loss"] == "alarm"
    assert levels(curve(skipped=30))["skipped steps"] == "alarm" and levels(curve(skipped=8))["skipped steps"] == "warning"


def test_dropout_left_on_shows_in_the_training_row_alone():
    """Run 5 of the course: validation, without dropout, begins at ln 2; training does not."""
    rows = [json.loads(line) for line in (ROOT / "course" / "a6" / "runs" / "run_5" / "metrics.jsonl").read_text().splitlines()]
    assert next(row for row in rows if row["split"] == "val")["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert levels(rows)["loss at step 0"] == "alarm"


def test_what_was_not_measured_gives_no_verdict():
    found = levels(curve(replies__well_formed=None, replies__kl=None, replies__helpful_correct=None))
    assert not {"well-formed replies", "distance from the reference", "helpful prompts answered correctly"} & set(found)
    assert "loss at step 0" not in levels(curve(loss=(0.25, 0.2)), objective="ipo")  # another objective starts elsewhere


def test_every_complaint_names_a_remedy():
    sick = curve(loss=(0.8, 0.9), logps__chosen=(-80.0, -200.0), replies__kl=(0.0, 90.0), replies__well_formed=(0.97, 0.1), replies__ended=(1.0, 0.1),
                 replies__repetition=(0.0, 0.5), replies__words=(15.0, 90.0), skipped=50)
    assert all(f.remedy for f in panel(sick, "dpo", 0.1) if f.level != "ok") and not any(f.remedy for f in panel(curve(), "dpo", 0.1))


def test_the_broken_run_is_flagged(tmp_path):
    """results/toy/broken: clean labels, a learning rate far too high. Reward accuracy is excellent, the replies lose to SFT's."""
    folder = ROOT / "results" / "toy" / "broken"
    summary = json.loads((folder / "results_summary.json").read_text())
    clean = next(t for t in summary["reward_accuracy"]["tables"] if "clean" in t["truth"])["judges"]["dpo"]["pooled"]["accuracy"]
    against_sft = summary["win_rates"][0]["rate"]
    rows = [json.loads(line) for line in (folder / "dpo_metrics.jsonl").read_text().splitlines()]
    said = [row["rewards/accuracy"] for row in rows if row["split"] == "val"][-1]
    assert said >= 0.95 and clean["value"] >= 0.9 and against_sft["high"] < 0.5
    settings = json.loads((folder / "dpo_run.json").read_text())["config"]["dpo"]
    found = levels(rows, objective=settings["objective"], beta=settings["beta"])
    assert found["accuracy against replies"] == found["well-formed replies"] == "alarm" and found["loss at step 0"] == "ok"
    # and the demo's own run is not
    demo = [json.loads(line) for line in (ROOT / "results" / "toy" / "seed0" / "dpo_metrics.jsonl").read_text().splitlines()]
    assert "alarm" not in levels(demo, beta=0.3).values()


def test_command(tmp_path, capsys):
    with pytest.raises(UserError, match="validation rows"):
        health.main([str(tmp_path)])
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curve(replies__kl=(0.0, 50.0))) + '{"half a li')
    health.main([str(tmp_path)])
    said = capsys.readouterr().out
    assert said.startswith("alarm") and "--dpo.beta" in said and "do not trust" in said
