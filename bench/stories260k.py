"""A really trained checkpoint of 0.26M parameters that writes English, as a Hugging Face Llama folder.

    python bench/stories260k.py --source FOLDER --to FOLDER [--positions 1024]

FOLDER holds stories260K.bin and tok512.bin of karpathy/tinyllamas (MIT), in the first layout of llama2.c: seven int32, then float32
matrices. Its vocabulary is SentencePiece's, its attention Llama's, so it meets what a large Llama meets: a start token, a space that
is "▁", bytes as tokens of their own. Its 0.26M parameters know nothing: it shows that the plumbing holds, and no more.
"""
import argparse
import struct
import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.errors import UserError, run_main  # noqa: E402

UNKNOWN, START, END = "<unk>", "<s>", "</s>"  # ids 0, 1, 2


def halves(rotary: Tensor, heads: int) -> Tensor:
    """Query or key rows [heads * d, C] from llama2.c's order to Hugging Face's: it rotates (0, 1), (2, 3), ..., they (0, d/2), (1, d/2 + 1), ..."""
    return rotary.view(heads, -1, 2, rotary.shape[1]).transpose(1, 2).reshape(rotary.shape)


def read_weights(path: Path) -> tuple[dict[str, int], dict[str, Tensor]]:
    """(LlamaConfig's sizes, weights by Hugging Face's names) of a llama2.c checkpoint. UserError for a file of another layout."""
    raw = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, positions = struct.unpack("7i", raw[:28])
    floats, at = torch.from_numpy(np.frombuffer(raw, "<f4", offset=28).copy()), 0

    def take(*shape: int) -> Tensor:
        nonlocal at
        found = floats[at:at + int(np.prod(shape))]
        at += len(found)
        return found.view(*shape)
    kv = dim // heads * kv_heads
    stacks = {"embed": take(vocab, dim), "input_layernorm": take(layers, dim), "self_attn.q_proj": take(layers, dim, dim),
              "self_attn.k_proj": take(layers, kv, dim), "self_attn.v_proj": take(layers, kv, dim), "self_attn.o_proj": take(layers, dim, dim),
              "post_attention_layernorm": take(layers, dim), "mlp.gate_proj": take(layers, hidden, dim), "mlp.down_proj": take(layers, dim, hidden),
              "mlp.up_proj": take(layers, hidden, dim)}
    weights = {"model.embed_tokens.weight": stacks.pop("embed"), "model.norm.weight": take(dim)}
    if len(floats) - at != positions * (dim // heads):  # what is left are the two tables of the rotary angles
        raise UserError(f"{path} is no llama2.c checkpoint of the first layout with a tied head.")
    for name, stack in stacks.items():
        for layer, matrix in enumerate(stack):
            turned = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}.get(name)
            weights[f"model.layers.{layer}.{name}.weight"] = halves(matrix, turned) if turned else matrix
    sizes = {"hidden_size": dim, "intermediate_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
             "num_key_value_heads": kv_heads, "vocab_size": vocab, "max_position_embeddings": positions}
    return sizes, weights


def read_pieces(path: Path) -> list[tuple[str, float]]:
    """(piece, score) per id of llama2.c's tokenizer file, as SentencePiece spells them: "▁" for a space, "<0x0A>" for a byte."""
    raw, at, pieces = path.read_bytes(), 4, []
    while at < len(raw):
        score, length = struct.unpack("<fi", raw[at:at + 8])
        pieces.append((raw[at + 8:at + 8 + length].decode().replace(" ", "▁"), score))
        at += 8 + length
    pieces[:3] = [(UNKNOWN, 0.0), (START, 0.0), (END, 0.0)]  # the file holds them as text to print
    return pieces


def fast_tokenizer(pieces: list[tuple[str, float]]) -> Tokenizer:
    """SentencePiece's BPE in the `tokenizers` library; a text gets one start token.

    SentencePiece joins the neighbours whose piece has the highest score. Merges say the same: every way to cut a piece in two known ones,
    ordered by the piece's score.
    """
    vocab = {piece: i for i, (piece, _) in enumerate(pieces)}
    cuts = [(-score, piece[:k], piece[k:]) for piece, score in pieces[3:] for k in range(1, len(piece)) if not piece.startswith("<0x")]
    merges = [(left, right) for _, left, right in sorted(cut for cut in cuts if cut[1] in vocab and cut[2] in vocab)]
    found = Tokenizer(models.BPE(vocab, merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))
    # this vocabulary was trained with remove_extra_whitespaces: no spaces at the ends, and one where several stand
    found.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\A +| +\z|(?<= ) +"), ""), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    found.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    found.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (UNKNOWN, START, END)])
    found.post_processor = processors.TemplateProcessing(single=f"{START} $A", pair=f"{START} $A $B", special_tokens=[(START, vocab[START])])
    return found


def convert(source: Path, to: Path, positions: int = 0) -> None:
    """Write the folder that AutoModelForCausalLM and AutoTokenizer read. UserError when the two files are not in `source`.

    positions: how many the config allows; 0 = the 512 it was trained on. Rotary positions can be computed beyond, if not well used.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    if missing := [name for name in ("stories260K.bin", "tok512.bin") if not (source / name).exists()]:
        raise UserError(f"there is no {missing[0]} in {source}: it comes from karpathy/tinyllamas.")
    sizes, weights = read_weights(source / "stories260K.bin")
    sizes["max_position_embeddings"] = positions or sizes["max_position_embeddings"]
    config = LlamaConfig(**sizes, tie_word_embeddings=True, rms_norm_eps=1e-5, rope_theta=10000.0, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model = LlamaForCausalLM(config)
    lacking = model.load_state_dict(weights, strict=False)
    if lacking.unexpected_keys or lacking.missing_keys != ["lm_head.weight"]:
        raise ValueError(f"weights do not fit: {lacking}")
    model.tie_weights()
    model.save_pretrained(to)
    PreTrainedTokenizerFast(tokenizer_object=fast_tokenizer(read_pieces(source / "tok512.bin")), unk_token=UNKNOWN, bos_token=START,
                            eos_token=END, pad_token=END, model_max_length=sizes["max_position_embeddings"]).save_pretrained(to)


def story(folder: Path, words: str, tokens: int) -> str:
    """What the converted model goes on with, greedily, read back from the folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer(words, return_tensors="pt").input_ids
    with torch.no_grad():
        return tokenizer.decode(model.generate(ids, max_new_tokens=tokens, do_sample=False, pad_token_id=2)[0], skip_special_tokens=True)


def main(argv: list[str]) -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--source", type=Path, required=True)
    a.add_argument("--to", type=Path, required=True)
    a.add_argument("--positions", type=int, default=0, help="positions the config allows; 0 = the 512 of the training")
    a = a.parse_args(argv)
    convert(a.source, a.to, a.positions)
    print(f"{a.to}\n{story(a.to, 'Once upon a time', 120)}")


if __name__ == "__main__":
    run_main(main)
