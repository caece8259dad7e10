"""Will it fit, and how long will it take? A DPO run's memory per GPU and its hours, before any weight is loaded.

    python plan.py configs/human_llama_3_1_8b.py --gpus 4 --gpu-memory 80

The model is built without storage; what autograd keeps is counted on fake tensors going through the project's own forward pass; FLOPs come from
the shapes. Not counted: fragmentation, the CUDA context (about .6 GB), NCCL's buffers. `bench/plan_check.py` compares the account with real runs.
"""
import argparse
import copy
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from head import LOGITS_AT_ONCE
from hf_model import CausalLM, behind_our_door
from lora import LoraLinear, add_adapters
from runtime.config import Config, load_config
from runtime.distributed import blocks
from runtime.errors import UserError, run_main

# Shapes of the models in configs/, from their public config.json files, for machines that do not reach the Hub:
# (family, hidden, intermediate, layers, heads, key-value heads, head size, vocabulary, tied head)
SHAPES = {
    "meta-llama/Llama-3.2-1B-Instruct": ("llama", 2048, 8192, 16, 32, 8, 64, 128256, True),
    "meta-llama/Llama-3.2-3B-Instruct": ("llama", 3072, 8192, 28, 24, 8, 128, 128256, True),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama", 4096, 14336, 32, 32, 8, 128, 128256, False),
    "meta-llama/Llama-3.3-70B-Instruct": ("llama", 8192, 28672, 80, 64, 8, 128, 128256, False),
    "Qwen/Qwen2.5-14B-Instruct": ("qwen2", 5120, 13824, 48, 40, 8, 128, 152064, False),
    "Qwen/Qwen2.5-32B-Instruct": ("qwen2", 5120, 27648, 64, 40, 8, 128, 152064, False),
    "Qwen/Qwen2.5-72B-Instruct": ("qwen2", 8192, 29568, 80, 64, 8, 128, 152064, False),
}
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8  # per weight: 4 bits, an 8-bit scale per 64 weights, a float32 scale per 256 of those
GB = 1e9


@dataclass
class Account:
    """Bytes on one GPU at the fullest moment of a step, by purpose, and what a step costs."""
    parameters: float   # this rank's, as they are kept
    gathered: float     # FSDP: the weights that are whole while they are used
    gradients: float
    optimizer: float
    activations: float  # what autograd keeps of one micro-batch
    working: float      # the larger of: the head's logits, one checkpointed block computed again
    flops_per_token: float
    trained: int        # parameters
    total: int

    @property
    def peak(self) -> float:
        """All of it."""
        return self.parameters + self.gathered + self.gradients + self.optimizer + self.activations + self.working


def model_config(name: str, block_size: int) -> Any:
    """The transformers config of a folder, a known name (SHAPES) or a Hub name. UserError when it cannot be had."""
    from transformers import AutoConfig, LlamaConfig, Qwen2Config
    if name in SHAPES and not Path(name).is_dir():
        family, hidden, inner, layers, heads, kv, size, vocab, tied = SHAPES[name]
        kind = {"llama": LlamaConfig, "qwen2": Qwen2Config}[family]
        return kind(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv, head_dim=size,
                    vocab_size=vocab, tie_word_embeddings=tied, max_position_embeddings=131072)
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as e:
        raise UserError(f"the shape of '{name}' cannot be had: {str(e).splitlines()[0]}") from None


def build(shape: Any, config: Config, layers: int = 0) -> CausalLM:
    """The model as a run would make it, on whatever device or mode is current; `layers` instead of its own number."""
    from transformers import AutoModelForCausalLM
    shape = copy.deepcopy(shape)
    if layers:
        shape.num_hidden_layers = layers
        if getattr(shape, "layer_types", None):
            shape.layer_types = shape.layer_types[:layers]
    lm = AutoModelForCausalLM.from_config(shape, attn_implementation="sdpa", dtype=torch.bfloat16 if config.lora.rank and config.lora.frozen != "float32" else torch.float32)
    model = behind_our_door(lm, config.model.block_size, config.scale.checkpointing)
    if config.lora.rank:
        add_adapters(model, config.lora, 0)
    return model.train()


