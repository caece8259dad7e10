"""What assignment 2 is graded by. Expected values are the project's own mask, attention and sampling, computed on this side, and numbers worked by hand."""
import torch
from torch import Tensor
from torch.nn import functional as F

import model
from course.checking import Wrong, check, holds, same, tensor
from generate import _nucleus, pick

PARTS = ("prompt", "chosen", "rejected")
INF = float("inf")


def drawn(low: int, high: int, rng: torch.Generator) -> int:
    """A whole number from low to high."""
    return int(torch.randint(low, high + 1, (1,), generator=rng))


# ---- tree_mask ------------------------------------------------------------------------------------------------------

def packed(rng: torch.Generator, rows: int = 3) -> Tensor:
    """Segments [rows, T] of rows with one to three documents each, padding behind them and sometimes before."""
    lists = []
    for _ in range(rows):
        row = [-1] * drawn(0, 2, rng)
        for document in range(drawn(1, 3, rng)):
            for part, least in enumerate((1, 1, 0)):
                row += [3 * document + part] * drawn(least, 4, rng)
        lists.append(row)
    longest = max(map(len, lists)) + 1
    return torch.tensor([row + [-1] * (longest - len(row)) for row in lists])


def named(segments: Tensor, t: int) -> str:
    """A position and what stands there."""
    s = int(segments[t])
    return f"position {t} ({'padding' if s < 0 else f'{PARTS[s % 3]}, document {s // 3}'})"


def sees_what_it_must(call, segments: Tensor) -> None:
    """Wrong, with the first wrong look in words, unless every real token sees as in model.tree_mask. What padding sees is nobody's concern here."""
    expected = model.tree_mask(segments)
    found = tensor(call("tree_mask", segments), tuple(expected.shape), floating=False)
    bad = ((found.bool() != expected) & (segments >= 0)[:, None, :, None]).nonzero().tolist()
    if bad:
        row, _, query, key = bad[0]
        raise Wrong(f"With segments {segments[row].tolist()}, {named(segments[row], query)} must {'' if expected[row, 0, query, key] else 'not '}see {named(segments[row], key)}; "
                    f"{len(bad)} of {expected.numel()} looks are wrong.")


@check("tree_mask", "shape", 1)
def a_boolean_square_per_row(call, rng):
    """tree_mask gives a bool tensor [B, 1, T, T]."""
    found = tensor(call("tree_mask", torch.tensor([[0, 0, 1, 2], [0, 1, 1, 2], [0, 0, 1, 1]])), (3, 1, 4, 4), floating=False)
    holds(found.dtype == torch.bool, f"Expected dtype bool, got {found.dtype}.")


@check("tree_mask", "number", 2)
def seven_positions_by_hand(call, rng):
    """The handout's row: prompt of 2, chosen of 1, rejected of 2, the next document's prompt of 1, padding of 1."""
    sees_what_it_must(call, torch.tensor([[0, 0, 1, 2, 2, 3, -1]]))


@check("tree_mask", "property", 2)
def mask_equals_the_projects(call, rng):
    """The same as model.tree_mask for every real token of random rows of several documents."""
    for _ in range(4):
        sees_what_it_must(call, packed(rng))


@check("tree_mask", "trap", 2)
def rejected_does_not_see_chosen(call, rng):
    """A causal mask is not enough: the rejected reply stands behind the chosen one and would read it."""
    sees_what_it_must(call, torch.tensor([[0] * 3 + [1] * drawn(1, 4, rng) + [2] * 3]))


@check("tree_mask", "trap", 1)
def documents_do_not_see_each_other(call, rng):
    """Several documents share a row; a prompt is visible to its own document only."""
    sees_what_it_must(call, torch.tensor([[0] * drawn(1, 4, rng) + [1, 2, 3, 4, 5, 6, 7]]))


@check("tree_mask", "trap", 1)
def nobody_sees_the_future(call, rng):
    """A token that sees later ones is asked to predict what it has read: the loss would fall, and the model would learn nothing."""
    sees_what_it_must(call, torch.tensor([[0] * drawn(2, 5, rng) + [1, 1, 1, 2, 2]]))


