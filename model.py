"""The GPT-2 architecture: blocks, tree attention, scoring, cached generation, weights to and from Hugging Face folders.

Two ways in. Training and evaluation *score* given tokens: `model(ids, positions, segments, predict_at, targets)` returns one
log-prob per scored token and never builds a [B, T, V] tensor. Generation *extends* prompts with a key-value cache.
Shapes: B rows, T positions in a row, C width, H heads, D = C / H, V vocabulary, N scored tokens.
"""
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from runtime.errors import UserError

LOGITS_AT_ONCE = 2**24  # elements of a [chunk, V] block of logits: 64 MB in float32


@dataclass
class GPTConfig:
    vocab_size: int
    block_size: int  # positions, not row length: both branches of a pair restart after the prompt
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float = 0.0


def tree_mask(segments: Tensor) -> Tensor:
    """Who may look at whom. segments [B, T] = 3 * document + {0 prompt, 1 chosen, 2 rejected}, padding -1 -> bool [B, 1, T, T].

    A query sees earlier keys of its own document that lie in the prompt or in its own branch. So one row can hold
    `prompt | chosen | rejected` (or several documents) and every branch computes exactly what it would compute alone.
    """
    query, key = segments[:, :, None], segments[:, None, :]
    same_document = query.div(3, rounding_mode="floor") == key.div(3, rounding_mode="floor")
    visible = same_document & ((key % 3 == 0) | (key == query))
    t = segments.shape[1]
    causal = torch.ones(t, t, dtype=torch.bool, device=segments.device).tril()
    # a row of only False would make softmax return NaN; for real tokens "sees itself" already holds
    itself = torch.eye(t, dtype=torch.bool, device=segments.device)
    return (visible & causal | itself)[:, None]


