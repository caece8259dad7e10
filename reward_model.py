"""A GPT that scores instead of writing: one number per reply, read at the reply's last token, which has seen prompt and reply.

As a Hugging Face folder it is a GPT2ForSequenceClassification with one label.
"""
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from batching import Batch
from model import GPT, load_model, save_model, tree_mask
from runtime.errors import UserError


class RewardModel(nn.Module):
    """The body of a language model with a linear head of one output."""

    def __init__(self, gpt: GPT):
        super().__init__()
        self.gpt, self.config = gpt, gpt.config
        self.score = nn.Linear(gpt.config.n_embd, 1, bias=False)  # a bias would cancel in every comparison
        nn.init.zeros_(self.score.weight)  # all rewards equal at the start: the first loss is exactly ln 2

    @property
    def device(self) -> torch.device:
        return self.gpt.device

    def n_params(self, embeddings: bool = True) -> int:
        """Parameters of the body and the head."""
        return self.gpt.n_params(embeddings) + self.score.weight.numel()

    def forward(self, ids: Tensor, positions: Tensor, segments: Tensor, last: Tensor) -> Tensor:
        """Rewards [S] float32 of the S sequences that end at the flat indices `last`; ids, positions, segments [B, T] as in model.GPT."""
        x = self.gpt.hidden(ids, positions, tree_mask(segments), keep=last)  # [S, C]
        with torch.autocast(x.device.type, enabled=False):
            return self.score(x.float()).squeeze(1)

    def score_batch(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(chosen [P], rejected [P]) rewards of a batch of pairs."""
        rewards = self(batch.ids, batch.positions, batch.segments, batch.last)
        return rewards[0::2], rewards[1::2]


def save_reward_model(model: RewardModel, folder: Path, eot_id: int) -> None:
    """config.json and model.safetensors as AutoModelForSequenceClassification reads them.

    No pad token is named: Hugging Face would look for the reply's end in front of padding, and here end-of-text, which is
    both, is the very token that is read. So over there score one sequence at a time.
    """
    save_model(model.gpt, folder, eot_id)
    save_file(load_file(folder / "model.safetensors") | {"score.weight": model.score.weight.detach().float().cpu().contiguous()},
              folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["GPT2ForSequenceClassification"], "id2label": {"0": "reward"}, "label2id": {"reward": 0}, "pad_token_id": None}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").unlink()


def load_reward_model(folder: Path | str, dropout: float = 0.0) -> RewardModel:
    """A reward model saved by train_reward.py. UserError when the folder holds something else."""
    model = RewardModel(load_model(folder, dropout=dropout))
    weights = load_file(Path(folder) / "model.safetensors")
    if "score.weight" not in weights or weights["score.weight"].shape != model.score.weight.shape:
        raise UserError(f"{folder} holds no reward model (no score.weight of width {model.config.n_embd}): train one with `python train_reward.py CONFIG`.")
    model.score.load_state_dict({"weight": weights["score.weight"]})
    return model
