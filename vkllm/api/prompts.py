"""Prompts to requests: text, token ids or a conversation with its options become what the engine runs.

It knows tokens, templates, the context's size and options; it knows no engine, and nothing of answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set, Sized
from dataclasses import replace
from operator import index
from typing import Any

from vkllm.api.answer import AnswerText, OnToken, SamplingOptions
from vkllm.api.answer_form import grammar_of
from vkllm.engine.params import SamplingParams
from vkllm.engine.requests import Request
from vkllm.errors import ContextOverflow, InvalidParameter, UnsupportedModel, counted
from vkllm.model.pooling import PoolingOfFile
from vkllm.parameters import whole_number
from vkllm.text.answers.forced import ForcedCall, schema_of_call
from vkllm.text.answers.parser import AnswerParser
from vkllm.text.answers.tool_choice import FREE, ToolChoice
from vkllm.text.answers.tools import Tools
from vkllm.text.chat import ChatTemplate
from vkllm.text.long_chat import latest_messages, n_tokens_of_system, shortened_chat
from vkllm.text.messages import plain_messages, plain_tools
from vkllm.text.tokenizer import Tokenizer

Message = Mapping[str, Any]

_PROMPT_END = 32  # tokens, among which a template may open the reasoning


def as_batch(prompt: Any, on_token: OnToken | None = None) -> tuple[list[str | Sequence[int]], bool]:
    """The prompts, and whether they were given as a batch; a list of integers is one prompt of token ids.

    Raises InvalidParameter for what is neither text, nor ids, nor a batch of them, and for a batch with on_token, which
    could not tell the answers apart.
    """
    if isinstance(prompt, str):
        return [prompt], False
    if isinstance(prompt, bytes | bytearray | Mapping | Set) or not isinstance(prompt, Iterable):
        raise InvalidParameter(f"{_shown(prompt)} is no prompt; pass text or a list of token ids")
    prompts = list(prompt)
    if prompts and not isinstance(prompts[0], Iterable):
        return [prompts], False
    if on_token is not None:
        raise InvalidParameter("on_token is for one prompt; for several use `stream` on each of them")
    return prompts, True


def _shown(value: object) -> str:
    """A value in a message: a short one as it is, a long one by its type."""
    return text if len(text := repr(value)) <= 60 else f"a {type(value).__name__}"


class Prompts:
    """Makes the requests of one loaded model. Safe to use from several threads.

    defaults: the options of requests that name none. request_ids: numbers no two open requests share. model: its name.
    pooling: how it makes embeddings, of d_embedding numbers; `rank` and None are not supported.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        defaults: SamplingParams,
        request_ids: Iterator[int],
        *,
        model: str,
        pooling: PoolingOfFile,
        n_ctx: int,
        n_ctx_train: int,
        d_embedding: int,
    ) -> None:
        self.model = model
        self.n_ctx = n_ctx
        self.d_embedding = d_embedding
        self.tokenizer = tokenizer
        self.defaults = defaults
        self._template = template
        self._request_ids = request_ids
        self._pooling = pooling
        self._n_ctx_train = n_ctx_train
        self._longest = max(64, *map(len, tokenizer.answer_bytes()))  # a control token has no text

    def next_id(self) -> int:
        """A number that no other request has."""
        return next(self._request_ids)

    def of_text(
        self, prompt: str | Sequence[int], params: SamplingParams | None, options: SamplingOptions
    ) -> AnswerText:
        """The request to continue a prompt, in an answer that is still empty. Errors as in `LLM.generate`."""
        unit = "character" if isinstance(prompt, str) else "token"
        self._check_length(len(prompt) if isinstance(prompt, Sized) else 0, unit)
        token_ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else self.checked_tokens(prompt)
        n_keep = int(token_ids[:1] == [self.tokenizer.bos_id])
        origin = checked_origin(options.get("origin"))
        return self._answer(token_ids, self._params(params, options), n_keep, origin, continues_text=True)

    def of_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None,
        options: SamplingOptions,
        tools: Sequence[Message] | None = None,
        variables: Mapping[str, Any] | None = None,
        choice: ToolChoice = FREE,
    ) -> AnswerText:
        """The request to answer a conversation, in an answer that is still empty. Errors as in `LLM.chat`.

        variables: what the template is given besides, such as enable_thinking; continues_last is `encode_chat`'s.
        choice: whether and which tools are called.
        """
        params = self._params(params, options)
        messages = plain_messages(messages)
        if params.context_shift:
            messages = latest_messages(messages, self.n_ctx)
        else:
            self._check_length(sum(len(message["content"]) for message in messages), "character")
            self._check_length(len(messages), "message")  # each is a token at least
        if not messages:
            raise InvalidParameter(
                'messages is empty; give at least one message, such as {"role": "user", "content": "Hello"}'
            )
        tools, variables = plain_tools(tools), checked_variables(variables)
        callable_tools = choice.of(tools)
        if choice.is_forced:
            params = replace(params, json_schema=_schema_of_call(params, callable_tools))
            variables = {"enable_thinking": False, **variables}
        else:
            tools = callable_tools
        token_ids, n_keep = self._template.encode_chat(messages, tools=tools, **variables), 0
        if params.context_shift:
            n_keep = n_tokens_of_system(self._template, messages, token_ids, tools=tools, variables=variables)
            token_ids = shortened_chat(
                self._template, messages, token_ids, self.n_ctx, n_keep, tools=tools, variables=variables
            )
        origin = checked_origin(options.get("origin"))
        if choice.is_forced:
            end = self._template.answers.before_call(self._prompt_end(token_ids))
            token_ids += self.tokenizer.encode(end, add_special=False) if end else []
        continues_text = bool(variables.get("continues_last"))
        return self._answer(
            token_ids, params, n_keep, origin, continues_text=continues_text, tools=Tools(tools), choice=choice
        )

    def of_scores(self, text: str | Sequence[int], first: int, origin: str) -> Request:
        """The request for the log-probabilities of a text from token `first` on. Errors as in `LLM.score`."""
        prompt = tuple(self.tokenizer.encode(text) if isinstance(text, str) else self.checked_tokens(text))
        start = whole_number("first", first, 1)
        if len(prompt) < 2:
            raise InvalidParameter(
                f"the text has {counted(len(prompt), 'token')} and is too short for a score: a token is scored after "
                "those before it, so give at least two"
            )
        if start >= len(prompt):
            raise InvalidParameter(
                f"first is {start}, but the text has {len(prompt)} tokens, the last of them {len(prompt) - 1}; give a "
                "smaller one"
            )
        if len(prompt) > self.n_ctx:
            raise ContextOverflow(
                f"the text has {counted(len(prompt), 'token')} and the context holds {self.n_ctx}; "
                "score it in parts or load the model with a larger context",
                n_prompt=len(prompt),
                n_ctx=self.n_ctx,
            )
        return Request(
            self.next_id(), prompt, SamplingParams(), frozenset(), score_from=start, origin=checked_origin(origin)
        )

    def of_embeddings(self, texts: Sequence[str | Sequence[int]], origin: str = "") -> list[Request]:
        """The requests for the embeddings of texts, or of token ids. Errors as in `LLM.embed`."""
        if self._pooling is None or self._pooling == "rank":
            kind = "embeddings of an unknown kind" if self._pooling is None else "ranks of texts, as a reranker,"
            raise UnsupportedModel(
                f"{self.model}: the model's file asks for {kind} which is not supported; supported: embeddings "
                "that are the mean of all tokens, the first token or the last token; take an embedding model"
            )
        requests = []
        for place, text in enumerate(texts):
            what = "the text" if len(texts) == 1 else f"text {place} of {len(texts)}"
            if isinstance(text, str):
                self._check_length(len(text), "character")
            token_ids = self.tokenizer.encode(text) if isinstance(text, str) else self.checked_tokens(text)
            if len(text) == 0 or not token_ids:
                raise InvalidParameter(f"{what} is empty and has no embedding; give at least one token of it")
            if len(token_ids) > self.n_ctx:
                larger = f" or load the model with a larger context (the model's limit is {self._n_ctx_train})"
                raise ContextOverflow(
                    f"{what} has {counted(len(token_ids), 'token')} and the context holds {self.n_ctx}, so it is too "
                    f"large; cut it into parts{larger if self.n_ctx < self._n_ctx_train else ''}",
                    n_prompt=len(token_ids),
                    n_ctx=self.n_ctx,
                )
            requests.append(
                Request(
                    self.next_id(),
                    tuple(token_ids),
                    SamplingParams(),
                    frozenset(),
                    pooling=self._pooling,
                    origin=checked_origin(origin),
                )
            )
        return requests

    def count_tokens(
        self,
        prompt: str | Sequence[Message],
        tools: Sequence[Message] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> int:
        """How many tokens a text or a conversation has as a prompt. Errors as in `of_text` and `of_chat`."""
        if isinstance(prompt, str):
            return len(self.tokenizer.encode(prompt))
        return len(self._template.encode_chat(prompt, tools=tools, **checked_variables(variables)))

    def chat_text(
        self,
        messages: Any,
        tools: Any = None,
        variables: Mapping[str, Any] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """The text that a conversation becomes. Errors as in `of_chat`."""
        given = checked_variables(variables)
        return self._template.render(messages, tools=tools, add_generation_prompt=add_generation_prompt, **given)

    def checked_tokens(self, token_ids: Sequence[int], *, of: str = "") -> list[int]:
        """The ids as plain integers. Raises InvalidParameter for what is none, or not in the vocabulary.

        of: the name of the parameter that they are given in, for the message.
        """
        if isinstance(token_ids, str | bytes):
            raise InvalidParameter(f"{_shown(token_ids)} is not a list of token ids; `tokenize` makes one of a text")
        if not isinstance(token_ids, Iterable):
            raise InvalidParameter(f"{token_ids!r} is no prompt; pass text or a list of token ids")
        n_vocab = self.tokenizer.n_vocab
        checked = []
        for token_id in token_ids:
            try:
                if isinstance(token_id, bool):
                    raise TypeError
                checked.append(index(token_id))
            except TypeError:
                raise InvalidParameter(f"{token_id!r} is not a token id; pass text or a list of integers") from None
            if not 0 <= token_id < n_vocab:
                raise InvalidParameter(
                    f"token id {token_id}{of and f' in {of}'} is not in the vocabulary of {counted(n_vocab, 'token')}"
                )
        return checked

    def _answer(
        self,
        token_ids: Sequence[int],
        params: SamplingParams,
        n_keep: int,
        origin: str,
        *,
        continues_text: bool,
        tools: Tools | None = None,
        choice: ToolChoice = FREE,
    ) -> AnswerText:
        """tools: given for an answer in a chat, which is taken apart."""
        n_prompt = len(token_ids)
        if n_prompt == 0:
            raise InvalidParameter("the prompt is empty; give at least one token of it")
        room = self.n_ctx - n_prompt
        if room < 1:
            raise ContextOverflow(
                f"the prompt has {counted(n_prompt, 'token')}, but the context holds {self.n_ctx}, one of them for the "
                "answer; shorten the prompt or ask for a larger context (the model's limit is "
                f"{self._n_ctx_train})",
                n_prompt=n_prompt,
                n_ctx=self.n_ctx,
            )
        if not params.context_shift:
            params = replace(params, max_tokens=room if params.max_tokens is None else min(params.max_tokens, room))
        stop_token_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop_token_ids |= self.tokenizer.stop_ids
        grammar = grammar_of(params, self.tokenizer)
        request = Request(
            self.next_id(), tuple(token_ids), params, stop_token_ids, n_keep=n_keep, grammar=grammar, origin=origin
        )
        # a grammar is about all bytes of an answer, a space at its beginning too
        detokenizer = self.tokenizer.detokenizer(continues=continues_text or grammar is not None)
        parser: AnswerParser | ForcedCall | None = ForcedCall() if choice.is_forced else None
        if tools is not None and grammar is None:
            form = self._template.answers
            detokenizer.shown = {self.tokenizer.whole_token(mark) for mark in form.marks}
            is_thinking = form.begins_in_reasoning(self._prompt_end(token_ids))
            parser = AnswerParser(form, tools, is_thinking=is_thinking)
        return AnswerText(request, detokenizer, self.tokenizer.token_text, parser, most_calls=choice.most)

    def _check_length(self, n: int, unit: str) -> None:
        """Raises ContextOverflow for so many characters, tokens or messages that they cannot fit, before work on
        them."""
        if n > (most := self.n_ctx * (self._longest if unit == "character" else 1)):
            raise ContextOverflow(
                f"the prompt has {counted(n, unit)}, but a context of {self.n_ctx} tokens holds at most {most}; "
                f"shorten the prompt or ask for a larger context (the model's limit is {self._n_ctx_train})",
                n_prompt=-(-n // (most // self.n_ctx)),
                n_ctx=self.n_ctx,
            )

    def _prompt_end(self, token_ids: Sequence[int]) -> str:
        return "".join(map(self.tokenizer.token_text, token_ids[-_PROMPT_END:]))

    def _params(self, params: SamplingParams | None, options: SamplingOptions) -> SamplingParams:
        made = requested(params or self.defaults, options)
        if made.seed is None:
            made = replace(made, seed=self.defaults.seed)
        self.checked_tokens(made.stop_token_ids, of="stop_token_ids")
        self.checked_tokens(list(made.biases), of="logit_bias")
        return made


def _schema_of_call(params: SamplingParams, tools: Sequence[Message]) -> str:
    """The schema of an answer that is a call. Raises InvalidParameter where the answer has another form already."""
    if any(form is not None for form in (params.json_schema, params.regex, params.grammar)):
        raise InvalidParameter("tool_choice asks for a call of a tool, which has no other form; leave one of them out")
    return json.dumps(schema_of_call(tools))


_GIVEN_BY_VKLLM = ("messages", "tools", "add_generation_prompt", "bos_token", "eos_token")
"""Variables of templates that no caller may give."""


def checked_variables(variables: Mapping[str, Any] | None) -> dict[str, Any]:
    """Raises InvalidParameter for variables of templates that are not the caller's to give."""
    if not isinstance(variables, Mapping | None):
        raise InvalidParameter(f"the template's variables must be a mapping of names to values, not {variables!r}")
    for name in variables or {}:
        if not isinstance(name, str) or name in _GIVEN_BY_VKLLM:
            raise InvalidParameter(f"{name!r} is no variable of a chat template that can be given; leave it out")
    return dict(variables or {})


def requested(params: SamplingParams, options: SamplingOptions) -> SamplingParams:
    """The parameters with the options that a call names; None keeps a parameter that is a number. Raises
    InvalidParameter."""
    if not isinstance(params, SamplingParams):
        raise InvalidParameter(f"params must be SamplingParams, not a {type(params).__name__}")
    changes: dict[str, Any] = {
        name: value
        for name, value in options.items()
        if name != "origin" and (value is not None or name in _MAY_BE_NONE)
    }
    if "json_schema" in changes:
        changes["json_schema"] = schema_text(changes["json_schema"])
    return replace(params, **changes)


_MAY_BE_NONE = {
    "max_tokens",
    "seed",
    "stop",
    "stop_token_ids",
    "logprobs",
    "json_schema",
    "regex",
    "grammar",
    "logit_bias",
}
"""None takes these back: no limit, no seed and so on."""


def check_options(params: SamplingParams | None, options: SamplingOptions) -> None:
    """Finds what is wrong with options whatever the model, grammars included. Raises InvalidParameter."""
    made = requested(params or SamplingParams(), options)
    grammar_of(made)
    checked_origin(options.get("origin"))


def schema_text(schema: Any) -> str | None:
    """A JSON schema, or a class of pydantic, as text, which it may be already. Raises InvalidParameter for what cannot
    be written as JSON."""
    if schema is None or isinstance(schema, str):
        return schema
    if hasattr(schema, "model_json_schema"):
        schema = schema.model_json_schema()
    try:
        return json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidParameter(f"json_schema cannot be written as JSON: {error}") from None


def checked_origin(origin: Any) -> str:
    """Raises InvalidParameter unless it is text. None is the default, an empty one."""
    if not isinstance(origin, str | None):
        raise InvalidParameter(f"origin must be text, not {origin!r}")
    return origin or ""
