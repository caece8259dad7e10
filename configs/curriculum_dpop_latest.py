"""The curriculum study's latest recipe: beta .1, lambda 1, 6,000 improved hard pairs and 600 medium ones, shuffled together. 412 steps of 16.

    python -m studies.curriculum_dpop.data choose --from FOLDER --to latest --counts hard_improved=6000,medium=600
    python train_dpo.py curriculum_dpop_latest --data.source=latest
"""
base_config = "curriculum_dpop"
model = {"block_size": 1024}
dpo = {"beta": 0.1, "penalty": 1.0, "curriculum": "none", "warmup": 0.12, "weight_decay": 0.01}  # 50 of 412 steps
