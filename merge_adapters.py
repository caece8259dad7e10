"""Fold a run's LoRA adapters into their base: a whole model that any library opens, and that another run can start from.

    python merge_adapters.py out/NAME/dpo/best --to FOLDER [--dtype bfloat16]
"""
import argparse
from pathlib import Path

import torch

from chat_tokenizer import load_chat_tokenizer
from hf_model import load_causal_lm
from lora import load_adapters, lora_config_of, merge
from model import find_folder
from runtime.device import DTYPES
from runtime.errors import UserError, run_main


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("adapters", type=Path)
    a.add_argument("--to", type=Path, required=True)
    a.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the written weights; the sum is made in float32")
    a = a.parse_args(argv)
    if a.to.exists():
        raise UserError(f"{a.to} is there already: name a new folder.")
    _, base = lora_config_of(a.adapters)
    model = load_causal_lm(find_folder(base), 1, dtype=torch.float32)
    load_adapters(model, a.adapters)
    merge(model)
    model.lm.to(DTYPES[a.dtype]).save_pretrained(a.to)
    load_chat_tokenizer(a.adapters).save(a.to)
    print(f"{base} with the adapters of {a.adapters}, {a.dtype}: {a.to}")


if __name__ == "__main__":
    run_main(main)
