"""LoRA by hand: against hand-worked numbers, against an untouched copy of the base, and against the peft library's own files."""
import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lora
from lora import LoraLinear, adapters, adapters_off, add_adapters, base_settings, init_adapters, load_adapters, lora_config_of, merge, save_adapters, scale_of
from model import GPT, GPTConfig, load_model, save_model, tree_mask
from runtime.config import LoraConfig
from runtime.errors import UserError

LLAMA_LIKE = dict(vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32)
GPT2_TARGETS = ["c_attn", "c_proj", "c_fc"]
FAMILIES = ["Llama", "Qwen2", "Qwen3", "Mistral", "Gemma", "GPT2"]
IDS = torch.tensor([[1, 5, 9, 60, 2, 7, 33], [4, 4, 8, 15, 16, 23, 42]])


def tiny(family="Llama", **changes):
    """A random model of a family from transformers, in evaluation mode; the same one every time."""
    import transformers
    sizes = LLAMA_LIKE | ({"head_dim": 8} if family in ("Gemma", "Qwen3") else {})
    if family == "GPT2":
        sizes = dict(vocab_size=61, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    ends = dict(pad_token_id=0, bos_token_id=0, eos_token_id=0)
    config = getattr(transformers, f"{family}Config")(**sizes | ends | {"initializer_range": 0.2} | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return transformers.AutoModelForCausalLM.from_config(config).eval()


def settings(family="Llama", **changes):
    return LoraConfig(**{"rank": 4, "alpha": 8.0, "targets": GPT2_TARGETS if family == "GPT2" else LoraConfig().targets} | changes)


def adapted(family="Llama", model_changes=None, **changes):
    """(model with adapters that do something, their config)."""
    model, config = tiny(family, **model_changes or {}), settings(family, **changes)
    add_adapters(model, config, seed=0)
    stir(model)
    return model, config


@torch.no_grad()
def stir(model):
    """Give every B values, as if it had been trained."""
    g = torch.Generator().manual_seed(5)
    for layer in adapters(model).values():
        layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=g) * 0.2)


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS.to(model.device), use_cache=False).logits.float()


def train(model, steps=3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = IDS.to(model.device)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()


# ---- one layer ------------------------------------------------------------------------------------------------------

def by_hand(rslora=False, dropout=0.0):
    """W = I, r = 4 with only the first direction used, A's row (1, 2), B's column (3, -1), alpha 8."""
    base = nn.Linear(2, 2, bias=False)
    layer = LoraLinear(base, LoraConfig(rank=4, alpha=8.0, rslora=rslora, dropout=dropout))
    with torch.no_grad():
        base.weight.copy_(torch.eye(2))
        layer.lora_A[0], layer.lora_B[:, 0] = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])
    return layer


def test_two_by_two_by_hand():
    """x = (1, 1): A x = 3, B A x = (9, -3). alpha / r = 2 -> (1, 1) + (18, -6). rsLoRA: alpha / sqrt(r) = 4 -> (1, 1) + (36, -12)."""
    x = torch.ones(1, 2)
    assert by_hand()(x).tolist() == [[19.0, -5.0]]
    assert by_hand(rslora=True)(x).tolist() == [[37.0, -11.0]]
    assert scale_of(LoraConfig(rank=16, alpha=32.0)) == 2 and scale_of(LoraConfig(rank=16, alpha=32.0, rslora=True)) == 8


def test_dropout_is_on_in_training_and_only_there():
    """On the adapter's input alone: with half of x's entries gone and the rest doubled, A x is 0, 2, 4 or 6 instead of 3; W x stays."""
    layer, x = by_hand(dropout=0.5), torch.ones(400, 2)
    torch.manual_seed(0)
    seen = layer.train()(x)
    assert set(seen[:, 0].tolist()) == {1 + 6 * ax for ax in (0.0, 2.0, 4.0, 6.0)}
    assert torch.equal(layer.eval()(x), torch.tensor([[19.0, -5.0]]).expand(400, 2))


