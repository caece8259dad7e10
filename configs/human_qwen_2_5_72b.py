"""Qwen2.5-72B-Instruct in the human-likeness study; settings shared by all seven models: human_likeness.py."""
base_config = "human_likeness"
model = {"init_from": "Qwen/Qwen2.5-72B-Instruct"}
scale = {"parallel": "fsdp"}
