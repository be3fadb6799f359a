"""Which of several files is the model that is meant: quantizations in their names, and files that are no models."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vkllm.errors import ModelNotFound, UnsupportedModel
from vkllm.formats.quants import FORMATS
from vkllm.formats.splits import n_parts, part_names, stem

_QUANTIZATION = re.compile(
    r"(?<![A-Za-z0-9])((?:UD[-_])?(?:(?:I|T)?Q\d\w*|(?:MX|NV)FP\d\w*|BF16|FP?16|FP?32))(?![A-Za-z0-9])", re.IGNORECASE
)
_MIXES = ("Q8_K", "IQ2_M", "IQ3_XS", "IQ3_M")
"""Beginnings of names of mixes of formats that are named after none of them: UD-Q8_K_XL is mostly Q8_0."""
_READABLE = re.compile(rf"(?:UD-)?(?:{'|'.join((*FORMATS, *_MIXES))})(?:_[A-Z]+)?")
_PREFERRED = ("Q4_K_M", "Q4_0")

_NEVER_MODELS = re.compile(r".*mmproj|.*imatrix|ggml-vocab|vocab\.gguf|mtp-|.*vocab-only", re.IGNORECASE)
"""Names of files beside models: image projectors, importance matrices, vocabularies, heads that predict more tokens."""
_SELDOM_MODELS = re.compile(
    r"(?<![a-z0-9])(mtp|assistant|draft|eagle\d?|dflash|lora|adapter|vocab|control-vector)(?![a-z0-9])", re.IGNORECASE
)
"""Words in names of files that count as models only if there is no other."""


def quantization_of(file: str) -> str | None:
    """What a file's name says about its quantization, such as "Q4_K_M" or "UD-Q4_K_XL"; else its folder's name."""
    for name in reversed(stem(file).split("/")):
        labels: list[str] = _QUANTIZATION.findall(name)
        if labels:
            return re.sub("^FP", "F", labels[-1].upper()).replace("UD_", "UD-")
    return None


def choose(name: str, files: Iterable[str], quantization: str | None) -> str:
    """The file, or the first part, that is meant in a repository. Raises ModelNotFound, UnsupportedModel.

    name: as the user gave it, for errors. quantization: what it asks for, such as "q4_k_m" or "UD-Q4_K_XL".
    """
    files = list(files)
    if quantization is not None and not _is_readable(f".{quantization}"):
        raise UnsupportedModel(
            f"{name}: vkllm does not run {quantization}; take one of {', '.join(FORMATS)}, or a kind like Q4_K_M."
        )
    chosen = candidates(files, quantization)
    if len(chosen) == 1:
        return chosen[0]
    models = [file for file in whole_models(files) if _is_readable(file)]
    if not models:
        raise ModelNotFound(f"{name}: this repository has no GGUF files that vkllm runs; look for one with GGUF.")
    repo = name.rpartition(":")[0] if quantization else name
    problem = f"there is no {quantization}" if quantization and not chosen else "there are several models"
    labels = [quantization_of(file) for file in models]
    label = next((label for label in labels if label is not None and labels.count(label) == 1), None)
    bare = re.sub("^.*(hf:|hf.co/|huggingface.co/)", "", repo).strip("/")
    example = f"{repo}:{label}" if label else f"hf:{bare}/{models[0]}"
    raise ModelNotFound(f"{name}: {problem} among {', '.join(models)}; name one, as in {example}.")


def candidates(files: Iterable[str], quantization: str | None) -> list[str]:
    """The models that a quantization names, or the usual choice without one."""
    models = whole_models(files)
    if quantization is None:
        labels = {file: quantization_of(file) for file in models}
        preferred = ([file for file in models if labels[file] == label] for label in _PREFERRED)
        return without_seldom(next(filter(None, preferred), models))
    wish = re.sub("^FP", "F", quantization.upper()).replace("UD_", "UD-")
    if wish == quantization_of(wish):
        labelled = ([file for file in models if quantization_of(file) == label] for label in (wish, f"UD-{wish}"))
        return without_seldom(next(filter(None, labelled), []))
    # Anything else is a file's name or a part of it, as in ollama and llama.cpp.
    part = re.compile(rf"(?<![a-z0-9]){re.escape(quantization.removesuffix('.gguf'))}(?![a-z0-9_])", re.IGNORECASE)
    found = [file for file in models if part.search(stem(file))]
    return [file for file in found if file.rpartition("/")[2] == quantization] or without_seldom(found)


def without_seldom(files: list[str]) -> list[str]:
    """The files without those that are probably no models, unless none would be left."""
    return [file for file in files if not _SELDOM_MODELS.search(file.rpartition("/")[2])] or files


def whole_models(files: Iterable[str]) -> list[str]:
    """The models among files, by their only file or their first part; models with a missing part are left out.

    Files beside models, which no text model can be started from, do not count.
    """
    here = set(files)
    whole = (file for file in here if n_parts(file) <= len(here))  # a name may claim 99,999
    models = [file for file in whole if (parts := part_names(file))[0] == file and here.issuperset(parts)]
    return sorted(file for file in models if may_be_model(file))


def may_be_model(file: str) -> bool:
    """Whether a file may be a text model, by its name."""
    return _NEVER_MODELS.match(file.rpartition("/")[2]) is None


def _is_readable(file: str) -> bool:
    """Whether vkllm may be able to run a file, by its name: Q5_K_M is mostly Q5_K."""
    quantization = quantization_of(file)
    return quantization is None or _READABLE.fullmatch(quantization) is not None
