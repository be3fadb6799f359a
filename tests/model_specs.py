"""Small model specifications that several tests share."""

from dataclasses import replace

from vkllm.model.spec import ModelSpec

TINY_SPEC = ModelSpec(
    architecture="llama",
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=32,
    d_model=96,
    d_ff=160,
    n_vocab=301,
    n_ctx_train=256,
    norm_eps=1e-5,
    rope_theta=10000.0,
    rope_dims=32,
    rope_scale=1.0,
    rope_pairing="interleaved",
    has_rope_freqs=False,
    output_weight="output.weight",
)

WIDE_SPEC = replace(TINY_SPEC, n_heads=8, d_model=256, d_ff=512)
"""One whose columns are whole super-blocks."""
