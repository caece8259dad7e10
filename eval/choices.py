"""How likely is a given answer? Log-probs of fixed continuations of a prompt: the whole of multiple-choice evaluation.

Everything that goes wrong here goes wrong silently, so it is built, never searched for:

1. a prompt starts with the model's start token exactly once, or never where the family has none;
2. the answer's tokens are those that *follow the prompt's*, by construction: ids(prompt) + ids(answer). They are cut out of the joined text's
   ids where those begin with ids(prompt); where a merge crosses the border the answer is encoded on its own, and that is counted;
3. all choices of a question follow the same prompt ids: a prompt too long for the model is shortened from the left once, for its longest choice;
4. log-probs are summed over the answer alone, float32 log-softmax, float64 sums.

Each sequence is a row of its own, padded on the right, so the result is the model's own, whatever its attention does with masks. What the
prompts of a batch have in common (six shots are nine tenths of a prompt) is computed once, and the rows go on behind its keys and values.
"""
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from chat_tokenizer import HH_TEMPLATE, ChatTokenizer, load_chat_tokenizer
from hf_model import CausalLM, load_causal_lm
from lora import load_adapters
from runtime.device import Device
from runtime.errors import UserError
from tokenizer import CHAT_TEMPLATE

UNSAID = 2048  # positions of a model that does not say how many it has
SHARED = 32  # tokens that a batch's prompts must have in common before they are computed apart
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.05}  # nats per token; in half precision the size of a batch changes as much


@dataclass
class Reader:
    """A model with its tokenizer, as prompts are put to it. start: [] or the one id that begins a prompt; why: where that is known from."""
    model: CausalLM
    tokenizer: ChatTokenizer
    device: Device
    start: list[int]
    why: str
    template: str  # whose chat layout it has
    glued: int = 0  # answers whose first character would have merged with the prompt's last
    cut: int = 0  # prompts that were shortened

    @property
    def start_token(self) -> str:
        """The start token as the tokenizer spells it, or "none"."""
        return self.tokenizer.hf.convert_ids_to_tokens(self.start[0]) if self.start else "none"


def load_reader(folder: Path, adapter: Path | None, device: Device) -> Reader:
    """The causal LM in a Hugging Face folder (our own GPT's included), with LoRA adapters where given. UserError when it cannot be read."""
    model = load_causal_lm(folder, 1, dtype=device.dtype)
    model.config.block_size = getattr(model.lm.config.get_text_config(), "max_position_embeddings", UNSAID)  # known only when it is loaded
    if adapter:
        load_adapters(model, adapter)
    model.to(device.device).eval()
    tokenizer = load_chat_tokenizer(folder)
    if model.config.vocab_size < tokenizer.vocab_size:
        raise UserError(f"the model in {folder} has {model.config.vocab_size} tokens, its tokenizer {tokenizer.vocab_size}.")
    return Reader(model, tokenizer, device, *start_and_template(folder, tokenizer))


def own_template(folder: Path) -> str | None:
    """The chat template that the tokenizer in a folder comes with (a ChatTokenizer has given it ours where there is none)."""
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(str(folder)).chat_template


def start_and_template(folder: Path, tokenizer: ChatTokenizer) -> tuple[list[int], str, str]:
    """([] or the start token's id, where that is known from, whose chat template the tokenizer of a folder uses, in words)."""
    given = own_template(folder)
    return *start_token(tokenizer.hf, given), "the tokenizer's own" if given else "nanopref's Human/Assistant layout (the tokenizer has none)"


def start_token(hf, template: str | None) -> tuple[list[int], str]:
    """([] or the start token's id, where that is known from) for a Hugging Face tokenizer `hf` that came with `template`. UserError for two of them.

    Asked of what the tokenizer does, not of `build_inputs_with_special_tokens`: fast tokenizers may leave that one unimplemented, and it
    then adds nothing without a word.
    """
    with_special, plain = (hf.backend_tokenizer.encode("x", add_special_tokens=special).ids for special in (True, False))
    before = next((k for k in range(len(with_special)) if with_special[k:k + len(plain)] == plain), 0)
    if before > 1:
        raise UserError(f"the tokenizer puts {before} tokens before a text ({hf.convert_ids_to_tokens(with_special[:before])}), where one belongs.")
    if before:
        return with_special[:1], "the tokenizer puts it before a text"
    if template in (CHAT_TEMPLATE, HH_TEMPLATE):
        return [hf.eos_token_id], "every row of nanopref's training began with it"
    if hf.bos_token_id is None or hf.bos_token_id == hf.eos_token_id or hf.init_kwargs.get("add_bos_token") is False:
        return [], "this family has no start token"
    return [hf.bos_token_id], "the tokenizer names it, though it does not put it before a text by itself"


