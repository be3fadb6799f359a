"""The default model through the whole stack: chat, seeds, an engine that dies, sleep, and the command line."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from vkllm import LLM, DeviceLost

pytestmark = [pytest.mark.gpu, pytest.mark.weights]


def test_chat_answers_the_question(smollm2: LLM) -> None:
    answer = smollm2.chat([{"role": "user", "content": "What is the capital of France?"}], max_tokens=12, temperature=0)
    assert "Paris" in answer.text
    assert "<|" not in answer.text


def test_the_same_seed_gives_the_same_text_and_another_gives_another(smollm2: LLM) -> None:
    def text(seed: int) -> str:
        return smollm2.generate("Once upon a time", max_tokens=8, temperature=1.5, top_k=0, seed=seed).text

    first = text(1)
    assert text(1) == first
    assert any(text(seed) != first for seed in (2, 3))


def test_a_stop_string_cuts_the_answer(smollm2: LLM) -> None:
    stream = smollm2.stream("The capital of France is", max_tokens=12, temperature=0, stop="answer")
    assert "".join(stream) == " Paris.\n\nThe "
    assert stream.result().finish_reason == "stop"


def test_a_killed_engine_is_a_typed_error_and_the_next_request_works(smollm2: LLM) -> None:
    stream = smollm2.stream("One, two, three,", max_tokens=30, temperature=0, ignore_eos=True)
    next(stream)
    pid = smollm2._engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(DeviceLost, match="SIGKILL"):
        stream.result()
    assert smollm2.generate("The capital of France is", max_tokens=1, temperature=0).text == " Paris"


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_an_idle_engine_uses_no_cpu(smollm2: LLM) -> None:
    smollm2.generate("Hello", max_tokens=2)
    stat = Path(f"/proc/{smollm2._engine.pid}/stat")

    def ticks() -> int:
        fields = stat.read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    before = -1
    for _ in range(100):  # until it rests from what it has just done
        if (now := ticks()) == before:
            break
        before = now
        time.sleep(0.2)
    time.sleep(1.2)
    assert ticks() == before
