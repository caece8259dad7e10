"""Questions with their gold answers, and articles to look answers up in, from the files in which they are published.

A row of a source, local or from the Hub, has one of these layouts:

    data [{title, paragraphs [{context, qas}]}]                    SQuAD's own JSON (Rajpurkar et al. 2016, 2018)
    id, title, context, question, answers {text, answer_start}     SQuAD on the Hub; in a .csv, `answers` is a Python repr
    question_text, document_tokens or document_text, annotations   Natural Questions, full or simplified (Kwiatkowski et al. 2019)
    question {text}, document {title, url, tokens}, annotations    Natural Questions on the Hub
    question, answer                                               NQ-open (Lee et al. 2019)
    question, answers [, context, id, title, source]               anything else; `answers` is a list of texts

Two rules hold for all of them. A row that cannot be read is an error that names its line: it never becomes an unanswerable question.
And a question is unanswerable only where its own context is known to lack the answer; without context and answer it is dropped.
"""
import ast
import html
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from data.sources import Part, hash_share, kind_of, list_files, load_hub, parse_object, place, read_lines, read_table, text_key, tidy
from eval.qa_metrics import contains
from runtime.errors import UserError
from studies.curriculum_dpop.rows import Question, row_id

KINDS = (".jsonl", ".json", ".parquet", ".csv")
NO_QUESTION, BLANK = "no question", "answers without text"
NO_ANSWER, LONG_ONLY = "no answer, and no context known to lack it", "only a long answer"
BOTH = "annotators say both yes and no"
DUPLICATE, SAME_ID, OVER = "question seen before", "id seen before", "over the limit"
WORD = re.compile(r"\w+")
QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)  # a text in Python's notation
YES_NO = {"YES": "yes", "NO": "no", 1: "yes", 0: "no"}  # the Hub's copy holds class numbers, -1 for none


class Article(NamedTuple):
    """A text to retrieve from."""
    title: str
    text: str
    url: str


# ---- the whole ------------------------------------------------------------------------------------------------------

def load_questions(source: str, limit: int = 0, split: str = "") -> tuple[list[Question], Counter]:
    """The questions of a source, and how many were dropped for which reason.

    source: comma-separated files and folders, or hub:OWNER/NAME[:CONFIG]. split: "train", "val" or "test" (as the names of the files say);
    "" reads all but test. Unanswerable questions are kept. Of a question that comes twice (equal but for case and spacing, and from the same
    `Question.source`: squad_v2, nq, nq_open, or what the row or its file is called) the first is kept. limit > 0 keeps a sample spread over
    the whole source, the same for the same ids, in the source's order: published files are sorted by article, so that their first thousand
    questions are about a few subjects. UserError naming the line for a bad row.
    """
    questions, counts, seen = [], Counter(), set()
    for part in parts_of(source, KINDS, split):
        for number, row in _rows(part):
            for found in _guarded(part, number, lambda: parse_row(row, part.subset)):
                if isinstance(found, str):
                    counts[found] += 1
                    continue
                key = (found.source, text_key(found.question), text_key(found.context))
                if key in seen or found.id in seen:
                    counts[DUPLICATE if key in seen else SAME_ID] += 1
                    continue
                seen |= {key, found.id}
                questions.append(found)
    if limit and len(questions) > limit:
        counts[OVER] = len(questions) - limit
        kept = {q.id for q in sorted(questions, key=lambda q: hash_share(text_key(q.id), 0))[:limit]}
        questions = [q for q in questions if q.id in kept]
    return questions, counts


def load_articles(source: str, counts: Counter | None = None) -> Iterator[Article]:
    """The articles of a source as (title, text, url): Natural Questions files, or rows {text [, title, url]}.

    The first of several articles with a title is kept (of those without one: with a text). What is left out is added to `counts`.
    """
    seen, counts = set(), Counter() if counts is None else counts
    for part in parts_of(source, KINDS[:3], ""):
        for number, row in _rows(part):
            article = _guarded(part, number, lambda: _article(row))
            key = text_key(article.title or article.text)
            if not article.text or key in seen:
                counts["article seen before" if article.text else "article without text"] += 1
                continue
            seen.add(key)
            yield article


