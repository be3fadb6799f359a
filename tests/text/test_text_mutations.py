"""From the header on to tokens and chats: whatever is changed in a file, a typed error or working text, in bounds.

`python tests/text/test_text_mutations.py 10000`, with `tests` on the path, runs more of them than the tests do.
"""

from __future__ import annotations

import random
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mutations import LIMIT_BYTES, TimeLimit, limits, run_mutations
from tiny_vocabularies import tiny_bpe, tiny_spm, write_gguf

from vkllm.errors import InvalidParameter, ModelFileError, UnsupportedModel, VkllmError
from vkllm.formats.gguf import ModelFile
from vkllm.text.chat import ChatTemplate
from vkllm.text.templates import limits as template_limits
from vkllm.text.tokenizer import Tokenizer

N_BYTES = 100
"""Files with other bytes, and as many with other fields and templates, a vocabulary."""

LIMIT_S = 20.0
"""Of one file: a template may use all of its steps, and memory is traced, on a machine that is busy."""

TEMPLATE = (
    "{{- bos_token }}{% set ns = namespace(n=0, text='') %}\n"
    "{%- macro show(m, end='<|im_end|>') -%}{{ '<|im_start|>' + m.role + '\n' + m['content'] | trim ~ end }}\n"
    "{%- endmacro %}{% for m in messages if m.role != 'tool' %}{% if loop.first and m.role == 'system' %}\n"
    "{{- show(m) }}{% elif m.role == 'user' %}{{ show(m, end='') ~ '%s' % loop.index }}{% set ns.n = ns.n + 1 %}\n"
    "{%- else %}{{ m.content.split('</think>')[-1].lstrip('\n') | replace('a', 'b') | indent(2) }}\n"
    "{%- for call in m.tool_calls or [] %}{{ call.function.arguments | tojson(indent=2) }}{% endfor %}{% endif %}\n"
    "{%- endfor %}{% for a, b in {'x': [1, 2], 'y': 'z' * 3}.items() %}{{ a ~ b | join(',') }}{% endfor %}\n"
    "{%- set text %}{{ messages | map(attribute='role') | unique | sort | list }}{% endset %}{{ text | upper }}\n"
    "{%- if tools is defined and tools %}{{ tools | length }}{% endif %}{% for i in range(3) %}{{ i ** 2 }}\n"
    "{%- endfor %}{% if ns.n > 100 %}{{ raise_exception('too many') }}{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
CALL = {"id": "1", "function": {"name": "f", "arguments": {"a": "<|im_end|>"}}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "hello <|im_end|>\nworld"},
    {"role": "assistant", "content": "<think>hm</think>\nabc", "tool_calls": [CALL]},
    {"role": "user", "content": "🦙ø"},
]


