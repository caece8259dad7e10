"""Assignment 2: attention, the mask of a shared prompt, and generation with a cache. The handout is course/a2/handout.md.

Shapes: B rows, T positions in a row, C width of the model, H heads, D = C / H width of a head, V vocabulary. Only torch may be imported.
"""
import torch
from torch import Tensor

# blank: One paragraph each, before and after you run `python -m course.train a2 my_a2.py`; the questions are in the handout.
# "before": if the rejected reply could see the chosen one, which figures of the run would show it? What does a cache save?
# "after": what did you break, which figures changed, and which did not?
#= WRITTEN = {"before": "", "after": ""}
WRITTEN = {
    "before": "A mask that lets the rejected reply see the chosen one makes policy and reference wrong alike, so the loss at step 0 is still ln 2. The comparison "
              "with separate rows must notice; replies have no second branch, so they stay equal. With the cache I expect five times the speed.",
    "after": "With the broken mask the loss at step 0 was .6931 and all replies were equal, as predicted. But the validation loss fell far below that of the right "
             "mask: a reply that sees another before it is recognised as rejected whatever it says. Only the separate rows, off by many nats, said that this was "
             "no success. The cache was about twice as fast: in so small a model most of a step is overhead.",
}
# end
# blank: Numbers you expect; `course.train` prints them next to what it measures. None stands for no prediction.
# Keys: "loss at step 0, nats", "largest difference to separate rows, nats", "100 tokens without the cache, seconds (noisy)".
# The second: float32 keeps about seven digits, and a reply's log-prob is some -10 nats.
#= PREDICTION = {"loss at step 0, nats": None, "largest difference to separate rows, nats": None, "100 tokens without the cache, seconds (noisy)": None}
PREDICTION = {"loss at step 0, nats": 0.6931, "largest difference to separate rows, nats": 1e-5, "100 tokens without the cache, seconds (noisy)": 0.5}
# end


def tree_mask(segments: Tensor) -> Tensor:
    """Who may look at whom: bool [B, 1, T, T], True where the query (dimension 2) sees the key (dimension 3).

    segments [B, T] int64 = 3 * document + {0 prompt, 1 chosen, 2 rejected}; -1 is padding, which may stand anywhere in a row. A token sees itself and
    what stands before it in its own document's prompt and in its own branch. What padding sees is never used, but no query may see nothing.
    """
    # blank: Three conditions must hold: not later, same document, and a key that is in the prompt or in the query's own segment.
    # segments[:, :, None] is the query's, segments[:, None, :] the key's; one comparison of the two gives [B, T, T].
    # Softmax over nothing is NaN: what must padding be allowed to see?
    #: Write the three conditions as three boolean tensors, [B, T, T] or [T, T], and combine them with & and |. The 1 in the shape stands for the heads.
    #: Document: segments divided by 3 and rounded down (-1 must not become document 0). Part: the remainder. Own branch: equal segments. Not later: a lower triangle.
    #: (same_document & ((key % 3 == 0) | (key == query)) & torch.ones(T, T, dtype=torch.bool).tril() | torch.eye(T, dtype=torch.bool))[:, None]
    query, key, T = segments[:, :, None], segments[:, None, :], segments.shape[1]
    same_document = query.div(3, rounding_mode="floor") == key.div(3, rounding_mode="floor")
    visible = same_document & ((key % 3 == 0) | (key == query))
    not_later = torch.ones(T, T, dtype=torch.bool).tril()
    return (visible & not_later | torch.eye(T, dtype=torch.bool))[:, None]
    # end


