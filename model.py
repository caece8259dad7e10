"""The GPT-2 architecture: blocks, tree attention, scoring, weights to and from Hugging Face folders.

Two ways in. Training and evaluation *score* given tokens: `model(ids, positions, segments, predict_at, targets)` returns one
log-prob per scored token and never builds a [B, T, V] tensor (head.py). generate.py *extends* prompts, with a key-value cache.
Shapes: B rows, T positions in a row, C width, H heads, D = C / H, V vocabulary, N scored tokens.
"""
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from head import TokenLogps, log_square_sums
from runtime.errors import UserError


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


class Linear(nn.Linear):
    """x W^T + b. Where rows are few (generation on a CPU) W stands on the left: that product is up to 1.5 times as fast."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[:-1].numel()
        if rows > 64 or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        return torch.addmm(self.bias[:, None], self.weight, x.reshape(rows, -1).T).T.reshape(*x.shape[:-1], -1)


class Attention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)  # query, key, value in one matrix product
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, mask: Tensor, cache: Any, layer: int) -> Tensor:
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # [B, H, T, D]
                   for part in self.c_attn(x).split(C, dim=2))
        if cache is None:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0)
        else:
            y = cache.attend(layer, q, k, v, mask)
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, C))
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)
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

    def forward(self, x: Tensor, mask: Tensor, cache: Any, layer: int, keep: Tensor | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask, cache, layer)
        if keep is not None:  # from here on no position looks at another, so those without a loss need not go on
            x = x.flatten(0, 1)[keep]
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2 (Radford et al. 2019): learned positions, pre-norm blocks, output head tied to the token embedding."""

    prefix_shared = True  # takes rows of `prompt | chosen | rejected`; some Hugging Face models do not

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

    def hidden(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: Any = None, keep: Tensor | None = None) -> Tensor:
        """Final hidden states [B, T, C] of ids, positions [B, T] under a boolean mask broadcastable to [B, H, T, keys].

        keep [N]: flat indices of the positions that are wanted -> [N, C]; the last block spares the others its second half.
        cache: generate.Cache, which adds the keys and values of earlier calls.
        """
        x = self.wte(ids) + self.wpe(positions)
        x = F.dropout(x, self.config.dropout, self.training)
        for layer, block in enumerate(self.h):
            x = block(x, mask, cache, layer, keep if layer + 1 == len(self.h) else None)
        return self.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits [..., V]. Autocast is off here: bf16 logits would be the largest single error in a log-prob."""
        with torch.autocast(hidden.device.type, enabled=False):
            return hidden.float() @ self.wte.weight.float().T

    def forward(self, ids: Tensor, positions: Tensor, segments: Tensor, predict_at: Tensor, targets: Tensor,
                same_gradient: bool = False, squares: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """log p(target) of each scored token, nats, float32 [N].

        ids, positions, segments [B, T]; predict_at [N] = flat index (row * T + t) of the position that predicts the token
        (the one before it in its branch); targets [N] = its id. same_gradient: see head.TokenLogps.
        squares: return (log-probs, log sum_v p(v)^2 [N] without gradient), which WPO asks for.
        """
        x = self.hidden(ids, positions, tree_mask(segments), keep=predict_at)  # [N, C]
        logps = TokenLogps.apply(x, self.wte.weight, targets, same_gradient)
        return (logps, log_square_sums(x.detach(), self.wte.weight)) if squares else logps


# ---- Hugging Face GPT-2 folders -------------------------------------------------------------------------------------
# GPT-2's own layout stores these four matrices as [in, out] (it calls them Conv1D); nn.Linear keeps [out, in].
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def save_model(model: GPT, folder: Path, eot_id: int, state: dict[str, Tensor] | None = None) -> None:
    """Write config.json, generation_config.json and model.safetensors (float32) as AutoModelForCausalLM reads them. state: instead of the model's own."""
    c = model.config
    weights = {}
    for name, p in (state or model.state_dict()).items():
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
        return Path(snapshot_download(name_or_folder, allow_patterns=["*.json", "*.safetensors", "*.jinja", "tokenizer*", "merges.txt"], ignore_patterns=["original/*"]))
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
