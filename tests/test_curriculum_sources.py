"""Questions from every published layout, nothing lost without a word; passages and BM25 against numbers worked by hand."""
import csv
import gzip
import json
import math
import os
import random
import re
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from runtime.config import ROOT
from runtime.errors import UserError
from studies.curriculum_dpop import sources
from studies.curriculum_dpop.retrieval import BM25, Embeddings, Passage, attach, chunks, cut, words_of
from studies.curriculum_dpop.rows import Question
from studies.curriculum_dpop.sources import Article, answer_found, detokenise, distinct, load_articles, load_questions, parse_cell

GOOGLE = "Google was founded in 1998 by Larry Page (born 1973) and Sergey Brin."


def lines(path, rows):
    """Write rows as JSON lines, zipped when the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") if path.suffix == ".gz" else open(path, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def squad_row(id, question, answers, context=GOOGLE):
    """A row of SQuAD as the Hub has it."""
    return {"id": id, "title": "Google_Inc", "context": context, "question": question,
            "answers": {"text": answers, "answer_start": [context.find(a) for a in answers]}}


SQUAD = [squad_row("a", "When was it founded?", ["1998", "in 1998", "1998"]), squad_row("b", "Who bought it?", []),
         squad_row("c", "Who founded it?", ["Larry Page (born 1973)"])]


def squad_json(**more):
    """The same three questions in SQuAD's own nesting, v2.0."""
    qas = [{"id": row["id"], "question": row["question"], "is_impossible": not row["answers"]["text"],
            "answers": [{"text": text, "answer_start": 0} for text in row["answers"]["text"]]} | more for row in SQUAD]
    return {"version": "v2.0", "data": [{"title": "Google_Inc", "paragraphs": [{"context": GOOGLE, "qas": qas}]}]}


def squad_csv(path, rows=SQUAD, cell=None):
    """The same as a .csv: `answers` is the repr of a dict of numpy arrays, as pandas writes it."""
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "title", "context", "question", "answers"])
        for row in rows:
            arrays = {"text": np.array(row["answers"]["text"], dtype=object), "answer_start": np.array(row["answers"]["answer_start"], np.int32)}
            table.writerow([row["id"], row["title"], row["context"], row["question"], cell or repr(arrays)])
    return str(path)


# ---- SQuAD --------------------------------------------------------------------------------------------------------------

def test_all_layouts_of_squad_give_the_same_questions(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "own.json").write_text(json.dumps(squad_json()))
    (tmp_path / "pretty.json").write_text(json.dumps(squad_json(), indent=1))
    (tmp_path / "list.json").write_text(json.dumps(SQUAD))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(SQUAD), tmp_path / "hub.parquet")
    paths = [squad_csv(tmp_path / "copy.csv"), lines(tmp_path / "hub.jsonl", SQUAD), lines(tmp_path / "hub.jsonl.gz", SQUAD)]
    paths += [str(tmp_path / name) for name in ("own.json", "pretty.json", "list.json", "hub.parquet")]
    expected = [Question("a", "When was it founded?", GOOGLE, ("1998", "in 1998"), "squad_v2", "Google Inc", True),
                Question("b", "Who bought it?", GOOGLE, (), "squad_v2", "Google Inc", False),
                Question("c", "Who founded it?", GOOGLE, ("Larry Page (born 1973)",), "squad_v2", "Google Inc", True)]
    for path in paths:
        assert load_questions(path) == (expected, Counter()), path
    lines(tmp_path / "dataset" / "train.jsonl", SQUAD)  # a folder is to `datasets` what a repository of the Hub is
    assert load_questions(f"hub:{tmp_path / 'dataset'}", split="train") == (expected, Counter())


