"""Measure SFT against DPO on held-out prompts and pairs, and write the report.

    python -m eval.run toy            any --key=value override; --eval.temperature=0.7 and the like

Reads out/<name>/{sft,dpo}/best and the pair store's test split, which nothing else reads. Saves every reply first
(out/<name>/eval/replies.jsonl); all figures are computed from that file and from pair_logps.npz.
"""
import dataclasses
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from tqdm import tqdm

from batching import score_pairs
from data.store import PairStore, StoreWriter, find_data, write_json
from eval import annotation, measure, plots, quality, report, stats, tables, toxicity
from eval.measure import Prompt, Reply
from eval.oracle import describe_prompt
from model import GPT, load_model
from runtime.checkpoint import file_hash, find_checkpoint, git_commit, read_run, versions, without_local_paths
from runtime.config import Config, load_config
from runtime.device import Device, peak_memory_gb, setup_device
from runtime.errors import UserError, run_main
from tokenizer import ASSISTANT, HUMAN, Tokenizer, clean_reply, encode_prompt, load_tokenizer

COOL = 0.4  # SFT at a low temperature: does sharper sampling alone do what DPO does?
KL_PROMPTS = 200
ANNOTATED = 100  # prompts on each annotation sheet
HH_KINDS = {"harmless-base": "unsafe", "helpful-base": "helpful"}  # the subset a first turn comes from


def system_table(config: Config) -> dict[str, tuple[str, str, float]]:
    """The systems compared: key -> (label, stage, temperature). All sampled ones share seed, top-k and top-p."""
    t, policy = config.eval.temperature, "policy" if config.eval.policy else "DPO"
    systems = {"sft": ("SFT", "sft", t), "sft_greedy": ("SFT greedy", "sft", 0.0), "sft_cool": (f"SFT T={COOL}", "sft", COOL),
               "dpo": (policy, "dpo", t), "dpo_greedy": (f"{policy} greedy", "dpo", 0.0)}
    return {key: row for key, row in systems.items() if key in ("sft", "dpo") or row[2] != t}


def find_stages(config: Config) -> dict[str, Path]:
    """Checkpoint folders of "dpo", "sft" (its reference) and, where there is one, "base". UserError names what is missing."""
    folders = {}
    for stage in ("dpo", "sft", "base"):
        named = {"dpo": config.eval.policy, "sft": config.dpo.init_from}.get(stage)
        wanted = Path(named) if named else config.run_dir / stage / "best"
        best = find_checkpoint(wanted)
        if best is not None:
            folders[stage] = best
        elif stage != "base":
            raise UserError(f"there is no {stage.upper()} checkpoint in {wanted}: run `python train_{stage}.py {config.name}` "
                            "with the same settings first.")
    # DPO notes which weights it started from: after a later SFT run the two no longer belong together
    started_from = read_run(folders["dpo"])["fingerprint"].get("starting_weights")
    if started_from and started_from != file_hash(folders["sft"] / "model.safetensors"):
        raise UserError(f"{folders['dpo']} did not start from {folders['sft']}: run `python train_dpo.py {config.name} --fresh` "
                        "with the same settings first.")
    return folders


def find_pairs(config: Config, folders: Mapping[str, Path]) -> Path:
    """The prepared data that DPO was trained with; UserError when the settings mean other data."""
    root, used = find_data(config), read_run(folders["dpo"])["data"]
    if root is None:
        raise UserError(f"there are no prepared pairs for these settings: run `python data/prepare_hh.py {config.name}` "
                        "with the same settings first.")
    if used != root.name:
        raise UserError(f"{folders['dpo']} was trained on the prepared data {used}, these settings mean {root.name}: "
                        "use the settings of that run.")
    return root


# ---- prompts --------------------------------------------------------------------------------------------------------

def kind_of(text: str, subset: str, subsets: Sequence[str], config: Config) -> str | None:
    """The kind of a test prompt: toy by its grammar, HH by its subset (None for the two that are not asked), others "all"."""
    if config.data.source == "toy":
        return describe_prompt(text).kind
    return HH_KINDS.get(subset) if set(subsets) & set(HH_KINDS) else "all"


