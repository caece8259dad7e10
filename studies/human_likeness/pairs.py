"""Scored dialogues -> preference pairs: of two dialogues about one persona, the more human-like one is chosen.

    python -m studies.human_likeness.pairs SCORED.csv --to pairs.jsonl [--min-margin 0.5] [--cap 3] [--same-generator] [--length-balanced] [--noise-sd .78]
    python -m studies.human_likeness.pairs --audit pairs.jsonl human_llama_3_2_1b [--model.init_from=FOLDER]      token lengths against a training config

SCORED holds persona_id, prompt, dialogue_id, model, dialogue and a score column. Every pair keeps its margin and where both sides come from.
"""
import argparse
import hashlib
import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from chat_tokenizer import load_chat_tokenizer
from data.store import write_json, write_lines
from runtime.config import load_config
from runtime.errors import UserError, check_file, run_main
from studies.human_likeness.storage import command_line, read_lines, read_table

SURE = 1.6448536269514722  # standard normal: a difference beyond it is real in 95 of 100 one-sided cases


@dataclass(frozen=True)
class Scored:
    """A dialogue with its human-likeness score (log-odds) and who wrote it."""
    dialogue_id: str
    persona_id: str
    prompt: str
    dialogue: str
    generator: str
    score: float
    ratings: int = 1  # how many ratings the score is the mean of


@dataclass(frozen=True)
class Pair:
    """One preference pair with its provenance; margin: score difference in standard deviations of all scores."""
    id: str
    persona_id: str
    prompt: str
    chosen: str
    rejected: str
    margin: float
    chosen_id: str
    rejected_id: str
    chosen_generator: str
    rejected_generator: str
    chosen_score: float
    rejected_score: float


def read_scored(path: Path, score: str = "score", with_problems: bool = False) -> tuple[list[Scored], Counter]:
    """(the usable rows of a CSV, how many are left out and why): dialogues without a score, and (unless wanted) those with swapped roles or a missing
    speaker, whose score is another speaker's. UserError for a missing column, a score or number of ratings that is none, and a dialogue that comes twice."""
    rows, seen, out = [], set(), Counter()
    for row in read_table(path, ("persona_id", "prompt", "dialogue_id", "dialogue", score)):
        if row["dialogue_id"] in seen:
            raise UserError(f"{path.name}: dialogue {row['dialogue_id']} comes twice.")
        seen.add(row["dialogue_id"])
        if not row[score].strip() or row.get("problems") and not with_problems:
            out["no score" if not row[score].strip() else row["problems"]] += 1
            continue
        try:
            value = float(row[score])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(f"{path.name}, dialogue {row['dialogue_id']}: {score} is {row[score]!r}, not a number.")
        ratings = row.get("valid_ratings") or "1"
        if not ratings.isdecimal() or not int(ratings):
            raise UserError(f"{path.name}, dialogue {row['dialogue_id']}: valid_ratings is {ratings!r}, not how many ratings the score is the mean of.")
        rows.append(Scored(row["dialogue_id"], row["persona_id"], row["prompt"], row["dialogue"], row.get("model") or "", value, int(ratings)))
    return rows, out


def draw(seed: int, *names: str) -> float:
    """A number in [0, 1) that depends on its arguments alone, so that no choice depends on the order of rows."""
    return int.from_bytes(hashlib.blake2b("\x1f".join((str(seed), *names)).encode(), digest_size=8).digest()) / 2**64


def all_pairs(rows: Iterable[Scored], sd: float) -> list[Pair]:
    """Every two dialogues of one persona with different scores, the higher one chosen; margins in units of `sd`."""
    by_persona: dict[str, list[Scored]] = defaultdict(list)
    for row in rows:
        by_persona[row.persona_id].append(row)
    pairs = []
    for persona, own in by_persona.items():
        if len({row.prompt for row in own}) > 1:
            raise UserError(f"persona {persona} has more than one prompt: pairs need the same one on both sides.")
        for a, b in combinations(sorted(own, key=lambda row: row.dialogue_id), 2):
            if a.score == b.score or a.dialogue.strip() == b.dialogue.strip():
                continue
            good, bad = (a, b) if a.score > b.score else (b, a)
            pairs.append(Pair(f"{good.dialogue_id}>{bad.dialogue_id}", persona, good.prompt, good.dialogue, bad.dialogue, (good.score - bad.score) / sd,
                              good.dialogue_id, bad.dialogue_id, good.generator, bad.generator, good.score, bad.score))
    return pairs