def test_defect_24_an_answer_with_a_bracket_is_not_unanswerable():
    cell = "{'text': array(['Page (born 1973)', 'a) & \"b\"', \"it's 'x' 'y']\"],\n      dtype='<U16'), 'answer_start': np.array([1, 2, 3], dtype=int32)}"
    cut_short = re.sub(r"array\((.*?)\)", r"\1", cell, flags=re.DOTALL)
    with pytest.raises(SyntaxError):  # the published way: up to the first ")"
        compile(cut_short, "", "eval")
    assert parse_cell(cell) == {"text": ["Page (born 1973)", 'a) & "b"', "it's 'x' 'y']"], "answer_start": [1, 2, 3]}
    assert parse_cell("{'text': array([], dtype=object), 'answer_start': array([], dtype=int32)}") == {"text": [], "answer_start": []}


@pytest.mark.parametrize("cell", ["{'text': array(['a'", "Paris", "", "{'text': open('x')}", "array(['a']).tolist()", "__import__('os').getcwd()",
                                  "{'text': [" + "[" * 5000, "['a' 'b']", "{'text': array(['Larry Page' 'Sergey Brin'], dtype=object)}"])
def test_defect_24_a_cell_that_cannot_be_read_is_an_error_with_its_line(tmp_path, cell):
    path = squad_csv(tmp_path / "train.csv", cell=cell or " ")
    with pytest.raises(UserError, match=r"train\.csv line 2: (the answers are no Python literal|there is no comma)"):
        load_questions(path)


def test_defect_24_unanswerable_questions_are_kept(tmp_path):
    found, dropped = load_questions(squad_csv(tmp_path / "train.csv"))
    assert [q.answerable for q in found] == [True, False, True] and not dropped
    (tmp_path / "odd.json").write_text(json.dumps(squad_json(is_impossible=True)))
    with pytest.raises(UserError, match='question a: "is_impossible" is True, with 3 answers'):
        load_questions(str(tmp_path / "odd.json"))


@pytest.mark.parametrize("row, said", [
    ({"question": "Who?", "context": "c"}, '"answers" is missing'), ({"question": "Who?", "answers": [1]}, "holds no texts"),
    ({"answers": ["a"]}, '"question" is missing'), ({"question": "Who?", "answers": None}, '"answers" is missing'),
    ({"question": "Who?", "answers": ["a"], "context": 3}, '"context" is missing, or is no text'),
    (["a list"], "a JSON object is needed"), ({"annotations": [{}], "question_text": "who"}, "looks like a known layout and is none")])
def test_a_bad_row_is_one_sentence_with_its_line(tmp_path, row, said):
    with pytest.raises(UserError, match=f"line 2: .*{said}"):
        load_questions(lines(tmp_path / "qa.jsonl", [{"question": "Fine?", "answers": ["yes"]}, row]))


# ---- Natural Questions ------------------------------------------------------------------------------------------------

PAGE = ("<H1> Google </H1> <Table> <Tr> <Td> Founded </Td> <Td_colspan=\"2\"> 1998 </Td> </Tr> </Table> "
        "<P> It was `` founded '' by Page ( US ) , Brin . </P>")
SPANS = {"page": (20, 21), "page_us": (20, 24), "tagged": (8, 12), "brin": (25, 26)}  # [start, end) in PAGE.split(" ")


def annotation(*spans, long=-1, yes_no="NONE"):
    return {"long_answer": {"start_token": long, "end_token": long}, "yes_no_answer": yes_no,
            "short_answers": [{"start_token": SPANS[name][0], "end_token": SPANS[name][1]} for name in spans]}


def nq(number, *annotations, question=None):
    return {"example_id": number, "question_text": question or f"question {number}", "document_text": PAGE, "annotations": list(annotations),
            "long_answer_candidates": [], "document_url": "https://en.wikipedia.org//w/index.php?title=Google_Inc&amp;oldid=1"}


def full(row):
    """A simplified row in the full layout, with its tags marked and its title given."""
    tokens = [{"token": word.replace("_", " "), "html_token": word.startswith("<"), "start_byte": 0} for word in PAGE.split(" ")]
    return {k: v for k, v in row.items() if k != "document_text"} | {"document_tokens": tokens, "document_title": "Google Inc"}


