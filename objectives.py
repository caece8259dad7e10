"""All objectives by name, and the one door to them: `preference_loss`. What each is, and where it comes from, stands in its own docstring.

    losses, chosen_rewards, rejected_rewards = preference_loss(pi_w, pi_l, ref_w, ref_l, objective="dpop", beta=0.1, penalty=5.0)
    preference_loss(..., objective="dpo + 0.2 nll", chosen_tokens=n)        a weighted sum
"""
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

import losses as basic
import more_losses as more
from losses import Pairs

OBJECTIVES: dict[str, Callable[..., Tensor]] = {f.__name__: f for f in (
    basic.dpo, basic.cdpo, basic.ipo, basic.hinge, basic.dpop, basic.simpo, basic.kto,
    more.robust, more.exo, more.ipo_norm, more.dpo_norm, more.rdpo, more.lddpo, more.nca, more.bco, more.sppo, more.apo_zero, more.apo_down,
    more.aot, more.aot_unpaired, more.beta_dpo, more.discopop, more.fdpo_forward_kl, more.fdpo_js, more.fdpo_alpha, more.nll, more.rpo, more.cpo,
    more.orpo, more.odpo, more.wpo, more.dpop_additive)}
REFERENCE_FREE = {"simpo", "cpo", "orpo", "nll"}
WHOLE_STEP = {"kto", "aot", "aot_unpaired", "beta_dpo"}           # a pair's loss depends on the other pairs of the step
PER_TOKEN = {"ipo_norm", "dpo_norm", "simpo", "orpo"}             # rank mean log-probs; so are their rewards
PENALISED = {"dpop", "dpop_additive", "rpo", "cpo", "orpo", "nll"}  # hold the chosen reply up: it had better be the right one
NEXT_STATE = {"bco": ("shift", more.bco_shift), "beta_dpo": ("mean", more.beta_dpo_mean)}
RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "beta": ("> 0", lambda v: v > 0), "label_smoothing": ("in [0, .5)", lambda v: 0 <= v < 0.5), "penalty": (">= 0", lambda v: v >= 0),
    "alpha": (">= 0", lambda v: v >= 0), "tau": ("> 0", lambda v: v > 0), "gamma": (">= 0", lambda v: v >= 0),
    "desirable": ("> 0", lambda v: v > 0), "undesirable": ("> 0", lambda v: v > 0)}


def parse(objective: str) -> dict[str, float]:
    """{"dpo": 1.0, "nll": 0.2} from "dpo + 0.2 nll". Raises ValueError for what is no objective."""
    weights: dict[str, float] = {}
    for term in objective.split("+"):
        found = re.fullmatch(r"\s*(?:([\d.]+)\s*\*?\s*)?([a-z_]+)\s*", term)
        if not found or found[2] not in OBJECTIVES or found[2] in weights:
            raise ValueError(f"unknown objective {objective!r}; known: {', '.join(OBJECTIVES)}, and sums such as 'dpo + 0.2 nll'")
        weights[found[2]] = float(found[1] or 1)
    return weights


def reference_free(objective: str) -> bool:
    """True when no term of an objective looks at the reference."""
    return REFERENCE_FREE >= set(parse(objective))


def settings_of(name: str, given: dict[str, float]) -> dict[str, float]:
    """The hyper-parameters of one objective: its own defaults where nothing is given. Raises ValueError for a value outside its range."""
    own = {key: parameter.default for key, parameter in inspect.signature(OBJECTIVES[name]).parameters.items() if key != "p"}
    own |= {key: value for key, value in given.items() if key in own}
    for key, value in own.items():
        if key in RANGES and not RANGES[key][1](value):
            raise ValueError(f"{name}: {key} must be {RANGES[key][0]}, not {value}")
    if name == "exo" and own["label_smoothing"] == 0:
        raise ValueError("exo: label_smoothing must be > 0")
    if name == "fdpo_alpha" and not 0 < own["alpha"] < 1:
        raise ValueError("fdpo_alpha: alpha must be between 0 and 1")
    return own


def takes(objective: str) -> set[str]:
    """The names of all settings that some term of an objective has."""
    return {key for name in parse(objective) for key in inspect.signature(OBJECTIVES[name]).parameters if key != "p"}


def check(objective: str, given: dict[str, float]) -> None:
    """Raises ValueError for an unknown objective, a value out of range, and a setting that none of its terms has."""
    terms = parse(objective)
    for name in terms:
        settings_of(name, given)
    if unknown := sorted(set(given) - takes(objective)):
        raise ValueError(f"{objective} has no {', '.join(unknown)}; it has {', '.join(sorted(takes(objective))) or 'no settings'}")
    if "lddpo" in terms and len(terms) > 1:
        raise ValueError("lddpo changes the log-probs themselves: it cannot be a term of a sum")