def pick_prompts(config: Config, test: PairStore, tok: Tokenizer, room: int) -> tuple[list[Prompt], dict]:
    """Up to `eval.prompts_per_kind` distinct test prompts of each kind, in an order drawn by `eval.seed`, and how many of what.

    Toy prompts are asked whole; of an HH dialogue only the first human turn is asked, since later turns lean on replies that
    neither system gave. A prompt longer than `room` tokens is shortened from the left, its start token kept, and counted.
    """
    subsets = test.meta["subsets"]
    kinds: dict[str, dict[str, list[int]]] = {}
    shortened = cut_off = 0
    for i in np.random.default_rng(config.eval.seed).permutation(len(test)):
        text = tok.decode(test.row(int(i))[0][1:].tolist())
        if not text.startswith(HUMAN):  # preparation shortened it: its first turn is no longer whole
            cut_off += 1
            continue
        if config.data.source != "toy":
            text = text[:text.index(ASSISTANT) + len(ASSISTANT)]
        kind = kind_of(text, subsets[int(test.index["subset"][i])], subsets, config)
        chosen = kinds.setdefault(kind, {}) if kind else {}
        if kind is None or text in chosen or len(chosen) >= config.eval.prompts_per_kind:
            continue
        ids = list(encode_prompt(tok, text)[0])
        if len(ids) > room:
            ids, shortened = ids[:1] + ids[len(ids) - room + 1:], shortened + 1
        chosen[text] = ids
    order = [kind for kind in ("unsafe", "borderline", "helpful", "all") if kind in kinds]
    prompts = [Prompt(f"{kind}-{n:04d}", kind, text, ids) for kind in order for n, (text, ids) in enumerate(kinds[kind].items())]
    if not prompts:
        raise UserError("the test split has no prompt to ask; prepare data with --data.test_fraction above 0.")
    return prompts, {"kinds": {kind: len(kinds[kind]) for kind in order}, "shortened": shortened, "left_out_because_cut": cut_off}


def spread(prompts: Sequence[Prompt], n: int) -> list[int]:
    """The first n prompts taken in turn from every kind: a fixed rule, so that nobody can choose the samples."""
    order = sorted(range(len(prompts)), key=lambda i: (int(prompts[i].id.rsplit("-", 1)[1]), i))
    return order[:n]


# ---- replies --------------------------------------------------------------------------------------------------------

def answer(model: GPT, tok: Tokenizer, prompts: Sequence[Prompt], temperature: float, config: Config, device: Device, show: str,
           plain: bool = False) -> list[Reply]:
    """One reply per prompt. `plain` ignores top-k and top-p: draws from the model's own distribution."""
    e = config.eval
    token_bytes = [tok.token_bytes(i) for i in range(tok.vocab_size)]
    replies = []
    chunks = [prompts[i:i + 4 * e.batch_size] for i in range(0, len(prompts), 4 * e.batch_size)]
    with device.autocast():
        for chunk in tqdm(chunks, desc=show, leave=False):
            for prompt, ids in zip(chunk, model.generate(
                    [p.ids for p in chunk], max_new_tokens=e.max_new_tokens, eot_id=tok.eot_id, temperature=temperature,
                    top_k=0 if plain else e.top_k, top_p=1.0 if plain else e.top_p, seed=e.seed, stop=HUMAN.encode(),
                    token_bytes=token_bytes, batch_size=e.batch_size)):
                text = tok.decode(ids)
                # generate() leaves end-of-text out: it was reached if nothing else ended the reply
                full = len(ids) >= e.max_new_tokens or len(prompt.ids) + len(ids) >= model.config.block_size
                replies.append(Reply(clean_reply(text), list(map(int, ids)), not full and HUMAN not in text))
    return replies


def score_replies(model: GPT, tok: Tokenizer, prompts: Sequence[Prompt], replies: Sequence[Reply], config: Config,
                  device: Device) -> np.ndarray:
    """log p(reply | prompt) [n] in nats, end-of-text included where the reply reached it; the same code path as for pairs."""
    with tempfile.TemporaryDirectory() as scratch:
        with StoreWriter(Path(scratch) / "replies", tok.vocab_size) as writer:
            for prompt, reply in zip(prompts, replies):
                writer.add(prompt.ids, [0] * len(prompt.ids), reply.ids + [tok.eot_id] * reply.ended, [])
            writer.close({})
        store = PairStore(Path(scratch) / "replies")
        return score_pairs(model, store, np.arange(len(store)), config.dpo.micro_tokens, device.autocast)[0]


