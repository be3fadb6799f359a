"""GGUF files for the tests of the reader: a sound one with every type of field, and damaged copies of it."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np

from vkllm.formats.gguf import ModelFile

# Name, shape in numpy order, format.
TENSORS: list[tuple[str, tuple[int, ...], str]] = [
    ("token_embd.weight", (6, 64), "Q8_0"),
    ("output_norm.weight", (64,), "F32"),
    ("blk.0.attn_q.weight", (3, 64), "Q4_0"),
    ("blk.0.attn_k.weight", (2, 64), "Q4_1"),
    ("blk.0.ffn_up.weight", (5, 32), "F16"),
    ("blk.0.ffn_down.weight", (5, 7), "BF16"),
    ("blk.0.ffn_gate.weight", (2, 256), "Q4_K"),
    ("blk.0.ffn_gate_exps.weight", (2, 3, 32), "Q8_0"),
]
TOKENS = ["<s>", "a", "", "ü", "▁Größe", "😀"]


def tensor_bytes(name: str, shape: tuple[int, ...], format: str) -> np.ndarray:
    """Bytes of a tensor's size, different for each name: uint8 [..., bytes a row]."""
    n_values, values_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[format]]
    rng = np.random.default_rng(sum(name.encode()))
    return rng.integers(0, 256, (*shape[:-1], shape[-1] // n_values * values_bytes), dtype=np.uint8)


def write(path: Path, *, alignment: int = 32, tensors: bool = True) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    writer.add_string("test.string", "Grüße")
    writer.add_uint8("test.uint8", 200)
    writer.add_int32("test.int32", -5)
    writer.add_uint64("test.uint64", 1 << 40)
    writer.add_float32("test.float32", 0.5)
    writer.add_float64("test.float64", 0.1)
    writer.add_bool("test.true", True)
    writer.add_bool("test.false", False)
    writer.add_array("test.strings", TOKENS)
    writer.add_array("test.integers", [3, -1, 7])
    writer.add_array("test.numbers", [0.25, -1.5])
    for name, shape, format in TENSORS if tensors else []:
        kind = gguf.GGMLQuantizationType[format]
        data = tensor_bytes(name, shape, format)
        if format in ("F32", "F16"):
            data = data.view(np.float32 if format == "F32" else np.float16)
            writer.add_tensor(name, data)
        else:
            writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Patch:
    """Writes a damaged copy of a sound file."""

    def __init__(self, source: Path, path: Path) -> None:
        self.data = bytearray(source.read_bytes())
        self.path = path

    def behind(self, name: str) -> int:
        """The offset behind the string `name` in the header: a field's type, or a tensor's number of dimensions."""
        needle = struct.pack("<Q", len(name)) + name.encode()
        assert self.data.count(needle) == 1, name
        return self.data.index(needle) + len(needle)

    def put(self, offset: int, layout: str, value: int) -> Patch:
        struct.pack_into(layout, self.data, offset, value)
        return self

    def open(self) -> ModelFile:
        self.path.write_bytes(self.data)
        return ModelFile.open(self.path)
