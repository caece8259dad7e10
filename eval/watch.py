"""What the policy writes while it is being trained: a few validation prompts answered at every validation of train_dpo.py.

Reward accuracy is measured on other people's replies. A policy can rank those ever better while its own replies fall apart,
and only its own replies show it. `eval/health.py` reads these columns of metrics.jsonl.
"""
import numpy as np

from data.store import PairStore
from eval import quality
from eval.drift import reply_kl
from eval.oracle import describe_prompt, judge_reply
from eval.questions import from_store
from eval.replies import Prompt, answer
from model import GPT
from runtime.config import Config
from runtime.device import Device
from tokenizer import Tokenizer


def watched_prompts(val: PairStore, tok: Tokenizer, config: Config) -> list[Prompt]:
    """About `dpo.watch_prompts` validation prompts, as many of every kind; none when the setting is 0."""
    n = config.dpo.watch_prompts
    if not n:
        return []
    room = max(16, config.model.block_size - config.eval.max_new_tokens)
    prompts, _ = from_store(config, val, tok, room, n)
    kinds = dict.fromkeys(prompt.kind for prompt in prompts)
    return [prompt for kind in kinds for prompt in [p for p in prompts if p.kind == kind][:-(-n // len(kinds))]]


def what_it_writes(policy: GPT, reference: GPT, tok: Tokenizer, prompts: list[Prompt], config: Config, device: Device) -> dict[str, float]:
    """Means over one reply per prompt, drawn from the policy's own distribution (temperature 1, nothing cut off); NaN = not measured.

    KL in nats per reply. Well-formed replies and correct answers to helpful prompts need an exact judge: toy only.
    """
    replies = answer(policy, tok, prompts, 1.0, config, device, plain=True, max_new_tokens=min(config.eval.max_new_tokens, config.model.block_size // 2))
    texts = [reply.text for reply in replies]
    repeated = quality.repetition(texts, 3)
    row = {"replies__words": quality.word_counts(texts).mean(), "replies__ended": np.mean([reply.ended for reply in replies]),
           "replies__repetition": np.nanmean(repeated) if np.isfinite(repeated).any() else np.nan,
           "replies__kl": reply_kl(policy, reference, prompts, replies, tok, config.dpo.micro_tokens, device)[0].mean(),
           "replies__well_formed": np.nan, "replies__helpful_correct": np.nan}
    if config.data.source == "toy":
        verdicts = [judge_reply(describe_prompt(prompt.text), text) for prompt, text in zip(prompts, texts)]
        row["replies__well_formed"] = np.mean([v.well_formed for v in verdicts])
        helpful = [v.correct for v, prompt in zip(verdicts, prompts) if prompt.kind == "helpful"]
        row["replies__helpful_correct"] = np.mean(helpful) if helpful else np.nan
    return {key: float(value) for key, value in row.items()}
