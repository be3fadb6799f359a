"""`vkllm plan`: what it prints, in which units it is asked, and how it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from terminal import REAL, Command, in_this_process
from tiny_gguf import write_tiny_gguf

from vkllm import LLM, InvalidParameter, VkllmError, plan_model
from vkllm.faces.cli.loading import layers
from vkllm.faces.cli.plan import fields, lines, weights_by_tier
from vkllm.gpu.device.probe import DeviceInfo, Heap, devices, memory_bytes


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> DeviceInfo:
    """A card with memory of its own that nobody measured."""
    heaps = (Heap(64 * 2**20, None, True), Heap(2**30, None, False))
    info = replace(devices()[0], type="discrete", name="A card", heaps=heaps)
    monkeypatch.setattr("vkllm.api.planning.devices", lambda: [info])
    monkeypatch.setattr("vkllm.api.planning.measured_speeds", lambda info: None)
    return info


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("16GiB", 16 * 2**30),
        ("16GB", 16 * 2**30),
        ("16G", 16 * 2**30),
        ("16g", 16 * 2**30),
        ("1.5 GiB", 3 * 2**29),
        ("500MiB", 500 * 2**20),
        ("64k", 2**16),
        ("1T", 2**40),
        ("123456", 123456),
        ("0", 0),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, n_bytes: int) -> None:
    assert memory_bytes(text, "--vram-limit") == n_bytes


@pytest.mark.parametrize("text", ["", "G", "-1G", "16X", "16GiBs", "1e9", "1.G", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="--ram-limit takes a size such as 16GiB"):
        memory_bytes(text, "--ram-limit")


def test_layers_are_a_number_or_all() -> None:
    assert [layers(text) for text in ("0", "99", "all", "auto", "-1", None)] == [0, 99, None, None, None, None]
    with pytest.raises(InvalidParameter, match="-ngl takes a number of layers or all, not 'many'"):
        layers("many")


@pytest.mark.gpu
def test_the_command_prints_where_everything_lies(command: Command, tiny_gguf: Path) -> None:
    done = command.run([*REAL, "plan", str(tiny_gguf), "-c", "128"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("tiny.gguf on ")
    assert "context   128 tokens (keys f16, values f16)" in done.stdout
    assert re.search(r"^local +\d+(\.\d)? KiB .* [KM]iB +\d+(\.\d)? [GM]iB$", done.stdout, re.MULTILINE)
    assert re.search(r"^local +layer 0, embedding table, vocabulary projection$|^local +layer 0, ", done.stdout, re.M)
    assert re.search(r"^expected +\d+\.\d tok/s, \d+\.\d with half of the context in use$", done.stdout, re.MULTILINE)


@pytest.mark.gpu
def test_json_is_the_same_for_programs(command: Command, tiny_gguf: Path) -> None:
    done = command.run([*REAL, "plan", str(tiny_gguf), "--json", "-c", "0", "-ctk", "q8_0", "-ngl", "99"])
    assert (done.returncode, done.stderr) == (0, "")
    made: dict[str, Any] = json.loads(done.stdout)
    assert (made["n_ctx"], made["type_k"], made["type_v"], made["n_gpu_layers"]) == (256, "q8_0", "f16", 99)
    tier = made["tiers"][0]
    assert tier["used_bytes"] == tier["weights_bytes"] + tier["cache_bytes"] + tier["arena_bytes"]
    assert tier["free_bytes"] == tier["available_bytes"] - tier["used_bytes"]
    assert sum(part["n_bytes"] for part in made["matrices"]) < tier["weights_bytes"], "norms come besides"
    assert made["tokens_per_s_empty"] > made["tokens_per_s"] > 0


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--vram-limit", "1KiB"], "MiB are missing"),
        (["--vram-limit", "lots"], "--vram-limit takes a size"),
        (["-ngl", "few"], "-ngl takes a number"),
        (["-ctk", "q4_0"], "type_k (-ctk) must be f16 or q8_0"),
        (["-c", "257"], "the model was trained for 2 to 256"),
        (["-c", "-1"], "a context of -1 tokens is not possible"),
        (["--device", "none such"], "No Vulkan device is called 'none such'"),
    ],
)
def test_a_refusal_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_gguf: Path, options: list[str], words: str
) -> None:
    done = in_this_process(["plan", str(tiny_gguf), *options], monkeypatch, capsys)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("vkllm: error: ") and done.stderr.count("\n") == 1
    assert words in done.stderr


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"fields": {"tokenizer.ggml.pre": "other"}}, "the pre-tokenizer 'other' is not supported"),
        ({"template": "{% nothing %}"}, "the chat template is not valid Jinja"),
    ],
)
def test_a_model_that_run_refuses_for_its_text_is_refused_with_the_same_sentence(
    tmp_path: Path, fake_llm: Callable[..., LLM], options: dict[str, Any], why: str
) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf", **options)
    said: list[str] = []
    for use in (plan_model, LLM):
        with pytest.raises(VkllmError, match=why) as raised:
            use(path)
        said.append(str(raised.value))
    assert said[0] == said[1]


@pytest.mark.gpu
def test_help_says_what_a_g_is(command: Command) -> None:
    assert "a G is 2^30 bytes" in " ".join(command.run([*REAL, "plan", "--help"]).stdout.split())


@pytest.mark.gpu
def test_a_model_in_two_memories_is_shown_so(card: DeviceInfo, tiny_gguf: Path) -> None:
    made = plan_model(tiny_gguf, n_gpu_layers=1)
    assert weights_by_tier(made)["local"] == ["layer 0"]
    assert weights_by_tier(made)["host"][-1] == "vocabulary projection"
    text = "\n".join(lines(made, "tiny"))
    assert re.search(r"^host +(?:embedding table, )?vocabulary projection$", text, re.MULTILINE)
    assert "reading   local 306 GB/s, host 25 GB/s (assumed)" in text
    assert {tier["tier"] for tier in fields(made)["tiers"]} == {"local", "host"}


@pytest.mark.gpu
def test_states_are_told_apart_from_keys_and_values(card: DeviceInfo, tiny_gguf: Path) -> None:
    made = plan_model(tiny_gguf)
    assert "states " not in "\n".join(lines(made, "tiny")) and fields(made)["n_state_slots"] == 0
    tiers = tuple(replace(tier, states_bytes=3 * 2**20) for tier in made.plan.tiers[:1])
    with_states = replace(made, plan=replace(made.plan, tiers=tiers, n_state_slots=6))
    assert "states    3.0 MiB of the cache, whatever the context" in lines(with_states, "tiny")
    assert fields(with_states)["tiers"][0]["states_bytes"] == 3 * 2**20 and fields(with_states)["n_state_slots"] == 6


@pytest.mark.gpu
def test_sequences_that_were_asked_for_are_told(card: DeviceInfo, tiny_gguf: Path) -> None:
    made = plan_model(tiny_gguf)
    assert "parallel" not in "\n".join(lines(made, "tiny"))
    assert (fields(made)["n_sequences"], fields(made)["n_blocks"], fields(made)["n_window_blocks"]) == (32, 8, 0)
    four = replace(made.plan, n_sequences=4, n_blocks=20)
    asked = replace(made, options=replace(made.options, n_parallel=4), plan=four)
    assert "parallel  4 sequences at once, which share a cache of 640 tokens" in lines(asked, "tiny")
    alone = replace(asked, plan=replace(four, n_sequences=1))
    assert "parallel  1 sequence at a time" in lines(alone, "tiny") and fields(asked)["n_parallel"] == 4


@pytest.mark.gpu
def test_the_default_context_is_that_of_run_and_0_the_longest(card: DeviceInfo, tiny_gguf: Path) -> None:
    assert plan_model(tiny_gguf).plan.n_ctx == plan_model(tiny_gguf, n_ctx=0).plan.n_ctx == 256
    assert plan_model(tiny_gguf, n_ctx=64).plan.n_ctx == 64


def test_a_model_that_is_not_here_is_not_fetched_for_a_plan(command: Command) -> None:
    command.environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(command.temporary)}
    done = command.run([*REAL, "plan", "llama-3.3-70b"])
    assert (done.returncode, done.stdout) == (2, "")
    assert "llama-3.3-70b could not be fetched" in done.stderr and "HF_HUB_OFFLINE forbids" in done.stderr
