"""LoRA (Hu et al. 2021): the weights stay as they are, and each chosen matrix W gets a trainable correction of low rank.

    y = W x + scale * B A x        A [r, in], B [out, r], r much smaller than in and out

A starts random and B at zero, so training starts at the base model exactly. What it buys: gradients and optimizer state only for A and
B, a checkpoint of megabytes, and a DPO reference for free, because the same model with its adapters off *is* the reference. It works on
any Hugging Face causal LM and on our own GPT; files are in the layout of the `peft` library, which opens them, and whose files open here.
"""
import contextlib
import importlib.util
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from model import GPT
from runtime.config import LoraConfig
from runtime.device import DTYPES
from runtime.errors import UserError


def scale_of(config: LoraConfig) -> float:
    """The factor of B A x: alpha / r (Hu et al. 2021, section 4.1) or alpha / sqrt(r), with which high ranks learn too (Kalajdzievski 2023)."""
    return config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)


def _transposed(layer: nn.Module) -> bool:
    """True for transformers' Conv1D (GPT-2), a linear layer that keeps its weight as [in, out]. By name: importing transformers takes seconds."""
    return type(layer).__name__ == "Conv1D"


class LoraLinear(nn.Module):
    """A frozen linear layer and its adapter: x [..., in] -> [..., out], in the number format that the frozen layer answers in.

    The layer may be quantised: of it only the sizes and the output are used. A and B are float32 whatever the base is in, because in
    bfloat16 an update below 1/256 of a weight would be rounded away. There is no `.weight` here on purpose: code that reaches past
    forward for the matrix would leave the adapter out, and should fail instead.
    """

    def __init__(self, base: nn.Module, config: LoraConfig):
        super().__init__()
        fan_in, fan_out = base.weight.shape if _transposed(base) else (base.in_features, base.out_features)
        device = next(chain(base.parameters(), base.buffers())).device
        self.base = base
        self.lora_A = nn.Parameter(torch.zeros(config.rank, fan_in, dtype=torch.float32, device=device))  # init_adapters draws it
        self.lora_B = nn.Parameter(torch.zeros(fan_out, config.rank, dtype=torch.float32, device=device))
        self.scale, self.dropout, self.on = scale_of(config), config.dropout, True
        self.train(base.training)  # a new module is in training mode, and a loaded model is not: dropout would be on

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if not self.on:
            return y
        # autocast picks the format of the two products; without it they run in the adapter's own
        low = F.linear(F.dropout(x, self.dropout, self.training).to(self.lora_A.dtype), self.lora_A)  # [..., r]
        return (y + F.linear(low * self.scale, self.lora_B)).to(y.dtype)


def has_adapters(model: nn.Module) -> bool:
    """True between add_adapters or load_adapters and merge."""
    return any(isinstance(m, LoraLinear) for m in model.modules())


def adapters(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers by dotted name. UserError when there are none: such a model would pass for its own reference."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, LoraLinear)}
    if not found:
        raise UserError("the model has no LoRA adapters: set lora.rank to train some, or name an adapter folder.")
    return found


def _linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    if has_adapters(model):
        raise UserError("the model has LoRA adapters already: merge them into its weights before adding others.")
    return {name: m for name, m in model.named_modules() if _transposed(m) or (hasattr(m, "in_features") and hasattr(m, "out_features"))}


def _public_name(model: nn.Module, name: str) -> str:
    """A layer's name in files: the one in the Hugging Face model, whether `model` is that, hf_model's wrapper, or our GPT, which is saved as GPT-2."""
    return f"transformer.{name}" if isinstance(model, GPT) else name.removeprefix("lm.")


def _wrap(model: nn.Module, names: Iterable[str], config: LoraConfig) -> None:
    """Freeze the model and put a LoraLinear in the place of each named layer."""
    if config.rank < 1 or config.alpha <= 0 or not 0 <= config.dropout < 1:
        raise UserError("LoRA needs lora.rank of at least 1, lora.alpha above 0 and lora.dropout from 0 to below 1, "
                        f"not {config.rank}, {config.alpha:g} and {config.dropout:g}.")
    model.requires_grad_(False)
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, LoraLinear(model.get_submodule(name), config))


