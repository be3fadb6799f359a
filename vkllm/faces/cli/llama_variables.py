"""llama.cpp's environment variables for its server, LLAMA_ARG_*, where they mean the same here.

What is on the command line goes before them. It knows names and values; how a line is read is arguments.py's.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vkllm.errors import InvalidParameter
from vkllm.faces.cli.arguments import OrderedCommand, in_order, own_options

_VALUES = {
    "LLAMA_ARG_MODEL": "--model",
    "LLAMA_ARG_CTX_SIZE": "--ctx-size",
    "LLAMA_ARG_N_GPU_LAYERS": "--n-gpu-layers",
    "LLAMA_ARG_DEVICE": "--device",
    "LLAMA_ARG_SPLIT_MODE": "--split-mode",
    "LLAMA_ARG_TENSOR_SPLIT": "--tensor-split",
    "LLAMA_ARG_MAIN_GPU": "--main-gpu",
    "LLAMA_ARG_CACHE_TYPE_K": "--cache-type-k",
    "LLAMA_ARG_CACHE_TYPE_V": "--cache-type-v",
    "LLAMA_ARG_OVERRIDE_TENSOR": "--override-tensor",
    "LLAMA_ARG_N_CPU_MOE": "--n-cpu-moe",
    "LLAMA_ARG_N_PARALLEL": "--parallel",
    "LLAMA_ARG_HOST": "--host",
    "LLAMA_ARG_PORT": "--port",
    "LLAMA_ARG_ALIAS": "--alias",
    "LLAMA_ARG_TIMEOUT": "--timeout",
    "LLAMA_ARG_SSE_PING_INTERVAL": "--sse-ping-interval",
    "LLAMA_ARG_MODELS_DIR": "--models-dir",
    "LLAMA_ARG_MODELS_MAX": "--models-max",
    "LLAMA_ARG_TAGS": "--tags",
    "LLAMA_ARG_REASONING": "--reasoning",
    "LLAMA_ARG_CHAT_TEMPLATE_KWARGS": "--chat-template-kwargs",
    "LLAMA_ARG_CORS_ORIGINS": "--cors-origins",
    "LLAMA_ARG_CORS_METHODS": "--cors-methods",
    "LLAMA_ARG_CORS_HEADERS": "--cors-headers",
    "LLAMA_ARG_API_KEY_FILE": "--api-key-file",
    "LLAMA_ARG_SSL_KEY_FILE": "--ssl-key-file",
    "LLAMA_ARG_SSL_CERT_FILE": "--ssl-cert-file",
    "LLAMA_ARG_CHAT_TEMPLATE": "--chat-template",
    "LLAMA_ARG_POOLING": "--pooling",
    "LLAMA_ARG_CHAT_TEMPLATE_FILE": "--chat-template-file",
    "LLAMA_API_KEY": "--api-key",
}
_SWITCHES = {
    "LLAMA_ARG_EMBEDDINGS": ("--embeddings", None),
    "LLAMA_ARG_RERANKING": ("--reranking", None),
    "LLAMA_ARG_ENDPOINT_METRICS": ("--metrics", None),
    "LLAMA_ARG_ENDPOINT_SLOTS": ("--slots", "--no-slots"),
    "LLAMA_ARG_UI": ("--ui", "--no-ui"),
    "LLAMA_ARG_CORS_CREDENTIALS": ("--cors-credentials", "--no-cors-credentials"),
    "LLAMA_ARG_PREFILL_ASSISTANT": ("--prefill-assistant", "--no-prefill-assistant"),
    "LLAMA_ARG_OFFLINE": ("--offline", None),
    "LLAMA_ARG_CPU_MOE": ("--cpu-moe", None),
    "LLAMA_ARG_MODELS_AUTOLOAD": ("--models-autoload", "--no-models-autoload"),
}
_HUB = {"LLAMA_ARG_HF_REPO": "-hf", "LLAMA_ARG_HF_FILE": "-hff", "LLAMA_ARG_MODEL_URL": "--model"}
_ON, _OFF = {"1", "true", "on", "enabled", "yes"}, {"0", "false", "off", "disabled", "no"}


class VariableCommand(OrderedCommand):
    """A command that takes what the command line leaves out from llama.cpp's variables."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts the options of the environment before the others. Raises InvalidParameter."""
        if not ctx.resilient_parsing and "--help" not in args and "-h" not in args:
            own = own_options(self, ctx)
            line = in_order(args, own, ctx.command_path).line
            given = {own[word.partition("=")[0]].parameter for word in line if word.partition("=")[0] in own}
            if "--" in line:  # the model by its place
                given.add("model_option")
            missing = {name for name, option in own.items() if option.parameter not in given}
            args = [*arguments_of(os.environ, missing), *args]
        return super().parse_args(ctx, args)


def arguments_of(variables: Mapping[str, str], options: Collection[str]) -> Sequence[str]:
    """The arguments that the variables stand for, of those options that are asked for. Raises InvalidParameter."""
    arguments: list[str] = []
    for variable, option in _VALUES.items():
        if (value := variables.get(variable)) and option in options:
            arguments += [option, value]
    for variable, (option, opposite) in _SWITCHES.items():
        value = variables.get(variable, "").strip().lower()
        if not value or option not in options:
            continue
        if value in _ON:
            arguments.append(option)
        elif value not in _OFF:
            raise InvalidParameter(f"the environment variable {variable} must be on or off, not {value!r}")
        elif opposite is not None:
            arguments.append(opposite)
    if "--model" in options and "--model" not in arguments:
        for variable, option in _HUB.items():
            if value := variables.get(variable):
                arguments += [option, value]
    return arguments
