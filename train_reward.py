"""A reward model for judging replies: the SFT model's body learns to score the chosen reply of a pair above the rejected one.

    python train_reward.py toy        a missing earlier stage (data, SFT) is announced and run first

DPO does without one. Here it is a judge: `python -m eval.judge out/toy/eval reward` compares replies with it, and always says how
often it ranks held-out pairs right. The same command continues a killed run, bit for bit. `--help` lists every setting.
"""
import numpy as np
import torch
from tqdm import tqdm

from batching import make_batch, micro_batches, row_lengths, shuffled_steps, steps_ahead
from data.store import PairStore
from losses import reward_loss
from reward_model import RewardModel, load_reward_model
from runtime.checkpoint import weights_hash
from runtime.config import load_config
from runtime.distributed import one_process
from runtime.device import Device, peak_memory_gb, setup_device
from runtime.errors import run_main
from runtime.optim import lr_at, make_optimizer, total_steps, update
from runtime.run import Run, fingerprint, preference_start, prepared_pairs, starting_model
from tokenizer import load_tokenizer


@torch.no_grad()
def validate(model: RewardModel, store: PairStore, indices: np.ndarray, micro_tokens: int, device: Device) -> dict[str, float]:
    """Loss and rewards over the pairs `indices`, dropout off."""
    training = model.training
    model.eval()
    scores = []
    for rows in micro_batches(indices, row_lengths(store, 2), micro_tokens):
        with device.autocast():
            scores.append(torch.stack(model.score_batch(make_batch(store, rows).to(device.device))))
    model.train(training)
    return summarize(*torch.cat(scores, dim=1))


def summarize(chosen: torch.Tensor, rejected: torch.Tensor) -> dict[str, float]:
    """Means over pairs [P] of loss and rewards; accuracy = share of pairs whose chosen reward is higher (a tie counts half)."""
    wins = (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
    return {"loss": reward_loss(chosen, rejected).mean().item(), "rewards__chosen": chosen.mean().item(), "rewards__rejected": rejected.mean().item(),
            "rewards__margin": (chosen - rejected).mean().item(), "rewards__accuracy": wins.mean().item()}


def main(argv: list[str]) -> None:
    config = load_config(argv)
    c = config.reward
    one_process("train_reward.py")
    data = prepared_pairs(config, argv)
    start = preference_start(config, argv, c.init_from, data)
    tokenizer = load_tokenizer(str(data / "tokenizer"))
    train, val = PairStore(data / "train"), PairStore(data / "val")

    device = setup_device(config)
    run = Run(config, "reward", fingerprint(config, "reward", data) | {"starting_weights": weights_hash(start)})
    if run.finished:
        return
    model = load_reward_model(run.last, config.model.dropout) if run.last else RewardModel(starting_model(config, start, tokenizer.vocab_size))
    model = model.to(device.device).train()
    optimizer, scaler = make_optimizer(model, c), device.scaler()
    run.restore(optimizer, scaler)
    total, lengths = total_steps(c, len(train)), row_lengths(train, 2)
    val_pairs = np.random.default_rng(0).permutation(len(val))[:c.eval_rows or len(val)]
    print(f"reward: {model.n_params() / 1e6:.2f}M parameters, {len(train):,} pairs, {total} steps of {c.batch}; "
          f"{device.device.type} {str(device.dtype)[6:]} ({device.reason})")

    bar = tqdm(total=total, initial=run.step, desc="reward", mininterval=0.5)
    steps = shuffled_steps(len(train), c.batch, [config.seed], total)
    for batches in steps_ahead(train, steps[run.step:], c.micro_tokens, device.device):
        lr = lr_at(run.step, total, c)
        for group in optimizer.param_groups:
            group["lr"] = lr
        pieces = []
        for batch in batches:
            batch = batch.to(device.device)
            with device.autocast():
                chosen, rejected = model.score_batch(batch)
            scaler.scale(reward_loss(chosen, rejected).sum() / len(steps[run.step])).backward()
            pieces.append(torch.stack([chosen.detach(), rejected.detach()]))
        row = summarize(*torch.cat(pieces, dim=1))
        norm = update(model, optimizer, scaler, row["loss"], run, c)

        run.step += 1
        run.tokens += int(lengths[steps[run.step - 1]].sum())
        if run.step % c.log_every == 0 or run.step in (1, total):
            run.log("train", lr=lr, grad_norm=norm, skipped_steps=run.skipped, **row)
            bar.set_postfix(loss=f"{row['loss']:.3f}", acc=f"{row['rewards__accuracy']:.2f}")
        bar.update()
        if run.step % c.eval_every == 0 or run.step == total:
            row = run.log("val", lr=lr, **validate(model, val, val_pairs, c.micro_tokens, device))
            better = run.improved(row["loss"])
            tqdm.write(f"step {run.step}: validation loss {row['loss']:.4f}, {row['rewards/accuracy']:.3f} of {len(val_pairs)} pairs ranked right{' (best)' if better else ''}")
            if better:
                run.save("best", model, tokenizer, data)
            if c.patience and run.bad >= c.patience:
                tqdm.write(f"no better for {run.bad} validations: stopping at step {run.step}.")
                break
        if run.step % c.save_every == 0:
            run.save("last", model, tokenizer, data, optimizer, scaler)
    bar.close()
    run.save("last", model, tokenizer, data, optimizer, scaler, finished=True)
    print(f"reward: best validation loss {run.best:.4f}; {run.seconds / 60:.1f} min, peak memory {peak_memory_gb(device.device):.2f} GB; {run.folder / 'best'}")


if __name__ == "__main__":
    run_main(main)
