"""Which checkpoints and which data an evaluation is about, and that they belong together."""
from collections.abc import Mapping
from pathlib import Path

from data.store import find_data
from runtime.checkpoint import find_checkpoint, read_run, weights_hash
from runtime.config import Config
from runtime.errors import UserError


def find_stages(config: Config) -> dict[str, Path]:
    """Checkpoint folders of "dpo", "sft" (its reference) and, where there is one, "base". UserError names what is missing."""
    if config.data.tokenizer == "chat":
        raise UserError("the evaluation reads checkpoints of our own GPT; a model with a chat format of its own writes replies during training: dpo.samples_file, docs/scale.md.")
    folders = {}
    for stage in ("dpo", "sft", "base"):
        named = {"dpo": config.eval.policy, "sft": config.dpo.init_from}.get(stage)
        wanted = Path(named) if named else config.run_dir / stage / "best"
        best = find_checkpoint(wanted)
        if best is not None:
            folders[stage] = best
        elif stage != "base":
            raise UserError(f"there is no {stage.upper()} checkpoint in {wanted}: run `python train_{stage}.py {config.name}` "
                            "with the same settings first.")
    # DPO notes which weights it started from: after a later SFT run the two no longer belong together
    started_from = read_run(folders["dpo"])["fingerprint"].get("starting_weights")
    if started_from and started_from != weights_hash(folders["sft"]):
        raise UserError(f"{folders['dpo']} did not start from {folders['sft']}: run `python train_dpo.py {config.name} --fresh` "
                        "with the same settings first.")
    return folders


def find_pairs(config: Config, folders: Mapping[str, Path]) -> Path:
    """The prepared data that DPO was trained with; UserError when the settings mean other data."""
    root, used = find_data(config), read_run(folders["dpo"])["data"]
    if root is None:
        raise UserError(f"there are no prepared pairs for these settings: run `python data/prepare_hh.py {config.name}` "
                        "with the same settings first.")
    if used != root.name:
        raise UserError(f"{folders['dpo']} was trained on the prepared data {used}, these settings mean {root.name}: "
                        "use the settings of that run.")
    return root
