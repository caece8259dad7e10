"""The whole study in miniature on two CPU cores: from Turing-test transcripts to the curve of a model trained to sound human.

    python -m studies.human_likeness.miniature --out out/human_toy [--results results/human_likeness/miniature] [--seed 0] [--quick]

Every stage is one of the study's own commands; a scripted server (scripted.py) stands in for the language models, and our GPT is what is trained. It shows
that the chain works and what its figures look like. What the score rewards is what the scripted writers vary: it says nothing about people.
"""
import argparse
import contextlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from data.store import write_json, write_lines
from eval.tables import with_interval
from runtime.errors import UserError, run_main
from runtime.jobs import call
from studies.human_likeness import classifier, cluster, discover, evaluate, judge, pairs, personas, scripted, storage, synthesize
from tokenizer import ASSISTANT, HUMAN

GAMES, PARENTS, CHILDREN, DIALOGUES = 80, 40, 4, 4
MARKER = "this_is_a_miniature.txt"
QUICK = {"games": 40, "parents": 16, "sft": ["--sft.max_steps=70"], "dpo": ["--dpo.max_steps=5"]}


def write_games(path: Path, n: int, seed: int) -> None:
    """Turing-test games in the layout of the public file: one witness talks as the human-like writers do, the other as the formal ones."""
    rows = []
    for game in range(n):
        rng = Random(f"game {seed} {game}")
        human = rng.choice("AB")
        said = {side: scripted.talk(rng, rng.uniform(0.5, 1) if side == human else rng.uniform(0, 0.6), rng.choice(scripted.COMPLAINTS), rng.choice(scripted.TIMES), ("W", "I"),
                                    rng.randint(3, 5)) for side in "AB"}
        rows.append({"game_id": game, "conversation_A_transcript": said["A"], "conversation_B_transcript": said["B"], "who_is_human": human})
    storage.write_table(path, rows)


def write_parents(path: Path, n: int, seed: int) -> None:
    """People described by sixteen traits each."""
    rng = Random(f"parents {seed}")
    write_lines(path, [{"id": f"p{i}", "age": rng.randint(20, 90), "sex": rng.choice(("Female", "Male")),
                                **{f"trait_{k}": rng.choice(("calm", "busy", "tidy", "shy", "loud", "kind")) for k in range(16)}} for i in range(n)])


def as_transcripts(rows: list[dict], to: Path) -> None:
    """Pairs in HH's layout, which our GPT's preparation reads."""
    write_lines(to, [{side: f"{HUMAN} {row['prompt']}{ASSISTANT} {row[side]}" for side in ("chosen", "rejected")} for row in rows])


def train(script: str, out: Path, *settings: str) -> None:
    """One of the two training scripts, as a user runs it. UserError with its last words when it fails."""
    if said := call([script, "human_toy", f"--out={out.parent}", f"--name={out.name}", *settings], out / f"{Path(script).stem}.log", threads=2):
        raise UserError(f"{script} failed: {said}")


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--out", type=Path, default=Path("out/human_toy"), help="everything that is made; deleted first")
    a.add_argument("--results", type=Path, help="where the figures are copied to")
    a.add_argument("--seed", type=int, default=0)
    a.add_argument("--quick", action="store_true", help="a few games, people and steps: does every stage work?")
    a = a.parse_args(argv)
    out, started = a.out.resolve(), time.time()
    if out.is_file() or out.exists() and any(out.iterdir()) and not (out / MARKER).exists():
        raise UserError(f"{a.out} holds something else than a miniature: name another --out.")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARKER).write_text("made by studies.human_likeness.miniature, which deletes this folder when it is run again\n")
    write_games(out / "games.csv", QUICK["games"] if a.quick else GAMES, a.seed)
    os.environ.setdefault("OPENAI_API_KEY", "none")
    seconds: dict[str, float] = {}

    def stage(name: str, work: Callable[[list[str]], None], *arguments: object) -> None:
        begun, told = time.time(), io.StringIO()
        with contextlib.redirect_stdout(told):
            work([str(argument) for argument in arguments])
        seconds[name] = round(time.time() - begun, 1)
        (out / f"{name.replace(' ', '_')}.log").write_text(told.getvalue())
        print(f"{time.time() - started:5.0f} s  {name}", flush=True)

    with scripted.Server() as url:
        run_chain(a, out, url, stage)
    write_json(out / "seconds.json", seconds)
    summary = summarise(out, seconds, a)
    print(summary)
    if a.results:
        a.results.mkdir(parents=True, exist_ok=True)
        (a.results / "summary.md").write_text(summary)
        for name in ("curves.json", "curves.md", "curves.png", "items_0.png"):
            shutil.copy(out / "curves" / name, a.results / name)


