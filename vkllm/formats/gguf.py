"""GGUF files, memory-mapped: typed metadata and the table of tensors.

Knows how a GGUF (version 2 or 3, little-endian) is laid out and every way it can be damaged. Does not know what
an architecture or a tokenizer needs from it, nor how a block format is decoded (formats/quants.py). Reading is
done by `gguf.GGUFReader`; `_Reader` below makes it quick for vocabularies and safe for damaged files. The format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import enum
import itertools
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType, ReaderField

from vkllm.errors import ModelFileError, ModelNotFound, UnsupportedModel

# No real model comes near these; damaged counts and lengths do, and would cost minutes or gigabytes.
MAX_FIELDS = 1 << 15
MAX_TENSORS = 1 << 15
MAX_STRING_BYTES = 1 << 24
MAX_STRINGS = 1 << 22
MAX_DIMENSIONS = 4

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
_HEADER = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of fields

D = TypeVar("D")


class _Required(enum.Enum):
    REQUIRED = enum.auto()


REQUIRED = _Required.REQUIRED
"""The default of a typed read that has none: a missing key is an error."""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in its file.

    `shape` is in numpy order (rows, columns), in elements; `format` is GGML's name ("Q4_1", "F32");
    `offset` and `n_bytes` are bytes from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    offset: int
    n_bytes: int


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
        """A truth value; `default` where the key is missing."""
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

    def integers(self, key: str) -> list[int]:
        """An array of integers of any width."""
        integers: list[int] = self._value(key, _INTEGERS, is_array=True).tolist()
        return integers

    def numbers(self, key: str) -> list[float]:
        """An array of floats or integers, as floats."""
        return [float(value) for value in self._value(key, _NUMBERS, is_array=True).tolist()]

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


class ModelFile:
    """An open GGUF: `path`, `metadata`, `tensors` by name, and views of their raw bytes."""

    def __init__(
        self, path: Path, metadata: Metadata, tensors: dict[str, TensorInfo], data: npt.NDArray[np.uint8]
    ) -> None:
        self.path = path
        self.metadata = metadata
        self.tensors = tensors
        self._data = data

    @classmethod
    def open(cls, path: Path | str) -> ModelFile:
        """Maps the file and reads its header; tensor data is not touched.

        Raises ModelNotFound (no such file), ModelFileError (not a GGUF, damaged or truncated) or UnsupportedModel
        (one part of a split model; a tensor of a type that this version does not know).
        """
        path = Path(path)
        try:
            _check_header(path)
            reader = _Reader(path)
            tensors = _tensor_table(path, reader)
        except FileNotFoundError:
            raise ModelNotFound(f"{path}: no such file; check the path.") from None
        except (_Malformed, OSError, ValueError, LookupError, OverflowError) as error:
            # The gguf package reports damage as whatever its parsing ran into.
            raise ModelFileError(f"{path}: not a sound GGUF: {_problem(error)}; download the file again.") from error
        fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        metadata = Metadata(path, fields)
        if "split.count" in metadata and metadata.integer("split.count") > 1:
            raise UnsupportedModel(
                f"{path}: one of {metadata.integer('split.count')} parts of a split model, which vkllm cannot run; "
                "join them with llama-gguf-split --merge."
            )
        return cls(path, metadata, tensors, reader.data)

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of a tensor: uint8 view [n_bytes] of the memory map, read-only."""
        if name not in self.tensors:
            raise ModelFileError(f"{self.path}: the model has no tensor {name!r}; download the file again.")
        info = self.tensors[name]
        return self._data[info.offset : info.offset + info.n_bytes]


def map_tensor(path: Path, info: TensorInfo) -> npt.NDArray[np.uint8]:
    """The bytes of one tensor of a file that was opened before: uint8 memory map [n_bytes], read-only."""
    try:
        return np.memmap(path, np.uint8, mode="r", offset=info.offset, shape=(info.n_bytes,))
    except (OSError, ValueError) as error:
        raise ModelFileError(
            f"{path}: tensor {info.name!r} can no longer be read ({error}); was the file moved or changed?"
        ) from error


class _Malformed(Exception):
    """What is wrong with a header, without the file's name."""