@check("tree_mask", "trap", 1)
def padding_belongs_to_no_document(call, rng):
    """-1 / 3 rounds down to -1 but is cut to 0; and -1 % 3 is 2, as if it were rejected. Padding must be visible to no real token."""
    sees_what_it_must(call, torch.tensor([[-1] * drawn(1, 3, rng) + [0, 0, 1, 1, 2, 2]]))


@check("tree_mask", "trap", 1)
def no_query_sees_nothing(call, rng):
    """A query that sees nothing, which can only be padding, gets NaN from softmax; and 0 times NaN is NaN, so one such row spoils every gradient."""
    segments = packed(rng)
    found = tensor(call("tree_mask", segments), tuple(model.tree_mask(segments).shape), floating=False)
    empty = (~found.bool().any(-1)[:, 0]).nonzero().tolist()
    if empty:
        row, t = empty[0]
        raise Wrong(f"With segments {segments[row].tolist()}, {named(segments[row], t)} sees nothing, not even itself.")


# ---- branch_positions -----------------------------------------------------------------------------------------------

def stands_as_alone(call, prompt: int, chosen: int, rejected: int) -> None:
    alone = [torch.arange(prompt + chosen), torch.arange(prompt + rejected)[prompt:]]
    same(call("branch_positions", prompt, chosen, rejected), torch.cat(alone), f"prompt of {prompt}, chosen of {chosen}, rejected of {rejected}")


@check("branch_positions", "shape", 1)
def a_whole_number_per_token(call, rng):
    """branch_positions gives a whole-number tensor with one position per token."""
    tensor(call("branch_positions", 4, 3, 2), (9,), floating=False)


@check("branch_positions", "number", 1)
def two_one_two(call, rng):
    """The handout's row: a prompt of 2, chosen of 1, rejected of 2."""
    same(call("branch_positions", 2, 1, 2), torch.tensor([0, 1, 2, 2, 3]))


@check("branch_positions", "property", 1)
def each_reply_as_if_alone(call, rng):
    """Prompt and one reply, taken out of the row, count 0, 1, 2, ..; an empty part is allowed."""
    for lengths in ((5, 0, 3), (5, 3, 0), (drawn(1, 9, rng), drawn(1, 9, rng), drawn(1, 9, rng))):
        stands_as_alone(call, *lengths)


@check("branch_positions", "trap", 2)
def the_rejected_reply_starts_again(call, rng):
    """The place in the row is not the position: a rejected reply that counts on behind the chosen one stands where no reply ever begins."""
    stands_as_alone(call, drawn(1, 5, rng), drawn(2, 6, rng), drawn(1, 6, rng))


@check("branch_positions", "trap", 1)
def it_starts_again_behind_the_prompt(call, rng):
    """The rejected reply starts again behind the prompt, not at 0."""
    stands_as_alone(call, drawn(2, 6, rng), 1, drawn(1, 6, rng))


# ---- split_heads, merge_heads ---------------------------------------------------------------------------------------

def heads_of(x: Tensor, heads: int) -> Tensor:
    """[B, H, T, D], slice by slice."""
    return torch.stack(x.chunk(heads, dim=-1), dim=1)


@check("split_heads", "shape", 1)
def a_dimension_of_heads(call, rng):
    """split_heads gives a float tensor [B, heads, T, C / heads]."""
    tensor(call("split_heads", torch.randn(2, 5, 12, generator=rng), 3), (2, 3, 5, 4))


@check("split_heads", "number", 1)
def two_tokens_two_heads(call, rng):
    """Tokens 0 1 2 3 and 4 5 6 7, two heads: head 0 holds 0 1 and 4 5, head 1 holds 2 3 and 6 7."""
    same(call("split_heads", torch.arange(8.0).view(1, 2, 4), 2), torch.tensor([[[[0.0, 1], [4, 5]], [[2, 3], [6, 7]]]]))


@check("split_heads", "trap", 2)
def heads_divide_the_width_not_the_time(call, rng):
    """view(B, heads, T, D) gives head 0 the whole width of the first tokens; a head has a slice of the width of all tokens."""
    x = torch.randn(2, 6, 8, generator=rng)
    same(call("split_heads", x, 4), heads_of(x, 4))


@check("merge_heads", "shape", 1)
def one_width_again(call, rng):
    """merge_heads gives a float tensor [B, T, H * D]."""
    tensor(call("merge_heads", torch.randn(2, 3, 5, 4, generator=rng)), (2, 5, 12))


