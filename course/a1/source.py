"""Assignment 1: byte-pair encoding, and which tokens of a dialogue carry the loss. The handout is course/a1/handout.md.

An id is an int: 0 .. 255 are the bytes themselves, 256 and up the merges in the order of learning, and the last one is end-of-text. It starts every
row, ends every reply and fills what is left of a short row. Only torch and Python's standard library may be imported.
"""
import re

import torch
from torch import Tensor

# GPT-2's chunk pattern, for plain English: no token crosses the border of a chunk. "Come here!" is cut into "Come", " here", "!".
CHUNKS = re.compile(r"""'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]++| ?\d++| ?(?:[^\s\w]|_)++|\s++$|\s+(?!\S)|\s""")

# blank: One paragraph each, before and after you run `python -m course.train a1 my_a1.py`; the questions are in the handout.
# "before": with fewer merges, what becomes of the loss per token, and of the loss per byte?
# "after": where were you wrong, and which of the two figures may be compared?
#= WRITTEN = {"before": "", "after": ""}
WRITTEN = {
    "before": "Untrained, a model gives every id the same probability and loses the log of their number per token, a little less with 384 ids. A token then "
              "holds fewer bytes, so I expect a lower loss per token with 384 ids, and a higher one per byte.",
    "after": "Per byte I was right: the 384 ids lose about twice as much. Per token I was wrong, for they began lower and ended higher: in 60 steps the model has to "
             "learn to spell what the merges know already. Only nats per byte may be compared, since a token is not the same thing in both. With 384 ids a dialogue "
             "takes nearly twice the tokens, so in the same block some prompts had to be shortened.",
}
# end
# blank: Numbers you expect; `course.train` prints them next to what it measures. None stands for no prediction.
# Before the first step each loss is the log of the number of ids: 6.93 and 5.95. Which is lower after 60?
# A reply of the toy corpus is two or three short sentences, and so is its prompt. Is a token nearer to two bytes or to five?
#= PREDICTION = {"1,024 ids: bytes per token": None, "1,024 ids: tokens scored, %": None, "1,024 ids: loss, nats per token": None, "384 ids: loss, nats per token": None}
PREDICTION = {"1,024 ids: bytes per token": 4.0, "1,024 ids: tokens scored, %": 50.0, "1,024 ids: loss, nats per token": 3.0, "384 ids: loss, nats per token": 2.5}
# end


# ---- byte-pair encoding ---------------------------------------------------------------------------------------------

def pair_counts(words: list[list[int]], counts: list[int]) -> dict[tuple[int, int], int]:
    """How often each pair of neighbours stands in the text: {(left id, right id): times}.

    words: the ids of each distinct chunk; counts: how often that chunk occurs. The three letters aaa hold the pair (a, a) twice.
    """
    # blank: zip(word, word[1:]) gives a word's neighbours.
    # A word that occurs five times in the text has each of its pairs five times.
    # A pair that nobody has met yet has count 0: dict.get, or collections.Counter.
    #: Walk through words and counts together, and through the neighbours inside each word.
    #: Every occurrence of a pair in a word adds that word's count, not 1.
    #: for word, count in zip(words, counts): for pair in zip(word, word[1:]): total[pair] = total.get(pair, 0) + count
    total: dict[tuple[int, int], int] = {}
    for word, count in zip(words, counts):
        for pair in zip(word, word[1:]):
            total[pair] = total.get(pair, 0) + count
    return total
    # end


