"""A cache saved to a file and restored: the same tokens without running the prompt again; files not written."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from model_specs import TINY_SPEC
from state_steps import (
    PROMPT,
    TYPES,
    MakeEngine,
    answer,
    error_of,
    load,
    request,
    run,
    save,
)

from vkllm.engine.engine import Engine
from vkllm.engine.events import Finished, StateAnswer, Token
from vkllm.engine.params import SamplingParams
from vkllm.engine.requests import Request, StateQuery
from vkllm.errors import InvalidParameter, StateFileError
from vkllm.gpu.program.cached_blocks import CachedBlocks
from vkllm.gpu.program.kernels import KV_BLOCK

pytestmark = pytest.mark.gpu


def cached_blocks(engine: Engine, token_ids: tuple[int, ...]) -> CachedBlocks:
    """What an engine has cached of these tokens."""
    held = engine._cache.begin("", token_ids, len(token_ids))
    assert held.n_cached == len(token_ids)
    engine._cache.end(held, token_ids)
    return CachedBlocks(engine._program, len(token_ids), engine._place(held, len(token_ids)))


@pytest.fixture(scope="module", params=TYPES, ids=str)
def two_engines(request: pytest.FixtureRequest, make_engine: MakeEngine) -> tuple[Engine, Engine]:
    """Of the same model, with caches of these types."""
    return make_engine(request.param), make_engine(request.param)


@pytest.mark.parametrize("n_prompt", [1, 32, 40, 70])
def test_a_conversation_goes_on_in_another_engine_without_running_its_prompt(
    two_engines: tuple[Engine, Engine], tmp_path: Path, n_prompt: int
) -> None:
    first, second = two_engines
    first._forget()
    second._forget()
    prompt = PROMPT[:n_prompt]
    tokens, n_cached = answer(first, prompt)
    assert n_cached == 0 and len(tokens) == 8
    cached = save(first, tmp_path / "chat")
    assert cached[:n_prompt] == prompt and n_prompt + 7 <= len(cached) <= n_prompt + 8
    longer = (*prompt, *tokens, 5, 6, 7)
    expected = answer(first, longer)
    assert expected[1] == len(cached)
    answer(second, PROMPT[::-1], 3)
    assert load(second, tmp_path / "chat") == cached
    assert answer(second, longer) == expected
    second._forget()
    assert answer(second, longer) == (expected[0], 0), "it is what a fresh prompt gives"


@pytest.mark.parametrize("n_tokens", [1, 32, 40, 64])
def test_the_restored_keys_and_values_are_the_saved_ones(
    engine: Engine, other_engine: Engine, tmp_path: Path, n_tokens: int
) -> None:
    answer(engine, PROMPT[:n_tokens], 1)
    cached = save(engine, tmp_path / "state")
    assert len(cached) == n_tokens
    answer(other_engine, PROMPT[::-1], 3)
    load(other_engine, tmp_path / "state")
    ours, theirs = (cached_blocks(each, cached) for each in (engine, other_engine))
    for name in ours.names:
        assert ours.read(name).any() and np.array_equal(ours.read(name), theirs.read(name))


def test_the_file_is_an_npz_that_numpy_reads_without_pickles(engine: Engine, saved: Path) -> None:
    with np.load(saved, allow_pickle=False) as arrays:
        n_blocks = -(-len(arrays["token_ids"]) // KV_BLOCK)
        assert tuple(arrays["token_ids"][:70]) == PROMPT
        assert {name for name in arrays.files if "." in name} == {
            *("keys.0", "values.0", "keys.1", "values.1", "header.json")
        }
        assert arrays["keys.0"].shape == (n_blocks, TINY_SPEC.n_kv_heads, KV_BLOCK * TINY_SPEC.head_dim // 2)
        assert json.loads(arrays["header.json"])["model"] == "model.gguf"


@pytest.mark.parametrize("types", TYPES)
def test_only_rows_of_the_conversation_get_into_the_file(
    make_engine: MakeEngine, tmp_path: Path, types: tuple[str, str]
) -> None:
    engine = make_engine(types)
    answer(engine, PROMPT[:40])
    save(engine, tmp_path / "fresh")
    engine._forget()
    answer(engine, PROMPT[::-1], 60)  # longer: leaves other keys and values behind the 40
    engine._forget()
    answer(engine, PROMPT[:40])
    save(engine, tmp_path / "later")
    assert (tmp_path / "fresh").read_bytes() == (tmp_path / "later").read_bytes()
    with np.load(tmp_path / "later") as arrays:
        n_used = len(arrays["token_ids"]) % KV_BLOCK
        n_bytes = KV_BLOCK * TINY_SPEC.head_dim // 4 if types[0] == "q8_0" else None
        last = arrays["keys.1"][-1][:, :n_bytes].reshape(TINY_SPEC.n_kv_heads, KV_BLOCK, -1)
        assert last[:, :n_used].any(axis=(0, 2)).all() and not last[:, n_used:].any()


def test_a_state_saved_after_a_cancel_or_a_stop_token_is_the_state_then(engine: Engine, tmp_path: Path) -> None:
    tokens, _ = answer(engine, PROMPT)
    stopping = Request(1, PROMPT, SamplingParams(temperature=0), frozenset(tokens[3:4]))
    run(engine, stopping)
    save(engine, tmp_path / "stopped")
    longer = (*PROMPT, *tokens[: tokens.index(tokens[3])], 9, 9)
    expected = answer(engine, longer)[0]
    engine._forget()
    load(engine, tmp_path / "stopped")
    got, n_cached = answer(engine, longer)
    assert got == expected and n_cached >= len(PROMPT)

    engine.submit(request(PROMPT, 50))
    while not any(isinstance(event, Token) for event in engine.step()):
        pass
    engine.cancel(1)
    cancelled, state = run(engine, StateQuery(2, "save", tmp_path / "cancelled"))
    assert isinstance(cancelled, Finished) and cancelled.reason == "cancelled"
    assert isinstance(state, StateAnswer) and state.token_ids[: len(PROMPT)] == PROMPT


def test_a_query_waits_for_the_requests_before_it_and_not_for_those_after(engine: Engine, tmp_path: Path) -> None:
    events = run(
        engine,
        request(PROMPT[:20], request_id=1),
        StateQuery(2, "save", tmp_path / "first"),
        request(PROMPT[::-1], request_id=3),
        StateQuery(4, "load", tmp_path / "first"),
        request((*PROMPT[:20], 1), request_id=5),
    )
    last = [event for event in events if not isinstance(event, Token)]
    assert [event.request_id for event in last] == [1, 2, 3, 4, 5]
    assert isinstance(last[1], StateAnswer) and last[1].token_ids[:20] == PROMPT[:20]
    assert isinstance(last[4], Finished) and last[4].stats.n_cached == 20


def test_a_waiting_query_can_be_cancelled(engine: Engine, tmp_path: Path) -> None:
    engine.submit(request(PROMPT))
    engine.submit(StateQuery(2, "save", tmp_path / "never"))
    engine.cancel(2)
    (event,) = engine.step()
    assert isinstance(event, Finished) and event.request_id == 2 and event.reason == "cancelled"
    run(engine)
    assert list(tmp_path.iterdir()) == []


def test_nothing_cached_is_nothing_to_save(make_engine: MakeEngine, tmp_path: Path) -> None:
    error = error_of(make_engine(), "save", tmp_path / "empty")
    assert type(error) is InvalidParameter and "nothing is cached" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to_is_told(engine: Engine, tmp_path: Path) -> None:
    answer(engine, PROMPT)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for path, reason, way_out in (
        (tmp_path / "none" / "state", "No such file or directory", f"make the folder {tmp_path / 'none'} first"),
        (tmp_path / "file" / "state", "Not a directory", f"make the folder {tmp_path / 'file'} first"),
        (tmp_path / "folder", "Is a directory", "name a file in this folder"),
        (Path("/proc/state"), "No such file or directory", "choose another place, or change who may write here"),
    ):
        error = error_of(engine, "save", path)
        assert type(error) is StateFileError
        assert f"cannot be saved here ({reason}); nothing was written, so {way_out}" in str(error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert answer(engine, (*PROMPT, 1))[1] >= len(PROMPT), "what is cached stays"


@pytest.mark.parametrize("n_bytes", [1, 4000, 25000])
def test_a_full_disk_leaves_nothing_behind_and_says_so(engine: Engine, tmp_path: Path, n_bytes: int) -> None:
    answer(engine, PROMPT)
    save(engine, tmp_path / "state")
    before = (tmp_path / "state").read_bytes()
    assert len(before) > 2 * n_bytes
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))  # as a disk that is full after so many bytes
    try:
        error = error_of(engine, "save", tmp_path / "state")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert type(error) is StateFileError and "nothing was written, so make room" in str(error)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert (tmp_path / "state").read_bytes() == before


KILLED_AT_RENAME = """
import os, signal, sys
from pathlib import Path
from model_specs import TINY_SPEC
from random_model import engine_config
from state_steps import PROMPT, Engine, answer, save
engine = Engine(engine_config(Path(sys.argv[1]), TINY_SPEC, 200))
answer(engine, PROMPT[:40])
os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
save(engine, Path(sys.argv[2]))
"""


def test_a_process_killed_before_the_rename_leaves_the_old_state(
    engine: Engine, model: Path, saved: Path, tmp_path: Path
) -> None:
    target = tmp_path / "state"
    target.write_bytes(saved.read_bytes())
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    command = [sys.executable, "-c", KILLED_AT_RENAME, str(model), str(target)]
    assert subprocess.run(command, env=environment, timeout=120).returncode == -signal.SIGKILL
    assert target.read_bytes() == saved.read_bytes()
    assert load(engine, target)[:70] == PROMPT
    (left,) = set(tmp_path.iterdir()) - {target}
    save(engine, target)
    assert not left.exists(), "the next one takes its place"
