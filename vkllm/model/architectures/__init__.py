"""The architectures that vkllm runs, one file for each family, and how a model file becomes a specification."""

from __future__ import annotations

from collections.abc import Mapping

from vkllm.errors import UnsupportedModel
from vkllm.formats.gguf import Metadata, TensorInfo
from vkllm.model.architectures.cohere import cohere2, command_r
from vkllm.model.architectures.deepseek2 import deepseek2, mistral4
from vkllm.model.architectures.ernie4_5 import ernie4_5, ernie4_5_moe
from vkllm.model.architectures.exaone4 import exaone4
from vkllm.model.architectures.family import Family
from vkllm.model.architectures.gemma import gemma2, gemma3, gemma_embedding
from vkllm.model.architectures.gemma4 import gemma4
from vkllm.model.architectures.glm4 import glm4
from vkllm.model.architectures.glm4moe import glm4moe
from vkllm.model.architectures.gpt_oss import gpt_oss
from vkllm.model.architectures.granite import granite, granite_hybrid, granitemoe
from vkllm.model.architectures.header import Header
from vkllm.model.architectures.hunyuan import hunyuan_dense, hunyuan_moe
from vkllm.model.architectures.layer_norm import nemotron, stablelm, starcoder2
from vkllm.model.architectures.lfm2 import lfm2, lfm2moe
from vkllm.model.architectures.llama import llama
from vkllm.model.architectures.llama4 import llama4
from vkllm.model.architectures.minimax import minimax_m2
from vkllm.model.architectures.mistral3 import mistral3
from vkllm.model.architectures.nemotron_h import nemotron_h
from vkllm.model.architectures.olmo2 import olmo2
from vkllm.model.architectures.olmoe import olmoe
from vkllm.model.architectures.phi3 import phi3
from vkllm.model.architectures.qwen import qwen2, qwen2moe, qwen3, qwen3moe
from vkllm.model.architectures.qwen_next import qwen3next, qwen35, qwen35moe
from vkllm.model.architectures.seed_oss import seed_oss
from vkllm.model.architectures.smollm3 import smollm3
from vkllm.model.checks import check_numbers, check_tensors
from vkllm.model.keys import check_is_model, check_keys, shown
from vkllm.model.spec import ModelSpec

FAMILIES: dict[str, Family] = {
    "cohere2": Family("Command R7B, Command A", cohere2),
    "command-r": Family("Command R, Command R+, Aya", command_r),
    "deepseek2": Family("DeepSeek-V2-Lite, V2.5, V3, R1, GLM-4.7-Flash, Kimi K2", deepseek2),
    "ernie4_5": Family("ERNIE 4.5 0.3B", ernie4_5),
    "ernie4_5-moe": Family("ERNIE 4.5 with experts (21B-A3B, 300B-A47B)", ernie4_5_moe),
    "exaone4": Family("EXAONE 4", exaone4),
    "gemma2": Family("Gemma 2", gemma2),
    "gemma3": Family("Gemma 3 (its text side), MedGemma, FunctionGemma", gemma3),
    "gemma4": Family("Gemma 4 (its text side), with experts and E2B, E4B too", gemma4),
    "gemma-embedding": Family("EmbeddingGemma", gemma_embedding),
    "glm4": Family("GLM-4-0414, GLM-Z1, GLM-4.1V and 4.6V Flash (their text side)", glm4),
    "glm4moe": Family("GLM-4.5, GLM-4.5-Air, GLM-4.6, GLM-4.7; GLM-4.5V and 4.6V (their text side)", glm4moe),
    "gpt-oss": Family("gpt-oss (20B, 120B)", gpt_oss),
    "granite": Family("Granite 3 and 4 (dense)", granite),
    "granitehybrid": Family("Granite 4 H", granite_hybrid),
    "granitemoe": Family("Granite 3 with experts (1B-A400M, 3B-A800M)", granitemoe),
    "hunyuan-dense": Family("Hunyuan 0.5B to 7B", hunyuan_dense),
    "hunyuan-moe": Family("Hunyuan A13B", hunyuan_moe),
    "lfm2": Family("LFM2, LFM2.5 (dense)", lfm2),
    "lfm2moe": Family("LFM2 8B-A1B, 24B-A2B", lfm2moe),
    "llama": Family(
        "Llama 1 to 3.3, CodeLlama, Mistral, Mixtral, Nemo, Mistral Small, Devstral Small, SmolLM2, TinyLlama, Yi, "
        "Falcon 3, Hermes, DeepSeek-R1 (Llama distillations)",
        llama,
    ),
    "llama4": Family("Llama 4 Scout and Maverick (their text side)", llama4),
    "minimax-m2": Family("MiniMax M2", minimax_m2),
    "mistral3": Family("Ministral 3, Devstral Small 2", mistral3),
    "mistral4": Family("Mistral Small 4", mistral4),
    "nemotron": Family("Nemotron, Minitron (4B, 8B)", nemotron),
    "nemotron_h": Family("Nemotron-H, Nemotron Nano 2", nemotron_h),
    "nemotron_h_moe": Family("Nemotron 3 Nano", nemotron_h),
    "olmo2": Family("OLMo 2, OLMo 3", olmo2),
    "olmoe": Family("OLMoE", olmoe),
    "phi3": Family("Phi-3, Phi-3.5, Phi-4, Phi-4-mini", phi3),
    "qwen2": Family("Qwen2, Qwen2.5, Qwen2.5-Coder, QwQ, DeepSeek-R1 (Qwen distillations)", qwen2),
    "qwen2moe": Family("Qwen1.5 and Qwen2 with experts (A2.7B, 57B-A14B)", qwen2moe),
    "qwen3": Family("Qwen3 (dense), Qwen3-Embedding, DeepSeek-R1-0528-Qwen3", qwen3),
    "qwen35": Family("Qwen3.5, Qwen3.6, Qwen3.8 (dense)", qwen35),
    "qwen35moe": Family("Qwen3.5 and Qwen3.6 with experts (35B-A3B, 122B-A10B)", qwen35moe),
    "qwen3moe": Family("Qwen3 with experts (30B-A3B, 235B-A22B), Qwen3-Coder", qwen3moe),
    "qwen3next": Family("Qwen3-Next, Qwen3-Coder-Next", qwen3next),
    "seed_oss": Family("Seed-OSS", seed_oss),
    "smollm3": Family("SmolLM3", smollm3),
    "stablelm": Family("StableLM, StableLM 2, Stable Code", stablelm),
    "starcoder2": Family("StarCoder2", starcoder2),
}
"""By `general.architecture`."""


def model_spec(metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> ModelSpec:
    """Reads and checks the specification of a model file.

    Raises UnsupportedModel for an architecture, shape, format, key or tensor that vkllm cannot run, ModelFileError for
    metadata or tensors that are missing or contradict each other.
    """
    check_is_model(metadata)
    architecture = metadata.string("general.architecture")
    if architecture not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedModel(
            f"{metadata.path}: architecture {shown(architecture)} is not supported; supported: {known}"
        )
    if not tensors:
        raise UnsupportedModel(f"{metadata.path}: this file has no tensors, only a vocabulary; take the whole model.")
    header = Header(metadata, tensors)
    spec = FAMILIES[architecture].read(header)
    check_numbers(spec, metadata)
    check_keys(spec, metadata, header.keys)
    check_tensors(spec, metadata, tensors)
    return spec