# ---- texts -> ids -------------------------------------------------------------------------------------------------------

def plain_ids(reader: Reader, prompt: str, answers: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """(ids of a prompt with its start token, ids of each answer behind it). An answer brings the space that stands before it."""
    encode = reader.tokenizer.encode
    head = encode(prompt)
    found = []
    for answer in answers:
        whole = encode(prompt + answer)
        glued = whole[:len(head)] != head
        reader.glued += glued
        found.append(_alone(encode, answer) if glued else whole[len(head):])
    return reader.start + head, found


def _alone(encode, answer: str) -> list[int]:
    """An answer's ids on its own, read behind a newline: some tokenizers put a space of their own before the first word of a text."""
    line = encode("\n")
    whole = encode("\n" + answer)
    return whole[len(line):] if whole[:len(line)] == line else encode(answer)


def chat_ids(reader: Reader, question: str, answers: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """(ids of the question as a user's turn, ids of each answer as the assistant's, without the token that ends it).

    The prompt is a template's own; ChatTokenizer sees to it that its start token is there once.
    """
    prompt = reader.tokenizer.encode_messages([{"role": "user", "content": question}])[0]
    return prompt, [ids[:-1] for ids in reader.tokenizer.encode_responses(answers)]


def fit(reader: Reader, prompt: list[int], longest: int) -> list[int]:
    """The prompt, shortened from the left (its start token stays) so that `longest` more tokens have room. UserError when nothing would be left."""
    room = reader.model.config.block_size - longest
    if len(prompt) <= room:
        return prompt
    kept = 1 if prompt[:1] in (reader.start, [reader.tokenizer.bos_id]) else 0
    if room <= kept:
        raise UserError(f"an answer of {longest} tokens leaves no room for its question in the model's {reader.model.config.block_size} positions.")
    reader.cut += 1
    return prompt[:kept] + prompt[len(prompt) - (room - kept):]


# ---- ids -> log-probs ---------------------------------------------------------------------------------------------------

class Behind(CausalLM):
    """The model behind tokens that all rows begin with: their keys and values are computed here, once."""

    def __init__(self, model: CausalLM, shared: list[int]):
        super().__init__(model.lm, model.config.block_size)
        self.shared = shared
        self.cache = getattr(self.lm.base_model(input_ids=torch.tensor([shared], device=model.device), use_cache=True), "past_key_values", None)

    @property
    def whole(self) -> bool:
        """True where the cache holds every token's keys and values and nothing else: no window that forgets, no recurrent state."""
        from transformers.cache_utils import DynamicCache, DynamicLayer
        return isinstance(self.cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def hidden(self, ids: Tensor, positions: Tensor, segments: Tensor) -> Tensor:
        """As CausalLM.hidden, for rows without the shared tokens."""
        cache = copy.deepcopy(self.cache)  # a forward pass adds to it
        cache.batch_repeat_interleave(len(ids))
        seen = torch.cat([ids.new_ones(len(ids), len(self.shared)), (segments >= 0).long()], dim=1)
        return self.lm.base_model(input_ids=ids, attention_mask=seen, position_ids=positions + len(self.shared), past_key_values=cache, use_cache=True).last_hidden_state


def behind(model: CausalLM, prompts: Sequence[list[int]], held: Behind | None) -> Behind | None:
    """The model behind what these prompts have in common (`held` where that is nearly as much); None where it would not pay."""
    common = beginning(prompts)[:min(map(len, prompts)) - 1]  # a prompt's last token predicts the answer's first
    both = beginning([common, held.shared]) if held else []
    common = both if len(both) > len(common) - SHARED else common  # a little shorter, it serves the next batches too
    if len(prompts) < 2 or len(common) < SHARED:
        return None
    return held if held and held.shared == common else Behind(model, common)


def beginning(rows: Sequence[list[int]]) -> list[int]:
    """The longest list that all of them begin with."""
    first, last = min(rows), max(rows)  # what stands between these two in the order begins as they do
    return first[:next((k for k, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))]


@torch.inference_mode()
def score(reader: Reader, prompts: Sequence[list[int]], answers: Sequence[list[int]], batch: int, show: str = "") -> np.ndarray:
    """log p(answer | prompt) in nats, float64 [N]: the sum over the answer's tokens. prompts and answers: ids, N of each, none empty.

    `batch` sequences share a forward pass, the longest first; it decides speed and memory alone. The first batch with a shared prefix is
    scored in both ways: where they differ by more than TOLERANCE, nothing is shared with this model.
    """
    if not all(prompts) or not all(answers):
        raise ValueError("a prompt or an answer without tokens cannot be scored")
    model, found = reader.model, np.zeros(len(prompts))
    model.prefix_shared, share, checked, held = False, True, False, None

    def sums(rows: list[int], through: Behind | None) -> np.ndarray:
        inputs, owner = _layout([(prompts[i][len(through.shared) if through else 0:], answers[i]) for i in rows], model.device)
        return torch.zeros(len(rows), dtype=torch.float64).index_add(0, owner, (through or model)(*inputs).cpu().double()).numpy()
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]) - len(answers[i]), i))
    for at in tqdm(range(0, len(order), batch), desc=show, disable=not show, leave=False):
        rows = order[at:at + batch]
        held = behind(model, [prompts[i] for i in rows], held) if share else None
        found[rows] = sums(rows, held if checked else None)
        if held and not checked:
            most = TOLERANCE[reader.device.dtype] * np.array([len(answers[i]) for i in rows])
            share, checked = held.whole and bool((np.abs(sums(rows, held) - found[rows]) <= most).all()), True
    if not np.isfinite(found).all():
        raise UserError(f"{int((~np.isfinite(found)).sum())} of {len(found)} log-probs are not numbers: the model's weights are damaged, or its dtype overflows (--dtype float32).")
    return found


