"""How long easy and medium negatives take, and that they are the same everywhere: seconds, memory, counts and a sha256 of all rows.

    python bench/curriculum_negatives.py [--source FILE.jsonl] [--questions 25000] [--seed 0] [--out FOLDER]

Writes results/curriculum_dpop/negatives.json. Without --source it invents its questions from the seed: each over a passage of its own, asking for a
person, a place, a firm, a film, a year, a date, a number or a price, some answered in a sentence, some by yes or no. A source
holds {question, answers or right_answer, context or knowledge} a line.
"""
import argparse
import hashlib
import json
import platform
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # import from the repository root, not from bench/

from data.sources import parse_object, read_lines
from data.store import write_json
from eval.qa_metrics import MONTHS
from runtime.errors import UserError, run_main
from studies.curriculum_dpop.negatives import easy, medium
from studies.curriculum_dpop.quantities import pick
from studies.curriculum_dpop.rows import Question

SYLLABLES = "ba bel cor da den dor el fal gar hal im ker lan mar mor nel or pas quin ras sal tar ul vel wen yor zan".split()
PLACES, FIRMS, GENRES = "County City Island Valley Bay".split(), "Company Records University Airlines Group".split(), "film song novel album".split()


def name(rng: Random, words: int = 1) -> str:
    """An invented name of capitalised words."""
    return " ".join("".join(pick(rng, SYLLABLES) for _ in range(2 + (rng.random() < 0.5))).title() for _ in range(words))


def invented(number: int, seed: int) -> Question:
    """Question `number` of the invented source: eight facts of one subject in a passage, one of them asked for."""
    rng = Random(f"{seed}:{number}")
    subject, genre = name(rng, 2), pick(rng, GENRES)
    facts = {"person": name(rng, 2), "place": f"{name(rng)} {pick(rng, PLACES)}" if rng.random() < 0.5 else name(rng), "firm": f"{name(rng)} {pick(rng, FIRMS)}",
             "work": name(rng, 1 + int(3 * rng.random())), "year": str(1850 + int(170 * rng.random())),
             "date": f"{1 + int(28 * rng.random())} {pick(rng, MONTHS).title()} {1850 + int(170 * rng.random())}",
             "number": f"{int(10 ** (1 + 5 * rng.random())):,}", "price": f"${1 + int(900 * rng.random())} million"}
    context = (f"{subject} was founded by {facts['person']} near {facts['place']}. It opened on {facts['date']}, after plans of {facts['year']}, and cost "
               f"{facts['price']}. Since then {facts['firm']} has owned it. About {facts['number']} people work there, and the {genre} {facts['work']} was made in its halls. "
               f"The building lies by the water and was enlarged twice. Visitors come by rail, and the grounds are open all year round.")
    asked = {"person": f"Who founded {subject}?", "place": f"In which city was {subject} founded?", "firm": f"What company owns {subject}?",
             "work": f"Which {genre} was made at {subject}?", "year": f"In what year was {subject} planned?", "date": f"When did {subject} open?",
             "number": f"How many people work at {subject}?", "price": f"How much did {subject} cost?"}
    kind = pick(rng, list(facts))
    question, answer = asked[kind], facts[kind]
    if rng.random() < 0.2:
        answer = {"person": f"{subject} was founded by {answer}.", "year": f"It was planned in {answer}."}.get(kind, f"The answer is {answer}.")
    elif rng.random() < 0.08:
        question, answer = f"Is {subject} near {facts['place']}?", "yes"
    return Question(f"q{number}", question, context, (answer,), "invented", subject)


def read_questions(path: Path) -> list[Question]:
    """Questions of a .jsonl file (also .gz). UserError for a line without a question or an answer."""
    questions = []
    for number, line in enumerate(read_lines(path), 1):
        row = parse_object(line)
        answers = row.get("answers") or [row.get("right_answer")]
        if not isinstance(row.get("question"), str) or not all(isinstance(answer, str) for answer in answers):
            raise UserError(f"{path.name} line {number}: \"question\" and \"answers\" (or \"right_answer\") are needed.")
        questions.append(Question(f"q{number}", row["question"], row.get("context") or row.get("knowledge") or "", tuple(answers), path.name))
    return questions


def peak_memory_gb() -> float | None:
    """The most memory this process has held, in gigabytes (1e9); None where the system does not say."""
    try:
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024 / 1e9
    except (OSError, StopIteration):
        return None


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", help="a .jsonl or .jsonl.gz file of questions; empty = invented ones")
    parser.add_argument("--questions", type=int, default=25_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(ROOT / "results" / "curriculum_dpop"))
    options = parser.parse_args(argv)
    questions = read_questions(Path(options.source)) if options.source else [invented(i, options.seed) for i in range(options.questions)]
    questions = questions[:options.questions]
    counts, started, worked = Counter(), time.perf_counter(), time.process_time()
    rows = easy(questions, options.seed, counts)
    after_easy = time.perf_counter()
    rows += medium(questions, options.seed, counts)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
    sha = hashlib.sha256("\n".join(json.dumps(asdict(row), ensure_ascii=False) for row in rows).encode()).hexdigest()
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "") if Path("/proc/cpuinfo").exists() else ""
    difficulty = {level: sum(row.difficulty for row in rows if row.level == level) / max(1, sum(row.level == level for row in rows)) for level in ("easy", "medium")}
    result = {"source": Path(options.source).name if options.source else "invented", "n": len(questions), "rows": len(rows), "seed": options.seed,
              "seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1), "seconds_easy": round(after_easy - started, 1), "processes": 1,
              "machine": {"device": model or platform.machine(), "python": platform.python_version()}, "peak_memory_gb": peak_memory_gb(), "sha256": sha,
              "counts": dict(sorted(counts.items())), "poison_types": dict(sorted(Counter(row.poison_type for row in rows).items())),
              "mean_difficulty": {level: round(mean, 4) for level, mean in difficulty.items()}}
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "negatives.json", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    run_main(main)