def run_chain(a: argparse.Namespace, out: Path, url: str, stage: Callable[..., None]) -> None:
    """All stages in their order (see the top of this file)."""
    server, draft, quick = ["--base-url", url, "--concurrency", "8"], out / "items.yaml", a.quick
    # 1. what makes people sound human -> a questionnaire -> a score
    stage("discover", discover.main, out / "games.csv", "--to", out / "statements.jsonl", "--model", "finder", *server)
    stage("cluster", cluster.main, out / "statements.jsonl", "--to", out / "clusters", "--min-cluster-size", 5, "--dims", 4)
    stage("reduce", cluster.main, "reduce", out / "clusters", "--to", draft, "--items", 8, "--model", "finder", *server)
    stage("witnesses", discover.main, "witnesses", out / "games.csv", "--to", out / "witnesses.csv")
    stage("judge witnesses", judge.main, out / "witnesses.csv", "--to", out / "rated.csv", "--turing", "--questionnaire", draft, "--ratings", 2, "--model", "judge", *server)
    stage("classifier", classifier.main, out / "rated.csv", "--to", out / "score", "--questionnaire", draft, "--keep", 0, "--folds", 5, "--repeats", 2)
    scoring = ["--weights", out / "score" / "weights.json", "--questionnaire", draft, "--model", "judge", *server]
    # 2. personas -> dialogues -> pairs
    write_parents(out / "parents.jsonl", QUICK["parents"] if quick else PARENTS, a.seed)
    stage("personas", personas.main, out / "parents.jsonl", "--to", out / "personas", "--children", CHILDREN, "--dev", 0, "--test", 0.25, "--seed", a.seed)
    for split in ("train", "test"):
        stage(f"dialogues {split}", synthesize.main, out / "personas" / f"{split}.jsonl", "--to", out / f"{split}.sqlite", "--models", *(f"{name}={url}" for name in scripted.STYLES),
              "--per-persona", DIALOGUES if split == "train" else 1, "--seed", a.seed, "--concurrency", 8)
    stage("export", storage.main, out / "train.sqlite", "--to", out / "dialogues.csv")
    stage("prompts", storage.main, out / "test.sqlite", "--to", out / "prompts.csv", "--prompts-only")
    stage("judge dialogues", judge.main, out / "dialogues.csv", "--to", out / "scored.csv", *scoring)
    stage("pairs", pairs.main, out / "scored.csv", "--to", out / "pairs.jsonl", "--cap", 3)
    # 3. our GPT learns to write all the dialogues, and then which are preferred
    chosen = storage.read_lines(out / "pairs.jsonl", ("prompt", "chosen", "rejected"))
    everything = storage.read_table(out / "dialogues.csv", ("prompt", "dialogue"))
    as_transcripts([{"prompt": row["prompt"], "chosen": row["dialogue"], "rejected": f"not this: {row['dialogue']}"} for row in everything], out / "dialogues_hh.jsonl")
    as_transcripts(chosen, out / "pairs_hh.jsonl")
    stage("sft", lambda settings: train("train_sft.py", out, *settings), f"--data.source={out / 'dialogues_hh.jsonl'}", f"--seed={a.seed}", *(QUICK["sft"] if quick else []))
    base = out / "sft" / "best"
    stage("dpo", lambda settings: train("train_dpo.py", out, *settings), f"--data.source={out / 'pairs_hh.jsonl'}", f"--data.tokenizer={base}", f"--dpo.init_from={base}", f"--seed={a.seed}",
          f"--dpo.samples_file={out / 'prompts.csv'}", *(QUICK["dpo"] if quick else []))
    # 4. what the model writes, epoch by epoch
    stage("score samples", evaluate.main, "score", out, *scoring)
    stage("curves", evaluate.main, "curves", out, "--to", out / "curves", "--questionnaire", draft)


def summarise(out: Path, seconds: dict[str, float], a: argparse.Namespace) -> str:
    """The last epoch against the model before training, and what each stage took, as Markdown."""
    model = next(iter(json.loads((out / "curves" / "curves.json").read_text())["models"].values()))
    last, base = model["curve"][-1], model["curve"][0]
    score = json.loads((out / "score" / "classifier.json").read_text())["models"]
    told = json.loads((out / "pairs.report.json").read_text())
    return "\n".join([
        "# The human-likeness study in miniature", "",
        f"Generated by `python -m studies.human_likeness.miniature --seed {a.seed}{' --quick' if a.quick else ''}`; scripted models, our GPT, {sum(seconds.values()):.0f} s.", "",
        f"- Classifier on {len(storage.read_table(out / 'games.csv', ()))} games: AUC {with_interval(next(iter(score.values()))['auc'])}, by game.",
        f"- {told['dialogues']} dialogues of {told['personas']} personas, {told['pairs']} pairs; the chosen side is the shorter one in {told['chosen_is_shorter_share']:.0%}.",
        f"- Human-likeness of the model's own dialogues, {last['n']} test prompts: {evaluate.cell(base['score'])} before, {evaluate.cell(last['score'])} after epoch {last['epoch']}; "
        f"difference {evaluate.cell(last.get('difference'))}, p {last.get('p_holm', float('nan')):.2g} (Holm over epochs).",
        f"- Length: {base['words_per_turn']:.1f} words a turn before, {last['words_per_turn']:.1f} after; at equal length {evaluate.cell(last.get('at_equal_length'))} of the difference is left.", "",
        "| stage | seconds |", "|---|---|", *(f"| {name} | {taken:.1f} |" for name, taken in seconds.items()), ""])


if __name__ == "__main__":
    run_main(main)
