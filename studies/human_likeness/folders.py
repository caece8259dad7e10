"""A study folder MODEL/{inference,scored}: samples of every epoch and their scores, and whether the two belong together.

In the public study the scored files of four of seven models held another model's dialogues. Here every scored text is looked up in the samples it
claims to be of, and what is foreign is named with the place it comes from.
"""
import ast
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runtime.errors import UserError
from studies.human_likeness.dialogue import clean, features, problems, text_hash, turns
from studies.human_likeness.items import check_answers
from studies.human_likeness.storage import read_table

BASE = "no base to compare with"
MADE_BY = ("weights_hash", "questionnaire", "valid_ratings_wanted", "temperature")  # columns of a scored file that must not change between epochs
SAMPLES, SCORED = re.compile(r"samples_epoch_(\d+)\.csv"), re.compile(r"samples_epoch_(\d+)_scored_(.+)\.csv")


@dataclass(frozen=True)
class Rated:
    """A scored sample: its row in the inference file, the ratings by item id, the score as the file has it, and what is measured on the text."""
    row: int
    prompt: str
    answers: dict[str, float]
    score: float
    words: float
    words_per_turn: float
    cv: float
    problems: tuple[str, ...]
    unclosed: bool     # the dialogue has no end: it ran into the longest length
    made_by: tuple[str, ...]  # weights, questionnaire, number of ratings and temperature, where the file says