def test_adapters_take_over_the_mode_of_the_model():
    """A loaded model is in evaluation mode, a new module in training mode: without care, dropout would be on."""
    model, _ = adapted(dropout=0.5)
    assert torch.equal(logits(model), logits(model))
    assert not torch.equal(logits(model.train()), logits(model))


def test_no_way_past_the_adapter():
    with pytest.raises(AttributeError):
        by_hand().weight


# ---- a model --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("family", FAMILIES)
def test_starts_at_the_base_and_off_is_the_base_before_and_after_training(family):
    base, model = tiny(family), tiny(family)
    n = add_adapters(model, settings(family), seed=0)
    assert n == sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(4 * sum(pair) for pair in sizes(base, settings(family).targets))
    weights = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert torch.equal(logits(model), logits(base))  # B is zero
    with adapters_off(model):
        assert torch.equal(logits(model), logits(base))
    train(model)
    assert (logits(model) - logits(base)).abs().max() > 1e-2
    with adapters_off(model):
        assert (logits(model) - logits(base)).abs().max() < 1e-6
    assert (logits(model) - logits(base)).abs().max() > 1e-2  # on again
    for name, p in model.named_parameters():
        assert (p.grad is not None) == p.requires_grad == (".lora_" in name)
        assert p.requires_grad or torch.equal(p, weights[name])


def sizes(base, targets):
    """(in, out) of every targeted layer, read off the untouched weights."""
    for name, m in base.named_modules():
        if name.rpartition(".")[2] in targets:
            yield m.weight.shape


def test_the_last_part_of_the_name_decides():
    model = tiny()
    add_adapters(model, settings(targets=["v_proj", "mlp.up_proj"]), seed=0)
    assert list(adapters(model)) == [f"model.layers.{i}.{name}" for i in (0, 1) for name in ("self_attn.v_proj", "mlp.up_proj")]
    assert not any("lm_head" in name for family in FAMILIES for name in adapters(adapted(family)[0]))
    model = tiny()
    add_adapters(model, settings(targets=["lm_head"]), seed=0)
    assert list(adapters(model)) == ["lm_head"]


def test_off_nests_and_survives_errors():
    model, _ = adapted()
    on = logits(model)
    with pytest.raises(ZeroDivisionError), adapters_off(model):
        1 / 0
    assert torch.equal(logits(model), on)
    with adapters_off(model):
        off = logits(model)
        with adapters_off(model):
            assert torch.equal(logits(model), off)
        assert torch.equal(logits(model), off)  # still: the outer block decides
    assert torch.equal(logits(model), on) and not torch.equal(on, off)


