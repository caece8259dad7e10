"""A context for questions that come without one: articles are cut into passages, the best passages for a question are joined.

    index = BM25(cut(load_articles("wikipedia.jsonl.gz")))
    questions = attach(questions, index, k=5, max_words=400)

`BM25` matches words and needs nothing but numpy; `Embeddings` matches meaning and needs two extras and two models. Both have `passages` and
`search`. Everything is held in memory: meant for some hundred thousand passages, not for all of Wikipedia.
"""
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from runtime.errors import UserError
from studies.curriculum_dpop.rows import Question
from studies.curriculum_dpop.sources import Article, answer_found

Hit = tuple[int, float]  # number of a passage, its score
# a sentence ends in .!? and closing quotes before a space and a capital, a digit or an opening quote; not after an initial (J. R. R.) or a title
SENTENCE_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')\]]))(?<!\b[A-Z]\.)(?<!\b[MDS][rt]\.)(?<!\bMrs\.)\s+(?=[\"'(\[]?[A-Z0-9])|\n+")
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Passage:
    """A piece of an article. The title is searched and shown with it: few passages name what their article is about."""
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.title}\n{self.text}".strip()


# ---- passages -------------------------------------------------------------------------------------------------------

def chunks(text: str, words: int = 100, overlap: int = 20) -> list[str]:
    """The text in pieces of at most `words` words (100 as in Karpukhin et al. 2020): whole sentences while they fit.

    A piece begins with the sentences that end the one before, as many whole ones as have at most `overlap` words and leave room for a new
    one. A sentence longer than a piece (a flattened table) is split. No piece is empty, and none is contained in the one before it.
    """
    if not 0 <= overlap < words:
        raise ValueError(f"overlap is {overlap} of {words} words; it must be 0 or more, and fewer than a piece has")
    pieces: list[str] = []
    held: list[list[str]] = []  # sentences of the piece being filled, as words
    for sentence in SENTENCE_END.split(text):
        tokens = sentence.split()
        for part in (tokens[i:i + words] for i in range(0, len(tokens), words)):
            if held and sum(map(len, held)) + len(part) > words:
                pieces.append(" ".join(word for kept in held for word in kept))
                room = min(overlap, words - len(part))
                while sum(map(len, held)) > room:
                    held.pop(0)
            held.append(part)
    if held:
        pieces.append(" ".join(word for kept in held for word in kept))
    return pieces


def cut(articles: Iterable[Article], words: int = 100, overlap: int = 20) -> list[Passage]:
    """All passages of all articles, in order."""
    return [Passage(article.title, piece) for article in articles for piece in chunks(article.text, words, overlap)]


# ---- search ---------------------------------------------------------------------------------------------------------

class BM25:
    """Okapi BM25 over passages (Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond", §3).

        score(q, d) = sum over the words t of q of  idf(t) * tf * (k1 + 1) / (tf + k1 * (1 - b + b * words(d) / mean words))

    tf: how often t stands in d; idf(t) = ln(1 + (N - n + 0.5) / (n + 0.5)) with t in n of N passages (the 1 keeps the weight of a word
    in more than half of them positive). k1: how soon repeating a word stops counting; b: how much long passages pay for their length.
    A word that a question repeats counts once. The scores of all (word, passage) pairs are computed here, so that a search only adds.
    """

    def __init__(self, passages: list[Passage], k1: float = 1.2, b: float = 0.75):
        if not passages:
            raise UserError("There are no passages to search: the corpus holds no article with text.")
        self.passages = passages
        self.vocabulary: dict[str, int] = {}
        ids = [np.array([self.vocabulary.setdefault(word, len(self.vocabulary)) for word in words_of(str(passage))], dtype=np.int64)
               for passage in passages]
        length, n = np.array([len(row) for row in ids]), len(passages)
        pairs, tf = np.unique(np.concatenate(ids) * n + np.repeat(np.arange(n), length), return_counts=True)  # sorted: by word, then passage
        word, self.rows = pairs // n, pairs % n
        self.starts = np.searchsorted(word, np.arange(len(self.vocabulary) + 1))  # word w is in rows[starts[w]:starts[w + 1]]
        found_in = np.diff(self.starts)
        idf = np.log1p((n - found_in + 0.5) / (found_in + 0.5))
        slowing = k1 * (1 - b + b * length / max(length.mean(), 1))
        self.scores = idf[word] * tf * (k1 + 1) / (tf + slowing[self.rows])

    def search(self, queries: list[str], k: int) -> list[list[Hit]]:
        """For each query its k best passages, best first, equal ones in order; fewer where fewer share a word with it."""
        return [self._search(query, k) for query in queries]

    def _search(self, query: str, k: int) -> list[Hit]:
        scores = np.zeros(len(self.passages))
        for word in dict.fromkeys(words_of(query)):
            if (number := self.vocabulary.get(word)) is not None:
                span = slice(self.starts[number], self.starts[number + 1])
                scores[self.rows[span]] += self.scores[span]  # a passage stands once in a word's rows
        k = min(k, np.count_nonzero(scores))
        if not k:
            return []
        rows = np.flatnonzero(scores >= np.partition(scores, -k)[-k])  # all that tie with the k-th best: the order decides, not the partition
        return [(int(i), float(scores[i])) for i in rows[np.argsort(-scores[rows], kind="stable")][:k]]


