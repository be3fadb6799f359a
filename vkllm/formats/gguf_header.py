"""The header of one GGUF file: key/value fields and the table of tensors, with everything that can be wrong with them.

Knows how a GGUF (version 2 or 3, little-endian) is laid out. Does not know what the fields mean, nor that a model may
consist of several files (formats/gguf.py). Reading is done by `gguf.GGUFReader`; `Reader` below makes it quick for
vocabularies and safe for damaged files. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType, ReaderField

from vkllm.errors import UnsupportedModel

# No real model comes near these; damaged counts and lengths exceed them, and would cost minutes or gigabytes.
MAX_FIELDS = 1 << 15
MAX_TENSORS = 1 << 15
MAX_STRING_BYTES = 1 << 24
MAX_STRINGS = 1 << 22
MAX_DIMENSIONS = 4

_LENGTH = struct.Struct("<Q")
_HEADER = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of fields


@dataclass(frozen=True)
class Excerpt:
    """Which rows and columns of a tensor in the file make a smaller one, in order; of experts, the rows of all are
    counted. n_columns: of the file's rows. Columns begin and end at blocks of the format. A range below 0 is as many
    zeros, which the file does not have."""

    n_columns: int
    rows: tuple[range, ...]
    columns: tuple[range, ...]

    @property
    def has_whole_rows(self) -> bool:
        """Whether it has all columns."""
        return self.columns == (range(self.n_columns),)


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in its file.

    `shape` is in numpy order (rows, columns), in elements; `format` is GGML's name ("Q4_1", "F32");
    `offset` and `n_bytes` are bytes from the start of the file. `path` is the tensor's file if the model is split into
    several, else None. `excerpt`: which part of the file's tensor it is; `shape` and `n_bytes` are then the part's,
    `offset` the whole tensor's.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    offset: int
    n_bytes: int
    path: Path | None = None
    excerpt: Excerpt | None = None

    @property
    def n_columns(self) -> int:
        """Columns of it as a matrix."""
        return self.shape[-1]

    @property
    def n_rows(self) -> int:
        """Rows of it as a matrix: those of all experts, one below the other, or one row."""
        return math.prod(self.shape[:-1])


class Malformed(Exception):
    """What is wrong with a header, without the file's name."""


class Truncated(Malformed):
    """The file ends inside its header."""

    def __init__(self, n_bytes: int) -> None:
        super().__init__(f"it ends inside its header, at {n_bytes} bytes")


class Reader(GGUFReader):
    """GGUFReader that refuses reads past the end and absurd lengths, takes arrays as one view, and leaves the tensors'
    data alone: `tensor_fields` holds their entries of the header.

    A field's value is always its last part. For an array of strings that is the run of (length, bytes) pairs. The part
    before the value of an array is how many items it has.
    """

    tensor_fields: list[ReaderField]

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> npt.NDArray[Any]:
        if offset + np.dtype(dtype).itemsize * int(count) > self.data.size:
            raise Truncated(self.data.size)
        return super()._get(offset, dtype, count, override_order)

    def _get_str(self, offset: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
        length = self._get(offset, np.uint64)
        if length[0] > MAX_STRING_BYTES:
            raise Malformed(f"its header has a string of {length[0]} bytes at byte {offset}")
        return length, self._get(offset + 8, np.uint8, int(length[0]))

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[npt.NDArray[Any]], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        item_type = GGUFValueType(int(self._get(orig_offs, np.uint32)[0]))
        counts = self._get(orig_offs + 4, np.uint64)
        count = int(counts[0])
        start = orig_offs + 12
        if item_type is GGUFValueType.ARRAY:
            raise Malformed(f"its header has an array of arrays at byte {orig_offs}")
        if item_type is GGUFValueType.STRING:
            items = self._get(start, np.uint8, self._strings_end(start, count) - start)
        else:
            items = self._get(start, self.gguf_scalar_to_np[item_type], count)
        return 12 + items.nbytes, [counts, items], [1], [GGUFValueType.ARRAY, item_type]

    def _strings_end(self, offset: int, count: int) -> int:
        """The offset after `count` strings; a plain loop, since a vocabulary has some 400,000 of them."""
        if count > MAX_STRINGS:
            raise Malformed(f"its header has an array of {count} strings at byte {offset}")
        data = self.data.data
        length_at = _LENGTH.unpack_from
        try:
            for _ in range(count):
                offset += 8 + length_at(data, offset)[0]
        except struct.error:
            raise Truncated(self.data.size) from None
        return offset

    def _get_tensor_info_field(self, orig_offs: int) -> ReaderField:
        name_length, _ = self._get_str(orig_offs)
        dims_offs = orig_offs + 8 + int(name_length[0])
        n_dims = int(self._get(dims_offs, np.uint32)[0])
        if not 1 <= n_dims <= MAX_DIMENSIONS:
            raise Malformed(f"its header has a tensor of {n_dims} dimensions at byte {orig_offs}")
        return super()._get_tensor_info_field(orig_offs)

    def _build_tensors(self, start_offs: int, fields: list[ReaderField]) -> None:
        self.tensor_fields = fields


def check_header(path: Path) -> None:
    """Raises Malformed for what GGUFReader would read wrongly or report badly."""
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if header[:4] != b"GGUF":
        raise Malformed("it does not begin with the letters GGUF")
    if len(header) < _HEADER.size:
        raise Truncated(len(header))
    _, version, n_tensors, n_fields = _HEADER.unpack(header)
    if version & 0xFFFF == 0:
        raise Malformed("it is big-endian, and vkllm reads little-endian files")
    if version not in (2, 3):
        raise Malformed(f"it has version {version}, and vkllm reads versions 2 and 3")
    if n_tensors > MAX_TENSORS or n_fields > MAX_FIELDS:
        raise Malformed(f"its header counts {n_tensors} tensors and {n_fields} metadata fields")


def tensor_table(path: Path, reader: Reader, file_bytes: int) -> dict[str, TensorInfo]:
    """The tensors in the order of the header, each checked against the file's size, its format and the others."""
    tensors: dict[str, TensorInfo] = {}
    for field in reader.tensor_fields:
        if field.name in tensors:
            raise Malformed(f"two tensors have the name {field.name!r}")
        tensors[field.name] = _tensor_info(path, reader, field, file_bytes)
    in_place = sorted(tensors.values(), key=lambda tensor: tensor.offset)
    for before, after in itertools.pairwise(in_place):
        if before.offset + before.n_bytes > after.offset:
            raise Malformed(f"the tensors {before.name!r} and {after.name!r} overlap")
    return tensors


def _tensor_info(path: Path, reader: Reader, field: ReaderField, file_bytes: int) -> TensorInfo:
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
        raise Malformed(f"tensor {field.name!r} has the shape {shape}, impossible in {kind.name}")
    n_bytes = math.prod(shape) // n_values * values_bytes
    offset = int(reader.data_offset) + int(raw_offset[0])
    if int(raw_offset[0]) % int(reader.alignment):
        raise Malformed(f"tensor {field.name!r} begins at byte {offset}, which is not aligned")
    if offset + n_bytes > file_bytes:
        raise Malformed(
            f"tensor {field.name!r} reaches to byte {offset + n_bytes}, but the file ends at {file_bytes}, "
            "cut short or damaged"
        )
    return TensorInfo(field.name, shape, kind.name, offset, n_bytes)
