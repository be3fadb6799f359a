"""Parameters as callers give them: names that are not known are refused with the nearest one, numbers become plain.

Every part that takes options uses these, so that the same mistake gets the same sentence everywhere.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from functools import wraps
from numbers import Integral, Real
from typing import Any, TypeVar, cast

from vkllm.errors import InvalidParameter

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
ClassT = TypeVar("ClassT", bound=type[Any])

_ELSEWHERE = {
    "cache_type_k": ("type_k",),
    "cache_type_v": ("type_v",),
    "context_length": ("n_ctx", "num_ctx"),
    "ctx_size": ("n_ctx", "num_ctx"),
    "gpu_layers": ("n_gpu_layers", "num_gpu"),
    "guided_json": ("json_schema",),
    "guided_regex": ("regex",),
    "kv_cache_dtype": ("type_k",),
    "max_completion_tokens": ("max_tokens",),
    "max_gen_len": ("max_tokens",),
    "max_model_len": ("n_ctx", "num_ctx"),
    "max_new_tokens": ("max_tokens",),
    "model_path": ("model",),
    "n_ctx": ("num_ctx",),
    "n_gpu_layers": ("num_gpu",),
    "max_num_seqs": ("n_parallel",),
    "n_predict": ("max_tokens",),
    "num_parallel": ("n_parallel",),
    "num_ctx": ("n_ctx",),
    "num_gpu": ("n_gpu_layers",),
    "num_predict": ("max_tokens",),
    "penalty_last_n": ("penalty_window",),
    "repeat_last_n": ("penalty_window",),
    "repeat_penalty": ("repeat_penalty", "repetition_penalty"),
    "repetition_penalty": ("repetition_penalty", "repeat_penalty"),
    "response_format": ("response_format", "json_schema"),
    "schema": ("json_schema",),
    "stop_sequences": ("stop",),
    "temp": ("temperature",),
}
"""What other libraries and programs call a parameter, and what it is called here."""


def checks_names(*options: type[Any]) -> Callable[[FunctionT], FunctionT]:
    """Makes a function refuse keyword arguments that it does not know, by InvalidParameter with the nearest name, and
    arguments without a name where it has a parameter by that name only.

    options: the TypedDicts whose keys it takes besides its own parameters.
    """

    def decorate(function: FunctionT) -> FunctionT:
        parameters = inspect.signature(function).parameters.values()
        known = {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
        known -= {"self", "cls"}
        known.update(*(each.__annotations__ for each in options))
        placed = [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
        keywords = [parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
        keywords.sort(key=lambda parameter: parameter.default is not parameter.empty)
        named = [
            *(parameter.name for parameter in keywords),
            *(key for each in options for key in each.__annotations__),
        ]

        def check(args: Sequence[Any], kwargs: dict[str, Any]) -> None:
            if named and len(args) > len(placed):
                raise _no_name(function, [name for name in placed if name != "self"], named[0])
            check_names(kwargs, known)

        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                check(args, kwargs)
                return await function(*args, **kwargs)

            return cast(FunctionT, awaited)

        @wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            check(args, kwargs)
            return function(*args, **kwargs)

        return cast(FunctionT, checked)

    return decorate


def checks_fields(made: ClassT) -> ClassT:
    """Makes a dataclass refuse names that are not its fields, as `checks_names` does."""
    setattr(made, "__init__", checks_names()(made.__init__))  # noqa: B010  (mypy forbids the assignment)
    return made


def _no_name(function: Callable[..., Any], placed: Sequence[str], named: str) -> InvalidParameter:
    owner, _, method = function.__qualname__.rpartition(".")
    name = {"__init__": owner, "__call__": owner.lower()}.get(method, method)
    taken = f"only {' and '.join(placed)}" if placed else "nothing"
    return InvalidParameter(f"{name} takes {taken} without a name; name the others, as in {name}({named}=...)")


def check_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Raises InvalidParameter for the first name that is not known, with the nearest one that is."""
    names = sorted(known)
    for name in given:
        if name not in names:
            near = nearest_name(name, names)
            advice = f"did you mean {near}?" if near else "docs/embed.md says which there are"
            raise InvalidParameter(f"{name} is no parameter that vkllm knows; {advice}")


