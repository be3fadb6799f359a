"""Plans of models that are elsewhere: their headers come by requests for parts of files, and nothing else of them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from hub_server import HubServer
from tiny_gguf import write_tiny_gguf

from vkllm import InvalidParameter, ModelFileError, ModelNotFound, UnsupportedModel, plan_model
from vkllm.formats.gguf import ModelFile, has_whole_header
from vkllm.store import headers_of, installed, local_model
from vkllm.store.downloads import headers

REPO = "someone/tiny-GGUF"


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(headers, "FIRST_BYTES", 1000)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))


def left(tmp_path: Path) -> list[str]:
    """Files of the caches and of the folder for temporary files."""
    found = [path for folder in ("hub", "cache", "temporary") for path in (tmp_path / folder).rglob("*")]
    return [path.name for path in found if path.is_file() and path.suffix not in (".lock", ".TAG")]


def n_sent(hub: HubServer) -> list[int]:
    return [seen.start for seen in hub.seen if seen.line.startswith("GET") and "/api/" not in seen.line]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["file", "repository", "address"])
def test_a_model_is_planned_as_if_it_were_here_and_stays_where_it_is(
    hub: HubServer, tiny_gguf: Path, tmp_path: Path, kind: str
) -> None:
    hub.hub[REPO] = {"tiny-Q4_0.gguf": tiny_gguf.read_bytes()}
    hub.files["/m/tiny-Q4_0.gguf"] = tiny_gguf.read_bytes()
    names = {
        "file": f"hf:{REPO}/tiny-Q4_0.gguf",
        "repository": f"hf.co/{REPO}:Q4_0",
        "address": f"{hub.url}/m/tiny-Q4_0.gguf",
    }
    made = plan_model(names[kind], n_ctx=128, measures=False)
    here = plan_model(tiny_gguf, n_ctx=128, measures=False)
    assert (made.plan, made.spec, made.limits) == (here.plan, here.spec, here.limits)
    assert (made.path, made.missing_bytes) == (Path("tiny-Q4_0.gguf"), tiny_gguf.stat().st_size)
    assert here.missing_bytes == 0
    assert left(tmp_path) == [] and installed() == [] and local_model(names[kind]) is None


def test_only_the_header_is_fetched_in_growing_parts(hub: HubServer, tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", [f"token {n}" for n in range(1000)])
    writer.add_tensor("token_embd.weight", np.zeros((1000, 512), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    hub.files["/m/sparse.gguf"] = path.read_bytes()
    with headers_of(f"{hub.url}/m/sparse.gguf") as found:
        assert found.n_bytes == path.stat().st_size > 2_000_000
        assert 16_000 < found.path.stat().st_size <= 64_000
        assert ModelFile.open(found.path, found.whole_bytes).tensors == ModelFile.open(path).tensors
    assert n_sent(hub) == [0, 1000, 4000, 16000] and left(tmp_path) == []


def write_part(path: Path, number: int, tensor: str) -> bytes:
    writer = GGUFWriter(path, "llama")
    writer.add_uint16("split.no", number)
    writer.add_uint16("split.count", 2)
    writer.add_int32("split.tensors.count", 2)
    writer.add_tensor(tensor, np.zeros((32, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.mark.parametrize("folder", ["", "Q4_0/"])
def test_each_part_of_a_split_model_gives_its_header(hub: HubServer, tmp_path: Path, folder: str) -> None:
    names = [f"{folder}m-0000{n}-of-00002.gguf" for n in (1, 2)]
    hub.hub[REPO] = {name: write_part(tmp_path / "part", n, f"t{n}") for n, name in enumerate(names)}
    with headers_of(f"hf.co/{REPO}") as found:
        file = ModelFile.open(found.path, found.whole_bytes)
        assert list(file.tensors) == ["t0", "t1"] and found.n_bytes == sum(map(len, hub.hub[REPO].values()))
    assert left(tmp_path) == []


def test_a_server_that_sends_no_parts_is_told(hub: HubServer, tiny_gguf: Path, tmp_path: Path) -> None:
    hub.hub[REPO] = {"tiny.gguf": tiny_gguf.read_bytes()}
    hub.faults.ignores_ranges = True
    with pytest.raises(ModelNotFound, match=r"its server sends no parts of files; `vkllm pull` fetches it"):
        plan_model(f"hf.co/{REPO}")
    assert left(tmp_path) == []


@pytest.mark.parametrize("status", [404, 403])
def test_a_server_that_refuses_is_told(hub: HubServer, tiny_gguf: Path, status: int) -> None:
    hub.files["/tiny.gguf"] = tiny_gguf.read_bytes()
    hub.faults.status = status
    with pytest.raises(ModelNotFound, match=str(status)):
        plan_model(f"{hub.url}/tiny.gguf")


def test_a_connection_that_breaks_is_told(hub: HubServer, tiny_gguf: Path, tmp_path: Path) -> None:
    hub.files["/tiny.gguf"] = tiny_gguf.read_bytes()
    hub.faults.cut_after = 10
    with pytest.raises(ModelNotFound, match=r"the header of http.* could not be fetched: .*check the network"):
        plan_model(f"{hub.url}/tiny.gguf")
    assert left(tmp_path) == []


def test_a_header_that_is_no_model_s_is_told_by_the_file_s_name(hub: HubServer, tmp_path: Path) -> None:
    hub.files["/page.gguf"] = b"<html>" * 1000
    with pytest.raises(ModelFileError, match=r"^page\.gguf: not a sound GGUF: it does not begin with"):
        plan_model(f"{hub.url}/page.gguf")
    other = write_tiny_gguf(tmp_path / "other.gguf", architecture="mamba").read_bytes()
    hub.files["/other.gguf"] = other
    with pytest.raises(UnsupportedModel, match=r"^other\.gguf: architecture 'mamba' is not supported"):
        plan_model(f"{hub.url}/other.gguf")
    hub.files["/cut.gguf"] = other[:500]
    with pytest.raises(ModelFileError, match=r"^cut\.gguf: not a sound GGUF: it ends inside its header, at 500 bytes"):
        plan_model(f"{hub.url}/cut.gguf")
    assert left(tmp_path) == []


def test_a_header_that_never_ends_is_not_fetched_for_ever(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headers, "MOST_BYTES", 50_000)
    content = bytearray(write_tiny_gguf(tmp_path / "long.gguf").read_bytes())
    content[16:24] = (1 << 14).to_bytes(8, "little")  # more fields than there are
    hub.files["/long.gguf"] = bytes(content[:5000]) + bytes(200_000)
    with pytest.raises(ModelFileError, match=r"^long\.gguf: not a sound GGUF"):
        plan_model(f"{hub.url}/long.gguf")
    assert max(n_sent(hub)) < 50_000 and left(tmp_path) == []


def test_the_context_is_checked_as_always(hub: HubServer, tiny_gguf: Path) -> None:
    hub.files["/tiny.gguf"] = tiny_gguf.read_bytes()
    with pytest.raises(InvalidParameter, match="a context of 100000 tokens is not possible"):
        plan_model(f"{hub.url}/tiny.gguf", n_ctx=100_000)


def test_where_a_header_ends(tiny_gguf: Path, tmp_path: Path) -> None:
    data, path = tiny_gguf.read_bytes(), tmp_path / "beginning"
    end = min(info.offset for info in ModelFile.open(tiny_gguf).tensors.values())
    for n_bytes, is_whole in (
        (4, False),
        (24, False),
        (1000, False),
        (end - 64, False),
        (end, True),
        (len(data), True),
    ):
        path.write_bytes(data[:n_bytes])
        assert has_whole_header(path) == is_whole, n_bytes
    path.write_bytes(b"no model")
    assert has_whole_header(path), "there is nothing to wait for"
