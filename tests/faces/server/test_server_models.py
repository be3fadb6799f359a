"""Several models: names, loading once, making room, sleeping; with an engine that echoes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from served import serving
from tiny_gguf import write_tiny_gguf

from vkllm.faces.server.errors import HttpError
from vkllm.faces.server.fitting import Fitting, without
from vkllm.faces.server.models import Models, ServedModel
from vkllm.faces.server.names import KnownModels
from vkllm.model.memory.limits import DeviceLimits, Tier
from vkllm.model.memory.plan import MemoryPlan, TierPlan
from vkllm.store import FoundModel

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three models, one of them in a folder of its own."""
    path = tmp_path_factory.mktemp("many")
    (path / "deep").mkdir()
    for name in ("a", "b", "deep/c"):
        write_tiny_gguf(path / f"{name}.gguf")
    (path / "readme.txt").write_text("none")
    return path


class Known(KnownModels):
    """Only those of the folder, and not this machine's."""

    def _installed(self) -> Any:
        return iter(())


class Room(Fitting):
    """Has room for so many models."""

    def __init__(self, most: int) -> None:
        super().__init__({})
        self.most = most

    def look(self) -> None:
        """Needs no device."""

    def fits(self, model: FoundModel, n_ctx: int | None, others: Any) -> bool:
        return len(others) < self.most


@contextlib.asynccontextmanager
async def models_of(folder: Path, most: int = 2, **more: Any) -> AsyncIterator[tuple[Models, list[tuple[str, str]]]]:
    """Models with room for `most`, and what has happened to them."""
    models, told = Models(Known(folder), fitting=Room(most), **more), []
    models.on_change.append(lambda model: told.append((model.name, model.status)))
    sleeping = asyncio.create_task(models.unload_idle())
    try:
        yield models, told
    finally:
        sleeping.cancel()
        await models.close()


async def used(models: Models, name: str, **how: Any) -> ServedModel:
    async with models.use(name, **how) as model:
        return model


pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("fake_engines")]


async def test_two_requests_for_one_model_load_it_once(folder: Path) -> None:
    async with models_of(folder) as (models, told):
        one, other = await asyncio.gather(used(models, "a"), used(models, "a"))
        assert one is other and told == [("a", "loading"), ("a", "loaded")]


async def test_the_least_recently_used_makes_room_and_busy_ones_stay(folder: Path) -> None:
    async with models_of(folder) as (models, told):
        for name in ("a", "b", "a"):
            await used(models, name)
        await used(models, "deep/c")
        assert [model.name for model in models.served if model.is_loaded] == ["a", "deep/c"]
        assert told[-3:] == [("deep/c", "loading"), ("b", "unloaded"), ("deep/c", "loaded")]
        async with models.use("a"), models.use("deep/c"):
            waits = asyncio.create_task(used(models, "b"))
            await asyncio.sleep(0.1)
            assert not waits.done()  # both others are in use
        assert (await waits).name == "b"
        assert [model.name for model in models.served if model.is_loaded] == ["a", "b"]  # it was in use longest


async def test_who_leaves_while_waiting_costs_no_other_model_its_place(folder: Path) -> None:
    async with models_of(folder, most=1) as (models, told):
        async with models.use("a"):
            leaves = asyncio.create_task(used(models, "b"))
            await asyncio.sleep(0.1)
            leaves.cancel()
            await asyncio.gather(leaves, return_exceptions=True)
        await asyncio.sleep(0.1)
        assert told == [("a", "loading"), ("a", "loaded"), ("b", "loading"), ("b", "unloaded")]
        assert (await used(models, "b")).is_loaded  # nothing of it is left behind


async def test_models_may_be_loaded_by_command_only(folder: Path) -> None:
    async with models_of(folder, most=1, loads_on_request=False) as (models, _):
        for _ in range(2):
            with pytest.raises(HttpError, match=r"a is not loaded; .*POST /models/load") as caught:
                await used(models, "a")
            assert caught.value.status == 400
            await models.load(await models.find("a"))
            assert (await used(models, "a")).is_loaded
            await models.load(await models.find("b"))  # which takes its place


async def test_no_more_than_so_many_are_loaded(folder: Path) -> None:
    async with models_of(folder, most=9) as (models, _):
        models.most = 1
        for name in ("a", "b"):
            await used(models, name)
        assert [model.name for model in models.served if model.is_loaded] == ["b"]


