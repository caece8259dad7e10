"""Stage 2: Direct Preference Optimization (Rafailov et al. 2023). The policy starts as the SFT model and learns to prefer the chosen replies.

    python train_dpo.py toy        a missing earlier stage (data, SFT) is announced and run first

The same command continues a killed run, bit for bit. `--help` lists every setting.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from batching import Batch, reply_tokens, row_lengths, score_pairs, sequence_logps, show_mask, steps_ahead
from curriculum import Plan, given_levels, make_plan, reference_error, reply_likeness, show_plan
from data.store import PairStore
from eval.samples import write_samples
from eval.watch import watched_prompts, what_it_writes
from hf_model import CausalLM, choose_rows, fill
from lora import load_adapters
from losses import Pairs
from model import GPT
from objectives import PENALISED, WHOLE_STEP, beta_of, check, first, join, make_pairs, next_state, pair_losses, parse, reference_free, rewards, settings_of, step_gradients, takes
from reference import Reference, folder_of, forget_before, mix
from runtime import distributed
from runtime.checkpoint import has_shards
from runtime.config import Config, DPOConfig, LoraConfig, load_config
from runtime.device import Device, peak_memory_gb, setup_device
from runtime.distributed import World
from runtime.errors import UserError, run_main
from runtime.optim import lr_at, make_optimizer, update
from runtime.run import Run, fingerprint, pairs_tokenizer, preference_start, prepared_pairs, starting_model
from tokenizer import Tokenizer


def chosen_settings(c: DPOConfig, lora: LoraConfig) -> dict[str, float]:
    """The objective's settings that the config gives. UserError for an unknown objective, another one's setting, and what adapters do not go with."""
    if lora.rank and (lora.dropout or c.reference_update):
        raise UserError("in DPO lora.dropout must be 0 (noise in a log-ratio is noise in the reward) and dpo.reference_update too (adapters off is the reference).")
    given = {name: getattr(c, name) for name in ("beta", "label_smoothing", "penalty", "alpha", "gamma", "tau") if getattr(c, name) >= 0}
    try:
        if "beta" not in takes(c.objective):
            given.pop("beta", None)  # every config has one
        check(c.objective, given)
    except ValueError as error:
        raise UserError(f"dpo.objective: {error}.") from None
    return given


def check_pairs(objective: str, store: PairStore) -> None:
    """UserError for pairs that an objective must not see: chosen replies known to be false where it holds them up, margins that are not there."""
    terms, false = set(parse(objective)), int((store.index["chosen_is_true"] == 0).sum())
    if terms & PENALISED and false:
        raise UserError(f"{objective} holds the chosen reply up, and in {false:,} pairs it is known to be false.")
    if "odpo" in terms and not (store.index["margin"] > 0).all():
        raise UserError("odpo needs a margin > 0 in every pair; this source gives none.")
    if false:
        print(f"warning: in {false:,} of {len(store):,} pairs the chosen reply is known to be false; {objective} will prefer it all the same.")


def plan_of(c: DPOConfig, store: PairStore, seed: int, scores: Callable[[], np.ndarray] | None) -> Plan:
    """Which pairs come when (curriculum.py); scores: the reference's log-probs [n, 2], asked for only where difficulty is measured by them.

    UserError for an unknown setting, and for a step too small for the objective.
    """
    measures = {"level": lambda: given_levels(store), "edit": lambda: reply_likeness(store), "margin": lambda: reference_error(store, scores())}
    if c.difficulty not in measures:
        raise UserError(f"--dpo.difficulty: '{c.difficulty}' is none of {', '.join(measures)}.")
    plan = make_plan(c, len(store), seed, None if c.curriculum == "none" else measures[c.difficulty]())
    if c.reference_update and len(plan.stages) == 1:
        raise UserError("dpo.reference_update moves the reference where a stage or pass ends, and this plan has only one.")
    if WHOLE_STEP & set(parse(c.objective)) and min(map(len, plan.steps)) < 2:
        raise UserError(f"{c.objective} compares the pairs of a step, and a step of this plan has only one: choose another --dpo.batch.")
    return plan


def tail_weight(c: DPOConfig, settings: dict[str, float]) -> float:
    """LD-DPO's weight of a longer reply's last tokens; 1 for all other objectives."""
    return settings_of("lddpo", settings)["alpha"] if "lddpo" in parse(c.objective) else 1.0


def score(model: GPT, batch: Batch, store: PairStore, reference: np.ndarray, c: DPOConfig, settings: dict[str, float], device: Device) -> Pairs:
    """The log-probs of a micro-batch, and whatever else an objective may ask about its pairs. reference [n, 2] of the whole store."""
    squares = "wpo" in parse(c.objective)
    with device.autocast():
        found = model(*batch.inputs(), squares=squares)
    logps, log_squares = found if squares else (found, None)
    tokens = reply_tokens(batch).view(-1, 2)
    on_policy = None
    if squares:  # the mean over a reply's tokens of log p - log sum p^2, of both replies together
        on_policy = sum(total / n for total, n in zip(sequence_logps((logps - log_squares).detach(), batch), tokens.T))
    ref, margin = (torch.from_numpy(column[batch.pairs]).to(logps.device) for column in (reference, store.index["margin"]))
    return make_pairs(*sequence_logps(logps, batch, tail_weight(c, settings)), *ref.T, *tokens.T, margin, on_policy)


def step_gradients_of(net: GPT, batches: list[Batch], scored: Callable[[Batch], Pairs], objective: str, settings: dict[str, float],
                      scaler: torch.amp.GradScaler, count: int, world: World = World()) -> tuple[Pairs, Tensor]:
    """Add one optimizer step's gradients to the model's; returns the pairs of all ranks and their losses [P], without gradient.

    Pairs are the unit: the loss is divided by the `count` pairs of the whole step, on all ranks, not of a micro-batch; and since DDP and
    FSDP2 *average* gradients over ranks, each rank's part is multiplied by their number.
    """
    if WHOLE_STEP & set(parse(objective)) and len(batches) * world.size > 1:
        return whole_step_gradients_of(net, batches, scored, objective, settings, scaler, world)
    pieces = []
    for k, batch in enumerate(batches):
        with distributed.reduced(net, last=k + 1 == len(batches)):
            p = scored(batch)
            loss = pair_losses(p, objective, settings).sum() * (world.size / count)
            scaler.scale(loss * batch.real).backward()
        pieces.append(first(p, len(batch.pairs) * batch.real))
    p, _ = world.gather(join(pieces))
    return p, pair_losses(p, objective, settings)


def whole_step_gradients_of(net: GPT, batches: list[Batch], scored: Callable[[Batch], Pairs], objective: str, settings: dict[str, float],
                            scaler: torch.amp.GradScaler, world: World) -> tuple[Pairs, Tensor]:
    """The same where a pair's loss depends on the others of its step: all are scored first, and then each micro-batch again, with the
    gradient of its log-probs known (objectives.step_gradients)."""
    real = [len(batch.pairs) * batch.real for batch in batches]
    with torch.no_grad():
        whole, mine = world.gather(join([first(scored(batch), n) for batch, n in zip(batches, real)]))
    losses, *slopes = step_gradients(whole, objective, settings)
    to_chosen, to_rejected = (slope[mine] * world.size for slope in slopes)
    for k, (batch, chosen, rejected) in enumerate(zip(batches, to_chosen.split(real), to_rejected.split(real))):
        with distributed.reduced(net, last=k + 1 == len(batches)):
            p = first(scored(batch), len(chosen))
            scaler.scale((p.chosen * chosen + p.rejected * rejected).sum()).backward()
    return whole, losses


def check_first_step(p: Pairs, losses: Tensor, objective: str, settings: dict[str, float], exact: bool, step: int = 0) -> None:
    """Before the first update the policy *is* the reference: log-probs must equal the cached ones, the loss [P] the objective's at zero log-ratios.

    Tolerance: 1e-4 nats per token in float32 (`exact`); where weights or products are rounded to 16 bits, .1 times the root of a reply's tokens:
    the cache was made in micro-batches of other shapes, and dropout of .1 makes several times as much. A failure means a wrong reference,
    dropout left on, or another dtype: the silent causes of a DPO run that goes nowhere. Raises UserError.
    """
    if reference_free(objective):
        print(f"step {step}: loss {losses.mean().item():.4f}; {objective} has no reference to compare with")
        return
    gap = (torch.stack([p.w, p.l], dim=1)).abs()
    tokens = torch.stack([p.chosen_tokens, p.rejected_tokens], dim=1)
    allowed = 1e-4 * tokens if exact else 0.1 * tokens.sqrt()
    if not bool((gap <= allowed).all()):  # NaN included
        worst = (gap - allowed).nan_to_num(math.inf).argmax()
        raise UserError(f"step {step}: the policy's log-probs differ from the reference's by up to {gap.flatten()[worst].item():.4f} nats although they are the same model; "
                        f"rounding explains {allowed.flatten()[worst].item():.4f}. Is it another model, another dtype, or dropout? --dtype=float32 leaves no room for rounding.")
    expected = pair_losses(replace(p, chosen=p.ref_chosen, rejected=p.ref_rejected), objective, settings).mean().item()
    # the loss may be off by what gaps of this size can do to it: much, under a large penalty
    worst = pair_losses(replace(p, chosen=p.ref_chosen - gap[:, 0], rejected=p.ref_rejected + gap[:, 1]), objective, settings).mean().item()
    if abs(losses.mean().item() - expected) > 5e-4 + abs(worst - expected):
        raise UserError(f"step {step}: the loss is {losses.mean().item():.4f}, not {expected:.4f}.")
    print(f"step {step}: loss {losses.mean().item():.4f} (expected {expected:.4f}), largest difference to the reference {gap.max().item():.1e} nats")


@torch.no_grad()
def validate(model: GPT, store: PairStore, reference: np.ndarray, indices: np.ndarray, config: Config, settings: dict[str, float], device: Device,
             world: World = World()) -> dict[str, float]:
    """Loss, rewards and log-probs over the validation pairs `indices`, dropout off; all of them are one step, and weigh the same (WPO too)."""
    logps = score_pairs(model, store, indices, config.dpo.micro_tokens, device.autocast, tail_weight=tail_weight(config.dpo, settings), world=world)
    tokens = [store.index[side][indices].astype(np.float32) for side in ("chosen", "rejected")]
    columns = [*logps, *reference[indices].T, *tokens, store.index["margin"][indices], np.zeros(len(indices))]
    p = make_pairs(*(torch.from_numpy(np.ascontiguousarray(column)).float() for column in columns))
    # beta-DPO's M is its own mean here, which leaves plain DPO: losses under a moving M would not compare from one validation to the next
    own = {"mean": p.delta.mean().item()} if "beta_dpo" in parse(config.dpo.objective) else {}
    losses = pair_losses(p, config.dpo.objective, settings | own)
    return {"loss": losses.mean().item()} | summarize(*rewards(p, config.dpo.objective, settings), p.chosen, p.rejected)


def summarize(r_chosen: Tensor, r_rejected: Tensor, chosen: Tensor, rejected: Tensor) -> dict[str, float]:
    """Means over pairs [P] of rewards and log-probs; accuracy = share of pairs whose chosen reward is higher (a tie counts half)."""
    wins = (r_chosen > r_rejected).float() + 0.5 * (r_chosen == r_rejected).float()
    return {"rewards__chosen": r_chosen.mean().item(), "rewards__rejected": r_rejected.mean().item(),
            "rewards__margin": (r_chosen - r_rejected).mean().item(), "rewards__accuracy": wins.mean().item(),
            "logps__chosen": chosen.mean().item(), "logps__rejected": rejected.mean().item()}


@dataclass
class Setup:
    """What a run consists of before its first step."""
    data: Path                         # the prepared pairs
    tokenizer: Tokenizer
    train: PairStore
    val: PairStore
    val_pairs: np.ndarray              # validation pairs looked at during training, always the same
    start: Path                        # the checkpoint the policy starts from
    device: Device
    load: Callable[[Path], GPT]
    reference: Reference
    plan: Plan
    world: World


def set_up(config: Config, argv: list[str], settings: dict[str, float]) -> Setup | None:
    """The data, where policy and reference start, and which pairs come when; None after a --dry-run, which prints the last."""
    c, world = config.dpo, distributed.start()
    data = prepared_pairs(config, argv)
    tokenizer = pairs_tokenizer(config, data)
    train, val = PairStore(data / "train"), PairStore(data / "val")
    check_pairs(c.objective, train)
    if config.dry_run and (c.curriculum == "none" or c.difficulty != "margin"):  # needs no model
        return show_plan(plan_of(c, train, config.seed, None), train, c.batch)
    start = preference_start(config, argv, c.init_from, data)
    device = setup_device(config)
    val_pairs = np.random.default_rng(0).permutation(len(val))[:c.eval_rows or len(val)]  # from the whole split
    if WHOLE_STEP & set(parse(c.objective)) and len(val_pairs) < 2:
        raise UserError(f"{c.objective} compares the pairs of a step: validation needs at least two (--dpo.eval_rows).")
    config.model.dropout = 0.0  # noise in a log-ratio is noise in the reward: off for policy and reference alike

    def load(folder: Path) -> GPT | CausalLM:
        """Policy and reference are made alike, compiled or not: fused kernels round differently. A large model goes straight into its shards."""
        in_shards = distributed.engine(config, world) == "fsdp" and config.data.tokenizer == "chat"
        model = starting_model(config, folder, tokenizer.vocab_size, empty=in_shards)
        model = distributed.shard(model if in_shards else model.to(device.device), config, world, device.device)
        if in_shards:
            fill(model, folder, device.device, config.seed)
        if isinstance(model, CausalLM):
            choose_rows(model, train, device.autocast, world)
        if config.compile:
            model.compile()
        return model

    weight = tail_weight(c, settings)
    reference = Reference(config, start, load, data, device, weight, world)
    # difficulty is that of whole replies, whatever their tails weigh in the loss
    measuring = reference if weight == 1 else Reference(config, start, load, data, device, world=world)
    plan = plan_of(c, train, config.seed, lambda: measuring.logps("train", train, np.arange(len(train))))
    if config.dry_run or len(plan.stages) > 1:
        show_plan(plan, train, c.batch)
    return None if config.dry_run else Setup(data, tokenizer, train, val, val_pairs, start, device, load, reference, plan, world)


def policy(s: Setup, run: Run) -> GPT | CausalLM:
    """The model where the run left it, or where it starts. Shards come with run.restore, adapters onto the weights they belong to."""
    if run.last is None or has_shards(run.last):
        return s.load(s.start)
    if (run.last / "adapter_config.json").exists():
        model = s.load(s.start)
        load_adapters(model, run.last)
        return model
    return s.load(run.last)


def score_reference(s: Setup, c: DPOConfig, stage: int) -> None:
    """The reference's log-probs of all pairs of the run, or of one stage's where it moves at the end of each."""
    needed = s.plan.pairs_of(s.plan.stages[stage]) if c.reference_update else np.unique(np.concatenate(s.plan.steps))
    s.reference.score(s.train, needed, s.val, s.val_pairs)


def move_reference(s: Setup, c: DPOConfig, model: GPT, run: Run, stage: int) -> None:
    """A stage begins: its reference is the one before with the policy mixed in."""
    run.save(f"reference_{stage}", mix(model, s.reference.load(), c.reference_update), s.tokenizer, s.data)
    s.reference.move(folder_of(run.folder, stage, s.start))
    score_reference(s, c, stage)
    run.means, run.best, run.bad = {}, float("inf"), 0  # rewards begin again at 0; losses against two references do not compare


def main(argv: list[str]) -> None:
    config = load_config(argv)
    c = config.dpo
    settings = chosen_settings(c, config.lora)
    s = set_up(config, argv, settings)
    if s is None:
        return
    weights = s.reference.weights  # it has not moved yet
    made_of = fingerprint(config, "dpo", s.data) | {"starting_weights": weights} | ({} if c.curriculum == "none" else {"plan": s.plan.hash()})
    run = Run(config, "dpo", made_of, s.world)
    if run.finished:
        return
    fresh, total, lengths = run.last is None, len(s.plan.steps), row_lengths(s.train, 2)
    stage = s.plan.stage_at(max(run.step - 1, 0))  # of the last step made: the loop itself enters the next one
    if c.reference_update:
        s.reference.move(folder_of(run.folder, stage, s.start))
    score_reference(s, c, stage)

    model = policy(s, run).train()
    optimizer, scaler = make_optimizer(model, c, config.scale.optimizer), s.device.scaler()
    run.restore(optimizer, scaler, model)
    exact = s.device.dtype == torch.float32 and all(p.dtype == torch.float32 for p in model.parameters())
    net = distributed.averaged(model, config, s.world)  # the same weights
    used, own = beta_of(c.objective, c.beta), beta_of(c.objective, -1)
    print(f"dpo ({c.objective}, beta {used:g}{'' if used == own else f'; its own default, with --dpo.beta=-1, is {own:g}'}): {model.n_params() / 1e6:.2f}M parameters, {len(s.train):,} pairs, {total} steps of {c.batch}; "
          f"{s.device.device.type} {str(s.device.dtype)[6:]} ({s.device.reason})")

    if c.samples_file and isinstance(model, GPT) and distributed.is_sharded(model):
        raise UserError("dpo.samples_file: our GPT writes from whole weights only: use --scale.parallel=ddp.")
    ours = isinstance(model, GPT) and not distributed.is_sharded(model)  # shards are whole in the root's forward only; other models: eval/samples.py
    watched = watched_prompts(s.val, s.tokenizer, config) if ours else []

    def validation() -> dict[str, float]:
        """The validation pairs, and what the policy itself writes; the model it started from is in memory for that moment only."""
        row = {"stage": stage + 1} | validate(model, s.val, s.reference.val, s.val_pairs, config, settings | run.means, s.device, s.world)
        return row | what_it_writes(model, s.load(s.start), s.tokenizer, watched, config, s.device) if watched else row

    def samples(epoch: int) -> None:
        """Replies to a file of prompts; epoch 0 is the model training starts from."""
        if c.samples_file:
            write_samples(config, epoch, model, s.tokenizer, s.device, s.world, weights=weights, base=epoch == 0, start=lambda: s.load(s.start))

    samples(0)
    if run.step == 0:  # where the curves begin
        run.log("val", **validation())
    bar = tqdm(total=total, initial=run.step, desc="dpo", mininterval=0.5, disable=not s.world.main)
    for batches in steps_ahead(s.train, s.plan.steps[run.step:], c.micro_tokens, s.device.device, world=s.world, separate=not model.prefix_shared):
        is_reference = fresh and run.step == 0  # the policy, still
        if s.plan.stage_at(run.step) > stage:
            stage += 1
            if c.reference_update:
                move_reference(s, c, model, run, stage)
                is_reference = c.reference_update == 1
            if c.stage_restart:
                optimizer = make_optimizer(model, c, config.scale.optimizer)
        begin, steps = (s.plan.stages[stage].start, s.plan.stages[stage].steps) if c.stage_restart else (0, total)
        lr = lr_at(run.step - begin, steps, c)
        for group in optimizer.param_groups:
            group["lr"] = lr
        batches = [batch.to(s.device.device) for batch in batches]
        if run.step == 0:
            show_mask(batches[0], s.tokenizer)
        now = settings | run.means
        p, losses = step_gradients_of(net, batches, lambda batch: score(net, batch, s.train, s.reference.train, c, now, s.device), c.objective, now, scaler,
                                      len(s.plan.steps[run.step]), s.world)
        if is_reference:
            check_first_step(p, losses, c.objective, now, exact, run.step)
        run.means = next_state(p, c.objective, settings, run.means)
        loss = losses.mean().item()
        norm = update(model, optimizer, scaler, loss, run, c)

        run.tokens += int(lengths[s.plan.steps[run.step]].sum())
        run.step += 1
        if run.step % c.log_every == 0 or run.step in (1, total):
            row = run.log("train", loss=loss, lr=lr, grad_norm=norm, skipped_steps=run.skipped, stage=stage + 1,
                          **summarize(*rewards(p, c.objective, now), p.chosen, p.rejected))
            bar.set_postfix(loss=f"{loss:.3f}", acc=f"{row['rewards/accuracy']:.2f}", tok_s=f"{run.tokens / max(row['seconds'], 1e-9):.0f}")
        bar.update()
        if run.step % c.eval_every == 0 or run.step == total:
            row = run.log("val", lr=lr, **validation())
            better = run.improved(row["loss"])
            tqdm.write(f"step {run.step}: validation loss {row['loss']:.4f}, accuracy {row['rewards/accuracy']:.3f}; rewards (beta x nats): margin {row['rewards/margin']:.3f}, "
                       f"chosen {row['rewards/chosen']:+.3f}, rejected {row['rewards/rejected']:+.3f}{' (best)' if better else ''}")
            if better:
                run.save("best", model, s.tokenizer, s.data)
        if run.step == s.plan.stages[stage].start + s.plan.stages[stage].steps:
            samples(stage + 1)
        if run.step % c.save_every == 0:
            run.save("last", model, s.tokenizer, s.data, optimizer, scaler)
            forget_before(run.folder, stage)
        if c.patience and run.bad >= c.patience:
            tqdm.write(f"no better for {run.bad} validations: stopping at step {run.step}.")
            break
    bar.close()
    run.save("last", model, s.tokenizer, s.data, optimizer, scaler, finished=True)
    print(f"dpo: best validation loss {run.best:.4f}; {run.seconds / 60:.1f} min, peak memory {peak_memory_gb(s.device.device):.2f} GB; {run.folder / 'best'}")


if __name__ == "__main__":
    run_main(main)
    distributed.finish()
