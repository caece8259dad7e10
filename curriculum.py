"""Which pairs come when: the whole order of a DPO run, decided before its first step and the same after every resume.

    python train_dpo.py toy --dpo.curriculum=staged --dpo.difficulty=edit --dry-run       prints the stages, trains nothing

Difficulty is one number per pair, higher = harder: the source's own `level`, how wrong the reference gets the pair (`margin`), or how
much alike its replies are (`edit`). A schedule turns it into an order; --dpo.reverse turns the difficulty round. One optimizer and one
learning-rate schedule run over all stages unless --dpo.stage_restart asks for new ones in each.
"""
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np

from batching import shuffled_steps
from data.store import PairStore
from runtime.config import DPOConfig
from runtime.errors import UserError
from runtime.optim import total_steps

SCHEDULES = ("none", "staged", "cumulative", "linear", "hardest_last")


@dataclass(frozen=True)
class Stage:
    """Consecutive optimizer steps on one pool of pairs. Without a curriculum every pass over the data is one."""
    name: str
    start: int     # its first optimizer step
    steps: int
    pairs: int     # different pairs in its pool


@dataclass(frozen=True)
class Plan:
    """The pairs of every optimizer step, and the stages these steps belong to."""
    steps: list[np.ndarray]
    stages: list[Stage]

    def stage_at(self, step: int) -> int:
        """The number of the stage that `step` belongs to, from 0."""
        return sum(stage.start <= step for stage in self.stages) - 1

    def hash(self) -> str:
        """16 hex digits that name this order: a difficulty measured by a model can come out otherwise on another device."""
        sha = hashlib.sha256()
        for step in self.steps:
            sha.update(step.astype(np.int64).tobytes())
        return sha.hexdigest()[:16]

    def pairs_of(self, stage: Stage) -> np.ndarray:
        """The different pairs that a stage's steps hold."""
        return np.unique(np.concatenate(self.steps[stage.start:stage.start + stage.steps]))


# ---- difficulty -----------------------------------------------------------------------------------------------------

def given_levels(store: PairStore) -> np.ndarray:
    """The source's own levels [n]. UserError when it gives none."""
    levels = np.asarray(store.index["level"], dtype=np.float64)
    if not levels.any():
        raise UserError("--dpo.difficulty=level: this source says no levels (a \"level\" field, or files named easy, medium and hard); use margin or edit.")
    if not levels.all():
        raise UserError(f"--dpo.difficulty=level: {int((levels == 0).sum()):,} of {len(levels):,} pairs have no level, and would pass for the easiest.")
    return levels


def reply_likeness(store: PairStore) -> np.ndarray:
    """1 - edit distance / longer reply, of a pair's two replies in tokens [n]: 1 = identical, the hardest to tell apart."""
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError:
        raise UserError("--dpo.difficulty=edit needs rapidfuzz: pip install rapidfuzz") from None
    rows = (store.row(i) for i in range(len(store)))
    return np.array([Levenshtein.normalized_similarity(chosen.tolist(), rejected.tolist()) for _, _, chosen, rejected in rows])


def reference_error(store: PairStore, logps: np.ndarray) -> np.ndarray:
    """How much likelier per token the reference finds the *rejected* reply [n], nats per token; logps [n, 2] (chosen, rejected).

    Mean log-probs, since of two sums the longer reply's is the lower one whatever the replies say.
    """
    return logps[:, 1] / store.index["rejected"] - logps[:, 0] / store.index["chosen"]


# ---- schedules ------------------------------------------------------------------------------------------------------

def make_plan(c: DPOConfig, n: int, seed: int, difficulty: np.ndarray | None = None) -> Plan:
    """The plan of a run over `n` pairs, a pure function of its arguments; difficulty [n] unless the schedule is "none".

    dpo.max_pairs keeps a random choice of pairs. Raises UserError for an unknown schedule.
    """
    if c.curriculum not in SCHEDULES:
        raise UserError(f"--dpo.curriculum: '{c.curriculum}' is none of {', '.join(SCHEDULES)}.")
    if not (0 <= c.keep <= 1 and 0 < c.opening <= 1 and c.pace >= 0):
        raise UserError("--dpo.keep must be from 0 to 1, --dpo.opening above 0 and at most 1, and --dpo.pace 0 or more.")
    pool = np.arange(n)
    if c.max_pairs > n:
        raise UserError(f"--dpo.max_pairs={c.max_pairs}: there are only {n:,} pairs.")
    if c.max_pairs:
        pool = np.sort(np.random.default_rng([seed, 1]).permutation(n)[:c.max_pairs])
    total = total_steps(c, len(pool))
    if c.curriculum == "none":
        return in_passes("pass {}", pool, shuffled_steps(pool, c.batch, [seed], total))
    hard = difficulty[pool] * (-1 if c.reverse else 1)
    if c.curriculum == "hardest_last":
        return in_passes("pass {}, sorted", pool, list(islice(sorted_passes(pool, hard, c.batch, seed), total)))
    if c.curriculum == "linear":
        return Plan(opening_pool(pool, hard, c, seed, total), [Stage("opening", 0, total, len(pool))])
    return staged(pool, hard, c, seed)