class Cache:
    """Keys and values of one generation batch: preallocated, filled from the left, [layers, B, H, max_len, D] each."""

    def __init__(self, config: GPTConfig, rows: int, max_len: int, device: torch.device, dtype: torch.dtype):
        shape = (config.n_layer, rows, config.n_head, max_len, config.n_embd // config.n_head)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0  # positions filled so far

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k, v [B, H, t, D] for one layer; return everything up to here [B, H, length + t, D]."""
        end = self.length + k.shape[2]
        self.k[layer, :, :, self.length:end] = k
        self.v[layer, :, :, self.length:end] = v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]


class Attention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # query, key, value in one matrix product
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, mask: Tensor, cache: Cache | None, layer: int) -> Tensor:
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # [B, H, T, D]
                   for part in self.c_attn(x).split(C, dim=2))
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0)
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, C))
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.c_fc(x), approximate="tanh")  # the approximation GPT-2 was trained with
        return F.dropout(self.c_proj(x), self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Tensor, cache: Cache | None, layer: int) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask, cache, layer)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2 (Radford et al. 2019): learned positions, pre-norm blocks, output head tied to the token embedding."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        if config.n_embd % config.n_head:
            raise UserError(f"model.n_embd={config.n_embd} must be a multiple of model.n_head={config.n_head}.")
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.apply(self._init)
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):  # 2 additions per block into the residual stream: keep its variance flat
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer))

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device

    def n_params(self, embeddings: bool = True) -> int:
        """Parameters, with or without the token and position embeddings."""
        n = sum(p.numel() for p in self.parameters())
        return n if embeddings else n - self.wte.weight.numel() - self.wpe.weight.numel()

    def hidden(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: Cache | None = None) -> Tensor:
        """Final hidden states [B, T, C] of ids, positions [B, T] under a boolean mask broadcastable to [B, H, T, keys]."""
        x = self.wte(ids) + self.wpe(positions)
        x = F.dropout(x, self.config.dropout, self.training)
        for layer, block in enumerate(self.h):
            x = block(x, mask, cache, layer)
        if cache is not None:
            cache.length += ids.shape[1]
        return self.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits [..., V]. Autocast is off here: bf16 logits would be the largest single error in a log-prob."""
        with torch.autocast(hidden.device.type, enabled=False):
            return hidden.float() @ self.wte.weight.float().T

    def forward(self, ids: Tensor, positions: Tensor, segments: Tensor, predict_at: Tensor, targets: Tensor) -> Tensor:
        """log p(target) of each scored token, nats, float32 [N].

        ids, positions, segments [B, T]; predict_at [N] = flat index (row * T + t) of the position that predicts the token
        (the one before it in its branch); targets [N] = its id.
        """
        x = self.hidden(ids, positions, tree_mask(segments)).flatten(0, 1)[predict_at]  # [N, C]
        chunk = max(1, LOGITS_AT_ONCE // self.config.vocab_size)
        if len(targets) <= chunk:
            return self._logps(x, targets)
        parts = []
        for x_part, t_part in zip(x.split(chunk), targets.split(chunk)):
            # recompute a chunk's logits in the backward pass instead of keeping [N, V] of them
            recompute = torch.is_grad_enabled()
            parts.append(checkpoint(self._logps, x_part, t_part, use_reentrant=False) if recompute else self._logps(x_part, t_part))
        return torch.cat(parts)

    def _logps(self, x: Tensor, targets: Tensor) -> Tensor:
        logits = self.logits(x)  # [n, V]
        return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(1)

    @torch.no_grad()
    def generate(self, prompts: list[list[int]], *, max_new_tokens: int, eot_id: int, temperature: float = 1.0, top_k: int = 0,
                 top_p: float = 1.0, seed: int = 0, sample_index: int = 0, stop: bytes = b"", token_bytes: list[bytes] | None = None,
                 batch_size: int = 64) -> list[list[int]]:
        """Replies to prompts (lists of ids, start token included): new ids up to, not including, end-of-text.

        temperature 0 is greedy. A reply also ends where the text `stop` appears (needs token_bytes, the bytes of each id) and
        where the model's positions run out. Each random draw depends on (seed, prompt ids, sample_index, position) alone, so in
        float32 a reply does not depend on which prompts share its batch. Raises ValueError for a prompt that fills the block.
        """
        longest = max(map(len, prompts), default=0)
        if longest >= self.config.block_size:
            raise ValueError(f"a prompt of {longest} tokens leaves no room in a block of {self.config.block_size}")
        if stop and token_bytes is None:
            raise ValueError("a stop sequence needs token_bytes")
        was_training = self.training
        self.eval()
        replies: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # neighbours of like length: little padding
        for start in range(0, len(order), batch_size):
            rows = order[start:start + batch_size]
            keys = np.array([prompt_key(prompts[i], sample_index) for i in rows], dtype=np.uint64)
            tails = [b""] * len(rows)
            open_rows = set(range(len(rows)))
            for n, tokens in enumerate(self._extend([prompts[i] for i in rows], max_new_tokens, temperature, top_k, top_p, seed, keys)):
                tokens = tokens.tolist()
                for r in list(open_rows):
                    i, token = rows[r], tokens[r]
                    if token != eot_id:
                        replies[i].append(token)
                    if stop:
                        tails[r] = (tails[r] + token_bytes[token])[-4 * len(stop):]
                    full = len(prompts[i]) + len(replies[i]) >= self.config.block_size
                    if token == eot_id or full or (stop and stop in tails[r]):
                        open_rows.discard(r)
                if not open_rows or n + 1 == max_new_tokens:
                    break
        self.train(was_training)
        return replies

    def _extend(self, prompts: list[list[int]], steps: int, temperature: float, top_k: int, top_p: float, seed: int, keys: np.ndarray):
        """Yield one id per row [B], again and again. Rows are padded on the left, so that all of them end at the same place."""
        lengths = torch.tensor([len(p) for p in prompts], device=self.device)
        longest = int(lengths.max())
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=self.device)
        at = torch.arange(longest + steps, device=self.device)
        real = at[None] >= (longest - lengths)[:, None]  # [B, longest + steps]: not padding
        positions = (at[None] - (longest - lengths)[:, None]).clamp(0, self.config.block_size - 1)  # padding must not shift positions
        causal = at[:longest, None] >= at[None, :longest]
        itself = torch.eye(longest, dtype=torch.bool, device=self.device)
        mask = (causal & real[:, None, :longest] | itself)[:, None]  # [B, 1, longest, longest]
        autocast = torch.is_autocast_enabled(self.device.type)
        dtype = torch.get_autocast_dtype(self.device.type) if autocast else self.wte.weight.dtype
        cache = Cache(self.config, len(prompts), longest + steps, self.device, dtype)
        x = self.hidden(ids, positions[:, :longest], mask, cache)[:, -1]
        for n in range(steps):
            u = torch.from_numpy(uniforms(seed, keys, n))
            tokens = pick(self.logits(x), temperature, top_k, top_p, u)  # [B]
            yield tokens
            end = longest + n + 1
            x = self.hidden(tokens[:, None], positions[:, end - 1:end], real[:, None, None, :end], cache)[:, -1]


def pick(logits: Tensor, temperature: float, top_k: int, top_p: float, u: Tensor) -> Tensor:
    """Next ids [B] from logits [B, V]: greedy at temperature 0, else the inverse CDF of the (cut) distribution at u [B] in [0, 1)."""
    if not logits.sum().isfinite():
        raise ValueError("the model's logits are not finite: its weights or its number format are broken")
    if temperature == 0:
        return logits.argmax(1)
    probs = (logits / temperature).softmax(1)
    if probs.device.type == "mps" or torch.are_deterministic_algorithms_enabled():
        probs = probs.cpu()  # MPS has no float64, CUDA no deterministic cumulative sum
    if top_k:
        kth = probs.topk(min(top_k, probs.shape[1]), dim=1).values[:, -1:]
        probs = probs.where(probs >= kth, 0)
    if top_p < 1:
        ranked, order = probs.sort(1, descending=True)
        before = ranked.cumsum(1) - ranked  # mass of the likelier tokens; the first one always stays
        keep = torch.zeros_like(probs, dtype=torch.bool).scatter(1, order, before < top_p * ranked.sum(1, keepdim=True))
        probs = probs.where(keep, 0)
    cdf = probs.double().cumsum(1)
    token = torch.searchsorted(cdf, (u.to(cdf) * cdf[:, -1])[:, None], right=True).squeeze(1)
    return token.clamp(max=probs.shape[1] - 1).to(logits.device)


def prompt_key(ids: list[int], sample_index: int) -> int:
    """64 bits that name (prompt, which of its k samples)."""
    return int.from_bytes(hashlib.sha256(np.array([sample_index, *ids], dtype=np.int64).tobytes()).digest()[:8], "little")


def uniforms(seed: int, keys: np.ndarray, position: int) -> np.ndarray:
    """One uniform in [0, 1) per key [B] uint64: splitmix64's mixing of (seed, key, position) (Steele et al. 2014)."""
    with np.errstate(over="ignore"):  # wrap-around is the arithmetic meant
        z = keys + np.uint64(seed) * np.uint64(0xD1342543DE82EF95) + np.uint64(position + 1) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53


# ---- Hugging Face GPT-2 folders -------------------------------------------------------------------------------------
# GPT-2's own layout stores these four matrices as [in, out] (it calls them Conv1D); nn.Linear keeps [out, in].
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def save_model(model: GPT, folder: Path, eot_id: int) -> None:
    """Write config.json, generation_config.json and model.safetensors (float32) as AutoModelForCausalLM reads them."""
    c = model.config
    weights = {}
    for name, p in model.state_dict().items():
        p = p.detach().float().cpu()
        weights[f"transformer.{name}"] = (p.T if name.endswith(TRANSPOSED) else p).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    ends = {"bos_token_id": eot_id, "eos_token_id": eot_id, "pad_token_id": eot_id}
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": c.vocab_size, "n_positions": c.block_size,
        "n_ctx": c.block_size, "n_embd": c.n_embd, "n_layer": c.n_layer, "n_head": c.n_head, "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5, "attn_pdrop": c.dropout, "embd_pdrop": c.dropout, "resid_pdrop": c.dropout,
        "tie_word_embeddings": True, **ends}, indent=2))
    (folder / "generation_config.json").write_text(json.dumps(ends, indent=2))


