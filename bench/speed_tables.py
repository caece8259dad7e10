"""The tables of docs/speed.md and the README's line on speed, from results/speed/."""
import json
import statistics
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "results" / "speed"


def load(name: str) -> dict[str, Any]:
    """One benchmark's result."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def middle(values: list[float]) -> str:
    """Median [smallest, largest]."""
    return f"{statistics.median(values):.3g} [{min(values):.3g}, {max(values):.3g}]"


def ladder_part() -> str:
    """The ideas one after the other."""
    s = load("ladder")
    first = s["rungs"][0]["pairs_per_second"]
    rows = [[r["rung"], f"{r['pairs_per_second']:.2f}", f"{r['pairs_per_second'] / first:.2f}", middle(r["seconds_per_step"]), f"{r['memory_gb']:.1f}", f"{r['gradient_gap']:.0e}"] for r in s["rungs"]]
    return f"""## The ladder

DPO steps of {s['batch']} real HH pairs, GPT-2 small's shape, the reference's pass counted in the first row only (over one epoch computing it beforehand saves memory, not time), on {s['device']}, {s['threads']} threads, torch {s['torch']}. The steps differ in length, hence the spread. The last column compares the gradient of a few pairs with the first row's.

{table(["", "pairs/s", "×", "s per step", "GB", "gradient differs by"], rows)}"""


def times(s: dict[str, Any], reference: bool = False) -> float:
    """Our speed over the other system's; with `reference` our pass over the pairs beforehand is charged to us."""
    seconds = 1 / s["pairs_per_second"] + (1 / s["reference_pairs_per_second"] if reference else 0)
    return 1 / seconds / statistics.median(other["per_second"] for other in s["beside"])


def dpo_rows() -> list[list[str]]:
    """Our DPO step beside TRL's. Memory is that of TRL's first run: rusage lets a later one inherit what our own process held."""
    rows = []
    for name, what in (("dpo_beside_trl", "TRL, bf16, precomputed reference"), ("dpo_beside_trl_defaults", "TRL, float32, reference in every step")):
        s = load(name)
        rows.append([what, str(s["batch"]), f"{s['pairs_per_second']:.2f}, {s['dtype']}", middle([other["per_second"] for other in s["beside"]]), f"{times(s):.1f}",
                     f"{times(s, True):.1f}" if name.endswith("defaults") else "", f"{s['memory_gb']:.1f}", f"{s['beside'][0]['peak_gb']:.1f}", f"{s['gflops']:.0f} of {s['peak_gflops']:.0f}"])
    return rows


def peers_part() -> str:
    """Ratios to other systems on the same machine in the same minutes."""
    curve = load("dpo_loss_curve")
    sft = {d: load(f"sft_{d}") for d in ("float32", "bfloat16")}
    generation = {d: load(f"generate_{d}") for d in ("float32", "bfloat16")}
    sft_rows = [[d, f"{s['hh']['ratio']:.2f}", f"{s['packed text']['ratio'][d]:.2f}", f"{100 * s['hh']['mfu']:.0f} %"] for d, s in sft.items()]
    gen_rows = [[d, f"{g['tokens_per_second']['ours']:.0f}", f"{g['tokens_per_second']['hugging face']:.0f}", f"{g['ratio']:.2f}", f"{100 * g['share_of_products_only']:.0f} %",
                 f"{g['trained']['ratio']:.1f}", "; ".join(f"{name} {speed:.0f}" for name, speed in g["trained"]["tokens_per_second"].items())] for d, g in generation.items()]
    return f"""## Beside other systems

DPO, against TRL's DPOTrainer (1.16), same pairs, each in its own process. In the first row both compute the reference beforehand, and it is counted on neither side. In the second TRL computes it
in every step; over a single epoch that is as much work as our pass beforehand, which the next column therefore adds. TRL 1.16 itself would by default use
bf16 and checkpoint activations; this row is the plain configuration. TRL was run with 8 pairs per step only, without torch.compile: by its memory for 8, a step of 32 would need more than this machine's 24 GB:

{table(["against", "pairs per step", "ours, pairs/s", "theirs, pairs/s", "×", "× if ours pays for its reference pass", "ours, GB", "theirs, GB", "our GFLOP/s of the peak measured then"], dpo_rows())}

From the same weights, {len(curve['losses'])} steps of {curve['batch']} pairs in float32: the losses, {curve['losses'][0]:.4f} to {curve['losses'][-1]:.4f}, differ from TRL's by at most {curve['largest_loss_difference']:.0e}.

SFT: useful tokens per second against rows padded to {sft['float32']['hh']['block']}, both under the same autocast; and a whole step, in the format of the row, on packed text against nanoGPT's own model and step in float32:

{table(["format", "× padded rows", "× nanoGPT, float32", "utilisation (HH)"], sft_rows)}

Generation against Hugging Face `generate`, same format: {generation['float32']['prompts']} prompts × {generation['float32']['tokens']} tokens with GPT-2 small's shape, and beside a loop of the matrix products alone; then
{generation['float32']['trained']['prompts']} prompts with limits of 8 to 128 tokens on a trained model of {generation['float32']['trained']['checkpoint_parameters'] / 1e6:.1f}M parameters, each system at the fastest batch size of those tried:

{table(["format", "ours, tok/s", "theirs, tok/s", "×", "of products only", "× (300 prompts)", "tok/s (300 prompts)"], gen_rows)}"""


