"""Families of models that people ask for by the names that ollama and Hugging Face give them. Data only.

Errors use it to say what an unknown name refers to. Whether a family runs is not said here, but follows from its
architecture.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class NamedFamily:
    """title: what people call it. architecture: of its files, as `general.architecture` says."""

    title: str
    architecture: str


def family_of(name: str) -> NamedFamily | None:
    """The family that a name belongs to, such as `gemma4:12b` or `Qwen3-30B-A3B`; None for other names."""
    plain = re.sub("[:_ ]", "-", name.lower().rpartition("/")[2])
    return next((family for pattern, family in _FAMILIES.items() if re.match(pattern, plain)), None)


_PICTURES = r"llama-?3\.2-vision|llava|bakllava|moondream|minicpm-?v|qwen-?\d?(\.\d)?-?vl|granite-?3\.2-vision|pixtral"
_BERT = r"nomic|mxbai|all-minilm|bge|snowflake-arctic|paraphrase|granite-embedding|e5|gte|jina"
_OF_LLAMA = (
    r"smollm|tinyllama|tinydolphin|vicuna|zephyr|solar|yi|codellama|wizard|orca|openchat|starling|neural-chat|hermes|"
    r"nous|openhermes|dolphin|falcon-?3|deepseek|samantha|xwin|everythinglm|reflection|athene|tulu|cogito"
)
_OTHERS = (
    r"minimax|kimi|internlm|laguna|ornith|mamba|rwkv|falcon|bloom|jamba|apertus|arcee|afm|nanbeige|minicpm|dots|dbrx|"
    r"glm-?[5-9]"
)

_FAMILIES: dict[str, NamedFamily] = {
    # The special ones of a family stand before the family that they would be mistaken for.
    f"({_PICTURES})": NamedFamily("models that see pictures", "clip"),
    f"({_BERT})": NamedFamily("embedding models (BERT and others)", "bert"),
    r"(dolphin-?)?mixtral": NamedFamily("Mixtral", "llama"),
    r"(meta-)?llama-?4": NamedFamily("Llama 4", "llama4"),
    r"qwen-?3\.[5-9].*-a\d+b": NamedFamily("Qwen 3.5 to 3.8, mixtures of experts", "qwen35moe"),
    r"qwen-?3\.[5-9]": NamedFamily("Qwen 3.5 to 3.8", "qwen35"),
    r"qwen-?3-(coder-)?next": NamedFamily("Qwen 3 Next", "qwen3next"),
    r"qwen-?3(.*-a\d+b|-(30|235|480)b|-coder)": NamedFamily("Qwen 3, mixtures of experts", "qwen3moe"),
    r"(qwen-?3|deepseek-r1-0528-qwen3)": NamedFamily("Qwen 3", "qwen3"),
    r"qwen-?4": NamedFamily("Qwen 4", "qwen4"),
    r"qwen-?(1\.5|2)(-moe|-).*a\d+(\.\d+)?b": NamedFamily("Qwen 1.5 and 2, mixtures of experts", "qwen2moe"),
    r"(qwen|qwq|qvq|deepseek-r1-distill-qwen)": NamedFamily("Qwen 2 and 2.5", "qwen2"),
    r"(deepcoder|deepscaler|openthinker|marco-o1)": NamedFamily("Qwen 2.5 (a model made from it)", "qwen2"),
    r"deepseek-?v4": NamedFamily("DeepSeek 4", "deepseek4"),
    r"(deepseek-?(v2|v3|coder-?v2)|r1-1776|deepseek-r1-671b)": NamedFamily("DeepSeek 2 and 3", "deepseek2"),
    r"embedding-?gemma": NamedFamily("EmbeddingGemma", "gemma-embedding"),
    r"gemma-?4": NamedFamily("Gemma 4", "gemma4"),
    r"gemma-?3n": NamedFamily("Gemma 3n", "gemma3n"),
    r"(gemma-?3|medgemma|translategemma|functiongemma)": NamedFamily("Gemma 3", "gemma3"),
    r"(gemma-?2|shieldgemma)": NamedFamily("Gemma 2", "gemma2"),
    r"(gemma|codegemma)": NamedFamily("Gemma 1", "gemma"),
    r"phi-?3\.5-moe": NamedFamily("Phi 3.5, mixtures of experts", "phimoe"),
    r"phi-?[34]": NamedFamily("Phi 3 and 4", "phi3"),
    r"phi": NamedFamily("Phi 1 and 2", "phi2"),
    r"gpt-?oss": NamedFamily("gpt-oss", "gpt-oss"),
    r"mistral-?(small-?4|large-?3)": NamedFamily("Mistral Small 4 and Large 3", "mistral4"),
    r"(ministral-?3(?!b)|devstral-?(small-)?2(?!\d))": NamedFamily("Ministral 3", "mistral3"),
    r"command-?(r7b|a)": NamedFamily("Command R7B and A", "cohere2"),
    r"(command|aya|c4ai)": NamedFamily("Command R and Aya", "command-r"),
    r"granite-?4.*(-h|-tiny|-small)": NamedFamily("Granite 4 with Mamba layers", "granitehybrid"),
    r"granite.*(-moe|-a\d+m)": NamedFamily("Granite, mixtures of experts", "granitemoe"),
    r"granite": NamedFamily("Granite", "granite"),
    r"glm-?4\.7-?flash": NamedFamily("GLM 4.7 Flash", "deepseek2"),
    r"glm-?4\.[5-7]": NamedFamily("GLM 4.5 to 4.7", "glm4moe"),
    r"glm-?(4|z1)": NamedFamily("GLM 4", "glm4"),
    r"(glm(?!-?[5-9])|chatglm|codegeex)": NamedFamily("ChatGLM", "chatglm"),
    r"olmo-?e": NamedFamily("OLMoE", "olmoe"),
    r"olmo-?[23]": NamedFamily("OLMo 2 and 3", "olmo2"),
    r"lfm.*-a\d+b": NamedFamily("LFM, mixtures of experts", "lfm2moe"),
    r"lfm": NamedFamily("LFM", "lfm2"),
    r"(nvidia-)?nemotron-3": NamedFamily("Nemotron 3", "nemotron_h_moe"),
    r"(nvidia-)?nemotron-(nano|h)": NamedFamily("Nemotron with Mamba layers", "nemotron_h"),
    r"(nemotron-mini|minitron|nemotron-?4)": NamedFamily("Nemotron", "nemotron"),
    r"starcoder-?2": NamedFamily("StarCoder 2", "starcoder2"),
    r"starcoder": NamedFamily("StarCoder 1", "starcoder"),
    r"(stable-?lm|stable-?code)": NamedFamily("StableLM", "stablelm"),
    r"exaone-?4": NamedFamily("EXAONE 4", "exaone4"),
    r"exaone": NamedFamily("EXAONE 3", "exaone"),
    r"smollm-?3": NamedFamily("SmolLM3", "smollm3"),
    r"minimax-?m2": NamedFamily("MiniMax M2", "minimax-m2"),
    r"hunyuan-(a13b|large)": NamedFamily("Hunyuan, mixtures of experts", "hunyuan-moe"),
    r"hunyuan": NamedFamily("Hunyuan", "hunyuan-dense"),
    r"seed-?oss": NamedFamily("Seed-OSS", "seed_oss"),
    r"ernie.*-a\d+b": NamedFamily("ERNIE 4.5, mixtures of experts", "ernie4_5-moe"),
    r"ernie": NamedFamily("ERNIE 4.5", "ernie4_5"),
    r"(meta-)?llama|nemotron": NamedFamily("Llama", "llama"),
    r"(open)?mistral|mathstral|codestral|magistral|devstral|ministral": NamedFamily("Mistral", "llama"),
    f"({_OF_LLAMA})": NamedFamily("Llama (models made from it)", "llama"),
    f"({_OTHERS})": NamedFamily("models of other architectures", "other"),
}
"""The beginning of a name, as a pattern -> the family."""
