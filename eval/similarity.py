"""How alike do two answers look to an encoder? Cosine of sentence embeddings, and BERTScore.

Neither says whether an answer is right: "yes" and "no" are near neighbours, and a sentence around the gold answer is further from it than
another short answer. They are kept because published figures rest on them.
"""
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from model import find_folder
from runtime.errors import UserError


class Encoder:
    """A transformers encoder in a folder (or on the Hub): hidden states of texts, float32."""

    def __init__(self, name: str, batch: int = 64):
        from transformers import AutoModel, AutoTokenizer
        folder = find_folder(name)
        try:
            self.model, self.tok = AutoModel.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as e:
            raise UserError(f"the encoder in {folder} cannot be read: {str(e).splitlines()[0]}") from None
        self.folder, self.batch = folder, batch
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        # of RoBERTa's and MPNet's positions two cannot be used
        self.longest = min(self.tok.model_max_length, getattr(self.model.config, "max_position_embeddings", 512) - 2)

    @torch.no_grad()
    def states(self, texts: Sequence[str], layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """(hidden states [n, T, C] of `layer`, mask [n, T] of all tokens, mask [n, T] of tokens that are no [CLS], [SEP] or padding), on the CPU."""
        inputs = self.tok(list(texts), truncation=True, max_length=self.longest, padding=True, return_tensors="pt", return_special_tokens_mask=True)
        special = inputs.pop("special_tokens_mask").bool()
        out = self.model(**inputs.to(self.model.device), output_hidden_states=True).hidden_states
        if not -len(out) <= layer < len(out):
            raise UserError(f"the encoder in {self.folder} has the layers 0 .. {len(out) - 1}, and none with number {layer}.")
        mask = inputs["attention_mask"].bool().cpu()
        return out[layer].float().cpu(), mask, mask & ~special


def embed(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """Unit vectors [n, C] as sentence-transformers makes them: the mean of the last layer's tokens, or its first token, as 1_Pooling/config.json
    says (mean where there is none: Reimers & Gurevych 2019, §3). UserError for another pooling or a further layer."""
    pooling, modules = encoder.folder / "1_Pooling" / "config.json", encoder.folder / "modules.json"
    told = json.loads(pooling.read_text()) if pooling.exists() else {"pooling_mode_mean_tokens": True}
    ways = [way for way, used in told.items() if way.startswith("pooling_mode_") and used]
    types = [module["type"].rpartition(".")[2] for module in json.loads(modules.read_text())] if modules.exists() else []
    if ways not in (["pooling_mode_mean_tokens"], ["pooling_mode_cls_token"]) or set(types) - {"Transformer", "Pooling", "Normalize"}:
        raise UserError(f"the sentence encoder in {encoder.folder} is more than mean or [CLS] pooling ({', '.join(ways + types)}): name another.")
    vectors = []
    for start in tqdm(range(0, len(texts), encoder.batch), desc="embedding", leave=False, disable=len(texts) < 500):
        states, mask, _ = encoder.states(texts[start:start + encoder.batch], -1)
        pooled = states[:, 0] if ways == ["pooling_mode_cls_token"] else (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        vectors.append(torch.nn.functional.normalize(pooled, dim=-1))
    return torch.cat(vectors).double().numpy()


def greedy_f1(a: Tensor, b: Tensor) -> float:
    """BERTScore F1 of two bags of token vectors [n, C], [m, C]: every token takes its best cosine on the other side (Zhang et al. 2020, eq. 1-3).

    NaN where a side has no token (published code writes 0.0 there, which reads as "entirely wrong"), and where precision or recall is not
    above 0: the harmonic mean of such two has no meaning and no bounds.
    """
    if not len(a) or not len(b):
        return float("nan")
    cosines = torch.nn.functional.normalize(a, dim=-1) @ torch.nn.functional.normalize(b, dim=-1).T
    precision, recall = cosines.amax(1).mean().item(), cosines.amax(0).mean().item()
    return 2 * precision * recall / (precision + recall) if min(precision, recall) > 0 else float("nan")


def bert_score(encoder: Encoder, answers: Sequence[str], golds: Sequence[str], layer: int = -1) -> np.ndarray:
    """BERTScore F1 [n] without idf weights, of words alone ([CLS] and [SEP] neither count nor are matched); NaN for an empty text."""
    found = []
    for start in tqdm(range(0, len(answers), encoder.batch), desc="BERTScore", leave=False, disable=len(answers) < 500):
        (a, _, in_a), (b, _, in_b) = (encoder.states(texts[start:start + encoder.batch], layer) for texts in (answers, golds))
        found += [greedy_f1(x[i], y[j]) for x, i, y, j in zip(a, in_a, b, in_b, strict=True)]
    return np.array(found)


def chance_level(encoder: Encoder, golds: Sequence[str], layer: int = -1, seed: int = 0) -> float:
    """Mean BERTScore F1 of gold answers with gold answers of other questions: what unrelated answers of this length get.

    (F - b) / (1 - b) with this b is the rescaled score (Zhang et al. 2020, §5, with b from random sentences; answers are shorter than
    those). ValueError with fewer than two golds.
    """
    if len(golds) < 2:
        raise ValueError("the chance level needs two questions")
    order = np.random.default_rng(seed).permutation(len(golds))
    return float(np.nanmean(bert_score(encoder, [golds[i] for i in order], [golds[i] for i in np.roll(order, 1)], layer)))