def on_the_hub(row):
    """The same as the Hub's copy has it: lists of objects are objects of lists, yes and no are class numbers."""
    def columns(records, names):
        return {name: [record[name] for record in records] for name in names}
    tokens = {"token": PAGE.split(" "), "is_html": [word.startswith("<") for word in PAGE.split(" ")]}
    marks = [a | {"short_answers": columns(a["short_answers"], ("start_token", "end_token")),
                  "yes_no_answer": {"YES": 1, "NO": 0, "NONE": -1}[a["yes_no_answer"]]} for a in row["annotations"]]
    return {"id": str(row["example_id"]), "question": {"text": row["question_text"], "tokens": []},
            "document": {"title": "Google Inc", "url": row["document_url"].replace("&amp;", "&"), "html": "", "tokens": tokens},
            "annotations": columns(marks, ("long_answer", "short_answers", "yes_no_answer"))}


NQ = [nq(1, annotation("page_us", "brin"), annotation("page"), annotation("page")), nq(2, annotation("tagged")), nq(3, annotation(yes_no="YES")),
      nq(4, annotation(long=3)), nq(5, annotation()), nq(6, annotation(yes_no="YES"), annotation(yes_no="NO")),
      nq(7, annotation(yes_no="NO"), annotation(yes_no="NO"), annotation(yes_no="YES"))]


@pytest.mark.parametrize("layout", [dict, full, on_the_hub])
def test_natural_questions_take_all_short_answers(tmp_path, layout):
    found, dropped = load_questions(lines(tmp_path / "nq-train-00.jsonl.gz", map(layout, NQ)))
    assert {q.id: q.answers for q in found} == {"1": ("Page", "Page (US)", "Brin"), "2": ("1998",), "3": ("yes",), "7": ("no",)}
    assert all((q.source, q.title, q.context, q.answer_in_context) == ("nq", "Google Inc", "", False) for q in found)
    assert dropped == {sources.LONG_ONLY: 1, sources.NO_ANSWER: 1, sources.BOTH: 1}


def test_defect_24_a_long_answer_is_no_answer(tmp_path):
    found, dropped = load_questions(lines(tmp_path / "nq.jsonl", [nq(1, annotation(long=3)), nq(2, annotation("brin", long=3))]))
    assert [q.answers for q in found] == [("Brin",)] and dropped == {"only a long answer": 1}


@pytest.mark.parametrize("start, end", [(27, 31), (-1, 2), (5, 5)])
def test_a_span_outside_the_page_is_an_error(tmp_path, monkeypatch, start, end):
    monkeypatch.setitem(SPANS, "brin", (start, end))
    with pytest.raises(UserError, match=f"line 1: a short answer is tokens {start} to {end} of {len(PAGE.split())}"):
        load_questions(lines(tmp_path / "nq.jsonl", [nq(1, annotation("brin"))]))


@pytest.mark.parametrize("tokens, text", [
    ("It 's 51.3 % ( of $ 5 ) , does n't it ?", "It's 51.3% (of $5), doesn't it?"),
    ("`` Early ( 1 ) '' , he said .", '"Early (1)", he said.'),
    ("third - party at 19 : 06", "third-party at 19:06"), ("the merchants ' goods", "the merchants' goods"), ("1998 -- 2003", "1998 -- 2003"),
    ("( `` to basket '' ) . ''", '("to basket")."'), ("", "")])
def test_tokens_become_running_text(tokens, text):
    assert detokenise(tokens.split(" ")) == text


@pytest.mark.parametrize("layout", [dict, full, on_the_hub])
def test_articles_of_natural_questions(tmp_path, layout):
    path, counts = lines(tmp_path / "nq.jsonl", map(layout, NQ)), Counter()
    assert list(load_articles(path, counts)) == [Article("Google Inc", 'Google\nFounded 1998\nIt was "founded" by Page (US), Brin.',
                                                         "https://en.wikipedia.org//w/index.php?title=Google_Inc&oldid=1")]
    assert counts == {"article seen before": 6}


