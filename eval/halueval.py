"""HaluEval QA (Li et al. 2023): answers to questions with the knowledge at hand, scored by reference, by judges, and beside answers of known worth.

    python -m eval.halueval --model FOLDER_OR_ID --data qa_data.json [--adapter FOLDER] [--entailment FOLDER] [--judge MODEL] [--against detailed_x.jsonl]
    python -m eval.halueval --answers detailed_x.jsonl --data qa_data.json          other judges for answers that are there already
    python -m eval.halueval --sanity --data qa_data.json          the known answers alone: what is each metric worth?

Writes metrics_<run>.json, metrics_<run>.md and detailed_<run>.jsonl to --output-dir. The data file is data/qa_data.json of RUCAIBox/HaluEval.
"""
import argparse
import hashlib
import math
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from batching import score_pairs
from chat_tokenizer import ChatTokenizer, load_chat_tokenizer
from data.sources import Part, content, parse_object, read_lines
from data.store import PairStore, StoreWriter, write_json
from eval import llm_judge, qa_report, stats, tables
from eval.choices import start_and_template
from eval.grounding import Entailment, LLMJudge
from eval.qa_report import Item, Tools
from eval.similarity import Encoder
from hf_model import CausalLM, choose_rows, load_causal_lm
from lora import load_adapters, merge
from model import find_folder
from runtime.checkpoint import file_hash, git_commit, versions, weights_hash, without_local_paths
from runtime.device import DTYPES, pick_dtype
from runtime.errors import UserError, check_folder, run_main
from tokenizer import HUMAN

MOST_POSITIONS = 8192  # a model may have more; no prompt here needs them
TERSE = "Answer the question from the context. Give the shortest answer that is complete: a name, a number, a date, yes or no. No sentence around it."
PROMPTS = {"terse": "the model's chat template with a system message that asks for the shortest answer",
           "plain": "plain text that ends in `Answer:`, no template", "chat": "the model's chat template, the user's message alone, as the published script has it"}
QUESTION = "Context: {knowledge}\n\nQuestion: {question}"
DETECT = ("Context: {knowledge}\n\nQuestion: {question}\n\nProposed answer: {answer}\n\nDoes the proposed answer say anything that is made up, or that the "
          "context contradicts? Reply with Yes or No.")
NEXT_PART = re.compile(r"\n\s*\n|\n(?:Context|Question):")  # where a plain prompt's answer is over and the model writes on
SANITY_NOTE = "No model was asked. Each column holds answers whose worth is known by construction, as every metric sees them."


# ---- data ---------------------------------------------------------------------------------------------------------------

def read_items(path: Path, limit: int = 0) -> list[Item]:
    """The rows of a qa_data file (JSON lines, plain or .gz), the first `limit` of them (0 = all). A row may have "aliases". UserError for a row
    that lacks a field or has an empty one."""
    if not path.is_file():
        raise UserError(f"--data: there is no file {path} (HaluEval's data/qa_data.json).")
    items = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            row = parse_object(line)
            fields = [row.get(name) for name in ("question", "knowledge", "right_answer", "hallucinated_answer")]
            if not all(isinstance(field, str) and field.strip() for field in fields) or not isinstance(row.get("aliases", []), list):
                raise ValueError("question, knowledge, right_answer and hallucinated_answer must be texts, aliases a list")
        except ValueError as error:
            raise UserError(f"{path.name} line {number}: {error}.") from None
        items.append(Item(number, fields[0], fields[1], (fields[2], *map(str, row.get("aliases", []))), fields[3]))
        if len(items) == limit:
            break
    if not items:
        raise UserError(f"{path} holds no rows.")
    return items


# ---- the model ----------------------------------------------------------------------------------------------------------

def open_model(name: str, adapter: str) -> tuple[CausalLM, ChatTokenizer, dict]:
    """(model, tokenizer, facts for the manifest) of a Hugging Face folder or Hub name, an adapter merged into it."""
    folder, kind = find_folder(name), "cuda" if torch.cuda.is_available() else "cpu"
    dtype = pick_dtype(kind, torch.cuda.get_device_capability(), False)[0] if kind == "cuda" else "float32"
    model = load_causal_lm(folder, 1, dtype=DTYPES[dtype])
    model.config.block_size = min(getattr(model.lm.config.get_text_config(), "max_position_embeddings", None) or MOST_POSITIONS, MOST_POSITIONS)
    if adapter:
        load_adapters(model, adapter)
        merge(model)
    facts = {"model": name, "adapter": adapter or None, "weights": weights_hash(folder), "adapter_weights": weights_hash(Path(adapter)) if adapter else None,
             "device": kind, "dtype": dtype}
    tok = load_chat_tokenizer(folder)
    start, _, template = start_and_template(folder, tok)
    return model.to(kind).eval(), tok, facts | {"start": start, "template": template}


