"""The demo: everything from raw text to report on two CPU cores in minutes."""
dtype = "float32"  # a model this small gains little from bf16, and float32 gives the same figures on more machines
device = "cpu"     # where a model this small is fastest
threads = 2        # sums are rounded by thread: fixed, so that every machine with two cores repeats the figures
model = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 256}
data = {"source": "toy", "tokenizer": "bpe", "vocab_size": 1024}
sft = {"epochs": 4.0, "batch": 32, "micro_tokens": 1024, "lr": 2e-3, "eval_every": 100, "patience": 3, "loss_on": "response"}
dpo = {"epochs": 1.0, "batch": 32, "micro_tokens": 2048, "lr": 2e-5, "beta": 0.3, "eval_every": 50, "watch_prompts": 120}
reward = {"epochs": 2.0, "batch": 32, "micro_tokens": 2048, "lr": 3e-4, "eval_every": 50}
eval = {"prompts_per_kind": 400, "max_new_tokens": 64, "temperature": 0.7, "toxicity": "lexicon", "toxicity_samples": 5}
