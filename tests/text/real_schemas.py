"""Schemas that programs send for whole answers, each with an answer that is valid and one that is not."""

from __future__ import annotations

from typing import Any, NamedTuple


class Case(NamedTuple):
    name: str
    schema: dict[str, Any]
    valid: Any
    invalid: Any


def closed(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An object as OpenAI's strict mode writes it: all members are required, no others may come."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        **more,
    }


TEXT = {"type": "string"}
NUMBER = {"type": "number"}
WHOLE = {"type": "integer"}
TEXTS = {"type": "array", "items": TEXT}

OPENAI = [
    Case(
        "calendar event",
        closed({"name": TEXT, "date": TEXT, "participants": TEXTS}),
        {"name": "Fair", "date": "Friday", "participants": ["Alice", "Bob"]},
        {"name": "Fair", "date": "Friday"},
    ),
    Case(
        "research paper",
        closed({"title": TEXT, "authors": TEXTS, "abstract": TEXT, "keywords": TEXTS}),
        {"title": "T", "authors": ["A"], "abstract": "…", "keywords": []},
        {"title": "T", "authors": "A", "abstract": "", "keywords": []},
    ),
    Case(
        "user interface",
        closed(
            {
                "type": {"type": "string", "enum": ["div", "button", "header", "section", "field", "form"]},
                "label": {"type": "string", "description": "The label, used for buttons or fields"},
                "children": {"type": "array", "items": {"$ref": "#"}},
                "attributes": {"type": "array", "items": closed({"name": TEXT, "value": TEXT})},
            }
        ),
        {
            "type": "div",
            "label": "",
            "children": [{"type": "button", "label": "Go", "children": [], "attributes": []}],
            "attributes": [{"name": "class", "value": "x"}],
        },
        {"type": "span", "label": "", "children": [], "attributes": []},
    ),
    Case(
        "moderation",
        closed(
            {
                "is_violating": {"type": "boolean"},
                "category": {"type": ["string", "null"], "enum": ["violence", "sexual", "self_harm", None]},
                "explanation_if_violating": {"type": ["string", "null"]},
            }
        ),
        {"is_violating": False, "category": None, "explanation_if_violating": None},
        {"is_violating": False, "category": "spam", "explanation_if_violating": None},
    ),
    Case(
        "math steps with definitions",
        closed(
            {"steps": {"type": "array", "items": {"$ref": "#/$defs/step"}}, "final_answer": TEXT},
            **{"$defs": {"step": closed({"explanation": TEXT, "output": TEXT})}},
        ),
        {"steps": [{"explanation": "add", "output": "2"}], "final_answer": "2"},
        {"steps": [{"explanation": "add"}], "final_answer": "2"},
    ),
    Case(
        "linked list",
        closed(
            {"linked_list": {"$ref": "#/$defs/node"}},
            **{
                "$defs": {
                    "node": closed({"value": NUMBER, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}})
                }
            },
        ),
        {"linked_list": {"value": 1, "next": {"value": 2.5, "next": None}}},
        {"linked_list": {"value": 1, "next": 2}},
    ),
    Case(
        "user or address",
        closed(
            {
                "item": {
                    "anyOf": [
                        closed({"name": TEXT, "age": NUMBER}, description="The user"),
                        closed({"number": TEXT, "street": TEXT, "city": TEXT}, description="The address"),
                    ]
                }
            }
        ),
        {"item": {"number": "1", "street": "s", "city": "c"}},
        {"item": {"name": "1", "street": "s", "city": "c"}},
    ),
    Case(
        "user with pattern and format",
        closed(
            {
                "username": {"type": "string", "pattern": "^@[a-zA-Z0-9_]+$"},
                "email": {"type": "string", "format": "email"},
            }
        ),
        {"username": "@ann_1", "email": "ann@example.com"},
        {"username": "ann 1", "email": "ann@example.com"},
    ),
    Case(
        "measured values",
        closed(
            {
                "temperature": {"type": "number", "minimum": -130, "maximum": 130},
                "humidity": {"type": "integer", "minimum": 0, "maximum": 100},
            }
        ),
        {"temperature": -12.5, "humidity": 100},
        {"temperature": 131, "humidity": 50},
    ),
    Case(
        "sentiment",
        closed(
            {
                "sentiment": {"enum": ["positive", "neutral", "negative"]},
                "confidence": {"type": "number", "minimum": 0, "maximum": 1},
            }
        ),
        {"sentiment": "neutral", "confidence": 0.75},
        {"sentiment": "neutral", "confidence": 1.5},
    ),
    Case(
        "entities",
        closed(
            {
                "entities": {
                    "type": "array",
                    "items": closed({"text": TEXT, "type": {"enum": ["PER", "LOC", "ORG"]}, "start": WHOLE}),
                }
            }
        ),
        {"entities": [{"text": "Rome", "type": "LOC", "start": 0}, {"text": "Ann", "type": "PER", "start": 9}]},
        {"entities": [{"text": "Rome", "type": "CITY", "start": 0}]},
    ),
    Case(
        "invoice",
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "Invoice",
            "type": "object",
            "properties": {
                "number": {"type": "string", "minLength": 3, "maxLength": 20},
                "issued": {"type": "string", "format": "date"},
                "lines": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 50,
                    "items": closed(
                        {
                            "what": TEXT,
                            "count": {"type": "integer", "exclusiveMinimum": 0},
                            "price": {"type": "number", "multipleOf": 0.01},
                        }
                    ),
                },
                "paid": {"type": "boolean", "default": False},
            },
            "required": ["number", "issued", "lines"],
        },
        {"number": "R-17", "issued": "2024-12-31", "lines": [{"what": "pen", "count": 2, "price": 1.25}], "paid": True},
        {"number": "R-17", "issued": "2024-13-31", "lines": [{"what": "pen", "count": 2, "price": 1.25}]},
    ),
    Case("json object", {"type": "object"}, {"a": [1, {"b": None}], "c": "d"}, ["a"]),
    Case("one of some words", {"type": "string", "enum": ["yes", "no", "I don't know"]}, "I don't know", "maybe"),
    Case("a number", {"type": "integer", "minimum": 1, "maximum": 10}, 10, 11),
    Case(
        "definitions of draft 7",
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "properties": {"billing": {"$ref": "#/definitions/address"}, "shipping": {"$ref": "#/definitions/address"}},
            "required": ["billing"],
            "definitions": {
                "address": {
                    "type": "object",
                    "properties": {"street": TEXT, "country": {"const": "DE"}},
                    "required": ["street"],
                }
            },
        },
        {"billing": {"street": "a", "country": "DE"}, "shipping": {"street": "b"}},
        {"billing": {"street": "a", "country": "FR"}},
    ),
    Case(
        "all of a base and more",
        {
            "allOf": [
                {"$ref": "#/$defs/base"},
                {"type": "object", "properties": {"size": WHOLE}, "required": ["size"]},
            ],
            "$defs": {"base": {"type": "object", "properties": {"id": TEXT}, "required": ["id"]}},
        },
        {"id": "x", "size": 3},
        {"id": "x"},
    ),
    Case(
        "shapes by kind",
        {
            "oneOf": [
                closed({"kind": {"const": "circle"}, "radius": {"type": "number", "exclusiveMinimum": 0}}),
                closed({"kind": {"const": "box"}, "width": NUMBER, "height": NUMBER}),
            ]
        },
        {"kind": "box", "width": 2, "height": 0.5},
        {"kind": "circle", "width": 2, "height": 0.5},
    ),
]
