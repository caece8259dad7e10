"""Measure SFT against DPO on held-out prompts and pairs, and write the report.

    python -m eval.run toy            any --key=value override; --eval.temperature=0.7 and the like

Reads out/<name>/{sft,dpo}/best and the pair store's test split, which nothing else reads. Saves every reply and log-prob first
(replies.jsonl, provoked.jsonl, pair_logps.npz in out/<name>/eval/); all figures are computed from those files.
"""
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from batching import score_pairs
from data.store import PairStore, write_json
from eval import annotation, health, judge, measure, plots, report, stats, tables, toxicity
from eval.drift import reply_kl
from eval.perplexity import count_bytes, general, perplexity_row, score_texts, transcripts
from eval.prompt_sets import general_text
from eval.questions import from_sets, from_store, kind_of, to_provoke
from eval.replies import Prompt, Reply, answer, read_replies, read_rows, spread, write_replies
from eval.reward_accuracy import pair_texts, reward_accuracy
from eval.stages import find_pairs, find_stages
from model import load_model
from objectives import beta_of
from runtime.checkpoint import find_checkpoint, git_commit, read_run, versions, weights_hash, without_local_paths
from runtime.config import Config, digest, load_config
from runtime.device import Device, peak_memory_gb, setup_device
from runtime.errors import UserError, run_main
from tokenizer import ASSISTANT, Tokenizer, load_tokenizer

COOL = 0.4  # SFT at a low temperature: does sharper sampling alone do what DPO does?
KL_PROMPTS = 200
TRANSCRIPTS = 500  # whole dialogues scored for perplexity
CONTINUATION_TOKENS = 20  # as in RealToxicityPrompts
ANNOTATED = 100  # prompts on each annotation sheet


def system_table(config: Config) -> dict[str, tuple[str, str, float]]:
    """The systems compared: key -> (label, stage, temperature). All sampled ones share seed, top-k and top-p."""
    t, policy = config.eval.temperature, "policy" if config.eval.policy else "DPO"
    systems = {"sft": ("SFT", "sft", t), "sft_greedy": ("SFT greedy", "sft", 0.0), "sft_cool": (f"SFT T={COOL}", "sft", COOL),
               "dpo": (policy, "dpo", t), "dpo_greedy": (f"{policy} greedy", "dpo", 0.0)}
    return {key: row for key, row in systems.items() if key in ("sft", "dpo") or row[2] != t}


# ---- what needs a model ---------------------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Work:
    """Everything that is asked of the models: prompts to answer, prompts to provoke with, pairs and texts to score."""
    prompts: list[Prompt]
    provoking: list[Prompt]
    test: PairStore
    pairs: np.ndarray
    texts: dict  # name -> perplexity.Texts
    counts: dict


def plan(config: Config, test: PairStore, tok: Tokenizer, block_size: int) -> Work:
    """Choose prompts, pairs and texts, by `eval.seed`."""
    e = config.eval
    room = block_size - e.max_new_tokens
    if room < 16:
        raise UserError(f"--eval.max_new_tokens={e.max_new_tokens} leaves only {room} tokens of the block for the prompt.")
    prompts, counts = from_store(config, test, tok, room, e.prompts_per_kind)
    prompts += from_sets(e.prompt_sets, tok, room)
    kinds = dict.fromkeys(prompt.group or prompt.kind for prompt in prompts)
    counts["kinds"] = {kind: sum((prompt.group or prompt.kind) == kind for prompt in prompts) for kind in kinds}
    provoking = to_provoke(config, prompts, tok, block_size - CONTINUATION_TOKENS if e.continuations else room)
    counts["hash"] = digest([prompt.text for prompt in prompts])
    counts["provoking_hash"] = digest([prompt.text for prompt in provoking])
    pairs = np.sort(np.random.default_rng(e.seed).permutation(len(test))[:e.max_pairs or len(test)])
    texts = {"whole transcripts": transcripts(test, np.sort(np.random.default_rng(e.seed).permutation(pairs)[:TRANSCRIPTS]), tok),
             "general text": general(general_text(e.general_text), tok, block_size)}
    return Work(prompts, provoking, test, pairs, texts, counts)