def write_replies(path: Path, prompts: Sequence[Prompt], replies: measure.Replies, config: Config) -> None:
    """replies.jsonl: one line per (prompt, system)."""
    with open(path, "w", encoding="utf-8") as file:
        for system, (_, _, temperature) in system_table(config).items():
            for prompt, reply in zip(prompts, replies[system]):
                row = {"system": system, "temperature": temperature, "seed": config.eval.seed, "id": prompt.id, "kind": prompt.kind,
                       "prompt": prompt.text, "reply": reply.text, "ended": reply.ended, "ids": reply.ids}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_replies(path: Path) -> dict[str, list[Reply]]:
    """The replies of a replies.jsonl by system, in its order of prompts."""
    replies: dict[str, list[Reply]] = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            replies.setdefault(row["system"], []).append(Reply(row["reply"], row["ids"], row["ended"]))
    return replies


# ---- the evaluation, top to bottom ----------------------------------------------------------------------------------

def ask_models(config: Config, folders: Mapping[str, Path], prompts: Sequence[Prompt], test: PairStore, pairs: np.ndarray,
               tok: Tokenizer, device: Device, out: Path) -> dict[str, int]:
    """Everything that needs a model, one model in memory at a time: replies.jsonl and pair_logps.npz; returns their sizes.

    pair_logps.npz: `pairs`, <stage>_chosen and <stage>_rejected [pairs]; own_<stage> [replies]: what DPO and SFT think of
    replies drawn from DPO's unaltered distribution, for the KL.
    """
    systems, started = system_table(config), time.time()
    replies: dict[str, list[Reply]] = {}
    logps, parameters, own = {"pairs": pairs}, {}, []
    asked = [prompts[i] for i in spread(prompts, KL_PROMPTS)]
    for stage, folder in folders.items():  # DPO first: its own replies are scored by SFT too
        model = load_model(folder).to(device.device).eval()
        parameters[stage] = model.n_params()
        for key, (label, where, temperature) in systems.items():
            if where == stage:
                replies[key] = answer(model, tok, prompts, temperature, config, device, label)
        if stage == "dpo":
            own = answer(model, tok, asked, 1.0, config, device, "DPO at temperature 1", plain=True)
        if stage != "base":
            logps[f"own_{stage}"] = score_replies(model, tok, asked, own, config, device)
        logps[f"{stage}_chosen"], logps[f"{stage}_rejected"] = score_pairs(
            model, test, pairs, config.dpo.micro_tokens, device.autocast, show=f"{stage}: test pairs")
        print(f"{stage}: replies sampled and {len(pairs):,} pairs scored, {time.time() - started:.0f} s", flush=True)
    write_replies(out / "replies.jsonl", prompts, replies, config)
    np.savez(out / "pair_logps.npz", **logps)
    return parameters


