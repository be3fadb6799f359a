"""The choices that were found by trying, kept in one file: for each device, driver, set of shaders and kind of model.

Entries that are damaged, outdated or for another device are ignored; then the table (`gpu/program/choices.py`) decides.
VKLLM_TUNING=off ignores everything.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vkllm.gpu.device.probe import DeviceInfo
from vkllm.gpu.program.choices import DecodeTuning, Tuning
from vkllm.gpu.tuning.space import ModelKind, is_possible
from vkllm.resources import cache_dir, shader_manifest

FORMAT = 1
"""Version of the file. A change of what a field of Tuning means takes a new one."""


@dataclass(frozen=True)
class TuningKey:
    """What a choice was found for; it is used only where all of this is equal."""

    device: str
    driver: str
    shaders: str
    model: ModelKind


@dataclass(frozen=True)
class TokenSpeeds:
    """Tokens a second: decode by the tokens in the cache, prefill by the rows of a step."""

    decode: dict[int, float]
    prefill: dict[int, float]

    def best(self, other: TokenSpeeds) -> TokenSpeeds:
        """The higher of two measurements at each place."""
        return TokenSpeeds(
            {n: max(speed, other.decode[n]) for n, speed in self.decode.items()},
            {n: max(speed, other.prefill[n]) for n, speed in self.prefill.items()},
        )


@dataclass(frozen=True)
class KeptTuning:
    """An entry of the file. before, after: speeds with the table's choice and with this one."""

    key: TuningKey
    choice: Tuning
    before: TokenSpeeds
    after: TokenSpeeds


def tuning_key(info: DeviceInfo, model: ModelKind) -> TuningKey:
    """The key of a device and a kind of model, now."""
    return TuningKey(
        f"{info.vendor_id:04x}:{info.device_id:04x} {info.name}",
        f"{info.driver_name} {info.driver_version}",
        hashlib.sha256(shader_manifest()).hexdigest()[:16],
        model,
    )


def is_off() -> bool:
    """Whether VKLLM_TUNING says to ignore the file."""
    return os.environ.get("VKLLM_TUNING", "").casefold() in ("off", "0", "no")


def tuning_path() -> Path:
    """The file."""
    return cache_dir() / "tuning.json"


def kept_choice(info: DeviceInfo, model: ModelKind) -> Tuning | None:
    """What was found for a device and a kind of model, if it can be used."""
    if is_off():
        return None
    key = tuning_key(info, model)
    return next((kept.choice for kept in kept_tunings() or () if why_ignored(kept, info, key) is None), None)


def why_ignored(kept: KeptTuning, info: DeviceInfo, key: TuningKey) -> str | None:
    """Why an entry is not used for a device and a key of it; None if it is."""
    for name, words in (
        ("device", "another device"),
        ("driver", f"another driver ({kept.key.driver})"),
        ("shaders", "other shaders"),
        ("model", "another kind of model"),
    ):
        if getattr(kept.key, name) != getattr(key, name):
            return words
    return None if is_possible(kept.choice, info, key.model) else "a value that this device cannot run"


def kept_tunings() -> list[KeptTuning] | None:
    """The entries of the file that are well-formed; None for a file that vkllm did not write."""
    try:
        content = json.loads(tuning_path().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("tunings"), list):
        return None
    return [kept for entry in content["tunings"] if (kept := _kept(entry)) is not None]


def keep(tuning: KeptTuning) -> None:
    """Writes an entry, replacing the one for the same device and kind of model. Raises OSError."""
    others = [
        kept
        for kept in kept_tunings() or ()
        if (kept.key.device, kept.key.model) != (tuning.key.device, tuning.key.model)
    ]
    _write([*others, tuning])


def forget() -> bool:
    """Removes the file; returns whether there was one. Raises OSError."""
    try:
        tuning_path().unlink()
    except FileNotFoundError:
        return False
    return True


def _write(tunings: Iterable[KeptTuning]) -> None:
    path = tuning_path()
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"format": FORMAT, "tunings": [asdict(kept) for kept in tunings]}, indent=2))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _kept(entry: Any) -> KeptTuning | None:
    """An entry of the file; None if a field is missing, unknown or of another type."""
    try:
        key, choice = dict(entry["key"]), dict(entry["choice"])
        model = _record(ModelKind, key.pop("model"))
        decode = _record(DecodeTuning, choice.pop("decode"))
        return KeptTuning(
            _record(TuningKey, key | {"model": model}),
            _record(Tuning, choice | {"decode": decode}),
            _speeds(entry["before"]),
            _speeds(entry["after"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _record(kind: type[Any], values: Any) -> Any:
    """Makes a dataclass, with every field there and of its type; a bool is not an int here. Raises TypeError."""
    if {field.name: field.type for field in fields(kind)} != {name: type(v).__name__ for name, v in values.items()}:
        raise TypeError(f"not the fields of {kind.__name__}")
    return kind(**values)


def _speeds(values: Any) -> TokenSpeeds:
    return TokenSpeeds(*({int(n): float(speed) for n, speed in values[name].items()} for name in ("decode", "prefill")))
