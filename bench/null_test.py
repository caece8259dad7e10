"""Does the report cry wolf? The same weights against themselves, with two sampling seeds, many times.

    python bench/null_test.py out/toy            needs the SFT checkpoint; writes results/null_test/null_test.json

Every prompt is answered a dozen times by one model; each repeat draws two different replies per prompt, calls one of them the
other system, and makes the report's own table of paired tests. A repeat counts as a false alarm when any Holm-corrected p is
below .05: that should happen in at most 5 % of repeats, up to luck.
"""
import argparse
import json
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # import from the repository root, not from bench/

import numpy as np

from data.store import PairStore, find_data
from eval import stats, tables
from eval.measure import measure_replies
from eval.questions import from_store
from eval.replies import answer
from model import load_model
from runtime.config import load_config
from runtime.device import setup_device
from runtime.errors import UserError, run_main
from tokenizer import load_tokenizer

SAMPLES, PER_KIND, RESAMPLES = 12, 100, 2000


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("experiment", type=Path, help="a finished toy experiment, such as out/toy")
    a.add_argument("--repeats", type=int, default=300)
    a = a.parse_args(argv)
    config = load_config(["toy", f"--out={a.experiment.parent}", f"--name={a.experiment.name}", "--eval.toxicity_samples=0"])
    root = find_data(config)
    if root is None:
        raise UserError(f"there are no prepared pairs for {a.experiment}: run `python train_dpo.py toy` first.")
    device = setup_device(config, training=False)
    folder = a.experiment / "sft" / "best"
    tok, model, test = load_tokenizer(str(folder)), load_model(folder).eval(), PairStore(root / "test")
    prompts, _ = from_store(config, test, tok, config.model.block_size - config.eval.max_new_tokens, PER_KIND)
    written = answer(model, tok, prompts, config.eval.temperature, config, device, "samples", samples=SAMPLES)
    cached = [written[start:start + len(prompts)] for start in range(0, len(written), len(prompts))]

    rng, alarms, culprits, smallest = np.random.default_rng(0), 0, Counter(), []
    for repeat in range(a.repeats):
        pairs = np.array([rng.permutation(SAMPLES)[:2] for _ in prompts])
        replies = {name: [cached[k][i] for i, k in enumerate(pairs[:, side])] for side, name in enumerate(("sft", "again"))}
        m = measure_replies(prompts, replies, {}, config, "cpu")
        rows = tables.comparison_rows(m.values, m.metrics, "sft", "again", RESAMPLES, repeat)["rows"]
        low = [row["key"] for row in rows if row["p_holm"] < 0.05]
        alarms += bool(low)
        culprits.update(low)
        smallest.append(min(row["p"] for row in rows))
        if (repeat + 1) % 50 == 0:
            print(f"{repeat + 1} repeats, {alarms} false alarms", flush=True)
    rate = stats.wilson(alarms, a.repeats)
    result = {"repeats": a.repeats, "false_alarms": alarms, "rate": rate.to_dict(), "tests_per_repeat": len(rows), "prompts": len(prompts),
              "samples_per_prompt": SAMPLES, "resamples": RESAMPLES, "metrics_in_alarms": dict(culprits),
              "share_uncorrected_below_05": float(np.mean(np.array(smallest) < 0.05))}
    out = ROOT / "results" / "null_test"
    out.mkdir(parents=True, exist_ok=True)
    (out / "null_test.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{alarms} of {a.repeats} repeats with any corrected p below .05: {100 * rate.value:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]; "
          f"without correction {100 * result['share_uncorrected_below_05']:.0f} % would have one")


if __name__ == "__main__":
    run_main(main)
