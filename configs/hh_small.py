"""85M parameters (GPT-2 small's shape) on all of Anthropic HH, from GPT-2's published weights: the project's reference run, made for one T4."""
model = {"init_from": "gpt2", "n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 512, "dropout": 0.0}
data = {"source": "hub", "dataset": "Anthropic/hh-rlhf", "tokenizer": "gpt2", "val_fraction": 0.01}
sft = {"epochs": 1.0, "batch": 64, "lr": 5e-5, "warmup": 0.03, "weight_decay": 0.01, "eval_every": 250, "eval_rows": 256, "save_every": 250, "patience": 2, "loss_on": "assistant"}
dpo = {"epochs": 1.0, "batch": 64, "lr": 1e-5, "warmup": 0.1, "weight_decay": 0.0, "beta": 0.1, "eval_every": 250, "eval_rows": 256, "save_every": 250}
eval = {"prompts_per_kind": 400, "max_new_tokens": 128, "temperature": 0.7, "toxicity": "detoxify:original", "max_pairs": 4000}