def words_of(text: str) -> list[str]:
    """The words BM25 counts: runs of letters and digits, without case. "don't" is two, "Beyoncé" and "Beyonce" differ."""
    return WORD.findall(text.casefold())


class Embeddings:
    """Passages by meaning: the nearest by cosine of sentence embeddings (FAISS, exact), the best of these by a cross-encoder.

    Models are names on the Hub or folders; rerank_model = "" leaves the second step out. `candidates`: how many the first step hands on.
    The embedding model reads a passage's first 512 word pieces, so passages should be far shorter. UserError when an extra is missing.
    """

    def __init__(self, passages: list[Passage], model: str = "sentence-transformers/multi-qa-MiniLM-L6-cos-v1",
                 rerank_model: str = "cross-encoder/ms-marco-MiniLM-L6-v2", candidates: int = 100):
        try:
            import faiss
            from sentence_transformers import CrossEncoder, SentenceTransformer
        except ImportError:
            raise UserError("Retrieval by embeddings needs two more packages: pip install sentence-transformers faiss-cpu") from None
        self.passages, self.candidates = passages, candidates
        self.model = SentenceTransformer(model)
        self.reranker = CrossEncoder(rerank_model) if rerank_model else None
        vectors = self._embed([str(passage) for passage in passages])
        self.index = faiss.IndexFlatIP(vectors.shape[1])
        self.index.add(vectors)

    def _embed(self, texts: list[str]) -> np.ndarray:
        """[texts, dimensions], float32, of length one: their inner product is the cosine."""
        return np.asarray(self.model.encode(texts, normalize_embeddings=True, show_progress_bar=False), dtype=np.float32)

    def search(self, queries: list[str], k: int) -> list[list[Hit]]:
        """For each query its k best passages, best first: as `BM25.search`."""
        if not queries:
            return []
        near = min(max(k, self.candidates) if self.reranker else k, len(self.passages))
        hits = [list(zip(map(int, rows), map(float, scores))) for scores, rows in zip(*self.index.search(self._embed(queries), near))]
        if self.reranker:
            for i, (query, found) in enumerate(zip(queries, hits)):
                scores = self.reranker.predict([(query, str(self.passages[row])) for row, _ in found], show_progress_bar=False)
                hits[i] = sorted(((row, float(score)) for (row, _), score in zip(found, scores)), key=lambda hit: (-hit[1], hit[0]))
        return [found[:k] for found in hits]


# ---- questions ------------------------------------------------------------------------------------------------------

def attach(questions: list[Question], index: BM25 | Embeddings, k: int, max_words: int) -> list[Question]:
    """The questions, each without a context given its k best passages, and whether a gold answer stands in what it was given.

    Passages are joined by blank lines, best first, and cut after `max_words` words: the worst loses its end. A question of which the corpus
    has no word keeps its empty context. Only the question is searched for, never its answers. Questions with a context stay as they are.
    """
    if k < 1 or max_words < 1:
        raise ValueError(f"k is {k} and max_words {max_words}; both must be 1 or more")
    found = iter(index.search([question.question for question in questions if not question.context], k))
    attached = []
    for question in questions:
        if not question.context:
            context = first_words("\n\n".join(str(index.passages[row]) for row, _ in next(found)), max_words)
            question = replace(question, context=context, answer_in_context=answer_found(context, question.answers))
        attached.append(question)
    return attached


def first_words(text: str, n: int) -> str:
    """The text up to the end of its n-th word, line breaks kept."""
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    return text[:ends[n - 1]] if len(ends) > n else text