def test_articles_of_plain_rows(tmp_path):
    rows = [{"title": "T", "text": "one"}, {"text": "two", "url": "u"}, {"text": "two"}, {"title": "E", "text": " "}, {"title": "t", "text": "other"}]
    counts = Counter()
    assert list(load_articles(lines(tmp_path / "wiki.jsonl.gz", rows), counts)) == [("T", "one", ""), ("", "two", "u")]
    assert counts == {"article seen before": 2, "article without text": 1}
    with pytest.raises(UserError, match='line 1: "text" is missing'):
        list(load_articles(lines(tmp_path / "bad.jsonl", [{"title": "T"}])))


# ---- what all sources share -----------------------------------------------------------------------------------------------

def test_other_layouts_and_every_dropped_row_has_a_reason(tmp_path):
    open_rows = [{"question": "who wrote  it", "answer": ["Bob Russell", "bob  russell", "Bobby Scott"]}, {"question": "when", "answer": "1969"}]
    own = [{"question": "Where?", "context": "In Paris.", "answers": ["Paris"], "source": "mine", "id": 7, "title": "T"},
           {"question": " where? ", "context": "in  PARIS.", "answers": ["x"], "source": "mine"}, {"question": "Other?", "answers": ["y"], "id": "7"},
           {"question": " ", "answers": ["x"]}, {"question": "Blank?", "answers": [" "]}, {"question": "Nothing?", "answers": []},
           {"question": "Where?", "answers": ["Rome"]}]
    lines(tmp_path / "NQ-open.dev.jsonl", open_rows), lines(tmp_path / "own.jsonl", own)
    found, dropped = load_questions(str(tmp_path))
    assert [(q.question, q.answers, q.source) for q in found] == [
        ("who wrote it", ("Bob Russell", "Bobby Scott"), "nq_open"), ("when", ("1969",), "nq_open"), ("Where?", ("Paris",), "mine"),
        ("Where?", ("Rome",), "own")]
    assert found[2].id == "7" and found[2].answer_in_context and re.fullmatch("[0-9a-f]{16}", found[0].id)
    assert dropped == {sources.DUPLICATE: 1, sources.SAME_ID: 1, sources.NO_QUESTION: 1, sources.BLANK: 1, sources.NO_ANSWER: 1}


def test_defect_24_the_same_question_is_not_merged(tmp_path):
    rows = [squad_row("a", "When was it founded?", ["1998"]), squad_row("b", "When was  it FOUNDED?", ["1998"]),
            squad_row("a", "Who?", ["Larry Page"])]
    found, dropped = load_questions(lines(tmp_path / "train.jsonl", rows))
    assert [(q.id, q.answers) for q in found] == [("a", ("1998",))] and dropped == {sources.DUPLICATE: 1, sources.SAME_ID: 1}


def test_defect_24_a_limit_is_a_sample_of_the_whole_source(tmp_path):
    first = lines(tmp_path / "a.jsonl", [{"question": f"a {i}", "answers": ["x"]} for i in range(500)])
    second = lines(tmp_path / "b.jsonl", [{"question": f"b {i}", "answers": ["x"]} for i in range(500)])
    found, dropped = load_questions(f"{first},{second}", limit=200)
    share = Counter(q.source for q in found)
    assert len(found) == 200 and dropped == {sources.OVER: 800} and 70 < share["a"] < 130  # binomial: 100 +- 6.3
    alone = {q.id for q in load_questions(first, limit=80)[0]}
    assert len(alone) == 80 and len(alone & {q.id for q in found if q.source == "a"}) == min(80, share["a"])  # the same questions come first
    assert [q.question for q in found] == sorted((q.question for q in found), key=lambda text: (text[0], int(text[2:])))