def prompt_ids(tok: ChatTokenizer, style: str, texts: Sequence[str], start: Sequence[int], system: str = "", plain_end: str = "\n\nAnswer:") -> list[list[int]]:
    """Ids of prompts, with the start token exactly once where the family has one: `start` in plain text (`choices.start_and_template`), a template's own otherwise.
    UserError when the template refuses a message."""
    if style == "plain":
        return [[*start, *tok.encode(text + plain_end)] for text in texts]
    messages = [([{"role": "system", "content": system}] if style == "terse" and system else []) + [{"role": "user", "content": text}] for text in texts]
    found = tok.encode_conversations(messages)
    for result in found:
        if isinstance(result, ValueError):
            raise UserError(f"the chat template takes no such prompt ({result}); try --prompt plain.")
    return [ids for ids, _ in found]


def fit(encode: Callable[[list[str]], list[list[int]]], texts: Callable[[int, str], str], knowledge: Sequence[str],
        room: int) -> tuple[list[list[int] | None], list[bool]]:
    """(ids, whether the knowledge was shortened) of the prompts texts(i, knowledge): one that is longer than `room` loses words from the end of its
    knowledge, never of its question. None for one that does not fit without any knowledge."""
    ids: list[list[int] | None] = list(encode([texts(i, known) for i, known in enumerate(knowledge)]))
    shortened = [len(row) > room for row in ids]
    for i in np.flatnonzero(shortened).tolist():
        words = knowledge[i].split()
        low, high = 0, len(words)  # the most words that fit: at least `low`, fewer than `high`
        best = encode([texts(i, "")])[0]
        while low + 1 < high and len(best) <= room:
            middle = (low + high) // 2
            row = encode([texts(i, " ".join(words[:middle]))])[0]
            low, high, best = (middle, high, row) if len(row) <= room else (low, middle, best)
        ids[i] = best if len(best) <= room else None
    return ids, shortened


def cut(text: str, tok: ChatTokenizer, style: str) -> str:
    """The answer in what was generated: up to the first control token, the next human turn, or (plain) the next part of the prompt's layout."""
    for token in (*tok.control, HUMAN):
        text = text.partition(token)[0]
    return (NEXT_PART.split(text.strip(), maxsplit=1)[0] if style == "plain" else text).strip()


def answer(model: CausalLM, tok: ChatTokenizer, prompts: Sequence[Sequence[int]], style: str, a: argparse.Namespace) -> list[list[str]]:
    """Answers [seeds][n]: one greedy set, or one set per sampling seed."""
    token_bytes = [tok.token_bytes(i) for i in range(model.config.vocab_size)]
    sets = []
    for seed in a.sample or [0]:
        ids = model.generate(prompts, max_new_tokens=a.max_new_tokens, eot_id=tok.eot_id, temperature=a.temperature, top_k=0, top_p=1.0,
                             seed=seed, sample_index=0, stop=b"Question:" if style == "plain" else HUMAN.encode(), token_bytes=token_bytes, batch_size=a.batch, show="answering")
        sets.append([cut(tok.decode(row), tok, style) for row in ids])
    return sets


def yes_and_no(tok: ChatTokenizer, style: str) -> list[list[int]]:
    """The ids of "Yes" and of "No" as they follow a prompt: a reply's in the template, or what " Yes" adds behind "Answer:". UserError when the
    tokenizer glues them to the prompt."""
    if style != "plain":
        return [tok.encode_response(word)[:-1] for word in ("Yes", "No")]
    tail, rows = tok.encode("Answer:"), [tok.encode(f"Answer: {word}") for word in ("Yes", "No")]
    if any(row[:len(tail)] != tail or len(row) == len(tail) for row in rows):
        raise UserError("this tokenizer joins the words Yes and No with what stands before them: use --prompt chat.")
    return [row[len(tail):] for row in rows]