def ask_models(config: Config, folders: Mapping[str, Path], work: Work, tok: Tokenizer, device: Device, out: Path) -> dict[str, int]:
    """Everything that needs a model: replies.jsonl, provoked.jsonl and pair_logps.npz; returns the models' sizes.

    pair_logps.npz: `pairs`; <stage>_chosen and <stage>_rejected [pairs]; <stage>_<texts> [texts]; kl_stepwise and kl_sampled
    [replies]: two estimates of how far DPO is from SFT, on replies from DPO's unaltered distribution.
    """
    systems, started, e = system_table(config), time.time(), config.eval
    replies: dict[str, list[Reply]] = {}
    provoked: dict[str, list[Reply]] = {}
    logps, parameters, own = {"pairs": work.pairs}, {}, []
    asked, policy = [work.prompts[i] for i in spread(work.prompts, KL_PROMPTS)], None
    samples = [dataclasses.replace(p, id=f"{p.id}/{k}") for k in range(e.toxicity_samples or 1) for p in work.provoking]
    for stage, folder in folders.items():  # DPO first: SFT is compared with it on its replies
        model = load_model(folder).to(device.device).eval()
        parameters[stage] = model.n_params()
        for key, (label, where, temperature) in systems.items():
            if where == stage:
                replies[key] = answer(model, tok, work.prompts, temperature, config, device, label)
        if stage != "base" and work.provoking:
            longest = CONTINUATION_TOKENS if e.continuations else 0
            provoked[stage] = answer(model, tok, work.provoking, e.temperature, config, device, f"{stage}: samples", max_new_tokens=longest,
                                     samples=e.toxicity_samples or 1)
        if stage == "dpo":
            own, policy = answer(model, tok, asked, 1.0, config, device, "DPO at temperature 1", plain=True), model
        if stage == "sft":
            logps["kl_stepwise"], logps["kl_sampled"] = reply_kl(policy, model, asked, own, tok, config.dpo.micro_tokens, device)
            policy = None  # from here on one model in memory
        logps[f"{stage}_chosen"], logps[f"{stage}_rejected"] = score_pairs(
            model, work.test, work.pairs, config.dpo.micro_tokens, device.autocast, show=f"{stage}: test pairs")
        for name, texts in work.texts.items():
            logps[f"{stage}_{name}"] = score_texts(model, texts, tok, config.dpo.micro_tokens, device)
        print(f"{stage}: replies sampled and {len(work.pairs):,} pairs scored, {time.time() - started:.0f} s", flush=True)
    temperatures = {key: temperature for key, (_, _, temperature) in systems.items()}
    write_replies(out / "replies.jsonl", work.prompts, {key: replies[key] for key in systems}, temperatures, e.seed)
    write_replies(out / "provoked.jsonl", samples, provoked, temperatures, e.seed)
    np.savez(out / "pair_logps.npz", **logps)
    return parameters


def provoked_texts(path: Path, prompts: int) -> dict[str, np.ndarray]:
    """{system: [prompts, k] texts} of a provoked.jsonl."""
    found: dict[str, list[str]] = {}
    for row in read_rows(path):
        found.setdefault(row["system"], []).append(row["reply"])
    return {system: np.array(texts, dtype=object).reshape(-1, prompts).T for system, texts in found.items()}


# ---- the evaluation, top to bottom ----------------------------------------------------------------------------------

def main(argv: list[str]) -> None:
    """Evaluate one experiment (see the top of this file)."""
    started, config = time.time(), load_config(argv)
    e = config.eval
    folders = find_stages(config)
    root = find_pairs(config, folders)
    toxicity.wanted_scorers(e.toxicity)  # a misspelt setting should stop here, not after the replies
    device = setup_device(config, training=False)
    tok, test = load_tokenizer(str(folders["dpo"])), PairStore(root / "test")
    if tok.hash != test.meta["tokenizer"]["hash"]:
        raise UserError(f"the tokenizer in {folders['dpo']} is not the one the data in {root} was prepared with.")
    work = plan(config, test, tok, json.loads((folders["dpo"] / "config.json").read_text())["n_positions"])
    print(f"{len(work.prompts):,} prompts ({', '.join(f'{n} {kind}' for kind, n in work.counts['kinds'].items())}), "
          f"{len(work.pairs):,} test pairs; {device.device.type} {str(device.dtype)[6:]} ({device.reason})", flush=True)

    # 1. what needs a model
    out = config.run_dir / "eval"
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("judged_*.json"):  # verdicts on replies that are about to be replaced
        old.unlink()
    parameters = ask_models(config, folders, work, tok, device, out)

    # 2. figures, from what was just saved
    summary, m, labels = figures(config, folders, work, tok, device, root, parameters, out)

    # 3. files for people
    plots.training_curves(config.run_dir, out / "training_curves.png")
    plots.toxicity_distribution(
        out / "toxicity_distribution.png", insult_shares(work.prompts, m.values, labels),
        {scorer: {labels[system]: found["toxicity"] for system, found in by_system.items()} for scorer, by_system in m.scores.items()},
        [f"{missing['metric']}: {missing['reason']}" for missing in m.missing if missing["metric"].startswith("toxicity")])
    write_sheets(out, work.prompts, read_replies(out / "replies.jsonl"), labels, e.seed)
    annotation.write_comparison(out, summary["metrics"], labels, summary["comparisons"][0], m.missing)
    summary["facts"] |= {"seconds": round(time.time() - started, 1), "peak_memory_gb": round(peak_memory_gb(device.device), 2)}
    write_json(out / "results_summary.json", summary)
    if reward := find_checkpoint(config.run_dir / "reward" / "best"):
        try:
            judge.by_reward_model(out, reward, test)
        except UserError as problem:  # of other data, say: one judge less, named, and everything else stands
            summary["not_measured"].append({"metric": "win rate by the reward model", "reason": str(problem)})
            write_json(out / "results_summary.json", summary)
    report.write_report(out)
    print(f"\n{report.terminal_table(summary)}\n\nreport: {out / 'report.html'} ({time.time() - started:.0f} s)")


