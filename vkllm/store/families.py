"""Families of models that people ask for by the names that ollama and Hugging Face give them. Data only.

Errors use it to say what an unknown name refers to. When vkllm learns an architecture, its families move to those that
it runs.
"""

from __future__ import annotations

FAMILIES: dict[str, tuple[str, bool]] = {
    # Pictures and sound, and families inside others' names, before the families that they would be mistaken for.
    r"(llama-?3\.2-vision|llava|bakllava|moondream|minicpm-?v|qwen\d?(\.\d)?-?vl|granite3\.2-vision|pixtral)": (
        "models that see pictures",
        False,
    ),
    r"(nomic|mxbai|all-minilm|bge|snowflake-arctic|embeddinggemma|paraphrase|granite-embedding|e5|gte|jina)": (
        "embedding models (BERT and others)",
        False,
    ),
    r"(mixtral|dolphin-?mixtral|dbrx|llama-?4|meta-llama-4)": ("mixtures of experts (Mixtral, Llama 4)", False),
    r"(qwen|qwq|qvq|deepseek-r1-distill-qwen)": ("Qwen", False),
    r"deepseek-?(v2|v3|coder-?v2|v4)": ("DeepSeek 2 to 4", False),
    r"(deepcoder|deepscaler|openthinker|marco-o1|r1-1776)": ("Qwen (a model made from it)", False),
    r"(gemma|codegemma|medgemma|translategemma|functiongemma|shieldgemma)": ("Gemma", False),
    r"phi": ("Phi", False),
    r"gpt-?oss": ("gpt-oss", False),
    r"(ministral|devstral-small-?2|mistral-?(small-?4|large-?3))": ("Ministral 3 and Mistral Small 4", False),
    r"(command|aya|c4ai)": ("Command (Cohere)", False),
    r"granite": ("Granite", False),
    r"(glm|chatglm|codegeex)": ("GLM", False),
    r"olmo": ("OLMo", False),
    r"lfm": ("LFM", False),
    r"nemotron": ("Nemotron", False),
    r"(starcoder|stable-?lm|stable-?code|stable-beluga)": ("StarCoder and StableLM", False),
    r"(exaone|smollm3|hunyuan|seed-?oss|ernie|minimax|kimi|internlm|cogito|laguna|ornith|mamba|rwkv|falcon(?!3))": (
        "models of other architectures",
        False,
    ),
    # Families of the architecture "llama".
    r"(meta-)?llama": ("Llama", True),
    r"(open)?mistral|mathstral|codestral|magistral|devstral": ("Mistral", True),
    r"(smollm|tinyllama|tinydolphin|vicuna|zephyr|solar|yi|codellama|wizard|orca|openchat|starling|neural-chat)": (
        "Llama (models made from it)",
        True,
    ),
    r"(hermes|nous|openhermes|dolphin|falcon3|deepseek|samantha|xwin|everythinglm|reflection|athene|tulu)": (
        "Llama (models made from it)",
        True,
    ),
}
"""The beginning of a name, as a pattern -> what people call the family, and whether vkllm runs it."""