def test_the_seed_alone_decides():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = tiny(), tiny(), tiny()
    add_adapters(first, settings(), seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    add_adapters(again, settings(), seed=7)
    add_adapters(other, settings(), seed=8)
    for a, b, c in zip(*(adapters(m).values() for m in (first, again, other)), strict=True):
        assert torch.equal(a.lora_A, b.lora_A) and not torch.equal(a.lora_A, c.lora_A)
        bound = a.base.in_features ** -0.5  # kaiming uniform with a = sqrt 5
        assert 0.8 * bound < a.lora_A.abs().max() <= bound and not a.lora_B.any()


def test_on_the_meta_device():
    config = settings()
    with torch.device("meta"):
        model = tiny()
    n = add_adapters(model, config, seed=0)
    assert all(p.is_meta for p in model.parameters())
    whole = tiny()
    assert n == add_adapters(whole, config, seed=0)
    model.to_empty(device="cpu")
    init_adapters(model, seed=0)
    for a, b in zip(adapters(model).values(), adapters(whole).values(), strict=True):
        assert torch.equal(a.lora_A, b.lora_A) and torch.equal(a.lora_B, b.lora_B)


def test_under_fsdp2(tmp_path):
    """One process, but sharded parameters all the same: started, saved and filled as whole ones are. The base is bfloat16, the adapters are not."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    whole, config = tiny().bfloat16(), settings()
    add_adapters(whole, config, seed=0)
    with torch.device("meta"):
        model = tiny().bfloat16()
    add_adapters(model, config, seed=0)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        model.to_empty(device="cpu")
        init_adapters(model, seed=0)
        layer, same = adapters(model)["model.layers.1.mlp.down_proj"], adapters(whole)["model.layers.1.mlp.down_proj"]
        assert isinstance(layer.lora_A, DTensor) and torch.equal(layer.lora_A.full_tensor(), same.lora_A)
        stir(whole)
        save_adapters(whole, tmp_path / "whole", config, "")
        load_adapters(model, tmp_path / "whole")
        assert torch.equal(layer.lora_B.full_tensor(), same.lora_B)
        save_adapters(model, tmp_path / "sharded", config, "")
    finally:
        dist.destroy_process_group()
    assert (tmp_path / "sharded" / "adapter_model.safetensors").read_bytes() == (tmp_path / "whole" / "adapter_model.safetensors").read_bytes()


def test_float32_adapters_on_a_bfloat16_base():
    """With autocast and without: the base's format comes out, and the adapters and their gradients keep theirs."""
    base, model = tiny().bfloat16(), tiny().bfloat16()
    add_adapters(model, settings(), seed=0)
    assert torch.equal(logits(model), logits(base))
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out = model(input_ids=IDS, labels=IDS, use_cache=False)
        assert out.logits.dtype == torch.bfloat16
        out.loss.backward()
    for layer in adapters(model).values():
        assert layer.lora_A.dtype == layer.lora_B.grad.dtype == torch.float32 and layer.lora_B.grad.any()
    with adapters_off(model):
        assert torch.equal(logits(model), logits(base))


def test_autocast_on_a_float32_base_is_near_the_exact_result():
    model, _ = adapted()
    exact = logits(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert 0 < (logits(model) - exact).abs().max() < 0.05 * exact.abs().max()


# ---- merging --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rslora", [False, True])
def test_merged_is_the_plain_model_with_the_adapters_output(family, rslora):
    model, _ = adapted(family, rslora=rslora)
    with_adapters = logits(model)
    merge(model)
    assert (logits(model) - with_adapters).abs().max() < 1e-5
    assert (with_adapters - logits(tiny(family))).abs().max() > 0.1
    assert [(name, type(m)) for name, m in model.named_modules()] == [(name, type(m)) for name, m in tiny(family).named_modules()]
    assert model.state_dict().keys() == tiny(family).state_dict().keys()


def test_a_bfloat16_base_is_merged_in_float32():
    """W + delta rounded once, under autocast too. Rounding delta first would be wrong in the last bit of some weights."""
    base = tiny().bfloat16()
    model = copy.deepcopy(base)
    add_adapters(model, settings(), seed=0)
    stir(model)
    deltas = {name: 2.0 * layer.lora_B.detach() @ layer.lora_A.detach() for name, layer in adapters(model).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        merge(model)
    early = 0
    for name, delta in deltas.items():
        w, merged = base.get_submodule(name).weight, model.get_submodule(name).weight
        assert merged.dtype == torch.bfloat16 and torch.equal(merged, (w.float() + delta).bfloat16())
        early += (merged != w + delta.bfloat16()).sum().item()
    assert early > 0


def test_what_cannot_be_merged_is_left_as_it_was():
    model, _ = adapted("Qwen2", {"tie_word_embeddings": True}, targets=["up_proj", "lm_head"])
    before = logits(model)
    with pytest.raises(UserError, match="lm_head cannot be merged.*another layer"):
        merge(model)
    assert torch.equal(logits(model), before) and len(adapters(model)) == 3
    for packed in (torch.zeros(8, 1, dtype=torch.uint8), torch.zeros(4, 1, dtype=torch.bfloat16)):  # 16 weights of 4 bits, as bitsandbytes keeps them
        four_bit = nn.Linear(4, 4, bias=False)
        four_bit.weight = nn.Parameter(packed, requires_grad=False)
        quantised = nn.ModuleDict({"q_proj": four_bit})
        add_adapters(quantised, settings(targets=["q_proj"]), seed=0)
        with pytest.raises(UserError, match="quantised weights of q_proj"):
            merge(quantised)
        assert isinstance(quantised["q_proj"], LoraLinear) and not packed.any()


def test_adapters_upon_a_merged_adapter():
    """SFT by LoRA, merged, is the base and so the reference of DPO by LoRA."""
    model, config = adapted()
    sft = logits(model)
    merge(model)
    add_adapters(model, config, seed=1)
    stir(model)
    with adapters_off(model):
        assert (logits(model) - sft).abs().max() < 1e-5
    assert (logits(model) - sft).abs().max() > 0.1


# ---- PEFT's files ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rslora", [False, True])
def test_peft_opens_ours(tmp_path, family, rslora):
    peft = pytest.importorskip("peft")
    model, config = adapted(family, rslora=rslora, dropout=0.1)
    save_adapters(model, tmp_path, config, "some/base")
    theirs = peft.PeftModel.from_pretrained(tiny(family), tmp_path).eval()
    assert (logits(theirs) - logits(model)).abs().max() < 1e-5
    assert (logits(theirs) - logits(tiny(family))).abs().max() > 0.1
    assert (logits(theirs.merge_and_unload()) - logits(model)).abs().max() < 1e-5  # fan_in_fan_out was right


@pytest.mark.parametrize("family, how", [(family, {}) for family in FAMILIES] + [
    ("Llama", {"use_rslora": True}), ("GPT2", {"use_rslora": True, "fan_in_fan_out": True}), ("Llama", {"target_modules": "all-linear"}),
    ("Llama", {"target_modules": r".*layers\.1\..*_proj"}), ("Llama", {"layers_to_transform": [1]}), ("Llama", {"exclude_modules": ["q_proj"]}),
    ("Llama", {"init_lora_weights": "gaussian"})])
def test_ours_opens_peft(tmp_path, family, how):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    given = dict(r=3, lora_alpha=5, lora_dropout=0.25, target_modules=GPT2_TARGETS if family == "GPT2" else ["q_proj", "self_attn.v_proj", "down_proj"])
    theirs = peft.get_peft_model(tiny(family), peft.LoraConfig(task_type="CAUSAL_LM", **given | how)).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.2)
    theirs.save_pretrained(tmp_path / "theirs")
    model = tiny(family)
    n = load_adapters(model, tmp_path / "theirs")
    assert n == sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert (logits(model) - logits(theirs)).abs().max() < 1e-5
    assert (logits(model) - logits(tiny(family))).abs().max() > 0.05
    config, _ = lora_config_of(tmp_path / "theirs")
    assert (config.rank, config.alpha, config.dropout, config.rslora) == (3, 5.0, 0.25, how.get("use_rslora", False))
    assert {layer.dropout for layer in adapters(model).values()} == {0.25}
    fresh = tiny(family)
    assert add_adapters(fresh, config, seed=0) == n and adapters(fresh).keys() == adapters(model).keys()  # the config alone says as much
    save_adapters(model, tmp_path / "ours", config, "")
    again = peft.PeftModel.from_pretrained(tiny(family), tmp_path / "ours").eval()
    assert (logits(again) - logits(theirs)).abs().max() < 1e-5


def test_our_own_round_trip(tmp_path):
    model, config = adapted(dropout=0.1, targets=["q_proj", "o_proj"])
    save_adapters(model, tmp_path, config, "some/base")
    assert lora_config_of(tmp_path) == (config, "some/base")
    other = tiny()
    load_adapters(other, tmp_path)
    assert torch.equal(logits(other), logits(model))
    init_adapters(other, seed=9)
    assert torch.equal(logits(other), logits(tiny()))
    load_adapters(other, tmp_path)  # into the adapters it has
    assert torch.equal(logits(other), logits(model))
    with torch.device("meta"):
        late = tiny()
    load_adapters(late, tmp_path)
    assert adapters(late).keys() == adapters(model).keys() and all(p.is_meta for p in late.parameters())
    with pytest.raises(ValueError, match="not the one"):
        save_adapters(model, tmp_path, settings(alpha=9.0, targets=["q_proj", "o_proj"]), "some/base")


def test_keys_and_fields_are_pefts(tmp_path):
    model, config = adapted("GPT2", rslora=True, targets=["c_fc"])
    save_adapters(model, tmp_path, config, "gpt2")
    found = {key: (list(t.shape), t.dtype) for key, t in load_file(tmp_path / "adapter_model.safetensors").items()}
    assert found == {f"base_model.model.transformer.h.{i}.mlp.c_fc.lora_{letter}.weight": (shape, torch.float32)
                     for i in (0, 1) for letter, shape in (("A", [4, 16]), ("B", [64, 4]))}
    c = json.loads((tmp_path / "adapter_config.json").read_text())
    assert c["peft_type"] == "LORA" and c["fan_in_fan_out"] and c["use_rslora"] and (c["r"], c["lora_alpha"], c["target_modules"]) == (4, 8.0, ["c_fc"])


def test_our_gpt_and_the_same_model_in_transformers_share_adapters(tmp_path):
    from transformers import AutoModelForCausalLM
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=61, block_size=32, n_layer=2, n_head=2, n_embd=16)).eval()
    (tmp_path / "base").mkdir()
    save_model(gpt, tmp_path / "base", eot_id=0)
    config = settings("GPT2")
    add_adapters(gpt, config, seed=0)
    stir(gpt)
    save_adapters(gpt, tmp_path / "adapter", config, "base")

    @torch.no_grad()
    def own_logits(model):
        positions = torch.arange(IDS.shape[1]).expand_as(IDS)
        return model.logits(model.hidden(IDS, positions, tree_mask(torch.zeros_like(IDS))))

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    plain = logits(theirs)
    load_adapters(theirs, tmp_path / "adapter")
    assert (logits(theirs) - own_logits(gpt)).abs().max() < 1e-5 < 1e-2 < (logits(theirs) - plain).abs().max()
    again = load_model(tmp_path / "base").eval()
    load_adapters(again, tmp_path / "adapter")
    assert torch.equal(own_logits(again), own_logits(gpt))
    merge(gpt)
    save_model(gpt, tmp_path / "base", eot_id=0)
    assert (logits(AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()) - own_logits(again)).abs().max() < 1e-5