def branch_positions(prompt_length: int, chosen_length: int, rejected_length: int) -> Tensor:
    """Position of each token of a row `prompt | chosen | rejected`: int64 [prompt_length + chosen_length + rejected_length].

    Each reply has the positions it would have behind the prompt alone. A length of 0 is an empty part.
    """
    # blank: The model knows a token's place by its position only; the place in the row is a matter of storage.
    # Where does the rejected reply stand when the chosen one is not there?
    # Write down the case 2, 1, 2 first.
    #: Prompt and chosen reply count from 0 without a break. The rejected reply counts from somewhere else.
    #: Its first token has the position of the chosen reply's first token: prompt_length.
    #: torch.cat([torch.arange(P + C), torch.arange(P, P + R)])
    shared = torch.arange(prompt_length + chosen_length)
    return torch.cat([shared, torch.arange(prompt_length, prompt_length + rejected_length)])
    # end


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, C] -> [B, heads, T, C / heads]. Head h gets the h-th slice of every token's width."""
    # blank: A head looks at all tokens, but at a part of their width only.
    # Cut the last dimension into two; then bring the dimensions into order.
    # view(B, heads, T, D) has the right shape and the wrong contents: which numbers would head 0 get?
    #: Cutting and reordering are two operations: view or reshape never changes the order of the numbers in memory.
    #: First [B, T, heads, D], then swap dimensions 1 and 2.
    #: x.view(B, T, heads, C // heads).transpose(1, 2)
    B, T, C = x.shape
    return x.view(B, T, heads, C // heads).transpose(1, 2)
    # end


def merge_heads(y: Tensor) -> Tensor:
    """[B, H, T, D] -> [B, T, H * D], the inverse of split_heads: a token's heads side by side again."""
    # blank: Undo split_heads, last step first.
    # What must lie next to what before two dimensions can become one?
    # A transposed tensor has no view in another shape; reshape copies where it must.
    #: A token's H slices must be neighbours: time comes before heads.
    #: Swap dimensions 1 and 2, then join the last two.
    #: y.transpose(1, 2).reshape(B, T, H * D)
    B, H, T, D = y.shape
    return y.transpose(1, 2).reshape(B, T, H * D)
    # end


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over the keys that the mask lets through: float [B, H, Tq, D]. Vaswani et al. 2017, eq. 1.

    q [B, H, Tq, D]; k, v [B, H, Tk, D]; mask bool, True = may look, broadcastable to [B, H, Tq, Tk], with at least one True for every query.
    Gradients flow to q, k and v.
    """
    # blank: One score per query and key; a softmax turns each query's scores into weights that sum to 1; the result is the weighted mean of v.
    # When must hidden keys leave, so that the weights of the rest still sum to 1? Which score becomes the weight 0?
    # The sqrt(D) keeps scores of unit-variance vectors at unit variance: a sum of how many products?
    #: Matrix products act on the last two dimensions: q [Tq, D] times k transposed [D, Tk] are the scores [Tq, Tk].
    #: Divide by the root of q.shape[-1], put -inf where the mask is False, softmax over the last dimension (keys), multiply by v.
    #: (q @ k.transpose(-2, -1) / D**0.5).masked_fill(~mask, -torch.inf).softmax(-1) @ v
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # [B, H, Tq, Tk]
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return weights @ v
    # end


def cached_attention(q: Tensor, k_new: Tensor, v_new: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One new token per row: (what it finds [B, H, 1, D], k_cache, v_cache), the caches with the new token in them.

    q, k_new, v_new [B, H, 1, D]: of the new tokens. k_cache, v_cache [B, H, M, D]: places 0 .. lengths[row] - 1 hold a row's earlier tokens; what stands
    behind them is left over from other rows. lengths [B] int64, each below M. Caches may be changed in place or copied. May call your `attention`.
    """
    # blank: Rows differ in length: where does each row's new token go? What else in the caches may change?
    # Then it is attention with one query per row; its mask is [B, 1, 1, M].
    # A new token sees itself: how many places are visible in a row with `lengths` 0?
    #: Row b's new key goes to k_cache[b, :, lengths[b]]. Indexing with two tensors, one for rows and one for places, does all rows at once.
    #: Place m is visible in row b when m <= lengths[b]; compare torch.arange(M) with lengths[:, None].
    #: rows = torch.arange(B); k_cache[rows, :, lengths] = k_new[:, :, 0]; visible = torch.arange(M) <= lengths[:, None]; attention(q, k_cache, v_cache, visible[:, None, None])
    rows, places = torch.arange(len(lengths)), torch.arange(k_cache.shape[2])
    k_cache[rows, :, lengths] = k_new[:, :, 0]
    v_cache[rows, :, lengths] = v_new[:, :, 0]
    visible = places <= lengths[:, None]  # [B, M]
    return attention(q, k_cache, v_cache, visible[:, None, None]), k_cache, v_cache
    # end


def keep_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """logits [B, V] with -inf outside each row's nucleus: the smallest set of likeliest tokens whose probability reaches top_p. Holtzman et al. 2020, eq. 2.

    0 < top_p < 1. The logits of the nucleus stay as they are, in their places.
    """
    # blank: Rank a row's tokens by probability. Which of them has top_p been reached without?
    # Look at the mass *before* a token, not up to it: the token that crosses the line belongs to the nucleus, and the first always does.
    # What you decided about ranks must get back to token ids; Tensor.scatter writes to named places.
    #: sort returns values and the ids they came from; cumsum adds probabilities from the likeliest down.
    #: A token is outside when the likelier ones hold top_p without it: cumsum - its own probability >= top_p.
    #: outside = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, probs.cumsum(-1) - probs >= top_p); logits.masked_fill(outside, -torch.inf)
    probs, order = logits.softmax(-1).sort(-1, descending=True)
    enough = probs.cumsum(-1) - probs >= top_p  # by rank
    outside = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, enough)
    return logits.masked_fill(outside, -torch.inf)
    # end


def next_token(logits: Tensor, temperature: float, u: Tensor) -> Tensor:
    """Ids [B] int64 drawn from softmax(logits / temperature) by inverse CDF; the likeliest at temperature 0.

    logits [B, V] float32, -inf for a token that must not come; u [B] float64 in [0, 1), a uniform draw for each row. The token drawn is the first one
    at which the probabilities summed so far, p_0 + .. + p_i, exceed u.
    """
    # blank: Lay the probabilities end to end on a line from 0 to 1; u points at one of them. Nothing else is random here.
    # Temperature 0 is a limit, not a division. float32 has no number between 1 - 6e-8 and 1, and u may be closer to 1 than that.
    # u = 0 must not draw a first token of probability 0; u near 1 must not fall off the end of a line that sums to .9999999.
    #: The line is a cumulative sum (in float64). torch.searchsorted finds a place in every row's line at once.
    #: Aim at u times the line's last value, so that a rounded sum loses nothing; "exceed" means right=True.
    #: cdf = (logits / temperature).softmax(-1).double().cumsum(-1); torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True)[:, 0]
    if temperature == 0:
        return logits.argmax(-1)
    cdf = (logits / temperature).softmax(-1).double().cumsum(-1)
    aim = u * cdf[:, -1]
    return torch.searchsorted(cdf, aim[:, None], right=True)[:, 0]
    # end
