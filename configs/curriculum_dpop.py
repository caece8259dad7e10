"""Llama-3.2-3B-Instruct against fabricated answers: DPOP with the penalty where its paper has it, beta and lambda as published there.

    python train_dpo.py curriculum_dpop --data.source=dpo_pairs_easy.jsonl,dpo_pairs_medium.jsonl,dpo_pairs_hard.jsonl
"""
dtype = "bfloat16"
model = {"init_from": "meta-llama/Llama-3.2-3B-Instruct", "block_size": 2048}
lora = {"rank": 16, "alpha": 32.0, "dropout": 0.0, "rslora": False, "frozen": "bfloat16", "targets": ["q_proj", "k_proj", "v_proj", "o_proj"]}
scale = {"parallel": "ddp", "checkpointing": True, "optimizer": "adamw"}
data = {"source": "dpo_pairs_easy.jsonl,dpo_pairs_medium.jsonl,dpo_pairs_hard.jsonl", "tokenizer": "chat", "val_fraction": 0.05, "test_fraction": 0.05}
dpo = {"objective": "dpop", "beta": 0.3, "penalty": 50.0, "epochs": 1.0, "batch": 16, "micro_tokens": 8192, "lr": 2e-5, "schedule": "cosine", "min_lr": 0.0,
       "warmup": 0.1, "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "grad_clip": 1.0, "curriculum": "staged", "difficulty": "level",
       "eval_every": 100, "save_every": 100, "log_every": 1, "watch_prompts": 0}