def sound_fields(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    return make() | {"tokenizer.chat_template": TEMPLATE}


def use_text(path: Path) -> bool:
    """Opens a file and uses its tokenizer and template; whether all of it worked. Untyped errors are defects."""
    try:
        metadata = ModelFile.open(path).metadata
        tokenizer = Tokenizer.from_gguf(metadata)
        text = "hello <|im_start|>abc ø🦙<think>\n"
        for parse_special in (True, False):
            ids = tokenizer.encode(text, parse_special=parse_special)
            assert all(0 <= token_id < tokenizer.n_vocab for token_id in ids)
            assert isinstance(tokenizer.decode(ids), str)
        assert len(tokenizer.answer_bytes()) == tokenizer.n_vocab
        assert all(0 <= token_id < tokenizer.n_vocab for token_id in tokenizer.stop_ids)
        template = ChatTemplate.from_gguf(metadata, tokenizer)
    except VkllmError as error:
        assert isinstance(error, ModelFileError | UnsupportedModel)
        assert_one_sentence(error)
        return False
    try:
        ids = template.encode_chat(MESSAGES)
        assert all(0 <= token_id < tokenizer.n_vocab for token_id in ids)
        assert isinstance(template.render(MESSAGES), str)
    except (InvalidParameter, ModelFileError) as error:
        assert_one_sentence(error)
        return False
    return True


def assert_one_sentence(error: Exception) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 2000


def with_other_fields(fields: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The fields with one to three changes: pieces of the template elsewhere, other tokens, types, merges, ids."""
    fields = {key: list(value) if isinstance(value, list) else value for key, value in fields.items()}
    odd_texts = ["", "<0x0A>", "</s>", "a" * 50_000, "<|im_end|>", "▁", " ", "ø", "\n", "\ufffd"]
    odd_numbers = [0, 1, 3, 4, 5, 6, 99, 2**31 - 1, 2**32 - 1]
    for _ in range(rng.choice([1, 1, 2, 3])):
        lists = [key for key, value in fields.items() if isinstance(value, list) and len(value) > 4]
        match rng.randrange(8):
            case 0 | 1 | 2 | 3:
                pieces = re.findall(r"\w+|\s+|.", fields["tokenizer.chat_template"], re.DOTALL)
                for _ in range(rng.randint(1, 4)):
                    start, at = rng.randrange(len(pieces)), rng.randrange(len(pieces))
                    part = pieces[start : start + rng.randint(1, 12)]
                    if rng.random() < 0.3:
                        part = [
                            rng.choice(["**", "*", "~", "+", "9999999", "range(99999)", "%", "[1]", "none", "loop"])
                        ]
                    pieces[at : at + rng.randrange(3)] = part
                fields["tokenizer.chat_template"] = "".join(pieces)
            case 4:
                key = rng.choice(lists)
                odd: dict[type, list[Any]] = {str: odd_texts, int: odd_numbers[:-1], float: [float("nan"), -1e38, 0.0]}
                values = fields[key]
                values[rng.randrange(len(values))] = rng.choice(odd[type(values[0])])
            case 5:
                key = rng.choice(lists)
                at = rng.randrange(1, len(fields[key]))
                fields[key][at : at + rng.randrange(3)] = fields[key][: rng.randrange(3)]
            case 6:
                name = rng.choice(["bos", "eos", "eot", "unknown", "padding", "fim_pad"])
                fields[f"tokenizer.ggml.{name}_token_id"] = rng.choice(odd_numbers)
            case 7:
                del fields[rng.choice(list(fields))]
                fields.setdefault("tokenizer.chat_template", TEMPLATE)
    return fields


def run_field_mutations(fields: dict[str, Any], path: Path, n: int) -> tuple[int, list[str]]:
    """How many of the changed files worked, and the failures."""
    n_working, failures = 0, []
    for number in range(n):
        write_gguf(path, with_other_fields(fields, random.Random(number)))
        try:
            with limits(LIMIT_S, 2 * LIMIT_BYTES):
                n_working += use_text(path)
        except (Exception, TimeLimit) as error:
            failures.append(f"mutation {number}: {type(error).__name__}: {str(error)[:300]}")
    return n_working, failures


@pytest.mark.parametrize("make", [tiny_bpe, tiny_spm], ids=["bpe", "spm"])
def test_other_bytes_give_a_typed_error_or_working_text(tmp_path: Path, make: Callable[[], dict[str, Any]]) -> None:
    sound = tmp_path / "sound.gguf"
    write_gguf(sound, sound_fields(make))
    assert use_text(sound)
    n_working, failures = run_mutations(sound, tmp_path / "mutated.gguf", use_text, N_BYTES, LIMIT_S)
    assert failures == []
    assert 0 < n_working < N_BYTES / 2, "too harsh or too harmless to prove anything"


@pytest.mark.parametrize("make", [tiny_bpe, tiny_spm], ids=["bpe", "spm"])
def test_other_fields_and_templates_give_a_typed_error_or_working_text(
    tmp_path: Path, make: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_limits, "MAX_STEPS", 20_000)  # some reach the limit, and memory is traced
    n_working, failures = run_field_mutations(sound_fields(make), tmp_path / "mutated.gguf", N_BYTES)
    assert failures == []
    assert N_BYTES / 20 < n_working < N_BYTES / 2, "too harsh or too harmless to prove anything"


if __name__ == "__main__":
    n = int(sys.argv[1]) // 4
    with tempfile.TemporaryDirectory() as folder:
        for make in (tiny_bpe, tiny_spm):
            sound = Path(folder, "sound.gguf")
            write_gguf(sound, sound_fields(make))
            for result in (
                run_mutations(sound, Path(folder, "mutated.gguf"), use_text, n, LIMIT_S),
                run_field_mutations(sound_fields(make), Path(folder, "mutated.gguf"), n),
            ):
                print(f"{n} files: {result[0]} work, {len(result[1])} failures", *result[1][:20], sep="\n")