def add_adapters(model: nn.Module, config: LoraConfig, seed: int) -> int:
    """Give every linear layer whose dotted name ends in one of config.targets an adapter and freeze all else; returns the trainable parameters.

    The initial A depends on `seed` and the layers' order alone, and no global random number is used. On the meta device only the
    structure is made: call `init_adapters` when the model has storage. UserError for a target that matches no linear layer.
    """
    linear = _linear_layers(model)
    matches = {target: [name for name in linear if f".{_public_name(model, name)}".endswith(f".{target}")] for target in config.targets}
    for target, names in matches.items():
        if not names:
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise UserError(f"lora.targets: no linear layer of this model is called '{target}'; its linear layers are {', '.join(known)}.")
    if not matches:
        raise UserError("lora.targets is empty: name the linear layers that get adapters.")
    chosen = set(chain(*matches.values()))
    _wrap(model, [name for name in linear if name in chosen], config)
    init_adapters(model, seed)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _fill(p: Tensor, value: Tensor) -> None:
    """p <- value, whether p is whole or this rank's shard of an FSDP2 parameter. On the meta device this does nothing."""
    if hasattr(p, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor
        value = distribute_tensor(value.to(p.device, p.dtype), p.device_mesh, p.placements)
    p.copy_(value)


@torch.no_grad()
def init_adapters(model: nn.Module, seed: int) -> None:
    """(Re)start all adapters: A uniform in +-1/sqrt(in), as in PEFT (kaiming, a = sqrt 5), B zero. Drawn on the CPU: every device and rank gets the same."""
    generator = torch.Generator("cpu").manual_seed(seed)
    for layer in adapters(model).values():
        a = torch.empty(layer.lora_A.shape, dtype=torch.float32, device="cpu")
        _fill(layer.lora_A, nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator))
        layer.lora_B.zero_()


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within it the model is its base: the DPO reference without a second copy of the weights. UserError for a model without adapters.

    For passes without gradient: a checkpointed block is computed again in the backward pass, when the adapters are on again.
    """
    layers = list(adapters(model).values())
    before = [layer.on for layer in layers]  # not simply on again: the caller may be in such a block itself
    try:
        for layer in layers:
            layer.on = False
        yield
    finally:
        for layer, was_on in zip(layers, before, strict=True):
            layer.on = was_on


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Fold each adapter into its weight, W + scale B A in float32 and then rounded to W's format once, and put the plain layers back, still frozen.

    UserError, with nothing changed, for quantised weights (rounding to their few levels would lose most of a small correction)
    and for a weight that another layer shares (an adapted lm_head tied to the embedding).
    """
    layers = adapters(model)
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for name, layer in layers.items():
        weight = getattr(layer.base, "weight", None)  # quantised ones may be packed into any format, bfloat16 too: then their number gives them away
        whole = weight is not None and weight.is_floating_point() and weight.element_size() > 1
        if not whole or weight.numel() != layer.lora_A.shape[1] * layer.lora_B.shape[0]:
            raise UserError(f"adapters cannot be merged into the quantised weights of {name}: load the base in bfloat16 and merge there.")
        if owners[id(weight)] > 1:
            raise UserError(f"the adapter of {name} cannot be merged: its weight also serves another layer, which would change with it.")
    for name, layer in layers.items():
        with torch.autocast(layer.lora_A.device.type, enabled=False):
            delta = layer.scale * (layer.lora_B @ layer.lora_A)  # [out, in], float32
        layer.base.weight.copy_(layer.base.weight.float() + (delta.T if _transposed(layer.base) else delta))
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.base)


def base_settings(config: LoraConfig) -> dict[str, Any]:
    """Arguments of `AutoModelForCausalLM.from_pretrained` for how lora.frozen keeps the frozen weights. nf4 as in QLoRA (Dettmers et al. 2023). UserError."""
    if config.frozen in ("float32", "bfloat16"):
        return {"dtype": DTYPES[config.frozen]}
    if config.frozen != "nf4":
        raise UserError(f"lora.frozen must be float32, bfloat16 or nf4, not '{config.frozen}'.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("lora.frozen=nf4 needs the bitsandbytes library: pip install bitsandbytes accelerate")
    if not torch.cuda.is_available():  # after one pass in evaluation mode its CPU kernels (0.50) skip autograd: the lower layers' gradients are wrong
        raise UserError("lora.frozen=nf4 needs a CUDA GPU: on CPUs bitsandbytes is for inference only; use bfloat16.")
    from transformers import BitsAndBytesConfig
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)
    return {"dtype": torch.bfloat16, "quantization_config": four_bit}


# ---- PEFT's folders -------------------------------------------------------------------------------------------------
# adapter_config.json fields that are read below, that do not change what a trained adapter computes, or that say which layers have one (the
# weights file does too, and plainer). Any other that is set is a feature we lack (DoRA, rank patterns, ones not yet invented): it is refused.
READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "bias", "init_lora_weights", "base_model_name_or_path"}
HARMLESS = {"auto_mapping", "fan_in_fan_out", "inference_mode", "megatron_core", "peft_version", "qalora_group_size", "revision", "task_type"}
CHOOSING = {"exclude_modules", "layers_to_transform", "layers_pattern"}
# pissa, olora, loftq and the like change the base weights as well; these only say how A and B began
PLAIN = {"peft_type": ["LORA"], "bias": ["none"], "init_lora_weights": [True, False, "gaussian"]}