def parts_of(source: str, kinds: tuple[str, ...], split: str) -> list[Part]:
    """The files or Hub splits of a source that belong to a split ("": all but test). UserError when there are none."""
    if source.startswith("hub:"):
        parts = load_hub(source.removeprefix("hub:"), [], "the source")
    else:
        parts = list_files(source, kinds, "a source is files, folders or hub:OWNER/NAME")
    kept = [part for part in parts if (part.split == split if split else part.split != "test")]
    if not kept:
        lack = f"no file or split for {split}" if split else "nothing but test data, which is left to the evaluation"
        raise UserError(f"In the source '{source}' there is {lack}.")
    return kept


def answer_found(context: str, answers: tuple[str, ...]) -> bool:
    """True when an answer stands in the context as whole words, punctuation read as space or deleted (SQuAD's normalisation).

    Read as space: in "Rollo's arrival" and "(1249–1314)" normalisation glues the answer to its neighbour. A short answer may stand there by
    chance, without being supported; of "yes" and "no" that is all a match would say, and they are never found.
    """
    def spaced(text: str) -> str:
        return f" {' '.join(WORD.findall(text.lower()))} "

    texts = [answer for answer in answers if answer.lower() not in YES_NO.values()]
    return bool(texts and context) and (any(spaced(text) in spaced(context) for text in texts) or contains(context, texts) == 1.0)


# ---- rows -----------------------------------------------------------------------------------------------------------

def _rows(part: Part) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, row) of a part, as objects. A .json file may also be one object, over many lines."""
    kind = kind_of(part.path) if part.path else ""
    if kind == ".json" and (whole := _one_object(part.path)):
        yield 1, whole
        return
    for number, raw in read_table(part):
        yield number, _guarded(part, number, lambda: _cells(parse_object(raw)) if kind == ".csv" else parse_object(raw))


def _one_object(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(b"".join(read_lines(path)))
    except ValueError:
        return None  # lines of objects, or broken: `read_table` says where
    return found if isinstance(found, dict) else None


def _guarded(part: Part, number: int, parse: Any) -> Any:
    """What `parse` returns; a row that it cannot read becomes one sentence."""
    try:
        return parse()
    except ValueError as e:
        raise UserError(f"{place(part, number)}: {e}.") from None
    except (KeyError, TypeError, AttributeError, IndexError) as e:  # nested objects of another shape than the layout says
        raise UserError(f"{place(part, number)}: the row looks like a known layout and is none ({type(e).__name__}: {e}).") from None


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    if None in row:
        raise ValueError("more cells than the first line has columns")
    return row | {name: parse_cell(row[name]) for name in ("answers", "answer") if row.get(name) is not None}


class _NoWrappers(ast.NodeTransformer):
    def visit_Call(self, node: ast.Call) -> ast.AST:
        """numpy's array([...], dtype=...) becomes its list; any other call stays, and is refused."""
        self.generic_visit(node)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        return node.args[0] if name == "array" and len(node.args) == 1 else node


def parse_cell(cell: str) -> Any:
    """The value of a .csv cell that holds a Python repr, numpy's array(...) wrappers taken off. Raises ValueError for anything else.

    The published system cut the wrappers with a regular expression that ended at the first ")", so that every answer with a bracket was
    lost and its question called unanswerable. Python's own parser knows where a string ends. Texts without a comma between them (how numpy
    prints, rather than writes, an array) would be joined by it into one answer: they are refused.
    """
    try:
        value = ast.literal_eval(_NoWrappers().visit(ast.parse(cell.strip(), mode="eval")))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise ValueError(f"the answers are no Python literal: {cell[:60]!r}") from None
    if re.search("\0\\s*\0", QUOTED.sub("\0", cell)):
        raise ValueError(f"there is no comma between the answers: {cell[:60]!r}")
    return value


def parse_row(row: dict[str, Any], name: str) -> list[Question | str]:
    """The questions of a row of any layout, and in place of a question that cannot be used the reason. `name`: the source, if the row says none."""
    if "annotations" in row:
        return [_natural_question(row)]
    if "data" in row:
        return _squad(row["data"])
    squad, nq_open = isinstance(row.get("answers"), dict), "answers" not in row and "answer" in row
    return [_plain_question(row, "squad_v2" if squad else "nq_open" if nq_open else name)]