@check("merge_heads", "number", 1)
def back_to_two_tokens(call, rng):
    """The example of split_heads, backwards: tokens 0 1 2 3 and 4 5 6 7."""
    same(call("merge_heads", torch.tensor([[[[0.0, 1], [4, 5]], [[2, 3], [6, 7]]]])), torch.arange(8.0).view(1, 2, 4))


@check("merge_heads", "trap", 1)
def a_tokens_heads_come_together_again(call, rng):
    """Joined without a transpose, one token's output would hold one head at several times."""
    x = torch.randn(2, 6, 8, generator=rng)
    same(call("merge_heads", heads_of(x, 4)), x)


# ---- attention ------------------------------------------------------------------------------------------------------

def qkv(rng: torch.Generator, B: int = 2, H: int = 3, queries: int = 5, keys: int = 5, D: int = 4) -> list[Tensor]:
    return [torch.randn(B, H, n, D, generator=rng) for n in (queries, keys, keys)]


def causal(T: int) -> Tensor:
    return torch.ones(T, T, dtype=torch.bool).tril()


def seen_keys(rng: torch.Generator, *shape: int) -> Tensor:
    """A random mask of this shape in which every query sees its first key."""
    mask = torch.rand(*shape, generator=rng) < 0.6
    mask[..., 0] = True
    return mask


def finds(call, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, what: str = "") -> None:
    same(call("attention", q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask), what)


@check("attention", "shape", 1)
def a_vector_per_query(call, rng):
    """attention gives a float tensor [B, H, Tq, D], also where there are more keys than queries."""
    tensor(call("attention", *qkv(rng, queries=5, keys=7), seen_keys(rng, 2, 1, 5, 7)), (2, 3, 5, 4))


@check("attention", "number", 3)
def a_quarter_and_three_quarters(call, rng):
    """The handout's query: scores 0 and 2 ln 3 with D = 4, the third key hidden; weights 1/4 and 3/4, result (1, 3, 0, 0)."""
    q = torch.tensor([[[[2.0, 0, 0, 0]]]])
    k = torch.tensor([[[[0.0, 5, 5, 5], [torch.tensor(3.0).log().item(), 0, 0, 0], [9, 9, 9, 9]]]])
    v = torch.tensor([[[[4.0, 0, 0, 0], [0, 4, 0, 0], [0, 0, 99, 99]]]])
    same(call("attention", q, k, v, torch.tensor([[[[True, True, False]]]])), torch.tensor([[[[1.0, 3, 0, 0]]]]))


@check("attention", "property", 2)
def equals_torchs_own(call, rng):
    """The same as torch's scaled_dot_product_attention, with masks [T, T], [B, 1, Tq, Tk] and [B, 1, 1, Tk]."""
    finds(call, *qkv(rng), causal(5), "causal mask [T, T]")
    finds(call, *qkv(rng, queries=4, keys=9), seen_keys(rng, 2, 1, 4, 9), "mask [B, 1, 4, 9]")
    finds(call, *qkv(rng, queries=1, keys=9), seen_keys(rng, 2, 1, 1, 9), "mask [B, 1, 1, 9]")


@check("attention", "property", 1)
def attention_can_be_trained(call, rng):
    """Gradients reach q, k and v, and are those of torch's own attention."""
    parts = qkv(rng)
    mine = [t.clone().requires_grad_() for t in parts]
    expected = torch.autograd.grad(F.scaled_dot_product_attention(*mine, attn_mask=causal(5)).sum(), mine)
    for name, found, right in zip("qkv", call.gradients("attention", *parts, causal(5), of=(0, 1, 2)), expected):
        same(found, right, f"gradient of the sum of the result by {name}")


@check("attention", "trap", 1)
def scores_are_scaled(call, rng):
    """Without 1 / sqrt(D) the scores of wide heads are so far apart that softmax picks one key, and its gradient vanishes."""
    finds(call, *qkv(rng, D=64), causal(5), "D = 64")


@check("attention", "trap", 1)
def the_width_of_a_head_sets_the_scale(call, rng):
    """D is the width of one head: neither the number of keys nor the width of the model."""
    finds(call, *qkv(rng, H=2, queries=16, keys=16, D=4), causal(16), "D = 4, 16 keys, C = 8")


