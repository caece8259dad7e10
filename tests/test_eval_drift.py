"""KL of the policy from its reference: exact where it can be, the same in the mean as the plain estimate, and less noisy."""
import itertools

import numpy as np
import pytest
import torch

from eval.drift import reply_kl
from eval.replies import Prompt, Reply
from model import GPT, GPTConfig
from runtime.config import load_config
from runtime.device import setup_device

VOCAB, END = 3, 2  # tokens 0, 1 and end-of-text


class Tok:
    vocab_size, eot_id = VOCAB, END


def models():
    torch.manual_seed(0)
    policy, reference = (GPT(GPTConfig(VOCAB, 8, 1, 1, 8)).eval() for _ in range(2))
    with torch.no_grad():
        for p in [*policy.parameters(), *reference.parameters()]:
            p.mul_(4)  # not uniform, and not alike
    return policy, reference


@torch.no_grad()
def log_prob(model, prompt, reply):
    ids = torch.tensor([[*prompt, *reply]])
    t = ids.shape[1]
    logits = model.logits(model.hidden(ids, torch.arange(t)[None], torch.ones(t, t, dtype=torch.bool).tril()[None, None]))[0]
    logps = logits.log_softmax(1)
    return sum(logps[len(prompt) - 1 + i, token].item() for i, token in enumerate(reply))


def every_reply(limit):
    """(ids, ended) of every possible reply of at most `limit` tokens."""
    for n in range(limit):
        yield from ((list(ids), True) for ids in itertools.product((0, 1), repeat=n))
    yield from ((list(ids), False) for ids in itertools.product((0, 1), repeat=limit))


def test_the_mean_over_all_replies_is_the_kl_by_enumeration():
    policy, reference = models()
    device = setup_device(load_config(["toy", "--device=cpu"]), training=False)
    prompt, limit = [END, 0, 1], 3
    replies = list(every_reply(limit))
    whole = [ids + [END] * ended for ids, ended in replies]
    logp = np.array([log_prob(policy, prompt, ids) for ids in whole])
    logq = np.array([log_prob(reference, prompt, ids) for ids in whole])
    assert np.exp(logp).sum() == pytest.approx(1, abs=1e-5)  # nothing is missing from the enumeration
    kl = (np.exp(logp) * (logp - logq)).sum()
    stepwise, sampled = reply_kl(policy, reference, [Prompt("p-0", "all", "", prompt)] * len(replies), [Reply("", ids, ended) for ids, ended in replies],
                                 Tok(), 64, device)
    assert sampled == pytest.approx(logp - logq, abs=1e-4)
    # both are unbiased: weighted by the policy's probabilities they give the KL itself; and the stepwise one varies less
    p = np.exp(logp)
    assert (p * sampled).sum() == pytest.approx(kl, rel=1e-4) and (p * stepwise).sum() == pytest.approx(kl, rel=1e-4)
    assert (p * (stepwise - kl) ** 2).sum() < 0.7 * (p * (sampled - kl) ** 2).sum()
    assert (stepwise >= -1e-6).all() and (sampled < 0).any()


def test_equal_models_have_drifted_nowhere():
    policy, _ = models()
    device = setup_device(load_config(["toy", "--device=cpu"]), training=False)
    policy.train()
    stepwise, sampled = reply_kl(policy, policy, [Prompt("p-0", "all", "", [END, 1])] * 2, [Reply("", [0, 1], True), Reply("", [], True)], Tok(), 64, device)
    assert np.abs(stepwise).max() < 1e-6 and np.abs(sampled).max() < 1e-6
    assert policy.training  # as it was


def test_a_prompt_alone_cannot_be_scored():
    policy, _ = models()
    device = setup_device(load_config(["toy", "--device=cpu"]), training=False)
    with pytest.raises(ValueError, match="nothing would be scored"):
        reply_kl(policy, policy, [Prompt("p-0", "all", "", [END])], [Reply("", [], False)], Tok(), 64, device)
