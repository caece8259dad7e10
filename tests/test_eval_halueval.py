"""HaluEval: answers of known worth, judges that are told the question, encoders by hand, and the whole command on tiny models built here."""
import argparse
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast,
                          RobertaConfig, RobertaForSequenceClassification)

from chat_tokenizer import load_chat_tokenizer
from eval import halueval, qa_report, similarity
from eval.choices import start_and_template
from eval.grounding import Entailment, LLMJudge, claim, entailment_column, overlap, support
from eval.qa_report import GROUPS, Item, Tools, known_answers, measure
from hf_model import load_causal_lm
from lora import adapters, add_adapters, save_adapters
from runtime.checkpoint import weights_hash
from runtime.config import LoraConfig
from runtime.errors import UserError

ROWS = [("What is the capital of Ruritania?", "The capital of Ruritania is Strelsau.", "Strelsau", "The capital of Ruritania is Zenda."),
        ("Who wrote the book?", "The book was written by Anthony Hope in 1894.", "Anthony Hope", "The book was written by Rudolf Rassendyll."),
        ("Is Zenda a castle?", "Zenda is a castle.", "yes", "No, Zenda is a village by the sea."),
        ("Are both men kings?", "Neither man is a king.", "no", "Yes, both men are kings of Ruritania."),
        ("When did it appear?", "It appeared on 5 May 1894.", "5 May 1894", "It appeared in April 1903."),
        ("How many copies were sold?", "Two hundred printed copies were sold.", "two hundred printed copies", "It sold over four thousand copies.")]
