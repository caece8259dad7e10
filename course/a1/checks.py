"""What assignment 1 is graded by: numbers worked by hand, and the project's own tokenizer, truncation and batches, computed on this side."""
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from batching import Batch, make_batch
from course.checking import Call, check, holds, same, show, tensor
from data.prepare_hh import Drop, fit
from data.store import PairStore, StoreWriter
from tokenizer import Tokenizer, bpe, learn_merges, merge_pair

SEA = ["sea", "seas", "east"], [4, 2, 3]  # the handout's text: chunks, and how often each occurs
LEARNED = [(101, 97), (115, 256), (115, 116), (256, 258)]  # ea, s + ea, s + t, ea + st
PIECES = ["the", " sea", " is", " cold", " and", " dark", ",", " so", " I", "'ll", " stay", ".", "\n\nHuman:", "\n\nAssistant:", " 42", " (", ":)", "!", "  "]


def number_in(rng: torch.Generator, low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (1,), generator=rng))


def ids_in(rng: torch.Generator, length: int, below: int = 256) -> list[int]:
    return torch.randint(below, (length,), generator=rng).tolist()


def text_in(rng: torch.Generator, pieces: int) -> str:
    return "".join(PIECES[i] for i in ids_in(rng, pieces, len(PIECES)))


def in_bytes(chunks: list[str]) -> list[list[int]]:
    return [list(chunk.encode()) for chunk in chunks]


def random_words(rng: torch.Generator) -> tuple[list[list[int]], list[int]]:
    """Thirty chunks over four letters, so that pairs are frequent and overlap, and how often each occurs."""
    return [[97 + i for i in ids_in(rng, number_in(rng, 1, 8), 4)] for _ in range(30)], [count + 1 for count in ids_in(rng, 30, 900)]


def ranks_of(merges: list[tuple[int, int]]) -> dict[bytes, int]:
    """Bytes of a token -> its id."""
    tokens = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return {token: i for i, token in enumerate(tokens)}


def whole(value: object, what: str) -> list[int]:
    """`value`, which must be a list of ints. Raises Wrong."""
    holds(isinstance(value, list) and all(type(i) is int for i in value), f"{what}: expected a list of ints, got {show(value)}")
    return value


def named(value: object, *names: str) -> tuple:
    """`value`, which must be a tuple of as many parts as there are names. Raises Wrong."""
    holds(isinstance(value, tuple) and len(value) == len(names), f"Expected a tuple ({', '.join(names)}), got {show(value)}.")
    return value


# ---- pair_counts ----------------------------------------------------------------------------------------------------

@check("pair_counts", "shape", 1)
def a_dict_of_pairs(call, rng):
    """pair_counts gives a dict from (int, int) to int."""
    found = call("pair_counts", *random_words(rng))
    holds(isinstance(found, dict) and bool(found), f"Expected a dict, got {show(found)}.")
    for pair, count in found.items():
        holds(isinstance(pair, tuple) and len(pair) == 2 and type(count) is int, f"Expected entries such as (101, 97): 9, got {show(pair)}: {show(count)}.")


@check("pair_counts", "number", 1)
def the_sea_by_hand(call, rng):
    """The handout's text, sea 4, seas 2, east 3: ea occurs 9 times, se 6, as 5, st 3."""
    same(call("pair_counts", in_bytes(SEA[0]), SEA[1]), {(115, 101): 6, (101, 97): 9, (97, 115): 5, (115, 116): 3})


@check("pair_counts", "trap", 2)
def a_chunk_counts_as_often_as_it_occurs(call, rng):
    """Each distinct chunk is listed once, however often it occurs; its pairs count as often as it does."""
    times = number_in(rng, 2, 999)
    same(call("pair_counts", [[97, 98, 99]], [times]), {(97, 98): times, (98, 99): times}, f"the one word abc, which occurs {times} times")


@check("pair_counts", "trap", 1)
def overlapping_pairs_are_all_counted(call, rng):
    """aaaa holds three pairs of neighbours (a, a), although only two of them can be glued."""
    same(call("pair_counts", [[97, 97, 97, 97]], [2]), {(97, 97): 6}, "the word aaaa, which occurs twice")


# ---- merge_pair -----------------------------------------------------------------------------------------------------

