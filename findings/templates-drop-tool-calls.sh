#!/usr/bin/env bash
# Chat templates that llama.cpp 0.5.0 ships drop what an assistant did: of a message with two calls of tools, gpt-oss'
# writes the first and leaves out the second without an error, and LFM2-8B-A1B's and LFM2.5-Instruct's write none, though
# the results of both follow. So a model sees the result of a call that it never made. Rendered with jinja2 as
# transformers does it. Exits 1 if that has changed. Seen, as the calls and the results that the rendered text has:
#
#   openai-gpt-oss-120b  calls 1 of 2, results 2 of 2
#   LFM2-8B-A1B          calls 0 of 2, results 2 of 2
#   LFM2.5-Instruct      calls 0 of 2, results 2 of 2
#   Qwen3-Coder          calls 2 of 2, results 2 of 2
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jinja2==3.1.6
cd "$folder"
# pip would build the package to read its name, so the archive is fetched from pip's own index
"$folder/venv/bin/python" - <<'PYTHON'
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import urllib.parse
import urllib.request
from datetime import datetime, timezone

from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pip._internal.models.index import PyPI

pip = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
index = os.environ.get("PIP_INDEX_URL") or subprocess.run(pip, capture_output=True, text=True).stdout.strip()
page = f"{(index or PyPI.simple_url).rstrip('/')}/llama-cpp-python/"
request = urllib.request.Request(page, headers={"Accept": "application/vnd.pypi.simple.v1+json, text/html;q=0.5"})
with urllib.request.urlopen(request) as reply:
    body, where = reply.read().decode(), reply.url
name = "llama_cpp_python-0.3.36.tar.gz"
if body.lstrip().startswith("{"):
    link = next(file["url"] for file in json.loads(body)["files"] if file["filename"] == name)
else:
    link = next(part.split('"')[0] for part in body.split('href="')[1:] if name in part)
urllib.request.urlretrieve(urllib.parse.urljoin(where, link), name)
print("llama-cpp-python 0.3.36, sha256", hashlib.sha256(open(name, "rb").read()).hexdigest()[:16])

folder = "llama_cpp_python-0.3.36/vendor/llama.cpp/models/templates"
names = ("openai-gpt-oss-120b", "LFM2-8B-A1B", "LFM2.5-Instruct", "Qwen3-Coder")
archive = tarfile.open(name)
sources = {each: archive.extractfile(f"{folder}/{each}.jinja").read().decode() for each in names}


def call(number, city):
    function = {"name": "weather", "arguments": {"city": city}}
    return {"id": f"call{number:05}", "type": "function", "function": function}


def result(number, text):
    return {"role": "tool", "tool_call_id": f"call{number:05}", "name": "weather", "content": text}


parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
tools = [{"type": "function", "function": {"name": "weather", "description": "Weather.", "parameters": parameters}}]
messages = [
    {"role": "user", "content": "The weather, please."},
    {"role": "assistant", "content": "", "tool_calls": [call(1, "Oslo"), call(2, "Lima")]},
    result(1, "sleet"),
    result(2, "drizzle"),
]

environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
environment.filters["tojson"] = lambda value, **_: json.dumps(value)
environment.globals["strftime_now"] = lambda form: datetime(2026, 1, 1, tzinfo=timezone.utc).strftime(form)


def refuse(message):
    raise ValueError(message)


environment.globals["raise_exception"] = refuse
seen = []
for each, source in sources.items():
    text = environment.from_string(source).render(
        messages=messages, tools=tools, add_generation_prompt=True, bos_token="", eos_token=""
    )
    n_calls, n_results = (sum(word in text for word in words) for words in (("Oslo", "Lima"), ("sleet", "drizzle")))
    seen.append((n_calls, n_results))
    print(f"{each:20} calls {n_calls} of 2, results {n_results} of 2")
is_as_seen = seen == [(1, 2), (0, 2), (0, 2), (2, 2)]
print("as seen before" if is_as_seen else "the behaviour has changed")
sys.exit(0 if is_as_seen else 1)
PYTHON