def test_defect_23_test_data_is_left_to_the_evaluation(tmp_path):
    for name in ("train", "dev", "test"):
        lines(tmp_path / "qa" / f"{name}.jsonl", [{"question": f"from {name}", "answers": ["x"]}])
    asked = [[q.question for q in load_questions(str(tmp_path / "qa"), split=split)[0]] for split in ("", "train", "val", "test")]
    assert asked == [["from dev", "from train"], ["from train"], ["from dev"], ["from test"]]
    with pytest.raises(UserError, match="nothing but test data"):
        load_questions(str(tmp_path / "qa" / "test.jsonl"))
    with pytest.raises(UserError, match="no file or split for val"):
        load_questions(str(tmp_path / "qa" / "train.jsonl"), split="val")
    with pytest.raises(UserError, match="hub:OWNER/NAME.*no file or folder 'rajpurkar/squad_v2'"):
        load_questions("rajpurkar/squad_v2")


@pytest.mark.parametrize("context, answers, found", [
    ("Rollo's arrival (1249–1314)", ("Rollo",), True), ("Zhu (1249–1314) lived.", ("1314",), True), ("in 1332 and", ("13",), False),
    ("The U.S. Army", ("US army",), True), ("the Beatles came", ("The Beatles!",), True), ("north of it", ("no",), False),
    ("no, it is", ("no",), False), ("either yes or no", ("yes", "No"), False), ("It is blue.", ("red", "Blue"), True),
    ("", ("The The",), False), ("Any text.", (), False)])
def test_defect_24_the_answer_is_looked_for_in_the_context(context, answers, found):
    assert answer_found(context, answers) is found


def test_the_answer_given_most_often_comes_first():
    assert distinct(["in  1998", "1998", " ", "1998", "IN 1998", "1998 "]) == ("1998", "in 1998") and distinct([]) == ()


# ---- passages -------------------------------------------------------------------------------------------------------------

def test_chunks_pack_whole_sentences_with_an_overlap():
    text = "J. R. R. Tolkien met Dr. Smith. He left! In 1990 it rained. (Yes.) So it was.\nHeading\n\nThe end."
    assert chunks(text, 8, 3) == ["J. R. R. Tolkien met Dr. Smith.", "He left! In 1990 it rained. (Yes.)", "(Yes.) So it was. Heading The end."]
    assert chunks("", 5, 1) == chunks(" \n ", 5, 1) == []
    for title in ("J.", "Dr.", "Mrs."):
        assert chunks(f"It fell. I met {title} Smith.", 5, 0) == ["It fell.", f"I met {title} Smith."]
    assert chunks("one two three. Four five. Six.", 3, 0) == ["one two three.", "Four five. Six."]


def test_a_sentence_longer_than_a_piece_is_split_and_nothing_is_empty():
    table = " ".join(f"w{i}" for i in range(25))
    assert chunks(table, 10, 3) == [" ".join(f"w{i}" for i in range(a, a + 10)) for a in (0, 10)] + [" ".join(f"w{i}" for i in range(20, 25))]
    with pytest.raises(ValueError, match="overlap is 10 of 10"):
        chunks(table, 10, 10)


@pytest.mark.parametrize("seed", range(20))
def test_chunks_lose_no_word_and_none_is_too_long(seed):
    draw = random.Random(seed)
    words, overlap = draw.randint(2, 30), 0
    overlap = draw.randrange(words)
    sentences = [" ".join(f"w{draw.randrange(10**9)}" for _ in range(draw.randint(1, 45))).capitalize() + "." for _ in range(draw.randint(0, 40))]
    pieces = [piece.split() for piece in chunks(" ".join(sentences), words, overlap)]
    assert all(0 < len(piece) <= words for piece in pieces)
    told = []
    for piece in pieces:
        shared = next(n for n in range(min(len(piece), len(told)), -1, -1) if told[len(told) - n:] == piece[:n])  # words are distinct
        assert shared <= overlap and shared < len(piece)
        told += piece[shared:]
    assert told == " ".join(sentences).split()


# ---- BM25 -----------------------------------------------------------------------------------------------------------------