@check("merge_pair", "shape", 1)
def a_list_of_ids(call, rng):
    """merge_pair gives a list of ints."""
    whole(call("merge_pair", [1, 2, 3], (1, 2), 256), "merge_pair")


@check("merge_pair", "number", 1)
def ea_in_seaeast(call, rng):
    """In s e a e a s t the pair ea occurs twice: s 256 256 s t."""
    same(call("merge_pair", list(b"seaeast"), (101, 97), 256), [115, 256, 256, 115, 116])


@check("merge_pair", "property", 2)
def merging_equals_the_projects(call, rng):
    """The same as tokenizer.merge_pair on random words, short and empty ones too."""
    for length in (0, 1, 2, 40):
        word, pair = ids_in(rng, length, 3), tuple(ids_in(rng, 2, 3))
        same(call("merge_pair", word, pair, 256), merge_pair(word, pair, 256), f"{word}, pair {pair}")


@check("merge_pair", "trap", 2)
def overlapping_pairs_merge_once(call, rng):
    """An id belongs to one merge: aaa becomes X a, aaaa becomes X X."""
    for length, expected in ((3, [256, 97]), (4, [256, 256]), (5, [256, 256, 97])):
        same(call("merge_pair", [97] * length, (97, 97), 256), expected, "a" * length)


# ---- learn_merges ---------------------------------------------------------------------------------------------------

@check("learn_merges", "shape", 1)
def a_list_of_pairs(call, rng):
    """learn_merges gives a list of (int, int), as many as were asked for."""
    found = call("learn_merges", in_bytes(["abcdefgh"]), [2], 3)
    holds(isinstance(found, list) and len(found) == 3 and all(isinstance(pair, tuple) and len(pair) == 2 for pair in found),
          f"Expected a list of 3 tuples such as (101, 97), got {show(found)}.")


@check("learn_merges", "number", 2)
def four_merges_by_hand(call, rng):
    """The handout's text gives ea, s+ea, st, ea+st: (101, 97), (115, 256), (115, 116), (256, 258)."""
    same(call("learn_merges", in_bytes(SEA[0]), SEA[1], 4), LEARNED)


@check("learn_merges", "property", 3)
def merges_equal_the_projects(call, rng):
    """The same as tokenizer.learn_merges, which counts in another way, on random words; fewer merges than asked for where no neighbours are left."""
    words, counts = random_words(rng)
    same(call("learn_merges", words, counts, 25), learn_merges([list(word) for word in words], counts, 25), "25 merges")
    same(call("learn_merges", in_bytes(["abc"]), [4], 99), [(97, 98), (256, 99)], "99 merges of the one word abc, which has two")


@check("learn_merges", "trap", 2)
def a_tie_goes_to_the_smaller_ids(call, rng):
    """Of equally frequent pairs the smaller ids win, whatever the order of the text: otherwise the same text, shuffled, gives another vocabulary."""
    words = [[150 + i, 100 + i] for i in torch.randperm(40, generator=rng).tolist()] + [[100, 90], [100, 80]]
    same(call("learn_merges", words, [3] * len(words), 5), sorted(tuple(word) for word in words)[:5], "42 words of one pair each, all equally frequent")


@check("learn_merges", "trap", 2)
def counts_change_with_every_merge(call, rng):
    """A merge takes its neighbours' pairs away and makes new ones, so the pairs must be counted anew."""
    same(call("learn_merges", in_bytes(["abc", "xy"]), [9, 1], 3), [(97, 98), (256, 99), (120, 121)], "abc 9 times, xy once")


# ---- encode_chunk ---------------------------------------------------------------------------------------------------

@check("encode_chunk", "shape", 1)
def chunk_ids(call, rng):
    """encode_chunk gives a list of ints."""
    whole(call("encode_chunk", b"east", ranks_of(LEARNED)), "encode_chunk")


@check("encode_chunk", "number", 2)
def seats_by_hand(call, rng):
    """With the handout's four merges: east is one token, 259; seats is sea, t, s: 257 116 115; seast is sea, st: 257 258."""
    for word, expected in ((b"east", [259]), (b"seats", [257, 116, 115]), (b"seast", [257, 258])):
        same(call("encode_chunk", word, ranks_of(LEARNED)), expected, word.decode())


