"""The published system's best run, as its log and code have it: an additive penalty of 50, three levels in a row, adapters on q and v.

    python -m studies.curriculum_dpop.data choose --from PUBLISHED --to chosen --counts easy=5000,medium=10000,hard=30000
    python train_dpo.py curriculum_dpop_original --data.source=chosen

To reproduce, not to imitate: the penalty drowns the preference (`dpop_additive` in more_losses.py). Pairs whose chosen answer is known to be made up,
as a part of the published ones is, are dropped by `choose`; with --keep-fabricated they stay, and penalised objectives refuse them.
"""
base_config = "curriculum_dpop"
model = {"block_size": 1024}
lora = {"targets": ["q_proj", "v_proj"]}
dpo = {"objective": "dpop_additive", "batch": 8, "lr": 2e-4, "schedule": "linear", "warmup": 0.018, "weight_decay": 0.01}  # 100 of 5,625 steps