def merge_pair(word: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    """A new list: `word` with every occurrence of `pair`, from left to right, replaced by `new_id`. `word` stays as it is."""
    # blank: A for loop over the ids cannot skip one; a while loop with an index can.
    # After a merge, where does the search go on? An id belongs to one merge at most.
    # Mind the last id: it has no right neighbour.
    #: Keep an index i and a list of what is done. Look at word[i] and word[i + 1]; move on by two after a merge, by one otherwise.
    #: tuple(word[i:i + 2]) is the pair at i; at the last id it is shorter and equals no pair.
    #: while i < len(word): found = tuple(word[i:i + 2]) == pair; merged.append(new_id if found else word[i]); i += 2 if found else 1
    merged, i = [], 0
    while i < len(word):
        found = tuple(word[i:i + 2]) == pair
        merged.append(new_id if found else word[i])
        i += 2 if found else 1
    return merged
    # end


def learn_merges(words: list[list[int]], counts: list[int], number: int) -> list[tuple[int, int]]:
    """The first `number` merges, in the order of learning; fewer when no neighbours are left. Merge m makes id 256 + m. Sennrich et al. 2016, algorithm 1.

    words, counts: as in pair_counts, the words in bytes. Of equally frequent pairs the one with the smaller ids wins: (98, 120) before (99, 97).
    """
    # blank: Again and again: count, take the most frequent pair, glue it in all words.
    # A dict gives its keys in the order of their arrival, so max() over it lets the text's order decide a tie.
    # Counting anew after every merge is slow and right; the project keeps its counts up to date instead.
    #: Use pair_counts and merge_pair. The loop ends after `number` merges, or when pair_counts finds nothing.
    #: Smallest of (-count, pair): Python compares tuples from the left, so the highest count wins, and among equal counts the smaller ids.
    #: best = min(total, key=lambda pair: (-total[pair], pair)); words = [merge_pair(word, best, 256 + len(merges)) for word in words]
    merges: list[tuple[int, int]] = []
    while len(merges) < number and (total := pair_counts(words, counts)):
        best = min(total, key=lambda pair: (-total[pair], pair))
        words = [merge_pair(word, best, 256 + len(merges)) for word in words]
        merges.append(best)
    return merges
    # end


def encode_chunk(chunk: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Ids of one chunk: glue the two neighbours whose merge was learned first, the leftmost of them, until no neighbours make a known token.

    ranks: bytes of a token -> its id. All 256 single bytes are in it; the lower the id, the earlier it was learned.
    """
    # blank: Begin with single bytes. Of all neighbours that could be glued, one pair is: which?
    # Then look at all neighbours again: the new token has made new ones.
    # [bytes([b]) for b in chunk] cuts bytes into single ones; iterating over bytes gives ints.
    #: The id of the glued bytes says when their merge was learned, wherever in the chunk they stand. Neither the left end nor the length of a token decides.
    #: For every i, is parts[i] + parts[i + 1] in ranks? Take the smallest (its id, i), replace the two parts by one, and begin again.
    #: found = [(ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in ranks]; i = min(found)[1]; parts[i:i + 2] = [parts[i] + parts[i + 1]]
    parts = [bytes([byte]) for byte in chunk]
    while found := [(ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in ranks]:
        i = min(found)[1]
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[part] for part in parts]
    # end


def encode(text: str, ranks: dict[bytes, int]) -> list[int]:
    """Ids of a text, chunk by chunk, through your encode_chunk. It is written already."""
    return [i for chunk in CHUNKS.findall(text) for i in encode_chunk(chunk.encode(), ranks)]


# ---- dialogues ------------------------------------------------------------------------------------------------------

def dialogue_ids(prompt: str, reply: str, ranks: dict[bytes, int], eot_id: int) -> tuple[list[int], list[int]]:
    """(prompt ids, reply ids) of a dialogue. The prompt's begin with the start token, the reply's end in end-of-text; both are eot_id.

    Joined they are one row. Both texts are taken as they are: a space in front of the reply is in it already. The prompt's ids do not depend on the reply.
    """
    # blank: `encode` above makes ids of a text, and never gives eot_id.
    # Two replies to one prompt must begin behind the very same ids. Can a token hold the prompt's end and the reply's beginning?
    # The two parts are joined later: how many start tokens may the whole row have?
    #: Encode the two texts apart, each once.
    #: A start token in front of the prompt, an end-of-text behind the reply, nothing in between.
    #: [eot_id] + encode(prompt, ranks) and encode(reply, ranks) + [eot_id]
    return [eot_id] + encode(prompt, ranks), encode(reply, ranks) + [eot_id]
    # end


def fit(prompt: list[int], chosen: list[int], rejected: list[int], block: int, least: int) -> tuple[list[int], list[int], list[int]] | None:
    """(prompt, chosen, rejected) such that the prompt followed by either reply has at most `block` ids, or None where that cannot be.

    Replies stay whole. The prompt loses ids from the left, but keeps its first, the start token; with fewer than `least` (1 or more) ids left, the
    start token counted, the pair is dropped: None.
    """
    # blank: The two replies do not stand behind each other here: each follows the prompt. Which of them decides?
    # What was said last matters most to the reply, so the oldest ids go, except the first.
    # x[-n:] with n = 0 is the whole list, not an empty one.
    #: room = block minus the longer reply. A prompt that has room stays as it is.
    #: Too little room: None. Otherwise the start token and the last room - 1 ids, counted from the front: from len(prompt) - room + 1 on.
    #: prompt[:1] + prompt[len(prompt) - room + 1:], chosen, rejected
    room = block - max(len(chosen), len(rejected))
    if len(prompt) <= room:
        return prompt, chosen, rejected
    return (prompt[:1] + prompt[len(prompt) - room + 1:], chosen, rejected) if room >= least else None
    # end


def scored_positions(prompt: int, chosen: int, rejected: int) -> tuple[Tensor, Tensor, Tensor]:
    """(predict_at, target_at, owner), each int64 [chosen + rejected], of one row `prompt | chosen | rejected` with these lengths; rejected may be 0.

    For every reply token, chosen first, each reply from left to right: the position in the row that it is predicted from, its own position, and its
    reply (0 chosen, 1 rejected). The rejected reply cannot see the chosen one: to it, the row is `prompt | rejected`.
    """
    # blank: torch.arange(a, b) gives a, a + 1, ..., b - 1. The replies lie behind the prompt, without a gap.
    # A token is predicted from the one in front of it ...
    # ... in its own dialogue. Which token stands in front of the first rejected one there?
    #: target_at is every position behind the prompt. predict_at is one less, but for one entry.
    #: Both replies' first tokens are predicted from the prompt's last position, prompt - 1. In predict_at the first rejected token is entry number `chosen`.
    #: predict_at = target_at - 1; if rejected: predict_at[chosen] = prompt - 1; owner = (target_at >= prompt + chosen).long()
    target_at = torch.arange(prompt, prompt + chosen + rejected)
    predict_at = target_at - 1
    predict_at[chosen:chosen + 1] = prompt - 1  # an empty slice where there is no rejected reply
    return predict_at, target_at, (target_at >= prompt + chosen).long()
    # end


def pad_rows(prompts: list[list[int]], replies: list[list[int]], eot_id: int) -> tuple[Tensor, Tensor]:
    """(ids [B, T] int64, scored [B, T] bool): row b is prompts[b] + replies[b], filled on the right with eot_id up to T, the longest row's length.

    scored marks the tokens that carry the loss: all of the reply, its end-of-text included; nothing of the prompt, and no padding.
    """
    # blank: Begin with ids full of eot_id and with scored all False; torch.full takes a shape and a value.
    # The padding has the same id as the reply's end. What tells them apart?
    # You know every length.
    #: A token's position says whether it is scored; its id cannot, since eot_id is start, end and padding.
    #: In row b the prompt takes the first len(prompts[b]) places, the reply the next len(replies[b]).
    #: start, end = len(prompt), len(prompt) + len(reply); ids[b, :end] = torch.tensor(prompt + reply); scored[b, start:end] = True
    longest = max(len(prompt) + len(reply) for prompt, reply in zip(prompts, replies))
    ids, scored = torch.full((len(prompts), longest), eot_id), torch.zeros(len(prompts), longest, dtype=torch.bool)
    for b, (prompt, reply) in enumerate(zip(prompts, replies)):
        start, end = len(prompt), len(prompt) + len(reply)
        ids[b, :end] = torch.tensor(prompt + reply)
        scored[b, start:end] = True
    return ids, scored
    # end
