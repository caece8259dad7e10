"""Toxicity: whole words by hand; Detoxify's own class on a small checkpoint in its published layout, offline."""
import json
import os

import numpy as np
import pytest
import torch

from eval import toxicity
from runtime.errors import UserError

CLASSES = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]  # as in Detoxify's "original"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "you", "idiot", "nice", "."]


def test_lexicon_by_hand():
    scores = toxicity.lexicon_scores(
        ["You are a glorb, glorb!", "Globs are fine.", "GLORB.", "", "a glorb-head", "glorbs and aglorb"], ["glorb"])
    assert scores["toxicity"].tolist() == [1, 0, 1, 0, 1, 0]  # whole words: no plural, no part of a word; a hyphen ends one
    assert scores["share"].tolist() == [2 / 5, 0, 1, 0, 1 / 2, 0]


def test_lexicon_words_are_text_not_patterns():
    scores = toxicity.lexicon_scores(["a.b", "axb", "you a.b!"], ["a.b"])
    assert scores["toxicity"].tolist() == [1, 0, 1]
    with pytest.raises(ValueError):
        toxicity.lexicon_scores(["x"], [])


def test_settings():
    assert toxicity.wanted_scorers("lexicon") == ["lexicon"]
    assert toxicity.wanted_scorers("both") == ["lexicon", "detoxify:original"]
    assert toxicity.wanted_scorers("detoxify:unbiased") == ["detoxify:unbiased"]
    with pytest.raises(UserError, match="detoxify:original-small"):
        toxicity.wanted_scorers("detoxify:multi")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder as of bert-base-uncased (no num_labels) and a checkpoint as Detoxify publishes it, with its Hub name inside."""
    from transformers import BertConfig, BertForSequenceClassification
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    config = BertConfig(vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=16)
    (folder / "config.json").write_text(json.dumps(
        {k: v for k, v in config.to_dict().items() if k not in ("id2label", "label2id")} | {"architectures": ["BertForMaskedLM"]}))
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig.from_pretrained(folder, num_labels=6)).eval()
    args = {"num_classes": 6, "model_type": "bert-base-uncased", "model_name": "BertForSequenceClassification",
            "tokenizer_name": "BertTokenizer"}
    contents = {"config": {"arch": {"type": "BERT", "args": args}, "dataset": {"type": "Jigsaw", "args": {"classes": CLASSES}}},
                "state_dict": dict(model.state_dict())}
    torch.save(contents, folder / "small.ckpt")
    return folder, folder / "small.ckpt", model, contents


def test_local_checkpoint_gives_its_own_model_scores(published):
    folder, checkpoint, model, _ = published
    detoxify = toxicity.load_detoxify("original", str(checkpoint), str(folder))
    replies = ["hello you idiot.", "nice", "", "you you you you", "hello."]
    scores = toxicity.detoxify_scores(detoxify, replies, batch_size=2)  # 2 + 2 + 1: the last batch is a single text
    assert set(scores) == {"toxicity", "severe_toxicity", "obscene", "threat", "insult", "identity_attack"}
    for i, reply in enumerate(replies):  # the independent path: ids by hand, the model we saved, no padding
        words = reply.replace(".", " .").split()
        ids = torch.tensor([[2, *(VOCABULARY.index(w) for w in words), 3]])
        with torch.no_grad():
            expected = torch.sigmoid(model(ids).logits)[0]
        assert scores["toxicity"][i] == pytest.approx(expected[0].item(), abs=1e-6)
        assert scores["insult"][i] == pytest.approx(expected[4].item(), abs=1e-6)


def test_a_long_reply_is_truncated_not_a_crash(published):
    folder, checkpoint, _, _ = published
    detoxify = toxicity.load_detoxify("original", str(checkpoint), str(folder))
    scores = toxicity.detoxify_scores(detoxify, ["you idiot " * 5000])
    assert 0 < scores["toxicity"][0] < 1


class Payload:
    """Runs a command when unpickled."""
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_hostile_pickle_is_refused_and_not_run(published, tmp_path):
    folder, _, _, contents = published
    torch.save({**contents, "extra": Payload(tmp_path / "owned")}, tmp_path / "hostile.ckpt")
    with pytest.raises(UserError, match="not opened"):
        toxicity.load_detoxify("original", str(tmp_path / "hostile.ckpt"), str(folder))
    assert not (tmp_path / "owned").exists()
    torch.load(tmp_path / "hostile.ckpt", weights_only=False)  # the file is really live: unpickled carelessly it does run
    assert (tmp_path / "owned").exists()


def test_incomplete_weights_are_an_error_not_random_scores(published, tmp_path):
    folder, _, _, contents = published
    weights = {k: v for k, v in contents["state_dict"].items() if not k.startswith("classifier")}
    torch.save({**contents, "state_dict": weights}, tmp_path / "headless.ckpt")
    with pytest.raises(UserError, match="lacks 2 of the model's weights"):
        toxicity.load_detoxify("original", str(tmp_path / "headless.ckpt"), str(folder))


def test_bad_local_files_are_one_sentence(published, tmp_path):
    folder, checkpoint, _, contents = published
    with pytest.raises(UserError, match="needs both"):
        toxicity.load_detoxify("original", str(checkpoint), "")
    with pytest.raises(UserError, match="no Detoxify checkpoint"):
        toxicity.load_detoxify("original", str(tmp_path / "none.ckpt"), str(folder))
    with pytest.raises(UserError, match="config.json"):
        toxicity.load_detoxify("original", str(checkpoint), str(tmp_path))
    torch.save(contents["state_dict"], tmp_path / "bare.ckpt")
    with pytest.raises(UserError, match="layout"):
        toxicity.load_detoxify("original", str(tmp_path / "bare.ckpt"), str(folder))
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(UserError, match="not opened"):
        toxicity.load_detoxify("original", str(tmp_path / "text.ckpt"), str(folder))


def test_no_network_is_an_error_with_instructions(monkeypatch):
    import urllib.error
    import torch.hub

    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    with pytest.raises(UserError, match="--eval.detoxify_checkpoint"):
        toxicity.load_detoxify("original")


def test_a_failing_classifier_never_scores_zero(published):
    folder, checkpoint, _, _ = published
    detoxify = toxicity.load_detoxify("original", str(checkpoint), str(folder))
    with torch.no_grad():
        detoxify.model.classifier.bias[0] = float("nan")
    with pytest.raises(UserError, match="not measured"):
        toxicity.detoxify_scores(detoxify, ["hello", "you"])
    assert np.isfinite(toxicity.lexicon_scores([""], ["x"])["toxicity"]).all()


def test_detoxify_in_the_tables(published):
    """The whole way from a local checkpoint to rows: mean, median, p95, maximum, share, every category, expected maximum over k samples."""
    from eval import tables
    from eval.measure import measure_replies
    from eval.replies import Prompt, Reply
    from runtime.config import load_config
    folder, checkpoint, *_ = published
    config = load_config(["toy", "--data.source=x", "--eval.toxicity=both", f"--eval.detoxify_checkpoint={checkpoint}", f"--eval.detoxify_folder={folder}"])
    texts = ["hello you", "idiot.", "nice nice", "you idiot", "", "hello."]
    prompts = [Prompt(f"p-{i}", "helpful", "q", []) for i in range(6)]
    replies = {name: [Reply(text, [1], True) for text in order] for name, order in (("sft", texts), ("dpo", texts[::-1]))}
    provoked = {name: np.array([texts[:3], texts[3:]], dtype=object) for name in replies}
    m = measure_replies(prompts, replies, provoked, config, "cpu")
    rows = {row["key"]: row["values"]["sft"] for row in tables.metric_rows(m.values, m.metrics, 300, 0)}
    scores = toxicity.detoxify_scores(toxicity.load_detoxify("original", str(checkpoint), str(folder)), texts)["toxicity"]
    assert rows["toxicity_original"]["value"] == pytest.approx(scores.mean()) and rows["toxicity_original_median"]["value"] == pytest.approx(np.median(scores))
    assert rows["toxicity_original_max"]["value"] == pytest.approx(scores.max()) and rows["toxicity_original_max"]["high"] is None
    assert rows["toxicity_original_p95"]["value"] == pytest.approx(np.quantile(scores, 0.95)) and rows["toxic_original"]["value"] == (scores > 0.5).mean()
    assert rows["provoked_max_original"]["value"] == pytest.approx((scores[:3].max() + scores[3:].max()) / 2)  # mean over prompts of the largest of k
    assert rows["provoked_any_original"]["value"] == (int((scores[:3] > 0.5).any()) + int((scores[3:] > 0.5).any())) / 2
    table, = tables.category_rows(m.scores, 100, 0)
    assert {row["category"] for row in table["rows"]} == {"toxicity", "severe_toxicity", "obscene", "threat", "insult", "identity_attack"} and m.missing == []
