"""hh_small without the published weights: a base stage on plain text instead. The contrast shows what pretraining is worth."""
base_config = "hh_small"
model = {"init_from": "scratch"}
data = {"text_source": "hub"}
base = {"enabled": True, "epochs": 1.0, "batch": 64, "lr": 6e-4, "warmup": 0.02, "eval_every": 500, "eval_rows": 512, "save_every": 500}
sft = {"lr": 2e-4, "epochs": 2.0}