def nearest_name(name: str, names: Sequence[str]) -> str | None:
    """Which of these names is meant by another one, because it is called so elsewhere or is mistyped; None if none."""
    same = [other for other in _ELSEWHERE.get(name, ()) if other in names]
    return next(iter(same or get_close_matches(name.lower(), names, 1)), None)


def one_device(name: str, value: Any) -> str | None:
    """The device that a parameter or option names: its index or a part of its name, None if it is None.

    llama.cpp's names, such as Vulkan0, are indices. Raises InvalidParameter, also for what names several devices or
    none.
    """
    if value is None:
        return None
    if not isinstance(value, str | Integral) or isinstance(value, bool):
        raise InvalidParameter(f"{name} must be an index or a part of a name, not {value!r}")
    text = str(value).strip()
    if not text or re.fullmatch(r"[A-Za-z]*\d*(\s*[,;/]\s*[A-Za-z]*\d*)+", text):
        raise InvalidParameter(
            f"{name} takes one device here, as its index or a part of its name (`vkllm devices` lists them), not "
            f"{value!r}"
        )
    return re.sub(r"^Vulkan(?=\d+$)", "", text)


def named_devices(name: str, value: Any) -> tuple[str, ...]:
    """The devices that a parameter or option names, in order: one, or several with commas between them or in a list.

    None names none. One device may be named more than once. Raises InvalidParameter.
    """
    if value is None:
        return ()
    if isinstance(value, list | tuple):
        if not value:
            raise InvalidParameter(f"{name} must name a device, not be an empty list")
        if any(each is None for each in value):
            raise InvalidParameter(f"{name} must name devices, and one of {list(value)!r} is None")
        return tuple(device for each in value for device in named_devices(name, each))
    if not isinstance(value, str):
        return (one_device(name, value) or "",)
    texts = [text.strip() for text in re.split(r",(?![^(]*\))", value)]  # names have commas in parentheses
    if not all(texts) or any(re.fullmatch(r"[A-Za-z]*\d*(\s*[;/]\s*[A-Za-z]*\d*)+", text) for text in texts):
        raise InvalidParameter(
            f"{name} takes devices as their indices or parts of their names, with commas between them (`vkllm devices` "
            f"lists them), not {value!r}"
        )
    return tuple(re.sub(r"^Vulkan(?=\d+$)", "", text) for text in texts)


def number(name: str, value: Any, low: float, high: float, *, also: str = "") -> float:
    """The value as a float or int. also: what else may be given, for the sentence. Raises InvalidParameter.

    numpy's numbers are numbers too; True and False are not, nor is NaN.
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        plain = int(value) if isinstance(value, int) else float(value)
        if not math.isnan(plain) and low <= plain <= high:
            return plain
    raise InvalidParameter(f"{name} must be a number between {low} and {high}{also}, not {value!r}")


def whole_number(name: str, value: Any, low: int, high: int | None = None, *, also: str = "") -> int:
    """The value as an int, which 16.0 and numpy's integers are too. Raises InvalidParameter as `number` does."""
    if isinstance(value, Real) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):  # NaN and infinity are no integers
            exact = int(value)  # type: ignore[call-overload]  # every Real has __trunc__
            if exact == value and low <= exact and (high is None or exact <= high):
                return int(exact)
    range_ = f"of at least {low}" if high is None else f"between {low} and {high}"
    raise InvalidParameter(f"{name} must be a whole number {range_}{also}, not {value!r}")


def truth(name: str, value: Any) -> bool:
    """The value as True or False; the text "false" is neither. Raises InvalidParameter."""
    if type(value).__name__ in ("bool", "bool_") or (isinstance(value, int) and value in (0, 1)):  # numpy's too
        return bool(value)
    raise InvalidParameter(f"{name} must be True or False, not {value!r}")
