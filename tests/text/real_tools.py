"""Parameters of tools as agents send them, each with arguments that are valid and some that are not."""

from __future__ import annotations

from typing import Any

from real_schemas import NUMBER, TEXT, WHOLE, Case, closed


def tool(properties: dict[str, Any], required: list[str], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, **more}


TOOLS = [
    Case(
        "get_weather",
        tool(
            {
                "location": {"type": "string", "description": "City and country, e.g. Bogotá, Colombia"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            ["location"],
        ),
        {"location": "Bogotá, Colombia", "unit": "celsius"},
        {"location": "Paris", "unit": "kelvin"},
    ),
    Case(
        "get_weather of strict mode",
        closed({"location": TEXT, "units": {"type": ["string", "null"], "enum": ["celsius", "fahrenheit", None]}}),
        {"location": "Paris", "units": None},
        {"location": "Paris", "units": "none"},
    ),
    Case(
        "send_email",
        tool(
            {
                "to": {"type": "array", "items": {"type": "string", "format": "email"}, "minItems": 1},
                "subject": {"type": "string", "maxLength": 78},
                "body": TEXT,
                "attachments": {"type": "array", "items": {"type": "string", "format": "uri"}, "default": []},
            },
            ["to", "subject", "body"],
        ),
        {"to": ["a@b.org", "c.d@e.co"], "subject": "Hi", "body": "Line\nline"},
        {"to": [], "subject": "Hi", "body": ""},
    ),
    Case(
        "search_knowledge_base",
        closed(
            {
                "query": TEXT,
                "options": closed(
                    {
                        "num_results": {"type": "number"},
                        "domain_filter": {"type": ["string", "null"]},
                        "sort_by": {"type": ["string", "null"], "enum": ["relevance", "date", "popularity", None]},
                    }
                ),
            }
        ),
        {"query": "x", "options": {"num_results": 5, "domain_filter": None, "sort_by": "date"}},
        {"query": "x", "options": {"num_results": 5, "domain_filter": None}},
    ),
    Case("no parameters", {"type": "object", "properties": {}}, {}, []),
    Case("no parameters, strictly", closed({}), {}, {"a": 1}),
    Case(
        "read_file",
        tool(
            {
                "path": TEXT,
                "offset": {"type": "integer", "minimum": 0},
                "limit": {"type": "integer", "minimum": 1, "maximum": 2000},
            },
            ["path"],
        ),
        {"path": "/tmp/a b.txt", "limit": 2000},
        {"path": "/tmp/a", "limit": 0},
    ),
    Case(
        "edit_file",
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            **tool(
                {
                    "path": TEXT,
                    "edits": {"type": "array", "items": closed({"oldText": TEXT, "newText": TEXT})},
                    "dryRun": {"type": "boolean", "default": False, "description": "Preview only"},
                },
                ["path", "edits"],
                additionalProperties=False,
            ),
        },
        {"path": "a.py", "edits": [{"oldText": 'print("a")\n', "newText": "\tb\\"}], "dryRun": True},
        {"path": "a.py", "edits": [{"oldText": "a"}]},
    ),
    Case(
        "run_command",
        tool(
            {
                "command": {"type": "array", "items": TEXT},
                "workdir": TEXT,
                "timeout_ms": NUMBER,
                "env": {"type": "object", "additionalProperties": TEXT},
            },
            ["command"],
        ),
        {"command": ["ls", "-l"], "timeout_ms": 1e3, "env": {"A": "b"}},
        {"command": ["ls"], "env": {"A": 1}},
    ),
    Case(
        "todo list",
        tool(
            {
                "todos": {
                    "type": "array",
                    "items": closed(
                        {
                            "content": {"type": "string", "minLength": 1},
                            "status": {"type": "string", "enum": ["pending", "in_progress", "completed"]},
                            "id": {"type": "string", "format": "uuid"},
                        }
                    ),
                }
            },
            ["todos"],
        ),
        {"todos": [{"content": "x", "status": "pending", "id": "123e4567-e89b-12d3-a456-426614174000"}]},
        {"todos": [{"content": "", "status": "pending", "id": "123e4567-e89b-12d3-a456-426614174000"}]},
    ),
    Case(
        "browser action by kind",
        {
            "anyOf": [
                closed({"action": {"const": "click"}, "x": WHOLE, "y": WHOLE}),
                closed({"action": {"const": "type"}, "text": TEXT}),
                closed({"action": {"const": "scroll"}, "direction": {"enum": ["up", "down"]}}),
            ]
        },
        {"action": "scroll", "direction": "up"},
        {"action": "scroll", "x": 1, "y": 2},
    ),
    Case(
        "create_issue",
        tool(
            {
                "owner": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9-]{0,38}$"},
                "repo": {"type": "string", "pattern": r"^[\w.-]+$"},
                "title": TEXT,
                "labels": {"type": "array", "items": TEXT, "maxItems": 3},
                "assignees": {"type": "array", "items": TEXT},
                "milestone": {"type": "number"},
            },
            ["owner", "repo", "title"],
        ),
        {"owner": "me", "repo": "a.b", "title": "T", "labels": ["bug"], "milestone": 4},
        {"owner": "-me", "repo": "a.b", "title": "T"},
    ),
    Case(
        "sql query",
        closed(
            {"table": {"enum": ["orders", "users"]}, "where": {"$ref": "#/$defs/filter"}},
            **{
                "$defs": {
                    "filter": {
                        "anyOf": [
                            closed(
                                {
                                    "op": {"enum": ["and", "or"]},
                                    "args": {"type": "array", "items": {"$ref": "#/$defs/filter"}},
                                }
                            ),
                            closed(
                                {
                                    "column": TEXT,
                                    "op": {"enum": ["=", "<", ">"]},
                                    "value": {"type": ["string", "number", "boolean"]},
                                }
                            ),
                        ]
                    }
                }
            },
        ),
        {"table": "users", "where": {"op": "and", "args": [{"column": "age", "op": ">", "value": 3}]}},
        {"table": "users", "where": {"op": "not", "args": []}},
    ),
    Case(
        "book a flight",
        tool(
            {
                "from": {"type": "string", "pattern": "^[A-Z]{3}$"},
                "to": {"type": "string", "pattern": "^[A-Z]{3}$"},
                "depart": {"type": "string", "format": "date"},
                "return": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}], "default": None},
                "seats": {"type": "integer", "minimum": 1, "maximum": 9, "default": 1},
                "cabin": {"$ref": "#/$defs/cabin"},
            },
            ["from", "to", "depart"],
            **{"$defs": {"cabin": {"type": "string", "enum": ["economy", "business"]}}},
        ),
        {"from": "MUC", "to": "SFO", "depart": "2025-01-31", "return": None, "cabin": "economy"},
        {"from": "MUC", "to": "SFO", "depart": "31.01.2025"},
    ),
    Case(
        "calls of tools",
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "anyOf": [
                    closed({"name": {"const": "add"}, "arguments": closed({"a": NUMBER, "b": NUMBER})}),
                    closed({"name": {"const": "now"}, "arguments": closed({})}),
                ]
            },
        },
        [{"name": "add", "arguments": {"a": 1, "b": -2.5}}, {"name": "now", "arguments": {}}],
        [{"name": "now", "arguments": {"a": 1}}],
    ),
    Case(
        "network address",
        closed(
            {
                "v4": {"type": "string", "format": "ipv4"},
                "v6": {"type": "string", "format": "ipv6"},
                "host": {"type": "string", "format": "hostname"},
            }
        ),
        {"v4": "192.168.0.1", "v6": "fe80::1", "host": "a.example.com"},
        {"v4": "192.168.0.256", "v6": "::1", "host": "a"},
    ),
    Case(
        "settings by name",
        {
            "type": "object",
            "patternProperties": {"^x-": TEXT},
            "properties": {"port": {"type": "integer", "maximum": 65535, "minimum": 1}},
            "additionalProperties": False,
        },
        {"port": 8080, "x-a": "b"},
        {"port": 8080, "y": "b"},
    ),
    Case(
        "a table",
        closed({"rows": {"type": "array", "items": {"type": "array", "items": NUMBER, "minItems": 2, "maxItems": 2}}}),
        {"rows": [[1, 2], [3.5, -4]]},
        {"rows": [[1, 2, 3]]},
    ),
    Case(
        "a pair by draft 2020",
        {"type": "array", "prefixItems": [TEXT, WHOLE], "items": False, "minItems": 2},
        ["a", 1],
        ["a", 1, 2],
    ),
]
