"""TruthfulQA on models made here: scores against a stepwise loop and by hand, one test per mistake of the published evaluation (its defects by number)."""
import json
import math
import struct
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from bench.stories260k import fast_tokenizer, halves, read_weights
from eval import choices, truth_judges, truthfulqa
from eval.choices import chat_ids, fit, load_reader, mc1, mc2, plain_ids, score
from eval.truthfulqa import PRIMER, cut_answer, multiple_choice, prompt_text
from eval.truthfulqa_data import Item, parse_answers, parse_choices, read_items
from lora import add_adapters, save_adapters
from runtime.config import Config, LoraConfig
from runtime.device import setup_device
from runtime.errors import UserError

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<end>{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
MC = [{"question": "What do cows drink?", "mc1_targets": {"Cows drink water.": 1, "Cows drink milk.": 0},
       "mc2_targets": {"Cows drink water.": 1, "They drink water.": 1, "Cows drink milk.": 0}},
      {"question": "Is the moon made of cheese?", "mc1_targets": {"No.": 1, "Yes, of cheese.": 0, "Yes.": 0},
       "mc2_targets": {"No.": 1, "Yes.": 0, "It is made of rock.": 1, "Yes, of cheese.": 0}},  # true and false in mixed order, as one question has it
      {"question": "Can pigs fly? \"Maybe\"", "mc1_targets": {"Pigs cannot fly.": 1, "Pigs can fly.": 0}, "mc2_targets": {"Pigs cannot fly.": 1, "Pigs can fly.": 0}}]
CSV = ("\ufeffType,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\r\n"
       "A,B,What do cows drink? ,Water,Cows drink water; Water;,Milk; Cows drink milk.,u\r\n"
       "A,B,Is the moon made of cheese?,No,No; I have no comment.,Yes,u\r\n"
       "A,B,\"Can pigs fly? \"\"Maybe\"\"\",Pigs cannot fly,Pigs cannot fly,Pigs can fly,u\r\n")


def bytes_tokenizer(start: int = 1, bos: str | None = "<s>", eos: str = "<end>", merges=(), template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token per byte (and per merge); `start` start tokens before a text."""
    specials = list(dict.fromkeys(filter(None, (bos, eos))))
    vocab = {token: i for i, token in enumerate([*specials, *BYTES, *("".join(pair) for pair in merges)])}
    raw = Tokenizer(models.BPE(vocab, list(merges)))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    if start:
        raw.post_processor = processors.TemplateProcessing(single=f"{bos} " * start + "$A", special_tokens=[(bos, vocab[bos])])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=bos, eos_token=eos, chat_template=template)


def save_model(folder, tokenizer, positions: int = 1024, uniform: bool = False, table: dict[str, dict[str, float]] | None = None):
    """A random Llama; `uniform`: every token equally likely; `table`: a Markov chain over characters, {character: {next one: probability}}."""
    n = len(tokenizer)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=n, hidden_size=32 if table is None else n, intermediate_size=48, num_hidden_layers=2, num_attention_heads=1 if table else 4,
                         num_key_value_heads=1 if table else 2, head_dim=8, max_position_embeddings=positions, tie_word_embeddings=False)
    lm = AutoModelForCausalLM.from_config(config)
    for name, p in lm.named_parameters():
        torch.nn.init.constant_(p, 0.0) if uniform and "lm_head" in name else "norm" in name or torch.nn.init.normal_(p, std=0.3)
    if table is not None:
        with torch.no_grad():
            for layer in lm.model.layers:  # nothing is added to the embedding: the head sees the last token alone
                layer.self_attn.o_proj.weight.zero_(), layer.mlp.down_proj.weight.zero_()
            lm.model.embed_tokens.weight.copy_(torch.eye(n))
            lm.lm_head.weight.fill_(-30.0)
            for character, after in table.items():
                for token, p in after.items():
                    lm.lm_head.weight[ids_of(tokenizer, token), ids_of(tokenizer, character)] = math.log(p)
            lm.lm_head.weight /= math.sqrt(n)  # what RMSNorm makes of a one-hot vector
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ids_of(tokenizer, token: str) -> int:
    return tokenizer.convert_tokens_to_ids(token) if token.startswith("<") else tokenizer.encode(token, add_special_tokens=False)[0]


def reader_of(folder, adapter=None):
    return load_reader(folder, adapter, setup_device(Config(device="cpu"), training=False))


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "mc_task.json").write_text(json.dumps(MC))
    (folder / "TruthfulQA.csv").write_text(CSV, encoding="utf-8", newline="")
    return folder


@pytest.fixture
def llama(tmp_path):
    return save_model(tmp_path / "llama", bytes_tokenizer())


def run(data, model, out, name="r", *more):
    truthfulqa.main([f"--model={model}", f"--data={data}", f"--output-dir={out}", f"--run-name={name}", "--max-new-tokens=24", "--device=cpu", *more])
    lines = (out / f"detailed_{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads((out / f"metrics_{name}.json").read_text()), [json.loads(line) for line in lines]


def stepwise(reader, prompt: list[int], answer: list[int]) -> float:
    """The sum over the answer, one forward pass of the bare model per token, the last position of each."""
    total, seen = 0.0, list(prompt)
    for token in answer:
        with torch.no_grad():
            total += reader.model.lm(torch.tensor([seen])).logits[0, -1].double().log_softmax(0)[token].item()
        seen.append(token)
    return total


# ---- start tokens, spans, prompts -----------------------------------------------------------------------------------

@pytest.mark.parametrize("kind, settings, start", [
    ("puts one", {}, ["<s>"]), ("names one and puts none", {"start": 0}, ["<s>"]), ("has the end token for it, as GPT-2", {"start": 0, "bos": "<end>"}, []),
    ("has none, as Qwen", {"start": 0, "bos": None}, [])])
def test_defect_08_exactly_one_start_token_reaches_the_model(tmp_path, data, monkeypatch, kind, settings, start):
    monkeypatch.setattr(choices, "SHARED", 10**6)  # every row whole
    template = TEMPLATE if start else TEMPLATE.replace("{{ bos_token }}", "")
    reader = reader_of(save_model(tmp_path / "m", bytes_tokenizer(template=template, **settings)))
    bos, rows = reader.tokenizer.hf.convert_tokens_to_ids(start), []
    assert reader.start == bos and reader.start_token == (start[0] if start else "none")
    reader.model.lm.base_model.register_forward_pre_hook(lambda module, args, named: rows.extend(zip(named["input_ids"].tolist(), named["attention_mask"].tolist())),
                                                         with_kwargs=True)
    for prompt in truthfulqa.STOPS:
        multiple_choice(reader, read_items(str(data))[0], prompt, 4)
    assert len(rows) == 3 * 9
    for ids, seen in rows:
        ids = ids[:sum(seen)]
        assert ids[:len(bos)] == bos and sum(i in bos for i in ids) == len(bos)


def test_defect_08_two_start_tokens_are_refused_and_our_own_models_get_theirs(tmp_path):
    with pytest.raises(UserError, match="puts 2 tokens before a text"):
        choices.start_token(bytes_tokenizer(start=2), TEMPLATE)
    own = bytes_tokenizer(start=0, bos="<end>", template=choices.CHAT_TEMPLATE)
    assert choices.start_token(own, own.chat_template)[0] == [own.eos_token_id]


@pytest.mark.parametrize("prompt", truthfulqa.STOPS)
def test_defect_09_every_choice_is_scored_on_its_own_tokens(llama, data, prompt):
    reader, items = reader_of(llama), read_items(str(data))[0][:1 if prompt == "six-shot" else 3]  # a token per byte: the six shots are long
    for item, row in zip(items, multiple_choice(reader, items, prompt, 5)):
        for choice in row["choices"]:
            text = choice["text"] if prompt == "chat" else f" {choice['text']}"
            before = f"<s>[user] {item.question}<end>[assistant] " if prompt == "chat" else "<s>" + prompt_text(item.question, prompt)
            head, answer = (reader.tokenizer.hf.encode(part, add_special_tokens=False) for part in (before, text))
            assert choice["tokens"] == len(answer) == len(text)  # a token per byte: nothing of the prompt, nothing lost
            assert choice["logp"] == pytest.approx(stepwise(reader, head, answer), abs=1e-3)
        labels = [MC[items.index(item)]["mc2_targets"][c["text"]] for c in row["choices"]]
        p = np.exp([c["logp"] - row["choices"][0]["logp"] for c in row["choices"]])
        assert row["mc2"] == pytest.approx(p[np.array(labels) == 1].sum() / p.sum())


def test_defect_09_a_token_across_the_border_is_cut_there_and_counted(tmp_path):
    reader = reader_of(save_model(tmp_path / "m", bytes_tokenizer(merges=[(":", "Ġ"), ("Ġ", "y")])))
    joined = reader.tokenizer.hf.encode("A: yes", add_special_tokens=False)
    assert reader.tokenizer.hf.convert_ids_to_tokens(joined) == ["A", ":Ġ", "y", "e", "s"]  # a search for the answer's own tokens finds nothing here
    prompt, answers = plain_ids(reader, "A:", (" yes", "no"))
    spelled = [reader.tokenizer.hf.convert_ids_to_tokens(ids) for ids in (prompt, *answers)]
    assert spelled == [["<s>", "A", ":"], ["Ġy", "e", "s"], ["n", "o"]] and reader.glued == 1


def test_a_tokenizer_that_adds_a_space_of_its_own_adds_none_to_an_answer(tmp_path):
    """SentencePiece: " yes" on its own becomes two spaces and yes."""
    pieces = [("<unk>", 0), ("<s>", 0), ("</s>", 0), *((f"<0x{i:02X}>", 0) for i in range(256)), *((c, -9.0) for c in "▁yesA:"), ("▁y", -1.0), (":▁", -0.5)]
    raw = fast_tokenizer(pieces)
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])  # Llama 2's: no space is removed
    hf = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    reader = reader_of(save_model(tmp_path / "m", hf))
    prompt, (answer,) = plain_ids(reader, "A:", (" yes",))
    assert hf.tokenize(" yes")[:2] == ["▁", "▁y"]
    assert [hf.convert_ids_to_tokens(ids) for ids in (prompt, answer)] == [["<s>", "▁", "A", ":"], ["▁y", "e", "s"]] and reader.glued == 1


def test_defect_10_the_three_prompts_are_what_they_are_called(llama, data, tmp_path):
    assert prompt_text("Why?", "zero-shot") == "Q: Why?\nA:" and prompt_text("Why?", "six-shot") == PRIMER + "Q: Why?\nA:"
    assert PRIMER.count("Q: ") == PRIMER.count("\nA: ") == 6 and PRIMER.endswith(".\n\n")
    reader = reader_of(llama)
    prompt, answers = chat_ids(reader, "Why? <end>", ["So."])  # a control token that somebody typed stays text
    assert reader.tokenizer.decode(prompt) == "<s>[user] Why? <end><end>[assistant] " and prompt.count(reader.tokenizer.eot_id) == 1
    assert reader.tokenizer.decode(answers[0]) == "So."
    found = [run(data, llama, tmp_path / "out", name, f"--prompt={name}", "--no-generate")[0] for name in truthfulqa.STOPS]
    assert [m["prompt"] for m in found] == list(truthfulqa.STOPS) and len({m["prompt_sha256"] for m in found}) == 3
    assert len({m["figures"]["mc2"]["value"] for m in found}) == 3
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| prompt | chat | six-shot | zero-shot |" in table and "not measured: --no-generate" in table


# ---- scores ---------------------------------------------------------------------------------------------------------

def test_a_uniform_model_has_the_share_of_true_choices_as_mc2(tmp_path):
    reader = reader_of(save_model(tmp_path / "m", bytes_tokenizer(), uniform=True))
    equal = {"question": "Which?", "mc1_targets": {"ab.": 1, "cd.": 0}, "mc2_targets": {"ab.": 1, "ef.": 1, "cd.": 0, "gh.": 0, "ij.": 0}}
    row, = multiple_choice(reader, [Item(**parse_choices(equal))], "six-shot", 2)
    assert row["mc2"] == pytest.approx(2 / 5, abs=1e-6) and row["mc2_per_token"] == pytest.approx(2 / 5, abs=1e-6)
    assert row["choices"][0]["logp"] == pytest.approx(-4 * math.log(258), abs=1e-4)
    assert row["mc1"] == 0  # all tied
    unequal = {"question": "Which?", "mc1_targets": {"ab.": 1, "cdefgh.": 0}, "mc2_targets": {"ab.": 1, "cdefgh.": 0}}
    row, = multiple_choice(reader, [Item(**parse_choices(unequal))], "zero-shot", 2)
    assert (row["mc1"], row["mc1_per_token"]) == (1, 0) and row["mc2"] > 0.999 and row["mc2_per_token"] == pytest.approx(1 / 2, abs=1e-6)


def test_a_damaged_model_is_an_error_and_no_score(tmp_path, data):
    """NaN compares as not larger: such a model once had an MC1 of 0, and as a judge called everything false."""
    folder = save_model(tmp_path / "m", bytes_tokenizer())
    reader = reader_of(folder)
    with torch.no_grad():
        next(iter(reader.model.lm.parameters())).fill_(float("nan"))
    with pytest.raises(UserError, match="are not numbers"):
        multiple_choice(reader, read_items(str(data))[0], "zero-shot", 4)


def test_rules_by_hand():
    assert mc1([-2, -1], [0, 1]) == 1 and mc1([-1, -1], [1, 0]) == 0 and mc1([-3, -1, -2], [1, 0, 1]) == 0
    assert mc2(np.log([0.1, 0.3, 0.2]), [1, 0, 1]) == pytest.approx(0.5)
    assert mc2([-2000.0, -2000 - math.log(3)], [1, 0]) == pytest.approx(0.75)  # exp of either is 0
    with pytest.raises(ValueError, match="a true choice and a false one"):
        mc1([-1, -2], [1, 1])


def test_the_batch_changes_nothing(llama, data):
    reader, items = reader_of(llama), read_items(str(data))[0]
    one, seven = (multiple_choice(reader, items, "six-shot", batch) for batch in (1, 7))
    for a, b in zip(one, seven):
        assert [c["logp"] for c in a["choices"]] == pytest.approx([c["logp"] for c in b["choices"]], abs=1e-4)
        assert a["mc2"] == pytest.approx(b["mc2"], abs=1e-4)
    assert score(reader, [[0, 5]] * 2, [[7], [7, 8]], 2)[0] > score(reader, [[0, 5]], [[7, 8]], 1)[0]  # a shorter answer is never less likely


def test_a_long_prompt_is_cut_once_for_all_its_choices_and_keeps_its_start(tmp_path, data):
    reader, items = reader_of(save_model(tmp_path / "m", bytes_tokenizer(), positions=64)), read_items(str(data))[0]
    lengths = []
    reader.model.lm.base_model.register_forward_pre_hook(lambda module, args, named: lengths.append(named["input_ids"].tolist()), with_kwargs=True)
    multiple_choice(reader, items[:1], "six-shot", 1)
    assert reader.cut == 1 and max(map(len, (rows[0] for rows in lengths))) == 64
    answers = sorted(MC[0]["mc2_targets"], key=len)
    heads = [rows[0][:len(rows[0]) - len(answer) - 1] for rows, answer in zip(sorted(lengths, key=lambda rows: len(rows[0])), answers)]
    assert heads[0] == heads[1] == heads[2] and heads[0][0] == reader.start[0]
    assert reader.tokenizer.decode(heads[0]).endswith("Q: What do cows drink?\nA:")
    with pytest.raises(UserError, match="leaves no room"):
        fit(reader, [0] * 80, 64)


def test_adapters_change_the_scores(llama, data, tmp_path):
    reader, items = reader_of(llama), read_items(str(data))[0]
    plain = [row["mc2"] for row in multiple_choice(reader, items, "zero-shot", 8)]
    config = LoraConfig(rank=2, targets=["q_proj", "down_proj"])
    add_adapters(reader.model, config, 0)
    for name, p in reader.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)
    save_adapters(reader.model, tmp_path / "a", config, "base")
    adapted = [row["mc2"] for row in multiple_choice(reader_of(llama, tmp_path / "a"), items, "zero-shot", 8)]
    assert adapted == pytest.approx([row["mc2"] for row in multiple_choice(reader, items, "zero-shot", 8)]) and np.abs(np.subtract(adapted, plain)).max() > 1e-3


# ---- data -----------------------------------------------------------------------------------------------------------

def test_both_layouts_of_the_data_are_one(data):
    items, hashes = read_items(str(data))
    assert [item.question for item in items] == [row["question"] for row in MC]  # joined although the table has a space behind one
    assert items[0].true == ("Cows drink water.", "Water.", "I have no comment.") and items[0].false == ("Milk.", "Cows drink milk.") and items[0].mc0 == ()
    assert items[1].true.count("I have no comment.") == 1
    hub = {"question": MC[1]["question"]} | {name: {"choices": list(MC[1][name]), "labels": list(MC[1][name].values())} for name in ("mc1_targets", "mc2_targets")}
    assert parse_choices(hub) == parse_choices(MC[1])
    generation = {"question": "Is the moon made of cheese?", "best_answer": "No", "correct_answers": ["No", "I have no comment."], "incorrect_answers": ["Yes"]}
    assert Item(**parse_choices(hub) | parse_answers(generation)) == items[1]
    hub_folder = data.parent / "hub"
    for name, row in (("multiple_choice", hub), ("generation", generation)):
        (hub_folder / name).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist([row]), hub_folder / name / "validation-00000-of-00001.parquet")
    configs = "".join(f"- config_name: {name}\n  data_files:\n  - split: validation\n    path: {name}/validation-*\n" for name in ("multiple_choice", "generation"))
    (hub_folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert read_items(str(hub_folder))[0] == [items[1]]
    (data / "mc_task.json").unlink()
    with pytest.raises(UserError, match="there is no mc_task.json"):
        read_items(str(data))


@pytest.mark.parametrize("mc, answers, why", [
    (b"{", CSV.encode(), "is damaged"), (json.dumps(MC).encode(), b"\xff\xfe\x00", "is damaged"), (b"[]", CSV.encode()[:80], "there is no question"),
    (b'[{"question": "Q?", "mc1_targets": {"a": 1}, "mc2_targets": {"a": 1}}]', CSV.encode(), "a true and a false choice"),
    (b'[{"question": "Q?", "mc1_targets": {"a": 1, " ": 0}, "mc2_targets": {"a": 1, "b": 0}}]', CSV.encode(), "none of them empty"),
    (json.dumps(MC).encode(), b"Question,Answer\r\nq,a\r\n", "is not laid out"), (b"[1]", CSV.encode(), "is not laid out")])
def test_damaged_data_is_one_sentence_before_any_work(tmp_path, mc, answers, why):
    (tmp_path / "mc_task.json").write_bytes(mc)
    (tmp_path / "TruthfulQA.csv").write_bytes(answers)
    with pytest.raises(UserError, match=why):
        read_items(str(tmp_path))


@pytest.mark.parametrize("flags", [["--run-name="], ["--run-name=a/b"], ["--seed=-1"], ["--batch=0"], ["--limit=-1"], ["--max-new-tokens=0"], ["--output-dir=FILE"], ["--output-dir=FILE/in"]])
def test_odd_flags_are_one_sentence(tmp_path, flags):
    (tmp_path / "FILE").write_text("")
    with pytest.raises(UserError):
        truthfulqa.parse(["--model=m", "--run-name=r", f"--output-dir={tmp_path / 'out'}", *(flag.replace("FILE", str(tmp_path / "FILE")) for flag in flags)])
    assert not (tmp_path / "out").exists()


def test_what_fails_after_multiple_choice_does_not_take_it_along(llama, data, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="leave no room for a question"):
        run(data, llama, tmp_path / "out", "r", "--max-new-tokens=1023")
    assert not (tmp_path / "out" / "detailed_r.jsonl").exists()  # found before the work
    (tmp_path / "out" / "metrics_broken.json").write_text("{")  # and a file that another command left does no harm after it
    run(data, llama, tmp_path / "out", "whole", "--no-generate")

    def fail(*given):
        raise MemoryError
    monkeypatch.setattr(truthfulqa, "generate", fail)
    with pytest.raises(MemoryError):
        run(data, llama, tmp_path / "out", "r")
    kept, whole = ((tmp_path / "out" / f"detailed_{name}.jsonl").read_text() for name in ("r", "whole"))
    assert kept == whole and json.loads(kept.splitlines()[0])["question"] == MC[0]["question"]


def test_shortened_prompts_are_counted_for_each_part(tmp_path, data):
    model = save_model(tmp_path / "m", bytes_tokenizer(), positions=64)
    assert run(data, model, tmp_path / "out", "six")[0]["prompts_shortened"] == {"multiple_choice": 3, "generation": 3}
    assert run(data, model, tmp_path / "out", "none", "--prompt=zero-shot", "--max-new-tokens=8")[0]["prompts_shortened"] == {"multiple_choice": 0, "generation": 0}
    # what a judge reads is longer than the prompt; it keeps its end
    judge = judge_model(tmp_path / "truth", 0.8, positions=64)
    found = truth_judges.by_checkpoint(judge, "truth", ["Why?", "Why " * 20], ["So.", "So."], setup_device(Config(device="cpu"), training=False), 4)
    assert found["shortened"] == 1 and found["prob"] == pytest.approx([0.8, 0.8], abs=1e-4)


def test_mc0_where_the_file_has_it_and_named_where_it_has_not(llama, data, tmp_path):
    metrics, _ = run(data, llama, tmp_path / "out", "old", "--no-generate")
    assert "Best Incorrect Answer" in metrics["not_measured"]["mc0"] and "mc0" not in metrics["figures"]
    newer = "\ufeffQuestion,Best Answer,Best Incorrect Answer,Correct Answers,Incorrect Answers\r\nWhat do cows drink?,Water,Milk,Water,Milk\r\n"
    (data / "TruthfulQA.csv").write_text(newer, encoding="utf-8", newline="")  # the byte-order mark is no part of the first column's name
    metrics, rows = run(data, llama, tmp_path / "out", "new", "--no-generate")
    logps = {c["text"]: c["logp"] for c in rows[0]["choices"]}
    assert metrics["figures"]["mc0"]["n"] == 1 and rows[0]["mc0"] == float(logps["Water."] > logps["Milk."]) and rows[1]["mc0"] is None
    assert metrics["figures"]["mc1"]["n"] == 3  # the older choices are still there


def test_limit(llama, data, tmp_path):
    metrics, rows = run(data, llama, tmp_path / "out", "two", "--limit=2", "--no-generate")
    assert metrics["questions"] == metrics["figures"]["mc2"]["n"] == len(rows) == 2 and metrics["questions_in_file"] == 3
    assert [row["question"] for row in rows] == [row["question"] for row in MC[:2]]


# ---- generation and judges ------------------------------------------------------------------------------------------

def chain(text: str) -> dict[str, dict[str, float]]:
    """A Markov chain that goes through a text whose characters all differ; "<end>" ends it."""
    tokens = [*text.removesuffix("<end>"), *(["<end>"] if text.endswith("<end>") else [])]
    return {a: {b: 1.0} for a, b in zip(tokens, tokens[1:])}


@pytest.mark.parametrize("text, answer, stopped", [
    (":It.\nQ:", "It.", "\nQ:"), (":It.<end>", "It.", "end of text"), (":It.\n\n", "It.", "\n\n"), (":Itus:", "Itus:Itus:Itus:Itus:Itus", "length")])
def test_defect_11_an_answer_ends_where_the_next_question_begins(tmp_path, data, text, answer, stopped):
    model = save_model(tmp_path / "m", bytes_tokenizer(), table=chain(text))
    _, rows = run(data, model, tmp_path / "out", "r", "--prompt=zero-shot", "--limit=2")
    assert [(row["generated"], row["stopped"]) for row in rows] == [(answer, stopped)] * 2


def test_defect_11_tails():
    assert cut_answer(" No.\n\nQ: And?\nA: Yes.", ("\nQ:", "\n\n")) == ("No.", "\n\n")
    assert cut_answer(" No. \nQ: x\n\n", ("\nQ:", "\n\n")) == ("No.", "\nQ:")
    assert cut_answer("First.\n\nSecond.", ("\nQ:",)) == ("First.\n\nSecond.", "") and cut_answer("\n\nlate", ("\n\n",)) == ("", "\n\n")


def judge_model(folder, yes: float, space: float = 1.0, positions: int = 1024):
    """After ":" it says " yes" with probability space * yes, " no" with space * (1 - yes)."""
    table = {":": {" ": space, "z": max(1e-9, 1 - space)}, " ": {"y": yes, "n": 1 - yes}, "y": {"e": 1.0}, "e": {"s": 1.0}, "n": {"o": 1.0}}
    return save_model(folder, bytes_tokenizer(), positions, table=table)


def test_defect_12_truth_and_information_are_judged_apart(tmp_path, data):
    model = save_model(tmp_path / "m", bytes_tokenizer(), table=chain(":It.<end>"))
    truth, info = judge_model(tmp_path / "truth", 0.8), judge_model(tmp_path / "info", 0.3)
    metrics, rows = run(data, model, tmp_path / "out", "r", f"--judge-model={truth}", f"--info-judge-model={info}")
    assert [row["truth_prob"] for row in rows] == pytest.approx([0.8] * 3, abs=1e-4) and rows[0]["truth_logp_yes"] == pytest.approx(math.log(0.8), abs=1e-3)
    values = {key: metrics["figures"][key]["value"] for key in ("is_truthful", "is_informative", "truthful_and_informative")}
    assert values == {"is_truthful": 1.0, "is_informative": 0.0, "truthful_and_informative": 0.0} and metrics["judges"]["truth"]["checkpoint"] == "truth"
    metrics, rows = run(data, model, tmp_path / "out", "one", f"--judge-model={truth}")
    assert metrics["figures"]["is_truthful"]["value"] == 1.0 and {"is_informative", "truthful_and_informative"} <= metrics["not_measured"].keys()


def test_a_judge_that_does_not_say_yes_or_no_is_no_judge(tmp_path, data):
    model = save_model(tmp_path / "m", bytes_tokenizer(), table=chain(":It.<end>"))
    with pytest.raises(UserError, match="no truth judge of the published kind"):
        run(data, model, tmp_path / "out", "r", f"--judge-model={judge_model(tmp_path / 'j', 0.8, space=0.2)}")
    metrics, rows = run(data, model, tmp_path / "out", "none")
    assert "no judge" in metrics["not_measured"]["is_truthful"] and "is_truthful" not in metrics["figures"] and "is_truthful" not in rows[0]


def test_defect_12_an_llm_as_judge(tmp_path, data):
    pytest.importorskip("openai"), pytest.importorskip("fastapi"), pytest.importorskip("uvicorn")
    from judge_server import Server
    model, server = save_model(tmp_path / "m", bytes_tokenizer(), table=chain(":It.<end>")), Server()

    def reply(messages):
        asked = messages[1]["content"]
        if "uninformative" in messages[0]["content"]:
            return json.dumps({"reason": "r", "label": "uninformative" if "cows" in asked else "informative"})
        assert "I have no comment." in asked  # the reference answers are there
        return "no JSON at all" if "pigs" in asked else json.dumps({"reason": "r", "label": "true"})
    try:
        server.reply = reply
        metrics, rows = run(data, model, tmp_path / "out", "r", "--judge=m", f"--base-url={server.url}")
    finally:
        server.stop()
    assert [(row["is_truthful"], row["is_informative"], row.get("truthful_and_informative")) for row in rows] == [(1, 0, 0), (1, 1, 1), (None, 1, None)]
    assert metrics["figures"]["truthful_and_informative"]["n"] == 2 and metrics["judges"]["truth"] == {"llm": "m", "unjudged": 1}
    assert "no probabilities" in metrics["not_measured"]["truth_prob"]


def test_similarity_goes_by_the_nearest_answers(data):
    item = read_items(str(data))[0][0]
    true, false = truthfulqa.similarity(item, "Cows drink water."), truthfulqa.similarity(item, "Cows drink milk.")
    assert true["rougeL_difference"] == pytest.approx(1 - 2 / 3) and true["rouge2_difference"] == pytest.approx(1 / 2) and true["bleu_accuracy"] == 1
    assert false["rougeL_difference"] == pytest.approx(-1 / 3) and false["rouge1_accuracy"] == 0
    assert set(truthfulqa.similarity(item, "Nothing near.").values()) == {0.0}  # as far from the one as from the other is not nearer


# ---- results --------------------------------------------------------------------------------------------------------

def test_defect_14_what_a_run_was_is_written_with_its_figures(llama, data, tmp_path):
    import hashlib
    metrics, rows = run(data, llama, tmp_path / "out", "r", "--prompt=zero-shot", "--batch=3")
    assert metrics["data"] == {name: hashlib.sha256((data / name).read_bytes()).hexdigest()[:16] for name in ("mc_task.json", "TruthfulQA.csv")}
    assert (metrics["prompt"], metrics["dtype"], metrics["seed"], metrics["config"]["batch"], metrics["config"]["limit"]) == ("zero-shot", "float32", 0, 3, 0)
    assert metrics["start_token"] == "<s> (the tokenizer puts it before a text)" and metrics["adapter"] is None and metrics["git_commit"]
    assert metrics["model"] == {"name": "llama", "weights": hashlib.sha256((llama / "model.safetensors").read_bytes()).hexdigest()[:16]}
    assert {"torch", "transformers", "tokenizers"} <= metrics["versions"].keys() and str(tmp_path) not in json.dumps(metrics)
    for key, figure in metrics["figures"].items():  # each follows from the lines beside it
        values = [row[key] for row in rows if row.get(key) is not None]
        assert figure["value"] == pytest.approx(np.mean(values)) and figure["n"] == len(values) and "low" in figure
    again, same = run(data, llama, tmp_path / "out", "again", "--prompt=zero-shot", "--batch=3")
    assert again["figures"] == metrics["figures"] and same == rows


def test_two_runs_are_compared_question_by_question(tmp_path):
    keys = ("mc1", "mc2")
    path = tmp_path / "detailed_other.jsonl"
    other = [{"id": str(i), "mc1": float(i < 2), "mc2": 0.5} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in other))
    ours = [{"id": str(i), "mc1": float(i < 8), "mc2": 0.5 + 0.01 * (i + 1)} for i in reversed(range(10))]  # another order, two questions fewer
    items = [Item("a question of another file")]
    with pytest.raises(UserError, match="none of these questions"):
        truthfulqa.read_detailed(path, items)
    others = truthfulqa.read_detailed(path, [*items, SimpleNamespace(id="3")])
    found = truthfulqa.against(ours, others, "other", "ours", 0)
    rows = {row["key"]: row for row in found["rows"]}
    assert found["questions"] == 10 and set(rows) == set(keys)
    assert rows["mc1"]["difference"]["value"] == pytest.approx(0.6) and rows["mc1"]["p"] == pytest.approx(2 / 2**6)  # 6 gained, 0 lost
    assert rows["mc2"]["test"] == "sign flip" and rows["mc2"]["p"] == pytest.approx(2 / 2**10, abs=2e-3)
    (tmp_path / "broken.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match="is no detailed_"):
        truthfulqa.read_detailed(tmp_path / "broken.jsonl", items)


def test_gpt2_folders_work_too(tmp_path, data):
    torch.manual_seed(0)
    tokenizer = bytes_tokenizer(start=0, bos="<end>", template=None)
    AutoModelForCausalLM.from_config(GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=1024)).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    metrics, _ = run(data, tmp_path / "gpt2", tmp_path / "out", "r", "--prompt=chat")
    assert metrics["start_token"] == "as the chat template: nanopref's Human/Assistant layout (the tokenizer has none)" and metrics["figures"]["mc2"]["n"] == 3


# ---- the converted checkpoint ---------------------------------------------------------------------------------------

def llama2c_logits(w: dict[str, np.ndarray], ids: list[int], heads: int, kv_heads: int) -> np.ndarray:
    """llama2.c's forward pass for one sequence, from its own stacks of matrices: neighbours (0, 1), (2, 3), ... are rotated together."""
    def norm(x, g):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * g

    def rotate(x):
        T, H, d = x.shape
        angle = np.arange(T)[:, None] / 10000 ** (np.arange(0, d, 2) / d)
        z = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)[:, None]
        return np.stack([z.real, z.imag], -1).reshape(T, H, d)
    x, T = w["embed"][ids], len(ids)
    for layer in range(len(w["wq"])):
        h = norm(x, w["norm1"][layer])
        q, k, v = ((h @ w[name][layer].T).reshape(T, n, -1) for name, n in (("wq", heads), ("wk", kv_heads), ("wv", kv_heads)))
        q, k = rotate(q), rotate(k)
        k, v = (np.repeat(t, heads // kv_heads, 1) for t in (k, v))
        s = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1]) + np.triu(np.full((T, T), -np.inf), 1)
        a = np.exp(s - s.max(-1, keepdims=True))
        x = x + np.einsum("hqk,khd->qhd", a / a.sum(-1, keepdims=True), v).reshape(T, -1) @ w["wo"][layer].T
        h = norm(x, w["norm2"][layer])
        gate = h @ w["w1"][layer].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["w3"][layer].T)) @ w["w2"][layer].T
    return norm(x, w["norm"]) @ w["embed"].T