def discriminate(model: CausalLM, tok: ChatTokenizer, items: Sequence[Item], style: str, seed: int, start: Sequence[int]) -> tuple[dict, np.ndarray]:
    """HaluEval's own task: is this answer made up? log P(Yes) - log P(No) of both answers of each question [n, 2] (right, invented), NaN where
    one of the two prompts does not fit the model.

    The original shows one of the two answers, drawn by chance, and reads the model's written reply. Here both are shown and the two words are
    scored, as the tokens that follow the prompt by construction: nothing to parse, nothing lost, and the answers of a question are paired.
    """
    words = yes_and_no(tok, style)
    knowledge = [item.knowledge for item in items for _ in range(2)]
    shown = [text for item in items for text in (item.golds[0], item.hallucinated)]
    prompts, shortened = fit(lambda texts: prompt_ids(tok, style, texts, start),
                             lambda i, known: DETECT.format(knowledge=known, question=items[i // 2].question.strip(), answer=shown[i]),
                             knowledge, model.config.block_size - sum(map(len, words)))
    asked = [i for i in range(len(items)) if None not in prompts[2 * i:2 * i + 2]]
    if not asked:
        raise UserError(f"--discriminate: no question fits the {model.config.block_size} positions of this model.")
    with tempfile.TemporaryDirectory() as scratch:
        with StoreWriter(Path(scratch) / "rows", model.config.vocab_size) as writer:
            for ids in (prompts[2 * i + side] for i in asked for side in (0, 1)):
                writer.add(ids, [0] * len(ids), *words)
            writer.close({})
        store = PairStore(Path(scratch) / "rows")
        choose_rows(model, store, nullcontext)
        yes, no = score_pairs(model, store, np.arange(len(store)), 8192, nullcontext, show="telling right from invented")
    gap = np.full((len(items), 2), np.nan)
    gap[asked] = (yes - no).astype(np.float64).reshape(-1, 2)
    kept, found = gap[asked, 0] <= 0, gap[asked, 1] > 0
    note = ("Does the model say that an answer is made up? Both answers of every question are shown, each alone, and log P of Yes and No as the reply "
            "are compared; the original shows one of the two by chance and reads a written reply. One half is chance, and so is saying the same to everything.")
    return {"note": note, "prompt": DETECT, "knowledge_shortened": sum(shortened), "questions_that_do_not_fit": len(items) - len(asked),
            "balanced_accuracy": stats.mean((kept + found) / 2, qa_report.RESAMPLES, seed).to_dict(),
            "right_kept": stats.wilson(int(kept.sum()), len(kept)).to_dict(), "invented_found": stats.wilson(int(found.sum()), len(found)).to_dict(),
            "auc": qa_report.auc(gap[:, 1], gap[:, 0], seed).to_dict()}, gap


# ---- writing ------------------------------------------------------------------------------------------------------------

def manifest(a: argparse.Namespace, items: Sequence[Item], facts: Mapping, started: float) -> dict:
    """What a reader needs to make these figures again; absolute paths are cut to their last name."""
    decoding = "" if not a.model else f"sampled at temperature {a.temperature:g}, seeds {', '.join(map(str, a.sample))}" if a.sample else "greedy"
    asked = {"system": TERSE if a.prompt == "terse" else "", "user": QUESTION + ("\n\nAnswer:" if a.prompt == "plain" else "")}
    settings = {"prompt": a.prompt, "prompt_text": asked, "decoding": decoding, "max_new_tokens": a.max_new_tokens}
    return without_local_paths({
        "rows": len(items), "limit": a.limit or None,
        "data": {"file": a.data.name, "sha256": content(Part(str(a.data), "halueval", "test", path=a.data)).sha256},
        "seed": a.seed, "commit": git_commit(), "versions": versions(), "seconds": round(time.time() - started, 1), **(settings if a.model else {"prompt": "", "decoding": ""}), **facts})


# ---- command line -------------------------------------------------------------------------------------------------------

def options() -> argparse.ArgumentParser:
    """The command line. The judge's own options are those of `python -m eval.judge`, except that --judge names its model."""
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, conflict_handler="resolve")
    llm_judge.add_arguments(a)
    a.add_argument("--model", default="", help="the model that answers: a Hugging Face folder or a Hub name")
    a.add_argument("--answers", type=Path, help="score the answers of this detailed_<run>.jsonl, ours or the published one, instead of asking a model")
    a.add_argument("--adapter", default="", help="a LoRA folder, merged into the model")
    a.add_argument("--data", type=Path, required=True, help="HaluEval's qa_data.json (JSON lines, plain or .gz)")
    a.add_argument("--run-name", default="", help="names the output files [the model's folder]; needed with --adapter")
    a.add_argument("--note", default="", help="a sentence that belongs in the report")
    a.add_argument("--output-dir", type=Path, default=Path("out/halueval"), help="[out/halueval]")
    a.add_argument("--limit", type=int, default=0, help="only the first so many rows; 0 = all")
    a.add_argument("--batch", type=int, default=32, help="prompts at a time")
    a.add_argument("--prompt", choices=PROMPTS, default="terse", help="; ".join(f"{name}: {what}" for name, what in PROMPTS.items()))
    a.add_argument("--max-new-tokens", type=int, default=128)
    a.add_argument("--sample", type=int, nargs="+", metavar="SEED", default=[], help="sample with these seeds, not greedily (needs --temperature)")
    a.add_argument("--temperature", type=float, default=0.0, help="of the sampling; 0 = greedy")
    a.add_argument("--seed", type=int, default=0, help="of the bootstraps")
    a.add_argument("--discriminate", action="store_true", help="also HaluEval's own task: is this answer made up?")
    a.add_argument("--entailment", type=Path, help="judge: a sequence-classification folder with a class named entailment")
    a.add_argument("--trust-remote-code", action="store_true", help="allow the --entailment folder to run its own code")
    a.add_argument("--judge", default="", help="judge: an LLM's name on an OpenAI-compatible server (--base-url and the other options below `llm`)")
    a.add_argument("--embeddings", default="", help="diagnostic: a sentence encoder (the original's is sentence-transformers/all-mpnet-base-v2)")
    a.add_argument("--bertscore", default="", help="diagnostic: an encoder (the original's is microsoft/deberta-v3-large)")
    a.add_argument("--bertscore-layer", type=int, default=-1, help="the hidden states that BERTScore compares; -1 = the last")
    a.add_argument("--against", type=Path, help="detailed_<run>.jsonl of another model: paired tests")
    a.add_argument("--sanity", action="store_true", help="the known answers alone, no model")
    return a


def check(a: argparse.Namespace) -> None:
    """UserError for settings that contradict each other."""
    if bool(a.model) + bool(a.answers) + a.sanity != 1:
        raise UserError("give one of --model, --answers (a file of a model's answers) and --sanity (the known answers alone).")
    if not a.model and (a.discriminate or a.sample or a.temperature or a.adapter) or a.sanity and a.against:
        raise UserError("without --model leave out --adapter, --sample, --temperature and --discriminate, with --sanity also --against.")
    if bool(a.sample) != (a.temperature > 0) or len(set(a.sample)) != len(a.sample) or a.temperature < 0:
        raise UserError("sampling needs --sample SEED [SEED ...] (each seed once) and --temperature above 0 together; leave out both for greedy decoding.")
    if not math.isfinite(a.temperature) or min(a.sample, default=0) < 0 or a.seed < 0:
        raise UserError("--seed and the seeds of --sample must be 0 or more, and --temperature a finite number.")
    if min(a.batch, a.max_new_tokens) < 1 or a.limit < 0:
        raise UserError("--batch and --max-new-tokens must be at least 1, --limit 0 or more.")
    if Path(a.run_name).name != a.run_name or a.adapter and not a.run_name:
        raise UserError("--run-name must be part of a file's name; with --adapter it is needed, since the model's own run has the model's name.")
    check_folder("--output-dir", a.output_dir)


def open_tools(a: argparse.Namespace, out: Path) -> Tools:
    """Judges and encoders, before anything is asked of a model: one that was named and cannot be had stops the run."""
    client = llm_judge.client_from(argparse.Namespace(**vars(a) | {"model": a.judge}), out / "llm_cache") if a.judge else None
    return Tools(Entailment(a.entailment, a.batch, a.trust_remote_code) if a.entailment else None, LLMJudge(client) if client else None,
                 Encoder(a.embeddings) if a.embeddings else None, Encoder(a.bertscore) if a.bertscore else None, a.bertscore_layer)


def tool_facts(tools: Tools) -> dict:
    """Judges and encoders by name, and what they could not judge."""
    facts = {}
    if tools.entailment:
        facts["entailment"] = tools.entailment.facts | {"premises_shortened": tools.entailment.truncated, "unjudged": tools.entailment.unjudged}
    if tools.llm:
        facts["llm"] = tools.llm.facts | {"unjudged": tools.llm.unjudged, "totals": tools.llm.client.totals()}
    if tools.embeddings:
        facts["embeddings"] = tools.embeddings.folder.name
    if tools.bertscore:
        facts["bertscore"] = {"model": tools.bertscore.folder.name, "layer": tools.layer, "chance_level": tools.chance}
    return facts


def ask(a: argparse.Namespace, items: Sequence[Item], keep: Path) -> tuple[list[list[str]], list[bool], dict | None, np.ndarray | None, dict]:
    """What needs the model: answers [seeds][n], whose knowledge was shortened, the discrimination task and its values, facts. The answers are written
    to `keep` at once: a judge that fails later costs no second run."""
    model, tok, facts = open_model(a.model, a.adapter)
    prompts, shortened = fit(lambda texts: prompt_ids(tok, a.prompt, texts, facts["start"], TERSE),
                             lambda i, known: QUESTION.format(knowledge=known, question=items[i].question.strip()),
                             [item.knowledge for item in items], model.config.block_size - a.max_new_tokens)
    if None in prompts:
        raise UserError(f"{prompts.count(None)} questions do not fit the {model.config.block_size} positions of this model even without their knowledge: "
                        "lower --max-new-tokens.")
    answers = answer(model, tok, prompts, a.prompt, a)
    qa_report.write_details(keep, items, answers, shortened, {}, None)
    found, gap = discriminate(model, tok, items, a.prompt, a.seed, facts["start"]) if a.discriminate else (None, None)
    return answers, shortened, found, gap, facts | {"knowledge_shortened": sum(shortened)}


def main(argv: list[str]) -> None:
    """See the top of this file."""
    started, a = time.time(), options().parse_args(argv)
    check(a)
    given = a.answers.stem.removeprefix("detailed_") + "_again" if a.answers else Path(a.model).name
    items, name = read_items(a.data, a.limit), a.run_name or ("sanity" if a.sanity else given)
    out = a.output_dir
    out.mkdir(parents=True, exist_ok=True)
    tools, details = open_tools(a, out), out / f"detailed_{name}.jsonl"
    against = qa_report.read_details(a.against, items) if a.against else None
    answers, shortened, found, gap, facts, note = [], [False] * len(items), None, None, {}, SANITY_NOTE
    if a.model:  # 1. what the model says, or said
        answers, shortened, found, gap, facts = ask(a, items, details)
        note = f"Answers of {name} ({facts['dtype']} on {facts['device']}); prompt: {PROMPTS[a.prompt]}" + (f"; template: {facts['template']}." if a.prompt != "plain" else ".")
    elif a.answers:
        answers, note = qa_report.read_answers(a.answers, items), f"Answers from {a.answers.name}."
        facts = {"answers": {"file": a.answers.name, "sha256": file_hash(a.answers)}}
    sets = [qa_report.measure(items, texts, tools) for texts in answers]
    values = {"model": {key: np.mean([columns[key] for columns in sets], axis=0) for key in sets[0]}} if sets else {}  # over seeds: per question
    # 2. the known answers, by the same metrics
    values |= {system: qa_report.measure(items, texts, tools) for system, texts in qa_report.known_answers(items).items()}
    labels = {metric.key: metric.label for metric in qa_report.METRICS}
    report = {"name": name, "note": f"{note} {a.note}".strip()} | qa_report.figures(values, "model" if sets else "gold", a.seed)
    report |= {"discrimination": found} if found else {}
    report |= {"over_seeds": qa_report.over_seeds(sets)} if len(sets) > 1 else {}
    report |= {"against": qa_report.compare(against, values["model"], (a.against.stem.removeprefix("detailed_"), name), a.seed)} if against else {}
    report["not_measured"] = [{"metric": labels[key], "reason": why} for key, why in qa_report.lacking(tools).items()]
    facts |= {"empty_answers": sum(not text for texts in answers for text in texts)} if sets else {}
    report["manifest"] = manifest(a, items, facts | tool_facts(tools), started)
    if sets:
        qa_report.write_details(details, items, answers, shortened, values["model"], gap)
    stem = "sanity" if a.sanity and name == "sanity" else f"metrics_{name}"
    write_json(out / f"{stem}.json", report)
    (out / f"{stem}.md").write_text(qa_report.markdown(report), encoding="utf-8")
    print(tables.text_table(["", *values], [[row["label"], *(tables.number(row["values"][key]["value"], row["form"]) if key in row["values"] else "-" for key in values)]
                                            for row in report["metrics"]]))  # -: without a yes/no question in the data nothing can be flipped
    print(f"\n{out / stem}.json and .md written ({time.time() - started:.0f} s).")


if __name__ == "__main__":
    run_main(main)