def _layout(rows: list[tuple[list[int], list[int]]], device: torch.device) -> tuple[list[Tensor], Tensor]:
    """(what `model(...)` takes, the row of each scored token [N]) for sequences padded on the right; the padding's id is never looked at."""
    T = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids, segments = torch.zeros(len(rows), T, dtype=torch.long), torch.full((len(rows), T), -1)
    for b, (prompt, answer) in enumerate(rows):
        ids[b, :len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        segments[b, :len(prompt) + len(answer)] = 0
    # the first token of an answer is predicted from the prompt's last
    predict_at = torch.cat([b * T + len(prompt) - 1 + torch.arange(len(answer)) for b, (prompt, answer) in enumerate(rows)])
    targets = torch.tensor([token for _, answer in rows for token in answer])
    owner = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(answer) for _, answer in rows]))
    return [t.to(device) for t in (ids, torch.arange(T).expand(len(rows), T), segments, predict_at, targets)], owner


# ---- log-probs -> scores ------------------------------------------------------------------------------------------------

def mc1(logps: Sequence[float], labels: Sequence[int]) -> float:
    """1.0 when a true choice is strictly the likeliest (Lin et al. 2022, §3.2). A tie with a false one counts as wrong: the model does not tell them apart."""
    logps, labels = np.asarray(logps, dtype=np.float64), _both(labels)
    return float(logps[labels].max() > logps[~labels].max())


def mc2(logps: Sequence[float], labels: Sequence[int]) -> float:
    """The share of probability, normalised over the choices, that lies on true ones (Lin et al. 2022, §3.2); softmax in float64."""
    logps, labels = np.asarray(logps, dtype=np.float64), _both(labels)
    mass = np.exp(logps - logps.max())
    return float(mass[labels].sum() / mass.sum())


def _both(labels: Sequence[int]) -> np.ndarray:
    """The labels as booleans. ValueError unless there is a true and a false choice."""
    labels = np.asarray(labels, dtype=bool)
    if labels.all() or not labels.any():
        raise ValueError("multiple choice needs a true choice and a false one")
    return labels
