"""Assignment 1: byte-pair encoding, and which tokens of a dialogue carry the loss. The handout is course/a1/handout.md.

An id is an int: 0 .. 255 are the bytes themselves, 256 and up the merges in the order of learning, and the last one is end-of-text. It starts every
row, ends every reply and fills what is left of a short row. Only torch and Python's standard library may be imported.
"""
import re

import torch
from torch import Tensor

# GPT-2's chunk pattern, for plain English: no token crosses the border of a chunk. "Come here!" is cut into "Come", " here", "!".
CHUNKS = re.compile(r"""'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]++| ?\d++| ?(?:[^\s\w]|_)++|\s++$|\s+(?!\S)|\s""")

# One paragraph each, before and after you run `python -m course.train a1 my_a1.py`; the questions are in the handout.
# "before": with fewer merges, what becomes of the loss per token, and of the loss per byte?
# "after": where were you wrong, and which of the two figures may be compared?
WRITTEN = {"before": "", "after": ""}
# Numbers you expect; `course.train` prints them next to what it measures. None stands for no prediction.
# Before the first step each loss is the log of the number of ids: 6.93 and 5.95. Which is lower after 60?
# A reply of the toy corpus is two or three short sentences, and so is its prompt. Is a token nearer to two bytes or to five?
PREDICTION = {"1,024 ids: bytes per token": None, "1,024 ids: tokens scored, %": None, "1,024 ids: loss, nats per token": None, "384 ids: loss, nats per token": None}


# ---- byte-pair encoding ---------------------------------------------------------------------------------------------

def pair_counts(words: list[list[int]], counts: list[int]) -> dict[tuple[int, int], int]:
    """How often each pair of neighbours stands in the text: {(left id, right id): times}.

    words: the ids of each distinct chunk; counts: how often that chunk occurs. The three letters aaa hold the pair (a, a) twice.
    """
    # zip(word, word[1:]) gives a word's neighbours.
    # A word that occurs five times in the text has each of its pairs five times.
    # A pair that nobody has met yet has count 0: dict.get, or collections.Counter.
    raise NotImplementedError("pair_counts is not written yet; for a nudge: python -m course.grade a1 --only pair_counts --hint 1")


def merge_pair(word: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    """A new list: `word` with every occurrence of `pair`, from left to right, replaced by `new_id`. `word` stays as it is."""
    # A for loop over the ids cannot skip one; a while loop with an index can.
    # After a merge, where does the search go on? An id belongs to one merge at most.
    # Mind the last id: it has no right neighbour.
    raise NotImplementedError("merge_pair is not written yet; for a nudge: python -m course.grade a1 --only merge_pair --hint 1")


def learn_merges(words: list[list[int]], counts: list[int], number: int) -> list[tuple[int, int]]:
    """The first `number` merges, in the order of learning; fewer when no neighbours are left. Merge m makes id 256 + m. Sennrich et al. 2016, algorithm 1.

    words, counts: as in pair_counts, the words in bytes. Of equally frequent pairs the one with the smaller ids wins: (98, 120) before (99, 97).
    """
    # Again and again: count, take the most frequent pair, glue it in all words.
    # A dict gives its keys in the order of their arrival, so max() over it lets the text's order decide a tie.
    # Counting anew after every merge is slow and right; the project keeps its counts up to date instead.
    raise NotImplementedError("learn_merges is not written yet; for a nudge: python -m course.grade a1 --only learn_merges --hint 1")


def encode_chunk(chunk: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Ids of one chunk: glue the two neighbours whose merge was learned first, the leftmost of them, until no neighbours make a known token.

    ranks: bytes of a token -> its id. All 256 single bytes are in it; the lower the id, the earlier it was learned.
    """
    # Begin with single bytes. Of all neighbours that could be glued, one pair is: which?
    # Then look at all neighbours again: the new token has made new ones.
    # [bytes([b]) for b in chunk] cuts bytes into single ones; iterating over bytes gives ints.
    raise NotImplementedError("encode_chunk is not written yet; for a nudge: python -m course.grade a1 --only encode_chunk --hint 1")


def encode(text: str, ranks: dict[bytes, int]) -> list[int]:
    """Ids of a text, chunk by chunk, through your encode_chunk. It is written already."""
    return [i for chunk in CHUNKS.findall(text) for i in encode_chunk(chunk.encode(), ranks)]


# ---- dialogues ------------------------------------------------------------------------------------------------------

def dialogue_ids(prompt: str, reply: str, ranks: dict[bytes, int], eot_id: int) -> tuple[list[int], list[int]]:
    """(prompt ids, reply ids) of a dialogue. The prompt's begin with the start token, the reply's end in end-of-text; both are eot_id.

    Joined they are one row. Both texts are taken as they are: a space in front of the reply is in it already. The prompt's ids do not depend on the reply.
    """
    # `encode` above makes ids of a text, and never gives eot_id.
    # Two replies to one prompt must begin behind the very same ids. Can a token hold the prompt's end and the reply's beginning?
    # The two parts are joined later: how many start tokens may the whole row have?
    raise NotImplementedError("dialogue_ids is not written yet; for a nudge: python -m course.grade a1 --only dialogue_ids --hint 1")


def fit(prompt: list[int], chosen: list[int], rejected: list[int], block: int, least: int) -> tuple[list[int], list[int], list[int]] | None:
    """(prompt, chosen, rejected) such that the prompt followed by either reply has at most `block` ids, or None where that cannot be.

    Replies stay whole. The prompt loses ids from the left, but keeps its first, the start token; with fewer than `least` (1 or more) ids left, the
    start token counted, the pair is dropped: None.
    """
    # The two replies do not stand behind each other here: each follows the prompt. Which of them decides?
    # What was said last matters most to the reply, so the oldest ids go, except the first.
    # x[-n:] with n = 0 is the whole list, not an empty one.
    raise NotImplementedError("fit is not written yet; for a nudge: python -m course.grade a1 --only fit --hint 1")


def scored_positions(prompt: int, chosen: int, rejected: int) -> tuple[Tensor, Tensor, Tensor]:
    """(predict_at, target_at, owner), each int64 [chosen + rejected], of one row `prompt | chosen | rejected` with these lengths; rejected may be 0.

    For every reply token, chosen first, each reply from left to right: the position in the row that it is predicted from, its own position, and its
    reply (0 chosen, 1 rejected). The rejected reply cannot see the chosen one: to it, the row is `prompt | rejected`.
    """
    # torch.arange(a, b) gives a, a + 1, ..., b - 1. The replies lie behind the prompt, without a gap.
    # A token is predicted from the one in front of it ...
    # ... in its own dialogue. Which token stands in front of the first rejected one there?
    raise NotImplementedError("scored_positions is not written yet; for a nudge: python -m course.grade a1 --only scored_positions --hint 1")


def pad_rows(prompts: list[list[int]], replies: list[list[int]], eot_id: int) -> tuple[Tensor, Tensor]:
    """(ids [B, T] int64, scored [B, T] bool): row b is prompts[b] + replies[b], filled on the right with eot_id up to T, the longest row's length.

    scored marks the tokens that carry the loss: all of the reply, its end-of-text included; nothing of the prompt, and no padding.
    """
    # Begin with ids full of eot_id and with scored all False; torch.full takes a shape and a value.
    # The padding has the same id as the reply's end. What tells them apart?
    # You know every length.
    raise NotImplementedError("pad_rows is not written yet; for a nudge: python -m course.grade a1 --only pad_rows --hint 1")