def test_bm25_by_hand_on_three_passages():
    """N = 3, words 2, 4, 1, mean 7/3. "cat" is in two: idf = ln(1 + 1.5/2.5) = 0.4700; "birds" in one: ln(1 + 2.5/1.5) = 0.9808.
    cat in the first: 0.4700 * 2.2 / (1 + 1.2 * (.25 + .75 * 6/7)) = 0.4992;
    twice in the second: 0.4700 * 4.4 / (2 + 1.2 * (.25 + .75 * 12/7)) = 0.5381;
    birds in the third: 0.9808 * 2.2 / (1 + 1.2 * (.25 + .75 * 3/7)) = 1.2801."""
    index = BM25([Passage("", "a cat"), Passage("a", "Cat a CAT"), Passage("", "birds")])
    (cats, birds, nothing, both) = index.search(["cat", "Birds? birds!", "fish", "cat birds"], 5)
    assert [row for row, _ in cats] == [1, 0] and [score for _, score in cats] == pytest.approx([0.5381, 0.4992], abs=1e-4)
    assert [row for row, _ in birds] == [2] and birds[0][1] == pytest.approx(1.2801, abs=1e-4)
    assert nothing == [] and [row for row, _ in both] == [2, 1, 0] and index.search(["cat"], 1) == [cats[:1]]
    assert index.search([], 3) == []
    with pytest.raises(UserError, match="no passages"):
        BM25([])


def plain_bm25(texts, query, k1, b):
    """The formula as a loop over passages and words."""
    bags = [Counter(words_of(text)) for text in texts]
    mean, scores = sum(bag.total() for bag in bags) / len(bags), []
    for bag in bags:
        score = 0.0
        for word in dict.fromkeys(words_of(query)):
            n = sum(word in other for other in bags)
            score += math.log(1 + (len(bags) - n + 0.5) / (n + 0.5)) * bag[word] * (k1 + 1) / (bag[word] + k1 * (1 - b + b * bag.total() / mean))
        scores.append(score)
    return scores


def test_bm25_equals_a_plain_loop():
    draw = random.Random(0)
    texts = [" ".join(f"w{int(draw.paretovariate(0.8)) % 60}" for _ in range(draw.randint(1, 40))) for _ in range(80)]
    for k1, b in ((1.2, 0.75), (0.9, 0.0), (2.0, 1.0)):
        index = BM25([Passage("", text) for text in texts], k1, b)
        for query in (" ".join(f"w{draw.randrange(70)}" for _ in range(6)) for _ in range(20)):
            plain = plain_bm25(texts, query, k1, b)
            hits = index.search([query], 10)[0]
            assert [score for _, score in hits] == pytest.approx(sorted(filter(None, plain), reverse=True)[:10], rel=1e-9)
            assert all(score == pytest.approx(plain[row], rel=1e-9) for row, score in hits)


def test_equal_passages_come_in_order():
    index = BM25([Passage("", "a fish")] * 30 + [Passage("", "fish")])
    assert [row for row, _ in index.search(["fish"], 4)[0]] == [30, 0, 1, 2]


# ---- contexts -------------------------------------------------------------------------------------------------------------

LIBRARY = [Article("Google", "Google was founded in 1998. Its founders met at Stanford.", ""), Article("Zebra", "A zebra has stripes.", ""),
           Article("Stanford", "Stanford lies in California.", "")]


def question(text, *answers, context=""):
    return Question(text, text, context, answers, "test", answer_in_context=bool(context))


def test_defect_24_a_gold_answer_that_is_not_in_the_context_is_recorded():
    given = [question("Where is Stanford?", "California"), question("Who founded Google?", "Larry Page"), question("Why?", context="kept as it is"),
             question("xyzzy?", "plugh")]
    found = attach(given, BM25(cut(LIBRARY)), 2, 100)
    assert [q.answer_in_context for q in found] == [True, False, True, False]
    assert found[0].context == "Stanford\nStanford lies in California.\n\nGoogle\nGoogle was founded in 1998. Its founders met at Stanford."
    assert found[2] is given[2] and found[3].context == "" and [q.question for q in found] == [q.question for q in given]
    assert attach([question("Where is Stanford?", "1998")], BM25(cut(LIBRARY)), 1, 100)[0].answer_in_context is False
    assert attach([question("Where is Stanford?", "1998")], BM25(cut(LIBRARY)), 2, 100)[0].answer_in_context is True