def test_the_wrapper_of_hugging_face_models_is_seen_through(tmp_path):
    from hf_model import CausalLM
    wrapped, config = CausalLM(tiny(), 32).eval(), settings()
    add_adapters(wrapped, config, seed=0)
    stir(wrapped)
    save_adapters(wrapped, tmp_path, config, "")
    plain = tiny()
    load_adapters(plain, tmp_path)
    assert torch.equal(logits(plain), logits(wrapped.lm)) and not torch.equal(logits(plain), logits(tiny()))
    other = CausalLM(tiny(), 32).eval()
    load_adapters(other, tmp_path)
    assert torch.equal(logits(other.lm), logits(plain))


# ---- refusals -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("field, value", [
    ("use_dora", True), ("bias", "all"), ("bias", "lora_only"), ("modules_to_save", ["lm_head"]), ("rank_pattern", {"q_proj": 2}), ("alpha_pattern", {"q_proj": 2}),
    ("peft_type", "IA3"), ("init_lora_weights", "pissa"), ("lora_bias", True), ("layer_replication", [[0, 2]]), ("trainable_token_indices", [1]),
    ("target_parameters", ["mlp.experts"]), ("a_field_of_the_future", 1)])
def test_more_than_plain_lora_is_refused_by_name(tmp_path, field, value):
    model, config = adapted()
    save_adapters(model, tmp_path, config, "")
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    for read in (lora_config_of, lambda folder: load_adapters(tiny(), folder)):
        with pytest.raises(UserError, match=f"more than plain LoRA \\({field}="):
            read(tmp_path)


