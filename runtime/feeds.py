"""Show a finished or running experiment elsewhere; the one source is its metrics.jsonl files.

    python -m runtime.feeds out/toy --to tensorboard            writes out/toy/tensorboard/
    python -m runtime.feeds out/toy --to wandb --project mine   one W&B run per stage (WANDB_MODE=offline works)
"""
import argparse
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import UserError, run_main
from runtime.run import read_metrics


def named_values(stage: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, {"train/loss": ..., ...}) per line of <stage>/metrics.jsonl, without what was not measured."""
    for row in read_metrics(stage / "metrics.jsonl"):
        yield row["step"], {f"{row['split']}/{k}": v for k, v in row.items() if k not in ("step", "split") and v is not None}


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("experiment", type=Path)
    a.add_argument("--to", choices=("tensorboard", "wandb"), required=True)
    a.add_argument("--project", default="nanopref")
    a = a.parse_args(argv)
    stages = sorted(p.parent for p in a.experiment.glob("*/metrics.jsonl"))
    if not stages:
        raise UserError(f"no metrics.jsonl below {a.experiment}.")
    for stage in stages:
        if a.to == "tensorboard":
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise UserError("TensorBoard is not installed: pip install tensorboard") from None
            with SummaryWriter(str(a.experiment / "tensorboard" / stage.name)) as writer:
                for step, values in named_values(stage):
                    for name, value in values.items():
                        writer.add_scalar(name, value, step)
        else:
            try:
                import wandb
            except ImportError:
                raise UserError("Weights & Biases is not installed: pip install wandb") from None
            with wandb.init(project=a.project, name=f"{a.experiment.name}-{stage.name}", dir=str(a.experiment)) as run:
                for step, values in named_values(stage):
                    run.log(values, step=step)
    where = f"{a.experiment / 'tensorboard'}: tensorboard --logdir {a.experiment / 'tensorboard'}" if a.to == "tensorboard" else f"wandb's project {a.project}"
    print(f"{len(stages)} stages of {a.experiment} written to {where}")


if __name__ == "__main__":
    run_main(main)
