"""What a model's file says that clients of a server ask for, without loading it; read once for each file."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

from vkllm.api.loading import read_text
from vkllm.errors import VkllmError
from vkllm.formats.gguf import Metadata, ModelFile, main_format
from vkllm.model.architectures import model_spec
from vkllm.model.pooling import pooling
from vkllm.text.chat import ChatTemplate
from vkllm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class FileFacts:
    """A model's file. template: of chats, the one that is used. capabilities: in ollama's words. problem: why vkllm
    cannot run it, None if it can."""

    path: Path
    title: str
    architecture: str
    n_params: int
    n_bytes: int
    quantization: str
    n_ctx_train: int
    d_model: int
    n_vocab: int
    licence: str
    template: str
    bos_token: str
    eos_token: str
    capabilities: tuple[str, ...]
    problem: str | None
    metadata: Metadata

    @property
    def size_name(self) -> str:
        """The number of parameters as people write it: "134.5M"."""
        n = self.n_params
        return f"{n / 1e9:.1f}B" if n >= 1e9 else f"{n / 1e6:.2f}M"


def file_facts(path: Path, chat_template: str | None = None) -> FileFacts:
    """The facts of a model's file. chat_template: Jinja that is used in place of the file's.

    Raises ModelNotFound, ModelFileError, UnsupportedModel.
    """
    stat = path.stat() if path.exists() else None
    return _read(path, stat and (stat.st_mtime_ns, stat.st_size), chat_template)


@functools.lru_cache(maxsize=256)
def _read(path: Path, version: tuple[int, int] | None, chat_template: str | None) -> FileFacts:
    file = ModelFile.open(path)
    metadata = file.metadata
    architecture = metadata.string("general.architecture", "unknown")
    capabilities: tuple[str, ...] = ()
    bos_token = eos_token = ""
    source = metadata.string("tokenizer.chat_template", "")
    problem = None
    try:
        spec = model_spec(metadata, file.tensors)
        tokenizer, template = read_text(path, metadata, spec)
        if chat_template is not None:
            template = ChatTemplate.of_text(chat_template, tokenizer)
        source = template.source
        capabilities = _capabilities(metadata, tokenizer, template)
        bos_token, eos_token = (
            "" if token is None else tokenizer.token_text(token) for token in (tokenizer.bos_id, tokenizer.eos_id)
        )
    except VkllmError as error:
        problem = str(error)
    return FileFacts(
        path=path,
        title=metadata.string("general.name", "") or path.stem,
        architecture=architecture,
        n_params=sum(math.prod(tensor.shape) for tensor in file.tensors.values()),
        n_bytes=sum(part.stat().st_size for part in file.paths),
        quantization=main_format(file.tensors),
        n_ctx_train=metadata.integer(f"{architecture}.context_length", 0),
        d_model=metadata.integer(f"{architecture}.embedding_length", 0),
        n_vocab=len(metadata.strings("tokenizer.ggml.tokens")) if "tokenizer.ggml.tokens" in metadata else 0,
        licence=metadata.string("general.license", ""),
        template=source,
        bos_token=bos_token,
        eos_token=eos_token,
        capabilities=capabilities,
        problem=problem,
        metadata=metadata,
    )


def _capabilities(metadata: Metadata, tokenizer: Tokenizer, template: ChatTemplate) -> tuple[str, ...]:
    """What a model can do, in ollama's words."""
    makes_embeddings = f"{metadata.string('general.architecture')}.pooling_type" in metadata
    if makes_embeddings and pooling(metadata) not in ("rank", None):
        return ("embedding",)
    return (
        "completion",
        *(("tools",) if template.takes_tools else ()),
        *(("thinking",) if template.answers.tags is not None or template.answers.is_harmony else ()),
        *(("insert",) if {"fim_pre", "fim_suf", "fim_mid"} <= tokenizer.code_marks.keys() else ()),
    )
