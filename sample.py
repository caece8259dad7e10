"""A reply from a checkpoint:  python sample.py out/toy/dpo/best 'How do I make tea?' [--temperature 0.7] [--seed 0] [--samples 3]"""
import argparse

from generate import generate
from model import GPT, find_folder, load_model
from runtime.errors import UserError, run_main
from tokenizer import ASSISTANT, HUMAN, Tokenizer, clean_reply, encode_prompt, load_tokenizer


def sampling_options(description: str) -> argparse.ArgumentParser:
    """The command line that sample.py and chat.py share: a checkpoint and how to draw from it."""
    a = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("checkpoint", help="a folder such as out/toy/dpo/best, or a Hub name of a GPT-2 model")
    a.add_argument("--temperature", type=float, default=0.7, help="0 = greedy")
    a.add_argument("--top_k", type=int, default=0, help="keep the k likeliest tokens; 0 = all")
    a.add_argument("--top_p", type=float, default=1.0, help="nucleus sampling mass; 1 = all")
    a.add_argument("--max_new_tokens", type=int, default=128)
    a.add_argument("--seed", type=int, default=0)
    return a


def check_sampling(a: argparse.Namespace) -> None:
    """UserError for options that nothing can be drawn with."""
    for name, wrong, wanted in (("temperature", not 0 <= a.temperature < float("inf"), "0 or more"), ("top_k", a.top_k < 0, "0 or more"), ("top_p", not 0 < a.top_p <= 1, "above 0 and at most 1"),
                                ("max_new_tokens", a.max_new_tokens < 1, "at least 1"), ("seed", a.seed < 0, "0 or more")):
        if wrong:
            raise UserError(f"--{name} must be {wanted}, not {getattr(a, name)}.")


def open_checkpoint(name: str) -> tuple[GPT, Tokenizer]:
    """The model and tokenizer of a folder (or of a GPT-2 model on the Hub). UserError when there is none that can write."""
    try:
        folder = find_folder(name)
    except UserError:
        raise UserError(f"{name} is neither a folder here nor a GPT-2 model that the Hub gives: name a checkpoint such as out/toy/dpo/best.") from None
    if (folder / "config.json").exists() and "SequenceClassification" in (folder / "config.json").read_text():
        raise UserError(f"{name} is a reward model: it scores replies and writes none.")
    return load_model(folder), load_tokenizer(str(folder))


def shortened(ids: list[int], block_size: int, max_new_tokens: int) -> list[int]:
    """A prompt cut from the left, its start token kept, so that the reply has room: at most half of the block is kept free for it."""
    room = max(block_size - max_new_tokens, block_size // 2, 2)
    return ids if len(ids) <= room else ids[:1] + ids[len(ids) - room + 1:]


def main(argv: list[str]) -> None:
    a = sampling_options(__doc__)
    a.add_argument("prompt", help="what the human says, or a whole transcript that ends in 'Assistant:'")
    a.add_argument("--samples", type=int, default=1)
    a = a.parse_args(argv)
    check_sampling(a)
    model, tokenizer = open_checkpoint(a.checkpoint)
    prompt = a.prompt if a.prompt.rstrip().endswith(ASSISTANT.strip()) else f"{HUMAN} {a.prompt}{ASSISTANT}"
    ids = shortened(encode_prompt(tokenizer, prompt.rstrip())[0], model.config.block_size, a.max_new_tokens)
    for reply in generate(model, [ids] * a.samples, max_new_tokens=a.max_new_tokens, eot_id=tokenizer.eot_id, temperature=a.temperature, top_k=a.top_k,
                          top_p=a.top_p, seed=a.seed, sample_index=range(a.samples), stop=HUMAN.encode(),
                          token_bytes=[tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]):
        print(clean_reply(tokenizer.decode(reply)))


if __name__ == "__main__":
    run_main(main)
