"""The toy demo three times with different seeds, and its controls on the first seed; what results/toy/ holds comes from here.

    python bench/toy_study.py            everything: about 40 minutes on two CPU cores
    python bench/toy_study.py --only seed0 shuffled

Each run is the README's own commands with other settings. Finished stages are kept, so the same command continues a stopped study.
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # import from the repository root, not from bench/

from bench.keep import keep


def commands(out: Path) -> dict[str, list[list[str]]]:
    """Name of a run -> the commands that make it."""
    def experiment(name: str, *more: str) -> list[list[str]]:
        arguments = ["toy", f"--out={out}", f"--name={name}", *more]
        return [["train_dpo.py", *arguments], ["-m", "eval.run", *arguments]]

    def control(name: str, seed: int, kind: str, *more: str) -> list[list[str]]:
        # shares that seed's SFT model and tokenizer: only the preference data differ
        sft = out / f"seed{seed}" / "sft" / "best"
        return experiment(name, f"--seed={seed}", f"--eval.seed={seed}", f"--dpo.init_from={sft}", f"--data.tokenizer={sft}", f"--data.toy_control={kind}", *more)

    sft = out / "seed0" / "sft" / "best"
    more_sft = ["toy", f"--out={out}", "--name=more_sft", f"--model.init_from={sft}", f"--data.tokenizer={sft}", f"--sft.max_steps={dpo_steps(out)}",
                "--sft.lr=2e-4", "--sft.patience=0"]
    seeds = {f"seed{s}": experiment(f"seed{s}", f"--seed={s}", f"--eval.seed={s}") for s in (0, 1, 2)}
    seeds["seed0"].insert(1, ["train_reward.py", *seeds["seed0"][0][1:]])  # one reward model, as a second judge
    return {
        **seeds,
        **{kind: control(kind, 0, kind) for kind in ("shuffled", "flipped", "no_overrefusal")},
        **{f"shuffled_seed{s}": control(f"shuffled_seed{s}", s, "shuffled") for s in (1, 2)},
        # the sick run of eval/health.py: perfect labels, a learning rate ten times too high
        "broken": control("broken", 0, "clean", "--dpo.lr=2e-4", "--dpo.beta=0.1", "--dpo.epochs=2"),
        "more_sft": [["train_sft.py", *more_sft],
                     ["-m", "eval.run", *more_sft, f"--dpo.init_from={sft}", f"--eval.policy={out}/more_sft/sft/last"]],
    }


def dpo_steps(out: Path) -> int:
    """Optimizer steps of the first seed's DPO (continued SFT gets as many); 1 before that run exists."""
    run = out / "seed0" / "dpo" / "last" / "run.json"
    return json.loads(run.read_text())["step"] if run.exists() else 1


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--out", type=Path, default=Path("out/toy_study"))
    a.add_argument("--results", type=Path, default=ROOT / "results" / "toy")
    a.add_argument("--only", nargs="+", help="names of runs; seed0 comes first since the controls start from it")
    a = a.parse_args()
    for name in a.only or list(commands(a.out)):
        for command in commands(a.out)[name]:  # a finished stage returns at once, and refuses changed settings
            print("\n$ python", *command, flush=True)
            subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
        keep(a.out / name, a.results / name, pictures=name.startswith("seed"))  # of a control the figures are enough


if __name__ == "__main__":
    main()