def in_passes(name: str, pool: np.ndarray, steps: list[np.ndarray]) -> Plan:
    """A plan whose stages are the passes over the pool."""
    per_pass, ends, seen = [], len(pool), 0
    for at, step in enumerate(steps):
        if seen % ends == 0:
            per_pass.append(at)
        seen += len(step)
    return Plan(steps, [Stage(name.format(k + 1), at, following - at, min(len(pool), sum(map(len, steps[at:following]))))
                        for k, (at, following) in enumerate(zip(per_pass, [*per_pass[1:], len(steps)]))])


def sorted_passes(pool: np.ndarray, hard: np.ndarray, batch: int, seed: int) -> Iterator[np.ndarray]:
    """Steps of endless passes from the easiest pair to the hardest; ties in an order of their own in each pass."""
    for epoch in count():
        order = pool[np.lexsort((np.random.default_rng([seed, epoch]).permutation(len(pool)), hard))]
        yield from (order[at:at + batch] for at in range(0, len(order), batch))


def opening_pool(pool: np.ndarray, hard: np.ndarray, c: DPOConfig, seed: int, total: int) -> list[np.ndarray]:
    """Linear pacing (Platanios et al. 2019, eq. 2): each step draws from the easiest share of the pairs, which grows from
    dpo.opening to all of them at the share dpo.pace of the steps. Steps are drawn apart: easy pairs come up more often than hard ones,
    and in one epoch many never do. Ties stand in the store's order."""
    order = pool[np.argsort(hard, kind="stable")]
    steps = []
    for at in range(total):
        share = min(1.0, c.opening + (1 - c.opening) * at / max(1.0, c.pace * total))
        open_now = order[:max(min(c.batch, len(order)), math.ceil(share * len(order)))]
        steps.append(np.random.default_rng([seed, at]).choice(open_now, min(c.batch, len(open_now)), replace=False))
    return steps


def staged(pool: np.ndarray, hard: np.ndarray, c: DPOConfig, seed: int) -> Plan:
    """Stages from easy to hard, each with passes over its own pairs. "cumulative": each keeps the share dpo.keep of all earlier pairs.

    Stages are the levels the source gives, or dpo.stages parts of equal size, in which ties stand in the store's order. dpo.epochs counts for
    every stage; dpo.max_steps is dealt out by the stages' sizes.
    """
    if c.difficulty == "level":
        levels = np.unique(hard)
        groups = [(f"level {abs(level):g}", pool[hard == level]) for level in levels]
    else:
        order = np.argsort(hard, kind="stable")
        shown = -hard if c.reverse else hard
        groups = [(f"part {k + 1} of {c.stages}, {c.difficulty} {shown[part].min():.3g} to {shown[part].max():.3g}", pool[np.sort(part)])
                  for k, part in enumerate(np.array_split(order, max(1, c.stages))) if len(part)]
    if c.curriculum == "cumulative":
        pools, rng = [], np.random.default_rng([seed, 2])
        for name, own in groups:
            earlier = np.concatenate([pool[:0], *(g for _, g in groups[:len(pools)])])
            pools.append((name, np.sort(np.concatenate([own, rng.permutation(earlier)[:round(c.keep * len(earlier))]]))))
        groups = pools
    counts = [total_steps(c, len(own)) for _, own in groups]
    if c.max_steps:
        counts = deal_out(c.max_steps, [len(own) for _, own in groups])
    steps: list[np.ndarray] = []
    stages = []
    for k, ((name, own), some) in enumerate(zip(groups, counts)):
        if some:
            stages.append(Stage(name, len(steps), some, len(own)))
            steps += shuffled_steps(own, c.batch, [seed, k], some)
    return Plan(steps, stages)


def deal_out(total: int, sizes: list[int]) -> list[int]:
    """`total` in whole parts as near as possible to the proportions of `sizes` (largest remainders)."""
    exact = [total * size / sum(sizes) for size in sizes]
    parts = [math.floor(x) for x in exact]
    for k in sorted(range(len(sizes)), key=lambda k: parts[k] - exact[k])[:total - sum(parts)]:
        parts[k] += 1
    return parts


def show_plan(plan: Plan, store: PairStore, batch: int) -> None:
    """Print every stage: its steps, its pairs, and its first pairs by their row in the source."""
    print(f"{len(plan.steps):,} steps of {batch} pairs, {sum(map(len, plan.steps)):,} in all, {len(plan.pairs_of(Stage('', 0, len(plan.steps), 0))):,} of them different")
    for k, stage in enumerate(plan.stages):
        first = store.index["source_row"][plan.steps[stage.start][:8]].tolist()
        print(f"  stage {k + 1} ({stage.name}): steps {stage.start:,} to {stage.start + stage.steps - 1:,}, {stage.pairs:,} pairs; first source rows {', '.join(map(str, first))}")
