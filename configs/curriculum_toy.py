"""The curriculum study's toy world: a GPT that learns to read short passages, then to answer as a sloppy writer does, on one CPU core in minutes.

    python -m studies.curriculum_dpop.toy_study --seeds 5 --out FOLDER        runs it all; the data come from toy_data.py
"""
dtype = "float32"
device = "cpu"
threads = 1  # sums are rounded by thread: fixed, so that the figures repeat
model = {"n_layer": 4, "n_head": 4, "n_embd": 64, "block_size": 224}
data = {"tokenizer": "bpe", "vocab_size": 960}
sft = {"epochs": 1.0, "batch": 32, "micro_tokens": 4096, "lr": 1e-3, "eval_every": 25, "eval_rows": 0, "loss_on": "response"}
dpo = {"epochs": 1.0, "batch": 32, "micro_tokens": 4096, "lr": 1e-4, "beta": 0.3, "eval_every": 15, "eval_rows": 0, "watch_prompts": 0, "log_every": 5}
eval = {"max_new_tokens": 32, "temperature": 0.7}