def test_weights_that_are_no_adapters_are_refused(tmp_path):
    model, config = adapted()
    save_adapters(model, tmp_path, config, "")
    file = tmp_path / "adapter_model.safetensors"
    save_file(load_file(file) | {"base_model.model.lm_head.weight": torch.zeros(2)}, file)
    with pytest.raises(UserError, match="lm_head.weight"):
        load_adapters(tiny(), tmp_path)


def test_an_adapter_of_another_model_rank_or_scale_is_refused(tmp_path):
    model, config = adapted()
    save_adapters(model, tmp_path, config, "")
    with pytest.raises(UserError, match="for another model"):
        load_adapters(tiny("GPT2"), tmp_path)
    with pytest.raises(UserError, match="does not fit"):
        load_adapters(tiny(intermediate_size=32), tmp_path)
    for changes in ({"rank": 2, "alpha": 4.0}, {"alpha": 9.0}, {"targets": ["q_proj"]}):
        other, _ = adapted(**changes)
        with pytest.raises(UserError, match="does not fit"):
            load_adapters(other, tmp_path)


def test_folders_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="adapter_config.json is missing"):
        lora_config_of(tmp_path)
    model, config = adapted()
    save_adapters(model, tmp_path, config, "")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="cannot be read"):
        lora_config_of(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="adapter_model.safetensors is missing"):
        load_adapters(tiny(), tmp_path)


