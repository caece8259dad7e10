"""Llama-3.2-3B-Instruct against fabricated answers: DPOP with the penalty where its paper has it, beta and lambda as published there.

    python -m studies.curriculum_dpop.data --questions train-v2.0.json --to pairs ...      (studies/curriculum_dpop/README.md)
    python train_dpo.py curriculum_dpop --data.source=pairs
"""
dtype = "bfloat16"
model = {"init_from": "meta-llama/Llama-3.2-3B-Instruct", "block_size": 2048}
lora = {"rank": 16, "alpha": 32.0, "dropout": 0.0, "rslora": False, "frozen": "bfloat16", "targets": ["q_proj", "k_proj", "v_proj", "o_proj"]}
scale = {"parallel": "ddp", "checkpointing": True, "optimizer": "adamw"}
data = {"source": "pairs", "tokenizer": "chat", "system": "Answer from the context alone, in as few words as will do. If it does not say, say that you don't know.",
        "val_fraction": 0.05, "test_fraction": 0.05}
dpo = {"objective": "dpop", "beta": 0.3, "penalty": 50.0, "epochs": 1.0, "batch": 16, "micro_tokens": 8192, "lr": 2e-5, "schedule": "cosine", "min_lr": 0.0,
       "warmup": 0.1, "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "grad_clip": 1.0, "curriculum": "staged", "difficulty": "level",
       "eval_every": 100, "save_every": 100, "log_every": 1, "watch_prompts": 0}
