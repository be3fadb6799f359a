"""The kept choices: used where all is the same, ignored where anything is wrong, old or of another device."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tunings import H100, LLAMA_7B, LLAMA_8B, RADEON, kept, with_decode

from vkllm.gpu.program.choices import tuning
from vkllm.gpu.tuning import cache as tuning_cache
from vkllm.gpu.tuning.cache import forget, keep, kept_choice, kept_tunings, tuning_key, tuning_path, why_ignored


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache folder of its own, which is not there yet."""
    monkeypatch.setenv("VKLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VKLLM_TUNING")
    yield tmp_path / "cache"


def test_what_was_kept_is_used() -> None:
    assert kept_choice(H100, LLAMA_7B) is None
    entry = kept(H100, LLAMA_7B, rows=4)
    keep(entry)
    assert kept_tunings() == [entry]
    assert kept_choice(H100, LLAMA_7B) == with_decode(tuning(H100), rows=4)


def test_a_newer_choice_takes_the_place_of_the_older_and_leaves_the_others() -> None:
    others = [kept(RADEON, LLAMA_7B, rows=1), kept(H100, LLAMA_8B, rows=1)]
    for entry in (*others, kept(replace(H100, driver_version="1"), LLAMA_7B, rows=1), kept(H100, LLAMA_7B, rows=4)):
        keep(entry)
    assert kept_tunings() == [*others, kept(H100, LLAMA_7B, rows=4)]


def test_nothing_but_the_file_is_left(folder: Path) -> None:
    keep(kept(H100, LLAMA_7B))
    keep(kept(H100, LLAMA_7B, rows=4))
    assert [path.name for path in folder.iterdir()] == ["tuning.json"]


def test_a_failed_write_leaves_the_file_as_it_was(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    keep(kept(H100, LLAMA_7B, rows=4))

    def full(self: Path, text: str) -> int:
        self.write_bytes(text.encode()[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        keep(kept(H100, LLAMA_7B, rows=1))
    assert kept_tunings() == [kept(H100, LLAMA_7B, rows=4)]
    assert [path.name for path in folder.iterdir()] == ["tuning.json"]


@pytest.mark.parametrize(
    ("info", "kind", "reason"),
    [
        (replace(H100, driver_version="590.1"), LLAMA_7B, "another driver (NVIDIA 580.159.04)"),
        (replace(H100, driver_name="NVK"), LLAMA_7B, "another driver (NVIDIA 580.159.04)"),
        (replace(H100, device_id=1), LLAMA_7B, "another device"),
        (replace(H100, name="NVIDIA H100 PCIe"), LLAMA_7B, "another device"),
        (RADEON, LLAMA_7B, "another device"),
        (H100, LLAMA_8B, "another kind of model"),
        (H100, replace(LLAMA_7B, head_dim=64), "another kind of model"),
        (replace(H100, max_workgroup_invocations=256), LLAMA_7B, "a value that this device cannot run"),
    ],
)
def test_what_was_kept_for_something_else_is_ignored(info: Any, kind: Any, reason: str) -> None:
    entry = kept(H100, LLAMA_7B, rows=4)
    keep(entry)
    assert kept_choice(info, kind) is None
    assert why_ignored(entry, info, tuning_key(info, kind)) == reason


def test_what_was_kept_for_other_shaders_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = kept(H100, LLAMA_7B, rows=4)
    keep(entry)
    monkeypatch.setattr(tuning_cache, "shader_manifest", lambda: b"others")
    assert kept_choice(H100, LLAMA_7B) is None
    assert why_ignored(entry, H100, tuning_key(H100, LLAMA_7B)) == "other shaders"


@pytest.mark.parametrize("value", ["off", "OFF", "0"])
def test_the_environment_turns_it_off(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    keep(kept(H100, LLAMA_7B, rows=4))
    monkeypatch.setenv("VKLLM_TUNING", value)
    assert kept_choice(H100, LLAMA_7B) is None


DAMAGED = ["", "{", "[]", "null", "7", '{"format": 1}', '{"format": 1, "tunings": {}}', '{"format": 0, "tunings": []}']


@pytest.mark.parametrize("text", [*DAMAGED, "[" * 100_000], ids=[*DAMAGED, "deep"])
def test_a_damaged_file_is_ignored_and_written_anew(text: str, folder: Path) -> None:
    folder.mkdir()
    tuning_path().write_text(text)
    assert kept_tunings() is None and kept_choice(H100, LLAMA_7B) is None
    keep(kept(H100, LLAMA_7B, rows=4))
    assert kept_choice(H100, LLAMA_7B) is not None


def test_bytes_that_are_no_text_are_ignored(folder: Path) -> None:
    folder.mkdir()
    tuning_path().write_bytes(b"\xff\xfe{}")
    assert kept_tunings() is None and kept_choice(H100, LLAMA_7B) is None


@pytest.mark.parametrize(
    "change",
    [
        {"key": None},
        {"choice": []},
        {"choice": {}},
        {"before": {}},
        {"after": {"decode": {"zero": 1}, "prefill": {}}},
        {"choice.unknown": 1},
        {"choice.tile_rows": "2"},
        {"choice.tile_rows": 2.0},
        {"choice.tile_rows": True},
        {"choice.has_matmul": 1},
        {"choice.decode": None},
        {"choice.decode.rows": None},
        {"choice.decode.unknown": 0},
        {"key.model.head_dim": "128"},
        {"key.driver": 580},
    ],
    ids=str,
)
def test_an_entry_with_anything_wrong_is_ignored_and_the_others_are_not(change: dict[str, Any]) -> None:
    keep(kept(H100, LLAMA_7B, rows=4))
    keep(kept(H100, LLAMA_8B, rows=4))
    content = json.loads(tuning_path().read_text())
    ((path, value),) = change.items()
    *parents, name = path.split(".")
    place = content["tunings"][0]
    for parent in parents:
        place = place[parent]
    place[name] = value
    tuning_path().write_text(json.dumps(content))
    assert kept_tunings() == [kept(H100, LLAMA_8B, rows=4)]
    assert kept_choice(H100, LLAMA_7B) is None and kept_choice(H100, LLAMA_8B) is not None


@pytest.mark.parametrize("values", [{"rows": 3}, {"groups": -1}, {"size": 4096}, {"attention_groups": 10**9}], ids=str)
def test_a_value_out_of_range_is_ignored(values: dict[str, int]) -> None:
    keep(kept(H100, LLAMA_7B, **values))
    assert kept_tunings() is not None and kept_choice(H100, LLAMA_7B) is None


def test_all_is_forgotten_at_once() -> None:
    assert not forget()
    keep(kept(H100, LLAMA_7B))
    assert forget() and kept_tunings() == []