def data_part() -> str:
    """Preparation and growth."""
    s = load("prepare")
    rows = [[name, f"{s['rows']:,}", f"{s[name]['text_mb']:.0f}", f"{s[name]['tokens'] / 1e6:.1f}", f"{s[name]['seconds']:.0f}", f"{s[name]['memory_gb']:.2f}"] for name in ("gpt2", "bpe")]
    g = s["growth"]
    sizes = list(g["tokens_per_second"])
    return f"""## Data

Preparing as many rows as HH has (repeated from the files at hand, each copy made distinct: the amount of text is real, its variety is not), BPE training included in the second row:

{table(["tokenizer", "rows", "MB of text", "M tokens", "s", "GB"], rows)}

Training on {int(sizes[1]):,} stored pairs runs at {g['ratio']:.3f} of the speed on {int(sizes[0]):,}; peak memory {g['memory_gb'][sizes[0]]:.2f} and {g['memory_gb'][sizes[1]]:.2f} GB."""


def t4_part() -> str:
    """hh_small on a T4, counted."""
    s = load("t4_plan")
    rows = [[r["stage"], f"{r['tokens_millions']:.1f}", f"{r['fp16_pflops']:.1f}", f"{r['float32_pflops']:.2f}", f"{r['minutes']:.0f}"] for r in s["stages"]]
    memory = [[what, f"{size / 1e9:.2f}"] for what, size in s["bytes"].items()]
    one_speed = sum(r["fp16_pflops"] + r["float32_pflops"] for r in s["stages"]) * 1e3 / s["assumed_fp16_tflops"] / 3600
    return f"""## hh_small on a T4: counted, not measured

All of HH, one epoch of SFT and one of DPO with its reference pass: **{one_speed:.2f} hours at {s['assumed_fp16_tflops']} TFLOP/s for everything, {s['hours']:.2f} hours if float32 runs at {s['assumed_float32_tflops']}** (assumed: 35 % of what the chip sustains in
either format; to be replaced by a measurement), and **{s['memory_gb']:.1f} GB**. The minutes below are of the second, slower count.
Positions of padding are counted as work: {100 * (1 - s['useful_share_of_positions']['sft']):.0f} % in SFT, {100 * (1 - s['useful_share_of_positions']['dpo']):.0f} % in DPO; so is the masked half of attention. Validation is not counted.

{table(["stage", "M tokens", "PFLOP in fp16", "PFLOP in float32", "minutes"], rows)}

{table(["memory", "GB"], memory)}

`hh_30m`, counted in the same way (`bench/t4_plan.py hh_30m`; its base stage with full rows): {60 * load("t4_plan_hh_30m")['hours']:.0f} minutes, {load("t4_plan_hh_30m")['memory_gb']:.1f} GB."""


def readme_part() -> str:
    """The front page's table."""
    ladder, best, defaults = load("ladder"), load("dpo_beside_trl"), load("dpo_beside_trl_defaults")
    ours, theirs = ladder["rungs"][-1], ladder["rungs"][0]
    memory = best["memory_gb"] / best["beside"][0]["peak_gb"]
    sft, generation = load("sft_bfloat16"), {d: load(f"generate_{d}") for d in ("float32", "bfloat16")}
    return f"""## How fast

Measured on {ladder['device']}, {ladder['threads']} threads, GPT-2 small's shape, real HH pairs; how, and what is equal to what: `docs/speed.md`.

{table(["against", "speed", "memory"], [
    ["a plain DPO step (padded rows, all logits, float32)", f"{ours['pairs_per_second'] / theirs['pairs_per_second']:.1f} ×", f"{100 * ours['memory_gb'] / theirs['memory_gb']:.0f} %"],
    ["TRL's DPOTrainer, bf16, precomputed reference", f"{times(best):.1f} ×", f"{100 * memory:.0f} %"],
    ["TRL's DPOTrainer, float32, reference in every step", f"{times(defaults):.1f} × ({times(defaults, True):.1f} × with our reference pass counted)", f"{100 * defaults['memory_gb'] / defaults['beside'][0]['peak_gb']:.0f} %"],
    ["nanoGPT's step, float32, packed text", f"{sft['packed text']['ratio']['bfloat16']:.1f} × in bf16, {load('sft_float32')['packed text']['ratio']['float32']:.1f} × in float32", ""],
    ["Hugging Face generate, 16 prompts", f"{generation['float32']['ratio']:.1f} × in float32, {generation['bfloat16']['ratio']:.1f} × in bf16", ""],
    ["Hugging Face generate, 300 prompts with their own limits, 5M parameters", f"{generation['float32']['trained']['ratio']:.1f} × in float32", ""]])}"""