def kept_by_autograd(shape: Any, config: Config, layers: int, rows: int, row: int, scored: int, dtype: torch.dtype) -> float:
    """Bytes saved for the backward pass by `layers` blocks and the head, parameters themselves not counted."""
    storages: dict[int, int] = {}
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build(shape, config, layers)
        own = {p.untyped_storage()._cdata for p in [*model.parameters(), *model.buffers()]}

        def listen(t: torch.Tensor) -> torch.Tensor:
            key = t.untyped_storage()._cdata
            if key not in own:
                storages[key] = t.untyped_storage().nbytes()
                alive.append(t)  # a freed storage's place may be given to the next one
            return t
        alive: list[torch.Tensor] = []
        ids = torch.zeros(rows, row, dtype=torch.long)
        at = torch.arange(scored)
        with torch.autograd.graph.saved_tensors_hooks(listen, lambda t: t), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            model(ids, torch.arange(row).expand(rows, row), torch.zeros_like(ids), at, torch.zeros(scored, dtype=torch.long))
    return float(sum(storages.values()))


def account(config: Config, gpus: int, shape: Any = None, scored_share: float = 0.5, row: int = 0, dtype: torch.dtype = torch.bfloat16) -> Account:
    """The account of one of `gpus` ranks. row: tokens in a row (0: prompt and two replies in a full block, or micro_tokens if fewer);
    scored_share: of the tokens, those in replies."""
    shape = shape or model_config(config.model.init_from, config.model.block_size)
    c, fsdp = config.dpo, config.scale.parallel == "fsdp" and gpus > 1
    shards = gpus if fsdp else 1
    with torch.device("meta"):
        model = build(shape, config)
    layers = blocks(model)
    in_blocks = {id(p) for p in layers.parameters()}
    quantised = {id(m.base.weight if isinstance(m, LoraLinear) else m.weight) for m in layers.modules() if isinstance(m, LoraLinear | torch.nn.Linear)
                 and (isinstance(m, LoraLinear) or m.weight.numel() > 1)} if config.lora.rank and config.lora.frozen == "nf4" else set()

    def kept(p: torch.nn.Parameter) -> float:
        return p.numel() * (NF4_BYTES if id(p) in quantised and not p.requires_grad else p.element_size())
    parameters = list({id(p): p for p in model.parameters()}.values())
    whole, trained = sum(map(kept, parameters)), sum(p.numel() for p in parameters if p.requires_grad)
    root = sum(kept(p) for p in parameters if id(p) not in in_blocks)
    one_block = max(sum(map(kept, block.parameters())) for block in layers)
    gradient = 4.0 * trained
    moments = (2.0 if config.scale.optimizer == "adamw8bit" else 8.0) * trained

    # activations: the head and two sizes of a small stack, whose difference is one block
    micro = c.micro_tokens
    row = row or min(micro, 2 * config.model.block_size)
    rows, scored = max(1, micro // row), int(max(1, micro // row) * row * scored_share)
    plain = replace(config, scale=replace(config.scale, checkpointing=False))
    one, two = (kept_by_autograd(shape, config, n, rows, row, scored, dtype) for n in (1, 2))
    activations = one + (two - one) * (len(layers) - 1)
    block_again = kept_by_autograd(shape, plain, 2, rows, row, scored, dtype) - kept_by_autograd(shape, plain, 1, rows, row, scored, dtype) if config.scale.checkpointing else 0.0
    head = model.lm.get_output_embeddings().weight
    copies = 4 * head.numel() * (head.dtype != torch.float32) + 2 * head.numel() * (dtype != torch.float32)  # float32 logits; the gradient's format
    logits = copies + min(LOGITS_AT_ONCE, scored * head.shape[0]) * (4 + dtype.itemsize) + 4 * head.numel() * head.requires_grad
    if quantised:
        block_again = max(block_again, 2 * max(p.numel() for p in parameters if id(p) in quantised))

    body = sum(p.numel() for p in parameters if id(p) in in_blocks)
    forward = 2 * body + 4 * len(layers) * shape.num_attention_heads * getattr(shape, "head_dim", shape.hidden_size // shape.num_attention_heads) * row / 2 + 2 * head.numel() * scored_share
    passes = (2 if config.lora.rank else 3) + config.scale.checkpointing  # frozen weights need no gradient of their own
    return Account(whole / shards, (root + 2 * one_block) if fsdp else 0.0, gradient / shards + (one_block if fsdp and not config.lora.rank else 0.0),
                   moments / shards, activations, max(logits, block_again), forward * passes, trained, sum(p.numel() for p in parameters))


def table(accounts: dict[str, Account], memory: float) -> str:
    """The accounts side by side in Markdown, GB per GPU."""
    rows = [[name, *(f"{getattr(a, name) / GB:.1f}" for a in accounts.values())] for name in ("parameters", "gathered", "gradients", "optimizer", "activations", "working", "peak")]
    rows.append([f"fits in {memory:g} GB", *("yes" if a.peak < 0.94 * memory * GB else "no" for a in accounts.values())])  # the rest: context, fragments
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (["GB per GPU", *accounts], ["---"] * (1 + len(accounts)), *rows))


def remedies(config: Config, gpus: int, memory: float, shape: Any) -> list[str]:
    """Switches that bring a run that does not fit nearer to fitting, each tried on top of the ones before."""
    found = []
    for words, change in (("--scale.checkpointing=True", {"scale": {"checkpointing": True}}), ("--scale.parallel=fsdp", {"scale": {"parallel": "fsdp"}}),
                          (f"--dpo.micro_tokens={config.model.block_size * 2}", {"dpo": {"micro_tokens": min(config.dpo.micro_tokens, config.model.block_size * 2)}}),
                          ("--lora.rank=16", {"lora": {"rank": 16}}), ("--lora.frozen=nf4 --scale.parallel=ddp", {"lora": {"frozen": "nf4"}, "scale": {"parallel": "ddp"}})):
        if "fsdp" in words and (gpus == 1 or config.lora.frozen == "nf4") or all(getattr(getattr(config, s), k) == v for s, fields in change.items() for k, v in fields.items()):
            continue
        for section, fields in change.items():
            config = replace(config, **{section: replace(getattr(config, section), **fields)})
        peak = account(config, gpus, shape).peak
        found.append(f"{words}: {peak / GB:.1f} GB")
        if peak < 0.94 * memory * GB:
            break
    return found


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--gpus", type=int, nargs="+", default=[1, 4, 8])
    a.add_argument("--gpu-memory", type=float, default=80.0, help="GB of each [80]")
    a.add_argument("--pairs", type=int, default=0, help="pairs in an epoch, for the hours")
    a.add_argument("--tokens-per-pair", type=int, default=0, help="prompt and both replies [three quarters of a block]")
    a.add_argument("--peak-tflops", type=float, default=989.0, help="of one GPU in bf16, dense [989, an H100]")
    a.add_argument("--utilisation", type=float, default=0.35, help="share of it that is reached: an assumption, not a measurement [.35]")
    a, rest = a.parse_known_args(argv)
    config = load_config(rest)
    if config.data.tokenizer != "chat":
        raise UserError("plan.py is for Hugging Face models (data.tokenizer=chat); for our own GPT see docs/speed.md.")
    shape = model_config(config.model.init_from, config.model.block_size)
    accounts = {f"{n} GPU{'s' * (n > 1)}": account(config, n, shape) for n in a.gpus}
    one = next(iter(accounts.values()))
    own = one.total - one.trained * bool(config.lora.rank)
    print(f"{config.model.init_from}: {own / 1e9:.2f}B parameters, {one.trained / 1e6:.1f}M trained; {config.lora.frozen + ' base, ' if config.lora.rank else ''}"
          f"{config.scale.parallel}, micro-batches of {config.dpo.micro_tokens:,} tokens, checkpointing {'on' if config.scale.checkpointing else 'off'}\n")
    print(table(accounts, a.gpu_memory))
    tokens = a.tokens_per_pair or config.model.block_size * 3 // 4
    per_gpu = a.peak_tflops * 1e12 * a.utilisation / one.flops_per_token
    print(f"\n{one.flops_per_token / 1e9:.1f} GFLOPs per token; at {a.utilisation:.0%} of {a.peak_tflops:g} TFLOP/s {per_gpu:,.0f} tokens/s per GPU")
    if a.pairs:
        seconds = a.pairs * tokens * config.dpo.epochs / per_gpu
        print(f"{a.pairs:,} pairs of {tokens:,} tokens, {config.dpo.epochs:g} epochs: " + ", ".join(f"{seconds / n / 3600:.1f} h on {n}" for n in a.gpus))
    for n, found in zip(a.gpus, accounts.values()):
        if found.peak >= 0.94 * a.gpu_memory * GB:
            print(f"on {n}: too much; " + "; then ".join(remedies(config, n, a.gpu_memory, shape)))
    launch = "python train_dpo.py" if a.gpus[-1] == 1 else f"torchrun --nproc_per_node={min(8, a.gpus[-1])} train_dpo.py"
    print(f"\nlaunch: {launch} {' '.join(rest)}")


if __name__ == "__main__":
    run_main(main)