ITEMS = [Item(i, q, k, (r,), h) for i, (q, k, r, h) in enumerate(ROWS, 1)]
WORDS = sorted({word for row in ROWS for text in row for word in text.lower().replace("?", " ?").replace(".", " .").replace(",", " ,").split()}
               | set("the answer to question is : . \" you i have and".split()))


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Intervals are tested in test_eval_stats.py; here they only have to be there."""
    monkeypatch.setattr(qa_report, "RESAMPLES", 200)
    monkeypatch.setattr(qa_report, "AUC_RESAMPLES", 50)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "qa_data.json"
    path.write_text("".join(json.dumps(dict(zip(("question", "knowledge", "right_answer", "hallucinated_answer"), row))) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    """A random Llama of bytes whose tokenizer puts <s> before a text."""
    folder = tmp_path_factory.mktemp("lm")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(["<s>", "</s>", *letters])}, merges=[]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    template = ("{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
                "{% endif %}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}")
    PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="</s>", chat_template=template).save_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=258, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
                                         max_position_embeddings=512, bos_token_id=0, eos_token_id=1, pad_token_id=1))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    model.save_pretrained(folder)
    return folder


def bert(folder, kind, bag=False, **settings):
    """A random BERT over WORDS, without positions; as a `bag` of words its layer adds nothing to the word vectors."""
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)
    torch.manual_seed(1)
    model = kind(BertConfig(vocab_size=len(WORDS) + 5, hidden_size=32, num_attention_heads=2, intermediate_size=16, max_position_embeddings=64,
                            num_hidden_layers=1, **settings))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5)
    for name, p in model.named_parameters():
        if "position_embeddings" in name or "token_type_embeddings" in name or bag and "output.dense" in name:
            p.data.zero_()
        elif "LayerNorm" in name:  # as in trained encoders, all vectors share a direction, so that cosines are above 0
            p.data.fill_(1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def nli(tmp_path_factory):
    return bert(tmp_path_factory.mktemp("nli"), BertForSequenceClassification,
                id2label={0: "neutral", 1: "contradiction", 2: "Entailment"}, label2id={"neutral": 0, "contradiction": 1, "Entailment": 2})


@pytest.fixture(scope="module")
def bag_of_words(tmp_path_factory):
    return similarity.Encoder(str(bert(tmp_path_factory.mktemp("bow"), BertModel, bag=True)), batch=4)


# ---- answers of known worth ---------------------------------------------------------------------------------------------

def test_gold_answers_match_and_invented_ones_do_not():
    known = known_answers(ITEMS)
    gold, invented = (measure(ITEMS, known[system], Tools()) for system in ("gold", "hallucinated"))
    for key in ("exact_match", "f1", "alias_match", "contained"):
        assert gold[key].tolist() == [1] * 6
    assert invented["exact_match"].tolist() == invented["alias_match"].tolist() == [0] * 6


def test_verbosity_changes_exact_match_and_not_contained():
    known = known_answers(ITEMS)
    for system in ("sentence", "verbose"):
        found = measure(ITEMS, known[system], Tools())
        assert found["contained"].tolist() == [1] * 6 and found["exact_match"].sum() == 0
    assert all(item.question in text for item, text in zip(ITEMS, known["verbose"]))


def test_flip_is_there_for_yes_and_no_alone_and_is_wrong():
    known = known_answers(ITEMS)
    assert known["flip"] == [None, None, "no", "yes", None, None]
    found = measure(ITEMS, known["flip"], Tools())
    assert np.isnan(found["exact_match"]).tolist() == [True, True, False, False, True, True] and np.nansum(found["contained"]) == 0


def test_a_claim_is_entailed_from_one_half_on(nli, monkeypatch):
    monkeypatch.setattr(qa_report, "support", lambda judge, questions, knowledge, answers: np.array([0.5, 0.499, np.nan]))
    found = measure(ITEMS[:3], ["a", "b", "c"], Tools(entailment=Entailment(nli)))["entailed"]
    assert found[:2].tolist() == [1, 0] and np.isnan(found[2])


def test_an_empty_answer_is_an_answer_that_matches_nothing(nli, bag_of_words):
    found = measure(ITEMS[:1], [""], Tools(entailment=Entailment(nli), embeddings=bag_of_words, bertscore=bag_of_words))
    assert [found[key][0] for key in ("exact_match", "f1", "contained", "bleu", "rouge_l", "entailment", "entailed", "words")] == [0] * 8
    assert np.isnan([found[key][0] for key in ("similarity_hallucinated", "similarity_margin", "bertscore")]).all()  # undefined, not 0


# ---- what metrics are worth ---------------------------------------------------------------------------------------------

def test_defect_04_the_similarity_rule_calls_a_true_sentence_hallucinated(bag_of_words):
    item = Item(1, "What is the capital?", "", ("Strelsau",), "The answer is Zenda.")
    found = measure([item] * 2, ["The answer is Strelsau.", "Strelsau"], Tools(embeddings=bag_of_words))
    assert found["similarity_hallucinated"].tolist() == [1, 0] and found["contained"].tolist() == [1, 1]
    assert found["similarity_margin"][0] < 0 < found["similarity_margin"][1]
    equal = measure([Item(1, "Who?", "", ("Strelsau",), "Strelsau")], ["Zenda"], Tools(embeddings=bag_of_words))
    assert (equal["similarity_margin"], equal["similarity_hallucinated"]) == ([0], [0])  # nearer means nearer
    labelled = next(group for group, metrics in GROUPS.items() if any(m.key == "similarity_hallucinated" for m in metrics))
    assert "format-sensitive" in labelled.lower()


def test_defect_05_06_format_sensitive_scores_are_labelled_and_stand_beside_a_fixed_form():
    groups = {metric.key: group for group, metrics in GROUPS.items() for metric in metrics}
    for key in ("bleu_unsmoothed", "bleu", "bertscore", "bertscore_rescaled", "rouge_l", "similarity_hallucinated", "similarity_margin"):
        assert groups[key].startswith("Format-sensitive")
    for key in ("exact_match", "f1", "alias_match", "contained", "entailed", "llm_supported"):
        assert not groups[key].startswith("Format-sensitive")
    found = measure(ITEMS, known_answers(ITEMS)["gold"], Tools())
    assert found["bleu"].round(12).tolist() == [1] * 6 and found["bleu_unsmoothed"].tolist() == [0, 0, 0, 0, 0, 1]  # by length, not by truth


def test_bertscore_by_hand():
    a, b = torch.tensor([[2.0, 0], [0, 1]]), torch.tensor([[1.0, 0], [1, 1], [3, 4]])
    # best cosines: of a: 1 and .8; of b: 1, .7071 and .8
    p, r = (1 + 0.8) / 2, (1 + 0.5 ** 0.5 + 0.8) / 3
    assert similarity.greedy_f1(a, b) == pytest.approx(2 * p * r / (p + r), abs=1e-6)
    assert np.isnan(similarity.greedy_f1(a, b[:0])) and np.isnan(similarity.greedy_f1(a[:1], -b[:1]))


def test_defect_06_rescaled_bertscore_is_zero_at_chance_and_one_at_equality(bag_of_words):
    tools = Tools(bertscore=bag_of_words)
    golds = [item.golds[0] for item in ITEMS]
    found = measure(ITEMS, golds, tools)
    assert found["bertscore"] == pytest.approx(1, abs=1e-5) and found["bertscore_rescaled"] == pytest.approx(1, abs=1e-4)
    order = np.random.default_rng(0).permutation(6)
    mismatched = [similarity.bert_score(bag_of_words, [golds[i]], [golds[j]])[0] for i, j in zip(order, np.roll(order, 1))]
    assert tools.chance == pytest.approx(np.mean(mismatched)) and tools.chance < 0.9
    with pytest.raises(UserError, match="no"):
        similarity.bert_score(bag_of_words, ["a"], ["b"], layer=7)


def test_embeddings_are_the_mean_of_the_tokens_whatever_shares_the_batch(bag_of_words):
    texts = ["Strelsau", "the book was written by Anthony Hope in 1894 .", "the castle"]
    found = similarity.embed(bag_of_words, texts)
    for text, vector in zip(texts, found):
        ids = bag_of_words.tok(text, return_tensors="pt")
        alone = bag_of_words.model(**ids).last_hidden_state[0].mean(0)
        assert torch.nn.functional.normalize(alone, dim=0).detach().numpy() == pytest.approx(vector, abs=1e-5)


def test_auc_by_hand_and_beside_scikit_learn():
    # pairs (1, 0) right, (1, 2) wrong, (2, 0) right, (2, 2) a tie
    assert qa_report.auc(np.array([1.0, 2]), np.array([0.0, 2])).value == 2.5 / 4
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 40) + 1.0, rng.integers(0, 6, 40) * 1.0
    found = qa_report.auc(a, b)
    assert found.value == pytest.approx(roc_auc_score([1] * 40 + [0] * 40, [*a, *b])) and found.low < found.value < found.high
    assert qa_report.auc(np.array([1.0, np.nan]), np.array([0.0, 5])).value == 1
    with pytest.raises(ValueError, match="both answers"):
        qa_report.auc(np.array([np.nan]), np.array([1.0]))


def test_length_alone_separates_short_golds_and_not_flips():
    values = {system: measure(ITEMS, texts, Tools()) for system, texts in known_answers(ITEMS).items()}
    rows = {row["key"]: row["values"] for row in qa_report.separations(values, 0)}
    assert rows["words"]["gold"]["value"] == 1 and rows["words"]["verbose"]["value"] == 0 and rows["words"]["flip"]["value"] == 0.5
    assert rows["exact_match"]["flip"]["value"] == 1 and rows["exact_match"]["verbose"]["value"] == 0.5


def test_by_length_counts_every_answer_once():
    words = measure(ITEMS, ["one", "a b c", "a b c d", " ".join("x" * 10), " ".join("x" * 11), ""], Tools())
    row = next(row for row in qa_report.by_length(words, 0) if row["key"] == "exact_match")
    assert {name: cell["n"] for name, cell in row["values"].items()} == {"1-3 words": 2, "4-10 words": 2, "over 10 words": 1}


def test_compare_counts_wins_and_tests_shares_by_mcnemar():
    first, second = ({"exact_match": np.array(em), "f1": np.array(f), "words": np.array(w)} for em, f, w in (
        ([1.0, 0, 1, 0], [1, 0.2, 1, 0.5], [1.0, 1, 1, 1]), ([1.0, 1, 1, 1], [1, 0.4, 0.5, 1], [1.0, 1, 1, 9])))
    rows = {row["key"]: row for row in qa_report.compare(first, second, ("a", "b"), 0)["rows"]}
    assert (rows["exact_match"]["only_first"], rows["exact_match"]["only_second"], rows["exact_match"]["p"]) == (0, 2, 0.5)
    assert rows["f1"]["test"] == "sign flip" and (rows["f1"]["wins"], rows["f1"]["losses"]) == (2, 1)
    assert (rows["words"]["wins"], rows["words"]["losses"]) == (0, 1)  # longer is no win


# ---- judges -------------------------------------------------------------------------------------------------------------

def test_claim_keeps_the_question_and_the_meaning_of_a_bare_no():
    assert claim("Is it  big?\n", " no ") == 'The answer to the question "Is it big?" is: no.'
    assert claim("Who?", "Dr. No.") == 'The answer to the question "Who?" is: Dr. No.'
    with pytest.raises(ValueError, match="claims nothing"):
        claim("Who?", " ")


def test_the_entailment_column_is_found_by_name_and_its_probability_does_not_depend_on_the_batch(nli):
    judge = Entailment(nli, batch=2)
    assert judge.column == 2
    pairs = [(item.knowledge, claim(item.question, item.golds[0])) for item in ITEMS]
    found = judge.scores(*map(list, zip(*pairs)))
    for (premise, hypothesis), p in zip(pairs, found):
        logits = judge.model(**judge.tok(premise, hypothesis, return_tensors="pt")).logits[0]
        assert p == pytest.approx(torch.softmax(logits, 0)[2].item(), abs=1e-5)
    assert np.ptp(found) > 0.01


def test_a_checkpoint_without_an_entailment_class_is_refused(tmp_path):
    assert entailment_column({0: "not_entailment", 1: "entailment"}, tmp_path) == 1
    for labels in ({0: "LABEL_0", 1: "LABEL_1"}, {0: "not_entailment", 1: "neutral"}):
        with pytest.raises(UserError, match="not one that is called entailment"):
            entailment_column(labels, tmp_path)
    with pytest.raises(UserError, match="no checkpoint"):
        Entailment(tmp_path)


def test_truncation_takes_the_end_of_the_premise_and_never_the_claim(nli):
    judge, long = Entailment(nli), "castle " * 40
    room = judge.longest - 3 - 40  # three special tokens; the claim is the longer one, and still it is not cut
    found = judge.scores(["zenda " * room + "king " * 9, "zenda " * room, "zenda"], [long, long, "castle " * 100])
    assert found[0] == pytest.approx(found[1], abs=1e-6) and np.isnan(found[2])
    assert (judge.truncated, judge.unjudged) == (1, 1)
    bare = judge.scores(["zenda"] * 2, ["castle " * (judge.longest - 4), "castle " * (judge.longest - 3)])
    assert not np.isnan(bare[0]) and np.isnan(bare[1])  # without a word of the knowledge there is nothing to judge by


def test_two_of_roberta_s_positions_cannot_be_used(tmp_path):
    """They are numbered from the padding's id on: a judge that filled all 66 would stop at the first long premise."""
    bert(tmp_path, BertForSequenceClassification)
    torch.manual_seed(0)
    RobertaForSequenceClassification(RobertaConfig(
        vocab_size=len(WORDS) + 5, hidden_size=32, num_attention_heads=2, intermediate_size=16, num_hidden_layers=1, max_position_embeddings=66,
        pad_token_id=1, type_vocab_size=2, id2label={0: "entailment", 1: "neutral"}, label2id={"entailment": 0, "neutral": 1})).save_pretrained(tmp_path)
    judge = Entailment(tmp_path)
    assert judge.longest == 64 and 0 < judge.scores(["castle " * 100], ["zenda"])[0] < 1 and judge.truncated == 1
    assert similarity.Encoder(str(tmp_path)).states(["castle " * 100], -1)[0].shape[1] == 64