@check("attention", "trap", 1)
def weights_sum_to_one_over_the_keys(call, rng):
    """Softmax runs over keys, so the mean of equal values is that value; over queries it is not."""
    q, k, v = qkv(rng, queries=4, keys=6)
    same(call("attention", q, k, torch.ones_like(v), torch.ones(4, 6, dtype=torch.bool)), torch.ones(2, 3, 4, 4), "all values 1, nothing hidden")


@check("attention", "trap", 2)
def hidden_keys_leave_before_the_softmax(call, rng):
    """Weights that are set to 0 after the softmax have already taken their share: the rest no longer sums to 1."""
    q, k, v = qkv(rng)
    same(call("attention", q, k, torch.ones_like(v), causal(5)), torch.ones(2, 3, 5, 4), "all values 1, later keys hidden")


@check("attention", "trap", 1)
def true_means_may_look(call, rng):
    """In this mask True lets a look through; some libraries mean the opposite, and masked_fill fills where its argument is True."""
    q, k, v = qkv(rng, queries=1, keys=3)
    found = call("attention", q, k, v, torch.tensor([[[[False, True, False]]]]).expand(2, 1, 1, 3))
    same(found, v[:, :, 1:2], "only the second key may be seen")


# ---- cached_attention -----------------------------------------------------------------------------------------------

def half_full(rng: torch.Generator, lengths: list[int], M: int, leftovers: float = 0.0) -> tuple[Tensor, ...]:
    """q, k_new, v_new [B, 2, 1, 4], caches [B, 2, M, 4] with `leftovers` behind each row's end, and lengths."""
    B = len(lengths)
    new = [torch.randn(B, 2, 1, 4, generator=rng) for _ in range(3)]
    caches = [torch.randn(B, 2, M, 4, generator=rng) for _ in range(2)]
    for row, n in enumerate(lengths):
        for cache in caches:
            cache[row, :, n:] = leftovers
    return *new, *caches, torch.tensor(lengths)


