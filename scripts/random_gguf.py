"""Writes a GGUF of a published shape with random weights, to measure its speed without a download.

    scripts/random_gguf.py OUT.gguf qwen3-30b-a3b|gpt-oss-20b|qwen3.5-27b

The vocabulary is made up, and the text that such a model generates is noise. llama.cpp reads these files too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

POOL_BLOCKS = 1 << 20
"""Random blocks of a format, which all matrices are cut from."""

DEVIATION = 0.02
"""Standard deviation of the weights, about."""

FLOAT16_FIELDS = {"Q4_K": {0: DEVIATION / 150, 2: DEVIATION / 20}, "Q8_0": {0: DEVIATION / 74}}
"""Where a block has a scale in float16, and the scale."""

MXFP4_EXPONENT = 120
"""2^(120 - 128) times numbers of up to 12."""


class RandomFile:
    """Writes metadata and random tensors of one architecture."""

    def __init__(self, path: Path, architecture: str) -> None:
        self._writer = gguf.GGUFWriter(path, architecture)
        self._architecture = architecture
        self._rng = np.random.default_rng(0)
        self._pools: dict[str, npt.NDArray[np.uint8]] = {}

    def settings(self, **values: Any) -> None:
        """Keys of the architecture; "__" stands for a point."""
        for name, value in values.items():
            key = f"{self._architecture}.{name.replace('__', '.')}"
            match value:
                case str():
                    self._writer.add_string(key, value)
                case float():
                    self._writer.add_float32(key, value)
                case list():
                    self._writer.add_array(key, value)
                case _:
                    self._writer.add_uint32(key, value)

    def vocabulary(self, n: int) -> None:
        """n tokens without meaning."""
        writer = self._writer
        writer.add_vocab_size(n)
        writer.add_tokenizer_model("llama")
        writer.add_token_list([f"<t{i}>".encode() for i in range(n)])
        writer.add_token_scores([-float(i) for i in range(n)])
        writer.add_token_types([1] * n)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)

    def matrix(self, name: str, fmt: str, *shape: int) -> None:
        """shape: (experts,) rows, columns."""
        if fmt not in self._pools:
            self._pools[fmt] = self._pool(fmt)
        pool, (n_values, n_bytes) = self._pools[fmt], gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[fmt]]
        n_blocks, first = int(np.prod(shape)) // n_values, int(self._rng.integers(0, 1000))
        n_pools = -(-(first + n_blocks) // len(pool))
        blocks = (np.concatenate([pool] * n_pools) if n_pools > 1 else pool)[first : first + n_blocks]
        raw = blocks.reshape(*shape[:-1], shape[-1] // n_values * n_bytes)
        self._writer.add_tensor(f"{name}.weight", raw, raw_dtype=gguf.GGMLQuantizationType[fmt])

    def norm(self, name: str, n: int) -> None:
        """A weight of ones."""
        self._writer.add_tensor(f"{name}.weight", np.ones(n, np.float32))

    def attention(
        self,
        layer: str,
        fmt: str,
        d: int,
        heads: tuple[int, int, int],
        *,
        has_biases: bool = False,
        has_head_norms: bool = False,
        has_gates: bool = False,
    ) -> None:
        """A layer's matrices of attention. heads: how many of queries, how many of keys, their size."""
        n_heads, n_kv, head_dim = heads
        n_q = (1 + has_gates) * n_heads
        rows = {"attn_q": n_q * head_dim, "attn_k": n_kv * head_dim, "attn_v": n_kv * head_dim, "attn_output": d}
        for name, n_rows in rows.items():
            self.matrix(layer + name, fmt, n_rows, n_heads * head_dim if name == "attn_output" else d)
            if has_biases:
                self.numbers(f"{layer}{name}.bias", n_rows)
        if has_head_norms:
            self.norm(layer + "attn_q_norm", head_dim)
            self.norm(layer + "attn_k_norm", head_dim)

    def numbers(self, name: str, *shape: int) -> None:
        """Random numbers in float32, with the whole name."""
        self._writer.add_tensor(name, self._rng.normal(0, DEVIATION, shape).astype(np.float32))

    def close(self) -> None:
        """Writes everything."""
        self._writer.write_header_to_file()
        self._writer.write_kv_data_to_file()
        self._writer.write_tensors_to_file()
        self._writer.close()

    def _pool(self, fmt: str) -> npt.NDArray[np.uint8]:
        n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[fmt]][1]
        pool = self._rng.integers(0, 256, (POOL_BLOCKS, n_bytes), dtype=np.uint8)
        for at, scale in FLOAT16_FIELDS.get(fmt, {}).items():
            pool[:, at : at + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
        if fmt == "MXFP4":
            pool[:, 0] = MXFP4_EXPONENT
        return pool


def qwen3_30b_a3b(path: Path) -> None:
    """Qwen3-30B-A3B, all matrices in Q4_K."""
    d, n_heads, n_kv, head_dim, n_experts, d_ff, n_vocab, n_layers, fmt = (
        2048,
        32,
        4,
        128,
        128,
        768,
        151_936,
        48,
        "Q4_K",
    )
    file = RandomFile(path, "qwen3moe")
    file.settings(
        block_count=n_layers, context_length=40_960, embedding_length=d, feed_forward_length=6144,
        attention__head_count=n_heads, attention__head_count_kv=n_kv, attention__key_length=head_dim,
        attention__value_length=head_dim, attention__layer_norm_rms_epsilon=1e-6, rope__freq_base=1e6,
        expert_count=n_experts, expert_used_count=8, expert_feed_forward_length=d_ff,
    )  # fmt: skip
    file.vocabulary(n_vocab)
    file.matrix("token_embd", fmt, n_vocab, d)
    for i in range(n_layers):
        layer = f"blk.{i}."
        file.norm(layer + "attn_norm", d)
        file.norm(layer + "ffn_norm", d)
        file.attention(layer, fmt, d, (n_heads, n_kv, head_dim), has_head_norms=True)
        file.numbers(layer + "ffn_gate_inp.weight", n_experts, d)
        file.matrix(layer + "ffn_gate_exps", fmt, n_experts, d_ff, d)
        file.matrix(layer + "ffn_up_exps", fmt, n_experts, d_ff, d)
        file.matrix(layer + "ffn_down_exps", fmt, n_experts, d, d_ff)
    file.norm("output_norm", d)
    file.matrix("output", fmt, n_vocab, d)
    file.close()


def gpt_oss_20b(path: Path) -> None:
    """gpt-oss-20b, experts in MXFP4, all other matrices in Q8_0."""
    d, n_heads, n_kv, head_dim, n_experts, n_vocab, n_layers, fmt = 2880, 64, 8, 64, 32, 201_088, 24, "Q8_0"
    file = RandomFile(path, "gpt-oss")
    file.settings(
        block_count=n_layers, context_length=131_072, embedding_length=d, feed_forward_length=d,
        attention__head_count=n_heads, attention__head_count_kv=n_kv, attention__key_length=head_dim,
        attention__value_length=head_dim, attention__layer_norm_rms_epsilon=1e-5, attention__sliding_window=128,
        rope__freq_base=150_000.0, rope__scaling__type="yarn", rope__scaling__factor=32.0,
        rope__scaling__original_context_length=4096,
        expert_count=n_experts, expert_used_count=4, expert_feed_forward_length=d,
    )  # fmt: skip
    file.vocabulary(n_vocab)
    file.matrix("token_embd", fmt, n_vocab, d)
    for i in range(n_layers):
        layer = f"blk.{i}."
        file.norm(layer + "attn_norm", d)
        file.norm(layer + "post_attention_norm", d)
        file.attention(layer, fmt, d, (n_heads, n_kv, head_dim), has_biases=True)
        file.numbers(layer + "attn_sinks.weight", n_heads)
        file.numbers(layer + "ffn_gate_inp.weight", n_experts, d)
        file.numbers(layer + "ffn_gate_inp.bias", n_experts)
        for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
            file.matrix(layer + name, "MXFP4", n_experts, d, d)
            file.numbers(layer + name + ".bias", n_experts, d)
    file.norm("output_norm", d)
    file.matrix("output", fmt, n_vocab, d)
    file.close()


def qwen35_27b(path: Path) -> None:
    """Like Qwen3.5-27B: three of four layers are delta nets; all matrices in Q4_K, but gates of delta nets in F32."""
    d, n_heads, n_kv, head_dim, d_ff, n_vocab, n_layers, fmt = 5120, 24, 4, 256, 17_408, 248_320, 64, "Q4_K"
    n_k, n_v, state, n_kernel = 16, 48, 128, 4
    k, v = n_k * state, n_v * state
    file = RandomFile(path, "qwen35")
    file.settings(
        block_count=n_layers, context_length=262_144, embedding_length=d, feed_forward_length=d_ff,
        attention__head_count=n_heads, attention__head_count_kv=n_kv, attention__key_length=head_dim,
        attention__value_length=head_dim, attention__layer_norm_rms_epsilon=1e-6, rope__freq_base=1e7,
        rope__dimension_count=64, rope__dimension_sections=[11, 11, 10, 0], ssm__conv_kernel=n_kernel,
        ssm__inner_size=v, ssm__state_size=state, ssm__time_step_rank=n_v, ssm__group_count=n_k,
        full_attention_interval=4,
    )  # fmt: skip
    file.vocabulary(n_vocab)
    file.matrix("token_embd", fmt, n_vocab, d)
    for i in range(n_layers):
        layer = f"blk.{i}."
        file.norm(layer + "attn_norm", d)
        file.norm(layer + "post_attention_norm", d)
        if i % 4 == 3:
            file.attention(layer, fmt, d, (n_heads, n_kv, head_dim), has_head_norms=True, has_gates=True)
        else:
            file.matrix(layer + "attn_qkv", fmt, 2 * k + v, d)
            file.matrix(layer + "attn_gate", fmt, v, d)
            file.numbers(layer + "ssm_conv1d.weight", 2 * k + v, n_kernel)
            file.numbers(layer + "ssm_dt.bias", n_v)
            file.numbers(layer + "ssm_a", n_v)
            file.numbers(layer + "ssm_alpha.weight", n_v, d)
            file.numbers(layer + "ssm_beta.weight", n_v, d)
            file.norm(layer + "ssm_norm", state)
            file.matrix(layer + "ssm_out", fmt, d, v)
        file.matrix(layer + "ffn_gate", fmt, d_ff, d)
        file.matrix(layer + "ffn_up", fmt, d_ff, d)
        file.matrix(layer + "ffn_down", fmt, d, d_ff)
    file.norm("output_norm", d)
    file.matrix("output", fmt, n_vocab, d)
    file.close()


SHAPES = {"qwen3-30b-a3b": qwen3_30b_a3b, "gpt-oss-20b": gpt_oss_20b, "qwen3.5-27b": qwen35_27b}

if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[2] not in SHAPES:
        sys.exit(__doc__)
    SHAPES[sys.argv[2]](Path(sys.argv[1]))
