"""About 5M parameters and an 8k vocabulary of its own, for real HH text on two CPU cores.

    python train_dpo.py hh_cpu --data.source=FOLDER_WITH_HH_FILES --data.text_source=FOLDER_WITH_TEXT
"""
model = {"n_layer": 4, "n_head": 4, "n_embd": 256, "block_size": 512}
data = {"source": "hub", "text_source": "hub", "tokenizer": "bpe", "vocab_size": 8192, "val_fraction": 0.05, "test_fraction": 0.25, "text_max_mb": 12.0}
base = {"enabled": True, "epochs": 1.0, "batch": 32, "micro_tokens": 2048, "lr": 2e-3, "warmup": 0.03, "eval_every": 100, "eval_rows": 200, "save_every": 50}
sft = {"epochs": 1.5, "batch": 32, "micro_tokens": 2048, "lr": 5e-4, "eval_every": 50, "eval_rows": 256, "save_every": 100, "patience": 3, "loss_on": "assistant"}
dpo = {"epochs": 1.0, "batch": 32, "micro_tokens": 2048, "lr": 4e-6, "beta": 0.1, "eval_every": 40, "eval_rows": 0, "save_every": 100}
reward = {"epochs": 1.0, "batch": 32, "micro_tokens": 2048, "lr": 5e-5, "eval_every": 40, "eval_rows": 0, "save_every": 100}
eval = {"prompts_per_kind": 100, "max_new_tokens": 96, "temperature": 0.7, "toxicity": "lexicon"}
