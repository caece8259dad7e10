"""How far the policy has moved from its reference: KL(policy || reference), in nats per reply, on the policy's own replies.

The obvious estimate, log p(reply) - log q(reply) of sampled replies, is unbiased but noisy, and single values are often
negative. But a KL over sequences is an expected sum of KLs over next tokens, and those can be computed exactly from the two
models' distributions at every position that was visited: the same expectation with the luck of each token's draw averaged
out (Rao-Blackwell; Amini et al. 2025, "Better estimation of the KL divergence between language models"). Usually far less noisy,
though not always: the report gives both.
"""
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from batching import Batch, make_batch, micro_batches, row_lengths
from eval.replies import Prompt, Reply, as_store
from head import LOGITS_AT_ONCE
from model import GPT, tree_mask
from runtime.device import Device
from tokenizer import Tokenizer


def _scored(model: GPT, batch: Batch) -> Tensor:
    """Hidden states [N, C] from which the N scored tokens are predicted."""
    return model.hidden(batch.ids, batch.positions, tree_mask(batch.segments), keep=batch.predict_at)


def token_kl(policy: GPT, reference: GPT, batch: Batch) -> tuple[Tensor, Tensor]:
    """([N] KL between the two next-token distributions, [N] log p - log q of the token that was drawn), nats, float32."""
    p_hidden, q_hidden = _scored(policy, batch), _scored(reference, batch)
    exact, drawn = [], []
    chunk = max(1, LOGITS_AT_ONCE // (2 * policy.config.vocab_size))
    for p_part, q_part, targets in zip(p_hidden.split(chunk), q_hidden.split(chunk), batch.targets.split(chunk)):
        log_p, log_q = policy.logits(p_part).log_softmax(1), reference.logits(q_part).log_softmax(1)  # [n, V]
        exact.append((log_p.exp() * (log_p - log_q)).sum(1))
        drawn.append((log_p - log_q).gather(1, targets[:, None]).squeeze(1))
    return torch.cat(exact), torch.cat(drawn)


@torch.no_grad()
def reply_kl(policy: GPT, reference: GPT, prompts: Sequence[Prompt], replies: Sequence[Reply], tok: Tokenizer, micro_tokens: int,
             device: Device) -> tuple[np.ndarray, np.ndarray]:
    """(stepwise [n], sampled [n]): two unbiased estimates per reply; take the mean of the first, the second is the usual one.

    The replies must be drawn from the policy at temperature 1 with nothing cut off. A reply that was stopped before
    end-of-text counts up to there.
    """
    rows = [(prompt.ids, reply.ids + [tok.eot_id] * reply.ended) for prompt, reply in zip(prompts, replies, strict=True)]
    training = policy.training
    policy.eval(), reference.eval()
    stepwise, sampled = np.zeros(len(rows)), np.zeros(len(rows))
    with as_store(rows, tok.vocab_size) as store:
        lengths = row_lengths(store, 1)
        for micro in micro_batches(np.arange(len(rows)), lengths, micro_tokens):
            batch = make_batch(store, micro, branches=1).to(policy.device)
            with device.autocast():
                exact, drawn = token_kl(policy, reference, batch)
            for out, values in ((stepwise, exact), (sampled, drawn)):
                sums = torch.zeros(len(batch.pairs), device=values.device).index_add(0, batch.owner // 2, values)
                out[batch.pairs] = sums.cpu().numpy()
    policy.train(training)
    return stepwise, sampled
