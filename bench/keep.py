"""Copy what a reader needs of a finished run into results/:  python bench/keep.py out/hh_cpu results/hh_cpu"""
import json
import re
import shutil
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1]) if __name__ == "__main__" else sys.path[0]  # import from the repository root, not from bench/

from runtime.checkpoint import read_run, without_local_paths

FIGURES = ("results_summary.json", "report.md", "model_comparison.csv")
PICTURES = ("report.html", "training_curves.png", "toxicity_distribution.png", "refusals.png", "win_rates.png", "reward_margins.png")


def keep(run: Path, target: Path, pictures: bool = True) -> None:
    """Evaluation, metrics and the run notes of every stage in `run`, without checkpoints and replies."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    judged = tuple(path.name for path in (run / "eval").glob("judged_*.json"))
    for file in FIGURES + judged + (PICTURES if pictures else ()):
        shutil.copy(run / "eval" / file, target / file)
    if not pictures:  # nor their places, nor headings that then head nothing
        text = re.sub(r"!\[[^\]]*\]\([^)]*\.png\)\n*", "", (target / "report.md").read_text(encoding="utf-8"))
        (target / "report.md").write_text(re.sub(r"(?m)^## .*\n\n(?=## )", "", text), encoding="utf-8")
    for stage in ("base", "sft", "dpo", "reward"):
        last = run / stage / "last" / "run.json"
        if last.exists():
            shutil.copy(run / stage / "metrics.jsonl", target / f"{stage}_metrics.jsonl")
            (target / f"{stage}_run.json").write_text(json.dumps(without_local_paths({k: v for k, v in read_run(last.parent).items() if k != "fingerprint"}), indent=1) + "\n")


if __name__ == "__main__":
    keep(Path(sys.argv[1]), Path(sys.argv[2]))
