"""The tiny model as a directory that vLLM can load: a GGUF file in, float32 safetensors and a tokenizer out.

Only what treadle-tiny's file holds is read: the Llama architecture with tied embeddings, tensors in F32 and Q8_0, byte-level
BPE with the pre-tokenizer `bloom`. Sources: ggml's docs/gguf.md, the safetensors README, llama.cpp's convert_hf_to_gguf.py
(which order it gives the rows of Q and K), all as of 2026-11.
"""

from __future__ import annotations

import json
import struct
from array import array
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["unquantize"]

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_F32, _Q8_0 = 0, 8
_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens
_BLOCK = struct.Struct("<e32b")  # Q8_0: one scale, 32 numbers

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

_BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"  # what llama.cpp splits by for `bloom`


def unquantize(gguf: Path, directory: Path) -> None:
    """Write `gguf` to `directory` as config, tokenizer and weights."""
    with gguf.open("rb") as file:
        fields, tensors = _read(file)
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "config.json", _config(fields))
    _write_json(directory / "generation_config.json", {"eos_token_id": fields["tokenizer.ggml.eos_token_id"]})
    _write_json(directory / "tokenizer.json", _tokenizer(fields))
    _write_json(directory / "tokenizer_config.json", _tokenizer_config(fields))
    _write_weights(directory / "model.safetensors", tensors, fields)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _read(file: BinaryIO) -> tuple[dict[str, Any], dict[str, tuple[list[int], array[float]]]]:
    """The fields, and each tensor's shape (rows first) and numbers."""
    magic, version, tensor_count, field_count = struct.unpack("<4sIQQ", file.read(24))
    assert (magic, version) == (b"GGUF", 3)
    fields = {_value(file, _STRING): _value(file, _number(file, "I")) for _ in range(field_count)}
    table = []
    for _ in range(tensor_count):
        name = _value(file, _STRING)
        shape = [_number(file, "Q") for _ in range(_number(file, "I"))][::-1]
        table.append((name, shape, _number(file, "I"), _number(file, "Q")))
    alignment = fields.get("general.alignment", 32)
    start = -(-file.tell() // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in table:
        file.seek(start + offset)
        tensors[name] = shape, _numbers(file, shape, kind)
    return fields, tensors


def _number(file: BinaryIO, code: str) -> Any:
    (value,) = struct.unpack("<" + code, file.read(struct.calcsize("<" + code)))
    return value


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return file.read(_number(file, "Q")).decode()
    if kind == _ARRAY:
        of, length = _number(file, "I"), _number(file, "Q")
        return [_value(file, of) for _ in range(length)]
    return _number(file, _SCALARS[kind])


def _numbers(file: BinaryIO, shape: list[int], kind: int) -> array[float]:
    count = 1
    for size in shape:
        count *= size
    if kind == _F32:
        return array("f", struct.unpack(f"<{count}f", file.read(4 * count)))
    assert kind == _Q8_0, f"tensors of kind {kind} are not read"
    numbers = array("f")
    for scale, *quants in _BLOCK.iter_unpack(file.read(count // 32 * _BLOCK.size)):
        numbers.extend(scale * quant for quant in quants)
    return numbers


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    llama = {name.removeprefix("llama."): value for name, value in fields.items()}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float32",
        "hidden_act": "silu",
        "hidden_size": llama["embedding_length"],
        "intermediate_size": llama["feed_forward_length"],
        "num_hidden_layers": llama["block_count"],
        "num_attention_heads": llama["attention.head_count"],
        "num_key_value_heads": llama["attention.head_count_kv"],
        "head_dim": llama["rope.dimension_count"],
        "max_position_embeddings": llama["context_length"],
        "rms_norm_eps": llama["attention.layer_norm_rms_epsilon"],
        "rope_theta": llama["rope.freq_base"],
        "vocab_size": llama["vocab_size"],
        "tie_word_embeddings": True,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
    }


def _tokenizer(fields: dict[str, Any]) -> dict[str, Any]:
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "bloom")
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    whole = [
        {
            "id": number,
            "content": token,
            "special": kind == _CONTROL,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": _BLOOM}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": whole,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]],
        },
    }


def _tokenizer_config(fields: dict[str, Any]) -> dict[str, Any]:
    tokens = fields["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[fields["tokenizer.ggml.padding_token_id"]],
        "chat_template": fields["tokenizer.chat_template"],
    }


def _write_weights(path: Path, tensors: dict[str, tuple[list[int], array[float]]], fields: dict[str, Any]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = bytearray()
    for name, (shape, numbers) in tensors.items():
        *layer, short, _ = name.split(".")  # "blk.0.attn_q.weight", "output_norm.weight"
        prefix = f"model.layers.{layer[1]}." if layer else ""
        if short in ("attn_q", "attn_k"):
            numbers = _halves_apart(numbers, shape, fields["llama.rope.dimension_count"])
        begin = len(body)
        body += struct.pack(f"<{len(numbers)}f", *numbers)
        header[f"{prefix}{_NAMES[short]}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(body)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def _halves_apart(numbers: array[float], shape: list[int], head_dim: int) -> array[float]:
    """The rows of each head in the order of RoPE over halves: GGUF's Llama has a pair's two rows next to each other."""
    rows, width = shape
    ordered = array("f")
    for head in range(0, rows, head_dim):
        for row in (*range(0, head_dim, 2), *range(1, head_dim, 2)):
            at = (head + row) * width
            ordered.extend(numbers[at : at + width])
    return ordered
