"""One experiment = one python file in configs/, read as data, checked against the dataclasses below.

    python train_dpo.py toy --dpo.beta=0.2 --out=/mnt/drive

Every field of every section can be overridden on the command line; `--help` lists them all. A config file holds assignments
of literals only (it is parsed, never executed), so opening somebody else's config cannot run code.
"""
import ast
import dataclasses
import difflib
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = ("model", "lora", "scale", "data", "base", "sft", "dpo", "reward", "eval")


def opt(default: Any, meaning: str) -> Any:
    """A config field with its default and the line that --help shows."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": meaning})
    return field(default=default, metadata={"help": meaning})


@dataclass
class ModelConfig:
    init_from: str = opt("scratch", "scratch | a Hugging Face folder | a Hub name such as gpt2; other causal LMs than GPT-2 need data.tokenizer chat")
    n_layer: int = opt(4, "transformer blocks")
    n_head: int = opt(4, "attention heads per block")
    n_embd: int = opt(128, "width of the residual stream")
    block_size: int = opt(256, "positions the model has: prompt + longer reply must fit")
    dropout: float = opt(0.0, "dropout in base and SFT training; DPO always runs without")


@dataclass
class LoraConfig:
    rank: int = opt(0, "rank of the low-rank adapters; 0 = train all weights")
    alpha: float = opt(32.0, "their scale: alpha / rank, or alpha / sqrt(rank) with rslora")
    dropout: float = opt(0.0, "dropout on the adapters' input, in training passes only")
    rslora: bool = opt(False, "rank-stabilised scale (Kalajdzievski 2023)")
    targets: list[str] = opt(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], "last parts of the names of the linear layers that get adapters")
    frozen: str = opt("bfloat16", "how the frozen weights are kept: float32 | bfloat16 | nf4 (4 bit, needs bitsandbytes, no FSDP)")


@dataclass
class ScaleConfig:
    parallel: str = opt("auto", "under torchrun: ddp (each rank holds the model) | fsdp (each rank holds a shard); auto = ddp")
    checkpointing: bool = opt(False, "compute each block's activations twice instead of keeping them")
    optimizer: str = opt("adamw", "adamw | adamw8bit (needs bitsandbytes and a GPU)")


@dataclass
class DataConfig:
    source: str = opt("toy", "toy | hub | a folder or comma-separated files with HH-style pairs")
    dataset: str = opt("Anthropic/hh-rlhf", "Hub data set used when source is hub")
    subsets: list[str] = opt([], "HH subsets to use, e.g. ['harmless-base','helpful-base']; empty = all")
    tokenizer: str = opt("bpe", "gpt2 | bpe (trained here on the training split) | chat (the model's own, with its chat template) | a folder with tokenizer.json")
    vocab_size: int = opt(1024, "tokens of a bpe trained here, end-of-text included")
    system: str = opt("", "with tokenizer=chat: the system message of every conversation that has none; empty = none")
    val_fraction: float = opt(0.05, "share of conversations held out for validation when the source has no such split")
    test_fraction: float = opt(0.10, "share of conversations held out for testing when the source has no such split")
    max_rows: int = opt(0, "use only the first rows of each source file; 0 = all")
    skip_bad: bool = opt(False, "count malformed lines instead of stopping at the first")
    toy_control: str = opt("none", "none | shuffled | flipped | no_overrefusal | clean | near_identical: the toy corpus's controls")
    text_source: str = opt("", "plain text and dialogues for the base stage: folder or files; hub; empty = pair dialogues only")
    text_dataset: str = opt("Salesforce/wikitext:wikitext-103-raw-v1", "Hub data set used when text_source is hub")
    text_max_mb: float = opt(0.0, "read at most this much plain text in total, evenly from all files; 0 = all")


@dataclass
class TrainConfig:
    """Fields that every stage has."""
    max_steps: int = opt(0, "optimizer steps; 0 = as many as `epochs` needs")
    epochs: float = opt(1.0, "passes over the training split, used when max_steps is 0")
    batch: int = opt(32, "rows (DPO: pairs) per optimizer step, however it is cut into micro-batches")
    micro_tokens: int = opt(8192, "tokens per forward pass, padding included; lower it when memory runs out")
    lr: float = opt(1e-3, "peak learning rate")
    schedule: str = opt("cosine", "cosine | linear: how the learning rate falls after its warm-up")
    min_lr: float = opt(0.1, "final learning rate as a share of the peak")
    warmup: float = opt(0.05, "share of the steps spent warming up")
    weight_decay: float = opt(0.1, "AdamW decay, on matrices only")
    beta1: float = opt(0.9, "AdamW first-moment decay")
    beta2: float = opt(0.95, "AdamW second-moment decay")
    grad_clip: float = opt(1.0, "global gradient norm limit; 0 = off")
    eval_every: int = opt(100, "steps between validations")
    eval_rows: int = opt(512, "validation rows used during training; 0 = all")
    save_every: int = opt(200, "steps between saves of last/")
    log_every: int = opt(10, "steps between lines of metrics.jsonl")
    patience: int = opt(0, "stop after this many validations without a new best; 0 = never")


@dataclass
class BaseConfig(TrainConfig):
    enabled: bool = opt(False, "train a language model on plain text before SFT (from-scratch models need it)")


@dataclass
class SFTConfig(TrainConfig):
    loss_on: str = opt("response", "all | assistant | response: the tokens that carry the SFT loss")


@dataclass
class DPOConfig(TrainConfig):
    init_from: str = opt("", "policy and reference; empty = the experiment's own SFT checkpoint")
    objective: str = opt("dpo", "a name from objectives.py, or a sum such as 'dpo + 0.2 nll'")
    beta: float = opt(0.1, "strength of the tie to the reference; its scale differs between objectives, see each one's docstring; here and below -1 = the objective's own default")
    label_smoothing: float = opt(-1.0, "cdpo, robust, exo, aot: assumed share of flipped labels")
    penalty: float = opt(-1.0, "dpop, dpop_additive: lambda, weight on the fall of the chosen log-prob")
    alpha: float = opt(-1.0, "rpo, cpo, orpo, rdpo, odpo, lddpo, beta_dpo, fdpo_alpha: the weight of what each adds")
    gamma: float = opt(-1.0, "simpo: target margin")
    tau: float = opt(-1.0, "discopop: width of its switch")
    max_pairs: int = opt(0, "train on a random choice of this many pairs; 0 = all")
    curriculum: str = opt("none", "none (shuffled) | staged | cumulative | linear | hardest_last: the order of the pairs, see curriculum.py")
    difficulty: str = opt("level", "level (the source's own) | margin (how wrong the reference is, per token) | edit (how alike the replies are)")
    reverse: bool = opt(False, "curriculum from hard to easy")
    stages: int = opt(3, "staged, cumulative: parts of equal size, where difficulty is measured")
    keep: float = opt(0.3, "cumulative: share of all earlier stages' pairs that a stage keeps")
    opening: float = opt(0.2, "linear: share of the pairs, the easiest, that the first step draws from")
    pace: float = opt(0.5, "linear: share of the steps after which all pairs are drawn from")
    stage_restart: bool = opt(False, "a new optimizer and a learning-rate schedule of its own in every stage")
    reference_update: float = opt(0.0, "share of the policy mixed into the reference at every stage's (no curriculum: pass's) end; 0 = fixed, 1 = replaced")
    samples_file: str = opt("", "prompts (.jsonl, .csv with a column prompt, .txt) answered before training and after every pass or stage: inference/samples_epoch_NN.csv")
    watch_prompts: int = opt(48, "validation prompts the policy answers at each validation, for the health panel; 0 = off")


@dataclass
class RewardConfig(TrainConfig):
    init_from: str = opt("", "the reward model's body; empty = the experiment's own SFT checkpoint")


@dataclass
class EvalConfig:
    policy: str = opt("", "checkpoint evaluated in the place of the experiment's DPO model (a control, say)")
    prompts_per_kind: int = opt(400, "distinct test prompts of each kind to answer")
    max_new_tokens: int = opt(64, "longest reply, in tokens")
    temperature: float = opt(0.7, "sampling temperature for SFT and DPO alike")
    top_k: int = opt(0, "keep the k likeliest tokens; 0 = all")
    top_p: float = opt(1.0, "nucleus sampling mass; 1 = all")
    batch_size: int = opt(64, "prompts generated together")
    seed: int = opt(0, "seed of sampling and resampling")
    prompt_sets: list[str] = opt([], "further prompts: own | xstest:FILE | advbench:FILE | simplesafetytests:FILE | any CSV or JSONL file")
    continuations: str = opt("", "openings to be continued, in RealToxicityPrompts' layout; empty = toxicity of replies only")
    toxicity_samples: int = opt(0, "samples per prompt for the expected maximum toxicity; 0 = off, 25 in the literature")
    toxicity_prompts: int = opt(100, "openings (or unsafe prompts) that are sampled so often; 0 = all")
    general_text: str = opt("", "text file for perplexity on general text; empty = the project's own sixty paragraphs")
    toxicity: str = opt("lexicon", "lexicon | detoxify:original | detoxify:unbiased | detoxify:original-small | both")
    detoxify_checkpoint: str = opt("", "local Detoxify checkpoint file")
    detoxify_folder: str = opt("", "folder with the base model's config and tokenizer for that checkpoint")
    max_pairs: int = opt(0, "held-out pairs scored for accuracy and perplexity; 0 = all")
    bootstrap: int = opt(10000, "resamples per interval")
    samples_in_report: int = opt(10, "side-by-side replies shown in the report")


@dataclass
class Config:
    name: str = opt("", "experiment name; empty = the config file's name")
    out: str = opt("out", "folder that receives <out>/<name>/ and <out>/data/")
    seed: int = opt(0, "seed of data order, initial weights and dropout")
    device: str = opt("auto", "auto | cpu | cuda | mps")
    dtype: str = opt("auto", "auto | float32 | bfloat16 | float16")
    threads: int = opt(0, "CPU threads; 0 = PyTorch's own choice")
    compile: bool = opt(False, "torch.compile the model")
    deterministic: bool = opt(False, "ask PyTorch for deterministic kernels on a GPU")
    resume: bool = opt(False, "insist on continuing: an error when there is nothing to continue")
    override_base: bool = opt(False, "write the samples of the starting model again (dpo.samples_file)")
    override_checkpoints: bool = opt(False, "as fresh: ignore what an earlier run left; the starting model's samples are kept")
    dry_run: bool = opt(False, "train_dpo.py: print which pairs come when, and stop")
    fresh: bool = opt(False, "delete this stage's earlier run and start over")
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    data: DataConfig = field(default_factory=DataConfig)
    base: BaseConfig = field(default_factory=BaseConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    dpo: DPOConfig = field(default_factory=DPOConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    @property
    def run_dir(self) -> Path:
        """<out>/<name>, the folder of this experiment."""
        return Path(self.out) / self.name


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"


def _checked(value: Any, wanted: type, where: str) -> Any:
    """`value` if it has the wanted type (an int is a valid float), else a UserError."""
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted == list[str]:
        if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
            return list(value)
    elif isinstance(value, wanted) and not (wanted is int and isinstance(value, bool)):
        return value
    shown = "list of strings" if wanted == list[str] else wanted.__name__
    raise UserError(f"{where} must be a {shown}, not {value!r} ({type(value).__name__}).")


def _set(config: Config, dotted: str, value: Any, where: str) -> None:
    """Set `section.field` or a top-level field, with type check and nearest-name hint."""
    owner, name = config, dotted
    if "." in dotted:
        section, name = dotted.split(".", 1)
        if section not in SECTIONS:
            raise UserError(f"{where}: unknown section '{section}'{_nearest(section, list(SECTIONS))}.")
        owner = getattr(config, section)
    types = get_type_hints(type(owner))
    fields = [f for f in types if f not in SECTIONS]
    if name not in fields:
        raise UserError(f"{where}: unknown key '{dotted}'{_nearest(name, fields)}.")
    setattr(owner, name, _checked(value, types[name], f"{where}: {dotted}"))


def config_path(name: str) -> Path:
    """A bare name, configs/x.py and config/x.py all mean configs/x.py; any other existing path is itself."""
    given = Path(name)
    for path in (given, ROOT / "configs" / f"{given.stem}.py"):
        if path.is_file():
            return path
    known = sorted(p.stem for p in (ROOT / "configs").glob("*.py"))
    raise UserError(f"no config '{name}'{_nearest(given.stem, known)}.")


def _read_file(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Top-level literal assignments of a config file, merged key by key over its `base_config`."""
    path = path.resolve()
    if path in seen:
        raise UserError(f"config files include each other in a circle: {' -> '.join(p.name for p in (*seen, path))}.")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as e:
        raise UserError(f"{path.name} line {e.lineno}: not valid python ({e.msg}).") from None
    values: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
            raise UserError(f"{path.name} line {node.lineno}: a config holds only `name = literal` lines.")
        try:
            values[node.targets[0].id] = ast.literal_eval(node.value)
        except ValueError:
            raise UserError(f"{path.name} line {node.lineno}: the value must be a literal (numbers, strings, lists, dicts).") from None
    base = values.pop("base_config", None)
    if base is None:
        return values
    merged = _read_file(config_path(base), (*seen, path))
    for key, value in values.items():
        merged[key] = {**merged[key], **value} if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
    return merged


