"""GGUF models, memory-mapped: typed metadata and the table of tensors, of one file or of several parts.

Knows the types of metadata and how the parts of a split model belong together. Does not know how a file is laid out
(formats/gguf_header.py), what an architecture or a tokenizer needs from it, nor how a block format is decoded
(formats/quants.py).
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from gguf import GGUFValueType, ReaderField

from vkllm.errors import ModelFileError, ModelNotFound
from vkllm.formats.gguf_header import Malformed, Reader, TensorInfo, Truncated, check_header, tensor_table
from vkllm.formats.ollama_names import in_llama_cpp_s_names
from vkllm.formats.splits import part_names
from vkllm.formats.tensor_bytes import read_tensor

__all__ = [
    "Metadata",
    "ModelFile",
    "TensorInfo",
    "has_whole_header",
    "main_format",
    "no_model",
    "read_tensor",
]

_INTEGERS = frozenset(
    {
        GGUFValueType.UINT8,
        GGUFValueType.INT8,
        GGUFValueType.UINT16,
        GGUFValueType.INT16,
        GGUFValueType.UINT32,
        GGUFValueType.INT32,
        GGUFValueType.UINT64,
        GGUFValueType.INT64,
    }
)
_NUMBERS = _INTEGERS | {GGUFValueType.FLOAT32, GGUFValueType.FLOAT64}
_STRINGS = frozenset({GGUFValueType.STRING})
_BOOLEANS = frozenset({GGUFValueType.BOOL})

_LENGTH = struct.Struct("<Q")

D = TypeVar("D")

_NO_MODELS = {
    "adapter": "an adapter (LoRA), which changes another model",
    "imatrix": "an importance matrix, which quantizers read",
    "mmproj": "a projector of images or sound, which belongs to another model",
}

Plain = bool | int | float | str
"""A value of the metadata that is not an array."""


class _Required(enum.Enum):
    REQUIRED = enum.auto()


REQUIRED = _Required.REQUIRED
"""The default of a typed read that has none: a missing key is an error."""


class Metadata:
    """Typed reads over the key/value fields of one file; a missing key or a wrong type is a ModelFileError."""

    def __init__(self, path: Path, fields: dict[str, ReaderField]) -> None:
        self.path = path
        self._fields = fields

    def __contains__(self, key: str) -> bool:
        return key in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def string(self, key: str, default: D | Literal[_Required.REQUIRED] = REQUIRED) -> str | D:
        """A string; `default` where the key is missing."""
        if default is not REQUIRED and key not in self._fields:
            return default
        return self._text(key, bytes(self._value(key, _STRINGS)))

    def integer(self, key: str, default: D | Literal[_Required.REQUIRED] = REQUIRED) -> int | D:
        """An integer of any width; `default` where the key is missing."""
        if default is not REQUIRED and key not in self._fields:
            return default
        return int(self._value(key, _INTEGERS)[0])

    def number(self, key: str, default: D | Literal[_Required.REQUIRED] = REQUIRED) -> float | D:
        """A float or an integer, as float; `default` where the key is missing."""
        if default is not REQUIRED and key not in self._fields:
            return default
        return float(self._value(key, _NUMBERS)[0])

    def boolean(self, key: str, default: D | Literal[_Required.REQUIRED] = REQUIRED) -> bool | D:
        """A boolean; `default` where the key is missing."""
        if default is not REQUIRED and key not in self._fields:
            return default
        return bool(self._value(key, _BOOLEANS)[0])

    def strings(self, key: str) -> list[str]:
        """An array of strings, such as the tokens of a vocabulary."""
        body = bytes(self._value(key, _STRINGS, is_array=True))
        strings: list[str] = []
        length_at = _LENGTH.unpack_from
        end = 0
        try:
            while end < len(body):
                (length,) = length_at(body, end)
                start = end + 8
                end = start + length
                strings.append(str(body[start:end], "utf-8"))
        except UnicodeDecodeError:
            raise self._error(key, f"item {len(strings)} is not UTF-8 text") from None
        return strings

    def length(self, key: str) -> int:
        """How many strings an array of them has, without reading them."""
        self._value(key, _STRINGS, is_array=True)
        return int(self._fields[key].parts[-2][0])

    def integers(self, key: str) -> list[int]:
        """An array of integers of any width."""
        integers: list[int] = self._value(key, _INTEGERS, is_array=True).tolist()
        return integers

    def numbers(self, key: str) -> list[float]:
        """An array of floats or integers, as floats."""
        return [float(value) for value in self._value(key, _NUMBERS, is_array=True).tolist()]

    def plain(self, key: str) -> Plain | list[Plain]:
        """The value, of whatever type."""
        kinds = self._fields[key].types
        if kinds[-1] in _STRINGS:
            return list(self.strings(key)) if self.is_array(key) else self.string(key)
        values: list[Plain] = self._fields[key].parts[-1].tolist()
        return values if self.is_array(key) else values[0]

    def is_array(self, key: str) -> bool:
        """Whether the key holds an array; some keys are written as one value or as one value a layer."""
        return key in self._fields and self._fields[key].types[0] is GGUFValueType.ARRAY

    def _value(self, key: str, wanted: frozenset[GGUFValueType], *, is_array: bool = False) -> npt.NDArray[Any]:
        if key not in self._fields:
            raise self._error(key, "it is missing")
        field = self._fields[key]
        if self.is_array(key) != is_array or field.types[-1] not in wanted:
            found = " of ".join(kind.name.lower() for kind in field.types)
            names = "/".join(sorted(kind.name.lower() for kind in wanted))
            raise self._error(key, f"it is {found}, not {'array of ' if is_array else ''}{names}")
        return field.parts[-1]

    def _text(self, key: str, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self._error(key, "it is not UTF-8 text") from None

    def _error(self, key: str, problem: str) -> ModelFileError:
        return ModelFileError(
            f"{self.path}: metadata {key!r} cannot be used: {problem}; get the model from another source."
        )


@dataclass(frozen=True)
class _Part:
    """One file: a whole model, or a part of one."""

    path: Path
    metadata: Metadata
    tensors: dict[str, TensorInfo]
    data: npt.NDArray[np.uint8]


class ModelFile:
    """An open model: `path`, `metadata`, `tensors` by name, and views of their raw bytes.

    Of a model that is split over several files, `path` and `metadata` are those of the first, `paths` are all.
    """

    def __init__(self, parts: Sequence[_Part], tensors: dict[str, TensorInfo]) -> None:
        self.path = parts[0].path
        self.paths = [part.path for part in parts]
        self.metadata = parts[0].metadata
        self.tensors = tensors
        self._data = {part.path: part.data for part in parts}

    @classmethod
    def open(cls, path: Path | str, whole_bytes: Mapping[str, int] | None = None) -> ModelFile:
        """Maps the file, or all parts of the model that it is a part of, and reads headers; tensor data is not touched.

        whole_bytes: full sizes, by name, of files of which only the beginning is here; `raw` cannot be used on these.

        Raises ModelNotFound (no such file), ModelFileError (not a GGUF, damaged or truncated; a part is missing or
        belongs to another model) or UnsupportedModel (a tensor of a type that this version does not know).
        """
        whole_bytes = whole_bytes or {}
        part = _read(Path(path), whole_bytes)
        n_parts = part.metadata.integer("split.count", 1)
        if n_parts <= 1:
            return cls([part], part.tensors)
        parts = _all_parts(part, n_parts, whole_bytes)
        return cls(parts, _joined_tensors(parts))

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of a tensor: uint8 view [n_bytes] of the memory map, read-only."""
        if name not in self.tensors:
            raise ModelFileError(f"{self.path}: the model has no tensor {name!r}; download the file again.")
        info = self.tensors[name]
        return self._data[info.path or self.path][info.offset : info.offset + info.n_bytes]