def pair_losses(p: Pairs, objective: str, given: dict[str, float]) -> Tensor:
    """The weighted sum of an objective's terms [P]."""
    weights = parse(objective)
    if len(p.chosen) < 2 and WHOLE_STEP & set(weights):
        raise ValueError(f"{objective} compares the pairs of a step: it needs at least two")
    return torch.stack([weight * OBJECTIVES[name](p, **settings_of(name, given)) for name, weight in weights.items()]).sum(0)


def beta_of(objective: str, beta: float) -> float:
    """The factor of an objective's rewards: `beta`, or where that is negative its first term's own default; 1 where it has none."""
    return settings_of(next(iter(parse(objective))), {"beta": beta} if beta >= 0 else {}).get("beta", 1.0)


def rewards(p: Pairs, objective: str, given: dict[str, float]) -> tuple[Tensor, Tensor]:
    """Implicit rewards [P] of both replies without gradient: beta times the log-ratio, by the first term's beta, in its terms (per token, without reference)."""
    first = next(iter(parse(objective)))
    beta = beta_of(objective, given.get("beta", -1))
    chosen, rejected = (p.chosen, p.rejected) if first in REFERENCE_FREE else (p.w, p.l)
    if first in PER_TOKEN:
        chosen, rejected = chosen / p.chosen_tokens, rejected / p.rejected_tokens
    return beta * chosen.detach(), beta * rejected.detach()


def preference_loss(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, reference_chosen_logps: Tensor, reference_rejected_logps: Tensor,
                    objective: str = "dpo", *, chosen_tokens: Tensor | None = None, rejected_tokens: Tensor | None = None, margin: Tensor | None = None,
                    on_policy: Tensor | None = None, **settings: float) -> tuple[Tensor, Tensor, Tensor]:
    """(losses, chosen_rewards, rejected_rewards), [P] each, from log-probs summed over reply tokens, nats [P]; rewards carry no gradient.

    settings: the objective's hyper-parameters by its paper's names; what is not given has the default of its function. Formats
    below float32 are computed in float32. Raises ValueError for an unknown objective or setting, and a value outside its range.
    """
    check(objective, settings)
    p = make_pairs(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, chosen_tokens, rejected_tokens, margin, on_policy)
    return pair_losses(p, objective, settings), *rewards(p, objective, settings)


def make_pairs(*columns: Tensor | None) -> Pairs:
    """`Pairs` in float32 or better, from columns in its order."""
    return Pairs(*(t if t is None or t.dtype == torch.float64 else t.float() for t in columns))


def join(pieces: Sequence[Pairs]) -> Pairs:
    """The pairs of several micro-batches, without gradient."""
    columns = [[getattr(piece, field.name) for piece in pieces] for field in fields(Pairs)]
    return Pairs(*(None if column[0] is None else torch.cat(column).detach() for column in columns))


def first(p: Pairs, n: int) -> Pairs:
    """The first n pairs."""
    return Pairs(*(None if column is None else column[:n] for column in (getattr(p, field.name) for field in fields(Pairs))))


def step_gradients(p: Pairs, objective: str, given: dict[str, float]) -> tuple[Tensor, Tensor, Tensor]:
    """(losses [P], d mean loss / d log pi(y_w) [P], d mean loss / d log pi(y_l) [P]) of a whole step's pairs.

    For objectives that look at all pairs of a step when memory holds only some of them: score all without gradient, come here, then score
    each micro-batch again and backpropagate (log-probs x these gradients).sum(). By the chain rule that is the gradient of one big batch.
    """
    chosen, rejected = (t.detach().clone().requires_grad_() for t in (p.chosen, p.rejected))
    with torch.enable_grad():
        losses = pair_losses(replace(p, chosen=chosen, rejected=rejected), objective, given)
        gradients = torch.autograd.grad(losses.mean(), (chosen, rejected), materialize_grads=True)
    return losses.detach(), *gradients


def next_state(p: Pairs, objective: str, given: dict[str, float], state: dict[str, float]) -> dict[str, float]:
    """The running means of an objective (BCO's shift, beta-DPO's mean) after a step of pairs; empty for objectives without any."""
    new = dict(state)
    for name in parse(objective):
        if name in NEXT_STATE:
            key, update = NEXT_STATE[name]
            taken = {k: v for k, v in settings_of(name, given | state).items() if k in inspect.signature(update).parameters}
            new[key] = update(p, **taken)
    return new
