"""Chat messages to the text that a model was trained on, by the Jinja template in its GGUF.

Templates are programs from strangers: they run in jinja2's immutable sandbox, see only the messages and the variables
given, and every way to fail ends in an error of vkllm. This module knows nothing of what a model answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vkllm.errors import InvalidParameter, ModelFileError

if TYPE_CHECKING:
    from vkllm.formats.gguf import Metadata
    from vkllm.text.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]

# For files without a template, as llama.cpp does.
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_PROBE = "probe_argument"  # see _prints_arguments_of


class ChatTemplate:
    """Renders chat messages. `is_fallback`: the file has no template, so ChatML is used, which may not fit."""

    def __init__(self, tokenizer: Tokenizer, source: str, tool_source: str | None = None, *, is_fallback: bool) -> None:
        """Compiles the template, and the one to use when tools are given; raises jinja2.TemplateSyntaxError."""
        environment = _environment()
        self._tokenizer = tokenizer
        self._template = environment.from_string(source)
        self._tool_template = self._template if tool_source is None else environment.from_string(tool_source)
        self._special = {
            name: "" if token_id is None else tokenizer.token_text(token_id)
            for name, token_id in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id))
        }
        self.is_fallback = is_fallback

    @classmethod
    def from_gguf(cls, metadata: Metadata, tokenizer: Tokenizer) -> ChatTemplate:
        """The template in tokenizer.chat_template, with tools the one in tokenizer.chat_template.tool_use if there is.

        A file without one gets ChatML. Raises ModelFileError for a template that is not valid Jinja.
        """
        source = metadata.string("tokenizer.chat_template", None)
        tool_source = metadata.string("tokenizer.chat_template.tool_use", None)
        try:
            return cls(tokenizer, source or _CHATML, tool_source, is_fallback=not source)
        except Exception as error:  # what cannot be compiled may also fail in Python's own compiler
            line = f" at line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise ModelFileError(
                f"{metadata.path}: the chat template is not valid Jinja{line} ({error}); get the model again."
            ) from None

    def render(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The text of a chat, up to where the model's answer begins if `add_generation_prompt`.

        Messages are mappings with `role`, `content`, perhaps `tool_calls`; other `variables` go to the template as
        they are. Arguments of tool calls may be mappings or JSON text: each template gets the form it prints rightly.
        Most templates write the BOS token themselves: encode the text with `encode_chat`, or by `Tokenizer.encode`,
        which adds no second one. Raises InvalidParameter for messages that the template refuses or cannot render,
        ModelFileError for a template that breaks out of the sandbox's rules.
        """
        template = self._tool_template if tools else self._template
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping):
                raise InvalidParameter(
                    f"Message {i} is a {type(message).__name__}; pass a mapping with role and content."
                )
        if any(message.get("tool_calls") for message in messages):
            messages = self._arguments_as_printed(template, messages)
        variables |= {"tools": tools or None, "add_generation_prompt": add_generation_prompt}
        return self._render(template, messages, **variables)

    def encode_chat(self, messages: Messages, **variables: Any) -> list[int]:
        """Token ids of a rendered chat: begins with BOS once if the model wants it, and never ends with an added EOS.

        Parameters and errors as for `render`.
        """
        ids = self._tokenizer.encode(self.render(messages, **variables), add_special=False)
        bos_id = self._tokenizer.bos_id
        if self._tokenizer.adds_bos and bos_id is not None and ids[:1] != [bos_id]:
            ids.insert(0, bos_id)
        return ids

    def _render(self, template: jinja2.Template, messages: Messages, **variables: Any) -> str:
        try:
            return template.render({"documents": None, **self._special, "messages": list(messages), **variables})
        except InvalidParameter:  # the template's own raise_exception
            raise
        except (SecurityError, OverflowError, RecursionError, MemoryError) as error:
            raise ModelFileError(
                f"The model's chat template does what no template may ({error}); do not trust this file."
            ) from None
        except Exception as error:  # any Python error can come out of a template's expressions
            raise InvalidParameter(
                f"The model's chat template cannot render these messages ({type(error).__name__}: {error}); "
                "check their roles and contents."
            ) from None

    def _prints_arguments_of(self, template: jinja2.Template, arguments: Mapping[str, str] | str) -> bool:
        """Whether a tool call with these arguments, {_PROBE: ...} or its JSON text, comes out as JSON or as XML.

        A mapping that is printed as it is comes out as Python, with single quotes; JSON text that is converted once
        more comes out with backslashes.
        """
        call = {"id": "123456789", "type": "function", "function": {"name": "f", "arguments": arguments}}
        user = {"role": "user", "content": "x"}
        messages: Messages = [user, {"role": "assistant", "content": "", "tool_calls": [call]}]
        try:
            text = self._render(template, messages, tools=None, add_generation_prompt=False)
        except (InvalidParameter, ModelFileError):
            return False
        return f'"{_PROBE}"' in text or (_PROBE in text and f"'{_PROBE}'" not in text and f'\\"{_PROBE}' not in text)

    def _arguments_as_printed(self, template: jinja2.Template, messages: Messages) -> list[Mapping[str, Any]]:
        """The messages, arguments of tool calls as mappings or as JSON text: as the template prints them rightly."""
        arguments = {_PROBE: "x"}
        if self._prints_arguments_of(template, arguments):
            convert = _as_mapping
        elif self._prints_arguments_of(template, json.dumps(arguments)):
            convert = _as_json
        else:
            return list(messages)
        return [
            {**message, "tool_calls": [_with_arguments(call, convert) for call in message["tool_calls"]]}
            if message.get("tool_calls")
            else message
            for message in messages
        ]


def _with_arguments(call: Any, convert: Callable[[Any], Any]) -> Any:
    """A tool call with its arguments converted; as it is where it does not have the usual shape."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or "arguments" not in function:
        return call
    return {**call, "function": {**function, "arguments": convert(function["arguments"])}}


def _as_mapping(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        parsed = json.loads(arguments)
    except ValueError:
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def _as_json(arguments: Any) -> Any:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


class _GenerationTag(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: marks the model's words for training; here only its content counts."""

    tags = {"generation"}  # noqa: RUF012, as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """What templates are written for: transformers' settings, filters and functions."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationTag]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models have seen it; jinja2's own filter would write < and & as escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise InvalidParameter(f"The model's chat template refuses these messages: {message}")


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