def no_model(metadata: Metadata) -> str | None:
    """What a GGUF declares itself to be, if it is not a model; None for a model."""
    return _NO_MODELS.get(metadata.string("general.type", "model"))


def main_format(tensors: Mapping[str, TensorInfo]) -> str:
    """The format that holds most of a model's bytes, such as "Q4_0"; empty without tensors."""
    n_bytes: dict[str, int] = {}
    for info in tensors.values():
        n_bytes[info.format] = n_bytes.get(info.format, 0) + info.n_bytes
    return max(n_bytes, key=n_bytes.__getitem__, default="")


def has_whole_header(path: Path) -> bool:
    """Whether the beginning of a file contains its whole header, valid or not."""
    try:
        check_header(path)
        Reader(path)
    except Truncated:
        return False
    except (Malformed, OSError, ValueError, LookupError, OverflowError):
        pass
    return True


def _read(path: Path, whole_bytes: Mapping[str, int]) -> _Part:
    """Reads and checks the header of one file."""
    try:
        check_header(path)
        reader = Reader(path)
        tensors = tensor_table(path, reader, whole_bytes.get(path.name, reader.data.size))
    except FileNotFoundError:
        raise ModelNotFound(f"{path}: no such file; check the path.") from None
    except (Malformed, OSError, ValueError, LookupError, OverflowError) as error:
        # On damage, the gguf package raises whatever its parsing runs into.
        raise ModelFileError(f"{path}: not a sound GGUF: {_problem(error)}; download the file again.") from error
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    fields, tensors = in_llama_cpp_s_names(fields, tensors)
    return _Part(path, Metadata(path, fields), tensors, reader.data)


def _problem(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error.args[0]) if isinstance(error, KeyError) else str(error)


def _all_parts(given: _Part, n_parts: int, whole_bytes: Mapping[str, int]) -> list[_Part]:
    """All parts of a split model in order, each checked to be the part that its name says."""
    names = part_names(given.path.name)
    if len(names) != n_parts:
        raise ModelFileError(
            f"{given.path}: this is one of {n_parts} parts of a model, but its name does not say which; "
            f"name the parts NAME-00001-of-{n_parts:05}.gguf and so on."
        )
    n_tensors = given.metadata.integer("split.tensors.count")
    parts = []
    for number, name in enumerate(names):
        path = given.path.with_name(name)
        if not path.is_file():
            raise ModelFileError(
                f"{path}: this part of the model is missing; all {n_parts} parts have to be in one folder, "
                "so download it too."
            )
        part = given if path == given.path else _read(path, whole_bytes)
        found = tuple(part.metadata.integer(f"split.{key}", -1) for key in ("no", "count", "tensors.count"))
        if found != (number, n_parts, n_tensors):
            raise ModelFileError(
                f"{path}: this is not part {number + 1} of {n_parts} of the model in {given.path.name}; "
                "download all parts again, from one source."
            )
        parts.append(part)
    n_found = sum(len(part.tensors) for part in parts)
    if n_found != n_tensors:
        raise ModelFileError(
            f"{parts[0].path}: the {n_parts} parts hold {n_found} tensors, but the model has {n_tensors}; "
            "download all parts again, from one source."
        )
    return parts


def _joined_tensors(parts: Sequence[_Part]) -> dict[str, TensorInfo]:
    """The tensors of all parts, each with the file that it lies in."""
    tensors: dict[str, TensorInfo] = {}
    for part in parts:
        for name, info in part.tensors.items():
            if name in tensors:
                raise ModelFileError(
                    f"{part.path}: the tensor {name!r} is in another part of the model too; "
                    "download all parts again, from one source."
                )
            tensors[name] = replace(info, path=part.path)
    return tensors
