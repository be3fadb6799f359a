"""Conversations that are too long for the context: what is dropped, and what stays.

Knows messages and the tokens that a template makes of them; nothing of the engine, which drops tokens of an answer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vkllm.errors import InvalidParameter
from vkllm.text.messages import SYSTEM_ROLES, Messages

if TYPE_CHECKING:
    from vkllm.text.chat import ChatTemplate


def latest_messages(messages: Messages, n_ctx: int) -> Messages:
    """The system's messages and the latest turns of a conversation of more messages than the context has tokens.

    What is dropped could not stay in any case, and rendering it takes time.
    """
    users = (i for i in range(len(messages) - n_ctx, len(messages)) if messages[i].get("role") == "user")
    if len(messages) <= n_ctx or (first := next(users, None)) is None:
        return messages
    return [m for i, m in enumerate(messages) if i >= first or m.get("role") in SYSTEM_ROLES]


def n_tokens_of_system(
    template: ChatTemplate,
    messages: Messages,
    prompt: Sequence[int],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> int:
    """How many tokens of a rendered conversation come before its first words that are not the system's.

    prompt: the tokens of the whole conversation. Some templates put the system message into the first user message,
    so this counts the tokens that two chats with different first words have in common.
    """
    system = [message for message in messages if message.get("role") in SYSTEM_ROLES]
    variables = {**(variables or {}), "continues_last": False}
    try:
        chats = [template.encode_chat([*system, _user(text)], tools=tools, **variables) for text in ("A", "1")]
    except InvalidParameter:  # a template that takes these messages in no other conversation
        return 1  # attention relies on the first token: Xiao et al. 2023, arXiv 2309.17453
    n_same = 0
    for token_id, *others in zip(prompt, *chats, strict=False):
        if others != [token_id] * len(chats):
            break
        n_same += 1
    return n_same


def shortened_chat(
    template: ChatTemplate,
    messages: Messages,
    prompt: Sequence[int],
    n_ctx: int,
    n_keep: int,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """The tokens of a conversation without its oldest turns, if all of it leaves no room for an answer.

    prompt: the tokens of the whole conversation, n_keep of them of the system messages, which stay. What is dropped is
    a multiple of half the room beside them: as a conversation grows, its first turn stays the same for long, and with
    it what the engine has cached. If even the last turn alone is too long, it is returned all the same.
    """
    excess = len(prompt) - (n_ctx - 1)
    spoken = [i for i, message in enumerate(messages) if message.get("role") not in SYSTEM_ROLES]
    starts = [i for i in spoken[1:] if messages[i].get("role") == "user"]
    if excess <= 0 or not starts:
        return list(prompt)
    portion = max((n_ctx - n_keep) // 2, 1)
    to_drop = -(-excess // portion) * portion

    def from_turn(start: int) -> list[int]:
        kept = [m for i, m in enumerate(messages) if i >= start or m.get("role") in SYSTEM_ROLES]
        return template.encode_chat(kept, tools=tools, **(variables or {}))

    turn = bisect_left(starts, to_drop, key=lambda start: len(prompt) - len(from_turn(start)))
    return from_turn(starts[min(turn, len(starts) - 1)])


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
