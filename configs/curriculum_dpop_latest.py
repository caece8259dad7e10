"""The curriculum study's latest recipe: beta .1, lambda 1, hard and medium pairs shuffled together.

    python train_dpo.py curriculum_dpop_latest --data.source=dpo_pairs_hard.jsonl,dpo_pairs_medium.jsonl
"""
base_config = "curriculum_dpop"
data = {"source": "dpo_pairs_hard.jsonl,dpo_pairs_medium.jsonl"}
dpo = {"beta": 0.1, "penalty": 1.0, "curriculum": "none"}
