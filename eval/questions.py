"""Which prompts are asked: held-out ones from the prepared data, further sets, and openings to be continued."""
from collections.abc import Sequence

import numpy as np

from data.store import PairStore
from eval.oracle import describe_prompt
from eval.prompt_sets import read_continuations, read_prompt_set
from eval.replies import Prompt
from runtime.config import Config
from runtime.errors import UserError
from tokenizer import ASSISTANT, HUMAN, Tokenizer, encode_prompt

KINDS = ("unsafe", "borderline", "helpful", "all")
HH_KINDS = {"harmless-base": "unsafe", "helpful-base": "helpful"}  # the subset a first turn comes from


def kind_of(text: str, subset: str, subsets: Sequence[str], toy: bool) -> str | None:
    """The kind of a prepared prompt: toy by its grammar, HH by its subset (None for the two that are not asked), others "all"."""
    if toy:
        return describe_prompt(text).kind
    return HH_KINDS.get(subset) if set(subsets) & set(HH_KINDS) else "all"


def from_store(config: Config, store: PairStore, tok: Tokenizer, room: int, per_kind: int) -> tuple[list[Prompt], dict]:
    """Up to `per_kind` distinct prompts of each kind from a prepared split, in an order drawn by `eval.seed`, and how many of what.

    Toy prompts are asked whole; of an HH dialogue only the first human turn is asked, since later turns lean on replies that
    neither system gave. A prompt longer than `room` tokens is shortened from the left, its start token kept, and counted.
    """
    subsets, toy = store.meta["subsets"], config.data.source == "toy"
    kinds: dict[str, dict[str, list[int]]] = {}
    shortened = cut_off = 0
    for i in np.random.default_rng(config.eval.seed).permutation(len(store)):
        text = tok.decode(store.row(int(i))[0][1:].tolist())
        if not text.startswith(HUMAN):  # preparation shortened it: its first turn is no longer whole
            cut_off += 1
            continue
        if not toy:
            text = text[:text.index(ASSISTANT) + len(ASSISTANT)]
        kind = kind_of(text, subsets[int(store.index["subset"][i])], subsets, toy)
        chosen = kinds.setdefault(kind, {}) if kind else {}
        if kind is None or text in chosen or len(chosen) >= per_kind:
            continue
        ids, cut = fit(encode_prompt(tok, text)[0], room)
        chosen[text], shortened = ids, shortened + cut
    groups = {} if toy else {kind: subset for subset, kind in HH_KINDS.items()}
    prompts = [Prompt(f"{kind}-{n:04d}", kind, text, ids, groups.get(kind, "test split" if kind == "all" else kind))
               for kind in KINDS if kind in kinds for n, (text, ids) in enumerate(kinds[kind].items())]
    if not prompts:
        raise UserError("this split has no prompt to ask; prepare data with --data.test_fraction above 0.")
    return prompts, {"shortened": shortened, "left_out_because_cut": cut_off}


def fit(ids: Sequence[int], room: int) -> tuple[list[int], bool]:
    """The ids, shortened from the left behind the start token when they are more than `room`, and whether they were."""
    ids = list(ids)
    return (ids[:1] + ids[len(ids) - room + 1:], True) if len(ids) > room else (ids, False)


def from_sets(sources: Sequence[str], tok: Tokenizer, room: int) -> list[Prompt]:
    """The prompts of the sets named by `eval.prompt_sets`; groups are "own unsafe", "xstest borderline", ..."""
    prompts, names = [], set()
    for source in sources:
        name = source.partition(":")[0] if ":" in source else source.rsplit("/", 1)[-1].partition(".")[0]
        if name in names:
            raise UserError(f"--eval.prompt_sets names two sets that would both be called '{name}': rename one file.")
        names.add(name)
        count: dict[str, int] = {}
        for row in read_prompt_set(source):
            text, n = f"{HUMAN} {row.text}{ASSISTANT}", count.get(row.kind, 0)
            prompts.append(Prompt(f"{name}-{row.kind}-{n:04d}", row.kind, text, fit(encode_prompt(tok, text)[0], room)[0], f"{name} {row.kind}"))
            count[row.kind] = n + 1
    return prompts


def to_provoke(config: Config, prompts: Sequence[Prompt], tok: Tokenizer, room: int) -> list[Prompt]:
    """The prompts whose toxicity is measured on several samples each: openings from `eval.continuations` (plain text, to be
    continued, no turn markers), or, without such a file, the first unsafe prompts that are asked anyway."""
    e = config.eval
    if e.continuations:
        return [Prompt(f"continue-{n:04d}", "all", row.text, fit([tok.eot_id, *tok.encode(row.text)], room)[0], row.category or "continuations")
                for n, row in enumerate(read_continuations(e.continuations, e.toxicity_prompts))]
    unsafe = [prompt for prompt in prompts if prompt.kind == "unsafe"] or list(prompts)
    return unsafe[:e.toxicity_prompts] if e.toxicity_samples else []