@check("encode_chunk", "property", 2)
def chunks_equal_the_projects(call, rng):
    """The same as tokenizer.bpe on random chunks, with merges learned from random words."""
    ranks = ranks_of(learn_merges(*random_words(rng), 40))
    for length in (0, 1, 5, 60):
        chunk = bytes(97 + i for i in ids_in(rng, length, 4))
        same(call("encode_chunk", chunk, ranks), [ranks[token] for token in bpe(chunk, ranks)], show(chunk))


@check("encode_chunk", "trap", 2)
def not_from_left_to_right(call, rng):
    """The merge that was learned first is made first, wherever it stands: with bc = 256 and ab = 257, abc is a bc."""
    same(call("encode_chunk", b"abc", ranks_of([(98, 99), (97, 98)])), [97, 256], "abc")


@check("encode_chunk", "trap", 2)
def not_the_longest_match(call, rng):
    """The longest known token does not win: with cd = 256, ab = 257 and abc = 258, abcd is ab cd, for c was taken before abc could be made."""
    same(call("encode_chunk", b"abcd", ranks_of([(99, 100), (97, 98), (257, 99)])), [257, 256], "abcd")


# ---- dialogue_ids ---------------------------------------------------------------------------------------------------

def vocabulary(rng: torch.Generator) -> Tokenizer:
    """The project's tokenizer, which is tiktoken, with 60 merges learned from random text."""
    words = Counter(PIECES[i] for i in ids_in(rng, 300, len(PIECES)))
    return Tokenizer(ranks_of(learn_merges(in_bytes(list(words)), list(words.values()), 60)), "graded")


def dialogue(call: Call, prompt: str, reply: str, ranks: dict[bytes, int], eot_id: int) -> tuple[list[int], list[int]]:
    found = named(call("dialogue_ids", prompt, reply, ranks, eot_id), "prompt ids", "reply ids")
    return whole(found[0], "prompt ids"), whole(found[1], "reply ids")


@check("dialogue_ids", "shape", 1)
def two_lists(call, rng):
    """dialogue_ids gives a tuple of two lists of ints."""
    dialogue(call, "sea", " east", ranks_of(LEARNED), 260)


@check("dialogue_ids", "number", 1)
def sea_and_east(call, rng):
    """With end-of-text 260, the prompt "sea" and the reply " east" are [260, 257] and [32, 259, 260]."""
    same(dialogue(call, "sea", " east", ranks_of(LEARNED), 260), ([260, 257], [32, 259, 260]))


@check("dialogue_ids", "property", 1)
def dialogues_equal_the_projects(call, rng):
    """The start token and tiktoken's ids of the prompt; tiktoken's ids of the reply and end-of-text. (If encode_chunk is not right yet, begin there.)"""
    tok = vocabulary(rng)
    for _ in range(3):
        prompt, reply = text_in(rng, 20) + "\n\nAssistant:", " " + text_in(rng, 12)
        same(dialogue(call, prompt, reply, tok.ranks, tok.eot_id), ([tok.eot_id, *tok.encode(prompt)], [*tok.encode(reply), tok.eot_id]), show(prompt + reply))


@check("dialogue_ids", "trap", 2)
def one_start_token(call, rng):
    """The joined row begins with one start token, and no other stands before its end."""
    tok = vocabulary(rng)
    prompt, reply = dialogue(call, text_in(rng, 5), text_in(rng, 5), tok.ranks, tok.eot_id)
    places = [i for i, token in enumerate(prompt + reply[:-1]) if token == tok.eot_id]
    holds(places == [0], f"Up to the row's last id, end-of-text was expected at place 0 alone; it is at {places}. The row: {show(prompt + reply)}")


@check("dialogue_ids", "trap", 2)
def a_reply_says_that_it_is_done(call, rng):
    """A reply ends in end-of-text: what is not in its ids can never be a target, and the model would never learn to stop."""
    tok = vocabulary(rng)
    for text in (" " + text_in(rng, 4), ""):
        reply = dialogue(call, "sea", text, tok.ranks, tok.eot_id)[1]
        holds(reply[-1:] == [tok.eot_id], f"Reply {text!r}: expected ids that end in {tok.eot_id}, got {show(reply)}.")