def build_pairs(rows: Sequence[Scored], min_margin: float = 0.5, cap: int = 0, same_generator: bool = False, length_balanced: bool = False,
                noise_sd: float = 0.0, seed: int = 0) -> tuple[list[Pair], Counter]:
    """(the pairs, how many were left out by which rule). Margins must exceed `min_margin` standard deviations of all scores.

    cap: at most this many pairs of a persona, chosen by (seed, pair) alone. same_generator: both sides by one model, so that what is learnt is no
    model's house style. noise_sd: the spread of a score when the same dialogue is judged once more; a mean of k ratings has 1 / sqrt(k) of it, and a
    difference must be beyond what noise does in 95 of 100 cases. length_balanced, the last rule: as many pairs whose chosen side is the longer one as
    the shorter, in every band of length ratios. ValueError with fewer than two rows or no spread.
    """
    sd = statistics.stdev(row.score for row in rows)
    if not sd:
        raise ValueError("all scores are equal")
    out: Counter = Counter()

    def keep(pairs: list[Pair], rule: str, wanted: Iterable[bool]) -> list[Pair]:
        kept = [pair for pair, yes in zip(pairs, wanted) if yes]
        out[rule] += len(pairs) - len(kept)
        return kept

    pairs = all_pairs(rows, sd)
    if same_generator:
        pairs = keep(pairs, "two generators", [p.chosen_generator == p.rejected_generator for p in pairs])
    pairs = keep(pairs, f"margin up to {min_margin:g} sd", [p.margin > min_margin for p in pairs])
    if noise_sd:
        of = {row.dialogue_id: row.ratings for row in rows}
        noise = [noise_sd * math.sqrt(1 / of[p.chosen_id] + 1 / of[p.rejected_id]) for p in pairs]
        pairs = keep(pairs, "a difference that may be the judge's noise", [p.chosen_score - p.rejected_score > SURE * sigma for p, sigma in zip(pairs, noise)])
    if cap:
        ranks: Counter = Counter()
        chosen = set()
        for pair in sorted(pairs, key=lambda p: draw(seed, "cap", p.id)):
            ranks[pair.persona_id] += 1
            if ranks[pair.persona_id] <= cap:
                chosen.add(pair.id)
        pairs = keep(pairs, f"more than {cap} of a persona", [p.id in chosen for p in pairs])
    if length_balanced:
        pairs = keep(pairs, "length balance", balanced(pairs, seed))
    return sorted(pairs, key=lambda p: (p.persona_id, p.id)), out


def length_ratio(pair: Pair) -> float:
    """log(words of chosen / words of rejected)."""
    return math.log(max(1, len(pair.chosen.split())) / max(1, len(pair.rejected.split())))


def balanced(pairs: Sequence[Pair], seed: int, band: float = 0.1) -> list[bool]:
    """Which pairs to keep so that in every band of |length_ratio| as many are longer as shorter on the chosen side."""
    bands: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for i, pair in enumerate(pairs):
        ratio = length_ratio(pair)
        if ratio:
            bands[int(abs(ratio) / band)][ratio > 0].append(i)
    kept = {i for i, pair in enumerate(pairs) if not length_ratio(pair)}
    for sides in bands.values():
        n = min(map(len, sides))
        for side in sides:
            kept |= set(sorted(side, key=lambda i: draw(seed, "length", pairs[i].id))[:n])
    return [i in kept for i in range(len(pairs))]


def report(rows: Sequence[Scored], pairs: Sequence[Pair], out: Counter, noise_sd: float = 0.0) -> dict:
    """What a reader should know before training on the pairs: counts by reason, length confound, generators, labels that noise may have turned."""
    personas = {row.persona_id for row in rows}
    ratios = np.array([length_ratio(pair) for pair in pairs])
    found = {"dialogues": len(rows), "personas": len(personas), "score_mean": statistics.fmean(r.score for r in rows), "score_sd": statistics.stdev(r.score for r in rows),
             "pairs": len(pairs), "personas_with_pairs": len({p.persona_id for p in pairs}), "distinct_chosen": len({p.chosen_id for p in pairs}),
             "distinct_rejected": len({p.rejected_id for p in pairs}), "left_out": dict(out), "margin_mean_sd": float(np.mean([p.margin for p in pairs])) if pairs else None,
             "chosen_is_shorter_share": float((ratios < 0).mean()) if pairs else None, "median_words_chosen_over_rejected": float(np.exp(np.median(ratios))) if pairs else None,
             "same_generator_share": float(np.mean([p.chosen_generator == p.rejected_generator for p in pairs])) if pairs else None,
             "chosen_by_generator": dict(Counter(p.chosen_generator for p in pairs).most_common()), "rejected_by_generator": dict(Counter(p.rejected_generator for p in pairs).most_common())}
    if noise_sd and pairs:  # P(the true order is the other one) of normal noise, every true difference being as likely as any other
        of = {row.dialogue_id: row.ratings for row in rows}
        sigmas = [noise_sd * math.sqrt(1 / of[p.chosen_id] + 1 / of[p.rejected_id]) for p in pairs]
        found["expected_share_turned_by_noise"] = float(np.mean([0.5 * math.erfc((p.chosen_score - p.rejected_score) / (sigma * math.sqrt(2))) for p, sigma in zip(pairs, sigmas)]))
    return found