def _literal(text: str) -> Any:
    """The value of `--key=text`: a python literal if it is one, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _type_of(key: str) -> type | None:
    """The type of `field` or `section.field`; None when there is no such key."""
    section, _, name = key.rpartition(".")
    owner = {"": Config} | {s: get_type_hints(Config)[s] for s in SECTIONS}
    return get_type_hints(owner[section]).get(name) if section in owner else None


def help_text() -> str:
    """Every field with its default and meaning."""
    lines = ["usage: python SCRIPT CONFIG [--key=value | --section.key=value ...]", ""]
    for prefix, owner in [("", Config())] + [(f"{s}.", getattr(Config(), s)) for s in SECTIONS]:
        for f in dataclasses.fields(owner):
            if f.name not in SECTIONS:
                lines.append(f"  --{prefix + f.name:<24} {f.metadata['help']} [{getattr(owner, f.name)!r}]")
        lines.append("")
    return "\n".join(lines)


def _underscored(word: str) -> str:
    """`--dry-run=x` as `--dry_run=x`; a value keeps its hyphens."""
    key, *value = word.split("=", 1)
    return "=".join(["--" + key[2:].replace("-", "_"), *value]) if word.startswith("--") else word


def load_config(argv: list[str]) -> Config:
    """The config named by the first positional argument, with `--key=value` overrides applied in order.

    `--key value` works too, except for a bool field, where a bare `--flag` means True. Raises UserError for anything unknown or ill-typed.
    """
    if not argv or "--help" in argv or "-h" in argv:
        print(help_text())
        raise SystemExit(0 if argv else 2)
    argv = [_underscored(word) for word in argv]
    positional, overrides, i = [], [], 0
    while i < len(argv):
        if not argv[i].startswith("--"):
            positional.append(argv[i])
        elif "=" in argv[i]:
            overrides.append(tuple(argv[i][2:].split("=", 1)))
        elif _type_of(argv[i][2:]) is not bool and i + 1 < len(argv) and not argv[i + 1].startswith("--"):
            overrides.append((argv[i][2:], argv[i + 1]))
            i += 1
        else:
            overrides.append((argv[i][2:], "True"))
        i += 1
    if len(positional) != 1:
        raise UserError(f"give exactly one config, such as `toy`; got {positional or 'none'}.")
    path = config_path(positional[0])
    config = Config(name=path.stem)
    for key, value in _read_file(path).items():
        if key in SECTIONS:
            for name, v in _checked(value, dict, f"{path.name}: {key}").items():
                _set(config, f"{key}.{name}", v, path.name)
        else:
            _set(config, key, value, path.name)
    for key, text in overrides:
        _set(config, key, text if _type_of(key) is str else _literal(text), "command line")
    config.name = config.name or path.stem
    config.fresh |= config.override_checkpoints
    return config


def digest(value: Any) -> str:
    """Short content hash of a plain value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
