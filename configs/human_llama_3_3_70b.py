"""Llama-3.3-70B-Instruct in the human-likeness study; settings shared by all seven models: human_likeness.py."""
base_config = "human_likeness"
model = {"init_from": "meta-llama/Llama-3.3-70B-Instruct"}
scale = {"parallel": "fsdp"}
