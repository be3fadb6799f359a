"""States of models whose layers keep only a window: whatever blocks they are saved from and restored into."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_specs import LAYER, of_layers
from random_model import engine_config, write_random_model
from state_steps import answer, load, save

from vkllm.engine.chunks import CHUNK_WIDTHS
from vkllm.engine.engine import Engine
from vkllm.gpu.program import program as program_module
from vkllm.gpu.program.kernels import KV_BLOCK
from vkllm.model.memory.plan import PlanOptions

pytestmark = pytest.mark.gpu

SPEC = of_layers(replace(LAYER, window=40), LAYER)
PROMPT = tuple(int(t) for t in np.random.default_rng(3).integers(0, SPEC.n_vocab, 300))


@pytest.fixture(autouse=True)
def short_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    """160 tokens in layers with a window: no step has more than 64 rows."""
    monkeypatch.setattr(program_module, "MAX_ROWS", 64)
    monkeypatch.setattr("vkllm.engine.chunks.CHUNK_WIDTHS", CHUNK_WIDTHS[:2])


def made(path: Path, n_ctx: int) -> Engine:
    return Engine(replace(engine_config(path, SPEC, n_ctx), options=PlanOptions(n_parallel=1)))


@pytest.mark.parametrize(("n_prompt", "n_ctx"), [(300, 400), (70, 160)])
def test_a_conversation_goes_on_in_another_engine(tmp_path: Path, n_prompt: int, n_ctx: int) -> None:
    path = write_random_model(tmp_path / "model.gguf", SPEC, {})
    first = made(path, 400)
    assert first._program.plan.n_window_blocks == 5
    prompt = PROMPT[:n_prompt]
    tokens, _ = answer(first, prompt)
    cached = save(first, tmp_path / "state")
    with np.load(tmp_path / "state") as arrays:
        n_blocks = -(-len(cached) // KV_BLOCK)
        assert arrays["keys.0"].shape[0] == n_blocks - (len(cached) - 39) // KV_BLOCK, "what the next token sees"
        assert arrays["keys.1"].shape[0] == n_blocks
    longer = (*prompt, *tokens, 5, 6, 7)
    expected = answer(first, longer)
    assert expected[1] == len(cached)
    shorter = answer(first, (*prompt[:-20], 8))
    assert shorter[1] == n_prompt - 20, "the ring still has the window before it"
    first.close()
    second = made(path, n_ctx)
    assert second._program.plan.n_window_blocks == 5
    answer(second, PROMPT[::-1][:100], 3)
    assert load(second, tmp_path / "state") == cached
    assert answer(second, longer) == expected
    load(second, tmp_path / "state")
    again = answer(second, (*prompt[:-20], 8))
    assert again == (shorter[0], 0), "the state had only the window before the next token"
    second.close()


FINGERPRINT = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from model_specs import BIASES, LAYER, of_layers
from random_model import engine_config
from vkllm.engine.saved_state import SavedStates
config = engine_config(Path(sys.argv[1]), of_layers(replace(LAYER, biases=BIASES)))
print(SavedStates(config, None)._model_fingerprint())
"""


def test_the_fingerprint_of_a_model_is_the_same_in_every_process(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "model.gguf", SPEC, {})
    folders = [str(Path(__file__).parents[2])]
    found = {
        subprocess.run(
            [sys.executable, "-c", FINGERPRINT, str(path), *folders],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
