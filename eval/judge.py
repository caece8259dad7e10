"""Compare the replies of an evaluation with a judge, and write the report again.

    python -m eval.judge out/toy/eval reward                                     our own reward model (python train_reward.py toy)
    python -m eval.judge out/toy/eval llm --model gpt-4o-mini                    any OpenAI-compatible server: --base-url=http://localhost:8000/v1
    python -m eval.judge out/toy/eval people --sheets anna.csv ben.csv           filled pairwise_preferences_for_annotation.csv, one per person
    python -m eval.judge out/toy/eval people --sheets anna.csv --ratings anna_ratings.csv       ... and helpfulness_for_annotation.csv

llm --refusals also has the LLM label who refuses, beside the rules of eval/refusal.py.

Every judge follows the protocol of eval/pairwise.py and leaves judged_<judge>.json in the folder, which the report reads.
"""
import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from batching import make_batch, micro_batches, row_lengths
from data.store import PairStore, write_json
from eval import agreement, annotation, llm_judge, pairwise, ranking, report, stats
from eval.measure import KIND_NAMES
from eval.oracle import describe_prompt, judge_reply
from eval.quality import words
from eval.questions import fit
from eval.refusal import classify
from eval.replies import Prompt, Replies, as_store, read_rows
from eval.reward_accuracy import accuracy, ranked_right
from reward_model import RewardModel, load_reward_model
from runtime.checkpoint import read_run, weights_hash
from runtime.errors import UserError, run_main
from tokenizer import Tokenizer, encode_prompt, encode_response, load_tokenizer

GOOD = 1  # the oracle's score from which a reply is good for something: two equal replies below it are "both bad"


# ---- the toy oracle -------------------------------------------------------------------------------------------------

def oracle_win_rates(prompts: Sequence[Prompt], replies: Replies, labels: Mapping[str, str], known: Mapping[str, list[str]],
                     resamples: int, seed: int) -> list[dict]:
    """Toy only: pairs of systems compared by the exact oracle, DPO also against copying the nearest training prompt's reply.

    known: {"prompt", "chosen"} texts of the training pairs.
    """
    asked = [i for i, prompt in enumerate(prompts) if (prompt.group or prompt.kind) == prompt.kind]  # the toy world's own prompts
    questions, kinds = [prompts[i].text for i in asked], [prompts[i].kind for i in asked]
    texts = {labels[system]: [wrote[i].text for i in asked] for system, wrote in replies.items()}
    copied, main = "copying the nearest training prompt's reply", labels["dpo"]
    texts[copied] = pairwise.nearest_training_replies(known["prompt"], known["chosen"], questions)
    facts = [describe_prompt(question) for question in questions]
    scores = {label: np.array([judge_reply(fact, text).score for fact, text in zip(facts, wrote)]) for label, wrote in texts.items()}
    rows = [("all prompts", other, main) for other in texts if other not in (main, labels.get("dpo_greedy"))]
    rows[1:1] = [(KIND_NAMES[kind], labels["sft"], main) for kind in dict.fromkeys(kinds)]
    if "sft_greedy" in labels and "dpo_greedy" in labels:
        rows.append(("all prompts", labels["sft_greedy"], labels["dpo_greedy"]))
    result = []
    for which, first, second in rows:
        kept = [i for i, kind in enumerate(kinds) if which in ("all prompts", KIND_NAMES[kind])]
        judged = pairwise.by_score(scores[first][kept], scores[second][kept], bad_below=GOOD)
        lengths = ([len(words(texts[label][i])) for i in kept] for label in (first, second))
        result.append({"prompts": which, "first": first, "second": second} | pairwise.plain(
            pairwise.summarize(judged, *lengths, resamples=resamples, seed=seed)))
    return correct(result)


def correct(rows: list[dict]) -> list[dict]:
    """The rows with Holm's correction over their sign tests."""
    for row, corrected in zip(rows, stats.holm([row["p"] for row in rows])):
        row["p_holm"] = corrected
    return rows


# ---- what every judge of a finished evaluation shares ----------------------------------------------------------------