def main(argv: list[str]) -> None:
    """Evaluate one experiment (see the top of this file)."""
    started, config = time.time(), load_config(argv)
    e, toy = config.eval, config.data.source == "toy"
    folders = find_stages(config)
    root = find_pairs(config, folders)
    toxicity.wanted_scorers(e.toxicity)  # a misspelt setting should stop here, not after the replies
    device = setup_device(config, training=False)
    tok, train, test = load_tokenizer(str(folders["dpo"])), PairStore(root / "train"), PairStore(root / "test")
    if tok.hash != test.meta["tokenizer"]["hash"]:
        raise UserError(f"the tokenizer in {folders['dpo']} is not the one the data in {root} was prepared with.")
    room = json.loads((folders["dpo"] / "config.json").read_text())["n_positions"] - e.max_new_tokens
    if room < 16:
        raise UserError(f"--eval.max_new_tokens={e.max_new_tokens} leaves only {room} tokens of the block for the prompt.")
    prompts, counts = pick_prompts(config, test, tok, room)
    pairs = np.sort(np.random.default_rng(e.seed).permutation(len(test))[:e.max_pairs or len(test)])
    print(f"{len(prompts):,} distinct test prompts ({', '.join(f'{n} {kind}' for kind, n in counts['kinds'].items())}), "
          f"{len(pairs):,} test pairs; {device.device.type} {str(device.dtype)[6:]} ({device.reason})", flush=True)

    # 1. what needs a model
    out = config.run_dir / "eval"
    out.mkdir(parents=True, exist_ok=True)
    parameters = ask_models(config, folders, prompts, test, pairs, tok, device, out)

    # 2. figures, from what was just saved
    replies = read_replies(out / "replies.jsonl")
    with np.load(out / "pair_logps.npz") as saved:
        logps = dict(saved)
    systems = system_table(config)
    labels = {key: label for key, (label, _, _) in systems.items()}
    values, metrics, scores, missing = measure.measure_replies(prompts, replies, config, device.device.type)
    by_stage = {stage: (logps[f"{stage}_chosen"], logps[f"{stage}_rejected"]) for stage in folders}
    trained = read_run(folders["dpo"])["config"]  # what was trained, not what this command line would train
    beta = trained["dpo"]["beta"]
    if not toy:
        missing.append({"metric": "win rate of DPO against SFT", "reason": "real text has no exact judge; "
                        "people can fill in pairwise_preferences_for_annotation.csv"})
    summary = {
        "name": config.name, "facts": facts(config, folders, parameters, tok, root, test, counts, device),
        "systems": {key: dict(zip(("label", "stage", "temperature"), row)) for key, row in systems.items()},
        "metrics": tables.metric_rows(values, metrics, e.bootstrap, e.seed),
        "comparisons": [tables.comparison_rows(values, metrics, first, "dpo", e.bootstrap, e.seed)
                        for first in systems if first.startswith("sft")],
        "win_rates": measure.win_rates(prompts, replies, labels, train, tok) if toy else [],
        "reward_accuracy": measure.reward_accuracy(test, pairs, train, by_stage, tok, beta, toy, e.bootstrap, e.seed),
        "perplexity": measure.perplexity_rows(test, pairs, by_stage, tok, e.bootstrap, e.seed),
        "kl": stats.mean(quality.kl_samples(logps["own_dpo"], logps["own_sft"]), e.bootstrap, e.seed).to_dict(),
        "not_measured": missing, "config": without_local_paths(trained | {"eval": dataclasses.asdict(config.eval)})}

    # 3. files for people
    plots.training_curves(config.run_dir, out / "training_curves.png")
    plots.toxicity_distribution(
        out / "toxicity_distribution.png", insult_shares(prompts, values, labels),
        {scorer: {labels[system]: found for system, found in by_system.items()} for scorer, by_system in scores.items()},
        [f"{m['metric']}: {m['reason']}" for m in missing if m["metric"].startswith("toxicity")])
    write_sheets(out, prompts, replies, labels, e.seed)
    annotation.write_comparison(out, summary["metrics"], labels, summary["comparisons"][0], missing)
    summary["facts"] |= {"seconds": round(time.time() - started, 1), "peak_memory_gb": round(peak_memory_gb(device.device), 2)}
    write_json(out / "results_summary.json", summary)
    report.write_report(out)
    print(f"\n{report.terminal_table(summary)}\n\nreport: {out / 'report.html'} ({time.time() - started:.0f} s)")


def facts(config: Config, folders: Mapping[str, Path], parameters: Mapping[str, int], tok: Tokenizer, root: Path, test: PairStore,
          counts: dict, device: Device) -> dict:
    """What a reader needs in order to repeat or to doubt the figures."""
    stages = {}
    for stage, folder in folders.items():
        run, last = read_run(folder), find_checkpoint(folder.parent / "last")
        finished = last is None or read_run(last)["finished"]  # a lone checkpoint (dpo.init_from) has no last/ beside it
        stages[stage] = {"folder": without_local_paths(str(folder)), "parameters": parameters[stage], "finished": finished}
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
