"""The run of assignment 4: the toy model, trained by the student's DPO, IPO and DPOP on pairs that differ in one word or a few."""
from types import ModuleType
from unittest.mock import patch

import batching
import objectives
import train_dpo
from batching import Batch
from course.train import Base, Outcome
from losses import Pairs
from runtime.run import read_metrics
from torch import Tensor

SETTINGS = {"data__toy_control": "near_identical", "dpo__beta": 0.3, "dpo__lr": 1e-4, "dpo__max_steps": 60, "dpo__eval_every": 10, "dpo__eval_rows": 256, "dpo__watch_prompts": 0}
TRIED = {"DPO": {"dpo__objective": "dpo"}, "IPO": {"dpo__objective": "ipo"}, "DPOP": {"dpo__objective": "dpop", "dpo__penalty": 20.0}}


def run(student: ModuleType, base: Base) -> Outcome:
    """60 steps each; figures and curves are of 256 validation pairs, log-probs as changes since step 0 in nats per reply."""
    def sequence_logps(logps: Tensor, batch: Batch, tail_weight: float = 1.0) -> tuple[Tensor, Tensor]:
        sums = student.sequence_logps(logps.float(), batch.owner, 2 * len(batch.pairs))
        return sums[0::2], sums[1::2]

    def dpo(p: Pairs, beta: float = 0.1) -> Tensor:
        return student.dpo_loss(p.chosen, p.rejected, p.ref_chosen, p.ref_rejected, beta)

    def ipo(p: Pairs, beta: float = 0.1) -> Tensor:
        return student.ipo_loss(p.chosen, p.rejected, p.ref_chosen, p.ref_rejected, beta)

    def dpop(p: Pairs, beta: float = 0.3, penalty: float = 50.0) -> Tensor:
        return student.dpop_loss(p.chosen, p.rejected, p.ref_chosen, p.ref_rejected, beta, penalty)

    found, start = Outcome({}), base.from_sft()
    with patch.object(train_dpo, "sequence_logps", sequence_logps), patch.object(batching, "sequence_logps", sequence_logps), \
            patch.dict(objectives.OBJECTIVES, {"dpo": dpo, "ipo": ipo, "dpop": dpop}):
        for name, settings in TRIED.items():
            argv = base.argv(name.lower(), **SETTINGS, **settings, **start)
            train_dpo.main(argv)
            rows = [row for row in read_metrics(base.out / base.name / name.lower() / "dpo" / "metrics.jsonl") if row["split"] == "val"]
            first, last = rows[0], rows[-1]
            if name == "DPO":
                found.figures["loss at step 0"] = first["loss"]
            for side in ("chosen", "rejected"):
                found.figures[f"{name}: {side} log-prob, change in nats"] = last[f"logps/{side}"] - first[f"logps/{side}"]
                found.curves[f"{name}: change of log-prob, nats | {side}"] = [(row["step"], row[f"logps/{side}"] - first[f"logps/{side}"]) for row in rows]
    return found