def load(folder: Path) -> tuple[dict, dict[str, list[dict]]]:
    """(results_summary.json, replies.jsonl by system); all systems must have answered the same prompts in the same order."""
    try:
        summary = json.loads((folder / "results_summary.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no evaluation: run `python -m eval.run CONFIG` first.") from None
    systems: dict[str, list[dict]] = {}
    for row in read_rows(folder / "replies.jsonl"):
        systems.setdefault(row["system"], []).append(row)
    ids = [[row["id"] for row in rows] for rows in systems.values()]
    if any(other != ids[0] for other in ids):
        raise UserError(f"{folder / 'replies.jsonl'}: the systems answered different prompts; run `python -m eval.run CONFIG` again.")
    return summary, systems


def compare_all(summary: Mapping, systems: Mapping[str, list[dict]], scores: Mapping[str, np.ndarray]) -> tuple[list[dict], dict]:
    """Every pair of systems by score: (rows as in oracle_win_rates, Bradley-Terry ranking of all of them; {"missing": why} without one)."""
    e = summary["config"]["eval"]
    lengths = {system: [len(words(row["reply"])) for row in rows] for system, rows in systems.items()}
    labels = {system: summary["systems"][system]["label"] for system in systems}
    rows, games = [], []
    for first, second in combinations(systems, 2):
        judged = pairwise.by_score(scores[first], scores[second])
        rows.append({"prompts": "all prompts", "first": labels[first], "second": labels[second]} | pairwise.plain(
            pairwise.summarize(judged, lengths[first], lengths[second], resamples=e["bootstrap"], seed=e["seed"])))
        games += [(labels[first], labels[second], pairwise.settle(verdict), i) for i, verdict in enumerate(judged)]
    return correct(rows), rank(games, e["seed"])


def rank(games: Sequence[tuple[str, str, str, int]], seed: int) -> dict:
    """Bradley-Terry strengths on the Elo scale from games (first, second, settled verdict, prompt), whole prompts resampled."""
    outcome = {"a": 1.0, "b": 0.0, "tie": 0.5, "both bad": 0.5}
    played = [(first, second, outcome[verdict], prompt) for first, second, verdict, prompt in games if verdict != "unjudged"]
    try:
        return ranking.ranking_table(played, seed=seed)
    except UserError as problem:  # one system wins always: the win rates say so, and stand without a ranking
        return {"rows": [], "missing": str(problem)}


def finish(folder: Path, name: str, content: dict) -> None:
    """Write judged_<name>.json and the report."""
    write_json(folder / f"judged_{name}.json", content)
    report.write_report(folder)


# ---- (a) a reward model ---------------------------------------------------------------------------------------------

@torch.no_grad()
def reward_scores(model: RewardModel, store: PairStore, branches: int, micro_tokens: int = 8192) -> np.ndarray:
    """Rewards [n, branches] of every row of a store."""
    model.eval()
    scores = np.zeros((len(store), branches))
    for rows in micro_batches(np.arange(len(store)), row_lengths(store, branches), micro_tokens):
        batch = make_batch(store, rows, branches=branches).to(model.device)
        values = model(batch.ids, batch.positions, batch.segments, batch.last)
        scores[batch.pairs] = values.view(-1, branches).cpu().numpy()
    return scores


def held_out_accuracy(model: RewardModel, test: PairStore, tok: Tokenizer, resamples: int, seed: int) -> dict:
    """How often the reward model ranks held-out pairs as labelled, whole prompts resampled: the trust its verdicts deserve."""
    scores = reward_scores(model, test, 2)
    prompts = [tuple(test.row(i)[0].tolist()) for i in range(len(test))]
    found = accuracy(ranked_right(scores[:, 0], scores[:, 1]), prompts, resamples, seed)
    return found | {"accuracy": found["accuracy"].to_dict()}


def by_reward_model(folder: Path, checkpoint: Path, test: PairStore) -> None:
    """Judge all systems of an evaluation; a reply is scored as if it had ended where it was cut."""
    summary, systems = load(folder)
    model, tok, e = load_reward_model(checkpoint), load_tokenizer(str(checkpoint)), summary["config"]["eval"]
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    trained, asked_about = read_run(checkpoint)["data"], summary["facts"]["data"]["folder"]
    if trained != asked_about:  # its training pairs may be this evaluation's held-out ones
        raise UserError(f"the reward model in {checkpoint} was trained on the prepared data {trained}, this evaluation is of {asked_about}: "
                        "run `python train_reward.py CONFIG --fresh` with the same settings.")
    if tok.hash != test.meta["tokenizer"]["hash"]:
        raise UserError(f"the reward model in {checkpoint} has another tokenizer than the test pairs.")
    scores = {}
    for system, rows in systems.items():
        # a reply of broken bytes takes more tokens to write down than it took to generate: what does not fit is not scored
        replies = [encode_response(tok, row["reply"])[:model.config.block_size - 1] for row in rows]
        asked = [fit(encode_prompt(tok, row["prompt"])[0], model.config.block_size - len(reply))[0] for row, reply in zip(rows, replies)]
        with as_store(list(zip(asked, replies)), tok.vocab_size) as store:
            scores[system] = reward_scores(model, store, 1)[:, 0]
    rows, ranked = compare_all(summary, systems, scores)
    found = held_out_accuracy(model, test, tok, e["bootstrap"], e["seed"])
    share = found["accuracy"]["value"]
    finish(folder, "reward", {
        "judge": "reward model", "weights": weights_hash(checkpoint), "accuracy": found, "comparisons": rows, "ranking": ranked,
        "margins": {row["id"]: float(b - a) for row, a, b in zip(systems["sft"], scores["sft"], scores["dpo"])},
        "note": f"Trained on the same pairs as DPO; it ranks {100 * share:.1f} % of {found['pairs']:,} held-out pairs right, and its verdicts are worth no more than that."})


# ---- (b) an LLM -----------------------------------------------------------------------------------------------------

def by_llm(folder: Path, client: llm_judge.ChatClient, limit: int, refusals: bool = False) -> None:
    """Judge DPO against SFT, both orders of every pair, on the first `limit` prompts of every group in turn (0 = all); with
    `refusals` also label every one of these replies."""
    summary, systems = load(folder)
    e = summary["config"]["eval"]
    order = sorted(range(len(systems["sft"])), key=lambda i: (int(systems["sft"][i]["id"].rsplit("-", 1)[1]), i))[:limit or None]
    sft, dpo = ([systems[system][i] for i in order] for system in ("sft", "dpo"))
    judged = llm_judge.judge_pairs(client, [row["prompt"] for row in sft], [row["reply"] for row in sft], [row["reply"] for row in dpo])
    lengths = ([len(words(row["reply"])) for row in rows] for rows in (sft, dpo))
    row = {"prompts": f"the first {len(sft)} of {len(systems['sft'])} prompts" if len(sft) < len(systems["sft"]) else "all prompts",
           "first": summary["systems"]["sft"]["label"], "second": summary["systems"]["dpo"]["label"]}
    row |= pairwise.plain(pairwise.summarize(judged, *lengths, resamples=e["bootstrap"], seed=e["seed"]))
    labelled = refusal_labels(client, {"sft": sft, "dpo": dpo}, summary) if refusals else None
    finish(folder, "llm", {"judge": f"LLM {client.model}", "refusals": labelled, "prompt_version": llm_judge.PROMPT_VERSION, "totals": client.totals(), "comparisons": correct([row]),
                           "verdicts": {a["id"]: list(pair) for a, pair in zip(sft, judged)}, "note": "Every pair was judged in both orders."})


def refusal_labels(client: llm_judge.ChatClient, rows: Mapping[str, list[dict]], summary: Mapping) -> list[dict]:
    """Full refusals per group and system by the LLM, and its agreement with the rules (Cohen's kappa over three classes)."""
    table = []
    for system, replies in rows.items():
        labels = llm_judge.judge_refusals(client, [row["prompt"] for row in replies], [row["reply"] for row in replies])
        rules = [classify(row["reply"]).label for row in replies]
        for group in dict.fromkeys(row["group"] for row in replies if row["kind"] != "all"):
            kept = [i for i, row in enumerate(replies) if row["group"] == group and labels[i] != "unjudged"]
            if kept:
                full, kappa = sum(labels[i] == "full" for i in kept), agreement.cohen_kappa([labels[i] for i in kept], [rules[i] for i in kept])
                table.append({"system": summary["systems"][system]["label"], "group": group, "full": stats.wilson(full, len(kept)).to_dict(),
                              "unjudged": sum(row["group"] == group for row in replies) - len(kept), "kappa_with_rules": None if np.isnan(kappa) else kappa})
    return table


# ---- (c) people -----------------------------------------------------------------------------------------------------

def by_people(folder: Path, sheets: Sequence[Path], ratings: Sequence[Path] = ()) -> None:
    """Judge by the annotators' majority; every annotator on their own and their agreement beside it. `ratings`: filled helpfulness sheets."""
    summary, systems = load(folder)
    e = summary["config"]["eval"]
    votes = annotation.read_pairwise(sheets, folder / "pairwise_preferences_key.csv")
    first, second = (summary["systems"][system]["label"] for system in ("sft", "dpo"))
    code = {first: "a", second: "b", "tie": "tie", "both bad": "both bad", None: "unjudged"}
    reply = {system: {row["id"]: row["reply"] for row in rows} for system, rows in systems.items()}
    lengths = [[len(words(reply[system][item])) for item in votes.items] for system in ("sft", "dpo")]
    voters = {"majority of " + ", ".join(votes.votes): votes.majority()} | votes.votes if len(votes.votes) > 1 else votes.votes
    rows = []
    for name, by_item in voters.items():
        judged = [(code[by_item.get(item)],) * 2 for item in votes.items]
        rows.append({"prompts": name, "first": first, "second": second} | pairwise.plain(
            pairwise.summarize(judged, *lengths, resamples=e["bootstrap"], seed=e["seed"])))
    finish(folder, "people", {"judge": "people", "helpfulness": helpfulness(ratings, folder / "helpfulness_key.csv", e) if ratings else None, "comparisons": correct(rows), "missing": votes.missing,
                              "agreement": agreement.summary(votes.table(), resamples=e["bootstrap"], seed=e["seed"]) if len(votes.votes) > 1 else None,
                              "note": " ".join([f"{count} of {len(votes.items)} rows were left empty by {name}." for name, count in votes.missing.items() if count] + list(votes.notices)
                                               + ["The sheets are blind: which system is A was drawn per row, so there is one order per pair."])})


def helpfulness(sheets: Sequence[Path], key: Path, e: Mapping) -> dict:
    """Mean rating from 1 to 5 per system, averaged over annotators first, the paired difference, and their agreement (alpha, ordinal)."""
    votes = annotation.read_helpfulness(sheets, key)
    mean = {item: value for item, value in votes.mean().items() if value is not None}
    result: dict = {"missing": votes.missing, "systems": {}}
    for system in votes.systems:
        values = [value for (_, name), value in mean.items() if name == system]
        result["systems"][system] = stats.mean(values, e["bootstrap"], e["seed"]).to_dict() if values else None
    both = [prompt for prompt, name in mean if name == votes.systems[0] and (prompt, votes.systems[1]) in mean]
    if both:
        a, b = ([mean[prompt, system] for prompt in both] for system in votes.systems[:2])
        result["difference"] = {"of": f"{votes.systems[1]} - {votes.systems[0]}", "p": stats.sign_flip_test(a, b, e["bootstrap"], e["seed"]),
                                "interval": stats.mean_difference(a, b, e["bootstrap"], e["seed"]).to_dict()}
    if any(sum(vote is not None for vote in item) > 1 for item in votes.table()):
        alpha = agreement.krippendorff_alpha(votes.table(), "ordinal")
        result["alpha_ordinal"] = None if np.isnan(alpha) else alpha
    return result


def main(argv: list[str]) -> None:
    """See the top of this file."""
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("folder", type=Path, help="an evaluation, such as out/toy/eval")
    a.add_argument("judge", choices=("reward", "llm", "people"))
    a.add_argument("--checkpoint", type=Path, help="reward: the model [<folder>/../reward/best]")
    llm_judge.add_arguments(a)
    a.add_argument("--limit", type=int, default=0, help="llm: judge only so many prompts; 0 = all")
    a.add_argument("--refusals", action="store_true", help="llm: label refusals too")
    a.add_argument("--ratings", type=Path, nargs="+", default=(), help="people: filled helpfulness sheets, one per annotator")
    a.add_argument("--sheets", type=Path, nargs="+", help="people: filled sheets, one per annotator")
    a = a.parse_args(argv)
    if a.judge == "reward":
        summary, _ = load(a.folder)
        checkpoint = a.checkpoint or a.folder.parent / "reward" / "best"
        if not checkpoint.exists():
            raise UserError(f"there is no reward model in {checkpoint}: python train_reward.py CONFIG makes one.")
        by_reward_model(a.folder, checkpoint, PairStore(a.folder.parents[1] / "data" / summary["facts"]["data"]["folder"] / "test"))
    elif a.judge == "llm":
        by_llm(a.folder, llm_judge.client_from(a, a.folder / "llm_cache"), a.limit, a.refusals)
    elif not a.sheets:
        raise UserError("people: give the filled sheets with --sheets FILE [FILE ...].")
    else:
        by_people(a.folder, a.sheets, a.ratings)
    print(f"{a.folder / f'judged_{a.judge}.json'} and {a.folder / 'report.html'} written.")


if __name__ == "__main__":
    run_main(main)