def _squad(articles: list[dict[str, Any]]) -> list[Question | str]:
    """SQuAD's own nesting. The whole file is one row, so a bad question is named by its id."""
    found = []
    for title, paragraph in ((article.get("title"), paragraph) for article in articles for paragraph in article["paragraphs"]):
        for qa in paragraph["qas"]:
            try:
                found.append(_plain_question(qa | {"title": title, "context": paragraph["context"]}, "squad_v2"))
            except ValueError as e:
                raise ValueError(f"question {qa.get('id')}: {e}") from None
    return found


def _plain_question(row: dict[str, Any], name: str) -> Question | str:
    """A question that comes with its answers as texts. SQuAD v2 marks unanswerable ones; where a file also says so, both must agree."""
    given = _texts(row.get("answers", row.get("answer")))
    if isinstance(row.get("is_impossible"), bool) and row["is_impossible"] != (not given):
        raise ValueError(f'"is_impossible" is {row["is_impossible"]}, with {len(given)} answers')
    source, title = _text(row, "source", "") or name, _text(row, "title", "")
    return _question(row.get("id"), _text(row, "question"), _text(row, "context", ""), given, source, title)


def _texts(answers: Any) -> list[str]:
    """All answers as given: a text, a list of texts or of {"text"}, or {"text": [...]}."""
    if isinstance(answers, dict):
        answers = answers.get("text")
    found = [answers] if isinstance(answers, str) else answers
    if isinstance(found, list):
        found = [item.get("text") if isinstance(item, dict) else item for item in found]
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ValueError('"answers" is missing, or holds no texts')
    return found


def _text(row: dict[str, Any], name: str, default: str | None = None) -> str:
    value = default if row.get(name) is None else row[name]
    if not isinstance(value, str):
        raise ValueError(f'"{name}" is missing, or is no text')
    return value


def _question(given_id: Any, question: str, context: str, given: list[str], source: str, title: str) -> Question | str:
    """Clean texts -> a question, or why it is dropped. Ids are the source's own, or depend on the texts alone."""
    question, context = " ".join(tidy(question).split()), tidy(context).strip()
    answers = distinct(given)
    if not question:
        return NO_QUESTION
    if given and not answers:
        return BLANK
    if not answers and not context:
        return NO_ANSWER
    own_id = str(given_id) if isinstance(given_id, (str, int)) and str(given_id) else row_id(source, question, context)
    return Question(own_id, question, context, answers, source, title.replace("_", " ").strip(), answer_found(context, answers))


def distinct(texts: Iterable[str]) -> tuple[str, ...]:
    """The texts without blanks, and without repetitions up to case and spacing: the most often given first, else in order."""
    spelling, votes = {}, Counter()
    for text in filter(None, (" ".join(tidy(text).split()) for text in texts)):
        spelling.setdefault(text_key(text), text)
        votes[text_key(text)] += 1
    return tuple(spelling[key] for key, _ in votes.most_common())


# ---- Natural Questions ----------------------------------------------------------------------------------------------

def _natural_question(row: dict[str, Any]) -> Question | str:
    """A question of Natural Questions. Its answers are the short answers of all annotators, and "yes" or "no".

    A long answer is a paragraph or table that holds the answer, not an answer. Where no annotator found one the page lacks it, but the
    context that retrieval will find is another text: such a question cannot be called unanswerable. Several spans of one annotator can be
    the parts of a list; as in NQ-open each counts as an answer. No context is given: it is what retrieval finds.
    """
    annotations = _records(row["annotations"])
    said = [YES_NO[a["yes_no_answer"]] for a in annotations if a.get("yes_no_answer") in YES_NO]
    if said and said.count("yes") == said.count("no"):
        return BOTH
    given = [max(said, key=said.count)] * len(said) if said else []
    spans = [span for a in annotations for span in _records(a["short_answers"])]
    tokens = _tokens(row) if spans else []  # a page has ten thousand, and most questions no span
    for span in spans:
        if not 0 <= span["start_token"] < span["end_token"] <= len(tokens):
            raise ValueError(f"a short answer is tokens {span['start_token']} to {span['end_token']} of {len(tokens)}")
        given.append(detokenise(word for word, tag in tokens[span["start_token"]:span["end_token"]] if not tag))
    if not given and any(a["long_answer"]["start_token"] >= 0 for a in annotations):
        return LONG_ONLY
    asked = row["question"]["text"] if "question" in row else row["question_text"]
    return _question(row.get("example_id", row.get("id")), asked, "", given, "nq", _title_and_url(row)[0])