def _key(name: str, letter: str) -> str:
    return f"base_model.model.{name}.lora_{letter}.weight"


def _files(folder: Path | str) -> tuple[LoraConfig, str, dict[str, Tensor], list[str]]:
    """(config, the base's name, weights by PEFT's key, names of the adapted layers) of a plain LoRA adapter; UserError for anything else."""
    try:
        c = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
        weights = load_file(Path(folder) / "adapter_model.safetensors")
    except FileNotFoundError as e:
        raise UserError(f"{folder} is not an adapter folder: {Path(e.filename or 'adapter_model.safetensors').name} is missing.") from None
    except Exception as e:  # broken JSON, broken safetensors
        raise UserError(f"the adapter in {folder} cannot be read ({e}).") from None
    strange = [f"{key}={value!r}" for key, value in c.items() if (value not in PLAIN[key] if key in PLAIN else value and key not in READ | HARMLESS | CHOOSING)]
    matches = {key: re.fullmatch(_key("(.+)", "[AB]"), key) for key in weights}
    strange += [key for key, match in matches.items() if not match][:1]  # whole layers, DoRA's magnitudes, embeddings: one is enough to say
    if strange:
        raise UserError(f"the adapter in {folder} is more than plain LoRA ({', '.join(strange)}), and nanopref implements nothing else.")
    names = list(dict.fromkeys(match[1] for match in matches.values()))
    listed = isinstance(c.get("target_modules"), list) and not any(c.get(key) for key in CHOOSING)
    config = LoraConfig(rank=c.get("r", 8), alpha=float(c.get("lora_alpha", 8)), dropout=float(c.get("lora_dropout", 0)), rslora=c.get("use_rslora", False),
                        targets=c["target_modules"] if listed else names)  # where PEFT chose by a pattern or by number: full names
    return config, c.get("base_model_name_or_path") or "", weights, names


def lora_config_of(folder: Path | str) -> tuple[LoraConfig, str]:
    """(LoraConfig, the base model's folder or Hub name, "" where unknown) of an adapter folder, ours or PEFT's. UserError when it is not plain LoRA."""
    return _files(folder)[:2]


def save_adapters(model: nn.Module, folder: Path | str, config: LoraConfig, base_name: str, write: bool = True) -> None:
    """Write adapter_config.json and adapter_model.safetensors (float32) as `peft.PeftModel.from_pretrained` reads them.

    base_name: the base's folder or Hub name. Of a sharded model every rank must call it, to put the shards together; one has `write`.
    """
    layers, weights = adapters(model), {}
    if any((layer.scale, len(layer.lora_A)) != (scale_of(config), config.rank) for layer in layers.values()):
        raise ValueError("config is not the one these adapters were made with")  # and its scale would be read back as theirs
    for name, layer in layers.items():
        for letter, p in (("A", layer.lora_A), ("B", layer.lora_B)):
            p = p.full_tensor() if hasattr(p, "full_tensor") else p
            weights[_key(_public_name(model, name), letter)] = p.detach().float().cpu().contiguous()
    if not write:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(weights, Path(folder) / "adapter_model.safetensors", metadata={"format": "pt"})
    (Path(folder) / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_name, "r": config.rank, "lora_alpha": config.alpha,
        "lora_dropout": config.dropout, "use_rslora": config.rslora, "target_modules": config.targets, "bias": "none", "inference_mode": True,
        "fan_in_fan_out": isinstance(model, GPT) or any(_transposed(layer.base) for layer in layers.values())}, indent=2))


@torch.no_grad()
def load_adapters(model: nn.Module, folder: Path | str) -> int:
    """Give the model the adapters of a folder, ours or PEFT's, or fill the same ones that it has; returns the trainable parameters.

    The weights file decides which layers have one. On the meta device only the structure is made: call it again when the model has
    storage. UserError for an adapter that is not plain LoRA, or of another model, rank or scale.
    """
    config, _, weights, names = _files(folder)
    if not has_adapters(model):
        linear = {_public_name(model, name): name for name in _linear_layers(model)}
        if unknown := [name for name in names if name not in linear]:
            raise UserError(f"the adapter in {folder} is for another model: this one has no linear layer {unknown[0]}.")
        _wrap(model, [linear[name] for name in names], config)
    layers = {_public_name(model, name): layer for name, layer in adapters(model).items()}
    own = {_key(name, letter): p for name, layer in layers.items() for letter, p in (("A", layer.lora_A), ("B", layer.lora_B))}
    fits = own.keys() == weights.keys() and all(own[key].shape == w.shape for key, w in weights.items())
    if not fits or any(layer.scale != scale_of(config) for layer in layers.values()):
        raise UserError(f"the adapter in {folder} does not fit the model: they differ in the adapted layers, in the layers' sizes, in rank or in scale.")
    for key, p in own.items():
        _fill(p, weights[key])
    return sum(p.numel() for p in own.values())