def found_and_stored(q: Tensor, k_new: Tensor, v_new: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The right answer, a row at a time, from what the row would hold without a cache."""
    keys, values, outs = k_cache.clone(), v_cache.clone(), []
    for row, n in enumerate(lengths.tolist()):
        keys[row, :, n], values[row, :, n] = k_new[row, :, 0], v_new[row, :, 0]
        outs.append(F.scaled_dot_product_attention(q[row], keys[row, :, :n + 1], values[row, :, :n + 1]))
    return torch.stack(outs), keys, values


def three(call, args: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """What cached_attention gives: a result like q and two caches like those that went in. Wrong for anything else."""
    found = call("cached_attention", *args)
    holds(isinstance(found, (tuple, list)) and len(found) == 3, f"Expected a tuple (result, k_cache, v_cache), got {type(found).__name__}.")
    return tuple(tensor(part, tuple(like.shape), name) for part, like, name in zip(found, (args[0], args[3], args[4]), ("the result", "k_cache", "v_cache")))


@check("cached_attention", "shape", 1)
def a_result_and_two_caches(call, rng):
    """cached_attention gives (result [B, H, 1, D], k_cache [B, H, M, D], v_cache [B, H, M, D])."""
    three(call, half_full(rng, [3, 3, 3], 6))


@check("cached_attention", "number", 2)
def two_rows_by_hand(call, rng):
    """The handout's rows: values 1 and 2 in the cache and 6 new, all scores equal, give 3; an empty cache and 5 new gives 5."""
    new_v = torch.tensor([6.0, 5.0]).view(2, 1, 1, 1)
    values = torch.tensor([[1.0, 2, 50], [50, 50, 50]]).view(2, 1, 3, 1)
    zero, one = torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
    result, _, values = three(call, (one, zero, new_v, torch.zeros(2, 1, 3, 1), values, torch.tensor([2, 0])))
    same(result.flatten(), torch.tensor([3.0, 5.0]), "the result")
    same(values.flatten(), torch.tensor([1.0, 2, 6, 5, 50, 50]), "v_cache")


@check("cached_attention", "property", 3)
def equals_attention_without_a_cache(call, rng):
    """Token after token through the cache finds what causal attention over the whole text finds."""
    q, k, v = qkv(rng, B=2, H=2, queries=6, keys=6)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    caches = [torch.zeros(2, 2, 6, 4), torch.zeros(2, 2, 6, 4)]
    for t in range(6):
        result, *caches = three(call, (q[:, :, t:t + 1], k[:, :, t:t + 1], v[:, :, t:t + 1], *caches, torch.tensor([t, t])))
        same(result[:, :, 0], expected[:, :, t], f"token {t}")


@check("cached_attention", "trap", 2)
def each_row_writes_at_its_own_place(call, rng):
    """Rows have different lengths: one place for all would leave a gap in one row and overwrite another; nothing else in a cache changes."""
    args = half_full(rng, [1, drawn(2, 4, rng), 6], 8)
    _, keys, values = three(call, args)
    _, right_keys, right_values = found_and_stored(*args)
    for name, found, right in (("k_cache", keys, right_keys), ("v_cache", values, right_values)):
        for row, n in enumerate(args[-1].tolist()):
            same(found[row], right[row], f"{name} of row {row}, whose new token goes to place {n} (shown as [H, M, D])")


@check("cached_attention", "trap", 2)
def leftovers_are_not_seen(call, rng):
    """What stands behind a row's end is another row's text, or an older one's: the new token must not look there."""
    args = half_full(rng, [5, 2, 0], 8, leftovers=7.0)
    result, right = three(call, args)[0], found_and_stored(*args)[0]
    for row, n in enumerate(args[-1].tolist()):
        same(result[row], right[row], f"row {row} with {n} earlier tokens")


@check("cached_attention", "trap", 1)
def a_new_token_sees_itself(call, rng):
    """lengths counts the earlier tokens; the new one stands at place lengths and is visible too. An empty row would otherwise see nothing: NaN."""
    args = half_full(rng, [0, 4], 6)
    result = three(call, args)[0]
    same(result[0], args[2][0], "a row without earlier tokens finds its own value")
    same(result, found_and_stored(*args)[0], "with four earlier tokens")


# ---- keep_nucleus ---------------------------------------------------------------------------------------------------

TENTHS = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()


@check("keep_nucleus", "shape", 1)
def logits_of_the_same_shape(call, rng):
    """keep_nucleus gives a float tensor [B, V]."""
    tensor(call("keep_nucleus", torch.randn(3, 11, generator=rng), 0.9), (3, 11))


@check("keep_nucleus", "number", 1)
def sixty_per_cent_of_tenths(call, rng):
    """Probabilities .1 .2 .3 .4 and top_p .6: .4 is too little, .4 + .3 is enough; the other two get -inf."""
    same(call("keep_nucleus", TENTHS, 0.6), TENTHS.masked_fill(torch.tensor([[True, True, False, False]]), -INF))


@check("keep_nucleus", "property", 2)
def keeps_what_the_project_keeps(call, rng):
    """The same tokens as in generate.py on random logits, each row cut by itself."""
    for top_p in (0.5, 0.9, 0.99):
        logits = 2 * torch.randn(6, 40, generator=rng)
        same(call("keep_nucleus", logits, top_p), logits.masked_fill(_nucleus(logits.softmax(-1), top_p) == 0, -INF), f"top_p {top_p}")


@check("keep_nucleus", "trap", 2)
def the_token_that_crosses_the_line_stays(call, rng):
    """The nucleus must *reach* top_p, so the token with which it does belongs to it; a likeliest token above top_p would otherwise leave nothing to draw."""
    for top_p, cut in ((0.3, [True, True, True, False]), (0.5, [True, True, False, False])):
        same(call("keep_nucleus", TENTHS, top_p), TENTHS.masked_fill(torch.tensor([cut]), -INF), f"probabilities .1 .2 .3 .4, top_p {top_p}")


@check("keep_nucleus", "trap", 1)
def ranks_are_not_ids(call, rng):
    """Tokens are ranked to decide, but a logit belongs to its id: the result must not come back sorted."""
    order = torch.randperm(4, generator=rng)
    order = order.roll(1) if order[:2].tolist() == [3, 2] else order  # the likeliest two must not come first already
    kept = torch.tensor([[-INF, -INF, *TENTHS[0, 2:].tolist()]])
    same(call("keep_nucleus", TENTHS[:, order], 0.6), kept[:, order])


# ---- next_token -----------------------------------------------------------------------------------------------------

def aimed(rng: torch.Generator, rows: int, vocabulary: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits [rows, V] and draws u [rows] well inside some token's part of the line: no rounding decides between two tokens."""
    logits = torch.randn(rows, vocabulary, generator=rng)
    probs = (logits / temperature).double().softmax(-1)
    tokens = probs.topk(3).indices[torch.arange(rows), torch.randint(3, (rows,), generator=rng)][:, None]
    inside = 0.1 + 0.8 * torch.rand(rows, 1, generator=rng, dtype=torch.float64)
    return logits, (probs.cumsum(-1).gather(1, tokens) - inside * probs.gather(1, tokens))[:, 0]


def draws(call, logits: Tensor, temperature: float, u: Tensor, what: str = "") -> None:
    same(call("next_token", logits, temperature, u), pick(logits, temperature, 0, 1.0, u), what)


@check("next_token", "shape", 1)
def an_id_per_row(call, rng):
    """next_token gives a whole-number tensor [B]."""
    logits, u = aimed(rng, 4, 9, 1.0)
    tensor(call("next_token", logits, 1.0, u), (4,), floating=False)


@check("next_token", "number", 2)
def half_way_along_the_line(call, rng):
    """Probabilities .1 .2 .3 .4 and u = .5: token 2. At temperature .5 they become .01 .04 .09 .16 of .30: token 3."""
    half = torch.tensor([0.5], dtype=torch.float64)
    same(call("next_token", TENTHS, 1.0, half), torch.tensor([2]), "temperature 1")
    same(call("next_token", TENTHS, 0.5, half), torch.tensor([3]), "temperature .5")


@check("next_token", "property", 2)
def draws_what_the_project_draws(call, rng):
    """The same tokens as generate.pick on random logits, at several temperatures."""
    for temperature in (0.7, 1.0, 1.5):
        logits, u = aimed(rng, 16, 50, temperature)
        draws(call, logits, temperature, u, f"temperature {temperature}")


@check("next_token", "trap", 1)
def temperature_zero_is_greedy(call, rng):
    """Temperature 0 takes the likeliest token whatever u is; dividing by 0 gives infinities and NaN."""
    logits, u = aimed(rng, 8, 20, 1.0)
    draws(call, logits, 0.0, u)


@check("next_token", "trap", 1)
def temperature_acts_before_the_softmax(call, rng):
    """Logits are divided by the temperature; probabilities divided by it are only the same line at another length. Cold must sharpen, hot must flatten."""
    for temperature in (0.25, 4.0):
        logits, u = aimed(rng, 16, 12, temperature)
        draws(call, logits, temperature, u, f"temperature {temperature}")


@check("next_token", "trap", 1)
def u_alone_is_random(call, rng):
    """The draw is u: a function that draws by itself gives another reply each time, and no run can be repeated."""
    u = torch.linspace(0.05, 0.95, 16, dtype=torch.float64)
    draws(call, torch.zeros(16, 10), 1.0, u, "ten equally likely tokens, u from .05 to .95")


@check("next_token", "trap", 1)
def each_row_has_its_own_u(call, rng):
    """One draw for all rows would make the replies of a batch depend on each other."""
    logits = torch.zeros(4, 4)
    draws(call, logits, 1.0, torch.tensor([0.9, 0.1, 0.6, 0.3], dtype=torch.float64), "four equally likely tokens")


@check("next_token", "trap", 1)
def an_impossible_token_is_never_drawn(call, rng):
    """A token with logit -inf has no part of the line; u = 0 must not draw it because it stands first."""
    logits = torch.cat([torch.full((2, 3), -INF), torch.randn(2, 4, generator=rng)], dim=1)
    draws(call, logits, 1.0, torch.zeros(2, dtype=torch.float64), "the first three of seven tokens are impossible, u = 0")


@check("next_token", "trap", 1)
def the_last_draw_is_a_token(call, rng):
    """A u just below 1 is 1 in float32, and rounded probabilities may sum to less than u: the id must neither be V nor an impossible token."""
    u = torch.tensor([1 - 2**-53], dtype=torch.float64)
    draws(call, torch.zeros(1, 7), 1.0, u, "seven equally likely tokens")
    draws(call, torch.tensor([[0.3, 0.1, -0.2, -INF, -INF]]), 1.0, u, "the last two of five tokens are impossible")