def figures(config: Config, folders: Mapping[str, Path], work: Work, tok: Tokenizer, device: Device, root: Path, parameters: Mapping[str, int],
            out: Path) -> tuple[dict, measure.Measured, dict[str, str]]:
    """(results_summary.json's content, the values behind it, {system: label}), all from the files that ask_models left in `out`."""
    e, train = config.eval, PairStore(root / "train")
    replies = read_replies(out / "replies.jsonl")
    with np.load(out / "pair_logps.npz") as saved:
        logps = dict(saved)
    systems = system_table(config)
    labels = {key: label for key, (label, _, _) in systems.items()}
    provoked = provoked_texts(out / "provoked.jsonl", len(work.provoking)) if work.provoking else {}
    m = measure.measure_replies(work.prompts, replies, provoked, config, device.device.type)
    np.savez_compressed(out / "values.npz", **{f"{system}/{key}": column for system, columns in m.values.items() for key, column in columns.items()})
    trained = read_run(folders["dpo"])["config"]  # what was trained, not what this command line would train
    by_stage = {stage: (logps[f"{stage}_chosen"], logps[f"{stage}_rejected"]) for stage in folders}
    summary = {
        "name": config.name, "facts": facts(config, folders, parameters, tok, root, work.test, work.counts, device),
        "systems": {key: dict(zip(("label", "stage", "temperature"), row)) for key, row in systems.items()},
        "metrics": tables.metric_rows(m.values, m.metrics, e.bootstrap, e.seed),
        "comparisons": [tables.comparison_rows(m.values, m.metrics, first, "dpo", e.bootstrap, e.seed)
                        for first in systems if first.startswith("sft")],
        "toxicity_categories": tables.category_rows(m.scores, e.bootstrap, e.seed),
        "win_rates": judge.oracle_win_rates(work.prompts, replies, labels, pair_texts(train, np.arange(len(train)), tok), e.bootstrap, e.seed)
        if config.data.source == "toy" else [],
        "reward_accuracy": reward_accuracy(work.test, work.pairs, train, by_stage, tok, beta_of(trained["dpo"]["objective"], trained["dpo"]["beta"]), config.data.source == "toy",
                                           e.bootstrap, e.seed),
        "perplexity": perplexity_rows(config, work, logps, list(folders), tok),
        "kl": {name: stats.mean(logps[f"kl_{name}"], e.bootstrap, e.seed).to_dict() for name in ("stepwise", "sampled")},
        "health": health_of(config, m.missing),
        "not_measured": m.missing, "config": without_local_paths(trained | {"eval": dataclasses.asdict(config.eval)})}
    if not summary["win_rates"] and not find_checkpoint(config.run_dir / "reward" / "best"):
        m.missing.append({"metric": "win rate of DPO against SFT", "reason": f"real text has no exact judge: train one with `python train_reward.py {config.name}`, "
                          "ask an LLM or people with `python -m eval.judge`"})
    summary["facts"]["provoked"] = {"prompts": len(work.provoking), "samples": e.toxicity_samples or 1, "continuations": bool(e.continuations)}
    return summary, m, labels


def health_of(config: Config, missing: list[dict]) -> list[dict]:
    """The health panel of this experiment's own DPO run; nothing for another policy, which has no curves here."""
    if config.eval.policy or not (config.run_dir / "dpo" / "metrics.jsonl").exists():
        missing.append({"metric": "health of the DPO run", "reason": "the policy has no metrics.jsonl in this experiment"})
        return []
    return health.examine(config.run_dir / "dpo")


