"""What can be known before a model is loaded, which may take minutes: whether its file is sound and fits, whether the
form asked for is one, whether the prompt has room.

It reads files and plans; it starts no engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vkllm.api.loading import read_text
from vkllm.api.planning import ModelToPlan
from vkllm.api.prompts import Prompts
from vkllm.engine.params import SamplingParams
from vkllm.errors import NoDevice
from vkllm.faces.sampling import FORMS
from vkllm.formats.gguf import ModelFile
from vkllm.gpu.device.limits import device_limits
from vkllm.gpu.device.probe import choose_device, devices
from vkllm.model.memory.plan import MemoryPlan, PlanOptions
from vkllm.store import find_model, local_model
from vkllm.text.grammar import answer_grammar

_TEMPLATE_BYTES = 512
"""More than most chat templates add to a message."""


def check_model(name: str, loading: dict[str, Any], open_plan: MemoryPlan) -> None:
    """Raises what loading a model would raise, as far as its file and a plan can tell. loading: arguments of LLM.

    open_plan: of the model that is open now; its memory will be free by then.
    """
    found = ModelToPlan.open(find_model(name), loading.get("n_ctx"))
    read_text(found.path, ModelFile.open(found.path).metadata, found.spec)
    options = PlanOptions(**{key: value for key, value in loading.items() if key not in ("n_ctx", "device")})
    try:
        info = choose_device(devices(), loading.get("device"))
    except NoDevice:
        return  # the engine has found one, and will say more
    limits = device_limits(info)
    local, *others = open_plan.tiers
    with_open = replace(
        limits,
        memory_bytes=limits.memory_bytes + local.used_bytes,
        spill_bytes=limits.spill_bytes + sum(tier.used_bytes for tier in others),
    )
    found.plan(with_open, options)


def check_form(sampling: dict[str, Any]) -> None:
    """Raises InvalidParameter if the schema, expression or grammar of an answer cannot be used."""
    answer_grammar(*(sampling.get(form) for form in ("json_schema", "regex", "grammar")))


def check_room(
    name: str, n_ctx: int | None, prompt: str, system: str | None, sampling: dict[str, Any], *, is_raw: bool
) -> None:
    """Raises ContextOverflow if a prompt is too long for the context.

    A token has a byte or more, so a short prompt needs no tokenizer. n_ctx: as in LLM.
    """
    path = local_model(name)
    if path is None:
        return
    found = ModelToPlan.open(path, n_ctx)
    most = found.n_ctx or found.spec.n_ctx_train
    if len(prompt.encode(errors="replace")) + len((system or "").encode(errors="replace")) + _TEMPLATE_BYTES < most:
        return
    tokenizer, template = read_text(path, ModelFile.open(path).metadata, found.spec)
    prompts = Prompts(
        tokenizer,
        template,
        SamplingParams(),
        itertools.count(1),
        model=name,
        pooling=None,
        n_ctx=most,
        n_ctx_train=found.spec.n_ctx_train,
        d_model=found.spec.d_model,
    )
    how: Any = {key: value for key, value in sampling.items() if key not in FORMS}
    if is_raw or template.is_fallback:
        prompts.of_text(prompt, None, how)
    else:
        prompts.of_chat(messages_of(prompt, system), None, how)


def messages_of(prompt: str, system: str | None) -> Sequence[dict[str, str]]:
    """A conversation of one question, with the system message before it if there is one."""
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": prompt}]
