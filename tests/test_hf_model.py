"""Hugging Face models behind our door, on tiny random ones of several families: every log-prob against the model's own logits."""
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, Gemma3TextConfig, GemmaConfig, GPT2Config, GraniteConfig, LlamaConfig, MistralConfig, PhiConfig, Qwen2Config, Qwen3Config

from batching import make_batch
from data.store import PairStore, StoreWriter
from hf_model import CausalLM, check_rows, load_causal_lm
from runtime.errors import UserError

SMALL = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
             bos_token_id=0, eos_token_id=1, pad_token_id=2)
FAMILIES = {
    "llama": LlamaConfig(**SMALL), "qwen2": Qwen2Config(**SMALL), "qwen3": Qwen3Config(**SMALL, head_dim=8), "mistral": MistralConfig(**SMALL, sliding_window=8),
    "gemma": GemmaConfig(**SMALL, head_dim=8), "gemma2": Gemma2Config(**SMALL, head_dim=8, sliding_window=8, final_logit_softcapping=3.0, query_pre_attn_scalar=8),
    "gemma3": Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=8, query_pre_attn_scalar=8, layer_types=["sliding_attention", "full_attention"]),
    "gpt2": GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=1),
    "cohere": CohereConfig(**SMALL, logit_scale=0.3), "granite": GraniteConfig(**SMALL, logits_scaling=4.0),
    "phi": PhiConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}),  # its head has a bias
}


def random_lm(config, attention: str = "sdpa"):
    torch.manual_seed(0)
    if config.model_type == "gemma2":  # its attention scores are capped too, which SDPA cannot do
        attention = "eager"
    lm = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    for p in lm.parameters():  # larger than the usual initial weights: attention must matter
        torch.nn.init.normal_(p, std=0.3)
    return lm.eval()


@pytest.fixture
def store(tmp_path) -> PairStore:
    rng = np.random.default_rng(0)
    with StoreWriter(tmp_path / "s", 97) as writer:
        for prompt, chosen, rejected in ((12, 9, 4), (5, 3, 11), (30, 20, 25), (3, 1, 2)):
            writer.add([0, *rng.integers(3, 97, prompt)], [0] * (prompt + 1), rng.integers(3, 97, chosen), rng.integers(3, 97, rejected))
        writer.close({})
    return PairStore(tmp_path / "s")


def own(model: CausalLM, store: PairStore, pairs: list[int]) -> torch.Tensor:
    """Every scored token's log-prob in the order of a batch, each reply in a forward pass of its own."""
    return torch.cat([model.own_logps(prompt.tolist(), reply.tolist()) for i in pairs for prompt, _, *replies in [store.row(i)] for reply in replies])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_rows_give_the_models_own_log_probs(family, attention, store):
    """Several documents in one row, replies longer than the sliding windows, heads with bias, scale and soft cap."""
    model = CausalLM(random_lm(FAMILIES[family], attention), 128)
    for rows in ([[2]], [[0, 1], [3]], [[2, 0], [1, 3]]):
        batch = make_batch(store, rows)
        with torch.no_grad():
            found = model(*batch.inputs())
        assert found.dtype == torch.float32 and (found - own(model, store, batch.pairs)).abs().max() < 2e-4
    prompt, _, chosen, rejected = store.row(2)
    batch = make_batch(store, [[2]])
    with torch.no_grad():
        logps = model(*batch.inputs()).split([len(chosen), len(rejected)])
    assert check_rows(model, prompt.tolist(), chosen.tolist(), rejected.tolist(), logps) == ""


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
def test_gradients_are_those_of_plain_forward_passes(family, store):
    model = CausalLM(random_lm(FAMILIES[family]), 128)
    batch = make_batch(store, [[0, 1], [2]])
    weights = torch.linspace(-1, 1, len(batch.targets))
    (model(*batch.inputs()) * weights).sum().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    at = 0
    for i in batch.pairs:
        prompt, _, *replies = store.row(i)
        for reply in replies:
            ids = torch.tensor([[*prompt, *reply]])
            logps = model.lm(input_ids=ids).logits[0, len(prompt) - 1:-1].float().log_softmax(1).gather(1, ids[0, len(prompt):, None]).squeeze(1)
            (logps * weights[at:at + len(reply)]).sum().backward()
            at += len(reply)
    for name, p in model.named_parameters():
        assert (ours[name] - p.grad).norm() <= 1e-4 * p.grad.norm() + 1e-6, name


