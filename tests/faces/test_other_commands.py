"""What is typed after `vkllm` and is no command of it gets a sentence that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from terminal import REAL, Command, in_this_process


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "`vkllm` alone is the chat, which needs a terminal; `vkllm run MODEL PROMPT` answers without one; see"),
        ("ps", "there is no `vkllm ps`: vkllm keeps no model loaded"),
        ("stop smollm2", "there is no `vkllm stop`: vkllm keeps no model loaded"),
        ("create m -f Modelfile", "there is no `vkllm create`: vkllm makes no models of Modelfiles"),
        ("cp a b", "there is no `vkllm cp`: vkllm does not copy models"),
        ("push m", "there is no `vkllm push`: vkllm has no registry"),
        ("embed m text", "there is no `vkllm embed`: embeddings come from `vkllm serve`"),
        ("quantize a b", "there is no `vkllm quantize`: vkllm makes no model files"),
        ("smollm2 Hi", "smollm2 is a model and no command; `vkllm run smollm2` runs it"),
        ("some.gguf", "some.gguf is a model and no command"),
        ("-m some.gguf -p Hi", "name a command before -m, as in `vkllm run -m ...`; see `vkllm --help`"),
        ("-hff f", "name a command before -hff, as in `vkllm run -hff ...`"),
        ("-tb 8", "name a command before -tb"),
        ("rnu", "No such command 'rnu'. Did you mean 'run'? See `vkllm --help`"),
        ("--nope", "No such option: --nope"),
        ("help nothing", "No such command 'nothing'"),
    ],
)
def test_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, words: str
) -> None:
    done = in_this_process(line.split(), monkeypatch, capsys)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("vkllm: error: ") and words in done.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [("help", "vkllm [OPTIONS] COMMAND"), ("help run", "vkllm run [OPTIONS]"), ("ls --help", "vkllm list [OPTIONS]")],
)
def test_names_for_the_same(tmp_path: Path, line: str, words: str) -> None:
    done = Command(tmp_path).run([*REAL, *line.split()])
    assert done.returncode == 0 and words in done.stdout and done.stderr == ""
