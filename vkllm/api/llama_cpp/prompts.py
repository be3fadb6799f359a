"""Prompts as llama.cpp's server takes them: text, token ids, both in one list, or several of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vkllm.errors import InvalidParameter
from vkllm.text.tokenizer import Tokenizer

Prompt = str | list[int | str]
"""Text, or token ids with texts among them."""


def prompts_of(value: Any) -> tuple[list[Prompt], bool]:
    """The prompts, and whether there may be several. Raises InvalidParameter."""
    if isinstance(value, list) and (not value or not any(_is_id(item) for item in value)):
        if not value:
            raise InvalidParameter("prompt is empty; give text, token ids, or a list of these")
        return [_one(item, f"prompt {number}") for number, item in enumerate(value)], True
    return [_one(value, "prompt")], False


def is_mixed(value: Any) -> bool:
    """Whether a prompt, or one of several, is neither text nor a list of token ids, as OpenAI's API has them."""
    if isinstance(value, list):
        kinds = {type(item) for item in value}
        return len(kinds) > 1 or dict in kinds or any(isinstance(item, list) and is_mixed(item) for item in value)
    return isinstance(value, Mapping)


def token_ids_of(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """The token ids of a prompt. A text at its beginning gets what the model wants there, one further on does not."""
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    ids: list[int] = []
    for number, part in enumerate(prompt):
        ids += [part] if isinstance(part, int) else tokenizer.encode(part, add_special=number == 0)
    return ids


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _one(value: Any, where: str) -> Prompt:
    match value:
        case str():
            return value
        case Mapping():
            if value.get("multimodal_data"):
                raise InvalidParameter(f"{where} has multimodal_data; vkllm reads text only, so leave it out")
            if isinstance(text := value.get("prompt_string"), str):
                return text
            if isinstance(parts := value.get("content"), list) and all(map(_is_text_part, parts)):
                return "".join(part["text"] for part in parts)
        case list() if value and all(_is_id(item) or isinstance(item, str) for item in value):
            return value
    raise InvalidParameter(f"{where} must be a text, a list of token ids and texts, or an object with prompt_string")


def infill_tokens(body: Mapping[str, Any], tokenizer: Tokenizer, n_ctx: int) -> list[int]:
    """The prompt for what comes between input_prefix, with prompt at its end, and input_suffix.

    Files of input_extra come before it. If all of it is too long, what is farthest from the gap is left out: files
    first. Raises InvalidParameter; the model must have the tokens for it (`can_fill`).
    """
    marks = tokenizer.code_marks
    texts = {}
    for name in ("input_prefix", "input_suffix", "prompt"):
        text = body.get(name, "" if name == "prompt" else None)
        if not isinstance(text, str):
            raise InvalidParameter(f"{name} must be a text" if name in body else f"{name} is required")
        texts[name] = text
    prefix, suffix, last = (
        tokenizer.encode(texts[name], add_special=False, parse_special=False)
        for name in ("input_prefix", "input_suffix", "prompt")
    )
    room = max(n_ctx - n_ctx // 4, 16)  # the rest is for what is filled in
    n_suffix = min(len(suffix), room // 4)
    prefix = (prefix + last)[-(room - n_suffix - 8) :]
    files = _files(body.get("input_extra") or [], tokenizer)
    n_files = max(room - len(prefix) - n_suffix - 8, 0)
    extra = files[-n_files:] if n_files else []
    begin = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    return [
        *begin,
        *extra,
        marks["fim_pre"],
        *prefix,
        marks["fim_suf"],
        *suffix[:n_suffix],
        marks["fim_mid"],
    ]


def can_fill(tokenizer: Tokenizer) -> bool:
    """Whether the model has the tokens that show it a gap."""
    return {"fim_pre", "fim_suf", "fim_mid"} <= tokenizer.code_marks.keys()


def _files(extra: Any, tokenizer: Tokenizer) -> list[int]:
    """Other files, each behind its name, as models of code are trained: with marks if they have such."""
    if not isinstance(extra, list):
        raise InvalidParameter("input_extra must be a list of objects with filename and text")
    repository, separator = tokenizer.code_marks.get("fim_rep"), tokenizer.code_marks.get("fim_sep")

    def encoded(text: str) -> list[int]:
        return tokenizer.encode(text, add_special=False, parse_special=False)

    ids: list[int] = []
    if extra and repository is not None:
        ids += [repository, *encoded("project\n")]
    for number, file in enumerate(extra):
        match file:
            case {"text": str(text)} if isinstance(name := file.get("filename", "file"), str):
                ids += encoded(f"\n\n--- {name} ---\n\n") if separator is None else [separator, *encoded(f"{name}\n")]
                ids += encoded(text)
            case _:
                raise InvalidParameter(f"file {number} of input_extra must have a text, and a filename that is text")
    return [*ids, separator, *encoded("filename\n")] if extra and separator is not None else ids


def pieces_of(ids: Sequence[int], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Token ids with what each adds to a text: text, or a list of bytes where these are no whole characters."""
    made = []
    for token_id in ids:
        data = tokenizer.token_bytes(token_id)
        try:
            piece: str | list[int] = data.decode()
        except UnicodeDecodeError:
            piece = list(data)
        made.append({"id": token_id, "piece": piece})
    return made