def test_a_mask_without_the_window_is_caught(store):
    """The trap: a custom mask replaces the model's own, and its sliding window silently with it. Only rows longer than the window show it."""
    model = CausalLM(random_lm(FAMILIES["mistral"]), 128)
    model.window = None
    prompt, _, chosen, rejected = store.row(2)
    batch = make_batch(store, [[2]])
    with torch.no_grad():
        logps = model(*batch.inputs()).split([len(chosen), len(rejected)])
    assert "differ from the model's own by up to" in check_rows(model, prompt.tolist(), chosen.tolist(), rejected.tolist(), logps)


def test_a_boolean_mask_under_eager_attention_is_caught(store):
    model = CausalLM(random_lm(FAMILIES["llama"], "eager"), 128)
    model.eager = False
    prompt, _, chosen, rejected = store.row(2)
    batch = make_batch(store, [[2]])
    with torch.no_grad():
        logps = model(*batch.inputs()).split([len(chosen), len(rejected)])
    assert check_rows(model, prompt.tolist(), chosen.tolist(), rejected.tolist(), logps)


def test_separate_rows_give_the_same(store):
    """The fall-back for models that take no mask of ours: one sequence per row, padded on the right."""
    model = CausalLM(random_lm(FAMILIES["gemma3"]), 128)
    model.prefix_shared = False
    batch = make_batch(store, [[0], [1], [2], [3]], separate=True)
    assert batch.ids.shape[0] == 8
    with torch.no_grad():
        found = model(*batch.inputs())
    assert (found - own(model, store, batch.pairs)).abs().max() < 2e-4


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_greedy_replies_are_generates_and_sampled_ones_do_not_depend_on_company(family):
    model = CausalLM(random_lm(FAMILIES[family]), 64).eval()
    rng = np.random.default_rng(1)
    prompts = [[0, *rng.integers(3, 97, n).tolist()] for n in (3, 9, 5, 9)]
    settings = dict(max_new_tokens=12, eot_id=1, top_k=0, top_p=1.0, seed=3, sample_index=0, stop=b"", token_bytes=None, show="")
    greedy = model.generate(prompts, temperature=0.0, batch_size=4, **settings)
    for prompt, reply in zip(prompts, greedy):
        theirs = model.lm.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=1, pad_token_id=2)[0, len(prompt):].tolist()
        assert reply == theirs[:theirs.index(1)] if 1 in theirs else reply == theirs
    together = model.generate(prompts, temperature=1.0, batch_size=4, **settings)
    assert together == [model.generate([prompt], temperature=1.0, batch_size=1, **settings)[0] for prompt in prompts]
    assert together != greedy


def test_loading_and_its_refusals(tmp_path):
    random_lm(FAMILIES["llama"]).save_pretrained(tmp_path / "m")
    model = load_causal_lm(tmp_path / "m", 64, dtype=torch.bfloat16)
    assert next(model.parameters()).dtype == torch.bfloat16 and model.config.vocab_size == 97 and not model.eager
    with pytest.raises(UserError, match="more than the 128 positions"):
        load_causal_lm(tmp_path / "m", 129)
    with pytest.raises(UserError, match="cannot be read"):
        load_causal_lm(tmp_path / "nothing", 64)


def test_dropout_is_off_even_in_training_mode(tmp_path, store):
    random_lm(FAMILIES["gpt2"]).save_pretrained(tmp_path / "gpt2")  # whose config asks for a tenth
    model, batch = load_causal_lm(tmp_path / "gpt2", 64), make_batch(store, [[0, 1]])
    with torch.no_grad():
        assert torch.equal(model.train()(*batch.inputs()), model.eval()(*batch.inputs()))
