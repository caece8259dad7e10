"""The human-likeness study in miniature: a small GPT that writes visits to a doctor, on two CPU cores.

    python -m studies.human_likeness.miniature --out out/human_toy        runs the whole chain
"""
dtype = "float32"
device = "cpu"
threads = 2  # sums are rounded by thread: fixed, so that machines with two cores repeat the figures
model = {"n_layer": 3, "n_head": 4, "n_embd": 96, "block_size": 384}
data = {"tokenizer": "bpe", "vocab_size": 640, "val_fraction": 0.1, "test_fraction": 0.05}
sft = {"epochs": 14.0, "batch": 16, "micro_tokens": 6144, "lr": 3e-3, "eval_every": 50, "loss_on": "response"}
dpo = {"epochs": 3.0, "batch": 32, "micro_tokens": 6144, "lr": 4e-5, "beta": 0.1, "eval_every": 20, "watch_prompts": 0, "log_every": 5}
eval = {"max_new_tokens": 160, "temperature": 1.0, "batch_size": 64}
