"""What each stage of a curriculum did, from a run's metrics.jsonl.

    python -m studies.curriculum_dpop.stages out/NAME/dpo [--to FILE.md]
"""
import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import UserError, run_main
from runtime.run import read_metrics

HEADER = ("stage", "steps", "lr first", "lr last", "train loss first", "train loss last", "train accuracy", "val loss", "val accuracy", "chosen nats", "rejected nats")


def stage_rows(rows: Sequence[dict]) -> list[dict]:
    """One dict per stage, HEADER's keys: losses of its first and last logged step, mean accuracy of its steps, validation where it ends.

    "chosen nats" and "rejected nats" are how far the validation pairs' log-probs have moved since before the first step: DPO lets both fall,
    DPOP holds the chosen one up. None where no validation was made at the stage's last step.
    """
    train, val = ([row for row in rows if row["split"] == split] for split in ("train", "val"))
    start = next((row for row in val if row["step"] == 0), None)
    stages = []
    for stage in sorted({row["stage"] for row in train}):
        own, checked = ([row for row in some if row["stage"] == stage and row["step"]] for some in (train, val))
        first, last = own[0], own[-1]
        seen = next((row for row in checked if row["step"] == last["step"]), None)
        moved = [seen[f"logps/{side}"] - start[f"logps/{side}"] if seen and start else None for side in ("chosen", "rejected")]
        stages.append(dict(zip(HEADER, (
            stage, f"{first['step']} to {last['step']}", first["lr"], last["lr"], first["loss"], last["loss"],
            sum(row["rewards/accuracy"] for row in own) / len(own), *((seen["loss"], seen["rewards/accuracy"]) if seen else (None, None)), *moved))))
    return stages


def table(stages: Sequence[dict]) -> str:
    """The stages as a Markdown table."""
    def cell(value: object) -> str:
        return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
    lines = [HEADER, ["---"] * len(HEADER), *([cell(stage[name]) for name in HEADER] for stage in stages)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("run", type=Path, help="the folder that holds metrics.jsonl")
    a.add_argument("--to", type=Path, help="write the table there too")
    a = a.parse_args(argv)
    path = a.run / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{path} is not there: name the dpo folder of a run.")
    rows = read_metrics(path)
    if not any("stage" in row and row.get("split") == "train" for row in rows):
        raise UserError(f"{path} names no stages: it is no DPO run.")
    text = table(stage_rows(rows))
    print(text, end="")
    if a.to:
        a.to.parent.mkdir(parents=True, exist_ok=True)
        a.to.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run_main(main)
