"""Our TruthfulQA multiple choice against EleutherAI's lm-evaluation-harness: the same checkpoint, all questions, every choice's log-likelihood.

    python bench/against_harness.py --model FOLDER --data FOLDER --harness-python VENV/bin/python --to results/curriculum_dpop/truthfulqa/harness.json

The harness lives in an environment of its own (`pip install lm_eval`), whose python is named. It runs its own tasks truthfulqa_mc1 and
truthfulqa_mc2 with its own six-shot prompt, and once more with the zero-shot prompt in that one's place; only the data come from our folder.
Both sides put one start token before a prompt (the harness with add_bos_token=True). The harness cuts what is too long for a model
without keeping the start token, so the model must have positions enough for every prompt: nothing may be cut on either side.
Seconds are of CPU time for loading and scoring; of the harness without what it takes for one question, which is mostly its start.
"""
import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.store import write_json  # noqa: E402
from eval import choices  # noqa: E402
from eval.truthfulqa import multiple_choice  # noqa: E402
from eval.truthfulqa_data import Item, read_items  # noqa: E402
from runtime.checkpoint import git_commit, versions, weights_hash  # noqa: E402
from runtime.config import Config  # noqa: E402
from runtime.device import setup_device  # noqa: E402
from runtime.errors import UserError, run_main  # noqa: E402

TASK = """include: {own}
task: {name}
tag: null
dataset_path: json
dataset_name: null
dataset_kwargs:
  data_files:
    validation: {data}
"""
ZERO_SHOT = 'doc_to_text: "Q: {{question}}\\nA:"\n'


def harness(a: argparse.Namespace, items: list[Item], prompt: str, work: Path) -> tuple[dict[str, list[dict]], dict[str, str], float]:
    """({"mc1" and "mc2": the harness's samples in question order}, its versions, seconds). UserError when it does not run."""
    data = work / "validation.jsonl"
    data.write_text("".join(json.dumps({"question": item.question} | {f"{key}_targets": {
        "choices": [text for text, _ in targets], "labels": [label for _, label in targets]} for key, targets in (("mc1", item.mc1), ("mc2", item.mc2))}) + "\n"
        for item in items), encoding="utf-8")
    about = ("import json, lm_eval; from importlib.metadata import version; "
             "print(json.dumps([lm_eval.__path__[0], {n: version(n) for n in ('lm_eval', 'torch', 'transformers')}]))")
    where, installed = json.loads(_run([a.harness_python, "-c", about]).splitlines()[-1])
    for key in ("mc1", "mc2"):
        task = TASK.format(own=Path(where) / "tasks" / "truthfulqa" / f"truthfulqa_{key}.yaml", name=f"local_{key}", data=data)
        (work / f"local_{key}.yaml").write_text(task + (ZERO_SHOT if prompt == "zero-shot" else ""), encoding="utf-8")
    command = [a.harness_python, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={a.model.resolve()},dtype=float32,add_bos_token=True",
               "--tasks", "local_mc1,local_mc2", "--include_path", str(work), "--device", "cpu", "--batch_size", str(a.batch)]
    seconds = []
    for more in (["--limit", "1"], ["--log_samples", "--output_path", str(work / "out")]):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        _run([*command, *more])
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    found = {}
    for key in ("mc1", "mc2"):
        path = next((work / "out").rglob(f"samples_local_{key}_*.jsonl"))
        found[key] = sorted(map(json.loads, path.read_text(encoding="utf-8").splitlines()), key=lambda sample: sample["doc_id"])
    return found, installed, seconds[1] - seconds[0]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"`{' '.join(map(str, command[:4]))} ...` failed: {done.stderr.strip()[-800:]}")
    return done.stdout


def compare(items: list[Item], ours: list[dict], theirs: dict[str, list[dict]]) -> dict:
    """The largest differences over all questions and choices, and on how many questions MC1 agrees."""
    gaps, sums, worst_mc2, same = [], [], 0.0, 0
    for i, (item, row) in enumerate(zip(items, ours, strict=True)):
        logps = {choice["text"]: choice["logp"] for choice in row["choices"]}
        for key, targets in (("mc1", item.mc1), ("mc2", item.mc2)):
            sample = theirs[key][i]
            if sample["doc"]["question"] != item.question or len(sample["filtered_resps"]) != len(targets):
                raise ValueError(f"the harness's sample {i} is another question")
            sums += [float(found[0]) for found in sample["filtered_resps"]]
            gaps += [logps[text] - float(found[0]) for (text, _), found in zip(targets, sample["filtered_resps"])]
        same += row["mc1"] == theirs["mc1"][i]["acc"]
        worst_mc2 = max(worst_mc2, abs(row["mc2"] - theirs["mc2"][i]["acc"]))
    n = len(items)
    means = {key: {"ours": sum(row[key] for row in ours) / n, "harness": sum(sample["acc"] for sample in theirs[key]) / n} for key in ("mc1", "mc2")}
    return {"n": n, "choices_compared": len(gaps), "largest_difference_log_likelihood": float(np.abs(gaps).max()),
            "largest_log_likelihood": float(np.abs(sums).max()), "largest_difference_mc2": worst_mc2, "mc1_agreement": same / n} | means


def main(argv: list[str]) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", type=Path, required=True)
    p.add_argument("--data", required=True, help="a folder with mc_task.json and TruthfulQA.csv")
    p.add_argument("--harness-python", required=True, help="the python of an environment with lm_eval")
    p.add_argument("--to", type=Path, required=True)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--limit", type=int, default=0)
    a = p.parse_args(argv)
    items = [item for item in read_items(a.data)[0] if item.mc1][:a.limit or None]
    result = {"model": {"name": a.model.name, "weights": weights_hash(a.model)}, "git_commit": git_commit(), "ours": versions()}
    for prompt in ("six-shot", "zero-shot"):
        started = time.process_time()
        reader = choices.load_reader(a.model, None, setup_device(Config(device="cpu", dtype="float32"), training=False))
        ours = multiple_choice(reader, items, prompt, a.batch)
        seconds = {"ours": round(time.process_time() - started, 1)}
        if reader.cut:
            raise UserError(f"{reader.cut} prompts do not fit into the {reader.model.config.block_size} positions of {a.model}: they would be cut differently.")
        with TemporaryDirectory() as work:
            theirs, result["harness"], used = harness(a, items, prompt, Path(work))
        result[prompt] = compare(items, ours, theirs) | {"cpu_seconds": seconds | {"harness": round(used, 1)}, "start_token": f"{reader.start_token}, once, on both sides"}
        print(prompt, json.dumps(result[prompt], indent=1), flush=True)
    a.to.parent.mkdir(parents=True, exist_ok=True)
    write_json(a.to, result)


if __name__ == "__main__":
    run_main(main)
