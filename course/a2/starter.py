"""Assignment 2: attention, the mask of a shared prompt, and generation with a cache. The handout is course/a2/handout.md.

Shapes: B rows, T positions in a row, C width of the model, H heads, D = C / H width of a head, V vocabulary. Only torch may be imported.
"""
import torch
from torch import Tensor

# One paragraph each, before and after you run `python -m course.train a2 my_a2.py`; the questions are in the handout.
# "before": if the rejected reply could see the chosen one, which figures of the run would show it? What does a cache save?
# "after": what did you break, which figures changed, and which did not?
WRITTEN = {"before": "", "after": ""}
# Numbers you expect; `course.train` prints them next to what it measures. None stands for no prediction.
# Keys: "loss at step 0, nats", "largest difference to separate rows, nats", "100 tokens without the cache, seconds (noisy)".
# The second: float32 keeps about seven digits, and a reply's log-prob is some -10 nats.
PREDICTION = {"loss at step 0, nats": None, "largest difference to separate rows, nats": None, "100 tokens without the cache, seconds (noisy)": None}


def tree_mask(segments: Tensor) -> Tensor:
    """Who may look at whom: bool [B, 1, T, T], True where the query (dimension 2) sees the key (dimension 3).

    segments [B, T] int64 = 3 * document + {0 prompt, 1 chosen, 2 rejected}; -1 is padding, which may stand anywhere in a row. A token sees itself and
    what stands before it in its own document's prompt and in its own branch. What padding sees is never used, but no query may see nothing.
    """
    # Three conditions must hold: not later, same document, and a key that is in the prompt or in the query's own segment.
    # segments[:, :, None] is the query's, segments[:, None, :] the key's; one comparison of the two gives [B, T, T].
    # Softmax over nothing is NaN: what must padding be allowed to see?
    raise NotImplementedError("tree_mask is not written yet; for a nudge: python -m course.grade a2 --only tree_mask --hint 1")


def branch_positions(prompt_length: int, chosen_length: int, rejected_length: int) -> Tensor:
    """Position of each token of a row `prompt | chosen | rejected`: int64 [prompt_length + chosen_length + rejected_length].

    Each reply has the positions it would have behind the prompt alone. A length of 0 is an empty part.
    """
    # The model knows a token's place by its position only; the place in the row is a matter of storage.
    # Where does the rejected reply stand when the chosen one is not there?
    # Write down the case 2, 1, 2 first.
    raise NotImplementedError("branch_positions is not written yet; for a nudge: python -m course.grade a2 --only branch_positions --hint 1")


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, C] -> [B, heads, T, C / heads]. Head h gets the h-th slice of every token's width."""
    # A head looks at all tokens, but at a part of their width only.
    # Cut the last dimension into two; then bring the dimensions into order.
    # view(B, heads, T, D) has the right shape and the wrong contents: which numbers would head 0 get?
    raise NotImplementedError("split_heads is not written yet; for a nudge: python -m course.grade a2 --only split_heads --hint 1")


def merge_heads(y: Tensor) -> Tensor:
    """[B, H, T, D] -> [B, T, H * D], the inverse of split_heads: a token's heads side by side again."""
    # Undo split_heads, last step first.
    # What must lie next to what before two dimensions can become one?
    # A transposed tensor has no view in another shape; reshape copies where it must.
    raise NotImplementedError("merge_heads is not written yet; for a nudge: python -m course.grade a2 --only merge_heads --hint 1")


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over the keys that the mask lets through: float [B, H, Tq, D]. Vaswani et al. 2017, eq. 1.

    q [B, H, Tq, D]; k, v [B, H, Tk, D]; mask bool, True = may look, broadcastable to [B, H, Tq, Tk], with at least one True for every query.
    Gradients flow to q, k and v.
    """
    # One score per query and key; a softmax turns each query's scores into weights that sum to 1; the result is the weighted mean of v.
    # When must hidden keys leave, so that the weights of the rest still sum to 1? Which score becomes the weight 0?
    # The sqrt(D) keeps scores of unit-variance vectors at unit variance: a sum of how many products?
    raise NotImplementedError("attention is not written yet; for a nudge: python -m course.grade a2 --only attention --hint 1")


def cached_attention(q: Tensor, k_new: Tensor, v_new: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One new token per row: (what it finds [B, H, 1, D], k_cache, v_cache), the caches with the new token in them.

    q, k_new, v_new [B, H, 1, D]: of the new tokens. k_cache, v_cache [B, H, M, D]: places 0 .. lengths[row] - 1 hold a row's earlier tokens; what stands
    behind them is left over from other rows. lengths [B] int64, each below M. Caches may be changed in place or copied. May call your `attention`.
    """
    # Rows differ in length: where does each row's new token go? What else in the caches may change?
    # Then it is attention with one query per row; its mask is [B, 1, 1, M].
    # A new token sees itself: how many places are visible in a row with `lengths` 0?
    raise NotImplementedError("cached_attention is not written yet; for a nudge: python -m course.grade a2 --only cached_attention --hint 1")


def keep_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """logits [B, V] with -inf outside each row's nucleus: the smallest set of likeliest tokens whose probability reaches top_p. Holtzman et al. 2020, eq. 2.

    0 < top_p < 1. The logits of the nucleus stay as they are, in their places.
    """
    # Rank a row's tokens by probability. Which of them has top_p been reached without?
    # Look at the mass *before* a token, not up to it: the token that crosses the line belongs to the nucleus, and the first always does.
    # What you decided about ranks must get back to token ids; Tensor.scatter writes to named places.
    raise NotImplementedError("keep_nucleus is not written yet; for a nudge: python -m course.grade a2 --only keep_nucleus --hint 1")


def next_token(logits: Tensor, temperature: float, u: Tensor) -> Tensor:
    """Ids [B] int64 drawn from softmax(logits / temperature) by inverse CDF; the likeliest at temperature 0.

    logits [B, V] float32, -inf for a token that must not come; u [B] float64 in [0, 1), a uniform draw for each row. The token drawn is the first one
    at which the probabilities summed so far, p_0 + .. + p_i, exceed u.
    """
    # Lay the probabilities end to end on a line from 0 to 1; u points at one of them. Nothing else is random here.
    # Temperature 0 is a limit, not a division. float32 has no number between 1 - 6e-8 and 1, and u may be closer to 1 than that.
    # u = 0 must not draw a first token of probability 0; u near 1 must not fall off the end of a line that sums to .9999999.
    raise NotImplementedError("next_token is not written yet; for a nudge: python -m course.grade a2 --only next_token --hint 1")
