"""The models whose dispatches `amd.py` compiles for AMD GPUs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from machines import qwen3_30b_a3b  # noqa: E402

from vkllm.model.architectures.llama import llama_spec  # noqa: E402
from vkllm.model.mixers import DeltaNet, LatentAttention, Mamba2, ShortConvolution  # noqa: E402
from vkllm.model.spec import HeadNorm, QueryTemperature, Rope  # noqa: E402

MODEL = llama_spec(
    n_layers=32,
    n_heads=32,
    n_kv_heads=32,
    head_dim=128,
    d_model=4096,
    d_ff=11008,
    n_vocab=32000,
    n_ctx_train=4096,
)
"""Llama 2 7B."""

MIXTURE = qwen3_30b_a3b()
"""Qwen3-30B-A3B."""

LLAMA_3 = replace(MODEL, layers=(replace(MODEL.layers[0], n_kv_heads=8, d_ff=14336),) * 32, n_vocab=128256)
"""Llama 3 8B."""

GROUPED_MODEL = replace(LLAMA_3, layers=LLAMA_3.layers[:1], n_vocab=MODEL.n_vocab)
"""A layer of Llama 3 8B, where four query heads share a key head: attention's other shape."""

OTHER_MODELS = (
    replace(
        MODEL,
        layers=(
            replace(MODEL.layers[0], n_kv_heads=8, head_norm=HeadNorm()),
            replace(
                MODEL.layers[0], n_heads=16, n_kv_heads=8, head_dim=256, rope=Rope(10000.0, 256), head_norm=HeadNorm(),
                window=4096, softcap=50.0, function="gelu", post_attention_norm="post_attention_norm",
                post_ffn_norm="post_ffw_norm",
            ),
            replace(
                MODEL.layers[0], head_dim=80, rope=Rope(10000.0, 32), head_norm=HeadNorm(is_after_rope=True),
                query_temperature=QueryTemperature(0.1, 8192), function="relu2",
            ),
        ),
        embedding_scale=64.0,
        logit_softcap=30.0,
    ),
    replace(
        MODEL,
        layers=(
            replace(
                MODEL.layers[0], n_kv_heads=4, function="gelu", is_gated=False,
                biases=("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_up"),
            ),
            replace(MODEL.layers[0], is_parallel=True, head_norm=HeadNorm(over="row", form="layer"), rope=None),
        ),
        norm_form="layer",
    ),
    replace(
        MODEL,
        layers=tuple(
            replace(MODEL.layers[0], n_heads=0, n_kv_heads=0, head_dim=0, rope=None, mixer=mixer)
            for mixer in (DeltaNet(16, 32, 128, 4), Mamba2(64, 64, 128, 8, 4), ShortConvolution(3, 4096))
        ),
    ),
    replace(
        MODEL,
        layers=(
            replace(MODEL.layers[0], n_heads=64, n_kv_heads=8, head_dim=64, rope=Rope(150000.0, 64), window=128,
                    has_sinks=True, function="swiglu_oai"),
            replace(MODEL.layers[0], n_heads=16, n_kv_heads=2, head_dim=256, rope=Rope(1e7, 64), head_norm=HeadNorm(),
                    has_query_gates=True),
            *[replace(MODEL.layers[0], n_heads=32, n_kv_heads=4, head_dim=512, rope=Rope(1e6, 512),
                      head_norm=HeadNorm(), cache_layer=cache, has_value_norm=cache is None,
                      are_values_keys=cache is None, has_output_scale=True, post_ffn_norm="post_ffw_norm")
              for cache in (None, 2)],
            replace(MODEL.layers[0], chunk=8192, query_temperature=QueryTemperature(0.1, 8192)),
            replace(MODEL.layers[0], n_heads=20, n_kv_heads=1, head_dim=576, rope=Rope(1e4, 64, "interleaved"),
                    mixer=LatentAttention(768, 512, 192, 64, 256)),
        ),
        d_per_layer=256,
    ),
)  # fmt: skip
"""Layers like those of Qwen 3, Gemma, Hunyuan, StarCoder 2, Command R, Qwen 3.5, Nemotron H and LFM2, gpt-oss, Gemma 4,
Llama 4 and DeepSeek 2, as wide as Llama's."""
