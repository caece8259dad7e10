"""Stage 1: teach a GPT to answer, by next-token prediction on the chosen side of the pairs.

    python train_sft.py toy                    supervised fine-tuning
    python train_sft.py hh_cpu --stage=base    the same loop on plain text first, so that a from-scratch model can talk at all

The same command continues a killed run, bit for bit. `--help` lists every setting.
"""
import math
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from batching import make_batch, micro_batches, row_lengths, show_mask, shuffled_steps, steps_ahead
from data.store import PairStore, find_data, find_text
from losses import sft_loss
from model import GPT, find_folder
from runtime.checkpoint import find_checkpoint
from runtime.config import Config, load_config
from runtime.distributed import one_process
from runtime.device import Device, peak_memory_gb, setup_device
from runtime.errors import UserError, run_main
from runtime.optim import lr_at, make_optimizer, total_steps, update
from runtime.run import Run, fingerprint, finished, prepared_pairs, run_stage, starting_model
from tokenizer import load_tokenizer


@torch.no_grad()
def validate(model: GPT, store: PairStore, device: Device, rows: int, micro_tokens: int, loss_on: str) -> float:
    """Mean negative log-likelihood in nats per scored token over `rows` (0 = all) validation documents, dropout off.

    Always the same ones, drawn from the whole split: a store keeps its sources one after the other, so its first rows are of one kind.
    """
    model.eval()
    total, count = 0.0, 0
    chosen = np.random.default_rng(0).permutation(len(store))[:rows or len(store)]
    for micro in micro_batches(chosen, row_lengths(store, 1), micro_tokens):
        batch = make_batch(store, micro, branches=1, loss_on=loss_on).to(device.device)
        with device.autocast():
            logps = model(*batch.inputs())
        total -= logps.cpu().double().sum().item()
        count += len(logps)
    model.train()
    return total / count


def earlier_stages(config: Config, stage: str, argv: list[str]) -> tuple[Path, Path, Path | None]:
    """(prepared pairs, the documents this stage trains on, the model folder it starts from or None for random weights).

    What is missing is announced and run: the pairs, the plain text (base), the base model (SFT of a from-scratch model).
    """
    data = documents = prepared_pairs(config, argv)
    start = None if config.model.init_from == "scratch" else find_folder(config.model.init_from)
    if stage == "base":
        documents = find_text(config)
        if documents is None:
            run_stage("data/prepare_text.py", argv, "no prepared text")
            documents = find_text(config)
    elif config.base.enabled:
        text = find_text(config)
        if text is None or not finished(config.run_dir / "base", fingerprint(config, "base", text)):
            run_stage("train_sft.py --stage=base", argv, "no base model")
        start = find_checkpoint(config.run_dir / "base" / "best")
    return data, documents, start


def main(argv: list[str]) -> None:
    one_process("train_sft.py")
    stage = "base" if "--stage=base" in argv else "sft"
    config = load_config([a for a in argv if a not in ("--stage=base", "--stage=sft")])
    c = config.base if stage == "base" else config.sft
    loss_on = "all" if stage == "base" else config.sft.loss_on
    if loss_on not in ("all", "assistant", "response"):
        raise UserError(f"sft.loss_on '{loss_on}' is not one of all, assistant, response.")

    data, documents, start = earlier_stages(config, stage, argv)
    tokenizer = load_tokenizer(str(data / "tokenizer"))
    train, val = PairStore(documents / "train"), PairStore(documents / "val")

    # the model, and where an earlier call left off
    device = setup_device(config)
    run = Run(config, stage, fingerprint(config, stage, documents))
    if run.finished:
        return
    model = starting_model(config, run.last or start, tokenizer.vocab_size).to(device.device).train()
    optimizer, scaler = make_optimizer(model, c, config.scale.optimizer), device.scaler()
    run.restore(optimizer, scaler)
    if config.compile:
        model.compile()
    total, lengths = total_steps(c, len(train)), row_lengths(train, 1)
    at_once = device.dtype != torch.float16  # sft_loss weighs all tokens alike, so the head need not run twice; but fp16's scaler must see all products
    print(f"{stage}: {model.n_params() / 1e6:.2f}M parameters ({model.n_params(embeddings=False) / 1e6:.2f}M without embeddings), "
          f"{len(train):,} documents, {lengths.sum():,} tokens, {total} steps of {c.batch}; {device.device.type} {str(device.dtype)[6:]} ({device.reason})")

    bar = tqdm(total=total, initial=run.step, desc=stage, mininterval=0.5)
    steps = shuffled_steps(len(train), c.batch, [config.seed], total)
    for batches in steps_ahead(train, steps[run.step:], c.micro_tokens, device.device, 1, loss_on):
        lr = lr_at(run.step, total, c)
        for group in optimizer.param_groups:
            group["lr"] = lr
        if run.step == 0:
            show_mask(batches[0], tokenizer)
        count = sum(len(b.targets) for b in batches)  # of the whole step, before the first backward: see sft_loss
        loss = torch.zeros((), device=device.device)
        for batch in batches:
            batch = batch.to(device.device)
            with device.autocast():
                logps = model(*batch.inputs(), same_gradient=at_once)
            part = sft_loss(logps, count)
            scaler.scale(part).backward()
            loss += part.detach()
        loss = loss.item()  # once per step: every look at a number stops the GPU's queue
        norm = update(model, optimizer, scaler, loss, run, c)

        run.step += 1
        run.tokens += int(lengths[steps[run.step - 1]].sum())
        if run.step % c.log_every == 0 or run.step == total:
            row = run.log("train", loss=loss, lr=lr, grad_norm=norm, skipped_steps=run.skipped)
            bar.set_postfix(loss=f"{loss:.3f}", tok_s=f"{run.tokens / max(row['seconds'], 1e-9):.0f}")
        bar.update()
        if run.step % c.eval_every == 0 or run.step == total:
            val_loss = validate(model, val, device, c.eval_rows, c.micro_tokens, loss_on)
            run.log("val", loss=val_loss, lr=lr)
            better = run.improved(val_loss)
            tqdm.write(f"step {run.step}: validation loss {val_loss:.4f} nats per token, perplexity {math.exp(min(val_loss, 50)):.2f}{' (best)' if better else ''}")
            if better:
                run.save("best", model, tokenizer, data)
            if c.patience and run.bad >= c.patience:
                tqdm.write(f"no better for {run.bad} validations: stopping at step {run.step}.")
                break
        if run.step % c.save_every == 0:
            run.save("last", model, tokenizer, data, optimizer, scaler)
    bar.close()
    run.save("last", model, tokenizer, data, optimizer, scaler, finished=True)
    print(f"{stage}: best validation loss {run.best:.4f}; {run.seconds / 60:.1f} min, peak memory {peak_memory_gb(device.device):.2f} GB; {run.folder / 'best'}")


if __name__ == "__main__":
    run_main(main)
