"""Copy what a reader needs of a finished run into results/:  python bench/keep.py out/hh_cpu results/hh_cpu"""
import json
import shutil
import sys
from pathlib import Path

FIGURES = ("results_summary.json", "report.md", "model_comparison.csv")
PICTURES = ("report.html", "training_curves.png", "toxicity_distribution.png")


def keep(run: Path, target: Path, pictures: bool = True) -> None:
    """Evaluation, metrics and the run notes of every stage in `run`, without checkpoints and replies."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in FIGURES + (PICTURES if pictures else ()):
        shutil.copy(run / "eval" / file, target / file)
    for stage in ("base", "sft", "dpo"):
        last = run / stage / "last" / "run.json"
        if last.exists():
            shutil.copy(run / stage / "metrics.jsonl", target / f"{stage}_metrics.jsonl")
            (target / f"{stage}_run.json").write_text(json.dumps({k: v for k, v in json.loads(last.read_text()).items() if k != "fingerprint"}, indent=1) + "\n")


if __name__ == "__main__":
    keep(Path(sys.argv[1]), Path(sys.argv[2]))