def audit(path: Path, argv: Sequence[str]) -> dict:
    """Token lengths of the pairs under a training config's tokenizer, template and block: what will be cut or dropped, before anything is trained."""
    from model import find_folder
    config = load_config(list(argv))
    tokenizer, block = load_chat_tokenizer(find_folder(config.model.init_from)), config.model.block_size
    pairs = read_lines(path, ("prompt", "chosen", "rejected"))
    system = [{"role": "system", "content": config.data.system}] * bool(config.data.system)
    encoded = tokenizer.encode_conversations([[*system, {"role": "user", "content": p["prompt"]}] for p in pairs])
    if refused := [number for number, ids in enumerate(encoded, 1) if isinstance(ids, ValueError)]:
        raise UserError(f"{path} line {refused[0]}: the chat template refuses the prompt ({encoded[refused[0] - 1]}).")
    prompts = [len(ids) for ids, _ in encoded]
    longer = [max(map(len, tokenizer.encode_responses([p["chosen"], p["rejected"]]))) for p in pairs]
    total = np.array(prompts) + np.array(longer)
    bare = len(tokenizer.encode_messages([{"role": "user", "content": ""}])[0])
    return {"pairs": len(pairs), "block": block, "prompt_tokens_median": float(np.median(prompts)), "longer_reply_tokens_median": float(np.median(longer)),
            "longest": int(total.max()), "prompt_would_be_cut": int((total > block).sum()), "pair_would_be_dropped": int((np.array(longer) + bare >= block).sum())}


def main(argv: list[str]) -> None:
    if argv[:1] == ["--audit"]:
        if len(argv) < 3:
            raise UserError("--audit needs the file of pairs and a config.")
        found = audit(Path(argv[1]), argv[2:])
        print(json.dumps(found, indent=1))
        if found["prompt_would_be_cut"] or found["pair_would_be_dropped"]:
            print(f"{found['prompt_would_be_cut']:,} prompts would be cut and {found['pair_would_be_dropped']:,} pairs dropped: --model.block_size={found['longest']} holds them all.")
        return
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("scored", type=Path)
    a.add_argument("--to", type=Path, required=True)
    a.add_argument("--score", default="score", help="name of the score column")
    a.add_argument("--min-margin", type=float, default=0.5, help="in standard deviations of all scores")
    a.add_argument("--cap", type=int, default=0, help="most pairs of a persona; 0 = all")
    a.add_argument("--same-generator", action="store_true")
    a.add_argument("--length-balanced", action="store_true")
    a.add_argument("--noise-sd", type=float, default=0.0, help="spread of a score over repeated judging of one dialogue (judging reports it as within_sd)")
    a.add_argument("--with-problems", action="store_true", help="dialogues with swapped roles or a missing speaker as well")
    a.add_argument("--seed", type=int, default=0)
    a = a.parse_args(argv)
    if a.cap < 0 or not 0 <= a.noise_sd < math.inf:
        raise UserError("--cap and --noise-sd must be 0 or more.")
    check_file("--to", a.to, a.scored)
    rows, unusable = read_scored(a.scored, a.score, a.with_problems)
    if len({row.score for row in rows}) < 2:
        raise UserError(f"{a.scored} needs at least two different scores.")
    pairs, out = build_pairs(rows, a.min_margin, a.cap, a.same_generator, a.length_balanced, a.noise_sd, a.seed)
    if not pairs:
        raise UserError(f"no pair is left ({'; '.join(f'{n} out by {rule}' for rule, n in out.items())}): lower --min-margin.")
    write_lines(a.to, map(asdict, pairs))
    found = report(rows, pairs, out, a.noise_sd) | {"dialogues_left_out": dict(unusable), "command": command_line("pairs", argv)}
    write_json(a.to.with_suffix(".report.json"), found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    run_main(main)
