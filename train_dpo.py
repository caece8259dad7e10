"""Stage 2: Direct Preference Optimization (Rafailov et al. 2023). The policy starts as the SFT model and learns to prefer the chosen replies.

    python train_dpo.py toy        a missing earlier stage (data, SFT) is announced and run first

The same command continues a killed run, bit for bit. `--help` lists every setting.
"""
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from batching import row_lengths, score_pairs, sequence_logps, show_mask, step_indices, steps_ahead
from data.store import PairStore
from eval.watch import watched_prompts, what_it_writes
from losses import OBJECTIVES, preference_loss
from model import GPT
from runtime.checkpoint import file_hash
from runtime.config import Config, digest, load_config
from runtime.device import Device, peak_memory_gb, setup_device
from runtime.errors import UserError, run_main
from runtime.optim import lr_at, make_optimizer, total_steps, update
from runtime.run import Run, fingerprint, preference_start, starting_model
from tokenizer import load_tokenizer


SAVE_REFERENCE_EVERY = 20_000  # pairs: what a kill during the reference pass can lose


def reference_logps(cache: Path, load: Callable[[], GPT], store: PairStore, needed: np.ndarray, device: Device, micro_tokens: int) -> np.ndarray:
    """Log-probs of the frozen reference, float32 [n, 2] (chosen, rejected), NaN where no pair was needed.

    Computed once, kept in the file `cache`; a later call computes only what is missing. The reference model lives inside this
    function and is freed on return, so memory holds one model during training.
    """
    logps = np.load(cache) if cache.exists() else np.full((len(store), 2), np.nan, dtype=np.float32)
    missing = np.unique(needed[np.isnan(logps[needed, 0])])
    if len(missing):
        model = load()
        cache.parent.mkdir(parents=True, exist_ok=True)
        for part in np.array_split(missing, -(-len(missing) // SAVE_REFERENCE_EVERY)):
            logps[part, 0], logps[part, 1] = score_pairs(model, store, part, micro_tokens, device.autocast, show=f"reference: {cache.stem} pairs")
            tmp = cache.with_suffix(".tmp.npy")
            np.save(tmp, logps)
            tmp.rename(cache)
    return logps


def check_first_step(chosen: Tensor, rejected: Tensor, reference: Tensor, tokens: Tensor, losses: Tensor, config: Config, dtype: torch.dtype) -> None:
    """Before the first update the policy *is* the reference: its log-probs [P] must equal the cache [P, 2], its loss the objective at zero.

    Tolerance: 1e-4 nats per token in float32, .05 nats per sequence in bf16 and fp16. A failure means a wrong reference,
    dropout left on, or another dtype: the silent causes of a DPO run that goes nowhere. Raises UserError.
    """
    gap = (torch.stack([chosen, rejected], dim=1) - reference).abs()
    allowed = 1e-4 * tokens if dtype == torch.float32 else torch.full_like(gap, 0.05)
    if bool((gap > allowed).any()):
        raise UserError(f"step 0: the policy's log-probs differ from the reference's by up to {gap.max().item():.4f} nats although they are the same model.")
    zero = torch.zeros(1, device=chosen.device)
    d = config.dpo
    expected = preference_loss(zero, zero, zero, zero, d.objective, d.beta, d.label_smoothing, d.penalty)[0].item()
    slack = 5e-4 if dtype == torch.float32 or expected < 0.7 else 0.05 * expected
    if abs(losses.mean().item() - expected) > slack:
        raise UserError(f"step 0: the loss is {losses.mean().item():.4f}, not {expected:.4f}.")
    print(f"step 0: loss {losses.mean().item():.4f} (expected {expected:.4f}), largest difference to the reference {gap.max().item():.1e} nats")


@torch.no_grad()
def validate(model: GPT, store: PairStore, reference: np.ndarray, indices: np.ndarray, config: Config, device: Device) -> dict[str, float]:
    """Loss, rewards and log-probs over the validation pairs `indices`, dropout off."""
    chosen, rejected = score_pairs(model, store, indices, config.dpo.micro_tokens, device.autocast)
    d = config.dpo
    losses, r_chosen, r_rejected = preference_loss(*map(torch.from_numpy, (chosen, rejected, *reference[indices].T)), d.objective, d.beta, d.label_smoothing, d.penalty)
    return {"loss": losses.mean().item()} | summarize(r_chosen, r_rejected, torch.from_numpy(chosen), torch.from_numpy(rejected))


def summarize(r_chosen: Tensor, r_rejected: Tensor, chosen: Tensor, rejected: Tensor) -> dict[str, float]:
    """Means over pairs [P] of rewards and log-probs; accuracy = share of pairs whose chosen reward is higher (a tie counts half)."""
    wins = (r_chosen > r_rejected).float() + 0.5 * (r_chosen == r_rejected).float()
    return {"rewards__chosen": r_chosen.mean().item(), "rewards__rejected": r_rejected.mean().item(),
            "rewards__margin": (r_chosen - r_rejected).mean().item(), "rewards__accuracy": wins.mean().item(),
            "logps__chosen": chosen.mean().item(), "logps__rejected": rejected.mean().item()}


def main(argv: list[str]) -> None:
    config = load_config(argv)
    c = config.dpo
    if c.objective not in OBJECTIVES:
        raise UserError(f"dpo.objective '{c.objective}' is not one of {', '.join(OBJECTIVES)}.")

    data, start = preference_start(config, argv, c.init_from)
    tokenizer = load_tokenizer(str(data / "tokenizer"))
    train, val = PairStore(data / "train"), PairStore(data / "val")

    device = setup_device(config)
    config.model.dropout = 0.0  # noise in a log-ratio is noise in the reward: off for policy and reference alike
    weights = file_hash(start / "model.safetensors")
    run = Run(config, "dpo", fingerprint(config, "dpo", data) | {"starting_weights": weights})
    if run.finished:
        return
    fresh = run.last is None

    # the reference: every pair this run will see, once, through the same code path and dtype as the policy
    total, lengths = total_steps(c, len(train)), row_lengths(train, 2)
    val_pairs = np.random.default_rng(0).permutation(len(val))[:c.eval_rows or len(val)]  # from the whole split, always the same
    seen = np.concatenate([step_indices(len(train), c.batch, config.seed, s) for s in range(total)])
    key = digest([weights, data.name, str(device.dtype), device.device.type, config.compile])

    def load(folder: Path) -> GPT:
        """Policy and reference are made alike, compiled or not: fused kernels round differently."""
        model = starting_model(config, folder, tokenizer.vocab_size).to(device.device)
        if config.compile:
            model.compile()
        return model

    reference = {name: reference_logps(Path(config.out) / "data" / "reference" / key / f"{name}.npy", lambda: load(start), store, needed, device, c.micro_tokens)
                 for name, store, needed in (("train", train, seen), ("val", val, val_pairs))}

    model = load(run.last or start).train()
    optimizer, scaler = make_optimizer(model, c), device.scaler()
    run.restore(optimizer, scaler)
    print(f"dpo ({c.objective}, beta {c.beta}): {model.n_params() / 1e6:.2f}M parameters, {len(train):,} pairs, {total} steps of {c.batch}; "
          f"{device.device.type} {str(device.dtype)[6:]} ({device.reason})")

    watched = watched_prompts(val, tokenizer, config)

    def validation() -> dict[str, float]:
        """The validation pairs, and what the policy itself writes; the reference is in memory for that moment only."""
        row = validate(model, val, reference["val"], val_pairs, config, device)
        return row | what_it_writes(model, load(start), tokenizer, watched, config, device) if watched else row

    if run.step == 0:  # where the curves begin
        run.log("val", **validation())
    bar = tqdm(total=total, initial=run.step, desc="dpo", mininterval=0.5)
    for indices, batches in steps_ahead(train, range(run.step, total), c.batch, config.seed, c.micro_tokens, device.device):
        lr = lr_at(run.step, total, c)
        for group in optimizer.param_groups:
            group["lr"] = lr
        pieces = []  # what each micro-batch contributes to the step's metrics
        for batch in batches:
            batch = batch.to(device.device)
            if run.step == 0 and not pieces:
                show_mask(batch, tokenizer)
            with device.autocast():
                logps = model(*batch.inputs())
            chosen, rejected = sequence_logps(logps, batch)
            ref = torch.from_numpy(reference["train"][batch.pairs]).to(device.device)  # [P, 2]
            losses, r_chosen, r_rejected = preference_loss(chosen, rejected, ref[:, 0], ref[:, 1], c.objective, c.beta, c.label_smoothing, c.penalty)
            if fresh and run.step == 0 and not pieces:
                tokens = torch.bincount(batch.owner, minlength=2 * len(batch.pairs)).view(-1, 2)
                check_first_step(chosen.detach(), rejected.detach(), ref, tokens, losses.detach(), config, device.dtype)
            # pairs are the unit here: divide by the pairs of the whole step, not of this micro-batch
            scaler.scale(losses.sum() / len(indices)).backward()
            pieces.append(torch.stack([losses.detach(), r_chosen, r_rejected, chosen.detach(), rejected.detach()]))
        losses, *rest = torch.cat(pieces, dim=1)
        loss = losses.mean().item()
        norm = update(model, optimizer, scaler, loss, run, c)

        run.step += 1
        run.tokens += int(lengths[indices].sum())
        if run.step % c.log_every == 0 or run.step in (1, total):
            row = run.log("train", loss=loss, lr=lr, grad_norm=norm, skipped_steps=run.skipped, **summarize(*rest))
            bar.set_postfix(loss=f"{loss:.3f}", acc=f"{row['rewards/accuracy']:.2f}", tok_s=f"{run.tokens / max(row['seconds'], 1e-9):.0f}")
        bar.update()
        if run.step % c.eval_every == 0 or run.step == total:
            row = run.log("val", lr=lr, **validation())
            better = run.improved(row["loss"])
            tqdm.write(f"step {run.step}: validation loss {row['loss']:.4f}, accuracy {row['rewards/accuracy']:.3f}, margin {row['rewards/margin']:.3f}, "
                       f"chosen {row['rewards/chosen']:+.3f}, rejected {row['rewards/rejected']:+.3f}{' (best)' if better else ''}")
            if better:
                run.save("best", model, tokenizer, data)
            if c.patience and run.bad >= c.patience:
                tqdm.write(f"no better for {run.bad} validations: stopping at step {run.step}.")
                break
        if run.step % c.save_every == 0:
            run.save("last", model, tokenizer, data, optimizer, scaler)
    bar.close()
    run.save("last", model, tokenizer, data, optimizer, scaler, finished=True)
    print(f"dpo: best validation loss {run.best:.4f}; {run.seconds / 60:.1f} min, peak memory {peak_memory_gb(device.device):.2f} GB; {run.folder / 'best'}")


if __name__ == "__main__":
    run_main(main)
