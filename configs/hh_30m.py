"""6 layers, 6 heads, width 384 with GPT-2's vocabulary: 30M parameters, 19M of them embeddings. Cut to about 45 minutes on a T4 (bench/t4_plan.py)."""
base_config = "hh_small_scratch"
model = {"n_layer": 6, "n_head": 6, "n_embd": 384}
base = {"lr": 1e-3, "max_steps": 800, "eval_every": 200, "save_every": 200}
sft = {"lr": 5e-4, "epochs": 1.0}
dpo = {"lr": 2e-5, "max_pairs": 60000}