async def test_idle_models_sleep_and_wake(folder: Path) -> None:
    async with models_of(folder, sleep_s=0.1) as (models, told):
        async with models.use("a"):
            await asyncio.sleep(0.3)
            assert told[-1] == ("a", "loaded")
        async with asyncio.timeout(10):
            while told[-1] != ("a", "sleeping"):
                await asyncio.sleep(0.02)
        await used(models, "a", keep_s=60)
        assert told[-1] == ("a", "loaded")
        await used(models, "b", keep_s=0)
        assert told[-1] == ("b", "unloaded")
        for name in ("a", "b"):  # what a request said of it ends with that load
            model = await models.find(name)
            await models.unload(model)
            assert model.keep_s == 0.1


async def test_a_larger_context_loads_a_model_again(folder: Path) -> None:
    async with models_of(folder) as (models, told):
        assert (await used(models, "a", n_ctx=64)).llm.llm.n_ctx == 64
        await used(models, "a", n_ctx=32)
        async with models._loads:  # as while another model is loaded
            leaves = asyncio.create_task(used(models, "a", n_ctx=128))
            await asyncio.sleep(0.05)
            leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        await asyncio.sleep(0.05)
        model = await models.find("a")
        assert model.status == "loaded" and model.llm.llm.n_ctx == 64  # nobody wants a longer one any more
        assert len(told) == 2
        assert (await used(models, "a", n_ctx=10_000)).llm.llm.n_ctx == 256  # what the model was trained for
        await used(models, "a", n_ctx=10_000)
        assert told[2:] == [("a", "unloaded"), ("a", "loading"), ("a", "loaded")]


async def test_a_context_for_all_models_is_no_longer_than_each_was_trained_for(folder: Path) -> None:
    for n_ctx, found in ((10_000, 256), (64, 64)):
        async with models_of(folder, options={"n_ctx": n_ctx}) as (models, _):
            assert (await used(models, "a")).llm.llm.n_ctx == found


async def test_names_paths_and_what_is_no_name(folder: Path) -> None:
    async with models_of(folder) as (models, _):
        for name in ("deep/c", "deep/c.gguf", "c", str(folder / "deep/c.gguf")):
            assert (await models.find(name)).name == "deep/c"
        assert [model.name for model in await models.all()] == ["a", "b", "deep/c"]
        for name in ("d", "/etc/passwd", "../many/a.gguf", "a\0", "a\n", "x" * 1000, "hf.co/o/r", "http://x/y.gguf"):
            with pytest.raises(HttpError, match="there is no model") as caught:
                await models.find(name)
            assert caught.value.status == 404
        with pytest.raises(HttpError, match="model is missing"):
            await models.find(None)
        await used(models, "b")
        assert (await models.find(None)).name == "b"


async def test_a_failed_load_is_told_and_tried_again(folder: Path) -> None:
    broken = folder / "broken.gguf"
    broken.write_bytes(b"GGUF, but not really")
    try:
        async with models_of(folder) as (models, told):
            for _ in range(2):
                with pytest.raises(Exception, match="not a sound GGUF"):
                    await used(models, "broken")
            assert told[-1] == ("broken", "failed")
    finally:
        broken.unlink()


async def test_over_http(folder: Path) -> None:
    def ask() -> None:
        with serving(Models(Known(folder), fitting=Room(2))) as server:
            status, _, body = server.request("POST", "/v1/chat/completions", {"model": "b", "messages": HI})
            assert status == 200 and body["model"] == "b"
            status, _, body = server.request("POST", "/v1/chat/completions", {"model": "gpt-4o", "messages": HI})
            assert status == 404 and body["error"]["code"] == "model_not_found"
            assert "there are a, b, deep/c" in body["error"]["message"]
            listed = server.request("GET", "/v1/models")[2]["data"]
            assert {entry["id"]: entry["status"]["value"] for entry in listed} == {
                "a": "unloaded",
                "b": "loaded",
                "deep/c": "unloaded",
            }

    await asyncio.to_thread(ask)


async def test_a_model_fits_where_it_loses_no_speed(folder: Path) -> None:
    found = FoundModel("a", None, folder / "a.gguf")
    fitting = Fitting({}, DeviceLimits(memory_bytes=2**30, max_binding_bytes=2**27, spill_bytes=2**30))

    def taking(n_bytes: int) -> MemoryPlan:
        tier = TierPlan(Tier.LOCAL, 2**30, n_bytes, 0, 0, 0, 1e9)
        return MemoryPlan(256, {}, (), Tier.LOCAL, (tier,), 0.0)

    assert fitting.fits(found, 256, [taking(2**29)])
    assert not fitting.fits(found, 256, [taking(2**29), taking(2**29)])
    assert without(DeviceLimits(100, 100, spill_bytes=7), [taking(60)]).memory_bytes == 40