def find_folder(name_or_folder: str) -> Path:
    """A local folder as it is; anything else is fetched from the Hub. UserError when neither works."""
    if Path(name_or_folder).is_dir():
        return Path(name_or_folder)
    if name_or_folder.startswith((".", "/")) or name_or_folder.count("/") > 1:
        raise UserError(f"no model folder at {name_or_folder}.")
    from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(name_or_folder, allow_patterns=["config.json", "model.safetensors", "tokenizer*", "vocab.json", "merges.txt"]))
    except Exception as e:  # the Hub client has a dozen ways to say "not reachable"; the sentence carries its own words
        raise UserError(f"the model '{name_or_folder}' is neither a folder here nor could it be fetched from the Hub ({type(e).__name__}); "
                        "to start from random weights add --model.init_from=scratch") from e


def load_model(folder: Path | str, block_size: int = 0, dropout: float = 0.0) -> GPT:
    """A GPT with the weights of a Hugging Face GPT-2 folder. block_size > 0 keeps only the first positions."""
    folder = Path(folder)
    try:
        c = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors")
    except FileNotFoundError as e:
        raise UserError(f"{folder} is not a model folder: {Path(e.filename or 'model.safetensors').name} is missing.") from None
    except Exception as e:
        raise UserError(f"the model in {folder} cannot be read ({e}).") from None
    if c.get("model_type") != "gpt2" or c.get("activation_function", "gelu_new") != "gelu_new":
        raise UserError(f"{folder} holds a '{c.get('model_type')}' model; this code reads GPT-2 folders (model_type gpt2, gelu_new).")
    positions = block_size or c["n_positions"]
    if positions > c["n_positions"]:
        raise UserError(f"model.block_size={positions} is more than the {c['n_positions']} positions of {folder}.")
    with torch.random.fork_rng(devices=[]):  # the initial weights are thrown away: they must not cost random numbers either
        model = GPT(GPTConfig(c["vocab_size"], positions, c["n_layer"], c["n_head"], c["n_embd"], dropout))
    own = {}
    for name, p in weights.items():
        name = name.removeprefix("transformer.")
        if name in ("lm_head.weight", "score.weight") or name.endswith((".attn.bias", ".attn.masked_bias")):
            continue  # the tied head, a reward model's head (reward_model.py), and the causal-mask buffers of older files
        own[name] = p.float().T if name.endswith(TRANSPOSED) else p.float()
    if "wpe.weight" in own:
        own["wpe.weight"] = own["wpe.weight"][:positions]
    try:
        model.load_state_dict(own)
    except RuntimeError as e:
        raise UserError(f"the weights in {folder} do not fit its config.json ({str(e).splitlines()[-1].strip()}).") from None
    return model
