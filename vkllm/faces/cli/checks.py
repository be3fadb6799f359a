"""What can be known before a model is loaded, which may take minutes: whether the form asked for is one, whether the
prompt has room.

It reads files and starts no engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vkllm.api.planning import ModelToPlan
from vkllm.api.prompts import Prompts
from vkllm.engine.params import SamplingParams
from vkllm.faces.sampling import FORMS
from vkllm.store import FoundModel

_TEMPLATE_BYTES = 512
"""More than most chat templates add to a message."""


def check_form(sampling: dict[str, Any]) -> None:
    """Raises InvalidParameter if the schema, expression or grammar of an answer cannot be used."""
    forms = [sampling.get(form) for form in ("json_schema", "regex", "grammar")]
    if forms == [None] * 3:
        return
    from vkllm.text.grammar import answer_grammar  # with llguidance, which takes 0.1 s to import

    answer_grammar(*forms)


def check_room(
    model: FoundModel, n_ctx: int | None, prompt: str, system: str | None, sampling: dict[str, Any], *, is_raw: bool
) -> FoundModel:
    """Raises ContextOverflow if a prompt is too long for the context; returns the model with what was read of it.

    A token has a byte or more, so a short prompt needs no tokenizer. n_ctx: as in LLM.
    """
    if model.path is None:
        return model
    found = ModelToPlan.open(model.path, n_ctx)
    model = replace(model, file=found.file)
    most = found.n_ctx or found.spec.n_ctx_train
    if len(prompt.encode(errors="replace")) + len((system or "").encode(errors="replace")) + _TEMPLATE_BYTES < most:
        return model
    tokenizer, template = found.read_text()
    prompts = Prompts(
        tokenizer,
        template,
        SamplingParams(),
        itertools.count(1),
        model=model.name,
        pooling=None,
        n_ctx=most,
        n_ctx_train=found.spec.n_ctx_train,
        d_embedding=found.spec.d_model,
    )
    how: Any = {key: value for key, value in sampling.items() if key not in FORMS}
    if is_raw or template.is_fallback:
        prompts.of_text(prompt, None, how)
    else:
        prompts.of_chat(messages_of(prompt, system), None, how)
    return model


def messages_of(prompt: str, system: str | None) -> Sequence[dict[str, str]]:
    """A conversation of one question, with the system message before it if there is one."""
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": prompt}]