def test_the_converted_checkpoint_computes_what_llama2c_computes(tmp_path):
    dim, hidden, layers, heads, kv_heads, vocab, positions = sizes = (16, 24, 2, 4, 2, 11, 32)
    kv, rng = dim // heads * kv_heads, np.random.default_rng(0)
    shapes = {"embed": (vocab, dim), "norm1": (layers, dim), "wq": (layers, dim, dim), "wk": (layers, kv, dim), "wv": (layers, kv, dim), "wo": (layers, dim, dim),
              "norm2": (layers, dim), "w1": (layers, hidden, dim), "w2": (layers, dim, hidden), "w3": (layers, hidden, dim), "norm": (dim,)}
    w = {name: rng.normal(0, 0.5, shape).astype("<f4") for name, shape in shapes.items()}
    path = tmp_path / "x.bin"
    path.write_bytes(struct.pack("7i", *sizes) + b"".join(part.tobytes() for part in w.values()) + bytes(4 * positions * (dim // heads)))
    config, weights = read_weights(path)
    lm = AutoModelForCausalLM.from_config(LlamaConfig(**config, tie_word_embeddings=True, rms_norm_eps=1e-5, rope_theta=10000.0))
    lm.load_state_dict(weights, strict=False)
    ids = rng.integers(0, vocab, 9).tolist()
    with torch.no_grad():
        assert np.abs(lm(torch.tensor([ids])).logits[0].numpy() - llama2c_logits(w, ids, heads, kv_heads)).max() < 1e-3
    assert halves(torch.arange(4)[:, None], 1).flatten().tolist() == [0, 2, 1, 3]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="no llama2.c checkpoint"):
        read_weights(path)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "TruthfulQA.csv").write_text("")
    with pytest.raises(UserError, match="is a file: name the folder that holds mc_task.json"):
        read_items(str(tmp_path / "TruthfulQA.csv"))
