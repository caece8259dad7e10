"""The planner's tables for every config of a Hugging Face model, as docs/plans.md:  python bench/plans.py  (a few minutes; no weights, no GPU)."""
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = """```
python train_dpo.py {name}                                                  # one GPU
torchrun --nproc_per_node=4 train_dpo.py {name}                             # one machine, four GPUs
torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=HOST:29500 train_dpo.py {name}    # on each of two machines
```"""


def main() -> None:
    parts = ["# What the large configs need\n", "Made by `python bench/plans.py`: GB per GPU of 80 GB by `plan.py`, before any weight is loaded; how the account was checked: `docs/scale.md`. "
             "Hours assume 35 % of an H100's bf16 peak, 7,300 pairs (the human-likeness study's) and rows of three quarters of a block: an estimate, not a measurement.\n"]
    for path in sorted((ROOT / "configs").glob("*.py")):
        if path.stem == "human_likeness" or not re.search(r'"chat"|base_config = "(human|curriculum)', path.read_text()):
            continue
        started = time.time()
        done = subprocess.run([sys.executable, "plan.py", path.stem, "--pairs", "7300"], cwd=ROOT, capture_output=True, text=True, check=True)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        parts.append(f"## `{path.stem}`\n\n{done.stdout.split(chr(10) + 'launch:')[0].strip()}\n\n{LAUNCH.format(name=path.stem)}\n")
        print(f"{path.stem}: {time.time() - started:.0f} s, largest process so far {peak:.1f} GB", flush=True)
    (ROOT / "docs" / "plans.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
