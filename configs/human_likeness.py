"""What the seven models of the human-likeness study have in common; each has a file of its own, human_*.py.

Pairs of dialogues by persona, the more human one chosen. Published: QLoRA by data parallelism; here the frozen weights are bfloat16 and,
from 14B on, sharded. The other way: --lora.frozen=nf4 --scale.parallel=ddp (every GPU holds all weights in 4 bits).
Samples after every epoch: --dpo.samples_file=prompts.jsonl.
"""
dtype = "bfloat16"
model = {"block_size": 2048}
lora = {"rank": 16, "alpha": 32.0, "dropout": 0.0, "rslora": False, "frozen": "bfloat16", "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
scale = {"parallel": "ddp", "checkpointing": True, "optimizer": "adamw"}
data = {"source": "human_likeness_pairs.jsonl", "tokenizer": "chat", "val_fraction": 0.05, "test_fraction": 0.05}
dpo = {"objective": "dpo", "beta": 0.1, "epochs": 10.0, "batch": 128, "micro_tokens": 8192, "lr": 5e-5, "schedule": "linear", "min_lr": 0.0, "warmup": 0.1,
       "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "grad_clip": 1.0, "eval_every": 50, "save_every": 50, "log_every": 1, "watch_prompts": 0}
eval = {"max_new_tokens": 1536, "temperature": 1.0, "batch_size": 32}
