"""Which form a model's answers have: the table of markers by which a chat template shows it.

A marker counts if it stands in the template or is a token of its own in the vocabulary: some templates write calls of
tools that they do not show. It knows no reader's inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vkllm.text.answers import harmony
from vkllm.text.answers.harmony import HarmonyAnswer
from vkllm.text.answers.json_calls import bare_json, calls_by_name, command_r_calls, json_calls
from vkllm.text.answers.marked_calls import deepseek_calls, gemma_call, kimi_calls, mistral_calls
from vkllm.text.answers.python_calls import bare_python, python_calls
from vkllm.text.answers.tag_calls import function_tags, invoke_tags, tool_call_tag
from vkllm.text.answers.tagged import Calls, TaggedAnswer, Tags
from vkllm.text.answers.tools import Tools
from vkllm.text.answers.values import FUNCTION_GEMMA, GEMMA
from vkllm.text.answers.written import WRITERS, Functions

TAGS = (
    Tags("[THINK]", "[/THINK]", is_anywhere=True),  # Magistral, Ministral
    Tags("<|channel>", "<channel|>", "thought", is_anywhere=True),  # Gemma 4
    Tags("<|START_THINKING|>", "<|END_THINKING|>", is_anywhere=True),  # Command A, Command R7B
    Tags("<|inner_prefix|>", "<|inner_suffix|>", is_anywhere=True),  # Apertus
    Tags("<seed:think>", "</seed:think>"),  # Seed-OSS
    Tags("<thought>", "</thought>"),  # EXAONE Deep
    Tags("<think>", "</think>"),  # Qwen, DeepSeek, SmolLM3, GLM, Nemotron, LFM2 and most others
    Tags("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),  # Apriel
)
"""The first of which a template or a vocabulary has both is the model's."""

_DEEPSEEK = ("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>")
_FUNCTION_GEMMA = ("<end_function_call>", "<escape>")
_KIMI = (
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "<|tool_calls_section_end|>",
)


def _dsml(name: str) -> Calls:
    mark = "｜DSML｜"
    return Calls(f"<{mark}{name}>", invoke_tags(mark, f"</{mark}{name}>"), (mark,), mark)


CALLS = (
    # Hermes, Qwen, SmolLM3, Granite 4 in JSON; Qwen3-Coder, Qwen3.5, Nemotron 3, Step in XML; GLM in pairs
    Calls("<tool_call>", tool_call_tag("</tool_call>"), ("</tool_call>",)),
    Calls("<function=", function_tags("</tool_call>")),  # the same without the tag around it; Functionary
    Calls("<seed:tool_call>", tool_call_tag("</seed:tool_call>"), ("</seed:tool_call>",)),  # Seed-OSS
    Calls("[TOOL_CALLS]", mistral_calls, ("[CALL_ID]", "[ARGS]")),  # Mistral, Ministral, Devstral
    Calls("<|tool_call>", gemma_call(GEMMA, "<tool_call|>"), ("<tool_call|>", '<|"|>')),  # Gemma 4
    Calls("<|tool_call_start|>", python_calls("<|tool_call_end|>"), ("<|tool_call_end|>",)),  # LFM2
    Calls("<function_calls>", python_calls("</function_calls>"), ("</function_calls>",)),  # OLMo 3
    Calls("<TOOLCALL>", json_calls("</TOOLCALL>"), ("</TOOLCALL>",)),  # Nemotron Nano 2
    Calls("<tool_calls>", json_calls("</tool_calls>"), ("</tool_calls>",)),  # MiniMax M1, Apriel, Hunyuan
    Calls("<|tool_call|>", json_calls("<|/tool_call|>"), ("<|/tool_call|>",)),  # Granite 3, Phi-4-mini
    Calls("<|python_tag|>", json_calls()),  # Llama 3
    Calls("<start_function_call>", gemma_call(FUNCTION_GEMMA, "<end_function_call>"), _FUNCTION_GEMMA),
    Calls("<|function_call|>", json_calls()),  # GigaChat
    Calls("<|tools_prefix|>", json_calls("<|tools_suffix|>", calls_by_name), ("<|tools_suffix|>",)),  # Apertus
    Calls("<|START_ACTION|>", json_calls("<|END_ACTION|>"), ("<|END_ACTION|>",)),  # Command A, Command R7B
    Calls("Action: ```json", command_r_calls),  # Command R, Command R+
    Calls("<｜tool▁calls▁begin｜>", deepseek_calls, _DEEPSEEK),  # DeepSeek V3, R1
    _dsml("function_calls"),  # DeepSeek V3.2
    _dsml("tool_calls"),  # DeepSeek V4
    Calls("<minimax:tool_call>", invoke_tags("", "</minimax:tool_call>"), ("</minimax:tool_call>",)),  # MiniMax M2
    Calls("<|tool_calls_section_begin|>", kimi_calls, _KIMI),  # Kimi K2
)
"""Markers are told apart by their text, so all that a model shows count."""


@dataclass(frozen=True)
class AnswerForm:
    """A model's form of answers. tags: of its reasoning. calls: how it calls tools. is_harmony: gpt-oss' format, which
    has both. Without any of these an answer is text, and calls are found where they are bare JSON."""

    tags: Tags | None = None
    calls: tuple[Calls, ...] = ()
    is_harmony: bool = False

    @property
    def marks(self) -> frozenset[str]:
        """Tokens that readers have to see, even where the vocabulary types them as no text."""
        if self.is_harmony:
            return frozenset(harmony.MARKS)
        marks = {mark for form in self.calls for mark in (form.begin, *form.marks)}
        if self.tags is not None:
            marks |= {self.tags.open, self.tags.close}
        return frozenset(marks)

    def reader(self, tools: Tools) -> HarmonyAnswer | TaggedAnswer:
        """What takes one answer apart. Without tools, calls are text."""
        if self.is_harmony:
            return HarmonyAnswer(tools)
        return TaggedAnswer(self.tags, self.calls, (bare_json, bare_python), tools)

    @property
    def writer(self) -> Callable[[Functions], str] | None:
        """What writes calls as the model does, for templates that leave them out; None where none does."""
        return next((WRITERS[form.begin] for form in self.calls if form.begin in WRITERS), None)

    def before_call(self, prompt_end: str) -> str:
        """What comes between a prompt with this end and a call in JSON that the answer has to be."""
        begins = [form.begin for form in self.calls]
        closed = f"{self.tags.close}\n\n" if self.tags is not None and self.begins_in_reasoning(prompt_end) else ""
        return closed + ("<tool_call>\n" if begins == ["<tool_call>"] else "")

    def begins_in_reasoning(self, prompt_end: str) -> bool:
        """Whether a prompt with this end has opened the reasoning."""
        if self.tags is None:
            return False
        return prompt_end.rstrip().removesuffix(self.tags.name).rstrip().endswith(self.tags.open)


def answer_form(template: str, is_token: Callable[[str], bool]) -> AnswerForm:
    """The form that a chat template shows. is_token: whether the vocabulary has a text as a token of its own."""
    if "<|channel|>" in template or (is_token("<|channel|>") and is_token("<|message|>")):
        return AnswerForm(is_harmony=True)

    def has(marker: str) -> bool:
        return marker in template or is_token(marker)

    tags = next((tags for tags in TAGS if has(tags.close) or (tags.open in template)), None)
    return AnswerForm(tags, tuple(form for form in CALLS if has(form.sign or form.begin)))
