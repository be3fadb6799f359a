"""llama.cpp's own chat templates, which its programs know by name (--chat-template llama3), as Jinja.

They show roles and texts only: no tools, no reasoning. llama.cpp writes the same without Jinja (src/llama-chat.cpp).
"""

from __future__ import annotations

_SYSTEM, _USER, _ASSISTANT = "system", "user", "assistant"
_PLAIN, _TRIMMED = "message.content", "message.content | trim"
_DEEPSEEK_END = "<｜end▁of▁sentence｜>"


def _quoted(text: str) -> str:
    """A text as a Jinja literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def _loop(body: str, answer: str, begin: str = "") -> str:
    """All messages, then what an answer begins with."""
    first = f"{{{{ {_quoted(begin)} }}}}" if begin else ""
    last = f"{{% if add_generation_prompt %}}{{{{ {_quoted(answer)} }}}}{{% endif %}}" if answer else ""
    return f"{first}{{% for message in messages %}}{body}{{% endfor %}}{last}"


def _by_role(shown: dict[str, tuple[str, str]], answer: str, *, text: str = _PLAIN, begin: str = "") -> str:
    """What comes before and after a text, by its role; "" is every other role. Messages of others are left out."""
    body, word = "", "if"
    for role, (before, after) in shown.items():
        test = f"{{% {word} message.role == '{role}' %}}" if role else "{% else %}"
        body += f"{test}{{{{ {_quoted(before)} ~ ({text}) ~ {_quoted(after)} }}}}"
        word = "elif"
    return _loop(body + "{% endif %}", answer, begin)


def _with_role(
    before: str, between: str, after: str, *, text: str = _PLAIN, begin: str = "", answer_end: str = ""
) -> str:
    """All roles alike, each with its own name."""
    end = answer_end or between
    body = f"{{{{ {_quoted(before)} ~ message.role ~ {_quoted(between)} ~ ({text}) ~ {_quoted(after)} }}}}"
    return _loop(body, f"{before}assistant{end}", begin)


def _mistral(leading: str, trailing: str, answer: str = _PLAIN) -> str:
    """The older forms of Mistral: [INST] opens a turn of the user, in which a system message stands too."""
    opening = _quoted(f"{leading}[INST]{trailing}")
    return (
        "{% set turn = namespace(is_open=false) %}{% for message in messages %}"
        f"{{% if not turn.is_open %}}{{{{ {opening} }}}}{{% set turn.is_open = true %}}{{% endif %}}"
        "{% if message.role == 'system' %}{{ message.content ~ '\\n\\n' }}"
        f"{{% elif message.role == 'user' %}}{{{{ message.content ~ {_quoted(leading + '[/INST]')} }}}}"
        f"{{% else %}}{{{{ {_quoted(trailing)} ~ ({answer}) ~ '</s>' }}}}{{% set turn.is_open = false %}}{{% endif %}}"
        "{% endfor %}"
    )


def _llama2(*, has_system: bool = True, again: str = "[INST] ", text: str = _PLAIN) -> str:
    before, after = ("<<SYS>>\n", "\n<</SYS>>\n\n") if has_system else ("", "\n")
    return (
        "{{ '[INST] ' }}{% set turn = namespace(is_open=true) %}{% for message in messages %}"
        f"{{% if not turn.is_open %}}{{{{ {_quoted(again)} }}}}{{% set turn.is_open = true %}}{{% endif %}}"
        f"{{% if message.role == 'system' %}}{{{{ {_quoted(before)} ~ ({text}) ~ {_quoted(after)} }}}}"
        f"{{% elif message.role == 'user' %}}{{{{ ({text}) ~ ' [/INST]' }}}}"
        f"{{% else %}}{{{{ ({text}) ~ '</s>' }}}}{{% set turn.is_open = false %}}{{% endif %}}{{% endfor %}}"
    )


def _mistral7(space: str) -> str:
    shown = {
        _SYSTEM: (f"[SYSTEM_PROMPT]{space}", "[/SYSTEM_PROMPT]"),
        _USER: (f"[INST]{space}", "[/INST]"),
        "": (space, "</s>"),
    }
    return _by_role(shown, "")


def _vicuna(before_system: str, after_system: str) -> str:
    shown = {_SYSTEM: (before_system, after_system), _USER: ("USER: ", "\n"), _ASSISTANT: ("ASSISTANT: ", "</s>\n")}
    return _by_role(shown, "ASSISTANT:")


def _deepseek(user: str, after_user: str, assistant: str) -> str:
    shown = {_SYSTEM: ("", "\n\n"), _USER: (user, after_user), _ASSISTANT: (assistant, _DEEPSEEK_END)}
    return _by_role(shown, assistant.rstrip())


_GEMMA = (
    "{% set first = namespace(system='') %}{% for message in messages %}{% if message.role == 'system' %}"
    "{% set first.system = first.system ~ (message.content | trim) %}{% else %}"
    "{{ '<start_of_turn>' ~ ('model' if message.role == 'assistant' else message.role) ~ '\\n' }}"
    "{% if first.system and message.role != 'assistant' %}"
    "{{ first.system ~ '\\n\\n' }}{% set first.system = '' %}{% endif %}"
    "{{ (message.content | trim) ~ '<end_of_turn>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
_COHERE_TURN, _COHERE_END = "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"
_EXAONE = {
    _SYSTEM: ("[|system|]", "[|endofturn|]\n"),
    _USER: ("[|user|]", "\n"),
    _ASSISTANT: ("[|assistant|]", "[|endofturn|]\n"),
}
_GRANITE = _with_role("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>\n")

NAMED_TEMPLATES = {
    "chatml": _with_role("<|im_start|>", "\n", "<|im_end|>\n"),
    "llama2": _llama2(has_system=False),
    "llama2-sys": _llama2(),
    "llama2-sys-bos": _llama2(again="<s>[INST] "),
    "llama2-sys-strip": _llama2(text=_TRIMMED),
    "llama3": _with_role("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>", text=_TRIMMED),
    "llama4": _with_role("<|header_start|>", "<|header_end|>\n\n", "<|eot|>", text=_TRIMMED),
    "mistral-v1": _mistral(" ", " "),
    "mistral-v3": _mistral("", " ", _TRIMMED),
    "mistral-v3-tekken": _mistral("", ""),
    "mistral-v7": _mistral7(" "),
    "mistral-v7-tekken": _mistral7(""),
    "phi3": _with_role("<|", "|>\n", "<|end|>\n"),
    "phi4": _with_role("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    "falcon3": _with_role("<|", "|>\n", "\n"),
    "zephyr": _with_role("<|", "|>\n", "<|endoftext|>\n"),
    "gemma": _GEMMA,
    "openchat": _by_role(
        {
            _SYSTEM: ("", "<|end_of_turn|>"),
            _USER: ("GPT4 Correct User: ", "<|end_of_turn|>"),
            _ASSISTANT: ("GPT4 Correct Assistant: ", "<|end_of_turn|>"),
        },
        "GPT4 Correct Assistant:",
    ),
    "vicuna": _vicuna("", "\n\n"),
    "vicuna-orca": _vicuna("SYSTEM: ", "\n"),
    "deepseek": _by_role(
        {
            _SYSTEM: ("", ""),
            _USER: ("### Instruction:\n", "\n"),
            _ASSISTANT: ("### Response:\n", "\n<|EOT|>\n"),
        },
        "### Response:\n",
    ),
    "deepseek2": _deepseek("User: ", "\n\n", "Assistant: "),
    "deepseek3": _deepseek("<｜User｜>", "", "<｜Assistant｜>"),
    "command-r": _by_role(
        {
            role: (f"{_COHERE_TURN}<|{name}_TOKEN|>", _COHERE_END)
            for role, name in ((_SYSTEM, "SYSTEM"), (_USER, "USER"), (_ASSISTANT, "CHATBOT"))
        },
        f"{_COHERE_TURN}<|CHATBOT_TOKEN|>",
        text=_TRIMMED,
    ),
    "chatglm3": _with_role("<|", "|>\n ", "", begin="[gMASK]sop", answer_end="|>"),
    "chatglm4": _with_role("<|", "|>\n", "", begin="[gMASK]<sop>"),
    "glmedge": _with_role("<|", "|>\n", "", answer_end="|>"),
    "exaone3": _by_role(_EXAONE, "[|assistant|]", text=_TRIMMED),
    "exaone4": _by_role(_EXAONE | {"tool": ("[|tool|]", "[|endofturn|]\n")}, "[|assistant|]", text=_TRIMMED),
    "granite": _GRANITE,
    "granite-4.0": _GRANITE,
    "granite-4.1": _GRANITE,
    "megrez": _with_role("<|role_start|>", "<|role_end|>", "<|turn_end|>"),
    "smolvlm": _by_role(
        {
            _SYSTEM: ("", "\n\n"),
            _USER: ("User: ", "<end_of_utterance>\n"),
            "": ("Assistant: ", "<end_of_utterance>\n"),
        },
        "Assistant:",
        begin="<|im_start|>",
    ),
    "gpt-oss": _loop(
        "{{ '<|start|>' ~ message.role ~ '<|message|>' ~ message.content ~ "
        "('<|return|>' if message.role == 'assistant' else '<|end|>') }}",
        "<|start|>assistant",
    ),
    "kimi-k2": _by_role(
        {
            role: (f"<|im_{kind}|>{role}<|im_middle|>", "<|im_end|>")
            for role, kind in ((_SYSTEM, "system"), (_USER, "user"), (_ASSISTANT, "assistant"), ("tool", "system"))
        },
        "<|im_assistant|>assistant<|im_middle|>",
    ),
}
"""Name -> Jinja. Those of llama.cpp that are not here are of models that vkllm does not run."""
