"""What clients send that asks for nothing, or in a form of their own: taken as they mean it, in every dialect.

A call from Python refuses the same values, because there they are mistakes. It knows names of fields, no dialect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_STREAM_OPTIONS = ("include_usage", "include_obfuscation")
_STOPS = ("stop", "stop_sequences")


def as_meant(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a request without these.

    Empty stop strings, which forms send for an empty field, stop nothing, as in llama-server. A negative seed is one
    like others, as random 32-bit numbers of many programs are; -1 stays a random one. Options of streams that vkllm
    does not know are ignored like other unknown fields.
    """
    made = _sampling(body)
    if isinstance(options := made.get("options"), Mapping):  # ollama's
        made["options"] = _sampling(options)
    if isinstance(options := made.get("stream_options"), Mapping):
        made["stream_options"] = {name: options[name] for name in _STREAM_OPTIONS if name in options}
    return made


def _sampling(fields: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(fields)
    for name in _STOPS:
        if (stops := made.get(name)) == "":
            del made[name]
        elif isinstance(stops, list) and "" in stops:
            made[name] = [each for each in stops if each != ""]
    seed = made.get("seed")
    if isinstance(seed, int) and -(2**63) <= seed < -1:
        made["seed"] = seed % 2**64
    return made
