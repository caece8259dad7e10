"""What the prompts of a batch have in common is computed once: the same scores as without, for any family, and nothing of it where that is not sure."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from eval import choices
from hf_model import CausalLM

SMALL = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256)
SHOTS = list(range(5, 85))


def reader_of(family: str, **settings):
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(settings or SMALL))).eval()
    for p in lm.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.2)
    return SimpleNamespace(model=CausalLM(lm, 256).eval(), device=SimpleNamespace(dtype=torch.float32))


def few_shot(questions: int = 6) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of five answers, of one to eight tokens, to each question behind SHOTS."""
    rng = np.random.default_rng(0)
    prompts = [SHOTS + rng.integers(5, 90, n % 5 + 2).tolist() for n in range(questions)]
    return [prompt for prompt in prompts for _ in range(5)], [rng.integers(5, 90, rng.integers(1, 9)).tolist() for _ in range(5 * questions)]


@pytest.fixture
def both_ways(monkeypatch):
    """score with shared beginnings and without, and how many tokens the model read in either."""
    def score(reader, prompts, answers, batch: int = 7):
        found, read = [], []
        hook = reader.model.lm.base_model.register_forward_pre_hook(lambda module, args, named: read.append(named["input_ids"].numel()), with_kwargs=True)
        for least in (choices.SHARED, 10**9):
            with monkeypatch.context() as m:
                m.setattr(choices, "SHARED", least)
                found.append((choices.score(reader, prompts, answers, batch), sum(read)))
            read.clear()
        hook.remove()
        return found
    return score


@pytest.mark.parametrize("family, settings", [
    ("llama", {}), ("gpt2", dict(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=256)), ("bloom", dict(vocab_size=97, hidden_size=32, n_layer=2, n_head=4))])
def test_a_shared_beginning_gives_the_same_scores_for_a_fraction_of_the_tokens(both_ways, family, settings):
    (shared, few), (plain, many) = both_ways(reader_of(family, **settings), *few_shot())
    assert np.abs(shared - plain).max() < 1e-5 and plain.std() > 1 and few < 0.5 * many


def test_a_window_that_forgets_shares_nothing(both_ways):
    (shared, _), (plain, _) = both_ways(reader_of("mistral", **SMALL, sliding_window=16), *few_shot())
    assert (shared == plain).all()


def test_a_model_that_ignores_its_cache_is_found_out(both_ways, monkeypatch):
    monkeypatch.setattr(choices.Behind, "hidden", CausalLM.hidden)  # as if the shared tokens had never been there
    (shared, _), (plain, _) = both_ways(reader_of("llama"), *few_shot())
    assert (shared == plain).all()


def test_what_is_shared():
    model = reader_of("llama").model
    shots = list(range(40))
    one = choices.behind(model, [[*shots, 50, 51], [*shots, 50, 52]], None)
    assert one.shared == [*shots, 50]
    assert choices.behind(model, [[*shots, 50, 53], [*shots, 50, 51, 54]], one) is one
    less = choices.behind(model, [[*shots, 60, 61], [*shots, 60, 62]], one)
    assert less.shared == shots and choices.behind(model, [[*shots, 70, 71]] * 2, less) is less  # what serves this batch and the last one
    assert choices.behind(model, [[*shots, *range(90)]] * 2, less).shared == [*shots, *range(89)]  # much more in common than before
    assert choices.behind(model, [shots, shots], None).shared == shots[:-1]  # the last token predicts the answer's first
    assert choices.behind(model, [[1, *shots], [1, *shots]], less).shared == [1, *shots[:-1]]  # another beginning
    assert choices.behind(model, [shots], None) is choices.behind(model, [shots, shots[::-1]], less) is None  # one row; nothing in common
    assert choices.beginning([[1, 2, 3], [1, 2], [1, 2, 4]]) == [1, 2] and choices.beginning([[1], []]) == []
