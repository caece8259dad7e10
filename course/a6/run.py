"""The run of assignment 6: the toy model through the five repaired fragments, first steps of SFT and short DPO, next to the logs of the five sick runs."""
import statistics
from types import ModuleType
from typing import Any

from course.a6.make_runs import SICK, train
from course.build import folder_of
from course.train import Base, Curve, Outcome
from eval.health import examine
from runtime.run import read_metrics

LOOK = {"sft": {"sft__eval_every": 60}, "dpo": {"dpo__eval_every": 50}}  # the committed logs look every ten steps: replies take most of the time
Rows = list[dict[str, Any]]


def curve(rows: Rows, split: str, name: str) -> Curve:
    """[(step, value)] of a column where it was measured."""
    return [(row["step"], row[name]) for row in rows if row["split"] == split and row[name] is not None]


def figures(stage: str, rows: Rows) -> dict[str, float]:
    """What is compared of a log of this stage."""
    train_loss, val_loss = (dict(curve(rows, split, "loss")) for split in ("train", "val"))
    if stage == "sft":
        ratios = [train_loss[step] / loss for step, loss in val_loss.items() if step in train_loss]
        return {"replies that end, %": 100 * curve(rows, "val", "replies/ended")[-1][1], "training loss over validation loss": statistics.median(ratios)}
    chosen = [value for _, value in curve(rows, "val", "logps/chosen")]
    return {"first training loss": train_loss[1], "chosen log-prob, change in nats": chosen[-1] - chosen[0],
            "validation accuracy, %": 100 * curve(rows, "val", "rewards/accuracy")[-1][1], "well-formed replies, %": 100 * curve(rows, "val", "replies/well_formed")[-1][1]}


def run(student: ModuleType, base: Base) -> Outcome:
    """60 steps of SFT from random weights, 50 of DPO from the SFT model; the DPO run must pass the health panel."""
    found = Outcome({})
    for stage in ("sft", "dpo"):
        folder = train(student, stage, base, **LOOK[stage])
        rows = read_metrics(folder / "metrics.jsonl")
        found.figures |= {f"{stage.upper()}: {name}": value for name, value in figures(stage, rows).items()}
        found.curves[f"{stage.upper()}: training loss"] = curve(rows, "train", "loss")
        if stage == "dpo":
            found.figures["DPO: alarms of the health panel"] = sum(finding["level"] == "alarm" for finding in examine(folder))
    for n, (_, stage) in SICK.items():
        rows = read_metrics(folder_of("a6") / "runs" / f"run_{n}" / "metrics.jsonl")
        found.figures |= {f"run_{n}, one committed log: {name}": value for name, value in figures(stage, rows).items()}
    return found