class _Reader(GGUFReader):
    """GGUFReader that refuses reads past the end and absurd lengths, takes arrays as one view, and leaves the tensors'
    data alone: `tensor_fields` holds their entries of the header.

    A field's value is always its last part. For an array of strings that is the run of (length, bytes) pairs.
    """

    tensor_fields: list[ReaderField]

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> npt.NDArray[Any]:
        if offset + np.dtype(dtype).itemsize * int(count) > self.data.size:
            raise _Malformed(f"it ends inside its header, at {self.data.size} bytes")
        return super()._get(offset, dtype, count, override_order)

    def _get_str(self, offset: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
        length = self._get(offset, np.uint64)
        if length[0] > MAX_STRING_BYTES:
            raise _Malformed(f"its header has a string of {length[0]} bytes at byte {offset}")
        return length, self._get(offset + 8, np.uint8, int(length[0]))

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[npt.NDArray[Any]], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        item_type = GGUFValueType(int(self._get(orig_offs, np.uint32)[0]))
        count = int(self._get(orig_offs + 4, np.uint64)[0])
        start = orig_offs + 12
        if item_type is GGUFValueType.ARRAY:
            raise _Malformed(f"its header has an array of arrays at byte {orig_offs}")
        if item_type is GGUFValueType.STRING:
            items = self._get(start, np.uint8, self._strings_end(start, count) - start)
        else:
            items = self._get(start, self.gguf_scalar_to_np[item_type], count)
        return 12 + items.nbytes, [items], [0], [GGUFValueType.ARRAY, item_type]

    def _strings_end(self, offset: int, count: int) -> int:
        """The offset behind `count` strings; a plain loop, since a vocabulary has some 400,000 of them."""
        if count > MAX_STRINGS:
            raise _Malformed(f"its header has an array of {count} strings at byte {offset}")
        data = self.data.data
        length_at = _LENGTH.unpack_from
        try:
            for _ in range(count):
                offset += 8 + length_at(data, offset)[0]
        except struct.error:
            raise _Malformed(f"it ends inside its header, at {self.data.size} bytes") from None
        return offset

    def _get_tensor_info_field(self, orig_offs: int) -> ReaderField:
        name_length, _ = self._get_str(orig_offs)
        dims_offs = orig_offs + 8 + int(name_length[0])
        n_dims = int(self._get(dims_offs, np.uint32)[0])
        if not 1 <= n_dims <= MAX_DIMENSIONS:
            raise _Malformed(f"its header has a tensor of {n_dims} dimensions at byte {orig_offs}")
        return super()._get_tensor_info_field(orig_offs)

    def _build_tensors(self, start_offs: int, fields: list[ReaderField]) -> None:
        self.tensor_fields = fields


def _check_header(path: Path) -> None:
    """Raises _Malformed for what GGUFReader would read wrongly or report badly."""
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if header[:4] != b"GGUF":
        raise _Malformed("it does not begin with the letters GGUF")
    if len(header) < _HEADER.size:
        raise _Malformed(f"it ends inside its header, at {len(header)} bytes")
    _, version, n_tensors, n_fields = _HEADER.unpack(header)
    if version & 0xFFFF == 0:
        raise _Malformed("it is big-endian, and vkllm reads little-endian files")
    if version not in (2, 3):
        raise _Malformed(f"it has version {version}, and vkllm reads versions 2 and 3")
    if n_tensors > MAX_TENSORS or n_fields > MAX_FIELDS:
        raise _Malformed(f"its header counts {n_tensors} tensors and {n_fields} metadata fields")


def _tensor_table(path: Path, reader: _Reader) -> dict[str, TensorInfo]:
    """The tensors in the order of the header, each checked against the file's size, its format and the others."""
    tensors: dict[str, TensorInfo] = {}
    for field in reader.tensor_fields:
        if field.name in tensors:
            raise _Malformed(f"two tensors have the name {field.name!r}")
        tensors[field.name] = _tensor_info(path, reader, field)
    in_place = sorted(tensors.values(), key=lambda tensor: tensor.offset)
    for before, after in itertools.pairwise(in_place):
        if before.offset + before.n_bytes > after.offset:
            raise _Malformed(f"the tensors {before.name!r} and {after.name!r} overlap")
    return tensors


def _tensor_info(path: Path, reader: _Reader, field: ReaderField) -> TensorInfo:
    _, _, _, dims, raw_type, raw_offset = field.parts
    try:
        kind = GGMLQuantizationType(int(raw_type[0]))
    except ValueError:
        raise UnsupportedModel(
            f"{path}: tensor {field.name!r} has quantization type {raw_type[0]}, which vkllm does not know; "
            "take the model in another quantization."
        ) from None
    shape = tuple(int(size) for size in reversed(dims))
    n_values, values_bytes = GGML_QUANT_SIZES[kind]
    if 0 in shape or shape[-1] % n_values:
        raise _Malformed(f"tensor {field.name!r} has the shape {shape}, impossible in {kind.name}")
    n_bytes = math.prod(shape) // n_values * values_bytes
    offset = int(reader.data_offset) + int(raw_offset[0])
    if int(raw_offset[0]) % int(reader.alignment):
        raise _Malformed(f"tensor {field.name!r} begins at byte {offset}, which is not aligned")
    if offset + n_bytes > reader.data.size:
        raise _Malformed(
            f"tensor {field.name!r} reaches to byte {offset + n_bytes}, but the file ends at {reader.data.size}, "
            "cut short or damaged"
        )
    return TensorInfo(field.name, shape, kind.name, offset, n_bytes)


def _problem(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error.args[0]) if isinstance(error, KeyError) else str(error)