@check("dialogue_ids", "trap", 2)
def no_token_across_the_border(call, rng):
    """The prompt's ids must not depend on the reply: encoded in one piece, "Assistant:" and ")" share the token ":)"."""
    for reply, expected in ((")", [41, 257]), (" yes", [*b" yes", 257])):
        same(dialogue(call, "Assistant:", reply, ranks_of([(58, 41)]), 257), ([257, *b"Assistant:"], expected), f"prompt 'Assistant:', reply {reply!r}")


# ---- fit ------------------------------------------------------------------------------------------------------------

Three = tuple[list[int], list[int], list[int]]


def too_long(rng: torch.Generator) -> tuple[Three, int]:
    """(prompt, chosen, rejected) and a block that asks for a shorter prompt. The prompt begins with 999, the replies end in it."""
    prompt, chosen, rejected = (ids_in(rng, number_in(rng, 20, 40)) for _ in range(3))
    return ([999, *prompt], [*chosen, 999], [*rejected, 999]), 1 + max(len(chosen), len(rejected)) + number_in(rng, 5, 18)


def fitted(call: Call, three: Three, block: int, least: int) -> Three:
    found = named(call("fit", *three, block, least), "prompt", "chosen", "rejected")
    return tuple(whole(part, what) for part, what in zip(found, ("prompt", "chosen", "rejected")))


@check("fit", "shape", 1)
def three_lists(call, rng):
    """fit gives a tuple of three lists of ints."""
    fitted(call, ([9, 1, 2, 3], [4, 9], [5, 9]), 5, 2)


@check("fit", "number", 1)
def eight_places(call, rng):
    """The handout's row: prompt 9 1 2 3 4 5, replies of 3 and 5 ids, block 8: 9 4 5 is left of the prompt."""
    same(fitted(call, ([9, 1, 2, 3, 4, 5], [6, 7, 9], [6, 7, 8, 8, 9]), 8, 2), ([9, 4, 5], [6, 7, 9], [6, 7, 8, 8, 9]))


@check("fit", "property", 2)
def truncation_equals_the_projects(call, rng):
    """The same as data/prepare_hh.py's fit, for blocks from too small to large enough."""
    (prompt, chosen, rejected), _ = too_long(rng)
    longer = max(len(chosen), len(rejected))
    for block in (longer - 1, longer + 2, longer + 3, longer + 9, longer + len(prompt) - 1, longer + len(prompt)):
        try:
            expected = fit(prompt, np.zeros(len(prompt), np.uint8), longer, block, 3)[0], chosen, rejected
        except Drop:
            expected = None
        same(call("fit", prompt, chosen, rejected, block, 3), expected, f"prompt of {len(prompt)}, replies of {len(chosen)} and {len(rejected)}, block {block}, least 3")


@check("fit", "trap", 2)
def replies_stay_whole(call, rng):
    """What does not fit is taken from the prompt, never from a reply: a reply without its end teaches a model not to end."""
    three, block = too_long(rng)
    _, *replies = fitted(call, three, block, 1)
    same([len(reply) for reply in replies], [len(reply) for reply in three[1:]], f"prompt of {len(three[0])}, block {block}: the replies' lengths")
    same(tuple(replies), three[1:], "the replies")


@check("fit", "trap", 1)
def the_oldest_words_go(call, rng):
    """The prompt loses its beginning: its end is the question that the reply answers."""
    three, block = too_long(rng)
    same(fitted(call, three, block, 1)[0][-3:], three[0][-3:], "the last three ids of the prompt")


@check("fit", "trap", 1)
def the_start_token_stays(call, rng):
    """Every row begins with the start token, shortened ones too."""
    three, block = too_long(rng)
    same(fitted(call, three, block, 1)[0][:1], [999], f"the first id of a prompt that began {three[0][:3]}")


@check("fit", "trap", 1)
def the_longer_reply_decides(call, rng):
    """Both replies follow the same prompt, so the longer one says how long it may be, be it chosen or rejected."""
    for chosen, rejected in ((2, 6), (6, 2)):
        same(fitted(call, ([9, 1, 2, 3, 4], [7] * chosen, [8] * rejected), 9, 2)[0], [9, 3, 4], f"prompt 9 1 2 3 4, replies of {chosen} and {rejected}, block 9")


