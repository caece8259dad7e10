"""6 layers, 6 heads, width 384 with GPT-2's vocabulary: 30M parameters, 19M of them embeddings. A quick run on a T4."""
base_config = "hh_small_scratch"
model = {"n_layer": 6, "n_head": 6, "n_embd": 384}
base = {"lr": 1e-3, "max_steps": 3000}
sft = {"lr": 5e-4}
dpo = {"lr": 2e-5}