def test_the_worst_passage_loses_its_end():
    index, asked = BM25(cut(LIBRARY)), question("Where is Stanford?", "Stanford", "1998")
    assert attach([asked], index, 2, 8)[0].context == "Stanford\nStanford lies in California.\n\nGoogle\nGoogle was"
    assert attach([asked], index, 2, 5)[0].context == "Stanford\nStanford lies in California."
    assert len(attach([asked], index, 2, 3)[0].context.split()) == 3
    short = attach([question("Where is Stanford?", "California")], index, 2, 4)[0]
    assert not short.answer_in_context  # what was cut off is not there
    for k, words in ((0, 5), (1, 0)):
        with pytest.raises(ValueError, match="must be 1 or more"):
            attach([asked], index, k, words)


def test_answers_do_not_steer_the_search():
    index = BM25(cut(LIBRARY))
    assert len({attach([question("Who met?", answer)], index, 1, 50)[0].context for answer in ("stripes", "California", "zebra")}) == 1


def test_embeddings_ask_for_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="pip install sentence-transformers faiss-cpu"):
        Embeddings([Passage("", "a")])


def test_embeddings_rerank_the_nearest(monkeypatch):
    """With stand-ins, because neither package is installed: vectors are letter counts, the reranker prefers short passages."""
    def encode(texts, normalize_embeddings, show_progress_bar):
        rows = np.array([[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], dtype=float)
        assert normalize_embeddings
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    class Flat:
        def __init__(self, size): self.rows = np.zeros((0, size), np.float32)
        def add(self, rows): self.rows = np.concatenate([self.rows, rows])

        def search(self, queries, k):
            scores = queries @ self.rows.T
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            return np.take_along_axis(scores, order, 1), order

    fake = SimpleNamespace(SentenceTransformer=lambda name: SimpleNamespace(encode=encode),
                           CrossEncoder=lambda name: SimpleNamespace(predict=lambda pairs, show_progress_bar: [-len(p) for _, p in pairs]))
    monkeypatch.setitem(sys.modules, "sentence_transformers", fake)
    monkeypatch.setitem(sys.modules, "faiss", SimpleNamespace(IndexFlatIP=Flat))
    passages = [Passage("", text) for text in ("zzz", "abab", "aabb aabb", "ab", "cc")]
    nearest, best = Embeddings(passages, rerank_model=""), Embeddings(passages, candidates=3)
    assert [row for row, _ in nearest.search(["ba"], 2)[0]] == [1, 2] and [row for row, _ in best.search(["ba"], 2)[0]] == [3, 1]
    assert [row for row, _ in Embeddings(passages, candidates=100).search(["ba"], 9)[0]] == [3, 4, 0, 1, 2] and best.search([], 2) == []
    assert attach([question("ba", "ab")], best, 1, 9)[0].context == "ab"


def test_the_same_in_every_process(tmp_path):
    lines(tmp_path / "nq.jsonl", NQ), lines(tmp_path / "wiki" / "w.jsonl", [article._asdict() for article in LIBRARY])
    lines(tmp_path / "own.jsonl", [{"question": f"Where is Stanford {i}?", "answers": ["x", "y"]} for i in range(30)])
    program = """if True:
        import sys
        from studies.curriculum_dpop.retrieval import BM25, attach, cut
        from studies.curriculum_dpop.sources import load_articles, load_questions
        folder = sys.argv[1]
        found, dropped = load_questions(f"{folder}/nq.jsonl,{folder}/own.jsonl", limit=12)
        print(attach(found, BM25(cut(load_articles(f"{folder}/wiki"))), 2, 20), dropped)"""
    told = [subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": seed}, text=True,
                           capture_output=True, check=True).stdout for seed in ("1", "2")]
    assert told[0] == told[1] and told[0].count("Question(") == 12
