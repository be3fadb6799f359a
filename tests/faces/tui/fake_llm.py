"""A model without a file, an engine or a device, of the public API's shape: it says what its script tells it to.

`FakeFits` knows how models fit without a look at any device.

The question chooses the answer (`ANSWERS`; that to "endless" ends only when it is stopped, as does every answer of a
model with `never_ends`); the model's name chooses how opening it goes.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from vkllm import (
    ContextOverflow,
    DeviceLost,
    Generation,
    ModelNotFound,
    OutOfDeviceMemory,
    Piece,
    RunStats,
    SamplingParams,
    VkllmError,
)
from vkllm.faces.tui.fit import Fit, ModelToFit
from vkllm.faces.tui.fits import Fits
from vkllm.model.memory.limits import Tier
from vkllm.model.memory.plan import MemoryPlan, TierPlan
from vkllm.store import FoundModel
from vkllm.text.answers.choice import answer_form
from vkllm.text.answers.parser import AnswerParser

CODE = "Here is one:\n\n```python\ndef double(x):\n    return 2 * x\n```\n\nAnd another:\n\n```sh\nls -l\n```\n"
THOUGHT = "<think>\nLet me see. Two and two.\n</think>\n\nIt is **four**."
ANSWERS = {"code": CODE, "think": THOUGHT, "endless": ""}
LOST = DeviceLost("the fake device was lost while answering; try again")

FITS = {
    "smollm2": Fit("discrete", 240 * 2**20, 240 * 2**20, 8 * 2**30, 20 * 2**30, 612.0),
    "spilling": Fit("discrete", 11 * 2**30, 8 * 2**30, 8 * 2**30, 20 * 2**30, 6.1),
    "large": Fit("discrete", 43 * 2**30, 0, 8 * 2**30, 20 * 2**30, advice="the same model in Q4_0 would fit"),
}


class FakeFits(Fits):
    """Knows the models in FITS at once, and no others."""

    def __init__(self) -> None:
        super().__init__({})

    def look(self, models: Sequence[ModelToFit], n_ctx: int | None, held_bytes: dict[str, int]) -> bool:
        known = {(model, n_ctx): FITS[model.name] for model in models if model.name in FITS}
        if not known.keys() <= self._fits.keys():
            self._fits |= known
            self.n_found += 1
        return True


class FakeStream(Iterator[Piece]):
    """Says words until it or its model is closed; from word `gate_at` on it waits for the `gate`."""

    def __init__(self, words: Iterable[str], n_prompt: int, llm: FakeLLM) -> None:
        self._words = iter(words)
        self._parser = AnswerParser(answer_form("</think>", lambda text: False))
        self._said: list[str] = []
        self._n_prompt = n_prompt
        self._llm = llm
        self._is_closed = threading.Event()
        self._reason = "stop"
        self._n_shifts = 0

    def __next__(self) -> Piece:
        while len(self._said) >= self._llm.gate_at and not self._llm.gate.wait(0.005):
            if self._is_closed.is_set() or self._llm.is_closed:
                raise StopIteration
        if self._is_closed.wait(self._llm.step_s) or self._llm.is_closed:
            raise StopIteration
        if self._llm.fails_after is not None and len(self._said) >= self._llm.fails_after:
            raise self._llm.error
        if self._n_prompt + len(self._said) - self._n_shifts * (self._llm.n_ctx // 2) >= self._llm.n_ctx:
            if not self._llm.shifts:
                self._reason = "length"
                raise StopIteration
            self._n_shifts += 1
        word = next(self._words)
        self._said.append(word)
        parts = self._parser.push(word)
        return Piece(parts.text, [1], reasoning=parts.reasoning)

    def close(self) -> None:
        self._is_closed.set()

    def result(self) -> Generation:
        n_said = len(self._said)
        reason: Any = "cancelled" if self._is_closed.is_set() else self._reason
        stats = RunStats(self._n_prompt, 0, n_said, 0.5, 0.5, (n_said - 1) / 8 if n_said > 1 else 0.0, self._n_shifts)
        return Generation("".join(self._said), [1] * n_said, [1] * self._n_prompt, None, reason, stats)


class FakeLLM:
    """Has what the chat uses of `LLM`. opened: all of them, for tests to look at."""

    opened: ClassVar[list[FakeLLM]] = []
    default_params = SamplingParams()

    def __init__(
        self,
        model: str | FoundModel,
        *,
        n_ctx: int | None = None,
        device: str | None = None,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        assert on_progress is not None
        self.given = model
        model = model if isinstance(model, str) else model.name
        match model:
            case "missing":
                raise ModelNotFound("There is no model 'missing'")
            case "huge" if n_ctx is None or n_ctx > 2048:
                raise OutOfDeviceMemory("huge needs 9 GiB and 4 GiB are free; take a shorter context")
            case "slow":
                for done in range(0, 10_000_000_000, 10_000_000):
                    on_progress("loading slow.gguf", done, 10_000_000_000)
                    time.sleep(0.01)
            case "hanging":
                time.sleep(3600)
        on_progress(f"loading {model}", 50_000_000, 100_000_000)
        self.path = Path(f"/models/{Path(model).stem}.gguf")
        self.n_ctx = n_ctx or 2048
        self.spec = SimpleNamespace(n_ctx_train=8192)
        self.n_bytes = 98_000_000
        self.device_name = "fake device"
        self.is_cpu_device = False
        self.slow_paths: tuple[str, ...] = ()
        local = TierPlan(Tier.LOCAL, 8 * 2**30, 94 * 2**20, 94 * 2**20, 4 * 2**20, 2**20, 4e11)
        self.plan = MemoryPlan(self.n_ctx, {}, (), Tier.LOCAL, (local,), 0.0)
        self.moved_bytes = 0
        self.gate = threading.Event()
        self.gate.set()
        self.gate_at = 0
        self.step_s = 0.0
        self.never_ends = False  # "word" follows on the answer again and again
        self.shifts = True  # a full context forgets its older half
        self.fails_after: int | None = None
        self.error: VkllmError = LOST
        self.is_closed = False
        self.asked: list[tuple[list[dict[str, str]], dict[str, Any]]] = []
        FakeLLM.opened.append(self)

    def chat(self, messages: Sequence[dict[str, str]], *, stream: bool, **sampling: Any) -> FakeStream:
        assert stream
        self.asked.append((list(messages), sampling))
        n_prompt = self.count_tokens(messages)
        if n_prompt >= self.n_ctx:
            raise ContextOverflow(f"the prompt has {n_prompt} tokens, but the context holds {self.n_ctx}")
        question = messages[-1]["content"]
        text = ANSWERS.get(question, f"You said: {question} (answer {len(self.asked)})")
        words = [word for word in text.replace(" ", " \0").split("\0") if word]
        rest = itertools.repeat("word ") if self.never_ends or question == "endless" else ()
        return FakeStream(itertools.chain(words, rest), n_prompt, self)

    def count_tokens(self, messages: Sequence[dict[str, str]]) -> int:
        return sum(len(message["content"].split()) for message in messages)

    def close(self) -> None:
        self.is_closed = True
