"""Files that no cache is restored from: damaged, foreign, of another model. After each, requests work as before."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_specs import TINY_SPEC
from random_model import write_random_model
from state_steps import (
    FORMATS,
    PROMPT,
    MakeEngine,
    answer,
    error_of,
    load,
    run,
    save,
)

from vkllm.engine.engine import Engine
from vkllm.engine.events import Failed, StateAnswer
from vkllm.engine.requests import StateQuery
from vkllm.errors import ContextOverflow, OutOfDeviceMemory, StateFileError, VkllmError
from vkllm.formats import state_file
from vkllm.gpu.device.kompute import Device

pytestmark = pytest.mark.gpu


def refused(engine: Engine, path: Path) -> VkllmError:
    """The error of loading a file, after which all is as before."""
    expected, _ = answer(engine, PROMPT[:40])
    error = error_of(engine, "load", path)
    assert str(path) in str(error)
    assert answer(engine, PROMPT[:40]) == (expected, 39)
    assert engine._cache.pool.n_free == engine._cache.pool.n_blocks
    return error


def test_a_file_cut_anywhere_is_refused(engine: Engine, saved: Path, tmp_path: Path) -> None:
    raw = saved.read_bytes()
    for n_bytes in (0, 1, 30, 400, len(raw) // 2, len(raw) - 100, len(raw) - 1):
        (tmp_path / "cut").write_bytes(raw[:n_bytes])
        error = refused(engine, tmp_path / "cut")
        assert type(error) is StateFileError and "not a sound saved state" in str(error)


def test_a_changed_bit_in_any_array_is_found(engine: Engine, saved: Path, tmp_path: Path) -> None:
    raw = saved.read_bytes()
    with zipfile.ZipFile(saved) as archive:
        members = archive.infolist()
    assert len(members) == 2 + 2 * TINY_SPEC.n_layers
    for member in members:
        for place in (0, member.file_size // 2, member.file_size - 1):
            start = member.header_offset + 30 + len(member.filename) + 20  # the member's own header
            assert raw[start] == (ord("{") if member.filename == "header.json" else 0x93)
            damaged = bytearray(raw)
            damaged[start + place] ^= 4
            (tmp_path / "damaged").write_bytes(damaged)
            error = refused(engine, tmp_path / "damaged")
            assert type(error) is StateFileError and "not a sound saved state" in str(error), (member, place)


def test_a_change_outside_of_the_arrays_is_found_or_means_nothing(engine: Engine, saved: Path, tmp_path: Path) -> None:
    raw = saved.read_bytes()
    cached = load(engine, saved)
    with zipfile.ZipFile(saved) as archive:
        second = archive.infolist()[1].header_offset
        directory = archive.start_dir
    rng = np.random.default_rng(0)
    n_found = 0
    for place in (*range(40), *range(second, second + 60), *range(directory, len(raw))):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "damaged").write_bytes(damaged)
        (event,) = run(engine, StateQuery(3, "load", tmp_path / "damaged"))
        if isinstance(event, StateAnswer):
            assert event.token_ids == cached
        else:
            assert isinstance(event, Failed) and type(event.error) is StateFileError
            n_found += 1
    assert n_found > 100


def rewritten(saved: Path, target: Path, arrays: dict[str, Any] | None = None, **fields: Any) -> Path:
    """The same state with other fields in its header and other arrays, and right checksums."""
    with np.load(saved) as found:
        changed = {name: found[name] for name in found.files if name != "header.json"} | (arrays or {})
        header = json.loads(found["header.json"]) | fields
    with state_file.writing(target) as file:
        file.header(header)
        for name, array in changed.items():
            file.array(name, array)
    return target


def test_what_another_program_or_version_wrote_is_refused(engine: Engine, saved: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "foreign.npz", x=np.zeros(3))
    assert "not a sound saved state" in str(refused(engine, tmp_path / "foreign.npz"))
    assert "vkllm did not write it" in str(refused(engine, rewritten(saved, tmp_path / "a", format="other")))
    for fields in ({"version": 2}, {"version": None}, {"block_tokens": 16}):
        error = refused(engine, rewritten(saved, tmp_path / "b", **fields))
        assert type(error) is StateFileError and "another version of vkllm" in str(error)


@pytest.mark.parametrize("n_tokens", [0, -1, 1.5, "many", None, [3]])
def test_a_length_that_is_none_is_refused(engine: Engine, saved: Path, tmp_path: Path, n_tokens: Any) -> None:
    error = refused(engine, rewritten(saved, tmp_path / "odd", n_tokens=n_tokens))
    assert type(error) is StateFileError and f"it says that it has {n_tokens!r} tokens" in str(error)


def test_arrays_that_do_not_belong_together_are_refused(engine: Engine, saved: Path, tmp_path: Path) -> None:
    odd: list[dict[str, Any]] = [
        {"token_ids": np.zeros(3, "<u4")},
        {"token_ids": np.full(77, TINY_SPEC.n_vocab, "<u4")},
        {"keys.1": np.zeros((2, 2, 512), "<u4")},
        {"values.1": np.zeros((3, 2, 512), "<f4")},
        {"values.0": np.asfortranarray(np.zeros((3, 2, 512), "<u4"))},
    ]
    with np.load(saved) as arrays:
        assert len(arrays["token_ids"]) == 77 and arrays["keys.1"].shape == (3, 2, 512)
    for arrays_ in odd:
        error = refused(engine, rewritten(saved, tmp_path / "odd", arrays_))
        assert type(error) is StateFileError and "not a sound saved state" in str(error), arrays_


def repacked(saved: Path, target: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """The same state with other bytes in some of its members, and right checksums."""
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, members.get(name) or old.read(name))
    return target


def test_members_with_more_than_their_array_are_refused(engine: Engine, saved: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        keys = archive.read("keys.1.npy")
    assert "keys.1 is too long" in str(
        refused(engine, repacked(saved, tmp_path / "long", {"keys.1.npy": keys + b"\0"}))
    )
    error = refused(engine, repacked(saved, tmp_path / "short", {"keys.1.npy": keys[:-1]}))
    assert type(error) is StateFileError and "not a sound saved state" in str(error)


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E01])
def test_values_that_are_no_numbers_are_refused(engine: Engine, saved: Path, tmp_path: Path, bits: int) -> None:
    with np.load(saved) as arrays:
        keys = arrays["keys.1"]
    keys[1, 0, 5] = bits << 16
    error = refused(engine, rewritten(saved, tmp_path / "odd", {"keys.1": keys}))
    assert type(error) is StateFileError and "keys.1 has a number that is not finite" in str(error)


def test_scales_that_are_no_numbers_are_refused(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(("q8_0", "q8_0"))
    answer(engine, PROMPT)
    save(engine, tmp_path / "saved")
    with np.load(tmp_path / "saved") as arrays:
        values = arrays["values.0"]
    odd = values.copy()
    odd[0, 1, -1] = 0x7FC00000
    error = refused(engine, rewritten(tmp_path / "saved", tmp_path / "odd", {"values.0": odd}))
    assert type(error) is StateFileError and "values.0 has a number that is not finite" in str(error)
    values[:, :, 0] = 0x7FC00000  # four signed bytes: any bits are values
    assert load(engine, rewritten(tmp_path / "saved", tmp_path / "bytes", {"values.0": values}))[:70] == PROMPT


def test_a_long_directory_is_not_read(engine: Engine, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(saved.read_bytes())
    with zipfile.ZipFile(tmp_path / "long", "a") as archive:
        for number in range(state_file.MAX_READ_BYTES // 60_000 + 1):
            archive.writestr(f"{number:060000}", b"")
    error = refused(engine, tmp_path / "long")
    assert type(error) is StateFileError and "its directory is too long" in str(error)


def test_what_is_no_file_is_not_waited_for(engine: Engine, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "the state cannot be read (it is not a file)" in str(refused(engine, tmp_path / "pipe"))


def test_headers_that_are_none_are_refused(engine: Engine, saved: Path, tmp_path: Path) -> None:
    for header, reason in (
        (b"[]", "its header is not an object"),
        (b"no JSON", "Expecting value"),
        (b"\xff\xfe", "not a sound saved state"),
        (b"[" * 60000, "not a sound saved state"),
        (b" " * 70000, "its header is too long"),
    ):
        error = refused(engine, repacked(saved, tmp_path / "odd", {"header.json": header}))
        assert type(error) is StateFileError and reason in str(error)


def test_compressed_members_are_not_read(engine: Engine, saved: Path, tmp_path: Path) -> None:
    error = refused(engine, repacked(saved, tmp_path / "small", {}, zipfile.ZIP_DEFLATED))
    assert type(error) is StateFileError and "is compressed" in str(error)


def test_pickles_are_not_read(engine: Engine, saved: Path, tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([Trap()], object), allow_pickle=True)
    error = refused(engine, repacked(saved, tmp_path / "pickled", {"token_ids.npy": stream.getvalue()}))
    assert "another shape or type" in str(error) and not Trap.was_sprung


class Trap:
    """What a pickle could do."""

    was_sprung = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (Trap, "was_sprung", True))


def test_another_models_state_is_refused(make_engine: MakeEngine, engine: Engine, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "same name").mkdir()
    alike = write_random_model(tmp_path / "same name" / "model.gguf", TINY_SPEC, FORMATS, seed=1)
    other = write_random_model(tmp_path / "other.gguf", TINY_SPEC, FORMATS | {"ffn_up": "Q4_0"})
    error = refused(make_engine(path=alike), saved)
    assert type(error) is StateFileError and "saved with another file of that name" in str(error)
    error = refused(make_engine(path=other), saved)
    assert "saved with 'model.gguf', and the loaded model is 'other.gguf'" in str(error)


def test_a_moved_model_file_keeps_its_states(make_engine: MakeEngine, model: Path, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "renamed.gguf").write_bytes(model.read_bytes())
    assert load(make_engine(path=tmp_path / "renamed.gguf"), saved)[:70] == PROMPT


def test_a_model_file_that_is_gone_is_told(make_engine: MakeEngine, model: Path, tmp_path: Path) -> None:
    (tmp_path / "gone.gguf").write_bytes(model.read_bytes())
    engine = make_engine(path=tmp_path / "gone.gguf")
    answer(engine, PROMPT)
    (tmp_path / "gone.gguf").unlink()
    error = error_of(engine, "save", tmp_path / "state")
    assert type(error) is StateFileError and "can no longer be read (No such file" in str(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("types", [("q8_0", "f16"), ("f16", "q8_0"), ("q8_0", "q8_0")])
def test_other_cache_types_are_refused(make_engine: MakeEngine, saved: Path, types: tuple[str, str]) -> None:
    error = refused(make_engine(types), saved)
    assert type(error) is StateFileError
    assert f"cached as f16 and f16, those of the loaded model are {types[0]} and {types[1]}" in str(error)


def test_a_state_longer_than_the_context_is_refused_with_both_numbers(make_engine: MakeEngine, saved: Path) -> None:
    assert len(load(make_engine(n_ctx=77), saved)) == 77
    error = refused(make_engine(n_ctx=76), saved)
    assert type(error) is ContextOverflow and "77 tokens" in str(error) and "holds 76" in str(error)


def test_a_file_that_is_not_there_or_no_file_is_refused(engine: Engine, tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in str(refused(engine, tmp_path / "none"))
    assert "cannot be read (Is a directory)" in str(refused(engine, tmp_path))


def test_no_memory_to_read_a_state_leaves_what_is_cached(
    engine: Engine, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = answer(engine, PROMPT[:40])
    buffer = Device.buffer

    def full(self: Device, n_words: int, **options: Any) -> Any:
        if options.get("tier") == "readback":
            raise OutOfDeviceMemory("no room")
        return buffer(self, n_words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Device, "buffer", full)
        assert type(error_of(engine, "load", saved)) is OutOfDeviceMemory
    assert answer(engine, PROMPT[:40]) == (expected, 39)
