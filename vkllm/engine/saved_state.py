"""What is cached, saved to a file and restored: token ids, their keys, values and states, and the model that made them.

Knows which files fit the loaded model. How the file is laid out is formats/state_file.py's, how keys and values lie on
the device gpu/program/cached_blocks.py's. A file may come from another device: its numbers are as good as this one's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vkllm.engine.requests import EngineConfig
from vkllm.errors import ContextOverflow, InvalidParameter, StateFileError, counted
from vkllm.formats.state_file import reading, unsound, writing
from vkllm.gpu.program.cached_blocks import CachedBlocks, CachePlace
from vkllm.gpu.program.group import ProgramGroup
from vkllm.gpu.program.kernels import KV_BLOCK
from vkllm.gpu.program.program import Program

FORMAT, VERSION = "vkllm state", 1

SAMPLE_BYTES = 4096
"""Bytes of each tensor that are hashed: files of equal shapes differ in nearly every block of their weights."""


class SavedStates:
    """Saves and restores the cache of one loaded model."""

    def __init__(self, config: EngineConfig, program: Program | ProgramGroup) -> None:
        self._config = config
        self._program = program
        self._fingerprint = ""

    def save(self, path: Path, token_ids: Sequence[int], place: CachePlace) -> None:
        """Writes the keys and values of tokens, and the states of layers behind them. place: where they lie.

        Raises InvalidParameter if there are none, StateFileError, DeviceError.
        """
        if not token_ids:
            raise InvalidParameter("nothing is cached that could be saved; run a prompt first")
        header = self._header() | {"n_tokens": len(token_ids)}
        blocks = CachedBlocks(self._program, len(token_ids), place)
        with writing(path) as file:
            file.header(header)
            file.array("token_ids", np.array(token_ids, "<u4"))
            for name in (*blocks.names, *blocks.names_of_head):
                file.array(name, blocks.read(name))

    def load(self, path: Path, place_of: Callable[[Sequence[int]], CachePlace]) -> list[int]:
        """Puts what a file has into the cache; returns the tokens whose keys and values these are. place_of: where
        those of tokens are to lie.

        Raises StateFileError, ContextOverflow, DeviceError; then what lies there must not be used.
        """
        with reading(path) as file:
            n_tokens = self._checked_length(path, file.header())
            token_ids = np.zeros(n_tokens, "<u4")
            file.read_into("token_ids", token_ids)
            if token_ids.max() >= self._config.spec.n_vocab:
                raise unsound(path, f"token id {token_ids.max()} is not in the vocabulary")
            found = [int(token_id) for token_id in token_ids]
            blocks = CachedBlocks(self._program, n_tokens, place_of(found))
            for name in (*blocks.names, *blocks.names_of_head):
                is_there = name in blocks.names or file.has(name)
                try:
                    blocks.write(name, partial(file.read_into, name) if is_there else _clear)
                except ValueError as error:
                    raise unsound(path, str(error)) from error
        return found

    def _header(self) -> dict[str, str | int]:
        """What must be equal in a file that is to be loaded."""
        type_k, type_v = self._program.cache_types
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self._config.path.name,
            "fingerprint": self._model_fingerprint(),
            "type_k": type_k,
            "type_v": type_v,
            "block_tokens": KV_BLOCK,
        }

    def _checked_length(self, path: Path, found: dict[str, Any]) -> int:
        """Tokens of a file. Raises StateFileError if it does not fit the model, ContextOverflow if it is too long."""
        wanted = self._header()

        def differs(*names: str) -> bool:
            return any(found.get(name) != wanted[name] for name in names)

        if differs("format"):
            raise unsound(path, "vkllm did not write it")
        if differs("version", "block_tokens"):
            raise StateFileError(f"{path}: another version of vkllm saved this state; run the conversation again")
        if differs("fingerprint"):
            saved_by = f"with {found.get('model')!r}" if differs("model") else "with another file of that name"
            raise StateFileError(
                f"{path}: the state was saved {saved_by}, and the loaded model is {wanted['model']!r}; "
                "load the model that it was saved with"
            )
        if differs("type_k", "type_v"):
            raise StateFileError(
                f"{path}: keys and values were cached as {found.get('type_k')} and {found.get('type_v')}, those of the "
                f"loaded model are {wanted['type_k']} and {wanted['type_v']}; load it with the types of the state"
            )
        n_tokens = found.get("n_tokens")
        if not isinstance(n_tokens, int) or n_tokens < 1:
            raise unsound(path, f"it says that it has {n_tokens!r} tokens")
        if n_tokens > self._program.plan.n_ctx:
            raise ContextOverflow(
                f"{path}: the state has {counted(n_tokens, 'token')} and the context holds {self._program.plan.n_ctx}; "
                "load the model with a larger context"
            )
        return n_tokens

    def _model_fingerprint(self) -> str:
        """A hash of what a model is: its numbers, its files' sizes, its tensors and a sample of each one's bytes."""
        if not self._fingerprint:
            digest = hashlib.sha256(repr(sorted(asdict(self._config.spec).items())).encode())
            files: dict[Path, int] = {}
            try:
                for name, info in sorted(self._config.tensors.items()):
                    path = info.path or self._config.path
                    if path not in files:
                        files[path] = os.open(path, os.O_RDONLY)
                        digest.update(repr(os.fstat(files[path]).st_size).encode())
                    digest.update(repr((name, info.shape, info.format, info.offset)).encode())
                    digest.update(os.pread(files[path], min(SAMPLE_BYTES, info.n_bytes), info.offset))
            except OSError as error:
                raise StateFileError(
                    f"{path}: the model's file can no longer be read ({error.strerror}), so its states can neither be "
                    "saved nor loaded; was it moved?"
                ) from error
            finally:
                for file in files.values():
                    os.close(file)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def _clear(words: npt.NDArray[np.uint32]) -> None:
    """What a file without a head's keys and values leaves of them."""
    words.fill(0)