@check("fit", "trap", 1)
def a_slice_of_the_last_none(call, rng):
    """With room for the start token alone nothing else is left; prompt[-0:] is the whole prompt, not none of it."""
    same(fitted(call, ([9, 1, 2, 3], [4, 5, 9], [6, 9]), 4, 1)[0], [9], "prompt 9 1 2 3, longer reply of 3, block 4, least 1")


# ---- scored_positions -----------------------------------------------------------------------------------------------

def projects_batch(pairs: list[Three]) -> Batch:
    """The project's own batch with a row for each of these (prompt, chosen, rejected), ids below 1,000; SFT's where nothing is rejected."""
    with tempfile.TemporaryDirectory() as folder:
        with StoreWriter(Path(folder) / "pairs", 1000) as writer:
            for prompt, chosen, rejected in pairs:
                writer.add(prompt, [0] * len(prompt), chosen, rejected)
            writer.close({})
        return make_batch(PairStore(Path(folder) / "pairs"), [[i] for i in range(len(pairs))], 2 if pairs[0][2] else 1)


def positions(call: Call, prompt: int, chosen: int, rejected: int) -> tuple[Tensor, Tensor, Tensor]:
    names = "predict_at", "target_at", "owner"
    found = named(call("scored_positions", prompt, chosen, rejected), *names)
    for part, what in zip(found, names):
        holds(tensor(part, (chosen + rejected,), what, False).dtype == torch.int64, f"{what}: expected int64, got {show(part)}.")
    return found


@check("scored_positions", "shape", 1)
def three_tensors(call, rng):
    """scored_positions gives a tuple of three int64 tensors [chosen + rejected]."""
    positions(call, 4, 3, 2)


@check("scored_positions", "number", 1)
def eight_tokens_by_hand(call, rng):
    """The handout's row of 3 + 2 + 3 tokens: 3, 4, 5, 6, 7 are predicted from 2, 3, 2, 5, 6."""
    same(positions(call, 3, 2, 3), tuple(torch.tensor(row) for row in ([2, 3, 2, 5, 6], [3, 4, 5, 6, 7], [0, 0, 1, 1, 1])), "(predict_at, target_at, owner)")


@check("scored_positions", "property", 2)
def rows_equal_the_projects(call, rng):
    """The same as batching.make_batch, through a pair store, on random rows; in SFT there is no rejected reply."""
    for least in (1, 1, 0):
        three = [ids_in(rng, n, 1000) for n in (number_in(rng, 1, 12), number_in(rng, 1, 12), least * number_in(rng, 1, 12))]
        batch, what = projects_batch([tuple(three)]), f"prompt, chosen, rejected of {', '.join(str(len(part)) for part in three)}: "
        predict_at, target_at, owner = positions(call, *map(len, three))
        same(predict_at, batch.predict_at, what + "predict_at")
        same(owner, batch.owner, what + "owner")
        holds(bool(((0 <= target_at) & (target_at < batch.ids.numel())).all()), f"{what}target_at leaves the row of {batch.ids.numel()}: {show(target_at)}")
        same(batch.ids.flatten()[target_at], batch.targets, what + "the tokens at target_at")


@check("scored_positions", "trap", 2)
def both_replies_start_from_the_prompt(call, rng):
    """The first rejected token is predicted from the prompt's last; in the row the chosen reply's end stands in front of it, which it cannot see."""
    prompt, chosen = number_in(rng, 2, 9), number_in(rng, 2, 9)
    same(int(positions(call, prompt, chosen, 3)[0][chosen]), prompt - 1, f"prompt {prompt}, chosen {chosen}: the first rejected token is predicted from")


@check("scored_positions", "trap", 2)
def no_token_predicts_itself(call, rng):
    """A token is predicted from one before it: at its own place it is known already, needs only to be copied, and the loss falls to nothing."""
    predict_at, target_at, _ = positions(call, number_in(rng, 2, 9), 4, 4)
    holds(bool((predict_at < target_at).all()), f"Tokens at {target_at.tolist()} are predicted from {predict_at.tolist()}: each must come before its own.")