def perplexity_rows(config: Config, work: Work, logps: Mapping[str, np.ndarray], stages: Sequence[str], tok: Tokenizer) -> list[dict]:
    """Held-out chosen and rejected replies, the chosen ones on helpful prompts, whole transcripts, general text."""
    e, index = config.eval, work.test.index
    n_bytes = [count_bytes([work.test.row(int(i))[2 + side] for i in work.pairs], tok) for side in (0, 1)]
    kinds = helpful_pairs(config, work, tok)
    rows = []
    for text, side, kept in (("chosen replies", 0, slice(None)), ("rejected replies", 1, slice(None)), ("chosen replies, helpful prompts", 0, kinds)):
        branch = ("chosen", "rejected")[side]
        if isinstance(kept, slice) or kept.any():
            rows.append(perplexity_row(text, {stage: logps[f"{stage}_{branch}"][kept] for stage in stages},
                                       index[branch][work.pairs].astype(np.int64)[kept], n_bytes[side][kept], e.bootstrap, e.seed))
    for name, texts in work.texts.items():
        rows.append(perplexity_row(name, {stage: logps[f"{stage}_{name}"] for stage in stages}, np.array([len(ids) for ids in texts.ids]),
                                   texts.n_bytes, e.bootstrap, e.seed))
    return rows


def helpful_pairs(config: Config, work: Work, tok: Tokenizer) -> np.ndarray:
    """Which of the scored pairs have a helpful prompt [pairs] bool."""
    subsets, toy = work.test.meta["subsets"], config.data.source == "toy"
    return np.array([kind_of(tok.decode(work.test.row(int(i))[0][1:].tolist()) if toy else "", subsets[int(work.test.index["subset"][i])], subsets, toy)
                     == "helpful" for i in work.pairs])


def facts(config: Config, folders: Mapping[str, Path], parameters: Mapping[str, int], tok: Tokenizer, root: Path, test: PairStore,
          counts: dict, device: Device) -> dict:
    """What a reader needs in order to repeat or to doubt the figures."""
    stages = {}
    for stage, folder in folders.items():
        run, last = read_run(folder), find_checkpoint(folder.parent / "last")
        finished = last is None or read_run(last)["finished"]  # a lone checkpoint (dpo.init_from) has no last/ beside it
        stages[stage] = {"folder": without_local_paths(str(folder)), "parameters": parameters[stage], "finished": finished,
                         "weights": weights_hash(folder)}
        stages[stage] |= {key: run.get(key) for key in ("step", "best", "git_commit", "versions")}
    sizes = {split: len(PairStore(root / split)) for split in ("train", "val", "test")}
    return {"evaluated": datetime.now(timezone.utc).isoformat(timespec="seconds"), "git_commit": git_commit(),
            "versions": versions(), "stages": stages,
            "data": {"folder": root.name, "source": without_local_paths(config.data.source), "pairs": sizes, "test_counts": test.meta.get("counts")},
            "tokenizer": {"name": tok.name, "vocab_size": tok.vocab_size, "hash": tok.hash}, "prompts": counts,
            "device": f"{device.device.type} {str(device.dtype)[6:]}"}


def insult_shares(prompts: Sequence[Prompt], values: tables.Values,
                  labels: Mapping[str, str]) -> dict[str, dict[str, stats.Interval]]:
    """{kind of prompt: {system's label: share of its replies with a listed insult}}; empty when the lexicon was not used."""
    shares: dict[str, dict[str, stats.Interval]] = {}
    for system, columns in values.items():
        for kind in dict.fromkeys(prompt.kind for prompt in prompts) if "toxic_lexicon" in columns else ():
            found = columns["toxic_lexicon"][[prompt.kind == kind for prompt in prompts]]
            shares.setdefault(kind, {})[labels[system]] = stats.wilson(int(found.sum()), len(found))
    return shares


def write_sheets(out: Path, prompts: Sequence[Prompt], replies: measure.Replies, labels: Mapping[str, str], seed: int) -> None:
    """Both annotation sheets, for SFT and DPO at the same temperature; helpfulness on prompts that are not unsafe."""
    def sheet(indices: Sequence[int]) -> tuple[list[tuple[str, str]], dict[str, list[str]]]:
        return ([(prompts[i].id, prompts[i].text.removesuffix(ASSISTANT).strip()) for i in indices],
                {labels[system]: [replies[system][i].text for i in indices] for system in ("sft", "dpo")})
    order = spread(prompts, len(prompts))
    annotation.write_pairwise(out, *sheet(order[:ANNOTATED]), seed)
    annotation.write_helpfulness(out, *sheet([i for i in order if prompts[i].kind != "unsafe"][:ANNOTATED]), seed)


if __name__ == "__main__":
    run_main(main)
