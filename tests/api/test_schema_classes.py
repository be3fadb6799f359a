"""A class of pydantic as the schema of an answer, in each place that takes a schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import Enum

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field, SecretStr

from vkllm import LLM
from vkllm.engine.process.handle import EngineProcess
from vkllm.engine.requests import Request

MakeLLM = Callable[..., LLM]


class Kind(Enum):
    CAT = "cat"
    DOG = "dog"


class Pet(BaseModel):
    name: str = Field(min_length=1, max_length=20)
    kind: Kind
    password: SecretStr | None = None
    weight: float = Field(ge=0, lt=100)


class Owner(BaseModel):
    id: int = Field(ge=0, le=2**63 - 1)
    pets: list[Pet] = Field(max_length=3)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests that reach an engine."""
    requests: list[Request] = []
    send = EngineProcess.send
    monkeypatch.setattr(
        EngineProcess, "send", lambda self, request, *rest: requests.append(request) or send(self, request, *rest)
    )
    return requests


def test_a_class_of_pydantic_is_its_schema(fake_llm: MakeLLM, sent: list[Request]) -> None:
    llm = fake_llm()
    llm.generate("Xab", json_schema=Owner, max_tokens=1)
    llm.chat([{"role": "user", "content": "hi"}], json_schema=Owner, max_tokens=1)
    wanted = Owner.model_json_schema()
    Draft202012Validator.check_schema(wanted)
    assert [json.loads(request.params.json_schema or "") for request in sent] == [wanted, wanted]
    assert all(request.grammar for request in sent)


def test_a_response_format_may_be_a_class_of_pydantic(fake_llm: MakeLLM, sent: list[Request]) -> None:
    messages = [{"role": "user", "content": "hi"}]
    whole = {"type": "json_schema", "json_schema": {"name": "owner", "schema": Owner}}
    for response_format in (Owner, whole):
        fake_llm().chat.completions.create(messages=messages, response_format=response_format, max_tokens=1)
    assert [json.loads(request.params.json_schema or "") for request in sent] == [Owner.model_json_schema()] * 2