def _records(table: list | dict[str, list]) -> list[dict[str, Any]]:
    """A list of objects as it is; the Hub stores one as an object of lists."""
    return table if isinstance(table, list) else [dict(zip(table, cells)) for cells in zip(*table.values(), strict=True)]


def _tokens(row: dict[str, Any]) -> list[tuple[str, bool]]:
    """(token, is an HTML tag) of the page. The simplified layout is a text to be split at single spaces, its tags without spaces."""
    if "document_text" in row:
        return [(word, word.startswith("<") and bool(re.fullmatch(r"</?[A-Za-z][^>]*>", word))) for word in row["document_text"].split(" ")]
    if "document" in row:
        tokens = row["document"]["tokens"]
        if isinstance(tokens, dict):
            return list(zip(tokens["token"], tokens["is_html"], strict=True))
        return [(token["token"], token["is_html"]) for token in tokens]
    return [(token["token"], token["html_token"]) for token in row["document_tokens"]]


def _title_and_url(row: dict[str, Any]) -> tuple[str, str]:
    """The page's title and address; the simplified layout has the title in the address only."""
    page = row.get("document") or {}
    url = html.unescape(row.get("document_url") or page.get("url") or "")
    title = row.get("document_title") or page.get("title")
    if not title:
        address = urlsplit(url)
        title = next(iter(parse_qs(address.query).get("title", [])), unquote(address.path.rsplit("/", 1)[-1]))
    return title.replace("_", " "), url


def _article(row: dict[str, Any]) -> Article:
    """One article; of a page of Natural Questions, the text between the tags."""
    if row.keys() & {"document_text", "document_tokens", "document"}:
        title, url = _title_and_url(row)
        return Article(title, page_text(_tokens(row)), url)
    return Article(_text(row, "title", "").strip(), tidy(_text(row, "text")).strip(), _text(row, "url", ""))


def page_text(tokens: Iterable[tuple[str, bool]]) -> str:
    """The text of a page, a line for each paragraph, heading, list item and table row (cells stay on their row's line)."""
    lines: list[list[str]] = [[]]
    for word, tag in tokens:
        if not tag:
            lines[-1].append(word)
        elif not re.match(r"</?t[dh]", word, re.IGNORECASE) and lines[-1]:
            lines.append([])
    return "\n".join(filter(None, map(detokenise, lines)))


SPACING = [  # tokens of Natural Questions -> running text; each line one habit of its tokeniser
    (re.compile(r"(?:^|(?<= ))`` ?"), '"'),                                   # `` opening quotes
    (re.compile(r"(?:^| )''(?= |$)"), '"'),                                   # closing quotes ''
    (re.compile(r"(?<=\w) - (?=\w)"), "-"),                                   # third - party
    (re.compile(r"(?<=\d) : (?=\d)"), ":"),                                   # 19 : 06
    (re.compile(r"(?<=s) '(?= )"), "'"),                                      # the merchants ' goods
    (re.compile(r" (?=(?:[,.;:?!)\]}%]+|'(?:s|t|ll|re|ve|d|m)|n't)\"?(?: |$))", re.IGNORECASE), ""),  # word , word . it 's do n't
    (re.compile(r"(?:^|(?<=[ \"(]))([(\[{$£€]) "), r"\1"),                    # ( word  $ 5
]


def detokenise(tokens: Iterable[str]) -> str:
    """Tokens as running text: no space before a comma or within brackets and quotes."""
    text = " ".join(filter(None, tokens))
    for pattern, plain in SPACING:
        text = pattern.sub(plain, text)
    return text.strip()
