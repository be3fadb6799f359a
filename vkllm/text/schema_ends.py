"""Whether an answer of a JSON schema can end: one that only leads back to itself, as {"$ref": "#"}, has no value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vkllm.errors import InvalidParameter
from vkllm.text.json_schema import resolved


def check_ends(schema: Mapping[str, Any]) -> None:
    """Raises InvalidParameter for a schema whose values all contain themselves, so that none of them ends.

    schema: as `prepared` returns it.
    """
    _Ends(schema).check()


class _Ends:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._ends: dict[str, bool] = {}  # whether the schema of a $ref is known to have values that end

    def check(self) -> None:
        while not self._can_end(self._root):
            known = list(self._ends.items())
            found = [ref for ref, ends in known if not ends and self._can_end(resolved(ref, self._root))]
            if not found and len(self._ends) == len(known):
                ref = next(ref for ref, ends in known if not ends)
                raise InvalidParameter(
                    f"json_schema cannot be used: no answer could end, because $ref to {ref} always leads back to "
                    "itself; leave a way out, such as null in an anyOf"
                )
            self._ends |= dict.fromkeys(found, True)

    def _can_end(self, schema: Any) -> bool:
        if not isinstance(schema, Mapping) or "const" in schema or "enum" in schema:
            return True
        if isinstance(ref := schema.get("$ref"), str) and not self._ends.setdefault(ref, False):
            return False
        if not all(map(self._can_end, _listed(schema.get("allOf")))):
            return False
        options = _listed(schema.get("anyOf"))
        if options and not any(map(self._can_end, options)):
            return False
        match schema.get("type"):
            case "object":
                return self._can_object_end(schema)
            case "array":
                return self._can_array_end(schema)
        return True

    def _can_object_end(self, schema: Mapping[str, Any]) -> bool:
        properties = schema.get("properties") or {}
        others = None if schema.get("patternProperties") else schema.get("additionalProperties")
        return all(self._can_end(properties.get(name, others)) for name in _listed(schema.get("required")))

    def _can_array_end(self, schema: Mapping[str, Any]) -> bool:
        items = schema.get("items")
        first = _listed(schema.get("prefixItems", items))
        rest = schema.get("additionalItems") if isinstance(items, Sequence) else items
        least = schema.get("minItems", 0)
        return all(map(self._can_end, first[:least])) and (least <= len(first) or self._can_end(rest))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