def test_defect_07_the_judge_is_told_the_question(nli):
    judge, asked = Entailment(nli), ["Is Zenda a castle?", "Are both men kings?"]
    same = judge.scores(["Zenda is a castle."] * 2, ["no"] * 2)  # the published way: the bare answer
    told = support(judge, asked, ["Zenda is a castle."] * 2, ["no"] * 2)
    assert same[0] == pytest.approx(same[1], abs=1e-6) and abs(told[0] - told[1]) > 1e-3


def test_code_in_a_checkpoint_runs_only_when_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own.py").write_text("""import torch
from transformers import PretrainedConfig, PreTrainedModel
class OwnConfig(PretrainedConfig):
    model_type = "own_judge"
class Own(PreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.w = torch.nn.Parameter(torch.zeros(1))
        self.post_init()
    def predict(self, pairs):
        return torch.tensor([0.9 if h.split()[-1].strip('.') in p else 0.2 for p, h in pairs])
""")
    (folder / "config.json").write_text(json.dumps({"model_type": "own_judge", "auto_map": {
        "AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.Own"}}))
    from safetensors.torch import save_file
    save_file({"w": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="trust-remote-code"):
        Entailment(folder)
    judge = Entailment(folder, trust_remote_code=True)
    assert support(judge, ["Where?"] * 2, ["in Strelsau"] * 2, ["Strelsau", "Zenda"]).round(4).tolist() == [0.9, 0.2]
    assert list(judge.facts["code"]) == ["own.py"]


def test_an_llm_judge_sees_the_question_and_what_is_no_verdict_stays_unjudged(tmp_path):
    pytest.importorskip("openai"), pytest.importorskip("fastapi"), pytest.importorskip("uvicorn")
    from judge_server import Server, verdict

    from eval.chat_client import ChatClient
    server = Server()
    try:
        def reply(messages):
            text = messages[1]["content"]
            return verdict("supported") if "\nStrelsau\n" in text else verdict("not enough") if "\nZenda\n" in text else "I believe so."
        server.reply = reply
        judge = LLMJudge(ChatClient("m", tmp_path, server.url, wait=0.02))
        found = support(judge, ["What is the capital?"] * 4, ["The capital is Strelsau."] * 4, ["Strelsau", "Zenda", "Who knows", ""])
    finally:
        server.stop()
    assert found[:2].tolist() == [1, 0] and np.isnan(found[2]) and found[3] == 0 and judge.unjudged == 1
    assert all("What is the capital?" in key and "The capital is Strelsau." in key for key in server.asked)


def test_overlap_is_a_baseline_of_words():
    assert overlap(["The capital is Strelsau."], ["Strelsau, the capital!"]).tolist() == [1]
    assert overlap(["x y", "x"], ["x z", ""]).tolist() == [0.5, 0]


# ---- the model's side ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("style", halueval.PROMPTS)
def test_prompts_hold_the_question_and_one_start_token(lm, style):
    tok = load_chat_tokenizer(lm)
    ids = halueval.prompt_ids(tok, style, ["Context: k\n\nQuestion: who <s>?"], start_and_template(lm, tok)[0], halueval.TERSE)[0]
    assert ids[0] == tok.bos_id and ids.count(tok.bos_id) == 1  # the typed one is text
    assert "Question: who <s>?" in tok.decode(ids) and (halueval.TERSE in tok.decode(ids)) == (style == "terse")
    yes, no = halueval.yes_and_no(tok, style)
    assert tok.decode(yes).strip() == "Yes" and tok.decode(no).strip() == "No" and tok.eot_id not in yes + no


def test_an_empty_answer_matches_nothing_even_where_the_gold_normalises_to_nothing():
    found = qa_report.measure([Item(0, "Which letter?", "k", ("A",), "B")], [""], qa_report.Tools())
    assert all(found[key][0] == 0 for key in ("exact_match", "f1", "alias_match", "contained"))


def test_a_long_knowledge_loses_its_end_and_the_question_nothing(lm):
    tok, known = load_chat_tokenizer(lm), ["short", "word " * 200]
    ids, shortened = halueval.fit(lambda texts: halueval.prompt_ids(tok, "plain", texts, [tok.bos_id]), lambda i, k: f"Context: {k}\n\nQuestion: who?", known, 120)
    assert shortened == [False, True] and len(ids[1]) <= 120 and len(ids[1]) > 120 - len(" word") - 1
    assert halueval.fit(lambda texts: [list(text.encode()) for text in texts], lambda i, k: k, ["a full room", "a full room!"], 11)[1] == [False, True]
    assert tok.decode(ids[1]).endswith("Question: who?\n\nAnswer:") and "Context: word word" in tok.decode(ids[1])
    assert halueval.fit(lambda texts: halueval.prompt_ids(tok, "plain", texts, [tok.bos_id]), lambda i, k: f"Context: {k}\n\nQuestion: who?", known, 30)[0] == [None, None]


def test_an_answer_ends_where_the_model_writes_on(lm):
    tok = load_chat_tokenizer(lm)
    assert halueval.cut(" Delhi\n\nQuestion: next?", tok, "plain") == halueval.cut("\n\nDelhi\nQuestion: next", tok, "plain") == "Delhi"
    assert halueval.cut("Delhi</s>junk", tok, "chat") == "Delhi" and halueval.cut("a\n\nb\n\nHuman: c", tok, "chat") == "a\n\nb"


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_discrimination_is_log_p_of_yes_minus_no(lm, style):
    model, tok = load_causal_lm(lm, 512, dtype=torch.float32), load_chat_tokenizer(lm)
    found, gap = halueval.discriminate(model, tok, ITEMS[:3], style, 0, [tok.bos_id])
    yes, no = halueval.yes_and_no(tok, style)
    for item, row in zip(ITEMS, gap):
        for shown, value in zip((item.golds[0], item.hallucinated), row):
            ids = halueval.prompt_ids(tok, style, [halueval.DETECT.format(knowledge=item.knowledge, question=item.question, answer=shown)], [tok.bos_id])[0]
            assert value == pytest.approx((model.own_logps(ids, yes).sum() - model.own_logps(ids, no).sum()).item(), abs=1e-3)
    right, invented = (gap[:, 0] <= 0).mean(), (gap[:, 1] > 0).mean()
    assert found["balanced_accuracy"]["value"] == pytest.approx((right + invented) / 2)


def test_a_tie_calls_nothing_made_up(lm, monkeypatch):
    """Equal log P of Yes and No: the right answer is kept, the invented one not found, and balanced accuracy is chance."""
    model, tok = load_causal_lm(lm, 512, dtype=torch.float32), load_chat_tokenizer(lm)
    model.lm.lm_head.weight.data.zero_()
    monkeypatch.setattr(halueval, "yes_and_no", lambda tok, style: [[60], [70]])  # words of one length
    found, gap = halueval.discriminate(model, tok, ITEMS[:3], "plain", 0, [tok.bos_id])
    assert (gap == 0).all() and [found[key]["value"] for key in ("right_kept", "invented_found", "balanced_accuracy", "auc")] == [1, 0, 0.5, 0.5]


def command(lm, data, out, *more):
    halueval.main(["--model", str(lm), "--data", str(data), "--output-dir", str(out), "--max-new-tokens", "4", "--prompt", "plain", *more])


def test_defect_13_14_greedy_runs_repeat_and_say_how_they_were_made(lm, data, nli, tmp_path):
    for name in ("a", "b"):
        command(lm, data, tmp_path, "--run-name", name, "--entailment", str(nli), "--discriminate", "--batch", "4" if name == "a" else "2")
    a, b = ([json.loads(line) for line in (tmp_path / f"detailed_{name}.jsonl").read_text().splitlines()] for name in "ab")
    assert [row["generated"] for row in a] == [row["generated"] for row in b] and a[0].keys() == b[0].keys()
    report = json.loads((tmp_path / "metrics_a.json").read_text())
    m = report["manifest"]
    assert m["decoding"] == "greedy" and m["rows"] == 6 and m["prompt"] == "plain" and m["seed"] == 0
    assert m["commit"] and m["versions"]["torch"] and len(m["data"]["sha256"]) == 64
    assert m["weights"] == weights_hash(lm) and m["entailment"]["labels"]["2"] == "Entailment" and str(tmp_path) not in json.dumps(report)
    assert {row["key"]: row["values"]["gold"]["value"] for row in report["metrics"]}["exact_match"] == 1
    assert all(cell["n"] and "method" in cell for row in report["metrics"] for cell in row["values"].values())
    named = {row["metric"] for row in report["not_measured"]}
    assert "supported (LLM)" in named and "claim entailed (P >= .5)" not in named
    page = (tmp_path / "metrics_a.md").read_text()
    assert "Format-sensitive diagnostics" in page and "not measured" in page.lower() and "Telling right from invented" in page


def test_an_adapter_is_merged_into_the_answering_model(lm, tmp_path):
    model = load_causal_lm(lm, 512, dtype=torch.float32)
    add_adapters(model, config := LoraConfig(rank=2, targets=["q_proj", "down_proj"]), 0)
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.5)
    save_adapters(model, tmp_path, config, str(lm))
    merged, plain = halueval.open_model(str(lm), str(tmp_path))[0], halueval.open_model(str(lm), "")[0]
    wanted = model.eval().own_logps([0, 50, 60], [70, 80])
    assert merged.own_logps([0, 50, 60], [70, 80]) == pytest.approx(wanted, abs=1e-4)
    assert (plain.own_logps([0, 50, 60], [70, 80]) - wanted).abs().max() > 1e-2


def test_against_itself_nothing_differs_and_other_questions_are_refused(lm, data, tmp_path):
    command(lm, data, tmp_path, "--run-name", "a")
    command(lm, data, tmp_path, "--run-name", "b", "--against", str(tmp_path / "detailed_a.jsonl"))
    against = json.loads((tmp_path / "metrics_b.json").read_text())["against"]
    assert against["first"] == "a" and all((row["p"], row["wins"], row["losses"]) == (1.0, 0, 0) for row in against["rows"]) and len(against["rows"]) >= 5
    with pytest.raises(UserError, match="same 3 questions"):
        command(lm, data, tmp_path, "--limit", "3", "--against", str(tmp_path / "detailed_a.jsonl"))


def test_answers_that_are_there_are_scored_as_when_they_were_new(lm, data, nli, tmp_path):
    command(lm, data, tmp_path, "--run-name", "a")
    again = ["--answers", str(tmp_path / "detailed_a.jsonl"), "--data", str(data), "--output-dir", str(tmp_path), "--entailment", str(nli)]
    halueval.main(again)
    new, old = ([json.loads(line) for line in (tmp_path / f"detailed_{name}.jsonl").read_text().splitlines()] for name in ("a_again", "a"))
    for a, b in zip(new, old, strict=True):
        assert a["generated"] == b["generated"] and {key: a["scores"][key] for key in b["scores"]} == b["scores"] and "entailment" in a["scores"]
    published = tmp_path / "detailed_baseline.jsonl"  # their layout, no ids
    published.write_text("".join(json.dumps({"question": row[0], "generated": row[2], "sim_right": 1.0}) + "\n" for row in ROWS))
    assert qa_report.read_answers(published, ITEMS) == [[row[2] for row in ROWS]] and qa_report.read_answers(published, ITEMS[:2]) == [[ROWS[0][2], ROWS[1][2]]]
    with pytest.raises(UserError, match="row by row"):
        qa_report.read_answers(published, ITEMS[::-1])
    with pytest.raises(UserError, match="without --model"):
        halueval.main([*again, "--discriminate"])


def test_a_question_that_does_not_fit_the_model_is_left_out_and_counted(lm):
    model, tok = load_causal_lm(lm, 512, dtype=torch.float32), load_chat_tokenizer(lm)
    found, gap = halueval.discriminate(model, tok, [ITEMS[0], Item(2, "who?", "k", ("r",), "long " * 120)], "plain", 0, [tok.bos_id])
    assert found["questions_that_do_not_fit"] == 1 and np.isnan(gap[1]).all() and found["right_kept"]["n"] == 1


def test_sampling_needs_seeds_and_gives_an_interval_over_them(lm, data, tmp_path):
    for wrong in (["--temperature", "1"], ["--sample", "1", "2"], ["--sample", "1", "1", "--temperature", "1"]):
        with pytest.raises(UserError, match="sampling needs"):
            command(lm, data, tmp_path, *wrong)
    command(lm, data, tmp_path, "--run-name", "s", "--sample", "1", "2", "--temperature", "1")
    report = json.loads((tmp_path / "metrics_s.json").read_text())
    row = next(row for row in report["over_seeds"] if row["key"] == "overlap")
    assert "seeds" in row["value"]["method"] and row["value"]["n"] == 2 and "seeds 1, 2" in report["manifest"]["decoding"]
    said = [json.loads(line)["generated"] for line in (tmp_path / "detailed_s.jsonl").read_text().splitlines()]
    assert all(len(texts) == 2 for texts in said) and any(a != b for a, b in said)


def test_sanity_asks_no_model(data, tmp_path, capsys):
    halueval.main(["--sanity", "--data", str(data), "--output-dir", str(tmp_path)])
    report = json.loads((tmp_path / "sanity.json").read_text())
    em = next(row for row in report["metrics"] if row["key"] == "exact_match")["values"]
    assert [em[system]["value"] for system in ("gold", "hallucinated", "sentence", "verbose", "flip")] == [1, 0, 0, 0, 0] and em["flip"]["n"] == 2
    assert not any(text in json.dumps(report) for row in ROWS for text in (row[0], row[1], row[3]))  # figures, no benchmark text
    assert "exact match" in capsys.readouterr().out
    with pytest.raises(UserError, match="one of --model"):
        halueval.check(argparse.Namespace(sanity=False, model="", answers=None))


def test_without_a_yes_or_no_question_the_table_has_all_rows_and_nothing_is_flipped(data, tmp_path, capsys, bag_of_words):
    halueval.main(["--sanity", "--data", str(data), "--output-dir", str(tmp_path), "--limit", "2"])
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["gold", "hallucinated", "sentence", "verbose", "flip"]
    assert next(line for line in table if line.startswith("exact match")).split() == ["exact", "match", "100.0", "0.0", "0.0", "0.0", "-"]
    values = {system: measure(ITEMS[:2], texts, Tools(embeddings=bag_of_words, bertscore=bag_of_words)) for system, texts in known_answers(ITEMS[:2]).items()}
    rows = {row["key"]: row["values"] for row in qa_report.separations(values, 0)}
    assert set(rows["bertscore"]) == {"gold", "sentence", "verbose"}


@pytest.mark.parametrize("flags, why", [
    (["--seed", "-1"], "--seed"), (["--temperature", "nan"], "finite"), (["--temperature", "inf", "--sample", "1"], "finite|together"),
    (["--temperature", "1", "--sample", "-1"], "--sample"), (["--limit", "-1"], "--limit"), (["--batch", "0"], "--batch"), (["--max-new-tokens", "0"], "--batch"),
    (["--run-name", "a/b"], "--run-name"), (["--adapter", "dpo/best"], "with --adapter it is needed"),
    (["--output-dir", "FILE"], "is a file: name a folder"), (["--output-dir", "FILE/in"], "is a file: name a folder")])
def test_odd_flags_are_one_sentence(tmp_path, flags, why):
    (tmp_path / "FILE").write_text("")
    given = [str(tmp_path / flag) if flag.startswith("FILE") else flag for flag in flags]
    with pytest.raises(UserError, match=why):
        halueval.main(["--model", "m", "--data", "qa.json", "--output-dir", str(tmp_path / "out"), *given])
    assert not (tmp_path / "out").exists()


def test_bad_rows_are_named(tmp_path):
    path = tmp_path / "qa.json"
    path.write_text('{"question": "q", "knowledge": "k", "right_answer": "r", "hallucinated_answer": "h", "aliases": ["R2"]}\n{"question": "q"}\n')
    assert halueval.read_items(path, 1)[0].golds == ("r", "R2")
    with pytest.raises(UserError, match="line 2"):
        halueval.read_items(path)
    with pytest.raises(UserError, match="no file"):
        halueval.read_items(tmp_path / "nothing")
