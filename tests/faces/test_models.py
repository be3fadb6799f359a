"""pull, list, show and rm: what they print and what they ask."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest
from gguf import GGUFWriter
from hub_server import HubServer
from terminal import FAKE, REAL, Command
from tiny_gguf import write_tiny_gguf
from tiny_hub import ENTRY, REPO, Answers, at_a_terminal, serve_tiny  # noqa: F401  (the last two are fixtures)

from vkllm import store
from vkllm.errors import InvalidParameter, ModelNotFound
from vkllm.faces.cli import models
from vkllm.store.catalog import CatalogEntry, WheelSource

SMOLLM2 = CatalogEntry("smollm2", "The default", "MIT", 1, 2, 3, "0" * 64, WheelSource("p==1", "p/m.gguf"))


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)


# --- pull ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", f"hf.co/{REPO}", f"hf:{REPO}/tiny.F32.gguf"])
def test_pull_prints_the_path_alone(name: str, hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    models.pull(name)
    out, err = capsys.readouterr()
    assert Path(out.strip()).read_bytes() == hub.hub[REPO]["tiny.F32.gguf"]
    assert err == ""
    hub.seen.clear()
    models.pull(name)
    assert capsys.readouterr().out == out
    assert hub.lines("GET /cdn/") == []


def test_pull_of_a_model_that_cannot_run_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    models.pull("hf.co/someone/other")
    err = capsys.readouterr().err
    assert err.startswith("vkllm: warning: it is here, but vkllm cannot run it: ") and "mamba" in err
    assert err.count("\n") == 1


def test_a_failed_pull_is_one_line_and_exits_2(hub: HubServer, tmp_path: Path) -> None:
    command = Command(tmp_path, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"), VKLLM_CACHE=str(tmp_path / "c"))
    done = command.run([*REAL, "pull", "hf.co/someone/none"])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("vkllm: error: hf.co/someone/none could not be fetched: ")


def test_ctrl_c_in_a_download_says_that_it_can_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "pull", interrupt)
    for name, note in (
        ("tiny", "note: what has come is kept: `vkllm pull tiny` goes on, `vkllm rm tiny` deletes it"),
        ("smollm2", ""),  # what comes out of a wheel is not kept
    ):
        monkeypatch.setattr("vkllm.store.catalog.read_catalog", lambda: [ENTRY, SMOLLM2])
        with pytest.raises(KeyboardInterrupt):
            models.pull(name)
        assert capsys.readouterr().err == (f"vkllm: {note}\n" if note else "")


def test_a_download_stopped_with_ctrl_c_goes_on(hub: HubServer, tmp_path: Path) -> None:
    hub.hub["someone/large"] = {"large.gguf": b"GGUF" + bytes(50_000_000)}
    command = Command(tmp_path, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"), VKLLM_CACHE=str(tmp_path / "c"))
    hub.faults.cut_after = 20_000_000
    hub.faults.stalls_after_cut = True
    process = command.start([*REAL, "pull", "hf.co/someone/large"])
    deadline = time.monotonic() + 120
    while sum(path.stat().st_size for path in (tmp_path / "home").rglob("*.incomplete")) < 20_000_000:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, "")
    assert err == "vkllm: note: what has come is kept: `vkllm pull hf.co/someone/large` goes on, " + (
        "`vkllm rm hf.co/someone/large` deletes it\n"
    )
    done = command.run([*REAL, "rm", "hf.co/someone/large"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "What was fetched of hf.co/someone/large is deleted; 19.1 MiB are free again.\n"
    done = command.run([*REAL, "rm", "hf.co/someone/large"])
    assert done.stderr.startswith("vkllm: error: hf.co/someone/large is not on this machine; `vkllm list` shows")


# --- list ------------------------------------------------------------------------------------------------------------


def test_list_shows_what_is_here_and_with_all_what_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    models.list_models()
    assert capsys.readouterr().out == "There are no models here yet.\n"
    models.list_models(show_all=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split() == ["NAME", "SIZE", "MEMORY", "LICENCE", "DESCRIPTION"]
    assert lines[-1].split() == ["tiny", "146", "KiB", "1.9", "MiB", "MIT", "A", "tiny", "model"]
    store.find_model("tiny")
    models.pull("hf.co/someone/other")
    capsys.readouterr()
    models.list_models(show_all=True)
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAME", "SIZE", "FORMAT", "USED", "WHERE"]
    n_bytes = store.installed()[0].n_bytes
    assert first.split()[:6] == ["tiny", f"{n_bytes / 1024:.0f}", "KiB", "F32", "just", "now"]
    assert first.endswith("models--someone--tiny-GGUF")  # which is enough to find it; `show` has the whole path
    assert second.split()[0] == "hf:someone/other/other.gguf"
    assert second.split()[3:5] == ["F32", "never"]  # The name does not say it, the file does.


def test_list_as_json_has_the_same_keys_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    store.pull("hf.co/someone/other")
    models.list_models(show_all=True, json=True)
    other, tiny = json.loads(capsys.readouterr().out)
    assert set(other) == set(tiny)
    assert (other["name"], other["format"], other["last_used"]) == ("hf:someone/other/other.gguf", "F32", None)
    assert Path(other["path"]).stat().st_size == other["n_bytes"]
    assert (tiny["name"], tiny["path"], tiny["memory_bytes"], tiny["licence"]) == ("tiny", None, 2_000_000, "MIT")


def test_a_damaged_model_does_not_hide_the_others(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    hub.hub["someone/broken"] = {"broken.gguf": b"GGUF and no more"}
    for name in ("hf.co/someone/broken", "tiny"):
        store.pull(name)
    models.list_models()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "damaged" in lines[2]


# --- show ------------------------------------------------------------------------------------------------------------


def test_show_tells_what_a_model_is(capsys: pytest.CaptureFixture[str]) -> None:
    store.pull("tiny")
    models.show("tiny")
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["architecture"] == "llama" and lines["title"] == "Tiny" and lines["licence"] == "MIT"
    assert lines["formats"].startswith("11 F32 (")
    assert lines["context"] == "256 tokens" and lines["layers"] == "1" and lines["width"] == "32"
    assert lines["chat"] == "template yes" and lines["runs"] == "yes"
    assert lines["parameters"] == "0.0 million"


def test_show_tells_the_sampling_that_a_file_recommends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"general.sampling.temp": 0.6, "general.sampling.top_k": 20, "general.sampling.mirostat": 2}
    path = write_tiny_gguf(tmp_path / "thinking.gguf", fields=fields)
    models.show(str(path))
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (lines["sampling"], lines["unused"]) == ("temperature 0.6, top_k 20", "mirostat 2")
    models.show(str(path), json=True)
    fields = json.loads(capsys.readouterr().out)
    assert fields["sampling"] == {"temperature": 0.6, "top_k": 20} and fields["unused_sampling"] == {"mirostat": "2"}


def test_show_as_json_and_of_a_path(tiny_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models.show(str(tiny_gguf), json=True)
    fields = json.loads(capsys.readouterr().out)
    assert fields["paths"] == [str(tiny_gguf)] and fields["n_bytes"] == tiny_gguf.stat().st_size
    assert fields["formats"]["F32"]["n_tensors"] == 11
    assert fields["has_chat_template"] is True and fields["licence"] is None and fields["problem"] is None


def test_show_says_why_a_model_does_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    store.pull("hf.co/someone/other")
    models.show("hf.co/someone/other")
    out = capsys.readouterr().out
    assert "runs          no: " in out and "'mamba' is not supported" in out
    assert "chat template no" in out


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"fields": {"tokenizer.ggml.pre": "other"}}, "the pre-tokenizer 'other' is not supported"),
        ({"template": "{% nothing %}"}, "the chat template is not valid Jinja"),
        (
            {"fields": {"tokenizer.ggml.tokens": [str(n) for n in range(260)], "tokenizer.ggml.token_type": [1] * 260}},
            "the vocabulary has 260 tokens, but the embedding only 259 rows",
        ),
    ],
)
def test_show_and_pull_say_that_a_tokenizer_or_template_does_not_run(
    options: dict[str, Any], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf", **options)
    models.show(str(path))
    assert f"runs          no: {path}: {why}" in capsys.readouterr().out
    models.pull(str(path))
    assert f"warning: it is here, but vkllm cannot run it: {path}: {why}" in capsys.readouterr().err


def test_show_prefers_the_files_own_licence_and_counts_all_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "split"
    folder.mkdir()
    for number in (0, 1):
        writer = GGUFWriter(folder / f"m-0000{number + 1}-of-00002.gguf", "llama")
        writer.add_license("apache-2.0")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", 0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
    models.show(str(folder), json=True)
    fields = json.loads(capsys.readouterr().out)
    assert fields["licence"] == "apache-2.0"
    assert len(fields["paths"]) == 2
    assert fields["n_bytes"] == sum(path.stat().st_size for path in folder.glob("*.gguf"))


def test_show_of_a_catalogue_model_that_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    models.show("tiny")
    assert "here          no; `vkllm pull tiny` fetches it" in capsys.readouterr().out
    with pytest.raises(ModelNotFound, match=r"`vkllm pull hf\.co/a/b` fetches it"):
        models.show("hf.co/a/b")


# --- rm --------------------------------------------------------------------------------------------------------------


def test_rm_asks_and_deletes_on_yes_alone(person: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    path = store.pull("tiny")
    for answer in ("", "n", "what?"):
        questions = person(answer)
        models.remove(["tiny"])
        assert path.exists() and len(questions) == 1 and questions[0].startswith("Delete tiny (")
    person("y")
    models.remove(["tiny"])
    assert not path.exists()
    assert capsys.readouterr().out.startswith("tiny is deleted; ")
    with pytest.raises(ModelNotFound, match="tiny is not on this machine; `vkllm list` shows what is"):
        models.remove(["tiny"])


def test_rm_without_a_terminal_wants_y(nobody: None) -> None:
    path = store.pull("tiny")
    with pytest.raises(InvalidParameter, match="-y means yes"):
        models.remove(["tiny"])
    assert path.exists()
    models.remove(["tiny"], yes=True)
    assert not path.exists()


def test_rm_never_deletes_what_vkllm_did_not_fetch(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    path = write_tiny_gguf(folder / "mine.gguf")
    with pytest.raises(InvalidParameter, match="was not fetched by vkllm"):
        models.remove([str(path)], yes=True)
    with pytest.raises(InvalidParameter, match="was not fetched by vkllm"):
        models.remove([str(folder)], yes=True)
    assert path.exists()


def test_rm_looks_at_all_names_before_it_deletes_one() -> None:
    path = store.pull("tiny")
    with pytest.raises(ModelNotFound):
        models.remove(["tiny", "hf.co/a/b"], yes=True)
    assert path.exists()


def test_a_model_in_use_can_be_deleted_and_is_used_to_the_end(hub: HubServer, tmp_path: Path) -> None:
    command = Command(tmp_path, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"), VKLLM_CACHE=str(tmp_path / "c"))
    name = f"hf.co/{REPO}"
    assert command.run([*REAL, "pull", name]).returncode == 0
    process = command.start([*FAKE, "run", name, "--raw", chr(fake.SLOW) + "abc", "-n", "60"])
    assert process.stdout is not None
    assert process.stdout.read(3) == "abc"
    assert command.run([*REAL, "rm", "-y", name]).returncode == 0
    assert process.poll() is None
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "abc" * 19 + "\n")
