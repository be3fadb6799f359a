#!/usr/bin/env bash
# llguidance reads the numbers of a JSON schema as float64 and does not say so: `const` and `enum` of an integer beyond
# 2^53 become the neighbouring integer, so that the grammar takes a text that the schema forbids and refuses the only one
# that it allows; `minimum` admits an integer below it. Exits 1 if that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check llguidance==1.9.1
"$folder/venv/bin/python" - <<'PYTHON'
import json
import sys
from importlib.metadata import version

from llguidance import LLMatcher, LLTokenizer

print("llguidance", version("llguidance"))
tokenizer = LLTokenizer("byte")


def takes(schema, text):
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(json.dumps(schema)), log_level=0)
    if matcher.is_error():
        return matcher.get_error().splitlines()[0]
    raw = list(text.encode())
    return matcher.try_consume_tokens(raw) == len(raw) and matcher.is_accepting()


n = 2**53 + 1
seen = []
for schema in ({"const": n}, {"enum": [n]}, {"type": "integer", "minimum": n}):
    for text in (str(n - 1), str(n)):
        seen.append(takes(schema, text))
        print(json.dumps(schema), "takes", text, "->", seen[-1])
is_as_seen = seen == [True, False, True, False, True, True]
print("as seen before" if is_as_seen else "the behaviour has changed")
sys.exit(0 if is_as_seen else 1)
PYTHON