@dataclass
class ModelFolder:
    """What a model's folder holds. samples: epoch -> hashes of response and prompt, by row; rated: judge -> epoch -> verified rows."""
    name: str
    samples: dict[int, list[tuple[str, str]]]
    rated: dict[str, dict[int, list[Rated]]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def model_folders(root: Path) -> list[Path]:
    """The folders below (or at) `root` that have an inference folder. UserError when there is none."""
    found = sorted(path.parent for path in root.rglob("inference") if path.is_dir())
    if not found:
        raise UserError(f"{root} holds no folder with inference/samples_epoch_NN.csv.")
    return found


def sample_files(folder: Path) -> dict[int, Path]:
    """epoch -> its file of samples. UserError for two files of one epoch."""
    found: dict[int, Path] = {}
    for path in sorted((folder / "inference").glob("*.csv")):
        if match := SAMPLES.fullmatch(path.name):
            if int(match[1]) in found:
                raise UserError(f"{folder}/inference holds two files of epoch {int(match[1])}.")
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def read_samples(folder: Path) -> dict[int, list[tuple[str, str]]]:
    """epoch -> (hash of the response, hash of the prompt) of every sample, in the order of the file. UserError for two files of one epoch."""
    return {epoch: [(text_hash(row["response"]), text_hash(row["prompt"])) for row in read_table(path, ("prompt", "response"))]
            for epoch, path in sample_files(folder).items()}


def answers_of(row: dict[str, str], ids: Sequence[str]) -> dict[str, float]:
    """The ratings of a scored row by item id: ours say them by name; the public files hold a bare list, which means nothing without `ids`.

    ValueError for a list without ids or of another length, and for a rating out of range.
    """
    if row.get("ratings"):
        answers = json.loads(row["ratings"])
        check_answers(answers, list(answers))
        return answers
    values = ast.literal_eval(row["likert_evaluation"])
    if len(values) != len(ids):
        raise ValueError(f"a list of {len(values)} ratings and {len(ids)} item ids" + ("" if ids else ": say which items they are about (--asked)"))
    answers = dict(zip(ids, map(float, values)))
    check_answers(answers, ids)
    return answers


def read_model(folder: Path, name: str, samples: dict[int, list[tuple[str, str]]], everywhere: dict[str, list[tuple[str, int]]], ids: Sequence[str]) -> ModelFolder:
    """A model's verified ratings, for its samples as `read_samples` gives them. everywhere: response hash -> the (model, epoch) it occurs in; ids: for bare lists of ratings.

    A scored row counts only when its response stands in this model's samples of that epoch at the row it names. UserError for malformed files.
    """
    model = ModelFolder(name, samples)
    model.warnings += base_problems(folder, model.samples)
    strange: dict[str, list[tuple[int, int, Counter]]] = defaultdict(list)
    for path in sorted((folder / "scored").glob("*.csv")) if (folder / "scored").is_dir() else []:
        match = SCORED.fullmatch(path.name)
        if not match:
            continue
        epoch, judge = int(match[1]), match[2]
        if epoch not in model.samples:
            model.warnings.append(f"{path.name}: there are no samples of epoch {epoch} to compare with; not used")
            continue
        if epoch in model.rated.get(judge, {}):
            raise UserError(f"{folder}/scored holds two files of epoch {epoch} by {judge}.")
        rows, foreign, lacking = read_scores(path, model.samples[epoch], lambda seen: whose(seen, name, epoch, everywhere), ids)
        if lacking and not foreign:
            model.warnings.append(f"{path.name}: {', '.join(f'{n} {why}' for why, n in lacking.items())}; {len(rows)} of {len(model.samples[epoch])} samples are used")
        if foreign:
            strange[judge].append((epoch, len(rows) + sum(foreign.values()), foreign))
        elif rows:
            model.rated.setdefault(judge, {})[epoch] = rows
    for judge, files in strange.items():
        sources = sum((foreign for _, _, foreign in files), Counter())
        model.warnings.append(f"scores by {judge}, epoch {', '.join(str(epoch) for epoch, _, _ in files)}: {sum(sources.values())} of {sum(n for _, n, _ in files)} rows are not of "
                              f"these samples ({'; '.join(f'{n} {source}' for source, n in sources.most_common())}); not used")
    for judge, by_epoch in model.rated.items():
        makers = {(*rated.made_by, *sorted(rated.answers)) for rows in by_epoch.values() for rated in rows}
        if len(makers) > 1:
            raise UserError(f"{name}: the scores by {judge} were made with {len(makers)} different weights, questionnaires, temperatures or numbers of ratings: score all epochs alike.")
        if 0 in by_epoch and any(BASE in warning for warning in model.warnings):
            del by_epoch[0]  # differences to a base that is none would be the finding
    return model


def read_scores(path: Path, samples: Sequence[tuple[str, str]], source: Callable[[str], str], ids: Sequence[str]) -> tuple[list[Rated], Counter, Counter]:
    """(the rows that are of these samples, in their order; where the others come from, counted; which are left out or missing, counted).

    A row is a sample's own when its response and prompt are, and, in our files, when the text that was judged is what cleaning makes of that
    response. UserError for a malformed row and for a sample that is scored twice.
    """
    rows, foreign, lacking, seen = [], Counter(), Counter(), set()
    for number, row in enumerate(read_table(path, ("prompt", "response", "dialogue_id")), 1):
        try:
            place, answers, score = int(row["dialogue_id"]), answers_of(row, ids), float(row.get("score") or row["hal16_score"])
            if not math.isfinite(score) or place in seen:
                raise ValueError(f"sample {place} is scored twice" if place in seen else f"the score is {score}")
        except (KeyError, ValueError, SyntaxError, TypeError, AttributeError, RecursionError, MemoryError) as error:
            raise UserError(f"{path}, row {number}: {error}.") from None
        seen.add(place)
        own, (body, done) = text_hash(row["response"]), clean(row["response"])
        if not 0 <= place < len(samples) or samples[place] != (own, text_hash(row["prompt"])) or row.get("text_hash", text_hash(body)) != text_hash(body):
            foreign[source(own)] += 1
            continue
        said = turns(body)
        measured = features(said, "P")
        if not measured["turns"]:
            lacking["without a turn of the patient"] += 1
            continue
        maker = tuple(row.get(column, "") for column in MADE_BY)
        rows.append(Rated(place, row["prompt"], answers, score, measured["words"], measured["words_per_turn"], measured["cv"], tuple(problems(said)), bool(done["no closing tag"]), maker))
    if missing := len(samples) - len(seen):
        lacking["without a score"] += missing
    return sorted(rows, key=lambda r: r.row), foreign, lacking


def whose(seen: str, name: str, epoch: int, everywhere: dict[str, list[tuple[str, int]]]) -> str:
    """Where a foreign text comes from, in words."""
    places = everywhere.get(seen, [])
    if (name, epoch) in places:
        return "stand at another row of the file, or with another prompt or another judged text"
    if not places:
        return "are of no samples here"
    model = next((m for m, e in places if e == epoch), None)
    return f"are of {model}, same epoch" if model else f"are of {places[0][0]}, epoch {places[0][1]}"


def base_problems(folder: Path, samples: dict[int, list[tuple[str, str]]]) -> list[str]:
    """What speaks against epoch 0 being the model before training: no file, the same texts as a later epoch, or a note with other weights than the run's."""
    if 0 not in samples:
        return ["there are no samples of epoch 0: nothing to compare training with"]
    found = []
    for epoch, texts in samples.items():
        same = sum(a == b for a, b in zip(samples[0], texts)) if epoch else 0
        if same > len(texts) / 2:
            found.append(f"{BASE}: {same} of {len(texts)} samples of epoch 0 are those of epoch {epoch}; the base was sampled from a trained model, or nothing was trained")
    note, run = folder / "inference" / "base.json", folder / "dpo" / "last" / "run.json"
    if run.is_file():
        try:
            wanted, wrote = json.loads(run.read_text())["fingerprint"]["starting_weights"], json.loads(note.read_text())["weights"]
        except (OSError, ValueError, KeyError, TypeError):
            return [*found, f"{BASE}: base.json and run.json do not say which weights wrote the samples of epoch 0 and which training started from"]
        if wanted != wrote:
            found.append(f"{BASE}: the samples of epoch 0 were not written by the weights that training started from")
    return found


def read_study(root: Path, ids: Sequence[str] = ()) -> list[ModelFolder]:
    """Every model below `root`, each verified against the samples of all of them."""
    folders = model_folders(root)
    names = [str(folder.relative_to(root)) if folder != root else folder.resolve().name for folder in folders]
    everywhere: dict[str, list[tuple[str, int]]] = defaultdict(list)
    samples = [read_samples(folder) for folder in folders]
    for name, by_epoch in zip(names, samples):
        for epoch, texts in by_epoch.items():
            for text, _ in texts:
                everywhere[text].append((name, epoch))
    return [read_model(folder, name, own, everywhere, ids) for folder, name, own in zip(folders, names, samples)]
