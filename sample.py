"""A reply from a checkpoint:  python sample.py out/toy/dpo/best 'How do I make tea?' [--temperature 0.7] [--seed 0] [--samples 3]"""
import argparse

from generate import generate
from model import find_folder, load_model
from runtime.errors import run_main
from tokenizer import ASSISTANT, HUMAN, clean_reply, encode_prompt, load_tokenizer


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("checkpoint", help="a folder such as out/toy/dpo/best, or a Hub name of a GPT-2 model")
    a.add_argument("prompt", help="what the human says, or a whole transcript that ends in 'Assistant:'")
    a.add_argument("--temperature", type=float, default=0.7, help="0 = greedy")
    a.add_argument("--top_k", type=int, default=0)
    a.add_argument("--top_p", type=float, default=1.0)
    a.add_argument("--max_new_tokens", type=int, default=128)
    a.add_argument("--seed", type=int, default=0)
    a.add_argument("--samples", type=int, default=1)
    a = a.parse_args(argv)

    folder = find_folder(a.checkpoint)
    model, tokenizer = load_model(folder), load_tokenizer(str(folder))
    prompt = a.prompt if a.prompt.rstrip().endswith(ASSISTANT.strip()) else f"{HUMAN} {a.prompt}{ASSISTANT}"
    ids, _ = encode_prompt(tokenizer, prompt.rstrip())
    room = model.config.block_size - a.max_new_tokens
    if len(ids) > room:  # from the left, keeping the start token
        ids = ids[:1] + ids[len(ids) - max(room, 2) + 1:]
    for reply in generate(model, [ids] * a.samples, max_new_tokens=a.max_new_tokens, eot_id=tokenizer.eot_id, temperature=a.temperature, top_k=a.top_k,
                          top_p=a.top_p, seed=a.seed, sample_index=range(a.samples), stop=HUMAN.encode(),
                          token_bytes=[tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]):
        print(clean_reply(tokenizer.decode(reply)))


if __name__ == "__main__":
    run_main(main)
