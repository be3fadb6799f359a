"""Small random models of families, and of variants of them, that the models beside the checkout do not cover."""

from __future__ import annotations

from pathlib import Path

from expert_models import EXPERT_VARIANTS
from variant import (
    ATTENTION,
    FF,
    FUSED,
    GATED,
    HEAD_NORMS,
    LAYER_NORM,
    LLAMA,
    N_VOCAB,
    NORM,
    NORMS,
    NORMS_OF_EACH_HEAD,
    POST_NORMS,
    RMS,
    UNGATED,
    D,
    Variant,
    biases,
    write,
)

VARIANTS: dict[str, Variant] = {
    "llama with all biases": Variant(
        "llama", 2, RMS, LLAMA | biases(LLAMA, "attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
    ),
    "qwen2 with queries, keys and values in one tensor": Variant(
        "qwen2", 2, RMS, NORMS | FUSED | biases(FUSED, "attn_qkv") | GATED, {"output.bias": (N_VOCAB,)},
    ),
    "ernie4_5": Variant("ernie4_5", 2, RMS | {"rope.freq_base": 700.0}, LLAMA),
    "command-r": Variant("command-r", 2, LAYER_NORM | {"logit_scale": 0.6}, NORM | ATTENTION | GATED),
    "command-r, with norms of heads as in R+": Variant(
        "command-r", 64, LAYER_NORM | {"logit_scale": 0.6}, NORM | ATTENTION | NORMS_OF_EACH_HEAD | GATED,
    ),
    "nemotron": Variant(
        "nemotron", 2, LAYER_NORM | {"rope.dimension_count": 8},
        NORMS | ATTENTION | UNGATED | biases(NORMS | ATTENTION | UNGATED, "attn_norm", "ffn_norm", "attn_q", "ffn_up"),
        {"output_norm.bias": (D,), "output.weight": (N_VOCAB, D)},
    ),
    "stablelm, as its 12B": Variant(
        "stablelm", 2, LAYER_NORM | {"use_parallel_residual": True, "rope.dimension_count": 8},
        NORM | biases(NORM, "attn_norm") | ATTENTION | NORMS_OF_EACH_HEAD | GATED,
        {"output_norm.bias": (D,), "output.weight": (N_VOCAB, D)},
    ),
    "exaone4, as its 32B": Variant(
        "exaone4", 64, RMS | {"attention.sliding_window": 12}, ATTENTION | HEAD_NORMS | GATED | POST_NORMS,
    ),
    "gemma2, as its 27B": Variant(
        "gemma2", 46, RMS | {"attention.sliding_window": 12, "attention.key_length": 16, "attention.value_length": 16,
                             "attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0},
        LLAMA | POST_NORMS,
    ),
    "gemma2 with other rotations in its windows": Variant(
        "gemma2", 3, RMS | {"attention.sliding_window": 12, "attention.key_length": 16, "attention.value_length": 16,
                            "rope.freq_base": 700.0, "rope.freq_base_swa": 50.0},
        LLAMA | POST_NORMS,
    ),
    "gemma2 with a factor that counts in windows only": Variant(
        "gemma2", 2, RMS | {"attention.sliding_window": 12, "attention.key_length": 16, "attention.value_length": 16,
                            "rope.freq_base": 90.0, "rope.scaling.type": "none", "rope.scaling.factor": 4.0},
        LLAMA | POST_NORMS,
    ),
    "gemma3 with YaRN": Variant(
        "gemma3", 6, RMS | {"attention.sliding_window": 12, "attention.key_length": 16, "attention.value_length": 16,
                            "rope.freq_base": 90.0, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
                            "rope.scaling.original_context_length": 32, "rope.scaling.attn_factor": 1.2},
        LLAMA | HEAD_NORMS | POST_NORMS,
    ),
    "gemma3 without a window": Variant(
        "gemma3", 2, RMS | {"attention.key_length": 16, "attention.value_length": 16, "rope.freq_base": 700.0},
        LLAMA | HEAD_NORMS | POST_NORMS,
    ),
    "granite without rotations": Variant(
        "granite", 2, RMS | {"rope.scaling.finetuned": False, "logit_scale": 2.0}, LLAMA,
    ),
    "phi3 with YaRN's attention factor and one set of factors": Variant(
        "phi3", 2, RMS | {"rope.scaling.attn_factor": 1.1},
        NORMS | FUSED | {"ffn_up.weight": (2 * FF, D), "ffn_down.weight": (D, FF)},
    ),
    "gemma-embedding": Variant(
        "gemma-embedding", 6, RMS | {"attention.sliding_window": 11, "pooling_type": 1, "attention.key_length": 16,
                                     "attention.value_length": 16, "rope.freq_base": 700.0},
        LLAMA | HEAD_NORMS | POST_NORMS,
    ),
    "gemma-embedding with dense layers": Variant(
        "gemma-embedding", 6, RMS | {"attention.sliding_window": 20, "pooling_type": 1, "attention.key_length": 16,
                                     "attention.value_length": 16, "dense_2_feat_in": D, "dense_2_feat_out": 3 * D,
                                     "dense_3_feat_in": 3 * D, "dense_3_feat_out": D},
        LLAMA | HEAD_NORMS | POST_NORMS, {"dense_2.weight": (3 * D, D), "dense_3.weight": (D, 3 * D)},
    ),
    "gemma3 in both directions": Variant(
        "gemma3", 6, RMS | {"attention.causal": False, "pooling_type": 1, "attention.sliding_window": 11,
                            "attention.key_length": 16, "attention.value_length": 16},
        LLAMA | HEAD_NORMS | POST_NORMS,
    ),
    "qwen2 in both directions": Variant(
        "qwen2", 2, RMS | {"attention.causal": False, "pooling_type": 1, "rope.freq_base": 700.0}, LLAMA,
    ),
    "glm4, as GLM 4.6V Flash": Variant(
        "glm4", 2, RMS | {"rope.dimension_count": 8, "rope.freq_base": 90.0, "rope.dimension_sections": [2, 1, 1, 0]},
        NORMS | POST_NORMS | ATTENTION | {"ffn_up.weight": (2 * FF, D), "ffn_down.weight": (D, FF)},
    ),
    "hunyuan-dense with YaRN": Variant(
        "hunyuan-dense", 2, RMS | {"rope.scaling.type": "yarn", "rope.scaling.factor": 8.0,
                                   "rope.scaling.original_context_length": 32},
        LLAMA | HEAD_NORMS,
    ),
    "mistral3 with a YaRN factor that is not read": Variant(
        "mistral3", 2,
        RMS | {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64,
               "rope.scaling.yarn_beta_fast": 8.0, "rope.scaling.yarn_ext_factor": 0.5},
        LLAMA,
    ),
    "mistral3 without YaRN": Variant("mistral3", 2, RMS, LLAMA),
    **EXPERT_VARIANTS,
}  # fmt: skip


def write_variant(path: Path, name: str, seed: int = 0, n_ctx: int = 256) -> Path:
    """Writes a model of VARIANTS."""
    return write(path, VARIANTS[name], seed, n_ctx)