@check("scored_positions", "trap", 2)
def the_last_token_is_a_target(call, rng):
    """A reply's last token is end-of-text, and a target like any other: both replies' ends are scored."""
    prompt, chosen, rejected = (number_in(rng, 2, 9) for _ in range(3))
    target_at = positions(call, prompt, chosen, rejected)[1].tolist()
    for end in (prompt + chosen - 1, prompt + chosen + rejected - 1):
        holds(end in target_at, f"prompt, chosen, rejected of {prompt}, {chosen}, {rejected}: expected {end}, a reply's last token, among the targets, got {target_at}")


# ---- pad_rows -------------------------------------------------------------------------------------------------------

def ragged(rng: torch.Generator) -> tuple[list[list[int]], list[list[int]]]:
    """Four prompts and replies of unequal lengths, with start tokens and ends 999."""
    return [[999, *ids_in(rng, number_in(rng, 1, 9))] for _ in range(4)], [[*ids_in(rng, n), 999] for n in (1, 4, 30, 2)]


def padded(call: Call, prompts: list[list[int]], replies: list[list[int]], eot_id: int) -> tuple[Tensor, Tensor]:
    found = named(call("pad_rows", prompts, replies, eot_id), "ids", "scored")
    size = len(prompts), max(len(prompt + reply) for prompt, reply in zip(prompts, replies))
    for part, what, dtype in zip(found, ("ids", "scored"), (torch.int64, torch.bool)):
        holds(tensor(part, size, what, False).dtype == dtype, f"{what}: expected {str(dtype)[6:]}, got {show(part)}.")
    return found


@check("pad_rows", "shape", 1)
def a_rectangle_and_its_mask(call, rng):
    """pad_rows gives a tuple: ids, an int64 tensor [B, T], and scored, a boolean one."""
    padded(call, [[9, 1], [9, 2, 3]], [[4, 9], [5, 9]], 9)


@check("pad_rows", "number", 1)
def two_rows_by_hand(call, rng):
    """The handout's rows, 9 1 2 | 4 9 and 9 3 | 5 6 7 9: T is 6, the first row gets one padding, and 2 and 4 tokens are scored."""
    same(padded(call, [[9, 1, 2], [9, 3]], [[4, 9], [5, 6, 7, 9]], 9),
         (torch.tensor([[9, 1, 2, 4, 9, 9], [9, 3, 5, 6, 7, 9]]), torch.tensor([[0, 0, 0, 1, 1, 0], [0, 0, 1, 1, 1, 1]]).bool()), "(ids, scored)")


@check("pad_rows", "property", 1)
def padded_rows_equal_the_projects(call, rng):
    """The same ids as batching.make_batch lays out, end-of-text where it has padding, and its targets where scored is True."""
    prompts, replies = ragged(rng)
    batch = projects_batch([(prompt, reply, []) for prompt, reply in zip(prompts, replies)])
    ids, scored = padded(call, prompts, replies, 999)
    same(ids, torch.where(batch.segments >= 0, batch.ids, 999), "ids")
    same(scored.flatten().nonzero()[:, 0], batch.predict_at + 1, "the flat places of what is scored")


@check("pad_rows", "trap", 2)
def masks_go_by_position(call, rng):
    """Padding and the reply's end are the same id: a mask made from ids either trains on padding or never on the end."""
    prompts, replies = ragged(rng)
    _, scored = padded(call, prompts, replies, 999)
    for b, (prompt, reply) in enumerate(zip(prompts, replies)):
        row, end = scored[b].tolist(), len(prompt + reply)
        holds(row[end - 1], f"Row {b}: end-of-text at place {end - 1}, the end of the reply, must be scored.")
        holds(not any(row[end:]), f"Row {b}: the padding, from place {end} on, must not be scored.")


@check("pad_rows", "trap", 1)
def the_prompt_is_not_scored(call, rng):
    """The loss is on the reply alone: a prompt is what people write, and not what the model shall learn to write."""
    prompts, replies = ragged(rng)
    _, scored = padded(call, prompts, replies, 999)
    for b, prompt in enumerate(prompts):
        holds(not scored[b, :len(prompt)].any(), f"Row {b}: expected nothing scored in its prompt, places 0 to {len(prompt) - 1}, got {scored[b].int().tolist()}.")