def test_targets_and_numbers_are_checked():
    with pytest.raises(UserError, match="called 'qproj'; its linear layers are down_proj, .*q_proj"):
        add_adapters(tiny(), settings(targets=["q_proj", "qproj"]), seed=0)
    with pytest.raises(UserError, match="'embed_tokens'"):  # an embedding is not a linear layer
        add_adapters(tiny(), settings(targets=["embed_tokens"]), seed=0)
    with pytest.raises(UserError, match="lora.targets is empty"):
        add_adapters(tiny(), settings(targets=[]), seed=0)
    for bad in ({"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}):
        with pytest.raises(UserError, match="LoRA needs"):
            add_adapters(tiny(), settings(**bad), seed=0)
    with pytest.raises(UserError, match="already"):
        add_adapters(adapted()[0], settings(), seed=0)


def test_a_model_without_adapters_is_no_reference():
    model, _ = adapted()
    merge(model)
    with pytest.raises(UserError, match="no LoRA adapters"), adapters_off(model):
        pass


def test_how_the_base_is_kept(monkeypatch):
    assert base_settings(LoraConfig()) == {"dtype": torch.bfloat16} and base_settings(LoraConfig(frozen="float32")) == {"dtype": torch.float32}
    with pytest.raises(UserError, match="not 'int3'"):
        base_settings(LoraConfig(frozen="int3"))
    monkeypatch.setattr(lora.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        base_settings(LoraConfig(frozen="nf4"))
    monkeypatch.setattr(lora.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs a CUDA GPU"):
        base_settings(LoraConfig(frozen="nf4"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="bitsandbytes trains on GPUs only")
def test_a_four_bit_base(tmp_path):
    """QLoRA: off is the quantised model itself, training changes the adapters alone, merging is refused."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM
    wide = dict(hidden_size=64, intermediate_size=64, num_attention_heads=1)
    tiny(**wide).save_pretrained(tmp_path)
    base, model = (AutoModelForCausalLM.from_pretrained(tmp_path, **base_settings(LoraConfig(frozen="nf4"))).eval() for _ in range(2))
    add_adapters(model, settings(), seed=0)
    assert torch.equal(logits(model), logits(base)) and len(adapters(model)) == 14
    train(model)
    assert (logits(model) - logits(base)).abs().max() > 1e-2
    with adapters_off(model):
        assert torch.equal(logits(model), logits(base))
    with pytest.raises(UserError, match="quantised"):
        merge(model)
