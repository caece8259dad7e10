"""Any causal LM from Hugging Face behind the same door as model.GPT: `model(ids, positions, segments, predict_at, targets)`.

The loop, the batching and the losses never ask which of the two they have. What a Hugging Face model cannot be trusted with is checked
against its own logits before training (`check_rows`): some drop their sliding windows under a custom mask, some take none at all.
"""
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from batching import make_batch, row_lengths
from data.store import PairStore
from generate import pick, prompt_key, uniforms
from head import LOGITS_AT_ONCE, TokenLogps, log_square_sums
from lora import add_adapters, base_settings, has_adapters, init_adapters
from model import tree_mask
from runtime.config import Config
from runtime.distributed import World
from runtime.errors import UserError


@dataclass
class Shape:
    """What the rest of the code asks a model's config."""
    vocab_size: int
    block_size: int


class CausalLM(nn.Module):
    """A transformers causal LM that scores tokens. DDP and FSDP2 wrap *this* module, so its head is used inside the root's forward."""

    def __init__(self, lm: nn.Module, block_size: int):
        """lm: an AutoModelForCausalLM. block_size: the most positions a row may use; UserError when the model has fewer."""
        super().__init__()
        self.lm, c = lm, lm.config.get_text_config()
        most = getattr(c, "max_position_embeddings", block_size)
        if block_size > most:
            raise UserError(f"model.block_size={block_size} is more than the {most} positions of this model.")
        self.config = Shape(lm.get_input_embeddings().weight.shape[0], block_size)
        self.prefix_shared = True  # rows hold `prompt | chosen | rejected`; False: one sequence per row (check_rows decides)
        self.window = getattr(c, "sliding_window", None) if getattr(c, "use_sliding_window", True) else None
        self.layer_types = set(getattr(c, "layer_types", None) or ())
        self.eager = lm.config._attn_implementation == "eager"
        # how this family makes logits from the head's products: Cohere multiplies them, Granite divides, Gemma 2 bends them
        self.scale = getattr(c, "logit_scale", None) or 1 / (getattr(c, "logits_scaling", None) or 1)
        self.cap = getattr(c, "final_logit_softcapping", None)

    @property
    def device(self) -> torch.device:
        return self.lm.get_input_embeddings().weight.device

    def n_params(self, embeddings: bool = True) -> int:
        """Parameters, with or without the embeddings (a tied head counts with them)."""
        n = sum(p.numel() for p in self.parameters())
        return n if embeddings else n - self.lm.get_input_embeddings().weight.numel()

    def forward(self, ids: Tensor, positions: Tensor, segments: Tensor, predict_at: Tensor, targets: Tensor,
                same_gradient: bool = False, squares: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """log p(target) of each scored token, nats, float32 [N]; arguments and `squares` as in model.GPT.forward.

        Logits exist for scored tokens alone, a chunk at a time.
        """
        x = self.hidden(ids, positions, segments).flatten(0, 1)[predict_at] * self.scale  # [N, C]
        head = self.lm.get_output_embeddings()
        if type(head) is nn.Linear and head.bias is None and not self.cap:
            logps = TokenLogps.apply(x, head.weight, targets, same_gradient)
            return (logps, log_square_sums(x.detach(), head.weight)) if squares else logps
        step = max(1, LOGITS_AT_ONCE // self.config.vocab_size)
        pieces = [checkpoint(self._logps, part, wanted, use_reentrant=False) for part, wanted in zip(x.split(step), targets.split(step))]
        logps, log_squares = (torch.cat(column) for column in zip(*pieces))
        return (logps, log_squares) if squares else logps

    def _logps(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(log p(target), log sum p^2 without gradient), [n] each: the plain way, for heads that are more than one product."""
        head = self.lm.get_output_embeddings()
        with torch.autocast(x.device.type, enabled=False):
            if type(head) is nn.Linear:
                logits = F.linear(x.float(), head.weight.float(), None if head.bias is None else head.bias.float())
            else:
                logits = head(x).float()
            if self.cap:
                logits = self.cap * torch.tanh(logits / self.cap)
            logps = logits.log_softmax(1)
            return logps.gather(1, targets[:, None]).squeeze(1), (2 * logps.detach()).logsumexp(1)

    def hidden(self, ids: Tensor, positions: Tensor, segments: Tensor) -> Tensor:
        """Final hidden states [B, T, C] of rows laid out by batching.make_batch."""
        mask = self.mask(positions, segments) if self.prefix_shared else (segments >= 0).long()
        return self.lm.base_model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state

    def mask(self, positions: Tensor, segments: Tensor) -> Tensor | dict[str, Tensor]:
        """Who sees whom [B, 1, T, T], with the sliding window where this model has one; one mask per kind of layer where it has two kinds.

        Boolean for SDPA. Eager attention *adds* its mask to the scores, where True would count as 1: there it is 0 and the lowest number.
        """
        whole = tree_mask(segments)
        near = whole & (positions[:, None, :, None] - positions[:, None, None, :] < self.window) if self.window else whole
        near, whole = ((self._additive(m) if self.eager else m) for m in (near, whole))
        if self.layer_types > {"sliding_attention"}:  # both kinds
            return {"full_attention": whole, "sliding_attention": near}
        return near

    def _additive(self, mask: Tensor) -> Tensor:
        dtype = self.lm.get_input_embeddings().weight.dtype
        if torch.is_autocast_enabled(mask.device.type):
            dtype = torch.get_autocast_dtype(mask.device.type)
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)

    @torch.no_grad()
    def own_logps(self, prompt: Sequence[int], reply: Sequence[int]) -> Tensor:
        """log p of each reply token [R] float32 by the model's own forward pass and logits: one sequence, no mask of ours."""
        ids = torch.tensor([[*prompt, *reply]], device=self.device)
        logits = self.lm(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1:-1].float()
        return logits.log_softmax(1).gather(1, ids[0, len(prompt):, None]).squeeze(1)

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int | Sequence[int], eot_id: int, temperature: float, top_k: int, top_p: float,
                 seed: int, sample_index: int | Sequence[int], stop: bytes, token_bytes: Sequence[bytes] | None, batch_size: int, show: str) -> list[list[int]]:
        """As generate.generate (whose draws it uses), by the model's own key-value cache; prompts are padded on the left."""
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        indices = [sample_index] * len(prompts) if isinstance(sample_index, int) else list(sample_index)
        replies: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        was_training = self.training
        self.eval()
        for start in tqdm(range(0, len(order), batch_size), desc=show, leave=False, disable=not show):
            rows = order[start:start + batch_size]
            longest = len(prompts[rows[0]])
            ids = torch.tensor([[0] * (longest - len(prompts[i])) + list(prompts[i]) for i in rows], device=self.device)
            seen = torch.tensor([[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in rows], device=self.device)
            keys = np.array([prompt_key(prompts[i], indices[i]) for i in rows], dtype=np.uint64)
            open_rows, tails, cache, positions = set(range(len(rows))), [b""] * len(rows), None, (seen.cumsum(1) - 1).clamp(min=0)
            while open_rows:
                out = self.lm(input_ids=ids, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache = out.past_key_values
                u = torch.from_numpy(uniforms(seed, keys, np.array([len(replies[i]) for i in rows])))
                tokens = pick(out.logits[:, -1].float(), temperature, top_k, top_p, u)
                for row in list(open_rows):
                    i, token = rows[row], int(tokens[row])
                    if token != eot_id:
                        replies[i].append(token)
                    if stop:
                        tails[row] = (tails[row] + token_bytes[token])[-4 * len(stop):]
                    full = len(replies[i]) == limits[i] or len(prompts[i]) + len(replies[i]) >= self.config.block_size
                    if token == eot_id or full or (stop and stop in tails[row]):
                        open_rows.discard(row)
                ids, positions = tokens[:, None], positions[:, -1:] + 1
                seen = torch.cat([seen, torch.ones_like(ids)], dim=1)
        self.train(was_training)
        return replies


def load_causal_lm(folder: Path | str, block_size: int, checkpointing: bool = False, **how: object) -> CausalLM:
    """The model in a Hugging Face folder; SDPA attention where the model has it. `how`: lora.base_settings, or dtype=... UserError when it cannot be read."""
    from transformers import AutoModelForCausalLM
    return behind_our_door(with_attention(folder, lambda kind: AutoModelForCausalLM.from_pretrained(folder, attn_implementation=kind, **how)), block_size, checkpointing)


def behind_our_door(lm: nn.Module, block_size: int, checkpointing: bool) -> CausalLM:
    """`lm` as training wants it: without dropout, its blocks checkpointed or not."""
    without_dropout(lm)
    if checkpointing:
        checkpoint_blocks(lm)
    return CausalLM(lm, block_size)


def with_attention(folder: Path | str, make: Callable[[str], nn.Module]) -> nn.Module:
    """make("sdpa"), or make("eager") for a family without SDPA. UserError when the model cannot be read."""
    try:
        try:
            return make("sdpa")
        except ValueError:
            return make("eager")
    except (OSError, ValueError) as e:
        raise UserError(f"the model in {folder} cannot be read: {str(e).splitlines()[0]}") from None


def without_dropout(lm: nn.Module) -> None:
    """Switch off every dropout of a model: noise in a log-ratio is noise in the reward, and GPT-2 comes with a tenth of it."""
    for module in lm.modules():
        for name in ("p", "attention_dropout", "dropout") if isinstance(module, nn.Dropout) else ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def checkpoint_blocks(lm: nn.Module) -> None:
    """Keep only each block's input for the backward pass, which then computes the block again: less memory, a third more work."""
    if hasattr(lm, "activation_checkpointing_enable"):  # the name since transformers 5.2
        lm.activation_checkpointing_enable({"use_reentrant": False})
    else:
        lm.gradient_checkpointing_enable({"use_reentrant": False})


def open_model(config: Config, folder: Path, empty: bool = False) -> CausalLM:
    """A Hugging Face model as a run starts with it: whole and trainable, or with fresh adapters (lora.rank) on frozen weights.

    empty: only its structure, on the meta device, to be sharded and then filled by `fill`.
    """
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder} holds adapters alone: make a whole model of it with `python merge_adapters.py {folder} --to FOLDER`, and start from that.")
    if config.lora.rank and "lm_head" in config.lora.targets:
        raise UserError("lora.targets: lm_head is applied to scored tokens alone, in float32, and takes no adapter.")
    how = base_settings(config.lora) if config.lora.rank else {"dtype": torch.float32}
    if empty:
        from transformers import AutoConfig, AutoModelForCausalLM
        with torch.device("meta"):
            shape = AutoConfig.from_pretrained(folder)
            lm = with_attention(folder, lambda kind: AutoModelForCausalLM.from_config(shape, attn_implementation=kind, **how))
            model = behind_our_door(lm.eval(), config.model.block_size, config.scale.checkpointing)
    else:
        model = load_causal_lm(folder, config.model.block_size, config.scale.checkpointing, **how)
    if config.lora.rank:
        add_adapters(model, config.lora, config.seed)
    return model


@torch.no_grad()
def fill(model: CausalLM, folder: Path, device: torch.device, seed: int) -> None:
    """Give a sharded model without storage its weights: each rank reads from the files only the rows it keeps, so no machine holds all of them
    at once. UserError for a weight that the files lack."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
    model.to_empty(device=device)
    for module in model.lm.modules():  # what is computed and not stored, such as rotary frequencies
        if module._non_persistent_buffers_set:
            model.lm._init_weights(module)
    # adapters wrap a layer: in the files it has no `base`
    wanted = {name.removeprefix("lm.").replace(".base.", "."): p for name, p in model.named_parameters() if ".lora_" not in name}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in wanted.keys() & set(file.keys()):
                p, stored = wanted.pop(name), file.get_slice(name)
                if not hasattr(p, "device_mesh"):
                    p.copy_(stored[:])
                    continue
                shape, start = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
                if shape[0]:
                    p.to_local().copy_(stored[start[0]:start[0] + shape[0]])
    if wanted:
        raise UserError(f"the files in {folder} lack {next(iter(wanted))} ({len(wanted)} weights in all): load it once with transformers and save it again.")
    if has_adapters(model):
        init_adapters(model, seed)


def choose_rows(model: CausalLM, store: PairStore, autocast: Callable[[], AbstractContextManager], world: World = World()) -> None:
    """Ask the loaded weights whether shared rows give the model's own log-probs, on the longest pair of the store, where windows and
    position limits show. If not, every reply gets a row of its own, and that is said. UserError when even those differ."""
    longest = int(row_lengths(store, 2).argmax())
    prompt, _, *replies = (part.tolist() for part in store.row(longest))
    problem = ""
    for model.prefix_shared in (True, False):
        batch = make_batch(store, [[longest]], separate=not model.prefix_shared).to(model.device)
        with torch.no_grad(), autocast():
            found = model(*batch.inputs()).split([len(reply) for reply in replies])
            differs = world.from_main(check_rows(model, prompt, *replies, found))  # one decision for all ranks
        if not differs:
            if problem:
                print(f"{problem}: every reply gets a row of its own.")
            return
        problem = differs
    raise UserError(f"this model cannot be scored: {problem}, even in rows of its own.")


@torch.no_grad()
def check_rows(model: CausalLM, prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int], logps: tuple[Tensor, Tensor]) -> str:
    """"" when a shared row's log-probs ([R] of chosen, of rejected) are the model's own, else what differs.

    To be asked about the longest row of a run, where windows and position limits show. Allowed per token: 1e-3 nats in float32, .5 in
    bf16 (and .05 on average), whose rounding differs with the shape of a batch.
    """
    exact = next(model.lm.parameters()).dtype == torch.float32 and not torch.is_autocast_enabled(model.device.type)
    worst, mean = 0.0, 0.0
    for reply, found in zip((chosen, rejected), logps):
        gap = (model.own_logps(prompt, reply) - found).abs()
        worst, mean = max(worst, gap.max().item()), max(mean, gap.mean().item())
    allowed = (1e-3, 1e-3) if exact else (0.5, 0.05)
    if worst <= allowed[0] and mean <= allowed[1]:
        return ""
    return f"log-probs in a shared row differ from the model's own by up to {worst:.3g} nats per token ({mean:.3g} on average)"
